"""Several threads freeze machines at one instant: all of them, or none."""

from __future__ import annotations

import threading

import pytest

from wirt.errors import WirtError
from wirt.vm.forking.instant import Instant


def together(instant, *acts):
    """Run each of ``acts`` in a thread; return what it raised."""
    raised = [None] * len(acts)

    def run(index, act):
        try:
            act()
        except WirtError as error:
            raised[index] = error
            instant.fail(error)

    threads = [threading.Thread(target=run, args=item) for item in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def test_none_goes_on_before_all_stand_still():
    instant, order = Instant(3), []

    def freeze():
        instant.ready()
        order.append("stands")
        instant.stands()
        instant.all_stand()
        order.append("runs")
        instant.runs()

    assert together(instant, freeze, freeze, freeze) == [None, None, None]
    assert order == ["stands"] * 3 + ["runs"] * 3
    assert 0 <= instant.skew <= instant.pause


@pytest.mark.parametrize("until", ["ready", "stands", "runs"])
def test_one_that_fails_keeps_nobody_waiting(until):
    instant, wrong = Instant(2), WirtError("no luck")
    gone_on = []

    def good():
        instant.ready()
        instant.stands()
        instant.all_stand()
        gone_on.append(True)
        instant.runs()

    def bad():
        if until != "ready":
            instant.ready()
            instant.stands()
        if until == "runs":
            instant.all_stand()
        raise wrong

    first, second = together(instant, good, bad)
    assert second is wrong
    assert instant.cause is wrong
    assert gone_on == [True] * (until == "runs")
    assert (first is None) == (until == "runs")


def test_a_machine_by_itself_waits_for_nobody():
    instant = Instant()
    instant.ready()
    instant.stands()
    instant.all_stand()
    instant.runs()
    assert not instant.shared
