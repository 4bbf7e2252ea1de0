"""Programs as ONNX files, and whether a file does what the model does. Needs the packages of the extra ``export``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from spear_plugin.inference.programs import INPUT_NAMES, FeatureProgram, quiet_exporters

WEIGHTS_SUFFIX: Final = ".data"
"""Of the file beside an ONNX file of more than 2 GB, the most that the format holds."""

_MAX_INLINE_BYTES: Final = 1_800_000_000


def write_onnx(path: Path, program: FeatureProgram, graph: ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Write a program in ONNX, large weights to ``path`` with :data:`WEIGHTS_SUFFIX` beside it.

    Args:
        path: The file.
        program: What was exported.
        graph: As :func:`~spear_plugin.inference.programs.export_program` returns it.
        metadata: Texts by name, which runtimes show.
    """
    with quiet_exporters():
        converted = torch.onnx.export(
            graph,
            dynamo=True,
            input_names=list(INPUT_NAMES),
            output_names=program.output_names,
            verbose=False,
        )
    assert converted is not None
    converted.model.metadata_props.update(metadata)
    num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in program.parameters())
    converted.save(path, external_data=num_bytes > _MAX_INLINE_BYTES)


def measure_onnx(path: Path, program: FeatureProgram, batches: Sequence[Sequence[int]]) -> float:
    """Return the largest difference between an ONNX file, run by onnxruntime, and the model, on noise.

    It is relative to the largest value of each output of the model; frames beyond an utterance's end do not count.

    Args:
        path: The file.
        program: What it was made from.
        batches: Lengths in samples of each batch.
    """
    import onnxruntime  # noqa: PLC0415

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in batches:
        lengths = torch.tensor(batch)
        waveforms = 0.1 * torch.randn((len(batch), max(batch)), generator=generator)
        with torch.inference_mode():
            expected = program(waveforms, lengths)
        found = session.run(None, dict(zip(INPUT_NAMES, (waveforms.numpy(), lengths.numpy()), strict=True)))
        worst = max(worst, _compare(found, expected))
    return worst


def _compare(found: Sequence[Any], expected: Sequence[torch.Tensor]) -> float:
    num_frames = expected[-1]
    if not torch.equal(torch.from_numpy(found[-1]), num_frames):
        return float("inf")
    worst = 0.0
    for ours, theirs in zip(found[:-1], expected[:-1], strict=True):
        is_valid = torch.arange(theirs.size(1)) < num_frames[:, None]
        difference = (torch.from_numpy(ours) - theirs)[is_valid].abs().max() / theirs[is_valid].abs().max()
        worst = max(worst, difference.nan_to_num(nan=float("inf")).item())
    return worst
