"""Listing, removing and second names of checkpoint files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.checkpoint.local_files import give_second_name, names_below, remove


def test_names_go_down_to_the_depth(tmp_path: Path) -> None:
    """Entries of folders are found as deep as asked, and no deeper."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "deep.ckpt").touch()
    (tmp_path / "top.ckpt").touch()
    names = [
        {str(tmp_path / name) for name in part} for part in (("a", "top.ckpt"), ("a/b",), ("a/b/deep.ckpt",))
    ]
    assert names_below(str(tmp_path), 0) == names[0]
    assert names_below(str(tmp_path), 1) == names[0] | names[1]
    assert names_below(str(tmp_path), 2) == names[0] | names[1] | names[2]


def test_a_directory_that_is_not_there_has_no_names(tmp_path: Path) -> None:
    """A missing directory is an empty one, and so is a file."""
    (tmp_path / "file").touch()
    assert names_below(str(tmp_path / "none"), 1) == frozenset()
    assert names_below(str(tmp_path / "file"), 1) == frozenset()


def test_remove_takes_files_folders_and_links(tmp_path: Path) -> None:
    """A link is removed, not what it leads to; removing twice is no error."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "part").touch()
    (tmp_path / "link").symlink_to("folder")
    for name in ("link", "link"):
        remove(str(tmp_path / name))
    assert (tmp_path / "folder" / "part").exists()
    remove(str(tmp_path / "folder"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("symbolic", [True, False])
def test_a_second_name_replaces_the_old_one(tmp_path: Path, symbolic: bool) -> None:
    """The name leads to the new file, no matter what had it before, and nothing else is left."""
    for content in ("one", "two", "two"):
        (tmp_path / f"{content}.ckpt").write_text(content)
        give_second_name(str(tmp_path / f"{content}.ckpt"), str(tmp_path / "last.ckpt"), symbolic=symbolic)
        assert (tmp_path / "last.ckpt").read_text() == content
        assert (tmp_path / "last.ckpt").is_symlink() is symbolic
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "one.ckpt", "two.ckpt"]


def test_a_hard_link_outlives_the_first_name(tmp_path: Path) -> None:
    """The second name takes no space of its own, and stays when the first one is removed."""
    (tmp_path / "a").write_text("content")
    give_second_name(str(tmp_path / "a"), str(tmp_path / "b"), symbolic=False)
    assert os.path.samefile(tmp_path / "a", tmp_path / "b")
    remove(str(tmp_path / "a"))
    assert (tmp_path / "b").read_text() == "content"


def test_a_symbolic_link_is_relative(tmp_path: Path) -> None:
    """The link still holds after the whole folder was moved."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_text("content")
    give_second_name(str(tmp_path / "run" / "a"), str(tmp_path / "run" / "b"), symbolic=True)
    (tmp_path / "run").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "b").read_text() == "content"


def test_a_file_system_without_hard_links_gets_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where linking fails the content is copied."""

    def refuse(*args: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "a").write_text("content")
    give_second_name(str(tmp_path / "a"), str(tmp_path / "b"), symbolic=False)
    assert (tmp_path / "b").read_text() == "content"
    assert not os.path.samefile(tmp_path / "a", tmp_path / "b")


def test_a_failure_leaves_the_old_name(tmp_path: Path) -> None:
    """When there is no such file the old name still leads to what it did, and nothing is left over."""
    (tmp_path / "last").write_text("old")
    with pytest.raises(FileNotFoundError):
        give_second_name(str(tmp_path / "gone"), str(tmp_path / "last"), symbolic=False)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("last", "old")]
