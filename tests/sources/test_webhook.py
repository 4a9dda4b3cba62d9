from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jmespath
import pytest

from ssegate.core.delivery import Delivery, read_messages
from ssegate.core.event import Event as WireEvent
from ssegate.core.event import Update, encode_event
from ssegate.core.headers import Headers, Pair
from ssegate.core.template import Template
from ssegate.errors import RejectedError, UndecodableError
from ssegate.sources.webhook import Selection, WebhookReceiver

JSON = (b"Content-Type", b"application/json")
FORM = (b"Content-Type", b"application/x-www-form-urlencoded")


def search(text: str) -> Callable[[object], object]:
    """An expression as the configuration makes one: what goes wrong in it is an `UndecodableError` without data."""

    def run(document: object) -> object:
        try:
            return jmespath.search(text, document)
        except (jmespath.exceptions.JMESPathError, RecursionError) as error:
            raise UndecodableError(f"expression `{text}` fails") from error

    return run


def receiver(
    match: Mapping[str, str] | None = None,
    *,
    event: str | None = None,
    data: str | None = None,
    when: str | None = None,
    topic_of: Callable[[Mapping[str, str]], str | None] = lambda params: " ".join(("t", *params.values())),
    max_event_size: int = 1000,
) -> WebhookReceiver:
    return WebhookReceiver(
        Selection({name: search(text) for name, text in (match or {}).items()}, search(when) if when else None),
        topic_of=topic_of,
        event=Template(event) if event is not None else None,
        data=search(data) if data is not None else None,
        max_event_size=max_event_size,
        environ={"STAGE": "live"},
    )


def receive(of: WebhookReceiver, body: bytes, *headers: Pair) -> Sequence[Update]:
    """All events of a delivery, as the gate does it once it is proven."""
    messages = read_messages(Delivery(Headers(headers or (JSON,)), body))
    return [update for message in messages for update in of.receive(message)]


def received(of: WebhookReceiver, body: Any, *headers: Pair) -> Update:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    (update,) = receive(of, raw, *headers)
    return update


def rejection(of: WebhookReceiver, body: bytes, *headers: Pair) -> RejectedError:
    with pytest.raises(RejectedError) as caught:
        receive(of, body, *headers)
    return caught.value


# Which topic


def test_parameters_come_out_of_the_delivery() -> None:
    of = receiver({"owner": "body.repo.owner", "id": "body.id", "kind": 'headers."x-kind"'})
    update = received(of, {"repo": {"owner": "me"}, "id": 17}, JSON, (b"X-Kind", b"push"))
    assert update.topic == "t me 17 push"
    assert (update.type, update.state) == ("", None)


@pytest.mark.parametrize("value", [None, "", True, 1.5, [], {}, ["x"]])
def test_a_delivery_without_a_parameter_is_taken_and_told_which(value: object) -> None:
    error = rejection(receiver({"id": "body.id"}), json.dumps({"id": value}).encode())
    assert (error.status, str(error)) == (202, "no event: the delivery has no `id`")


def test_a_delivery_for_a_topic_no_viewer_could_ask_for_is_taken_and_told_so() -> None:
    error = rejection(
        receiver({"id": "body.id"}, topic_of=lambda params: None), json.dumps({"id": "a/b\n" * 100}).encode()
    )
    assert error.status == 202
    assert "id = 'a/b\\n" in str(error)
    assert len(str(error)) < 200
    assert "\n" not in str(error)


def test_an_expression_that_cannot_take_the_delivery_makes_it_unreadable() -> None:
    error = rejection(receiver({"id": "sum(body.id)"}), b'{"id": "secret"}')
    assert error.status == 400
    assert "secret" not in str(error)
    assert rejection(receiver(data="length(body.id)"), b'{"id": 5}').status == 400


# What the event is


@pytest.mark.parametrize("body", [b'{"b": 1,\n "a": 2}', b"", b"plain \xe2\x80\xa8 text", b"\0"])
def test_the_event_is_the_body_as_it_came(body: bytes) -> None:
    assert received(receiver(), body, (b"Content-Type", b"text/plain")).data == body.decode()


def test_a_json_body_is_not_written_anew() -> None:
    assert (
        received(receiver(), b'{"b": 1.0,\n "a": 1e999, "b": 2}'.replace(b"1e999", b"1e9")).data
        == '{"b": 1.0,\n "a": 1e9, "b": 2}'
    )


def test_a_body_that_is_no_text_is_base64() -> None:
    assert received(receiver(), b"\xff\xfe\x00", (b"Content-Type", b"application/octet-stream")).data == "//4A"


@pytest.mark.parametrize(
    ("data", "event"),
    [
        ("body.a", "text"), ("body.b", '{"c":[1,1.0,true,null]}'), ("{x: body.a, y: headers.h}", '{"x":"text","y":"v"}'),
        ("`0`", "0"), ("`false`", "false"), ("`[]`", "[]"), ("`\"\"`", ""), ("body.u", "é\u2028"), ("params", "{}"), ("query", "{}"),
    ],
)  # fmt: skip
def test_a_text_is_sent_as_it_is_and_anything_else_as_json(data: str, event: str) -> None:
    body = {"a": "text", "b": {"c": [1, 1.0, True, None]}, "u": "é\u2028"}
    assert received(receiver(data=data), body, JSON, (b"H", b"v")).data == event


def test_null_is_no_event() -> None:
    assert receive(receiver(data="body.nothing"), b"{}") == []


