"""Programs that run beside the tests: each says one JSON object per line, and none outlives its test."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 15.0
"""Seconds after which what has not happened is taken for what will not happen."""

Line = dict[str, Any]


def wait_until(is_so: Callable[[], bool], what: str, timeout: float = PATIENCE) -> None:
    """Ask again and again; fail when it does not come true. For what nobody tells us of."""
    end = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < end, f"{what}: not within {timeout:g} s"
        time.sleep(0.02)


class Child:
    """A program, started at once. Its standard output is read by a thread, its standard error kept in a file."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        parse: Callable[[bytes], Line] = json.loads,
    ) -> None:
        """`parse` is for a program whose lines are not JSON."""
        self._parse = parse
        self.name = " ".join(os.fspath(part) for part in command)[:200]
        self.log = log
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [os.fspath(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(env or {})},
                # A group of its own: whatever it starts itself goes with it.
                start_new_session=True,
            )
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(self._parse(line))
        self._lines.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def say(self, line: Line) -> None:
        """Send the program one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()

    def next(self, timeout: float = PATIENCE) -> Line:
        """The next line. A program that ended or says nothing more fails the test, with what it complained of."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"{self.name} said nothing for {timeout:g} s; {self._complaint()}") from None
        if line is None:
            raise AssertionError(f"{self.name} ended with {self._process.wait()}; {self._complaint()}")
        return line

    def until(self, wanted: Callable[[Line], bool], timeout: float = PATIENCE) -> list[Line]:
        """The lines up to and with the first that is wanted."""
        end = time.monotonic() + timeout
        lines: list[Line] = []
        while not lines or not wanted(lines[-1]):
            left = end - time.monotonic()
            assert left > 0, f"{self.name} did not come to it, but said {lines[-20:]}"
            lines.append(self.next(left))
        return lines

    def _complaint(self) -> str:
        return f"its standard error: {self.log.read_text(errors='replace')[-2000:] or 'empty'}"

    def terminate(self, timeout: float = PATIENCE) -> int:
        """Ask it to stop; return how it ended."""
        self._process.send_signal(signal.SIGTERM)
        return self._end(timeout)

    def leave(self, timeout: float = PATIENCE) -> int:
        """Let it stop by the end of its input; return how it ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._end(timeout)

    def kill(self) -> None:
        """End it, and all it started, without a word. May be called twice."""
        if self.is_running:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._end(PATIENCE)

    def _end(self, timeout: float) -> int:
        status = self._process.wait(timeout)
        self._reader.join(timeout)
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return status
