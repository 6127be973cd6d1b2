"""The probe of a QEMU binary, its cache, and what a broken binary becomes."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from wirt.errors import MissingDependency, QemuError, SpecError
from wirt.host import qemu_probe
from wirt.host.process import run
from wirt.host.qemu_probe import probe
from wirt.qapi.capabilities import Capabilities

BINARY = "qemu-system-x86_64"
pytestmark = pytest.mark.needs_qemu


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def known(cache):
    return probe(BINARY, cache)


def help_of(option):
    return run([BINARY, f"-{option}", "help"]).stdout.decode()


def test_the_version_is_the_one_qemu_prints(known):
    words = run([BINARY, "--version"]).stdout.decode()
    assert ".".join(map(str, known.version)) in words


def test_machines_are_those_of_its_help(known):
    lines = help_of("machine").splitlines()[1:]
    names = {line.split()[0] for line in lines if line.strip()}
    ours = {machine.name for machine in known.machines}
    ours |= {machine.alias for machine in known.machines if machine.alias}
    assert ours == names
    assert [machine.alias for machine in known.machines if machine.is_default] == ["pc"]


def test_an_alias_means_a_version_of_today(known):
    resolved = known.resolve_machine("q35")
    assert re.fullmatch(r"pc-q35-\d+\.\d+", resolved)
    assert known.resolve_machine(resolved) == resolved
    assert known.resolve_machine("q35,smm=on") == f"{resolved},smm=on"


def test_an_unknown_machine_is_refused_with_those_that_exist(known):
    with pytest.raises(SpecError, match="vax") as caught:
        known.resolve_machine("vax")
    assert "pc-q35-" in caught.value.hint


def test_devices_are_those_of_its_help(known):
    names = set(re.findall(r'name "([^"]+)"', help_of("device")))
    assert {"virtio-blk-pci", "e1000", "isa-debugcon"} <= names
    assert names <= known.devices
    assert known.has_device("virtio-net-pci")
    assert not known.has_device("virtio-net-pcx")


def test_commands_options_and_enums_are_known(known):
    assert known.has_command("blockdev-add")
    assert not known.has_command("blockdev-sub")
    assert known.option_has("sandbox", "spawn")
    assert not known.option_has("sandbox", "spade")
    assert not known.option_has("nonsense", "x")
    assert known.accepts("blockdev-add", "qcow2")
    assert known.accepts("netdev_add", "user")
    assert known.accepts("chardev-add", "socket")
    assert known.accepts("object-add", "rng-random")
    assert not known.accepts("netdev_add", "pigeon")


def test_accelerators_are_those_of_its_help(known):
    assert known.accelerators >= {"tcg"}
    assert known.accelerators >= set(help_of("accel").split("\n")[1:]) - {""}


def test_what_is_kept_means_the_same(known):
    assert msgspec.json.decode(msgspec.json.encode(known), type=Capabilities) == known


def test_a_kept_answer_is_used_without_starting_qemu(known, cache, monkeypatch):
    monkeypatch.setattr(qemu_probe, "ask", None)
    assert probe(BINARY, cache) == known
    (name,) = os.listdir(cache)
    assert os.path.getsize(os.path.join(cache, name)) < 64 << 10


@pytest.fixture
def asked(monkeypatch, known):
    """Count how often QEMU is asked, without starting it."""
    times = []

    def ask(path, identity):
        times.append(path)
        return msgspec.structs.replace(known, identity=identity)

    monkeypatch.setattr(qemu_probe, "ask", ask)
    return times


def program(path, text="#!/bin/sh\n"):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_a_changed_binary_is_asked_again(tmp_path, asked):
    binary = program(tmp_path / "qemu")
    probe(binary, str(tmp_path))
    probe(binary, str(tmp_path))
    assert len(asked) == 1
    program(tmp_path / "qemu", "#!/bin/sh\n# upgraded\n")
    probe(binary, str(tmp_path))
    assert len(asked) == 2


def test_a_module_installed_later_is_noticed(tmp_path, asked, monkeypatch):
    modules = tmp_path / "modules"
    modules.mkdir()
    os.utime(modules, ns=(1, 1))
    monkeypatch.setattr(qemu_probe, "MODULE_DIRECTORIES", [str(modules)])
    binary = program(tmp_path / "qemu")
    probe(binary, str(tmp_path))
    (modules / "hw-display-qxl.so").touch()
    probe(binary, str(tmp_path))
    assert len(asked) == 2


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"null", b"\xff\xfe", b'{"format": 2}', b"[" * 10**5]
)
def test_a_damaged_cache_is_rebuilt(tmp_path, asked, damage):
    binary = program(tmp_path / "qemu")
    cache = tmp_path / "cache"
    cache.mkdir()
    probe(binary, str(cache))
    (name,) = os.listdir(cache)
    (cache / name).write_bytes(damage)
    probe(binary, str(cache))
    probe(binary, str(cache))
    assert len(asked) == 2
    assert os.listdir(cache) == [name]


def test_what_a_killed_writer_left_is_taken_over(tmp_path, asked):
    binary = program(tmp_path / "qemu")
    cache = tmp_path / "cache"
    cache.mkdir()
    probe(binary, str(cache))
    (name,) = os.listdir(cache)
    (cache / name).rename(cache / f"{name}.tmp")
    probe(binary, str(cache))
    assert json.loads((cache / name).read_bytes())["format"] == qemu_probe.FORMAT
    assert os.listdir(cache) == [name]


def test_a_missing_binary_names_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("wirt.host.process._MORE_PATH", ())
    with pytest.raises(MissingDependency) as caught:
        probe(BINARY, str(tmp_path))
    assert caught.value.hint == "apt install qemu-system-x86"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 1", "does not work as QEMU"),
        ("echo 'error while loading shared libraries: libx.so' >&2; exit 127", "libx.so"),
        ("kill -SEGV $$", "does not work as QEMU"),
    ],
)
def test_a_broken_binary_is_reported_with_its_own_words(tmp_path, script, words):
    binary = program(tmp_path / "qemu", f"#!/bin/sh\n{script}\n")
    with pytest.raises(QemuError, match=words):
        probe(binary, str(tmp_path))


def test_a_binary_that_never_answers_ends_at_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(qemu_probe, "_SECONDS", 0.5)
    os.mkfifo(tmp_path / "silence")
    binary = program(tmp_path / "qemu", f"#!/bin/sh\nread x < {tmp_path}/silence\n")
    with pytest.raises(QemuError, match="does not work as QEMU"):
        probe(binary, str(tmp_path))
    assert running_with(binary) == []


def running_with(word):
    """Return the command lines of processes, other than this one, that name it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if entry.parent.name != str(os.getpid()) and word.encode() in entry.read_bytes():
                found.append(entry.read_bytes())
    return found


@pytest.mark.parametrize("schema", [[], [{}], [{"name": "blockdev-add", "arg-type": "7"}]])
def test_a_schema_of_another_form_is_no_crash(schema):
    with pytest.raises(qemu_probe.ProtocolError, match="schema"):
        qemu_probe._known_enums(schema)
