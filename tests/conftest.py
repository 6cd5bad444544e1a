"""What holds for every test."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples on every machine: a change is judged by what it changes. The profile "search" looks for new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("search", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
