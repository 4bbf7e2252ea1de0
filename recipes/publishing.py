"""What jobs measure of a run's checkpoints, beside what the run's own training measures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from fairseq2.metrics.recorders import MetricDescriptorRegistry, TensorBoardRecorder

from recipes.models import RunStep
from spear_plugin.data.files import atomic_file


def publish(checkpoint: RunStep, category: str, values: Mapping[str, float]) -> None:
    """Add what was measured of a checkpoint to its run's metrics, at the step of the checkpoint.

    ``RUN/tb/CATEGORY`` has it for TensorBoard, ``RUN/metrics/CATEGORY.jsonl`` as lines in the order of the steps, like
    those of training. Any number of jobs may do this at a time, in any order, while the run goes on: each has files of
    its own, ``RUN/metrics/CATEGORY/step_N.json`` and one of TensorBoard. Said again, values are not written again.

    Args:
        checkpoint: What was measured.
        category: A word other than those that training uses.
        values: By their names.
    """
    folder = checkpoint.folder / "metrics" / category
    path = folder / f"step_{checkpoint.step_nr}.json"
    if _read_values(path) != dict(values):
        recorder = TensorBoardRecorder(checkpoint.folder, MetricDescriptorRegistry([]))
        recorder.record_metric_values(category, values, checkpoint.step_nr)
        recorder.close()
        folder.mkdir(parents=True, exist_ok=True)
        record = {"Time": datetime.now(UTC).isoformat(), "Step": checkpoint.step_nr, **values}
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    _merge_records(folder)


def _read_values(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    record = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in record.items() if name not in ("Time", "Step")}


def _merge_records(folder: Path) -> None:
    """Write the lines of all steps to one file."""
    while True:
        lines = _collect_lines(folder)
        with atomic_file(folder.with_suffix(".jsonl")) as temporary:
            temporary.write_text(lines, encoding="utf-8")
        # Another job may have added its record, and merged, since this one looked.
        if _collect_lines(folder) == lines:
            return


def _collect_lines(folder: Path) -> str:
    paths = sorted(folder.glob("step_*.json"), key=lambda path: int(path.stem.removeprefix("step_")))
    return "".join(path.read_text(encoding="utf-8") for path in paths)
