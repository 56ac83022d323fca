"""The text of a shot: what is written, what is spoken, in which pieces, and how long that takes.

    reading = read_text("Dr. Hale paid $3.50. [pause 1s] Nobody asked.", "en")
    [(piece.spoken, piece.pause) for piece in reading]
    # [("Doctor Hale paid three dollars and fifty cents.", 1.0), ("Nobody asked.", 0.0)]

The servers normalise Chinese and English alone, differently from image to image (facts, 1.1), and read
numbers of other languages in English. So everything that is not a word is put in words here, and a
producer sees it before a GPU second is spent: ``callsheet text SCRIPT``.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from callsheet.text import chinese, english
from callsheet.text.lexicon import Lexicon, Place, read_aloud
from callsheet.text.numerals import knows_numbers_of as _knows
from callsheet.text.numerals import spell_numbers
from callsheet.text.pace import (
    is_speakable,
    is_wide,
    is_wide_language,
    primary,
    speech_seconds,
    text_tokens,
)
from callsheet.text.sentences import LONGEST_SECONDS, cut, halves, pause_faults, without_pauses

__all__ = [
    "NORMALISER",
    "Lexicon",
    "Piece",
    "Place",
    "clean",
    "is_speakable",
    "is_wide",
    "is_wide_language",
    "knows_numbers_of",
    "pause_faults",
    "primary",
    "read_text",
    "speech_seconds",
    "text_tokens",
    "without_pauses",
]

#: Part of every speech take's key: a change of what `read_text` does makes new takes. Change it together
#: with the pins of num2words and wetext in pyproject.toml.
NORMALISER = "callsheet-2"


@dataclass(frozen=True)
class Piece:
    """What an engine speaks in one go.

    Attributes:
        written: as the script has it, for captions.
        spoken: in words, as the engine gets it.
        pause: the silence after it that the script asks for, in seconds.
    """

    written: str
    spoken: str
    pause: float = 0.0

    @property
    def seconds(self) -> float:
        """About how long it takes to say, without its pause."""
        return speech_seconds(self.spoken)


#: What a piece may take once its numbers are in words, in seconds.
LONGEST_SPOKEN = 1.25 * LONGEST_SECONDS


def read_text(
    text: str, language: str, lexicon: Lexicon | None = None, place: Place | None = None
) -> tuple[Piece, ...]:
    """A text as it is spoken: cut into pieces, each in words.

    Args:
        language: a BCP-47 tag. Numbers of a language that nobody here can count in stay as they are.
        lexicon, place: readings that a producer gave, and where the text stands among their scopes.
    """
    readings = lexicon.at(place or Place(language)) if lexicon else {}
    pieces: list[Piece] = []
    for part in cut(clean(text, language), language):
        pieces += _fitting(part.written, part.pause, language, readings)
    return tuple(pieces)


def _fitting(written: str, pause: float, language: str, readings: dict[str, str]) -> list[Piece]:
    """A piece in words; cut again where its numbers make it longer than an engine should speak in one go."""
    spoken = _read(written, language, readings)
    if not is_speakable(spoken):
        return []
    if speech_seconds(spoken) > LONGEST_SPOKEN and len(parts := halves(written)) == 2:
        first, second = parts
        return [*_fitting(first, 0.0, language, readings), *_fitting(second, pause, language, readings)]
    return [Piece(written, spoken, pause)]


def _read(written: str, language: str, readings: dict[str, str]) -> str:
    """A piece in words."""
    fragments = read_aloud(written, readings)
    spoken = "".join(f.text if f.fixed else _spell(f.text, language) for f in fragments)
    return re.sub(r"\s+", " ", spoken).strip()


def clean(text: str, language: str) -> str:
    """The text as written: NFC, no control characters, one blank where there were several.

    Line breaks become blanks; in languages written without blanks they vanish.
    """
    if text.isascii() and text.isprintable():
        return re.sub(r"  +", " ", text).strip()
    text = unicodedata.normalize("NFC", text)
    text = "".join(c if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf") else "" for c in text)
    if is_wide_language(language) and primary(language) != "ko":
        text = re.sub(r"\s*\n\s*", "", text.strip())
    return re.sub(r"\s+", " ", text).strip()


def knows_numbers_of(language: str) -> bool:
    """Whether numbers in this language are put in words; in others they go to the engine as written."""
    return primary(language) in ("en", "zh") or _knows(primary(language))


def _spell(text: str, language: str) -> str:
    tongue = primary(language)
    if tongue == "en":
        return english.spell(text, british=language in ("en-GB", "en-AU", "en-NZ", "en-IE", "en-IN", "en-ZA"))
    if tongue == "zh":
        return chinese.spell(text)
    return spell_numbers(text, tongue) if _knows(tongue) else text
