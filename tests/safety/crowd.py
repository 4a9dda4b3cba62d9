"""Two viewers, and sometimes a third, at a gate with every kind of guard before every kind of route, who take one step after the other.

The backend's every answer carries the name of whom it was asked for. Whatever arrives at a viewer is looked at: its own name must be in
it, and nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import h2.events

from ssegate.core.event import EventStreamDecoder
from tests.e2e.gate import Edge, RunningGate, make_config, running_gate
from tests.guards import WhoAmI, says_who
from tests.safety.harness import PATIENCE, Client, Http2Client
from tests.tokens import Issuer
from tests.upstream.scripted import Asked, Call, ScriptedUpstream, answer, turn_over

ADA, GRACE, ZOE = "ada.one", "grace.two", "zoe.three"
PEOPLE = (ADA, GRACE, ZOE)
"""No cursor, name of a stream or ticket has a dot, so none of them can look like one of these."""

ISSUES = Issuer("HS256", kid=None)
EDGE = Edge("native", "1.1")
SERVER = "drain: {timeout: 100ms}"

KINDS = ("session", "user", "partner")
"""The guards."""

CONTROL = frozenset({"reset", "fault", "recovered", "end", "expiring"})
SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"


# The configuration


@dataclass(frozen=True)
class Kind:
    """One kind of route, as its viewers know it."""

    path: str
    """`{me}` stands for a viewer's name."""
    auth: tuple[str, ...]
    source: str
    method: str = "GET"
    more: str = ""
    is_own: bool = False
    """Whether each request has a stream of its own."""

    def yaml(self, edition: int) -> str:
        """The route; it is another one in each edition."""
        auth = f"[{', '.join(self.auth)}]" if self.auth else "none"
        path = self.path.replace("{me}", "{id}")
        methods = f", methods: [{self.method}]" if self.method != "GET" else ""
        history = f", history: {{events: {100 + edition}}}"
        return f'  - {{path: "{path}", auth: {auth}{methods}{history}, {self.source}{self.more}}}\n'


EVERY = "every: 40ms, linger: 100ms"
ROUTES = {
    "polled": Kind("/polled", ("session", "user"), f'poll: {{get: "/of/{{identity}}?t={{claims.tenant}}", {EVERY}}}'),
    "forwarded": Kind("/forwarded", ("session",), f"poll: {{get: /forwarded, forward: [cookie], {EVERY}}}"),
    "told": Kind("/told", ("partner", "session"), f"poll: {{get: /told, {EVERY}}}, emit: {{as: patch}}"),
    "allowed": Kind(
        "/allowed/{me}", ("user", "partner", "session"), f'poll: {{get: "/of/{{id}}", {EVERY}}}', more=', allow: "params.id == identity"',
    ),
    "feed": Kind(
        "/feed", ("user", "session"), f'feed: {{get: "/feed/{{identity}}?after={{cursor}}", items: data, next: "data[-1].id", start: beginning, {EVERY}}}',
    ),
    "shared": Kind("/shared", ("partner", "user"), 'stream: {get: "/stream/{identity}", format: ndjson, linger: 100ms}'),
    "mine": Kind("/mine", ("session",), "stream: {get: /mine, format: ndjson, forward: [cookie], linger: 300ms}", is_own=True),
    "chat": Kind(
        "/chat", ("session", "user", "partner"), 'stream: {post: /generate, format: ndjson, done: "done == `true`", linger: 300ms}', method="POST", is_own=True,
    ),
    "job": Kind(
        "/jobs", ("user", "session"),
        "task: {start: {post: /jobs/start}, get: \"/jobs/{start.body.id}\", every: 40ms, linger: 300ms, done: \"state == 'done'\", result: of}",
        method="POST", is_own=True,
    ),
    "hooked": Kind("/hooked", ("user", "session", "partner"), "webhook: {at: /hooks/hooked, verify: none, match: {identity: body.to}}"),
    "housed": Kind("/housed", ("session", "user"), 'webhook: {at: /hooks/housed, verify: none, match: {"claims.tenant": body.house}}'),
    "addressed": Kind(
        "/addressed/{me}", ("session", "partner"), "webhook: {at: /hooks/addressed, verify: none, match: {id: body.to}}", more=', allow: "params.id == identity"',
    ),
    "public": Kind("/public", (), f"poll: {{get: /public, {EVERY}}}"),
}  # fmt: skip
JOINED = ("polled", "forwarded", "told", "allowed", "feed", "shared", "hooked", "housed", "addressed", "public")
"""Those that may be joined."""


def house(name: str) -> str:
    """The tenant that somebody belongs to."""
    return f"house.of.{name}"


