import numpy as np
import pytest

from callsheet.media.audio import Sound
from callsheet.media.narration import GAP, HEAD, TAIL, edit, narration_seconds, spoken_windows
from callsheet.takes import SpokenPiece

RATE = 24_000
#: Two pieces of 2 s and 1 s, each with silence before and after.
PIECES = (
    SpokenPiece(start=0.0, end=3.0, speech_start=0.5, speech_end=2.5, gain_db=6.0206),
    SpokenPiece(start=3.0, end=5.0, speech_start=3.02, speech_end=4.02),
)


def sound() -> Sound:
    samples = np.zeros(5 * RATE, np.float32)
    for piece in PIECES:
        samples[round(piece.speech_start * RATE) : round(piece.speech_end * RATE)] = 0.2
    return Sound(samples, RATE)


def test_the_narration_is_as_long_as_is_said_and_pauses_add_to_it() -> None:
    length = narration_seconds(PIECES)
    assert length == pytest.approx(HEAD + 2 + TAIL + GAP + 0.02 + 1 + TAIL)
    assert edit(sound(), PIECES, ()).seconds == pytest.approx(length, abs=1e-4)
    assert edit(sound(), PIECES, (1.5, 0.5)).seconds == pytest.approx(length + 2.0, abs=1e-4)


def test_each_piece_is_heard_where_its_window_says() -> None:
    edited = edit(sound(), PIECES, (1.5, 0.0))
    for start, end in spoken_windows(PIECES, (1.5, 0.0)):
        inside = np.abs(edited.between(start + 0.03, end - 0.03).samples)
        assert inside.min() > 0.19
        assert np.abs(edited.between(start - 0.05, start).samples).max(initial=0) < 0.01
        assert np.abs(edited.between(end + 0.01, end + 0.1).samples).max() < 0.01


def test_gain_is_applied_and_edges_are_faded() -> None:
    edited = edit(sound(), PIECES, ()).samples
    assert edited.max() == pytest.approx(0.4, rel=1e-3)
    loud = Sound(np.full(5 * RATE, 0.5, np.float32), RATE)
    whole = (SpokenPiece(start=0.0, end=5.0, speech_start=0.0, speech_end=5.0),)
    faded = edit(loud, whole, ()).samples
    assert faded[0] < 0.001
    assert faded[-1] < 0.001
    assert np.abs(np.diff(faded)).max() < 0.01, "no corner that could be heard"
