"""An upstream for s3prl, the toolkit of SUPERB (arXiv 2105.01051).

``python -m spear_plugin.interfaces.s3prl PROBLEM ...`` is ``s3prl-main PROBLEM ...`` with one upstream more,
``spear_plugin``, whose ``path_or_url`` is a card's name or a folder. Letters: N batch, S samples, T frames, D width.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Final, final

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from spear_plugin.interfaces.encoder import SAMPLE_RATE, load_pretrained_encoder
from spear_plugin.models.spear import ReleasedModelError
from spear_plugin.nn.timing import FrameTiming

UPSTREAM: Final = "spear_plugin"
"""Its name in s3prl."""


@final
class UpstreamExpert(Module):
    """A model of SPEAR, SpidR or DinoSR; s3prl decides whether it is frozen.

    s3prl counts a frame for each step that begins within an utterance, while our front ends give none that would see
    beyond its end. So the last frame of each utterance is repeated until the numbers agree, as s3prl itself does with
    that of the longest one in a batch; an utterance then gives what it gives alone.
    """

    def __init__(self, ckpt: str = "", model_config: str | None = None, **kwargs: object) -> None:
        """Load a model.

        Args:
            ckpt: A card's name or a folder, as :func:`~spear_plugin.interfaces.hear.load_model` takes it.
            model_config: Not used; the model knows its own.
            kwargs: Likewise.

        Raises:
            RecipeError: If there is no such model, it is damaged, or its layers cannot be summed.
            ReleasedModelError: If a folder of the released layout is damaged.
        """
        super().__init__()
        del model_config, kwargs
        self.model = load_pretrained_encoder(ckpt, "`path_or_url`")
        if len(dims := sorted(set(self.model.layer_dims))) > 1:
            raise RecipeError(
                f"`path_or_url`: s3prl sums layers of one width, but those of '{ckpt}' have the widths "
                f"{', '.join(map(str, dims))}. Name another model."
            )
        for parameter in self.model.encoder.trained_parameters():
            parameter.requires_grad_(True)

    def get_downsample_rates(self, key: str) -> int:
        """Return the samples from one frame to the next of what :meth:`forward` calls ``key``."""
        return _count_samples(self.model.output_timing if key == "last_hidden_state" else self.model.layer_timing)

    @override
    def forward(self, wavs: list[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """Encode a batch.

        Args:
            wavs: N of (S,) in [-1, 1] at 16 kHz.

        Returns:
            ``hidden_states``, one (N, T, D) for each layer, and ``last_hidden_state``, the encoder's output (N, T, D).
        """
        lengths = torch.tensor([wav.numel() for wav in wavs])
        frames = self.model(pad_sequence(wavs, batch_first=True), lengths)
        # Those of an output at 25 Hz are means of two.
        counts = [self.model.count_layer_frames(max(n, self.model.min_samples)) for n in lengths.tolist()]
        hops = [_count_samples(timing) for timing in (self.model.layer_timing, self.model.output_timing)]
        layer_index, output_index = (_index_frames(lengths, torch.tensor(counts), hop, hops[0]) for hop in hops)
        return {
            "hidden_states": [_select(layer, layer_index) for layer in frames.layers],
            "last_hidden_state": _select(frames.last, output_index),
        }

    if TYPE_CHECKING:
        __call__ = forward


def register_upstream() -> None:
    """Make the upstream known to s3prl, for programs of one's own.

    Raises:
        RecipeError: If s3prl is not installed.
    """
    setattr(_import("s3prl.hub"), UPSTREAM, UpstreamExpert)


def main() -> None:
    """Run one of s3prl's problems."""
    try:
        register_upstream()
        _import("s3prl.main").main()
    except (RecipeError, ReleasedModelError) as ex:
        sys.exit(str(ex))


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as ex:
        raise RecipeError(
            f"s3prl cannot be imported: {ex}. Install espnet-s3prl and what it imports, or use the environment that "
            "`make checkers-env` makes."
        ) from None


def _count_samples(timing: FrameTiming) -> int:
    return round(SAMPLE_RATE / timing.rate_hz)


def _index_frames(num_samples: Tensor, counts: Tensor, hop: int, layer_hop: int) -> Tensor:
    """Return which frame of each utterance stands at each step (N, T), the last one where there is none."""
    last = -(-counts * layer_hop // hop) - 1
    num_steps = -(-int(num_samples.max()) // hop)
    return torch.arange(num_steps).minimum(last[:, None])


def _select(frames: Tensor, index: Tensor) -> Tensor:
    """Return the frames (N, T, D) of (N, U, D) at an index (N, T)."""
    index = index.to(frames.device, non_blocking=True)
    return frames.gather(1, index[:, :, None].expand(-1, -1, frames.size(2)))


if __name__ == "__main__":
    main()
