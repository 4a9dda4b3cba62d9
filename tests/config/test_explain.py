"""How problems are told: golden text, masked secrets, annotations."""

from __future__ import annotations

import pytest

from ssegate.config import explain, explain_github, parse_config
from ssegate.config.explain import mask_secrets, nearest
from ssegate.errors import ConfigError, Problem

SAMPLE = """\
version: 1
upstreams: {api: http://localhost:8000}
routes:
  - path: /a
    poll:
      get: /a
      evry: 2s
  - path: /b
    poll: {get: /b}
  - path: /c
    poll: {get: /c}
  - path: /d
    poll:
      get: /d
      every: soon
"""

GOLDEN = """\
ssegate.yaml:7:7: error[unknown-key] routes[0].poll: `evry` is not a known key
   7 |       evry: 2s
     |       ^^^^ did you mean `every`?
ssegate.yaml:15:14: error[duration] routes[3].poll.every: "soon" is not a duration; write 500ms, 2s or {min: 2s, max: 30s}
  15 |       every: soon
     |              ^^^^
2 errors in ssegate.yaml"""


def _error(text: str, environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="ssegate.yaml", environ=environ or {})
    return caught.value


def test_the_sample_of_the_manual_comes_out_byte_for_byte() -> None:
    assert explain(_error(SAMPLE), SAMPLE, colour=False) == GOLDEN


def test_without_the_text_the_hint_stands_behind_the_message() -> None:
    told = explain(_error(SAMPLE), None, colour=False).split("\n")
    assert told[0].endswith("`evry` is not a known key (did you mean `every`?)")
    assert len(told) == 3


def test_colours_are_put_round_the_same_words() -> None:
    told = explain(_error(SAMPLE), SAMPLE, colour=True)
    assert "\033[1;31merror[duration]\033[0m" in told
    for code in ("\033[1;31m", "\033[1m", "\033[36m", "\033[0m"):
        told = told.replace(code, "")
    assert told == GOLDEN


def test_one_problem_of_the_file_as_a_whole_has_no_line() -> None:
    error = ConfigError([Problem("f.yaml", 0, 0, "missing", "", "cannot be read: no such file")])
    expected = "f.yaml: error[missing] cannot be read: no such file\n1 error in f.yaml"
    assert explain(error, None, colour=False) == expected


def test_the_caret_stands_below_wide_characters_and_tabs() -> None:
    error = ConfigError([Problem("f", 1, 8, "value", "", "wrong", 2)])
    assert explain(error, "a: '漢字\tx'", colour=False).split("\n")[1:3] == ["   1 | a: '漢字 x'", "     |          ^^"]


def test_of_a_very_long_line_the_part_round_the_caret_is_shown() -> None:
    error = ConfigError([Problem("f", 1, 5001, "value", "", "wrong", 3)])
    _, shown, caret, _ = explain(error, "x" * 5000 + "bad" + "y" * 5000, colour=False).split("\n")
    assert len(shown) < 200
    place = caret.index("^")
    assert shown[place : place + 3] == "bad"


def test_nothing_in_a_file_can_forge_a_line_or_command_a_terminal() -> None:
    text = 'version: 1\nroutes: []\n"\\e[2J\\nfake": 1\n'
    told = explain(_error(text), text, colour=False)
    assert "\033" not in told
    assert len(told.split("\n")) == 4
    error = ConfigError([Problem("f\n", 1, 1, "value", "", "a\x1b[0m\u2028b")])
    assert "\x1b" not in explain(error, "\x1b[31m", colour=False)


def test_github_gets_one_escaped_command_for_each_problem() -> None:
    problem = Problem("a,b:c.yaml", 7, 9, "value", "routes[0]", "100 % wrong\nreally", 4, "did you mean `x`?")
    expected = (
        "::error file=a%2Cb%3Ac.yaml,line=7,col=9,endColumn=13,title=ssegate value"
        "::routes[0]: 100 %25 wrong\ufffdreally (did you mean `x`?)"
    )
    assert explain_github(ConfigError([problem])) == expected
    whole = explain_github(ConfigError([Problem("f", 0, 0, "missing", "", "no")]))
    assert whole.startswith("::error file=f,line=1,col=1,")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("evry", "every"), ("gte", "get"), ("conection", "connections"), ("tls", ""), ("Every", "every"), ("every", "")],
)
def test_only_a_near_name_is_proposed(name: str, expected: str) -> None:
    assert nearest(name, ["every", "get", "connections", "upstream"]) == expected


