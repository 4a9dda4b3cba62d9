"""Several topics as one stream: each is told as it would be by itself, whatever the others do, and wherever it is cut.

First random stories, told to a joined reader and to readers of the single topics; then the single facts by name; then the native
edge's channel.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.event import Event, EventStreamDecoder, Kind, Update, encode_event, encode_retry
from ssegate.core.hub import EARLIEST, Hub, Opening, Subscriber, Topic, TopicSettings
from ssegate.core.joined import SLICE_BYTES, Join, rename
from ssegate.core.journal import Form, Position
from ssegate.core.shape import Shape
from ssegate.core.vector import UNKNOWN, decode_vector, encode_vector
from ssegate.edge.exchange import Stream
from ssegate.edge.latency import Latency
from ssegate.edge.native.fanout import Channel, Reader

NAMES = ("/orders/17/events", "/users/42/notifications", "/news")
EXPIRED = encode_event(Event('{"reason":"expired"}', "end"))
FAREWELL = encode_retry(500)
EXPIRING = encode_event(Event('{"in":60}', "expiring"))


class World:
    """Topics, and what is published on them."""

    def __init__(self, *forms: Form, names: tuple[str, ...] = NAMES, max_events: int = 10_000) -> None:
        self.hub = Hub()
        self.epochs = 0
        self.topics = {name: self.open(name, form, max_events) for name, form in zip(names, forms, strict=False)}

    def open(self, name: str, form: Form, max_events: int) -> Topic:
        snapshot_type = "snapshot" if form is Form.CHANGES else ""
        return self.hub.open(name, TopicSettings(form, max_events, 1e6, snapshot_type=snapshot_type), 0.0)

    def publish(self, name: str, data: str, type_: str = "", kind: Kind = Kind.EVENT, *, begin: bool = False) -> None:
        topic = self.topics[name]
        journal = topic.journal
        if kind in (Kind.EVENT, Kind.END, Kind.RESET) and (begin or not journal.epoch or kind is Kind.RESET):
            self.epochs += 1
            position = Position(f"e{self.epochs}", 0 if kind is Kind.RESET else 1)
        else:
            position = Position(journal.epoch, journal.head + 1)
        has_state = kind is Kind.EVENT and topic.settings.form is not Form.EVENTS
        update = Update(name, data, type_, data if has_state else None, kind)
        if topic.receive(update, position, 0.0):
            topic.wake()

    def subscribe(self, name: str, cursor: str | None = None) -> Opening:
        return self.hub.subscribe(self.topics[name], cursor, 0.0, lambda: None)

    def join(self, *names: str, cursor: str | None = None) -> Join:
        """As a gate does it: with the vector a client came back with."""
        vector = None if cursor is None else decode_vector(cursor)
        join = Join(vector, leave=lambda reader: self.hub.unsubscribe(reader, 0.0))
        for name in names or self.topics:
            journal = self.topics[name].journal
            join.add(name, self.subscribe(name, None if vector is None else vector.cursor(name, journal.epoch)))
        return join


class Client:
    """What a client makes of a joined stream."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.decoder = EventStreamDecoder()

    def receive(self, data: bytes) -> None:
        self.events += self.decoder.receive(data)

    def read(self, join: Join, max_bytes: int = 1 << 16) -> None:
        """Read all there is, in pieces of this size."""
        while data := join.subscriber.read(max_bytes):
            self.receive(data)

    def told(self, name: str) -> list[tuple[str, str]]:
        """Type and data of this topic's events."""
        return told_of(name, self.events)


def told_of(name: str, events: list[Event]) -> list[tuple[str, str]]:
    mine = [event for event in events if event.type.partition("#")[0] == name]
    return [(event.type.partition("#")[2], event.data) for event in mine]


def told_alone(data: bytes) -> list[tuple[str, str]]:
    return [(event.type, event.data) for event in EventStreamDecoder().receive(data)]


def told_by(join: Join) -> list[tuple[str, str, str | None]]:
    """Type, data and id of all there is to read; the id of those that have none is the one before, or None."""
    client = Client()
    client.receive(join.opening())
    client.read(join)
    return [(event.type, event.data, event.id) for event in client.events]


