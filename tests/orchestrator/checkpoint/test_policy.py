"""Names, versions and retention: pure decisions."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checkpoint.policy import Mode, TopK, format_name, free_name, is_better, names_in
from orchestrator.errors import MisconfigurationError

MODES = st.sampled_from(["min", "max"])
SCORES = st.floats(allow_nan=True, allow_infinity=True)


def save_all(scores: list[float], k: int, mode: Mode) -> TopK:
    """Offer checkpoints called "0", "1", ... in turn."""
    top = TopK(k=k, mode=mode)
    for index, score in enumerate(scores):
        if top.admits(score):
            top = top.with_saved(str(index), score)
    return top


def worth(score: float, mode: Mode) -> float:
    """The score as a number of which less is better, by the definition in the module's docstring."""
    return math.inf if math.isnan(score) else score if mode == "min" else -score


@given(st.lists(SCORES, max_size=12), st.integers(1, 5), MODES)
def test_the_best_k_are_kept(scores: list[float], k: int, mode: Mode) -> None:
    """What stays are k scores of which no other is better."""
    kept = [worth(scores[int(path)], mode) for path in save_all(scores, k, mode).scores]
    assert sorted(kept) == sorted(worth(score, mode) for score in scores)[:k]


@given(st.lists(SCORES, min_size=1, max_size=12), st.integers(1, 5), MODES)
def test_best_and_worst_are_the_ends_of_the_order(scores: list[float], k: int, mode: Mode) -> None:
    """`best` is the oldest of the best, `worst` the oldest of the worst."""
    top = save_all(scores, k, mode)
    worths = {int(path): worth(score, mode) for path, score in top.scores.items()}
    assert int(top.best) == min(worths, key=lambda index: (worths[index], index))
    assert int(top.worst) == min(worths, key=lambda index: (-worths[index], index))


@given(st.lists(SCORES, max_size=8), MODES)
def test_minus_one_keeps_all(scores: list[float], mode: Mode) -> None:
    """With k = -1 everything is admitted and nothing leaves."""
    top = save_all(scores, -1, mode)
    assert len(top.scores) == len(scores)
    assert top.leaving == ""


@given(SCORES, MODES)
def test_zero_keeps_none(score: float, mode: Mode) -> None:
    """With k = 0 nothing is admitted."""
    assert not TopK(k=0, mode=mode).admits(score)


@given(SCORES, MODES)
def test_nothing_is_better_than_itself(score: float, mode: Mode) -> None:
    """An equal score does not displace an older one."""
    assert not is_better(score, score, mode)


@given(st.floats(allow_nan=False, allow_infinity=False), MODES)
def test_nan_is_worst(score: float, mode: Mode) -> None:
    """Any finite number is better than NaN, and NaN is kept as the worst infinity."""
    assert is_better(score, math.nan, mode)
    assert not is_better(math.nan, score, mode)
    assert TopK(k=1, mode=mode).with_saved("x", math.nan).scores["x"] == (
        math.inf if mode == "min" else -math.inf
    )


def test_saving_under_the_same_name_again_keeps_one_entry() -> None:
    """A checkpoint that replaces a file of its name replaces that file's score, and is then the newest."""
    top = TopK(k=2, mode="min").with_saved("a", 1.0).with_saved("b", 2.0).with_saved("a", 0.5)
    assert list(top.scores.items()) == [("a", 0.5)]


def test_leaving_is_the_one_that_makes_room() -> None:
    """Until k are kept nobody has to leave; then the worst."""
    top = TopK(k=2, mode="max").with_saved("a", 1.0)
    assert top.leaving == ""
    assert top.with_saved("b", 2.0).leaving == "a"


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{epoch}-{step}", "epoch=3-step=120"),
        ("{epoch:02d}", "epoch=03"),
        ("plain", "plain"),
        ("x-{val/loss:.2f}", "x-val/loss=0.12"),
        ("{a.b}", "a.b=7"),
        ("{epoch_test}-{epoch}", "epoch_test=1-epoch=3"),
        ("{missing:d}", "missing=0"),
        ("{missing:.1f}", "missing=0.0"),
    ],
)
def test_templates_with_names(template: str, expected: str) -> None:
    """Each metric is written as name=value, whatever its name looks like; an absent one is 0."""
    metrics = {"epoch": 3, "step": 120, "val/loss": 0.123, "a.b": 7, "epoch_test": 1}
    assert format_name(template, metrics) == expected


def test_templates_without_names() -> None:
    """With auto_insert_metric_name=False only values are written."""
    written = format_name(
        "e{epoch}-l{val/loss:.2f}", {"epoch": 3, "val/loss": 0.125}, auto_insert_metric_name=False
    )
    assert written == "e3-l0.12"


def test_the_equals_sign_can_be_chosen() -> None:
    """What stands between name and value is a parameter."""
    assert format_name("{epoch}", {"epoch": 3}, equals="_") == "epoch_3"


@pytest.mark.parametrize("template", ["{epoch", "epoch}", "{}", "{:d}", "{epoch!r}"])
def test_malformed_templates_are_refused(template: str) -> None:
    """A template that names no metric in its braces says so, and shows how to write one."""
    with pytest.raises(MisconfigurationError, match=r"filename=.*braces"):
        names_in(template)


def test_a_format_that_does_not_suit_the_value_is_refused() -> None:
    """The error names the metric, its value and the format."""
    with pytest.raises(MisconfigurationError, match=r"'val_loss'.*0\.5.*'d'"):
        format_name("{val_loss:d}", {"val_loss": 0.5})


def test_names_in_a_template() -> None:
    """`names_in` gives the metrics in the order in which they are written."""
    assert names_in("{epoch:02d}-x-{val/loss:.2f}") == ["epoch", "val/loss"]


@given(st.sets(st.integers(0, 6)))
def test_the_first_free_name_is_taken(taken: set[int]) -> None:
    """The name without a version comes first, then versions from 1 in order, never one that is taken."""
    names = {f"n-v{version}" if version else "n" for version in taken}
    found = free_name(lambda version: f"n-v{version}" if version else "n", names.__contains__)
    first = next(number for number in range(8) if number not in taken)
    assert found == (f"n-v{first}" if first else "n")
