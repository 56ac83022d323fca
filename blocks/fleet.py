"""The block of the fleet: the fields of ``fleet.toml``, in the Prefect UI.

from blocks.fleet import GpuFleet, open_fleet

open_fleet("draft")                     # the embedded draft host
open_fleet("fleet.toml")                # a file
open_fleet("block:gpu-fleet/studio")    # a saved block
"""

from __future__ import annotations

from pydantic import Field, HttpUrl, ValidationError

from blocks.base import CallsheetBlock
from callsheet.errors import BadInput
from callsheet.fleet import PROVIDERS, Fleet, Host, Provider, read_fleet
from callsheet.rent_rules import RentRules

BLOCK = "block:"


class GpuFleet(CallsheetBlock):
    """
    The hosts that a batch may use.

    Example:
        List the lanes of a saved fleet:
        ```python
        from blocks.fleet import GpuFleet

        gpu_fleet = GpuFleet.load("BLOCK_NAME")
        print([lane.name for lane in gpu_fleet.fleet().lanes()])
        ```
    """

    _block_type_name = "GPU Fleet"
    _block_type_slug = "gpu-fleet"
    _documentation_url = HttpUrl("https://docs.prefect.io/v3/concepts/blocks")

    provider: Provider = Field(default="draft", description=PROVIDERS)
    host: list[Host] = Field(
        default_factory=list,
        description="The hosts, each with its engines; for vastai one, the pattern of those that are rented.",
    )
    rent: RentRules | None = Field(default=None, description="What may be rented, for vastai.")
    account: str = Field(
        default="",
        description="The vast.ai account that is rented with: block:vast-account/NAME, or that of the environment.",
    )

    def fleet(self) -> Fleet:
        """The core's fleet. Raises pydantic.ValidationError where the fields contradict each other."""
        return Fleet(provider=self.provider, hosts=tuple(self.host), rent=self.rent, account=self.account)


async def open_fleet(setting: str) -> Fleet:
    """The fleet that a setting names: ``draft``, a TOML file, or ``block:gpu-fleet/NAME``."""
    if not setting.startswith(BLOCK):
        return read_fleet(setting)
    name = setting.removeprefix(BLOCK).partition("/")[2]
    try:
        block: GpuFleet = await GpuFleet.aload(name)
        return block.fleet()
    except (ValueError, ValidationError) as error:
        raise BadInput(f'fleet "{setting}": {error}') from None
