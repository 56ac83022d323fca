"""Checks of speech: whether a recording can be a reading of its text by its voice.

    line = Line("The lamp was lit.", sample_rate=24_000, profile=profile_of(voice_recording, transcript))
    checks = check_line(sound, line)
    all(check.ok for check in checks)

Gates G0 to G5, G8 by length and G11 of the ladder in the facts (4.2): all that can be told without
recognising words. Every check has a value, a limit and a verdict. Limits that rest on an estimate of the
text's length are as wide as the estimate may be wrong (`callsheet.text.pace`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from callsheet.media.audio import FRAME_SECONDS, Sound, longest_run, runs_of
from callsheet.takes import Check
from callsheet.text import speech_seconds, text_tokens

#: Gate G1. CosyVoice makes 2 to 20 speech tokens of a text token, at 25 a second (llm.py): 0.08 to
#: 0.80 s. Sound at the upper end has run away: over 0.95 of it fails.
SECONDS_PER_TOKEN = (0.08, 0.76)
#: Gate G2: how much longer or shorter than at the voice's own pace a line may be.
PACE = (0.5, 1.9)
#: For lines shorter than this the pace says little, and the limits are this much wider.
SHORT_TOKENS, SHORT_FACTOR = 8.0, 1.6
#: Gate G8: beyond what the text takes, a leaked prompt or instruction adds seconds.
BEYOND_SHARE, BEYOND_SECONDS = 0.6, 1.0
#: Gate G3.
CLIPPED_RUN = 3
FULL_SCALE = 0.9995
DC_OFFSET = 0.01
#: A jump from one full scale to the other within one sample: int16 that wrapped around (facts, 1.1).
WRAP_LEVEL = 0.9
#: Gate G4, in dBFS, shares and seconds. Head and tail are trimmed; this much of them means that something is wrong.
SILENT_DBFS = -45.0
LEAST_ACTIVE = 0.4
LONGEST_INNER_SILENCE = 1.5
LONGEST_EDGE = 2.0
#: Gate G5: a hiss that goes on this long after the last voiced sound is no consonant any more, in seconds.
LONGEST_TAIL_NOISE = 0.45
#: Share of the energy above 4 kHz from which 10 ms are hiss (white noise has 0.67), and gaps in it that are none.
HISS_SHARE = 0.5
HISS_GAP_FRAMES = 3
#: After the last sound that has a pitch, words end within this: a cluster of consonants, or a creaking voice.
LONGEST_UNVOICED_TAIL = 1.0
#: Less of the audible than this has a pitch in noise; speech has 0.3 to 0.8.
LEAST_VOICED = 0.12
#: A jump this large, and this many times the usual one around it, is a click.
CLICK_JUMP, CLICK_FACTOR = 0.3, 6.0
#: A zero-shot voice is within this of its recording's pitch. A wrong sample rate is 1.5 times off.
PITCH_RATIO = (0.7, 1.42)
#: Lines are brought to this level by plain gain: RMS of what is spoken, in dBFS, peaks below the ceiling.
LEVEL_DBFS = -20.0
PEAK_CEILING = 0.89
#: More than this is not levelling any more: it would make noise of what is nearly silent.
LARGEST_GAIN_DB = 20.0


@dataclass(frozen=True)
class VoiceProfile:
    """What a voice's recording says of how it speaks.

    Attributes:
        pace: how many times as long as unhurried narration it takes for a text.
        pitch: median fundamental frequency, in Hz; None where it cannot be told.
    """

    pace: float = 1.0
    pitch: float | None = None


@dataclass(frozen=True)
class Line:
    """What a recording should be: these words, at this rate (Hz) and speed, by this voice."""

    text: str
    sample_rate: int
    speed: float = 1.0
    profile: VoiceProfile = VoiceProfile()

    @property
    def seconds(self) -> float:
        """About how long the voice takes for it."""
        return speech_seconds(self.text, self.speed) * self.profile.pace


@dataclass(frozen=True)
class Measured:
    """What was found in a recording beside its checks.

    Attributes:
        start, end: where speech begins and ends, in seconds.
        gain_db: what brings it to the common level.
        level_dbfs: of what is spoken, with that gain.
        pace: seconds spoken for a second expected.
        pitch: in Hz.
        voiced: share of what is audible that has a pitch.
        unvoiced_tail: seconds of speech after the last sound with a pitch.
    """

    start: float
    end: float
    gain_db: float
    level_dbfs: float
    pace: float
    pitch: float | None
    voiced: float = 1.0
    unvoiced_tail: float = 0.0


def profile_of(recording: Sound, transcript: str) -> VoiceProfile:
    """How the voice of a reference recording speaks. Its pace is held within what a person's can be."""
    start, end = recording.spoken()
    expected = speech_seconds(transcript)
    pace = (end - start) / expected if expected and end > start else 1.0
    return VoiceProfile(min(1.7, max(0.6, pace)), recording.pitch())


