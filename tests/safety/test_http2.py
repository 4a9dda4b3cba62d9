"""HTTP/2 with prior knowledge: what is wrong with one stream ends that stream, and floods end their connection."""

# ruff: noqa: SIM117 - the gate and its upstream are the place, the client in it is another matter

from __future__ import annotations

import asyncio
from pathlib import Path

import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.safety.conftest import CONFIG
from tests.safety.harness import GateProcess, Http2Client, Pair, run, until
from tests.upstream.scripted import Call, ScriptedUpstream, answer

FLOOD = 1000

HEAD: tuple[Pair, ...] = ((b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"gate.test"))


async def silent(call: Call) -> None:
    await call.closed()
    call.close()


MALFORMED: dict[str, tuple[Pair, ...]] = {
    "connection": (*HEAD, (b":path", b"/"), (b"connection", b"keep-alive")),
    "transfer-encoding": (*HEAD, (b":path", b"/"), (b"transfer-encoding", b"chunked")),
    "upgrade": (*HEAD, (b":path", b"/"), (b"upgrade", b"h2c")),
    "keep-alive": (*HEAD, (b":path", b"/"), (b"keep-alive", b"timeout=5")),
    "proxy-connection": (*HEAD, (b":path", b"/"), (b"proxy-connection", b"keep-alive")),
    "te other than trailers": (*HEAD, (b":path", b"/"), (b"te", b"gzip")),
    "upper case": (*HEAD, (b":path", b"/"), (b"X-Upper", b"1")),
    "non-ASCII path": (*HEAD, (b":path", b"/\xe4")),
    "empty path": (*HEAD, (b":path", b"")),
    "no path": HEAD,
    "no method": (*HEAD[1:], (b":path", b"/")),
    "no scheme": (HEAD[0], HEAD[2], (b":path", b"/")),
    "two paths": (*HEAD, (b":path", b"/"), (b":path", b"/other")),
    "two methods": (*HEAD, (b":method", b"POST"), (b":path", b"/")),
    "unknown pseudo field": (*HEAD, (b":path", b"/"), (b":wonder", b"1")),
    "protocol without the setting": (*HEAD, (b":path", b"/"), (b":protocol", b"websocket")),
    "pseudo field behind others": (*HEAD, (b"x-a", b"1"), (b":path", b"/")),
    "method that is none": ((b":method", b"GE T"), *HEAD[1:], (b":path", b"/")),
    "method not ASCII": ((b":method", b"\xff"), *HEAD[1:], (b":path", b"/")),
    "host unlike authority": (*HEAD, (b":path", b"/"), (b"host", b"other.test")),
    "two hosts": (*HEAD[:2], (b":path", b"/"), (b"host", b"a.test"), (b"host", b"b.test")),
    "no host": (*HEAD[:2], (b":path", b"/")),
    "CRLF in a value": (*HEAD, (b":path", b"/"), (b"x-a", b"1\r\nx-b: 2")),
    "NUL in a value": (*HEAD, (b":path", b"/"), (b"x-a", b"1\0")),
    "CRLF in a name": (*HEAD, (b":path", b"/"), (b"x-a: 1\r\nx-b", b"2")),
    "colon in a name": (*HEAD, (b":path", b"/"), (b"x:a", b"2")),
    "empty name": (*HEAD, (b":path", b"/"), (b"", b"2")),
    "length without a body": (*HEAD, (b":path", b"/"), (b"content-length", b"5")),
    "length that is no number": (*HEAD, (b":path", b"/"), (b"content-length", b"five")),
    "two lengths": (*HEAD, (b":path", b"/"), (b"content-length", b"0"), (b"content-length", b"5")),
    "length of many digits": (*HEAD, (b":path", b"/"), (b"content-length", b"9" * 5000)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_resets_its_stream_and_its_neighbours_live(gate: GateProcess, name: str) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"fine"), port=gate.upstream_port) as upstream:
            async with await Http2Client.begin(gate.port) as client:
                neighbour = await client.request(b"/neighbour", method=b"POST", end=False)
                await client.send_data(neighbour, b"hello")
                broken = await client.request(b"", pseudo=MALFORMED[name])
                assert await client.outcome(broken) in (ErrorCodes.PROTOCOL_ERROR, 400)
                await client.send_data(neighbour, b"", end=True)
                assert await client.outcome(neighbour) == 200
            assert [asked.target for asked in upstream.requests] == ["/neighbour"]

    run(test())