@dataclass
class Setting:
    """What the configuration says that changes now and then."""

    keys: dict[str, str]
    """API keys, by identity."""
    editions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROUTES, 0))
    require: str = "`true`"
    recheck_ms: int = 200

    def yaml(self, api: str, who: str) -> str:
        """What stands below `server` and `admin`."""
        values = ", ".join(f"{name}: {key}" for name, key in self.keys.items())
        routes = "".join(kind.yaml(self.editions[name]) for name, kind in ROUTES.items())
        topics = ", ".join('"' + ROUTES[name].path.replace("{me}", "{id}") + '"' for name in JOINED)
        return f"""
auth:
  session: {{forward: {{url: "{who}", send: [cookie], identity: x-user-id, claims: json, cache: 200ms, recheck: {self.recheck_ms}ms}}}}
  user: {{jwt: {{issuer: "{ISSUES.issuer}", audience: {ISSUES.audience}, keys: {{secret: {ISSUES.secret}}}, from: [header, "cookie:jwt", ticket], require: "{self.require}"}}}}
  partner: {{keys: {{header: x-api-key, values: {{{values}}}}}}}
upstreams:
  api: {{url: "{api}", connections: 200, headers: {{X-User: "{{identity}}"}}, backoff: {{min: 20ms, max: 50ms}}}}
limits: {{clients: 1000}}
defaults: {{retry: 1s}}
routes:
{routes}  - {{path: /live, topics: [{topics}]}}
  - {{path: "/guarded/{{rest:path}}", auth: [session, user], proxy: {{}}}}
  - {{path: "/{{rest:path}}", proxy: {{}}}}
"""


# The backend


class Backend(ScriptedUpstream):
    """Says in every answer whom it was asked for, and keeps a list of the requests that say of more than one."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.of_session: dict[str, str] = {}
        """Whose a session is or was: none is ever two viewers'."""
        self.mixed: list[Asked] = []
        self.bare: list[Asked] = []
        """Requests with a credential that the route does not send along, or with a ticket."""
        self.n: Counter[str] = Counter()
        self.hold: asyncio.Event | None = None
        """What answers that go on wait for before they begin."""
        self._lives: dict[str, set[asyncio.Queue[int]]] = {name: set() for name in PEOPLE}
        self._jobs = 0

    def happen(self, name: str) -> None:
        """Something is new for somebody."""
        self.n[name] += 1
        for queue in self._lives[name]:
            queue.put_nowait(self.n[name])

    def whom(self, asked: Asked) -> str:
        """Whom a request is for; empty when it does not say."""
        found = {name for name in PEOPLE if name in asked.target}
        found |= {value.decode() for name, value in asked.headers if name.lower() == b"x-user"}
        if session := re.search(r"session=([\w.-]+)", asked.get("cookie") or ""):
            found |= {self.of_session[session[1]]} if session[1] in self.of_session else set()
        if len(found) > 1:
            self.mixed.append(asked)
        return min(found, default="")

    async def _answer(self, call: Call) -> None:
        asked = call.asked
        path = asked.target.partition("?")[0]
        self._look(asked, path)
        name = self.whom(asked)
        await asyncio.sleep(random.random() * 0.003)
        if path.startswith("/feed/"):
            after = int((re.findall(r"after=(\d+)", asked.target) or [0])[0])
            items = [{"id": n, "of": name} for n in range(after + 1, self.n[name] + 1)]
            await call.send(answer(json.dumps({"data": items}).encode()))
        elif path.startswith("/stream/") or path in ("/generate", "/mine"):
            await call.read_body()
            await self._live(call, name, 0 if path.startswith("/stream/") else 4)
        elif path == "/jobs/start":
            self._jobs += 1
            await call.read_body()
            await call.send(answer(json.dumps({"id": f"{self._jobs}-{name}-{self.n[name]}"}).encode(), status=201))
        elif path.startswith("/jobs/"):
            state = "done" if self.n[name] > int(path.rpartition("-")[2]) + 2 else "busy"
            await call.send(answer(json.dumps({"of": name, "n": self.n[name], "state": state}).encode()))
        else:
            await call.read_body()
            document = {"n": self.n.total()} if path == "/public" else {"of": name, "n": f"{name} {self.n[name]}"}
            await call.send(answer(json.dumps(document).encode(), (b"Content-Type", b"application/json")))

    def _look(self, asked: Asked, path: str) -> None:
        has_own = any(asked.get(name) for name in ("authorization", "cookie", "x-api-key"))
        if "sst_" in asked.target or (has_own and path not in ("/forwarded", "/mine") and "/echo" not in path):
            self.bare.append(asked)

    async def _live(self, call: Call, name: str, most: int) -> None:
        """Lines that come as things happen; with `most`, so many. Then the connection ends, and says so before."""
        fields = ("Content-Type: application/x-ndjson", "Transfer-Encoding: chunked", "Connection: close")
        head = "\r\n".join(("HTTP/1.1 200 OK", *fields, "", "")).encode()
        if self.hold is not None:
            await self.hold.wait()
        queue: asyncio.Queue[int] = asyncio.Queue()
        self._lives[name].add(queue)
        gone = asyncio.ensure_future(call.closed())
        try:
            await call.send(head)
            queue.put_nowait(self.n[name])
            sent = 0
            while not gone.done():
                news = asyncio.ensure_future(queue.get())
                await asyncio.wait((news, gone), return_when=asyncio.FIRST_COMPLETED)
                if not news.done():
                    news.cancel()
                    break
                sent += 1
                line = json.dumps({"of": name, "n": news.result(), "done": sent == most}).encode() + b"\n"
                await call.send(b"%x\r\n%b\r\n" % (len(line), line))
                if sent == most:
                    await call.send(b"0\r\n\r\n")
                    break
        finally:
            self._lives[name].discard(queue)
            gone.cancel()
            call.close()


