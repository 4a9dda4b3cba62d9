"""What a change costs: hash, decode, each detector, and our patch beside PyPI jsonpatch's. Run `python benchmarks/detect.py`.

CPU time in µs, medians of interleaved rounds. The document has 200 items in 20 kB.
"""

from __future__ import annotations

import copy
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import jmespath
import jsonpatch

sys.path.insert(0, str(Path(__file__).parents[1]))

from ssegate.core.detect import _hash, make_detector
from ssegate.core.diff import json_patch, merge_patch
from ssegate.core.document import decode, encode, same

ROUNDS = 15
SECONDS = 0.01  # of one measurement
KEY = jmespath.compile("id").search
AT = jmespath.compile("data").search


def document(stamp: int = 0) -> dict[str, Any]:
    """The document; every item differs between two stamps."""
    states = ("open", "paid", "shipped")
    items = [
        {
            "id": i, "status": states[(i + stamp) % 3], "total": i * 1.25 + stamp, "paid": (i + stamp) % 3 > 0,
            "customer": {"name": f"Customer {i + 1000 * stamp}"},
        }
        for i in range(200)
    ]  # fmt: skip
    return {"data": items, "count": 200}


def body(value: object) -> bytes:
    return json.dumps(value).encode()


def changed_member() -> dict[str, Any]:
    other = copy.deepcopy(document())
    other["data"][100]["status"] = "lost"
    return other


def inserted() -> dict[str, Any]:
    other = copy.deepcopy(document())
    other["data"].insert(0, {"id": 999, "status": "new", "total": 0.5, "paid": False, "customer": {"name": "Nobody"}})
    return other


def feeding(bodies: list[bytes], types: list[set[str]], **arguments: Any) -> Callable[[], object]:
    """Make a step that gives a detector the next of two bodies; the events of one round are checked first."""
    detector = make_detector("t", max_event_size=1 << 20, **arguments)
    detector.changes(bodies[0])
    for data, expected in zip([*bodies[1:], bodies[0]], types, strict=True):
        found = {update.type for update in detector.changes(data)}
        assert found == expected, (found, expected)
    turns: Iterator[bytes] = cycle([*bodies[1:], bodies[0]])
    return lambda: detector.changes(next(turns))


def cases() -> dict[str, Callable[[], object]]:
    old = document()
    a, b, c = body(old), body(changed_member()), body(document(1))
    items = {"items_at": AT, "items_key": KEY}
    size = len(encode(old))
    twin, other = decode(a), changed_member()
    found: dict[str, Callable[[], object]] = {
        "hash (an unchanged body)": lambda: _hash(a),
        "its peers: sha256": lambda: hashlib.sha256(a).digest(),
        "its peers: hash()": lambda: hash(bytes(memoryview(a))),  # a copy, because bytes remember their hash
        "unchanged body, detector": feeding([a], [set()], emit="patch"),
        "decode": lambda: decode(a),
        "encode": lambda: encode(old),
        "compare equal documents": lambda: same(old, twin),
        "compare their texts instead": lambda: encode(old) == encode(twin),
        "snapshot, one member": feeding([a, b], [{""}] * 2),
        "patch, one member": feeding([a, b], [{"patch"}] * 2, emit="patch"),
        "merge, one member": feeding([a, b], [{"merge"}] * 2, emit="merge"),
        "items, one member": feeding([a, b], [{"changed"}] * 2, emit="items", **items),
        "snapshot, everything": feeding([a, c], [{""}] * 2),
        "patch, everything": feeding([a, c], [{"snapshot"}] * 2, emit="patch"),
        "merge, everything": feeding([a, c], [{"merge"}] * 2, emit="merge"),
        "items, everything": feeding([a, c], [{"snapshot"}] * 2, emit="items", **items),
    }
    for name, new in (("one member", changed_member()), ("one inserted", inserted()), ("everything", document(1))):
        found[f"diff, {name}"] = ours(old, new)
        found[f"diff, {name}: jsonpatch"] = theirs(old, new)
    found["merge diff, one member"] = lambda: merge_patch(old, other, size=size, max_size=size)
    return found


def ours(old: object, new: object) -> Callable[[], object]:
    """Our patch without a budget, as the peer has none."""
    size = 1 << 20
    text = json_patch(old, new, size=size, max_size=size)
    assert text is not None
    assert same(jsonpatch.apply_patch(old, json.loads(text)), new)
    return lambda: json_patch(old, new, size=size, max_size=size)


def theirs(old: object, new: object) -> Callable[[], object]:
    assert jsonpatch.apply_patch(old, jsonpatch.make_patch(old, new)) == new
    return lambda: jsonpatch.make_patch(old, new).to_string()


def measure(step: Callable[[], object]) -> float:
    """µs of CPU time for one step."""
    count = 0
    start = time.process_time()
    while (spent := time.process_time() - start) < SECONDS:
        for _ in range(5):
            step()
        count += 5
    return spent / count * 1e6


def main() -> None:
    steps = cases()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times[name].append(measure(step))
    print(f"{len(body(document())):,} bytes, 200 items; µs of CPU time")
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        peer = medians.get(f"{name}: jsonpatch")
        print(f"  {name:<36}{median:>9.1f}" + (f"   {peer / median:.1f} times as fast as jsonpatch" if peer else ""))


if __name__ == "__main__":
    main()
