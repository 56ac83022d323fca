"""Checks: every attempt is looked at before it may become a take, beside the lanes and not on them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import av
from prefect import task
from prefect.logging import get_run_logger

from callsheet.engines.speech import SAMPLE_RATES
from callsheet.errors import reason_of
from callsheet.fleet import Lane
from callsheet.media.audio import check_speech, read_sound
from callsheet.media.video import check_image, check_video, probe_video
from callsheet.plan import PictureInputs, SpeechInputs, Step
from callsheet.takes import Attempt, Check, Sidecar, sidecar_path
from tasks.policy import UNCACHED
from tasks.production import Made, Production


@task(name="check_take", task_run_name="check {step_name}", **UNCACHED)
async def check_take(step_name: str, key: str, lane_name: str, path: str, windows: int) -> list[Check]:
    """What is measured on one attempt."""
    production = Production.current()
    return await asyncio.to_thread(
        _checks, production.step(key), production.lane(lane_name), Path(path), windows
    )


async def keep_attempt(
    production: Production, step: Step, lane: Lane, made: Made, seconds: float, cost: float
) -> None:
    """Checks what was made, keeps it in the store, and settles whether it is the take."""
    try:
        async with production.bench:
            attempt = await _attempt(production, step, lane, made, seconds, cost)
        if attempt.faults:
            get_run_logger().warning(
                "%s: %s on %s: attempt %d: %s",
                production.batch.name, step.name, lane.name, attempt.n, "; ".join(attempt.faults),
            )  # fmt: skip
        async with production.changing() as batch:
            sidecar = batch.add_attempt(step, attempt)
        await _commit(production, step, sidecar)
    except Exception as error:
        await settle_failure(production, step, None, error)


async def settle_failure(production: Production, step: Step, lane: Lane | None, error: Exception) -> None:
    """Does what the error's policy says: another lane, the best attempt so far, or the shot is given up."""
    async with production.changing() as batch:
        sidecar = batch.fail(step, lane, error)
    try:
        await _commit(production, step, sidecar)
    except Exception as fault:
        get_run_logger().error("%s: %s: %s", production.batch.name, step.name, reason_of(fault))
        async with production.changing() as batch:
            batch.queue.fail(step, None, fault)


async def _commit(production: Production, step: Step, sidecar: Sidecar | None) -> None:
    if sidecar is not None:
        await production.commit(step, sidecar, sidecar_path(step.kind, step.key))


async def _attempt(
    production: Production, step: Step, lane: Lane, made: Made, seconds: float, cost: float
) -> Attempt:
    n = production.batch.attempt_number(step)
    known = {
        "n": n,
        "seed": made.seed,
        "host": lane.host.name,
        "lane": lane.name,
        "seconds": round(seconds, 3),
        "cost": cost,
    }
    if made.path is None:
        return Attempt(file="", sha256="", bytes=0, error=made.error, **known)
    checks = await check_take(step.name, step.key, lane.name, str(made.path), made.windows)
    length, spoken = await asyncio.to_thread(_length, step, made.path)
    kept = await production.keep(step, n, made.path)
    return Attempt(length=length, spoken=spoken, checks=tuple(checks), **known, **kept)


def _checks(step: Step, lane: Lane, path: Path, windows: int) -> list[Check]:
    inputs = step.inputs
    if isinstance(inputs, SpeechInputs):
        rate = SAMPLE_RATES[lane.engine.model] if lane.engine.kind == "cosyvoice" else 24_000
        return check_speech(
            path, text=inputs.text, language=inputs.language, speed=inputs.speed, sample_rate=rate
        )
    assert isinstance(inputs, PictureInputs)
    width, height = inputs.size
    if step.kind == "image":
        return check_image(path, width=width, height=height)
    workflow = inputs.workflow
    frames = workflow.frames_of_windows(windows) if inputs.audio else workflow.frames(inputs.values)
    return check_video(path, width=width, height=height, frames=frames, fps=inputs.fps)


def _length(step: Step, path: Path) -> tuple[float, tuple[float, float] | None]:
    """Seconds of media, and for speech where it begins and ends; zero where it cannot be read."""
    try:
        if step.kind == "speech":
            sound = read_sound(path)
            start, end = sound.spoken()
            return round(sound.seconds, 4), (round(start, 3), round(end, 3))
        return (0.0 if step.kind == "image" else round(probe_video(path, look=False).seconds, 4)), None
    except (RuntimeError, av.FFmpegError, ValueError, OSError):
        return 0.0, None
