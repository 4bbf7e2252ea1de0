"""Metrics of masked token prediction. Values stay on the device until the trainer publishes them."""

from __future__ import annotations

import torch
from fairseq2.metrics import Mean, MetricBag, Sum

from spear_plugin.data.batch import SpearBatch
from spear_plugin.models.spear import SpearConfig, SpearOutput


def add_metrics(bag: MetricBag, config: SpearConfig) -> None:
    """Declare every metric that `update_metrics` feeds.

    ``loss`` is the training objective for each target frame; ``{stream}_loss`` the unweighted cross-entropy in nats for
    each code (chance is ln V); accuracies count codes, apart for masked and unmasked frames.
    """
    bag.add("loss", Mean())
    bag.add("masked_accuracy", Mean())
    for name in (stream.name for stream in config.target_streams):
        bag.add(f"{name}_loss", Mean())
        bag.add(f"{name}_masked_accuracy", Mean())
        bag.add(f"{name}_unmasked_accuracy", Mean())
    bag.add("padding", Mean())
    bag.add("num_examples", Sum())
    bag.add("num_elements", Sum())
    bag.add("total_num_examples", Sum())
    bag.add("total_audio_seconds", Sum())
    bag.add("total_num_skipped", Sum())


@torch.inference_mode()
def update_metrics(
    bag: MetricBag, config: SpearConfig, batch: SpearBatch, output: SpearOutput, num_targets: int
) -> None:
    """Add one batch. Nothing here waits for the device."""
    bag.get("loss", Mean).update(output.loss.detach() / max(num_targets, 1), weight=float(num_targets))
    for target in config.target_streams:
        name, stream = target.name, output.streams[target.name]
        num_codes = stream.num_masked + stream.num_unmasked
        _update_ratio(bag, f"{name}_loss", stream.cross_entropy, num_codes)
        _update_ratio(bag, f"{name}_masked_accuracy", stream.correct_masked, stream.num_masked)
        _update_ratio(bag, f"{name}_unmasked_accuracy", stream.correct_unmasked, stream.num_unmasked)
        _update_ratio(bag, "masked_accuracy", stream.correct_masked, stream.num_masked)
    bag.get("padding", Mean).update(1.0 - batch.num_elements / batch.waveforms.numel())
    bag.get("num_examples", Sum).update(batch.num_examples)
    bag.get("num_elements", Sum).update(batch.num_elements)
    bag.get("total_num_examples", Sum).update(batch.num_examples)
    bag.get("total_audio_seconds", Sum).update(batch.seconds)
    bag.get("total_num_skipped", Sum).update(batch.num_skipped + batch.num_skipped_noise)


def _update_ratio(bag: MetricBag, name: str, numerator: torch.Tensor, denominator: torch.Tensor) -> None:
    # A batch without codes of a stream (speech only, say) has weight 0 and must not bring a NaN.
    bag.get(name, Mean).update(numerator / denominator.clamp(min=1), weight=denominator.to(torch.float32))
