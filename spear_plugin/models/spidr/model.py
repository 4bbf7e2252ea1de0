"""SpidR: a student that predicts codes of its own moving average, the teacher (arXiv 2512.20308), and DinoSR.

Waveforms are at 16 kHz and standardized: each recording has the mean 0 and the variance 1, measured over all of it
before it is cut or padded.

Letters: N batch, S samples, T frames, M predicted frames, D width, K codebooks, V codes of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self, final

import torch
from torch import Tensor
from torch.nn import Dropout, Module, Parameter
from torch.nn.functional import cross_entropy
from typing_extensions import override

from spear_plugin.models.spidr.codebook import CodebookStatistics, OnlineCodebooks
from spear_plugin.models.spidr.config import SpidrConfig, SpidrKind
from spear_plugin.models.spidr.ema import EmaUpdater
from spear_plugin.models.spidr.encoder import EncoderOutput, SpidrEncoder
from spear_plugin.models.spidr.frames import (
    check_mask,
    check_num_samples,
    find_frames,
    is_on_host,
    locate_frames,
    normalize_over_time,
)
from spear_plugin.models.spidr.frontend import FeatureExtractor, FeatureProjection
from spear_plugin.models.spidr.heads import CodeHeads
from spear_plugin.models.spidr.log_mel import LogMelExtractor
from spear_plugin.models.spidr.output import SpidrFeatures, SpidrOutput


@final
class SpidrModel(Module):
    """Student, teacher, codebooks and heads.

    The state dict has all that training needs to go on. A training step is: :meth:`forward` and backward for each
    batch; the optimizer's step; ``codebooks.update`` with the statistics of all batches, summed over processes;
    :meth:`update_ema`. The last layer's final norm never has a gradient unless ``kind`` is ``dinosr``, so data
    parallelism has to look for unused parameters.
    """

    mask_embedding: Parameter
    current_step: Tensor

    def __init__(
        self,
        feature_extractor: FeatureExtractor | LogMelExtractor,
        feature_projection: FeatureProjection,
        student: SpidrEncoder,
        teacher: SpidrEncoder,
        codebooks: OnlineCodebooks,
        heads: CodeHeads,
        ema: EmaUpdater,
        *,
        dim: int,
        kind: SpidrKind,
        projection_dropout: float,
        visible_share: float,
        freeze_step: int,
        config: SpidrConfig,
    ) -> None:
        """Put the parts of a model together.

        Args:
            feature_extractor: Shared by student and teacher, like ``feature_projection``.
            feature_projection: Brings its frames to the width ``dim``.
            student: Gets masked frames.
            teacher: Gets all frames; follows the student and is never trained.
            codebooks: One for each of the last K layers.
            heads: As many.
            ema: Moves the teacher.
            dim: D.
            kind: What the heads read.
            projection_dropout: On the student's input.
            visible_share: Of the masked frames, how many are not hidden in training.
            freeze_step: The number of updates after which the first two parts stay as they are.
            config: What the parts were made from, for those who use the model; the model itself does not read it.
        """
        super().__init__()
        self.mask_embedding = Parameter(torch.empty(dim))
        self.register_buffer("current_step", torch.empty(1, dtype=torch.int64))
        self.feature_extractor = feature_extractor
        self.feature_projection = feature_projection
        self.projection_dropout = Dropout(projection_dropout)
        self.student = student
        self.heads = heads
        self.codebooks = codebooks
        self.teacher = teacher
        self.ema = ema
        self.kind = kind
        self.visible_share = visible_share
        self.freeze_step = freeze_step
        self.config = config
        self.first_head_layer = len(student.layers) - codebooks.counts.size(0)
        self.reset_parameters()
        self.requires_grad_(True)
        self.train(self.training)

    def reset_parameters(self) -> None:
        torch.nn.init.uniform_(self.mask_embedding)
        self.current_step.zero_()
        # Linear layers of the teacher begin with weights of their own.
        self.teacher.pos_conv_embed.load_state_dict(self.student.pos_conv_embed.state_dict())

    @override
    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of any module, but the teacher never requires gradients."""
        super().requires_grad_(requires_grad)
        self.teacher.requires_grad_(False)
        return self

    @override
    def train(self, mode: bool = True) -> Self:
        """As of any module, but the teacher is always in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor | None, mask: Tensor | None) -> SpidrOutput:
        """Predict the codes of masked frames. Nothing is updated.

        If ``lengths`` and ``mask`` are on the CPU, a GPU is never waited for.

        Args:
            waveforms: (N, S) standardized; S at least 400.
            lengths: (N,) int64 in samples, each at most S; None if nothing is padded.
            mask: (N, T) bool, True on frames to hide, but for ``visible_share`` in training, and to predict; None
                predicts all valid frames and hides none.

        Raises:
            ValueError: If waveforms are too short, or ``mask`` has another shape.
        """
        frames, is_valid, _ = self._extract(waveforms, lengths)
        x = self.projection_dropout(frames)
        if mask is not None:
            check_mask(mask, frames)
            is_hidden = self._draw_hidden(mask.to(x.device, non_blocking=True))
            x = torch.where(is_hidden[:, :, None], self.mask_embedding.to(x.dtype), x)
        indices = find_frames(mask if mask is not None else is_valid, frames)
        targets = self.compute_targets(frames, is_valid, indices)
        labels = self.codebooks.assign(targets)
        logits = self.heads(self._encode_masked(x, is_valid, indices))
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.size(0)
        return SpidrOutput(
            loss=loss,
            num_masked=labels.size(1),
            labels=labels,
            probabilities=logits.detach().softmax(dim=2).sum(dim=1),
            statistics=CodebookStatistics.of(targets, labels, logits.size(2)),
        )

    def _draw_hidden(self, mask: Tensor) -> Tensor:
        """Return which frames (N, T) of those to predict are hidden; drawn by the device's own generator."""
        if not self.training or self.visible_share == 0.0:
            return mask
        return mask & (torch.rand(mask.shape, device=mask.device) >= self.visible_share)

    def _encode_masked(self, x: Tensor, is_valid: Tensor | None, indices: Tensor) -> Tensor:
        """Return what each head reads (K, M, D)."""
        if self.kind == "dinosr":
            last = self.student(x, is_valid, first_tap=len(self.student.layers)).last
            return last.flatten(0, 1)[indices].expand(self.heads.bias.size(0), -1, -1)
        outputs = self.student(x, is_valid, first_tap=self.first_head_layer).feedforward
        return torch.stack([output.flatten(0, 1)[indices] for output in outputs])

    @torch.no_grad()
    def compute_targets(self, frames: Tensor, is_valid: Tensor | None, indices: Tensor) -> Tensor:
        """Return what the codebooks cluster: the teacher's layers, each channel normalized over time.

        Args:
            frames: (N, T, D), projected and not masked.
            is_valid: (N, T) bool, False on padding; None if there is none.
            indices: (M,) int64 into the N * T frames.

        Returns:
            (K, M, D) float32. Mean and variance are of all T frames, padding included, as in the authors' code.
        """
        outputs = self.teacher(frames, is_valid, first_tap=self.first_head_layer).feedforward
        return torch.stack([normalize_over_time(output, indices) for output in outputs])

    def extract_features(
        self, waveforms: Tensor, lengths: Tensor | None, *, num_layers: int | None = None
    ) -> SpidrFeatures:
        """Return the student's layers for waveforms without masks.

        An utterance has the same features alone and in a padded batch, unless the feature extractor normalizes over
        time (``group_norm``).

        Args:
            waveforms: (N, S) standardized; S at least 400.
            lengths: (N,) int64 in samples, each at most S; None if nothing is padded.
            num_layers: How many layers, the first ones, are computed; by default all.

        Raises:
            ValueError: If waveforms are too short.
        """
        output, frame_lengths = self._encode(waveforms, lengths, num_layers)
        return SpidrFeatures(layers=output.feedforward, lengths=frame_lengths)

    def _encode(
        self, waveforms: Tensor, lengths: Tensor | None, num_layers: int | None
    ) -> tuple[EncoderOutput, Tensor]:
        """Return what the student makes of waveforms without masks, and the frames (N,) of each."""
        frames, is_valid, frame_lengths = self._extract(waveforms, lengths)
        return self.student(self.projection_dropout(frames), is_valid, num_layers=num_layers), frame_lengths

    def unit_probabilities(self, waveforms: Tensor, lengths: Tensor | None, layer: int) -> Tensor:
        """Return the probabilities (N, T, V) float32 that the head of a layer gives to its codes.

        As in training, heads read their layer, or the encoder's output if ``kind`` is ``dinosr``.

        Args:
            waveforms: As in :meth:`extract_features`.
            lengths: Likewise.
            layer: The number of a layer that has a head; the first layer is 1, and with a head 5 in the paper.

        Raises:
            ValueError: If waveforms are too short, or ``layer`` has no head.
        """
        num_layers = len(self.student.layers)
        if not self.first_head_layer < layer <= num_layers:
            raise ValueError(
                f"`layer` must have a head, as those from {self.first_head_layer + 1} to {num_layers}, but is {layer} "
                f"instead."
            )
        is_output_read = self.kind == "dinosr"
        output, _ = self._encode(waveforms, lengths, num_layers if is_output_read else layer)
        frames = output.last if is_output_read else output.feedforward[-1]
        return self.heads.predict(layer - self.first_head_layer - 1, frames).softmax(dim=2)

    def predict_units(self, waveforms: Tensor, lengths: Tensor | None, layer: int) -> Tensor:
        """Return the likeliest codes (N, T) int64; arguments and errors are those of :meth:`unit_probabilities`."""
        return self.unit_probabilities(waveforms, lengths, layer).argmax(dim=2)

    def update_ema(self, step: int) -> None:
        """Move the teacher after an update of the student, and freeze what is due.

        Args:
            step: The number of updates so far, at least 1.
        """
        self.current_step.fill_(step)
        self.ema.update(self.teacher, self.student, step)
        self.freeze_if_due(step)

    def freeze_if_due(self, step: int) -> None:
        """Stop training feature extractor and projection if there were enough updates; for a run that is resumed.

        Args:
            step: The number of updates so far.
        """
        if step < self.freeze_step:
            return
        for part in (self.feature_extractor, self.feature_projection):
            part.requires_grad_(False)
            part.zero_grad(set_to_none=True)

    def _extract(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return projected frames (N, T, D), which of them are valid (N, T), if not all, and their numbers (N,)."""
        geometry = self.feature_extractor.geometry
        num_rows, num_samples = waveforms.shape
        check_num_samples("waveforms", num_samples, geometry.receptive_field)
        if lengths is None:
            lengths = torch.full((num_rows,), num_samples, device="cpu")
        elif is_on_host(lengths) and num_rows > 0:
            check_num_samples("lengths", int(lengths.min()), geometry.receptive_field)
        frame_lengths = geometry.num_frames_of(lengths)
        is_valid = locate_frames(frame_lengths, geometry.num_frames(num_samples))
        if is_valid is not None:
            is_valid = is_valid.to(waveforms.device, non_blocking=True)
        extracted = self.feature_extractor(waveforms).to(self.mask_embedding.dtype)
        frames = self.feature_projection(extracted)
        return frames, is_valid, frame_lengths.to(waveforms.device, non_blocking=True)

    if TYPE_CHECKING:
        __call__ = forward
