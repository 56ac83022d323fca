"""Reads a CSV table that people made, in whatever program, and tells all that is wrong with its form.

    table = read_table(Path("demo.csv"), columns=("shot_id", "text"), required=("shot_id",))
    table.rows        # [(2, {"shot_id": "a-01", "text": "Hello."}), …], row numbers as a spreadsheet counts
    table.mistakes    # what is wrong with header and shape; empty when all is well

pandas reads the file; UTF-8 with and without byte-order mark, GB18030 (Excel in China), CRLF and
newlines inside quotation marks are all read. What the cells mean is the caller's business.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ValidationError

from callsheet.inputs import Mistake, Mistakes, quoted

#: Cells beyond the header that are still read, so that each row with too many is named, not only the first.
_SPARE_COLUMNS = 8


@dataclass
class Table:
    """A table as read.

    Attributes:
        name: the file's name, as mistakes give it.
        sha256: hash of the file's bytes, in hex.
        encoding: ``utf-8`` or ``gb18030``.
        rows: (row number, cells by column); empty cells are left out, and so are empty rows.
        mistakes: what is wrong with the header and the shape of rows.
    """

    name: str
    sha256: str
    encoding: str
    rows: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)


def read_table(
    path: Path, *, columns: Sequence[str], required: Sequence[str], open_prefix: str = ""
) -> Table:
    """Reads the CSV at ``path``.

    Args:
        columns: the columns it may have. Others are mistakes, but for those that begin with ``#``:
            they are a person's own notes.
        required: the columns it must have.
        open_prefix: columns with this prefix are allowed whatever follows it (``param.``).

    Raises:
        Mistakes: the file cannot be read as a table at all.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Mistakes([Mistake(str(path), error.strerror or str(error), "a CSV file")]) from None
    text, encoding = _decode(raw, path.name)
    table = Table(path.name, hashlib.sha256(raw).hexdigest(), encoding)
    frame = _parse(text, path.name)
    header = [str(cell).strip() for cell in frame.iloc[0].tolist() if not _blank(cell)]
    while header and not header[-1]:
        header.pop()
    table.mistakes += _header_mistakes(header, path.name, columns, required, open_prefix)
    for row, cells in _records(frame):
        extra = [cell for cell in cells[len(header) :] if cell]
        if extra:
            found = f"{len(header) + len(extra)} values, the last being {quoted(extra[-1])}"
            expected = f"{len(header)}, as the header has (quote a text that holds commas)"
            table.mistakes.append(Mistake(path.name, found, expected, row))
        by_column = {name: cell for name, cell in zip(header, cells, strict=False) if cell}
        if by_column:
            table.rows.append((row, by_column))
    return table


def mistakes_of(
    error: ValidationError, model: type[BaseModel], file: str, row: int, cells: dict[str, str]
) -> Iterator[Mistake]:
    """What pydantic found wrong in a row, in our words: each field's description says what would be right."""
    for detail in error.errors():
        column = str(detail["loc"][0]) if detail["loc"] else None
        field_info = model.model_fields.get(column or "")
        expected = (field_info.description if field_info else None) or detail["msg"]
        found = quoted(cells[column]) if column in cells else "nothing"
        yield Mistake(file, found, expected, row, column)


def _decode(raw: bytes, name: str) -> tuple[str, str]:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Mistakes([Mistake(name, "UTF-16 text", "UTF-8 (in Excel: save as “CSV UTF-8”)")])
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return raw.decode(encoding), encoding.removesuffix("-sig")
        except UnicodeDecodeError:
            continue
    raise Mistakes(
        [Mistake(name, "bytes that are neither UTF-8 nor GB18030", "UTF-8 (in Excel: save as “CSV UTF-8”)")]
    )


def _parse(text: str, name: str) -> pd.DataFrame:
    """All records as text, the header among them; missing cells are NaN."""
    options = {"header": None, "dtype": str, "keep_default_na": False, "skip_blank_lines": False}
    first = pd.DataFrame([[""]])
    try:
        first = pd.read_csv(io.StringIO(text), nrows=1, **options)
        width = first.shape[1] + _SPARE_COLUMNS
        frame = pd.read_csv(io.StringIO(text), names=list(range(width)), **options)
    except pd.errors.EmptyDataError:
        raise Mistakes([Mistake(name, "an empty file", "a header and at least one row")]) from None
    except pd.errors.ParserError as error:
        raise Mistakes([_parse_mistake(str(error), name, first.shape[1])]) from None
    if first.shape[1] == 1 and ";" in str(first.iloc[0, 0]):
        raise Mistakes([Mistake(name, "columns separated by semicolons", "columns separated by commas", 1)])
    return frame


def _parse_mistake(message: str, name: str, width: int) -> Mistake:
    """What the C parser of pandas could not read past, in our words."""
    if opened := re.search(r"EOF inside string starting at row (\d+)", message):
        row = int(opened[1]) + 1
        return Mistake(name, "a quotation mark that is never closed", "a second one after it", row)
    if longer := re.search(r"Expected \d+ fields in line (\d+), saw (\d+)", message):
        expected = f"{width}, as the header has (quote a text that holds commas)"
        return Mistake(name, f"{longer[2]} values", expected, int(longer[1]))
    return Mistake(name, f"a table that does not parse ({message.strip()})", "a CSV table")


def _header_mistakes(
    header: list[str], name: str, columns: Sequence[str], required: Sequence[str], open_prefix: str
) -> Iterator[Mistake]:
    for place, column in enumerate(header, start=1):
        if not column:
            yield Mistake(name, f"no name above column {place}", "a name for every column", 1)
        elif header.index(column) < place - 1:
            yield Mistake(name, f"the column {quoted(column)} twice", "each column once", 1, column)
        elif not _known(column, columns, open_prefix):
            near = difflib.get_close_matches(column.lower(), columns, n=1)
            hint = f"{near[0]}, perhaps" if near else f"one of {', '.join(columns)}"
            yield Mistake(
                name,
                f"the unknown column {quoted(column)}",
                f"{hint} (a column for yourself is named #{column})",
                1,
                column,
            )
    for column in required:
        if column not in header:
            yield Mistake(name, f"no column {column}", "it is needed", 1, column)


def _known(column: str, columns: Sequence[str], open_prefix: str) -> bool:
    prefixed = bool(open_prefix) and column.startswith(open_prefix) and len(column) > len(open_prefix)
    return column in columns or prefixed or column.startswith("#")


def _records(frame: pd.DataFrame) -> Iterator[tuple[int, list[str]]]:
    for row, record in enumerate(frame.iloc[1:].itertuples(index=False, name=None), start=2):
        yield row, ["" if _blank(cell) else cell.strip() for cell in record]


def _blank(cell: object) -> bool:
    return not isinstance(cell, str)
