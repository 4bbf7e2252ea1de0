"""SPEAR and SpidR for fairseq2."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer


def setup_fairseq2_extension(container: DependencyContainer) -> None:
    """Register the plugin: the ``fairseq2.extension`` entry point, called by ``init_fairseq2()`` and all recipes."""
    # Not above: commands and worker processes that only need a manifest or an audio file should not wait for torch.
    from spear_plugin.composition import register_spear_plugin  # noqa: PLC0415

    register_spear_plugin(container)
