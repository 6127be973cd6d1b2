"""Full disks, failing disks, tiny caches, threads: the image stays what it should be."""

import random
import threading

import pytest

from tests.image.powercut import Recorder
from tests.image.qcow2.support import Memory
from tests.image.qcow2.test_powercut import Session, run_cuts, snapshot_session, write_session
from wirt.errors import CorruptImage, ImageError, ImageIoError, ImageNoSpace, OutOfBounds
from wirt.image.base import Budget, OpenOptions
from wirt.image.formats.qcow2 import FORMAT, mapping, refcount, volume

MIB = 1 << 20


@pytest.mark.parametrize("seed", range(100))
def test_a_full_disk_is_said_and_harms_nothing(seed):
    rng = random.Random(seed)
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": rng.choice(["512", "4096"])})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    model = bytearray(MIB)
    storage.limit = len(storage.data) + rng.randrange(MIB // 2)
    failed = False
    for number in range(60):
        offset = rng.randrange(MIB - 40_000)
        data = rng.randbytes(rng.randrange(1, 40_000))
        try:
            if number % 15 == 14:
                image.snapshot_create(f"s{number}")
            image.pwrite(offset, data)
            image.flush()
        except ImageNoSpace:
            failed = True
            # What of the write was carried out is open, as on any disk.
            model[offset : offset + len(data)] = image.pread(offset, len(data))
        else:
            model[offset : offset + len(data)] = data
        assert image.pread(0, MIB) == model
    assert failed
    storage.limit = 1 << 28
    image.flush()
    again = FORMAT.open(storage, OpenOptions())
    assert again.pread(0, MIB) == model
    assert again.check().corruptions == 0


def test_after_a_failed_flush_nothing_more_is_written():
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": "4096"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.pwrite(0, b"x" * 10_000)

    def fail():
        raise ImageIoError("the disk is gone")

    storage.flush = fail
    with pytest.raises(ImageIoError, match="gone"):
        image.flush()
    before = bytes(storage.data)
    del storage.flush
    for verb in (image.flush, lambda: image.pwrite(0, b"y"), lambda: image.snapshot_create("s")):
        with pytest.raises(ImageIoError, match="nothing more is written"):
            verb()
    assert bytes(storage.data) == before
    assert FORMAT.open(storage, OpenOptions()).check().corruptions == 0


@pytest.mark.parametrize("session_of", [write_session, snapshot_session])
@pytest.mark.parametrize("backed", [False, True])
def test_tiny_caches_change_nothing(monkeypatch, session_of, backed):
    monkeypatch.setattr(mapping, "_CACHE_BYTES", 2048)
    monkeypatch.setattr(refcount, "_CACHE_BYTES", 1024)
    monkeypatch.setattr(volume, "_DIRTY_BYTES", 4096)
    session = Session(7, {"cluster_size": "512"}, backed=backed)
    session_of(session)
    session.flush()
    assert session.image.pread(0, len(session.model.disk)) == session.model.disk
    assert run_cuts(session, random.Random(7), None, 60) == []


def test_many_threads_read_while_one_writes():
    storage = Memory()
    FORMAT.create(storage, 4 * MIB, {"cluster_size": "512"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    half = random.Random(1).randbytes(2 * MIB)
    image.pwrite(0, half)
    wrong, done = [], threading.Event()

    def read(seed):
        rng = random.Random(seed)
        while not done.is_set():
            offset = rng.randrange(2 * MIB - 5000)
            if image.pread(offset, 5000) != half[offset : offset + 5000]:
                wrong.append(offset)
            list(image.extents(0, MIB))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            image.pwrite(2 * MIB + number * 6000, b"w" * 6000)
            image.flush()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_reader_cannot_write():
    storage = Memory()
    FORMAT.create(storage, MIB, {})
    image = FORMAT.open(storage, OpenOptions())
    for verb in (lambda: image.pwrite(0, b"x"), lambda: image.resize(512), image.make_empty):
        with pytest.raises(ImageIoError):
            verb()
    with pytest.raises(ImageIoError):
        image.pwrite(0, b"x")
    with pytest.raises(OutOfBounds):
        FORMAT.open(storage, OpenOptions(writable=True)).pwrite(MIB - 1, b"xy")


def test_the_budgets_of_time_and_metadata_are_kept():
    storage = Memory()
    FORMAT.create(storage, 1 << 40, {})
    with pytest.raises(OutOfBounds):
        FORMAT.open(storage, OpenOptions(budget=Budget(metadata_bytes=100)))
    late = FORMAT.open(storage, OpenOptions(budget=Budget(seconds=-1)))
    with pytest.raises(OutOfBounds):
        late.pread(0, 512)


def test_an_unknown_autoclear_bit_is_cleared_by_the_first_write():
    storage = Memory()
    FORMAT.create(storage, MIB, {})
    storage.pwrite(88, b"\x40")
    image = FORMAT.open(storage, OpenOptions(writable=True))
    image.flush()
    assert storage.data[88] == 0x40
    image.pwrite(0, b"x")
    assert storage.data[88] == 0


def test_the_external_data_file_must_be_attached():
    storage = Memory()
    FORMAT.create(storage, MIB, {"data_file": "d"})
    image = FORMAT.open(storage, OpenOptions(writable=True))
    assert image.needs_data_file
    for verb in (lambda: image.pread(0, 1), lambda: image.pwrite(0, b"x")):
        with pytest.raises(ImageIoError, match="data file"):
            verb()
    image.attach_data_file(Memory())
    image.pwrite(0, b"x")
    assert image.pread(0, 1) == b"x"


def test_growing_the_refcount_table_survives_cuts():
    session = Session(3, {"cluster_size": "512", "refcount_bits": "64"}, backed=False)
    disk = bytearray(session.model.disk)
    for offset in range(0, 300_000, 30_000):
        data = session.rng.randbytes(30_000)
        disk[offset : offset + 30_000] = data
        session.change(disk)
        session.image.pwrite(offset, data)
        session.flush()
    before = session.image.header.reftable_clusters
    session.change(bytes(disk) + bytes(5 * MIB - len(disk)))
    session.image.resize(5 * MIB, preallocation="metadata")
    session.storage.must_be(session.model)
    assert session.image.header.reftable_clusters > before
    assert session.image.check().corruptions == 0
    assert isinstance(session.storage, Recorder)
    assert run_cuts(session, random.Random(3), None, 30) == []


@pytest.mark.parametrize("error", [CorruptImage])
def test_two_tables_in_one_place_are_found_before_the_first_write(error):
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": "4096"})
    header = FORMAT.open(storage, OpenOptions()).header
    storage.pwrite(40, header.reftable_offset.to_bytes(8))
    with pytest.raises(ImageError) as caught:
        FORMAT.open(storage, OpenOptions(writable=True)).pwrite(0, b"x")
    assert isinstance(caught.value, error)


def test_closing_a_refused_image_keeps_the_first_error():
    storage = Memory()
    FORMAT.create(storage, MIB, {"cluster_size": "4096"})
    with FORMAT.open(storage, OpenOptions(writable=True)) as image:
        image.pwrite(0, b"x" * 4096)
        table = image.volume.mapping.table(0).offset
    header = FORMAT.open(storage, OpenOptions()).header
    storage.pwrite(table, (1 << 63 | header.l1_offset).to_bytes(8))
    with (
        pytest.raises(CorruptImage, match="refusing to overwrite the active L1"),
        FORMAT.open(storage, OpenOptions(writable=True)) as image,
    ):
        image.pwrite(0, b"y" * 512)
