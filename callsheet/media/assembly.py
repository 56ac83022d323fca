"""Builds clips from takes and programmes from clips, with ffmpeg.

    await build_clip(clip, Path("lh-01.mp4"), scratch)
    loudness = await build_programme(programme, Path("lighthouse.mp4"), scratch)

Every clip's sound is exactly as long as its picture, to the sample, and a programme's sound is joined
from samples and encoded once; so picture and sound cannot drift apart, however many clips there are
(facts, section 5: joining encoded AAC lost 570 ms over 37 clips).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np
import PIL.Image
import soundfile

from callsheet.media.audio import OUTPUT_RATE, Samples, fit_length, read_sound, resample
from callsheet.media.ffmpeg import run_ffmpeg
from callsheet.media.loudness import HEADROOM_DB, Loudness, measure, normalise
from callsheet.plan import LOUDNESS_LUFS, TRUE_PEAK_DBTP, Canvas, frames_for

#: Behind a narration that has no picture of its own, in a programme that has pictures.
BACKGROUND = "0x14181d"
#: Pictures whose shape differs from the canvas by less than this are cropped to it, others get bars.
CROP_TOLERANCE = 0.03
#: Visually lossless for delivery; a clip is encoded once.
_CRF = 18
_STILL_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: ffmpeg writes neither its version nor the time into files: the same takes give the same bytes.
_REPRODUCIBLE = {
    "fflags": "+bitexact",
    "flags:v": "+bitexact+cgop",
    "flags:a": "+bitexact",
    "map_metadata": "-1",
}
#: How often the sound is mastered anew because the encoded file is not as was asked for, and what is near enough.
_MASTERINGS = 4
_CLOSE_LU = 0.3


@dataclass(frozen=True)
class ClipParts:
    """What a clip is built from.

    Attributes:
        narration: a WAV file, or None for a clip without speech.
        pictures: one still, or videos to be shown one after the other, each but the first beginning
            with the last frame of the one before it.
        canvas: None for sound alone.
        seconds: the clip's length; with a canvas it is rounded up to whole frames.
    """

    narration: Path | None
    pictures: tuple[Path, ...]
    canvas: Canvas | None
    seconds: float

    @property
    def frames(self) -> int:
        return frames_for(self.seconds, self.canvas.fps) if self.canvas else 0

    @property
    def samples(self) -> int:
        """The length of its sound, in samples of 48 kHz."""
        seconds = self.frames / self.canvas.fps if self.canvas else self.seconds
        return round(seconds * OUTPUT_RATE)


async def build_clip(parts: ClipParts, target: Path, scratch: Path) -> None:
    """Writes the clip: H.264 and AAC in MP4, or a WAV file where there is no canvas."""
    if parts.canvas is None:
        soundfile.write(str(target), _mono(parts), OUTPUT_RATE, subtype="PCM_16", format="WAV")
        return
    sound = scratch / f"{target.stem}-sound.wav"
    _write_stereo(sound, [parts])
    picture = _picture(parts, parts.canvas)
    output = ffmpeg.output(
        picture,
        ffmpeg.input(str(sound)).audio,
        str(target),
        **_video_options(parts.canvas, parts.frames),
        **_AUDIO_OPTIONS,
        **_REPRODUCIBLE,
        movflags="+faststart",
    )
    await run_ffmpeg(output, what=target.name)
    sound.unlink()


async def build_programme(clips: Sequence[tuple[ClipParts, Path]], target: Path, scratch: Path) -> Loudness:
    """Joins clips, given with what they were built from, and sets the loudness of the whole.

    The clips' picture is copied, not encoded again; the sound comes from the narrations.

    Returns:
        The loudness as measured on the finished file; whether that will do is for the caller to check.
    """
    joined, mastered = scratch / f"{target.stem}-joined.wav", scratch / f"{target.stem}-mastered.wav"
    _write_stereo(joined, [parts for parts, _ in clips])
    listing = (
        _listing([path for _, path in clips], scratch / f"{target.stem}-clips")
        if _has_picture(clips)
        else None
    )
    lufs, ceiling = LOUDNESS_LUFS, TRUE_PEAK_DBTP - HEADROOM_DB
    for _ in range(_MASTERINGS):
        await normalise(joined, mastered, scratch, lufs=lufs, peak_dbtp=ceiling)
        await run_ffmpeg(_programme(listing, mastered, target), what=target.name)
        loudness = await measure(target)
        off = LOUDNESS_LUFS - loudness.integrated_lufs
        if not loudness.is_audible or (abs(off) <= _CLOSE_LU and loudness.true_peak_dbtp <= TRUE_PEAK_DBTP):
            break
        # AAC drops what is above some 19 kHz, which may cost loudness, and may raise peaks.
        lufs += off
        ceiling -= max(0.0, loudness.true_peak_dbtp - TRUE_PEAK_DBTP)
    return loudness


_AUDIO_OPTIONS = {"acodec": "aac", "audio_bitrate": "192k", "ar": OUTPUT_RATE, "ac": 2}


def _video_options(canvas: Canvas, frames: int) -> dict[str, Any]:
    return {
        "vcodec": "libx264",
        "preset": "medium",
        "crf": _CRF,
        "profile:v": "high",
        "pix_fmt": "yuv420p",
        "g": max(1, round(2 * canvas.fps)),
        "r": _rate(canvas.fps),
        "frames:v": frames,
        # Without reordered frames each clip's first picture is at time zero, so joining by copy is exact;
        # and x264's AVX-512 code for B-frames gave other bytes from run to run.
        "bf": 0,
        "colorspace": "bt709",
        "color_primaries": "bt709",
        "color_trc": "bt709",
        "color_range": "tv",
        "video_track_timescale": 90_000,
    }


def _picture(parts: ClipParts, canvas: Canvas) -> Any:
    """The clip's picture on its canvas, held on its last frame should it end early."""
    if not parts.pictures:
        plain = f"color=c={BACKGROUND}:s={canvas.width}x{canvas.height}:r={_rate(canvas.fps)}"
        return ffmpeg.input(plain, format="lavfi", t=parts.seconds + 1).video
    if parts.pictures[0].suffix.lower() in _STILL_SUFFIXES:
        still = ffmpeg.input(str(parts.pictures[0]), loop=1, framerate=_rate(canvas.fps), t=parts.seconds + 1)
        return _on_canvas(still.video, parts.pictures[0], canvas)
    videos = []
    for number, path in enumerate(parts.pictures):
        video = ffmpeg.input(str(path)).video
        if number:
            video = video.filter("trim", start_frame=1).filter("setpts", "PTS-STARTPTS")
        videos.append(_on_canvas(video, path, canvas))
    joined = ffmpeg.concat(*videos, v=1, a=0) if len(videos) > 1 else videos[0]
    return joined.filter("fps", fps=_rate(canvas.fps)).filter("tpad", stop_mode="clone", stop=-1)


