"""The one place that registers with fairseq2: cards, families, optimizers, schedules, metric names, error lines."""

from __future__ import annotations

from fairseq2.composition import register_dataset_family, register_model_family, register_package_assets
from fairseq2.logging import log
from fairseq2.metrics import format_as_float
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.optim.lr_schedulers import LRScheduler
from fairseq2.recipe import register_cli_error
from fairseq2.recipe.component import register_component
from fairseq2.runtime.dependency import DependencyContainer
from torch.optim import Optimizer

from spear_plugin.data.alignments import AlignmentFileError
from spear_plugin.data.audio import AudioError
from spear_plugin.data.codes import CodeStoreError
from spear_plugin.data.dataset import SPEAR_DATASET, SpearDataset, SpearDatasetConfig, open_spear_dataset
from spear_plugin.data.features import FeatureStoreError
from spear_plugin.data.manifest import ManifestError
from spear_plugin.data.options import SpearDatasetError
from spear_plugin.data.scan import AudioFolderError
from spear_plugin.evaluation import ProbeError
from spear_plugin.models.downstream import (
    CTC_FAMILY,
    TAGGING_FAMILY,
    CtcConfig,
    CtcModel,
    TaggingConfig,
    TaggingModel,
    apply_ac_to_downstream,
    compile_downstream,
    create_ctc_model,
    create_tagging_model,
    register_downstream_configs,
)
from spear_plugin.models.spear import (
    DOMAINS,
    SPEAR_FAMILY,
    ReleasedModelError,
    SpearConfig,
    SpearModel,
    apply_ac_to_spear,
    apply_fsdp_to_spear,
    compile_spear,
    convert_spear_state_dict,
    create_spear_model,
    register_spear_configs,
)
from spear_plugin.models.spidr import (
    SPIDR_FAMILY,
    SpidrConfig,
    SpidrModel,
    apply_ac_to_spidr,
    apply_fsdp_to_spidr,
    compile_spidr,
    convert_spidr_state_dict,
    create_spidr_model,
    register_spidr_configs,
)
from spear_plugin.optim import (
    EDEN_LR,
    SCALED_ADAM_OPTIMIZER,
    EdenLRConfig,
    ScaledAdamConfig,
    create_eden,
    create_scaled_adam,
)
from spear_plugin.quantizers import (
    CLASSIFIER_QUANTIZER_FAMILY,
    KMEANS_QUANTIZER_FAMILY,
    MVQ_QUANTIZER_FAMILY,
    RANDOM_PROJECTION_QUANTIZER_FAMILY,
    ClassifierQuantizer,
    ClassifierQuantizerConfig,
    KMeansQuantizer,
    KMeansQuantizerConfig,
    MultiCodebookQuantizer,
    MvqQuantizerConfig,
    QuantizerAssetError,
    RandomProjectionQuantizer,
    RandomProjectionQuantizerConfig,
    convert_mvq_quantizer_state_dict,
    create_classifier_quantizer,
    create_kmeans_quantizer,
    create_mvq_quantizer,
    create_random_projection_quantizer,
    register_mvq_quantizer_configs,
)
from spear_plugin.teachers import TeacherError


def register_spear_plugin(container: DependencyContainer) -> None:
    """Register everything that the plugin adds to fairseq2.

    Registering a name twice is an error in fairseq2, therefore recipes register nothing of their own.
    """
    register_package_assets(container, "spear_plugin.cards")
    _register_spear(container)
    _register_spidr(container)
    _register_downstream(container)
    _register_quantizers(container)
    _register_spear_dataset(container)
    _register_optim(container)
    _register_metric_names(container)
    _register_error_lines(container)


def _register_spear(container: DependencyContainer) -> None:
    register_model_family(
        container,
        SPEAR_FAMILY,
        kls=SpearModel,
        config_kls=SpearConfig,
        factory=create_spear_model,
        state_dict_converter=convert_spear_state_dict,
        compiler=compile_spear,
        fsdp_applier=apply_fsdp_to_spear,
        layerwise_ac_applier=apply_ac_to_spear,
    )
    register_spear_configs(container)


def _register_spidr(container: DependencyContainer) -> None:
    register_model_family(
        container,
        SPIDR_FAMILY,
        kls=SpidrModel,
        config_kls=SpidrConfig,
        factory=create_spidr_model,
        state_dict_converter=convert_spidr_state_dict,
        compiler=compile_spidr,
        fsdp_applier=apply_fsdp_to_spidr,
        layerwise_ac_applier=apply_ac_to_spidr,
    )
    register_spidr_configs(container)


