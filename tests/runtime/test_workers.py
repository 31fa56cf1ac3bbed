"""Jobs done at the same time, by threads or by forked processes: the same results, and nothing is left behind."""

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

import growth
from growth import CheckpointError
from growth.errors import WorkerDied
from growth.runtime.workers import ProgressCounter, WorkerPool
from tests.support.folders import bytes_of

KILLS = 12


@pytest.fixture(params=["threads", "processes"])
def pool(request):
    if request.param == "processes":
        request.getfixturevalue("alone")
    return WorkerPool(forks=request.param == "processes")


def meter(progress=None):
    return ProgressCounter("work", 1000, progress)


def test_results_come_in_order(pool):
    def job(number):
        time.sleep(random.Random(number).random() / 100)
        return number, "x" * number

    jobs = [partial(job, number) for number in range(40)]
    assert pool.run(jobs, meter()) == [(number, "x" * number) for number in range(40)]
    assert pool.run([], meter()) == []


def test_each_job_is_done_once(pool, tmp_path):
    def job(number):
        with (tmp_path / "done").open("a") as file:
            file.write(f"{number}\n")

    pool.run([partial(job, number) for number in range(2000)], meter())
    assert sorted(map(int, (tmp_path / "done").read_text().split())) == list(range(2000))


def test_what_is_done_is_counted_where_it_is_shown(pool):
    seen = []
    counted = meter(lambda *told: seen.append((os.getpid(), *told)))
    pool.run([partial(counted.add, 100)] * 10, counted)
    assert {pid for pid, *_ in seen} == {os.getpid()}
    assert seen[0][1:] == ("work", 0, 1000)
    assert seen[-1][1:] == ("work", 1000, 1000)


@pytest.mark.parametrize("error", [CheckpointError("it is 'so'"), ValueError("unforeseen"), OSError(28, "full")])
def test_the_first_error_is_raised_and_then_nothing_goes_on(pool, error, tmp_path, request):
    def fail():
        raise error

    def linger(number):
        time.sleep(0.05)
        (tmp_path / str(number)).touch()

    sent = "threads" in request.node.name or isinstance(error, (CheckpointError, OSError))  # of others, the traceback
    with pytest.raises(type(error) if sent else RuntimeError, match=str(error)[-5:-1]):
        pool.run([fail, *(partial(linger, number) for number in range(100))], meter())
    there = len(list(tmp_path.iterdir()))
    assert there < 10
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == there


def test_where_there_is_nothing_to_do_nobody_is_asked(pool, monkeypatch):
    monkeypatch.setattr("concurrent.futures.ThreadPoolExecutor", None)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", None)
    assert pool.run([], meter()) == []


def test_a_process_that_is_killed_is_an_error_of_ours(alone):
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(WorkerDied, match="A worker process was killed"):
        WorkerPool(forks=True).run([die, *[partial(time.sleep, 0.01)] * 5], meter())


def test_a_process_that_is_killed_while_it_says_what_it_found_is_too(alone):
    def find():
        meter().add(1)
        return bytes(4000)  # many of them are more than a pipe holds

    class Kills(ProgressCounter):
        """A slow listener: those who have something to say wait, and are killed."""

        def add(self, count):
            if count:
                for pid in children_of(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.1)

    told = Kills("work", 1000, None)
    with pytest.raises(WorkerDied, match="A worker process was killed"):
        WorkerPool(forks=True).run([find] * 200, told)