# The network: connections that all viewers share, as behind a proxy


Headers = tuple[tuple[str, str], ...]


@dataclass
class Opened:
    """A response: its head, and how to read on and leave. `read` is empty at the end."""

    status: int
    headers: list[tuple[str, str]]
    read: Callable[[], Awaitable[bytes]]
    close: Callable[[], None]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    async def whole(self) -> bytes:
        parts = []
        async with asyncio.timeout(PATIENCE):
            while piece := await self.read():
                parts.append(piece)
        return b"".join(parts)


class OneByOne:
    """HTTP/1.1: what has been answered whole leaves its connection to whoever asks next."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Client] = []
        self._clients: list[Client] = []
        self.reused = 0

    async def ask(self, method: str, target: str, headers: Headers, body: bytes = b"") -> Opened:
        lines = [f"{method} {target} HTTP/1.1", "Host: gate.test", *(f"{name}: {value}" for name, value in headers)]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        data = "\r\n".join((*lines, "", "")).encode() + body
        while True:
            is_fresh = not self._idle
            client = await Client.connect(self._port) if is_fresh else self._idle.pop()
            self._clients += [client] if is_fresh else []
            try:
                await client.send(data)
                head = await client.read_until(b"\r\n\r\n")
                break
            except (ConnectionError, asyncio.IncompleteReadError):
                client.writer.transport.abort()
                if is_fresh:
                    raise
        self.reused += not is_fresh
        first, *fields = head.decode("latin-1").split("\r\n")[:-2]
        pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in fields)]
        return self._opened(client, method, int(first.split()[1]), pairs)

    def _opened(self, client: Client, method: str, status: int, pairs: list[tuple[str, str]]) -> Opened:
        fields = dict(pairs)
        left = 0 if method == "HEAD" or status in (204, 304) else int(fields.get("content-length", -1))
        is_over = False

        def keep() -> bytes:
            nonlocal is_over
            if not is_over and fields.get("connection") != "close":
                self._idle.append(client)
            elif not is_over:
                client.writer.transport.abort()
            is_over = True
            return b""

        async def read() -> bytes:
            nonlocal left, is_over
            if is_over or left == 0:
                return keep()
            try:
                if left > 0:
                    data = await client.reader.readexactly(left)
                    left = 0
                    return data
                size = int(await client.reader.readuntil(b"\r\n"), 16)
                piece = await client.reader.readexactly(size + 2)
            except (ConnectionError, asyncio.IncompleteReadError):
                is_over = True
                client.writer.transport.abort()
                return b""
            return piece[:-2] or keep()

        def close() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                client.writer.transport.abort()

        return Opened(status, pairs, read, close)

    async def aclose(self) -> None:
        for client in self._clients:
            client.writer.transport.abort()
        await turn_over()


class AllAtOnce:
    """HTTP/2: the streams of all viewers on one connection, and on another one when that has seen many."""

    MOST = 40

    def __init__(self, port: int) -> None:
        self._port = port
        self._client: Http2Client | None = None
        self._queues: dict[tuple[int, int], asyncio.Queue[h2.events.Event | None]] = {}
        self._pumps: dict[Http2Client, asyncio.Task[None]] = {}
        self._used = 0
        self._lock = asyncio.Lock()
        self.most_at_once = 0

    async def ask(self, method: str, target: str, headers: Headers, body: bytes = b"") -> Opened:
        async with self._lock:
            if self._client is None or self._client.is_ended or self._used >= self.MOST:
                self._client = await Http2Client.begin(self._port)
                self._pumps[self._client] = asyncio.create_task(self._pump(self._client))
                self._used = 0
            self._used += 1
            client = self._client
            fields = [(name.lower().encode(), value.encode()) for name, value in headers]
            fields += [(b"content-length", b"%d" % len(body))] if body else []
            stream = client.h2.get_next_available_stream_id()
            queue = self._queues[id(client), stream] = asyncio.Queue()
            await client.request(target.encode(), *fields, method=method.encode(), end=not body)
            if body:
                await client.send_data(stream, body, end=True)
        self.most_at_once = max(self.most_at_once, sum(key[0] == id(client) for key in self._queues))
        return await self._opened(client, stream, queue)

    async def _opened(self, client: Http2Client, stream: int, queue: asyncio.Queue[h2.events.Event | None]) -> Opened:
        def forget() -> None:
            self._queues.pop((id(client), stream), None)

        async def read() -> bytes:
            while (event := await queue.get()) is not None:
                if isinstance(event, h2.events.DataReceived) and event.data:
                    return bytes(event.data)
                if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                    break
            queue.put_nowait(None)
            forget()
            return b""

        def close() -> None:
            if self._queues.pop((id(client), stream), None) is not None and not client.is_ended:
                with suppress(Exception):  # it has just ended by itself
                    client.h2.reset_stream(stream, 8)
                    client.writer.write(client.h2.data_to_send())

        async with asyncio.timeout(PATIENCE):
            head = await queue.get()
        assert isinstance(head, h2.events.ResponseReceived), head
        pairs = [(name.decode(), value.decode("latin-1")) for name, value in head.headers]
        return Opened(int(dict(pairs)[":status"]), pairs[1:], read, close)

    async def _pump(self, client: Http2Client) -> None:
        while not client.is_ended:
            for event in await client.receive():
                queue = self._queues.get((id(client), getattr(event, "stream_id", None) or 0))
                if queue is not None:
                    queue.put_nowait(event)
            client.events.clear()
        for key, queue in self._queues.items():
            if key[0] == id(client):
                queue.put_nowait(None)

    async def aclose(self) -> None:
        for client, pump in self._pumps.items():
            pump.cancel()
            client.writer.transport.abort()
        await asyncio.gather(*self._pumps.values(), return_exceptions=True)


# Who does what


STEPS = {
    "open": 30, "come_back": 15, "join": 12, "name": 12, "ticket": 8, "old_ticket": 6, "leave": 20, "deliver": 30, "relay": 8, "log_out": 2,
    "revoke": 1, "reload": 4,
}  # fmt: skip
"""How often each is taken, beside the others."""


@dataclass
class Person:
    """A viewer, and what it has."""

    name: str
    session: str
    token: str
    key: str
    cursors: list[str] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    """Cursors of joined streams."""
    streams: list[str] = field(default_factory=list)
    """Names of its own streams."""
    tickets: list[tuple[str, str]] = field(default_factory=list)
    """Tickets that have been used, and the targets they are for."""

    def credential(self, kind: str, *, in_cookie: bool = False) -> tuple[str, str]:
        if kind == "session":
            return ("Cookie", f"session={self.session}")
        if kind == "user":
            return ("Cookie", f"jwt={self.token}") if in_cookie else ("Authorization", f"Bearer {self.token}")
        return ("X-Api-Key", self.key)


@dataclass(eq=False)
class Reading:
    """A stream that is open, whose it is, and what has come."""

    person: Person
    kind: str
    media: str
    topics: tuple[str, ...]
    """Of a joined stream, as they were asked for."""
    opened: Opened
    raw: bytearray = field(default_factory=bytearray)
    events: int = 0


class World:
    """Everything, and the steps that can be taken in it."""

    def __init__(
        self, gate: RunningGate, backend: Backend, who: WhoAmI, setting: Setting, rng: random.Random, server: str
    ) -> None:
        self._server = server
        self.gate, self.backend, self.who, self.setting, self.rng = gate, backend, who, setting, rng
        self.wires = (OneByOne(gate.port), AllAtOnce(gate.port))
        self.count = 0
        self.people = [self.person(name) for name in PEOPLE]
        self.readings: dict[Reading, asyncio.Task[None]] = {}
        self.seen: Counter[str] = Counter()
        """What happened, by kind: so that it is known that it did."""
        self.refusals: dict[tuple[str, ...], tuple[object, bytes]] = {}
        self.failures: list[BaseException] = []

    def fresh(self, what: str) -> str:
        """A word that there has never been; nobody's name is in it."""
        self.count += 1
        return f"{what.replace('.', '')}-{self.count}"

    def person(self, name: str) -> Person:
        person = Person(name, "", "", self.setting.keys[name])
        self.log_in(person)
        self.who.claims[name] = {"tenant": house(name)}
        return person

    def log_in(self, person: Person) -> None:
        person.session = self.fresh("s")
        self.backend.of_session[person.session] = person.name
        self.who.sessions[person.session] = person.name
        person.token = ISSUES.token(sub=person.name, tenant=house(person.name), jti=self.fresh("t"))

    # Checks

    def foreign(self, person: Person, data: bytes) -> list[str]:
        return [name for name in PEOPLE if name != person.name and name.encode() in data]

    def check_refusal(self, label: str, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        """A refusal of one kind is the same for everybody, whatever there is: byte for byte, but for the date and the framing."""
        fields = sorted(pair for pair in headers if pair[0] != "date")
        kind = next((value for name, value in fields if name == "content-type"), "")
        known = self.refusals.setdefault((label, str(status), kind), (fields, body))
        assert known == (fields, body), f"{label}: {known} and {(fields, body)}"
        self.seen[f"{status}"] += 1

    def check_told(self, reading: Reading, type_: str, data: str) -> None:
        """What an event says is of this viewer; on a public route of nobody."""
        topic, _, name = type_.rpartition("#") if reading.topics else ("", "", type_)
        label = reading.kind if not reading.topics else self.label(topic or name)
        if name in CONTROL:
            self.seen[f"{label} {name}"] += 1
            return
        reading.events += 1
        self.seen[f"{label} event"] += 1
        self.seen[f"{reading.media} {label}"] += 1
        if label == "public":
            assert not any(person in data for person in PEOPLE), (type_, data)
        else:
            assert reading.person.name in data, (reading.person.name, reading.kind, type_, data)

    def check_whole(self, person: Person, kind: str, said: Any) -> None:
        """The same of a state, or of a list of events, in one answer."""
        for event in said if isinstance(said, list) else [{"data": said}]:
            if event.get("event") not in CONTROL:
                self.seen[f"{JSON} {kind}"] += 1
                is_own = person.name in json.dumps(event["data"])
                assert is_own == (kind != "public"), (person.name, kind, said)

    def label(self, topic: str) -> str:
        return topic.split("/")[1]

    # Requests

    async def ask(self, rng: random.Random, method: str, target: str, headers: Headers, body: bytes = b"") -> Opened:
        return await rng.choice(self.wires).ask(method, target, headers, body)

    def credentials(self, rng: random.Random, person: Person, wanted: Sequence[str]) -> Headers:
        """One that will do, mostly; sometimes others, and sometimes a header that says it is somebody else."""
        kinds = {rng.choice(wanted)} if wanted and rng.random() < 0.8 else set()
        kinds |= {kind for kind in KINDS if rng.random() < 0.2}
        found = [
            person.credential(kind, in_cookie=kind == "user" and "session" not in kinds and rng.random() < 0.2)
            for kind in sorted(kinds)
        ]
        if rng.random() < 0.3:
            found.append(("X-User", self.other(rng, person).name))
        return tuple(found)

    def other(self, rng: random.Random, person: Person) -> Person:
        return rng.choice([each for each in self.people if each is not person])

    async def open(
        self,
        rng: random.Random,
        person: Person,
        kind: str,
        target: str,
        headers: Headers,
        topics: tuple[str, ...] = (),
        method: str = "GET",
    ) -> Opened:
        """Open it, check what comes, and read on in the background if it is a stream."""
        body = b'{"prompt": "hi"}' if method == "POST" else b""
        opened = await self.ask(rng, method, target, headers, body)
        media = (opened.get("content-type") or "").partition(";")[0]
        head = repr(opened.headers).encode()
        assert not self.foreign(person, head), head
        if opened.status in (401, 403, 404):
            content = await opened.whole()
            assert not self.foreign(person, content), content
            self.check_refusal(f"{method} {kind}", opened.status, opened.headers, content)
        elif opened.status == 200 and media in (SSE, NDJSON):
            if name := opened.get("ssegate-stream"):
                person.streams.append(name)
            self.seen[f"{kind} open"] += 1
            reading = Reading(person, kind, media, topics, opened)
            self.readings[reading] = asyncio.create_task(self._read(reading))
        elif opened.status == 200:
            content = await opened.whole()
            assert not self.foreign(person, content), (person.name, kind, content)
            if method != "HEAD":
                self.check_whole(person, kind, json.loads(content))
        else:
            assert opened.status in (204, 406, 503), (opened.status, kind, target)
            await opened.whole()
            self.seen[f"{opened.status}"] += 1
        return opened

    async def _read(self, reading: Reading) -> None:
        """Read to the end, and look at each byte."""
        decoder, line = EventStreamDecoder(), b""
        try:
            while data := await reading.opened.read():
                reading.raw += data
                if reading.media == SSE:
                    for event in decoder.receive(data):
                        self.check_told(reading, event.type, event.data)
                        if event.id:
                            kept = reading.person.vectors if reading.topics else reading.person.cursors
                            kept.append(event.id)
                            del kept[:-20]
                else:
                    *lines, line = (line + data).split(b"\n")
                    for each in filter(None, lines):
                        said = json.loads(each)
                        if "data" in said:
                            self.check_told(reading, said.get("event", ""), json.dumps(said["data"]))
                plain = bytes(reading.raw)
                for topic in reading.topics:  # what was asked for is told again, whatever it is
                    plain = plain.replace(f"{topic}#end".encode(), b"")
                assert not self.foreign(reading.person, plain), (reading.person.name, reading.kind, plain[-500:])
                mark = b"\n\n" if reading.media == SSE else b"\n"
                if (at := reading.raw.rfind(mark)) >= 0:
                    del reading.raw[: at + len(mark)]
        except asyncio.CancelledError:
            raise
        except BaseException as failure:
            self.failures.append(failure)
        finally:
            reading.opened.close()
            self.readings.pop(reading, None)

    def leave(self, reading: Reading) -> None:
        self.readings[reading].cancel()

    # Steps

    def target(self, kind: str, person: Person) -> str:
        return ROUTES[kind].path.replace("{me}", person.name)

    async def step_open(self, rng: random.Random, person: Person, *, cursor: str | None = None) -> None:
        kind = rng.choice([*ROUTES])
        route = ROUTES[kind]
        whose = person if rng.random() < 0.85 else self.other(rng, person)
        headers = self.credentials(rng, person, route.auth)
        accept = rng.choice((SSE, SSE, SSE, NDJSON, JSON))
        if accept == JSON and route.is_own:
            accept = SSE
        target = self.target(kind, whose)
        if accept == JSON and rng.random() < 0.5:
            target += "?wait=100ms"
        headers += (("Accept", accept),)
        if cursor is not None:
            headers += (("Last-Event-ID", cursor),)
        opened = await self.open(rng, person, kind, target, headers, method=route.method)
        if whose is not person and "{me}" in route.path:
            assert opened.status in (401, 403, 503) or opened.get("content-type") == SSE, (kind, opened.status)
            self.seen["somebody else's"] += opened.status == 403

    async def step_come_back(self, rng: random.Random, person: Person) -> None:
        """With a cursor of one's own, or somebody else's."""
        whose = person if rng.random() < 0.5 else self.other(rng, person)
        if whose.cursors:
            await self.step_open(rng, person, cursor=rng.choice(whose.cursors))
            self.seen["cursor"] += 1

    async def step_join(self, rng: random.Random, person: Person) -> None:
        chosen = rng.sample(JOINED, rng.randint(1, 6))
        topics = [self.target(kind, person) for kind in chosen]
        if rng.random() < 0.5:
            topics.append(self.target(rng.choice(("allowed", "addressed")), self.other(rng, person)))
        if rng.random() < 0.3:
            topics.append("/allowed/nobody.at.all")
        headers: Headers = (("Accept", rng.choice((SSE, SSE, NDJSON))), *self.credentials(rng, person, KINDS))
        whose = person if rng.random() < 0.5 else self.other(rng, person)
        vectors = whose.vectors if rng.random() < 0.8 else whose.cursors
        if vectors and rng.random() < 0.6:
            headers += (("Last-Event-ID", rng.choice(vectors)),)
            self.seen["vector"] += 1
        target = "/live?" + "&".join(f"topic={quote(topic, safe='/')}" for topic in topics)
        await self.open(rng, person, "live", target, headers, tuple(topics))

    async def step_name(self, rng: random.Random, person: Person) -> None:
        """By the name of a stream of one's own, of somebody else, of nobody."""
        whose = person if rng.random() < 0.5 else self.other(rng, person)
        if not whose.streams:
            return
        name = rng.choice(whose.streams[-5:])
        if rng.random() < 0.2:
            whose, name = self.other(rng, person), name[:-22] + "A" * 22
        kind = {"/mine": "mine", "/chat": "chat", "/jobs": "job"}[name.partition("/s/")[0]]
        headers: Headers = tuple(person.credential(each) for each in ROUTES[kind].auth)
        if rng.random() < 0.5 and whose.cursors:
            headers += (("Last-Event-ID", rng.choice(whose.cursors)),)
        method = "GET" if rng.random() < 0.8 else "HEAD"
        opened = await self.open(rng, person, f"{kind} name", name, headers, method=method)
        if whose is not person:
            assert opened.status in (401, 403, 404, 503) or opened.get("ssegate-stream") is None, (name, opened.status)
            self.seen["somebody else's name"] += opened.status == 404

    async def step_ticket(self, rng: random.Random, person: Person) -> None:
        """Buy a ticket with any credential, for one's own path; it is then all that is shown."""
        kind = rng.choice(
            [
                each
                for each, route in ROUTES.items()
                if route.auth and route.method == "GET" and each not in ("forwarded", "mine")
            ]
            + ["live"]
        )
        path = "/live" if kind == "live" else self.target(kind, person)
        topics = (
            self.target("hooked", person),
            self.target("allowed", person),
            self.target("addressed", self.other(rng, person)),
        )
        auth = KINDS if kind == "live" else ROUTES[kind].auth
        headers = (person.credential(rng.choice(auth)), ("Content-Type", JSON))
        bought = await self.ask(rng, "POST", "/_ssegate/ticket", headers, json.dumps({"path": path}).encode())
        body = await bought.whole()
        if bought.status != 200:
            assert bought.status in (401, 403, 503), (bought.status, path)
            return
        ticket = json.loads(body)["ticket"]
        target = f"{path}?ticket={ticket}" + ("".join(f"&topic={topic}" for topic in topics) if kind == "live" else "")
        opened = await self.open(rng, person, kind, target, (("Accept", SSE),), topics if kind == "live" else ())
        if opened.get("ssegate-resumed") is not None:  # it has opened a stream, and was not told to come back
            self.seen["ticket"] += 1
            person.tickets.append((kind, target))
            del person.tickets[:-5]

    async def step_old_ticket(self, rng: random.Random, person: Person) -> None:
        """Somebody else's ticket that was used, with what one has: a cursor of one's own, a path of one's own."""
        whose = self.other(rng, person)
        if not whose.tickets:
            return
        kind, target = rng.choice(whose.tickets)
        headers: Headers = (("Accept", SSE), *self.credentials(rng, person, KINDS))
        cursors = person.vectors if kind == "live" else person.cursors
        if cursors and rng.random() < 0.8:
            headers += (("Last-Event-ID", rng.choice(cursors)),)
        if rng.random() < 0.3 and kind != "live":
            target = self.target(kind, person) + target[target.index("?") :]
        opened = await self.ask(rng, "GET", target, headers)
        refused = await opened.whole() if opened.status == 401 else b""
        opened.close()
        is_sent_away = opened.status == 503 or (opened.status == 200 and opened.get("ssegate-resumed") is None)
        assert opened.status == 401 or is_sent_away, (opened.status, target)
        if opened.status == 401:
            self.check_refusal(f"GET {kind} by ticket", 401, opened.headers, refused)
            self.seen["old ticket"] += 1

    async def step_leave(self, rng: random.Random, person: Person) -> None:
        mine = [reading for reading in self.readings if reading.person is person]
        for reading in rng.sample(mine, min(len(mine), 1 + len(mine) // 4)):
            self.leave(reading)

    async def step_deliver(self, rng: random.Random, person: Person) -> None:
        self.backend.happen(person.name)
        hook = rng.choice(("hooked", "housed", "addressed"))
        body = {"to": person.name, "house": house(person.name), "n": self.backend.n[person.name]}
        opened = await self.ask(rng, "POST", f"/hooks/{hook}", (("Content-Type", JSON),), json.dumps(body).encode())
        content = await opened.whole()
        assert (opened.status, content) == (200, b"")

    async def step_relay(self, rng: random.Random, person: Person) -> None:
        """Through the gate to the backend, which hears of nobody but this one."""
        path = rng.choice(("/echo", "/guarded/echo"))
        headers = self.credentials(rng, person, ("session",) if path == "/echo" else ("session", "user"))
        opened = await self.ask(rng, rng.choice(("GET", "POST")), path, headers)
        content = await opened.whole()
        assert not self.foreign(person, content), content
        if path == "/guarded/echo":
            assert opened.status in (200, 401, 403, 503), opened.status
            assert (person.name.encode() in content) == (opened.status == 200), content
        self.seen[f"relay {opened.status}"] += 1

    async def step_log_out(self, rng: random.Random, person: Person) -> None:
        """And in again, as the same one, in another session."""
        del self.who.sessions[person.session]
        self.log_in(person)

    async def step_revoke(self, rng: random.Random, person: Person) -> None:
        reply = await self.gate.admin.ask("POST", "/revoke", body=json.dumps({"identity": person.name}).encode())
        assert reply.status == 200
        self.seen["revoked"] += json.loads(reply.body)["streams"]
        self.who.sessions.pop(person.session, None)
        self.log_in(person)
        self.change_key(person)

    def change_key(self, person: Person) -> None:
        person.key = self.setting.keys[person.name] = self.fresh("key")
        self.reload()

    async def step_reload(self, rng: random.Random, person: Person) -> None:
        """Another edition of a route, a new key, a token that will not do, a backend that is asked more often, nothing."""
        what = rng.choice(("route", "route", "key", "require", "guard", "nothing"))
        if what == "route":
            self.setting.editions[rng.choice([*ROUTES])] += 1
        elif what == "key":
            self.change_key(person)
        elif what == "require":
            self.setting.require = rng.choice(("`true`", f"sub != '{person.name}'"))
        elif what == "guard":
            self.setting.recheck_ms += 1
        self.reload()
        self.seen[f"reload {what}"] += 1

    async def step_swap(self, rng: random.Random, person: Person) -> None:
        """Two keys change hands: what one opened with its own is now the other's."""
        other = self.other(rng, person)
        person.key, other.key = other.key, person.key
        self.setting.keys[person.name], self.setting.keys[other.name] = person.key, other.key
        self.reload()

    def reload(self) -> None:
        text = self.setting.yaml(self.backend.url, self.who.url)
        self.gate.service.gate.reload(make_config(EDGE.yaml(0, text, server=self._server, admin=0)))

    # The run

    async def run(self, steps: int, at_once: int = 5) -> None:
        """Take so many steps, some of them at once."""
        done = 0
        while done < steps:
            people = self.people if self.rng.random() < 0.3 else self.people[:2]
            names = self.rng.choices([*STEPS], [*STEPS.values()], k=self.rng.randint(1, at_once))
            if self.rng.random() < 0.02:
                names = ["swap"]  # alone: of a request that is under way nobody could say whose it is
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(self.take(name, random.Random(self.rng.random()), self.rng.choice(people)))
                    self.seen[f"step {name}"] += 1
            done += len(names)
            for reading in [*self.readings][:-40]:
                self.leave(reading)
            if self.failures:
                raise self.failures[0]
            if self.rng.random() < 0.2:
                await asyncio.sleep(self.rng.random() * 0.05)  # for what comes by itself: polls, rechecks, linger
        await self.hear()

    async def take(self, name: str, rng: random.Random, person: Person) -> None:
        """One step, a little earlier or later than the others."""
        await asyncio.sleep(rng.random() * 0.004)
        step: Callable[..., Awaitable[None]] = getattr(self, f"step_{name}")
        await step(rng, person)

    async def hear(self) -> None:
        """Everybody still hears of what happens."""
        for person in self.people:
            self.log_in(person)
            headers = (person.credential("session"), ("Accept", SSE))
            await self.open(self.rng, person, "hooked", "/hooked", headers)
        heard = self.seen["hooked event"]
        for person in self.people:
            body = json.dumps({"to": person.name}).encode()
            await (await self.ask(self.rng, "POST", "/hooks/hooked", (("Content-Type", JSON),), body)).whole()
        async with asyncio.timeout(PATIENCE):
            while self.seen["hooked event"] < heard + len(self.people) and not self.failures:
                await asyncio.sleep(0.01)  # the readers tell nobody
        if self.failures:
            raise self.failures[0]

    async def aclose(self) -> None:
        tasks = [*self.readings.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wire in self.wires:
            await wire.aclose()


async def says_who_slowly(who: WhoAmI, call: Call) -> None:
    """Something may happen between the question and the answer."""
    await asyncio.sleep(random.random() * 0.005)
    await says_who(who, call)


@asynccontextmanager
async def world(seed: int, server: str = SERVER) -> AsyncIterator[World]:
    """`server` has keys of that, which choose the edge."""
    print(f"seed {seed}")
    async with Backend() as backend, WhoAmI() as who:
        who.usually(says_who_slowly)
        setting = Setting({name: f"first-{number}" for number, name in enumerate(PEOPLE)})
        text = setting.yaml(backend.url, who.url)
        async with running_gate(EDGE, text, admin=True, server=server) as gate:
            made = World(gate, backend, who, setting, random.Random(seed), server)
            try:
                yield made
            finally:
                await made.aclose()
        assert not backend.mixed, [asked.head for asked in backend.mixed[:3]]
        assert not backend.bare, [asked.head for asked in backend.bare[:3]]
        told = [asked for asked in who.requests if b"sst_" in asked.head]
        assert not told, told[0].head
