"""Records out of a stream: every format against a naive reading of the whole, cut anywhere; too large, cut off, and endless."""

from __future__ import annotations

import base64
import json
import re
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.event import EventStreamDecoder
from ssegate.core.records import OVERSIZE, TRUNCATED, Record, RecordDecoder, make_decoder

VECTORS = [
    case
    for name in ("eventsource.json", "eventsource-wpt.json")
    for case in json.loads((Path(__file__).parent.parent / "vectors" / name).read_text())["cases"]
]
FORMATS = ["sse", "ndjson", "json-seq", "lines", "bytes"]
BOM = b"\xef\xbb\xbf"
RS = b"\x1e"


def read(format_: str, *pieces: bytes, max_size: int = 1000) -> list[Record]:
    """All records of a stream that comes in these pieces and ends in good order."""
    decoder = make_decoder(format_, max_size)
    records = [record for piece in pieces for record in decoder.receive(piece)]
    return records + decoder.finish()


def texts(records: Iterable[Record]) -> list[str]:
    return [record.fault or record.text for record in records]


def bytewise(stream: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in stream]


def every_cut(stream: bytes) -> Iterable[list[bytes]]:
    for cut in range(len(stream) + 1):
        yield [stream[:cut], stream[cut:]]
    yield bytewise(stream)
    yield [piece for byte in bytewise(stream) for piece in (b"", byte)]


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted(cut % (len(stream) + 1) for cut in cuts)
    return [stream[start:stop] for start, stop in zip([0, *at], [*at, len(stream)], strict=True)]


# What a format means, said in the simplest way and of the whole stream.


def naive_lines(stream: bytes, max_size: int) -> list[Record]:
    lines = re.split(rb"\r\n|\r|\n", stream.removeprefix(BOM))
    if not lines[-1]:
        del lines[-1]
    return [Record(line.decode("utf-8", "replace")) if len(line) <= max_size else OVERSIZE for line in lines]


def naive_ndjson(stream: bytes, max_size: int) -> list[Record]:
    return [
        record._replace(text=record.text.strip(" \t"))
        for record in naive_lines(stream, max_size)
        if record.fault or record.text.strip(" \t")
    ]


def naive_json_seq(stream: bytes, max_size: int) -> list[Record]:
    records = []
    for part in stream.split(RS):
        text = part.strip(b" \t\r\n")
        if len(text) > max_size:
            records.append(OVERSIZE)
        elif text and text[:1] not in (b"{", b"[", b'"') and part.endswith(text):
            records.append(TRUNCATED)
        elif text:
            records.append(Record(text.decode("utf-8", "replace")))
    return records


def naive_sse(stream: bytes, max_size: int) -> list[Record]:
    *lines, rest = re.split(rb"\r\n|\r|\n", stream.removeprefix(BOM))
    records = []
    id_ = ""
    block: list[bytes] = []
    for line in [*lines, rest if rest else None]:
        if line:
            block.append(line)
        fields = [line for line in block if not line.startswith(b":")]
        data = [line for line in fields if re.match(b"data(:|$)", line) and line is not rest]
        is_too_large = max(map(len, fields), default=0) > max_size or sum(map(len, data)) > max_size
        if line == b"":
            whole = EventStreamDecoder()
            whole.last_event_id = id_
            # A second block tells the id, and a line that is too long, of whatever field, is none.
            short = [line for line in fields if len(line) <= max_size]
            *events, last = whole.receive(b"\n".join([b"", *short, b"", b"data:", b"", b""]))
            id_ = last.id or ""
            records += [OVERSIZE] if is_too_large else [Record(e.data, e.type, e.id or "") for e in events]
            block = []
    return records + ([OVERSIZE] if block and is_too_large else [])


NAIVE: dict[str, Callable[[bytes, int], list[Record]]] = {
    "lines": naive_lines,
    "ndjson": naive_ndjson,
    "json-seq": naive_json_seq,
    "sse": naive_sse,
}

