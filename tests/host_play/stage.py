"""The stage: one acts at a time, and time passes when nobody can.

Each part (`Actor`) is a greenlet. At every call and every sleep it goes back to the stage, which takes the next turn from
the play: so the same play goes the same way every time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import greenlet  # comes with SQLAlchemy, which Prefect needs

from tests.fakes.vast import START, Vast
from tests.host_play.plays import Death

#: More calls than any play takes; one that takes more never ends.
CALLS = 30_000
#: Seconds of pause, by turn from 3 on. The last is for plays in which a lock is lost: longer than any wait.
PAUSES = (5.0, 40.0, 400.0)
T = TypeVar("T")


class Killed(BaseException):
    """Nobody catches it: what a SIGKILL leaves behind is what stands outside the process."""


class Actor:
    """A part in the play: a process, and those that follow when it is killed.

    Attributes:
        life: which of its processes this is.
    """

    def __init__(
        self, stage: Stage, name: str, body: Callable[[Actor], None], deaths: tuple[Death, ...]
    ) -> None:
        self.stage, self.name, self._body, self._deaths = stage, name, body, list(deaths)
        self.life, self.calls, self.wake = 0, 0, stage.now
        self.is_done = self.was_paused = False
        self.process = greenlet.greenlet(self._run)

    def _run(self) -> None:
        try:
            self._body(self)
        except Killed:
            self._die()
        else:
            self.is_done = True

    def _die(self) -> None:
        death = self._deaths.pop(0)
        for told in self.stage.mourners:
            told(self)
        self.life, self.calls = self.life + 1, 0
        if death.gap is None:
            self.is_done = True
        else:
            self.wake = self.stage.now + death.gap * 60
            self.process = greenlet.greenlet(self._run, self.stage.hub)

    def call(self, ask: Callable[[], T]) -> T:
        """Does something that others see: another may act before, and it may be the last that this process does."""
        self.stage.hub.switch()
        self.calls += 1
        death = self._deaths[0] if self._deaths and self._deaths[0].call == self.calls else None
        if death and not death.after:
            raise Killed
        try:
            return ask()
        finally:
            if death:
                raise Killed

    def sleep(self, seconds: float) -> None:
        self.wake = self.stage.now + seconds
        self.stage.hub.switch()


class Stage:
    """Lets one act at a time, and time pass when nobody can."""

    def __init__(self, vast: Vast, turns: tuple[int, ...]) -> None:
        self.vast, self.hub = vast, greenlet.getcurrent()
        self.actors: list[Actor] = []
        self.mourners: list[Callable[[Actor], None]] = []
        self.watchers: list[Callable[[], None]] = []
        self._turns = itertools.cycle(turns or (0,))
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._calls = itertools.count()
        self.last: Actor | None = None

    @property
    def now(self) -> float:
        return self.vast.now

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Something happens by itself, at a moment of the clock."""
        self._coming.append((when, next(self._calls), what))
        self._coming.sort(key=lambda one: one[:2])

    def play(self, until: float, is_over: Callable[[], bool]) -> None:
        """Goes on until then, or until it is over."""
        while self.now < until and not is_over():
            while self._coming and self._coming[0][0] <= self.now:
                self._coming.pop(0)[2]()
            waiting = [actor for actor in self.actors if not actor.is_done]
            ready = [actor for actor in waiting if actor.wake <= self.now]
            if ready:
                self._act(ready)
            else:
                moments = [
                    until,
                    *(actor.wake for actor in waiting),
                    *(when for when, *_ in self._coming[:1]),
                ]
                self.vast.advance(max(0.001, min(moments) - self.now))
            for watcher in self.watchers:
                watcher()

    def _act(self, ready: list[Actor]) -> None:
        assert next(self._calls) < CALLS, (
            f"it never ends: {self.last and self.last.name} acts at {self.now - START:.0f} s"
        )
        turn = next(self._turns)
        others = [actor for actor in ready if actor is not self.last]
        actor = self.last
        if actor is None or actor not in ready or (0 < turn < 3 and others):
            actor = others[turn % len(others)]
        elif turn >= 3 and not actor.was_paused:
            actor.wake, actor.was_paused = self.now + PAUSES[turn - 3], True
            return
        self.last, actor.was_paused = actor, False
        actor.process.switch()

    def close(self) -> None:
        """Ends every process that is in the middle of something."""
        for actor in self.actors:
            if actor.process and not actor.process.dead:
                actor.stage.mourners.clear()
                with suppress(BaseException):
                    actor.process.throw(greenlet.GreenletExit)
