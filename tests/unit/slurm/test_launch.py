"""What can be told of launches without a Slurm; tests/slurm has one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.stopping import STOPPED_EXIT_CODE
from slurm import job
from slurm.clusters import read_preset
from slurm.files import LaunchError, Mark
from slurm.launch import main
from slurm.options import split_arguments
from slurm.resources import Resources
from slurm.snapshot import copy_code, save_code_state

PROGRAM = "tests.slurm.program"


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    assert main(["recipes.spear.pretrain", "/shared/run", "--dry-run", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_dry_run_shows_the_script_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(
        capsys, "--nodes=4", "--gpus-per-node=8", "--cpus-per-task=12", "--time=2-12:00:00", "--partition=gpu",
        "--account=speech", "--qos=high", "--constraint=h100", "--exclude=node[3-4]", "--mem-gb=0.5",
        "--dependency=afterok:12", "--setup=module load cuda", "--", "--config", "regime.num_steps=5",
    )  # fmt: skip
    for line in (
        "#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=8", "#SBATCH --gpus-per-node=8", "#SBATCH --cpus-per-task=12",
        "#SBATCH --time=3600", "#SBATCH --partition=gpu", "#SBATCH --account=speech", "#SBATCH --qos=high",
        "#SBATCH --constraint=h100", "#SBATCH --exclude='node[3-4]'", "#SBATCH --mem=512M", "#SBATCH --requeue",
        "#SBATCH --dependency=afterok:12", "#SBATCH --kill-on-invalid-dep=yes", "#SBATCH --signal=USR2@120",
        "module load cuda", f"#SBATCH --chdir={Path.cwd()}",
        "# task: python -m recipes.spear.pretrain /shared/run --config regime.num_steps=5",
    ):  # fmt: skip
        assert line in lines
    (srun,) = [line for line in lines if line.startswith("srun")]
    assert "--kill-on-bad-exit=1 --cpus-per-task=12" in srun


def test_members_of_an_array_get_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dry_run(
        capsys, "--array=3", "--array-parallelism=2", "--", "--config", "part=[{array_index}, {array_size}]"
    )
    assert "#SBATCH --array=0-2%2" in lines
    assert lines[-1] == "# task: python -m recipes.spear.pretrain /shared/run --config 'part=[2, 3]'"


def test_only_what_stands_before_two_dashes_is_the_launchers() -> None:
    assert split_arguments(["m", "out", "--", "--nodes", "--", "x"]) == (["m", "out"], ["--nodes", "--", "x"])
    assert split_arguments(["m", "out"]) == (["m", "out"], [])


def test_a_preset_comes_from_the_users_file_and_options_come_on_top(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "clusters.yaml"
    file.write_text("h100: {partition: gpu, gpus_per_node: 8, mem_gb: 100, environment: {NCCL_SOCKET_IFNAME: ib0}}\n")
    lines = dry_run(capsys, "--clusters-file", str(file), "--preset", "h100", "--gpus-per-node", "4")
    assert "#SBATCH --partition=gpu" in lines
    assert "#SBATCH --ntasks-per-node=4" in lines
    assert "export NCCL_SOCKET_IFNAME=ib0" in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu: {nodes: 2}", "there is no preset `h100`, only gpu."),
        ("h100: {node: 2}", "preset `h100`: `node` is unknown; there are nodes, "),
        ("h100: {nodes: many}", "preset `h100`: `nodes` must be of type int, but is 'many'."),
        ("h100: {nodes: 0}", "preset `h100`: `nodes` must be at least 1, but is 0."),
        ("h100: {time: tomorrow}", "`time` must be MINUTES, H:MM:SS or D-HH:MM:SS, but is tomorrow."),
        ("h100: {environment: {HF_TOKEN: x}}", "must hold no secrets, but has HF_TOKEN."),
        ("h100: 3", "preset `h100` must be a mapping of settings, but is 3."),
        ("- h100", "must hold a mapping, but holds list."),
        ("h100: {", "is no YAML: "),
    ],
)
def test_a_wrong_preset_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "clusters.yaml"
    file.write_text(text)
    with pytest.raises(LaunchError) as caught:
        read_preset("h100", file)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_launches_that_cannot_be_say_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([PROGRAM, str(tmp_path), "--", "ok"]) == 2
    assert "There is no Slurm on this machine (no `sbatch`): use `--cluster local`" in capsys.readouterr().err
    assert main([PROGRAM, str(tmp_path), "--cluster", "local", "--nodes", "2", "--", "ok"]) == 2
    assert "This machine is one node, but `nodes` is 2" in capsys.readouterr().err
    assert main([PROGRAM, str(tmp_path), "--array", "0"]) == 2
    assert "`--array` must be at least 1, but is 0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("time", "minutes"), [("90", 90), ("90:30", 91), ("1:30:00", 90), ("1-0", 1440), ("2-01:30", 2970), (" ", None)]
)
def test_times_are_read_as_sbatch_reads_them(time: str, minutes: int | None) -> None:
    if minutes is None:
        with pytest.raises(LaunchError):
            Resources(time=time)
    else:
        assert Resources(time=time).time_minutes == minutes


def launch_locally(out: Path, *behaviours: str, options: tuple[str, ...] = ()) -> int:
    return main([PROGRAM, str(out), "--cluster", "local", "--tasks-per-node", "2", *options, "--", *behaviours])


def starts(out: Path, rank: int) -> int:
    return len(list(out.glob(f"rank-{rank}-start-*")))


def test_a_local_launch_runs_its_tasks_as_one_group_and_restarts_them_after_a_crash(tmp_path: Path) -> None:
    assert launch_locally(tmp_path, "1", "ok") == 0
    assert (starts(tmp_path, 0), starts(tmp_path, 1)) == (2, 2)
    lines = (tmp_path / "rank-1-start-1").read_text().splitlines()
    assert {"RANK=1", "WORLD_SIZE=2", "LOCAL_RANK=1", "LOCAL_WORLD_SIZE=2"} <= set(lines)


def test_a_launch_for_debugging_is_one_process_here(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slurm.launch", PROGRAM, str(tmp_path), "--cluster", "debug", "--", "ok"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 0, process.stderr
    assert "WORLD_SIZE=1" in (tmp_path / "rank-0-start-0").read_text().splitlines()


def test_a_wrong_configuration_is_not_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch_locally(tmp_path, "2", "ok") == 1
    assert starts(tmp_path, 0) == 1
    assert "wrong configuration or input; the lines with ERROR say which." in capsys.readouterr().err


def test_a_local_launch_that_is_asked_to_make_room_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "slurm.launch", PROGRAM, str(tmp_path), "--cluster", "local", "--", "wait", "ok"]
    )
    while not list(tmp_path.glob("rank-0-start-0")):
        assert process.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    (task,) = Path(f"/proc/{children[0]}/task/{children[0]}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    assert process.wait(timeout=60) == 0
    assert starts(tmp_path, 0) == 2


def test_both_sides_mean_the_same_by_the_exit_code_of_a_stop() -> None:
    assert job.STOPPED_EXIT_CODE == STOPPED_EXIT_CODE


def test_a_mark_is_for_its_command_only(tmp_path: Path) -> None:
    Mark(path=tmp_path / "a.done", command="x\ny").write(3.21)
    assert Mark(path=tmp_path / "a.done", command="x\ny").read() == 3.2
    assert Mark(path=tmp_path / "a.done", command="x").read() is None
    assert Mark(path=tmp_path / "b.done", command="x").read() is None


def test_the_code_of_a_job_is_recorded_and_copied(tmp_path: Path) -> None:
    root, folder = tmp_path / "repository", tmp_path / "job"
    root.mkdir()
    for command in (("init", "-q"), ("config", "user.email", "a@b"), ("config", "user.name", "a")):
        subprocess.run(["git", *command], cwd=root, check=True)
    (root / "kept.py").write_text("x = 1\n")
    subprocess.run(["git", "add", "."], cwd=root, check=True)
    subprocess.run(["git", "commit", "-qm", "first"], cwd=root, check=True)
    (root / "kept.py").write_text("x = 2\n")
    (root / "new.py").write_text("")

    save_code_state(root, folder, ["recipes.x", "out"])
    (path,) = folder.glob("code-*.json")
    record = json.loads(path.read_text())
    assert len(record["commit"]) == 40
    assert record["new_files"] == ["new.py"]
    assert record["command"] == ["recipes.x", "out"]
    (diff,) = folder.glob("code-*.diff")
    assert "+x = 2" in diff.read_text()

    copy = copy_code(root, folder)
    assert (copy / "kept.py").read_text() == "x = 2\n"
    assert not (copy / "new.py").exists()
    with pytest.raises(LaunchError, match="is no git repository"):
        copy_code(tmp_path, folder)
