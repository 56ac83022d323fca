import io
import math
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

from callsheet.media.video import check_image, check_video, last_frame, poster, probe_video
from gpu_service.graph import Scene
from gpu_service.movie import clip_frames, still, write_video

SCENE = Scene(prompt="the sea at night", seed=3, width=320, height=192, frames=33, fps=16.0)
SECONDS = 33 / 16


@pytest.fixture
def clip(tmp_path: Path) -> Callable[..., Path]:
    """Writes a clip of these frames; those of the scene where none are given."""

    def write(frames: list[PIL.Image.Image] | None = None) -> Path:
        write_video(frames or list(clip_frames(SCENE, None, None)), SCENE, 16.0, tmp_path / "clip.mp4", None)
        return tmp_path / "clip.mp4"

    return write


def failed(path: Path, **settings: float) -> list[str]:
    known = {"width": 320, "height": 192, "frames": 33, "fps": 16.0} | settings
    return [check.name for check in check_video(path, **known) if not check.ok]  # type: ignore[arg-type]


def save(path: Path, *, seconds: float | None, rate: int = 24_000, level: float = 0.3, pace: int = 1) -> Path:
    """The scene as ComfyUI's SaveVideo writes it: sound is cut to the picture, never filled up to it.

    Args:
        seconds: of sound; None for no sound at all.
        pace: by how much time stamps are stretched.
    """
    with av.open(str(path), "w") as output:
        video = output.add_stream("h264", rate=16)
        video.width, video.height, video.pix_fmt = 320, 192, "yuv420p"
        audio = output.add_stream("aac", rate=rate, layout="mono") if seconds is not None else None
        for number, picture in enumerate(clip_frames(SCENE, None, None)):
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24").reformat(format="yuv420p")
            frame.pts = number * pace
            output.mux(video.encode(frame))
        output.mux(video.encode(None))
        if audio is not None and seconds is not None:
            times = np.arange(min(round(seconds * rate), math.ceil(SECONDS * rate))) / rate
            tone = (level * np.sin(2 * np.pi * 220 * times)).astype(np.float32)[None]
            sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            sound.sample_rate, sound.pts = rate, 0
            output.mux(audio.encode(sound))
            output.mux(audio.encode(None))
    return path


def test_a_good_clip_passes(clip: Callable[..., Path]) -> None:
    assert failed(clip()) == []


def test_another_size_length_or_rate_is_found(clip: Callable[..., Path]) -> None:
    path = clip()
    assert failed(path, width=640) == ["size"]
    assert failed(path, frames=81) == ["frames", "duration_seconds"]
    assert failed(path, frames=32) == ["frames"]
    assert failed(path, fps=24.0) == ["fps", "duration_seconds"]


def test_time_stamps_that_are_stretched_are_found(tmp_path: Path) -> None:
    assert failed(save(tmp_path / "a.mp4", seconds=None, pace=2)) == ["fps", "duration_seconds"]


def test_a_clip_of_one_frame_is_judged_without_its_motion(clip: Callable[..., Path]) -> None:
    path = clip([still(SCENE)])
    assert failed(path, frames=1) == []


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.9])
def test_a_part_of_a_file_is_found(clip: Callable[..., Path], part: float) -> None:
    path = clip()
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    assert failed(path)


@pytest.mark.parametrize("part", [0.5, 1.0])
def test_a_file_without_its_index_does_not_open(tmp_path: Path, part: float) -> None:
    """SaveVideo writes the index (moov) last: what broke off has none."""
    path = save(tmp_path / "a.mp4", seconds=None)
    content = path.read_bytes()
    path.write_bytes(content[: int((content.index(b"moov") - 4) * part)])
    assert failed(path) == ["opens"]


