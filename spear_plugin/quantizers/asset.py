"""A trained quantizer as a folder: the weights and a fairseq2 card beside them."""

from __future__ import annotations

import hashlib
import os
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
    """Return 16 hexadecimal digits that depend on the weights and the statistics alone, in whatever file they lie."""
    digest = hashlib.sha256()

    for key, value in sorted(quantizer.state_dict().items()):
        if key == "id_buf":  # the package's own label, drawn at random
            continue

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
    """Write the weights and the card of a quantizer; the card comes last, so a folder with a card is whole.

    fairseq2 finds it by ``name`` where the folder is among its asset paths (``common.assets.extra_paths``).
    """
    folder.mkdir(parents=True, exist_ok=True)

    card: dict[str, object] = {
        "name": name,
        "model_family": MVQ_QUANTIZER_FAMILY,
        "model_config": asdict(config),
        "checkpoint": _CHECKPOINT,
    }

    if licence is not None:
        card["license"] = licence

    state_dict = {key: value.detach().cpu().contiguous() for key, value in quantizer.state_dict().items()}

    temporary = folder / f".{_CHECKPOINT}.tmp"

    save_file(state_dict, temporary)

    os.replace(temporary, folder / _CHECKPOINT)

    temporary = folder / f".{_CARD}.tmp"

    temporary.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")

    os.replace(temporary, folder / _CARD)


def load_quantizer(name: str | Path, *, device: Device | None = None) -> MultiCodebookQuantizer:
    """Load a quantizer by the name of its card or by its folder, in evaluation mode and without gradients.

    :raises QuantizerAssetError: The folder has no card, or one that is not a quantizer's.
    :raises fairseq2.models.ModelNotKnownError: There is neither a card nor a folder of that name.
    """
    card: AssetCard | str = _read_card(Path(name)) if Path(name).is_dir() else str(name)

    quantizer = get_mvq_quantizer_hub().load_model(card, device=device)

    return quantizer.eval().requires_grad_(False)


def load_quantizer_config(name: str | Path) -> MvqQuantizerConfig:
    """Return the configuration of a quantizer, see :func:`load_quantizer`."""
    card: AssetCard | str = _read_card(Path(name)) if Path(name).is_dir() else str(name)

    return get_mvq_quantizer_hub().get_model_config(card)


def _read_card(folder: Path) -> AssetCard:
    path = folder / _CARD

    try:
        metadata = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuantizerAssetError(
            f"{folder} holds no quantizer: it must contain {_CARD}; make one with `recipes.mvq.train`."
        ) from None
    except yaml.YAMLError as ex:
        raise QuantizerAssetError(f"{path} is not a YAML file; make it again with `recipes.mvq.train`.") from ex

    if not isinstance(metadata, dict) or metadata.get("model_family") != MVQ_QUANTIZER_FAMILY:
        raise QuantizerAssetError(
            f"{path} is not a quantizer's card: its `model_family` must be {MVQ_QUANTIZER_FAMILY}."
        )

    return AssetCard(str(metadata.get("name", folder.name)), {**metadata, "__base_path__": folder.resolve()})
