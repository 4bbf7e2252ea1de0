"""Frozen external models whose frame embeddings become the targets of the student."""

from __future__ import annotations

from spear_plugin.teachers.base import Teacher as Teacher
from spear_plugin.teachers.base import TeacherError as TeacherError
from spear_plugin.teachers.base import TeacherOutput as TeacherOutput
from spear_plugin.teachers.loading import TeacherConfig as TeacherConfig
from spear_plugin.teachers.loading import load_teacher as load_teacher
