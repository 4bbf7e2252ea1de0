"""Time of an optimizer step for the parameters of SPEAR base: ScaledAdam relative to torch's AdamW (foreach).

``python -m benchmarks.scaled_adam`` prints a table in Markdown. The two take turns on the same parameters and
gradients, so that a busy machine harms both alike, and the median round counts. On the CPU it is one thread's processor
time.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Final

import fairseq2
import torch
from rich.console import Console
from rich.progress import track
from torch.nn import Parameter

from spear_plugin.models.spear import create_spear_model, get_spear_model_hub
from spear_plugin.optim import ScaledAdam

WARM_UP_ROUNDS: Final = 4
"""The first steps create the state; every fourth step of ScaledAdam also updates sizes."""


def create_parameters(arch: str, device: torch.device) -> list[Parameter]:
    """Return random parameters of a size, with gradients."""
    with torch.device("meta"):
        model = create_spear_model(get_spear_model_hub().get_arch_config(arch))
    params = [Parameter(0.1 * torch.randn(param.shape, device=device)) for param in model.parameters()]
    for param in params:
        param.grad = 0.01 * torch.randn_like(param)
    return params


def measure(steps: dict[str, Callable[[], object]], num_rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Return the seconds of each step of each optimizer."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in track(range(WARM_UP_ROUNDS + num_rounds), console=Console(stderr=True), transient=True):
        for name, step in steps.items():
            start = read_clock(device)
            step()
            if round_number >= WARM_UP_ROUNDS:
                seconds[name].append(read_clock(device) - start)
    return seconds


def read_clock(device: torch.device) -> float:
    """Return the processor time of this process, or on a GPU the time once it is idle."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Measure one size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="base", help="size of SPEAR (default: base)")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds (default: 20)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="(default: cpu)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    fairseq2.init_fairseq2()
    params = create_parameters(arguments.arch, arguments.device)
    steps: dict[str, Callable[[], object]] = {
        "AdamW (foreach)": torch.optim.AdamW(params, lr=1e-6, foreach=True).step,
        "ScaledAdam": ScaledAdam(params).step,
    }
    seconds = measure(steps, arguments.rounds, arguments.device)
    baseline, ours = seconds.values()
    ratios = [b / a for a, b in zip(baseline, ours, strict=True)]

    num_elements = sum(param.numel() for param in params)
    print(f"{platform.machine()}, {arguments.device}, torch {torch.__version__}, {arguments.arch}: ", end="")
    print(f"{len(params)} tensors, {num_elements:,} elements, {arguments.rounds} rounds\n")
    print("| optimizer | ms | relative to AdamW |\n|---|---|---|")
    for name, values in seconds.items():
        ratio = 1.0 if name != "ScaledAdam" else statistics.median(ratios)
        print(f"| {name} | {1e3 * statistics.median(values):.0f} | {ratio:.2f} |")
    print(f"\nSteps in which sizes change: {statistics.median(ratios[WARM_UP_ROUNDS - 1 :: 4]):.2f}")


if __name__ == "__main__":
    main()
