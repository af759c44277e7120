# Executes what it is told: one line of base64 Python in, one line of JSON out. Blocks in read(0) between.
import base64, ctypes, fcntl, json, mmap, os, resource, select, signal, socket, struct, sys, threading, time, traceback

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.syscall.restype = ctypes.c_long


def call(number, *args):
    r = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return r if r >= 0 else -ctypes.get_errno()


kept = {}
world = dict(globals())
os.write(1, b'"ready"\n')
while True:
    line = b""
    while not line.endswith(b"\n"):
        got = os.read(0, 65536)
        if not got:
            sys.exit(0)
        line += got
    world["result"] = None
    try:
        exec(base64.b64decode(line), world)
        answer = json.dumps(world["result"])
    except BaseException as error:
        answer = json.dumps({"error": traceback.format_exc()})
    os.write(1, answer.encode() + b"\n")
