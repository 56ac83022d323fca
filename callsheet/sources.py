"""Tables as people have them: a path, a bucket's key, an address, or the CSV itself, pasted into a form.

    sources = Sources(folder)
    script = sources.bring("r2://media/scripts/night.csv", "script")
    script.path, script.folder               # the CSV on this machine, and the folder that paths in it lead from
    name_of("https://example.org/night.csv")           # "night"; nothing for one that was pasted

A bucket's table comes with what lies beside it and is needed: `voices.csv`, `lexicon.csv`, and the recordings and pictures that
cells name; nothing else of the bucket is read. Paths in a table that was pasted, or has an address, lead from the folder in which
the run works.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import BeforeValidator

from callsheet.download import Downloads
from callsheet.errors import BadInput
from callsheet.hiding import shown_address
from callsheet.inputs import Mistake, Mistakes
from callsheet.store import Store, check_path, open_store
from callsheet.table import read_table
from callsheet.text.lexicon import LEXICON
from callsheet.voices import VOICES

#: The columns whose cells may be files beside their table.
_FILE_COLUMNS = ("image", "audio")
_BUCKET = "r2://"
#: Files of a bucket that are fetched at once.
_AT_ONCE = 8


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


#: A path as text, as forms have it; a `Path` does, too.
PathText = Annotated[str, BeforeValidator(_as_text)]
#: How a table is given.
Source = PathText


def is_pasted(given: str) -> bool:
    """Whether it is a table itself: no path has two lines."""
    return "\n" in given.strip()


def is_here(given: str) -> bool:
    """Whether it is a path of this machine."""
    return not (is_pasted(given) or given.startswith(_BUCKET) or Downloads.is_address(given))


def name_of(given: str) -> str:
    """What the table is called: its file's name without the ending; nothing where it was pasted."""
    if is_pasted(given):
        return ""
    path = unquote(urlsplit(given).path) if Downloads.is_address(given) else given
    return PurePosixPath(path.strip()).stem


@dataclass(frozen=True)
class Brought:
    """A table on this machine.

    Attributes:
        path: the CSV.
        folder: where paths in it lead from.
    """

    path: Path
    folder: Path


class Sources:
    """Brings tables into a folder, which must live as long as what is read from them.

    Args:
        scratch: the folder; None where every table must be a file of this machine.
    """

    def __init__(self, scratch: Path | None) -> None:
        self.scratch = scratch

    def bring(self, given: str, called: str, name: str = "") -> Brought:
        """The table.

        Args:
            given: how a person gave it.
            called: what it is: ``script``, ``voices``, …
            name: how a pasted one's file is named, without the ending; as it is called where empty.

        Raises:
            BadInput: it cannot be read, or what is no path is given where only paths can be.
            StoreFault: the bucket does not answer.
        """
        given = given.strip()
        if is_here(given):
            path = Path(given)
            return Brought(path, path.parent)
        if self.scratch is None:
            raise BadInput(f"{called}: found {_shown(given)}; expected the path of a file")
        folder = self.scratch / called
        folder.mkdir(parents=True, exist_ok=True)
        if given.startswith(_BUCKET):
            return self._of_bucket(given, called, folder)
        path = folder / f"{name_of(given) or name or called}.csv"
        if is_pasted(given):
            path.write_text(given + "\n", encoding="utf-8", newline="")
        else:
            self._of_address(given, called, path)
        return Brought(path, Path.cwd())

    @staticmethod
    def _of_address(given: str, called: str, path: Path) -> None:
        outcome = Downloads().fetch_all([given])[given]
        if isinstance(outcome, BadInput):
            raise BadInput(f"{called} {_shown(given)}: expected {outcome}")
        shutil.copyfile(outcome.path, path)

    @staticmethod
    def _of_bucket(given: str, called: str, folder: Path) -> Brought:
        address, _, name = given.rpartition("/")
        if address == "r2:/" or not name:
            raise BadInput(
                f"{called} {given}: expected r2://BUCKET/KEY, such as r2://media/scripts/night.csv"
            )
        store = open_store(address)
        folder /= PurePosixPath(address).name
        folder.mkdir(exist_ok=True)
        path = bring_of_store(store, "", name, folder, with_tables=called == "script")
        if path is None:
            raise Mistakes([Mistake(given, "no such key in the bucket", "the key of a CSV file")])
        return Brought(path, folder)


def bring_of_store(
    store: Store, prefix: str, name: str, folder: Path, *, with_tables: bool = True
) -> Path | None:
    """Brings the table ``name`` below ``prefix`` of a store into ``folder``, and what lies beside it and is needed.

    Args:
        with_tables: whether `voices.csv` and `lexicon.csv` belong to it.

    Returns:
        The table's path; None where there is none.

    Raises:
        StoreFault: the store does not answer.
    """
    path = _fetch(store, prefix, name, folder)
    if path is None:
        return None
    beside = [_fetch(store, prefix, table, folder) for table in (VOICES, LEXICON) if with_tables]
    cells = {cell for table in (path, *beside) if table is not None for cell in _files_of(table)}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda cell: _fetch(store, prefix, cell, folder), sorted(cells)))
    return path


def _fetch(store: Store, prefix: str, name: str, folder: Path) -> Path | None:
    """A file of the store in ``folder``; None where there is none, or where its name leads out of it, or is a folder's, too."""
    absent = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
    with contextlib.suppress(*absent), tempfile.TemporaryDirectory(dir=folder) as fetched:
        target = folder / check_path(name)
        content = store.fetch(f"{prefix}{name}", Path(fetched))
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copyfile(content, target))
    return None


def _files_of(table: Path) -> set[str]:
    """The cells of a table that may name files beside it. What is wrong with it is told when it is read."""
    try:
        rows = read_table(table, columns=_FILE_COLUMNS, required=()).rows
    except Mistakes:
        return set()
    cells = {cells[column] for _, cells in rows for column in _FILE_COLUMNS if column in cells}
    return {cell for cell in cells if not Downloads.is_address(cell) and ":" not in cell}


def _shown(given: str) -> str:
    """How it is named in a message: never the secrets that an address may carry behind its question mark."""
    if is_pasted(given):
        return "a pasted table"
    return shown_address(given) if Downloads.is_address(given) else given