LINES = [
    b"",
    b"one\n",
    b"one\ntwo\n",
    b"one\rtwo\r\nthree\n\rfour\r\r\nfive",
    b"\n\n\r\n\r\r",
    b"a\r\n\r\nb\n",
    BOM + b"a\n" + BOM + b"b\n",
    BOM + BOM + b"a\n",
    BOM,
    BOM[:2],
    BOM[:2] + b"\n",
    b"nul\0in\0it\n\0\n",
    "grün …\u2028 \U0001f600\x85\n".encode(),
    b"\xe2\x80\n\xa6 \xff\xfe\xf0\x9f\x98\r\n\xc3",
    b'{"a":1}\n  \n\t\r\n {"a":2} \r\n[] ',
    b"exactlyten\nnow eleven!\nshort\n",
    b"very long and longer still\r\nten: bytes\rand then more than ten",
]
SEQUENCES = [
    b"",
    RS,
    b'\x1e{"a":1}\n\x1e{"a":2}\n',
    b"\x1e1\n\x1etrue\n\x1enull \x1e-2.5\t\x1e\"a\"\n",
    b"\x1e12\x1e13\n\x1etru\x1enull",
    b'\x1e{"a":\x1e[2]\n\x1e\x1e\x1e\n\x1e "x"',
    b' \n{"a":1}\n\x1e[]\n',
    b'\x1e[\n1,\n[2]\n]\n\n\n\x1e{\n"]"\n:\n"\\"["\n}\n',
    "\x1e[\"grün …\"]\n\x1e\"\U0001f600\"\n".encode(),
    b'\x1e["\xff"]\n\x1e["\xe2\x80"]\n',
    b"\x1e[1,2,3,4,5,6]\n\x1e[1]\n\x1e[1,2,3,45,",
    b"\x1e[12,34,56]\n              \x1e[1]              \n",
    b"\x1e[1]\n" + b"\n" * 30 + b"\x1e[2]\n",
    b"\x1e              [1]\x1e\n              [2]\n",
    b"\x1e}\n}\n\x1e[1e999]\n\x1e[NaN]\n",
]  # fmt: skip
EVENTS = [
    b"event: a\nid: 1\ndata: x\n\ndata: y\n\n",
    b"id: 1\n\ndata: y\n\ndata: unfinished",
    b"data: 1\n\n: a comment that is long\ndata: 2\n\n:another one that is long",
    b"data: 1\n\ndata: 23456\nid: 7\ndata: 8\n\ndata: 9\n\n",
    b"data: 1\n\ndata: this is too long\r\nid: 7\r\ndata: 8\r\n\r\ndata: 9\r\n\r\n",
    b"id: 3\ndata: 1\ndata: 2\n\ndata: 3\n\n",
    b"event: much too long\ndata: 1\n\ndata: 2\n\n",
    b"id: much too long\ndata: 1\n\nid: 5\ndata: 2\n\n",
    b"data: 1\n\ndata: too long and endless",
    b"data: 1\n\ndata: 2\ndata: 3\n",
]
EXAMPLES = {"lines": LINES, "ndjson": LINES, "json-seq": SEQUENCES, "sse": [*LINES, *EVENTS]}
PARTS = {
    "lines": [b"a", b"bcd", b"\r", b"\n", b"\r\n", b" ", BOM, b"\xe2\x80", b"\xa6", b"\0", b"\x85", b"\x1e"],
    "sse": [b"data", b"data: ", b"id: ", b"id", b"event:", b":", b"x", b"\r", b"\n", b"\r\n", b"\n\n", BOM, b"\xe2", b"\0"],
}  # fmt: skip
PARTS["ndjson"] = PARTS["lines"]
CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@pytest.mark.parametrize(
    ("format_", "stream"), [(format_, stream) for format_, streams in EXAMPLES.items() for stream in streams]
)
@pytest.mark.parametrize("max_size", [10, 1000])
def test_a_stream_has_the_same_records_wherever_it_is_cut(format_: str, stream: bytes, max_size: int) -> None:
    expected = NAIVE[format_](stream, max_size)
    for pieces in every_cut(stream):
        assert read(format_, *pieces, max_size=max_size) == expected


