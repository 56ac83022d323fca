"""Deletes old batches, and the takes that no other batch needs.

    pruning = find_prunable(store, now=time.time(), older_than=parse_age("90d"), keep_batches=5)
    [batch.name for batch in pruning.batches]            # nothing is deleted so far
    path, receipt = prune(store, pruning, now=time.time())

Models and records of hosts are never touched. What is deleted is written down before, in ``receipts/``. A prune that was
killed is completed by the next: pointers to a batch go first, then its manifest, the rest of it, and then takes, each
sidecar before its media. So whatever is left names nothing that is gone.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from callsheet.errors import BadInput, LeaseLost
from callsheet.manifest import LatestRun, batch_path
from callsheet.needed import Needs, read_all_needs, read_needs
from callsheet.store import Store
from callsheet.store_census import (
    BatchFiles,
    Census,
    TakeFiles,
    batches_at_work,
    held_batch,
    take_census,
)
from callsheet.store_lease import lease_path

_HOUR = 3600.0
_UNITS = {"h": _HOUR, "d": 24 * _HOUR, "w": 7 * 24 * _HOUR}
#: Where no age is given, takes stay that are younger: a run may have made them and not yet said so.
GRACE_SECONDS = 24 * _HOUR
#: So many takes are deleted before it is asked anew which are needed.
_CHUNK = 500


class Doomed(BaseModel):
    """A batch or a take that is to go.

    Attributes:
        name: of the batch, or the take's path without ending.
        files: paths, in the order in which they go.
        bytes: of all of them.
        modified: when a run last was on the batch, or the take's newest file was written, seconds since 1970.
        why: for a person.
    """

    name: str
    files: list[str]
    bytes: int
    modified: float
    why: str


class Pruning(BaseModel):
    """What is to go.

    Attributes:
        pointers: of the store's ``latest/``, by the batch that they name.
        kept: batches that stay.
        at_work: those of them that a run is at work on.
        held_back: why no take may go; empty where takes may.
    """

    older_than: float | None = Field(description="seconds")
    keep_batches: int | None
    batches: list[Doomed]
    takes: list[Doomed]
    pointers: dict[str, list[str]]
    kept: list[str]
    at_work: list[str]
    held_back: str = ""

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in (*self.batches, *self.takes))

    @property
    def is_empty(self) -> bool:
        return not self.batches and not self.takes


class Receipt(BaseModel):
    """``receipts/prune-<UTC time>.json``: what a prune set out to delete, written before, and again when it is done.

    Attributes:
        left: what stays after all, by name, and why.
        deleted: bytes that went.
    """

    state: Literal["begun", "done"]
    began: str
    ended: str = ""
    store: str
    pruning: Pruning
    bytes: int
    left: dict[str, str] = Field(default_factory=dict)
    deleted: int = 0


def parse_age(text: str) -> float:
    """The seconds of an age such as ``12h``, ``90d`` or ``4w``.

    Raises:
        BadInput: it is none.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,5})([hdw])", text.strip())
    if match is None:
        raise BadInput(
            f'--older-than: found "{text}"; expected a number of hours, days or weeks, such as 12h, 90d or 4w'
        )
    return int(match[1]) * _UNITS[match[2]]


def find_prunable(
    store: Store, *, now: float, older_than: float | None = None, keep_batches: int | None = None
) -> Pruning:
    """What would be deleted; changes nothing.

    Args:
        now: seconds since 1970.
        older_than: seconds; batches that were finished, and takes that were written, less long ago stay.
        keep_batches: so many of the newest batches stay, however old.

    Raises:
        BadInput: neither of the two is given.
        StoreFault: the store cannot be read.
    """
    if older_than is None and keep_batches is None:
        raise BadInput("store prune: found neither --older-than nor --keep-batches; expected at least one")
    census = take_census(store)
    needs = read_all_needs(store, census.batches)
    working = batches_at_work(store, census.batches.values(), now)
    times = {name: _time_of(batch, needs[name]) for name, batch in census.batches.items()}
    newest = sorted(times, key=lambda name: (times[name], name), reverse=True)[: keep_batches or 0]
    before = now - (older_than or 0.0)
    old = [name for name, time in times.items() if older_than is None or time < before]
    doomed = sorted(set(old) - set(newest) - working)
    kept = sorted(set(census.batches) - set(doomed))
    kept_needs = {name: needs[name] for name in kept}
    return Pruning(
        older_than=older_than,
        keep_batches=keep_batches,
        batches=[_doomed_batch(census.batches[name], times[name]) for name in doomed],
        takes=_doomed_takes(census, kept_needs, _takes_before(now, older_than)),
        pointers=_pointers(store, census, doomed),
        kept=kept,
        at_work=sorted(working),
        held_back=_held_back(kept_needs),
    )


