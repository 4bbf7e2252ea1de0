"""Stores that several jobs make together: the bytes of one job, completed once, whoever is killed."""

from __future__ import annotations

import re
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from fairseq2.recipe.run import run

from recipes.extract.config import ExtractConfig, ExtractCorpusSection
from recipes.extract.recipe import ExtractRecipe
from recipes.failures import FailureLists
from recipes.features import FeatureSection
from recipes.mvq.encode.config import EncodeCorpusSection, MvqEncodeConfig
from recipes.mvq.encode.recipe import MvqEncodeRecipe
from recipes.parts import CLAIM_FILE, Part, claim_completion
from recipes.spidr.units.recipe import SpidrUnitsRecipe
from recipes.targets import QuantizerSection
from spear_plugin.data.codes import CodeStore, CodeStoreWriter
from spear_plugin.data.feature_writer import FeatureStoreWriter
from spear_plugin.data.manifest import read_manifest
from spear_plugin.quantizers import MvqQuantizerConfig, create_mvq_quantizer, save_quantizer_asset
from spear_plugin.teachers import TeacherConfig
from tests.common import DATA_FOLDER
from tests.recipes.common import call_recipe
from tests.recipes.test_extract import write_rows


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six real prompts, and a file that is none in the first shard."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "bad.wav").write_bytes(b"RIFF, and then nothing")
    rows = read_manifest(DATA_FOLDER / "speech.tsv")[:6]
    lines = [f"{row.id}\t{row.path}\t{row.num_samples}\t{row.sample_rate}" for row in rows]
    return write_rows(folder / "speech.tsv", [f"bad\t{folder / 'bad.wav'}\t16000\t16000", *lines])


@pytest.fixture(scope="module")
def quantizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantizer")
    torch.manual_seed(0)
    config = MvqQuantizerConfig(dim=256, num_codebooks=2, normalize=False)
    save_quantizer_asset(folder, create_mvq_quantizer(config), config, "test_quantizer")
    return folder


def encode(manifest: Path, quantizer: Path, folder: Path, part: str | None = None) -> None:
    """Encode in four shards."""
    config = MvqEncodeConfig(
        teacher=TeacherConfig(name="log_mel"),
        quantizer=QuantizerSection(path=str(quantizer)),
        corpus=EncodeCorpusSection(manifest=manifest, rows_per_shard=2, part=part),
    )
    run(MvqEncodeRecipe(), config, folder, no_rich=True)


