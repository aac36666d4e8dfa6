from __future__ import annotations

from pathlib import Path

import pytest

from motion_predictor.common.atomic_file import atomic_file


def test_file_takes_its_name_only_when_it_is_whole(tmp_path: Path):
    with atomic_file(tmp_path / "result.json") as file:
        file.write(b"{}")
        file.flush()
        assert not (tmp_path / "result.json").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]
    assert (tmp_path / "result.json").read_bytes() == b"{}"


def test_an_older_file_is_replaced(tmp_path: Path):
    path = tmp_path / "result.json"
    path.write_bytes(b"a longer, older result")
    with atomic_file(str(path)) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"a longer, older result"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("exception", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path: Path, exception: type[BaseException]):
    path = tmp_path / "result.json"
    path.write_bytes(b"older")

    def fail_half_way() -> None:
        with atomic_file(path) as file:
            file.write(b"half of")
            raise exception

    with pytest.raises(exception):
        fail_half_way()
    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_first_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), atomic_file(tmp_path / "result.json") as file:
        file.write(b"%d" % (1 // 0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_missing_is_the_callers_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "missing" / "result.json"):
        pass


def test_a_name_may_be_as_long_as_file_systems_take(tmp_path: Path):
    path = tmp_path / ("n" * 255)
    with atomic_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


def test_two_that_write_one_file_at_once_leave_one_of_both(tmp_path: Path):
    path = tmp_path / "result"
    with atomic_file(path) as first, atomic_file(path) as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["result"]
