"""Requests under way at the same time on one server: some servers hand two callers the same answer.

Reported of XTTS and Kokoro servers: two callers, two texts, both 200, the same bytes
(xtts-api-server#59, Kokoro-FastAPI#222). Neither answer can be trusted then, and nobody can tell which
is right before both are back. So a recording is trusted only after everything that was under way with it.

    flight = flights.start("the first text")
    flight.land(pcm)
    flight.end()
    twin = await flight.twin()       # another text with the same bytes, or None
"""

from __future__ import annotations

import asyncio
import hashlib


class Flight:
    """One request, from when it was sent until its answer is whole or has failed."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._letters = "".join(c for c in text.casefold() if c.isalnum())
        self._digest: bytes | None = None
        self._over = asyncio.Event()
        self._with: set[Flight] = set()

    def land(self, content: bytes) -> None:
        """The answer is whole."""
        self._digest = hashlib.blake2b(content, digest_size=16).digest()

    def end(self) -> None:
        """It is over, well or not."""
        self._over.set()
        if self._digest is None:
            self._with.clear()

    async def twin(self) -> str | None:
        """The text of a request that was under way at the same time and got the same bytes for other words.

        Waits until all of those are over.
        """
        for other in self._with:
            await other._over.wait()
        twins = [other for other in self._with if other._digest is not None and other._digest == self._digest]
        self._with.clear()  # flights that know each other would keep all that ever flew
        return next((other.text for other in twins if other._letters != self._letters), None)


class Flights:
    """The requests of one server."""

    def __init__(self) -> None:
        self._airborne: set[Flight] = set()

    def start(self, text: str) -> Flight:
        """A request is sent now."""
        flight = Flight(text)
        self._airborne = {other for other in self._airborne if not other._over.is_set()}
        for other in self._airborne:
            flight._with.add(other)
            other._with.add(flight)
        self._airborne.add(flight)
        return flight
