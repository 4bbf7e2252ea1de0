r"""Fine-tune an encoder for speech recognition by CTC.

    python -m recipes.asr.finetune OUT --config-file recipes/asr/finetune/configs/librispeech_100h.yaml \
        --config encoder.checkpoint=spear_large_speech tokenizer=TOKENIZER \
        dataset.config_overrides.train='[{name: clean100, manifest: train.tsv}]' \
        dataset.config_overrides.valid='[{name: dev, manifest: dev.tsv}]'

Manifests need a column `text`; TOKENIZER is a folder that `recipes.asr.tokenizer` wrote, or a card. Rows without text,
with characters that the tokenizer does not know, or with more text than CTC can say in their time are skipped and
counted. OUT gets config.yaml, logs/, metrics/{train,valid}.jsonl, tb/, checkpoints/ and, at the end, card.yaml and
README.md. The same command started again goes on from the last checkpoint, bit for bit. Everything that can be set:
--dump-config.
"""

from __future__ import annotations

from recipes.asr.finetune.recipe import AsrFinetuneRecipe
from recipes.common import main

if __name__ == "__main__":
    main(AsrFinetuneRecipe(), __doc__)
