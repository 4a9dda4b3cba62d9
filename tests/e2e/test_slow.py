"""Clients that do not read: they cost nobody anything, are caught up with in one go, or dropped."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, before, running_gate, said, story

ROUTE = """
- path: /x/events
  poll: {get: /x, every: 20ms}
"""

LARGE = "x" * 700_000
"""Several of these fill whatever lies between the gate and a client that does not read."""


@story
async def test_a_client_that_does_not_read_keeps_nobody_waiting_and_is_caught_up_with(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, ROUTE), admin=True) as gate:
        api.put("/x", {"n": 0, "large": LARGE})
        async with gate.watch("/x/events", buffer=4096) as slow, gate.watch("/x/events") as quick:
            assert said((await quick.event()).data)["n"] == 0
            for n in range(1, 16):
                api.put("/x", {"n": n, "large": LARGE})
                assert said((await quick.event(2)).data)["n"] == n
            api.put("/x", {"n": "last"})
            assert said((await quick.event()).data)["n"] == "last"
            seen: list[object] = []
            while not seen or seen[-1] != "last":
                event = await slow.event()
                assert event.type in ("", "reset")
                seen += [said(event.data)["n"]] if event.type == "" else []
            assert len(seen) < 14, "it is not walked through every step"
            assert seen[:-1] == [n for n in range(16) if n in seen], "in order, none twice"


@pytest.mark.parametrize("form", ["patch", "merge", "items"])
@story
async def test_a_client_the_history_has_passed_while_it_was_slow_is_reset_and_gets_the_state(
    edge: Edge, form: str
) -> None:
    items = ", items: {key: id}" if form == "items" else ""
    route = f"- {{path: /x/events, poll: {{get: /x, every: 20ms{items}}}, emit: {{as: {form}}}}}"

    def document(n: int) -> object:
        # Each change is smaller than the whole, which is what would be sent in its place otherwise.
        parts = [{"id": 1, "n": n, "large": str(n) * 400_000}, {"id": 2, "large": LARGE}]
        return parts if form == "items" else {"a": parts[0], "b": parts[1]}

    async with LegacyApi() as api:
        text = before(api, route, more="defaults: {history: {events: 2}}\nlimits: {event_size: 4MiB}")
        async with running_gate(edge, text) as gate:
            api.put("/x", document(0))
            async with gate.watch("/x/events", buffer=4096) as slow, gate.watch("/x/events") as quick:
                await quick.event()
                for n in range(1, 9):
                    api.put("/x", document(n))
                    assert (await quick.event(2)).type == ("changed" if form == "items" else form)
                passed = await slow.until("reset")
                assert 1 <= len(passed) < 8
                assert said(passed[-1].data) == {"reason": "gap"}
                state = await slow.event()
                assert (state.type, said(state.data)) == ("snapshot", document(8))
                assert (state.id or "").endswith("-9")


@story
async def test_a_client_that_takes_nothing_is_dropped_after_a_while(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE, more="limits: {stall: 1s}")
        async with running_gate(edge, text, admin=True) as gate:
            api.put("/x", {"n": 0, "large": LARGE})
            async with gate.watch("/x/events", buffer=4096) as stalled, gate.watch("/x/events") as other:
                await other.event()
                for n in range(1, 6):
                    api.put("/x", {"n": n, "large": LARGE})
                    await other.event()
                await gate.until_clients(1)
                assert b"ssegate_clients_stalled_total 1.0" in (await gate.admin.ask("GET", "/metrics")).body
                with pytest.raises(ConnectionError):
                    await stalled.rest()
                api.put("/x", {"n": "last"})
                assert said((await other.event()).data) == {"n": "last"}


@story
async def test_a_client_that_reads_slowly_is_not_dropped(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, ROUTE, more="limits: {stall: 500ms}")
        async with running_gate(edge, text) as gate:
            api.put("/x", {"n": 0, "large": LARGE})
            async with gate.watch("/x/events", buffer=16384) as slow:
                for _ in range(20):
                    await slow.receive()
                    await asyncio.sleep(0.05)  # its own pace
                assert said((await slow.event()).data)["n"] == 0
