from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch
from fairseq2.nn import Linear
from torch.nn import Conv2d
from torch.nn.init import uniform_


def init_scaled(module: Linear | Conv2d, *, scale: float) -> None:
    """Draw the default uniform weights times ``scale`` and a bias within ``0.1 * scale``.

    Zipformer starts every residual branch small in this way and so gets along without warm-up of the norms.
    """
    fan_in = module.weight[0].numel()

    bound = scale * fan_in**-0.5

    with torch.no_grad():
        uniform_(module.weight, -bound, bound)

        if module.bias is not None:
            uniform_(module.bias, -0.1 * scale, 0.1 * scale)


def scaled(scale: float) -> Callable[[Linear], None]:
    """Return :func:`init_scaled` as an ``init_fn`` of fairseq2's Linear."""
    return partial(init_scaled, scale=scale)


BRANCH_SCALE: Final = 0.05
"""Scale of the last projection of attention and convolution branches."""

FEED_FORWARD_SCALE: Final = 0.1
"""Scale of the last projection of feed-forward branches."""
