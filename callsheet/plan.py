"""The plan: which steps each shot needs, in which order, under which take keys, and about what they cost.

    plan = make_plan(script, fleet, workflows)
    plan.shots["lh-01"].clip              # the key of the shot's clip
    plan.steps[key].needs                 # the keys of the takes that it is made from

All keys are known before anything is made: an input that is itself a take stands in a key by that
take's key. One number is not known before the narration is spoken, namely how many clips it takes
to cover it; it is planned from an estimate and put right by `Plan.fit_to_narration`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from callsheet.engines.instructions import SpeechMode
from callsheet.errors import BadInput, HostLacks
from callsheet.fleet import DEFAULT_STYLE, Engine, Fleet, Lane, StepKind
from callsheet.inputs import InputFile
from callsheet.limits import vram_limit_slots, vram_slots
from callsheet.script import SHOT_IMAGE, Script, Shot
from callsheet.takes import Attempt, take_key
from callsheet.text import NORMALISER, Piece, clean, primary, speech_seconds, without_pauses
from callsheet.voices import Voice
from callsheet.workflow import FILE_VARIABLES, OWN_VARIABLES, Value, Workflow, number

#: The engine of the steps that run on this machine, and its version: a change of what assembly does
#: makes new clips and programmes, and no new takes.
ASSEMBLY = "assembly"
ASSEMBLY_REVISION = "callsheet-1"

#: How long a picture stands that has neither narration nor a length of its own.
STILL_SECONDS = 4.0
#: Frames per second of a programme of stills.
STILL_FPS = 25.0

LOUDNESS_LUFS = -16.0
TRUE_PEAK_DBTP = -1.0


@dataclass(frozen=True)
class Canvas:
    """The frame of a clip or programme: pixels (even) and frames per second."""

    width: int
    height: int
    fps: float


@dataclass(frozen=True)
class TakeFrame:
    """A picture that is taken from another take: the picture itself, or a clip's last frame."""

    key: str
    frame: Literal["picture", "last"]

    @property
    def mark(self) -> str:
        """How it stands in a take key."""
        return f"take:{self.key}" + ("#last" if self.frame == "last" else "")


@dataclass(frozen=True)
class SpeechInputs:
    """What a speech take is made from: the pieces that are spoken one by one, in words.

    The pauses between them are no part of it: they are put in when the narration is used.
    """

    pieces: tuple[str, ...]
    language: str
    speed: float
    voice: Voice
    mode: SpeechMode = "zero_shot"
    instruct: str = ""
    style: str = DEFAULT_STYLE

    @property
    def text(self) -> str:
        """All that is spoken, a line for each piece."""
        return "\n".join(self.pieces)

    def material(self) -> dict[str, Any]:
        material = {
            "text": self.text,
            "normaliser": NORMALISER,
            "language": self.language,
            "speed": self.speed,
            "prompt_audio": f"sha256:{self.voice.prompt_audio.sha256}",
            "mode": self.mode,
        }
        if self.mode == "zero_shot":
            material["transcript"] = self.voice.transcript
        if self.instruct:
            material["instruct"] = self.instruct
        if self.style != DEFAULT_STYLE:
            material["style"] = self.style
        return material


@dataclass(frozen=True)
class PictureInputs:
    """What an image, a video or an avatar is made from.

    An avatar speaks the take ``audio`` with ``pauses`` (seconds) after its pieces, and its picture lasts
    ``pause_after`` seconds longer.
    """

    workflow: Workflow
    values: Mapping[str, Value]
    image: InputFile | TakeFrame | None = None
    audio: str | None = None
    pauses: tuple[float, ...] = ()
    pause_after: float = 0.0

    def material(self) -> dict[str, Any]:
        material = self.workflow.material(self.values)
        if isinstance(self.image, InputFile):
            material["image"] = f"sha256:{self.image.sha256}"
        elif self.image is not None:
            material["image"] = self.image.mark
        if self.audio is not None:
            material |= {
                "audio": f"take:{self.audio}",
                "pause_after": self.pause_after,
                **_pauses(self.pauses),
            }
        return material

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels that the workflow makes."""
        return _pixels(self.workflow, self.values, "WIDTH"), _pixels(self.workflow, self.values, "HEIGHT")

    @property
    def fps(self) -> float:
        """Frames per second of the file: what the variable FPS says, or the model's own; 0 for a still."""
        return number(self.values, "FPS", self.workflow.fps)

    @property
    def seconds(self) -> float:
        """How long the picture lasts, before it is grown to cover a narration; 0 for a still."""
        return self.workflow.frames(self.values) / self.fps if self.fps else 0.0


