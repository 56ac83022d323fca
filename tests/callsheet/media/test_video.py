import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from callsheet.media.video import check_image, check_video, last_frame, poster, probe_video
from gpu_service.graph import Scene
from gpu_service.movie import clip_frames, still, write_video

SCENE = Scene(prompt="the sea at night", seed=3, width=320, height=192, frames=33, fps=16.0)


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


def plain(level: int) -> PIL.Image.Image:
    return PIL.Image.new("RGB", (320, 192), (level, level, level))


def test_a_good_clip_passes(clip: Callable[..., Path]) -> None:
    assert failed(clip()) == []


def test_another_size_length_or_rate_is_caught(clip: Callable[..., Path]) -> None:
    path = clip()
    assert failed(path, width=640) == ["size"]
    assert failed(path, frames=81) == ["frames"]
    assert failed(path, fps=24.0) == ["fps"]


def test_black_is_caught(clip: Callable[..., Path]) -> None:
    assert {"luma_mean", "black_share"} <= set(failed(clip([plain(0)] * 33)))


def test_nan_noise_of_one_colour_is_caught(clip: Callable[..., Path]) -> None:
    assert "luma_deviation" in failed(clip([plain(128)] * 33))


def test_frozen_is_caught(clip: Callable[..., Path]) -> None:
    assert failed(clip([still(SCENE)] * 33)) == ["frozen_share"]


def test_half_black_is_caught(clip: Callable[..., Path]) -> None:
    frames = list(clip_frames(SCENE, None, None))
    assert "black_share" in failed(clip(frames[:12] + [plain(0)] * 21))


def test_half_a_file_is_caught(clip: Callable[..., Path]) -> None:
    path = clip()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert failed(path)


def test_what_is_no_video_is_caught(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"<html>placeholder</html>")
    assert failed(tmp_path / "a.mp4") == ["opens"]


def test_packets_are_counted_without_decoding(clip: Callable[..., Path]) -> None:
    facts = probe_video(clip(), look=False)
    assert (facts.frames, facts.seconds, facts.small.shape[0]) == (33, 33 / 16, 0)


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


def test_images_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    still(SCENE).save(path)
    assert failed_image(path) == []
    assert failed_image(path, 640) == ["size"]
    path.write_bytes(path.read_bytes()[:5000])
    assert failed_image(path) == ["opens"]
    plain(0).save(path)
    assert failed_image(path) == ["luma_mean", "luma_deviation"]
