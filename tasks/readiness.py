"""Is a host ready for a plan? Not when it runs, but when its engines list what the plan needs and do a little work.

probe = Probe.of(plan, missing)
await probe.ask(host, token)         # True; or why not yet (`NotYet`); or why it never will be
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import SecretStr

from callsheet.canary import listen
from callsheet.engines.comfyui import ComfyUI
from callsheet.engines.speech import CosyVoice
from callsheet.errors import BadInput, CallsheetError, HostFault, HostLacks, reason_of
from callsheet.fleet import Fleet, Host
from callsheet.media.audio import read_sound
from callsheet.media.speech import profile_of
from callsheet.plan import PictureInputs, Plan, SpeechInputs, Step
from callsheet.verdicts import Lacks, Never, NotYet, Suspect
from callsheet.voices import Voice
from callsheet.workflow import Graph, Value, Workflow
from tasks.hosts import open_hosts
from tasks.memory import Client

#: What a ComfyUI is tried with: it needs no model, and goes through queue, execution and output all the same.
CANARY_GRAPH: Graph = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "callsheet/canary"}},
}
_CANARY_SECONDS = 10.0
#: Engines are stochastic: one bad sentence is bad luck, three are a bad host.
_TRIES = 3


@dataclass(frozen=True)
class Probe:
    """What a host is asked before work is given to it.

    Attributes:
        voice: who says the sentence that each speech engine is tried with; None where the plan has no speech.
        graphs: a graph of each workflow that the plan uses.
    """

    voice: Voice | None
    graphs: tuple[tuple[Graph, Workflow], ...]

    @classmethod
    def of(cls, plan: Plan, keys: Iterable[str]) -> Probe:
        """What these steps of the plan need."""
        voice: Voice | None = None
        graphs: dict[str, tuple[Graph, Workflow]] = {}
        for key in keys:
            step = plan.steps[key]
            if isinstance(step.inputs, SpeechInputs):
                voice = voice or step.inputs.voice
            elif isinstance(step.inputs, PictureInputs) and step.inputs.workflow.name not in graphs:
                graphs[step.inputs.workflow.name] = _graph(step, step.inputs), step.inputs.workflow
        return cls(voice, tuple(graphs.values()))

    async def ask(self, host: Host, token: SecretStr | None) -> bool | str:
        """True where every engine of the host is ready; else one of `callsheet.verdicts`."""
        fleet = Fleet(provider="static", hosts=(host,))
        tokens = {host.name: token} if token else {}
        try:
            async with open_hosts(fleet, list(fleet.lanes()), tokens) as clients:
                for name, client in clients.items():
                    if why := await self._try(name, client):
                        return why
        except HostLacks as error:
            # Models are loaded while the engines run already.
            return Lacks(reason_of(error))
        except BadInput as error:
            return Never(reason_of(error))
        except HostFault as error:
            return reason_of(error)
        except CallsheetError as error:
            return NotYet(reason_of(error))
        return True

    async def _try(self, name: str, client: Client) -> str:
        """Empty where the engine is ready; why it never will be. Raises where it is not yet."""
        await client.ready()
        if isinstance(client, ComfyUI):
            for graph, workflow in self.graphs:
                await client.preflight(graph, workflow)
            prompt = str(uuid.uuid4())
            await client.run(CANARY_GRAPH, "2", prompt, _CANARY_SECONDS, signature="canary")
            return ""
        return await self._hear(name, client) if self.voice is not None else ""

    async def _hear(self, name: str, client: CosyVoice) -> str:
        assert self.voice is not None
        recording = await asyncio.to_thread(read_sound, self.voice.prompt_audio.path)
        profile = profile_of(recording, self.voice.transcript)
        for _ in range(_TRIES):
            heard = await listen(client, self.voice, profile)
            if not heard.faults:
                return ""
        return Suspect(f"{name}: its canary failed {_TRIES} times: {'; '.join(heard.faults)}")


def _graph(step: Step, inputs: PictureInputs) -> Graph:
    """The graph of a step without its files: which nodes and models it needs does not depend on them."""
    values: Mapping[str, Value] = {
        **inputs.values,
        "SEED": step.requested_seed or 0,
        "FILENAME_PREFIX": "callsheet",
        **({"IMAGE": "first.png"} if inputs.image is not None else {}),
        **({"AUDIO": "narration.wav"} if inputs.audio is not None else {}),
    }
    return inputs.workflow.render(values, 1)
