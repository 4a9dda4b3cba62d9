"""The invariant: whatever happens to it, a client that applies what it received ends with the upstream's document."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import jsonpatch
import pytest
from json_merge_patch import merge

from ssegate.core.event import Event
from tests.e2e.client import PATIENCE, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Door, Edge, before, free_port, running_gate, story

ROUTES = """
- path: /snapshot
  poll: {get: /x, every: 20ms, linger: 100ms}
- path: /patch
  poll: {get: /x, every: 20ms, linger: 100ms}
  emit: {as: patch}
- path: /merge
  poll: {get: /x, every: 20ms, linger: 100ms}
  emit: {as: merge}
- path: /items
  poll: {get: /x, every: 20ms, linger: 100ms, items: {at: items, key: id}}
  emit: {as: items}
"""

SECONDS = 2.0
"""How long the document changes and clients are ill-treated, and longer until enough of it has happened."""

LONGEST = 20.0
"""When too little has happened by then, the test has failed."""


def exactly(value: object) -> str:
    """A text that tells 1, 1.0 and true apart, and not the order of members."""
    return json.dumps(value, sort_keys=True)


# The document


class Document:
    """A document that changes at random: numbers, texts, nulls, moved and vanished parts, now and then a large one."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._count = 0
        self.value: dict[str, Any] = {"items": [self._item() for _ in range(12)], "meta": {}}

    def change(self) -> None:
        dice, items, meta = self._dice, self.value["items"], self.value["meta"]
        for _ in range(dice.randint(1, 4)):
            match dice.randrange(8):
                case 0 if len(items) < 40:
                    items.insert(dice.randint(0, len(items)), self._item())
                case 1 if items:
                    del items[dice.randrange(len(items))]
                case 2 | 3 if items:
                    items[dice.randrange(len(items))]["state"] = self._leaf()
                case 4:
                    dice.shuffle(items)
                case 5:
                    meta[dice.choice("abc")] = self._leaf()
                case 6:
                    meta.pop(dice.choice("abc"), None)
                case 7:
                    meta[dice.choice("de/~")] = {"deep": [self._leaf(), {"er": self._leaf()}]}

    def _item(self) -> dict[str, Any]:
        self._count += 1
        size = 30_000 if self._dice.random() < 0.03 else self._dice.randint(0, 300)
        return {"id": self._dice.choice([self._count, str(self._count)]), "state": self._leaf(), "note": "ä" * size}

    def _leaf(self) -> Any:
        return self._dice.choice([0, 1, 1.0, True, None, "", "1", "zeile\n\u2028\r\n", [], {}, self._dice.random()])


# A client


def apply_snapshot(state: Any, event: Event) -> Any:
    return json.loads(event.data)


def apply_patch(state: Any, event: Event) -> Any:
    if event.type == "snapshot":
        return json.loads(event.data)
    assert (event.type, state is None) == ("patch", False)
    return jsonpatch.apply_patch(state, json.loads(event.data))


def apply_merge(state: Any, event: Event) -> Any:
    if event.type == "snapshot":
        return json.loads(event.data)
    assert (event.type, state is None) == ("merge", False)
    return merge(state, json.loads(event.data))


def apply_items(state: Any, event: Event) -> Any:
    """The list as a mapping by key; order is not told."""
    data = json.loads(event.data)
    if event.type == "snapshot":
        return {exactly(item["id"]): item for item in data}
    key, items = exactly(data["id"]), dict(state)
    match event.type:
        case "added":
            assert key not in items, "added twice"
        case "changed":
            assert exactly(items[key]) != exactly(data), "changed twice"
        case "removed":
            assert exactly(items[key]) == exactly(data), "what is removed is the last that was told"
            del items[key]
            return items
        case _:
            raise AssertionError(event.type)
    return {**items, key: data}


