"""What a rented box is given: the token of its lease, its dead-man's switch, and from a bucket its agent and models.

    outfitter = Outfitter(client, store, rules, pattern)
    outfitter.outfit(label)              # for `Renter`; writes what the box fetches into the store first

A box gets signed addresses of what it may read for as long as it may live, and no key. From a folder nothing can be
fetched: then the box has no agent, its image must have its models, and its switch goes by what the box itself can see.
"""

from __future__ import annotations

import contextlib
import hashlib
import json

import httpx
from pydantic import SecretStr

from callsheet.errors import StoreFault
from callsheet.fleet import Host
from callsheet.hosts import HostLabel
from callsheet.models import ModelShelf
from callsheet.onstart import HostSetup, agent_content, agent_sha256, onstart_of
from callsheet.rent_rules import RentRules
from callsheet.renting import Outfit
from callsheet.store import Store
from callsheet.vastai import VastClient
from callsheet.vastai_answers import Instance
from callsheet.verdicts import NotYet, Suspect

#: Where the agent listens in the box.
TOUCH_PORT = 8790
_ASK_SECONDS = 10.0
#: What makes an engine another one.
_SERVED = {"kind", "name", "port", "local_port", "revision", "model", "style", "slots"}


class Outfitter:
    """Outfits the boxes of one fleet."""

    def __init__(self, client: VastClient, store: Store, rules: RentRules, pattern: Host) -> None:
        self._client, self._store, self._rules, self._pattern = client, store, rules, pattern
        self._shelf = ModelShelf(store)
        #: Ports that must be reached besides those of the engines.
        self.ports = (TOUCH_PORT,) if store.signs else ()

    def outfit(self, label: HostLabel) -> Outfit:
        """Raises StoreFault or BadInput where the store cannot give it, before anything is rented."""
        token = self._client.token(label.lease)
        seconds = label.ends - label.made
        watched = [
            engine.local_port
            for engine in self._pattern.engines
            if engine.kind == "comfyui" and engine.local_port
        ]
        # Where the box cannot see that an engine works and nobody can tell it, its end alone counts: else it would go
        # in the middle of it.
        is_seen = self._store.signs or len(watched) == len(self._pattern.engines)
        models = self._models(label, seconds)
        setup = HostSetup(
            ends=label.ends,
            lease_seconds=self._lease_seconds() if is_seen else seconds,
            token=token,
            start=self._rules.start,
            queues=tuple(f"http://127.0.0.1:{port}/queue" for port in watched),
            agent_url=self._agent(seconds),
            agent_sha256=agent_sha256() if self._store.signs else "",
            models_url=models,
            models_root=self._rules.models_root if models else "",
            touch_port=TOUCH_PORT if self._store.signs else 0,
            vast_url=self._client.server,
        )
        # WEB_PASSWORD is what the proxy of vast.ai's own images asks for; the account's key goes nowhere.
        return Outfit({"WEB_PASSWORD": token.get_secret_value()}, onstart_of(setup))

    def serves(self) -> str:
        """Hash of what a host is made with: one that was made with something else makes other takes.

        Raises:
            StoreFault, BadInput: the store's list of models cannot be read.
        """
        models = self._shelf.manifest().files if self._store.signs else []
        facts = {
            "image": self._rules.image,
            "template": self._rules.template,
            "start": self._rules.start,
            "models_root": self._rules.models_root,
            "engines": [engine.model_dump(include=_SERVED) for engine in self._pattern.engines],
            "models": [file.model_dump() for file in models],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def forget(self, lease: str) -> None:
        """Removes the signed addresses of a host that is gone."""
        with contextlib.suppress(StoreFault):
            self._store.delete(_models_path(lease))

    def _lease_seconds(self) -> float:
        """How long a box waits for work or a sign of us: longer than it is kept, and than its boot where nobody can tell it."""
        boots = 0.0 if self._store.signs else self._rules.boot_minutes
        return 60 * max(self._rules.lease_minutes + boots, self._rules.keep_minutes + 10)

    def _agent(self, seconds: float) -> str:
        """Where the box fetches its agent; empty where the store gives no addresses."""
        if not self._store.signs:
            return ""
        path = f"hosts/agent-{agent_sha256()[:12]}.py"
        if self._store.size(path) is None:
            self._store.put(path, agent_content())
        return self._store.signed(path, seconds)

    def _models(self, label: HostLabel, seconds: float) -> str:
        """Where the box finds what it is to load, with an address for each file; empty where there is nothing."""
        if not self._store.signs or not (files := self._shelf.manifest().files):
            return ""
        for file in files:
            self._shelf.check(file)
        signed = [
            file.model_dump() | {"url": self._store.signed(f"models/{file.path}", seconds)} for file in files
        ]
        path = _models_path(label.lease)
        self._store.put(path, json.dumps({"files": signed}).encode())
        return self._store.signed(path, seconds)


def _models_path(lease: str) -> str:
    return f"hosts/models-{lease}.json"


async def ask_agent(box: Instance, token: SecretStr) -> bool | str:
    """True where the box's agent has loaded everything, or it has none; else one of `callsheet.verdicts`."""
    state = await _asked(box, token, "GET", "/state")
    if state is None or state == "ready":
        return True
    if state.startswith("failed"):
        # A model that is not what the list says it is, or this box's disk or line.
        return Suspect(f"its agent says: {state}")
    return NotYet(f"its agent says: {state or 'nothing yet'}")


def has_agent(box: Instance) -> bool:
    """Whether the box loads models that the store has, and says when they are there."""
    return TOUCH_PORT in box.ports


async def touch(box: Instance, token: SecretStr) -> bool:
    """Renews the lease of a box whose agent can be reached. Returns whether it took it."""
    return bool(await _asked(box, token, "POST", "/touch"))


async def _asked(box: Instance, token: SecretStr, method: str, path: str) -> str | None:
    """The agent's state; empty where it does not answer; None where the box has none."""
    outside = box.ports.get(TOUCH_PORT)
    if outside is None:
        return None
    headers = {"Authorization": f"Bearer {token.get_secret_value()}"}
    try:
        async with httpx.AsyncClient(headers=headers, timeout=_ASK_SECONDS) as http:
            answer = await http.request(method, f"http://{box.address}:{outside}{path}")
            return str(answer.raise_for_status().json()["state"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return ""
