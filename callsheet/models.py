"""The model files that hosts load: a folder as ComfyUI has it, its copy in the store, and the list of what is there.

    shelf = ModelShelf(open_store("r2://media/callsheet"))
    shelf.upload(Path("ComfyUI/models"), ["unet/x.gguf"])      # what is there whole is not sent again
    shelf.faults()                                             # {"unet/x.gguf": "found nothing at …"}
    wanted_by(read_workflows(folder).values())                 # the files that workflows load

The files lie below ``models/``, and ``models/manifest.json`` names them with length and sha256. It is written after each
file, so it never names one that is not there; a rented host loads what it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from pydantic import BaseModel, Field, ValidationError, field_validator

from callsheet.declaration import Model
from callsheet.errors import BadInput, StoreFault
from callsheet.inputs import InputFile
from callsheet.store import Store
from callsheet.workflow import Workflow

FOLDER = "models"
MANIFEST = f"{FOLDER}/manifest.json"
#: How often the list is written anew where others write it at the same time.
_ATTEMPTS = 20


class ModelFile(BaseModel):
    """A file below ``models/``.

    Attributes:
        path: below that folder, such as ``unet/x.gguf``.
    """

    path: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        return check_model_path(path)


class ModelManifest(BaseModel):
    """The models that the store has for hosts."""

    files: list[ModelFile]

    def with_file(self, file: ModelFile) -> Self:
        """The same list with this file instead of another of its path."""
        files = {known.path: known for known in self.files} | {file.path: file}
        return self.model_copy(update={"files": sorted(files.values(), key=lambda one: one.path)})


@dataclass(frozen=True)
class Uploaded:
    """What became of a file: sent, or there already."""

    file: ModelFile
    was_there: bool


def check_model_path(path: str) -> str:
    """``path`` itself, where it names a file below a folder of models. Raises ValueError where it does not."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or "\\" in path:
        raise ValueError(f'found "{path}"; expected a path below the folder of models, such as unet/x.gguf')
    return path


def wanted_by(workflows: Iterable[Workflow]) -> dict[str, tuple[Model, list[str]]]:
    """The files that workflows load with their defaults, by path; and the names of those workflows."""
    wanted: dict[str, tuple[Model, list[str]]] = {}
    for workflow in workflows:
        for model in workflow.models_for({}):
            wanted.setdefault(f"{model.folder}/{model.file}", (model, []))[1].append(workflow.name)
    return dict(sorted(wanted.items()))


def files_below(root: Path) -> list[str]:
    """Every file below a folder of models, such as ``unet/x.gguf``; hidden ones and unfinished downloads are left."""
    found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in found
        if not any(part.startswith(".") for part in path.parts) and path.suffix not in (".part", ".tmp")
    )


class ModelShelf:
    """The models of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def manifest(self) -> ModelManifest:
        """What the store says that it has; an empty list where nothing was uploaded yet.

        Raises:
            BadInput: it is no list of models.
            StoreFault: it cannot be read.
        """
        try:
            content = self._store.get(MANIFEST)
        except FileNotFoundError:
            return ModelManifest(files=[])
        try:
            return ModelManifest.model_validate_json(content)
        except ValidationError as error:
            raise BadInput(
                f"store {self._store}: {MANIFEST} is no list of models ({error.error_count()} mistakes)"
            ) from None

    def upload(
        self, root: Path, paths: Iterable[str], sent: Callable[[int], None] = lambda _: None
    ) -> Iterator[Uploaded]:
        """Brings files of the folder ``root`` into the store, one after the other; yields each as it is there.

        Args:
            sent: is told of bytes as they are there, from any thread; those of a file that was there at once.

        Raises:
            BadInput: a file is not there, or not below the folder.
            StoreFault: the store does not take it; those before it are there and listed.
        """
        known = {file.path: file for file in self.manifest().files}
        for path in paths:
            local = _local(root, path)
            read = InputFile.read(local)
            file = ModelFile(path=path, sha256=read.sha256, bytes=local.stat().st_size)
            was_there = known.get(path) == file and self._fault(file) == ""
            if was_there:
                sent(file.bytes)
            else:
                self._store.put(f"{FOLDER}/{path}", local, sent)
                self._list(file)
            yield Uploaded(file, was_there)

    def faults(self) -> dict[str, str]:
        """What is wrong with files of the list, by path: they are missing, or of another length or content."""
        faults = {file.path: self._fault(file) for file in self.manifest().files}
        return {path: fault for path, fault in faults.items() if fault}

    def unlisted(self) -> list[str]:
        """Files that lie there and are in no list: no host loads them."""
        listed = {MANIFEST, *(f"{FOLDER}/{file.path}" for file in self.manifest().files)}
        there = (file.path for file in self._store.list(f"{FOLDER}/"))
        return sorted(path.removeprefix(f"{FOLDER}/") for path in there if path not in listed)

    def check(self, file: ModelFile) -> None:
        """Raises BadInput where the store has not got a file of its list: each host would be paid for until it missed it."""
        if fault := self._fault(file):
            raise BadInput(
                f"store {self._store}: {MANIFEST} names {file.path}; {fault}; nothing is rented before it is there"
            )

    def _fault(self, file: ModelFile) -> str:
        path = f"{FOLDER}/{file.path}"
        found = self._store.size(path)
        if found != file.bytes:
            what = "nothing" if found is None else f"{found:,} bytes"
            return f"found {what} at {path}, expected {file.bytes:,} bytes"
        return ""

    def _list(self, file: ModelFile) -> None:
        """Adds a file to the list, which others may write at the same time."""
        for _ in range(_ATTEMPTS):
            version = self._store.version(MANIFEST)
            manifest = self.manifest().with_file(file)
            if self._store.put_if(MANIFEST, manifest.model_dump_json(indent=1).encode(), version):
                return
        raise StoreFault(f"store {self._store}: {MANIFEST} is changed by others all the time")


def bytes_of(root: Path, paths: Iterable[str]) -> int:
    """How much files below a folder of models are together. Raises BadInput as `ModelShelf.upload` does."""
    return sum(_local(root, path).stat().st_size for path in paths)


def _local(root: Path, path: str) -> Path:
    try:
        local = root / check_model_path(path)  # links may lead to other disks: models often lie there
    except ValueError as error:
        raise BadInput(f"model: {error}") from None
    if not local.is_file():
        raise BadInput(f"model {path}: found no such file below {root}")
    return local
