from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core.event import Event, Kind, Update, encode_event
from ssegate.core.journal import WALK_BYTES, Form, Journal, Position

LOTS = 1 << 20


def journal_of(
    form: Form,
    *datas: str,
    max_events: int = 100,
    max_age: float = 100.0,
    max_size: int = 1 << 60,
    now: float = 0.0,
) -> Journal:
    """A journal with these events; on a state topic each of them carries its data as the state."""
    journal = Journal(form, max_events=max_events, max_age=max_age, max_size=max_size)
    for data in datas:
        append(journal, data, now=now)
    return journal


def append(
    journal: Journal,
    data: str,
    *,
    now: float = 0.0,
    state: str | None = "",
    kind: Kind = Kind.EVENT,
    at: Position | None = None,
) -> bytes:
    """Append at the head. `state` "" is the data itself, on a state topic."""
    if journal._form is Form.EVENTS or kind is Kind.END:
        state = None
    elif state == "":
        state = data
    type_ = "end" if kind is Kind.END else ""
    position = at or Position(journal.epoch or "e", journal.head + 1)
    return journal.append(Update("t", data, type_, state, kind), position, now, "snapshot")


def block(offset: int, data: str, type_: str = "", epoch: str = "e") -> bytes:
    return encode_event(Event(data, type_, f"{epoch}-{offset}"))


# Positions


@pytest.mark.parametrize("text", ["e-0", "7f3a-12", "a-b-c-3", "e-999999999999999999", f"{'x' * 62}-1"])
def test_a_position_prints_as_the_id_it_is_read_from(text: str) -> None:
    position = Position.parse(text)
    assert position is not None
    assert str(position) == text


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,40}", fullmatch=True), st.integers(0, 10**18 - 1))
def test_the_last_dash_precedes_the_offset(epoch: str, offset: int) -> None:
    assert Position.parse(f"{epoch}-{offset}") == Position(epoch, offset)


@pytest.mark.parametrize(
    "text",
    [
        "", "e", "e-", "-1", "e--", "e-01", "e-+1", "e--1x", "e-1 ", " e-1", "e-1\n", "e-1\0", "é-1", "e-١", "e_f-1",
        "e-1.5", "e-9999999999999999999", "earliest", f"{'x' * 63}-1", "x" * 1_000_000,
    ],
)  # fmt: skip
def test_what_cannot_be_an_id_of_ours_is_no_position(text: str) -> None:
    assert Position.parse(text) is None


# The ring


def test_offsets_and_bytes_stay_as_they_came() -> None:
    journal = journal_of(Form.EVENTS, "a", "b")
    assert append(journal, "c") == block(3, "c")
    assert journal.kept() == block(1, "a") + block(2, "b") + block(3, "c")
    assert (journal.epoch, journal.first, journal.head, len(journal)) == ("e", 1, 3, 3)
    assert journal.size == len(journal.kept())


def test_an_empty_journal_has_nothing() -> None:
    journal = Journal(Form.STATES, max_events=1, max_age=1)
    assert (journal.first, journal.head, len(journal), journal.kept(), journal.snapshot()) == (1, 0, 0, b"", b"")
    assert journal.keeps(0)
    assert journal.read(0, LOTS) == (b"", 0)
    assert not journal.has_state


def test_the_oldest_leaves_when_there_are_too_many() -> None:
    journal = journal_of(Form.EVENTS, "a", "b", "c", max_events=2)
    assert journal.kept() == block(2, "b") + block(3, "c")
    assert [journal.keeps(offset) for offset in range(5)] == [False, True, True, True, False]


def test_the_old_leave_when_their_time_is_over() -> None:
    journal = journal_of(Form.EVENTS, "a", max_age=10)
    append(journal, "b", now=5)
    journal.expire(10)
    assert len(journal) == 2
    journal.expire(10.1)
    assert journal.kept() == block(2, "b")
    append(journal, "c", now=20)
    assert journal.kept() == block(3, "c")
    journal.expire(31)
    assert (len(journal), journal.first, journal.head) == (0, 4, 3)
    assert journal.keeps(3)  # who stands at the head has missed nothing
    assert not journal.keeps(2)


