"""The checkers of HEAR and X-ARES accept our interfaces, and s3prl trains a task of SUPERB on them."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.common import DATA_FOLDER
from tests.unit.interfaces.makers import save_checkpoints

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".venv-checkers"
PROGRAM = Path(__file__).with_name("benchmark_checkers.py")


def write_task(folder: Path) -> None:
    """Write recordings of two kinds as the CSV files that s3prl makes of VoxCeleb."""
    folder.mkdir(parents=True)
    for name in ("train", "valid", "test"):
        with (folder / f"{name}.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["id", "wav_path", "label"])
            for label in ("ambi", "bd"):
                for path in sorted((DATA_FOLDER / "audio").glob(f"{label}_*.flac")):
                    writer.writerow([path.stem, path, label])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the checkers said, and what s3prl wrote."""
    if not (ENVIRONMENT / ".setup-complete").is_file():
        pytest.skip("needs the benchmarks' checkers: `make checkers-env`, which `.ci/run` does")
    folder = tmp_path_factory.mktemp("checkers")
    checkpoints = save_checkpoints(folder)
    for family in checkpoints:
        write_task(folder / "task" / family)
    arguments = [*checkpoints.values(), folder / "task", folder / "results.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([ENVIRONMENT / "bin" / "python", PROGRAM, *arguments], check=True, cwd=folder, env=environment)
    return folder


@pytest.mark.parametrize("family", ["spear", "spidr"])
@pytest.mark.parametrize("checker", ["hear", "xares", "s3prl"])
def test_the_checker_accepts_the_interface(folder: Path, checker: str, family: str) -> None:
    assert json.loads((folder / "results.json").read_text())[f"{checker} {family}"] == "passed"


def test_a_task_of_s3prl_is_learned(folder: Path) -> None:
    (path,) = (folder / "task" / "spear").glob("evaluate/*/test/result.yaml")
    # Ten steps on random frames tell drums from ambient sounds better than chance.
    assert yaml.safe_load(path.read_text())["accuracy"] > 0.5


def test_a_run_that_does_not_exist_ends_s3prl_with_a_line(folder: Path) -> None:
    message = json.loads((folder / "results.json").read_text())["s3prl nothing"]
    assert re.fullmatch(
        r"SystemExit: `path_or_url`: must be the name of a card, .* but 'nothing' is neither\.", message
    )
