from pathlib import Path

import pytest

from callsheet.errors import BadInput
from callsheet.fleet import Fleet, read_fleet
from callsheet.rent_rules import RentRules

HOST = '[[host]]\nname = "a10-1"\nvram_gb = 24\nprice_per_hour = 0.36\n'
ENGINE = '[[host.engine]]\nkind = "lighttts"\nurl = "http://127.0.0.1:8080"\nrevision = "cosyvoice2-0.5b"\nslots = 4\n'


def read(path: Path, text: str) -> Fleet:
    path.write_text(text)
    return read_fleet(str(path))


def test_file_of_the_design_is_read(tmp_path: Path) -> None:
    second = ENGINE.replace("lighttts", "comfyui").replace(
        "slots = 4", 'window = 2\ntoken_env = "COMFY_TOKEN"'
    )
    fleet = read(tmp_path / "fleet.toml", f'provider = "static"\n{HOST}{ENGINE}{second}')
    lanes = list(fleet.lanes())
    assert [lane.name for lane in lanes] == [*(f"a10-1/lighttts/{n}" for n in range(4)), "a10-1/comfyui/0"]
    assert lanes[0].price_per_second == pytest.approx(0.36 / 3600 / 4)


def test_two_engines_of_a_kind_on_a_host_have_names_of_their_own(tmp_path: Path) -> None:
    fleet = read(tmp_path / "f.toml", f'provider = "static"\n{HOST}{ENGINE}{ENGINE.replace("8080", "8081")}')
    assert [engine.name for engine in fleet.hosts[0].engines] == ["lighttts", "lighttts-2"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('provider = "static"', "at least one [[host]]"),
        (f'provider = "static"\n{HOST}', "host.0.engine: Field required"),
        (f'provider = "static"\n{HOST}{ENGINE}{HOST}{ENGINE}', "a10-1 stands twice"),
        (f'provider = "static"\n{HOST}{ENGINE}slot = 2', "host.0.engine.0.slot: Extra inputs"),
        (
            f'provider = "static"\n{HOST}{ENGINE}'.replace("http://127.0.0.1:8080", "127.0.0.1:8080"),
            "expected http://",
        ),
        (
            f'provider = "static"\n{HOST}{ENGINE}'.replace("8080", "8080/?token=abc"),
            "expected the token in token_env",
        ),
        (f'provider = "static"\n{HOST}{ENGINE}'.replace("a10-1", "a10/1"), "host.0.name"),
        (f'provider = "draft"\n{HOST}{ENGINE}', "brings its own host"),
        ('provider = "cloud"', "provider"),
        (
            f'provider = "static"\n{HOST}{ENGINE}vram_gb = 90\nresident = true',
            "host a10-1: its resident engines hold 90 GB of GPU memory; expected at most vram_gb, 24",
        ),
        ("provider =", "no TOML"),
    ],
)
def test_mistake_in_a_fleet_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadInput) as caught:
        read(tmp_path / "fleet.toml", text)
    assert told in str(caught.value)
    assert "fleet.toml" in str(caught.value)


def test_missing_fleet_file_is_named() -> None:
    with pytest.raises(BadInput, match=r"nowhere.toml: found No such file"):
        read_fleet("nowhere.toml")


RENTED = """
provider = "vastai"
[rent]
max_per_hour = 0.6
image = "comfy:1"
[[host]]
name = "rented"
vram_gb = 24
[[host.engine]]
kind = "comfyui"
port = 18188
revision = "wan"
"""


def test_a_fleet_that_is_rented_is_planned_with_the_pattern_of_its_hosts_at_the_highest_price(
    tmp_path: Path,
) -> None:
    (tmp_path / "f.toml").write_text(RENTED)
    fleet = read_fleet(str(tmp_path / "f.toml"))
    assert fleet.rent is not None
    assert (fleet.rent.vram_gb, fleet.hosts[0].price_per_hour) == (24, 0.6)
    assert [lane.name for lane in fleet.lanes()] == ["rented/comfyui/0"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("port = 18188", "", "needs a port of its own, and no url"),
        ("port = 18188", 'port = 18188\nurl = "http://1.2.3.4:8188"', "needs a port of its own, and no url"),
        ("vram_gb = 24", "price_per_hour = 2", "is max_per_hour of"),
        ('provider = "vastai"', 'provider = "static"', 'go with provider "vastai"'),
        ("[[host]]", '[[host]]\nname = "other"\n[[host.engine]]\nkind = "comfyui"\nrevision = "x"\n[[host]]', "exactly one"),
        ("max_per_hour = 0.6", "", "rent.max_per_hour: Field required"),
        ('image = "comfy:1"', "", "need an image or a template"),
    ],
)  # fmt: skip
def test_a_fleet_that_cannot_be_rented_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    (tmp_path / "f.toml").write_text(RENTED.replace(old, new, 1))
    with pytest.raises(BadInput, match=said):
        read_fleet(str(tmp_path / "f.toml"))


def test_what_rented_hosts_may_cost_has_a_least_and_a_most() -> None:
    rules = RentRules(
        max_per_hour=0.6, image="i", max_hosts=4, boot_minutes=30, download_gb=45, down_mbps=400
    )
    assert rules.price_range(0) == (0, 0)
    # Five hours are three hosts; each boots for half an hour and loads for a quarter.
    assert rules.price_range(5) == pytest.approx((3.0, (10 + 3 * 0.75) * 0.6))
    assert rules.hosts_for(100) == 4
