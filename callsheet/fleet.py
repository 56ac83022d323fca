"""The fleet: the hosts that a batch may use, and the engines that each serves.

fleet = read_fleet("draft")                # the draft host, started and stopped by the run
fleet = read_fleet("fleet.toml")           # hosts of your own, or rented; the fields are those of the GpuFleet block
[lane.name for lane in fleet.lanes()]      # ["a10-1/lighttts/0", …]
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from callsheet.errors import BadInput
from callsheet.rent_rules import RentRules

#: Which CosyVoice model a speech server holds, and where a proxy looks for a token.
CosyVoiceModel = Literal["cosyvoice", "cosyvoice2", "cosyvoice3"]
TokenPlace = Literal["header", "query", "cookie"]
StepKind = Literal["speech", "image", "video", "avatar", "clip", "programme"]
SPEECH: StepKind = "speech"
PICTURES: tuple[StepKind, ...] = ("image", "video", "avatar")


@dataclass(frozen=True)
class EngineKind:
    """What is known of a kind of model server, whoever runs it.

    Attributes:
        makes: the kinds of step it does.
        licence: of the model's weights.
        commercial: whether that licence allows commercial use of what the model makes.
        has_speed: whether a request can say how fast to speak.
        seconds_per_second: engine seconds per second of speech on an RTX 4090, one request at a time.
    """

    makes: tuple[StepKind, ...]
    licence: str
    commercial: bool = True
    has_speed: bool = False
    seconds_per_second: float = 0.0


#: Every kind of engine that a script may name. Licences: facts 0.8; speeds: facts 7.1 (LightTTS README,
#: 4090D, one worker); plain CosyVoice publishes none, ours is an assumption on the safe side.
ENGINE_KINDS: dict[str, EngineKind] = {
    "cosyvoice": EngineKind((SPEECH,), "Apache-2.0", seconds_per_second=0.5),
    "lighttts": EngineKind((SPEECH,), "Apache-2.0", has_speed=True, seconds_per_second=0.13),
    "xtts": EngineKind((SPEECH,), "Coqui Public Model License 1.0.0 (non-commercial)", commercial=False),
    "llasa": EngineKind((SPEECH,), "CC-BY-NC-4.0 (Llasa-8B, XCodec2)", commercial=False),
    "comfyui": EngineKind(PICTURES, "that of each workflow's model"),
}
#: The style of a LightTTS server that has no fine-tuned ones.
DEFAULT_STYLE = "default"

_NAME = r"^[A-Za-z0-9._-]+$"  # Prefect's limit names may not hold / % & > <


class Engine(BaseModel):
    """One model server of a host."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["cosyvoice", "lighttts", "comfyui"] = Field(description="Which protocol the server speaks.")
    url: str = Field(default="", description="Address of the server, such as http://127.0.0.1:8188.")
    port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of the server in a rented host, which has no address yet.",
    )
    local_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port inside a rented host where a ComfyUI answers without a token: there the host looks for work.",
    )
    revision: str = Field(
        min_length=1,
        description="Name of the model's version; part of every take key, because servers do not tell it.",
    )
    name: str = Field(default="", description="Name of the engine on its host; the kind, where empty.")
    model: CosyVoiceModel = Field(
        default="cosyvoice2",
        description="Which CosyVoice model a speech server holds: it decides rate and prompt form.",
    )
    style: str = Field(
        default=DEFAULT_STYLE, description="Which of a LightTTS server's styles (fine-tuned voices) speaks."
    )
    slots: int = Field(default=1, ge=1, le=64, description="Requests in flight at once; each is a lane.")
    window: int = Field(
        default=1, ge=1, le=8, description="Prompts queued on a lane, the running one included."
    )
    vram_gb: float = Field(
        default=0.0, ge=0, description="GPU memory that the engine's process holds, in GB."
    )
    resident: bool = Field(default=False, description="Whether it keeps its memory whether it works or not.")
    relative_speed: float = Field(
        default=1.0, gt=0, description="How fast it is against an RTX 4090 (1); estimates are divided by it."
    )
    restart_command: str = Field(default="", description="How to restart this engine, where we may.")
    token_env: str = Field(default="", description="Name of the environment variable that holds the token.")
    token_place: TokenPlace = Field(
        default="header", description="Where a proxy before a ComfyUI looks for the token."
    )
    token_name: str = Field(default="token", description="Name of the query field or cookie with the token.")

    @property
    def facts(self) -> EngineKind:
        return ENGINE_KINDS[self.kind]


