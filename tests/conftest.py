"""How hard hypothesis tries: as by default, or `--hypothesis-profile deep`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("deep", max_examples=20_000, deadline=None, print_blob=True)
