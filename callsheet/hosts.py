"""Rented hosts as they are written down: a label on the box, and a record in the store.

    book = HostBook(store)
    label = HostLabel.new("studio", book.id(), now=time.time(), seconds=6 * 3600)
    str(label)                                     # callsheet:studio:5e77ab01:1f0c…:1800000000:1800021600
    book.write(HostRecord.of(label, offer, …))     # before anything is rented
    book.change(label.lease, ("ready",), state="draining")      # None where another was quicker

The label alone is enough to reap a box by: it says whose it is, where it is written down, since when and until when. The record,
``hosts/<lease>.json``, is written before the box is rented and changed by conditional writes only.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from callsheet.errors import BadInput, StoreFault
from callsheet.fleet import Host
from callsheet.store import Store
from callsheet.vastai_answers import Instance, Price

PREFIX = "callsheet"
_LABEL = re.compile(
    rf"{PREFIX}:(?P<fleet>[A-Za-z0-9._-]{{1,40}}):(?P<book>[0-9a-f]{{8}}):(?P<lease>[0-9a-f]{{12}}):(?P<made>\d{{1,12}}):(?P<ends>\d{{1,12}})"
)
#: What becomes of a host: written down, rented, answering, being given back, gone.
HostState = Literal["creating", "booting", "ready", "draining", "ended"]
#: How often a record is tried to be changed that others change, too.
_ATTEMPTS = 20
#: A box that no whole list has had for so long hardly comes back: it is not counted and not used any more.
MISSING_SECONDS = 600.0
NO_PRICE = Price(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class HostLabel:
    """What a box of ours is called.

    Attributes:
        fleet: whose it is.
        book: where it is written down.
        made, ends: when it was ordered and when it must be gone, in whole seconds of the epoch.
    """

    fleet: str
    book: str
    lease: str
    made: int
    ends: int

    @classmethod
    def new(cls, fleet: str, book: str, now: float, seconds: float) -> Self:
        """A new lease of this length.

        Raises:
            BadInput: the fleet's name cannot stand in a label.
        """
        label = cls(fleet, book, uuid.uuid4().hex[:12], int(now), int(now + seconds))
        if cls.read(str(label)) != label:
            raise BadInput(
                f'fleet "{fleet}": found a name that cannot stand in a label; expected 1 to 40 letters, digits, dots, '
                "dashes and underscores"
            )
        return label

    @classmethod
    def read(cls, text: str) -> Self | None:
        """The label, or None where it is not one of ours: then the box is somebody else's."""
        found = _LABEL.fullmatch(text)
        if found is None:
            return None
        return cls(found["fleet"], found["book"], found["lease"], int(found["made"]), int(found["ends"]))

    def __str__(self) -> str:
        return f"{PREFIX}:{self.fleet}:{self.book}:{self.lease}:{self.made}:{self.ends}"


class RecordedEngine(BaseModel):
    """An engine of a rented host, as far as others must know it: its lanes' limit, and where its queue is."""

    name: str
    kind: str
    port: int
    slots: int


