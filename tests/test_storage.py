"""Files whole or not at all, whatever the disk does; and folders, and where the cache is."""

import errno
import os
import sys
import threading
from pathlib import Path

import pytest

from cbam_edu import storage
from cbam_edu.storage import StorageError, cache_dir, make_folder, replace_file


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def old(tmp_path):
    """A file with an old content, alone in its folder."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    return path


def test_a_file_is_made_and_replaced(tmp_path):
    path = tmp_path / "model.bin"
    replace_file(path, lambda file: file.write(b"first"))
    assert content(tmp_path) == {"model.bin": b"first"}
    replace_file(str(path), lambda file: file.write(b"second"))
    assert content(tmp_path) == {"model.bin": b"second"}


def test_the_old_file_is_there_until_the_new_one_is_whole(old):
    def write(file):
        file.write(b"ne")
        file.flush()
        assert old.read_bytes() == b"old"
        file.write(b"w")

    replace_file(old, write)
    assert old.read_bytes() == b"new"


def test_the_bytes_reach_the_disk_before_the_name(old, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle):
        kind = "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"
        done.append((f"sync {kind}", old.read_bytes()))
        fsync(handle)

    def noted_replace(source, target):
        done.append(("replace", Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    replace_file(old, lambda file: file.write(b"new"))
    assert done[:2] == [("sync file", b"old"), ("replace", b"new")]
    if sys.platform == "linux":
        assert done[2:] == [("sync folder", b"new")]


def test_the_file_has_the_usual_permissions(old):
    other = old.with_name("other")
    other.write_bytes(b"")
    replace_file(old, lambda file: file.write(b"new"))
    assert old.stat().st_mode == other.stat().st_mode


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), RuntimeError("no")])
def test_what_write_raises_passes_and_the_old_file_stays(old, error):
    def write(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises(type(error)):
        replace_file(old, write)
    assert content(old.parent) == {"model.bin": b"old"}


def test_a_storage_error_of_another_file_passes_unchanged(old):
    def write(file):
        raise StorageError("cannot read another file")

    with pytest.raises(StorageError, match=r"^cannot read another file$"):
        replace_file(old, write)


REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "your disk quota is used up; free some space",
    errno.EROFS: "it is on a read-only disk; choose another folder",
    errno.EACCES: "permission is denied; choose another folder or change its permissions",
    errno.EIO: f"{os.strerror(errno.EIO)}; choose another folder",
}


@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(("number", "reason"), REASONS.items())
def test_a_disk_that_fails_leaves_the_old_file_and_says_why(
    old, monkeypatch, where, number, reason
):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    if where == "open":
        monkeypatch.setattr(storage, "open", fail, raising=False)
    elif where != "write":
        monkeypatch.setattr(os, where, fail)
    with pytest.raises(StorageError) as caught:
        replace_file(old, fail if where == "write" else lambda file: file.write(b"new"))
    assert str(caught.value) == f"cannot write {old}: {reason}"
    assert caught.value.errno == number
    assert content(old.parent) == {"model.bin": b"old"}


def test_a_real_limit_met_while_writing(old):
    resource = pytest.importorskip("resource", reason="a limit on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=r"model\.bin: the file is larger than this disk"):
            replace_file(old, lambda file: file.write(bytes(2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(old.parent) == {"model.bin": b"old"}


def begun(folder, beginning=".model.bin."):
    """A temporary file of a process that lives, as `replace_file` has it."""
    return storage._begin(folder, beginning)


def test_what_a_killed_process_left_is_removed_by_the_next(old):
    file, _ = begun(old.parent)
    file.write(b"half")
    file.close()  # as the system does for a process that is killed
    others = [".model.bin.notes.tmp", ".other.bin.0123abcd.tmp", "model.bin.0123abcd.tmp"]
    for name in others:
        (old.parent / name).touch()
    replace_file(old, lambda file: file.write(b"new"))
    assert content(old.parent) == {"model.bin": b"new"} | dict.fromkeys(others, b"")


def test_what_a_living_process_is_writing_is_left_to_it(old):
    file, temporary = begun(old.parent)
    with file:
        replace_file(old, lambda file: file.write(b"new"))
        assert temporary.exists()


def test_a_file_swept_away_as_it_is_begun_is_begun_anew(old, monkeypatch):
    held = []

    def hold(file, wait=True):
        if not held:
            os.unlink(file.name)  # as another process does between the opening and the lock
        held.append(file.name)

    monkeypatch.setattr(storage, "_hold", hold)
    replace_file(old, lambda file: file.write(b"new"))
    assert len(held) == 2
    assert content(old.parent) == {"model.bin": b"new"}


@pytest.mark.skipif(sys.platform == "win32", reason="other limits")
@pytest.mark.parametrize(
    "name",
    ["x" * 255, "\N{SNOWMAN}" * 85, "a b\nc", b"\xff\xfe.bin".decode("utf-8", "surrogateescape")],
)
def test_every_name_that_the_system_takes(tmp_path, name):
    path = tmp_path / name
    try:
        path.touch()
    except OSError:
        pytest.skip("this system takes no such name")
    replace_file(path, lambda file: file.write(b"new"))
    assert content(tmp_path) == {name: b"new"}


def test_a_link_stays_a_link_and_its_file_is_written(old, tmp_path):
    link = tmp_path / "link"
    (tmp_path / "far").mkdir()
    target = old.rename(tmp_path / "far" / "model.bin")
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("this account makes no links")
    replace_file(link, lambda file: file.write(b"new"))
    assert link.is_symlink()
    assert content(tmp_path / "far") == {"model.bin": b"new"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="other permissions")
def test_permissions_are_kept(old):
    old.chmod(0o600)
    replace_file(old, lambda file: file.write(b"new"))
    assert old.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_read_only_is_not_replaced(old, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everything
    with pytest.raises(StorageError, match=r"cannot write .*model\.bin: permission is denied"):
        replace_file(old, lambda file: file.write(b"new"))
    assert content(old.parent) == {"model.bin": b"old"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_what_is_no_file_is_not_replaced(tmp_path):
    """As /dev/null was, for an administrator: a file stood in its place afterwards."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match=r"pipe: it is a device or a pipe, not a file; give the"):
        replace_file(pipe, lambda file: file.write(b"new"))
    assert pipe.is_fifo()


