"""What is done already: the takes of a plan that are in the store, whole.

    takes = find_takes(plan, store, batch="demo")
    takes[key].take.file

How takes were made is read from the batch's own journals, a handful of files; for keys that are in none the store
is asked, so that takes of other batches are found too. Whether they are there is asked for all of them, by lists
where that takes fewer requests. A take whose media is missing, or not as long as its sidecar says, is no take,
whatever a journal says: it is made again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from callsheet.journal import read_journals
from callsheet.plan import Plan, Step
from callsheet.store import Store
from callsheet.takes import Sidecar, sidecar_path


def find_takes(plan: Plan, store: Store, batch: str, *, journals: bool = True) -> dict[str, Sidecar]:
    """The plan's takes that exist, by key. Puts right how many clips cover the narrations that are there.

    Without ``journals`` each key is asked for: that is less, where the plan is a small part of a long batch.
    """
    journalled = _agreed(read_journals(store, batch)) if journals else {}
    found: dict[str, Sidecar] = {}
    asked: set[str] = set()
    while steps := [step for step in plan.steps.values() if step.key not in asked]:
        asked |= {step.key for step in steps}
        found |= _look(steps, store, journalled)
        _fit_to_narrations(plan, found)
    return {key: sidecar for key, sidecar in found.items() if key in plan.steps}


def find_take(step: Step, store: Store) -> Sidecar | None:
    """The step's take, where it is committed and its media is as long as it was."""
    sidecar = _read_sidecar(step, store)
    if sidecar is None or store.size(sidecar.take.file) != sidecar.take.bytes:
        return None
    return sidecar


def _look(steps: Sequence[Step], store: Store, journalled: dict[str, Sidecar]) -> dict[str, Sidecar]:
    """The takes of these steps that are whole."""
    told = {step.key: journalled[step.key] for step in steps if step.key in journalled}
    paths = {step.key: sidecar_path(step.kind, step.key) for step in steps if step.key not in told}
    # A journal is written after the sidecars that it repeats: of those takes only the media is asked for.
    sizes = store.sizes([*paths.values(), *(sidecar.take.file for sidecar in told.values())])

    def is_whole(sidecar: Sidecar) -> bool:
        return sizes.get(sidecar.take.file) == sidecar.take.bytes

    found = {key: sidecar for key, sidecar in told.items() if is_whole(sidecar)}
    # A run that was killed may have made a take again and not written that down.
    doubtful = [step for step in steps if step.key in told and not _is_current(step, found)]
    committed = [step for step in steps if paths.get(step.key) in sizes]
    with ThreadPoolExecutor(store.at_once) as pool:
        asked = [*committed, *doubtful]
        read = [one for one in pool.map(lambda step: _read_sidecar(step, store), asked) if one]
    sizes |= store.sizes(sidecar.take.file for sidecar in read)
    return found | {sidecar.key: sidecar for sidecar in read if is_whole(sidecar)}


def _is_current(step: Step, found: dict[str, Sidecar]) -> bool:
    """Whether a take that a journal tells of is there and was made from what is there now, as far as that is known."""
    sidecar = found.get(step.key)
    return sidecar is not None and all(
        found[key].take.sha256 == sha256 for key, sha256 in sidecar.sources.items() if key in found
    )


def _agreed(sidecars: Iterable[Sidecar]) -> dict[str, Sidecar]:
    """What journals say of takes. Where two say different things, one is out of date: the store is asked for that take."""
    agreed: dict[str, Sidecar] = {}
    differing: set[str] = set()
    for sidecar in sidecars:
        if agreed.setdefault(sidecar.key, sidecar) != sidecar:
            differing.add(sidecar.key)
    return {key: sidecar for key, sidecar in agreed.items() if key not in differing}


def _fit_to_narrations(plan: Plan, found: dict[str, Sidecar]) -> None:
    for shot_id, shot in plan.shots.items():
        if shot.speech in found:
            plan.fit_to_narration(shot_id, shot.narration_seconds(found[shot.speech].take))


def _read_sidecar(step: Step, store: Store) -> Sidecar | None:
    try:
        return Sidecar.model_validate_json(store.get(sidecar_path(step.kind, step.key)))
    except (FileNotFoundError, ValidationError):
        return None  # a sidecar that does not parse commits nothing
