"""Captions from the text that was spoken: never from recognition, so they hold no errors of it.

    cues = make_cues("The keeper climbed the stairs …", "en", start=0.1, end=6.4)
    write_captions(cues)["srt"]

Limits are Netflix's (facts, section 5): 42 characters a line and two lines, 16 for Chinese; 5/6 s to
7 s a cue; two frames between cues; breaks after punctuation where there is a choice.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pysubs2

from callsheet.text import is_wide, is_wide_language, speech_seconds

LINE_LENGTH, WIDE_LINE_LENGTH = 42, 16
LINES = 2
SHORTEST, LONGEST = 5 / 6, 7.0
#: Two frames at 25 frames per second.
GAP = 0.08

_SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’」』）)]*$")
_CLAUSE_END = re.compile(r"[,;:，；：、—–]+[\"'”’」』）)]*$")
#: Words that a line should rather begin with than end on.
_LEANS_FORWARD = frozenset(
    "a an the and or but nor so yet of in on at by to for with from into that which who as if when because".split()
)
#: A full stop after these ends no sentence.
_ABBREVIATIONS = frozenset(
    "dr. mr. mrs. ms. prof. st. no. vs. e.g. i.e. etc. jr. sr. approx. fig. vol.".split()
)
_CLOSING = "。！？；：，、…”’」』）》】!?;:,.)"


@dataclass(frozen=True)
class Cue:
    """One caption: start and end in seconds, and its lines."""

    start: float
    end: float
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def shifted(self, seconds: float) -> Cue:
        return replace(self, start=self.start + seconds, end=self.end + seconds)


@dataclass(frozen=True)
class _Token:
    """A piece that is never broken: a word, or a wide character with the marks that belong to it."""

    text: str
    space_before: bool
    seconds: float


def make_cues(text: str, language: str, start: float, end: float) -> list[Cue]:
    """Captions for ``text``, spoken from ``start`` to ``end`` (seconds).

    Time is shared out by how long each piece takes to say by itself, which is right to within a few
    tenths of a second for lines of a few sentences.
    """
    tokens = _tokens(text, language)
    if not tokens:
        return []
    scale = (end - start) / sum(token.seconds for token in tokens)
    limit = WIDE_LINE_LENGTH if is_wide_language(language) else LINE_LENGTH
    pieces = _divide([replace(token, seconds=token.seconds * scale) for token in tokens], limit)
    cues, at = [], start
    for piece in pieces:
        until = at + sum(token.seconds for token in piece)
        cues.append(Cue(at, until, _lines(piece, limit) or (_join(piece),)))
        at = until
    return _with_gaps(cues)


def write_captions(cues: Sequence[Cue]) -> dict[Literal["srt", "vtt"], str]:
    """The captions as SubRip and as WebVTT text."""
    return {"srt": _write(cues, "srt"), "vtt": _write(cues, "vtt")}


def width(text: str, limit: int) -> float:
    """How much of a line ``text`` takes: in wide-character lines a narrow character counts half."""
    if limit == WIDE_LINE_LENGTH:
        return sum(1.0 if is_wide(c) else 0.5 for c in text)
    return sum(2.0 if is_wide(c) else 1.0 for c in text)


def _tokens(text: str, language: str) -> list[_Token]:
    """Words, and wide characters each with its closing marks; a word longer than a line is cut."""
    limit = WIDE_LINE_LENGTH if is_wide_language(language) else LINE_LENGTH
    pieces: list[tuple[str, bool]] = []
    for word_number, word in enumerate(text.split()):
        for number, piece in enumerate(_atoms(word, limit)):
            pieces.append((piece, number == 0 and word_number > 0))
    return [_Token(piece, space, speech_seconds(piece)) for piece, space in pieces]


def _atoms(word: str, limit: int) -> list[str]:
    atoms: list[str] = []
    for character in word:
        glued = atoms and (
            character in _CLOSING
            or not (is_wide(character) or is_wide(atoms[-1][-1]))
            or atoms[-1][-1] in "“‘「『（《【("
        )
        if glued and width(atoms[-1] + character, limit) <= limit:
            atoms[-1] += character
        else:
            atoms.append(character)
    return atoms


def _divide(tokens: list[_Token], limit: int) -> list[list[_Token]]:
    """The cheapest way to cut the tokens into cues, found from the end by dynamic programming."""
    count = len(tokens)
    cost = [0.0] + [float("inf")] * count
    cut = [0] * (count + 1)
    for end in range(1, count + 1):
        for begin in range(end - 1, -1, -1):
            piece = tokens[begin:end]
            if begin < end - 1 and not _fits(piece, limit):
                break
            total = cost[begin] + _cue_cost(piece, limit, last=end == count)
            if total < cost[end]:
                cost[end], cut[end] = total, begin
    pieces, end = [], count
    while end:
        pieces.append(tokens[cut[end] : end])
        end = cut[end]
    return pieces[::-1]


def _fits(piece: list[_Token], limit: int) -> bool:
    return sum(t.seconds for t in piece) <= LONGEST and bool(_lines(piece, limit))


def _cue_cost(piece: list[_Token], limit: int, *, last: bool) -> float:
    """Prefers few cues, ends at sentences, then clauses, and none that flash by."""
    cost = 10.0
    seconds = sum(token.seconds for token in piece)
    if seconds < SHORTEST:
        cost += 40 * (1 - seconds / SHORTEST)
    cost += 6.0 * sum(_ends_sentence(token) for token in piece[:-1])
    if not last:
        cost += _break_cost(piece[-1])
    return cost + 2.0 * (width(_join(piece), limit) / (LINES * limit)) ** 2


def _ends_sentence(token: _Token) -> bool:
    return token.text.lower() not in _ABBREVIATIONS and bool(_SENTENCE_END.search(token.text))


def _break_cost(token: _Token) -> float:
    """How bad it is to break after this piece."""
    if _ends_sentence(token):
        return 0.0
    if token.text.lower() in _ABBREVIATIONS:
        return 25.0
    if _CLAUSE_END.search(token.text):
        return 4.0
    return 16.0 if token.text.lower() in _LEANS_FORWARD else 9.0


def _lines(piece: list[_Token], limit: int) -> tuple[str, ...]:
    """The piece on one line, or on two of about the same length; empty where it takes more."""
    whole = _join(piece)
    if width(whole, limit) <= limit:
        return (whole,)
    best: tuple[float, tuple[str, str]] | None = None
    for place in range(1, len(piece)):
        first, second = _join(piece[:place]), _join(piece[place:])
        lengths = width(first, limit), width(second, limit)
        if max(lengths) > limit:
            continue
        cost = abs(lengths[0] - lengths[1]) + _break_cost(piece[place - 1])
        if best is None or cost < best[0]:
            best = cost, (first, second)
    return best[1] if best else ()


def _join(piece: Sequence[_Token]) -> str:
    return "".join((" " if token.space_before else "") + token.text for token in piece).strip()


def _with_gaps(cues: list[Cue]) -> list[Cue]:
    """Takes two frames off the end of each cue that another follows at once."""
    followed = itertools.pairwise(cues)
    return [replace(cue, end=max(cue.start + 0.1, after.start - GAP)) for cue, after in followed] + cues[-1:]


def _write(cues: Sequence[Cue], kind: Literal["srt", "vtt"]) -> str:
    file = pysubs2.SSAFile()
    for cue in cues:
        # WebVTT is markup, SubRip has no way to escape. pysubs2 takes a backslash before n, N or h for
        # an ASS mark: a zero-width space keeps it a backslash.
        text = html.escape(cue.text, quote=False) if kind == "vtt" else cue.text
        text = re.sub(r"\\(?=[nNh])", "\\\\\u200b", text).replace("\n", r"\N")
        file.append(pysubs2.SSAEvent(start=round(cue.start * 1000), end=round(cue.end * 1000), text=text))
    return str(file.to_string(kind, keep_ssa_tags=True))
