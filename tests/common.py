"""Assertions and makers shared by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN_FOLDER: Final = Path(__file__).parent / "golden"
DATA_FOLDER: Final = Path(__file__).parent / "data"


def load_golden(name: str) -> dict[str, Tensor]:
    """Return the tensors of ``tests/golden/NAME.safetensors`` (made with the authors' code)."""
    return load_file(GOLDEN_FOLDER / f"{name}.safetensors")


def assert_close(a: Tensor, b: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5, message: str | None = None) -> None:
    """Assert equal shapes and values within tolerance; NaN never passes."""

    def explain(text: str) -> str:
        return text if message is None else f"{message}: {text}"

    torch.testing.assert_close(a, b, atol=atol, rtol=rtol, check_dtype=False, msg=explain)


def assert_equal(a: Tensor, b: Tensor) -> None:
    """Assert bit-identical tensors."""
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def strip_prefix(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the entries below ``prefix`` with the prefix removed."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
