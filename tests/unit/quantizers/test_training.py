from __future__ import annotations

from io import BytesIO

import pytest
import torch
from torch import Tensor

from spear_plugin.quantizers import (
    MultiCodebookQuantizer,
    MvqQuantizerConfig,
    QuantizerProgress,
    QuantizerTrainer,
    QuantizerTrainingConfig,
    relative_error,
    relative_errors_by_num_codebooks,
    relative_errors_by_num_refinements,
)
from tests.common import assert_close, assert_equal

_SIZES = MvqQuantizerConfig(dim=10, codebook_size=16, num_codebooks=4, normalize=True)
_SETTINGS = QuantizerTrainingConfig(phase_one_steps=40, phase_two_steps=30, batch_frames=64)


def _make_frames(num_frames: int = 500, *, seed: int = 0) -> Tensor:
    """Return frames that lie near a curved surface of 3 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, 10, generator=torch.Generator().manual_seed(99))
    return torch.sin(torch.randn(num_frames, 3, generator=generator) @ mixing) * torch.linspace(1, 9, 10) + 20.0


def _make_trainer() -> QuantizerTrainer:
    return QuantizerTrainer(_make_frames().half(), _SIZES, _SETTINGS)


def test_training_lowers_the_error_of_unseen_frames() -> None:
    trainer, unseen = _make_trainer(), _make_frames(200, seed=1)
    before = relative_error(trainer.quantizer, unseen)
    trainer.run()
    after = relative_error(trainer.quantizer, unseen)
    assert (trainer.quantizer.num_codebooks, trainer.quantizer.codebook_size) == (4, 16)
    assert after < 0.4 * before
    assert after < 0.2


@pytest.mark.parametrize("num_steps", [20, 41, 60])
def test_resumed_training_is_bit_identical(num_steps: int) -> None:
    whole, first = _make_trainer(), _make_trainer()
    whole.run()
    first.run(until=num_steps)
    file = BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(5)
    second = _make_trainer()
    second.load_state_dict(torch.load(file, weights_only=True))
    second.run()
    assert second.num_steps_done == whole.num_steps == 71
    for name, value in whole.quantizer.state_dict().items():
        assert torch.equal(second.quantizer.state_dict()[name], value), name


def test_codes_follow_the_weights_from_step_to_step() -> None:
    # A fused optimizer does not tell tensors that it has changed them.
    trainer, frames = _make_trainer(), _make_frames()
    for until in (3, 4, 45):
        trainer.run(until=until)
        quantizer = trainer.quantizer
        fresh = MultiCodebookQuantizer(10, quantizer.codebook_size, quantizer.num_codebooks, normalize=True)
        fresh.load_state_dict(quantizer.state_dict())
        expected = fresh.encode(frames)
        assert_equal(quantizer.encode(frames), expected)
        assert_equal(quantizer.eval().encode(frames), expected)
        quantizer.train()


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    _make_trainer().run(until=43)
    assert_equal(torch.get_rng_state(), state)


def test_every_frame_is_seen_once_an_epoch() -> None:
    frames = torch.arange(50.0)[:, None].expand(-1, 10)
    trainer = QuantizerTrainer(frames, _SIZES, QuantizerTrainingConfig(batch_frames=20))
    seen = []
    for step in range(5):
        trainer._num_steps_done = step
        seen.append(trainer._next_batch()[:, 0])
    epochs = torch.cat(seen).view(2, 50)
    assert_equal(epochs.sort(dim=1).values, frames[:, 0].expand(2, -1))
    assert not torch.equal(epochs[0], epochs[1])


def test_a_batch_may_be_longer_than_the_frames() -> None:
    frames = torch.arange(3.0)[:, None].expand(-1, 10)
    trainer = QuantizerTrainer(frames, _SIZES, QuantizerTrainingConfig(batch_frames=9))
    assert trainer._next_batch()[:, 0].sort().values.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_statistics_are_those_of_the_frames() -> None:
    frames = _make_frames()
    quantizer = QuantizerTrainer(frames, _SIZES, _SETTINGS).quantizer
    assert_close(quantizer.mean, frames.mean(dim=0))
    assert_close(quantizer.std, frames.std(dim=0, correction=0))


def test_callback_is_told_the_progress() -> None:
    told: list[QuantizerProgress] = []
    _make_trainer().run(told.append)
    assert [progress.num_steps_done for progress in told] == list(range(1, 72))
    assert [progress.phase for progress in told] == [1] * 41 + [2] * 30
    assert {progress.num_steps for progress in told} == {71}
    assert not any(progress.losses.total.requires_grad for progress in told)


def test_error_curves_end_at_the_error() -> None:
    trainer, unseen = _make_trainer(), _make_frames(200, seed=1)
    trainer.run()
    error = relative_error(trainer.quantizer, unseen)
    by_refinements = relative_errors_by_num_refinements(trainer.quantizer, unseen)
    by_codebooks = relative_errors_by_num_codebooks(trainer.quantizer, unseen)
    assert by_refinements[-1] == error
    assert by_refinements[0] > error
    assert len(by_codebooks) == 5
    assert by_codebooks[0] == pytest.approx(1.0, abs=0.05)
    assert by_codebooks[-1] == pytest.approx(error, rel=1e-4)
    assert by_codebooks == sorted(by_codebooks, reverse=True)


def test_frames_of_another_width_raise_error() -> None:
    with pytest.raises(ValueError, match=r"`frames` must be \(F, 10\) with F > 0, but is \(5, 11\) instead"):
        QuantizerTrainer(torch.randn(5, 11), _SIZES, _SETTINGS)


def test_codebooks_not_made_of_pairs_raise_error() -> None:
    sizes = MvqQuantizerConfig(dim=10, codebook_size=32, num_codebooks=4)
    with pytest.raises(ValueError, match="`codebook_size` must be 4, 16, 64 or 256, but is 32 instead"):
        QuantizerTrainer(torch.randn(5, 10), sizes, _SETTINGS)
