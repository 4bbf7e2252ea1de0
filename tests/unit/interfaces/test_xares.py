from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.recipe.error import RecipeError

from spear_plugin.interfaces import xares
from spear_plugin.interfaces.xares import BenchmarkEncoder
from tests.common import assert_close
from tests.recipes.common import save_run
from tests.unit.interfaces.makers import draw_waveforms, extract, save_checkpoints
from tests.unit.models.spear.test_released import narrow_config


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_checkpoints(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_it_gives_frames_and_says_how_far_apart_they_are(checkpoints: dict[str, Path], family: str) -> None:
    encoder = BenchmarkEncoder(str(checkpoints[family]))
    assert (encoder.sampling_rate, encoder.output_dim, encoder.hop_size_in_ms) == (16_000, 32, 20.0)
    waveform = draw_waveforms(16_000)[0]
    expected = extract(checkpoints[family], waveform)[0]
    assert_close(encoder(waveform)[0], expected)
    assert_close(encoder(torch.stack([waveform, waveform]))[1], expected)


def test_the_environment_says_which_model_and_layers(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match=r"^the environment variable SPEAR_PLUGIN_CHECKPOINT: must be the name of a"):
        BenchmarkEncoder()
    monkeypatch.setenv("SPEAR_PLUGIN_CHECKPOINT", str(checkpoints["spidr"]))
    monkeypatch.setenv("SPEAR_PLUGIN_LAYERS", "all")
    assert BenchmarkEncoder().output_dim == 3 * 32
    monkeypatch.setenv("SPEAR_PLUGIN_LAYERS", "some")
    with pytest.raises(RecipeError, match=r"^`layers` must be one of last, all, but is 'some'"):
        BenchmarkEncoder()


def test_models_do_not_share_a_name_by_which_scores_are_kept(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    other = str(save_run(tmp_path / "run", seed=2, config=narrow_config()))
    choices = [(str(checkpoints["spear"]), "last"), (str(checkpoints["spear"]), "all"), (other, "last")]
    names = [type(BenchmarkEncoder(*choice)).__name__ for choice in choices]
    assert len(set(names)) == 3
    assert all(name.endswith("Encoder") for name in names)
    assert type(BenchmarkEncoder(*choices[0])).__name__ == names[0]


def test_only_one_name_of_the_module_ends_as_that_of_an_encoder() -> None:
    assert [name for name in dir(xares) if name.endswith("Encoder")] == ["BenchmarkEncoder"]


@pytest.mark.parametrize(("family", "factor"), [("spear", 1), ("spear", 2), ("spidr", 1)])
def test_pieces_of_a_long_recording_have_the_frames_of_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, factor: int
) -> None:
    checkpoint = save_checkpoints(tmp_path, output_downsampling_factor=factor)[family]
    encoder = BenchmarkEncoder(str(checkpoint))
    piece = 32
    step, reach = 320 * piece, encoder.model.min_samples - 320
    # Exactly two pieces, one frame more, and one sample less than that.
    lengths = [2 * step + reach, 2 * step + reach + 320, 2 * step + reach + 319, 48_000]
    whole = [encoder(waveform)[0] for waveform in draw_waveforms(*lengths)]
    monkeypatch.setattr(xares, "_PIECE_FRAMES", piece)
    joined = [encoder(waveform)[0] for waveform in draw_waveforms(*lengths)]
    assert [frames.shape for frames in joined] == [frames.shape for frames in whole]
    # What context and, of SpidR, standardization make different is less than what is between neighbours.
    difference = (joined[3] - whole[3]).abs().mean()
    assert 0.0 < difference < 0.5 * (joined[3][1:] - whole[3][:-1]).abs().mean()
