"""The basic cluster: the primary forks a worker for each core, all listen on one port.

    python samples/cluster/http_cluster.py [PORT]

Node's first example, line for line. logagg restarts workers by itself: see
`crash_recovery.py`.
"""

import http.server
import os
import sys

import logagg

PORT = int(sys.argv[1]) if len(sys.argv) > 1 else int(os.environ.get("PORT", "3000"))

if logagg.is_primary:
    print(f"primary {os.getpid()} running", flush=True)
    os.environ["PORT"] = str(PORT)
    cluster = logagg.Cluster(__file__, workers="max")

    @cluster.on("exit")
    def gone(worker, end):
        print(f"worker {worker.pid} ended: {end.how}", flush=True)

    sys.exit(cluster.serve_forever())


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"handled by worker {os.getpid()}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
