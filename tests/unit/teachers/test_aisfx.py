from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import Conv2d

from spear_plugin.teachers import Teacher, TeacherConfig, TeacherError, load_teacher
from spear_plugin.teachers.aisfx import AiSfxTeacher
from tests.common import assert_close
from tests.unit.teachers.common import assert_ignores_padding, noise

SAMPLES_PER_FRAME = 1764


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return load_teacher(TeacherConfig(name="aisfx"), device=torch.device("cpu"))


def test_describes_itself(teacher: Teacher) -> None:
    assert (teacher.name, teacher.dim, teacher.frame_rate_hz, teacher.sample_rate) == ("aisfx:0", 512, 25.0, 44100)


def test_ignores_padding(teacher: Teacher) -> None:
    assert_ignores_padding(teacher, (30000, 12345, 1764, 1763))


@pytest.mark.parametrize("shift", [1, 3])
def test_stitched_frames_equal_the_network_on_a_later_start(teacher: Teacher, shift: int) -> None:
    waveform = noise(48 * SAMPLES_PER_FRAME)
    waveform[0, 24 * SAMPLES_PER_FRAME] = 1.0  # the same peak in both
    later = waveform[:, shift * SAMPLES_PER_FRAME :]
    whole = teacher(waveform, torch.tensor([waveform.size(1)])).frames[0]
    moved = teacher(later, torch.tensor([later.size(1)])).frames[0]

    # Frames `shift`, `shift` + 4, ... come from another copy of the spectrogram than 0, 4, ... of the later start. The
    # network sees 0.6 s to each side, so near the ends they differ.
    assert_close(whole[20 + shift : 28 + shift : 4], moved[20:28:4], atol=1e-4)


def test_frames_are_centred_on_the_sound() -> None:
    teacher = AiSfxTeacher("symmetric").eval()
    for module in teacher.modules():
        if isinstance(module, Conv2d):  # the trained filters look more to one side
            torch.nn.init.constant_(module.weight, 1.0 / module.weight[0].numel())

    waveform = torch.zeros(1, 60 * SAMPLES_PER_FRAME)
    waveform[0, 30 * SAMPLES_PER_FRAME : 31 * SAMPLES_PER_FRAME] = 1.0
    response = teacher(waveform, torch.tensor([waveform.size(1)])).frames[0].mean(dim=-1)
    centre = (response * torch.arange(60)).sum() / response.sum()

    assert abs(centre.item() - 30.0) < 0.01
    assert_close(response[15:30], response[31:46].flip(0))


def test_level_does_not_matter(teacher: Teacher) -> None:
    waveform = noise(20000)
    lengths = torch.tensor([20000])

    assert_close(teacher(waveform, lengths).frames, teacher(0.01 * waveform, lengths).frames, atol=1e-4)


def test_silence_gives_finite_frames(teacher: Teacher) -> None:
    assert teacher(torch.zeros(1, 5000), torch.tensor([5000])).frames.isfinite().all()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_load_raises_error_when_the_file_is_damaged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(content)

    with pytest.raises(TeacherError, match=r"checkpoint.pth: must be a complete aiSFX checkpoint, but is not"):
        load_teacher(TeacherConfig(name="aisfx", path=str(path)), device=torch.device("cpu"))


def test_load_raises_error_when_the_file_is_another_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save(({"embedding_net.conv_block1.conv1.weight": torch.zeros(1)}, {}), path)

    with pytest.raises(TeacherError, match=r"must be a complete aiSFX checkpoint"):
        load_teacher(TeacherConfig(name="aisfx", path=str(path)), device=torch.device("cpu"))
