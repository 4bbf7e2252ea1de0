"""Which commands make up the demo; every one of them is what a user would type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from slurm.stages import Stage, torchrun

SPEECH_TEACHER: Final = ("teacher.name=whisper", "teacher.layer=3")
AUDIO_TEACHER: Final = ("teacher.name=aisfx",)
# Five languages of telephone prompts; instruments, beats, effects, animals.
CORPORA: Final = "asterisk,sonic_pi,lmms,fillets_effects,tuxpaint_effects"
TASKS: Final = ("phones", "words", "events")
MODEL_NAME: Final = "spear_demo"


@final
@dataclass(frozen=True)
class DemoFolders:
    """Where the demo keeps its parts."""

    root: Path

    @property
    def corpora(self) -> Path:
        return self.root / "corpora"

    def quantizer(self, stream: str) -> Path:
        """Output of `recipes.mvq.train` for a stream."""
        return self.root / f"quantizer_{stream}"

    def codes(self, stream: str) -> Path:
        """Code store of a stream."""
        return self.root / f"codes_{stream}"

    @property
    def pretraining(self) -> Path:
        return self.root / "pretraining"

    @property
    def probes(self) -> Path:
        return self.root / "probes"

    @property
    def report(self) -> Path:
        return self.root / "report.html"


def plan_demo(folders: DemoFolders, *, num_steps: int, num_cores: int) -> list[Stage]:
    """Return the demo's stages: two chains, one for each teacher, that meet in pre-training."""
    everything, audio = folders.corpora / "all.tsv", folders.corpora / "audio" / "all.tsv"
    speech = folders.corpora / "speech" / "train.tsv"
    # Small operations gain more from two processes than from two threads; the batch of both together stays 16 s.
    num_trainers = min(num_cores, 2)
    return [
        Stage(
            name="corpora",
            title="fetch and list real speech and audio",
            arguments=("-m", "recipes.corpus.packaged", str(folders.corpora), "--corpora", CORPORA),
            num_threads=num_cores,
        ),
        *_stream_stages(folders, "speech", SPEECH_TEACHER, speech, everything, num_cores),
        *_stream_stages(folders, "audio", AUDIO_TEACHER, audio, audio, num_cores),
        Stage(
            name="pretraining",
            title="pre-train the student (tiny Zipformer)",
            arguments=(
                *torchrun(num_trainers),
                *_recipe("recipes.spear.pretrain", folders.pretraining),
                *("--config-file", "recipes/spear/pretrain/configs/tiny_demo.yaml", "--config"),
                f"dataset.max_batch_seconds={16 / num_trainers}",
                f"dataset.config_overrides.train={_corpora(folders, 'train')}",
                f"dataset.config_overrides.valid={_corpora(folders, 'valid')}",
                f"regime.num_steps={num_steps}",
            ),
            needs=("codes_speech", "codes_audio"),
            num_threads=num_cores,
            num_processes=num_trainers,
        ),
        Stage(
            name="probes",
            title="probe phones, words and events",
            arguments=(
                *_recipe("recipes.probe", folders.probes, "--config"),
                f"features={_sources(folders)}",
                _tasks(folders),
                # Coarser choices than the recipe's own: each one costs a fit for every source, task, layer and split.
                "probe.l2_grid=[0.1,0.01,0.001]",
                "probe.time_shifts=[0.0,0.02,0.04]",
                "probe.max_iterations=25",
                "probe.fold_repeats=5",  # 400 events in one division into folds say too little
                "probe.max_batch_seconds=20",  # on a CPU, small batches stay in the cache
            ),
            needs=("pretraining",),
            num_threads=num_cores,
        ),
    ]


def _stream_stages(
    folders: DemoFolders, stream: str, teacher: tuple[str, ...], sample: Path, corpus: Path, num_cores: int
) -> list[Stage]:
    quantizer = folders.quantizer(stream)
    return [
        Stage(
            name=f"quantizer_{stream}",
            title=f"train the {stream} teacher's quantizer",
            arguments=_recipe(
                "recipes.mvq.train",
                quantizer,
                "--config-file",
                f"recipes/mvq/train/configs/demo_{stream}.yaml",
                "--config",
                f"corpus.manifest={sample}",
            ),
            needs=("corpora",),
        ),
        Stage(
            name=f"codes_{stream}",
            title=f"encode with the {stream} teacher",
            arguments=(
                *torchrun(num_cores),
                *_recipe("recipes.mvq.encode", folders.codes(stream), "--config", *teacher),
                f"quantizer.path={quantizer / 'quantizer'}",
                f"corpus.manifest={corpus}",
                "corpus.rows_per_shard=200",
                "corpus.max_batch_seconds=20",  # on a CPU, small batches stay in the cache
            ),
            needs=(f"quantizer_{stream}",),
            num_threads=num_cores,
            num_processes=num_cores,
        ),
    ]


def _recipe(module: str, folder: Path, *options: str) -> tuple[str, ...]:
    return ("-m", module, str(folder), "--no-rich", *options)


def _corpora(folders: DemoFolders, split: str) -> str:
    """Return the corpora of a split as one line of YAML, a value for ``--config``."""
    speech, audio = folders.codes("speech"), folders.codes("audio")
    return (
        f"[{{name: speech, manifest: {folders.corpora}/speech/{split}.tsv, codes: {{speech: {speech}}}, weight: 0.5}}, "
        f"{{name: audio, manifest: {folders.corpora}/audio/{split}.tsv, codes: {{speech: {speech}, audio: {audio}}}, "
        "weight: 0.5}]"
    )


def _sources(folders: DemoFolders) -> str:
    # Log-mel and the untrained student come by themselves. The teachers would take a minute more: Whisper's third layer
    # has 81 % of the phones and 59 % of the events, aiSFX 52 and 62.
    return f"[{{name: spear, kind: model, checkpoint: {folders.pretraining}, layers: weighted}}]"


def _tasks(folders: DemoFolders) -> str:
    return "tasks=[" + ", ".join(f"{folders.corpora}/probe/{task}.tsv" for task in TASKS) + "]"
