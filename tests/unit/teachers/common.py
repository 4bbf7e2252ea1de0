"""Helpers of the teachers' tests."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Module

from spear_plugin.teachers import Teacher
from tests.common import assert_close


def assert_ignores_padding(teacher: Teacher, num_samples: tuple[int, ...], *, atol: float = 1e-4) -> None:
    """Assert that each utterance gives the same frames alone as in a batch whose padding is loud noise."""
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.1 * torch.randn(len(num_samples), max(num_samples), generator=generator)
    lengths = torch.tensor(num_samples)
    batch = teacher(waveforms, lengths)

    assert batch.lengths.tolist() == [teacher.num_frames(n) for n in num_samples]

    for index, n in enumerate(num_samples):
        assert not batch.frames[index, batch.lengths[index] :].any()

        if teacher.num_frames(n) > 0:
            alone = teacher(waveforms[index : index + 1, :n], lengths[index : index + 1]).frames[0]

            assert_close(batch.frames[index, : alone.size(0)], alone, atol=atol, message=f"{teacher.name}, {n} samples")


def noise(num_samples: int, *, seed: int = 0) -> Tensor:
    """Return (1, S) of white noise."""
    return 0.1 * torch.randn(1, num_samples, generator=torch.Generator().manual_seed(seed))


def write_ctranslate2(path: Path, specification: str, arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays in CTranslate2's format, version 6 (an independent description of what the reader reads)."""
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}

    def number(value: int, num_bytes: int) -> bytes:
        return value.to_bytes(num_bytes, "little")

    def string(text: str) -> bytes:
        return number(len(text) + 1, 2) + text.encode() + b"\0"

    data = number(6, 4) + string(specification) + number(3, 4) + number(len(arrays), 4)
    for name, array in arrays.items():
        data += string(name) + number(array.ndim, 1) + b"".join(number(n, 4) for n in array.shape)
        data += number(codes[array.dtype.name], 1) + number(array.nbytes, 4) + array.tobytes()

    path.write_bytes(data + number(0, 4))


def save_run(folder: Path, model: Module, family: str, config: Any) -> Path:
    """Write the checkpoint of a run's only step as fairseq2 does; return the folder."""
    checkpoint = folder / "checkpoints" / "step_3" / "model" / "pp_00" / "tp_00"
    checkpoint.mkdir(parents=True)
    torch.save(model.state_dict(), checkpoint / "sdp_00.pt")
    card = {"name": "checkpoint", "model_family": family, "model_config": asdict(config)}
    (folder / "checkpoints" / "model.yaml").write_text(yaml.safe_dump(card))
    return folder
