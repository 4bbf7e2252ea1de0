"""What the command lines of several commands have in common: resources, clusters, and the recipe's own options."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from slurm.clusters import default_preset_file, read_preset
from slurm.resources import Resources

_HELP: Final = {
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


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before and after the first ``--``."""
    index = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:index]), list(arguments[index + 1 :])


def create_parser(program: str, positional: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command whose own options end at ``--``; ``positional`` stands in its usage."""
    return argparse.ArgumentParser(
        prog=f"python -m {program}",
        usage=f"python -m {program} {positional} [options] -- [options of the recipe]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_job_options(parser: argparse.ArgumentParser, clusters: Sequence[str]) -> None:
    """Add the options that say where a job runs and what it gets; :func:`read_resources` understands them."""
    parser.add_argument(
        "--cluster", choices=clusters, default="slurm", help="slurm; local: this machine; debug: one process, here"
    )
    parser.add_argument("--preset", metavar="NAME", help=f"settings from {default_preset_file()}; options come on top")
    parser.add_argument("--clusters-file", metavar="FILE", type=Path, help="another file of presets")
    parser.add_argument("--name", help="the job's name (default: the module's last part)")
    parser.add_argument(
        "--copy-code", action="store_true", help="run a copy of the tracked files, so that you can edit on"
    )
    group = parser.add_argument_group("resources")
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


def read_resources(options: argparse.Namespace) -> Resources:
    """Return the preset with the options on top.

    Raises:
        LaunchError: There is no such preset, or a value is impossible.
    """
    given = {f.name: getattr(options, f.name) for f in fields(Resources) if hasattr(options, f.name)}
    base = read_preset(options.preset, options.clusters_file) if options.preset else Resources()
    return base.changed(given, "command line")
