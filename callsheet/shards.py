"""Shards: a plan cut into parts that machines make one by one, and what a part came to.

    for number, shots in enumerate(cut(plan, missing, size=200)): ...

Takes that several shots need are made by one shard, so that nobody pays for them twice: shots that share a take
which is not there yet are never parted. Where more share one than a shard holds, the first of them goes before all
others (`shared_first`). Beyond that a programme's shots stay together where they fit into a shard. Programmes are
joined by whoever cut the plan, when all shards are there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from uuid import UUID

from pydantic import BaseModel, Field

from callsheet.manifest import ManifestLane, ShotFailure
from callsheet.plan import Plan

#: What the id of a run may be: it stands in paths.
RUN_ID = r"^[0-9a-f-]{8,36}$"
#: Which run of `produce` looks after the shards, and on which Prefect server.
RUN_FILE = "run.json"


@dataclass(frozen=True)
class _Bundle:
    """Shots that must be made together, by their place in the script."""

    title: str
    shots: tuple[str, ...]


class ShardResult(BaseModel):
    """What a run of a shard came to.

    Attributes:
        failures: by take key, why a step was given up.
        made: keys of the takes that it committed.
        spent: $ of engine time, whatever came of it.
    """

    failures: dict[str, ShotFailure] = Field(default_factory=dict)
    made: list[str] = Field(default_factory=list)
    spent: float = 0.0
    lanes: list[ManifestLane] = Field(default_factory=list)


def shards_path(batch: str, run: str = "", name: str = "") -> str:
    """Where a run of a batch keeps its shards, and what stands there.

    Raises:
        ValueError: ``run`` is no id of a run.
    """
    if run and not re.match(RUN_ID, run):
        raise ValueError(f"{run!r} is no id of a run")
    return f"batches/{batch}/shards/" + (f"{run}/" if run else "") + name


def plan_name(number: int) -> str:
    """The plan of a shard; without it no run of the shard begins."""
    return f"plan-{number}.json"


def result_name(number: int, flow_run: UUID | str) -> str:
    """Where a run leaves what came of its shard: a name of its own, so that a dead one's is never taken for it."""
    return f"result-{number}-{flow_run}.json"


def shared_first(plan: Plan, missing: Collection[str], size: int) -> list[str]:
    """The shots that make what more than ``size`` shots share; when they are done, the others can be parted."""
    first: dict[str, None] = {}
    for bundle in _bundles(plan, _wanted(plan, missing), plan.shots):
        if len(bundle.shots) > size:
            makers: dict[str, str] = {}
            for shot_id in bundle.shots:
                for key in _needed(plan, shot_id).intersection(missing):
                    if makers.setdefault(key, shot_id) != shot_id:
                        first[makers[key]] = None
    return list(first)


def cut(
    plan: Plan, missing: Collection[str], size: int, shots: Collection[str] | None = None
) -> list[tuple[str, ...]]:
    """The shots that need a take of ``missing``, in groups of about ``size``, in the order of the script.

    Args:
        shots: no others than these.
    """
    shards: list[list[str]] = []
    room = 0
    for bundles in _by_title(_bundles(plan, _wanted(plan, missing), plan.shots if shots is None else shots)):
        count = sum(len(bundle.shots) for bundle in bundles)
        # A programme that fits into a shard of its own is not cut to fill up the one before.
        if room < count <= size:
            room = 0
        for bundle in bundles:
            if room <= 0 or (len(bundle.shots) > room and shards[-1]):
                shards.append([])
                room = size
            shards[-1] += bundle.shots
            room -= len(bundle.shots)
    return [tuple(shard) for shard in shards]


def _by_title(bundles: Iterable[_Bundle]) -> Iterable[list[_Bundle]]:
    titles: dict[str, list[_Bundle]] = {}
    for bundle in bundles:
        titles.setdefault(bundle.title, []).append(bundle)
    return titles.values()


def _wanted(plan: Plan, missing: Collection[str]) -> set[str]:
    return set(missing) - set(plan.programmes.values())


def _needed(plan: Plan, shot_id: str) -> set[str]:
    """The takes of a shot, and those of others that they are made from."""
    return {need for key in plan.shots[shot_id].keys for need in (key, *plan.steps[key].needs)}


def _bundles(plan: Plan, wanted: set[str], shots: Collection[str]) -> list[_Bundle]:
    """Those of the shots that need one of these takes; those that share one are one bundle."""
    leader: dict[str, str] = {}

    def lead(shot_id: str) -> str:
        while leader[shot_id] != shot_id:
            leader[shot_id] = shot_id = leader[leader[shot_id]]
        return shot_id

    makers: dict[str, str] = {}
    for shot_id in plan.shots:
        if shot_id not in shots or not (keys := _needed(plan, shot_id) & wanted):
            continue
        leader[shot_id] = shot_id
        for key in keys:
            leader[lead(shot_id)] = lead(makers.setdefault(key, shot_id))
    groups: dict[str, list[str]] = {}
    for shot_id in leader:
        groups.setdefault(lead(shot_id), []).append(shot_id)
    return [_Bundle(plan.shots[shots[0]].shot.title, tuple(shots)) for shots in groups.values()]
