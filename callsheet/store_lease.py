"""A lease in the store: one process at a time has it, on whatever machine, with no server between them.

    lease = StoreLease(store, lease_path("demo"))
    lease.try_take()      # False while another has it and renews it
    lease.renew()         # every LEASE_SECONDS / 4
    lease.check()         # raises LeaseLost where it may be another's by now
    lease.give_back()

It is a small file that is only ever written over the very version that was read. Nobody's clock is trusted: a lease is
dead when its file was not changed for LEASE_SECONDS of the clock of the one who waits for it, and its holder takes
it for lost earlier than that, by its own.
"""

from __future__ import annotations

import json
import threading
import uuid

from callsheet.errors import LeaseLost
from callsheet.store import Store
from callsheet.timing import clock, scaled

#: After so long without renewal a lease is another's.
LEASE_SECONDS = 60.0
#: So much of that its holder counts on.
_SURE = 0.75


def lease_path(batch: str) -> str:
    """The lease of the one run that works on a batch."""
    return f"batches/{batch}/lease.json"


def is_held(store: Store, path: str) -> bool:
    """Whether the file says that somebody has the lease; who that was may be dead."""
    return _parsed(store, path)[0]


class StoreLease:
    """One holder's view of a lease; may be used by many threads."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._writing = threading.RLock()
        self._owner = uuid.uuid4().hex
        self._renewals = 0
        self._sure_until: float | None = None
        #: The version that another holds, and since when we know it unchanged.
        self._seen: tuple[str | None, float] = (None, 0.0)

    def try_take(self) -> bool:
        """Takes the lease where nobody has it, or who had it does not renew it any more."""
        with self._writing:
            version, held, owner = self._read()
            if held and owner != self._owner and not self._is_dead(version):
                return False
            return self._write(version, held=True)

    def take_over(self, version: str | None) -> bool:
        """Takes the lease where its file still is the ``version`` of which the caller knows that nobody has it."""
        with self._writing:
            return self._write(version, held=True)

    def renew(self) -> bool:
        """Writes that we are alive; False where another has it. A lease that lapsed and that nobody took is ours again.

        Raises:
            StoreFault: it could not be asked or written.
        """
        with self._writing:
            version, held, owner = self._read()
            if not held or owner != self._owner:
                self._sure_until = None
                return False
            return self._write(version, held=True)

    def give_back(self) -> None:
        """Lets others take it at once."""
        with self._writing:
            self._sure_until = None
            version, held, owner = self._read()
            if held and owner == self._owner:
                self._write(version, held=False)

    @property
    def is_ours(self) -> bool:
        return self._sure_until is not None and clock() < self._sure_until

    def check(self) -> None:
        """Raises LeaseLost where another has it by now; asks where that may be."""
        with self._writing:
            if not self.is_ours and not self.renew():
                raise LeaseLost(
                    f"{self._path}: another run is at work on the batch, for this one was not heard of for a while; nothing "
                    "more is published here. Run it again: what is made is kept"
                )

    def _is_dead(self, version: str | None) -> bool:
        """Whether the file did not change for as long as we look at it, and that is long."""
        now = clock()
        if self._seen[0] != version:
            self._seen = (version, now)
        return now - self._seen[1] >= scaled(LEASE_SECONDS)

    def _read(self) -> tuple[str | None, bool, str]:
        """The file's version, whether it says that somebody has the lease, and who."""
        while True:
            version = self._store.version(self._path)
            held, owner = _parsed(self._store, self._path)
            if self._store.version(self._path) == version:  # what was read is what it is the version of
                return version, held, owner

    def _write(self, version: str | None, *, held: bool) -> bool:
        began = clock()
        self._renewals += 1
        content = json.dumps({"held": held, "owner": self._owner, "renewals": self._renewals}).encode()
        written = self._store.put_if(self._path, content, version)
        # Its answer may have been lost and it was sent again: then it is our own writing that was in the way.
        is_ours = written or self._read()[1:] == (held, self._owner)
        self._sure_until = began + scaled(LEASE_SECONDS) * _SURE if held and is_ours else None
        return is_ours


def _parsed(store: Store, path: str) -> tuple[bool, str]:
    try:
        content = json.loads(store.get(path))
        return bool(content["held"]), str(content["owner"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False, ""
