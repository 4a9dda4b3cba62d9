"""The configuration as the command line finds it, checked to the point where a gate can be built of it."""

from __future__ import annotations

import os

from ssegate.config import Config, load_config, parse_config
from ssegate.config.values import Address
from ssegate.errors import ConfigError, Problem
from ssegate.gate.routes import Table
from ssegate.upstream import Upstream


def load(path: str | None, listen: Address | None = None) -> Config:
    """Find, read and check the configuration; `listen` overrides the file's. Raises `ConfigError`."""
    return _overridden(_built(load_config(path, environ=os.environ)), listen)


def load_text(text: str, source: str, listen: Address | None = None) -> Config:
    """As `load`, of a text that stands in no file."""
    return _overridden(_built(parse_config(text, source=source, environ=os.environ)), listen)


def _overridden(config: Config, listen: Address | None) -> Config:
    if listen is None:
        return config
    return config.model_copy(update={"server": config.server.model_copy(update={"listen": listen})})


def _built(config: Config) -> Config:
    """Find what shows only when a gate is built: a CA file that holds no certificate, say."""
    problems = []
    for name, settings in config.upstreams.items():
        try:
            Upstream(name, settings)
        except (OSError, ValueError) as error:
            where = f"upstreams.{name}" + (".tls.ca" if settings.tls.ca else "")
            message = f"{_fact(error)}; name a file of PEM certificates" if settings.tls.ca else _fact(error)
            problems.append(Problem(config.source, 0, 0, "value", where, message))
    if problems:
        raise ConfigError(problems)
    try:
        Table(config)
    except ValueError as error:
        raise ConfigError([Problem(config.source, 0, 0, "value", "", str(error))]) from error
    return config


def _fact(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