def longest_seconds(text: str, speed: float = 1.0) -> float:
    """More sound than this cannot be a reading of ``text``, whoever speaks: twice the bound of gate G1, and 5 s."""
    return 2 * SECONDS_PER_TOKEN[1] * text_tokens(text) / speed + 5.0


def measure(sound: Sound, line: Line) -> Measured:
    """Where speech is, how loud, how fast and how high."""
    start, end = sound.spoken()
    speech = sound.between(start, end)
    power = float(np.mean(10 ** (speech.levels[speech.active] / 10))) if speech.active.any() else 1e-12
    level = 10 * np.log10(power)
    peak = max(_peak(speech.samples), 1e-6)
    gain = min(LEVEL_DBFS - level, 20 * np.log10(PEAK_CEILING / peak))
    gain = max(-LARGEST_GAIN_DB, min(LARGEST_GAIN_DB, gain)) if level > SILENT_DBFS else 0.0
    return Measured(
        start=round(start, 3),
        end=round(end, 3),
        gain_db=round(float(gain), 2),
        level_dbfs=round(float(level + gain), 2),
        pace=(end - start) / max(line.seconds, 0.1),
        pitch=speech.pitch(),
        voiced=speech.voiced_share(),
        unvoiced_tail=max(0.0, speech.seconds - speech.last_voiced()),
    )


def check_line(sound: Sound, line: Line, found: Measured | None = None) -> list[Check]:
    """Everything that is checked on one recording by itself."""
    found = found or measure(sound, line)
    return [
        *_length_checks(sound, line, found),
        *_waveform_checks(sound.samples),
        *_silence_checks(sound, found),
        *_tail_checks(sound, found),
        *_voice_checks(line, found),
    ]


def _length_checks(sound: Sound, line: Line, found: Measured) -> Iterator[Check]:
    yield Check.within("sample_rate_hz", float(sound.rate), line.sample_rate, line.sample_rate)
    tokens = text_tokens(line.text)
    yield Check.within("seconds_per_token", sound.seconds * line.speed / tokens, *SECONDS_PER_TOKEN)
    factor = SHORT_FACTOR if tokens < SHORT_TOKENS else 1.0
    yield Check.within("pace_to_voice", found.pace, PACE[0] / factor, PACE[1] * factor)
    beyond = found.end - found.start - line.seconds
    yield Check.within(
        "seconds_beyond_text", beyond, None, round(BEYOND_SHARE * line.seconds + BEYOND_SECONDS, 3)
    )


def _waveform_checks(samples: npt.NDArray[np.float32]) -> Iterator[Check]:
    peak = _peak(samples)
    clipped = longest_run(np.abs(samples) >= FULL_SCALE) if peak >= FULL_SCALE else 0
    yield Check.within("clipped_run_samples", float(clipped), 0, CLIPPED_RUN - 1)
    yield Check.within("int16_wraps", float(_wraps(samples) if peak >= WRAP_LEVEL else 0), 0, 0)
    offset = float(samples.mean()) if samples.size else 0.0
    yield Check.within("dc_offset", offset, -DC_OFFSET, DC_OFFSET)
    yield Check.within("clicks", float(_clicks(samples)), 0, 0)


def _peak(samples: npt.NDArray[np.float32]) -> float:
    return max(float(samples.max(initial=0.0)), -float(samples.min(initial=0.0)))


def _wraps(samples: npt.NDArray[np.float32]) -> int:
    flips = (np.abs(samples[:-1]) > WRAP_LEVEL) & (np.abs(samples[1:]) > WRAP_LEVEL)
    return int((flips & (np.sign(samples[:-1]) != np.sign(samples[1:]))).sum())


def _clicks(samples: npt.NDArray[np.float32]) -> int:
    """Jumps that stand alone: a voice's own pulses come in series."""
    jumps = np.abs(np.diff(samples))
    found = 0
    for at in np.flatnonzero(jumps > CLICK_JUMP)[:200]:
        around = jumps[max(0, at - 500) : at + 500]
        found += jumps[at] > CLICK_FACTOR * np.quantile(around, 0.99)
    return found


