"""A narration: the pieces that an engine spoke, trimmed, faded, brought to one level, and put together.

    sound = edit(read_sound(take), attempt.pieces, pauses=(0.0, 1.5, 0.0))

Takes are kept as the engine gave them; this is done whenever one is used, so a change of it costs no
engine time. Where and how loud the speech is was measured when the take was checked (`SpokenPiece`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from callsheet.media.audio import Samples, Sound
from callsheet.takes import SpokenPiece

#: What is kept before the first and after the last word, in seconds (facts, G5), and how it is faded.
HEAD, TAIL = 0.06, 0.12
FADE_IN, FADE_OUT = 0.01, 0.02
#: Between two pieces that no pause is asked for: with tail and head, the rest between two sentences.
GAP = 0.2


def kept(piece: SpokenPiece) -> tuple[float, float]:
    """The part of the file that is used of a piece, in seconds."""
    return max(piece.start, piece.speech_start - HEAD), min(piece.end, piece.speech_end + TAIL)


def narration_seconds(pieces: Sequence[SpokenPiece]) -> float:
    """How long the narration is without the pauses that a script asks for."""
    return sum(end - start for start, end in map(kept, pieces)) + GAP * max(0, len(pieces) - 1)


def spoken_windows(pieces: Sequence[SpokenPiece], pauses: Sequence[float]) -> list[tuple[float, float]]:
    """When each piece is heard in the narration, from its first to its last sound, in seconds."""
    windows, at = [], 0.0
    for number, piece in enumerate(pieces):
        start, end = kept(piece)
        windows.append((at + piece.speech_start - start, at + min(piece.speech_end, end) - start))
        at += end - start + GAP + (pauses[number] if number < len(pauses) else 0.0)
    return windows


def edit(sound: Sound, pieces: Sequence[SpokenPiece], pauses: Sequence[float]) -> Sound:
    """The narration, with the script's pauses (seconds) after each piece."""
    parts: list[Samples] = []
    for number, piece in enumerate(pieces):
        part = sound.between(*kept(piece)).samples * np.float32(10 ** (piece.gain_db / 20))
        parts.append(_faded(part, sound.rate))
        silence = (GAP if number < len(pieces) - 1 else 0.0) + (
            pauses[number] if number < len(pauses) else 0.0
        )
        parts.append(np.zeros(round(silence * sound.rate), np.float32))
    return Sound(np.concatenate(parts) if parts else sound.samples, sound.rate)


def _faded(samples: Samples, rate: int) -> Samples:
    faded = samples.copy()
    for seconds, is_out in ((FADE_IN, False), (FADE_OUT, True)):
        size = min(round(seconds * rate), len(faded) // 2)
        # Half a cosine: no corner that could be heard.
        ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(size) + 0.5) / max(size, 1))).astype(np.float32)
        if size and is_out:
            faded[-size:] *= ramp[::-1]
        elif size:
            faded[:size] *= ramp
    return faded
