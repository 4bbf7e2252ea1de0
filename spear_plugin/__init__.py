"""SPEAR and SpidR for fairseq2: the one place that registers cards, model families and dataset families."""

from __future__ import annotations

from fairseq2.composition import register_package_assets
from fairseq2.runtime.dependency import DependencyContainer


def setup_fairseq2_extension(container: DependencyContainer) -> None:
    """Register everything that the plugin adds to fairseq2.

    The ``fairseq2.extension`` entry point calls this for every ``init_fairseq2()`` and for every recipe run. Registering
    a name twice is an error in fairseq2, therefore recipes register nothing of their own.
    """
    register_package_assets(container, "spear_plugin.cards")
