"""`ssegate explain-token`: what guards make of a token, by their real keys."""

from __future__ import annotations

import asyncio
import io
import os
import re
import sys
import time
from pathlib import Path

import pytest

from ssegate.cli import main
from ssegate.cli.explain_token import moment
from ssegate.config import parse_config
from ssegate.service import Service
from tests.guards import JwksServer
from tests.tokens import Issuer, base64url
from tests.upstream.scripted import ScriptedUpstream, answer

ISSUER = Issuer("HS256", None)
ROUTE = "routes: [{path: /x, auth: none, poll: {get: /x, every: 1h}}]"


def unsigned(header: bytes, payload: bytes, signature: str = "AAAA") -> str:
    return b".".join(map(base64url, (header, payload))).decode() + f".{signature}"


HS256 = b'{"alg":"HS256"}'
NO_TOKENS = {
    "one part": "x",
    "two parts": "a.b",
    "three parts of nothing": "a.b.c",
    "five parts": "a.b.c.d.e",
    "no base64": "é.é.é",
    "empty parts": "..",
    "padding": "=.=.=",
    "NUL": "\x00",
    "long": "x" * 100_000,
    "long with parts": unsigned(HS256, b'{"a":"%b"}' % (b"x" * 50_000)),
    "a list as header": unsigned(b"[]", b"{}"),
    "no algorithm": unsigned(b'{"alg":"none"}', b"{}", ""),
    "odd header": unsigned(b'{"alg":["HS256"],"kid":{}}', b"{}"),
    "no claims": unsigned(HS256, b"no"),
    "deep": unsigned(HS256, b'{"a":' * 900 + b"1" + b"}" * 900),
    "deeper": unsigned(HS256, b'{"a":' * 2000 + b"1" + b"}" * 2000),
    "signature with other last bits": unsigned(HS256, b"{}", "AB"),
}


def guard(issuer: Issuer, name: str = "user", keys: str = "", more: str = "") -> str:
    keys = keys or f"{{secret: {issuer.secret}}}"
    return f"  {name}: {{jwt: {{issuer: '{issuer.issuer}', audience: {issuer.audience}, keys: {keys}{more}}}}}\n"


