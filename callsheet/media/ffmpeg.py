"""Runs ffmpeg, on command lines that ffmpeg-python builds.

    picture = ffmpeg.input("frame.png", loop=1)
    await run_ffmpeg(picture.output("clip.mp4", t=4))

The system's ffmpeg is used, or imageio-ffmpeg's where there is none. A run that is cancelled takes
its ffmpeg with it.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from collections.abc import Sequence
from typing import Any

import imageio_ffmpeg

from callsheet.errors import AssemblyFault, StoreFault
from callsheet.timing import scaled

#: No step of assembly takes this long at any sensible size; one that does hangs.
LIMIT_SECONDS = 3600.0


@functools.cache
def ffmpeg_path() -> str:
    """The ffmpeg to run: CALLSHEET_FFMPEG where it is set, the system's, or imageio-ffmpeg's."""
    return (
        os.environ.get("CALLSHEET_FFMPEG") or shutil.which("ffmpeg") or str(imageio_ffmpeg.get_ffmpeg_exe())
    )


async def run_ffmpeg(output: Any, *, what: str = "ffmpeg") -> str:
    """Runs a command line built with ffmpeg-python and returns what ffmpeg wrote to stderr.

    Raises:
        AssemblyFault: it failed; the message has its last lines.
        StoreFault: the disk is full.
    """
    return await run_arguments(output.get_args(), what=what)


async def run_arguments(arguments: Sequence[str], *, what: str = "ffmpeg") -> str:
    """As `run_ffmpeg`, for a list of arguments."""
    command = [ffmpeg_path(), "-hide_banner", "-nostdin", "-nostats", "-y", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, stderr = await asyncio.wait_for(process.communicate(), scaled(LIMIT_SECONDS))
    except TimeoutError:
        raise AssemblyFault(f"{what}: ffmpeg did not end within {scaled(LIMIT_SECONDS):.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = stderr.decode(errors="replace")
    if process.returncode:
        last = " | ".join(text.strip().splitlines()[-4:])
        if "No space left on device" in text:
            raise StoreFault(f"{what}: the disk for temporary files is full; free some space and run again")
        raise AssemblyFault(f"{what}: ffmpeg ended with {process.returncode}: {last}")
    return text
