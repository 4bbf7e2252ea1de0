from __future__ import annotations

from typing import Any

import pytest
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from spear_plugin.models.spear import (
    MaskingConfig,
    SpearConfig,
    TargetStreamConfig,
    num_output_frames,
    output_frame_rate_hz,
)
from spear_plugin.models.zipformer import ZipformerConfig


def error_of(config: SpearConfig) -> str:
    with pytest.raises(ValidationError) as info:
        StandardObjectValidator().validate(config)
    return str(info.value)


def test_default_is_the_dual_domain_recipe_of_the_paper() -> None:
    speech, audio = SpearConfig().target_streams
    assert (speech.num_codebooks, speech.frame_rate_hz, speech.weights) == (16, 50.0, {"speech": 1.0, "audio": 1.0})
    assert (audio.num_codebooks, audio.frame_rate_hz, audio.weights) == (8, 25.0, {"speech": 0.0, "audio": 0.1})
    StandardObjectValidator().validate(SpearConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Speech.1"}, "`name` must start with a letter"),
        ({"num_codebooks": 0}, "`num_codebooks` must be at least 1, but is 0"),
        ({"codebook_size": 1}, "`codebook_size` must be at least 2, but is 1"),
        ({"frame_rate_hz": 0.0}, "`frame_rate_hz` must be positive, but is 0.0"),
        ({"weights": {"music": 1.0}}, "`weights` must have domains as keys (speech, audio), but has 'music'"),
        ({"weights": {"audio": -0.1}}, "`weights['audio']` must not be negative, but is -0.1"),
        ({"frame_rate_hz": 40.0}, "a multiple or a fraction of the encoder's 50 Hz, but is 40"),
    ],
)
def test_wrong_target_stream_is_named(change: dict[str, Any], message: str) -> None:
    assert message in error_of(SpearConfig(target_streams=[TargetStreamConfig(**change)]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_probability": 1.5}, "`time_probability` must be in [0, 1], but is 1.5"),
        ({"channel_span": 0}, "`channel_span` must be at least 1, but is 0"),
        ({"min_time_spans": -1}, "`min_time_spans` must not be negative, but is -1"),
    ],
)
def test_wrong_masking_is_named(change: dict[str, Any], message: str) -> None:
    assert message in error_of(SpearConfig(masking=MaskingConfig(**change)))


def test_other_wrong_values_are_named() -> None:
    assert "`alpha` must be in [0, 1], but is 2" in error_of(SpearConfig(alpha=2.0))
    twice = [TargetStreamConfig(), TargetStreamConfig()]
    assert "distinct names, but has ['speech', 'speech']" in error_of(SpearConfig(target_streams=twice))
    mels = SpearConfig(zipformer=ZipformerConfig(num_mel_bins=80))
    assert "`zipformer.num_mel_bins` must be 128, but is 80" in error_of(mels)


def test_number_of_output_frames_follows_the_output_rate() -> None:
    slow = SpearConfig(zipformer=ZipformerConfig(output_downsampling_factor=2))
    assert [num_output_frames(n, SpearConfig()) for n in (0, 1359, 1360, 48000, 160000)] == [0, 0, 1, 146, 496]
    assert [num_output_frames(n, slow) for n in (0, 1360, 48000, 48320)] == [0, 1, 73, 74]
    assert (output_frame_rate_hz(SpearConfig()), output_frame_rate_hz(slow)) == (50.0, 25.0)
