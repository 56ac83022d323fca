"""Which takes a batch needs: what `store check` and `store prune` go by before they call a take nobody's.

    write_planned(store, plan, "demo", run="1f0c9a2e")     # when a run begins
    needed_by(store, "demo")                               # {key, …}: planned, written down, published

A run says what it will use before it uses it, so that nothing it counts on is taken away meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from callsheet.journal import read_journals
from callsheet.manifest import Manifest, batch_path
from callsheet.plan import Plan
from callsheet.store import Store

_Model = TypeVar("_Model", bound=BaseModel)
#: So many batches are read at once; each reads its journals several at a time.
_AT_ONCE = 4


class PlannedTakes(BaseModel):
    """``plan.json`` of a batch: the takes that its latest run set out to have. Clips that the length of a narration
    turned out to need are in the journal and the manifest.

    Attributes:
        takes: keys by kind.
    """

    batch: str
    script: dict[str, str]
    run: str
    started: str
    takes: dict[str, list[str]]


def write_planned(store: Store, plan: Plan, batch: str, run: str, started: str) -> None:
    """Writes the ``plan.json`` of a batch."""
    takes: dict[str, list[str]] = {}
    for step in plan.steps.values():
        takes.setdefault(step.kind, []).append(step.key)
    planned = PlannedTakes(
        batch=batch,
        script={"name": plan.script.name, "sha256": plan.script.sha256},
        run=run,
        started=started,
        takes=takes,
    )
    store.put(batch_path(batch, "plan.json"), planned.model_dump_json().encode())


@dataclass(frozen=True)
class Needs:
    """What the files of a batch tell.

    Attributes:
        keys: of the takes that it needs.
        unreadable: those of its files that are there and tell nothing: then it may need more than is known.
    """

    keys: frozenset[str]
    planned: PlannedTakes | None
    manifest: Manifest | None
    unreadable: tuple[str, ...]


def needed_by(store: Store, batch: str) -> frozenset[str]:
    """Keys of the takes that the batch needs."""
    return read_needs(store, batch).keys


def read_needs(store: Store, batch: str) -> Needs:
    """Reads plan, journals and manifest of a batch.

    Raises:
        StoreFault: the store cannot be read.
    """
    # A run plans, then writes down, then publishes: read in this order, what moves on meanwhile is seen in one of them.
    unreadable: list[str] = []
    planned = _read(store, batch_path(batch, "plan.json"), PlannedTakes, unreadable)
    keys = {sidecar.key for sidecar in read_journals(store, batch)}
    manifest = _read(store, batch_path(batch, "manifest.json"), Manifest, unreadable)
    if planned:
        keys.update(*planned.takes.values())
    if manifest:
        for shot in manifest.shots:
            for one in shot.takes.values():
                keys.update([one] if isinstance(one, str) else one)
        keys |= {programme.take for programme in manifest.programmes}
    return Needs(frozenset(keys), planned, manifest, tuple(unreadable))


def read_all_needs(store: Store, batches: Iterable[str]) -> dict[str, Needs]:
    """The same of several batches, by name."""
    names = sorted(batches)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(names, pool.map(lambda name: read_needs(store, name), names), strict=True))


def _read(store: Store, path: str, model: type[_Model], unreadable: list[str]) -> _Model | None:
    try:
        return model.model_validate_json(store.get(path))
    except FileNotFoundError:
        return None
    except ValidationError:
        unreadable.append(path)
        return None
