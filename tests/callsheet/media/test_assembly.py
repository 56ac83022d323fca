"""Clips and programmes, built by the real ffmpeg and measured again."""

import io
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pyloudnorm
import pytest
import soundfile

from callsheet.errors import AssemblyFault
from callsheet.media.assembly import ClipParts, build_clip, build_programme
from callsheet.media.audio import read_sound
from callsheet.media.ffmpeg import run_arguments
from callsheet.media.loudness import measure, normalise
from callsheet.media.video import probe_video
from callsheet.plan import Canvas
from gpu_service.graph import Scene
from gpu_service.movie import clip_frames, still, write_video
from tests.conftest import write_tone

CANVAS = Canvas(320, 192, 16.0)
SCENE = Scene(prompt="the sea at night", seed=3, width=320, height=192, frames=33, fps=16.0)


def video(path: Path, scene: Scene = SCENE) -> Path:
    write_video(clip_frames(scene, None, None), scene, scene.fps, path, None)
    return path


def picture(path: Path, size: tuple[int, int] = (320, 192)) -> Path:
    still(Scene(prompt="a lamp", seed=1, width=size[0], height=size[1])).save(path)
    return path


def times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        return sorted(
            float(p.pts * stream.time_base) for p in container.demux(stream) if p.pts is not None and p.size
        )


def frame(path: Path, number: int) -> np.ndarray:
    with av.open(str(path)) as container:
        for index, one in enumerate(container.decode(video=0)):
            if index == number:
                return one.to_ndarray(format="gray").astype(float)
    raise AssertionError("no such frame")


async def test_still_covers_the_narration_to_within_a_frame(tmp_path: Path) -> None:
    narration = write_tone(tmp_path / "n.wav", 2.53, 24_000)
    parts = ClipParts(narration, (picture(tmp_path / "p.png"),), CANVAS, 2.53)
    await build_clip(parts, tmp_path / "clip.mp4", tmp_path)
    facts = probe_video(tmp_path / "clip.mp4")
    assert (facts.frames, facts.width, facts.height, facts.codec, facts.pixel_format) == (
        41,
        320,
        192,
        "h264",
        "yuv420p",
    )
    assert 0 <= facts.seconds - 2.53 < 1 / 16
    assert facts.audio_seconds == pytest.approx(facts.seconds, abs=0.03)
    head = (tmp_path / "clip.mp4").read_bytes()
    assert head.index(b"moov") < head.index(b"mdat"), "faststart"


async def test_streams_are_what_players_expect(tmp_path: Path) -> None:
    parts = ClipParts(write_tone(tmp_path / "n.wav", 1.0), (picture(tmp_path / "p.png"),), CANVAS, 1.0)
    await build_clip(parts, tmp_path / "clip.mp4", tmp_path)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        sound, image = container.streams.audio[0], container.streams.video[0]
        assert (sound.codec_context.name, sound.rate, sound.channels) == ("aac", 48_000, 2)
        assert image.profile == "High"
        assert int(image.codec_context.colorspace) == 1  # BT.709


async def test_clips_follow_each_other_without_the_doubled_frame(tmp_path: Path) -> None:
    first = video(tmp_path / "a.mp4")
    second = video(
        tmp_path / "b.mp4", Scene(prompt="a forest", seed=9, width=320, height=192, frames=33, fps=16.0)
    )
    parts = ClipParts(None, (first, second), CANVAS, 65 / 16)
    await build_clip(parts, tmp_path / "clip.mp4", tmp_path)
    assert probe_video(tmp_path / "clip.mp4", look=False).frames == 65
    wanted = frame(second, 1)
    assert np.abs(frame(tmp_path / "clip.mp4", 33) - wanted).mean() < 6
    assert np.abs(frame(tmp_path / "clip.mp4", 32) - wanted).mean() > 10


