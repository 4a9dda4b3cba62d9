"""What the status of a job says: how far it is, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ssegate.core.document import decode, encode, encoded_size, mend
from ssegate.core.event import Kind, Update, encode_text
from ssegate.core.follow import is_true
from ssegate.core.markup import Markup
from ssegate.errors import OversizeError, UndecodableError

Search = Callable[[object], object]

_STILL_AT_WORK = 202


@dataclass(frozen=True, slots=True)
class TaskRules:
    """What a route says about its jobs. Expressions are searched in the status document, or are None."""

    max_event_size: int
    """Bytes."""
    progress: Search | None = None
    """Without it the document itself."""
    done: Search | None = None
    """Without it any answer but a 202 (Accepted) says that the job is done."""
    failed: Search | None = None
    result: Search | None = None
    """Without it the document itself."""
    markup: Markup | None = None


class TaskReader:
    """Reads the statuses of one job, and says what is new in each."""

    def __init__(self, topic: str, rules: TaskRules) -> None:
        self._topic = topic
        self._rules = rules
        self._told: tuple[bool, str, str] | None = None  # the progress that was told last

    def read(self, status: int, body: bytes) -> Sequence[Update]:
        """The progress if it is another one, and the end if it is over. Raises `UndecodableError` and `OversizeError`."""
        if status == _STILL_AT_WORK and not body.strip():
            return ()
        rules = self._rules
        document = decode(body)
        reason = self._ended(status, document)
        end: tuple[Update, ...] = ()
        if reason:
            result = document if rules.result is None else rules.result(document)
            data = self._write({"reason": reason, "result": result})
            end = (Update(self._topic, data, type="end", kind=Kind.END),)
        return (*self._progress(document), *end)

    def read_nothing(self, status: int) -> Sequence[Update]:
        """An answer without a body: without `done`, one that says that there is nothing (204) is the end."""
        if status == 304 or self._rules.done is not None:
            return ()
        return (Update(self._topic, encode({"reason": "done", "result": None}), type="end", kind=Kind.END),)

    def give_up(self) -> Update:
        """It takes too long."""
        return Update(self._topic, encode({"reason": "timeout"}), type="end", kind=Kind.END)

    def _ended(self, status: int, document: object) -> str:
        rules = self._rules
        if rules.failed is not None and is_true(rules.failed(document)):
            return "failed"
        is_done = status != _STILL_AT_WORK if rules.done is None else is_true(rules.done(document))
        return "done" if is_done else ""

    def _progress(self, document: object) -> tuple[Update, ...]:
        progress = document if self._rules.progress is None else self._rules.progress(document)
        if progress is None:
            return ()
        type_, text = self._said(progress)
        mark = (isinstance(progress, str), type_, text)
        if mark == self._told:
            return ()
        self._told = mark
        return (Update(self._topic, text, type=type_, state=text),)

    def _said(self, progress: object) -> tuple[str, str]:
        """The type and the data of the event that tells it."""
        if self._rules.markup is not None:
            type_, html = self._rules.markup.write(progress)
            return type_, self._check(html)
        return "", self._check(encode_text(progress).decode()) if isinstance(progress, str) else self._write(progress)

    def _write(self, value: object) -> str:
        try:
            text = encode(value)
            return self._check(text)
        except UnicodeEncodeError:
            return self._write(mend(text))
        except (TypeError, ValueError, RecursionError):
            raise UndecodableError("an expression gives something that JSON does not have, such as NaN") from None

    def _check(self, text: str) -> str:
        size = encoded_size(text)
        if size > self._rules.max_event_size:
            raise OversizeError(f"the status is {size} bytes; limits.event_size is {self._rules.max_event_size}")
        return text
