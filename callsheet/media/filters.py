"""What a clip looks and sounds like, in numbers: ffmpeg's measuring filters, run in this process.

    watch = PictureWatch(first_frame, fps=16)
    for frame in frames:
        watch.see(frame)
    seen = watch.seen()

Frames that PyAV has decoded go once through one graph of filters; what these write into the metadata of a
frame is collected, pixels never reach Python. The filters are those of PyAV's own libavfilter (8.1 in the
pinned `av`), so numbers do not depend on the machine's ffmpeg: Debian 12's, 5.1, has no `corr`; PyAV's, in
turn, has no `blackframe`. Those that 5.1 and imageio-ffmpeg's 9.0 have gave the same numbers to all digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import av.filter
import numpy as np
import numpy.typing as npt
from av.filter.context import FilterContext

Floats = npt.NDArray[np.float64]

#: Frames are looked at in copies of a quarter of the width and height: what a viewer sees is still there,
#: the encoder's noise and film grain mostly are not, and it costs a sixteenth.
_SMALL = 4
#: Motion and noise are looked at four times a second: in that time a slow pan leaves the encoder's noise behind.
_STEPS_PER_SECOND = 4
#: Latents of Wan 2.1 and Flux stand for 8 x 8 pixels each; noise in them is noise from cell to cell.
_CELL = 8
#: The middle of the frame, in pixels as they are, for how alike neighbouring pixels are.
_MIDDLE = (208, 120)
#: A pixel this dark, as a share of the way from black to white, is black; a frame is when all but 0.1 % are.
#: ffmpeg's own 10 % and 98 % would take a title card and a night with one lamp for black.
_BLACK = "blackdetect=d=0:pix_th=0.05:pic_th=0.999"
_STATS = "lavfi.signalstats."
#: Frames are numbered; the filters need some time base, and it decides nothing.
_TICK = Fraction(1, 25)


@dataclass(frozen=True)
class Seen:
    """What the filters found. Luma is from 0 (black) to 255 (white).

    Attributes:
        black: of each frame, whether it is black; (frames,).
        luma, dark, bright: of each frame, mean luma and the luma that 10 % and 90 % of it are below; (frames,).
        lowest, highest: of each frame, the darkest and the brightest spot of 4 x 4 pixels; (frames,).
        moved: for each quarter of a second, how far the picture moved: temporal by spatial information
            (ITU-T P.910, the filter siti); about half the way in units of 4 pixels; (steps - 1,).
        alike_far, alike_near: at each step, the correlation of cells of 8 x 8 pixels, and of pixels, with
            their neighbours, the better of the two directions; (steps,).
        contrast, colour: at each step, between which luma 80 % of the pixels are, and the same for chroma; (steps,).
    """

    black: npt.NDArray[np.bool_]
    luma: Floats
    dark: Floats
    bright: Floats
    lowest: Floats
    highest: Floats
    moved: Floats
    alike_far: Floats
    alike_near: Floats
    contrast: Floats
    colour: Floats


@dataclass(frozen=True)
class Heard:
    """What the sound is: seconds decoded, Hz, and the RMS level of the whole in dBFS."""

    seconds: float
    rate: int
    rms_dbfs: float


class PictureWatch:
    """Looks at frames of one size, one after the other."""

    def __init__(self, first: av.VideoFrame, fps: float) -> None:
        self._step = max(1, round(fps / _STEPS_PER_SECOND)) if fps else 1
        self._frames = 0
        self._kind = _kind(first)
        self._graph = _Graph()
        source = self._graph.graph.add_buffer(
            width=first.width, height=first.height, format=first.format, time_base=_TICK
        )
        self._build(source, first.width, first.height)

    def see(self, frame: av.VideoFrame) -> None:
        """Looks at one frame. Its time becomes its number: filters with two inputs pair frames by time.

        Raises ValueError where it is not like the first, for which filters such as crop are not made.
        """
        if _kind(frame) != self._kind:
            raise ValueError(f"frame {self._frames} is {_kind(frame)}, the first {self._kind}")
        frame.pts, frame.time_base = self._frames, _TICK
        self._frames += 1
        self._graph.push(frame)

    def seen(self) -> Seen:
        """Ends the look and says what was found."""
        self._graph.push(None)
        stats = self._graph.column
        cells = [stats(name, "lavfi.corr.corr.Y") for name in ("cells across", "cells down")]
        pixels = [stats(name, "lavfi.corr.corr.Y") for name in ("pixels across", "pixels down")]
        return Seen(
            black=self._black(),
            luma=_luma(stats("all", _STATS + "YAVG")),
            dark=_luma(stats("all", _STATS + "YLOW")),
            bright=_luma(stats("all", _STATS + "YHIGH")),
            lowest=_luma(stats("all", _STATS + "YMIN")),
            highest=_luma(stats("all", _STATS + "YMAX")),
            moved=self._moved(),
            alike_far=np.maximum(*np.abs(cells)),
            alike_near=np.maximum(*np.abs(pixels)),
            contrast=self._between("Y") * 255 / 219,
            colour=np.maximum(self._between("U"), self._between("V")),
        )

    def _build(self, source: FilterContext, width: int, height: int) -> None:
        graph = self._graph
        # Full range (PNG, JPEG, some encoders) becomes 16..235, so that all limits mean the same.
        small = f"scale={_even(width, _SMALL)}:{_even(height, _SMALL)}:flags=area:out_range=tv"
        cells = f"scale={max(8, width // _CELL)}:{max(8, height // _CELL)}:flags=area:out_range=tv"
        middle = f"crop={min(width, _MIDDLE[0])}:{min(height, _MIDDLE[1])}"
        every, stepped = graph.split(source, 2)
        whole = graph.chain(every, small, "format=yuv420p", _BLACK, "siti", "signalstats")
        graph.sink("all", whole)
        ways = graph.split(graph.chain(stepped, f"framestep={self._step}"), 3)
        graph.sink("steps", graph.chain(ways[0], small, "format=yuv420p", "siti"))
        # 4:4:4, because crop moves planes by whole chroma samples only.
        self._correlate(graph.chain(ways[1], cells, "format=yuv444p"), "cells")
        self._correlate(graph.chain(ways[2], middle, "scale=out_range=tv", "format=yuv444p"), "pixels")

    def _correlate(self, source: FilterContext, name: str) -> None:
        """Correlates the picture with itself, moved by one to the side and by one down."""
        graph = self._graph
        left, right, top, bottom = graph.split(source, 4)
        across = graph.join(
            "corr", graph.chain(left, "crop=iw-1:ih:0:0"), graph.chain(right, "crop=iw-1:ih:1:0")
        )
        down = graph.join(
            "corr", graph.chain(top, "crop=iw:ih-1:0:0"), graph.chain(bottom, "crop=iw:ih-1:0:1")
        )
        graph.sink(f"{name} across", graph.chain(across, "signalstats"))
        graph.sink(f"{name} down", down)

    def _black(self) -> npt.NDArray[np.bool_]:
        """blackdetect marks the first black frame and the first that is not any more."""
        black, flags = False, []
        for marks in self._graph.found["all"]:
            black = (black or "lavfi.black_start" in marks) and "lavfi.black_end" not in marks
            flags.append(black)
        return np.array(flags, bool)

    def _between(self, plane: str) -> Floats:
        column = self._graph.column
        return column("pixels across", f"{_STATS}{plane}HIGH") - column(
            "pixels across", f"{_STATS}{plane}LOW"
        )

    def _moved(self) -> Floats:
        """A step's change is that over the whole step, or the largest within it, which sees what comes back."""
        column = self._graph.column
        over, within = column("steps", "lavfi.siti.ti"), column("all", "lavfi.siti.ti")
        detail = np.maximum(column("steps", "lavfi.siti.si"), 1.0)
        moved = [
            max(over[number], within[(number - 1) * self._step + 1 : number * self._step + 1].max())
            / detail[number]
            for number in range(1, len(over))
        ]
        return np.array(moved, float)


