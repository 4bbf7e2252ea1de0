from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import final

from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from typing_extensions import override

from recipes.pretraining import ValidUnit
from recipes.spear.pretrain.averaging import keep_running_average
from recipes.spear.pretrain.config import SpearPretrainConfig
from recipes.spear.pretrain.online import load_online_targets
from recipes.spear.pretrain.unit import BatchCounter, SpearCriterion, SpearTrainUnit
from recipes.training import create_training
from spear_plugin.data.codes import CodeStoreIdentity
from spear_plugin.data.dataset import SpearDataset
from spear_plugin.data.files import atomic_file
from spear_plugin.data.manifest import Domain
from spear_plugin.data.mixing_options import MixingOptions
from spear_plugin.data.options import ReaderOptions, StreamOptions
from spear_plugin.models.spear import DOMAINS, SpearConfig, SpearModel, TargetStreamConfig


@final
class SpearPretrainRecipe(Recipe):
    """Masked prediction of MVQ tokens (SPEAR, section 3)."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return SpearPretrainConfig

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(SpearPretrainConfig)
        model_config = context.get_model_as(SpearModel).config
        dataset = context.get_dataset_as(SpearDataset)
        online_targets = load_online_targets(context, model_config)
        _keep_targets(context, dataset.identities | online_targets.identities)

        criterion = SpearCriterion(context.get_data_parallel_model(), model_config, online_targets)
        streams = _required_streams(model_config, made_online=online_targets.names)
        train_unit = SpearTrainUnit(criterion, _create_batch_counter(context, config))

        def set_options(options: ReaderOptions, split: str) -> None:
            options.streams = streams
            options.mixing = config.dataset.mixing if split == "train" else MixingOptions()

        training = create_training(context, config, train_unit, ValidUnit(criterion), set_options)
        keep_running_average(context, training.trainer)
        return training


def _create_batch_counter(context: RecipeContext, config: SpearPretrainConfig) -> BatchCounter:
    section = config.batch_count
    num_batches = context.gangs.dp.size * config.trainer.grad_accumulation.num_batches
    seconds = num_batches * (section.batch_seconds or config.dataset.max_batch_seconds)
    return BatchCounter(
        context.get_model_as(SpearModel),
        context.gangs.dp,
        counts_per_step=seconds / section.unit_seconds,
        every_n_steps=section.every_n_steps,
    )


def _required_streams(config: SpearConfig, *, made_online: set[str]) -> dict[str, StreamOptions]:
    """Return what the reader must give; of streams made online it gives padding, the same pieces and no codes."""
    return {
        stream.name: StreamOptions(
            num_codebooks=stream.num_codebooks,
            codebook_size=stream.codebook_size,
            frame_rate_hz=stream.frame_rate_hz,
            domains=() if stream.name in made_online else _weighted_domains(stream),
        )
        for stream in config.target_streams
    }


def _weighted_domains(stream: TargetStreamConfig) -> tuple[Domain, ...]:
    return tuple(domain for domain in DOMAINS if stream.weights.get(domain, 0.0) > 0.0)


def _keep_targets(context: RecipeContext, identities: dict[str, CodeStoreIdentity]) -> None:
    """Record whose codes the run is trained on, and refuse to go on with those of another teacher or quantizer.

    The heads' classes are the entries of a quantizer's codebooks: other codes would fit in shape and mean nothing.
    """
    path = context.output_dir / "targets.json"
    if path.exists():
        for stream, recorded in _read_targets(path).items():
            if (identity := identities.get(stream)) and (
                difference := identity.difference(recorded, ignore=("manifest",))
            ):
                raise RecipeError(
                    f"{path}: this run is trained on codes of stream '{stream}' that differ from the dataset's in "
                    f"{difference}. Use the old code store, or start a run in another folder."
                )
    elif context.gangs.root.rank == 0:
        with atomic_file(path) as temporary:
            temporary.write_text(
                json.dumps({name: asdict(identity) for name, identity in identities.items()}, indent=1)
            )
    context.gangs.root.barrier()


def _read_targets(path: Path) -> dict[str, CodeStoreIdentity]:
    return {stream: CodeStoreIdentity(**record) for stream, record in json.loads(path.read_text()).items()}
