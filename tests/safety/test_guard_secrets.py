"""What a viewer shows, and what guards are configured with, is seen by nobody else: no log, figure, denial, answer or command tells it."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from ssegate.cli import main
from ssegate.config.load import parse_config
from ssegate.errors import ConfigError
from tests.e2e.gate import Edge, RunningGate, make_config, running_gate
from tests.guards import (
    GARBAGE,
    JwksServer,
    WhoAmI,
    closes,
    cuts,
    cuts_in_the_head,
    knows,
    nameless,
    redirects,
    refuses,
    replies,
    resets,
    sends,
)
from tests.ports import free_port
from tests.safety.harness import Client, Http2Client, Response, get, run
from tests.tokens import AUDIENCE, ISSUER, Issuer, base64url
from tests.upstream.scripted import Call, ScriptedUpstream, answer

EDGE = Edge("native", "1.1")

SECRETS = {
    "authorization": "Secret-authorization-1",
    "cookie": "Secret-cookie-2",
    "another cookie": "Secret-another-cookie-3",
    "an unknown key": "Secret-unknown-key-4",
    "a known key": "Secret-known-key-5",
    "a key of before": "Secret-former-key-6",
    "a claim": "Secret-claim-7",
    "a header of a token": "Secret-kid-8",
    "a guard's cookie": "Secret-set-cookie-9",
    "a guard's claim": "Secret-guards-claim-10",
    "a guard's URL": "Secret-guards-query-11",
    "a guard's redirect": "Secret-redirect-12",
    "a guard's own trouble": "Secret-trouble-13",
    "the issuer's URL": "Secret-jwks-query-14",
    "the issuer's answer": "Secret-jwks-body-15",
    "a shared secret": "Secret-shared-0123456789abcdef0123456789abcdef",
    "a token in the query": "Secret-query-17",
    "a basic password": "Secret-basic-18",
    "an unknown ticket": "sst_Secret-ticket-19-aaaaaaaaaaaaaaaaaa",
    "a token's cookie": "Secret-jwt-cookie-20",
    "an upstream's bearer": "Secret-upstream-21",
    "another header": "Secret-other-header-22",
}

JWT_COOKIE, REDIRECT = SECRETS["a token's cookie"], SECRETS["a guard's redirect"]

RSA = Issuer("RS256")
STRANGER = Issuer("RS256", key="another")

CONFIG = """
auth:
  session:
    forward:
      url: "{who}?key={guard_key}"
      send: [cookie, authorization]
      identity: x-user-id
      claims: json
      cache: 100ms
      recheck: 150ms
  user:
    jwt:
      issuer: "{issuer}"
      audience: {audience}
      keys: "{jwks}?key={jwks_key}"
      from: [header, "cookie:jwt", "header:x-token", ticket]
      require: "contains(scope, 'read')"
  shared:
    jwt: {{issuer: "{issuer}", audience: {audience}, keys: {{secret: "{shared}"}}}}
  partner:
    keys: {{header: x-api-key, values: {{acme: ["{key}", "{former}"]}}}}
upstreams:
  api: {{url: "{api}", headers: {{X-User: "{{identity}}"}}, auth: {{bearer: {bearer}}}, backoff: {{min: 20ms, max: 50ms}}}}
routes:
  - {{path: /by/session, auth: session, poll: {{get: "/of/{{identity}}?pet={{claims.pet}}", every: 40ms, linger: 0s}}}}
  - {{path: /by/user, auth: user, poll: {{get: "/of/{{identity}}?pet={{claims.pet}}", every: 40ms, linger: 0s}}}}
  - {{path: /by/shared, auth: shared, poll: {{get: "/of/{{claims.pet}}", every: 40ms, linger: 0s}}}}
  - {{path: /by/partner, auth: partner, poll: {{get: /of/all, every: 40ms, linger: 0s, forward: [x-api-key]}}}}
  - {{path: /by/any, auth: [partner, user, shared, session], webhook: {{at: /hooks, verify: none, match: {{identity: body.to}}}}}}
  - {{path: "/for/{{id}}", auth: [user, session], allow: "params.id == identity && headers.cookie != claims.pet", webhook: {{at: /hooks/for, verify: none, match: {{id: body.to}}}}}}
  - {{path: /own, auth: [session, user], methods: [POST], stream: {{post: /own, format: ndjson, forward: [cookie]}}}}
  - {{path: /live, topics: [/by/session, /by/user, /by/any, "/for/{{id}}"]}}
  - {{path: "/proxied/{{rest:path}}", auth: [session, user], allow: "identity != 'ada'", proxy: {{}}}}
  - {{path: "/{{rest:path}}", proxy: {{}}}}
