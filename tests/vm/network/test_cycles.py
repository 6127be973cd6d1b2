"""Three cycles in the suite; ``tests.vm.network.cycles`` runs as many as one likes."""

from __future__ import annotations

import pytest

from tests.vm.network.cycles import cycle, left, reapers, settled

pytestmark = [
    pytest.mark.needs_qemu,
    pytest.mark.needs_root,
    pytest.mark.needs_tool("vde_switch"),
    pytest.mark.needs_tool("dnsmasq"),
    pytest.mark.needs_tool("slirp4netns"),
    pytest.mark.needs_tool("nft"),
]


def test_what_comes_up_and_goes_down_leaves_nothing(net):
    cycle(net.context)
    for thread in reapers():
        thread.join(300)
    before = left(net.context)
    for _ in range(2):
        cycle(net.context)
    assert settled(net.context, before) == before
