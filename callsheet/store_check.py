"""Looks a whole store over: takes whose media is gone, media that nobody committed, what a cut publishing left behind.

    check = check_store(store, now=time.time())
    [finding.path for finding in check.faults]

Nothing is changed here: each finding says what a repair deletes and writes (`callsheet.store_repair`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import ValidationError

from callsheet.errors import StoreFault
from callsheet.journal import read_journals
from callsheet.needed import Needs, read_all_needs
from callsheet.store import Store
from callsheet.store_census import (
    BatchFiles,
    Census,
    TakeFiles,
    batches_at_work,
    is_path,
    take_census,
)
from callsheet.takes import Attempt, Sidecar

Kind = Literal[
    "missing", "truncated", "damaged", "foreign content", "unreadable", "uncommitted",
    "leftover", "published but missing", "unreferenced", "foreign",
]  # fmt: skip
State = Literal["found", "young", "left", "repaired"]
#: What each kind is, and what is done about it.
MEANINGS: dict[Kind, str] = {
    "missing": "a take whose media is not there; forgotten, to be made again",
    "truncated": "a take whose media has another length; forgotten, to be made again",
    "damaged": "a sidecar that does not parse; forgotten, or written again from a journal",
    "foreign content": "a take whose media is not what was made; forgotten, to be made again",
    "unreadable": "cannot be read; only reported",
    "uncommitted": "media without a sidecar; committed again from a journal, or deleted",
    "leftover": "files of a batch that its manifest does not name; deleted",
    "published but missing": "the manifest names them; run the batch again",
    "unreferenced": "takes that no batch needs; `callsheet store prune` deletes them",
    "foreign": "no path of Callsheet's; only reported",
}
#: What may lie in a store that is well.
NOTES: tuple[Kind, ...] = ("unreferenced", "foreign")
GRACE_HOURS = 24.0


@dataclass(frozen=True)
class Finding:
    """Something that was found.

    Attributes:
        bytes: of the files that it is about.
        what: for a person.
        batch: of whose files it is one; empty for takes.
        key: of the take.
        deletes: paths that a repair deletes, in this order.
        writes: the sidecar that a repair writes afterwards.
        still: whether it is still so; asked just before it is repaired.
        why: why a repair leaves it, where it is left.
    """

    kind: Kind
    path: str
    bytes: int
    what: str
    batch: str = ""
    key: str = ""
    deletes: tuple[str, ...] = ()
    writes: Sidecar | None = None
    still: Callable[[], bool] = field(default=lambda: True, repr=False, compare=False)
    state: State = "found"
    why: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether somebody must do something: not about what may be on its way, or is a run's at work."""
        return self.kind not in NOTES and self.state == "found"

    @property
    def is_repairable(self) -> bool:
        return bool(self.deletes or self.writes)

    def row(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "kind": self.kind,
            "path": self.path,
            "bytes": self.bytes,
            "what": self.what,
            "batch": self.batch,
            "deletes": list(self.deletes),
            "restores": self.writes is not None,
            "state": self.state,
            "why": self.why,
        }


@dataclass(frozen=True)
class BatchBytes:
    """What a batch takes up, in bytes; a take that several batches need counts for each.

    Attributes:
        takes: how many committed takes it needs.
        deliverables: how many files it delivers.
    """

    batch: str
    takes: int
    take_bytes: int
    deliverables: int
    deliverable_bytes: int
    at_work: bool

    @property
    def bytes(self) -> int:
        return self.take_bytes + self.deliverable_bytes


@dataclass(frozen=True)
class StoreCheck:
    """What was found in a store.

    Attributes:
        totals: bytes by what they are; unreferenced takes count under ``takes``, too.
    """

    findings: tuple[Finding, ...]
    batches: tuple[BatchBytes, ...]
    totals: dict[str, int]

    @property
    def faults(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_fault]

    def of(self, kind: Kind) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind == kind]


