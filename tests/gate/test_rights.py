"""Rights by themselves: readers under them, rechecks, ends, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

import pytest

from ssegate.auth.forward import ForwardGuard
from ssegate.auth.guard import Down, Granted, Guard, Refused, Verdict
from ssegate.auth.keys import ApiKeyGuard
from ssegate.config import parse_config
from ssegate.core.hub import Hub, Subscriber, TopicSettings
from ssegate.core.principal import Principal
from ssegate.gate import rights as module
from ssegate.gate.rights import PATIENCE, Rights, Seat
from ssegate.gate.routes import Table, WebhookRoute
from tests.e2e.gate import story

COMEBACK = b"retry: 5000\n\n"


def guard(recheck: str = "10ms") -> ForwardGuard:
    """One that is never asked itself: what a right's `again` says is up to the test."""
    text = f"""
    version: 1
    upstreams: {{api: http://h}}
    auth: {{session: {{forward: {{url: "http://127.0.0.1:9/", recheck: {recheck}}}}}}}
    routes: [{{path: /a, auth: session, webhook: {{at: /h, verify: none}}}}]
    """
    settings = parse_config(text, source="f", environ={}).auth["session"].forward
    assert settings is not None
    return ForwardGuard("session", settings)


def keys(**known: str) -> ApiKeyGuard:
    values = ", ".join(f"{name}: {key}" for name, key in known.items())
    text = f"""
    version: 1
    upstreams: {{api: http://h}}
    auth: {{partner: {{keys: {{values: {{{values}}}}}}}}}
    routes: [{{path: /a, auth: partner, webhook: {{at: /h, verify: none}}}}]
    """
    settings = parse_config(text, source="f", environ={}).auth["partner"].keys
    assert settings is not None
    return ApiKeyGuard("partner", settings)


class Stage:
    """Rights, and readers of one topic that sit under them."""

    def __init__(self, guards: Iterable[Guard] = ()) -> None:
        self.guards: dict[str, Guard] = {each.name: each for each in guards or (guard(),)}
        self.rights = Rights(lambda name: self.guards.get(name), lambda: COMEBACK)
        self.hub = Hub()
        self.topic = self.hub.open("t", _settings(), 0.0)
        self.asked = 0
        self.verdicts: list[Verdict | Exception] = []
        """What is said when it is asked again, in turn; then always the last."""
        self.ended = asyncio.Event()

    async def again(self) -> Verdict:
        self.asked += 1
        verdict = self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    def granted(self, key: bytes = b"k", identity: str | None = "ada", **more: object) -> Granted:
        again: Callable[[], Awaitable[Verdict]] | None = self.again if self.verdicts else None
        return Granted(Principal("session", key, identity, **more), again)  # type: ignore[arg-type]

    def sit(self, granted: Granted, still: Callable[[Principal], bool] = lambda _: True) -> tuple[Seat, Subscriber]:
        reader = self.hub.subscribe(self.topic, None, 0.0, self._wake).subscriber
        return self.rights.take(granted, reader, reader, still), reader

    def _wake(self) -> None:
        self.ended.set()

    async def until(self, fact: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not fact():
                await asyncio.sleep(0.002)  # nobody is told of it


def _settings() -> TopicSettings:
    text = "version: 1\nupstreams: {api: http://h}\nroutes: [{path: /a, webhook: {at: /h, verify: none}}]"
    (route,) = Table(parse_config(text, source="f", environ={})).routes
    assert isinstance(route, WebhookRoute)
    return route.topic_settings


@story
async def test_streams_of_one_credential_share_a_right_and_the_last_one_takes_it_along() -> None:
    stage = Stage()
    granted = stage.granted()
    seats = [stage.sit(granted)[0] for _ in range(3)]
    other = stage.sit(stage.granted(b"k2"))[0]
    assert len(stage.rights) == 2
    for seat in seats:
        assert len(stage.rights) == 2
        stage.rights.leave(seat)
    stage.rights.leave(seats[0])
    assert [right.principal.key for right in stage.rights] == [b"k2"]
    stage.rights.leave(other)
    assert len(stage.rights) == 0
    await stage.rights.aclose()


@story
async def test_rechecks_that_nobody_answers_count_only_in_a_row() -> None:
    stage = Stage()
    down, yes = Down("away"), Granted(Principal("session", b"k", "ada"))
    stage.verdicts = [down, down]
    granted = stage.granted()
    yes = Granted(granted.principal, granted.again)
    stage.verdicts = [down, down, yes, down, down, yes, down, down, down]
    _, reader = stage.sit(granted)
    await stage.until(lambda: stage.asked >= 8)
    assert not reader.is_closed
    await stage.until(lambda: reader.is_closed)
    assert (stage.asked, reader.read()) == (9, COMEBACK)
    assert stage.rights.ended == Counter(guard=1)
    assert PATIENCE == 3
    await stage.rights.aclose()


@story
async def test_a_no_ends_all_streams_of_the_credential_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 10)
    stage = Stage()
    stage.verdicts = [Refused(401, "gone")]
    granted = stage.granted()
    sitting = [stage.sit(granted) for _ in range(55)]
    gone, _ = sitting[30]
    stage.rights.leave(gone)
    stays = stage.sit(stage.granted(b"other"))[1]
    stage.guards["session"] = guard("1h")
    await stage.until(lambda: all(reader.is_closed for seat, reader in sitting if seat is not gone))
    told = {reader.read() for seat, reader in sitting if seat is not gone}
    assert told == {b'event: end\ndata: {"reason":"revoked"}\n\n'}
    assert stage.rights.ended == Counter(revoked=54) or stage.rights.ended == Counter(revoked=55), stays
    await stage.rights.aclose()


