"""A topic in one JSON answer: what is in it, when it comes, and that a stream opened at its cursor misses nothing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssegate.brokers.memory import MemoryBroker
from ssegate.core.event import EventStreamDecoder, Kind, Update
from ssegate.core.hub import First, Hub, TopicSettings
from ssegate.core.journal import Form
from ssegate.edge.exchange import Answer
from ssegate.errors import RejectedError
from ssegate.gate.topics import Topics
from ssegate.gate.whole import LONGEST_WAIT, answer_whole, read_wait

SHARED = ((b"vary", b"Origin"),)


class World:
    """One topic, told what happens by short words."""

    def __init__(self, form: Form, first: First = First.NOTHING, max_events: int = 1000) -> None:
        self.form = form
        epochs = iter("efghijklmnopqrstuvwxyz" * 100)
        self.topics = Topics(Hub(), MemoryBroker(lambda: next(epochs)), max_topics=10)
        rules = TopicSettings(
            form,
            max_events=max_events,
            max_age=1000,
            first=first,
            snapshot_type="snapshot" if form is Form.CHANGES else "",
        )
        self.route: Any = SimpleNamespace(topic_settings=rules)
        topic = self.topics.open("t", self.route)
        assert topic is not None
        self.topic = topic
        self.value = 0

    async def say(self, data: str, kind: Kind = Kind.EVENT, *, type_: str = "", state: str | None = None) -> None:
        if kind is Kind.END:
            type_ = "end"
        elif kind is Kind.EVENT and self.form is Form.STATES:
            state = data
        await self.topics.publish(Update("t", data, type_, state, kind), self.route)

    async def count(self, *, has_state: bool = True) -> None:
        """The document is the next number; a change says from which."""
        self.value += 1
        whole = json.dumps({"value": self.value})
        if self.form is Form.CHANGES and self.topic.journal.head:
            change = json.dumps({"from": self.value - 1, "value": self.value})
            await self.say(change, type_="change", state=whole if has_state else None)
        else:
            await self.say(whole, state=None if self.form is Form.EVENTS else whole)

    def ask(self, cursor: str | None = None, wait: float = 0.0) -> Answer | Awaitable[Answer]:
        return answer_whole(self.topics, self.topic, cursor, wait, SHARED, lambda reader: None)

    def get(self, cursor: str | None = None) -> Got:
        answer = self.ask(cursor)
        assert isinstance(answer, Answer)
        return Got.of(answer)

    async def wait(self, cursor: str | None = None, seconds: float = 5.0) -> Got:
        answer = self.ask(cursor, seconds)
        return Got.of(answer if isinstance(answer, Answer) else await answer)


@dataclass(frozen=True)
class Got:
    """An answer as a client sees it."""

    status: int
    value: Any
    cursor: str | None
    is_over: bool

    @classmethod
    def of(cls, answer: Answer) -> Got:
        headers = {name.decode(): value.decode() for name, value in answer.headers}
        assert headers["vary"] == "Origin"
        if answer.status == 200:
            assert (headers["content-type"], headers["cache-control"]) == ("application/json", "no-store")
        else:
            assert (answer.status, answer.body) == (204, b"") or answer.status == 503
        value = json.loads(answer.body) if answer.body else None
        return cls(answer.status, value, headers.get("ssegate-cursor"), headers.get("ssegate-ended") == "yes")


@asynccontextmanager
async def world_of(form: Form, **others: Any) -> AsyncIterator[World]:
    world = World(form, **others)
    await world.topics.start()
    try:
        yield world
    finally:
        await world.topics.aclose()


def play(form: Form, story: Callable[[World], Awaitable[None]], **others: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(5), world_of(form, **others) as world:
            await story(world)

    asyncio.run(run())


STATEFUL = pytest.mark.parametrize("form", [Form.STATES, Form.CHANGES])


# A state


@STATEFUL
def test_the_state_comes_with_the_cursor_of_the_event_that_brought_it(form: Form) -> None:
    async def story(world: World) -> None:
        await world.count()
        await world.count()
        assert world.get() == Got(200, {"value": 2}, "e-2", is_over=False)
        assert world.get("e-1") == world.get("e-2") == world.get("foreign-9") == world.get(), "whatever one had"

    play(form, story)


@STATEFUL
def test_where_there_is_no_state_yet_it_is_503_and_says_when_to_come_back(form: Form) -> None:
    async def story(world: World) -> None:
        answer = world.ask()
        assert isinstance(answer, Answer)
        assert (answer.status, dict(answer.headers)[b"retry-after"]) == (503, b"2")
        assert "has not answered" in json.loads(answer.body)["detail"]
        await world.say("{}", Kind.FAULT)
        answer = world.ask()
        assert isinstance(answer, Answer)
        assert "in trouble" in json.loads(answer.body)["detail"]

    play(form, story)


def test_half_a_change_is_not_in_the_state_and_its_cursor_is_before_it() -> None:
    async def story(world: World) -> None:
        await world.count()
        await world.count(has_state=False)
        assert world.get() == Got(200, {"value": 1}, "e-1", is_over=False)
        await world.count()
        assert world.get() == Got(200, {"value": 3}, "e-3", is_over=False)

    play(Form.CHANGES, story)


@STATEFUL
def test_a_state_that_is_final_says_so_and_its_cursor_leads_to_the_end(form: Form) -> None:
    async def story(world: World) -> None:
        await world.count()
        await world.say('{"reason":"done"}', Kind.END)
        got = world.get()
        assert got == Got(200, {"value": 1}, "e-1", is_over=True)
        opening = world.topics.subscribe(world.topic, got.cursor)
        assert b"event: end" in opening.subscriber.read()

    play(form, story)


@pytest.mark.parametrize(("text", "value"), [("<p>", "<p>"), ("a\nb", "a\nb"), ("{\n}", {}), ("", ""), ("1", 1)])
def test_a_state_that_is_no_json_is_a_string(text: str, value: Any) -> None:
    async def story(world: World) -> None:
        await world.say(text)
        assert world.get().value == value

    play(Form.STATES, story)


def test_half_a_surrogate_pair_in_a_state_becomes_a_replacement_character() -> None:
    async def story(world: World) -> None:
        await world.say('[\n"\\ud800"]')
        assert world.get().value == ["\ufffd"]

    play(Form.STATES, story)


def test_half_a_surrogate_pair_in_an_event_becomes_a_replacement_character() -> None:
    async def story(world: World) -> None:
        await world.say('[\n"\\ud800"]')
        assert world.get().value[0]["data"] == ["\ufffd"]

    play(Form.EVENTS, story)


# Events


@pytest.mark.parametrize("first", list(First))
def test_without_a_cursor_all_events_that_are_kept_are_in_the_list(first: First) -> None:
    async def story(world: World) -> None:
        assert world.get() == Got(200, [], None, is_over=False)
        for data in ("1", "text", '{"a":1}'):
            await world.say(data, type_="log" if data == "text" else "")
        expected = [
            {"id": "e-1", "data": 1},
            {"id": "e-2", "event": "log", "data": "text"},
            {"id": "e-3", "data": {"a": 1}},
        ]
        assert world.get() == Got(200, expected, "e-3", is_over=False)
        assert world.get("e-1") == Got(200, expected[1:], "e-3", is_over=False)
        assert world.get("e-3") == Got(200, [], "e-3", is_over=False)
        assert world.get("earliest").value == expected

    play(Form.EVENTS, story, first=first)


def test_a_cursor_that_does_not_lead_on_is_told_in_the_list() -> None:
    async def story(world: World) -> None:
        for number in range(4):
            await world.say(str(number))
        unknown = {"event": "reset", "data": {"reason": "unknown-cursor"}}
        kept = [{"id": "e-3", "data": 2}, {"id": "e-4", "data": 3}]
        for cursor in ("foreign-1", "junk", "e-99"):
            assert world.get(cursor) == Got(200, [unknown, *kept], "e-4", is_over=False)
        assert world.get("e-1").value[0] == {"event": "reset", "data": {"reason": "gap"}}
        assert world.get("e-1").value[1:] == kept

    play(Form.EVENTS, story, max_events=2)


def test_trouble_is_in_the_list_and_takes_no_place() -> None:
    async def story(world: World) -> None:
        await world.say("1")
        await world.say('{"reason":"upstream"}', Kind.FAULT)
        fault = {"event": "fault", "data": {"reason": "upstream"}}
        assert world.get() == Got(200, [{"id": "e-1", "data": 1}, fault], "e-1", is_over=False)
        assert world.get("e-1").value == [fault]

    play(Form.EVENTS, story)


def test_finished_events_end_with_their_end() -> None:
    async def story(world: World) -> None:
        await world.say("1")
        await world.say('{"reason":"done"}', Kind.END)
        end = {"id": "e-2", "event": "end", "data": {"reason": "done"}}
        assert world.get("e-1") == Got(200, [end], "e-2", is_over=True)
        assert world.get("e-2") == Got(200, [], "e-2", is_over=True)

    play(Form.EVENTS, story)


def test_many_events_are_one_list() -> None:
    async def story(world: World) -> None:
        for number in range(900):
            await world.say(json.dumps(str(number) * 200))
        assert [item["id"] for item in world.get().value] == [f"e-{number}" for number in range(1, 901)]

    play(Form.EVENTS, story)


def test_who_asks_for_a_list_is_no_reader_behind_it() -> None:
    async def story(world: World) -> None:
        await world.say("1")
        world.get()
        world.get("e-1")
        assert not world.topic.subscribers
        assert world.topic.waiting == set()

    play(Form.EVENTS, story)


# Waiting


@pytest.mark.parametrize("form", list(Form))
def test_who_is_behind_does_not_wait(form: Form) -> None:
    async def story(world: World) -> None:
        await world.count()
        await world.count()
        for cursor in (None, "e-1", "foreign-1"):
            assert isinstance(world.ask(cursor, wait=30), Answer)

    play(form, story)


@pytest.mark.parametrize("form", list(Form))
def test_who_is_not_is_answered_by_the_next_change(form: Form) -> None:
    async def story(world: World) -> None:
        await world.count()
        waiting = asyncio.ensure_future(world.wait("e-1"))
        await asyncio.sleep(0.01)  # nothing comes for a while
        assert not waiting.done()
        assert len(world.topic.subscribers) == 1, "so that it is watched"
        await world.count()
        got = await waiting
        assert (got.status, got.cursor, got.is_over) == (200, "e-2", False)
        if form is Form.EVENTS:
            assert got.value == [{"id": "e-2", "data": {"value": 2}}]
        else:
            assert got.value == {"value": 2}
        assert not world.topic.subscribers

    play(form, story)


@pytest.mark.parametrize("form", list(Form))
def test_where_nothing_comes_it_is_204_with_the_cursor(form: Form) -> None:
    async def story(world: World) -> None:
        await world.count()
        assert await world.wait("e-1", 0.02) == Got(204, None, "e-1", is_over=False)
        assert not world.topic.subscribers

    play(form, story)


@pytest.mark.parametrize("form", list(Form))
def test_who_comes_before_the_first_event_waits_for_it(form: Form) -> None:
    async def story(world: World) -> None:
        assert await world.wait(None, 0.02) == Got(204, None, None, is_over=False)
        waiting = asyncio.ensure_future(world.wait())
        await asyncio.sleep(0.01)  # nothing comes for a while
        await world.count()
        got = await waiting
        assert (got.status, got.cursor) == (200, "e-1")

    play(form, story)


def test_trouble_is_nothing_new() -> None:
    async def story(world: World) -> None:
        await world.count()
        waiting = asyncio.ensure_future(world.wait("e-1"))
        await asyncio.sleep(0)
        await world.say("{}", Kind.FAULT)
        await world.say("{}", Kind.RECOVERED)
        await asyncio.sleep(0.01)  # nothing comes for a while
        assert not waiting.done()
        await world.count()
        assert (await waiting).value == {"value": 2}

    play(Form.STATES, story)


def test_who_leaves_while_waiting_is_no_reader_any_more() -> None:
    async def story(world: World) -> None:
        await world.count()
        waiting = asyncio.ensure_future(world.wait("e-1"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert not world.topic.subscribers

    play(Form.STATES, story)


def test_of_a_burst_all_that_came_is_in_the_list() -> None:
    async def story(world: World) -> None:
        await world.count()
        waiting = asyncio.ensure_future(world.wait("e-1"))
        await asyncio.sleep(0)
        for _ in range(3):
            await world.count()
        assert [item["id"] for item in (await waiting).value] == ["e-2", "e-3", "e-4"]

    play(Form.EVENTS, story)


def test_another_beginning_is_something_new() -> None:
    async def story(world: World) -> None:
        await world.say("1")
        waiting = asyncio.ensure_future(world.wait("e-1"))
        await asyncio.sleep(0)
        await world.say('{"reason":"gap"}', Kind.RESET)
        got = await waiting
        assert (got.value, got.cursor) == ([{"event": "reset", "data": {"reason": "unknown-cursor"}}], "f-0")
        waiting = asyncio.ensure_future(world.wait(got.cursor))
        await asyncio.sleep(0)
        await world.say("2")
        assert (await waiting).value == [{"id": "f-1", "data": 2}]

    play(Form.EVENTS, story)


@pytest.mark.parametrize("form", list(Form))
def test_what_comes_as_the_time_is_over_is_not_lost(form: Form) -> None:
    async def story(world: World) -> None:
        await world.count()
        waiting = asyncio.ensure_future(world.wait("e-1", 0.02))
        await asyncio.sleep(0)
        time.sleep(0.04)  # the loop is busy with others, and the time is over when it comes back
        await world.count()
        got = await waiting
        assert got.status == 200 or got.cursor == "e-1"

    play(form, story)


@pytest.mark.parametrize("form", list(Form))
def test_who_has_all_of_a_finished_topic_is_told_at_once(form: Form) -> None:
    async def story(world: World) -> None:
        await world.count()
        await world.say("{}", Kind.END)
        started = time.monotonic()
        got = await world.wait("e-2", 0.5)
        assert (got.status, got.is_over) == (204, True)
        assert time.monotonic() - started < 0.3

    play(form, story)


@STATEFUL
def test_an_end_that_comes_is_told_to_who_waits_for_a_state(form: Form) -> None:
    async def story(world: World) -> None:
        await world.count()
        waiting = asyncio.ensure_future(world.wait("e-1", 0.5))
        await asyncio.sleep(0)
        started = time.monotonic()
        await world.say("{}", Kind.END)
        got = await waiting
        assert got.is_over
        assert time.monotonic() - started < 0.3

    play(form, story)


def test_an_end_that_comes_is_in_the_list() -> None:
    async def story(world: World) -> None:
        await world.say("1")
        waiting = asyncio.ensure_future(world.wait("e-1"))
        await asyncio.sleep(0)
        await world.say('{"reason":"done"}', Kind.END)
        got = await waiting
        assert (got.is_over, got.cursor, got.value[0]["event"]) == (True, "e-2", "end")

    play(Form.EVENTS, story)


def test_what_is_over_without_a_state_says_that_it_is_over() -> None:
    async def story(world: World) -> None:
        await world.say('{"reason":"done"}', Kind.END)
        got = world.get()
        assert (got.status, got.is_over) == (204, True)

    play(Form.STATES, story)


def test_a_cursor_from_the_future_does_not_wait() -> None:
    async def story(world: World) -> None:
        await world.say("1")
        answer = world.ask("e-99", wait=30)
        if not isinstance(answer, Answer):
            answer.close()  # type: ignore[attr-defined]  # a coroutine
            raise AssertionError("it waits")
        assert Got.of(answer).value[0]["event"] == "reset"

    play(Form.EVENTS, story)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0),
        ("0s", 0),
        ("500ms", 0.5),
        ("30s", 30),
        ("1m", 60),
        ("60s", LONGEST_WAIT),
        ("1h", LONGEST_WAIT),
        ("1d", 60),
    ],
)
def test_a_wait_is_a_duration_and_no_longer_than_networks_bear(text: str | None, seconds: float) -> None:
    assert read_wait(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "soon", "-1s", "1.5.2s", "1 s", "nan", "٣s", "1s\n", "9" * 5000 + "s"])
def test_what_is_no_duration_is_400(text: str) -> None:
    with pytest.raises(RejectedError, match="`wait` is not a duration") as caught:
        read_wait(text)
    assert caught.value.status == 400


# Whatever happens


class Follower:
    """A client that loaded the state, and then reads the stream from there."""

    def __init__(self, world: World, got: Got) -> None:
        self.world = world
        self.value: int | None = got.value["value"] if got.status == 200 else None
        opening = world.topics.subscribe(world.topic, got.cursor)
        self.subscriber = opening.subscriber
        self.is_resumed = opening.is_resumed
        self.decoder = EventStreamDecoder()
        self.apply(opening.data)

    def apply(self, data: bytes) -> None:
        for event in self.decoder.receive(data):
            if event.type == "reset":
                self.value = None
            elif event.type == "change":
                change = json.loads(event.data)
                assert change["from"] == self.value, "a change of another document"
                self.value = change["value"]
            elif event.type in ("", "snapshot"):
                self.value = json.loads(event.data)["value"]

    def catch_up(self) -> None:
        while data := self.subscriber.read():
            self.apply(data)


steps = st.lists(st.sampled_from(["change", "half", "fault", "recovered", "anew", "load", "read"]), max_size=30)


@STATEFUL
@settings(max_examples=60, deadline=None)
@given(steps, st.booleans())
def test_a_stream_opened_at_the_cursor_of_a_state_misses_nothing(form: Form, words: list[str], is_over: bool) -> None:
    async def story(world: World) -> None:
        followers: list[Follower] = []
        has_state = False
        for word in [*words, "change", *(["end"] if is_over else []), "load"]:
            if word == "change" or (word == "half" and form is Form.CHANGES and has_state):
                await world.count(has_state=word == "change")
                has_state = True
            elif word in ("fault", "recovered"):
                await world.say("{}", Kind(word))
            elif word == "anew":
                await world.say("{}", Kind.RESET)
                has_state = False
            elif word == "end":
                await world.say("{}", Kind.END)
            elif word == "read":
                for follower in followers:
                    follower.catch_up()
            elif word == "load" and (got := world.get()).status == 200:
                followers.append(Follower(world, got))
                assert followers[-1].is_resumed, "it is a cursor of this topic"
        for follower in followers:
            follower.catch_up()
            assert follower.value == world.value
            assert follower.subscriber.is_over == is_over

    play(form, story)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["say", "get", "wait", "turn"]), max_size=40))
def test_lists_taken_one_behind_the_other_have_every_event_once_and_in_order(words: list[str]) -> None:
    async def story(world: World) -> None:
        seen: list[int] = []
        said = 0
        cursor: str | None = None
        for word in [*words, "get"]:
            if word == "say":
                said += 1
                await world.say(str(said))
            elif word == "turn":
                await asyncio.sleep(0)
            else:
                got = world.get(cursor) if word == "get" else await world.wait(cursor, 0.0001)
                seen += [item["data"] for item in got.value or ()]
                cursor = got.cursor or cursor
        assert seen == [*range(1, said + 1)]

    play(Form.EVENTS, story)


def test_a_client_that_only_ever_waits_gets_every_event_once_and_in_order() -> None:
    async def story(world: World) -> None:
        seen: list[int] = []

        async def client() -> None:
            cursor: str | None = None
            while True:
                got = await world.wait(cursor)
                for item in got.value or ():
                    if item.get("event") == "end":
                        return
                    seen.append(item["data"])
                cursor = got.cursor or cursor

        reading = asyncio.ensure_future(client())
        for number in range(1, 301):
            await world.say(str(number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await world.say("{}", Kind.END)
        await reading
        assert seen == [*range(1, 301)]

    play(Form.EVENTS, story)
