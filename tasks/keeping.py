"""The end of a step: an attempt comes into the store, and its sidecar makes it the take.

attempt = await keep(production, step, attempt, path)      # with where it lies there
await commit(production, step, sidecar)                    # lets go what waited for it
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from pathlib import Path

from callsheet.media.video import poster
from callsheet.plan import ASSEMBLY, Step
from callsheet.publishing import poster_of
from callsheet.resume import find_take
from callsheet.takes import Attempt, Sidecar, sidecar_path
from tasks.logs import run_logger, take_line
from tasks.production import Production
from tasks.watching import tell


async def keep(
    production: Production, step: Step, attempt: Attempt, path: Path, *, wanted: bool = True
) -> Attempt:
    """Brings an attempt from the scratch folder into the store. Returns it with where it lies there, its hash and size.

    Args:
        wanted: whether something will be built from it.
    """
    target = production.target_of(step, attempt.n, path.suffix)
    is_paid_for = attempt.passed and step.engine != ASSEMBLY and production.store.is_shared
    spooled = is_paid_for and await _spooled(production, step, attempt, target, path)
    path = spooled or path
    attempt = attempt.model_copy(update=await production.deliveries.put(target, path))
    if spooled:
        with contextlib.suppress(OSError):
            production.undelivered.delivered(production.batch.sidecar_with(step, attempt))
    await asyncio.to_thread(production.copies.keep, attempt.file, path, wanted=wanted)
    return attempt


async def _spooled(
    production: Production, step: Step, attempt: Attempt, target: str, path: Path
) -> Path | None:
    """Puts what engines made where the next run finds it, should it not come into the store. None where that cannot be."""
    if production.undelivered.is_broken:
        return None
    draft = attempt.model_copy(update={"file": target, "bytes": _bytes_of(path)})
    try:
        return await asyncio.to_thread(
            production.undelivered.add, production.batch.sidecar_with(step, draft), path
        )
    except OSError as error:
        production.undelivered.is_broken = True
        tell(f"takes that do not come into the store cannot be kept for the next run: {error}")
        return None


async def commit(production: Production, step: Step, sidecar: Sidecar) -> None:
    """Writes the sidecar, which makes the take one, says so, and lets go what waited for it.

    Where another run has committed the same take meanwhile, that one is used.

    Raises:
        LeaseLost: this run makes a shard that may be another's by now.
    """
    production.check_lease()
    committed = await production.deliveries.call(partial(_write_sidecar, production, step, sidecar))
    production.undelivered.remove(step.key)
    async with production.changing() as batch:
        batch.commit(step, committed, ours=committed == sidecar)
    if committed == sidecar:
        level = logging.WARNING if sidecar.needs_review else logging.INFO
        run_logger().log(level, "%s", take_line(step, sidecar))


def _write_sidecar(production: Production, step: Step, sidecar: Sidecar) -> Sidecar:
    """Writes over nothing but what this run found, and knows to be out of date. Returns what stands there then."""
    store, path = production.store, sidecar_path(step.kind, step.key)
    content = sidecar.model_dump_json(indent=1).encode()
    version: str | None = None
    while not store.put_if(path, content, version):
        version = store.version(path)
        other = find_take(step, store)
        if other and other.sources == sidecar.sources and other != production.batch.found.get(step.key):
            return other
    return sidecar


def keep_poster(production: Production, key: str, path: Path) -> None:
    """Makes the poster of a clip while it lies here; it is published with the batch."""
    _poster_file(production, key).write_bytes(poster(path))


def poster_in(production: Production, clip: Sidecar) -> bytes:
    """The poster of a clip: as this run made it, or from the clip in the store."""
    made = _poster_file(production, clip.key)
    return made.read_bytes() if made.exists() else poster_of(production.store, clip)


def _poster_file(production: Production, key: str) -> Path:
    return production.scratch / f"poster-{key}.jpg"


def _bytes_of(path: Path) -> int:
    return path.stat().st_size
