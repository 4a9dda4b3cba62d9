"""A stream over real sockets: what an upstream sends and does, and what is said of it to viewers and in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.server import Request, Response, ServerConnection, serve

from ssegate.config.values import read_expression
from ssegate.core.event import Update
from ssegate.core.follow import FollowRules
from ssegate.core.headers import Pair
from ssegate.core.poll import LONGEST_WAIT
from ssegate.core.template import Template
from ssegate.errors import BrokerError
from ssegate.sources import stream as module
from ssegate.sources import telling
from ssegate.sources.stream import SHORTEST_PAUSE, StreamSettings, StreamSource, StreamTarget
from ssegate.sources.telling import AskingRecord
from ssegate.upstream import Upstream
from ssegate.upstream.fetch import MAX_REDIRECTS
from ssegate.upstream.intake import Intake
from tests.ports import free_port
from tests.upstream.scripted import Call, ScriptedUpstream, Step, answer, script
from tests.upstream.settings import settings

PATIENCE = 5.0
PATH = "/log?token=s3cret"
SSE = (b"Content-Type", b"text/event-stream")
NDJSON = (b"Content-Type", b"application/x-ndjson")
GONE_ON = "GET http://api/log"

Story = Callable[["Stage"], Awaitable[None]]


def head(*headers: Pair, status: int = 200) -> bytes:
    """The head of an answer that comes in chunks."""
    fields = b"".join(b"%b: %b\r\n" % pair for pair in (*headers, (b"Transfer-Encoding", b"chunked")))
    return b"HTTP/1.1 %d Scripted\r\n%b\r\n" % (status, fields)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"


def events(*data: str, headers: tuple[Pair, ...] = (SSE,), end: bytes = END) -> bytes:
    """A whole event stream, or with another end one that is cut."""
    return head(*headers) + b"".join(chunk(f"data: {each}\n\n".encode()) for each in data) + end


def cut(*data: str) -> Step:
    """An event stream that is cut behind these events."""

    async def send(call: Call) -> None:
        await call.send(events(*data, end=b""))
        call.close()

    return send


def staying(data: bytes) -> Step:
    """An answer that begins so and goes on for ever."""

    async def send(call: Call) -> None:
        await call.send(data)
        await call.closed()

    return send


class Freely:
    """A pace that holds nothing back."""

    def portions(self, updates: Sequence[Update]) -> Iterable[Sequence[Update]]:
        yield updates

    async def keep(self) -> None: ...


def again_after(backoff_min: float = 0.01, backoff_max: float = 0.02, format_: str = "sse") -> StreamSettings:
    """Settings of a stream that is always asked for again."""
    rules = FollowRules(format_, 1000)
    return StreamSettings(rules, True, True, backoff_min=backoff_min, backoff_max=backoff_max)


def after(cursor: str) -> str:
    """A path with the cursor in it."""
    return Template("/log?after={cursor}").expand_url({"cursor": cursor} if cursor else {})


class Stage:
    """One source before a scripted upstream, and what it publishes."""

    def __init__(self, scripted: ScriptedUpstream, upstream: Upstream, make: Callable[[], StreamSource]) -> None:
        self.scripted = scripted
        self.upstream = upstream
        self._make = make
        self.said: list[Update] = []
        self.refuses = 0
        """How many times more the broker refuses; -1 is always."""
        self._changed = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def begin(self) -> asyncio.Task[None]:
        self.task = asyncio.get_running_loop().create_task(self.source.run(self.publish))
        return self.task

    def prepare(self) -> None:
        """Make the source; inside the loop, since it may have a connection."""
        self.source = self._make()
        self.record: AskingRecord = self.source._record

    async def publish(self, update: Update) -> None:
        self._changed.set()
        if self.refuses:
            self.refuses -= 1
            raise BrokerError("the broker is down")
        self.said.append(update)

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait until something is true of what was published, or tried to be."""
        while not fact():
            self._changed.clear()
            await self._changed.wait()

    async def until_said(self, count: int) -> list[str]:
        """What has been said, once it is so much."""
        await self.until(lambda: len(self.said) >= count)
        return self.words

    async def until_asked(self, count: int) -> None:
        await self.scripted.until(lambda it: len(it.requests) >= count)

    async def until_over(self) -> list[str]:
        """What has been said, once the source has come to its end by itself."""
        assert self.task is not None
        await self.task
        assert self.source.is_over
        return self.words

    @property
    def words(self) -> list[str]:
        return [f"{update.type}:{update.data}" if update.kind.value == "event" else f"{update.kind.value}!{update.data}" for update in self.said]  # fmt: skip