def _on_canvas(video: Any, path: Path, canvas: Canvas) -> Any:
    """Scaled to fill the canvas where the shapes agree, else to fit into it with bars; BT.709, square pixels."""
    shape = _shape(path) / (canvas.width / canvas.height)
    fills = abs(shape - 1) < CROP_TOLERANCE
    video = video.filter(
        "scale",
        w=canvas.width,
        h=canvas.height,
        force_original_aspect_ratio="increase" if fills else "decrease",
        force_divisible_by=2,
        flags="lanczos",
        out_color_matrix="bt709",
        out_range="tv",
    )
    if fills:
        video = video.filter("crop", canvas.width, canvas.height)
    else:
        video = video.filter("pad", w=canvas.width, h=canvas.height, x="(ow-iw)/2", y="(oh-ih)/2")
    return video.filter("setsar", "1").filter("format", "yuv420p")


def _shape(path: Path) -> float:
    """Width over height of a picture or video."""
    if path.suffix.lower() in _STILL_SUFFIXES:
        with PIL.Image.open(path) as picture:
            return picture.width / picture.height
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return context.width / context.height


def _programme(listing: Path | None, sound: Path, target: Path) -> Any:
    audio = ffmpeg.input(str(sound)).audio
    options = {**_AUDIO_OPTIONS, **_REPRODUCIBLE, "movflags": "+faststart"}
    if listing is None:
        return ffmpeg.output(audio, str(target), **options)
    video = ffmpeg.input(str(listing), format="concat", safe=0).video
    return ffmpeg.output(video, audio, str(target), vcodec="copy", video_track_timescale=90_000, **options)


def _has_picture(clips: Sequence[tuple[ClipParts, Path]]) -> bool:
    return clips[0][0].canvas is not None


def _listing(clips: Sequence[Path], folder: Path) -> Path:
    """A list for ffmpeg's concat demuxer. It names links, because real names would need its quoting rules."""
    folder.mkdir(exist_ok=True)
    names = []
    for number, clip in enumerate(clips):
        link = folder / f"{number:06}{clip.suffix}"
        link.unlink(missing_ok=True)
        link.symlink_to(clip.resolve())
        names.append(f"file {link.name}\n")
    listing = folder / "clips.txt"
    listing.write_text("".join(names))
    return listing


def _mono(parts: ClipParts) -> Samples:
    """The clip's sound at 48 kHz, exactly as long as the clip."""
    if parts.narration is None:
        return np.zeros(parts.samples, np.float32)
    return fit_length(resample(read_sound(parts.narration)).samples, parts.samples)


def _write_stereo(target: Path, clips: Sequence[ClipParts]) -> None:
    """Writes the clips' sound one after the other, on both channels, one clip in memory at a time."""
    with soundfile.SoundFile(str(target), "w", OUTPUT_RATE, 2, subtype="FLOAT", format="RF64") as file:
        for parts in clips:
            mono = _mono(parts)
            file.write(np.column_stack([mono, mono]))


def _rate(fps: float) -> str:
    """Frames per second as ffmpeg reads it exactly: 16, 29.97 as 30000/1001."""
    for base in (24, 30, 60, 120):
        if abs(fps - base * 1000 / 1001) < 0.005:
            return f"{base * 1000}/1001"
    return f"{fps:g}"
