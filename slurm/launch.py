r"""Run a recipe on a Slurm cluster: one task for each GPU, on as many nodes as you like.

    python -m slurm.launch MODULE OUT [options] -- [options of the recipe]

    python -m slurm.launch recipes.spear.pretrain outputs/run --nodes 4 --gpus-per-node 8 --cpus-per-task 12 \
        --time 1-00:00:00 --partition gpu -- --config-file recipes/spear/pretrain/configs/large_speech_audio.yaml
    python -m slurm.launch recipes.spear.pretrain outputs/run --preset h100 --nodes 4 -- --config-file ...
    python -m slurm.launch recipes.spear.pretrain outputs/run --cluster local --tasks-per-node 2 -- --config-file ...

Run it from the root of the checkout. --dry-run prints what sbatch would get. OUT/slurm/JOB has the logs of each task,
OUT/slurm/code-* the commit and the changes that the job runs. At the time limit or a preemption the run saves a
checkpoint, is requeued and goes on; after a crash or the loss of a node it is started again: see docs/slurm.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurm.files import LaunchError
from slurm.job import RecipeJob
from slurm.options import add_job_options, create_parser, read_resources, split_arguments
from slurm.snapshot import copy_code, save_code_state
from slurm.submission import CLUSTERS, explain_failure, script, submit


def main(arguments: Sequence[str]) -> int:
    """Submit as the command line says; return the exit code."""
    own, recipe = split_arguments(arguments)
    options = _parser().parse_args(own)
    try:
        return _launch(options, recipe, list(arguments))
    except LaunchError as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 2


def _launch(options: argparse.Namespace, recipe: list[str], command: list[str]) -> int:
    resources = read_resources(options)
    folder, root, name = options.out.absolute() / "slurm", Path.cwd(), options.name or options.module.split(".")[-1]
    if options.array < 1:
        raise LaunchError(f"`--array` must be at least 1, but is {options.array}.")
    if options.dry_run:
        print(script(resources, root=root, name=name, folder=folder, num_jobs=options.array))
        for member in range(options.array):
            print(f"# task: {shlex.join(['python', *_command(options, recipe, member)])}")
        return 0
    save_code_state(root, folder, command)
    code = copy_code(root, folder) if options.copy_code else root
    jobs = [
        RecipeJob(
            arguments=_command(options, recipe, member),
            root=code,
            max_restarts=0 if options.cluster == "debug" else resources.max_restarts,
            state_folder=folder,
        )
        for member in range(options.array)
    ]
    submitted = submit(jobs, resources, cluster=options.cluster, name=name, folder=folder)
    for job in submitted:
        print(f"job {job.job_id}: log of its first task {job.paths.stdout}", flush=True)
    if options.wait or options.cluster != "slurm":
        return _wait(submitted)
    return 0


def _command(options: argparse.Namespace, recipe: list[str], member: int) -> tuple[str, ...]:
    def fill(text: str) -> str:
        return text.replace("{array_index}", str(member)).replace("{array_size}", str(options.array))

    return ("-m", options.module, fill(str(options.out.absolute())), *map(fill, recipe))


def _wait(jobs: Sequence[Any]) -> int:
    code = 0
    for job in jobs:
        try:
            job.results()
        except Exception:  # whatever the job raised; its log has it all
            log = job.paths.stdout
            print(f"error: job {job.job_id} failed: {explain_failure(log)}\n  log: {log}", file=sys.stderr)
            code = 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = create_parser("slurm.launch", "MODULE OUT", __doc__)
    parser.add_argument("module", metavar="MODULE", help="module to run, such as recipes.spear.pretrain")
    parser.add_argument("out", metavar="OUT", type=Path, help="the recipe's output folder, seen by all nodes")
    parser.add_argument(
        "--array",
        type=int,
        default=1,
        metavar="N",
        help="N independent jobs; {array_index} and {array_size} in OUT and the recipe's options become numbers",
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end (always, if not on Slurm)")
    parser.add_argument("--dry-run", action="store_true", help="print the script for sbatch and submit nothing")
    add_job_options(parser, CLUSTERS)
    return parser


if __name__ == "__main__":
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    sys.exit(main(sys.argv[1:]))
