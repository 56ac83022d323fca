"""A plan on its way to other machines: all that it is made from, in the store.

    pack(plan, store, {"batches/demo/shards/1a2b/plan-0.json": ["lh-01", "lh-02"], …})     # here
    plan = unpack(store, "batches/demo/shards/1a2b/plan-0.json", folder)                   # there

The shots of the script as it was read, the workflows and the fleet travel in one JSON file a part; recordings and
pictures lie under ``inputs/<sha256>`` beside it. So a worker needs no file of the machine that read the script, and
a script that is edited meanwhile changes nothing. Keys, tokens and other secrets are in none of them: each machine
has its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

#: Questions to the store at once. A folder answers at once, a bucket in some 50 ms.
_AT_ONCE = 16
_SCRIPT = TypeAdapter(Script)
_OTHER_VERSION = (
    "found a plan of another version of Callsheet, whose takes would be others here; "
    "expected the same version on all machines of the work pool"
)


class PackedPlan(BaseModel):
    """The plan of some shots as JSON.

    Attributes:
        shots: the shots that are to be made.
        script: those shots and what their takes depend on; paths in it are those of files in the store.
        recordings: voice to path in the store.
        workflows: name to declaration and graph.
        mark: the plan's own hash, by which a worker of another version notices that it would make other takes.
    """

    shots: list[str]
    script: dict[str, Any]
    recordings: dict[str, str]
    workflows: dict[str, tuple[dict[str, Any], dict[str, Any]]]
    fleet: Fleet
    mark: str


def pack(plan: Plan, store: Store, parts: Mapping[str, Sequence[str]]) -> None:
    """Writes parts of the plan: the path of each, and its shots. Files that they are made from go before them."""
    shots = {shot.shot_id: shot for shot in plan.script.shots}
    titles: dict[str, list[Shot]] = {}
    for shot in plan.script.shots:
        titles.setdefault(shot.title, []).append(shot)
    scripts = {
        path: _part(plan.script, _made(shots, ids), _framed(shots, titles, ids))
        for path, ids in parts.items()
    }
    files = {
        _path(file): file for path, ids in parts.items() for file in _files(scripts[path], _made(shots, ids))
    }
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(lambda item: _put(store, *item), files.items()))
        list(pool.map(lambda path: store.put(path, _packed(plan, scripts[path], parts[path])), parts))


def _packed(plan: Plan, script: Script, shot_ids: Sequence[str]) -> bytes:
    images = {cell: InputFile(Path(_path(image)), image.sha256) for cell, image in script.images.items()}
    packed = PackedPlan(
        shots=list(shot_ids),
        script=_SCRIPT.dump_python(replace(script, images=images), mode="json"),
        recordings={name: _path(voice.prompt_audio) for name, voice in script.voices.items()},
        workflows={name: workflow.source for name, workflow in plan.workflows.items()},
        fleet=plan.fleet,
        mark=_mark(plan, shot_ids),
    )
    return packed.model_dump_json(by_alias=True).encode()


def unpack(store: Store, path: str, folder: Path) -> Plan:
    """The plan at ``path``.

    Recordings and pictures that it is made from are brought to ``folder``, or read where they lie.

    Raises:
        BadInput: this machine's version of Callsheet would make other takes of it.
        StoreFault: it, or a file that it is made from, is gone or damaged.
    """
    try:
        packed = PackedPlan.model_validate_json(store.get(path))
        script = _SCRIPT.validate_python(packed.script)
        made = _made({shot.shot_id: shot for shot in script.shots}, packed.shots)
        used = {shot.voice for shot in made} | {shot.image for shot in made}
        recordings = {
            name: _brought(store, file, folder, wanted=name in used)
            for name, file in packed.recordings.items()
        }
        images = {
            cell: _brought(store, image.path.as_posix(), folder, wanted=cell in used)
            for cell, image in script.images.items()
        }
    except FileNotFoundError as error:
        raise StoreFault(f"store {store}: {error} is gone; produce the batch again") from None
    except ValidationError:
        raise BadInput(f"{path}: {_OTHER_VERSION}") from None
    voices = {name: voice.recorded_in(recordings[name]) for name, voice in script.voices.items()}
    workflows = {name: make_workflow(name, *source) for name, source in packed.workflows.items()}
    plan = make_plan(replace(script, voices=voices, images=images), packed.fleet, workflows)
    if _mark(plan, packed.shots) != packed.mark:
        raise BadInput(f"{path}: {_OTHER_VERSION}")
    plan.leave_only(packed.shots)
    return plan


def _framed(
    shots: Mapping[str, Shot], titles: Mapping[str, Sequence[Shot]], shot_ids: Iterable[str]
) -> Iterator[Shot]:
    """All shots of the programmes of these: they share a frame, which the sizes of all of them decide."""
    for title in dict.fromkeys(shots[shot_id].title for shot_id in shot_ids):
        if title:
            yield from titles[title]


def _made(shots: Mapping[str, Shot], shot_ids: Iterable[str]) -> list[Shot]:
    """These shots, and those whose pictures they take."""
    found: dict[str, Shot] = {}
    wanted = list(shot_ids)
    while wanted:
        if (shot_id := wanted.pop()) not in found:
            shot = found[shot_id] = shots[shot_id]
            if shot.image.startswith(SHOT_IMAGE):
                wanted.append(shot.image.removeprefix(SHOT_IMAGE))
    return list(found.values())


def _part(script: Script, *groups: Iterable[Shot]) -> Script:
    """The script of these shots alone."""
    found = {shot.shot_id: shot for shots in groups for shot in shots}
    shots = tuple(sorted(found.values(), key=lambda shot: shot.row))
    return replace(
        script,
        shots=shots,
        voices={voice: script.voices[voice] for voice in dict.fromkeys(s.voice for s in shots) if voice},
        images={shot.image: script.images[shot.image] for shot in shots if shot.image in script.images},
        readings={shot_id: script.readings.get(shot_id, ()) for shot_id in found},
        values={shot_id: script.values.get(shot_id, {}) for shot_id in found},
        notes=(),
    )


def _files(script: Script, shots: Iterable[Shot]) -> Iterator[InputFile]:
    """The files that these shots are made from."""
    for shot in shots:
        if shot.voice:
            yield script.voices[shot.voice].prompt_audio
        if shot.image in script.images:
            yield script.images[shot.image]


def _put(store: Store, path: str, file: InputFile) -> None:
    if store.size(path) != file.path.stat().st_size:
        store.put(path, file.path)


def _path(file: InputFile) -> str:
    return f"inputs/{file.sha256}{file.path.suffix.lower()}"


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


def _mark(plan: Plan, shot_ids: Iterable[str]) -> str:
    """Hash of the keys that are sure before anything is made: how many clips cover a narration is not."""
    shots = [plan.shots[shot_id] for shot_id in shot_ids]
    keys = [[shot.clip, shot.speech, *shot.pictures[:1]] for shot in shots]
    return hashlib.sha256(canonical(keys).encode()).hexdigest()