@dataclass(frozen=True)
class ClipInputs:
    """What a clip is made from: narration with its pauses, picture, or both, on a canvas (None for sound alone)."""

    speech: str | None
    pauses: tuple[float, ...]
    picture: str | None
    canvas: Canvas | None
    seconds: float | None
    pause_after: float

    def material(self) -> dict[str, Any]:
        return {
            "speech": self.speech and f"take:{self.speech}",
            **_pauses(self.pauses),
            "picture": self.picture and f"take:{self.picture}",
            "canvas": self.canvas and [self.canvas.width, self.canvas.height, self.canvas.fps],
            "seconds": self.seconds,
            "pause_after": self.pause_after,
        }


@dataclass(frozen=True)
class ProgrammeInputs:
    """What a programme is made from: the clips of a title, in the order of the script."""

    title: str
    clips: tuple[str, ...]
    canvas: Canvas | None

    def material(self) -> dict[str, Any]:
        return {
            "clips": [f"take:{clip}" for clip in self.clips],
            "loudness_lufs": LOUDNESS_LUFS,
            "true_peak_dbtp": TRUE_PEAK_DBTP,
        }


Inputs = SpeechInputs | PictureInputs | ClipInputs | ProgrammeInputs


@dataclass(frozen=True)
class Demand:
    """What a lane must be to do a step; ``style`` is of speech alone."""

    engine: str
    revision: str
    style: str | None
    vram_gb: float

    @property
    def is_speech(self) -> bool:
        return self.style is not None

    def suits(self, lane: Lane) -> bool:
        engine = lane.engine
        return (
            (engine.kind, engine.revision) == (self.engine, self.revision)
            and self.style in (None, engine.style)
            and vram_slots(lane, self.vram_gb) <= vram_limit_slots(lane.host)
        )


@dataclass(frozen=True)
class Step:
    """One take to be made.

    Attributes:
        key: the take's key.
        name: the shot (or title) and the kind, for people: ``lh-01 speech``.
        engine, revision: of the engine that makes it.
        signature: the model that the engine must have loaded.
        inputs: what it is made from.
        needs: keys of the takes that it is made from.
        after: keys of takes that it waits for though it is not made from them.
        seconds: estimate of the engine's time.
        vram_gb: memory that the model needs.
    """

    key: str
    kind: StepKind
    name: str
    engine: str
    revision: str
    signature: str
    inputs: Inputs
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    requested_seed: int | None = None
    seconds: float = 0.0
    vram_gb: float = 0.0

    @cached_property
    def demand(self) -> Demand:
        style = self.inputs.style if isinstance(self.inputs, SpeechInputs) else None
        return Demand(self.engine, self.revision, style, self.vram_gb)

    def runs_on(self, lane: Lane) -> bool:
        return self.demand.suits(lane)


@dataclass
class ShotPlan:
    """The keys of a shot's takes. ``pictures`` are those that cover it, one after the other.

    ``reading`` is its text as it is spoken.
    """

    shot: Shot
    language: str
    reading: tuple[Piece, ...]
    clip: str
    speech: str | None = None
    pictures: list[str] = field(default_factory=list)
    canvas: Canvas | None = None

    @property
    def keys(self) -> list[str]:
        return [key for key in (self.speech, *self.pictures, self.clip) if key]

    @property
    def text(self) -> str:
        """What is narrated, as written."""
        return clean(without_pauses(self.shot.text), self.language)

    @property
    def pauses(self) -> tuple[float, ...]:
        """The pauses that the text asks for after each piece, in seconds; empty where it asks for none."""
        pauses = tuple(piece.pause for piece in self.reading)
        return pauses if any(pauses) else ()

    @property
    def spoken_seconds(self) -> float:
        """About how long the narration takes, with its pauses; 0 where there is none."""
        spoken = sum(speech_seconds(piece.spoken, self.shot.speed) for piece in self.reading)
        return spoken + sum(self.pauses)

    def narration_seconds(self, take: Attempt) -> float:
        """How long the narration is, now that it is spoken."""
        return heard_seconds(take, self.pauses)


@dataclass(frozen=True)
class Estimate:
    """What an engine has to do: steps, seconds of its lanes, and $."""

    engine: str
    steps: int
    done: int
    seconds: float
    cost: float


