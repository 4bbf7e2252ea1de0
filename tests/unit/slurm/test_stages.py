from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm.stages import Stage, StageError, StageRunner


def append_stage(path: Path, name: str, *needs: str) -> Stage:
    script = f"open({str(path)!r}, 'a').write({name!r} + ' ')"
    return Stage(name=name, title=name, arguments=("-c", script), needs=needs)


def test_stages_run_after_what_they_need_and_only_once(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    stages = [append_stage(trace, "c", "b"), append_stage(trace, "b", "a"), append_stage(trace, "a")]
    seconds = StageRunner(tmp_path).run(stages)
    assert trace.read_text().split() == ["a", "b", "c"]
    assert StageRunner(tmp_path).run(stages) == pytest.approx(seconds, abs=0.1)
    assert trace.read_text().split() == ["a", "b", "c"]


def test_a_changed_command_runs_again_with_all_that_need_it(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    StageRunner(tmp_path).run([append_stage(trace, "a"), append_stage(trace, "b", "a"), append_stage(trace, "x")])
    trace.unlink()
    changed = Stage(name="a", title="a", arguments=(*append_stage(trace, "a").arguments, "again"))
    StageRunner(tmp_path).run([changed, append_stage(trace, "b", "a"), append_stage(trace, "x")])
    assert trace.read_text().split() == ["a", "b"]


def test_a_failing_stage_names_its_log_and_stops_the_others(tmp_path: Path) -> None:
    stages = [
        Stage(name="bad", title="the bad one", arguments=("-c", "raise SystemExit('no such corpus')")),
        Stage(name="long", title="long", arguments=("-c", "import time; time.sleep(60)")),
        append_stage(tmp_path / "trace", "after", "bad"),
    ]
    with pytest.raises(StageError, match=r"'the bad one' ended with exit code 1.*bad\.log(.|\n)*no such corpus"):
        StageRunner(tmp_path, num_cores=2).run(stages)
    assert not (tmp_path / "trace").exists()
    assert not list((tmp_path / "stages").iterdir())


def test_a_failing_recipe_is_explained_by_its_own_error_and_not_by_what_torchrun_adds(tmp_path: Path) -> None:
    script = "print('2026-01-01 INFO: x'); print('2026-01-01 ERROR: no such key'); print('x' * 20); raise SystemExit(2)"
    with pytest.raises(StageError) as caught:
        StageRunner(tmp_path).run([Stage(name="bad", title="bad", arguments=("-c", script))])
    assert str(caught.value).splitlines()[1:] == ["2026-01-01 ERROR: no such key"]


def test_without_a_terminal_each_stage_leaves_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    StageRunner(tmp_path).run([append_stage(tmp_path / "trace", "a")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"a: started, see {tmp_path / 'logs' / 'a.log'}"
    assert lines[1].startswith("a: done, ")


def test_a_long_table_shows_what_runs_and_how_much_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "8")
    monkeypatch.setenv("COLUMNS", "80")
    stages = [append_stage(tmp_path / "trace", f"stage-{i}") for i in range(9)]
    StageRunner(tmp_path).run(stages)
    table = [line for line in capsys.readouterr().out.splitlines() if ": " not in line]
    assert "9 of 9 stages done" in table[-1]
    assert sum("stage-" in line for line in table) == 5


LONG_PIPELINE = """\
import sys
from pathlib import Path
from slurm.stages import Stage, StageError, StageRunner
script = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
try:
    StageRunner(Path(sys.argv[1])).run([Stage(name="long", title="long", arguments=("-c", script, sys.argv[2]))])
except StageError as ex:
    sys.exit(str(ex))
"""


def test_a_terminated_runner_takes_its_commands_with_it_and_a_second_one_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LONG_PIPELINE, str(tmp_path)]
    first = subprocess.Popen([*command, str(tmp_path / "first")])
    try:
        while not (tmp_path / "first").exists() or not (pid := (tmp_path / "first").read_text()):
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run([*command, str(tmp_path / "second")], capture_output=True, text=True, timeout=60)
        assert second.stderr.strip() == f"another process runs stages in {tmp_path}; stop it first."
        assert second.returncode == 1
        assert not (tmp_path / "second").exists()
        assert Path("/proc", pid).exists()
    finally:
        first.terminate()
    assert first.wait(timeout=30) == 128 + signal.SIGTERM
    assert not Path("/proc", pid).exists()


def test_stages_run_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    StageRunner(tmp_path).run([append_stage(tmp_path / "trace", "a")])
    assert (tmp_path / "trace").read_text() == "a "
