"""Where feeds have stopped, for the process that comes next."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

from ssegate.core.feed import Place

log = logging.getLogger(__name__)

FOLDER = "feeds"

LONGEST = 7 * 86400.0
"""Seconds after which a cursor that nobody has come back for is forgotten."""


class Cursors:
    """A file for each feed, in a folder; without a folder they are remembered as long as this process lives.

    A cursor is written behind the events it stands for: a process that is killed between them tells the last page twice, and
    leaves none out. It says where somebody has read, so nobody but its owner may read the file.
    """

    def __init__(self, folder: Path | None = None) -> None:
        """`folder` is the gate's, and the files are below it."""
        self._folder = None if folder is None else folder / FOLDER
        self._known: dict[str, Place] = {}
        self._is_failing = False

    def prepare(self) -> None:
        """Make the folder, and forget what is too old. Raises `OSError` when nothing can be written in it."""
        if self._folder is None:
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(self._folder, os.W_OK):
            raise PermissionError(13, "nothing can be written there", str(self._folder))
        oldest = time.time() - LONGEST
        for file in self._folder.glob("*.*"):
            if file.is_file() and file.stat().st_mtime < oldest:
                file.unlink(missing_ok=True)

    def get(self, topic: str) -> Place | None:
        """Where this feed has stopped; None when that is not known."""
        if self._folder is None or topic in self._known:
            return self._known.get(topic)
        try:
            known = json.loads(self._file(topic).read_bytes())
            if known["topic"] == topic and isinstance(known["cursor"], str):
                return Place(known["cursor"], frozenset(map(str, known.get("told", ()))))
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass  # it is not there, or damaged: the feed begins anew
        return None

    def put(self, topic: str, place: Place) -> None:
        """It has come to here. What cannot be written is told in the log, once; the feed goes on."""
        self._known[topic] = place
        if self._folder is None:
            return
        file = self._file(topic)
        part = file.with_suffix(".part")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
                json.dump({"topic": topic, "cursor": place.cursor, "told": sorted(place.told)}, out)
            part.replace(file)
        except OSError as error:
            if not self._is_failing:
                fact = error.strerror or error
                log.warning("feed: its cursor cannot be written: %s; after a restart it begins anew", fact)
            self._is_failing = True
        else:
            self._is_failing = False

    def drop(self, topic: str) -> None:
        """The feed begins anew, whenever that is."""
        self._known.pop(topic, None)
        if self._folder is not None:
            self._file(topic).unlink(missing_ok=True)

    def _file(self, topic: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(topic.encode()).hexdigest()[:32]}.json"
