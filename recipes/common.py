"""What all recipes share: the entry point with its help and error lines, and common sections."""

from __future__ import annotations

import logging
import os
import sys
from typing import final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe
from fairseq2.recipe.cli import main as run_command_line
from fairseq2.recipe.config import CommonSection
from fairseq2.recipe.error import RecipeConfigParseError
from typing_extensions import override


def main(recipe: Recipe, description: str | None) -> None:
    """Run a recipe from the command line.

    Args:
        recipe: The recipe.
        description: The module's documentation, printed above fairseq2's list of options by ``--help``.
    """
    # A broken extension must stop the run, not print a warning about names that nobody can find later.
    os.environ.setdefault("FAIRSEQ2_EXTENSION_TRACE", "1")
    if description and not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        print(description)
    log.logger.addFilter(_OneLineConfigErrors())
    run_command_line(recipe)


def default_common_section() -> CommonSection:
    """Return fairseq2's section with the output written to OUT itself.

    fairseq2 adds a folder named by a hash of the whole configuration, so that a run whose ``regime.num_steps`` changed
    would silently start anew instead of going on.
    """
    return CommonSection(no_sweep_dir=True)


@final
class _OneLineConfigErrors(logging.Filter):
    """Replaces the stack trace of a wrong configuration by the innermost error, the one that names the key."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, RecipeConfigParseError):
            innermost: BaseException = error
            while innermost.__cause__ is not None:
                innermost = innermost.__cause__
            record.msg = f"{error} {innermost}" if innermost is not error else str(error)
            record.exc_info = None
        return True
