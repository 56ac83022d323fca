"""Assembly: clips from takes and programmes from clips, on this machine and never on a lane.

await assembly_bench()      # a worker: pulls clips and programmes while there are any to come
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import task

from callsheet.media.assembly import ClipParts, build_clip, build_programme
from callsheet.media.audio import OUTPUT_RATE, audio_seconds, read_sound
from callsheet.media.loudness import Loudness
from callsheet.media.video import probe_video
from callsheet.plan import (
    LOUDNESS_LUFS,
    TRUE_PEAK_DBTP,
    Canvas,
    PictureInputs,
    ProgrammeInputs,
    ShotPlan,
    Step,
    clip_seconds,
)
from callsheet.takes import Attempt, Check
from tasks.checks import settle_attempt, settle_failure
from tasks.keeping import keep, keep_poster
from tasks.narration import narration
from tasks.policy import UNCACHED
from tasks.production import Production

#: How far the loudness of a programme may be from what was asked for, in LU (Apple allows 1).
LOUDNESS_TOLERANCE = 0.5


@dataclass(frozen=True)
class Built:
    """A clip or programme in the scratch folder, what was found in it, and how long it took to build, in seconds."""

    path: Path
    checks: list[Check]
    seconds: float = 0.0


@task(name="assemble_clip", task_run_name="{step_name}", **UNCACHED)
async def assemble_clip(step_name: str, key: str) -> Built:
    """One shot's clip: its picture and its narration, or its narration alone."""
    production = Production.current()
    step = production.step(key)
    shot = production.batch.plan.shots_with(key)[0]
    parts = await clip_parts(production, shot)
    target = production.scratch_file(step, ".mp4" if parts.canvas else ".wav")
    await build_clip(parts, target, production.scratch)
    checks = await asyncio.to_thread(_clip_checks, production, shot, parts, target)
    return Built(target, checks)


@task(name="assemble_programme", task_run_name="{step_name}", **UNCACHED)
async def assemble_programme(step_name: str, key: str) -> Built:
    """One title's programme: all its clips, at one loudness."""
    production = Production.current()
    step = production.step(key)
    assert isinstance(step.inputs, ProgrammeInputs)
    clips: list[tuple[ClipParts, Path]] = []
    for clip in step.inputs.clips:
        shot = production.batch.plan.shots_with(clip)[0]
        clips.append((await clip_parts(production, shot), await production.take(clip)))
    target = production.scratch_file(step, ".mp4" if step.inputs.canvas else ".m4a")
    loudness = await build_programme(clips, target, production.scratch)
    checks = await asyncio.to_thread(_programme_checks, [parts for parts, _ in clips], loudness, target)
    return Built(target, checks)


async def assembly_bench() -> None:
    """Pulls clips and programmes until there will be no more; what is built is stored beside it."""
    production = Production.current()
    while step := await production.next_step(None):
        if (built := await _build(production, step)) is not None:
            await production.in_background(_keep(production, step, built))


async def clip_parts(production: Production, shot: ShotPlan) -> ClipParts:
    """What the shot's clip is built from, as local files."""
    takes = production.batch.takes
    spoken = shot.narration_seconds(takes[shot.speech].take) if shot.speech else None
    pictures = tuple([await production.take(key) for key in shot.pictures])
    seconds = clip_seconds(shot.shot, spoken, sum(takes[key].take.length for key in shot.pictures))
    return ClipParts(
        narration=await narration(production, shot.speech, shot.pauses) if shot.speech else None,
        pictures=pictures,
        canvas=shot.canvas,
        seconds=seconds,
    )


async def _build(production: Production, step: Step) -> Built | None:
    """Builds what the step says; None where that failed, which is settled then."""
    started = time.monotonic()
    try:
        run = assemble_clip if step.kind == "clip" else assemble_programme
        built = await run(step.name, step.key)
        production.drop(_used_up(production, step))
    except Exception as error:  # it costs its shot and not the batch
        await settle_failure(production, step, None, error)
        return None
    return replace(built, seconds=round(time.monotonic() - started, 3))


