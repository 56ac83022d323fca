"""What lies in a store, sorted into what Callsheet calls it: what `store check` and `store prune` go by.

census = take_census(store)                  # one list of the whole store
census.takes["takes/speech/9f…"].media       # the files of a take, whether it is committed or not
census.batches["demo"].files
with held_batch(store, "demo", now) as check:
    ...                                      # no run begins on the batch meanwhile; None: one is at work on it
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import get_args

from callsheet.errors import BadInput, StoreFault
from callsheet.fleet import StepKind
from callsheet.journal import is_journal
from callsheet.manifest import BOOKS, batch_path
from callsheet.store import Store, StoredFile, check_path
from callsheet.store_lease import LEASE_SECONDS, StoreLease, is_held, lease_path
from callsheet.takes import sidecar_path
from callsheet.timing import scaled

_KINDS = "|".join(get_args(StepKind))
_TAKE = re.compile(
    rf"(?P<take>takes/({_KINDS})/(?P<key>[0-9a-f]{{64}}))\.(?P<rest>json|[0-9]+(-[0-9a-z-]+)?\.[0-9a-z]+)"
)
_BATCH = re.compile(r"batches/(?P<batch>[^/]+)/(?P<name>.+)", re.DOTALL)
#: What else is ours, by folder. `callsheet.packed` writes ``inputs/``, the prune ``receipts/``; ``inbox/`` is people's.
_OTHERS = {
    "models": re.compile(r"models/.+", re.DOTALL),
    "hosts": re.compile(r"hosts/.+", re.DOTALL),
    "latest": re.compile(r"latest/[^/]+\.json", re.DOTALL),
    "receipts": re.compile(r"receipts/[^/]+\.json"),
    "inbox": re.compile(r"inbox/.+", re.DOTALL),
    "inputs": re.compile(r"inputs/[0-9a-f]{64}(\.[^/]+)?", re.DOTALL),
}


@dataclass
class TakeFiles:
    """The files of a take.

    Attributes:
        name: its path without ending, ``takes/<kind>/<key>``.
        media: of all attempts, by path.
    """

    name: str
    key: str
    sidecar: StoredFile | None = None
    media: dict[str, StoredFile] = field(default_factory=dict)

    @property
    def sidecar_path(self) -> str:
        return f"{self.name}.json"

    @property
    def files(self) -> list[StoredFile]:
        """The sidecar first: in this order they are deleted, so that none is left whose media is gone."""
        media = [self.media[path] for path in sorted(self.media)]
        return [self.sidecar, *media] if self.sidecar else media

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def modified(self) -> float:
        """When the newest of them was written, seconds since 1970."""
        return max(file.modified for file in self.files)


@dataclass
class BatchFiles:
    """The files of a batch, by path."""

    name: str
    files: dict[str, StoredFile] = field(default_factory=dict)

    @property
    def lease(self) -> StoredFile | None:
        return self.files.get(lease_path(self.name))

    @property
    def delivered(self) -> list[StoredFile]:
        """Clips, posters, captions and programmes, whether the manifest names them or not."""
        return [file for path, file in self.files.items() if not self._is_book(path)]

    def _is_book(self, path: str) -> bool:
        name = path.removeprefix(batch_path(self.name, ""))
        return name in BOOKS or name.startswith("shards/") or is_journal(name)


@dataclass
class Census:
    """All files of a store.

    Attributes:
        others: models, hosts, pointers, receipts and inputs, by folder.
        foreign: what has a path that Callsheet gives to nothing.
    """

    takes: dict[str, TakeFiles] = field(default_factory=dict)
    batches: dict[str, BatchFiles] = field(default_factory=dict)
    others: dict[str, list[StoredFile]] = field(default_factory=dict)
    foreign: list[StoredFile] = field(default_factory=list)

    def take(self, kind: StepKind, key: str) -> TakeFiles | None:
        return self.takes.get(sidecar_path(kind, key).removesuffix(".json"))

    def add(self, file: StoredFile) -> None:
        if not is_path(file.path):
            self.foreign.append(file)
        elif match := _TAKE.fullmatch(file.path):
            take = self.takes.setdefault(match["take"], TakeFiles(match["take"], match["key"]))
            if match["rest"] == "json":
                take.sidecar = file
            else:
                take.media[file.path] = file
        elif match := _BATCH.fullmatch(file.path):
            self.batches.setdefault(match["batch"], BatchFiles(match["batch"])).files[file.path] = file
        else:
            self._add_other(file)

    def _add_other(self, file: StoredFile) -> None:
        folder = file.path.partition("/")[0]
        if folder in _OTHERS and _OTHERS[folder].fullmatch(file.path):
            self.others.setdefault(folder, []).append(file)
        else:
            self.foreign.append(file)


def take_census(store: Store, prefix: str = "") -> Census:
    """Lists the store once, or what begins with ``prefix``.

    Raises:
        StoreFault: it cannot be listed.
    """
    census = Census()
    for file in store.list(prefix):
        census.add(file)
    return census


def is_path(path: str) -> bool:
    """Whether a `Store` would touch it; a bucket may hold other keys."""
    try:
        return bool(check_path(path))
    except ValueError:
        return False


def at_work(store: Store, batch: BatchFiles, now: float) -> bool:
    """Whether a run is at work on the batch: in a folder it holds a lock, elsewhere it renews a lease.

    Args:
        now: seconds since 1970, by which a lease that was not renewed for two of its lengths is a dead one's.
    """
    if not store.is_shared:
        try:
            with store.only_run(batch.name):
                return False
        except BadInput:
            return True
    lease = batch.lease
    is_fresh = lease is not None and lease.modified > now - scaled(2 * LEASE_SECONDS)
    return is_fresh and is_held(store, lease_path(batch.name))


def batches_at_work(store: Store, batches: Iterable[BatchFiles], now: float) -> set[str]:
    """The names of those that a run is at work on."""
    return {batch.name for batch in batches if at_work(store, batch, now)}


@contextmanager
def held_batch(store: Store, batch: str, now: float) -> Iterator[Callable[[], None] | None]:
    """Holds the batch as a run would, so that none begins on it. Gives what raises LeaseLost where it is another's by
    now; None where a run is at work."""
    with ExitStack() as stack:
        yield _hold(store, batch, now, stack)


def _hold(store: Store, batch: str, now: float, stack: ExitStack) -> Callable[[], None] | None:
    try:
        stack.enter_context(store.only_run(batch))
    except BadInput:
        return None
    if not store.is_shared:
        return lambda: None
    path = lease_path(batch)
    version = store.version(path)  # first: who takes it from here on is noticed
    seen = take_census(store, path).batches.get(batch, BatchFiles(batch))
    lease = StoreLease(store, path)
    if at_work(store, seen, now) or not lease.take_over(version):
        return None
    stack.callback(_give_back, lease)
    return lease.check


def _give_back(lease: StoreLease) -> None:
    with contextlib.suppress(StoreFault):  # then it lapses
        lease.give_back()
