"""`${…}` in values: environment variables and the contents of files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

_MAX_FILE = 1024 * 1024
_REFERENCE = re.compile(r"\$\$|\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:(:-|:\?)(.*))?", re.DOTALL)


class ExpansionError(Exception):
    """Some references have no value; `faults` has a message and a hint for each."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        self.faults = faults
        super().__init__("; ".join(message for message, _ in faults))


def has_reference(text: str) -> bool:
    """Whether there is anything to expand, `$$` included."""
    return _REFERENCE.search(text) is not None


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Put the values in. What they hold is not expanded again.

    Raises `ExpansionError` with all that is wrong with the references of this text.
    """
    faults: list[tuple[str, str]] = []

    def value(found: re.Match[str]) -> str:
        try:
            return _value(found, environ)
        except _FaultError as fault:
            faults.append((fault.message, fault.hint))
            return ""

    expanded = _REFERENCE.sub(value, text)
    if faults:
        raise ExpansionError(faults)
    return expanded


class _FaultError(Exception):
    def __init__(self, message: str, hint: str = "") -> None:
        self.message = message
        self.hint = hint
        super().__init__(message)


def _value(found: re.Match[str], environ: Mapping[str, str]) -> str:
    if found.group() == "$$":
        return "$"
    inside, closed = found.groups()
    if not closed:
        raise _FaultError("`${` is never closed; write `$$` for a dollar sign")
    if inside.startswith("file:"):
        return _text(_file(inside.removeprefix("file:")), f"the file of `${{{inside}}}`")
    return _variable(inside, environ)


def _variable(inside: str, environ: Mapping[str, str]) -> str:
    parsed = _VARIABLE.fullmatch(inside)
    if parsed is None:
        raise _FaultError("what stands in `${…}` is no reference; write ${VAR}, ${VAR:-default} or ${file:/path}")
    name, operator, rest = parsed.groups()
    if rest and "${" in rest:
        raise _FaultError("a default cannot hold another `${…}`")
    value = environ.get(name, "")
    # As in a shell, the forms with a colon take an empty variable for an unset one.
    if value or (name in environ and operator is None):
        return _text(value, f"`{name}`")
    if operator == ":-":
        return str(rest)
    if operator == ":?":
        raise _FaultError(f"`{name}` is not set: {rest}" if rest else f"`{name}` is not set")
    raise _FaultError(f"`{name}` is not set; set it, or write ${{{name}:-default}}", _nearest(name, environ))


def _nearest(name: str, environ: Mapping[str, str]) -> str:
    near = get_close_matches(name, list(environ), n=1, cutoff=0.8)
    return f"did you mean `{near[0]}`?" if near else ""


def _file(name: str) -> str:
    path = Path(name)
    if "\0" in name or not path.is_absolute():
        raise _FaultError("`${file:…}` wants an absolute path, such as ${file:/run/secrets/token}")
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise _FaultError(f"`{name}` cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise _FaultError(f"`{name}` is larger than 1 MiB")
    text = data.decode("utf-8", "surrogateescape")
    return text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text


def _text(value: str, what: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        # Bytes that are not UTF-8 come as lone surrogates. The error itself would carry the value.
        raise _FaultError(f"{what} is not UTF-8 text") from None
    return value
