"""Training of a k-means quantizer by mini-batches. Not imported by the package itself: scikit-learn loads slowly.

Letters: F frames, B frames of a batch, D width, K centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import torch
from fairseq2.utils.validation import Validatable, ValidationResult
from sklearn.cluster import MiniBatchKMeans
from torch import Generator, Tensor
from typing_extensions import override

from spear_plugin.quantizers.config import KMeansQuantizerConfig
from spear_plugin.quantizers.factory import create_kmeans_quantizer
from spear_plugin.quantizers.kmeans import KMeansQuantizer
from spear_plugin.quantizers.statistics import compute_statistics

# k-means++ chooses the first centres among so many frames for each of them, as scikit-learn does by default.
_INIT_FRAMES_PER_CENTER: Final = 3


@dataclass(kw_only=True)
class KMeansTrainingConfig(Validatable):
    """Holds the settings of mini-batch k-means."""

    num_steps: int = 1000
    """Mini-batches."""

    batch_frames: int = 10_000
    """Number of frames of a mini-batch, HuBERT's."""

    reassignment_ratio: float = 0.01
    """Centres with fewer frames than this share of the largest one's are moved to random frames now and then."""

    seed: int = 42
    """Of the first centres, the order of the frames and the reassignments."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()
        for field in ("num_steps", "batch_frames"):
            if (value := getattr(self, field)) < 1:
                result.add_error(f"`{field}` must be at least 1, but is {value} instead.")
        if self.reassignment_ratio < 0.0:
            result.add_error(f"`reassignment_ratio` must not be negative, but is {self.reassignment_ratio} instead.")
        return result


def train_kmeans_quantizer(
    frames: Tensor,
    quantizer_config: KMeansQuantizerConfig,
    config: KMeansTrainingConfig,
    *,
    callback: Callable[[int], None] | None = None,
) -> KMeansQuantizer:
    """Return a quantizer trained on frames held in memory; it depends on frames and configurations alone.

    Args:
        frames: Of the teacher, float16 or float32 (F, D), on the CPU.
        quantizer_config: Of the quantizer.
        config: Of the training.
        callback: Called after each step with the number of steps done.

    Raises:
        ValueError: The frames do not have the configured width, or are fewer than the clusters.
    """
    if frames.dim() != 2 or frames.size(1) != quantizer_config.dim or len(frames) < quantizer_config.codebook_size:
        raise ValueError(
            f"`frames` must be (F, {quantizer_config.dim}) with F at least the codebook size "
            f"{quantizer_config.codebook_size}, but is {tuple(frames.shape)} instead."
        )
    with torch.random.fork_rng(devices=[]):
        quantizer = create_kmeans_quantizer(quantizer_config)
    if quantizer_config.normalize:
        quantizer.set_statistics(*compute_statistics(frames))
    kmeans = MiniBatchKMeans(
        quantizer_config.codebook_size, random_state=config.seed, reassignment_ratio=config.reassignment_ratio
    )
    for step, batch in enumerate(_iterate_batches(frames, quantizer_config.codebook_size, config), start=1):
        kmeans.partial_fit(quantizer.standardize(batch).numpy())
        if callback is not None:
            callback(step)
    with torch.no_grad():
        quantizer.centers.copy_(torch.from_numpy(kmeans.cluster_centers_))
    return quantizer


def _iterate_batches(frames: Tensor, codebook_size: int, config: KMeansTrainingConfig) -> Iterator[Tensor]:
    """Yield batches (B, D) in a random order, the first large enough to choose the first centres from."""
    generator = Generator().manual_seed(config.seed)
    order = torch.randperm(len(frames), generator=generator)
    num_frames = max(config.batch_frames, _INIT_FRAMES_PER_CENTER * codebook_size)
    for _ in range(config.num_steps):
        rows, order = order[:num_frames], order[num_frames:]
        yield frames[rows]
        num_frames = config.batch_frames
        if len(order) == 0:
            order = torch.randperm(len(frames), generator=generator)
