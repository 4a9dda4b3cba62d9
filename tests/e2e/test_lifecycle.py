"""Streams that end by the clock, and gates that go down, come back and change their configuration."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import jsonpatch
import pytest

from tests.e2e.client import RawSocket, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, GateProcess, before, gate_process, running_gate, said, story

ROUTES = """
- path: /x/events
  poll: {get: /x, every: 50ms}
- path: /y/events
  poll: {get: /y, every: 50ms}
- path: "/{rest:path}"
  proxy: {}
"""


@asynccontextmanager
async def changing(api: LegacyApi, path: str, seconds: float) -> AsyncIterator[None]:
    """While the block runs, the document at this path counts up at this pace."""

    async def change() -> None:
        n = 0
        while True:
            n += 1
            api.put(path, {"n": n})
            await asyncio.sleep(seconds)

    task = asyncio.create_task(change())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# max_age


@story
async def test_a_stream_ends_at_its_age_and_its_client_goes_on_without_loss(edge: Edge) -> None:
    route = "- {path: /x/events, max_age: 1s, poll: {get: /x, every: 20ms}, emit: {as: patch}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        document, cursor = None, None
        ids: list[int] = []
        ages: list[float] = []
        async with changing(api, "/x", 0.05):
            for turn in range(3):
                async with gate.watch("/x/events", cursor=cursor) as viewer:
                    opened = time.monotonic()
                    assert viewer.get("ssegate-resumed") == ("yes" if turn else "no")
                    for event in await viewer.rest():
                        assert event.type == ("patch" if ids else "snapshot")
                        change = json.loads(event.data)
                        document = jsonpatch.apply_patch(document, change) if ids else change
                        cursor = event.id
                        ids.append(int((event.id or "").rpartition("-")[2]))
                    ages.append(time.monotonic() - opened)
        assert ids == list(range(1, len(ids) + 1)), "none lost, none twice"
        assert all(0.75 <= age <= 1.6 for age in ages), ages
        async with gate.watch("/x/events", cursor=cursor) as viewer:
            api.put("/x", {"n": "last"})
            while document != {"n": "last"}:
                document = jsonpatch.apply_patch(document, json.loads((await viewer.event()).data))


@story
async def test_streams_opened_together_do_not_end_together(edge: Edge) -> None:
    route = "- {path: /x/events, max_age: 2s, poll: {get: /x, every: 1s}}"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/x", 1)

        async def age() -> float:
            async with gate.watch("/x/events") as viewer:
                opened = time.monotonic()
                await viewer.rest()
                return time.monotonic() - opened

        ages = await asyncio.gather(*(age() for _ in range(40)))
        assert all(1.55 <= each <= 3.4 for each in ages)
        # Forty even draws from 0.8 s lie within 0.2 s never; a machine that stands still for half a second moves them together.
        assert max(ages) - min(ages) > 0.2


# Drain


async def farewell(viewer: Viewer) -> tuple[int, float]:
    """Read to the end of a stream that is ended in order: the last `retry`, and when it came."""
    size = len(viewer.raw)
    await viewer.rest()
    retry = viewer.decoder.retry_ms or 0
    assert bytes(viewer.raw[size:]).endswith(b"retry: %d\n:\n" % retry), bytes(viewer.raw[size:])[-100:]
    assert 5000 <= retry <= 15000
    return retry, time.monotonic()


@story
async def test_sigterm_ends_every_stream_in_order_and_leaves_with_0(edge: Edge, tmp_path: Path) -> None:
    async with LegacyApi() as api, AsyncExitStack() as stack:
        api.put("/x", {"n": 1})
        server = "drain: {delay: 300ms, timeout: 1500ms}"
        gate = await stack.enter_async_context(gate_process(edge, tmp_path, before(api, ROUTES), server=server))
        viewers = [await stack.enter_async_context(gate.watch("/x/events")) for _ in range(80)]
        await asyncio.gather(*(viewer.event() for viewer in viewers))
        assert (await gate.admin.ask("GET", "/readyz")).status == 200
        gate.signal(signal.SIGTERM)
        while (ready := await gate.admin.ask("GET", "/readyz")).status == 200:
            pass
        assert ready.status == 503, "readiness fails first"
        assert (await gate.admin.ask("GET", "/livez")).status == 200
        async with gate.watch("/x/events") as late:
            assert (late.status, late.get("content-type")) == (200, "text/event-stream")
            await farewell(late)
            assert late.drop() == [], "one that comes meanwhile is only told when to come back"
        ended = await asyncio.gather(*(farewell(viewer) for viewer in viewers))
        assert await gate.exit_code() == 0
        times = [when for _, when in ended]
        assert 0.6 < max(times) - min(times) < 1.7, "spread over the timeout"
        assert len({retry for retry, _ in ended}) > 40


@story
async def test_a_drain_completes_what_is_under_way_and_waits_for_no_idle_connection(edge: Edge, tmp_path: Path) -> None:
    async with LegacyApi() as api:
        api.put("/slow", {"n": 1})
        released = api.hold("/slow")
        text = before(api, ROUTES, read="5s")
        async with gate_process(edge, tmp_path, text, server="drain: {timeout: 5s}") as gate, RawSocket(gate.port):
            asking = asyncio.create_task(gate.ask("GET", "/slow"))
            await api.until_asked("/slow", 1)
            gate.signal(signal.SIGTERM)
            while (await gate.admin.ask("GET", "/readyz")).status == 200:
                pass
            released.set()
            reply = await asking
            assert (reply.status, said(reply.body)) == (200, {"n": 1})
            assert await gate.exit_code(4) == 0, "it does not wait out the drain for a connection that asks nothing"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@story
async def test_a_second_signal_leaves_at_once(edge: Edge, tmp_path: Path, number: signal.Signals, code: int) -> None:
    async with LegacyApi() as api, AsyncExitStack() as stack:
        api.put("/x", {"n": 1})
        gate = await stack.enter_async_context(
            gate_process(edge, tmp_path, before(api, ROUTES), server="drain: {timeout: 60s}")
        )
        for _ in range(5):
            viewer = await stack.enter_async_context(gate.watch("/x/events"))
            await viewer.event()
        gate.signal(number)
        while (await gate.admin.ask("GET", "/readyz")).status == 200:
            pass
        gate.signal(number)
        assert await gate.exit_code(2) in (code, -number)


# Reload


async def reload(gate: GateProcess, text: str, says: str) -> None:
    """Let the gate read this file, and wait until it says so."""
    gate.said.clear()
    gate.configure(text)
    gate.signal(signal.SIGHUP)
    await gate.until_said(says)


@story
async def test_a_reload_keeps_the_streams_of_unchanged_routes_and_ends_the_others(edge: Edge, tmp_path: Path) -> None:
    async with LegacyApi() as api:
        api.put("/x", {"n": 1})
        api.put("/y", {"n": 1})
        text = before(api, ROUTES)
        async with (
            gate_process(edge, tmp_path, text, server="drain: {timeout: 500ms}") as gate,
            gate.watch("/x/events") as same,
            gate.watch("/y/events") as other,
        ):
            await same.event()
            cursor = (await other.event()).id
            # The route of /x moves to another line and stays what it is.
            changed = before(api, "# moved\n" + ROUTES.replace("{get: /y,", "{get: /y, select: n,"))
            gate.configure(changed, server="drain: {timeout: 500ms}")
            gate.signal(signal.SIGHUP)
            await farewell(other)
            assert other.drop() == [], "no event, only the end"
            async with gate.watch("/y/events", cursor=cursor) as again:
                events = [await again.event(), await again.event()]
                assert [event.type for event in events] == ["reset", ""]
                assert events[1].data == "1"
            api.put("/x", {"n": 2})
            event = await same.event()
            assert (said(event.data), (event.id or "")[-2:]) == ({"n": 2}, "-2")
            removed = changed.replace("/y/events", "/z/events")
            gate.configure(removed, server="drain: {timeout: 500ms}")
            gate.signal(signal.SIGHUP)
            await gate.until_said("new configuration is in force")
            api.put("/x", {"n": 3})
            assert said((await same.event()).data) == {"n": 3}
            async with gate.watch("/z/events") as new:
                assert (await new.event()).data == "1"


@story
async def test_a_reload_of_a_wrong_file_changes_nothing_and_says_why(edge: Edge, tmp_path: Path) -> None:
    async with LegacyApi() as api:
        api.put("/x", {"n": 1})
        text = before(api, ROUTES)
        async with gate_process(edge, tmp_path, text) as gate, gate.watch("/x/events") as viewer:
            await viewer.event()
            await reload(gate, text.replace("every: 50ms", "evry: 50ms"), "evry")
            await gate.until_said("old one stays")
            gate.said.clear()
            gate.write("version: [")
            gate.signal(signal.SIGHUP)
            await gate.until_said("old one stays")
            gate.file.unlink()
            gate.said.clear()
            gate.signal(signal.SIGHUP)
            await gate.until_said("old one stays")
            api.put("/x", {"n": 2})
            assert said((await viewer.event()).data) == {"n": 2}


@story
async def test_what_wants_a_restart_says_so_and_stays(edge: Edge, tmp_path: Path) -> None:
    async with LegacyApi() as api:
        api.put("/x", {"n": 1})
        text = before(api, ROUTES)
        async with gate_process(edge, tmp_path, text) as gate, gate.watch("/x/events") as viewer:
            await viewer.event()
            gate.write(edge.yaml(gate.port + 1, text, admin=gate.admin.port))
            gate.signal(signal.SIGHUP)
            assert "listen" in await gate.until_said("restart")
            async with gate.watch("/x/events") as newcomer:
                await newcomer.event()


# Death


@story
async def test_after_kill_9_clients_are_reset_and_converge(edge: Edge, tmp_path: Path) -> None:
    async with LegacyApi() as api:
        api.put("/x", {"n": 1})
        async with gate_process(edge, tmp_path, before(api, ROUTES)) as gate:
            async with gate.watch("/x/events") as viewer:
                cursor = (await viewer.event()).id
                await gate.kill()
                with pytest.raises(ConnectionError):
                    await viewer.rest()
            api.put("/x", {"n": 2})
            await gate.start()
            async with gate.watch("/x/events", cursor=cursor) as viewer:
                assert viewer.get("ssegate-resumed") == "no"
                reset, state = await viewer.event(), await viewer.event()
                assert (reset.type, said(reset.data)) == ("reset", {"reason": "unknown-cursor"})
                assert said(state.data) == {"n": 2}