"""


class Place:
    """A gate with all guards, and who it asks."""

    def __init__(self, gate: RunningGate, who: WhoAmI, keys: JwksServer, text: str) -> None:
        self.gate, self.who, self.keys, self.text = gate, who, keys, text
        self.told: list[Response] = []
        """What strangers were answered."""
        self.tickets: list[str] = []


def configuration(api: str, who: str, jwks: str, *, former: str = SECRETS["a key of before"]) -> str:
    return CONFIG.format(
        api=api,
        who=who,
        jwks=jwks,
        former=former,
        issuer=ISSUER,
        audience=AUDIENCE,
        guard_key=SECRETS["a guard's URL"],
        jwks_key=SECRETS["the issuer's URL"],
        shared=SECRETS["a shared secret"],
        key=SECRETS["a known key"],
        bearer=SECRETS["an upstream's bearer"],
    )


class Keys(JwksServer):
    """Takes the query that its URL has."""

    async def _answer(self, call: Call) -> None:
        await call.send(self._make(call.asked))
        if self._ends:
            call.close()


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    async def tells(call: Call) -> None:
        await call.read_body()
        await call.send(answer(b'{"n": 1}\n', (b"Content-Type", b"application/x-ndjson")))

    async with ScriptedUpstream(tells) as api, WhoAmI({SECRETS["cookie"]: "ada"}) as who, Keys(RSA) as keys:
        who.claims["ada"] = {"pet": SECRETS["a guard's claim"]}
        who.headers["ada"] = [(b"Set-Cookie", b"sid=" + SECRETS["a guard's cookie"].encode())]
        text = configuration(api.url, who.url, keys.url)
        async with running_gate(EDGE, text, admin=True) as gate:
            yield Place(gate, who, keys, text)


def token(issuer: Issuer = RSA, **claims: object) -> str:
    hour = int(time.time()) + 3600  # some are made long before they are shown
    return issuer.token(**{"sub": "ada", "pet": SECRETS["a claim"], "scope": "read", "exp": hour, **claims})


def bearer(text: str) -> str:
    return f"Authorization: Bearer {text}"


def strange_credentials() -> Iterator[tuple[str, ...]]:
    """Headers of those who are nobody's, each with something secret in it."""
    yield (bearer(SECRETS["authorization"]),)
    yield (f"Authorization: Basic {base64.b64encode(b'u:' + SECRETS['a basic password'].encode()).decode()}",)
    yield (f"Cookie: session={SECRETS['another cookie']}; jwt={JWT_COOKIE}",)
    yield (f"X-Api-Key: {SECRETS['an unknown key']}",)
    yield (f"X-Api-Key: {SECRETS['a known key']}x",)
    yield (f"X-Token: {SECRETS['another header']}",)
    for made in strange_tokens():
        yield (bearer(made),)
        yield (f"Cookie: jwt={made}",)


