"""Pictures that are no pictures, and odd ones that are: each fault beside what is most like it and good.

Samples are 33 frames of 832x480, two seconds, made with numpy and Pillow and encoded as hosts encode them. "Photos"
have the spectrum of photographs (amplitude falls as 1/f), which is what decides how alike neighbours are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from callsheet.media.video import check_image, check_video
from gpu_service.draw import Storyboard

Frame = npt.NDArray[np.uint8]
Clip = list[Frame]

W, H, N = 832, 480, 33
#: What hosts use: ComfyUI's SaveVideo, VideoHelperSuite, the draft host (whose stills are refined for half a second),
#: and a coarse one with a key frame every second.
ENCODERS: dict[str, dict[str, str]] = {
    "save_video": {},
    "video_helper_suite": {"crf": "19"},
    "draft_host": {"preset": "veryfast", "crf": "20", "x264-params": "bframes=0:mbtree=0"},
    "coarse": {"crf": "28", "g": "16"},
}


def encode(frames: Clip, path: Path, options: dict[str, str]) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("h264", rate=16, options=options)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            output.mux(stream.encode(picture.reformat(format="yuv420p")))
        output.mux(stream.encode(None))
    return path


def failed(frames: Clip, folder: Path, encoder: str = "draft_host") -> set[str]:
    path = encode(frames, folder / "clip.mp4", ENCODERS[encoder])
    checks = check_video(path, width=W, height=H, frames=len(frames), fps=16)
    return {check.name for check in checks if not check.ok}


def failed_image(frame: Frame, folder: Path) -> set[str]:
    PIL.Image.fromarray(frame).save(folder / "picture.png")
    return {check.name for check in check_image(folder / "picture.png", width=W, height=H) if not check.ok}


def as_bytes(values: npt.NDArray[np.floating]) -> Frame:
    return np.asarray(np.clip(values, 0, 255), np.uint8)


@functools.cache
def photo(
    seed: int = 1, mean: float = 115, spread: float = 52, extra: int = 200, falls: float = 1.1
) -> Frame:
    """A picture with a photograph's spectrum, ``extra`` pixels wider than a frame."""
    random = np.random.default_rng(seed)
    width = W + extra
    down, across = np.fft.fftfreq(H)[:, None] * width, np.fft.rfftfreq(width)[None, :] * width
    distance = np.hypot(down, across)
    distance[0, 0] = 1

    def plane() -> npt.NDArray[np.float64]:
        waves = random.normal(size=distance.shape) + 1j * random.normal(size=distance.shape)
        values = np.fft.irfft2(waves / distance**falls, s=(H, width))
        return np.asarray((values - values.mean()) / values.std())

    luma, first, second = plane(), plane() * 0.35, plane() * 0.35
    colours = np.stack([luma + second, luma - 0.3 * first - 0.4 * second, luma + first], -1)
    return as_bytes(colours * spread + mean)


def pan(picture: Frame, speed: float, frames: int = N) -> Clip:
    """Moves over a picture, ``speed`` pixels a frame."""
    image, bicubic = PIL.Image.fromarray(picture), PIL.Image.Resampling.BICUBIC
    return [
        np.asarray(
            image.transform(
                (W, H), PIL.Image.Transform.AFFINE, (1, 0, number * speed, 0, 1, 0), resample=bicubic
            )
        )
        for number in range(frames)
    ]


def zoom(picture: Frame, share: float) -> Clip:
    image, clip = PIL.Image.fromarray(picture[:, :W]), []
    for number in range(N):
        x, y = (size * share * number / (N - 1) / 2 for size in (W, H))
        clip.append(np.asarray(image.resize((W, H), PIL.Image.Resampling.BICUBIC, box=(x, y, W - x, H - y))))
    return clip


def lit(clip: Clip, levels: npt.ArrayLike) -> Clip:
    return [
        as_bytes(frame * level) for frame, level in zip(clip, np.asarray(levels, float).ravel(), strict=True)
    ]


def with_frame(clip: Clip, at: int, frame: Frame) -> Clip:
    return [*clip[:at], frame, *clip[at + 1 :]]


def flat(red: int, green: int | None = None, blue: int | None = None) -> Frame:
    return np.full((H, W, 3), (red, red if green is None else green, red if blue is None else blue), np.uint8)


def card(text: str, size: int, paper: int = 0, ink: int = 255) -> Frame:
    image = PIL.Image.new("RGB", (W, H), (paper,) * 3)
    font = PIL.ImageFont.load_default(size)
    place = ((W - font.getlength(text)) / 2, H / 2 - size / 2)
    PIL.ImageDraw.Draw(image).text(place, text, font=font, fill=(ink,) * 3)
    return np.asarray(image)


