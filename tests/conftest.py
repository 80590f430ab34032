"""What every test may rely on, however the run was started."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# A job started in the background by a shell has SIGINT ignored, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A change lands or not for what it changed: CI draws the same examples every time, people's machines draw new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
