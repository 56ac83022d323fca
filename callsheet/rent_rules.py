"""The rules of renting: which hosts, how many, for how much, and how long they are kept.

rules = RentRules(name="studio", gpu_names=("RTX 4090",), max_per_hour=0.6, image="…")
rules.cost(offer, hours=2.5)         # $ that the work costs there, with what is loaded before
"""

from __future__ import annotations

import math
import re

from pydantic import BaseModel, ConfigDict, Field, model_validator

from callsheet.vastai_answers import Offer, OfferRules


class RentRules(BaseModel):
    """What may be rented, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(
        default="callsheet",
        pattern=r"^[A-Za-z0-9._-]{1,40}$",
        description="Name of the fleet; it stands in labels.",
    )
    gpu_names: tuple[str, ...] = Field(
        default=(), description='GPUs as vast.ai names them, such as "RTX 4090"; any where empty.'
    )
    vram_gb: float = Field(
        default=0.0, ge=0, description="GPU memory at least, in GB; in a fleet that of its host, where 0."
    )
    max_per_hour: float = Field(
        gt=0, description="The most that a host may cost, in $ per hour with its disk."
    )
    reliability: float = Field(
        default=0.98, ge=0, le=1, description="vast.ai's reliability at least, from 0 to 1."
    )
    down_mbps: float = Field(default=500.0, ge=0, description="Download speed at least, in Mbit/s.")
    cuda: float = Field(default=12.4, ge=0, description="CUDA version that the driver allows at least.")
    countries: tuple[str, ...] = Field(
        default=(), description="Two-letter codes of countries; any where empty."
    )
    disk_gb: float = Field(default=80.0, ge=8, description="Disk in GB.")
    image: str = Field(default="", description="Docker image of the host.")
    template: str = Field(default="", description="Hash of a vast.ai template, instead of an image.")
    download_gb: float = Field(
        default=40.0, ge=0, description="What a host loads before it works (image, models), in GB."
    )
    max_hosts: int = Field(default=1, ge=1, le=100, description="Hosts at once, at most.")
    max_total_per_hour: float | None = Field(
        default=None, gt=0, description="$ per hour of all hosts together, at most."
    )
    max_hours: float = Field(
        default=12.0, gt=0, le=24 * 7, description="Hours after which a host goes, whatever it does."
    )
    credit_floor: float = Field(default=1.0, ge=0, description="$ of credit under which nothing is rented.")
    boot_minutes: float = Field(default=40.0, gt=0, description="Minutes until a host must answer.")
    hours_per_host: float = Field(
        default=2.0,
        gt=0,
        description="Hours of work for which one host is enough; for more, more are rented.",
    )
    keep_minutes: float = Field(
        default=0.0,
        ge=0,
        le=24 * 60,
        description="Minutes that a host is kept after its last run, for the next one; the reaper gives it back.",
    )
    lease_minutes: float = Field(
        default=30.0,
        ge=5,
        description="Minutes without work or a sign of us after which a host destroys itself.",
    )
    models_root: str = Field(
        default="/workspace/ComfyUI/models",
        pattern="^/",
        description="Folder in the host that the models of the store go to.",
    )
    proxy: str = Field(
        default="",
        description="Form of a port's address at a proxy that passes it on, such as "
        "https://{instance}-{port}.proxy.vast.ai; the host's own address and map of ports where empty.",
    )
    start: str = Field(
        default="entrypoint.sh", description="Command that starts the image's engines; none where empty."
    )
    attempts: int = Field(default=5, ge=1, le=20, description="Offers that are tried before it is given up.")

    @model_validator(mode="after")
    def _complete(self) -> RentRules:
        if not self.image and not self.template:
            raise ValueError("hosts to rent need an image or a template")
        if self.proxy and not re.fullmatch(
            r"https?://[^{}\s]*\{instance\}[^{}\s]*\{port\}[^{}\s]*", self.proxy
        ):
            raise ValueError(
                f'proxy is "{self.proxy}"; expected an address with {{instance}} and {{port}}, such as '
                "https://{instance}-{port}.proxy.vast.ai"
            )
        if self.max_total_per_hour is not None and self.max_total_per_hour < self.max_per_hour:
            raise ValueError(
                f"max_total_per_hour is {self.max_total_per_hour:g}; expected at least max_per_hour, {self.max_per_hour:g}"
            )
        return self

    def offers(self, ports: int) -> OfferRules:
        """Which offers are good enough for a host of which so many ports are reached."""
        return OfferRules(
            disk_gb=self.disk_gb,
            gpu_names=self.gpu_names,
            vram_gb=self.vram_gb,
            max_per_hour=self.max_per_hour,
            reliability=self.reliability,
            down_mbps=self.down_mbps,
            cuda=self.cuda,
            ports=max(1, ports),
            countries=self.countries,
            hours=self.max_hours,
        )

    def hosts_for(self, hours: float) -> int:
        """How many hosts are rented for so many hours of work."""
        return max(1, min(self.max_hosts, math.ceil(hours / self.hours_per_host)))

    def price_range(self, hours: float) -> tuple[float, float]:
        """$ that so many hours of one host's work cost at least and at most, as far as the rules alone can tell.

        At least: nothing but the work, at the highest price allowed; the market is often cheaper. At most: every host takes
        all of its time to boot, loads over the slowest line allowed, and every take is made twice.
        """
        if not hours:
            return 0.0, 0.0
        loading = self.download_gb * 8000 / max(self.down_mbps, 1.0) / 3600
        before = self.hosts_for(hours) * (self.boot_minutes / 60 + loading)
        return hours * self.max_per_hour, (2 * hours + before) * self.max_per_hour

    def cost(self, offer: Offer, hours: float) -> float:
        """What it costs to get ``hours`` of work done on this offer, in $: until it is loaded, too, and the load itself."""
        loading = self.download_gb * 8000 / max(offer.down_mbps, 1.0) / 3600
        return (hours + loading) * offer.price.per_hour(
            self.disk_gb
        ) + self.download_gb * offer.price.down_per_gb
