from __future__ import annotations

import json
from pathlib import Path

import pytest

from slurm.files import LaunchError
from slurm.pipeline import main
from slurm.plan import Plan, read_plan
from slurm.progress import format_seconds, stage_status
from slurm.results import estimate
from slurm.sweep import label_of, read_sweep

PIPELINE = """\
out: {out}
values: {{codebooks: 2, alpha: 0.5, kind: one, text_one: "[${{alpha}}, ${{codebooks}}]", text_two: "none"}}
resources: {{time: 10}}
stages:
  probe:
    module: tests.slurm.program
    needs: [train]
    options: [ok, "${{train}}"]
  train:
    module: tests.slurm.program
    needs: [quantizer]
    options: [ok, "--alpha=${{text_${{kind}}}}", "${{seed}}", "${{quantizer}}/q", "${{out}}"]
    resources: {{tasks_per_node: 2}}
  quantizer:
    module: tests.slurm.program
    options: [ok]
    config: {{n: "${{codebooks}}", nested: {{a: true, b: null}}}}
sweep:
  cells:
    base: {{}}
    books: {{codebooks: [1, 2]}}
    two: {{kind: two}}
  repeat: {{seed: [1, 2, 3]}}
table:
  - {{name: Loss, stage: train, file: metrics/valid.jsonl, key: Loss}}
  - {{name: events, stage: probe, file: probe.json, key: results/task=events/source=spear/accuracy}}
"""


def write_pipeline(tmp_path: Path, text: str = PIPELINE) -> Path:
    path = tmp_path / "pipeline.yaml"
    path.write_text(text.format(out=tmp_path / "out"))
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return read_plan(write_pipeline(tmp_path))


def test_each_stage_is_planned_once_for_each_combination_that_it_depends_on(plan: Plan) -> None:
    names = [stage.name for stage in plan.stages]
    assert [name for name in names if name.startswith("quantizer")] == [
        "quantizer.codebooks-2",
        "quantizer.codebooks-1",
    ]
    # `base` and `books 2` are the same run; `two` does not mention alpha, but its quantizer has codebooks.
    trainings = [name for name in names if name.startswith("train")]
    assert len(trainings) == 9
    assert "train.codebooks-2__kind-two__seed-3" in trainings
    assert len([name for name in names if name.startswith("probe")]) == 9
    assert list(plan.cells) == ["base", "books codebooks=1", "books codebooks=2", "two"]
    assert plan.cells["base"] == plan.cells["books codebooks=2"]


