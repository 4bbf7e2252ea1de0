from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final, final

from fairseq2.data.tokenizers.char import CHAR_TOKENIZER_FAMILY
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError
from torch.nn import Module
from typing_extensions import override

from recipes.asr.finetune.config import AsrFinetuneConfig
from recipes.asr.finetune.unit import CtcCriterion, CtcValidUnit
from recipes.finetuning import Criterion, DownstreamTask, FinetuneRecipe
from recipes.text import TOKENIZER_FILE, TranscriptCodec, num_frames_needed, open_tokenizer
from spear_plugin.data.audio import resampled_length
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow, Seconds
from spear_plugin.models.downstream import CTC_FAMILY, EncoderConfig, num_encoder_frames

_SAMPLE_RATE: Final = 16_000


@final
class AsrFinetuneRecipe(FinetuneRecipe):
    """CTC on characters or pieces of words."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return AsrFinetuneConfig

    @override
    def open_task(self, context: RecipeContext) -> DownstreamTask:
        config = context.get_config_as(AsrFinetuneConfig)
        assert config.tokenizer is not None  # by the validation of the configuration
        # What a run was begun with, it goes on with and is evaluated with, wherever the original may be by then.
        kept = context.output_dir / "tokenizer"
        source, is_kept = Path(config.tokenizer) / TOKENIZER_FILE, (kept / TOKENIZER_FILE).is_file()
        codec = open_tokenizer(str(kept) if is_kept else config.tokenizer, "`tokenizer`")
        if is_kept and source.is_file() and source.read_bytes() != (kept / TOKENIZER_FILE).read_bytes():
            raise RecipeError(
                f"`tokenizer`: must be the one that the run was begun with, {kept}, but '{config.tokenizer}' is "
                "another. Start a run in another folder."
            )
        fields: dict[str, object] = {"tokenizer_ref": config.tokenizer}
        if is_kept or source.is_file():
            if context.gangs.root.rank == 0 and not is_kept:
                _keep_tokenizer(source, kept)
            fields = {"tokenizer_family": CHAR_TOKENIZER_FAMILY, "tokenizer": f"tokenizer/{TOKENIZER_FILE}"}
        context.gangs.root.barrier()
        return CtcTask(codec, config.dataset.max_seconds, fields)


@final
class CtcTask(DownstreamTask):
    """Speech recognition with a tokenizer."""

    def __init__(self, codec: TranscriptCodec, max_seconds: Seconds, card: dict[str, object]) -> None:
        super().__init__(family=CTC_FAMILY, head={"vocabulary_size": codec.vocabulary_size}, balance=None, card=card)
        self._codec = codec
        self._max_seconds = max_seconds

    @override
    def check_row(self, row: ManifestRow, encoder: EncoderConfig) -> str | None:
        tokens = self._codec.encode(row.text)
        if not tokens:
            return "which have no text"
        if not self._codec.is_writable(tokens):
            return "with characters that the tokenizer does not know"
        if row.duration > self._max_seconds:
            return f"longer than `max_seconds` ({self._max_seconds:g})"
        num_samples = resampled_length(row.num_samples, row.sample_rate, _SAMPLE_RATE)
        if num_encoder_frames(num_samples, encoder) < num_frames_needed(tokens):
            return "too short for CTC to say their text"
        return None

    @override
    def create_criterion(self, model: Module, encoder: EncoderConfig) -> Criterion:
        return CtcCriterion(model, self._codec, encoder)

    @override
    def create_valid_unit(self, model: Module, encoder: EncoderConfig) -> CtcValidUnit:
        return CtcValidUnit(CtcCriterion(model, self._codec, encoder), self._codec)


def _keep_tokenizer(source: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    with atomic_file(folder / TOKENIZER_FILE) as temporary:
        shutil.copyfile(source, temporary)
