"""Lists that grow, asked for behind a cursor: each item once, in order, also for the process that comes next (CONFIG.md, 8)."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from ssegate.core.event import Event
from ssegate.errors import ConfigError
from ssegate.service import Service
from tests.e2e.client import Viewer
from tests.e2e.gate import Edge, before, gate_process, make_config, running_gate, said, story
from tests.upstream.scripted import Asked, Call, ScriptedUpstream, answer

PATH = "/audit/events"
KEYS = 'get: "/api/audit?after={cursor}&limit=3", items: data, next: "data[-1].id", every: 30ms'
ANN, BOB = ("Authorization", "Bearer ann"), ("Authorization", "Bearer bob")


def route(more: str = "", *, keys: str = KEYS, beside: str = "") -> str:
    """A feed route; `more` are further keys of `feed`, `beside` of the route, in flow style."""
    feed = f"{keys}, {more}" if more else keys
    return f"- {{path: {PATH}, feed: {{{feed}}}{', ' + beside if beside else ''}}}"


class Audit(ScriptedUpstream):
    """`async with Audit() as api:` a log of items that is asked for by pages, `?after=ID&limit=N`."""

    def __init__(self, count: int = 0) -> None:
        super().__init__(self._handle)
        self.items: list[dict[str, object]] = []
        self.trouble: bytes | Callable[[Asked], bytes | None] | None = None
        """What is answered instead."""
        self.held: float = 0
        """Seconds for which a request is held when there is nothing."""
        self.under_way = 0
        self.most_under_way = 0
        self._news = asyncio.Event()
        self.add(*range(1, count + 1))

    def add(self, *ids: int, **more: object) -> None:
        self.items += [{"id": id_, **more} for id_ in ids]
        self._news.set()

    @property
    def cursors(self) -> list[str | None]:
        """What was asked for so far."""
        return [cursor_of(asked) for asked in self.requests]

    async def until_asked_again(self, times: int = 1) -> None:
        count = len(self.requests) + times
        async with asyncio.timeout(10):
            await self.until(lambda it: len(it.requests) >= count)

    async def until_at_the_end(self) -> None:
        """Wait until it has been asked for what is behind the last item, and for that again."""
        last = str(self.items[-1]["id"])
        async with asyncio.timeout(10):
            await self.until(lambda _: self.cursors[-1:] == [last])
        await self.until_asked_again()

    async def _handle(self, call: Call) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await call.send(await self._answer(call.asked))
        finally:
            self.under_way -= 1

    async def _answer(self, asked: Asked) -> bytes:
        trouble = self.trouble(asked) if callable(self.trouble) else self.trouble
        if trouble is not None:
            return trouble
        query = parse_qs(urlsplit(asked.target).query)
        after, limit = int(query.get("after", ["0"])[0]), int(query["limit"][0])
        if self.held and not self._behind(after):
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), self.held)
            except TimeoutError:
                return b"HTTP/1.1 204 No Content\r\n\r\n"
        return answer(json.dumps({"data": self._behind(after)[:limit]}).encode())

    def _behind(self, after: int) -> list[dict[str, object]]:
        return [item for item in self.items if int(str(item["id"])) > after]


def cursor_of(asked: Asked) -> str | None:
    return parse_qs(urlsplit(asked.target).query).get("after", [None])[0]


def number(event: Event) -> int:
    """Which item it is."""
    assert event.type == "", event
    found: int = said(event.data)["id"]
    return found


async def numbers(viewer: Viewer, count: int) -> list[int]:
    return [number(await viewer.event()) for _ in range(count)]


# Where it begins


@story
async def test_from_now_what_was_there_is_passed_over_and_what_comes_is_told(edge: Edge) -> None:
    async with Audit(7) as api, running_gate(edge, before(api, route())) as gate, gate.watch(PATH) as viewer:
        assert (viewer.status, viewer.get("content-type")) == (200, "text/event-stream")
        await viewer.opening()
        await api.until_at_the_end()
        assert api.cursors[:4] == [None, "3", "6", "7"]
        api.add(8, 9)
        assert await numbers(viewer, 2) == [8, 9]
        assert viewer.raw.count(b"data:") == 2


@pytest.mark.parametrize(("start", "first"), [("beginning", 1), ("5", 6)])
@story
async def test_from_the_beginning_or_a_value_all_pages_are_told_at_once(edge: Edge, start: str, first: int) -> None:
    text = route(f'start: "{start}"', keys=KEYS.replace("30ms", "1h"))
    async with Audit(10) as api, running_gate(edge, before(api, text)) as gate, gate.watch(PATH) as viewer:
        events = [await viewer.event() for _ in range(11 - first)]
        assert [number(event) for event in events] == [*range(first, 11)]
        assert [(event.id or "").rpartition("-")[2] for event in events] == [str(n) for n in range(1, 12 - first)]
        async with asyncio.timeout(5):
            await api.until(lambda _: api.cursors[-1] == "10")
        assert len(set(api.cursors)) == len(api.cursors), "no page twice"
        assert api.most_under_way == 1


@story
async def test_the_cursor_and_the_items_are_where_the_route_says(edge: Edge) -> None:
    keys = 'get: "/sync/{id}?since={cursor}&f={query.kind}", next: "[-1].at", every: 30ms, start: beginning'
    text = f'- {{path: "/sync/{{id}}/events", query: {{kind: "[a-z]+"}}, feed: {{{keys}}}}}'

    def pages(asked: Asked) -> bytes:
        is_first = "since=" not in asked.target
        return answer(json.dumps([{"id": 1, "at": "2026-01-02 03:04"}] if is_first else []).encode())

    async with Audit() as api, running_gate(edge, before(api, text)) as gate:
        api.trouble = pages
        async with gate.watch("/sync/17/events?kind=x&other=y") as viewer:
            assert await numbers(viewer, 1) == [1]
            await api.until_asked_again()
        assert [asked.target for asked in api.requests[:2]] == [
            "/sync/17?f=x",
            "/sync/17?since=2026-01-02%2003%3A04&f=x",
        ]


# Events


@story
async def test_items_are_named_and_cut_down_as_the_route_says(edge: Edge) -> None:
    text = route('start: beginning, event: "audit-{type}"', beside='emit: {data: "{who: actor}"}')
    async with Audit() as api, running_gate(edge, before(api, text)) as gate:
        api.add(1, type="login", actor="ann")
        api.add(2, type="end", actor="eve")
        api.add(3, type="x\nid: 7", actor=None)
        async with gate.watch(PATH) as viewer:
            events = [await viewer.event() for _ in range(3)]
            assert [(event.type, said(event.data)) for event in events] == [
                ("audit-login", {"who": "ann"}),
                ("audit-end", {"who": "eve"}),
                ("audit-xid: 7", {"who": None}),
            ]
            assert (events[2].id or "").endswith("-3")


@story
async def test_an_item_cannot_be_taken_for_an_event_of_the_gate(edge: Edge) -> None:
    async with Audit() as api, running_gate(edge, before(api, route('start: beginning, event: "{type}"'))) as gate:
        for id_, type_ in enumerate(("end", "reset", "error", "fault"), 1):
            api.add(id_, type=type_)
        async with gate.watch(PATH) as viewer:
            types = [(await viewer.event()).type for _ in range(4)]
            assert types == ["upstream-end", "upstream-reset", "upstream-error", "upstream-fault"]


@story
async def test_items_may_be_html(edge: Edge) -> None:
    text = route(
        "start: beginning, event: datastar-patch-elements",
        beside="emit: {template: 'elements <li id=\"a{id}\">{who}</li>'}",
    )
    async with Audit() as api, running_gate(edge, before(api, text)) as gate:
        api.add(1, who="<b>\nselector body")
        async with gate.watch(PATH) as viewer:
            event = await viewer.event()
            assert event.type == "datastar-patch-elements"
            assert event.data == 'elements <li id="a1">&lt;b&gt;&#10;selector body</li>'


# Many viewers


@story
async def test_all_viewers_share_one_request_at_a_time_and_get_each_item_once_and_in_order(edge: Edge) -> None:
    async with Audit(1) as api, running_gate(edge, before(api, route())) as gate, AsyncExitStack() as stack:
        viewers = [await stack.enter_async_context(gate.watch(PATH)) for _ in range(5)]
        await api.until_at_the_end()
        for id_ in range(2, 22):
            api.add(id_)
            if id_ % 5 == 0:
                await numbers(viewers[0], 1)
        rest = await numbers(viewers[0], 20 - 4)
        assert len(rest) == 16
        for viewer in viewers[1:]:
            assert await numbers(viewer, 20) == [*range(2, 22)]
        assert api.most_under_way == 1


@pytest.mark.parametrize(
    ("first", "old"), [("", [2, 3, 4]), ("first: kept", [2, 3, 4]), ("first: last", [4]), ("first: nothing", [])]
)
@story
async def test_a_newcomer_gets_of_what_came_before_what_the_route_says(edge: Edge, first: str, old: list[int]) -> None:
    async with Audit(1) as api, running_gate(edge, before(api, route(first))) as gate, gate.watch(PATH) as viewer:
        await api.until_at_the_end()
        api.add(2, 3, 4)
        events = [await viewer.event() for _ in range(3)]
        await api.until_at_the_end()
        async with gate.watch(PATH) as newcomer:
            api.add(5)
            assert await numbers(newcomer, len(old) + 1) == [*old, 5]
        async with gate.watch(PATH, cursor=events[0].id) as back:
            assert back.get("ssegate-resumed") == "yes"
            assert await numbers(back, 3) == [3, 4, 5]
        async with gate.watch(PATH, cursor="earliest") as walker:
            assert await numbers(walker, 4) == [2, 3, 4, 5]


@story
async def test_headers_of_the_viewer_make_a_feed_of_their_own(edge: Edge) -> None:
    async with Audit(2) as api:
        text = before(api, route("start: beginning, forward: [authorization]"))
        async with running_gate(edge, text) as gate, gate.watch(PATH, ANN) as ann, gate.watch(PATH, BOB) as bob:
            assert [await numbers(ann, 2), await numbers(bob, 2)] == [[1, 2], [1, 2]]
            assert {asked.get("authorization") for asked in api.requests} == {"Bearer ann", "Bearer bob"}
            api.trouble = lambda asked: answer(status=401) if asked.get("authorization") == "Bearer bob" else None
            assert [event.type for event in await bob.rest()] == ["end"]
            api.add(3)
            assert await numbers(ann, 1) == [3]


@story
async def test_a_feed_is_asked_for_a_while_and_goes_on_without_a_gap_when_somebody_comes_back(edge: Edge) -> None:
    async with Audit(1) as api, running_gate(edge, before(api, route("linger: 100ms"))) as gate:
        async with gate.watch(PATH) as viewer:
            await api.until_at_the_end()
            api.add(2)
            cursor = (await viewer.event()).id
        async with asyncio.timeout(5):
            while gate.service.gate.statistics().topics_watched:
                await asyncio.sleep(0.01)  # figures tell nobody when they change
        asked = len(api.requests)
        api.add(3, 4)
        await asyncio.sleep(0.1)  # nothing to await: a further request would be wrong
        assert len(api.requests) == asked
        async with gate.watch(PATH, cursor=cursor) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert await numbers(viewer, 2) == [3, 4]


# Requests that are held


@story
async def test_a_backend_that_holds_requests_is_asked_again_at_once(edge: Edge) -> None:
    """Also beyond `timeout.read`, which `long` raises."""
    async with Audit(1) as api:
        text = before(api, route("long: 30s", keys=KEYS.replace("30ms", "1h")), read="200ms")
        async with running_gate(edge, text) as gate:
            api.held = 25
            async with gate.watch(PATH) as viewer:
                async with asyncio.timeout(5):
                    await api.until(lambda _: api.cursors == [None, "1"])
                await asyncio.sleep(0.4)  # longer than `read`
                for id_ in (2, 3, 4):
                    api.add(id_)
                    assert await numbers(viewer, 1) == [id_]
                    async with asyncio.timeout(5):
                        await api.until(lambda _, id_=id_: api.cursors[-1] == str(id_))
                assert api.cursors == [None, "1", "2", "3", "4"]
                assert b"fault" not in viewer.raw


@story
async def test_a_backend_that_lets_requests_go_without_news_is_asked_again_at_once(edge: Edge) -> None:
    async with Audit(1) as api:
        text = before(api, route("long: 300ms", keys=KEYS.replace("30ms", "1h")))
        api.held = 0.1
        async with running_gate(edge, text) as gate, gate.watch(PATH) as viewer:
            async with asyncio.timeout(5):
                await api.until(lambda _: len(api.requests) >= 5)
            api.add(2)
            assert await numbers(viewer, 1) == [2]
            assert set(api.cursors[1:-1]) <= {"1", "2"}


@story
async def test_a_backend_that_answers_at_once_without_news_makes_no_hot_loop(edge: Edge) -> None:
    async with Audit(1) as api:
        text = before(api, route("long: 30s", keys=KEYS.replace("30ms", "1h")))
        async with running_gate(edge, text) as gate, gate.watch(PATH) as viewer:
            await viewer.opening()
            await asyncio.sleep(0.2)  # nothing to await: a further request would be wrong
            assert len(api.requests) == 2


# Trouble


@pytest.mark.parametrize(
    ("trouble", "reason", "status"),
    [
        (answer(status=503), "upstream", 503),
        (answer(b"<html>"), "undecodable", 200),
        (answer(b'{"data": "none"}'), "undecodable", 200),
        (answer(b'{"data": ["' + b"x" * 20_000 + b'"]}'), "oversize", None),
    ],
    ids=["503", "no JSON", "no list", "too large"],
)
@story
async def test_trouble_is_a_fault_once_and_nothing_is_lost(
    edge: Edge, trouble: bytes, reason: str, status: int | None
) -> None:
    async with Audit(1) as api:
        text = before(api, route(), more="limits: {event_size: 1KiB}")
        async with running_gate(edge, text) as gate, gate.watch(PATH) as viewer:
            await api.until_at_the_end()
            api.trouble = trouble
            fault = await viewer.event()
            told = said(fault.data)
            assert (fault.type, told["reason"], told["status"]) == ("fault", reason, status)
            async with gate.watch(PATH) as newcomer:
                assert (await newcomer.event()).type == "fault"
            await api.until_asked_again(2)
            api.add(2)
            api.trouble = None
            assert (await viewer.event()).type == "recovered"
            assert await numbers(viewer, 1) == [2]
            assert viewer.raw.count(b"event: fault") == 1


@story
async def test_an_item_that_is_too_large_is_left_out_and_told(edge: Edge) -> None:
    async with Audit() as api:
        text = before(api, route("start: beginning"), more="limits: {event_size: 1KiB}")
        api.add(1)
        api.add(2, 3, pad="x" * 1100)
        api.add(4)
        async with running_gate(edge, text) as gate, gate.watch(PATH) as viewer:
            assert await numbers(viewer, 1) == [1]
            fault = await viewer.event()
            assert (fault.type, said(fault.data)["reason"]) == ("fault", "oversize")
            assert (await viewer.event()).type == "recovered"
            event = await viewer.event()
            assert (number(event), (event.id or "")[-2:]) == (4, "-2"), "it takes no place"


@pytest.mark.parametrize("status", [401, 403, 404, 410])
@story
async def test_a_feed_that_may_not_be_seen_is_refused_as_the_upstream_does(edge: Edge, status: int) -> None:
    async with Audit(1) as api, running_gate(edge, before(api, route("start: beginning"))) as gate:
        api.trouble = answer(b"secret", status=status)
        reply = await gate.ask("GET", PATH)
        assert (reply.status, reply.get("content-type")) == (status, "application/problem+json")
        assert b"secret" not in reply.body
        api.trouble = None
        async with gate.watch(PATH) as viewer:
            assert await numbers(viewer, 1) == [1]


# A backend that forgets the cursor


@story
async def test_a_backend_that_forgets_is_told_by_a_reset_and_the_feed_begins_anew(edge: Edge) -> None:
    async with Audit(2) as api, running_gate(edge, before(api, route("start: beginning"))) as gate:
        async with gate.watch(PATH) as viewer:
            old = [await viewer.event() for _ in range(2)]
            api.trouble = lambda asked: answer(status=410) if cursor_of(asked) == "2" else None
            api.items.clear()
            api.add(11, 12)
            reset = await viewer.event()
            assert (reset.type, said(reset.data)) == ("reset", {"reason": "gap"})
            events = [await viewer.event() for _ in range(2)]
            assert [number(event) for event in events] == [11, 12]
            assert [(event.id or "").rpartition("-")[2] for event in events] == ["1", "2"]
            assert (events[0].id or "").rpartition("-")[0] != (old[0].id or "").rpartition("-")[0]
        async with gate.watch(PATH, cursor=old[1].id) as back:
            assert (await back.event()).type == "reset"
            assert await numbers(back, 2) == [11, 12]
        async with gate.watch(PATH) as newcomer:
            assert await numbers(newcomer, 2) == [11, 12], "nothing of before, and no word of it"


@story
async def test_a_feed_from_now_that_is_forgotten_begins_anew_from_now(edge: Edge) -> None:
    async with (
        Audit(1) as api,
        running_gate(edge, before(api, route("forgotten: [400, 410]"))) as gate,
        gate.watch(PATH) as viewer,
    ):
        await api.until_at_the_end()
        api.add(2)
        assert await numbers(viewer, 1) == [2]
        api.trouble = lambda asked: answer(status=400) if cursor_of(asked) == "2" else None
        api.items.clear()
        api.add(11, 12)
        assert (await viewer.event()).type == "reset"
        await api.until_at_the_end()
        api.add(13)
        assert await numbers(viewer, 1) == [13]


@story
async def test_who_has_waited_for_a_first_item_is_told_too_that_the_backend_forgot(edge: Edge) -> None:
    async with Audit(1) as api, running_gate(edge, before(api, route())) as gate, gate.watch(PATH) as viewer:
        await api.until_at_the_end()
        api.trouble = lambda asked: answer(status=410) if cursor_of(asked) == "1" else None
        api.items.clear()
        api.add(11, 12)
        assert (await viewer.event(0.5)).type == "reset"


# What is left for the next process


def files_in(folder: Path) -> list[Path]:
    return sorted((folder / "feeds").iterdir())


def state(folder: Path) -> str:
    return f"state_dir: {folder}"


@story
async def test_a_restart_goes_on_where_the_feed_stopped(edge: Edge, tmp_path: Path) -> None:
    async with Audit(3) as api:
        text = before(api, route())
        async with running_gate(edge, text, server=state(tmp_path)) as gate, gate.watch(PATH) as viewer:
            await api.until_at_the_end()
            api.add(4)
            event = await viewer.event()
            await api.until_at_the_end()
        api.add(5, 6)
        asked = len(api.requests)
        async with running_gate(edge, text, server=state(tmp_path)) as gate:
            async with gate.watch(PATH, cursor=event.id) as viewer:
                assert viewer.get("ssegate-resumed") == "no"
                reset = await viewer.event()
                assert (reset.type, said(reset.data)) == ("reset", {"reason": "unknown-cursor"})
                assert await numbers(viewer, 2) == [5, 6], "what came while there was no gate, and nothing twice"
                assert api.cursors[asked] == "4"
            (file,) = files_in(tmp_path)
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("number_", [signal.SIGTERM, signal.SIGKILL])
@story
async def test_a_process_that_was_ended_or_killed_is_gone_on_from(tmp_path: Path, number_: signal.Signals) -> None:
    """What is left in a folder is no matter of the edge."""
    async with Audit(3) as api:
        text = before(api, route())
        server = f"{state(tmp_path / 'state')}, drain: {{timeout: 200ms}}"
        async with gate_process(Edge("any", "1.1"), tmp_path, text, server=server) as gate:
            async with gate.watch(PATH) as viewer:
                await api.until_at_the_end()
                api.add(4)
                assert await numbers(viewer, 1) == [4]
                await api.until_at_the_end()
                gate.signal(number_)
                await gate.exit_code()
            api.add(5)
            await gate.start()
            async with gate.watch(PATH) as viewer:
                assert await numbers(viewer, 1) == [5]


@story
async def test_without_a_folder_the_next_process_begins_as_the_route_says(edge: Edge) -> None:
    async with Audit(3) as api:
        text = before(api, route())
        async with running_gate(edge, text) as gate, gate.watch(PATH) as viewer:
            await api.until_at_the_end()
            api.add(4)
            await viewer.event()
        api.add(5)
        async with running_gate(edge, text) as gate, gate.watch(PATH) as viewer:
            await api.until_at_the_end()
            api.add(6)
            assert await numbers(viewer, 1) == [6]


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[]", b'{"topic": 1, "cursor": 2}'])
@story
async def test_a_damaged_file_lets_the_feed_begin_as_the_route_says(edge: Edge, tmp_path: Path, content: bytes) -> None:
    async with Audit(2) as api:
        text = before(api, route("start: beginning"))
        async with running_gate(edge, text, server=state(tmp_path)) as gate, gate.watch(PATH) as viewer:
            await numbers(viewer, 2)
            await api.until_at_the_end()
        (file,) = files_in(tmp_path)
        file.write_bytes(content)
        async with running_gate(edge, text, server=state(tmp_path)) as gate, gate.watch(PATH) as viewer:
            assert await numbers(viewer, 2) == [1, 2]
            await api.until_at_the_end()
            assert said(file.read_bytes())["cursor"] == "2"


@pytest.mark.parametrize("is_file_above", [True, False])
def test_a_folder_that_cannot_be_written_to_is_said_at_the_start(tmp_path: Path, is_file_above: bool) -> None:
    """Who runs the tests may write anywhere, but not below a file."""
    folder = tmp_path / "state"
    if is_file_above:
        folder.write_text("in the way")
    else:
        folder.mkdir()
        (folder / "feeds").write_text("in the way")
    text = (
        f"version: 1\nserver: {{state_dir: {folder}}}\nupstreams: {{api: http://127.0.0.1:1}}\nroutes:\n  {route()}\n"
    )
    with pytest.raises(ConfigError) as caught:
        Service(make_config(text))
    (problem,) = caught.value.problems
    assert problem.where == "server.state_dir"
    assert str(folder) in problem.message
    assert "name a folder that the gate may write to" in problem.message
    Service(make_config(text.replace(route(), f"- {{path: {PATH}, poll: {{get: /}}}}")))  # it has nothing to write


@story
async def test_a_folder_that_is_lost_later_is_no_matter_to_viewers(
    edge: Edge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Audit(1) as api:
        text = before(api, route())
        async with running_gate(edge, text, server=state(tmp_path)) as gate, gate.watch(PATH) as viewer:
            await api.until_at_the_end()
            for file in files_in(tmp_path):
                file.unlink()
            (tmp_path / "feeds").rmdir()
            for id_ in (2, 3):
                api.add(id_)
                assert await numbers(viewer, 1) == [id_]
            await api.until_at_the_end()
        told = [record.getMessage() for record in caplog.records if "cursor cannot be written" in record.getMessage()]
        assert len(told) == 1


@story
async def test_what_the_backend_forgot_while_there_was_no_gate_begins_anew(edge: Edge, tmp_path: Path) -> None:
    async with Audit(2) as api:
        text = before(api, route("start: beginning"))
        async with running_gate(edge, text, server=state(tmp_path)) as gate, gate.watch(PATH) as viewer:
            await numbers(viewer, 2)
            await api.until_at_the_end()
        api.trouble = lambda asked: answer(status=410) if cursor_of(asked) == "2" else None
        api.items.clear()
        api.add(11)
        async with running_gate(edge, text, server=state(tmp_path)) as gate, gate.watch(PATH) as viewer:
            assert viewer.status == 200
            events = [await viewer.event()]
            if events[0].type == "reset":
                events.append(await viewer.event())
            assert number(events[-1]) == 11
            await api.until_at_the_end()
            (file,) = files_in(tmp_path)
            assert said(file.read_bytes())["cursor"] == "11"


@story
async def test_a_reload_keeps_feeds_of_unchanged_routes_and_others_go_on_where_they_stopped(edge: Edge) -> None:
    other = route().replace(PATH, "/other/events")
    async with Audit(1) as api:
        server = "drain: {timeout: 200ms}"
        text = before(api, f"{route()}\n{other}")
        async with running_gate(edge, text, server=server) as gate:
            async with gate.watch(PATH) as same, gate.watch("/other/events") as changed:
                await same.opening()
                await changed.opening()
                await api.until_at_the_end()
                await api.until_asked_again(3)
                api.add(2)
                assert [await numbers(same, 1), await numbers(changed, 1)] == [[2], [2]]
                await api.until_asked_again(4)
                after = before(api, f"{route()}\n{other.replace('every: 30ms', 'every: 20ms')}")
                gate.service.gate.reload(make_config(edge.yaml(0, after, server=server)))
                assert await changed.rest() == []
                api.add(3)
                assert await numbers(same, 1) == [3]
            async with gate.watch("/other/events") as again:
                assert await numbers(again, 1) == [3]


@story
async def test_nothing_of_a_cursor_reaches_the_log_or_a_viewer(
    edge: Edge, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="ssegate")
    keys = 'get: "/api/audit?after={cursor}&limit=3", items: data, next: next, every: 30ms, start: beginning'
    async with Audit() as api:
        api.trouble = lambda asked: (
            answer(status=500) if cursor_of(asked) else answer(b'{"data": [{"id": 1}], "next": "s3cret"}')
        )
        async with (
            running_gate(edge, before(api, route(keys=keys)), server=state(tmp_path)) as gate,
            gate.watch(PATH) as viewer,
        ):
            assert await numbers(viewer, 1) == [1]
            assert (await viewer.event()).type == "fault"
            assert b"s3cret" not in viewer.raw
        assert "s3cret" not in caplog.text


@story
async def test_a_feed_is_read_by_lines_too(edge: Edge) -> None:
    async with Audit(2) as api, running_gate(edge, before(api, route("start: beginning"))) as gate:
        data = b""
        async with gate.exchange("GET", PATH, ("Accept", "application/x-ndjson")) as it, asyncio.timeout(5):
            while data.count(b'"data"') < 2:
                data += await it.read()
        assert [said(line)["data"] for line in data.split()] == [{"id": 1}, {"id": 2}]


@story
async def test_a_feed_may_be_asked_for_as_json(edge: Edge) -> None:
    """The first page is waited for."""
    async with Audit(2) as api, running_gate(edge, before(api, route("start: beginning"))) as gate:
        reply = await gate.ask("GET", PATH, ("Accept", "application/json"))
        assert [item["data"] for item in said(reply.body)] == [{"id": 1}, {"id": 2}]
        assert (reply.get("ssegate-cursor") or "").endswith("-2")
