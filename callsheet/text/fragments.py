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


@dataclass(frozen=True)
class Fragment:
    """A stretch of text; ``fixed`` where it is in its last form."""

    text: str
    fixed: bool = False


def replace_in(
    fragments: Sequence[Fragment], pattern: str | re.Pattern[str], said: Callable[[re.Match[str]], str]
) -> list[Fragment]:
    """Replaces what matches in the open fragments by what ``said`` gives, and settles that."""
    result: list[Fragment] = []
    for fragment in fragments:
        if fragment.fixed:
            result.append(fragment)
            continue
        at = 0
        for match in re.finditer(pattern, fragment.text):
            if match.start() > at:
                result.append(Fragment(fragment.text[at : match.start()]))
            result.append(Fragment(said(match), fixed=True))
            at = match.end()
        if at < len(fragment.text):
            result.append(Fragment(fragment.text[at:]))
    return result


def joined(fragments: Sequence[Fragment]) -> str:
    """The text of all fragments."""
    return "".join(fragment.text for fragment in fragments)
