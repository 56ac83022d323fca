"""The cap that an approval form begins with: never below the price, so that who presses Resume gets what was shown."""

from collections.abc import Callable
from pathlib import Path

import pytest

from callsheet.batch import Batch
from callsheet.fleet import read_fleet
from callsheet.parameters import ProduceParameters
from tasks.approval import proposed_cap
from tests.conftest import write_fleet


@pytest.mark.parametrize("price", [0.01, 0.1, 1.0, 36.0])
def test_the_proposed_cap_pays_for_the_plan(
    write_script: Callable[..., Path], tmp_path: Path, price: float
) -> None:
    script = write_script({"shot_id": "a", "text": "One line.", "voice": "anna"})
    fleet = write_fleet(tmp_path / "fleet.toml", {"h": "http://127.0.0.1:1"}, price=price)
    plan = ProduceParameters(script=script).plan(read_fleet(str(fleet)))
    cap = proposed_cap(Batch("b", plan, list(plan.fleet.lanes()), {}, 2, None))
    _, high = plan.cost_range(set())
    assert 0 < high * 1.25 <= cap <= high * 1.25 + 0.01
    assert plan.cost(plan.steps) <= cap
