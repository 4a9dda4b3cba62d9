"""JSON as the gate takes it: strictly decoded, compactly encoded, compared by value and type, pointed into.

Errors say where a body is wrong and quote nothing of it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from ssegate.core.event import BYTE_ORDER_MARK, encode_text
from ssegate.errors import UndecodableError


def _parse_float(digits: str) -> float:
    # `1e999` is well-formed JSON, but a float makes it infinity, which is none. Minus zero is zero, as `==` has it.
    number = float(digits) or 0.0
    if math.isinf(number):
        raise UndecodableError("the body is not JSON that can be kept: a number is too large")
    return number


def _refuse_constant(constant: str) -> NoReturn:
    raise UndecodableError(f"the body is not JSON: {constant} is no JSON number")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise UndecodableError("the body is not JSON that can be trusted: a name is there twice")
    return members


_DECODER = json.JSONDecoder(parse_float=_parse_float, parse_constant=_refuse_constant)


_STRICT_DECODER = json.JSONDecoder(parse_float=_parse_float, parse_constant=_refuse_constant, object_pairs_hook=_once)


def decode(body: bytes, *, is_strict: bool = False) -> object:
    """Decode a body as JSON in UTF-8; a byte order mark is passed over. `is_strict`: no name may be twice in an object.

    Raises `UndecodableError`."""
    # The causes are left out of these errors: they carry, or quote, the body.
    try:
        text = body.removeprefix(BYTE_ORDER_MARK).decode()
        return (_STRICT_DECODER if is_strict else _DECODER).decode(text)
    except UnicodeDecodeError as error:
        raise UndecodableError(f"the body is not JSON: byte {error.start:,} is not UTF-8") from None
    except json.JSONDecodeError as error:
        if not text.strip():
            raise UndecodableError("the body is not JSON: it is empty") from None
        raise UndecodableError(f"the body is not JSON: line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise UndecodableError("the body is nested too deeply") from None
    except ValueError:  # Python's own limit on the digits of an integer
        raise UndecodableError("the body is not JSON that can be kept: a number has too many digits") from None


_COMPACT: dict[str, Any] = {
    "ensure_ascii": False, "allow_nan": False, "check_circular": False, "separators": (",", ":"),
}  # fmt: skip
encode = json.JSONEncoder(**_COMPACT).encode
"""Write a value as compact JSON, members in their order. Raises `ValueError` for NaN and infinity, `TypeError` for what
JSON does not have."""
encode_sorted = json.JSONEncoder(**_COMPACT, sort_keys=True).encode
"""Write a value as `encode` does, members by name: equal values give equal texts. Raises the same."""
decode_text = _DECODER.decode
"""Decode what `encode` wrote."""


def encoded_size(text: str) -> int:
    """Count the bytes of a text in UTF-8. Raises `UnicodeEncodeError` when it holds half of a surrogate pair."""
    return len(text) if text.isascii() else len(text.encode())


def mend(text: str) -> object:
    """Decode what `encode` wrote, with U+FFFD for each half of a surrogate pair: so clients get it, and compare it."""
    return decode_text(encode_text(text).decode())


def same(old: object, new: object) -> bool:
    """Whether two JSON values are equal; `1`, `1.0` and `true` are three values, the order of members is none."""
    # `==` decides at C speed, but holds that 1 == 1.0 == True, so what it finds equal is looked at again by type. For
    # 200 objects of 20 kB both together take 0.17 ms, and comparing JSON texts 0.30 ms (benchmarks/detect.py).
    return type(old) is type(new) and old == new and (type(old) not in (dict, list) or same_types([old], [new]))


def same_types(old: Sequence[Any], new: Sequence[Any]) -> bool:
    """Whether values that `==` found equal, each with its fellow, are so in type too; looked at level by level."""
    while old:
        types = [*map(type, old)]
        if types != [*map(type, new)]:
            return False
        if dict not in types and list not in types:
            return True
        below: list[Any] = []
        beside: list[Any] = []
        for kind, x, y in zip(types, old, new, strict=True):
            if kind is dict:
                below += x.values()
                beside += map(y.__getitem__, x)
            elif kind is list:
                below += x
                beside += y
        old, new = below, beside
    return True


Pointers = dict[str, "Pointers | None"]
"""JSON Pointers (RFC 6901) as a tree of their tokens; None is the end of one: what it points at is ignored with all that is in it."""

_POINTER = re.compile(r"(?:/(?:[^/~]|~[01])*)*")
_INDEX = re.compile(r"0|[1-9][0-9]{0,15}")


def is_pointer(text: str) -> bool:
    """Whether a text is a JSON Pointer that may be ignored; the empty one, which would be everything, is not."""
    return bool(text) and _POINTER.fullmatch(text) is not None


def pointer_tree(pointers: Sequence[str]) -> Pointers:
    """Parse JSON Pointers. Raises `ValueError` for one that `is_pointer` refuses."""
    tree: Pointers = {}
    for pointer in pointers:
        if not is_pointer(pointer):
            raise ValueError(f"{pointer!r} is not a JSON Pointer to a member; write it like /data/fetched_at")
        *path, last = (token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/"))
        _add_pointer(tree, path, last)
    return tree


def _add_pointer(tree: Pointers, path: Sequence[str], last: str) -> None:
    for token in path:
        below = tree.setdefault(token, {})
        if below is None:
            return  # all of it is ignored already
        tree = below
    tree[last] = None


def without(value: object, tree: Pointers) -> object:
    """Copy a value, as far as needed, without what the pointers name; pointers to nothing are fine."""
    if isinstance(value, dict):
        kept = {name: member for name, member in value.items() if tree.get(name, tree) is not None}
        for name, below in tree.items():
            if below and name in kept:
                kept[name] = without(kept[name], below)
        return kept
    if isinstance(value, list):
        at = {int(token): below for token, below in tree.items() if _INDEX.fullmatch(token)}
        return [without(element, at.get(i) or {}) for i, element in enumerate(value) if at.get(i, at) is not None]
    return value