def strange_tokens() -> Iterator[str]:
    """Tokens that are not good, for every reason, each with something secret in it."""
    yield token(STRANGER)
    yield token(exp=1)
    yield token(nbf=2**40)
    yield token(aud="another")
    yield token(iss="another")
    yield token(exp=None)
    yield token(exp=SECRETS["a claim"])
    yield token(iat=SECRETS["a claim"])
    yield token(scope="write")
    yield token(sub=None)
    yield token(sub={"is": SECRETS["a claim"]})
    yield token(pad="x" * 20_000)
    yield RSA.token({"kid": SECRETS["a header of a token"]}, pet=SECRETS["a claim"])
    yield RSA.token({"jku": f"https://x/{SECRETS['a header of a token']}"}, pet=SECRETS["a claim"], exp=1)
    yield RSA.sign({"alg": "RS256", "kid": "k1"}, SECRETS["a claim"].encode())
    yield RSA.sign(
        {"alg": "RS256", "kid": "k1", "crit": ["x"], "x": SECRETS["a header of a token"]}, {"pet": SECRETS["a claim"]}
    )
    yield RSA.sign({"alg": "none"}, {"pet": SECRETS["a claim"]}).rpartition(".")[0] + "."
    yield token()[:-5]
    yield token() + ".x"
    yield base64url(SECRETS["a claim"].encode()).decode() + ".x.y"


PATHS = (
    "/by/session",
    "/by/user",
    "/by/shared",
    "/by/partner",
    "/by/any",
    "/for/ada",
    "/for/grace",
    "/live?topic=/by/any&topic=/for/ada",
    "/proxied/x",
)


async def ask(it: Place, data: bytes) -> Response:
    """One request, whose answer is kept; of a stream only how it begins."""
    async with await Client.connect(it.gate.port) as client:
        await client.send(data)
        head = await client.read_until(b"\r\n\r\n")
        if b"text/event-stream" in head:
            body = await client.read_until(b"\n")
        else:
            async with asyncio.timeout(5):
                body = await client.reader.read(65536) if b"content-length: 0" not in head else b""
        status = int(head.split()[1])
        return Response(status, [(b"head", head)], body, True)


def post(target: str, body: bytes, *headers: str) -> bytes:
    lines = (
        f"POST {target} HTTP/1.1",
        "Host: gate.test",
        "Connection: close",
        *headers,
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*lines, "", "")).encode() + body


async def strangers(it: Place) -> None:
    """Everybody who is nobody's comes everywhere, in every way."""
    wrong = SECRETS["a token in the query"]
    for path in PATHS:
        mark = "&" if "?" in path else "?"
        for headers in strange_credentials():
            it.told.append(await ask(it, get(path, *headers)))
        for query in (
            f"access_token={wrong}",
            f"ticket={SECRETS['an unknown ticket']}",
            f"ticket={wrong}&jwt={wrong}",
            f"token={quote(token())}",
        ):
            it.told.append(await ask(it, get(f"{path}{mark}{query}")))
        it.told.append(await ask(it, get(path, "Accept: application/json", bearer(SECRETS["authorization"]))))
        it.told.append(await ask(it, get(path, "Accept: x/y", bearer(SECRETS["authorization"]))))
    for headers in strange_credentials():
        for path in ("/by/any", "/by/user", "/live", "/nowhere", "/by/user?ticket=" + wrong):
            body = json.dumps({"path": path, "key": wrong}).encode()
            it.told.append(await ask(it, post("/_ssegate/ticket", body, *headers)))
        it.told.append(await ask(it, post("/own", b"{}", *headers)))
    for asked in (f'{{"path": "{wrong}"}}', f'{{"path": {wrong}}}', wrong, f'{{"{wrong}": 1, "{wrong}": 2}}'):
        it.told.append(await ask(it, post("/_ssegate/ticket", asked.encode())))
        await it.gate.admin.ask("POST", "/revoke", body=asked.replace("path", "who").encode())
    async with await Http2Client.begin(it.gate.port) as http2:
        for name, secret in (
            (b"authorization", "authorization"),
            (b"cookie", "another cookie"),
            (b"x-api-key", "an unknown key"),
        ):
            stream = await http2.request(b"/by/any", (name, SECRETS[secret].encode()))
            await http2.outcome(stream)
            it.told.append(Response(http2.status(stream), [], http2.body(stream), True))


KNOWN: dict[str, tuple[str, ...]] = {
    "session": (f"Cookie: session={SECRETS['cookie']}",),
    "user": (bearer(token()),),
    "partner": (f"X-Api-Key: {SECRETS['a known key']}",),
    "former": (f"X-Api-Key: {SECRETS['a key of before']}",),
}


