from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import pytest
import torch

# A broken extension is only a warning by default; here it must fail the run.
os.environ.setdefault("FAIRSEQ2_EXTENSION_TRACE", "1")

from fairseq2 import init_fairseq2

WAITING: Final = Path(__file__).parent / "slurm"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that wait for Slurm: other processes use the cores meanwhile."""
    items.sort(key=lambda item: WAITING not in item.path.parents)


@pytest.fixture(scope="session", autouse=True)
def fairseq2_library() -> None:
    """Compose fairseq2 once a session: a second `init_fairseq2()` is an error."""
    torch.set_num_threads(1)
    init_fairseq2()


@pytest.fixture
def fresh_compiler() -> None:
    """Forget what other tests compiled: of one function, PyTorch compiles no more than a few versions in a process."""
    torch.compiler.reset()
