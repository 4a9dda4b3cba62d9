"""`ssegate demo` as a process: it says where everything is, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import urlopen

PORT = 8760


@contextmanager
def demo(*options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The process and the addresses it printed."""
    command = [sys.executable, "-m", "ssegate", "demo", f"--port={PORT}", f"--api-port={PORT + 100}", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            urls: dict[str, str] = {}
            for line in process.stdout:
                if found := re.match(r"  (page|API|stream) +(http\S+)", line):
                    urls[found[1]] = found[2]
                if "Ctrl-C" in line:
                    break
            yield process, urls
        finally:
            process.kill()


def is_answered(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_until_silent(url: str) -> None:
    end = time.monotonic() + 5
    while is_answered(url):
        assert time.monotonic() < end, f"{url} is still answered"
        time.sleep(0.02)


def test_it_prints_three_urls_that_answer() -> None:
    with demo() as (_, urls):
        assert set(urls) == {"page", "API", "stream"}
        assert all(is_answered(url) for url in urls.values())


def test_an_interrupt_ends_both_processes_cleanly() -> None:
    with demo() as (process, urls):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 0
        assert "Traceback" not in errors
        assert not is_answered(urls["API"])


def test_a_demo_that_is_killed_takes_its_api_along() -> None:
    with demo() as (process, urls):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        wait_until_silent(urls["API"])


def test_a_second_demo_takes_other_ports_and_says_so() -> None:
    with demo() as (_, first), demo() as (process, second):
        assert set(first.values()).isdisjoint(second.values())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert re.search(r"port \d+ is in use: the gateway has \d+", errors)
        assert re.search(r"port \d+ is in use: the API has \d+", errors)


def test_a_port_that_is_none_is_wrong_usage() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ssegate", "demo", "--port", "99999"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "is not a port" in done.stderr
