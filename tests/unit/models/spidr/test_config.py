from __future__ import annotations

from typing import Any

import pytest
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from spear_plugin.models.spidr import (
    EmaConfig,
    FeatureExtractorConfig,
    OnlineCodebookConfig,
    SpanMaskingConfig,
    SpidrConfig,
    SpidrEncoderConfig,
)

PARTS = {
    "feature_extractor": FeatureExtractorConfig,
    "encoder": SpidrEncoderConfig,
    "codebook": OnlineCodebookConfig,
    "ema": EmaConfig,
    "masking": SpanMaskingConfig,
}


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("feature_extractor", {"channels": [512]}, "1 `channels`, 7 `kernel_sizes`, 7 `strides`"),
        ("feature_extractor", {"channels": [], "kernel_sizes": [], "strides": []}, "at least one, but there are 0"),
        ("feature_extractor", {"strides": [5, 2, 2, 2, 2, 2, 0]}, "`strides` must be at least 1, but are [5, 2"),
        ("encoder", {"num_layers": 0}, "`num_layers` must be at least 1, but is 0"),
        ("encoder", {"num_heads": 7}, "`dim` must be a multiple of `num_heads` (7), but is 768"),
        ("encoder", {"pos_conv_groups": 5}, "`dim` must be a multiple of `pos_conv_groups` (5), but is 768"),
        ("encoder", {"layer_drop": 1.0}, "`layer_drop` must be in [0, 1), but is 1.0"),
        ("codebook", {"num_codebooks": 0}, "`num_codebooks` must be at least 1, but is 0"),
        ("codebook", {"num_codebooks": 13}, "at most `encoder.num_layers` (12), but is 13"),
        ("codebook", {"codebook_size": 1}, "`codebook_size` must be at least 2, but is 1"),
        ("codebook", {"initial_scale": 0.0}, "`initial_scale` must be positive, but is 0.0"),
        ("codebook", {"decay": -0.1}, "`decay` must be at least 0, but is -0.1"),
        ("ema", {"start_decay": 1.1}, "`start_decay` must be in [0, 1], but is 1.1"),
        ("ema", {"timescale": 0.0}, "`timescale` must be positive, but is 0.0"),
        ("ema", {"final_step": 0}, "`final_step` must be at least 1, but is 0"),
        ("masking", {"probability": 1.5}, "`probability` must be in [0, 1], but is 1.5"),
        ("masking", {"visible_share": -0.1}, "`visible_share` must be in [0, 1], but is -0.1"),
        ("masking", {"span": 0}, "`span` must be at least 1, but is 0"),
        ("masking", {"law": "uniform", "spread": 21.0}, "`spread` must be at most twice `span`, but is 21.0"),
    ],
)
def test_a_wrong_value_is_refused_with_the_rule_and_the_value(part: str, change: dict[str, Any], message: str) -> None:
    config = SpidrConfig(**{part: PARTS[part](**change)})
    with pytest.raises(ValidationError) as info:
        StandardObjectValidator().validate(config)
    assert message in str(info.value)


def test_a_negative_freezing_step_is_refused() -> None:
    with pytest.raises(ValidationError, match="`freeze_step` must be at least 0, but is -1"):
        StandardObjectValidator().validate(SpidrConfig(freeze_step=-1))
