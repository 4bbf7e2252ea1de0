"""Transcribe a corpus with a fine-tuned model and count errors.

    python -m recipes.asr.evaluate OUT --config checkpoint=RUN corpus.manifest=test.tsv
    python -m recipes.asr.evaluate OUT --config checkpoint=RUN corpus.manifest=test.tsv decoding.method=beam

RUN is the folder of `recipes.asr.finetune` or a card's name. OUT gets transcripts.tsv, a line for each recording with
reference, hypothesis and errors; scores.json, error rates in percent with bootstrap intervals over recordings; and
failed.tsv, the recordings that could not be used.
"""

from __future__ import annotations

from recipes.asr.evaluate.recipe import AsrEvaluateRecipe
from recipes.common import main

if __name__ == "__main__":
    main(AsrEvaluateRecipe(), __doc__)
