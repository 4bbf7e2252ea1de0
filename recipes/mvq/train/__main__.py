r"""Make a quantizer of a teacher's frames: multi-codebook (MVQ, the default), k-means, random projection, or the
teacher's own heads.

    python -m recipes.mvq.train OUT --config-file recipes/mvq/train/configs/speech.yaml \
        --config teacher.path=microsoft/wavlm-large corpus.manifest=sample.tsv
    python -m recipes.mvq.train OUT --config-file recipes/mvq/train/configs/demo_speech.yaml \
        --config corpus.manifest=train.tsv quantizer.num_codebooks=4
    python -m recipes.mvq.train OUT --config corpus.manifest=sample.tsv \
        quantizer.kind=kmeans quantizer.codebook_size=500
    python -m recipes.mvq.train OUT --config teacher.name=spidr teacher.path=SPIDR_RUN teacher.layer=8 \
        corpus.manifest=sample.tsv quantizer.kind=heads

OUT gets frames.safetensors (the sampled frames, collected once), checkpoints/, metrics/, tb/, quantizer/ (weights and
card, for `recipes.mvq.encode` or by name) and report.json (errors on held-out frames). The same command started again
goes on from the last block of frames or the last checkpoint, bit for bit. OUT must stand before --config, which takes
all values that follow it. Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.mvq.train.recipe import MvqTrainRecipe

if __name__ == "__main__":
    main(MvqTrainRecipe(), __doc__)