def read_all(reader: Subscriber) -> bytes:
    return b"".join(iter(reader.read, b""))


# Stories

topics = st.sampled_from(range(3))
steps = st.one_of(
    st.tuples(st.just("publish"), topics, st.sampled_from([1, 40, 3000, SLICE_BYTES, 3 * SLICE_BYTES])),
    st.tuples(st.just("change"), topics, st.integers(1, 100)),
    st.tuples(st.just("say"), topics, st.just(0)),
    st.tuples(st.just("close"), topics, st.just(0)),
    st.tuples(st.just("end"), topics, st.just(0)),
    st.tuples(st.just("sip"), topics, st.sampled_from([1, 500, 5000, 1 << 16])),
)


@given(st.lists(steps, max_size=30))
def test_each_topic_is_told_as_by_itself_however_it_is_read(story: list[tuple[str, int, int]]) -> None:
    world = World(Form.EVENTS, Form.EVENTS, Form.EVENTS)
    join, client = world.join(), Client()
    alone = [world.subscribe(name).subscriber for name in NAMES]
    joined = list(join.members)
    told = [b"", b"", b""]
    closed = set()
    client.receive(join.opening())
    for number, (step, at, size) in enumerate(story):
        name, topic = NAMES[at], world.topics[NAMES[at]]
        match step:
            case "publish" if not topic.is_over:
                world.publish(name, f"{number} {'x' * size}")
            case "change" if not topic.is_over:
                world.publish(name, f"{number}\n\n{'y' * size}\r\n", "patch")
            case "end" if not topic.is_over:
                world.publish(name, "{}", "end", Kind.END)
            case "say" | "close" if at not in closed and not topic.is_over:
                # At a place that both have reached: elsewhere they are told when they are.
                client.read(join)
                told[at] += read_all(alone[at])
                for reader in (alone[at], joined[at]):
                    reader.say(EXPIRING) if step == "say" else reader.close(EXPIRED)
                if step == "close":
                    closed.add(at)
            case "sip":
                client.receive(join.subscriber.read(size))
    client.read(join, 700)
    for at, name in enumerate(NAMES):
        told[at] += read_all(alone[at])
        assert client.told(name) == told_alone(told[at])
    assert join.subscriber.is_over == all(reader.is_over for reader in alone)
    assert {reader for reader in joined if not reader.is_over} == set(join.members)


troubles = st.one_of(
    st.tuples(st.sampled_from(list(Kind)), topics, st.integers(1, 400)),
    st.tuples(st.just(Kind.EVENT), topics, st.integers(1, 400)),
    st.tuples(st.just(None), topics, st.integers(0, 1)),
)


@given(st.permutations(list(Form)), st.lists(troubles, max_size=40))
def test_each_topic_is_told_as_by_itself_in_trouble_and_of_every_form(
    forms: list[Form], story: list[tuple[Kind | None, int, int]]
) -> None:
    world = World(*forms, max_events=3)
    world.publish(NAMES[0], "0")
    openings = [world.subscribe(name) for name in NAMES]
    told = [opening.data for opening in openings]
    join, client = world.join(), Client()
    joined = list(join.members)
    client.receive(join.opening())
    over = set()
    for number, (kind, at, size) in enumerate(story):
        topic = world.topics[NAMES[at]]
        if kind is None and size and at not in over:
            for reader in (joined[at], openings[at].subscriber):
                reader.say(EXPIRING)
        elif kind is None:
            client.read(join)
            told = [data + read_all(opening.subscriber) for data, opening in zip(told, openings, strict=True)]
        elif at not in over:
            type_ = "end" if kind is Kind.END else "patch" if topic.settings.form is Form.CHANGES else ""
            world.publish(NAMES[at], json.dumps(str(number) + "x" * size), type_, kind)
            if topic.is_over or topic.is_revoked:
                over.add(at)
    client.read(join)
    for at, name in enumerate(NAMES):
        assert client.told(name) == told_alone(told[at] + read_all(openings[at].subscriber))