REFUSED = {
    "two slashes": (400, b"//other.test/"),
    "absolute form": (400, b"http://other.test/"),
    "backslash": (400, b"/a\\b"),
    "fragment": (400, b"/a#b"),
    "space": (400, b"/a b"),
    "control byte": (400, b"/a\x01b"),
    "CRLF": (400, b"/a\r\nb"),
    "NUL": (400, b"/a\0b"),
    "too long": (414, b"/" + b"a" * 8192),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_target_that_can_be_misunderstood_is_refused(gate: GateProcess, name: str) -> None:
    status, path = REFUSED[name]

    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(answer(b"fine"), port=gate.upstream_port) as upstream:
            async with await Http2Client.begin(gate.port) as client:
                assert await client.outcome(await client.request(path)) in (status, ErrorCodes.PROTOCOL_ERROR)
                assert await client.outcome(await client.request(b"/neighbour")) == 200
            assert [asked.target for asked in upstream.requests] == ["/neighbour"]

    run(test())


def test_a_head_that_is_too_large_is_answered_431(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Http2Client.begin(gate.port) as client:
            large = await client.request(b"/", *[(b"x-%d" % n, b"a" * 4000) for n in range(9)])
            many = await client.request(b"/", *[(b"x-a", b"1")] * 101)
            assert [await client.outcome(large), await client.outcome(many)] == [431, 431]

    run(test())


@pytest.mark.parametrize("method", [b"TRACE", b"CONNECT"])
def test_trace_and_connect_are_answered_405(gate: GateProcess, method: bytes) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Http2Client.begin(gate.port) as client:
            path = ((b":path", b"/"), (b":scheme", b"http")) if method == b"TRACE" else ()
            pseudo = ((b":method", method), *path, (b":authority", b"gate.test:443"))
            assert await client.outcome(await client.request(b"", pseudo=pseudo)) == 405

    run(test())


def test_a_body_unlike_its_length_resets_its_stream_and_its_neighbours_live(gate: GateProcess) -> None:
    async def test() -> None:
        whole: list[bytes] = []

        async def handler(call: Call) -> None:
            body = await call.read_body()
            whole.append(body)
            await call.send(answer(body))

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Http2Client.begin(gate.port) as client:
                length = (b"content-length", b"5")
                long, short, neighbour = [
                    await client.request(b"/", length, method=b"POST", end=False) for _ in range(3)
                ]
                await client.send_data(long, b"hello!")
                await client.send_data(short, b"hell", end=True)
                assert await client.outcome(long) == ErrorCodes.PROTOCOL_ERROR
                assert await client.outcome(short) == ErrorCodes.PROTOCOL_ERROR
                await client.send_data(neighbour, b"hello", end=True)
                assert await client.outcome(neighbour) == 200
            assert whole == [b"hello"]

    run(test())


def test_more_streams_than_allowed_are_refused_and_the_others_live(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Http2Client.begin(gate.port) as client:
            allowed = client.h2.remote_settings.max_concurrent_streams
            client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 10_000
            client.h2.remote_settings.acknowledge()
            streams = [await client.request(b"/tickets/1/events") for _ in range(allowed + 20)]
            for stream in streams[allowed:]:
                assert await client.outcome(stream) == ErrorCodes.REFUSED_STREAM
            for stream in streams[:allowed]:
                await client.until(lambda e: isinstance(e, h2.events.DataReceived) and e.stream_id == stream)  # noqa: B023 - it is awaited here

            client.h2.reset_stream(streams[0])
            again = await client.request(b"/tickets/1/events")
            await client.until(lambda e: isinstance(e, h2.events.DataReceived) and e.stream_id == again)

    run(test())


def opening(client: Http2Client, path: bytes, stream: int, method: bytes = b"GET", end: bool = True) -> HeadersFrame:
    """A request's head without indexing, so that it can be made in any order."""
    fields = ((b":method", method), *HEAD[1:], (b":path", path))
    frame = HeadersFrame(stream)
    frame.data = client.h2.encoder.encode(fields)
    frame.flags.add("END_HEADERS")
    if end:
        frame.flags.add("END_STREAM")
    return frame


@pytest.mark.parametrize("path", [b"/slow", b"/any/1/events", b"/tickets/1/events"])
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_rapid_reset_ends_the_connection_and_leaves_no_work(gate: GateProcess, path: bytes, method: bytes) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(silent, port=gate.upstream_port) as upstream:
            async with await Http2Client.begin(gate.port) as client:
                frames: list[Frame] = []
                for number in range(FLOOD):
                    stream = 2 * number + 1
                    frames += [
                        opening(client, path, stream, method, method == b"GET"),
                        RstStreamFrame(stream, error_code=8),
                    ]
                await client.send_frames(*frames)
                assert await client.farewell() == ErrorCodes.ENHANCE_YOUR_CALM
            await until(lambda: upstream.open == 0, "the upstream requests end")

    run(test())


def test_resets_at_a_human_pace_end_nothing_else(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(silent, port=gate.upstream_port) as upstream:
            async with await Http2Client.begin(gate.port) as client:
                for count in range(1, 21):
                    stream = await client.request(b"/slow")
                    await upstream.until(lambda it: len(it.requests) == count)  # noqa: B023 - it is awaited here
                    client.h2.reset_stream(stream)
                    await client.flush()
                    await until(lambda: upstream.open == 0, "the upstream request ends")
                upstream.answer_with(answer(b"fine"))
                assert await client.outcome(await client.request(b"/fine")) == 200

    run(test())


def test_a_reset_ends_its_upstream_request_while_its_body_is_not_read(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(silent, port=gate.upstream_port) as upstream:
            async with await Http2Client.begin(gate.port) as client:
                stream = await client.request(b"/slow", (b"content-length", b"60000"), method=b"POST", end=False)
                await client.send_data(stream, b"a" * 10_000)
                await upstream.until(lambda it: len(it.requests) == 1)
                client.h2.reset_stream(stream)
                await client.flush()
                await until(lambda: upstream.open == 0, "the upstream request ends", 0.4)

    run(test())


def ping(_: int) -> Frame:
    return PingFrame(0, b"12345678")


def settings(number: int) -> Frame:
    return SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: 65_535 + number % 2})


def priority(number: int) -> Frame:
    return PriorityFrame(2 * number + 3, depends_on=0, stream_weight=7, exclusive=True)


def empty_data(_: int) -> Frame:
    return DataFrame(1, b"")


def bad_window(_: int) -> Frame:
    return RstStreamFrame(1, error_code=0)


@pytest.mark.parametrize("make", [ping, settings, priority, empty_data, bad_window])
def test_a_flood_of_frames_without_purpose_ends_the_connection(gate: GateProcess, make: object) -> None:
    assert callable(make)

    async def test() -> None:
        async with gate.leaves_nothing(), ScriptedUpstream(silent, port=gate.upstream_port) as upstream:
            async with await Http2Client.begin(gate.port) as client:
                await client.request(b"/slow", method=b"POST", end=False)
                await client.send_frames(*(make(number) for number in range(FLOOD)))
                assert await client.farewell() == ErrorCodes.ENHANCE_YOUR_CALM
            await until(lambda: upstream.open == 0, "the upstream request ends")

    run(test())


def test_resets_provoked_by_bad_frames_are_counted(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Http2Client.begin(gate.port) as client:
            frames = []
            for number in range(FLOOD):
                frame = opening(client, b"/", 2 * number + 1)
                frame.data = client.h2.encoder.encode(((b":method", b"GET"), (b":wonder", b"1")))
                frames.append(frame)
            await client.send_frames(*frames)
            assert await client.farewell() == ErrorCodes.ENHANCE_YOUR_CALM

    run(test())


def test_a_head_in_endless_continuations_ends_the_connection(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Http2Client.begin(gate.port) as client:
            first = HeadersFrame(1, client.h2.encoder.encode(HEAD))
            await client.send_frames(first, *[ContinuationFrame(1, b"")] * FLOOD)
            await client.read_to_end()

    run(test())


def test_a_compressed_head_that_grows_without_end_ends_the_connection(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Http2Client.begin(gate.port) as client:
            memory = gate.memory()
            frame = opening(client, b"/", 1)
            client.h2.encoder.encode([(b"x-bomb", b"a" * 3000)])
            frame.data = client.h2.encoder.encode(((b":method", b"GET"),)) + b"\xbe" * 16_000
            await client.send_frames(frame)
            await client.read_to_end()
            assert gate.memory() - memory < 8 * 2**20

    run(test())


def test_frames_of_no_known_stream_or_size_end_their_connection_only(gate: GateProcess) -> None:
    async def test() -> None:
        wrong = [
            DataFrame(99, b"hello"),
            WindowUpdateFrame(0, 2**31 - 1),
            HeadersFrame(2, b"\x82", flags=["END_HEADERS"]),
            DataFrame(1, b"a" * 20_000),
        ]
        async with gate.leaves_nothing():
            for frame in wrong:
                async with await Http2Client.begin(gate.port) as client:
                    await client.request(b"/tickets/1/events")
                    await client.send_frames(frame)
                    await client.read_to_end()

    run(test())


def test_an_upload_nobody_reads_does_not_stop_its_neighbours(gate: GateProcess) -> None:
    async def test() -> None:
        async def handler(call: Call) -> None:
            if call.asked.target == "/unread":
                await asyncio.sleep(0.3)
                await call.read_body()
            await call.send(answer(b"fine"))

        async with gate.leaves_nothing(), ScriptedUpstream(handler, port=gate.upstream_port):
            async with await Http2Client.begin(gate.port) as client:
                stuck = await client.request(b"/unread", method=b"POST", end=False)
                for _ in range(6):
                    await client.send_data(stuck, b"a" * 10_000)
                assert await client.outcome(await client.request(b"/fine")) == 200
                assert not [
                    e
                    for e in client.events
                    if getattr(e, "stream_id", 0) == stuck and isinstance(e, h2.events.ResponseReceived)
                ]
                await client.send_data(stuck, b"", end=True)
                assert await client.outcome(stuck) == 200

    run(test())


def test_an_answer_before_the_body_stops_the_upload_without_error(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing(), await Http2Client.begin(gate.port) as client:
            stream = await client.request(b"/_ssegate/nothing", method=b"POST", end=False)
            for _ in range(6):
                await client.send_data(stream, b"a" * 10_000)
            reset = await client.until(lambda event: isinstance(event, h2.events.StreamReset))
            assert isinstance(reset, h2.events.StreamReset)
            assert (client.status(stream), reset.error_code) == (404, ErrorCodes.NO_ERROR)
            # Its bytes are given back to the connection's window: others have all of it.
            await client.until(lambda event: isinstance(event, h2.events.WindowUpdated) and not event.stream_id)
            for _ in range(12):
                other = await client.request(b"/hooks/tickets", method=b"POST", end=False)
                await client.send_data(other, b"a" * 10_000, end=True)
                assert await client.outcome(other) in (202, 400)

    run(test())


def test_a_connection_that_dies_in_its_preface_leaves_nothing(gate: GateProcess) -> None:
    async def test() -> None:
        async with gate.leaves_nothing():
            for cut in (10, 16, 20, 24, 30):
                async with await Http2Client.connect(gate.port) as client:
                    client.h2.initiate_connection()
                    await client.send(client.h2.data_to_send()[:cut])

    run(test())


def test_a_connection_on_which_nothing_is_asked_is_idle(tmp_path: Path) -> None:
    async def test(brief: GateProcess) -> None:
        async with brief.leaves_nothing(), await Http2Client.begin(brief.port) as client:
            await client.read_to_end()

    brief = GateProcess(CONFIG.replace("keep_alive: 20s", "keep_alive: 300ms"), tmp_path)
    try:
        run(test(brief))
    finally:
        brief.stop()
