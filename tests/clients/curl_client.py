"""`curl -N` in a loop: what a shell script would do, down to picking the events' fields out of the text."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator


def report(**line: object) -> None:
    print(json.dumps(line), flush=True)


def blocks(url: str, options: list[str], cursor: str) -> Iterator[list[str]]:
    """The lines of each whole event; what a broken connection left unfinished is none."""
    header = ["-H", f"Last-Event-ID: {cursor}"] if cursor else []
    with subprocess.Popen(["curl", "-sSN", "-i", *options, *header, url], stdout=subprocess.PIPE, text=True) as curl:
        assert curl.stdout is not None
        block: list[str] = []
        for line in curl.stdout:
            if line.endswith("\n") and not line.strip():
                yield block
                block = []
            else:
                block.append(line.rstrip("\r\n"))
    report(error=f"curl ended with {curl.returncode}")


def follow(url: str, options: list[str], cursor: str) -> str:
    """Read one stream to its end; return the cursor to come back with."""
    for block in blocks(url, options, cursor):
        if block[0].startswith("HTTP/"):
            report(open=" 200" in block[0])
            continue
        fields = dict(line.split(": ", 1) for line in block if not line.startswith(":"))
        cursor = fields.get("id", cursor)
        report(type=fields.get("event", "message"), id=fields.get("id", ""), data=fields["data"])
    return cursor


def main(url: str, *options: str) -> None:
    cursor = ""
    while True:
        cursor = follow(url, list(options), cursor)
        time.sleep(0.1)


main(*sys.argv[1:])
