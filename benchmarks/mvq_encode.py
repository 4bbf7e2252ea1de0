"""Quantizer: frames encoded per second of processor time and seconds of a training step, ours against the package.

``python -m benchmarks.mvq_encode`` prints tables in Markdown. Both sides have the same weights and frames, run on one
thread and take turns, so that a busy machine harms both alike; the median round counts. The package
``multi-quantization`` comes with the extra ``bench``; without it, only our numbers are printed.
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.optim import Adam

from spear_plugin.quantizers import (
    MultiCodebookQuantizer,
    MvqQuantizerConfig,
    QuantizerProgress,
    QuantizerTrainer,
    QuantizerTrainingConfig,
    relative_errors_by_num_refinements,
)

DIM: Final = 1024
BATCH_FRAMES: Final = 1024
CONSOLE: Final = Console(stderr=True)


def make_frames(num_frames: int) -> Tensor:
    """Return frames (F, D) like a teacher's: smooth in time, few strong directions, outlying channels."""
    torch.manual_seed(0)
    # Directions of falling strength; a random walk on the unit circle in each.
    phases = torch.cumsum(0.6 * torch.randn(num_frames, 64), dim=0)
    strengths = torch.linspace(1, 0, 64) ** 2
    frames = torch.tanh((torch.sin(phases) * strengths) @ torch.randn(64, DIM))
    return frames * torch.exp(0.5 * torch.randn(DIM)) + torch.randn(DIM)


def train(frames: Tensor, num_steps: int) -> MultiCodebookQuantizer:
    """Return a quantizer of SPEAR's size for speech after a short training."""
    sizes = MvqQuantizerConfig(dim=DIM, normalize=False)
    half = num_steps // 2
    config = QuantizerTrainingConfig(phase_one_steps=half, phase_two_steps=half, batch_frames=BATCH_FRAMES)
    trainer = QuantizerTrainer(frames, sizes, config)

    def show(progress: QuantizerProgress) -> None:
        error = float(progress.losses.relative_reconstruction)
        CONSOLE.print(f"training: step {progress.num_steps_done} of {progress.num_steps}, error {error:.3f}", end="\r")

    trainer.run(show)
    return trainer.quantizer.eval()


def create_package_quantizer(quantizer: MultiCodebookQuantizer) -> Any:
    """Return the package's quantizer with the weights of ours."""
    from multi_quantization import Quantizer  # noqa: PLC0415

    theirs = Quantizer(dim=DIM, codebook_size=quantizer.codebook_size, num_codebooks=quantizer.num_codebooks)
    theirs.load_state_dict(quantizer.state_dict())
    return theirs


def measure(tasks: Mapping[str, Callable[[], object]], num_rounds: int, title: str) -> dict[str, float]:
    """Return the seconds of processor time of each task."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in track(range(num_rounds), title, console=CONSOLE, transient=True):
        for name, run in tasks.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare_encoding(quantizer: MultiCodebookQuantizer, theirs: Any, frames: Tensor, num_rounds: int) -> list[str]:
    """Return table rows: the package on few frames, in small chunks (its fastest) and in one of 256."""
    quantizer.encode(frames[:16])  # computes the products of the entries
    tasks: dict[str, Callable[[], object]] = {"ours": lambda: quantizer.encode(frames)}
    counts = {"ours": len(frames)}
    for chunk_size in (16, 256) if theirs else ():
        name, few = f"package, chunks of {chunk_size}", frames[:256]
        tasks[name] = lambda few=few, size=chunk_size: [theirs.encode(c) for c in few.split(size)]  # type: ignore[misc]
        counts[name] = len(few)
    rates = {name: counts[name] / s for name, s in measure(tasks, num_rounds, "encoding").items()}
    equal = float((theirs.encode(frames[:256]) == quantizer.encode(frames[:256])).float().mean()) if theirs else 1.0
    return [f"| {name} | {rate:,.0f} | {rates['ours'] / rate:.1f} | {equal:.2%} |" for name, rate in rates.items()]


def compare_training(quantizer: MultiCodebookQuantizer, theirs: Any, frames: Tensor, num_rounds: int) -> list[str]:
    """Return table rows of a step of loss, gradients and Adam, for 1 and 2 refinements."""
    quantizer.train()
    optimizer = Adam(quantizer.parameters(), 1e-4, fused=True)

    def step_ours(num_refinements: int) -> None:
        optimizer.zero_grad()
        torch.autograd.backward(quantizer.compute_loss(frames, num_refinements=num_refinements).total)
        optimizer.step()

    def step_theirs(num_refinements: int) -> None:
        their_optimizer.zero_grad()
        reconstruction, classification, entropy, _ = theirs.compute_loss(frames, num_refinements)
        torch.autograd.backward(reconstruction + classification + 0.01 * entropy)
        their_optimizer.step()

    rows = []
    step_ours(1)
    for num_refinements in (1, 2):
        tasks = {"ours": lambda n=num_refinements: step_ours(n)}
        if theirs:
            their_optimizer = Adam(theirs.parameters(), 1e-4)
            tasks["package"] = lambda n=num_refinements: step_theirs(n)
        seconds = measure(tasks, num_rounds, "training steps")
        rows += [f"| {name} | {num_refinements} | {s:.2f} | {s / seconds['ours']:.1f} |" for name, s in seconds.items()]
    return rows


def peak_memory() -> str:
    """Return the largest resident memory of this process so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"


def processor_name() -> str:
    """Return what the system calls the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--frames", type=int, default=2048, help="frames that ours encodes a round")
    parser.add_argument("--training-steps", type=int, default=40, help="of the quantizer, before it is measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = make_frames(8192 + options.frames)
    quantizer = train(frames[:8192], options.training_steps)
    unseen = frames[8192:]
    errors = relative_errors_by_num_refinements(quantizer, unseen)
    memory = {"start": peak_memory()}
    quantizer.encode(unseen)
    theirs: Any = None
    if find_spec("multi_quantization"):
        theirs = create_package_quantizer(quantizer)
    else:
        CONSOLE.print("multi-quantization is not installed: pip install multi-quantization h5py")
    packages = [f"torch {torch.__version__}", f"multi-quantization {version('multi-quantization')}" if theirs else ""]
    print(f"{processor_name()}, one thread, Python {platform.python_version()}, {', '.join(filter(None, packages))}\n")
    print(f"Relative error after 0 to 5 refinements: {', '.join(f'{e:.3f}' for e in errors)}.")
    print(f"Peak memory of our training and encoding: {memory['start']}.\n")
    print("| encoding, 5 refinements | frames per second | ours / this | equal codes |\n|---|---|---|---|")
    print("\n".join(compare_encoding(quantizer, theirs, unseen, options.rounds)), flush=True)
    print(f"\n| training step of {BATCH_FRAMES} frames | refinements | seconds | this / ours |\n|---|---|---|---|")
    print("\n".join(compare_training(quantizer, theirs, unseen[:BATCH_FRAMES], options.rounds)))


if __name__ == "__main__":
    main()
