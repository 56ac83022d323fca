"""Checks: every attempt is looked at before it may become a take, beside the lanes and not on them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import soundfile
from prefect import task

from callsheet.engines.comfyui_answers import Lost
from callsheet.engines.speech import CosyVoice
from callsheet.errors import HostFault, Transient, reason_of
from callsheet.fleet import Lane
from callsheet.media.audio import read_sound
from callsheet.media.narration import check_pieces, narration_seconds
from callsheet.media.speech import Line, Measured, Neighbours
from callsheet.media.video import check_image, check_video, probe_video
from callsheet.plan import PictureInputs, SpeechInputs, Step, heard_seconds
from callsheet.takes import Attempt, Check, Sidecar, SpokenPiece
from tasks.keeping import commit, keep
from tasks.logs import log_fault, run_logger, step_line
from tasks.policy import UNCACHED
from tasks.production import Made, Production
from tasks.visuals import fetch_result


@dataclass(frozen=True)
class Findings:
    """What was found in one attempt.

    Attributes:
        length: seconds of media as it will be used; 0 for a picture.
        pieces: of a narration, where its pieces lie.
        measured: of a narration, each piece as a neighbour of the lines to come.
    """

    checks: tuple[Check, ...]
    length: float
    pieces: tuple[SpokenPiece, ...] = ()
    measured: tuple[Measured, ...] = ()


@task(name="check_take", task_run_name="check {step_name}", **UNCACHED)
async def check_take(
    step_name: str, key: str, lane_name: str, path: str, windows: int, ends: list[float]
) -> Findings:
    """What is found in one attempt. ``ends`` are those of a narration's pieces in its file, in seconds."""
    production = Production.current()
    step, lane = production.step(key), production.lane(lane_name)
    if step.kind == "speech":
        return await asyncio.to_thread(_check_narration, production, step, lane, Path(path), ends)
    return await asyncio.to_thread(_check_picture, production, step, Path(path), windows)


async def keep_attempt(
    production: Production, step: Step, lane: Lane, made: Made, seconds: float, cost: float
) -> None:
    """Fetches what was made, checks it, keeps it in the store, and settles whether it is the take."""
    try:
        if made.output is not None:
            await fetch_result(production, lane, made)
        await _refuse_twins(production, step, lane, made)
        async with production.bench:
            attempt = await _look(production, step, lane, made, seconds, cost)
        production.looked_at()
        if made.path is not None:
            attempt = await keep(production, step, attempt, made.path, wanted=attempt.passed)
        await settle_attempt(production, step, lane, attempt)
    except Lost as fault:
        async with production.changing() as batch:
            made_again = batch.again(step)
        if not made_again:
            await settle_failure(production, step, lane, fault)
    except (HostFault, Transient) as fault:
        production.forget(step.key)
        await settle_failure(production, step, lane, fault)
    except Exception as error:
        await settle_failure(production, step, None, error)


async def settle_attempt(production: Production, step: Step, lane: Lane | None, attempt: Attempt) -> None:
    """An attempt was looked at: it is the take, is made again, or is what the shot is given up for."""
    async with production.changing() as batch:
        sidecar = batch.add_attempt(step, attempt)
        is_over = step.key in batch.queue.failures
    if sidecar is None:
        what = "could not be used" if is_over else "is made again"
        text = f"attempt {attempt.n} {what}: {'; '.join(attempt.faults)}"
        run_logger().warning("%s", step_line(step, lane, text))
    await _commit(production, step, sidecar)


async def settle_failure(production: Production, step: Step, lane: Lane | None, error: Exception) -> None:
    """Does what the error's policy says: another lane, the best attempt so far, or the shot is given up."""
    async with production.changing() as batch:
        left_out_before = set(batch.queue.quarantined)
        sidecar = batch.fail(step, lane, error)
        is_over = step.key in batch.queue.failures
        if is_over:
            production.forget(step.key)
    what = f"failed: {reason_of(error)}"
    if left_out := set(batch.queue.quarantined) - left_out_before:
        what += f"; host {', '.join(left_out)} is left out"
    if not is_over and sidecar is None:
        what += "; another lane makes it"
    log_fault(step_line(step, lane, what), error)
    try:
        await _commit(production, step, sidecar)
    except Exception as fault:
        log_fault(step_line(step, lane, f"failed: {reason_of(fault)}"), fault)
        async with production.changing() as batch:
            batch.queue.fail(step, None, fault)


