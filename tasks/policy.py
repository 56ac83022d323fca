"""When a task is tried again: as `callsheet.errors` says, in the terms that Prefect understands.

@task(**RETRIED, name="synthesize_speech")
async def synthesize_speech(...): ...

await synthesize_speech.with_options(retry_delay_seconds=delays())(...)
"""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from callsheet.errors import POLICIES, policy_of
from callsheet.timing import scaled

#: Seconds before the second, third and fourth try; Prefect adds up to half as much again at random.
DELAYS = (2.0, 8.0, 20.0)


def worth_another_try(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether the error's policy leaves a try on this lane. A plain function: Prefect ignores other callables."""
    error = state.data
    return isinstance(error, BaseException) and run.run_count <= policy_of(error).retries_here


def delays() -> list[float]:
    """The delays under the current time scale."""
    return [scaled(seconds) for seconds in DELAYS]


#: What lane and step tasks have in common: our takes are the cache, so Prefect keeps no results.
UNCACHED: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
RETRIED: dict[str, Any] = {
    **UNCACHED,
    "retries": max(policy.retries_here for policy in POLICIES.values()),
    "retry_delay_seconds": list(DELAYS),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_another_try,
}
