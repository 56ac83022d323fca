"""One setting for every time-out, stall limit and back-off.

``CALLSHEET_TIME_SCALE`` (default 1) multiplies them all: 3 for a slow link, 0.01 for a test that
waits for a server that hangs. Nothing else in Callsheet holds a time-out that this does not reach; the one for a
connection never falls under two seconds.
"""

from __future__ import annotations

import os
import time

from callsheet.errors import BadInput


def time_scale() -> float:
    """The factor. Raises BadInput where the setting is not a number above 0."""
    text = os.environ.get("CALLSHEET_TIME_SCALE", "1")
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise BadInput(f'CALLSHEET_TIME_SCALE: found "{text}"; expected a number above 0, such as 1')
    return scale


def scaled(seconds: float) -> float:
    """``seconds``, stretched or shrunk by the setting."""
    return seconds * time_scale()


def clock() -> float:
    """Seconds that pass also while the machine sleeps, where the system can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
