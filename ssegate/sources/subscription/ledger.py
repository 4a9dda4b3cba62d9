"""What is remembered of subscriptions across restarts, so that none is left behind at a backend."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

FILE = "subscriptions.json"

TOKEN_LENGTH = 24
"""Characters of a token, of six bits each."""


@dataclass(frozen=True, slots=True)
class Record:
    """One subscription."""

    definition: str
    """A digest of what the configuration says of it: a record of another definition is another subscription."""
    kind: str
    """`websub`, `msgraph` or `rest`."""
    secret: str
    """What the backend signs with, where the gate has made it; empty where the configuration says it."""
    token: str
    """The part of the callback that nobody can guess, where it has one."""
    callback: str
    """The URL the backend was given."""
    is_made: bool = False
    """Whether the backend may have it."""
    id: str = ""
    """The backend's own name of it."""
    hub: str = ""
    """The WebSub hub that has it."""
    topic: str = ""
    """The topic as the hub knows it."""
    until: float = 0.0
    """When it ends, in seconds since 1970; 0 where that is not known."""
    undo: tuple[str, ...] = ()
    """What removes it: the upstream's name, method, path and JSON body; empty where that is not needed or not possible."""


class Ledger:
    """All subscriptions by the path of their webhook, in memory, and in a file if there is a folder for it.

    A path has one that is wanted, and may have others that could not be taken back yet. The file holds secrets, so nobody
    but its owner may read it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else folder / FILE
        self._records: dict[str, dict[str, Record]] = {}
        """By path and definition."""
        self._claimed: dict[str, Record] = {}
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Read the file, if there is one. Raises `OSError` when it cannot be read, and `ValueError` when it is damaged."""
        if self._file is not None and self._file.exists():
            self._records = _read(json.loads(self._file.read_bytes()))

    def prepare(self) -> None:
        """Make the folder if it is not there. Raises `OSError` when nothing can be written in it."""
        if self._file is not None:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self._file.parent, os.W_OK):
                raise PermissionError(13, "nothing can be written there", str(self._file.parent))

    def get(self, at: str, definition: str) -> Record | None:
        """The record of a webhook's path with this definition."""
        return self._records.get(at, {}).get(definition)

    def claim(self, at: str, definition: str, kind: str, callback: str, make_secret: Callable[[], str]) -> Record:
        """The record with this definition, or a new one, with a secret and a token of its own, that is not stored yet."""
        known = self.get(at, definition) or self._claimed.get(at)
        if known is not None and known.definition == definition:
            return known
        token = secrets.token_urlsafe(TOKEN_LENGTH * 6 // 8) if kind == "websub" else ""
        record = Record(definition, kind, make_secret(), token, _below(callback, token) if token else callback)
        self._claimed[at] = record
        return record

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        return iter([(at, record) for at, records in self._records.items() for record in records.values()])

    async def put(self, at: str, record: Record) -> None:
        """Remember it. Raises `OSError` when it cannot be written; it is remembered in memory then."""
        self._records.setdefault(at, {})[record.definition] = record
        await self._write()

    async def drop(self, at: str, record: Record) -> None:
        """Forget it. Raises `OSError` as `put` does."""
        records = self._records.get(at, {})
        if records.pop(record.definition, None) is not None:
            if not records:
                del self._records[at]
            await self._write()

    async def _write(self) -> None:
        if self._file is not None:
            async with self._writing:
                every = {at: [asdict(record) for record in records.values()] for at, records in self._records.items()}
                await asyncio.to_thread(_replace, self._file, json.dumps(every, indent=1))


def _below(callback: str, token: str) -> str:
    """The callback with the token as one more segment of its path; its query stays."""
    parts = urlsplit(callback)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{token}").geturl()


def _read(document: object) -> dict[str, dict[str, Record]]:
    """What `_write` has written. Raises `ValueError` for anything else."""
    if not isinstance(document, dict):
        raise ValueError("not an object")
    if not all(isinstance(entries, list) for entries in document.values()):
        raise ValueError("a path without a list")
    return {at: {each.definition: each for each in map(_read_record, entries)} for at, entries in document.items()}


def _read_record(entry: object) -> Record:
    if not isinstance(entry, dict):
        raise ValueError("a subscription that is no object")
    types = {each.name: type(getattr(_SAMPLE, each.name)) for each in fields(Record)}
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items() if name in types}
    facts |= {name: float(value) for name, value in facts.items() if types[name] is float and type(value) is int}
    if any(type(value) is not types[name] for name, value in facts.items()) or not set(_REQUIRED) <= set(facts):
        raise ValueError("a subscription with other facts than it should have")
    return Record(**facts)  # type: ignore[arg-type]  # what is of another type has just been refused


_REQUIRED = ("definition", "kind", "secret", "token", "callback")
_SAMPLE = Record("", "", "", "", "")


def _replace(file: Path, text: str) -> None:
    """Write it whole or not at all, readable by its owner alone."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
