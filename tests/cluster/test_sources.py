"""Which source files a program consists of, and how a process comes to import them: `sources`."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import SerializationError, sources
from cluster.sources import Bundle, collect, digests, missing, unpack


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with a script, modules beside it, and what is no module."""
    folder = tmp_path / "job"
    for path in ("train.py", "nets.py", "late.py", "pack/__init__.py", "pack/deep/part.py", "data/rows.py"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"NAME = {path!r}\n", encoding="utf-8")
    (folder / "pack" / "__pycache__").mkdir()
    (folder / "pack" / "__pycache__" / "x.py").write_text("", encoding="utf-8")
    (folder / "pack" / "weights.bin").write_bytes(b"0" * 1000)
    return folder


@pytest.fixture
def import_state() -> Iterator[None]:
    """Put `sys.path` and the imported modules back."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    importlib.invalidate_caches()


def module(name: str, file: Path) -> types.ModuleType:
    """A module that was loaded from a file."""
    made = types.ModuleType(name)
    made.__file__ = str(file)
    return made


def test_a_program_is_what_it_loaded_and_what_lies_beside_its_script(program: Path) -> None:
    """Modules and packages beside the script belong to it, imported or not; data and caches do not."""
    bundle = collect({"__main__": module("__main__", program / "train.py")})
    assert sorted(bundle.files) == ["late.py", "nets.py", "pack/__init__.py", "pack/deep/part.py", "train.py"]
    assert bundle.folders == (str(program),)


def test_installed_packages_and_this_project_do_not_travel(program: Path) -> None:
    """What every node must have installed is not sent; a module from any other folder is."""
    import numpy
    import torch

    import cluster

    loaded = {"torch": torch, "numpy": numpy, "json": importlib.import_module("json"), "cluster": cluster}
    assert not collect(loaded).files
    assert sorted(collect({**loaded, "nets": module("nets", program / "nets.py")}).files) == ["nets.py"]


def test_too_much_source_is_refused(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the limit and a file."""
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    with pytest.raises(SerializationError, match=r"more than 0 MiB of source, the last read was .*\.py"):
        collect({"__main__": module("__main__", program / "train.py")})


def test_only_what_a_process_would_import_differently_is_missing(
    program: Path, import_state: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that are found with equal content are not missing; changed and absent ones are."""
    bundle = collect({"__main__": module("__main__", program / "train.py")})
    assert sorted(missing(digests(bundle))) == sorted(bundle.files)
    monkeypatch.syspath_prepend(str(program))
    assert missing(digests(bundle)) == []
    (program / "nets.py").write_text("NAME = 'changed'\n", encoding="utf-8")
    (program / "pack" / "deep" / "part.py").unlink()
    assert sorted(missing(digests(bundle))) == ["nets.py", "pack/deep/part.py"]


def test_a_bundle_goes_before_everything_else(tmp_path: Path, program: Path, import_state: None) -> None:
    """After unpacking, modules come from the bundle, also those that were imported from elsewhere before; a
    newer bundle replaces an older one.
    """
    sys.path.insert(0, str(program))
    assert importlib.import_module("nets").NAME == "nets.py"
    for content in ("one", "two"):
        bundle = Bundle(files={"nets.py": f"NAME = {content!r}".encode(), "pack/__init__.py": b""})
        folder = unpack(bundle, str(tmp_path / "session"))
        assert vars(importlib.import_module("nets"))["NAME"] == content
        assert missing(digests(bundle)) == []
        assert sys.path[0] == folder
        assert unpack(bundle, str(tmp_path / "session")) == folder
    assert len([entry for entry in sys.path if entry.startswith(str(tmp_path / "session"))]) == 1
    assert sorted(path.name for path in (tmp_path / "session").iterdir()) == sorted(
        f"code-{Bundle(files={'nets.py': f'NAME = {item!r}'.encode(), 'pack/__init__.py': b''}).digest}"
        for item in ("one", "two")
    )


def test_a_bundle_says_what_it_is() -> None:
    """Its size, its folders and where it went stand in one line."""
    bundle = Bundle(files={"a.py": b"x" * 1500}, folders=("/home/me/job",))
    assert bundle.describe(["10.0.0.2"]) == ("1 source file (1.5 kB) of /home/me/job sent to node 10.0.0.2")
