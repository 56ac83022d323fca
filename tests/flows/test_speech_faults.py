"""Five hundred lines through servers that fail in every way theirs do: each line is right, or it is named."""

import json
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import soundfile

from callsheet.manifest import Manifest, Summary
from callsheet.parameters import ProduceParameters
from callsheet.takes import Sidecar
from flows.produce import produce
from tests.fakes.proxy import FaultyProxy
from tests.fakes.speech_server import FAULTS, Fault, SpeechServer, Spoken, said

pytestmark = pytest.mark.usefixtures("prefect_api")

#: Of the tones that the tests' voices are (`write_tone` in conftest).
PITCH = 210.0


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLSHEET_TIME_SCALE", "0.03")  # 60 s become 1.8


@pytest.fixture
def servers() -> Iterator[Callable[[int], list[SpeechServer]]]:
    with ExitStack() as stack:
        yield lambda count: [stack.enter_context(SpeechServer(pitch=PITCH)) for _ in range(count)]


class Booth:
    """Narrates scripts through fake servers, and listens to what came of it."""

    def __init__(
        self, folder: Path, write_script: Callable[..., Path], servers: list[SpeechServer], slots: int
    ) -> None:
        self.folder, self.write_script, self.servers = folder, write_script, servers
        self.store = folder / "out"
        lines = ['provider = "static"']
        for number, server in enumerate(servers):
            lines += [
                "[[host]]",
                f'name = "h{number}"',
                "price_per_hour = 3.6",
                "[[host.engine]]",
                'kind = "lighttts"',
            ]
            lines += [f'url = "{server.url}"', 'revision = "test-1"', f"slots = {slots}"]
        self.fleet = folder / "fleet.toml"
        self.fleet.write_text("\n".join(lines), "utf-8")

    async def narrate(self, texts: list[str], **settings: Any) -> Summary:
        rows = [{"shot_id": f"s{n:03}", "text": text, "voice": "anna"} for n, text in enumerate(texts)]
        parameters = ProduceParameters(
            script=self.write_script(*rows), store=str(self.store), fleet=str(self.fleet), **settings
        )
        self.state: Any = await produce(parameters, return_state=True)
        summary = await self.state.aresult(raise_on_failure=False)
        assert isinstance(summary, Summary), summary
        return summary

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.store / "batches/script/manifest.json").read_bytes())

    def speech(self) -> dict[str, Sidecar]:
        """By text."""
        found = [
            Sidecar.model_validate(json.loads(p.read_bytes()))
            for p in (self.store / "takes/speech").glob("*.json")
        ]
        return {str(sidecar.inputs["text"]): sidecar for sidecar in found}

    def is_right(self, text: str, sidecar: Sidecar) -> bool:
        """Whether the take says this text: its checksum is in the samples."""
        pcm, _ = soundfile.read(str(self.store / sidecar.take.file), dtype="int16")
        return said(pcm) == zlib.crc32(text.encode())

    def lines_asked(self) -> Counter[str]:
        """How often each text was asked for and answered well."""
        return Counter(
            r.text
            for server in self.servers
            for r in server.requests
            if r.fault is None and "canary" not in r.text
        )


@pytest.fixture
def booth(
    tmp_path: Path, write_script: Callable[..., Path], servers: Callable[[int], list[SpeechServer]]
) -> Callable[..., Booth]:
    return lambda hosts=1, slots=1: Booth(tmp_path, write_script, servers(hosts), slots)


def sentences(count: int) -> list[str]:
    """Different sentences, of 5 to 20 words."""
    words = "keeper lamp harbour evening water letter winter stone window river garden morning silence paper".split()
    rng = random.Random(7)
    return [
        f"The {number_word(n)} line tells of the "
        + " and the ".join(rng.choices(words, k=rng.randint(1, 8)))
        + "."
        for n in range(count)
    ]


def number_word(number: int) -> str:
    names = "zero one two three four five six seven eight nine".split()
    return " ".join(names[int(digit)] for digit in str(number))


@pytest.mark.slow
async def test_every_line_of_five_hundred_is_right_or_named(booth: Callable[..., Booth]) -> None:
    mine = booth(hosts=3, slots=4)
    rng = random.Random(11)

    def three_in_ten(request: Spoken) -> Fault | None:
        return rng.choice(FAULTS) if rng.random() < 0.3 else None

    for server in mine.servers:
        server.choose = three_in_ten
    texts = sentences(500)
    summary = await mine.narrate(texts)
    takes = mine.speech()
    named = {shot.shot_id for shot in summary.failed}
    named |= {shot.shot_id for shot in mine.manifest.shots if shot.needs_review}
    wrong = []
    for n, text in enumerate(texts):
        sidecar = takes.get(text)
        if f"s{n:03}" not in named and (
            sidecar is None or sidecar.needs_review or not mine.is_right(text, sidecar)
        ):
            wrong.append(text)
    assert wrong == [], "silently wrong"
    assert len(named) <= 25, named
    assert summary.done + len(summary.failed) == 500
    twice = {text: count for text, count in mine.lines_asked().items() if count > 1}
    assert twice == {}, "made twice without need"
    faults = Counter(r.fault for server in mine.servers for r in server.requests if r.fault)
    assert set(faults) == set(FAULTS), "every fault was met"
    print(
        f"named {len(named)} of 500; requests {sum(len(s.requests) for s in mine.servers)}; faults {dict(faults)}"
    )


