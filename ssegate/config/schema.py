"""The configuration's JSON Schema, for editors and the manual."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from ssegate.config.model import Config
from ssegate.config.values import DURATION_PATTERN, SIZE_PATTERN, Every, format_duration, format_size

_EXPANDED = {"type": "string", "pattern": r"\$\{"}
"""A reference stands for a value of any type."""

_ANNOTATIONS = ("title", "description", "default")
_ALWAYS_TEXT = frozenset({"object", "array", "string", "null"})


def json_schema() -> dict[str, Any]:
    """The schema of a configuration file (draft 2020-12), with a title and a description for every key."""
    schema = Config.model_json_schema(schema_generator=_Generator)
    opened = _widened(schema, schema["$defs"])
    assert isinstance(opened, dict)
    opened["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    opened["title"] = "ssegate configuration"
    opened["patternProperties"] = {"^x-": {"description": "Ignored; a place for YAML anchors."}}
    return opened


class _Generator(GenerateJsonSchema):
    """Writes defaults as a file would."""

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        default = schema.get("default")
        if default is None or default == {} or default == "" or isinstance(default, BaseModel):
            return inner
        return {**inner, "default": _spelled(default, inner.get("pattern"))}


def _spelled(default: Any, pattern: str | None) -> Any:
    if pattern == DURATION_PATTERN:
        return format_duration(default)
    if pattern == SIZE_PATTERN:
        return format_size(default)
    if isinstance(default, tuple):
        return list(default)
    if isinstance(default, Every) and default.is_adaptive:
        return {"min": format_duration(default.min), "max": format_duration(default.max)}
    return default if isinstance(default, str | bool | int | float) else str(default)


def _widened(node: Any, defs: dict[str, Any]) -> Any:
    """Let `${…}` stand for whatever is not text, and give each key its title and description."""
    if isinstance(node, list):
        return [_widened(item, defs) for item in node]
    if not isinstance(node, dict):
        return node
    node = {name: _widened(item, defs) for name, item in node.items()}
    if isinstance(keys := node.get("properties"), dict):
        node["properties"] = {name: {**_about(name, key, defs), **key} for name, key in keys.items()}
    return _with_reference(node) if _is_leaf(node) else node


def _about(name: str, key: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    """What pydantic leaves out: the title of a mapping, and its description where the key's is the same."""
    reference = str(key.get("$ref", "")).rpartition("/")[2]
    description = {"description": defs[reference]["description"]} if reference else {}
    return {"title": name.replace("_", " ").title(), **description}


def _is_leaf(node: dict[str, Any]) -> bool:
    kind = node.get("type")
    if not isinstance(kind, str):
        return False
    return kind not in _ALWAYS_TEXT or "enum" in node or node.get("pattern") in (DURATION_PATTERN, SIZE_PATTERN)


def _with_reference(node: dict[str, Any]) -> dict[str, Any]:
    about = {name: value for name, value in node.items() if name in _ANNOTATIONS}
    rule = {name: value for name, value in node.items() if name not in _ANNOTATIONS}
    return {**about, "anyOf": [rule, _EXPANDED]}