@pytest.mark.parametrize("format_", PARTS)
@given(st.data(), CUTS, st.integers(4, 12))
def test_any_stream_has_the_records_of_a_naive_reading(
    format_: str, data: st.DataObject, cuts: list[int], max_size: int
) -> None:
    stream = b"".join(data.draw(st.lists(st.sampled_from(PARTS[format_]))))
    pieces = pieces_of(stream, cuts)
    assert read(format_, *pieces, max_size=max_size) == NAIVE[format_](stream, max_size)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text('[{"\\]}\n', max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a"{[', max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(
        st.tuples(JSON, st.sampled_from([None, 0, 1]), st.sampled_from([b"\n", b"", b" \n\n", b"\r\n"]), st.integers(0, 4))
    ),
    CUTS,
    st.integers(4, 60),
)  # fmt: skip
def test_any_sequence_of_json_texts_has_the_records_of_a_naive_reading(
    elements: list[tuple[Any, int | None, bytes, int]], cuts: list[int], max_size: int
) -> None:
    # Some are cut off, so that they are no JSON: from a string, a list or an object not even one byte may be missing.
    stream = b""
    for value, indent, end, missing in elements:
        text = json.dumps(value, indent=indent).encode()
        stream += RS + (text[: -missing or None] if text[:1] in b'["{' else text) + end
    assert read("json-seq", *pieces_of(stream, cuts), max_size=max_size) == naive_json_seq(stream, max_size)


@given(st.binary(), CUTS, st.sampled_from(FORMATS), st.integers(4, 20))
def test_nothing_an_upstream_may_send_raises(stream: bytes, cuts: list[int], format_: str, max_size: int) -> None:
    for record in read(format_, *pieces_of(stream, cuts), max_size=max_size):
        assert record.text == "" or not record.fault


@pytest.mark.parametrize("format_", FORMATS)
def test_a_decoder_begins_without_cursor_and_reconnection_time(format_: str) -> None:
    decoder = make_decoder(format_, 1000)
    assert (decoder.retry_ms, decoder.last_event_id, decoder.receive(b""), decoder.finish()) == (None, "", [], [])


# Lines


def test_a_line_leaves_with_its_end_and_a_cr_is_one() -> None:
    decoder = make_decoder("lines", 1000)
    received = [texts(decoder.receive(piece)) for piece in (b"a", b"b\r", b"\n", b"\nc\n", b"d\r", b"e", b"\r\n")]
    assert received == [[], ["ab"], [], ["", "c"], ["d"], [], ["e"]]


def test_what_is_left_of_lines_at_the_end_is_a_line() -> None:
    assert texts(read("lines", b"a\n\nb")) == ["a", "", "b"]
    assert texts(read("lines", b"a\n", b"")) == ["a"]
    assert texts(read("ndjson", b"1\n2 ")) == ["1", "2"]
    assert texts(read("ndjson", b"1\n  ")) == ["1"]


def test_a_line_that_is_too_long_is_told_at_once_and_the_next_is_read() -> None:
    decoder = make_decoder("lines", 4)
    received = [texts(decoder.receive(piece)) for piece in (b"abcd", b"e", b"fghij", b"k\r", b"\nlm\n")]
    assert received == [[], ["oversize"], [], [], ["lm"]]
    assert texts(decoder.receive(b"nopqr") + decoder.finish()) == ["oversize"]


def test_a_blank_line_that_is_too_long_is_told_nevertheless() -> None:
    assert texts(read("ndjson", b"1\n          \n2\n", max_size=4)) == ["1", "oversize", "2"]


@pytest.mark.parametrize(
    ("format_", "begin", "end"), [("lines", b"", b"\n"), ("json-seq", b'\x1e"', b'"\n'), ("sse", b"data:", b"\n\n")]
)
def test_a_record_that_comes_byte_by_byte_costs_no_more_than_its_length(format_: str, begin: bytes, end: bytes) -> None:
    decoder = make_decoder(format_, 1_000_000)
    for byte in bytewise(begin + b"x" * 200_000):
        assert decoder.receive(byte) == []
    (record,) = decoder.receive(end)
    assert len(record.text.strip('"')) == 200_000


# JSON text sequences


def test_a_json_text_leaves_with_its_line_end_when_a_piece_ends_there() -> None:
    decoder = make_decoder("json-seq", 1000)
    pieces = (b'\x1e{"a":1}\n', b"\x1e[1,", b"2]\n", b"\x1e7", b"\n", RS, b"\n", b"\x1enull\n\x1etrue", b"\n")
    received = [texts(decoder.receive(piece)) for piece in pieces]
    assert received == [['{"a":1}'], [], ["[1,2]"], [], ["7"], [], [], ["null"], ["true"]]
    assert decoder.finish() == []


def test_a_json_text_without_its_line_end_leaves_with_the_next() -> None:
    decoder = make_decoder("json-seq", 1000)
    received = [texts(decoder.receive(piece)) for piece in (b'\x1e{"a":1}', b"\x1e[2]", b"\x1e")]
    assert received == [[], ['{"a":1}'], ["[2]"]]


