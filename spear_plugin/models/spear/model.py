"""The SPEAR student: waveforms to features, and waveforms and codes to a loss (arXiv 2510.25955).

Letters: N batch, S samples, F log-mel frames, M mel bins, T encoder frames, D width, C code frames, K codebooks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, final

import torch
from torch import Tensor
from torch.nn import Module, ModuleDict, Parameter
from typing_extensions import override

from spear_plugin.models.spear.config import SpearConfig
from spear_plugin.models.spear.fbank import NUM_MEL_BINS, compute_fbank
from spear_plugin.models.spear.heads import CodebookHead, StreamOutput
from spear_plugin.models.spear.masker import FbankMasker, FbankMasks
from spear_plugin.models.zipformer import ConvSubsampling, ZipformerEncoder
from spear_plugin.nn.training_state import TrainingState


@dataclass(kw_only=True)
class SpearOutput:
    """The loss of a batch."""

    loss: Tensor
    """() sum over utterances and streams, each utterance weighted by its domain; not divided by anything."""

    streams: dict[str, StreamOutput]
    """The statistics of each target stream."""


@dataclass(kw_only=True)
class SpearFeatures:
    """What downstream tasks use."""

    last: Tensor
    """(N, T, D), the encoder's output."""

    lengths: Tensor
    """(N,) int64, the valid frames of ``last``; what lies beyond has no meaning."""

    layers: list[Tensor]
    """One (N, T, D) for each Zipformer layer, at 50 Hz."""


