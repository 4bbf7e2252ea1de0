from __future__ import annotations

from fairseq2.models import ModelHubAccessor

from spear_plugin.models.downstream.config import CTC_FAMILY, TAGGING_FAMILY, CtcConfig, TaggingConfig
from spear_plugin.models.downstream.model import CtcModel, TaggingModel

get_ctc_model_hub = ModelHubAccessor(CTC_FAMILY, CtcModel, CtcConfig)

get_tagging_model_hub = ModelHubAccessor(TAGGING_FAMILY, TaggingModel, TaggingConfig)
