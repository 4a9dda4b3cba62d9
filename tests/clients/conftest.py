"""The peers that are installed or started once for many tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.browser import Browser
from tests.clients.peers import install_node_packages


@pytest.fixture(scope="session")
def node_packages() -> None:
    """The npm packages, installed when they are missing."""
    install_node_packages()


@pytest.fixture(scope="session")
def chromium(node_packages: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A running Chromium, shared by all tests."""
    with Browser(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Browser:
    """Chromium with no page open."""
    chromium.reset()
    return chromium
