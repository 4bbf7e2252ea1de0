"""Keeps secrets of the environment out of logs: fairseq2 writes all of its variables to the log of each process."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final, final

from typing_extensions import override

_SECRET_NAME: Final = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|AUTH(?!OR)|(^|_)KEY|KEY($|_)|PRIVATE", re.IGNORECASE)


@final
class HiddenSecrets(logging.Filter):
    """Replaces the values of variables that are named like secrets by stars.

    Args:
        environment: The variables of the process.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__()
        secrets = {value for name, value in environment.items() if value and _SECRET_NAME.search(name)}
        # A value such as "1" or "true" hides nothing, but would tear holes into every line.
        alone = [re.escape(value) for value in sorted(secrets, key=len, reverse=True) if len(value) >= 6]
        assigned = [rf"(?<={re.escape(name)}=)[^,\s]+" for name in environment if _SECRET_NAME.search(name)]
        self._pattern = re.compile("|".join([*alone, *assigned])) if alone or assigned else None

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        if self._pattern is not None:
            record.msg = self._pattern.sub("***", record.getMessage())
            record.args = None
        return True
