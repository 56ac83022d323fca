"""Loudness of a programme: two passes of ffmpeg's loudnorm, linear, and measured again at the end.

    before = await measure(Path("joined.wav"))
    await normalise(Path("joined.wav"), Path("mastered.wav"), scratch)
    (await measure(Path("programme.mp4"))).integrated_lufs      # -16.0 to within 0.5

Where speech has peaks that a plain gain would push over the ceiling, loudnorm silently turns to its
dynamic mode, which pumps. So the peaks are limited first, on four times the rate, until a plain gain will do.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffmpeg

from callsheet.errors import AssemblyFault
from callsheet.media.audio import OUTPUT_RATE
from callsheet.media.ffmpeg import run_ffmpeg

#: Left for what AAC adds to peaks, in dB.
HEADROOM_DB = 0.5
#: How much lower than the ceiling the limiter holds, so that the last small gain fits under it.
_LIMITER_MARGIN_DB = 0.3
#: The limiter costs loudness, which is given back as gain; two or three rounds suffice for speech.
_ROUNDS = 6
_CLOSE_LU = 0.2


@dataclass(frozen=True)
class Loudness:
    """EBU R128 figures of a file: LUFS, dBTP and LU. Minus infinity where it is silent or under 0.4 s."""

    integrated_lufs: float
    true_peak_dbtp: float
    range_lu: float
    threshold_lufs: float = -70.0

    @property
    def is_audible(self) -> bool:
        return math.isfinite(self.integrated_lufs)


async def measure(path: Path) -> Loudness:
    """The loudness of any media file's sound."""
    sound = ffmpeg.input(str(path)).audio.filter("loudnorm", I=-16, TP=-1, LRA=11, print_format="json")
    return _figures(await _run_loudnorm(sound.output("-", format="null"), path.name), "input")


async def normalise(source: Path, target: Path, scratch: Path, *, lufs: float, peak_dbtp: float) -> None:
    """Writes ``source`` at ``lufs`` with true peaks of at most ``peak_dbtp`` to the WAV file ``target``.

    Raises:
        AssemblyFault: it cannot be done by gain and limiting (the sound is noise or too short).
    """
    measured = await measure(source)
    if not measured.is_audible:
        await run_ffmpeg(
            ffmpeg.input(str(source)).output(str(target), acodec="pcm_s24le", ar=OUTPUT_RATE),
            what=source.name,
        )
        return
    if measured.true_peak_dbtp + lufs - measured.integrated_lufs > peak_dbtp:
        source, measured = await _limit(
            source, scratch / f"{target.stem}-limited.wav", measured, lufs, peak_dbtp
        )
    sound = ffmpeg.input(str(source)).audio.filter(
        "loudnorm",
        I=lufs,
        TP=peak_dbtp,
        LRA=min(50, max(1, math.ceil(measured.range_lu) + 1)),
        measured_I=measured.integrated_lufs,
        measured_TP=measured.true_peak_dbtp,
        measured_LRA=measured.range_lu,
        measured_thresh=measured.threshold_lufs,
        linear="true",
        print_format="json",
    )
    report = await _run_loudnorm(sound.output(str(target), acodec="pcm_s24le", ar=OUTPUT_RATE), source.name)
    if report.get("normalization_type") != "linear":
        raise AssemblyFault(
            f"{source.name}: loudnorm fell back to its {report.get('normalization_type')} mode"
        )


async def _limit(
    source: Path, target: Path, measured: Loudness, lufs: float, peak_dbtp: float
) -> tuple[Path, Loudness]:
    """Raises the level and holds the peaks, until loudness is as wanted to within a small gain."""
    ceiling = 10 ** ((peak_dbtp - _LIMITER_MARGIN_DB) / 20)
    gain = lufs - measured.integrated_lufs
    for _ in range(_ROUNDS):
        sound = ffmpeg.input(str(source)).audio
        sound = sound.filter("volume", f"{gain:.3f}dB").filter("aresample", 4 * OUTPUT_RATE)
        sound = sound.filter("alimiter", limit=ceiling, attack=2, release=50, level=0)
        await run_ffmpeg(sound.output(str(target), acodec="pcm_s24le", ar=OUTPUT_RATE), what=source.name)
        limited = await measure(target)
        missing = lufs - limited.integrated_lufs
        if abs(missing) < _CLOSE_LU:
            return target, limited
        gain += missing
    raise AssemblyFault(f"{source.name}: peaks too high for {lufs:g} LUFS under {peak_dbtp:g} dBTP")


async def _run_loudnorm(output: Any, what: str) -> dict[str, str]:
    """Runs a graph that ends in loudnorm and reads the JSON it prints last."""
    text = await run_ffmpeg(output, what=what)
    start, end = text.rfind("{"), text.rfind("}")
    if start < 0 or end < start:
        raise AssemblyFault(f"{what}: loudnorm printed no figures")
    report: dict[str, str] = json.loads(text[start : end + 1])
    return report


def _figures(report: dict[str, str], side: str) -> Loudness:
    return Loudness(
        integrated_lufs=float(report[f"{side}_i"]),
        true_peak_dbtp=float(report[f"{side}_tp"]),
        range_lu=float(report[f"{side}_lra"]),
        threshold_lufs=float(report[f"{side}_thresh"]),
    )