@pytest.mark.parametrize(
    ("when", "counts"),
    [
        ("body.a == 'x'", True), ("body.a == 'y'", False), ("body.none", False), ("body.zero", True), ("body.empty", False),
        ("body.list", False), ("headers.h == 'v'", True), ("params.id == '17'", True), ("params.id == '18'", False),
    ],
)  # fmt: skip
def test_what_when_does_not_find_true_is_no_event(when: str, counts: bool) -> None:
    body = b'{"id": 17, "a": "x", "zero": 0, "empty": "", "list": []}'
    assert len(receive(receiver({"id": "body.id"}, when=when), body, JSON, (b"H", b"v"))) == counts


def test_what_when_leaves_out_may_lack_a_parameter() -> None:
    assert receive(receiver({"id": "body.id"}, when="body.kind == 'order'"), b'{"kind": "ping"}') == []


def test_an_event_may_be_named_by_a_parameter_or_the_environment() -> None:
    assert received(receiver({"id": "body.id"}, event="{id}-{env.STAGE}"), {"id": 17}).type == "17-live"


def test_an_event_may_be_named_by_the_delivery() -> None:
    of = receiver(event="{headers.x-kind}-{body.a.b}-{body.n}-{body.yes}")
    assert received(of, {"a": {"b": "x"}, "n": 1.5, "yes": True}, JSON, (b"X-Kind", b"push")).type == "push-x-1.5-true"


@pytest.mark.parametrize("name", ["{headers.none}", "{body.list}", "{body.list.x}", "{body}"])
def test_what_is_absent_or_no_plain_value_names_nothing(name: str) -> None:
    assert received(receiver(event=name), {"list": [1]}).type == ""


@pytest.mark.parametrize("name", ["reset", "fault", "recovered", "end", "error", "a\nb", "a\rb", "a\0b"])
def test_a_delivery_cannot_take_the_gates_own_names_or_forge_a_field(name: str) -> None:
    error = rejection(receiver(event="{body.name}"), json.dumps({"name": name}).encode())
    assert (error.status, str(error)) == (202, f"no event: {name!r} cannot be an event's name")


def test_a_long_name_is_not_repeated_in_full() -> None:
    error = rejection(
        receiver(event="{body.name}", max_event_size=10**6), json.dumps({"name": "\n" + "x" * 10_000}).encode()
    )
    assert len(str(error)) < 200


def test_half_a_surrogate_pair_lives_as_a_replacement_character() -> None:
    update = received(receiver({"id": "body.id"}, data="body", event="{body.t}"), b'{"id":"\\ud800","t":"\\udfff"}')
    assert encode_event(WireEvent(update.data, update.type)) == (
        'event: \ufffd\ndata: {"id":"\ufffd","t":"\ufffd"}\n\n'.encode()
    )


@pytest.mark.parametrize("size", [24, 25])
def test_an_event_is_measured_in_bytes_with_its_name(size: int) -> None:
    of = receiver(data="body.d", event="{body.e}", max_event_size=size)
    body = json.dumps({"d": "é" * 10, "e": "…" * 1 + "xx"}).encode()
    if size == 25:
        assert received(of, body).data == "é" * 10
        return
    error = rejection(of, body)
    assert (error.status, str(error)) == (413, "the event is 25 bytes; limits.event_size is 24")


def test_what_an_expression_makes_of_a_delivery_must_be_json_too() -> None:
    error = rejection(receiver(data="[to_number(body.secret)]"), b'{"secret": "1e999"}')
    assert (error.status, str(error)) == (400, "what `emit.data` gives cannot be written as JSON")


# What is refused


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip", b"x"])
def test_a_compressed_body_is_refused(coding: bytes) -> None:
    assert rejection(receiver(), b"{}", JSON, (b"Content-Encoding", coding)).status == 415


@pytest.mark.parametrize("coding", [b"", b"identity", b" Identity "])
def test_a_body_that_says_it_is_not_compressed_passes(coding: bytes) -> None:
    assert received(receiver(), b"{}", JSON, (b"Content-Encoding", coding)).data == "{}"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"{'a': 1}", b"NaN", b'{"a": Infinity}', b"[-Infinity]", b'{"a": 1e999}', b"\xff", b'{"a":"\xed\xa0\x80"}',
        b"1" * 5000, b"[" * 100_000, b'{"a":' * 100_000, b"[1,]", b'"\n"', b'{"secret": 1}}', "{}".encode("utf-16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "content_type", [b"application/json", b"Application/JSON; charset=utf-8", b"application/vnd.x+json"]
)
def test_what_is_not_json_is_400_and_not_repeated(body: bytes, content_type: bytes) -> None:
    error = rejection(receiver(), body, (b"content-type", content_type))
    assert error.status == 400
    assert "secret" not in str(error)
    assert len(str(error)) < 200


def test_however_deeply_a_body_is_nested_it_is_an_event_or_400() -> None:
    of = receiver(data="{a: body}", max_event_size=10**6)
    for depth in range(100, 1100, 7):
        try:
            assert received(of, b"[" * depth + b"]" * depth).data.endswith("]}")
        except RejectedError as error:
            assert error.status == 400  # noqa: PT017  # both outcomes are right, another error is not


def test_of_a_name_that_comes_twice_the_last_counts() -> None:
    assert received(receiver(data="body.a"), b'{"a": "1", "a": "2"}').data == "2"
    assert received(receiver(data="headers.h"), b"{}", JSON, (b"H", b"1"), (b"h", b"2")).data == "2"


def test_a_form_is_an_object() -> None:
    of = receiver({"id": "body.id"}, data="body")
    update = received(of, b"id=17&tag=a&tag=b&empty=&sp=a+b%20c", FORM)
    assert update.topic == "t 17"
    assert json.loads(update.data) == {"id": "17", "tag": ["a", "b"], "empty": "", "sp": "a b c"}


@pytest.mark.parametrize("body", [b"\xff=1", b"&".join([b"a=1"] * 2000)])
def test_what_is_no_form_is_400(body: bytes) -> None:
    assert rejection(receiver(), body, FORM).status == 400
