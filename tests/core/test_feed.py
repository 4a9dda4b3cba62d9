"""What a page of a feed says: its items, where to go on, and what is remembered of that."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.config.values import read_expression
from ssegate.core.event import Kind, Update
from ssegate.core.feed import EMPTY_PAGES, FeedReader, FeedRules, Place
from ssegate.core.template import Template
from ssegate.errors import UndecodableError


def rules_of(
    start: str = "beginning", *, items: str | None = "items", max_event_size: int = 1000, **more: Any
) -> FeedRules:
    return FeedRules(
        None if items is None else read_expression(items),
        read_expression(more.pop("next", "next")),
        start,
        max_event_size,
        **{
            name: read_expression(value) if name == "data" else Template(value) if isinstance(value, str) else value
            for name, value in more.items()
        },
    )


def reader_of(start: str = "beginning", place: Place | None = None, **more: Any) -> FeedReader:
    return FeedReader("t", rules_of(start, **more), place)


def turn(reader: FeedReader, page: Any) -> list[Any]:
    """Read a page and go on behind it; what was told, as values."""
    said = told(reader.read(json.dumps(page).encode()))
    reader.turn()
    return said


def told(updates: Sequence[Update]) -> list[Any]:
    """Events' data as values; of other updates the kind."""
    return [json.loads(update.data) if update.kind is Kind.EVENT else update.kind.value for update in updates]


def page(*items: Any, next_: Any = None) -> dict[str, Any]:
    return {"items": list(items), "next": next_}


# Pages


def test_each_item_is_an_event_in_the_order_given() -> None:
    (first, second) = reader_of().read(b'{"items": [{"id" : 2}, 1], "next": "2"}')
    assert (first.topic, first.data, first.type, first.state, first.kind) == ("t", '{"id":2}', "", None, Kind.EVENT)
    assert second.data == "1"


def test_the_page_may_be_the_list() -> None:
    reader = reader_of(items=None, next="[-1].id")
    assert turn(reader, [{"id": 1}, {"id": 2}]) == [{"id": 1}, {"id": 2}]
    assert reader.cursor == "2"
    assert turn(reader, []) == []
    assert reader.cursor == "2"


def test_a_cursor_that_changed_says_that_there_may_be_more() -> None:
    reader = reader_of()
    assert (reader.cursor, reader.has_more) == ("", False)
    turn(reader, page(1, next_="a"))
    assert (reader.cursor, reader.has_more) == ("a", True)
    turn(reader, page(2, next_="a"))
    assert (reader.cursor, reader.has_more) == ("a", False)


@pytest.mark.parametrize("missing", [None, "", [], {}, True, False])
def test_a_page_without_a_cursor_is_the_last_for_now(missing: Any) -> None:
    reader = reader_of()
    turn(reader, page(1, next_="a"))
    assert turn(reader, page(2, next_=missing)) == [2]
    assert (reader.cursor, reader.has_more) == ("a", False)


@pytest.mark.parametrize(
    ("given_", "cursor"), [(0, "0"), (17, "17"), (-1, "-1"), (1.5, "1.5"), ("a b", "a b"), ("0", "0")]
)
def test_a_cursor_is_text_or_a_number(given_: Any, cursor: str) -> None:
    reader = reader_of()
    turn(reader, page(next_=given_))
    assert reader.cursor == cursor


def test_the_cursor_of_the_issue_is_found_in_either_place() -> None:
    reader = reader_of(next="meta.next || items[-1].id")
    turn(reader, {"items": [{"id": 4}], "meta": {"next": "m"}})
    assert reader.cursor == "m"
    turn(reader, {"items": [{"id": 5}], "meta": {}})
    assert reader.cursor == "5"
    turn(reader, {"items": [], "meta": None})
    assert (reader.cursor, reader.has_more) == ("5", False)


def test_a_page_that_was_not_turned_is_asked_for_again() -> None:
    reader = reader_of()
    turn(reader, page(1, next_="a"))
    reader.read(json.dumps(page(2, next_="b")).encode())
    assert reader.cursor == "a", "it has not been published yet"
    assert turn(reader, page(2, next_="b")) == [2]
    assert reader.cursor == "b"


def test_a_page_that_cannot_be_read_changes_nothing() -> None:
    reader = reader_of()
    turn(reader, page(1, next_="a"))
    for body in (
        b"",
        b"<html>",
        b'{"items": {"a": 1}, "next": "b"}',
        b'{"items": "b", "next": "b"}',
        b"\xff",
        b"[" * 99_999,
    ):
        with pytest.raises(UndecodableError):
            reader.read(body)
        assert reader.cursor == "a"
    assert turn(reader, page(2, next_="b")) == [2]


def test_items_that_are_no_list_are_said_to_be_none() -> None:
    with pytest.raises(UndecodableError, match="`items` finds something that is no list"):
        reader_of().read(b'{"items": {"a": 1}}')


