from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.recipe.error import RecipeError

from recipes.feature_sources import SPEAR_TIMING, FrameTiming, LogMelSource, SpearSource
from recipes.features import open_source
from recipes.probe.config import ProbeSection, SourceSection
from spear_plugin.models.spear import create_spear_model, get_spear_model_hub
from tests.common import assert_close, assert_equal
from tests.recipes.common import save_run
from tests.recipes.probe_corpora import (
    COLUMNS,
    RATE,
    CountingSource,
    extract_tensor,
    read_task,
    write_probe_corpus,
    write_table,
    write_tone,
)
from tests.unit.models.spear.test_released import narrow_config


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probe_corpus(tmp_path_factory.mktemp("corpus"))


def test_nearest_frames_rounds_to_the_centre_and_stays_inside() -> None:
    timing = FrameTiming(50.0, first_centre=0.045)

    times = torch.tensor([0.0, 0.045, 0.054, 0.056, 0.065, 9.0])

    assert timing.nearest_frames(times, 4).tolist() == [0, 0, 0, 1, 1, 3]


def test_spear_timing_is_the_centre_of_the_front_ends_receptive_field() -> None:
    model = get_spear_model_hub().create_new_model(get_spear_model_hub().get_arch_config("tiny")).eval()

    fbank = torch.randn(1, 80, 128, requires_grad=True)

    output = model.encoder_embed(fbank, None)[0]  # (1, 36, D)

    frame = 15

    output[0, frame].sum().backward()

    assert fbank.grad is not None

    seen = fbank.grad[0].abs().sum(dim=-1).nonzero().flatten()

    centre = 0.010 * ((seen[0] + seen[-1]).item() / 2 + 0.5)

    assert SPEAR_TIMING.first_centre + frame / SPEAR_TIMING.rate_hz == pytest.approx(centre)


def test_log_mel_source_puts_a_click_into_the_nearest_frame() -> None:
    source = LogMelSource()

    for time in (0.050, 0.210, 0.333):
        waveform = torch.zeros(1, 8000)

        waveform[0, round(time * RATE)] = 1.0

        layers, lengths = source.extract(waveform, torch.tensor([8000]))

        assert layers[0].shape == (1, 25, 256)

        assert lengths.tolist() == [25]

        loudest = layers[0][0].mean(dim=-1).argmax().item()

        assert loudest == source.timing.nearest_frames(torch.tensor([time]), 25).item()


@pytest.mark.parametrize("factor", [1, 2])
def test_spear_source_gives_layers_at_50_hz_and_the_output_at_its_own_rate(factor: int) -> None:
    torch.manual_seed(0)

    model = create_spear_model(narrow_config(output_downsampling_factor=factor))

    waveforms, lengths = 0.1 * torch.randn(2, 16000), torch.tensor([16000, 8000])

    layers, output = SpearSource(model), SpearSource(model, output_only=True)

    expected = model.eval().extract_features(waveforms, lengths)

    x, num_frames = layers.extract(waveforms, lengths)

    assert num_frames.tolist() == [46, 21]

    assert [tuple(y.shape) for y in x] == [(2, 46, 32)] * 3

    assert (layers.timing, list(layers.layer_dims)) == (SPEAR_TIMING, [32, 32, 32])

    (last,), num_frames = output.extract(waveforms, lengths)

    assert_equal(last, expected.last)

    assert_equal(num_frames, expected.lengths)

    assert output.timing.rate_hz == 50.0 / factor

    assert output.timing.first_centre == pytest.approx(0.045 if factor == 1 else 0.055)


def test_extract_features_takes_the_nearest_frame_after_each_time_shift(corpus: Path) -> None:
    task = read_task(corpus / "phones.tsv", ProbeSection(time_shifts=[0.0, 0.1]))

    features = extract_tensor(CountingSource(), task)  # (A, L, N, D)

    assert features.shape == (2, 2, len(task.items.items), 1)

    nearest = ((task.items.start - 0.052) * 10).round()

    assert_close(features[0, 0, :, 0].double(), nearest.clamp(0, 9))  # 1.05 s are ten frames

    assert_close(features[1, 0, :, 0].double(), (nearest + 1).clamp(0, 9))

    assert_equal(features[:, 1], -features[:, 0])


def test_extract_features_pools_the_frames_inside_of_a_segment(corpus: Path, tmp_path: Path) -> None:
    row = {"path": str(corpus / "u0.wav"), "num_samples": 16800, "sample_rate": RATE, "domain": "speech"}

    rows = [
        row | {"id": f"w{i}", "utterance": f"u{i % 2}", "label": "a", "split": part, "start": start, "end": end}
        for i, (part, start, end) in enumerate([("train", 0.21, 0.69), ("valid", 0.0, 1.05), ("test", 0.31, 0.33)])
    ]

    write_table(tmp_path / "words.tsv", COLUMNS, rows)

    features = extract_tensor(CountingSource(), read_task(tmp_path / "words.tsv"))

    # Frames 2 to 6 (centres 0.252 to 0.652), 0 to 9, and 3 alone (no centre inside: the nearest one).
    assert_close(features[0, 0], torch.tensor([[4.0, 2**0.5], [4.5, 8.25**0.5], [3.0, 0.0]]))


def test_extract_features_pads_files_that_are_too_short_for_a_frame(tmp_path: Path) -> None:
    rows = []

    for number, part in enumerate(["train", "valid", "test"]):
        num_samples = write_tone(tmp_path / f"s{number}.wav", [500.0], number, seconds=0.005)

        row = {"id": f"s{number}", "utterance": f"s{number}", "path": f"s{number}.wav", "num_samples": num_samples}

        rows.append(row | {"sample_rate": RATE, "label": "a", "split": part, "start": 0.0, "end": num_samples / RATE})

    write_table(tmp_path / "clicks.tsv", COLUMNS, rows)

    task = read_task(tmp_path / "clicks.tsv")

    assert extract_tensor(LogMelSource(), task).shape == (1, 1, 3, 512)


def test_open_source_loads_the_last_step_and_seeds_the_untrained_model(tmp_path: Path) -> None:
    folder = save_run(tmp_path, seed=5)

    def identify(kind: str, seed: int) -> str:
        section = SourceSection(name="a", kind=kind, checkpoint=str(folder))

        return open_source(section, device=torch.device("cpu"), seed=seed).identity

    assert identify("model", 5) == identify("untrained", 5)  # the run's weights are those of a model seeded with 5

    assert identify("untrained", 5) != identify("untrained", 6)


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("no_such_card", r"features 'a', `checkpoint`: .* but 'no_such_card' is neither"),
        ("wav2vec2_base", r"must be a model of the family spear or spidr, but 'wav2vec2_base' is of 'wav2vec2'"),
        ("{empty}", r"holds no finished checkpoint"),
    ],
)
def test_open_source_raises_error_when_the_checkpoint_is_no_model_of_ours(
    tmp_path: Path, checkpoint: str, message: str
) -> None:
    section = SourceSection(name="a", checkpoint=checkpoint.format(empty=tmp_path))

    with pytest.raises(RecipeError, match=message):
        open_source(section, device=torch.device("cpu"), seed=0)
