"""Going on with another number of processes than those that wrote the last checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from fairseq2.checkpoint import CheckpointDir
from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.error import RecipeError

from spear_plugin.data.files import atomic_file
from spear_plugin.data.seeds import derive_seed

_TOTAL_PREFIX: Final = "total_"  # fairseq2 sets all other metrics to zero when it resumes.

_MESSAGE: Final = (
    "The checkpoint of step {} was written by {} processes, {} go on. Model, optimizer, schedules, averages and totals "
    "are what they were, and each example of the epoch is still read once. {} For the same training, keep "
    "`dataset.max_batch_seconds` x processes x `trainer.grad_accumulation.num_batches` the same."
)


def adapt_checkpoint(context: RecipeContext, *, seed: int) -> None:
    """Give each process of this run its own state in the last checkpoint, which other numbers of processes wrote.

    Readers find their place by themselves. The random numbers of processes that were not there follow from the seed,
    step and rank. To be called by all processes before training is restored.

    Raises:
        RecipeError: The checkpoint's model is in pieces (FSDP), of another number than this run's.
    """
    gangs = context.gangs
    step_nr = context.get_checkpoint_manager().maybe_get_last_step_number(exclude_model_only=True)
    if step_nr is not None:
        folder = checkpoint_folder(context) / f"step_{step_nr}"
        _check_shards(folder, gangs.sdp.size)
        if gangs.root.rank == 0 and gangs.dp.size == gangs.root.size and gangs.sdp.size == 1:
            _adapt(folder, step_nr, num_processes=gangs.root.size, device=gangs.device, seed=seed)
    gangs.root.barrier()


def checkpoint_folder(context: RecipeContext) -> Path:
    """Return the folder of the run's checkpoints."""
    return context.resolver.resolve(CheckpointDir).path or context.output_dir / "checkpoints"


def _check_shards(folder: Path, num_shards: int) -> None:
    num_before = len(list((folder / "model").rglob("sdp_*.pt")))
    if num_before != num_shards:
        raise RecipeError(
            f"{folder} holds its model in {num_before} piece(s), but this run needs {num_shards}: go on with the "
            "number of processes and the `trainer.data_parallelism` that it began with, or begin another run."
        )


def _adapt(folder: Path, step_nr: int, *, num_processes: int, device: torch.device, seed: int) -> None:
    num_before = len(list((folder / "trainer").glob("rank_*.pt")))
    if num_before == num_processes:
        return
    if num_before < num_processes:
        for rank in range(num_before, num_processes):
            _add_process(folder, rank, device, derive_seed("process", seed, step_nr, rank) % 2**63)
        consequence = f"The random numbers of processes {num_before} to {num_processes - 1} begin anew."
    else:
        _remove_processes(folder, num_processes, num_before)
        consequence = "The random numbers of the others are not used again."
    log.info(_MESSAGE, step_nr, num_before, num_processes, consequence)


def _add_process(folder: Path, rank: int, device: torch.device, seed: int) -> None:
    # Processes are counted by their trainer's files, so these come last.
    with atomic_file(_reader_file(folder, rank)) as temporary:
        shutil.copyfile(_reader_file(folder, 0), temporary)
    state = _load(_trainer_file(folder, 0))
    generators = state["_rng_bag"]["generators"]
    state["_rng_bag"]["generators"] = [
        torch.Generator(on).manual_seed(seed).get_state()
        for on, _ in zip((torch.device("cpu"), device), generators, strict=False)
    ]
    for total in _totals(state):
        for name, value in total.items():
            total[name] = value * 0
    _save(state, _trainer_file(folder, rank))


def _remove_processes(folder: Path, num_kept: int, num_before: int) -> None:
    state = _load(_trainer_file(folder, 0))
    for rank in range(num_kept, num_before):
        for total, addend in zip(_totals(state), _totals(_load(_trainer_file(folder, rank))), strict=True):
            for name, value in addend.items():
                total[name] = total[name] + value
    _save(state, _trainer_file(folder, 0))
    for rank in reversed(range(num_kept, num_before)):
        _trainer_file(folder, rank).unlink()
        _reader_file(folder, rank).unlink()


def _totals(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the state of each metric over the whole run, sums by name."""
    for name, metric in sorted(state["_metric_bag"].items()):
        if name.startswith(_TOTAL_PREFIX):
            yield metric


def _trainer_file(folder: Path, rank: int) -> Path:
    return folder / "trainer" / f"rank_{rank:02d}.pt"


def _reader_file(folder: Path, rank: int) -> Path:
    return folder / "data_reader" / f"dp_{rank:02d}.pt"


def _load(path: Path) -> dict[str, Any]:
    # The run's own files, which fairseq2 reads in the same way when it goes on.
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    return state


def _save(state: dict[str, Any], path: Path) -> None:
    with atomic_file(path) as temporary:
        torch.save(state, temporary)
