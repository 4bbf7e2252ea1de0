from __future__ import annotations

import pytest
import torch

from spear_plugin.models.spear.fbank import compute_fbank
from spear_plugin.teachers import TeacherConfig, TeacherError, load_teacher
from tests.common import assert_close
from tests.unit.teachers.common import assert_ignores_padding, noise

CPU = torch.device("cpu")


def test_frames_are_pairs_of_what_the_student_reads() -> None:
    teacher, waveform = load_teacher(TeacherConfig(name="log_mel"), device=CPU), noise(8123)
    frames = teacher(waveform, torch.tensor([8123])).frames
    energies, _ = compute_fbank(waveform, torch.tensor([8123]))
    assert frames.shape == (1, 25, 256)
    assert_close(frames, energies[:, :50].reshape(1, 25, 256), atol=1e-3)
    assert (teacher.name, teacher.dim, teacher.frame_rate_hz) == ("log_mel_2x128:0", 256, 50.0)


def test_ignores_padding() -> None:
    assert_ignores_padding(load_teacher(TeacherConfig(name="log_mel"), device=CPU), (16000, 5119, 400, 399))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TeacherConfig(name="log_mel", layer=1), "`layer` must be 0, the energies themselves, but is 1"),
        (TeacherConfig(name="log_mel", path="x"), "`teacher.path` must not be set when `teacher.name` is log_mel"),
    ],
)
def test_load_raises_error_when_configured_wrongly(config: TeacherConfig, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        load_teacher(config, device=CPU)