async def test_a_host_whose_canary_fails_speaks_no_line(booth: Callable[..., Booth]) -> None:
    mine = booth(hosts=2)
    mine.servers[0].choose = lambda request: "wrong_rate"
    mine.servers[1].cost = 0.1  # or it has spoken everything before the other is asked
    summary = await mine.narrate(sentences(6))
    assert (summary.done, summary.needs_review) == (6, 0)
    assert all("canary" in text for text in mine.servers[0].texts())
    assert len(mine.servers[0].requests) == 3, "three bad sentences are a bad host"


async def test_when_every_canary_fails_each_line_says_why(booth: Callable[..., Booth]) -> None:
    mine = booth()
    mine.servers[0].choose = lambda request: "silence"
    summary = await mine.narrate(sentences(2))
    assert {shot.error for shot in summary.failed} == {"HostFault"}
    assert "canary failed 3 times: rms_dbfs is" in summary.failed[0].reason


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["empty", "422"])
async def test_a_host_whose_canary_cannot_be_heard_is_left_out_at_once(
    booth: Callable[..., Booth], fault: Fault
) -> None:
    mine = booth(hosts=2, slots=4)
    mine.servers[0].choose = lambda request: fault
    summary = await mine.narrate(sentences(8))
    assert (summary.done, summary.failed) == (8, [])
    assert len(mine.servers[0].requests) <= 4, "one canary with its retries, however many lanes waited for it"


async def test_a_refusal_is_tried_on_another_host_before_the_line_is_given_up(
    booth: Callable[..., Booth],
) -> None:
    mine = booth(hosts=2)
    mine.servers[0].choose = lambda request: None if "canary" in request.text else "422"
    summary = await mine.narrate(sentences(4))
    assert (summary.done, summary.failed) == (4, [])


@pytest.mark.slow
async def test_a_retake_whose_lane_fails_is_made_on_a_third_lane(booth: Callable[..., Booth]) -> None:
    mine = booth(hosts=2, slots=2)
    texts = sentences(3)
    for text in texts:
        mine.servers[0].fail("silence", text=text)
    mine.servers[1].choose = lambda request: None if "canary" in request.text else "500"
    summary = await mine.narrate(texts)
    assert (summary.done, summary.needs_review) == (3, 0)


@pytest.mark.slow
async def test_the_canary_is_heard_again_after_fifty_lines(booth: Callable[..., Booth]) -> None:
    mine = booth(slots=4)
    mine.servers[0].cost = 0.05
    assert (await mine.narrate(sentences(52))).done == 52
    assert sum("canary" in text for text in mine.servers[0].texts()) == 2
    assert mine.servers[0].most_in_flight == 4


async def test_a_host_that_gives_two_callers_the_same_bytes_is_left_out_and_neither_line_is_taken(
    booth: Callable[..., Booth],
) -> None:
    mine = booth(slots=2)
    texts = sentences(2)  # its two lanes take both at once
    mine.servers[0].choose = lambda request: None if "canary" in request.text else "twin"
    summary = await mine.narrate(texts)
    assert (summary.done, mine.speech()) == (0, {})
    assert all("answered two texts with the same bytes" in shot.reason for shot in summary.failed)
    assert len(mine.servers[0].requests) == 3, "a canary, two lines, and nothing after them"
    mine.servers[0].choose = None
    assert (await mine.narrate(texts)).done == 2
    assert all(mine.is_right(text, mine.speech()[text]) for text in texts)


async def test_a_server_that_misses_the_first_question_is_asked_again_before_its_host_is_left_out(
    booth: Callable[..., Booth],
) -> None:
    mine = booth()
    with FaultyProxy(mine.servers[0].url) as link:
        mine.fleet.write_text(mine.fleet.read_text("utf-8").replace(mine.servers[0].url, link.url), "utf-8")
        link.fail("/query_tts_model", "reset")
        link.fail("/query_tts_model", "502")
        assert (await mine.narrate(sentences(1))).done == 1
        assert link.count("/query_tts_model") == 3


async def test_a_retake_asks_for_the_bad_piece_only(booth: Callable[..., Booth]) -> None:
    mine = booth()
    long = [f"Sentence number {word} of a narration that goes on for quite a while, as narrations do." for word in
            ("one", "two", "three", "four", "five")]  # fmt: skip
    mine.servers[0].fail("silence", text="number three")
    mine.servers[0].fail("cut", text="number five")
    summary = await mine.narrate([" ".join(long)])
    assert (summary.done, summary.needs_review) == (1, 0)
    asked = Counter(text for text in mine.servers[0].texts() if "canary" not in text)
    assert sorted(asked.values()) == [1] * (len(asked) - 2) + [2, 2]
    (sidecar,) = mine.speech().values()
    assert [len(attempt.pieces) for attempt in sidecar.attempts] == [len(asked)] * 2
    faults = [check for check in sidecar.attempts[0].checks if not check.ok]
    assert {check.piece for check in faults} == {next(n for n, t in enumerate(asked) if "number three" in t)}


async def test_pauses_lengthen_the_clip_and_cost_no_new_take(booth: Callable[..., Booth]) -> None:
    mine = booth()
    await mine.narrate(["He left the house. [pause 1s] Nobody asked where he went."])
    first = mine.manifest.shots[0].seconds
    asked = len(mine.servers[0].requests)
    summary = await mine.narrate(["He left the house. [pause 3s] Nobody asked where he went."])
    assert mine.manifest.shots[0].seconds == pytest.approx(first + 2.0, abs=0.001)
    assert (len(mine.servers[0].requests), summary.takes_made) == (asked, 1)
