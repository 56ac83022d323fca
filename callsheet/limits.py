"""The limits that all runs which share a fleet go by: what each is called, and how much it allows.

    limits_of(fleet)       # {"lane:a10-1:lighttts": 4, "vram:a10-1": 12, …}

A lane is a place on an engine: `lane:<host>:<engine>` has as many slots as the engine. The memory that a host's
engines share by turns is `vram:<host>`, a slot for each GB. How many lanes may be busy at once, whichever they
are, is the limit of the tag `gpu`. The limits are kept by a Prefect server (`tasks.locks`).
"""

from __future__ import annotations

import math

from callsheet.fleet import SPEECH, Fleet, Host, Lane

GPU_TAG = "gpu"
#: What Prefect calls the limit of that tag.
GPU_LIMIT = f"tag:{GPU_TAG}"
_LANE = "lane:"


def lane_limit(lane: Lane) -> str:
    """The limit that a lane takes its place from."""
    return f"{_LANE}{lane.host.name}:{lane.engine.name}"


#: Runs that may use a rented host at once; who gives it back has all the slots first.
USERS = 1000


def use_limit(host: str) -> str:
    """The limit of which each run that uses a rented host holds one slot."""
    return f"host:{host}"


def host_limits(host: str) -> tuple[str, ...]:
    """How the names of a host's limits begin."""
    return f"{_LANE}{host}:", vram_limit(host), use_limit(host)


def vram_limit(host: str) -> str:
    """The limit of a host's GPU memory."""
    return f"vram:{host}"


def waiting_limit(name: str) -> str:
    """Where those are counted who wait for slots of ``name``."""
    return f"waiting:{name}"


def is_lane_limit(name: str) -> bool:
    return name.startswith(_LANE)


def vram_slots(lane: Lane, vram_gb: float) -> int:
    """Slots of the host's memory that a model of ``vram_gb`` takes on this lane's engine; 0 where it holds its own.

    A speech server has one model, whose size is the engine's own.
    """
    if lane.engine.resident:
        return 0
    return math.ceil(lane.engine.vram_gb if SPEECH in lane.engine.facts.makes else vram_gb)


def vram_limit_slots(host: Host) -> int:
    """How many slots the limit of a host's memory has."""
    return math.floor(host.free_vram_gb)


def limits_of(fleet: Fleet) -> dict[str, int]:
    """Every limit of the fleet's lanes and hosts, by name."""
    limits = {lane_limit(lane): lane.engine.slots for lane in fleet.lanes()}
    limits |= {vram_limit(host.name): vram_limit_slots(host) for host in fleet.hosts}
    return limits
