from __future__ import annotations

from fairseq2.models import ModelHubAccessor

from spear_plugin.models.spear.config import SPEAR_FAMILY, SpearConfig
from spear_plugin.models.spear.model import SpearModel

get_spear_model_hub = ModelHubAccessor(SPEAR_FAMILY, SpearModel, SpearConfig)
