"""Train a tokenizer on the transcripts of manifests.

    python -m recipes.asr.tokenizer OUT --config manifests='[train.tsv]' vocabulary_size=500
    python -m recipes.asr.tokenizer OUT --config manifests='[train.tsv]' kind=char

OUT gets tokenizer.model (sentencepiece) and card.yaml, a tokenizer asset of fairseq2. By default upper case becomes
lower case and punctuation, which nobody hears, white space; the apostrophe stays. This is part of the model, so whoever
encodes with it writes texts in the same way. Token 0 is the blank of CTC, token 1 stands for unknown characters.
"""

from __future__ import annotations

from recipes.asr.tokenizer.recipe import TokenizerRecipe
from recipes.common import main

if __name__ == "__main__":
    main(TokenizerRecipe(), __doc__)
