"""Which instances of a stage become one array of Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.plan import PlannedStage
from slurm.resources import Resources
from slurm.run import arrays_of


def make(name: str) -> PlannedStage:
    return PlannedStage(
        stage=name[:5], name=name, title=name, label="", folder=Path(name), commands=(("-m", "x"),), needs=(),
        resources=Resources(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([(), ()], [(None, 2)]),
        ([("7",), ("7",)], [("afterok:7", 2)]),
        ([("7_3",), ("7_3",)], [("afterok:7_3", 2)]),
        ([("7_0",), ("7_1",)], [("aftercorr:7", 2)]),
        ([("5", "7_0"), ("5", "7_1")], [("afterok:5,aftercorr:7", 2)]),
        ([("7_0", "8_0"), ("7_1", "8_1")], [("aftercorr:7,aftercorr:8", 2)]),
        ([("7_1",), ("7_0",)], [("afterok:7_1", 1), ("afterok:7_0", 1)]),
        ([("7_0", "8_1"), ("7_0", "8_1"), ("7_1", "8_2")], [("afterok:7_0:8_1", 2), ("afterok:7_1:8_2", 1)]),
        ([("7",), ()], [("afterok:7", 1), (None, 1)]),
        ([("7_0",)], [("afterok:7_0", 1)]),
    ],
    ids=str,
)
def test_instances_that_wait_alike_are_one_array(
    jobs: list[tuple[str, ...]], expected: list[tuple[str | None, int]]
) -> None:
    stages = [make(f"train.{number}") for number in range(len(jobs))]
    arrays = list(arrays_of(list(zip(stages, jobs, strict=True))))
    assert [(dependency, len(members)) for dependency, members in arrays] == expected
    assert [stage.name for _, members in arrays for stage in members] == [stage.name for stage in stages]
