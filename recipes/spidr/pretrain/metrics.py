"""Metrics of SpidR and DinoSR. Values stay on the device until the trainer publishes them, and only then meet."""

from __future__ import annotations

from typing import final

import torch
from fairseq2.metrics import Mean, MetricBag

from recipes.metrics import CodebookPerplexity, CodebookUsage, add_batch_metrics, update_batch_metrics
from spear_plugin.data.batch import SpearBatch
from spear_plugin.models.spidr import SpidrConfig, SpidrOutput


@final
class SpidrMetrics:
    """Declares and feeds the metrics.

    ``loss`` is the cross-entropy in nats for each masked frame, averaged over heads (chance is ln V).
    ``target_perplexity`` and ``predicted_perplexity`` tell how many codes labels and predictions effectively use, as
    means over codebooks, ``codebook_usage`` which share of all codes is ever a label. All are of what was read since
    they were last published, by all processes; the authors' are of one batch.

    Args:
        config: The model's configuration.
        per_layer: Whether each codebook has its own perplexities and usage, ``layer_{n}_...``, too.
    """

    def __init__(self, config: SpidrConfig, *, per_layer: bool) -> None:
        num_codebooks = config.codebook.num_codebooks
        self._codebook_size = config.codebook.codebook_size
        # which codebooks, by the prefix of their metrics
        self._groups = {"": slice(0, num_codebooks)}
        if per_layer:
            first_layer = config.encoder.num_layers - num_codebooks + 1
            self._groups |= {f"layer_{first_layer + k}_": slice(k, k + 1) for k in range(num_codebooks)}

    def add_to(self, bag: MetricBag) -> None:
        bag.add("loss", Mean())
        for prefix, codebooks in self._groups.items():
            shape = codebooks.stop - codebooks.start, self._codebook_size
            bag.add(f"{prefix}target_perplexity", CodebookPerplexity(*shape, dtype=torch.float64))
            bag.add(f"{prefix}predicted_perplexity", CodebookPerplexity(*shape, dtype=torch.float64))
            bag.add(f"{prefix}codebook_usage", CodebookUsage(*shape, dtype=torch.float64))
        add_batch_metrics(bag)

    @torch.inference_mode()
    def update(self, bag: MetricBag, batch: SpearBatch, output: SpidrOutput) -> None:
        """Add one batch. Nothing here waits for the device."""
        num_masked = output.num_masked
        bag.get("loss", Mean).update(output.loss.detach() / max(num_masked, 1), weight=float(num_masked))
        for prefix, codebooks in self._groups.items():
            labels, probabilities = output.statistics.counts[codebooks], output.probabilities[codebooks]
            bag.get(f"{prefix}target_perplexity", CodebookPerplexity).update(labels)
            bag.get(f"{prefix}predicted_perplexity", CodebookPerplexity).update(probabilities)
            bag.get(f"{prefix}codebook_usage", CodebookUsage).update(labels)
        update_batch_metrics(bag, batch)
