"""Log lines: one a record, and no value forges another."""

from __future__ import annotations

import logging
import re
import sys

import pytest

from ssegate.cli.logs import LineFormatter

LINE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z [A-Z]+ [a-z.]+  .*")


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    made = logging.LogRecord("ssegate.sources.poll", logging.WARNING, "x.py", 1, message, arguments, info)
    made.created = 1795168800.0
    return made


def test_a_line_has_time_level_logger_and_message() -> None:
    line = LineFormatter().format(record("poll %s fails", "/orders"))
    assert line == "2026-11-20T10:00:00Z WARNING ssegate.sources.poll  poll /orders fails"


@pytest.mark.parametrize(
    "char", ["\n", "\r", "\x0b", "\x0c", "\x1b", "\x00", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u202e", "\ud800"]
)
def test_no_value_forges_a_line_or_moves_the_cursor(char: str) -> None:
    line = LineFormatter().format(record("name %s", f"a{char}2026-11-20T10:00:00Z ERROR forged"))
    assert char not in line
    assert line.isprintable()
    assert line.encode()


def test_what_is_printable_stays_as_it_is() -> None:
    assert LineFormatter().format(record("Zürich 東京 \\n")).endswith("  Zürich 東京 \\n")


def test_the_lines_of_a_traceback_are_no_lines_of_the_log() -> None:
    try:
        raise ValueError("x\n2026-11-20T10:00:00Z ERROR ssegate  forged\u2028y")
    except ValueError as error:
        text = LineFormatter().format(record("broken", error=error))
    first, *others = text.split("\n")
    assert LINE.fullmatch(first)
    assert others
    assert all(line.startswith("    ") and line.isprintable() for line in others)
    assert any(r"forged\u2028y" in line for line in others)


def test_colour_is_round_the_level_alone() -> None:
    line = LineFormatter(colour=True).format(record("m"))
    assert line == "2026-11-20T10:00:00Z \x1b[33mWARNING\x1b[0m ssegate.sources.poll  m"
    assert sys.stderr.isatty() is False
