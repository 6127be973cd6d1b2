"""kvm-img as a program: its name, its start, what it opens, and what no qemu-img has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.kvm_img.twins import ask_kvm_img
from wirt.cli.kvm_img import failure
from wirt.cli.kvm_img.getopt import Grammar, parse_words
from wirt.cli.kvm_img.keyvalue import parse_list
from wirt.cli.kvm_img.naming import nested, parse_json_name
from wirt.cli.kvm_img.sizes import BadSize, human_size, parse_size
from wirt.image.create import create_image
from wirt.image.open import open_image

MIB = 1 << 20


@pytest.fixture
def ask(tmp_path, monkeypatch):
    return lambda *words: ask_kvm_img(tmp_path, *words, monkeypatch=monkeypatch)


def test_linked_as_qemu_img_it_calls_itself_so(tmp_path):
    link = tmp_path / "qemu-img"
    link.symlink_to(Path(sys.executable).with_name("kvm-img"))
    done = subprocess.run(
        [link, "info", "nothing"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "qemu-img: Could not open 'nothing': Could not open 'nothing': No such file or directory\n"
    )


def test_names_need_not_be_text(tmp_path):
    name = os.fsencode(tmp_path) + b"/\xff\xfe.raw"
    with open(name, "wb") as file:
        file.truncate(MIB)
    program = Path(sys.executable).with_name("kvm-img")
    done = subprocess.run([program, "info", name], capture_output=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == b"image: " + name
    missing = subprocess.run(
        [program, "info", name + b"x"], capture_output=True, timeout=60, check=False
    )
    assert missing.returncode == 1
    assert name in missing.stderr


def test_a_reader_may_go_away(tmp_path):
    create_image(str(tmp_path / "disk"), "qcow2", MIB)
    program = Path(sys.executable).with_name("kvm-img")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [program, "info", tmp_path / "disk"], stdout=write, stderr=subprocess.PIPE, timeout=60,
        check=False,
    )  # fmt: skip
    os.close(write)
    assert done.stderr == b""


def test_info_loads_nothing_heavy(tmp_path):
    create_image(str(tmp_path / "disk"), "qcow2", MIB)
    code = (
        "import sys; sys.argv = ['kvm-img', 'info', sys.argv[1]]\n"
        "from wirt.cli.kvm_img.main import main; main()\n"
        "print(sorted({'numpy', 'asyncio', 'rich', 'cryptography'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "disk")], capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "name",
    [
        "nbd:127.0.0.1:1",
        "http://127.0.0.1:1/disk",
        'json:{"file":{"driver":"nbd","host":"127.0.0.1","port":"1"}}',
        'json:{"file":{"driver":"raw","file.filename":"nbd:127.0.0.1:1"}}',
    ],
)
def test_an_image_cannot_make_it_connect(tmp_path, ask, monkeypatch, name):
    def connects(*_words):
        raise AssertionError("it connected")

    monkeypatch.setattr("socket.socket.connect", connects)
    create_image(
        str(tmp_path / "disk"), "qcow2", MIB, options={"backing_file": name, "backing_fmt": "raw"}
    )
    answer = ask("map", "disk")
    assert answer.code == 1
    assert "only opened if you name it yourself" in answer.err
    assert ask("info", "disk").code == 0


def test_a_tree_inside_an_image_cannot_make_it_connect(tmp_path, ask, monkeypatch):
    def connects(*_words):
        raise AssertionError("it connected")

    monkeypatch.setattr("socket.socket.connect", connects)
    create_image(str(tmp_path / "plain"), "qcow2", MIB)
    create_image(
        str(tmp_path / "split"), "qcow2", MIB, options={"data_file": str(tmp_path / "data")}
    )
    for key in ('"backing":{"file.filename":"nbd:127.0.0.1:1"}', '"data-file":{"driver":"nbd"}'):
        base = "plain" if "backing" in key else "split"
        tree = f'json:{{"driver":"qcow2","file.filename":"{tmp_path / base}",{key}}}'
        options = {"backing_file": tree, "backing_fmt": "qcow2"}
        create_image(str(tmp_path / "disk"), "qcow2", MIB, options=options)
        assert "only opened if you name it yourself" in ask("map", "disk").err


def test_what_the_user_names_is_connected_to(ask):
    answer = ask("info", "-f", "raw", "nbd:127.0.0.1:1")
    assert answer.code == 1
    assert "name it yourself" not in answer.err


def test_a_chain_that_bites_its_tail_is_refused(tmp_path, ask):
    for name, below in (("a", "b"), ("b", "a")):
        options = {"backing_file": below, "backing_fmt": "qcow2"}
        create_image(str(tmp_path / name), "qcow2", MIB, options=options)
    assert "comes back to this file" in ask("map", "a").err
    assert "creates an infinite loop" in ask("info", "--backing-chain", "a").err


def test_old_encryption_is_refused_with_what_replaces_it(ask):
    answer = ask("create", "-e", "-f", "qcow2", "new", "1M")
    assert answer.code == 1
    assert "encrypt.format=luks" in answer.err


def test_compat6_of_old_is_an_option_of_today(ask):
    answer = ask("create", "-6", "-f", "vmdk", "new", "1M")
    assert answer.code == 0
    assert "compat6=on" in answer.out


def test_nothing_is_left_when_converting_fails(tmp_path, ask):
    (tmp_path / "source").write_bytes(bytes(MIB))
    (tmp_path / "target").write_bytes(b"precious")
    assert ask("convert", "-O", "qcow2", "-o", "cluster_size=3", "source", "target").code == 1
    assert (tmp_path / "target").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_a_dirty_image_is_repaired_before_it_is_changed(tmp_path, ask):
    path = tmp_path / "disk"
    create_image(str(path), "qcow2", MIB)
    with open(path, "r+b") as file:
        file.seek(79)
        file.write(b"\1")
    assert "cleanly shut down: no" in ask("info", "disk").out
    assert ask("resize", "disk", "2M").code == 0
    assert "cleanly shut down" not in ask("info", "disk").out


def test_a_defect_is_one_line(ask, monkeypatch):
    def breaks(_words):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("wirt.cli.kvm_img.info.run", breaks)
    answer = ask("info", "disk")
    assert answer.code == 70
    assert answer.err == "qemu-img: a defect in wirt: ZeroDivisionError: oops\n"


def test_help_and_version(ask):
    shown = ask("--help")
    assert shown.code == 0
    assert "convert" in shown.out
    assert "Supported formats:" in shown.out
    assert ask("info", "--help").out == shown.out
    assert ask("-V").out.startswith("qemu-img version 7.2.0 (wirt ")


GRAMMAR = Grammar("f:qU", {"format": "f:", "force-share": "U", "force": "force"})


@pytest.mark.parametrize(
    ("words", "options", "operands"),
    [
        (["-qf", "raw", "a"], [("q", ""), ("f", "raw")], ["a"]),
        (["a", "-fraw", "b"], [("f", "raw")], ["a", "b"]),
        (["--format=raw"], [("f", "raw")], []),
        (["--form", "raw"], [("f", "raw")], []),
        (["--force"], [("force", "")], []),
        (["--", "-q"], [], ["-q"]),
        (["-"], [], ["-"]),
    ],
)
def test_words_are_read_as_getopt_reads_them(words, options, operands):
    parsed = parse_words(words, GRAMMAR)
    assert (parsed.options, parsed.operands) == (options, operands)


@pytest.mark.parametrize("words", [["-x"], ["--for"], ["-f"], ["--format"], ["--force=1"]])
def test_wrong_words_are_misuse(words):
    with pytest.raises(failure.Misuse):
        parse_words(words, GRAMMAR)


def test_lists_of_options():
    assert parse_list("a=b,,c,d,noe,f=") == [("a", "b,c"), ("d", "on"), ("e", "off"), ("f", "")]
    assert parse_list("x=1", first="file") == [("x", "1")]
    assert parse_list("a,,b,y=2", first="file") == [("file", "a,b"), ("y", "2")]


def test_names_are_trees():
    assert nested([("a.b.c", 1), ("a.b.d", 2), ("e", {"f.g": 3})]) == {
        "a": {"b": {"c": 1, "d": 2}},
        "e": {"f": {"g": 3}},
    }
    assert parse_json_name("json:{'driver': 'raw', \"file.filename\": \"it's\"}") == {
        "driver": "raw",
        "file": {"filename": "it's"},
    }
    for name in ("json:", "json:[]", "json:{", "json:" + '{"a":' * 5000):
        with pytest.raises(failure.Failure):
            parse_json_name(name)
    with pytest.raises(failure.Failure):
        nested([(".".join("a" * 5000), 1)])


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("1k", 1024), ("1.5M", 3 << 19), ("0x10", 16), ("7B", 7)]
)
def test_sizes(text, value):
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "-1", "k", "1.5", "1e3", "1kk", "0x1.8", "١"])
def test_no_sizes(text):
    with pytest.raises(BadSize):
        parse_size(text)


def test_sizes_for_people():
    shown = [human_size(value) for value in (0, 999, 1000, 1024, 1535, 1 << 20, 1023 << 20)]
    assert shown == ["0 B", "999 B", "0.977 KiB", "1 KiB", "1.5 KiB", "1 MiB", "0.999 GiB"]


@pytest.mark.parametrize("name", ["cow", "bochs", "cloop"])
def test_formats_that_qemu_img_does_not_make(name, ask, tmp_path):
    assert ask("create", "-f", name, "empty", "1M").code == 0
    with open_image(str(tmp_path / "empty")) as image:
        assert (image.format_name, image.virtual_size) == (name, MIB)
    content = bytes(range(256)) * 4096
    (tmp_path / "plain").write_bytes(content)
    assert ask("convert", "-f", "raw", "-O", name, "plain", "made").code == 0
    assert ask("convert", "-f", name, "-O", "raw", "made", "back").code == 0
    assert (tmp_path / "back").read_bytes() == content


def test_the_cow_of_2009_has_a_base(ask, tmp_path):
    (tmp_path / "base.img").write_bytes(b"\x07" * MIB)
    assert ask("create", "-f", "cow", "-b", "base.img", "-F", "raw", "new.cow").code == 0
    assert ask("convert", "-O", "raw", "new.cow", "back").code == 0
    assert (tmp_path / "back").read_bytes() == b"\x07" * MIB
