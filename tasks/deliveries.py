"""Deliveries: what was made on its way into the store, beside lanes and checks.

    await deliveries.room()                          # a lane, before it hands on what it made
    kept = await deliveries.put(target, path)        # the file may go now
    await deliveries.call(lambda: store.put_if(…))

So many go at once as are worth it to the store; the others wait on this machine's disk and hold nothing but their
names. While the store is away or busy they wait too. Lanes go on meanwhile, until more bytes lie here than may.
"""

from __future__ import annotations

import asyncio
import contextvars
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from callsheet.patience import Patience
from callsheet.store import Store
from callsheet.undelivered import beside
from tasks.watching import tell

_Result = TypeVar("_Result")
#: So many files may wait at most: each is a task of this process.
MOST_FILES = 2_000


class Deliveries:
    """The way into the store of one run."""

    def __init__(self, store: Store, most_bytes: float) -> None:
        """``most_bytes`` may lie here undelivered before lanes wait."""
        self._store, self._most = store, most_bytes
        self._uploads = ThreadPoolExecutor(store.at_once, "uploads")
        #: What is short or waited for does not queue behind uploads.
        self._others = ThreadPoolExecutor(store.at_once, "store")
        self._bytes = self._files = 0
        self._less = asyncio.Event()
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()

        def tell_from_thread(text: str) -> None:
            loop.call_soon_threadsafe(tell, text, context=context)

        self.patience = Patience(tell_from_thread)

    async def room(self) -> None:
        """Waits until what lies here is less than may."""
        while self._bytes >= self._most or self._files >= MOST_FILES:
            self._less.clear()
            await self._less.wait()

    async def put(self, target: str, path: Path) -> dict[str, Any]:
        """Brings a file into the store. Returns where it lies there, its sha256 and its bytes, as an attempt tells them.

        Raises:
            StoreFault: the store does not take it, or was away for too long.
        """
        size = _bytes_of(path)
        self._bytes, self._files = self._bytes + size, self._files + 1
        try:
            target, sha256 = await self._run(self._uploads, lambda: self._put(target, path))
        finally:
            self._bytes, self._files = self._bytes - size, self._files - 1
            self._less.set()
        return {"file": target, "sha256": sha256, "bytes": size}

    async def call(self, do: Callable[[], _Result]) -> _Result:
        """Does something with the store that is no upload, again where it is away for a while."""
        return await self._run(self._others, do)

    def close(self) -> None:
        """Begins nothing more; what is under way ends by itself."""
        self.patience.end()
        for pool in (self._uploads, self._others):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, pool: ThreadPoolExecutor, do: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(pool, self.patience, do)

    def _put(self, target: str, path: Path) -> tuple[str, str]:
        """Never over what another run put there, which may be committed."""
        try:
            return target, self._store.put(target, path, replace=False)
        except FileExistsError:
            target = beside(target, uuid.uuid4().hex[:8])
            return target, self._store.put(target, path)


def _bytes_of(path: Path) -> int:
    return path.stat().st_size


class LocalCopies:
    """Media that this run made or read, kept on this machine for as long as something is to be built from it.

    A folder's files are here anyway. Of what a run made for a bucket so many bytes are kept; the rest is read when it is wanted.
    """

    def __init__(self, store: Store, scratch: Path, most_bytes: float) -> None:
        self._store, self._scratch, self._most = store, scratch, most_bytes
        self._kept: dict[str, int] = {}
        self._counting = threading.Lock()

    def keep(self, target: str, path: Path, *, wanted: bool) -> None:
        """The file at ``path`` is in the store as ``target``: it is kept where it is wanted and there is room, or removed.

        From any thread: it may lie on another disk.
        """
        size = path.stat().st_size
        if not (wanted and self._store.is_shared) or not self._count(target, size):
            path.unlink()
            return
        kept = self._scratch / target  # where `Store.fetch` looks first
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{kept.name}.part")
        shutil.move(path, part)
        part.replace(kept)

    def _count(self, target: str, size: int) -> bool:
        with self._counting:
            if sum(self._kept.values()) + size > self._most:
                return False
            self._kept[target] = size
            return True

    def kept(self, path: str) -> Path | None:
        """Where the file lies on this machine; None where it does not."""
        local = self._scratch / path
        return local if self._store.is_shared and local.is_file() else None

    def read(self, path: str) -> Path:
        """A file of the store on this machine."""
        return self._store.fetch(path, self._scratch)

    def drop(self, path: str) -> None:
        """Nothing more is built from the file; who wants it after all reads it again."""
        self._kept.pop(path, None)
        if self._store.is_shared:
            (self._scratch / path).unlink(missing_ok=True)
