"""Where takes and batches live: a folder or an R2 bucket behind one interface.

    store = open_store("out")                       # a folder
    store = open_store("r2://media/callsheet")      # a bucket; account and keys from the environment
    store.put("takes/speech/9f.0.wav", Path("a.wav"))
    store.size("takes/speech/9f.0.wav")             # 211244, or None where there is no such file

Whatever stands under a path is whole: files are written under a temporary name and then renamed, so
a full disk or a killed process leaves no half of a file where a take is looked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import quote

from callsheet.errors import BadInput, StoreFault

#: The file that is locked where one process at a time may write; it is no part of the store.
_LOCK = ".lock"


@dataclass(frozen=True)
class StoredFile:
    """A file in the store: its path there, its size in bytes, and when it was written (seconds since 1970)."""

    path: str
    bytes: int
    modified: float = field(default=0.0, compare=False)


class Store(Protocol):
    """What takes and batches need of a store. Paths are relative, with ``/``.

    Every method raises StoreFault where the store cannot do it, and FileNotFoundError where a
    file that is read is not there. All are synchronous and may be called from several threads.

    Attributes:
        is_shared: whether it is reached from several machines, whose runs `only_run` cannot tell of one another.
        signs: whether it gives addresses with which anybody may read a file for a while (`signed`).
        at_once: how many calls are worth being made at once.
        identity: tells this store from every other.
    """

    is_shared: bool
    signs: bool
    at_once: int
    identity: str

    def put(
        self,
        path: str,
        content: Path | bytes,
        sent: Callable[[int], None] | None = None,
        *,
        replace: bool = True,
    ) -> str:
        """Writes a file or bytes, whole or not at all.

        Args:
            sent: is told of bytes as they are there, from any thread.
            replace: whether what stood there is replaced. Where not, and it is the same, nothing happens.

        Returns:
            The sha256 of what was written, in hex.

        Raises:
            FileExistsError: something else stands there, and ``replace`` is False.
        """

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        """Writes ``content`` where the file still is the ``version`` that `version` told, or still is not there (None).

        Returns:
            Whether it was written; where not, somebody else wrote in between.
        """

    def version(self, path: str) -> str | None:
        """A mark of the file's content, for `put_if`; None where there is no such file."""

    def get(self, path: str) -> bytes:
        """The bytes of a file."""

    def fetch(self, path: str, folder: Path) -> Path:
        """A local file with the content of ``path``: the stored one itself, or a copy in ``folder``."""

    def copy(self, source: str, target: str) -> None:
        """Copies a file within the store, whole or not at all."""

    def size(self, path: str) -> int | None:
        """The size in bytes, None where there is no such file."""

    def sizes(self, paths: Iterable[str]) -> dict[str, int]:
        """The sizes of those of many files that are there, in bytes."""

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """The files whose path begins with ``prefix``, in no particular order."""

    def delete(self, path: str) -> None:
        """Removes a file; it is no error when there is none."""

    def url(self, path: str) -> str:
        """An address under which a person can open the file."""

    def link(self, path: str) -> str:
        """The same where it holds no secret; empty where it would: a signed address lets anybody read."""

    def signed(self, path: str, seconds: float) -> str:
        """An address with which anybody may read the file for so many seconds; R2 allows a week. It is a secret.

        Raises:
            BadInput: this store gives none.
        """

    def only_run(self, batch: str) -> AbstractContextManager[None]:
        """Held by the one run that works on ``batch``. Raises BadInput where another one holds it.

        A shared store cannot tell: there the Prefect server does (`tasks.shard_runs.batch_limit`).
        """