class Plan:
    """The steps of a script, by take key, in the order of the script."""

    def __init__(self, script: Script, fleet: Fleet, workflows: Mapping[str, Workflow]) -> None:
        self.script = script
        self.fleet = fleet
        self.workflows = workflows
        self.steps: dict[str, Step] = {}
        self.shots: dict[str, ShotPlan] = {}
        self.programmes: dict[str, str] = {}
        #: The shots of each programme, in the order of the script.
        self.titles: dict[str, list[ShotPlan]] = {}
        self._users: dict[str, set[str]] = {}  # take key to the shots that need it

    def fit_to_narration(self, shot_id: str, seconds: float) -> tuple[list[Step], list[str]]:
        """Puts the number of a shot's clips right, now that its narration's length is known.

        Returns:
            The steps that are new, and the keys of those that no shot needs any more.
        """
        shot_plan = self.shots[shot_id]
        before = list(shot_plan.pictures)
        self._cover(shot_plan, _clip_seconds(shot_plan.shot, seconds))
        new = [self.steps[key] for key in shot_plan.pictures if key not in before]
        dropped = [key for key in before if not self._users[key]]
        for key in dropped:
            del self.steps[key]
        if shot_plan.clip:
            clip = self.steps[shot_plan.clip]
            self.steps[clip.key] = replace(clip, needs=_clip_needs(shot_plan))
        return new, dropped

    def leave_only(self, shot_ids: Collection[str]) -> None:
        """Takes every other shot out, with the takes that these are not made from, and all programmes."""
        for shot_id in [shot_id for shot_id in self.shots if shot_id not in shot_ids]:
            shot = self.shots.pop(shot_id)
            for key in shot.keys:
                self._users[key].discard(shot_id)
        self.programmes, self.titles = {}, {}
        kept: set[str] = set()
        needed = [key for shot in self.shots.values() for key in shot.keys]
        while needed:
            if (key := needed.pop()) not in kept:
                kept.add(key)
                needed += self.steps[key].needs
        self.steps = {key: step for key, step in self.steps.items() if key in kept}

    def shots_with(self, key: str) -> list[ShotPlan]:
        """The shots that need this take, in the order of the script."""
        users = self._users.get(key, set())
        return sorted((self.shots[shot_id] for shot_id in users), key=lambda plan: plan.shot.row)

    def cost(self, keys: Iterable[str]) -> float:
        """About what the engines' part of these takes costs, in $."""
        seconds: dict[str, float] = defaultdict(float)
        for key in keys:
            seconds[self.steps[key].engine] += self.steps[key].seconds
        return sum(_price_per_second(self.fleet, engine) * total for engine, total in seconds.items())

    def host_hours(self, keys: Iterable[str]) -> float:
        """Hours that one host of the fleet needs for these takes, its engines by turns and their lanes at once."""
        lanes: dict[str, int] = {
            engine.kind: engine.slots for host in self.fleet.hosts[:1] for engine in host.engines
        }
        seconds = sum(
            self.steps[key].seconds / lanes.get(self.steps[key].engine, 1)
            for key in keys
            if self.steps[key].engine != ASSEMBLY
        )
        return seconds / 3600

    def cost_range(self, done: Collection[str] = frozenset()) -> tuple[float, float]:
        """$ that what is left to do costs at least and at most; of hosts that are there the time of their engines."""
        left = [key for key in self.steps if key not in done]
        if self.fleet.rent is None:
            cost = self.cost(left)
            return cost, cost
        return self.fleet.rent.price_range(self.host_hours(left))

    def estimates(self, done: frozenset[str] | set[str] = frozenset()) -> list[Estimate]:
        """Per engine, what is left to do but for the keys in ``done``."""
        rows = []
        for engine in dict.fromkeys(step.engine for step in self.steps.values()):
            steps = [step for step in self.steps.values() if step.engine == engine]
            left = [step for step in steps if step.key not in done]
            seconds = sum(step.seconds for step in left)
            price = _price_per_second(self.fleet, engine)
            rows.append(Estimate(engine, len(steps), len(steps) - len(left), seconds, seconds * price))
        return rows

    # What follows builds the plan; `make_plan` calls it once.

    def _build(self) -> None:
        canvases = _canvases(self.script, self.workflows)
        for shot in self.script.shots:
            self._add_shot(shot, canvases[shot.shot_id])
        for shot_plan in self.shots.values():
            self._add_pictures(shot_plan)
        for shot_plan in self.shots.values():
            self._add_clip(shot_plan)
        for shot in self.script.shots:
            if shot.title:
                self.titles.setdefault(shot.title, []).append(self.shots[shot.shot_id])
        for title, shots in self.titles.items():
            self._add_programme(title, shots)

    def _check_memory(self) -> None:
        """Raises HostLacks where a model needs more memory than any of its engine's hosts has to share."""
        lanes = list(self.fleet.lanes())
        fits = {
            demand: any(demand.suits(lane) for lane in lanes)
            for demand in {step.demand for step in self.steps.values() if step.engine != ASSEMBLY}
        }
        small = [step for step in self.steps.values() if not fits.get(step.demand, True)]
        if not small:
            return
        hosts = {lane.host.name: lane.host for lane in lanes if lane.engine.kind == small[0].engine}
        have = ", ".join(
            f"{host.name} has {host.free_vram_gb:g} of {host.vram_gb:g} GB to share"
            for host in hosts.values()
        )
        shots = list(dict.fromkeys(step.name.split()[0] for step in small))
        more = f" and {len(shots) - 5} more" if len(shots) > 5 else ""
        raise HostLacks(
            f"{small[0].signature} needs {small[0].vram_gb:g} GB of GPU memory: {have}. "
            f"Asked for by {', '.join(shots[:5])}{more}"
        )

    def _add(self, step: Step, *shots: Shot) -> str:
        """Plans a step for these shots; one that is planned already is shared."""
        self.steps.setdefault(step.key, step)
        self._users.setdefault(step.key, set()).update(shot.shot_id for shot in shots)
        return step.key

    def _add_shot(self, shot: Shot, canvas: Canvas | None) -> None:
        language = self.script.language_of(shot)
        reading = self.script.readings.get(shot.shot_id, ())
        shot_plan = ShotPlan(shot, language, reading, clip="", canvas=canvas)
        self.shots[shot.shot_id] = shot_plan
        if not reading:
            return
        engine = self._engine("speech", shot)
        voice = self.script.voices[shot.voice]
        inputs = SpeechInputs(
            pieces=tuple(piece.spoken for piece in reading),
            language=language,
            speed=shot.speed,
            voice=voice,
            mode=_mode(engine, shot, language, voice),
            instruct=shot.instruct,
            style=engine.style,
        )
        shot_plan.speech = self._add(
            Step(
                key=take_key("speech", engine.kind, engine.revision, inputs.material()),
                kind="speech",
                name=f"{shot.shot_id} speech",
                engine=engine.kind,
                revision=engine.revision,
                signature=engine.model if engine.kind == "cosyvoice" else engine.kind,
                inputs=inputs,
                seconds=sum(speech_seconds(piece, shot.speed) for piece in inputs.pieces)
                * engine.facts.seconds_per_second
                / engine.relative_speed,
                vram_gb=engine.vram_gb,
            ),
            shot,
        )

    def _add_pictures(self, shot_plan: ShotPlan) -> None:
        shot = shot_plan.shot
        if shot.visual and not shot_plan.pictures:
            self._cover(shot_plan, _clip_seconds(shot, shot_plan.spoken_seconds))

    def _cover(self, shot_plan: ShotPlan, seconds: float | None) -> None:
        """Sets the shot's pictures to as many as cover ``seconds``; None asks for one, whatever its length."""
        workflow = self.workflows[shot_plan.shot.visual] if shot_plan.shot.visual else None
        if workflow is None:
            return
        for key in shot_plan.pictures:
            self._users[key].discard(shot_plan.shot.shot_id)
        shot_plan.pictures = []
        shot_plan.pictures.append(self._add(self._picture_step(shot_plan, workflow), shot_plan.shot))
        covered = _picture(self.steps[shot_plan.pictures[0]]).seconds
        while seconds is not None and workflow.kind == "video" and covered < seconds - 1e-6:
            workflow = self.workflows.get(workflow.continues_with)
            if workflow is None:
                break
            step = self._picture_step(shot_plan, workflow, follows=shot_plan.pictures[-1])
            shot_plan.pictures.append(self._add(step, shot_plan.shot))
            # The first frame of what follows is the last frame of what went before, and is cut off.
            covered += _picture(step).seconds - 1 / _picture(step).fps

    def _picture_step(self, shot_plan: ShotPlan, workflow: Workflow, follows: str = "") -> Step:
        shot = shot_plan.shot
        engine = self._engine(workflow.kind, shot)
        part = f" {len(shot_plan.pictures) + 1}" if follows else ""
        image = TakeFrame(follows, "last") if follows else self._image(shot)
        inputs = PictureInputs(
            workflow=workflow,
            values=_values(self.script.values.get(shot.shot_id, {}), workflow, shot),
            image=image,
            audio=shot_plan.speech if workflow.needs_audio else None,
            pauses=shot_plan.pauses if workflow.needs_audio else (),
            pause_after=shot.pause_after if workflow.needs_audio else 0.0,
        )
        needs = [image.key] if isinstance(image, TakeFrame) else []
        if inputs.audio:
            needs.append(inputs.audio)
        return Step(
            key=take_key(workflow.kind, engine.kind, engine.revision, inputs.material(), shot.seed),
            kind=workflow.kind,
            name=f"{shot.shot_id} {workflow.kind}{part}",
            engine=engine.kind,
            revision=engine.revision,
            signature=workflow.signature,
            inputs=inputs,
            needs=tuple(needs),
            # How many clips cover a narration is known once it is spoken; until then only one is sure.
            after=(shot_plan.speech,) if follows and shot_plan.speech else (),
            requested_seed=shot.seed,
            seconds=self._seconds(shot_plan, inputs) / engine.relative_speed,
            vram_gb=workflow.vram_gb,
        )

    def _seconds(self, shot_plan: ShotPlan, inputs: PictureInputs) -> float:
        frames = inputs.workflow.frames(inputs.values)
        if inputs.audio:
            windows = inputs.workflow.windows_for(shot_plan.spoken_seconds + inputs.pause_after)
            frames = inputs.workflow.frames_of_windows(windows)
        return inputs.workflow.seconds(*inputs.size, frames, steps=inputs.workflow.steps(inputs.values))

    def _image(self, shot: Shot) -> InputFile | TakeFrame | None:
        if not shot.image:
            return None
        if not shot.image.startswith(SHOT_IMAGE):
            return self.script.images[shot.image]
        other = self.shots[shot.image.removeprefix(SHOT_IMAGE)]
        self._add_pictures(other)
        return TakeFrame(other.pictures[0], "picture")

    def _add_clip(self, shot_plan: ShotPlan) -> None:
        shot = shot_plan.shot
        inputs = ClipInputs(
            speech=shot_plan.speech,
            pauses=shot_plan.pauses,
            picture=shot_plan.pictures[0] if shot_plan.pictures else None,
            canvas=shot_plan.canvas,
            seconds=shot.seconds,
            pause_after=shot.pause_after,
        )
        step = _local_step("clip", f"{shot.shot_id} clip", inputs, _clip_needs(shot_plan))
        shot_plan.clip = self._add(step, shot)

    def _add_programme(self, title: str, shots: list[ShotPlan]) -> None:
        clips = tuple(plan.clip for plan in shots)
        inputs = ProgrammeInputs(title, clips, shots[0].canvas)
        step = _local_step("programme", f"{title} programme", inputs, clips)
        self.programmes[title] = self._add(step, *(plan.shot for plan in shots))

    def _engine(self, kind: StepKind, shot: Shot) -> Engine:
        engine = self.fleet.engine_for(kind, shot.engine or None if kind == "speech" else None)
        if engine is None:
            raise BadInput(f"shot {shot.shot_id}: found no engine for {kind}; expected a fleet that has one")
        return engine


