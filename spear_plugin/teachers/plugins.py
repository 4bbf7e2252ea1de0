"""Teachers of other packages, found by entry points of the group ``spear_plugin.teachers``.

An entry point names a callable that takes a :class:`~spear_plugin.teachers.config.TeacherConfig` and returns a
:class:`~spear_plugin.teachers.Teacher`: a function, or a subclass whose constructor takes the configuration.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

from spear_plugin.teachers.base import Teacher, TeacherError
from spear_plugin.teachers.config import TeacherConfig

GROUP: Final = "spear_plugin.teachers"


def list_plugin_teachers() -> list[str]:
    """Return the names of the teachers that installed packages offer."""
    return sorted({entry_point.name for entry_point in entry_points(group=GROUP)})


def load_plugin_teacher(config: TeacherConfig) -> Teacher | None:
    """Load a teacher of another package; None if no package offers one of that name.

    :raises TeacherError: If two packages offer it, it cannot be imported, or what it gives is no teacher. Other errors
        are the package's own.
    """
    found = tuple(entry_points(group=GROUP, name=config.name))
    if not found:
        return None

    if len(found) > 1:
        sources = ", ".join(_describe(entry_point) for entry_point in found)
        raise TeacherError(f"`teacher.name`: '{config.name}' is offered by several packages ({sources}). Keep one.")

    (entry_point,) = found
    try:
        load = entry_point.load()
    except (ImportError, AttributeError) as ex:
        raise TeacherError(
            f"`teacher.name`: '{config.name}' of {_describe(entry_point)} cannot be imported: {ex}. Repair the package."
        ) from ex

    teacher = load(config)
    if not isinstance(teacher, Teacher):
        raise TeacherError(
            f"`teacher.name`: '{config.name}' of {_describe(entry_point)} must give a Teacher, but gives a "
            f"{type(teacher).__name__}."
        )

    return teacher


def _describe(entry_point: EntryPoint) -> str:
    package = entry_point.dist.name if entry_point.dist is not None else "an unnamed package"

    return f"{package} ({entry_point.value})"
