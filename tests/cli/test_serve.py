"""`ssegate serve` as a process: what it says, which signals it obeys, with which code it leaves."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import resource
import signal
import ssl
from pathlib import Path

import pytest

from tests.cli.process import COMMAND, environment, ran, running
from tests.config.certificates import make_pair
from tests.upstream.scripted import ScriptedUpstream, answer

JSON = (b"Content-Type", b"application/json")


def config(upstream: str, *paths: str, listen: str = "127.0.0.1:0", drain: str = "0s") -> str:
    routes = "".join(f'  - path: "{path}"\n    poll: {{get: /doc, every: 1s}}\n' for path in paths or ["/events"])
    return (
        f'version: 1\nserver: {{listen: "{listen}", drain: {{timeout: {drain}}}}}\n'
        f"upstreams: {{api: {upstream}}}\nroutes:\n{routes}"
    )


def with_tls(text: str, listen: str, more: str) -> str:
    """Add a second listener; `more` closes its mapping."""
    return text.replace("server: {", f'server: {{tls: {{listen: "{listen}", {more}, ')


def write(directory: Path, text: str) -> None:
    (directory / "ssegate.yaml").write_text(text)


def test_plain_ssegate_serves_the_file_of_this_directory(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer(b'{"n":1}', JSON)) as upstream:
            write(tmp_path, config(upstream.url))
            async with running(cwd=tmp_path) as gate:
                assert gate.facts["config"] == "./ssegate.yaml"
                assert gate.facts["routes"] == {"poll": 1}
                reader, status = await gate.open("/events")
                assert status == 200
                assert b'data: {"n":1}' in await reader.readuntil(b'{"n":1}')

    asyncio.run(scenario())


def test_a_flag_beats_the_file_and_the_environment_beats_the_directory(tmp_path: Path) -> None:
    async def scenario() -> None:
        write(tmp_path, "version: 2\n")
        (tmp_path / "other.yaml").write_text(config("http://127.0.0.1:1", listen="192.0.2.1:80"))
        env = environment(SSEGATE_CONFIG="other.yaml")
        async with running("--listen", "127.0.0.1:0", cwd=tmp_path, env=env) as gate:
            assert gate.facts["config"] == "./other.yaml"
            assert gate.url.startswith("http://127.0.0.1:")

    asyncio.run(scenario())


def test_a_wrong_configuration_is_explained_on_standard_error(tmp_path: Path) -> None:
    write(tmp_path, "version: 1\nroutess: []\n")
    code, out, err = asyncio.run(ran("serve", cwd=tmp_path))
    assert (code, out) == (78, "")
    assert "ssegate.yaml:2:1: error[unknown-key] `routess` is not a known key" in err
    assert "did you mean `routes`?" in err


def test_an_address_in_use_is_told_with_the_mend(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer()) as upstream:
            write(tmp_path, config(upstream.url, listen=f"127.0.0.1:{upstream.port}"))
            code, out, err = await ran("serve", cwd=tmp_path)
            assert (code, out) == (1, "")
            assert (
                f"cannot listen on http://127.0.0.1:{upstream.port} (server.listen): address already in use; --listen"
                in err
            )
            assert "Traceback" not in err

    asyncio.run(scenario())


@pytest.mark.parametrize("edge", ["native", "hypercorn"])
def test_the_tls_listener_is_a_second_one(edge: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer(b'{"n":1}', JSON)) as upstream:
            make_pair("localhost").write(tmp_path)
            write(
                tmp_path, with_tls(config(upstream.url), "127.0.0.1:0", f"cert: tls.crt, key: tls.key}}, edge: {edge}")
            )
            async with running(cwd=tmp_path) as gate:
                plain, tls = gate.facts["listening"]
                assert tls["protocols"] == ["h2", "HTTP/1.1"]
                assert re.fullmatch(r"https://127\.0\.0\.1:[1-9][0-9]*", tls["url"])
                assert tls["url"].rpartition(":")[2] != plain["url"].rpartition(":")[2]
                await gate.logged("tls: the certificate of tls.crt is in use, SHA-256 ")
                assert await gate.ask("/events") == 200
                trusted = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", int(tls["url"].rpartition(":")[2]), ssl=trusted, server_hostname="localhost"
                )
                writer.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.transport.abort()

    asyncio.run(scenario())


def test_the_tls_listeners_address_in_use_names_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer()) as upstream:
            text = with_tls(config(upstream.url), f"127.0.0.1:{upstream.port}", "self_signed: true}")
            write(tmp_path, text + 'admin: {listen: "127.0.0.1:0"}\n')
            code, _, err = await ran("serve", cwd=tmp_path)
            assert code == 1
            told = f"cannot listen on https://127.0.0.1:{upstream.port} (server.tls.listen): address already in use; give server"
            assert told in err

    asyncio.run(scenario())


def test_the_admin_listeners_address_in_use_names_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer()) as upstream:
            write(tmp_path, config(upstream.url) + f'admin: {{listen: "127.0.0.1:{upstream.port}"}}\n')
            code, _, err = await ran("serve", cwd=tmp_path)
            assert code == 1
            assert f"cannot listen on http://127.0.0.1:{upstream.port} (admin.listen): address already in use" in err

    asyncio.run(scenario())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_leaves_with_0(number: signal.Signals, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer(b'{"n":1}', JSON)) as upstream:
            write(tmp_path, config(upstream.url, drain="1s"))
            async with running(cwd=tmp_path) as gate:
                reader, _ = await gate.open("/events")
                await reader.readuntil(b'{"n":1}')
                gate.process.send_signal(number)
                assert "draining 1 stream for up to 1 s; again to leave at once" in await gate.logged(number.name)
                farewell = await reader.read()
                assert re.search(rb"retry: [0-9]+\n", farewell)
                assert await gate.process.wait() == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_leaves_at_once(number: signal.Signals, code: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer(b'{"n":1}', JSON)) as upstream:
            write(tmp_path, config(upstream.url, drain="600s"))
            async with running(cwd=tmp_path) as gate:
                for _ in range(3):
                    assert await gate.ask("/events") == 200
                gate.process.send_signal(signal.SIGTERM)
                await gate.logged("draining 3 streams")
                gate.process.send_signal(number)
                async with asyncio.timeout(4):
                    assert await gate.process.wait() == code
                rest = (await gate.process.communicate())[1].decode()
                assert f"{number.name}: leaving at once" in rest
                assert "Traceback" not in rest
                assert "destroyed" not in rest

    asyncio.run(scenario())


def test_a_reload_of_a_broken_file_keeps_the_old_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer(b"{}", JSON)) as upstream:
            write(tmp_path, config(upstream.url, "/a"))
            async with running(cwd=tmp_path) as gate:
                write(tmp_path, "version: 1\nroutes: nonsense\n")
                gate.process.send_signal(signal.SIGHUP)
                await gate.logged("the old one stays in force")
                assert any("ssegate.yaml:2:9: routes: " in line for line in gate.lines)
                assert await gate.ask("/a") == 200

    asyncio.run(scenario())


def test_a_reload_brings_new_routes_and_keeps_the_flag(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer(b"{}", JSON)) as upstream:
            write(tmp_path, config(upstream.url, "/a"))
            async with running("--listen", "127.0.0.1:0", cwd=tmp_path) as gate:
                assert await gate.ask("/b") == 404
                write(tmp_path, config(upstream.url, "/a", "/b"))
                gate.process.send_signal(signal.SIGHUP)
                await gate.logged("the new configuration is in force")
                assert await gate.ask("/b") == 200
                assert not any("server.listen has changed" in line for line in gate.lines)

    asyncio.run(scenario())


def test_a_reload_finds_what_shows_only_when_a_gate_is_built(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "ca.pem").write_text("no certificate")
        write(tmp_path, config("http://127.0.0.1:1"))
        async with running(cwd=tmp_path) as gate:
            write(tmp_path, config(f"{{url: https://127.0.0.1:1, tls: {{ca: {tmp_path}/ca.pem}}}}"))
            gate.process.send_signal(signal.SIGHUP)
            await gate.logged("the old one stays in force")
            assert any("upstreams.api.tls.ca" in line for line in gate.lines)
            gate.process.send_signal(signal.SIGTERM)
            assert await gate.process.wait() == 0

    asyncio.run(scenario())


def test_quick_serves_streams_and_passes_everything_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with ScriptedUpstream(answer(b'{"n":1}', JSON)) as upstream:
            command = ("quick", upstream.url, "--poll", "/events=/doc@1s", "--listen", "127.0.0.1:0")
            async with running(*command, cwd=tmp_path) as gate:
                assert gate.facts["config"] == "(command line)"
                assert await gate.ask("/events") == 200
                assert await gate.ask("/other") == 200
                assert [asked.target for asked in upstream.requests] == ["/doc", "/other"]
                gate.process.send_signal(signal.SIGHUP)
                await gate.logged("there is no file to read again")
                gate.process.send_signal(signal.SIGTERM)
                assert await gate.process.wait() == 0

    asyncio.run(scenario())


async def on_a_terminal(directory: Path, **more: str) -> str:
    """What `ssegate` shows on a terminal until it is up."""
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, cwd=directory, env=environment(TERM="xterm", **more), stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        shown = b""
        while b"  try " not in shown:
            shown += await asyncio.to_thread(os.read, ours, 4096)
        process.send_signal(signal.SIGTERM)
        await process.wait()
    finally:
        os.close(ours)
    return shown.decode()


def test_on_a_terminal_the_banner_is_for_people(tmp_path: Path) -> None:
    write(tmp_path, config("http://127.0.0.1:1", "/orders/{id}/events"))
    shown = asyncio.run(on_a_terminal(tmp_path))
    assert "\x1b[1mssegate 0.1.0\x1b[0m · config ./ssegate.yaml\r\n" in shown
    assert re.search(r"  listening   http://127\.0\.0\.1:[0-9]+ \(HTTP/1\.1, h2c\)\r\n", shown)
    assert "  routes      1 poll\r\n" in shown


def test_no_color_is_obeyed(tmp_path: Path) -> None:
    write(tmp_path, config("http://127.0.0.1:1"))
    shown = asyncio.run(on_a_terminal(tmp_path, NO_COLOR="1"))
    assert "ssegate 0.1.0 · config" in shown
    assert "\x1b" not in shown


def test_it_takes_as_many_files_as_the_system_allows_and_tells_where_that_is_too_few(tmp_path: Path) -> None:
    async def scenario() -> None:
        write(tmp_path, config("http://127.0.0.1:1"))
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        try:
            async with running(cwd=tmp_path) as gate:
                limits = Path(f"/proc/{gate.process.pid}/limits").read_text()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert line.split()[3] == line.split()[4] == str(before[1])

    asyncio.run(scenario())


def test_a_limit_of_files_below_the_clients_is_a_warning(tmp_path: Path) -> None:
    async def scenario() -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if hard == resource.RLIM_INFINITY:
            pytest.skip("this system sets no limit")
        write(tmp_path, config("http://127.0.0.1:1") + f"limits: {{clients: {hard + 1}}}\n")
        async with running(cwd=tmp_path) as gate:
            assert f"this process may open {hard} files; raise `ulimit -n`" in await gate.logged("limits.clients")

    asyncio.run(scenario())
