"""Extract features: audio files to the hidden layers of a model, a teacher, or log-mel energies.

    python -m recipes.extract OUT --config source.checkpoint=RUN corpus.manifest=a.tsv
    python -m recipes.extract OUT --config source.checkpoint=CARD corpus.manifest=FOLDER layers='[0, 5]'
    torchrun --standalone --nproc-per-node 8 -m recipes.extract OUT --config ...

source.checkpoint is a card's name, a run's folder, or a folder with the config.json and model.safetensors of a released
model; source.kind=teacher and source.kind=log_mel are the other sources. corpus.manifest is a manifest or a folder of
audio files.

OUT becomes a feature store: shard-00000.safetensors, ... with a tensor (L, T, D) for each id (layers=last: (T, D), the
output), or features/ID.npz with output.format=npz; index.tsv with id, file, frames; meta.json. Read it with
spear_plugin.data.features.FeatureStore. Files without usable audio are left out and listed in failed.tsv. The same
command started again goes on with the shards that are missing, on any number of processes. A file is encoded in one
pass, whose memory grows by the square of its length; for recordings of minutes to hours say chunks='{seconds: 30,
overlap_seconds: 10}'. OUT must stand before --config, which
takes all values that follow it. Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.extract.recipe import ExtractRecipe

if __name__ == "__main__":
    main(ExtractRecipe(), __doc__)
