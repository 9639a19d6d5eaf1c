"""What is sent to a cluster as code, and what stays behind."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from cluster.code_package import collect, is_left_out
from cluster.errors import JobError


def write(root: Path, *names: str, size: int = 3) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * size)


def test_code_goes_and_the_rest_stays(tmp_path: Path) -> None:
    """Version control, environments, caches, checkpoints, logs and data are left out, at any depth."""
    write(tmp_path, "train.py", "pkg/net.py", "pkg/notes.txt", "conf/run.yaml")
    write(tmp_path, ".git/HEAD", ".venv/bin/python", "pkg/__pycache__/net.pyc", "a/node_modules/x.js")
    write(tmp_path, "checkpoints/a.bin", "x.ckpt", "lightning_logs/version_0/hparams.yaml", "rows.parquet")
    write(tmp_path, "data/images/1.png", "datasets/x.txt")
    found = [name for name, _ in collect(tmp_path).files]
    assert found == ["conf/run.yaml", "pkg/net.py", "pkg/notes.txt", "train.py"]


def test_a_package_called_data_is_code(tmp_path: Path) -> None:
    """A folder named data goes where Python files lie in it."""
    write(tmp_path, "src/data/loader.py", "src/data/words.txt", "data/big.bin")
    assert [name for name, _ in collect(tmp_path).files] == ["src/data/loader.py", "src/data/words.txt"]


def test_what_runs_and_sweeps_have_left_stays(tmp_path: Path) -> None:
    """Whatever their folders are called."""
    write(tmp_path, "train.py", "out/lrs/sweep.json", "out/lrs/trial_00000/error.txt", "out/a/run.json")
    write(tmp_path, "out/a/report.html", "out/notes.txt", "src/run.json", "src/net.py")
    found = [name for name, _ in collect(tmp_path).files]
    assert found == ["out/notes.txt", "src/net.py", "src/run.json", "train.py"]


def test_more_can_be_left_out(tmp_path: Path) -> None:
    """Names and paths with wildcards are excluded too."""
    write(tmp_path, "a.py", "b.bin", "docs/c.md", "docs/d.py", "deep/docs/e.py")
    assert [name for name, _ in collect(tmp_path, ["*.bin", "docs/"]).files] == ["a.py"]
    assert is_left_out("deep/docs/e.py", ["deep/docs"])
    assert not is_left_out("deep/docs/e.py", ["other/docs"])


def test_what_git_ignores_stays(tmp_path: Path) -> None:
    """In a repository .gitignore counts, and new files need not be added first."""
    write(tmp_path, "a.py", "new.py", "secret.txt")
    (tmp_path / ".gitignore").write_text("secret.txt\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert [name for name, _ in collect(tmp_path).files] == [".gitignore", "a.py", "new.py"]


def test_the_same_files_give_the_same_name(tmp_path: Path) -> None:
    """Name and bytes follow from the content alone, and the archive holds it with its modes."""
    for folder in ("one", "two"):
        write(tmp_path / folder, "b.py", "a.sh")
        (tmp_path / folder / "a.sh").chmod(0o755)
    name, data = collect(tmp_path / "one").archive()
    assert (name, data) == collect(tmp_path / "two").archive()
    write(tmp_path / "two", "b.py", size=4)
    assert name != collect(tmp_path / "two").archive()[0]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["a.sh", "b.py"]
        assert archive.getinfo("a.sh").external_attr >> 16 & 0o777 == 0o755


def test_the_largest_files_come_first(tmp_path: Path) -> None:
    """Sizes are told in bytes, the largest first."""
    write(tmp_path, "a.py", size=5)
    write(tmp_path, "b.txt", size=50)
    package = collect(tmp_path)
    assert package.largest(1) == [("b.txt", 50)]
    assert package.size_bytes == 55


def test_nothing_to_send_is_refused(tmp_path: Path) -> None:
    """An empty folder, and none."""
    with pytest.raises(JobError, match="holds no file to send"):
        collect(tmp_path)
    with pytest.raises(JobError, match="is not a folder"):
        collect(tmp_path / "nowhere")
