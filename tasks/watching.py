"""Whoever watches a run from outside: the command line shows what it is told at the terminal.

with watched_by(bar):
    state = await produce(parameters, return_state=True)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

from callsheet.batch import Batch
from tasks.logs import run_logger

_watcher: ContextVar[Watcher | None] = ContextVar("callsheet_watcher", default=None)


class Watcher(Protocol):
    """Sees every change of a batch; called often, so it must be quick."""

    def changed(self, batch: Batch) -> None: ...

    def told(self, text: str) -> None:
        """Something that a person should know while it goes on."""


@contextlib.contextmanager
def watched_by(seen: Watcher) -> Iterator[None]:
    """Flows that are called inside tell ``seen`` (the command line's progress bar) of every change."""
    token = _watcher.set(seen)
    try:
        yield
    finally:
        _watcher.reset(token)


def watcher() -> Watcher | None:
    """Who watches this run."""
    return _watcher.get()


def tell_watcher(text: str) -> None:
    """Lets a person at the terminal know."""
    if seen := watcher():
        seen.told(text)


def tell(text: str, level: int = logging.WARNING) -> None:
    """In the log of the run, and at the terminal."""
    run_logger().log(level, "%s", text)
    tell_watcher(text)
