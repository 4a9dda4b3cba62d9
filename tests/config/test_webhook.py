"""What a file may say of a webhook: how it is verified, subscribed to, and what goes together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssegate.config import parse_config
from ssegate.config.model import Route
from ssegate.errors import ConfigError

Told = list[tuple[str, str, str]]

CALLBACK = "callback: https://gate.example.com/hooks/x"


def parse(webhook: str, *, upstreams: str = "{api: http://localhost}", server: str = "", more: str = "") -> Route:
    text = f"version: 1\n{server}\nupstreams: {upstreams}\nroutes:\n  - path: '/x/{{id}}'\n    webhook:\n      at: /hooks/x\n      match: {{id: body.id}}\n"
    text += "".join(f"      {line}\n" for line in webhook.splitlines()) + more
    return parse_config(text, source="f", environ={"TOKEN": "{a}"}).routes[0]


def told(webhook: str, **options: Any) -> Told:
    with pytest.raises(ConfigError) as caught:
        parse(webhook, **options)
    return [(each.code, each.where.removeprefix("routes[0].webhook"), each.message) for each in caught.value.problems]


SECRET = ["github", "gitlab", "stripe", "slack", "shopify", "websub"]


@pytest.mark.parametrize("scheme", SECRET)
@pytest.mark.parametrize(("secret", "values"), [("a", ("a",)), ("[new, old]", ("new", "old"))])
def test_a_preset_takes_one_secret_or_several(scheme: str, secret: str, values: tuple[str, ...]) -> None:
    webhook = parse(f"verify: {{{scheme}: {{secret: {secret}}}}}").webhook
    assert webhook is not None
    assert webhook.scheme == scheme
    assert webhook.verify is not None
    assert tuple(each.get_secret_value() for each in webhook.verify.secrets or ()) == values


@pytest.mark.parametrize(
    ("scheme", "key"),
    [
        *((scheme, "secret") for scheme in (*SECRET, "standard", "hmac")),
        ("cloudevents", "token"),
        ("msgraph", "client_state"),
    ],
)
def test_a_secret_that_is_missing_is_told_where_it_belongs(scheme: str, key: str) -> None:
    keys = "header: x" if scheme == "hmac" else ""
    assert told(f"verify: {{{scheme}: {{{keys}}}}}") == [("missing", f".verify.{scheme}", f"`{key}` is missing")]


@pytest.mark.parametrize("secret", ["whsec_", "whsec_?", "plain text", "whsec_YQ"])
def test_a_secret_of_standard_webhooks_is_base64(secret: str) -> None:
    ((code, where, message),) = told(f"verify: {{standard: {{secret: '{secret}'}}}}")
    assert (code, where) == ("value", ".verify.standard.secret")
    assert "whsec_` and base64" in message
    assert "plain" not in message


def test_what_is_left_out_is_what_fits() -> None:
    webhook = parse("verify: none").webhook
    assert webhook is not None
    assert (webhook.then, webhook.dedupe.by, webhook.dedupe.age, webhook.when) == ("emit", None, 86400.0, None)
    webhook = parse("verify: none", more="    poll: {get: '/x/{id}'}\n").webhook
    assert webhook is not None
    assert webhook.then == "poll"


@pytest.mark.parametrize(
    ("webhook", "expected"),
    [
        ("verify: {github: {secret: a}, token: b}", ("value", ".verify", "write one of none, github, gitlab, stripe")),
        ("verify: {github: {secret: a, header: x}}", ("unknown-key", ".verify.github", "`header` is not a known key")),
        ("verify: none\nwhen: 'a b'", ("expression", ".when", "is not JMESPath")),
        ("verify: none\ndedupe: {by: 'nope(x)'}", ("expression", ".dedupe.by", "does not exist in JMESPath")),
        ("verify: none\ndedupe: {age: 1}", ("duration", ".dedupe.age", "write 1s")),
        (f"verify: none\n{CALLBACK}", ("value", ".callback", "`callback` is for `subscribe`; leave it out")),
        # subscribing
        ("subscribe: {websub: {topic: https://b.example/feed}}", ("missing", ".subscribe", "`callback` is missing; write the URL by which the backend reaches /hooks/x")),
        (f"{CALLBACK}\nsubscribe: {{keep: true}}", ("value", ".subscribe", "write one of websub, msgraph and rest")),
        (f"{CALLBACK}\nsubscribe: {{websub: {{topic: https://b/}}, msgraph: {{resource: x}}}}", ("value", ".subscribe", "write one of websub, msgraph and rest")),
        (f"{CALLBACK}\nsubscribe: {{websub: {{topic: feed}}}}", ("value", ".subscribe.websub.topic", "is not a URL of the web")),
        (f"{CALLBACK}\nsubscribe: {{websub: {{topic: 'https://u:p@b/feed'}}}}", ("value", ".subscribe.websub.topic", "this is not a URL of the web")),
        (f"{CALLBACK}\nsubscribe: {{websub: {{topic: https://b/}}, upstream: api}}", ("value", ".subscribe.upstream", "the hub is found at the topic")),
        (f"{CALLBACK}\nverify: {{github: {{secret: x}}}}\nsubscribe: {{websub: {{topic: https://b/}}}}", ("value", ".verify.github", "`subscribe` by websub brings its own way")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{msgraph: {{resource: x}}}}", ("value", ".verify", "brings its own way")),
        (f"{CALLBACK}\nsubscribe: {{msgraph: {{resource: x, change: [moved]}}}}", ("value", ".subscribe.msgraph.change[0]", "write created, updated or deleted")),
        (f"{CALLBACK}\nsubscribe: {{msgraph: {{resource: x}}, upstream: ip}}", ("reference", ".subscribe.upstream", "`ip` is no upstream")),
        (f"{CALLBACK}\nsubscribe: {{rest: {{create: {{post: /w}}}}}}", ("missing", "", "`verify` is missing")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: /w, put: /w}}}}}}", ("value", ".subscribe.rest.create", "write one of get, post, put, patch, delete, with the path")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: w}}}}}}", ("template", ".subscribe.rest.create.post", "let it begin with `/`")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: /w, body: {{u: '{{calback}}'}}}}}}}}", ("template", ".subscribe.rest.create.body", "`{calback}` is nothing that a subscription has")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: /w, body: ['{{id}}']}}}}}}", ("template", ".subscribe.rest.create.body", "let `create` say by `id` where it is")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: /w}}, delete: {{delete: '/w/{{id}}'}}}}}}", ("template", ".subscribe.rest.delete.delete", "let `create` say by `id` where it is")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: /w}}, renew: {{put: /w}}}}}}", ("missing", ".subscribe.rest.renew", "`every` is missing")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: /w, body: '{{'}}}}}}", ("template", ".subscribe.rest.create.body", "without its partner")),
        (f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: '/w/{{env.NOPE}}'}}}}}}", ("template", ".subscribe.rest.create.post", "the environment variable NOPE is not set")),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told(webhook: str, expected: tuple[str, str, str]) -> None:
    ((code, where, message),) = told(webhook)
    assert (code, where) == expected[:2]
    assert expected[2] in message


def test_a_backend_that_is_told_a_secret_signs_as_the_standard_has_it_where_nothing_else_is_said() -> None:
    webhook = parse(f"{CALLBACK}\nsubscribe: {{rest: {{create: {{post: /w, body: {{key: ['{{secret}}']}}}}}}}}").webhook
    assert webhook is not None
    assert (webhook.verify, webhook.scheme) == (None, "standard")


def test_a_subscription_wants_an_upstream_where_there_are_several() -> None:
    both = "{api: http://localhost, other: http://localhost:81}"
    webhook = f"{CALLBACK}\nsubscribe: {{msgraph: {{resource: x}}}}"
    ((code, where, message),) = told(webhook, upstreams=both)
    assert (code, where, message) == ("missing", ".subscribe", "`upstream` is missing; write one of `api`, `other`")
    found = parse(webhook).webhook
    assert found is not None
    assert found.subscribe is not None
    assert found.subscribe.upstream == "api"


def test_what_the_environment_gives_is_no_template_in_a_body() -> None:
    webhook = parse(
        f"{CALLBACK}\nverify: none\nsubscribe: {{rest: {{create: {{post: /w, body: ['${{TOKEN}}', 1, true, null]}}}}}}"
    ).webhook
    assert webhook is not None
    assert webhook.subscribe is not None
    assert webhook.subscribe.rest is not None
    assert webhook.subscribe.rest.create.body == ["{{a}}", 1, True, None]
    assert "{a}" not in repr(webhook)


def test_routes_that_share_a_path_agree_on_it() -> None:
    other = "  - path: /other\n    webhook: {at: /hooks/x, %s}\n"
    ours = f"{CALLBACK}\nsubscribe: {{websub: {{topic: https://b/feed}}}}"
    same = f"{CALLBACK}, subscribe: {{websub: {{topic: https://b/feed}}}}"
    parse(ours, more=other % same)
    for different, words in (
        (f"{CALLBACK}, subscribe: {{websub: {{topic: https://b/other}}}}", "subscribes to other deliveries here"),
        (same.replace("/hooks/x", "/hooks/y", 1), "names another `callback` for this path"),
        ("verify: {websub: {secret: x}}", "verifies deliveries here in another way"),
    ):
        with pytest.raises(ConfigError, match=words):
            parse(ours, more=other % different)


def test_a_folder_is_found_beside_the_file(tmp_path: Path) -> None:
    text = "version: 1\nserver: {state_dir: state}\nroutes: []"
    config = parse_config(text, source=str(tmp_path / "ssegate.yaml"), environ={})
    assert config.server.state_dir == tmp_path / "state"
