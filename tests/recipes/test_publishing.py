from __future__ import annotations

import json
from pathlib import Path
from threading import Barrier, Thread

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.models import RunStep
from recipes.publishing import publish


def read_scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Return what TensorBoard shows of a folder: values by steps by tags; no step may stand twice."""
    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {}
    for tag in events.Tags()["scalars"]:
        scalars[tag] = {event.step: event.value for event in events.Scalars(tag)}
        assert len(scalars[tag]) == len(events.Scalars(tag))
    return scalars


def read_records(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_values_stand_at_the_steps_of_their_checkpoints_whatever_the_order_and_once(tmp_path: Path) -> None:
    for step, accuracy in ((40, 0.75), (9, 0.5), (40, 0.75)):
        publish(RunStep(tmp_path, step), "probe", {"phones/mine": accuracy})
    records = read_records(tmp_path / "metrics" / "probe.jsonl")
    assert [(record["Step"], record["phones/mine"]) for record in records] == [(9, 0.5), (40, 0.75)]
    assert all("Time" in record for record in records)
    assert read_scalars(tmp_path / "tb" / "probe") == {"phones/mine": {9: 0.5, 40: 0.75}}


def test_a_value_that_was_measured_anew_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for accuracy in (0.5, 0.25):
        publish(RunStep(tmp_path, 9), "probe", {"phones/mine": accuracy})
    (record,) = read_records(tmp_path / "metrics" / "probe.jsonl")
    assert record["phones/mine"] == 0.25


def test_jobs_that_publish_at_the_same_moment_lose_nothing(tmp_path: Path) -> None:
    steps = range(1, 13)
    for attempt in range(5):
        run, barrier = tmp_path / str(attempt), Barrier(len(steps))

        def work(step: int, run: Path = run, barrier: Barrier = barrier) -> None:
            barrier.wait()
            publish(RunStep(run, step), "probe", {"phones/mine": step / 16})

        threads = [Thread(target=work, args=(step,)) for step in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [record["Step"] for record in read_records(run / "metrics" / "probe.jsonl")] == list(steps)
        assert read_scalars(run / "tb" / "probe") == {"phones/mine": {step: step / 16 for step in steps}}
