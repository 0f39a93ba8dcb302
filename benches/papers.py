"""papers.py PILOT-AND-SHIM PROGRAMS LINKS: the tests of the papers that this project joins, with our classes; prints Markdown.

The CLOUDSTARS report's accounting: who is charged for a mapped file, and a map that is larger than the memory allowed. Dhmem's
synthetic workflows: a pair, a chain of four, one with four readers; a kilobyte and ten megabytes.
"""

import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

dist, programs, links = map(os.path.abspath, sys.argv[1:4])
only = sys.argv[4:]
place = tempfile.mkdtemp(prefix="latebind-papers-")
memory = tempfile.mkdtemp(prefix="latebind-papers-", dir="/dev/shm")
MIB = 1 << 20


def image():
    """An image of two programs, as an OCI layout."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("workflow", "touch"):
            tar.add(f"{programs}/{name}", name)

    def blob(data):
        digest = hashlib.sha256(data).hexdigest()
        with open(f"{place}/image/blobs/sha256/{digest}", "wb") as file:
            file.write(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    os.makedirs(f"{place}/image/blobs/sha256")
    kind = "application/vnd.oci.image."
    data = layer.getvalue()
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers"}}
    config["rootfs"]["diff_ids"] = ["sha256:" + hashlib.sha256(data).hexdigest()]
    manifest = {"schemaVersion": 2, "mediaType": kind + "manifest.v1+json"}
    manifest["config"] = {"mediaType": kind + "config.v1+json", **blob(json.dumps(config).encode())}
    manifest["layers"] = [{"mediaType": kind + "layer.v1.tar", **blob(data)}]
    entry = {"mediaType": manifest["mediaType"], **blob(json.dumps(manifest).encode())}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    with open(f"{place}/image/index.json", "w") as file:
        json.dump({"schemaVersion": 2, "manifests": [entry]}, file)
    with open(f"{place}/image/oci-layout", "w") as file:
        json.dump({"imageLayoutVersion": "1.0.0"}, file)


def run(payloads, slots):
    """A workflow; gives its rows by name, and what its payloads printed."""
    shutil.rmtree(f"{place}/out", ignore_errors=True)
    with open(f"{place}/w.yaml", "w") as file:
        json.dump({"apiVersion": "latebind/v1", "metadata": {"name": "papers"}, "payloads": payloads}, file)
    folders = [f"--{name}={place}/{name}" for name in ("store", "state-dir", "scratch-dir")]
    command = [f"{dist}/pilot", "run", f"{place}/w.yaml", "--output", "json", "--out", f"{place}/out", *folders]
    command += ["--shim", f"{dist}/payload-shim", "--slots", str(slots), "--cpu", "5", "--reuse", "false"]
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    events = [json.loads(line) for line in ran.stdout.splitlines()]
    if not events or events[-1]["event"] != "summary":
        sys.exit(f"pilot: {ran.stderr}")

    def said(name):
        with open(f"{place}/out/logs/{name}.stdout") as file:
            return file.read()

    return {row["name"]: row for row in events[-1]["rows"]}, said


def payload(name, command, memory="1Gi", **fields):
    return {
        "name": name, "image": f"oci:{place}/image", "command": command,
        "resources": {"cpu": "500m", "memory": memory, "disk": "1Gi"}, **fields,
    }


def accounting():
    print("| 512 MiB | limit of each | writer, at most | reader, at most | |\n|---|---|---|---|---|")
    size = 512 * MIB
    for text, klass, how, limit in [
        ("`file`, mapped", "file", "map", "1Gi"),
        ("`file`, mapped", "file", "map", "256Mi"),
        ("`mem`, mapped by path", "mem", "map", "1Gi"),
        ("`mem`, mapped by path", "mem", "map", "256Mi"),
        ("`mem`, by client", "mem", "client", "64Mi"),
        ("`shared`, mapped", "shared", "map", "64Mi"),
    ]:
        to, of = ("/stage/out/x", "/stage/in/x") if how == "map" else ("x", "x")
        outputs = [{"name": "x", "class": klass, "max_size": size}]
        inputs = [{"name": "x", "from": "stage://write/x"}]
        rows, said = run(
            [
                payload("write", ["/touch", f"{how}-write", to, str(size)], limit, outputs=outputs),
                payload("read", ["/touch", f"{how}-read", of], limit, inputs=inputs),
            ],
            2,
        )
        peaks = [mib(rows[name]) for name in ("write", "read")]
        wrong = [rows[name]["outcome"] for name in ("write", "read") if rows[name]["state"] != "done"]
        if klass != "shared":  # whose reader does not wait
            check(rows, said, size)
        print(f"| {text} | {limit} | {peaks[0]} | {peaks[1]} | {'; '.join(wrong) or 'both succeed'} |", flush=True)


def check(rows, said, size):
    """What the reader added up, if it did."""
    right = f"{size // 8 * 0x0707070707070707 % 2**64:x}\n"
    if rows["read"]["state"] == "done" and said("read") != right:
        sys.exit(f"the reader found {said('read')}, not {right}")


def mib(row):
    peak = (row.get("figures") or {}).get("memory_peak_bytes")
    return "-" if peak is None else f"{peak / MIB:.0f} MiB"


def larger():
    size = 10 << 30
    rows, said = run(
        [
            payload(
                "write", ["/touch", "map-write", "/stage/out/x", str(size)], "512Mi",
                outputs=[{"name": "x", "max_size": size}],
            ),
            payload("read", ["/touch", "map-read", "/stage/in/x"], "512Mi", inputs=[{"name": "x", "from": "stage://write/x"}]),
        ],
        1,
    )
    check(rows, said, size)
    print("\n| 10 GiB, mapped, class `file` | limit | at most | took | |\n|---|---|---|---|---|")
    for name in ("write", "read"):
        row = rows[name]
        wall = (row.get("figures") or {}).get("wall_ms", 0) / 1000
        print(f"| {name} | 512 MiB | {mib(row)} | {wall:.1f} s | {row['outcome']} |")


NODES = {"pair": 2, "chain": 4, "fan": 5}


def per_item(texts, items):
    """Microseconds an item, of what the nodes printed."""
    stamps = [tuple(map(int, text.split())) for text in texts]
    return (max(end for _, end in stamps) - max(begin for begin, _ in stamps)) / items / 1000


def on_host(program, transport, shape, items, size, folder):
    nodes = [
        subprocess.Popen(
            [program, transport, shape, str(node), str(items), str(size), folder, folder], stdout=subprocess.PIPE, text=True
        )
        for node in range(NODES[shape])
    ]
    texts = [node.communicate()[0] for node in nodes]
    if any(node.returncode for node in nodes):
        raise RuntimeError(f"{transport}: a node failed")
    return per_item(texts, items)


def pipes(shape, items, size):
    folder = tempfile.mkdtemp(dir=memory)
    for link in range(1, 5):
        os.mkfifo(f"{folder}/f{link}")
    return on_host(f"{programs}/workflow", "pipe", shape, items, size, folder)


def mem(shape, items, size):
    items = min(items, 250)
    folder = tempfile.mkdtemp(dir=memory)
    command = [links, folder, shape, str(items), str(size)]
    broker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    broker.stdout.readline()
    try:
        return on_host(f"{programs}/workflow", "mem", shape, items, size, folder)
    finally:
        broker.communicate()


def messages(shape, items, size):
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(NODES[shape]), f"{programs}/workflow-mpi"]
    command += ["mpi", shape, "0", str(items), str(size), "-", "-"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    return per_item(ran.stdout.splitlines(), items)


def gang(transport):
    """In the pilot's slots."""

    def once(shape, items, size):
        prefix, klass = {"shared": ("r", "shared"), "pipe": ("f", "pipe")}[transport]
        fields = {"class": klass}
        if klass == "shared":
            fields["max_size"] = 4096 + 2 * size
        payloads = []
        for node in range(NODES[shape]):
            inputs, outputs = [], []
            first = shape == "fan" and klass == "shared"
            if node:
                name = f"{prefix}{1 if first else node}"
                inputs = [{"name": name, "from": f"stage://n{0 if shape == 'fan' else node - 1}/{name}"}]
            if shape == "fan" and node == 0:
                outputs = [{"name": f"{prefix}{link}", **fields} for link in range(1, 2 if first else 5)]
            elif shape != "fan" and node + 1 < NODES[shape]:
                outputs = [{"name": f"{prefix}{node + 1}", **fields}]
            command = ["/workflow", transport, shape, str(node), str(items), str(size), "/stage/in", "/stage/out"]
            payloads.append(payload(f"n{node}", command, "128Mi", inputs=inputs, outputs=outputs))
        rows, said = run(payloads, NODES[shape])
        for row in rows.values():
            if row["state"] != "done":
                raise RuntimeError(f"{transport}: {row['name']}: {row['outcome']}")
        return per_item([said(name) for name in rows], items)

    return once


