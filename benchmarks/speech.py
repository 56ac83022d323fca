"""What the speech client costs: CPU per line with all checks on, and throughput against a bare httpx loop.

    .venv/bin/python benchmarks/speech.py            # a table, and JSON as the last line
    .venv/bin/python benchmarks/speech.py --quick    # fewer lines

The server is the tests' fake one in a process of its own, which works a fixed time for each second of
audio; so what differs between the two loops is what our client does: it streams, watches for stalls and
twins, writes the WAV, hashes it and checks it. The bare loop sends the same requests and drops the answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import soundfile
from rich.console import Console
from rich.table import Table

from callsheet.engines.speech import LightTTS, Recording, SpeechRequest, write_wav
from callsheet.inputs import InputFile
from callsheet.media.audio import read_sound
from callsheet.media.speech import Line, Measured, Neighbours, VoiceProfile, check_line, measure, profile_of
from callsheet.text import speech_seconds

ROOT = Path(__file__).resolve().parent.parent
CPU_TARGET_MS = 15.0
THROUGHPUT_TARGET = 0.95
IN_FLIGHT = (1, 2, 4, 8)
#: Seconds of work for a second of audio: LightTTS on a 4090D with one worker takes 0.13 (facts, 7.1).
COST = 0.05
PITCH = 180.0
#: About ten seconds of speech.
TEXT = (
    "For forty years the keeper of the northern light wrote one line a day, of the wind, the sea, and the ships "
    "that passed, number {}."
)


def write_prompt(path: Path) -> Path:
    """Five seconds of a buzz in syllables."""
    at = np.arange(5 * 24_000) / 24_000
    sound = 0.3 * np.sin(2 * np.pi * PITCH * at) * (0.2 + 0.8 * np.abs(np.sin(2 * np.pi * 2.5 * at)))
    soundfile.write(path, sound, 24_000, subtype="PCM_16")
    return path


class Ours:
    """The client, with everything that happens to a line before it is a take (but for Prefect and the store)."""

    def __init__(self, url: str, prompt: Path, folder: Path) -> None:
        self.client = LightTTS(url, name="bench")
        self.prompt, self.folder = prompt, folder
        self.profile: VoiceProfile = profile_of(
            read_sound(prompt), "For forty years the keeper wrote a line a day."
        )
        self.neighbours = Neighbours()
        self.faults = 0
        # As in a batch: a lane goes on while what it made is checked beside it.
        self.bench = asyncio.Semaphore(2)
        self.behind: set[asyncio.Task[None]] = set()

    async def speak(self, text: str, number: int) -> None:
        request = SpeechRequest(text, "A line.", self.prompt, expected_seconds=10)
        recording = await self.client.synthesize(request)
        self.behind.add(task := asyncio.create_task(self.keep(recording, text, number)))
        task.add_done_callback(self.behind.discard)

    async def settled(self) -> None:
        """All that was spoken is checked."""
        await asyncio.gather(*self.behind)

    async def keep(self, recording: Recording, text: str, number: int) -> None:
        await recording.flight.twin()
        target = self.folder / f"{number}.wav"

        def keep() -> Measured:
            write_wav([recording], target)
            InputFile.read(target)
            sound, line = (
                read_sound(target),
                Line(text, 24_000, profile=VoiceProfile(1.0, self.profile.pitch)),
            )
            found = measure(sound, line)
            checks = [*check_line(sound, line, found), *self.neighbours.check(found, line)]
            self.faults += sum(not check.ok for check in checks)
            target.unlink()
            return found

        async with self.bench:
            self.neighbours.add(await asyncio.to_thread(keep))


class Bare:
    """The same requests by httpx alone."""

    def __init__(self, url: str, prompt: Path) -> None:
        self.http = httpx.AsyncClient(base_url=url, timeout=60)
        self.prompt = prompt.read_bytes()

    async def speak(self, text: str, _number: int) -> None:
        fields = {"tts_text": text, "prompt_text": "A line.", "stream": "false"}
        files = {"prompt_wav": ("prompt.wav", self.prompt, "audio/wav")}
        (await self.http.post("/inference_zero_shot", data=fields, files=files)).raise_for_status()

    async def settled(self) -> None:
        """There is nothing behind it."""


async def run(loop: Ours | Bare, lines: int, in_flight: int) -> tuple[float, float]:
    """Seconds on the wall and of this process's CPU for ``lines`` lines."""
    numbers = iter(range(lines))

    async def worker() -> None:
        for number in numbers:
            await loop.speak(TEXT.format(number % 10), number)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    await loop.settled()
    return time.perf_counter() - wall, time.process_time() - cpu


async def measure_all(url: str, folder: Path, lines: int) -> tuple[list[dict[str, float]], int]:
    prompt = write_prompt(folder / "prompt.wav")
    ours, bare = Ours(url, prompt, folder), Bare(url, prompt)
    for number in range(10):  # so that the server has its sounds, and we our imports
        await ours.speak(TEXT.format(number), number)
        await bare.speak(TEXT.format(number), number)
    await ours.settled()
    rows = []
    for in_flight in IN_FLIGHT:
        count = lines * min(in_flight, 4)
        # Turn about, and the better of three of each: what else the machine does is no business of ours.
        pairs = [(await run(bare, count, in_flight), await run(ours, count, in_flight)) for _ in range(3)]
        (bare_wall, bare_cpu), (our_wall, our_cpu) = (min(runs) for runs in zip(*pairs, strict=True))
        rows.append(
            {
                "in_flight": in_flight,
                "lines": count,
                "bare_lines_per_second": round(count / bare_wall, 2),
                "our_lines_per_second": round(count / our_wall, 2),
                "ratio": round(bare_wall / our_wall, 3),
                "bare_cpu_ms": round(1000 * bare_cpu / count, 2),
                "our_cpu_ms": round(1000 * our_cpu / count, 2),
            }
        )
    return rows, ours.faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print the JSON line only")
    parser.add_argument("--quick", action="store_true", help="fewer lines")
    options = parser.parse_args()
    command = [sys.executable, "-m", "tests.fakes.speech_server", "--cost", str(COST), "--pitch", str(PITCH)]
    server = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin and server.stdout
    try:
        url = json.loads(server.stdout.readline())["url"]
        with tempfile.TemporaryDirectory() as folder:
            rows, faults = asyncio.run(measure_all(url, Path(folder), 8 if options.quick else 24))
    finally:
        server.stdin.close()
        server.wait()
    # The whole of a line, the bare request's part included.
    cpu = round(statistics.median(row["our_cpu_ms"] for row in rows), 2)
    targets = [
        {"name": "client_cpu_ms_per_line", "value": cpu, "target": CPU_TARGET_MS, "met": cpu < CPU_TARGET_MS},
        *(
            {
                "name": f"throughput_ratio_{row['in_flight']}", "value": row["ratio"], "target": THROUGHPUT_TARGET,
                "met": row["ratio"] >= THROUGHPUT_TARGET,
            }
            for row in rows
        ),
        {"name": "failed_checks", "value": faults, "target": 0, "met": faults == 0},
    ]  # fmt: skip
    if not options.json:
        table = Table(*(name.replace("_", " ") for name in rows[0]))
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        Console().print(f"{speech_seconds(TEXT):.1f} s of speech a line, {COST} s of work for a second of it")
        Console().print(table)
    print(json.dumps({"benchmark": "speech", "targets": targets, "rows": rows}))
    return 0 if all(target["met"] for target in targets) else 1


if __name__ == "__main__":
    sys.exit(main())
