from pathlib import Path

import numpy as np
import pytest

from callsheet.media.audio import (
    Sound,
    audio_seconds,
    fit_length,
    longest_run,
    resample,
)
from tests.conftest import write_tone
from tests.fakes.speech_server import buzz


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


def test_a_click_at_the_edge_is_no_speech() -> None:
    samples = np.zeros(72_000, np.float32)
    samples[24_000:48_000] = 0.3 * np.sin(np.arange(24_000) / 5)
    samples[1_000:1_100] = samples[70_000:70_100] = 0.4
    start, end = Sound(samples, 24_000).spoken()
    assert (start, end) == (pytest.approx(1.0, abs=0.011), pytest.approx(2.0, abs=0.011))


@pytest.mark.parametrize("pitch", [80.0, 120.0, 180.0, 260.0, 400.0])
@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_pitch_is_measured_to_within_a_twentieth(pitch: float, rate: int) -> None:
    found = Sound(buzz(2.0, pitch, rate).astype(np.float32), rate).pitch()
    assert found == pytest.approx(pitch, rel=0.05)


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, 24_000).astype(np.float32)
    assert Sound(noise, 24_000).pitch() is None
    assert Sound(np.zeros(24_000, np.float32), 24_000).pitch() is None


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