def make_plan(script: Script, fleet: Fleet, workflows: Mapping[str, Workflow]) -> Plan:
    """The plan of a script that has been read, which means that it is valid as a whole.

    Raises:
        HostLacks: a model fits on no host of the fleet, with the shots that ask for it.
    """
    plan = Plan(script, fleet, workflows)
    plan._build()
    plan._check_memory()
    return plan


def clip_seconds(shot: Shot, narration: float | None, picture: float | None) -> float:
    """How long a clip is, in seconds: the narration and its pause, at least the length asked for.

    Without a narration it is the length asked for, else the picture's own, else that of a still.
    """
    wanted = _clip_seconds(shot, narration or 0.0)
    return wanted if wanted is not None else picture or STILL_SECONDS


def heard_seconds(narration: Attempt, pauses: tuple[float, ...]) -> float:
    """How long a narration is with the pauses that the script asks for, in seconds."""
    return narration.length + sum(pauses)


def frames_for(seconds: float, fps: float) -> int:
    """The frames that cover ``seconds``: the last one may reach beyond it by less than one frame."""
    return max(1, math.ceil(seconds * fps - 1e-6))


def _clip_seconds(shot: Shot, narration: float) -> float | None:
    """As `clip_seconds`, None where only the picture decides."""
    if not shot.text:
        return shot.seconds
    return max(narration + shot.pause_after, shot.seconds or 0.0)


