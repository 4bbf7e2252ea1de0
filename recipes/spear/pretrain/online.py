"""Codes made during pre-training: the teachers run beside the student, in place of a code store.

Letters: N batch, R examples that have a stream, S samples, T code frames of the batch, K codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from torch.nn.functional import pad

from recipes.spear.pretrain.config import SpearPretrainConfig
from recipes.targets import TargetSource, load_target_source
from spear_plugin.data.batch import CODE_PADDING, SpearBatch
from spear_plugin.data.codes import CodeStoreIdentity
from spear_plugin.data.segments import FrameClock
from spear_plugin.models.spear import DOMAINS, SpearConfig, TargetStreamConfig

_SAMPLE_RATE = 16_000
"""Of the student's waveforms, which the teachers hear too."""


def load_online_targets(context: RecipeContext, model_config: SpearConfig) -> OnlineTargets:
    """Load the teachers and quantizers of the streams that the section ``online_targets`` names.

    :raises RecipeError: If a source does not fit its stream or the student's audio.
    :raises TeacherError: If a teacher cannot be loaded.
    """
    sections = context.get_config_as(SpearPretrainConfig).online_targets
    streams = {stream.name: stream for stream in model_config.target_streams}
    if unknown := [name for name in sections if name not in streams]:
        raise RecipeError(
            f"`online_targets` must name target streams of the model ({', '.join(streams)}), but names {unknown[0]}."
        )
    # New modules draw their first weights, which are then replaced; the student's draws must stay what they are.
    with torch.random.fork_rng(devices=_cuda_devices(context.device)):
        sources = {
            name: load_target_source(section.teacher, section.quantizer, device=context.device)
            for name, section in sections.items()
        }
    for name, source in sources.items():
        _check_source(source, streams[name])
        log.info("Stream {}: its codes are made in training, by teacher {}.", name, source.teacher.name)
    return OnlineTargets({name: _OnlineStream(source, streams[name]) for name, source in sources.items()})


@final
class OnlineTargets:
    """Completes the codes of batches.

    Codes are those of :mod:`recipes.mvq.encode` for recordings that a batch has as a whole. A piece of a recording
    longer than ``dataset.max_seconds`` is heard by itself, while a store has the whole recording's codes, to be cut.
    """

    def __init__(self, streams: Mapping[str, _OnlineStream]) -> None:
        self._streams = streams

    @property
    def names(self) -> set[str]:
        """The streams whose codes are made here."""
        return set(self._streams)

    @property
    def identities(self) -> dict[str, CodeStoreIdentity]:
        """The teacher and quantizer of each stream."""
        return {name: stream.identity for name, stream in self._streams.items()}

    @torch.no_grad()
    def __call__(self, batch: SpearBatch) -> dict[str, Tensor]:
        """Return the codes of all streams, (N, T, K) int16, of a batch whose waveforms are clean.

        The batch has codes of the other streams, and for those made here padding of the shape to fill.
        """
        made = {name: stream.fill(batch.codes[name], batch) for name, stream in self._streams.items()}
        return batch.codes | made


@final
class _OnlineStream:
    def __init__(self, source: TargetSource, stream: TargetStreamConfig) -> None:
        self._teacher = source.teacher
        self._quantizer = source.quantizer
        self._clock = FrameClock.of(stream.frame_rate_hz, _SAMPLE_RATE)
        self._domains = {n for n, domain in enumerate(DOMAINS) if stream.weights.get(domain, 0.0) > 0.0}
        self.identity = source.identity(manifest="")

    def fill(self, padding: Tensor, batch: SpearBatch) -> Tensor:
        """Return ``padding`` (N, T, K) with the codes of the examples whose domain has the stream."""
        rows = [row for row, domain in enumerate(batch.domain_numbers) if domain in self._domains]
        rows = [row for row in rows if self._teacher.num_frames(batch.seq_lens[row]) > 0]
        if not rows:
            return padding
        lengths = [batch.seq_lens[row] for row in rows]
        # (N, S) -> (R, S), without the samples that only other examples have
        index = _to_device(rows, padding.device)
        waveforms = batch.waveforms[:, : max(lengths)].index_select(0, index)
        codes = self._encode(waveforms, lengths)[:, : padding.size(1)]
        # (R, T', K) -> (R, T, K) -> (N, T, K)
        codes = pad(codes, (0, 0, 0, padding.size(1) - codes.size(1)), value=CODE_PADDING)
        return padding.index_copy(0, index, codes)

    def _encode(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        """Return codes (R, T', K) int16 of waveforms (R, S), ``CODE_PADDING`` beyond the frames of each length.

        An utterance with infinite or undefined frames has none; :mod:`recipes.mvq.encode` would leave it out.
        """
        # Teachers draw what they do not use, e.g. transformers' layer drop in evaluation mode.
        with torch.random.fork_rng(devices=_cuda_devices(waveforms.device)):
            # The lengths stay on the host, where the teacher reads them.
            frames = self._teacher(waveforms, torch.tensor(lengths)).frames
        is_finite = frames.isfinite().flatten(1).all(dim=1)
        codes = self._quantizer.encode(frames.nan_to_num()).to(torch.int16)
        num_frames = [min(self._teacher.num_frames(n), self._clock.num_frames(n)) for n in lengths]
        positions = torch.arange(codes.size(1), device=codes.device)
        is_valid = (positions < _to_device(num_frames, codes.device)[:, None]) & is_finite[:, None]
        return codes.masked_fill(~is_valid[..., None], CODE_PADDING)


def _check_source(source: TargetSource, stream: TargetStreamConfig) -> None:
    teacher, quantizer = source.teacher, source.quantizer
    has = quantizer.num_codebooks, quantizer.codebook_size, teacher.frame_rate_hz
    wanted = stream.num_codebooks, stream.codebook_size, stream.frame_rate_hz
    if has != wanted:
        texts = [f"{number} codebooks of {size} entries at {rate} Hz" for number, size, rate in (has, wanted)]
        raise RecipeError(
            f"`online_targets.{stream.name}` gives {texts[0]}, but stream {stream.name} of the model has {texts[1]}. "
            "Change the stream, or its teacher and quantizer."
        )
    if teacher.sample_rate != _SAMPLE_RATE:
        raise RecipeError(
            f"`online_targets.{stream.name}`: teacher {teacher.name} hears audio at {teacher.sample_rate} Hz, but "
            f"batches have {_SAMPLE_RATE} Hz. Encode the corpus with `recipes.mvq.encode` instead."
        )


def _to_device(values: list[int], device: torch.device) -> Tensor:
    """Return a tensor of values; the host does not wait for the device."""
    return torch.tensor(values).to(device, non_blocking=True)


def _cuda_devices(device: torch.device) -> list[torch.device]:
    """Return the device if it has a random generator of its own beside the CPU's."""
    return [device] if device.type == "cuda" else []