def prune(store: Store, pruning: Pruning, *, now: float) -> tuple[str, Receipt]:
    """Deletes what `find_prunable` found, where it is still so.

    Returns:
        The receipt, and where in the store it is.

    Raises:
        StoreFault: the store does not take it; the next prune goes on.
    """
    receipt = Receipt(state="begun", began=_utc(), store=str(store), pruning=pruning, bytes=pruning.bytes)
    path = _write_down(store, receipt)
    left: dict[str, str] = {}
    for batch in pruning.batches:
        if why := _delete_batch(store, batch, pruning, now):
            left[batch.name] = why
    left |= _delete_takes(store, pruning)
    gone = sum(one.bytes for one in (*pruning.batches, *pruning.takes) if one.name not in left)
    done = receipt.model_copy(update={"state": "done", "ended": _utc(), "left": left, "deleted": gone})
    store.put(path, done.model_dump_json(indent=1).encode())
    return path, done


def _time_of(batch: BatchFiles, needs: Needs) -> float:
    """When a run last finished the batch or began on it; where neither is told, when its newest file was written."""
    told = [needs.manifest.finished] if needs.manifest else []
    told += [needs.planned.started] if needs.planned else []
    times = [time for time in map(_seconds, told) if time is not None]
    if needs.manifest and times:
        return max(times)
    # Leases are taken, and pages made anew, by those who only look.
    looked = {lease_path(batch.name), batch_path(batch.name, "report.html")}
    times += [file.modified for path, file in batch.files.items() if path not in looked]
    return max(times, default=0.0)


def _seconds(text: str) -> float | None:
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _takes_before(now: float, older_than: float | None) -> float:
    return now - (GRACE_SECONDS if older_than is None else older_than)


def _doomed_batch(batch: BatchFiles, time: float) -> Doomed:
    """A batch, whose manifest goes first and its lease last."""
    first, last = batch_path(batch.name, "manifest.json"), lease_path(batch.name)
    day = datetime.datetime.fromtimestamp(time, datetime.UTC).date()
    return Doomed(
        name=batch.name,
        files=sorted(batch.files, key=lambda path: (path != first, path == last, path)),
        bytes=sum(file.bytes for file in batch.files.values()),
        modified=time,
        why=f"the last run on it was on {day}",
    )


def _doomed_takes(census: Census, kept: Mapping[str, Needs], before: float) -> list[Doomed]:
    """Takes, committed or not, that no batch that stays needs; none where it is not known what one needs."""
    if _held_back(kept):
        return []
    needed = frozenset[str]().union(*(needs.keys for needs in kept.values()))
    takes = sorted(census.takes.values(), key=lambda take: take.name)
    return [_doomed_take(take) for take in takes if take.key not in needed and take.modified < before]


def _doomed_take(take: TakeFiles) -> Doomed:
    why = "no batch that stays needs it" if take.sidecar else "it was never committed"
    return Doomed(
        name=take.name,
        files=[file.path for file in take.files],
        bytes=take.bytes,
        modified=take.modified,
        why=why,
    )


def _held_back(kept: Mapping[str, Needs]) -> str:
    """Why no take may go: a batch that stays may need more than it tells."""
    paths = [path for needs in kept.values() for path in needs.unreadable]
    if not paths:
        return ""
    return f"{paths[0]} does not parse, so it is not known which takes its batch needs; run that batch again, or delete it"


