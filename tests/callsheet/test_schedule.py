from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callsheet.errors import BadInput, BadOutput, Budget, HostFault, HostLacks, StoreFault, Transient
from callsheet.fleet import Engine, Host, Lane
from callsheet.plan import ASSEMBLY, ClipInputs, SpeechInputs, Step
from callsheet.schedule import Failure, StepQueue


def lane(host: str, number: int = 0, kind: Any = "comfyui") -> Lane:
    engine = Engine(kind=kind, revision="r", name=kind, url="http://x")
    return Lane(Host(name=host, engines=(engine,)), engine, number)


def step(
    key: str,
    *needs: str,
    engine: str = "comfyui",
    signature: str = "m",
    seconds: float = 1.0,
    after: tuple[str, ...] = (),
    vram_gb: float = 0.0,
) -> Step:
    inputs = ClipInputs(None, (), None, None, None, 0.0)
    revision = "callsheet-1" if engine == ASSEMBLY else "r"
    return Step(
        key,
        "video",
        key,
        engine,
        revision,
        signature,
        inputs,
        needs=needs,
        after=after,
        seconds=seconds,
        vram_gb=vram_gb,
    )


def speech_step(key: str, vram_gb: float = 0.0) -> Step:
    inputs = SpeechInputs(("Hello.",), "en", 1.0, voice=cast(Any, None))
    return replace(step(key, engine="lighttts", vram_gb=vram_gb), inputs=inputs)


A, B = lane("a"), lane("b")


def test_step_waits_for_what_it_is_made_from() -> None:
    queue = StepQueue([step("clip", "picture", engine=ASSEMBLY), step("picture")], [A])
    assert queue.take(None) is None
    taken = queue.take(A)
    assert taken is not None
    assert taken.key == "picture"
    assert queue.take(A) is None
    queue.complete("picture")
    clip = queue.take(None)
    assert clip is not None
    assert clip.key == "clip"


def test_what_others_wait_for_goes_first_then_the_longest() -> None:
    queue = StepQueue([step("long", seconds=9), step("first"), step("second", "first")], [A])
    order = []
    while taken := queue.take(A):
        order.append(taken.key)
        queue.complete(taken.key)
    assert order == ["first", "long", "second"]


def keys(queue: StepQueue, *lanes: Lane) -> list[str]:
    """What is done when each of ``lanes`` in turn takes a step and ends it at once."""
    order = []
    while True:
        taken = [one for lane in lanes if (one := queue.take(lane))]
        if not taken:
            return order
        for one in taken:
            queue.complete(one.key)
            order.append(one.key)


def test_model_with_the_most_work_goes_first() -> None:
    steps = [step("x", signature="one", seconds=9), *(step(k, signature="two", seconds=5) for k in "yz")]
    assert keys(StepQueue(steps, [A]), A) == ["y", "z", "x"]


def test_a_lane_stays_with_the_model_that_it_has_loaded() -> None:
    steps = [step("x", signature="one", seconds=4), *(step(k, signature="two", seconds=3) for k in "yz")]
    assert keys(StepQueue(steps, [A]), A) == ["y", "z", "x"], "after y, model one has the most work left"


def test_two_engines_share_the_models_between_them() -> None:
    steps = [
        *(step(f"x{n}", signature="one") for n in range(5)),
        *(step(f"y{n}", signature="two") for n in range(4)),
    ]
    queue = StepQueue(steps, [A, B])
    assert [queue.take(A), queue.take(B)] == [steps[0], steps[5]]


def test_lanes_of_one_process_follow_its_model() -> None:
    steps = [
        *(step(f"x{n}", signature="one") for n in range(5)),
        *(step(f"y{n}", signature="two") for n in range(4)),
    ]
    queue = StepQueue(steps, [A, lane("a", 1)])
    assert [queue.take(A), queue.take(lane("a", 1))] == steps[:2]