@asynccontextmanager
async def stage_of(
    step: Step,
    *,
    format: str = "sse",  # noqa: A002  (so it is called in the configuration)
    method: str = "GET",
    headers: tuple[Pair, ...] = (),
    own: bool = False,
    reconnects: bool | None = None,
    restarts: bool | None = None,
    max_size: int = 1000,
    path_at: Callable[[str], str] = lambda cursor: PATH,
    batch: float = 0.0,
    pace: Freely | None = None,
    with_auth: bool = True,
    read: float = 1.0,
    **rules: Any,
) -> AsyncIterator[Stage]:
    made = {name: Template(rule) if name in ("event", "template") else read_expression(rule) for name, rule in rules.items()}  # fmt: skip
    async with ScriptedUpstream(step) as scripted:
        auth = {"basic": {"user": "robot", "password": "passw0rd"}}
        upstream = Upstream("api", settings(scripted.url, auth=auth, read=read))
        target = StreamTarget(method, path_at, headers, with_auth=with_auth)
        again = not own if reconnects is None else reconnects

        def make() -> StreamSource:
            opened = None
            if own:
                opened = Intake()
                opened.relaying = upstream.open(target.path, headers, opened, method=method)
            return StreamSource(
                "topic 1",
                target,
                upstream,
                StreamSettings(
                    FollowRules(format, max_size, batches=batch > 0, **made),  # type: ignore[arg-type]  # each is what its name says
                    reconnects=again,
                    restarts=again if restarts is None else restarts,
                    batch=batch,
                    backoff_min=0.01,
                    backoff_max=0.02,
                ),
                AskingRecord("api"),
                opened=opened,
                pace=pace or Freely(),
            )

        stage = Stage(scripted, upstream, make)
        stage.prepare()
        try:
            yield stage
        finally:
            if stage.task is not None:
                stage.task.cancel()
                await asyncio.gather(stage.task, return_exceptions=True)
            await upstream.aclose()


def play(step: Step, story: Story, **options: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), stage_of(step, **options) as stage:
            await story(stage)

    asyncio.run(run())


def fault(status: int | None, message: str, reason: str = "upstream") -> str:
    return "fault!" + json.dumps({"reason": reason, "status": status, "message": message}, separators=(",", ":"))


def end(reason: str, **result: Any) -> str:
    data = {"reason": reason, **({"result": result} if result else {})}
    return "end!" + json.dumps(data, separators=(",", ":"))


RECOVERED = "recovered!{}"
BROKEN = fault(None, "the upstream's answer is broken")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections follow each other as fast as the back-off lets them."""
    monkeypatch.setattr(module, "SHORTEST_PAUSE", 0.001)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the source would have waited between connections, were chance always at its upper end; it does not wait."""
    noted: list[float] = []
    pause = StreamSource._pause

    def note(source: StreamSource) -> float:
        noted.append(pause(source))
        return 0.0

    monkeypatch.setattr(StreamSource, "_pause", note)
    monkeypatch.setattr(module.random, "random", lambda: 1.0)
    monkeypatch.setattr(module, "SHORTEST_PAUSE", SHORTEST_PAUSE)
    return noted


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[tuple[str, str]]]:
    """What was written to the log: level and text, the upstream's address as `api`."""
    caplog.set_level(logging.INFO, logger="ssegate")

    def lines() -> list[tuple[str, str]]:
        texts = [(record.levelname, record.getMessage()) for record in caplog.records]
        return [(level, re.sub(r"127\.0\.0\.1:\d+", "api", text)) for level, text in texts]

    return lines


# What is asked, and what is said


@pytest.mark.parametrize(
    ("format_", "accept"),
    [
        ("sse", "text/event-stream"),
        ("ndjson", "application/x-ndjson, application/jsonl;q=0.9, application/json;q=0.8, */*;q=0.1"),
        ("json-seq", "application/json-seq, */*;q=0.1"),
        ("lines", "*/*"),
        ("bytes", "*/*"),
    ],
)
def test_an_upstream_is_asked_for_the_format_with_the_gates_own_credentials_and_no_cursor(
    format_: str, accept: str
) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(1)
        (asked,) = stage.scripted.requests
        assert (asked.method, asked.target) == ("GET", PATH)
        assert [asked.get(name) for name in ("accept", "accept-encoding", "last-event-id", "x-viewer")] == [
            accept, "identity", None, "me",
        ]  # fmt: skip
        assert (asked.get("authorization") or "").startswith("Basic ")

    play(staying(head()), story, format=format_, headers=((b"X-Viewer", b"me"),))


def test_the_gates_own_credentials_stay_away_where_the_viewers_are_to_decide() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(1)
        assert stage.scripted.requests[0].get("authorization") is None

    play(staying(head()), story, with_auth=False)


@pytest.mark.parametrize(
    ("format_", "header", "record", "said"),
    [
        ("sse", SSE, b"event: tick\ndata: 1\n\n", "tick:1"),
        ("ndjson", NDJSON, b'{"a":1}\n', ':{"a":1}'),
        ("json-seq", (b"Content-Type", b"application/json-seq"), b'\x1e{"a":1}\n', ':{"a":1}'),
        ("lines", (b"Content-Type", b"text/plain"), b"a line\r\n", ":a line"),
        ("bytes", (b"Content-Type", b"application/octet-stream"), b"\0\xff", ":AP8="),
    ],
)
def test_a_record_is_said_before_the_upstream_has_sent_anything_further(
    format_: str, header: Pair, record: bytes, said: str
) -> None:
    heard = asyncio.Event()

    async def send(call: Call) -> None:
        await call.send(head(header))
        for _ in range(3):
            await call.send(chunk(record))
            await heard.wait()
            heard.clear()
        await call.closed()

    async def story(stage: Stage) -> None:
        stage.begin()
        for count in (1, 2, 3):
            assert await stage.until_said(count) == [said] * count
            heard.set()

    play(send, story, format=format_)


def test_a_record_is_the_same_wherever_the_border_between_two_chunks_is() -> None:
    record = 'id: 7\r\nevent: tick\r\ndata: "grün …"\r\n\r\n'.encode()

    async def send(call: Call) -> None:
        await call.send(head(SSE))
        for border in range(1, len(record)):
            await call.send(chunk(record[:border]))
            await call.send(chunk(record[border:]))
        for byte in record:
            await call.send(chunk(bytes((byte,))))
        await call.closed()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(len(record)) == ['tick:"grün …"'] * len(record)

    play(send, story)