class Stage:
    """A file with guards, and what a command said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "ssegate.yaml"
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        self.out = self.err = ""

    def run(self, token: str | bytes, *arguments: str, guards: str = "", route: str = ROUTE) -> int:
        auth = f"auth:\n{guards or guard(ISSUER)}"
        self.file.write_text(f"version: 1\n{auth}upstreams: {{api: http://127.0.0.1:1}}\n{route}\n")
        data = token.encode() if isinstance(token, str) else token
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = main(["explain-token", *arguments, "-c", str(self.file)])
        self.out, self.err = self._capsys.readouterr()
        self.check_discretion(data.decode(errors="replace"))
        return code

    def check_discretion(self, text: str) -> None:
        """Neither a token nor its signature is told."""
        for part in re.findall(r"[\w-]{20,}", text):
            assert part not in self.out + self.err

    @property
    def told(self) -> str:
        """Without the times, which are others in each run."""
        return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \([^)]*\)", "TIME", self.out)


@pytest.fixture
def stage(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, capsys, monkeypatch)


def test_a_good_token_is_explained_and_is_0(stage: Stage) -> None:
    assert stage.run(ISSUER.token(scope="orders:read", roles=["a"])) == 0
    assert stage.told == (
        "header  alg `HS256`, no kid, typ `JWT`\n"
        "claims  iss `https://login.example.com/`\n"
        "        aud `orders-ui`\n"
        "        sub `u1`\n"
        "        iat TIME\n"
        "        exp TIME\n"
        "        also `scope`, `roles`; --claims shows them\n"
        "user: yes, identity u1, until TIME\n"
        "  signed with its secret\n"
    )
    assert re.search(r"exp \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(in (5|4) min", stage.out)
    assert stage.err == ""


def test_why_a_token_is_refused_is_told_and_is_1(stage: Stage) -> None:
    assert stage.run(ISSUER.token(aud="orders-admin")) == 1
    assert "user: no (401): signature is good, its audience is `orders-admin`, wanted `orders-ui`\n" in stage.told
    assert "  signed with its secret\n" in stage.told


@pytest.mark.parametrize(
    ("more", "claims", "said"),
    [
        ("", {"exp": 1000}, "no (401): signature is good, it expired"),
        ("", {"exp": "soon"}, "        exp `soon`, which is no time\n"),
        ("", {"exp": 10**400}, ", which is in no calendar\n"),
        ("", {"exp": None}, "no (401): signature is good, it has no `exp`"),
        (", require: 'admin'", {}, "no (403): signature is good, `require` is not true of its claims"),
        (", identity: email", {"email": "a@b"}, "        email `a@b`\n"),
        (", identity: email", {"email": "a@b"}, "user: yes, identity a@b, until"),
        (", at_expiry: ignore", {}, "until TIME; open streams go on after that (`at_expiry: ignore`)\n"),
        ("", {"aud": ["x", "orders-ui"]}, '        aud ["x","orders-ui"]\n'),
        ("", {"sub": "\x1b[31mred"}, "sub `\ufffd[31mred`"),
        ("", {"sub": {"deep": "x" * 500}}, '"' + "x" * 191 + "…\n"),
    ],
)
def test_claims_are_judged_by_the_guard(stage: Stage, more: str, claims: dict[str, object], said: str) -> None:
    stage.run(ISSUER.sign(ISSUER.header(), ISSUER.claims(**claims)), guards=guard(ISSUER, more=more))
    assert said in stage.told


def test_other_claims_are_shown_where_that_is_asked_for(stage: Stage) -> None:
    token = ISSUER.sign(ISSUER.header(), ISSUER.claims(mail="ann@example.com", roles=["a", {"b": 1}], odd="\u202e\n"))
    assert stage.run(token) == 0
    assert "ann@example.com" not in stage.out
    assert stage.run(token, "--claims") == 0
    assert 'mail "ann@example.com"\n' in stage.out
    assert 'roles ["a",{"b":1}]\n' in stage.out
    assert 'odd "\\u202e\\n"\n' in stage.out


def test_a_signature_that_is_nobodys_is_told_beside_the_claims(stage: Stage) -> None:
    assert stage.run(ISSUER.like(key="other").token()) == 1
    assert "(nobody vouches for them: no key that is known here fits the signature)\n" in stage.told
    assert stage.told.endswith("user: no (401): its signature is not good\n")


def test_what_leads_elsewhere_in_a_header_is_named(stage: Stage) -> None:
    header = ISSUER.header(jku="https://evil.example/keys", cty="x")
    assert stage.run(ISSUER.sign(header, ISSUER.claims())) == 0
    assert "        also `jku`, `cty` (a guard never follows where they lead)\n" in stage.told
    assert "evil" not in stage.out


@pytest.mark.parametrize("token", NO_TOKENS.values(), ids=NO_TOKENS)
def test_what_is_no_token_is_refused_and_not_quoted(stage: Stage, token: str) -> None:
    assert stage.run(token, "--claims") == 1
    assert "user: no (401): " in stage.out


def test_many_names_are_counted(stage: Stage) -> None:
    assert stage.run(ISSUER.token(**{f"c{number}": 1 for number in range(40)})) == 0
    assert "`c29` and 10 more; --claims shows them\n" in stage.told


# What comes on standard input


@pytest.mark.parametrize("before", ["", "Bearer ", "bearer  ", "Authorization: Bearer ", "\n  Bearer "])
def test_a_header_with_the_token_is_taken_too(stage: Stage, before: str) -> None:
    assert stage.run(f"{before}{ISSUER.token()} \r\n") == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "there is no token on standard input; pipe one in: `ssegate explain-token < FILE`"),
        (b" \n", "there is no token on standard input"),
        (b"Bearer \n", "there is no token on standard input"),
        (b"a.b.c d.e.f", "there are 2 words on standard input; give one token, in one piece"),
    ],
)
def test_without_one_token_it_is_2(stage: Stage, data: bytes, said: str) -> None:
    assert stage.run(data) == 2
    assert (said in stage.err, stage.out) == (True, "")


def test_at_a_terminal_it_says_what_to_do(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run("x")  # so that there is a file
    ours, theirs = os.openpty()
    with open(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert main(["explain-token", "-c", str(stage.file)]) == 2
    os.close(ours)
    assert "a token comes on standard input; pipe it in" in stage._capsys.readouterr().err


# Several guards


def test_each_guard_that_reads_tokens_says_what_it_makes_of_it(stage: Stage) -> None:
    other = Issuer("HS512", None, key="other", issuer="https://other/")
    session = "  session: {forward: {url: http://127.0.0.1:1/}}\n"
    guards = guard(ISSUER) + guard(other, "other", more=", algorithms: [HS512]") + session
    assert stage.run(ISSUER.token(), guards=guards) == 0
    verdicts = stage.told.splitlines()[-3:]
    assert verdicts == [
        "user: yes, identity u1, until TIME",
        "  signed with its secret",
        "other: no (401): its algorithm is `HS256`, wanted HS512",
    ]
    assert stage.run(ISSUER.token(), "--guard", "other", guards=guards) == 1
    assert "user" not in stage.out


def test_which_of_two_secrets_fits_is_told(stage: Stage) -> None:
    older = ISSUER.like(key="older")
    keys = f"{{secret: [{ISSUER.secret}, {older.secret}]}}"
    assert stage.run(older.token(), guards=guard(ISSUER, keys=keys)) == 0
    assert "  signed with its secret 2 of 2\n" in stage.told


@pytest.mark.parametrize(
    ("arguments", "guards", "said"),
    [
        (["--guard", "usr"], "", "no guard is `usr`; did you mean `user`?"),
        (
            [],
            "  partner: {keys: {values: {acme: key1}}}\n",
            "no guard reads tokens; write one: `auth: {NAME: {jwt: …}}`",
        ),
    ],
)
def test_without_a_guard_that_reads_tokens_it_is_2(stage: Stage, arguments: list[str], guards: str, said: str) -> None:
    assert stage.run(ISSUER.token(), *arguments, guards=guards) == 2
    assert said in stage.err


# Published keys


def test_published_keys_are_fetched_once_and_named(stage: Stage) -> None:
    now, before = Issuer("ES256", "k2"), Issuer("ES256", "k1")

    async def test() -> None:
        async with JwksServer(now) as keys:
            guards = guard(now, keys=keys.url)
            assert await asyncio.to_thread(stage.run, now.token(), guards=guards) == 0
            assert "header  alg `ES256`, kid `k2`, typ `JWT`\n" in stage.told
            assert stage.told.endswith("user: yes, identity u1, until TIME\n  signed with its key `k2`\n")
            assert await asyncio.to_thread(stage.run, before.token(), guards=guards) == 1
            assert stage.told.endswith(
                "user: no (401): no key of the issuer has its `kid` and is for ES256\n  its keys are `k2`\n"
            )
            assert keys.fetches == 2

    asyncio.run(test())


def test_keys_that_cannot_be_fetched_are_69_unless_another_guard_says_yes(stage: Stage) -> None:
    async def test() -> None:
        async with JwksServer() as keys:
            keys.fail(503)
            guards = guard(ISSUER) + guard(ISSUER, "published", keys=keys.url)
            assert await asyncio.to_thread(stage.run, ISSUER.token(aud="x"), guards=guards) == 69
            down = f"published: cannot say without its keys: GET {keys.url}: answered 503, wanted its keys\n"
            assert stage.told.endswith(down)
            assert stage.err == ""
            assert await asyncio.to_thread(stage.run, ISSUER.token(), guards=guards) == 0

    asyncio.run(test())


# The whole way


def test_a_token_that_was_made_is_explained_and_opens_a_stream(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with ScriptedUpstream(answer(b'{"n": 1}', (b"Content-Type", b"application/json"))) as upstream:
            guarded = guard(ISSUER, more=", require: \"scope == 'orders:read'\"")
            text = f"""
