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
        self._noting = threading.Lock()
        #: Since when nothing gets through, whoever asks.
        self._away_since: float | None = None
        self._told = 0.0

    def __call__(self, do: Callable[[], _Result]) -> _Result:
        """What ``do`` returns.

        Raises:
            StoreFault: as ``do`` did, where it is not one that may pass, or did not in time.
        """
        pause = 0.5
        while True:
            try:
                result = do()
            except StoreFault as fault:
                left = self._left()
                if not fault.may_pass or left <= 0 or self._ended.is_set():
                    raise
                self._say(f"{fault}; asks again for up to {left / 60:.0f} min")
            else:
                self._away_since = None
                return result
            self._ended.wait(scaled(pause) * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _left(self) -> float:
        """How long the store may be away yet, in seconds: that is counted once, however many wait for it."""
        with self._noting:
            now = clock()
            self._away_since = self._away_since or now
            return self._away_since + scaled(self._seconds) - now

    def end(self) -> None:
        """Nobody waits any more."""
        self._ended.set()

    def _say(self, text: str) -> None:
        """Once a minute, however many wait."""
        with self._noting:
            now = clock()
            if self._told and now < self._told + scaled(60):
                return
            self._told = now
        self._tell(text)
