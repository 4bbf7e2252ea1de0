from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq2.recipe.error import RecipeError
from matplotlib.image import imread
from torch import Tensor
from typing_extensions import override

from recipes.feature_sources import FrameTiming
from recipes.frame_readers import FrameReader
from recipes.gallery.frames import PhonePoint, group_points, place_points, read_points
from recipes.gallery.recipe import GalleryRecipe
from spear_plugin.data.alignments import Segment, write_alignment
from spear_plugin.data.manifest import ManifestRow, read_manifest, write_manifest
from tests.common import DATA_FOLDER
from tests.recipes.common import call_recipe, save_run, write_random_codes
from tests.unit.models.spear.test_released import narrow_config

ROWS = read_manifest(DATA_FOLDER / "speech.tsv")[:4]

Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four real prompts whose phones are made up."""
    path = tmp_path / "clips.tsv"
    write_manifest(path, ROWS)
    phones = ("SIL", "AA", "S", "M")
    alignment = {
        row.id: [Segment(0.1 * i, 0.1 * i + 0.1, phones[i % 4], "") for i in range(int(10 * row.duration))]
        for row in ROWS
    }
    write_alignment(path.with_suffix(".alignment.tsv"), alignment)
    return path


@pytest.fixture
def draw(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def call(*options: str) -> tuple[int, list[str]]:
        arguments = [str(tmp_path / "out"), "--config", f"corpus.manifest={manifest}", *options]
        return call_recipe(GalleryRecipe(), arguments, monkeypatch, capsys)

    return call


class CountingReader(FrameReader):
    """Gives the number of the frame, and that of the layer."""

    timing = FrameTiming(50.0, first_centre=0.01)
    layers = (1, 2)

    @override
    def read(self, rows: Sequence[ManifestRow]) -> Iterator[tuple[ManifestRow, list[Tensor]]]:
        for row in reversed(rows):
            frames = torch.arange(int(50 * row.duration), dtype=torch.float32)
            yield row, [torch.stack([frames, torch.full_like(frames, layer)], dim=1) for layer in self.layers]


def test_the_frames_are_those_in_the_middle_of_the_phones() -> None:
    points = [
        PhonePoint(ROWS[0], 0.205, "vowels"),
        PhonePoint(ROWS[1], 0.0, "stops"),
        PhonePoint(ROWS[0], 0.39, "stops"),
    ]
    assert read_points(CountingReader(), 1, points).tolist() == [[10.0, 1.0], [0.0, 1.0], [19.0, 1.0]]
    assert read_points(CountingReader(), 0, points)[:, 1].tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RecipeError, match="`layer` must be at most 2, the layers of the source, but is 3"):
        read_points(CountingReader(), 3, points)


def test_points_that_are_neighbours_stay_so() -> None:
    generator = np.random.default_rng(0)
    frames = generator.normal(size=(60, 12)).astype(np.float32)
    frames[::2] += 8.0
    placed = place_points(frames, perplexity=10.0, seed=1)
    assert np.array_equal(placed, place_points(frames, perplexity=10.0, seed=1))
    points = [PhonePoint(ROWS[0], 0.0, "vowels" if number % 2 else "stops") for number in range(60)]
    vowels, stops = (group_points(points, placed)[kind] for kind in ("vowels", "stops"))
    spread = max(np.linalg.norm(group - group.mean(axis=0), axis=1).max() for group in (vowels, stops))
    assert np.linalg.norm(vowels.mean(axis=0) - stops.mean(axis=0)) > spread


def test_all_pictures_are_drawn(draw: Call, manifest: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=0, config=narrow_config())
    codes = write_random_codes(tmp_path / "codes", manifest, frame_rate_hz=50.0, num_codebooks=16)
    options = (
        f"features=[{{name: log-mel, kind: log_mel}}, {{name: model, checkpoint: {run}, layer: 2}}]",
        "frames.max_frames=40",
        "frames.perplexity=5",
        f"masked={{checkpoint: {run}, codes: {codes}}}",
        f"stores={{speech: {codes}}}",
    )
    assert draw(*options) == (0, [])
    names = ("codebook_usage.png", "frames_by_phone.png", "masked_prediction.png")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == sorted(names)
    for name in names:
        assert imread(tmp_path / "out" / name)[..., :3].std() > 0.05  # more than paper


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("features=[]",), "At least one of `features`, `masked.checkpoint` and `stores` must be set"),
        (("masked.checkpoint=run",), "`codes` must be the folder of a code store when `checkpoint` is set"),
        (("stores={a: nowhere}",), "nowhere"),
    ],
)
def test_what_is_missing_is_named_in_one_line(draw: Call, options: tuple[str, ...], message: str) -> None:
    code, lines = draw(*options)
    assert code != 0
    assert len(lines) == 1
    assert message in lines[0]


def test_recordings_without_phones_are_named_in_one_line(draw: Call, manifest: Path) -> None:
    write_alignment(manifest.with_suffix(".alignment.tsv"), {ROWS[0].id: [Segment(0.0, 0.1, "other", "")]})
    code, (line,) = draw("features=[{name: log-mel, kind: log_mel}]")
    assert code != 0
    assert "has no phone (ARPABET)" in line


def test_codes_that_the_model_does_not_predict_are_refused(draw: Call, manifest: Path, tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=0, config=narrow_config())
    codes = write_random_codes(tmp_path / "codes", manifest, frame_rate_hz=50.0, num_codebooks=2)
    code, (line,) = draw(f"masked={{checkpoint: {run}, codes: {codes}}}")
    assert code != 0
    assert "holds 2 codebooks of 256 at 50 Hz, but the model's stream 'speech' has 16 of 256 at 50 Hz" in line
    code, (line,) = draw(f"masked={{checkpoint: {run}, codes: {codes}, stream: noise}}")
    assert "`masked.stream` must be a stream of" in line
