import msgspec

from wirt.protocols.qmp.codec import Event
from wirt.protocols.qmp.events import MAX_BYTES, MAX_EVENTS, EventQueue


def event(name: str, data: bytes = b"{}") -> Event:
    return Event(name, msgspec.Raw(data), 0, 0)


def test_events_come_out_oldest_first_and_only_once():
    queue = EventQueue()
    for name in ("A", "B", "A"):
        queue.offer(event(name))
    assert [found.name for _ in range(3) if (found := queue.take())] == ["A", "B", "A"]
    assert queue.take() is None


def test_taking_one_name_leaves_the_others():
    queue = EventQueue()
    for name in ("A", "B"):
        queue.offer(event(name))
    found = queue.take({"B"})
    assert found is not None
    assert found.name == "B"
    assert queue.take({"B"}) is None
    assert queue.take() is not None


def test_a_queue_for_some_names_ignores_the_others():
    queue = EventQueue({"A"})
    queue.offer(event("B"))
    assert queue.take() is None


def test_a_flood_drops_the_oldest_and_counts_them():
    queue = EventQueue()
    for number in range(MAX_EVENTS + 10):
        queue.offer(event(str(number)))
    assert queue.dropped == 10
    first = queue.take()
    assert first is not None
    assert first.name == "10"


def test_large_events_are_bounded_by_their_bytes():
    queue = EventQueue()
    for _ in range(5):
        queue.offer(event("BIG", b"1" * (MAX_BYTES // 2)))
    assert queue.dropped == 4
