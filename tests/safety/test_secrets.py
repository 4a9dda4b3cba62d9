"""What is secret stays so: in the log at its most talkative, in metrics, in what others are told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from ssegate.config.load import parse_config
from tests.safety.harness import Client, GateProcess, Http2Client, ask, get, run
from tests.upstream.scripted import Call, ScriptedUpstream

SECRETS = {
    "authorization": "Secret-authorization-1",
    "cookie": "Secret-cookie-2",
    "set-cookie": "Secret-set-cookie-3",
    "webhook token": "Secret-webhook-token-4",
    "hmac key": "Secret-hmac-key-5",
    "query token": "Secret-query-token-6",
    "upstream bearer": "Secret-upstream-bearer-7",
    "upstream header": "Secret-upstream-header-8",
    "userinfo": "Secret-userinfo-9",
    "proxy authorization": "Secret-proxy-10",
}

CONFIG = f"""
version: 1
server: {{listen: "127.0.0.1:0"}}
admin: {{listen: "127.0.0.1:0"}}
upstreams:
  api:
    url: "{{upstream}}"
    timeout: {{connect: 300ms, read: 300ms}}
    backoff: {{min: 50ms, max: 100ms}}
    headers: {{X-Key: {SECRETS["upstream header"]}}}
    auth: {{bearer: {SECRETS["upstream bearer"]}}}
limits: {{stall: 1s}}
routes:
  - path: /orders/{{id}}/events
    query: {{token: ".*"}}
    poll: {{get: "/orders/{{id}}?token={{query.token}}", every: 50ms, linger: 0s, forward: [authorization, cookie]}}
  - path: /a/{{id}}/events
    webhook:
      at: /hooks/token
      verify: {{token: {SECRETS["webhook token"]}}}
      match: {{id: body.id}}
      then: emit
  - path: /b/{{id}}/events
    webhook:
      at: /hooks/hmac
      verify: {{hmac: {{header: X-Signature, algorithm: sha256, encoding: hex, secret: {SECRETS["hmac key"]}}}}}
      match: {{id: body.id}}
      then: emit
  - path: /{{rest:path}}
    proxy: {{}}