def test_who_waits_is_answered_with_the_head_and_not_only_with_the_first_event() -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited is None
        assert stage.words == []
        assert stage.record.openings == {"200": 1}

    play(staying(head(SSE)), story)


# The upstream ends, breaks, comes back


def test_an_answer_that_ends_is_asked_for_again_without_a_word() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(3) == [":1", ":2", ":3"]
        assert stage.record.openings == {"200": 2}

    play(script(events("1"), staying(events("2", "3", end=b""))), story)


def test_an_answer_that_is_cut_is_trouble_until_the_next_one_begins(
    logged: Callable[[], list[tuple[str, str]]],
) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(4) == [":1", BROKEN, RECOVERED, ":2"]
        (_, begun), (_, over) = logged()
        assert begun.startswith(f"stream {GONE_ON}: ")
        assert begun.endswith("; its streams stay open and it is asked again")
        assert over == "upstream api: all it is asked for is answered again"
        assert "s3cret" not in begun

    play(script(cut("1"), staying(events("2", end=b""))), story)


def test_trouble_is_over_when_the_upstream_streams_again_and_not_with_its_next_event_alone() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(2)
        async with asyncio.timeout(0.2):
            assert await stage.until_said(3) == [":1", BROKEN, RECOVERED]

    play(script(cut("1"), staying(head(SSE))), story)


def test_what_was_cut_in_mid_record_is_no_event() -> None:
    async def cut_in_mid_record(call: Call) -> None:
        await call.send(head(NDJSON) + chunk(b'{"n":1}\n{"n":'))
        call.close()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(4) == [':{"n":1}', BROKEN, RECOVERED, ':{"n":3}']

    play(script(cut_in_mid_record, staying(head(NDJSON) + chunk(b'{"n":3}\n'))), story, format="ndjson")


@pytest.mark.parametrize(
    ("format_", "rest", "said"),
    [
        ("ndjson", b'{"n":2}', [':{"n":2}']),
        ("ndjson", b'{"n":', [fault(None, "a record of the upstream cannot be read: it is not JSON", "undecodable")]),
        ("lines", b"half a line", [":half a line"]),
        ("json-seq", b"\x1e12", [fault(None, "a record of the upstream is cut", "undecodable")]),
        ("sse", b"data: half an event\n", []),
    ],
)
def test_an_answer_that_ends_in_good_order_in_mid_record(format_: str, rest: bytes, said: list[str]) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [*said, end("done")]

    sent = head(SSE if format_ == "sse" else NDJSON) + chunk(rest) + END
    play(staying(sent), story, format=format_, reconnects=False)


def test_it_goes_on_behind_the_last_id_by_header_and_by_cursor() -> None:
    def step(*ids: int) -> bytes:
        return head(SSE) + b"".join(chunk(f"id: a {n}\ndata: {n}\n\n".encode()) for n in ids) + END

    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(3)
        assert stage.words == [":1", ":2", ":3"], "the one it was to go on behind came twice"
        assert [(asked.target, asked.get("last-event-id")) for asked in stage.scripted.requests[:3]] == [
            ("/log", None), ("/log?after=a%202", "a 2"), ("/log?after=a%203", "a 3"),
        ]  # fmt: skip

    play(script(step(1, 2), step(2, 3), staying(head(SSE))), story, path_at=after)


def test_an_id_may_be_found_in_records() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(2)
        assert stage.scripted.requests[1].get("last-event-id") == "17"

    answers = script(head(NDJSON) + chunk(b'{"n":16}\n{"n":17}\n{}\n') + END, staying(head(NDJSON)))
    play(answers, story, format="ndjson", id="n")


@pytest.mark.parametrize("id_", ["a\\r\\nX-Forged: 1", "a\\u0001b", "\\ud800"])
@pytest.mark.parametrize("path_at", [lambda cursor: PATH, after])
def test_an_id_that_no_request_can_carry_is_none(id_: str, path_at: Callable[[str], str]) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(2)
        assert stage.words == [f':{{"n":"{id_}"}}']
        (_, asked) = stage.scripted.requests
        assert [asked.get("x-forged"), asked.get("last-event-id")] == [None, None]

    answers = script(head(NDJSON) + chunk(b'{"n":"%b"}\n' % id_.encode()) + END, staying(head(NDJSON)))
    play(answers, story, format="ndjson", id="n", path_at=path_at)


@pytest.mark.parametrize("path_at", [lambda cursor: PATH, after])
def test_an_events_own_id_that_no_request_can_carry_is_none(path_at: Callable[[str], str]) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(2)
        assert stage.scripted.requests[1].get("last-event-id") is None
        assert stage.words == [":1"]

    answers = script(head(SSE) + chunk(b"id: a\x01b\ndata: 1\n\n") + END, staying(head(SSE)))
    play(answers, story, path_at=path_at)


def test_a_record_that_cannot_be_told_does_not_end_the_source() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        said = await stage.until_said(4)
        assert [each.partition("!")[0] for each in said] == [':{"n":1}', "fault", "recovered", ':{"n":3}']

    sent = staying(head(NDJSON) + chunk(b'{"n":"1"}\n{"n":"inf"}\n{"n":"3"}\n'))
    play(sent, story, format="ndjson", data="{n: to_number(n)}")


