"""The hosts that are rented, as a person wants to see them: where each stands, what it costs, what it is for.

for host in list_hosts(client, book, now=time.time()):
    host.row()              # as a line of a table
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

from callsheet.hosts import HostBook, HostLabel, HostRecord
from callsheet.vastai import VastClient
from callsheet.vastai_answers import Instance


class ListedHost(BaseModel):
    """A box of ours, with what is written down of it.

    Attributes:
        state: as written down; "unknown" where nothing is, or it cannot be read.
        status: what vast.ai says of it; empty while it is made, and where no list has it.
        hours: since it was ordered.
        hours_left: until it goes, whatever it does.
        cost: $ so far, traffic not counted.
        per_hour: $ per hour while it runs.
        run: id of the flow run that ordered it.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    instance: int | None
    state: str
    status: str
    engines: tuple[str, ...]
    hours: float
    hours_left: float
    cost: float
    per_hour: float
    run: str

    @classmethod
    def of(cls, label: HostLabel, record: HostRecord | None, box: Instance | None, now: float) -> ListedHost:
        price = box.price.per_hour(box.disk_gb) if box else 0.0
        hours = (now - label.made) / 3600
        return cls(
            host=f"{label.fleet}-{label.lease}",
            instance=box.id if box else record.instance if record else None,
            state=record.state if record else "unknown",
            status=box.status if box else "",
            engines=tuple(engine.name for engine in record.engines) if record else (),
            hours=round(hours, 2),
            hours_left=round((label.ends - now) / 3600, 2),
            cost=round(record.cost(now) if record else price * hours, 4),
            per_hour=round(price or (record.price.per_hour(record.disk_gb) if record else 0.0), 4),
            run=record.owner if record else "",
        )

    def row(self) -> dict[str, Any]:
        """As a line of a table."""
        return {
            "host": self.host,
            "instance": str(self.instance or "-"),
            "state": self.state,
            "vast.ai says": self.status or "-",
            "engines": ", ".join(self.engines) or "-",
            "hours": f"{self.hours:.1f}",
            "left": f"{self.hours_left:.1f}",
            "$": f"{self.cost:.2f}",
            "$/h": f"{self.per_hour:.2f}",
            "ordered by run": self.run[:8] or "-",
        }


def list_hosts(client: VastClient, book: HostBook, *, now: float, fleet: str = "") -> Iterator[ListedHost]:
    """Every box with a label of ours, then what is written down and in no list.

    Args:
        fleet: of this one alone.

    Raises:
        VastError, StoreFault: the list, or which records there are, could not be read.
    """
    records = dict(book.hosts().records)
    account = client.account()
    for box in client.instances():
        label = HostLabel.read(box.label)
        if label is not None and fleet in ("", label.fleet):
            yield ListedHost.of(label, records.pop(label.lease, None), box, now)
    for record in records.values():
        label = HostLabel.read(record.label)
        is_theirs = record.account == account and fleet in ("", record.fleet)
        if label is not None and is_theirs and record.state != "ended":
            yield ListedHost.of(label, record, None, now)
