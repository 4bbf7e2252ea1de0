from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.recipe.error import RecipeError

from spear_plugin.interfaces.hear import get_scene_embeddings, get_timestamp_embeddings, load_model
from tests.common import assert_close, assert_equal
from tests.unit.interfaces.makers import draw_waveforms, extract, save_checkpoints
from tests.unit.models.spear.test_released import narrow_config, write_released

NUM_SAMPLES = 16_000


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_checkpoints(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(("family", "first_centre", "num_frames"), [("spear", 45.0, 46), ("spidr", 12.5, 49)])
def test_moments_are_the_output_at_the_centres_of_its_frames(
    checkpoints: dict[str, Path], family: str, first_centre: float, num_frames: int
) -> None:
    model = load_model(str(checkpoints[family]))
    waveforms = draw_waveforms(NUM_SAMPLES, NUM_SAMPLES)
    embeddings, timestamps = get_timestamp_embeddings(torch.stack(waveforms), model)
    assert model.sample_rate == 16_000
    assert embeddings.shape == (2, num_frames, model.timestamp_embedding_size) == (2, num_frames, 32)
    for row, waveform in zip(embeddings, waveforms, strict=True):
        assert_close(row, extract(checkpoints[family], waveform)[0])
    centres = first_centre + 20.0 * torch.arange(num_frames)
    assert_equal(timestamps, torch.stack([centres, centres]))


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_a_scene_is_the_mean_of_its_moments_in_all_layers(checkpoints: dict[str, Path], family: str) -> None:
    model = load_model(str(checkpoints[family]), layers="all")
    waveform = draw_waveforms(NUM_SAMPLES)[0]
    scenes = get_scene_embeddings(waveform[None], model)
    assert scenes.shape == (1, model.scene_embedding_size) == (1, 3 * 32)
    assert_close(scenes[0], torch.cat(extract(checkpoints[family], waveform)[1], dim=1).mean(dim=0))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_output_of_25_hz_has_times_of_its_own_and_its_layers_have_theirs(tmp_path: Path) -> None:
    checkpoint = str(save_checkpoints(tmp_path, output_downsampling_factor=2)["spear"])
    audio = torch.stack(draw_waveforms(NUM_SAMPLES))
    _, of_output = get_timestamp_embeddings(audio, load_model(checkpoint))
    _, of_layers = get_timestamp_embeddings(audio, load_model(checkpoint, layers="all"))
    assert_equal(of_output, (55.0 + 40.0 * torch.arange(23))[None])
    assert_equal(of_layers, (45.0 + 20.0 * torch.arange(46))[None])


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_audio_that_is_too_short_for_a_frame_has_one(checkpoints: dict[str, Path], family: str) -> None:
    embeddings, timestamps = get_timestamp_embeddings(
        torch.stack(draw_waveforms(100, 100)), load_model(str(checkpoints[family]))
    )
    assert embeddings.shape == (2, 1, 32)
    assert timestamps.shape == (2, 1)
    assert embeddings.isfinite().all()


def test_a_released_folder_and_a_step_of_a_run_load(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    write_released(tmp_path / "released", narrow_config())
    step = checkpoints["spear"] / "checkpoints" / "step_2"
    assert [load_model(str(path)).scene_embedding_size for path in (tmp_path / "released", step)] == [32, 32]


@pytest.mark.parametrize(
    ("checkpoint", "layers", "message"),
    [
        ("", "last", r"`model_file_path`: must be the name of a card, or the folder of a run or of a released model\."),
        ("nothing", "last", r"`model_file_path`: must be the name of a card, or .*, but 'nothing' is neither\."),
        ("nothing", "first", r"`layers` must be one of last, all, but is 'first'\."),
    ],
)
def test_what_cannot_be_loaded_is_named(checkpoint: str, layers: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^{message}$"):
        load_model(checkpoint, layers=layers)
