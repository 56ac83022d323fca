"""Draws storyboard frames: a landscape, a town or a room from a prompt and a seed, still or moving.

    board = Storyboard("a lighthouse at dusk, waves", seed=7, width=832, height=480)
    board.frame(0.0).save("first.png")       # the same prompt, seed and size give the same pixels

It is a draft: words of the prompt choose what is drawn, the seed its colours and shapes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter
import PIL.ImageFont

Colour = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]

#: Sky above, sky below, far hills, near hills, light: one mood each.
_MOODS: dict[str, tuple[Colour, Colour, Colour, Colour, Colour]] = {
    "night": ((11, 18, 44), (42, 58, 104), (24, 33, 66), (9, 14, 30), (246, 240, 214)),
    "dusk": ((46, 40, 92), (232, 128, 92), (96, 58, 92), (32, 24, 50), (255, 214, 150)),
    "dawn": ((126, 160, 204), (250, 208, 178), (150, 150, 176), (66, 74, 100), (255, 240, 210)),
    "day": ((92, 156, 214), (206, 228, 240), (108, 146, 128), (46, 84, 70), (255, 252, 236)),
    "warm": ((196, 148, 96), (244, 222, 182), (150, 104, 70), (74, 46, 34), (255, 244, 214)),
}
_MOOD_WORDS = {
    "night": ("night", "moon", "star", "dark", "midnight", "夜", "月", "星"),
    "dusk": ("dusk", "sunset", "evening", "storm", "黄昏", "傍晚", "夕阳", "暮"),
    "dawn": ("dawn", "sunrise", "morning", "mist", "fog", "清晨", "早晨", "日出", "雾"),
    "warm": ("tea", "room", "lamp", "candle", "kitchen", "library", "desert", "茶", "灯", "屋", "馆"),
}
_WATER_WORDS = (
    "sea",
    "ocean",
    "wave",
    "harbour",
    "harbor",
    "ship",
    "lake",
    "river",
    "rain",
    "海",
    "河",
    "湖",
    "水",
    "船",
    "雨",
)
_SUBJECT_WORDS = {
    "lighthouse": ("lighthouse", "tower", "beacon", "灯塔", "塔"),
    "town": ("city", "town", "street", "house", "village", "城", "街", "镇", "茶馆", "屋"),
    "trees": ("forest", "tree", "wood", "garden", "pine", "林", "树", "园", "竹"),
    "person": (
        "portrait",
        "face",
        "keeper",
        "woman",
        "man",
        "presenter",
        "person",
        "肖像",
        "人像",
        "掌柜",
        "姑娘",
        "老人",
    ),
}
#: Where a head is drawn and half its height, as shares of the picture's height.
HEAD_Y, HEAD_SIZE = 0.48, 0.3
#: Fonts with Chinese, Japanese and Korean glyphs, where a machine has one.
_WIDE_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
)


class Storyboard:
    """A scene, drawn once in layers that move at their own pace; `frame` puts them together."""

    def __init__(self, prompt: str, seed: int, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.prompt = prompt
        digest = hashlib.sha256(f"{seed}|{prompt}".encode()).digest()
        self._random = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        self._mood = _MOODS[_named(prompt, _MOOD_WORDS, ("day", "dawn", "dusk")[digest[8] % 3])]
        self._subject = _named(prompt, _SUBJECT_WORDS, ("trees", "town", "lighthouse")[digest[9] % 3])
        self._has_water = any(word in prompt.lower() for word in _WATER_WORDS)
        self._reach = width // 6  # how far the nearest layer travels
        self._horizon = int(height * self._random.uniform(0.56, 0.66))
        self._sky = self._draw_sky()
        self._ridges = [self._draw_ridge(depth) for depth in range(3)]
        self._foreground = self._draw_subject()
        self._caption = _caption(prompt, seed, width, height)

    def frame(self, at: float) -> PIL.Image.Image:
        """The picture at ``at``, from 0 (begin) to 1 (end of the clip)."""
        pixels = self._sky[:, int(at * self._reach * 0.15) :][:, : self.width].copy()
        rows = np.arange(self.height)[:, None]
        if self._has_water:
            self._add_water(pixels, at)
        for depth, (heights, colour) in enumerate(self._ridges):
            if self._has_water and depth > 0:
                break
            shift = int(at * self._reach * (0.3 + 0.25 * depth))
            tops = heights[shift : shift + self.width][None, :]
            bottom = self._horizon if self._has_water else self.height
            pixels[(rows >= tops) & (rows < bottom)] = colour
        picture = PIL.Image.fromarray(pixels)
        picture.paste(self._foreground, (-int(at * self._reach * 0.9), 0), self._foreground)
        if self._caption is not None:
            picture.paste(self._caption, (0, 0), self._caption)
        return picture

    def _draw_sky(self) -> Pixels:
        """Sky, clouds and sun or moon, somewhat wider than the picture, (height, width + reach, 3) uint8."""
        width = self.width + self._reach
        top, bottom, *_, light = (np.array(colour, np.float32) for colour in self._mood)
        down = np.linspace(0, 1, self.height, dtype=np.float32)[:, None, None] ** 0.8
        sky = np.repeat(top * (1 - down) + bottom * down, width, axis=1)
        x, y = np.arange(width)[None, :], np.arange(self.height)[:, None]
        centre = self._random.uniform(0.2, 0.8) * self.width, self._random.uniform(0.15, 0.4) * self.height
        distance = np.hypot(x - centre[0], y - centre[1])
        radius = self.height * self._random.uniform(0.05, 0.09)
        glow = np.clip(np.exp(-distance / (radius * 5)) * 0.6 + (distance < radius), 0, 1)[..., None]
        sky = sky * (1 - glow) + light * glow
        bands = np.zeros((self.height, width), np.float32)
        for _ in range(5):
            wave = self._random.uniform(1.5, 6) * 2 * np.pi / self.width
            bands += np.sin(x * wave + y * self._random.uniform(0.02, 0.09) + self._random.uniform(0, 6))
        clouds = np.clip(bands - 1.6, 0, 1.5)[..., None] * 0.16 * (1 - y / self.height)[..., None]
        sky = sky * (1 - clouds) + light * clouds
        return np.asarray(np.clip(sky, 0, 255), np.uint8)

    def _draw_ridge(self, depth: int) -> tuple[npt.NDArray[np.float32], Colour]:
        """The upper edge of a row of hills (in rows, from the top) and its colour; nearer ones are darker."""
        x = np.arange(self.width + self._reach, dtype=np.float32)
        height = self.height * (0.16 - 0.03 * depth)
        edge = np.zeros_like(x)
        for octave in range(1, 5):
            wave = octave * self._random.uniform(0.8, 1.7) * 2 * np.pi / self.width
            edge += np.sin(x * wave + self._random.uniform(0, 6)) / octave**1.3
        tops = self._horizon + depth * self.height * 0.09 - height * (0.55 + 0.3 * edge)
        far, near = np.array(self._mood[2], float), np.array(self._mood[3], float)
        blend = far + (near - far) * depth / 2
        return tops.astype(np.float32), _colour(blend)

    def _add_water(self, pixels: Pixels, at: float) -> None:
        """Sea below the horizon: the sky upside down, darker, with waves that run."""
        depth = self.height - self._horizon
        mirrored = (
            pixels[self._horizon - depth : self._horizon][::-1]
            if depth <= self._horizon
            else pixels[:depth][::-1]
        )
        x, y = np.arange(self.width)[None, :], np.arange(depth)[:, None]
        near = 0.4 + y / depth
        waves = np.sin(x * 0.05 / near + at * 26 + y * 0.9) + np.sin(x * 0.021 / near - at * 17 + y * 0.35)
        shine = np.clip(waves - 0.9, 0, 1)[..., None] * 60
        sea = mirrored[:depth] * 0.55 + np.array(self._mood[3]) * 0.25 + shine
        pixels[self._horizon :] = np.clip(sea, 0, 255).astype(np.uint8)

    def _draw_subject(self) -> PIL.Image.Image:
        """What the scene is about, as a layer with alpha, wider than the picture by its travel."""
        layer = PIL.Image.new("RGBA", (self.width + self._reach, self.height))
        draw = PIL.ImageDraw.Draw(layer)
        {"lighthouse": self._lighthouse, "town": self._town, "trees": self._trees, "person": self._person}[
            self._subject
        ](draw)
        return layer

    def _ground(self, draw: PIL.ImageDraw.ImageDraw, top: float) -> None:
        points = [(0.0, float(self.height))]
        for x in range(0, self.width + self._reach + 1, max(1, self.width // 24)):
            points.append((x, self.height * (top + 0.02 * np.sin(x / self.width * 9))))
        points.append((float(self.width + self._reach), float(self.height)))
        draw.polygon(points, fill=(*_colour(np.array(self._mood[3]) * 0.7), 255))

    def _lighthouse(self, draw: PIL.ImageDraw.ImageDraw) -> None:
        self._ground(draw, 0.9)
        h, x = self.height, self.width * self._random.uniform(0.55, 0.75)
        body, light = (232, 228, 218, 255), (*self._mood[4], 255)
        base, top, foot, head = h * 0.91, h * 0.34, h * 0.055, h * 0.035
        draw.polygon([(x - foot, base), (x + foot, base), (x + head, top), (x - head, top)], fill=body)
        for stripe in range(3):
            y0, y1 = base + (top - base) * (0.2 + 0.28 * stripe), base + (top - base) * (0.34 + 0.28 * stripe)
            w0, w1 = (foot + (head - foot) * (base - y) / (base - top) for y in (y0, y1))
            draw.polygon([(x - w0, y0), (x + w0, y0), (x + w1, y1), (x - w1, y1)], fill=(178, 62, 54, 255))
        draw.rectangle((x - head * 1.5, top - h * 0.012, x + head * 1.5, top), fill=(40, 40, 48, 255))
        draw.rectangle((x - head, top - h * 0.07, x + head, top - h * 0.012), fill=light)
        draw.polygon(
            [(x - head * 1.3, top - h * 0.07), (x + head * 1.3, top - h * 0.07), (x, top - h * 0.12)],
            fill=(178, 62, 54, 255),
        )
        for side in (-1, 1):
            far = x + side * self.width
            draw.polygon(
                [(x, top - h * 0.04), (far, top - h * 0.16), (far, top + h * 0.06)], fill=(*self._mood[4], 46)
            )

    def _town(self, draw: PIL.ImageDraw.ImageDraw) -> None:
        self._ground(draw, 0.93)
        x, dark = -self.width * 0.02, np.array(self._mood[3])
        while x < self.width + self._reach:
            w, h = (
                self.width * self._random.uniform(0.06, 0.13),
                self.height * self._random.uniform(0.16, 0.42),
            )
            top = self.height * 0.95 - h
            wall = (*_colour(dark * self._random.uniform(0.8, 1.7)), 255)
            draw.rectangle((x, top, x + w, self.height), fill=wall)
            draw.polygon(
                [
                    (x - w * 0.12, top),
                    (x + w * 1.12, top),
                    (x + w * 0.8, top - h * 0.16),
                    (x + w * 0.2, top - h * 0.16),
                ],
                fill=(*_colour(dark * 0.6), 255),
            )
            for row in np.arange(top + h * 0.1, self.height * 0.9, self.height * 0.07):
                for column in (0.22, 0.58):
                    if self._random.random() < 0.6:
                        left = x + w * column
                        draw.rectangle(
                            (left, row, left + w * 0.2, row + self.height * 0.032), fill=(*self._mood[4], 235)
                        )
            x += w * self._random.uniform(1.0, 1.25)

    def _trees(self, draw: PIL.ImageDraw.ImageDraw) -> None:
        self._ground(draw, 0.92)
        dark = np.array(self._mood[3])
        for x in np.sort(self._random.uniform(0, self.width + self._reach, 22)):
            h = self.height * self._random.uniform(0.2, 0.5)
            base = self.height * 0.96
            green = (*_colour(dark * self._random.uniform(0.6, 1.3)), 255)
            draw.rectangle(
                (x - h * 0.02, base - h * 0.2, x + h * 0.02, base), fill=(*_colour(dark * 0.5), 255)
            )
            for level in range(4):
                y, w = base - h * (0.12 + 0.21 * level), h * (0.2 - 0.04 * level)
                draw.polygon([(x - w, y), (x + w, y), (x, y - h * 0.34)], fill=green)

    def _person(self, draw: PIL.ImageDraw.ImageDraw) -> None:
        self._ground(draw, 0.97)
        centre = self.width * 0.5, self.height * HEAD_Y
        draw_head(draw, Head.of(self._random), centre, self.height * HEAD_SIZE, mouth=0.0, blink=False)


class Head:
    """A drawn person: the colours of skin, hair and clothes."""

    def __init__(self, skin: Colour, hair: Colour, clothes: Colour, long_hair: bool) -> None:
        self.skin, self.hair, self.clothes, self.long_hair = skin, hair, clothes, long_hair

    @classmethod
    def of(cls, random: np.random.Generator) -> Head:
        skins = ((242, 208, 178), (224, 176, 136), (176, 122, 86), (120, 80, 58))
        hairs = ((36, 28, 26), (88, 58, 36), (170, 168, 168), (148, 96, 44))
        clothes = ((52, 86, 120), (136, 58, 62), (66, 100, 82), (92, 74, 120))
        skin, hair, cloth = (options[int(random.integers(4))] for options in (skins, hairs, clothes))
        return cls(skin, hair, cloth, bool(random.integers(2)))


def draw_head(
    draw: PIL.ImageDraw.ImageDraw,
    head: Head,
    centre: tuple[float, float],
    size: float,
    *,
    mouth: float,
    blink: bool,
) -> None:
    """Head and shoulders. ``size`` is half the height of the head in pixels, ``mouth`` opens it from 0 to 1."""
    x, y = centre
    w = size * 0.78
    hair, skin, clothes = (*head.hair, 255), (*head.skin, 255), (*head.clothes, 255)
    draw.rounded_rectangle(
        (x - size * 1.7, y + size * 1.15, x + size * 1.7, y + size * 4), size * 0.8, fill=clothes
    )
    if head.long_hair:
        draw.rounded_rectangle(
            (x - w * 1.25, y - size * 0.6, x + w * 1.25, y + size * 1.4), size * 0.5, fill=hair
        )
    draw.rectangle(
        (x - w * 0.35, y + size * 0.7, x + w * 0.35, y + size * 1.35),
        fill=(*_colour(np.array(head.skin) * 0.88), 255),
    )
    draw.ellipse((x - w * 1.12, y - size * 1.15, x + w * 1.12, y + size * 0.5), fill=hair)
    draw.ellipse((x - w, y - size * 0.95, x + w, y + size), fill=skin)
    draw.chord((x - w * 1.02, y - size * 1.08, x + w * 1.02, y + size * 0.3), 190, 350, fill=hair)
    for side in (-1, 1):
        eye_x, eye_y, eye = x + side * w * 0.42, y - size * 0.08, size * 0.1
        draw.line(
            (eye_x - eye * 1.5, eye_y - eye * 2.4, eye_x + eye * 1.5, eye_y - eye * 2.6),
            fill=hair,
            width=max(1, int(size * 0.05)),
        )
        if blink:
            draw.line(
                (eye_x - eye, eye_y, eye_x + eye, eye_y),
                fill=(40, 30, 30, 255),
                width=max(1, int(size * 0.04)),
            )
        else:
            draw.ellipse((eye_x - eye, eye_y - eye, eye_x + eye, eye_y + eye), fill=(250, 250, 248, 255))
            draw.ellipse(
                (eye_x - eye * 0.55, eye_y - eye * 0.6, eye_x + eye * 0.55, eye_y + eye * 0.6),
                fill=(36, 34, 40, 255),
            )
    draw.line(
        (x, y, x + size * 0.06, y + size * 0.24, x - size * 0.05, y + size * 0.26),
        fill=(*_colour(np.array(head.skin) * 0.72), 255),
        width=max(1, int(size * 0.04)),
    )
    mouth_y, half, gap = y + size * 0.52, w * (0.34 - 0.08 * mouth), size * (0.025 + 0.2 * mouth)
    draw.ellipse(
        (x - half, mouth_y - gap, x + half, mouth_y + gap),
        fill=(96, 30, 34, 255),
        outline=(160, 78, 76, 255),
        width=max(1, int(size * 0.03)),
    )


def _named(prompt: str, words: dict[str, tuple[str, ...]], otherwise: str) -> str:
    """The entry of which the prompt has the most words."""
    text = prompt.lower()
    counts = {name: sum(word in text for word in group) for name, group in words.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else otherwise


def _colour(values: Sequence[float] | npt.NDArray[np.float64]) -> Colour:
    red, green, blue = (int(min(255, max(0, value))) for value in values)
    return red, green, blue


def _caption(prompt: str, seed: int, width: int, height: int) -> PIL.Image.Image | None:
    """The slate at the foot of a draft: what was asked for. None where no font has the glyphs."""
    text = f"DRAFT · {prompt}"
    size = max(11, height // 34)
    font = next((f for f in _fonts(size) if _has_glyphs(f, text)), None)
    if font is None:
        return None
    while font.getlength(text) > width * 0.92 and len(text) > 12:
        text = text[:-6].rstrip(" .,，。…") + "…"
    layer = PIL.Image.new("RGBA", (width, height))
    draw = PIL.ImageDraw.Draw(layer)
    draw.rectangle((0, height - size * 2, width, height), fill=(0, 0, 0, 130))
    draw.text((size, height - size * 1.6), text, font=font, fill=(255, 255, 255, 225))
    return layer


@functools.cache
def _fonts(size: int) -> tuple[PIL.ImageFont.FreeTypeFont, ...]:
    found = [PIL.ImageFont.truetype(path, size) for path in _WIDE_FONTS if Path(path).is_file()]
    builtin = PIL.ImageFont.load_default(size)
    return (*((builtin,) if isinstance(builtin, PIL.ImageFont.FreeTypeFont) else ()), *found)


def _has_glyphs(font: PIL.ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether the font draws every character as something other than its box for missing ones."""
    missing = bytes(font.getmask("\uffff"))
    return all(c.isspace() or bytes(font.getmask(c)) != missing for c in set(text))