async def _keep(production: Production, step: Step, built: Built) -> None:
    """Brings what was built into the store and commits it."""
    production.looked_at()
    try:
        n = production.batch.attempt_number(step)
        length = next((check.value for check in built.checks if check.name == "seconds"), 0.0)
        assert isinstance(length, float)
        if step.kind == "clip" and production.batch.plan.shots_with(step.key)[0].canvas is not None:
            await asyncio.to_thread(keep_poster, production, step.key, built.path)
        attempt = Attempt(n=n, length=length, seconds=built.seconds, checks=tuple(built.checks))
        attempt = await keep(production, step, attempt, built.path, wanted=_in_programme(production, step))
        await settle_attempt(production, step, None, attempt)
    except Exception as error:
        await settle_failure(production, step, None, error)


def _in_programme(production: Production, step: Step) -> bool:
    plan = production.batch.plan
    return step.kind == "clip" and any(shot.shot.title for shot in plan.shots_with(step.key))


def _used_up(production: Production, step: Step) -> list[str]:
    """The takes that nothing more is built from once this is: those of a programme's shots, or of a shot alone."""
    plan = production.batch.plan
    if isinstance(step.inputs, ProgrammeInputs):
        shots = [shot for clip in step.inputs.clips for shot in plan.shots_with(clip)]
    else:
        shots = [] if _in_programme(production, step) else plan.shots_with(step.key)
    used = {key for shot in shots for key in shot.keys if key in production.batch.takes}
    return [key for key in used if len(plan.shots_with(key)) == 1]


def _clip_checks(production: Production, shot: ShotPlan, parts: ClipParts, path: Path) -> list[Check]:
    """Whether picture and sound are as long as they must be, and the picture covers the clip."""
    if parts.canvas is None:
        seconds = read_sound(path).seconds
        return [Check.within("seconds", seconds, parts.seconds - 1e-3, parts.seconds + 1e-3)]
    checks = _picture_and_sound(path, parts.canvas, parts.frames)
    steps = [production.step(key) for key in shot.pictures]
    fps = [step.inputs.fps for step in steps if isinstance(step.inputs, PictureInputs)]
    if fps and all(fps):
        lengths = [production.batch.takes[key].take.length for key in shot.pictures]
        covered = sum(lengths) - sum(1 / rate for rate in fps[1:])
        checks.append(Check.within("picture_covers_seconds", covered, round(parts.seconds - 1 / fps[-1], 3)))
    return checks


def _programme_checks(clips: list[ClipParts], loudness: Loudness, path: Path) -> list[Check]:
    canvas = clips[0].canvas
    if canvas is None:
        wanted = sum(clip.samples for clip in clips) / OUTPUT_RATE
        checks = [Check.within("seconds", audio_seconds(path), wanted - 0.05, wanted + 0.05)]
    else:
        checks = _picture_and_sound(path, canvas, sum(clip.frames for clip in clips))
    if loudness.is_audible:
        low, high = LOUDNESS_LUFS - LOUDNESS_TOLERANCE, LOUDNESS_LUFS + LOUDNESS_TOLERANCE
        checks.append(Check.within("loudness_lufs", loudness.integrated_lufs, low, high))
        checks.append(Check.within("true_peak_dbtp", loudness.true_peak_dbtp, None, TRUE_PEAK_DBTP))
    return checks


def _picture_and_sound(path: Path, canvas: Canvas, frames: int) -> list[Check]:
    facts = probe_video(path, look=False)
    frame = 1 / canvas.fps
    # An AAC stream ends with its last packet of 1,024 samples, 21 ms.
    sound = (facts.audio_seconds or 0.0) - facts.seconds
    return [
        Check.equals("size", f"{facts.width}x{facts.height}", f"{canvas.width}x{canvas.height}"),
        Check.within("frames", float(facts.frames), frames, frames),
        Check.within(
            "seconds", facts.seconds, round(frames * frame - frame, 4), round(frames * frame + frame, 4)
        ),
        Check.within("sound_longer_by_seconds", sound, round(-frame, 4), round(max(frame, 0.03), 4)),
        Check.equals("format", f"{facts.codec} {facts.pixel_format}", "h264 yuv420p"),
    ]
