"""The invariant: a client that applies what it received ends with exactly the current document, or was told `reset`.

First random stories with a model of a client, which knows nothing of journals; then the single facts by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ssegate.core.event import Event, EventStreamDecoder, Kind, Update, encode_event, encode_retry
from ssegate.core.hub import EARLIEST, First, Hub, Opening, Subscriber, Topic, TopicSettings, encode_reset
from ssegate.core.journal import Form, Position
from ssegate.core.shape import Shape

MAX_EVENTS = 6
MAX_AGE = 10.0


def settings_of(
    form: Form,
    *,
    max_events: int = MAX_EVENTS,
    max_age: float = MAX_AGE,
    max_size: int = 1 << 60,
    first: First = First.NOTHING,
) -> TopicSettings:
    return TopicSettings(
        form,
        max_events=max_events,
        max_age=max_age,
        max_size=max_size,
        snapshot_type="snapshot" if form is Form.CHANGES else "",
        first=first,
    )


class Client:
    """What a careful client makes of its stream; it fails when the stream makes no sense."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cursor = ""
        self.document: int | None = None
        self.place: Position | None = None
        """Behind which event it stands; None when it may begin anywhere."""
        self.outage = 0
        """The outage it has been told of and not yet of its end."""
        self.has_ended = False
        self.is_woken = False
        self.subscriber: Subscriber | None = None
        self.decoder = EventStreamDecoder()

    def connect(self, cursor: str | None) -> Opening:
        world = self.world
        opening = world.hub.subscribe(world.topic, cursor, world.now, self.wake)
        self.outage = 0
        self.decoder = EventStreamDecoder()
        self.decoder.last_event_id = self.cursor
        self.subscriber = None if opening.is_finished else opening.subscriber
        self.is_woken = True
        if not opening.is_resumed:
            self.document, self.has_ended = None, False
            self.place = world.head if cursor is None and world.form is Form.EVENTS and not world.is_over else None
        self.receive(opening.data)
        return opening

    def disconnect(self) -> None:
        if self.subscriber is not None:
            self.world.hub.unsubscribe(self.subscriber, self.world.now)
            self.subscriber = None

    def wake(self) -> None:
        self.is_woken = True

    def receive(self, data: bytes) -> None:
        for event in self.decoder.receive(data):
            self.apply(event)
        self.cursor = self.decoder.last_event_id

    def apply(self, event: Event) -> None:
        assert not self.has_ended
        match event.type:
            case "reset":
                self.document = self.place = None
            case "fault":
                assert not self.outage, "told twice of one outage"
                self.outage = json.loads(event.data)["outage"]
            case "recovered":
                assert self.outage, "nothing to recover from"
                self.outage = 0
            case _:
                assert event.id is not None
                position = Position.parse(event.id)
                assert position is not None
                self.apply_event(event, position)

    def apply_event(self, event: Event, position: Position) -> None:
        assert not self.outage or self.world.outage_of[event.id or ""] == self.outage, "not told that it is over"
        is_whole = self.world.form is Form.STATES or event.type == "snapshot"
        if self.place is not None and self.place.epoch:
            assert position.epoch == self.place.epoch
            assert position.offset > self.place.offset, "repeated, or out of order"
            assert position.offset == self.place.offset + 1 or (is_whole and event.type != "end"), "skipped in silence"
        self.place = position
        if event.type == "end":
            self.has_ended = True
            return
        data = json.loads(event.data)
        if not is_whole and self.world.form is Form.CHANGES:
            assert data["from"] == self.document, "a change of another document"
        self.document = data["value"]

    def read_all(self) -> None:
        """Read until there is nothing: which must come to its end, and need not be asked for when nothing woke it."""
        subscriber = self.subscriber
        assert subscriber is not None
        for _ in range(1000):
            data = subscriber.read(500)
            if not data:
                self.is_woken = False
                return
            assert self.is_woken, "there was something to read and nobody said so"
            self.receive(data)
        raise AssertionError("reads for ever")


