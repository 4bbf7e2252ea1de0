"""ABX errors by fastabx, which runs as a program in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fairseq2.recipe.error import RecipeError

from recipes.abx.results import LayerErrors

PROGRAM: Final = Path(__file__).with_name("fastabx_program.py")


def find_interpreter(environment: Path) -> Path:
    """Return the Python of the environment that has fastabx.

    Raises:
        RecipeError: If there is no such environment.
    """
    # Absolute, but not resolved: the link is what makes it the environment's Python.
    python = environment.absolute() / "bin" / "python"
    if not (environment / ".setup-complete").is_file() or not python.exists():
        raise RecipeError(
            f"`abx.environment`: {environment} is no finished environment with fastabx. Make it with `make abx-env`."
        )
    return python


def score_layers(
    python: Path, folder: Path, layers: list[int], *, use_cuda: bool, advance: Callable[[], None]
) -> list[LayerErrors]:
    """Return the errors of each layer in an exchange folder.

    Args:
        python: Of the environment.
        folder: What :mod:`recipes.abx.exchange` wrote.
        layers: The numbers of the layers there.
        use_cuda: Whether fastabx may use a GPU.
        advance: Called after each layer; what it raises ends the program.

    Raises:
        RecipeError: If the program fails.
    """
    environment = dict(os.environ) | {"TQDM_DISABLE": "1"}
    if not use_cuda:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    log = folder / "fastabx.log"
    errors = []
    # The program's own folder must not be searched for modules: some have the names of others' packages.
    command = [str(python), "-P", str(PROGRAM), str(folder)]
    with (
        log.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            for layer, line in zip(layers, process.stdout, strict=False):
                errors.append(LayerErrors(layer=layer, **json.loads(line)))
                advance()
            process.wait()
        finally:
            process.kill()
    if process.returncode != 0 or len(errors) != len(layers):
        lines = log.read_text(encoding="utf-8").strip().splitlines() or ["it says nothing"]
        raise RecipeError(
            f"fastabx failed: {lines[-1]}. If the environment is at fault, delete it and run `make abx-env` again."
        )
    return errors
