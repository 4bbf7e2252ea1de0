"""Reader of CTranslate2's ``model.bin``: a header, then named arrays; little endian, strings with a final NUL.

Written here because the runtime itself offers no access to the weights, and no other library reads the file.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from spear_plugin.teachers.base import TeacherError

_DTYPES: Final = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: Path) -> tuple[str, dict[str, NDArray[Any]]]:
    """Return the name of the model's specification (such as ``WhisperSpec``) and its arrays by name.

    :raises TeacherError: If the file cannot be read, ends early or does not have the format.
    """
    try:
        cursor = _Cursor(path.read_bytes())
        cursor.read("I")  # version of the format
        specification = cursor.read_string()
        cursor.read("I")  # revision of the specification
        arrays = dict(_read_array(cursor) for _ in range(cursor.read("I")))
    except OSError as ex:
        raise TeacherError(f"{path}: the CTranslate2 model cannot be read: {ex.strerror}. Check the path.") from ex
    except (struct.error, KeyError, ValueError) as ex:
        raise TeacherError(f"{path}: must be a complete CTranslate2 model, but is not: {ex}. Get it again.") from ex

    return specification, arrays


@final
class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def read(self, code: str) -> int:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.offset)
        self.offset += struct.calcsize(f"<{code}")
        return int(value)

    def read_string(self) -> str:
        size = self.read("H")
        text = self.data[self.offset : self.offset + size - 1].decode()
        self.offset += size
        return text


def _read_array(cursor: _Cursor) -> tuple[str, NDArray[Any]]:
    name = cursor.read_string()
    shape = [cursor.read("I") for _ in range(cursor.read("B"))]
    dtype = np.dtype(_DTYPES[cursor.read("B")])
    num_bytes = cursor.read("I")
    array = np.frombuffer(cursor.data, dtype, num_bytes // dtype.itemsize, cursor.offset).reshape(shape)
    cursor.offset += num_bytes

    return name, array
