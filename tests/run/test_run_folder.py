"""The folder of a run: what other runs may do to it just when it is made."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from numaemu_run.run_folder import run_folder


@pytest.fixture
def held() -> Iterator[list[int]]:
    """Descriptors of another run."""
    found: list[int] = []
    yield found
    for fd in found:
        os.close(fd)


@pytest.mark.parametrize("removed", [False, True])
def test_a_folder_that_another_run_takes_for_an_abandoned_one_is_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: list[int], *, removed: bool
) -> None:
    """It is gone, or about to go: there is another one, which nobody takes, and in the end there is none."""
    make = tempfile.mkdtemp
    made: list[str] = []

    def taken(prefix: str) -> str:
        path = make(prefix=prefix, dir=tmp_path)
        made.append(path)
        if len(made) == 1 and removed:
            Path(path).rmdir()
        elif len(made) == 1:
            held.append(os.open(path, os.O_RDONLY))
            fcntl.flock(held[0], fcntl.LOCK_EX)
        return path

    monkeypatch.setattr(tempfile, "mkdtemp", taken)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with run_folder() as one, run_folder() as two:
        assert [str(one), str(two)] == made[1:]
        assert one.is_dir()
        assert two.is_dir()
    assert list(tmp_path.iterdir()) == []
