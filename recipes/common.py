"""What recipes share: the entry point with its help and error lines, common sections, a corpus seen by a teacher.

Letters: N batch, S samples, T frames, D width.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe
from fairseq2.recipe.cli import main as run_command_line
from fairseq2.recipe.config import CommonSection
from fairseq2.recipe.error import RecipeConfigParseError, RecipeError
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from recipes.secrets import HiddenSecrets
from recipes.stopping import STOPPED_EXIT_CODE, StopWatchingRecipe
from spear_plugin.data.audio import AudioError, read_audio, resampled_length
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import ManifestRow
from spear_plugin.teachers import Teacher


def main(recipe: Recipe, description: str | None) -> None:
    """Run a recipe from the command line.

    Args:
        recipe: The recipe.
        description: The module's documentation, printed above fairseq2's list of options by ``--help``.

    Raises:
        SystemExit: 1 for a failure, 2 for a wrong configuration or input, 3 for numbers that went astray, and
            ``STOPPED_EXIT_CODE`` if the recipe was stopped by SIGUSR1.
    """
    # A broken extension must stop the run, not print a warning about names that nobody can find later.
    os.environ.setdefault("FAIRSEQ2_EXTENSION_TRACE", "1")
    # As on a GPU, numbers below 1e-38 are 0. A CPU takes a hundred times as long for them, and training makes many.
    # Here, because threads take over the setting of the one that starts them.
    torch.set_flush_denormal(True)
    if description and not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        print(description)
        if spec := sys.modules["__main__"].__spec__:
            sys.argv[0] = f"python -m {spec.parent}"  # what people type, in place of __main__.py
    log.logger.addFilter(_OneLineConfigErrors())
    log.logger.addFilter(HiddenSecrets(os.environ))
    watched = StopWatchingRecipe(recipe)
    run_command_line(watched)
    if watched.was_stopped:
        sys.exit(STOPPED_EXIT_CODE)


def default_common_section() -> CommonSection:
    """Return fairseq2's section with the output written to OUT itself.

    fairseq2 adds a folder named by a hash of the whole configuration, so that a run whose ``regime.num_steps`` changed
    would silently start anew instead of going on.
    """
    return CommonSection(no_sweep_dir=True)


@dataclass(kw_only=True)
class CorpusSection(Validatable):
    """Which audio a teacher reads, and how."""

    manifest: Path | None = None
    """Manifest of the corpus, as ``recipes.corpus`` writes it."""

    max_batch_seconds: float = 120.0
    """Audio, with padding, in a batch of the teacher; a longer file is a batch of its own."""

    num_read_threads: int = 2
    """Threads that decode audio while the teacher works."""

    max_failures: int = 100
    """Files without usable audio that are skipped and listed in ``failed.tsv`` before the run ends with an error."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.manifest is None:
            result.add_error("`manifest` must be set to the path of a manifest.")

        for name in ("max_batch_seconds", "num_read_threads"):
            if (value := getattr(self, name)) <= 0:
                result.add_error(f"`{name}` must be positive, but is {value}.")

        return result

    @property
    def manifest_path(self) -> Path:
        """The manifest of a validated section."""
        assert self.manifest is not None

        return self.manifest


@final
@dataclass(frozen=True)
class EmbeddedUtterance:
    """What a teacher makes of a file."""

    row: ManifestRow

    frames: Tensor | None
    """(T, D) float32, T at most the frames of the file's duration; None if the file cannot be used."""

    problem: str = ""
    """Why it cannot be used."""


def embed_corpus(
    teacher: Teacher, rows: Sequence[ManifestRow], section: CorpusSection, device: torch.device
) -> Iterator[list[EmbeddedUtterance]]:
    """Yield batches of embedded files, the longest first.

    Which files share a batch follows from the manifest alone, so the frames do not depend on who computes them.
    """
    for batch, reads in read_batches(
        rows, section, sample_rate=teacher.sample_rate, num_frames=teacher.num_frames, reader=teacher.name
    ):
        yield _embed_batch(teacher, batch, reads, device)


