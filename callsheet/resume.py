"""What is done already: the takes of a plan that are in the store, whole.

    takes = find_takes(plan, store, batch="demo")
    takes[key].take.file

The script's own journals and manifest are read first, a handful of files; keys in neither are asked
for one by one, several at a time, so that takes of other batches are found too. A take whose media is
missing, or not as long as its sidecar says, is no take: it is made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from callsheet.plan import Plan, Step
from callsheet.store import Store
from callsheet.takes import Sidecar, sidecar_path

#: Questions to the store at once. A folder answers at once, a bucket in some 50 ms.
_AT_ONCE = 16


def run_name(flow_run: str) -> str:
    """What a flow run calls itself in the names of its files."""
    return flow_run[:8]


def journal_path(batch: str, run: str) -> str:
    """Where a run writes down the takes it commits, one sidecar a line."""
    return f"batches/{batch}/journal-{run}.jsonl"


def find_takes(plan: Plan, store: Store, batch: str, *, journals: bool = True) -> dict[str, Sidecar]:
    """The plan's takes that exist, by key. Puts right how many clips cover the narrations that are there.

    Without ``journals`` each key is asked for: that is less, where the plan is a small part of a long batch.
    """
    journalled = {sidecar.key: sidecar for sidecar in _read_journals(store, batch)} if journals else {}
    found: dict[str, Sidecar] = {}
    asked: set[str] = set()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while steps := [step for step in plan.steps.values() if step.key not in asked]:
            asked |= {step.key for step in steps}
            for sidecar in pool.map(lambda step: find_take(step, store, journalled), steps):
                if sidecar is not None:
                    found[sidecar.key] = sidecar
            _fit_to_narrations(plan, found)
    return {key: sidecar for key, sidecar in found.items() if key in plan.steps}


def _fit_to_narrations(plan: Plan, found: dict[str, Sidecar]) -> None:
    for shot_id, shot in plan.shots.items():
        if shot.speech in found:
            plan.fit_to_narration(shot_id, shot.narration_seconds(found[shot.speech].take))


def find_take(step: Step, store: Store, journalled: Mapping[str, Sidecar] | None = None) -> Sidecar | None:
    """The step's take, where it is committed and its media is as long as it was.

    A sidecar in ``journalled`` is believed without asking the store for it.
    """
    journalled = journalled or {}
    sidecar = journalled.get(step.key) or _read_sidecar(step, store)
    if sidecar is None or store.size(sidecar.take.file) != sidecar.take.bytes:
        return None
    return sidecar


def _read_sidecar(step: Step, store: Store) -> Sidecar | None:
    try:
        return Sidecar.model_validate_json(store.get(sidecar_path(step.kind, step.key)))
    except (FileNotFoundError, ValidationError):
        return None  # a sidecar that does not parse commits nothing


def journal_cost(store: Store, batch: str, run: str) -> float:
    """What the takes cost that a run of the batch wrote down, in $."""
    try:
        lines = store.get(journal_path(batch, run)).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return 0.0
    return sum(sidecar.cost for sidecar in _read_journal(lines))


def _read_journals(store: Store, batch: str) -> Iterator[Sidecar]:
    for file in sorted(store.list(f"batches/{batch}/journal-"), key=lambda file: file.path):
        yield from _read_journal(store.get(file.path).decode(errors="replace").splitlines())


def _read_journal(lines: Iterable[str]) -> Iterator[Sidecar]:
    """A line that was cut off, because its run was killed, is left out."""
    for line in lines:
        try:
            yield Sidecar.model_validate(json.loads(line))
        except (ValidationError, json.JSONDecodeError):
            continue