class LocalFolder:
    """A folder of this machine as a store."""

    is_shared = False
    signs = False
    at_once = 4

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.identity = str(self.root)
        self._incoming = self.root / ".incoming"

    def put(
        self,
        path: str,
        content: Path | bytes,
        sent: Callable[[int], None] | None = None,
        *,
        replace: bool = True,
    ) -> str:
        digest = hashlib.sha256()

        def write(temporary: Path) -> None:
            with temporary.open("wb") as target:
                for chunk in _chunks(content):
                    digest.update(chunk)
                    target.write(chunk)
                    if sent:
                        sent(len(chunk))

        try:
            self._write(path, write, replace=replace)
        except FileExistsError:
            if _sha256_of(self._local(path)) != digest.hexdigest():
                raise
        return digest.hexdigest()

    def put_if(self, path: str, content: bytes, version: str | None) -> bool:
        with self._faults(path):
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / _LOCK).open("w")
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.version(path) != version:
                return False
            self.put(path, content)
            return True

    def version(self, path: str) -> str | None:
        try:
            return hashlib.sha256(self.get(path)).hexdigest()
        except FileNotFoundError:
            return None

    def get(self, path: str) -> bytes:
        with self._faults(path):
            return self._local(path).read_bytes()

    def fetch(self, path: str, folder: Path) -> Path:
        local = self._local(path)
        if not local.is_file():
            raise FileNotFoundError(path)
        return local

    def copy(self, source: str, target: str) -> None:
        self._write(target, lambda temporary: _copy(self._local(source), temporary))

    def size(self, path: str) -> int | None:
        try:
            return self._local(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, paths: Iterable[str]) -> dict[str, int]:
        return {path: size for path in paths if (size := self.size(path)) is not None}

    def list(self, prefix: str) -> Iterator[StoredFile]:
        folder = self._local(prefix.rpartition("/")[0])
        for path in folder.rglob("*") if folder.is_dir() else ():
            name = path.relative_to(self.root).as_posix()
            if not name.startswith(prefix) or name.startswith(".incoming/") or path.name == _LOCK:
                continue
            with contextlib.suppress(FileNotFoundError):  # it went while we looked
                facts = path.stat()
                if stat.S_ISREG(facts.st_mode):
                    yield StoredFile(name, facts.st_size, facts.st_mtime)

    def delete(self, path: str) -> None:
        with self._faults(path):
            self._local(path).unlink(missing_ok=True)

    def url(self, path: str) -> str:
        local = self._local(path)
        base = served_at(self.root)
        return f"{base}/{quote(path)}" if base else local.as_uri()

    def link(self, path: str) -> str:
        return self.url(path)

    def signed(self, path: str, seconds: float) -> str:
        raise BadInput(f"store {self.root}: a folder gives no signed addresses; expected a bucket")

    @contextmanager
    def only_run(self, batch: str) -> Iterator[None]:
        """Held as a lock on a file, which the system gives back however the process ends."""
        folder = self._local(f"batches/{batch}")
        with self._faults(folder.name):
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / _LOCK).open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(
                    f"batch {batch}: found another run at work on it in {self.root}; wait for it, or name another with --batch"
                ) from None
            yield

    def __str__(self) -> str:
        return str(self.root)

    def _local(self, path: str) -> Path:
        return self.root / check_path(path)

    def _write(self, path: str, write: _Write, *, replace: bool = True) -> None:
        """Writes under a name that nobody looks for, forces it to the disk, then renames."""
        target = self._local(path)
        temporary = self._incoming / uuid.uuid4().hex
        with self._faults(path):
            try:
                self._incoming.mkdir(parents=True, exist_ok=True)
                target.parent.mkdir(parents=True, exist_ok=True)
                write(temporary)
                _to_disk(temporary)
                _place(temporary, target, replace=replace)
            finally:
                temporary.unlink(missing_ok=True)

    @contextmanager
    def _faults(self, path: str) -> Iterator[None]:
        """Turns what the disk says into a StoreFault that names file and remedy."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                reason += "; free some space and run again, what is done is kept"
            raise StoreFault(f"store {self.root}: {path} could not be written or read: {reason}") from error


class _Write(Protocol):
    def __call__(self, temporary: Path, /) -> None: ...


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def _place(temporary: Path, target: Path, *, replace: bool) -> None:
    """Gives a file its name. Raises FileExistsError where it is taken and is not to be replaced."""
    if not replace:
        try:
            target.hardlink_to(temporary)
            return
        except FileExistsError:
            raise
        except OSError:  # a disk without links, such as a memory card or a share: there nobody is kept from the name meanwhile
            if target.exists():
                raise FileExistsError(target) from None
    temporary.replace(target)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def check_path(path: str) -> str:
    """``path`` itself, where it stays inside the store. Raises ValueError where it does not."""
    parts = PurePosixPath(path).parts
    if path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError(f"{path!r} is no path inside a store")
    return path


def served_at(root: Path) -> str | None:
    """The address of a folder store where it is served over HTTP (`callsheet.store_server`): CALLSHEET_STORE_URL.

    Where CALLSHEET_STORE_SERVED says which store is served, that goes for it and for what is below it alone.
    """
    base = os.environ.get("CALLSHEET_STORE_URL", "").rstrip("/")
    folder = os.environ.get("CALLSHEET_STORE_SERVED", "")
    if not base or not folder:
        return base or None
    served = Path(folder).resolve()
    if not root.is_relative_to(served):
        return None
    return "/".join([base, *map(quote, root.relative_to(served).parts)])


def served_bucket(address: str) -> str | None:
    """The same for ``r2://BUCKET/PREFIX``, which must be the one that CALLSHEET_STORE_SERVED says, or below it."""
    base = os.environ.get("CALLSHEET_STORE_URL", "").rstrip("/")
    served = os.environ.get("CALLSHEET_STORE_SERVED", "").rstrip("/")
    if not base or not served.startswith("r2://") or not f"{address}/".startswith(f"{served}/"):
        return None
    return base + quote(address.removeprefix(served))


def open_store(setting: str) -> Store:
    """The store that a setting names: a folder, or ``r2://BUCKET/PREFIX`` with keys from the environment.

    Raises:
        BadInput: the setting, or what the environment lacks.
    """
    if setting.startswith("r2://"):
        from callsheet.r2 import R2Store  # noqa: PLC0415  boto3 takes half a second to import
        from callsheet.r2_client import R2Settings  # noqa: PLC0415

        return R2Store(R2Settings.from_environment(setting))
    if "://" in setting or setting.startswith("block:"):
        raise BadInput(f'store "{setting}": expected a folder or r2://BUCKET/PREFIX')
    return LocalFolder(Path(setting))
