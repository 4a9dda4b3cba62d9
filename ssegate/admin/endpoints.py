"""The admin listener's answers: is it alive, should it get requests, how is it doing, what became of its webhooks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from ssegate.admin.denials import Denials
from ssegate.admin.diary import Diary, Entry
from ssegate.admin.metrics import CONTENT_TYPE, Metrics
from ssegate.core.document import decode
from ssegate.edge.exchange import Answer, Request, problem, read_whole
from ssegate.errors import RejectedError, UndecodableError

_UNCACHED = (b"cache-control", b"no-store")
_TEXT = ((b"content-type", b"text/plain; charset=utf-8"), _UNCACHED)
_JSON = ((b"content-type", b"application/json"), _UNCACHED)
_DIARY = b"/webhooks"
_REVOKE = b"/revoke"
_MAX_BODY = 16 * 1024
_WANTED = 'send JSON such as {"identity": "u1"}'


class Operated(Protocol):
    """What can be asked of a gate, and done to it."""

    @property
    def is_ready(self) -> bool:
        """Whether new requests should be sent here."""
        ...

    @property
    def troubles(self) -> Sequence[str]:
        """What does not work though the gate does, a line each."""
        ...

    @property
    def diary(self) -> Diary:
        """The last deliveries of webhooks."""
        ...

    @property
    def denials(self) -> Denials:
        """The last viewers who were not let in."""
        ...

    def revoke(self, identity: str) -> int:
        """Put a viewer out; returns how many of its streams were ended."""
        ...

    async def redeliver(self, entry: Entry) -> Entry | None:
        """Take a delivery once more; None when its webhook is not there any more."""
        ...


class AdminEndpoints:
    """Answers `/livez`, `/readyz`, `/metrics`, `/denials`, `/webhooks`, `POST /webhooks/{id}/redeliver` and `POST /revoke`."""

    def __init__(self, gate: Operated, metrics: Metrics) -> None:
        self._gate = gate
        self._metrics = metrics

    def answer(self, request: Request) -> Answer | Awaitable[Answer]:
        """See `edge.exchange.Answering`."""
        path = request.target.partition(b"?")[0]
        if path.startswith(_DIARY + b"/"):
            return self._answer_entry(request.method, path[len(_DIARY) + 1 :].decode("latin-1"))
        if path == _REVOKE:
            return self._answer_revoke(request) if request.method == "POST" else _only(b"POST")
        answers: dict[bytes, Callable[[], Answer]] = {
            b"/livez": lambda: Answer(200, _TEXT, b"alive\n"),
            b"/readyz": self._answer_ready,
            b"/metrics": lambda: Answer(200, ((b"content-type", CONTENT_TYPE), _UNCACHED), self._metrics.render()),
            _DIARY: lambda: _shown([entry.shown() for entry in self._gate.diary]),
            b"/denials": lambda: _shown([denial.shown() for denial in self._gate.denials]),
        }
        if path not in answers:
            return problem(404, "here are /livez, /readyz, /metrics, /denials, /webhooks and /revoke")
        if request.method not in ("GET", "HEAD"):
            return problem(405, f"{request.method} is not served here", ((b"allow", b"GET, HEAD"),))
        return answers[path]()

    async def _answer_revoke(self, request: Request) -> Answer:
        try:
            document = decode(await read_whole(request.body, _MAX_BODY, request.headers))
        except (RejectedError, UndecodableError) as error:
            return problem(error.status if isinstance(error, RejectedError) else 400, f"{error}; {_WANTED}")
        identity = document.get("identity") if isinstance(document, dict) else None
        if not isinstance(identity, str) or not identity:
            return problem(400, f"`identity` is missing; {_WANTED}")
        return _shown({"identity": identity, "streams": self._gate.revoke(identity)})

    def _answer_ready(self) -> Answer:
        if not self._gate.is_ready:
            return Answer(503, _TEXT, b"not ready\n")
        return Answer(200, _TEXT, "".join(f"{line}\n" for line in ("ready", *self._gate.troubles)).encode())

    def _answer_entry(self, method: str, rest: str) -> Answer | Awaitable[Answer]:
        id_, slash, action = rest.partition("/")
        entry = self._gate.diary.get(id_)
        if entry is None or (slash and action != "redeliver"):
            return problem(404, "there is no such delivery; the last ones are at /webhooks")
        if not slash:
            return _shown(entry.shown()) if method in ("GET", "HEAD") else _only(b"GET, HEAD")
        if method != "POST":
            return _only(b"POST")
        if entry.delivery is None:
            return problem(410, "its body is not kept: it was no whole delivery, or others have taken its place")
        return self._redeliver(entry)

    async def _redeliver(self, entry: Entry) -> Answer:
        again = await self._gate.redeliver(entry)
        if again is None:
            return problem(410, f"nothing takes deliveries at {entry.path} any more")
        return _shown(again.shown(), again.outcome.status)


def _only(methods: bytes) -> Answer:
    return problem(405, "this method is not served here", ((b"allow", methods),))


def _shown(value: object, status: int = 200) -> Answer:
    return Answer(status, _JSON, json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
