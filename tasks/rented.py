"""Rented hosts of a run: reused or ordered before its lanes begin, and given back when they are done.

    async with renting(fleet, store) as rental:
        plan.fleet = await rental.acquire(hours, probe)     # the fleet with the first hosts that answer
        host = await rental.arrival()                       # the next of those on their way
        ...                                                 # rental.tokens, rental.cost(), rental.check(host)
        await rental.give_back("its work is done")          # also at the end of the block, however it ends

Three things give a host back, each by itself: this module, the reaper (`flows.reap`), and the host's own dead-man's
switch. No two runs order at once, whichever machine they are on: a limit of the Prefect server with one slot.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from prefect import runtime
from pydantic import SecretStr

from blocks.vast import open_account
from callsheet.errors import BadInput, Budget, CallsheetError, HostFault, StoreFault, reason_of
from callsheet.fleet import Fleet, Host, Lane
from callsheet.hosts import HostBook, HostRecord, RecordedEngine, rented_host
from callsheet.limits import USERS, use_limit
from callsheet.renting import Answers, RentedHost, Renter
from callsheet.store import Store
from callsheet.timing import scaled
from callsheet.vastai import VastClient
from callsheet.vastai_answers import Instance, VastError
from callsheet.verdicts import Lacks, Never, NotYet, Suspect
from tasks.arrivals import Arrivals
from tasks.host_use import AWAY, alone_with, forget_host, server_id
from tasks.locks import POLL_SECONDS, Lease, Locks, ended_by, held
from tasks.logs import run_logger
from tasks.outfit import Outfitter, ask_agent, has_agent, touch
from tasks.readiness import Probe
from tasks.watching import tell

#: One order at a time, over all runs.
CREATE_LIMIT = "vast-create"
#: How often a run tells its hosts that it is there; they wait for `lease_minutes`, at least five.
TOUCH_SECONDS = 60.0
#: The longest that a host may take to show that it is ready, each time that it is asked.
PROBE_SECONDS = 300.0
#: How long the slot of a run that was killed keeps a host from being given back; with room.
BUSY_SECONDS = 75.0
#: A server that is busy refuses now and then: asked again for so long before others are thought to have a host.
BREATH_SECONDS = 5.0
#: How long a host that has loaded all its models may lack one: an engine looks for them anew when it is asked.
LACKS_SECONDS = 180.0
#: A server that is away for so long takes the run's hosts with it.
SERVER_SECONDS = 300.0
T = TypeVar("T")


class Stopped(Exception):
    """What a thread ends with that is told to stop."""


@dataclass
class Use:
    """A host in use by this run.

    Attributes:
        since, until: seconds of the epoch; ``until`` is None while it is in use.
        is_ours: whether this run ordered it, and pays for its boot.
    """

    record: HostRecord
    box: Instance
    since: float
    is_ours: bool
    until: float | None = None

    def cost(self, now: float, download_gb: float) -> float:
        until = self.until or now
        if self.is_ours:
            return self.record.cost(until, download_gb)
        return self.record.price.per_hour(self.record.disk_gb) * (until - self.since) / 3600


@dataclass(frozen=True)
class Work:
    """What hosts are rented for.

    Attributes:
        hours: for one host.
        max_cost: $ that the hosts may cost until they answer, in all.
        hosts: how many are wanted.
    """

    hours: float
    probe: Probe
    max_cost: float | None
    hosts: int


class Rental:
    """The hosts that a run rents, of one fleet with one account."""

    def __init__(self, fleet: Fleet, store: Store, client: VastClient, owner: str, locks: Locks) -> None:
        assert fleet.rent is not None
        self._fleet, self._rules, self._pattern = fleet, fleet.rent, fleet.hosts[0]
        self._client, self._book, self._owner = client, HostBook(store), owner
        self._outfitter = Outfitter(client, store, self._rules, self._pattern)
        self._locks = locks
        self._leases: dict[str, Lease] = {}
        self._uses: dict[str, Use] = {}
        self._ordered: set[str] = set()
        self._stale: set[str] = set()
        self._failed: dict[str, float] = {}
        self._booting: dict[str, HostRecord] = {}
        self._work = Work(0.0, Probe(None, ()), None, 0)
        self._serves = ""
        self._lacking: dict[str, float] = {}
        self._suspects: dict[str, set[str]] = {}
        self._boots = Arrivals[Host]()
        self._asked: set[concurrent.futures.Future[Any]] = set()
        self._out: set[str] = set()
        self._to_replace: set[str] = set()
        self._replacements = 0
        self._departures = Arrivals[None]()
        self._refused: list[HostRecord] = []
        self._has_passed = False
        #: Whether everything is given back because the Prefect server is gone.
        self.gives_up = False
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(2 * self._rules.max_hosts + 4, thread_name_prefix="renting")

    # What lanes ask ------------------------------------------------------------------------------

    @property
    def tokens(self) -> dict[str, SecretStr]:
        """What the engines of each host ask for, by its name."""
        return {name: self._client.token(use.record.lease) for name, use in self._uses.items()}

    @property
    def fleet(self) -> Fleet:
        """The fleet with the hosts that this run uses."""
        uses = (use for use in self._uses.values() if use.until is None)
        hosts = (self._host(use.record, use.box) for use in uses)
        return self._fleet.with_hosts(host for host in hosts if host is not None)

    def cost(self) -> dict[str, float]:
        """$ that each of this run's hosts costs so far: boot, loading and waiting included."""
        now = time.time()
        costs = {name: use.cost(now, self._rules.download_gb) for name, use in self._uses.items()}
        boots = {name: record.cost(now) for name, record in self._booting.items()}
        return self._failed | boots | costs

    async def check(self, host: str) -> None:
        """Raises HostFault where a host is being given back: whoever has its lane must leave it."""
        use = self._uses.get(host)
        if use is None:
            return
        try:
            record = await asyncio.to_thread(self._book.read, use.record.lease)
        except StoreFault:
            return  # it says nothing; a host that is gone does not answer
        if record is None or record.state != "ready":
            state = record.state if record else "gone"
            raise HostFault(
                f"{host} is given back (its record is {state}: {record.reason if record else ''})"
            )

    # Acquiring -----------------------------------------------------------------------------------

    async def acquire(self, hours: float, probe: Probe, max_cost: float | None = None) -> Fleet:
        """Reuses and orders as many hosts as so much work is worth. Returns the fleet with those that answer first.

        The others come by `arrival`. Nothing more is ordered, and nothing more waited for, once the hosts cost ``max_cost``.

        Raises:
            BadInput: one host would have more to do than it may live.
            Budget, HostFault, VastError, StoreFault: there is not one.
        """
        count = self._rules.hosts_for(hours)
        self._work = Work(hours / count, probe, max_cost, count)
        self._check_time(hours)
        self._serves = await self._in_thread(self._outfitter.serves)
        hosts = await self._reuse(count)
        missing = count - len(hosts)
        if missing:
            tell(f"rents {missing} host{'s' * (missing > 1)} of fleet {self._rules.name}", logging.INFO)
            for _ in range(missing):
                self._boots.begin(self._rent())
        faults = []
        while not hosts:
            came = await self.arrival()
            if isinstance(came, Host):
                hosts.append(came)
                continue
            faults.append(came)
            if not self._boots:
                raise faults[0]
        return self._fleet.with_hosts({host.name: host for host in hosts}.values())

    def _check_time(self, hours: float) -> None:
        rules, share = self._rules, self._work.hours
        needed = share + rules.boot_minutes / 60
        if needed > rules.max_hours:
            raise BadInput(
                f"fleet {rules.name}: about {hours:.1f} hours of work for {self._work.hosts} hosts, which go after max_hours = "
                f"{rules.max_hours:g}; expected max_hours of {math.ceil(needed)} at least, a higher max_hosts, or a shorter script; "
                "nothing was rented"
            )

    def lanes_to_come(self) -> list[Lane]:
        """The lanes of a host that is on its way, as the fleet describes it; none where none is."""
        is_coming = bool(self._boots or self._to_replace)
        return list(self._fleet.with_hosts([self._pattern]).lanes()) if is_coming else []

    async def arrival(self) -> Host | CallsheetError:
        """Waits for the next host on its way: it answers, or why it does not come. Waits forever where none is."""
        try:
            came = await self._boots.next()
        except Exception as defect:
            run_logger().exception("a host does not come")
            came = HostFault(f"a host does not come: {reason_of(defect)}")
        if isinstance(came, CallsheetError):
            tell(f"one host less: {reason_of(came)}")
        return came

    # Leaving out ---------------------------------------------------------------------------------

    def leave_out(self, host: str, hours: float) -> None:
        """A host is left out, and so much work is left. Once nobody works on it, `let_go` is to be called.

        Each host that was wanted is replaced once on average, whatever is wrong.
        """
        if host not in self._uses or host in self._out:
            return
        self._out.add(host)
        there = {name for name, use in self._uses.items() if use.until is None} - self._out
        coming = len(self._boots) + len(self._to_replace)
        if not hours or self._replacements >= self._work.hosts:
            return
        if len(there) + coming < self._rules.hosts_for(hours):
            self._replacements += 1
            self._to_replace.add(host)

    def is_left_out(self, host: str) -> bool:
        return host in self._out and self._uses[host].until is None

    def let_go(self, host: str) -> None:
        """Gives a host back that was left out, which nobody works on any more; where it is worth it another is ordered."""
        if host in self._to_replace:
            self._to_replace.discard(host)
            self._boots.begin(self._rent_instead(host))
        else:
            self._departures.begin(self._dismiss(host))

    async def _rent_instead(self, host: str) -> Host:
        await self._dismiss(host)
        tell(f"rents another host of fleet {self._rules.name} in place of {host}", logging.INFO)
        return await self._rent()

    async def _dismiss(self, host: str) -> None:
        use = self._uses[host]
        await self._leave(host)
        # Its machine is left alone for a while: what is cheapest once is cheapest again.
        await self._try_to_give_back(use.record, "it was left out of its batch", is_bad=True)
        use.until = use.until or time.time()  # another run may use it yet

    async def _reuse(self, count: int) -> list[Host]:
        hosts: list[Host] = []
        seen: set[str] = set()
        while len(hosts) < count:
            found = await self._in_thread(lambda: self._renter().reuse(seen, self._work.hours))
            if found is None:
                break
            seen.add(found.record.lease)
            if not await self._enter(found.record):
                continue
            answer = await self._ask(found)
            if answer is True:
                hosts.append(self._use(found, is_ours=False))
                tell(f"uses host {found.record.host_name} again", logging.INFO)
            else:
                await self._leave(found.record.host_name)
                self._refused.append(found.record)
                tell(f"host {found.record.host_name} is rented and not used: {answer}")
        return hosts

    async def _enter(self, record: HostRecord) -> bool:
        """Is one of those who use a host, so that nobody gives it back; False where somebody does just now."""
        while True:
            lease = await self._locks.take_now(use_limit(record.host_name), of=USERS)
            if lease is not None:
                self._leases[record.host_name] = lease
            kept = await asyncio.to_thread(self._book.read, record.lease)
            if kept is None or kept.is_over:
                await self._leave(record.host_name)
                return False
            if lease is not None:
                return True
            # The server is away, or somebody thinks of giving it back.
            await asyncio.sleep(scaled(POLL_SECONDS))

    async def _leave(self, host: str) -> None:
        lease = self._leases.pop(host, None)
        if lease is not None and not await self._locks.release(lease):
            self._stale.add(host)  # the server still counts it, for a minute at most

    def _answers(self) -> Answers:
        """What a thread that boots a host asks; this run's loop answers."""
        loop = asyncio.get_running_loop()

        def answers(record: HostRecord, box: Any) -> bool | str:
            asked = asyncio.run_coroutine_threadsafe(self._ask(RentedHost(record, box)), loop)
            self._asked.add(asked)
            try:
                return asked.result(timeout=PROBE_SECONDS)
            except TimeoutError:
                asked.cancel()
                return NotYet(f"it did not answer its probe within {PROBE_SECONDS:.0f} s")
            except concurrent.futures.CancelledError:
                raise Stopped from None
            finally:
                self._asked.discard(asked)

        return answers

    async def _rent(self) -> Host:
        """One host that answers; as many offers are tried as the rules say."""
        answers = self._answers()
        tried = []
        for _ in range(self._rules.attempts):
            record = await self._order()
            tell(f"host {record.host_name} is ordered; waits until it answers", logging.INFO)
            is_ours = record.owner == self._owner
            if is_ours:
                self._booting[record.host_name] = record
            try:
                if not await self._enter(record):
                    raise HostFault(f"host {record.host_name}: another run gives it back")
                host = await self._in_thread(lambda record=record: self._renter().boot(record, answers))  # type: ignore[misc]
            except HostFault as fault:
                await self._leave(record.host_name)
                tried.append(str(fault))
                tell(f"{fault}; takes another offer")
            except CallsheetError as fault:
                await self._leave(record.host_name)
                if is_ours:
                    await self._try_to_give_back(record, reason_of(fault))
                raise
            else:
                self._booting.pop(record.host_name, None)
                return self._use(host, is_ours=is_ours)
            finally:
                if booted := self._booting.pop(record.host_name, None):
                    self._failed[record.host_name] = booted.cost(time.time())
        raise HostFault(f"no host of fleet {self._rules.name} came up: {'; '.join(tried)}")

    async def _order(self) -> HostRecord:
        """Orders a host. Where a cap is reached, hosts that are kept and of no use to this run make room.

        Raises:
            HostFault: the Prefect server does not answer, or what `Renter.order` raises.
        """
        hours = self._work.hours
        try:
            async with held(CREATE_LIMIT, "another run rents a host; waits for it", fenced=False):
                self._check_cost()
                try:
                    record = await self._in_thread(lambda: self._renter().order(hours, self._ordered))
                except Budget:
                    if not await self._make_room():
                        raise
                    record = await self._in_thread(lambda: self._renter().order(hours, self._ordered))
                self._ordered.add(record.lease)
                return record
        except AWAY as error:
            raise HostFault(
                f"no host is ordered: the Prefect server does not answer: {reason_of(error)}"
            ) from error

    async def _make_room(self) -> bool:
        """Gives back hosts that nobody uses and this run cannot. Returns whether there was one."""
        unfit = await self._in_thread(lambda: self._renter().unfit(self._work.hours))
        used = {use.record.lease for use in self._uses.values()}
        reason = "it was made with something else, is near its end or not well, and another is needed"
        useless = [record for record in (*unfit, *self._refused) if record.lease not in used]
        self._refused.clear()
        return any([await self._try_to_give_back(record, reason) for record in useless])

    def _check_cost(self) -> None:
        """Raises Budget where the hosts cost by now what the batch may cost in all."""
        spent, most = sum(self.cost().values()), self._work.max_cost
        if most is not None and spent >= most:
            raise Budget(
                f"the hosts of fleet {self._rules.name} cost ${spent:.2f}, and the cap is ${most:.2f}"
            )

    async def _ask(self, found: RentedHost) -> bool | str:
        self._check_cost()
        host = self._host(found.record, found.box)
        if host is None:
            return False
        token = self._client.token(found.record.lease)
        loaded = await ask_agent(found.box, token)
        await touch(found.box, token)  # its boot may take longer than its lease
        if loaded is not True:
            return self._judged(found, loaded, "agent")
        return self._judged(found, await self._work.probe.ask(host, token), "probe")

    def _judged(self, found: RentedHost, answer: bool | str, asked: str) -> bool | str:
        """What a host answered, in the light of what it and others have: a fault that follows us is ours.

        Where one host has what is asked for and does it, others that do not are at fault themselves.
        """
        if answer is True:
            self._has_passed = True
        if self._has_passed and isinstance(answer, str):
            return NotYet(answer) if isinstance(answer, NotYet) else str(answer)
        if isinstance(answer, Lacks) and has_agent(found.box):
            # All its models are loaded: what it lacks now it is not going to get.
            since = self._lacking.setdefault(found.record.lease, time.time())
            return Never(answer) if time.time() - since > scaled(LACKS_SECONDS) else answer
        if isinstance(answer, Suspect):
            suspects = self._suspects.setdefault(asked, set())
            suspects.add(found.record.lease)
            return Never(f"{answer}; another host failed likewise") if len(suspects) > 1 else answer
        return answer

    def _host(self, record: HostRecord, box: Instance) -> Host | None:
        return rented_host(self._pattern, record, box, self._rules.proxy)

    def _use(self, found: RentedHost, *, is_ours: bool) -> Host:
        host = self._host(found.record, found.box)
        assert host is not None
        self._uses.setdefault(host.name, Use(found.record, found.box, time.time(), is_ours))
        return host

    async def keep_alive(self) -> None:
        """Tells this run's hosts and the server that it is there, until it is cancelled: else they would think that it died."""
        while True:
            await asyncio.sleep(scaled(TOUCH_SECONDS))
            uses = [use for use in self._uses.values() if use.until is None]
            await asyncio.gather(*(touch(use.box, self._client.token(use.record.lease)) for use in uses))
            for host, lease in list(self._leases.items()):
                # A server that was restarted may have forgotten it.
                if lease.lost and (again := await self._locks.take_now(use_limit(host), of=USERS)):
                    self._leases[host] = again

    def _renter(self) -> Renter:
        log, stop = run_logger(), self._stop

        def sleep(seconds: float) -> None:
            if stop.wait(seconds):
                raise Stopped

        return Renter(
            self._client,
            self._book,
            self._rules,
            engines=tuple(
                RecordedEngine(name=engine.name, kind=engine.kind, port=engine.port, slots=engine.slots)
                for engine in self._pattern.engines
            ),
            serves=self._serves,
            outfit=self._outfitter.outfit,
            more_ports=self._outfitter.ports,
            owner=self._owner,
            server=server_id(),
            sleep=sleep,
            warn=lambda text: log.warning("%s", text),
        )

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Does a call that blocks; where this is cancelled it is told to stop, and waited for: it may hold a box."""
        # Threads of its own: a boot holds one for its whole length, and the probe that it waits for needs others.
        context = contextvars.copy_context()
        work = asyncio.get_running_loop().run_in_executor(self._threads, context.run, call)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stop.set()
            for asked in list(self._asked):
                asked.cancel()
            while not work.done():  # whoever is impatient and cancels again would leave it alone with a box
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({work})
            if not work.cancelled():
                work.exception()
            raise

    # Giving back ---------------------------------------------------------------------------------

    async def give_back(
        self, reason: str, *, keep: bool = False, seconds: float = 0.0, server_is_gone: bool = False
    ) -> None:
        """Gives back every host of this run that no other run uses.

        Args:
            keep: whether hosts that are ready are kept for the next run, where the rules keep them.
            seconds: how long others, who may be dead, are waited for.
            server_is_gone: whether the Prefect server has been away for so long that every run gives up.
        """
        await self._stop_boots()
        if not server_is_gone and await self._locks.is_there():
            for host in list(self._leases):
                await self._leave(host)
        keep = keep and self._rules.keep_minutes > 0
        # What others left is waited for by nobody.
        others = not (server_is_gone or seconds)
        for record in await self._to_give_back(keep=keep, others=others):
            await self._try_to_give_back(record, reason, seconds, server_is_gone=server_is_gone)

    async def _stop_boots(self) -> None:
        """Waits for no host any more that is on its way; those that were ordered are given back with the others."""
        await self._boots.cancel()
        await self._departures.ended()
        self._to_replace.clear()
        # A new one: what was told to stop and has not yet is told so still.
        self._stop = threading.Event()

    async def _to_give_back(self, *, keep: bool, others: bool) -> list[HostRecord]:
        now = time.time()
        used = {use.record.lease: use.record for use in self._uses.values() if use.until is None}
        for use in self._uses.values():
            use.until = use.until or now
        account: int | None = None
        try:
            records = (await asyncio.to_thread(self._book.hosts)).records
            account = await asyncio.to_thread(self._client.account)
        except VastError as fault:
            tell(f"whose hosts others left is not known: {reason_of(fault)}")
        except StoreFault as fault:
            tell(f"the records of hosts are not known: {reason_of(fault)}")
            records = used

        def is_left(record: HostRecord) -> bool:
            """Whether nobody keeps it: its run left it to another, which may be dead."""
            is_ours = record.fleet == self._rules.name and record.account == account
            is_known = others and record.server == server_id()
            return is_ours and is_known and record.state == "ready" and not record.keep_seconds

        mine = [
            record
            for record in records.values()
            if record.state != "ended"
            and (record.lease in used or record.owner == self._owner or is_left(record))
        ]
        # What is left out of a batch is kept for nobody.
        kept = {record.lease for record in mine if keep and record.state == "ready"}
        return [record for record in mine if record.lease not in kept or record.host_name in self._out]

    async def _try_to_give_back(
        self,
        record: HostRecord,
        reason: str,
        seconds: float = 0.0,
        *,
        server_is_gone: bool = False,
        is_bad: bool = False,
    ) -> bool:
        """Gives a host back, where no other run uses it. Returns whether it is gone; the reaper sees to it where not."""
        try:
            return await self._give_back(
                record, reason, seconds, server_is_gone=server_is_gone, is_bad=is_bad
            )
        except CallsheetError as fault:
            tell(f"host {record.host_name} is left to the reaper: {reason_of(fault)}")
            return False

    async def _give_back(
        self, record: HostRecord, reason: str, seconds: float, *, server_is_gone: bool, is_bad: bool
    ) -> bool:
        patience = BUSY_SECONDS if record.host_name in self._stale else max(seconds, BREATH_SECONDS)
        alone = alone_with(record.host_name, self._locks, patience)
        async with contextlib.nullcontext(True) if server_is_gone else alone as is_ours:
            if not is_ours:
                tell(f"host {record.host_name} is used by another run, which gives it back", logging.INFO)
                return False
            await self._in_thread(lambda: self._renter().give_back(record, reason, failed_boot=is_bad))
        if use := self._uses.get(record.host_name):
            use.until = time.time()
        tell(f"host {record.host_name} is given back: {reason}", logging.INFO)
        await asyncio.to_thread(self._outfitter.forget, record.lease)
        await forget_host(record.host_name)
        return True


@asynccontextmanager
async def renting(fleet: Fleet, store: Store) -> AsyncIterator[Rental]:
    """A rental for as long as the block lasts; what it ordered is given back however the block ends.

    Raises:
        BadInput: there is no account.
    """
    client = await open_account(fleet.account)
    async with Locks({}) as locks:
        rental = Rental(fleet, store, client, str(runtime.flow_run.id or ""), locks)
        is_lost = asyncio.Event()
        watch = asyncio.create_task(_watch(rental, locks, is_lost))
        touches = asyncio.create_task(rental.keep_alive())
        try:
            async with ended_by(is_lost):
                yield rental
        except (asyncio.CancelledError, Exception) as error:
            if rental.gives_up:
                await asyncio.wait({watch})  # which is giving everything back
            reason = (
                "the Prefect server is gone" if is_lost.is_set() else f"its run ended: {type(error).__name__}"
            )
            await rental.give_back(reason, keep=not isinstance(error, Budget) and not is_lost.is_set())
            if is_lost.is_set() and isinstance(error, asyncio.CancelledError):
                raise HostFault(
                    f"the Prefect server did not answer for {scaled(SERVER_SECONDS):.0f} s; the rented hosts are given back, "
                    "what is done is kept: run it again"
                ) from None
            raise
        else:
            await rental.give_back("its run is done", keep=True)
        finally:
            watch.cancel()
            touches.cancel()


async def _watch(rental: Rental, locks: Locks, is_lost: asyncio.Event) -> None:
    """When the server has not answered for long, gives the hosts back and sets the event: nothing goes on without it.

    In this order, because the run's own end takes minutes then: whatever Prefect's client does is tried again and again.
    """
    answered = time.monotonic()
    while True:
        await asyncio.sleep(scaled(SERVER_SECONDS) / 10)
        if await locks.is_there():
            answered = time.monotonic()
        elif time.monotonic() - answered > scaled(SERVER_SECONDS):
            rental.gives_up = True
            await rental.give_back("the Prefect server is gone", server_is_gone=True)
            is_lost.set()
            return


async def hosts_now(fleet: Fleet, store: Store) -> tuple[Fleet, dict[str, SecretStr]]:
    """The fleet with the hosts of it that are rented and ready, and their tokens; nothing is rented or changed."""
    client = await open_account(fleet.account)
    records = (await asyncio.to_thread(HostBook(store).hosts)).records.values()
    boxes = {box.id: box for box in await asyncio.to_thread(client.instances)}
    hosts: dict[str, Host] = {}
    tokens: dict[str, SecretStr] = {}
    for record in records:
        box = boxes.get(record.instance or 0)
        if record.state != "ready" or box is None or fleet.rent is None or record.fleet != fleet.rent.name:
            continue
        if host := rented_host(fleet.hosts[0], record, box, fleet.rent.proxy):
            hosts[host.name], tokens[host.name] = host, client.token(record.lease)
    return fleet.with_hosts(hosts.values()), tokens


async def give_back_of(owner: str, fleet: Fleet, store: Store, reason: str) -> None:
    """Gives back what a run ordered that cannot do it itself any more."""
    client = await open_account(fleet.account)
    async with Locks({}) as locks:
        await Rental(fleet, store, client, owner, locks).give_back(reason, seconds=BUSY_SECONDS)