def test_what_an_idle_lane_waits_for_goes_before_the_model_that_is_loaded() -> None:
    speaker = lane("a", 0, "lighttts")
    steps = [step(name, signature="one", seconds=seconds) for name, seconds in (("x", 9), ("y", 8), ("z", 7))]
    queue = StepQueue(steps, [A, speaker])
    assert queue.take(A) is steps[0]
    picture = step("picture", signature="two")
    speech = step("speech", "picture", engine="lighttts")
    queue.add(speech)
    queue.add(picture)
    assert queue.take(A) is steps[1], "nobody is idle yet, so the engine keeps its model"
    assert queue.take(speaker) is None
    assert queue.take(A) is picture
    queue.complete("picture")
    assert queue.take(speaker) is speech
    assert queue.take(A) is steps[2]


def test_steps_whose_model_needs_more_memory_than_is_held_are_left() -> None:
    small, big = step("small", vram_gb=8), step("big", vram_gb=20, seconds=9)
    queue = StepQueue([small, big], [A])
    assert queue.peek(A) is big
    assert queue.take(A, within=8) is small
    assert queue.take(A, within=8) is None
    assert queue.take(A, within=24) is big


def test_speech_takes_the_memory_of_the_engine_that_speaks_and_not_of_the_first_in_the_fleet() -> None:
    engine = Engine(kind="lighttts", revision="r", name="lighttts", url="http://x", vram_gb=4)
    small = Lane(Host(name="a", engines=(engine,)), engine, 0)
    queue = StepQueue([one := speech_step("one", vram_gb=12)], [small])
    assert queue.take(small, within=3) is None
    assert queue.take(small, within=4) is one


def test_model_that_can_never_fit_a_host_is_not_for_its_lanes() -> None:
    big = step("big", vram_gb=25)
    assert not big.runs_on(A)
    assert StepQueue([big], [A]).is_idle(A)


@pytest.mark.parametrize("why", ["quarantined", "stopped", "nobody fits"])
def test_step_that_joins_when_nobody_can_do_it_is_given_up_and_not_waited_for(why: str) -> None:
    speaker = lane("a", 0, "lighttts")
    speech = speech_step("speech")
    queue = StepQueue([speech, step("clip", "speech", engine=ASSEMBLY)], [speaker, B])
    if why == "quarantined":
        queue.quarantine("b", "gone")
    if why == "stopped":
        queue.take(speaker)
        queue.stop(Failure("x", "Budget", "cap"), assembly=False)
    late = step("late", vram_gb=99 if why == "nobody fits" else 0)
    queue.add(late)
    queue.wait_for_also("clip", ["late"])
    assert "late" in queue.failures
    assert queue.failures["late"].reason in (
        "no host is left for comfyui (b: gone)", "cap", "no host is left for comfyui (no host has 99 GB for m)"
    )  # fmt: skip


def test_lane_of_pictures_stays_while_a_narration_may_ask_for_more_of_them() -> None:
    queue = StepQueue([speech_step("speech")], [A, lane("a", 0, "lighttts")])
    assert not queue.is_idle(A)
    queue.complete("speech")
    assert queue.is_idle(A)


def test_retake_of_a_step_that_was_waited_for_goes_first_again() -> None:
    queue = StepQueue([step("long", seconds=9), step("first"), step("second", "first")], [A])
    first = queue.take(A)
    assert first is not None
    assert queue.requeue(first, avoid=A.name)
    assert keys(queue, A) == ["first", "long", "second"]


def test_script_of_ten_thousand_steps_is_taken_in_time_that_grows_with_its_length_alone() -> None:
    """No clock: the piles that are looked at are counted."""
    queue = StepQueue(
        [step(f"{n}", signature=f"m{n % 3}", seconds=n % 7) for n in range(10_000)], lanes := [A, B]
    )
    looked_at = 0
    may_take = queue._may_take

    def counted(*arguments: Any) -> bool:
        nonlocal looked_at
        looked_at += 1
        return may_take(*arguments)

    queue._may_take = counted  # type: ignore[method-assign]
    assert len(keys(queue, *lanes)) == 10_000
    assert looked_at < 10_010 * 3