"""


@pytest.fixture(scope="module")
def secretive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GateProcess]:
    gate = GateProcess(CONFIG, tmp_path_factory.mktemp("secretive"))
    yield gate
    gate.stop()


CREDENTIALS = (
    f"Authorization: Bearer {SECRETS['authorization']}",
    f"Cookie: session={SECRETS['cookie']}",
    f"Proxy-Authorization: Basic {SECRETS['proxy authorization']}",
)
QUERY = f"?token={SECRETS['query token']}&user=https://u:{SECRETS['userinfo']}@host/"
BROKEN = [
    b"HTTP/1.1 200 OK\r\nSet-Cookie: a=%b\rb\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: a=%b\0\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 2000 %b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nSet-Cookie: a=%b\r\nContent-Length: 100\r\n\r\ncut",
    b"HTTP/1.1 500 Broken\r\nSet-Cookie: a=%b\r\nContent-Length: 2\r\n\r\nno",
    b"HTTP/1.1 302 Found\r\nLocation: /login?x=%b\r\nContent-Length: 0\r\n\r\n",
    b"%b",
    b"",
]


def post(target: str, body: bytes, *fields: str) -> bytes:
    lines = (
        f"POST {target} HTTP/1.1",
        "Host: gate.test",
        "Connection: close",
        "Content-Type: application/json",
        *fields,
    )
    return "\r\n".join((*lines, f"Content-Length: {len(body)}", "", "")).encode() + body


async def misbehave(call: Call) -> None:
    """Every kind of answer in turn, each with a secret in it."""
    template = BROKEN[call.asked.number % len(BROKEN)]
    await call.send(template % SECRETS["set-cookie"].encode() if b"%b" in template else template)
    call.close()


async def everything(gate: GateProcess) -> list[bytes]:
    """Go through all that can go right and wrong; return what those were told who hold no secret."""
    requests = [
        *[get(f"/proxied{QUERY}", *CREDENTIALS)] * len(BROKEN),
        get(f"/x#{SECRETS['query token']}", *CREDENTIALS),
        get(f"//{SECRETS['userinfo']}@other/", *CREDENTIALS),
        get(f"http://u:{SECRETS['userinfo']}@gate.test/", *CREDENTIALS),
        get("/", f"Authorization: {SECRETS['authorization']}\0"),
        get("/", f"Cookie : {SECRETS['cookie']}"),
        get("/", f"Cookie: {SECRETS['cookie']}", " folded"),
        get("/", *[f"Cookie: {SECRETS['cookie']}"] * 120),
        get(f"/{'a' * 9000}{SECRETS['query token']}", *CREDENTIALS),
        get("/", *CREDENTIALS, host=f"u:{SECRETS['userinfo']}@gate.test"),
        post(f"/hooks/token{QUERY}", b'{"id": 1}', f"Authorization: Bearer {SECRETS['authorization']}"),
        post("/hooks/token", b'{"id": 1}', f"Authorization: Bearer {SECRETS['webhook token']}"),
        post("/hooks/token", b"{broken", f"Authorization: Bearer {SECRETS['webhook token']}"),
        post("/hooks/token", b"{}", f"Authorization: Bearer {SECRETS['webhook token']}"),
        post("/hooks/hmac", b'{"id": 1}', f"X-Signature: {SECRETS['authorization']}"),
        post("/hooks/hmac", b'{"id": 1}', "X-Signature: " + sign(b'{"id": 1}')),
    ]
    told = [(await ask(gate.port, data, method="GET")).body for data in requests]
    for _ in range(6):
        async with await Client.connect(gate.port) as client:
            await client.send(get(f"/orders/1/events{QUERY}", *CREDENTIALS))
            await asyncio.sleep(0.15)
            told.append(await client.reader.read(65536))
    async with await Http2Client.begin(gate.port) as http2:
        for fields in [(), ((b"connection", b"x"),), ((b"x-bad", SECRETS["cookie"].encode() + b"\r\n"),)]:
            secret = ((b"cookie", SECRETS["cookie"].encode()), (b"authorization", SECRETS["authorization"].encode()))
            stream = await http2.request(f"/proxied{QUERY}".encode(), *secret, *fields)
            await http2.outcome(stream)
            told.append(http2.body(stream))
    return told


def sign(body: bytes) -> str:
    return hmac.digest(SECRETS["hmac key"].encode(), body, hashlib.sha256).hex()


def shapes(secret: str) -> list[bytes]:
    """A secret as it is, and in the dress of Basic authentication or of bytes that were printed."""
    return [secret.encode(), base64.b64encode(secret.encode()).rstrip(b"="), secret.encode().hex().encode()]


def test_no_secret_gets_into_log_metrics_or_what_is_told(secretive: GateProcess) -> None:
    async def test() -> None:
        async with ScriptedUpstream(misbehave, port=secretive.upstream_port) as upstream:
            told = await everything(secretive)
            # The scenario has teeth: the secrets did pass through.
            heads = b"".join(asked.head for asked in upstream.requests)
            for name in ("authorization", "cookie", "query token", "upstream header"):
                assert SECRETS[name].encode() in heads, name
        told += await everything(secretive)  # with nobody upstream
        metrics = (await ask(secretive.admin, get("/metrics"))).body
        log = secretive.log().encode()
        assert b"WARNING" in log
        for place, text in (("log", log), ("metrics", metrics), *(("answer", each) for each in told)):
            for name, secret in SECRETS.items():
                for shape in shapes(secret):
                    assert shape not in text, f"{name} in {place}: {text[-2000:]!r}"

    run(test())


def test_no_line_of_the_log_can_be_forged(secretive: GateProcess) -> None:
    async def test() -> None:
        forged = "ERROR ssegate.forged: all is lost"
        tries = [
            forged,
            f"\n{forged}",
            f"\r{forged}",
            f"\x1b[2K{forged}",
            f"%0a{forged}",
            f"\u2028{forged}",
            f"\x0b{forged}",
        ]
        async with ScriptedUpstream(misbehave, port=secretive.upstream_port):
            for text in tries:
                for target in (
                    f"/x/{quote(text)}",
                    f"/orders/{quote(text)}/events",
                    f"/orders/1/events?token={quote(text)}",
                ):
                    await knock(secretive, f"GET {target} HTTP/1.1\r\nHost: gate.test\r\n\r\n")
                await knock(secretive, f"GET /x HTTP/1.1\r\nHost: gate.test\r\nX-A: {text}\r\n\r\n")
                await knock(secretive, f"GET /x HTTP/1.1\r\nHost: {text}\r\n\r\n")
                await knock(secretive, f"GET /x{text} HTTP/1.1\r\nHost: gate.test\r\n\r\n")
                await knock(secretive, f"{text} /x HTTP/1.1\r\nHost: gate.test\r\n\r\n")
                body = json.dumps({"id": text}).encode()
                token = f"Authorization: Bearer {SECRETS['webhook token']}"
                await ask(secretive.port, post("/hooks/token", body, token), method="GET")
        assert "forged" in secretive.log()  # what was asked for is told, in one line
        lines = secretive.log().split("\n")
        assert lines.pop() == ""
        for line in lines:
            assert re.match(r"(DEBUG|INFO|WARNING|ERROR) [a-z][a-z0-9_.]*: ", line), line
            assert not line.startswith("ERROR ssegate.forged"), line
            assert line.isprintable(), line

    run(test())


async def knock(gate: GateProcess, text: str) -> None:
    """Send it, and wait for the first byte of whatever comes back, or the end."""
    async with await Client.connect(gate.port) as client:
        await client.send(text.encode())
        async with asyncio.timeout(5):
            await client.reader.read(1)


def test_the_configuration_does_not_show_its_secrets(tmp_path: Path) -> None:
    config = parse_config(CONFIG.replace("{upstream}", "http://127.0.0.1:1"), source="x", environ={})
    for text in (repr(config), str(config)):
        for name in ("webhook token", "hmac key", "upstream bearer"):
            assert SECRETS[name] not in text, name