@given(
    st.lists(st.tuples(topics, st.sampled_from([1, 100, 5000, 2 * SLICE_BYTES])), min_size=1, max_size=25),
    st.integers(0, 10),
    st.data(),
)
def test_a_stream_that_is_cut_goes_on_in_every_topic_where_its_last_id_stood(
    published: list[tuple[int, int]], before: int, draw: st.DataObject
) -> None:
    world = World(Form.EVENTS, Form.EVENTS, Form.EVENTS)
    for name in NAMES:
        world.publish(name, "first")  # a topic without one has no epoch to remember
    join, client = world.join(), Client()
    received = bytearray(join.opening())
    for number, (at, size) in enumerate(published):
        world.publish(NAMES[at], f"{number} {'x' * size}")
        if number == before:
            received += read_all(join.subscriber)
    received += read_all(join.subscriber)
    client.receive(bytes(received[: draw.draw(st.integers(0, len(received)))]))
    cursor = client.decoder.last_event_id
    if not cursor:
        return
    assert len(client.events) == 0 or cursor == client.events[-1].id
    again = world.join(cursor=cursor)
    client.decoder = EventStreamDecoder()
    client.receive(again.opening())
    client.read(again)
    for at, name in enumerate(NAMES):
        sent = [("", f"{number} {'x' * size}") for number, (topic, size) in enumerate(published) if topic == at]
        assert client.told(name) == sent


# Names and ids


def test_events_are_named_by_their_topic_and_the_id_covers_all_of_them() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    world.publish(NAMES[0], "old")
    world.publish(NAMES[1], "old")
    join = world.join()
    assert join.opening() == b""
    world.publish(NAMES[0], "a")
    world.publish(NAMES[1], "b\nc", "patch")
    one = encode_vector([(NAMES[0], Position("e1", 2)), (NAMES[1], Position("e2", 1))])
    two = encode_vector([(NAMES[0], Position("e1", 2)), (NAMES[1], Position("e2", 2))])
    assert join.subscriber.read() == (
        b"event: /orders/17/events\ndata: a\nid: %b\n\n"
        b"event: /users/42/notifications#patch\ndata: b\ndata: c\nid: %b\n\n" % (one.encode(), two.encode())
    )
    assert join.subscriber.read() == b""
    assert not join.subscriber.is_over


def test_control_events_carry_the_topic_and_no_id() -> None:
    world = World(Form.EVENTS)
    world.publish(NAMES[0], "{}", kind=Kind.FAULT)
    join = Join()
    join.add(NAMES[0], world.subscribe(NAMES[0], UNKNOWN))
    world.publish(NAMES[0], "{}", kind=Kind.RECOVERED)
    world.publish(NAMES[0], "{}", kind=Kind.FAULT)
    for reader in join.members:
        reader.say(EXPIRING)
        assert told_by(join) == [
            ("/orders/17/events#reset", '{"reason":"unknown-cursor"}', None),
            ("/orders/17/events#expiring", '{"in":60}', None),
            ("/orders/17/events#fault", "{}", None),
        ]
    world.publish(NAMES[0], "{}", kind=Kind.RECOVERED)
    assert told_by(join) == [("/orders/17/events#recovered", "{}", None)]


@pytest.mark.parametrize("name", ["", "/a\nevent: forged", "/a\r", "/a\0"])
def test_a_name_that_could_forge_a_field_is_refused(name: str) -> None:
    world = World(Form.EVENTS)
    with pytest.raises(ValueError, match="a topic's name"):
        Join().add(name, world.subscribe(NAMES[0]))
    with pytest.raises(ValueError, match="a topic's name"):
        Join().refuse(name, "{}")


def test_names_are_sent_as_utf8() -> None:
    world = World(Form.EVENTS, names=("/größe\udc80",))
    world.publish("/größe\udc80", "1")
    join = world.join()
    world.publish("/größe\udc80", "2", "ä")
    assert told_by(join)[0][:2] == (rename("/größe\ufffd", "ä"), "2")


def test_comments_and_a_retry_time_between_events_pass_as_they_are() -> None:
    world = World(Form.EVENTS)
    join = world.join()
    (reader,) = join.members
    reader.say(b": hello\n" + encode_retry(5) + EXPIRING + b":\n\n" + EXPIRING + encode_retry(7))
    expiring = b'event: /orders/17/events#expiring\ndata: {"in":60}\n\n'
    assert join.subscriber.read() == b": hello\nretry: 5\n:\n" + expiring + b":\n\n" + expiring + b"retry: 7\n:\n"


