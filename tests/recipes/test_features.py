from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.device import CPU

from recipes.extract.recipe import ExtractRecipe
from recipes.feature_sources import FrameTiming, SpidrSource
from recipes.features import FeatureSection, open_source
from recipes.probe.config import SourceSection
from spear_plugin.data.features import FeatureStore
from spear_plugin.data.manifest import read_manifest
from spear_plugin.models.spidr import standardize_waveforms
from tests.common import DATA_FOLDER, assert_close
from tests.recipes.common import call_recipe, create_small_spidr_model, save_spidr_run
from tests.recipes.test_extract import write_rows

ROWS = read_manifest(DATA_FOLDER / "speech.tsv")[:3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_spidr_run(tmp_path_factory.mktemp("model") / "run")


def test_spidr_gives_the_layers_of_each_recording_alone_and_standardized(run: Path) -> None:
    source = open_source(FeatureSection(checkpoint=str(run)), device=CPU)
    assert isinstance(source, SpidrSource)
    assert list(source.layer_dims) == [32] * 3
    torch.manual_seed(0)
    lengths = torch.tensor([16_000, 9_000, 300])  # the last one is too short for a frame
    waveforms = 0.1 * torch.randn(3, 16_000) + 0.3
    waveforms[torch.arange(16_000) >= lengths[:, None]] = 0.0
    with torch.inference_mode():
        layers, counts = source.extract(waveforms, lengths)
        assert counts.tolist() == [source.num_frames(n) for n in lengths.tolist()] == [49, 27, 0]
        model = create_small_spidr_model()
        for index in (0, 1):
            alone = waveforms[index : index + 1, : lengths[index]]
            expected = model.extract_features(standardize_waveforms(alone, lengths[index : index + 1]), None).layers
            for layer, expected_layer in zip(layers, expected, strict=True):
                assert_close(layer[index, : counts[index]], expected_layer[0], atol=1e-5, rtol=0.0)


def test_the_output_of_spidr_is_its_last_layer(run: Path) -> None:
    section = FeatureSection(checkpoint=str(run))
    source, output = (open_source(section, device=CPU, output_only=only) for only in (False, True))
    assert (list(output.layer_dims), output.timing, output.identity) == ([32], source.timing, source.identity)
    waveforms, lengths = torch.randn(1, 8_000), torch.tensor([8_000])
    with torch.inference_mode():
        (last,), _ = output.extract(waveforms, lengths)
        assert_close(last, source.extract(waveforms, lengths)[0][-1])


def test_spidr_timing_is_the_centre_of_the_receptive_field(run: Path) -> None:
    timing = open_source(FeatureSection(checkpoint=str(run)), device=CPU).timing
    assert (timing.rate_hz, timing.first_centre) == (50.0, 0.0125)
    waveforms = torch.randn(1, 16_000, requires_grad=True)
    frame = 15
    create_small_spidr_model().feature_extractor(waveforms)[0, frame].sum().backward()
    assert waveforms.grad is not None
    seen = waveforms.grad[0].nonzero().flatten()
    centre = (seen[0] + seen[-1] + 1).item() / 2 / 16_000
    assert timing.first_centre + frame / timing.rate_hz == pytest.approx(centre)


def test_an_untrained_spidr_is_the_same_architecture_by_the_seed(run: Path) -> None:
    section = SourceSection(name="fresh", kind="untrained", checkpoint=str(run))
    trained = open_source(FeatureSection(checkpoint=str(run)), device=CPU)
    first, again, other = (open_source(section, device=CPU, seed=seed) for seed in (1, 1, 2))
    assert first.layer_dims == trained.layer_dims
    assert first.identity == again.identity
    assert len({trained.identity, first.identity, other.identity}) == 3


def test_spidr_is_extracted_to_a_store(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{row.id}\t{row.path}\t{row.num_samples}\t{row.sample_rate}" for row in ROWS]
    manifest = write_rows(tmp_path / "speech.tsv", lines)
    arguments = [str(tmp_path / "out"), "--config", f"source.checkpoint={run}", f"corpus.manifest={manifest}"]
    assert call_recipe(ExtractRecipe(), [*arguments, "layers=all"], monkeypatch, capsys) == (0, [])
    store = FeatureStore(tmp_path / "out")
    assert (store.meta.layers, store.meta.frame_rate_hz, store.meta.first_centre) == ([0, 1, 2], 50.0, 0.0125)
    for row in ROWS:
        assert store[row.id].shape == (3, (row.num_samples - 400) // 320 + 1, 32)


def test_frames_between_are_those_whose_centres_lie_there() -> None:
    timing = FrameTiming(50.0, first_centre=0.010)  # centres at 10, 30, 50, ... ms
    starts = torch.tensor([0.0, 0.01, 0.011, 0.03, 0.051, 0.3, 0.07], dtype=torch.float64)
    ends = torch.tensor([0.1, 0.05, 0.089, 0.03, 0.068, 0.4, 0.9], dtype=torch.float64)
    first, last = timing.frames_between(starts, ends, 6)
    # Ends belong to a segment; one without a frame gets the nearest, one beyond the last frame the last.
    assert first.tolist() == [0, 0, 1, 1, 2, 5, 3]
    assert last.tolist() == [4, 2, 3, 1, 2, 5, 5]
