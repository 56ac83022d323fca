"""vast.ai's answers and the client, through the real SDK, against a server that has vast.ai's faults."""

import json
import logging
import signal
from collections.abc import Callable, Iterator

import pytest
from pydantic import SecretStr

from callsheet.errors import BadInput
from callsheet.vastai import VastClient, _Pace
from callsheet.vastai_answers import (
    Ambiguous,
    AuthError,
    CreditExhausted,
    Instance,
    NotFound,
    Offer,
    OfferGone,
    OfferRules,
    Order,
    RateLimited,
    TryAgain,
    VastError,
    fault_of,
)
from tests.fakes.vast import KEY, Endpoint, Fault, Vast

RULES = OfferRules(disk_gb=80, gpu_names=("RTX 4090",), max_per_hour=0.6, vram_gb=24)
ORDER = Order(
    label="callsheet:demo:1",
    disk_gb=80,
    image="comfy:1",
    env={"MODEL": "wan"},
    ports=(8188,),
    onstart="entrypoint.sh",
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.03")


@pytest.fixture
def vast() -> Iterator[Vast]:
    with Vast() as server:
        yield server


@pytest.fixture
def account(vast: Vast) -> VastClient:
    return VastClient(SecretStr(KEY), vast.url)


@pytest.fixture
def offer(vast: Vast, account: VastClient) -> Offer:
    vast.offer()
    return account.search(RULES)[0]


def test_offers_are_searched_with_the_disk_that_will_be_rented_and_looked_at_again(
    vast: Vast, account: VastClient
) -> None:
    cheap = vast.offer(dph_base=0.3, storage_cost=1.5)  # its disk makes it dearer
    good = vast.offer(dph_base=0.35, machine_id=7)
    vast.offer(reliability=0.9, reliability2=0.9)
    vast.offer(inet_down=100.0)
    vast.offer(gpu_ram=16_000)
    vast.offer(duration=3600.0)
    vast.offer(dph_base=0.59)
    vast.offer(verification="deverified")
    del vast.offer()["machine_id"]
    found = account.search(RULES)
    assert [offer.id for offer in found] == [good["id"], cheap["id"]]
    assert (found[0].machine_id, found[0].vram_gb, found[0].country) == (7, 24.564, "NO")
    assert found[0].price.per_hour(80) == pytest.approx(0.35 + 0.2 * 80 / 720)
    (asked,) = vast.asked("search")
    assert asked.body["allocated_storage"] == 80
    assert asked.body["gpu_ram"] == {"gte": 24_000}
    assert asked.body["type"] == "on-demand"


def test_a_box_is_created_listed_and_destroyed(vast: Vast, account: VastClient, offer: Offer) -> None:
    created = account.create(offer, ORDER)
    (asked,) = vast.asked("create")
    wanted = {
        "label": "callsheet:demo:1",
        "disk": 80,
        "image": "comfy:1",
        "env": {"MODEL": "wan", "-p 8188:8188": "1"},
        "onstart": "entrypoint.sh",
        "cancel_unavail": True,
        "runtype": "ssh_direc ssh_proxy",
    }
    assert {name: asked.body[name] for name in wanted} == wanted
    (box,) = account.instances()
    assert (box.id, box.label, box.status, box.since, box.ports) == (
        created.id,
        "callsheet:demo:1",
        "",
        None,
        {},
    )
    vast.advance(400)
    box = account.instance(created.id) or box
    assert (box.status, box.address, box.ports) == ("running", "127.0.0.1", {8188: 48188})
    assert box.per_hour == pytest.approx(0.4 + 0.2 * 80 / 720)
    account.label(created.id, "callsheet:demo:2")
    assert account.instances()[0].label == "callsheet:demo:2"
    assert "engine started" in account.logs(created.id)
    account.destroy(created.id)
    assert account.instances() == []
    assert account.instance(created.id) is None
    account.destroy(created.id)  # gone already is no error
    assert vast.billable() == []


def test_the_box_key_can_destroy_its_box_and_nothing_else(
    vast: Vast, account: VastClient, offer: Offer
) -> None:
    vast.offer()
    created, other = account.create(offer, ORDER), account.create(account.search(RULES)[0], ORDER)
    on_the_box = VastClient(created.key, vast.url)
    with pytest.raises(AuthError):
        on_the_box.destroy(other.id)
    on_the_box.destroy(created.id)
    assert [box.id for box in vast.billable()] == [other.id]


@pytest.mark.parametrize("fault", ["gone 404", "gone 410", "gone 400"])
def test_an_offer_that_is_gone_is_told_in_all_its_shapes(
    vast: Vast, account: VastClient, offer: Offer, fault: Fault
) -> None:
    vast.fail("create", fault)
    with pytest.raises(OfferGone):
        account.create(offer, ORDER)
    assert vast.billable() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    ["committed, then hangs", "committed, then resets", "committed, then 502", "committed, then html",
     "committed, without id", "hangs", "resets", "500", "502", "html", "half", "429 text", "429 json"],
)  # fmt: skip
def test_a_create_that_may_have_made_a_box_is_sent_once_and_said_so(
    vast: Vast, account: VastClient, offer: Offer, fault: Fault
) -> None:
    vast.fail("create", fault)
    with pytest.raises(Ambiguous) as error:
        account.create(offer, ORDER)
    assert error.value.instance_id is None
    assert len(vast.asked("create")) == 1
    assert len(vast.billable()) == fault.startswith("committed")
    assert [box.label for box in account.instances()] == [ORDER.label] * len(vast.billable())


