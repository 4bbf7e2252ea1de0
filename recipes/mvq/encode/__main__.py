"""Encode a corpus: the codes of a teacher's frames, the targets of the student's pre-training.

    python -m recipes.mvq.encode OUT --config teacher.name=whisper quantizer.path=RUN/quantizer corpus.manifest=a.tsv
    torchrun --standalone --nproc-per-node 8 -m recipes.mvq.encode OUT --config ...

OUT becomes a code store (store.json, shard-00000.arrow, ...) beside config.yaml and logs/. Files without usable audio
are left out and listed in failed.tsv. The same command started again goes on with the shards that are missing, on any
number of processes: the store's bytes do not depend on it. OUT must stand before --config, which takes all values that
follow it. Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.mvq.encode.recipe import MvqEncodeRecipe

if __name__ == "__main__":
    main(MvqEncodeRecipe(), __doc__)