@dataclass
class Client:
    """One EventSource: what it was told, applied, and the place it would go on from."""

    path: str
    apply: Callable[[Any, Event], Any]
    state: Any = None
    cursor: str | None = None
    is_reset: bool = False
    """Whether a reset came and its snapshot has not yet."""
    tally: dict[str, int] = field(default_factory=lambda: {"events": 0, "resets": 0, "streams": 0, "resumed": 0})

    def take(self, event: Event) -> None:
        if event.type in ("fault", "recovered"):
            return
        if event.type == "reset":
            assert json.loads(event.data)["reason"] in ("gap", "unknown-cursor")
            self.tally["resets"] += 1
            self.state, self.is_reset = None, True
            return
        self._check_place(event)
        self.tally["events"] += 1
        self.state, self.cursor, self.is_reset = self.apply(self.state, event), event.id, False

    def _check_place(self, event: Event) -> None:
        """Nothing comes twice, and a new beginning is announced."""
        assert event.id is not None
        if self.is_reset or self.cursor is None:
            assert event.type in ("snapshot", ""), "a state comes first"
            return
        (epoch, _, offset), (known, _, last) = event.id.rpartition("-"), self.cursor.rpartition("-")
        assert epoch == known, "another epoch without a reset"
        assert int(offset) > int(last), "what was told already"

    async def live(self, door: Door, dice: random.Random, is_over: asyncio.Event) -> None:
        """Connect, read, be cut off, slowed or stopped, and come back, until it is over."""
        while not is_over.is_set():
            buffer = dice.choice([None, 4096, 65536])
            try:
                async with door.watch(self.path, cursor=self.cursor, buffer=buffer) as viewer:
                    await self._follow(viewer, dice)
            except ConnectionError:
                await asyncio.sleep(0.02)  # the gate is down for a moment

    async def _follow(self, viewer: Viewer, dice: random.Random) -> None:
        self.tally["streams"] += 1
        self.tally["resumed"] += viewer.get("ssegate-resumed") == "yes"
        for _ in range(dice.randint(1, 5)):
            if dice.random() < 0.3:
                await asyncio.sleep(dice.random())  # it reads nothing; the gate must not wait for it
            try:
                async with asyncio.timeout(dice.random() / 3):
                    while await viewer.receive():
                        if dice.random() < 0.02:
                            break
            except TimeoutError:
                pass  # long enough
            for event in viewer.drop():
                self.take(event)
            if viewer.is_ended:
                return
        if dice.random() < 0.5:
            viewer.exchange.reset()

    async def converge(self, door: Door, wanted: str, seen: Callable[[Any], str]) -> None:
        """Read undisturbed until the state is what the upstream has."""
        async with door.watch(self.path, cursor=self.cursor) as viewer, asyncio.timeout(PATIENCE):
            while self.is_reset or self.state is None or seen(self.state) != wanted:
                self.take(await viewer.event())


KINDS = (("/snapshot", apply_snapshot), ("/patch", apply_patch), ("/merge", apply_merge), ("/items", apply_items))


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
@story
async def test_clients_that_are_cut_and_slowed_at_random_converge(edge: Edge, seed: int) -> None:
    dice = random.Random(seed)
    document = Document(random.Random(seed))
    clients = [Client(path, apply) for path, apply in KINDS for _ in range(4)]
    port = free_port()
    async with LegacyApi() as api, AsyncExitStack() as outer:
        text = before(api, ROUTES, more="defaults: {history: {events: 12, age: 1s}}")
        api.put("/x", document.value)
        is_over = asyncio.Event()
        gate = AsyncExitStack()
        outer.push_async_callback(lambda: gate.aclose())
        door: Door = await gate.enter_async_context(running_gate(edge, text, port=port))
        living = [asyncio.create_task(client.live(door, random.Random(dice.random()), is_over)) for client in clients]
        loop = asyncio.get_running_loop()
        started, is_restarted, troubles = loop.time(), False, 0
        while not any(task.done() for task in living):
            spent = loop.time() - started
            if spent >= SECONDS and (_missing(clients) is None or spent >= LONGEST):
                break
            document.change()
            api.put("/x", document.value)
            if dice.random() < 0.03:
                troubles += 1
                api.fail("/x", dice.choice([500, 503, 304, 302]))
            if spent > SECONDS / 2 and not is_restarted:
                is_restarted = True
                await gate.aclose()
                await gate.enter_async_context(running_gate(edge, text, port=port))
            await asyncio.sleep(dice.random() * 0.06)  # the pace of the world, not a wait for something
        api.put("/x", document.value)
        is_over.set()
        await asyncio.gather(*living)
        await asyncio.gather(*(_converge(client, door, document.value) for client in clients))
    assert _missing(clients) is None


async def _converge(client: Client, door: Door, document: dict[str, Any]) -> None:
    if client.path == "/items":
        wanted = exactly({exactly(item["id"]): item for item in document["items"]})
    else:
        wanted = exactly(document)
    await client.converge(door, wanted, exactly)


def _missing(clients: list[Client]) -> str | None:
    """What has not happened often enough: a test in which nobody was cut, reset or resumed would prove nothing."""
    for key, least in (("events", 30), ("resets", 2), ("streams", 20), ("resumed", 2)):
        if sum(client.tally[key] for client in clients) < least:
            return key
    return None
