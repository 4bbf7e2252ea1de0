from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from spear_plugin.quantizers import (
    KMeansQuantizer,
    RandomProjectionQuantizer,
    compute_statistics,
    relative_error,
    relative_errors_by_num_codebooks,
)
from tests.common import assert_close, assert_equal


def test_the_code_is_the_direction_of_the_smallest_angle() -> None:
    quantizer, x = RandomProjectionQuantizer(12, 300, 2, projection_dim=4), torch.randn(40, 12)
    codes = quantizer.encode(x)
    assert codes.shape == (40, 2)
    assert codes.dtype == torch.int32
    for n in range(2):
        projected = x @ quantizer.projections[n].T
        angles = cosine_similarity(projected[:, None], quantizer.codebooks[n][None], dim=-1)
        assert_equal(codes[:, n].long(), angles.argmax(dim=-1))
    # Neither the codebooks nor the projections are the same.
    assert (codes[:, 0] != codes[:, 1]).float().mean() > 0.9


def test_the_seed_decides_whatever_others_draw() -> None:
    torch.manual_seed(5)
    first = RandomProjectionQuantizer(6, 8, seed=1)
    second, other = RandomProjectionQuantizer(6, 8, seed=1), RandomProjectionQuantizer(6, 8, seed=2)
    state = torch.get_rng_state()
    with torch.device("meta"):
        third = RandomProjectionQuantizer(6, 8, seed=1)
    third.to_empty(device="cpu").reset_parameters()
    assert_equal(torch.get_rng_state(), state)
    for key, value in first.state_dict().items():
        assert_equal(second.state_dict()[key], value)
        assert_equal(third.state_dict()[key], value)
    assert not torch.equal(first.projections, other.projections)
    assert_close(first.codebooks.norm(dim=-1), torch.ones(1, 8))


def test_codes_are_decoded_to_the_mean_of_their_frames() -> None:
    torch.manual_seed(0)
    quantizer, frames = RandomProjectionQuantizer(8, 16, projection_dim=3, normalize=True), torch.randn(5000, 8) * 3 + 1
    quantizer.set_statistics(*compute_statistics(frames))
    codes = quantizer.encode(frames)
    quantizer.fit_centers(frames)
    assert_equal(quantizer.encode(frames), codes)
    for code in codes.unique().tolist():
        mean = frames[codes[:, 0] == code].mean(dim=0)
        assert_close(quantizer.decode(torch.tensor([code])), mean, atol=1e-4)


def test_more_codebooks_leave_less_unexplained() -> None:
    torch.manual_seed(0)
    quantizer, frames, unseen = RandomProjectionQuantizer(8, 32, 3), torch.randn(5000, 8), torch.randn(2000, 8)
    quantizer.fit_centers(frames)
    errors = relative_errors_by_num_codebooks(quantizer, unseen)
    assert errors[0] > errors[1] + 0.02 > errors[2] + 0.04
    assert errors[2] > errors[3]
    assert abs(errors[3] - relative_error(quantizer, unseen)) < 1e-3


def test_codes_that_no_frame_has_are_decoded_to_the_mean_of_all() -> None:
    torch.manual_seed(0)
    quantizer, frames = RandomProjectionQuantizer(4, 50), torch.randn(10, 4) + 2
    quantizer.fit_centers(frames)
    unused = next(code for code in range(50) if code not in quantizer.encode(frames))
    assert_close(quantizer.decode(torch.tensor([unused])), frames.mean(dim=0))
    codes = quantizer.encode(frames)
    assert_close(quantizer.decode(codes[0]), frames[codes[:, 0] == codes[0]].mean(dim=0))


def test_it_explains_less_than_kmeans_and_more_than_nothing() -> None:
    torch.manual_seed(0)
    frames = torch.randn(4000, 8)
    quantizer = RandomProjectionQuantizer(8, 32)
    quantizer.fit_centers(frames)
    clusters = KMeansQuantizer(8, 32)
    for _ in range(5):
        codes = clusters.encode(frames)[:, 0].long()
        means = [frames[codes == k].mean(dim=0) if (codes == k).any() else clusters.centers[k] for k in range(32)]
        clusters.centers.data = torch.stack(means)
    assert relative_error(clusters, frames) < relative_error(quantizer, frames) < 0.95
