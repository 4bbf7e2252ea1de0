r"""Run a recipe on each checkpoint of a training run, in jobs of its own beside the training.

    python -m slurm.watch MODULE RUN [options] -- [options of the recipe]

    python -m slurm.watch recipes.probe outputs/run --every-n-steps 4000 --preset h100 --time 30 -- --no-rich --config \
        publish=probe baselines=false features='[{name: mine, checkpoint: {checkpoint}}]' tasks='[phones.tsv]'

{checkpoint}, {run} and {step} in the recipe's options become the checkpoint's folder, RUN and the step. A job's output
is in RUN/beside/NAME/step_N, its log in RUN/beside/NAME/slurm. With publish=probe, recipes.probe adds its accuracies to
the run's TensorBoard (RUN/tb/probe) and to RUN/metrics/probe.jsonl at the step of the checkpoint.

Training knows nothing of this and never waits. The command may start before the run does; it ends when the job of the
last step (regime.num_steps) has ended. Started again, it takes what is not done, and leaves alone what is in the queue.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from slurm.beside import CheckpointWatcher
from slurm.files import LaunchError
from slurm.options import add_job_options, create_parser, read_resources, split_arguments
from slurm.snapshot import copy_code, save_code_state

_CLUSTERS: Final = ("slurm", "local")


def main(arguments: Sequence[str]) -> int:
    """Watch as the command line says; return the exit code."""
    own, recipe = split_arguments(arguments)
    options = _parser().parse_args(own)
    try:
        _check(options)
        watcher = _create_watcher(options, recipe, list(arguments))
        return _watch(watcher, options.poll_seconds, 3600.0 * options.max_idle_hours)
    except LaunchError as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130


def _check(options: argparse.Namespace) -> None:
    for name in ("every_n_steps", "jobs"):
        if (value := getattr(options, name)) < 1:
            raise LaunchError(f"`--{name.replace('_', '-')}` must be at least 1, but is {value}.")
    if options.poll_seconds <= 0 or options.max_idle_hours <= 0:
        raise LaunchError("`--poll-seconds` and `--max-idle-hours` must be positive.")


def _create_watcher(options: argparse.Namespace, recipe: list[str], command: list[str]) -> CheckpointWatcher:
    run, root, name = options.run.absolute(), Path.cwd(), options.name or options.module.split(".")[-1]
    folder = run / "beside" / name
    resources = read_resources(options)
    save_code_state(root, folder / "slurm", command)
    return CheckpointWatcher(
        run=run,
        folder=folder,
        arguments=("-m", options.module, "{out}", *recipe),
        root=copy_code(root, folder / "slurm") if options.copy_code else root,
        resources=resources,
        cluster=options.cluster,
        every_n_steps=options.every_n_steps,
        max_num_jobs=options.jobs,
    )


def _watch(watcher: CheckpointWatcher, poll_seconds: float, max_idle_seconds: float) -> int:
    last_news = time.monotonic()
    while True:
        for line in watcher.poll():
            print(line, flush=True)
            last_news = time.monotonic()
        if watcher.is_finished:
            break
        if watcher.is_idle and time.monotonic() - last_news > max_idle_seconds:
            print(watcher.summary())
            raise LaunchError(
                f"{watcher.run}: no new checkpoint for {max_idle_seconds / 3600:g} hours, and the last step is not "
                "reached. If training goes on, start this command again; `--max-idle-hours` is its patience."
            )
        time.sleep(poll_seconds)
    print(watcher.summary())
    return 1 if watcher.has_failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = create_parser("slurm.watch", "MODULE RUN", __doc__)
    parser.add_argument("module", metavar="MODULE", help="module to run, such as recipes.probe")
    parser.add_argument("run", metavar="RUN", type=Path, help="output folder of the training")
    parser.add_argument(
        "--every-n-steps",
        type=int,
        default=1,
        metavar="N",
        help="only checkpoints of steps that N divides, and the last (default: all)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="most jobs at a time (default: %(default)s)")
    parser.add_argument(
        "--poll-seconds", type=float, default=30.0, metavar="S", help="how often to look (default: %(default)s)"
    )
    parser.add_argument(
        "--max-idle-hours",
        type=float,
        default=24.0,
        metavar="H",
        help="end when there is no new checkpoint for so long (default: %(default)s)",
    )
    add_job_options(parser, _CLUSTERS)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
