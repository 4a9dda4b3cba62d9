"""A poll over real sockets: what the upstream does, and what is said of it to viewers and in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ssegate.core.detect import make_detector
from ssegate.core.event import Kind, Update
from ssegate.core.headers import Pair
from ssegate.core.poll import PollSettings
from ssegate.errors import BrokerError
from ssegate.sources import telling
from ssegate.sources.poll import PollSource, PollTarget
from ssegate.sources.telling import SHOWN_FAILURES, AskingRecord
from ssegate.upstream import Upstream
from tests.upstream.scripted import Call, ScriptedUpstream, Step, answer, script
from tests.upstream.settings import settings

PATIENCE = 5.0
EVERY = 0.02
TARGET = "/orders/17?token=s3cret"

Story = Callable[["Stage"], Awaitable[None]]


class Stage:
    """One source before a scripted upstream, and what it publishes."""

    def __init__(
        self, scripted: ScriptedUpstream, upstream: Upstream, source: PollSource, record: AskingRecord
    ) -> None:
        self.scripted = scripted
        self.upstream = upstream
        self.source = source
        self.record = record
        self.said: list[Update] = []
        self.refuses = 0
        """How many times more the broker refuses; -1 is always."""
        self.attempts = 0
        self._changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def publish(self, update: Update) -> None:
        self.attempts += 1
        self._changed.set()
        if self.refuses:
            self.refuses -= 1
            raise BrokerError("the broker is down")
        self.said.append(update)

    def begin(self) -> asyncio.Task[None]:
        self.task = asyncio.get_running_loop().create_task(self.source.run(self.publish))
        return self.task

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait until something is true of what was published, or tried to be."""
        while not fact():
            self._changed.clear()
            await self._changed.wait()

    async def until_said(self, count: int) -> list[tuple[str, str]]:
        """The kinds, or for events the data, of what has been said, once it is so much."""
        await self.until(lambda: len(self.said) >= count)
        return self.words

    async def until_asked(self, count: int) -> None:
        await self.scripted.until(lambda it: len(it.requests) >= count)

    @property
    def words(self) -> list[tuple[str, str]]:
        return [(update.kind.value, update.data) for update in self.said]


@asynccontextmanager
async def stage_of(
    step: Step, *, headers: Sequence[Pair] = (), max_event_size: int = 1000, viewers: int = 1, **rules: Any
) -> AsyncIterator[Stage]:
    rules = {"every_min": EVERY, "every_max": EVERY, "backoff_min": 0.01, "backoff_max": 0.02, **rules}
    async with ScriptedUpstream(step) as scripted:
        upstream = Upstream("api", settings(scripted.url, auth={"basic": {"user": "robot", "password": "passw0rd"}}))
        record = AskingRecord("api")
        source = PollSource(
            "topic 1",
            PollTarget(TARGET, tuple(headers)),
            upstream,
            PollSettings(**rules),
            make_detector("topic 1", max_event_size=max_event_size),
            record,
            viewers=lambda: viewers,
            max_body=2 * max_event_size,
        )
        stage = Stage(scripted, upstream, source, record)
        try:
            yield stage
        finally:
            if stage.task is not None:
                stage.task.cancel()
                await asyncio.gather(stage.task, return_exceptions=True)
            await upstream.aclose()


