"""The heads of a teacher as a quantizer."""

from __future__ import annotations

from fairseq2.recipe.error import RecipeError
from torch import Tensor

from spear_plugin.quantizers import ClassifierQuantizer, ClassifierQuantizerConfig, create_classifier_quantizer
from spear_plugin.teachers import Teacher, TeacherHead


def find_head(teacher: Teacher, name: str | None) -> TeacherHead:
    """Return the head of that name, by default the only one.

    :raises RecipeError: If there is none, or it is not clear which one is meant.
    """
    heads = teacher.heads()
    if not heads:
        raise RecipeError(
            f"Teacher {teacher.name}: has no head that predicts a code of each frame of this layer. Choose another "
            "`teacher.layer`, a checkpoint with heads, or another `quantizer.kind`."
        )

    if name is None and len(heads) == 1:
        (name,) = heads

    if name not in heads:
        raise RecipeError(f"`quantizer.head` must be one of {', '.join(heads)}, but is {name}.")

    return heads[name]


def copy_head(head: TeacherHead, config: ClassifierQuantizerConfig, frames: Tensor) -> ClassifierQuantizer:
    """Return the quantizer whose codes are the head's predictions; frames (B, D) tell what a code stands for."""
    quantizer = create_classifier_quantizer(config).to(head.weight.device)
    quantizer.set_classifiers(head.weight, head.bias)
    quantizer.fit_centers(frames)

    return quantizer
