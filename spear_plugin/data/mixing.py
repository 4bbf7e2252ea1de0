"""Mixing of noise and of other utterances into the examples of a batch (SPEAR, arXiv 2510.25955).

* Noise: targets stay those of the clean example.
* Utterance with clean targets (first version, after WavLM): a part of another example; targets stay as well.
* Token mixing (second version): the whole of another example after a delay. Where both sound, each code of each frame
  is exchanged for the other's with the other's share of the power; behind the main example's end there are only the
  other's codes.

Every example has a generator of its own, seeded with (seed, epoch, corpus, id, start). Each pair of epoch and example
is on one rank only, so ranks draw differently, and the same numbers are drawn whatever the number of ranks or threads
and whether or not the run was resumed. The other example is one of the batch before any mixing.

Deliberate differences from the authors' code: noise ends with the example instead of filling the padding of the batch;
silence is left as it is (:data:`SILENCE_POWER`); a batch grows only within ``max_batch_seconds``.

Letters: S samples, T frames, K codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final, final

import numpy as np
from fairseq2.utils.validation import StandardObjectValidator, ValidationError
from numpy.typing import NDArray

from spear_plugin.data.batch import CODE_PADDING, Codes, SpearExample
from spear_plugin.data.mixing_options import Decibels, MixingOptions
from spear_plugin.data.noise import NoiseCorpus, open_noise_corpus
from spear_plugin.data.options import ReaderOptions, SpearDatasetError
from spear_plugin.data.seeds import derive_seed
from spear_plugin.data.segments import FrameClock

SILENCE_POWER: Final = 1e-10
"""Mean square below which a signal counts as silent, -100 dB of full scale: no gain gives it a ratio to another signal
that means anything, so nothing is mixed into it and it is mixed into nothing."""


def create_mixer(options: ReaderOptions) -> Mixer | None:
    """Return the mixer that the options ask for, None if they ask for none.

    :raises ManifestError: If the noise manifest is missing or invalid.
    :raises SpearDatasetError: If the noise manifest has no rows, or an option is out of range.
    """
    mixing = options.mixing

    try:
        StandardObjectValidator().validate(mixing)
    except ValidationError as ex:
        raise SpearDatasetError(f"`mixing` is not valid: {ex.result}") from ex

    if not (mixing.has_noise or mixing.has_utterances):
        return None

    noise = None

    if mixing.has_noise:
        assert mixing.noise.manifest is not None

        noise = open_noise_corpus(
            mixing.noise.manifest, sample_rate=options.sample_rate, max_skipped=options.max_skipped
        )

    return Mixer(mixing, noise, options.clocks, seed=options.seed, sample_rate=options.sample_rate)


@final
class Mixer:
    """Mixes the examples of a batch. Holds no random state, so several threads may use it at once."""

    def __init__(
        self,
        options: MixingOptions,
        noise: NoiseCorpus | None,
        clocks: Mapping[str, FrameClock],
        *,
        seed: int,
        sample_rate: int,
    ) -> None:
        """Hold what is mixed.

        :param options: Valid ones.
        :param noise: Needed if the options ask for noise.
        :param clocks: Count the code frames of each stream.
        :param sample_rate: Of the waveforms, in Hz.
        """
        self._options = options
        self._noise = noise
        self._clocks = clocks
        self._seed = seed
        self._sample_rate = sample_rate

    def __call__(self, examples: Sequence[SpearExample]) -> list[SpearExample]:
        """Return the examples of a batch, mixed or as they are; the given ones are left untouched."""
        return [self._mix(example, examples) for example in examples]

    def _mix(self, example: SpearExample, batch: Sequence[SpearExample]) -> SpearExample:
        options, generator = self._options, create_generator(self._seed, example)
        is_speech = example.domain == "speech"

        if generator.random() >= (options.speech_probability if is_speech else options.audio_probability):
            return example

        if not is_speech or generator.random() < options.noise_probability:
            return self._add_noise(example, generator)

        if (partner := self._draw_partner(example, batch, generator)) is None:
            return example

        if options.utterance.targets == "clean":
            return self._add_part(example, partner.waveform, generator)

        return self._mix_tokens(example, partner, generator)

    def _add_noise(self, example: SpearExample, generator: np.random.Generator) -> SpearExample:
        assert self._noise is not None

        options = self._options.noise
        snr = generator.uniform(*options.snr_db)
        length = _draw_length(example, options.overlap, generator)
        noise, num_skipped = self._noise.draw(generator, length)
        example = replace(example, num_skipped_noise=num_skipped)

        return example if noise is None else _superpose(example, noise, snr, generator)

    def _draw_partner(
        self, example: SpearExample, batch: Sequence[SpearExample], generator: np.random.Generator
    ) -> SpearExample | None:
        # A small corpus may bring an example of the last epoch and of this one into the same batch.
        candidates = [
            other
            for other in batch
            if other.domain in self._options.utterance.partner_domains and _key(other) != _key(example)
        ]

        return candidates[int(generator.integers(len(candidates)))] if candidates else None

    def _add_part(
        self, example: SpearExample, other: NDArray[np.float32], generator: np.random.Generator
    ) -> SpearExample:
        options = self._options.utterance
        snr = generator.uniform(*options.snr_db)
        length = min(_draw_length(example, options.overlap, generator), other.size)
        start = int(generator.integers(other.size - length + 1))

        return _superpose(example, other[start : start + length], snr, generator)

    def _mix_tokens(self, example: SpearExample, partner: SpearExample, generator: np.random.Generator) -> SpearExample:
        options = self._options.utterance
        snr = generator.uniform(*options.snr_db)
        max_delay = min(options.max_delay * self._sample_rate, example.waveform.size)
        offset = int(generator.uniform(0.0, max_delay))
        waveform = add_at(example.waveform, partner.waveform, offset, snr)

        if waveform is None:
            return example

        codes = dict(example.codes)

        # A stream that the other example lacks has no codes behind the end of the main one.
        for name in codes.keys() & partner.codes.keys():
            own, others = codes[name], partner.codes[name]  # (T, K), (T', K)
            frame = self._clocks[name].num_frames(offset)
            # The stream's name, so that streams draw the same codes whichever others there are.
            stream_generator = create_generator(self._seed, example, name)
            is_exchanged = stream_generator.random(others.shape) < exchange_probability(snr)
            codes[name] = mix_codes(own, others, frame, is_exchanged)

        return replace(example, waveform=waveform, codes=codes)


def create_generator(seed: int, example: SpearExample, purpose: str = "") -> np.random.Generator:
    """Return the generator of an example's draws, different in each epoch."""
    return np.random.default_rng(derive_seed(seed, example.epoch, *_key(example), purpose))


