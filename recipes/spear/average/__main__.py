"""Average checkpoints of SPEAR into one model.

    python -m recipes.spear.average OUT --config run=RUN last_n=5                 the last 5 checkpoints of a run
    python -m recipes.spear.average OUT --config run=RUN steps='[80000, 100000]'  those of named steps
    python -m recipes.spear.average OUT --config models='[card_a, card_b]'        models by the names of their cards
    python -m recipes.spear.average OUT --config run=RUN mode=running last_n=5    mean of all snapshots that the run's
                                                                                  running average took in since the
                                                                                  5th checkpoint before the last

mode=running needs a run with `running_average.every_n_steps`; `steps='[M, N]'` takes the snapshots after step M up to
step N, with M = 0 for all. Without last_n and steps everything there is gets averaged.

OUT/checkpoints is laid out as a run's, so OUT can be given wherever a run can. Beside the weights lies their
card, named `name`: step_N/model/card.yaml. OUT must be a new folder, and must stand before --config, which takes all
values that follow it. Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.spear.average.recipe import SpearAverageRecipe

if __name__ == "__main__":
    main(SpearAverageRecipe(), __doc__)
