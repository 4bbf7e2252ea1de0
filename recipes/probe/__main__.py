from __future__ import annotations

import recipes.probe
from recipes.common import main
from recipes.probe.recipe import ProbeRecipe

if __name__ == "__main__":
    main(ProbeRecipe(), recipes.probe.__doc__)
