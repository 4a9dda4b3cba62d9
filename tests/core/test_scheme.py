"""How the senders of webhooks prove themselves, by signatures that others have made."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote_plus

import pytest
import standardwebhooks
import stripe
from hypothesis import example, given
from hypothesis import strategies as st
from slack_sdk.signature import Clock, SignatureVerifier

from ssegate.core.delivery import Delivery, Message
from ssegate.core.headers import Headers
from ssegate.core.scheme import (
    CloudEvents,
    GitHub,
    GitLab,
    Hmac,
    MicrosoftGraph,
    Scheme,
    Shopify,
    Signed,
    Slack,
    StandardWebhooks,
    Stripe,
    Token,
    WebSub,
    standard_key,
)
from ssegate.errors import RejectedError

WALL = 1_760_000_000
BODY = b'{"id":"evt_1","type":"order.created","caf\xc3\xa9":"\xe2\x82\xac"}'
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}

Fields = Mapping[str, str]


def deliver(headers: Fields, body: bytes = b"", query: Fields | None = None) -> Delivery:
    """A delivery; what is not latin-1 of a header is sent as UTF-8."""
    return Delivery(Headers((name.encode(), raw(value)) for name, value in headers.items()), body, query or {})


def raw(value: str) -> bytes:
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode()


def is_authentic(scheme: Scheme, delivery: Delivery, wall: float = WALL) -> bool:
    return scheme.fault(delivery, wall) == ""


def the_message(scheme: Scheme, body: object, headers: Fields = JSON) -> Message:
    """The only message of an authentic delivery."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    (message,) = scheme.messages(deliver(headers, data))
    return message


# Who else makes these signatures. Of GitHub, Shopify, WebSub and GitLab there is no library that signs; theirs is plain HMAC.


def by_standardwebhooks(secret: str, body: bytes, time: int = WALL, id_: str = "msg_1") -> dict[str, str]:
    signature = standardwebhooks.Webhook(secret).sign(id_, datetime.fromtimestamp(time, UTC), body.decode())
    return {"webhook-id": id_, "webhook-timestamp": str(time), "webhook-signature": signature}


def by_stripe(secret: str, body: bytes, time: int = WALL) -> dict[str, str]:
    made = stripe.WebhookSignature.generate_signature_header(payload=body.decode(), secret=secret, timestamp=time)
    return {"Stripe-Signature": made}


def by_slack_sdk(secret: str, body: bytes, time: int = WALL) -> dict[str, str]:
    signature = SignatureVerifier(secret).generate_signature(timestamp=str(time), body=body)
    assert signature is not None
    return {"X-Slack-Request-Timestamp": str(time), "X-Slack-Signature": signature}


def digest(secret: str, body: bytes, algorithm: str = "sha256") -> bytes:
    return hmac.new(secret.encode(), body, getattr(hashlib, algorithm)).digest()


def notifications(*states: object) -> bytes:
    """What Microsoft Graph posts, with a `clientState` in each notification."""
    return json.dumps({"value": [{"changeType": "updated", "clientState": state} for state in states]}).encode()


@dataclass(frozen=True)
class Way:
    """A scheme, and how somebody else proves a delivery to it."""

    make: Callable[[Sequence[str]], Scheme]
    prove: Callable[[str, bytes], Fields]
    """Headers for a secret and a body."""
    proof: str
    """The header that is the proof."""
    secrets: tuple[str, str, str] = ("s3cret of the sender", "another secret", "a third secret")
    signs: bool = True
    """Whether the proof depends on the body."""

    def proven(self, body: bytes = BODY, secret: str | None = None) -> Delivery:
        return deliver(self.prove(secret or self.secrets[0], body), body)

    def with_proof(self, proof: str, body: bytes = BODY) -> Delivery:
        return deliver({**self.prove(self.secrets[0], body), self.proof: proof}, body)


def whsec(text: str) -> str:
    return "whsec_" + base64.b64encode(text.encode()).decode()


WAYS = {
    "github": Way(GitHub, lambda secret, body: {"X-Hub-Signature-256": f"sha256={digest(secret, body).hex()}"}, "X-Hub-Signature-256"),
    "shopify": Way(Shopify, lambda secret, body: {"X-Shopify-Hmac-Sha256": base64.b64encode(digest(secret, body)).decode()}, "X-Shopify-Hmac-Sha256"),
    "stripe": Way(Stripe, by_stripe, "Stripe-Signature"),
    "slack": Way(Slack, by_slack_sdk, "X-Slack-Signature"),
    "standard": Way(StandardWebhooks, by_standardwebhooks, "webhook-signature", (whsec("one"), whsec("two"), whsec("three"))),
    "websub": Way(WebSub, lambda secret, body: {"X-Hub-Signature": f"sha512={digest(secret, body, 'sha512').hex()}"}, "X-Hub-Signature"),
    "hmac": Way(lambda secrets: Hmac(secrets, "X-Sign", algorithm="sha1", prefix="v9,"), lambda secret, body: {"X-Sign": f"v9,{digest(secret, body, 'sha1').hex()}"}, "X-Sign"),
    "token": Way(Token, lambda secret, body: {"Authorization": f"Bearer {secret}"}, "Authorization", signs=False),
    "gitlab": Way(GitLab, lambda secret, body: {"X-Gitlab-Token": secret}, "X-Gitlab-Token", signs=False),
    "cloudevents": Way(CloudEvents, lambda secret, body: {"Authorization": f"Bearer {secret}"}, "Authorization", signs=False),
}  # fmt: skip

TIMED = {"stripe": by_stripe, "slack": by_slack_sdk, "standard": by_standardwebhooks}

all_ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
signing_ways = pytest.mark.parametrize(
    "way", [way for way in WAYS.values() if way.signs], ids=[name for name, way in WAYS.items() if way.signs]
)
timed_ways = pytest.mark.parametrize("name", TIMED)


# Right and wrong, for each scheme


@all_ways
@pytest.mark.parametrize("body", [BODY, b"", b"{}", b"a=1&b=2", "é€😀\r\n\0".encode()])
def test_what_the_sender_has_proven_is_authentic(way: Way, body: bytes) -> None:
    assert is_authentic(way.make(way.secrets[:1]), way.proven(body))


