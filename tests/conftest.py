"""How property tests run: never by the clock, because machines are busy; in CI with the same examples every time."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "wsis", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=bool(os.environ.get("CI"))
)
settings.load_profile("wsis")
