"""Shards: a plan cut into parts that machines make one by one, and what a part came to.

    for number, shots in enumerate(cut(plan, missing, size=200)): ...

Takes that several shots need are made by one shard, so that nobody pays for them twice: shots that share a take
which is not there yet are never parted. Beyond that a programme's shots stay together where they fit into a shard.
Programmes are joined by whoever cut the plan, when all shards are there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pydantic import BaseModel, Field

from callsheet.manifest import ManifestLane, ShotFailure
from callsheet.plan import Plan

#: What the id of a run may be: it stands in paths.
RUN_ID = r"^[0-9a-f-]{8,36}$"


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


def cut(plan: Plan, missing: Collection[str], size: int) -> list[tuple[str, ...]]:
    """The shots that need a take of ``missing``, in groups of about ``size``, in the order of the script."""
    programmes = set(plan.programmes.values())
    wanted = set(missing) - programmes
    shards: list[list[str]] = []
    room = 0
    for bundles in _by_title(_bundles(plan, wanted)):
        shots = sum(len(bundle.shots) for bundle in bundles)
        # A programme that fits into a shard of its own is not cut to fill up the one before.
        if room < shots <= size:
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


def _bundles(plan: Plan, wanted: set[str]) -> Iterable[_Bundle]:
    """The shots that need one of these takes; those that share one are one bundle."""
    leader: dict[str, str] = {}

    def lead(shot_id: str) -> str:
        while leader[shot_id] != shot_id:
            leader[shot_id] = shot_id = leader[leader[shot_id]]
        return shot_id

    makers: dict[str, str] = {}
    for shot_id, shot in plan.shots.items():
        keys = {need for key in shot.keys for need in (key, *plan.steps[key].needs)} & wanted
        if not keys:
            continue
        leader[shot_id] = shot_id
        for key in keys:
            leader[lead(shot_id)] = lead(makers.setdefault(key, shot_id))
    groups: dict[str, list[str]] = {}
    for shot_id in leader:
        groups.setdefault(lead(shot_id), []).append(shot_id)
    return [_Bundle(plan.shots[shots[0]].shot.title, tuple(shots)) for shots in groups.values()]
