"""From a file to a `Config`: where it is found, what it becomes, what is reported."""

from __future__ import annotations

import re
from copy import deepcopy
from ipaddress import ip_network
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ssegate.config import Address, Config, Every, find_config, load_config, parse_config
from ssegate.config.asking import METHODS, Request
from ssegate.config.load import known_keys
from ssegate.config.types import Model
from ssegate.errors import ConfigError, Problem

SMALL = """\
version: 1
upstreams: {api: http://localhost:8000}
routes:
  - path: /orders/{id}/events
    poll:
      get: /orders/{id}
      every: 2s
"""

FULL = (Path(__file__).parent / "full.yaml").read_text().replace("KEY_FILE", str(Path(__file__).parent / "key.pem"))
"""All that is built; two files' names are still to be put in."""

DOCUMENT = yaml.safe_load(FULL.replace("${file:TOKEN_FILE}", "x").replace("ca: CA_FILE, ", ""))


def dump(document: object, *, sort_keys: bool = True) -> str:
    """A document in YAML; by libyaml where it is there, which takes a tenth of the time."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(document, Dumper=dumper, allow_unicode=True, default_flow_style=False, sort_keys=sort_keys))


def _parse(text: str, **environ: str) -> Config:
    return parse_config(text, source="ssegate.yaml", environ=environ)


def _problems(text: str, **environ: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        _parse(text, **environ)
    return caught.value.problems


def _full(tmp_path: Path) -> str:
    (tmp_path / "token").write_text("t0ken\n")
    (tmp_path / "ca.pem").write_text("")
    return FULL.replace("TOKEN_FILE", str(tmp_path / "token")).replace("CA_FILE", str(tmp_path / "ca.pem"))


def test_the_smallest_useful_file_has_every_default() -> None:
    config = _parse(SMALL)
    assert (config.version, config.source, config.admin, config.cors) == (1, "ssegate.yaml", None, None)
    assert config.server.listen == Address("0.0.0.0", 8080)
    assert (config.server.keep_alive, config.server.drain.delay, config.server.drain.timeout) == (75, 0, 20)
    api = config.upstreams["api"]
    assert (api.url, api.timeout.connect, api.timeout.read) == ("http://localhost:8000", 2, 10)
    assert (api.connections, api.requests_per_second, api.backoff.min, api.backoff.max) == (50, None, 1, 60)
    assert (api.host, api.auth, api.headers, api.tls.ca, api.tls.verify) == ("preserve", None, {}, None, True)
    limits = config.limits
    assert (limits.clients, limits.clients_per_ip, limits.topics, limits.stall) == (10_000, None, 10_000, 30)
    assert limits.streams_per_connection == 250
    assert (limits.event_size, limits.webhook_body, limits.request_head) == (2**20, 2**20, 2**15)
    assert limits.stream_body == 2**24
    (route,) = config.routes
    assert (route.kind, route.line, route.negotiate, route.emit.as_) == ("poll", 4, False, "snapshot")
    assert (route.heartbeat, route.retry, route.max_age) == (15, 3, 0)
    assert (route.history.events, route.history.size, route.history.age) == (1000, 2**24, 600)
    assert (route.methods, route.opened_by) == (None, ("GET",))
    assert route.poll is not None
    assert (route.poll.upstream, route.poll.every, route.poll.linger) == ("api", Every(2, 2), 30)
    assert (route.poll.conditional, route.poll.gone, route.poll.body) == (True, (404, 410), "json")
    assert (route.poll.select, route.poll.items, route.poll.ignore, route.poll.forward) == (None, None, (), ())


def test_a_poll_without_every_asks_each_five_seconds() -> None:
    route = _parse(SMALL.replace("      every: 2s\n", "")).routes[0]
    assert route.poll is not None
    assert route.poll.every == Every(5, 5)


def test_the_full_shape_loads(tmp_path: Path) -> None:
    config = _parse(_full(tmp_path), CONNECTIONS="7")
    api = config.upstreams["api"]
    assert (api.url, api.connections, api.requests_per_second) == ("http://127.0.0.1:8000", 7, 50.0)
    assert api.auth is not None
    assert api.auth.bearer is not None
    assert api.auth.bearer.get_secret_value() == "t0ken"
    assert "t0ken" not in repr(config)
    assert config.upstreams["other"].url == "https://other.example.com/base"
    assert config.server.trusted_proxies == (ip_network("10.0.0.0/8"),)
    assert config.admin is not None
    assert str(config.admin.listen) == "127.0.0.1:9901"
    assert config.server.tls is not None
    assert (str(config.server.tls.listen), config.server.tls.self_signed) == ("0.0.0.0:8444", True)
    assert (config.server.edge, config.limits.streams_per_connection) == ("hypercorn", 251)
    assert api.personal_headers == {"X-User": "{identity}", "X-Tenant": "t-{claims.tenant}"}
    assert api.plain_headers == {"X-Requested-By": "ssegate"}
    limits = config.limits
    assert (limits.clients_per_user, limits.requests_per_second) == (101, 2.5)
    assert [guard.kind for guard in config.auth.values()] == ["forward"] * 3 + ["jwt"] * 3 + ["keys"]
    order, orders, _, github, notes, live, mine, *others, proxy = config.routes
    assert order.poll is not None
    assert orders.poll is not None
    assert order.poll.every == Every(2, 30)
    assert order.poll.forward == ("authorization", "cookie")
    assert (order.poll.after_write, orders.poll.after_write) == (True, ("/orders", "/orders/{id}"))
    assert orders.poll.every == Every(60, 60)
    assert orders.poll.items is not None
    assert orders.poll.items.key({"id": 5}) == 5
    assert orders.emit.names.added == "order-added"
    assert github.webhook is not None
    assert github.webhook.verify.scheme == "hmac"
    hmac = github.webhook.verify.hmac
    assert hmac is not None
    assert [secret.get_secret_value() for secret in hmac.secret] == ["new", "old"]
    assert (hmac.header, hmac.algorithm, hmac.encoding, hmac.prefix) == (
        "x-hub-signature-256",
        "sha256",
        "hex",
        "sha256=",
    )
    assert (order.auth, mine.auth, live.auth) == (("session", "user"), ("session", "user"), ())
    assert order.allow is not None
    assert order.allow({"params": {"id": "7"}, "identity": "7"}) is True
    assert live.topics == ("/orders/{id}/events", "/orders/events", "/me/notifications")
    assert [route.kind for route in (github, notes, live, *others, proxy)] == [
        "webhook",
        "webhook",
        "topics",
        "stream",
        "stream",
        "task",
        "feed",
        "proxy",
    ]


def test_a_route_has_the_defaults_where_it_says_nothing(tmp_path: Path) -> None:
    order, _, _, github, *_ = _parse(_full(tmp_path)).routes
    assert (order.heartbeat, order.retry, order.max_age) == (16, 4, 3600)
    assert (order.history.events, order.history.size, order.history.age) == (1001, 15 * 2**20, 660)
    assert (github.heartbeat, github.retry) == (5, 4)
    assert (github.history.events, github.history.size, github.history.age) == (20000, 15 * 2**20, 660)


def test_a_route_is_equal_to_itself_on_another_line() -> None:
    moved = _parse("# comment\n" + SMALL).routes[0]
    assert moved.line == 5
    assert moved == _parse(SMALL).routes[0]
    assert moved != _parse(SMALL.replace("2s", "3s")).routes[0]
    assert moved != _parse(SMALL + "defaults: {retry: 9s}\n").routes[0]


def test_a_configuration_does_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        _parse(SMALL).limits.clients = 5  # type: ignore[misc]  # that is what is tried


@pytest.mark.parametrize("admin", ["none", "{listen: none}"])
def test_admin_none_is_no_admin_listener(admin: str) -> None:
    assert _parse(SMALL + f"admin: {admin}").admin is None


def test_admin_listens_on_the_machine_itself_unless_told_otherwise() -> None:
    admin = _parse(SMALL + "admin: {}").admin
    assert admin is not None
    assert admin.listen == Address("127.0.0.1", 9901)


def test_top_keys_that_begin_with_x_are_ignored() -> None:
    assert _parse(SMALL + "x-any: ${NOT_SET}\n") == _parse(SMALL)
    assert _problems(SMALL.replace("path:", "x-any: 1\n    path:"))[0].code == "unknown-key"


def test_an_expanded_scalar_takes_the_type_it_looks_like() -> None:
    text = SMALL.replace(
        "every: 2s", "every: ${E:-3s}\n      conditional: ${C}\n      gone:\n      - '${G}'\n      - 410"
    )
    problem = _problems(text, C="false", G="404")[0]
    assert (problem.where, problem.code) == ("routes[0].poll.gone[0]", "type")
    poll = _parse(text.replace("'${G}'", "${G}"), C="false", G="404").routes[0].poll
    assert poll is not None
    assert (poll.every, poll.conditional, poll.gone) == (Every(3, 3), False, (404, 410))


def test_a_token_of_digits_from_the_environment_is_text() -> None:
    text = "version: 1\nroutes: []\nupstreams:\n  api:\n    url: http://h\n    headers:\n      X: ${T}\n"
    api = _parse(text, T="0123").upstreams["api"]
    assert api.headers == {"X": "0123"}
    assert "0123" not in repr(api)


def test_all_that_is_unset_is_told_at_once() -> None:
    text = SMALL.replace("every: 2s", "every: ${A}\n      linger: ${B:?ask}").replace(
        "{api: http://localhost:8000}", "\n  api: ${C}"
    )
    assert [(p.code, p.where, p.line) for p in _problems(text)] == [
        ("env", "upstreams.api", 3),
        ("env", "routes[0].poll.every", 8),
        ("env", "routes[0].poll.linger", 9),
    ]


def test_keys_are_not_expanded() -> None:
    problem = _problems(SMALL + '"${A}": 1\n', A="limits")[0]
    assert problem.message == "`${A}` is not a known key"


def test_an_anchor_that_is_wrong_is_told_once() -> None:
    text = SMALL.replace("every: 2s", "<<: *p") + "  - {path: /b, poll: {get: /b, <<: *p}}\nx-p: 1\n"
    text = text.replace("version: 1\n", "version: 1\nx-q: &p {every: soon, lingr: 1s}\n")
    assert [(p.code, p.line) for p in _problems(text)] == [("duration", 2), ("unknown-key", 2)]


def test_every_problem_is_told_at_once_in_the_order_of_the_file() -> None:
    text = """\
