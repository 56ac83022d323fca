"""The script: a CSV whose rows are shots, read and checked whole before anything is spent.

    script = read_script(Path("data/demo.csv"), voices=…, workflows=…, fleet=…)
    script.shots[0].text

Every mistake of the script, of the voices it uses and of the files it names is found in one go and
raised together as `Mistakes`, each with row, column, what was found and what would be right.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import PIL.Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from callsheet.download import Downloads
from callsheet.engines.instructions import INSTRUCTIONS
from callsheet.errors import BadInput
from callsheet.fleet import ENGINE_KINDS, Engine, Fleet
from callsheet.hiding import shown_address
from callsheet.inputs import InputFile, MediaRoots, Mistake, Mistakes, quoted
from callsheet.table import mistakes_of, read_table
from callsheet.text import (
    Lexicon,
    Piece,
    Place,
    is_speakable,
    knows_numbers_of,
    pause_faults,
    read_text,
    speech_seconds,
)
from callsheet.text.lexicon import LEXICON, read_lexicon
from callsheet.text.sentences import UNBREAKABLE_SECONDS
from callsheet.voices import VOICES, Voice, read_voices
from callsheet.workflow import FILE_VARIABLES, OWN_VARIABLES, Value, Variable, Workflow

PARAM = "param."
#: An image that is another shot's picture is written ``shot:<shot_id>``.
SHOT_IMAGE = "shot:"
_PROMPT_COLUMNS = {"prompt": "POSITIVE_PROMPT", "negative_prompt": "NEGATIVE_PROMPT"}


class Shot(BaseModel):
    """One row: the smallest thing with a deliverable. Descriptions say what is right, for error messages."""

    model_config = ConfigDict(frozen=True, str_strip_whitespace=True, extra="forbid")

    row: int
    shot_id: str = Field(
        pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$",
        description="an id of letters, digits, dot, dash and underscore that does not begin with a dot",
    )
    title: str = Field(
        default="", max_length=200, description="the name of a programme, up to 200 characters"
    )
    text: str = Field(default="", max_length=20_000, description="what is spoken, up to 20,000 characters")
    voice: str = Field(default="", description="the name of a voice")
    language: str = Field(
        default="",
        pattern=r"^([a-z]{2,3}(-[A-Za-z0-9]+)*)?$",
        description="a language tag such as en, zh or de",
    )
    engine: Literal["", "cosyvoice", "lighttts", "xtts", "llasa"] = Field(
        default="", description="cosyvoice, lighttts, xtts or llasa, or nothing for the fleet's first"
    )
    speed: float = Field(
        default=1.0, ge=0.5, le=2.0, description="a number from 0.5 to 2, 1 being the voice's own pace"
    )
    instruct: str = Field(default="", description=f"how it is to be said, one of {', '.join(INSTRUCTIONS)}")
    visual: str = Field(default="", description="the name of a workflow")
    prompt: str = Field(
        default="", max_length=20_000, description="what the picture shows, up to 20,000 characters"
    )
    negative_prompt: str = Field(default="", max_length=20_000, description="what the picture must not show")
    image: str = Field(default="", description="a path, an http(s) address or shot:<shot_id>")
    width: int | None = Field(
        default=None, ge=64, le=8192, description="a whole number of pixels from 64 to 8192"
    )
    height: int | None = Field(
        default=None, ge=64, le=8192, description="a whole number of pixels from 64 to 8192"
    )
    seconds: float | None = Field(
        default=None, gt=0, le=3600, description="a number of seconds above 0, up to 3600"
    )
    fps: float | None = Field(
        default=None, ge=1, le=120, description="frames per second of the clip, from 1 to 120"
    )
    seed: int | None = Field(
        default=None, ge=0, lt=2**64, description="a whole number from 0 to 18446744073709551615"
    )
    pause_after: float = Field(default=0.0, ge=0, le=60, description="a number of seconds from 0 to 60")
    params: dict[str, str] = Field(default_factory=dict)

    @field_validator("speed", "seconds", "fps", "pause_after")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and value != value:
            raise ValueError("not a number")
        return value


#: The columns of a script, beside ``param.NAME``.
COLUMNS = tuple(name for name in Shot.model_fields if name not in ("row", "params"))


@dataclass(frozen=True)
class Script:
    """A script that is valid as a whole.

    Attributes:
        name: the file's name without its ending.
        sha256: hash of the file's bytes, in hex.
        shots: in the order of the file.
        voices: the voices that the shots use.
        readings: each shot's text as it is spoken, by shot_id; nothing for shots without text.
        images: the files that ``image`` cells name, by cell.
        values: each shot's workflow variables, by shot_id: what ``width``, ``prompt`` and ``param.…`` set.
        notes: what a person should know though it is no mistake (a size that was rounded, …).
    """

    name: str
    sha256: str
    shots: tuple[Shot, ...]
    voices: Mapping[str, Voice]
    readings: Mapping[str, tuple[Piece, ...]]
    images: Mapping[str, InputFile]
    values: Mapping[str, Mapping[str, Value]]
    notes: tuple[str, ...] = ()

    def shot(self, shot_id: str) -> Shot:
        return next(shot for shot in self.shots if shot.shot_id == shot_id)

    def language_of(self, shot: Shot) -> str:
        """The shot's language: its own, or its voice's."""
        return shot.language or (self.voices[shot.voice].language if shot.voice else "")


@dataclass(frozen=True)
class ScriptSettings:
    """What a script is checked against.

    Attributes:
        workflows: by name.
        fleet: its engines are those that shots may use.
        folder: where paths in the script lead from; None for its own folder.
        voices: path of ``voices.csv``; None for the one in ``folder``.
        voices_folder: where paths in ``voices.csv`` lead from; None for its own folder.
        lexicon: path of ``lexicon.csv``; None for the one in ``folder``, where there is one.
        media_roots: folders besides these that paths may lead to.
        commercial: whether the result is for commercial use.
        downloads: where images given by address are kept.
        today: the day that consents must still hold on.
    """

    workflows: Mapping[str, Workflow]
    fleet: Fleet
    folder: Path | None = None
    voices: Path | None = None
    voices_folder: Path | None = None
    lexicon: Path | None = None
    media_roots: Sequence[Path] = ()
    commercial: bool = False
    downloads: Downloads = field(default_factory=Downloads)
    today: datetime.date = field(default_factory=datetime.date.today)


def read_script(path: Path, settings: ScriptSettings) -> Script:
    """Reads and checks the script at ``path``.

    Raises:
        Mistakes: with every mistake of the script, of its voices and of the files it names.
    """
    table = read_table(path, columns=COLUMNS, required=("shot_id",), open_prefix=PARAM)
    mistakes = list(table.mistakes)
    shots: list[Shot] = []
    for row, cells in table.rows:
        params = {name.removeprefix(PARAM): cell for name, cell in cells.items() if name.startswith(PARAM)}
        known = {name: cell for name, cell in cells.items() if name in COLUMNS}
        try:
            shots.append(Shot.model_validate({"row": row, **known, "params": params}))
        except ValidationError as error:
            mistakes += mistakes_of(error, Shot, table.name, row, cells)
            if "shot_id" in known:
                shots.append(Shot.model_construct(row=row, **_sound_cells(error, known), params=params))
    if not table.rows:
        mistakes.append(Mistake(table.name, "no shot", "at least one row under the header"))
    check = _ScriptCheck(table.name, shots, path, settings)
    mistakes += check.all_mistakes()
    if mistakes:
        raise Mistakes(
            sorted(dict.fromkeys(mistakes), key=lambda m: (m.file != table.name, m.file, m.row or 0))
        )
    shots = _with_known_images(shots, check.images)
    return Script(
        name=path.stem,
        sha256=table.sha256,
        shots=tuple(shots),
        voices=check.voices,
        readings=check.readings,
        images=check.images,
        values=check.values,
        notes=tuple(check.notes),
    )


def _with_known_images(shots: list[Shot], images: dict[str, InputFile]) -> list[Shot]:
    """The shots with images that were fetched named by what came: their addresses may hold secrets, and are used no more."""
    known = {
        cell: f"{shown_address(cell)}#{images[cell].sha256}" for cell in images if Downloads.is_address(cell)
    }
    for cell, name in known.items():
        images[name] = images.pop(cell)
    return [shot.model_copy(update={"image": known.get(shot.image, shot.image)}) for shot in shots]


def _sound_cells(error: ValidationError, cells: dict[str, str]) -> dict[str, Any]:
    """The cells of a row that have no mistake of their own, so that its other mistakes are found too."""
    wrong = {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    numeric = {"width", "height", "seconds", "fps", "seed", "speed", "pause_after"}
    left_out = (wrong | numeric) - {"shot_id"}  # others refer to a shot by its id, right or wrong
    return {name: cell for name, cell in cells.items() if name not in left_out}


class _ScriptCheck:
    """The checks that look beyond one cell: at other rows, at voices, workflows, files and the fleet."""

    def __init__(self, file: str, shots: list[Shot], path: Path, settings: ScriptSettings) -> None:
        self.file = file
        self.shots = shots
        self.settings = settings
        folder = path.parent if settings.folder is None else settings.folder
        self.roots = MediaRoots(folder, settings.media_roots)
        self.voices_path = settings.voices or folder / VOICES
        self.by_id: dict[str, Shot] = {}
        for shot in shots:
            self.by_id.setdefault(shot.shot_id, shot)
        self.lexicon_path = settings.lexicon or folder / LEXICON
        self.lexicon = Lexicon()
        self.readings: dict[str, tuple[Piece, ...]] = {}
        self.registry: dict[str, Voice] = {}
        self.voices: dict[str, Voice] = {}
        self.images: dict[str, InputFile] = {}
        self.values: dict[str, dict[str, Value]] = {}
        self.notes: list[str] = []

    def all_mistakes(self) -> Iterator[Mistake]:
        yield from self._registry_mistakes()
        yield from self._lexicon_mistakes()
        yield from self._duplicate_mistakes()
        checks: tuple[Callable[[Shot], Iterator[Mistake]], ...] = (
            self._content_mistakes,
            self._speech_mistakes,
            self._visual_mistakes,
        )
        for shot in self.shots:
            for check in checks:
                yield from check(shot)
        for voice in self.voices.values():
            yield from voice.mistakes(commercial=self.settings.commercial, today=self.settings.today)
        yield from self._address_mistakes()

    def _at(self, shot: Shot, column: str, found: str, expected: str) -> Mistake:
        return Mistake(self.file, found, expected, shot.row, column)

    def _registry_mistakes(self) -> Iterator[Mistake]:
        if not any(shot.voice for shot in self.shots):
            return
        try:
            self.registry = read_voices(
                self.voices_path, self.settings.media_roots, self.settings.voices_folder
            )
        except Mistakes as error:
            yield from error.mistakes

    def _lexicon_mistakes(self) -> Iterator[Mistake]:
        if self.settings.lexicon is None and not self.lexicon_path.exists():
            return
        try:
            self.lexicon = read_lexicon(self.lexicon_path)
        except Mistakes as error:
            yield from error.mistakes

    def _duplicate_mistakes(self) -> Iterator[Mistake]:
        """Ids that are the same, or differ in case alone: on some disks they would be one file."""
        first: dict[str, Shot] = {}
        for shot in self.shots:
            other = first.setdefault(shot.shot_id.casefold(), shot)
            if other is not shot:
                yield self._at(
                    shot,
                    "shot_id",
                    quoted(shot.shot_id),
                    f"an id of its own (row {other.row} has {other.shot_id})",
                )

    def _content_mistakes(self, shot: Shot) -> Iterator[Mistake]:
        if not shot.text and not shot.visual:
            yield self._at(shot, "text", "neither text nor visual", "some narration, some picture, or both")
        for column in ("voice", "engine", "instruct", "language"):
            if not shot.text and getattr(shot, column):
                yield self._at(
                    shot, column, f"{quoted(getattr(shot, column))} without a text", "a text, or no " + column
                )
        for column in ("prompt", "negative_prompt", "image"):
            if not shot.visual and getattr(shot, column):
                yield self._at(
                    shot,
                    column,
                    f"{quoted(getattr(shot, column))} without a visual",
                    f"a visual, or no {column}",
                )

    def _speech_mistakes(self, shot: Shot) -> Iterator[Mistake]:
        if not shot.text:
            return
        if "<|" in shot.text or "|>" in shot.text:
            # CosyVoice skips normalisation and splitting, or fails, on its own control marks (facts, 1.1).
            yield self._at(shot, "text", quoted(shot.text), "a text without <| and |>")
        elif faults := pause_faults(shot.text):
            expected = "pauses such as [pause 500ms] or [pause 1.5s], at most 10 s"
            yield self._at(shot, "text", quoted(", ".join(faults)), expected)
        else:
            yield from self._reading_mistakes(shot)
        yield from self._voice_mistakes(shot)
        yield from self._engine_mistakes(shot)

    def _reading_mistakes(self, shot: Shot) -> Iterator[Mistake]:
        language = self._language(shot)
        place = Place(language, shot.voice, shot.title, shot.shot_id)
        reading = read_text(shot.text, language, self.lexicon, place)
        self.readings[shot.shot_id] = reading
        if not reading:
            # Engines answer it with 200 and an empty body.
            yield self._at(shot, "text", quoted(shot.text), "a text with something to say")
        for piece in reading:
            if piece.seconds > UNBREAKABLE_SECONDS:
                found = f"{quoted(piece.written)}, {len(piece.written)} characters without a blank or a mark"
                yield self._at(shot, "text", found, "words that an engine can say in one go")
            if not is_speakable(piece.spoken) or "<|" in piece.spoken:
                yield self._at(shot, "text", quoted(piece.spoken), "a reading of words (see the lexicon)")
        if not knows_numbers_of(language) and any(c.isdigit() for piece in reading for c in piece.spoken):
            self.notes.append(
                f"{shot.shot_id}: its numbers go to the engine as digits, because they are not known in "
                f"{language}; write them in words to be sure"
            )

    def _language(self, shot: Shot) -> str:
        """The shot's language, as far as it can be told from a script that may have mistakes."""
        voice = self.registry.get(shot.voice)
        return shot.language or (voice.language if voice else "en")

    def _voice_mistakes(self, shot: Shot) -> Iterator[Mistake]:
        names = ", ".join(self.registry) or f"one of {self.voices_path.name}"
        if not shot.voice:
            yield self._at(shot, "voice", "a text without a voice", f"a voice: {names}")
        elif shot.voice not in self.registry:
            yield self._at(shot, "voice", quoted(shot.voice), f"a voice: {names}")
        else:
            self.voices.setdefault(shot.voice, self.registry[shot.voice])

    def _engine_mistakes(self, shot: Shot) -> Iterator[Mistake]:
        if shot.engine and self.settings.commercial and not ENGINE_KINDS[shot.engine].commercial:
            licence = ENGINE_KINDS[shot.engine].licence
            yield self._at(
                shot,
                "engine",
                f"{shot.engine}, whose licence is {licence}",
                "an engine that allows commercial use, or a run without --commercial",
            )
        engine = self.settings.fleet.engine_for("speech", shot.engine or None)
        if engine is None:
            has = sorted(
                {e.kind for h in self.settings.fleet.hosts for e in h.engines if "speech" in e.facts.makes}
            )
            found = quoted(shot.engine) if shot.engine else "a text"
            yield self._at(
                shot,
                "engine",
                found,
                f"an engine of this fleet: {', '.join(has) or 'it has none that speaks'}",
            )
            return
        if shot.speed != 1.0 and not engine.facts.has_speed:
            yield self._at(
                shot,
                "speed",
                f"{shot.speed:g} with {engine.kind}, whose server knows no speed",
                "1, or the engine lighttts",
            )
        if shot.instruct:
            yield from self._instruct_mistakes(shot, engine)

    def _instruct_mistakes(self, shot: Shot, engine: Engine) -> Iterator[Mistake]:
        if shot.instruct not in INSTRUCTIONS:
            yield self._at(shot, "instruct", quoted(shot.instruct), f"one of {', '.join(INSTRUCTIONS)}")
        if engine.kind != "cosyvoice" or engine.model == "cosyvoice":
            what = engine.kind if engine.kind != "cosyvoice" else "the first CosyVoice"
            expected = "no instruction, or the engine cosyvoice with the model cosyvoice2 or cosyvoice3"
            yield self._at(shot, "instruct", f"{quoted(shot.instruct)} with {what}", expected)

    def _visual_mistakes(self, shot: Shot) -> Iterator[Mistake]:
        for name in shot.params:
            if not shot.visual:
                yield self._at(shot, PARAM + name, "a value without a visual", "a visual, or no value")
        if not shot.visual:
            return
        workflow = self.settings.workflows.get(shot.visual)
        if workflow is None:
            names = ", ".join(self.settings.workflows)
            yield self._at(shot, "visual", quoted(shot.visual), f"a workflow: {names}")
            return
        if self.settings.fleet.engine_for(workflow.kind) is None:
            yield self._at(
                shot, "visual", quoted(shot.visual), f"a fleet with an engine that makes {workflow.kind}s"
            )
        if workflow.doubts and workflow.doubts not in self.notes:
            self.notes.append(workflow.doubts)
        if workflow.needs_audio and not shot.text:
            yield self._at(shot, "text", "none", f"a text, because {workflow.name} speaks it")
        yield from self._value_mistakes(shot, workflow)
        yield from self._image_mistakes(shot, workflow)
        yield from self._length_mistakes(shot, workflow)

    def _value_mistakes(self, shot: Shot, workflow: Workflow) -> Iterator[Mistake]:
        """Fills ``values`` with what the row sets; each value is checked against its declaration."""
        values: dict[str, Value] = self._sizes(shot, workflow)
        for column, name in _PROMPT_COLUMNS.items():
            cell = getattr(shot, column)
            if cell and name in workflow.variables:
                values[name] = cell
            elif cell and column == "prompt":
                yield self._at(shot, column, quoted(cell), f"nothing: {workflow.name} takes no prompt")
        own = (*OWN_VARIABLES, *FILE_VARIABLES)
        free = {name: variable for name, variable in workflow.variables.items() if name not in own}
        yield from self._param_mistakes(shot, workflow, free, values)
        for name, variable in free.items():
            if variable.required and name not in values:
                column = next((c for c, n in _PROMPT_COLUMNS.items() if n == name), PARAM + name)
                yield self._at(shot, column, "nothing", f"{variable.description}: {workflow.name} needs it")
        self.values.setdefault(shot.shot_id, values)

    def _param_mistakes(
        self, shot: Shot, workflow: Workflow, free: Mapping[str, Variable], values: dict[str, Value]
    ) -> Iterator[Mistake]:
        """Adds what the columns ``param.NAME`` set to ``values``."""
        for name, cell in shot.params.items():
            if name not in free:
                found = f"a value for {{{{{name}}}}}, which {workflow.name} does not offer"
                yield self._at(shot, PARAM + name, found, f"one of {', '.join(free)}")
                continue
            try:
                values[name] = made = free[name].parse(cell)
            except ValueError as error:
                yield self._at(shot, PARAM + name, quoted(cell), str(error))
                continue
            if free[name].step and made != int(cell):
                self.notes.append(f"{shot.shot_id}: {workflow.name} makes {name} {made}, not {cell}")

    def _sizes(self, shot: Shot, workflow: Workflow) -> dict[str, Value]:
        """``width`` and ``height`` as the workflow can make them; a note says where that is another number."""
        sizes: dict[str, Value] = {}
        for column in ("width", "height"):
            asked, variable = getattr(shot, column), workflow.variables.get(column.upper())
            if not asked or variable is None:
                continue
            sizes[column.upper()] = made = variable.fit(asked)
            if made != asked:
                note = f"{workflow.name} makes a {column} of {made}; the clip is scaled to {asked}"
                self.notes.append(f"{shot.shot_id}: {note}")
        return sizes

    def _image_mistakes(self, shot: Shot, workflow: Workflow) -> Iterator[Mistake]:
        if not shot.image:
            if workflow.needs_image:
                yield self._at(shot, "image", "nothing", f"an image: {workflow.name} starts from one")
            return
        if "IMAGE" not in workflow.variables:
            yield self._at(shot, "image", _shown(shot.image), f"nothing: {workflow.name} takes no image")
        elif shot.image.startswith(SHOT_IMAGE):
            yield from self._shot_image_mistakes(shot)
        elif not Downloads.is_address(shot.image):
            yield from self._file_image_mistakes(shot)

    def _shot_image_mistakes(self, shot: Shot) -> Iterator[Mistake]:
        other = self.by_id.get(shot.image.removeprefix(SHOT_IMAGE))
        workflow = self.settings.workflows.get(other.visual) if other else None
        if other is None:
            yield self._at(shot, "image", quoted(shot.image), "the id of a shot of this script")
        elif workflow is None or workflow.kind != "image":
            yield self._at(
                shot,
                "image",
                f"{quoted(shot.image)}, whose visual is {quoted(other.visual)}",
                "a shot whose visual makes an image",
            )

    def _file_image_mistakes(self, shot: Shot) -> Iterator[Mistake]:
        if shot.image in self.images:
            return
        try:
            path = self.roots.resolve(shot.image)
            _open_picture(path)
            self.images[shot.image] = InputFile.read(path)
        except ValueError as error:
            yield self._at(shot, "image", _shown(shot.image), str(error))

    def _address_mistakes(self) -> Iterator[Mistake]:
        """Fetches all images that are given by address, each once, several at a time."""
        addressed = [shot for shot in self.shots if Downloads.is_address(shot.image)]
        fetched = self.settings.downloads.fetch_all({shot.image for shot in addressed})
        for shot in addressed:
            outcome = fetched[shot.image]
            try:
                if isinstance(outcome, BadInput):
                    raise ValueError(str(outcome))
                _open_picture(outcome.path)
                self.images[shot.image] = outcome
            except ValueError as error:
                yield self._at(shot, "image", _shown(shot.image), str(error))

    def _length_mistakes(self, shot: Shot, workflow: Workflow) -> Iterator[Mistake]:
        """A narration that the workflow cannot grow to is told now; where it is close, it is told when spoken."""
        if not workflow.needs_audio or not shot.text:
            return
        reading = self.readings.get(shot.shot_id, ())
        spoken = sum(speech_seconds(piece.spoken, shot.speed) + piece.pause for piece in reading)
        try:
            workflow.windows_for(spoken)
        except BadInput as error:
            yield self._at(shot, "text", "a long text", str(error))


def _shown(image: str) -> str:
    """An image's cell in a message: what looks like an address may hold secrets, whether we can read it or not."""
    return quoted(shown_address(image) if "://" in image else image)


def _open_picture(path: Path) -> None:
    """Raises ValueError where ``path`` is no picture that can be read to its end."""
    try:
        with PIL.Image.open(path) as picture:
            picture.load()
    except Exception as error:  # Pillow's decoders raise many things; all mean that it is no picture
        raise ValueError(f"a PNG, JPEG or WebP picture ({error})") from None
