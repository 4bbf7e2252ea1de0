"""Frozen external models whose frame embeddings become the targets of the student."""

from __future__ import annotations

from spear_plugin.teachers.base import Teacher as Teacher
from spear_plugin.teachers.base import TeacherError as TeacherError
from spear_plugin.teachers.base import TeacherHead as TeacherHead
from spear_plugin.teachers.base import TeacherOutput as TeacherOutput
from spear_plugin.teachers.base import embed_one_by_one as embed_one_by_one
from spear_plugin.teachers.config import TeacherConfig as TeacherConfig
from spear_plugin.teachers.loading import load_teacher as load_teacher
