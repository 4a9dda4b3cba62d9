"""Jobs that end: followed by many, started by one, and over for good (CONFIG.md, 7)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from ssegate.core.event import Event
from tests.e2e.client import Pair, Viewer
from tests.e2e.documents import LegacyApi
from tests.e2e.gate import Edge, RunningGate, before, running_gate, said, story
from tests.upstream.scripted import Asked, answer

FOLLOWED = """
- path: /jobs/{id}/progress
  task:
    get: /jobs/{id}
    every: 30ms
    progress: "{percent: percent, state: state}"
    done: "state == 'succeeded'"
    failed: "state == 'failed' || state == 'cancelled'"
    result: "{url: url, error: error}"
"""
PLAIN = '- {path: "/jobs/{id}/progress", task: {get: "/jobs/{id}", every: 30ms, progress: percent, result: url}}'
STARTED = """
- path: /exports
  methods: [POST]
  task:
    start: {post: "/api/exports"}
    get: "{start.headers.location}"
    every: 30ms
    progress: percent
    done: "state == 'done'"
    failed: "state == 'failed'"
    result: url
    linger: 100ms
"""
JSON: Pair = ("Content-Type", "application/json")
ANN, BOB = ("Authorization", "Bearer ann"), ("Authorization", "Bearer bob")


def job(percent: int, state: str = "running", **more: object) -> dict[str, object]:
    return {"percent": percent, "state": state, **more}


def json_answer(value: object, *headers: tuple[bytes, bytes], status: int = 200) -> bytes:
    return answer(json.dumps(value).encode(), (b"Content-Type", b"application/json"), *headers, status=status)


def told(event: Event) -> tuple[str, object]:
    return event.type, said(event.data)


async def ended(viewer: Viewer) -> Event:
    """Everything up to the end, which is the last of the stream."""
    *_, event = await viewer.until("end")
    assert await viewer.rest() == []
    return event


async def until_unwatched(gate: RunningGate) -> None:
    """Wait until nothing is asked for any more."""
    async with asyncio.timeout(5):
        while gate.service.gate.statistics().topics_watched:
            await asyncio.sleep(0.01)  # figures tell nobody when they change


# Following


@story
async def test_progress_is_told_on_change_then_the_result_and_then_the_stream_is_over(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, FOLLOWED)) as gate:
        api.put("/jobs/17", job(10, at=1))
        async with gate.watch("/jobs/17/progress") as viewer:
            assert (viewer.status, viewer.get("content-type")) == (200, "text/event-stream")
            assert told(await viewer.event()) == ("", job(10))
            api.put("/jobs/17", job(10, at=2))
            await api.until_asked_again("/jobs/17", 2)
            api.put("/jobs/17", job(50, at=3))
            assert told(await viewer.event()) == ("", job(50)), "nothing that was told before"
            api.put("/jobs/17", job(100, "succeeded", url="/files/17"))
            assert told(await viewer.event()) == ("", job(100, "succeeded"))
            end = await viewer.event()
            assert told(end) == ("end", {"reason": "done", "result": {"url": "/files/17", "error": None}})
            assert (end.id or "").endswith("-4"), "an event of the topic"
            assert await viewer.rest() == []
        asked = len(api.requests)
        for back in (
            await gate.ask("GET", "/jobs/17/progress", ("Last-Event-ID", end.id or "")),
            await gate.ask("GET", f"/jobs/17/progress?lastEventId={end.id}"),
        ):
            assert (back.status, back.body) == (204, b""), "so that an EventSource stops by itself"
        assert len(api.requests) == asked, "nor is it asked for any more"


@story
async def test_a_newcomer_to_a_finished_job_gets_its_last_state_and_its_end(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, FOLLOWED)) as gate:
        api.put("/jobs/17", job(10))
        async with gate.watch("/jobs/17/progress") as viewer:
            early = await viewer.event()
            api.put("/jobs/17", job(100, "succeeded", url="/x"))
            end = await ended(viewer)
        api.fail("/jobs/17", 404)
        asked = len(api.requests)
        async with gate.watch("/jobs/17/progress") as newcomer:
            assert told(await newcomer.event()) == ("", job(100, "succeeded"))
            assert await newcomer.event() == end
            assert await newcomer.rest() == []
        async with gate.watch("/jobs/17/progress", cursor=early.id) as back:
            assert back.get("ssegate-resumed") == "yes"
            assert told(await back.event()) == ("", job(100, "succeeded"))
            assert await back.event() == end
        assert len(api.requests) == asked


@pytest.mark.parametrize(
    ("state", "reason"), [("failed", "failed"), ("cancelled", "failed"), ("succeeded", "done")]
)  # fmt: skip
@story
async def test_a_job_may_end_when_it_is_looked_at_first(edge: Edge, state: str, reason: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, FOLLOWED)) as gate:
        api.put("/jobs/17", job(70, state, error="disk full"))
        async with gate.watch("/jobs/17/progress") as viewer:
            assert told(await viewer.event()) == ("", job(70, state))
            end = await ended(viewer)
            assert told(end) == ("end", {"reason": reason, "result": {"url": None, "error": "disk full"}})
        assert len(api.requests) == 1


@pytest.mark.parametrize("status", [404, 410])
@story
async def test_a_job_that_disappears_is_gone(edge: Edge, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, FOLLOWED)) as gate:
        api.put("/jobs/17", job(10))
        async with gate.watch("/jobs/17/progress") as viewer:
            await viewer.event()
            api.fail("/jobs/17", status)
            end = await ended(viewer)
            assert told(end) == ("end", {"reason": "gone"})
        assert (await gate.ask("GET", "/jobs/17/progress", ("Last-Event-ID", end.id or ""))).status == 204


@story
async def test_a_job_that_takes_too_long_is_given_up(edge: Edge) -> None:
    route = FOLLOWED.rstrip() + "\n    give_up: 200ms\n"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/jobs/17", job(10))
        async with gate.watch("/jobs/17/progress") as viewer:
            end = await ended(viewer)
            assert told(end) == ("end", {"reason": "timeout"})
        asked = len(api.requests)
        async with gate.watch("/jobs/17/progress") as newcomer:
            assert [event.type for event in await newcomer.rest()] == ["", "end"]
        assert len(api.requests) == asked


@story
async def test_all_viewers_of_a_job_share_what_is_asked(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, FOLLOWED)) as gate, AsyncExitStack() as stack:
        api.put("/jobs/17", job(10))
        viewers = [await stack.enter_async_context(gate.watch("/jobs/17/progress")) for _ in range(6)]
        firsts = [await viewer.event() for viewer in viewers]
        assert len(set(firsts)) == 1
        released = api.hold("/jobs/17")
        await api.until_asked_again("/jobs/17")
        asked = len(api.requests)
        late = await stack.enter_async_context(gate.watch("/jobs/17/progress"))
        assert await late.event() == firsts[0]
        assert len(api.requests) == asked, "one request at a time, for all"
        api.put("/jobs/17", job(100, "succeeded"))
        released.set()
        ends = [await ended(viewer) for viewer in (*viewers, late)]
        assert len(set(ends)) == 1


@story
async def test_each_job_is_a_topic_of_its_own(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, FOLLOWED)) as gate:
        api.put("/jobs/1", job(1))
        api.put("/jobs/2", job(2))
        async with gate.watch("/jobs/1/progress") as one, gate.watch("/jobs/2/progress") as two:
            assert [told(await it.event()) for it in (one, two)] == [("", job(1)), ("", job(2))]
            api.put("/jobs/1", job(100, "succeeded"))
            await ended(one)
            api.put("/jobs/2", job(3))
            assert told(await two.event()) == ("", job(3))


@story
async def test_headers_of_the_viewer_make_a_job_private(edge: Edge) -> None:
    route = FOLLOWED.rstrip() + "\n    forward: [authorization]\n"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.serve("/jobs/17", lambda asked: json_answer(job(len(asked.get("authorization") or ""))))
        async with gate.watch("/jobs/17/progress", ANN) as ann, gate.watch("/jobs/17/progress") as nobody:
            assert told(await ann.event()) == ("", job(10))
            assert told(await nobody.event()) == ("", job(0))
            api.fail("/jobs/17", 401)
            assert [event.type for event in await ann.rest()] == ["end"]
        assert (await gate.ask("GET", "/jobs/17/progress", ANN)).status == 401


@pytest.mark.parametrize("status", [401, 403, 404, 410])
@story
async def test_a_job_that_may_not_be_seen_is_refused_as_the_upstream_does(edge: Edge, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, FOLLOWED)) as gate:
        api.fail("/jobs/17", status)
        reply = await gate.ask("GET", "/jobs/17/progress")
        assert (reply.status, reply.get("content-type")) == (status, "application/problem+json")
        assert b"secret" not in reply.body
        api.put("/jobs/17", job(1))
        async with gate.watch("/jobs/17/progress") as viewer:
            assert told(await viewer.event()) == ("", job(1)), "it is asked for anew"


@story
async def test_trouble_is_a_fault_and_the_job_is_followed_on(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, FOLLOWED)) as gate:
        api.put("/jobs/17", job(10))
        async with gate.watch("/jobs/17/progress") as viewer:
            await viewer.event()
            api.fail("/jobs/17", 503)
            fault = await viewer.event()
            assert told(fault) == (
                "fault",
                {"reason": "upstream", "status": 503, "message": "the upstream answered 503"},
            )
            await api.until_asked_again("/jobs/17", 2)
            api.serve("/jobs/17", answer(b"<html>"))
            await api.until_asked_again("/jobs/17", 2)
            api.put("/jobs/17", job(100, "succeeded"))
            assert [event.type for event in await viewer.rest()] == ["recovered", "", "end"]
            assert viewer.raw.count(b"event: fault") == 1, "once an outage"


@story
async def test_a_job_goes_on_being_asked_for_a_while_and_again_when_somebody_comes_back(edge: Edge) -> None:
    route = FOLLOWED.rstrip() + "\n    linger: 100ms\n"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/jobs/17", job(10))
        async with gate.watch("/jobs/17/progress") as viewer:
            cursor = (await viewer.event()).id
        await until_unwatched(gate)
        asked = len(api.requests)
        api.put("/jobs/17", job(100, "succeeded"))
        await asyncio.sleep(0.1)  # nothing to await: a further request would be wrong
        assert len(api.requests) == asked
        async with gate.watch("/jobs/17/progress", cursor=cursor) as viewer:
            assert viewer.get("ssegate-resumed") == "yes"
            assert [event.type for event in await viewer.rest()] == ["", "end"]


# How backends say it without a word in the body


@story
async def test_a_202_says_where_to_ask_and_a_303_where_the_result_is(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, PLAIN)) as gate:
        api.serve("/jobs/17", json_answer({"percent": 1}, (b"Location", b"../monitor/9"), status=202))
        api.serve("/monitor/9", json_answer({"percent": 2}, status=202))
        async with gate.watch("/jobs/17/progress") as viewer:
            assert [told(await viewer.event()) for _ in range(2)] == [("", 1), ("", 2)]
            api.serve("/results/9", json_answer({"url": "/files/9"}))
            api.serve("/monitor/9", answer(b"", (b"Location", b"/results/9"), status=303))
            assert told(await ended(viewer)) == ("end", {"reason": "done", "result": "/files/9"})
        assert len(api.asked_for("/jobs/17")) == 1
        assert api.requests[-1].target == "/results/9"


@story
async def test_a_202_without_a_body_keeps_the_stream_open_and_says_nothing(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, PLAIN)) as gate:
        api.serve("/jobs/17", answer(b"", status=202))
        async with gate.watch("/jobs/17/progress") as viewer:
            await viewer.opening()
            await api.until_asked_again("/jobs/17", 2)
            api.serve("/jobs/17", json_answer({"url": "/x"}))
            assert told(await viewer.event()) == ("end", {"reason": "done", "result": "/x"})
            assert b"fault" not in viewer.raw


@story
async def test_retry_after_is_when_it_is_asked_for_again(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, PLAIN)) as gate:
        api.serve("/jobs/17", json_answer({"percent": 1}, (b"Retry-After", b"3600"), status=202))
        async with gate.watch("/jobs/17/progress") as viewer:
            await viewer.event()
            await asyncio.sleep(0.15)  # nothing to await: a further request would be wrong
            assert len(api.requests) == 1


# HTML


@story
async def test_progress_may_be_html_and_the_end_stays_json(edge: Edge) -> None:
    route = """
    - path: /jobs/{id}/progress
      task: {get: "/jobs/{id}", every: 30ms, done: "state == 'succeeded'", progress: "{percent: percent, by: by}", result: url}
      emit: {event: progress, template: '<progress value="{percent}" title="{by}"></progress>'}
    """
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.put("/jobs/17", job(40, by='"><script>'))
        async with gate.watch("/jobs/17/progress") as viewer:
            event = await viewer.event()
            assert event.type == "progress"
            assert event.data == '<progress value="40" title="&quot;&gt;&lt;script&gt;"></progress>'
            api.put("/jobs/17", job(100, "succeeded", url="/x"))
            assert told(await ended(viewer)) == ("end", {"reason": "done", "result": "/x"})
        async with gate.watch("/jobs/17/progress") as newcomer:
            assert [event.type for event in await newcomer.rest()] == ["progress", "end"]


# Started by the stream itself


class Exports:
    """`POST /api/exports` starts a job; where its status is is in `Location`, or as `make` has it."""

    def __init__(self, api: LegacyApi, make: Callable[[int], bytes] | None = None) -> None:
        self.api = api
        self.started: list[Asked] = []
        self._make = make or (lambda number: answer(b"", (b"Location", b"/api/exports/%d" % number), status=202))
        api.serve("/api/exports", self._start)

    def _start(self, asked: Asked) -> bytes:
        self.started.append(asked)
        self.put(len(self.started), job(0))
        return self._make(len(self.started))

    def put(self, number: int, status: dict[str, object]) -> None:
        self.api.put(f"/api/exports/{number}", status)

    def asked(self, number: int = 1) -> int:
        return len(self.api.asked_for(f"/api/exports/{number}"))


@asynccontextmanager
async def posted(
    gate: RunningGate, target: str = "/exports", *headers: Pair, body: bytes = b'{"kind":"csv"}', cursor: str = ""
) -> AsyncIterator[Viewer]:
    fields = [("Accept", "text/event-stream"), JSON, *headers]
    if cursor:
        fields.append(("Last-Event-ID", cursor))
    async with gate.exchange("POST", target, *fields, body=body) as it:
        yield Viewer(it)


def name_of(viewer: Viewer) -> str:
    return viewer.get("ssegate-stream") or ""


@story
async def test_one_request_starts_a_job_and_follows_it_to_its_end(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        exports = Exports(api)
        async with posted(gate, body=b'{"kind": "csv"}') as viewer:
            assert (viewer.status, viewer.get("content-type")) == (200, "text/event-stream")
            assert told(await viewer.event()) == ("", 0)
            (start,) = exports.started
            assert (start.method, start.target, start.body) == ("POST", "/api/exports", b'{"kind": "csv"}')
            assert start.get("content-type") == "application/json"
            exports.put(1, job(50))
            assert told(await viewer.event()) == ("", 50)
            exports.put(1, job(100, "done", url="/files/1"))
            assert told(await viewer.event()) == ("", 100)
            end = await viewer.event()
            assert told(end) == ("end", {"reason": "done", "result": "/files/1"})
            assert await viewer.rest() == []
            name = name_of(viewer)
        assert name.startswith("/exports/s/")
        assert (await gate.ask("GET", name, ("Last-Event-ID", end.id or ""))).status == 204
        async with gate.watch(name) as again:
            assert [event.type for event in await again.rest()] == ["", "end"]
        assert len(exports.started) == 1


@story
async def test_each_request_starts_a_job_of_its_own(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        exports = Exports(api)
        async with posted(gate, body=b"1") as one, posted(gate, body=b"2") as two:
            await one.event()
            await two.event()
            assert name_of(one) != name_of(two)
            assert [start.body for start in exports.started] == [b"1", b"2"]
            exports.put(2, job(77))
            assert told(await two.event()) == ("", 77)
            exports.put(1, job(100, "failed"))
            assert said((await ended(one)).data)["reason"] == "failed"
            assert not two.is_ended


@story
async def test_a_job_may_be_started_without_a_body(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        exports = Exports(api)
        async with posted(gate, body=b"") as viewer:
            await viewer.event()
            assert (exports.started[0].body, exports.started[0].get("content-length")) == (b"", "0")


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/status/1?x=1", "/status/1?x=1"),
        ("status/1", "/api/status/1"),
        ("http://HOST/status/1", "/status/1"),
        ("//HOST/status/1", "/status/1"),
        ("?job=1", "/api/exports?job=1"),
    ],
)
@story
async def test_the_location_may_be_absolute_or_relative(edge: Edge, location: str, asked: str) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        where = location.replace("HOST", f"127.0.0.1:{api.port}").encode()

        def make(request: Asked) -> bytes:
            if request.method == "POST":
                return answer(b"", (b"Location", where), status=201)
            return json_answer(job(100, "done", url="/x"))

        for path in ("/api/exports", asked.partition("?")[0]):
            api.serve(path, make)
        async with posted(gate) as viewer:
            assert told(await ended(viewer)) == ("end", {"reason": "done", "result": "/x"})
        assert [request.target for request in api.requests] == ["/api/exports", asked]


@pytest.mark.parametrize(
    "location",
    [b"http://elsewhere.example/status", b"https://127.0.0.1/status", b"http://127.0.0.1:1/status", b"javascript:x", b"http://[", None],
)  # fmt: skip
@story
async def test_a_location_of_another_origin_or_none_is_refused(edge: Edge, location: bytes | None) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        Exports(api, lambda _: answer(b"", *([(b"Location", location)] if location else []), status=202))
        reply = await gate.ask("POST", "/exports", JSON, body=b"{}")
        assert (reply.status, reply.get("content-type")) == (502, "application/problem+json")
        assert "status" in said(reply.body)["detail"]
        assert b"elsewhere" not in reply.body
        assert len(api.requests) == 1
        assert len(gate.service.gate.hub) == 0, "there is no topic of it"


@story
async def test_where_the_status_is_may_be_in_the_body(edge: Edge) -> None:
    route = STARTED.replace(
        '"{start.headers.location}"', '"/api/{tenant}/exports/{start.body.job.id}?x={start.headers.x-token}"'
    )
    route = route.replace("path: /exports", "path: /{tenant}/exports").replace("/api/exports", "/api/{tenant}/exports")
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        for id_, quoted in ((7, "7"), ("a b&c?d", "a%20b%26c%3Fd")):
            api.serve("/api/acme/exports", json_answer({"job": {"id": id_}}, (b"X-Token", b"t&1")))
            api.put(f"/api/acme/exports/{quoted}", job(100, "done", url="/x"))
            async with posted(gate, "/acme/exports") as viewer:
                assert told(await ended(viewer)) == ("end", {"reason": "done", "result": "/x"})
            assert api.requests[-1].target == f"/api/acme/exports/{quoted}?x=t%261"


@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"{}", b'{"id": null}', b'{"id": ""}', b'{"id": ".."}', b'{"id": "a/../b"}', b'{"id": [1]}'],
)
@story
async def test_a_body_that_does_not_say_where_the_status_is_is_502(edge: Edge, body: bytes) -> None:
    route = STARTED.replace('"{start.headers.location}"', '"/api/exports/{start.body.id}"')
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        api.serve("/api/exports", answer(body, status=202))
        reply = await gate.ask("POST", "/exports", JSON, body=b"{}")
        assert (reply.status, reply.get("content-type")) == (502, "application/problem+json")
        assert len(api.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 429, 500, 503])
@story
async def test_a_start_that_is_refused_is_passed_on_as_it_is(edge: Edge, status: int) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        refusal = json_answer({"error": "no such kind"}, (b"X-Reason", b"kind"), (b"Retry-After", b"7"), status=status)
        api.serve("/api/exports", refusal)
        reply = await gate.ask("POST", "/exports", JSON, body=b"{}")
        assert (reply.status, said(reply.body)) == (status, {"error": "no such kind"})
        assert [reply.get(name) for name in ("content-type", "x-reason", "retry-after")] == [
            "application/json",
            "kind",
            "7",
        ]
        assert (len(api.requests), len(gate.service.gate.hub)) == (1, 0)


@story
async def test_a_start_that_is_sent_elsewhere_is_502_and_nothing_is_sent_there(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        api.serve("/api/exports", answer(b"", (b"Location", b"/api/other"), status=307))
        assert (await gate.ask("POST", "/exports", JSON, body=b"{}")).status == 502
        assert len(api.requests) == 1


@story
async def test_an_upstream_that_is_not_there_is_502_and_no_job(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, STARTED)
    async with running_gate(edge, text) as gate:
        reply = await gate.ask("POST", "/exports", JSON, body=b"{}")
        assert (reply.status, reply.get("content-type")) == (502, "application/problem+json")
        assert str(api.port) not in reply.body.decode()


@story
async def test_a_body_that_is_too_large_starts_no_job(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, STARTED, more="limits: {stream_body: 1KiB}")
        async with running_gate(edge, text) as gate:
            exports = Exports(api)
            assert (await gate.ask("POST", "/exports", JSON, body=b"x" * 1025)).status == 413
            assert exports.started == []
            async with posted(gate, body=b"x" * 1024) as viewer:
                await viewer.event()
            assert len(exports.started[0].body) == 1024


@pytest.mark.parametrize(("status", "end"), [(404, "gone"), (410, "gone"), (401, None), (403, None)])
@story
async def test_a_job_whose_status_is_refused_at_once_is_told_in_the_stream(
    edge: Edge, status: int, end: str | None
) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        Exports(api, lambda _: answer(b"", (b"Location", b"/api/none"), status=202))
        api.fail("/api/none", status)
        async with posted(gate) as viewer:
            event = await viewer.event(0.5)
            if end is None:
                assert (event.type, said(event.data)["status"]) == ("fault", status)
            else:
                assert told(event) == ("end", {"reason": end})


# Coming back to it


@story
async def test_a_lost_client_goes_on_by_the_name_or_by_asking_again_and_no_second_job_is_started(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED.replace("100ms", "5s"))) as gate:
        exports = Exports(api)
        async with posted(gate) as viewer:
            name, cursor = name_of(viewer), (await viewer.event()).id or ""
        exports.put(1, job(30))
        async with gate.watch(name, cursor=cursor) as by_name:
            assert by_name.get("ssegate-resumed") == "yes"
            event = await by_name.event()
            assert told(event) == ("", 30)
        exports.put(1, job(60))
        async with posted(gate, cursor=event.id or "") as by_cursor:
            assert (by_cursor.get("ssegate-resumed"), name_of(by_cursor)) == ("yes", name)
            assert told(await by_cursor.event()) == ("", 60)
            async with gate.watch(name) as second:
                assert told(await second.event()) == ("", 60), "a second viewer with the name watches too"
                exports.put(1, job(100, "done", url="/x"))
                assert await ended(second) == await ended(by_cursor)
        assert len(exports.started) == 1


@story
async def test_behind_its_linger_a_job_is_asked_for_no_more_until_somebody_has_its_name(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        exports = Exports(api)
        async with posted(gate) as viewer:
            name, cursor = name_of(viewer), (await viewer.event()).id
        await until_unwatched(gate)
        asked = exports.asked()
        await asyncio.sleep(0.1)  # nothing to await: a further request would be wrong
        assert exports.asked() == asked
        exports.put(1, job(100, "done", url="/x"))
        async with gate.watch(name, cursor=cursor) as back:
            assert back.get("ssegate-resumed") == "yes"
            assert [event.type for event in await back.rest()] == ["", "end"]
        assert len(exports.started) == 1


@story
async def test_a_job_that_has_gone_while_nobody_watched_is_gone_for_who_comes_back(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        exports = Exports(api)
        async with posted(gate) as viewer:
            name = name_of(viewer)
            await viewer.event()
        await until_unwatched(gate)
        exports.api.fail("/api/exports/1", 404)
        async with gate.watch(name) as back:
            assert told(await back.event()) == ("", 0)
            assert told(await back.event()) == ("end", {"reason": "gone"})


@story
async def test_a_job_belongs_to_the_viewer_whose_headers_started_it(edge: Edge) -> None:
    route = STARTED.rstrip() + "\n    forward: [authorization]\n"
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        exports = Exports(api)
        async with posted(gate, "/exports", ANN) as viewer:
            name, cursor = name_of(viewer), (await viewer.event()).id or ""
            assert exports.started[0].get("authorization") == "Bearer ann"
            assert api.asked_for("/api/exports/1")[0].get("authorization") == "Bearer ann"
            for headers in ((), (BOB,)):
                assert (await gate.ask("GET", name, *headers)).status == 404
            async with gate.watch(name, ANN) as own:
                assert told(await own.event()) == ("", 0)
        async with posted(gate, "/exports", BOB, cursor=cursor) as bob:
            assert bob.get("ssegate-resumed") == "no", "it is another job"
            assert name_of(bob) != name
        assert len(exports.started) == 2


@story
async def test_a_job_may_be_started_by_an_event_source(edge: Edge) -> None:
    """A `GET` that starts something is the backend's affair; a browser can do no other."""
    route = STARTED.replace("  methods: [POST]\n", "").replace("{post:", "{get:").replace("100ms", "5s")
    async with LegacyApi() as api, running_gate(edge, before(api, route)) as gate:
        exports = Exports(api)
        async with gate.watch("/exports") as viewer:
            cursor = (await viewer.event()).id
            assert exports.started[0].method == "GET"
        async with gate.watch("/exports", cursor=cursor) as back:
            assert back.get("ssegate-resumed") == "yes"
            exports.put(1, job(100, "done"))
            end = await ended(back)
        assert (await gate.ask("GET", "/exports", ("Last-Event-ID", end.id or ""))).status == 204
        assert len(exports.started) == 1


@story
async def test_only_its_methods_start_a_job(edge: Edge) -> None:
    async with LegacyApi() as api, running_gate(edge, before(api, STARTED)) as gate:
        exports = Exports(api)
        for method in ("GET", "PUT", "DELETE"):
            reply = await gate.ask(method, "/exports")
            assert (reply.status, reply.get("allow")) == (405, "OPTIONS, POST")
        assert exports.started == []


@story
async def test_where_there_is_no_room_no_job_is_started(edge: Edge) -> None:
    async with LegacyApi() as api:
        text = before(api, STARTED, more="limits: {clients: 1}")
        async with running_gate(edge, text) as gate:
            exports = Exports(api)
            async with posted(gate) as viewer:
                await viewer.event()
                reply = await gate.ask("POST", "/exports", JSON, body=b"{}")
                assert reply.status == 503
                assert 5 <= int(reply.get("retry-after") or 0) <= 15
                async with gate.watch(name_of(viewer)) as second:
                    assert second.status == 200
                    assert await second.rest() == [], "an EventSource is told to come back"
            assert len(exports.started) == 1
