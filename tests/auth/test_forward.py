"""A guard that asks the backend: what counts as yes, no, and being down; what is remembered; who is asked about together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from ssegate.auth import forward
from ssegate.auth.forward import ForwardGuard
from ssegate.auth.guard import Down, Granted, Question, Refused, Verdict
from ssegate.config import parse_config
from ssegate.core.headers import Headers
from ssegate.edge.exchange import Request
from tests.e2e.gate import story
from tests.guards import (
    GARBAGE,
    Plan,
    WhoAmI,
    closes,
    cuts,
    cuts_in_the_head,
    hangs,
    held,
    knows,
    nameless,
    redirects,
    refuses,
    replies,
    resets,
)

NAME = (b"X-User-Id", b"ada")


def make(url: str, keys: str = "identity: x-user-id, claims: json") -> ForwardGuard:
    text = f"""
    version: 1
    upstreams: {{api: http://h}}
    auth: {{session: {{forward: {{url: "{url}", {keys}}}}}}}
    routes: [{{path: /a, auth: session, webhook: {{at: /h, verify: none}}}}]
    """
    settings = parse_config(text, source="f", environ={}).auth["session"].forward
    assert settings is not None
    return ForwardGuard("session", settings)


@asynccontextmanager
async def asking(keys: str = "identity: x-user-id, claims: json") -> AsyncIterator[tuple[WhoAmI, ForwardGuard]]:
    """A backend that knows `s1` as ada, and a guard that asks it."""
    async with WhoAmI({"s1": "ada", "s2": "grace"}) as who:
        guard = make(who.url, keys)
        try:
            yield who, guard
        finally:
            await guard.aclose()


def question(*fields: tuple[str, str], target: str = "/orders/17/events", method: str = "GET") -> Question:
    raw = tuple((name.encode(), value.encode("latin-1")) for name, value in (("Host", "gate.example.com"), *fields))
    request = Request(method, target.encode(), Headers(raw), "1.1", "http", "192.0.2.1", None)
    return Question(request, method, request.target)


def cookie(session: str = "s1") -> Question:
    return question(("Cookie", f"session={session}"))


async def judged(guard: ForwardGuard, asked: Question | None = None) -> Verdict:
    verdict = guard.judge(asked or cookie(), time.time())
    return verdict if isinstance(verdict, Verdict) else await verdict


# Yes


@pytest.mark.parametrize("status", [200, 201, 202, 206, 299])
@story
async def test_every_2xx_with_a_name_is_a_yes(status: int) -> None:
    async with asking() as (who, guard):
        who.plan(replies(b'{"a":{"b":[1]}}', NAME, status=status))
        verdict = await judged(guard)
        assert isinstance(verdict, Granted)
        principal = verdict.principal
        assert (principal.guard, principal.identity, principal.claims) == ("session", "ada", {"a": {"b": [1]}})
        assert (principal.expires, principal.issued) == (None, None)
        assert b"s1" not in principal.key
        assert "s1" not in repr(principal)
        assert guard.outcomes == {str(status): 1}


@pytest.mark.parametrize(
    ("sent", "identity"),
    [
        (b"ada", "ada"),
        (b"  ada\t", "ada"),
        ("Zoë".encode(), "Zoë"),
        ("Zoë".encode("latin-1"), "Zoë"),
        (b"a" * 256, "a" * 256),
        (b"0", "0"),
        (b"a, b", "a, b"),
        (b"a" * 257, None),
        (b"", None),
        (b"\xc2\x85", None),
        ("a\u202eb".encode(), None),
        (b"a\tb", None),
    ],
)
@story
async def test_a_name_is_one_line_of_text(sent: bytes, identity: str | None) -> None:
    async with asking() as (who, guard):
        who.plan(knows(sent))
        verdict = await judged(guard)
        assert (verdict.principal.identity if isinstance(verdict, Granted) else None) == identity
        assert isinstance(verdict, Down) == (identity is None)


@story
async def test_without_a_name_in_the_configuration_a_yes_names_nobody() -> None:
    async with asking("send: [cookie]") as (who, guard):
        who.plan(replies(b"<html>", NAME))
        verdict = await judged(guard)
        assert isinstance(verdict, Granted)
        assert (verdict.principal.identity, verdict.principal.claims) == (None, {})


@story
async def test_claims_may_be_in_headers() -> None:
    async with asking("identity: x-user-id, claims: {headers: [x-groups, x-none, x-twice]}") as (who, guard):
        twice = ((b"X-Twice", b"a"), (b"X-Twice", b"b"))
        who.plan(replies(b"no JSON", NAME, (b"X-Groups", "tëa".encode()), *twice))
        verdict = await judged(guard)
        assert isinstance(verdict, Granted)
        assert verdict.principal.claims == {"x-groups": "tëa", "x-twice": "a, b"}


# No


@pytest.mark.parametrize(("status", "is_stranger"), [(401, True), (403, False)])
@story
async def test_a_no_keeps_its_words_and_the_few_headers_that_belong_to_them(status: int, is_stranger: bool) -> None:
    async with asking() as (who, guard):
        extra = ((b"Set-Cookie", b"a=b"), (b"Content-Language", b"de"), (b"Retry-After", b"3"), (b"Server", b"x"), NAME)
        who.plan(refuses(status, *extra, body=b"nein"))
        verdict = await judged(guard)
        assert isinstance(verdict, Refused)
        assert (verdict.status, verdict.body, verdict.is_stranger) == (status, b"nein", is_stranger)
        assert sorted(name.lower() for name, _ in verdict.headers) == [
            b"content-language",
            b"content-type",
            b"retry-after",
        ]
        assert len(who.requests) == 1
        await judged(guard)
        assert len(who.requests) == 2, "a no is not remembered"


# Down


DOWN: dict[str, Plan] = {
    **{f"{status}": refuses(status) for status in (302, 400, 402, 404, 407, 429, 500, 502, 503, 599)},
    "304": replies(b"", status=304),
    "a redirect": redirects("/internal/whoami"),
    "a redirect to elsewhere": redirects("http://127.0.0.1:9/"),
    "closed": closes,
    "reset": resets,
    "cut": cuts,
    "cut in the head": cuts_in_the_head,
    "without a name": nameless({"a": 1}),
    "a 204 without a name": nameless(status=204),
    "a 204 with a name, where claims are wanted": replies(b"", NAME, status=204),
    "two names": replies(b"{}", NAME, NAME),
    "too large": replies(b'{"x":"' + b"x" * 300_000 + b'"}', NAME),
    "a bomb": replies(b"{}", NAME, (b"Content-Encoding", b"gzip")),
    "no HTTP": lambda _, call: call.send(b"SSH-2.0-OpenSSH\r\n\r\n"),
    "two lengths": lambda _, call: call.send(
        b"HTTP/1.1 200 OK\r\nX-User-Id: ada\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} "
    ),
    **{f"{name} for claims": replies(body, NAME) for name, body in GARBAGE.items() if not body.startswith(b"{")},
    "NaN for claims": replies(b'{"a": NaN}', NAME),
}


@pytest.mark.parametrize("plan", DOWN.values(), ids=DOWN)
@story
async def test_what_is_no_whole_answer_of_the_kind_is_a_guard_that_is_down(plan: Plan) -> None:
    async with asking() as (who, guard):
        who.plan(plan)
        verdict = await judged(guard)
        assert isinstance(verdict, Down), verdict
        assert "s1" not in verdict.reason
        assert isinstance(await judged(guard), Granted), "nothing of it is remembered"
        assert len(who.requests) == 2, "it was asked once, wherever it pointed"


@story
async def test_a_backend_that_is_away_is_down_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with asking() as (who, guard):
        await who.go_down()
        for _ in range(3):
            assert isinstance(await judged(guard), Down)
        assert guard.outcomes == {"failed": 3}
        await who.come_back()
        for _ in range(2):
            await judged(guard, cookie("zz"))
        said = [record.getMessage() for record in caplog.records if record.name == "ssegate.auth.forward"]
        assert len(said) == 2
        assert said[0].startswith("guard session: ")
        assert "nobody new is let in" in said[0]
        assert said[1] == "guard session: it answers again"


@story
async def test_what_its_url_carries_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async with WhoAmI() as who:
        guard = make(f"{who.url}?key=hush")
        who.usually(refuses(500))
        verdict = await judged(guard)
        assert isinstance(verdict, Down)
        assert who.requests[0].target.endswith("?key=hush")
        await who.go_down()
        later = await judged(guard)
        assert isinstance(later, Down)
        assert "hush" not in caplog.text + verdict.reason + later.reason
        await who.come_back()
        await guard.aclose()


@pytest.mark.long
@story
async def test_a_backend_that_hangs_is_down_after_ten_seconds() -> None:
    async with asking() as (who, guard):
        who.plan(hangs)
        began = time.monotonic()
        assert isinstance(await judged(guard), Down)
        assert 9 < time.monotonic() - began < 12


# Together, and remembered


@story
async def test_questions_with_one_credential_at_one_time_are_one() -> None:
    async with asking() as (who, guard):
        answered = who.hold()
        asked = [
            asyncio.create_task(judged(guard, question(("Cookie", "session=s1"), target=f"/{n}"))) for n in range(50)
        ]
        other = asyncio.create_task(judged(guard, cookie("s2")))
        await who.until_asked(2)
        answered.set()
        verdicts = await asyncio.gather(*asked)
        assert len({id(verdict) for verdict in verdicts}) == 1
        assert isinstance(await other, Granted)
        assert len(who.requests) == 2
        assert not guard._asking


@story
async def test_who_leaves_takes_nobodys_answer_along() -> None:
    async with asking() as (who, guard):
        answered = asyncio.Event()
        who.plan(held(answered))
        first, second = asyncio.create_task(judged(guard)), asyncio.create_task(judged(guard))
        await who.until_asked(1)
        first.cancel()
        await asyncio.wait((first,))
        answered.set()
        assert isinstance(await second, Granted)
        assert len(who.requests) == 1


@story
async def test_who_asks_when_the_gate_closes_is_told_that_nobody_knows() -> None:
    async with asking() as (who, guard):
        who.plan(hangs)
        asked = asyncio.create_task(judged(guard))
        await who.until_asked(1)
        await guard.aclose()
        assert isinstance(await asked, Down)


@story
async def test_a_yes_is_remembered_for_as_long_as_the_cache_says(monkeypatch: pytest.MonkeyPatch) -> None:
    async with asking("identity: x-user-id, cache: 30s") as (who, guard):
        ahead, real = 0.0, time.monotonic
        monkeypatch.setattr(forward, "time", SimpleNamespace(monotonic=lambda: real() + ahead))
        await judged(guard)
        ahead = 29
        assert isinstance(guard.judge(cookie(), 0.0), Granted), "nobody is asked"
        ahead = 31
        await judged(guard)
        assert len(who.requests) == 2


@story
async def test_a_recheck_goes_past_what_is_remembered_and_renews_or_drops_it() -> None:
    async with asking() as (who, guard):
        first = await judged(guard)
        assert isinstance(first, Granted)
        assert first.again is not None
        who.claims["ada"] = {"n": 2}
        second = await first.again()
        assert isinstance(second, Granted)
        assert (second.principal.claims, second.principal.key) == ({"n": 2}, first.principal.key)
        assert guard.judge(cookie(), 0.0) is second
        for plan, kind in ((refuses(500), Down), (refuses(403), Refused), (refuses(401), Refused)):
            assert isinstance(await judged(guard), Granted)
            who.plan(plan)
            assert isinstance(await first.again(), kind)
            before = len(who.requests)
            assert isinstance(await judged(guard), Granted)
            assert len(who.requests) == before + 1, "it was forgotten"


@story
async def test_no_more_than_so_many_answers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "MOST_KNOWN", 10)
    async with asking() as (who, guard):
        for number in range(30):
            who.sessions[f"n{number}"] = "ada"
            await judged(guard, cookie(f"n{number}"))
            assert isinstance(await judged(guard, cookie("n0")), Granted)
        assert len(guard._known) == 10
        assert len(who.asked_for("n0")) == 1, "who is seen often stays"
        assert len(guard.known_as("ada")) == 10


@story
async def test_only_half_of_the_connections_are_for_rechecks() -> None:
    async with asking() as (who, guard):
        granted = []
        for number in range(forward.RECHECKS_AT_ONCE + 10):
            who.sessions[f"n{number}"] = "ada"
            granted.append(await judged(guard, cookie(f"n{number}")))
        who.most_at_once = 0
        answered = who.hold()
        before = len(who.requests)
        rechecks = [asyncio.ensure_future(each.again()) for each in granted if isinstance(each, Granted) and each.again]
        await who.until_asked(before + forward.RECHECKS_AT_ONCE)
        newcomer = asyncio.create_task(judged(guard, cookie("s2")))
        await who.until_asked(before + forward.RECHECKS_AT_ONCE + 1)
        assert len(who.asked_for("s2")) == 1
        answered.set()
        await asyncio.gather(newcomer, *rechecks)
        assert who.most_at_once == forward.RECHECKS_AT_ONCE + 1


@story
async def test_what_is_remembered_is_not_the_credential() -> None:
    async with asking() as (_, guard):
        await judged(guard, question(("Cookie", "session=s1; hush"), ("Authorization", "Basic hush")))
        await judged(guard)
        assert "hush" not in repr(list(guard._known))
        assert all(len(key) == 32 for key in guard._known)


@pytest.mark.parametrize("cookies", [("session=s1", "a=b"), ("a=b", "session=s1")])
@story
async def test_a_header_that_came_twice_is_sent_twice_and_in_order(cookies: tuple[str, str]) -> None:
    async with asking() as (who, guard):
        await judged(guard, question(*(("Cookie", value) for value in cookies)))
        assert who.requests[0].get("cookie") == ", ".join(cookies)


@story
async def test_an_answer_that_was_overtaken_by_a_no_is_not_remembered() -> None:
    async with asking("identity: x-user-id, cache: 1h") as (who, guard):
        granted = await judged(guard)
        assert isinstance(granted, Granted)
        assert granted.again is not None
        guard._known.clear()  # its time in the cache was over
        late = asyncio.Event()
        who.plan(held(late, knows("ada")))
        opening = asyncio.create_task(judged(guard))
        await who.until_asked(2)
        del who.sessions["s1"]
        assert isinstance(await granted.again(), Refused)
        late.set()
        await opening
        assert not isinstance(await judged(guard), Granted), "for an hour"
