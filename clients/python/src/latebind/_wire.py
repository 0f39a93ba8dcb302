"""The messages of the stage broker's socket: postcard, as docs/reference/stage-clients.md has them.

Nothing here does I/O. What arrives is checked as it is read: a length that lies is an error, never an allocation.
"""

from __future__ import annotations

import enum
import re
from typing import List, NamedTuple, Optional, Tuple

PROTOCOL = (1, 0)
FRAME_BYTES_MAX = 68 * 1024
VALUE_BYTES_MAX = 64 * 1024
INPUTS = "/stage/in"
OUTPUTS = "/stage/out"
WAIT_MS_MAX = 86_400_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


class Code(enum.IntEnum):
    """Why the broker refused."""

    MALFORMED = 0
    VERSION = 1
    UNDECLARED = 2
    WRONG_CLASS = 3
    EXISTS = 4
    NOT_CREATED = 5
    BUSY = 6
    TOO_LARGE = 7
    TOO_SMALL = 8
    OVER_BUDGET = 9
    NOT_THERE = 10
    GONE = 11
    TOO_MANY = 12
    ENDED = 13
    IO = 14


class StageClass(enum.IntEnum):
    """How a stage is kept."""

    MEM = 0
    FILE = 1
    VALUE = 2


class StageError(Exception):
    """What failed, on what, what to do next: one line. `code` is the broker's, if it was the broker that said no."""

    def __init__(self, text: str, code: Optional[Code] = None) -> None:
        super().__init__(text)
        self.code = code


class InputRow(NamedTuple):
    """An input as it stands."""

    name: str
    stage_class: Optional[StageClass]
    nbytes: Optional[int]
    live: bool


class OutputRow(NamedTuple):
    """An output as it stands."""

    name: str
    stage_class: StageClass
    max_bytes: int
    committed: Optional[int]


class Listing(NamedTuple):
    """The inputs and outputs of this payload."""

    inputs: List[InputRow]
    outputs: List[OutputRow]


class Answer(NamedTuple):
    """One answer; which fields matter, its kind says."""

    kind: str
    nbytes: int = 0
    note: Optional[str] = None
    seal_us: int = 0
    stage_class: Optional[StageClass] = None
    value: bytes = b""
    listing: Optional[Listing] = None
    code: Optional[Code] = None
    text: str = ""

    @property
    def fds(self) -> int:
        return 1 if self.kind in ("lent", "opened") else 0


class Welcome(NamedTuple):
    """The broker's first frame."""

    protocol: Tuple[int, int]
    payload: str
    listing: Listing


def check_name(doing: str, name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StageError(
            f"{doing} {name!r:.80}: a name is 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
        )


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _blob(value: bytes) -> bytes:
    return _number(len(value)) + value


def _text(value: str) -> bytes:
    return _blob(value.encode())


def hello() -> bytes:
    return b"\0" + _number(PROTOCOL[0]) + _number(PROTOCOL[1])


def _ask(ident: int, request: int, *fields: bytes) -> bytes:
    return b"\1" + _number(ident) + _number(request) + b"".join(fields)


def create(ident: int, output: str, nbytes: int, huge_pages: bool) -> bytes:
    return _ask(ident, 0, _text(output), _number(nbytes), b"\1" if huge_pages else b"\0")


def commit(ident: int, output: str, nbytes: int) -> bytes:
    return _ask(ident, 1, _text(output), _number(nbytes))


def abandon(ident: int, output: str) -> bytes:
    return _ask(ident, 2, _text(output))


def open_input(ident: int, name: str, wait_ms: int) -> bytes:
    return _ask(ident, 3, _text(name), _number(wait_ms))


def put(ident: int, output: str, value: bytes) -> bytes:
    return _ask(ident, 4, _text(output), _blob(value))


def list_all(ident: int) -> bytes:
    return _ask(ident, 5)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise ValueError("cut")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def number(self, bits: int = 64) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift >= bits + 7:
                raise ValueError("a number is too long")
        if value >> bits:
            raise ValueError("a number is too large")
        return value

    def flag(self) -> bool:
        byte = self.take(1)[0]
        if byte > 1:
            raise ValueError("neither yes nor no")
        return byte == 1

    def blob(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        return self.blob().decode()

    def listing(self) -> Listing:
        inputs = []
        for _ in range(self.number()):
            name = self.text()
            there = (StageClass(self.number()), self.number()) if self.flag() else (None, None)
            inputs.append(InputRow(name, there[0], there[1], self.flag()))
        outputs = []
        for _ in range(self.number()):
            name, kind, most = self.text(), StageClass(self.number()), self.number()
            outputs.append(OutputRow(name, kind, most, self.number() if self.flag() else None))
        return Listing(inputs, outputs)

    def answer(self) -> Answer:
        kind = self.number()
        if kind == 0:
            nbytes = self.number()
            return Answer("lent", nbytes, note=self.text() if self.flag() else None)
        if kind == 1:
            nbytes = self.number()
            return Answer("committed", nbytes, seal_us=self.number())
        if kind == 2:
            return Answer("abandoned")
        if kind == 3:
            stage_class = StageClass(self.number())
            return Answer("opened", self.number(), stage_class=stage_class)
        if kind == 4:
            return Answer("value", value=self.blob())
        if kind == 5:
            return Answer("listed", listing=self.listing())
        if kind == 6:
            code = Code(self.number())
            return Answer("refused", code=code, text=self.text())
        if kind == 7:
            return Answer("by_path", self.number(), stage_class=StageClass.FILE)
        raise ValueError("an unknown answer")


def decode(data: bytes) -> Tuple[int, object]:
    """The question's id and the answer; a Welcome has the id 0."""
    reader = _Reader(data)
    message: object
    try:
        kind, ident = reader.number(), 0
        if kind == 0:
            protocol = (reader.number(16), reader.number(16))
            message = Welcome(protocol, reader.text(), reader.listing())
        elif kind == 1:
            ident = reader.number(32)
            message = reader.answer()
        else:
            raise ValueError("an unknown message")
        if reader.at != len(data):
            raise ValueError("something is left over")
    except ValueError as error:  # UnicodeDecodeError and unknown enum members are ValueErrors
        raise StageError(f"hear from the stage broker: it broke the protocol ({error})") from None
    return ident, message
