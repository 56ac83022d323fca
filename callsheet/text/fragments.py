"""A text on its way to being spoken: fragments that are still as written, and those that are settled.

A rule works on what is not settled yet and settles what it replaces, so that no later rule reads its
words as something else.

    >>> fragments = replace_in([Fragment("a 5G phone")], r"5G", lambda match: "five G")
    >>> "".join(fragment.text for fragment in fragments)
    'a five G phone'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: Stands for a settled fragment while the others are looked at: a letter that no script writes.
SETTLED = "\ua66e"


@dataclass(frozen=True)
class Fragment:
    """A stretch of text; ``fixed`` where it is in its last form."""

    text: str
    fixed: bool = False


def replace_in(
    fragments: Sequence[Fragment], pattern: str | re.Pattern[str], said: Callable[[re.Match[str]], str]
) -> list[Fragment]:
    """Replaces what matches in the open fragments by what ``said`` gives, and settles that.

    The pattern sees the whole text, each settled fragment as one letter (`SETTLED`), so that what stands
    beside a word that was put in is not taken for the beginning of the text.
    """
    whole = outline(fragments)
    settled = iter([fragment for fragment in fragments if fragment.fixed])
    result: list[Fragment] = []

    def keep(stretch: str) -> None:
        for part in re.split(f"({SETTLED})", stretch):
            if part:
                result.append(next(settled) if part == SETTLED else Fragment(part))

    at = 0
    for match in re.finditer(pattern, whole):
        if SETTLED in match[0] or match.end() == match.start():
            continue
        keep(whole[at : match.start()])
        result.append(Fragment(said(match), fixed=True))
        at = match.end()
    keep(whole[at:])
    return result


def outline(fragments: Sequence[Fragment]) -> str:
    """The text as patterns see it: each settled fragment is one letter."""
    return "".join([SETTLED if fragment.fixed else fragment.text for fragment in fragments])


def joined(fragments: Sequence[Fragment]) -> str:
    """The text of all fragments, with a blank between two words of which one was put in."""
    text = ""
    for fragment in fragments:
        touches = text[-1:].isalnum() and fragment.text[:1].isalnum()
        text += (" " if touches else "") + fragment.text
    return text
