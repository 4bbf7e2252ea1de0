"""Whole pieces of work on a Slurm of two nodes: quantizers to probes, and probes beside a training."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from fairseq2.recipe.run import run

from recipes.mvq.encode.config import EncodeCorpusSection, MvqEncodeConfig
from recipes.mvq.encode.recipe import MvqEncodeRecipe
from recipes.targets import QuantizerSection
from spear_plugin.teachers import TeacherConfig
from tests.common import DATA_FOLDER
from tests.recipes.common import SMALL_ZIPFORMER, TINY_DEMO, write_test_codes
from tests.recipes.test_beside import OPTIONS, check_published, watch_command, write_events
from tests.recipes.test_parts import read_store
from tests.slurm.cluster import SlurmCluster
from tests.slurm.jobs import (
    NUM_STEPS,
    PATIENCE,
    job_state,
    last_step,
    launch,
    launch_training,
    load_weights,
    read_log,
    run_pipeline,
    wait_for_state,
    wait_until,
)

MANIFEST = DATA_FOLDER / "speech.tsv"
NUM_PARTS = 4

PIPELINE = """\
out: {out}
resources: {{time: 30}}
stages:
  quantizer:
    module: recipes.mvq.train
    config:
      teacher.name: log_mel
      corpus: {{manifest: {manifest}, max_frames: 300, max_frames_per_file: 80}}
      quantizer: {{num_codebooks: 2, compare_num_codebooks: []}}
      training: {{phase_one_steps: 4, phase_two_steps: 4, batch_frames: 32}}
  codes:
    module: tests.slurm.slow_encode
    needs: [quantizer]
    array: {num_parts}
    config:
      corpus.part: "${{array_index}}/${{array_size}}"
      teacher.name: log_mel
      quantizer.path: "${{quantizer}}/quantizer"
      corpus.manifest: {manifest}
      corpus.rows_per_shard: 2
  pretraining:
    module: recipes.spear.pretrain
    needs: [codes]
    config_file: {config_file}
    config:
      model.config_overrides.zipformer: "{{{zipformer}}}"
      model.config_overrides.target_streams: >-
        [{{name: speech, num_codebooks: 2, frame_rate_hz: 50.0, weights: {{speech: 1.0}}}}]
      dataset.config_overrides.train: "[{{name: speech, manifest: {manifest}, codes: {{speech: ${{codes}}}}}}]"
      dataset.has_validation: false
      dataset.max_batch_seconds: 8
      regime: {{num_steps: 4, checkpoint_every_n_steps: 2, publish_metrics_every_n_steps: 2}}
    resources: {{nodes: 2}}
  average:
    module: recipes.spear.average
    needs: [pretraining]
    config: {{run: "${{pretraining}}", last_n: 2}}
  probes:
    module: recipes.probe
    needs: [average]
    config:
      features: "[{{name: mine, checkpoint: ${{average}}}}]"
      tasks: "[{task}]"
      probe: {{l2_grid: [0.01], max_iterations: 5}}