def test_an_id_without_data_moves_the_cursor() -> None:
    world = World(Form.EVENTS)
    join = world.join()
    (reader,) = join.members
    reader.say(b":\n\nid: e1-9\n\n")
    assert join.subscriber.read() == b":\n\nid: %b\n\n" % encode_vector([(NAMES[0], Position("e1", 9))]).encode()


# How it begins


def test_the_openings_of_all_topics_come_first_and_once() -> None:
    world = World(Form.STATES, Form.CHANGES, Form.EVENTS)
    for name in NAMES:
        world.publish(name, "1")
    join = world.join()
    world.publish(NAMES[0], "2")
    client = Client()
    client.receive(join.opening())
    assert [(event.type, event.data) for event in client.events] == [
        ("/orders/17/events", "1"),
        ("/users/42/notifications#snapshot", "1"),
    ]
    assert join.opening() == b""
    client.read(join)
    assert client.told(NAMES[0]) == [("", "1"), ("", "2")]


def test_an_opening_that_is_cut_begins_again_with_the_topics_it_had_not_come_to() -> None:
    world = World(Form.STATES, Form.STATES)
    for name in NAMES[:2]:
        world.publish(name, "1")
    client = Client()
    opening = world.join().opening()
    client.receive(opening[: opening.index(b"\n\n") + 10])
    again = world.join(cursor=client.decoder.last_event_id)
    client.decoder = EventStreamDecoder()
    client.receive(again.opening())
    assert [client.told(name) for name in NAMES[:2]] == [[("", "1")], [("", "1")]]


def test_a_reset_that_did_not_arrive_is_told_again() -> None:
    world = World(Form.STATES, Form.EVENTS, max_events=2)
    for _ in range(5):
        for name in NAMES[:2]:
            world.publish(name, "1")
    cursor = encode_vector((name, Position(f"e{n + 1}", 1)) for n, name in enumerate(NAMES[:2]))
    opening = world.join(cursor=cursor).opening()
    first, second, rest = opening.split(b"\n\n", 2)
    assert first.startswith(b"event: /orders/17/events#reset\n")
    assert second.startswith(b"event: /orders/17/events\n")
    assert rest.startswith(b"event: /users/42/notifications#reset\n")
    again = world.join(cursor=second.rpartition(b"id: ")[2].decode())
    assert again.opening().startswith(b"event: /users/42/notifications#reset\n")
    # It has been told now, and the next id says so.
    world.publish(NAMES[0], "2")
    events = told_by(again)
    assert [event[:2] for event in events] == [("/orders/17/events", "2"), *[("/users/42/notifications", "1")] * 2]
    vector = decode_vector(events[0][2] or "")
    assert vector is not None
    assert vector.cursor(NAMES[1], "e2") == "e2-3"


def test_openings_that_are_too_much_at_once_are_read_afterwards() -> None:
    world = World(Form.STATES, Form.STATES, Form.STATES)
    for name in NAMES:
        world.publish(name, "x" * 50_000)
    join, client = world.join(), Client()
    opening = join.opening()
    assert 0 < len(opening) <= 1 << 16
    client.receive(opening)
    client.read(join)
    assert [client.told(name) for name in NAMES] == [[("", "x" * 50_000)]] * 3


def test_a_topic_that_is_refused_says_so_and_leaves_the_others_alone() -> None:
    world = World(Form.STATES)
    world.publish(NAMES[0], "1")
    cursor = encode_vector([("/secret", Position("s", 4))])
    join = Join(decode_vector(cursor))
    join.refuse("/secret", '{"reason":"forbidden"}')
    join.add(NAMES[0], world.subscribe(NAMES[0]))
    events = told_by(join)
    assert events[0] == ("/secret#end", '{"reason":"forbidden"}', None)
    assert events[1][:2] == ("/orders/17/events", "1")
    assert not join.subscriber.is_over
    assert not join.is_finished
    # Whoever gets the right to it later goes on where he was.
    vector = decode_vector(events[1][2] or "")
    assert vector is not None
    assert vector.cursor("/secret", "s") == "s-4"


