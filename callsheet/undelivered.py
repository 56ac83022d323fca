"""What was made and checked and is not in the store yet, kept on this machine's disk where the next run finds it.

    undelivered = Undelivered(store)
    path = undelivered.add(sidecar, path)       # before it goes to the store
    undelivered.remove(key)                     # when it is committed there
    undelivered.close()

    bring(store)                                # what runs left that were killed, or that the store refused

A store may be away for longer than a run waits, or take our keys no more; a run may be killed. What engines made until
then is paid for. Each run has a folder of its own, which it holds as a lock, so that nobody brings what it is bringing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from callsheet.home import callsheet_home
from callsheet.store import Store
from callsheet.takes import Attempt, Sidecar, sidecar_path

_LOCK = ".lock"


class Undelivered:
    """The folder of one run. Nothing is made before there is something to keep; may be used by many threads.

    Attributes:
        is_broken: whether something could not be kept here; it is no use to go on trying.
    """

    def __init__(self, store: Store) -> None:
        self._folder = _folder_of(store) / uuid.uuid4().hex
        self._opening = threading.Lock()
        self.is_broken = False
        self._lock: IO[str] | None = None

    def add(self, sidecar: Sidecar, path: Path) -> Path:
        """Keeps the media at ``path`` with what is to be written when it is in the store. Returns where it lies now.

        Args:
            sidecar: its chosen attempt tells where the media goes and how long it is; its sha256 may be missing.

        Raises:
            OSError: it cannot be kept; the media lies where it lay.
        """
        self._open()
        media = self._folder / f"{sidecar.key}{path.suffix}"
        _write(self._folder, sidecar)  # without media it says nothing
        try:
            shutil.move(path, media)
        except OSError:
            media.unlink(missing_ok=True)
            raise
        return media

    def delivered(self, sidecar: Sidecar) -> None:
        """The media is in the store, as the sidecar says; it may be moved now. Raises OSError."""
        _write(self._folder, sidecar)

    def remove(self, key: str) -> None:
        """The take is committed."""
        with contextlib.suppress(OSError):  # the next run finds it in the store
            (self._folder / f"{key}.json").unlink(missing_ok=True)

    def close(self) -> None:
        """What is left is the next run's."""
        with self._opening:
            if self._lock is not None:
                if not any(self._folder.glob("*.json")):
                    shutil.rmtree(self._folder, ignore_errors=True)
                self._lock.close()
                self._lock = None

    def _open(self) -> None:
        """The folder gets its name when it is locked, so that nobody else brings what is in it."""
        with self._opening:
            if self._lock is None:
                hidden = self._folder.with_name(f".{self._folder.name}")
                hidden.mkdir(parents=True, mode=0o700)
                self._lock = _locked(hidden)
                hidden.rename(self._folder)


def bring(store: Store) -> list[Sidecar]:
    """Brings into the store what runs on this machine made for it and could not. Returns the takes.

    Raises:
        StoreFault: the store does not take it; it is kept.
    """
    brought: list[Sidecar] = []
    for folder in _folder_of(store).glob("[!.]*"):
        with _held(folder) as is_ours:
            if not is_ours:
                continue
            with ThreadPoolExecutor(store.at_once) as pool:
                entries = sorted(folder.glob("*.json"))
                brought += [take for take in pool.map(lambda entry: _bring(store, entry), entries) if take]
            shutil.rmtree(folder, ignore_errors=True)
    return brought


def _bring(store: Store, entry: Path) -> Sidecar | None:
    """One take; None where it is there already, or is not whole here."""
    try:
        sidecar = Sidecar.model_validate_json(entry.read_bytes())
    except ValidationError:
        return None  # the machine went down while it was written
    path = sidecar_path(sidecar.kind, sidecar.key)
    version = store.version(path)
    if version is not None and _is_as_good(store, path, sidecar):
        return None
    media = entry.with_suffix(Path(sidecar.take.file).suffix)
    if media.is_file() and media.stat().st_size == sidecar.take.bytes:
        sidecar = _put(store, sidecar, media)
    elif not sidecar.take.sha256 or store.size(sidecar.take.file) != sidecar.take.bytes:
        return None
    is_ours = store.put_if(path, sidecar.model_dump_json(indent=1).encode(), version)
    entry.unlink()
    return sidecar if is_ours else None


def _is_as_good(store: Store, path: str, sidecar: Sidecar) -> bool:
    """Whether the take that is committed is whole, and was made from the same takes."""
    try:
        there = Sidecar.model_validate_json(store.get(path))
    except (FileNotFoundError, ValidationError):
        return False
    return there.sources == sidecar.sources and store.size(there.take.file) == there.take.bytes


def _put(store: Store, sidecar: Sidecar, media: Path) -> Sidecar:
    """Puts the media where the sidecar says, or beside what another run put there. Returns the sidecar with where it lies."""
    file = sidecar.take.file
    try:
        sha256 = store.put(file, media, replace=False)
    except FileExistsError:
        file = beside(file, uuid.uuid4().hex[:8])
        sha256 = store.put(file, media)
    return _with(sidecar, file=file, sha256=sha256)


def beside(path: str, run: str) -> str:
    """The path of an attempt whose own is taken by another run's."""
    stem, _, suffix = path.rpartition(".")
    return f"{stem}-{run}.{suffix}"


def _with(sidecar: Sidecar, **chosen: str) -> Sidecar:
    def filled(attempt: Attempt) -> Attempt:
        return attempt.model_copy(update=chosen) if attempt.n == sidecar.chosen else attempt

    return sidecar.model_copy(update={"attempts": [filled(attempt) for attempt in sidecar.attempts]})


def _folder_of(store: Store) -> Path:
    return callsheet_home() / "undelivered" / hashlib.sha256(store.identity.encode()).hexdigest()[:16]


def _write(folder: Path, sidecar: Sidecar) -> None:
    """Whole or not at all."""
    part = folder / f"{sidecar.key}.part"
    part.write_text(sidecar.model_dump_json(), "utf-8")
    part.replace(folder / f"{sidecar.key}.json")


def _locked(folder: Path) -> IO[str]:
    """The folder's lock, which the system gives back however the process ends. Raises BlockingIOError."""
    lock = (folder / _LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise
    return lock


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether the folder is nobody's, and so ours for the moment."""
    try:
        lock = _locked(folder)
    except (BlockingIOError, FileNotFoundError, NotADirectoryError):
        yield False
        return
    with lock:
        yield folder.is_dir()