def test_the_oldest_leave_when_they_are_too_many_bytes() -> None:
    journal = journal_of(Form.EVENTS, *(str(number) * 80 for number in range(5)), max_size=300)
    assert (journal.first, journal.head) == (3, 5)
    assert journal.size == len(journal.kept()) <= 300
    append(journal, "x" * 180)
    assert journal.kept() == block(5, "4" * 80) + block(6, "x" * 180)


def test_the_newest_is_kept_however_large_it_is() -> None:
    journal = journal_of(Form.EVENTS, "a", "x" * 1000, max_size=300)
    assert journal.kept() == block(2, "x" * 1000)
    append(journal, "y" * 2000)
    assert journal.kept() == block(3, "y" * 2000)
    append(journal, "b")
    assert journal.kept() == block(4, "b"), "the large one is too much beside another"


@pytest.mark.parametrize("form", [Form.STATES, Form.CHANGES])
def test_the_state_and_what_follows_it_stay_however_many_bytes_they_are(form: Form) -> None:
    journal = journal_of(form, "a" * 200, "b" * 200, max_size=300)
    assert journal.first == 2
    append(journal, "c" * 200, state=None)
    append(journal, "over", kind=Kind.END)
    assert journal.snapshot() == block(2, "b" * 200, "snapshot" if form is Form.CHANGES else "")
    assert journal.kept() == journal.snapshot() + block(3, "c" * 200) + block(4, "over", "end")
    assert journal.read(2, LOTS) == (block(3, "c" * 200) + block(4, "over", "end"), 4)


@given(
    st.sampled_from(list(Form)),
    st.lists(st.tuples(st.integers(0, 120), st.booleans(), st.integers(0, 9)), max_size=20),
    st.integers(1, 400),
)
def test_the_size_is_always_that_of_what_is_kept(form: Form, steps: list[tuple[int, bool, int]], max_size: int) -> None:
    journal = journal_of(form, max_size=max_size, max_events=8, max_age=20)
    now = 0.0
    for length, has_state, seconds in steps:
        now += seconds
        append(journal, "x" * length, now=now, state="" if has_state else None)
        assert journal.size == sum(map(len, journal._events))
        tail = journal.head - max(journal.state_offset, journal.first - 1) if journal.has_state else 0
        assert journal.size <= max_size or len(journal) <= max(1, tail)
    journal.restart(Position("f", 0))
    assert journal.size == 0


# Another beginning


@pytest.mark.parametrize("form", list(Form))
def test_a_journal_that_begins_anew_is_empty_and_has_another_epoch(form: Form) -> None:
    journal = journal_of(form, "a", "b")
    journal.restart(Position("f", 0))
    assert (journal.epoch, journal.head, journal.first, len(journal), journal.size) == ("f", 0, 1, 0, 0)
    assert (journal.has_state, journal.state, journal.snapshot(), journal.kept()) == (False, "", b"", b"")
    assert journal.keeps(0)
    assert not journal.keeps(1)
    assert not journal.keeps(journal.origin), "who has read nothing yet may have missed what was before"
    append(journal, "c")
    assert (journal.head, journal.kept()) == (1, block(1, "c", epoch="f"))


def test_a_journal_may_begin_anew_in_the_middle_of_a_numbering() -> None:
    journal = journal_of(Form.EVENTS, "a", "b")
    journal.restart(Position("f", 7))
    assert (journal.head, journal.first) == (7, 8)
    append(journal, "c", at=Position("f", 8))
    assert journal.read(7, LOTS) == (block(8, "c", epoch="f"), 8)


def test_a_journal_that_begins_anew_before_its_first_event_may_have_lost_something_too() -> None:
    journal = journal_of(Form.EVENTS)
    journal.restart(Position("f", 0))
    assert not journal.keeps(journal.origin)


def test_after_a_new_beginning_events_leave_as_before() -> None:
    journal = journal_of(Form.EVENTS, "a", "b", "c", max_events=2)
    journal.restart(Position("f", 0))
    for data in "xyz":
        append(journal, data)
    assert journal.kept() == block(2, "y", epoch="f") + block(3, "z", epoch="f")


def test_an_old_run_is_not_given_out_after_a_new_beginning() -> None:
    journal = journal_of(Form.EVENTS, "a", "b", "c")
    journal.read(1, LOTS)
    journal.restart(Position("f", 0))
    assert journal.read(0, LOTS) == (b"", 0)
    for data in "xyz":
        append(journal, data)
    assert journal.read(1, LOTS) == (block(2, "y", epoch="f") + block(3, "z", epoch="f"), 3)