@final
class SpearModel(Module):
    """A Zipformer on log-mel features with one head for each stream of teacher codes.

    Every parameter takes part in every step, so data parallelism need not look for unused ones. Attention that goes
    without positions in a step, or a stream without codes in a batch, has gradients of zero.
    """

    mask_emb: Parameter

    def __init__(
        self,
        encoder_embed: ConvSubsampling,
        encoder: ZipformerEncoder,
        heads: Mapping[str, CodebookHead],
        masker: FbankMasker,
        training_state: TrainingState,
        *,
        output_factor: int,
        loss_on_padding: bool = False,
        reference_padding: bool = False,
        config: SpearConfig,
    ) -> None:
        """Put the parts of a model together.

        Args:
            encoder_embed: Halves the frame rate; named like ``encoder`` and ``mask_emb`` after the released weights.
            encoder: The Zipformer.
            heads: By the name of their target stream.
            masker: Draws masks on the input.
            training_state: What the encoder's schedules and whiteners know about the course of training.
            output_factor: Log-mel frames for one encoder frame, 2 or 4.
            loss_on_padding: Whether frames beyond an utterance's end are predicted, where they have codes.
            reference_padding: Whether padding reaches the last frames of an utterance in :meth:`forward`.
            config: What the parts were made from, for those who use the model; the model itself does not read it.
        """
        super().__init__()
        self.mask_emb = Parameter(torch.empty(NUM_MEL_BINS))
        self.encoder_embed = encoder_embed
        self.encoder = encoder
        self.heads = ModuleDict(heads)
        self.masker = masker
        self.training_state = training_state
        self.output_factor = output_factor
        self.loss_on_padding = loss_on_padding
        self.reference_padding = reference_padding
        self.config = config
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.mask_emb)

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor, codes: Mapping[str, Tensor], domains: Tensor) -> SpearOutput:
        """Mask the input, also in eval mode, and predict the codes of all frames.

        Args:
            waveforms: (N, S) in [-1, 1] at 16 kHz, at least 1,360 samples.
            lengths: (N,) int64 in samples, each at most S.
            codes: For each target stream (N, C, K) integers, -100 where there is no code; a stream may be left out.
            domains: (N,) int64, the number of each utterance's domain in ``DOMAINS``.

        Raises:
            ValueError: If ``waveforms`` are too short or ``codes`` do not fit the model's streams.
        """
        fbank, lengths = compute_fbank(waveforms, lengths)
        masks = self.masker.draw(fbank, lengths)
        return self.predict_codes(fbank, lengths, masks, codes, domains)

    def predict_codes(
        self, fbank: Tensor, lengths: Tensor, masks: FbankMasks, codes: Mapping[str, Tensor], domains: Tensor
    ) -> SpearOutput:
        """The part of :meth:`forward` behind features and masks.

        Args:
            fbank: (N, F, 128) log-mel features.
            lengths: (N,) int64 in frames of ``fbank``.
            masks: The masks to apply.
            codes: As in :meth:`forward`.
            domains: As in :meth:`forward`.
        """
        self._check_codes(codes)
        masked_fbank = masks.apply(fbank.to(self.mask_emb.dtype), self.mask_emb)
        features = self._encode(masked_fbank, lengths, reference_padding=self.reference_padding, collect_layers=False)
        num_frames = features.last.size(1)
        is_masked = masks.at_output_rate(num_frames, factor=self.output_factor)
        is_ignored = torch.arange(num_frames, device=fbank.device) >= features.lengths[:, None]
        if self.loss_on_padding:
            is_ignored = torch.zeros_like(is_ignored)

        losses = torch.zeros_like(domains, dtype=torch.float32)
        streams = {}
        for name, head in self._named_heads():
            stream_codes = codes.get(name)
            if stream_codes is None:
                stream_codes = domains.new_empty((domains.size(0), 0, head.num_codebooks))
            stream_losses, streams[name] = head(features.last, stream_codes, is_masked, is_ignored, domains)
            losses = losses + stream_losses
        return SpearOutput(loss=losses.sum(), streams=streams)

    def extract_features(self, waveforms: Tensor, lengths: Tensor, *, reference_padding: bool = False) -> SpearFeatures:
        """Return features of waveforms without masks; a model in eval mode returns the same ones again.

        Args:
            waveforms: (N, S) float32 in [-1, 1] at 16 kHz, at least 1,360 samples.
            lengths: (N,) int64 in samples, each at most S.
            reference_padding: If True, padding reaches the last valid frames of an utterance exactly as in the authors'
                code; if False, an utterance has the features that it has alone.

        Raises:
            ValueError: If ``waveforms`` are too short.
        """
        fbank, lengths = compute_fbank(waveforms, lengths)
        return self.extract_features_from_fbank(fbank, lengths, reference_padding=reference_padding)

    def extract_features_from_fbank(
        self, fbank: Tensor, lengths: Tensor, *, reference_padding: bool = False
    ) -> SpearFeatures:
        """Return features of log-mel frames without masks.

        Args:
            fbank: (N, F, 128), at least 9 frames; as :func:`compute_fbank` returns it.
            lengths: (N,) int64 in frames, each at most F.
            reference_padding: As in :meth:`extract_features`.

        Raises:
            ValueError: If ``fbank`` is too short.
        """
        return self._encode(fbank.to(self.mask_emb.dtype), lengths, reference_padding=reference_padding)

    def _encode(
        self, fbank: Tensor, lengths: Tensor, *, reference_padding: bool, collect_layers: bool = True
    ) -> SpearFeatures:
        if self.training:
            self.training_state.prepare(self)
        # (N, F, M) -> (N, T, D)
        frames, frame_lengths = self.encoder_embed(fbank, lengths, reference_padding=reference_padding)
        output = self.encoder(frames, frame_lengths, reference_padding=reference_padding, collect_layers=collect_layers)
        assert output.lengths is not None
        return SpearFeatures(last=output.last, lengths=output.lengths, layers=output.layers)

    def set_batch_count(self, batch_count: float | None) -> None:
        """Tell the encoder's schedules how far training is; a recipe does so every tenth step or so.

        Args:
            batch_count: Batches of a standard amount of audio so far; in the authors' runs seconds of audio by 600.
                None, the state of a new model and of the released ones, gives schedules their default values.

        Raises:
            ValueError: If ``batch_count`` is negative.
        """
        self.training_state.set_batch_count(self, batch_count)

    def get_head(self, stream: str) -> CodebookHead:
        """Return the classifiers of a target stream.

        Raises:
            KeyError: If the model has no such stream.
        """
        return cast("CodebookHead", self.heads[stream])

    def _named_heads(self) -> Iterator[tuple[str, CodebookHead]]:
        yield from cast("Mapping[str, CodebookHead]", self.heads).items()

    def _check_codes(self, codes: Mapping[str, Tensor]) -> None:
        if not self.heads:
            raise ValueError("`codes` cannot be predicted: the model's configuration has no `target_streams`.")
        for name, stream_codes in codes.items():
            if name not in self.heads:
                streams = ", ".join(self.heads)
                raise ValueError(
                    f"`codes` must be of the model's target streams ({streams}), but has {name!r} instead."
                )
            num_codebooks = self.get_head(name).num_codebooks
            if stream_codes.size(2) != num_codebooks:
                raise ValueError(
                    f"`codes[{name!r}]` must be of shape (N, C, {num_codebooks}), but has the shape "
                    f"{tuple(stream_codes.shape)} instead."
                )

    if TYPE_CHECKING:
        __call__ = forward
