"""handoff.py PART PLACE: one end of a hand-off in Python; orders and answers are those of handoff.c.

The part `both` is for Ray, whose consumer is an actor: it answers for both.
"""

import os
import socket
import sys
import time

import numpy

part, place = sys.argv[1:3]
now = time.monotonic_ns
kept = {}


def once(name, make):
    """What stays between rounds."""
    if name not in kept:
        kept[name] = make()
    return kept[name]


def note():
    """The datagrams that tell a consumer where to look, for stores that don't."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if part == "consume":
        link.bind(f"{place}/note-{os.getpid()}")
        os.rename(f"{place}/note-{os.getpid()}", f"{place}/note-{name}")
    return link


def tell(text):
    once("note", note).sendto(text.encode(), f"{place}/note-{name}")


def told():
    return once("note", note).recv(100).decode()


def redis(port):
    link = socket.create_connection(("127.0.0.1", port))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def line(link):
    text = b""
    while not text.endswith(b"\r\n"):
        text += link.recv(1)
    return text


def vineyard():
    import vineyard as package

    return package.connect(f"{place}/vineyard")


def produce(method, size, round, port):
    if method in ("python", "huge"):
        import latebind

        with latebind.connect(f"{place}/p{round}") as stages:
            output = stages.create("x", size, huge_pages=method == "huge")
            if output.note and not kept.get("noted"):
                kept["noted"] = True
                print(output.note, file=sys.stderr)
            numpy.frombuffer(output.view, "u1")[:] = 7
            began = now()
            output.commit()
            return began, output.seal_us, began
    if method == "vineyard":
        store = once("vineyard", vineyard)
        blob = store.create_blob(size)
        numpy.frombuffer(blob, "u1")[:] = 7
        began = now()
        tell(str(int(blob.seal(store).id)))
        return began, 0, began
    link = once("redis", lambda: redis(port))
    data = numpy.full(size, 7, "u1")
    began = now()
    link.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\ny\r\n$%d\r\n" % size)
    link.sendall(data)
    link.sendall(b"\r\n")
    assert line(link) == b"+OK\r\n"
    tell("there")
    return began, 0, began


def consume(method, size, round, port, ready):
    if method in ("python", "huge"):
        import latebind

        with latebind.connect(f"{place}/c{round}") as stages:
            ready()
            found = stages.wait("x", 60)
            found.view[0]
            mapped = now()
            return mapped, add(found.view), now()
    if method == "vineyard":
        store = once("vineyard", vineyard)
        once("note", note)
        ready()
        name = int(told())
        import vineyard as package

        blob = store.get_blob(package.ObjectID(name))
        view = memoryview(blob)
        view[0]
        mapped = now()
        total = add(view)
        all = now()
        del view, blob
        store.delete(package.ObjectID(name))
        return mapped, total, all
    link = once("redis", lambda: redis(port))
    once("note", note)
    room = memoryview(numpy.ones(size, "u1"))
    ready()
    told()
    link.sendall(b"*2\r\n$3\r\nGET\r\n$1\r\ny\r\n")
    line(link)
    at = 0
    while at < size:
        at += link.recv_into(room[at:])
    line(link)
    return now(), add(room), now()


def add(view):
    return int(numpy.frombuffer(view, "u8").sum(dtype="u8"))


def ray():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray as package

    package.init(
        num_cpus=2, object_store_memory=3 << 30, include_dashboard=False, logging_level="ERROR",
        log_to_driver=False, _temp_dir=f"{place}/ray", _node_ip_address="127.0.0.1",
    )

    class Consumer:
        def take(self, refs):
            found = package.get(refs[0])
            found[0]
            mapped = now()
            return mapped, int(found.view("u8").sum(dtype="u8")), now()

    actor = package.remote(Consumer).remote()
    return package, actor


def both(size):
    package, actor = once("ray", ray)
    data = numpy.full(size, 7, "u1")
    began = now()
    mapped, total, all = package.get(actor.take.remote([package.put(data)]))
    check("ray", size, total)
    return began, 0, began, mapped, all


def check(method, size, total):
    assert total == size // 8 * 0x0707070707070707 % 2**64, f"{method} of {size} bytes brought something else"


control = socket.socket(socket.AF_UNIX)
control.connect(f"{place}/control")
name = sys.argv[3]
control.sendall(f"{part}-{name} 0\n".encode())
for order in control.makefile():
    method, size, round, port = order.split()
    size, port = int(size), int(port)
    if part == "produce":
        answer = produce(method, size, round, port)
    elif part == "both":
        answer = both(size)
    else:
        mapped, total, all = consume(method, size, round, port, lambda: control.sendall(b"ready\n"))
        check(method, size, total)
        answer = mapped, all
    control.sendall((" ".join(map(str, answer)) + "\n").encode())
if "ray" in kept:
    kept["ray"][0].shutdown()
