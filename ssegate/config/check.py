"""What several keys of a configuration have to do with each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Environ

from ssegate.config.document import Path
from ssegate.config.explain import did_you_mean, nearest
from ssegate.config.guards import Viewers, check_guards, check_names, guards_of, resolve_guards
from ssegate.config.joined import check_joined
from ssegate.config.joined import has_names as has_names
from ssegate.config.listening import check_listening, resolve_server
from ssegate.config.model import Config, Route
from ssegate.config.tree import Part, Tree
from ssegate.config.webhook import REST_NAMES, SECRET_KEYS, RestCall, SubscribeRest, Webhook
from ssegate.core.principal import IDENTITY, is_of_viewer
from ssegate.core.routing import Entry, PathPattern, conflicts
from ssegate.core.template import Template

_SOURCES = ("poll", "stream", "task", "feed", "webhook", "topics", "proxy")
_ASKING = ("poll", "stream", "task", "feed", "proxy")
"""Those that ask an upstream."""
_CURSOR_NAMES = frozenset({"lastEventId", "last_event_id", "Last-Event-ID"})
_FORMS = {
    "snapshot": ("snapshot",),
    "patch": ("snapshot", "patch"),
    "merge": ("snapshot", "merge"),
    "items": ("snapshot", "added", "changed", "removed"),
}
"""What each form of `emit.as` sends (WIRE.md, "A stream", 5)."""
_LONGEST_SECRET = {"websub": 199, "msgraph": 128}
_SECRET_RULES = {
    "websub": "a hub takes less than 200 bytes (W3C WebSub, 5.1)",
    "msgraph": "Microsoft Graph takes at most 128 characters",
}
_MEANINGLESS = {
    "proxy": ("query", "negotiate", "methods", "emit", "heartbeat", "retry", "max_age", "history"),
    "topics": ("query", "negotiate", "methods", "emit", "history"),
}
_TICKET = "ticket"
"""What opens a stream once, in the query."""
_EMITS = {
    "poll": ("as", "names", "template", "event"),
    "webhook": ("event", "data", "template"),
    "stream": ("event", "template"),
    "task": ("template", "event"),
    "feed": ("data", "template"),
}
"""What `emit` may say of each kind of route."""


OWN_EVENTS = 100_000
"""So many events of a stream of one's own are kept where nothing is said: of words, a client whose network is dead has thousands on
their way to it, and the history's size is a bound as well."""


def check_config(config: Config, tree: Tree, environ: Environ[str, str]) -> None:
    """Note in the tree whatever does not fit together. Keys that are broken in themselves cause no further complaints."""
    check_listening(config, tree)
    check_guards(config, tree)
    _check_cors(config, tree)
    _check_personal(config, tree, environ)
    placed = [(tree.origin(("routes", index)), route) for index, route in enumerate(config.routes)]
    for path, route in placed:
        check = _RouteCheck(config, tree, environ, path, route)
        check.run()
        if check.sources == ["topics"]:
            check_joined(path, route, placed, tree)
    _check_conflicts(placed, tree)
    _check_receivers(placed, tree)


def resolve_config(config: Config, tree: Tree, source: str) -> Config:
    """Put the defaults into each route, the only upstream where none is named, and the folder before files' names."""
    guards = resolve_guards(config.auth, tree.folder)
    routes = tuple(_resolved(route, config, tree, index) for index, route in enumerate(config.routes))
    server = resolve_server(config.server, tree.folder)
    resolved = config.model_copy(update={"routes": routes, "server": server, "auth": guards})
    resolved._source = source
    return resolved


