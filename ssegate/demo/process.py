"""The demo's API as a process of its own, that never outlives the one that started it."""

from __future__ import annotations

import subprocess
import sys

from ssegate.errors import SsegateError

PATIENCE = 3.0
"""Seconds the API has to end by itself."""


class DemoError(SsegateError):
    """The demo cannot be shown."""


class ApiProcess:
    """Runs `ssegate.demo.api` and knows where it listens. Use it as a context manager."""

    def __init__(self, port: int, *, every: float) -> None:
        """It takes one of the next ports where this one is in use. Raises `DemoError` when it does not come up."""
        # Its standard input is our end of a pipe: it ends when we do, even by `kill -9`. Its session is its own, so that
        # Ctrl-C reaches us alone and the gate can go down in order before it.
        self._process = subprocess.Popen(  # noqa: S603  (our own module, by our own interpreter)
            [
                sys.executable,
                "-m",
                "ssegate.demo.api",
                f"--port={port}",
                f"--every={every}",
                "--or-next",
                "--with-parent",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        try:
            self.url = self._process.stdout.readline().strip()
            """Where it is: `http://127.0.0.1:8000`."""
        except BaseException:
            self.stop()
            raise
        if not self.url:
            self.stop()
            raise DemoError(f"the demo's API did not start (exit code {self._process.returncode})")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._process.poll()

    def stop(self) -> None:
        """End it and wait for it. May be called twice."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> ApiProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
