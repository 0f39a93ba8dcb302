"""Counts licence short names (DEP-5 `License:` fields) in Debian copyright files; run by workflow.yaml and by ./run."""
import glob
import sys


def names(paths):
    for path in paths:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("License:"):
                    name = " ".join(line[len("License:"):].split())
                    yield name.replace(" ", "_") or "none"


def count():
    with open("/stage/out/licences", "w", encoding="utf-8") as out:
        for name in names(sorted(glob.glob("/stage/in/copyright-*"))):
            print(name, file=out)


def merge():
    import numpy

    words = []
    for path in sorted(glob.glob("/stage/in/licences-*")):
        with open(path, encoding="utf-8") as lines:
            words += lines.read().split("\n")[:-1]
    found, times = numpy.unique(numpy.array(words), return_counts=True)
    with open("/stage/out/table", "w", encoding="utf-8") as out:
        for name, number in zip(found, times):
            print(number, name, file=out)


def plain():
    """The same without payloads, for comparison."""
    totals = {}
    for name in names(sorted(glob.glob("/usr/share/doc/*/copyright"))):
        totals[name] = totals.get(name, 0) + 1
    for name, number in totals.items():
        print(number, name)


{"count": count, "merge": merge, "plain": plain}[sys.argv[1]]()
