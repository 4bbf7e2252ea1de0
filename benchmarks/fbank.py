"""Log-mel features: seconds of audio per second of processor time, ours against torchaudio and lhotse, on one thread.

``python -m benchmarks.fbank`` prints a table in Markdown. The extractors alternate, so that a busy machine harms all
alike, and the median round counts. lhotse comes with the extra ``bench``; without it, its column is left out.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Final

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchaudio.compliance import kaldi

from spear_plugin.models.spear.fbank import NUM_MEL_BINS, SAMPLE_RATE, compute_fbank

Extractor = Callable[[Tensor], list[Tensor]]

BATCHES: Final = ((1, 10.0), (16, 10.0), (64, 2.0))
"""Numbers of utterances and their seconds."""


def extract_ours(waveforms: Tensor) -> list[Tensor]:
    """Return one (T, F) for each of the waveforms (N, S)."""
    lengths = torch.full((waveforms.size(0),), waveforms.size(1))
    return list(compute_fbank(waveforms, lengths)[0])


def extract_torchaudio(waveforms: Tensor) -> list[Tensor]:
    """The same, one waveform after the other."""
    options = {"num_mel_bins": NUM_MEL_BINS, "dither": 0.0, "snip_edges": False, "high_freq": -400.0}
    return [kaldi.fbank(waveform[None], energy_floor=1e-10, **options) for waveform in waveforms]


def create_lhotse_extractor() -> Extractor:
    """The same with the extractor that SPEAR's authors use."""
    from lhotse import Fbank, FbankConfig  # noqa: PLC0415

    fbank = Fbank(FbankConfig(num_mel_bins=NUM_MEL_BINS))
    return lambda waveforms: [torch.as_tensor(fbank.extract(w, SAMPLE_RATE)) for w in waveforms]


def measure(extractors: dict[str, Extractor], waveforms: Tensor, num_rounds: int) -> dict[str, float]:
    """Return seconds of audio per second of processor time of this process."""
    seconds: dict[str, list[float]] = {name: [] for name in extractors}
    progress = track(range(num_rounds + 1), f"{tuple(waveforms.shape)}", console=Console(stderr=True), transient=True)
    for round_number in progress:
        for name, extract in extractors.items():
            start = time.process_time()
            extract(waveforms)
            if round_number > 0:  # the first one fills caches
                seconds[name].append(time.process_time() - start)
    duration = waveforms.numel() / SAMPLE_RATE
    return {name: duration / statistics.median(values) for name, values in seconds.items()}


def largest_difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest absolute difference of two sets of features."""
    return max((a - b).abs().max().item() for a, b in zip(actual, expected, strict=True))


def main() -> None:
    """Measure all batches and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds for each batch (default: 20)")
    num_rounds: int = parser.parse_args().rounds

    torch.set_num_threads(1)
    torch.manual_seed(0)
    extractors: dict[str, Extractor] = {"ours": extract_ours, "torchaudio": extract_torchaudio}
    if find_spec("lhotse") is not None:
        extractors["lhotse"] = create_lhotse_extractor()

    print(f"{platform.processor() or platform.machine()}, one thread, Python {platform.python_version()}", end="")
    print("".join(f", {name} {version(name)}" for name in ("torch", *list(extractors)[1:])))
    print(f"\n| batch | {' | '.join(extractors)} | {' | '.join(f'ours / {name}' for name in list(extractors)[1:])} |")
    print("|---" * (2 * len(extractors)) + "|")
    for num_rows, duration in BATCHES:
        waveforms = 0.1 * torch.randn(num_rows, int(duration * SAMPLE_RATE))
        rates = measure(extractors, waveforms, num_rounds)
        ours, *others = rates.values()
        cells = [f"{num_rows} x {duration:g} s", *(f"{r:,.0f}" for r in rates.values())]
        print(f"| {' | '.join([*cells, *(f'{ours / other:.2f}' for other in others)])} |")
    waveforms = 0.1 * torch.randn(4, 10 * SAMPLE_RATE)
    ours_features = extract_ours(waveforms)
    print()
    for name, extract in list(extractors.items())[1:]:
        print(f"Largest difference from {name}: {largest_difference(ours_features, extract(waveforms)):.1e}")


if __name__ == "__main__":
    main()