def test_an_error_that_made_a_box_names_it(vast: Vast, account: VastClient, offer: Offer) -> None:
    vast.fail("create", "refused and made")
    with pytest.raises(Ambiguous) as error:
        account.create(offer, ORDER)
    assert [box.id for box in vast.billable()] == [error.value.instance_id]


@pytest.mark.parametrize(("fault", "kind"), [("no credit", CreditExhausted), ("refused", VastError)])
def test_a_create_that_is_refused_made_nothing(
    vast: Vast, account: VastClient, offer: Offer, fault: Fault, kind: type[VastError]
) -> None:
    vast.fail("create", fault)
    with pytest.raises(kind) as error:
        account.create(offer, ORDER)
    assert type(error.value) is kind
    assert vast.billable() == []


def test_a_list_is_read_to_its_last_page(vast: Vast, account: VastClient) -> None:
    boxes = [vast.made(vast.offer(), {"label": f"box {number}"}) for number in range(60)]
    assert [box.id for box in account.instances()] == [box.id for box in boxes]
    assert len(vast.asked("list")) == 3


def test_a_list_that_is_not_whole_is_none(vast: Vast, account: VastClient) -> None:
    for number in range(60):
        vast.made(vast.offer(), {"label": f"box {number}"})

    def fails_later(fault: Fault, times: int) -> None:
        vast.requests.clear()
        vast._faults["list"] = [None, *[fault] * times]  # type: ignore[list-item]

    for fault, times in (("502", 4), ("html", 4), ("half", 4), ("row without id", 1), ("no instances", 1)):
        fails_later(fault, times)  # type: ignore[arg-type]
        with pytest.raises(VastError):
            account.instances()
    fails_later("502", 2)
    assert len(account.instances()) == 60, "a page is asked for again"


def test_rows_with_nulls_are_rows() -> None:
    box = Instance.of(
        {
            "id": "7",
            "label": None,
            "ports": {"22/tcp": None, "x": 3},
            "public_ipaddr": " 1.2.3.4\n",
            "dph_base": "n/a",
        }
    )
    assert (box.id, box.label, box.ports, box.address, box.per_hour) == (7, "", {}, "1.2.3.4", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["not taken on", "500", "resets", "429 header", "html"])
def test_a_destroy_is_asked_for_until_it_is_taken_on(
    vast: Vast, account: VastClient, offer: Offer, fault: Fault
) -> None:
    created = account.create(offer, ORDER)
    vast.fail("destroy", fault, times=2)
    account.destroy(created.id)
    assert vast.billable() == []
    vast.fail("destroy", fault, times=9)
    with pytest.raises(TryAgain):
        account.destroy(account.create(Offer.of(vast.offer()), ORDER).id)


def test_a_destroy_whose_answer_was_lost_is_done(vast: Vast, account: VastClient, offer: Offer) -> None:
    created = account.create(offer, ORDER)
    vast.fail("destroy", "committed, then resets")
    account.destroy(created.id)
    assert vast.billable() == []


def test_a_wrong_key_is_never_taken_for_a_box_that_is_gone(
    vast: Vast, account: VastClient, offer: Offer
) -> None:
    created = account.create(offer, ORDER)
    stranger = VastClient(SecretStr("wrong-key"), vast.url)
    ask: Callable[[], object]
    for ask in (
        lambda: stranger.destroy(created.id),
        lambda: stranger.instances(),
        lambda: stranger.search(RULES),
    ):
        with pytest.raises(AuthError):
            ask()
    assert len(vast.billable()) == 1


