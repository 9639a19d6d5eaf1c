"""The rules of the source tree that no single file can keep: who imports whom, what is public, what is
documented.

Everything but the last group is read from the syntax trees, so that a file is checked before anything imports
it.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cluster", "modules", "orchestrator")
MAY_IMPORT = {"cluster": {"cluster"}, "modules": {"modules"}, "orchestrator": set(PACKAGES)}
PUBLIC: dict[str, list[str]] = {
    "cluster": [
        "ClusterError",
        "GroupError",
        "GroupSpec",
        "JobError",
        "PeerLost",
        "PlacementError",
        "RecoveryPolicy",
        "RemoteError",
        "RunLost",
        "SerializationError",
        "SessionError",
        "SpecError",
        "StartError",
        "WorkerContext",
        "WorkerDied",
        "WorkerGroup",
        "WorkerInfo",
        "pool",
        "session",
    ],
    "modules": [
        "Cursor",
        "LightningDataModule",
        "LightningModule",
        "RankLoader",
        "ShardSampler",
        "seed_everything",
    ],
    "orchestrator": [
        "ArrowDataset",
        "Callback",
        "LightningCLI",
        "LightningDataModule",
        "LightningModule",
        "MisconfigurationError",
        "Mixture",
        "PackedTokens",
        "ParquetDataset",
        "Preempted",
        "SharedTable",
        "Sweep",
        "TextDataset",
        "Trainer",
        "TrialStopped",
        "Vocabulary",
        "callbacks",
        "loggers",
        "metrics",
        "plugins",
        "profilers",
        "seed_everything",
        "shutdown",
        "strategies",
        "tuner",
        "utilities",
    ],
}
# By import name: what pyproject.toml declares for everyone, and what a file may try to import and do without.
REQUIRED = {"jsonargparse", "numpy", "psutil", "pyarrow", "ray", "rich", "tensorboard", "torch", "yaml"}
OPTIONAL = {"deepspeed", "lightning", "matplotlib", "onnx", "pytorch_lightning", "torchao", "tqdm"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file of the three packages, parsed."""

    path: Path
    name: str
    tree: ast.Module

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{self.path.relative_to(ROOT)}:{node.lineno}"


@cache
def sources() -> tuple[Source, ...]:
    """All files of the three packages."""
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found.append(Source(path=path, name=name, tree=ast.parse(path.read_text(encoding="utf-8"))))
    return tuple(found)


def imported_names(source: Source, node: ast.AST) -> Iterator[str]:
    """What an import statement may load; or a string that names a file, as lazy packages have them."""
    match node:
        case ast.Import(names=aliases):
            yield from (alias.name for alias in aliases)
        case ast.ImportFrom(module=module, names=aliases, level=level):
            base = source.name.split(".")
            if source.path.name != "__init__.py":
                base = base[:-1]
            start = ".".join(base[: len(base) - level + 1]) + "." if level else ""
            origin = (start + (module or "")).rstrip(".")
            yield from (f"{origin}.{alias.name}" for alias in aliases)
        case ast.Constant(value=str(name)) if name in {source.name for source in sources()} - set(PACKAGES):
            yield name


