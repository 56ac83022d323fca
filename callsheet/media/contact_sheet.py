"""A contact sheet: the posters of a batch on one picture, each with its shot's id.

sheet = contact_sheet([Print("lh-01", poster_bytes), Print("lh-02", poster_bytes, needs_review=True)])
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps

#: One print with its line of text below, in pixels.
_WIDTH, _HEIGHT, _LINE, _GAP = 240, 135, 22, 8
_COLUMNS = 4
_PAPER, _INK, _REVIEW = "#1c1e21", "#e8eaed", "#ffb454"


@dataclass(frozen=True)
class Print:
    """One picture of the sheet: a shot's poster as JPEG or PNG."""

    shot_id: str
    picture: bytes
    needs_review: bool = False


def contact_sheet(prints: Sequence[Print]) -> bytes:
    """The sheet as JPEG, four prints in a row. Those that need a review are framed and marked.

    Raises:
        ValueError: there is no print.
        OSError: a picture cannot be read.
    """
    if not prints:
        raise ValueError("found no print; expected at least one")
    columns = min(_COLUMNS, len(prints))
    rows = -(-len(prints) // columns)
    sheet = PIL.Image.new(
        "RGB", (columns * (_WIDTH + _GAP) + _GAP, rows * (_HEIGHT + _LINE + _GAP) + _GAP), _PAPER
    )
    draw = PIL.ImageDraw.Draw(sheet)
    font = PIL.ImageFont.load_default(14)
    for number, one in enumerate(prints):
        left = _GAP + number % columns * (_WIDTH + _GAP)
        top = _GAP + number // columns * (_HEIGHT + _LINE + _GAP)
        with PIL.Image.open(io.BytesIO(one.picture)) as picture:
            shown = PIL.ImageOps.pad(picture.convert("RGB"), (_WIDTH, _HEIGHT), color=_PAPER)
        sheet.paste(shown, (left, top))
        if one.needs_review:
            draw.rectangle((left, top, left + _WIDTH - 1, top + _HEIGHT - 1), outline=_REVIEW, width=3)
        text = f"{one.shot_id} · needs review" if one.needs_review else one.shot_id
        fitting = next(n for n in range(len(text), 0, -1) if draw.textlength(text[:n], font) <= _WIDTH)
        draw.text((left, top + _HEIGHT + 3), text[:fitting], _REVIEW if one.needs_review else _INK, font)
    target = io.BytesIO()
    sheet.save(target, format="JPEG", quality=80, subsampling=0)
    return target.getvalue()
