"""Processor time and memory of a training step of SPEAR: forward, backward, ScaledAdam, gradients to None.

``python -m benchmarks.train_step`` prints a table in Markdown. Each setting runs in fresh processes, which take turns
over the rounds, so that a busy machine harms all alike and the peak of memory is the setting's own. ``--checkout DIR``,
repeated, compares checkouts, and ``--profile`` prints the operations instead. The CPU takes numbers below 1e-38 for 0,
as it does in recipes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import fairseq2
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer

from benchmarks.regularization import create_batch, create_model
from benchmarks.scaled_adam import read_clock
from spear_plugin.models.spear import SpearModel
from spear_plugin.models.spear.ac import apply_ac_to_spear
from spear_plugin.models.zipformer import RegularizationConfig
from spear_plugin.optim import ScaledAdam

SETTINGS: Final = ("float32", "bfloat16", "checkpointing")
"""``bfloat16`` is autocast; ``checkpointing`` is float32 with every layer's activations computed again."""

PHASES: Final = ("forward", "backward", "optimizer")

MEGABYTE: Final = 1e6


@dataclass
class Measurement:
    """What one process finds."""

    seconds: list[list[float]]
    """Of each step, for each of ``PHASES``."""

    peak: float
    """The largest resident size of the process in bytes."""

    before: float
    """The same before the model is made: Python, torch and fairseq2 themselves."""

    saved: float
    """Bytes that the forward pass keeps for the backward pass, parameters left out; the mean of all steps."""


class TrainingStep:
    """A model in training mode, its optimizer and a batch."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.model: SpearModel = create_model(
            arguments.arch, RegularizationConfig(), arguments.batch_count, self.device
        )
        self.batch = create_batch(arguments.rows, arguments.length, self.device)
        self.optimizer: Optimizer = ScaledAdam(self.model.parameters())
        self.autocast = arguments.setting == "bfloat16"
        if arguments.setting == "checkpointing":
            apply_ac_to_spear(self.model, every_nth_layer=1)

    def __call__(self) -> list[float]:
        """Return the seconds of each of ``PHASES``."""
        times = [read_clock(self.device)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.model(*self.batch).loss
        times.append(read_clock(self.device))
        loss.backward()
        times.append(read_clock(self.device))
        self.optimizer.step()
        self.optimizer.zero_grad()
        times.append(read_clock(self.device))
        return [end - start for start, end in pairwise(times)]

    def measure_saved(self) -> float:
        """Return the bytes that a forward pass keeps."""
        owned = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        with count_saved_bytes(owned) as storages, torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            self.model(*self.batch)
        return float(sum(storages.values()))


@contextlib.contextmanager
def count_saved_bytes(owned: set[int]) -> Iterator[dict[int, int]]:
    """Fill a dictionary with the sizes of storages that are kept for a backward pass, without those in ``owned``."""
    storages: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in owned:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(x.detach())  # else its address could be given to another tensor
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        yield storages


def peak_bytes() -> float:
    """Return the largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def run_steps(arguments: argparse.Namespace) -> None:
    """Measure a setting in this process and print the result as JSON."""
    start_torch(arguments)
    before = peak_bytes()
    step = TrainingStep(arguments)
    step()
    seconds = [step() for _ in range(arguments.steps)]
    peak = peak_bytes()
    saved = statistics.mean(step.measure_saved() for _ in range(arguments.steps))
    print(json.dumps(asdict(Measurement(seconds, peak, before, saved))))


def run_profile(arguments: argparse.Namespace) -> None:
    """Print the operations that take most of some steps."""
    start_torch(arguments)
    step = TrainingStep(arguments)
    step()
    with torch.profiler.profile(record_shapes=arguments.shapes) as profile:
        for _ in range(arguments.steps):
            step()
    averages = profile.key_averages(group_by_input_shape=arguments.shapes)
    print(averages.table(sort_by="self_cpu_time_total", row_limit=arguments.lines, max_name_column_width=60))


