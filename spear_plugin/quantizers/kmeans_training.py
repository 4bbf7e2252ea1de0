"""Training of a k-means quantizer by mini-batches. Not imported by the package itself: scikit-learn loads slowly.

Letters: F frames, B frames of a batch, D width, K centres.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, final

import numpy as np
import torch
from fairseq2.utils.validation import Validatable, ValidationResult
from numpy.typing import NDArray
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


@final
class KMeansTrainer:
    """Trains a quantizer on frames held in memory; it depends on frames and configurations alone."""

    def __init__(self, frames: Tensor, quantizer_config: KMeansQuantizerConfig, config: KMeansTrainingConfig) -> None:
        """Prepare the training.

        Args:
            frames: Of the teacher, float16 or float32 (F, D), on the CPU.
            quantizer_config: Of the quantizer.
            config: Of the training.

        Raises:
            ValueError: The frames do not have the configured width, or are fewer than the clusters.
        """
        if frames.dim() != 2 or frames.size(1) != quantizer_config.dim or len(frames) < quantizer_config.codebook_size:
            raise ValueError(
                f"`frames` must be (F, {quantizer_config.dim}) with F at least the codebook size "
                f"{quantizer_config.codebook_size}, but is {tuple(frames.shape)} instead."
            )
        with torch.random.fork_rng(devices=[]):
            self._quantizer = create_kmeans_quantizer(quantizer_config)
        if quantizer_config.normalize:
            self._quantizer.set_statistics(*compute_statistics(frames))
        self._frames = frames
        self._config = config
        self._kmeans = MiniBatchKMeans(
            quantizer_config.codebook_size, random_state=config.seed, reassignment_ratio=config.reassignment_ratio
        )

    @property
    def num_steps_done(self) -> int:
        """Mini-batches so far."""
        return getattr(self._kmeans, "n_steps_", 0)

    @property
    def num_steps(self) -> int:
        """Mini-batches of the whole training."""
        return self._config.num_steps

    def run(self, callback: Callable[[int], None] | None = None) -> KMeansQuantizer:
        """Take the steps that remain, and return the quantizer.

        Args:
            callback: Called after each step with the number of steps done.
        """
        # The order of the frames follows from the seed; that of the steps done costs next to nothing to draw again.
        for rows in islice(self._iterate_batches(), self.num_steps_done, None):
            self._kmeans.partial_fit(self._standardize(rows))
            if callback is not None:
                callback(self.num_steps_done)
        with torch.no_grad():
            self._quantizer.centers.copy_(torch.from_numpy(self._kmeans.cluster_centers_))
        return self._quantizer

    def state_dict(self) -> dict[str, object]:
        """Return what :meth:`load_state_dict` needs to go on bit for bit; at least one step must be done."""
        kmeans = self._kmeans
        _, words, *position = kmeans._random_state.get_state()
        return {
            "num_steps_done": self.num_steps_done,
            "centers": torch.from_numpy(kmeans.cluster_centers_.copy()),
            "counts": torch.from_numpy(kmeans._counts.copy()),
            "num_since_reassignment": int(kmeans._n_since_last_reassign),
            "random_words": torch.from_numpy(words.astype(np.int64)),
            "random_position": [float(value) for value in position],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a trainer of the same frames and configurations."""
        kmeans = self._kmeans
        # The first step again: it makes all attributes of scikit-learn's, some of which follow from the batch's size.
        # What later steps change is then replaced.
        kmeans.partial_fit(self._standardize(next(self._iterate_batches())))
        position, has_gauss, cached = state["random_position"]
        words = state["random_words"].numpy().astype(np.uint32)
        kmeans._random_state = np.random.RandomState()
        kmeans._random_state.set_state(("MT19937", words, int(position), int(has_gauss), cached))
        kmeans.cluster_centers_ = state["centers"].numpy().copy()
        kmeans._counts = state["counts"].numpy().copy()
        kmeans._n_since_last_reassign = state["num_since_reassignment"]
        kmeans.n_steps_ = state["num_steps_done"]

    def _standardize(self, rows: Tensor) -> NDArray[np.float32]:
        return self._quantizer.standardize(self._frames[rows]).numpy()

    def _iterate_batches(self) -> Iterator[Tensor]:
        """Yield the rows (B) of batches in a random order, the first large enough to choose the first centres from."""
        config = self._config
        generator = Generator().manual_seed(config.seed)
        order = torch.randperm(len(self._frames), generator=generator)
        num_frames = max(config.batch_frames, _INIT_FRAMES_PER_CENTER * self._quantizer.codebook_size)
        for _ in range(config.num_steps):
            rows, order = order[:num_frames], order[num_frames:]
            yield rows
            num_frames = config.batch_frames
            if len(order) == 0:
                order = torch.randperm(len(self._frames), generator=generator)