def play(step: Step, story: Story, **rules: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(step, **rules) as stage:
            await story(stage)

    asyncio.run(run())


def json_answer(value: object, *headers: Pair, status: int = 200) -> bytes:
    return answer(json.dumps(value).encode(), *headers, status=status)


def fault(status: int | None, message: str, reason: str = "upstream") -> tuple[str, str]:
    return ("fault", json.dumps({"reason": reason, "status": status, "message": message}, separators=(",", ":")))


RECOVERED = ("recovered", "{}")
END = ("end", '{"reason":"gone"}')


def event(value: object) -> tuple[str, str]:
    return ("event", json.dumps(value, separators=(",", ":")))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """What was written to the log: level and text, the upstream's address as `api`."""
    caplog.set_level(logging.INFO, logger="ssegate")

    def lines() -> list[tuple[str, str]]:
        texts = [(record.levelname, record.getMessage()) for record in caplog.records]
        return [(level, re.sub(r"127\.0\.0\.1:\d+", "api", text)) for level, text in texts]

    return lines


# What changes is said


def test_what_changes_is_said_and_what_does_not_is_not() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(3) == [event(1), event(2), event(3)]
        assert len(stage.scripted.requests) >= 5

    play(script(*(json_answer(value) for value in (1, 1, 2, 2, 3))), story)


def test_the_state_travels_with_the_event_and_the_first_question_has_no_validators() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        update = stage.said[0]
        assert (update.topic, update.data, update.state, update.type, update.kind) == (
            "topic 1",
            "1",
            "1",
            "",
            Kind.EVENT,
        )
        asked = stage.scripted.requests[0]
        assert (asked.target, asked.get("if-none-match"), asked.get("x-viewer")) == (TARGET, None, "me")

    play(json_answer(1), story, headers=[(b"X-Viewer", b"me")])


def test_a_304_says_nothing_and_costs_no_body() -> None:
    etag = (b"ETag", b'"v1"')

    async def upstream(call: Call) -> None:
        known = call.asked.get("if-none-match") == '"v1"'
        await call.send(answer(status=304) if known else json_answer(1, etag))

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(4)
        assert stage.words == [event(1)]
        assert [asked.get("if-none-match") for asked in stage.scripted.requests] == [None, *['"v1"'] * 3]
        assert set(stage.record.outcomes) == {"200", "304"}

    play(upstream, story)


def test_a_route_may_poll_without_validators() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(3)
        assert {asked.get("if-none-match") for asked in stage.scripted.requests} == {None}

    play(json_answer(1, (b"ETag", b'"v1"')), story, conditional=False)


def test_a_thousand_viewers_are_one_request_and_the_others_count_as_avoided() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        assert stage.record.outcomes == {"200": 1}
        assert stage.record.avoided == 999

    play(json_answer(1), story, viewers=1000, every_min=60, every_max=60)


def test_a_poll_that_nobody_reads_avoids_nothing() -> None:
    record = AskingRecord("api")
    record.count("200", 0)
    record.count("200", 1)
    assert (record.outcomes, record.avoided) == ({"200": 2}, 0)


def test_a_hint_polls_at_once_and_many_are_one() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        for _ in range(10):
            stage.source.hint()
        assert await stage.until_said(2) == [event(1), event(2)]
        await asyncio.sleep(0.05)  # nothing to await: a further request would be wrong
        assert len(stage.scripted.requests) == 2

    play(script(*(json_answer(value) for value in (1, 2, 3))), story, every_min=60, every_max=60)


def test_a_hint_during_a_request_polls_once_more() -> None:
    async def story(stage: Stage) -> None:
        release = asyncio.Event()

        async def slow(call: Call) -> None:
            await release.wait()
            await call.send(json_answer(1))

        stage.scripted.answer_with(script(slow, json_answer(2), json_answer(3)))
        stage.begin()
        await stage.until_asked(1)
        for _ in range(10):
            stage.source.hint()
        release.set()
        assert await stage.until_said(2) == [event(1), event(2)]
        await asyncio.sleep(0.05)  # nothing to await: a further request would be wrong
        assert len(stage.scripted.requests) == 2

    play(json_answer(0), story, every_min=60, every_max=60)


# Trouble


def test_an_outage_is_one_fault_one_recovery_and_one_line_each(logged: Callable[[], list[tuple[str, str]]]) -> None:
    times: list[float] = []

    async def limited(call: Call) -> None:
        times.append(asyncio.get_running_loop().time())
        await call.send(answer(b"no", (b"Retry-After", b"1"), status=429))

    async def last(call: Call) -> None:
        times.append(asyncio.get_running_loop().time())
        await call.send(json_answer(2))

    async def story(stage: Stage) -> None:
        stage.begin()
        words = await stage.until_said(4)
        assert words == [event(1), fault(500, "the upstream answered 500"), RECOVERED, event(2)]
        assert times[1] - times[0] >= 1
        assert stage.record.outcomes == {"200": 2, "500": 1, "429": 1}
        assert logged() == [
            ("WARNING", "poll GET http://api/orders/17: 500; its streams stay open and it is asked again"),
            ("INFO", "upstream api: all it is asked for is answered again"),
        ]
        assert stage.record.failing == 0

    play(script(json_answer(1), answer(status=500), limited, last), story)


async def silent(call: Call) -> None:
    await call.closed()


async def reset(call: Call) -> None:
    call.reset()


async def cut(call: Call) -> None:
    await call.send(answer(b"1", length=5))
    call.close()


@pytest.mark.parametrize(
    ("step", "said", "report"),
    [
        (answer(status=503), fault(503, "the upstream answered 503"), r"GET http://api/orders/17: 503"),
        (answer(status=401), fault(401, "the upstream answered 401"), r"GET http://api/orders/17: 401"),
        (answer(status=304), fault(304, "the upstream answered 304"), r"GET http://api/orders/17: 304"),
        (answer(b"{s3cret"), fault(200, "the upstream's answer cannot be read", "undecodable"), r"GET http://api/orders/17: the body is not JSON: line 1.*"),
        (json_answer("x" * 1500), fault(200, "the upstream's answer is too large", "oversize"), r"GET http://api/orders/17: the state is 1,502 bytes.*"),
        (json_answer("x" * 3000), fault(None, "the upstream's answer is too large", "oversize"), r"GET http://api/orders/17: its body is larger than 2000 bytes"),
        (silent, fault(None, "the upstream does not answer"), r"GET http://api/orders/17: .*"),
        (reset, fault(None, "the upstream's answer is broken"), r"GET http://api/orders/17: .*"),
        (cut, fault(None, "the upstream's answer is broken"), r"GET http://api/orders/17: .*"),
    ],
    ids=["503", "401", "304 never asked for", "undecodable", "oversize state", "oversize body", "silent", "reset", "cut"],
)  # fmt: skip
def test_trouble_is_told_once_without_secrets_and_the_poll_goes_on(
    step: Step, said: tuple[str, str], report: str, logged: Callable[[], list[tuple[str, str]]]
) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        words = await stage.until_said(4)
        assert words == [event(1), said, RECOVERED, event(2)]
        (_, begun), (_, ended) = logged()
        assert re.fullmatch(f"poll {report}; its streams stay open and it is asked again", begun)
        assert ended == "upstream api: all it is asked for is answered again"
        told = begun + ended + "".join(data for _, data in words)
        assert not re.search("s3cret|token|passw0rd|robot|viewer-secret", told)
        assert not re.search(r"127\.0\.0\.1|orders|http", words[1][1])

    play(script(json_answer(1), step, step, json_answer(2)), story, headers=[(b"Authorization", b"viewer-secret")])


def test_an_upstream_that_is_not_there_is_told_so_without_its_address(
    logged: Callable[[], list[tuple[str, str]]],
) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(json_answer(1)) as stage:
            async with ScriptedUpstream(b"") as gone:
                port = gone.port
            upstream = Upstream("api", settings(f"http://127.0.0.1:{port}"))
            stage.source._upstream = upstream
            stage.begin()
            assert await stage.until_said(1) == [fault(None, "the upstream cannot be reached")]
            assert [level for level, _ in logged()] == ["WARNING"]
            assert stage.record.outcomes["failed"] >= 1
            assert stage.record.failing == 1

    asyncio.run(run())


def test_a_state_that_comes_back_after_an_outage_unchanged_is_not_said_again() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(5)
        assert await stage.until_said(3) == [event(1), fault(500, "the upstream answered 500"), RECOVERED]

    play(script(json_answer(1), answer(status=500), json_answer(1)), story)


def test_a_body_that_cannot_be_read_does_not_make_its_validator_good() -> None:
    async def upstream(call: Call) -> None:
        number = call.asked.number
        if number == 0:
            await call.send(json_answer(1, (b"ETag", b'"v1"')))
        elif number < 3:
            await call.send(answer(b"{", (b"ETag", b'"v2"')))
        else:
            await call.send(answer(status=304))

    async def story(stage: Stage) -> None:
        stage.begin()
        words = await stage.until_said(3)
        assert [kind for kind, _ in words] == ["event", "fault", "recovered"]
        assert [asked.get("if-none-match") for asked in stage.scripted.requests[:4]] == [None, *['"v1"'] * 3]

    play(upstream, story)


# The end


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_gone_is_the_end(status: int) -> None:
    async def story(stage: Stage) -> None:
        await stage.begin()
        assert stage.words == [event(1), END]
        assert (stage.said[1].type, stage.source.is_over) == ("end", True)
        await stage.begin()  # it has nothing to ask any more
        assert len(stage.scripted.requests) == 2

    play(script(json_answer(1), answer(status=status)), story)


def test_what_is_gone_after_an_outage_is_first_told_to_have_recovered(
    logged: Callable[[], list[tuple[str, str]]],
) -> None:
    async def story(stage: Stage) -> None:
        await stage.begin()
        assert [kind for kind, _ in stage.words] == ["event", "fault", "recovered", "end"]
        assert len(logged()) == 2

    play(script(json_answer(1), answer(status=500), answer(status=404)), story)


@pytest.mark.parametrize("status", [401, 403])
def test_forwarded_credentials_that_are_no_longer_good_are_a_right_that_ended(status: int) -> None:
    async def story(stage: Stage) -> None:
        await stage.begin()
        assert stage.words == [event(1), ("revoked", '{"reason":"revoked"}')]
        assert stage.source.is_over

    play(script(json_answer(1), answer(status=status)), story, is_private=True)


# The first answer


def test_the_first_answer_can_be_waited_for() -> None:
    async def story(stage: Stage) -> None:
        assert stage.source.awaited is None
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited is None
        assert stage.words == [event(1)]  # said before those who waited go on

    play(json_answer(1), story)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_who_waits_for_the_first_answer_is_told_a_refusal_as_it_is(
    status: int, logged: Callable[[], list[tuple[str, str]]]
) -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        await stage.begin()
        assert stage.source.awaited is not None
        assert stage.source.awaited.result() == status
        assert (stage.words, stage.source.is_over, logged()) == ([], True, [])

    play(answer(status=status), story)


def test_a_status_that_the_route_calls_gone_is_passed_on_too() -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        await stage.begin()
        assert stage.source.awaited is not None
        assert stage.source.awaited.result() == 451

    play(answer(status=451), story, gone=(451,))


@pytest.mark.parametrize("step", [answer(status=500), answer(status=429), silent, answer(b"{")])
def test_who_waits_while_the_upstream_is_in_trouble_gets_a_stream_with_a_fault(step: Step) -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited is None
        assert [kind for kind, _ in stage.words] == ["fault"]

    play(step, story)


def test_who_has_waited_enough_is_told_the_rest_in_the_stream() -> None:
    async def story(stage: Stage) -> None:
        release = asyncio.Event()

        async def slow(call: Call) -> None:
            await release.wait()
            await call.send(answer(status=404))

        stage.scripted.answer_with(slow)
        stage.source.await_answer()
        task = stage.begin()
        await stage.until_asked(1)
        assert stage.source.awaited is not None
        stage.source.awaited.set_result(None)
        release.set()
        await task
        assert stage.words == [END]

    play(b"", story)


def test_a_state_that_was_seen_and_is_gone_at_the_return_is_an_end_and_no_status() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        stage.scripted.answer_with(answer(status=404))
        stage.source.await_answer()
        await stage.begin()
        assert stage.source.awaited is not None
        assert (stage.source.awaited.result(), stage.words) == (None, [event(1), END])

    play(json_answer(1), story)


def test_a_viewer_who_returns_without_the_right_is_told_the_status_although_the_state_was_seen() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        stage.scripted.answer_with(answer(status=403))
        stage.source.await_answer()
        await stage.begin()
        assert stage.source.awaited is not None
        assert (stage.source.awaited.result(), stage.words) == (403, [event(1)])

    play(json_answer(1), story, is_private=True)


# Stopping and going on


def test_a_poll_that_was_stopped_goes_on_without_repeating_or_losing_anything() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        asked = len(stage.scripted.requests)
        stage.begin()
        await stage.until_asked(asked + 2)
        assert stage.words == [event(1)]
        await stage.stop()
        stage.scripted.answer_with(json_answer(2))
        stage.begin()
        assert await stage.until_said(2) == [event(1), event(2)]

    play(json_answer(1), story)


def test_a_poll_that_was_stopped_in_the_middle_of_a_request_asks_anew() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(1)
        await stage.stop()
        stage.scripted.answer_with(json_answer(1))
        stage.begin()
        assert await stage.until_said(1) == [event(1)]

    play(silent, story)


def test_a_poll_that_was_stopped_in_an_outage_is_not_said_to_be_answered_again(
    logged: Callable[[], list[tuple[str, str]]],
) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        assert stage.record.failing == 1
        await stage.stop()
        assert stage.record.failing == 0
        assert [level for level, _ in logged()] == ["WARNING"]
        asked = len(stage.scripted.requests)
        stage.begin()
        await stage.until_asked(asked + 2)
        assert stage.record.failing == 1
        assert [kind for kind, _ in stage.words] == ["fault"]  # to its viewers it is one outage
        stage.scripted.answer_with(json_answer(1))
        assert [kind for kind, _ in await stage.until_said(3)] == ["fault", "recovered", "event"]
        assert logged()[-1] == ("INFO", "upstream api: all it is asked for is answered again")

    play(answer(status=500), story)


# The broker


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "BROKER_PAUSE", 0.005)


