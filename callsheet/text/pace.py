"""The text of a shot: what is spoken, how long that takes, and where it may be cut for captions.

Only the language-independent part of normalisation is done here (Unicode form, blanks, control
characters); numbers and abbreviations still go to the engine as written.

    >>> normalise("Hello   wo\\u0301rld", "en")
    'Hello wórld'
    >>> round(speech_seconds("The keeper lit the lamp.", "en"), 1)
    1.9
"""

from __future__ import annotations

import re
import unicodedata

#: Part of every speech take's key: a change of what `normalise` does makes new takes.
NORMALISER = "callsheet-1"

#: Languages written without blanks between words, in wide characters.
WIDE_LANGUAGES = ("zh", "ja", "ko", "yue")

#: Characters per second of unhurried narration. Within the ranges of gate G2 (facts, 4.2: en 10-20, zh 3-7).
NARROW_PER_SECOND = 15.0
WIDE_PER_SECOND = 4.5
#: A digit is read as a word: about as long as five Latin letters or one and a half Chinese characters.
DIGIT_SECONDS = 0.33
#: The rest that a reader makes at the end of a clause or sentence.
STOP_SECONDS = 0.25

_STOPS = re.compile(r"[.!?;:,…](?=\s|$)|[。！？；：，、]")


def normalise(text: str, language: str) -> str:
    """The text as it goes to the engine: NFC, no control characters, one blank where there were several.

    Line breaks become blanks; in languages written without blanks they vanish.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(c if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf") else "" for c in text)
    if is_wide_language(language):
        text = re.sub(r"\s*\n\s*", "", text.strip())
    return re.sub(r"\s+", " ", text).strip()


def is_wide_language(language: str) -> bool:
    """Whether ``language`` (a BCP-47 tag) is written in wide characters without blanks between words."""
    return language.split("-")[0].lower() in WIDE_LANGUAGES


def is_wide(character: str) -> bool:
    """Whether ``character`` takes two columns: Chinese, Japanese, Korean and full-width forms."""
    return unicodedata.east_asian_width(character) in ("W", "F")


def is_speakable(text: str) -> bool:
    """Whether there is anything to say: engines answer text of punctuation alone with an empty body."""
    return any(c.isalnum() for c in text)


def speech_seconds(text: str, language: str, speed: float = 1.0) -> float:
    """About how many seconds ``text`` takes to say at ``speed`` (1 = as the voice speaks).

    From character counts alone; voices differ from it by a factor of about two either way.
    """
    seconds = STOP_SECONDS * len(_STOPS.findall(text))
    for character in text:
        if character.isdigit():
            seconds += DIGIT_SECONDS
        elif is_wide(character):
            seconds += 1 / WIDE_PER_SECOND if character.isalnum() else 0
        else:
            seconds += 1 / NARROW_PER_SECOND
    return max(seconds, 0.4) / speed


def plausible_seconds(text: str, language: str, speed: float = 1.0) -> tuple[float, float]:
    """The shortest and longest recording (seconds) that can be a reading of ``text``.

    Wide on purpose: it is there to catch an empty or cut body and a runaway, not a slow reader.
    """
    expected = speech_seconds(text, language, speed)
    return 0.35 * expected, 2.5 * expected + 1.0
