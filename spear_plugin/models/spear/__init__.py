"""SPEAR: a Zipformer that predicts the quantized frames of speech and audio teachers (arXiv 2510.25955)."""

from spear_plugin.models.spear.ac import apply_ac_to_spear as apply_ac_to_spear
from spear_plugin.models.spear.compile import compile_spear as compile_spear
from spear_plugin.models.spear.config import DOMAINS as DOMAINS
from spear_plugin.models.spear.config import SPEAR_FAMILY as SPEAR_FAMILY
from spear_plugin.models.spear.config import MaskingConfig as MaskingConfig
from spear_plugin.models.spear.config import SpearConfig as SpearConfig
from spear_plugin.models.spear.config import TargetStreamConfig as TargetStreamConfig
from spear_plugin.models.spear.config import num_output_frames as num_output_frames
from spear_plugin.models.spear.config import output_frame_rate_hz as output_frame_rate_hz
from spear_plugin.models.spear.config import register_spear_configs as register_spear_configs
from spear_plugin.models.spear.factory import create_spear_model as create_spear_model
from spear_plugin.models.spear.fsdp import apply_fsdp_to_spear as apply_fsdp_to_spear
from spear_plugin.models.spear.heads import StreamOutput as StreamOutput
from spear_plugin.models.spear.hub import get_spear_model_hub as get_spear_model_hub
from spear_plugin.models.spear.interop import convert_spear_state_dict as convert_spear_state_dict
from spear_plugin.models.spear.interop import convert_to_released_state_dict as convert_to_released_state_dict
from spear_plugin.models.spear.interop import convert_to_training_state_dict as convert_to_training_state_dict
from spear_plugin.models.spear.model import SpearFeatures as SpearFeatures
from spear_plugin.models.spear.model import SpearModel as SpearModel
from spear_plugin.models.spear.model import SpearOutput as SpearOutput
from spear_plugin.models.spear.released import RELEASED_CONFIG_FILE as RELEASED_CONFIG_FILE
from spear_plugin.models.spear.released import RELEASED_WEIGHTS_FILE as RELEASED_WEIGHTS_FILE
from spear_plugin.models.spear.released import ReleasedModelError as ReleasedModelError
from spear_plugin.models.spear.released import create_released_config as create_released_config
from spear_plugin.models.spear.released import parse_released_config as parse_released_config
from spear_plugin.models.spear.released import released_card as released_card
