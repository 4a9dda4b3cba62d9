"""One stream, once, and again only for who knows what it was sent last."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssegate.core import tickets
from ssegate.core.journal import Position
from ssegate.core.tickets import BLANK, GONE, LIFE, Span, Ticket, TicketOffice

PATH = "/orders/17/events"


def sell(office: TicketOffice[str], text: str, now: float, key: bytes | None = None) -> None:
    """A ticket for `PATH`, for a right of the same name."""
    office.sell(text, PATH, f"right of {text}", key=text.encode() if key is None else key, now=now)


def sold(*texts: str, now: float = 0.0) -> TicketOffice[str]:
    office: TicketOffice[str] = TicketOffice()
    for text in texts or ("t",):
        sell(office, text, now)
    return office


def taken(office: TicketOffice[str], text: str = "t", *, now: float = 1.0, cursor: str | None = None) -> Ticket[str]:
    ticket = office.take(text, PATH, cursor, now)
    assert isinstance(ticket, Ticket), ticket
    return ticket


def test_a_ticket_opens_its_path_once() -> None:
    office = sold()
    assert taken(office).right == "right of t"
    assert office.take("t", PATH, None, 1.0) == "the ticket's stream is open"


@pytest.mark.parametrize("path", ["/orders/18/events", "/orders/17/events/", "/Orders/17/events", "", PATH + "?"])
def test_a_ticket_opens_no_other_path(path: str) -> None:
    office = sold()
    assert office.take("t", path, None, 1.0) == "the ticket is for another path"
    taken(office)


@pytest.mark.parametrize("text", ["", "T", "t ", "tt", "\ud800", "x" * 100_000])
def test_a_ticket_that_was_not_sold_opens_nothing(text: str) -> None:
    assert office_says(sold(), text) == "the ticket is not known, or has run out"


def office_says(office: TicketOffice[str], text: str, now: float = 1.0, cursor: str | None = None) -> str:
    ticket = office.take(text, PATH, cursor, now)
    assert isinstance(ticket, str)
    return ticket


def test_a_ticket_is_used_within_half_a_minute() -> None:
    office = sold("a", "b", now=100.0)
    taken(office, "a", now=100.0 + LIFE - 0.01)
    assert office_says(office, "b", 100.0 + LIFE) == "the ticket has run out"


def test_a_ticket_of_which_no_stream_came_is_as_before() -> None:
    office = sold()
    taken(office).put_back()
    assert not taken(office).is_used
    office = sold()
    taken(office).put_back()
    assert office_says(office, "t", LIFE) == "the ticket has run out"


def test_a_used_ticket_is_good_again_for_who_knows_what_its_stream_was_sent() -> None:
    office = sold()
    taken(office).leave(lambda cursor: cursor == "e-1", 10.0)
    unknown = "the ticket was used, and its stream has not been sent this Last-Event-ID"
    for cursor in (None, "", "e-2", "x-1", BLANK):
        assert office_says(office, "t", 11.0, cursor) == unknown
    again = taken(office, now=11.0, cursor="e-1")
    assert again.is_used
    assert office_says(office, "t", 11.0, "e-1") == "the ticket's stream is open"
    again.put_back()
    again = taken(office, now=11.0, cursor="e-1")
    again.leave(lambda cursor: cursor == "e-2", 20.0)
    assert office_says(office, "t", 21.0, "e-1") == unknown
    taken(office, now=21.0, cursor="e-2")


def test_a_stream_may_be_gone_for_five_minutes() -> None:
    office = sold()
    taken(office).leave(lambda _: True, 1000.0)
    taken(office, now=1000.0 + GONE - 0.01, cursor="e-1").put_back()
    assert office_says(office, "t", 1000.0 + GONE, "e-1") == "the ticket has run out"


def test_a_stream_may_be_open_for_days() -> None:
    office = sold()
    ticket = taken(office)
    for number in range(100):
        sell(office, f"other{number}", 1e6 + number)
    ticket.leave(lambda _: True, 2e6)
    taken(office, now=2e6 + 1, cursor="e-1")


def test_when_a_right_ends_the_tickets_that_were_sold_for_it_are_good_no_more_and_later_ones_are() -> None:
    office = sold("used", "open", "unused", "other")
    taken(office, "used").leave(lambda _: True, 1.0)
    held = taken(office, "open")
    for text in ("used", "open", "unused"):
        office.void(text.encode())
    held.leave(lambda _: True, 1.0)
    ended = "the right that the ticket was bought for has ended"
    assert [office_says(office, text, 1.0, "e-1") for text in ("used", "open", "unused")] == [ended] * 3
    taken(office, "other")
    sell(office, "later", 1.0, key=b"used")
    taken(office, "later")


def test_there_are_never_many_more_tickets_than_are_good() -> None:
    office = sold()
    held = taken(office)
    for number in range(5000):
        sell(office, f"t{number}", number * 1.0)
    assert len(office) < 100
    held.leave(lambda _: True, 5000.0)
    taken(office, now=5001.0, cursor="x")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "MOST", 50)
    office = sold()
    for number in range(500):
        sell(office, f"t{number}", 1.0)
        assert len(office) <= 50
    taken(office, "t499")


def test_a_flood_of_tickets_takes_no_open_streams_ticket_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "MOST", 50)
    office = sold()
    held = taken(office)
    for number in range(500):
        sell(office, f"t{number}", 1.0)
    held.leave(lambda _: True, 2.0)
    taken(office, now=3.0, cursor="e-1")


def at(text: str) -> Position:
    position = Position.parse(text)
    assert position is not None
    return position


@pytest.mark.parametrize(
    ("begin", "end", "covered", "not_covered"),
    [
        (
            "e-3",
            "e-5",
            ["e-3", "e-4", "e-5"],
            ["e-2", "e-6", "f-4", "e", "", "e-", "e-04", "e--4", "x" * 300, "e-3\x00"],
        ),
        ("e-0", "e-0", ["e-0"], ["e-1", BLANK]),
        ("e-3", "f-2", ["e-3", "e-9", "f-0", "f-2"], ["e-2", "f-3", "g-1"]),
    ],
)
def test_a_span_covers_what_its_reader_was_sent(
    begin: str, end: str, covered: list[str], not_covered: list[str]
) -> None:
    span = Span(at(begin), at(end))
    assert [cursor for cursor in (*covered, *not_covered) if span.covers(cursor)] == covered


@given(
    st.lists(st.tuples(st.sampled_from(["take", "put_back", "leave", "sell", "wait"]), st.integers(0, 2)), max_size=40)
)
def test_no_ticket_ever_opens_two_streams_at_once(steps: list[tuple[str, int]]) -> None:
    office, now = sold("0", "1", "2"), 0.0
    open_: dict[int, Ticket[str]] = {}
    sent: dict[int, str] = {}
    names = itertools.count(1)
    for step, which in steps:
        if step == "wait":
            now += 20.0
        elif step == "sell":
            sell(office, f"more{next(names)}", now)
        elif step == "take":
            got = office.take(str(which), PATH, sent.get(which), now)
            assert not (isinstance(got, Ticket) and which in open_)
            if isinstance(got, Ticket):
                open_[which] = got
        elif which in open_ and step == "put_back":
            open_.pop(which).put_back()
        elif which in open_:
            mine = sent[which] = f"e-{next(names)}"
            open_.pop(which).leave(lambda cursor, mine=mine: cursor == mine, now)  # type: ignore[misc]
