"""How long a text takes to say, counted from its characters alone: no model, no network.

    >>> round(speech_seconds("The keeper lit the lamp."), 1)
    1.9
    >>> round(text_tokens("The keeper lit the lamp."))
    8

Both are estimates. Measured on the demo's and the tests' lines, voices differ from `speech_seconds` by a
factor of about two either way. `text_tokens` stands for the Qwen2 tokenizer of CosyVoice 2 and 3, which
splits an English word into 1 to 1.4 pieces and joins about 1.4 Chinese characters into one; on names,
rare words and other languages it can be wrong by half. Limits that use it are wide enough for that.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

#: Languages written without blanks between words, in wide characters.
WIDE_LANGUAGES = ("zh", "ja", "ko", "yue")

#: Characters per second of unhurried narration. Within the ranges of gate G2 (facts, 4.2: en 10-20, zh 3-7).
NARROW_PER_SECOND = 15.0
WIDE_PER_SECOND = 4.5
#: A digit is read as a word: about as long as five Latin letters or one and a half Chinese characters.
DIGIT_SECONDS = 0.33
#: What a letter of an acronym takes beside its own fifteenth of a second.
SPELT_SECONDS = 0.12
#: The rest that a reader makes at the end of a clause or sentence.
STOP_SECONDS = 0.25

#: Pieces of the Qwen2 tokenizer per word of a Latin script, and per wide character.
TOKENS_PER_WORD = 1.25
TOKENS_PER_WIDE = 0.75

_STOPS = re.compile(r"[.!?;:,…](?=\s|$)|[。！？；：，、]")
_SPELT = re.compile(r"\b[A-Z]{2,6}\b")
_DIGITS = re.compile(r"[0-9]")
_WORDS = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MARKS = re.compile(r"[^\w\s]")


def is_wide_language(language: str) -> bool:
    """Whether ``language`` (a BCP-47 tag) is written in wide characters."""
    return primary(language) in WIDE_LANGUAGES


def primary(language: str) -> str:
    """The language of a tag without region: ``en`` of ``en-GB``."""
    return language.split("-")[0].lower()


def is_wide(character: str) -> bool:
    """Whether ``character`` takes two columns: Chinese, Japanese, Korean and full-width forms."""
    return unicodedata.east_asian_width(character) in ("W", "F")


def is_speakable(text: str) -> bool:
    """Whether there is anything to say: engines answer text of punctuation alone with an empty body."""
    return any(c.isalnum() for c in text)


def speech_seconds(text: str, speed: float = 1.0) -> float:
    """About how many seconds ``text`` takes to say at ``speed`` (1 = unhurried narration)."""
    return max(_unhurried_seconds(text), 0.4) / speed


@lru_cache(maxsize=4096)
def _unhurried_seconds(text: str) -> float:
    """Asked for several times for each piece of a script: while it is cut, planned and estimated."""
    seconds = STOP_SECONDS * len(_STOPS.findall(text))
    # "FBI" is said letter by letter, or as a word: between the two.
    seconds += SPELT_SECONDS * sum(len(word) for word in _SPELT.findall(text))
    if text.isascii():
        digits = len(_DIGITS.findall(text))
        return seconds + DIGIT_SECONDS * digits + (len(text) - digits) / NARROW_PER_SECOND
    for character in text:
        if character.isdigit():
            seconds += DIGIT_SECONDS
        elif is_wide(character):
            seconds += 1 / WIDE_PER_SECOND if character.isalnum() else 0
        else:
            seconds += 1 / NARROW_PER_SECOND
    return seconds


def text_tokens(text: str) -> float:
    """About how many tokens CosyVoice's tokenizer makes of ``text``; at least one."""
    wide = sum(is_wide(c) and c.isalnum() for c in text)
    narrow = "".join(" " if is_wide(c) else c for c in text)
    words = sum(max(1.0, len(word) / 5) for word in _WORDS.findall(narrow))
    return max(1.0, TOKENS_PER_WORD * words + TOKENS_PER_WIDE * wide + len(_MARKS.findall(text)))
