"""Work in order, of which threads do some ahead."""

import threading

import pytest

from wirt.image.pipeline import Job, finished, nothing_more

WORKERS = 2


def ahead_when(weight, jobs=12):
    """Return, for each job that was waited for, how many others had been handed out by then."""
    handed = [0]

    def given():
        for number in range(jobs):
            handed[0] += 1
            yield Job(number, lambda: None, nothing_more, weight=weight)

    return [handed[0] - done - 1 for done in finished(given(), WORKERS)]


def test_jobs_end_in_order_whoever_is_done_first():
    first_may_end, done = threading.Event(), []

    def prepare(number):
        if number == 0:
            assert first_may_end.wait(60)
        elif number == 1:
            first_may_end.set()
        return number

    jobs = (Job(n, lambda n=n: prepare(n), done.append, weight=1) for n in range(8))
    assert list(finished(jobs, WORKERS)) == done == list(range(8))


def test_as_much_memory_is_ahead_as_there_are_workers_for():
    assert max(ahead_when(1)) == 2 * WORKERS
    assert max(ahead_when(2)) == 2
    assert max(ahead_when(64)) == 2  # the threads must have something to do


def test_what_is_not_worth_a_thread_is_done_by_the_caller():
    where = []
    jobs = (Job(n, lambda: where.append(threading.current_thread()), nothing_more) for n in (0, 1))
    assert list(finished(jobs, WORKERS)) == [0, 1]
    assert where == [threading.main_thread()] * 2


def test_the_fault_of_a_thread_is_the_callers_and_the_others_stop():
    ran = []

    def fail():
        raise OSError("no")

    def jobs():
        yield Job(0, fail, nothing_more, weight=1)
        for number in range(1, 100):
            yield Job(number, lambda: ran.append(1), nothing_more, weight=1)

    with pytest.raises(OSError, match="no"):
        list(finished(jobs(), WORKERS))
    assert len(ran) <= 2 * WORKERS
