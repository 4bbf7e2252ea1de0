from __future__ import annotations

from typing import Any

import pytest

from spear_plugin.optim import EdenLRConfig, ScaledAdamConfig, ScaledAdamGroupConfig


def test_the_defaults_are_valid() -> None:
    for config in (ScaledAdamConfig(), ScaledAdamGroupConfig(), EdenLRConfig()):
        assert not config.validate().has_error()
    assert not ScaledAdamConfig(clipping_scale=None).validate().has_error()
    assert not ScaledAdamGroupConfig(clipping_scale=None).validate().has_error()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "`lr` must be positive, but is 0.0 instead."),
        ({"lr": float("nan")}, "`lr` must be positive, but is nan instead."),
        ({"eps": -1e-8}, "`eps` must be positive, but is -1e-08 instead."),
        ({"clipping_scale": 0.0}, "`clipping_scale` must be positive, but is 0.0 instead."),
        ({"param_min_rms": 0.0}, "`param_min_rms` must be positive, but is 0.0 instead."),
        ({"scalar_max": -1.0}, "`scalar_max` must be positive, but is -1.0 instead."),
        ({"scalar_lr_scale": -1.0}, "`scalar_lr_scale` must be at least 0, but is -1.0 instead."),
        ({"betas": (0.9, 1.0)}, "`betas` must be two numbers in [0, 1), but is (0.9, 1.0) instead."),
        (
            {"param_max_rms": 1e-6},
            "`param_max_rms` must be above `param_min_rms` (1e-05), but is 1e-06 instead.",
        ),
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    assert list(ScaledAdamConfig(**options).validate().errors) == [message]
    assert list(ScaledAdamGroupConfig(**options).validate().errors) == [message]


@pytest.mark.parametrize("name", ["clipping_update_period", "size_update_period"])
def test_a_period_below_one_is_named(name: str) -> None:
    config = ScaledAdamConfig()
    setattr(config, name, 0)
    assert list(config.validate().errors) == [f"`{name}` must be at least 1, but is 0 instead."]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay_steps": 0.0}, "`decay_steps` must be positive, but is 0.0 instead."),
        ({"decay_hours": -1.0}, "`decay_hours` must be positive, but is -1.0 instead."),
        ({"batch_seconds": 0.0}, "`batch_seconds` must be positive, but is 0.0 instead."),
        ({"num_warmup_steps": -1}, "`num_warmup_steps` must be at least 0, but is -1 instead."),
        ({"warmup_start": 1.5}, "`warmup_start` must be in [0, 1], but is 1.5 instead."),
    ],
)
def test_a_value_of_the_schedule_out_of_range_is_named(options: dict[str, Any], message: str) -> None:
    assert list(EdenLRConfig(**options).validate().errors) == [message]