@pytest.mark.parametrize("content", [b"", b"<html>placeholder</html>", b"\x00" * 4096])
def test_what_is_no_video_does_not_open(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    assert failed(tmp_path / "a.mp4") == ["opens"]
    assert failed(tmp_path / "missing.mp4") == ["opens"]


def test_a_file_with_sound_alone_does_not_open(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        audio = output.add_stream("aac", rate=24_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 24_000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 24_000
        output.mux(audio.encode(sound))
        output.mux(audio.encode(None))
    assert failed(tmp_path / "a.mp4") == ["opens"]


def test_frames_that_change_their_size_are_found(tmp_path: Path) -> None:
    """A filter that is made for one size would read past the end of a smaller frame."""
    streams = b""
    for width in (320, 160):
        with av.open(str(tmp_path / "part.h264"), "w", format="h264") as output:
            video = output.add_stream("h264", rate=16)
            video.width, video.height, video.pix_fmt = width, width // 2, "yuv420p"
            for _ in range(8):
                grey = av.VideoFrame.from_ndarray(np.full((width // 2, width, 3), 90, np.uint8), "rgb24")
                output.mux(video.encode(grey.reformat(format="yuv420p")))
            output.mux(video.encode(None))
        streams += (tmp_path / "part.h264").read_bytes()
    (tmp_path / "a.h264").write_bytes(streams)
    assert failed(tmp_path / "a.h264") == ["opens"]


def test_broken_bytes_are_never_an_exception(tmp_path: Path) -> None:
    good = save(tmp_path / "good.mp4", seconds=SECONDS).read_bytes()
    random = np.random.default_rng(1)
    for _ in range(25):
        broken = bytearray(good)
        for at in random.integers(0, len(broken), 60):
            broken[at] = int(random.integers(256))
        (tmp_path / "broken.mp4").write_bytes(bytes(broken))
        failed(tmp_path / "broken.mp4", spoken=SECONDS)


def test_full_range_is_measured_as_limited_range_is(tmp_path: Path) -> None:
    """Some encoders write luma from 0 to 255: black is black there too, and not darker than black."""
    frames = list(clip_frames(SCENE, None, None))
    with av.open(str(tmp_path / "full.mp4"), "w") as output:
        video = output.add_stream("h264", rate=16)
        video.width, video.height, video.pix_fmt = 320, 192, "yuvj420p"
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")
            output.mux(video.encode(frame.reformat(format="yuvj420p", dst_color_range="JPEG")))
        output.mux(video.encode(None))
    full, limited = (
        probe_video(path).seen
        for path in (tmp_path / "full.mp4", save(tmp_path / "limited.mp4", seconds=None))
    )
    assert full is not None
    assert limited is not None
    assert full.luma == pytest.approx(limited.luma, abs=1.5)
    assert full.lowest.min() == pytest.approx(limited.lowest.min(), abs=4)


def test_an_avatar_has_the_sound_of_its_narration(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mp4", seconds=3.0)
    assert failed(path, spoken=SECONDS) == []
    assert failed(path) == [], "a clip may have sound that nobody asked for"


def test_sound_may_end_with_the_narration(tmp_path: Path) -> None:
    """SaveVideo does not fill it up to the picture, which lasts as long as the last window of the model."""
    assert failed(save(tmp_path / "a.mp4", seconds=1.4), spoken=1.4) == []
    assert failed(save(tmp_path / "b.mp4", seconds=1.4, rate=44_100), spoken=1.4) == []


def test_an_avatar_without_sound_is_found(tmp_path: Path) -> None:
    assert failed(save(tmp_path / "a.mp4", seconds=None), spoken=1.4) == ["audio"]


def test_sound_that_breaks_off_is_found(tmp_path: Path) -> None:
    assert failed(save(tmp_path / "a.mp4", seconds=1.3), spoken=1.4) == ["audio_seconds"]


def test_sound_longer_than_the_picture_is_found(clip: Callable[..., Path], tmp_path: Path) -> None:
    long = tmp_path / "long.mp4"
    with av.open(str(clip())) as picture, av.open(str(long), "w") as output:
        video = output.add_stream_from_template(picture.streams.video[0])
        audio = output.add_stream("aac", rate=24_000, layout="mono")
        for packet in picture.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                output.mux(packet)
        noise = np.random.default_rng(1).normal(0, 0.1, (1, 60_000)).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
        sound.sample_rate = 24_000
        output.mux(audio.encode(sound))
        output.mux(audio.encode(None))
    assert failed(long, spoken=1.0) == ["audio_seconds"]


def test_silence_is_found_and_a_quiet_voice_is_not(tmp_path: Path) -> None:
    assert failed(save(tmp_path / "a.mp4", seconds=2.0, level=0.0), spoken=2.0) == ["audio_rms_dbfs"]
    assert failed(save(tmp_path / "b.mp4", seconds=2.0, level=0.005), spoken=2.0) == []


def test_draft_avatars_pass(tmp_path: Path) -> None:
    wav = tmp_path / "n.wav"
    with av.open(str(wav), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=24_000, layout="mono")
        tone = (6000 * np.sin(np.arange(40_000) / 9)).astype(np.int16)[None]
        sound = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
        sound.sample_rate = 24_000
        output.mux(stream.encode(sound))
    write_video(clip_frames(SCENE, None, None), SCENE, 16.0, tmp_path / "clip.mp4", wav)
    assert failed(tmp_path / "clip.mp4", spoken=40_000 / 24_000) == []


def test_packets_are_counted_without_decoding(clip: Callable[..., Path]) -> None:
    facts = probe_video(clip(), look=False)
    assert (facts.frames, facts.seconds, facts.seen) == (33, SECONDS, None)


def test_last_frame_is_the_last(clip: Callable[..., Path], tmp_path: Path) -> None:
    frames = list(clip_frames(SCENE, None, None))
    last_frame(clip(frames), tmp_path / "last.png")
    got, wanted, first = (
        np.asarray(p, float) for p in (PIL.Image.open(tmp_path / "last.png"), frames[-1], frames[0])
    )
    assert np.abs(got - wanted).mean() < 5 < np.abs(got - first).mean()


def test_poster_is_a_jpeg_of_the_clip(clip: Callable[..., Path]) -> None:
    with PIL.Image.open(io.BytesIO(poster(clip()))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (320, 192))


def failed_image(path: Path, width: int = 320) -> list[str]:
    return [check.name for check in check_image(path, width=width, height=192) if not check.ok]


def test_images_open_and_have_their_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    still(SCENE).save(path)
    assert failed_image(path) == []
    assert failed_image(path, 640) == ["size"]
    path.write_bytes(path.read_bytes()[:5000])
    assert failed_image(path) == ["opens"]
    path.write_bytes(b"")
    assert failed_image(path) == ["opens"]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "LA"])
def test_images_of_any_mode_are_read(tmp_path: Path, mode: str) -> None:
    still(SCENE).convert(mode).save(tmp_path / "a.png")
    assert failed_image(tmp_path / "a.png") == []
