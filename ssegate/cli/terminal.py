"""What goes to people: colours on a terminal only, nothing a terminal would obey, problems with their place."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import IO

from ssegate.config import explain, read_config
from ssegate.errors import ConfigError

_PAINTS = {
    "bold": "\033[1m",
    "dim": "\033[2m",
    "red": "\033[31m",
    "green": "\033[32m",
    "yellow": "\033[33m",
    "cyan": "\033[36m",
}
_RESET = "\033[0m"


def is_coloured(stream: IO[str]) -> bool:
    """Whether colours may be written there: it is a terminal, and `NO_COLOR` is not set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, style: str, stream: IO[str]) -> str:
    """The text in a style (`bold`, `dim`, `red` …) if it is going to be written to a terminal."""
    return f"{_PAINTS[style]}{text}{_RESET}" if text and is_coloured(stream) else text


def printable(text: str) -> str:
    """One line that no terminal and no log obeys: what is not printable is shown as an escape."""
    return text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def say(text: str) -> None:
    """Talk: a line to standard error, behind all results so far."""
    sys.stdout.flush()
    print(text, file=sys.stderr)


def complain(text: str) -> None:
    """Say what went wrong: the thing, the fact, the mend."""
    say(f"{paint('ssegate:', 'red', sys.stderr)} {printable(text)}")


def report(error: ConfigError) -> None:
    """Tell on standard error all that is wrong with a configuration."""
    say(explained(error, sys.stderr))


def explained(error: ConfigError, stream: IO[str]) -> str:
    """Every problem of a configuration file, with its line and a caret."""
    return explain(error, _text_of(error), colour=is_coloured(stream))


def _text_of(error: ConfigError) -> str | None:
    """The file's text; None when it is the file itself that cannot be read."""
    try:
        return read_config(Path(error.problems[0].file))
    except ConfigError:
        return None


def prepare_streams() -> None:
    """Let nothing about the standard streams end the program: a character they cannot encode, or that they are closed."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (open as long as the program runs)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115  (as above)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