def _pauses(pauses: tuple[float, ...]) -> dict[str, Any]:
    return {"pauses": list(pauses)} if pauses else {}


def _mode(engine: Engine, shot: Shot, language: str, voice: Voice) -> SpeechMode:
    """How CosyVoice is asked; LightTTS has zero-shot alone, and speaks other languages with that."""
    if engine.kind != "cosyvoice":
        return "zero_shot"
    if shot.instruct:
        return "instruct2"
    return "zero_shot" if primary(language) == primary(voice.language) else "cross_lingual"


def _picture(step: Step) -> PictureInputs:
    assert isinstance(step.inputs, PictureInputs)
    return step.inputs


def _clip_needs(shot_plan: ShotPlan) -> tuple[str, ...]:
    return tuple(key for key in (shot_plan.speech, *shot_plan.pictures) if key)


def _local_step(
    kind: StepKind, name: str, inputs: ClipInputs | ProgrammeInputs, needs: tuple[str, ...]
) -> Step:
    key = take_key(kind, ASSEMBLY, ASSEMBLY_REVISION, inputs.material())
    return Step(key, kind, name, ASSEMBLY, ASSEMBLY_REVISION, ASSEMBLY, inputs, needs)


def _values(given: Mapping[str, Value], workflow: Workflow, shot: Shot) -> dict[str, Value]:
    """All of the workflow's variables that decide the take: what the row sets, else the defaults."""
    values: dict[str, Value] = {}
    for name, variable in workflow.variables.items():
        if name in (*OWN_VARIABLES, *FILE_VARIABLES):
            continue
        value = given.get(name, variable.default)
        if value is not None:
            values[name] = value
    if "FRAMES" in values and "FRAMES" not in given and not shot.text and shot.seconds:
        wanted = math.ceil(shot.seconds * workflow.fps)
        variable = workflow.variables["FRAMES"]
        step = variable.step or 1
        values["FRAMES"] = variable.fit(math.ceil((wanted - variable.offset) / step) * step + variable.offset)
    return values


