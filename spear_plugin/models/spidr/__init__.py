"""SpidR and DinoSR: students that predict codes of their own moving average (arXiv 2512.20308)."""

from spear_plugin.models.spidr.ac import apply_ac_to_spidr as apply_ac_to_spidr
from spear_plugin.models.spidr.codebook import CodebookStatistics as CodebookStatistics
from spear_plugin.models.spidr.codebook import OnlineCodebooks as OnlineCodebooks
from spear_plugin.models.spidr.compile import compile_spidr as compile_spidr
from spear_plugin.models.spidr.config import SPIDR_FAMILY as SPIDR_FAMILY
from spear_plugin.models.spidr.config import EmaConfig as EmaConfig
from spear_plugin.models.spidr.config import FeatureExtractorConfig as FeatureExtractorConfig
from spear_plugin.models.spidr.config import OnlineCodebookConfig as OnlineCodebookConfig
from spear_plugin.models.spidr.config import SpanMaskingConfig as SpanMaskingConfig
from spear_plugin.models.spidr.config import SpidrConfig as SpidrConfig
from spear_plugin.models.spidr.config import SpidrEncoderConfig as SpidrEncoderConfig
from spear_plugin.models.spidr.config import register_spidr_configs as register_spidr_configs
from spear_plugin.models.spidr.factory import create_frame_geometry as create_frame_geometry
from spear_plugin.models.spidr.factory import create_span_masker as create_span_masker
from spear_plugin.models.spidr.factory import create_spidr_model as create_spidr_model
from spear_plugin.models.spidr.frontend import SAMPLE_RATE as SAMPLE_RATE
from spear_plugin.models.spidr.frontend import FrameGeometry as FrameGeometry
from spear_plugin.models.spidr.frontend import standardize_waveforms as standardize_waveforms
from spear_plugin.models.spidr.fsdp import apply_fsdp_to_spidr as apply_fsdp_to_spidr
from spear_plugin.models.spidr.hub import get_spidr_model_hub as get_spidr_model_hub
from spear_plugin.models.spidr.interop import convert_spidr_state_dict as convert_spidr_state_dict
from spear_plugin.models.spidr.interop import export_spidr_state_dict as export_spidr_state_dict
from spear_plugin.models.spidr.masker import SpanMasker as SpanMasker
from spear_plugin.models.spidr.model import SpidrModel as SpidrModel
from spear_plugin.models.spidr.output import SpidrFeatures as SpidrFeatures
from spear_plugin.models.spidr.output import SpidrOutput as SpidrOutput
