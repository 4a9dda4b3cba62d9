"""What the keys of `server` and `admin` have to do with each other: addresses, certificates, edges."""

from __future__ import annotations

import ssl
from importlib.util import find_spec
from pathlib import Path as FilePath

from ssegate.config.certificate import CertificateFault, load_certificate
from ssegate.config.document import Path
from ssegate.config.model import Config, Server, ServerTls
from ssegate.config.tree import Tree
from ssegate.config.values import Address

_SERVER: Path = ("server", "listen")
_TLS: Path = ("server", "tls")
_HTTP3: Path = ("server", "http3")

HTTP3_LIBRARY = "aioquic"


def check_listening(config: Config, tree: Tree) -> None:
    """Note in the tree whatever does not fit together. Keys that are broken in themselves cause no further complaints."""
    _check_addresses(config, tree)
    if config.server.tls is not None:
        _check_certificate(config.server.tls, tree)
    if config.server.http3 and not tree.is_broken(_HTTP3):
        _check_http3(config.server, tree)


def resolve_server(server: Server, folder: FilePath) -> Server:
    """Let files that are named relative to the configuration's folder be found from anywhere."""
    update: dict[str, object] = {}
    tls = server.tls
    if tls is not None and tls.cert is not None and tls.key is not None:
        update["tls"] = tls.model_copy(update={"cert": folder / tls.cert, "key": folder / tls.key})
    if server.state_dir is not None:
        update["state_dir"] = folder / server.state_dir
    return server.model_copy(update=update) if update else server


def _check_addresses(config: Config, tree: Tree) -> None:
    taken: dict[Address, str] = {}
    for path, name, address in _listeners(config):
        if tree.is_broken(path) or address.port == 0:
            continue
        if address in taken:
            tree.add(path, "value", f"the {taken[address]} listener has this address; give the {name} listener its own")
        taken.setdefault(address, name)


def _listeners(config: Config) -> list[tuple[Path, str, Address]]:
    found = [(_SERVER, "public", config.server.listen)]
    if config.server.tls is not None:
        found.append(((*_TLS, "listen"), "TLS", config.server.tls.listen))
    if config.admin is not None:
        found.append((("admin", "listen"), "admin", config.admin.listen))
    return found


def _check_certificate(tls: ServerTls, tree: Tree) -> None:
    """One way to come by a certificate, and just one."""
    if any(tree.is_broken((*_TLS, name)) for name in ("cert", "key", "self_signed")):
        return
    if tls.self_signed:
        for name in ("cert", "key"):
            if getattr(tls, name) is not None:
                message = f"`self_signed: true` makes a certificate of its own; leave out `{name}`, or `self_signed`"
                tree.add((*_TLS, name), "value", message, part="key")
    elif tls.cert is not None and tls.key is not None:
        _check_files(tls.cert, tls.key, tree)
    else:
        tree.add(_TLS, "missing", _missing(tls), part="key")


def _missing(tls: ServerTls) -> str:
    if tls.cert is not None:
        return "`key` is missing; name the file of the certificate's private key"
    if tls.key is not None:
        return "`cert` is missing; name the file of the key's certificate"
    return "there is no certificate; write `cert` and `key`, or `self_signed: true`"


def _check_files(cert: FilePath, key: FilePath, tree: Tree) -> None:
    try:
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tree.folder / cert, tree.folder / key)
    except CertificateFault as fault:
        path = (*_TLS, fault.key)
        name = "what `${…}` gave here" if tree.is_expanded(path) else f'"{fault.file}"'
        tree.add(path, "certificate", f"{name} {fault.message}")


def _check_http3(server: Server, tree: Tree) -> None:
    if server.edge != "hypercorn" and not tree.is_broken(("server", "edge")):
        tree.add(_HTTP3, "value", "HTTP/3 is for `edge: hypercorn` only; write that beside it, or leave `http3` out")
    if server.tls is None and not tree.is_broken(_TLS):
        tree.add(_HTTP3, "missing", "HTTP/3 is always encrypted; write `tls` beside it")
    if find_spec(HTTP3_LIBRARY) is None:
        message = f"HTTP/3 needs {HTTP3_LIBRARY}, which is not installed; run: pip install 'ssegate[http3]'"
        tree.add(_HTTP3, "missing", message)
