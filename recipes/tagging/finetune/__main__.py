r"""Fine-tune an encoder for audio tagging: which of some labels are heard in a recording.

    python -m recipes.tagging.finetune OUT --config-file recipes/tagging/finetune/configs/audioset_20k.yaml \
        --config encoder.checkpoint=spear_base_speech_audio \
        dataset.config_overrides.train='[{name: balanced, manifest: train.tsv}]' \
        dataset.config_overrides.valid='[{name: eval, manifest: eval.tsv}]'

Manifests need a column `label`; several labels of a recording are separated by `|`. The vocabulary is that of the
training rows, or a file with one label a line (`labels`); rows without a label, or with one that is not in it, are
skipped and counted. OUT gets config.yaml, logs/, metrics/{train,valid}.jsonl, tb/, checkpoints/ and, at the end,
card.yaml and README.md. The same command started again goes on from the last checkpoint, bit for bit. Everything that
can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.tagging.finetune.recipe import TaggingFinetuneRecipe

if __name__ == "__main__":
    main(TaggingFinetuneRecipe(), __doc__)
