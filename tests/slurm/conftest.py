from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SlurmCluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a Slurm in one process where others are spread over several."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[SlurmCluster]:
    """Start a Slurm with two nodes, once a session."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # open to munge's user, which pytest's own folders are not
    cluster = SlurmCluster(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(cluster.configuration))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
    shutil.rmtree(folder)
