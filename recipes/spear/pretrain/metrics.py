"""Metrics of masked token prediction. Values stay on the device until the trainer publishes them."""

from __future__ import annotations

import torch
from fairseq2.metrics import Mean, MetricBag

from recipes.metrics import CodebookPerplexity, CodebookUsage, add_batch_metrics, update_batch_metrics
from spear_plugin.data.batch import SpearBatch
from spear_plugin.models.spear import DOMAINS, SpearConfig, SpearOutput, StreamOutput, TargetStreamConfig


def add_metrics(bag: MetricBag, config: SpearConfig) -> None:
    """Declare every metric that `update_metrics` feeds.

    ``loss`` is the training objective for each target frame; ``{stream}_loss`` the unweighted cross-entropy in nats for
    each code (chance is ln V); accuracies count codes, apart for masked and unmasked frames. A stream that is predicted
    on several domains has them for each, ``{stream}_on_{domain}_loss``, too. Perplexities say how many entries of a
    codebook targets and predictions effectively use, ``{stream}_codebook_usage`` which share of all is ever predicted.
    """
    bag.add("loss", Mean())
    bag.add("masked_accuracy", Mean())
    for stream in config.target_streams:
        for prefix in (stream.name, *_domain_prefixes(stream).values()):
            bag.add(f"{prefix}_loss", Mean())
            bag.add(f"{prefix}_masked_accuracy", Mean())
            bag.add(f"{prefix}_unmasked_accuracy", Mean())
        counts_shape = stream.num_codebooks, stream.codebook_size
        bag.add(f"{stream.name}_codebook_usage", CodebookUsage(*counts_shape))
        bag.add(f"{stream.name}_predicted_perplexity", CodebookPerplexity(*counts_shape))
        bag.add(f"{stream.name}_target_perplexity", CodebookPerplexity(*counts_shape))
    add_batch_metrics(bag)


@torch.inference_mode()
def update_metrics(
    bag: MetricBag, config: SpearConfig, batch: SpearBatch, output: SpearOutput, num_targets: int
) -> None:
    """Add one batch. Nothing here waits for the device."""
    bag.get("loss", Mean).update(output.loss.detach() / max(num_targets, 1), weight=float(num_targets))
    for stream in config.target_streams:
        _update_stream(bag, stream, output.streams[stream.name])
    update_batch_metrics(bag, batch)


def _update_stream(bag: MetricBag, stream: TargetStreamConfig, output: StreamOutput) -> None:
    ratios = {
        "loss": (output.cross_entropy, output.num_masked + output.num_unmasked),
        "masked_accuracy": (output.correct_masked, output.num_masked),
        "unmasked_accuracy": (output.correct_unmasked, output.num_unmasked),
    }
    for name, (numerators, denominators) in ratios.items():
        _update_ratio(bag, f"{stream.name}_{name}", numerators.sum(), denominators.sum())
        for number, prefix in _domain_prefixes(stream).items():
            _update_ratio(bag, f"{prefix}_{name}", numerators[number], denominators[number])
    _update_ratio(bag, "masked_accuracy", output.correct_masked.sum(), output.num_masked.sum())
    bag.get(f"{stream.name}_codebook_usage", CodebookUsage).update(output.predicted_counts)
    bag.get(f"{stream.name}_predicted_perplexity", CodebookPerplexity).update(output.predicted_counts)
    bag.get(f"{stream.name}_target_perplexity", CodebookPerplexity).update(output.target_counts)


def _domain_prefixes(stream: TargetStreamConfig) -> dict[int, str]:
    """Return the prefix of a stream's metrics on a domain, by the domain's number; none if there is one domain only."""
    numbers = [number for number, domain in enumerate(DOMAINS) if stream.weights.get(domain, 0.0) > 0.0]
    return {number: f"{stream.name}_on_{DOMAINS[number]}" for number in numbers} if len(numbers) > 1 else {}


def _update_ratio(bag: MetricBag, name: str, numerator: torch.Tensor, denominator: torch.Tensor) -> None:
    # A batch without codes of a stream (speech only, say) has weight 0 and must not bring a NaN.
    bag.get(name, Mean).update(numerator / denominator.clamp(min=1), weight=denominator.to(torch.float32))
