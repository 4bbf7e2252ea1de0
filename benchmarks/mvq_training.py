"""Training of a quantizer: error on held-out frames and seconds of processor time, ours against the package.

``python -m benchmarks.mvq_training FRAMES`` takes ``frames.safetensors`` of a run of ``recipes.mvq.train`` and trains
both sides on the same frames with the same numbers of steps, frames a step, codebooks and learning rates, with several
seeds. The last tenth of the frames is held out; both sides' codes come from the same search with 5 refinements. The
package ``multi-quantization`` comes with the extra ``bench``.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor

from spear_plugin.quantizers import (
    MultiCodebookQuantizer,
    MvqQuantizerConfig,
    QuantizerTrainer,
    QuantizerTrainingConfig,
    compute_statistics,
    create_mvq_quantizer,
    relative_error,
)

CONSOLE: Final = Console(stderr=True)


def train_ours(frames: Tensor, options: argparse.Namespace, seed: int) -> MultiCodebookQuantizer:
    """Return our quantizer after both phases."""
    config = QuantizerTrainingConfig(
        phase_one_steps=options.steps, phase_two_steps=options.steps, batch_frames=options.batch_frames, seed=seed
    )
    trainer = QuantizerTrainer(frames, make_config(frames, options), config)
    for _ in track(range(trainer.num_steps), f"ours, seed {seed}", console=CONSOLE, transient=True):
        trainer.step()
    return trainer.quantizer.eval()


def train_package(frames: Tensor, options: argparse.Namespace, seed: int) -> MultiCodebookQuantizer:
    """Return the package's quantizer after both phases, as one of ours."""
    from multi_quantization import QuantizerTrainer as PackageTrainer  # noqa: PLC0415

    random.seed(seed)  # the package draws the numbers of refinements by it
    torch.manual_seed(seed)
    trainer: Any = PackageTrainer(
        frames.size(1), options.codebooks, torch.device("cpu"), phase_one_iters=options.steps,
        phase_two_iters=options.steps,
    )  # fmt: skip
    for _ in track(range(2 * options.steps + 1), f"package, seed {seed}", console=CONSOLE, transient=True):
        trainer.step(frames[torch.randint(len(frames), (options.batch_frames,))])
    quantizer = create_mvq_quantizer(make_config(frames, options))
    quantizer.load_state_dict(trainer.get_quantizer().state_dict())
    return quantizer.eval()


def make_config(frames: Tensor, options: argparse.Namespace) -> MvqQuantizerConfig:
    """Return the sizes; frames are standardized already."""
    return MvqQuantizerConfig(dim=frames.size(1), num_codebooks=options.codebooks, normalize=False)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--steps", type=int, default=300, help="of each phase")
    parser.add_argument("--batch-frames", type=int, default=1024)
    parser.add_argument("--codebooks", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    frames = load_file(options.frames)["frames"].float()
    held_out = len(frames) // 10
    mean, std = compute_statistics(frames[:-held_out])
    frames = (frames - mean) / (std + 1e-5)
    train, valid = frames[:-held_out], frames[-held_out:]

    sizes = f"{len(train):,} frames of width {frames.size(1)}, {options.codebooks} codebooks"
    print(f"{sizes}, {options.steps} steps of {options.batch_frames} frames in each phase, one thread.\n")
    print("| side | held-out error by seed | mean | CPU s a step |\n|---|---|---|---|")
    for name, run in (("ours", train_ours), ("multi-quantization", train_package)):
        errors, seconds = [], []
        for seed in range(1, options.seeds + 1):
            start = time.process_time()
            quantizer = run(train, options, seed)
            seconds.append((time.process_time() - start) / (2 * options.steps + 1))
            errors.append(relative_error(quantizer, valid))
        listed = ", ".join(f"{error:.4f}" for error in errors)
        print(f"| {name} | {listed} | {statistics.mean(errors):.4f} | {statistics.mean(seconds):.2f} |", flush=True)


if __name__ == "__main__":
    main()
