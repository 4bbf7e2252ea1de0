"""Processor time and memory of a training step of SpidR Base, beside the authors' package `spidr` on the same batches.

``python -m benchmarks.spidr_step`` prints a table in Markdown. Both take turns in fresh processes, one thread: forward
pass, backward pass, limit on gradients, fused AdamW, codebooks and teacher. The authors' package asks for a newer
PyTorch than ours, but works with it; it is installed without its dependencies into a folder of its own, ``--peer``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW

from benchmarks.scaled_adam import read_clock
from benchmarks.train_step import MEGABYTE, peak_bytes
from spear_plugin.models.spidr import SpidrConfig, create_span_masker, create_spidr_model
from spear_plugin.models.spidr.frontend import SAMPLE_RATE

PROGRAMS: Final = ("ours", "spidr")

PHASES: Final = ("forward", "backward", "update")

PEER: Final = "spidr==0.2.0"

CPU: Final = torch.device("cpu")


@dataclass
class Measurement:
    """What one process finds."""

    seconds: list[list[float]]
    """Of each step, for each of ``PHASES``."""

    peak: float
    """The largest resident size of the process in bytes."""

    losses: list[float]
    """Of each step, for each masked frame and head."""


class OurStep:
    """A step as ``recipes.spidr.pretrain`` does it."""

    def __init__(self) -> None:
        self.model = create_spidr_model(SpidrConfig()).train()
        self._optimizer = create_optimizer(self.model)

    def forward(self, waveforms: Tensor, mask: Tensor) -> Tensor:
        self._output = self.model(waveforms, None, mask)
        return self._output.loss / self._output.num_masked

    def update(self, step_nr: int) -> None:
        clip_grad_norm_(self.model.parameters(), 10.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.model.codebooks.update(self._output.statistics)
        self.model.update_ema(step_nr)


class TheirStep:
    """The same with the authors' model, which updates its codebooks in its forward pass."""

    def __init__(self) -> None:
        self.model: Any = import_module("spidr.models").SpidR().train()
        self._optimizer = create_optimizer(self.model)

    def forward(self, waveforms: Tensor, mask: Tensor) -> Tensor:
        num_frames = mask.size(1)
        indices = mask.nonzero()[:, 1].view(len(mask), -1)  # as many in each row
        # As their batches have it, also if nothing is padded.
        attention_mask = torch.ones(len(mask), 1, num_frames, num_frames, dtype=torch.bool)
        loss: Tensor = self.model(waveforms, mask_indices=indices, attention_mask=attention_mask)[0]
        return loss.mean()

    def update(self, step_nr: int) -> None:
        clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 10.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.model.update_ema(step_nr)


def create_optimizer(model: torch.nn.Module) -> AdamW:
    """Return the paper's optimizer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return AdamW(trained, lr=5e-4, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.01, fused=True)


def run_steps(arguments: argparse.Namespace) -> None:
    """Measure a program in this process and print the result as JSON."""
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    step = OurStep() if arguments.program == "ours" else TheirStep()
    num_samples = round(arguments.length * SAMPLE_RATE)
    generator = torch.Generator().manual_seed(arguments.seed)
    masker = create_span_masker(SpidrConfig())
    seconds, losses = [], []
    for step_nr in range(1, arguments.steps + 2):
        waveforms = torch.randn(arguments.rows, num_samples, generator=generator)
        mask = masker.draw([num_samples] * arguments.rows, generator)
        times = [read_clock(CPU)]
        loss = step.forward(waveforms, mask)
        times.append(read_clock(CPU))
        loss.backward()
        times.append(read_clock(CPU))
        step.update(step_nr)
        times.append(read_clock(CPU))
        seconds.append([end - start for start, end in pairwise(times)])
        losses.append(float(loss.detach()))
    # Without the first step, which allocates.
    print(json.dumps(asdict(Measurement(seconds[1:], peak_bytes(), losses))))


def install_peer(folder: Path) -> None:
    """Install the authors' package into a folder unless it is there."""
    if not (folder / "spidr").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), PEER]
        subprocess.run(command, check=True)


def measure(arguments: argparse.Namespace, program: str, seed: int) -> Measurement:
    """Measure a program in a fresh process."""
    options = [f"--{name}={getattr(arguments, name)}" for name in ("steps", "rows", "length")]
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.spidr_step", f"--program={program}", f"--seed={seed}", *options],
        env=os.environ | {"PYTHONPATH": f"{Path.cwd()}:{arguments.peer.resolve()}"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    return Measurement(**json.loads(output.splitlines()[-1]))


def compare(arguments: argparse.Namespace) -> None:
    """Let the programs take turns, and print the table."""
    install_peer(arguments.peer)
    results: dict[str, list[Measurement]] = {program: [] for program in PROGRAMS}
    for seed in track(range(arguments.rounds), console=Console(stderr=True), transient=True):
        for program in PROGRAMS:
            results[program].append(measure(arguments, program, seed))
    print(f"torch {torch.__version__}, base, {arguments.rows} x {arguments.length:g} s, one thread, ", end="")
    print(f"{arguments.rounds} rounds of {arguments.steps} steps; s of processor time and MB\n")
    print(f"| program | {' | '.join(PHASES)} | step | ratio | peak | loss of the first step |")
    print("|---" * 8 + "|")
    for program, measurements in results.items():
        steps = [step for result in measurements for step in result.seconds]
        phases = [statistics.median(step[i] for step in steps) for i in range(len(PHASES))]
        total = statistics.median(map(sum, steps))
        ratio = statistics.median(mean(a) / mean(b) for a, b in zip(measurements, results["spidr"], strict=True))
        peak = statistics.median(result.peak for result in measurements) / MEGABYTE
        cells = [f"{value:.2f}" for value in (*phases, total, ratio)]
        loss = statistics.mean(result.losses[0] for result in measurements)
        print(f"| {program} | {' | '.join(cells)} | {peak:,.0f} | {loss:.3f} |")


def mean(result: Measurement) -> float:
    """Return the seconds of a step."""
    return statistics.mean(map(sum, result.seconds))


def main() -> None:
    """Compare the programs, or be one of the processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="processes of each program (default: 3)")
    parser.add_argument("--steps", type=int, default=4, help="measured steps of each (default: 4)")
    parser.add_argument("--rows", type=int, default=2, help="utterances in a batch (default: 2)")
    parser.add_argument("--length", type=float, default=5.0, help="seconds of each (default: 5)")
    parser.add_argument("--peer", type=Path, default=Path("build/spidr"), help="(default: build/spidr)")
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.program:
        run_steps(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
