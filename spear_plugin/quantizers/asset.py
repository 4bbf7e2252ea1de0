"""A trained quantizer as a folder: the weights, and a fairseq2 card that names them."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Final

import yaml
from fairseq2.assets import AssetCard, get_asset_store
from fairseq2.device import Device
from fairseq2.models import ModelHubAccessor
from fairseq2.models.hub import ModelHub, ModelNotKnownError
from safetensors.torch import save_file

from spear_plugin.quantizers.base import FrameQuantizer
from spear_plugin.quantizers.config import (
    CLASSIFIER_QUANTIZER_FAMILY,
    KMEANS_QUANTIZER_FAMILY,
    MVQ_QUANTIZER_FAMILY,
    RANDOM_PROJECTION_QUANTIZER_FAMILY,
    ClassifierQuantizerConfig,
    KMeansQuantizerConfig,
    MvqQuantizerConfig,
    QuantizerConfig,
    RandomProjectionQuantizerConfig,
)

_CARD: Final = "quantizer.yaml"
_CHECKPOINT: Final = "quantizer.safetensors"

_FAMILIES: Final[dict[type[QuantizerConfig], str]] = {
    MvqQuantizerConfig: MVQ_QUANTIZER_FAMILY,
    KMeansQuantizerConfig: KMEANS_QUANTIZER_FAMILY,
    RandomProjectionQuantizerConfig: RANDOM_PROJECTION_QUANTIZER_FAMILY,
    ClassifierQuantizerConfig: CLASSIFIER_QUANTIZER_FAMILY,
}


class QuantizerAssetError(ValueError):
    """Raised when a folder or a card does not hold a quantizer."""


def quantizer_identity(quantizer: FrameQuantizer) -> str:
    """Return 16 hexadecimal digits of a hash of the weights and statistics, the same in whatever file they lie."""
    digest = hashlib.sha256()
    for key, value in sorted(quantizer.state_dict().items()):
        if key != "id_buf":  # a random label
            digest.update(f"{key}{tuple(value.shape)}".encode())
            digest.update(value.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_quantizer_asset(
    folder: Path,
    quantizer: FrameQuantizer,
    config: QuantizerConfig,
    name: str,
    *,
    licence: str | None = None,
) -> None:
    """Write ``quantizer.safetensors`` and the card ``quantizer.yaml``; the card comes last, so with it all is there.

    fairseq2 finds the card by ``name`` if the folder is one of its asset paths (``common.assets.extra_paths``).
    """
    card: dict[str, object] = {
        "name": name,
        "model_family": _FAMILIES[type(config)],
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


def load_quantizer(name: str | Path, *, device: Device | None = None) -> FrameQuantizer:
    """Load a quantizer of any family by its folder or by the name of its card; frozen, in evaluation mode.

    Raises:
        QuantizerAssetError: The folder has no card, or the card is of something else.
        fairseq2.models.ModelNotKnownError: There is neither a folder nor a card of that name.
    """
    card = _find_card(name)
    return _open_hub(card).load_model(card, device=device).eval().requires_grad_(False)


def load_quantizer_config(name: str | Path) -> QuantizerConfig:
    """Return the configuration of a quantizer; see :func:`load_quantizer`."""
    card = _find_card(name)
    return _open_hub(card).get_model_config(card)


def _find_card(name: str | Path) -> AssetCard:
    folder = Path(name)
    if not folder.is_dir():
        card = get_asset_store().maybe_retrieve_card(str(name))
        if card is None:
            raise ModelNotKnownError(str(name))
        _check_family(str(name), card.metadata.get("model_family"))
        return card
    path = folder / _CARD
    try:
        metadata = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QuantizerAssetError(
            f"{folder} must contain {_CARD}, but does not; make a quantizer with recipes.mvq.train."
        ) from None
    except yaml.YAMLError as ex:
        raise QuantizerAssetError(f"{path} must be a YAML file, but is broken; train the quantizer again.") from ex
    _check_family(str(path), metadata.get("model_family") if isinstance(metadata, dict) else None)
    return AssetCard(str(metadata.get("name", folder.name)), {**metadata, "__base_path__": folder.resolve()})


def _check_family(name: str, family: object) -> None:
    if family not in _FAMILIES.values():
        families = ", ".join(_FAMILIES.values())
        raise QuantizerAssetError(f"{name} must have one of the model families {families}, but has {family} instead.")


def _open_hub(card: AssetCard) -> ModelHub[FrameQuantizer, QuantizerConfig]:
    family = card.field("model_family").as_(str)
    return ModelHubAccessor(family, FrameQuantizer, QuantizerConfig)()  # type: ignore[type-abstract]
