"""What must be said so that one JSON document becomes another: JSON Patch (RFC 6902) and JSON Merge Patch (RFC 7396).

Both give up, rather than work or talk too long: then the whole document is the better message. Work is counted, not
timed, so that the same two documents always give the same answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain, compress, repeat
from operator import eq

from ssegate.core.document import encode, encoded_size, same, same_types

_MAX_DEPTH = 16
"""How deep differences are looked for; below, a value is replaced as a whole. At each level equal parts are compared once
more (at C speed), so this bounds that work, and the recursion."""
_WORK_PER_BYTE = 6
"""The work allowed, per byte of the new document. One unit is about the time in which one byte is serialised, 8 ns."""
_MIN_WORK = 10_000
_MEMBER_WORK = 20
_ELEMENT_WORK = 2
_PAIR_WORK = 40
_OPERATION_WORK = 200

_IDENTITIES = ("id", "_id", "uuid")
"""Members that say which thing an element of an array is; where they differ, two elements are different things."""
_NAMES = (*_IDENTITIES, "key", "name")
"""Members that tell which elements of two arrays belong together, where every element has one of its own."""


class _GaveUpError(Exception):
    """The change cannot be said, or not in fewer bytes or less work than allowed."""


def json_patch(old: object, new: object, *, size: int, max_size: int) -> str | None:
    """Say the change as an RFC 6902 patch, of `add`, `remove` and `replace` only; `[]` when nothing differs.

    None when it would take more than `max_size` bytes, or more work than a new document of `size` bytes is worth.
    """
    patch = _Patch(_Work(size), max_size)
    try:
        patch.compare("", old, new, 0)
    except _GaveUpError:
        return None
    text = "[" + ",".join(patch.operations) + "]"
    return text if encoded_size(text) <= max_size else None


def merge_patch(old: object, new: object, *, size: int, max_size: int) -> str | None:
    """Say the change between two values that differ as an RFC 7396 patch.

    None when it cannot be said (a member becomes null, which would remove it), or is longer than `max_size` bytes, or is
    more work than a new document of `size` bytes is worth.
    """
    try:
        text = encode(_merge(old, new, _Work(size), 0))
    except _GaveUpError:
        return None
    return text if encoded_size(text) <= max_size else None


class _Work:
    """A budget of comparisons."""

    __slots__ = ("_left",)

    def __init__(self, size: int) -> None:
        self._left = max(_MIN_WORK, size * _WORK_PER_BYTE)

    def spend(self, units: int) -> None:
        self._left -= units
        if self._left < 0:
            raise _GaveUpError


class _Patch:
    """The operations found so far, as JSON texts."""

    __slots__ = ("_room", "_work", "operations")

    def __init__(self, work: _Work, max_size: int) -> None:
        self.operations: list[str] = []
        self._work = work
        self._room = max_size

    def compare(self, path: str, old: object, new: object, depth: int) -> None:
        """Say how the value at a path (a JSON Pointer) changes, if it does."""
        if not same(old, new):
            self._differ(path, old, new, depth)

    def _differ(self, path: str, old: object, new: object, depth: int) -> None:
        if type(old) is dict and type(new) is dict and depth < _MAX_DEPTH:
            self._compare_objects(path, old, new, depth + 1)
        elif type(old) is list and type(new) is list and depth < _MAX_DEPTH:
            self._compare_arrays(path, old, new, depth + 1)
        else:
            self._say("replace", path, new)

    def _say(self, operation: str, path: str, value: object) -> None:
        self._add(f'{{"op":"{operation}","path":{encode(path)},"value":{encode(value)}}}')

    def _remove(self, path: str) -> None:
        self._add(f'{{"op":"remove","path":{encode(path)}}}')

    def _add(self, operation: str) -> None:
        self._work.spend(_OPERATION_WORK)
        self._room -= len(operation) + 1
        if self._room < 0:
            raise _GaveUpError
        self.operations.append(operation)

    def _compare_objects(self, path: str, old: dict[str, object], new: dict[str, object], depth: int) -> None:
        self._work.spend(_MEMBER_WORK * (len(old) + len(new)))
        if depth > 1 and len(new) > 1 and _is_all_new(old, new):
            self._say("replace", path, new)
            return
        for name in old:
            if name not in new:
                self._remove(f"{path}/{_escape(name)}")
        for name, value in new.items():
            if name in old:
                self.compare(f"{path}/{_escape(name)}", old[name], value, depth)
            else:
                self._say("add", f"{path}/{_escape(name)}", value)

    def _compare_arrays(self, path: str, old: list[object], new: list[object], depth: int) -> None:
        self._work.spend(_ELEMENT_WORK * (len(old) + len(new)))
        start = _common(old, new)
        old, new = old[start:], new[start:]
        end = _common(old[::-1], new[::-1])
        old, new = old[: len(old) - end], new[: len(new) - end]
        pairs = self._pairs(old, new)
        at = start  # where the next element is, in the array as the operations so far have left it
        i = j = 0
        differences = _differences([old[k] for k, _ in pairs], [new[m] for _, m in pairs])
        for (k, m), differ in zip(pairs, differences, strict=True):
            at = self._compare_runs(path, at, old[i:k], new[j:m], depth)
            if differ:
                self._differ(f"{path}/{at}", old[k], new[m], depth)
            i, j, at = k + 1, m + 1, at + 1
        self._compare_runs(path, at, old[i:], new[j:], depth)

    def _compare_runs(self, path: str, at: int, old: Sequence[object], new: Sequence[object], depth: int) -> int:
        """Say how elements that have no fellow become others that have none, one by one; return where they end."""
        for x, y in zip(old, new, strict=False):
            if _are_others(x, y):
                self._say("replace", f"{path}/{at}", y)
            else:
                self.compare(f"{path}/{at}", x, y, depth)
            at += 1
        for path_ in repeat(f"{path}/{at}", len(old) - len(new)):
            self._remove(path_)
        for y in new[len(old) :]:
            self._say("add", f"{path}/{at}", y)
            at += 1
        return at

    def _pairs(self, old: list[object], new: list[object]) -> list[tuple[int, int]]:
        """Find which elements are the same thing, as pairs of indexes that rise on both sides."""
        # A run on one side only needs no look (an element inserted, or removed); nor do two that face each other.
        if not old or not new or len(old) + len(new) == 2:
            return []
        keys = _identities(old, new) or (self._print(old), self._print(new))
        where = {key: i for i, key in enumerate(keys[0])}
        found = [(where[key], j) for j, key in enumerate(keys[1]) if key in where]
        self._work.spend(_PAIR_WORK * len(found))
        return _longest_rising(found)

    def _print(self, elements: list[object]) -> list[tuple[str, int]]:
        """Make a key of each element's whole content; of equal ones the first meets the first, the second the second."""
        # `repr` tells all JSON values apart as they must be, and has a third of the fixed cost of encoding each.
        seen: dict[str, int] = {}
        keys = []
        for element in elements:
            text = repr(element)
            self._work.spend(len(text) + _PAIR_WORK)
            count = seen[text] = seen.get(text, -1) + 1
            keys.append((text, count))
        return keys


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1") if "~" in name or "/" in name else name