def dhmem(turns=int(os.environ.get("TURNS", 3))):
    ways = [
        ("`shared`, in slots", gang("shared")),
        ("`pipe`, in slots", gang("pipe")),
        ("`mem`, a stage an item, on the host", mem),
        ("pipes, on the host", pipes),
        ("OpenMPI messages, on the host", messages),
    ]
    columns = [(shape, size, items) for size, items in ((1 << 10, 5000), (10_000_000, 100)) for shape in NODES]
    took = {}
    for turn in range(turns):
        for shape, size, items in columns:
            for at in range(len(ways)):
                name, way = ways[(turn + at) % len(ways)]
                try:
                    took.setdefault((name, shape, size), []).append(way(shape, items, size))
                except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
                    print(f"SKIPPED: dhmem: {name}: {shape} {size}: {error}", file=sys.stderr)
    heads = [f"{shape}, {'1 KiB' if size == 1 << 10 else '10 MB'}" for shape, size, _ in columns]
    print(f"\n| us an item, p50 of {turns} | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
    for name, _ in ways:
        cells = [took.get((name, shape, size)) for shape, size, _ in columns]
        print(f"| {name} | {' | '.join('-' if not cell else f'{statistics.median(cell):,.1f}' for cell in cells)} |")


try:
    with open("/proc/loadavg") as load:
        print(f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, load average {load.read().split()[0]}\n")
    image()
    for name, part in (("accounting", accounting), ("larger", larger), ("dhmem", dhmem)):
        if not only or name in only:
            part()
finally:
    shutil.rmtree(place, ignore_errors=True)
    shutil.rmtree(memory, ignore_errors=True)
