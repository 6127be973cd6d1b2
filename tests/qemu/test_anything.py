"""Whatever the spec allows compiles to a sound line, or is refused in words."""

import itertools

from hypothesis import HealthCheck, given, settings

from tests.qemu import anything, machines
from wirt.errors import WirtError
from wirt.qemu.compile import arguments
from wirt.qemu.render import argv
from wirt.spec import toml

CAPABILITIES = machines.recorded("10.0")
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@settings(max_examples=300, deadline=None, suppress_health_check=SLOW)
@given(anything.machines())
def test_any_description_gives_a_sound_line_or_an_error_of_ours(tree):
    machine, problems = toml.from_tree(tree)
    if machine is None:
        assert problems
        return
    try:
        words = argv("qemu", arguments(machine, machines.runtime("x"), CAPABILITIES))
    except WirtError:
        return
    devices = machines.json_values(words, "-device")
    places = [(value["bus"], value["addr"]) for value in devices if "addr" in value]
    assert len(places) == len(set(places))
    assert all(value["id"] for value in devices)
    _every_reference_is_made_before(words)


def _every_reference_is_made_before(words):
    """Backends and buses stand before the devices that use them."""
    known = {"ide", "floppy-bus", "pcie", "pci", "sd-bus"}
    for option, text in itertools.pairwise(words):
        if option in {"-blockdev", "-netdev", "-object", "-device"} and text.startswith("{"):
            value = machines.json_values([option, text], option)[0]
            for key in ("drive", "netdev", "chardev", "rng", "file", "throttle-group", "audiodev"):
                assert key not in value or value[key] in known, (key, value)
            assert (
                "bus" not in value
                or value["bus"].rpartition(".")[0]
                in known | {bus.partition(".")[0] for bus in known}
                or value["bus"] in known
            ), value
            known.add(value.get("id", value.get("node-name")))
        elif option in {"-chardev", "-audiodev"}:
            known |= {part[3:] for part in text.split(",") if part.startswith("id=")}
