"""The released checkpoints' names and shapes, as listed from the authors' models."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain

import pytest
import torch

from spear_plugin.models.zipformer import (
    ZipformerConfig,
    create_conv_subsampling,
    create_zipformer,
    zipformer_base,
    zipformer_large,
    zipformer_xlarge,
)
from tests.common import GOLDEN_FOLDER


def read_released_shapes(size: str) -> dict[str, str]:
    lines = (GOLDEN_FOLDER / f"spear/state_dict_keys_{size}.txt").read_text().splitlines()

    shapes = dict(line.removeprefix("model.model.").split("\t") for line in lines)

    del shapes["mask_emb"]

    # FSDP shards along the first axis, so scales of norms have one here.
    return {key: "(1,)" if key.endswith(".log_scale") else shape for key, shape in shapes.items()}


def is_unused_layer_parameter(key: str) -> bool:
    return re.search(r"layers\.\d+\.bypass_scale$", key) is not None


@pytest.mark.parametrize(
    ("size", "create_config"), [("base", zipformer_base), ("large", zipformer_large), ("xlarge", zipformer_xlarge)]
)
def test_names_and_shapes_equal_the_released_ones(size: str, create_config: Callable[[], ZipformerConfig]) -> None:
    with torch.device("meta"):
        front_end = create_conv_subsampling(create_config())
        encoder = create_zipformer(create_config())

    own = chain(
        front_end.state_dict(prefix="encoder_embed.").items(),
        encoder.state_dict(prefix="encoder.").items(),
    )

    released = {key: shape for key, shape in read_released_shapes(size).items() if not is_unused_layer_parameter(key)}

    assert {key: str(tuple(tensor.shape)) for key, tensor in own} == released
