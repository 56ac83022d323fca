"""What people give us: files that must not leave their folder, and mistakes that are told all at once.

roots = MediaRoots(Path("data"), also=[Path("/srv/recordings")])
path = roots.resolve("voices/anna.wav")      # ValueError where it leads out of the roots
InputFile.read(path).sha256
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from callsheet.errors import BadInput


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong in a file.

    Attributes:
        file: the file's name as the person gave it.
        found: what stands there.
        expected: what would be right.
        row: the row as a spreadsheet counts it, the header being row 1; None for the file as a whole.
        column: the column's name; None for the row as a whole.
    """

    file: str
    found: str
    expected: str
    row: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        place = self.file
        if self.row is not None:
            place += f" row {self.row}"
        if self.column is not None:
            place += f", column {self.column}"
        return f"{place}: found {self.found}; expected {self.expected}"


class Mistakes(BadInput):
    """All mistakes of the files of a batch, together, in the order of file and row."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        lines = "\n".join(f"  {mistake}" for mistake in self.mistakes)
        super().__init__(f"{count} mistake{'s' if count != 1 else ''}; nothing was started\n{lines}")


def quoted(text: str, limit: int = 60) -> str:
    """``text`` in quotation marks on one line, shortened to ``limit`` characters, for an error message."""
    line = " ".join(text.split())
    if len(line) > limit:
        line = line[: limit - 1] + "…"
    return f'"{line}"'


def shortened(text: str, lines: int = 20) -> str:
    """The first lines of a message that may have one for each row of a script."""
    first, *rest = text.splitlines() or [""]
    more = len(rest) - lines
    return "\n".join([first, *rest[:lines], *([f"  and {more} more"] if more > 0 else [])])


@dataclass(frozen=True)
class InputFile:
    """A file that goes into a take.

    Attributes:
        path: where it is on this machine; not part of any take key.
        sha256: the hash of its bytes, in hex; the part of it that take keys hold.
    """

    path: Path
    sha256: str

    @classmethod
    def read(cls, path: Path) -> InputFile:
        """Hashes the file. Raises OSError where it cannot be read."""
        with path.open("rb") as file:
            return cls(path, hashlib.file_digest(file, "sha256").hexdigest())


class MediaRoots:
    """The folders that paths in a CSV may lead to: the CSV's own, and those that a person named.

    Links are followed before the check, so a link inside a root does not lead out of it either.
    """

    def __init__(self, base: Path, also: Sequence[Path] = ()) -> None:
        self.base = base.resolve()
        self.roots = (self.base, *(root.resolve() for root in also))

    def resolve(self, text: str) -> Path:
        """The file that ``text`` names, relative to the CSV's folder.

        Raises:
            ValueError: the path leaves the roots, or there is no such file. The message is what would be right.
        """
        if "\0" in text:
            raise ValueError("a path without NUL characters")
        path = (self.base / text).resolve()
        if not any(path.is_relative_to(root) for root in self.roots):
            named = ", ".join(root.name or str(root) for root in self.roots)
            raise ValueError(f"a path inside {named} (name other folders with --media-root)")
        if not path.is_file():
            raise ValueError(f"an existing file in {self.base.name}")
        return path