@pytest.fixture(scope="module")
def whole(manifest: Path, quantizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    encode(manifest, quantizer, folder)
    return read_store(folder)


def read_store(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a store's own files."""
    kept = (".arrow", ".json", ".tsv", ".safetensors")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in kept and path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_parts_in_any_order_make_the_store_of_one_job_and_complete_it_once(
    manifest: Path, quantizer: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completions = []
    finish = CodeStoreWriter.finish

    def count(writer: CodeStoreWriter) -> None:
        completions.append(writer)
        finish(writer)

    monkeypatch.setattr(CodeStoreWriter, "finish", count)
    for part, shards in (("2/3", [2]), ("0/3", [0, 2, 3])):
        encode(manifest, quantizer, tmp_path, part)
        assert [int(path.stem[-5:]) for path in sorted(tmp_path.glob("*.arrow"))] == shards
    assert not completions
    for part in ("1/3", "1/3", "2/3", "0/3"):  # the first of these is the last one; then all start again
        encode(manifest, quantizer, tmp_path, part)
        assert len(completions) == 1
    assert read_store(tmp_path) == whole
    assert "failed.tsv" in whole
    assert not (tmp_path / CLAIM_FILE).is_symlink()


@pytest.mark.parametrize("target", [(CodeStoreWriter, "finish"), (FailureLists, "merge")], ids=str)
def test_a_part_that_is_killed_while_it_completes_the_store_does_so_when_it_starts_again(
    manifest: Path,
    quantizer: Path,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: tuple[type, str],
) -> None:
    def be_killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    encode(manifest, quantizer, tmp_path, "0/2")
    with monkeypatch.context() as context:
        context.setattr(*target, be_killed)
        with pytest.raises(KeyboardInterrupt):
            encode(manifest, quantizer, tmp_path, "1/2")
    encode(manifest, quantizer, tmp_path, "0/2")
    assert read_store(tmp_path) != whole
    assert "Part 1/2 completes the store. Should it have been killed" in (tmp_path / "logs/rank_0.log").read_text()
    encode(manifest, quantizer, tmp_path, "1/2")
    assert read_store(tmp_path) == whole
    assert not (tmp_path / CLAIM_FILE).is_symlink()


def test_one_job_completes_what_parts_have_begun(
    manifest: Path, quantizer: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    encode(manifest, quantizer, tmp_path, "1/3")
    (tmp_path / CLAIM_FILE).symlink_to("2/3")  # of one that was killed
    encode(manifest, quantizer, tmp_path)
    assert read_store(tmp_path) == whole
    assert not (tmp_path / CLAIM_FILE).is_symlink()


def test_a_store_whose_shard_is_made_anew_is_completed_again(
    manifest: Path, quantizer: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    for part in ("0/2", "1/2"):
        encode(manifest, quantizer, tmp_path, part)
    (tmp_path / "shard-00001.arrow").unlink()
    (tmp_path / "complete.json").unlink()
    for part in ("0/2", "1/2"):
        encode(manifest, quantizer, tmp_path, part)
    assert read_store(tmp_path) == whole
    assert len(CodeStore(tmp_path)) == 6


def test_of_parts_that_end_at_the_same_moment_one_completes_the_store(tmp_path: Path) -> None:
    for attempt in range(50):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        barrier = Barrier(6)
        completions: list[int] = []

        def complete(
            index: int, folder: Path = folder, barrier: Barrier = barrier, done: list[int] = completions
        ) -> None:
            barrier.wait()
            with claim_completion(folder, Part(index, 6), lambda: bool(done)) as objection:
                if objection is None:
                    done.append(index)

        threads = [Thread(target=complete, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(completions) == 1


def test_features_can_be_extracted_in_parts(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def extract(folder: Path, part: str | None) -> None:
        corpus = ExtractCorpusSection(manifest=manifest, max_shard_seconds=3.0, part=part)
        config = ExtractConfig(source=FeatureSection(kind="log_mel"), corpus=corpus)
        run(ExtractRecipe(), config, folder, no_rich=True)

    extract(tmp_path / "whole", None)
    finish = FeatureStoreWriter.finish
    completions = []

    def count(writer: FeatureStoreWriter) -> int:
        completions.append(writer)
        return finish(writer)

    monkeypatch.setattr(FeatureStoreWriter, "finish", count)
    for part in ("1/2", "0/2", "1/2"):
        extract(tmp_path / "parts", part)
    assert read_store(tmp_path / "parts") == read_store(tmp_path / "whole")
    assert len(list((tmp_path / "parts").glob("shard-*"))) > 2
    assert len(completions) == 1


@pytest.mark.parametrize("part", ["4/4", "-1/4", "1", "a/b", "0/0"])
def test_a_part_that_cannot_be_is_named_in_one_line(
    manifest: Path,
    quantizer: Path,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [f"corpus.manifest={manifest}", f"quantizer.path={quantizer}", f"corpus.part='{part}'"]
    code, lines = call_recipe(MvqEncodeRecipe(), [str(tmp_path), "--config", *options], monkeypatch, capsys)
    assert (code, len(lines)) == (2, 1)
    assert re.search(rf"`part` must be such as 0/4, the first of four, but is '{re.escape(part)}'", lines[0])


def test_parts_cannot_each_fit_clusters_of_their_own(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["checkpoint=any", f"corpus.manifest={manifest}", "units_from=kmeans", "corpus.part=0/2"]
    code, lines = call_recipe(SpidrUnitsRecipe(), [str(tmp_path), "--config", *options], monkeypatch, capsys)
    assert (code, len(lines)) == (2, 1)
    assert "`kmeans.path` must be set with `corpus.part`" in lines[0]