def test_transient_failure_goes_to_another_lane_and_then_fails_the_shot() -> None:
    one = step("one")
    queue = StepQueue([one, step("clip", "one", engine=ASSEMBLY)], [A, B])
    assert queue.take(A) is one
    queue.fail(one, A, Transient("reset"))
    assert queue.take(A) is None
    assert queue.take(B) is one
    queue.fail(one, B, Transient("reset again"))
    assert queue.failures["clip"].reason == "reset again"
    assert queue.failures["clip"].step == "one"
    assert queue.is_empty


@pytest.mark.parametrize("error", [BadInput("no"), ValueError("a defect of ours")])
def test_what_no_other_lane_can_mend_fails_the_shot_at_once(error: Exception) -> None:
    one = step("one")
    queue = StepQueue([one], [A, B])
    queue.take(A)
    queue.fail(one, A, error)
    assert queue.take(B) is None
    assert queue.failures["one"].error in ("BadInput", "InternalError")


def test_host_at_fault_gets_no_more_and_its_step_goes_elsewhere() -> None:
    one, two = step("one"), step("two")
    queue = StepQueue([one, two], [A, lane("a", 1), B])
    assert queue.take(A) in (one, two)
    queue.fail(one, A, HostFault("CUDA error"))
    assert queue.take(lane("a", 1)) is None
    assert queue.is_idle(lane("a", 1))
    assert {queue.take(B), queue.take(B)} == {one, two}


def test_when_the_last_host_is_gone_every_step_says_why() -> None:
    queue = StepQueue([step("one"), step("two"), step("clip", "two", engine=ASSEMBLY)], [A])
    queue.quarantine("a", "no connection")
    assert queue.is_empty
    assert "a: no connection" in queue.failures["clip"].reason


def test_host_that_lacks_a_model_stays_for_other_steps() -> None:
    one, two = step("one"), step("two")
    queue = StepQueue([one, two], [A])
    assert queue.take(A) is one
    queue.fail(one, A, HostLacks("no model"))
    assert queue.failures["one"].error == "HostLacks"
    assert queue.take(A) is two


def test_retake_goes_to_another_lane_where_there_is_one() -> None:
    one = step("one")
    queue = StepQueue([one], [A, B])
    queue.take(A)
    assert queue.requeue(one, avoid=A.name)
    assert queue.take(A) is None
    assert queue.take(B) is one
    queue.quarantine("a", "gone")
    assert queue.requeue(one, avoid=B.name)
    assert queue.take(B) is one


@pytest.mark.parametrize("error", [StoreFault("disk full"), Budget("cap")])
def test_when_the_batch_stops_nothing_new_starts_and_what_runs_may_end(error: Exception) -> None:
    one, two, three = step("one"), step("two"), step("three")
    queue = StepQueue([one, two, three], [A, B])
    running = [queue.take(A), queue.take(B)]
    assert running == [one, two]
    queue.fail(one, A, error)
    assert queue.is_idle(A)
    assert set(queue.failures) == {"one", "three"}
    queue.complete("two")
    assert queue.is_empty


def test_what_is_paid_for_is_assembled_after_the_budget_and_not_onto_a_full_disk() -> None:
    steps = [
        step("one"),
        step("two"),
        step("clip", "one", engine=ASSEMBLY),
        step("lost", "two", engine=ASSEMBLY),
    ]
    queue = StepQueue(steps, [A])
    assert queue.take(A) is steps[0]
    queue.fail(steps[1], A, Budget("cap"))
    queue.complete("one")
    assert queue.take(None) is steps[2]
    assert set(queue.failures) == {"two", "lost"}
    queue.fail(steps[2], None, StoreFault("disk full"))
    assert queue.is_idle(None)


def test_step_added_late_joins_and_what_is_dropped_leaves() -> None:
    queue = StepQueue([step("clip", "p1", engine=ASSEMBLY), step("p1")], [A])
    queue.add(step("p2", "p1"))
    queue.wait_for_also("clip", ["p2"])
    queue.take(A)
    queue.complete("p1")
    assert queue.take(None) is None
    queue.drop("p2")
    queue.stop_waiting_for("clip", ["p2"])
    assert queue.take(None) is not None


