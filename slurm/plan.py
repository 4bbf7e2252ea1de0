"""A pipeline's YAML file, and the commands that it stands for.

    out: outputs/mine                      # each stage gets a folder below it
    values: {corpus: speech.tsv}           # ${corpus} in any text of a stage
    resources: {cpus_per_task: 2}          # of all stages, as options of slurm.launch are called
    stages:
      quantizer:
        module: recipes.mvq.train
        config_file: recipes/mvq/train/configs/speech.yaml
        config: {corpus.manifest: "${corpus}"}
      codes:
        module: recipes.mvq.encode
        needs: [quantizer]
        config: {quantizer.path: "${quantizer}/quantizer", corpus.manifest: "${corpus}"}
        resources: {nodes: 2, gpus_per_node: 8}

``${STAGE}`` is the folder of a stage that is needed, ``${out}`` the stage's own. A stage's command is
``python -m MODULE OUT OPTIONS --config-file FILE --config KEY=VALUE ...``; `arguments` replaces OUT. With `array: N` a
stage is N commands that differ in ``${array_index}``, 0 to N - 1. `sweep` and `table` are described in docs/slurm.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

from slurm.clusters import read_mapping
from slurm.files import LaunchError
from slurm.resources import Resources
from slurm.sweep import Cell, Substitution, Sweep, format_value, label_of, read_sweep

_PIPELINE_KEYS: Final = ("out", "values", "resources", "stages", "sweep", "table")
_STAGE_KEYS: Final = (
    *("title", "module", "needs", "arguments", "options", "config_file", "config", "resources", "array"),
)


@final
@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage with one combination of values."""

    stage: str
    """Its name in the file."""

    name: str
    """Name of this instance: the stage's, and the values that it and its needs use."""

    title: str

    label: str
    """What is special about this instance: the values that differ from the file's, and those of the repetition."""

    folder: Path

    commands: tuple[tuple[str, ...], ...]
    """Arguments of the Python interpreter; several for an array."""

    needs: tuple[str, ...]
    """Names of instances."""

    resources: Resources


@final
@dataclass(frozen=True)
class Plan:
    """All instances in an order in which they can run."""

    out: Path

    stages: list[PlannedStage]

    cells: dict[str, list[dict[str, PlannedStage]]]
    """For each cell of the sweep and each of its repetitions: the instances by the names of their stages."""

    metrics: list[dict[str, Any]]
    """Section `table`."""

    def limited_to(self, names: Sequence[str]) -> Plan:
        """Return the plan of some stages and of all that they need.

        Raises:
            LaunchError: There is no such stage.
        """
        known = list(dict.fromkeys(stage.stage for stage in self.stages))
        if unknown := [name for name in names if name not in known]:
            raise LaunchError(f"there is no stage `{unknown[0]}`, only {', '.join(known)}.")
        kept: set[str] = set()
        for stage in reversed(self.stages):  # those that need others first
            if stage.stage in names or stage.name in kept:
                kept |= {stage.name, *stage.needs}
        return replace(self, stages=[stage for stage in self.stages if stage.name in kept])


def read_plan(
    path: Path, *, out: Path | None = None, values: Mapping[str, Any] | None = None, base: Resources | None = None
) -> Plan:
    """Return what a pipeline's file stands for.

    Args:
        path: The file.
        out: Instead of the file's `out`.
        values: On top of the file's `values`.
        base: What the file's `resources` change, such as a preset.

    Raises:
        LaunchError: The file has a mistake; the message has one line that names file and key.
    """
    content = read_mapping(path)
    _check_keys(content, _PIPELINE_KEYS, str(path))
    if not isinstance(content.get("stages"), dict) or not content["stages"]:
        raise LaunchError(f"{path}: `stages` must map names of stages to their settings.")
    if out is None and not content.get("out"):
        raise LaunchError(f"{path}: `out` must be set to a folder, here or by `--out`.")
    planner = _Planner(
        source=str(path),
        out=(out or Path(str(content["out"]))).absolute(),
        stages=_order(content["stages"], str(path)),
        values=(content.get("values") or {}) | dict(values or {}),
        sweep=read_sweep(content.get("sweep"), str(path)),
        resources=(base or Resources()).changed(content.get("resources") or {}, f"{path}: `resources`"),
    )
    return planner.plan(content.get("table") or [])


