"""What the ComfyUI driver costs: how long the engine waits between two prompts, and a take's way home.

    .venv/bin/python benchmarks/comfyui.py            # tables, and JSON as the last line
    .venv/bin/python benchmarks/comfyui.py --quick    # fewer clips

idle   `callsheet run` of clips on a draft host; by the host's own clock, from the end of a prompt to the start of
       the next. With one prompt at a time (window 1) the result's way home is in it, with two it is not.
home   from "the history has it" to "checked and stored", for a clip of 3 MB, against a bare download of the same.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import http.server
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import imageio_ffmpeg
from rich.console import Console
from rich.table import Table

from callsheet.engines.comfyui import ComfyUI, Output
from callsheet.inputs import InputFile
from callsheet.media.video import check_video
from callsheet.process import served_by
from callsheet.store import open_store

ROOT = Path(__file__).resolve().parent.parent
IDLE_TARGET_MS = 50.0
WIDTH, HEIGHT, FRAMES, FPS = 832, 480, 81, 16


async def idle_milliseconds(folder: Path, clips: int, window: int) -> list[float]:
    """What the engine waited between two prompts of a batch, in ms."""
    folder.mkdir()
    script = folder / "script.csv"
    with script.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shot_id", "visual", "prompt", "width", "height", "param.FRAMES"])
        writer.writerows([f"c{n}", "wan_t2v", f"sea {n}", 416, 240, 33] for n in range(clips))
    async with served_by("gpu_service", "--draft", "--with-parent") as url:
        fleet = folder / "fleet.toml"
        fleet.write_text(
            'provider = "static"\n[[host]]\nname = "h"\n[[host.engine]]\nkind = "comfyui"\nrevision = "bench"\n'
            f'url = "{url}"\nwindow = {window}\nrelative_speed = 40\n'
        )
        command = [
            str(Path(sys.executable).with_name("callsheet")),
            "run",
            str(script),
            "--fleet",
            str(fleet),
        ]
        process = await asyncio.create_subprocess_exec(
            *command, "--store", str(folder / "out"), env={**os.environ, "CALLSHEET_HOME": str(folder / "home")},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if await process.wait():
            raise RuntimeError(f"callsheet run ended with {process.returncode}")
        async with httpx.AsyncClient() as client:
            history = (await client.get(f"{url}/history")).json()
    times = sorted(
        (messages[0][1]["timestamp"], messages[-1][1]["timestamp"])
        for messages in (entry["status"]["messages"] for entry in history.values())
    )
    return [float(start - end) for (_, end), (start, _) in itertools.pairwise(times)]


def write_clip(path: Path) -> Path:
    """Moving test pictures with grain, so that 81 frames take about 3 MB."""
    source = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={FPS},noise=alls=14:allf=t"
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        source,
        "-frames:v",
        str(FRAMES),
    ]
    subprocess.run([*command, "-pix_fmt", "yuv420p", "-b:v", "4800k", "-y", str(path)], check=True)
    return path


async def ways_home(folder: Path, rounds: int) -> tuple[list[float], list[float], int]:
    """Seconds of our way home, and of a bare download, for the same clip; and its size in bytes."""
    clip = write_clip(folder / "clip.mp4")
    content = clip.read_bytes()

    class View(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    store = open_store(str(folder / "store"))
    ours, bare = [], []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), View) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        async with ComfyUI(url, name="bench") as comfy, httpx.AsyncClient(base_url=url) as plain:
            for number in range(rounds):
                bare.append(await timed(lambda: _bare(plain, folder / "bare.mp4")))
                ours.append(await timed(lambda n=number: _home(comfy, store, folder / f"take{n}.mp4", n)))  # type: ignore[misc]
        server.shutdown()
    return ours, bare, len(content)


async def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def _bare(client: httpx.AsyncClient, target: Path) -> None:
    target.write_bytes((await client.get("/view", params={"filename": "clip.mp4"})).content)


async def _home(comfy: ComfyUI, store: Any, target: Path, number: int) -> None:
    await comfy.download(Output("clip.mp4", "", "output"), target)

    def keep() -> None:
        check_video(target, width=WIDTH, height=HEIGHT, frames=FRAMES, fps=FPS)
        InputFile.read(target)
        store.put(f"takes/video/bench.{number}.mp4", target)

    await asyncio.to_thread(keep)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    parser.add_argument("--quick", action="store_true", help="fewer clips")
    options = parser.parse_args()
    clips = 6 if options.quick else 16
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        idle = {
            window: asyncio.run(idle_milliseconds(folder / f"w{window}", clips, window)) for window in (1, 2)
        }
        ours, bare, size = asyncio.run(ways_home(folder, 5 if options.quick else 15))
    median = {window: statistics.median(times) for window, times in idle.items()}
    home, plain = statistics.median(ours), statistics.median(bare)
    targets = [
        {
            "name": "idle_median_ms",
            "value": median[2],
            "target": IDLE_TARGET_MS,
            "met": median[2] < IDLE_TARGET_MS,
        }
    ]
    if not options.json:
        table = Table("Prompts at once", "Clips", "Idle, median ms", "Idle, longest ms", "Of window 1")
        for window, times in idle.items():
            table.add_row(
                str(window), str(clips), f"{median[window]:.0f}", f"{max(times):.0f}",
                f"{median[window] / max(median[1], 1):.2f}",
            )  # fmt: skip
        Console().print(table)
        ratio = home / plain
        Console().print(
            f"A clip of {size / 2**20:.1f} MB: {1000 * home:.0f} ms until checked and stored; "
            f"the bare download {1000 * plain:.0f} ms ({ratio:.1f} times)"
        )
    print(
        json.dumps(
            {
                "benchmark": "comfyui",
                "targets": targets,
                "idle_ms": {str(window): times for window, times in idle.items()},
                "home_ms": round(1000 * home, 1),
                "bare_ms": round(1000 * plain, 1),
                "bytes": size,
            }
        )
    )
    return 0 if all(target["met"] for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