@pytest.mark.parametrize(
    ("step", "said", "report"),
    [
        (answer(b"our secrets", status=503), fault(503, "the upstream answered 503"), "503"),
        (answer(status=429), fault(429, "the upstream answered 429"), "429"),
        (answer(status=401), fault(401, "the upstream answered 401"), "401"),
        (answer(status=404), fault(404, "the upstream answered 404"), "404"),
        (answer(status=304), fault(304, "the upstream answered 304"), "304"),
        (b"nonsense\r\n\r\n", BROKEN, "the head of its answer is cut or is not HTTP/1.1"),
        (
            answer(b"<html>our secrets</html>", (b"Content-Type", b"text/html; charset=utf-8")),
            fault(200, "the upstream answered with text/html, and not with text/event-stream", "undecodable"),
            "the upstream answered with text/html, and not with text/event-stream",
        ),
        (
            answer(b"{}"),
            fault(200, "the upstream answered with no media type, and not with text/event-stream", "undecodable"),
            "the upstream answered with no media type, and not with text/event-stream",
        ),
        (
            answer(b"x", SSE, (b"Content-Encoding", b"gzip")),
            fault(200, "the upstream's answer is compressed, which was not asked for", "undecodable"),
            "the upstream's answer is compressed, which was not asked for",
        ),
        (
            answer(b"", (b"Location", b"http://elsewhere.example/log?s3cret"), status=302),
            fault(302, "the upstream answered 302"),
            "302",
        ),
    ],
)
def test_an_upstream_that_does_not_stream_is_told_once_without_secrets_and_asked_again(
    step: Step, said: str, report: str, logged: Callable[[], list[tuple[str, str]]]
) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(3)
        assert stage.record.failing == 1
        assert await stage.until_said(3) == [said, RECOVERED, ":1"]
        assert len(stage.scripted.requests) == 4
        assert stage.record.failing == 0
        assert logged() == [
            ("WARNING", f"stream {GONE_ON}: {report}; its streams stay open and it is asked again"),
            ("INFO", "upstream api: all it is asked for is answered again"),
        ]
        assert not re.search("s3cret|token|passw0rd|robot|secrets|127", "".join(stage.words))

    play(script(step, step, step, staying(events("1", end=b""))), story)


def test_an_upstream_that_cannot_be_reached_is_told_once_and_asked_again() -> None:
    async def run() -> None:
        port = free_port()
        upstream = Upstream("api", settings(f"http://127.0.0.1:{port}"))
        target = StreamTarget("GET", lambda _: PATH, ())
        source = StreamSource("topic 1", target, upstream, again_after(), AskingRecord("api"), pace=Freely())
        async with ScriptedUpstream(b"") as other:
            stage = Stage(other, upstream, lambda: source)
            stage.prepare()
            stage.begin()
            await stage.until_said(1)
            async with ScriptedUpstream(staying(events("1", end=b"")), port=port):
                assert await stage.until_said(3) == [
                    fault(None, "the upstream cannot be reached"), RECOVERED, ":1",
                ]  # fmt: skip
                assert stage.record.openings["failed"] >= 1
                await stage.stop()
            await upstream.aclose()

    asyncio.run(run())


def test_an_upstream_that_does_not_answer_is_trouble() -> None:
    async def hang(call: Call) -> None:
        await call.closed()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(3) == [fault(None, "the upstream does not answer"), RECOVERED, ":1"]

    play(script(hang, staying(events("1", end=b""))), story, read=0.1)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_at_the_beginning_is_for_those_who_wait_and_nothing_is_said(status: int) -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited == status
        assert await stage.until_over() == []
        assert len(stage.scripted.requests) == 1

    play(answer(status=status), story)


def test_other_trouble_at_the_beginning_is_told_in_the_stream() -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited is None
        assert stage.words == [fault(500, "the upstream answered 500")]

    play(answer(status=500), story)


@pytest.mark.parametrize("status", [404, 410])
def test_what_was_there_and_is_gone_ends_the_stream(status: int) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [":1", end("gone")]

    play(script(events("1"), answer(status=status)), story)


@pytest.mark.parametrize("status", [401, 403])
def test_a_right_that_was_there_and_is_refused_is_trouble(status: int) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(4) == [":1", fault(status, f"the upstream answered {status}"), RECOVERED, ":2"]

    play(script(events("1"), answer(status=status), staying(events("2", end=b""))), story)


@pytest.mark.parametrize("steps", [[answer(status=204)], [events("1"), answer(status=204)]])
def test_an_upstream_that_says_204_wants_not_to_be_asked_again(steps: list[bytes]) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [":1"] * (len(steps) - 1) + [end("done")]

    play(script(*steps), story)


def test_a_route_that_does_not_reconnect_ends_with_its_answer() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [":1", end("done")]
        assert len(stage.scripted.requests) == 1

    play(events("1"), story, reconnects=False)


def test_a_route_that_does_not_reconnect_fails_with_its_answer() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        said = await stage.until_over()
        assert said == [":1", end("failed", status=None, message="the upstream's answer is broken")]

    play(cut("1"), story, reconnects=False)


def test_a_stream_that_has_an_end_is_asked_for_again_when_it_is_cut_and_not_when_it_ends() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [":1", BROKEN, RECOVERED, ":2", end("done")]
        assert len(stage.scripted.requests) == 2

    play(script(cut("1"), events("2")), story, restarts=False)


def test_a_route_that_does_not_reconnect_connects_nevertheless() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [fault(503, "the upstream answered 503"), RECOVERED, ":1", end("done")]

    play(script(answer(status=503), answer(status=503), events("1")), story, reconnects=False)