def _pixels(workflow: Workflow, values: Mapping[str, Value], name: str) -> int:
    fallback = workflow.estimate.width if name == "WIDTH" else workflow.estimate.height
    return int(number(values, name, fallback))


def _canvases(script: Script, workflows: Mapping[str, Workflow]) -> dict[str, Canvas | None]:
    """The canvas of each shot. Shots of one title share it, so that they can be joined without scaling twice:
    the size that most of them have, the first on a tie, and the highest frame rate."""
    groups: dict[str, list[Shot]] = {}
    for shot in script.shots:
        groups.setdefault(f"title:{shot.title}" if shot.title else f"shot:{shot.shot_id}", []).append(shot)
    canvases: dict[str, Canvas | None] = {}
    for shots in groups.values():
        canvas = _canvas([shot for shot in shots if shot.visual], script, workflows)
        canvases |= {shot.shot_id: canvas for shot in shots}
    return canvases


def _canvas(shots: list[Shot], script: Script, workflows: Mapping[str, Workflow]) -> Canvas | None:
    if not shots:
        return None
    sizes = Counter(_shot_size(shot, script, workflows[shot.visual]) for shot in shots)
    (width, height), _ = sizes.most_common(1)[0]
    asked = [shot.fps for shot in shots if shot.fps]
    made = [workflows[shot.visual].fps for shot in shots if workflows[shot.visual].fps]
    return Canvas(width, height, max(asked or made or [STILL_FPS]))


def _shot_size(shot: Shot, script: Script, workflow: Workflow) -> tuple[int, int]:
    values = _values(script.values.get(shot.shot_id, {}), workflow, shot)
    width = shot.width or _pixels(workflow, values, "WIDTH")
    height = shot.height or _pixels(workflow, values, "HEIGHT")
    return width - width % 2, height - height % 2


def _price_per_second(fleet: Fleet, engine: str) -> float:
    """The mean price of the engine's lanes, in $ per second of one lane."""
    prices = [lane.price_per_second for lane in fleet.lanes() if lane.engine.kind == engine]
    return sum(prices) / len(prices) if prices else 0.0


def lanes_for(steps: Iterator[Step], fleet: Fleet) -> list[Lane]:
    """The lanes of the fleet that some of these steps can run on."""
    wanted = {(step.engine, step.revision) for step in steps}
    return [lane for lane in fleet.lanes() if (lane.engine.kind, lane.engine.revision) in wanted]