async def friends(it: Place) -> None:
    """Those who are known come, stay a while, buy tickets and come back with them, and are put out."""
    for path in PATHS:
        for headers in KNOWN.values():
            await ask(it, get(path, *headers))
    for path in ("/by/any", "/by/session", "/live", "/for/ada"):
        for headers in KNOWN.values():
            bought = await ask(it, post("/_ssegate/ticket", json.dumps({"path": path}).encode(), *headers))
            if bought.status != 200:
                continue
            ticket = json.loads(bought.body)["ticket"]
            it.tickets.append(ticket)
            mark = "&topic=/by/any" if path == "/live" else ""
            for target in (
                f"{path}?ticket={ticket}{mark}",
                f"{path}?ticket={ticket}{mark}",
                f"/nowhere?ticket={ticket}",
                f"/by/user?ticket={ticket}",
            ):
                it.told.append(await ask(it, get(target)))
    await ask(it, post("/own", b"{}", *KNOWN["session"]))


def troubles(it: Place) -> Iterator[None]:
    """All that guards and issuers may do wrong, one after the other, each with something secret in it."""
    trouble, cookie = (
        SECRETS["a guard's own trouble"].encode(),
        (b"Set-Cookie", b"a=" + SECRETS["a guard's cookie"].encode()),
    )
    for plan in (
        refuses(500, cookie, body=trouble),
        refuses(401, cookie, (b"WWW-Authenticate", b"Bearer")),
        refuses(403, cookie),
        redirects(f"/login?next={REDIRECT}"),
        nameless({"pet": SECRETS["a guard's claim"]}),
        replies(trouble, (b"X-User-Id", b"ada"), cookie),
        replies(b'{"pet": "' + SECRETS["a guard's claim"].encode(), (b"X-User-Id", b"ada")),
        knows("ada", (b"X-User-Id", trouble)),
        knows(b"ada\x01" + trouble),
        sends(b"HTTP/1.1 200 OK\r\nX-User-Id: ada\r" + trouble + b"\r\nContent-Length: 2\r\n\r\n{}"),
        sends(b"HTTP/1.1 2000 " + trouble + b"\r\n\r\n"),
        sends(trouble),
        cuts,
        cuts_in_the_head,
        closes,
        resets,
    ):
        it.who.usually(plan)
        yield
    secret = SECRETS["the issuer's answer"].encode()
    for body in (
        secret,
        b'{"keys": "%b"}' % secret,
        b'{"keys": [{"kty": "%b"}]}' % secret,
        b'{"keys": [{"kty": "oct", "k": "%b"}]}' % secret,
        *GARBAGE.values(),
    ):
        it.keys.serve(body)
        yield
    it.keys.serve(secret, (b"Location", b"https://elsewhere.example/" + secret), status=302)
    yield
    it.keys.serve_raw(b"HTTP/1.1 200 OK\r\nX: a\r" + secret + b"\r\n\r\n")
    yield


def shapes(secret: str) -> list[str]:
    """A secret as it is, as printed bytes, and in base64 wherever it may begin: as it stands in a token or in Basic."""
    raw = secret.encode()
    coded = [base64.urlsafe_b64encode(b"x" * shift + raw).decode()[4 if shift else 0 : -4] for shift in range(3)]
    return [secret, raw.hex(), quote(secret, safe=""), *(text[1:-3] for text in coded)]


def assert_tells_nothing(where: str, text: str, *more: str) -> None:
    for name, secret in SECRETS.items():
        for shape in shapes(secret):
            at = text.find(shape)
            assert at < 0, f"{name} in {where}: {text[max(0, at - 500) : at + 200]!r}"
    for secret in more:
        at = text.find(secret)
        assert at < 0, f"a ticket in {where}: {text[max(0, at - 500) : at + 200]!r}"
    found = re.search(r"eyJ[\w-]{10,}", text)
    assert found is None, f"a token in {where}: {text[max(0, found.start() - 500) : found.end()]!r}"