@story
async def test_a_recheck_that_stops_on_a_defect_is_not_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    stage.verdicts = [RuntimeError("a defect"), Refused(401, "gone")]
    _, reader = stage.sit(stage.granted())
    await stage.until(lambda: reader.is_closed)
    assert reader.read() == b'event: end\ndata: {"reason":"revoked"}\n\n'
    assert "a recheck stopped on a defect" in caplog.text
    await stage.rights.aclose()


@pytest.mark.parametrize("verdicts", [[Refused(401, "gone")], [Down("away")] * 3], ids=["no", "down"])
@story
async def test_who_comes_while_others_are_put_out_is_asked_about_too(verdicts: list[Verdict | Exception]) -> None:
    stage = Stage()
    stage.verdicts = [*verdicts]
    granted = stage.granted()
    stage.verdicts = [*verdicts, Refused(401, "gone")]
    _, slow = stage.sit(granted)  # it is told, but does not leave
    await stage.until(lambda: slow.is_closed)
    _, reader = stage.sit(Granted(granted.principal, granted.again))
    await asyncio.sleep(0.1)  # ten times the recheck
    assert reader.is_closed
    await stage.rights.aclose()


@story
async def test_the_end_that_is_known_is_told_a_minute_before_and_then_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(module, "LOOK", 0.005)
    monkeypatch.setattr(time, "time", lambda: now)
    stage = Stage()
    granted = stage.granted(expires=now + 90)
    _, reader = stage.sit(granted)
    now += 29.5
    await asyncio.sleep(0.02)  # several looks
    assert reader.read() == b""
    now += 1
    await stage.until(lambda: bool(reader._aside))
    assert reader.read() == b'event: expiring\ndata: {"at":"2027-01-15T08:01:30Z","in":60}\n\n'
    late = stage.sit(granted)[1]
    assert late.read() == b'event: expiring\ndata: {"at":"2027-01-15T08:01:30Z","in":60}\n\n'
    now -= 1000
    await asyncio.sleep(0.02)
    assert (reader.read(), reader.is_closed) == (b"", False)
    now += 1100
    await stage.until(lambda: reader.is_closed and late.is_closed)
    assert reader.read() == b'event: end\ndata: {"reason":"expired"}\n\n'
    assert stage.rights.ended == Counter(expired=2)
    await stage.rights.aclose()


@story
async def test_what_is_known_better_ends_the_streams_that_it_does_not_fit() -> None:
    stage = Stage()
    _, fits = stage.sit(stage.granted(claims={"t": 1}), lambda principal: True)
    _, same = stage.sit(stage.granted(claims={"t": 1}), lambda principal: False)
    assert not same.is_closed, "nothing is known better"
    stage.sit(stage.granted(claims={"t": 2}), lambda principal: principal.claims == {"t": 2})
    assert (fits.is_closed, same.is_closed) == (False, True)
    assert stage.rights.ended == Counter(revoked=1)
    await stage.rights.aclose()


