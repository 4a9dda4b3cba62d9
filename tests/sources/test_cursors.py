"""Where feeds have stopped: what one process leaves, the next one finds, and nobody else reads."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from pathlib import Path

import pytest

from ssegate.core.feed import Place
from ssegate.sources.cursors import FOLDER, LONGEST, Cursors

TOPIC = "/audit/events 7f3a"
PLACE = Place("99", frozenset({"a", "b"}))


def cursors_in(folder: Path) -> Cursors:
    cursors = Cursors(folder)
    cursors.prepare()
    return cursors


def files_in(folder: Path) -> list[Path]:
    return sorted((folder / FOLDER).iterdir())


@pytest.mark.parametrize("cursor", ["", "99", "a b/c?d&e=%", "é 日本", 'quote " and \\ and \n', "x" * 10_000, "\ud800"])
def test_the_next_process_finds_what_one_has_left(tmp_path: Path, cursor: str) -> None:
    for place in (Place(cursor), Place(cursor, frozenset({"a", "b"}))):
        cursors_in(tmp_path).put(TOPIC, place)
        assert cursors_in(tmp_path).get(TOPIC) == place


def test_what_was_never_there_is_not_known(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    assert cursors.get(TOPIC) is None
    cursors.put(TOPIC, PLACE)
    assert cursors.get(TOPIC + " ") is None


def test_each_topic_has_its_own(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    for number in range(5):
        cursors.put(f"{TOPIC}{number}", Place(str(number)))
    again = cursors_in(tmp_path)
    assert [again.get(f"{TOPIC}{number}") for number in range(5)] == [Place(str(number)) for number in range(5)]


def test_the_last_one_counts(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    for number in range(3):
        cursors.put(TOPIC, Place(str(number)))
    assert cursors.get(TOPIC) == Place("2")
    assert len(files_in(tmp_path)) == 1, "and nothing is left beside it"


def test_what_was_dropped_is_not_known(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    cursors.put(TOPIC, PLACE)
    cursors.drop(TOPIC)
    cursors.drop(TOPIC)
    assert (cursors.get(TOPIC), files_in(tmp_path)) == (None, [])


def test_without_a_folder_they_are_remembered_as_long_as_the_process_lives() -> None:
    cursors = Cursors()
    cursors.prepare()
    cursors.put(TOPIC, PLACE)
    assert cursors.get(TOPIC) == PLACE
    assert Cursors().get(TOPIC) is None
    cursors.drop(TOPIC)
    assert cursors.get(TOPIC) is None


# Who may read it


def test_only_its_owner_may_read_a_cursor(tmp_path: Path) -> None:
    before = os.umask(0)  # the process allows everything
    try:
        cursors = cursors_in(tmp_path / "state")
        cursors.put(TOPIC, PLACE)
    finally:
        os.umask(before)
    (file,) = files_in(tmp_path / "state")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_a_file_that_others_could_read_is_replaced_by_one_they_cannot(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    cursors.put(TOPIC, PLACE)
    (file,) = files_in(tmp_path)
    file.chmod(0o644)
    cursors.put(TOPIC, Place("100"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_s_name_says_nothing_of_its_topic(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    cursors.put("/secret/{id} ../../etc", PLACE)
    (file,) = files_in(tmp_path)
    assert file.parent == tmp_path / FOLDER
    assert "secret" not in file.name
    assert "etc" not in file.name


# What was damaged


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"text"',
        b"7",
        b"{}",
        b'{"topic": "/audit/events 7f3a"}',
        b'{"cursor": "99"}',
        b'{"topic": "/audit/events 7f3a", "cursor": 99}',
        b'{"topic": "/audit/events 7f3a", "cursor": null}',
        b'{"topic": "/audit/events 7f3a", "cursor": "99", "told": 7}',
        b'{"topic": "another", "cursor": "99", "told": []}',
        b"\xff\xfe\x00",
        b'{"topic": "/audit/events 7f3a", "cursor": "9',
    ],
)  # fmt: skip
def test_a_damaged_file_is_none(tmp_path: Path, content: bytes) -> None:
    cursors = cursors_in(tmp_path)
    cursors.put(TOPIC, PLACE)
    (file,) = files_in(tmp_path)
    file.write_bytes(content)
    again = cursors_in(tmp_path)
    assert again.get(TOPIC) is None
    again.put(TOPIC, PLACE)
    assert cursors_in(tmp_path).get(TOPIC) == PLACE


def test_a_file_that_is_nested_too_deeply_is_none(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    cursors.put(TOPIC, PLACE)
    (file,) = files_in(tmp_path)
    file.write_bytes(b"[" * 100_000)
    assert cursors_in(tmp_path).get(TOPIC) is None


def test_a_file_of_a_version_that_knew_no_marks_is_read(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    cursors.put(TOPIC, PLACE)
    (file,) = files_in(tmp_path)
    file.write_text(json.dumps({"topic": TOPIC, "cursor": "7"}))
    assert cursors_in(tmp_path).get(TOPIC) == Place("7")


def test_a_process_that_dies_in_the_middle_of_writing_leaves_the_one_before(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    cursors.put(TOPIC, PLACE)
    (file,) = files_in(tmp_path)
    file.with_suffix(".part").write_bytes(b'{"topic": "/audit/ev')
    again = cursors_in(tmp_path)
    assert again.get(TOPIC) == PLACE
    again.put(TOPIC, Place("100"))
    assert again.get(TOPIC) == Place("100")


# Where nothing can be written


def test_a_folder_that_is_not_there_is_made_with_those_above_it(tmp_path: Path) -> None:
    cursors_in(tmp_path / "var" / "lib").put(TOPIC, PLACE)
    assert cursors_in(tmp_path / "var" / "lib").get(TOPIC) == PLACE


def test_a_file_where_the_folder_would_be_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    with pytest.raises(OSError, match="exists"):
        Cursors(tmp_path).prepare()
    (tmp_path / "state").write_text("in the way")
    with pytest.raises(OSError, match="irectory"):
        Cursors(tmp_path / "state").prepare()


def test_a_folder_that_may_not_be_written_to_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursors_in(tmp_path)
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)  # who runs the tests may write anywhere
    with pytest.raises(PermissionError, match="nothing can be written there"):
        Cursors(tmp_path).prepare()


def test_a_cursor_that_cannot_be_written_is_told_once_an_outage_and_nothing_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ssegate")
    cursors = cursors_in(tmp_path)
    folder = tmp_path / FOLDER
    folder.rmdir()
    for number in range(3):
        cursors.put(TOPIC, Place(str(number)))
    assert [record.getMessage() for record in caplog.records] == [
        "feed: its cursor cannot be written: No such file or directory; after a restart it begins anew"
    ]
    assert cursors.get(TOPIC) == Place("2"), "this process knows it nevertheless"
    assert Cursors(tmp_path).get(TOPIC) is None
    folder.mkdir()
    cursors.put(TOPIC, Place("3"))
    assert Cursors(tmp_path).get(TOPIC) == Place("3")
    cursors.drop(TOPIC)
    folder.rmdir()
    cursors.put(TOPIC, Place("4"))
    assert len(caplog.records) == 2, "another outage"


# What nobody comes back for


def test_cursors_that_are_too_old_are_forgotten_at_the_next_start(tmp_path: Path) -> None:
    cursors = cursors_in(tmp_path)
    cursors.put(TOPIC, PLACE)
    cursors.put("young", Place("1"))
    aged = next(file for file in files_in(tmp_path) if TOPIC in file.read_text())
    old = time.time() - LONGEST - 60
    os.utime(aged, (old, old))
    assert cursors.get(TOPIC) == PLACE, "not before"
    again = cursors_in(tmp_path)
    assert (again.get(TOPIC), again.get("young")) == (None, Place("1"))


def test_a_folder_among_the_files_is_no_error(tmp_path: Path) -> None:
    (tmp_path / FOLDER / "lost+found").mkdir(parents=True)
    cursors_in(tmp_path).put(TOPIC, PLACE)


def test_an_old_folder_among_the_files_is_no_error(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER / "lost+found"
    folder.mkdir(parents=True)
    os.utime(folder, (0, 0))
    cursors_in(tmp_path)
