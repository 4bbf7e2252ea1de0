r"""Draw what a model has learnt: frames by phone, a masked prediction, how codebooks are used.

    python -m recipes.gallery OUT --config corpus.manifest=clips.tsv masked.checkpoint=RUN masked.codes=STORE \
        features='[{name: student, checkpoint: RUN}, {name: log-mel, kind: log_mel}]' \
        stores='{speech: STORE, audio: STORE}'

OUT/frames_by_phone.png: frames from the middle of phones, in the plane of t-SNE, a panel for each source of `features`.
Needs the alignment of the recordings, NAME.alignment.tsv beside the manifest (`recipes.corpus.align`).
OUT/masked_prediction.png: a recording behind a mask, the teacher's codes and those that `masked.checkpoint` predicts.
OUT/codebook_usage.png: how often the entries of the codebooks in `stores` occur.

What is not configured is not drawn. Accuracy layer by layer is drawn by `recipes.probe` (`layers: best`). OUT must
stand before --config, which takes all values that follow it. Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.gallery.recipe import GalleryRecipe

if __name__ == "__main__":
    main(GalleryRecipe(), __doc__)
