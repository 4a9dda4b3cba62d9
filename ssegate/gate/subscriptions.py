"""The subscriptions of a configuration: begun, carried over a reload, and taken back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from os import environ

from pydantic import ValidationError

from ssegate.config.model import Upstream as UpstreamSettings
from ssegate.edge.exchange import Answer, problem
from ssegate.gate.hooks import Hook
from ssegate.gate.routes import Table
from ssegate.sources.subscription import (
    TOKEN_LENGTH,
    GraphProvider,
    Keeper,
    Ledger,
    Provider,
    Record,
    RefusedError,
    RestProvider,
    Status,
    Undo,
    Web,
    WebSubProvider,
)
from ssegate.upstream import Upstream
from ssegate.upstream.address import Address

log = logging.getLogger(__name__)

LEAVING = 8.0
"""Seconds that removing subscriptions may take at most, all of them together."""

PATIENCE = 2.0
"""Seconds that a request under way is given before its subscription is removed."""


class Subscriptions:
    """Who keeps which subscription alive."""

    def __init__(self, ledger: Ledger, table: Callable[[], Table]) -> None:
        """`table` is the one in force."""
        self.keepers: dict[str, Keeper] = {}
        """By the webhook's path."""
        self._ledger = ledger
        self._table = table
        self._callbacks: dict[bytes, Keeper] = {}
        """By the paths that nobody can guess; also those of subscriptions that are on their way out."""
        self.below: frozenset[bytes] = frozenset()
        """What stands before the token in the paths that a hub was, or may have been, given to call back."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._going: dict[tuple[str, str], asyncio.Task[None]] = {}
        """Those of them that are being taken back, by path and definition."""
        web = Web(self._settings_of)
        self._undo = Undo(web, self._upstream_named)
        self._web = web

    # Life

    def begin(self) -> None:
        """Ask for what the table in force wants, and take back what it does not. Called again after each reload."""
        wanted = {hook.at: hook for hook in self._table().hooks.values() if hook.record is not None}
        for path, keeper in tuple(self.keepers.items()):
            hook = wanted.get(path)
            if hook is None or hook.record is None or hook.record.definition != keeper.record.definition:
                self._spawn_leave(keeper)
        for path, record in self._ledger:
            hook = wanted.get(path)
            is_wanted = hook is not None and hook.record is not None and hook.record.definition == record.definition
            if not is_wanted and (path, record.definition) not in self._going:
                self._spawn_leave(Keeper(path, record, None, self._undo, self._ledger))
        for path, hook in wanted.items():
            if path not in self.keepers or self._running[path].done():  # done: on a defect
                self._start(hook)
        self._look_below()

    def _look_below(self) -> None:
        hooks = [path for path, hook in self._table().hooks.items() if hook.record is not None and hook.record.token]
        self.below = frozenset((*(path + b"/" for path in hooks), *(path[:-TOKEN_LENGTH] for path in self._callbacks)))

    def _start(self, hook: Hook) -> None:
        assert hook.record is not None
        provider, backoff = self._provider(hook)
        keeper = Keeper(hook.at, hook.record, provider, self._undo, self._ledger, backoff=backoff)
        self.keepers[hook.at] = keeper
        leaving = self._going.get((hook.at, hook.record.definition))
        task = self._running[hook.at] = asyncio.get_running_loop().create_task(self._run(keeper, leaving))
        task.add_done_callback(partial(_tell_defect, hook.at))
        if leaving is None:
            self._open(keeper)

    async def _run(self, keeper: Keeper, leaving: asyncio.Task[None] | None) -> None:
        """Keep it; one that is just being taken back, and is wanted again, not before it has been."""
        if leaving is not None:
            await asyncio.wait((leaving,))
            self._open(keeper)
            keeper.begin_anew()
        await keeper.run()

    def _open(self, keeper: Keeper) -> None:
        if keeper.record.token:
            self._callbacks[callback_path(keeper.path, keeper.record)] = keeper

    def _stop(self, path: str) -> asyncio.Task[None]:
        keeper = self.keepers.pop(path)
        keeper.stop()
        return self._running.pop(path)

    def _spawn_leave(self, keeper: Keeper) -> None:
        self._open(keeper)
        running = self._stop(keeper.path) if self.keepers.get(keeper.path) is keeper else None
        task = asyncio.get_running_loop().create_task(self._leave(keeper, running))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        self._going[keeper.path, keeper.record.definition] = task

    async def _leave(self, keeper: Keeper, running: asyncio.Task[None] | None) -> None:
        try:
            if running is not None:
                await asyncio.wait((running,), timeout=PATIENCE)
                running.cancel()
            await keeper.leave()
        finally:
            going = (keeper.path, keeper.record.definition)
            if self._going.get(going) is asyncio.current_task():  # it may have come back meanwhile, and be going again
                del self._going[going]
            path = callback_path(keeper.path, keeper.record)
            if self._callbacks.get(path) is keeper:
                del self._callbacks[path]
            self._look_below()

    async def leave(self, within: float) -> None:
        """The gate goes down: take back all that are not to be kept, while the backends can still call back.

        `within`: the seconds there are for it.
        """
        for path, keeper in tuple(self.keepers.items()):
            hook = self._table().hooks.get(path.encode())
            if hook is not None and hook.webhook.subscribe is not None and hook.webhook.subscribe.keep:
                self._stop(path).cancel()
            else:
                self._spawn_leave(keeper)
        if self._leaving:
            await asyncio.wait(tuple(self._leaving), timeout=min(within, LEAVING))

    async def aclose(self) -> None:
        """Stop at once. What the backends have stays there, and in the ledger."""
        tasks = (*self._running.values(), *self._leaving)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._running.clear()
        self.keepers.clear()

    # Calls

    def answer(
        self, method: str, path: bytes, query: Mapping[str, str]
    ) -> Coroutine[None, None, Answer] | Hook | Answer:
        """A request to where a hub calls back, or did: the hook it is a delivery for, or its answer."""
        keeper = self._callbacks.get(path)
        if method == "GET":
            return problem(404, "nothing was asked for here") if keeper is None else _confirm(keeper, query)
        hook = None if keeper is None else self._table().hooks.get(keeper.path.encode())
        if hook is None or self.keepers.get(hook.at) is not keeper:
            # "The subscriber MAY return 410 … to indicate that the subscription has been deleted" (W3C WebSub, 7)
            return problem(410, "there is no such subscription any more", close=True)
        return hook

    def statuses(self) -> list[Status]:
        """How each of them stands."""
        return [keeper.status() for keeper in self.keepers.values()]

    # How they are asked

    def _provider(self, hook: Hook) -> tuple[Provider, tuple[float, float]]:
        """Who asks, and the shortest and the longest wait when that fails."""
        subscribe = hook.webhook.subscribe
        assert subscribe is not None
        if subscribe.websub is not None:
            return WebSubProvider(subscribe.websub, hook.secret, self._web), (1.0, 60.0)
        name = subscribe.upstream
        backoff = self._table().slots[name].settings.backoff

        def upstream() -> Upstream:
            found = self._upstream_named(name)
            if found is None:
                raise RefusedError(f"there is no upstream `{name}` any more")
            return found

        if subscribe.msgraph is not None:
            return GraphProvider(subscribe.msgraph, hook.secret, name, upstream), (backoff.min, backoff.max)
        assert subscribe.rest is not None
        return RestProvider(subscribe.rest, hook.secret, name, upstream, environ), (backoff.min, backoff.max)

    def _upstream_named(self, name: str) -> Upstream | None:
        slot = self._table().slots.get(name)
        return None if slot is None else slot.upstream

    def _settings_of(self, origin: str) -> UpstreamSettings:
        """An upstream of the configuration at this origin says how it is asked: whom to trust, with which credentials."""
        try:
            plain = UpstreamSettings.model_validate({"url": origin})
        except ValidationError:
            raise ValueError("not an origin") from None
        here = _place(plain.url)
        for settings in self._table().config.upstreams.values():
            if _place(settings.url) == here:
                return settings.model_copy(update={"url": origin})
        return plain


def _tell_defect(path: str, task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("subscription of %s stopped on a defect; a reload begins it again", path, exc_info=error)


def _place(url: str) -> tuple[str, str, int]:
    address = Address.parse(url)
    return (address.scheme, address.host, address.port)


async def _confirm(keeper: Keeper, query: Mapping[str, str]) -> Answer:
    challenge = await keeper.confirm(query)
    if challenge is None:
        return problem(404, "nothing was asked for here")
    kind = ((b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff"))
    return Answer(200, kind, challenge.encode("utf-8", "replace"))


def callback_path(path: str, record: Record) -> bytes:
    """Where a subscription with a token is called back."""
    return f"{path}/{record.token}".encode()
