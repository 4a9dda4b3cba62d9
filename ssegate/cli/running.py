"""Runs a gate as a process: its event loop, its signals, its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Callable

from ssegate.cli.terminal import complain
from ssegate.edge.native.memory import calm_collector
from ssegate.errors import BrokerError
from ssegate.service import LoadConfig, Service

log = logging.getLogger(__name__)

PARTING = 0.3
"""Seconds that tasks have to end when the process leaves at once."""

_abandoned: list[asyncio.Task[object]] = []

if sys.platform == "win32":
    HANGUP = None
    new_event_loop = asyncio.SelectorEventLoop  # the default one there cannot watch a listening socket
else:
    import resource

    import uvloop

    HANGUP = signal.SIGHUP
    new_event_loop = uvloop.new_event_loop


def run_service(service: Service, *, banner: Callable[[], None], load: LoadConfig | None) -> int:
    """Run until a signal ends it; return the exit code.

    SIGTERM and SIGINT drain (0), a second one leaves at once (143 or 130); SIGHUP reloads by `load`, if there is one.
    `banner` is called when it is up. An address that cannot be listened on is told on standard error (1).
    """
    _raise_file_limit(service.gate.config.limits.clients)
    runner = asyncio.Runner(loop_factory=new_event_loop)
    try:
        with calm_collector():
            code = runner.run(_live(service, banner, load))
    except BaseException:
        runner.close()
        raise
    if code > 128:
        _leave(runner)
    else:
        runner.close()
    return code


def _raise_file_limit(clients: int) -> None:
    """Take as many open files as the system allows, since each client is one, and say so where that is too few."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems name a hard limit that they do not grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < clients:
        log.warning("limits.clients is %d, but this process may open %d files; raise `ulimit -n`", clients, hard)


def _leave(runner: asyncio.Runner) -> None:
    """Close the loop without waiting for tasks that would go on for seconds to part from their clients in order."""
    loop = runner.get_loop()
    loop.set_exception_handler(lambda loop, context: None)  # what breaks now is no news
    _abandoned.extend(runner.run(_cancel_all()))
    if _abandoned:
        # A task that is destroyed in mid-course would complain, when the interpreter ends at the latest.
        sys.unraisablehook = lambda unraisable: None
    loop.close()


async def _cancel_all() -> list[asyncio.Task[object]]:
    """Cancel every other task; return those that take their time about it."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    return list((await asyncio.wait(tasks, timeout=PARTING))[1]) if tasks else []


async def _live(service: Service, banner: Callable[[], None], load: LoadConfig | None) -> int:
    signals = _listen_for_signals()
    if not await _start(service):
        return 1
    try:
        banner()
    except BaseException:
        await service.aclose()
        raise
    while (number := await signals.get()) == HANGUP:
        await _reload(service, load)
    return await _drain(service, number, signals)


def _listen_for_signals() -> asyncio.Queue[int]:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, HANGUP):
        if number is None:
            continue
        if sys.platform == "win32":
            signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(signals.put_nowait, number) and None)
        else:
            loop.add_signal_handler(number, signals.put_nowait, number)
    return signals


async def _start(service: Service) -> bool:
    try:
        await service.start()
    except BrokerError as error:
        complain(str(error))
        return False
    except OSError as error:
        complain(_told(service, error))
        return False
    return True


def _told(service: Service, error: OSError) -> str:
    fact = (error.strerror or str(error)).rpartition(": ")[2]
    key, url = _not_listening(service)
    mend = "; --listen HOST:PORT takes another" if key == "server.listen" else f"; give {key} another"
    return f"cannot listen on {url} ({key}): {fact}{mend}"


def _not_listening(service: Service) -> tuple[str, str]:
    """Which listener failed: they start in this order, and those before it have their ports."""
    config = service.gate.config
    if not service.port:
        return "server.listen", f"http://{config.server.listen}"
    if config.server.tls is not None and service.tls_port is None:
        return "server.tls.listen", f"https://{config.server.tls.listen}"
    assert config.admin is not None
    return "admin.listen", f"http://{config.admin.listen}"


async def _reload(service: Service, load: LoadConfig | None) -> None:
    if load is None:
        log.warning("SIGHUP: there is no file to read again")
        return
    await service.reload(load)


async def _drain(service: Service, number: int, signals: asyncio.Queue[int]) -> int:
    streams = service.gate.statistics().clients
    log.info(
        "%s: draining %d stream%s for up to %g s; again to leave at once",
        signal.Signals(number).name,
        streams,
        "" if streams == 1 else "s",
        service.gate.config.server.drain.timeout,
    )
    draining = asyncio.ensure_future(service.drain())
    again = asyncio.ensure_future(_next_but_hangup(signals))
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    if draining.done():
        again.cancel()
        draining.result()
        log.info("drained")
        return 0
    log.info("%s: leaving at once", signal.Signals(again.result()).name)
    return 128 + again.result()


async def _next_but_hangup(signals: asyncio.Queue[int]) -> int:
    while (number := await signals.get()) == HANGUP:
        log.warning("SIGHUP: nothing is reloaded while draining")
    return number
