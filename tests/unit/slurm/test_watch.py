"""Jobs beside a run whose checkpoints are empty folders; tests/recipes and tests/slurm have real ones."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from slurm import beside
from slurm.beside import CheckpointWatcher, find_checkpoints
from slurm.files import LaunchError
from slurm.resources import Resources
from slurm.run import NO_ANSWER
from slurm.watch import main

PROGRAM = "tests.slurm.program"


def save_checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step_{step}"
    (folder / "model").mkdir(parents=True)
    return folder


def configure(run: Path, num_steps: int) -> None:
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text(f"regime: {{num_steps: {num_steps}}}\n")


def watch(run: Path, *options: str, recipe: tuple[str, ...] = ("ok", "{checkpoint}", "{step}")) -> int:
    limits = ("--poll-seconds", "0.1", "--max-idle-hours", "0.01", "--max-restarts", "0")
    return main([PROGRAM, str(run), "--cluster", "local", *limits, *options, "--", *recipe])


def starts(run: Path, step: int, name: str = "program") -> int:
    return len(list((run / "beside" / name / f"step_{step}").glob("rank-0-start-*")))


def test_each_finished_checkpoint_has_a_job_and_has_it_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    configure(run, 7)
    for step in (2, 3, 4, 7):
        save_checkpoint(run, step)
    save_checkpoint(run, 6).rename(run / "checkpoints" / "step_6.tmp")  # still being written
    (run / "checkpoints" / "step_8").mkdir()
    assert find_checkpoints(run) == [2, 3, 4, 7]
    assert watch(run, "--every-n-steps", "2", "--name", "mine", "--jobs", "2") == 0
    # Of the others only the last step.
    assert [starts(run, step, "mine") for step in (2, 3, 4, 6, 7)] == [1, 0, 1, 0, 1]
    assert "3 checkpoints done.\n" in capsys.readouterr().out
    log = "".join(path.read_text() for path in (run / "beside" / "mine" / "slurm").glob("*/*_log.out"))
    assert f"step_4 ok {run}/checkpoints/step_4 4\n" in log
    assert list((run / "beside" / "mine" / "slurm").glob("code-*.json"))

    assert watch(run, "--every-n-steps", "1", "--name", "mine") == 0
    assert [starts(run, step, "mine") for step in (2, 3, 4, 7)] == [1, 1, 1, 1]


def test_one_failure_is_told_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(tmp_path, 4)
    for step in (0, 1, 4):
        save_checkpoint(tmp_path, step)
    # The stand-in ends with the number of the step, with 0 on its second start.
    assert watch(tmp_path, recipe=("{step}", "ok")) == 1
    output = capsys.readouterr().out
    assert "step 0: done" in output
    assert "step 4: failed: task 0 on " in output
    assert "ended with code 4, and restarts are limited to 0. log: " in output
    assert "1 checkpoints done; 2 failed (steps 1, 4), start the same command again to try them again." in output
    assert watch(tmp_path, recipe=("{step}", "ok")) == 0
    assert [starts(tmp_path, step) for step in (0, 1, 4)] == [1, 2, 2]
    assert "3 checkpoints done.\n" in capsys.readouterr().out


def make_watcher(run: Path, *, cluster: str = "local", max_num_jobs: int = 1) -> CheckpointWatcher:
    return CheckpointWatcher(
        run=run,
        folder=run / "beside" / "program",
        arguments=("-m", PROGRAM, "{out}", "2"),  # a wrong configuration
        root=Path.cwd(),
        resources=Resources(),
        cluster=cluster,
        max_num_jobs=max_num_jobs,
    )


def poll_until_idle(watcher: CheckpointWatcher) -> list[str]:
    lines = list(watcher.poll())
    while not watcher.is_idle:
        time.sleep(0.1)
        lines += watcher.poll()
    return lines


def test_checkpoints_that_training_deletes_are_counted(tmp_path: Path) -> None:
    configure(tmp_path, 3)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step)
    watcher = make_watcher(tmp_path)
    list(watcher.poll())
    for step in (1, 2):  # one before its job starts, one before it is submitted
        shutil.rmtree(tmp_path / "checkpoints" / f"step_{step}")
    lines = poll_until_idle(watcher)
    assert "step 2: the checkpoint was deleted before there was a job for it" in lines
    assert "step 1: the checkpoint was deleted before the job started" in lines
    assert starts(tmp_path, 2) == 0
    # The third is there, and its configuration really wrong.
    assert watcher.is_finished
    assert watcher.summary() == (
        "0 checkpoints done; 1 failed (steps 3), start the same command again to try them again; 2 deleted by training "
        "before their jobs started (steps 1, 2), see regime.keep_last_n_checkpoints, --jobs and --every-n-steps."
    )


def test_a_run_that_has_not_begun_is_waited_for_with_limited_patience(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(tmp_path / "run", "--max-idle-hours", "0.0001") == 2
    assert "no new checkpoint for 0.0001 hours, and the last step is not reached." in capsys.readouterr().err


def test_a_run_without_a_last_step_is_not_taken_for_finished(tmp_path: Path) -> None:
    configure(tmp_path, 8)
    save_checkpoint(tmp_path, 4)
    watcher = make_watcher(tmp_path)
    poll_until_idle(watcher)
    assert not watcher.is_finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--every-n-steps", "0"), "`--every-n-steps` must be at least 1, but is 0."),
        (("--jobs", "0"), "`--jobs` must be at least 1, but is 0."),
        (("--poll-seconds", "0"), "`--poll-seconds` and `--max-idle-hours` must be positive."),
        (("--nodes", "0"), "`nodes` must be at least 1, but is 0."),
    ],
)
def test_what_cannot_be_is_named_in_one_line(
    tmp_path: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(tmp_path, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_controller_that_is_away_is_no_end_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["PENDING", NO_ANSWER, "COMPLETED", "FAILED"])
    configure(tmp_path, 1)
    save_checkpoint(tmp_path, 1)
    watcher = make_watcher(tmp_path, cluster="slurm")
    watcher._record(1).write("17", ["17.out"])
    monkeypatch.setattr("slurm.run.job_state", lambda job: next(states))
    monkeypatch.setattr(beside, "job_state", lambda job: next(states))
    assert list(watcher.poll()) == ["step 1: has a checkpoint", "step 1: job 17 is under way already"]
    for _ in range(2):
        assert list(watcher.poll()) == []
    assert list(watcher.poll()) == ["step 1: failed: it did not say why. log: 17.out"]


def test_a_watcher_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    configure(tmp_path, 1)
    save_checkpoint(tmp_path, 1)
    with pytest.raises(LaunchError, match="There is no Slurm on this machine"):
        list(make_watcher(tmp_path, cluster="slurm").poll())
