from pathlib import Path

import pytest

from callsheet.errors import BadInput
from callsheet.fleet import Fleet, read_fleet

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
