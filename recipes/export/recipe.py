from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, final

import torch
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from typing_extensions import override

from recipes.export.config import ExportConfig
from recipes.feature_sources import FeatureSource
from recipes.features import FeatureSection, open_source
from recipes.tasks import StoppableTask, refuse_several_processes
from spear_plugin.inference import MIN_PROGRAM_SAMPLES, FeatureProgram, export_program
from spear_plugin.inference.onnx_files import measure_onnx, write_onnx
from spear_plugin.models.spear import SPEAR_FAMILY, SpearModel
from spear_plugin.models.spidr import SPIDR_FAMILY

FILES: Final = {"onnx": "model.onnx", "torch": "model.pt2"}

_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")

_SINGLE_LENGTHS: Final = (MIN_PROGRAM_SAMPLES, 33_333, 50_000)


@final
class ExportRecipe(Recipe):
    """Writes a model as a program."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.export")
        return ExportTask(context)

    @property
    @override
    def config_kls(self) -> type[object]:
        return ExportConfig


@final
class ExportTask(StoppableTask):
    """Exports a model, compares the program with it, and then writes it to OUT."""

    def __init__(self, context: RecipeContext) -> None:
        super().__init__()
        self._config = context.get_config_as(ExportConfig)
        self._folder = context.output_dir

    @override
    def run(self) -> None:
        config = self._config
        target = self._folder / FILES[config.format]
        if target.exists():
            raise RecipeError(f"{target} exists already: choose another OUT, or delete it.")
        if config.format == "onnx" and (missing := [name for name in _PACKAGES if find_spec(name) is None]):
            raise RecipeError(f"`format=onnx` needs {', '.join(missing)}: install the extra, spear-plugin[export].")
        source = _open_model(config)
        program = _create_program(source, config)
        log.info("Following the model through for all lengths; that takes minutes.")
        graph = export_program(program, any_batch=config.any_batch)
        metadata = describe(source, program)
        with TemporaryDirectory(dir=self._folder, prefix=".") as name:
            made = Path(name) / target.name
            if config.format == "onnx":
                write_onnx(made, program, graph, metadata)
                difference = measure_onnx(made, program, batches_to_compare(any_batch=config.any_batch))
            else:
                torch.export.save(graph, made, extra_files={"metadata.json": json.dumps(metadata)})
                difference = _measure_graph(made, program)
            if not difference <= config.max_difference:
                raise RecipeError(
                    f"{target.name} is {difference:.2g} of the largest value from the model, more than "
                    f"`max_difference` ({config.max_difference:g}), and was not written."
                )
            # The file itself last: weights beside it belong to it.
            for path in sorted(Path(name).iterdir(), key=lambda path: path == made):
                path.replace(self._folder / path.name)
        log.info("{}: at most {:.2g} of the largest value from the model.", target, difference)


def _open_model(config: ExportConfig) -> FeatureSource:
    section = _ModelSection(checkpoint=config.model)
    return open_source(section, device=torch.device("cpu"), output_only=config.layers == "last")


def _create_program(source: FeatureSource, config: ExportConfig) -> FeatureProgram:
    assert source.model is not None
    source.model.requires_grad_(False)
    layers = list(range(len(source.layer_dims))) if config.layers == "all" else config.layers
    try:
        return FeatureProgram(source.model, None if isinstance(layers, str) else layers).eval()
    except ValueError as ex:
        raise RecipeError(str(ex)) from None


def describe(source: FeatureSource, program: FeatureProgram) -> dict[str, str]:
    """Return what users of a program need to know, as texts by name."""
    layers = program.layers
    dims = [source.layer_dims[-1]] if layers is None else [source.layer_dims[layer] for layer in layers]
    return {
        "family": SPEAR_FAMILY if isinstance(source.model, SpearModel) else SPIDR_FAMILY,
        "sample_rate": str(source.sample_rate),
        "hop": str(round(source.sample_rate / source.timing.rate_hz)),
        "frame_rate_hz": f"{source.timing.rate_hz:g}",
        "first_centre": f"{source.timing.first_centre:g}",
        "dim": ",".join(map(str, dims)),
        "layers": "last" if layers is None else ",".join(map(str, layers)),
        "min_samples": str(MIN_PROGRAM_SAMPLES),
        "source": source.identity,
    }


def batches_to_compare(*, any_batch: bool) -> Sequence[Sequence[int]]:
    """Return lengths in samples of batches: one utterance of each, and all of them if a program takes that."""
    singles = [[length] for length in _SINGLE_LENGTHS]
    return [*singles, _SINGLE_LENGTHS] if any_batch else singles


def _measure_graph(path: Path, program: FeatureProgram) -> float:
    """Return how far a file of torch.export is from the model; of one utterance, as any program takes it."""
    graph = torch.export.load(path).module()
    waveforms, lengths = 0.1 * torch.ones((1, _SINGLE_LENGTHS[1])).cumsum(1).sin(), torch.tensor(_SINGLE_LENGTHS[1:2])
    with torch.inference_mode():
        found, expected = graph(waveforms, lengths), program(waveforms, lengths)
    differences = [
        ((ours - theirs).abs().max() / theirs.abs().max()).item() for ours, theirs in zip(found, expected, strict=True)
    ]
    return float(max(differences))


@final
class _ModelSection(FeatureSection):
    @property
    @override
    def checkpoint_key(self) -> str:
        return "`model`"
