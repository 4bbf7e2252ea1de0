from __future__ import annotations

from fairseq2.models import ModelHubAccessor

from spear_plugin.quantizers.classifier import ClassifierQuantizer
from spear_plugin.quantizers.config import (
    CLASSIFIER_QUANTIZER_FAMILY,
    KMEANS_QUANTIZER_FAMILY,
    MVQ_QUANTIZER_FAMILY,
    RANDOM_PROJECTION_QUANTIZER_FAMILY,
    ClassifierQuantizerConfig,
    KMeansQuantizerConfig,
    MvqQuantizerConfig,
    RandomProjectionQuantizerConfig,
)
from spear_plugin.quantizers.kmeans import KMeansQuantizer
from spear_plugin.quantizers.model import MultiCodebookQuantizer
from spear_plugin.quantizers.random_projection import RandomProjectionQuantizer

get_mvq_quantizer_hub = ModelHubAccessor(MVQ_QUANTIZER_FAMILY, MultiCodebookQuantizer, MvqQuantizerConfig)

get_kmeans_quantizer_hub = ModelHubAccessor(KMEANS_QUANTIZER_FAMILY, KMeansQuantizer, KMeansQuantizerConfig)

get_random_projection_quantizer_hub = ModelHubAccessor(
    RANDOM_PROJECTION_QUANTIZER_FAMILY, RandomProjectionQuantizer, RandomProjectionQuantizerConfig
)

get_classifier_quantizer_hub = ModelHubAccessor(
    CLASSIFIER_QUANTIZER_FAMILY, ClassifierQuantizer, ClassifierQuantizerConfig
)
