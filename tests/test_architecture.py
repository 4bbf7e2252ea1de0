"""Who may import whom (the rules are drawn in docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room may import the rooms named here and itself; everything of fairseq2, torch and other packages besides.
ALLOWED = {
    "spear_plugin.nn": set(),
    "spear_plugin.optim": set(),
    "spear_plugin.evaluation": set(),
    "spear_plugin.quantizers": set(),
    "spear_plugin.data": set(),
    "spear_plugin.teachers": set(),
    "spear_plugin.models.zipformer": {"spear_plugin.nn"},
    "spear_plugin.models.spear": {"spear_plugin.nn", "spear_plugin.models.zipformer"},
    "spear_plugin.models.spidr": {"spear_plugin.nn"},
    "spear_plugin.models.downstream": {"spear_plugin.models.spear", "spear_plugin.models.spidr"},
    "spear_plugin.models.lookup": {"spear_plugin.models.spear", "spear_plugin.models.spidr"},
    "spear_plugin.interfaces": {"spear_plugin.models", "spear_plugin.nn"},
    "spear_plugin.inference": {"spear_plugin.models.spear", "spear_plugin.models.spidr"},
}
# The files of `recipes` itself are what recipes share.
SHARED = {f"recipes.{path.stem}" for path in (ROOT / "recipes").glob("*.py")} - {"recipes.__init__"}
OWN_PACKAGES = ("spear_plugin", "recipes", "slurm", "tests", "benchmarks")


def python_files(folder: str) -> Iterator[Path]:
    yield from sorted((ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each imported module and whether the statement stands inside a function."""
    tree = ast.parse(path.read_text())
    nested = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: relative import"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            yield name, node in nested


def own_imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield what is imported of our own modules."""
    yield from ((name, is_nested) for name, is_nested in imports(path) if name.split(".")[0] in OWN_PACKAGES)


def room_of(module: str, rooms: set[str]) -> str | None:
    return next((room for room in sorted(rooms, key=len, reverse=True) if f"{module}.".startswith(f"{room}.")), None)


@pytest.mark.parametrize("path", python_files("spear_plugin"), ids=module_name)
def test_a_room_of_the_plugin_imports_only_what_it_may(path: Path) -> None:
    module = module_name(path)
    room = room_of(module, set(ALLOWED))
    if room is None:  # what registers may see every room
        assert module in {"spear_plugin", "spear_plugin.composition", "spear_plugin.models"} or "cards" in module
        return
    for name, is_nested in own_imports(path):
        assert not is_nested, f"{module} imports {name} inside a function"
        assert room_of(name, {room} | ALLOWED[room]), f"{module} may not import {name}"


@pytest.mark.parametrize("path", python_files("recipes"), ids=module_name)
def test_a_recipe_imports_the_plugin_and_shared_files_but_no_sibling(path: Path) -> None:
    module = module_name(path)
    leaf = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
    for name, is_nested in own_imports(path):
        assert not is_nested, f"{module} imports {name} inside a function"
        allowed = {"spear_plugin"} | SHARED | ({leaf} if leaf != "recipes" else set())
        if leaf == "recipes.demo":  # the demo is a pipeline of commands, run as any other
            allowed |= {"slurm.stages"}
        assert room_of(name, allowed), f"{module} may not import {name}"


@pytest.mark.parametrize("path", [p for f in OWN_PACKAGES[:3] for p in python_files(f)], ids=module_name)
def test_nothing_imports_the_tests_or_the_benchmarks(path: Path) -> None:
    assert not [name for name, _ in own_imports(path) if name.split(".")[0] in {"tests", "benchmarks"}]


@pytest.mark.parametrize("path", python_files("slurm"), ids=module_name)
def test_the_launcher_imports_only_light_packages(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "rich", "slurm", "submitit", "yaml"}
    for name, _ in imports(path):
        assert name.split(".")[0] in allowed, f"{module_name(path)} may not import {name}: submitting must stay quick"


def test_the_rules_see_the_files_they_are_about() -> None:
    modules = {module_name(path) for path in python_files("spear_plugin")}
    assert {"spear_plugin.models.spear.model", "spear_plugin.data.dataset"} <= modules


def test_manifests_and_audio_can_be_used_without_waiting_for_torch() -> None:
    code = "import sys, spear_plugin.data.audio, spear_plugin.data.manifest; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.strip() == "False"


def test_a_job_can_be_submitted_without_waiting_for_torch() -> None:
    modules = "slurm.launch, slurm.pipeline, slurm.watch"
    code = f"import sys, {modules}; print('torch' in sys.modules or 'fairseq2' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    assert output.strip() == "False"