"""


def wait_for_stage(out: Path, name: str) -> None:
    wait_until((out / "stages" / f"{name}.done").exists, f"end of {name}")


def kill_part(part: str) -> None:
    """Kill the recipe's process that makes a part."""
    (process,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"corpus.part={part}".encode() in path.read_bytes().split(b"\0")
    ]
    os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_a_pipeline_from_quantizer_to_probe_survives_the_death_of_a_member_of_its_encoding_array(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    file, out, task = tmp_path / "pipeline.yaml", tmp_path / "out", write_events(tmp_path / "events")
    values = {"manifest": MANIFEST, "config_file": TINY_DEMO, "zipformer": SMALL_ZIPFORMER, "task": task}
    file.write_text(PIPELINE.format(out=out, num_parts=NUM_PARTS, **values))
    stages = re.findall(r"job \d+: (\w+)", run_pipeline(file, "run"))
    assert stages == ["quantizer", "codes", "pretraining", "average", "probes"]

    # Member 1 has one of its shards, and is killed before it has the others, 5 and 9.
    wait_for_stage(out, "quantizer")
    wait_until((out / "codes" / "shard-00001.arrow").exists, "shard of member 1")
    kill_part(f"1/{NUM_PARTS}")
    assert not (out / "codes" / "shard-00009.arrow").exists()
    for member in range(NUM_PARTS):
        wait_for_stage(out, f"codes.{member}")
    assert len(list((out / "logs" / "slurm").glob("code-*.json"))) == 1
    logs = "".join(path.read_text() for path in (out / "logs" / "slurm").glob("*/*_log.out"))
    assert logs.count("ended with code -9; restart 1 of 3") == 1
    assert logs.count("codes of 25 of 25 files") == 1  # completed once

    config = MvqEncodeConfig(
        teacher=TeacherConfig(name="log_mel"),
        quantizer=QuantizerSection(path=str(out / "quantizer" / "quantizer")),
        corpus=EncodeCorpusSection(manifest=MANIFEST, rows_per_shard=2),
    )
    run(MvqEncodeRecipe(), config, tmp_path / "alone", no_rich=True)
    expected = read_store(tmp_path / "alone")
    assert len([name for name in expected if name.endswith(".arrow")]) == 13
    assert read_store(out / "codes") == expected

    wait_for_stage(out, "probes")
    results = json.loads((out / "probes" / "probe.json").read_text())["results"]
    assert {result["source"] for result in results} == {"mine", "mine_untrained", "log_mel"}
    assert re.findall(r"^(\w+) +done", run_pipeline(file, "status"), re.MULTILINE) == stages
    assert run_pipeline(file, "run") == ""


@pytest.mark.slow
def test_a_training_that_reaches_its_time_limit_ends_with_the_weights_of_an_uninterrupted_one(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    corpora = write_test_codes(tmp_path / "codes")
    whole, run = tmp_path / "whole", tmp_path / "run"
    jobs = [launch_training(run, corpora, module="tests.slurm.slow_pretrain"), launch_training(whole, corpora)]
    wait_until(lambda: last_step(run) > 0, "first checkpoint")

    # A minute is the shortest limit, and the signal comes two minutes before: a limit that is near now is one as good.
    run_time = re.search(r"RunTime=(\d+):(\d+):(\d+)", cluster.run("scontrol", "show", "job", jobs[0]))
    assert run_time is not None
    cluster.run("scontrol", "update", f"JobId={jobs[0]}", f"TimeLimit={60 * int(run_time[1]) + int(run_time[2]) + 2}")
    wait_until(lambda: "Requeued job" in read_log(run), "requeue at the time limit")
    cluster.run("scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=30")
    (step,) = re.findall(r"Stopping training at step (\d+)", read_log(run))
    assert 0 < int(step) < NUM_STEPS

    wait_until(lambda: {job_state(cluster, job) for job in jobs} == {"COMPLETED"}, "end of both runs")
    assert re.findall(r"Resuming from step (\d+)", (run / "logs" / "rank_0.log").read_text()) == [step]
    expected, actual = load_weights(whole), load_weights(run)
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []


@pytest.mark.slow
def test_jobs_beside_a_training_probe_each_of_its_checkpoints(cluster: SlurmCluster, tmp_path: Path) -> None:
    run, task, corpora = tmp_path / "run", write_events(tmp_path / "events"), write_test_codes(tmp_path / "codes")
    recipe = [
        "--no-rich",
        "--config-file",
        TINY_DEMO,
        "--config",
        f"dataset.config_overrides.train={corpora}",
        *OPTIONS,
    ]
    training = launch("recipes.spear.pretrain", str(run), "--time", "30", "--", *recipe)
    command = watch_command(run, task, "--jobs", "2", "--time", "30")
    watcher = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert watcher.returncode == 0, watcher.stdout + watcher.stderr
    assert watcher.stdout.endswith("2 checkpoints done.\n")
    wait_for_state(cluster, training, "COMPLETED")
    check_published(run)

    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert again.stdout.count("is done already") == 2
    assert "job" not in again.stdout
