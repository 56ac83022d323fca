"""Which takes a batch needs: what `store check` and `store prune` go by before they call a take nobody's.

    write_planned(store, plan, "demo", run="1f0c9a2e")     # when a run begins
    needed_by(store, "demo")                               # {(kind, key), …}: planned, written down, published

A run says what it will use before it uses it, so that nothing it counts on is taken away meanwhile.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from callsheet.journal import read_journals
from callsheet.manifest import Manifest, batch_path
from callsheet.plan import Plan
from callsheet.store import Store

_Model = TypeVar("_Model", bound=BaseModel)


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


def needed_by(store: Store, batch: str) -> set[str]:
    """Keys of the takes that the batch needs."""
    keys = {sidecar.key for sidecar in read_journals(store, batch)}
    if planned := _read(store, batch_path(batch, "plan.json"), PlannedTakes):
        keys.update(*planned.takes.values())
    if manifest := _read(store, batch_path(batch, "manifest.json"), Manifest):
        for shot in manifest.shots:
            for one in shot.takes.values():
                keys.update([one] if isinstance(one, str) else one)
        keys |= {programme.take for programme in manifest.programmes}
    return keys


def _read(store: Store, path: str, model: type[_Model]) -> _Model | None:
    try:
        return model.model_validate_json(store.get(path))
    except (FileNotFoundError, ValidationError):
        return None
