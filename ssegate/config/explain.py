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
_SECRET_KEYS = ("secret", "token", "bearer", "password", "values")
_HARMLESS = frozenset({"header", "headers"})
"""Near to the secret keys, but known to be none."""
_SECRET_HEADER = re.compile(r"secret|token|authorization|cookie|api-?key|passw", re.IGNORECASE)
_BARE_REFERENCE = re.compile(r"[\"']?\$\{(?:file:[^}]*|\w*)\}[\"']?(?=[ \t]*(?:$|[,}\]#]))")
_FLOW_TOKEN = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^']|'')*'|[\[\]{},]|(?:[^\[\]{},\"'\\]|\\.)+|[\"'\\]")
_ANCHOR = re.compile(r"(?:&\S+[ \t]*)?")
_IN_BRACKETS = re.compile(_ANCHOR.pattern + r"[\[{]")
_PLAIN_IN_FLOW = re.compile(r"[^,}\]]*")
_IN_URL = re.compile(
    r"(?<=://)[^\s\"',]*(?=@)|(?<=[?&])[^\s=&]*(?:token|key|secret|passw)[^\s=&]*=[^\s&\"']*", re.IGNORECASE
)
"""A user and password, and tokens in a query."""
_OF_MAPPINGS = frozenset({"auth", "basic", "verify", "hmac", "headers"})
"""Keys below which secrets are; text in place of the mapping is likely one."""
_KEYS_ELSEWHERE = re.compile(r"[\"']?(?:https?://|file:)")
"""What `keys` says of a guard that has its keys from somewhere else."""
_OF_GUARDS = frozenset({
    "forward", "url", "send", "identity", "claims", "headers", "cache", "recheck",
    "jwt", "issuer", "audience", "algorithms", "from", "require", "at_expiry", "file", "header",
})  # fmt: skip
"""Keys of guards that hold no secrets. Whatever else has a value there may be an API key that has lost its way."""
_TOP = re.compile(r"[\"']?(version|server|admin|upstreams|cors|auth|defaults|limits|routes|x-[\w-]*)[\"']?[ \t]*:")
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
    mask = _Mask()
    return [mask.line(line) for line in lines]


class _Mask:
    """Where in a file it is, and what is hidden there."""

    def __init__(self) -> None:
        self._margin: int | None = None
        """That of the key whose value may go on in the following lines."""
        self._depth = 0
        """How many brackets of that value are still open."""
        self._in_guards = False
        """Whether it is below the top `auth`."""
        self._key = ""
        """The key that was last seen there."""

    def line(self, line: str) -> str:
        """The next line, masked."""
        if self._margin is not None and (self._depth > 0 or _goes_on(line, self._margin)):
            if self._depth:
                self._depth = max(0, self._depth + _opened(line, 0))
            return _all_starred(line)
        self._margin = None
        if top := _TOP.match(line):
            self._in_guards = top[1] == "auth"
        if self._in_guards and self._key not in _OF_GUARDS and not _KEY.search(line):
            return _all_starred(line)
        return _IN_URL.sub(lambda found: "*" * len(found[0]), self._without_values(line))

    def _without_values(self, line: str) -> str:
        position = 0
        while found := _KEY.search(line, position):
            position = found.end()
            self._key = found[1]
            if not self._hides(found[1], line, position):
                continue
            is_flow = "{" in line[: found.start()]
            stop = _flow_end(line, position) if is_flow else len(line)
            if not is_flow:
                self._margin = found.start() - (line[found.start() - 1 : found.start()] in ("'", '"'))
                # Only in brackets it may go on further out, and other text may well have a bracket in it.
                self._depth = max(0, _opened(line, position)) if _IN_BRACKETS.match(line, position) else 0
            elif stop == len(line):
                self._margin = _margin(line)
                self._depth = max(1, _opened(line, position))
            if not _BARE_REFERENCE.match(line, position):
                line = _starred(line, position, stop)
            position = stop
        return line

    def _hides(self, key: str, line: str, position: int) -> bool:
        """Whether what stands at the position, behind the key, may be a secret."""
        if key == "keys":
            return not _KEYS_ELSEWHERE.match(line, position)
        is_mapping = _MAPPING.match(line, position) is not None
        if self._in_guards and key not in _OF_GUARDS and not is_mapping:
            return True
        is_known = self._in_guards and key in _OF_GUARDS
        return _is_secret(key) or (key in _OF_MAPPINGS and not is_mapping and not is_known)


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _goes_on(line: str, margin: int) -> bool:
    """Whether a line belongs to a value whose key stands at the margin: it is empty, further in, or an item of a list."""
    own = _margin(line)
    return not line.strip() or own > margin or (own == margin and line[own] in "-]")


def _opened(line: str, start: int) -> int:
    """How many brackets are opened from there on, less those that are closed."""
    tokens = _FLOW_TOKEN.findall(line, start)
    return sum((token in ("[", "{")) - (token in ("]", "}")) for token in tokens)


def _flow_end(line: str, start: int) -> int:
    """Where a value inside brackets ends: before the comma or bracket behind it, or with the line."""
    if anchor := _ANCHOR.match(line, start):
        start = anchor.end()
    if line[start : start + 1] not in ("[", "{", '"', "'"):
        plain = _PLAIN_IN_FLOW.match(line, start)
        return plain.end() if plain else len(line)
    depth = 0
    for token in _FLOW_TOKEN.finditer(line, start):
        if depth == 0 and token[0] in (",", "]", "}"):
            return token.start()
        depth += (token[0] in ("[", "{")) - (token[0] in ("]", "}"))
    return len(line)


def _all_starred(line: str) -> str:
    indent = _INDENT.match(line)
    return _starred(line, indent.end() if indent else 0, len(line))


def _starred(line: str, start: int, stop: int) -> str:
    return line[:start] + re.sub(r"\S", "*", line[start:stop]) + line[stop:]


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    """Also of a key that is misspelt."""
    return key not in _HARMLESS and bool(
        key in _SECRET_KEYS or _SECRET_HEADER.search(key) or nearest(key, _SECRET_KEYS)
    )