def _is_all_new(old: dict[str, object], new: dict[str, object]) -> bool:
    """Whether no member stays and none could be said in part: one `replace` is shorter then than one for each."""
    return not any(
        name in old and (isinstance(value, (dict, list)) or same(old[name], value)) for name, value in new.items()
    )


def _common(old: list[object], new: list[object]) -> int:
    """Count the elements at the start that are the same."""
    end = next((i for i, equal in enumerate(map(eq, old, new)) if not equal), min(len(old), len(new)))
    if same_types(old[:end], new[:end]):
        return end
    start = 0  # up to here all are the same; before `end` there is one that is not
    while end - start > 1:
        middle = (start + end) // 2
        if same_types(old[start:middle], new[start:middle]):
            start = middle
        else:
            end = middle
    return start


def _differences(old: list[object], new: list[object]) -> list[bool]:
    """Say for each value whether it differs from its fellow."""
    equal = [*map(eq, old, new)]
    if same_types([*compress(old, equal)], [*compress(new, equal)]):
        return [not one for one in equal]
    return [not same(x, y) for x, y in zip(old, new, strict=True)]


def _identity(element: object, member: str) -> str | None:
    """The element's own name as text, `1` and `"1"` apart, or None when it has none that is a string or an integer."""
    value = element.get(member) if type(element) is dict else None
    # Text, because integers can be chosen so that their hashes collide, and text cannot.
    if type(value) is str:
        return "=" + value
    return str(value) if type(value) is int else None


def _identities(old: list[object], new: list[object]) -> tuple[list[str | None], list[str | None]] | None:
    """Name every element by one member they all have, each a different one; None when there is no such member."""
    if set(map(type, chain(old, new))) != {dict}:
        return None
    for member in _NAMES:
        if _identity(old[0], member) is None:
            continue
        keys = [_identity(element, member) for element in old], [_identity(element, member) for element in new]
        if all(None not in named and len(set(named)) == len(named) for named in keys):
            return keys
    return None


def _are_others(old: object, new: object) -> bool:
    """Whether two elements say by themselves that they are different things, so that their members are not compared."""
    for member in _IDENTITIES:
        name = _identity(old, member)
        if name is not None:
            return name != _identity(new, member)
    return False


def _longest_rising(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of pairs that rise in their second number, keep the most that rise in their first too (patience sorting)."""
    tails: list[int] = []
    piles: list[int] = []  # the index, in `pairs`, of each pile's top
    before: list[int] = []  # and of the one below, for every pair
    for index, (first, _) in enumerate(pairs):
        pile = bisect_left(tails, first)
        tails[pile : pile + 1] = [first]
        piles[pile : pile + 1] = [index]
        before.append(piles[pile - 1] if pile else -1)
    kept = []
    index = piles[-1] if piles else -1
    while index >= 0:
        kept.append(pairs[index])
        index = before[index]
    return kept[::-1]


def _merge(old: object, new: object, work: _Work, depth: int) -> object:
    """RFC 7396: a patch that is no object replaces the target; an object changes its members, and null removes one.

    So a whole document may become null, or an array with nulls in it, but a member of an object may not.
    """
    if type(new) is not dict:
        return new
    if type(old) is not dict:
        old = {}  # "MergePatch({}, patch)": what is no object becomes an empty one before the patch is applied
    elif depth >= _MAX_DEPTH:
        raise _GaveUpError
    work.spend(_MEMBER_WORK * (len(old) + len(new)))
    patch: dict[str, object] = {name: None for name in old if name not in new}
    for name, value in new.items():
        if name not in old or not same(old[name], value):
            patch[name] = _merge_member(old.get(name), value, work, depth)
    return patch


def _merge_member(old: object, new: object, work: _Work, depth: int) -> object:
    if type(old) is dict and type(new) is dict:
        return _merge(old, new, work, depth + 1)
    if new is None or _has_null_member(new):
        raise _GaveUpError
    return new


def _has_null_member(value: object) -> bool:
    """Whether applying the value as a patch would lose a null: one in an object, or in objects in it, not in arrays."""
    values = [value]
    while values:
        value = values.pop()
        if type(value) is dict:
            if None in value.values():
                return True
            values += value.values()
    return False