def grain(clip: Clip, strength: float) -> Clip:
    random = np.random.default_rng(5)
    return [as_bytes(frame + random.normal(0, strength, (H, W, 1))) for frame in clip]


def static(frames: int = N, planes: int = 3) -> Clip:
    random = np.random.default_rng(7)
    noise = (random.integers(0, 256, (H, W, planes), dtype=np.uint8) for _ in range(frames))
    return [np.ascontiguousarray(np.broadcast_to(one, (H, W, 3))) for one in noise]


def latent_noise(frames: int = N) -> Clip:
    """Like a latent of noise, decoded: cells of 8 x 8 that run into each other, another four frames on."""
    random = np.random.default_rng(8)
    clip: Clip = []
    while len(clip) < frames:
        cells = as_bytes(random.normal(118, 40, (H // 8, W // 8, 3)))
        blurred = PIL.Image.fromarray(cells).resize((W, H), PIL.Image.Resampling.BICUBIC)
        clip += [np.asarray(blurred)] * 4
    return clip[:frames]


def falling(count: int, smallest: float, largest: float, behind: Frame) -> Clip:
    """Snow."""
    random = np.random.default_rng(4)
    x, y, size = (
        random.uniform(0, W, count),
        random.uniform(0, H, count),
        random.uniform(smallest, largest, count),
    )
    clip = []
    for number in range(N):
        image = PIL.Image.fromarray(behind[:, :W])
        draw = PIL.ImageDraw.Draw(image)
        for a, b, c in zip(x, (y + number * 3) % H, size / 2, strict=True):
            draw.ellipse((a - c, b - c, a + c, b + c), fill=(235, 235, 235))
        clip.append(np.asarray(image))
    return clip


def rain() -> Clip:
    random = np.random.default_rng(4)
    x, y, behind = random.uniform(0, W, 1500), random.uniform(0, H, 1500), photo(9, 35, 8)
    clip = []
    for number in range(N):
        image = PIL.Image.fromarray(behind[:, :W])
        draw = PIL.ImageDraw.Draw(image)
        for a, b in zip(x, (y + number * 17) % H, strict=True):
            draw.line((a, b, a + 2, b + 15), fill=(150, 160, 175))
        clip.append(np.asarray(image))
    return clip


def confetti(size: float, count: int) -> Frame:
    random = np.random.default_rng(6)
    image = PIL.Image.new("RGB", (W + 80, H), (90, 90, 90))
    draw = PIL.ImageDraw.Draw(image)
    for x, y, scale, colour in zip(
        random.uniform(0, W + 80, count),
        random.uniform(0, H, count),
        random.uniform(0.35, 0.65, count) * size,
        random.integers(0, 256, (count, 3)).tolist(),
        strict=True,
    ):
        draw.ellipse((x - scale, y - scale, x + scale, y + scale), fill=tuple(colour))
    return np.asarray(image)


def stars() -> Frame:
    random = np.random.default_rng(3)
    sky = np.full((H, W + 80, 3), 2, np.uint8)
    for _ in range(320):
        x, y = random.integers(0, W + 78), random.integers(0, H - 2)
        sky[y : y + 2, x : x + 2] = random.uniform(60, 255)
    return sky


def lamp() -> Frame:
    """A night in which one lamp is all there is to see."""
    dark = photo(3, 4, 4).astype(float)
    x, y = np.arange(dark.shape[1])[None, :], np.arange(H)[:, None]
    return as_bytes(dark + 255 * np.exp(-(((x - 300) / 9) ** 2 + ((y - 200) / 9) ** 2))[..., None])


def candle() -> Clip:
    behind, random, clip = photo(12, 28, 16)[:, :W].astype(float), np.random.default_rng(11), []
    x, y = np.arange(W)[None, :], np.arange(H)[:, None]
    for number in range(N):
        height = 1 + 0.25 * np.sin(number * 0.9) + random.normal(0, 0.1)
        flame = np.exp(-(((x - 400) / 18) ** 2 + ((y - 220) / (34 * height)) ** 2))[..., None]
        clip.append(as_bytes(behind + flame * np.array([220, 170, 80]) * height))
    return clip


def mouth(first: int = 0) -> Clip:
    """A head of which nothing but the mouth moves, from the frame ``first`` on."""
    clip = []
    for number in range(N):
        image = PIL.Image.fromarray(photo(14)[:, :W])
        draw = PIL.ImageDraw.Draw(image)
        draw.ellipse((340, 120, 500, 340), fill=(210, 170, 140))
        opened = 4 + 10 * abs(np.sin(number * 0.8)) if number >= first else 0
        draw.ellipse((390, 280 - opened, 450, 280 + opened), fill=(90, 30, 30))
        clip.append(np.asarray(image))
    return clip


def television() -> Clip:
    """Static where it belongs: on a screen in a room."""
    clip = []
    for noise in static():
        frame = photo(31)[:, :W].copy()
        frame[120:360, 250:580] = noise[120:360, 250:580]
        clip.append(frame)
    return clip


def lightning() -> Clip:
    clip = [frame.astype(float) for frame in pan(photo(23, 33, 14), 0.5)]
    for number, light in enumerate((70, 55, 35, 15), start=12):
        clip[number] += light
    return [as_bytes(frame) for frame in clip]


def greyed() -> Clip:
    """Grey over four fifths of one frame, as bright as the frame is (kijai/ComfyUI-WanVideoWrapper#957)."""
    clip = pan(photo(), 1)
    covered = np.kron(np.random.default_rng(1).random((12, 26)) < 0.8, np.ones((40, 32))).astype(bool)
    frame = clip[15].copy()
    frame[covered] = round(float(frame.mean()))
    return with_frame(clip, 15, frame)


def cuts() -> Clip:
    return [
        *pan(photo(), 1, 11),
        *pan(photo(21, 190, 40), 1, 11),
        *pan(photo(22, 45, 25), 1, 11),
    ]


def stills(*pictures: Frame) -> Clip:
    each = -(-N // len(pictures))
    return [picture[:, :W] for picture in pictures for _ in range(each)][:N]


#: A fault, the check that finds it, and the good clip that is most like it.
FAULTS: dict[str, tuple[Callable[[], Clip], str, Callable[[], Clip]]] = {
    "black for most of it, black at the end": (
        lambda: [*pan(photo(), 1, 12), *[flat(0)] * 21],
        "black_share",
        lambda: [*pan(photo(), 1, 20), *[flat(0)] * 13],
    ),
    "black, a night with one lamp": (lambda: [flat(0)] * N, "black_share", lambda: pan(lamp(), 0.6)),
    "near-black, night": (
        lambda: lit(pan(photo(), 1), [0.03] * N),
        "brightest_luma",
        lambda: pan(photo(3, 22, 14), 0.6),
    ),
    "near-black that is grainy, a short title on black": (
        lambda: grain([flat(5)] * N, 2),
        "brightest_luma",
        lambda: zoom(card("1923", 40), 0.05),
    ),
    "grey, fog": (
        lambda: [flat(128)] * N,
        "flat_share",
        lambda: pan(photo(15, 192, 6, falls=1.6), 1),
    ),
    "green, a title on white": (
        lambda: [flat(0, 135, 0)] * N,
        "flat_share",
        lambda: zoom(card("Chapter one", 50, 255, 0), 0.05),
    ),
    "coloured static, grain at night": (
        static,
        "noise_share",
        lambda: grain(pan(photo(3, 27, 10), 0.5), 15),
    ),
    "grey static, a blizzard": (
        lambda: static(planes=1),
        "noise_share",
        lambda: falling(5000, 2, 8, flat(25, 28, 40)),
    ),
    "static that sets in, static on a screen": (
        lambda: [*pan(photo(), 1, 16), *static(N - 16)],
        "noise_share",
        television,
    ),
    "noise of latents, confetti": (latent_noise, "noise_share", lambda: pan(confetti(14, 4000), 1.5)),
    "one bright frame, lightning that fades": (
        lambda: with_frame(pan(photo(), 1), 15, as_bytes(pan(photo(), 1)[15] * 1.6)),
        "flashes",
        lightning,
    ),
    "one grey frame, cuts": (greyed, "flashes", cuts),
    "one black frame, through black to another scene": (
        lambda: with_frame(pan(photo(), 1), 15, flat(0)),
        "flashes",
        lambda: lit([*pan(photo(), 1, 16), *pan(photo(21), 1, 17)], abs(np.linspace(-1, 1, N))),
    ),
    "one frame of static, a fast pan": (
        lambda: with_frame(pan(photo(), 1), 15, static(1)[0]),
        "flashes",
        lambda: pan(photo(2, extra=900), 25),
    ),
    "two stills, a pan of 0.8 pixels a second": (
        lambda: stills(photo(), photo(5)),
        "motion",
        lambda: pan(photo(), 0.05),
    ),
    "a still that gets lighter by 1 %, a mouth alone": (
        lambda: lit(stills(photo()), np.linspace(1, 1.01, N)),
        "motion",
        mouth,
    ),
    "frozen from the start, frozen for half of it": (
        lambda: stills(photo()),
        "still_share",
        lambda: mouth(16),
    ),
    "frozen after five frames, a title that fades in and out": (
        lambda: [*pan(photo(), 1, 4), *[pan(photo(), 1, 5)[4]] * 29],
        "motion",
        lambda: lit([card("The Last Lighthouse", 60)] * N, np.clip((16 - abs(np.arange(N) - 16)) / 6, 0, 1)),
    ),
}

GOOD: dict[str, Callable[[], Clip]] = {
    "zoom of 0.35 % a second": lambda: zoom(photo(), 0.007),
    "grain": lambda: grain(pan(photo(), 0.4), 20),
    "fade from black": lambda: lit(pan(photo(), 1), np.linspace(0, 1, N)),
    "fade to white": lambda: [
        as_bytes(frame + (255.0 - frame) * share)
        for frame, share in zip(pan(photo(), 1), np.linspace(0, 1, N), strict=True)
    ],
    "stars": lambda: pan(stars(), 0.5),
    "snow": lambda: falling(1500, 1, 5, photo(9, 38, 14)),
    "rain": rain,
    "candle": candle,
    "every frame twice": lambda: [frame for frame in pan(photo(), 1, 17) for _ in (0, 1)][:N],
    "fire": lambda: lit(
        pan(photo(24, 50, 30), 0.4),
        1 + 0.15 * np.sin(np.arange(N) * 2.1) + 0.1 * np.sin(np.arange(N) * 1.3),
    ),
}


#: The checks that `make test` tries; the other pairs take seconds each.
QUICK = ("two stills, a pan of 0.8 pixels a second", "frozen from the start, frozen for half of it")


@pytest.mark.parametrize(
    "names", [pytest.param(names, marks=() if names in QUICK else pytest.mark.slow) for names in FAULTS]
)
def test_a_fault_is_found_and_what_is_like_it_passes(names: str, tmp_path: Path) -> None:
    fault, check, good = FAULTS[names]
    assert check in failed(fault(), tmp_path)
    assert failed(good(), tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_an_odd_clip_passes(name: str, tmp_path: Path) -> None:
    assert failed(GOOD[name](), tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_verdicts_do_not_depend_on_the_encoder(encoder: str, tmp_path: Path) -> None:
    """What encoders differ in is what they make of a still, of slow motion, of noise and of the dark."""
    assert "motion" in failed(stills(photo()), tmp_path, encoder)
    assert "motion" in failed(stills(photo(3, 22, 14)), tmp_path, encoder)
    assert "noise_share" in failed(static(17), tmp_path, encoder)
    assert failed(pan(photo(), 0.05), tmp_path, encoder) == set()
    assert failed(pan(photo(3, 22, 14), 0.1), tmp_path, encoder) == set()


@pytest.mark.parametrize("subject", ["lighthouse", "town", "forest", "portrait"])
@pytest.mark.parametrize("mood", ["night", "dusk", "dawn", "day", "tea room"])
def test_drafts_pass(subject: str, mood: str, tmp_path: Path) -> None:
    board = Storyboard(f"{subject} {mood}, the sea", 3, W, H)
    assert failed([np.asarray(board.frame(number / 8)) for number in range(9)], tmp_path) == set()
    assert failed_image(np.asarray(board.frame(0.0)), tmp_path) == set()


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (flat(0), "black_share"),
        (flat(255), "flat_share"),
        (flat(128, 90, 90), "flat_share"),
        (as_bytes(photo()[:, :W] * 0.03), "brightest_luma"),
        (static(1)[0], "noise_share"),
        (static(1, 1)[0], "noise_share"),
        (latent_noise(1)[0], "noise_share"),
    ],
)
def test_a_picture_that_is_none_is_found(fault: Frame, check: str, tmp_path: Path) -> None:
    assert check in failed_image(fault, tmp_path)


@pytest.mark.parametrize(
    "picture",
    [
        photo(3, 22, 14),
        lamp(),
        stars(),
        card("1923", 40),
        card("Chapter one", 50, 255, 0),
        photo(15, 192, 6, falls=1.6),
        confetti(14, 4000),
        grain([photo(3, 27, 10)[:, :W]], 15)[0],
        falling(5000, 2, 8, flat(25, 28, 40))[0],
    ],
    ids=["night", "lamp", "stars", "title", "title on white", "fog", "confetti", "grain at night", "blizzard"],
)  # fmt: skip
def test_an_odd_picture_passes(picture: Frame, tmp_path: Path) -> None:
    assert failed_image(picture[:, :W], tmp_path) == set()
