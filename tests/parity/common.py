"""The model of the authors' training step in `golden/spear/train_step*`."""

from __future__ import annotations

from torch import Tensor

from spear_plugin.models.spear import SpearConfig, TargetStreamConfig
from spear_plugin.models.zipformer import RegularizationConfig, ZipformerConfig


def golden_step_zipformer(regularization: RegularizationConfig | None = None) -> ZipformerConfig:
    """Return three small stacks, of which the last works at a quarter of the rate."""
    return ZipformerConfig(
        downsampling_factors=[1, 2, 4],
        num_layers=[1, 2, 1],
        encoder_dims=[32] * 3,
        feedforward_dims=[64] * 3,
        kernel_sizes=[15, 9, 15],
        num_heads=[4] * 3,
        regularization=regularization or RegularizationConfig(),
    )


def golden_step_config(
    regularization: RegularizationConfig | None = None, *, loss_on_padding: bool = True
) -> SpearConfig:
    """Return the model with its two target streams."""
    audio = TargetStreamConfig(name="audio", num_codebooks=2, frame_rate_hz=25.0, weights={"audio": 0.1})
    return SpearConfig(
        zipformer=golden_step_zipformer(regularization),
        target_streams=[TargetStreamConfig(num_codebooks=4), audio],
        loss_on_padding=loss_on_padding,
        reference_padding=True,
    )


def with_axes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the authors' tensors as our modules have them: with an axis, where theirs have none."""
    return {key: value[None] if value.dim() == 0 else value for key, value in tensors.items()}
