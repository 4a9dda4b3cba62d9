"""`ssegate token`: tokens that a guard with a secret takes."""

from __future__ import annotations

import json
import re
import time
from base64 import urlsafe_b64decode
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwk, jwt

from ssegate.cli import main

SECRET = "0123456789abcdef0123456789abcdef"
OLDER = "older-older-older-older-older-older-older-older"

USER = f"user: {{jwt: {{issuer: https://login.example.com/, audience: [orders-ui, x], keys: {{secret: [{SECRET}, {OLDER}]}}}}}}"
PUBLIC = "public: {jwt: {issuer: https://i/, audience: a, keys: https://i/jwks}}"
SESSION = "session: {forward: {url: http://127.0.0.1:1/}}"


class Stage:
    """A file with guards, and what a command said."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.file = folder / "ssegate.yaml"
        self._capsys = capsys
        self.out = self.err = ""

    def run(self, *arguments: str, guards: tuple[str, ...] = (USER,)) -> int:
        auth = "".join(f"  {guard}\n" for guard in guards)
        self.file.write_text(
            f"version: 1\nauth:\n{auth}" * bool(guards)
            + "version: 1\n" * (not guards)
            + "upstreams: {api: http://127.0.0.1:1}\nroutes: [{path: /x, auth: none, poll: {get: /x}}]\n"
        )
        code = main(["token", *arguments, "-c", str(self.file)])
        self.out, self.err = self._capsys.readouterr()
        assert SECRET not in self.out + self.err
        return code

    def claims(self, secret: str = SECRET, algorithm: str = "HS256") -> dict[str, Any]:
        """The claims of the token that was printed, by a library that did not make it."""
        return jwt.decode(self.out.strip(), jwk.import_key(secret, "oct"), algorithms=[algorithm]).claims


@pytest.fixture
def stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Stage:
    return Stage(tmp_path, capsys)


def test_a_token_has_what_its_guard_wants_and_an_hour(stage: Stage) -> None:
    before = time.time()
    assert stage.run("--sub", "u1", "--claim", "scope=orders:read") == 0
    claims = stage.claims()
    issued, expires = claims.pop("iat"), claims.pop("exp")
    assert claims == {
        "iss": "https://login.example.com/",
        "aud": "orders-ui",
        "sub": "u1",
        "scope": "orders:read",
    }
    assert before - 1 < issued <= time.time()
    assert before + 3600 <= expires <= time.time() + 3601


def test_the_token_alone_is_on_standard_output(stage: Stage) -> None:
    assert stage.run("--sub", "u1") == 0
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", stage.out)
    assert re.fullmatch(r"guard user: identity u1, until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(in 1 h\)\n", stage.err)


def test_it_is_signed_by_the_first_secret_and_the_first_algorithm(stage: Stage) -> None:
    guard = USER.replace("keys:", "algorithms: [HS512, HS256], keys:")
    assert stage.run("--sub", "u1", guards=(guard,)) == 0
    assert stage.claims(algorithm="HS512")["sub"] == "u1"
    header = stage.out.partition(".")[0]
    assert json.loads(urlsafe_b64decode(header + "==")) == {"alg": "HS512", "typ": "JWT"}


def test_a_claim_is_json_where_it_is_json_and_its_name_may_have_dots(stage: Stage) -> None:
    values = [
        "admin=true",
        "n=17",
        'roles=["a","b"]',
        "a.b=1",
        "text=x=y",
        "none=NaN",
        "https://x/tenant=acme",
        "empty=",
    ]
    assert stage.run("--sub", "17", *(f"--claim={value}" for value in values)) == 0
    claims = stage.claims()
    assert {name: claims[name] for name in claims if name not in ("iss", "aud", "iat", "exp")} == {
        "sub": "17", "admin": True, "n": 17, "roles": ["a", "b"], "a.b": 1, "text": "x=y", "none": "NaN",
        "https://x/tenant": "acme", "empty": "",
    }  # fmt: skip


def test_a_claim_takes_the_place_of_what_would_stand_there(stage: Stage) -> None:
    assert stage.run("--sub", "u1", "--claim", "aud=orders-admin", "--claim", "sub=u2") == 0
    assert (stage.claims()["aud"], stage.claims()["sub"]) == ("orders-admin", "u2")
    assert "would not let it in (401): its audience is `orders-admin`, wanted `orders-ui` or `x`\n" in stage.err


def test_how_long_it_is_good_can_be_said(stage: Stage) -> None:
    assert stage.run("--sub", "u1", "--expires", "10m") == 0
    assert 600 <= stage.claims()["exp"] - stage.claims()["iat"] <= 601
    assert "(in 10 min)\n" in stage.err


# Who bears it


@pytest.mark.parametrize(
    ("identity", "found"),
    [("email", {"email": "u1"}), ("user.id", {"user": {"id": "u1"}}), ("'\"https://x/uid\"'", {"https://x/uid": "u1"})],
)
def test_the_bearer_is_put_where_the_guard_looks(stage: Stage, identity: str, found: dict[str, object]) -> None:
    guard = USER.replace("keys:", f"identity: {identity}, keys:")
    assert stage.run("--sub", "u1", guards=(guard,)) == 0
    assert stage.claims().items() >= found.items()
    assert "identity u1" in stage.err


@pytest.mark.parametrize(("claim", "said"), [("user=x", "names nobody"), ('user={"id": "u2"}', "identity u2")])
def test_what_a_claim_has_put_there_stays(stage: Stage, claim: str, said: str) -> None:
    guard = USER.replace("keys:", "identity: user.id, keys:")
    assert stage.run("--sub", "u1", "--claim", claim, guards=(guard,)) == 0
    assert said in stage.err


def test_a_token_that_names_nobody_is_made_nevertheless(stage: Stage) -> None:
    assert stage.run() == 0
    assert "sub" not in stage.claims()
    assert stage.err == (
        "note: guard user would not let it in (401): it names nobody: `identity` finds no text of 1 to 256 characters "
        "in its claims; give by --sub what `identity: sub` looks for\n"
    )


def test_where_identity_is_no_plain_member_a_claim_has_to_name_the_bearer(stage: Stage) -> None:
    guard = USER.replace("keys:", "identity: 'names[0]', keys:")
    assert stage.run("--sub", "u1", guards=(guard,)) == 0
    assert "; give by --claim what `identity: names[0]` looks for\n" in stage.err
    assert stage.run("--claim", 'names=["u1"]', guards=(guard,)) == 0
    assert "identity u1" in stage.err


def test_a_token_that_does_not_meet_require_is_made_nevertheless(stage: Stage) -> None:
    guard = USER.replace("keys:", "require: \"scope == 'orders:read'\", keys:")
    assert stage.run("--sub", "u1", "--claim", "scope=x", guards=(guard,)) == 0
    assert stage.claims()["scope"] == "x"
    assert (
        "(403): `require` is not true of its claims; give by --claim what `require: scope == 'orders:read'`"
        in stage.err
    )


# For which guard


def test_only_one_guard_with_a_secret_need_not_be_named(stage: Stage) -> None:
    assert stage.run("--sub", "u1", guards=(SESSION, PUBLIC, USER)) == 0
    assert "guard user: identity u1" in stage.err


def test_of_several_one_is_named(stage: Stage) -> None:
    other = USER.replace("user:", "other:").replace("login.example.com", "other.example.com")
    assert stage.run("--sub", "u1", "--guard", "other", guards=(USER, other)) == 0
    assert stage.claims()["iss"] == "https://other.example.com/"


@pytest.mark.parametrize(
    ("arguments", "guards", "said"),
    [
        ([], (USER, USER.replace("user:", "b:")), "there are several guards with a secret; name one by --guard: `user` or `b`"),
        ([], (), "no guard reads tokens; write one: `auth: {NAME: {jwt: …}}`"),
        ([], (SESSION,), "no guard reads tokens"),
        ([], (PUBLIC,), "guard `public` has the public keys of an issuer, and only that makes tokens"),
        ([], (PUBLIC, PUBLIC.replace("public:", "b:")), "the guards have the public keys of an issuer"),
        (["--guard", "public"], (PUBLIC, USER), "let a guard have `keys: {secret: …}`"),
        (["--guard", "session"], (SESSION, USER), "guard `session` is of the kind `forward`, which reads no tokens; name `user`"),
        (["--guard", "usr"], (USER,), "no guard is `usr`; did you mean `user`?"),
        (["--guard", "zzz"], (USER, PUBLIC), "no guard is `zzz`; name `user` or `public`"),
    ],
)  # fmt: skip
def test_without_a_guard_to_make_it_for_it_is_2(
    stage: Stage, arguments: list[str], guards: tuple[str, ...], said: str
) -> None:
    assert stage.run("--sub", "u1", *arguments, guards=guards) == 2
    assert said in stage.err
    assert stage.out == ""


@pytest.mark.parametrize(
    "arguments", [["--claim", "admin"], ["--claim", "=1"], ["--expires", "60"], ["--expires", "soon"]]
)
def test_wrong_usage_is_2(stage: Stage, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        stage.run("--sub", "u1", *arguments)
    assert left.value.code == 2


def test_without_the_library_it_says_how_to_install_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssegate.config.guards.find_spec", lambda name: None)
    assert stage.run("--sub", "u1") == 78
    assert "run: pip install 'ssegate[jwt]'" in stage.err


def test_a_short_secret_is_one_too(stage: Stage) -> None:
    assert stage.run("--sub", "u1", guards=(USER.replace(SECRET, "short"),)) == 0
    assert "identity u1" in stage.err


def test_a_time_that_no_calendar_has_is_no_trouble(stage: Stage) -> None:
    assert stage.run("--sub", "u1", "--expires", "9999999d") == 0
    assert "which is in no calendar" in stage.err
