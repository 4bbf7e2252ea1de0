"""Pre-train SpidR or DinoSR: a student learns to predict codes of its own moving average behind masks.

    python -m recipes.spidr.pretrain OUT --config-file recipes/spidr/pretrain/configs/tiny_demo.yaml
    python -m recipes.spidr.pretrain OUT --config-file ... --config regime.num_steps=20 metrics.per_layer=true
    torchrun --standalone --nproc-per-node 8 -m recipes.spidr.pretrain OUT --config-file ...

Corpora are manifests: dataset.config_overrides.train='[{name: mine, manifest: mine.tsv}]', and valid alike. OUT gets
config.yaml, logs/, metrics/{train,valid}.jsonl, tb/ and checkpoints/. The same command started again goes on from the
last checkpoint, bit for bit. OUT must stand before --config, which takes all values that follow it.
Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.spidr.pretrain.recipe import SpidrPretrainRecipe

if __name__ == "__main__":
    main(SpidrPretrainRecipe(), __doc__)