@pytest.mark.usefixtures("impatient")
def test_a_broker_that_is_down_is_waited_for_and_nothing_is_lost(logged: Callable[[], list[tuple[str, str]]]) -> None:
    async def story(stage: Stage) -> None:
        stage.refuses = 5
        stage.source.await_answer()
        stage.begin()
        assert await stage.until_said(2) == [event(1), event(2)]
        assert stage.attempts == 7
        assert logged() == [
            ("WARNING", "publish GET http://api/orders/17: the broker is down; it is tried again until it is taken"),
            ("INFO", "publish GET http://api/orders/17: taken"),
        ]

    play(script(json_answer(1), json_answer(2)), story)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("last", [answer(status=304), json_answer(2)])
def test_what_a_broker_did_not_take_before_the_poll_was_stopped_is_said_by_the_next_run(last: bytes) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(2)  # 1, and a fault
        stage.refuses = -1
        tried = stage.attempts
        await stage.until(lambda: stage.attempts > tried + 2)  # to say `recovered` and 2
        await stage.stop()
        stage.refuses = 0
        stage.begin()
        assert await stage.until_said(4) == [event(1), stage.words[1], RECOVERED, event(2)]

    first = [json_answer(1), answer(status=500), json_answer(2, (b"ETag", b'"v2"'))]
    play(script(*first, last), story)


