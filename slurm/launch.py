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
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from slurm.clusters import default_preset_file, read_preset
from slurm.files import LaunchError
from slurm.job import RecipeJob
from slurm.resources import Resources
from slurm.snapshot import copy_code, save_code_state
from slurm.submission import CLUSTERS, script, submit

_HELP = {
    "nodes": "number of nodes",
    "tasks_per_node": "processes on each node (default: one for each GPU, or one)",
    "gpus_per_node": "GPUs of each node",
    "cpus_per_task": "cores of each process",
    "mem_gb": "memory of each node in GB",
    "time": "limit, as MINUTES, H:MM:SS or D-HH:MM:SS; a longer run is requeued (default: %(default)s)",
    "exclude": "nodes to avoid, such as node[3-4]",
    "dependency": "jobs to wait for, such as afterok:1234",
    "exclusive": "take whole nodes",
    "array_parallelism": "most members of an array that run at a time",
    "signal_seconds": "how long before the limit the run is asked to save (default: %(default)s)",
    "max_restarts": "restarts after a crash; wrong configurations are not started again (default: %(default)s)",
    "setup": "line of shell before the command, such as 'module load cuda'; may be repeated",
}


def main(arguments: Sequence[str]) -> int:
    """Submit as the command line says; return the exit code."""
    own, recipe = split_arguments(arguments)
    options = _parser().parse_args(own)
    try:
        return _launch(options, recipe, list(arguments))
    except LaunchError as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 2


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before and after the first ``--``."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:index]), list(arguments[index + 1 :])


def _launch(options: argparse.Namespace, recipe: list[str], command: list[str]) -> int:
    resources = _resources(options)
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
            print(f"error: job {job.job_id} failed: {_explain_failure(log)}\n  log: {log}", file=sys.stderr)
            code = 1
    return code


def _explain_failure(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    reasons = [line.partition("JobError: ")[2] for line in lines if "JobError: " in line]
    return reasons[-1] if reasons else "it did not say why."


def _resources(options: argparse.Namespace) -> Resources:
    given = {f.name: getattr(options, f.name) for f in fields(Resources) if hasattr(options, f.name)}
    base = read_preset(options.preset, options.clusters_file) if options.preset else Resources()
    return base.changed(given, "command line")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m slurm.launch",
        usage="python -m slurm.launch MODULE OUT [options] -- [options of the recipe]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("module", metavar="MODULE", help="module to run, such as recipes.spear.pretrain")
    parser.add_argument("out", metavar="OUT", type=Path, help="the recipe's output folder, seen by all nodes")
    parser.add_argument(
        "--cluster", choices=CLUSTERS, default="slurm", help="slurm; local: this machine; debug: one process, here"
    )
    parser.add_argument("--preset", metavar="NAME", help=f"settings from {default_preset_file()}; options come on top")
    parser.add_argument("--clusters-file", metavar="FILE", type=Path, help="another file of presets")
    parser.add_argument("--name", help="the job's name (default: the module's last part)")
    parser.add_argument(
        "--array",
        type=int,
        default=1,
        metavar="N",
        help="N independent jobs; {array_index} and {array_size} in OUT and the recipe's options become numbers",
    )
    parser.add_argument(
        "--copy-code", action="store_true", help="run a copy of the tracked files, so that you can edit on"
    )
    parser.add_argument("--wait", action="store_true", help="wait for the end (always, if not on Slurm)")
    parser.add_argument("--dry-run", action="store_true", help="print the script for sbatch and submit nothing")
    _add_resources(parser.add_argument_group("resources"))
    return parser


def _add_resources(group: argparse._ArgumentGroup) -> None:
    types = typing.get_type_hints(Resources)
    for f in fields(Resources):
        if f.name == "environment":  # in presets; on the command line, the shell's own variables serve
            continue
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _HELP.get(f.name, "as for sbatch")}
        settings["help"] = settings["help"].replace("%(default)s", str(f.default))
        if types[f.name] is bool:
            settings["action"] = "store_true"
        elif f.name == "setup":
            settings |= {"action": "append", "metavar": "LINE"}
        else:
            number = next((kind for kind in (int, float) if types[f.name] in (kind, kind | None)), str)
            settings |= {"type": number, "metavar": "N" if number is not str else f.name.upper()}
        group.add_argument(f"--{f.name.replace('_', '-')}", **settings)


if __name__ == "__main__":
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    sys.exit(main(sys.argv[1:]))