def _register_downstream(container: DependencyContainer) -> None:
    register_model_family(
        container,
        CTC_FAMILY,
        kls=CtcModel,
        config_kls=CtcConfig,
        factory=create_ctc_model,
        compiler=compile_downstream,
        layerwise_ac_applier=apply_ac_to_downstream,
    )
    register_model_family(
        container,
        TAGGING_FAMILY,
        kls=TaggingModel,
        config_kls=TaggingConfig,
        factory=create_tagging_model,
        compiler=compile_downstream,
        layerwise_ac_applier=apply_ac_to_downstream,
    )
    register_downstream_configs(container)


def _register_quantizers(container: DependencyContainer) -> None:
    register_model_family(
        container,
        MVQ_QUANTIZER_FAMILY,
        kls=MultiCodebookQuantizer,
        config_kls=MvqQuantizerConfig,
        factory=create_mvq_quantizer,
        state_dict_converter=convert_mvq_quantizer_state_dict,
    )
    register_mvq_quantizer_configs(container)
    register_model_family(
        container,
        KMEANS_QUANTIZER_FAMILY,
        kls=KMeansQuantizer,
        config_kls=KMeansQuantizerConfig,
        factory=create_kmeans_quantizer,
    )
    register_model_family(
        container,
        RANDOM_PROJECTION_QUANTIZER_FAMILY,
        kls=RandomProjectionQuantizer,
        config_kls=RandomProjectionQuantizerConfig,
        factory=create_random_projection_quantizer,
    )
    register_model_family(
        container,
        CLASSIFIER_QUANTIZER_FAMILY,
        kls=ClassifierQuantizer,
        config_kls=ClassifierQuantizerConfig,
        factory=create_classifier_quantizer,
    )


def _register_spear_dataset(container: DependencyContainer) -> None:
    register_dataset_family(
        container, SPEAR_DATASET, kls=SpearDataset, config_kls=SpearDatasetConfig, opener=open_spear_dataset
    )


def _register_optim(container: DependencyContainer) -> None:
    register_component(
        container, Optimizer, SCALED_ADAM_OPTIMIZER, config_kls=ScaledAdamConfig, factory=create_scaled_adam
    )
    register_component(container, LRScheduler, EDEN_LR, config_kls=EdenLRConfig, factory=create_eden)


def _register_metric_names(container: DependencyContainer) -> None:
    descriptors = [MetricDescriptor("masked_accuracy", "Masked Accuracy", 200, format_as_float, higher_better=True)]
    for stream in ("speech", "audio"):
        prefixes = {stream: stream.capitalize()}
        prefixes |= {f"{stream}_on_{domain}": f"{stream.capitalize()} on {domain.capitalize()}" for domain in DOMAINS}
        for prefix, name in prefixes.items():
            descriptors += [
                MetricDescriptor(f"{prefix}_loss", f"{name} Loss", 100, format_as_float),
                MetricDescriptor(
                    f"{prefix}_masked_accuracy", f"{name} Masked Accuracy", 201, format_as_float, higher_better=True
                ),
                MetricDescriptor(
                    f"{prefix}_unmasked_accuracy", f"{name} Unmasked Accuracy", 202, format_as_float, higher_better=True
                ),
            ]
        name = stream.capitalize()
        descriptors += [
            MetricDescriptor(f"{stream}_codebook_usage", f"{name} Codebook Usage", 203, format_as_float),
            MetricDescriptor(f"{stream}_predicted_perplexity", f"{name} Predicted Perplexity", 204, format_as_float),
            MetricDescriptor(f"{stream}_target_perplexity", f"{name} Target Perplexity", 205, format_as_float),
        ]
    descriptors += [
        MetricDescriptor("target_perplexity", "Target Perplexity", 206, format_as_float),
        MetricDescriptor("predicted_perplexity", "Predicted Perplexity", 207, format_as_float),
        MetricDescriptor("codebook_usage", "Codebook Usage", 208, format_as_float),
        MetricDescriptor("cer", "Character Error Rate (CER)", 209, format_as_float),
        MetricDescriptor("mean_average_precision", "Mean Average Precision", 210, format_as_float, higher_better=True),
        MetricDescriptor("total_audio_seconds", "Total Audio Seconds", 830, format_as_float),
        MetricDescriptor("total_num_skipped", "Total Number of Skipped Recordings", 840, format_as_float),
    ]
    for descriptor in descriptors:
        container.collection.register_instance(MetricDescriptor, descriptor)


def _register_error_lines(container: DependencyContainer) -> None:
    """Let recipes end with one line and exit code 2, without a stack trace, when the user's files are at fault."""

    def report(ex: Exception) -> int:
        log.error("{}", ex)
        return 2

    for kls in (
        AlignmentFileError,
        AudioError,
        AudioFolderError,
        CodeStoreError,
        FeatureStoreError,
        ManifestError,
        ProbeError,
        QuantizerAssetError,
        ReleasedModelError,
        SpearDatasetError,
        TeacherError,
    ):
        register_cli_error(container, kls, report)