def test_the_day_s_searches_are_not_asked_for_again(vast: Vast, account: VastClient) -> None:
    vast.fail("search", "quota")
    with pytest.raises(VastError, match="until 00:00 UTC"):
        account.search(RULES)
    assert len(vast.asked("search")) == 1


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, '{"error": "no_such_instance"}', NotFound),
        (404, '{"success": false, "msg": "Session expired"}', AuthError),
        (403, "", AuthError),
        (411, "Insufficient credit", CreditExhausted),
        (400, '{"error": "missing_billing"}', CreditExhausted),
        (429, "API requests too frequent", RateLimited),
        (404, "<html>", TryAgain),
        (400, '{"error": "invalid_args", "msg": "disk"}', VastError),
        (200, "[]", TryAgain),
    ],
)
def test_errors_are_told_by_the_body(status: int, body: str, kind: type[VastError]) -> None:
    assert type(fault_of(status, body)) is kind


def test_the_key_of_a_box_is_in_no_message(vast: Vast, account: VastClient, offer: Offer) -> None:
    vast.fail("create", "committed, without id")
    with pytest.raises(Ambiguous) as error:
        account.create(offer, ORDER)
    (box,) = vast.boxes.values()
    assert box.key not in str(error.value)
    said = str(
        fault_of(
            400, json.dumps({"success": False, "instance_api_key": "s3cret", "x": 'jupyter_token="t0ken"'})
        )
    )
    assert "s3cret" not in said
    assert "t0ken" not in said
    assert "s3cret" not in str(fault_of(200, '{"msg": "got {\\"instance_api_key\\": \\"s3cret\\"}"}'))


def test_a_pace_that_is_interrupted_lets_others_through() -> None:
    pace = _Pace(60_000.0)
    with pace:
        pass

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt), pace:
            pass
    finally:
        signal.signal(signal.SIGALRM, before)
    assert pace._lock.acquire(blocking=False)


@pytest.mark.parametrize("endpoint", ["user", "search", "list", "create", "destroy", "label"])
def test_an_answer_that_repeats_the_request_shows_no_key(
    vast: Vast, account: VastClient, offer: Offer, endpoint: Endpoint
) -> None:
    ask: dict[Endpoint, Callable[[], object]] = {
        "user": account.credit,
        "search": lambda: account.search(RULES),
        "list": account.instances,
        "create": lambda: account.create(offer, ORDER),
        "destroy": lambda: account.destroy(1),
        "label": lambda: account.label(1, "m"),
    }
    vast.fail(endpoint, "echo", times=9)
    with pytest.raises(VastError, match=r"Bearer …") as fault:
        ask[endpoint]()
    assert KEY not in repr(fault.value)


def test_credit_is_read_and_the_key_is_in_no_message(
    vast: Vast, account: VastClient, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        assert account.credit() == 50.0
        vast.fail("user", "500", times=9)
        with pytest.raises(TryAgain) as error:
            account.credit()
    assert KEY not in str(error.value) + repr(account) + caplog.text + "".join(capsys.readouterr())
    assert all(request.key == KEY for request in vast.requests)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"image": ""}, "neither image nor template"),
        ({"label": " "}, "label"),
        ({"label": "x" * 129}, "128 characters"),
        ({"onstart": "x" * 4097}, "4097 characters; expected at most 4096"),
        ({"disk_gb": 4}, "expected 8 or more"),
    ],
)
def test_an_order_that_vast_would_refuse_is_never_sent(more: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Order(**{"label": "l", "disk_gb": 80, "image": "i", **more})  # type: ignore[arg-type]


def test_time_costs_money_there(vast: Vast, account: VastClient, offer: Offer) -> None:
    account.create(offer, ORDER)
    vast.advance(300)
    loading = vast.spent
    assert loading == pytest.approx(0.2 * 80 / 720 / 12, rel=0.05), "the disk alone, while it loads"
    vast.advance(3600)
    assert vast.spent - loading == pytest.approx(offer.price.per_hour(80), rel=0.01)
    assert vast.credit == pytest.approx(50 - vast.spent)


def test_without_a_key_it_is_said_where_one_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAST_API_KEY", raising=False)
    with pytest.raises(BadInput, match="VAST_API_KEY"):
        VastClient.from_environment()
