"""Repairs what `callsheet.store_check` found.

    check = repair(store, check_store(store, now=now), now=now)      # may be killed anywhere, and done again

Repairing never deletes media of a take whose sidecar is fine, and leaves alone what a run is at work on. A take that is
broken is forgotten, sidecar first, so that the next run makes it again; one that only lost its sidecar gets it back from
a batch's journal, so that nobody pays twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from callsheet.errors import LeaseLost
from callsheet.needed import read_all_needs, read_needs
from callsheet.store import Store
from callsheet.store_census import at_work, held_batch, take_census
from callsheet.store_check import Finding, StoreCheck, guarded
from callsheet.takes import sidecar_path

#: So many takes are repaired before it is asked anew who is at work.
_CHUNK = 500


def repair(store: Store, check: StoreCheck, *, now: float) -> StoreCheck:
    """Repairs what was found and can be repaired.

    Returns:
        The same findings, each with what became of it.

    Raises:
        StoreFault: the store cannot be written; what was repaired before is.
    """
    todo = [finding for finding in check.findings if finding.is_repairable and finding.state == "found"]
    done = _repair_takes(store, [finding for finding in todo if not finding.batch], now)
    for batch in sorted({finding.batch for finding in todo if finding.batch}):
        done |= _repair_batch(store, batch, [finding for finding in todo if finding.batch == batch], now)
    return replace(check, findings=tuple(done.get(finding.path, finding) for finding in check.findings))


def _repair_takes(store: Store, findings: Sequence[Finding], now: float) -> dict[str, Finding]:
    """Repairs takes. Asks every now and then who is at work, for a run may begin meanwhile."""
    done: dict[str, Finding] = {}
    with ThreadPoolExecutor(store.at_once) as pool:
        for start in range(0, len(findings), _CHUNK):
            one = partial(_repair_take, store, _guarded_now(store, now))
            for finding in pool.map(one, findings[start : start + _CHUNK]):
                done[finding.path] = finding
    return done


def _repair_take(store: Store, guarded: Mapping[str, str], finding: Finding) -> Finding:
    if finding.key in guarded:
        why = f"a run began on batch {guarded[finding.key]}, which needs it"
        return replace(finding, state="left", why=why)
    if not finding.still():
        return replace(finding, state="repaired", why="somebody else was faster")
    for path in finding.deletes:
        store.delete(path)
    if finding.writes:
        # Another may commit it at this moment; then that is what stands.
        sidecar = finding.writes
        content = sidecar.model_dump_json(indent=1).encode()
        store.put_if(sidecar_path(sidecar.kind, sidecar.key), content, None)
    return replace(finding, state="repaired")


def _repair_batch(store: Store, batch: str, findings: Sequence[Finding], now: float) -> dict[str, Finding]:
    """Deletes what a batch does not name, while no run can begin on it."""
    done: dict[str, Finding] = {}
    with held_batch(store, batch, now) as check:
        if check is None:
            why = f"a run began on batch {batch}"
            return {finding.path: replace(finding, state="left", why=why) for finding in findings}
        needs = read_needs(store, batch)
        named = needs.manifest.files if needs.manifest else {}
        for finding in findings:
            if finding.path in named or needs.unreadable:
                done[finding.path] = replace(finding, state="left", why=f"batch {batch} was run meanwhile")
                continue
            try:
                check()
            except LeaseLost as error:
                done[finding.path] = replace(finding, state="left", why=str(error))
                continue
            for path in finding.deletes:
                store.delete(path)
            done[finding.path] = replace(finding, state="repaired")
    return done


def _guarded_now(store: Store, now: float) -> dict[str, str]:
    batches = take_census(store, "batches/").batches.values()
    return guarded(read_all_needs(store, [batch.name for batch in batches if at_work(store, batch, now)]))
