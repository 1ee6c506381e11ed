"""The server of README.md with NumPy, threads and an event loop."""

import socketserver
import sys
import threading
import time

import numpy as np

N = 1 << 20
words = np.arange(N, dtype=np.uint32) * np.uint32(2654435761)
weights = 2 * np.arange(N, dtype=np.uint32) + np.uint32(1)
strings = {}
lock = threading.Lock()
ticks = 0


def tick():
    global ticks
    while True:
        time.sleep(0.01)
        # Garbage, so that the heap moves.
        _ = [str(i) * 10 for i in range(100)]
        ticks += 1


def work(seed, count):
    k = np.arange(count, dtype=np.uint32)
    index = (k * np.uint32(1013904223) + np.uint32(seed * 1664525 & 0xFFFFFFFF)) >> np.uint32(12)
    # add.at, because the same word may come up twice.
    np.add.at(words, index, k + np.uint32(seed))
    return "ok"


def answer(line):
    command, *rest = line.split(" ", 2)
    with lock:
        if command == "put":
            strings[rest[0]] = rest[1]
            return "ok"
        if command == "get":
            return strings.get(rest[0], "none")
        if command == "work":
            return work(int(rest[0]), int(rest[1]))
        if command == "digest":
            return str(np.sum(words * weights, dtype=np.uint32))
        if command == "ticks":
            return str(ticks)
    return "what?"


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write((answer(line.decode().rstrip("\n")) + "\n").encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


threading.Thread(target=tick, daemon=True).start()
Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
