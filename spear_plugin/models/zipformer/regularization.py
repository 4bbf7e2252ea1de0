"""What acts in training only, and the switches for it (Zipformer, sections 3.3 to 3.5, and SPEAR's training code).

Rates and bounds stand where they are used, in the modules; this file turns them into parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor

from spear_plugin.nn.gradients import GradientScale, Mode, ParameterLimits, ScorePenalty
from spear_plugin.nn.regularizers import Balancer, Whiten
from spear_plugin.nn.schedules import Schedule, constant

INITIAL_DROPOUT_P: Final = 0.3

END_OF_SCHEDULE: Final = 20_000.0
"""The batch count from which on most values stay as they are."""


@dataclass(kw_only=True)
class RegularizationConfig(Validatable):
    """Switches for what acts in training only. The default values are the authors'.

    Schedules follow the batch count, which the recipe has to set (``SpearModel.set_batch_count``). As long as it is not
    known, dropout and skips are off, balancers act with a probability of 0.4, and whiteners have their first limits.
    """

    dropout: Literal["off", "fixed", "scheduled"] = "scheduled"
    """``scheduled``: from 0.3 down to ``dropout_p`` at a batch count of 20,000. ``off``: the positional one as well."""

    branch_skips: Literal["off", "scheduled"] = "scheduled"
    """Attention, convolution and feed-forward branches are left out for single utterances, mostly in the beginning."""

    layer_skips: Literal["off", "scheduled"] = "scheduled"
    """Whole layers are left out for single utterances; at the end 3.5 % (8-fold downsampled: 9.9 %) of them."""

    position_skips: Literal["off", "scheduled"] = "scheduled"
    """Attention goes without positions in some calls, up to a batch count of ``warmup_batches``."""

    feature_mask_p: float = 0.125
    """The probability that an utterance loses the upper quarter of the maskable channels of all stacks, and then again
    that it loses the lower one too; see ``encoder_unmasked_dims``."""

    balancer: Mode = "scheduled"
    """Balancers of activations. ``forced`` in this and the next three means in every call."""

    whitening: Mode = "scheduled"
    """Whiteners of activations."""

    limits: Mode = "scheduled"
    """Soft limits of bypass scales and of the norms' scales."""

    score_penalty: Mode = "scheduled"
    """The gradient that keeps attention scores within +-25."""

    first_conv_grad_scale: float = 0.2
    """The factor on gradients of the front end's first convolution, and of what comes before it; 1 turns it off."""

    warmup_batches: float = 4000.0
    """The batch count at which all layers and positions take part; later stacks come later."""

    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("balancer", "whitening", "limits", "score_penalty"):
            if getattr(self, name) not in get_args(Mode):
                result.add_error(f"`{name}` must be one of {get_args(Mode)}, but is {getattr(self, name)!r} instead.")

        if not 0.0 <= self.feature_mask_p < 1.0:
            result.add_error(f"`feature_mask_p` must be in [0, 1), but is {self.feature_mask_p} instead.")

        if self.warmup_batches <= 0.0:
            result.add_error(f"`warmup_batches` must be positive, but is {self.warmup_batches} instead.")

        return result


def plain_regularization() -> RegularizationConfig:
    """Return constant dropout and nothing else, for short runs with an ordinary optimizer."""
    return RegularizationConfig(
        dropout="fixed",
        branch_skips="off",
        layer_skips="off",
        position_skips="off",
        feature_mask_p=0.0,
        balancer="off",
        whitening="off",
        limits="off",
        score_penalty="off",
        first_conv_grad_scale=1.0,
    )


def forced_regularization() -> RegularizationConfig:
    """Return every rule for gradients in every call and nothing random, to compare gradients."""
    return RegularizationConfig(
        dropout="off",
        branch_skips="off",
        layer_skips="off",
        position_skips="off",
        feature_mask_p=0.0,
        balancer="forced",
        whitening="forced",
        limits="forced",
        score_penalty="forced",
    )


