"""Who a fork is: what must differ between machines that remember the same past.

The request lies in the helper's port before the fork runs its first instruction, so that the
guest reads it before anything else can ask it for random numbers or addresses over wirt.
"""

from __future__ import annotations

import os
import re

import msgspec

from wirt.errors import WirtError
from wirt.protocols.guest.messages import Identity
from wirt.protocols.qmp.client import QmpClient
from wirt.spec.machine import Machine
from wirt.spec.nic import Nic, Passt, Unplugged, User
from wirt.store.layout import VmPaths
from wirt.store.record import IdentityDue
from wirt.store.states import GuestFacts
from wirt.vm.channels import AGENT, HELPERS
from wirt.vm.forking.outcome import Outcome
from wirt.vm.session import HelperPort

IDENTITY_SECONDS = 60.0
_STEPS = {
    "time": "the clock",
    "seed": "random numbers",
    "hostname": "host name",
    "machine_id": "machine-id",
    "macs": "network addresses",
}


def is_shared_wire(nic: Nic) -> bool:
    """True if forks on this card's network see each other, so that addresses must differ."""
    return not isinstance(nic.backend, User | Unplugged | Passt)


def due_identity(old: Machine, new: Machine, guest: GuestFacts, *, same: bool) -> IdentityDue:
    """Return what the guest must become. ``same`` keeps name and addresses (a closed lab)."""
    pairs = zip(old.nics, new.nics, strict=True)
    macs = tuple((before.mac, after.mac) for before, after in pairs if before.mac != after.mac)
    return IdentityDue(same, macs, helper=guest.helper, agent=guest.agent)


def identity_of(due: IdentityDue, machine: Machine) -> Identity:
    """Return the request, with fresh random bytes."""
    seed = os.urandom(32)
    if due.same:
        return Identity(seed=seed)
    return Identity(
        seed=seed,
        hostname=host_name(machine.name),
        machine_id=machine.uuid.replace("-", ""),
        macs=due.macs,
    )


def host_name(name: str) -> str:
    """Return a machine's name as a host name may be: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[:63] or "fork"


def lay_before(paths: VmPaths, machine: Machine, identity: Identity) -> HelperPort | None:
    """Put the request into the helper's port of a guest that does not run yet."""
    if HELPERS[0] not in {channel.name for channel in machine.channels}:
        return None
    port = HelperPort.open(paths)
    try:
        port.session.send_identity(identity)
    except BaseException:
        port.close()
        raise
    return port


def await_answer(
    port: HelperPort | None,
    paths: VmPaths,
    due: IdentityDue,
    identity: Identity,
    *,
    timeout: float,
) -> Outcome:
    """Return what became of the request; where there is no helper, ask the agent."""
    if port is not None and due.helper:
        try:
            answer = port.session.identity_answer(timeout=timeout)
        except WirtError as error:
            return Outcome(unchanged=(f"the guest's helper did not answer: {error}",))
        failed = (f"{_STEPS.get(step, step)} ({why})" for step, why in answer.failed.items())
        return Outcome("helper", answer.uuid, tuple(failed))
    if due.agent:
        from wirt.vm.forking.agent import set_by_agent

        return set_by_agent(paths.socket(AGENT), identity, timeout=timeout)
    asked = [what for field, what in _STEPS.items() if _asks(identity, field)]
    return Outcome(unchanged=tuple(asked))


def with_kept(outcome: Outcome, machine: Machine, *, same: bool) -> Outcome:
    """Return the outcome with what nobody could change: what was sealed by a key stays so."""
    if same or machine.tpm.version == "none":
        return outcome
    return msgspec.structs.replace(outcome, unchanged=(*outcome.unchanged, "keys of the TPM"))


def run_first_time(paths: VmPaths, machine: Machine, due: IdentityDue, qmp: QmpClient) -> Outcome:
    """Let a fork run that was made paused: it becomes another first."""
    identity = identity_of(due, machine)
    port = lay_before(paths, machine, identity)
    try:
        qmp.execute("cont")
        outcome = await_answer(port, paths, due, identity, timeout=IDENTITY_SECONDS)
        return with_kept(outcome, machine, same=due.same)
    finally:
        if port is not None:
            port.close()


def _asks(identity: Identity, field: str) -> bool:
    return field == "time" or bool(getattr(identity, field))
