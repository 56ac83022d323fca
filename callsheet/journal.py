"""Journals: what a run of a batch commits, written down while it goes, so that the next run need not ask for each take.

    journal = Journal(store, "demo", run="1f0c9a2e")
    journal.write(made)                    # every few seconds: a new file with what is new
    journal.close(made)                    # at the end: one file
    read_journals(store, "demo")           # every sidecar that any run of the batch wrote down

A journal saves questions, no more: that a take is there is asked of the store whatever a journal says.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from callsheet.store import Store
from callsheet.takes import Sidecar

#: What follows on ``journal-`` and, where it is given, the run.
_JOURNAL = re.compile(r"[0-9a-z-]*(\.[0-9]{6})?\.jsonl")
#: A run that was killed leaves so many files at most and one; the others are joined while it goes.
MOST_PARTS = 64


def run_name(flow_run: str) -> str:
    """What a flow run calls itself in the names of its files."""
    return flow_run[:8]


def journal_path(batch: str, run: str, part: int | None = None) -> str:
    """Where a run writes down the takes it commits, one sidecar a line: all of them, or a part while it goes."""
    number = "" if part is None else f".{part:06}"
    return f"batches/{batch}/journal-{run}{number}.jsonl"


def is_journal(name: str) -> bool:
    """Whether a file of that name in a batch's folder is a journal, and not a deliverable."""
    return name.startswith("journal-") and _JOURNAL.fullmatch(name.removeprefix("journal-")) is not None


class Journal:
    """The journal of one run; what is under way when its run is ended may end beside `close`."""

    def __init__(self, store: Store, batch: str, run: str) -> None:
        self._store = store
        self._batch, self._run = batch, run
        self._writing = threading.Lock()
        self._written = 0
        self._joined = 0
        self._parts: list[str] | None = None
        self._earlier = b""
        self._next = 0

    def write(self, made: Sequence[Sidecar]) -> None:
        """Writes down what is new in ``made``, which only grows.

        Raises:
            StoreFault: it cannot be written; it is tried again with the next.
        """
        with self._writing:
            if len(made) <= self._written:
                return
            parts = self._open()
            path = journal_path(self._batch, self._run, self._next)
            self._store.put(path, _lines(made[self._written :]))
            parts.append(path)
            self._next += 1
            self._written = len(made)
            # Joining writes all again: so rarely, as it grows, that each line is written a few times in all.
            if len(parts) >= MOST_PARTS and self._written - self._joined >= self._joined / 2:
                self._join(made)

    def close(self, made: Sequence[Sidecar]) -> None:
        """Leaves one file with all of ``made``, where anything was."""
        with self._writing:
            if made and (self._open() or len(made) > self._joined):
                self._join(made)

    def _join(self, made: Sequence[Sidecar]) -> None:
        parts = self._open()
        self._store.put(journal_path(self._batch, self._run), self._earlier + _lines(made))
        self._written = self._joined = len(made)
        while parts:
            self._store.delete(parts[-1])
            parts.pop()

    def _open(self) -> list[str]:
        """The parts that are there. A run that was suspended goes on under its name: what it wrote before is kept."""
        if self._parts is None:
            whole = journal_path(self._batch, self._run)
            stem = whole.removesuffix("jsonl")
            self._parts = sorted(file.path for file in self._store.list(stem) if file.path != whole)
            numbers = [path.removeprefix(stem).partition(".")[0] for path in self._parts]
            self._next = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
            self._earlier = b"".join(_read(self._store, path) for path in (whole, *self._parts))
        return self._parts


def read_journals(store: Store, batch: str, run: str = "") -> Iterator[Sidecar]:
    """The sidecars that runs of the batch wrote down, or one of them; in no particular order, and some twice."""
    start = f"batches/{batch}/journal-{run}"
    # A title may begin like a journal; its folder and its programme do not end like one.
    paths = sorted(
        p for p in (file.path for file in store.list(start)) if _JOURNAL.fullmatch(p[len(start) :])
    )
    with ThreadPoolExecutor(store.at_once) as pool:
        for content in pool.map(lambda path: _read(store, path), paths):
            yield from _sidecars(content.decode(errors="replace").splitlines())


def journal_cost(store: Store, batch: str, run: str) -> float:
    """What the takes cost that a run of the batch wrote down, in $."""
    return sum({sidecar.key: sidecar.cost for sidecar in read_journals(store, batch, run)}.values())


def _lines(made: Iterable[Sidecar]) -> bytes:
    return "".join(f"{sidecar.model_dump_json()}\n" for sidecar in made).encode()


def _read(store: Store, path: str) -> bytes:
    """A part may go while we look, because its run joins its parts: what it told is in the whole."""
    try:
        content = store.get(path)
    except FileNotFoundError:
        return b""
    return content if content.endswith(b"\n") or not content else content + b"\n"


def _sidecars(lines: Iterable[str]) -> Iterator[Sidecar]:
    """A line that was cut off, because its run was killed, is left out."""
    for line in lines:
        try:
            yield Sidecar.model_validate(json.loads(line))
        except (ValidationError, json.JSONDecodeError):
            continue
