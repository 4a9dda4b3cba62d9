"""A configuration file becomes a `Config`, or every problem it has, each with its place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ssegate.config.check import check_config, resolve_config
from ssegate.config.document import MAX_BYTES, Path, decode, read_document
from ssegate.config.explain import nearest
from ssegate.config.model import Config
from ssegate.config.tree import Tree
from ssegate.config.types import Keys, Model
from ssegate.config.values import ValueFault, wrong_type
from ssegate.errors import ConfigError, Problem

FILE_NAME = "ssegate.yaml"
SYSTEM_FILE = "/etc/ssegate/ssegate.yaml"
VARIABLE = "SSEGATE_CONFIG"

_WANTED = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
}


def find_config(flag: str | None, environ: Mapping[str, str], cwd: FilePath) -> FilePath | None:
    """The file to read: the flag's, else `$SSEGATE_CONFIG`, else `./ssegate.yaml`, else the system's; None if there is none.

    A file that was named is not asked whether it exists.
    """
    named = flag or environ.get(VARIABLE)
    if named:
        return cwd / named
    return next((path for path in (cwd / FILE_NAME, FilePath(SYSTEM_FILE)) if path.is_file()), None)


def load_config(path: str | None = None, *, environ: Mapping[str, str]) -> Config:
    """Find and read the configuration. Raises `ConfigError` with all that is wrong, also when there is no file."""
    found = find_config(path, environ, FilePath())
    if found is None:
        message = f"there is no ./{FILE_NAME} and no {SYSTEM_FILE}; write one, or name it with -c FILE or ${VARIABLE}"
        raise ConfigError([Problem(FILE_NAME, 0, 0, "missing", "", message)])
    return parse_config(read_config(found), source=str(found), environ=environ)


def read_config(path: FilePath) -> str:
    """Read a file's text. Raises `ConfigError` when it cannot be read, is too large or is not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "its name holds NUL"
        message = f"cannot be read: {reason[:1].lower()}{reason[1:]}"
        raise ConfigError([Problem(os.fspath(path), 0, 0, "missing", "", message)]) from None
    return decode(data, str(path))


def parse_config(text: str, *, source: str, environ: Mapping[str, str]) -> Config:
    """Read a configuration's text; `source` is the file's name as people know it. Raises `ConfigError` with all that is wrong."""
    root, problems = read_document(text, source)
    tree = Tree(root, source, environ)
    config = _validate(tree)
    check_config(config, tree, environ)
    problems += tree.problems
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line, problem.column)))
    return resolve_config(config, tree, source)


def _validate(tree: Tree) -> Config:
    """Take out what is wrong until the rest is valid. Each round takes out something, so there is an end."""
    while True:
        data = tree.data()
        try:
            return Config.model_validate(data)
        except ValidationError as error:
            # Misspelt keys first: what they were meant to be is not missing.
            for detail in sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden"):
                _note(tree, detail)


def _note(tree: Tree, detail: ErrorDetails) -> None:
    loc: Path = tuple(detail["loc"])
    match detail["type"]:
        case "extra_forbidden":
            _note_unknown_key(tree, tree.origin(loc))
        case "missing":
            _note_missing_key(tree, tree.origin(loc[:-1]), str(loc[-1]))
        case _ if loc and loc[-1] == "[key]":
            _note_fault(tree, tree.origin(loc[:-1]), _fault(detail), is_key=True)
        case _:
            _note_fault(tree, tree.origin(loc), _fault(detail))


def _note_unknown_key(tree: Tree, path: Path) -> None:
    parent, name = path[:-1], str(path[-1])
    near = nearest(name, known_keys(parent))
    hint = f"did you mean `{near}`?" if near else ""
    tree.add(path, "unknown-key", f"`{name}` is not a known key", hint, "key", about=parent)
    tree.drop(path)
    if near and tree.find((*parent, near)) is None:
        tree.doubt((*parent, near))


def _note_missing_key(tree: Tree, parent: Path, name: str) -> None:
    path = (*parent, name)
    if not tree.is_broken(path):
        tree.add(parent, "missing", f"`{name}` is missing", part=_owner(parent), about=parent)
    stand_ins = _stand_ins(parent)
    if name in stand_ins:
        tree.supply(path, stand_ins[name])
    else:
        tree.remove(parent)


def _owner(path: Path) -> Any:
    """What a caret under a mapping that lacks something points to: its key, or its first line if it has none."""
    return "key" if path and isinstance(path[-1], str) else "value"


def _note_fault(tree: Tree, path: Path, fault: ValueFault, is_key: bool = False) -> None:
    if not tree.is_broken(path):
        tree.add(path, fault.code, fault.message, fault.hint, "key" if is_key else "value")
    tree.remove(path)
    # One of several keys of which one has to be there: what else is wrong in the mapping is to be told as well.
    stand_ins = _stand_ins(path[:-1]) if path and not is_key else {}
    if path and str(path[-1]) in stand_ins:
        tree.supply(path, stand_ins[str(path[-1])])


def _fault(detail: ErrorDetails) -> ValueFault:
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, ValueFault):
        return error
    if detail["type"] == "too_short":
        return ValueFault("type", "empty; write at least one")
    return wrong_type(detail["input"], _WANTED[detail["type"]])


def known_keys(path: Path) -> list[str]:
    """The keys that a mapping of the configuration may have; none when they are for the user to choose."""
    model = _model_at(path)
    return [] if model is None else [field.alias or name for name, field in model.model_fields.items()]


def _stand_ins(path: Path) -> Mapping[str, object]:
    model = _model_at(path)
    return {} if model is None else model.stand_ins


def _model_at(path: Path) -> type[Model] | None:
    kind: Any = Config
    for part in path:
        kind = _inside(kind, part)
    return next(_models(kind), None) if get_origin(_bare(kind)) is not dict else None


def _inside(kind: Any, part: str | int) -> Any:
    """The type of a key's or an item's value."""
    bare = _bare(kind)
    if get_origin(bare) in (dict, tuple):
        return get_args(bare)[1 if get_origin(bare) is dict else 0]
    model = next(_models(kind), None)
    for name, field in model.model_fields.items() if model else ():
        if part == (field.alias or name):
            return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return None


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _models(kind: Any) -> Iterator[type[Model]]:
    """The models among the types a value may have."""
    if isinstance(kind, type) and issubclass(kind, Model):
        yield kind
    elif isinstance(kind, Keys):
        yield kind.model
    else:
        for part in get_args(kind):
            yield from _models(part)
