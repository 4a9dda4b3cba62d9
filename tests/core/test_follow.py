"""What records become: events, nothing, trouble told once, the end; joined, named, and gone on with after a connection was lost."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.config.values import read_expression
from ssegate.core.event import RESERVED_TYPES, Event, EventStreamDecoder, Kind, Update, encode_event, encode_text
from ssegate.core.follow import Follower, FollowRules, is_true, word
from ssegate.core.template import Template

BOM = b"\xef\xbb\xbf"
RS = b"\x1e"
EXPRESSIONS = ("data", "id", "done", "when")
TEMPLATES = ("event", "template")


def follow(format_: str, *, begun: bool = True, max_size: int = 1000, **rules: Any) -> Follower:
    """A follower by these rules, written as they are in a configuration."""
    read = {name: read_expression(rules[name]) for name in EXPRESSIONS if name in rules}
    made = {name: Template(rules[name]) for name in TEMPLATES if name in rules}
    follower = Follower("topic 1", FollowRules(format_, max_size, batches=rules.get("batches", False), **read, **made))
    if begun:
        follower.begin()
    return follower


def words(updates: Iterable[Update]) -> list[str]:
    """What is told, in short: `type:data` of events, `kind:reason` of everything else."""
    return [
        f"{update.type}:{update.data}"
        if update.kind is Kind.EVENT
        else f"{update.kind.value}!{json.loads(update.data).get('reason', '')}"
        for update in updates
    ]


def read(format_: str, *pieces: bytes, **rules: Any) -> list[str]:
    """All that is told of an answer that comes in these pieces and ends in good order."""
    follower = follow(format_, **rules)
    told = [update for piece in pieces if not follower.is_done for update in follower.receive(piece)]
    return words([*told, *([] if follower.is_done else follower.finish()), *follower.flush()])


def fault_of(updates: list[Update]) -> dict[str, Any]:
    (update,) = updates
    assert (update.kind, update.topic, update.type) == (Kind.FAULT, "topic 1", "")
    fault: dict[str, Any] = json.loads(update.data)
    return fault


# Formats

STREAMS: list[tuple[str, bytes, list[str]]] = [
    (
        "sse",
        b": hello\nid: 7\nevent: tick\ndata: a\ndata: b\n\ndata:c\r\n\r\nretry: 10\rdata:  d\r\r",
        ["tick:a\nb", ":c", ": d"],
    ),
    ("ndjson", b'{"a": 1}\n\n [1, 2] \r\n"text"\nfalse\n17', [':{"a": 1}', ":[1, 2]", ':"text"', ":false", ":17"]),
    ("json-seq", RS + b'{"a": 1}\n' + RS + b"[\n2\n]\n" + RS + b'"text"\n', [':{"a": 1}', ":[\n2\n]", ':"text"']),
    ("lines", b"one\n\r\n  two \rthree", [":one", ":", ":  two ", ":three"]),
]


@pytest.mark.parametrize(("format_", "stream", "told"), STREAMS, ids=[name for name, _, _ in STREAMS])
def test_each_record_is_an_event_wherever_the_stream_is_cut(format_: str, stream: bytes, told: list[str]) -> None:
    for cut in range(len(stream) + 1):
        assert read(format_, stream[:cut], stream[cut:]) == told
    assert read(format_, *(bytes((byte,)) for byte in stream)) == told


def test_pieces_of_bytes_are_events_in_base64() -> None:
    assert read("bytes", b"\0\xff", b"a") == [":AP8=", ":YQ=="]


def test_messages_of_a_websocket_are_events_as_they_are() -> None:
    assert read("websocket", b'{"a": 1}', b"two\nlines", "grün".encode()) == [':{"a": 1}', ":two\nlines", ":grün"]


def test_an_event_leaves_with_the_last_byte_of_its_record() -> None:
    for format_, stream in (
        ("sse", b"data: a\n\n"),
        ("ndjson", b"{}\n"),
        ("lines", b"a\n"),
        ("json-seq", RS + b"{}\n"),
    ):
        follower = follow(format_)
        assert [len(follower.receive(bytes((byte,)))) for byte in stream] == [*[0] * (len(stream) - 1), 1]


def test_updates_are_of_the_topic_and_carry_no_state() -> None:
    assert follow("lines").receive(b"a\n") == [Update("topic 1", "a")]


# data, event, id, done, when


@pytest.mark.parametrize(
    ("data", "record", "told"),
    [
        ("response", '{"response":"Hel"}', "Hel"),
        ("response", '{"response":""}', ""),
        ("response", '{"response":"a\\nb \\u00fc"}', "a\nb ü"),
        ("response", '{"response":17}', "17"),
        ("response", '{"response":false}', "false"),
        ("response", '{"response": {"b": [1, "x"]}}', '{"b":[1,"x"]}'),
        ("choices[0].delta.content", '{"choices":[{"delta":{"content":"Hi"}}]}', "Hi"),
        ("{text: a, n: b.c}", '{"a":"x","b":{"c":1.0}}', '{"text":"x","n":1.0}'),
        ("length(@)", "[1,2,3]", "3"),
    ],
)
def test_data_is_what_the_expression_finds_text_as_it_is_and_anything_else_as_json(
    data: str, record: str, told: str
) -> None:
    for format_, stream in (("ndjson", f"{record}\n"), ("json-seq", f"\x1e{record}\n"), ("sse", f"data: {record}\n\n")):
        assert read(format_, stream.encode(), data=data) == [f":{told}"]
    assert read("websocket", record.encode(), data=data) == [f":{told}"]


@pytest.mark.parametrize("record", ['{"response":null}', "{}", "17", "null", '"response"'])
def test_what_data_finds_nothing_in_is_no_event(record: str) -> None:
    assert read("ndjson", f'{record}\n{{"response":"b"}}\n'.encode(), data="response") == [":b"]


def test_a_record_that_is_null_is_no_event() -> None:
    assert read("ndjson", b"null\n1\n") == [":1"]
    assert read("json-seq", RS + b"null\n" + RS + b"1\n") == [":1"]


def test_events_and_messages_that_are_no_json_are_looked_into_as_text() -> None:
    assert read("sse", b"data: [DONE]\n\n", data="@") == [":[DONE]"]
    assert read("sse", b"data: [1]\n\n", data="@") == [":[1]"]
    assert read("websocket", b"hello", data="{said: @}") == [':{"said":"hello"}']
    assert read("lines", b'{"a":1}\n', data="{line: @}") == [':{"line":"{\\"a\\":1}"}']


def test_only_records_of_which_something_is_true_become_events() -> None:
    stream = b'{"level":"info","n":1}\n{"level":"error","n":2}\n{"n":3}\n'
    assert read("ndjson", stream, when="level == 'error'", data="n") == [":2"]


@pytest.mark.parametrize(
    ("value", "truth"),
    [(True, True), (0, True), (0.0, True), ("x", True), ([0], True), ({"a": None}, True)]
    + [(value, False) for value in (None, False, "", [], {})],
)
def test_truth_is_as_jmespath_has_it(value: object, truth: bool) -> None:
    assert is_true(value) is truth


def test_the_record_that_is_the_last_is_told_and_then_the_end() -> None:
    follower = follow("ndjson", data="response", done="done == `true`")
    updates = follower.receive(b'{"response":"a","done":false}\n{"response":"b","done":true}\n{"response":"c"}\n')
    assert words(updates) == [":a", ":b", "end!done"]
    assert updates[-1] == Update("topic 1", '{"reason":"done"}', type="end", kind=Kind.END)
    assert follower.is_done


def test_the_last_record_may_be_no_event_itself() -> None:
    assert read("sse", b"data: a\n\ndata: [DONE]\n\ndata: b\n\n", done="@ == '[DONE]'", when="@ != '[DONE]'") == [
        ":a",
        "end!done",
    ]
    assert read("ndjson", b'{"r":"a"}\n{"done":1}\n{"r":"b"}\n', data="r", done="done") == [":a", "end!done"]


def test_a_last_record_without_its_end_counts_when_the_answer_ended_in_good_order() -> None:
    follower = follow("ndjson", done="done", data="r")
    assert follower.receive(b'{"r":"a","done":true}') == []
    assert words(follower.finish()) == [":a", "end!done"]
    assert follower.is_done


@pytest.mark.parametrize(
    ("event", "record", "type_"),
    [
        ("log", '{"a":1}', "log"),
        ("{type}", '{"type":"added"}', "added"),
        ("{type}-{n}", '{"type":"a","n":2}', "a-2"),
        ("{a.b}", '{"a":{"b":true}}', "true"),
        ("{type}", "{}", ""),
        ("{type}", '{"type":null}', ""),
        ("{type}", '{"type":["x"]}', ""),
        ("x-{type}", '"text"', "x-"),
        ("{type}", '{"type":"a\\r\\nid: 9\\u0000"}', "aid: 9"),
    ],
)
def test_an_events_name_comes_out_of_its_record_and_can_forge_nothing(event: str, record: str, type_: str) -> None:
    (update,) = follow("ndjson", event=event).receive(f"{record}\n".encode())
    assert (update.type, update.data) == (type_, record)


def test_an_events_name_is_made_of_the_whole_record_and_not_of_its_data() -> None:
    assert read("ndjson", b'{"type":"x","data":{"type":"y"}}\n', event="{type}", data="data") == ['x:{"type":"y"}']


@pytest.mark.parametrize("name", sorted(RESERVED_TYPES))
def test_names_that_are_the_gates_own_are_marked_as_the_upstreams(name: str) -> None:
    assert read("sse", f"event: {name}\ndata: 1\n\n".encode()) == [f"upstream-{name}:1"]
    assert read("ndjson", f'{{"type":"{name}"}}\n'.encode(), event="{type}") == [f'upstream-{name}:{{"type":"{name}"}}']


def test_names_of_the_upstream_pass_unless_the_route_names_its_events() -> None:
    stream = b"event: Upstream end\ndata: 1\n\nevent: message\ndata: 2\n\n"
    assert read("sse", stream) == ["Upstream end:1", "message:2"]
    assert read("sse", stream, event="x") == ["x:1", "x:2"]


def test_a_nul_in_the_name_of_an_upstreams_event_is_left_out() -> None:
    (update,) = follow("sse").receive(b"event: a\0b\ndata: 1\n\n")
    assert encode_event(Event(update.data, update.type)) == b"event: ab\ndata: 1\n\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), ("", ""), (17, "17"), (1.5, "1.5"), (0, "0")]
    + [(value, "") for value in (None, True, False, [], ["a"], {})],
)
def test_an_id_is_text_or_a_number(value: object, text: str) -> None:
    assert word(value) == text


# Joining


def joined(format_: str, *pieces: bytes, **rules: Any) -> list[str]:
    return read(format_, *pieces, batches=True, **rules)


def test_records_that_are_joined_leave_with_the_flush_and_not_before() -> None:
    follower = follow("lines", batches=True)
    assert follower.receive(b"a\nb\n") == []
    assert follower.is_holding
    assert words(follower.flush()) == [":a\nb"]
    assert not follower.is_holding
    assert follower.flush() == []


@pytest.mark.parametrize(
    ("format_", "pieces", "rules", "told"),
    [
        ("lines", [b"one\n\ntw", b"o\n"], {}, ":one\n\ntwo"),
        ("bytes", [b"\0", b"\xff", b"abc"], {}, f":{base64.b64encode(bytes([0, 255]) + b'abc').decode()}"),
        ("ndjson", [b'{"a": 1}\n', b"2\n"], {}, ':[{"a": 1},2]'),
        ("ndjson", [b'{"a": 1}\n'], {}, ':[{"a": 1}]'),
        ("json-seq", [RS + b"[1]\n", RS + b'"x"\n'], {}, ':[[1],"x"]'),
        ("ndjson", [b'{"r":"Hel"}\n', b'{"r":"lo"}\n', b'{"r":""}\n'], {"data": "r"}, ":Hello"),
        ("ndjson", [b'{"r":1}\n', b'{"r":"\\"x\\""}\n'], {"data": "r"}, ':[1,"\\"x\\""]'),
        ("ndjson", [b'{"r":null}\n', b'{"r":"a"}\n'], {"data": "r"}, ":a"),
        ("sse", [b"data: one\ndata: 1\n\n", b"data: two\n\n"], {}, ":one\n1\ntwo"),
        ("websocket", [b"one", b"two"], {}, ":one\ntwo"),
        ("ndjson", [b'{"r":"a<b"}\n', b'{"r":"c"}\n'], {"template": "<p>{r}</p>"}, ":<p>a&lt;b</p>\n<p>c</p>"),
        ("ndjson", [b'{"r":"a"}\n', b'{"r":"b"}\n'], {"data": "{r: r}", "template": "<p>{r}</p>"}, ":<p>a</p>\n<p>b</p>"),
    ],
)  # fmt: skip
def test_what_is_joined_is_one_event(format_: str, pieces: list[bytes], rules: dict[str, Any], told: str) -> None:
    assert joined(format_, *pieces, **rules) == [told]


def test_what_is_joined_to_a_list_can_be_read_again() -> None:
    values = ["a", '"', {"b": "\n\u2028\ud800"}, 1.5, None, True]
    stream = "".join(f"{json.dumps({'r': [value]})}\n" for value in values).encode()
    (told,) = joined("ndjson", stream, data="r")
    assert json.loads(told.removeprefix(":")) == [[value] for value in values]


def test_events_with_different_names_are_not_joined() -> None:
    stream = b"event: a\ndata: 1\n\nevent: a\ndata: 2\n\ndata: 3\n\nevent: a\ndata: 4\n\n"
    assert joined("sse", stream) == ["a:1\n2", ":3", "a:4"]


def test_what_is_joined_is_no_larger_than_an_event_may_be() -> None:
    for format_, record in (("lines", b"x" * 30 + b"\n"), ("ndjson", b'"' + b"x" * 30 + b'"\n')):
        told = joined(format_, record * 40, max_size=200)
        assert len(told) > 1
        assert all(len(word) <= 201 for word in told)
        assert "".join(told).count("x") == 1200, "none is lost"


def test_texts_that_are_joined_to_a_list_are_counted_as_they_are_written() -> None:
    record = json.dumps({"r": "\x01" * 30}).encode() + b"\n"
    told = joined("ndjson", b'{"r":1}\n' + record * 5, data="r", max_size=200)
    assert all(len(word) <= 201 for word in told)


def test_what_is_held_leaves_before_trouble_and_before_the_end() -> None:
    follower = follow("ndjson", batches=True, done="done", data="r")
    assert words(follower.receive(b'{"r":"a"}\n{"r":"b"}\nno\n')) == [":ab", "fault!undecodable"]
    assert words(follower.receive(b'{"r":"c"}\n')) == ["recovered!"]
    assert words(follower.receive(b'{"r":"d","done":true}\n')) == [":cd", "end!done"]
    other = follow("lines", batches=True)
    other.receive(b"a\n")
    assert words(other.fault("upstream", "gone")) == [":a", "fault!upstream"]
    other.receive(b"b\n")
    assert words(other.end("failed", {"status": None})) == [":b", "end!failed"]


# Trouble


@pytest.mark.parametrize(
    "line",
    [
        b"<html>secret</html>",
        b'{"secret":',
        b"{'secret': 1}",
        b'{"secret":NaN}',
        b'{"secret":-Infinity}',
        b'{"secret":1e999}',
        b'{"secret":' + b"9" * 5000 + b"}",
        b'{"secret":1} {}',
        b'{"secret":"\0"}',
        b"secret\0",
        b"\xff\xfe",
        b"[" * 5000,
        b"[" * 5000 + b"]" * 5000,
    ],
)
def test_a_record_that_cannot_be_read_is_told_and_quoted_nowhere_and_the_next_is_read(line: bytes) -> None:
    for format_, begin, end in (("ndjson", b"", b"\n"), ("json-seq", RS, b"\n" + RS)):
        follower = follow(format_, max_size=20_000)
        told = follower.receive(begin + b"1\n" + begin + line + end)
        assert words(told[:1]) == [":1"]
        fault = fault_of(told[1:])
        assert (fault["reason"], fault["status"]) == ("undecodable", None)
        assert fault["message"].startswith("a record of the upstream cannot be read: ")
        assert "secret" not in fault["message"]
        assert follower.is_troubled
        assert words(follower.receive(begin + b"2\n")) == ["recovered!", ":2"]
        assert not follower.is_troubled


def test_trouble_is_told_once_until_a_record_can_be_read_again() -> None:
    assert read("ndjson", b"no\nneither\n1\n2\nno\n3\n") == [
        "fault!undecodable", "recovered!", ":1", ":2", "fault!undecodable", "recovered!", ":3",
    ]  # fmt: skip


def test_a_record_that_is_no_event_ends_trouble_too() -> None:
    assert read("ndjson", b'no\n{"r":null}\nno\n{"r":1,"hide":1}\n', data="r", when="!hide") == [
        "fault!undecodable", "recovered!", "fault!undecodable", "recovered!",
    ]  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_that_fails_on_a_record_is_trouble_with_that_record(name: str) -> None:
    follower = follow("ndjson", **{name: "length(r) == `99` && r"})
    fault = fault_of(follower.receive(b'{"r":17}\n'))
    assert fault["reason"] == "undecodable"
    assert "length() got number" in fault["message"]
    assert words(follower.receive(b'{"r":"x"}\n'))[0] == "recovered!"


@pytest.mark.parametrize("text", ["inf", "nan", "1e999"])
def test_what_an_expression_makes_and_json_does_not_have_is_trouble_with_that_record(text: str) -> None:
    follower = follow("ndjson", data="{n: to_number(n)}")
    assert fault_of(follower.receive(json.dumps({"n": text}).encode() + b"\n"))["reason"] == "undecodable"


@pytest.mark.parametrize("rules", [{}, {"data": "@"}, {"template": "{a}"}])
def test_a_record_nested_as_deeply_as_can_be_read_is_told_or_is_trouble(rules: dict[str, str]) -> None:
    def told(depth: int) -> str:
        record = b'{"a":' * depth + b"1" + b"}" * depth + b"\n"
        (update,) = follow("ndjson", max_size=100_000, **rules).receive(record)
        return update.kind.value

    depth = 800
    while told(depth) == "event":
        depth += 1
    assert told(depth) == "fault"


def test_a_record_that_is_too_large_is_told_as_soon_as_it_is_and_the_next_is_read() -> None:
    for format_, begin, end in (
        ("lines", b"", b"\n"), ("ndjson", b'"', b'"\n'), ("json-seq", RS + b'"', b'"\n' + RS), ("sse", b"data: ", b"\n\n"),
    ):  # fmt: skip
        follower = follow(format_, max_size=100)
        assert follower.receive(begin + b"x" * 60) == []
        assert fault_of(follower.receive(b"x" * 60)) == {
            "reason": "oversize", "status": None, "message": "a record of the upstream is too large",
        }  # fmt: skip
        assert follower.receive(b"x" * 1000) == []
        assert words(follower.receive(end + begin + b"y" + end)) in (["recovered!", ":y"], ["recovered!", ':"y"'])


def test_a_record_may_be_larger_than_an_event_when_most_of_it_is_left_out() -> None:
    record = json.dumps({"context": "x" * 700, "response": "a"}).encode() + b"\n"
    assert read("ndjson", record, max_size=100, data="response") == [":a"]
    assert read("ndjson", record, max_size=100) == ["fault!oversize"]
    assert read("ndjson", record, max_size=100, data="context") == ["fault!oversize"]
    assert read("ndjson", record.replace(b"x", b"xx"), max_size=100, data="response") == ["fault!oversize"]


def test_an_event_is_measured_in_bytes_and_with_its_name() -> None:
    assert read("lines", "ü\n".encode() * 1, max_size=2) == [":ü"]
    assert read("ndjson", '{"r":"üü"}\n'.encode(), max_size=4, data="r") == [":üü"]
    assert read("ndjson", '{"r":"üü"}\n'.encode(), max_size=3, data="r") == ["fault!oversize"]
    assert read("ndjson", b'{"r":"ab"}\n', max_size=4, data="r", event="xy") == ["xy:ab"]
    assert read("ndjson", b'{"r":"ab"}\n', max_size=3, data="r", event="xy") == ["fault!oversize"]
    assert read("ndjson", b'{"r":"\\ud800"}\n', max_size=3, data="r") == [":\ud800"]


def test_a_number_that_may_have_been_cut_is_told_and_not_shown() -> None:
    follower = follow("json-seq")
    fault = fault_of(follower.receive(RS + b"12" + RS))
    assert (fault["reason"], fault["message"]) == ("undecodable", "a record of the upstream is cut")
    assert words(follower.receive(b"123\n")) == ["recovered!", ":123"]


def test_trouble_with_the_upstream_itself_is_told_once_with_what_is_known_of_it() -> None:
    follower = follow("lines", begun=False)
    assert follower.recover() == []
    assert fault_of(follower.fault("upstream", "the upstream answered 503", 503)) == {
        "reason": "upstream", "status": 503, "message": "the upstream answered 503",
    }  # fmt: skip
    assert follower.fault("oversize", "and more") == []
    follower.begin()
    assert words(follower.recover()) == ["recovered!"]
    assert follower.recover() == []


def test_an_end_has_its_reason_and_what_it_came_to() -> None:
    follower = follow("lines", begun=False)
    assert [update.data for update in follower.end("gone")] == ['{"reason":"gone"}']
    (end,) = follower.end("failed", {"status": 500, "message": "ü"})
    assert (end.kind, end.type, end.data) == (
        Kind.END, "end", '{"reason":"failed","result":{"status":500,"message":"ü"}}',
    )  # fmt: skip


# Bytes that are no text, or not what they should be


@pytest.mark.parametrize(
    ("format_", "stream", "told"),
    [
        ("lines", "a\xfc".encode("latin-1") + b"\n", [":a\ufffd"]),
        ("lines", "grün …".encode() + b"\n\xf0\x9f\x98\x80\n", [":grün …", ":\U0001f600"]),
        ("lines", b"\xe2\x80\n\xa6\n\xf0\x9f\x98\n", [":\ufffd", ":\ufffd", ":\ufffd"]),
        ("lines", b"a\0b\n\0\n", [":a\0b", ":\0"]),
        ("lines", BOM + b"a\n" + BOM + b"b\n", [":a", ":\ufeffb"]),
        ("lines", b"a\rb\r\nc\n\nd\n\r", [":a", ":b", ":c", ":", ":d", ":"]),
        ("lines", "a\u2028b\x0b\x0c\x85\n".encode(), [":a\u2028b\x0b\x0c\x85"]),
        ("ndjson", b'"a\xff"\n', [':"a\ufffd"']),
        ("ndjson", '"grün …"\n'.encode(), [':"grün …"']),
        ("ndjson", BOM + b"1\r2\r\n3\n", [":1", ":2", ":3"]),
        ("sse", BOM + b"data: a\0\xff\r\n\r\ndata: b\r\rdata: c\n\n", [":a\0\ufffd", ":b", ":c"]),
        ("sse", "data: …\n\n".encode(), [":…"]),
        ("sse", b"id: a\0b\ndata: 1\n\n", [":1"]),
        ("json-seq", RS + b'"a\xff"\n' + RS + '"…"\n'.encode(), [':"a\ufffd"', ':"…"']),
    ],
)  # fmt: skip
def test_what_is_no_text_is_repaired_and_never_cut_in_the_middle(format_: str, stream: bytes, told: list[str]) -> None:
    for cut in range(len(stream) + 1):
        assert read(format_, stream[:cut], stream[cut:]) == told
    assert read(format_, *(bytes((byte,)) for byte in stream)) == told


@pytest.mark.parametrize("begin", [BOM + RS, BOM])
def test_a_byte_order_mark_before_a_sequence_is_passed_over(begin: bytes) -> None:
    assert read("json-seq", begin + b'{"a":1}\n' + RS + b"2\n") == [':{"a":1}', ":2"]


def test_a_message_that_is_no_utf8_is_repaired() -> None:
    assert read("websocket", b"a\xff\0") == [":a\ufffd\0"]


FRAGMENTS = [
    b"\n", b"\r", b"\r\n", b"\n\n", RS, BOM, b"{", b"}", b"[", b"]", b'"', b"\\", b":", b",", b" ", b"1", b"null", b"true",
    b'{"a":"b"}\n', b'{"a":1,"r":"x","done":true}\n', b'{"a":"\\ud800","r":"\\udfff"}\n', b'{"r":1e999}\n', b"\xff", b"\xe2\x80",
    b"data: ", b"\0", b"event: ", b"event: end\n", b"id: 7\n", b"retry: 0\n", b": comment\n", b"x" * 90, b"\xc3\xbc" * 30,
]  # fmt: skip


@given(
    pieces=st.lists(
        st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=8)), max_size=6)
        .map(b"".join),
        max_size=8,
    ),
    format_=st.sampled_from(["sse", "ndjson", "json-seq", "lines", "websocket"]),
    rules=st.sampled_from([
        {}, {"data": "r"}, {"event": "{a}"}, {"id": "a"}, {"done": "done"}, {"when": "a"}, {"template": "<p>{a}</p>"},
        {"data": "{x: r}", "event": "{a}-{r}", "id": "r", "when": "r"},
    ]),
    batches=st.booleans(),
)  # fmt: skip
def test_whatever_comes_is_told_in_events_that_can_be_written_and_read(
    pieces: list[bytes], format_: str, rules: dict[str, Any], batches: bool
) -> None:
    follower = follow(format_, batches=batches, max_size=120, **rules)
    told: list[Update] = []
    for number, piece in enumerate(pieces):
        if number == 4:
            follower.begin()
        told += follower.receive(piece) if not follower.is_done else []
    told += [*([] if follower.is_done else follower.finish()), *follower.flush()]
    kinds = [update.kind for update in told if update.kind in (Kind.FAULT, Kind.RECOVERED)]
    assert kinds == [Kind.FAULT, Kind.RECOVERED] * (len(kinds) // 2) + [Kind.FAULT] * (len(kinds) % 2)
    for update in told:
        assert update.kind is not Kind.EVENT or update.type not in RESERVED_TYPES
        (event,) = EventStreamDecoder().receive(encode_event(Event(update.data, update.type, "e-1")))
        assert event.type == encode_text(update.type).decode()
    assert [update.kind for update in told[:-1]].count(Kind.END) == 0, "nothing is told behind the end"


# Going on after a lost connection


def test_the_cursor_is_the_upstreams_own_id_of_the_last_record_that_had_one() -> None:
    follower = follow("sse")
    assert follower.cursor == ""
    seen = []
    for piece in (b"data: a\n\n", b"id: 7\ndata: b\n\n", b"data: c\n\n", b"id: 8\ndata: half", b"\n\n", b"id: 9\n\n"):
        follower.receive(piece)
        seen.append(follower.cursor)
    assert seen == ["", "7", "7", "7", "8", "9"]


def test_the_cursor_may_be_found_in_records_by_an_expression() -> None:
    follower = follow("ndjson", id="meta.n", data="r", when="!hide")
    seen = []
    for record in (
        {"r": 1}, {"meta": {"n": 7}, "r": 1}, {"meta": {"n": "a-8"}, "r": None}, {"meta": {"n": None}, "r": 1},
        {"meta": {"n": 9}, "r": 1, "hide": True},
    ):  # fmt: skip
        follower.receive(json.dumps(record).encode() + b"\n")
        seen.append(follower.cursor)
    assert seen == ["", "7", "a-8", "a-8", "9"]


def test_an_expression_for_the_id_wins_over_the_events_own_id() -> None:
    follower = follow("sse", id="n")
    follower.receive(b'data: {"n": 7}\n\n')
    assert follower.cursor == "7"


def test_what_was_cut_off_is_forgotten_with_its_connection_and_the_cursor_is_not() -> None:
    follower = follow("sse")
    assert words(follower.receive(b"id: 7\ndata: a\n\nid: 8\nevent: x\ndata: b")) == [":a"]
    follower.begin()
    assert follower.cursor == "7"
    assert words(follower.receive(b"\n\ndata: c\n\n")) == [":c"]
    lines = follow("lines")
    lines.receive(b"half a li")
    lines.begin()
    assert words(lines.receive(b"ne\n")) == [":ne"]


def test_the_record_it_was_asked_to_go_on_behind_is_not_told_twice() -> None:
    follower = follow("sse")
    follower.receive(b"id: 7\ndata: a\n\n")
    follower.begin()
    assert words(follower.receive(b"id: 7\ndata: a\n\nid: 8\ndata: b\n\n")) == [":b"]
    follower.begin()
    assert words(follower.receive(b"id: 9\ndata: c\n\n")) == [":c"], "it goes on as it was asked to"
    records = follow("ndjson", id="n", data="r")
    records.receive(b'{"n":1,"r":"a"}\n')
    records.begin()
    assert words(records.receive(b'{"r":"-"}\n{"n":1,"r":"a"}\n{"n":1,"r":"again"}\n')) == [":-", ":again"]


def test_without_a_lost_connection_nothing_is_taken_for_a_repetition() -> None:
    assert read("sse", b"id: 7\ndata: a\n\nid: 7\ndata: b\n\ndata: c\n\n") == [":a", ":b", ":c"]


def test_an_upstream_that_begins_anew_is_told_whole() -> None:
    follower = follow("sse")
    follower.receive(b"id: 2\ndata: b\n\n")
    follower.begin()
    assert words(follower.receive(b"id: 1\ndata: a\n\nid: 2\ndata: b\n\n")) == [":a", ":b"]


def test_trouble_outlives_a_connection() -> None:
    follower = follow("ndjson")
    follower.receive(b"no\n")
    follower.begin()
    assert words(follower.receive(b"neither\n1\n")) == ["recovered!", ":1"]


def test_what_is_held_outlives_a_connection() -> None:
    follower = follow("lines", batches=True)
    follower.receive(b"a\n")
    follower.begin()
    follower.receive(b"b\n")
    assert words(follower.flush()) == [":a\nb"]


def test_the_time_after_which_an_upstream_wants_to_be_asked_again_is_in_seconds() -> None:
    follower = follow("sse", begun=False)
    assert follower.retry is None
    follower.begin()
    assert follower.retry is None
    follower.receive(b"retry: 1500\n")
    assert follower.retry == 1.5
    follower.receive(b"retry: soon\nretry: -1\n")
    assert follower.retry == 1.5
    follower.receive(b"retry: 0\n")
    assert follower.retry == 0


# The end of an answer


@pytest.mark.parametrize(
    ("format_", "rest", "told"),
    [
        ("lines", b"last", [":last"]),
        ("lines", b"", []),
        ("ndjson", b"17", [":17"]),
        ("ndjson", b'{"a":', ["fault!undecodable"]),
        ("ndjson", b"  ", []),
        ("json-seq", RS + b'{"a":1}', [':{"a":1}']),
        ("json-seq", RS + b"17", ["fault!undecodable"]),
        ("json-seq", RS + b'{"a":', ["fault!undecodable"]),
        ("sse", b"data: a", []),
        ("sse", b"data: a\n", []),
        ("bytes", b"", []),
    ],
)
def test_what_is_left_at_an_end_in_good_order_is_a_record_where_the_format_has_it_so(
    format_: str, rest: bytes, told: list[str]
) -> None:
    follower = follow(format_)
    follower.receive(rest)
    assert words(follower.finish()) == told


def test_an_answer_that_never_began_has_nothing_left() -> None:
    assert follow("lines", begun=False).finish() == []


# Templates


def test_a_template_makes_markup_of_what_data_finds() -> None:
    stream = b'{"id":1,"item":{"name":"<b>\\n","n":1.0}}\n{"item":null}\n'
    assert read("ndjson", stream, data="item", template="<li>{name} {n}{none}</li>", event="row-{id}") == [
        "row-1:<li>&lt;b&gt;&#10; 1.0</li>"
    ]


def test_what_a_template_makes_is_measured_too() -> None:
    assert read("ndjson", b'{"a":"<<<<<<<<<<"}\n', template="{a}", max_size=39) == ["fault!oversize"]
    assert read("ndjson", b'{"a":"<<<<<<<<<<"}\n', template="{a}", max_size=40) == [":" + "&lt;" * 10]


# What is looked at


@pytest.mark.parametrize("format_", ["sse", "websocket"])
def test_records_of_which_nothing_is_asked_are_passed_on_unread(format_: str) -> None:
    record = b"null" if format_ == "websocket" else b"data: null\n\n"
    assert read(format_, record, event="log") == ["log:null"]
    assert read(format_, record, data="a") == []
