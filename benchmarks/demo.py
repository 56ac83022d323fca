"""How long the demo takes: cold, warm and again; and the same engine calls with nothing around them.

    .venv/bin/python benchmarks/demo.py            # a table, and JSON as the last line
    .venv/bin/python benchmarks/demo.py --quick    # without the warm one

cold    an empty home: the Prefect server makes its database first
warm    an empty store, the database there already
again   everything done already
bare    the plan's engine calls by the clients alone, lane beside lane: no Prefect, checks, clips or store

Whole processes are timed, as a person waits for them. Machines here are noisy: compare the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from callsheet.engines.comfyui import ComfyUI
from callsheet.engines.requests import speech_request
from callsheet.engines.speech import CosyVoice, LightTTS, write_wav
from callsheet.fleet import Lane, read_fleet
from callsheet.inputs import InputFile
from callsheet.media.audio import read_sound
from callsheet.media.video import last_frame
from callsheet.parameters import ProduceParameters
from callsheet.plan import ASSEMBLY, PictureInputs, Plan, SpeechInputs, Step
from callsheet.process import served_by

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "data" / "demo.csv"
COLD_TARGET, AGAIN_TARGET = 90.0, 15.0


def run_demo(store: Path, home: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of one `callsheet run` of the demo, and what it printed."""
    command = [
        str(Path(sys.executable).with_name("callsheet")),
        "run",
        str(DEMO),
        "--store",
        str(store),
        "--json",
    ]
    began = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "CALLSHEET_HOME": str(home)}, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])


async def bare_engines(folder: Path) -> float:
    """Seconds that the demo's engine calls take by themselves, each lane one call after the other."""
    plan = ProduceParameters(script=DEMO).plan(read_fleet("draft"))
    async with served_by("gpu_service", "--draft", "--with-parent") as url:
        began = time.perf_counter()
        made: dict[str, asyncio.Future[Path]] = {
            key: asyncio.get_running_loop().create_future()
            for key in plan.steps
            if plan.steps[key].engine != ASSEMBLY
        }
        await asyncio.gather(*(_lane(plan, lane, url, folder, made) for lane in plan.fleet.lanes()))
        return time.perf_counter() - began


async def _lane(
    plan: Plan, lane: Lane, url: str, folder: Path, made: dict[str, asyncio.Future[Path]]
) -> None:
    clients = {"cosyvoice": CosyVoice, "lighttts": LightTTS, "comfyui": ComfyUI}
    # Speech first, stills next, then what waits for them: the order in which nothing waits for long.
    order = ("speech", "image", "video", "avatar")
    steps = sorted((s for s in plan.steps.values() if s.runs_on(lane)), key=lambda s: order.index(s.kind))
    async with clients[lane.engine.kind](url, name=lane.name) as client:
        for step in steps:
            if isinstance(client, ComfyUI):
                made[step.key].set_result(await _picture(client, step, folder, made))
            else:
                made[step.key].set_result(await _speech(client, step, folder))


async def _speech(client: CosyVoice, step: Step, folder: Path) -> Path:
    inputs = step.inputs
    assert isinstance(inputs, SpeechInputs)
    recording = await client.synthesize(speech_request(inputs, inputs.text, step.seconds))
    write_wav([recording], folder / f"{step.key}.wav")
    return folder / f"{step.key}.wav"


async def _picture(client: ComfyUI, step: Step, folder: Path, made: dict[str, asyncio.Future[Path]]) -> Path:
    inputs, windows = step.inputs, 1
    assert isinstance(inputs, PictureInputs)
    values = {**inputs.values, "SEED": 1, "FILENAME_PREFIX": f"bench/{step.key}"}
    if isinstance(inputs.image, InputFile):
        values["IMAGE"] = await client.upload(inputs.image.path, "bench")
    elif inputs.image is not None:
        source = await made[inputs.image.key]
        if inputs.image.frame == "last":
            last_frame(source, folder / f"{inputs.image.key}.png")
            source = folder / f"{inputs.image.key}.png"
        values["IMAGE"] = await client.upload(source, "bench")
    if inputs.audio is not None:
        narration = await made[inputs.audio]
        windows = inputs.workflow.windows_for(read_sound(narration).seconds + inputs.pause_after)
        values["AUDIO"] = await client.upload(narration, "bench")
    graph = inputs.workflow.render(values, windows)
    output = await client.run(graph, inputs.workflow.output, str(uuid.uuid4()), step.seconds)
    target = folder / f"{step.key}{Path(output.filename).suffix}"
    await client.download(output, target)
    return target


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    parser.add_argument("--quick", action="store_true", help="leave out the warm run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seconds: dict[str, float] = {}
        seconds["cold"], first = run_demo(folder / "one", folder / "home")
        if not options.quick:
            seconds["warm"], _ = run_demo(folder / "two", folder / "home")
        seconds["again"], again = run_demo(folder / "one", folder / "home")
        seconds["bare"] = asyncio.run(bare_engines(folder))
    table = Table("Run", "Seconds", "Over bare", "Takes made")
    takes = {"cold": first["takes_made"], "warm": first["takes_made"], "again": again["takes_made"]}
    for name, value in seconds.items():
        table.add_row(name, f"{value:.1f}", f"{value / seconds['bare']:.2f}", str(takes.get(name, "-")))
    if not options.json:
        Console().print(table)
    targets = [
        {
            "name": "cold_seconds",
            "value": round(seconds["cold"], 2),
            "target": COLD_TARGET,
            "met": seconds["cold"] < COLD_TARGET,
        },
        {
            "name": "again_seconds",
            "value": round(seconds["again"], 2),
            "target": AGAIN_TARGET,
            "met": seconds["again"] < AGAIN_TARGET,
        },
        {
            "name": "takes_made_again",
            "value": again["takes_made"],
            "target": 0,
            "met": again["takes_made"] == 0,
        },
    ]
    print(
        json.dumps(
            {"benchmark": "demo", "targets": targets, "seconds": {k: round(v, 2) for k, v in seconds.items()}}
        )
    )
    return 0 if all(target["met"] for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
