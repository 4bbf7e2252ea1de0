"""What the corpus commands share: one-line errors, progress bars, parallel work."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Final, NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from spear_plugin.data.alignments import AlignmentFileError
from spear_plugin.data.audio import AudioError
from spear_plugin.data.manifest import ManifestError
from spear_plugin.data.scan import AudioFolderError

T = TypeVar("T")
R = TypeVar("R")

# Results go to stdout; what only accompanies them must not end up in a pipe.
STDERR: Final = Console(stderr=True)

_MAX_CHUNK_SIZE: Final = 16


class CorpusError(ValueError):
    """Raised when a command cannot do its work; the message is one line with what, the rule, and the remedy."""


def run_command(command: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a command line to its end; expected errors become one line on stderr and exit code 1."""
    try:
        command(sys.argv[1:])
    except (CorpusError, AlignmentFileError, AudioFolderError, ManifestError, AudioError, OSError) as ex:
        print(f"error: {ex}", file=sys.stderr)

        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)

        sys.exit(130)

    sys.exit(0)


def default_num_workers() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def map_parallel(function: Callable[[T], R], items: Sequence[T], *, num_workers: int, title: str) -> list[R]:
    """Return ``function(item)`` of all items, in their order, from ``num_workers`` processes and under a progress bar.

    :raises CorpusError: If a worker process dies.
    """
    if num_workers == 1 or len(items) < 2:
        with progress(title, len(items)) as advance:
            return [_advanced(advance, function(item)) for item in items]

    # Forked, not spawned: importing fairseq2 anew would cost each worker some seconds. All workers are forked by `map`,
    # that is before the progress bar starts its thread.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("fork")) as pool:
        chunk_size = max(1, min(_MAX_CHUNK_SIZE, len(items) // (4 * num_workers)))

        results = pool.map(function, items, chunksize=chunk_size)

        try:
            with progress(title, len(items)) as advance:
                return [_advanced(advance, result) for result in results]
        except BrokenProcessPool as ex:
            raise CorpusError(
                f"{title}: a worker process died, perhaps for want of memory. Start again with --workers 1."
            ) from ex
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)

            raise


def _advanced(advance: Callable[[], None], result: R) -> R:
    advance()

    return result


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar with rate and remaining time; yields the function to call after each item."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())

    with Progress(*columns, console=STDERR) as bar:
        task = bar.add_task(title, total=total)

        yield lambda: bar.advance(task)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed

        return Text("" if speed is None else f"{speed:.0f}/s")
