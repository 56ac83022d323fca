"""A vast.ai account: offers are searched, boxes created, listed and destroyed, and an answer is believed by its body.

    account = VastClient(SecretStr("…"))
    offers = account.search(OfferRules(disk_gb=80, gpu_names=("RTX 4090",), max_per_hour=0.6))
    created = account.create(offers[0], Order(label="…", disk_gb=80, image="…"))
    account.instances()              # all of the account, or an error: never a part
    account.destroy(created.id)      # asked for; it is gone when a whole list has not got it

Over vast.ai's own SDK, with one attempt a request: its retries send a create again that was done, and then hide it.
Everything is synchronous; from a flow it is called in a thread. The key is in no message.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import requests
from pydantic import SecretStr

from callsheet.errors import BadInput
from callsheet.hiding import without
from callsheet.timing import scaled
from callsheet.vastai_answers import (
    Ambiguous,
    Instance,
    NotFound,
    Offer,
    OfferRules,
    Order,
    RateLimited,
    TryAgain,
    VastError,
    contract_of,
    fault_of,
    redacted,
)

SERVER = "https://console.vast.ai"
TIMEOUT_SECONDS = 30.0
#: A create may take long, and one that timed out must be looked for.
CREATE_SECONDS = 60.0
#: How often a request that can do no harm is sent, and how long is waited first, doubled each time.
ATTEMPTS = 4
BACKOFF_SECONDS = 1.5
#: The longest that vast.ai may ask us to wait.
PATIENCE_SECONDS = 60.0
#: Rows of a page, the most that vast.ai gives.
PAGE = 25
#: A list that never ends is no list.
PAGES = 400

Endpoint = Literal["search", "create", "list", "destroy", "label", "logs", "user"]
#: Seconds between two requests to an endpoint: vast.ai's own limits, with a little on top.
INTERVALS: dict[Endpoint, float] = {
    "search": 6.5,
    "create": 5.0,
    "list": 1.1,
    "destroy": 3.2,
    "label": 1.1,
    "logs": 1.1,
    "user": 1.1,
}
T = TypeVar("T")


@dataclass(frozen=True)
class Created:
    """A box that was made, and the key with which it alone can be destroyed: that one may lie on it."""

    id: int
    key: SecretStr


class VastClient:
    """One account, with one key."""

    def __init__(self, key: SecretStr, server: str = SERVER, *, paced: bool = True) -> None:
        """``paced``: keeps vast.ai's least time between requests; a stand-in needs none."""
        # Its import takes 0.4 s and sets up a log of its own, which would go to the terminal.
        from vastai_sdk import VastAI  # noqa: PLC0415

        log = logging.getLogger("vastai")
        log.handlers.clear()
        log.propagate = True
        self._server = server.rstrip("/")
        self._key, self._paced = key, paced
        self._sdk, self._creating = (
            VastAI(api_key=key.get_secret_value(), server_url=self._server, retry=1) for _ in range(2)
        )
        self._sdk.client.timeout = scaled(TIMEOUT_SECONDS)
        self._creating.client.timeout = scaled(CREATE_SECONDS)

    @property
    def server(self) -> str:
        """Its address."""
        return self._server

    def token(self, lease: str) -> SecretStr:
        """What the engines of a lease ask for: known to whoever has the account's key, and written down nowhere."""
        return SecretStr(
            hmac.new(self._key.get_secret_value().encode(), lease.encode(), "sha256").hexdigest()[:40]
        )

    @classmethod
    def from_environment(cls) -> VastClient:
        """With ``VAST_API_KEY``; at ``VAST_URL``, where another server stands in for vast.ai.

        Raises:
            BadInput: there is no key.
        """
        key = os.environ.get("VAST_API_KEY", "")
        if not key:
            raise BadInput("vast.ai: found no VAST_API_KEY in the environment; expected the account's key")
        return cls(SecretStr(key), os.environ.get("VAST_URL") or SERVER)

    # Offers and boxes ----------------------------------------------------------------------------

    def search(self, rules: OfferRules, limit: int = 64) -> list[Offer]:
        """Offers that the rules allow, the cheapest first. vast.ai gives 64 at most."""
        rows = self._safely(
            "search",
            lambda: self._sdk.search_offers(
                rules.query(), order="dph_total", limit=limit, storage=rules.disk_gb, no_default=True
            ),
        )
        offers = []
        for row in rows:
            try:
                offers.append(Offer.of(row))
            except (KeyError, TypeError, ValueError):
                continue  # what has no id cannot be rented
        return sorted(
            (offer for offer in offers if rules.allow(offer)),
            key=lambda offer: offer.price.per_hour(rules.disk_gb),
        )

    def create(self, offer: Offer, order: Order) -> Created:
        """Rents the offer. Sent once, whatever happens.

        Raises:
            OfferGone: nothing was rented; take the next.
            CreditExhausted, AuthError: nothing was rented, and nothing else will be.
            Ambiguous: it is not known whether a box was made; find out by its label.
        """
        env = dict(order.env or {}) | {f"-p {port}:{port}": "1" for port in order.ports}
        try:
            with self._pace("create"):
                answer = self._creating.create_instance(
                    offer.id,
                    image=order.image or None,
                    template_hash=order.template or None,
                    disk=order.disk_gb,
                    env=env,
                    label=order.label,
                    onstart_cmd=order.onstart or None,
                    ssh=True,
                    direct=True,
                    # Otherwise a machine that is taken meanwhile leaves a stopped box, which may start by itself.
                    cancel_unavail=True,
                )
        except requests.HTTPError as error:
            status, body, _ = self._answer_of(error)
            raise self._create_fault(status, body) from None
        except (requests.RequestException, ValueError) as error:
            raise Ambiguous(f"vast.ai: no answer to a create: {self._told(error)}") from None
        if not isinstance(answer, Mapping) or not answer.get("success"):
            raise self._create_fault(200, self._text(answer))
        identity = answer.get("new_contract")
        if not isinstance(identity, int):
            raise Ambiguous(f"vast.ai: a create succeeded and named no instance: {self._text(answer)[:300]}")
        return Created(identity, SecretStr(str(answer.get("instance_api_key") or "")))

    def _create_fault(self, status: int, body: str) -> VastError:
        """An error of a create: a refusal only where the body says so."""
        fault = fault_of(status, body)
        identity = contract_of(body)
        if identity is not None or isinstance(fault, TryAgain):
            return Ambiguous(f"{fault}; it may have made an instance", identity)
        return fault

    def instances(self) -> list[Instance]:
        """Every box of the account.

        Raises:
            VastError: a page could not be read, or a row had no id: what is not whole tells nothing of what is missing.
        """
        for attempt in range(2):
            boxes, total = self._list({})
            # An empty list must say that it is meant: a failed one looks the same, and everything would be gone.
            if total == len(boxes) or (total is None and boxes):
                return boxes
            if attempt == 0:  # what was made or destroyed between two pages makes them differ, too
                continue
        raise VastError(
            f"vast.ai: the list of instances has {len(boxes)} rows and says {total}; it is not whole"
        )

    def instance(self, identity: int) -> Instance | None:
        """One box; None where vast.ai shows none of that id, which only a whole list proves."""
        boxes, _ = self._list({"id": {"eq": identity}})
        return next((box for box in boxes if box.id == identity), None)

    def _list(self, filters: Mapping[str, Any]) -> tuple[list[Instance], object]:
        """The boxes of every page, and how many vast.ai says that there are."""
        found: dict[int, Instance] = {}
        token: str | None = None
        for _ in range(PAGES):
            params: dict[str, Any] = {
                "select_filters": filters,
                "order_by": [{"col": "id", "dir": "asc"}],
                "limit": PAGE,
            }
            if token:
                params["after_token"] = token
            page = self._safely("list", lambda params=params: self._sdk.show_instances_v1(params))  # type: ignore[misc]
            if (
                not isinstance(page, Mapping)
                or page.get("success") is not True
                or not isinstance(page.get("instances"), list)
            ):
                raise VastError(f"vast.ai: a list of instances without instances: {self._text(page)[:300]}")
            for row in page["instances"]:
                try:
                    box = Instance.of(row)
                except (KeyError, TypeError, ValueError, AttributeError):
                    raise VastError(
                        "vast.ai: the list of instances has a row without an id; it is not whole"
                    ) from None
                found[box.id] = box
            token = page.get("next_token")
            if not token:
                return list(found.values()), page.get("total_instances")
        raise VastError(f"vast.ai: the list of instances has more than {PAGES} pages")

    def destroy(self, identity: int) -> None:
        """Asks that a box be destroyed; one that is gone already is no error.

        Raises:
            VastError: it was not taken on. Only a whole list without it says that it is gone.
        """

        def ask() -> Any:
            answer = self._sdk.client.delete(f"/instances/{identity}/", json_data={})
            answer.raise_for_status()
            told = answer.json()
            if not isinstance(told, Mapping) or not told.get("success"):
                fault = fault_of(200, self._without_key(answer.text))
                # A destroy that was not taken on is asked for again, unless it says why that is no use.
                raise fault if type(fault) is not VastError else TryAgain(str(fault))

        try:
            self._safely("destroy", ask)
        except NotFound:
            return

    def label(self, identity: int, label: str) -> None:
        """Gives a box another label."""
        self._safely("label", lambda: self._sdk.label_instance(identity, label))

    def logs(self, identity: int, lines: int = 200) -> str:
        """The last lines that the box and its Docker daemon wrote.

        Raises:
            TryAgain: they did not come in time.
        """
        try:
            told = self._safely("logs", lambda: self._sdk.logs(identity, tail=str(lines), daemon_logs=True))
        except (TimeoutError, requests.RequestException):
            raise TryAgain(f"vast.ai: the logs of instance {identity} did not come") from None
        return self._without_key(told) if isinstance(told, str) else self._text(told)

    def credit(self) -> float:
        """What the account may spend yet, in $."""
        return float(self._user("credit"))

    def account(self) -> int:
        """The account's number; its boxes are in no other account's lists."""
        return int(self._user("id"))

    def _user(self, name: str) -> float:
        told = self._safely("user", self._sdk.show_user)
        try:
            return float(told[name])
        except (KeyError, TypeError, ValueError):
            raise VastError(f"vast.ai: the account's answer names no {name}") from None

    # Requests ------------------------------------------------------------------------------------

    def _safely(self, endpoint: Endpoint, ask: Callable[[], T]) -> T:
        """Sends a request that does no harm when it is sent again, a few times."""
        for attempt in range(ATTEMPTS):
            try:
                with self._pace(endpoint):
                    return self._asked(ask)
            except TryAgain as fault:
                wait = BACKOFF_SECONDS * 2**attempt * random.uniform(0.7, 1.3)
                if isinstance(fault, RateLimited) and fault.seconds is not None:
                    wait = max(wait, fault.seconds)
                if attempt == ATTEMPTS - 1 or wait > PATIENCE_SECONDS:
                    raise
                time.sleep(scaled(wait))
        raise AssertionError("an attempt returns or raises")

    def _pace(self, endpoint: Endpoint) -> AbstractContextManager[None]:
        return _pace(self._server, endpoint) if self._paced else nullcontext()

    def _asked(self, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except requests.HTTPError as error:
            raise fault_of(*self._answer_of(error)) from None
        except requests.RequestException as error:
            # Also where an answer is no JSON: a proxy's page, or half of one.
            raise TryAgain(f"vast.ai: {self._told(error)}") from None

    def _told(self, error: Exception) -> str:
        """What happened, as a library tells it."""
        return self._without_key(f"{type(error).__name__}: {error}")[:300]

    def _answer_of(self, error: requests.HTTPError) -> tuple[int, str, str | None]:
        """Status, body and Retry-After of an answer that is an error."""
        answer = error.response
        assert answer is not None
        return answer.status_code, self._without_key(answer.text), answer.headers.get("Retry-After")

    def _text(self, answer: object) -> str:
        """An answer as it may be shown."""
        try:
            return redacted(self._without_key(json.dumps(answer)))
        except (TypeError, ValueError):
            return redacted(self._without_key(str(answer)))

    def _without_key(self, text: str) -> str:
        """An answer may repeat the request, and a library put it into a message."""
        return without(text, [self._key.get_secret_value()])


class _Pace:
    """Lets requests to one endpoint through one by one, with vast.ai's least time between them."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._lock, self._next = seconds, threading.Lock(), 0.0

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            time.sleep(max(0.0, self._next - time.monotonic()))
        except BaseException:  # Ctrl-C: else nobody would ever be let through again
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._next = time.monotonic() + scaled(self._seconds)
        self._lock.release()


_paces: dict[tuple[str, Endpoint], _Pace] = {}
_paces_lock = threading.Lock()


def _pace(server: str, endpoint: Endpoint) -> _Pace:
    """All accounts of a process share it: vast.ai counts by address, too."""
    with _paces_lock:
        return _paces.setdefault((server, endpoint), _Pace(INTERVALS[endpoint]))
