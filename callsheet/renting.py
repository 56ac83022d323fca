"""Renting: which offer, under which caps, and from an order to a box that answers, without ever losing sight of one.

    renter = Renter(client, HostBook(store), rules)
    host = renter.reuse() or renter.rent(hours=2.5, answers=answers)      # a record in state "ready", and its box
    host = renter.boot(renter.order(hours=2.5), answers)                  # the same in two steps: one order at a time

What is written down comes first: a record before the create, its id after it. So whoever dies in between leaves a record
that the next one, or the reaper, puts right. A create without a clear answer is looked for by its label, and no other is
sent before it is known what became of it. A box that does not answer in time is destroyed, its machine is not taken again,
and the next offer is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from callsheet.errors import BadInput, Budget, HostFault, StoreFault
from callsheet.hiding import without
from callsheet.hosts import HostBook, HostLabel, HostRecord, Hosts, HostState, RecordedEngine
from callsheet.rent_rules import RentRules
from callsheet.timing import scaled
from callsheet.vastai import VastClient
from callsheet.vastai_answers import Ambiguous, Instance, Offer, OfferGone, Order, VastError, redacted
from callsheet.verdicts import Lacks, Never, NotYet, why_never

#: How often a box that boots is looked at, and one that may have been made.
LOOK_SECONDS = 10.0
SEARCH_SECONDS = 15.0
#: How long a box may be in no list after its create: a create without an answer is not over before.
UNSEEN_SECONDS = 300.0
#: How long a box may take to go after it was told to, and how often that is looked at.
GONE_SECONDS = 180.0
GOING_SECONDS = 3.0
#: How long a machine on which a box did not come up is left alone.
BAD_SECONDS = 24 * 3600.0
#: Whoever waits for a box to answer says so this often; else another takes it up.
CLAIM_SECONDS = 300.0


@dataclass(frozen=True)
class Outfit:
    """What a box is given when it is made (`Order`)."""

    env: Mapping[str, str] = field(default_factory=dict)
    onstart: str = ""


@dataclass(frozen=True)
class RentedHost:
    """A host that answers: what is written down of it, and the box."""

    record: HostRecord
    box: Instance


#: Whether a box answers as it should: it does (True); not yet (False, or why); or why it never will (`callsheet.verdicts`).
Answers = Callable[[HostRecord, Instance], bool | str]


class Renter:
    """Rents hosts of one fleet. One order at a time: whoever calls it sees to that."""

    def __init__(
        self,
        client: VastClient,
        book: HostBook,
        rules: RentRules,
        *,
        engines: tuple[RecordedEngine, ...] = (),
        serves: str = "",
        outfit: Callable[[HostLabel], Outfit] = lambda label: Outfit(),
        more_ports: tuple[int, ...] = (),
        owner: str = "",
        server: str = "",
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """``more_ports`` are reached from outside besides those of its ``engines``; ``owner`` is who orders.

        Hosts are shared with those alone who have the same ``server``, and want hosts made with the same: ``serves`` is
        its hash.
        """
        self._client, self._book, self._rules = client, book, rules
        self._engines, self._outfit, self._owner, self._serves = engines, outfit, owner, serves
        self._server = server
        self._ports = (*(engine.port for engine in engines), *more_ports)
        self._now, self._sleep, self._warn = now, sleep, warn
        self._known_account: int | None = None

    @property
    def _account(self) -> int:
        if self._known_account is None:
            self._known_account = self._client.account()
        return self._known_account

    def reuse(self, but: Collection[str] = (), hours: float = 0.0) -> RentedHost | None:
        """A host of the fleet that answers and will for so many hours, one at least, but for the leases ``but``."""
        boxes = {box.id: box for box in self._client.instances()}
        for record in self._own():
            box = boxes.get(record.instance or 0)
            if (
                record.state == "ready"
                and record.lease not in but
                and self._is_fit(record, hours)
                and box
                and box.status == "running"
            ):
                return RentedHost(record, box)
        return None

    def _is_fit(self, record: HostRecord, hours: float = 0.0) -> bool:
        """Whether a host is one that could have been ordered for so much work now."""
        least = max(hours, min(1.0, self._rules.max_hours / 2))
        return record.ends - self._now() > 3600 * least and self._is_like_ours(record)

    def _is_like_ours(self, record: HostRecord) -> bool:
        return (record.server, record.serves) == (self._server, self._serves)

    def unfit(self, hours: float) -> list[HostRecord]:
        """Hosts that answer and are of no use for so much work: made with something else, or near their end.

        Those of another server are not among them: who uses them is not known here.
        """
        return [
            r
            for r in self._own()
            if r.state == "ready" and r.server == self._server and not self._is_fit(r, hours)
        ]

    def rent(self, hours: float, answers: Answers) -> RentedHost:
        """A new host that answers, for so many hours of work: orders and boots until one does.

        Raises:
            HostFault: no offer came to anything.
            And what `order` and `boot` raise.
        """
        tried: list[str] = []
        for _ in range(self._rules.attempts):
            try:
                return self.boot(self.order(hours), answers)
            except HostFault as fault:
                tried.append(str(fault))
                self._warn(f"{fault}; takes another offer")
        raise HostFault(f"no host of fleet {self._rules.name} came up: {'; '.join(tried)}")

    def order(self, hours: float, but: Collection[str] = ()) -> HostRecord:
        """Orders a host for so many hours of work, or finds one that boots and that nobody waits for any more.

        Where a cap is reached, one that somebody else waits for does for both. ``but`` are leases that are not meant.

        Raises:
            Budget: a cap is reached, or the account's credit.
            HostFault: there is no offer, or others take them all.
            VastError: vast.ai refuses, or what became of a create cannot be found out.
            StoreFault: a record cannot be read or written: then it is not known how many hosts there are.
        """
        for _ in range(self._rules.attempts):
            booting = [record for record in self.put_right() if record.lease not in but]
            orphans = [
                record
                for record in booting
                if record.booting_until < self._now() and record.serves == self._serves
            ]
            if orphans:
                return orphans[0]
            try:
                record = self._order(hours)
            except Budget:
                shared = [record for record in booting if self._is_like_ours(record)]
                if shared:
                    return shared[0]
                raise
            if record is not None:
                return record
        raise HostFault(f"fleet {self._rules.name}: others took every offer that was tried")

    def give_back(self, record: HostRecord, reason: str, *, failed_boot: bool = False) -> None:
        """Destroys a host and waits until it is gone, whatever the store says. The reaper does it where this cannot.

        Raises:
            VastError: it was not taken on, or the box is still there.
        """
        changes = {"state": "draining", "reason": reason, "failed_boot": failed_boot}
        self._try_change(record, ("creating", "booting", "ready"), **changes)
        self._destroy(record)
        self._try_change(record, ("draining",), state="ended")

    def _destroy(self, record: HostRecord) -> None:
        """Destroys the boxes of a lease until no whole list has them, and none can show itself any more.

        One whose id is known is told to go before any list is believed: a list that lies costs hours else.
        """
        ids = {record.instance}
        with suppress(StoreFault):
            ids |= {getattr(self._book.read(record.lease), "instance", None)}
        known, told = {identity for identity in ids if identity is not None}, set[int]()
        seen = record.ready_at is not None
        shown = record.made + UNSEEN_SECONDS
        until = max(self._now(), shown) + GONE_SECONDS
        while True:
            there = {
                box.id for box in self._client.instances() if box.label == record.label or box.id in known
            }
            seen = seen or bool(there)
            known |= there
            if not there and known <= told and (seen or self._now() > shown):
                return
            if self._now() >= until:
                raise VastError(f"host {record.lease}: it was told to go and is still there")
            # Asked for again and again: one that no list shows yet is not known to its destroy either.
            for identity in known:
                self._client.destroy(identity)
            told |= known
            self._sleep(scaled(GOING_SECONDS))

    def _try_change(self, record: HostRecord, states: tuple[HostState, ...], **changes: object) -> None:
        """Changes a record; a store that cannot do it holds up no destroy."""
        try:
            self._book.change(record.lease, states, **changes)
        except StoreFault as fault:
            self._warn(f"host {record.lease}: {fault}")

    # From an order to a box ----------------------------------------------------------------------

    def put_right(self) -> list[HostRecord]:
        """Finds out what became of creates whose outcome is not known, before anything else is created.

        Returns:
            The hosts that boot.
        """
        booting = []
        for record in self._all_own():
            if record.state == "draining":
                self.give_back(record, record.reason, failed_boot=record.failed_boot)
            found = self._find(record) if record.state == "creating" else record
            if found is not None and found.state == "booting" and not found.is_missing(self._now()):
                booting.append(found)
        return booting

    def _find(self, record: HostRecord) -> HostRecord | None:
        """The record with the box that its create made; None where it made none: it is over then."""
        while True:
            found = [box for box in self._client.instances() if box.label == record.label]
            if found:
                for box in found[1:]:
                    self._client.destroy(box.id)
                return self._change(record, "creating", state="booting", instance=found[0].id)
            if self._now() - record.made > UNSEEN_SECONDS:
                # Where there is one after all, it goes as soon as a sweep sees it.
                self._change(record, "creating", state="ended", reason="it was never made")
                return None
            self._sleep(scaled(SEARCH_SECONDS))

    def _order(self, hours: float) -> HostRecord | None:
        """Orders the best offer; None where it is gone. The record has the box's id."""
        self._check_caps()
        offer = self._best(hours)
        now, rules = self._now(), self._rules
        label = HostLabel.new(rules.name, self._book.id(), now, rules.max_hours * 3600)
        outfit = self._outfit(label)
        order = Order(
            label=str(label),
            disk_gb=rules.disk_gb,
            image=rules.image,
            template=rules.template,
            env=outfit.env,
            ports=self._ports,
            onstart=outfit.onstart,
        )
        record = HostRecord(
            lease=label.lease,
            label=str(label),
            fleet=rules.name,
            account=self._account,
            price=offer.price,
            disk_gb=rules.disk_gb,
            made=label.made,
            ends=label.ends,
            deadline=now + rules.boot_minutes * 60,
            max_per_hour=rules.max_per_hour,
            owner=self._owner,
            server=self._server,
            engines=self._engines,
            serves=self._serves,
            keep_seconds=rules.keep_minutes * 60,
            booting_until=now + CLAIM_SECONDS,
            offer=offer.id,
            machine=offer.machine_id,
        )
        self._book.write(record)
        try:
            created = self._client.create(offer, order)
        except Ambiguous as fault:
            self._warn(f"{fault}; looks for its label")
            return self._unclear(record, fault)
        except VastError as fault:
            self._change(record, "creating", state="ended", reason=str(fault))
            if isinstance(fault, OfferGone):
                return None
            raise
        return self._note_made(record, created.id)

    def _note_made(self, record: HostRecord, identity: int) -> HostRecord | None:
        """Writes down which box a create made; None where somebody else decided otherwise meanwhile.

        Raises:
            StoreFault: it cannot be written down; the box is given back.
        """
        record = record.model_copy(update={"instance": identity})
        try:
            booting = self._change(record, "creating", state="booting", instance=identity)
            kept = booting or self._book.read(record.lease)
        except StoreFault:
            self._give_up(record, "it could not be written down", failed_boot=False)
            raise
        if kept is not None and not kept.is_over and kept.instance == identity:
            return kept  # ours, or another found it by its label, and it serves both
        self._warn(f"host {record.lease}: somebody gave it up while it was made")
        self._book.change(record.lease, ("draining", "ended"), instance=identity)
        self.give_back(record, "somebody gave it up while it was made")
        return None

    def _change(self, record: HostRecord, was: HostState, **changes: object) -> HostRecord | None:
        """Changes a record that is in this state; None where somebody else was quicker."""
        return self._book.change(record.lease, (was,), **changes)

    def _unclear(self, record: HostRecord, fault: Ambiguous) -> HostRecord | None:
        if fault.instance_id is None:
            return self._find(record)
        # It says that it failed, and that there is a box: what that is worth nobody knows.
        self.give_back(record.model_copy(update={"instance": fault.instance_id}), str(fault))
        return None

    def _check_caps(self) -> None:
        """Raises Budget where one host more is one too many, by the provider's list and by what is written down."""
        rules, now = self._rules, self._now()
        written = {
            record.label: record
            for record in self._all_own()
            if record.state != "ended" and not record.is_missing(now)
        }
        per_hour = {label: record.max_per_hour for label, record in written.items()}
        for box in self._client.instances():
            label = HostLabel.read(box.label)
            if label is not None and label.fleet == rules.name:
                # A box that is being made names no price yet.
                costs = box.price.per_hour(box.disk_gb)
                per_hour[box.label] = costs or per_hour.get(box.label, rules.max_per_hour)
        if len(per_hour) >= rules.max_hosts:
            raise Budget(
                f"fleet {rules.name}: {len(per_hour)} hosts are rented, and max_hosts is {rules.max_hosts}"
            )
        total = sum(per_hour.values())
        if rules.max_total_per_hour is not None and total + rules.max_per_hour > rules.max_total_per_hour:
            raise Budget(
                f"fleet {rules.name}: its hosts cost ${total:.2f} an hour, one more up to ${rules.max_per_hour:.2f}, and "
                f"max_total_per_hour is ${rules.max_total_per_hour:.2f}"
            )
        if (credit := self._client.credit()) < rules.credit_floor:
            raise Budget(
                f"vast.ai: ${credit:.2f} of credit are left, and credit_floor is ${rules.credit_floor:.2f}"
            )

    def _best(self, hours: float) -> Offer:
        """The offer on which the work costs least.

        Raises:
            HostFault: there is none.
        """
        bad = self._bad_machines()
        offers = [
            offer
            for offer in self._client.search(self._rules.offers(len(self._ports)))
            if offer.machine_id not in bad
        ]
        if not offers:
            raise HostFault(
                f"fleet {self._rules.name}: vast.ai offers nothing that its rules allow, at ${self._rules.max_per_hour:.2f} an hour"
                + (f" and but for {len(bad)} machines that failed lately" if bad else "")
            )
        return min(offers, key=lambda offer: self._rules.cost(offer, hours))

    def _bad_machines(self) -> set[int]:
        """Machines on which a box did not come up lately."""
        since = self._now() - BAD_SECONDS
        return {
            record.machine
            for record in self._book.hosts().records.values()
            if record.failed_boot and record.made > since
        }

    def _own(self, hosts: Hosts | None = None) -> list[HostRecord]:
        """The fleet's records with this account, as far as they can be read."""
        records = (hosts or self._book.hosts()).records.values()
        return [r for r in records if r.fleet == self._rules.name and r.account == self._account]

    def _all_own(self) -> list[HostRecord]:
        """The same. Raises StoreFault where one cannot be read: it may be a host of this fleet."""
        hosts = self._book.hosts()
        if hosts.unreadable:
            raise StoreFault(
                f"{'; '.join(hosts.unreadable.values())}; nothing is rented before it is mended or removed"
            )
        return self._own(hosts)

    # From a box to a host ------------------------------------------------------------------------

    def boot(self, record: HostRecord, answers: Answers) -> RentedHost:
        """Waits until a box answers. One that does not is given back.

        Raises:
            HostFault: it does not, and why.
            BadInput: no box will, wherever it runs: its image is at fault, or what is asked of it.
        """
        outcome: bool | str = NotYet()
        seen = False
        while self._now() < record.deadline and isinstance(outcome, NotYet):
            if self._is_settled(record):
                return self._ready(record, self._client.instance(record.instance or 0))
            box = self._look(record)
            outcome = self._outcome(record, box, answers, seen=seen)
            if box is not None and outcome is True:
                self._change(record, "booting", state="ready", ready_at=self._now())
                return self._ready(record, box)
            seen = seen or box is not None
            self._sleep(scaled(LOOK_SECONDS))
        reason = str(outcome)
        if isinstance(outcome, NotYet):
            reason = f"it did not answer within {self._rules.boot_minutes:g} minutes"
            reason += f": {outcome}" if outcome else ""
        is_hopeless = isinstance(outcome, Never | Lacks)  # and the machine is not at fault
        # From here on it is nobody's: another who waits for it and is answered just now must not begin there.
        changes = {"state": "draining", "reason": reason, "failed_boot": not is_hopeless}
        if self._change(record, "booting", **changes) is None:
            # Another one who waits for it found that it answers, and may be at work there by now.
            return self._ready(record, self._client.instance(record.instance or 0))
        self._keep_log(record)
        self._give_up(record, reason, failed_boot=not is_hopeless)
        if is_hopeless:
            raise BadInput(
                f"fleet {self._rules.name}, image {self._rules.image or self._rules.template}: {reason}; no other host is "
                "rented, for it would do no better"
            )
        raise HostFault(f"host {record.lease} on machine {record.machine}: {reason}")

    def _outcome(
        self, record: HostRecord, box: Instance | None, answers: Answers, *, seen: bool
    ) -> bool | str:
        """True where a box answers, why it does not yet, or why it never will."""
        if box is None:
            # In no list yet, or in none any more.
            late = seen or self._now() - record.made > UNSEEN_SECONDS
            return "its box is gone" if late and self._is_gone(record) else NotYet("no list shows it")
        if box.status == "running" and box.address:
            return answers(record, box) or NotYet()
        return why_never(box) or NotYet(f"it is {box.status or 'being made'}")

    def _is_settled(self, record: HostRecord) -> bool:
        """Whether somebody else decided what becomes of a host that boots. Says that it is waited for."""
        try:
            kept = self._book.read(record.lease)
            if kept is not None and kept.booting_until - self._now() < CLAIM_SECONDS / 2:
                kept = self._change(record, "booting", booting_until=self._now() + CLAIM_SECONDS) or kept
        except StoreFault as fault:
            self._warn(str(fault))
            return False
        return kept is None or kept.state != "booting"

    def _ready(self, record: HostRecord, box: Instance | None) -> RentedHost:
        """A host that was made ready, by us or by another who waits for it.

        Raises:
            HostFault: it was given back instead.
        """
        kept = self._book.read(record.lease)
        if kept is None or kept.state != "ready" or box is None:
            raise HostFault(f"host {record.lease}: somebody else gave it back")
        return RentedHost(kept, box)

    def _look(self, record: HostRecord) -> Instance | None:
        """The box, where vast.ai shows it."""
        assert record.instance is not None
        try:
            return self._client.instance(record.instance)
        except VastError as fault:
            self._warn(str(fault))
            return None

    def _is_gone(self, record: HostRecord) -> bool:
        try:
            return all(box.id != record.instance for box in self._client.instances())
        except VastError as fault:
            self._warn(str(fault))
            return False

    def _keep_log(self, record: HostRecord) -> None:
        """Keeps the last lines of a box that is given up: nobody can ask it afterwards."""
        if record.instance is None:
            return
        try:
            token = self._client.token(record.lease).get_secret_value()
            lines = without(self._client.logs(record.instance), [token])
            path = self._book.keep_log(record.lease, redacted(lines))
            self._warn(f"host {record.lease}: its last lines are in {path}")
        except (VastError, StoreFault) as fault:
            self._warn(f"host {record.lease}: its log could not be kept: {fault}")

    def _give_up(self, record: HostRecord, reason: str, *, failed_boot: bool = True) -> None:
        try:
            self.give_back(record, reason, failed_boot=failed_boot)
        except VastError as fault:
            self._warn(f"host {record.lease} is left to the reaper: {fault}")
