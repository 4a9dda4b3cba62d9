"""The JSON Schema: what an editor is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from ssegate.config import json_schema

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

SMALL = """
version: 1
upstreams: {api: http://localhost:8000}
routes:
  - path: /orders/{id}/events
    poll:
      get: /orders/{id}
      every: 2s
"""


def _is_valid(text: str) -> bool:
    return bool(VALIDATOR.is_valid(yaml.safe_load(text)))


def _properties(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        for name, value in node.get("properties", {}).items():
            yield f"{path}.{name}", value
        for name, value in node.items():
            yield from _properties(value, f"{path}/{name}")
    elif isinstance(node, list):
        for item in node:
            yield from _properties(item, path)


def test_it_is_a_schema_of_draft_2020_12() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_key_has_a_title_and_a_description() -> None:
    keys = list(_properties(SCHEMA))
    assert len(keys) > 80
    assert [path for path, key in keys if not key.get("title") or not key.get("description", "").endswith(".")] == []


@pytest.mark.parametrize(
    "text",
    [
        SMALL,
        (Path(__file__).parent / "full.yaml").read_text(),
        (Path(__file__).parents[2] / "config.example.yaml").read_text(),
        SMALL + "x-anything: {a: [1]}",
        SMALL + "admin: none",
        SMALL + "admin: {listen: none}",
        SMALL.replace("every: 2s", "every: {min: 500ms, max: 30s}\n      after_write: [/orders]"),
        SMALL.replace("every: 2s", "every: ${EVERY:-2s}\n      conditional: ${C:-true}\n      body: ${B}"),
        SMALL.replace("http://localhost:8000", "{url: '${API}', connections: '${N:-50}', requests_per_second: 2.5}"),
        SMALL + "  - {path: /w, webhook: {at: /h, verify: none}}",
        SMALL + "  - {path: /w, webhook: {at: /h, verify: {token: [a, b]}}}",
        SMALL + "  - {path: /w, webhook: {at: /h, verify: {hmac: {secret: a, header: b}}}}",
        SMALL + "limits: {event_size: 64KiB, clients_per_ip: 5}",
        SMALL + "server: {tls: {cert: a.crt, key: a.key}}",
        SMALL + "auth: {a: {keys: {values: {x: y}}}, b: {keys: {header: x, values: {x: [y, z]}}}}",
        SMALL + "auth: {a: {forward: {url: http://h/, claims: json}}, b: {forward: {url: http://h/, headers: [x]}}}",
        SMALL + "auth: {a: {forward: {url: '${URL}', claims: {headers: [x]}, cache: 0s}}}",
        SMALL + "auth: {a: {jwt: {issuer: x, audience: y, keys: {secret: s}, algorithms: ['${A}']}}}",
        SMALL + "auth: {a: {jwt: {issuer: x, audience: [y], keys: {file: a.pem}, at_expiry: ignore}}}",
        SMALL + "auth: {a: {jwt: {issuer: x, audience: y, keys: 'file:a.pem', from: ['cookie:a']}}}",
        SMALL + "defaults: {auth: a}",
        SMALL + "  - {path: /live, topics: [/a], auth: none, allow: identity}",
        SMALL + "  - {path: /p, proxy: {}, auth: [a, b]}",
        SMALL + "limits: {clients_per_user: 5, requests_per_second: 0.5}",
        SMALL + "server: {edge: hypercorn, http3: true, tls: {self_signed: true, listen: 0.0.0.0:443}}",
    ],
)
def test_it_takes_every_form_a_key_may_have(text: str) -> None:
    VALIDATOR.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        SMALL.replace("version: 1", "version: 2"),
        SMALL.replace("version: 1\n", ""),
        SMALL.replace("every: 2s", "evry: 2s"),
        SMALL.replace("every: 2s", "every: 2"),
        SMALL.replace("every: 2s", "every: soon"),
        SMALL.replace("every: 2s", "every: {min: 2s}"),
        SMALL.replace("every: 2s", "every: {min: 2s, max: 3s, mid: 2s}"),
        SMALL.replace("every: 2s", "conditional: 'yes'"),
        SMALL.replace("every: 2s", "body: xml"),
        SMALL.replace("http://localhost:8000", "ftp://localhost"),
        SMALL + "unknown: 1",
        SMALL + "limits: {clients: 0}",
        SMALL + "limits: {streams_per_connection: 10001}",
        SMALL + "server: {tls: {certificate: a.crt, key: a.key}}",
        SMALL + "server: {edge: apache}",
        SMALL + "limits: {event_size: 65536}",
        SMALL + "  - {path: /w, webhook: {at: /h}}",
        SMALL + "auth: {a: {keys: {values: {}}}}",
        SMALL + "auth: {a: hunter2}",
        SMALL + "auth: {a: {forward: {url: http://h/, claims: xml}}}",
        SMALL + "auth: {a: {forward: {url: /who}}}",
        SMALL + "auth: {a: {jwt: {issuer: x, audience: y, keys: hunter2}}}",
        SMALL + "auth: {a: {jwt: {issuer: x, audience: y, keys: {secret: s}, algorithms: [none]}}}",
        SMALL + "defaults: {auth: []}",
        SMALL + "defaults: {auth: }",
        SMALL + "  - {path: /live, topics: []}",
        SMALL + "  - {path: /p, proxy: {}, allow: }",
        SMALL + "  - {path: /w, webhook: {at: /h, verify: maybe}}",
    ],
)
def test_it_refuses_what_the_program_refuses(text: str) -> None:
    assert not _is_valid(text)


def test_defaults_are_written_as_in_a_file() -> None:
    defs = SCHEMA["$defs"]
    assert defs["Server"]["properties"]["listen"]["default"] == "0.0.0.0:8080"
    assert defs["ServerTls"]["properties"]["listen"]["default"] == "0.0.0.0:8443"
    assert defs["Server"]["properties"]["edge"]["default"] == "native"
    assert defs["Timeout"]["properties"]["connect"]["default"] == "2s"
    assert defs["Limits"]["properties"]["event_size"]["default"] == "1MiB"
    assert defs["Poll"]["properties"]["every"]["default"] == "5s"
    assert defs["Poll"]["properties"]["gone"]["default"] == [404, 410]


def test_every_default_is_one_that_its_key_takes() -> None:
    def takes(key: dict[str, Any]) -> bool:
        return bool(jsonschema.Draft202012Validator({**key, "$defs": SCHEMA["$defs"]}).is_valid(key["default"]))

    assert [path for path, key in _properties(SCHEMA) if "default" in key and not takes(key)] == []
