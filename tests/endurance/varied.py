"""Does what ordinary functions do, one thing after another, and says what it finds of other requests."""
import gc
import os
import resource
import signal
import socket
import subprocess
import tempfile
import threading
import time

seen = []
kept = []


class Node:
    pass


def cycles():
    for _ in range(20_000):
        node = Node()
        node.me = node
    gc.collect()


def thread():
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def fork():
    if os.fork() == 0:
        time.sleep(1000)
        os._exit(0)


def place():
    os.chdir("/tmp")
    os.umask(0o077)
    os.environ["WHERE"] = "elsewhere"
    signal.signal(signal.SIGUSR1, lambda *_: None)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def large():
    kept.append(bytearray(os.urandom(4096) * (20 << 8)))


def listen():
    for _ in range(5):
        kept.append(socket.create_server(("127.0.0.1", 0)))


def files():
    for n in range(10):
        directory = tempfile.mkdtemp()
        with open(os.path.join(directory, "file"), "w", encoding="utf-8") as file:
            file.write("x" * 1000 * n)
    with open("/etc/hostname-of-mine", "w", encoding="utf-8") as file:
        file.write("x")


def child():
    kept.append(subprocess.Popen(["/bin/sleep", "1000"]))
    subprocess.run(["/bin/true"], check=True)


def talk():
    for n in range(20):
        print("line", n)


DO = [lambda: None, cycles, thread, fork, place, large, listen, files, child, talk]


def main(args):
    found = list(seen)
    seen.append(args["n"])
    DO[args["n"] % len(DO)]()
    return {"found": found, "host": socket.gethostname()}
