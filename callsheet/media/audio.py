"""Sound as samples: read, measured, resampled.

sound = read_sound(Path("take.wav"))
sound.seconds, sound.spoken(), sound.pitch()
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile

Samples = npt.NDArray[np.float32]

#: The rate of every clip and programme, in Hz: what video players and publishers expect.
OUTPUT_RATE = 48_000
#: A frame this much below the loudest holds no speech, and one below the floor never does, in dB.
ACTIVE_RANGE_DB = 40.0
FLOOR_DBFS = -60.0
FRAME_SECONDS = 0.01
#: A sound at the edge that is shorter than this, and apart from the rest, is a click and no speech.
_CLICK_FRAMES, _APART_FRAMES = 3, 5
#: Pitch is looked for between these, in Hz, in frames of this length.
LOWEST_PITCH, HIGHEST_PITCH = 60.0, 450.0
PITCH_FRAME_SECONDS = 0.04
_PITCH_RATE = 8_000


@dataclass(frozen=True)
class Sound:
    """Samples, float32 in -1..1 with shape (samples,), and their rate in Hz."""

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def between(self, start: float, end: float) -> Sound:
        """The part from ``start`` to ``end``, in seconds."""
        return Sound(self.samples[max(0, round(start * self.rate)) : round(end * self.rate)], self.rate)

    @cached_property
    def levels(self) -> npt.NDArray[np.float32]:
        """RMS of each 10 ms, in dBFS, shape (frames,); silence is -120."""
        size = max(1, int(self.rate * FRAME_SECONDS))
        whole = self.samples[: len(self.samples) // size * size].reshape(-1, size)
        power = np.einsum("ij,ij->i", whole, whole) / size
        return np.asarray(10 * np.log10(np.maximum(power, 1e-12)), np.float32)

    @cached_property
    def active(self) -> npt.NDArray[np.bool_]:
        """Which 10 ms hold speech, shape (frames,)."""
        return np.asarray(self.levels > max(self.levels.max(initial=-120.0) - ACTIVE_RANGE_DB, FLOOR_DBFS))

    def spoken(self) -> tuple[float, float]:
        """Where speech begins and ends, in seconds; the whole where there is none to be told apart.

        A click at either edge is none of it.
        """
        starts, ends = runs_of(self.active)
        if not starts.size:
            return 0.0, self.seconds
        first, last = 0, len(starts) - 1
        while first < last and _is_click(starts[first], ends[first], starts[first + 1] - ends[first]):
            first += 1
        while last > first and _is_click(starts[last], ends[last], starts[last] - ends[last - 1]):
            last -= 1
        return float(starts[first]) * FRAME_SECONDS, min(self.seconds, float(ends[last]) * FRAME_SECONDS)

    def pitch(self) -> float | None:
        """Median fundamental frequency of the voiced parts, in Hz; None where there are hardly any."""
        found = self._periods[~np.isnan(self._periods)]
        return float(np.median(found)) if len(found) >= _VOICED_FRAMES else None

    def voiced_share(self) -> float:
        """How much of what is audible has a pitch, 0 to 1. Speech has 0.3 to 0.8, noise none."""
        audible = self._loud_enough
        return float((~np.isnan(self._periods)).sum() / audible.sum()) if audible.any() else 0.0

    def last_voiced(self) -> float:
        """When the last voiced sound ends, in seconds; 0 where there is none."""
        voiced = np.flatnonzero(self._loud_enough)[~np.isnan(self._periods)]
        return float(voiced[-1] + 1) * PITCH_FRAME_SECONDS if voiced.size else 0.0

    @cached_property
    def _pitch_frames(self) -> tuple[npt.NDArray[np.float32], float]:
        """40 ms each, shape (frames, samples), and their rate in Hz."""
        step = max(1, round(self.rate / _PITCH_RATE))
        rate = self.rate / step
        size = int(PITCH_FRAME_SECONDS * rate)
        # Averaging `step` samples is filter enough for a pitch below 450 Hz.
        low = self.samples[: len(self.samples) // step * step].reshape(-1, step).mean(axis=1)
        return low[: len(low) // size * size].reshape(-1, size), rate

    @cached_property
    def _loud_enough(self) -> npt.NDArray[np.bool_]:
        frames, _ = self._pitch_frames
        return np.asarray(np.sqrt((frames**2).mean(axis=1)) > _VOICED_RMS)

    @cached_property
    def _periods(self) -> npt.NDArray[np.float64]:
        """The fundamental frequency of each audible 40 ms, in Hz; NaN where it has none."""
        frames, rate = self._pitch_frames
        frames = frames[self._loud_enough]
        if not len(frames):
            return np.zeros(0)
        size = frames.shape[1]
        frames = frames - frames.mean(axis=1, keepdims=True)
        spectrum = np.fft.rfft(frames, 2 * size, axis=1)
        correlation = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :size]
        # The overlap shrinks with the lag, which would favour octaves above.
        correlation = correlation / (size - np.arange(size)) * size
        shortest, longest = int(rate / HIGHEST_PITCH), min(int(rate / LOWEST_PITCH), size - size // 4)
        here = correlation[:, shortest:longest]
        peaks = (here >= correlation[:, shortest - 1 : longest - 1]) & (
            here >= correlation[:, shortest + 1 : longest + 1]
        )
        # Every multiple of the period fits as well as the period: the first that fits nearly as well as the best is it.
        peaks &= here > 0.85 * here.max(axis=1, keepdims=True)
        peaks &= here > 0.4 * correlation[:, :1]
        periodic = peaks.any(axis=1)
        found = np.full(len(frames), np.nan)
        if periodic.any():
            lags = shortest + peaks.argmax(axis=1)[periodic]
            found[periodic] = rate / _vertex(correlation[periodic], lags)
        return found


#: Quieter frames are not looked at for pitch, and fewer voiced ones than these (0.2 s) tell nothing.
_VOICED_RMS = 0.01
_VOICED_FRAMES = 5


def _vertex(curves: npt.NDArray[np.floating], at: npt.NDArray[np.intp]) -> npt.NDArray[np.floating]:
    """Where a parabola through each curve's peak and its neighbours is highest: finer than a sample."""
    rows = np.arange(len(at))
    before, peak, after = (curves[rows, at + offset] for offset in (-1, 0, 1))
    bend = before - 2 * peak + after
    shift = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, -1.0), 0.0)
    return np.asarray(at + shift)


