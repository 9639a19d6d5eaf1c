"""Ready data: spirals, tables and texts; what is dealt where, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from modules.models import Spirals, Table, TextBytes


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    """A hundred rows: two numbers, a word, a class and a float."""
    path = tmp_path / "rows.csv"
    lines = [f"{i},{-2 * i},w{i},{'ba'[i % 2]},{i / 2}" for i in range(100)]
    path.write_text("\n".join(["x,y,word,kind,value", *lines]) + "\n")
    return path


def ready(data: Any) -> Any:
    data.setup("fit")
    return data


def test_spirals_are_the_same_for_a_seed() -> None:
    """A seed fixes the points; training and test points differ."""
    first, again, other = Spirals(seed=1), Spirals(seed=1), Spirals(seed=2)
    assert torch.equal(first.make(10, 0)[:][0], again.make(10, 0)[:][0])
    assert not torch.equal(first.make(10, 0)[:][0], other.make(10, 0)[:][0])
    assert not torch.equal(first.make(10, 0)[:][0], first.make(10, 2)[:][0])
    assert len(first.test_dataloader().dataset) == 300  # type: ignore[arg-type]


def test_rows_are_dealt_once(csv: Path) -> None:
    """Every row is in exactly one part, and the seed decides in which."""
    data = ready(Table(csv, target="value", features=["x"]))
    targets = [part[:][1] for part in data.parts.values()]
    assert [len(part) for part in targets] == [10, 10, 80]
    assert torch.equal(torch.cat(targets).sort().values, torch.arange(100) / 2)
    assert not torch.equal(targets[0], ready(Table(csv, "value", ["x"], seed=1)).parts["test"][:][1])


def test_features_are_standardised_by_the_training_rows(csv: Path) -> None:
    """Training features have mean 0 and deviation 1; nothing of the other rows goes into that."""
    features = ready(Table(csv, target="kind", features=["x", "y"])).parts["train"][:][0]
    assert features.dtype == torch.float32
    assert torch.allclose(features.mean(dim=0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(features.std(dim=0, unbiased=False), torch.ones(2), atol=1e-5)


def test_words_become_classes_in_their_order(csv: Path) -> None:
    """A target of words is numbered alphabetically, and the words are kept."""
    data = ready(Table(csv, target="kind", features=["x"]))
    assert data.labels == ["a", "b"]
    assert set(data.parts["train"][:][1].tolist()) == {0, 1}


def test_parquet_is_read_too(tmp_path: Path) -> None:
    """The same columns from a Parquet file; whole numbers as a target are classes."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": [1.0, 2.0, 3.0, 4.0], "digit": [7, 9, 7, 9]}), path)
    data = ready(Table(path, target="digit", val_share=0.25, test_share=0))
    assert data.labels == [7, 9]
    assert (len(data.parts["train"]), list(data.test_dataloader())) == (3, [])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "knd"}, r"has no column 'knd'\. Did you mean 'kind'\?"),
        ({"target": "kind"}, r"word cannot be used as a number"),
        ({"target": "kind", "features": ["x", "word"]}, r"word cannot be used as a number"),
        ({"target": "kind", "val_share": 0.5, "test_share": 0.5}, "leaves no rows to train on"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(csv: Path, options: dict[str, Any], said: str) -> None:
    """Each refusal names the column or the argument."""
    with pytest.raises(ValueError, match=said):
        ready(Table(csv, **options))


def test_missing_values_are_counted(tmp_path: Path) -> None:
    """A column with gaps is refused with their number."""
    path = tmp_path / "rows.csv"
    path.write_text("x,y\n1,2\n,3\n4,5\n")
    with pytest.raises(ValueError, match="1 of 3 rows have no 'x'"):
        ready(Table(path, target="y"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    """A file that is not there, and one of another kind."""
    with pytest.raises(ValueError, match="is not a file"):
        ready(Table(tmp_path / "no.csv", target="y"))
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"neither \.csv nor \.parquet"):
        ready(Table(tmp_path / "x.txt", target="y"))


def test_a_text_is_cut_into_sequences(tmp_path: Path) -> None:
    """Sequences are one byte longer than the context, and parts do not overlap."""
    path = tmp_path / "text"
    path.write_bytes(bytes(range(200)))
    data = ready(TextBytes(path, context=7, val_share=0.1, test_share=0.1))
    assert data.parts["train"][1].tolist() == list(range(7, 15))
    assert data.parts["val"][0].tolist() == list(range(160, 168))
    last = data.parts["train"][len(data.parts["train"]) - 1]
    assert last.max() < 160


def test_without_a_file_pythons_own_text_is_read() -> None:
    """The default text is there wherever Python is, and long enough to learn from."""
    data = ready(TextBytes())
    assert len(data.parts["train"]) > 1000
    assert next(iter(data.val_dataloader())).shape == (32, 129)


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    """The message has the number of bytes of each part."""
    path = tmp_path / "text"
    path.write_bytes(b"short" * 10)
    with pytest.raises(ValueError, match="of 50 bytes, training gets 46, validation 2 and test 2"):
        ready(TextBytes(path))
