"""Models for downstream tasks on any encoder: speech recognition by CTC, audio tagging."""

from spear_plugin.models.downstream.ac import apply_ac_to_downstream as apply_ac_to_downstream
from spear_plugin.models.downstream.compile import compile_downstream as compile_downstream
from spear_plugin.models.downstream.config import CTC_FAMILY as CTC_FAMILY
from spear_plugin.models.downstream.config import TAGGING_FAMILY as TAGGING_FAMILY
from spear_plugin.models.downstream.config import CtcConfig as CtcConfig
from spear_plugin.models.downstream.config import DownstreamConfig as DownstreamConfig
from spear_plugin.models.downstream.config import EncoderConfig as EncoderConfig
from spear_plugin.models.downstream.config import SpecAugmentConfig as SpecAugmentConfig
from spear_plugin.models.downstream.config import TaggingConfig as TaggingConfig
from spear_plugin.models.downstream.config import num_encoder_frames as num_encoder_frames
from spear_plugin.models.downstream.config import register_downstream_configs as register_downstream_configs
from spear_plugin.models.downstream.decoding import BLANK as BLANK
from spear_plugin.models.downstream.decoding import decode_by_prefix_beam as decode_by_prefix_beam
from spear_plugin.models.downstream.decoding import decode_greedily as decode_greedily
from spear_plugin.models.downstream.encoder import SpearEncoder as SpearEncoder
from spear_plugin.models.downstream.encoder import SpidrEncoder as SpidrEncoder
from spear_plugin.models.downstream.factory import create_ctc_model as create_ctc_model
from spear_plugin.models.downstream.factory import create_tagging_model as create_tagging_model
from spear_plugin.models.downstream.hub import get_ctc_model_hub as get_ctc_model_hub
from spear_plugin.models.downstream.hub import get_tagging_model_hub as get_tagging_model_hub
from spear_plugin.models.downstream.model import CtcModel as CtcModel
from spear_plugin.models.downstream.model import CtcOutput as CtcOutput
from spear_plugin.models.downstream.model import DownstreamModel as DownstreamModel
from spear_plugin.models.downstream.model import TaggingModel as TaggingModel
