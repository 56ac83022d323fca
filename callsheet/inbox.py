"""An inbox of scripts: CSVs that somebody drops are picked up whole, once each, and laid away with what came of them.

    inbox = FolderInbox(Path("inbox"))
    scripts = inbox.scripts()                     # {"night.csv": "…"}, each with a mark of its version
    with inbox.claim("night.csv", scripts["night.csv"]) as claim:
        if claim is not None:                     # None: another run has it, or it went or changed meanwhile
            ...                                   # produce claim.script
            claim.lay_away("done", "3 shots done", summary)

A script stays where it is while it is produced, because the paths in it, and the voices.csv beside it, are meant from there. It is
claimed by a lock on the file itself rather than by another name: the system gives a lock back however its holder
ends, so a killed run leaves nothing to be found and put right. ``done/`` and ``failed/`` lie in the inbox, so that laying away
is a rename within one file system and needs no folder that nobody named.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from callsheet.errors import BadInput
from callsheet.sources import bring_of_store
from callsheet.store import Store

Outcome = Literal["done", "failed"]
#: Tables that belong to the scripts beside them.
NO_SCRIPTS = ("voices.csv", "lexicon.csv")
#: Where in a bucket's inbox it is kept which run has a script.
_LEASES = ".leases"


def is_script(name: str) -> bool:
    """Whether a file of this name is taken for a script; ``.x.csv`` and ``~$x.csv`` are what programs put down meanwhile."""
    return name.lower().endswith(".csv") and name.lower() not in NO_SCRIPTS and name[0] not in ".~"


@dataclass(frozen=True)
class FolderClaim:
    """A script that is ours until the block ends.

    Attributes:
        script: the file, in its own folder.
        version: what it was when it was claimed.
    """

    script: Path
    version: str

    def lay_away(self, outcome: Outcome, message: str, summary: bytes | None = None) -> str:
        """Moves the script to ``done/`` or ``failed/``, with what came of it as text, and as JSON where there is a summary.

        A name that is taken gets a number. A script that was changed meanwhile stays, to be produced as it is now.

        Returns:
            Where the script, or else its report, is now.
        """
        folder = self.script.parent / outcome
        folder.mkdir(exist_ok=True)
        for number in itertools.count(1):
            stem = _numbered(self.script.stem, number)
            target = folder / f"{stem}{self.script.suffix}"
            report = folder / f"{stem}.txt"
            if target.exists():
                continue
            with contextlib.suppress(FileExistsError), report.open("x", encoding="utf-8") as file:
                file.write(f"{message}\n")
                break
        if summary is not None:
            report.with_suffix(".json").write_bytes(summary)
        if _version(self.script) != self.version:
            return str(report)
        self.script.rename(target)
        return str(target)


class FolderInbox:
    """A folder of this machine, or one that machines share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()

    def scripts(self) -> dict[str, str]:
        """The scripts that lie there, in the order of their names, with a mark of each one's version.

        Raises:
            BadInput: the folder can neither be read nor made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = sorted(path.name for path in self.folder.iterdir() if is_script(path.name))
        except OSError as error:
            raise BadInput(f"inbox {self.folder}: {error.strerror or error}; expected a folder") from None
        found = {name: _version(self.folder / name) for name in names}
        return {name: version for name, version in found.items() if version is not None}

    @contextmanager
    def claim(self, name: str, version: str) -> Iterator[FolderClaim | None]:
        """Held by the one run that produces the script; None where that is another, or it is not this version any more."""
        path = self.folder / name
        try:
            # A lock on a share needs a file that is open for writing.
            file = path.open("r+b" if os.access(path, os.W_OK) else "rb")
        except OSError:
            yield None
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            # Another run may have had it before us, and laid away what we opened.
            yield FolderClaim(path, version) if _version(path) == version else None

    def __str__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class StoreClaim:
    """A script of a bucket, with a copy of what it needs on this machine."""

    script: Path
    version: str
    store: Store
    prefix: str

    def lay_away(self, outcome: Outcome, message: str, summary: bytes | None = None) -> str:
        """As `FolderClaim.lay_away`; may raise StoreFault."""
        path = f"{self.prefix}{self.script.name}"
        for number in itertools.count(1):
            stem = f"{self.prefix}{outcome}/{_numbered(self.script.stem, number)}"
            target, report = f"{stem}{self.script.suffix}", f"{stem}.txt"
            if self.store.size(target) is None and self.store.put_if(report, f"{message}\n".encode(), None):
                break
        if summary is not None:
            self.store.put(f"{stem}.json", summary)
        # What was produced, and not what lies there by now.
        self.store.put(target, self.script.read_bytes())
        if self.store.version(path) != self.version:
            return report
        self.store.delete(path)
        return target


class StoreInbox:
    """A prefix of a bucket. Who has a script is told by a lease in the store (`lease_path`), which the flow keeps."""

    def __init__(self, store: Store, prefix: str = "inbox/") -> None:
        self.store, self.prefix = store, prefix

    def scripts(self) -> dict[str, str]:
        """As `FolderInbox.scripts`; may raise StoreFault."""
        listed = {file.path.removeprefix(self.prefix): file for file in self.store.list(self.prefix)}
        names = sorted(name for name in listed if "/" not in name and name and is_script(name))
        return {name: f"{listed[name].bytes} {listed[name].modified}" for name in names}

    def lease_path(self, name: str) -> str:
        return f"{self.prefix}{_LEASES}/{name}.json"

    def bring(self, name: str, folder: Path) -> StoreClaim | None:
        """The script, and what lies beside it and is needed, in ``folder``; None where it is not there any more."""
        version = self.store.version(f"{self.prefix}{name}")
        if version is None:
            return None
        script = bring_of_store(self.store, self.prefix, name, folder)
        return StoreClaim(script, version, self.store, self.prefix) if script is not None else None

    def __str__(self) -> str:
        return f"{self.store}/{self.prefix}".rstrip("/")


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}-{number}"


def _version(path: Path) -> str | None:
    """What changes when the file is written or replaced; None where it is no file."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns}" if path.is_file() else None
