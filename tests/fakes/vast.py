"""vast.ai on 127.0.0.1, as its own SDK talks to it: offers, boxes that live and cost by a virtual clock, and faults.

    with Vast() as vast:
        offer = vast.offer(gpu_name="RTX 4090", dph_base=0.4)
        vast.fail("create", "committed, then hangs")
        ...                                  # a client talks to vast.url
        vast.advance(600)
        vast.billable("callsheet:"), vast.spent

Answers have the shapes of vast.ai's OpenAPI files and of what others recorded, nulls and odd types included.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from tests.fakes.background import BackgroundServer

Endpoint = Literal["search", "create", "list", "destroy", "label", "logs", "user"]
Fault = Literal[
    # of any endpoint
    "hangs", "resets", "half", "html", "500", "502", "429 text", "429 json", "429 header", "wrong key", "404 wrong key",
    "echo",
    # of create
    "gone 404", "gone 410", "gone 400", "no credit", "refused", "refused and made", "committed, then hangs",
    "committed, then resets", "committed, then 502", "committed, then html", "committed, without id",
    # of destroy
    "not taken on", "lingers", "committed, then resets",
    # of list
    "no instances", "row without id", "empty", "empty and said so", "row missing",
    # of search
    "quota",
]  # fmt: skip
Fate = Literal["", "stuck", "bad image", "exits", "offline", "no ports", "invisible"]
KEY = "account-key-of-the-test"
ACCOUNT = 42
START = 1_800_000_000.0
#: Virtual seconds after a create until it loads, and until it runs.
MADE, RUNS = 5.0, 300.0
#: How long an invisible box is in no list, and one that lingers is in it yet.
LATE, LINGERS = 60.0, 120.0
_ROUTES: tuple[tuple[str, str, Endpoint], ...] = (
    ("POST", r"/api/v0/bundles/", "search"),
    ("PUT", r"/api/v0/asks/(\d+)/", "create"),
    ("GET", r"/api/v1/instances/", "list"),
    ("DELETE", r"/api/v0/instances/(\d+)/", "destroy"),
    ("PUT", r"/api/v0/instances/(\d+)/", "label"),
    ("PUT", r"/api/v0/instances/request_logs/(\d+)/", "logs"),
    ("GET", r"/api/v0/users/current", "user"),
)


_PAGE = "<html>Sign in</html>"
_BAD_GATEWAY = "<html>Bad Gateway</html>"
_WRONG_KEY = {"success": False, "error": "auth_error", "msg": "Invalid user key"}
#: Faults that any endpoint may have before anything was done: status, answer, and headers.
_ANSWERS: dict[str, tuple[int, Any, str]] = {
    "half": (200, '{"success": tr', ""),
    "html": (200, _PAGE, ""),
    "500": (500, {"success": False, "error": "server_error", "msg": "sorry"}, ""),
    "502": (502, _BAD_GATEWAY, ""),
    "429 text": (429, "API requests too frequent: endpoint threshold=4.5", ""),
    "429 json": (429, {"success": False, "msg": "too frequent", "retry_after": 2}, ""),
    "429 header": (429, {"success": False}, "Retry-After: 2\r\n"),
    "wrong key": (401, _WRONG_KEY, ""),
    "404 wrong key": (404, _WRONG_KEY, ""),
    "echo": (400, {"success": False, "msg": f"bad request: Authorization: Bearer {KEY}"}, ""),
}


@dataclass
class Request:
    """A request that came in."""

    endpoint: Endpoint
    path: str
    query: dict[str, str]
    body: Any
    key: str
    at: float = field(default_factory=time.monotonic)


@dataclass
class Box:
    """A rented machine.

    Attributes:
        fate: what becomes of it.
        destroyed: when a destroy was taken on; it is in lists until ``gone``.
    """

    id: int
    offer: dict[str, Any]
    order: dict[str, Any]
    made: float
    fate: Fate = ""
    key: str = ""
    spent: float = 0.0
    destroyed: float | None = None
    gone: float | None = None
    made_after: float = MADE
    runs_after: float = RUNS

    @property
    def label(self) -> str | None:
        label: str | None = self.order.get("label")
        return label

    def status(self, now: float) -> str | None:
        """Its ``actual_status``."""
        age = now - self.made
        if age < self.made_after:
            return None
        if age < self.runs_after or self.fate in ("stuck", "bad image"):
            return "loading"
        return {"exits": "exited", "offline": "offline"}.get(self.fate, "running")

    def per_hour(self, now: float) -> float:
        status = self.status(now)
        if status == "offline":
            return 0.0
        disk = self.offer["storage_cost"] * self.order["disk"] / 720
        return disk + (self.offer["dph_base"] if status == "running" else 0.0)


class Vast(BackgroundServer):
    """Serves until the block ends.

    Attributes:
        offers: what the search gives, by id; one that was rented is gone.
        boxes: every box that was ever made, by id.
        page: rows of a page of the list.
        credit: what the account has left, in $.
        fate: of the next boxes, by offer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.made_after, self.runs_after = MADE, RUNS
        self.offers: dict[int, dict[str, Any]] = {}
        self.boxes: dict[int, Box] = {}
        self.requests: list[Request] = []
        self.page = 25
        self.credit = 50.0
        self.log = "engine started\n"
        self.fate: Callable[[dict[str, Any]], Fate] = lambda offer: ""
        self.outside_port: Callable[[Box, int], int] = lambda box, inside: 40_000 + inside
        self.was_destroyed: Callable[[Box], None] = lambda box: None
        self._ending = threading.Event()
        self._faults: dict[Endpoint, list[Fault]] = {}
        self._ids = itertools.count(9001)
        self._lock = threading.RLock()

    # What a test sets and reads ------------------------------------------------------------------

    def offer(self, **more: Any) -> dict[str, Any]:
        """Puts a machine on the market; a good one, but for what is said."""
        with self._lock:
            identity = next(self._ids)
            offer = {
                "id": identity,
                "ask_contract_id": identity,
                "machine_id": identity + 50_000,
                "host_id": 77,
                "gpu_name": "RTX 4090",
                "num_gpus": 1,
                "gpu_ram": 24564,
                "dph_base": 0.4,
                "storage_cost": 0.2,
                "inet_down": 900.0,
                "inet_up": 700.0,
                "inet_down_cost": 0.002,
                "inet_up_cost": 0.003,
                "reliability2": 0.995,
                "reliability": 0.995,
                "cuda_max_good": 12.8,
                "disk_space": 400.0,
                "direct_port_count": 40,
                "duration": 30 * 86400.0,
                "geolocation": "Oslo, NO",
                "verification": "verified",
                "rentable": True,
                **more,
            }
            self.offers[identity] = offer
            return offer

    def fail(self, endpoint: Endpoint, fault: Fault, times: int = 1) -> None:
        """The next requests to the endpoint go wrong in this way."""
        with self._lock:
            self._faults.setdefault(endpoint, []).extend([fault] * times)

    def advance(self, seconds: float) -> None:
        """Lets virtual time pass, and bills it."""
        with self._lock:
            until = self.now + seconds
            while self.now < until:
                # In steps: a box's price changes with its state.
                step = min(5.0, until - self.now)
                for box in self.boxes.values():
                    if box.gone is None or self.now < box.gone:
                        cost = box.per_hour(self.now) * step / 3600
                        box.spent += cost
                        self.credit -= cost
                self.now += step

    @contextmanager
    def in_real_time(self, made: float = 0.2, runs: float = 1.0) -> Iterator[None]:
        """The virtual clock is the real one while the block lasts, and boxes run after a second."""

        def follow() -> None:
            while not self._ending.wait(0.02):
                self.advance(time.time() - self.now)

        self.now, self.made_after, self.runs_after = time.time(), made, runs
        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            self._ending.set()
            follower.join()

    @property
    def spent(self) -> float:
        """$ that all boxes cost so far."""
        return sum(box.spent for box in self.boxes.values())

    def billable(self, label: str = "") -> list[Box]:
        """The boxes whose label begins so, and which cost money."""
        with self._lock:
            return [
                box for box in self._there() if (box.label or "").startswith(label) and box.destroyed is None
            ]

    def asked(self, endpoint: Endpoint) -> list[Request]:
        return [request for request in self.requests if request.endpoint == endpoint]

    def made(self, offer: dict[str, Any], order: dict[str, Any]) -> Box:
        """A box, made of an offer; a test makes those of other people."""
        with self._lock:
            self.offers.pop(offer["id"], None)
            identity = next(self._ids)
            box = Box(
                identity,
                offer,
                {"disk": 10, "label": None} | order,
                self.now,
                self.fate(offer),
                f"box-key-{identity}",
                made_after=self.made_after,
                runs_after=self.runs_after,
            )
            self.boxes[identity] = box
            return box

    def _there(self) -> list[Box]:
        return [box for box in self.boxes.values() if box.gone is None or self.now < box.gone]

    def _shown(self) -> list[Box]:
        """The boxes that vast.ai knows of yet: neither lists nor destroys know an invisible one."""
        return [box for box in self._there() if box.fate != "invisible" or self.now - box.made >= LATE]

    # HTTP ----------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            method, target, _ = lines[0].split(" ")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            await self._answer(
                writer, method, target, headers.get("authorization", ""), json.loads(body or b"null")
            )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(
        self, writer: asyncio.StreamWriter, method: str, target: str, authorization: str, body: Any
    ) -> None:
        url = urlsplit(target)
        if url.path.startswith("/logs/"):
            self._write(writer, 200, self.log, kind="text/plain")
            return
        found = [
            (endpoint, match)
            for verb, pattern, endpoint in _ROUTES
            if verb == method and (match := re.fullmatch(pattern, url.path))
        ]
        if not found:
            self._write(writer, 404, {"success": False, "error": "not_found", "msg": "no such path"})
            return
        endpoint, match = found[0]
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        key = authorization.removeprefix("Bearer ")
        request = Request(endpoint, url.path, query, body, key)
        with self._lock:
            self.requests.append(request)
            planned = self._faults.get(endpoint)
            fault = planned.pop(0) if planned else None
        identity = int(match[1]) if match.groups() else 0
        if key != KEY and not (
            endpoint == "destroy" and key == getattr(self.boxes.get(identity), "key", None)
        ):
            fault = "404 wrong key" if endpoint in ("search", "destroy") else "wrong key"
        if await self._failed(writer, fault):
            return
        with self._lock:
            status, answer = getattr(self, f"_{endpoint}")(request, identity, fault)
        if fault in ("committed, then hangs",):
            await asyncio.Event().wait()
        elif fault == "committed, then resets":
            writer.transport.abort()
        elif fault == "committed, then 502":
            self._write(writer, 502, _BAD_GATEWAY)
        elif fault == "committed, then html":
            self._write(writer, 200, _PAGE)
        else:
            self._write(writer, status, answer)

    async def _failed(self, writer: asyncio.StreamWriter, fault: Fault | None) -> bool:
        """Answers with a fault that any endpoint may have, before anything was done."""
        if fault == "hangs":
            await asyncio.Event().wait()
        elif fault == "resets":
            writer.transport.abort()
        elif fault in _ANSWERS:
            status, answer, more = _ANSWERS[fault]
            self._write(writer, status, answer, more=more)
        else:
            return False
        return True

    @staticmethod
    def _write(
        writer: asyncio.StreamWriter,
        status: int,
        answer: Any,
        *,
        kind: str = "application/json",
        more: str = "",
    ) -> None:
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n{more}Connection: close\r\n\r\n"
        writer.write(head.encode() + content)

    # Endpoints: status and answer ----------------------------------------------------------------

    def _search(self, request: Request, identity: int, fault: Fault | None) -> tuple[int, Any]:
        if fault == "quota":
            return 429, {"success": False, "error": "search_quota_exceeded", "msg": "daily quota"}
        disk = request.body.get("allocated_storage", 5.0)
        rows = [
            offer | {"dph_total": (offer["dph_base"] or 0.0) + offer["storage_cost"] * disk / 720}
            for offer in self.offers.values()
        ]
        # "Best effort": the names of GPUs are heeded, of the numbers some.
        names = request.body.get("gpu_name", {}).get("in")
        rows = [row for row in rows if not names or row["gpu_name"] in names]
        rows.sort(key=lambda row: row["dph_total"])
        return 200, {"offers": rows[: min(64, request.body.get("limit", 64))]}

    def _create(self, request: Request, identity: int, fault: Fault | None) -> tuple[int, Any]:
        gone = f"error 404/3603: no_such_ask Instance type by id {identity} is not available."
        offer = self.offers.get(identity)
        match fault:
            case "gone 410":
                self.offers.pop(identity, None)
                return 410, {
                    "success": False,
                    "error": "no_such_ask",
                    "msg": "error 410/3907: no longer available.",
                }
            case "gone 400":
                self.offers.pop(identity, None)
                return 400, {"success": False, "error": "invalid_args", "msg": gone}
            case "no credit":
                return 400, {"success": False, "error": "insufficient_credit", "msg": "add credit"}
            case "refused":
                return 400, {"success": False, "error": "invalid_args", "msg": "bad image"}
        if offer is None or fault == "gone 404":
            self.offers.pop(identity, None)
            return 404, {"success": False, "error": "invalid_args", "msg": gone}
        box = self.made(offer, request.body)
        if fault == "refused and made":
            return 400, {
                "success": False,
                "error": "bid_too_low",
                "msg": "not running",
                "new_contract": box.id,
            }
        answer = {"success": True, "new_contract": box.id, "instance_api_key": box.key}
        if fault == "committed, without id":
            del answer["new_contract"]
        return 200, answer

    def _list(self, request: Request, identity: int, fault: Fault | None) -> tuple[int, Any]:
        wanted = json.loads(request.query.get("select_filters", "{}")).get("id", {}).get("eq")
        after = int(request.query.get("after_token", "0"))
        boxes = sorted((box for box in self._shown() if wanted in (None, box.id)), key=lambda box: box.id)
        rows = [self._row(box) for box in boxes if box.id > after]
        if fault == "row without id" and rows:
            rows[0]["id"] = None
        if fault in ("empty", "empty and said so"):
            return 200, {
                "success": fault != "empty",
                "total_instances": 0,
                "instances": [],
                "next_token": None,
            }
        if fault == "row missing":
            rows = rows[1:]
        size = min(self.page, int(request.query.get("limit", "25")))
        more = str(rows[size - 1]["id"]) if len(rows) > size else None
        answer = {
            "success": True,
            "total_instances": len(boxes),
            "instances": rows[:size],
            "next_token": more,
        }
        if fault == "no instances":
            del answer["instances"]
        return 200, answer

    def _row(self, box: Box) -> dict[str, Any]:
        status = box.status(self.now)
        runs = status == "running"
        ports: dict[str, Any] | None = None
        if runs and box.fate != "no ports":
            inside = [
                int(name.removeprefix("-p ").partition(":")[0])
                for name in box.order.get("env", {})
                if name.startswith("-p ")
            ]
            ports = {
                f"{port}/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(self.outside_port(box, port))}]
                for port in inside
            }
        bad = box.fate == "bad image" and status == "loading"
        return {
            "id": box.id,
            "label": box.label,
            "actual_status": status,
            "intended_status": "running",
            "next_state": "running",
            "status_msg": "Error response from daemon: manifest unknown" if bad else None,
            "machine_id": box.offer["machine_id"],
            "public_ipaddr": "127.0.0.1 " if runs else None,
            "ports": ports,
            "dph_base": box.offer["dph_base"],
            "dph_total": box.offer["dph_base"] + box.offer["storage_cost"] * box.order["disk"] / 720,
            "storage_cost": box.offer["storage_cost"],
            "inet_down_cost": box.offer["inet_down_cost"],
            "inet_up_cost": box.offer["inet_up_cost"],
            "disk_space": box.order["disk"],
            # Nulls as the real list has them while a box is made: they end some of the SDK's own readers.
            "start_date": box.made if status else None,
            "end_date": box.made + 30 * 86400 if status else None,
            "extra_env": None,
            "uptime_mins": None,
        }

    def _destroy(self, request: Request, identity: int, fault: Fault | None) -> tuple[int, Any]:
        box = self.boxes.get(identity)
        if box is None or box not in self._shown() or (box.gone is not None and self.now >= box.gone):
            return 404, {
                "success": False,
                "error": "no_such_instance",
                "msg": f"Instance {identity} not found",
            }
        if fault == "not taken on":
            return 200, {"success": False, "msg": "try again later"}
        box.destroyed = self.now if box.destroyed is None else box.destroyed
        box.gone = self.now + (LINGERS if fault == "lingers" else 0.0)
        self.was_destroyed(box)
        return 200, {"success": True}

    def _label(self, request: Request, identity: int, fault: Fault | None) -> tuple[int, Any]:
        box = self.boxes.get(identity)
        if box is None:
            return 404, {"success": False, "error": "no_such_instance"}
        box.order["label"] = request.body["label"]
        return 200, {"success": True}

    def _logs(self, request: Request, identity: int, fault: Fault | None) -> tuple[int, Any]:
        return 200, {"success": True, "result_url": f"{self.url}/logs/{identity}"}

    def _user(self, request: Request, identity: int, fault: Fault | None) -> tuple[int, Any]:
        return 200, {"id": ACCOUNT, "credit": self.credit, "balance": 0.0, "api_key": KEY}