@story
async def test_somebody_is_put_out_by_name() -> None:
    stage = Stage()
    readers = {
        key: stage.sit(stage.granted(key, name))[1] for key, name in ((b"1", "ada"), (b"2", "ada"), (b"3", "grace"))
    }
    assert stage.rights.shown_by("ada") == [b"1", b"2"]
    assert stage.rights.revoke("ada") == 2
    assert [reader.is_closed for reader in readers.values()] == [True, True, False]
    assert stage.rights.revoke("nobody") == 0
    await stage.rights.aclose()


@story
async def test_who_is_put_out_already_is_not_counted_again() -> None:
    stage = Stage()
    stage.sit(stage.granted())
    assert stage.rights.revoke("ada") == 1
    assert stage.rights.revoke("ada") == 0
    assert stage.rights.ended == Counter(revoked=1)
    await stage.rights.aclose()


@story
async def test_another_configuration_ends_what_its_guards_would_not_grant() -> None:
    before, after = keys(acme="k1", zeta="k2"), keys(acme="k1", other="k2")
    stage = Stage([before])
    sitting = {}
    for key in ("k1", "k2"):
        proof = next(known for known, name in before._known if name == {"k1": "acme", "k2": "zeta"}[key])
        principal = Principal("partner", proof, {"k1": "acme", "k2": "zeta"}[key], proof=proof)
        sitting[key] = stage.sit(Granted(principal))[1]
    stage.rights.go_over({"partner": before}, {"partner": before})
    assert not any(reader.is_closed for reader in sitting.values())
    stage.rights.go_over({"partner": before}, {"partner": after})
    assert [reader.is_closed for reader in sitting.values()] == [False, True]
    stage.rights.go_over({"partner": after}, {})
    assert [reader.is_closed for reader in sitting.values()] == [True, True]
    await stage.rights.aclose()


@story
async def test_a_guard_that_would_have_to_be_asked_lets_its_streams_come_back() -> None:
    stage = Stage()
    _, reader = stage.sit(stage.granted())
    stage.rights.go_over({"session": stage.guards["session"]}, {"session": guard()})
    assert reader.read() == COMEBACK
    await stage.rights.aclose()


@story
async def test_who_comes_and_goes_all_day_leaves_no_trace() -> None:
    stage = Stage([guard("1h")])
    stage.verdicts = [Refused(401, "")]
    kept = stage.sit(stage.granted(b"kept", expires=time.time() + 36_000))[0]
    granted = stage.granted(expires=time.time() + 36_000)
    for number in range(10_000):
        fresh = stage.granted(b"%d" % number, expires=time.time() + 36_000) if number % 2 else granted
        seat, reader = stage.sit(fresh)
        stage.hub.unsubscribe(reader, 0.0)
        stage.rights.leave(seat)
    assert len(stage.rights) == 1
    assert len(stage.rights._agenda) <= 1010
    assert any(right is kept.right for *_, right in stage.rights._agenda._by_wall)
    assert any(right is kept.right for *_, right in stage.rights._agenda._by_clock)
    assert stage.rights._tasks == set()
    await stage.rights.aclose()
    assert len(stage.rights._agenda) == 0


@story
async def test_one_that_was_left_is_not_asked_about() -> None:
    stage = Stage()
    stage.verdicts = [Refused(401, "gone")]
    seat, _ = stage.sit(stage.granted())
    stage.rights.leave(seat)
    await asyncio.sleep(0.03)
    assert stage.asked == 0
    stage.sit(stage.granted())
    await stage.until(lambda: stage.asked == 1)
    await stage.rights.aclose()


@story
async def test_a_question_that_is_under_way_when_all_have_left_ends_nobody_who_comes_after() -> None:
    stage = Stage()
    answer: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    async def again() -> Verdict:
        stage.asked += 1
        return await asyncio.shield(answer)

    granted = Granted(Principal("session", b"k", "ada"), again)
    seat, _ = stage.sit(granted)
    await stage.until(lambda: stage.asked == 1)
    stage.rights.leave(seat)
    stage.guards["session"] = guard("1h")
    _, reader = stage.sit(granted)
    answer.set_result(Refused(401, "gone"))
    await asyncio.sleep(0.01)
    assert not reader.is_closed
    await stage.rights.aclose()
