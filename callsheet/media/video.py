"""Checks of pictures and clips: PyAV opens them, numpy looks at small grey copies of their frames.

checks = check_video(Path("take.mp4"), width=832, height=480, frames=81, fps=16)
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import PIL.Image

from callsheet.takes import Check

#: Frames are judged on grey copies of this size: enough for black, frozen and flat, and cheap.
_SMALL = (96, 54)
#: Mean luma (0..255) below which a picture is black; a night scene is well above.
BLACK_LUMA = 8.0
#: Standard deviation of luma below which a picture is one flat colour.
FLAT_LUMA = 2.0
#: Mean change of luma between two frames below which nothing moves. Encoding noise alone is about 0.02.
FROZEN_CHANGE = 0.08
#: A clip may hold still for a while, not for nearly all of its time.
MOST_FROZEN = 0.8


@dataclass(frozen=True)
class VideoFacts:
    """What a video file is. ``small`` are its frames, (frames, height, width) uint8 luma, or none if not asked for."""

    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    codec: str
    pixel_format: str
    audio_seconds: float | None
    small: npt.NDArray[np.uint8]


def probe_video(path: Path, *, look: bool = True) -> VideoFacts:
    """Reads the file to its end. Raises av.FFmpegError or ValueError where it cannot be read.

    Args:
        look: whether frames are decoded and kept small; without it packets are counted only.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        audio = container.streams.audio[0] if container.streams.audio else None
        small: list[npt.NDArray[np.uint8]] = []
        frames = 0
        if look:
            for frame in container.decode(stream):
                grey = frame.reformat(*_SMALL, format="gray", interpolation="AREA")
                small.append(np.asarray(grey.to_ndarray(), np.uint8))
            frames = len(small)
        else:
            frames = sum(1 for packet in container.demux(stream) if packet.size)
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 0.0
        return VideoFacts(
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=fps,
            frames=frames,
            seconds=frames / fps if fps else 0.0,
            codec=stream.codec_context.name,
            pixel_format=stream.codec_context.pix_fmt or "",
            audio_seconds=_stream_seconds(audio) if audio else None,
            small=np.stack(small) if small else np.zeros((0, _SMALL[1], _SMALL[0]), np.uint8),
        )


def check_image(path: Path, *, width: int, height: int) -> list[Check]:
    """Whether a picture opens, has the size asked for, and shows something."""
    try:
        with PIL.Image.open(path) as picture:
            picture.load()
            size = picture.size
            grey = np.asarray(picture.convert("L").resize(_SMALL))
    except Exception as error:  # Pillow's decoders raise many things; all mean that it does not open
        return [Check(name="opens", value=f"{type(error).__name__}: {error}", ok=False)]
    return [
        Check.equals("size", f"{size[0]}x{size[1]}", f"{width}x{height}"),
        Check.within("luma_mean", float(grey.mean()), BLACK_LUMA),
        Check.within("luma_deviation", float(grey.std()), FLAT_LUMA),
    ]


def check_video(path: Path, *, width: int, height: int, frames: int, fps: float) -> list[Check]:
    """Whether a clip opens to its end, has size, frames and rate asked for, and is neither black nor frozen."""
    try:
        facts = probe_video(path)
    except (av.FFmpegError, ValueError, OSError) as error:
        return [Check(name="opens", value=f"{type(error).__name__}: {error}", ok=False)]
    return list(_video_checks(facts, width, height, frames, fps))


def _video_checks(facts: VideoFacts, width: int, height: int, frames: int, fps: float) -> Iterator[Check]:
    yield Check.equals("size", f"{facts.width}x{facts.height}", f"{width}x{height}")
    yield Check.within("frames", float(facts.frames), frames, frames)
    yield Check.within("fps", facts.fps, round(fps - 0.01, 3), round(fps + 0.01, 3))
    if not facts.frames:
        return
    luma = facts.small.mean(axis=(1, 2))
    yield Check.within("luma_mean", float(luma.mean()), BLACK_LUMA)
    yield Check.within("black_share", float((luma < BLACK_LUMA).mean()), 0, 0.5)
    yield Check.within("luma_deviation", float(facts.small.std(axis=(1, 2)).mean()), FLAT_LUMA)
    if facts.frames > 1:
        yield Check.within("frozen_share", frozen_share(facts.small), 0, MOST_FROZEN)


def frozen_share(frames: npt.NDArray[np.uint8]) -> float:
    """The share of frames that are the same as the one before; ``frames`` is (frames, height, width) uint8."""
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean(axis=(1, 2))
    return float((change < FROZEN_CHANGE).mean())


def last_frame(path: Path, target: Path) -> None:
    """Writes the last frame of a clip as PNG."""
    last = None
    with av.open(str(path)) as container:
        for frame in container.decode(container.streams.video[0]):
            last = frame
    if last is None:
        raise ValueError(f"{path.name} has no frame")
    PIL.Image.fromarray(last.to_ndarray(format="rgb24")).save(target, format="PNG")


def poster(path: Path) -> bytes:
    """A picture from the middle of a clip, as JPEG of at most 960 pixels."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.duration:
            container.seek(stream.duration // 2, stream=stream)
        frame = next(container.decode(stream))
        picture = PIL.Image.fromarray(frame.to_ndarray(format="rgb24"))
    picture.thumbnail((960, 960))
    target = io.BytesIO()
    picture.save(target, format="JPEG", quality=82)
    return target.getvalue()


def _stream_seconds(stream: av.AudioStream) -> float:
    if stream.duration is None or stream.time_base is None:
        return 0.0
    return float(stream.duration * stream.time_base)
