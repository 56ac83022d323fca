"""The lexicon: how a producer wants words to be said, where the normaliser would say them otherwise.

    word,reading,scope
    Nguyen,win,
    GIF,jif,voice:anna
    重庆,崇庆,zh

A scope is empty (everywhere), a language tag, ``voice:NAME``, ``title:NAME`` or ``shot:ID``; the narrowest
wins. A reading goes to the engine as it stands: phones of CosyVoice 3 such as ``[j][ǐ]`` too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from callsheet.inputs import Mistake, Mistakes, quoted
from callsheet.table import mistakes_of, read_table
from callsheet.text.fragments import Fragment
from callsheet.text.pace import is_wide

LEXICON = "lexicon.csv"
_KINDS = ("shot:", "voice:", "title:")


class Entry(BaseModel):
    """One row of ``lexicon.csv``."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True, extra="forbid")

    word: str = Field(min_length=1, max_length=200, description="a word or phrase as it is written")
    reading: str = Field(min_length=1, max_length=400, description="how it is said")
    scope: str = Field(
        default="",
        pattern=r"^((shot|voice|title):.+|[a-z]{2,3}(-[A-Za-z0-9]+)*)?$",
        description="nothing, a language tag such as en, voice:NAME, title:NAME or shot:ID",
    )


@dataclass(frozen=True)
class Place:
    """Where a text stands, for scopes."""

    language: str = ""
    voice: str = ""
    title: str = ""
    shot: str = ""

    def rank(self, scope: str) -> int:
        """How narrowly ``scope`` fits here: 0 not at all, 1 everywhere … 5 this shot."""
        if not scope:
            return 1
        wanted = {f"shot:{self.shot}": 5, f"voice:{self.voice}": 4, f"title:{self.title}": 3}
        if scope in wanted:
            return wanted[scope]
        is_tag = not scope.startswith(_KINDS)
        return 2 if is_tag and (self.language == scope or self.language.startswith(f"{scope}-")) else 0


class Lexicon:
    """Entries, looked up as whole words; a word in lower case matches any case."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries: Sequence[Entry] = tuple(entries)

    def at(self, place: Place) -> dict[str, str]:
        """The words that have a reading at ``place``."""
        readings: dict[str, str] = {}
        for entry in sorted(self.entries, key=lambda entry: place.rank(entry.scope)):
            if place.rank(entry.scope):
                readings[entry.word] = entry.reading
        return readings


def read_aloud(text: str, readings: dict[str, str]) -> list[Fragment]:
    """The text with the readings in it, settled; the longest word first."""
    if not readings:
        return [Fragment(text)]
    # Of two as long, the one whose capitals matter goes first.
    words = sorted(readings, key=lambda word: (-len(word), word == word.lower()))
    # Not by `replace_in`: one pass over all words, so that no reading is read again.
    pattern = re.compile("|".join(_pattern(word) for word in words))
    fragments, at = [], 0
    for match in pattern.finditer(text):
        if match.start() > at:
            fragments.append(Fragment(text[at : match.start()]))
        word = next(w for w in words if re.fullmatch(_pattern(w), match[0]))
        fragments.append(Fragment(readings[word], fixed=True))
        at = match.end()
    if at < len(text):
        fragments.append(Fragment(text[at:]))
    return fragments


def _pattern(word: str) -> str:
    literal = re.escape(word)
    if word == word.lower() and word != word.upper():
        literal = f"(?i:{literal})"
    before = "" if is_wide(word[0]) or not word[0].isalnum() else r"(?<![^\W_])"
    after = "" if is_wide(word[-1]) or not word[-1].isalnum() else r"(?![^\W_])"
    return before + literal + after


def read_lexicon(path: Path) -> Lexicon:
    """Reads a lexicon. Raises Mistakes with all that is wrong in it."""
    table = read_table(path, columns=tuple(Entry.model_fields), required=("word", "reading"))
    mistakes, entries = list(table.mistakes), []
    first: dict[tuple[str, str], int] = {}
    for row, cells in table.rows:
        try:
            entry = Entry.model_validate(cells)
        except ValidationError as error:
            mistakes += mistakes_of(error, Entry, table.name, row, cells)
            continue
        known = first.setdefault((entry.word, entry.scope), row)
        if known != row:
            found = f"{quoted(entry.word)} a second time"
            mistakes.append(
                Mistake(table.name, found, f"one reading in a scope (row {known} has one)", row, "word")
            )
        entries.append(entry)
    if mistakes:
        raise Mistakes(mistakes)
    return Lexicon(entries)
