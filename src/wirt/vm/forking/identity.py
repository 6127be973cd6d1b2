"""Who a fork is: what must differ between machines that remember the same past.

The request lies in the helper's port before the fork runs its first instruction, so that the
guest reads it before anything else can ask it for random numbers or addresses over wirt.
"""

from __future__ import annotations

import os
import re

from wirt.errors import WirtError
from wirt.protocols.guest.client import GuestSession
from wirt.protocols.guest.messages import Identity
from wirt.spec.machine import Machine
from wirt.store.layout import VmPaths
from wirt.store.states import GuestFacts
from wirt.vm.channels import AGENT, HELPERS
from wirt.vm.forking.agent import set_by_agent
from wirt.vm.forking.outcome import Outcome

_OPEN_SECONDS = 10.0
_STEPS = {
    "time": "the clock",
    "seed": "random numbers",
    "hostname": "host name",
    "machine_id": "machine-id",
    "macs": "network addresses",
}


def new_identity(old: Machine, new: Machine, *, same: bool) -> Identity:
    """Return what to make of the guest. ``same`` keeps name and addresses (a closed lab)."""
    seed = os.urandom(32)
    if same:
        return Identity(seed=seed)
    return Identity(
        seed=seed,
        hostname=host_name(new.name),
        machine_id=new.uuid.replace("-", ""),
        macs=tuple(
            (before.mac, after.mac)
            for before, after in zip(old.nics, new.nics, strict=True)
            if before.mac != after.mac
        ),
    )


def host_name(name: str) -> str:
    """Return a machine's name as a host name may be: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")[:63] or "fork"


def lay_before(paths: VmPaths, machine: Machine, identity: Identity) -> GuestSession | None:
    """Put the request into the helper's port of a guest that does not run yet."""
    if HELPERS[0] not in {channel.name for channel in machine.channels}:
        return None
    session = GuestSession.open(paths.socket(HELPERS[0]), timeout=_OPEN_SECONDS)
    session.send_identity(identity)
    return session


def await_answer(
    session: GuestSession | None,
    paths: VmPaths,
    guest: GuestFacts,
    identity: Identity,
    *,
    timeout: float,
) -> Outcome:
    """Return what became of the request; where there is no helper, ask the agent."""
    if session is not None and guest.helper:
        try:
            answer = session.identity_answer(timeout=timeout)
        except WirtError as error:
            return Outcome(unchanged=(f"the guest's helper did not answer: {error}",))
        failed = (f"{_STEPS.get(step, step)} ({why})" for step, why in answer.failed.items())
        return Outcome("helper", answer.uuid, tuple(failed))
    if guest.agent:
        return set_by_agent(paths.socket(AGENT), identity, timeout=timeout)
    asked = [what for field, what in _STEPS.items() if _asks(identity, field)]
    return Outcome(unchanged=tuple(asked))


def _asks(identity: Identity, field: str) -> bool:
    return field == "time" or bool(getattr(identity, field))
