"""The model card that people read: what the model is, what it was trained on, how to load it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from fairseq2.assets import AssetCard

from recipes.models import run_step_of
from recipes.spear.export.config import SpearExportConfig
from spear_plugin.data.files import atomic_file
from spear_plugin.models.spear import SpearConfig, output_frame_rate_hz

_LICENCE = """\
---
license: apache-2.0
tags: [speech, audio, self-supervised]
---
"""

_LOADING = {
    "released": """\
```python
from pathlib import Path
from fairseq2 import init_fairseq2
from spear_plugin.models.spear import get_spear_model_hub, released_card

init_fairseq2()
model = get_spear_model_hub().load_model(released_card(Path("path/to/this/folder"))).eval()
features = model.extract_features(waveforms, lengths)  # (N, S) at 16 kHz in [-1, 1], (N,) samples
```

`model.safetensors` and `config.json` have the names, shapes and fields of the models that the authors of SPEAR
released, so their modelling code reads them too; it is not part of this folder.
""",
    "training": """\
`model.pt` holds `{"model": state}` with the names of the authors' training code (icefall), which reads it with
`strict=False`: parameters of the heads that it never uses are left out. `spear_plugin` loads it by `card.yaml`.
""",
}


def write_readme(folder: Path, name: str, source: AssetCard, config: SpearConfig, export: SpearExportConfig) -> None:
    """Write ``README.md``.

    Args:
        folder: Where to.
        name: The model's name.
        source: The card of the exported model; if it is a run's checkpoint, the run's configuration is read.
        config: The model's configuration.
        export: What was asked for.
    """
    sizes = config.zipformer
    lines = [
        _LICENCE,
        f"# {name}",
        "",
        "A Zipformer that predicts the quantized frames of speech and audio teachers (SPEAR, arXiv 2510.25955).",
        f"{sum(sizes.num_layers)} layers of width {max(sizes.encoder_dims)}, {output_frame_rate_hz(config):g} Hz.",
        "",
        "## Training",
        "",
        *_describe_training(source),
        "",
        "## Loading",
        "",
        _LOADING[export.layout],
        "## Licence",
        "",
        "Apache-2.0",
    ]
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _describe_training(source: AssetCard) -> Iterator[str]:
    run = run_step_of(source)
    if run is None or not (run.folder / "config.yaml").is_file():
        yield f"Made from the model `{source.name}`; what that was trained on is not recorded with it."
        return
    run_config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    yield f"Checkpoint `step_{run.step_nr}` of `recipes.spear.pretrain`, trained on:"
    yield ""
    dataset = _section(_section(run_config, "dataset"), "config_overrides")
    for corpus in dataset.get("train") or [{}]:
        codes = ", ".join(corpus.get("codes") or {})
        yield f"* `{corpus.get('name', 'a corpus without a name')}`" + (f", teacher codes: {codes}" if codes else "")


def _section(config: Any, name: str) -> Mapping[str, Any]:
    value = config.get(name) if isinstance(config, Mapping) else None
    return value if isinstance(value, Mapping) else {}