def test_an_event_whose_type_would_forge_a_field_changes_nothing() -> None:
    journal = journal_of(Form.STATES, "a")
    with pytest.raises(ValueError, match="type"):
        journal.append(Update("t", "b", "x\ny", "b"), Position("f", 1), 0.0)
    assert (journal.epoch, journal.head, journal.kept(), journal.state_offset) == ("e", 1, block(1, "a"), 1)


@pytest.mark.parametrize("at", [Position("f", 3), Position("f", 1), Position("e", 4), Position("e", 2)])
@pytest.mark.parametrize("form", list(Form))
def test_what_does_not_follow_empties_the_ring(form: Form, at: Position) -> None:
    journal = journal_of(form, "a", "b")
    append(journal, "z", at=at, state=None)
    assert (journal.epoch, journal.head, journal.first) == (at.epoch, at.offset, at.offset)
    assert journal.kept() == block(at.offset, "z", epoch=at.epoch)
    assert (journal.has_state, journal.snapshot()) == (False, b"")
    assert not journal.keeps(journal.origin)  # nobody who has read nothing yet could begin here in silence


def test_a_topic_may_be_joined_in_the_middle_of_its_numbering() -> None:
    journal = journal_of(Form.EVENTS)
    append(journal, "a", at=Position("e", 57))
    assert (journal.origin, journal.first) == (56, 57)
    assert journal.read(56, LOTS) == (block(57, "a"), 57)


# The state


def test_the_state_is_a_snapshot_with_the_id_it_came_at() -> None:
    journal = journal_of(Form.CHANGES)
    append(journal, "change", state="whole")
    append(journal, "half a change", state=None)
    assert (journal.state_offset, journal.head) == (1, 2)
    assert journal.snapshot() == block(1, "whole", "snapshot")
    append(journal, "the rest", state="new")
    assert journal.snapshot() == block(3, "new", "snapshot")


def test_where_each_event_is_the_state_the_snapshot_is_that_event() -> None:
    assert journal_of(Form.STATES, "a", "b").snapshot() == block(2, "b")


@pytest.mark.parametrize("form", [Form.STATES, Form.CHANGES])
def test_the_state_stays_however_old_it_is(form: Form) -> None:
    journal = journal_of(form, "a", "b", max_age=10)
    journal.expire(1000)
    assert len(journal) == 0
    assert journal.has_state
    assert journal.kept() == journal.snapshot() == block(2, "b", "snapshot" if form is Form.CHANGES else "")


@pytest.mark.parametrize("form", [Form.STATES, Form.CHANGES])
def test_what_follows_the_state_stays_with_it(form: Form) -> None:
    journal = journal_of(form, "a", "b", max_events=1, max_age=10)
    append(journal, "c", state=None)
    append(journal, "over", kind=Kind.END)
    journal.expire(1000)
    tail = block(3, "c") + block(4, "over", "end")
    assert journal.kept() == journal.snapshot() + tail
    assert journal.read(journal.state_offset, LOTS) == (tail, 4)


def test_the_end_of_a_topic_of_events_stays_while_it_is_the_last() -> None:
    journal = journal_of(Form.EVENTS, "a", max_events=1, max_age=10)
    append(journal, "over", kind=Kind.END)
    journal.expire(1000)
    assert journal.kept() == block(2, "over", "end")
    append(journal, "b", now=1000)
    assert journal.kept() == block(3, "b")


def test_the_current_state_is_text_too() -> None:
    journal = journal_of(Form.CHANGES)
    assert journal.state == ""
    append(journal, "change", state="whole")
    assert journal.state == "whole"
    append(journal, "half a change", state=None)
    assert journal.state == "whole"
    journal.expire(1000)
    assert journal.state == "whole"


# Reading


