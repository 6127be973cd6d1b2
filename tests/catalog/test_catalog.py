from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import threading
import time

import pytest

from wirt.catalog import catalog as module
from wirt.catalog.catalog import Catalog
from wirt.catalog.image import GuestImage, Kind, check_name
from wirt.errors import Busy, CorruptImage, NotFound, UsageError


def record(name="debian:12", *, fingerprint="f" * 64, created=1, image_id=None):
    return GuestImage(
        name=name,
        id=image_id or os.urandom(32).hex(),
        fingerprint=fingerprint,
        kind=Kind.BUILT,
        disk="disk.raw",
        format="raw",
        virtual_size=1 << 20,
        allocated_size=0,
        created=created,
        origin="test",
    )


def put(catalog, **fields):
    with catalog.draft() as draft:
        draft.path("disk.raw").write_bytes(b"x" * 8192)
        draft.scratch("tree").mkdir()
        (draft.scratch("tree") / "left").write_text("over")
        return catalog.publish(draft, record(**fields))


def test_a_published_image_is_found_by_name_and_by_id(catalog):
    image = put(catalog)
    assert catalog.images() == [image]
    assert catalog.find("debian:12") == catalog.find("DEBIAN:12") == image
    assert catalog.find(image.record.id[:6]) == image
    assert image.record.allocated_size >= 8192
    assert sorted(path.name for path in image.directory.iterdir()) == ["disk.raw", "image.json"]
    assert {path.stat().st_mode & 0o777 for path in image.directory.iterdir()} == {0o444}
    assert image.directory.stat().st_mode & 0o777 == 0o711


def test_a_rebuilt_image_takes_the_name_and_the_old_one_stays(catalog):
    old, new = put(catalog, created=1), put(catalog, created=2)
    assert catalog.find("debian:12") == new
    assert catalog.images() == [new, old]
    assert catalog.find(old.record.id[:12]) == old
    assert catalog.find_made("f" * 64, "debian:12") == new
    assert catalog.find_made("f" * 64, "other") is None


def test_an_unknown_name_gets_the_nearest_ones(catalog):
    put(catalog)
    put(catalog, name="alpine-virt")
    with pytest.raises(NotFound, match=r"no image 'debain:12'") as error:
        catalog.find("debain:12")
    assert error.value.hint == "did you mean debian:12?"


def test_an_empty_catalog_says_how_to_fill_it(catalog):
    with pytest.raises(NotFound) as error:
        catalog.find("x")
    assert "wirt build" in error.value.hint
    assert catalog.images() == []
    assert catalog.sweep() == []


def test_an_image_in_use_is_kept_and_a_free_one_is_removed(catalog):
    image = put(catalog)
    with pytest.raises(Busy, match="base of a, b, c and 1 more"):
        catalog.remove("debian:12", in_use=lambda _: ["a", "b", "c", "d"])
    assert catalog.images() == [image]
    assert catalog.remove("debian:12", in_use=lambda _: []) == image
    assert list(catalog.root.iterdir()) == []


def test_a_draft_that_fails_leaves_nothing(catalog):
    with pytest.raises(KeyboardInterrupt), catalog.draft() as draft:  # noqa: PT012 - the draft is the point
        draft.path("disk.raw").write_bytes(b"x")
        raise KeyboardInterrupt
    assert list(catalog.root.iterdir()) == []


def _draft_for_ever(root, ready):
    with Catalog(root).making("k" * 64, lambda: None), Catalog(root).draft() as draft:
        draft.path("disk.raw").write_bytes(b"x")
        ready.set()
        time.sleep(600)


def test_what_a_killed_build_left_is_swept_and_a_living_one_is_not(catalog):
    ready = multiprocessing.get_context("fork").Event()
    process = multiprocessing.get_context("fork").Process(
        target=_draft_for_ever, args=(catalog.root, ready)
    )
    process.start()
    try:
        assert ready.wait(120)
        assert catalog.sweep() == []
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.join()
    kinds = {name.partition("-")[0] for name in catalog.sweep()}
    assert kinds == {".new", ".making"}
    assert list(catalog.root.iterdir()) == []


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_draft_that_is_swept_before_it_is_locked_is_made_again(catalog, monkeypatch, meanwhile):
    """Another build sweeps in the moment between the lock's file and the lock."""
    lock, remove, removed, claimed = fcntl.flock, module.remove_tree, [], threading.Event()
    sweeper = threading.Thread(target=lambda: removed.extend(catalog.sweep()))

    def removing(path):
        claimed.set()
        remove(path)

    def locking(fd, how):
        if how == fcntl.LOCK_EX and not claimed.is_set():
            sweeper.start()
            claimed.wait(60) if meanwhile else sweeper.join(60)
        return lock(fd, how)

    monkeypatch.setattr(module, "remove_tree", removing)
    monkeypatch.setattr(fcntl, "flock", locking)
    image = put(catalog)
    sweeper.join(60)
    assert catalog.images() == [image]
    assert len(removed) == 1


def _build_once(root, results, waited):
    catalog = Catalog(root)
    with catalog.making("f" * 64, waited.set):
        made = catalog.find_made("f" * 64, "debian:12")
        if not made:
            assert waited.wait(120), "nobody said that they wait"
            made = put(catalog)
            results.put(("built", made.record.id))
        else:
            results.put(("reused", made.record.id))


def test_of_several_builds_at_once_one_works_and_the_others_take_its_image(catalog):
    context = multiprocessing.get_context("fork")
    results, waited = context.Queue(), context.Event()
    arguments = (catalog.root, results, waited)
    workers = [context.Process(target=_build_once, args=arguments) for _ in range(6)]
    for worker in workers:
        worker.start()
    answers = [results.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(answer[0] for answer in answers) == ["built"] + ["reused"] * 5
    assert len({answer[1] for answer in answers}) == 1
    assert waited.is_set()
    assert len(list(catalog.root.iterdir())) == 1


def test_a_foreign_directory_is_no_image(catalog):
    put(catalog)
    (catalog.root / "else").mkdir()
    (catalog.root / "else" / "image.json").write_text("{}")
    assert len(catalog.images()) == 1


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"version": 9}'])
def test_a_foreign_record_is_corrupt(data):
    with pytest.raises(CorruptImage):
        GuestImage.parse(data, path="image.json")


def test_a_record_survives_packing():
    one = record()
    assert GuestImage.parse(one.pack()) == one


@pytest.mark.parametrize("name", ["", ".", "A", "a/b", "ä", "a" * 81])
def test_bad_names_are_refused(name):
    with pytest.raises(UsageError):
        check_name(name)