@pytest.mark.parametrize(
    "text",
    [
        "token: hunter2",
        "    token:   'hunter2'   # rotate hunter2",
        "- secret: hunter2",
        "secret: [a, hunter2]",
        "secret: [a,\n  hunter2]",
        "secret:\n  - a\n  - hunter2",
        "secret:\n- a\n- hunter2",
        "secret: |\n  hunter2\n\n  hunter2",
        "token: a\n  hunter2",
        "verify: {token: hunter2, hmca: {}}",
        "verify: {hmac: {header: x, secret: [a, 'hunter2']}}",
        'verify: {"token":"hunter2"}',
        "tokne: hunter2",
        "auth: {bearer: hunter2}",
        "auth: hunter2",
        "verify: hunter2",
        "  basic: {user: me, password: hunter2}",
        "headers: {Authorization: 'Bearer hunter2', X-Api-Key: hunter2}",
        "  Cookie: session=hunter2",
        "token: ${TOKEN:-hunter2}",
        "url: http://me:hunter2@host/",
        "url: http://me:hun/ter2hunter2@host/",
        "url: http://host/?access_token=hunter2&x=1",
        "x-secret: &s hunter2",
        "x: {secret: &s 'a, hunter2', y: z}",
        "x: {secret: [a,\nhunter2\n], y: z}",
        "x: {secret:\nhunter2}",
        # API keys, and what their issuer shares
        "keys: hunter2",
        "keys:\n  hunter2",
        "keys: [hunter2]",
        "keys: {secret: hunter2}",
        "keys: {header: x-api-key, values: {acme: hunter2}}",
        "keys: {values: {acme: a, other: hunter2}}",
        "keys: {values: {acme: [a, 'b]', hunter2]}}",
        "keys: {values: {acme: 'it''s}', other: hunter2}}",
        "keys: {header: x, acme: hunter2}",
        "keys:\n  header: x\n  acme: hunter2",
        "keys:\n  values:\n    acme: hunter2\n    other:\n      - hunter2",
        "  partner: {keys: {values: {\nacme: hunter2,\nother: [\nhunter2]}}}",
        "  values: {acme: hunter2}",
        "  valus: {acme: hunter2}",
        "x-keys: &k\n  values: {acme: hunter2}",
        '  partner: {"keys":{"values":{"acme":"hunter2"}}}',
        # what stands in a guard's place
        "auth:\n  partner: hunter2",
        "auth:\n  - hunter2",
        "auth:\n  partner:\n    hunter2",
        "auth:\n  partner:\n    - hunter2",
        "auth:\n  partner: [a, hunter2]",
        "auth: {partner: hunter2}",
        "auth: {partner: {acme: hunter2}}",
        "auth:\n  partner: {kyes: {header: x, vlaus: {acme: hunter2}}}",
        "auth:\n  partner:\n    kyes:\n      header: x\n      vlaus:\n        acme: hunter2\n        b: [x,\nhunter2]",
        "auth:\n  partner: {apikeys: {acme: hunter2}}",
        "routes:\n  - path: /a\n    auth: hunter2",
        "routes:\n  - {path: /a, auth: hunter2, poll: {get: /a}}",
        "routes:\n  - {path: /a, auth: [user, hunter2], poll: {get: /a}}",
    ],
)
def test_a_secret_written_in_the_file_is_never_shown(text: str) -> None:
    lines = text.split("\n")
    masked = mask_secrets(lines)
    assert "hunter2" not in "\n".join(masked)
    assert [len(line) for line in masked] == [len(line) for line in lines]


@pytest.mark.parametrize(
    "line",
    [
        "token: ${TOKEN}",
        'secret: "${file:/run/secrets/x}"',
        "verify: none",
        "verify: {hmac: {header: X-Signature, algorithm: md5}}",
        "headers: {X-Requested-By: me}",
        "- path: /tokens/{id}",
        "url: http://host:80/a",
        "keys: https://login.example.com/jwks.json",
        "keys: file:jwks.json",
        "keys: ${KEYS}",
        "auth: none",
        "- {path: /a, auth: none, poll: {get: /a}}",
    ],
)
def test_what_is_no_secret_stays_readable(line: str) -> None:
    assert mask_secrets([line]) == [line]


