"""Cost of what acts in training only: a forward and backward pass of SPEAR with it, relative to one without.

``python -m benchmarks.regularization`` prints a table in Markdown. The settings take turns on the same batch, so that a
busy machine harms all alike, and the median round counts. On the CPU it is one thread's processor time; an optimizer's
step, the same in all, is left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from typing import Final

import fairseq2
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks.scaled_adam import read_clock
from spear_plugin.models.spear import DOMAINS, SpearModel, create_spear_model, get_spear_model_hub
from spear_plugin.models.zipformer import RegularizationConfig, forced_regularization, plain_regularization

SETTINGS: Final[dict[str, tuple[RegularizationConfig, float]]] = {
    "off (constant dropout)": (plain_regularization(), 0.0),
    "scheduled, batch count 0": (RegularizationConfig(), 0.0),
    "scheduled, batch count 20,000": (RegularizationConfig(), 20_000.0),
    "every rule in every call": (forced_regularization(), 20_000.0),
}


def create_model(
    arch: str, regularization: RegularizationConfig, batch_count: float, device: torch.device
) -> SpearModel:
    """Return a model in training mode whose schedules stand at ``batch_count``."""
    config = get_spear_model_hub().get_arch_config(arch)
    config.zipformer.regularization = regularization
    with device:
        model = create_spear_model(config)
    model.set_batch_count(batch_count)
    return model


def create_batch(
    num_rows: int, seconds: float, device: torch.device
) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Return noise of equal lengths, with random codes of both streams."""
    waveforms = 0.1 * torch.randn(num_rows, int(16000 * seconds), device=device)
    codes = {
        "speech": torch.randint(256, (num_rows, int(50 * seconds), 16), device=device),
        "audio": torch.randint(256, (num_rows, int(25 * seconds), 8), device=device),
    }
    lengths = torch.full((num_rows,), waveforms.size(1), device=device)
    return waveforms, lengths, codes, torch.arange(num_rows, device=device) % len(DOMAINS)


def main() -> None:
    """Measure one size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="base", help="size of SPEAR (default: base)")
    parser.add_argument("--rounds", type=int, default=8, help="measured rounds (default: 8)")
    parser.add_argument("--rows", type=int, default=2, help="utterances in a batch (default: 2)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each (default: 8)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="(default: cpu)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    fairseq2.init_fairseq2()
    batch = create_batch(arguments.rows, arguments.seconds, arguments.device)
    models = {name: create_model(arguments.arch, *setting, arguments.device) for name, setting in SETTINGS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in track(range(1 + arguments.rounds), console=Console(stderr=True), transient=True):
        for name, model in models.items():
            start = read_clock(arguments.device)
            model(*batch).loss.backward()
            if round_number > 0:
                seconds[name].append(read_clock(arguments.device) - start)
            model.zero_grad()

    print(f"{platform.machine()}, {arguments.device}, torch {torch.__version__}, {arguments.arch}, ", end="")
    print(f"{arguments.rows} x {arguments.seconds:g} s, {arguments.rounds} rounds\n")
    print("| regularization | s | relative to off | range |\n|---|---|---|---|")
    baseline = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratios = [b / a for a, b in zip(baseline, values, strict=True)]
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(ratios):.2f} | ", end="")
        print(f"{min(ratios):.2f} to {max(ratios):.2f} |")


if __name__ == "__main__":
    main()
