"""What payloads that run together pass to each other: pipes and shared memory. They are no stages, so no broker has them and
no connection is needed."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Optional, Tuple, Type, Union

from . import _wire
from ._wire import StageError

if TYPE_CHECKING:
    import numpy

_F_GET_SEALS = 1034
_SEALS_OF_SHARED = 0x0002 | 0x0004  # SHRINK, GROW
_SEAL_WRITE = 0x0008


def read_stream(name: str) -> BinaryIO:
    """Opens an input of class pipe; waits until its producer has opened it, too, or has ended."""
    return _stream("read stream", _wire.INPUTS, name, "rb")


def write_stream(name: str) -> BinaryIO:
    """Opens an output of class pipe; waits until its reader has opened it, too, or has ended."""
    return _stream("write stream", _wire.OUTPUTS, name, "wb")


def shared_input(name: str) -> Shared:
    """Opens an input of class shared."""
    return Shared(_wire.INPUTS, name)


def shared_output(name: str) -> Shared:
    """Opens an output of class shared."""
    return Shared(_wire.OUTPUTS, name)


def _stream(doing: str, folder: str, name: str, mode: str) -> BinaryIO:
    _wire.check_name(doing, name)
    path = f"{folder}/{name}"
    try:
        # Looked at first: to open another file for writing is to have written it.
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            raise StageError(f'{doing} "{name}": it is no pipe; declare it with class pipe')
        return open(path, mode)
    except OSError as error:
        raise StageError(f'{doing} "{name}": {error.strerror or error}') from None


class Shared:
    """Memory of a fixed size that several payloads read and write at the same time. What keeps order is theirs."""

    def __init__(self, folder: str, name: str) -> None:
        _wire.check_name("share memory", name)
        self.name = name
        self._fd: Optional[int] = None
        self._map: Optional[mmap.mmap] = None
        try:
            # Looked at first: who opens a pipe lets the other end go on.
            if not stat.S_ISREG(os.stat(f"{folder}/{name}").st_mode):
                raise StageError(f'share memory "{name}": it is no shared memory; declare it with class shared')
            self._fd = os.open(f"{folder}/{name}", os.O_RDWR | os.O_CLOEXEC)
            #: Its size, the `max_size` of the output.
            self.nbytes = os.fstat(self._fd).st_size
        except OSError as error:
            raise StageError(f'share memory "{name}": {error.strerror or error}') from None
        try:
            seals = fcntl.fcntl(self._fd, _F_GET_SEALS)
        except OSError:
            seals = 0
        if seals & (_SEALS_OF_SHARED | _SEAL_WRITE) != _SEALS_OF_SHARED:
            self.close()
            raise StageError(f'share memory "{name}": it is no shared memory; declare it with class shared')
        self._map = mmap.mmap(self._fd, self.nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    @property
    def view(self) -> memoryview:
        """The memory, readable and writable, in place."""
        if self._map is None:
            raise StageError(f'share memory "{self.name}": it is closed')
        return memoryview(self._map)

    def array(self, dtype: Any = "u1", shape: Optional[Union[int, Tuple[int, ...]]] = None) -> numpy.ndarray:
        """The memory as a numpy array, in place."""
        from ._client import _numpy

        found = _numpy().frombuffer(self.view, dtype=dtype)
        return found if shape is None else found.reshape(shape)

    def fileno(self) -> int:
        """Its descriptor, readable and writable."""
        if self._fd is None:
            raise StageError(f'share memory "{self.name}": it is closed')
        return self._fd

    def close(self) -> None:
        """Closes the descriptor. Views and arrays of it stay valid."""
        self._map = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Shared:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
