"""Processes to measure: started on one core, read for CPU time and memory, and ended again."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SERVER_CORE = 0
LOAD_CORE = 1
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """A server, for what it costs: with all its threads and descendants."""

    pid: int

    def cpu(self) -> float:
        """Seconds of CPU so far."""
        return sum(time.clock_gettime(_cpu_clock(pid)) for pid in self._family())

    def memory(self) -> int:
        """Resident bytes."""
        return sum(_resident(pid) for pid in self._family())

    def _family(self) -> list[int]:
        family = [self.pid]
        for pid in family:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                family += map(int, children.read_text().split())
        return family


def _cpu_clock(pid: int) -> int:
    # what clock_getcpuclockid(3) makes of a process id; Python has no name for it
    return (~pid << 3) | 2


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


@contextlib.contextmanager
def running(command: Sequence[str], port: int, *, core: int, folder: Path | None = None) -> Iterator[Process]:
    """This command, started in `folder`, once something listens on `port`. Exits with what it said if it ends before."""
    with tempfile.TemporaryFile() as said:
        with pinned(core):
            server = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
        try:
            _wait_for(port, server, said.fileno())
            yield Process(server.pid)
        finally:
            _end(server)


def _wait_for(port: int, server: subprocess.Popen[bytes], said: int, timeout: float = 20.0) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if server.poll() is not None:
            text = os.pread(said, 4096, 0).decode(errors="replace").strip()
            raise Unavailable(f"the server ended with {server.returncode}: {text}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.05)
    raise Unavailable(f"nobody listens on port {port} after {timeout:.0f} s")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


class Unavailable(Exception):
    """A benchmark cannot run here; the message says what is missing."""


def needs(program: str, package: str) -> None:
    """Raise `Unavailable`, with what to install, if there is no such program."""
    if shutil.which(program) is None:
        raise Unavailable(f"{program} is not installed: apt-get install {package}")


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started inside stays on this core, where there is more than one."""
    if not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) < 2:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_files(count: int) -> None:
    """Let this process and those it starts open so many files. Raises `Unavailable` if the system does not."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < count:
        raise Unavailable(f"{count} open files are needed and {hard} allowed: ulimit -n {count}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard == resource.RLIM_INFINITY else hard, hard))


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run_here() -> None:
    """Stop with a clear word on systems where the figures cannot be read."""
    if sys.platform != "linux":
        sys.exit("the benchmarks read /proc and need Linux")
