"""The server of README.md on SQLite, with a thread that inserts rows all the time.

A third argument names the database file. Each thread has its own connection; the journal is a write-ahead log, whose index is
memory shared through a mapped file, and every transaction takes and drops POSIX locks.
"""

import socketserver
import sqlite3
import sys
import threading
import time

N = 4096
MASK = 0xFFFFFFFF
path = sys.argv[3]
ticks = 0
committed = 0  # rows that the loading thread has been told are safe
lock = threading.Lock()  # held around each transaction of that thread, so that committed is exact
mine = threading.local()


def connect():
    db = sqlite3.connect(path, timeout=30, isolation_level=None)
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=off")
    return db


def database():
    if not hasattr(mine, "db"):
        mine.db = connect()
    return mine.db


def prepare():
    db = connect()
    db.execute("begin")
    db.execute("create table words (i integer primary key, w integer)")
    db.execute("create table strings (k text primary key, v text)")
    db.execute("create table load (id integer primary key, payload text)")
    db.executemany("insert into words values (?, ?)", ((i, i * 2654435761 & MASK) for i in range(N)))
    db.execute("commit")
    db.close()


def load():
    global committed, ticks
    db = connect()
    while True:
        with lock:
            db.execute("begin immediate")
            for i in range(20):
                n = committed + i
                db.execute("insert into load values (?, ?)", (n, str(n * 7) * 20))
            db.execute("commit")
            committed += 20
        ticks += 1
        time.sleep(0.005)


def work(seed, count):
    db = database()
    db.execute("begin immediate")
    for k in range(count):
        i = ((seed * 1664525 + k * 1013904223) & MASK) >> 20
        db.execute("update words set w = (w + ?) & ? where i = ?", (seed + k, MASK, i))
    db.execute("commit")
    return "ok"


def integrity():
    db = database()
    with lock:
        rows, last = db.execute("select count(*), max(id) from load").fetchone()
        if rows != committed or last != committed - 1:
            return f"{rows} rows up to {last}, committed were {committed}"
        wrong = db.execute("select count(*) from load where substr(payload, 1, 1 + length(id * 7)) <> "
                           "substr((id * 7) || (id * 7), 1, 1 + length(id * 7))").fetchone()[0]
    if wrong:
        return f"{wrong} rows hold something else"
    return db.execute("pragma integrity_check").fetchone()[0]


def answer(line):
    command, *rest = line.split(" ", 2)
    if command == "put":
        database().execute("insert or replace into strings values (?, ?)", rest)
        return "ok"
    if command == "get":
        row = database().execute("select v from strings where k = ?", rest[:1]).fetchone()
        return row[0] if row else "none"
    if command == "work":
        return work(int(rest[0]), int(rest[1]))
    if command == "digest":
        return str(sum(w * (2 * i + 1) for i, w in database().execute("select i, w from words")) & MASK)
    if command == "ticks":
        return str(ticks)
    if command == "integrity":
        return integrity()
    return "what?"


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write((answer(line.decode().rstrip("\n")) + "\n").encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


prepare()
threading.Thread(target=load, daemon=True).start()
Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