def mean_power(waveform: NDArray[np.float32]) -> float:
    """Return the mean square over the whole of a waveform (S,)."""
    # Not a dot product, whose order of summation may depend on the number of threads.
    return float(np.mean(np.square(waveform, dtype=np.float64))) if waveform.size else 0.0


def add_at(
    waveform: NDArray[np.float32], other: NDArray[np.float32], offset: int, snr_db: Decibels
) -> NDArray[np.float32] | None:
    """Return ``waveform`` (S,) with ``other`` (S',) added from sample ``offset`` on, None if one of them is silent.

    The gain of ``other`` is ``sqrt(P * 10^(-snr_db / 10) / P')`` with the mean powers P and P' of both as a whole. The
    result has max(S, ``offset`` + S') samples and may exceed full scale.
    """
    power, other_power = mean_power(waveform), mean_power(other)

    if min(power, other_power) < SILENCE_POWER:
        return None

    gain = np.float32((power * 10.0 ** (-snr_db / 10.0) / other_power) ** 0.5)
    mixed = np.zeros(max(waveform.size, offset + other.size), dtype=np.float32)
    mixed[: waveform.size] = waveform
    mixed[offset : offset + other.size] += gain * other

    return mixed


def exchange_probability(snr_db: Decibels) -> float:
    """Return the share of the second signal in the power of both, ``1 / (1 + 10^(snr_db / 10))``."""
    ratio: float = 10.0 ** (snr_db / 10.0)

    return 1.0 / (1.0 + ratio)


def mix_codes(codes: Codes, others: Codes, offset: int, is_exchanged: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Exchange codes of one signal for those of another that begins ``offset`` frames later.

    :param codes: (T, K)
    :param others: (T', K)
    :param is_exchanged: (T', K), which of ``others`` take the place of codes of the first signal.
    :returns: (max(T, ``offset`` + T'), K): where only one signal has codes these, where none has ``CODE_PADDING``.
    """
    num_frames = max(codes.shape[0], offset + others.shape[0])
    mixed = np.full((num_frames, codes.shape[1]), CODE_PADDING, dtype=np.int16)
    mixed[: codes.shape[0]] = codes
    overlap = mixed[offset : offset + others.shape[0]]  # a view
    np.copyto(overlap, others, where=is_exchanged | (overlap == CODE_PADDING))

    return mixed


def _superpose(
    example: SpearExample, part: NDArray[np.float32], snr_db: Decibels, generator: np.random.Generator
) -> SpearExample:
    """Add a part (S',) no longer than the example at a random position; codes stay."""
    offset = int(generator.integers(example.waveform.size - part.size + 1))
    waveform = add_at(example.waveform, part, offset, snr_db)

    return example if waveform is None else replace(example, waveform=waveform)


def _draw_length(example: SpearExample, overlap: tuple[float, float], generator: np.random.Generator) -> int:
    return max(int(generator.uniform(*overlap) * example.waveform.size), 1)


def _key(example: SpearExample) -> tuple[str, str, float]:
    return example.corpus, example.id, example.start