@all_ways
def test_what_another_secret_has_proven_is_not(way: Way) -> None:
    assert not is_authentic(way.make(way.secrets[:1]), way.proven(secret=way.secrets[1]))


@signing_ways
def test_a_signature_is_good_for_no_other_bytes(way: Way) -> None:
    scheme = way.make(way.secrets[:1])
    headers = way.prove(way.secrets[0], BODY)
    for other in (b"", BODY[:-1], BODY + b"\n", b" " + BODY, BODY.replace(b"evt_1", b"evt_2")):
        assert not is_authentic(scheme, deliver(headers, other))
    for at in range(len(BODY)):
        assert not is_authentic(scheme, deliver(headers, BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :]))


@all_ways
def test_a_header_that_is_missing_is_named(way: Way) -> None:
    scheme = way.make(way.secrets[:1])
    headers = way.prove(way.secrets[0], BODY)
    for name in headers:
        rest = {other: value for other, value in headers.items() if other != name}
        assert name.lower() in scheme.fault(deliver(rest, BODY), WALL).lower()
    assert way.proof.lower() in scheme.fault(deliver({}, BODY), WALL).lower()


@all_ways
def test_a_proof_that_was_cut_is_none_wherever_it_was_cut(way: Way) -> None:
    scheme = way.make(way.secrets[:1])
    proof = way.prove(way.secrets[0], BODY)[way.proof]
    for at in range(len(proof)):
        assert not is_authentic(scheme, way.with_proof(proof[:at])), proof[:at]
        assert not is_authentic(scheme, way.with_proof(proof[at + 1 :])), proof[at + 1 :]


@all_ways
@pytest.mark.parametrize(
    "proof",
    [
        "", " ", ",", "=", "==", "v1", "v1,", "v1=", "v0=", "sha256=", "sha256", "t=", "t=,v1=", "t,v1", "t=1760000000", "Bearer",
        "Bearer ", "é", "v1,é", "v0=é", "sha256=é", "t=1760000000,v1=é", "Bearer é", "\xff" * 64, "0" * 64, "v1," * 1000, "a" * 100_000,
    ],
)  # fmt: skip
def test_a_malformed_proof_is_none(way: Way, proof: str) -> None:
    assert not is_authentic(way.make(way.secrets[:1]), way.with_proof(proof))


@all_ways
def test_both_secrets_count_while_one_replaces_the_other(way: Way) -> None:
    one, two, three = way.secrets
    for known in ((one, two), (two, one)):
        assert is_authentic(way.make(known), way.proven(secret=one))
        assert is_authentic(way.make(known), way.proven(secret=two))
        assert not is_authentic(way.make(known), way.proven(secret=three))


@all_ways
def test_without_a_secret_nothing_is_authentic(way: Way) -> None:
    assert not is_authentic(way.make(()), way.proven())


@pytest.mark.parametrize("name", [name for name in WAYS if name != "standard"])
def test_an_empty_secret_is_none_as_anyone_could_sign_with_it(name: str) -> None:
    scheme = WAYS[name].make([""])
    forged = scheme.sample(BODY, event="", id_="1", wall=WALL)
    assert not is_authentic(scheme, deliver(dict(forged.headers), forged.body))
    assert not is_authentic(scheme, WAYS[name].proven())
    assert not is_authentic(WAYS[name].make(["", *WAYS[name].secrets[:1]]), deliver(dict(forged.headers), forged.body))


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_=", "whsec_é", "whsec_a", "not base64", "whsec_YQ==\n", "whsec_YQ"]
)
def test_a_secret_of_standard_webhooks_that_is_none_is_refused_before_it_is_used(secret: str) -> None:
    with pytest.raises(ValueError, match="is `whsec_` and base64"):
        StandardWebhooks([secret])


def test_a_secret_of_standard_webhooks_may_come_without_its_prefix() -> None:
    secret = whsec("one")
    assert standard_key(secret) == standard_key(secret.removeprefix("whsec_")) == b"one"
    assert is_authentic(StandardWebhooks([secret.removeprefix("whsec_")]), WAYS["standard"].proven())


def test_without_a_scheme_everything_is_authentic() -> None:
    assert is_authentic(Scheme(), deliver({}))
    assert is_authentic(Scheme(), deliver({"X-Hub-Signature-256": "sha256=00"}, b"\xff"))


# Time


@timed_ways
@pytest.mark.parametrize("age", [-300, -299, -1, 0, 1, 299, 300])
def test_a_signature_is_good_for_five_minutes_before_and_after(name: str, age: int) -> None:
    way = WAYS[name]
    assert is_authentic(way.make(way.secrets[:1]), deliver(TIMED[name](way.secrets[0], BODY, WALL - age), BODY))


@timed_ways
@pytest.mark.parametrize(
    ("age", "words"),
    [
        (300.001, "5 minutes old"), (301, "5 minutes old"), (3600, "1 hour old"), (2 * 86400, "2 days old"), (WALL, "20370 days old"),
        (-300.001, "5 minutes in the future"), (-301, "5 minutes in the future"), (-86400, "1 day in the future"),
    ],
)  # fmt: skip
def test_a_signature_that_is_older_or_from_the_future_is_none_and_it_is_said_by_how_much(
    name: str, age: float, words: str
) -> None:
    way = WAYS[name]
    time = round(WALL - age)
    delivery = deliver(TIMED[name](way.secrets[0], BODY, time), BODY)
    assert f"its time is {words}, more than 5 minutes" in way.make(way.secrets[:1]).fault(delivery, time + age)


@timed_ways
def test_a_time_cannot_be_changed_as_it_is_signed(name: str) -> None:
    way = WAYS[name]
    old, new = WALL - 3600, WALL
    headers = {
        field: value.replace(str(old), str(new)) for field, value in TIMED[name](way.secrets[0], BODY, old).items()
    }
    assert str(new) in "".join(headers.values())
    assert "signature does not match" in way.make(way.secrets[:1]).fault(deliver(headers, BODY), WALL)


