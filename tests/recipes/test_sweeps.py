"""The sweep of SPEAR's ablations: what it would run, and a small one that does."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

from recipes.asr.evaluate.config import AsrEvaluateConfig
from recipes.asr.finetune.config import AsrFinetuneConfig
from recipes.asr.tokenizer.config import TokenizerConfig
from recipes.encoders import EncoderSection
from recipes.spear.pretrain.config import SpearPretrainConfig
from recipes.tagging.finetune.config import TaggingFinetuneConfig
from slurm.pipeline import main
from slurm.plan import read_plan
from tests.recipes.common import SMALL_ZIPFORMER, TINY_DEMO, write_test_codes

ABLATIONS = Path("recipes/sweeps/ablations.yaml")
DOWNSTREAM = Path("recipes/sweeps/downstream.yaml")


def test_the_ablations_train_what_they_share_once() -> None:
    plan = read_plan(ABLATIONS)
    assert Counter(stage.stage for stage in plan.stages) == {
        "corpora": 1,
        "mixed_events": 1,
        "mixed_phones": 1,
        "quantizer_speech": 6,
        "quantizer_audio": 6,
        "codes_speech": 6,
        "codes_audio": 7,  # once more for the joint loss, which needs codes of speech too
        "pretraining": 36,
        "probes": 36,
    }
    assert len(plan.cells) == 12
    assert {len(runs) for runs in plan.cells.values()} == {3}


def test_the_ablations_commands_set_keys_that_there_are() -> None:
    known = set(vars(SpearPretrainConfig()))
    for stage in read_plan(ABLATIONS).stages:
        (command,) = stage.commands
        settings = (
            dict(text.split("=", 1) for text in command[command.index("--config") + 1 :])
            if "--config" in command
            else {}
        )
        for key, value in settings.items():
            parsed = yaml.safe_load(value)
            if stage.stage == "pretraining":
                assert key.split(".")[0] in known
            if key.endswith("target_streams"):
                weights = {stream["name"]: stream["weights"] for stream in parsed}
                assert ("speech" in weights["audio"]) == ("loss-joint" in stage.name)
                assert ("audio" in weights["speech"]) == ("loss-disjoint" not in stage.name)
            if key.endswith("overrides.train"):
                assert ("audio" in parsed[0]["codes"]) == ("loss-joint" in stage.name)
                assert "audio" in parsed[1]["codes"]


def test_the_downstream_sweep_compares_four_starts_on_the_same_splits_with_three_seeds() -> None:
    plan = read_plan(DOWNSTREAM)
    counts = {"prompts": 1, "events": 1, "tokenizer": 1, "asr": 12, "asr_test": 12, "tagging": 12}
    assert Counter(stage.stage for stage in plan.stages) == counts
    assert {len(runs) for runs in plan.cells.values()} == {3}
    configs: dict[str, type[object]] = {
        "tokenizer": TokenizerConfig,
        "asr": AsrFinetuneConfig,
        "asr_test": AsrEvaluateConfig,
        "tagging": TaggingFinetuneConfig,
    }
    encoders = set()
    for stage in plan.stages:
        (command,) = stage.commands
        settings = dict(text.split("=", 1) for text in command[command.index("--config") + 1 :]) if stage.needs else {}
        for key, value in settings.items():
            assert key.split(".")[0] in vars(configs[stage.stage]())
            parsed = yaml.safe_load(value)
            if key == "encoder":
                assert EncoderSection(**parsed).validate().has_error() is False
                encoders.add(value)
            if key.endswith("overrides.train"):
                assert not any(Path(corpus["manifest"]).name == "test.tsv" for corpus in parsed)
    assert len(encoders) == 4


SMALL_SWEEP = """\
out: {out}
stages:
  shared: {{module: tests.slurm.program, options: [ok]}}
  pretraining:
    module: recipes.spear.pretrain
    needs: [shared]
    config_file: {config_file}
    config:
      model.config_overrides.zipformer: "{{{zipformer}}}"
      model.config_overrides.alpha: "${{alpha}}"
      dataset.config_overrides.train: "{corpora}"
      dataset.config_overrides.valid: "{corpora}"
      dataset.max_batch_seconds: 15
      regime: {{num_steps: 2, validate_every_n_steps: 2, checkpoint_every_n_steps: 2, publish_metrics_every_n_steps: 1}}
      common.seed: "${{seed}}"
sweep: {{cells: {{masked: {{alpha: 1.0}}}}, repeat: {{seed: [1, 2]}}}}
table: [{{name: loss, stage: pretraining, file: metrics/valid.jsonl, key: Loss}}]
"""


@pytest.mark.slow
def test_a_small_sweep_runs_and_has_a_table(tmp_path: Path) -> None:
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    corpora = write_test_codes(tmp_path / "codes")
    file.write_text(SMALL_SWEEP.format(out=out, config_file=TINY_DEMO, zipformer=SMALL_ZIPFORMER, corpora=corpora))
    assert main(["run", str(file), "--cores", "2"]) == 0
    assert len(list((out / "shared").glob("rank-0-start-*"))) == 1
    cell, mean, half_width, count, *difference = (out / "table.tsv").read_text().splitlines()[1].split("\t")
    assert (cell, count, difference) == ("masked", "2", ["", "", "0"])
    assert 0.0 < float(mean) < 15.0
    assert float(half_width) > 0.0