def _silence_checks(sound: Sound, found: Measured) -> Iterator[Check]:
    power = float(np.dot(sound.samples, sound.samples)) / max(len(sound.samples), 1)
    yield Check.within("rms_dbfs", 10 * np.log10(max(power, 1e-12)), SILENT_DBFS)
    inside = sound.active[round(found.start / FRAME_SECONDS) : round(found.end / FRAME_SECONDS)]
    yield Check.within("active_share", float(inside.mean()) if inside.size else 0.0, LEAST_ACTIVE)
    yield Check.within(
        "inner_silence_seconds", longest_run(~inside) * FRAME_SECONDS, 0, LONGEST_INNER_SILENCE
    )
    yield Check.within("head_silence_seconds", found.start, 0, LONGEST_EDGE)
    yield Check.within("tail_silence_seconds", sound.seconds - found.end, 0, LONGEST_EDGE)


def _tail_checks(sound: Sound, found: Measured) -> Iterator[Check]:
    """The "whoosh" after the last word: hiss that goes on longer than any consonant."""
    tail = sound.between(max(found.start, found.end - 1.5), found.end)
    size = int(sound.rate * FRAME_SECONDS)
    frames = tail.samples[: len(tail.samples) // size * size].reshape(-1, size)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    above = int(4_000 * size / sound.rate)
    hiss = power[:, above:].sum(axis=1) > HISS_SHARE * np.maximum(power.sum(axis=1), 1e-9)
    quiet_starts, quiet_ends = runs_of(~hiss)
    for start, end in zip(quiet_starts, quiet_ends, strict=True):
        if end - start <= HISS_GAP_FRAMES:  # chance, or the fading at the end
            hiss[start:end] = True
    starts, ends = runs_of(hiss)
    last = int(ends[-1] - starts[-1]) if starts.size and ends[-1] == len(hiss) else 0
    yield Check.within("tail_noise_seconds", last * FRAME_SECONDS, 0, LONGEST_TAIL_NOISE)


def _voice_checks(line: Line, found: Measured) -> Iterator[Check]:
    if not line.profile.pitch or text_tokens(line.text) < SHORT_TOKENS:
        return
    yield Check.within("voiced_share", found.voiced, LEAST_VOICED)
    yield Check.within("unvoiced_tail_seconds", found.unvoiced_tail, 0, LONGEST_UNVOICED_TAIL)
    if found.pitch:
        yield Check.within("pitch_to_voice", found.pitch / line.profile.pitch, *PITCH_RATIO)


#: Gate G11: how far a line may be from its neighbours, as a ratio (LU for the level), and how many tell something.
NEIGHBOUR_LEVEL, NEIGHBOUR_PITCH, NEIGHBOUR_PACE = 2.0, 0.15, 0.3
NEIGHBOURS = 5
REMEMBERED = 50


@dataclass
class Neighbours:
    """The lines of one voice on one engine that passed, as far as they tell how it sounds; the latest fifty."""

    lines: list[Measured] = field(default_factory=list)

    def add(self, measured: Measured) -> None:
        self.lines = [*self.lines[1 - REMEMBERED :], measured]

    def check(self, measured: Measured, line: Line) -> list[Check]:
        """The line against those before it: its level, pace and pitch. Nothing for a line too short to tell."""
        if len(self.lines) < NEIGHBOURS or text_tokens(line.text) < SHORT_TOKENS:
            return []
        level = float(np.median([one.level_dbfs for one in self.lines]))
        checks = [
            Check.within(
                "neighbour_level_lu", measured.level_dbfs - level, -NEIGHBOUR_LEVEL, NEIGHBOUR_LEVEL
            ),
            _ratio("neighbour_pace", measured.pace, [one.pace for one in self.lines], NEIGHBOUR_PACE),
        ]
        pitches = [one.pitch for one in self.lines if one.pitch]
        if measured.pitch and len(pitches) >= NEIGHBOURS:
            checks.append(_ratio("neighbour_pitch", measured.pitch, pitches, NEIGHBOUR_PITCH))
        return checks


def _ratio(name: str, value: float, others: list[float], tolerance: float) -> Check:
    """``value`` as a multiple of the others' median. A voice that varies more has more room (1.5 IQR)."""
    low, middle, high = (float(q) for q in np.quantile(others, (0.25, 0.5, 0.75)))
    room = 1.5 * (high - low) / middle
    return Check.within(
        name, value / middle,
        round(min(1 - tolerance, low / middle - room), 3), round(max(1 + tolerance, high / middle + room), 3),
    )  # fmt: skip
