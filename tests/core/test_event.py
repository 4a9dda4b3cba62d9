"""Events as bytes and back: against the standard, cut anywhere, and with whatever somebody puts into a field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.event import (
    HEARTBEAT,
    MAX_ID_LENGTH,
    Event,
    EventReader,
    EventStreamDecoder,
    Kind,
    LineCutter,
    Update,
    encode_event,
    encode_retry,
    encode_text,
)

VECTORS_OF = Path(__file__).parent.parent / "vectors"
OF_THE_STANDARD = json.loads((VECTORS_OF / "eventsource.json").read_text())
OF_BROWSERS = json.loads((VECTORS_OF / "eventsource-wpt.json").read_text())
VECTORS = OF_THE_STANDARD["cases"] + OF_BROWSERS["cases"]
ANY_TEXT = st.text(
    st.characters(exclude_categories=()) | st.sampled_from("\r\n\0\v\f\x85\u2028\u2029\ufeff: \ud83d\ude00")
)


def stream_of(case: dict[str, Any]) -> bytes:
    return bytes.fromhex(case["hex"]) if "hex" in case else case["stream"].encode()


def decoded(*pieces: bytes) -> tuple[list[Event], EventStreamDecoder]:
    decoder = EventStreamDecoder()
    return [event for piece in pieces for event in decoder.receive(piece)], decoder


def check(case: dict[str, Any], *pieces: bytes) -> None:
    events, decoder = decoded(*pieces)
    assert [[event.type, event.data, event.id or ""] for event in events] == case["events"]
    assert decoder.retry_ms == case.get("retry_ms")
    if "last_event_id" in case:
        assert decoder.last_event_id == case["last_event_id"]


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_a_stream_is_read_as_the_standard_says(case: dict[str, Any]) -> None:
    check(case, stream_of(case))


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_a_stream_may_be_cut_at_every_byte(case: dict[str, Any]) -> None:
    stream = stream_of(case)
    for cut in range(len(stream) + 1):
        check(case, stream[:cut], stream[cut:])
    check(case, *(bytes((byte,)) for byte in stream))
    check(case, *(piece for byte in stream for piece in (b"", bytes((byte,)))))


def test_what_the_tests_of_browsers_look_at_is_among_the_vectors() -> None:
    names = {case["name"] for case in OF_THE_STANDARD["cases"]}
    assert set(OF_BROWSERS["elsewhere"].values()) <= names
    looked_at = {*OF_BROWSERS["elsewhere"], *(case["test"] for case in OF_BROWSERS["cases"])}
    fields = [
        "data",
        "event",
        "event-empty",
        "id",
        "id-2",
        "id-3",
        "id-null",
        "parsing",
        "retry",
        "retry-bogus",
        "retry-empty",
        "unknown",
    ]
    others = [
        "bom",
        "bom-2",
        "comments",
        "data-before-final-empty-line",
        "leading-space",
        "newlines",
        "null-character",
        "utf-8",
    ]
    assert looked_at == {
        "event-data",
        *(f"format-field-{name}" for name in fields),
        *(f"format-{name}" for name in others),
    }


def as_client_gets(text: str) -> str:
    """What comes of data on its way: line ends are LF, pairs of surrogates are joined, half of one is U+FFFD."""
    paired = re.sub(
        "([\ud800-\udbff])([\udc00-\udfff])",
        lambda pair: chr(0x10000 + ((ord(pair[1]) - 0xD800) << 10) + ord(pair[2]) - 0xDC00),
        text,
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", paired).replace("\r\n", "\n").replace("\r", "\n")


@given(ANY_TEXT, st.integers(0))
def test_any_data_comes_back_as_it_went_however_it_is_cut(data: str, cut: int) -> None:
    encoded = encode_event(Event(data, "t", "e-1"))
    at = cut % (len(encoded) + 1)
    events, _ = decoded(encoded[:at], encoded[at:])
    assert events == [Event(as_client_gets(data), "t", "e-1")]


@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_nothing_in_a_field_can_forge_another_field_or_event(data: str, type_: str, id_: str) -> None:
    try:
        encoded = encode_event(Event(data, type_, id_))
    except ValueError:
        assert (
            re.search("[\r\n\0]", type_ + id_) or not id_ or len(encode_text(id_)) > MAX_ID_LENGTH or not is_utf8(id_)
        )
        return
    events, decoder = decoded(encoded + b"data: next\n\n")
    assert events == [Event(as_client_gets(data), as_client_gets(type_), id_), Event("next", "", id_)]
    assert decoder.retry_ms is None


def is_utf8(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


@given(
    st.lists(
        st.sampled_from(
            [
                b"data",
                b"id",
                b"event",
                b":",
                b" ",
                b"\r",
                b"\n",
                b"\r\n",
                b"\xe2\x80",
                b"\xa8",
                b"\xef\xbb\xbf",
                b"x",
                b"\0",
            ]
        )
    ),
    st.data(),
)
def test_a_stream_means_the_same_wherever_it_is_cut(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    whole, at_end = decoded(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)))))
    pieces = [stream[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    events, decoder = decoded(*pieces)
    assert (events, decoder.last_event_id) == (whole, at_end.last_event_id)


def test_an_event_is_type_data_id_and_a_blank_line() -> None:
    # The id is last: a client that takes it before the event is dispatched would pass over an event that is cut.
    assert encode_event(Event("a\r\nb\rc\n", "patch", "7f3a-2")) == (
        b"event: patch\ndata: a\ndata: b\ndata: c\ndata: \nid: 7f3a-2\n\n"
    )
    assert encode_event(Event("")) == b"data: \n\n"


def test_data_is_not_split_at_what_is_no_line_end_in_an_event_stream() -> None:
    data = "a\vb\fc\x1cd\x85e\u2028f\u2029g"
    assert encode_event(Event(data)) == f"data: {data}\n\n".encode()
    assert encode_event(Event(f"{data}\n")) == f"data: {data}\ndata: \n\n".encode()


def test_half_a_surrogate_pair_becomes_a_replacement_character_and_a_whole_pair_is_one_character() -> None:
    assert encode_event(Event("a\ud800b")) == "data: a\ufffdb\n\n".encode()
    assert encode_event(Event("\udc00")) == "data: \ufffd\n\n".encode()
    assert encode_event(Event("\ud83d\ude00 \ud83d")) == "data: 😀 \ufffd\n\n".encode()
    assert encode_event(Event("", "t\udfff")) == "event: t\ufffd\ndata: \n\n".encode()


@pytest.mark.parametrize("bad", ["a\rb", "a\nb", "a\0b", "\n"])
def test_line_ends_and_nul_are_refused_in_types_and_ids(bad: str) -> None:
    with pytest.raises(ValueError, match="type"):
        encode_event(Event("x", bad))
    with pytest.raises(ValueError, match="id"):
        encode_event(Event("x", "", bad))


@pytest.mark.parametrize("bad", ["", "x" * 65, "é" * 33])
def test_an_id_that_could_not_come_back_as_a_header_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 bytes"):
        encode_event(Event("x", "", bad))


def test_the_longest_id_passes() -> None:
    assert encode_event(Event("x", "", "x" * 64)).endswith(b"\nid: " + b"x" * 64 + b"\n\n")


def test_a_heartbeat_and_a_retry_dispatch_nothing() -> None:
    assert HEARTBEAT == b":\n"  # with a blank line some clients deliver an empty message
    assert encode_retry(3120) == b"retry: 3120\n:\n"
    events, decoder = decoded(encode_retry(3120), HEARTBEAT, HEARTBEAT, b"data: x\n\n")
    assert events == [Event("x")]
    assert decoder.retry_ms == 3120


def test_a_retry_of_thousands_of_digits_is_just_large() -> None:
    _, decoder = decoded(b"retry: " + b"9" * 10_000 + b"\n")
    assert decoder.retry_ms == 10**12 - 1


def test_a_cursor_from_an_earlier_connection_stays_until_the_stream_names_another() -> None:
    decoder = EventStreamDecoder()
    decoder.last_event_id = "a-4"
    assert decoder.receive(b"data: x\n\n") == [Event("x", "", "a-4")]
    assert decoder.receive(b"id: a-5\ndata: y\n") == []
    assert decoder.last_event_id == "a-4"  # asked for from here, y comes again: it has not been dispatched
    assert decoder.receive(b"\n") == [Event("y", "", "a-5")]


def outcome(stream: bytes, cut: int, limit: int) -> tuple[list[str], bool]:
    """The data of the events that came before it was too much, and whether it was."""
    decoder = EventStreamDecoder(limit)
    events: list[str] = []
    try:
        for piece in (stream[:cut], stream[cut:], b""):
            events += [event.data for event in decoder.receive(piece)]
    except ValueError:
        with pytest.raises(ValueError, match=f"larger than {limit} bytes"):
            decoder.receive(b"\n\n")
        return events, True
    return events, False


@pytest.mark.parametrize(
    ("stream", "events", "is_too_large"),
    [
        (b"data: 1234\n\ndata: 1234\n\n", ["1234", "1234"], False),
        (b"data: 12345\n\n", [], True),
        (b"data: 1\n\ndata: 12345\n\ndata: 2\n\n", ["1"], True),
        (b"data: 1\ndata: 2\n\n", [], True),
        (b"data: 1\n\n:2345678901", ["1"], True),
        ("data: …2\n\n".encode(), ["…2"], False),
        ("data: …23\n\n".encode(), [], True),
        (b"id: 12345678\n\n", [], True),
    ],
)
def test_an_event_that_grows_beyond_the_limit_is_refused_wherever_it_is_cut(
    stream: bytes, events: list[str], is_too_large: bool
) -> None:
    for cut in range(len(stream) + 1):
        assert outcome(stream, cut, 10) == (events, is_too_large)


def test_a_line_that_comes_byte_by_byte_costs_no_more_than_its_length() -> None:
    decoder = EventStreamDecoder()
    for byte in b"data: " + b"x" * 100_000:
        decoder.receive(bytes((byte,)))
    assert [len(event.data) for event in decoder.receive(b"\n\n")] == [100_000]


@pytest.mark.parametrize("kind", list(Kind))
def test_only_events_and_the_end_take_an_offset(kind: Kind) -> None:
    assert Update("t", "", kind=kind).is_numbered == (kind in (Kind.EVENT, Kind.END))


def test_the_first_line_may_be_a_byte_order_mark_alone() -> None:
    assert LineCutter(10).cut(b"\xef\xbb\xbf\na\n") == [b"", b"a"]


def test_a_line_that_is_too_long_is_told_once_as_soon_as_it_is() -> None:
    cutter = LineCutter(4)
    assert [cutter.cut(piece) for piece in (b"abcd", b"e", b"fg", b"h\r", b"\nij\n")] == [
        [],
        [b"abcde"],
        [],
        [],
        [b"ij"],
    ]
    assert (cutter.rest_size, cutter.finish()) == (0, b"")


def test_data_of_a_block_can_be_dropped_and_its_id_counts() -> None:
    reader = EventReader()
    reader.receive_line(b"data: a")
    reader.receive_line(b"id: 7")
    assert reader.size == len(b"data: a")
    reader.drop_data()
    assert (reader.size, reader.receive_line(b""), reader.last_event_id) == (0, None, "7")
    reader.receive_line(b"data: b")
    assert reader.receive_line(b"") == Event("b", "", "7")