# Back-off


def test_connections_that_bring_nothing_follow_each_other_more_and_more_slowly(pauses: list[float]) -> None:
    async def story(stage: Stage) -> None:
        stage.source._settings = again_after(1, 5)
        stage.begin()
        await stage.until_asked(8)
        assert pauses[:7] == [1, 2, 4, 5, 5, 1, 2], "an event makes it quick again"

    nothing = answer(b"", SSE)
    play(script(nothing, answer(status=503), nothing, cut(), nothing, events("1"), nothing), story)


@pytest.mark.parametrize(
    ("said", "pause"),
    [("retry: 1500", 1.5), ("retry: 20", SHORTEST_PAUSE), ("retry: 99999999999999", LONGEST_WAIT), ("retry: x", 0.01 * 16)],
)  # fmt: skip
def test_the_upstream_says_when_it_wants_to_be_asked_again(said: str, pause: float, pauses: list[float]) -> None:
    async def story(stage: Stage) -> None:
        stage.source._settings = again_after(0.16, 1)
        stage.begin()
        await stage.until_asked(2)
        assert pauses[0] == pytest.approx(pause)

    play(head(SSE) + chunk(f"{said}\n\n".encode()) + END, story)


def test_retry_after_wins(pauses: list[float]) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_asked(4)
        assert pauses[:3] == [1.5, 7, LONGEST_WAIT]

    play(
        script(
            head(SSE) + chunk(b"retry: 1500\n\n") + END,
            answer(b"", (b"Retry-After", b"7"), status=503),
            answer(b"", (b"Retry-After", b"9999999"), status=429),
            staying(head(SSE)),
        ),
        story,
    )


