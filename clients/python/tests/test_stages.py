"""Against a real broker, which stage/tests/clients.rs starts: it sets LATEBIND_STAGE (a payload with the outputs o0.. and
v0..) and LATEBIND_TEST_CONSUMER (a payload that reads them, and a file f)."""

from __future__ import annotations

import fcntl
import gc
import itertools
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
import unittest

import latebind
from latebind import Code, StageClass, StageError, _client, _wire

try:
    import numpy
except ImportError:
    numpy = None

_outputs = (f"o{n}" for n in itertools.count())
_values = (f"v{n}" for n in itertools.count())


def consumer() -> latebind.Client:
    return latebind.connect(os.environ["LATEBIND_TEST_CONSUMER"])


class Stages(unittest.TestCase):
    def setUp(self) -> None:
        self.producer = latebind.connect()
        self.consumer = consumer()
        self.addCleanup(self.producer.close)
        self.addCleanup(self.consumer.close)

    def refused(self, code, call, *args, **kwargs) -> str:
        with self.assertRaises(StageError) as caught:
            call(*args, **kwargs)
        self.assertEqual(caught.exception.code, code, caught.exception)
        self.assertNotIn("\n", str(caught.exception))
        return str(caught.exception)

    def test_what_is_written_in_place_is_read_in_place(self) -> None:
        name = next(_outputs)
        with self.producer.create(name, 5) as output:
            output.view[:] = b"hello"
        self.assertIsInstance(output.seal_us, int)
        found = self.consumer.open(name)
        self.assertEqual((bytes(found.view), found.in_place, found.nbytes), (b"hello", True, 5))
        self.assertTrue(found.view.readonly)
        found.populate()
        with self.assertRaises(TypeError):
            found.view[0] = 1
        found.close()
        self.assertEqual(bytes(found.view), b"hello", "a view outlives the descriptor")

    def test_seals_hold(self) -> None:
        name = next(_outputs)
        with self.producer.create(name, 8192) as output:
            old = os.dup(output.fileno())
        self.addCleanup(os.close, old)
        for change in (lambda: os.pwrite(old, b"x", 0), lambda: os.ftruncate(old, 0)):
            self.assertRaises(PermissionError, change)
        found = self.consumer.open(name)
        self.assertRaises(OSError, os.pwrite, found.fileno(), b"x", 0)
        with self.assertRaises(OSError):
            mmap.mmap(found.fileno(), 8192, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def test_only_memory_that_is_sealed_is_shown(self) -> None:
        fd = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, fd)
        os.write(fd, b"loose")
        with self.assertRaisesRegex(StageError, "not sealed"):
            _client._map("x", StageClass.MEM, 5, fd)
        with self.assertRaisesRegex(StageError, "the broker said 6"):
            _client._map("x", StageClass.MEM, 6, fd)

    def test_an_exception_abandons_and_the_output_can_be_made_again(self) -> None:
        name = next(_outputs)
        with self.assertRaises(KeyError):
            with self.producer.create(name, 5) as output:
                output.view[:] = b"never"
                raise KeyError("x")
        self.refused(Code.NOT_THERE, self.consumer.open, name)
        with self.producer.create(name, 100) as output:
            output.view[:2] = b"ok"
            self.assertEqual(output.commit(2), 2)
        self.assertEqual(self.consumer.get(name), b"ok")

    def test_a_view_in_use_is_busy_and_then_it_passes(self) -> None:
        output = self.producer.create(next(_outputs), 4096)
        part = memoryview(output.view)[1:3]
        text = self.refused(Code.BUSY, output.commit)
        self.assertIn("still in use", text)
        part.release()
        self.assertEqual(output.commit(), 4096)
        self.refused(None, output.commit)

    def test_a_mapping_of_someone_else_is_busy(self) -> None:
        output = self.producer.create(next(_outputs), 4096)
        other = mmap.mmap(output.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.refused(Code.BUSY, output.commit)
        other.close()
        self.assertEqual(output.commit(), 4096)

    def test_waiting_while_asking(self) -> None:
        name, value = next(_outputs), next(_values)
        found = []
        waits = threading.Thread(target=lambda: found.append(self.consumer.wait(name, 60)))
        waits.start()
        self.producer.put(value, b"v")
        self.assertEqual(bytes(self.consumer.wait(value, 60).view), b"v")
        rows = {row.name: row for row in self.consumer.list().inputs}
        self.assertEqual((rows[value].stage_class, rows[value].nbytes), (StageClass.VALUE, 1))
        with self.producer.create(name, 3) as output:
            output.view[:] = b"now"
        waits.join()
        self.assertEqual(bytes(found[0].view), b"now")
        self.refused(Code.NOT_THERE, self.consumer.wait, next(_outputs), 0.01)

    def test_values(self) -> None:
        name = next(_values)
        self.refused(None, self.producer.put, name, bytes(65537))
        self.producer.put(name, bytes(65536))
        self.refused(Code.EXISTS, self.producer.put, name, b"")
        found = self.consumer.open(name)
        self.assertEqual((found.nbytes, found.in_place), (65536, False))
        self.assertRaises(StageError, found.fileno)

    def test_a_file_is_copied_because_it_can_not_be_sealed(self) -> None:
        found = self.consumer.open("f")
        self.assertEqual((bytes(found.view), found.in_place), (b"in a file", False))
        self.assertTrue(found.view.readonly)
        self.assertEqual(os.pread(found.fileno(), 4, 0), b"in a")

    def test_empty(self) -> None:
        name = next(_outputs)
        with self.producer.create(name, 0) as output:
            self.assertEqual(len(output.view), 0)
        self.assertEqual(self.consumer.get(name), b"")

    def test_refusals_are_one_line(self) -> None:
        self.refused(Code.UNDECLARED, self.producer.create, "nope", 1)
        self.refused(Code.WRONG_CLASS, self.producer.create, next(_values), 1)
        self.refused(Code.TOO_LARGE, self.producer.create, next(_outputs), 1 << 40)
        self.refused(None, self.producer.create, next(_outputs), -1)
        for name in ("", "a/b", "..", "a\0b", "x" * 65, "x\n"):
            self.refused(None, self.consumer.open, name)
        self.refused(None, latebind.connect, "/nowhere")

    def test_huge_pages_fall_back_with_a_word(self) -> None:
        with self.producer.create(next(_outputs), 4096, huge_pages=True) as output:
            self.assertTrue(output.note is None or "small pages" in output.note)

    def test_without_a_broker_the_reason_is_said(self) -> None:
        env = {k: v for k, v in os.environ.items() if k != "LATEBIND_STAGE"}
        told = subprocess.run(
            [sys.executable, "-c", "import latebind; latebind.connect()"], env=env, capture_output=True, text=True
        )
        self.assertIn("LATEBIND_STAGE is not set", told.stderr)

    def test_no_descriptor_is_leaked(self) -> None:
        fds = lambda: len(os.listdir("/proc/self/fd"))
        name = next(_outputs)
        with self.producer.create(name, 10):
            pass
        gc.collect()
        before = fds()
        for _ in range(50):
            self.consumer.open(name)
            self.refused(Code.EXISTS, self.producer.create, name, 10)
        gc.collect()
        self.assertEqual(fds(), before)
        with consumer() as other:
            kept = other.open(name)
            self.assertGreater(fds(), before)
            del kept
        gc.collect()
        self.assertEqual(fds(), before)

    @unittest.skipUnless(numpy, "numpy is not installed")
    def test_arrays(self) -> None:
        name = next(_outputs)
        output = self.producer.create_array(name, (3, 4), "f8")
        output.array[:] = numpy.arange(12).reshape(3, 4)
        kept = output.array
        self.refused(Code.BUSY, output.commit)
        del kept
        self.assertEqual(output.commit(), 96)
        found = self.consumer.open(name).array("f8", (3, 4))
        self.assertTrue((found == numpy.arange(12).reshape(3, 4)).all())
        self.assertFalse(found.flags.writeable)

    @unittest.skipIf(numpy, "numpy is installed")
    def test_arrays_need_numpy(self) -> None:
        self.assertIn("numpy is not installed", self.refused(None, self.producer.create_array, "o0", 1, "f8"))


class Wire(unittest.TestCase):
    def test_hostile_frames_are_errors(self) -> None:
        for frame in (b"\x02", b"\1", b"\1\7\3\3\2", b"\1\7\4\xff\xff\xff\xff\x0f", b"\1\7\2\0", b"\1\7\0\1\2",
                      b"\1\7" + b"\x80" * 11, b"\1\7\6\0\1\xff", b"\0\1\0\1x" + b"\xff" * 9 + b"\1"):
            with self.assertRaises(StageError):
                _wire.decode(frame)

    def test_a_broker_that_sends_nonsense_is_an_error(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            client = latebind.Client.__new__(latebind.Client)
            client._socket = ours
            theirs.send(b"\xff")
            self.assertRaises(StageError, client._receive)
            socket.send_fds(theirs, [b"\1\7\2"], [0])
            self.assertRaises(StageError, client._receive)
            theirs.send(b"\1\7\0\1\0")
            self.assertRaises(StageError, client._receive)


class Passing(unittest.TestCase):
    def setUp(self) -> None:
        self.home = tempfile.TemporaryDirectory()
        self.addCleanup(self.home.cleanup)
        before = (_wire.INPUTS, _wire.OUTPUTS)
        _wire.INPUTS = _wire.OUTPUTS = self.home.name
        self.addCleanup(lambda: (setattr(_wire, "INPUTS", before[0]), setattr(_wire, "OUTPUTS", before[1])))

    def at(self, name: str) -> str:
        return f"{self.home.name}/{name}"

    def test_shared_memory_is_one_for_all_that_open_it(self) -> None:
        fd = os.memfd_create("grid", os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, fd)
        os.ftruncate(fd, 4096)
        fcntl.fcntl(fd, 1033, 0x0002 | 0x0004)  # F_ADD_SEALS: SHRINK, GROW
        os.symlink(f"/proc/self/fd/{fd}", self.at("grid"))
        with latebind.shared_output("grid") as one, latebind.shared_input("grid") as other:
            self.assertEqual((one.nbytes, os.fstat(one.fileno()).st_size), (4096, 4096))
            one.view[10:12] = b"ab"
            self.assertEqual(bytes(other.view[10:12]), b"ab")
            if numpy:
                other.array("u2")[5] = 0x6463
                self.assertEqual(bytes(one.view[10:12]), b"cd")
            kept = one.view
        kept[0] = 1  # outlives it
        with self.assertRaises(StageError):
            one.view

    def test_what_is_something_else_is_refused(self) -> None:
        with open(self.at("file"), "wb") as file:
            file.write(b"x")
        sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
        self.addCleanup(os.close, sealed)
        fcntl.fcntl(sealed, 1033, 0x0002 | 0x0004 | 0x0008)
        os.symlink(f"/proc/self/fd/{sealed}", self.at("sealed"))
        for name in ("file", "sealed", "missing", "a/b"):
            for call in (latebind.shared_input, latebind.read_stream, latebind.write_stream):
                with self.assertRaises(StageError):
                    call(name)
        self.assertEqual(os.path.getsize(self.at("file")), 1, "it was not touched")

    def test_a_stream_has_two_ends(self) -> None:
        os.mkfifo(self.at("pipe"))

        def write() -> None:
            with latebind.write_stream("pipe") as end:
                end.write(b"through it")

        writer = threading.Thread(target=write)
        writer.start()
        with latebind.read_stream("pipe") as end:
            self.assertEqual(end.read(), b"through it")
        writer.join()


if __name__ == "__main__":
    unittest.main()
