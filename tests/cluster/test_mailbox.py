"""The numbered queue between a worker and the driver: `Mailbox`."""

from __future__ import annotations

import threading

from cluster.mailbox import MAX_TEXT, Mailbox


def test_items_are_numbered_and_kept_until_acknowledged() -> None:
    """A poll that is repeated gets the same items; acknowledged ones are gone."""
    box = Mailbox()
    for letter in (b"a", b"b", b"c"):
        box.put("event", letter)
    assert [(item.number, item.data) for item in box.poll(-1, 0).items] == [(0, b"a"), (1, b"b"), (2, b"c")]
    assert [item.number for item in box.poll(-1, 0).items] == [0, 1, 2]
    assert [item.data for item in box.poll(1, 0).items] == [b"c"]


def test_a_poll_wakes_when_something_is_put() -> None:
    """A poll that waits returns with what comes."""
    box = Mailbox()
    threading.Timer(0.05, box.put, ("event", b"x")).start()
    assert [item.data for item in box.poll(-1, 60).items] == [b"x"]


def test_close_ends_the_queue_after_what_is_in_it() -> None:
    """What was put before the end is still delivered; what comes after it is dropped."""
    box = Mailbox()
    box.put("event", b"last")
    box.close()
    assert box.put("event", b"late") is None
    batch = box.poll(-1, 60)
    assert [item.data for item in batch.items] == [b"last"]
    assert batch.closed


def test_text_is_merged_until_it_is_handed_out() -> None:
    """Many prints make one item, but an item that a poll has seen never changes."""
    box = Mailbox()
    box.write("stdout", "a")
    box.write("stdout", "b")
    assert [item.data for item in box.poll(-1, 0).items] == ["ab"]
    box.write("stdout", "c")
    box.write("stderr", "d")
    box.write("stdout", "e")
    items = box.poll(-1, 0).items
    assert [(item.number, item.kind, item.data) for item in items] == [
        (0, "stdout", "ab"),
        (1, "stdout", "c"),
        (2, "stderr", "d"),
        (3, "stdout", "e"),
    ]


def test_text_that_nobody_reads_is_bounded() -> None:
    """A driver that hangs cannot fill the worker's memory; what was dropped is said, events are kept."""
    box = Mailbox()
    for turn in range(10):
        box.write("stdout", str(turn) * (MAX_TEXT // 4))
        box.put("event", b"kept")
    items = box.poll(-1, 0).items
    texts = [item.data for item in items if isinstance(item.data, str)]
    assert sum(map(len, texts)) <= MAX_TEXT
    assert any("characters dropped" in text for text in texts)
    assert texts[-1] == "9" * (MAX_TEXT // 4)
    assert len(items) - len(texts) == 10


def test_a_question_waits_for_its_own_answer() -> None:
    """Answers are matched by number, in whatever order they come."""
    box = Mailbox()
    answers: dict[str, bytes | None] = {}
    threads = [
        threading.Thread(target=lambda name=name: answers.update({name: box.ask(name.encode())}))
        for name in ("one", "two")
    ]
    for thread in threads:
        thread.start()
    asked = {}
    while len(asked) < 2:
        asked = {item.data: item.number for item in box.poll(-1, 10).items}
    box.answer(asked[b"two"], b"2")
    box.answer(asked[b"one"], b"1")
    for thread in threads:
        thread.join(10)
    assert answers == {"one": b"1", "two": b"2"}


def test_a_question_after_the_end_gets_none() -> None:
    """Nobody waits for an answer that cannot come."""
    box = Mailbox()
    box.close()
    assert box.ask(b"?") is None