ERRORS = st.sampled_from([Transient("t"), HostLacks("l"), BadInput("i"), HostFault("f"), ValueError("v")])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_nothing_is_lost_and_nothing_runs_twice_whatever_happens(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    steps = []
    for number in range(count):
        needs = data.draw(st.sets(st.integers(0, max(0, number - 1)), max_size=2)) if number else set()
        engine = data.draw(st.sampled_from(["comfyui", "lighttts", ASSEMBLY]))
        model, seconds = data.draw(st.sampled_from("ab")), data.draw(st.floats(0, 9))
        steps.append(step(str(number), *map(str, needs), engine=engine, signature=model, seconds=seconds))
    lanes = [lane("a", 0), lane("a", 1), lane("b", 0), lane("b", 0, "lighttts"), lane("c", 0, "lighttts")]
    queue = StepQueue(steps, lanes)
    running: list[tuple[Step, Lane | None]] = []
    done: set[str] = set()
    for _ in range(400):
        worker = data.draw(st.sampled_from([*lanes, None]))
        taken = queue.take(worker)
        if taken is not None:
            assert taken.key not in {other.key for other, _ in running}, "ran twice at once"
            assert taken.key not in done | set(queue.failures), "ran again"
            assert set(taken.needs) <= done, "ran before what it is made from"
            running.append((taken, worker))
        if running and data.draw(st.booleans()):
            one, where = running.pop(data.draw(st.integers(0, len(running) - 1)))
            outcome = data.draw(st.integers(0, 5))
            if outcome == 0:
                queue.fail(one, where, data.draw(ERRORS))
            elif outcome == 1 and where is not None and queue.requeue(one, avoid=where.name):
                pass
            else:
                queue.complete(one.key)
                done.add(one.key)
        if queue.is_empty and not running:
            break
        if not running:
            taken_by = [(one, worker) for worker in [*lanes, None] if (one := queue.take(worker))]
            assert taken_by, "stuck: nothing runs, nothing can be taken, and steps are left"
            running += taken_by
    for one, _ in running:
        queue.complete(one.key)
        done.add(one.key)


def test_bad_output_is_not_the_queues_business() -> None:
    """Retakes are counted by the batch; for the queue a step that gave nothing usable is given up."""
    one = step("one")
    queue = StepQueue([one], [A])
    queue.take(A)
    queue.give_up(one, Failure.of(one, BadOutput("black")))
    assert queue.failures["one"].reason == "black"


def test_what_only_a_host_on_its_way_can_do_waits_for_it() -> None:
    queue = StepQueue([step("s")], [A])
    queue.expect([B])
    taken = queue.take(A)
    assert taken is not None
    queue.fail(taken, A, Transient("reset"))
    assert (queue.failures, queue.take(A), queue.expects_work()) == ({}, None, True)
    queue.join([B])
    queue.expect([])
    again = queue.take(B)
    assert again is not None
    queue.complete("s")
    assert queue.is_empty


def test_a_host_that_does_not_come_after_all_is_waited_for_no_more() -> None:
    queue = StepQueue([step("s"), step("t")], [A])
    queue.expect([B])
    queue.quarantine("a", "it burns")
    assert queue.failures == {}
    queue.expect([])
    assert {failure.reason for failure in queue.failures.values()} == {
        "no host is left for comfyui (a: it burns)"
    }
    assert not queue.expects_work()


def test_in_place_of_a_host_that_is_left_out_another_may_come() -> None:
    queue = StepQueue([step("s"), step("t")], [A])
    asked: list[str] = []

    def replacement(host: str) -> list[Lane]:
        asked.append(host)
        return [B]

    queue.replacement = replacement
    queue.take(A)
    queue.quarantine("a", "it burns")
    queue.quarantine("a", "it burns, another lane of it says")
    assert (asked, queue.failures, queue.take(A), queue.is_idle(A)) == (["a"], {}, None, True)
    queue.join([B])
    assert queue.take(B) is not None
