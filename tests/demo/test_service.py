"""The gate of the demo: page, figures, crowd, and what becomes of a dead API."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from html.parser import HTMLParser

import httpx
import pytest

from ssegate.config import parse_config
from ssegate.demo.crowd import LARGEST
from ssegate.demo.process import ApiProcess, DemoError
from ssegate.demo.service import PAGE, STREAM, DemoService, demo_page, demo_yaml, free_port

ANY = 8700
"""Where the tests begin to look for a free port."""

Told = list[str]


@asynccontextmanager
async def shown(port: int = ANY) -> AsyncIterator[tuple[DemoService, ApiProcess, httpx.AsyncClient, Told]]:
    told: Told = []
    with ApiProcess(port, every=0) as api:
        service = DemoService(api, host="127.0.0.1", port=port, tell=told.append)
        await service.start()
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
                yield service, api, client, told
        finally:
            await service.drain()


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(20):
            await test()

    asyncio.run(limited())


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


# The page


def test_the_gate_serves_the_page() -> None:
    async def test() -> None:
        async with shown() as (_, _, client, _):
            for path in (PAGE, PAGE + "/"):
                answer = await client.get(path)
                assert answer.status_code == 200
                assert answer.headers["content-type"] == "text/html; charset=utf-8"
                assert answer.text.startswith("<!doctype html>")

    run(test)


class _References(HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset") and value]


def test_the_page_works_offline() -> None:
    page = demo_page().body.decode()
    references = _References()
    references.feed(page)
    assert [each for each in references.found if not each.startswith("data:")] == []
    assert not re.search(r"@import|url\((?!data:)", page)


def test_the_page_shows_the_configuration_that_is_in_force() -> None:
    page = demo_page().body.decode()
    assert "{{configuration}}" not in page
    assert "items: {at: data, key: id}" in page
    parse_config(demo_yaml(), source="demo.yaml", environ={})


# The streams


async def first_event(client: httpx.AsyncClient, path: str) -> dict[str, str]:
    """The fields of the first event."""
    async with client.stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            name, _, value = line.partition(": ")
            fields[name] = value
            if not line and "data" in fields:
                return fields
    raise AssertionError("the stream ended without an event")


def test_the_list_and_one_order_are_streamed() -> None:
    async def test() -> None:
        async with shown() as (_, _, client, _):
            listed = (await client.get("/orders")).json()["data"]
            event = await first_event(client, STREAM)
            assert event["event"] == "snapshot"
            assert json.loads(event["data"]) == listed
            assert json.loads((await first_event(client, "/orders/1/events"))["data"]) == listed[0]

    run(test)


def test_an_advance_through_the_gate_is_seen_before_the_next_poll() -> None:
    async def test() -> None:
        async with shown() as (_, _, client, _), client.stream("GET", "/orders/1/events") as answer:
            states: asyncio.Queue[str] = asyncio.Queue()

            async def read() -> None:
                async for line in answer.aiter_lines():
                    if line.startswith("data: "):
                        states.put_nowait(json.loads(line[6:])["status"])

            reading = asyncio.create_task(read())
            before = await states.get()
            told = (await client.post("/orders/1/advance")).json()["status"]
            assert await asyncio.wait_for(states.get(), 0.4) == told != before
            reading.cancel()

    run(test)


# The desk


def test_a_crowd_is_sent_in_counted_and_sent_home() -> None:
    async def test() -> None:
        async with shown() as (service, _, client, _):

            async def viewers(count: int) -> bool:
                told = (await client.get("/demo/figures")).json()
                return told["viewers"] == count and told["crowd"] == count

            assert (await client.post("/demo/viewers", json={"count": 20})).status_code == 200
            await until(lambda: viewers(20))
            # Twenty viewers cost one topic's polls.
            assert service.gate.statistics().topics_watched == 1
            await client.post("/demo/viewers", json={"count": 0})
            await until(lambda: viewers(0))

    run(test)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"count": -1}', b'{"count": "7"}', b'{"count": true}', b'{"count": 1e3}', b" " * 5000],
)
def test_a_crowd_that_cannot_be_is_refused(body: bytes) -> None:
    async def test() -> None:
        async with shown() as (_, _, client, _):
            answer = await client.post("/demo/viewers", content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400

    run(test)


def test_a_crowd_is_limited_and_a_foreign_page_cannot_send_one() -> None:
    async def test() -> None:
        async with shown() as (_, _, client, _):
            assert (await client.post("/demo/viewers", json={"count": LARGEST + 1})).status_code == 400
            plain = {"content-type": "text/plain"}
            assert (await client.post("/demo/viewers", content=b'{"count": 1}', headers=plain)).status_code == 415
            assert (await client.get("/demo/figures")).json()["crowd"] == 0
            assert (await client.delete("/demo/viewers")).status_code == 405
            assert (await client.get("/demo/other")).status_code == 404

    run(test)


# Ports and processes


def test_ports_in_use_are_passed_over() -> None:
    async def test() -> None:
        async with shown() as (first, one, _, _), shown(first.port) as (second, other, client, _):
            assert second.port != first.port
            assert other.url != one.url
            assert (await client.get("/orders")).status_code == 200

    run(test)


def test_a_host_that_is_not_ours_is_said() -> None:
    with pytest.raises(DemoError, match=r"cannot listen on 192\.0\.2\.1"):
        free_port("192.0.2.1", 8080)


def test_a_free_port_is_taken_and_a_busy_one_is_not() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert free_port("127.0.0.1", port) != port


def test_a_dead_api_is_told_and_the_gate_goes_on() -> None:
    async def test() -> None:
        async with shown() as (_, api, client, told):
            os.kill(api.pid, signal.SIGKILL)
            while not told:
                await asyncio.sleep(0.02)
            assert "has ended (exit code -9)" in told[0]
            assert f"--port {api.url.rpartition(':')[2]}" in told[0]
            assert (await client.get(PAGE)).status_code == 200
            assert (await client.get("/orders")).status_code == 502

    run(test)


def test_stopping_the_demo_is_no_death_of_the_api() -> None:
    async def test() -> None:
        async with shown() as (_, _, _, told):
            pass
        assert told == []

    run(test)