class SoundWatch:
    """Listens to the frames of one audio stream."""

    def __init__(self, first: av.AudioFrame) -> None:
        self._rate, self._samples = first.sample_rate, 0
        self._graph = _Graph()
        source = self._graph.graph.add_abuffer(
            sample_rate=first.sample_rate,
            format=first.format.name,
            layout=first.layout.name,
            time_base=Fraction(1, first.sample_rate),
        )
        # Without a reset, the numbers of the last frame are those of the whole.
        stats = "astats=metadata=1:reset=0:measure_perchannel=none:measure_overall=RMS_level"
        self._graph.sink("all", self._graph.chain(source, stats), "abuffersink")

    def hear(self, frame: av.AudioFrame) -> None:
        frame.pts, frame.time_base = self._samples, Fraction(1, self._rate)
        self._samples += frame.samples
        self._graph.push(frame)

    def heard(self) -> Heard:
        self._graph.push(None)
        levels = self._graph.column("all", "lavfi.astats.Overall.RMS_level")
        level = max(float(levels[-1]), -120.0) if len(levels) else -120.0
        return Heard(self._samples / self._rate, self._rate, level)


class _Graph:
    """A filter graph with named ends; ``found`` has, for each end, the metadata of every frame that came out."""

    def __init__(self) -> None:
        self.graph = av.filter.Graph()
        self.graph.threads = 1  # clips are checked side by side, and lanes must not wait for them
        self.found: dict[str, list[dict[str, str]]] = {}
        self._ends: dict[str, FilterContext] = {}

    def chain(self, source: FilterContext | tuple[FilterContext, int], *filters: str) -> FilterContext:
        """Links filters ("name=arguments") behind a filter, or behind one of its outputs."""
        last, output = source if isinstance(source, tuple) else (source, 0)
        for text in filters:
            name, _, arguments = text.partition("=")
            added = self.graph.add(name, arguments or None)
            last.link_to(added, output)
            last, output = added, 0
        return last

    def split(self, source: FilterContext, ways: int) -> list[tuple[FilterContext, int]]:
        splitter = self.chain(source, f"split={ways}")
        return [(splitter, way) for way in range(ways)]

    def join(self, text: str, *sources: FilterContext) -> FilterContext:
        """A filter with several inputs."""
        joined = self.graph.add(text)
        for number, source in enumerate(sources):
            source.link_to(joined, 0, number)
        return joined

    def sink(self, name: str, source: FilterContext, kind: str = "buffersink") -> None:
        self._ends[name], self.found[name] = self.chain(source, kind), []

    def push(self, frame: av.VideoFrame | av.AudioFrame | None) -> None:
        """Gives the graph a frame, None at the end, and collects what comes out."""
        self.graph.configure()
        self.graph.push(frame)
        for name, end in self._ends.items():
            self._drain(end, self.found[name])

    def column(self, name: str, key: str) -> Floats:
        """One number of every frame at an end."""
        return np.array([float(marks[key]) for marks in self.found[name]], float)

    @staticmethod
    def _drain(end: FilterContext, found: list[dict[str, str]]) -> None:
        try:
            while True:
                found.append(end.pull().metadata)
        except (av.BlockingIOError, av.EOFError):
            return  # it wants another frame, or there are no more


def _luma(values: Sequence[float] | Floats) -> Floats:
    """From 16..235 to 0..255."""
    return np.asarray((np.asarray(values) - 16) * 255 / 219, float)


def _even(pixels: int, divisor: int) -> int:
    return max(16, pixels // divisor // 2 * 2)


def _kind(frame: av.VideoFrame) -> str:
    return f"{frame.width}x{frame.height} {frame.format.name}"