def test_a_stream_of_refused_topics_is_over_when_they_have_been_told() -> None:
    join = Join()
    join.refuse("/secret", "{}")
    assert not join.subscriber.is_over
    assert not join.is_finished
    assert join.opening() == b"event: /secret#end\ndata: {}\n\n"
    assert join.subscriber.read() == b""
    assert join.subscriber.is_over


def test_a_client_that_has_had_every_end_has_nothing_to_read() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    for name in NAMES[:2]:
        world.publish(name, "1")
    join = world.join()
    for name in NAMES[:2]:
        world.publish(name, "{}", "end", Kind.END)
    events = told_by(join)
    assert [event[0] for event in events] == [f"{name}#end" for name in NAMES[:2]]
    assert join.subscriber.is_over
    again = world.join(cursor=events[-1][2])
    assert again.is_finished
    assert again.members == []
    # One that has had one of them is told the other, and keeps that it has had the first.
    half = world.join(cursor=events[0][2])
    assert not half.is_finished
    assert told_by(half) == events[1:]


# How topics end


def test_a_reader_that_is_closed_ends_its_topic_and_is_let_go_of_at_once() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    join = world.join()
    reader, other = join.members
    reader.close(EXPIRED)
    assert told_by(join) == [("/orders/17/events#end", '{"reason":"expired"}', None)]
    assert list(join.members) == [other]
    assert not world.topics[NAMES[0]].subscribers
    world.publish(NAMES[0], "not for him")
    world.publish(NAMES[1], "1")
    assert [event[:2] for event in told_by(join)] == [("/users/42/notifications", "1")]
    assert not join.subscriber.is_over


@pytest.mark.parametrize("leave", [None, lambda _: None])
def test_a_topic_that_begins_anew_behind_its_end_is_not_told(leave: Callable[[Subscriber], None] | None) -> None:
    world = World(Form.EVENTS)
    join = Join(leave=leave)
    join.add(NAMES[0], world.subscribe(NAMES[0]))
    world.publish(NAMES[0], "{}", "end", Kind.END)
    assert [event[0] for event in told_by(join)] == ["/orders/17/events#end"]
    assert join.subscriber.is_over
    world.publish(NAMES[0], "1", begin=True)
    assert join.subscriber.read() == b""
    assert join.subscriber.is_over
    assert len(join.members) == (leave is None)


@pytest.mark.parametrize("farewell", [b"", encode_retry(500), encode_event(Event("event: end", "moved"))])
def test_a_reader_that_is_to_come_back_ends_the_whole_stream(farewell: bytes) -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    join = world.join()
    join.members[0].close(farewell)
    assert join.subscriber.read() == farewell
    assert join.subscriber.read() == b""
    assert join.subscriber.is_over
    assert join.subscriber.is_closed


def test_the_whole_stream_is_closed_with_these_bytes() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    join = world.join()
    woken = []
    join.subscriber.wake = lambda: woken.append(1)
    world.publish(NAMES[0], "1")
    join.subscriber.close(encode_retry(500))
    join.subscriber.close(b"not this")
    assert woken
    assert not join.subscriber.is_over
    assert read_all(join.subscriber) == encode_retry(500)
    assert join.subscriber.is_over
    world.publish(NAMES[1], "1")
    assert join.subscriber.read() == b""
    assert join.subscriber.is_over


def test_the_whole_stream_can_be_told_something() -> None:
    join = World(Form.EVENTS).join()
    join.subscriber.read()
    join.subscriber.say(EXPIRING)
    assert read_all(join.subscriber) == EXPIRING


def test_a_topic_that_begins_anew_in_the_middle_is_reset_and_the_id_follows_it() -> None:
    world = World(Form.EVENTS)
    world.publish(NAMES[0], "1")
    join = world.join()
    world.publish(NAMES[0], "2")
    world.publish(NAMES[0], "{}", kind=Kind.RESET)
    world.publish(NAMES[0], "3")
    assert [event[0] for event in told_by(join)] == ["/orders/17/events#reset", "/orders/17/events"]
    world.publish(NAMES[0], "4", begin=True)
    (_, event) = told_by(join)
    assert event[2] == encode_vector([(NAMES[0], Position("e3", 1))])