@timed_ways
@pytest.mark.parametrize(
    "time",
    [
        "", "now", "1.76e9", "1760000000.0", "+1760000000", "-1760000000", "0x68e77800", "1_760_000_000", "1760000000\n", "\u00b9760000000",
        "nan", "inf", "9" * 16, "9" * 400, "9" * 5000,
    ],
)  # fmt: skip
def test_a_time_that_is_no_number_of_seconds_is_none_even_if_it_is_signed(name: str, time: str) -> None:
    way = WAYS[name]
    secret = way.secrets[0]
    if name == "stripe":
        headers = {"Stripe-Signature": f"t={time},v1={digest(secret, raw(f'{time}.') + BODY).hex()}"}
    elif name == "slack":
        signature = digest(secret, raw(f"v0:{time}:") + BODY).hex()
        headers = {"X-Slack-Request-Timestamp": time, "X-Slack-Signature": f"v0={signature}"}
    else:
        signature = hmac.digest(b"one", raw(f"msg_1.{time}.") + BODY, "sha256")
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": time,
            "webhook-signature": "v1," + base64.b64encode(signature).decode(),
        }
    assert not is_authentic(way.make([secret]), deliver(headers, BODY))


@pytest.mark.parametrize("name", ["stripe", "slack"])  # no `datetime` holds it, which the third would need
def test_the_greatest_number_that_is_looked_at_is_just_far_in_the_future(name: str) -> None:
    way = WAYS[name]
    delivery = deliver(TIMED[name](way.secrets[0], BODY, 10**15 - 1), BODY)
    assert "in the future" in way.make(way.secrets[:1]).fault(delivery, WALL)


# GitHub


def test_the_vector_that_github_publishes_is_authentic() -> None:
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    scheme = GitHub(["It's a Secret to Everybody"])
    assert is_authentic(scheme, deliver({"X-Hub-Signature-256": signature}, b"Hello, World!"))
    assert not is_authentic(scheme, deliver({"X-Hub-Signature-256": signature}, b"Hello, World?"))
    assert not is_authentic(scheme, deliver({"X-Hub-Signature": signature}, b"Hello, World!"))


def test_github_names_the_delivery_and_its_event_in_headers() -> None:
    scheme = GitHub(["s"])
    headers = {**JSON, "X-GitHub-Event": "push", "X-GitHub-Delivery": "72d3162e"}
    message = the_message(scheme, {"type": "no"}, headers)
    assert (scheme.id_of(message), scheme.kind_of(message), scheme.welcome(message)) == ("72d3162e", "push", None)
    bare = the_message(scheme, {"type": "no"})
    assert (scheme.id_of(bare), scheme.kind_of(bare), scheme.welcome(bare)) == ("", "", None)


def test_a_ping_of_github_is_answered_and_no_event() -> None:
    scheme = GitHub(["s"])
    greeting = scheme.welcome(the_message(scheme, {"zen": "Speak like a human."}, {**JSON, "X-GitHub-Event": "ping"}))
    assert greeting is not None
    assert (greeting.body, greeting.headers) == (b"", ())


@pytest.mark.parametrize("scheme", [GitHub(["s"]), Slack(["s"])], ids=["github", "slack"])
def test_a_form_that_holds_json_as_its_payload_is_that_json(scheme: Scheme) -> None:
    packed = '{"ref": "refs/heads/é", "n": 1}'
    message = the_message(scheme, f"payload={quote_plus(packed)}".encode(), FORM)
    assert message.facts["body"] == {"ref": "refs/heads/é", "n": 1}
    assert message.text == packed


@pytest.mark.parametrize("scheme", [GitHub(["s"]), Slack(["s"])], ids=["github", "slack"])
def test_a_payload_that_is_no_form_or_comes_twice_is_a_field_like_any_other(scheme: Scheme) -> None:
    assert the_message(scheme, {"payload": "{}"}).facts["body"] == {"payload": "{}"}
    assert the_message(scheme, b"payload=1&payload=2", FORM).facts["body"] == {"payload": ["1", "2"]}
    assert the_message(scheme, b"payload=", FORM).facts["body"] == {"payload": ""}
    assert the_message(scheme, b"command=%2Fweather&text=94070", FORM).facts["body"] == {
        "command": "/weather",
        "text": "94070",
    }


@pytest.mark.parametrize("scheme", [GitHub(["s"]), Slack(["s"])], ids=["github", "slack"])
@pytest.mark.parametrize("packed", ["QXZ", "{", "[1e999]", "[" * 100_000, "%FF"])
def test_a_payload_that_is_not_json_is_400_and_not_repeated(scheme: Scheme, packed: str) -> None:
    with pytest.raises(RejectedError) as caught:
        scheme.messages(deliver(FORM, f"payload={packed}".encode()))
    assert caught.value.status == 400
    assert "QXZ" not in str(caught.value)


# GitLab


def test_gitlab_names_a_delivery_by_its_idempotency_key_or_else_by_its_event() -> None:
    scheme = GitLab(["s"])
    headers = {**JSON, "X-Gitlab-Event": "Push Hook", "X-Gitlab-Event-UUID": "uuid-1"}
    assert scheme.id_of(the_message(scheme, {}, headers)) == "uuid-1"
    # One push makes several deliveries with the same UUID; each has a key of its own.
    message = the_message(scheme, {"type": "no"}, {**headers, "Idempotency-Key": "key-1"})
    assert (scheme.id_of(message), scheme.kind_of(message)) == ("key-1", "Push Hook")
    assert scheme.id_of(the_message(scheme, {})) == ""


def test_a_token_of_gitlab_that_is_not_ascii_is_compared_as_the_bytes_it_is() -> None:
    assert is_authentic(GitLab(["€"]), deliver({"X-Gitlab-Token": "€"}))
    assert is_authentic(GitLab(["é"]), deliver({"X-Gitlab-Token": "é".encode().decode("latin-1")}))
    assert not is_authentic(GitLab(["é"]), deliver({"X-Gitlab-Token": "é"}))


# Shopify