def _resolved(route: Route, config: Config, tree: Tree, index: int) -> Route:
    defaults = config.defaults
    update: dict[str, object] = {
        name: getattr(defaults, name)
        for name in ("heartbeat", "retry", "max_age")
        if name not in route.model_fields_set
    }
    update["auth"] = guards_of(route, config)
    own = route.history.model_dump(include=route.history.model_fields_set)
    if has_names(route) and "events" not in defaults.history.model_fields_set:
        own = {"events": OWN_EVENTS, **own}
    update["history"] = defaults.history.model_copy(update=own)
    for name in _ASKING:
        source = getattr(route, name)
        if source is not None and not source.upstream:
            update[name] = source.model_copy(update={"upstream": next(iter(config.upstreams))})
    if route.webhook is not None:
        update["webhook"] = _resolved_webhook(route.webhook, config, "emit" if route.poll is None else "poll")
    resolved = route.model_copy(update=update)
    resolved._line = tree.span(("routes", index, "path"), "key").line
    return resolved


def _resolved_webhook(webhook: Webhook, config: Config, then: str) -> Webhook:
    update: dict[str, object] = {"then": then}
    subscribe = webhook.subscribe
    if subscribe is not None and not subscribe.upstream and subscribe.kind != "websub":
        update["subscribe"] = subscribe.model_copy(update={"upstream": next(iter(config.upstreams))})
    return webhook.model_copy(update=update)


def _check_cors(config: Config, tree: Tree) -> None:
    if config.cors is not None and config.cors.credentials and "*" in config.cors.origins:
        message = '`credentials` and the origin "*" do not go together; name the origins'
        tree.add(("cors", "credentials"), "value", message)


def _check_personal(config: Config, tree: Tree, environ: Environ[str, str]) -> None:
    """What upstreams are told of viewers may have a part that comes from the environment."""
    for name, upstream in config.upstreams.items():
        for header, text in upstream.personal_headers.items():
            path = ("upstreams", name, "headers", header)
            asked = [each.removeprefix("env.") for each in Template(text).names if not is_of_viewer(each)]
            unset = [each for each in asked if each not in environ]
            if unset and not tree.is_broken(path):
                is_hidden = tree.is_expanded(path)
                which = "a variable" if is_hidden else f"the environment variable {unset[0]}"
                hint = "" if is_hidden else did_you_mean(unset[0], environ)
                tree.add(path, "template", f"{which} that it names is not set", hint)


def _check_conflicts(placed: list[tuple[Path, Route]], tree: Tree) -> None:
    placed = [(path, route) for path, route in placed if not tree.is_broken((*path, "path"))]
    entries = [_entry(path, route, route.path) for path, route in placed]
    named = [(path, route) for path, route in placed if has_names(route) and not _pattern(route.path).has_rest]
    entries += [Entry(_pattern(name_path(route.path)), path) for path, route in named]
    placed = [*placed, *named]
    # Each route is told of one other, so that many alike do not make a page for each pair.
    against: dict[int, int] = {}
    for one, other in conflicts(entries):
        against.setdefault(one, other)
        against.setdefault(other, one)
    for one, other in against.items():
        _note_conflict(placed[one][0], placed[other][0], tree)


def _entry(path: Path, route: Route, text: str) -> Entry[Path]:
    methods = None if route.proxy is not None else frozenset(route.opened_by)
    return Entry(_pattern(text), path, negotiate=route.negotiate, methods=methods)


def name_path(path: str) -> str:
    """The path of such names below a route's own."""
    known = _pattern(path).parameters
    name = "stream"
    while name in known:
        name += "_"
    return f"{path.rstrip('/')}/s/{{{name}}}"


def _pattern(path: str) -> PathPattern:
    """Whether the rest is allowed is checked apart from whether the path is one."""
    return PathPattern(path, allow_rest=True)


def _note_conflict(path: Path, other: Path, tree: Tree) -> None:
    line = tree.span((*other, "path"), "key").line
    message = f"matches the same requests as routes[{other[1]}] on line {line}; one of them has to go"
    tree.add((*path, "path"), "route-conflict", message)


