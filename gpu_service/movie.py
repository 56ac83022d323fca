"""Moving drafts: the frames of a clip, from a prompt, from a first image, or of a head that speaks.

frames = clip_frames(scene, image=None, sound=None)
write_video(frames, scene, scene.fps, Path("out.mp4"), audio=None)
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

from callsheet.media.audio import FRAME_SECONDS, Sound, resample
from callsheet.media.ffmpeg import ffmpeg_path
from gpu_service.draw import HEAD_SIZE, HEAD_Y, Colour, Head, Storyboard, draw_head
from gpu_service.graph import Scene

#: How far a clip that starts from an image moves into it.
_ZOOM = 0.14


def still(scene: Scene) -> PIL.Image.Image:
    """One picture."""
    return Storyboard(scene.prompt, scene.seed, scene.width, scene.height).frame(0.0)


def clip_frames(scene: Scene, image: Path | None, sound: Sound | None) -> Iterator[PIL.Image.Image]:
    """The frames that the scene asks for, one at a time."""
    if scene.speaks and sound is not None:
        yield from _speaking(scene, image, sound)
    elif image is not None:
        yield from _moving_into(scene, image)
    else:
        board = Storyboard(scene.prompt, scene.seed, scene.width, scene.height)
        for number in range(scene.frames):
            yield board.frame(number / max(1, scene.frames - 1))


def write_video(
    frames: Iterable[PIL.Image.Image], scene: Scene, fps: float, target: Path, audio: Path | None
) -> None:
    """H.264 in MP4, with the sound of ``audio`` cut or filled to its length. The same frames give the same bytes.

    Without B-frames and macroblock tree: x264's AVX-512 code for them gave other bytes from run to run.
    """
    size, rate = f"{scene.width}x{scene.height}", f"{fps:g}"
    command = [ffmpeg_path(), *"-hide_banner -loglevel error -y -f rawvideo -pix_fmt rgb24".split()]
    command += ["-s", size, "-r", rate, "-i", "pipe:0"]
    if audio is not None:
        command += ["-i", str(audio), "-af", "apad", "-c:a", "aac", "-t", f"{scene.frames / fps:.6f}"]
    command += "-c:v libx264 -preset veryfast -crf 20 -threads 2 -pix_fmt yuv420p".split()
    command += "-x264-params bframes=0:mbtree=0 -fflags +bitexact -flags:v +bitexact".split()
    command += ["-movflags", "+faststart", str(target)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            for frame in frames:
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg ended early and says why
        except BaseException:
            process.kill()
            raise
        reason = process.stderr.read().decode(errors="replace")
    if process.returncode:
        raise RuntimeError(f"ffmpeg ended with {process.returncode}: {reason.strip()[-300:]}")


def _moving_into(scene: Scene, image: Path) -> Iterator[PIL.Image.Image]:
    """Begins with the image itself and moves into it; a light passes over it, so that nothing stands still."""
    size = scene.width, scene.height
    with PIL.Image.open(image) as opened:
        picture = _covering(opened.convert("RGB"), size)
    direction = hashlib.sha256(f"{scene.seed}|{scene.prompt}".encode()).digest()
    aim_x, aim_y = direction[0] / 255, direction[1] / 255
    across = np.linspace(0, 1, scene.width, dtype=np.float32)[None, :, None]
    for number in range(scene.frames):
        at = number / max(1, scene.frames - 1)
        w, h = scene.width * (1 - _ZOOM * at), scene.height * (1 - _ZOOM * at)
        left, top = (scene.width - w) * aim_x, (scene.height - h) * aim_y
        moved = picture.resize(size, PIL.Image.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        light = 1 + 0.18 * np.sin(np.pi * at) * np.exp(-(((across - at) * 4) ** 2))
        yield PIL.Image.fromarray(np.clip(np.asarray(moved, np.float32) * light, 0, 255).astype(np.uint8))


def _speaking(scene: Scene, image: Path | None, sound: Sound) -> Iterator[PIL.Image.Image]:
    """A head in front of the image, in the image's colours, its mouth as wide as the sound is loud."""
    size = scene.width, scene.height
    random = np.random.default_rng(scene.seed)
    if image is not None:
        with PIL.Image.open(image) as opened:
            behind = _covering(opened.convert("RGB"), size)
        head = _head_like(behind)
        behind = behind.filter(PIL.ImageFilter.GaussianBlur(scene.height / 60))
    else:
        behind, head = still(scene), Head.of(random)
    opening = _mouth(sound, scene.frames, scene.fps)
    blinks = {int(at) for at in np.cumsum(random.uniform(2.0, 4.5, 200)) * scene.fps}
    for number in range(scene.frames):
        picture = behind.copy()
        sway = np.sin(number / scene.fps * 1.7) * 0.012, np.sin(number / scene.fps * 2.3) * 0.008
        centre = scene.width * (0.5 + sway[0]), scene.height * (HEAD_Y + sway[1] - 0.01 * opening[number])
        blink = number in blinks or number - 1 in blinks
        draw_head(
            PIL.ImageDraw.Draw(picture),
            head,
            centre,
            scene.height * HEAD_SIZE,
            mouth=opening[number],
            blink=blink,
        )
        yield picture


