"""The kinds of probes, by the names that task files and configurations use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from recipes.probe.config import ProbeSection, TaskReference
from recipes.probe.ctc import CtcTask, open_ctc_task
from recipes.probe.linear import ClipsTask, FramesTask, open_clips_task, open_frames_task
from recipes.probe.pooled import ScenesTask, UtterancesTask, open_scenes_task, open_utterances_task
from recipes.probe.task_files import TaskFile, read_task_file
from recipes.probe.tasks import ProbeTask
from recipes.probe.timestamps import TimestampsTask, open_timestamps_task
from recipes.probe.verification import VerificationTask, open_verification_task
from spear_plugin.evaluation import ProbeError


class TaskOpener(Protocol):
    """Makes a task of what its file says; raises :class:`ProbeError` if the file does not fit."""

    def __call__(self, file: TaskFile, section: ProbeSection, *, name: str, seed: int) -> ProbeTask: ...


KINDS: Final[Mapping[str, TaskOpener]] = {
    FramesTask.kind: open_frames_task,
    ClipsTask.kind: open_clips_task,
    CtcTask.kind: open_ctc_task,
    UtterancesTask.kind: open_utterances_task,
    VerificationTask.kind: open_verification_task,
    ScenesTask.kind: open_scenes_task,
    TimestampsTask.kind: open_timestamps_task,
}


def open_task(reference: TaskReference, section: ProbeSection, *, seed: int) -> ProbeTask:
    """Read a task and draw its items.

    Its kind is that of the reference, or what the file says; otherwise ``frames`` with an alignment, and ``clips``
    without one.

    :raises ProbeError: If a file is missing or malformed, a part is empty, or a label occurs only outside of training.
    """
    file = read_task_file(reference.path)
    kind = reference.kind or file.kind or (ClipsTask.kind if file.alignment is None else FramesTask.kind)
    if kind not in KINDS:
        raise ProbeError(f"{reference.path}: the kind must be one of {', '.join(KINDS)}, but is '{kind}'.")
    return KINDS[kind](file, section, name=reference.name, seed=seed)
