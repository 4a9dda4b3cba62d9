"""What several keys have to do with each other."""

from __future__ import annotations

import pytest

from ssegate.config import Config, parse_config
from ssegate.errors import ConfigError

Told = list[tuple[str, str, str]]


def _parse(routes: str, upstreams: str = "{api: http://localhost:8000}", more: str = "", **environ: str) -> Config:
    text = f"version: 1\nupstreams: {upstreams}\nroutes:\n{routes}\n{more}"
    return parse_config(text, source="f.yaml", environ=environ)


def _told(routes: str, upstreams: str = "{api: http://localhost:8000}", more: str = "", **environ: str) -> Told:
    with pytest.raises(ConfigError) as caught:
        _parse(routes, upstreams, more, **environ)
    return [(problem.code, problem.where, problem.message) for problem in caught.value.problems]


def _hints(routes: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        _parse(routes, **environ)
    return [problem.hint for problem in caught.value.problems]


POLL = "  - {path: /a, poll: {get: /a}, emit: {}}"


def _poll(path: str = "/a/{id}", get: str = "/a", poll: str = "", more: str = "") -> str:
    return f'  - path: "{path}"\n    poll: {{get: "{get}"{poll and ", " + poll}}}\n' + (f"    {more}\n" if more else "")


def _webhook(path: str = "/w/{id}", webhook: str = "match: {id: body.id}", more: str = "", at: str = "/hook") -> str:
    keys = f"at: {at}, verify: none" + (f", {webhook}" if webhook else "")
    return f'  - path: "{path}"\n    webhook: {{{keys}}}\n' + (f"    {more}\n" if more else "")


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        # sources
        ("  - path: /a", ("missing", "routes[0]", "the route has no source; write one of poll, stream, task, feed, webhook, topics and proxy")),
        ("  - {path: /a, poll: {get: /a}, proxy: {}}", ("value", "routes[0].proxy", "the route has `poll` already; keep one of them")),
        (
            "  - {path: /a, poll: {get: /a}, webhook: {at: /h, verify: none, then: emit}}",
            ("value", "routes[0].webhook.then", "beside a `poll` the webhook only says that something has changed; write `then: poll`, or make it a route of its own"),
        ),
        (
            _webhook(webhook="match: {id: body.id}, then: poll"),
            ("value", "routes[0].webhook.then", "`then: poll` needs a `poll` beside the webhook, which says what to ask for"),
        ),
        # paths
        (_poll("a"), ("template", "routes[0].path", "`a` is no path: let it begin with `/`")),
        (_poll("/_ssegate/x"), ("value", "routes[0].path", "paths that begin with /_ssegate/ are the gate's own; take another")),
        (_poll("/_ssegate"), ("value", "routes[0].path", "paths that begin with /_ssegate/ are the gate's own; take another")),
        (_poll("/{r:path}"), ("template", "routes[0].path", "`{r:path}` is for proxy routes only; write `{r}` for one segment")),
        # params and query
        (_poll(more="params: {di: x}"), ("reference", "routes[0].params.di", "`di` is not a parameter of the path")),
        (_poll(more="query: {lastEventId: x}"), ("value", "routes[0].query.lastEventId", "`lastEventId` is taken out of the query as the cursor; take another name")),
        (_webhook(more="query: {a: x}"), ("value", "routes[0].query", "`query` means nothing on a webhook route; leave it out")),
        # proxy
        ("  - {path: /p, negotiate: true, proxy: {}}", ("value", "routes[0].negotiate", "`negotiate` means nothing on a proxy route; leave it out")),
        ("  - {path: /p, emit: {}, proxy: {}}", ("value", "routes[0].emit", "`emit` means nothing on a proxy route; leave it out")),
        ("  - {path: /p, retry: 1s, proxy: {}}", ("value", "routes[0].retry", "`retry` means nothing on a proxy route; leave it out")),
        # get
        (_poll(get="/x/{idd}"), ("template", "routes[0].poll.get", "`{idd}` is not a parameter of the path")),
        (_poll(get="/x?s={query.s}"), ("template", "routes[0].poll.get", "`{query.s}` is not declared; write it below `query` with a pattern")),
        (_poll(get="/x/{env.NOT}"), ("template", "routes[0].poll.get", "`{env.NOT}`: the environment variable NOT is not set")),
        (_poll(get="/x/{headers.a}"), ("template", "routes[0].poll.get", "`{headers.a}` is not a parameter of the path")),
        (_poll(get="http://evil/"), ("template", "routes[0].poll.get", "a URL template is a path: let it begin with `/`")),
        (_poll(get="//evil/"), ("template", "routes[0].poll.get", "`//` at the beginning would name a host: write one `/`")),
        # json
        (_poll(poll="body: text, select: a"), ("value", "routes[0].poll.select", "`select` reads JSON; leave it out, or write `body: json`")),
        (_poll(poll="body: bytes, ignore: [/a]"), ("value", "routes[0].poll.ignore", "`ignore` reads JSON; leave it out, or write `body: json`")),
        (_poll(poll="body: text", more="emit: {as: patch}"), ("value", "routes[0].emit.as", "`as: patch` compares JSON; it needs `body: json`")),
        # emit
        (_poll(more="emit: {as: items}"), ("missing", "routes[0].emit.as", "`as: items` needs `poll.items`, which says where the list is")),
        (_poll(poll="items: {key: id}"), ("value", "routes[0].poll.items", "`items` needs `emit: {as: items}`")),
        (_poll(more="emit: {as: patch, names: {merge: x}}"), ("reference", "routes[0].emit.names.merge", "`as: patch` sends no `merge`; it sends `snapshot`, `patch`")),
        (_poll(more="emit: {names: {added: x}}"), ("reference", "routes[0].emit.names.added", "`as: snapshot` sends no `added`; it sends `snapshot`")),
        (_poll(more="emit: {names: {snapshot: error}}"), ("value", "routes[0].emit.names.snapshot", "\"error\" is a name of the gate's own; take another")),
        (_poll(more='emit: {names: {snapshot: "a\\nb"}}'), ("value", "routes[0].emit.names.snapshot", "holds a line end or NUL; write one line")),
        (_poll(more="emit: {event: x}"), ("value", "routes[0].emit.event", "`event` names what a `template` makes; leave it out")),
        (_webhook(more="emit: {as: patch}"), ("value", "routes[0].emit.as", "`as` is for poll routes; leave it out")),
        (_webhook(more="emit: {event: reset}"), ("value", "routes[0].emit.event", "\"reset\" is a name of the gate's own; take another")),
        (
            _webhook(more='emit: {event: "{foo}"}'),
            ("template", "routes[0].emit.event", "`{foo}` is neither a parameter of the path nor in headers, body, query or env"),
        ),
        (_webhook(more='emit: {event: "{headers}"}'), ("template", "routes[0].emit.event", "`{headers}` wants a name behind it, such as `{headers.x}`")),
        # webhooks
        (_webhook(webhook=""), ("missing", "routes[0].webhook", "`id` of the path is not matched; say where to find it")),
        (_webhook(webhook="match: {id: a, other: b}"), ("reference", "routes[0].webhook.match.other", "`other` is not a parameter of the path")),
        (_webhook(at='"/h/{x}"'), ("template", "routes[0].webhook.at", "a webhook's path has no parameters; `match` takes them out of the body")),
        (_webhook(at="/_ssegate/h"), ("value", "routes[0].webhook.at", "paths that begin with /_ssegate/ are the gate's own; take another")),
        (
            _webhook() + _poll("/hook"),
            ("route-conflict", "routes[0].webhook.at", "routes[1] on line 6 has this path for its viewers; deliveries want a path of their own"),
        ),
        (
            _webhook() + '  - {path: /v, webhook: {at: "/%68ook", verify: {token: x}}}',
            ("route-conflict", "routes[1].webhook.at", "routes[0] on line 5 verifies deliveries here in another way; use another path, or write the same"),
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_told(routes: str, expected: tuple[str, str, str]) -> None:
    assert _told(routes) == [expected]


@pytest.mark.parametrize(
    "routes",
    [
        _poll("/a/{id}", "/x/{id}?s={query.s}&e={env.SET}", more='query: {s: "a|b"}'),
        _poll(
            poll="items: {key: id}", more="emit: {as: items, names: {snapshot: a, added: b, changed: c, removed: d}}"
        ),
        _poll(poll="body: text"),
        _poll(more="emit: {as: merge, names: {merge: change}}"),
        _webhook(more='emit: {event: "{headers.x-e}-{body.a.b}-{query.q}-{id}-{env.SET}-{body}"}'),
        _webhook() + _webhook("/v/{x}", "match: {x: body.x}"),
        _webhook(at="/a") + "  - {path: '/{rest:path}', proxy: {}}",
        "  - {path: '/a/{id}', negotiate: true, poll: {get: /a}}\n  - {path: '/a/{id}', proxy: {}}",
        "  - {path: '/a/{id}', poll: {get: /a}}\n  - {path: /a/b, poll: {get: /b}}\n  - {path: '/{r:path}', proxy: {}}",
    ],
)
def test_what_fits_together_is_taken(routes: str) -> None:
    assert _parse(routes, SET="x").routes


def test_two_routes_for_the_same_requests_are_told_at_both_lines() -> None:
    routes = _poll("/a/{id}", more='params: {id: "[0-9]+"}') + _poll("/b") + _poll("/a/{name}")
    assert _told(routes) == [
        ("route-conflict", "routes[0].path", "matches the same requests as routes[2] on line 9; one of them has to go"),
        ("route-conflict", "routes[2].path", "matches the same requests as routes[0] on line 4; one of them has to go"),
    ]


def test_the_only_upstream_need_not_be_named() -> None:
    config = _parse(_poll() + "  - {path: /p, proxy: {}}")
    poll, proxy = config.routes[0].poll, config.routes[1].proxy
    assert poll is not None
    assert proxy is not None
    assert (poll.upstream, proxy.upstream) == ("api", "api")


def test_of_several_upstreams_one_has_to_be_named() -> None:
    two = "{api: http://a, other: http://b}"
    assert _told(_poll(), two) == [("missing", "routes[0].poll", "`upstream` is missing; write one of `api`, `other`")]
    unknown = [("reference", "routes[0].proxy.upstream", "`apj` is no upstream; write one of `api`, `other`")]
    assert _told("  - {path: /p, proxy: {upstream: apj}}", two) == unknown
    assert _hints("  - {path: /p, proxy: {upstream: apj}}") == ["did you mean `api`?"]


def test_without_an_upstream_there_is_nothing_to_ask() -> None:
    assert _told(_poll(), "{}") == [("reference", "routes[0].poll", "there is no upstream to ask; write `upstreams`")]
    assert _parse(_webhook(), "{}").upstreams == {}


def test_an_upstream_that_is_wrong_is_not_missing_as_well() -> None:
    assert [where for _, where, _ in _told(_poll(poll="upstream: api"), "{api: 5}")] == ["upstreams.api"]
    assert [where for _, where, _ in _told(_poll(poll="upstream: api"), "5")] == ["upstreams"]


def test_a_name_that_is_near_is_proposed() -> None:
    assert _hints(_poll(get="/x/{idd}")) == ["did you mean `id`?"]
    assert _hints(_poll(get="/x/{env.HOMEE}"), HOME="/") == ["did you mean `HOME`?"]
    assert _hints(_poll(get="/x?{query.statu}", more="query: {status: a}")) == ["did you mean `query.status`?"]
    assert _hints(_webhook(webhook="match: {di: body.id}")) == ["did you mean `id`?"]


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        (
            _poll(poll="evry: 2s, items: {kye: id}", more="emit: {as: items}"),
            ["routes[0].poll", "routes[0].poll.items"],
        ),
        (_poll(poll="items: 5", more="emit: {as: items}"), ["routes[0].poll.items"]),
        (_poll(poll="items: {key: id}", more="emit: {as: itemz}"), ["routes[0].emit.as"]),
        (_poll("/a/{id}/{id}", "/x/{id}", more="params: {id: x}"), ["routes[0].path"]),
        (_poll(get="/x?s={query.s}", more='query: {s: "["}'), ["routes[0].query.s"]),
        (_poll(poll="body: txt", more="emit: {as: patch}"), ["routes[0].poll.body"]),
        (_webhook(webhook='match: {id: "a["}'), ["routes[0].webhook.match.id"]),
        ("  - {path: /a, pol: {get: /a}}", ["routes[0]"]),
        ("  - {path: /a, poll: 5}", ["routes[0].poll"]),
    ],
)
def test_a_fault_is_told_and_not_what_follows_from_it(routes: str, expected: list[str]) -> None:
    assert [where for _, where, _ in _told(routes)] == expected


def test_one_fault_does_not_hide_another_in_the_same_mapping() -> None:
    told = _told(
        _poll(get="x", poll="every: {min: 5s, max: 2s, mid: 3s}, body: text, select: a", more="params: {x: y}")
    )
    assert [where for _, where, _ in told] == [
        "routes[0].poll.get",
        "routes[0].poll.every",
        "routes[0].poll.every",
        "routes[0].poll.select",
        "routes[0].params.x",
    ]


def test_the_admin_listener_has_an_address_of_its_own() -> None:
    told = _told(POLL, more="server: {listen: 127.0.0.1:80}\nadmin: {listen: 127.0.0.1:80}")
    assert [(code, where) for code, where, _ in told] == [("value", "admin.listen")]
    assert _parse(POLL, more="server: {listen: 127.0.0.1:0}\nadmin: {listen: 127.0.0.1:0}").admin


def test_every_origin_and_credentials_do_not_go_together() -> None:
    told = _told(POLL, more='cors: {origins: ["*"], credentials: true}')
    assert [(code, where) for code, where, _ in told] == [("value", "cors.credentials")]
    assert _parse(POLL, more='cors: {origins: ["*"]}').cors