async def test_other_frame_rates_keep_their_time(tmp_path: Path) -> None:
    parts = ClipParts(None, (video(tmp_path / "a.mp4"),), Canvas(320, 192, 25.0), 2.0)
    await build_clip(parts, tmp_path / "clip.mp4", tmp_path)
    assert probe_video(tmp_path / "clip.mp4", look=False).frames == 50
    assert np.abs(frame(tmp_path / "clip.mp4", 25) - frame(tmp_path / "a.mp4", 16)).mean() < 6


async def test_ntsc_rate_is_exact(tmp_path: Path) -> None:
    parts = ClipParts(None, (picture(tmp_path / "p.png"),), Canvas(320, 192, 29.97), 2.0)
    await build_clip(parts, tmp_path / "clip.mp4", tmp_path)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert str(container.streams.video[0].average_rate) == "30000/1001"


@pytest.mark.parametrize(("size", "bars"), [((320, 320), True), ((640, 384), False), ((640, 376), False)])
async def test_other_shapes_get_bars_and_near_ones_are_cropped(
    tmp_path: Path, size: tuple[int, int], bars: bool
) -> None:
    white = PIL.Image.new("RGB", size, "white")
    white.save(tmp_path / "p.png")
    await build_clip(ClipParts(None, (tmp_path / "p.png",), CANVAS, 0.5), tmp_path / "clip.mp4", tmp_path)
    edge = frame(tmp_path / "clip.mp4", 2)[:, :8].mean()
    assert bool(edge < 30) is bars


async def test_video_that_ends_early_is_held(tmp_path: Path) -> None:
    parts = ClipParts(None, (video(tmp_path / "a.mp4"),), CANVAS, 3.0)
    await build_clip(parts, tmp_path / "clip.mp4", tmp_path)
    assert probe_video(tmp_path / "clip.mp4", look=False).frames == 48
    assert np.abs(frame(tmp_path / "clip.mp4", 47) - frame(tmp_path / "a.mp4", 32)).mean() < 6


async def test_narration_without_picture_in_a_programme_has_a_plain_one(tmp_path: Path) -> None:
    parts = ClipParts(write_tone(tmp_path / "n.wav", 1.0), (), CANVAS, 1.0)
    await build_clip(parts, tmp_path / "clip.mp4", tmp_path)
    assert probe_video(tmp_path / "clip.mp4", look=False).frames == 16


async def test_narration_alone_is_a_wav_of_its_length(tmp_path: Path) -> None:
    parts = ClipParts(write_tone(tmp_path / "n.wav", 1.0, 24_000), (), None, 1.5)
    await build_clip(parts, tmp_path / "clip.wav", tmp_path)
    sound = read_sound(tmp_path / "clip.wav")
    assert (sound.rate, len(sound.samples)) == (48_000, 72_000)
    assert np.abs(sound.samples[50_000:]).max() == 0


async def test_same_parts_give_the_same_bytes(tmp_path: Path) -> None:
    parts = ClipParts(write_tone(tmp_path / "n.wav", 1.0), (video(tmp_path / "a.mp4"),), CANVAS, 1.0)
    for name in ("one.mp4", "two.mp4"):
        await build_clip(parts, tmp_path / name, tmp_path)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.slow
async def test_programme_of_many_clips_does_not_drift(tmp_path: Path) -> None:
    """37 clips of awkward lengths: joined as encoded AAC they would be half a second apart at the end."""
    clips = []
    image = picture(tmp_path / "p.png")
    for number in range(37):
        seconds = 0.31 + 0.017 * number
        beep = write_tone(tmp_path / f"{number}.wav", 0.1, 24_000)
        parts = ClipParts(beep, (image,), CANVAS, seconds)
        await build_clip(parts, tmp_path / f"it's {number}.mp4", tmp_path)
        clips.append((parts, tmp_path / f"it's {number}.mp4"))
    await build_programme(clips, tmp_path / "programme.mp4", tmp_path)
    frames = sum(parts.frames for parts, _ in clips)
    at = times(tmp_path / "programme.mp4")
    assert len(at) == frames
    assert np.allclose(np.diff(at), 1 / 16, atol=1e-4)
    facts = probe_video(tmp_path / "programme.mp4", look=False)
    assert facts.audio_seconds == pytest.approx(frames / 16, abs=0.03)
    await run_arguments(["-i", str(tmp_path / "programme.mp4"), "-vn", str(tmp_path / "sound.wav")])
    sound = read_sound(tmp_path / "sound.wav")
    begin = sum(parts.frames for parts, _ in clips[:-1]) / 16
    loud = np.flatnonzero(np.abs(sound.samples[round((begin - 0.2) * 48_000) :]) > 0.02)[0] / 48_000
    assert loud == pytest.approx(0.2, abs=0.03), "the last clip's sound begins with its picture"