def test_shopify_signs_in_base64_and_not_in_digits() -> None:
    scheme = Shopify(["s"])
    signature = digest("s", BODY)
    assert is_authentic(scheme, deliver({"X-Shopify-Hmac-Sha256": base64.b64encode(signature).decode()}, BODY))
    assert not is_authentic(scheme, deliver({"X-Shopify-Hmac-Sha256": signature.hex()}, BODY))


def test_shopify_names_the_delivery_and_its_topic_in_headers() -> None:
    scheme = Shopify(["s"])
    headers = {**JSON, "X-Shopify-Topic": "orders/create", "X-Shopify-Webhook-Id": "b54557e4"}
    message = the_message(scheme, {"id": 1, "type": "no"}, headers)
    assert (scheme.id_of(message), scheme.kind_of(message)) == ("b54557e4", "orders/create")


# Stripe


def test_one_good_signature_of_several_is_enough_for_stripe() -> None:
    secret = "s3cret"
    good = by_stripe(secret, BODY)["Stripe-Signature"]
    bad = "v1=" + "0" * 64
    time, signature = good.split(",")
    for value in (f"{good},{bad}", f"{time},{bad},{signature}", f"{bad},{good}", f"{time}, {bad}, {signature},v0=x"):
        assert is_authentic(Stripe([secret]), deliver({"Stripe-Signature": value}, BODY)), value
    assert not is_authentic(Stripe([secret]), deliver({"Stripe-Signature": f"{time},{bad},{bad}"}, BODY))


def test_stripes_signatures_of_another_version_do_not_count() -> None:
    good = by_stripe("s3cret", BODY)["Stripe-Signature"]
    for version in ("v0", "v2", "V1", "v11", ""):
        value = good.replace("v1=", f"{version}=")
        assert not is_authentic(Stripe(["s3cret"]), deliver({"Stripe-Signature": value}, BODY))


def test_a_time_of_stripe_that_comes_twice_is_none() -> None:
    good = by_stripe("s3cret", BODY)["Stripe-Signature"]
    for value in (f"t={WALL},{good}", f"{good},t={WALL}", f"t=1,{good}"):
        assert not is_authentic(Stripe(["s3cret"]), deliver({"Stripe-Signature": value}, BODY))


def test_stripe_names_the_event_in_its_body() -> None:
    scheme = Stripe(["s"])
    message = the_message(scheme, BODY)
    assert (scheme.id_of(message), scheme.kind_of(message)) == ("evt_1", "order.created")
    for body in ({"id": 1, "type": 2}, {}, [], "evt_1", None):
        message = the_message(scheme, body)
        assert (scheme.id_of(message), scheme.kind_of(message)) == ("", "")


# Slack


@pytest.mark.parametrize("version", ["", "v1=", "V0=", "v0:"])
def test_a_signature_of_slack_of_another_version_is_none(version: str) -> None:
    headers = by_slack_sdk("s3cret", BODY)
    headers["X-Slack-Signature"] = version + headers["X-Slack-Signature"].removeprefix("v0=")
    assert not is_authentic(Slack(["s3cret"]), deliver(headers, BODY))


def test_a_challenge_of_slack_is_answered_as_plain_text() -> None:
    scheme = Slack(["s"])
    body = {"token": "no", "challenge": "3eZbrw1a<b>é\ud800", "type": "url_verification"}
    greeting = scheme.welcome(the_message(scheme, body))
    assert greeting is not None
    assert greeting.body == "3eZbrw1a<b>é?".encode()
    assert dict(greeting.headers)[b"content-type"] == b"text/plain; charset=utf-8"
    assert dict(greeting.headers)[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
    "body", [{"type": "event_callback", "challenge": "c"}, {"challenge": "c"}, ["url_verification"]]
)
def test_what_is_no_challenge_of_slack_is_an_event(body: object) -> None:
    scheme = Slack(["s"])
    assert scheme.welcome(the_message(scheme, body)) is None


def test_a_challenge_of_slack_without_a_text_is_answered_with_nothing() -> None:
    scheme = Slack(["s"])
    greeting = scheme.welcome(the_message(scheme, {"type": "url_verification", "challenge": 5}))
    assert greeting is not None
    assert greeting.body == b""


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"type": "event_callback", "event": {"type": "app_mention"}}, "app_mention"),
        ({"type": "block_actions"}, "block_actions"), ({"type": "event_callback", "event": {"type": 5}}, "event_callback"),
        ({"type": "event_callback", "event": "x"}, "event_callback"), ({}, ""), ([], ""), (None, ""),
    ],
)  # fmt: skip
def test_the_kind_of_an_event_of_slack_is_that_of_the_inner_event(body: object, kind: str) -> None:
    scheme = Slack(["s"])
    assert scheme.kind_of(the_message(scheme, body)) == kind


def test_slack_names_the_event_in_its_body() -> None:
    scheme = Slack(["s"])
    assert scheme.id_of(the_message(scheme, {"event_id": "Ev1", "id": "no"})) == "Ev1"
    assert scheme.id_of(the_message(scheme, {"id": "no"})) == ""


# Standard Webhooks


def test_the_signatures_of_standard_webhooks_are_a_list_of_which_one_is_enough() -> None:
    way = WAYS["standard"]
    scheme = way.make(way.secrets[:1])
    good = way.prove(way.secrets[0], BODY)[way.proof]
    other = way.prove(way.secrets[1], BODY)[way.proof]
    for value in (f"{good} {other}", f"{other} {good}", f"v1a,abc {good}", f"{other} v2,x  {good} ", f"x {good}"):
        assert is_authentic(scheme, way.with_proof(value)), value
    for value in (f"{other} {other}", good.replace("v1,", "v1a,"), good.replace("v1,", "v2,"), good.replace("v1,", "")):
        assert not is_authentic(scheme, way.with_proof(value)), value