@pytest.mark.usefixtures("impatient")
def test_an_end_that_a_broker_did_not_take_is_said_by_the_next_run() -> None:
    async def story(stage: Stage) -> None:
        stage.refuses = -1
        stage.begin()
        await stage.until(lambda: stage.attempts > 2)
        await stage.stop()
        stage.refuses = 0
        await stage.begin()
        assert stage.words == [END]

    play(answer(status=410), story)


def test_what_is_no_broker_error_is_a_defect_and_gets_out() -> None:
    async def run() -> None:
        async def broken(update: Update) -> None:
            raise RuntimeError("defect")

        async with stage_of(json_answer(1)) as stage:
            with pytest.raises(RuntimeError, match="defect"):
                await stage.source.run(broken)

    asyncio.run(run())


# The log of many polls


def test_an_outage_of_thousands_of_polls_is_a_few_lines(logged: Callable[[], list[tuple[str, str]]]) -> None:
    record = AskingRecord("api")
    for round_ in range(2):
        for number in range(1000):
            record.begin_failure(f"t{number}", f"GET /{number}: 503")
            record.begin_failure(f"t{number}", f"GET /{number}: 503")
        assert record.failing == 1000
        for number in range(1000):
            record.end_failure(f"t{number}")
            record.end_failure(f"t{number}")
        assert record.failing == 0
        lines = logged()
        assert len(lines) == (round_ + 1) * (SHOWN_FAILURES + 2)
        assert lines[SHOWN_FAILURES] == (
            "WARNING",
            "upstream api: more of it fails; ssegate_polls_failing tells how many",
        )
        assert lines[-1] == ("INFO", "upstream api: all it is asked for is answered again")


def test_an_answer_of_a_poll_that_never_failed_is_no_news(logged: Callable[[], list[tuple[str, str]]]) -> None:
    record = AskingRecord("api")
    record.end_failure("t")
    record.drop("t")
    assert logged() == []
