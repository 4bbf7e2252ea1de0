"""Run a pipeline or a sweep from one YAML file, on this machine or as dependent jobs on Slurm.

    python -m slurm.pipeline run FILE                  what is not finished; stages side by side while cores are free
    python -m slurm.pipeline run FILE --cluster slurm  the same as jobs that wait for each other
    python -m slurm.pipeline run FILE --dry-run        print the commands
    python -m slurm.pipeline status FILE               stage, state, step, rate, time left, last metrics, log
    python -m slurm.pipeline table FILE                a sweep's results: OUT/table.tsv, OUT/table.md

slurm/plan.py and docs/slurm.md describe the file's form; recipes/sweeps has an example. Started again, a pipeline skips
what is finished, unless its command has changed, and goes on with what was interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import yaml
from rich.console import Console

from slurm.clusters import read_preset
from slurm.files import LaunchError
from slurm.plan import Plan, read_plan
from slurm.progress import stage_status, status_table
from slurm.results import collect, write_tables
from slurm.run import SlurmRunner, default_num_cores, local_stages, member_names
from slurm.stages import StageError, StageRunner

_PIPE_WIDTH: Final = 250


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says; return the exit code."""
    options = _parser().parse_args(arguments)
    # Where no terminal has a width, as in a pipe, lines are not folded.
    console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    try:
        plan = read_plan(
            options.file,
            out=options.out,
            values=dict(_parse_value(text) for text in options.set),
            base=read_preset(options.preset) if options.preset else None,
        )
        if options.only:
            plan = plan.limited_to(options.only)
        if options.action == "run":
            _run(plan, options)
        elif options.action == "status":
            is_local = options.cluster == "local"
            console.print(status_table([stage_status(plan, stage, is_local=is_local) for stage in plan.stages]))
        if options.action == "table" or (options.action == "run" and plan.metrics and not options.dry_run):
            console.print(write_tables(plan, collect(plan)))
    except LaunchError as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 2
    except StageError as ex:
        print(f"error: {ex}", file=sys.stderr)
        return 1
    return 0


def _run(plan: Plan, options: argparse.Namespace) -> None:
    if options.dry_run:
        for stage in plan.stages:
            needs = f"  (after {', '.join(stage.needs)})" if stage.needs else ""
            for name, command in zip(member_names(stage), stage.commands, strict=True):
                print(f"{name}{needs}\n  {shlex.join(['python', *command])}")
    elif options.cluster == "slurm":
        for name, job in SlurmRunner(plan, Path.cwd()).run().items():
            print(f"job {job}: {name}")
    else:
        StageRunner(plan.out, options.cores).run(local_stages(plan, options.cores))


def _parse_value(text: str) -> tuple[str, object]:
    name, is_pair, value = text.partition("=")
    if not is_pair:
        raise LaunchError(f"`--set` must be NAME=VALUE, but is {text}.")
    return name, yaml.safe_load(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m slurm.pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "status", "table"), help="what to do")
    parser.add_argument("file", metavar="FILE", type=Path, help="the pipeline's YAML file")
    parser.add_argument("--cluster", choices=("local", "slurm"), default="local", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="instead of the file's `out`")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="on top of the file's `values`"
    )
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages and what they need")
    parser.add_argument("--preset", metavar="NAME", help="resources from your file of presets, see slurm.launch --help")
    parser.add_argument(
        "--cores", type=int, default=default_num_cores(), metavar="N", help="threads to keep busy (local)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
