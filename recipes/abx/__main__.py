r"""Do features and units tell phones apart? ABX errors by layer; for units also PNMI, purities and bitrate.

    python -m recipes.abx OUT --config corpus.manifest=clips.tsv alignment=clips.alignment.tsv \
        features='[{name: spidr, checkpoint: RUN}, {name: mel, kind: log_mel}, {name: km, kind: store, store: UNITS}]'

The manifest's recordings need phones: an alignment by recipes.corpus.align, MANIFEST.alignment.tsv by default. Features
are those of a model's layers, a teacher, log-mel energies, or a store that recipes.extract or recipes.spidr.units wrote
for the manifest. ABX runs fastabx in an environment of its own, which `make abx-env` makes.

OUT gets items.item, the compared pieces of speech in ZeroSpeech's format; abx.tsv, abx.json and abx.png; and
results/, a file for each source, which lets a second run go on. OUT must stand before --config, which takes all values
that follow it. Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.abx.recipe import AbxRecipe
from recipes.common import main

if __name__ == "__main__":
    main(AbxRecipe(), __doc__)
