"""Sentences: a text cut into pieces that an engine speaks in one go, and the pauses between them.

    >>> [piece.written for piece in cut("Dr. Hale paid 3.5 pounds. He left. [pause 1s] Nobody asked.", "en")]
    ['Dr. Hale paid 3.5 pounds. He left.', 'Nobody asked.']

The servers cut at every full stop once a segment has 60 tokens, "Dr." and "3.5" included, and speak a
text without stops as one breath of minutes. So texts are cut here, below what they would cut themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from callsheet.text.pace import is_speakable, is_wide, primary, speech_seconds

#: CosyVoice's splitter begins at 60 tokens, about 13 s; a piece is kept under that.
LONGEST_SECONDS = 12.0
#: A piece shorter than this joins its neighbour: very short texts are what the models fail on most (CosyVoice#426).
SHORTEST_SECONDS = 1.2
#: Nothing can be cut that has neither blank nor mark for this long.
UNBREAKABLE_SECONDS = 2 * LONGEST_SECONDS
DEFAULT_PAUSE, LONGEST_PAUSE = 0.5, 10.0

PAUSE = re.compile(r"\s*\[\s*pause(?:\s+(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>ms|s))?\s*\]\s*", re.IGNORECASE)
_LIKE_PAUSE = re.compile(r"\[\s*pause\b[^\]]*\]?", re.IGNORECASE)

_ABBREVIATIONS = frozenset(
    "dr mr mrs ms prof st gen col capt lt sgt rev gov sen hon no nos vs e.g i.e approx fig vol mt ft dept inc ltd co "
    "jan feb mar apr jun jul aug sept sep oct nov dec p pp bzw z.b d.h u.a ca nr str sr sra srta m mme mlle".split()
)
_CLOSING = "\"'”’»」』）)】]"
_END = re.compile(rf"[.!?…]+[{re.escape(_CLOSING)}]*(?=\s)|[。！？；…]+[{re.escape(_CLOSING)}]*")
_CLAUSE = re.compile(r"[,;:–—](?=\s)|\s[–—](?=\s)|[，、：；]")


@dataclass(frozen=True)
class Cut:
    """A piece of a text as written, and the pause after it that the text asks for, in seconds."""

    written: str
    pause: float = 0.0


def pause_faults(text: str) -> list[str]:
    """Marks that look like a pause and are none, or are too long."""
    faults = [m[0] for m in _LIKE_PAUSE.finditer(text) if not PAUSE.fullmatch(m[0])]
    return faults + [m[0].strip() for m in PAUSE.finditer(text) if _pause_seconds(m) > LONGEST_PAUSE]


def without_pauses(text: str) -> str:
    """The text without its pause marks: what captions show."""
    return PAUSE.sub(" ", text).strip()


def _pause_seconds(match: re.Match[str]) -> float:
    if not match["amount"]:
        return DEFAULT_PAUSE
    return float(match["amount"]) / (1000 if match["unit"].lower() == "ms" else 1)


def cut(text: str, language: str) -> list[Cut]:
    """Cuts a text at its pauses, and what is between them at ends of sentences, never longer than an engine takes.

    A pause before the first word is dropped, as nothing is there to pause after.
    """
    pieces: list[Cut] = []
    at = 0
    for match in [*PAUSE.finditer(text), None]:
        stretch = text[at : match.start() if match else len(text)].strip()
        pieces += [Cut(piece) for piece in _pieces(stretch, language)]
        if match:
            at = match.end()
            if pieces:
                pieces[-1] = replace(pieces[-1], pause=pieces[-1].pause + _pause_seconds(match))
    return pieces


def _pieces(text: str, language: str) -> list[str]:
    """Sentences, joined while they are short together, and cut where one is too long."""
    parts = [part for sentence in sentences(text) for part in _short_enough(sentence)]
    pieces: list[str] = []
    for part in parts:
        if not is_speakable(part):
            if pieces:  # a mark that stands alone belongs to what it follows
                pieces[-1] += part
            continue
        together = pieces[-1] + _glue(pieces[-1], part, language) + part if pieces else ""
        # A last word or two may go over the edge: very short texts are what the models fail on most.
        room = LONGEST_SECONDS + (2 * SHORTEST_SECONDS if _is_short(part) and part is parts[-1] else 0)
        if pieces and speech_seconds(together) <= room:
            pieces[-1] = together
        else:
            pieces.append(part)
    return pieces


def _glue(before: str, after: str, language: str) -> str:
    """What stands between two sentences: nothing between Chinese or Japanese ones, else a blank."""
    if primary(language) in ("zh", "ja", "yue") and (is_wide(before[-1]) or is_wide(after[0])):
        return ""
    return " "


def halves(text: str) -> list[str]:
    """A text cut where it is best cut; the whole where it cannot be."""
    place = _best_cut(text)
    return [half for half in (text[:place].strip(), text[place:].strip()) if half]


def _is_short(text: str) -> bool:
    return speech_seconds(text) < SHORTEST_SECONDS


def sentences(text: str) -> list[str]:
    """The sentences of a text. Stops of abbreviations, numbers and addresses, and those within quotes, end none."""
    found, start = [], 0
    for match in _END.finditer(text):
        if _ends_sentence(text, match):
            found.append(text[start : match.end()].strip())
            start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    if is_wide(match[0][0]) or match[0][0] in "。！？；":
        return True
    after = text[match.end() :].lstrip()
    if after and after[0].islower():
        return False  # '"Really?" he said', "e.g. this"
    if match[0].rstrip(_CLOSING) != ".":
        return True
    word = re.search(r"[\w.]*$", text[: match.start()])
    before = word[0].lower() if word else ""
    if before in _ABBREVIATIONS or re.fullmatch(r"[a-z](?:\.[a-z])*", before):
        return False  # "Dr.", "J. Smith", "U.S."
    return not (before.isdigit() and after[:1].isdigit()) and not _is_german_ordinal(before, after)


def _is_german_ordinal(before: str, after: str) -> bool:
    months = ("Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober")
    return before.isdigit() and after.startswith((*months, "November", "Dezember", "Jahrhundert"))


def _short_enough(sentence: str) -> Iterator[str]:
    """A sentence, cut at clauses, then between words, where it is too long to be spoken in one go."""
    if speech_seconds(sentence) <= LONGEST_SECONDS:
        yield sentence
        return
    place = _best_cut(sentence)
    if not place:
        yield sentence
        return
    for half in (sentence[:place].strip(), sentence[place:].strip()):
        yield from _short_enough(half)


def _best_cut(sentence: str) -> int:
    """Where to cut: the clause end, else the blank, else the wide character nearest the middle; 0 for nowhere."""
    middle = len(sentence) / 2
    for places in (
        [m.end() for m in _CLAUSE.finditer(sentence)],
        [m.end() for m in re.finditer(r"\s+", sentence)],
        [n for n in range(1, len(sentence)) if is_wide(sentence[n]) and is_wide(sentence[n - 1])],
    ):
        inside = [place for place in places if 0.15 * len(sentence) < place < 0.85 * len(sentence)]
        if inside:
            return min(inside, key=lambda place: abs(place - middle))
    return 0