version: 1
server: {{listen: "127.0.0.1:0"}}
auth:
{guarded}upstreams: {{api: {upstream.url}}}
routes: [{{path: "/users/{{id}}", auth: user, allow: "params.id == identity", poll: {{get: /x, every: 1h}}}}]
"""
            stage.file.write_text(text)
            service = Service(parse_config(text, source="f", environ={}))
            await service.start()
            for scope, code, status in (("orders:read", 0, 200), ("orders:write", 1, 403)):
                capsys.readouterr()
                main(["token", "--sub", "u1", "--claim", f"scope={scope}", "-c", str(stage.file)])
                token = capsys.readouterr().out
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(token.encode())))
                assert await asyncio.to_thread(main, ["explain-token", "-c", str(stage.file)]) == code
                assert await status_of(service.port, "/users/u1", token.strip()) == status
            await service.aclose()

    asyncio.run(test())


async def status_of(port: int, path: str, token: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"GET {path} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\nAuthorization: Bearer {token}\r\n\r\n"
    writer.write(head.encode())
    line = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return int(line.split()[1])


# Times in words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "now"),
        (59, "in 59 s"),
        (60, "in 1 min"),
        (252, "in 4 min 12 s"),
        (3600, "in 1 h"),
        (3601, "in 1 h"),
        (90_000, "in 1 d 1 h"),
        (-75, "1 min 15 s ago"),
    ],
)
def test_a_time_is_said_in_words(seconds: float, said: str) -> None:
    assert moment(1_772_366_400 + seconds, 1_772_366_400).endswith(f" UTC ({said})")


@pytest.mark.parametrize("value", [None, True, "x", [], 10**400, 1e300, -1e300, 1e12])
def test_what_is_no_time_is_said_to_be_none(value: object) -> None:
    assert ", which is " in moment(value, time.time())
