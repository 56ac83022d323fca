"""What a rented box runs when it starts: its settings, and ``deployments/hosts/onstart.sh`` behind them.

    setup = HostSetup(ends=label.ends, lease_seconds=1800, token=SecretStr("…"), start="entrypoint.sh",
                      queues=("http://127.0.0.1:18188/queue",), touch_port=8790)
    Order(…, onstart=onstart_of(setup))
    store.put("hosts/agent.py", agent_content())          # where agent_url leads, if it is given

The script is what gives the box back where nobody else does; what it does in which order is told at its top. vast.ai takes
4,096 characters, so comments and indentation stay behind. The agent is too long for that: the script fetches it.
"""

from __future__ import annotations

import hashlib
import math
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from callsheet.errors import BadInput
from callsheet.vastai import SERVER
from callsheet.vastai_answers import ONSTART_CHARACTERS

_FOLDER = Path(__file__).parent.parent / "deployments/hosts"
#: Some of them stand in quotes of curl's own, which knows these as its escapes.
_ADDRESS = re.compile(r"""https?://[^\s"'\\]+""")


@dataclass(frozen=True)
class HostSetup:
    """What a box is told.

    Attributes:
        ends: when it gives itself back, whatever it does, in seconds of the epoch. No later start changes that to later.
        lease_seconds: it gives itself back, too, when its lease was not renewed for so long and no queue has work.
        token: who asks its agent must know it.
        start: command line that starts the engines; none where it is empty.
        queues: addresses inside the box that answer as ComfyUI's ``/queue`` does; work in one renews the lease.
        agent_url: where `agent_content` lies; signed, where it is not public. Empty: the box has no agent.
        agent_sha256: of what lies there; `agent_sha256` where it is ours.
        models_url: the manifest of the models, which the agent loads; signed. Empty: none.
        models_root: folder that the paths of the manifest are below.
        touch_port: port in the container where the agent listens; 0 for none.
        vast_url: the server that is asked to destroy the box.

    Raises:
        BadInput: with it, a box would not give itself back, or would not load what it should.
    """

    ends: float
    lease_seconds: float
    token: SecretStr
    start: str
    queues: tuple[str, ...]
    agent_url: str = field(default="", repr=False)
    agent_sha256: str = ""
    models_url: str = field(default="", repr=False)
    models_root: str = ""
    touch_port: int = 0
    vast_url: str = SERVER

    def __post_init__(self) -> None:
        for name, value in (("ends", self.ends), ("lease_seconds", self.lease_seconds)):
            _check(math.isfinite(value) and value >= 1, name, f"{value:g}", "seconds, 1 or more")
        for url in self.queues:
            _check(_is_address(url), "queues", f'"{url}"', "http addresses")
        # These are not shown: who reads a signed address can use it.
        for name, url in (("agent_url", self.agent_url), ("models_url", self.models_url)):
            _check(not url or _is_address(url), name, "another", "an http address or nothing")
        _check(_is_address(self.vast_url), "vast_url", f'"{self.vast_url}"', "an http address")
        _check(0 <= self.touch_port < 65536, "touch_port", str(self.touch_port), "0 to 65535")
        self._check_agent()

    def _check_agent(self) -> None:
        """Raises BadInput where the agent could not do what it is told."""
        hashed = re.fullmatch(r"[0-9a-f]{64}", self.agent_sha256)
        _check(
            not self.agent_url or bool(hashed),
            "agent_sha256",
            f'"{self.agent_sha256}"',
            "64 digits from 0 to f, with an agent_url",
        )
        for name, needs in (("models_url", self.models_url), ("touch_port", self.touch_port)):
            _check(bool(self.agent_url) or not needs, "agent_url", "none", f"one, with a {name}")
        _check(
            not self.models_url or self.models_root.startswith("/"),
            "models_root",
            f'"{self.models_root}"',
            "a folder from / on, with a models_url",
        )
        printable = re.fullmatch(r"[!-~]+", self.token.get_secret_value())
        _check(
            not self.touch_port or bool(printable),
            "token",
            "another",
            "printable ASCII without blanks, with a touch_port",
        )


def _is_address(url: str) -> bool:
    return _ADDRESS.fullmatch(url) is not None


def _check(is_right: bool, name: str, found: str, expected: str) -> None:
    if not is_right:
        raise BadInput(f"a host's setup, {name}: found {found}; expected {expected}")


def onstart_of(setup: HostSetup) -> str:
    """The onstart of a box: a shell script of its settings and what is done with them. It holds secrets.

    Raises:
        BadInput: it is longer than vast.ai takes.
    """
    settings = {
        # Whole seconds, and not later than it was said.
        "CALLSHEET_ENDS": str(math.floor(setup.ends)),
        "CALLSHEET_LEASE_SECONDS": str(math.floor(setup.lease_seconds)),
        "CALLSHEET_TOKEN": setup.token.get_secret_value(),
        "CALLSHEET_START": setup.start,
        "CALLSHEET_QUEUES": " ".join(setup.queues),
        "CALLSHEET_AGENT_URL": setup.agent_url,
        "CALLSHEET_AGENT_SHA256": setup.agent_sha256,
        "CALLSHEET_MODELS_URL": setup.models_url,
        "CALLSHEET_MODELS_ROOT": setup.models_root,
        "CALLSHEET_TOUCH_PORT": str(setup.touch_port or ""),
        "VAST_URL": "" if setup.vast_url == SERVER else setup.vast_url.rstrip("/"),
    }
    header = [f"export {name}={shlex.quote(value)}" for name, value in settings.items() if value]
    shebang, *script = (_FOLDER / "onstart.sh").read_text("utf-8").splitlines()
    lines = (line.strip() for line in script)
    text = (
        "\n".join([shebang, *header, *(line for line in lines if line and not line.startswith("#"))]) + "\n"
    )
    if len(text) > ONSTART_CHARACTERS:
        raise BadInput(
            f"a host's setup: its onstart script has {len(text):,} characters, {sum(map(len, header)):,} of them settings; "
            f"vast.ai takes {ONSTART_CHARACTERS:,}"
        )
    return text


def agent_content() -> bytes:
    """The agent, for the place where ``agent_url`` leads."""
    return (_FOLDER / "agent.py").read_bytes()


def agent_sha256() -> str:
    """The sha256 of `agent_content`, as ``HostSetup.agent_sha256`` has it."""
    return hashlib.sha256(agent_content()).hexdigest()
