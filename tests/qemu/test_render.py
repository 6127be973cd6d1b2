"""Words of the command line: nothing in a name or path can become an option."""

import json
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wirt.errors import SpecError
from wirt.qapi.value import Argument, blockdev
from wirt.qemu.render import argv, key_values, shell_line

TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
KEY = st.from_regex(r"\A[a-z][a-z-]{0,8}\Z")


def parsed(text):
    """QemuOpts as QEMU reads them: a comma ends a value, two are one."""
    pairs, rest = [], text
    while rest:
        key, _, rest = rest.partition("=")
        value = ""
        while rest:
            if rest.startswith(",,"):
                value, rest = value + ",", rest[2:]
            elif rest.startswith(","):
                rest = rest[1:]
                break
            else:
                value, rest = value + rest[0], rest[1:]
        pairs.append((key, value))
    return pairs


@given(st.dictionaries(KEY, TEXT, min_size=1))
def test_every_value_comes_back_from_key_value_form(values):
    assert parsed(key_values(values)) == list(values.items())


@given(TEXT)
def test_every_value_comes_back_from_json_form(text):
    words = argv("qemu", [blockdev({"filename": text})])
    assert json.loads(words[2]) == {"filename": text}


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXT, min_size=1))
def test_a_shell_reads_back_the_very_words(words):
    script = f"set -- {shell_line(words)}\nprintf '%s\\0' \"$@\""
    out = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout
    assert out.decode().split("\0")[:-1] == words


def test_booleans_numbers_tables_and_lists_have_qemus_form():
    value = {"a": True, "b": False, "c": 7, "d": {"e": "x,y", "f": {"g": True}}, "h": ["1", "2"]}
    assert key_values(value) == "a=on,b=off,c=7,d.e=x,,y,d.f.g=on,h=1,h=2"


@pytest.mark.parametrize("option", [Argument("-x", {"a": "\x00"}), Argument("-append", "a\x00b")])
def test_a_nul_is_refused(option):
    with pytest.raises(SpecError, match="NUL"):
        argv("qemu", [option])


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(SpecError, match="UTF-8"):
        argv("qemu", [blockdev({"filename": b"\xff.img".decode(errors="surrogateescape")})])


def test_an_option_without_a_value_is_one_word():
    assert argv("qemu", [Argument("-S"), Argument("-m", "1G")]) == ["qemu", "-S", "-m", "1G"]


def test_one_option_stands_on_each_shell_line():
    lines = shell_line(["qemu", "-m", "size=1G", "-S", "-append", "a b"]).splitlines()
    assert lines == ["qemu \\", "    -m size=1G \\", "    -S \\", "    -append 'a b'"]
