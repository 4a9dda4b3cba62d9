"""What is remembered of subscriptions across restarts, so that none is left behind at a backend."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

FILE = "subscriptions.json"


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
    undo: tuple[str, str, str] = ("", "", "")
    """What removes it: the upstream's name, method and path; empty where that is not needed or not possible."""


class Ledger:
    """All subscriptions by the path of their webhook, in memory, and in a file if there is a folder for it.

    The file holds secrets, so nobody but its owner may read it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = None if folder is None else folder / FILE
        self._records: dict[str, Record] = {}
        self._claimed: dict[str, Record] = {}
        self._writing = asyncio.Lock()

    def load(self) -> None:
        """Read the file. Raises `OSError` when it cannot be read, or nothing can be written beside it, and `ValueError` when it is damaged."""
        if self._file is None:
            return
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self._file.parent, os.W_OK):
            raise PermissionError(13, "nothing can be written there", str(self._file.parent))
        if self._file.exists():
            self._records = {at: _read(entry) for at, entry in json.loads(self._file.read_bytes()).items()}

    def get(self, at: str) -> Record | None:
        """The record of a webhook's path."""
        return self._records.get(at)

    def claim(self, at: str, definition: str, kind: str, callback: str, make_secret: Callable[[], str]) -> Record:
        """The record with this definition, or a new one, with a secret and a token of its own, that is not stored yet."""
        known = self._records.get(at) or self._claimed.get(at)
        if known is not None and known.definition == definition:
            return known
        token = secrets.token_urlsafe(18) if kind == "websub" else ""
        record = Record(definition, kind, make_secret(), token, f"{callback}/{token}" if token else callback)
        self._claimed[at] = record
        return record

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        return iter(tuple(self._records.items()))

    async def put(self, at: str, record: Record) -> None:
        """Remember it. Raises `OSError` when it cannot be written; it is remembered in memory then."""
        self._records[at] = record
        await self._write()

    async def drop(self, at: str, record: Record) -> None:
        """Forget it, unless the path has another one by now. Raises `OSError` as `put` does."""
        if self._records.get(at) == record:
            del self._records[at]
            await self._write()

    async def _write(self) -> None:
        if self._file is not None:
            async with self._writing:
                text = json.dumps({at: asdict(record) for at, record in self._records.items()}, indent=1)
                await asyncio.to_thread(_replace, self._file, text)


def _read(entry: dict[str, object]) -> Record:
    known = {each.name for each in fields(Record)}
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items() if name in known}
    return Record(**facts)  # type: ignore[arg-type]  # it wrote them itself


def _replace(file: Path, text: str) -> None:
    """Write it whole or not at all, readable by its owner alone."""
    part = file.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    part.replace(file)