def test_a_place_that_was_only_reset_is_in_the_next_id() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    world.publish(NAMES[0], "1")
    join = world.join()
    for kind in (Kind.RESET, Kind.FAULT):
        world.publish(NAMES[0], "{}", kind=kind)
    assert [event[0] for event in told_by(join)] == ["/orders/17/events#reset", "/orders/17/events#fault"]
    world.publish(NAMES[1], "1")
    (event,) = told_by(join)
    assert event[2] == encode_vector([(NAMES[0], Position("e2", 0)), (NAMES[1], Position("e3", 1))])


def test_a_stream_is_over_as_soon_as_the_last_end_has_been_read() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    join = world.join()
    for name in NAMES[:2]:
        assert not join.subscriber.is_over
        world.publish(name, "{}", "end", Kind.END)
        assert not join.subscriber.is_over
        assert join.subscriber.read()
    assert join.subscriber.is_over


def test_a_stream_that_is_left_holds_on_to_no_topic() -> None:
    class Traced(Topic):
        __slots__ = ("__weakref__",)

    world = World(Form.EVENTS)
    world.topics[NAMES[0]] = Traced(NAMES[0], world.topics[NAMES[0]].settings, 0.0, world.hub.tally)
    topic = weakref.ref(world.topics[NAMES[0]])
    join = world.join()
    world.publish(NAMES[0], "1")
    world.publish(NAMES[0], "2")
    subscriber = join.subscriber
    assert subscriber.read(1)
    join.leave()
    join.leave()
    assert join.members == []
    assert subscriber.read() == b""
    assert subscriber.is_over
    assert not world.topics[NAMES[0]].subscribers
    del world  # what is left of the stream itself waits for the collector, and is small
    assert topic() is None


# How it is read


def test_small_events_of_all_topics_are_put_together() -> None:
    world = World(Form.EVENTS, Form.EVENTS, Form.EVENTS)
    join = world.join()
    for name in NAMES:
        world.publish(name, "1")
    assert len(EventStreamDecoder().receive(join.subscriber.read())) == 3
    assert join.subscriber.read() == b""


def test_no_more_is_read_than_asked_for_but_for_one_event() -> None:
    world = World(*[Form.EVENTS] * 100, names=tuple(f"/orders/{number}/events" for number in range(100)))
    join = world.join()
    for name in world.topics:
        for _ in range(30):
            world.publish(name, "1")
    client = Client()
    while data := join.subscriber.read(20_000):
        assert len(data) <= 20_000
        client.receive(data)
    assert len(client.events) == 3000
    assert len(client.decoder.last_event_id) < 1700
    assert len(join.subscriber.read(1)) == 0


def test_a_topic_that_floods_does_not_keep_the_others_waiting() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    join = world.join()
    for number in range(1000):
        world.publish(NAMES[0], str(number) + "x" * 100)
    world.publish(NAMES[1], "1")
    client = Client()
    while not client.told(NAMES[1]):
        client.receive(join.subscriber.read(1000))
    assert len(client.told(NAMES[0])) < 60


@pytest.mark.parametrize("size", [SLICE_BYTES - 100, SLICE_BYTES, SLICE_BYTES + 1, 2 * SLICE_BYTES, 1 << 20])
@pytest.mark.parametrize("kind", [Kind.EVENT, Kind.FAULT])
def test_a_large_event_comes_in_slices_and_nothing_between_them(size: int, kind: Kind) -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    join, client = world.join(), Client()
    world.publish(NAMES[0], "x" * size, "patch", kind)
    first = join.subscriber.read(1)
    assert len(first) <= SLICE_BYTES + 2000
    client.receive(first)
    world.publish(NAMES[1], "1")
    join.members[0].say(EXPIRING)
    join.subscriber.say(encode_event(Event("{}", "aside")))
    client.receive(join.subscriber.read(1))
    join.subscriber.close(encode_event(Event("{}", "farewell")))
    client.read(join)
    types = ["fault" if kind is Kind.FAULT else "patch"]
    assert client.told(NAMES[0])[:1] == [(types[0], "x" * size)]
    assert client.events[-1].type == "farewell"
    assert join.subscriber.is_over


