"""Settings shared by all tests: the hypothesis profile (no deadlines; the same examples every time in CI)."""

import os

from hypothesis import settings

settings.register_profile("numaemu", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("numaemu")
