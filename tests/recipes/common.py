"""Calls recipes as from the command line, and makes the corpora they read."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq2.assets import AssetCard, StandardAssetStore
from fairseq2.checkpoint import ModelMetadataDumper, ModelMetadataLoader
from fairseq2.recipe.base import Recipe
from fairseq2.runtime.dependency import get_dependency_resolver

from recipes.common import main
from recipes.spear.pretrain.recipe import SpearPretrainRecipe
from spear_plugin.data.codes import CodeStoreIdentity, CodeStoreWriter, StoredCodes
from spear_plugin.data.manifest import ManifestRow, manifest_digest, read_manifest
from spear_plugin.models.spear import SPEAR_FAMILY, SpearConfig, get_spear_model_hub
from spear_plugin.models.spidr import SPIDR_FAMILY, SpidrModel, create_spidr_model
from tests.common import DATA_FOLDER
from tests.unit.models.spidr.makers import small_config

TINY_DEMO = "recipes/spear/pretrain/configs/tiny_demo.yaml"

# A student small enough that a step costs next to nothing; without braces, so that a test can add to it.
SMALL_ZIPFORMER = (
    "subsampling_channels: [2, 4, 4], downsampling_factors: [1, 2], num_layers: [1, 1], encoder_dims: [16, 16], "
    "feedforward_dims: [32, 32], kernel_sizes: [7, 7], num_heads: [2, 2]"
)
SMALL_MODEL = f"model.config_overrides.zipformer={{{SMALL_ZIPFORMER}}}"

# The model with everything that acts in training only, and so with all its random draws and memory.
REGULARIZED_MODEL = SMALL_MODEL.removesuffix("}") + (
    ", regularization: {dropout: scheduled, branch_skips: scheduled, layer_skips: scheduled, "
    "position_skips: scheduled, feature_mask_p: 0.125, balancer: scheduled, "
    "whitening: scheduled, limits: scheduled, score_penalty: scheduled}}"
)


def call_recipe(
    recipe: Recipe, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    """Run a recipe as `python -m` does, in this process; return its exit code and its lines of errors."""
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["recipe", *arguments, "--no-rich"])
    code = 0
    try:
        main(recipe, None)
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    _, separator, text = capsys.readouterr().err.partition(" ERROR: ")
    lines = (separator + text).splitlines()
    return code, [re.sub(r"^.* ERROR: \S+ - ", "", line) for line in lines]


def write_random_codes(
    folder: Path,
    manifest: Path,
    *,
    frame_rate_hz: float,
    num_codebooks: int = 2,
    codebook_size: int = 256,
    quantizer: str = "0123456789abcdef",
    seed: int = 0,
) -> Path:
    """Write a code store with random codes for a manifest."""
    rows = read_manifest(manifest)
    identity = CodeStoreIdentity(
        teacher=f"test:{frame_rate_hz:g}",
        quantizer=quantizer,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        frame_rate_hz=frame_rate_hz,
        manifest=manifest_digest(manifest),
    )
    generator = np.random.default_rng(seed)

    def draw(row: ManifestRow) -> StoredCodes:
        shape = int(row.duration * frame_rate_hz), num_codebooks
        return generator.integers(0, codebook_size, shape, dtype=np.uint8 if codebook_size <= 256 else np.uint16)

    writer = CodeStoreWriter(folder, identity, num_shards=1)
    writer.write_shard(0, [row.id for row in rows], [draw(row) for row in rows])
    writer.finish()
    return folder


def write_test_codes(folder: Path) -> str:
    """Write random codes of both streams for the corpora in tests/data; return the corpora as a line of YAML."""
    speech, audio = DATA_FOLDER / "speech.tsv", DATA_FOLDER / "audio.tsv"
    codes = {
        "speech": write_random_codes(folder / "speech_speech", speech, frame_rate_hz=50.0),
        "audio_speech": write_random_codes(folder / "audio_speech", audio, frame_rate_hz=50.0),
        "audio": write_random_codes(folder / "audio_audio", audio, frame_rate_hz=25.0),
    }
    return (
        f"[{{name: speech, manifest: {speech}, codes: {{speech: {codes['speech']}}}}}, "
        f"{{name: audio, manifest: {audio}, codes: {{speech: {codes['audio_speech']}, audio: {codes['audio']}}}}}]"
    )


def read_steps(path: Path) -> dict[int, dict[str, float]]:
    """Return the records of a metrics file by step, the last one where a step stands twice."""
    return {record["Step"]: record for record in map(json.loads, path.read_text().splitlines())}


class PretrainRunner:
    """Calls `recipes.spear.pretrain`, or another recipe, on the corpora in tests/data, with random codes."""

    def __init__(
        self,
        folder: Path,
        options: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        *,
        splits: tuple[str, ...] = ("train", "valid"),
        recipe: type[Recipe] = SpearPretrainRecipe,
        corpora: str | None = None,
    ) -> None:
        """Write the codes, or take other corpora.

        :param folder: Where codes and runs are written.
        :param options: Options of every call.
        :param splits: Which splits get the corpora.
        :param recipe: What is called.
        :param corpora: A line of YAML.
        """
        self.folder = folder
        self.corpora = corpora or write_test_codes(folder / "codes")
        self._recipe = recipe
        self._options = options
        self._splits = splits
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(
        self, *options: str, run: str = "run", corpora: str | None = None, config_file: str = TINY_DEMO
    ) -> tuple[int, list[str]]:
        lists = [f"dataset.config_overrides.{split}={corpora or self.corpora}" for split in self._splits]
        overrides = [*lists, *self._options, *options]
        arguments = [str(self.folder / run), "--config-file", config_file, "--config", *overrides]
        return call_recipe(self._recipe(), arguments, self._monkeypatch, self._capsys)

    def read_steps(self, split: str = "train", *, run: str = "run") -> dict[int, dict[str, float]]:
        """Return the metrics of a run by step."""
        return read_steps(self.folder / run / "metrics" / f"{split}.jsonl")

    def load_weights(self, step: int, *, run: str = "run") -> dict[str, torch.Tensor]:
        """Return the model's state of a checkpoint."""
        (path,) = (self.folder / run / "checkpoints" / f"step_{step}" / "model").rglob("*.pt")
        weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
        return weights