def test_a_json_text_of_many_lines_leaves_with_its_last() -> None:
    text = b'{\n"[\\"{":\n[\n1,\n{}\n],\n"a\\\\":\n"]]}"\n}\n'
    decoder = make_decoder("json-seq", 1000)
    received = [texts(decoder.receive(line)) for line in (RS + text).splitlines(keepends=True)]
    assert received == [[]] * 8 + [[text.decode().strip()]]


def test_what_is_no_json_leaves_with_the_next_record_for_the_reader_to_refuse() -> None:
    decoder = make_decoder("json-seq", 1000)
    received = [texts(decoder.receive(piece)) for piece in (b"\x1e{]\n", b"[]\n", b"\x1e[1]\n", b"\x1e[2,", b"\x1e")]
    assert received == [[], [], ["{]\n[]", "[1]"], [], ["[2,"]]


def test_a_number_or_name_that_may_have_been_cut_is_told_as_truncated() -> None:
    """RFC 7464, 2.4: parsers must drop values "that may have been truncated (that are not delimited by whitespace)"."""
    assert read("json-seq", b"\x1e12\x1e34\n\x1etrue") == [TRUNCATED, Record("34"), TRUNCATED]


def test_text_before_the_first_separator_is_a_record_if_it_is_not_blank() -> None:
    assert texts(read("json-seq", b"\n \x1e[1]\n")) == ["[1]"]
    assert texts(read("json-seq", b"hello\n\x1e[1]\n")) == ["hello", "[1]"]
    assert texts(read("json-seq", b"[0]\n", b"[1]\n")) == ["[0]", "[1]"]


def test_a_json_text_that_is_too_large_is_told_at_once_and_the_next_is_read() -> None:
    decoder = make_decoder("json-seq", 4)
    received = [texts(decoder.receive(piece)) for piece in (b"\x1e[123", b"4", b"]\n", b"[2]\n", b"\x1e[3]\n")]
    assert received == [[], ["oversize"], [], [], ["[3]"]]


def test_line_ends_sent_as_heartbeats_do_not_add_up_to_a_record() -> None:
    decoder = make_decoder("json-seq", 10)
    assert texts(decoder.receive(b"\x1e[1]\n")) == ["[1]"]
    assert [decoder.receive(b"\n") for _ in range(20)] == [[]] * 20
    assert texts(decoder.receive(b"\x1e[2]\n")) == ["[2]"]


def test_json_that_is_nested_too_deep_to_be_read_waits_for_the_next_record() -> None:
    text = b"[" * 100_000 + b"]" * 100_000
    decoder = make_decoder("json-seq", 1_000_000)
    assert decoder.receive(RS + text + b"\n") == []
    assert texts(decoder.receive(RS)) == [text.decode()]


@pytest.mark.parametrize(
    ("begin", "line"),
    [
        (b"[\n", b"[],\n"),
        (b"[\n", b'"]",\n'),
        (b"[\n", b"}\n"),
        (b"[\n", b"\n"),
        (b"[" + b"[]," * 100_000 + b"}\n", b"[]\n"),
    ],
)
def test_a_json_text_that_comes_line_by_line_costs_no_more_than_its_length(begin: bytes, line: bytes) -> None:
    decoder = make_decoder("json-seq", 1_000_000)
    assert decoder.receive(RS + begin) == []
    for _ in range(100_000):
        assert decoder.receive(line) == []
    (record,) = decoder.receive(RS)
    assert record.text.startswith("[")


# Bytes


def test_every_piece_of_bytes_is_a_record_in_base64() -> None:
    assert texts(read("bytes", b"\xff\0", b"", b"abc")) == ["/wA=", "YWJj"]