@pytest.mark.parametrize("is_first", [True, False])
def test_a_header_of_standard_webhooks_that_comes_twice_is_one_list(is_first: bool) -> None:
    # RFC 9110, 5.3: whoever passes it on may join them with a comma.
    way = WAYS["standard"]
    headers = way.prove(way.secrets[0], BODY)
    values = [headers.pop(way.proof), way.prove(way.secrets[1], BODY)[way.proof]]
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    signatures = [(way.proof.encode(), value.encode()) for value in (values if is_first else values[::-1])]
    assert is_authentic(way.make(way.secrets[:1]), Delivery(Headers([*pairs, *signatures]), BODY))


def test_the_headers_of_svix_are_other_names_of_the_same() -> None:
    way = WAYS["standard"]
    scheme = way.make(way.secrets[:1])
    headers = {name.replace("webhook-", "svix-"): value for name, value in way.prove(way.secrets[0], BODY).items()}
    assert is_authentic(scheme, deliver(headers, BODY))
    assert scheme.id_of(the_message(scheme, BODY, {**JSON, **headers})) == "msg_1"
    for name in headers:
        rest = {other: value for other, value in headers.items() if other != name}
        assert not is_authentic(scheme, deliver(rest, BODY))
        assert not is_authentic(scheme, deliver({**rest, name.replace("svix-", "webhook-"): headers[name]}, BODY))


def test_the_id_is_the_one_that_is_signed() -> None:
    way = WAYS["standard"]
    scheme = way.make(way.secrets[:1])
    headers = dict(way.prove(way.secrets[0], BODY))
    assert not is_authentic(scheme, deliver({**headers, "webhook-id": "msg_2"}, BODY))
    assert scheme.id_of(the_message(scheme, BODY, {**JSON, **headers, "svix-id": "msg_2"})) == "msg_1"


def test_a_delivery_is_not_new_because_of_an_id_that_nobody_signed() -> None:
    """Whoever repeats a delivery could else have it taken again and again, with a new `webhook-id` beside a `svix-id`."""
    way = WAYS["standard"]
    scheme = way.make(way.secrets[:1])
    signed = {name.replace("webhook-", "svix-"): value for name, value in way.prove(way.secrets[0], BODY).items()}
    repeated = {**JSON, **signed, "webhook-id": "another"}
    assert (
        not is_authentic(scheme, deliver(repeated, BODY))
        or scheme.id_of(the_message(scheme, BODY, repeated)) == "msg_1"
    )


def test_standard_webhooks_names_the_kind_in_the_body() -> None:
    scheme = StandardWebhooks([whsec("one")])
    assert scheme.kind_of(the_message(scheme, BODY)) == "order.created"
    assert scheme.id_of(the_message(scheme, BODY)) == ""


# CloudEvents


def test_a_token_of_cloudevents_may_be_in_the_query() -> None:
    scheme = CloudEvents(["tök", "two"])
    for token in ("tök", "two"):
        assert is_authentic(scheme, deliver({}, BODY, {"access_token": token}))
    for token in ("", "tö", "TWO", "two ", "\ud800", "\ufffd"):
        assert not is_authentic(scheme, deliver({}, BODY, {"access_token": token}))
    assert not is_authentic(CloudEvents([""]), deliver({}, BODY, {"access_token": ""}))


def test_a_token_in_a_header_counts_before_one_in_the_query() -> None:
    scheme = CloudEvents(["one"])
    assert not is_authentic(scheme, deliver({"Authorization": "Bearer two"}, BODY, {"access_token": "one"}))
    assert is_authentic(scheme, deliver({"Authorization": "Bearer one"}, BODY, {"access_token": "two"}))


def test_only_cloudevents_look_for_a_token_in_the_query() -> None:
    assert not is_authentic(Token(["one"]), deliver({}, BODY, {"access_token": "one"}))


def test_a_sender_of_cloudevents_that_asks_whether_it_may_is_told_that_it_may() -> None:
    scheme = CloudEvents(["s"])
    assert "OPTIONS" in scheme.methods
    greeting = scheme.greet("OPTIONS", deliver({"WebHook-Request-Origin": "eventemitter.example.com"}))
    assert greeting is not None
    headers = dict(greeting.headers)
    assert headers[b"webhook-allowed-origin"] == b"eventemitter.example.com"
    assert headers[b"webhook-allowed-rate"] == b"*"
    assert b"POST" in headers[b"allow"]
    assert greeting.body == b""


def test_only_options_with_an_origin_ask_whether_they_may() -> None:
    scheme = CloudEvents(["s"])
    assert scheme.greet("OPTIONS", deliver({})) is None
    assert scheme.greet("POST", deliver({"WebHook-Request-Origin": "x"})) is None


def test_an_event_of_cloudevents_is_named_by_its_source_and_its_id() -> None:
    scheme = CloudEvents(["s"])
    headers = {**JSON, "ce-specversion": "1.0", "ce-id": "1", "ce-source": "/a%20b", "ce-type": "order.created"}
    message = the_message(scheme, {}, headers)
    assert (scheme.id_of(message), scheme.kind_of(message)) == ("/a b 1", "order.created")
    for name in ("ce-id", "ce-source"):
        assert scheme.id_of(the_message(scheme, {}, {**headers, name: ""})) == ""
    event = {"specversion": "1.0", "id": "1", "source": "/a b", "type": "order.created"}
    structured = the_message(scheme, event, {"Content-Type": "application/cloudevents+json"})
    assert (scheme.id_of(structured), scheme.kind_of(structured)) == ("/a b 1", "order.created")


# Microsoft Graph


@pytest.mark.parametrize("states", [["s3cret"], ["s3cret"] * 3, ["s3cret", "old"], ["old"]])
def test_the_client_state_of_each_notification_is_a_secret(states: list[str]) -> None:
    assert is_authentic(MicrosoftGraph(["s3cret", "old"]), deliver(JSON, notifications(*states)))


@pytest.mark.parametrize("wrong", ["other", "", "s3cre", "S3CRET", None, 5, True, ["s3cret"], {}, "\ud800"])
@pytest.mark.parametrize("before", [0, 2])
def test_one_notification_with_another_client_state_refuses_all(wrong: object, before: int) -> None:
    scheme = MicrosoftGraph(["s3cret"])
    states = ["s3cret"] * before + [wrong] + ["s3cret"] * (2 - before)
    assert "`clientState` of a notification" in scheme.fault(deliver(JSON, notifications(*states)), WALL)