def test_a_folder_in_the_way_of_a_file(tmp_path):
    (tmp_path / "model.bin").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*model\.bin: (it is a folder|perm)"):
        replace_file(tmp_path / "model.bin", lambda file: file.write(b"new"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.bin"]


def test_a_file_without_a_folder(tmp_path):
    with pytest.raises(StorageError, match=r"cannot write .*model\.bin: it does not exist; check"):
        replace_file(tmp_path / "nowhere" / "model.bin", lambda file: file.write(b"new"))


def test_a_folder_that_cannot_be_synced_is_no_failure(old, monkeypatch):
    opened = os.open

    def no_folders(path, *rest, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "folders cannot be opened", str(path))
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "open", no_folders)
    replace_file(old, lambda file: file.write(b"new"))
    assert content(old.parent) == {"model.bin": b"new"}


def test_folders_are_made_with_those_above_and_may_be_there(tmp_path):
    folder = tmp_path / "a" / "b"
    assert make_folder(folder) == folder
    assert folder.is_dir()
    assert make_folder(str(folder)) == folder


def test_a_folder_that_cannot_be_made(old):
    with pytest.raises(StorageError, match=r"cannot make the folder .*: a part of the path is a f"):
        make_folder(old / "data")
    with pytest.raises(StorageError, match=r"cannot make the folder .*: a file of that name is in"):
        make_folder(old)
    with pytest.raises(StorageError, match=r"cannot make the folder .*: the name is too long"):
        make_folder(old.parent / ("x" * 300))


def test_lines_are_added_after_whatever_is_there(tmp_path):
    path = tmp_path / "times.jsonl"
    storage.append_lines(path, b"1\n2\n")
    storage.append_lines(str(path), b"3\n")
    assert path.read_bytes() == b"1\n2\n3\n"
    path.write_bytes(b'{"cut')
    storage.append_lines(path, b"4\n")
    assert path.read_bytes() == b'{"cut\n4\n'


def test_of_lines_that_find_no_room_none_is_added(tmp_path):
    resource = pytest.importorskip("resource", reason="a limit on the size of files")
    path = tmp_path / "times.jsonl"
    path.write_bytes(b"old\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*jsonl: the file is larger than"):
            storage.append_lines(path, b"x" * 2000 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old\n"


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked")
def test_a_folder_is_one_process_at_a_times(tmp_path):
    got = threading.Event()

    def second():
        with storage.alone(tmp_path):
            got.set()

    other = threading.Thread(target=second)
    with storage.alone(tmp_path):
        other.start()
        assert not got.wait(0.1)
    assert got.wait(10)
    other.join()
    assert list(tmp_path.iterdir()) == []


def test_an_error_without_a_number_or_words_is_still_told():
    message = r"^cannot read x: TimeoutError; choose another folder$"
    with pytest.raises(StorageError, match=message), storage.explained("read", "x"):
        raise TimeoutError


# --- the cache ---


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CBAM_EDU_DATA", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("CBAM_EDU_DATA", "~/data")
    assert cache_dir() == tmp_path / "data"


@pytest.mark.parametrize("value", ["", None])
def test_the_cache_is_else_in_the_users_own(monkeypatch, tmp_path, value):
    if value is None:
        monkeypatch.delenv("CBAM_EDU_DATA", raising=False)
    else:
        monkeypatch.setenv("CBAM_EDU_DATA", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir().name == "cbam_edu"
    if sys.platform == "linux":
        assert cache_dir() == tmp_path / ".cache" / "cbam_edu"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
        assert cache_dir() == tmp_path / "elsewhere" / "cbam_edu"
    assert not cache_dir().exists()
