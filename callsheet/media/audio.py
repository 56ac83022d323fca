"""Checks of speech, and sound as samples.

checks = check_speech(Path("take.wav"), text="Hello.", language="en", speed=1.0, sample_rate=24_000)
all(check.ok for check in checks)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile

from callsheet.takes import Check
from callsheet.text import plausible_seconds

Samples = npt.NDArray[np.float32]

#: The rate of every clip and programme, in Hz: what video players and publishers expect.
OUTPUT_RATE = 48_000
#: Gate G4: quieter than this (RMS of the whole, dBFS) is silence.
SILENT_DBFS = -45.0
#: A frame this much below the loudest is no speech; at least this share of frames must be speech.
ACTIVE_RANGE_DB = 40.0
LEAST_ACTIVE = 0.3
#: Gate G3: this many samples in a row at full scale are clipping.
CLIPPED_RUN = 3
FULL_SCALE = 0.9995
_FRAME_SECONDS = 0.02


@dataclass(frozen=True)
class Sound:
    """Samples, float32 in -1..1 with shape (samples,), and their rate in Hz."""

    samples: Samples
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def levels(self) -> npt.NDArray[np.float64]:
        """RMS of each 20 ms, in dBFS, shape (frames,); silence is -120."""
        size = max(1, int(self.rate * _FRAME_SECONDS))
        whole = self.samples[: len(self.samples) // size * size].astype(np.float64).reshape(-1, size)
        return np.asarray(10 * np.log10(np.maximum((whole**2).mean(axis=1), 1e-12)))

    def spoken(self) -> tuple[float, float]:
        """Where speech begins and ends, in seconds; the whole where there is none to be told apart."""
        levels = self.levels()
        loud = np.flatnonzero(levels > max(levels.max(initial=-120.0) - ACTIVE_RANGE_DB, -60.0))
        if not loud.size:
            return 0.0, self.seconds
        return float(loud[0]) * _FRAME_SECONDS, min(self.seconds, float(loud[-1] + 1) * _FRAME_SECONDS)


def read_sound(path: Path) -> Sound:
    """A WAV file as mono samples. Raises soundfile.LibsndfileError where it cannot be read."""
    samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    return Sound(samples.mean(axis=1, dtype=np.float32), rate)


def check_speech(path: Path, *, text: str, language: str, speed: float, sample_rate: int) -> list[Check]:
    """Gates G0, G1, G3 and G4 of the ladder in the facts (4.2), on one recording."""
    try:
        sound = read_sound(path)
    except (soundfile.LibsndfileError, OSError) as error:
        return [Check(name="readable", value=str(error), ok=False)]
    return list(_speech_checks(sound, text, language, speed, sample_rate))


def _speech_checks(sound: Sound, text: str, language: str, speed: float, sample_rate: int) -> Iterator[Check]:
    yield Check.within("sample_rate_hz", float(sound.rate), sample_rate, sample_rate)
    shortest, longest = plausible_seconds(text, language, speed)
    yield Check.within("seconds", sound.seconds, round(shortest, 3), round(longest, 3))
    levels = sound.levels()
    if not levels.size:
        yield Check(name="rms_dbfs", value=None, limit=(SILENT_DBFS, None), ok=False)
        return
    rms = 10 * np.log10(max(float((sound.samples.astype(np.float64) ** 2).mean()), 1e-12))
    yield Check.within("rms_dbfs", rms, SILENT_DBFS)
    active = levels > max(float(levels.max()) - ACTIVE_RANGE_DB, -60.0)
    yield Check.within("active_share", float(active.mean()), LEAST_ACTIVE)
    yield Check.within(
        "clipped_run_samples", float(longest_run(np.abs(sound.samples) >= FULL_SCALE)), 0, CLIPPED_RUN - 1
    )


def longest_run(flags: npt.NDArray[np.bool_]) -> int:
    """The length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return int((edges[1::2] - edges[::2]).max(initial=0))


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