def test_what_follows_a_secret_is_readable_again() -> None:
    assert mask_secrets(["a:", "  token: x", "  header: y", "b: z"]) == ["a:", "  token: *", "  header: y", "b: z"]


GUARDS = """\
auth:
  session:
    forward:
      url: http://127.0.0.1:8000/whoami
      send: [cookie, authorization]
      claims: {headers: [x-groups]}
  user:
    jwt:
      issuer: https://login.example.com/
      audience:
        - orders-ui
      keys: https://login.example.com/jwks.json
      algorithms: [RS256, ES256]
      from: [header, "cookie:session_jwt", ticket]
      require: "contains(scope, 'orders:read')"
      at_expiry: end
defaults: {heartbeat: 5s}
"""


def test_of_a_guard_all_but_its_secrets_stays_readable() -> None:
    assert mask_secrets(GUARDS.split("\n")) == GUARDS.split("\n")
    lines = ["auth:", "  u: {jwt: {issuer: a, keys: {secret: x}, audience: b}}", "limits: {clients: 5}"]
    assert mask_secrets(lines) == [lines[0], "  u: {jwt: {issuer: a, keys: ******** **, audience: b}}", lines[2]]


SECRETS = """\
version: 1
upstreams:
  api: {url: "http://me:hunter2@host/", auth: {bearer: hunter2, basic: hunter2}, headers: {Authorization: 5, X-Token: "hunter2\\n"}}
  env: {url: "${URL}", auth: {bearer: "${SECRET}\\n"}, connections: "${SECRET}", host: "${SECRET} ", backoff: {min: "${SECRET}"}}
  short: ${URL}
cors: {origins: ["${SECRET}"]}
routes:
  - path: /a/{id}
    params: {id: "${SECRET}("}
    poll: {get: "/${SECRET}/{${SECRET}}", upstream: "${SECRET}", select: "${SECRET}(", every: "${SECRET}", body: "${SECRET}"}
    emit: {as: "${SECRET}"}
  - path: /${SECRET}{
    webhook: {at: "${SECRET}", verify: hunter2, match: {id: "${SECRET}(@)"}}
    emit: {event: "{${SECRET}}"}
  - path: /b
    webhook: {at: /b, verify: {hmac: {secret: ["hunter2\\n"], header: "${SECRET} "}}}
    emit: {event: "{${SECRET}.x}", names: {added: "${SECRET}\\n"}}
  - path: /c
    auth: ["${SECRET}", "${SECRET}"]
    allow: "${SECRET}("
    topics: ["/${SECRET}", "/${SECRET}"]
auth:
  a: hunter2
  b: {keys: hunter2}
  c: {keys: {header: "${SECRET} ", values: {acme: "hunter2\\n", b: [hunter2, 5]}}}
  d: {keys: {header: x, values: {acme: hunter2, b: hunter2}, hunter: hunter2}}
  e: {jwt: {issuer: "${SECRET}\\n", audience: [], keys: hunter2, algorithms: ["${SECRET}"], from: ["${SECRET}"], require: "${SECRET}("}}
  f: {jwt: {issuer: x, audience: x, keys: {secret: "hunter2\\n"}, at_expiry: "${SECRET}", identity: "${SECRET}("}}
  g: {jwt: {issuer: x, audience: x, keys: "file:${SECRET}"}}
  h: {forward: {url: "http://me:hunter2@host/", send: ["${SECRET} "], identity: "${SECRET} ", claims: "${SECRET}", cache: "${SECRET}"}}
defaults: {auth: "${SECRET}"}
"""


def test_no_error_quotes_a_secret_or_what_came_from_the_environment() -> None:
    error = _error(SECRETS, {"SECRET": "hunter2", "URL": "ftp://me:hunter2@host?hunter2"})
    told = explain(error, SECRETS, colour=False) + explain_github(error) + str(error) + repr(error)
    assert len(error.problems) > 20
    assert "hunter2" not in told
