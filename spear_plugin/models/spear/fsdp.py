from __future__ import annotations

from typing import NoReturn

from fairseq2.nn.fsdp import FSDPWrapper
from fairseq2.utils.validation import ValidationError

from spear_plugin.models.spear.model import SpearModel


def apply_fsdp_to_spear(model: SpearModel, granularity: str, wrapper: FSDPWrapper) -> NoReturn:
    """Refuse to shard the model, in one line that names the option to change.

    Raises:
        ValidationError: Always. The scale of each norm is a parameter without axes in the released weights, and neither
            version of FSDP takes one.
    """
    del model, granularity, wrapper
    raise ValidationError(
        "SPEAR cannot be sharded, because FSDP takes no parameters without axes, as the scales of its norms are. Set "
        "`trainer.data_parallelism` to 'ddp'.",
        field="trainer",
    )
