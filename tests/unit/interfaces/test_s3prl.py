from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from fairseq2.recipe.error import RecipeError

from spear_plugin.interfaces.s3prl import UpstreamExpert, main, register_upstream
from tests.common import assert_close, assert_equal
from tests.recipes.common import save_run
from tests.unit.interfaces.makers import draw_waveforms, extract, save_checkpoints
from tests.unit.models.spear.test_released import narrow_config


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_checkpoints(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_an_utterance_gives_a_frame_for_each_step_and_the_same_in_any_batch(
    checkpoints: dict[str, Path], family: str
) -> None:
    upstream = UpstreamExpert(str(checkpoints[family])).eval()
    assert upstream.get_downsample_rates("hidden_states") == 320
    waveforms = draw_waveforms(16_000, 9_001)
    with torch.no_grad():
        layers = upstream(waveforms)["hidden_states"]
    assert [layer.shape for layer in layers] == [(2, 50, 32)] * 3
    for row, waveform in enumerate(waveforms):
        num_steps = -(-waveform.numel() // 320)
        for layer, expected in zip(layers, extract(checkpoints[family], waveform)[1], strict=True):
            assert_close(layer[row, : len(expected)], expected)
            repeated = layer[row, len(expected) : num_steps]
            assert len(repeated) > 0
            assert_equal(repeated, layer[row, len(expected) - 1].expand_as(repeated))


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_the_shortest_utterance_that_s3prl_knows_has_frames(checkpoints: dict[str, Path], family: str) -> None:
    upstream = UpstreamExpert(str(checkpoints[family])).eval()
    with torch.no_grad():
        layers = upstream(draw_waveforms(800, 100))["hidden_states"]
    assert [layer.shape for layer in layers] == [(2, 3, 32)] * 3
    assert all(layer.isfinite().all() for layer in layers)


def test_an_output_of_25_hz_has_its_own_steps(tmp_path: Path) -> None:
    checkpoint = save_checkpoints(tmp_path, output_downsampling_factor=2)["spear"]
    upstream = UpstreamExpert(str(checkpoint)).eval()
    assert upstream.get_downsample_rates("last_hidden_state") == 640
    waveforms = draw_waveforms(16_000, 9_001)
    with torch.no_grad():
        output = upstream(waveforms)["last_hidden_state"]
    assert isinstance(output, torch.Tensor)
    assert output.shape == (2, 25, 32)
    for row, waveform in enumerate(waveforms):
        expected = extract(checkpoint, waveform)[0]
        assert_close(output[row, : len(expected)], expected)
        assert_equal(output[row, len(expected)], output[row, len(expected) - 1])


@pytest.mark.parametrize("family", ["spear", "spidr"])
def test_it_can_be_trained_but_for_what_only_pretraining_uses(checkpoints: dict[str, Path], family: str) -> None:
    upstream = UpstreamExpert(str(checkpoints[family])).train()
    layers = upstream(draw_waveforms(8_000))["hidden_states"]
    torch.stack([layer.square().sum() for layer in layers]).sum().backward()
    trained = {name for name, parameter in upstream.named_parameters() if parameter.requires_grad}
    assert trained
    assert not [name for name in trained if "teacher" in name or "mask_emb" in name or "heads" in name]
    gradients = [parameter.grad for parameter in upstream.parameters() if parameter.grad is not None]
    assert any(gradient.abs().sum() > 0.0 for gradient in gradients)


def test_layers_of_several_widths_are_refused(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", seed=1, config=narrow_config(encoder_dims=[16, 32]))
    with pytest.raises(RecipeError, match=r"^`path_or_url`: s3prl sums .* the widths 16, 32\. Name another model\.$"):
        UpstreamExpert(str(run))


def test_a_missing_s3prl_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3prl", None)
    message = r"^s3prl cannot be imported: .*\. Install espnet-s3prl and .* `make checkers-env` makes\.$"
    with pytest.raises(RecipeError, match=message):
        register_upstream()
    with pytest.raises(SystemExit, match=message):
        main()