version: 2
server: {listen: 8080, tls: {cert: a}}
upstreams: {api: http://h, bad: "ftp://h"}
limits: {clients: 0}
routes:
  - path: /a/{id}
    poll: {upstream: apj, get: "/{idd}", evry: 2s, select: "a["}
    emit: {as: items}
  - path: /a/{other}
    poll: {upstream: api}
    retry: 5
  - path: /c
  - path: /d
    webhook: {at: /h, verify: maybe, match: {x: y}}
"""
    assert [(p.line, p.column, p.code, p.where) for p in _problems(text)] == [
        (1, 10, "value", "version"),
        (2, 18, "value", "server.listen"),
        (2, 24, "missing", "server.tls"),
        (3, 33, "value", "upstreams.bad"),
        (4, 19, "value", "limits.clients"),
        (6, 11, "route-conflict", "routes[0].path"),
        (7, 22, "reference", "routes[0].poll.upstream"),
        (7, 32, "template", "routes[0].poll.get"),
        (7, 42, "unknown-key", "routes[0].poll"),
        (7, 60, "expression", "routes[0].poll.select"),
        (8, 16, "missing", "routes[0].emit.as"),
        (9, 11, "route-conflict", "routes[1].path"),
        (10, 5, "missing", "routes[1].poll"),
        (11, 12, "duration", "routes[1].retry"),
        (12, 5, "missing", "routes[2]"),
        (14, 31, "type", "routes[3].webhook.verify"),
        (14, 46, "reference", "routes[3].webhook.match.x"),
    ]


def test_keys_set_twice_are_told_with_everything_else() -> None:
    problems = _problems(SMALL.replace("every: 2s", "every: 2s\n      every: 3s\n      evry: 1s"))
    assert [(p.line, p.code) for p in problems] == [(7, "duplicate-key"), (8, "duplicate-key"), (9, "unknown-key")]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("version: 1", "missing", "`routes` is missing"),
        ("routes: []", "missing", "`version` is missing"),
        ("version: 1\nroutes:\n", "type", "empty; write a list"),
        ("version: 1\nroutes: {}", "type", "a mapping, not a list"),
        ("version: 1\nroutes: [x]", "type", "text, not a mapping"),
        ("version: 1\nroutes: []\nserver: 5", "type", "a number, not a mapping"),
        ("version: '1'\nroutes: []", "value", '"1" is not a version this program knows; write 1'),
        ("version: true\nroutes: []", "value", "true is not a version this program knows; write 1"),
        ("", "yaml", "the file is empty; a configuration begins with `version: 1`"),
    ],
)
def test_a_file_that_is_wrong_at_the_top_is_told(text: str, code: str, message: str) -> None:
    assert [(problem.code, problem.message) for problem in _problems(text)] == [(code, message)]


NOT_BUILT = ["server.workers"]


@pytest.mark.parametrize("key", NOT_BUILT)
def test_a_key_that_is_not_built_yet_is_unknown(key: str) -> None:
    parent, name = key.split(".")
    text = SMALL + "server:\n  keep_alive: 75s\n"
    before = {"server": "  keep_alive"}[parent]
    indent = before[: len(before) - len(before.lstrip())]
    found = _problems(text.replace(before, f"{indent}{name}: 1\n{before}", 1))
    assert [(p.code, p.message) for p in found] == [("unknown-key", f"`{name}` is not a known key")]


def test_the_file_is_found_by_flag_then_variable_then_place(tmp_path: Path) -> None:
    environ = {"SSEGATE_CONFIG": "env.yaml"}
    assert find_config("flag.yaml", environ, tmp_path) == tmp_path / "flag.yaml"
    assert find_config("/x/flag.yaml", environ, tmp_path) == Path("/x/flag.yaml")
    assert find_config(None, environ, tmp_path) == tmp_path / "env.yaml"
    assert find_config(None, {"SSEGATE_CONFIG": ""}, tmp_path) in (None, Path("/etc/ssegate/ssegate.yaml"))
    (tmp_path / "ssegate.yaml").write_text("")
    assert find_config(None, {}, tmp_path) == tmp_path / "ssegate.yaml"


def test_a_file_is_loaded_under_the_name_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ssegate.yaml").write_text(SMALL)
    assert load_config(environ={}).source == "ssegate.yaml"
    assert load_config("./ssegate.yaml", environ={}).source == "ssegate.yaml"
    assert load_config(str(tmp_path / "ssegate.yaml"), environ={}).source == str(tmp_path / "ssegate.yaml")


def test_a_file_that_cannot_be_read_is_a_problem_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dir").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4\n")
    for name, words in (
        ("none.yaml", "no such file"),
        ("dir", "is a directory"),
        ("a\0b", "NUL"),
        ("latin.yaml", "not UTF-8"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(name, environ={})
        (problem,) = caught.value.problems
        assert words in problem.message
        assert problem.file == name
    monkeypatch.setattr("ssegate.config.load.SYSTEM_FILE", "/nowhere/ssegate.yaml")
    with pytest.raises(ConfigError, match="-c FILE"):
        load_config(environ={})


def _models(kind: type[Model]) -> set[type[Model]]:
    found = {kind}
    for field in kind.model_fields.values():
        parts = [
            field.annotation,
            *get_args(field.annotation),
            *(getattr(each, "model", None) for each in field.metadata),
        ]
        parts += [inner for part in parts for inner in get_args(part)]
        for part in parts:
            if isinstance(part, type) and issubclass(part, Model) and part not in found:
                found |= _models(part)
    return found


MODELS = sorted(_models(Config), key=lambda model: model.__name__)


def test_there_is_a_model_for_every_mapping() -> None:
    assert len(MODELS) > 40


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_model_can_be_checked_on_when_a_required_key_is_wrong(model: type[Model]) -> None:
    required = {field.alias or name for name, field in model.model_fields.items() if field.is_required()}
    # Of the methods of a request one is required, and none by itself.
    assert required == set(model.stand_ins) - set(METHODS if issubclass(model, Request) else ())
    assert all(field.description for field in model.model_fields.values())


def _mappings(node: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all mappings whose keys are the program's own."""
    if isinstance(node, dict):
        own = [path] if known_keys(path) else []
        return own + [found for name, value in node.items() for found in _mappings(value, (*path, name))]
    if isinstance(node, list):
        return [found for index, value in enumerate(node) for found in _mappings(value, (*path, index))]
    return []


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_unknown_key_at_any_level_is_told_on_its_line(data: st.DataObject) -> None:
    document = deepcopy(DOCUMENT)
    path = data.draw(st.sampled_from(_mappings(document)))
    node = document
    for part in path:
        node = node[part]
    node["zzz_unknown"] = 1
    text = dump(document, sort_keys=False)
    line = next(number for number, line in enumerate(text.split("\n"), 1) if "zzz_unknown" in line)
    (problem,) = [problem for problem in _problems(text) if problem.code == "unknown-key"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    assert (problem.line, problem.where, problem.length) == (line, where, len("zzz_unknown"))
    assert text.split("\n")[line - 1][problem.column - 1 :].startswith("zzz_unknown")


def test_there_are_mappings_at_every_level_to_put_a_key_in() -> None:
    paths = _mappings(yaml.safe_load(FULL))
    assert ("routes", 0, "poll", "every") in paths
    assert ("routes", 3, "webhook", "verify", "hmac") in paths
    assert ("routes", 7, "stream") in paths
    assert ("routes", 9, "task", "start") in paths
    assert ("routes", 10, "feed") in paths
    assert ("auth", "user", "jwt") in paths
    assert ("auth", "shared", "jwt", "keys") in paths
    assert ("auth", "groups", "forward", "claims") in paths
    assert ("auth", "partner", "keys", "values") not in paths
    assert ("upstreams", "api", "auth") in paths
    assert ("upstreams",) not in paths


@settings(deadline=None)
@given(st.text())
@example("a: *a")
@example("? ")
@example("{")
@example("version: 1\nroutes: [{path: {}, poll: [], webhook: {verify: {hmac: []}}}]")
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    _accepts_or_reports(text)


_WORDS = sorted(
    {
        *re.findall(r"[\w$/{}.-]+|[\[\]{}:,&*<>'\"#-]", FULL),
        "\n",
        "\n  ",
        "\n    ",
        " ",
        ": ",
        "- ",
        "null",
        "${X}",
        "!",
    }
)


@settings(deadline=None)
@given(st.lists(st.sampled_from(_WORDS), max_size=40))
def test_words_of_the_language_in_any_order_are_a_configuration_or_a_config_error(words: list[str]) -> None:
    _accepts_or_reports("".join(words))


_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8), st.just("none")
)
_KEYS = st.sampled_from(sorted({key for path in [(), ("server",), ("routes", 0), ("routes", 0, "poll"), ("routes", 0, "emit"),
    ("routes", 0, "stream"), ("routes", 0, "task"), ("routes", 0, "feed"), ("routes", 0, "webhook"), ("upstreams", "api"), ("routes", 0, "webhook", "verify"), ("limits",), ("auth", "x"),
    ("auth", "x", "forward"), ("auth", "x", "jwt"), ("auth", "x", "jwt", "keys"), ("auth", "x", "keys")] for key in known_keys(path)}))  # fmt: skip