def test_a_notification_without_a_client_state_refuses_all() -> None:
    body = b'{"value": [{"clientState": "s3cret"}, {"changeType": "updated"}]}'
    assert "`clientState` of a notification" in MicrosoftGraph(["s3cret"]).fault(deliver(JSON, body), WALL)


def test_no_secret_and_an_empty_one_make_no_notification_authentic() -> None:
    assert not is_authentic(MicrosoftGraph([]), deliver(JSON, notifications("s3cret")))
    assert not is_authentic(MicrosoftGraph([""]), deliver(JSON, notifications("")))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"{}", b'"s3cret"', b'{"value": {"clientState": "s3cret"}}', b'{"value": ["s3cret"]}',
        b'{"value": [{"clientState": "s3cret"}, 5]}', b'{"clientState": "s3cret"}', b"\xff", b"[" * 100_000,
        b'{"value": [{"clientState": "s3cret", "n": 1e999}]}', b'{"value": [{"clientState": "s3cret", "n": NaN}]}',
    ],
)  # fmt: skip
def test_what_is_no_list_of_notifications_proves_nothing(body: bytes) -> None:
    assert "no list of notifications" in MicrosoftGraph(["s3cret"]).fault(deliver(JSON, body), WALL)


def test_an_empty_list_of_notifications_proves_nothing() -> None:
    assert "no notification" in MicrosoftGraph(["s3cret"]).fault(deliver(JSON, b'{"value": []}'), WALL)


def test_each_notification_is_a_message_of_its_own() -> None:
    scheme = MicrosoftGraph(["s"])
    items = [{"changeType": "updated", "n": 1}, {"lifecycleEvent": "missed", "é": "\ud800"}, {}]
    messages = scheme.messages(deliver(JSON, json.dumps({"value": items}).encode(), {"q": "1"}))
    assert [message.facts["body"] for message in messages] == items
    assert [json.loads(message.text) for message in messages] == items
    assert [scheme.kind_of(message) for message in messages] == ["updated", "missed", ""]
    assert [scheme.id_of(message) for message in messages] == ["", "", ""]
    assert {str(message.facts["query"]) for message in messages} == {"{'q': '1'}"}


def test_notifications_that_are_compressed_are_refused() -> None:
    with pytest.raises(RejectedError) as caught:
        MicrosoftGraph(["s"]).messages(deliver({**JSON, "Content-Encoding": "gzip"}, notifications("s")))
    assert caught.value.status == 415


def test_a_validation_token_of_microsoft_graph_is_answered_as_plain_text() -> None:
    scheme = MicrosoftGraph(["s"])
    greeting = scheme.greet("POST", deliver({}, b"", {"validationToken": "Validation: <b>é</b>\ud800"}))
    assert greeting is not None
    assert greeting.body == "Validation: <b>é</b>?".encode()
    assert dict(greeting.headers)[b"content-type"] == b"text/plain; charset=utf-8"
    assert dict(greeting.headers)[b"x-content-type-options"] == b"nosniff"


def test_what_has_no_validation_token_or_is_no_post_is_not_greeted() -> None:
    scheme = MicrosoftGraph(["s"])
    assert scheme.greet("POST", deliver({}, b"", {"validationtoken": "x"})) is None
    assert scheme.greet("GET", deliver({}, b"", {"validationToken": "x"})) is None


# WebSub


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha384", "sha512"])
def test_a_hub_may_sign_by_any_algorithm_that_websub_names(algorithm: str) -> None:
    scheme = WebSub(["s"])
    signature = digest("s", BODY, algorithm).hex()
    for value in (f"{algorithm}={signature}", f"{algorithm.upper()}={signature.upper()}", f"{algorithm}= {signature} "):
        assert is_authentic(scheme, deliver({"X-Hub-Signature": value}, BODY))
    assert not is_authentic(scheme, deliver({"X-Hub-Signature": f"{algorithm}={signature}"}, BODY + b"!"))


@pytest.mark.parametrize("algorithm", ["md5", "sha224", "sha3_256", "sha-256", "sha2", "none", ""])
def test_an_algorithm_that_websub_does_not_name_signs_nothing(algorithm: str) -> None:
    signature = digest("s", BODY, algorithm if algorithm in hashlib.algorithms_available else "sha256").hex()
    words = WebSub(["s"]).fault(deliver({"X-Hub-Signature": f"{algorithm}={signature}"}, BODY), WALL)
    assert words == "X-Hub-Signature is by none of sha1, sha256, sha384 and sha512"


def test_a_signature_of_a_hub_is_by_the_algorithm_that_it_names() -> None:
    signature = digest("s", BODY, "sha256").hex()
    assert not is_authentic(WebSub(["s"]), deliver({"X-Hub-Signature": f"sha1={signature}"}, BODY))


def test_only_a_hub_is_not_told_that_its_signature_is_wrong() -> None:
    assert [name for name, way in WAYS.items() if way.make(()).is_silent] == ["websub"]
    assert not MicrosoftGraph.is_silent
    assert not Scheme.is_silent


# All of them

EVERY: dict[str, Callable[[Sequence[str]], Scheme]] = {
    "none": Scheme, "msgraph": MicrosoftGraph, **{name: way.make for name, way in WAYS.items()},
}  # fmt: skip

SECRETS = {name: [WAYS[name].secrets[0] if name in WAYS else "s3cret"] for name in EVERY}


def test_a_scheme_has_ids_where_its_deliveries_are_known_again() -> None:
    with_ids = {name for name, make in EVERY.items() if make(SECRETS[name]).has_ids}
    assert with_ids == {"github", "gitlab", "stripe", "slack", "shopify", "standard", "cloudevents"}