def test_items_that_are_not_there_are_an_empty_page() -> None:
    reader = reader_of()
    assert turn(reader, {"next": "a"}) == []
    assert (reader.cursor, reader.has_more) == ("a", True)


def test_empty_pages_that_go_on_and_on_are_not_turned_at_once_for_ever() -> None:
    reader = reader_of()
    at_once = []
    for number in range(EMPTY_PAGES + 5):
        turn(reader, page(next_=number))
        at_once.append(reader.has_more)
        assert reader.cursor == str(number), "it is turned nevertheless"
    assert at_once == [True] * (EMPTY_PAGES - 1) + [False] * 6
    turn(reader, page(1, next_="x"))
    assert reader.has_more
    turn(reader, page(next_="y"))
    assert reader.has_more, "counted from the last item"


# Where it begins


def test_from_the_beginning_the_first_question_has_no_cursor() -> None:
    reader = reader_of("beginning")
    assert reader.cursor == ""
    assert turn(reader, page(1, 2, next_="a")) == [1, 2]


def test_from_a_value_the_first_question_has_it() -> None:
    reader = reader_of("17")
    assert reader.cursor == "17"
    assert turn(reader, page(18, next_="18")) == [18]


def test_from_now_what_is_there_already_is_passed_over() -> None:
    reader = reader_of("now")
    assert reader.cursor == ""
    assert turn(reader, page(1, 2, next_="a")) == []
    assert (reader.cursor, reader.has_more) == ("a", True)
    assert turn(reader, page(3, 4, next_="b")) == []
    assert turn(reader, page(next_="b")) == []
    assert reader.has_more is False
    assert turn(reader, page(5, next_="c")) == [5]


def test_from_now_a_page_that_is_not_full_is_the_last_that_is_passed_over() -> None:
    """A busy feed has another item each time it is asked."""
    reader = reader_of("now")
    assert turn(reader, page(1, 2, next_="a")) == []
    assert turn(reader, page(3, next_="b")) == []
    assert turn(reader, page(4, next_="c")) == [4]


def test_from_now_a_feed_that_is_empty_and_has_no_cursor_tells_the_first_item() -> None:
    reader = reader_of("now")
    assert turn(reader, page()) == []
    assert reader.cursor == ""
    assert turn(reader, page(1, next_="a")) == [1]


def test_from_now_a_feed_that_gives_its_cursor_at_once_tells_the_first_item() -> None:
    """`sync?since=`: the first answer is empty, and says where now is."""
    reader = reader_of("now")
    assert turn(reader, page(next_="a")) == []
    assert turn(reader, page(next_="a")) == []
    assert turn(reader, page(1, next_="b")) == [1]


def test_from_now_items_that_come_one_by_one_are_told() -> None:
    reader = reader_of("now")
    assert turn(reader, page(1, next_="1")) == []
    said = [turn(reader, page(number, next_=str(number))) for number in range(2, 9)]
    assert said[-1] == [8], "at some time it is now"


def test_from_now_an_empty_first_page_is_the_last_that_is_passed_over() -> None:
    reader = reader_of("now")
    assert turn(reader, page(next_="a")) == []
    assert turn(reader, page(1, next_="b")) == [1]


# A page that grows: it has no cursor for what comes after it, and is asked for again


def test_a_page_that_is_asked_for_again_is_told_once() -> None:
    reader = reader_of()
    assert turn(reader, page(1, 2, next_="a")) == [1, 2]
    assert turn(reader, page(3)) == [3]
    assert turn(reader, page(3)) == []
    assert turn(reader, page(3, 4)) == [4]
    assert turn(reader, page(3, 4, 5, next_="b")) == [5], "now it is full, and there is a next one"
    assert turn(reader, page(6)) == [6]


def test_a_feed_without_cursors_tells_each_item_once() -> None:
    reader = reader_of(items=None, next="absent")
    assert turn(reader, [{"id": 1, "a": 1}]) == [{"id": 1, "a": 1}]
    assert turn(reader, [{"a": 1, "id": 1}, {"id": 2}]) == [{"id": 2}], "the order of members is none"
    assert turn(reader, [{"id": 2}, {"id": 3}]) == [{"id": 3}]


def test_from_now_a_page_that_grows_is_passed_over_as_far_as_it_was() -> None:
    reader = reader_of("now")
    assert turn(reader, page(1, 2)) == []
    assert turn(reader, page(1, 2, 3)) == [3]


def test_items_that_were_told_are_behind_a_cursor_that_stayed_and_nowhere_else() -> None:
    reader = reader_of()
    turn(reader, page(1, next_="a"))
    assert turn(reader, page(1, next_="b")) == [1], "an equal item of another page is another one"


