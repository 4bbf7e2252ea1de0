from __future__ import annotations

import pytest
import torch

from spear_plugin.inference import FeatureProgram
from spear_plugin.inference.programs import EXAMPLE_SAMPLES
from spear_plugin.models.spear import get_spear_model_hub, num_output_frames
from spear_plugin.models.spidr import SpidrModel, standardize_waveforms
from tests.common import assert_equal
from tests.unit.inference.makers import FAMILIES, create_model, create_recordings


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_program_gives_what_the_model_gives_of_waveforms_in_their_own_scale(family: str) -> None:
    model = create_model(family)
    waveforms, lengths = create_recordings([16_000, 9_000])
    inputs = standardize_waveforms(waveforms, lengths) if isinstance(model, SpidrModel) else waveforms
    features = model.extract_features(inputs, lengths)
    last = features.layers[-1] if family == "spidr" else getattr(features, "last")  # noqa: B009
    program = FeatureProgram(model)
    assert program.output_names == ["features", "num_frames"]
    output, num_frames = program(waveforms, lengths)
    assert_equal(output, last)
    assert_equal(num_frames, features.lengths)
    layers = FeatureProgram(model, [2, 0])
    assert layers.output_names == ["layer_2", "layer_0", "num_frames"]
    third, first, num_frames = layers(waveforms, lengths)
    assert_equal(third, features.layers[2])
    assert_equal(first, features.layers[0])
    # 50 a second, also where the output has half of them
    assert num_frames.tolist() == ([49, 27] if family == "spidr" else [46, 24])


@pytest.mark.parametrize("layers", [[3], [-1], []])
def test_layers_that_there_are_not_are_refused(layers: list[int]) -> None:
    with pytest.raises(ValueError, match="`layers` must be from 0 to 2, but are"):
        FeatureProgram(create_model("spear"), layers)


@pytest.mark.parametrize("arch", ["tiny", "base", "large", "xlarge"])
def test_the_example_of_a_graph_fits_no_down_sampling(arch: str) -> None:
    config = get_spear_model_hub().get_arch_config(arch)
    num_frames = num_output_frames(EXAMPLE_SAMPLES[0], config)
    assert all(num_frames % factor != 0 for factor in config.zipformer.downsampling_factors if factor > 1)