def save_run(folder: Path, *, seed: int, config: SpearConfig | None = None) -> Path:
    """Write a random model, `tiny` by default, as the checkpoint of a pre-training run."""
    hub = get_spear_model_hub()
    config = config or hub.get_arch_config("tiny")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hub.create_new_model(config)
    dumper = get_dependency_resolver().resolve(ModelMetadataDumper)  # type: ignore[type-abstract]
    dumper.dump(folder / "checkpoints", SPEAR_FAMILY, config)
    step = folder / "checkpoints" / "step_2" / "model" / "pp_00" / "tp_00"
    step.mkdir(parents=True)
    torch.save(model.state_dict(), step / "sdp_00.pt")
    return folder


def save_spidr_run(folder: Path) -> Path:
    """Write :func:`create_small_spidr_model` as the checkpoint of a pre-training run."""
    dumper = get_dependency_resolver().resolve(ModelMetadataDumper)  # type: ignore[type-abstract]
    dumper.dump(folder / "checkpoints", SPIDR_FAMILY, small_config())
    step = folder / "checkpoints" / "step_2" / "model" / "pp_00" / "tp_00"
    step.mkdir(parents=True)
    torch.save(create_small_spidr_model().state_dict(), step / "sdp_00.pt")
    return folder


def create_small_spidr_model() -> SpidrModel:
    """Return a random model of three layers, the last two of which have a head."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return create_spidr_model(small_config()).eval()


def find_run_card(run: Path, name: str) -> AssetCard:
    """Return a card that fairseq2 makes of a run's checkpoints, such as `last_checkpoint`."""
    loader = get_dependency_resolver().resolve(ModelMetadataLoader)  # type: ignore[type-abstract]
    return StandardAssetStore([loader.load(run / "checkpoints")]).retrieve_card(name)