class HostRecord(BaseModel):
    """What is known of a rented host. It holds no secret.

    Fields that a later version wrote are kept as they are.

    Attributes:
        label: as on the box.
        account: the account that it is rented with, by vast.ai's number: no other can tell whether it is there.
        deadline: until when it must answer, in seconds of the epoch.
        max_per_hour: the most that it may cost, in $ per hour with its disk.
        price: what it costs, as its offer said.
        owner: the flow run that ordered it.
        server: the Prefect server that knows who uses it: runs of another one cannot tell.
        engines: what it serves.
        serves: hash of what it was made with: image, engines and their revisions, models. Another batch may want others.
        booting_until: until when somebody waits for it to answer; renewed while it boots.
        idle_since: since when no run has used it.
        keep_seconds: how long it is kept then.
        instance: the box's id; None until it is known, as after a create without an answer.
        ready_at: since when it answers.
        ill_since: since when the provider says that it does not run.
        missing_since: since when whole lists have not got it.
        failed_boot: whether it did not come up, or went wrong later: its machine is left alone for a while.
        reason: why it ended.
        nonce: of the last change: by it who wrote knows its own work again.
    """

    model_config = ConfigDict(extra="allow")

    lease: str
    label: str
    fleet: str
    account: int
    state: HostState = "creating"
    made: float
    ends: float
    deadline: float
    max_per_hour: float = Field(ge=0)
    price: Price = NO_PRICE
    disk_gb: float = 0.0
    offer: int
    machine: int
    owner: str = ""
    server: str = ""
    engines: tuple[RecordedEngine, ...] = ()
    serves: str = ""
    instance: int | None = None
    booting_until: float = 0.0
    idle_since: float | None = None
    keep_seconds: float = 0.0
    ready_at: float | None = None
    ill_since: float | None = None
    missing_since: float | None = None
    failed_boot: bool = False
    reason: str = ""
    nonce: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it is given back: whatever box is there under its label is to go."""
        return self.state in ("draining", "ended")

    @property
    def host_name(self) -> str:
        """What its lanes call it."""
        return f"{self.fleet}-{self.lease}"

    def cost(self, until: float, download_gb: float = 0.0) -> float:
        """$ from its order until then: its disk all the time, its GPU since it answered, and what it loaded.

        The time that it runs before it answers costs GPU too; it is taken for half of the boot.
        """
        exists = max(0.0, until - self.made)
        boots = max(0.0, (self.ready_at or until) - self.made)
        disk = self.price.disk_per_hour(self.disk_gb) * exists / 3600
        gpu = self.price.gpu_per_hour * (exists - boots / 2) / 3600
        return disk + gpu + download_gb * self.price.down_per_gb

    def is_missing(self, now: float) -> bool:
        """Whether no list has had it for so long that it hardly comes back."""
        return self.missing_since is not None and now - self.missing_since > MISSING_SECONDS


@dataclass(frozen=True)
class Hosts:
    """All records of a store, as far as they could be read.

    Attributes:
        records: by lease.
        unreadable: lease to what is wrong.
    """

    records: Mapping[str, HostRecord]
    unreadable: Mapping[str, str]


def record_path(lease: str) -> str:
    return f"hosts/{lease}.json"


def _log_path(lease: str) -> str:
    return f"hosts/{lease}.log"


#: Names the book: a label says in which its host is written down.
_BOOK_PATH = "hosts/book"


def rented_host(pattern: Host, record: HostRecord, box: Instance, proxy: str = "") -> Host | None:
    """A box as a host of the fleet; None while a port of it cannot be reached yet.

    Args:
        proxy: the form of its addresses (`RentRules.proxy`); empty: the box's own, by its map of ports.
    """
    engines = []
    for engine in pattern.engines:
        outside = box.ports.get(engine.port)
        if proxy:
            url = proxy.replace("{instance}", str(box.id)).replace("{port}", str(engine.port))
        elif box.address and outside is not None:
            url = f"http://{box.address}:{outside}"
        else:
            return None
        engines.append(engine.model_copy(update={"url": url}))
    return pattern.model_copy(
        update={
            "name": record.host_name,
            "price_per_hour": record.price.per_hour(record.disk_gb),
            "engines": tuple(engines),
        }
    )


class HostBook:
    """The records of a store."""

    def __init__(self, store: Store, at_once: int = 8) -> None:
        """``at_once``: so many records are read at the same time; each is a request where the store is a bucket."""
        self._store, self._at_once = store, at_once

    def id(self) -> str:
        """Eight characters that no other book has; given to a new one.

        Raises:
            StoreFault: it can be neither read nor written.
        """
        known = self.known_id()
        if known is None:
            self._store.put_if(_BOOK_PATH, uuid.uuid4().hex[:8].encode(), None)
            known = self.known_id()
        if known is None:
            raise StoreFault(f"store {self._store}: {_BOOK_PATH} was written and is not there")
        return known

    def known_id(self) -> str | None:
        """The same; None where nothing was ever written down here."""
        try:
            found = self._store.get(_BOOK_PATH).decode(errors="replace")
        except FileNotFoundError:
            return None
        if not re.fullmatch(r"[0-9a-f]{8}", found):
            raise StoreFault(f"store {self._store}: {_BOOK_PATH} is no name of a book of hosts")
        return found

    def write(self, record: HostRecord) -> HostRecord:
        """Writes a new record down. Raises StoreFault where it is there already."""
        written = self._put(record, None)
        if written is None:
            raise StoreFault(f"store {self._store}: {record_path(record.lease)} is there already")
        return written

    def read(self, lease: str) -> HostRecord | None:
        """The record of a lease.

        Raises:
            StoreFault: it cannot be read as one.
        """
        try:
            return HostRecord.model_validate_json(self._store.get(record_path(lease)))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise StoreFault(f"store {self._store}: {record_path(lease)} is no record of a host") from None

    def hosts(self) -> Hosts:
        """Every record. One that cannot be read hides no other.

        Raises:
            StoreFault: it cannot be told which there are.
        """

        def read(lease: str) -> HostRecord | StoreFault | None:
            try:
                return self.read(lease)
            except StoreFault as fault:
                return fault

        names = (
            file.path.removeprefix("hosts/").removesuffix(".json") for file in self._store.list("hosts/")
        )
        leases = [name for name in names if re.fullmatch(r"[0-9a-f]{12}", name)]
        if self._at_once > 1 and len(leases) > 1:
            with ThreadPoolExecutor(self._at_once) as pool:
                found = dict(zip(leases, pool.map(read, leases), strict=True))
        else:
            found = {lease: read(lease) for lease in leases}
        return Hosts(
            {lease: record for lease, record in found.items() if isinstance(record, HostRecord)},
            {lease: str(fault) for lease, fault in found.items() if isinstance(fault, StoreFault)},
        )

    def keep_log(self, lease: str, text: str) -> str:
        """Keeps what a host wrote before it was given up. Returns the path in the store."""
        path = _log_path(lease)
        self._store.put(path, text.encode())
        return path

    def forget(self, lease: str) -> None:
        """Removes a record that nobody needs any more, and what was kept beside it."""
        self._store.delete(_log_path(lease))
        self._store.delete(record_path(lease))

    def change(self, lease: str, states: Collection[HostState], **changes: Any) -> HostRecord | None:
        """Changes a record that is in one of ``states``; None where it is in another, or gone.

        Raises:
            StoreFault: the store cannot do it, or others change it all the time.
        """
        return self._change(lease, lambda record: record.state in states, changes)

    def change_as_seen(self, seen: HostRecord, **changes: Any) -> HostRecord | None:
        """Changes a record that still has the state and the box of ``seen``; None where it has others, or is gone.

        Raises:
            StoreFault: as `change` does.
        """
        return self._change(
            seen.lease,
            lambda record: (record.state, record.instance) == (seen.state, seen.instance),
            changes,
        )

    def _change(
        self, lease: str, may: Callable[[HostRecord], bool], changes: Mapping[str, Any]
    ) -> HostRecord | None:
        path = record_path(lease)
        for _ in range(_ATTEMPTS):
            # The version first: what is changed between the two makes the write fail, and is read again.
            version = self._store.version(path)
            record = self.read(lease)
            if record is None or not may(record):
                return None
            changed = HostRecord.model_validate({**record.model_dump(), **changes})
            written = record if changed == record else self._put(changed, version)
            if written is not None:
                return written
        raise StoreFault(f"store {self._store}: {path} is changed by others all the time")

    def _put(self, record: HostRecord, version: str | None) -> HostRecord | None:
        """Writes where nobody else did; None where somebody did.

        A bucket's client sends a write again whose answer was lost, and then hears that the version is another: its own.
        """
        record = record.model_copy(update={"nonce": uuid.uuid4().hex[:12]})
        content, path = record.model_dump_json(indent=1).encode(), record_path(record.lease)
        if self._store.put_if(path, content, version):
            return record
        try:
            return record if self._store.get(path) == content else None
        except FileNotFoundError:
            return None
