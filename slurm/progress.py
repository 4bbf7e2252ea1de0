"""How far a pipeline is: read from the files that its stages leave, so that it can be asked from anywhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, final

import yaml
from rich.table import Table

from slurm.plan import Plan, PlannedStage
from slurm.run import JobRecord, job_state, member_mark, member_names
from slurm.stages import last_lines

_SHOWN_METRICS: Final = ("Loss", "Masked Accuracy")
_TAIL_BYTES: Final = 65536


@final
@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """A line of the status."""

    name: str

    state: str
    """done, started, failed or not started; with Slurm, its own word."""

    step: int | None = None

    num_steps: int | None = None

    steps_per_second: float | None = None

    metrics: str = ""

    log: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the present rate."""
        if self.step is None or self.num_steps is None or not self.steps_per_second:
            return None
        return (self.num_steps - self.step) / self.steps_per_second


def stage_status(plan: Plan, stage: PlannedStage, *, is_local: bool) -> StageStatus:
    """Return how far a stage is."""
    marks = [member_mark(plan, stage, i, is_local=is_local) for i in range(len(stage.commands))]
    num_done = sum(mark.read() is not None for mark in marks)
    log, state = _find_state(plan, stage, is_local)
    if num_done == len(marks):
        state = "done"
    elif len(marks) > 1:
        state = f"{state} ({num_done} of {len(marks)} done)"
    records = _last_records(stage.folder / "metrics" / "train.jsonl", 2)
    last = records[-1] if records else {}
    valid = _last_records(stage.folder / "metrics" / "valid.jsonl", 1)
    shown = [
        f"{name} {record[name]:.4g}" for record in (valid or records)[-1:] for name in _SHOWN_METRICS if name in record
    ]
    return StageStatus(
        name=f"{stage.stage} {stage.label}".strip(),
        state=state,
        step=last.get("Step"),
        num_steps=planned_steps(stage.folder),
        steps_per_second=_rate(records) if state != "done" else None,
        metrics=", ".join(shown),
        log=log,
    )


def status_table(statuses: Sequence[StageStatus]) -> Table:
    """Return the status for a terminal; logs are named where they may tell something new, from here."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "state", "step", "steps/s", "left", "last metrics", "log"):
        table.add_column(heading, overflow="fold")
    for s in statuses:
        step = "" if s.step is None else f"{s.step}" + (f"/{s.num_steps}" if s.num_steps else "")
        rate = f"{s.steps_per_second:.2f}" if s.steps_per_second else ""
        left = format_seconds(s.seconds_left) if s.seconds_left is not None else ""
        table.add_row(s.name, s.state, step, rate, left, s.metrics, "" if s.state == "done" else _from_here(s.log))
    return table


def _from_here(path: str) -> str:
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if path and Path(path).is_relative_to(here) else path


def format_seconds(seconds: float) -> str:
    """Return a time as people say it, such as 2 h 05 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _find_state(plan: Plan, stage: PlannedStage, is_local: bool) -> tuple[str, str]:
    if is_local:
        log = plan.out / "logs" / f"{member_names(stage)[0]}.log"
        if not log.exists():
            return "", "not started"
        return str(log), "failed" if " ERROR: " in last_lines(log, 20) else "started"
    record = JobRecord(plan.out, stage.name, stage.commands).read()
    if record is None:
        return "", "not submitted"
    return str(record["logs"][0]), job_state(record["job"]).lower()


def _rate(records: list[dict[str, Any]]) -> float | None:
    if len(records) < 2:
        return None
    first, last = records
    seconds = (datetime.fromisoformat(last["Time"]) - datetime.fromisoformat(first["Time"])).total_seconds()
    return (last["Step"] - first["Step"]) / seconds if seconds > 0 else None


def planned_steps(run: Path) -> int | None:
    """Return the last step of a training run by its configuration, or None if it is not known."""
    try:
        num_steps = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["regime"]["num_steps"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        return None
    return num_steps if isinstance(num_steps, int) else None


def _last_records(path: Path, count: int) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    records = []
    for line in lines[-count - 1 :]:
        try:
            records.append(json.loads(line))
        except ValueError:  # the last one may be cut off by a kill
            continue
    return records[-count:]
