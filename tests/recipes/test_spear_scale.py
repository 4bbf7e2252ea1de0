"""The switches of a run that change how it computes, and not what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.recipes.common import REGULARIZED_MODEL, SMALL_MODEL, PretrainRunner

SHORT_RUN = [
    "dataset.max_batch_seconds=8",
    "dataset.has_validation=false",
    "regime.num_steps=3",
    "regime.validate_every_n_steps=null",
    "regime.score_metric=null",
    "regime.checkpoint_every_n_steps=3",
    "regime.publish_metrics_every_n_steps=1",
    "common.metric_recorders.tensorboard.enabled=false",
]


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> PretrainRunner:
    return PretrainRunner(tmp_path, SHORT_RUN, monkeypatch, capsys, splits=("train",))


def test_activation_checkpointing_gives_the_same_bits(runner: PretrainRunner) -> None:
    # With everything random, which the second forward pass has to draw again alike.
    assert runner(REGULARIZED_MODEL) == (0, [])
    assert runner(REGULARIZED_MODEL, "trainer.activation_checkpointing.mode=layerwise", run="layerwise") == (0, [])
    expected, weights = runner.load_weights(3), runner.load_weights(3, run="layerwise")
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


@pytest.mark.slow  # loading the compiler and tracing is
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_layers_give_the_same_losses(runner: PretrainRunner) -> None:
    # Two steps, of two shapes: tracing takes the time.
    short = [REGULARIZED_MODEL, "regime.num_steps=2", "regime.checkpoint_every_n_steps=2"]
    assert runner(*short) == (0, [])
    # Traced and differentiated as for a GPU, without the time that generating code takes.
    options = ["model.compile=true", "model.compile_options.backend=aot_eager"]
    assert runner(*short, *options, run="compiled") == (0, [])
    expected, actual = runner.read_steps(), runner.read_steps(run="compiled")
    for step in expected:
        assert actual[step]["Loss"] == pytest.approx(expected[step]["Loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("optimizer={name: scaled_adam, config: {lr: 0.02}}", "`optimizer.name` must not be scaled_adam"),
        ("running_average.every_n_steps=2", "`running_average.every_n_steps` must not be set"),
        ("trainer.fsdp.version=v1", "`trainer.fsdp.version` must be v2"),
        ("trainer.mixed_precision.mode=static", "`trainer.mixed_precision.mode` must be auto or off"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_one_line(runner: PretrainRunner, option: str, named: str) -> None:
    code, lines = runner(SMALL_MODEL, "trainer.data_parallelism=fsdp", option)
    assert (code, len(lines)) == (2, 1)
    assert named in lines[0]
