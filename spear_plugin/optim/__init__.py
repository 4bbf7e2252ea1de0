from __future__ import annotations

from spear_plugin.optim.config import EDEN_LR as EDEN_LR
from spear_plugin.optim.config import SCALED_ADAM_OPTIMIZER as SCALED_ADAM_OPTIMIZER
from spear_plugin.optim.config import EdenLRConfig as EdenLRConfig
from spear_plugin.optim.config import ScaledAdamConfig as ScaledAdamConfig
from spear_plugin.optim.config import ScaledAdamGroupConfig as ScaledAdamGroupConfig
from spear_plugin.optim.config import ScaledAdamOptions as ScaledAdamOptions
from spear_plugin.optim.eden import EdenLR as EdenLR
from spear_plugin.optim.factory import create_eden as create_eden
from spear_plugin.optim.factory import create_scaled_adam as create_scaled_adam
from spear_plugin.optim.scaled_adam import ScaledAdam as ScaledAdam
