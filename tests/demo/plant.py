"""Leaves a secret where the next request might find it, and says what an earlier request left."""
import os
import socket
import subprocess
import threading
import time

FILE = "/tmp/rewind-demo"
NAME = "REWIND_DEMO"
MARK = "rewind-plant="
kept = []


def threads():
    return len(os.listdir("/proc/self/task"))


THREADS_AT_INIT = threads()


def planted(pid):
    try:
        with open("/proc/%s/cmdline" % pid, encoding="utf-8") as file:
            return file.read().startswith(MARK)
    except OSError:
        return False


def idle(secret):
    while secret:
        time.sleep(1)


def main(args):
    secret = args["secret"]
    found = []
    if kept:
        found.append("global")
    if os.path.exists(FILE):
        found.append("file")
    if NAME in os.environ:
        found.append("env")
    if threads() > THREADS_AT_INIT:
        found.append("thread")
    if any(name.isdigit() and planted(name) for name in os.listdir("/proc")):
        found.append("child")

    kept.append(secret)
    with open(FILE, "w", encoding="utf-8") as file:
        file.write(secret)
    os.environ[NAME] = secret
    # One is enough to be found.
    if "thread" not in found:
        threading.Thread(target=idle, args=(secret,), daemon=True).start()
    if "child" not in found:
        subprocess.Popen([MARK + secret, "1000"], executable="/bin/sleep", stdin=subprocess.DEVNULL)
    return {"found": found, "container": socket.gethostname()}
