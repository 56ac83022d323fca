"""What a person asks for when a batch is produced or planned: one model for the form, the command line and schedules.

parameters = ProduceParameters(script="data/demo.csv")
plan = parameters.plan(read_fleet(parameters.fleet))
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from callsheet.fleet import Fleet
from callsheet.manifest import file_name
from callsheet.plan import Plan, make_plan
from callsheet.script import ScriptSettings, read_script
from callsheet.workflow import SHIPPED_WORKFLOWS, read_workflows


class ProduceParameters(BaseModel):
    """Settings of the flow `produce`."""

    model_config = ConfigDict(extra="forbid")

    script: Path = Field(description="Path of the CSV with the shots.", examples=["data/demo.csv"])
    store: str = Field(
        default="out",
        description="Where takes and batches are kept: a folder, r2://BUCKET/PREFIX, or block:r2-bucket/NAME.",
    )
    fleet: str = Field(
        default="draft", description="The hosts: draft, the path of a fleet file, or block:gpu-fleet/NAME."
    )
    max_cost: float | None = Field(
        default=None, ge=0, description="The most that this run may spend, in $; empty for no limit."
    )
    retakes: int = Field(
        default=2, ge=0, le=10, description="How often a take that fails its checks is made again."
    )
    commercial: bool = Field(
        default=False,
        description="Whether the result is for commercial use; engines and voices that forbid it are refused.",
    )
    batch: str = Field(default="", description="Name of the batch; the script's file name where empty.")
    approve: bool = Field(
        default=False,
        description="Show the plan and its price, and wait for a person, before anything is made.",
    )
    approve_hours: float = Field(
        default=24.0, gt=0, description="So long a plan waits for a person; then the run is cancelled."
    )
    leave_out: list[str] = Field(
        default_factory=list, description="Ids of shots that are left out of this run.", examples=[["cg-03"]]
    )
    decisions: Path | None = Field(
        default=None,
        description="Path of a CSV of decisions, as the report saves it: takes to accept, to make again, or to leave out.",
        examples=["demo-decisions.csv"],
    )
    voices: Path | None = Field(
        default=None, description="Path of voices.csv; the one beside the script where empty."
    )
    lexicon: Path | None = Field(
        default=None,
        description="Path of lexicon.csv, how words are to be said; the one beside the script where empty.",
    )
    media_roots: list[Path] = Field(
        default_factory=list,
        description="Folders, besides the script's own, that paths in the CSVs may lead to.",
    )
    work_pool: str = Field(
        default="",
        description="Prefect work pool whose workers make the batch in shards; this process alone where empty.",
    )
    shard_shots: int = Field(
        default=200, ge=1, description="About how many shots a worker of the work pool makes in one go."
    )
    undelivered_gb: float = Field(
        default=8.0,
        gt=0,
        description="So many GB of media may wait on this machine's disk for the store before lanes wait too.",
    )
    workflows: Path = Field(default=SHIPPED_WORKFLOWS, description="Folder of the ComfyUI workflows.")

    @property
    def batch_name(self) -> str:
        """The batch's name, fit to be a folder's."""
        return file_name(self.batch or self.script.stem)

    @property
    def store_anywhere(self) -> str:
        """The store's setting, as another process, or a machine that shares the folder, understands it."""
        is_address = "://" in self.store or self.store.startswith("block:")
        return self.store if is_address else str(Path(self.store).resolve())

    def plan(self, fleet: Fleet) -> Plan:
        """Reads the script with all that it names and plans it.

        Raises:
            BadInput: with every mistake of the script (`Mistakes`), or what is wrong with the workflows.
        """
        workflows = read_workflows(self.workflows)
        settings = ScriptSettings(
            workflows=workflows,
            fleet=fleet,
            voices=self.voices,
            lexicon=self.lexicon,
            media_roots=self.media_roots,
            commercial=self.commercial,
        )
        return make_plan(read_script(self.script, settings), fleet, workflows)
