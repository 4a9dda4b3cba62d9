"""Problems of a configuration, told to people: place, fact, mend, a caret below the line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from ssegate.config.document import lines_of
from ssegate.errors import ConfigError, Problem

_WIDTH = 160
"""How much of a line is shown."""

_RED, _BOLD, _CYAN, _RESET = "\033[1;31m", "\033[1m", "\033[36m", "\033[0m"

_KEY = re.compile(r"(?<![\w-])([A-Za-z][\w-]*)(?:[\"'][ \t]*:|[ \t]*:(?=[ \t]|$))[ \t]*")
_SECRET_KEYS = ("secret", "token", "bearer", "password")
_HARMLESS = frozenset({"header", "headers"})
"""Near to the secret keys, but known to be none."""
_SECRET_HEADER = re.compile(r"secret|token|authorization|cookie|api-?key|passw", re.IGNORECASE)
_BARE_REFERENCE = re.compile(r"[\"']?\$\{(?:file:[^}]*|\w*)\}[\"']?(?=[ \t]*(?:$|[,}\]#]))")
_FLOW_VALUE = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'|\[[^\]]*\]|[^,}\]]*")
_IN_URL = re.compile(
    r"(?<=://)[^\s\"',]*(?=@)|(?<=[?&])[^\s=&]*(?:token|key|secret|passw)[^\s=&]*=[^\s&\"']*", re.IGNORECASE
)
"""A user and password, and tokens in a query."""
_OF_MAPPINGS = frozenset({"auth", "basic", "verify", "hmac", "headers"})
"""Keys below which secrets are; text in place of the mapping is likely one."""
_MAPPING = re.compile(r"[{&*]|none[ \t]*(?=$|[,}#])|$|#")
_INDENT = re.compile(r"[ \t]*(?:- +)*")


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was likely meant; empty when none is near."""
    reach = 1 if len(name) <= 4 else 2 if len(name) <= 8 else 3
    close = [other for other in known if abs(len(other) - len(name)) <= reach and other != name]
    near = sorted((_distance(name.lower(), other.lower()), other) for other in close)
    return near[0][1] if near and near[0][0] <= reach else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The hint that goes with a name nobody knows; empty when no known one is near."""
    near = nearest(name, known)
    return f"did you mean `{near}`?" if near else ""


def _distance(one: str, other: str) -> int:
    """How many letters to insert, leave out, change, or swap with their neighbour (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row, above = [i], rows[-1]
        for j, b in enumerate(other, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (a != b))
            if i > 1 and j > 1 and a == other[j - 2] and one[i - 2] == b:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def explain(error: ConfigError, text: str | None, *, colour: bool) -> str:
    """Tell every problem with its line and a caret, and how many there are; without a newline at the end.

    `text` is the file's, None when there is none to show. Secrets written in it are shown as `***`.
    """
    lines = mask_secrets(lines_of(text)) if text is not None else []
    told = [_told(problem, lines, colour) for problem in error.problems]
    count = len(error.problems)
    told.append(f"{count} error{'' if count == 1 else 's'} in {_printable(error.problems[0].file)}")
    return "\n".join(told)


def _told(problem: Problem, lines: list[str], colour: bool) -> str:
    has_context = 1 <= problem.line <= len(lines)
    code = _painted(f"error[{problem.code}]", _RED, colour)
    head = f"{_painted(_place(problem) + ':', _BOLD, colour)} {code} {_said(problem, with_hint=not has_context)}"
    return "\n".join([head, *_context(problem, lines[problem.line - 1], colour)]) if has_context else head


def _place(problem: Problem) -> str:
    file = _printable(problem.file)
    return f"{file}:{problem.line}:{problem.column}" if problem.line else file


def _said(problem: Problem, with_hint: bool) -> str:
    where = f"{problem.where}: " if problem.where else ""
    hint = f" ({problem.hint})" if with_hint and problem.hint else ""
    return _printable(f"{where}{problem.message}{hint}")


def _context(problem: Problem, line: str, colour: bool) -> list[str]:
    gutter = max(4, len(str(problem.line)))
    start = problem.column - 1
    # Of a very long line, the part round the caret.
    cut = max(0, start - _WIDTH // 2) if len(line) > _WIDTH else 0
    shown = _printable(line[cut : cut + _WIDTH].replace("\t", " "))
    before, marked = shown[: start - cut], shown[start - cut : start - cut + problem.length]
    caret = "^" * max(1, _columns(marked))
    hint = f" {_printable(problem.hint)}" if problem.hint else ""
    below = " " * _columns(before) + _painted(caret + hint, _CYAN, colour)
    return [f"{problem.line:>{gutter}} | {shown}".rstrip(), f"{'':>{gutter}} | {below}"]


def _columns(text: str) -> int:
    """How many columns of a terminal it takes."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _painted(text: str, paint: str, colour: bool) -> str:
    return f"{paint}{text}{_RESET}" if colour else text


def _printable(text: str) -> str:
    """One character for one: what a terminal or a log would obey or choke on becomes U+FFFD."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def explain_github(error: ConfigError) -> str:
    """Tell every problem as a workflow command, one a line, so that it is shown beside the line it is about."""
    return "\n".join(_annotation(problem) for problem in error.problems)


def _annotation(problem: Problem) -> str:
    properties = {
        "file": problem.file,
        "line": str(max(1, problem.line)),
        "col": str(max(1, problem.column)),
        "endColumn": str(max(1, problem.column) + problem.length),
        "title": f"ssegate {problem.code}",
    }
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::error {told}::{_data(_said(problem, with_hint=True))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def mask_secrets(lines: list[str]) -> list[str]:
    """Write `*` over what may be a secret; rather too much than too little. Every column stays where it is.

    It reads lines, not YAML, as it has to work when the YAML is broken.
    """
    masked = []
    margin: int | None = None  # that of the key whose value may go on in the following lines
    for line in lines:
        if margin is not None and _goes_on(line, margin):
            indent = _INDENT.match(line)
            masked.append(_starred(line, indent.end() if indent else 0, len(line)))
        else:
            line, margin = _mask_line(line)
            masked.append(_IN_URL.sub(lambda found: "*" * len(found[0]), line))
    return masked


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _goes_on(line: str, margin: int) -> bool:
    """Whether a line belongs to a value whose key stands at the margin: it is empty, further in, or an item of a list."""
    own = _margin(line)
    return not line.strip() or own > margin or (own == margin and line[own] in "-]")


def _mask_line(line: str) -> tuple[str, int | None]:
    """The line masked, and the margin of the key whose value may go on in the next lines."""
    margin = None
    position = 0
    while found := _KEY.search(line, position):
        position = found.end()
        if not _hides(found[1], line, position):
            continue
        is_flow = "{" in line[: found.start()]
        value = _FLOW_VALUE.match(line, position) if is_flow else None
        stop = value.end() if value else len(line)
        if not is_flow:
            margin = found.start() - (line[found.start() - 1 : found.start()] in ("'", '"'))
        elif stop == len(line) or line.count("[", position) > line.count("]", position):
            margin = _margin(line)
        if not _BARE_REFERENCE.match(line, position):
            line = _starred(line, position, stop)
        position = stop
    return line, margin


def _hides(key: str, line: str, position: int) -> bool:
    """Whether what stands at the position, behind the key, may be a secret."""
    return _is_secret(key) or (key in _OF_MAPPINGS and not _MAPPING.match(line, position))


def _starred(line: str, start: int, stop: int) -> str:
    return line[:start] + re.sub(r"\S", "*", line[start:stop]) + line[stop:]


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    """Also of a key that is misspelt."""
    return key not in _HARMLESS and bool(
        key in _SECRET_KEYS or _SECRET_HEADER.search(key) or nearest(key, _SECRET_KEYS)
    )