def _is_click(start: int, end: int, silence: int) -> bool:
    return end - start <= _CLICK_FRAMES and silence >= _APART_FRAMES


def read_sound(path: Path) -> Sound:
    """A WAV file as mono samples. Raises soundfile.LibsndfileError where it cannot be read."""
    samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    return Sound(samples.mean(axis=1, dtype=np.float32), rate)


def longest_run(flags: npt.NDArray[np.bool_]) -> int:
    """The length of the longest run of True."""
    if not flags.any():
        return 0
    starts, ends = runs_of(flags)
    return int((ends - starts).max())


def runs_of(flags: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where runs of True begin, and where they have ended; both of shape (runs,)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return edges[::2], edges[1::2]


def resample(sound: Sound, rate: int = OUTPUT_RATE) -> Sound:
    """The same sound at another rate, by ffmpeg's resampler. The length is that of the input to within a sample."""
    if sound.rate == rate:
        return sound
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    frame = av.AudioFrame.from_ndarray(sound.samples[np.newaxis, :], format="flt", layout="mono")
    frame.sample_rate = sound.rate
    frames = [*resampler.resample(frame), *resampler.resample(None)]
    samples = np.concatenate([f.to_ndarray()[0] for f in frames]) if frames else np.zeros(0, np.float32)
    wanted = round(len(sound.samples) * rate / sound.rate)
    return Sound(fit_length(samples, wanted), rate)


def audio_seconds(path: Path) -> float:
    """The length of the first audio stream of any media file, in seconds; 0 where it does not say."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return float((stream.duration or 0) * (stream.time_base or 0))


def fit_length(samples: Samples, length: int) -> Samples:
    """``samples`` cut or filled with silence to exactly ``length``."""
    if len(samples) >= length:
        return samples[:length]
    return np.concatenate([samples, np.zeros(length - len(samples), np.float32)])
