"""One batch of speech recognition. Letters: N batch, T frames, V tokens."""

from __future__ import annotations

from typing import final

import torch
from fairseq2.evaluator import EvalUnit
from fairseq2.metrics import Mean, MetricBag
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import ctc_loss
from typing_extensions import override

from recipes.metrics import add_batch_metrics, update_batch_metrics
from recipes.text import TranscriptCodec
from spear_plugin.data.batch import SpearBatch
from spear_plugin.evaluation import count_errors
from spear_plugin.models.downstream import BLANK, CtcOutput, EncoderConfig, decode_greedily, num_encoder_frames


@final
class CtcCriterion:
    """Runs a model on a batch; shared by training and validation.

    Args:
        model: The data-parallel wrapper of a `CtcModel`, or the model itself.
        codec: Makes the targets.
        encoder: The encoder's configuration.
    """

    def __init__(self, model: Module, codec: TranscriptCodec, encoder: EncoderConfig) -> None:
        self._model = model
        self._codec = codec
        self._encoder = encoder

    def prepare_metric_bag(self, bag: MetricBag) -> None:
        """Declare ``loss``, in nats for each token of the transcripts, and how much audio was read."""
        bag.add("loss", Mean())
        add_batch_metrics(bag)

    def __call__(self, batch: SpearBatch, bag: MetricBag) -> tuple[Tensor, int]:
        loss, num_tokens, _ = self.run(batch, bag)
        return loss, num_tokens

    def run(self, batch: SpearBatch, bag: MetricBag) -> tuple[Tensor, int, CtcOutput]:
        """Return the sum of the loss, the number of tokens, and what the model says."""
        output: CtcOutput = self._model(batch.waveforms, torch.tensor(batch.seq_lens))
        targets = [self._codec.encode(text) for text in batch.texts]
        num_tokens = sum(map(len, targets))
        # Counted on the host: the loss needs them there, and reading them from the device would stall the step.
        lengths = [num_encoder_frames(num_samples, self._encoder) for num_samples in batch.seq_lens]
        loss = compute_ctc_loss(output.log_probs, lengths, targets)
        with torch.inference_mode():
            bag.get("loss", Mean).update(loss.detach() / max(num_tokens, 1), weight=float(num_tokens))
        update_batch_metrics(bag, batch)
        return loss, num_tokens, output


def compute_ctc_loss(log_probs: Tensor, lengths: list[int], targets: list[list[int]]) -> Tensor:
    """Return the sum over utterances of the negative log-likelihood of their tokens, in float32.

    Args:
        log_probs: (N, T, V).
        lengths: N numbers of valid frames.
        targets: N lists of tokens.
    """
    device = log_probs.device
    flat = torch.tensor([token for tokens in targets for token in tokens], dtype=torch.int64, device=device)
    with torch.autocast(device.type, enabled=False):
        return ctc_loss(
            log_probs.float().transpose(0, 1),  # (N, T, V) -> (T, N, V)
            flat,
            torch.tensor(lengths),
            torch.tensor([len(tokens) for tokens in targets]),
            blank=BLANK,
            reduction="sum",
            # Of a recording that was shorter than its manifest said.
            zero_infinity=True,
        )


@final
class CtcValidUnit(EvalUnit[SpearBatch]):
    """Measures loss and error rates of the likeliest paths.

    ``wer`` and ``cer`` are errors in percent of the words and characters of all references.
    """

    def __init__(self, criterion: CtcCriterion, codec: TranscriptCodec) -> None:
        self._criterion = criterion
        self._codec = codec

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._criterion.prepare_metric_bag(metric_bag)
        for name in ("wer", "cer"):
            metric_bag.add(name, Mean())

    @override
    def process_batch(self, batch: SpearBatch, metric_bag: MetricBag) -> None:
        _, _, output = self._criterion.run(batch, metric_bag)
        hypotheses = decode_greedily(output.log_probs, output.lengths.tolist())
        for text, tokens in zip(batch.texts, hypotheses, strict=True):
            errors = count_errors(self._codec.normalize(text), self._codec.decode(tokens))
            _update_rate(metric_bag, "wer", errors.word_errors, errors.num_words)
            _update_rate(metric_bag, "cer", errors.character_errors, errors.num_characters)


def _update_rate(bag: MetricBag, name: str, num_errors: int, length: int) -> None:
    if length > 0:
        bag.get(name, Mean).update(100.0 * num_errors / length, weight=float(length))