@pytest.mark.parametrize("name", ["none", "token", "hmac", "websub"])
def test_of_a_scheme_without_ids_no_delivery_has_one(name: str) -> None:
    scheme = EVERY[name](SECRETS[name])
    headers = {**JSON, "X-GitHub-Delivery": "1", "webhook-id": "1", "Idempotency-Key": "1"}
    message = the_message(scheme, {"id": "1", "event_id": "1", "type": "order.created"}, headers)
    assert (scheme.id_of(message), scheme.kind_of(message)) == ("", "order.created")


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("cloudevents", "msgraph")])
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT"])
def test_most_schemes_greet_nobody_before_anything_is_proven(name: str, method: str) -> None:
    scheme = EVERY[name](SECRETS[name])
    delivery = deliver({"WebHook-Request-Origin": "x", "X-GitHub-Event": "ping"}, b"", {"validationToken": "x"})
    assert scheme.greet(method, delivery) is None
    assert scheme.methods == ("POST",)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in ("github", "slack")])
def test_most_schemes_welcome_nothing(name: str) -> None:
    scheme = EVERY[name](SECRETS[name])
    body = {"type": "url_verification", "challenge": "c", "value": [{"type": "url_verification"}]}
    assert scheme.welcome(the_message(scheme, body, {**JSON, "X-GitHub-Event": "ping"})) is None


NAMES = [
    "Authorization", "Content-Type", "Content-Encoding", "X-Hub-Signature", "X-Hub-Signature-256", "X-Sign", "X-Shopify-Hmac-Sha256",
    "X-Shopify-Webhook-Id", "X-Gitlab-Token", "X-Gitlab-Event", "Idempotency-Key", "Stripe-Signature", "X-Slack-Signature",
    "X-Slack-Request-Timestamp", "webhook-id", "webhook-timestamp", "webhook-signature", "svix-id", "svix-timestamp", "svix-signature",
    "ce-specversion", "ce-id", "ce-source", "ce-type", "WebHook-Request-Origin", "X-GitHub-Event", "X-GitHub-Delivery",
]  # fmt: skip
STARTS = [
    "", "", "Bearer ", "v1,", "v0=", "v9,", "sha256=", "sha1=", f"t={WALL},v1=", f"{WALL}", "1", "application/json", "1.0",
    "application/cloudevents+json", "application/cloudevents-batch+json", "application/x-www-form-urlencoded",
]  # fmt: skip
QUERIES = st.dictionaries(
    st.sampled_from(["access_token", "validationToken", "x"]), st.text(st.characters(), max_size=20), max_size=3
)
LATIN = st.text(st.characters(max_codepoint=255), max_size=30)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=10)
MEMBERS = st.sampled_from(
    ["value", "clientState", "id", "type", "event", "event_id", "challenge", "payload", "data", "data_base64", "source", "specversion"]
)  # fmt: skip
VALUES = st.recursive(
    LEAVES | st.sampled_from(["1.0", "url_verification", "s3cret"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(MEMBERS, inner, max_size=6),
    max_leaves=12,
)
BODIES = st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode())
HEADERS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.tuples(st.sampled_from(STARTS), LATIN).map("".join)), max_size=8
).map(lambda pairs: Headers((name.encode(), value.encode("latin-1")) for name, value in pairs))


@pytest.mark.parametrize("name", EVERY)
@given(HEADERS, BODIES, QUERIES)
@example(Headers(), b"[" * 100_000, {})
@example(Headers([(b"Content-Type", b"application/json")]), b"[" * 100_000, {})
@example(Headers([(b"Stripe-Signature", b"t=" + b"9" * 5000 + b",v1=0")]), b"", {})
def test_whatever_is_delivered_is_judged_read_or_rejected_and_nothing_else(
    name: str, headers: Headers, body: bytes, query: Fields
) -> None:
    scheme = EVERY[name](SECRETS[name])
    delivery = Delivery(headers, body, query)
    scheme.greet("POST", delivery)
    scheme.greet("OPTIONS", delivery)
    assert isinstance(scheme.fault(delivery, WALL + 0.5), str)
    if name not in ("none", "cloudevents", "msgraph"):
        assert scheme.fault(delivery, WALL + 0.5)
    try:
        messages = scheme.messages(delivery)
    except RejectedError as error:
        assert error.status in (400, 415)  # noqa: PT017  # both outcomes are right, another error is not
        return
    for message in messages:
        assert isinstance(scheme.id_of(message), str)
        assert isinstance(scheme.kind_of(message), str)
        scheme.welcome(message)


# Whatever a sender can write is of these four letters; the gate's own words have no three of them together.
QUOTED = re.compile("[QXZJ]{3}")
LETTERS = st.text("QXZJ", min_size=3, max_size=12)
SENT = st.tuples(st.sampled_from(STARTS), LETTERS).map("".join)


@pytest.mark.parametrize("name", EVERY)
@given(
    st.dictionaries(st.sampled_from(NAMES), SENT | st.sampled_from([str(WALL), "1", "v0="]), max_size=8),
    LETTERS,
    LETTERS,
    st.sampled_from(['{"value":[{"clientState":"%s"}]}', '{"value":[{"%s":1}]}', '{"value":["%s"]}', "%s", '{"%s":1}']),
)
def test_the_words_of_a_fault_repeat_nothing_of_what_was_sent_and_no_secret(
    name: str, headers: Fields, secret: str, sent: str, body: str
) -> None:
    assert not QUOTED.search("".join([*NAMES, *STARTS, body]))
    secrets = [whsec(secret) if name == "standard" else secret]
    delivery = deliver(headers, (body % sent).encode(), {"access_token": sent, "validationToken": sent})
    words = EVERY[name](secrets).fault(delivery, WALL + 1000)
    assert not QUOTED.search(words), words
    assert secrets[0] not in words


@signing_ways
@given(st.binary(max_size=80).map(lambda data: base64.b85encode(data)), st.integers(-1000, 1000))
def test_the_words_of_a_fault_never_tell_the_right_signature(way: Way, body: bytes, late: int) -> None:
    scheme = way.make(way.secrets[:1])
    right = {way.prove(secret, body)[way.proof] for secret in way.secrets}
    secrets = {
        digits for value in right for digits in re.findall("[0-9A-Za-z+/=]{20,}", value.partition("v1=")[2] or value)
    }
    assert secrets
    for delivery in (way.proven(body), way.proven(body, way.secrets[1]), way.with_proof("v1,x", body)):
        words = scheme.fault(delivery, WALL + late)
        assert not [digits for digits in secrets if digits in words]


