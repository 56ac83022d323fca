"""The checks of speech, each with a sound that it must find and one that it must let pass."""

import numpy as np
import pytest

from callsheet.media.audio import Sound
from callsheet.media.speech import (
    LEVEL_DBFS,
    Line,
    Measured,
    Neighbours,
    VoiceProfile,
    check_line,
    measure,
    profile_of,
)
from callsheet.text import speech_seconds
from tests.fakes.speech_server import buzz

RATE = 24_000
TEXT = "The keeper lit the lamp at six and wrote one line."
SECONDS = speech_seconds(TEXT)
LINE = Line(TEXT, RATE, profile=VoiceProfile(1.0, 180.0))


def voice(seconds: float = SECONDS, pitch: float = 180.0, level: float = 0.27) -> np.ndarray:
    return buzz(seconds, pitch, RATE, level)


def failed(samples: np.ndarray, line: Line = LINE, rate: int = RATE) -> list[str]:
    return [check.name for check in check_line(Sound(samples.astype(np.float32), rate), line) if not check.ok]


def test_a_good_reading_passes() -> None:
    assert failed(voice()) == []


@pytest.mark.parametrize(
    ("seconds", "what"), [(0.16, "a wrong prompt"), (0.7, "a cut body"), (60.0, "a runaway")]
)
def test_a_length_that_no_reading_has_is_found(seconds: float, what: str) -> None:
    assert "seconds_per_token" in failed(voice(seconds)), what


def test_a_reading_at_another_pace_than_the_voices_is_found() -> None:
    slow = Line(TEXT, RATE, profile=VoiceProfile(1.7, 180.0))
    assert failed(voice(SECONDS * 1.7), slow) == []
    assert failed(voice(SECONDS * 0.75), slow) == ["pace_to_voice"]
    assert {"pace_to_voice", "seconds_beyond_text"} <= set(failed(voice(SECONDS * 2.2)))