@given(st.binary(max_size=200), st.integers(4, 40))
def test_a_piece_of_bytes_that_would_be_too_large_is_several_records(piece: bytes, max_size: int) -> None:
    records = read("bytes", piece, max_size=max_size)
    assert b"".join(base64.b64decode(record.text) for record in records) == piece
    assert all(len(record.text) <= max_size for record in records)
    assert len(records) == -(-len(piece) // (max_size // 4 * 3))


# Event streams


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_events_are_read_as_the_standard_says(case: dict[str, Any]) -> None:
    stream = bytes.fromhex(case["hex"]) if "hex" in case else case["stream"].encode()
    for pieces in every_cut(stream):
        decoder = make_decoder("sse", 1000)
        records = [record for piece in pieces for record in decoder.receive(piece)]
        assert decoder.finish() == []
        assert [[record.type, record.text, record.id] for record in records] == case["events"]
        assert decoder.retry_ms == case.get("retry_ms")
        assert decoder.last_event_id == case.get("last_event_id", decoder.last_event_id)


def test_an_event_brings_its_type_and_the_id_that_is_valid_for_it() -> None:
    assert read("sse", b"event: a\nid: 1\ndata: x\n\ndata: y\n\nid\ndata: z\n\n") == [
        Record("x", "a", "1"), Record("y", "", "1"), Record("z"),
    ]  # fmt: skip


def test_an_id_without_data_moves_the_cursor_and_a_retry_is_told() -> None:
    decoder = make_decoder("sse", 1000)
    assert decoder.receive(b"id: 8\nretry: 250\n") == []
    assert (decoder.last_event_id, decoder.retry_ms) == ("", 250)
    assert decoder.receive(b"\n") == []
    assert decoder.last_event_id == "8"


@pytest.mark.parametrize(
    "large",
    [
        b"data: 123456789012",
        b"data: 12\ndata: 34",
        b"data\ndata\ndata\ndata",
        b"other: 12345678",
        b"data: 12345678\ndata: 1",
    ],
)
def test_an_event_that_is_too_large_is_told_once_and_the_next_is_read(large: bytes) -> None:
    stream = b"data: 1\n\nid: 7\n" + large + b"\ndata: x\nevent: t\n\ndata: 2\n\n"
    for pieces in every_cut(stream):
        assert read("sse", *pieces, max_size=12) == [Record("1"), OVERSIZE, Record("2", "", "7")]


def test_the_id_of_an_event_that_is_too_large_counts_when_it_has_come_whole() -> None:
    decoder = make_decoder("sse", 10)
    assert decoder.receive(b"data: 12345\nid: 7\n") == [OVERSIZE]
    assert decoder.last_event_id == ""
    assert decoder.receive(b"\n") == []
    assert decoder.last_event_id == "7"


def test_an_event_that_does_not_end_is_told_as_soon_as_it_is_too_large() -> None:
    decoder = make_decoder("sse", 10)
    assert [decoder.receive(piece) for piece in (b"data: 1234", b"5", b"6", b"7\n")] == [[], [OVERSIZE], [], []]


def test_a_megabyte_of_comments_is_no_event() -> None:
    decoder = make_decoder("sse", 100)
    assert decoder.receive(b"data: 1\n") == []
    for _ in range(20_000):
        assert decoder.receive(b": a comment, and another one is to come behind it\n") == []
    assert decoder.receive(b"data: 2\n\n") == [Record("1\n2")]


def test_a_comment_of_a_megabyte_is_passed_over() -> None:
    decoder = make_decoder("sse", 100)
    for piece in (b"data: 1\n:", *([b"x" * 1000] * 1000), b"\n"):
        assert decoder.receive(piece) == []
    assert decoder.receive(b"data: 2\n:" + b"y" * 1_000_000 + b"\n\n") == [Record("1\n2")]


# Memory

ENDLESS = {
    "lines": (b"", b"x" * 10_000),
    "ndjson": (b"[", b"1," * 5_000),
    "json-seq": (b"\x1e[", b"1,\n" * 3_000),
    "blanks in a json-seq": (b"\x1e[1", b" \n" * 5_000),
    "sse": (b"data: 1\ndata: ", b"x" * 10_000),
    "events of many lines in sse": (b"", b"data: xxxx\n" * 1_000),
    "a comment in sse": (b"data: 1\n:", b"x" * 10_000),
    "bytes": (b"", b"\xff" * 10_000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_does_not_end_takes_no_more_memory_than_is_allowed(name: str) -> None:
    begin, piece = ENDLESS[name]
    decoder = make_decoder(name.rpartition(" ")[2], 100_000)
    tracemalloc.start()
    try:
        peak = peak_of(decoder, begin, piece, times=500)
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000  # of five megabytes


def peak_of(decoder: RecordDecoder, begin: bytes, piece: bytes, times: int) -> int:
    decoder.receive(begin)
    for _ in range(times):
        decoder.receive(piece)
    return tracemalloc.get_traced_memory()[1]
