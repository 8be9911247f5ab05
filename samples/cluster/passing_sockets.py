"""Passing sockets: the primary accepts, and passes each connection to a worker.

    python samples/cluster/passing_sockets.py

`logagg run --policy rr` does that for unmodified servers; this is the same by hand.
"""

import socket
import threading
import time

import logagg

if logagg.is_primary:
    cluster = logagg.Cluster(__file__, workers=2)
    ready = threading.Semaphore(0)
    cluster.on("ready")(lambda _worker: ready.release())
    with cluster, socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(2):
            ready.acquire()
        for number in range(4):
            with socket.create_connection(server.getsockname()) as client:
                connection, _ = server.accept()
                with connection:
                    worker = cluster.workers[number % 2]
                    worker.send({"type": "socket"}, connection).result(10)
                print("client got", client.recv(100).decode(), flush=True)
else:

    @logagg.worker.on("message")
    def take(_message, connection):
        with connection:
            connection.sendall(f"hello from worker {logagg.worker.slot}".encode())

    logagg.worker.ready()
    while True:
        time.sleep(60)
