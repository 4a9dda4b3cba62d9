"""What a page of a feed says: its items, and where to go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from ssegate.core.document import decode, encode, encode_sorted
from ssegate.core.event import Kind, Update, encode_text
from ssegate.core.follow import word
from ssegate.core.markup import event_type, render
from ssegate.core.template import Template
from ssegate.errors import UndecodableError

Search = Callable[[object], object]

NOW = "now"
BEGINNING = "beginning"

EMPTY_PAGES = 10
"""Pages without an item in a row that are turned at once; a feed that goes on like that is asked at its interval."""


@dataclass(frozen=True, slots=True)
class FeedRules:
    """What a route says about its feed."""

    items: Search | None
    """Where in a page the list is; None: the page is the list."""
    next: Search
    """Where in a page the cursor of the next request is."""
    start: str
    """`now`, `beginning`, or the cursor to begin with."""
    max_event_size: int
    """Bytes."""
    event: Template | None = None
    data: Search | None = None
    """What of an item is its event's data; None: all of it."""
    template: Template | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a feed has come to."""

    cursor: str
    """What the next page is asked for with; empty is the beginning."""
    told: frozenset[str] = frozenset()
    """Marks of the items behind it that have been told: a page that has no cursor for what comes after it is asked for again,
    and grows."""


class FeedReader:
    """Reads the pages of one feed, in order.

    Ask with `cursor`, hand the page to `read`, publish what it gives, and call `turn`: only then has it come further, so that
    what could not be published is asked for again.
    """

    def __init__(self, topic: str, rules: FeedRules, place: Place | None = None) -> None:
        """`place`: where an earlier process stopped; None to begin as the rules say."""
        self.has_more = False
        """Whether there may be another page already."""
        self._topic = topic
        self._rules = rules
        self._place = place
        """None before anything is known that is worth remembering."""
        self._next = self._here = place or Place("")
        self._is_skipping = False
        self._full = 0  # items of the first page that was passed over
        self._empty = 0
        self._is_troubled = False
        if place is None:
            self._begin()

    def _begin(self) -> None:
        start = self._rules.start
        self._is_skipping = start == NOW
        self._full = self._empty = 0
        self._place = None
        self._next = self._here = Place("" if start in (NOW, BEGINNING) else start)

    @property
    def cursor(self) -> str:
        """What to ask with; empty stands for the beginning."""
        return self._here.cursor

    @property
    def is_under_way(self) -> bool:
        """Whether the upstream has given a cursor, that it may have forgotten."""
        return bool(self.cursor) and self.cursor != self._rules.start

    def read(self, body: bytes) -> Sequence[Update]:
        """A page's items as events. Raises `UndecodableError` when it is none."""
        rules = self._rules
        page = decode(body)
        items = page if rules.items is None else rules.items(page)
        if items is not None and not isinstance(items, list):
            raise UndecodableError("`items` finds something that is no list")
        items = items or []
        cursor = word(rules.next(page)) or self.cursor
        is_turned = cursor != self.cursor
        self._empty = 0 if items or not is_turned else self._empty + 1
        self.has_more = is_turned and self._empty < EMPTY_PAGES
        news = self._news(items, cursor)
        if self._is_skipping:
            # A page that is not as full as the first is the last: a busy feed has another item each time it is asked.
            self._full = self._full or max(len(items), 2)
            self._is_skipping = is_turned and len(items) >= self._full
            return ()
        return [update for item in news for update in self._read_item(item)]

    def _news(self, items: Sequence[object], cursor: str) -> Sequence[object]:
        """The items that have not been told; where it stands when they are."""
        told = self._here.told
        if cursor != self.cursor and not told:
            self._next = Place(cursor)
            return items
        marks = [_mark(item) for item in items]
        self._next = Place(cursor) if cursor != self.cursor else Place(cursor, frozenset(marks))
        return [item for item, mark in zip(items, marks, strict=True) if mark not in told]

    def turn(self) -> Place | None:
        """What was read has been published: it has come further. Returns where to, if that is to be remembered."""
        self._here = self._next
        if self._is_skipping or self._place == self._here:
            return None
        self._place = self._here
        return self._here

    def forget(self) -> Sequence[Update]:
        """The backend knows the cursor no more: begin anew, and say that there may be a gap."""
        self._begin()
        return (Update(self._topic, encode({"reason": "gap"}), kind=Kind.RESET),)

    def _read_item(self, item: object) -> Sequence[Update]:
        rules = self._rules
        try:
            found = item if rules.data is None else rules.data(item)
            if found is None:
                return ()
            if rules.template is not None:
                text = render(rules.template, found)
            else:
                text = found if isinstance(found, str) else encode(found)
        except (UndecodableError, ValueError, TypeError, RecursionError):
            return self._fault("undecodable", "an item of the feed cannot be read")
        type_ = "" if rules.event is None else event_type(rules.event, item)
        if len(encode_text(text)) + len(type_) > rules.max_event_size:
            return self._fault("oversize", "an item of the feed is too large for an event")
        event = Update(self._topic, text, type=type_)
        if not self._is_troubled:
            return (event,)
        self._is_troubled = False
        return (Update(self._topic, "{}", kind=Kind.RECOVERED), event)

    def _fault(self, reason: str, message: str) -> Sequence[Update]:
        """It is left out, and that is told; the next item ends the trouble."""
        if self._is_troubled:
            return ()
        self._is_troubled = True
        return (Update(self._topic, encode({"reason": reason, "status": None, "message": message}), kind=Kind.FAULT),)


def _mark(item: object) -> str:
    """A short mark of an item, the same for any order of its members."""
    try:
        text = encode_sorted(item)
    except (ValueError, TypeError, RecursionError):
        text = repr(type(item))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
