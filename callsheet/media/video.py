"""Pictures and clips as files: what they are, whether they are right, their last frame, their poster.

    checks = check_video(Path("take.mp4"), width=832, height=480, frames=81, fps=16)

PyAV opens and decodes them, once; what is measured is in `callsheet.media.filters`, what is right in
`callsheet.media.picture_checks`. A check of a file that is broken says so and never raises.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import PIL.Image

from callsheet.media.filters import Heard, PictureWatch, Seen, SoundWatch
from callsheet.media.picture_checks import content_checks, movement_checks, sound_checks
from callsheet.takes import Check


@dataclass(frozen=True)
class VideoFacts:
    """What a video file is.

    Attributes:
        frames: counted, not what the header says.
        seconds: of that many frames at its rate.
        span: seconds from the first frame to the end of the last, by their time stamps; None if not looked at.
        audio_seconds: by the header, of the first audio stream; None without one.
        seen: what was found in its frames; None if not looked at, or without any.
        heard: what was found in its sound; None if not listened to, or without any.
    """

    width: int
    height: int
    fps: float
    frames: int
    seconds: float
    codec: str
    pixel_format: str
    audio_seconds: float | None
    span: float | None = None
    seen: Seen | None = None
    heard: Heard | None = None


@dataclass(frozen=True)
class _Decoded:
    frames: int
    span: float | None = None
    seen: Seen | None = None
    heard: Heard | None = None


def probe_video(path: Path, *, look: bool = True, listen: bool = False) -> VideoFacts:
    """Reads the file to its end. Raises av.FFmpegError or ValueError where it cannot be read.

    Args:
        look: whether frames are decoded and looked at; without it packets are counted only.
        listen: whether, with them, sound is decoded and listened to.
    """
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        stream = container.streams.video[0]
        audio = container.streams.audio[0] if container.streams.audio else None
        rate = stream.average_rate or stream.guessed_rate
        fps = float(rate) if rate else 0.0
        if look:
            decoded = _decode(container, stream, audio if listen else None, fps)
        else:
            decoded = _Decoded(sum(1 for packet in container.demux(stream) if packet.size))
        return VideoFacts(
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            fps=fps,
            frames=decoded.frames,
            seconds=decoded.frames / fps if fps else 0.0,
            codec=stream.codec_context.name,
            pixel_format=stream.codec_context.pix_fmt or "",
            audio_seconds=_stream_seconds(audio) if audio else None,
            span=decoded.span,
            seen=decoded.seen,
            heard=decoded.heard,
        )


def _decode(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    audio: av.AudioStream | None,
    fps: float,
) -> _Decoded:
    """Decodes picture and sound together, once, and shows every frame to the filters."""
    eyes: PictureWatch | None = None
    ears: SoundWatch | None = None
    times: list[float] = []
    for frame in container.decode(*(one for one in (stream, audio) if one is not None)):
        if isinstance(frame, av.VideoFrame):
            eyes = eyes or PictureWatch(frame, fps)
            times.append(len(times) / fps if frame.time is None and fps else frame.time or 0.0)
            eyes.see(frame)
        elif isinstance(frame, av.AudioFrame):
            ears = ears or SoundWatch(frame)
            ears.hear(frame)
    return _Decoded(
        frames=len(times),
        span=max(times) - min(times) + (1 / fps if fps else 0.0) if times else 0.0,
        seen=eyes.seen() if eyes else None,
        heard=ears.heard() if ears else None,
    )


def check_image(path: Path, *, width: int, height: int) -> list[Check]:
    """Whether a picture opens, has the size asked for, and shows something."""
    try:
        with PIL.Image.open(path) as picture:
            size = picture.size
            frame = av.VideoFrame.from_ndarray(np.asarray(picture.convert("RGB")), format="rgb24")
    except Exception as error:  # Pillow's decoders raise many things; all mean that it does not open
        return [_unreadable(error)]
    eyes = PictureWatch(frame, 0.0)
    eyes.see(frame)
    return [
        Check.equals("size", f"{size[0]}x{size[1]}", f"{width}x{height}"),
        *content_checks(eyes.seen()),
    ]


def check_video(
    path: Path, *, width: int, height: int, frames: int, fps: float, spoken: float | None = None
) -> list[Check]:
    """Whether a clip opens to its end, is what was asked for, shows something, and moves.

    Args:
        spoken: seconds of narration that an avatar was given; None for a clip that has nothing to say.
    """
    try:
        facts = probe_video(path, listen=spoken is not None)
    except (av.FFmpegError, ValueError, OSError) as error:
        return [_unreadable(error)]
    checks = list(_format_checks(facts, width, height, frames, fps))
    if facts.seen is not None:
        checks += [*content_checks(facts.seen), *movement_checks(facts.seen)]
    if spoken is not None:
        checks += sound_checks(facts.heard, spoken, frames / fps, fps)
    return checks


def _format_checks(facts: VideoFacts, width: int, height: int, frames: int, fps: float) -> Iterator[Check]:
    yield Check.equals("size", f"{facts.width}x{facts.height}", f"{width}x{height}")
    yield Check.within("frames", float(facts.frames), frames, frames)
    yield Check.within("fps", facts.fps, round(fps - 0.01, 3), round(fps + 0.01, 3))
    low, high = (frames - 1) / fps, (frames + 1) / fps
    yield Check.within("duration_seconds", facts.span or 0.0, round(low, 4), round(high, 4))


def _unreadable(error: Exception) -> Check:
    return Check(name="opens", value=f"{type(error).__name__}: {error}", ok=False)


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
