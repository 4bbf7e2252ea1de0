from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, final

from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.task import Task
from fairseq2.utils.rich import get_console
from typing_extensions import override

from recipes.abx.config import AbxConfig, AbxSourceSection
from recipes.abx.exchange import write_exchange
from recipes.abx.items import PhoneCorpus, read_phone_corpus, write_items
from recipes.abx.quality import measure_units
from recipes.abx.reading import open_reader
from recipes.abx.report import print_report, write_report
from recipes.abx.results import LayerErrors, ResultStore, SourceResult
from recipes.abx.scoring import FastAbx, find_interpreter
from recipes.frame_readers import FrameReader
from recipes.tasks import StoppableTask, refuse_several_processes

_ITEM_FILE: Final = "items.item"


@final
class AbxRecipe(Recipe):
    """Measures how well features and units tell phones apart."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        refuse_several_processes(context, "recipes.abx")
        return AbxRun(context)

    @property
    @override
    def config_kls(self) -> type[object]:
        return AbxConfig


@final
class AbxRun(StoppableTask):
    """Goes through the sources; what is finished stays in ``OUT/results``."""

    def __init__(self, context: RecipeContext) -> None:
        super().__init__()
        self._config = context.get_config_as(AbxConfig)
        self._folder = context.output_dir
        self._device = context.device
        self._progress_reporter = context.progress_reporter
        self._store = ResultStore(self._folder / "results")

    @override
    def run(self) -> None:
        python = find_interpreter(self._config.abx.environment)
        corpus = read_phone_corpus(self._config)
        write_items(self._folder / _ITEM_FILE, corpus.items)
        log.info(
            "{}: {:,} items of {} speaker(s) in {:,} recordings.",
            self._folder / _ITEM_FILE,
            len(corpus.items),
            corpus.num_speakers,
            len(corpus.rows),
        )
        if corpus.num_speakers < 2:
            log.warning("With one speaker there are no errors across speakers.")
        log_path = self._folder / "logs" / "fastabx.log"
        with (
            self._progress_reporter,
            FastAbx(python, log_path, use_cuda=self._device.type == "cuda") as fastabx,
        ):
            results = [self._evaluate(section, corpus, fastabx) for section in self._config.features]
        write_report(self._folder, results)
        print_report(get_console(), results)

    def _evaluate(self, section: AbxSourceSection, corpus: PhoneCorpus, fastabx: FastAbx) -> SourceResult:
        """Return the result of a source, the one already stored if there is one."""
        config = self._config
        reader = open_reader(section, config.corpus, seed=config.common.seed, device=self._device)
        settings = self._settings(section, reader, corpus)
        identity = sha256(f"{reader.identity} {reader.timing} {settings} {corpus.digest}".encode()).hexdigest()[:16]
        if (result := self._store.find(section.name, identity)) is not None:
            log.info("Source {}: the finished result is kept.", section.name)
            return result

        fastabx.start()
        start = time.perf_counter()
        units = None
        if reader.num_units is not None:
            units = measure_units(reader, corpus, config.abx.ignored_phones)
        layers = self._score(section, reader, corpus, settings, fastabx)
        result = SourceResult(
            identity=identity,
            source=section.name,
            kind=section.kind,
            distance=settings["distance"],
            num_items=len(corpus.items),
            layers=layers,
            units=units,
            seconds=time.perf_counter() - start,
        )
        self._store.save(result)
        self.count_step()
        best = result.best
        log.info("{}: error {:.4f} within speakers, layer {}.", section.name, best.within, best.layer)
        return result

    def _settings(self, section: AbxSourceSection, reader: FrameReader, corpus: PhoneCorpus) -> dict[str, Any]:
        """Return what fastabx is to do."""
        abx, distance = self._config.abx, section.distance
        if distance == "auto":
            distance = "angular" if reader.num_units is None else "identical"
        return {
            "distance": distance,
            "context": abx.context,
            "across": corpus.num_speakers > 1,
            "max_group_size": abx.max_group_size,
            "max_x_across": abx.max_x_across,
            "seed": self._config.common.seed,
        }

    def _score(
        self,
        section: AbxSourceSection,
        reader: FrameReader,
        corpus: PhoneCorpus,
        settings: dict[str, Any],
        fastabx: FastAbx,
    ) -> list[LayerErrors]:
        """Write what fastabx reads to a folder that is gone afterwards, and return the errors."""
        reporter, layers = self._progress_reporter, list(reader.layers)
        with _exchange_folder(self._folder) as folder:
            with reporter.create_task(f"{section.name}: read (recordings)", total=len(corpus.rows)) as progress:

                def advance() -> None:
                    progress.step()
                    self.check_stop()

                write_exchange(folder, reader, corpus, settings, advance)

            with reporter.create_task(f"{section.name}: compare (layers)", total=len(layers)) as progress:
                return fastabx.score(folder, layers, advance)


@contextmanager
def _exchange_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder in OUT, since a machine's one for temporary files may be too small."""
    folder = out / ".exchange"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
