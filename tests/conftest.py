"""Settings shared by all tests, and what none of them may do: leave something behind.

The hypothesis profile has no deadlines, and the same examples every time in CI.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings
from tests import leaks

from numaemu import connection

settings.register_profile("numaemu", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("numaemu")

OWNED_BEFORE = pytest.StashKey[set[str]]()
#: How long each fixture may take to end.
TEARDOWN_S = 60.0


@pytest.fixture(scope="session", autouse=True)
def worker_leaves_nothing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever this worker's tests have started has ended with its last test, and machines have no files left."""
    mark = leaks.mark_this_worker()
    # A shell that starts the tests in the background has these ignored, and so had all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    connection.shared_context()  # the library keeps one for a whole process
    runtime = tmp_path_factory.mktemp("r")
    runtime.chmod(0o700)
    before = {name: os.environ.get(name) for name in ("XDG_RUNTIME_DIR",)}
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)  # where a machine goes for which no test names another place
    yield
    left = leaks.left_over(lambda: leaks.marked_processes(mark) | leaks.files_below([runtime]), set())
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    del os.environ[leaks.MARK]
    assert not left, f"left behind by some test of this worker: {'; '.join(left)}"


@pytest.fixture(scope="module", autouse=True)
def module_leaves_nothing(worker_leaves_nothing: None, request: pytest.FixtureRequest) -> Iterator[None]:
    """The tests of a module that share machines are looked at together, when the last of them is over."""
    del worker_leaves_nothing
    before = leaks.owned()
    yield
    if request.node.get_closest_marker("shares_machines"):
        left = leaks.left_over(leaks.owned, before)
        assert not left, f"left behind by this module: {'; '.join(left)}"


@pytest.fixture(autouse=True)
def what_is_there(module_leaves_nothing: None, request: pytest.FixtureRequest) -> None:
    """Look at what there is once the fixtures of many tests are, and before those of this one."""
    del module_leaves_nothing
    if not request.node.get_closest_marker("shares_machines"):
        request.node.stash[OWNED_BEFORE] = leaks.owned()


@pytest.hookimpl(wrapper=True, trylast=True)  # inside of pytest's capturing, as the fixtures are
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """A test has closed its descriptors, ended its threads and child processes, and unmapped shared memory."""
    with bounded_parts():
        yield
        if isinstance(item, pytest.Function):
            item.funcargs.clear()  # the last references to what its fixtures gave
        if OWNED_BEFORE in item.stash:
            left = leaks.left_over(leaks.owned, item.stash[OWNED_BEFORE])
            assert not left, f"left behind by this test: {'; '.join(left)}"


@contextlib.contextmanager
def bounded_parts() -> Iterator[None]:
    """Whatever takes longer than its time is given up, and the next begins; pytest-timeout looks at no failed test."""

    def ring(_number: int, _frame: object) -> None:
        raise TimeoutError(f"no end within {TEARDOWN_S:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, TEARDOWN_S, TEARDOWN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
