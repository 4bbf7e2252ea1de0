"""Discrete units of speech: a corpus to the codes of a SpidR or DinoSR model, or to k-means clusters of its features.

    python -m recipes.spidr.units OUT --config checkpoint=RUN corpus.manifest=a.tsv layer=6 deduplicate=true
    python -m recipes.spidr.units OUT --config checkpoint=CARD corpus.manifest=a.tsv units_from=kmeans
    python -m recipes.spidr.units OUT --config checkpoint=CARD corpus.manifest=a.tsv content=probabilities
    torchrun --standalone --nproc-per-node 8 -m recipes.spidr.units OUT --config ...

OUT gets units.txt, a line for each recording, its id, a tab and its units, for training language models; the same as a
feature store, int16, to be read with spear_plugin.data.features.FeatureStore; and kmeans.safetensors, the clusters, for
other corpora (kmeans.path). Probabilities (T, V) and features (T, D) are in the store alone. Files without usable audio
are left out and listed in failed.tsv. The same command started again goes on with the shards that are missing, on any
number of processes. OUT must stand before --config, which takes all values that follow it. Everything that can be set:
--dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.spidr.units.recipe import SpidrUnitsRecipe

if __name__ == "__main__":
    main(SpidrUnitsRecipe(), __doc__)