class World(RuleBasedStateMachine):
    """One topic whose document is a number, and clients that come, go, stall and are cut off."""

    form = Form.EVENTS

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.hub = Hub()
        self.topic = self.hub.open("t", settings_of(self.form), self.now)
        self.head = Position("", 0)
        self.epochs = 0
        self.document = 0
        self.has_document = False
        """Whether anything can be known of it: not before the first event, and not after a new beginning."""
        self.documents: dict[str, int] = {}
        """What a client has that stands behind this id."""
        self.outage = 0
        self.outages = 0
        self.outage_of: dict[str, int] = {}
        """The outage during which each event came; 0 is none."""
        self.is_over = False
        self.clients: list[Client] = []

    def deliver(self, update: Update) -> None:
        topic = self.hub.deliver(update, self.head, self.now)
        if topic is not None:
            topic.wake()

    def say(self, kind: Kind, **data: object) -> None:
        self.deliver(Update("t", json.dumps(data), kind=kind))

    def publish(self, padding: int, *, has_state: bool = True) -> None:
        self.document += 1
        self.has_document = True
        value: dict[str, object] = {"value": self.document, "pad": "x" * padding}
        state = json.dumps(value if self.form is Form.STATES else {"value": self.document, "pad": "y" * 100})
        type_ = ""
        if self.form is Form.CHANGES and not self.topic.journal.head:
            type_, value = "snapshot", json.loads(state)
        elif self.form is Form.CHANGES:
            type_, value = "patch", {"from": self.document - 1, **value}
        self.number()
        keeps_state = self.form is not Form.EVENTS and (has_state or type_ == "snapshot")
        self.deliver(Update("t", json.dumps(value), type_, state if keeps_state else None))

    def number(self) -> None:
        self.head = Position(self.head.epoch or self.new_epoch(), self.head.offset + 1)
        self.documents[str(self.head)] = self.document
        self.outage_of[str(self.head)] = self.outage

    def new_epoch(self) -> str:
        self.epochs += 1
        return f"e{self.epochs}"

    def client(self, number: int) -> Client | None:
        connected = [client for client in self.clients if client.subscriber is not None]
        return connected[number % len(connected)] if connected else None

    # What happens upstream

    @precondition(lambda self: not self.is_over)
    @rule(count=st.integers(1, 8), padding=st.sampled_from([0, 0, 600, 30_000]))
    def append(self, count: int, padding: int) -> None:
        for _ in range(count):
            self.publish(padding)

    @precondition(lambda self: not self.is_over and self.form is Form.CHANGES)
    @rule(count=st.integers(2, 9), padding=st.sampled_from([0, 600]), is_read_amid=st.booleans(), number=st.integers(0))
    def append_together(self, count: int, padding: int, is_read_amid: bool, number: int) -> None:
        """Several changes that belong together: only the last carries the state."""
        for left in reversed(range(count)):
            self.publish(padding, has_state=not left)
            if is_read_amid and left == 1:
                self.check_all()
                self.join()

    @precondition(lambda self: not self.is_over and self.head.offset)
    @rule(is_same_epoch=st.booleans())
    def lose_numbering(self, is_same_epoch: bool) -> None:
        """The broker lost its memory, or some events."""
        self.head = Position(self.head.epoch, self.head.offset + 3) if is_same_epoch else Position(self.new_epoch(), 0)
        self.publish(0)

    @precondition(lambda self: not self.is_over)
    @rule()
    def begin_anew(self) -> None:
        """The source has lost the thread: what comes cannot be joined to what was."""
        self.head = Position(self.new_epoch(), 0)
        self.has_document = False
        self.deliver(Update("t", '{"reason":"gap"}', kind=Kind.RESET))

    @precondition(lambda self: not self.is_over)
    @rule()
    def fail(self) -> None:
        if not self.outage:
            self.outages += 1
            self.outage = self.outages
        self.say(Kind.FAULT, outage=self.outage)

    @precondition(lambda self: not self.is_over)
    @rule()
    def recover(self) -> None:
        self.outage = 0
        self.say(Kind.RECOVERED)

    @precondition(lambda self: not self.is_over and self.document > 5)
    @rule()
    def end(self) -> None:
        self.is_over = True
        self.number()
        self.deliver(Update("t", '{"reason":"gone"}', "end", kind=Kind.END))

    @rule(seconds=st.sampled_from([1.0, 4.0, 9.9, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    # What clients do

    @rule()
    def join(self) -> None:
        client = Client(self)
        self.clients.append(client)
        assert not client.connect(None).is_resumed

    @rule()
    def walk(self) -> None:
        client = Client(self)
        self.clients.append(client)
        opening = client.connect(EARLIEST)
        assert not opening.is_resumed
        assert not opening.is_finished

    @rule(number=st.integers(0), max_bytes=st.sampled_from([1, 200, 2000, 65536]))
    def read(self, number: int, max_bytes: int) -> None:
        if (client := self.client(number)) is not None and client.subscriber is not None:
            client.receive(client.subscriber.read(max_bytes))

    @rule(number=st.integers(0), cut=st.integers(0))
    def cut(self, number: int, cut: int) -> None:
        """The connection goes down in the middle of what was written."""
        if (client := self.client(number)) is not None and client.subscriber is not None:
            data = client.subscriber.read()
            client.receive(data[: cut % (len(data) + 1)])
            client.disconnect()

    @rule(number=st.integers(0))
    def come_back(self, number: int) -> None:
        gone = [client for client in self.clients if client.subscriber is None]
        if not gone:
            return
        client = gone[number % len(gone)]
        cursor = client.cursor
        opening = client.connect(cursor or None)
        if cursor and not opening.is_resumed:
            assert opening.data.startswith(b"event: reset\n")
        if opening.is_finished:
            assert client.has_ended

    @rule(data=st.data())
    def come_with_any_cursor(self, data: st.DataObject) -> None:
        strange = st.sampled_from(["e1-0", "e1-999", "zz-1", "e1-01", "junk", "x" * 300, "\0", "e1-1\n"])
        cursor = data.draw(strange | (st.sampled_from(sorted(self.documents)) if self.documents else strange))
        client = Client(self)
        client.cursor = cursor
        client.document = self.documents.get(cursor, 0 if self.has_document else None)
        client.place = Position.parse(cursor)
        client.has_ended = self.is_over and cursor == str(self.head)
        self.clients.append(client)
        opening = client.connect(cursor)
        assert opening.is_resumed == (not opening.data)
        if opening.is_resumed:
            assert client.place is not None
            assert self.topic.journal.keeps(client.place.offset)
        else:
            reason = (
                "gap" if cursor in self.documents and cursor.startswith(f"{self.head.epoch}-") else "unknown-cursor"
            )
            assert opening.data.startswith(encode_reset(reason)) or reason == "unknown-cursor"
            assert opening.data.startswith(b"event: reset\n")

    # What must hold

    @rule()
    def check_all(self) -> None:
        for client in self.clients:
            if client.subscriber is not None:
                client.read_all()
                self.check(client, client.subscriber)

    def check(self, client: Client, subscriber: Subscriber) -> None:
        assert client.outage == self.outage or self.is_over
        assert subscriber.is_over == client.has_ended == self.is_over
        if client.place is not None and client.place.epoch:
            assert client.place == self.head
        if self.form is not Form.EVENTS:
            assert client.document == (self.document if self.has_document else None)

    @invariant()
    def memory_is_bounded(self) -> None:
        journal = self.topic.journal
        tail = journal.head - max(journal.state_offset, journal.first - 1) if journal.has_state else 1
        assert len(journal) <= max(MAX_EVENTS, tail)

    def teardown(self) -> None:
        self.check_all()
        self.join()
        self.check_all()


class Events(World):
    form = Form.EVENTS


class States(World):
    form = Form.STATES


class Changes(World):
    form = Form.CHANGES


STORIES = settings(max_examples=120, stateful_step_count=30, deadline=None, derandomize=True)


class TestClientsOfEvents(Events.TestCase):  # type: ignore[name-defined]  # hypothesis makes it
    settings = STORIES


class TestClientsOfStates(States.TestCase):  # type: ignore[name-defined]  # hypothesis makes it
    settings = STORIES


class TestClientsOfChanges(Changes.TestCase):  # type: ignore[name-defined]  # hypothesis makes it
    settings = STORIES


# Single facts


class Stage:
    """A topic that is told what happens by short words, and readers that begin at once."""

    def __init__(self, form: Form, **others: Any) -> None:
        self.hub = Hub()
        self.topic = self.hub.open("t", settings_of(form, **others), 0.0)
        self.head = Position("e", 0)

    def say(self, data: str, kind: Kind = Kind.EVENT, *, now: float = 0.0, type_: str = "") -> bool:
        """Deliver it; return whether readers are to be woken."""
        if kind in (Kind.EVENT, Kind.END):
            self.head = Position("e", self.head.offset + 1)
        state = data if kind is Kind.EVENT and self.topic.settings.form is not Form.EVENTS else None
        type_ = "end" if kind is Kind.END else type_
        return self.hub.deliver(Update("t", data, type_, state, kind), self.head, now) is not None

    def open(self, cursor: str | None = None, now: float = 0.0, wake: Callable[[], None] = lambda: None) -> Opening:
        return self.hub.subscribe(self.topic, cursor, now, wake)


def block(offset: int, data: str, type_: str = "") -> bytes:
    return encode_event(Event(data, type_, f"e-{offset}"))


FAULT = encode_event(Event("f", "fault"))
RECOVERED = encode_event(Event("{}", "recovered"))
GAP = b'event: reset\ndata: {"reason":"gap"}\n\n'
UNKNOWN = b'event: reset\ndata: {"reason":"unknown-cursor"}\n\n'


def drained(opening: Opening) -> bytes:
    data = opening.data
    while piece := opening.subscriber.read():
        data += piece
    return data


@pytest.mark.parametrize("form", list(Form))
def test_a_newcomer_gets_the_state_and_nothing_old(form: Form) -> None:
    stage = Stage(form)
    stage.say("1")
    stage.say("2")
    opening = stage.open()
    snapshot = {Form.EVENTS: b"", Form.STATES: block(2, "2"), Form.CHANGES: block(2, "2", "snapshot")}[form]
    assert (drained(opening), opening.is_resumed, opening.is_finished) == (snapshot, False, False)
    stage.say("3")
    assert opening.subscriber.read() == block(3, "3")
    assert opening.subscriber.read() == b""


@pytest.mark.parametrize("form", list(Form))
def test_who_came_before_the_first_event_gets_it_without_a_word(form: Form) -> None:
    stage = Stage(form)
    opening = stage.open()
    stage.say("1")
    stage.say("2")
    expected = block(2, "2") if form is Form.STATES else block(1, "1") + block(2, "2")
    assert drained(opening) == expected


def test_who_came_before_the_first_event_and_was_passed_by_the_ring_is_told() -> None:
    stage = Stage(Form.EVENTS, max_events=2)
    opening = stage.open()
    for number in range(3):
        stage.say(str(number))
    assert drained(opening) == GAP + block(2, "1") + block(3, "2")


def test_who_came_before_the_first_event_is_told_when_the_numbering_began_anew_meanwhile() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("1")
    stage.hub.deliver(Update("t", "x"), Position("f", 1), 0.0)
    assert drained(opening) == GAP + b"data: x\nid: f-1\n\n"


@pytest.mark.parametrize("form", list(Form))
def test_a_cursor_that_is_kept_goes_on_exactly_there(form: Form) -> None:
    stage = Stage(form)
    for number in range(4):
        stage.say(str(number))
    opening = stage.open("e-3")
    assert opening.is_resumed
    assert drained(opening) == block(4, "3")
    assert drained(stage.open("e-4")) == b""


@pytest.mark.parametrize("cursor", ["f-2", "e-5", "e-999999999999999999", "e-02", "junk", "", "e-2\n", "x" * 100_000])
@pytest.mark.parametrize("form", list(Form))
def test_a_cursor_that_is_not_ours_is_told_and_the_state_or_what_is_kept_follows(form: Form, cursor: str) -> None:
    stage = Stage(form)
    for number in range(4):
        stage.say(str(number))
    opening = stage.open(cursor)
    assert not opening.is_resumed
    follows = {
        Form.EVENTS: b"".join(block(n + 1, str(n)) for n in range(4)),
        Form.STATES: block(4, "3"),
        Form.CHANGES: block(4, "3", "snapshot"),
    }[form]
    assert drained(opening) == UNKNOWN + follows
    assert stage.hub.tally.resets == 1


@pytest.mark.parametrize("form", list(Form))
def test_a_cursor_that_is_too_old_is_told(form: Form) -> None:
    stage = Stage(form, max_events=2)
    for number in range(4):
        stage.say(str(number))
    data = drained(stage.open("e-1"))
    assert data.startswith(GAP)
    assert data.endswith(block(4, "3", "snapshot" if form is Form.CHANGES else ""))
    assert stage.open("e-2").is_resumed


def test_a_cursor_is_too_old_when_its_time_is_over() -> None:
    stage = Stage(Form.STATES, max_age=10)
    stage.say("1")
    stage.say("2", now=5)
    assert stage.open("e-1", now=14).is_resumed
    assert drained(stage.open("e-1", now=16)) == GAP + block(2, "2")


def test_a_cursor_from_before_a_restart_is_told_and_then_gets_what_comes() -> None:
    stage = Stage(Form.CHANGES)
    opening = stage.open("old-3")
    assert (opening.data, opening.is_resumed) == (UNKNOWN, False)
    stage.say("1")
    assert opening.subscriber.read() == block(1, "1")


def test_earliest_is_all_that_is_kept() -> None:
    events, states, changes = (Stage(form) for form in Form)
    for stage in (events, states, changes):
        for number in range(3):
            stage.say(str(number) * 600)
        opening = stage.open(EARLIEST)
        assert drained(opening) == b"".join(block(n + 1, str(n) * 600) for n in range(3))
        assert not opening.is_resumed
        assert stage.hub.tally.resets == 0


def test_earliest_on_changes_without_their_beginning_is_a_snapshot() -> None:
    stage = Stage(Form.CHANGES, max_events=2)
    for number in range(3):
        stage.say(str(number))
    assert drained(stage.open(EARLIEST)) == block(3, "2", "snapshot")


def test_earliest_on_more_changes_than_fit_into_memory_at_once_may_be_a_snapshot() -> None:
    stage = Stage(Form.CHANGES)
    for number in range(5):
        stage.say(str(number) * 40_000)
    opening = stage.open(EARLIEST)
    assert opening.data == b""
    assert drained(opening) == block(5, "4" * 40_000, "snapshot")


@pytest.mark.parametrize("form", [Form.STATES, Form.CHANGES])
def test_earliest_has_the_state_when_its_event_has_left_the_ring(form: Form) -> None:
    stage = Stage(form, max_age=10)
    stage.say("1")
    stage.say("over", Kind.END, now=5)
    assert drained(stage.open(EARLIEST, now=12)) == stage.topic.journal.snapshot() + block(2, "over", "end")


def test_earliest_where_nothing_has_come_yet_gets_what_comes() -> None:
    for form in Form:
        stage = Stage(form)
        opening = stage.open(EARLIEST)
        assert opening.data == b""
        stage.say("1")
        assert opening.subscriber.read() == block(1, "1")


@pytest.mark.parametrize("form", [Form.STATES, Form.CHANGES])
def test_a_reader_that_fell_behind_the_ring_is_told_and_gets_the_state(form: Form) -> None:
    stage = Stage(form, max_events=2)
    opening = stage.open()
    stage.say("0")
    opening.subscriber.read()
    for number in range(1, 5):
        stage.say(str(number))
    assert opening.subscriber.read() == GAP + block(5, "4", "snapshot" if form is Form.CHANGES else "")
    assert opening.subscriber.read() == b""
    assert stage.hub.tally.resets == 1


def test_a_slow_reader_gets_no_more_than_it_asks_for_and_nothing_twice() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    for number in range(6):
        stage.say(str(number) * 100)
    pieces = [opening.subscriber.read(300) for _ in range(4)]
    assert [len(piece) < 300 for piece in pieces] == [True] * 4
    assert b"".join(pieces) == b"".join(block(n + 1, str(n) * 100) for n in range(6))


# Outages


def test_an_outage_is_told_once_and_its_end_before_the_first_event_after_it() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    assert stage.say("f", Kind.FAULT)
    stage.topic.wake()
    assert not stage.say("again", Kind.FAULT)
    assert drained(opening) == FAULT
    assert stage.say("{}", Kind.RECOVERED)
    stage.say("1")
    assert drained(opening) == RECOVERED + block(1, "1")
    assert stage.hub.tally.faults == 1


def test_a_recovery_without_an_outage_is_not_told() -> None:
    stage = Stage(Form.EVENTS)
    assert not stage.say("{}", Kind.RECOVERED)
    assert drained(stage.open()) == b""


def test_newcomers_in_an_outage_are_told_behind_the_state() -> None:
    stage = Stage(Form.STATES)
    stage.say("1")
    stage.say("f", Kind.FAULT)
    assert drained(stage.open()) == block(1, "1") + FAULT
    assert drained(stage.open("e-1")) == FAULT
    stage.say("{}", Kind.RECOVERED)
    assert drained(stage.open("e-1")) == b""


def test_a_reader_that_slept_through_an_outage_hears_nothing_of_it() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("f", Kind.FAULT)
    stage.say("{}", Kind.RECOVERED)
    stage.say("1")
    assert drained(opening) == block(1, "1")


def test_a_second_outage_is_told_even_to_who_slept_through_the_end_of_the_first() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("f", Kind.FAULT)
    assert drained(opening) == FAULT
    stage.say("{}", Kind.RECOVERED)
    stage.say("1")
    stage.say("f", Kind.FAULT)
    assert drained(opening) == RECOVERED + block(1, "1") + FAULT
    assert stage.hub.tally.faults == 2


def test_a_fault_comes_behind_what_a_slow_reader_has_not_read_yet() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("1")
    stage.say("2")
    stage.say("f", Kind.FAULT)
    assert opening.subscriber.read(1) == block(1, "1")
    assert opening.subscriber.read(1) == block(2, "2") + FAULT


def test_nothing_comes_behind_an_end_not_even_a_fault() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("f", Kind.FAULT)
    stage.say("over", Kind.END)
    assert drained(opening) == block(1, "over", "end")
    assert opening.subscriber.is_over


# The end


@pytest.mark.parametrize("form", list(Form))
@pytest.mark.parametrize("now", [0.0, 1000.0])
def test_a_finished_topic_shows_its_last_state_and_its_end_however_late(form: Form, now: float) -> None:
    stage = Stage(form)
    stage.say("1")
    stage.say("over", Kind.END)
    for cursor in (None, EARLIEST, "foreign-1"):
        opening = stage.open(cursor, now=now)
        data = drained(opening)
        assert data.endswith(block(2, "over", "end"))
        assert (b"data: 1\n" in data) == (form is not Form.EVENTS or (cursor is not None and now == 0))
        assert opening.subscriber.is_over
        assert not opening.is_finished


def test_an_end_is_replayed_and_then_there_is_nothing_to_open_a_stream_for() -> None:
    stage = Stage(Form.STATES)
    stage.say("1")
    stage.say("over", Kind.END)
    opening = stage.open("e-1")
    assert (opening.is_resumed, drained(opening)) == (True, block(2, "over", "end"))
    assert stage.open("e-2").is_finished
    assert len(stage.topic.subscribers) == 1  # who has the end takes no place


def test_a_reader_is_not_over_before_it_has_read_the_end() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("over", Kind.END)
    assert not opening.subscriber.is_over
    opening.subscriber.read()
    assert opening.subscriber.is_over


def test_a_right_that_ended_is_told_once_behind_all_events_and_has_no_id() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("1")
    stage.say("2")
    stage.say("gone", Kind.REVOKED)
    assert stage.topic.is_revoked
    assert opening.subscriber.read(1) == block(1, "1")
    assert not opening.subscriber.is_over
    assert opening.subscriber.read(1) == block(2, "2") + b"event: end\ndata: gone\n\n"
    assert opening.subscriber.is_over
    assert opening.subscriber.read() == b""


# Readers and topics


def test_a_closed_reader_gets_its_farewell_and_nothing_else() -> None:
    woken: list[int] = []
    stage = Stage(Form.EVENTS)
    subscriber = stage.open(wake=lambda: woken.append(1)).subscriber
    stage.say("1")
    subscriber.close(b"bye")
    subscriber.close(b"again")
    assert not subscriber.is_over
    assert subscriber.read() == b"bye"
    assert subscriber.read() == b""
    assert (subscriber.is_over, woken) == (True, [1])


def test_a_reader_may_be_closed_without_a_word() -> None:
    subscriber = Stage(Form.EVENTS).open().subscriber
    subscriber.close()
    assert (subscriber.is_over, subscriber.read()) == (True, b"")


def test_readers_are_woken_once_for_all_that_came_since() -> None:
    woken: list[int] = []
    stage = Stage(Form.EVENTS)
    stage.open(wake=lambda: woken.append(1))
    stage.open(wake=lambda: woken.append(2))
    assert [stage.say("1"), stage.say("2"), stage.say("f", Kind.FAULT)] == [True, False, False]
    stage.topic.wake()
    assert sorted(woken) == [1, 2]
    assert stage.say("3")


def test_an_update_of_a_topic_nobody_opened_is_dropped() -> None:
    assert Hub().deliver(Update("t", "x"), Position("e", 1), 0.0) is None


def test_a_topic_is_opened_once_and_dropped_by_its_key() -> None:
    hub = Hub()
    topic = hub.open("t", settings_of(Form.EVENTS), 0.0)
    assert hub.open("t", settings_of(Form.STATES), 1.0) is topic is hub.get("t")
    assert (len(hub), list(hub)) == (1, [topic])
    hub.drop("t")
    hub.drop("t")
    assert (len(hub), hub.get("t")) == (0, None)


def idle_topic(hub: Hub, key: str, now: float) -> Topic:
    return hub.open(key, settings_of(Form.EVENTS), now)


def test_topics_that_nobody_reads_or_feeds_expire_with_their_history() -> None:
    hub = Hub()
    old, read, watched = (idle_topic(hub, key, 0.0) for key in ("old", "read", "watched"))
    idle_topic(hub, "young", 5.0)
    watched.is_watched = True
    subscriber = hub.subscribe(read, None, 0.0, lambda: None).subscriber
    assert hub.expired(MAX_AGE) == []
    assert hub.expired(MAX_AGE + 1) == [old]
    hub.unsubscribe(subscriber, 20.0)
    hub.unsubscribe(subscriber, 29.0)  # a second time it says nothing
    assert read not in hub.expired(30.0)
    assert read in hub.expired(30.1)


def test_room_is_made_by_the_idle_topic_that_was_quiet_longest() -> None:
    hub = Hub()
    assert hub.longest_idle() is None
    old, busy = idle_topic(hub, "old", 1.0), idle_topic(hub, "busy", 0.0)
    idle_topic(hub, "young", 2.0)
    busy.is_watched = True
    assert hub.longest_idle() is old
    hub.deliver(Update("old", "x"), Position("e", 1), 3.0)
    assert hub.longest_idle() is hub.get("young")


def test_the_tally_counts_over_all_topics() -> None:
    stage = Stage(Form.EVENTS)
    stage.say("1")
    stage.say("over", Kind.END)
    stage.say("f", Kind.FAULT)
    stage.say("{}", Kind.RECOVERED)
    assert (stage.hub.tally.events, stage.hub.tally.faults, stage.hub.tally.resets) == (2, 1, 0)


# What newcomers to events get of those that came before


def first_stage(first: First, *datas: str, **others: Any) -> Stage:
    stage = Stage(Form.EVENTS, first=first, **others)
    for data in datas:
        stage.say(data)
    return stage


@pytest.mark.parametrize(
    ("first", "offsets"), [(First.NOTHING, []), (First.LAST, [3]), (First.KEPT, [1, 2, 3])], ids=lambda it: str(it)
)
def test_a_newcomer_to_events_gets_nothing_the_last_or_all_that_is_kept(first: First, offsets: list[int]) -> None:
    stage = first_stage(first, "1", "2", "3")
    opening = stage.open()
    assert drained(opening) == b"".join(block(offset, str(offset)) for offset in offsets)
    assert not opening.is_resumed
    assert stage.hub.tally.resets == 0
    stage.say("4")
    assert opening.subscriber.read() == block(4, "4")


@pytest.mark.parametrize("first", list(First))
def test_what_newcomers_get_is_no_matter_of_those_who_come_back(first: First) -> None:
    stage = first_stage(first, "1", "2", "3")
    opening = stage.open("e-1")
    assert (opening.is_resumed, drained(opening)) == (True, block(2, "2") + block(3, "3"))
    assert drained(stage.open("foreign-1")) == UNKNOWN + block(1, "1") + block(2, "2") + block(3, "3")
    assert drained(stage.open(EARLIEST)) == block(1, "1") + block(2, "2") + block(3, "3")


@pytest.mark.parametrize("first", list(First))
def test_where_nothing_has_come_yet_every_newcomer_gets_what_comes(first: First) -> None:
    stage = first_stage(first)
    opening = stage.open()
    assert opening.data == b""
    stage.say("1")
    assert drained(opening) == block(1, "1")


@pytest.mark.parametrize("first", list(First))
def test_where_nothing_is_kept_any_more_newcomers_get_what_comes(first: First) -> None:
    stage = first_stage(first, "1", "2", max_age=10)
    opening = stage.open(now=1000)
    assert drained(opening) == b""
    stage.say("3", now=1000)
    assert drained(opening) == block(3, "3")


@pytest.mark.parametrize(
    ("first", "offsets"), [(First.NOTHING, []), (First.LAST, [2]), (First.KEPT, [1, 2])], ids=lambda it: str(it)
)
def test_a_newcomer_to_finished_events_gets_its_share_and_the_end(first: First, offsets: list[int]) -> None:
    stage = first_stage(first, "1", "2")
    stage.say("over", Kind.END)
    opening = stage.open()
    assert drained(opening) == b"".join(block(n, str(n)) for n in offsets) + block(3, "over", "end")
    assert opening.subscriber.is_over
    assert not opening.is_finished


@pytest.mark.parametrize("first", list(First))
def test_a_newcomer_to_events_that_are_over_and_gone_gets_the_end(first: First) -> None:
    stage = first_stage(first, "1", max_age=10)
    stage.say("over", Kind.END)
    assert drained(stage.open(now=1000)) == block(2, "over", "end")
    alone = first_stage(first)
    alone.say("over", Kind.END)
    assert drained(alone.open()) == block(1, "over", "end")


@pytest.mark.parametrize("first", list(First))
def test_newcomers_in_an_outage_get_their_share_and_are_told(first: First) -> None:
    stage = first_stage(first, "1", "2")
    stage.say("f", Kind.FAULT)
    share = {First.NOTHING: b"", First.LAST: block(2, "2"), First.KEPT: block(1, "1") + block(2, "2")}[first]
    assert drained(stage.open()) == share + FAULT


@pytest.mark.parametrize("first", list(First))
@pytest.mark.parametrize("form", [Form.STATES, Form.CHANGES])
def test_where_there_is_a_state_a_newcomer_gets_that(form: Form, first: First) -> None:
    stage = Stage(form, first=first)
    stage.say("1")
    stage.say("2")
    assert drained(stage.open()) == block(2, "2", "snapshot" if form is Form.CHANGES else "")


def test_kept_is_no_more_than_the_history_has_room_for() -> None:
    stage = first_stage(First.KEPT, *(str(number) * 100 for number in range(1, 6)), max_size=300)
    assert drained(stage.open()) == block(4, "4" * 100) + block(5, "5" * 100)


# Another beginning


def renumbered(offset: int, data: str) -> bytes:
    return encode_event(Event(data, id=f"f-{offset}"))


def begin_anew(stage: Stage) -> None:
    """The source has lost the thread; what is said now has another epoch."""
    stage.head = Position("f", 0)
    stage.hub.deliver(Update("t", '{"reason":"gap"}', kind=Kind.RESET), stage.head, 0.0)


def say_anew(stage: Stage, offset: int, data: str) -> None:
    state = None if stage.topic.settings.form is Form.EVENTS else data
    stage.hub.deliver(Update("t", data, state=state), Position("f", offset), 0.0)


@pytest.mark.parametrize("form", list(Form))
def test_readers_are_told_of_another_beginning_at_once_and_once(form: Form) -> None:
    woken: list[int] = []
    stage = Stage(form)
    stage.say("1")
    opening = stage.open(wake=lambda: woken.append(1))
    drained(opening)
    begin_anew(stage)
    stage.topic.wake()
    assert woken == [1]
    assert opening.subscriber.read() == GAP
    assert opening.subscriber.read() == b""
    say_anew(stage, 1, "2")
    assert opening.subscriber.read() == renumbered(1, "2")
    assert stage.hub.tally.resets == 1


def test_what_was_not_read_before_another_beginning_is_gone_and_that_is_told() -> None:
    stage = first_stage(First.KEPT, "1", "2")
    opening = stage.open()
    begin_anew(stage)
    say_anew(stage, 1, "3")
    assert drained(opening) == GAP + renumbered(1, "3")


def test_newcomers_hear_nothing_of_another_beginning() -> None:
    stage = first_stage(First.KEPT, "1")
    begin_anew(stage)
    opening = stage.open()
    assert (opening.data, drained(opening)) == (b"", b"")
    say_anew(stage, 1, "2")
    assert drained(opening) == renumbered(1, "2")


def test_a_cursor_from_before_another_beginning_is_told_so() -> None:
    stage = first_stage(First.NOTHING, "1", "2")
    begin_anew(stage)
    say_anew(stage, 1, "3")
    opening = stage.open("e-2")
    assert (opening.is_resumed, drained(opening)) == (False, UNKNOWN + renumbered(1, "3"))
    assert stage.open("f-1").is_resumed
    assert stage.open("f-0").is_resumed


def test_who_has_waited_for_the_first_event_is_told_of_another_beginning_too() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    begin_anew(stage)
    say_anew(stage, 1, "1")
    assert drained(opening) == GAP + renumbered(1, "1")


def test_the_state_from_before_another_beginning_is_shown_to_nobody() -> None:
    stage = Stage(Form.CHANGES)
    stage.say("1")
    begin_anew(stage)
    assert drained(stage.open()) == b""
    assert drained(stage.open("e-1")) == UNKNOWN


def test_an_outage_goes_on_behind_another_beginning() -> None:
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("1")
    stage.say("f", Kind.FAULT)
    drained(opening)
    begin_anew(stage)
    assert drained(opening) == GAP
    stage.say("{}", Kind.RECOVERED)
    say_anew(stage, 1, "2")
    assert drained(opening) == RECOVERED + renumbered(1, "2")


# How far a source is before its readers


def test_the_head_is_ahead_of_the_reader_that_is_furthest() -> None:
    stage = Stage(Form.EVENTS)
    assert stage.topic.ahead == 0
    slow, quick = stage.open().subscriber, stage.open().subscriber
    for number in range(4):
        stage.say(str(number) * 50)
    assert stage.topic.ahead == 4
    quick.read(1)
    quick.read(1)
    assert stage.topic.ahead == 2
    slow.read(1)
    assert stage.topic.ahead == 2
    while quick.read():
        pass
    assert stage.topic.ahead == 0


def test_who_has_left_counts_as_far_as_they_had_read() -> None:
    stage = Stage(Form.EVENTS)
    one, other = stage.open().subscriber, stage.open().subscriber
    for number in range(4):
        stage.say(str(number) * 50)
    for _ in range(3):
        one.read(1)
    other.read(1)
    stage.hub.unsubscribe(one, 0.0)
    assert stage.topic.left_at == 3
    assert stage.topic.ahead == 3, "while somebody reads, they count"
    stage.hub.unsubscribe(other, 0.0)
    assert (stage.topic.left_at, stage.topic.ahead) == (3, 1)
    stage.say("5")
    assert stage.topic.ahead == 2


def test_a_client_whose_leader_reads_is_where_the_leader_is() -> None:
    stage = Stage(Form.EVENTS)
    client = stage.open().subscriber
    leader = stage.topic.lead(lambda: None)
    assert leader.is_beside(client)
    client.leader = leader
    stage.topic.waiting.discard(client)
    stage.say("1")
    assert leader.read() == block(1, "1")
    assert (client.offset, client.place, stage.topic.ahead) == (0, 1, 0)
    stage.hub.unsubscribe(client, 0.0)
    assert stage.topic.left_at == 1


def test_a_client_that_follows_its_leader_reads_by_itself_from_there() -> None:
    stage = Stage(Form.EVENTS)
    client = stage.open().subscriber
    leader = stage.topic.lead(lambda: None)
    client.leader = leader
    stage.say("1")
    leader.read()
    stage.say("2")
    client.follow(leader)
    assert (client.leader, client.offset, client.place) == (None, 1, 1)
    assert client.read() == block(2, "2")
    assert leader.place == 1


def test_a_leader_is_no_client() -> None:
    stage = Stage(Form.EVENTS)
    leader = stage.topic.lead(lambda: None)
    stage.say("1")
    assert stage.topic.subscribers == set()
    assert stage.topic.waiting == {leader}
    assert stage.topic.ahead == 1


def test_a_source_that_waits_is_told_whenever_somebody_has_read() -> None:
    relieved: list[int] = []
    stage = Stage(Form.EVENTS)
    opening = stage.open()
    stage.say("1")
    stage.topic.relief = lambda: relieved.append(stage.topic.ahead)
    opening.subscriber.read()
    assert relieved == [0]
    stage.topic.relief = None
    opening.subscriber.read()
    assert relieved == [0]


# Shapes


def shaped(stage: Stage, shape: Shape, cursor: str | None = None, now: float = 0.0) -> Opening:
    return stage.hub.subscribe(stage.topic, cursor, now, lambda: None, shape)


@pytest.mark.parametrize("shape", list(Shape))
@pytest.mark.parametrize("form", list(Form))
def test_what_an_opening_has_and_what_is_read_are_in_the_shape_that_was_asked_for(form: Form, shape: Shape) -> None:
    stage = Stage(form)
    stage.say("1")
    stage.say("2")
    for cursor in (None, "e-1", "foreign-1", EARLIEST):
        plain, other = stage.open(cursor), shaped(stage, shape, cursor)
        assert (other.is_resumed, other.is_finished) == (plain.is_resumed, plain.is_finished)
        assert other.data == shape.encode(plain.data)
        assert drained(other) == shape.encode(drained(plain))
    stage.say("3")
    assert other.subscriber.read() == shape.encode(block(3, "3"))


def test_control_events_are_in_the_shape_too_and_have_no_id() -> None:
    stage = Stage(Form.STATES)
    stage.say("1")
    opening = shaped(stage, Shape.NDJSON, "foreign-1")
    stage.say("{}", Kind.FAULT)
    stage.say("{}", Kind.RECOVERED)
    stage.say("2")
    stage.say("{}", Kind.FAULT)
    assert [json.loads(line) for line in drained(opening).splitlines()] == [
        {"event": "reset", "data": {"reason": "unknown-cursor"}},
        {"id": "e-1", "data": 1},
        {"id": "e-2", "data": 2},
        {"event": "fault", "data": {}},
    ]


def test_the_end_is_in_the_shape_and_the_stream_is_over_behind_it() -> None:
    stage = Stage(Form.STATES)
    opening = shaped(stage, Shape.JSON_SEQ)
    stage.say("1")
    stage.say('{"reason":"done"}', Kind.END)
    assert opening.subscriber.read() == b'\x1e{"id":"e-1","data":1}\n'
    assert not opening.subscriber.is_over
    assert opening.subscriber.read() == b'\x1e{"id":"e-2","event":"end","data":{"reason":"done"}}\n'
    assert opening.subscriber.is_over
    assert shaped(stage, Shape.JSON_SEQ, "e-2").is_finished


@pytest.mark.parametrize("shape", list(Shape))
def test_a_farewell_that_only_an_event_source_understands_is_left_out(shape: Shape) -> None:
    stage = Stage(Form.EVENTS)
    subscriber = shaped(stage, shape).subscriber
    subscriber.close(encode_retry(5000))
    assert subscriber.read() == b""
    assert subscriber.is_over


@pytest.mark.parametrize("shape", list(Shape))
def test_a_right_that_ended_is_told_in_the_shape(shape: Shape) -> None:
    stage = Stage(Form.EVENTS)
    subscriber = shaped(stage, shape).subscriber
    stage.say('{"reason":"revoked"}', Kind.REVOKED)
    assert subscriber.read() == shape.encode(b'event: end\ndata: {"reason":"revoked"}\n\n') != b""
    assert subscriber.is_over


def test_a_leader_reads_in_a_shape_for_those_who_read_in_it() -> None:
    stage = Stage(Form.EVENTS)
    leader = stage.topic.lead(lambda: None, Shape.NDJSON)
    stage.say("1")
    assert leader.read() == b'{"id":"e-1","data":1}\n'
    assert stage.topic.lead(lambda: None).shape is None


def test_a_reader_in_a_shape_is_given_no_more_at_once_than_others() -> None:
    stage = Stage(Form.EVENTS)
    opening = shaped(stage, Shape.NDJSON)
    for number in range(6):
        stage.say(str(number) * 100)
    pieces = [opening.subscriber.read(300) for _ in range(4)]
    assert all(len(piece) < 300 for piece in pieces)
    assert [json.loads(line)["id"] for line in b"".join(pieces).splitlines()] == [f"e-{n}" for n in range(1, 7)]