@pytest.mark.parametrize("shape", list(Shape))
def test_another_shape_is_made_of_whole_events(shape: Shape) -> None:
    world = World(Form.STATES, Form.EVENTS)
    world.publish(NAMES[0], json.dumps("x" * 5 * SLICE_BYTES))
    join = world.join()
    join.subscriber.shape = shape
    lines = join.opening()
    world.publish(NAMES[1], json.dumps("y" * 5 * SLICE_BYTES), "added")
    lines += read_all(join.subscriber)
    one, two = [json.loads(line.strip(b"\x1e")) for line in lines.splitlines()]
    assert (one["event"], len(one["data"])) == (NAMES[0], 5 * SLICE_BYTES)
    assert (two["event"], len(two["data"])) == (f"{NAMES[1]}#added", 5 * SLICE_BYTES)
    assert decode_vector(two["id"]) is not None
    join.subscriber.close(encode_retry(5))
    assert join.subscriber.read() == b""
    assert join.subscriber.is_over


def test_topics_that_come_together_wake_the_client_once() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    scheduled: list[Callable[[], None]] = []
    join = Join(schedule=scheduled.append)
    for name in NAMES[:2]:
        join.add(name, world.subscribe(name))
    assert join.opening() + join.subscriber.read() == b""
    woken = []
    join.subscriber.wake = lambda: woken.append(1)
    for _ in range(2):
        for name in NAMES[:2]:
            world.publish(name, "1")
        assert len(scheduled) == 1
        scheduled.pop()()
        assert len(woken) == 1
        woken.clear()
    join.members[0].close(EXPIRED)
    assert (len(woken), scheduled) == (1, [])


def test_when_news_came_is_known_to_the_edge() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    join = world.join()
    for name, now in zip(NAMES[:2], (7.0, 5.0), strict=True):
        world.topics[name].receive(Update(name, "1"), Position("e", 1), now)
        world.topics[name].wake()
        join.subscriber.read()
    assert join.subscriber.topic.moved_at == 7.0


def test_all_that_is_kept_can_be_asked_for() -> None:
    world = World(Form.EVENTS, Form.EVENTS)
    for name in NAMES[:2]:
        world.publish(name, "1")
        world.publish(name, "2")
    join = Join()
    for name in NAMES[:2]:
        join.add(name, world.subscribe(name, EARLIEST))
    events = told_by(join)
    assert [event[1] for event in events] == ["1", "2", "1", "2"]
    # Cut behind the first, the rest is still to come: of the other topic nothing had been told.
    assert told_by(world.join(cursor=events[0][2])) == events[1:]


# With the native edge


class Wire(Reader):
    """A reader whose client takes a number of bytes and then no more."""

    def __init__(self, stream: Stream, now: float) -> None:
        super().__init__(stream, now)
        self.left = 0
        self.received = bytearray()
        self.is_ended = False
        self.lagged = 0

    def room(self) -> int:
        return self.left

    def is_clogged(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        assert len(data) <= self.left
        self.left -= len(data)
        self.received += data

    def write_end(self) -> None:
        self.is_ended = True

    def enter(self, channel: Channel) -> None:
        channel.enter_target(self)

    def leave(self, channel: Channel) -> None:
        channel.leave_target(self)

    def deliver(self, parcel: object) -> int:
        data = parcel.data  # type: ignore[attr-defined]
        if len(data) > self.left:
            self.lagged += 1
            self.fall_behind(data)
            self.pump()
        else:
            self.write(data)
        return 1

    def readers(self) -> list[Reader]:
        return [self]

    def take(self, size: int) -> None:
        self.left += size
        self.pump()


def begin(join: Join) -> tuple[Wire, list[int]]:
    """The stream on a channel of its own; the list is filled when that is over."""
    dropped: list[int] = []
    stream = Stream((), b"", join.subscriber, heartbeat=15.0, close=join.leave)
    wire = Wire(stream, 0.0)
    counts = {"bytes": 0, "deliveries": 0}
    channel = Channel(join.subscriber.topic, None, counts, Latency(), partial(dropped.append, 1))
    wire.begin(channel, join.opening())
    return wire, dropped


takes = st.tuples(st.just("take"), st.just(0), st.sampled_from([1, 300, 5000, 100_000]))


@given(st.lists(st.one_of(steps, takes), max_size=40))
def test_nothing_is_lost_between_being_live_and_lagging(story: list[tuple[str, int, int]]) -> None:
    asyncio.run(lose_nothing(story))


@given(st.lists(st.one_of(steps, takes), max_size=20), st.lists(st.one_of(steps, takes), max_size=10))
def test_a_stream_that_is_closed_ends_in_good_order(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]]
) -> None:
    asyncio.run(lose_nothing(before, after))


