"""Client of ComfyUI: uploads inputs, runs a graph, brings its result home whole.

HTTP is the truth: a prompt is finished when its history says so (facts, 1.3), and one that is
neither in history nor in the queue is lost, not done. The websocket only hastens the next look.

    async with ComfyUI("http://127.0.0.1:8188", name="a10-1/comfyui") as comfy:
        image = await comfy.upload(Path("frame.png"), folder="callsheet")
        prompt_id = await comfy.claim("9f…", 0)
        output = await comfy.run(graph, output_node="50", prompt_id=prompt_id, expected_seconds=70)
        await comfy.download(output, Path("take.mp4"))
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
import uuid
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from callsheet.engines.comfyui_answers import (
    Interrupted,
    Lost,
    Output,
    fault_of,
    find_output,
    ran_seconds,
    refusal,
)
from callsheet.engines.comfyui_progress import ProgressFeed, Watch
from callsheet.engines.http import (
    ANSWER_SECONDS,
    credentials,
    open_client,
    refuse,
    text_of,
    translated_faults,
    waiting,
)
from callsheet.errors import CallsheetError, HostFault, HostLacks, Transient
from callsheet.fleet import TokenPlace
from callsheet.preflight import Signatures, check_graph, host_fault
from callsheet.timing import scaled
from callsheet.workflow import Graph, Workflow, canonical

__all__ = ["ComfyUI", "Interrupted", "Lost", "Output", "PromptState"]

#: Between two looks at the history: quick for a draft, gentle for a real clip.
FIRST_POLL_SECONDS, LAST_POLL_SECONDS = 0.05, 2.0
#: Seconds before a broken download is begun again.
DOWNLOAD_PAUSES = (1.0, 4.0)
#: A prompt may run for this long, or for this many times what is expected, counted from its start. Once
#: the host has shown how long that model really takes, a few times, the third holds, of that.
RUN_SECONDS, RUN_FACTOR, KNOWN_FACTOR = 600.0, 20.0, 6.0
KNOWN_RUNS = 3
#: A prompt whose progress stands still for this long, or this many times what is expected, hangs. Loading a
#: 14B model or a long VAE decode shows no progress either: 20 to 60 s on a good disk (facts 7.2).
STALL_SECONDS, STALL_FACTOR = 300.0, 3.0
#: Questions may fail for this long while a prompt runs, before the step's retries are used up for them.
PATIENCE_SECONDS = 120.0
#: How long a prompt may take to give way when it is interrupted: between two steps, not within a node.
GIVE_WAY_SECONDS = 180.0
#: aiohttp's limit where the server does not tell its own.
MAX_UPLOAD = 100 << 20
#: The names of prompts: attempts of a take have ids of their own, the same in every run.
_NAMESPACE = uuid.UUID("5f0c1a52-7f5e-4b53-9d5c-6d7f6c9f1e55")
#: So many failed prompts of one attempt are passed over.
_SUBMISSIONS = 50


class PromptState(StrEnum):
    """Where a prompt is: PENDING → RUNNING → SUCCEEDED | FAILED | INTERRUPTED.

    UNKNOWN to the server is one that was not submitted yet, or is lost; either way it is submitted (again).
    """

    UNKNOWN = "unknown"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class ComfyUI:
    """One ComfyUI server."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        token: SecretStr | None = None,
        token_place: TokenPlace = "header",  # noqa: S107  a place, not a token
        token_name: str = "token",  # noqa: S107  the name of a field
    ) -> None:
        self.name = name
        self._http = open_client(url, token, token_place, token_name)
        headers, params = credentials(token, token_place, token_name)
        self._feed = ProgressFeed(url, headers=headers, params=params)
        self._features: dict[str, Any] | None = None
        self._signatures: Signatures | None = None
        self._has_jobs: bool | None = None
        #: How many times as long as expected this host takes for a model, each time it was shown.
        self._slowness: dict[str, list[float]] = {}
        self._spoilt: set[str] = set()
        #: Prompts that this client sent, which alone it cancels; when each was first seen to run.
        self._sent: set[str] = set()
        self._started: dict[str, float] = {}
        self._worked: dict[str, float] = {}
        self._uploaded: dict[str, str] = {}

    async def ready(self) -> None:
        """Raises where the server is not there or something else answers. Costs it nothing."""
        with translated_faults(self.name):
            answer = await self._http.get("/system_stats")
            await refuse(self.name, answer)
            # vast.ai's proxy answers 200 with a page of its own until the application is up.
            if "X-Portal-Placeholder" in answer.headers or "devices" not in answer.text:
                raise Transient(f"{self.name}: something answers, but it is no ComfyUI yet")

    async def object_info(self) -> dict[str, Any]:
        """The signatures of all nodes that the server has, as `callsheet.preflight` reads them."""
        return await self._get("/object_info")

    async def preflight(self, graph: Graph, workflow: Workflow) -> None:
        """Looks whether the server has what the graph needs, before anything is uploaded or queued.

        Values are left to the server's own check, which is free too and knows what a custom node takes.

        Raises:
            HostLacks: a node or a model file is not there; with its pack or where to get it.
        """
        if self._signatures is None:
            self._signatures = Signatures(await self.object_info(), self.name)
        lacking = [f for f in check_graph(graph, self._signatures, workflow) if f.weight == "missing"]
        if fault := host_fault(lacking, self.name):
            raise fault

    async def upload(self, path: Path, folder: str) -> str:
        """Brings a file to the host's input folder and returns the name by which a graph loads it.

        The name is the content's hash: the same file is stored once, another one never replaces it.

        Raises:
            HostLacks: the file is larger than the server takes.
        """
        content = await asyncio.to_thread(path.read_bytes)
        limit = int((await self._known_features()).get("max_upload_size") or MAX_UPLOAD)
        if len(content) > limit:
            raise self._too_large(path, len(content), limit)
        name = hashlib.sha256(content).hexdigest()[:32] + path.suffix.lower()
        if known := self._uploaded.get(f"{folder}/{name}"):
            return known
        with translated_faults(self.name):
            answer = await self._http.post(
                "/upload/image",
                files={"image": (name, content)},
                # Not overwritten: another prompt may be reading the same file this moment.
                data={"type": "input", "subfolder": folder},
                timeout=waiting(120),
            )
            if answer.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
                raise self._too_large(path, len(content), limit)
            await refuse(self.name, answer)
        stored = self._json(answer)
        where = f"{stored['subfolder']}/{stored['name']}" if stored.get("subfolder") else str(stored["name"])
        self._uploaded[f"{folder}/{name}"] = where
        return where

    async def claim(self, key: str, attempt: int, graph: Graph | None = None) -> str:
        """The id under which an attempt of a take is submitted.

        It follows from key, attempt and graph alone, so a run that was killed finds its prompt again, whether
        it waits, runs or is done, and does not pay for it twice. The graph holds the hashes of what was uploaded:
        a prompt that was made from another narration or frame is not this one. Ids of prompts that failed
        are passed over.
        """
        made_of = hashlib.sha256(canonical(graph).encode()).hexdigest()
        for number in range(_SUBMISSIONS):
            prompt_id = str(uuid.uuid5(_NAMESPACE, f"{key}.{attempt}.{made_of}.{number}"))
            state = await self.state(prompt_id)
            if prompt_id not in self._spoilt and state not in (PromptState.FAILED, PromptState.INTERRUPTED):
                return prompt_id
        raise HostFault(f"{self.name}: {_SUBMISSIONS} prompts of one take failed")

    async def state(self, prompt_id: str) -> PromptState:
        """Where a prompt is: asked of the history, the queue, and the history again, as it may move between them."""
        if entry := await self._history(prompt_id):
            return _state_of(entry, self.name)
        if place := await self._place(prompt_id):
            return place
        entry = await self._history(prompt_id)
        return _state_of(entry, self.name) if entry else PromptState.UNKNOWN

    async def run(
        self,
        graph: Graph,
        output_node: str,
        prompt_id: str,
        expected_seconds: float,
        *,
        signature: str = "",
        owner: str = "",
    ) -> Output:
        """Runs a graph and waits for what its output node saves. A prompt that the server knows is not sent again.

        Args:
            signature: the model that it runs, by which the host's speed is remembered.
            owner: whose engine time it is (`worked`).

        Raises:
            BadInput: the graph is refused for what it asks.
            HostLacks: it is refused for a model file or a node that is not there.
            OutOfMemory, HostFault: the GPU's memory is full, or the GPU is at fault.
            BadOutput: a node failed, or the prompt ended without a result.
            Lost, Interrupted, Transient: the server has forgotten it, somebody stopped it, or it took too long.
        """
        self._feed.start()
        with self._feed.watching(prompt_id) as watch:
            try:
                if await self.state(prompt_id) is PromptState.UNKNOWN:
                    self._sent.add(prompt_id)
                    await self._submit_once(graph, prompt_id)
                entry = await self._follow(prompt_id, self._limits(expected_seconds, signature), watch)
            except asyncio.CancelledError:
                await self.abandon(prompt_id)
                raise
            except (Lost, HostFault):
                self._uploaded.clear()  # a restarted host may have lost its files too
                self._account(owner, prompt_id, None)
                raise
            except Transient:
                if prompt_id in self._spoilt:  # stopped; otherwise it runs on, and is found again
                    self._account(owner, prompt_id, None)
                raise
        self._account(owner, prompt_id, ran_seconds(entry))
        if fault := fault_of(entry, self.name):
            raise fault
        try:
            output = find_output(entry, output_node, self.name)
        except CallsheetError:
            self._spoilt.add(prompt_id)  # to be run anew, not to be found again
            raise
        if output.seconds is not None and expected_seconds > 0:
            self._slowness.setdefault(signature, []).append(output.seconds / expected_seconds)
        return output

    def _account(self, owner: str, prompt_id: str, seconds: float | None) -> None:
        """A prompt is over: notes how long it ran, by the host's clock, or else by ours."""
        started = self._started.pop(prompt_id, None)
        if seconds is None:
            seconds = time.monotonic() - started if started is not None else 0.0
        self._worked[owner] = self._worked.get(owner, 0.0) + seconds

    def worked(self, owner: str) -> float:
        """Engine seconds of all prompts of ``owner`` since this was asked last, those that failed included."""
        return self._worked.pop(owner, 0.0)

    async def abandon(self, prompt_id: str) -> None:
        """Takes a prompt that this client sent off the host, as well as it can; another's is left alone."""
        if prompt_id in self._sent:
            with contextlib.suppress(CallsheetError, TimeoutError):
                await asyncio.wait_for(self.cancel(prompt_id), scaled(ANSWER_SECONDS))

    async def download(self, output: Output, target: Path, prompt_id: str = "") -> None:
        """Brings a result home: under a temporary name, and whole.

        A download that breaks is begun again, a few times: the prompt was paid for, the bytes are not.

        Raises:
            Lost: the file is gone; ``prompt_id`` is not found again.
            Transient: it broke each time.
        """
        for pause in DOWNLOAD_PAUSES:
            try:
                return await self._download(output, target, prompt_id)
            except Lost:
                raise
            except Transient:
                await asyncio.sleep(scaled(pause))
        await self._download(output, target, prompt_id)

    async def cancel(self, prompt_id: str) -> None:
        """Takes a prompt out of the queue, or interrupts it where it is the one that runs."""
        with translated_faults(self.name):
            if await self._knows_jobs():
                await self._http.post(f"/api/jobs/{prompt_id}/cancel")
                return
            await self._http.post("/queue", json={"delete": [prompt_id]})
            # Old servers ignore the id and interrupt whatever runs: never without being sure that it is ours.
            if await self._place(prompt_id) is PromptState.RUNNING:
                await self._http.post("/interrupt", json={"prompt_id": prompt_id})

    async def free(self) -> None:
        """Asks the server to unload its models and forget its cache."""
        with translated_faults(self.name):
            answer = await self._http.post("/free", json={"unload_models": True, "free_memory": True})
            await refuse(self.name, answer)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._feed.close()
        await self._http.aclose()

    # A prompt's way ------------------------------------------------------------------------------

    async def _submit_once(self, graph: Graph, prompt_id: str) -> None:
        """Submits. Where the answer is lost, the prompt perhaps is not: asked again, it would be paid for twice."""
        try:
            await self._submit(graph, prompt_id)
        except Transient:
            if await self.state(prompt_id) is PromptState.UNKNOWN:
                raise

    async def _submit(self, graph: Graph, prompt_id: str) -> None:
        body = {"prompt": graph, "client_id": self._feed.client_id, "prompt_id": prompt_id}
        with translated_faults(self.name):
            answer = await self._http.post("/prompt", json=body)
            if answer.status_code == httpx.codes.BAD_REQUEST:
                raise refusal(self.name, self._json(answer))
            await refuse(self.name, answer)
        accepted = self._json(answer)
        if accepted.get("node_errors"):
            # A graph with several outputs is accepted when one of them is valid; the others are dropped.
            await self.cancel(prompt_id)
            raise refusal(self.name, accepted)

    async def _follow(self, prompt_id: str, limits: tuple[float, float], watch: Watch) -> dict[str, Any]:
        """The prompt's history, once it has one. The clock runs from when the prompt does."""
        limit, stall = limits
        pause, missed = FIRST_POLL_SECONDS, 0
        failing: float | None = None
        while True:
            now = time.monotonic()
            try:
                if entry := await self._history(prompt_id):
                    return entry
                place = await self._place(prompt_id)
            except Transient:
                # A clip of ten minutes is asked for hundreds of times: one 502 of a proxy is not its failure.
                failing = failing or now
                if now - failing > scaled(PATIENCE_SECONDS):
                    raise
                await watch.news(pause)
                pause = min(pause * 1.3, LAST_POLL_SECONDS)
                continue
            failing = None
            if place is PromptState.RUNNING:
                started = self._started.setdefault(prompt_id, now)
                if now - started > limit:
                    return await self._stop(prompt_id, f"ran for more than {limit:.0f} s")
                if self._feed.quiet_seconds(watch) > stall:
                    return await self._stop(prompt_id, f"made no progress for {stall:.0f} s")
            # Between the two questions it may have ended, so it is lost only when twice in neither.
            missed = 0 if place else missed + 1
            if missed >= 2:
                raise Lost(f"{self.name}: prompt {prompt_id} is lost (neither queued nor in history)")
            await watch.news(pause)
            pause = min(pause * 1.3, LAST_POLL_SECONDS)

    async def _stop(self, prompt_id: str, reason: str) -> dict[str, Any]:
        """Ends a prompt that takes too long. Returns its history where it comes to a good end meanwhile.

        Raises:
            Transient: it was stopped.
            HostFault: it does not give way.
        """
        end = time.monotonic() + scaled(GIVE_WAY_SECONDS)
        await self.cancel(prompt_id)
        while await self._place(prompt_id):
            if time.monotonic() > end:
                raise HostFault(f"{self.name}: prompt {prompt_id} {reason} and does not give way")
            await asyncio.sleep(scaled(LAST_POLL_SECONDS))
        entry = await self._history(prompt_id)
        if entry and fault_of(entry, self.name) is None:
            return entry  # it was in its last node, which cannot be interrupted
        self._spoilt.add(prompt_id)
        raise Transient(f"{self.name}: prompt {prompt_id} {reason}")

    def _limits(self, expected_seconds: float, signature: str) -> tuple[float, float]:
        """Seconds that a prompt may run, and may stand still."""
        shown = self._slowness.get(signature, [])[-10:]
        slowness = max([1.0, *shown])
        stall = max(STALL_SECONDS, STALL_FACTOR * expected_seconds * slowness)
        factor = KNOWN_FACTOR * max(shown) if len(shown) >= KNOWN_RUNS else RUN_FACTOR * slowness
        return scaled(max(RUN_SECONDS, factor * expected_seconds)), scaled(stall)

    # Questions -----------------------------------------------------------------------------------

    async def _get(self, path: str) -> dict[str, Any]:
        with translated_faults(self.name):
            answer = await self._http.get(path)
            await refuse(self.name, answer)
        return self._json(answer)

    async def _history(self, prompt_id: str) -> dict[str, Any] | None:
        entry: dict[str, Any] | None = (await self._get(f"/history/{prompt_id}")).get(prompt_id)
        return entry

    async def _place(self, prompt_id: str) -> PromptState | None:
        """Whether the prompt runs or waits; None for neither."""
        queue = await self._get("/queue")
        for name, state in (("queue_running", PromptState.RUNNING), ("queue_pending", PromptState.PENDING)):
            if any(item[1] == prompt_id for item in queue.get(name, ())):
                return state
        return None

    async def _known_features(self) -> dict[str, Any]:
        """What the server says it can do; nothing where it is too old to be asked."""
        if self._features is None:
            with translated_faults(self.name):
                answer = await self._http.get("/features")
            self._features = self._json(answer) if answer.is_success else {}
        return self._features

    async def _knows_jobs(self) -> bool:
        """Whether the server has the jobs API (newer than 0.3.64), which cancels without a race."""
        if self._has_jobs is None:
            answer = await self._http.get("/api/jobs", params={"limit": "1"})
            self._has_jobs = answer.is_success and "jobs" in answer.text
        return self._has_jobs

    async def _download(self, output: Output, target: Path, prompt_id: str) -> None:
        part = target.with_name(target.name + ".part")
        where = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
        with translated_faults(self.name):
            async with self._http.stream("GET", "/view", params=where, timeout=waiting(60)) as answer:
                if answer.status_code == httpx.codes.NOT_FOUND:
                    self._spoilt.add(prompt_id)
                    raise Lost(f"{self.name}: the result {output.filename} is not on the host any more")
                await refuse(self.name, answer)
                with part.open("wb") as file:
                    async for chunk in answer.aiter_bytes():
                        file.write(chunk)
                    size = file.tell()
        announced = answer.headers.get("content-length")
        if size == 0 or (announced is not None and int(announced) != size):
            raise Transient(f"{self.name}: {output.filename} came cut: {size} of {announced} bytes")
        part.replace(target)

    def _too_large(self, path: Path, size: int, limit: int) -> HostLacks:
        return HostLacks(
            f"{self.name}: {path.name} has {size / 2**20:.0f} MB, and the server takes {limit / 2**20:.0f} MB; "
            "start it with a larger --max-upload-size"
        )

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        if "X-Portal-Placeholder" in answer.headers:
            raise Transient(f"{self.name}: its proxy answers, the application is not up")
        try:
            content = json.loads(text_of(answer))
        except ValueError:
            raise Transient(
                f"{self.name}: answered something that is no JSON: {text_of(answer)[:80]!r}"
            ) from None
        return content if isinstance(content, dict) else {}


def _state_of(entry: dict[str, Any], name: str) -> PromptState:
    fault = fault_of(entry, name)
    if fault is None:
        return PromptState.SUCCEEDED
    return PromptState.INTERRUPTED if isinstance(fault, Interrupted) else PromptState.FAILED