class Regularizers:
    """Makes the parts that modules hold, each switched on or off."""

    def __init__(self, config: RegularizationConfig, *, dropout_p: float = 0.0, pos_dropout_p: float = 0.0) -> None:
        """Set the switches.

        :param config: The switches.
        :param dropout_p: The probability of dropout, at the end of its schedule if it has one.
        :param pos_dropout_p: The probability of dropout on the positional encoding.
        """
        self._config = config
        self._dropout_p = dropout_p

        self.pos_dropout_p = 0.0 if config.dropout == "off" else pos_dropout_p

    @property
    def feature_mask_p(self) -> float:
        return self._config.feature_mask_p

    @property
    def warmup_batches(self) -> float:
        return self._config.warmup_batches

    def create_dropout(self) -> Schedule:
        """Return the rate of dropout in feed-forward modules and behind the front end."""
        if self._config.dropout == "scheduled":
            return Schedule((0.0, INITIAL_DROPOUT_P), (END_OF_SCHEDULE, self._dropout_p))

        return constant(self._dropout_p if self._config.dropout == "fixed" else 0.0)

    def create_branch_skip(self, *points: tuple[float, float]) -> Schedule:
        return self._create_skip(self._config.branch_skips, points)

    def create_layer_skip(self, *points: tuple[float, float]) -> Schedule:
        return self._create_skip(self._config.layer_skips, points)

    def create_position_skip(self) -> Schedule:
        return self._create_skip(self._config.position_skips, ((0.0, 0.5), (self.warmup_batches, 0.0)))

    @staticmethod
    def _create_skip(switch: str, points: tuple[tuple[float, float], ...]) -> Schedule:
        return constant(0.0) if switch == "off" else Schedule(*points)

    def create_balancer(
        self,
        positive: tuple[float | Schedule, float | Schedule],
        magnitude: tuple[float | Schedule, float | Schedule],
        *,
        probability: float | None = None,
        channel_dim: int = -1,
    ) -> Balancer:
        """Create a balancer.

        :param positive: The smallest and largest share of positive values.
        :param magnitude: The smallest and largest mean magnitude.
        :param probability: How often it acts; None for the schedule that most balancers share.
        """
        return Balancer(
            min_positive=positive[0],
            max_positive=positive[1],
            min_abs=magnitude[0],
            max_abs=magnitude[1],
            probability=probability or Schedule((0.0, 0.5), (8000.0, 0.125), default=0.4),
            channel_dim=channel_dim,
            mode=self._config.balancer,
        )

    def create_whitener(self, limit: float, ratio: float, *, grad_scale: float = 0.01, num_groups: int = 1) -> Whiten:
        """Create a whitener whose limit grows from ``limit`` to ``ratio * limit``."""
        schedule = Schedule((0.0, limit), (END_OF_SCHEDULE, ratio * limit), default=limit)

        return Whiten(limit=schedule, grad_scale=grad_scale, num_groups=num_groups, mode=self._config.whitening)

    def create_norm_limits(self) -> ParameterLimits:
        """Create the limits of a norm's logarithmic scale."""
        return ParameterLimits(-1.5, 1.5, mode=self._config.limits)

    def create_bypass_limits(self) -> ParameterLimits:
        """Create the limits of bypass scales, which keep new layers in use until they have learned something."""
        return ParameterLimits(Schedule((0.0, 0.9), (END_OF_SCHEDULE, 0.2)), 1.0, mode=self._config.limits)

    def create_score_penalty(self) -> ScorePenalty:
        return ScorePenalty(self._config.score_penalty)

    def create_first_conv_grad_scale(self) -> GradientScale:
        return GradientScale(self._config.first_conv_grad_scale)


def ramp(first: float, last: float, *, until: float = END_OF_SCHEDULE) -> Schedule:
    """Return a bound that goes from ``first`` to ``last`` and is ``last`` where the batch count is not known.

    There the authors' code has 0, a bound that nothing satisfies; it only concerns fine-tuning that sets no count.
    """
    return Schedule((0.0, first), (until, last), default=last)


def draw_kept_rows(x: Tensor, skip: Schedule) -> Tensor | None:
    """Draw on the device of ``x`` (N, ...) which utterances keep a branch.

    :returns: 1 or 0 in the shape (N, 1, ...) of ``x``'s axes and in its type; None, without a draw, if all do.
    """
    p = skip.value

    if p == 0.0:
        return None

    return (torch.rand((x.size(0),) + (1,) * (x.ndim - 1), device=x.device) > p).type_as(x)


def keep_rows(x: Tensor, kept: Tensor | None) -> Tensor:
    """Return ``x`` without the rows that :func:`draw_kept_rows` left out. The others are not rescaled."""
    return x if kept is None else x * kept


PLAIN: Final = Regularizers(plain_regularization())
"""No part that acts, for modules on their own."""