def speech_like(path: Path, level: float, crest: float = 0.0) -> Path:
    """Noise in syllables, up to 20 kHz, which AAC cuts off; ``crest`` adds single peaks of that height."""
    random = np.random.default_rng(4)
    at = np.arange(48_000 * 8)
    samples = random.normal(0, level, len(at)) * (0.2 + np.abs(np.sin(at / 9_000)))
    samples[::24_000] = crest * np.sign(random.normal(size=len(samples[::24_000])))
    soundfile.write(path, np.clip(samples, -1, 1), 48_000, subtype="FLOAT")
    return path


@pytest.mark.parametrize(
    ("level", "crest"),
    [(0.02, 0.0), (0.02, 0.9), (0.2, 0.0), (0.001, 0.3)],
    ids=["quiet", "peaks", "loud", "whisper"],
)
async def test_programme_is_at_its_loudness_and_under_its_peak(
    tmp_path: Path, level: float, crest: float
) -> None:
    parts = ClipParts(speech_like(tmp_path / "n.wav", level, crest), (), None, 8.0)
    loudness = await build_programme([(parts, tmp_path / "unused")], tmp_path / "programme.m4a", tmp_path)
    assert loudness.integrated_lufs == pytest.approx(-16.0, abs=0.5)
    assert loudness.true_peak_dbtp <= -1.0
    # Measured by another implementation, on the decoded file.
    await run_arguments(["-i", str(tmp_path / "programme.m4a"), str(tmp_path / "sound.wav")])
    samples, rate = soundfile.read(tmp_path / "sound.wav")
    assert pyloudnorm.Meter(rate).integrated_loudness(samples) == pytest.approx(-16.0, abs=0.6)


async def test_loudness_agrees_with_the_reference(tmp_path: Path) -> None:
    path = speech_like(tmp_path / "n.wav", 0.05)
    samples, rate = soundfile.read(path)
    assert (await measure(path)).integrated_lufs == pytest.approx(
        pyloudnorm.Meter(rate).integrated_loudness(samples), abs=0.3
    )


async def test_silent_programme_stays_silent(tmp_path: Path) -> None:
    parts = ClipParts(None, (picture(tmp_path / "p.png"),), CANVAS, 1.0)
    await build_clip(parts, tmp_path / "c.mp4", tmp_path)
    loudness = await build_programme([(parts, tmp_path / "c.mp4")], tmp_path / "programme.mp4", tmp_path)
    assert not loudness.is_audible
    assert probe_video(tmp_path / "programme.mp4", look=False).audio_seconds == pytest.approx(1.0, abs=0.03)


async def test_gain_is_linear_where_no_peak_forbids_it(tmp_path: Path) -> None:
    source = speech_like(tmp_path / "n.wav", 0.05)
    await normalise(source, tmp_path / "out.wav", tmp_path, lufs=-16.0, peak_dbtp=-1.5)
    before, after = soundfile.read(source)[0], soundfile.read(tmp_path / "out.wav")[0]
    gain = after[1000:-1000] / np.where(np.abs(before[1000:-1000]) < 1e-3, np.nan, before[1000:-1000])
    assert np.nanstd(gain) < 0.01 * np.nanmean(gain)


async def test_ffmpeg_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(io.BytesIO(b"not a picture").read())
    with pytest.raises(AssemblyFault, match=r"clip.mp4: ffmpeg ended with"):
        await run_arguments(["-i", str(tmp_path / "p.png"), str(tmp_path / "clip.mp4")], what="clip.mp4")
