from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from spear_plugin.quantizers import KMeansQuantizer, KMeansQuantizerConfig, relative_error
from spear_plugin.quantizers.kmeans_training import KMeansTrainer, KMeansTrainingConfig
from tests.common import assert_close, assert_equal

_CONFIG = KMeansQuantizerConfig(dim=6, codebook_size=5)


def _draw_clusters(num_frames: int = 2000) -> tuple[Tensor, Tensor]:
    """Return frames (F, D) of five far clusters, and the clusters' numbers."""
    generator = torch.Generator().manual_seed(0)
    centers = 8.0 * torch.randn(5, 6, generator=generator) + 3.0
    labels = torch.randint(5, (num_frames,), generator=generator)
    return centers[labels] + torch.randn(num_frames, 6, generator=generator), labels


def test_the_code_is_the_nearest_centre() -> None:
    torch.manual_seed(0)
    quantizer, x = KMeansQuantizer(6, 300), 2.0 * torch.randn(2, 50, 6)
    codes = quantizer.encode(x)
    assert codes.shape == (2, 50, 1)
    assert codes.dtype == torch.int32  # more than 256 centres
    assert_equal(codes[..., 0].long(), torch.cdist(x, quantizer.centers).argmin(dim=-1))
    assert_equal(quantizer.decode(codes), quantizer.centers[codes[..., 0].long()])


def test_codes_of_few_centres_are_bytes() -> None:
    assert KMeansQuantizer(6, 256).encode(torch.randn(3, 6)).dtype == torch.uint8


def test_frames_are_standardized() -> None:
    torch.manual_seed(0)
    quantizer, plain = KMeansQuantizer(6, 7, normalize=True), KMeansQuantizer(6, 7)
    plain.load_state_dict(quantizer.state_dict(), strict=False)
    quantizer.set_statistics(torch.linspace(-5, 5, 6), torch.linspace(0.1, 4, 6))
    standardized = torch.randn(50, 6)
    x = standardized * (quantizer.std + 1e-5) + quantizer.mean
    assert_equal(quantizer.encode(x), plain.encode(standardized))
    assert_close(quantizer.decode(quantizer.encode(x)), quantizer.centers[quantizer.encode(x)[:, 0].long()] *
                 (quantizer.std + 1e-5) + quantizer.mean)  # fmt: skip


def test_training_finds_the_clusters_as_scikit_learn_does() -> None:
    frames, labels = _draw_clusters()
    steps: list[int] = []
    settings = KMeansTrainingConfig(num_steps=30, batch_frames=200)
    quantizer = KMeansTrainer(frames, _CONFIG, settings).run(steps.append)
    codes = quantizer.encode(frames)[:, 0].long()
    assert steps == list(range(1, 31))
    # Each cluster has a code of its own.
    assert len({(int(code), int(label)) for code, label in zip(codes, labels, strict=True)}) == 5
    standardized = quantizer.standardize(frames)
    oracle = KMeans(5, n_init=3, random_state=0).fit(standardized.numpy())
    error = float(oracle.inertia_) / float((standardized - standardized.mean(dim=0)).square().sum())
    assert relative_error(quantizer, frames) == pytest.approx(error, rel=0.05)


def test_training_depends_on_its_seed_alone() -> None:
    frames, _ = _draw_clusters(300)

    def train(seed: int) -> Tensor:
        torch.manual_seed(torch.seed())
        settings = KMeansTrainingConfig(num_steps=4, batch_frames=50, seed=seed)
        return KMeansTrainer(frames, _CONFIG, settings).run().centers

    assert_equal(train(1), train(1))
    assert not torch.equal(train(1), train(2))


def test_fewer_frames_than_clusters_raise_error() -> None:
    with pytest.raises(ValueError, match=r"must be \(F, 6\) with F at least the codebook size 5, but is \(4, 6\)"):
        KMeansTrainer(torch.randn(4, 6), _CONFIG, KMeansTrainingConfig())


@pytest.mark.parametrize("stop_at", [1, 7, 20])
def test_training_goes_on_from_a_saved_state_bit_for_bit(stop_at: int, tmp_path: Path) -> None:
    frames, _ = _draw_clusters(300)
    # Small batches and a large ratio: centres are moved to random frames again and again.
    settings = KMeansTrainingConfig(num_steps=20, batch_frames=40, reassignment_ratio=0.5)
    expected = KMeansTrainer(frames, _CONFIG, settings).run().centers

    first = KMeansTrainer(frames, _CONFIG, settings)

    def stop(step: int) -> None:
        if step == stop_at:
            torch.save(first.state_dict(), tmp_path / "state.pt")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(stop)
    second = KMeansTrainer(frames, _CONFIG, settings)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps: list[int] = []
    assert_equal(second.run(steps.append).centers, expected)
    assert steps == list(range(stop_at + 1, 21))
