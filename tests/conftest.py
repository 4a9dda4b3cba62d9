"""How hard hypothesis tries: fifty examples of each, or `--hypothesis-profile deep`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("deep", max_examples=20_000, deadline=None, print_blob=True)
settings.register_profile("usual", max_examples=50)
settings.load_profile("usual")
