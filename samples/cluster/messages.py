"""Messages both ways: workers send READY, the primary sends SHUTDOWN.

python samples/cluster/messages.py
"""

import threading

import logagg

if logagg.is_primary:
    cluster = logagg.Cluster(__file__, workers=2)
    ready = set()

    @cluster.on("message")
    def message(worker, text):
        print(f"from {worker.pid}: {text}", flush=True)
        ready.add(worker.slot)
        if len(ready) == 2:
            for each in cluster.workers:
                each.send({"type": "SHUTDOWN"})

    cluster.serve_forever()
else:
    done = threading.Event()

    @logagg.worker.on("message")
    def message(text):
        if text["type"] == "SHUTDOWN":
            done.set()

    logagg.worker.send({"type": "READY", "pid": logagg.worker.pid})
    done.wait()
    print("shutting down", flush=True)