def _pointers(store: Store, census: Census, doomed: Collection[str]) -> dict[str, list[str]]:
    """The pointers that name these batches."""
    paths = [file.path for file in census.others.get("latest", ())] if doomed else []
    found: dict[str, list[str]] = {}
    with ThreadPoolExecutor(store.at_once) as pool:
        for path, batch in zip(paths, pool.map(lambda path: _points_to(store, path), paths), strict=True):
            if batch in doomed:
                found.setdefault(batch, []).append(path)
    return found


def _points_to(store: Store, path: str) -> str:
    """The batch that a pointer names; none where it does not parse."""
    try:
        return LatestRun.model_validate_json(store.get(path)).batch
    except (FileNotFoundError, ValidationError):
        return ""


def _delete_batch(store: Store, batch: Doomed, pruning: Pruning, now: float) -> str:
    """Deletes a batch while no run can begin on it. Returns why it stays, where it does."""
    with held_batch(store, batch.name, now) as check:
        if check is None:
            return "a run began on it"
        if _is_changed(store, batch):
            return "it was run meanwhile"
        try:
            _delete_files(store, batch, pruning.pointers.get(batch.name, ()), check)
        except LeaseLost:
            return "a run began on it while it was deleted; what it lost is made again"
        store.delete(lease_path(batch.name))
    return ""


def _is_changed(store: Store, batch: Doomed) -> bool:
    """Whether files came since we looked, or a run began or finished."""
    files = take_census(store, batch_path(batch.name, "")).batches.get(batch.name, BatchFiles(batch.name))
    has_more = not set(files.files) <= {*batch.files, lease_path(batch.name)}
    return has_more or _time_of(files, read_needs(store, batch.name)) > batch.modified


def _delete_files(store: Store, batch: Doomed, pointers: Iterable[str], check: Callable[[], None]) -> None:
    """All but the lease, in order; the many in the middle several at a time."""

    def delete(path: str) -> None:
        check()
        store.delete(path)

    for path in pointers:
        if _points_to(store, path) == batch.name:
            delete(path)
    manifest, lease = batch_path(batch.name, "manifest.json"), lease_path(batch.name)
    delete(manifest)
    rest = [path for path in batch.files if path not in (manifest, lease)]
    with ThreadPoolExecutor(store.at_once) as pool:
        list(pool.map(delete, rest))


def _delete_takes(store: Store, pruning: Pruning) -> dict[str, str]:
    """Deletes takes. Asks every now and then what is needed, for a run may begin meanwhile. Returns what stays, and why."""
    left: dict[str, str] = {}
    with ThreadPoolExecutor(store.at_once) as pool:
        for start in range(0, len(pruning.takes), _CHUNK):
            chunk = pruning.takes[start : start + _CHUNK]
            needs = read_all_needs(store, take_census(store, "batches/").batches)
            if why := _held_back(needs):
                return left | {take.name: why for take in pruning.takes[start:]}
            needed = {key: name for name, one in needs.items() for key in one.keys}
            going = [take for take in chunk if _key_of(take) not in needed]
            left |= {
                take.name: f"batch {needed[_key_of(take)]} needs it" for take in chunk if take not in going
            }
            list(pool.map(partial(_delete_take, store), going))
    return left


def _key_of(take: Doomed) -> str:
    return take.name.rpartition("/")[2]


def _delete_take(store: Store, take: Doomed) -> None:
    for path in take.files:
        store.delete(path)


def _write_down(store: Store, receipt: Receipt) -> str:
    """Writes a new receipt. Returns its path."""
    time = receipt.began.replace(":", "").replace("-", "").removesuffix("+0000")
    content = receipt.model_dump_json(indent=1).encode()
    path = f"receipts/prune-{time}Z.json"
    if not store.put_if(
        path, content, None
    ):  # another began in the same moment, or it is our own, sent twice
        path = f"receipts/prune-{time}Z-{uuid.uuid4().hex[:6]}.json"
        store.put(path, content)
    return path


def _utc() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