def _check_receivers(placed: list[tuple[Path, Route]], tree: Tree) -> None:
    """Deliveries to one path are verified in one way and subscribed to once, and the path is for nothing else."""
    known: dict[object, tuple[Path, Route]] = {}
    viewed = [(path, route) for path, route in placed if not tree.is_broken((*path, "path")) and route.proxy is None]
    paths = {_pattern(route.path).segments: path for path, route in viewed}
    for path, route in placed:
        if route.webhook is None or tree.is_broken((*path, "webhook", "at")):
            continue
        at = _pattern(route.webhook.at).segments
        first, other = known.setdefault(at, (path, route))
        assert other.webhook is not None
        for key, differs in (
            ("verify", "verifies deliveries here in another way"),
            ("subscribe", "subscribes to other deliveries here"),
            ("callback", "names another `callback` for this path"),
        ):
            doubtful = any(tree.is_broken((*each, "webhook", key)) for each in (first, path))
            if not doubtful and getattr(other.webhook, key) != getattr(route.webhook, key):
                line = tree.span((*first, "webhook", "at"), "key").line
                message = f"routes[{first[1]}] on line {line} {differs}; use another path, or write the same"
                tree.add((*path, "webhook", "at"), "route-conflict", message)
                break
        if at in paths:
            line = tree.span((*paths[at], "path"), "key").line
            message = f"routes[{paths[at][1]}] on line {line} has this path for its viewers; deliveries want a path of their own"
            tree.add((*path, "webhook", "at"), "route-conflict", message)


