"""The codes that a model of ours predicts, as targets of the next one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fairseq2.recipe.run import run

from recipes.mvq.encode.config import MvqEncodeConfig
from recipes.mvq.encode.recipe import MvqEncodeRecipe
from recipes.mvq.train.config import FrameCorpusSection, MvqTrainConfig, QuantizerSection
from recipes.mvq.train.recipe import MvqTrainRecipe
from spear_plugin.data.audio import read_audio
from spear_plugin.data.codes import CodeStore
from spear_plugin.data.manifest import read_manifest
from spear_plugin.models.spidr import standardize_waveforms
from spear_plugin.quantizers import ClassifierQuantizer, load_quantizer
from spear_plugin.teachers import TeacherConfig
from tests.common import DATA_FOLDER, assert_equal
from tests.recipes.common import call_recipe
from tests.unit.models.spear import makers as spear_makers
from tests.unit.models.spidr import makers as spidr_makers
from tests.unit.teachers.common import save_run

MANIFEST = DATA_FOLDER / "speech.tsv"


def _train(teacher: TeacherConfig, folder: Path, head: str | None = None) -> ClassifierQuantizer:
    config = MvqTrainConfig(
        teacher=teacher,
        corpus=FrameCorpusSection(manifest=MANIFEST, max_frames=200, max_frames_per_file=40),
        quantizer=QuantizerSection(kind="heads", head=head),
    )
    run(MvqTrainRecipe(), config, folder, no_rich=True)
    quantizer = load_quantizer(folder / "quantizer")
    assert isinstance(quantizer, ClassifierQuantizer)
    return quantizer


def test_codes_of_a_spidr_layer_are_its_units(tmp_path: Path) -> None:
    model, row = spidr_makers.create_small_model().eval(), read_manifest(MANIFEST)[0]
    waveform = torch.from_numpy(read_audio(row.path, sample_rate=16000))[None]
    lengths = torch.tensor([waveform.size(1)])
    waveform = standardize_waveforms(waveform, lengths)
    with torch.no_grad():  # frames of new models differ little: heads must look at the differences
        frames = model.extract_features(waveform, lengths).layers[1]
        model.heads.weight.normal_()
        model.heads.bias.copy_(-(model.heads.weight @ frames.mean(dim=(0, 1))))
        units = model.predict_units(waveform, lengths, 2)
    run_folder = save_run(tmp_path / "model", model, "spidr", spidr_makers.small_config())
    teacher = TeacherConfig(name="spidr", path=str(run_folder), layer=2)
    _train(teacher, tmp_path / "heads")
    report = json.loads((tmp_path / "heads" / "report.json").read_text())
    assert report["num_used_entries"][0] > 1

    config = MvqEncodeConfig()
    config.teacher, config.corpus.manifest = teacher, MANIFEST
    config.quantizer.path = str(tmp_path / "heads" / "quantizer")
    run(MvqEncodeRecipe(), config, tmp_path / "codes", no_rich=True)

    store = CodeStore(tmp_path / "codes")
    codes = torch.from_numpy(store[row.id].copy())
    assert codes.shape == (units.size(1), 1)
    assert (codes[:, 0] == units[0]).float().mean() > 0.99  # ties aside
    assert len(codes.unique()) > 4


def test_codes_of_spears_output_are_those_that_a_stream_predicts(tmp_path: Path) -> None:
    model = spear_makers.create_small_model().eval()
    with torch.no_grad():  # not as alike as new ones
        model.get_head("audio").bias.normal_()
    run_folder = save_run(tmp_path / "model", model, "spear", spear_makers.small_config())
    quantizer = _train(TeacherConfig(name="spear", path=str(run_folder)), tmp_path / "heads", head="audio")

    frames = torch.randn(1, 50, 32)
    assert_equal(quantizer.encode(frames).long(), model.get_head("audio").predict(frames).argmax(dim=-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("teacher.layer=1", "has no head that predicts a code of each frame of this layer. Choose another"),
        ("quantizer.num_codebooks=2", "`num_codebooks` must not be set when `kind` is heads"),
        ("quantizer.head=phones", "`quantizer.head` must be one of units, but is phones"),
        ("quantizer.kind=kmeans quantizer.head=units", "`head` must not be set when `kind` is kmeans"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    tmp_path: Path,
    settings: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = spidr_makers.create_small_model()
    run_folder = save_run(tmp_path / "model", model, "spidr", spidr_makers.small_config())
    arguments = [
        str(tmp_path / "out"), "--config", "teacher.name=spidr", f"teacher.path={run_folder}", "teacher.layer=2",
        f"corpus.manifest={MANIFEST}", "quantizer.kind=heads", *settings.split(),
    ]  # fmt: skip
    code, lines = call_recipe(MvqTrainRecipe(), arguments, monkeypatch, capsys)
    assert code == 2
    assert len(lines) == 1
    assert message in lines[0]