# Samples


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "body", [b'{"a": 1}', b'{"value": [{"a": 1}, {"b": 2}]}', BODY, b"{}", b'{"\xc3\xa9": "\xe2\x82\xac"}']
)
def test_a_sample_is_authentic(name: str, body: bytes) -> None:
    scheme = EVERY[name](SECRETS[name])
    signed = scheme.sample(body, event="", id_="id-1", wall=WALL + 0.7)
    assert is_authentic(scheme, posted(signed), WALL + 0.7)
    assert scheme.messages(posted(signed))


@pytest.mark.parametrize("name", EVERY)
@given(
    st.binary(max_size=30) | VALUES.map(lambda value: json.dumps(value).encode()),
    st.text("ab-é€", min_size=1, max_size=9),
)
@example(b"\xff", "1")
@example(b"5", "1")
@example(b'["a"]', "1")
def test_of_whatever_body_a_sample_is_authentic_or_refused(name: str, body: bytes, id_: str) -> None:
    scheme = EVERY[name](SECRETS[name])
    try:
        signed = scheme.sample(body, event="", id_=id_, wall=WALL)
    except ValueError:
        return
    assert is_authentic(scheme, posted(signed))


@pytest.mark.parametrize("name", EVERY)
def test_a_sample_of_a_body_that_is_nested_too_deeply_is_refused_or_as_it_is(name: str) -> None:
    body = b"[" * 100_000
    scheme = EVERY[name](SECRETS[name])
    event = "order.created" if name == "standard" else ""
    try:
        raised, is_same = "", scheme.sample(body, event=event, id_="1", wall=WALL).body == body
    except Exception as error:
        raised, is_same = type(error).__name__, False  # and not its text, which would be all of the body
    assert is_same or raised == "ValueError", raised


@pytest.mark.parametrize("name", [name for name, make in EVERY.items() if make(SECRETS[name]).has_ids])
def test_a_sample_has_the_id_and_the_kind_that_were_asked_for(name: str) -> None:
    scheme = EVERY[name](SECRETS[name])
    signed = scheme.sample(b'{"a": 1}', event="order.created", id_="id-1", wall=WALL)
    assert is_authentic(scheme, posted(signed))
    (message,) = scheme.messages(posted(signed))
    expected = "/ssegate/send id-1" if name == "cloudevents" else "id-1"
    assert (scheme.id_of(message), scheme.kind_of(message)) == (expected, "order.created")
    assert scheme.welcome(message) is None


def test_a_sample_of_a_notification_is_a_list_with_the_kind_that_was_asked_for() -> None:
    scheme = MicrosoftGraph(["s3cret"])
    signed = scheme.sample(b'{"value": [{"a": 1}, {"changeType": "deleted"}]}', event="created", id_="1", wall=WALL)
    kinds = [scheme.kind_of(message) for message in scheme.messages(posted(signed))]
    assert kinds == ["created", "deleted"]
    with pytest.raises(ValueError, match="JSON"):
        scheme.sample(b"{", event="", id_="1", wall=WALL)


@pytest.mark.parametrize("name", ["none", "token", "hmac", "websub"])
def test_a_sample_of_a_scheme_without_a_place_for_the_kind_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` has no place for the kind of an event"):
        EVERY[name](SECRETS[name]).sample(b"{}", event="order.created", id_="1", wall=WALL)


@pytest.mark.parametrize("name", ["stripe", "slack", "standard"])
def test_what_a_sample_completes_is_only_what_its_body_lacks(name: str) -> None:
    scheme = EVERY[name](SECRETS[name])
    whole = b'{ "id" : "x", "type": "t", "event_id": "y", "event": {"type": "inner"} }'
    assert scheme.sample(whole, event="other", id_="1", wall=WALL).body == whole
    for body in (b"[1, 2]", b"text", b"\xff"):
        assert scheme.sample(body, event="other", id_="1", wall=WALL).body == body


@pytest.mark.parametrize("kind", ["100%", "a%20b", "commande créée", "€"])
def test_a_sample_of_cloudevents_is_percent_encoded_as_the_binding_has_it(kind: str) -> None:
    """CloudEvents HTTP binding 1.0, 3.1.3.2."""
    scheme = CloudEvents(["s"])
    signed = scheme.sample(b"{}", event=kind, id_=f"id {kind}", wall=WALL)
    assert all(value.isascii() for _, value in signed.headers)
    (message,) = scheme.messages(posted(signed))
    assert (scheme.kind_of(message), message.header("ce-id")) == (kind, f"id {kind}")


@pytest.mark.parametrize("body", [b'{"a": 1}', BODY, b"[]", b"", "é€".encode()])
def test_others_find_a_sample_authentic_too(body: bytes) -> None:
    one = whsec("one")
    now = int(datetime.now(UTC).timestamp())  # two of them ask no clock but their own
    signed = StandardWebhooks([one]).sample(body, event="", id_="msg_1", wall=now)
    standardwebhooks.Webhook(one).verify(signed.body, dict(signed.headers), json_parse=False)

    signed = Stripe(["s3cret"]).sample(body, event="", id_="evt_1", wall=now)
    (header,) = [value for _, value in signed.headers]
    assert stripe.WebhookSignature.verify_header(signed.body.decode(), header, "s3cret", tolerance=300)

    signed = Slack(["s3cret"]).sample(body, event="", id_="Ev1", wall=WALL)
    headers = dict(signed.headers)
    verifier = SignatureVerifier("s3cret", Still())
    assert verifier.is_valid(signed.body, headers["X-Slack-Request-Timestamp"], headers["X-Slack-Signature"])


class Still(Clock):
    def now(self) -> float:
        return WALL


def posted(signed: Signed) -> Delivery:
    """As the command line sends it: JSON, and headers in UTF-8."""
    pairs = [(name.encode(), value.encode()) for name, value in signed.headers]
    return Delivery(Headers([(b"Content-Type", b"application/json"), *pairs]), signed.body)
