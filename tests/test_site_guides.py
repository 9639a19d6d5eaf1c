"""The code of the site's pages is what people paste, so it runs as it stands; and the site builds without a
warning."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.run_files import read_run

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
WITH_RAY = re.compile(r"devices=2|pl\.Sweep")


def blocks(page: str, language: str = "python") -> list[str]:
    """The code of a page in one language, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def run(code: list[str]) -> None:
    """Run blocks in a row, as a script in this process and this folder."""
    script = Path("train.py").absolute()
    script.write_text("\n".join(code), encoding="utf-8")
    runpy.run_path(str(script), run_name="__main__")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", ["index.md", "concepts.md", "moving.md"])
def test_the_code_of_a_page_runs(page: str) -> None:
    """All blocks that need no Ray, in a row, without a warning."""
    own = [block for block in blocks(page) if page == "concepts.md" or not WITH_RAY.search(block)]
    assert own
    run(own)


def test_the_common_tasks_run() -> None:
    """All in a row, without a warning."""
    run(blocks("how-to.md"))
    assert list(Path("mine/lightning_logs/version_0").glob("metrics.csv"))


@pytest.mark.ray
def test_the_quickstart_runs_with_ray() -> None:
    """On two workers, and in a sweep."""
    run(blocks("index.md"))


def test_a_run_is_watched_as_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    """The script's run is listed, told, compared and run again by the commands of the page."""
    run(blocks("looking.md"))
    folder = Path("lightning_logs/version_0")
    content = read_run(folder)
    content["code"] |= {"script": str(Path("train.py").absolute()), "arguments": []}  # not the test's own
    (folder / "run.json").write_text(json.dumps(content))
    lines = [line for block in blocks("looking.md", "bash") for line in block.strip().splitlines()]
    assert len(lines) == 5
    for line in lines:
        has_nothing_to_find = "--bisect" in line  # in a run whose losses are sound
        assert main(shlex.split(line, comments=True)[1:]) == (2 if has_nothing_to_find else 0), line
    assert (folder / "report.html").is_file() and Path("both.html").is_file()
    told = capsys.readouterr()
    assert "numbers that the run has logged in them are equal" in told.out
    assert "is other than finite, or jumps" in told.err


def test_the_files_of_a_run_are_those_of_the_page() -> None:
    """Every kind of event, outcome and file that is listed is one that is written."""
    text = (DOCS / "looking.md").read_text(encoding="utf-8")
    files = ("run.py", "engine.py", "launch.py", "fit.py", "fit_validation.py", "trainer.py", "telling.py")
    source = "".join((ROOT / "orchestrator" / name).read_text(encoding="utf-8") for name in files)
    listed = text.partition("Events are ")[2].partition("\n")[0]
    for kind in re.findall(r"`(\w+)`", listed):
        assert re.search(rf'note\(\s*"{kind}"', source), kind
    outcomes = text.partition("its **outcome**")[2].partition(")")[0]
    assert len(re.findall(r"`(\w+)`", outcomes)) == 6
    assert [word for word in re.findall(r"`(\w+)`", outcomes) if f'"{word}"' not in source] == []


def test_the_messages_of_the_page_on_troubles_exist() -> None:
    """The words of each, but for values, stand in the source."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## It is slow")[0]
    told = re.findall(r"^\| `(.+?)` \|", text, re.MULTILINE)
    assert len(told) > 15
    source = "".join(
        path.read_text(encoding="utf-8")
        for package in ("cluster", "orchestrator")
        for path in (ROOT / package).rglob("*.py")
    )
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # sentences that go on in the next line
    missing = []
    for message in told:
        words = re.split(r"\.\.\.|'\w+'|Trainer\(|\w+=\w+|ModelCheckpoint|rank 1: |[():]", message)
        missing += [part.strip() for part in words if len(part) > 14 and part.strip() not in source]
    assert missing == []


def test_every_page_is_in_the_navigation() -> None:
    """Whoever writes a page names it in mkdocs.yml, or nobody finds it."""
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert [page for page in sorted(pages) if page not in navigation] == []


@pytest.mark.extras
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """With strict mode on, links and anchors included."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site" / "reference" / "trainer.html").is_file()
