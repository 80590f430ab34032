"""What every test may rely on, however the run was started."""

from __future__ import annotations

import signal

# A job started in the background by a shell has SIGINT ignored, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