@final
@dataclass(kw_only=True)
class _Planner:
    source: str
    out: Path
    stages: dict[str, dict[str, Any]]
    values: dict[str, Any]
    sweep: Sweep
    resources: Resources

    def plan(self, metrics: list[dict[str, Any]]) -> Plan:
        instances: dict[str, PlannedStage] = {}
        cells: dict[str, list[dict[str, PlannedStage]]] = {}
        for cell in self.sweep.cells:
            cells[cell.name] = [self._instantiate(values, instances) for values in self._repetitions(cell)]
        order = list(self.stages)
        planned = sorted(instances.values(), key=lambda instance: order.index(instance.stage))
        return Plan(self.out, planned, cells, metrics)

    def _repetitions(self, cell: Cell) -> list[dict[str, Any]]:
        return [self.values | values for values in self.sweep.repetitions(cell)]

    def _instantiate(self, values: dict[str, Any], instances: dict[str, PlannedStage]) -> dict[str, PlannedStage]:
        """Return the stages with these values; instances that other cells have made already are taken from them."""
        here: dict[str, PlannedStage] = {}
        used: dict[str, set[str]] = {}
        for name, section in self.stages.items():
            planned, used[name] = self._plan_stage(name, section, values, here, used)
            here[name] = instances.setdefault(planned.name, planned)
        return here

    def _plan_stage(
        self,
        name: str,
        section: dict[str, Any],
        values: dict[str, Any],
        here: dict[str, PlannedStage],
        used: dict[str, set[str]],
    ) -> tuple[PlannedStage, set[str]]:
        source = f"{self.source}: stage `{name}`"
        needs = [str(need) for need in section.get("needs") or []]
        resources = self.resources.changed(section.get("resources") or {}, f"{source}: `resources`")
        size = int(section.get("array") or 1)
        known = values | {need: str(here[need].folder) for need in needs}
        array = {"array_index": 0, "array_size": size}

        # Once to see which values are used: they name the folder, which is a value itself.
        probe = Substitution(known | array | {"out": "OUT"}, source)
        _command(section, probe)
        variables = (probe.used & self.sweep.variables).union(*(used[need] for need in needs))
        subfolder = label_of({key: values[key] for key in variables}) if variables else ""
        folder = self.out / name / subfolder
        commands = tuple(
            _command(section, Substitution(known | array | {"array_index": i, "out": str(folder)}, source))
            for i in range(size)
        )
        label = self._label(variables, values)
        planned = PlannedStage(
            stage=name,
            name=f"{name}.{subfolder}" if subfolder else name,
            title=f"{section.get('title') or name} {label}".strip(),
            label=label,
            folder=folder,
            commands=commands,
            needs=tuple(dict.fromkeys(here[need].name for need in needs)),
            resources=resources,
        )
        return planned, variables

    def _label(self, variables: set[str], values: dict[str, Any]) -> str:
        """Return those values that differ from the file's, and then those of the repetition."""
        repeat = self.sweep.repeat
        different = sorted(key for key in variables if key not in repeat and values[key] != self.values.get(key))
        return ", ".join(f"{key}={format_value(values[key])}" for key in (*different, *sorted(variables & set(repeat))))


def _command(section: dict[str, Any], substitute: Substitution) -> tuple[str, ...]:
    config, config_file = section.get("config") or {}, section.get("config_file")
    is_recipe = bool(config or config_file)
    options = section.get("options", ["--no-rich"] if is_recipe else [])
    texts = ["-m", section["module"], *(section.get("arguments") or ["${out}"]), *options]
    texts += ["--config-file", config_file] if config_file else []
    texts += ["--config", *(f"{key}={format_value(value)}" for key, value in config.items())] if config else []
    return tuple(substitute(str(text)) for text in texts)


def _order(stages: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Return the stages, checked, with those that are needed before those that need them."""
    for name, section in stages.items():
        where = f"{source}: stage `{name}`"
        if not isinstance(section, dict) or not section.get("module"):
            raise LaunchError(f"{where}: `module` must be set, such as recipes.spear.pretrain.")
        _check_keys(section, _STAGE_KEYS, where)
        if missing := [need for need in section.get("needs") or [] if need not in stages]:
            raise LaunchError(f"{where}: `needs` names `{missing[0]}`, but the stages are {', '.join(stages)}.")
    ordered: dict[str, dict[str, Any]] = {}
    while len(ordered) < len(stages):
        ready = [n for n in stages if n not in ordered and all(m in ordered for m in stages[n].get("needs") or [])]
        if not ready:
            raise LaunchError(f"{source}: stages need each other in a circle: {', '.join(set(stages) - set(ordered))}.")
        ordered[ready[0]] = stages[ready[0]]
    return ordered


def _check_keys(content: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    if unknown := [key for key in content if key not in known]:
        raise LaunchError(f"{where}: `{unknown[0]}` is unknown; there are {', '.join(known)}.")
