"""Rented hosts as they are written down: a label on the box, and a record in the store.

    label = HostLabel.new("studio", now=time.time(), seconds=6 * 3600)
    str(label)                                     # callsheet:studio:1f0c…:1800000000:1800021600
    book = HostBook(store)
    book.write(HostRecord.of(label, offer, …))     # before anything is rented
    book.change(label.lease, ("ready",), state="draining")      # None where another was quicker

The label alone is enough to reap a box by: it says whose it is, since when and until when. The record,
``hosts/<lease>.json``, is written before the box is rented and changed by conditional writes only.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from callsheet.errors import BadInput, StoreFault
from callsheet.store import Store

PREFIX = "callsheet"
_LABEL = re.compile(
    rf"{PREFIX}:(?P<fleet>[A-Za-z0-9._-]{{1,40}}):(?P<lease>[0-9a-f]{{12}}):(?P<made>\d{{1,12}}):(?P<ends>\d{{1,12}})"
)
#: What becomes of a host: written down, rented, answering, being given back, gone.
HostState = Literal["creating", "booting", "ready", "draining", "ended"]
#: How often a record is tried to be changed that others change, too.
_ATTEMPTS = 20


@dataclass(frozen=True)
class HostLabel:
    """What a box of ours is called.

    Attributes:
        fleet: whose it is.
        made, ends: when it was ordered and when it must be gone, in whole seconds of the epoch.
    """

    fleet: str
    lease: str
    made: int
    ends: int

    @classmethod
    def new(cls, fleet: str, now: float, seconds: float) -> Self:
        """A new lease of this length.

        Raises:
            BadInput: the fleet's name cannot stand in a label.
        """
        label = cls(fleet, uuid.uuid4().hex[:12], int(now), int(now + seconds))
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
        return cls(found["fleet"], found["lease"], int(found["made"]), int(found["ends"])) if found else None

    def __str__(self) -> str:
        return f"{PREFIX}:{self.fleet}:{self.lease}:{self.made}:{self.ends}"


class HostRecord(BaseModel):
    """What is known of a rented host. It holds no secret.

    Attributes:
        label: as on the box.
        deadline: until when it must answer, in seconds of the epoch.
        max_per_hour: the most that it may cost, in $ per hour with its disk.
        instance: the box's id; None until it is known, as after a create without an answer.
        ill_since: since when the provider says that it does not run.
        reason: why it ended.
    """

    model_config = ConfigDict(extra="forbid")

    lease: str
    label: str
    fleet: str
    state: HostState = "creating"
    made: float
    ends: float
    deadline: float
    max_per_hour: float = Field(ge=0)
    offer: int
    machine: int
    instance: int | None = None
    ill_since: float | None = None
    reason: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it is given back: whatever box is there under its label is to go."""
        return self.state in ("draining", "ended")


def record_path(lease: str) -> str:
    return f"hosts/{lease}.json"


class HostBook:
    """The records of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, record: HostRecord) -> None:
        """Writes a new record down. Raises StoreFault where it is there already."""
        if not self._store.put_if(record_path(record.lease), _content(record), None):
            raise StoreFault(f"store {self._store}: {record_path(record.lease)} is there already")

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

    def all(self) -> Iterator[HostRecord]:
        """Every record. Raises StoreFault where one cannot be read."""
        for file in self._store.list("hosts/"):
            lease = file.path.removeprefix("hosts/").removesuffix(".json")
            if re.fullmatch(r"[0-9a-f]{12}", lease) and (record := self.read(lease)) is not None:
                yield record

    def change(self, lease: str, states: Collection[HostState], **changes: Any) -> HostRecord | None:
        """Changes a record that is in one of ``states``; None where it is in another, or gone.

        Raises:
            StoreFault: the store cannot do it, or others change it all the time.
        """
        path = record_path(lease)
        for _ in range(_ATTEMPTS):
            # The version first: what is changed between the two makes the write fail, and is read again.
            version = self._store.version(path)
            record = self.read(lease)
            if record is None or record.state not in states:
                return None
            changed = HostRecord.model_validate(record.model_dump() | changes)
            if changed == record or self._store.put_if(path, _content(changed), version):
                return changed
        raise StoreFault(f"store {self._store}: {path} is changed by others all the time")


def _content(record: HostRecord) -> bytes:
    return record.model_dump_json(indent=1).encode()