def test_two_equal_items_of_one_page_are_two() -> None:
    assert turn(reader_of(), page(1, 1)) == [1, 1]


def test_what_is_remembered_of_a_page_is_no_longer_than_the_page() -> None:
    reader = reader_of()
    for number in range(100):
        reader.read(json.dumps(page(number, number + 1)).encode())
        place = reader.turn()
    assert place is not None
    assert len(place.told) <= 10


# What is remembered


def remembered(reader: FeedReader, value: Any) -> Place | None:
    reader.read(json.dumps(value).encode())
    return reader.turn()


def test_only_a_place_that_changed_is_remembered() -> None:
    reader = reader_of()
    assert remembered(reader, page(1, next_="a")) == Place("a")
    place = remembered(reader, page(2, next_="a"))
    assert place is not None
    assert (place.cursor, len(place.told)) == ("a", 1)
    assert remembered(reader, page(2, next_="a")) is None
    assert remembered(reader, page(next_="b")) == Place("b")
    assert remembered(reader, page(next_="b")) is None


def test_where_the_upstream_has_no_cursor_yet_that_is_remembered_too() -> None:
    """A feed that was empty when it began has no cursor; the next process must not pass over what came since."""
    reader = reader_of("now")
    assert remembered(reader, page()) == Place("")
    assert remembered(reader, page()) is None, "once"
    assert turn(reader_of("now", Place("")), page(1, next_="a")) == [1]


def test_what_is_passed_over_is_no_place_to_be_remembered() -> None:
    reader = reader_of("now")
    assert remembered(reader, page(1, 2, next_="a")) is None
    assert remembered(reader, page(next_="a")) == Place("a"), "here is now"


@pytest.mark.parametrize("start", ["now", "beginning", "17"])
def test_a_remembered_place_goes_before_the_start(start: str) -> None:
    reader = reader_of(start, Place("99"))
    assert (reader.cursor, reader.is_under_way) == ("99", True)
    assert turn(reader, page(1, next_="100")) == [1]


def test_what_was_told_of_a_page_that_grows_is_told_no_more_by_the_next_process() -> None:
    reader = reader_of()
    turn(reader, page(1, next_="a"))
    place = remembered(reader, page(2, 3))
    assert turn(reader_of(place=place), page(2, 3, 4)) == [4]


# A backend that forgets


def test_a_cursor_the_upstream_gave_may_be_forgotten_by_it() -> None:
    reader = reader_of()
    assert not reader.is_under_way
    turn(reader, page(1, next_="a"))
    assert reader.is_under_way
    (update,) = reader.forget()
    assert (update.kind, json.loads(update.data), update.topic) == (Kind.RESET, {"reason": "gap"}, "t")
    assert (reader.cursor, reader.is_under_way) == ("", False)
    assert turn(reader, page(1, 2, next_="b")) == [1, 2], "it begins anew"


def test_the_cursor_it_began_with_is_none_that_the_upstream_gave() -> None:
    reader = reader_of("17")
    assert not reader.is_under_way
    turn(reader, page(next_="17"))
    assert not reader.is_under_way
    turn(reader, page(next_="18"))
    assert reader.is_under_way
    reader.forget()
    assert (reader.cursor, reader.is_under_way) == ("17", False)


def test_anew_is_from_now_where_it_began_there() -> None:
    reader = reader_of("now")
    turn(reader, page(1, next_="a"))
    turn(reader, page(next_="a"))
    assert turn(reader, page(2, next_="b")) == [2]
    reader.forget()
    assert turn(reader, page(3, 4, next_="c")) == []
    assert turn(reader, page(next_="c")) == []
    assert turn(reader, page(5, next_="d")) == [5]


def test_a_cursor_of_an_earlier_process_may_be_forgotten_too() -> None:
    reader = reader_of(place=Place("99"))
    reader.forget()
    assert reader.cursor == ""
    assert remembered(reader, page(1, next_="99")) == Place("99"), "once more: what was remembered has been dropped"


# Items


def test_an_event_is_named_by_a_template_over_its_item() -> None:
    reader = reader_of(event="item-{type}")
    updates = reader.read(b'{"items": [{"type": "x"}, {"type": 7}, {"type": true}, {}, {"type": ["no"]}, 1]}')
    assert [update.type for update in updates] == ["item-x", "item-7", "item-true", "item-", "item-", "item-"]


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        ("end", "upstream-end"),
        ("reset", "upstream-reset"),
        ("error", "upstream-error"),
        ("a\nid: 1\r\0", "aid: 1"),
        ("en\nd", "upstream-end"),
        ("message", "message"),
    ],
)
def test_a_name_forges_nothing(type_: str, name: str) -> None:
    (update,) = reader_of(event="{type}").read(json.dumps(page({"type": type_})).encode())
    assert update.type == name


