"""The authors' layout of a released model: a folder with ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from fairseq2.assets import AssetCard

from spear_plugin.models.spear.config import SPEAR_FAMILY, SpearConfig
from spear_plugin.models.zipformer import ZipformerConfig

RELEASED_CONFIG_FILE: Final = "config.json"
RELEASED_WEIGHTS_FILE: Final = "model.safetensors"

_NUMBERS: Final = {
    "num_mel_bins": "num_mel_bins",
    "output_downsampling_factor": "output_downsampling_factor",
    "pos_dim": "pos_dim",
}
_LISTS: Final = {
    "downsampling_factor": "downsampling_factors",
    "num_encoder_layers": "num_layers",
    "feedforward_dim": "feedforward_dims",
    "encoder_dim": "encoder_dims",
    "encoder_unmasked_dim": "encoder_unmasked_dims",
    "cnn_module_kernel": "kernel_sizes",
    "num_heads": "num_heads",
}
"""Their names, of numbers and of texts such as "1,2,4", to ours."""

_STREAMING: Final = {"causal": False, "chunk_size": 8, "left_context_frames": 128}
"""What their encoder knows of streaming. SPEAR does not stream, so the last two mean nothing."""

_FIXED: Final = ("subsampling_channels", "query_head_dim", "value_head_dim", "pos_head_dim")
"""Sizes that their configuration does not name: all of their models have the same."""


class ReleasedModelError(ValueError):
    """Raised when a model cannot be read from, or written in, the released layout."""


def create_released_config(config: SpearConfig) -> dict[str, object]:
    """Return the content of ``config.json``.

    Raises:
        ReleasedModelError: If the model has sizes that it cannot express.
    """
    own, standard = config.zipformer, ZipformerConfig()
    for name in _FIXED:
        if (value := getattr(own, name)) != (expected := getattr(standard, name)):
            raise ReleasedModelError(
                f"The released layout has no field for `zipformer.{name}`, which must be {expected}, but is {value}."
            )
    values: dict[str, object] = {theirs: getattr(own, name) for theirs, name in _NUMBERS.items()}
    for theirs, name in _LISTS.items():
        sizes: list[int] | None = getattr(own, name)
        if sizes is None:
            sizes = [dim // 2 for dim in own.encoder_dims]
        values[theirs] = ",".join(map(str, sizes))
    return values | _STREAMING


def parse_released_config(values: Mapping[str, object]) -> SpearConfig:
    """Return the configuration, without heads, that the content of ``config.json`` describes.

    Raises:
        ReleasedModelError: If a field is missing or damaged, or describes no SPEAR model.
    """
    if values.get("causal", False) is not False:
        raise ReleasedModelError("`causal` must be false: a causal encoder is no SPEAR model.")
    sizes: dict[str, object] = {name: _parse_number(values, theirs) for theirs, name in _NUMBERS.items()}
    sizes |= {name: _parse_list(values, theirs) for theirs, name in _LISTS.items()}
    config = SpearConfig(zipformer=ZipformerConfig(**sizes), target_streams=[])  # type: ignore[arg-type]
    for result in (config.zipformer.validate(), config.validate()):
        if result.has_error():
            raise ReleasedModelError(f"In our names: {result.errors[0]}")
    return config


def released_card(folder: Path) -> AssetCard:
    """Return a card, named like the folder, of a model in the released layout, for example a downloaded one.

    ``get_spear_model_hub().load_model(released_card(folder))`` loads it without a card on disk.

    Raises:
        ReleasedModelError: If ``config.json`` is missing, damaged or of another kind of model, or there are no weights.
    """
    path = folder / RELEASED_CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReleasedModelError(f"{path}: there is no such file. Name a folder of the released layout.") from None
    except (OSError, ValueError) as ex:
        raise ReleasedModelError(f"{path}: cannot be read ({ex}). Download it again.") from None
    try:
        config = parse_released_config(values if isinstance(values, dict) else {})
    except ReleasedModelError as ex:
        raise ReleasedModelError(f"{path}: {ex}") from None
    if not any(folder.glob("*.safetensors")):
        raise ReleasedModelError(f"{folder}: holds no weights (*.safetensors). Download {RELEASED_WEIGHTS_FILE} there.")
    weights = folder / RELEASED_WEIGHTS_FILE
    metadata = {
        "model_family": SPEAR_FAMILY,
        "model_arch": "base",
        "model_config": {
            "zipformer": {name: getattr(config.zipformer, name) for name in (*_NUMBERS.values(), *_LISTS.values())},
            "target_streams": [],
        },
        # Weights in several files, model-00001-of-00002.safetensors and so on, are named by their folder.
        "checkpoint": str((weights if weights.exists() else folder).resolve()),
    }
    return AssetCard(folder.resolve().name, metadata)


def _parse_list(values: Mapping[str, object], name: str) -> list[int]:
    if (value := values.get(name)) is None:
        _fail(name, "is missing")
    try:
        return [int(part) for part in str(value).split(",")]
    except ValueError:
        _fail(name, f"must hold integers separated by commas, but is {value!r}")


def _parse_number(values: Mapping[str, object], name: str) -> int:
    numbers = _parse_list(values, name)
    if len(numbers) != 1:
        _fail(name, f"must be one integer, but is {values[name]!r}")
    return numbers[0]


def _fail(name: str, problem: str) -> NoReturn:
    raise ReleasedModelError(f"`{name}` {problem}. The file must be that of a SPEAR model.")