class _RouteCheck:
    """The checks of one route."""

    def __init__(self, config: Config, tree: Tree, environ: Environ[str, str], path: Path, route: Route) -> None:
        self._config = config
        self._tree = tree
        self._environ = environ
        self._path = path
        self._route = route
        self._parameters = _pattern(route.path).parameters
        self._viewers = Viewers.of(route, path, config, tree)
        self._of_viewer = (IDENTITY,) if self._viewers.are_known else ()

    def run(self) -> None:
        self._check_sources()
        self._check_query()
        self._check_meaningless()
        check_names((*self._path, "auth"), self._route.auth, self._tree)
        self._check_upstreams()
        self._check_body()
        self._check_emit()
        self._check_methods()
        self._check_stream()
        self._check_task()
        self._check_feed()
        if not self._is_broken("path"):
            self._check_path()
            self._check_params()
            self._check_urls()
            self._check_match()
            self._check_event()
        if self._route.webhook is not None:
            self._check_verify(self._route.webhook)
            self._check_then(self._route.webhook)
            self._check_subscribe(self._route.webhook)

    def _add(self, keys: Path, code: str, message: str, hint: str = "", part: Part = "value") -> None:
        path = (*self._path, *keys)
        if not self._tree.is_broken(path):
            self._tree.add(path, code, message, hint, part)

    def _has(self, *keys: str) -> bool:
        """Whether the file has it, right or wrong."""
        return self._tree.find((*self._path, *keys)) is not None

    def _is_broken(self, *keys: str | int) -> bool:
        return self._tree.is_broken((*self._path, *keys))

    @property
    def sources(self) -> list[str]:
        """Where its events or answers come from: just one key, or `poll` and `webhook`, where nothing is wrong."""
        return [name for name in _SOURCES if self._has(name)]

    def _check_sources(self) -> None:
        sources = self.sources
        if not sources and not any(self._is_broken(name) for name in _SOURCES):
            message = f"the route has no source; write one of {', '.join(_SOURCES[:-1])} and {_SOURCES[-1]}"
            self._tree.add((*self._path, "path"), "missing", message, part="key", about=self._path)
        if len(sources) > 1 and sources != ["poll", "webhook"]:
            self._note_extra(sources[1], f"the route has `{sources[0]}` already; keep one of them")

    def _note_extra(self, name: str, message: str) -> None:
        """Also when something in it is broken: it is one too many anyway."""
        self._tree.add((*self._path, name), "value", message, part="key")

    def _check_path(self) -> None:
        if _pattern(self._route.path).has_rest and not self._has("proxy"):
            name = self._parameters[-1]
            message = f"`{{{name}:path}}` is for proxy routes only; write `{{{name}}}` for one segment"
            self._add(("path",), "template", message)
        if IDENTITY in self._parameters and self._viewers.are_known:
            message = f"`{{{IDENTITY}}}` is who the viewer is; give the parameter another name"
            self._add(("path",), "template", message)

    def _check_params(self) -> None:
        for name in self._route.params:
            if name not in self._parameters:
                self._note_unknown(("params", name), f"`{name}` is not a parameter of the path", name, self._parameters)

    def _check_query(self) -> None:
        if self.sources == ["webhook"] and self._has("query"):
            self._add(("query",), "value", "`query` means nothing on a webhook route; leave it out", part="key")
        for name in self._route.query:
            if name == _TICKET and self._viewers.are_known:
                message = f"`{name}` is taken out of the query as what opens a stream once; take another name"
                self._add(("query", name), "value", message, part="key")
            if name in _CURSOR_NAMES:
                message = f"`{name}` is taken out of the query as the cursor; take another name"
                self._add(("query", name), "value", message, part="key")

    def _check_meaningless(self) -> None:
        kind = self.sources[0] if len(self.sources) == 1 else ""
        for name in _MEANINGLESS.get(kind, ()):
            if self._has(name):
                what = "a proxy route" if kind == "proxy" else "a route that joins topics"
                self._add((name,), "value", f"`{name}` means nothing on {what}; leave it out", part="key")

    def _note_unknown(self, keys: Path, message: str, name: str, known: Iterable[str], part: Part = "key") -> None:
        self._add(keys, "reference", message, did_you_mean(name, known), part)

    def _check_upstreams(self) -> None:
        for source in _ASKING:
            asks = getattr(self._route, source)
            if asks is not None:
                self._check_upstream(asks.upstream, (source,))

    def _check_upstream(self, name: str, source: Path) -> None:
        known = self._upstreams()
        keys = (*source, "upstream")
        if self._tree.is_gone(("upstreams",)) or self._is_broken(*keys):
            return
        if not known:
            self._add(source, "reference", "there is no upstream to ask; write `upstreams`", part="key")
        elif not name and len(known) > 1:
            message = f"`upstream` is missing; write one of {_listed(known)}"
            self._tree.add((*self._path, *source), "missing", message, part="key")
        elif name and name not in known:
            self._note_value_unknown(keys, "upstream", name, known)

    def _upstreams(self) -> list[str]:
        """Those in the file, right or wrong."""
        return self._tree.keys(("upstreams",))

    def _note_value_unknown(self, keys: Path, what: str, name: str, known: list[str]) -> None:
        """As a value may have come from `${…}`, it is not quoted then."""
        if self._tree.is_expanded((*self._path, *keys)):
            self._add(keys, "reference", f"what `${{…}}` gave here is no {what}; write one of {_listed(known)}")
        else:
            self._note_unknown(keys, f"`{name}` is no {what}; write one of {_listed(known)}", name, known, "value")

    def _check_body(self) -> None:
        if self._route.poll is not None and self._route.poll.body != "json":
            for name in ("select", "items", "ignore"):
                if self._has("poll", name):
                    message = f"`{name}` reads JSON; leave it out, or write `body: json`"
                    self._add(("poll", name), "value", message, part="key")

    def _check_urls(self) -> None:
        """What a URL may name: the path's parameters, the query's, the environment, and what its kind of route adds."""
        known = [*self._parameters, *(f"query.{name}" for name in self._route.query)]
        for keys, text, more in self._urls():
            for name in Template(text).names:
                is_known = (
                    name in known or name in more or (more and name.startswith(tuple(f"{each}." for each in more)))
                )
                if not is_known and is_of_viewer(name):
                    self._check_viewer_name(keys, name, f"`{{{name}}}`")
                elif not is_known and not self._is_doubtful(name):
                    self._note_name(keys, name, [*known, *more, *self._of_viewer])

    def _urls(self) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
        route = self._route
        if route.poll is not None:
            yield ("poll", "get"), route.poll.get, ()
        if route.stream is not None:
            yield ("stream", route.stream.method.lower()), route.stream.path, ("cursor",)
        if route.feed is not None:
            yield ("feed", "get"), route.feed.get, ("cursor",)
        if route.task is not None:
            start = route.task.start
            # Without a `start` its names are told of by themselves.
            yield ("task", "get"), route.task.get, ("start",) if start is None else ("start.headers", "start.body")
            if start is not None:
                yield ("task", "start", start.method.lower()), start.path, ()

    def _check_viewer_name(self, keys: Path, name: str, said: str, part: Part = "value") -> None:
        fault, hint = self._viewers.why_not(name)
        if fault and self._tree.is_expanded((*self._path, *keys)) and part == "value":
            said = "what it names of the viewer"
        if fault:
            self._add(keys, "template", f"{said}: {fault}", hint, part)

    def _is_doubtful(self, name: str) -> bool:
        """Whether it would be declared by a key that is broken."""
        return name.startswith("query.") and self._is_broken("query")

    def _note_name(self, keys: Path, name: str, known: list[str]) -> None:
        root, _, rest = name.partition(".")
        if root == "env" and rest in self._environ:
            return
        if self._tree.is_expanded((*self._path, *keys)):
            self._add(keys, "template", "what `${…}` gave here names what is neither in the path nor in `query`")
        elif root == "env":
            hint = did_you_mean(rest, self._environ)
            self._add(keys, "template", f"`{{{name}}}`: the environment variable {rest or 'it wants'} is not set", hint)
        elif root == "query":
            message = f"`{{{name}}}` is not declared; write it below `query` with a pattern"
            self._add(keys, "template", message, did_you_mean(name, known))
        else:
            self._add(keys, "template", f"`{{{name}}}` is not a parameter of the path", did_you_mean(name, known))

    def _check_match(self) -> None:
        webhook = self._route.webhook
        if webhook is None:
            return
        for name in webhook.match:
            if name in self._parameters:
                continue
            if is_of_viewer(name) and _is_name(name):
                self._check_viewer_name(("webhook", "match", name), name, f"`{name}`", "key")
            else:
                message = f"`{name}` is not a parameter of the path"
                self._note_unknown(("webhook", "match", name), message, name, [*self._parameters, *self._of_viewer])
        strange = [name for name in webhook.match if name not in self._parameters and not is_of_viewer(name)]
        meant = {nearest(name, self._parameters) for name in strange}
        missing = [name for name in self._parameters if name not in webhook.match and name not in meant]
        missing = [name for name in missing if not self._is_broken("webhook", "match", name)]
        if missing and not self._has("poll"):  # beside a poll, what is not matched may have any value
            keys = ("webhook", "match") if self._has("webhook", "match") else ("webhook",)
            message = f"{_listed(missing)} of the path {'is' if len(missing) == 1 else 'are'} not matched; say where to find it"
            self._add(keys, "missing", message, part="key")

    def _check_emit(self) -> None:
        sources = self.sources
        if not sources or sources[0] not in _EMITS or (len(sources) > 1 and sources != ["poll", "webhook"]):
            return
        kind = sources[0]
        for name in ("as", "names", "event", "data", "template"):
            if self._has("emit", name) and name not in _EMITS[kind]:
                *owners, last = (each for each, names in _EMITS.items() if name in names)
                message = f"`{name}` is for {', '.join(owners)}{' and ' if owners else ''}{last} routes; leave it out"
                self._add(("emit", name), "value", message, part="key")
        if kind == "poll":
            self._check_form()
        self._check_template(kind)

    def _check_template(self, kind: str) -> None:
        emit = self._route.emit
        if emit.template is None:
            if kind in ("poll", "task") and self._has("emit", "event"):
                message = "`event` names what a `template` makes; leave it out"
                self._add(("emit", "event"), "value", message, part="key")
            return
        if emit.as_ != "snapshot" and not self._is_broken("emit", "as"):
            message = (
                f"`as: {emit.as_}` and a `template` do not go together; a template makes each event of the whole state"
            )
            self._add(("emit", "template"), "value", message, part="key")
        if self._has("emit", "names"):
            self._add(("emit", "names"), "value", "beside a `template`, `event` names the events", part="key")
        if self._route.poll is not None and self._route.poll.body != "json" and not self._is_broken("poll", "body"):
            self._add(("emit", "template"), "value", "a `template` reads JSON; it needs `body: json`", part="key")

    # Streams, tasks and feeds

    def _check_methods(self) -> None:
        if self._route.methods is not None and not self._is_broken("methods"):
            needs_get = self.sources[:1] in (["poll"], ["webhook"], ["feed"])
            if needs_get and self._route.methods != ("GET",):
                message = "`methods` is for routes whose requests open a stream of their own (`stream` and `task`); leave it out"
                self._add(("methods",), "value", message, part="key")
        self._check_shared()

    def _check_shared(self) -> None:
        route = self._route
        shares = (route.stream is not None and route.stream.is_shared) or (
            route.task is not None and route.task.is_shared
        )
        if shares and route.methods is not None and route.methods != ("GET",) and not self._is_broken("methods"):
            message = "all viewers share what is asked here, so `GET` is enough; leave `methods` out"
            self._add(("methods",), "value", message, part="key")

    def _check_stream(self) -> None:
        stream = self._route.stream
        if stream is None:
            return
        if stream.format == "websocket" and stream.get is None and not self._is_broken("stream", "format"):
            method = stream.method.lower()
            self._add(("stream", method), "value", "a WebSocket is opened with `get`", part="key")
        method = stream.method.lower()
        if not _can_do_without(stream.path, "cursor") and not self._is_broken("stream", method):
            message = "`{cursor}` has no value at first; make it a pair of the query, `after={cursor}`"
            self._add(("stream", method), "template", message)
        if stream.format == "lines":
            for name in ("data", "id", "done", "when"):
                expression = getattr(stream, name)
                if expression is not None and expression.search is not None and not self._is_broken("stream", name):
                    message = "a line is text and has no members; the line itself is `@`, or write `format: ndjson`"
                    self._add(("stream", name), "expression", message)
        if stream.format == "bytes":
            for name in ("data", "event", "id", "done", "when"):
                if self._has("stream", name):
                    self._add(("stream", name), "value", f"`{name}` reads records; `bytes` has none", part="key")
        if stream.reconnect and stream.method != "GET" and not self._is_broken("stream", "reconnect"):
            message = f"a {stream.method} is not sent twice; leave `reconnect` out"
            self._add(("stream", "reconnect"), "value", message, part="key")
        if stream.event is not None and self._has("emit", "event"):
            self._add(("emit", "event"), "value", "the stream has an `event` already; keep one of them", part="key")

    def _check_task(self) -> None:
        task = self._route.task
        if task is None:
            return
        is_there = task.start is not None or self._has("task", "start")
        if not is_there and any(name.startswith("start.") for name in Template(task.get).names):
            message = "`{start.…}` is the answer to `start`, which is missing"
            self._add(("task", "get"), "template", message)

    def _check_feed(self) -> None:
        feed = self._route.feed
        if feed is None or self._is_broken("feed", "get"):
            return
        names = Template(feed.get).names
        if "cursor" not in names:
            if any(nearest(name, ["cursor"]) for name in names if name not in self._parameters):
                return  # it is misspelt, and that is told
            message = (
                "`{cursor}` is missing: without it each page would be the first; write it where the backend takes it"
            )
            self._add(("feed", "get"), "template", message)
        elif feed.start in ("now", "beginning") and not _can_do_without(feed.get, "cursor"):
            message = "`{cursor}` has no value at first; make it a pair of the query, `after={cursor}`, or let `start` be a cursor"
            self._add(("feed", "get"), "template", message)

    def _check_event(self) -> None:
        """On a webhook route; elsewhere a name is looked up in a document that nobody knows beforehand."""
        if self._route.webhook is None or self._has("poll") or self._route.emit.event is None:
            return
        known = [*self._parameters, "headers", "body", "query", "data", "env"]
        for name in Template(self._route.emit.event).names:
            root, _, rest = name.partition(".")
            if root == "env" or (root not in ("headers", "body", "query", "data") and name not in self._parameters):
                self._note_event_name(name, root, rest, known)
            elif not rest and root in ("headers", "query") and name not in self._parameters:
                self._add(("emit", "event"), "template", f"`{{{name}}}` wants a name behind it, such as `{{{name}.x}}`")

    def _note_event_name(self, name: str, root: str, rest: str, known: list[str]) -> None:
        keys = ("emit", "event")
        if root == "env" and rest:
            self._note_name(keys, name, known)
        elif self._tree.is_expanded((*self._path, *keys)):
            self._add(keys, "template", "what `${…}` gave here names what a delivery does not have")
        else:
            message = f"`{{{name}}}` is neither a parameter of the path nor in headers, body, query or env"
            self._add(keys, "template", message, did_you_mean(root, known))

    # Webhooks

    def _check_verify(self, webhook: Webhook) -> None:
        """Whose secret is not said is one that the gate makes, and tells the backend when it subscribes."""
        keys = ("webhook", "verify")
        rest = None if webhook.subscribe is None else webhook.subscribe.rest
        brings_its_own = webhook.subscribe is not None and rest is None
        if self._is_broken(*keys) or self._is_broken("webhook", "subscribe"):
            return
        if webhook.verify is None:
            if not brings_its_own and (rest is None or not _tells_secret(rest)):
                owner = (*self._path, "webhook")
                self._tree.add(owner, "missing", "`verify` is missing", part="key", about=owner)
            return
        scheme = webhook.verify.scheme
        if brings_its_own and webhook.subscribe is not None and scheme != webhook.subscribe.kind:
            message = f"`subscribe` by {webhook.subscribe.kind} brings its own way; leave `verify` out, or write {webhook.subscribe.kind}"
            self._add((*keys, scheme) if scheme != "none" else keys, "value", message)
        elif brings_its_own and webhook.verify.secrets:
            self._check_told_secret(scheme, webhook.verify.secrets[0].get_secret_value())
        elif scheme != "none" and webhook.verify.secrets is None and webhook.subscribe is None:
            owner = (*self._path, *keys, scheme)
            name = SECRET_KEYS.get(scheme, "secret")
            self._tree.add(owner, "missing", f"`{name}` is missing", part="key", about=owner)

    def _check_told_secret(self, scheme: str, secret: str) -> None:
        """What the backend is told to sign with has to be one that it takes."""
        name = SECRET_KEYS.get(scheme, "secret")
        if len(secret.encode("utf-8", "surrogateescape")) > _LONGEST_SECRET[scheme]:
            self._add(("webhook", "verify", scheme, name), "value", f"too long; {_SECRET_RULES[scheme]}")

    def _check_then(self, webhook: Webhook) -> None:
        has_poll = self._has("poll")
        if webhook.then == "poll" and not has_poll:
            self._add(
                ("webhook", "then"),
                "value",
                "`then: poll` needs a `poll` beside the webhook, which says what to ask for",
            )
        elif webhook.then == "emit" and has_poll:
            message = "beside a `poll` the webhook only says that something has changed; write `then: poll`, or make it a route of its own"
            self._add(("webhook", "then"), "value", message)

    def _check_subscribe(self, webhook: Webhook) -> None:
        subscribe = webhook.subscribe
        if subscribe is None:
            if webhook.callback is not None and not self._is_broken("webhook", "subscribe"):
                self._add(("webhook", "callback"), "value", "`callback` is for `subscribe`; leave it out", part="key")
            return
        if webhook.callback is None and not self._is_broken("webhook", "callback"):
            message = f"`callback` is missing; write the URL by which the backend reaches {webhook.at}"
            self._tree.add((*self._path, "webhook", "subscribe"), "missing", message, part="key")
        if subscribe.kind == "websub":
            if subscribe.upstream:
                message = "`upstream` means nothing here: the hub is found at the topic; leave it out"
                self._add(("webhook", "subscribe", "upstream"), "value", message, part="key")
            return
        self._check_upstream(subscribe.upstream, ("webhook", "subscribe"))
        if subscribe.rest is not None:
            for name in ("create", "renew", "delete"):
                call = getattr(subscribe.rest, name)
                if call is not None:
                    has_id = name != "create" and subscribe.rest.create.id is not None
                    self._check_call(("webhook", "subscribe", "rest", name), call, has_id)

    def _check_call(self, keys: Path, call: RestCall, has_id: bool) -> None:
        known = [name for name in REST_NAMES if name != "id" or has_id]
        for place, text in ((call.method.lower(), call.path), *_texts(call.body, "body")):
            for name in Template(text).names:
                if name in known:
                    continue
                if name == "id":
                    self._add(
                        (*keys, place),
                        "template",
                        "`{id}` has no value; let `create` say by `id` where it is in the answer",
                    )
                elif name.partition(".")[0] == "env":
                    self._note_name((*keys, place), name, known)
                else:
                    message = f"`{{{name}}}` is nothing that a subscription has; write {_listed(f'{{{each}}}' for each in known)}"
                    self._add((*keys, place), "template", message, did_you_mean(name, known))

    def _check_form(self) -> None:
        poll, emit = self._route.poll, self._route.emit
        if poll is None:
            return
        if emit.as_ == "items" and poll.items is None and not self._is_broken("poll", "items"):
            self._add(("emit", "as"), "missing", "`as: items` needs `poll.items`, which says where the list is")
        if emit.as_ != "items" and poll.items is not None and not self._is_broken("emit", "as"):
            self._add(("poll", "items"), "value", "`items` needs `emit: {as: items}`", part="key")
        if emit.as_ != "snapshot" and poll.body != "json" and not self._is_broken("poll", "body"):
            self._add(("emit", "as"), "value", f"`as: {emit.as_}` compares JSON; it needs `body: json`")
        if not self._is_broken("emit", "as"):
            self._check_event_type_names(emit.as_)

    def _check_event_type_names(self, form: str) -> None:
        known = _FORMS[form]
        for name in sorted(self._route.emit.names.model_fields_set - set(known)):
            message = f"`as: {form}` sends no `{name}`; it sends {_listed(known)}"
            self._add(("emit", "names", name), "reference", message, part="key")


def _is_name(text: str) -> bool:
    """Whether a template could name it."""
    try:
        return Template(f"{{{text}}}").names == (text,)
    except ValueError:
        return False


def _can_do_without(text: str, name: str) -> bool:
    """Whether a URL comes out of a template though this has no value."""
    try:
        Template(text).expand_url(lambda asked: None if asked == name else "x")
    except LookupError:
        return False
    return True


def _tells_secret(rest: SubscribeRest) -> bool:
    """Whether the backend is told what to sign with."""
    texts = (rest.create.path, *(text for _, text in _texts(rest.create.body, "body")))
    return any("secret" in Template(text).names for text in texts)


def _texts(value: object, place: str) -> Iterator[tuple[str, str]]:
    """The texts in a body that is sent as JSON, each with the key it is below."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item, place)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
