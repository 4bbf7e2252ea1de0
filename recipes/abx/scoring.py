"""ABX errors by fastabx, which runs as a program in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self, final

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


@final
class FastAbx:
    """The program, started once for all sources; to be left as a context, which ends it."""

    def __init__(self, python: Path, log: Path, *, use_cuda: bool) -> None:
        """Prepare the program.

        Args:
            python: Of the environment.
            log: Gets what the program has to say.
            use_cuda: Whether it may use a GPU.
        """
        self._log = log
        # The program's own folder must not be searched for modules: some have the names of others' packages.
        self._command = [str(python), "-P", str(PROGRAM)]
        self._environment = dict(os.environ) | {"TQDM_DISABLE": "1"}
        if not use_cuda:
            self._environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """Start the program if it is not there yet; while it loads its packages, there is time for other work."""
        if self._process is None:
            with self._log.open("w", encoding="utf-8") as stderr:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    env=self._environment,
                    text=True,
                )
        return self._process

    def score(self, folder: Path, layers: Sequence[int], advance: Callable[[], None]) -> list[LayerErrors]:
        """Return the errors of each layer in an exchange folder.

        Args:
            folder: What :mod:`recipes.abx.exchange` wrote.
            layers: The numbers of the layers there.
            advance: Called after each layer.

        Raises:
            RecipeError: If the program fails.
        """
        process = self.start()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it could not start; its output ends, too
            process.stdin.write(f"{folder.absolute()}\n")
            process.stdin.flush()
        errors = []
        for layer in layers:
            if not (line := process.stdout.readline()):
                self._fail(process)
            errors.append(LayerErrors(layer=layer, **json.loads(line)))
            advance()
        return errors

    def _fail(self, process: subprocess.Popen[str]) -> NoReturn:
        process.wait()
        lines = self._log.read_text(encoding="utf-8").strip().splitlines() or ["it says nothing"]
        raise RecipeError(
            f"fastabx failed: {lines[-1]}. {self._log} says more; if the environment is at fault, delete it and run "
            "`make abx-env` again."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kls: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
