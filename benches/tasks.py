"""tasks.py PROGRAM FEW MANY TURNS: HyperQueue's Python API, one worker with two cores, stdio off.

Prints for each turn the seconds from submit to the end of a job of FEW tasks and of one of MANY.
Its wait looks once a second, so each figure is up to a second too long.
"""

import sys
import time

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def seconds(client, program, tasks):
    job = Job(max_fails=0)
    for _ in range(tasks):
        job.program([program], stdout=None, stderr=None)
    began = time.monotonic()
    client.wait_for_jobs([client.submit(job)])
    return time.monotonic() - began


def main(program, few, many, turns):
    with LocalCluster(worker_config=WorkerConfig(cores=2)) as cluster:
        client = cluster.client()
        seconds(client, program, 10)
        for _ in range(turns):
            print("took", seconds(client, program, few), seconds(client, program, many), flush=True)


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