def _head_like(picture: PIL.Image.Image) -> Head:
    """The colours where `Storyboard` draws cheek, hair and clothes: its own portraits come out as they are."""
    middle, h = picture.width / 2, picture.height
    spots = {"skin": (0.1, 0.09), "hair": (0.0, -0.29), "clothes": (-0.2, 0.44), "beside": (-0.27, 0.15)}
    at: dict[str, Colour] = {}
    for name, (x, y) in spots.items():
        place = int(min(picture.width - 1, max(0, middle + x * h))), int(min(h - 1, (HEAD_Y + y) * h))
        red, green, blue = (int(value) for value in np.asarray(picture)[place[1], place[0]])
        at[name] = (red, green, blue)
    long_hair = sum(abs(a - b) for a, b in zip(at["beside"], at["hair"], strict=True)) < 30
    return Head(at["skin"], at["hair"], at["clothes"], long_hair)


def _mouth(sound: Sound, frames: int, fps: float) -> list[float]:
    """How far the mouth is open in each frame, 0 to 1, following the sound's level."""
    levels = sound.levels
    at = (
        np.minimum((np.arange(frames) / fps / FRAME_SECONDS).astype(int), len(levels) - 1)
        if len(levels)
        else np.zeros(frames, int)
    )
    padded = np.where(np.arange(frames) / fps < sound.seconds, levels[at] if len(levels) else -120.0, -120.0)
    return [float(value) for value in np.clip((padded + 45) / 30, 0, 1)]


def _covering(picture: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    """The picture scaled and cropped to fill ``size``."""
    scale = max(size[0] / picture.width, size[1] / picture.height)
    scaled = picture.resize(
        (max(size[0], round(picture.width * scale)), max(size[1], round(picture.height * scale))),
        PIL.Image.Resampling.LANCZOS,
    )
    left, top = (scaled.width - size[0]) // 2, (scaled.height - size[1]) // 2
    return scaled.crop((left, top, left + size[0], top + size[1]))


def read_any_sound(path: Path) -> Sound:
    """Any audio file that ffmpeg reads, as mono samples of 24 kHz."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        parts = [frame.to_ndarray() for frame in _as_mono(container.decode(stream))]
        rate = stream.codec_context.sample_rate
    samples = np.concatenate([part[0] for part in parts]) if parts else np.zeros(0, np.float32)
    return resample(Sound(samples.astype(np.float32), rate), 24_000)


def _as_mono(frames: Iterable[av.AudioFrame]) -> Iterator[av.AudioFrame]:
    resampler = None
    for frame in frames:
        resampler = resampler or av.AudioResampler(format="flt", layout="mono", rate=frame.sample_rate)
        yield from resampler.resample(frame)