def run_at_import(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when their module is imported: no function bodies, no ``if TYPE_CHECKING``."""
    for statement in statements:
        yield statement
        if isinstance(statement, Function):
            continue
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            yield from run_at_import(statement.orelse)
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from run_at_import(getattr(statement, field, []))
        for handler in getattr(statement, "handlers", []):
            yield from run_at_import(handler.body)


def public_definitions(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """Public classes and functions, and public methods of public classes, as (qualified name, definition)."""
    for child in node.body:
        if not isinstance(child, Function | ast.ClassDef) or child.name.startswith("_"):
            continue
        decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in child.decorator_list}
        if decorators & {"overload", "override", "setter", "deleter"}:
            continue
        yield prefix + child.name, child
        if isinstance(child, ast.ClassDef):
            yield from public_definitions(child, f"{prefix}{child.name}.")


def unannotated(function: Function, *, is_method: bool) -> list[str]:
    """The arguments of `function` without annotation, ``self`` and ``cls`` aside."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    is_static = any(ast.unparse(decorator) == "staticmethod" for decorator in function.decorator_list)
    if is_method and not is_static:
        positional = positional[1:]
    everything = [*positional, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [argument.arg for argument in everything if argument is not None and argument.annotation is None]


def test_imports_follow_the_direction() -> None:
    """`modules` and `cluster` import neither each other nor `orchestrator`, wherever the import stands."""
    wrong = []
    for source in sources():
        for node in ast.walk(source.tree):
            for name in imported_names(source, node):
                target = name.partition(".")[0]
                if target in PACKAGES and target not in MAY_IMPORT[source.package]:
                    wrong.append(f"{source.at(node)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_do_not_import_each_other_in_a_circle(package: str) -> None:
    """The imports that run when a package is imported form no cycle."""
    files = {source.name: source for source in sources() if source.package == package}
    graph: dict[str, set[str]] = {}
    for name, source in files.items():
        targets = set()
        for statement in run_at_import(source.tree.body):
            for imported in imported_names(source, statement):
                target = imported if imported in files else imported.rpartition(".")[0]
                if target in files and target != name:
                    targets.add(target)
        graph[name] = targets
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("A circle of imports: " + " <- ".join(error.args[1]))


def test_only_declared_packages_are_imported() -> None:
    """Nothing is imported that merely happens to be installed because another package needs it."""
    known = {*PACKAGES, *REQUIRED, *OPTIONAL, *sys.stdlib_module_names}
    undeclared = [
        f"{source.at(node)} imports {name}"
        for source in sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imported_names(source, node)
        if name.partition(".")[0] not in known
    ]
    assert undeclared == []


def test_every_module_has_a_docstring() -> None:
    """Each file says what it is for."""
    assert [str(source.path) for source in sources() if not ast.get_docstring(source.tree)] == []


def test_everything_public_has_a_docstring() -> None:
    """Public classes, functions and methods are documented where they are defined."""
    missing = [
        f"{source.at(definition)} {name}"
        for source in sources()
        for name, definition in public_definitions(source.tree)
        if not ast.get_docstring(definition)  # type: ignore[arg-type]
    ]
    assert missing == []


def test_every_argument_is_annotated() -> None:
    """Functions, private and nested ones too, say the type of each argument."""
    missing = []
    for source in sources():
        methods = {
            id(child)
            for node in ast.walk(source.tree)
            if isinstance(node, ast.ClassDef)
            for child in node.body
        }
        for node in ast.walk(source.tree):
            if isinstance(node, Function):
                missing += [
                    f"{source.at(node)} {node.name}({argument})"
                    for argument in unannotated(node, is_method=id(node) in methods)
                ]
    assert missing == []


def test_file_names_say_what_is_inside() -> None:
    """No file or folder has a name under which anything could be kept."""
    vague = {"common", "helpers", "manager", "utils"}
    folders = [*PACKAGES, "tests", "examples"]
    paths = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts
    ]
    assert [str(path) for path in paths if path.stem.strip("_") in vague] == []


def test_every_test_states_its_rule() -> None:
    """Each test function has a docstring of one sentence."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [
            node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test")
        ]
        for node in [*tree.body, *(child for group in classes for child in group.body)]:
            if isinstance(node, Function) and node.name.startswith("test_"):
                docstring = ast.get_docstring(node)
                if docstring is None or "\n\n" in docstring or not docstring.endswith("."):
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_typed(package: str) -> None:
    """Type checkers of users read our annotations."""
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_these_and_resolve(package: str) -> None:
    """A change of the public names is a change of the list in this file."""
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PUBLIC[package])
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_import_is_lazy(package: str) -> None:
    """Importing the package in a fresh interpreter loads neither torch nor Ray."""
    program = f"import json, sys, {package}; print(json.dumps(sorted(sys.modules)))"
    completed = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    loaded = set(json.loads(completed.stdout))
    assert package in loaded
    assert loaded & {"jsonargparse", "numpy", "pyarrow", "ray", "rich", "tensorboard", "torch"} == set()


def test_version_is_the_distributions() -> None:
    """`orchestrator.__version__` and pyproject.toml agree."""
    import orchestrator

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert orchestrator.__version__ == project["version"]
