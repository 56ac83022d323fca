"""What a person asks for when a batch is produced or planned: one model for the form, the command line and schedules.

parameters = ProduceParameters(script="data/demo.csv")
plan = parameters.plan(read_fleet(parameters.fleet))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from callsheet.decisions import Decision, read_decisions
from callsheet.fleet import Fleet
from callsheet.manifest import file_name
from callsheet.plan import Plan, make_plan
from callsheet.script import ScriptSettings, read_script
from callsheet.sources import PathText, Source, Sources, is_pasted, name_of
from callsheet.workflow import SHIPPED_WORKFLOWS, read_workflows

_TABLE = "A path, r2://BUCKET/KEY, an https address, or the CSV itself, pasted"


class AdvancedSettings(BaseModel):
    """What most runs leave as it is."""

    model_config = ConfigDict(extra="forbid", title="Advanced")

    retakes: int = Field(
        default=2,
        ge=0,
        le=10,
        description="How often a take that fails its checks is made again.",
        examples=[2],
    )
    media_roots: list[Path] = Field(
        default_factory=list,
        description="Folders, besides that of the CSV itself, that paths in it may lead to.",
        examples=[["/srv/recordings"]],
    )
    workflows: PathText = Field(
        default="",
        description="Folder of the ComfyUI workflows; those that come with Callsheet where empty.",
        examples=["workflows"],
    )
    work_pool: str = Field(
        default="",
        description="Prefect work pool whose workers make the batch in shards; this process alone where empty.",
        examples=["gpu"],
    )
    shard_shots: int = Field(
        default=200,
        ge=1,
        description="About how many shots a worker of the work pool makes in one go.",
        examples=[200],
    )
    undelivered_gb: float = Field(
        default=8.0,
        gt=0,
        description="So many GB of media may wait on this machine's disk for the store before lanes wait too.",
        examples=[8.0],
    )


class _WhichScript(BaseModel):
    """The first fields of the form."""

    script: Source = Field(
        min_length=1,
        description=f"The CSV with the shots. {_TABLE} (then the batch needs a name).",
        examples=["data/demo.csv", "r2://media/scripts/night.csv"],
    )
    batch: str = Field(
        default="",
        max_length=200,
        description="Name of the batch; the script's file name where empty.",
        examples=["demo"],
    )


def _advanced_last(schema: dict[str, Any]) -> None:
    """Forms show fields in the order of the schema, where those of a base class come first."""
    schema["properties"]["advanced"] = schema["properties"].pop("advanced")


class SharedSettings(BaseModel):
    """What every script of a run is produced with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_advanced_last)

    store: str = Field(
        default="out",
        min_length=1,
        description="Where takes and batches are kept: a folder, r2://BUCKET/PREFIX, or block:r2-bucket/NAME.",
        examples=["out", "r2://media/callsheet"],
    )
    fleet: str = Field(
        default="draft",
        min_length=1,
        description="The hosts: draft, the path of a fleet file, or block:gpu-fleet/NAME.",
        examples=["draft", "fleet.toml", "block:gpu-fleet/studio"],
    )
    max_cost: float | None = Field(
        default=None,
        ge=0,
        description="The most that each script may spend, in $; empty for no limit.",
        examples=[5.0],
    )
    commercial: bool = Field(
        default=False,
        description="Whether the result is for commercial use; engines and voices that forbid it are refused.",
        examples=[False],
    )
    voices: Source = Field(
        default="",
        description=f"voices.csv; the one beside the script where empty. {_TABLE}.",
        examples=["data/voices.csv"],
    )
    lexicon: Source = Field(
        default="",
        description=f"lexicon.csv, how words are to be said; the one beside the script where empty. {_TABLE}.",
        examples=["data/lexicon.csv"],
    )
    advanced: AdvancedSettings = Field(
        default_factory=AdvancedSettings, description="What most runs leave as it is.", examples=[{}]
    )


class ProduceParameters(SharedSettings, _WhichScript):
    """Settings of the flow `produce`."""

    approve: bool = Field(
        default=False,
        description="Show the plan and its price, and wait for a person, before anything is made.",
        examples=[True],
    )
    approve_hours: float = Field(
        default=24.0,
        gt=0,
        le=24 * 365,
        description="So long a plan waits for a person; then the run is cancelled.",
        examples=[24.0],
    )
    decisions: Source = Field(
        default="",
        description="A CSV of decisions, as the report saves it: takes to accept, to make again, or to leave out. "
        f"{_TABLE}.",
        examples=["demo-decisions.csv"],
    )
    leave_out: list[str] = Field(
        default_factory=list, description="Ids of shots that are left out of this run.", examples=[["cg-03"]]
    )

    @model_validator(mode="after")
    def _has_a_name(self) -> ProduceParameters:
        if is_pasted(self.script) and not self.batch:
            raise ValueError(
                "batch: found no name; expected one, for the script was pasted and has no file name"
            )
        return self

    @property
    def batch_name(self) -> str:
        """The batch's name, fit to be a folder's."""
        return file_name(self.batch or name_of(self.script))

    @property
    def store_anywhere(self) -> str:
        """The store's setting, as another process, or a machine that shares the folder, understands it."""
        is_address = "://" in self.store or self.store.startswith("block:")
        return self.store if is_address else str(Path(self.store).resolve())

    def plan(self, fleet: Fleet, scratch: Path | None = None) -> Plan:
        """Reads the script with all that it names and plans it.

        Args:
            scratch: where tables that are no files of this machine are brought, with the recordings beside them. It must live
                as long as the plan. None where all are files.

        Raises:
            BadInput: with every mistake of the script (`Mistakes`), or what is wrong with the workflows.
            StoreFault: the bucket of the script does not answer.
        """
        workflows = read_workflows(Path(self.advanced.workflows or SHIPPED_WORKFLOWS))
        sources = Sources(scratch)
        script = sources.bring(self.script, "script", self.batch_name)
        voices = sources.bring(self.voices, "voices") if self.voices else None
        settings = ScriptSettings(
            workflows=workflows,
            fleet=fleet,
            folder=script.folder,
            voices=voices.path if voices else None,
            voices_folder=voices.folder if voices else None,
            lexicon=sources.bring(self.lexicon, "lexicon").path if self.lexicon else None,
            media_roots=self.advanced.media_roots,
            commercial=self.commercial,
        )
        return make_plan(read_script(script.path, settings), fleet, workflows)

    def decided(self, scratch: Path | None = None) -> list[Decision]:
        """What people decided about takes. Raises BadInput with every mistake, StoreFault."""
        if not self.decisions:
            return []
        return read_decisions(Sources(scratch).bring(self.decisions, "decisions").path)
