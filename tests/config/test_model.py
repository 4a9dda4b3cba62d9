"""What single keys take."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssegate.config import Config, parse_config
from ssegate.errors import ConfigError, Problem


def _parse(more: str) -> Config:
    return parse_config(f"version: 1\nroutes: []\n{more}", source="f.yaml", environ={})


def _problem(more: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        _parse(more)
    (problem,) = caught.value.problems
    return problem


def _upstream(keys: str) -> str:
    return "upstreams: {api: {url: http://localhost, " + keys + "}}"


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("https://api.example.com/", "https://api.example.com"),
        ("http://h/base/v1/", "http://h/base/v1"),
        ('"http://[::1]:80"', "http://[::1]:80"),
    ],
)
def test_an_upstream_is_an_origin_and_a_prefix(written: str, url: str) -> None:
    assert _parse(f"upstreams: {{api: {written}}}").upstreams["api"].url == url
    assert _parse(f"upstreams: {{api: {{url: {written}}}}}").upstreams["api"].url == url


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("http://me:hunter2@h", "use auth: basic"),
        ('"http://h/?a=hunter2"', "no query"),
        ("http://h/#a", "no fragment"),
        ('"http://h?"', "no query"),
        ("ftp://h", "http:// or https://"),
        ("localhost:8000", "http:// or https://"),
        ("http:h", "http:// or https://"),
        ("http://", "names no host"),
        ("http://h:99999", "not a URL"),
        ("http://h:0", "names no host"),
        ('"http://h:"', "names no host"),
        ("http://a b/", "names no host"),
        ('"http://[::1"', "not a URL"),
        ('"http://h/{id}"', "cannot be a prefix"),
        ("http://h/a/../b", "cannot be a prefix"),
        ("http://h//a", "cannot be a prefix"),
        ('"http://h/a\\nb"', "holds a line end"),
        ("5", "not a mapping"),
    ],
)
def test_a_url_that_is_none_is_refused_without_its_secrets(written: str, words: str) -> None:
    problem = _problem(f"upstreams: {{api: {written}}}")
    assert words in problem.message
    assert "hunter2" not in problem.message
    assert problem.where == "upstreams.api"


@pytest.mark.parametrize(
    ("keys", "where", "words"),
    [
        ("headers: {Host: x}", "headers.Host", "makes itself"),
        ("headers: {content-length: x}", "headers.content-length", "makes itself"),
        ("headers: {Transfer-Encoding: x}", "headers.Transfer-Encoding", "makes itself"),
        ("headers: {Connection: x}", "headers.Connection", "makes itself"),
        ('headers: {"A B": x}', "headers.A B", "not the name of a header"),
        ('headers: {A: "x\\r\\nB: y"}', "headers.A", "no line end"),
        ('headers: {A: "x\\0"}', "headers.A", "no line end"),
        ("headers: {A: 5}", "headers.A", "put it in quotes"),
        ("headers: [a]", "headers", "a list, not a mapping"),
        ("host: a b", "host", "not a host name"),
        ("host: http://h", "host", "not a host name"),
        ("auth: {}", "auth", "either `bearer` or `basic`"),
        ("auth: {bearer: a, basic: {user: b, password: c}}", "auth", "either `bearer` or `basic`"),
        ('auth: {bearer: "a\\nb"}', "auth.bearer", "line end"),
        ("auth: {basic: {user: 'a:b', password: c}}", "auth.basic.user", "no `:`"),
        ("auth: {basic: {user: a}}", "auth.basic", "`password` is missing"),
        ("tls: {ca: /nowhere/ca.pem}", "tls.ca", "not a file that is there"),
        ("tls: {verify: yes}", "tls.verify", "write true or false"),
        ("timeout: {connect: 0s}", "timeout.connect", "too short"),
        ("backoff: {min: 5s, max: 1s}", "backoff", "longer than `max`"),
        ("connections: 0", "connections", "1 or more"),
        ('connections: "5"', "connections", "leave out the quotes"),
        ("connections: true", "connections", "not a whole number"),
        ("requests_per_second: 0", "requests_per_second", "above 0"),
    ],
)
def test_an_upstream_key_that_is_wrong_is_told(keys: str, where: str, words: str) -> None:
    problem = _problem(_upstream(keys))
    assert problem.where == f"upstreams.api.{where}"
    assert words in problem.message


def test_an_upstream_has_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("")
    keys = f"headers: {{A: b}}, host: api.example.com:81, tls: {{ca: {tmp_path / 'ca.pem'}, verify: false}}"
    api = _parse(_upstream(keys + ", auth: {basic: {user: a, password: b}}, requests_per_second: 0.5")).upstreams["api"]
    assert (api.headers, api.host, api.requests_per_second) == ({"A": "b"}, "api.example.com:81", 0.5)
    assert (api.tls.ca, api.tls.verify) == (str(tmp_path / "ca.pem"), False)
    assert api.auth is not None
    assert api.auth.basic is not None
    assert (api.auth.basic.user, api.auth.basic.password.get_secret_value()) == ("a", "b")


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example.com",
        "http://localhost:3000",
        "https://*.example.com",
        "*",
        "capacitor://localhost",
        "http://[::1]:80",
    ],
)
def test_an_origin_is_what_a_browser_sends(origin: str) -> None:
    cors = _parse(f'cors: {{origins: ["{origin}"]}}').cors
    assert cors is not None
    assert cors.origins == (origin,)


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("https://A.example.com/", "write https://a.example.com"),
        ("https://a.example.com/path", "without a path"),
        ("a.example.com", "scheme://host"),
        ("https://*", "scheme://host"),
        ("https://*.*.example.com", "scheme://host"),
        ("https://a.*.com", "scheme://host"),
        ("null", "scheme://host"),
    ],
)
def test_an_origin_no_browser_sends_is_refused(origin: str, words: str) -> None:
    problem = _problem(f'cors: {{origins: ["{origin}"]}}')
    assert problem.where == "cors.origins[0]"
    assert words in problem.message


def test_cors_without_origins_is_refused() -> None:
    assert "at least one" in _problem("cors: {origins: []}").message
    assert _problem("cors: {}").message == "`origins` is missing"


def _webhook(verify: str) -> str:
    return f"version: 1\nroutes: [{{path: /a, webhook: {{at: /h, verify: {verify}}}}}]"


@pytest.mark.parametrize(
    ("verify", "scheme"),
    [
        ("none", "none"),
        ("{token: a}", "token"),
        ("{token: [a, b]}", "token"),
        ("{hmac: {secret: a, header: X-S}}", "hmac"),
    ],
)
def test_a_delivery_is_verified_in_one_of_three_ways(verify: str, scheme: str) -> None:
    webhook = parse_config(_webhook(verify), source="f", environ={}).routes[0].webhook
    assert webhook is not None
    assert webhook.verify.scheme == scheme


@pytest.mark.parametrize(
    ("verify", "where", "words"),
    [
        ("{}", "", "write one of none, github, gitlab,"),
        ("{token: a, hmac: {secret: a, header: b}}", "", "write one of"),
        ("hunter2", "", "text is no way to verify"),
        ("~", "", "empty is no way to verify"),
        ("{token: []}", ".token", "write a secret"),
        ("{token: [a, '']}", ".token", "empty"),
        ("{token: 5}", ".token", "put it in quotes"),
        ("{hmac: {secret: a}}", ".hmac", "`header` is missing"),
        ("{hmac: {secret: a, header: b, algorithm: md5}}", ".hmac.algorithm", "sha256, sha512 or sha1"),
        ("{hmac: {secret: a, header: b, encoding: base32}}", ".hmac.encoding", "hex or base64"),
        ("{tokens: a}", "", "`tokens` is not a known key"),
    ],
)
def test_a_way_to_verify_that_is_wrong_is_told(verify: str, where: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(_webhook(verify), source="f", environ={})
    problem = caught.value.problems[0]
    assert problem.where == f"routes[0].webhook.verify{where}"
    assert words in problem.message
    assert "hunter2" not in problem.message


def test_none_must_be_written_out() -> None:
    with pytest.raises(ConfigError, match="`verify` is missing"):
        parse_config("version: 1\nroutes: [{path: /a, webhook: {at: /h}}]", source="f", environ={})


@pytest.mark.parametrize(
    ("poll", "where", "words"),
    [
        ("every: {min: 5s, max: 2s}", "every", "longer than `max`"),
        ("every: {min: 5s}", "every", "`max` is missing"),
        ("every: {min: soon, max: 2}", "every.min", '"soon" is not a duration; write 500ms, 2s or 10m'),
        ("every: 0s", "every", "too short"),
        ("forward: cookie", "forward", "text, not a list"),
        ("forward: [Connection]", "forward[0]", "cannot be forwarded"),
        ("forward: [host]", "forward[0]", "cannot be forwarded"),
        ("gone: [200]", "gone[0]", "cannot mean"),
        ("gone: [304]", "gone[0]", "cannot mean"),
        ("body: xml", "body", "json, text or bytes"),
        ("after_write: 1", "after_write", "write true, or a list of paths"),
        ("after_write: [a]", "after_write", "begin with `/`"),
        ("ignore: [a]", "ignore[0]", "JSON Pointer"),
        ("select: 'a['", "select", "ends too early"),
        ("conditional: 'true'", "conditional", "write true or false"),
    ],
)
def test_a_poll_key_that_is_wrong_is_told(poll: str, where: str, words: str) -> None:
    text = f"version: 1\nupstreams: {{a: http://a}}\nroutes: [{{path: /a, poll: {{get: /a, {poll}}}}}]"
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="f", environ={})
    problem = caught.value.problems[0]
    assert problem.where == f"routes[0].poll.{where}"
    assert words in problem.message


@pytest.mark.parametrize("key", ["clients", "clients_per_ip", "topics", "streams_per_connection"])
def test_limits_are_positive(key: str) -> None:
    assert "1 or more" in _problem(f"limits: {{{key}: 0}}").message


def test_the_streams_of_one_connection_have_a_limit_of_their_own() -> None:
    assert _parse("limits: {streams_per_connection: 10000}").limits.streams_per_connection == 10_000
    assert "write 1 to 10000" in _problem("limits: {streams_per_connection: 10001}").message


def test_history_keeps_at_least_one_event() -> None:
    assert "1 or more" in _problem("defaults: {history: {events: 0}}").message


def test_durations_that_may_be_zero_are_those_that_mean_never_or_at_once() -> None:
    config = _parse("defaults: {max_age: 0s}\nserver: {drain: {delay: 0s, timeout: 0s}}")
    assert (config.defaults.max_age, config.server.drain.timeout) == (0, 0)
    for more in (
        "defaults: {heartbeat: 0s}",
        "defaults: {retry: 0s}",
        "server: {keep_alive: 0s}",
        "limits: {stall: 0s}",
    ):
        assert "too short" in _problem(more).message
