from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.utils.validation import StandardObjectValidator, ValidationError
from numpy.typing import NDArray

from spear_plugin.data.batch import CODE_PADDING, SpearExample
from spear_plugin.data.manifest import Domain, ManifestRow, write_manifest
from spear_plugin.data.mixing import Mixer, add_at, create_mixer, exchange_probability, mean_power, mix_codes
from spear_plugin.data.mixing_options import MixingOptions, NoiseMixingOptions, UtteranceMixingOptions
from spear_plugin.data.options import ReaderOptions, SpearDatasetError, StreamOptions
from tests.unit.data.common import write_noise

RATE = 16_000
# Speech has codes at both rates here, as where both streams are predicted for both domains.
STREAMS = {
    "speech": StreamOptions(num_codebooks=4, frame_rate_hz=50.0),
    "audio": StreamOptions(num_codebooks=2, frame_rate_hz=25.0),
}
HOPS = {"speech": 320, "audio": 640}


def make_example(number: int, seconds: float = 0.2, *, domain: Domain = "speech", epoch: int = 0) -> SpearExample:
    """Noise without zeros whose power and codes are its own; the teacher is one frame short."""
    generator = np.random.default_rng([number, epoch])
    waveform = generator.uniform(0.1, 0.5, round(seconds * RATE)) * generator.uniform(0.2, 1.0)
    codes = {
        name: generator.integers(
            0, 256, (max(waveform.size // HOPS[name] - 1, 0), stream.num_codebooks), dtype=np.uint8
        )
        for name, stream in STREAMS.items()
    }

    return SpearExample(
        id=f"{domain}{number}",
        corpus="corpus",
        epoch=epoch,
        domain=domain,
        start=0.0,
        waveform=waveform.astype(np.float32),
        codes=codes,
    )


@pytest.fixture(scope="module")
def noise_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of 0.4 s and one of 0.05 s."""
    folder = tmp_path_factory.mktemp("noise")
    rows = []

    for number, num_samples in enumerate([6_400, 800]):
        path = folder / f"noise{number}.wav"
        write_noise(path, num_samples, seed=number + 100)
        rows.append(ManifestRow(id=path.stem, path=path, num_samples=num_samples, sample_rate=RATE, domain="audio"))

    write_manifest(folder / "noise.tsv", rows)

    return folder / "noise.tsv"


def make_mixer(options: MixingOptions, seed: int = 2) -> Mixer:
    mixer = create_mixer(ReaderOptions(max_batch_seconds=10.0, streams=STREAMS, seed=seed, mixing=options))
    assert mixer is not None

    return mixer


def noise_options(manifest: Path, **changes: Any) -> MixingOptions:
    noise = NoiseMixingOptions(manifest=manifest, **changes)

    return MixingOptions(speech_probability=1.0, noise_probability=1.0, noise=noise)


def utterance_options(**changes: Any) -> MixingOptions:
    return MixingOptions(
        speech_probability=1.0, noise_probability=0.0, utterance=UtteranceMixingOptions(max_delay=0.1, **changes)
    )


def floats(values: list[float]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)


def codes_of(values: list[list[int]]) -> NDArray[np.uint8]:
    return np.array(values, dtype=np.uint8)


def add(waveform: NDArray[np.float32], other: NDArray[np.float32], offset: int, snr_db: float) -> NDArray[np.float32]:
    mixed = add_at(waveform, other, offset, snr_db)
    assert mixed is not None

    return mixed


def measure_snr(clean: SpearExample, mixed: SpearExample) -> float:
    """Return the ratio of the powers of the clean waveform and of what was added, where it was added."""
    added = np.abs(difference(clean, mixed))
    first, last = np.flatnonzero(added)[[0, -1]]

    return float(10 * np.log10(mean_power(clean.waveform) / np.square(added[first : last + 1]).mean()))


def difference(clean: SpearExample, mixed: SpearExample) -> NDArray[np.float64]:
    padded = np.pad(clean.waveform.astype(np.float64), (0, mixed.waveform.size - clean.waveform.size))

    return np.asarray(mixed.waveform - padded)


def first_difference(clean: SpearExample, mixed: SpearExample) -> int:
    return int(np.flatnonzero(difference(clean, mixed))[0])


def num_different(clean: SpearExample, mixed: SpearExample) -> int:
    return int(np.ptp(np.flatnonzero(difference(clean, mixed)))) + 1


def assert_uniform(values: Sequence[float], low: float, high: float) -> None:
    """Compare with the uniform distribution: Kolmogorov and Smirnov's distance at a level of 0.1 %."""
    ordered = (np.sort(values) - low) / (high - low)
    expected = (np.arange(len(values)) + 0.5) / len(values)

    assert ordered[0] > -1e-3
    assert ordered[-1] < 1 + 1e-3
    assert np.abs(ordered - expected).max() < 1.95 / len(values) ** 0.5


def assert_share(count: int, total: int, probability: float) -> None:
    assert abs(count - total * probability) < 3.3 * (total * probability * (1 - probability)) ** 0.5


def assert_same(example: SpearExample, other: SpearExample) -> None:
    np.testing.assert_array_equal(example.waveform, other.waveform)
    assert example.codes.keys() == other.codes.keys()

    for name, codes in example.codes.items():
        np.testing.assert_array_equal(codes, other.codes[name])


def test_the_gain_makes_the_ratio_of_the_powers_of_both_signals_as_a_whole() -> None:
    waveform, other = floats([1, -1, 1, -1]), floats([2, 2])  # powers 1 and 4

    # 0 dB: gain sqrt(1 * 1 / 4)
    np.testing.assert_array_equal(add(waveform, other, 3, 0.0), floats([1, -1, 1, 0, 1]))
    # 20 dB: gain sqrt(1 * 0.01 / 4)
    np.testing.assert_allclose(add(waveform, other, 0, 20.0), floats([1.1, -0.9, 1, -1]), rtol=1e-6)
    # within the first, at its end, and far behind it
    np.testing.assert_array_equal(add(waveform, other, 1, 0.0), floats([1, 0, 2, -1]))
    np.testing.assert_array_equal(add(waveform, other, 6, 0.0), floats([1, -1, 1, -1, 0, 0, 1, 1]))


def test_the_probability_of_an_exchange_is_the_share_of_the_power() -> None:
    assert exchange_probability(0.0) == 0.5
    # (1 + 10^(1/2))^-1 and its complement: 0.24 and 0.76 in the paper's range of -5 to 5 dB
    assert exchange_probability(5.0) == pytest.approx(0.24025307)
    assert exchange_probability(-5.0) == pytest.approx(0.75974693)

    waveform, other = make_example(0).waveform, make_example(1).waveform
    mixed = add(waveform, other, waveform.size, 3.0)
    powers = mean_power(waveform), mean_power(mixed[waveform.size :])
    assert exchange_probability(3.0) == pytest.approx(powers[1] / sum(powers))


def test_codes_are_exchanged_in_the_overlap_and_taken_over_behind_the_end() -> None:
    codes = codes_of([[0, 1], [2, 3], [4, 5], [6, 7]])
    others = codes_of([[10, 11], [12, 13], [14, 15]])
    is_exchanged = np.array([[True, False], [False, True], [False, False]])

    mixed = mix_codes(codes, others, 2, is_exchanged)

    np.testing.assert_array_equal(mixed, [[0, 1], [2, 3], [10, 5], [6, 13], [14, 15]])
    # A short second signal leaves the end of the first alone.
    np.testing.assert_array_equal(mix_codes(codes, others[:1], 1, is_exchanged[:1]), [[0, 1], [10, 3], [4, 5], [6, 7]])


def test_frames_between_two_signals_have_no_codes() -> None:
    mixed = mix_codes(codes_of([[1], [255]]), codes_of([[7]]), 4, np.array([[False]]))

    assert mixed.dtype == np.int16
    assert mixed[:, 0].tolist() == [1, 255, CODE_PADDING, CODE_PADDING, 7]


def test_noise_has_the_drawn_ratio_and_leaves_targets_and_lengths_alone(noise_manifest: Path) -> None:
    mixer = make_mixer(noise_options(noise_manifest))
    examples = [make_example(number) for number in range(600)]
    mixed = mixer(examples)

    for example, result in zip(examples, mixed, strict=True):
        assert result.waveform.size == example.waveform.size
        assert result.codes is example.codes

    assert_uniform([measure_snr(*pair) for pair in zip(examples, mixed, strict=True)], 10.0, 20.0)


def test_noise_of_a_part_covers_the_drawn_share_at_a_random_place(noise_manifest: Path) -> None:
    mixer = make_mixer(noise_options(noise_manifest, snr_db=(5.0, 20.0), overlap=(0.2, 0.8)))
    examples = [make_example(number) for number in range(600)]
    mixed = mixer(examples)
    pairs = list(zip(examples, mixed, strict=True))
    lengths = np.array([num_different(*pair) for pair in pairs])
    starts = np.array([first_difference(*pair) for pair in pairs])

    assert_uniform((lengths / 3_200).tolist(), 0.2, 0.8)
    assert_uniform((starts / (3_200 - lengths)).tolist(), 0.0, 1.0)
    assert_uniform([measure_snr(*pair) for pair in pairs], 5.0, 20.0)


def test_a_second_voice_with_clean_targets_is_a_part_of_another_utterance() -> None:
    mixer = make_mixer(utterance_options(targets="clean"))
    # The second one of a batch is the first one's only partner; every eighth is shorter than the overlap.
    batches = [[make_example(n), make_example(n + 1, 0.02 if n % 8 == 0 else 0.3)] for n in range(0, 1200, 2)]
    pairs, lengths = [], []

    for batch in batches:
        clean, mixed, other = batch[0], mixer(batch)[0], batch[1].waveform
        assert mixed.codes is clean.codes
        assert mixed.waveform.size == clean.waveform.size
        added = difference(clean, mixed)
        first, length = first_difference(clean, mixed), num_different(clean, mixed)
        part = added[first : first + length]
        # Where its first samples come from, then the whole part.
        windows = np.lib.stride_tricks.sliding_window_view(other[: other.size - length + 16].astype(np.float64), 16)
        start = int(np.argmax(windows @ part[:16] / np.linalg.norm(windows, axis=1)))
        source = other[start : start + length]
        np.testing.assert_allclose(part, source * (part.sum() / source.sum()), atol=1e-5)
        pairs.append((clean, mixed))

        if other.size > 320:
            lengths.append(length / clean.waveform.size)
        else:
            assert length == 320

    assert_uniform(lengths, 0.2, 0.5)
    assert_uniform([measure_snr(*pair) for pair in pairs], -5.0, 5.0)


def test_token_mixing_exchanges_codes_in_proportion_to_the_powers_at_every_rate() -> None:
    mixer = make_mixer(utterance_options())
    snrs, delays, scores = [], [], []

    for number in range(0, 800, 2):
        # 0.083 s, shorter than the longest delay of 0.1 s, to 0.3 s
        seconds = [0.3, 0.2, 0.083][number % 3]
        clean, other = batch = make_example(number, seconds), make_example(number + 1, 0.2)
        mixed = mixer(batch)[0]
        snr, offset = measure_snr(clean, mixed), first_difference(clean, mixed)
        snrs.append(snr)
        delays.append(offset / min(1_600, clean.waveform.size))
        assert mixed.waveform.size == max(clean.waveform.size, offset + other.waveform.size)
        np.testing.assert_array_equal(mixed.waveform[:offset], clean.waveform[:offset])

        for name, hop in HOPS.items():
            num_exchanged, num_codes = check_mixed_codes(
                mixed.codes[name], clean.codes[name], other.codes[name], offset // hop
            )
            share = exchange_probability(snr)
            scores.append((num_exchanged - num_codes * share, num_codes * share * (1 - share)))

    assert_uniform(snrs, -5.0, 5.0)
    assert_uniform(delays, 0.0, 1.0)
    deviations, variances = np.array(scores).T
    # The number of exchanged codes follows the ratio in sum, and the louder and the softer half in itself.
    assert abs(deviations.sum()) < 3.3 * variances.sum() ** 0.5
    is_loud = np.repeat(np.array(snrs) < 0, 2)
    assert abs(deviations[is_loud].sum()) < 3.3 * variances[is_loud].sum() ** 0.5
    assert np.square(deviations).sum() == pytest.approx(variances.sum(), rel=0.25)


def check_mixed_codes(mixed: Any, own: Any, others: Any, offset: int) -> tuple[int, int]:
    """Check every code by itself; return how many of those that could be exchanged are the other's, and their count."""
    num_exchanged = num_codes = 0
    assert len(mixed) == max(len(own), offset + len(others))

    for frame, codes in enumerate(mixed.tolist()):
        for codebook, code in enumerate(codes):
            first = own[frame, codebook] if frame < len(own) else None
            second = others[frame - offset, codebook] if 0 <= frame - offset < len(others) else None
            expected = {value for value in (first, second) if value is not None} or {CODE_PADDING}
            assert code in expected

            if len(expected) == 2:
                num_codes += 1
                num_exchanged += code == second

    return num_exchanged, num_codes


def test_a_stream_that_the_other_lacks_keeps_its_codes() -> None:
    clean, other = make_example(0), make_example(1)
    other = replace(other, codes={"speech": other.codes["speech"]})

    mixed = make_mixer(utterance_options())([clean, other])

    assert mixed[0].codes["audio"] is clean.codes["audio"]
    assert not np.array_equal(mixed[0].codes["speech"][: len(clean.codes["speech"])], clean.codes["speech"])
    # and none comes to an example that has no such stream
    assert mixed[1].codes.keys() == {"speech"}


def test_the_share_of_noise_and_of_utterances_is_as_configured(noise_manifest: Path) -> None:
    """The published second version: 0.4 of the speech with noise, 0.1 with speech, half of the audio with noise."""
    options = MixingOptions(
        speech_probability=0.5,
        noise_probability=0.8,
        audio_probability=0.5,
        noise=NoiseMixingOptions(manifest=noise_manifest),
        utterance=UtteranceMixingOptions(max_delay=0.1),
    )
    mixer = make_mixer(options)
    counts = {"speech": [0, 0], "audio": [0, 0]}

    for first in range(0, 1500, 5):
        # Three of speech and two of audio in each batch.
        batch = [make_example(first + n, 0.1, domain="speech" if n < 3 else "audio") for n in range(5)]

        for clean, mixed in zip(batch, mixer(batch), strict=True):
            is_utterance = mixed.codes is not clean.codes
            counts[clean.domain][0] += mixed is not clean and not is_utterance
            counts[clean.domain][1] += is_utterance

    assert_share(counts["speech"][0], 900, 0.4)
    assert_share(counts["speech"][1], 900, 0.1)
    assert_share(counts["audio"][0], 600, 0.5)
    assert counts["audio"][1] == 0


@pytest.mark.parametrize(("domains", "partners"), [(("speech",), 3), (("speech", "audio"), 4)])
def test_every_other_example_of_the_allowed_domains_is_equally_likely(
    domains: tuple[Domain, ...], partners: int
) -> None:
    mixer = make_mixer(utterance_options(partner_domains=domains, snr_db=(-100.0, -100.0)))
    counts = np.zeros(5, dtype=int)

    for epoch in range(600):
        batch = [make_example(n, 0.1, domain="audio" if n == 4 else "speech", epoch=epoch) for n in range(5)]
        mixed = mixer(batch)[0]
        # So loud a partner replaces every code: its codes tell who it is.
        tail = mixed.codes["speech"][-2:]
        counts[[np.array_equal(tail, example.codes["speech"][-2:]) for example in batch].index(True)] += 1

    assert counts.sum() == 600
    assert counts[0] == 0
    assert np.count_nonzero(counts) == partners

    for count in counts[counts > 0]:
        assert_share(int(count), 600, 1 / partners)


def test_an_example_without_a_partner_stays_as_it_is() -> None:
    mixer = make_mixer(utterance_options())
    example = make_example(0)
    # Only audio, or itself once more in the next epoch.
    batch = [example, make_example(1, domain="audio"), make_example(0, epoch=1)]

    assert mixer([example])[0] is example
    assert mixer(batch)[0] is example


@pytest.mark.parametrize("targets", ["clean", "mixed"])
@pytest.mark.parametrize("amplitude", [0.0, 5e-6])
def test_silence_is_mixed_with_nothing(targets: str, amplitude: float) -> None:
    mixer = make_mixer(utterance_options(targets=targets))
    silent = make_example(0)
    silent = replace(silent, waveform=np.full_like(silent.waveform, amplitude))
    batch = [silent, make_example(1)]

    assert all(mixed is clean for mixed, clean in zip(mixer(batch), batch, strict=True))


def test_silent_noise_changes_nothing(tmp_path: Path, noise_manifest: Path) -> None:
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(8_000), RATE)
    row = ManifestRow(id="silence", path=path, num_samples=8_000, sample_rate=RATE, domain="audio")
    write_manifest(tmp_path / "noise.tsv", [row])
    example = make_example(0)
    silent = replace(example, waveform=np.zeros_like(example.waveform))

    assert_same(make_mixer(noise_options(tmp_path / "noise.tsv"))([example])[0], example)
    assert_same(make_mixer(noise_options(noise_manifest))([silent])[0], silent)


def all_options(manifest: Path) -> list[MixingOptions]:
    return [
        noise_options(manifest, overlap=(0.5, 0.9)),
        utterance_options(targets="clean"),
        utterance_options(targets="mixed"),
    ]


def global_states() -> tuple[Any, ...]:
    return random.getstate()[1], np.random.get_state()[1], torch.get_rng_state().numpy()  # noqa: NPY002


def test_draws_follow_from_seed_epoch_corpus_id_and_start_alone(noise_manifest: Path) -> None:
    for options in all_options(noise_manifest):
        batch = [make_example(0), make_example(1)]
        expected = make_mixer(options)(batch)[0]
        states = global_states()
        mixer = make_mixer(options)
        mixer([make_example(5), make_example(6)])  # what was mixed before does not matter

        assert_same(mixer(batch)[0], expected)
        assert_same(mixer([batch[1], batch[0]])[1], expected)  # nor does the place in the batch
        assert all(np.array_equal(*pair) for pair in zip(global_states(), states, strict=True))

        changed = [
            make_mixer(options, seed=3)(batch)[0],
            *(
                mixer([replace(batch[0], **change), batch[1]])[0]
                for change in ({"epoch": 1}, {"corpus": "another"}, {"id": "another"}, {"start": 2.0})
            ),
        ]
        waveforms = [example.waveform for example in (expected, *changed)]

        for n, waveform in enumerate(waveforms):
            assert not any(np.array_equal(waveform, other) for other in waveforms[:n])


def test_mixing_leaves_the_given_examples_untouched(noise_manifest: Path) -> None:
    for options in all_options(noise_manifest):
        batch = [make_example(n) for n in range(4)]
        mixed = make_mixer(options)(batch)

        for n, example in enumerate(batch):
            assert_same(example, make_example(n))
            assert not np.array_equal(mixed[n].waveform[: example.waveform.size], example.waveform)


def test_without_probabilities_there_is_no_mixer(noise_manifest: Path) -> None:
    options = MixingOptions(noise=NoiseMixingOptions(manifest=noise_manifest))

    for mixing in (MixingOptions(), options):
        assert create_mixer(ReaderOptions(max_batch_seconds=1.0, mixing=mixing)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MixingOptions(speech_probability=1.5), r"`speech_probability` must be in \[0, 1\], but is 1.5"),
        (MixingOptions(noise_probability=float("nan")), r"`noise_probability` must be in \[0, 1\], but is nan"),
        (MixingOptions(audio_probability=0.5), r"`noise.manifest` must be set"),
        (MixingOptions(speech_probability=0.5, noise_probability=0.5), r"`noise.manifest` must be set"),
        (MixingOptions(noise=NoiseMixingOptions(snr_db=(20, 10))), r"`noise` .*`snr_db` must .* but is \[20, 10\]"),
        (MixingOptions(noise=NoiseMixingOptions(overlap=(0.0, 1.0))), r"`noise` .*`overlap` must .* \[0.0, 1.0\]"),
        (MixingOptions(utterance=UtteranceMixingOptions(overlap=(0.2, 1.1))), r"`utterance` .*`overlap` must"),
        (MixingOptions(utterance=UtteranceMixingOptions(snr_db=(0.0, float("inf")))), r"`utterance` .*`snr_db` must"),
        (MixingOptions(utterance=UtteranceMixingOptions(max_delay=-1.0)), r"`max_delay` must be at least 0, but is -1"),
        (MixingOptions(utterance=UtteranceMixingOptions(partner_domains=())), r"`partner_domains` must name"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: MixingOptions, message: str) -> None:
    with pytest.raises(SpearDatasetError, match=message) as info:
        create_mixer(ReaderOptions(max_batch_seconds=1.0, mixing=options))

    assert "\n" not in str(info.value)

    with pytest.raises(ValidationError):
        StandardObjectValidator().validate(options)
