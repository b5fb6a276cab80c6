"""One process at a time in a folder."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from framework.interop.atomic import FileError

LOCK = ".lock"
#: `holder` has the lock for some microseconds: who wants it asks again, this often, after pauses of
#: so many seconds.
TRIES, PAUSE = 20, 0.005


class FolderLock:
    """Held from `acquire` to `release`; the system lets go of it when the process ends, however it
    does: a lock that a kill leaves behind holds nobody up. Some network file systems have no locks;
    there the folder is not guarded.

    Raises:
        FileError: another process (or another lock of this one) has the folder; names its pid.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._handle: int | None = None

    def acquire(self) -> None:
        if self._handle is not None:
            return
        path = self.folder / LOCK
        while True:
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise FileError(f"cannot write {path}: {error.strerror or error}") from error
            if not _lock_soon(handle):
                owner = _owner(handle)
                os.close(handle)
                mine = ", this process" if owner == str(os.getpid()) else ""
                raise FileError(
                    f"{self.folder} is in use by another run (process {owner}{mine}): "
                    "wait for it, or stop it"
                )
            if _is_at(handle, path):  # not removed by its last holder in the meantime
                break
            os.close(handle)
        self._handle = handle
        try:
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
        except OSError as error:  # the disk is full
            self.release()
            raise FileError(f"cannot write {path}: {error.strerror or error}") from error

    def release(self) -> None:
        """Let others in. Nothing happens where it is not held."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with suppress(OSError):
                (self.folder / LOCK).unlink()  # while it is held: nobody else's can be removed
            os.close(handle)

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def holder(folder: str | Path) -> str | None:
    """The process id of the run that has `folder`; None where nobody has it. To ask holds up
    neither a run that begins nor others that ask.
    """
    try:
        handle = os.open(Path(folder) / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        return None if _lock(handle, shared=True) else _owner(handle)
    finally:
        os.close(handle)  # which also lets go of it


def _owner(handle: int) -> str:
    return os.read(handle, 20).decode("ascii", "replace").strip() or "unknown"


def _lock_soon(handle: int) -> bool:
    """False where somebody else has it, and not only for a moment."""
    for _ in range(TRIES):
        if _lock(handle):
            return True
        time.sleep(PAUSE)
    return False


def _lock(handle: int, shared: bool = False) -> bool:
    """False where somebody else has it. `shared` (not on Windows): several may have it at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the pid, which others have to read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # no locks on this file system
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False