class Host(BaseModel):
    """A machine with a GPU."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    name: str = Field(pattern=_NAME, description="Name of the host: letters, digits, dot, dash, underscore.")
    vram_gb: float = Field(default=24.0, gt=0, description="GPU memory in GB.")
    price_per_hour: float = Field(default=0.0, ge=0, description="What the host costs, in $ per hour.")
    engines: tuple[Engine, ...] = Field(
        alias="engine", min_length=1, description="The engines that it serves."
    )

    @property
    def free_vram_gb(self) -> float:
        """What its engines share by turns: its memory, less what the resident ones always hold."""
        return self.vram_gb - sum(engine.vram_gb for engine in self.engines if engine.resident)

    @model_validator(mode="after")
    def _name_engines(self) -> Host:
        """Gives each engine a name of its own on this host: lighttts, lighttts-2, …"""
        taken: set[str] = set()
        named = []
        for engine in self.engines:
            base, name, number = engine.name or engine.kind, engine.name or engine.kind, 1
            while name in taken:
                number += 1
                name = f"{base}-{number}"
            taken.add(name)
            named.append(engine.model_copy(update={"name": name}))
        object.__setattr__(self, "engines", tuple(named))
        if self.free_vram_gb < 0:
            held = self.vram_gb - self.free_vram_gb
            raise ValueError(
                f"host {self.name}: its resident engines hold {held:g} GB of GPU memory; expected at most vram_gb, {self.vram_gb:g}"
            )
        return self


@dataclass(frozen=True)
class Lane:
    """Room for one request at a time on one engine of one host."""

    host: Host
    engine: Engine
    number: int

    @property
    def name(self) -> str:
        return f"{self.host.name}/{self.engine.name}/{self.number}"

    @property
    def engine_name(self) -> str:
        """What its engine is called in messages: ``a10-1/lighttts``."""
        return f"{self.host.name}/{self.engine.name}"

    @property
    def price_per_second(self) -> float:
        """This lane's share of the host's price, in $ per second: the host's lanes of the engine divide it."""
        return self.host.price_per_hour / 3600 / self.engine.slots


Provider = Literal["draft", "static", "vastai"]
PROVIDERS = "draft: the embedded draft host; static: the hosts listed here; vastai: hosts rented on vast.ai."


