"""What vast.ai answers, as types: offers, instances, and errors told by the body, never by the status alone.

    offer = Offer.of(row)                    # a row of the search
    instance = Instance.of(row)              # a row of the list; only its id must be there
    raise fault_of(404, '{"error": "no_such_ask", …}')        # OfferGone

Sources: vast.ai's OpenAPI files and the vendor's own tools, as read in 2026. The same status means several things: 404 is
a bad key as often as something that is gone, and an error may have created what it says it could not.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from callsheet.errors import BadInput, CallsheetError

#: Megabytes that vast.ai counts to the gigabyte of a GPU's memory.
_MB_PER_GB = 1000
#: Hours that vast.ai counts to the month of a disk's price.
_HOURS_PER_MONTH = 720
#: States of a box whose GPU costs money.
_GPU_IS_PAID = ("running", "frozen")


class VastError(CallsheetError):
    """vast.ai did not do what it was asked; the message says what it answered."""


class OfferGone(VastError):
    """Somebody else rented the offer, or it was taken back: take the next."""


class CreditExhausted(VastError):
    """The account has too little credit, or may not spend as fast."""


class AuthError(VastError):
    """The key is wrong or expired, or may not do this. It says nothing about whether the thing asked for exists."""


class NotFound(VastError):
    """There is no such instance (any more)."""


class TryAgain(VastError):
    """The request did not get through, and may be sent again."""


class RateLimited(TryAgain):
    """Too many requests. ``seconds`` is when to ask again, where vast.ai says so."""

    def __init__(self, message: str, seconds: float | None = None) -> None:
        super().__init__(message)
        self.seconds = seconds


class Ambiguous(VastError):
    """A create that may or may not have made an instance: look for its label before any other create.

    ``instance_id`` is the instance's, where the answer names it: then there is one.
    """

    def __init__(self, message: str, instance_id: int | None = None) -> None:
        super().__init__(message)
        self.instance_id = instance_id


def fault_of(status: int, body: str, retry_after: str | None = None) -> VastError:
    """The error that an answer is. ``status`` decides only where the body says nothing.

    Args:
        retry_after: the header of that name.
    """
    told = _json(body)
    code = str(told.get("error") or "")
    said = " ".join(redacted(str(told.get("msg") or told.get("message") or code or body)).split())[:300]
    message = f"vast.ai answered {status}: {said or 'nothing'}"
    if "no_such_ask" in body:
        return OfferGone(message)
    if "no_such_instance" in body:
        return NotFound(message)
    if (
        any(word in body for word in ("insufficient_credit", "missing_billing", "spend_rate_limit"))
        or status == 411
    ):
        return CreditExhausted(message)
    if code == "search_quota_exceeded":
        return VastError(f"{message} (the day's searches are used up until 00:00 UTC)")
    if status == 429:
        return RateLimited(message, _float(retry_after) or _float(told.get("retry_after")))
    if code == "auth_error" or "Session expired" in body or status in (401, 403):
        return AuthError(message)
    if status >= 500 or status in (408, 409, 425) or not told:
        return TryAgain(message)
    return VastError(message)


_SECRET = re.compile(
    r"""(\w*(?:key|token|password|secret|signature|credential)\w*\\?["']?\s*[:=]\s*)\\?["']?[^"',}\s\\]+\\?["']?""",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A text of vast.ai's without keys, tokens and passwords: the answer to a create holds the box's own key."""
    return _SECRET.sub(r'\1"…"', text)


def contract_of(body: str) -> int | None:
    """The instance that an answer names: an error may have made one."""
    found = _json(body).get("new_contract")
    return found if isinstance(found, int) else None


def _json(body: str) -> Mapping[str, Any]:
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _float(value: object) -> float | None:
    """A number, or None where it is none: null, words, infinite."""
    try:
        found = float(str(value))
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _number(row: Mapping[str, Any], name: str, otherwise: float = 0.0) -> float:
    """A number of a row, in which anything may be null or a string."""
    found = _float(row.get(name))
    return otherwise if found is None else found


@dataclass(frozen=True)
class Price:
    """What a box costs. Moving a byte costs in any state; the disk as long as the box exists.

    Attributes:
        gpu_per_hour: $ per hour that it runs.
        disk_gb_month: $ per GB and month.
        down_per_gb, up_per_gb: $ per GB that comes in, and goes out.
    """

    gpu_per_hour: float
    disk_gb_month: float
    down_per_gb: float
    up_per_gb: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(
            _number(row, "dph_base"),
            _number(row, "storage_cost"),
            _number(row, "inet_down_cost"),
            _number(row, "inet_up_cost"),
        )

    def disk_per_hour(self, gb: float) -> float:
        return self.disk_gb_month * gb / _HOURS_PER_MONTH

    def per_hour(self, disk_gb: float) -> float:
        """$ per hour that a box with such a disk runs, without traffic."""
        return self.gpu_per_hour + self.disk_per_hour(disk_gb)


@dataclass(frozen=True)
class Offer:
    """A machine that can be rented. An offer is good for one create.

    Attributes:
        machine_id: the machine, which may have several offers; what is bad is a machine.
        vram_gb: memory of one GPU.
        down_mbps, up_mbps: what its line is said to carry.
        ports: how many ports of it can be reached from outside.
        seconds: how long it can be rented at most.
    """

    id: int
    machine_id: int
    gpu_name: str
    gpus: int
    vram_gb: float
    price: Price
    reliability: float
    down_mbps: float
    up_mbps: float
    cuda: float
    disk_gb: float
    ports: int
    seconds: float
    country: str
    verified: bool

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError or ValueError where the row has no ids or no price: it cannot be rented."""
        if _float(row.get("dph_base")) is None:
            raise ValueError("the offer names no price")
        return cls(
            id=int(row["id"]),
            machine_id=int(row["machine_id"]),
            gpu_name=str(row.get("gpu_name") or ""),
            gpus=int(_number(row, "num_gpus", 1)),
            vram_gb=_number(row, "gpu_ram") / _MB_PER_GB,
            price=Price.of(row),
            reliability=_number(row, "reliability", _number(row, "reliability2")),
            down_mbps=_number(row, "inet_down"),
            up_mbps=_number(row, "inet_up"),
            cuda=_number(row, "cuda_max_good"),
            disk_gb=_number(row, "disk_space"),
            ports=int(_number(row, "direct_port_count")),
            seconds=_number(row, "duration"),
            country=str(row.get("geolocation") or "").rpartition(",")[2].strip(),
            verified=row.get("verification") == "verified" or bool(row.get("verified")),
        )


@dataclass(frozen=True)
class Instance:
    """A rented box. Anything but its id may be missing while it is made.

    Attributes:
        status: what it does: ``""`` while it is made, created, loading, running, stopped, exited, offline, unknown, …
        wanted: what it is meant to do, running or stopped; where ``to_come`` is running it will start by itself.
        message: of its Docker daemon; errors of the image stand there while ``status`` stays loading.
        address: where it is reached, without blanks.
        ports: container port to the port outside.
        since: when it was made, in seconds of the epoch; None where vast.ai does not say.
        until: when its contract ends.
    """

    id: int
    label: str
    status: str
    wanted: str
    to_come: str
    message: str
    machine_id: int
    address: str
    ports: Mapping[int, int]
    price: Price
    disk_gb: float
    since: float | None
    until: float | None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Raises KeyError, TypeError or ValueError where the row has no id: then the list is not whole."""
        return cls(
            id=int(row["id"]),
            label=str(row.get("label") or ""),
            status=str(row.get("actual_status") or ""),
            wanted=str(row.get("intended_status") or ""),
            to_come=str(row.get("next_state") or ""),
            message=" ".join(str(row.get("status_msg") or "").split()),
            machine_id=int(_number(row, "machine_id")),
            address=str(row.get("public_ipaddr") or "").strip(),
            ports=_ports(row.get("ports")),
            price=Price.of(row),
            disk_gb=_number(row, "disk_space"),
            since=_number(row, "start_date") or None,
            until=_number(row, "end_date") or None,
        )

    @property
    def costs_gpu(self) -> bool:
        return self.status in _GPU_IS_PAID

    @property
    def per_hour(self) -> float:
        """$ per hour in the state that it is in, without traffic."""
        return self.price.per_hour(self.disk_gb) if self.costs_gpu else self.price.disk_per_hour(self.disk_gb)


def _ports(found: object) -> dict[int, int]:
    """Docker's map of ports: ``{"8188/tcp": [{"HostIp": "0.0.0.0", "HostPort": "41188"}]}``; null while it loads."""
    ports: dict[int, int] = {}
    for name, places in (found if isinstance(found, dict) else {}).items():
        inside = str(name).partition("/")[0]
        for place in places if isinstance(places, list) else []:
            outside = str(place.get("HostPort") or "") if isinstance(place, dict) else ""
            if inside.isdigit() and outside.isdigit():
                ports.setdefault(int(inside), int(outside))
    return ports


#: Limits of a create request.
LABEL_CHARACTERS = 128
ONSTART_CHARACTERS = 4096
SMALLEST_DISK_GB = 8


@dataclass(frozen=True)
class Order:
    """What is rented: an image or a template, a disk, a label, and what runs when it starts.

    Attributes:
        label: what it is found and reaped by.
        env: variables of the container. Never a key of ours: who has the machine can read them.
        ports: container ports to be reached from outside.
        onstart: a shell script; it runs at every start of the container.

    Raises:
        BadInput: it is longer than vast.ai takes, or names neither image nor template.
    """

    label: str
    disk_gb: float
    image: str = ""
    template: str = ""
    env: Mapping[str, str] | None = None
    ports: tuple[int, ...] = ()
    onstart: str = ""

    def __post_init__(self) -> None:
        if not self.image and not self.template:
            raise BadInput("a host to rent: found neither image nor template; expected one of them")
        if not self.label.strip() or len(self.label) > LABEL_CHARACTERS:
            raise BadInput(
                f'a host to rent: found the label "{self.label}"; expected 1 to {LABEL_CHARACTERS} characters'
            )
        if len(self.onstart) > ONSTART_CHARACTERS:
            raise BadInput(
                f"a host to rent: its onstart script has {len(self.onstart)} characters; expected at most {ONSTART_CHARACTERS}"
            )
        if self.disk_gb < SMALLEST_DISK_GB:
            raise BadInput(
                f"a host to rent: found a disk of {self.disk_gb:g} GB; expected {SMALLEST_DISK_GB} or more"
            )


@dataclass(frozen=True)
class OfferRules:
    """Which offers are good enough.

    Attributes:
        gpu_names: as vast.ai writes them, ``RTX 4090``; any where there are none.
        max_per_hour: $ per hour, disk included.
        countries: two letters; any where there are none.
        hours: for how long it must be rentable at least.
    """

    disk_gb: float
    gpu_names: tuple[str, ...] = ()
    vram_gb: float = 0.0
    max_per_hour: float | None = None
    reliability: float = 0.97
    down_mbps: float = 500.0
    cuda: float = 12.4
    ports: int = 1
    countries: tuple[str, ...] = ()
    hours: float = 24.0

    def query(self) -> dict[str, Any]:
        """As the search takes it; numbers as numbers, memory in MB, time in seconds."""
        query: dict[str, Any] = {
            "verified": {"eq": True},
            "external": {"eq": False},
            "rentable": {"eq": True},
            "num_gpus": {"eq": 1},
            "gpu_ram": {"gte": self.vram_gb * _MB_PER_GB},
            "reliability": {"gte": self.reliability},
            "inet_down": {"gte": self.down_mbps},
            "cuda_max_good": {"gte": self.cuda},
            "disk_space": {"gte": self.disk_gb},
            "direct_port_count": {"gte": self.ports},
            "duration": {"gte": self.hours * 3600},
        }
        if self.gpu_names:
            query["gpu_name"] = {"in": list(self.gpu_names)}
        if self.max_per_hour is not None:
            query["dph_total"] = {"lte": self.max_per_hour}
        if self.countries:
            query["geolocation"] = {"in": list(self.countries)}
        return query

    def allow(self, offer: Offer) -> bool:
        """Whether the offer is as asked: what the search is told is not always heeded."""
        return (
            offer.gpus == 1
            and (not self.gpu_names or offer.gpu_name in self.gpu_names)
            and offer.vram_gb >= self.vram_gb
            and (self.max_per_hour is None or offer.price.per_hour(self.disk_gb) <= self.max_per_hour)
            and offer.reliability >= self.reliability
            and offer.down_mbps >= self.down_mbps
            and offer.cuda >= self.cuda
            and offer.disk_gb >= self.disk_gb
            and offer.ports >= self.ports
            and offer.seconds >= self.hours * 3600
            and (not self.countries or offer.country in self.countries)
            and offer.verified
        )
