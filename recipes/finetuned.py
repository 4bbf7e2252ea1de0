"""What a fine-tuning run leaves behind: a card for fairseq2 and one for people."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, final

import yaml
from fairseq2.recipe.base import RecipeContext
from fairseq2.task import Task
from typing_extensions import override

from recipes.models import default_model_name, write_card
from spear_plugin.data.files import atomic_file

CARD_FILE: Final = "card.yaml"

_LOADING: Final = """\
```python
from fairseq2 import init_fairseq2
from fairseq2.models.hub import load_model

init_fairseq2()
model = load_model("{name}").eval()  # with `{card}` in the folder that FAIRSEQ2_USER_ASSET_DIR names
output = model(waveforms, lengths)  # (N, S) at 16 kHz in [-1, 1], (N,) samples
```
"""


@final
class FinetuningTask(Task):
    """Trains to the end and then writes the cards of the last checkpoint.

    Args:
        training: The training.
        context: Of the recipe.
        family: The model's family.
        config: The model's configuration.
        encoder_name: What the encoder was made from.
        fields: Further fields of the card.
    """

    def __init__(
        self,
        training: Task,
        context: RecipeContext,
        family: str,
        config: object,
        encoder_name: str,
        fields: Mapping[str, object],
    ) -> None:
        self._training = training
        self._is_first = context.gangs.root.rank == 0
        self._folder = context.output_dir
        self._manager = context.get_checkpoint_manager()
        self._family = family
        self._config = config
        self._encoder_name = encoder_name
        self._fields = fields

    @override
    def run(self) -> None:
        self._training.run()
        if self._is_first and (step_nr := self._manager.maybe_get_last_step_number()) is not None:
            name = default_model_name(self._folder)
            path = self._folder / CARD_FILE
            write_card(path, name, self._family, self._config, f"checkpoints/step_{step_nr}/model", self._fields)
            write_readme(self._folder, name, self._family, self._encoder_name, step_nr)

    @override
    def request_stop(self) -> None:
        self._training.request_stop()

    @property
    @override
    def step_nr(self) -> int:
        return self._training.step_nr

    @override
    def close(self) -> None:
        self._training.close()


def write_readme(folder: Path, name: str, family: str, encoder_name: str, step_nr: int) -> None:
    """Write the model card that people read: what the model is, what it was trained on, its last scores."""
    run_config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    lines = [
        f"# {name}",
        "",
        f"A model of the family `{family}` on the encoder `{encoder_name}`, after {step_nr:,} steps.",
        "",
        "## Training",
        "",
        *_describe_corpora(run_config),
        "",
        *_describe_scores(folder / "metrics" / "valid.jsonl"),
        "## Loading",
        "",
        _LOADING.format(name=name, card=CARD_FILE),
        "## Licence",
        "",
        "That of the encoder's weights, of which this model is made, and of the corpora.",
    ]
    with atomic_file(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _describe_corpora(run_config: Mapping[str, Any]) -> Iterator[str]:
    dataset = run_config.get("dataset") or {}
    overrides = dataset.get("config_overrides") or {}
    for corpus in overrides.get("train") or [{"name": dataset.get("name")}]:
        yield f"* `{corpus.get('name')}`"


def _describe_scores(path: Path) -> Iterator[str]:
    if not path.is_file() or not (lines := path.read_text(encoding="utf-8").splitlines()):
        return
    record = json.loads(lines[-1])
    yield f"Validation after {record.get('Step')} steps:"
    yield ""
    for key, value in record.items():
        if isinstance(value, float) and ("Rate" in key or "Precision" in key or key == "Loss"):
            yield f"* {key}: {value:.4g}"
    yield ""