_DOCUMENTS = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=25
)


@settings(deadline=None)
@given(
    st.dictionaries(_KEYS, _DOCUMENTS, max_size=8), st.lists(st.dictionaries(_KEYS, _DOCUMENTS, max_size=6), max_size=3)
)
def test_known_keys_with_any_values_are_a_configuration_or_a_config_error(
    top: dict[str, object], routes: list[object]
) -> None:
    _accepts_or_reports(dump({**top, "version": 1, "routes": routes}))


@settings(deadline=None)
@given(st.data())
def test_the_full_shape_with_one_value_exchanged_is_a_configuration_or_a_config_error(data: st.DataObject) -> None:
    document = deepcopy(DOCUMENT)
    node = document
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.integers(0, 4)) == 0:
            break
        node = node[key]
    node[key] = data.draw(_DOCUMENTS)
    _accepts_or_reports(dump(document))


def _accepts_or_reports(text: str) -> None:
    try:
        config = _parse(text)
    except ConfigError as error:
        lines = len(re.split("\r\n|[\r\n\x85\u2028\u2029]", text))
        places = [(problem.line, problem.column) for problem in error.problems]
        outside = [place for place in places if not (0 <= place[0] <= lines)]
        if outside or places != sorted(places):
            raise AssertionError(places) from error
    else:
        assert isinstance(config, Config)