def test_an_event_s_data_may_be_a_part_of_its_item() -> None:
    reader = reader_of(data="payload", event="{type}")
    updates = reader.read(
        b'{"items": [{"type": "a", "payload": {"b":1}}, {"type": "c"}, {"type": "d", "payload": "text"}]}'
    )
    assert [(update.type, update.data) for update in updates] == [("a", '{"b":1}'), ("d", "text")]


def test_null_is_no_event() -> None:
    updates = reader_of().read(b'{"items": [1, null, 0, false, "", []]}')
    assert [update.data for update in updates] == ["1", "0", "false", "", "[]"]


def test_an_item_may_be_told_as_html() -> None:
    updates = reader_of(template="<li>{name}</li>").read(b'{"items": [{"name": "<b>"}, {}]}')
    assert [update.data for update in updates] == ["<li>&lt;b&gt;</li>", "<li></li>"]


def test_a_template_is_over_what_data_gives() -> None:
    (update,) = reader_of(template="{a.0}-{a.1.b}", data="{a: [x, y]}").read(b'{"items": [{"x": 1, "y": {"b": 2}}]}')
    assert update.data == "1-2"


# Trouble with an item


def test_an_item_that_is_too_large_is_left_out_and_told_once() -> None:
    reader = reader_of(max_event_size=20)
    assert turn(reader, page(1, "x" * 21, "y" * 30, next_="a")) == [1, "fault"]
    assert turn(reader, page("z" * 40, next_="b")) == [], "told already"
    assert turn(reader, page(2, 3, next_="c")) == ["recovered", 2, 3]
    fault = reader.read(json.dumps(page("x" * 21)).encode())[0]
    assert json.loads(fault.data) == {
        "reason": "oversize",
        "status": None,
        "message": "an item of the feed is too large for an event",
    }


@pytest.mark.parametrize(("max_event_size", "kind"), [(15, Kind.EVENT), (14, Kind.FAULT)])
def test_the_size_is_of_data_in_bytes_and_of_the_type(max_event_size: int, kind: Kind) -> None:
    reader = reader_of(max_event_size=max_event_size, data="data", event="{type}")
    (update,) = reader.read(json.dumps(page({"type": "t" * 5, "data": "é" * 5})).encode())
    assert update.kind is kind


def test_html_larger_than_an_event_is_left_out() -> None:
    assert told(reader_of(max_event_size=20, template="{x}").read(b'{"items": [{"x": "<<<<<<"}]}')) == ["fault"]


def test_an_item_that_an_expression_cannot_take_is_left_out() -> None:
    reader = reader_of(data="abs(n)")
    assert turn(reader, page({"n": -1}, {"n": "x"}, {"n": -2})) == [1, "fault", "recovered", 2]


@given(st.lists(st.integers(-9, 9) | st.text(max_size=4), max_size=6))
def test_any_items_that_are_no_null_come_once_and_in_order(items: list[Any]) -> None:
    updates = reader_of().read(json.dumps(page(*items)).encode())
    assert [update.data for update in updates] == [item if isinstance(item, str) else str(item) for item in items]


# Any feed


def log_page(log: list[int], cursor: str, size: int, *, is_last_without: bool) -> dict[str, Any]:
    """What an upstream answers that has this log: a page of this size. Its last page has a cursor, or has none."""
    at = int(cursor or 0)
    items = log[at : at + size]
    has_next = len(items) == size if is_last_without else bool(items)
    return page(*items, next_=str(at + len(items)) if has_next else None)


@given(st.data(), st.booleans(), st.integers(1, 4))
def test_any_feed_is_told_once_and_in_order_however_it_grows(
    data: st.DataObject, is_last_without: bool, size: int
) -> None:
    """And though the broker does not take a page now and then, and the gate dies and another process goes on."""
    log: list[int] = []
    said: list[int] = []
    reader = reader_of()
    place: Place | None = None
    for _ in range(data.draw(st.integers(1, 12))):
        log += range(len(log), len(log) + data.draw(st.integers(0, 5)))
        asked = log_page(log, reader.cursor, size, is_last_without=is_last_without)
        got = told(reader.read(json.dumps(asked).encode()))
        if data.draw(st.booleans(), label="the broker takes it"):
            said += got
            place = reader.turn() or place
        if data.draw(st.booleans(), label="another process goes on"):
            reader = reader_of(place=place)
    while asked := log_page(log, reader.cursor, size, is_last_without=is_last_without):
        said += turn(reader, asked)
        if not reader.has_more:
            break
    assert said == log


@given(st.binary(max_size=40), st.sampled_from(["now", "beginning", "x"]))
def test_any_bytes_are_read_or_refused(body: bytes, start: str) -> None:
    reader = reader_of(start)
    before = reader.cursor
    try:
        reader.read(body)
    except UndecodableError:
        assert reader.cursor == before
    else:
        reader.turn()
