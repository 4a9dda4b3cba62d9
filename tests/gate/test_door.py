"""Guards in turn, what is noted of refusals, and what those who are refused are told."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable

import pytest

from ssegate.auth.guard import Down, Granted, Guard, Question, Refused, Verdict
from ssegate.auth.keys import ApiKeyGuard
from ssegate.config import parse_config
from ssegate.config.model import Route
from ssegate.core.headers import Headers
from ssegate.core.principal import Principal
from ssegate.edge.exchange import Request
from ssegate.gate.door import Asked, Door

ASKED = Asked("/orders/17/events", "192.0.2.1", ((b"vary", b"origin"),))


def key_guard(name: str, **known: str) -> ApiKeyGuard:
    values = ", ".join(f"{who}: {key}" for who, key in known.items())
    text = f"""
    version: 1
    upstreams: {{api: http://h}}
    auth: {{{name}: {{keys: {{header: x-{name}, values: {{{values}}}}}}}}}
    routes: [{{path: /a, auth: {name}, webhook: {{at: /h, verify: none}}}}]
    """
    settings = parse_config(text, source="f", environ={}).auth[name].keys
    assert settings is not None
    return ApiKeyGuard(name, settings)


class Later(ApiKeyGuard):
    """One that takes a turn of the loop, as those do who ask somebody."""

    def judge(self, question: Question, wall: float) -> Awaitable[Verdict]:  # type: ignore[override]
        async def judge() -> Verdict:
            await asyncio.sleep(0)
            return ApiKeyGuard.judge(self, question, wall)

        return judge()


class Saying(ApiKeyGuard):
    """One that always says the same."""

    def __init__(self, guard: ApiKeyGuard, verdict: Verdict) -> None:
        self.__dict__.update(guard.__dict__)
        self._verdict = verdict

    def judge(self, question: Question, wall: float) -> Verdict:  # type: ignore[override]
        return self._verdict


def later(guard: ApiKeyGuard) -> Later:
    slow = Later.__new__(Later)
    slow.__dict__.update(guard.__dict__)
    return slow


def question(**fields: str) -> Question:
    raw = [(f"X-{name}".encode(), value.encode()) for name, value in fields.items()]
    return Question(Request("GET", b"/a", Headers(raw), "1.1", "http", "192.0.2.1", None), "GET", b"/a")


def door(*guards: Guard) -> Door:
    return Door({guard.name: guard for guard in guards})


def judged(it: Door, asked: Question, *names: str) -> Verdict:
    async def run() -> Verdict:
        verdict = it.judge(names or tuple(it.guards), asked)
        return await verdict if isinstance(verdict, Awaitable) else verdict

    return asyncio.run(run())


ONE, TWO, THREE = key_guard("one", ada="k1"), key_guard("two", grace="k2"), key_guard("three", ida="k3")


@pytest.mark.parametrize("slow", [(), (0,), (1,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize(
    ("fields", "who"),
    [
        ({"one": "k1"}, "ada"),
        ({"two": "k2"}, "grace"),
        ({"three": "k3"}, "ida"),
        ({"three": "k3", "one": "k1"}, "ada"),
        ({"three": "k3", "one": "zz"}, "ida"),
        (
            {"one": "zz", "two": "zz"},
            "one: the key in `x-one` is none of the guard's; two: the key in `x-two` is none of the guard's",
        ),
        ({"two": "k1"}, "two: the key in `x-two` is none of the guard's"),
        ({}, "there is no credential for one or two or three"),
    ],
)
def test_guards_are_asked_in_turn_until_one_decides(fields: dict[str, str], who: str, slow: tuple[int, ...]) -> None:
    guards = [later(guard) if number in slow else guard for number, guard in enumerate((ONE, TWO, THREE))]
    verdict = judged(door(*guards), question(**fields))
    found = verdict.principal.identity if isinstance(verdict, Granted) else getattr(verdict, "reason", None)
    assert found == who


@pytest.mark.parametrize("verdict", [Down("away"), Refused(403, "not you"), Refused(401, "expired")])
def test_a_guard_that_says_no_or_nothing_is_not_gone_round(verdict: Verdict) -> None:
    it = door(Saying(ONE, verdict), TWO)
    assert judged(it, question(one="x", two="k2")) == verdict
    assert isinstance(judged(it, question(two="k2")), Granted), "it recognises nothing, so it is not asked"
    assert judged(it, question(two="k2"), "one") == verdict, "alone it is"


def test_one_who_is_put_out_is_not_let_in_by_another_guard_for_the_same_request() -> None:
    it = door(ONE, TWO)
    it.revoke("ada", ())
    assert judged(it, question(one="k1", two="k2")) == Refused(401, "the credential has been revoked")
    assert isinstance(judged(it, question(two="k2")), Granted)


# Refusals


def test_a_refusal_says_how_to_be_let_in_and_nothing_else() -> None:
    it = door(ONE, TWO)
    answer = it.answer_refused(Refused(401, "the secret reason"), ("one", "two", "gone"), ASKED)
    assert answer.headers.count((b"www-authenticate", b"ApiKey")) == 1
    assert {(b"vary", b"origin"), (b"cache-control", b"no-store")} <= set(answer.headers)
    assert b"reason" not in answer.body
    forbidden = it.answer_refused(Refused(403, "the secret reason"), ("one",), ASKED)
    assert (forbidden.status, b"reason" in forbidden.body) == (403, False)
    assert not any(name == b"www-authenticate" for name, _ in forbidden.headers)


def test_a_backends_own_challenge_is_not_doubled() -> None:
    it = door(ONE)
    for headers, count in (((), 1), (((b"WWW-Authenticate", b"Basic"),), 0)):
        answer = it.answer_refused(Refused(401, "", headers=headers, body=b"log in"), ("one",), ASKED)
        assert answer.body == b"log in"
        assert [name for name, _ in answer.headers].count(b"www-authenticate") == count


def test_a_refusal_is_noted_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    it = door(ONE)
    it.refuse(Refused(403, "because"), ("one", "two"), ASKED, Principal("two", b"k", "grace"))
    it.note(Refused(401, "why"), ("one", "two"), Asked("/p", "", ()))
    assert [record.getMessage() for record in caplog.records] == [
        "403 for /orders/17/events from 192.0.2.1: guard two: because",
        "401 for /p from -: guard one, two: why",
    ]
    newest, oldest = it.denials
    assert (newest.guard, newest.identity, newest.status) == ("one, two", None, 401)
    assert (oldest.guard, oldest.identity, oldest.path) == ("two", "grace", "/orders/17/events")
    assert it.denials.counts == {("two", 403): 1, ("one, two", 401): 1}


# Allow


def route(allow: str) -> Route:
    text = f"""
    version: 1
    upstreams: {{api: http://h}}
    routes: [{{path: "/a/{{id}}", allow: {json.dumps(allow)}, auth: none, webhook: {{at: /h, verify: none, match: {{id: body.id}}}}}}]
    """
    return parse_config(text, source="f", environ={}).routes[0]


@pytest.mark.parametrize(
    ("allow", "is_in"),
    [
        ("params.id == identity", True),
        ("params.id != identity", False),
        ("query.of == 'tea'", True),
        ("contains(claims.groups, 'staff')", True),
        ("contains(claims.groups, 'root')", False),
        ("headers.\"x-one\" == 'k1'", True),
        ("identity", True),
        ("claims.none", False),
        ("claims.groups", True),
        ("claims.n", True),
        ("contains(claims.none, 'x')", False),
        ("claims.groups > `1`", False),
        ("sum(claims.groups) > `1`", False),
    ],
)
def test_allow_is_true_or_keeps_out(allow: str, is_in: bool) -> None:
    principal = Principal("one", b"k", "ada", {"groups": ["staff"], "n": 1})
    why = door(ONE).allows(route(allow), principal, {"id": "ada"}, {"of": "tea"}, question(one="k1").headers)
    assert (not why) == is_in, why
    assert "k1" not in why


def test_allow_sees_nobody_where_nobody_is_known() -> None:
    it = door(ONE)
    nobody = question().headers
    assert it.allows(route("identity == null && claims == `{}`"), None, {}, {}, nobody) == ""
    assert it.allows(route("identity == 'ada'"), None, {}, {}, nobody) == "`allow` is not true"


# What has been granted ends


def test_what_was_granted_ends_with_its_time_and_with_a_revocation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    it = door(ONE)
    granted = Granted(Principal("one", b"k", "ada", expires=1010.0, issued=990.0))
    assert it.has_ended(granted) is None
    now = 1010.0
    assert it.has_ended(granted) == Refused(401, "the credential has expired")
    now = 1001.0
    it.revoke("ada", ())
    assert it.has_ended(granted) == Refused(401, "the credential has been revoked")


def test_tickets_are_made_of_chance_and_marked() -> None:
    it = door(ONE)
    granted = Granted(Principal("one", b"k", "ada"))
    sold = {it.sell("/a", granted) for _ in range(100)}
    assert len(sold) == 100
    assert all(re.fullmatch(r"sst_[A-Za-z0-9_-]{32}", text) for text in sold)


def test_a_ticket_of_a_guard_that_the_route_does_not_have_opens_nothing_and_is_kept() -> None:
    it = door(ONE, TWO)
    text = it.sell("/a", Granted(Principal("one", b"k", "ada")))
    ticket, verdict = it.take(text, "/a", None, ("two",))
    assert (ticket, isinstance(verdict, Refused)) == (None, True)
    ticket, verdict = it.take(text, "/a", None, ("two", "one"))
    assert ticket is not None
    assert isinstance(verdict, Granted)
