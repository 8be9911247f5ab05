"""Fault tolerance: a worker crashes, the others continue, a new one takes its place.

python samples/cluster/crash_recovery.py
"""

import os
import time

import logagg

if logagg.is_primary:
    cluster = logagg.Cluster(__file__, workers=2)

    @cluster.on("exit")
    def gone(worker, end):
        if not end.voluntary:
            print(f"worker {worker.slot} died ({end.how}): {end.reason}", flush=True)

    @cluster.on("ready")
    def ready(worker):
        if worker.id > 2:
            print(f"worker {worker.slot} is back", flush=True)
            cluster.stop()

    cluster.serve_forever()
else:
    logagg.worker.ready()
    if logagg.worker.id == 1:
        os._exit(3)
    while True:
        time.sleep(60)
