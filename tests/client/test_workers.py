"""Worker processes share out jobs, tell of their progress, and their failures name what they were doing."""

import multiprocessing
import signal
from multiprocessing.connection import Connection

import pytest
from echo_worker import work

from playserve.errors import ServerFault
from playserve_client.workers import dismiss, receive, send, share_out, signals_call, worker_processes


def run(numbers: list[int], workers: int) -> tuple[dict[int, int], dict[int, int]]:
    answers: dict[int, int] = {}
    told = dict.fromkeys(numbers, 0)
    todo = iter(numbers)

    def take(connection: Connection, number: int) -> bool:
        message = receive(connection, f"doubling {number}")
        told[number] += message.get("progress", 0)
        if "answer" in message:
            answers[number] = message["answer"]
        return "answer" in message

    with worker_processes(work, {"factor": 2}, workers, name="echo") as connections:
        share_out(connections, lambda _busy: next(todo, None), lambda number: {"number": number}, take)
    return answers, told


def test_every_job_is_done_once_and_all_progress_is_told():
    numbers = list(range(1, 7))
    answers, told = run(numbers, workers=2)
    assert answers == {number: 2 * number for number in numbers}
    assert told == {number: number for number in numbers}
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    ("number", "message"),
    [(13, r"a worker died doubling 13; the same command"), (7, r"failed doubling 7: ValueError: seven")],
)
def test_a_worker_that_is_lost_names_its_job(number: int, message: str):
    with pytest.raises(ServerFault, match=message):
        run([number], workers=1)
    assert not multiprocessing.active_children()


def test_no_more_jobs_are_given_out_than_are_wanted():
    seen = []

    def next_job(busy: int) -> int | None:
        seen.append(busy)
        return 1 if len(seen) == 1 else None

    with worker_processes(work, {"factor": 3}, 2, name="echo") as connections:
        share_out(connections, next_job, lambda number: {"number": number}, lambda c, _: "answer" in receive(c, "x"))
    assert seen[0] == 0
    assert 1 in seen  # asked again while the first was busy


def test_who_is_dismissed_finishes_and_says_so():
    with worker_processes(work, {"factor": 2}, 2, name="echo", patience_s=20) as connections:
        send(connections[0], {"number": 1})
        assert receive(connections[0], "doubling")["progress"] == 1
        assert receive(connections[0], "doubling")["answer"] == 2
        dismiss(connections, "leaving")
    assert not multiprocessing.active_children()


def test_signals_call_within_the_block_and_are_restored_after_it():
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    seen = []

    def leave() -> None:
        with signals_call(lambda number, _frame: seen.append(number), *numbers):
            for number in numbers:
                signal.raise_signal(number)
            raise ValueError("left")

    with pytest.raises(ValueError, match="left"):
        leave()
    assert seen == list(numbers)
    assert [signal.getsignal(number) for number in numbers] == before