class Odd(Exception):
    """One that cannot be made of its arguments."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize("error", [Odd(1, 2), ValueError(lambda: 0), SystemExit(3)])
def test_errors_that_cannot_be_sent_are_told_nonetheless(error, alone):
    def fail():
        raise error

    with pytest.raises(BaseException) as found:  # noqa: PT011
        WorkerPool(forks=True).run([fail], meter())
    assert type(error).__name__ in f"{type(found.value).__name__} {found.value}"


@pytest.mark.parametrize("allowed", [0, 1])
def test_where_the_system_forks_no_more_those_that_are_there_work(allowed, alone, monkeypatch):
    fork = os.fork

    def limited():
        if len(multiprocessing.active_children()) == allowed:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr("growth.runtime.workers.cores", lambda: 3)
    monkeypatch.setattr("os.fork", limited)
    if allowed:
        assert WorkerPool(forks=True).run([int] * 7, meter()) == [0] * 7
    else:
        with pytest.raises(CheckpointError, match="No further process"):
            WorkerPool(forks=True).run([int] * 7, meter())
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(("threads", "forks", "inside"), [(2, True, True), (1, False, True), (1, True, False)])
def test_a_process_with_threads_of_its_own_is_not_forked(threads, forks, inside, monkeypatch):
    monkeypatch.setattr("threading.active_count", lambda: threads)
    (pid,) = WorkerPool(forks=forks).run([os.getpid], meter())
    assert (pid == os.getpid()) == (inside or sys.platform != "linux")


def test_an_error_is_not_waited_for(pool):
    def fail():
        raise CheckpointError("soon")

    began = time.monotonic()
    with pytest.raises(CheckpointError, match="soon"):
        pool.run([partial(time.sleep, 0.3), fail, *[partial(time.sleep, 0.05)] * 100], meter())
    assert time.monotonic() - began < 1.5


@pytest.mark.parametrize("forks", [False, True])
def test_an_interruption_ends_what_is_running(forks, tmp_path, alone):
    """What was not started stays so, and forked processes are not waited for."""

    def interrupt(phase, done, total):
        if done:
            raise KeyboardInterrupt

    def work(number):
        counter.add(1)
        time.sleep(0.05)
        (tmp_path / str(number)).touch()

    counter = meter(interrupt)
    with pytest.raises(KeyboardInterrupt):
        WorkerPool(forks=forks).run([partial(work, number) for number in range(100)], counter)
    there = len(list(tmp_path.iterdir()))
    time.sleep(0.2)
    assert len(list(tmp_path.iterdir())) == there < 50
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_who_is_forked_leaves_what_was_there_to_the_one_that_forked_it(alone):
    """Whoever looks for garbage writes to each object, and has a copy of its page from then on."""
    (frozen,) = WorkerPool(forks=True).run([gc.get_freeze_count], ProgressCounter("count", 0))
    assert frozen > 10_000
    assert gc.get_freeze_count() == 0


# ------------------------------------------------- commands


def command(*words):
    return [sys.executable, "-m", "growth", *map(str, words)]


@pytest.fixture(scope="module")
def mini(phi_mini, tmp_path_factory):
    """What threads write."""
    output = tmp_path_factory.mktemp("mini") / "out"
    growth.grow("phi-mini", phi_mini, output)
    return bytes_of(output)


TRACED = """\
import os, sys
from growth.cli.app import app
fork, forked = os.fork, []
os.fork = lambda: forked.append(fork()) or forked[-1]
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules
print("forked", len(forked))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")
def test_a_command_forks_and_writes_the_same_bytes_without_torch(phi_mini, mini, tmp_path):
    words = ["grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "out", "--max-shard-size", "2MB"]
    done = subprocess.run([sys.executable, "-c", TRACED, *map(str, words)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) >= 2
    growth.grow("phi-mini", phi_mini, tmp_path / "threads", max_shard_size="2MB")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "threads")
    checked = [sys.executable, "-c", TRACED, "verify", "--weights", str(phi_mini), str(tmp_path / "out")]
    assert (
        "Every bit that was compared is" in subprocess.run(checked, capture_output=True, text=True, check=True).stdout
    )


def children_of(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in found.read_text().split()] if found.exists() else []


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("victim", ["command", "worker"])
@pytest.mark.parametrize(
    "moment", [*range(2), *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, KILLS // 2))]
)
def test_a_command_or_worker_that_is_killed_leaves_nothing_half_done(victim, moment, phi_mini, mini, tmp_path):
    output = tmp_path / "out"
    delay = random.Random(f"{victim}{moment}").random() * 0.15
    with subprocess.Popen(
        command("grow", "phi-mini", "-s", phi_mini, "-o", output, "--resume"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not (workers := children_of(process.pid)):
            time.sleep(0.0005)
        time.sleep(delay)
        workers = children_of(process.pid) or workers
        with suppress(ProcessLookupError):
            os.kill(process.pid if victim == "command" else workers[0], signal.SIGKILL)
        said = process.stderr.read()
        status = process.wait()
    assert "Traceback" not in said
    assert status in ((-signal.SIGKILL, 0) if victim == "command" else (0, 2)), said
    assert not output.exists() or bytes_of(output) == mini
    end = time.monotonic() + 5
    while any(map(alive, workers)):  # they end by themselves
        assert time.monotonic() < end
        time.sleep(0.01)
    growth.grow("phi-mini", phi_mini, output, resume=True)
    assert bytes_of(output) == mini
    assert os.listdir(tmp_path) == ["out"]


def alive(pid):
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("moment", range(4))
def test_the_keyboard_stops_a_command_and_its_workers_with_one_sentence(moment, phi_mini, tmp_path):
    with subprocess.Popen(
        command("grow", "phi-mini", "-s", phi_mini, "-o", tmp_path / "out"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and not children_of(process.pid):
            time.sleep(0.0005)
        time.sleep(moment * 0.03)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
        assert process.wait() in (0, 130)
    assert "Traceback" not in said
    assert process.returncode == 0 or "with --resume" in " ".join(said.split())
