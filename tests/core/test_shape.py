"""One journal in several shapes: which is chosen, and that every event comes back out of each as it went in."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.event import HEARTBEAT, Event, EventStreamDecoder, encode_event, encode_retry
from ssegate.core.shape import EVENT_STREAM, JSON, OFFERED, Shape, choose, heartbeat_of, json_events, json_value

NDJSON, JSON_SEQ = "application/x-ndjson", "application/json-seq"
SHAPES = list(Shape)


def written(shape: Shape, *events: Event) -> bytes:
    return shape.encode(b"".join(map(encode_event, events)))


def records(shape: Shape, data: bytes) -> list[Any]:
    """Read it as its own standard says, by hand."""
    text = data.decode()
    if shape is Shape.NDJSON:
        assert not text or text.endswith("\n")
        return [json.loads(line) for line in text.split("\n") if line]
    pieces = text.split("\x1e")
    assert pieces[0] == ""
    assert all(piece.endswith("\n") for piece in pieces if piece), (
        "one that is cut would be told by its missing line end"
    )
    return [json.loads(piece) for piece in pieces if piece]


# Which one


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, EVENT_STREAM),
        ("", EVENT_STREAM),
        ("  ", EVENT_STREAM),
        ("*/*", EVENT_STREAM),
        ("text/event-stream", EVENT_STREAM),
        ("TEXT/Event-Stream", EVENT_STREAM),
        ("text/*", EVENT_STREAM),
        ("application/x-ndjson", NDJSON),
        ("application/json-seq", JSON_SEQ),
        ("application/json", JSON),
        ("application/json; charset=utf-8", JSON),
        ("application/*", NDJSON),
        ("text/html", None),
        ("text/html, image/*", None),
        ("application/json;q=0", None),
        ("*/*;q=0", None),
        ("application/ndjson", None),
        ("jso n, , ;", None),
    ],
)
def test_one_that_is_named_is_taken_and_else_the_event_stream(accept: str | None, media: str | None) -> None:
    assert choose(accept) == media


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        # "of equals the first named"
        ("application/json, text/event-stream", JSON),
        ("text/event-stream, application/json", EVENT_STREAM),
        ("application/json-seq, application/x-ndjson", JSON_SEQ),
        ("application/x-ndjson;q=0.5, application/json;q=0.5", NDJSON),
        # the higher weight
        ("application/json;q=0.5, text/event-stream;q=0.6", EVENT_STREAM),
        ("application/json;q=0.1, */*;q=0.2", EVENT_STREAM),
        ("application/json;q=0.999, application/x-ndjson;q=1.000", NDJSON),
        # what is named goes before what is included
        ("*/*, application/json", JSON),
        ("application/*, application/json", JSON),
        ("application/*, text/event-stream", EVENT_STREAM),
        ("text/*, application/*", EVENT_STREAM),
        # the most specific range counts (RFC 9110, 12.5.1)
        ("text/event-stream;q=0, */*", NDJSON),
        ("application/x-ndjson;q=0, application/*", JSON_SEQ),
        ("application/*;q=0, */*;q=0.1", EVENT_STREAM),
        # what browsers and libraries send
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", EVENT_STREAM),
        ("application/json, text/plain, */*", JSON),
        ("text/event-stream, text/html, application/json", EVENT_STREAM),
    ],
)  # fmt: skip
def test_of_several_the_best_is_taken(accept: str, media: str) -> None:
    assert choose(accept) == media


def test_only_what_is_offered_is_taken() -> None:
    assert choose("application/json, text/event-stream;q=0.1", (EVENT_STREAM,)) == EVENT_STREAM
    assert choose("application/json", (EVENT_STREAM,)) is None
    assert choose(None, (JSON, EVENT_STREAM)) == JSON


@given(st.lists(st.tuples(st.sampled_from([*OFFERED, "text/html", "*/*", "application/*"]), st.integers(0, 10))))
def test_whatever_is_taken_was_acceptable_and_nothing_better_was_offered(pairs: list[tuple[str, int]]) -> None:
    media = choose(",".join(f"{name};q={weight / 10}" for name, weight in pairs) or None)
    weights: dict[str, int] = {}
    for name, weight in pairs:
        weights[name] = max(weight, weights.get(name, 0))

    def weight_of(name: str) -> int:
        ranges = (name, name.partition("/")[0] + "/*", "*/*")
        return next((weights[each] for each in ranges if each in weights), 0) if pairs else 1

    best = max(map(weight_of, OFFERED))
    assert (media is None) == (best == 0)
    assert media is None or weight_of(media) == best


@given(st.text(max_size=30))
def test_any_accept_is_answered(accept: str) -> None:
    assert choose(accept) in (*OFFERED, None)


# Events


def test_ndjson_is_one_object_a_line() -> None:
    events = (Event('{"a": 1}', id="e-1"), Event("text", "log", "e-2"), Event("", id="e-3"))
    assert written(Shape.NDJSON, *events) == (
        b'{"id":"e-1","data":{"a": 1}}\n'
        b'{"id":"e-2","event":"log","data":"text"}\n'
        b'{"id":"e-3","data":""}\n'
    )  # fmt: skip


def test_a_json_text_sequence_has_a_separator_before_each_and_a_line_end_behind() -> None:
    """RFC 7464, 2.2."""
    assert written(Shape.JSON_SEQ, Event("1", id="e-1"), Event("x", id="e-2")) == (
        b'\x1e{"id":"e-1","data":1}\n\x1e{"id":"e-2","data":"x"}\n'
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_control_events_have_no_id(shape: Shape) -> None:
    reset, fault, recovered = Event('{"reason":"gap"}', "reset"), Event("{}", "fault"), Event("{}", "recovered")
    got = records(shape, written(shape, reset, Event("1", id="e-1"), fault, recovered, Event("2", id="e-2"), fault))
    assert [(record.get("id"), record.get("event")) for record in got] == [
        (None, "reset"), ("e-1", None), (None, "fault"), (None, "recovered"), ("e-2", None), (None, "fault"),
    ]  # fmt: skip
    assert got[0] == {"event": "reset", "data": {"reason": "gap"}}


@pytest.mark.parametrize("shape", SHAPES)
def test_comments_and_retry_are_left_out(shape: Shape) -> None:
    assert shape.encode(HEARTBEAT) == b""
    assert shape.encode(encode_retry(3000)) == b""
    assert shape.encode(b"") == b""
    assert records(shape, shape.encode(encode_retry(1) + encode_event(Event("1", id="e-1")))) == [
        {"id": "e-1", "data": 1}
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_heartbeat_is_bytes_and_no_record(shape: Shape) -> None:
    beat = heartbeat_of(shape)
    event = written(shape, Event("1", id="e-1"))
    assert beat == shape.heartbeat
    assert len(beat) == 1
    assert records(shape, beat + event + beat + beat + event + beat) == 2 * [{"id": "e-1", "data": 1}]


def test_the_event_stream_has_its_own_heartbeat() -> None:
    assert heartbeat_of(None) == HEARTBEAT


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("{}", {}),
        (' {"a" : [1, 2]}\t', {"a": [1, 2]}),
        ('{\n  "a": 1,\r\n  "b": [\r    2\n  ]\n}', {"a": 1, "b": [2]}),
        ('"a\\nb"', "a\nb"),
        ('"\\u2028"', "\u2028"),
        ('"\u2028\u2029\u0085"', "\u2028\u2029\u0085"),
        ("null", None),
        ("true", True),
        ("-1.50", -1.5),
        ("1e5", 1e5),
        # no JSON: text
        ("", ""),
        (" ", " "),
        ("text", "text"),
        ("a\nb", "a\nb"),
        ("a\u2028b\u000bc\u000cd", "a\u2028b\u000bc\u000cd"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ("007", "007"),
        ("'a'", "'a'"),
        ("{} {}", "{} {}"),
        ("\ufeff{}", "\ufeff{}"),
        ("\u00a01", "\u00a01"),
        ('"a\tb"', '"a\tb"'),
        ("\x1e1", "\x1e1"),
        ("a\0b", "a\0b"),
        ("[" * 100_000, "[" * 100_000),
        ('{"id":"forged"}\n{"id":"forged"}', '{"id":"forged"}\n{"id":"forged"}'),
    ],
)  # fmt: skip
def test_data_is_a_value_where_it_is_json_and_else_a_string(data: str, value: Any) -> None:
    text = json_value(data)
    assert "\n" not in text
    assert "\r" not in text
    assert "\x1e" not in text, "nothing forges a record"
    read = json.loads(text)
    assert (type(read), read) == (type(value), value)


def test_json_on_one_line_stays_as_it_was_written() -> None:
    for text in ('{"a": 1, "a": 2}', "1.0", "1.10", "12345678901234567890123", '"\\u00e9"', '"\\ud800"'):
        assert json_value(f" {text}\t") == text


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    """Python reads `"\\ud800"` into what UTF-8 cannot say."""
    for shape in SHAPES:
        (record,) = records(shape, written(shape, Event('[\n"\\ud800"]', id="e-1")))
        assert record["data"] == ["\ufffd"]
        (record,) = records(shape, written(shape, Event("a \ud800 b", id="e-1")))
        assert record["data"] == "a \ufffd b"


def test_a_type_is_written_as_a_string_whatever_it_is() -> None:
    assert written(Shape.NDJSON, Event("1", 'a"\\\u2028\x1e', "e-1")) == (
        '{"id":"e-1","event":"a\\"\\\\\u2028\\u001e","data":1}\n'.encode()
    )


# Any event


names = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=8)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False).map(abs)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
json_texts = st.builds(
    lambda value, indent, is_ascii: json.dumps(value, indent=indent, ensure_ascii=is_ascii),
    json_values, st.sampled_from([None, 0, 2, "\t"]), st.booleans(),
)  # fmt: skip
ids = st.none() | st.integers(1, 10**9)


def value_of(text: str) -> Any:
    """What a text is as JSON by the book, or the text."""

    def read_float(digits: str) -> float:
        if float(digits) in (float("inf"), float("-inf")):
            raise ValueError(digits)
        return float(digits) or 0.0  # minus zero is zero

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse, parse_float=read_float)
    except ValueError:
        return text


@given(st.lists(st.tuples(json_texts | st.text(max_size=20), names, ids), max_size=6), st.sampled_from(SHAPES))
def test_any_event_comes_back_as_it_was(given_: Sequence[tuple[str, str, int | None]], shape: Shape) -> None:
    events = [
        Event(data, type_, None if id_ is None else f"e-{number}{id_}")
        for number, (data, type_, id_) in enumerate(given_)
    ]
    got = records(shape, written(shape, *events))
    # What an EventSource would make of the same bytes: line ends are LF, what UTF-8 cannot say is U+FFFD.
    dispatched = EventStreamDecoder().receive(b"".join(map(encode_event, events)))
    assert len(got) == len(events) == len(dispatched)
    for record, event, seen in zip(got, events, dispatched, strict=True):
        assert (record.get("id"), record.get("event", "")) == (event.id, event.type)
        assert list(record) == [name for name in ("id", "event", "data") if name in record]
        assert json.dumps(record["data"]) == json.dumps(value_of(seen.data))


@given(st.lists(st.tuples(st.text(max_size=6), ids), max_size=6), st.integers(0, 6), st.sampled_from(SHAPES))
def test_where_blocks_are_cut_makes_no_difference(
    given_: Sequence[tuple[str, int | None]], cut: int, shape: Shape
) -> None:
    blocks = [
        encode_event(Event(data, id=None if id_ is None else f"e-{number}{id_}"))
        for number, (data, id_) in enumerate(given_)
    ]
    whole = shape.encode(b"".join(blocks))
    assert whole == shape.encode(b"".join(blocks[:cut])) + shape.encode(b"".join(blocks[cut:]))
    assert whole == b"".join(map(shape.encode, blocks))


@given(json_values, st.sampled_from([None, 0, 1, "\t"]))
def test_any_json_is_the_same_value_on_one_line(value: Any, indent: Any) -> None:
    text = json_value(json.dumps(value, indent=indent))
    assert not re.search(r"[\r\n]", text)
    assert json.dumps(json.loads(text)) == json.dumps(value)


@given(st.text(max_size=20))
def test_events_of_a_stream_are_objects_of_one_line(data: str) -> None:
    (text,) = json_events(encode_event(Event(data, "x", "e-1")))
    assert not re.search(r"[\r\n\x1e]", text)
    assert json.loads(text)["event"] == "x"
