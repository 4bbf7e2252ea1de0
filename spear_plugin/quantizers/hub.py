from __future__ import annotations

from fairseq2.models import ModelHubAccessor

from spear_plugin.quantizers.config import MVQ_QUANTIZER_FAMILY, MvqQuantizerConfig
from spear_plugin.quantizers.model import MultiCodebookQuantizer

get_mvq_quantizer_hub = ModelHubAccessor(MVQ_QUANTIZER_FAMILY, MultiCodebookQuantizer, MvqQuantizerConfig)
