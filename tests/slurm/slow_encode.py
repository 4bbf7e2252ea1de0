"""`recipes.mvq.encode` with time between its shards, in which a test can kill it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from recipes.common import main
from recipes.mvq.encode.recipe import MvqEncodeRecipe
from spear_plugin.data.codes import CodeStoreWriter

SECONDS_PER_SHARD = 3.0

_write_shard = CodeStoreWriter.write_shard


def write_slowly(writer: CodeStoreWriter, index: int, ids: Sequence[str], codes: Any) -> None:
    time.sleep(SECONDS_PER_SHARD)
    _write_shard(writer, index, ids, codes)


if __name__ == "__main__":
    setattr(CodeStoreWriter, "write_shard", write_slowly)  # noqa: B010  (mypy takes no assignment to a method)
    main(MvqEncodeRecipe(), None)
