"""The client: a connection, outputs that are written in place, inputs that are read in place."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Set, Tuple, Type, Union

from . import _wire
from ._wire import Answer, Code, InputRow, Listing, OutputRow, StageClass, StageError, Welcome

if TYPE_CHECKING:
    import numpy

SOCKET_VARIABLE = "LATEBIND_STAGE"

_F_ADD_SEALS = 1033
_F_GET_SEALS = 1034  # F_LINUX_SPECIFIC_BASE + 10; not every build of the fcntl module has the name
_SEAL_WRITE = 0x0008
_SEALS_NEEDED = 0x0002 | 0x0004 | _SEAL_WRITE  # SHRINK, GROW
_MADV_POPULATE_READ = 22
_MADV_POPULATE_WRITE = 23
_SUN_PATH = 107

_Bytes = Union[bytes, bytearray, memoryview]
_Shape = Union[int, Tuple[int, ...]]


def connect(path: Optional[str] = None) -> Client:
    """Connects to the stage broker that LATEBIND_STAGE names, or to the one at `path`."""
    if path is None:
        path = os.environ.get(SOCKET_VARIABLE)
    if not path:
        raise StageError(
            f"find the stage broker: {SOCKET_VARIABLE} is not set; run under a pilot that offers stages"
        )
    return Client(path)


class Client:
    """A connection to the stage broker. It may be shared by threads; what is not committed when it closes is dropped."""

    def __init__(self, path: str) -> None:
        self._moved = threading.Condition()
        self._last = 0
        self._asked: Set[int] = set()
        self._answers: Dict[int, Tuple[Answer, Optional[int]]] = {}
        self._receiving = False
        self._ended = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            _dial(self._socket, path)
            self.payload = self._greet()
        except OSError as error:
            self._socket.close()
            raise StageError(f"connect to the stage broker at {path}: {error.strerror or error}") from None
        except StageError:
            self._socket.close()
            raise

    def _greet(self) -> str:
        try:
            self._socket.send(_wire.hello(), socket.MSG_NOSIGNAL)
        except OSError:
            pass  # a broker that has no room has said so already
        heard = self._receive()
        if heard is None:
            raise StageError("connect to the stage broker: the connection has ended", Code.ENDED)
        message = heard[1]
        if isinstance(message, Answer) and message.kind == "refused":
            raise StageError(message.text, message.code)
        if not isinstance(message, Welcome):
            raise StageError("hear from the stage broker: it broke the protocol (no Welcome)")
        if message.protocol[0] != _wire.PROTOCOL[0]:
            raise StageError(f"connect to the stage broker: it speaks protocol {message.protocol[0]}")
        return message.payload

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; open inputs stay readable."""
        with self._moved:
            self._ended = True
            for _, fd in self._answers.values():
                if fd is not None:
                    os.close(fd)
            self._answers.clear()
            self._moved.notify_all()
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that receives
        except OSError:
            pass
        self._socket.close()

    def list(self) -> Listing:
        """The inputs and outputs of this payload as they stand."""
        answer, _ = self._ask(_wire.list_all, "listed")
        assert answer.listing is not None
        return answer.listing

    def create(self, output: str, nbytes: int, *, huge_pages: bool = False) -> Output:
        """Makes an output of `nbytes` bytes, zeros until they are written."""
        _wire.check_name("create output", output)
        if nbytes < 0 or nbytes >> 64:
            raise StageError(f'create output "{output}": {nbytes} is no size')
        answer, fd = self._ask(lambda ident: _wire.create(ident, output, nbytes, huge_pages), "lent")
        assert fd is not None
        return Output(self, output, answer.nbytes, fd, answer.note)

    def create_array(self, output: str, shape: _Shape, dtype: Any, *, huge_pages: bool = False) -> Output:
        """Makes an output that holds a numpy array; `output.array` is it."""
        numpy = _numpy()
        kind = numpy.dtype(dtype)
        count = 1
        for length in (shape,) if isinstance(shape, int) else shape:
            count *= int(length)
        made = self.create(output, count * kind.itemsize, huge_pages=huge_pages)
        made._form = (kind, shape)
        return made

    def open(self, name: str) -> Input:
        """Opens an input that is there."""
        return self._open(name, 0)

    def wait(self, name: str, seconds: Optional[float] = None) -> Input:
        """Waits until an input is there, at most `seconds`, and opens it. Its producer runs at the same time."""
        if seconds is not None:
            return self._open(name, min(max(1, int(seconds * 1000)), _wire.WAIT_MS_MAX))
        while True:
            try:
                return self._open(name, _wire.WAIT_MS_MAX)
            except StageError as error:
                if error.code is not Code.NOT_THERE:
                    raise

    def _open(self, name: str, wait_ms: int) -> Input:
        _wire.check_name("open input", name)
        answer, fd = self._ask(lambda ident: _wire.open_input(ident, name, wait_ms), "opened", "value", "by_path")
        if answer.kind == "by_path":
            try:
                fd = os.open(f"{_wire.INPUTS}/{name}", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise StageError(f'open input "{name}": {error.strerror or error}') from None
        if fd is None:
            return Input(name, StageClass.VALUE, memoryview(answer.value), None)
        try:
            assert answer.stage_class is not None
            view = _map(name, answer.stage_class, answer.nbytes, fd)
        except BaseException:
            os.close(fd)
            raise
        return Input(name, answer.stage_class, view, fd)

    def put(self, output: str, value: _Bytes) -> None:
        """Makes a small output whole, at most 64 KiB."""
        _wire.check_name("put output", output)
        data = bytes(value)
        if len(data) > _wire.VALUE_BYTES_MAX:
            raise StageError(
                f'put output "{output}": {len(data)} bytes are more than the {_wire.VALUE_BYTES_MAX} of a value'
            )
        self._ask(lambda ident: _wire.put(ident, output, data), "committed")

    def get(self, name: str) -> bytes:
        """The bytes of an input, copied: for small ones."""
        with self.open(name) as found:
            return found.view.tobytes()

    def _commit(self, output: str, nbytes: int) -> Answer:
        return self._ask(lambda ident: _wire.commit(ident, output, nbytes), "committed")[0]

    def _abandon(self, output: str) -> None:
        self._ask(lambda ident: _wire.abandon(ident, output), "abandoned")

    def _ask(self, question: Callable[[int], bytes], *kinds: str) -> Tuple[Answer, Optional[int]]:
        with self._moved:
            if self._ended:
                raise StageError("ask the stage broker: the connection has ended", Code.ENDED)
            self._last = self._last % 0xFFFF_FFFF + 1
            ident = self._last
            self._asked.add(ident)
        try:
            self._socket.send(question(ident), socket.MSG_NOSIGNAL)
        except OSError:
            pass  # the broker has said why it ended, and that is received next
        try:
            answer, fd = self._wait_for(ident)
        except BaseException:
            with self._moved:
                # An interrupted wait: what comes for it later is closed.
                self._asked.discard(ident)
            raise
        if answer.kind == "refused":
            raise StageError(answer.text, answer.code)
        if answer.kind not in kinds:
            if fd is not None:
                os.close(fd)
            raise StageError("hear from the stage broker: it broke the protocol (an answer to another question)")
        return answer, fd

    def _wait_for(self, ident: int) -> Tuple[Answer, Optional[int]]:
        while True:
            with self._moved:
                # One thread receives, for all.
                while ident not in self._answers and not self._ended and self._receiving:
                    self._moved.wait()
                if ident in self._answers:
                    return self._answers.pop(ident)
                if self._ended:
                    raise StageError("ask the stage broker: the connection has ended", Code.ENDED)
                self._receiving = True
            heard = None
            ended = True
            try:
                heard = self._receive()
                ended = heard is None
            except KeyboardInterrupt:
                ended = False
                raise
            except OSError as error:
                raise StageError(f"hear from the stage broker: {error.strerror or error}") from None
            finally:
                with self._moved:
                    self._receiving = False
                    self._ended |= ended
                    if heard is not None:
                        self._sort_in(*heard)
                    self._moved.notify_all()

    def _sort_in(self, of: int, message: object, fd: Optional[int]) -> None:
        if isinstance(message, Answer) and of == 0 and message.kind == "refused":
            self._ended = True
            for ident in self._asked:
                self._answers[ident] = (message, None)
            self._asked.clear()
        elif isinstance(message, Answer) and of in self._asked:
            self._asked.discard(of)
            self._answers[of] = (message, fd)
        elif fd is not None:
            os.close(fd)  # nobody waits for it any more

    def _receive(self) -> Optional[Tuple[int, object, Optional[int]]]:
        while True:
            try:
                data, fds, flags, _ = socket.recv_fds(
                    self._socket, _wire.FRAME_BYTES_MAX, 16, socket.MSG_CMSG_CLOEXEC
                )
                break
            except ConnectionResetError:
                continue  # said once, ahead of what is still in the queue
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise StageError("hear from the stage broker: a frame was cut")
            if not data:
                return None
            ident, message = _wire.decode(data)
            if len(fds) != (message.fds if isinstance(message, Answer) else 0):
                raise StageError("hear from the stage broker: it broke the protocol (descriptors)")
            return ident, message, fds.pop() if fds else None
        finally:
            for fd in fds:
                os.close(fd)


class Output:
    """Memory of the broker's that this payload writes, until it commits it.

    As a context manager it is committed at the end of the block, and abandoned after an exception.
    """

    def __init__(self, client: Client, name: str, nbytes: int, fd: int, note: Optional[str]) -> None:
        self.name = name
        self.nbytes = nbytes
        #: What was asked for and could not be had, in one line: huge pages.
        self.note = note
        #: How long sealing took, in microseconds, once it is committed.
        self.seal_us: Optional[int] = None
        self._client = client
        self._fd: Optional[int] = fd
        self._form: Optional[Tuple[Any, _Shape]] = None
        self._map: Optional[mmap.mmap] = None
        self._view: Optional[memoryview] = None

    def fileno(self) -> int:
        """The memory's descriptor, for calls that fill it."""
        if self._fd is None:
            raise StageError(f'write output "{self.name}": it is committed or abandoned')
        return self._fd

    @property
    def view(self) -> memoryview:
        """The memory, writable, in place."""
        if self._view is None:
            fd = self.fileno()
            if self.nbytes == 0:
                self._view = memoryview(bytearray())
            else:
                try:
                    self._map = mmap.mmap(fd, self.nbytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                except OSError as error:
                    raise StageError(f'write output "{self.name}": {error.strerror or error}') from None
                # All pages at once are cheaper than one by one; without a note of each one's last use, so is unmapping.
                for advice in (mmap.MADV_SEQUENTIAL, _MADV_POPULATE_WRITE):
                    with contextlib.suppress(OSError):
                        self._map.madvise(advice)
                self._view = memoryview(self._map)
        return self._view

    @property
    def array(self) -> numpy.ndarray:
        """The memory as the numpy array that it was created for, else as bytes."""
        kind, shape = self._form or ("u1", self.nbytes)
        return _numpy().frombuffer(self.view, dtype=kind).reshape(shape)

    def commit(self, nbytes: Optional[int] = None) -> int:
        """Makes its first `nbytes` bytes a stage, all of them by default. Nobody can change it any more.

        Arrays and views of it must be gone: memory that is mapped for writing can't be made immutable.
        """
        fd = self.fileno()
        self._unmap("commit")
        began = time.monotonic_ns()
        # The kernel looks at each page for this. When it is refused, the broker says why.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_WRITE)
        own_us = (time.monotonic_ns() - began) // 1000
        answer = self._client._commit(self.name, self.nbytes if nbytes is None else nbytes)
        self._close()
        self.seal_us = own_us + answer.seal_us
        return answer.nbytes

    def abandon(self) -> None:
        """Gives it back; it may be created again."""
        if self._fd is None:
            return
        try:
            self._unmap("abandon")
        finally:
            self._close()
            if not self._client._ended:
                self._client._abandon(self.name)

    def _unmap(self, doing: str) -> None:
        try:
            if self._view is not None:
                self._view.release()
                self._view = None
            if self._map is not None:
                self._map.close()
                self._map = None
        except BufferError:
            raise StageError(
                f'{doing} output "{self.name}": an array or view of it is still in use; delete it and {doing} again',
                Code.BUSY,
            ) from None

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._fd is None:
            return
        if kind is None:
            self.commit()
            return
        try:
            self.abandon()
        except StageError:
            pass  # the exception that is on its way says more

    def __del__(self) -> None:
        self._close()


class Input:
    """A stage that is read: in place if this process finds it sealed, else from a copy of its own."""

    def __init__(self, name: str, stage_class: StageClass, view: memoryview, fd: Optional[int]) -> None:
        self.name = name
        self.stage_class = stage_class
        #: The bytes, read-only.
        self.view = view
        self.nbytes = view.nbytes
        self._fd = fd

    @property
    def in_place(self) -> bool:
        """Whether `view` is the stage itself, and not a copy."""
        return self.stage_class is StageClass.MEM

    def array(self, dtype: Any = "u1", shape: Optional[_Shape] = None) -> numpy.ndarray:
        """The bytes as a read-only numpy array."""
        found = _numpy().frombuffer(self.view, dtype=dtype)
        return found if shape is None else found.reshape(shape)

    def populate(self) -> None:
        """Maps all pages at once, so that no access waits for one later; reading all of them is no faster for it."""
        if isinstance(self.view.obj, mmap.mmap):
            try:
                self.view.obj.madvise(_MADV_POPULATE_READ)
            except OSError:
                pass  # before Linux 5.14; they come on demand

    def fileno(self) -> int:
        """The read-only descriptor; a value has none."""
        if self._fd is None:
            raise StageError(f'read input "{self.name}": it is a value or closed, and has no descriptor')
        return self._fd

    def close(self) -> None:
        """Closes the descriptor. Views and arrays of it stay valid."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Input:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _map(name: str, stage_class: StageClass, nbytes: int, fd: int) -> memoryview:
    stat = os.fstat(fd)
    if stat.st_size != nbytes:
        raise StageError(f'read input "{name}": it has {stat.st_size} bytes, the broker said {nbytes}')
    if stage_class is StageClass.FILE:
        return _copy(name, nbytes, fd)
    try:
        seals = fcntl.fcntl(fd, _F_GET_SEALS)
    except OSError:
        seals = 0
    if seals & _SEALS_NEEDED != _SEALS_NEEDED:
        raise StageError(f'read input "{name}": it is not sealed, so its producer could change it')
    if stat.st_blocks * 512 < nbytes:
        raise StageError(f'read input "{name}": it has holes, which would cost memory to read')
    if nbytes == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(fd, nbytes, mmap.MAP_SHARED, mmap.PROT_READ))


def _copy(name: str, nbytes: int, fd: int) -> memoryview:
    """A file can't be sealed, and its owner could change it under a mapping: its bytes are read once."""
    room = bytearray(nbytes)
    view = memoryview(room)
    at = 0
    while at < nbytes:
        got = os.preadv(fd, [view[at:]], at)
        if got == 0:
            raise StageError(f'read input "{name}": it ended after {at} of {nbytes} bytes')
        at += got
    return view.toreadonly()


def _dial(sock: socket.socket, path: str) -> None:
    if len(os.fsencode(path)) <= _SUN_PATH:
        sock.connect(path)
        return
    # Longer than an address holds: by way of its folder.
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def _numpy() -> Any:
    try:
        import numpy
    except ImportError:
        raise StageError("make an array: numpy is not installed; use view, or install numpy") from None
    return numpy


__all__ = ["Client", "Input", "InputRow", "Listing", "Output", "OutputRow", "connect"]