def test_commands_have_the_values_and_folders_of_their_combination(plan: Plan) -> None:
    by_name = {stage.name: stage for stage in plan.stages}
    training = by_name["train.codebooks-1__kind-one__seed-2"]
    quantizer = by_name["quantizer.codebooks-1"]
    assert training.needs == (quantizer.name,)
    assert training.folder == plan.out / "train" / "codebooks-1__kind-one__seed-2"
    assert training.commands == (
        (
            *("-m", "tests.slurm.program", str(training.folder), "ok", "--alpha=[0.5, 1]", "2"),
            *(f"{quantizer.folder}/q", str(training.folder)),
        ),
    )
    assert quantizer.commands[0][-3:] == ("--config", "n=1", "nested={a: true, b: null}")
    assert training.resources.time == "10"
    assert training.resources.num_tasks == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("needs: [train]", "needs: [trian]", "stage `probe`: `needs` names `trian`, but the stages are "),
        ("out: {out}", "output: {out}", "`output` is unknown; there are out, "),
        ("out: {out}", "out:", "`out` must be set to a folder, here or by `--out`."),
        ("${{seed}}", "${{sead}}", "stage `train`: there is no value `sead` here, only "),
        ("options: [ok]\n", "option: [ok]\n", "stage `quantizer`: `option` is unknown; there are title, module, "),
        ('text_two: "none"', 'text_two: "${{text_two}}"', "stage `train`: a value contains itself: "),
        ("tasks_per_node: 2", "tasks: 2", "stage `train`: `resources`: `tasks` is unknown; there are nodes, "),
        (
            "repeat: {{seed: [1, 2, 3]}}",
            "repeat: {{seed: 1}}",
            "`sweep.repeat.seed` must be a list of values, but is 1.",
        ),
        ("base: {{}}", "base: 3", "`sweep.cells.base` must map names to values, but is 3."),
        ("module: tests.slurm.program\n    needs: [train]", "needs: [train]", "stage `probe`: `module` must be set"),
        ("options: [ok]\n", "needs: [probe]\n", "stages need each other in a circle: "),
    ],
)
def test_a_mistake_is_told_in_one_line_with_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PIPELINE
    path = write_pipeline(tmp_path, PIPELINE.replace(old, new))
    with pytest.raises(LaunchError) as caught:
        read_plan(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_and_folder_can_be_given_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pipeline(tmp_path)
    assert main(["run", str(path), "--dry-run", "--only", "train", "--set", "alpha=0.75", "--out", "/elsewhere"]) == 0
    output = capsys.readouterr().out
    assert "'--alpha=[0.75, 2]'" in output
    assert "/elsewhere/train/codebooks-2__kind-one__seed-1" in output
    assert "probe" not in output
    assert main(["run", str(path), "--dry-run", "--only", "tarin"]) == 2
    assert "there is no stage `tarin`, only " in capsys.readouterr().err


def test_labels_are_readable_and_differ_where_values_do() -> None:
    assert label_of({"seed": 1, "alpha": 0.5}) == "alpha-0.5__seed-1"
    assert label_of({"x": "a b"}) != label_of({"x": "a/b"})
    assert "/" not in label_of({"x": "a/b"})
    assert len(label_of({"x": "a" * 1000})) < 255


def test_an_interval_is_students() -> None:
    # R: t.test(c(1, 2, 4))$conf.int is -1.461 to 6.128
    result = estimate([1.0, 2.0, 4.0])
    assert result is not None
    assert result.mean - (result.half_width or 0.0) == pytest.approx(-1.4612, abs=1e-3)
    assert result.mean + (result.half_width or 0.0) == pytest.approx(6.1279, abs=1e-3)
    assert str(estimate([0.25])) == "0.25"
    assert estimate([]) is None


def test_a_cell_that_is_called_like_its_value_is_not_named_twice() -> None:
    sweep = read_sweep({"cells": {"alpha": {"alpha": [0, 1]}, "more alpha": {"alpha": [2]}}}, "file")
    assert [cell.name for cell in sweep.cells] == ["alpha=0", "alpha=1", "more alpha alpha=2"]


def test_a_table_has_a_row_for_each_cell_and_leaves_out_what_is_not_there(
    tmp_path: Path, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = {"codebooks-2__kind-one": {1: 1.0, 2: 2.0, 3: 4.0}, "codebooks-2__kind-two": {1: 1.5, 3: 5.5}}
    for (name, seed), loss in {(name, seed): loss for name, of in losses.items() for seed, loss in of.items()}.items():
        run = plan.out / "train" / f"{name}__seed-{seed}"
        (run / "metrics").mkdir(parents=True)
        (run / "metrics" / "valid.jsonl").write_text(f'{{"Loss": 9.0}}\n{{"Loss": {loss}}}\n')
    probe = plan.out / "probe" / "codebooks-1__kind-one__seed-1"
    probe.mkdir(parents=True)
    results = [{"task": task, "source": "spear", "accuracy": i} for i, task in enumerate(("phones", "events"))]
    (probe / "probe.json").write_text(json.dumps({"results": results}))

    assert main(["table", str(write_pipeline(tmp_path))]) == 0
    lines = (plan.out / "table.md").read_text().splitlines()
    assert lines[0] == "mean ± half of the 95 % interval"
    assert lines[2] == "| cell | Loss | events |"
    assert lines[4:8] == [
        "| base | 2.333 ± 3.8 |  |",
        "| books codebooks=1 |  | 1 |",
        "| books codebooks=2 | 2.333 ± 3.8 |  |",
        "| two | 3.5 ± 25 |  |",
    ]
    assert lines[9] == "difference to base, paired, ± half of the 95 % interval"
    # seeds 1 and 3 are there in both: 0.5 and 1.5 more
    assert lines[13:] == ["| books codebooks=1 |  |  |", "| books codebooks=2 | 0 ± 0 |  |", "| two | 1 ± 6.4 |  |"]
    rows = [line.split("\t") for line in (plan.out / "table.tsv").read_text().splitlines()]
    assert len({len(row) for row in rows}) == 1
    records = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert records["base"]["Loss: runs"] == "3"
    assert records["base"]["Loss: difference to base"] == records["base"]["events"] == ""
    assert float(records["base"]["Loss"]) == pytest.approx(7 / 3)
    assert float(records["two"]["Loss: difference to base"]) == 1.0
    assert records["two"]["Loss: pairs"] == "2"
    shown = capsys.readouterr().out
    assert "2.333 ± 3.8" in shown
    assert "1 ± 6.4" in shown

    (probe / "probe.json").write_text("{}")
    assert main(["table", str(write_pipeline(tmp_path))]) == 2
    assert "has no `results/task=events/source=spear/accuracy` (looked for `results`)." in capsys.readouterr().err


def test_the_status_tells_step_rate_and_time_left(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = next(stage for stage in plan.stages if stage.stage == "train")
    assert stage_status(plan, stage, is_local=True).state == "not started"
    (stage.folder / "metrics").mkdir(parents=True)
    records = [{"Time": f"2026-01-01T00:00:{10 * i:02d}+00:00", "Step": 50 * i, "Loss": 5.0 - i} for i in range(1, 4)]
    (stage.folder / "metrics" / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"Ti')
    (stage.folder / "config.yaml").write_text("regime: {num_steps: 1150}\n")
    log = plan.out / "logs" / f"{stage.name}.log"
    log.parent.mkdir()
    log.write_text("going on\n")
    status = stage_status(plan, stage, is_local=True)
    assert (status.state, status.step, status.num_steps, status.steps_per_second) == ("started", 150, 1150, 5.0)
    assert status.seconds_left == 200.0
    assert (status.metrics, status.log) == ("Loss 2", str(log))
    assert status.name == "train seed=1"
    capsys.readouterr()
    assert main(["status", str(write_pipeline(tmp_path))]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train seed=1")]
    assert line.endswith(str(log))
    assert [format_seconds(s) for s in (7, 200, 7500)] == ["7 s", "3 min 20 s", "2 h 05 min"]


def test_an_instance_is_labelled_by_what_is_special_about_it(plan: Plan) -> None:
    assert [stage.label for stage in plan.stages if stage.stage == "quantizer"] == ["", "codebooks=1"]
    labels = [stage.label for stage in plan.stages if stage.stage == "probe"]
    assert labels[::3] == ["seed=1", "codebooks=1, seed=1", "kind=two, seed=1"]


def test_a_pipeline_runs_here_and_is_not_run_twice(tmp_path: Path) -> None:
    text = """\
out: {out}
stages:
  parts:
    module: tests.slurm.program
    array: 2
    arguments: ["${{out}}/${{array_index}}-of-${{array_size}}"]
    options: [ok]
  whole: {{module: tests.slurm.program, needs: [parts], options: [ok]}}
"""
    path = write_pipeline(tmp_path, text)
    for _ in range(2):
        assert main(["run", str(path)]) == 0
    plan = read_plan(path)
    assert sorted(p.relative_to(plan.out).as_posix() for p in plan.out.rglob("rank-0-start-*")) == [
        "parts/0-of-2/rank-0-start-0",
        "parts/1-of-2/rank-0-start-0",
        "whole/rank-0-start-0",
    ]
    assert {stage_status(plan, stage, is_local=True).state for stage in plan.stages} == {"done"}
