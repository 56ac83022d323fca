"""Patience with a store that is out of reach or busy: what is done costs money to make again, and waiting costs none.

patience = Patience(tell=print)
patience(lambda: store.put("takes/speech/a.wav", path))       # asks again for up to ten minutes
patience.end()                                                # those who wait give up at once
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from callsheet.errors import StoreFault
from callsheet.timing import clock, scaled

_Result = TypeVar("_Result")
#: How long a store may be away, in seconds.
PATIENCE_SECONDS = 600.0
_LONGEST_PAUSE = 15.0


class Patience:
    """Calls again what a store could not do for now; may be used by many threads."""

    def __init__(
        self, tell: Callable[[str], None] = lambda _: None, seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._tell, self._seconds = tell, seconds
        self._ended = threading.Event()
        self._away = threading.Lock()
        self._told = 0.0

    def __call__(self, do: Callable[[], _Result]) -> _Result:
        """What ``do`` returns.

        Raises:
            StoreFault: as ``do`` did, where it is not one that may pass, or did not in time.
        """
        until, pause = None, 0.5
        while True:
            try:
                return do()
            except StoreFault as fault:
                now = clock()
                until = until or now + scaled(self._seconds)
                if not fault.may_pass or now >= until or self._ended.is_set():
                    raise
                self._say(f"{fault}; asks again for up to {(until - now) / 60:.0f} min", now)
            self._ended.wait(scaled(pause) * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def end(self) -> None:
        """Nobody waits any more."""
        self._ended.set()

    def _say(self, text: str, now: float) -> None:
        """Once a minute, however many wait."""
        with self._away:
            if self._told and now < self._told + scaled(60):
                return
            self._told = now
        self._tell(text)
