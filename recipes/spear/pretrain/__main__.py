"""Pre-train a SPEAR student by masked prediction of its teachers' MVQ tokens.

    python -m recipes.spear.pretrain OUT --config-file recipes/spear/pretrain/configs/tiny_demo.yaml
    python -m recipes.spear.pretrain OUT --config-file ... --config regime.num_steps=20 model.config_overrides.alpha=1.0
    torchrun --standalone --nproc-per-node 8 -m recipes.spear.pretrain OUT --config-file ...

OUT gets config.yaml, logs/, metrics/{train,valid}.jsonl, tb/ and checkpoints/. The same command started again goes on
from the last checkpoint, bit for bit. OUT must stand before --config, which takes all values that follow it.
Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.spear.pretrain.recipe import SpearPretrainRecipe

if __name__ == "__main__":
    main(SpearPretrainRecipe(), __doc__)
