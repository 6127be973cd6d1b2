"""Records on disk: whole, damaged, of another wirt, or no file at all."""

import os
import re

import msgspec
import pytest

from wirt.errors import HostError
from wirt.store.pools import Pool
from wirt.store.record_file import VERSION, names_in, read_file, replace_file

POOL = Pool(fingerprint="0" * 16, kind="k", image="debian:12", size=3)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "one.json")


def test_a_record_is_read_as_it_was_written(path):
    assert read_file(path, Pool, cure="none") is None
    replace_file(path, POOL)
    assert read_file(path, Pool, cure="none") == POOL


def test_a_damaged_record_says_what_to_do(path):
    for damage in (b"", b"{", b"[]", msgspec.json.encode({"size": "three"})):
        with open(path, "wb") as file:
            file.write(damage)
        with pytest.raises(HostError, match="damaged") as raised:
            read_file(path, Pool, cure="rm it")
        assert raised.value.hint == "rm it"


def test_a_record_of_a_newer_wirt_is_left_alone(path):
    replace_file(path, msgspec.structs.replace(POOL, version=VERSION + 1))
    with pytest.raises(HostError, match="newer wirt"):
        read_file(path, Pool, cure="rm it")


def test_a_link_is_not_followed(path, tmp_path):
    replace_file(str(tmp_path / "other.json"), POOL)
    os.symlink("other.json", path)
    with pytest.raises(HostError, match="symbolic links"):
        read_file(path, Pool, cure="none")


def test_names_are_those_of_records(tmp_path):
    assert names_in(str(tmp_path / "none"), re.compile(".*")) == []
    for name in ("b.json", "a.json", "a.lock", "a.json.17.tmp", "..json"):
        (tmp_path / name).touch()
    assert names_in(str(tmp_path), re.compile("[a-z]")) == ["a", "b"]