def read_batches(
    rows: Sequence[ManifestRow],
    section: CorpusSection,
    *,
    sample_rate: int,
    num_frames: Callable[[int], int],
    reader: str,
) -> Iterator[tuple[list[ManifestRow], list[Tensor | str]]]:
    """Yield batches of files of similar lengths, the longest first, while the next batch is being read.

    Args:
        rows: The files. Which of them share a batch follows from their lengths and ids alone.
        section: How many share a batch, and how many threads read.
        sample_rate: Of the waveforms, in Hz.
        num_frames: From samples to the frames that the reader of the waveforms makes of them.
        reader: Its name, for messages.

    Yields:
        Rows, and for each of them the waveform (S,), or why it has none that gives a frame.
    """
    ahead: deque[tuple[list[ManifestRow], list[Future[Tensor | str]]]] = deque()

    def read(row: ManifestRow) -> Tensor | str:
        if num_frames(resampled_length(row.num_samples, row.sample_rate, sample_rate)) < 1:
            return f"{row.path}: lasts {row.duration:.3f} s, too short for one frame of {reader}"
        return _read_row(row, sample_rate)

    def finish_first() -> tuple[list[ManifestRow], list[Tensor | str]]:
        batch, futures = ahead.popleft()
        return batch, [future.result() for future in futures]

    with ThreadPoolExecutor(section.num_read_threads) as pool:
        for batch in _make_batches(rows, section.max_batch_seconds):
            ahead.append((batch, [pool.submit(read, row) for row in batch]))
            if len(ahead) > 1:
                yield finish_first()

        while ahead:
            yield finish_first()


def check_failures(num_failures: int, section: CorpusSection, folder: Path) -> None:
    """Raise :class:`RecipeError` if more files than allowed cannot be used."""
    if num_failures > section.max_failures:
        raise RecipeError(
            f"{section.manifest}: {num_failures} files cannot be used, more than `corpus.max_failures`; "
            f"{folder / 'logs'} names them. Repair the corpus, or raise the limit."
        )


def write_failures(path: Path, failures: Sequence[tuple[str, str]]) -> None:
    """Write (id, problem) of files that cannot be used, one a line below a header; no file for none."""
    if not failures:
        path.unlink(missing_ok=True)
        return

    lines = ["id\tproblem", *(f"{id_}\t{' '.join(problem.split())}" for id_, problem in failures)]
    with atomic_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _make_batches(rows: Sequence[ManifestRow], max_seconds: float) -> Iterator[list[ManifestRow]]:
    batch: list[ManifestRow] = []

    for row in sorted(rows, key=lambda row: (-row.duration, row.id)):
        if batch and batch[0].duration * (len(batch) + 1) > max_seconds:
            yield batch
            batch = []
        batch.append(row)

    if batch:
        yield batch


def _read_row(row: ManifestRow, sample_rate: int) -> Tensor | str:
    """Return the waveform (S,), or why there is none."""
    try:
        waveform = read_audio(row.path, sample_rate=sample_rate)
    except AudioError as ex:
        return str(ex)

    if waveform.size != (expected := resampled_length(row.num_samples, row.sample_rate, sample_rate)):
        return f"{row.path}: gives {waveform.size} samples at {sample_rate} Hz, but {expected} by the manifest"

    return torch.from_numpy(waveform)


def _embed_batch(
    teacher: Teacher, rows: list[ManifestRow], reads: list[Tensor | str], device: torch.device
) -> list[EmbeddedUtterance]:
    waveforms = [read for read in reads if isinstance(read, Tensor)]
    embedded: Iterator[Tensor] = iter(())

    if waveforms:
        lengths = torch.tensor([waveform.numel() for waveform in waveforms])
        # (N, S) -> (N, T, D)
        output = teacher(pad_sequence(waveforms, batch_first=True).to(device), lengths.to(device))
        embedded = (frames[:n] for frames, n in zip(output.frames, output.lengths.tolist(), strict=True))

    return [
        EmbeddedUtterance(row, None, read) if isinstance(read, str) else _cut_frames(teacher, row, next(embedded))
        for row, read in zip(rows, reads, strict=True)
    ]


def _cut_frames(teacher: Teacher, row: ManifestRow, frames: Tensor) -> EmbeddedUtterance:
    if not frames.isfinite().all():
        return EmbeddedUtterance(row, None, f"{row.path}: {teacher.name} gives infinite or undefined frames")

    # int(duration * rate), the length that readers of the codes rely on
    return EmbeddedUtterance(row, frames[: int(row.num_samples * teacher.frame_rate_hz / row.sample_rate)])


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
