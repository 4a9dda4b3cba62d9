"""Deliveries that are too large, never end, or are made to hurt whoever reads them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook as StandardWebhook

from tests.safety.harness import Client, GateProcess, Http2Client, ask, ask_closed, get, run

LIMIT = 64 * 1024


def delivery(body: bytes, *fields: str) -> bytes:
    lines = ("POST /hooks/tickets HTTP/1.1", "Host: gate.test", "Connection: close", *fields)
    kind = (
        () if any(field.lower().startswith("content-type") for field in fields) else ("Content-Type: application/json",)
    )
    return "\r\n".join((*lines, *kind, f"Content-Length: {len(body)}", "", "")).encode() + body


HOSTILE = {
    "nested deeply": (400, b'{"id":' + b"[" * 10_000 + b"]" * 10_000 + b"}"),
    "objects nested deeply": (400, b'{"id":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}"),
    "NaN": (400, b'{"id": NaN}'),
    "Infinity": (400, b'{"id": "a", "text": -Infinity}'),
    "a number of many digits": (400, b'{"id": ' + b"9" * 50_000 + b"}"),
    "a float too large": (400, b'{"id": 1e400}'),
    "cut": (400, b'{"id": "a'),
    "nothing": (400, b""),
    "no UTF-8": (400, b'{"id": "\xff\xfe"}'),
    "UTF-16": (400, '{"id": "a"}'.encode("utf-16")),
    "a lone surrogate as parameter": (202, b'{"id": "\\ud800", "type": "a"}'),
    "a list": (202, b"[1, 2]"),
    "null": (202, b"null"),
    "a path as parameter": (202, b'{"id": "../../admin", "type": "a"}'),
    "a template as parameter": (200, b'{"id": "{id}", "type": "a", "text": "x"}'),
    "an object as parameter": (202, b'{"id": {"a": 1}, "type": "a"}'),
    "a boolean as parameter": (202, b'{"id": true, "type": "a"}'),
    "duplicate keys": (200, b'{"id": "first", "id": "last", "type": "a", "text": "x"}'),
    "lone surrogates in the text": (200, b'{"id": "s", "type": "a", "text": "\\ud800 \\udc00"}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_the_gate_survives_a_hostile_delivery(gate: GateProcess, name: str) -> None:
    status, body = HOSTILE[name]

    async def test() -> None:
        async with gate.leaves_nothing():
            assert (await ask_closed(gate.port, delivery(body))).status == status

    run(test())


def test_of_duplicate_keys_the_last_one_counts(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            await client.send(b"GET /tickets/last/events HTTP/1.0\r\n\r\n")
            await client.read_until(b"\n:\n")
            await ask(gate.port, delivery(b'{"id": "first", "id": "last", "type": "a", "text": "kept"}'))
            assert b"data: kept\n" in await client.read_until(b"\n\n")

    run(test())


def test_lone_surrogates_become_replacement_characters(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            await client.send(b"GET /tickets/lone/events HTTP/1.0\r\n\r\n")
            await client.read_until(b"\n:\n")
            await ask(gate.port, delivery(b'{"id": "lone", "type": "a\\udfff", "text": "\\ud83d\\ude00 \\ud800"}'))
            block = await client.read_until(b"\n\n")
            assert "data: \U0001f600 \ufffd\n".encode() in block
            assert "event: a\ufffd\n".encode() in block

    run(test())


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_delivery_that_is_too_large_is_413_as_soon_as_that_is_known(gate: GateProcess, is_announced: bool) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            memory = gate.memory()
            head = b"POST /hooks/tickets HTTP/1.1\r\nHost: gate.test\r\n"
            if is_announced:
                await client.send(head + b"Content-Length: 10000000000\r\n\r\n")
            else:
                await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n")
                await client.send(b"8000\r\n" + b"a" * 0x8000 + b"\r\n")
                await client.send((b"8000\r\n" + b"a" * 0x8000 + b"\r\n") * 100)
            assert (await client.read_response()).status == 413
            assert await client.read_to_end() == b""
            assert gate.memory() - memory < 2 * 2**20

    run(test())


def test_a_delivery_over_http2_that_is_too_large_is_413(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Http2Client.begin(gate.port) as client:
            announced = await client.request(
                b"/hooks/tickets", (b"content-length", b"70000"), method=b"POST", end=False
            )
            assert await client.outcome(announced) == 413

    run(test())


def test_a_delivery_that_is_never_finished_is_408(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            body = delivery(b'{"id": 1, "text": "whole"}')
            assert (await ask_closed(gate.port, body[:-5])).status == 408
            async with await Http2Client.begin(gate.port) as client:
                stream = await client.request(b"/hooks/tickets", method=b"POST", end=False)
                await client.send_data(stream, b'{"id"')
                assert await client.outcome(stream) == 408

    run(test())


def test_a_sender_that_leaves_in_the_middle_leaves_nothing(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            for cut in range(100, 220, 10):
                async with await Client.connect(gate.port) as client:
                    await client.send(delivery(b'{"id": 1, "text": "whole"}')[:cut])

    run(test())


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "GZIP, gzip"])
def test_a_compressed_delivery_is_refused_without_being_inflated(gate: GateProcess, coding: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            memory = gate.memory()
            bomb = gzip.compress(b"0" * 50_000_000)
            assert len(bomb) < LIMIT
            response = await ask_closed(gate.port, delivery(bomb, f"Content-Encoding: {coding}"))
            assert response.status == 415
            assert gate.memory() - memory < 2 * 2**20

    run(test())


def test_a_form_of_too_many_fields_is_refused(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            kind = "Content-Type: application/x-www-form-urlencoded"
            assert (await ask_closed(gate.port, delivery(b"a=1&" * 5000, kind))).status == 400

    run(test())


def test_many_hostile_deliveries_at_once_do_not_stop_the_gate(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            bodies = [body for _, body in HOSTILE.values()] * 5
            statuses = await asyncio.gather(*(ask(gate.port, delivery(body)) for body in bodies))
            assert [response.status for response in statuses] == [status for status, _ in HOSTILE.values()] * 5
            assert (await ask(gate.port, get("/_ssegate/nothing"))).status == 404
            assert json.loads((await ask(gate.port, get("/_ssegate/nothing"))).body)["status"] == 404

    run(test())


# Signed


SIGNER = StandardWebhook("whsec_c2VjcmV0LW9mLXRlc3Rz")


def signed(
    body: bytes, *fields: str, age: float = 0.0, id_: str = "", over: bytes | None = None, change: str = ""
) -> bytes:
    """A delivery with a good signature; `over` other bytes, or with a `change` to it where a test wants that."""
    moment = datetime.fromtimestamp(int(time.time() - age), UTC)
    id_ = id_ or f"msg_{base64.b32encode(body[:20]).decode()}_{time.monotonic_ns()}"
    # Signed as bytes: the library takes text, and latin-1 is what leaves each byte as it is only for ASCII.
    signature = SIGNER.sign(id_, moment, (body if over is None else over).decode("ascii"))
    return delivery(
        body,
        f"webhook-id: {id_}",
        f"webhook-timestamp: {int(moment.timestamp())}",
        f"webhook-signature: {CHANGES[change](signature)}" if change != "missing" else "X-Nothing: x",
        *fields,
    ).replace(b"/hooks/tickets", b"/hooks/signed")


CHANGES = {
    "": lambda signature: signature,
    "missing": lambda signature: "",
    "empty": lambda signature: "",
    "truncated": lambda signature: signature[:-4],
    "without version": lambda signature: signature[3:],
    "another version": lambda signature: "v2," + signature[3:],
    "another one": lambda signature: "v1," + base64.b64encode(b"x" * 32).decode(),
    "hex": lambda signature: "v1," + base64.b64decode(signature[3:]).hex(),
    "a thousand of them": lambda signature: " ".join(["v1," + "A" * 24] * 900),
}


@pytest.mark.parametrize("change", [name for name in CHANGES if name])
def test_a_signature_that_is_not_one_is_401_and_says_nothing(gate: GateProcess, change: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            response = await ask_closed(gate.port, signed(b"{}", change=change))
            assert response.status == 401
            assert b"signature" not in response.body

    run(test())


@pytest.mark.parametrize(("age", "status"), [(0, 200), (250, 200), (-250, 200), (400, 401), (-400, 401), (10**9, 401)])
def test_an_old_or_a_future_signature_is_401(gate: GateProcess, age: float, status: int) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            assert (await ask_closed(gate.port, signed(b"{}", age=age))).status == status

    run(test())


def test_the_right_signature_over_other_bytes_is_401(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            for body in (b'{"a": 2}', b'{"a": 1} ', b"", b'{"a":1}'):
                assert (await ask_closed(gate.port, signed(body, over=b'{"a": 1}'))).status == 401

    run(test())


def test_a_replay_is_no_second_event(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            once = signed(b'{"type": "a"}')
            events = await gate.metric("ssegate_events_total")
            for _ in range(5):
                assert (await ask_closed(gate.port, once)).status == 200
            assert await gate.metric("ssegate_events_total") == events + 1

    run(test())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
        (b'{"type": NaN}', 400),
        (b'{"type": "a"', 400),
        (b'{"type": "a\\nid: forged"}', 202),
        (b'{"type": "a\\u0000"}', 202),
        (b'{"type": "end"}', 202),
        (b'{"type": "\\ud800"}', 200),
    ],
)
def test_who_signs_it_does_not_make_it_harmless(gate: GateProcess, body: bytes, status: int) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            assert (await ask_closed(gate.port, signed(body))).status == status

    run(test())


def test_a_signed_body_of_100_megabytes_is_413_and_costs_nothing(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Client.connect(gate.port) as client:
            memory = gate.memory()
            await client.send(signed(b"{}").replace(b"Content-Length: 2", b"Content-Length: 100000000"))
            assert (await client.read_response()).status == 413
            assert gate.memory() - memory < 2 * 2**20

    run(test())


def test_an_id_that_carries_line_ends_or_is_very_long_forges_and_costs_nothing(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            memory = gate.memory()
            for number in range(600):
                id_ = f"{number}" + "x" * 20_000
                assert (await ask_closed(gate.port, signed(b"{}", id_=id_))).status == 200
            # The diary keeps 8 MiB, and what has been taken is known by a digest.
            assert gate.memory() - memory < 11 * 2**20
            entries = (await ask(gate.admin, get("/webhooks"))).body
            assert len(entries) < 200 * 1000, "cut, too, where it is shown"

    run(test())


CLOUD = {
    "a line end as type": (202, {"type": "a\nid: forged"}),
    "a reserved type": (202, {"type": "reset"}),
    "a line end as id": (200, {"id": "1\nevent: end"}),
    "no type": (400, {"type": None}),
    "an object as source": (400, {"source": {}}),
    "base64 that is none": (400, {"data_base64": "?"}),
    "base64 that is no JSON": (400, {"data_base64": "e30=e30=", "datacontenttype": "application/json"}),
    "lone surrogates": (200, {"data": {"\ud800": "\udfff"}}),
    "a name that is long": (200, {"x" * 10_000: "y" * 10_000}),
}


@pytest.mark.parametrize("name", CLOUD)
def test_a_hostile_cloudevent_is_one_event_or_none(gate: GateProcess, name: str) -> None:
    status, change = CLOUD[name]
    event = {"specversion": "1.0", "id": name, "source": "/s", "type": "t", "data": 1} | change

    async def test() -> None:
        async with gate.leaves_nothing():
            fields = ("Authorization: Bearer sesame", "Content-Type: application/cloudevents+json")
            sent = delivery(json.dumps(event).encode(), *fields).replace(b"/hooks/tickets", b"/hooks/cloud")
            assert (await ask_closed(gate.port, sent)).status == status

    run(test())


def test_a_batch_of_very_many_events_is_bounded_by_its_size(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            one = {"specversion": "1.0", "source": "/s", "type": "t", "data": 1}
            batch = json.dumps([one | {"id": f"many-{n}"} for n in range(700)]).encode()
            assert len(batch) < LIMIT
            fields = ("Authorization: Bearer sesame", "Content-Type: application/cloudevents-batch+json")
            sent = delivery(batch, *fields).replace(b"/hooks/tickets", b"/hooks/cloud")
            response = await ask_closed(gate.port, sent)
            assert (response.status, response.get("ssegate-events")) == (200, "700")

    run(test())