@pytest.mark.parametrize("sent", [b"retry: 0\n\n", b"retry: 0\ndata: 1\n\n"])
def test_an_upstream_that_wants_to_be_asked_again_at_once_makes_no_hot_loop(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await asyncio.sleep(0.35)  # that nothing happens can only be waited for
        assert 2 <= len(stage.scripted.requests) <= 4

    monkeypatch.setattr(module, "SHORTEST_PAUSE", SHORTEST_PAUSE)
    play(head(SSE) + chunk(sent) + END, story)


# Redirects


def test_a_redirect_to_the_same_origin_is_followed_with_all_that_was_asked() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [":1"]
        asked = stage.scripted.requests
        assert [each.target for each in asked] == [PATH, "/v2/log?a=%2F", "/v3"]
        assert [(each.get("x-viewer"), each.get("accept")) for each in asked] == [("me", "text/event-stream")] * 3
        assert stage.record.openings == {"200": 1}
        await stage.scripted.until(lambda it: it.open == 1)

    answers = script(
        answer(b"", (b"Location", b"/v2/log?a=%2F"), status=307),
        answer(b"", (b"Location", b"../v3"), status=302),
        staying(events("1", end=b"")),
    )
    play(answers, story, headers=((b"X-Viewer", b"me"),))


@pytest.mark.parametrize(
    "location", [b"http://elsewhere.example/log", b"//elsewhere.example/log", b"https://127.0.0.1/log", b"ftp://x/", b"http://["]
)  # fmt: skip
def test_a_redirect_to_another_origin_is_not_followed(location: bytes) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [fault(302, "the upstream answered 302")]

    play(answer(b"", (b"Location", location), status=302), story)


def test_redirects_without_end_are_given_up() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [fault(302, "the upstream answered 302")]
        assert len(stage.scripted.requests) == MAX_REDIRECTS + 1

    play(answer(b"", (b"Location", b"/again"), status=302), story)


def test_a_redirect_is_asked_for_anew_with_each_connection() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(2)
        assert [asked.target for asked in stage.scripted.requests] == [PATH, "/a", PATH, "/b"]

    def to(path: bytes) -> bytes:
        return answer(b"", (b"Location", path), status=302)

    play(script(to(b"/a"), events("1"), to(b"/b"), staying(events("2", end=b""))), story)


# What no upstream should send


def test_a_record_that_is_no_json_is_trouble_with_that_record(logged: Callable[[], list[tuple[str, str]]]) -> None:
    told = asyncio.Event()

    async def send(call: Call) -> None:
        await call.send(head(NDJSON) + chunk(b'{"n":1}\n<html>secret</html>\nsecret\n'))
        await told.wait()
        await call.send(chunk(b'{"n":3}\n'))
        await call.closed()

    async def story(stage: Stage) -> None:
        stage.begin()
        trouble = fault(None, "a record of the upstream cannot be read: it is not JSON", "undecodable")
        assert await stage.until_said(2) == [':{"n":1}', trouble]
        assert stage.record.failing == 1
        told.set()
        assert await stage.until_said(4) == [':{"n":1}', trouble, RECOVERED, ':{"n":3}']
        assert stage.record.failing == 0
        assert len(stage.scripted.requests) == 1, "the connection goes on"
        assert [level for level, _ in logged()] == ["WARNING", "INFO"]
        assert "secret" not in "".join(text for _, text in logged())

    play(send, story, format="ndjson")


@pytest.mark.parametrize("format_", ["ndjson", "json-seq"])
def test_a_page_in_the_place_of_json_is_trouble_with_the_upstream(format_: str) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        told = fault(200, "the upstream answered with text/html, and not with JSON", "undecodable")
        assert await stage.until_said(1) == [told]

    play(answer(b"<html>\n</html>\n", (b"Content-Type", b"Text/HTML;charset=utf-8")), story, format=format_)


@pytest.mark.parametrize("format_", ["lines", "bytes"])
def test_a_page_is_lines_and_bytes_too(format_: str) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [":<p>" if format_ == "lines" else ":PHA+Cg==", end("done")]

    play(answer(b"<p>\n", (b"Content-Type", b"text/html")), story, format=format_, reconnects=False)


@pytest.mark.parametrize("coding", [b"gzip", b"br", b"identity, gzip"])
def test_a_compressed_answer_is_refused_in_every_format(coding: bytes) -> None:
    for format_ in ("ndjson", "lines", "bytes"):

        async def story(stage: Stage) -> None:
            stage.begin()
            told = fault(200, "the upstream's answer is compressed, which was not asked for", "undecodable")
            assert await stage.until_said(1) == [told]

        play(answer(b"x", (b"Content-Encoding", coding)), story, format=format_)


def test_an_answer_that_says_it_is_identical_to_itself_is_fine() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [":1"]

    play(events("1", headers=(SSE, (b"Content-Encoding", b"Identity"))), story)


MEGABYTE = 1 << 20


async def flood(call: Call, begin: bytes, size: int, rest: bytes) -> None:
    """An answer with very much in its middle."""
    await call.send(begin)
    for _ in range(size // 65536):
        await call.send(chunk(b"x" * 65536))
    await call.send(chunk(rest))
    await call.closed()


@pytest.mark.parametrize(
    ("format_", "begin", "rest"),
    [
        ("lines", b"", b"\nb\n"),
        ("ndjson", b'"', b'"\n"b"\n'),
        ("json-seq", b'\x1e"', b'"\n\x1e"b"\n'),
        ("sse", b"data: ", b"\n\ndata: b\n\n"),
    ],
)
def test_a_record_without_an_end_takes_no_memory_and_is_told_at_once(format_: str, begin: bytes, rest: bytes) -> None:
    read_on = asyncio.Event()

    async def send(call: Call) -> None:
        await call.send(head(SSE) + chunk(begin + b"x" * 2000))
        await read_on.wait()
        await flood(call, b"", 16 * MEGABYTE, rest)

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [fault(None, "a record of the upstream is too large", "oversize")]
        tracemalloc.start()
        read_on.set()
        said = await stage.until_said(3)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert said[1:] in ([RECOVERED, ":b"], [RECOVERED, ':"b"'])
        assert peak < 2 * MEGABYTE

    play(send, story, format=format_)


def test_a_megabyte_of_comments_says_nothing_and_takes_no_memory() -> None:
    begun = asyncio.Event()

    async def send(call: Call) -> None:
        await call.send(head(SSE))
        await begun.wait()
        comment = b": " + b"x" * 1000 + b"\n"
        for _ in range(16):
            await call.send(chunk(comment * 65))
        await flood(call, chunk(b": "), MEGABYTE, b"\ndata: 1\n\n")

    async def story(stage: Stage) -> None:
        stage.begin()
        tracemalloc.start()
        begun.set()
        assert await stage.until_said(1) == [":1"]
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MEGABYTE

    play(send, story)


# The last record


def test_a_record_that_says_it_is_the_last_ends_the_stream_and_its_connection() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [":a", ":b", end("done")]
        await stage.scripted.until(lambda it: it.open == 0)

    sent = b'{"r":"a"}\n{"r":"b","done":true}\n{"r":"c"}\n'
    play(staying(head(NDJSON) + chunk(sent)), story, format="ndjson", data="r", done="done")


# Joining


def test_records_that_come_in_time_are_joined_and_leave_without_a_further_one() -> None:
    async def send(call: Call) -> None:
        await call.send(head(NDJSON))
        for word in ("Hel", "lo", "!"):
            await call.send(chunk(json.dumps({"r": word}).encode() + b"\n"))
        await call.closed()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [":Hello!"]

    play(send, story, format="ndjson", data="r", batch=0.1)


def test_what_is_joined_is_held_no_longer_than_said_however_much_comes() -> None:
    async def send(call: Call) -> None:
        await call.send(head())
        for n in range(1000):
            await call.send(chunk(b"%d\n" % n))
            await asyncio.sleep(0.005)

    async def story(stage: Stage) -> None:
        stage.begin()
        said = await stage.until_said(4)
        numbers = [int(line) for each in said for line in each.removeprefix(":").split("\n")]
        assert numbers == [*range(len(numbers))]
        assert 8 <= len(numbers) < 100, "about twenty of them in each 50 ms, at most"

    play(send, story, format="lines", batch=0.05)


@pytest.mark.parametrize("is_cut", [False, True])
def test_what_is_held_leaves_with_the_end_of_the_answer(is_cut: bool) -> None:
    async def send(call: Call) -> None:
        await call.send(head() + chunk(b"a\nb\n") + (b"" if is_cut else END))
        call.close()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(2) == [":a\nb", BROKEN if is_cut else ":c"]

    play(script(send, staying(head() + chunk(b"c\n"))), story, format="lines", batch=0.1 if not is_cut else 60.0)


# Stopped, and gone on with


def test_a_source_that_is_stopped_lets_go_of_its_connection_and_goes_on_where_it_was() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        await stage.scripted.until(lambda it: it.open == 0)
        assert stage.source.farewell() == ()
        stage.begin()
        assert await stage.until_said(2) == [":1", ":2"]
        assert [asked.get("last-event-id") for asked in stage.scripted.requests] == [None, "7"]

    first = head(SSE) + chunk(b"id: 7\ndata: 1\n\nid: 8\ndata: half")
    play(script(staying(first), staying(events("2", end=b""))), story)


def test_what_an_upstream_without_ids_said_meanwhile_is_a_gap() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        stage.begin()
        assert await stage.until_said(3) == [":1", 'reset!{"reason":"gap"}', ":1"]

    play(staying(events("1", end=b"")), story)


def test_a_source_that_never_heard_anything_has_no_gap() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        stage.begin()
        assert await stage.until_said(3) == [fault(503, "the upstream answered 503"), RECOVERED, ":1"]

    play(script(answer(status=503), staying(events("1", end=b""))), story)


def test_a_source_that_is_stopped_while_it_waits_opens_no_connection() -> None:
    async def story(stage: Stage) -> None:
        stage.source._settings = again_after(60, 60)
        stage.begin()
        await stage.until_said(1)
        assert stage.record.failing == 1
        await stage.stop()
        assert stage.record.failing == 0, "nobody knows whether it would fail"
        assert stage.scripted.open <= 1

    play(answer(status=503), story)


# The broker


def test_what_the_broker_does_not_take_is_said_again_and_in_order(
    monkeypatch: pytest.MonkeyPatch, logged: Callable[[], list[tuple[str, str]]]
) -> None:
    monkeypatch.setattr(telling, "BROKER_PAUSE", 0.005)

    async def story(stage: Stage) -> None:
        stage.refuses = 3
        stage.begin()
        assert await stage.until_over() == [":1", ":2", end("done")]
        assert logged() == [
            ("WARNING", f"publish {GONE_ON}: the broker is down; it is tried again until it is taken"),
            ("INFO", f"publish {GONE_ON}: taken"),
        ]

    play(events("1", "2"), story, reconnects=False)


def test_what_the_broker_did_not_take_before_the_source_was_stopped_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telling, "BROKER_PAUSE", 0.005)

    async def story(stage: Stage) -> None:
        stage.refuses = -1
        stage.begin()
        await stage.until(lambda: stage.refuses < -2)
        await stage.stop()
        stage.refuses = 0
        stage.begin()
        assert await stage.until_said(3) == [":1", ":2", ":3"]

    first = head(SSE) + chunk(b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\n")
    play(script(staying(first), staying(events("3", end=b""))), story)


# What belongs to one request


def test_an_answer_to_one_request_is_over_with_it() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [":1", ":2", end("done")]
        assert stage.source.farewell() == ()
        assert len(stage.scripted.requests) == 1

    play(events("1", "2"), story, own=True)


def test_what_one_request_has_asked_is_not_asked_again_when_its_source_begins_anew() -> None:
    async def story(stage: Stage) -> None:
        task = stage.begin()
        await stage.until_said(1)
        task.cancel()
        await asyncio.wait((task,))
        stage.begin()
        assert await stage.until_over() == [":1", end("failed", status=None, message="the upstream's answer is lost")]
        assert len(stage.scripted.requests) == 1

    play(script(staying(events("1", end=b""))), story, own=True)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (cut("1"), [":1", end("failed", status=None, message="the upstream's answer is broken")]),
        (answer(status=500), [end("failed", status=500, message="the upstream answered 500")]),
        (answer(status=204), [end("done")]),
        (
            answer(b"", (b"Location", b"/x"), status=302),
            [end("failed", status=302, message="the upstream answered 302")],
        ),
        (
            answer(b"x", (b"Content-Type", b"text/html")),
            [end("failed", status=200, message="the upstream answered with text/html, and not with text/event-stream")],
        ),
        (b"nonsense", [end("failed", status=None, message="the upstream's answer is broken")]),
    ],
)
def test_what_goes_wrong_with_the_answer_to_one_request_is_its_end(step: Step, said: list[str]) -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == said
        assert len(stage.scripted.requests) == 1
        await stage.scripted.until(lambda it: it.open <= 1)

    play(step, story, own=True)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_that_comes_when_the_stream_is_open_already_is_its_end(status: int) -> None:
    async def story(stage: Stage) -> None:
        stage.source.await_answer()  # as `Topics` does
        stage.begin()
        said = await stage.until_over()
        assert said == [end("failed", status=status, message=f"the upstream answered {status}")]

    play(answer(status=status), story, own=True)