class Fleet(BaseModel):
    """The hosts that a batch may use."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    provider: Provider = Field(default="draft", description=PROVIDERS)
    hosts: tuple[Host, ...] = Field(
        default=(),
        alias="host",
        description="The hosts; for vastai one, the pattern of those that are rented.",
    )
    rent: RentRules | None = Field(default=None, description="What may be rented, for vastai.")
    account: str = Field(
        default="",
        description="The vast.ai account that is rented with: block:vast-account/NAME, or that of the environment.",
    )
    lane_minutes: float = Field(
        default=10.0,
        gt=0,
        description="How long a lane works before it makes room for another run or engine that waits.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Fleet:
        if self.provider == "draft":
            if self.hosts not in ((), (DRAFT_HOST,)):
                raise ValueError(
                    'provider "draft" brings its own host; hosts are listed with provider "static"'
                )
            object.__setattr__(self, "hosts", (DRAFT_HOST,))
            return self
        if (self.provider == "vastai") != (self.rent is not None):
            raise ValueError('the rules of renting, [rent], go with provider "vastai", and with no other')
        if self.rent is not None:
            self._complete_pattern(self.rent)
            return self
        if not self.hosts:
            raise ValueError('provider "static" needs at least one [[host]]')
        names = [host.name for host in self.hosts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"the host name {twice[0]} stands twice; each needs its own")
        for host in self.hosts:
            for engine in host.engines:
                _check_url(host.name, engine)
        return self

    def _complete_pattern(self, rent: RentRules) -> None:
        """What hosts to be rented will be like, at the most that one may cost."""
        if len(self.hosts) != 1:
            raise ValueError(
                'provider "vastai" needs exactly one [[host]]: the pattern of those that are rented'
            )
        (pattern,) = self.hosts
        ports = [engine.port for engine in pattern.engines]
        if any(engine.url for engine in pattern.engines) or 0 in ports or len(set(ports)) < len(ports):
            raise ValueError(
                f"host {pattern.name}: each engine of a rented host needs a port of its own, and no url: its address is not known"
            )
        if pattern.price_per_hour not in (0, rent.max_per_hour):
            raise ValueError(f"host {pattern.name}: what a rented host may cost is max_per_hour of [rent]")
        priced = pattern.model_copy(update={"price_per_hour": rent.max_per_hour})
        object.__setattr__(self, "hosts", (priced,))
        if not rent.vram_gb:
            object.__setattr__(self, "rent", rent.model_copy(update={"vram_gb": pattern.vram_gb}))

    def with_hosts(self, hosts: Iterable[Host]) -> Fleet:
        """The same fleet with hosts that were rented."""
        return self.model_copy(update={"hosts": tuple(hosts)})

    def lanes(self) -> Iterator[Lane]:
        """All lanes, host by host."""
        for host in self.hosts:
            for engine in host.engines:
                for number in range(engine.slots):
                    yield Lane(host, engine, number)

    def engine_for(self, step: StepKind, kind: str | None = None) -> Engine | None:
        """The engine that makes this kind of step: the first in the fleet, or the first of ``kind``.

        Its kind and revision go into the take key; lanes of another revision do not take the step.
        """
        for host in self.hosts:
            for engine in host.engines:
                if step in engine.facts.makes and kind in (None, engine.kind):
                    return engine
        return None

    def at(self, url: str) -> Fleet:
        """The same fleet with every engine at ``url``: the draft host's address is known once it runs."""
        hosts = tuple(
            host.model_copy(
                update={"engines": tuple(e.model_copy(update={"url": url}) for e in host.engines)}
            )
            for host in self.hosts
        )
        return self.model_copy(update={"hosts": hosts})


def _check_url(host: str, engine: Engine) -> None:
    """Raises ValueError for an address that is none, or that holds a secret, which would end in logs and manifests."""
    parts = urlsplit(engine.url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f'host {host}, engine {engine.name}: url is "{engine.url}"; expected http://… or https://…'
        )
    if parts.username or parts.password or parts.query:
        raise ValueError(
            f"host {host}, engine {engine.name}: the url holds a name, a password or a query; expected the token in token_env"
        )


#: The host that `gpu_service --draft` is. About 40 times as fast as a real card, because it draws.
DRAFT_HOST = Host(
    name="draft",
    vram_gb=48,
    engines=(
        Engine(kind="cosyvoice", revision="draft-1", slots=1, relative_speed=5),
        Engine(kind="lighttts", revision="draft-1", slots=1, relative_speed=1.3),
        Engine(kind="comfyui", revision="draft-1", slots=1, window=2, relative_speed=40),
    ),
)


def read_fleet(setting: str) -> Fleet:
    """The fleet that a setting names: ``draft``, or the path of a TOML file.

    Raises:
        BadInput: naming the file, the field, what was found and what would be right.
    """
    if setting == "draft":
        return Fleet()
    path = Path(setting)
    try:
        declared = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadInput(
            f"{setting}: found {error.strerror or error}; expected draft or the path of a fleet file"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{setting}: found a file that is no TOML ({error}); expected a fleet file") from None
    try:
        return Fleet.model_validate(declared)
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, detail['loc'])) or 'fleet'}: {detail['msg'].removeprefix('Value error, ')}"
            for detail in error.errors()
        )
        raise BadInput(f"{setting}: {reasons}") from None