def test_an_instruction_that_is_read_aloud_is_found_by_its_length() -> None:
    leaked = np.concatenate([voice(3.2), np.zeros(RATE // 4), voice(SECONDS)])
    assert "seconds_beyond_text" in failed(leaked)


def test_speed_is_taken_into_account() -> None:
    assert failed(voice(SECONDS / 2), Line(TEXT, RATE, 2.0, VoiceProfile(1.0, 180.0))) == []


def test_silence_and_near_silence_are_found() -> None:
    assert "rms_dbfs" in failed(np.zeros(80_000))
    assert "rms_dbfs" in failed(voice(level=0.002))


def test_gaps_inside_and_long_edges_are_found() -> None:
    gap = np.concatenate([voice(SECONDS / 2), np.zeros(2 * RATE), voice(SECONDS / 2)])
    assert "inner_silence_seconds" in failed(gap)
    assert "head_silence_seconds" in failed(np.concatenate([np.zeros(int(2.1 * RATE)), voice()]))
    assert "tail_silence_seconds" in failed(np.concatenate([voice(), np.zeros(int(2.1 * RATE))]))


def test_clipping_wraps_and_offsets_are_found() -> None:
    assert "clipped_run_samples" in failed(np.clip(voice() * 8, -1, 1))
    # int16 without a limit: what is above full scale comes out below it (CosyVoice's own conversion).
    wrapped = (voice(level=0.9) * 32768).astype(np.int64).astype(np.int16) / 32768
    assert "int16_wraps" in failed(wrapped)
    assert failed(voice() + 0.02) == ["dc_offset"]


def test_a_click_is_found_and_a_voices_own_pulses_are_none() -> None:
    clicked = voice()
    clicked[30_000] += 0.7
    assert failed(clicked) == ["clicks"]
    pulses = np.sign(np.sin(2 * np.pi * 180 * np.arange(int(SECONDS * RATE)) / RATE)) * 0.3
    assert "clicks" not in failed(pulses)


def test_a_hiss_after_the_last_word_is_found_and_a_last_consonant_is_none() -> None:
    noise = np.random.default_rng(1).normal(0, 0.03, RATE)
    hiss = np.diff(noise, prepend=0)  # most of it above 4 kHz
    assert failed(np.concatenate([voice(), hiss[: int(0.15 * RATE)]])) == []
    assert "tail_noise_seconds" in failed(np.concatenate([voice(), hiss[: int(0.8 * RATE)]]))


def test_a_wrong_sample_rate_is_found_by_pitch() -> None:
    as_if_24k = buzz(SECONDS, 180, 16_000)
    assert "pitch_to_voice" in failed(as_if_24k)
    assert failed(voice(), rate=22_050) == ["sample_rate_hz"]


def test_a_recording_without_a_sample_fails_and_does_not_break() -> None:
    assert {"seconds_per_token", "rms_dbfs", "active_share"} <= set(failed(np.zeros(0)))


def test_where_speech_is_and_what_brings_it_to_the_common_level_is_measured() -> None:
    sound = Sound(
        np.concatenate([np.zeros(RATE // 2), voice(level=0.1), np.zeros(RATE)]).astype(np.float32), RATE
    )
    found = measure(sound, LINE)
    assert found.start == pytest.approx(0.5, abs=0.03)
    assert found.end == pytest.approx(0.5 + SECONDS, abs=0.03)
    assert found.level_dbfs == pytest.approx(LEVEL_DBFS, abs=0.1)
    louder = Sound(sound.samples * np.float32(2), RATE)
    assert measure(louder, LINE).gain_db == pytest.approx(found.gain_db - 6.02, abs=0.05)


def test_gain_never_takes_a_peak_over_the_ceiling() -> None:
    peaky = voice(level=0.02)
    peaky[30_000:30_010] = 0.5
    found = measure(Sound(peaky.astype(np.float32), RATE), LINE)
    assert 0.5 * 10 ** (found.gain_db / 20) <= 0.9


def test_a_voices_recording_tells_its_pace_and_pitch() -> None:
    profile = profile_of(Sound(voice(SECONDS * 1.3, 120).astype(np.float32), RATE), TEXT)
    assert profile.pace == pytest.approx(1.3, abs=0.05)
    assert profile.pitch == pytest.approx(120, rel=0.05)
    assert profile_of(Sound(np.zeros(RATE, np.float32), RATE), TEXT).pitch is None


def one(pace: float = 1.0, pitch: float | None = 180.0, level: float = -20.0) -> Measured:
    return Measured(0.0, 3.0, 0.0, level, pace, pitch)


@pytest.mark.parametrize(
    ("outlier", "told"),
    [
        (one(pace=1.35), "neighbour_pace"),
        (one(pitch=215.0), "neighbour_pitch"),
        (one(level=-23.0), "neighbour_level_lu"),
    ],
)
def test_a_line_unlike_its_neighbours_is_found(outlier: Measured, told: str) -> None:
    neighbours = Neighbours([one(pace) for pace in (0.98, 1.0, 1.0, 1.02, 1.01, 0.99)])
    assert [check.name for check in neighbours.check(outlier, LINE) if not check.ok] == [told]
    assert all(check.ok for check in neighbours.check(one(1.1, 190.0, -19.0), LINE))


def test_a_lively_voice_has_more_room_and_few_lines_tell_nothing() -> None:
    lively = Neighbours([one(pace) for pace in (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)])
    assert all(check.ok for check in lively.check(one(pace=1.35), LINE))
    assert Neighbours([one()] * 4).check(one(pace=3.0), LINE) == []
    assert Neighbours([one()] * 9).check(one(pace=3.0), Line("Yes.", RATE)) == []


def test_only_the_latest_lines_are_remembered() -> None:
    neighbours = Neighbours()
    for number in range(200):
        neighbours.add(one(pace=float(number)))
    assert [line.pace for line in neighbours.lines] == [float(n) for n in range(150, 200)]


def test_noise_of_the_right_length_is_no_speech() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, int(SECONDS * RATE))
    assert "voiced_share" in failed(noise)


@pytest.mark.parametrize("seconds", [0.6, 1.0, 2.0])
def test_white_noise_after_the_last_word_is_found(seconds: float) -> None:
    noise = np.random.default_rng(2).normal(0, 10 ** (-30 / 20), int(seconds * RATE))
    assert {"tail_noise_seconds", "unvoiced_tail_seconds"} & set(failed(np.concatenate([voice(), noise])))


@pytest.mark.parametrize("level", [1e-5, 1e-3, 3e-3])
def test_what_is_nearly_silent_is_not_made_loud(level: float) -> None:
    noise = np.random.default_rng(3).normal(0, level, int(SECONDS * RATE))
    assert measure(Sound(noise.astype(np.float32), RATE), LINE).gain_db <= 20
    assert measure(Sound((noise / level * 1e-4).astype(np.float32), RATE), LINE).gain_db == 0