@given(st.lists(st.text(max_size=30), max_size=12), st.data())
def test_reading_bit_by_bit_gives_every_event_once_and_in_order(datas: list[str], data: st.DataObject) -> None:
    journal = journal_of(Form.EVENTS, *datas)
    offset = start = data.draw(st.integers(0, len(datas)))
    got = b""
    while offset < journal.head:
        max_bytes = data.draw(st.integers(0, 100))
        piece, reached = journal.read(offset, max_bytes)
        assert reached > offset
        assert len(piece) <= max_bytes or reached == offset + 1
        got, offset = got + piece, reached
    assert got == b"".join(block(start + n, text) for n, text in enumerate(datas[start:], 1))
    assert journal.read(offset, LOTS) == (b"", offset)


def test_a_run_that_was_read_by_one_is_not_too_much_for_the_next() -> None:
    journal = journal_of(Form.EVENTS, "a", "b", "c")
    assert journal.read(0, LOTS)[1] == 3
    assert journal.read(0, 1) == (block(1, "a"), 1)


def test_readers_that_go_in_step_share_the_same_bytes() -> None:
    journal = journal_of(Form.EVENTS, "a", "b", "c")
    assert journal.read(0, LOTS)[0] is journal.read(0, LOTS)[0]
    assert journal.read(2, LOTS)[0] is journal.read(2, LOTS)[0]


def test_a_run_from_another_epoch_is_not_given_out() -> None:
    journal = journal_of(Form.EVENTS, "a", "b", "c")
    journal.read(1, LOTS)
    append(journal, "x", at=Position("f", 1))
    for data in ("y", "z"):
        append(journal, data)
    assert journal.read(1, LOTS) == (block(2, "y", epoch="f") + block(3, "z", epoch="f"), 3)


def test_of_whole_states_a_reader_gets_only_the_newest_and_then_the_end() -> None:
    journal = journal_of(Form.STATES, "a", "b", "c")
    assert journal.read(0, LOTS) == (block(3, "c"), 3)
    append(journal, "over", kind=Kind.END)
    assert journal.read(1, LOTS) == (block(3, "c"), 3)
    assert journal.read(3, LOTS) == (block(4, "over", "end"), 4)


def test_changes_are_replaced_by_a_snapshot_where_that_is_shorter() -> None:
    big, small = "x" * 600, "y" * 500
    journal = journal_of(Form.CHANGES)
    for _ in range(3):
        append(journal, big, state=small)
    assert journal.read(0, LOTS) == (block(3, small, "snapshot"), 3)
    assert journal.read(1, LOTS)[0] == block(3, small, "snapshot")
    assert journal.read(2, LOTS) == (block(3, big), 3)  # one change is no run


def test_changes_below_a_packet_are_sent_as_they_are() -> None:
    journal = journal_of(Form.CHANGES)
    for number in range(4):
        append(journal, f"change {number}", state="s")
    assert journal.read(1, LOTS)[0] == b"".join(block(n + 1, f"change {n}") for n in (1, 2, 3))


def test_changes_are_sent_where_the_snapshot_is_longer() -> None:
    journal = journal_of(Form.CHANGES)
    for _ in range(3):
        append(journal, "x" * 600, state="y" * 5000)
    assert journal.read(0, LOTS)[1] == 3
    assert b"snapshot" not in journal.read(0, LOTS)[0]


def test_half_a_change_behind_the_state_is_read_as_it_is() -> None:
    journal = journal_of(Form.CHANGES)
    append(journal, "s", state="s")
    for _ in range(3):
        append(journal, "x" * 600, state=None)
    data, offset = journal.read(1, LOTS)
    assert (data.count(b"xxx\n"), offset) == (3, 4)
    # From before the state it is the state, and then what follows it.
    assert journal.read(0, LOTS) == (block(1, "s", "snapshot"), 1)


def test_old_whole_states_are_let_go_of_but_their_places_are_kept() -> None:
    state = "x" * (WALK_BYTES // 4)
    journal = journal_of(Form.STATES, *[state] * 20)
    assert journal.size <= WALK_BYTES
    assert len(journal) == 20
    assert journal.keeps(1)
    assert journal.read(1, LOTS) == (block(20, state), 20)
    append(journal, "over", kind=Kind.END)
    assert journal.read(19, LOTS) == (block(20, state), 20)


@pytest.mark.parametrize("form", list(Form))
def test_a_state_larger_than_all_that_is_kept_is_kept(form: Form) -> None:
    state = "x" * (2 * WALK_BYTES)
    journal = journal_of(form, "a", state)
    assert journal.read(1, 10) == (block(2, state), 2)
