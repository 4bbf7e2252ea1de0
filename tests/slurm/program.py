"""A stand-in for a recipe: ``python -m tests.slurm.program OUT BEHAVIOUR...``, one behaviour for each start.

* ``ok``: ends well.
* ``wait``: waits for SIGUSR1 and ends as a recipe that was stopped.
* a number: ends with it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(out: Path, behaviours: list[str]) -> int:
    out.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK", "0")
    # Of the job: a task may not have begun when another one's crash ended it.
    num_starts = int(os.environ.get("SLURM_RESTART_COUNT", len(list(out.glob(f"rank-{rank}-start-*")))))
    (out / f"rank-{rank}-start-{num_starts}").write_text(
        "\n".join(f"{name}={value}" for name, value in sorted(os.environ.items()))
    )
    behaviour = behaviours[min(num_starts, len(behaviours) - 1)]
    if behaviour == "wait":
        signal.sigwait({signal.SIGUSR1})
        return 75
    return 0 if behaviour == "ok" else int(behaviour)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
