"""Pictures: images, videos and avatars, each one prompt of a ComfyUI workflow on one lane."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from pathlib import Path

from prefect import task

from callsheet.engines.comfyui import ComfyUI
from callsheet.errors import CallsheetError, OutOfMemory
from callsheet.fleet import Lane
from callsheet.inputs import InputFile
from callsheet.media.video import last_frame
from callsheet.plan import PictureInputs, heard_seconds
from callsheet.workflow import Value
from tasks.narration import narration
from tasks.policy import RETRIED
from tasks.production import Made, Production

#: Folder of a host's inputs and outputs that is ours.
HOST_FOLDER = "callsheet"


@task(name="generate_image", task_run_name="{step_name}", **RETRIED)
async def generate_image(step_name: str, key: str, lane_name: str) -> Made:
    """A still picture."""
    return await _generate(key, lane_name, ".png")


@task(name="generate_video", task_run_name="{step_name}", **RETRIED)
async def generate_video(step_name: str, key: str, lane_name: str) -> Made:
    """A silent clip, from a prompt or from a first frame."""
    return await _generate(key, lane_name, ".mp4")


@task(name="generate_avatar", task_run_name="{step_name}", **RETRIED)
async def generate_avatar(step_name: str, key: str, lane_name: str) -> Made:
    """A portrait that speaks the shot's narration, as long as that takes."""
    return await _generate(key, lane_name, ".mp4")


async def _generate(key: str, lane_name: str, suffix: str) -> Made:
    """Uploads the inputs and runs the graph. The result is still on the host then."""
    production = Production.current()
    step, lane = production.step(key), production.lane(lane_name)
    inputs, client = step.inputs, production.clients[lane.engine_name]
    assert isinstance(inputs, PictureInputs)
    assert isinstance(client, ComfyUI)
    seed = production.batch.seed_of(step)
    values: dict[str, Value] = {**inputs.values, "SEED": seed}
    windows = 1
    if inputs.image is not None:
        values["IMAGE"] = await client.upload(await _image(production, inputs), HOST_FOLDER)
    if inputs.audio is not None:
        spoken = await narration(production, inputs.audio, inputs.pauses)
        values["AUDIO"] = await client.upload(spoken, HOST_FOLDER)
        seconds = heard_seconds(production.batch.takes[inputs.audio].take, inputs.pauses)
        windows = inputs.workflow.windows_for(seconds + inputs.pause_after)
    unnamed = inputs.workflow.render({**values, "FILENAME_PREFIX": HOST_FOLDER}, windows)
    await client.preflight(unnamed, inputs.workflow)
    prompt_id = await client.claim(key, production.batch.attempt_number(step), unnamed)
    production.prompts[key] = prompt_id
    # A name of its own for each prompt: a cached prompt points at the first one's file (facts, 1.5).
    values["FILENAME_PREFIX"] = f"{HOST_FOLDER}/{key[:16]}/{prompt_id}"
    graph = inputs.workflow.render(values, windows)
    production.check_lease()
    try:
        output = await client.run(
            graph, inputs.workflow.output, prompt_id, step.seconds, signature=step.signature, owner=key
        )
    except OutOfMemory:
        with contextlib.suppress(CallsheetError):  # its failure must not hide this one
            await client.free()
        raise
    target = production.scratch_file(step, Path(output.filename).suffix.lower() or suffix)
    return Made(target, seed, windows, output=output, prompt_id=prompt_id)


async def fetch_result(production: Production, lane: Lane, made: Made) -> None:
    """Brings a picture home from its host, beside the lane; no task, because each costs the Prefect server 25 ms.

    Raises:
        Lost: the file is gone from the host.
        Transient: the download broke each time that it was begun.
    """
    client = production.clients[lane.engine_name]
    assert isinstance(client, ComfyUI)
    assert made.output is not None
    assert made.path is not None
    await client.download(made.output, made.path, made.prompt_id)


async def _image(production: Production, inputs: PictureInputs) -> Path:
    """The first image: a file, another shot's picture, or the last frame of the clip before."""
    if isinstance(inputs.image, InputFile):
        return inputs.image.path
    assert inputs.image is not None
    media = await production.take(inputs.image.key)
    if inputs.image.frame == "picture":
        return media
    frame = production.scratch / f"{inputs.image.key[:16]}-last.png"
    if not frame.exists():
        part = frame.with_suffix(f".{uuid.uuid4().hex}.png")
        await asyncio.to_thread(last_frame, media, part)
        part.replace(frame)
    return frame
