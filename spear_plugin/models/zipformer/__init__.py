"""Zipformer, the encoder of SPEAR: a building block without assets of its own."""

from spear_plugin.models.zipformer.config import ZipformerConfig as ZipformerConfig
from spear_plugin.models.zipformer.config import zipformer_base as zipformer_base
from spear_plugin.models.zipformer.config import zipformer_large as zipformer_large
from spear_plugin.models.zipformer.config import zipformer_tiny as zipformer_tiny
from spear_plugin.models.zipformer.config import zipformer_xlarge as zipformer_xlarge
from spear_plugin.models.zipformer.encoder import ZipformerEncoder as ZipformerEncoder
from spear_plugin.models.zipformer.encoder import ZipformerOutput as ZipformerOutput
from spear_plugin.models.zipformer.factory import create_conv_subsampling as create_conv_subsampling
from spear_plugin.models.zipformer.factory import create_zipformer as create_zipformer
from spear_plugin.models.zipformer.factory import num_whiteners as num_whiteners
from spear_plugin.models.zipformer.regularization import RegularizationConfig as RegularizationConfig
from spear_plugin.models.zipformer.regularization import forced_regularization as forced_regularization
from spear_plugin.models.zipformer.regularization import plain_regularization as plain_regularization
from spear_plugin.models.zipformer.subsampling import ConvSubsampling as ConvSubsampling