async def _refuse_twins(production: Production, step: Step, lane: Lane, made: Made) -> None:
    """Raises HostFault where the host answered two different texts at once with the same bytes."""
    for recording in made.recordings:
        if (other := await recording.flight.twin()) is not None:
            raise HostFault(
                f"{lane.host.name}/{lane.engine.name} answered two texts with the same bytes, "
                f'"{recording.flight.text[:60]}" and "{other[:60]}"'
            )


async def _commit(production: Production, step: Step, sidecar: Sidecar | None) -> None:
    if sidecar is not None:
        production.forget(step.key)
        await commit(production, step, sidecar)


async def _look(
    production: Production, step: Step, lane: Lane, made: Made, seconds: float, cost: float
) -> Attempt:
    """The attempt and what was found in it; where it lies is to come."""
    known: dict[str, Any] = {
        "n": production.batch.attempt_number(step),
        "seed": made.seed,
        "host": lane.host.name,
        "lane": lane.name,
        "seconds": round(seconds, 3),
        "cost": cost,
    }
    if made.path is None:
        return Attempt(error=made.error, **known)
    ends, at = [], 0.0
    for recording in made.recordings:
        at += recording.seconds
        ends.append(at)
    found = await check_take(step.name, step.key, lane.name, str(made.path), made.windows, ends)
    if step.kind == "speech":
        _learn(production, step, found, made)
    return Attempt(length=found.length, pieces=found.pieces, checks=found.checks, **known)


def _learn(production: Production, step: Step, found: Findings, made: Made) -> None:
    """Keeps the pieces that passed for a retake, and remembers how they sound; the others are asked for anew."""
    neighbours = _neighbours(production, step)
    bad = {check.piece or 0 for check in found.checks if not check.ok}
    for number, measured in enumerate(found.measured):
        if number in bad:
            production.recordings.get(step.key, {}).pop(number, None)
        elif production.heard.get((step.key, number)) is not made.recordings[number]:
            # A piece that was kept for a retake is one line, however often it is checked.
            production.heard[step.key, number] = made.recordings[number]
            neighbours.add(measured)


def _neighbours(production: Production, step: Step) -> Neighbours:
    assert isinstance(step.inputs, SpeechInputs)
    # An instruction changes how a voice sounds: those lines are neighbours of each other.
    who = f"{step.inputs.voice.voice} {step.inputs.instruct} {step.inputs.language}"
    return production.neighbours.setdefault((who, step.engine, step.revision), Neighbours())


def _check_narration(
    production: Production, step: Step, lane: Lane, path: Path, ends: list[float]
) -> Findings:
    """Each piece of a narration, and where speech is in it."""
    inputs, client = step.inputs, production.clients[lane.engine_name]
    assert isinstance(inputs, SpeechInputs)
    assert isinstance(client, CosyVoice)
    try:
        sound = read_sound(path)
    except (soundfile.LibsndfileError, OSError) as error:
        return Findings((Check(name="readable", value=str(error), ok=False),), 0.0)
    profile = production.profile(inputs.voice)
    lines = [Line(text, client.sample_rate, inputs.speed, profile) for text in inputs.pieces]
    heard = check_pieces(sound, lines, ends, _neighbours(production, step))
    length = round(narration_seconds(heard.pieces), 4)
    return Findings(heard.checks, length, heard.pieces, heard.measured)


def _check_picture(production: Production, step: Step, path: Path, windows: int) -> Findings:
    inputs = step.inputs
    assert isinstance(inputs, PictureInputs)
    width, height = inputs.size
    if step.kind == "image":
        return Findings(tuple(check_image(path, width=width, height=height)), 0.0)
    workflow = inputs.workflow
    frames = workflow.frames_of_windows(windows) if inputs.audio else workflow.frames(inputs.values)
    spoken = None
    if inputs.audio is not None:
        spoken = heard_seconds(production.batch.takes[inputs.audio].take, inputs.pauses)
    checks = check_video(path, width=width, height=height, frames=frames, fps=inputs.fps, spoken=spoken)
    try:
        length = round(probe_video(path, look=False).seconds, 4)
    except (RuntimeError, av.FFmpegError, ValueError, OSError):
        length = 0.0  # it cannot be read, which the checks say
    return Findings(tuple(checks), length)
