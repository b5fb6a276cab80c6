"""One process in a folder: who has it, and that to ask holds up nobody."""

from __future__ import annotations

import os
import threading

import pytest

from framework.interop.atomic import FileError
from framework.interop.lock import LOCK, FolderLock, holder

fcntl = pytest.importorskip("fcntl", reason="locks of Windows are not shared")


def test_to_ask_who_has_a_folder_holds_up_nobody(tmp_path):
    """Some ask all the time while locks are taken over what a killed run has left."""
    stop = threading.Event()
    found = set()

    def ask():
        while not stop.is_set():
            found.add(holder(tmp_path))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(200):
            (tmp_path / LOCK).write_text("999999\n")
            with FolderLock(tmp_path):
                assert holder(tmp_path) == str(os.getpid())
            assert not (tmp_path / LOCK).exists()
    finally:
        stop.set()
        for asker in askers:
            asker.join()
    assert None in found


def test_two_that_ask_do_not_see_each_other(tmp_path):
    (tmp_path / LOCK).write_text("999999\n")
    with open(tmp_path / LOCK, "r+") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # in the middle of `holder`
        assert holder(tmp_path) is None
        timer = threading.Timer(0.02, fcntl.flock, (other, fcntl.LOCK_UN))
        timer.start()
        with FolderLock(tmp_path):
            timer.join()


def test_the_second_is_refused_with_the_pid_of_the_first(tmp_path):
    with FolderLock(tmp_path):
        with pytest.raises(FileError, match=f"process {os.getpid()}, this process"):
            FolderLock(tmp_path).acquire()
        assert holder(tmp_path) == str(os.getpid())
    assert holder(tmp_path) is None
    with FolderLock(tmp_path):
        pass