async def lose_nothing(story: list[tuple[str, int, int]], after: list[tuple[str, int, int]] | None = None) -> None:
    """`after`: what happens when the whole stream has been closed; None is that it is not."""
    world = World(Form.EVENTS, Form.EVENTS, Form.EVENTS)
    loop = asyncio.get_running_loop()
    join = Join(leave=lambda reader: world.hub.unsubscribe(reader, 0.0), schedule=loop.call_soon)
    alone = []
    for name in NAMES:
        join.add(name, world.subscribe(name))
        alone.append(world.subscribe(name).subscriber)
    joined = list(join.members)
    wire, dropped = begin(join)
    assert wire.is_live
    for number, (step, at, size) in enumerate([*story, ("", 0, 0), *(after or [])]):
        name, topic = NAMES[at], world.topics[NAMES[at]]
        if not step:
            if after is not None:
                join.subscriber.close(FAREWELL)
        elif step == "take":
            wire.take(size)
        elif step == "sip":
            await asyncio.sleep(0)
        elif step == "close" and number % 3 == 0 and not joined[at].is_over:
            joined[at].close(EXPIRED)
        elif step == "say":
            joined[at].say(EXPIRING)
        elif step == "end" and number % 3 == 0 and not topic.is_over:
            world.publish(name, "{}", "end", Kind.END)
        elif not topic.is_over:
            world.publish(name, f"{number} {'x' * size}")
    wire.take(1 << 30)
    for _ in range(3):
        await asyncio.sleep(0)
    client = Client()
    client.receive(bytes(wire.received))
    assert wire.is_ended == (after is not None or all(reader.is_over for reader in joined))
    assert bool(dropped) == wire.is_ended
    assert wire.is_live != wire.is_ended
    assert wire.received.endswith(FAREWELL) or after is None or all(reader.is_over for reader in joined)
    for at, name in enumerate(NAMES):
        told = [event for event in client.told(name) if event[0] != "expiring"]
        sent = told_alone(read_all(alone[at]))
        if joined[at].is_closed and told[-1:] == [("end", '{"reason":"expired"}')]:
            assert told[:-1] == sent[: len(told) - 1]
        elif after is not None:
            assert told == sent[: len(told)]
        else:
            assert told == sent


def test_a_live_reader_that_falls_behind_is_live_again() -> None:
    async def story() -> None:
        world = World(Form.EVENTS, Form.EVENTS)
        wire, dropped = begin(world.join())
        wire.take(600)
        for number in range(4):
            assert wire.is_live
            world.publish(NAMES[number % 2], f"{number}{'x' * 120}")
        assert not wire.is_live
        assert wire.lagged == 1
        world.publish(NAMES[0], "4")
        wire.take(10_000)
        assert wire.is_live
        world.publish(NAMES[1], "5")
        client = Client()
        client.receive(bytes(wire.received))
        assert [event.data[0] for event in client.events] == list("012345")
        for name in NAMES[:2]:
            assert not wire.is_ended
            world.publish(name, "{}", "end", Kind.END)
        assert wire.is_ended
        assert dropped

    asyncio.run(story())


def test_a_reader_that_lost_its_place_in_one_topic_is_told_of_that_topic_alone() -> None:
    async def story() -> None:
        world = World(Form.EVENTS, Form.EVENTS, max_events=3)
        wire, _ = begin(world.join())
        for number in range(10):
            world.publish(NAMES[0], str(number))
        world.publish(NAMES[1], "1")
        wire.take(10_000)
        client = Client()
        client.receive(bytes(wire.received))
        assert client.told(NAMES[0]) == [
            ("", "0"),
            ("reset", '{"reason":"gap"}'),
            *(("", str(number)) for number in (7, 8, 9)),
        ]
        assert client.told(NAMES[1]) == [("", "1")]

    asyncio.run(story())
