from pathlib import Path

import numpy as np
import pytest
import soundfile

from callsheet.media.audio import (
    Sound,
    audio_seconds,
    check_speech,
    fit_length,
    longest_run,
    read_sound,
    resample,
)
from tests.conftest import write_tone

TEXT = "The keeper lit the lamp at six and wrote one line."


def failed(path: Path, **settings: object) -> list[str]:
    known = {"text": TEXT, "language": "en", "speed": 1.0, "sample_rate": 24_000} | settings
    return [check.name for check in check_speech(path, **known) if not check.ok]  # type: ignore[arg-type]


def write(path: Path, samples: np.ndarray, rate: int = 24_000) -> Path:
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def test_a_good_recording_passes(tmp_path: Path) -> None:
    assert failed(write_tone(tmp_path / "a.wav", 3.6, 24_000)) == []


@pytest.mark.parametrize(
    ("seconds", "what"), [(0.16, "a wrong prompt"), (0.7, "a cut body"), (60.0, "a runaway")]
)
def test_length_that_no_reading_has_is_caught(tmp_path: Path, seconds: float, what: str) -> None:
    assert "seconds" in failed(write_tone(tmp_path / "a.wav", seconds, 24_000)), what


def test_silence_and_near_silence_are_caught(tmp_path: Path) -> None:
    assert "rms_dbfs" in failed(write(tmp_path / "a.wav", np.zeros(80_000)))
    assert "rms_dbfs" in failed(write_tone(tmp_path / "a.wav", 3.6, 24_000, level=0.003))


def test_speech_with_a_long_gap_is_caught(tmp_path: Path) -> None:
    samples = np.zeros(24_000 * 4)
    samples[:12_000] = read_sound(write_tone(tmp_path / "t.wav", 0.5, 24_000)).samples
    assert failed(write(tmp_path / "a.wav", samples)) == ["active_share"]


def test_clipping_is_caught(tmp_path: Path) -> None:
    samples = read_sound(write_tone(tmp_path / "t.wav", 3.6, 24_000)).samples * 6
    assert "clipped_run_samples" in failed(write(tmp_path / "a.wav", np.clip(samples, -1, 1)))


def test_wrong_rate_is_caught(tmp_path: Path) -> None:
    assert failed(write_tone(tmp_path / "a.wav", 3.6, 22_050)) == ["sample_rate_hz"]


@pytest.mark.parametrize("content", [b"", b"RIFF\0\0\0\0WAVE", b"not audio at all"])
def test_what_is_no_recording_is_caught(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    assert failed(tmp_path / "a.wav") == ["readable"]


def test_recording_without_a_sample_is_caught(tmp_path: Path) -> None:
    assert {"seconds", "rms_dbfs"} <= set(failed(write(tmp_path / "a.wav", np.zeros(0))))


@pytest.mark.parametrize("rate", [16_000, 22_050, 24_000, 44_100, 48_000])
def test_resampling_keeps_pitch_and_length(rate: int) -> None:
    at = np.arange(2 * rate + 17) / rate
    sound = resample(Sound(np.sin(2 * np.pi * 440 * at).astype(np.float32), rate))
    assert len(sound.samples) == round((2 * rate + 17) * 48_000 / rate)
    spectrum = np.abs(np.fft.rfft(sound.samples[: 2 * 48_000]))
    assert spectrum.argmax() == 880  # 440 Hz in steps of half a Hz


def test_speech_is_found_between_silences() -> None:
    samples = np.zeros(72_000, np.float32)
    samples[12_000:60_000] = 0.3 * np.sin(np.arange(48_000) / 5)
    start, end = Sound(samples, 24_000).spoken()
    assert start == pytest.approx(0.5, abs=0.021)
    assert end == pytest.approx(2.5, abs=0.021)
    assert Sound(np.zeros(2_400, np.float32), 24_000).spoken() == (0.0, 0.1)


def test_longest_run() -> None:
    assert longest_run(np.array([1, 1, 0, 1, 1, 1, 0], bool)) == 3
    assert longest_run(np.array([], bool)) == 0
    assert longest_run(np.array([1, 1], bool)) == 2


def test_fit_length_cuts_and_fills() -> None:
    samples = np.ones(4, np.float32)
    assert fit_length(samples, 2).tolist() == [1, 1]
    assert fit_length(samples, 6).tolist() == [1, 1, 1, 1, 0, 0]


def test_audio_seconds(tmp_path: Path) -> None:
    assert audio_seconds(write_tone(tmp_path / "a.wav", 1.5)) == 1.5
