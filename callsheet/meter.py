"""What the time of a lane went into: engine work, swapping models, waiting for memory or for others, nothing.

with meter.rented():                     # from when the lane may work until it is given back
    with meter.waiting("waiting_for_vram"):
        ...
    meter.add_step(seconds, expected, model)
meter.parts()                            # {"rented": 61.2, "busy": 58.0, …}, in seconds
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

Waiting = Literal["waiting", "waiting_for_vram"]


@dataclass
class LaneMeter:
    """The clock of one lane.

    Attributes:
        steps: how many it did, whatever came of them.
        seconds: engine seconds, by the host's clock where it tells; loading models included.
    """

    steps: int = 0
    seconds: float = 0.0
    _rented: float = 0.0
    _since: float | None = None
    _waited: dict[str, float] = field(default_factory=lambda: {"waiting_for_vram": 0.0, "waiting": 0.0})
    _model: str = ""
    #: Seconds of each step over what was expected of it, by model: the first after another model, and the others.
    _first: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _others: dict[str, list[float]] = field(default_factory=dict)

    def add_step(self, seconds: float, expected: float = 0.0, model: str = "") -> None:
        """A step was done that took ``seconds`` of the engine; ``model`` is empty where it says nothing of swaps."""
        self.steps += 1
        self.seconds += seconds
        if not model or expected <= 0:
            return
        if model == self._model:
            self._others.setdefault(model, []).append(seconds / expected)
        else:
            self._first.setdefault(model, []).append((seconds, expected))
        self._model = model

    def forget_model(self) -> None:
        """The engine has no model loaded any more."""
        self._model = ""

    def add_canary(self, seconds: float) -> None:
        """Engine time that no step asked for."""
        self.seconds += seconds

    @contextmanager
    def rented(self) -> Iterator[None]:
        """The lane is there to work, and costs money, for as long as the block lasts."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._rented += time.monotonic() - self._since
            self._since = None

    @contextmanager
    def waiting(self, part: Waiting = "waiting") -> Iterator[None]:
        """The lane waits: for its place or its slot of the tag, or for the memory that another engine of its host has."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited[part] += time.monotonic() - began

    @property
    def swapping(self) -> float:
        """Seconds that the first step of a model took longer than its others did; no server tells it."""
        seconds = 0.0
        for model, firsts in self._first.items():
            if others := self._others.get(model):
                usual = median(others)
                seconds += sum(max(0.0, took - expected * usual) for took, expected in firsts)
        return seconds

    def parts(self) -> dict[str, float]:
        """Seconds rented, and what they went into; they add up but for work on several steps at once."""
        rented = self._rented + (time.monotonic() - self._since if self._since is not None else 0.0)
        swapping = min(self.swapping, self.seconds)
        parts = {
            "busy": self.seconds - swapping,
            "swapping": swapping,
            **self._waited,
        }
        idle = max(0.0, rented - sum(parts.values()))
        return {"rented": rented, **parts, "idle": idle}