def start_torch(arguments: argparse.Namespace) -> None:
    """Prepare this process as the recipes do, with one thread."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    fairseq2.init_fairseq2()


def measure(arguments: argparse.Namespace, checkout: Path, setting: str, seed: int) -> Measurement:
    """Measure a setting of a checkout in a fresh process."""
    names = ("arch", "steps", "rows", "length", "batch_count", "device")
    options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", f"--setting={setting}", f"--seed={seed}"]
    output = subprocess.run(
        [*command, *options],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout.resolve())},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    return Measurement(**json.loads(output.splitlines()[-1]))


def print_row(name: str, results: list[Measurement], baseline: list[Measurement]) -> None:
    """Print medians over all steps of all rounds, and the median ratio of the rounds to the first row's."""
    phases = [statistics.median(step[i] for result in results for step in result.seconds) for i in range(len(PHASES))]
    total = statistics.median(sum(step) for result in results for step in result.seconds)
    ratio = statistics.median(mean_step(b) / mean_step(a) for a, b in zip(baseline, results, strict=True))
    memory = [
        statistics.median(getattr(result, name) for result in results) / MEGABYTE
        for name in ("peak", "before", "saved")
    ]
    cells = [f"{value:.2f}" for value in (*phases, total, ratio)] + [f"{value:,.0f}" for value in memory]
    print(f"| {name} | {' | '.join(cells)} |")


def mean_step(result: Measurement) -> float:
    """Return the seconds of a step."""
    return statistics.mean(sum(step) for step in result.seconds)


def compare(arguments: argparse.Namespace) -> None:
    """Let settings and checkouts take turns, and print the table."""
    rows = [(checkout, setting) for setting in arguments.setting.split(",") for checkout in arguments.checkout]
    results: dict[tuple[Path, str], list[Measurement]] = {row: [] for row in rows}
    for seed in track(range(arguments.rounds), console=Console(stderr=True), transient=True):
        for checkout, setting in rows:
            results[checkout, setting].append(measure(arguments, checkout, setting, seed))

    print(f"{platform.machine()}, {arguments.device}, torch {torch.__version__}, {arguments.arch}, ", end="")
    print(f"{arguments.rows} x {arguments.length:g} s, batch count {arguments.batch_count:g}, ", end="")
    print(f"{arguments.rounds} rounds of {arguments.steps} steps; s and MB\n")
    print(f"| setting | {' | '.join(PHASES)} | step | ratio | peak | before the model | saved for backward |")
    print("|---" * 9 + "|")
    baseline = next(iter(results.values()))
    for (checkout, setting), measurements in results.items():
        name = setting if len(arguments.checkout) == 1 else f"{setting}, {checkout}"
        print_row(name, measurements, baseline)


def main() -> None:
    """Compare settings, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="base", help="size of SPEAR (default: base)")
    parser.add_argument("--setting", default=",".join(SETTINGS), help=f"(default: {','.join(SETTINGS)})")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each setting (default: 3)")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each (default: 4)")
    parser.add_argument("--rows", type=int, default=2, help="utterances in a batch (default: 2)")
    parser.add_argument("--length", type=float, default=8.0, help="seconds of each (default: 8)")
    parser.add_argument("--batch-count", type=float, default=20_000.0, help="of the schedules (default: 20000)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--checkout", type=Path, action="append", help="checkouts to compare (default: this one)")
    parser.add_argument("--profile", action="store_true", help="print the operations of the first setting")
    parser.add_argument("--shapes", action="store_true", help="tell operations of different shapes apart in it")
    parser.add_argument("--lines", type=int, default=25, help="lines of the profile (default: 25)")
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    arguments.checkout = arguments.checkout or [Path.cwd()]
    if arguments.worker:
        run_steps(arguments)
    elif arguments.profile:
        arguments.setting = arguments.setting.split(",")[0]
        run_profile(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
