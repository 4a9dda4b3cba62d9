"""What all tests have in common: how hard hypothesis tries (fifty examples of each, or `--hypothesis-profile deep`), and a log that is
afterwards as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("deep", max_examples=20_000, deadline=None, print_blob=True)
settings.register_profile("usual", max_examples=50, deadline=None)
settings.load_profile("usual")


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """A command that ran in this process writes its log to a stream that is closed with the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
