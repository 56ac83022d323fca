"""A plan on its way to other machines: all that it is made from, in the store.

    pack(plan, store, "batches/demo/shards/1a2b/plan.json")       # here
    plan = unpack(store, "batches/demo/shards/1a2b/plan.json", ["lh-01"], folder)   # there

The script as it was read, the workflows and the fleet travel in one JSON file; recordings and pictures lie under
``inputs/<sha256>`` beside it. So a worker needs no file of the machine that read the script, and a script that is
edited meanwhile changes nothing. Keys, tokens and other secrets are in none of them: each machine has its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from callsheet.errors import BadInput, StoreFault
from callsheet.fleet import Fleet
from callsheet.inputs import InputFile
from callsheet.plan import Plan, make_plan
from callsheet.script import SHOT_IMAGE, Script, Shot
from callsheet.store import Store
from callsheet.workflow import canonical, make_workflow

_SCRIPT = TypeAdapter(Script)
_OTHER_VERSION = (
    "found a plan of another version of Callsheet, whose takes would be others here; "
    "expected the same version on all machines of the work pool"
)


class PackedPlan(BaseModel):
    """A plan as JSON.

    Attributes:
        script: the script; paths in it are those of files in the store.
        recordings: voice to path in the store.
        workflows: name to declaration and graph.
        mark: the plan's own hash, by which a worker of another version notices that it would make other takes.
    """

    script: dict[str, Any]
    recordings: dict[str, str]
    workflows: dict[str, tuple[dict[str, Any], dict[str, Any]]]
    fleet: Fleet
    mark: str


def pack(plan: Plan, store: Store, path: str) -> None:
    """Writes the plan to ``path``, and the files that it is made from where the store has not got them."""
    script = plan.script
    images = {cell: _stored(image) for cell, image in script.images.items()}
    for file in _files(script):
        target = _path(file)
        if store.size(target) != file.path.stat().st_size:
            store.put(target, file.path)
    packed = PackedPlan(
        script=_SCRIPT.dump_python(replace(script, images=images), mode="json"),
        recordings={name: _path(voice.prompt_audio) for name, voice in script.voices.items()},
        workflows={name: workflow.source for name, workflow in plan.workflows.items()},
        fleet=plan.fleet,
        mark=_mark(plan),
    )
    store.put(path, packed.model_dump_json(by_alias=True).encode())


def unpack(store: Store, path: str, shot_ids: Collection[str], folder: Path) -> Plan:
    """The plan at ``path``, of these shots alone.

    Recordings and pictures that they are made from are brought to ``folder``, or read where they lie.

    Raises:
        BadInput: this machine's version of Callsheet would make other takes of it.
        StoreFault: it, or a file that it is made from, is gone or damaged.
    """
    try:
        packed = PackedPlan.model_validate_json(store.get(path))
        script = _SCRIPT.validate_python(packed.script)
        shots = _with_sources(script, shot_ids)
        used = {shot.voice for shot in shots} | {shot.image for shot in shots}
        voices = {
            name: voice.recorded_in(_brought(store, packed.recordings[name], folder, wanted=name in used))
            for name, voice in script.voices.items()
        }
        images = {
            cell: _brought(store, image.path.as_posix(), folder, wanted=cell in used)
            for cell, image in script.images.items()
        }
    except FileNotFoundError as error:
        raise StoreFault(f"store {store}: {error} is gone; produce the batch again") from None
    except ValidationError:
        raise BadInput(f"{path}: {_OTHER_VERSION}") from None
    workflows = {name: make_workflow(name, *source) for name, source in packed.workflows.items()}
    plan = make_plan(replace(script, voices=voices, images=images), packed.fleet, workflows)
    if _mark(plan) != packed.mark:
        raise BadInput(f"{path}: {_OTHER_VERSION}")
    plan.leave_only(shot_ids)
    return plan


def _files(script: Script) -> Iterator[InputFile]:
    yield from (voice.prompt_audio for voice in script.voices.values())
    yield from script.images.values()


def _path(file: InputFile) -> str:
    return f"inputs/{file.sha256}{file.path.suffix.lower()}"


def _stored(file: InputFile) -> InputFile:
    return InputFile(Path(_path(file)), file.sha256)


def _with_sources(script: Script, shot_ids: Collection[str]) -> list[Shot]:
    """These shots, and those whose pictures they take."""
    by_id = {shot.shot_id: shot for shot in script.shots}
    found: dict[str, Shot] = {}
    wanted = list(shot_ids)
    while wanted:
        if (shot_id := wanted.pop()) not in found:
            shot = found[shot_id] = by_id[shot_id]
            if shot.image.startswith(SHOT_IMAGE):
                wanted.append(shot.image.removeprefix(SHOT_IMAGE))
    return list(found.values())


def _brought(store: Store, path: str, folder: Path, *, wanted: bool) -> InputFile:
    """The file as it lies here; one that is not wanted stays where it is, and counts by its hash alone.

    Raises:
        StoreFault: it is not what its name says.
    """
    if not wanted:
        return InputFile(Path(path), Path(path).stem)
    file = InputFile.read(store.fetch(path, folder))
    if not path.startswith(f"inputs/{file.sha256}"):
        raise StoreFault(f"store {store}: {path} is damaged: its hash is {file.sha256[:16]}…")
    return file


def _mark(plan: Plan) -> str:
    """Hash of the keys that are sure before anything is made: how many clips cover a narration is not."""
    keys = [[shot.clip, shot.speech, *shot.pictures[:1]] for shot in plan.shots.values()]
    return hashlib.sha256(canonical(keys).encode()).hexdigest()
