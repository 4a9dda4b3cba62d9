"""What guards have to do with each other, with the libraries and files they need, and with what routes say of viewers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path as FilePath

from ssegate.config.auth import DEFAULT_ALGORITHMS, DEFAULT_SHARED, PUBLIC, ApiKeys, Guard, HeaderClaims, Jwt
from ssegate.config.document import Path
from ssegate.config.document import Sequence as ListNode
from ssegate.config.explain import did_you_mean
from ssegate.config.model import Config, Route
from ssegate.config.tree import Tree
from ssegate.core.principal import CLAIMS, IDENTITY

JWT_LIBRARY = "jwt"

_AUTH: Path = ("auth",)
_DEFAULT: Path = ("defaults", "auth")


def check_guards(config: Config, tree: Tree) -> None:
    """Note in the tree whatever does not fit together. Keys that are broken in themselves cause no further complaints."""
    if PUBLIC in tree.keys(_AUTH):
        message = "`auth: none` says that everybody may read, so no guard is called that; give it another name"
        tree.add((*_AUTH, PUBLIC), "value", message, part="key")
    for name, guard in config.auth.items():
        path = (*_AUTH, name)
        if guard.jwt is not None:
            _check_jwt((*path, "jwt"), guard.jwt, tree)
        if guard.keys is not None:
            _check_keys((*path, "keys", "values"), guard.keys, tree)
    check_names(_DEFAULT, config.defaults.auth, tree)


def resolve_guards(guards: Mapping[str, Guard], folder: FilePath) -> dict[str, Guard]:
    """Let files that are named relative to the configuration's folder be found from anywhere."""
    return {name: _resolved(guard, folder) for name, guard in guards.items()}


def _resolved(guard: Guard, folder: FilePath) -> Guard:
    if guard.jwt is None or guard.jwt.keys.file is None:
        return guard
    keys = guard.jwt.keys.model_copy(update={"file": folder / guard.jwt.keys.file})
    return guard.model_copy(update={"jwt": guard.jwt.model_copy(update={"keys": keys})})


def algorithms_of(jwt: Jwt) -> tuple[str, ...]:
    """The algorithms that count, also where the file names none."""
    return jwt.algorithms or (DEFAULT_ALGORITHMS if jwt.keys.secret is None else DEFAULT_SHARED)


# Tokens and keys


def _check_jwt(path: Path, jwt: Jwt, tree: Tree) -> None:
    if not tree.is_broken((*path, "keys")):
        _check_algorithms((*path, "algorithms"), jwt, tree)
    if find_spec(JWT_LIBRARY) is None:
        message = "tokens need PyJWT, which is not installed; run: pip install 'ssegate[jwt]'"
        tree.add(path, "missing", message, part="key")
    elif jwt.keys.file is not None and not tree.is_broken((*path, "keys")):
        _check_key_file((*path, "keys"), jwt.keys.file, tree)


def _check_algorithms(path: Path, jwt: Jwt, tree: Tree) -> None:
    """A public key that is taken for a shared secret lets everybody sign (RFC 8725, 2.1)."""
    if tree.is_broken(path):
        return
    is_shared = jwt.keys.secret is not None
    for index, name in enumerate(jwt.algorithms or ()):
        if name.startswith("HS") and not is_shared:
            message = f"{name} is for a `secret`; leave it out, or write {', '.join(DEFAULT_ALGORITHMS)}"
            tree.add((*path, index), "value", message)
        elif is_shared and not name.startswith("HS"):
            message = f"{name} is for the keys of a url or file; with a `secret` write HS256, HS384 or HS512"
            tree.add((*path, index), "value", message)


def _check_key_file(path: Path, file: FilePath, tree: Tree) -> None:
    # PyJWT and cryptography: a tenth of a second, and an extra.
    from ssegate.config.keyset import KeyFault, read_key_file

    path = (*path, "file") if tree.find((*path, "file")) is not None else path
    try:
        read_key_file(tree.folder / file)
    except KeyFault as fault:
        name = "what `${…}` gave here" if tree.is_expanded(path) else f'"{file}"'
        tree.add(path, "keys", f"{name} {fault}")