async def assert_all_is_silent(it: Place, log: pytest.LogCaptureFixture) -> None:
    for page in ("/metrics", "/denials", "/readyz", "/webhooks"):
        assert_tells_nothing(page, (await it.gate.admin.ask("GET", page)).body.decode(), *it.tickets)
    assert_tells_nothing("the log", log.text, *it.tickets)
    for response in it.told:
        text = "".join(value.decode("latin-1") for _, value in response.headers) + response.body.decode("latin-1")
        assert_tells_nothing("an answer", text, *it.tickets)


def keep_all(log: pytest.LogCaptureFixture) -> None:
    """Let the log be as talkative as it can; asyncio's own says at that level how long each select took."""
    log.set_level(logging.DEBUG)
    log.set_level(logging.INFO, "asyncio")


def test_nothing_that_strangers_show_is_told_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        keep_all(caplog)
        async with place() as it:
            await strangers(it)
            statuses = {response.status for response in it.told}
            assert {401, 403} <= statuses <= {200, 400, 401, 403, 404, 406, 502, 503}, statuses
            await assert_all_is_silent(it, caplog)
            # The scenario has teeth: they did come.
            heads = "".join(asked.head.decode("latin-1") for asked in it.who.requests)
            assert SECRETS["another cookie"] in heads
            assert SECRETS["a guard's URL"] in heads
            assert any(SECRETS["the issuer's URL"] in asked.target for asked in it.keys.requests)
            assert not any(secret in heads for secret in (SECRETS["an unknown ticket"], SECRETS["an unknown key"]))

    run(test())


