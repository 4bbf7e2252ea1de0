from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, final

import sentencepiece
from fairseq2.data.tokenizers.char import CHAR_TOKENIZER_FAMILY
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.task import Task
from fairseq2.utils.yaml import YamlDumper
from typing_extensions import override

from recipes.asr.tokenizer.config import TokenizerConfig
from recipes.asr.tokenizer.spelling import write_spoken_rules
from recipes.models import default_model_name
from recipes.tasks import StoppableTask, refuse_several_processes
from recipes.text import TOKENIZER_FILE
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import read_manifest

_RULES_FILE: Final = "spelling.tsv"


@final
class TokenizerRecipe(Recipe):
    """Trains a sentencepiece tokenizer."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return TokenizerConfig

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.asr.tokenizer")
        return TokenizerTask(context.get_config_as(TokenizerConfig), context.output_dir)


@final
class TokenizerTask(StoppableTask):
    """Reads transcripts and writes the tokenizer, its card last."""

    def __init__(self, config: TokenizerConfig, folder: Path) -> None:
        super().__init__()
        self._config = config
        self._folder = folder

    @override
    def run(self) -> None:
        texts = [row.text for path in self._config.manifests for row in read_manifest(path) if row.text.strip()]
        if not texts:
            names = ", ".join(map(str, self._config.manifests))
            raise RecipeError(f"{names}: no row has a transcript. Make manifests with a column `text`.")
        model, kind = self._train(texts)
        with atomic_file(self._folder / TOKENIZER_FILE) as temporary:
            temporary.write_bytes(model)
        self._write_card()
        size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        log.info("{}: {} tokens ({}) from {:,} transcripts.", self._folder, size, kind, len(texts))

    def _train(self, texts: Sequence[str]) -> tuple[bytes, str]:
        """Return the serialized model and its kind."""
        options: dict[str, Any] = {"normalization_rule_name": "nmt_nfkc"}
        if self._config.spelling == "spoken":
            write_spoken_rules(self._folder / _RULES_FILE)
            options = {"normalization_rule_tsv": str(self._folder / _RULES_FILE)}
        if self._config.kind == "unigram":
            try:
                return _train(texts, options, model_type="unigram", vocab_size=self._config.vocabulary_size), "unigram"
            except RuntimeError as ex:
                # Its message names the largest size that would do.
                log.warning(
                    "`vocabulary_size` ({}) does not suit these transcripts, so the tokens are characters: {}",
                    self._config.vocabulary_size,
                    str(ex).partition("] ")[2] or ex,
                )
        characters = {character for text in texts for character in text}
        size = len(characters) + 4  # blank, unknown, white space as sentencepiece writes it, one to spare
        return _train(texts, options, model_type="char", vocab_size=size, hard_vocab_limit=False), "char"

    def _write_card(self) -> None:
        name = self._config.name or f"{default_model_name(self._folder)}_tokenizer"
        card = {"name": name, "tokenizer_family": CHAR_TOKENIZER_FAMILY, "tokenizer": TOKENIZER_FILE}
        with atomic_file(self._folder / "card.yaml") as temporary:
            get_dependency_resolver().resolve(YamlDumper).dump(card, temporary)  # type: ignore[type-abstract]


def _train(texts: Sequence[str], options: dict[str, Any], **sizes: Any) -> bytes:
    """Return the serialized model; one thread, so that the same texts give the same pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        pad_id=0,
        pad_piece="<blank>",
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
        **options,
        **sizes,
    )
    return model.getvalue()