def test_an_answer_nobody_came_back_for_ends_with_a_farewell() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        await stage.until_said(1)
        await stage.stop()
        await stage.scripted.until(lambda it: it.open == 0)
        (last,) = stage.source.farewell()
        assert (last.type, last.data) == ("end", '{"reason":"timeout"}')
        assert stage.source.is_over
        assert stage.source.farewell() == ()

    play(staying(events("1", end=b"")), story, own=True)


def test_an_answer_to_one_request_may_be_told_to_go_on_with_another_connection() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(4) == [":1", BROKEN, RECOVERED, ":2"]

    play(script(cut("1"), staying(events("2", end=b""))), story, own=True, reconnects=True)


class Gate(Freely):
    """A pace that can be stopped."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.waits = asyncio.Event()

    async def keep(self) -> None:
        if not self.free.is_set():
            self.waits.set()
            await self.free.wait()


class Singly(Gate):
    """A pace that lets one event be told at a time, and asks before each."""

    async def keep(self) -> None:
        self.waits.set()
        await self.free.wait()
        self.free.clear()

    def portions(self, updates: Sequence[Update]) -> Iterable[Sequence[Update]]:
        return ([update] for update in updates)


def test_what_comes_at_once_is_told_in_portions_each_when_it_may() -> None:
    async def run() -> None:
        gate = Singly()
        sent = staying(events("1", "2", "3", end=b""))
        async with asyncio.timeout(PATIENCE), stage_of(sent, pace=gate) as stage:
            stage.begin()
            for count in range(3):
                await gate.waits.wait()
                assert len(stage.said) == count
                gate.waits.clear()
                gate.free.set()
                await stage.until_said(count + 1)

    asyncio.run(run())


def test_an_upstream_whose_reader_is_behind_is_not_read_and_nothing_is_lost() -> None:
    sent = 0
    count = 400

    async def send(call: Call) -> None:
        nonlocal sent
        await call.send(head())
        for n in range(count):
            await call.send(chunk(b"%d %b\n" % (n, b"x" * 65536)))
            sent += 1
        await call.send(END)

    async def run() -> None:
        gate = Gate()
        async with (
            asyncio.timeout(PATIENCE),
            stage_of(send, own=True, format="lines", max_size=1 << 17, pace=gate) as stage,
        ):
            stage.begin()
            await gate.waits.wait()
            before = -1
            while sent != before:  # until the system's buffers are full
                before = sent
                await asyncio.sleep(0.05)
            assert sent < count
            assert len(stage.said) <= 2
            gate.free.set()
            said = await stage.until_over()
            assert [each.partition(" ")[0] for each in said] == [
                *(f":{n}" for n in range(count)),
                'end!{"reason":"done"}',
            ]

    asyncio.run(run())


# WebSockets


@asynccontextmanager
async def socket_stage(handle: Any, **options: Any) -> AsyncIterator[Stage]:
    """A stage whose upstream is the `websockets` package."""
    more = {name: options.pop(name) for name in ("process_request",) if name in options}
    async with serve(handle, "127.0.0.1", 0, **more) as server:
        port = server.sockets[0].getsockname()[1]
        upstream = Upstream("api", settings(f"http://127.0.0.1:{port}"))
        how = replace(again_after(format_="websocket"), **options)
        target = StreamTarget("GET", lambda _: "/live", ((b"Cookie", b"s=1"),))
        source = StreamSource("topic 1", target, upstream, how, AskingRecord("api"), pace=Freely())
        async with ScriptedUpstream(b"") as nobody:
            stage = Stage(nobody, upstream, lambda: source)
            stage.prepare()
            try:
                yield stage
            finally:
                if stage.task is not None:
                    stage.task.cancel()
                    await asyncio.gather(stage.task, return_exceptions=True)
                await upstream.aclose()


def play_socket(handle: Any, story: Story, **options: Any) -> None:
    async def run() -> None:
        async with asyncio.timeout(PATIENCE), socket_stage(handle, **options) as stage:
            await story(stage)

    asyncio.run(run())


def test_messages_of_a_websocket_are_events() -> None:
    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.headers["Cookie"] == "s=1"
        for message in ("grün …", '{"a": 1}', b"\0\xff", ["in ", "pieces"], "NUL \0"):
            await connection.send(message)
        await connection.wait_closed()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(5) == [":grün …", ':{"a": 1}', ":AP8=", ":in pieces", ":NUL \0"]
        assert stage.record.openings == {"101": 1}

    play_socket(handle, story)


def test_a_websocket_that_is_closed_in_good_order_is_opened_again_without_a_word() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("hello")
        await connection.close()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(3) == [":hello"] * 3

    play_socket(handle, story)


def test_a_websocket_that_is_closed_in_good_order_ends_where_it_is_not_opened_again() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("hello")
        await connection.close()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_over() == [":hello", end("done")]

    play_socket(handle, story, reconnects=False, restarts=False)


def test_a_websocket_that_breaks_is_trouble_and_opened_again() -> None:
    turns = iter(range(9))

    async def handle(connection: ServerConnection) -> None:
        await connection.send(f"hello {next(turns)}")
        if turns.__length_hint__() == 8:
            connection.transport.abort()
        await connection.wait_closed()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(4) == [":hello 0", BROKEN, RECOVERED, ":hello 1"]

    play_socket(handle, story)


def test_a_websocket_that_is_refused_is_told_to_those_who_wait() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(403, "not you")  # type: ignore[arg-type]  # a status is a number too

    async def story(stage: Stage) -> None:
        stage.source.await_answer()
        stage.begin()
        assert stage.source.awaited is not None
        assert await stage.source.awaited == 403
        assert await stage.until_over() == []

    async def handle(connection: ServerConnection) -> None: ...

    play_socket(handle, story, process_request=refuse)


def test_an_upstream_that_knows_no_websockets_is_trouble() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [fault(426, "the upstream answered 426")]

    play(answer(status=426), story, format="websocket")


def test_an_upstream_that_answers_200_to_a_websocket_is_trouble() -> None:
    async def story(stage: Stage) -> None:
        stage.begin()
        async with asyncio.timeout(0.3):
            (said,) = await stage.until_said(1)
        assert json.loads(said.removeprefix("fault!"))["status"] == 200

    play(answer(b"<html>not a frame</html>", (b"Content-Type", b"text/html")), story, format="websocket")


def test_a_message_that_is_too_large_is_trouble() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send("x" * 1001)
        await connection.wait_closed()

    async def story(stage: Stage) -> None:
        stage.begin()
        assert await stage.until_said(1) == [fault(None, "the upstream's answer is too large", "oversize")]

    play_socket(handle, story)