def _check_keys(path: Path, keys: ApiKeys, tree: Tree) -> None:
    """A key says who has it."""
    owners: dict[str, str] = {}
    for name, secrets in keys.values.items():
        for secret in {secret.get_secret_value() for secret in secrets}:
            owner = owners.setdefault(secret, name)
            if owner != name and not tree.is_broken((*path, name)):
                message = f"`{owner}` has the same key, which would not tell who shows it; give each a key of its own"
                tree.add((*path, name), "value", message)


# What routes say of guards


def check_names(path: Path, names: Sequence[str] | None, tree: Tree) -> None:
    """Note those that are no guards, and those that stand there twice."""
    if not names or tree.is_broken(path) or tree.is_gone(_AUTH):
        return
    found = tree.find(path)
    is_list = found is not None and isinstance(found[1], ListNode)
    known = [name for name in tree.keys(_AUTH) if name != PUBLIC]
    for index, name in enumerate(names):
        place = (*path, index) if is_list else path
        if name in names[:index]:
            tree.add(place, "value", f"{_said(name, place, tree)} stands here twice; leave one out")
        elif name not in known:
            _note_unknown(place, name, known, tree)


def _note_unknown(path: Path, name: str, known: Sequence[str], tree: Tree) -> None:
    mend = f"write one of {_listed(known)}" if known else "there is none; write `auth` at the top"
    hint = "" if tree.is_expanded(path) else did_you_mean(name, known)
    tree.add(path, "reference", f"{_said(name, path, tree)} is no guard; {mend}", hint)


def _said(name: str, path: Path, tree: Tree) -> str:
    return "what `${…}` gave here" if tree.is_expanded(path) else f"`{name}`"


def guards_of(route: Route, config: Config) -> tuple[str, ...] | None:
    """The guards of a route, the defaults' where it says nothing; () where it is public, None where nobody says anything."""
    return route.auth if route.auth is not None or route.proxy is not None else config.defaults.auth


@dataclass(frozen=True, slots=True)
class Viewers:
    """What templates and `match` may name of the viewers of one route."""

    guards: Mapping[str, Guard] | None
    """The route's guards; None when what the file says of them is wrong, so that nobody knows."""

    @classmethod
    def of(cls, route: Route, path: Path, config: Config, tree: Tree) -> Viewers:
        """Those of the route at this path of the file."""
        names = guards_of(route, config) or ()
        is_doubtful = tree.is_broken((*path, "auth")) or (route.auth is None and tree.is_broken(_DEFAULT))
        if is_doubtful or any(tree.is_broken((*_AUTH, name)) or name not in config.auth for name in names):
            return cls(None)
        return cls({name: config.auth[name] for name in names})

    @property
    def are_known(self) -> bool:
        """Whether a guard finds out who they are."""
        return bool(self.guards)

    def why_not(self, name: str) -> tuple[str, str]:
        """Why `identity` or `claims.x` cannot be named, with the mend, and a hint; empty when it can, or nobody knows."""
        if self.guards is None:
            return "", ""
        if not self.guards:
            return "no guard finds out who the viewer is; name one by `auth`", ""
        faults = (_missing(name, guard_name, guard) for guard_name, guard in self.guards.items())
        return next((fault for fault in faults if fault[0]), ("", ""))


def _missing(name: str, guard_name: str, guard: Guard) -> tuple[str, str]:
    if name == IDENTITY:
        return _told(
            guard.names_viewers, f"guard `{guard_name}` names nobody; let its `forward` say in which header: `identity`"
        )
    if guard.keys is not None:
        return f"guard `{guard_name}` knows keys, which have no claims; leave it out", ""
    claims = None if guard.forward is None else guard.forward.claims
    if isinstance(claims, HeaderClaims) and (claim := name.removeprefix(CLAIMS)) not in claims.headers:
        message = f"guard `{guard_name}` takes no such claim out of its answer; add it to `claims`"
        return message, did_you_mean(claim, claims.headers)
    return _told(
        guard.has_claims, f"guard `{guard_name}` has no claims; let its `forward` say where they are: `claims`"
    )


def _told(is_well: bool, message: str) -> tuple[str, str]:
    return ("", "") if is_well else (message, "")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