def test_nothing_that_viewers_show_is_told_anywhere(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        keep_all(caplog)
        async with place() as it:
            await friends(it)
            assert len(it.tickets) >= 6
            async with await Client.connect(it.gate.port) as client:
                await client.send(get("/by/session", *KNOWN["session"]))
                await client.read_until(b'data: {"n":1}')
                it.who.sessions.clear()  # a logout, seen by a recheck
                assert b"revoked" in await client.read_to_end()
            it.gate.service.gate.reload(
                make_config(EDGE.yaml(0, it.text.replace(SECRETS["a key of before"], "none"), admin=0))
            )
            await ask(it, get("/by/partner", *KNOWN["former"]))
            assert (await it.gate.admin.ask("POST", "/revoke", body=b'{"identity": "ada"}')).status == 200
            await friends(it)
            await assert_all_is_silent(it, caplog)
            assert "revoked" in caplog.text

    run(test())


def test_nothing_is_told_of_what_goes_wrong_with_a_guard(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        keep_all(caplog)
        async with place() as it:
            for _ in troubles(it):
                for path in ("/by/session", "/by/user", "/by/any", "/live?topic=/by/session", "/proxied/x"):
                    for headers in (
                        *KNOWN.values(),
                        (f"Cookie: session={SECRETS['another cookie']}",),
                        (bearer(RSA.token({"kid": "other"})),),
                    ):
                        it.told.append(await ask(it, get(path, *headers)))
                it.gate.service.gate.reload(make_config(EDGE.yaml(0, it.text, admin=0)))
            await it.who.go_down()
            await it.keys.go_down()
            it.gate.service.gate.reload(
                make_config(EDGE.yaml(0, it.text.replace(it.keys.url, f"http://127.0.0.1:{free_port()}/keys"), admin=0))
            )
            for headers in (*KNOWN.values(), (bearer(RSA.token({"kid": "another"})),)):
                for path in PATHS:
                    it.told.append(await ask(it, get(path, *headers)))
            await it.who.come_back()
            await it.keys.come_back()
            await assert_all_is_silent(it, caplog)
            assert "nobody new is let in by it" in caplog.text
            assert "nobody is let in by it" in caplog.text

    run(test())


def test_a_token_in_the_path_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        keep_all(caplog)
        async with place() as it:
            token = ".".join(part[:60] for part in RSA.token().split("."))  # a parameter is not longer
            assert (await ask(it, get(f"/for/{token}"))).status == 401
            await assert_all_is_silent(it, caplog)

    run(test())


def test_no_command_shows_what_guards_are_configured_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ssegate.yaml"
    text = configuration("http://127.0.0.1:1", "http://127.0.0.1:2/who", "http://127.0.0.1:3/keys")
    file.write_text("version: 1\n" + text)
    monkeypatch.chdir(tmp_path)
    for command in (
        ["check", str(file)],
        ["check", str(file), "--format", "github"],
        ["routes", "-c", str(file)],
        ["routes", "-c", str(file), "--json"],
        *(["match", "GET", path.partition("?")[0], "-c", str(file)] for path in PATHS),
        ["match", "GET", f"/by/user?ticket={SECRETS['an unknown ticket']}", "-c", str(file)],
        ["try", "/by/session", "-c", str(file)],
        ["schema"],
    ):
        main(command)
        out, err = capsys.readouterr()
        assert out + err, command
        if command[0] == "match":
            out = out.replace(command[2], "")  # what was asked is said again
        assert_tells_nothing(" ".join(command[:1]), out + err)


WRONG = [
    ("keys: {{header: x-api-key, values: {{a: {0}, b: {0}}}}}", "a known key"),
    ("keys: {{header: x-api-key, values: [{0}]}}", "a known key"),
    ("keys: {{header: x-api-key, values: {0}}}", "a known key"),
    ("keys: {{header: x-api-key, values: {{a: [{0}, 17]}}}}", "a known key"),
    ("keys: {{header: x-api-key, values: {{a: {{secret: {0}}}}}}}", "a known key"),
    ("keys: {0}", "a known key"),
    ("jwt: {{issuer: x, audience: x, keys: {0}}}", "a shared secret"),
    ("jwt: {{issuer: x, audience: x, keys: [{0}]}}", "a shared secret"),
    ("jwt: {{issuer: x, audience: x, keys: {{secret: {0}, url: 'http://x/'}}}}", "a shared secret"),
    ("jwt: {{issuer: x, audience: x, keys: {{secret: {0}}}, algorithms: [RS256]}}", "a shared secret"),
    ("jwt: {{issuer: x, audience: x, keys: {{secret: [{0}, 17]}}}}", "a shared secret"),
    ("jwt: {{issuer: x, audience: x, keys: {{secrets: {0}}}}}", "a shared secret"),
    ("jwt: {{issuer: x, audience: x, keys: {{secret: {{is: {0}}}}}}}", "a shared secret"),
    ("jwt: {{issuer: x, audience: x, keys: 'ftp://x/?key={0}'}}", "the issuer's URL"),
    ("jwt: {{issuer: x, audience: x, keys: 'https://u:{0}@x/'}}", "the issuer's URL"),
    ("jwt: {{issuer: x, audience: x, keys: 'https:///?key={0}'}}", "the issuer's URL"),
    ("forward: {{url: 'ftp://x/?key={0}'}}", "a guard's URL"),
    ("forward: {{url: 'http://u:{0}@x/'}}", "a guard's URL"),
    ("forward: {{url: 'http://x:99999/?key={0}'}}", "a guard's URL"),
    ("forward: {{url: ' http://x/?key={0}'}}", "a guard's URL"),
    ("forward: {{url: ['http://x/?key={0}']}}", "a guard's URL"),
    ("forward: {{url: 'http://x/?key={0}#x'}}", "a guard's URL"),
]


@pytest.mark.parametrize(("guard", "secret"), WRONG)
def test_a_wrong_configuration_is_told_without_its_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], guard: str, secret: str
) -> None:
    text = f"""version: 1
auth:
  one: {{{guard.format(SECRETS[secret])}}}
upstreams: {{api: "http://127.0.0.1:1"}}
routes:
  - {{path: /x, auth: one, poll: {{get: /x}}}}
"""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="x", environ={})
    problems = caught.value.problems
    assert_tells_nothing("the problems", "\n".join(f"{problem!r} {problem.message}" for problem in problems))
    assert_tells_nothing("the error", f"{caught.value} {caught.value!r}")
    file = tmp_path / "ssegate.yaml"
    file.write_text(text)
    assert main(["check", str(file)]) == 78
    said = capsys.readouterr()
    assert "error" in said.out + said.err
    assert_tells_nothing("the report", said.out + said.err)
