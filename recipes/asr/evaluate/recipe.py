from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from fairseq2.assets import AssetCard
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from typing_extensions import override

from recipes.asr.evaluate.config import AsrEvaluateConfig
from recipes.asr.evaluate.results import (
    SCORES_FILE,
    TRANSCRIPTS_FILE,
    Transcript,
    score,
    write_scores,
    write_transcripts,
)
from recipes.evaluating import EvaluationBatch, EvaluationReader
from recipes.models import find_card, load_model, run_step_of
from recipes.tasks import StoppableTask, refuse_several_processes
from recipes.text import TOKENIZER_FILE, TranscriptCodec, open_tokenizer
from spear_plugin.data.manifest import ManifestRow, read_manifest
from spear_plugin.evaluation import count_errors
from spear_plugin.models.downstream import (
    CTC_FAMILY,
    CtcModel,
    decode_by_prefix_beam,
    decode_greedily,
    get_ctc_model_hub,
)


@final
class AsrEvaluateRecipe(Recipe):
    """Counts the errors of a speech recognizer."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return AsrEvaluateConfig

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.asr.evaluate")
        config = context.get_config_as(AsrEvaluateConfig)
        assert config.checkpoint is not None  # by the validation of the configuration
        rows = read_manifest(config.corpus.manifest_path)
        card = find_card(config.checkpoint, "`checkpoint`", CTC_FAMILY)
        codec = open_tokenizer(config.tokenizer or _find_tokenizer(config.checkpoint, card), "`tokenizer`")
        model = load_model(get_ctc_model_hub(), card, config.checkpoint, device=context.device).eval()
        if codec.vocabulary_size != model.config.vocabulary_size:
            raise RecipeError(
                f"`tokenizer`: must be the one that the model was trained with, of {model.config.vocabulary_size} "
                f"tokens, but has {codec.vocabulary_size}."
            )
        return EvaluationTask(config, rows, model, codec, context)


def _find_tokenizer(checkpoint: str, card: AssetCard) -> str:
    """Return the tokenizer that a run keeps, or else the card that may name one."""
    run = run_step_of(card)
    if run is None:
        return checkpoint
    folder = run.folder / "tokenizer"
    if not (folder / TOKENIZER_FILE).is_file():
        raise RecipeError(f"`tokenizer`: must be set, because {run.folder} keeps none.")
    return str(folder)


@final
class EvaluationTask(StoppableTask):
    """Transcribes batch by batch and writes everything at the end."""

    def __init__(
        self,
        config: AsrEvaluateConfig,
        rows: Sequence[ManifestRow],
        model: CtcModel,
        codec: TranscriptCodec,
        context: RecipeContext,
    ) -> None:
        super().__init__()
        self._config = config
        self._rows = rows
        self._model = model
        self._codec = codec
        self._folder: Path = context.output_dir
        self._reader = EvaluationReader(config.corpus, model.config.encoder, context.device)

    @override
    def run(self) -> None:
        with_text = self._reader.select(self._rows, lambda row: None if self._codec.encode(row.text) else "has no text")
        hypotheses = self._transcribe(with_text)
        self._reader.finish(self._folder)
        transcripts = [
            Transcript(row.id, reference, hypotheses[row.id], count_errors(reference, hypotheses[row.id]))
            for row in with_text
            if row.id in hypotheses
            for reference in [self._codec.normalize(row.text)]
        ]
        if len(transcripts) < 2:
            raise RecipeError(f"{self._config.corpus.manifest}: must have at least two usable recordings with text.")
        write_transcripts(self._folder / TRANSCRIPTS_FILE, transcripts)
        scores = score(transcripts, seed=self._config.common.seed, num_resamples=self._config.num_resamples)
        write_scores(self._folder / SCORES_FILE, scores, len(transcripts))
        for name, interval in (("WER", scores.wer), ("CER", scores.cer)):
            log.info("{}: {:.2%} [{:.2%}, {:.2%}]", name, interval.value, interval.low, interval.high)

    def _transcribe(self, rows: Sequence[ManifestRow]) -> dict[str, str]:
        """Return the hypothesis for each id; recordings without one are added to the failures."""
        hypotheses: dict[str, str] = {}
        for batch in self._reader.read(rows):
            self.check_stop()
            tokens = self._recognize(batch)
            hypotheses |= {id_: self._codec.decode(said) for id_, said in zip(batch.ids, tokens, strict=True)}
            self.count_step()
        return hypotheses

    @torch.inference_mode()
    def _recognize(self, batch: EvaluationBatch) -> list[list[int]]:
        """Return the tokens of each recording."""
        output = self._model(batch.waveforms, batch.lengths)
        frame_lengths = output.lengths.tolist()
        if self._config.decoding.method == "greedy":
            return decode_greedily(output.log_probs, frame_lengths)
        return [
            decode_by_prefix_beam(log_probs[:length], beam_size=self._config.decoding.beam_size)
            for log_probs, length in zip(output.log_probs.cpu(), frame_lengths, strict=True)
        ]
