"""Tag a corpus with a fine-tuned model and measure how well labels are ranked.

    python -m recipes.tagging.evaluate OUT --config checkpoint=RUN corpus.manifest=test.tsv

RUN is the folder of `recipes.tagging.finetune` or a card's name. The manifest needs a column `label`; several labels of
a recording are separated by `|`. OUT gets predictions.tsv, a line for each recording with its labels and the
probability of every label; classes.tsv, the average precision of each label, in percent; scores.json, their mean with a
bootstrap interval over recordings; and failed.tsv, the recordings that could not be used.
"""

from __future__ import annotations

from recipes.common import main
from recipes.tagging.evaluate.recipe import TaggingEvaluateRecipe

if __name__ == "__main__":
    main(TaggingEvaluateRecipe(), __doc__)
