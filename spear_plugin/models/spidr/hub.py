from __future__ import annotations

from fairseq2.models import ModelHubAccessor

from spear_plugin.models.spidr.config import SPIDR_FAMILY, SpidrConfig
from spear_plugin.models.spidr.model import SpidrModel

get_spidr_model_hub = ModelHubAccessor(SPIDR_FAMILY, SpidrModel, SpidrConfig)
