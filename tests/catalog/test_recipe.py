from __future__ import annotations

import pytest

from wirt.catalog.recipe import FileCopy, Recipe, suite
from wirt.errors import HostError, UsageError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("debian", ("debian", "bookworm")),
        ("debian:12", ("debian", "bookworm")),
        ("Debian:13", ("debian", "trixie")),
        ("debian:bookworm", ("debian", "bookworm")),
        ("debian:sid", ("debian", "sid")),
        ("ubuntu:24.04", ("ubuntu", "noble")),
    ],
)
def test_a_distribution_means_a_suite(text, found):
    assert suite(text) == found


@pytest.mark.parametrize("text", ["", "fedora:40", "debian:99", "debian:../x", "debian:a b"])
def test_an_unknown_distribution_is_refused_with_what_there_is(text):
    with pytest.raises(UsageError) as error:
        suite(text)
    assert error.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"packages": ("vim;rm",)},
        {"packages": ("--option",)},
        {"hostname": "a b"},
        {"user": "root"},
        {"user": "Bob; x"},
        {"size": 1 << 20},
        {"size": (1 << 30) + 1},
        {"ssh_keys": ("garbage",)},
        {"ssh_keys": ("ssh-ed25519 A\nWIRT-KEYS\nrm -rf /",)},
        {"kernel_arguments": ("a b",)},
        {"mirror": "javascript:x"},
        {"mirror": "http://x/ sid main"},
        {"files": (FileCopy("x", "etc/x"),)},
        {"files": (FileCopy("x", "/etc/../x"),)},
        {"files": (FileCopy("x", "/etc/"),)},
    ],
)
def test_values_that_cannot_be_built_are_refused(changes):
    with pytest.raises(UsageError):
        Recipe(**changes).check()


def test_equal_recipes_have_equal_fingerprints_and_others_do_not(tmp_path):
    source = tmp_path / "motd"
    source.write_text("one")
    copy = FileCopy(source, "/etc/motd")
    recipes = [
        Recipe(),
        Recipe(distribution="debian:13"),
        Recipe(packages=("vim",)),
        Recipe(files=(copy,)),
        Recipe(autologin=False),
    ]
    prints = [recipe.fingerprint() for recipe in recipes]
    assert len(set(prints)) == len(prints)
    assert Recipe(distribution="debian:bookworm").fingerprint() == prints[0]
    source.write_text("two")
    assert recipes[3].fingerprint() != prints[3]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(HostError, match="none: No such file"):
        Recipe(files=(FileCopy(tmp_path / "none", "/x"),)).fingerprint()
