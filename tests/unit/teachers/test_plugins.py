from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
import torch

from spear_plugin.teachers import TeacherConfig, TeacherError, load_teacher
from tests.unit.teachers.common import assert_ignores_padding

# The example of the documentation is what is tested.
DATA_DOCUMENT = Path(__file__).parents[3] / "docs" / "data.md"
WRONG = "\n\ndef load_wrong(config):\n    return 3\n"


def read_example() -> str:
    text = DATA_DOCUMENT.read_text().partition('"my_teachers:Energy"\n')[2]
    return dedent(text.partition("\n\n`recipes.mvq.train")[0])


def install(folder: Path, package: str, entry_points: str) -> None:
    """Write a distribution as pip leaves it."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[spear_plugin.teachers]\n{entry_points}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_teachers.py").write_text(read_example() + WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def load(name: str) -> object:
    return load_teacher(TeacherConfig(name=name), device=torch.device("cpu"))


def test_a_class_of_another_package_is_a_teacher(site: Path) -> None:
    install(site, "my-teachers", "energy = my_teachers:Energy")
    teacher = load_teacher(TeacherConfig(name="energy", dtype="bfloat16"), device=torch.device("cpu"))
    assert_ignores_padding(teacher, (16000, 5000, 320, 319))
    assert teacher.name == "energy:0:bfloat16"
    assert not teacher.training
    with pytest.raises(TeacherError, match=r"must be one of whisper, .*log_mel, energy, but is 'power'"):
        load("power")


@pytest.mark.parametrize(
    ("entry_point", "message"),
    [
        ("energy = my_teachers:Missing", r"'energy' of my-teachers \(my_teachers:Missing\) cannot be imported"),
        ("energy = no_such_module:Energy", r"cannot be imported: No module named 'no_such_module'. Repair"),
        ("energy = my_teachers:load_wrong", r"must give a Teacher, but gives a int"),
    ],
)
def test_a_broken_package_gives_one_line(site: Path, entry_point: str, message: str) -> None:
    install(site, "my-teachers", entry_point)
    with pytest.raises(TeacherError, match=message):
        load("energy")


def test_a_name_that_two_packages_offer_is_refused(site: Path) -> None:
    install(site, "my-teachers", "energy = my_teachers:Energy")
    install(site, "your-teachers", "energy = my_teachers:load_wrong")
    with pytest.raises(TeacherError, match=r"'energy' is offered by several packages \(.*your-teachers.*\). Keep one"):
        load("energy")