def check_store(
    store: Store, *, now: float, grace_hours: float = GRACE_HOURS, deep: bool = False
) -> StoreCheck:
    """Looks the store over and changes nothing.

    Args:
        now: seconds since 1970.
        grace_hours: what is younger may be on its way, of a run at work.
        deep: reads all media of committed takes and compares it with what was made.

    Raises:
        StoreFault: the store cannot be read.
    """
    return _Check(store, take_census(store), now, grace_hours, deep).result()


@dataclass(frozen=True)
class _Committed:
    """A take and the file that counts of it: what its sidecar says."""

    take: TakeFiles
    file: str
    bytes: int
    sha256: str


class _Check:
    """One look over a store."""

    def __init__(self, store: Store, census: Census, now: float, grace_hours: float, deep: bool) -> None:
        self.store, self.census, self.deep = store, census, deep
        self._oldest_young = now - grace_hours * 3600
        self.at_work = batches_at_work(store, census.batches.values(), now)
        self.needs = read_all_needs(store, census.batches)
        self.committed: list[_Committed] = []
        #: Keys that runs at work count on, and by which of them.
        self.guarded = guarded({name: self.needs[name] for name in self.at_work})

    def result(self) -> StoreCheck:
        findings = sorted(
            [*self._takes(), *self._batches(), *self._unreferenced(), *self._foreign()],
            key=lambda finding: (list(MEANINGS).index(finding.kind), finding.path),
        )
        return StoreCheck(
            findings=tuple(findings), batches=tuple(self._batch_bytes()), totals=self._totals(findings)
        )

    def _takes(self) -> list[Finding]:
        """Takes that are not whole, and media that is of none."""
        findings: list[Finding] = []
        with ThreadPoolExecutor(self.store.at_once) as pool:
            takes = [take for take in self.census.takes.values() if take.sidecar]
            for found in pool.map(self._committed_take, takes):
                if isinstance(found, _Committed):
                    self.committed.append(found)
                elif found is not None:
                    findings.append(found)
            if self.deep:
                findings += [found for found in pool.map(self._foreign_content, self.committed) if found]
        broken = {finding.key for finding in findings}
        self.committed = [one for one in self.committed if one.take.key not in broken]
        findings += self._uncommitted()
        told = self._journalled({finding.key for finding in findings})
        return [self._guard(self._restored(finding, told.get(finding.key, ()))) for finding in findings]

    def _committed_take(self, take: TakeFiles) -> _Committed | Finding | None:
        """The take, or what is wrong with it; None where it went while we looked."""
        try:
            content = self.store.get(take.sidecar_path)
        except FileNotFoundError:
            return None
        attempt = _chosen(content, take.key)
        if attempt is None:
            what = "is no sidecar of this take"
            return self._broken("damaged", take, what, lambda: self._stands(take.sidecar_path, content))
        listed = take.media.get(attempt.file)
        # As it was listed; where that is not right, as it is now: a take may be made while we list.
        is_whole = listed is not None and listed.bytes == attempt.bytes
        size = attempt.bytes if is_whole else self.store.size(attempt.file)
        if size == attempt.bytes:
            return _Committed(take, attempt.file, attempt.bytes, attempt.sha256)

        def still() -> bool:
            changed = self.store.size(attempt.file) == attempt.bytes
            return not changed and self._stands(take.sidecar_path, content)

        if size is None:
            return self._broken("missing", take, f"found no {attempt.file}", still)
        what = f"found {size:,} bytes at {attempt.file}, expected {attempt.bytes:,}"
        return self._broken("truncated", take, what, still, attempt.file)

    def _broken(
        self, kind: Kind, take: TakeFiles, what: str, still: Callable[[], bool], medium: str = ""
    ) -> Finding:
        """A take that is to be forgotten: its sidecar first, then ``medium`` and what is not on its way."""
        media = [p for p, file in take.media.items() if p == medium or file.modified <= self._oldest_young]
        return Finding(
            kind, take.sidecar_path, take.bytes, what, key=take.key, deletes=(take.sidecar_path, *sorted(media)), still=still
        )  # fmt: skip

    def _foreign_content(self, one: _Committed) -> Finding | None:
        """What is wrong with the content of a take's media."""
        try:
            found = _sha256(self.store, one.file)
        except FileNotFoundError:
            return None  # it went while we looked
        except StoreFault as fault:
            return Finding("unreadable", one.file, one.bytes, str(fault), key=one.take.key)
        if found == one.sha256:
            return None
        what = f"found the sha256 {found[:16]}…, expected {one.sha256[:16]}…"

        def still() -> bool:
            try:
                attempt = _chosen(self.store.get(one.take.sidecar_path), one.take.key)
                return attempt is not None and _sha256(self.store, one.file) != attempt.sha256
            except FileNotFoundError:
                return False

        return self._broken("foreign content", one.take, what, still, one.file)

    def _uncommitted(self) -> Iterator[Finding]:
        takes = [take for take in self.census.takes.values() if take.sidecar is None]
        there = self.store.sizes(take.sidecar_path for take in takes)  # it may have come while we listed
        for take in takes:
            if take.sidecar_path not in there:
                yield self._aged(self._media(take), take.modified)

    def _media(self, take: TakeFiles) -> Finding:
        media = tuple(sorted(take.media))
        what = "has no sidecar" if len(media) == 1 else f"and {len(media) - 1} more have no sidecar"

        def still() -> bool:
            return self.store.size(take.sidecar_path) is None

        return Finding("uncommitted", media[0], take.bytes, what, key=take.key, deletes=media, still=still)

    def _journalled(self, keys: set[str]) -> dict[str, list[Sidecar]]:
        """What the journals of all batches say of these takes."""
        told: dict[str, list[Sidecar]] = {}
        for batch in self.census.batches if keys else ():
            for sidecar in read_journals(self.store, batch):
                known = told.setdefault(sidecar.key, []) if sidecar.key in keys else []
                if sidecar.key in keys and sidecar not in known:
                    known.append(sidecar)
        return told

    def _restored(self, finding: Finding, told: Sequence[Sidecar]) -> Finding:
        """The same finding, repaired from a journal where one tells of media that is whole."""
        if not finding.is_repairable:
            return finding
        whole = [sidecar for sidecar in told if self._is_whole(sidecar, sure=len(told) == 1)]
        if not whole:
            return finding
        latest = max(
            whole, key=lambda sidecar: (len(sidecar.attempts), sidecar.chosen)
        )  # it was made again since
        deletes = () if finding.kind == "uncommitted" else finding.deletes[:1]  # the sidecar, never media
        what = f"{finding.what}; a journal tells how it was made"
        return replace(finding, what=what, deletes=deletes, writes=latest, state="found", why="")

    def _is_whole(self, sidecar: Sidecar, *, sure: bool) -> bool:
        """Whether the media that a journal tells of is there; what is in it is asked where journals disagree."""
        take = self.census.take(sidecar.kind, sidecar.key)
        file = take.media.get(sidecar.take.file) if take else None
        if file is None or file.bytes != sidecar.take.bytes:
            return False
        if sure and not self.deep:
            return True
        try:
            return _sha256(self.store, file.path) == sidecar.take.sha256
        except (FileNotFoundError, StoreFault):
            return False

    def _guard(self, finding: Finding) -> Finding:
        """Left alone where a run at work counts on the take: it makes it whole itself."""
        batch = self.guarded.get(finding.key)
        if batch is None or not finding.is_repairable or finding.state == "young":
            return finding
        return replace(finding, state="left", why=f"a run is at work on batch {batch}, which needs it")

    def _batches(self) -> Iterator[Finding]:
        for name, batch in self.census.batches.items():
            if name not in self.at_work:
                yield from self._batch(batch, self.needs[name])

    def _batch(self, batch: BatchFiles, needs: Needs) -> Iterator[Finding]:
        for path in needs.unreadable:
            what = "does not parse, so it is not known what the batch needs; run the batch again"
            yield Finding("unreadable", path, _bytes_of(batch, path), what, batch=batch.name)
        named = needs.manifest.files if needs.manifest else {}
        absent = [path for path in named if path not in batch.files]
        there = self.store.sizes(absent) if absent else {}  # they may have come while we listed
        for path in absent:
            if path not in there:
                what = f"batch {batch.name} delivers it; run the batch again"
                yield Finding("published but missing", path, 0, what, batch=batch.name)
        for file in () if needs.unreadable else batch.delivered:
            if file.path not in named:
                what = f"batch {batch.name} does not name it" if needs.manifest else "was never published"
                finding = Finding(
                    "leftover", file.path, file.bytes, what, batch=batch.name, deletes=(file.path,)
                )
                yield self._aged(finding, file.modified)

    def _aged(self, finding: Finding, modified: float) -> Finding:
        if modified <= self._oldest_young:
            return finding
        return replace(finding, state="young", why="it may be on its way; looked at when it is older")

    def _unreferenced(self) -> Iterator[Finding]:
        """Takes that no batch needs; nothing is said where it is not known what a batch needs."""
        if any(needs.unreadable for needs in self.needs.values()):
            return
        needed = frozenset[str]().union(*(needs.keys for needs in self.needs.values()))
        for one in self.committed:
            if one.take.key not in needed:
                yield Finding(
                    "unreferenced", one.take.sidecar_path, one.take.bytes, "no batch needs it", key=one.take.key
                )  # fmt: skip

    def _foreign(self) -> Iterator[Finding]:
        for file in self.census.foreign:
            yield Finding("foreign", file.path, file.bytes, "is no path of Callsheet's")

    def _batch_bytes(self) -> Iterator[BatchBytes]:
        sizes = {one.take.key: one.take.bytes for one in self.committed}
        for name, batch in sorted(self.census.batches.items()):
            needs = self.needs[name]
            takes = [sizes[key] for key in needs.keys if key in sizes]
            named = needs.manifest.files if needs.manifest else {}
            files = [batch.files[path].bytes for path in named if path in batch.files]
            yield BatchBytes(name, len(takes), sum(takes), len(files), sum(files), name in self.at_work)

    def _totals(self, findings: Iterable[Finding]) -> dict[str, int]:
        census = self.census
        totals = {
            "takes": sum(take.bytes for take in census.takes.values()),
            "deliverables": sum(file.bytes for batch in census.batches.values() for file in batch.delivered),
            "models": sum(file.bytes for file in census.others.get("models", ())),
            "foreign": sum(file.bytes for file in census.foreign),
        }
        batches = sum(file.bytes for batch in census.batches.values() for file in batch.files.values())
        others = sum(file.bytes for files in census.others.values() for file in files)
        books = batches - totals["deliverables"] + others - totals["models"]
        unreferenced = sum(finding.bytes for finding in findings if finding.kind == "unreferenced")
        return totals | {"books": books, "all": sum(totals.values()) + books, "unreferenced": unreferenced}

    def _stands(self, path: str, content: bytes) -> bool:
        try:
            return self.store.get(path) == content
        except FileNotFoundError:
            return False


def guarded(needs: Mapping[str, Needs]) -> dict[str, str]:
    """Keys that batches need, and one of those batches."""
    return {key: name for name, one in needs.items() for key in one.keys}


def _chosen(content: bytes, key: str) -> Attempt | None:
    """The chosen attempt of a sidecar; None where it is none of this take."""
    try:
        sidecar = Sidecar.model_validate_json(content)
    except ValidationError:
        return None
    chosen = [
        attempt for attempt in sidecar.attempts if attempt.n == sidecar.chosen and is_path(attempt.file)
    ]
    return chosen[0] if chosen and sidecar.key == key else None


def _sha256(store: Store, path: str) -> str:
    """Of a file's content. A folder gives the stored file itself: only what was copied is deleted afterwards."""
    with TemporaryDirectory() as folder, store.fetch(path, Path(folder)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes_of(batch: BatchFiles, path: str) -> int:
    return batch.files[path].bytes if path in batch.files else 0
