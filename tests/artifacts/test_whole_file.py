"""A file's name never stands on half a file."""

import errno

import pytest

from calseg_cli.artifacts.whole_file import write_whole
from calseg_cli.errors import CalsegError, DiskFullError


def test_content_and_folder_are_made(tmp_path):
    write_whole(tmp_path / "a" / "b.txt", "ü")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "ü"
    assert [entry.name for entry in (tmp_path / "a").iterdir()] == ["b.txt"]


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, CalsegError)])
def test_old_content_survives_a_failed_write(tmp_path, monkeypatch, number, kind):
    path = tmp_path / "a.txt"
    write_whole(path, "old")

    def fail(descriptor):
        raise OSError(number, "no")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(kind, match=r"a\.txt"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
