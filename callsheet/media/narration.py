"""A narration: the pieces that an engine spoke, trimmed, faded, brought to one level, and put together.

    sound = edit(read_sound(take), attempt.pieces, pauses=(0.0, 1.5, 0.0))

Takes are kept as the engine gave them; this is done whenever one is used, so a change of it costs no
engine time. Where and how loud the speech is was measured when the take was checked (`SpokenPiece`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from callsheet.media.audio import Samples, Sound
from callsheet.media.speech import Line, Measured, Neighbours, check_line, measure
from callsheet.takes import Check, SpokenPiece

#: What is kept before the first and after the last word, in seconds (facts, G5), and how it is faded.
HEAD, TAIL = 0.06, 0.12
FADE_IN, FADE_OUT = 0.01, 0.02
#: Between two pieces that no pause is asked for: with tail and head, the rest between two sentences.
GAP = 0.2


@dataclass(frozen=True)
class HeardPieces:
    """What was found in a narration, piece by piece; a check says of which, where there are several."""

    checks: tuple[Check, ...]
    pieces: tuple[SpokenPiece, ...]
    measured: tuple[Measured, ...]


def check_pieces(
    sound: Sound, lines: Sequence[Line], ends: Sequence[float], neighbours: Neighbours
) -> HeardPieces:
    """Checks each piece of a narration; ``ends`` are where the pieces end in it, in seconds."""
    checks: list[Check] = []
    pieces: list[SpokenPiece] = []
    measured: list[Measured] = []
    start = 0.0
    for number, (line, end) in enumerate(zip(lines, ends, strict=True)):
        part = sound.between(start, end)
        found = measure(part, line)
        of_piece = {"piece": number} if len(lines) > 1 else {}
        for check in (*check_line(part, line, found), *neighbours.check(found, line)):
            checks.append(check.model_copy(update=of_piece))
        pieces.append(
            SpokenPiece(
                start=round(start, 4),
                end=round(end, 4),
                speech_start=round(start + found.start, 4),
                speech_end=round(start + found.end, 4),
                gain_db=found.gain_db,
            )
        )
        measured.append(found)
        start = end
    return HeardPieces(tuple(checks), tuple(pieces), tuple(measured))


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
