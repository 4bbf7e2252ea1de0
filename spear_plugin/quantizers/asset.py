"""A trained quantizer as a folder: the weights, and a fairseq2 card that names them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Final

import yaml
from fairseq2.assets import AssetCard
from fairseq2.device import Device
from safetensors.torch import save_file

from spear_plugin.quantizers.config import MVQ_QUANTIZER_FAMILY, MvqQuantizerConfig
from spear_plugin.quantizers.hub import get_mvq_quantizer_hub
from spear_plugin.quantizers.model import MultiCodebookQuantizer

_CARD: Final = "quantizer.yaml"
_CHECKPOINT: Final = "quantizer.safetensors"


class QuantizerAssetError(ValueError):
    """Raised when a folder does not hold a quantizer."""


def quantizer_identity(quantizer: MultiCodebookQuantizer) -> str:
    """Return 16 hexadecimal digits of a hash of the weights and statistics, the same in whatever file they lie."""
    digest = hashlib.sha256()
    for key, value in sorted(quantizer.state_dict().items()):
        if key != "id_buf":  # a random label
            digest.update(f"{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_quantizer_asset(
    folder: Path,
    quantizer: MultiCodebookQuantizer,
    config: MvqQuantizerConfig,
    name: str,
    *,
    licence: str | None = None,
) -> None:
    """Write ``quantizer.safetensors`` and the card ``quantizer.yaml``; the card comes last, so with it all is there.

    fairseq2 finds the card by ``name`` if the folder is one of its asset paths (``common.assets.extra_paths``).
    """
    card: dict[str, object] = {
        "name": name,
        "model_family": MVQ_QUANTIZER_FAMILY,
        "model_config": asdict(config),
        "checkpoint": _CHECKPOINT,
    }
    if licence is not None:
        card["license"] = licence  # no field of fairseq2's, which keeps and shows unknown ones
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".quantizer.tmp"
    save_file({key: value.detach().cpu().contiguous() for key, value in quantizer.state_dict().items()}, temporary)
    temporary.replace(folder / _CHECKPOINT)
    temporary.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    temporary.replace(folder / _CARD)


def load_quantizer(name: str | Path, *, device: Device | None = None) -> MultiCodebookQuantizer:
    """Load a quantizer by its folder or by the name of its card; frozen, in evaluation mode.

    Raises:
        QuantizerAssetError: The folder has no card, or one of something else.
        fairseq2.models.ModelNotKnownError: There is neither a folder nor a card of that name.
    """
    quantizer = get_mvq_quantizer_hub().load_model(_find_card(name), device=device)
    return quantizer.eval().requires_grad_(False)


def load_quantizer_config(name: str | Path) -> MvqQuantizerConfig:
    """Return the configuration of a quantizer; see :func:`load_quantizer`."""
    return get_mvq_quantizer_hub().get_model_config(_find_card(name))


def _find_card(name: str | Path) -> AssetCard | str:
    folder = Path(name)
    if not folder.is_dir():
        return str(name)
    path = folder / _CARD
    try:
        metadata = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuantizerAssetError(
            f"{folder} must contain {_CARD}, but does not; make a quantizer with recipes.mvq.train."
        ) from None
    except yaml.YAMLError as ex:
        raise QuantizerAssetError(f"{path} must be a YAML file, but is broken; train the quantizer again.") from ex
    family = metadata.get("model_family") if isinstance(metadata, dict) else None
    if family != MVQ_QUANTIZER_FAMILY:
        raise QuantizerAssetError(
            f"{path} must have the model_family {MVQ_QUANTIZER_FAMILY}, but has {family} instead."
        )
    return AssetCard(str(metadata.get("name", folder.name)), {**metadata, "__base_path__": folder.resolve()})
