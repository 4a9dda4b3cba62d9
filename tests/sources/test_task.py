"""A job over real sockets: what its status says and where it is, and what is said of that to viewers."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from ssegate.config.values import read_expression
from ssegate.core.event import Kind
from ssegate.core.poll import SLOWER, PollSettings
from ssegate.core.task import TaskReader, TaskRules
from ssegate.sources.poll import PollTarget
from ssegate.sources.task import TaskSource
from ssegate.sources.telling import AskingRecord
from ssegate.upstream import Upstream
from tests.sources.asking import (
    RECOVERED,
    Make,
    Stage,
    end,
    event,
    fault,
    json_answer,
    play,
    times_of,
)
from tests.upstream.scripted import Call, answer, script

JOB = "/jobs/17?token=s3cret"


def task(*, give_up: float | None = None, path: str = JOB, max_event_size: int = 1000, **expressions: str) -> Make:
    """A source of this kind; without expressions the progress is `p`, and any answer but 202 is the end."""
    expressions = {"progress": "p", "result": "r", **expressions}
    rules = TaskRules(max_event_size, **{name: read_expression(text) for name, text in expressions.items()})

    def make(upstream: Upstream, settings: PollSettings, record: AskingRecord) -> TaskSource:
        return TaskSource(
            "topic 1",
            PollTarget(path, ()),
            upstream,
            settings,
            TaskReader("topic 1", rules),
            record,
            viewers=lambda: 1,
            max_body=2 * max_event_size,
            give_up=give_up,
        )

    return make


def at_work(progress: object, *headers: tuple[bytes, bytes]) -> bytes:
    return json_answer({"p": progress}, *headers, status=202)


def finished(result: object, progress: object = None) -> bytes:
    return json_answer({"p": progress, "r": result})


# From progress to the end


def test_progress_is_said_on_change_and_the_end_with_its_result_and_then_it_asks_no_more() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(1), event(2), end("done", {"url": "/files/1"})]
        assert stage.targets == [JOB] * 5
        assert stage.record.outcomes == {"202": 4, "200": 1}

    steps = [at_work(1), at_work(1), at_work(2), at_work(2), finished({"url": "/files/1"})]
    play(script(*steps), task(), story)


def test_a_job_that_is_finished_when_it_is_asked_for_first_is_the_end_at_once() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(9), end("done", "ok")]
        assert len(stage.targets) == 1

    play(finished("ok", 9), task(), story)


def test_a_job_that_fails_says_so_with_its_result() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(1), end("failed", "disk full")]

    steps = [json_answer({"p": 1, "s": "running"}), json_answer({"s": "failed", "r": "disk full"})]
    play(script(*steps), task(done="s == 'done'", failed="s == 'failed'"), story)


@pytest.mark.parametrize("status", [404, 410])
def test_a_job_that_is_no_longer_there_is_gone(status: int) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(1), end("gone")]

    play(script(at_work(1), answer(status=status)), task(), story)


def test_without_done_a_204_is_the_end() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        async with asyncio.timeout(0.5):
            assert await stage.over() == [event(1), end("done", None)]

    play(script(at_work(1), b"HTTP/1.1 204 No Content\r\n\r\n"), task(), story)


def test_a_304_says_nothing() -> None:
    async def upstream(call: Call) -> None:
        if call.asked.get("if-none-match"):
            await call.send(answer(status=304) if call.asked.number < 3 else finished("ok"))
        else:
            await call.send(at_work(1, (b"ETag", b'"1"')))

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(1), end("done", "ok")]
        assert stage.record.outcomes == {"202": 1, "304": 2, "200": 1}

    play(upstream, task(), story)


# When it is given up


def test_a_job_that_takes_too_long_is_given_up_and_asked_for_no_more() -> None:
    async def story(stage: Stage) -> None:
        begun = asyncio.get_running_loop().time()
        stage.begin()
        assert await stage.over() == [event(1), end("timeout")]
        assert 0.15 <= asyncio.get_running_loop().time() - begun < 1

    play(at_work(1), task(give_up=0.15), story)


def test_it_is_given_up_in_time_and_not_when_it_would_be_asked_for_again() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(1), end("timeout")]
        assert len(stage.targets) == 1

    play(at_work(1), task(give_up=0.15), story, every_min=60, every_max=60)


def test_an_outage_does_not_keep_a_job_from_being_given_up() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        words = await stage.over()
        assert words == [event(1), fault(503, "the upstream answered 503"), RECOVERED, end("timeout")]
        assert stage.record.failing == 0

    play(script(at_work(1), answer(status=503)), task(give_up=0.3), story, backoff_min=60, backoff_max=60)


def test_the_time_counts_from_the_beginning_through_pauses() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        await asyncio.sleep(0.2)  # nobody watches meanwhile
        stage.begin()
        assert await stage.over() == [event(1), end("timeout")]
        assert len(stage.targets) == 1, "it was too late to ask"

    play(at_work(1), task(give_up=0.2), story, every_min=60, every_max=60)


# When it is asked for


def test_the_interval_grows_while_nothing_happens_and_is_short_again_when_something_does() -> None:
    times, handle = times_of(lambda number: at_work(1 if number < 7 else number))

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(10)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        assert gaps[6] > 4 * min(gaps[:3]), gaps
        assert gaps[8] < gaps[6] / 2, gaps

    play(handle, task(), story, every_min=0.02, every_max=0.02 * SLOWER**6)


def test_retry_after_is_waited_out() -> None:
    """RFC 9110, 10.2.3; the way of 202 to say when."""
    times, handle = times_of(lambda number: at_work(number, (b"Retry-After", b"1")) if number == 0 else finished("ok"))

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.over()
        assert 1.0 <= times[1] - times[0] < 1.8

    play(handle, task(), story)


def test_retry_after_does_not_keep_a_job_from_being_given_up() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(1), end("timeout")]

    play(at_work(1, (b"Retry-After", b"3600")), task(give_up=0.1), story)


# Where it is


@pytest.mark.parametrize(
    ("location", "then"),
    [
        ("/status/9?x=1", "/status/9?x=1"),
        ("status/9", "/jobs/status/9"),
        ("?part=2", "/jobs/17?part=2"),
        ("../status", "/status"),
    ],
)
def test_a_location_says_where_to_ask_next(location: str, then: str) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.over()
        assert stage.targets == [JOB, then]

    play(script(at_work(1, (b"Location", location.encode())), finished("ok")), task(), story)


def test_an_absolute_location_of_the_same_origin_is_followed_and_the_last_one_counts() -> None:
    async def upstream(call: Call) -> None:
        here = call.asked.get("host")
        steps = [
            at_work(1, (b"Location", f"http://{here}/a".encode())),
            at_work(2, (b"Location", b"/b")),
            at_work(3),
            finished("ok"),
        ]
        await call.send(steps[call.asked.number])

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.over()
        assert stage.targets == [JOB, "/a", "/b", "/b"]

    play(upstream, task(), story)


@pytest.mark.parametrize(
    "location",
    [
        b"http://elsewhere.example/a",
        b"https://127.0.0.1/a",
        b"//elsewhere.example/a",
        b"http://127.0.0.1:1/a",
        b"http://[",
        b"javascript:alert(1)",
        b"",
        b"/a b",
        b"/\xe9",
    ],
)
def test_a_location_that_is_none_of_this_upstream_is_passed_over(location: bytes) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert (await stage.over())[-1] == end("done", "ok")
        assert stage.targets[1] in (JOB, "/jobs/17"), "an empty reference is the document itself (RFC 3986, 4.4)"

    play(script(at_work(1, (b"Location", location)), finished("ok")), task(), story)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_the_result_is_followed(status: int) -> None:
    """303 (See Other) is how many status monitors say that the job has become a resource."""

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(1), end("done", "ok")]
        assert stage.targets == [JOB, JOB, "/results/17"]

    play(script(at_work(1), answer(b"", (b"Location", b"/results/17"), status=status), finished("ok")), task(), story)


def test_a_redirect_to_elsewhere_is_trouble() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(2) == [event(1), fault(303, "the upstream answered 303")]

    away = answer(b"", (b"Location", b"http://elsewhere.example/"), status=303)
    play(script(at_work(1), away), task(), story)


# Trouble


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (answer(status=500), fault(500, "the upstream answered 500")),
        (answer(b"<html>"), fault(200, "the upstream's answer cannot be read", "undecodable")),
        (finished("x" * 1500), fault(200, "the upstream's answer is too large", "oversize")),
        (finished("x" * 3000), fault(None, "the upstream's answer is too large", "oversize")),
        (answer(b"{", length=9), fault(None, "the upstream does not answer")),
    ],
    ids=["500", "no JSON", "large result", "large body", "cut"],
)
def test_trouble_is_told_once_and_the_job_is_followed_on(step: bytes, said: Any) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.over() == [event(1), said, RECOVERED, end("done", "ok")]

    play(script(at_work(1), step, step, finished("ok")), task(), story)


def test_what_the_broker_does_not_take_is_said_when_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssegate.sources.telling.BROKER_PAUSE", 0.01)

    async def story(stage: Stage) -> None:
        stage.refuses = 3
        stage.begin()
        assert await stage.over() == [event(1), end("done", "ok")]

    play(script(at_work(1), finished("ok")), task(), story)


# Who waits for the first answer


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_who_waits_for_the_first_answer_is_told_a_refusal_itself(status: int) -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited == status
        assert await stage.over() == []

    play(answer(status=status), task(), story)


def test_who_waits_is_told_when_the_first_status_has_been_said() -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited is None
        assert stage.words == [event(1)]

    play(at_work(1), task(), story)


def test_a_job_that_nobody_watches_for_a_while_is_followed_on_and_tells_no_progress_twice() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        asked = len(stage.targets)
        stage.begin()
        await stage.until_asked(asked + 2)
        assert stage.words == [event(1)]
        stage.scripted.answer_with(finished("ok", 2))
        assert await stage.over() == [event(1), event(2), end("done", "ok")]
        assert stage.said[-1].kind is Kind.END

    play(at_work(1), task(), story)
