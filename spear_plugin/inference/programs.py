"""Models as programs: waveforms to features, as a graph that other runtimes than Python's run (torch.export, ONNX).

A program takes waveforms (N, S) in [-1, 1] at 16 kHz and lengths (N,) in samples, for both families: SpidR's
standardization is a part of it, as is SPEAR's log-mel. It gives features, float32, and their lengths. S may be any from
:data:`MIN_PROGRAM_SAMPLES` on, and N either 1 or any.

Letters: N batch, S samples, T frames, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, final

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.nn import Module
from typing_extensions import override

from spear_plugin.inference.families import create_feature_reader
from spear_plugin.models.spear import SpearModel
from spear_plugin.models.spear.fbank import compute_fbank
from spear_plugin.models.spidr import SpidrModel, standardize_waveforms

MIN_PROGRAM_SAMPLES: Final = 8_000
"""Half a second at 16 kHz: the graph is that of recordings with more frames than the largest down-sampling has."""

INPUT_NAMES: Final = ("waveforms", "lengths")

EXAMPLE_SAMPLES: Final = (16_800, 12_000)
"""Of the utterances that a graph is made with. The first has 49 Zipformer frames, to which every down-sampling adds
some at the end: a graph made with a number that fits is only for numbers that fit."""

_EXPORTERS: Final = ("torch.fx.experimental.symbolic_shapes", "torch.onnx", "onnx_ir", "onnxscript")
"""Loggers."""


@final
class FeatureProgram(Module):
    """Features of a model of either family from waveforms in [-1, 1], as a tuple of tensors.

    Args:
        model: In evaluation mode, float32.
        layers: Indices of layers, from 0; None for the output: SPEAR's ``last``, SpidR's last layer.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(self, model: SpearModel | SpidrModel, layers: Sequence[int] | None = None) -> None:
        super().__init__()
        reader = create_feature_reader(model)
        if layers is not None and (not layers or any(not 0 <= layer < reader.num_layers for layer in layers)):
            raise ValueError(f"`layers` must be from 0 to {reader.num_layers - 1}, but are {list(layers)} instead.")
        self.model = model
        self.layers = layers

    @property
    def output_names(self) -> list[str]:
        """The names of what :meth:`forward` returns."""
        return ["features" if self.layers is None else f"layer_{layer}" for layer in self.layers or [0]] + [
            "num_frames"
        ]

    @override
    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Return features (N, T, D) and the valid frames (N,) int64.

        Args:
            waveforms: (N, S) float32 in [-1, 1] at 16 kHz; values beyond a length do not matter.
            lengths: (N,) int64 in samples, each at most S.
        """
        if isinstance(self.model, SpearModel):
            return self._read_spear(self.model, waveforms, lengths)
        num_layers = None if self.layers is None else max(self.layers) + 1
        features = self.model.extract_features(
            standardize_waveforms(waveforms, lengths), lengths, num_layers=num_layers
        )
        return (*self._choose(features.layers, features.layers[-1]), features.lengths)

    def _read_spear(self, model: SpearModel, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        features = model.extract_features(waveforms, lengths)
        # Those of the layers, at 50 Hz, where the output's are fewer.
        num_frames = features.lengths if self.layers is None else _count_layer_frames(lengths)
        return (*self._choose(features.layers, features.last), num_frames)

    def _choose(self, layers: list[Tensor], last: Tensor) -> list[Tensor]:
        return [last] if self.layers is None else [layers[layer] for layer in self.layers]


def export_program(program: FeatureProgram, *, any_batch: bool = True) -> ExportedProgram:
    """Return the graph of a program for waveforms of any length from :data:`MIN_PROGRAM_SAMPLES` on.

    It takes minutes: each operation is followed through for all sizes at once.

    Args:
        program: On the CPU; its model's parameters are the program's.
        any_batch: Whether N is any number, or 1. With 1 the graph is smaller and made in less than half of the time.
    """
    num_rows = 2 if any_batch else 1
    lengths = torch.tensor(EXAMPLE_SAMPLES[:num_rows])
    waveforms = torch.zeros((num_rows, EXAMPLE_SAMPLES[0]))
    batch = {0: Dim.DYNAMIC} if any_batch else {}
    # The constants of the log-mel are made here, once, and not while a graph is traced.
    compute_fbank(waveforms, lengths)
    # Strides are compared where nobody asked for it: Zipformer's graph for two rows refuses one, and that of an odd
    # number of frames an even one, unless sizes of 0 and 1 count as any other. SpidR's refuses one row if they do.
    oblivious = fx_config.patch(backed_size_oblivious=isinstance(program.model, SpearModel))  # type: ignore[attr-defined]
    with torch.no_grad(), oblivious, quiet_exporters():
        return torch.export.export(
            program, (waveforms, lengths), dynamic_shapes={"waveforms": {**batch, 1: Dim.DYNAMIC}, "lengths": batch}
        )


@contextmanager
def quiet_exporters() -> Iterator[None]:
    """Leave out warnings of exporters: they are about what nobody can change, with stack traces."""
    loggers = [logging.getLogger(name) for name in _EXPORTERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _count_layer_frames(lengths: Tensor) -> Tensor:
    """Return the frames of Zipformer layers for lengths in samples."""
    return (((lengths + 80) // 160 - 7) // 2).clamp(min=0)
