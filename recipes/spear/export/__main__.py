"""Export a SPEAR model for other programs.

    python -m recipes.spear.export OUT --config model=RUN                    the last checkpoint of a run
    python -m recipes.spear.export OUT --config model=CARD                   a model by the name of its card
    python -m recipes.spear.export OUT --config model=RUN layout=training    with heads, as the authors' recipe saves it

layout=released, the default, writes model.safetensors (float32, without heads) and config.json with the keys and fields
of the authors' released models, so that code for those reads it. layout=training writes model.pt instead, which icefall
reads. Beside either lie README.md, a model card to complete, and card.yaml, fairseq2's card. OUT of layout=released can
be given to our recipes wherever a run can. OUT must be a new folder, and must stand before --config, which takes all
values that follow it. Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.spear.export.recipe import SpearExportRecipe

if __name__ == "__main__":
    main(SpearExportRecipe(), __doc__)
