"""Residue attacks from Python: request 1 plants, request 2 looks.

Each case NAME has two functions. plant_NAME(secret) leaves something behind; look_NAME(mark) says whether
it is still there, as anything that is true. The looker is given the secret *backwards*, so that its own
request is not what it finds. A plant that the sandbox forbids raises Forbidden: there is no channel then.

The line PREPARED is filled in by the runner: things that the action makes at /init, before its checkpoint,
for the cases that tamper with something pristine.
"""
import ctypes
import errno
import fcntl
import mmap
import os
import random
import re
import resource
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time

PREPARED = "@PREPARED@".split(",")
C = ctypes.CDLL(None, use_errno=True)
C.mmap.restype = ctypes.c_void_p
C.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
C.mremap.restype = ctypes.c_void_p
C.malloc.restype = ctypes.c_void_p
C.malloc.argtypes = [ctypes.c_size_t]
TOKEN = re.compile(rb"RESIDUE-[0-9a-f]{24}")
PAGE = 4096
NONE, READ, WRITE, EXEC = 0, 1, 2, 4
PRIVATE, SHARED, FIXED, ANONYMOUS = 2, 1, 16, 32


class Forbidden(Exception):
    """The sandbox does not allow the plant."""


def call(name, *args):
    """A C function; -1 is an error, and one of permission means that the sandbox forbids it."""
    result = getattr(C, name)(*args)
    if result in (-1, (1 << 64) - 1):
        number = ctypes.get_errno()
        if number in (errno.EPERM, errno.ENOSYS, errno.EACCES):
            raise Forbidden("%s: %s" % (name, os.strerror(number)))
        raise OSError(number, "%s: %s" % (name, os.strerror(number)))
    return result


def syscall(number, *args):
    """A system call; integers are passed as C longs."""
    return call("syscall", ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])


def is_secret(found, mark):
    if isinstance(found, str):
        found = found.encode()
    return found is not None and mark.encode()[::-1] in found


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def write(path, data, mode="wb"):
    with open(path, mode) as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def status(key):
    return re.search(rb"^" + key.encode() + rb":\s*(.*)$", read("/proc/self/status"), re.M).group(1)


def scan(pid, mark):
    """Looks for the secret in all memory of a process. It must not come into being here by looking."""
    mark = mark.encode()
    with open("/proc/%s/maps" % pid) as maps, open("/proc/%s/mem" % pid, "rb", 0) as memory:
        for line in maps.readlines():
            span, perms = line.split()[:2]
            if perms[0] != "r" or "[v" in line:
                continue
            start, end = (int(x, 16) for x in span.split("-"))
            while start < end:
                size = min(end - start, 1 << 22)
                try:
                    memory.seek(start)
                    data = memory.read(size)
                except (OSError, ValueError, OverflowError):
                    break
                for match in TOKEN.finditer(data):
                    if match.group()[::-1] == mark:
                        return line.strip()[-60:] or "anonymous"
                del data
                start += size
    return None


# ---- what /init leaves for tampering ----------------------------------------------------------------------

POOL = C.mmap(None, 16 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0)
ctypes.memset(POOL, ord("p"), 16 * PAGE)
FILE = os.open("/etc/passwd", os.O_RDONLY)
write("/tmp/pristine", "pristine contents\n")
os.utime("/tmp/pristine", (1600000000, 1600000000))
THREADS = len(os.listdir("/proc/self/task"))
MAPS = {line.split()[0] for line in open("/proc/self/maps")}
ENVIRONMENT = dict(os.environ)
LOCAL = threading.local()
PIPE = os.pipe() if "pipe" in PREPARED else None
EVENT = os.eventfd(0, os.EFD_NONBLOCK) if "eventfd" in PREPARED and hasattr(os, "eventfd") else None
if "eventfd" in PREPARED and EVENT is None:
    EVENT = C.eventfd(0, 0o4000)
MEMFD = os.memfd_create("pristine") if "memfd" in PREPARED else None
if MEMFD is not None:
    os.write(MEMFD, b"pristine")
TEMPORARY = None
if "unlinked" in PREPARED:
    TEMPORARY = os.open("/tmp/unlinked", os.O_RDWR | os.O_CREAT)
    os.write(TEMPORARY, b"pristine")
    os.unlink("/tmp/unlinked")
SHARED_MAP = mmap.mmap(-1, PAGE) if "shared" in PREPARED else None
if "shmfile" in PREPARED:
    write("/dev/shm/pristine", b"p" * PAGE)
EPOLL = None
if "epoll" in PREPARED:
    # The end that can always be written to, so that there is always an event.
    EPOLL_PIPE = os.pipe()
    EPOLL = C.epoll_create1(0)
    C.epoll_ctl(EPOLL, 1, EPOLL_PIPE[1], struct.pack("<IQ", 4, 7))
INOTIFY = C.inotify_init1(0o4000) if "inotify" in PREPARED else None
PAIR = socket.socketpair() if "pair" in PREPARED else None
TIMERFD = C.timerfd_create(1, 0o4000) if "timerfd" in PREPARED else None
WORKER = None
if "worker" in PREPARED:
    class Worker:
        said = None

        def __init__(self):
            self.gate = threading.Event()
            self.end = False
            self.thread = threading.Thread(target=self.run, daemon=True)
            self.thread.start()

        def run(self):
            while not self.end:
                self.gate.wait()
                self.gate.clear()

    WORKER = Worker()

# ---- 1-5: memory ------------------------------------------------------------------------------------------

KEPT = []


def plant_global(secret):
    KEPT.append(secret)


def look_global(mark):
    return any(is_secret(x, mark) for x in KEPT)


def plant_heap(secret):
    for size in (40, 400, 100000, 1 << 20):
        address = C.malloc(size)
        ctypes.memmove(address, secret.encode(), len(secret))


def look_heap(mark):
    return scan("self", mark)


def plant_break(secret):
    C.sbrk.restype = ctypes.c_void_p
    end = C.sbrk(ctypes.c_long(64 * PAGE))
    ctypes.memmove(end + 32 * PAGE, secret.encode(), len(secret))


look_break = look_heap


def plant_anonymous(secret):
    address = C.mmap(None, 64 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0)
    ctypes.memmove(address + 5 * PAGE, secret.encode(), len(secret))


look_anonymous = look_heap


def plant_hole(secret):
    """A mapping without access, which a scan for readable memory misses."""
    address = C.mmap(None, 4 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0)
    ctypes.memmove(address, secret.encode(), len(secret))
    call("mprotect", ctypes.c_void_p(address), 4 * PAGE, NONE)


def look_hole(mark):
    for line in open("/proc/self/maps"):
        span, perms, _, _, inode = line.split()[:5]
        start, end = (int(x, 16) for x in span.split("-"))
        if perms[0] == "-" and inode == "0" and end - start == 4 * PAGE:
            if C.mprotect(ctypes.c_void_p(start), 4 * PAGE, READ) == 0 and is_secret(ctypes.string_at(start, 100), mark):
                return True
    return False


def plant_unmap(secret):
    call("munmap", ctypes.c_void_p(POOL), PAGE)
    C.mmap(POOL, PAGE, READ | WRITE, PRIVATE | ANONYMOUS | FIXED, -1, 0)
    ctypes.memmove(POOL, secret.encode(), len(secret))


def look_unmap(mark):
    return ctypes.string_at(POOL, PAGE) != b"p" * PAGE


def plant_remap(secret):
    ctypes.memmove(POOL + PAGE, secret.encode(), len(secret))
    target = C.mmap(None, PAGE, NONE, PRIVATE | ANONYMOUS, -1, 0)
    C.mremap(ctypes.c_void_p(POOL + PAGE), ctypes.c_size_t(PAGE), ctypes.c_size_t(PAGE), 3, ctypes.c_void_p(target))


def look_remap(mark):
    return not any(int(l.split("-")[0], 16) <= POOL + PAGE < int(l.split("-")[1].split()[0], 16) for l in open("/proc/self/maps")) or scan("self", mark)


def plant_protect(secret):
    ctypes.memmove(POOL + 2 * PAGE, secret.encode(), len(secret))
    call("mprotect", ctypes.c_void_p(POOL + 2 * PAGE), PAGE, READ)


def look_protect(mark):
    changed = is_secret(ctypes.string_at(POOL + 2 * PAGE, 100), mark)
    for line in open("/proc/self/maps"):
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if start <= POOL + 2 * PAGE < end and not line.split()[1].startswith("rw"):
            changed = True
    return changed


def plant_discard(secret):
    call("madvise", ctypes.c_void_p(POOL + 3 * PAGE), PAGE, 4)


def look_discard(mark):
    return ctypes.string_at(POOL + 3 * PAGE, 1) != b"p"


def plant_free(secret):
    """Freed lazily: the page goes when memory is short, or at once by MADV_PAGEOUT."""
    call("madvise", ctypes.c_void_p(POOL + 4 * PAGE), PAGE, 8)
    call("madvise", ctypes.c_void_p(POOL + 4 * PAGE), PAGE, 21)
    if ctypes.string_at(POOL + 4 * PAGE, 1) == b"p":
        raise Forbidden("madvise: the freed page stayed")


def look_free(mark):
    return ctypes.string_at(POOL + 4 * PAGE, 1) != b"p"


def plant_self_mem(secret):
    with open("/proc/self/mem", "r+b", 0) as memory:
        memory.seek(POOL + 5 * PAGE)
        memory.write(secret.encode())


def look_self_mem(mark):
    return is_secret(ctypes.string_at(POOL + 5 * PAGE, 100), mark)


def plant_vm_writev(secret):
    data = ctypes.create_string_buffer(secret.encode())
    local = (ctypes.c_size_t * 2)(ctypes.addressof(data), len(secret))
    remote = (ctypes.c_size_t * 2)(POOL + 6 * PAGE, len(secret))
    call("process_vm_writev", os.getpid(), local, 1, remote, 1, 0)


def look_vm_writev(mark):
    return is_secret(ctypes.string_at(POOL + 6 * PAGE, 100), mark)


def plant_locked(secret):
    ctypes.memmove(POOL + 7 * PAGE, secret.encode(), len(secret))
    call("mlock", ctypes.c_void_p(POOL + 7 * PAGE), PAGE)


def look_locked(mark):
    return is_secret(ctypes.string_at(POOL + 7 * PAGE, 100), mark) or status("VmLck") != b"0 kB"


def plant_mlockall(secret):
    call("mlockall", 2)


def look_mlockall(mark):
    address = C.mmap(None, PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0)
    return status("VmLck") != b"0 kB" and address


def flags_of(address):
    block = None
    for line in open("/proc/self/smaps"):
        head = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if head:
            block = int(head.group(1), 16) <= address < int(head.group(2), 16)
        elif block and line.startswith("VmFlags:"):
            return line.split()[1:]
    return []


def plant_dontfork(secret):
    call("madvise", ctypes.c_void_p(POOL + 8 * PAGE), PAGE, 10)


def look_dontfork(mark):
    return "dc" in flags_of(POOL + 8 * PAGE)


def plant_wipeonfork(secret):
    call("madvise", ctypes.c_void_p(POOL + 9 * PAGE), PAGE, 18)


def look_wipeonfork(mark):
    return "wf" in flags_of(POOL + 9 * PAGE)


def plant_hugepage(secret):
    call("madvise", ctypes.c_void_p(POOL + 10 * PAGE), PAGE, 14)


def look_hugepage(mark):
    return "hg" in flags_of(POOL + 10 * PAGE)


def plant_dontdump(secret):
    call("madvise", ctypes.c_void_p(POOL + 11 * PAGE), PAGE, 16)


def look_dontdump(mark):
    return "dd" in flags_of(POOL + 11 * PAGE)


def plant_thp(secret):
    call("prctl", 41, 1, 0, 0, 0)


def look_thp(mark):
    return C.prctl(42, 0, 0, 0, 0) == 1


def plant_thread_local(secret):
    LOCAL.value = secret


def look_thread_local(mark):
    return is_secret(getattr(LOCAL, "value", None), mark)


def plant_rounding(secret):
    call("fesetround", 0x400)


def look_rounding(mark):
    return C.fegetround() != 0


def plant_first(secret):
    """Nothing is kept: copies of the request's own bytes, as any handling of it makes and frees."""
    copies = [secret + str(number) for number in range(5000)]
    del copies


def look_first(mark):
    return scan("self", mark)


def plant_proxy(secret):
    """The request passed through the process that listens, which is another one under the actionloop."""


def look_proxy(mark):
    return scan(1, mark)


def plant_big(secret):
    block = bytearray(300 << 20)
    for at in range(0, len(block), PAGE):
        block[at] = 1
    block[-100:-100 + len(secret)] = secret.encode()
    KEPT.append(block)


def look_big(mark):
    return any(is_secret(bytes(x[-200:]), mark) for x in KEPT if isinstance(x, bytearray))


def plant_mappings(secret):
    for _ in range(10000):
        address = C.mmap(None, 2 * PAGE, READ | WRITE, PRIVATE | ANONYMOUS, -1, 0)
        call("mprotect", ctypes.c_void_p(address), PAGE, READ)
        ctypes.memmove(address + PAGE, secret.encode(), len(secret))


def look_mappings(mark):
    return len(open("/proc/self/maps").readlines()) > 10000


# ---- 6: file-backed private mappings ----------------------------------------------------------------------


def plant_library_data(secret):
    ctypes.c_int.in_dll(C, "optind").value = 4242


def look_library_data(mark):
    return ctypes.c_int.in_dll(C, "optind").value == 4242


def text_address():
    return ctypes.cast(C.l64a, ctypes.c_void_p).value


TEXT = ctypes.string_at(text_address(), 16)


def plant_text(secret):
    start = text_address() & ~(PAGE - 1)
    call("mprotect", ctypes.c_void_p(start), 2 * PAGE, READ | WRITE | EXEC)
    ctypes.memmove(text_address(), b"\xcc" * 16, 16)
    call("mprotect", ctypes.c_void_p(start), 2 * PAGE, READ | EXEC)


def look_text(mark):
    return ctypes.string_at(text_address(), 16) != TEXT


def plant_text_by_mem(secret):
    with open("/proc/self/mem", "r+b", 0) as memory:
        memory.seek(text_address())
        memory.write(b"\xcc" * 16)


look_text_by_mem = look_text


def plant_agent(secret):
    """Overwrites whatever mappings appeared after /init: an agent's code, if there is one."""
    for line in open("/proc/self/maps"):
        parts = line.split()
        if parts[0] in MAPS or "[" in line or "x" not in parts[1]:
            continue
        start, end = (int(x, 16) for x in parts[0].split("-"))
        if C.mprotect(ctypes.c_void_p(start), end - start, READ | WRITE | EXEC) == 0:
            ctypes.memset(start, 0xcc, min(end - start, PAGE))
    KEPT.append(secret)


look_agent = look_global

# ---- 7: shared memory -------------------------------------------------------------------------------------


def plant_shm(secret):
    write("/dev/shm/residue", secret)


def look_shm(mark):
    return is_secret(read("/dev/shm/residue"), mark)


def plant_memfd(secret):
    os.write(os.memfd_create("residue"), secret.encode())


def look_memfd(mark):
    return any(is_secret(data, mark) for data in open_files())


def open_files():
    for number in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISREG(os.stat("/proc/self/fd/" + number).st_mode):
                yield read("/proc/self/fd/" + number)
        except OSError:
            pass


def plant_pristine_memfd(secret):
    os.pwrite(MEMFD, secret.encode(), 0)


def look_pristine_memfd(mark):
    return is_secret(os.pread(MEMFD, 100, 0), mark)


def plant_pristine_unlinked(secret):
    os.pwrite(TEMPORARY, secret.encode(), 0)


def look_pristine_unlinked(mark):
    return is_secret(os.pread(TEMPORARY, 100, 0), mark)


def plant_shared_map(secret):
    SHARED_MAP[:len(secret)] = secret.encode()


def look_shared_map(mark):
    return is_secret(SHARED_MAP[:100], mark)


def plant_shm_mapped(secret):
    """A write through a shared mapping of tmpfs leaves all times as they were."""
    descriptor = os.open("/dev/shm/pristine", os.O_RDWR)
    with mmap.mmap(descriptor, PAGE) as mapped:
        mapped[:len(secret)] = secret.encode()
    os.close(descriptor)


def look_shm_mapped(mark):
    return is_secret(read("/dev/shm/pristine"), mark)


def plant_shared_anonymous(secret):
    address = C.mmap(None, PAGE, READ | WRITE, SHARED | ANONYMOUS, -1, 0)
    ctypes.memmove(address, secret.encode(), len(secret))


look_shared_anonymous = look_heap

# ---- 8: IPC -----------------------------------------------------------------------------------------------


def plant_sysv_shm(secret):
    ident = call("shmget", 0x5e51d, PAGE, 0o1666)
    C.shmat.restype = ctypes.c_void_p
    address = C.shmat(ident, None, 0)
    ctypes.memmove(address, secret.encode(), len(secret))
    C.shmdt(ctypes.c_void_p(address))


def look_sysv_shm(mark):
    ident = C.shmget(0x5e51d, PAGE, 0o666)
    if ident < 0:
        return False
    C.shmat.restype = ctypes.c_void_p
    return is_secret(ctypes.string_at(C.shmat(ident, None, 0), 100), mark)


def plant_sysv_shm_attached(secret):
    ident = call("shmget", 0, PAGE, 0o1666)
    C.shmat.restype = ctypes.c_void_p
    address = C.shmat(ident, None, 0)
    ctypes.memmove(address, secret.encode(), len(secret))
    C.shmctl(ident, 0, None)


look_sysv_shm_attached = look_heap


def plant_sysv_sem(secret):
    ident = call("semget", 0x5e51d, 1, 0o1666)
    call("semctl", ident, 0, 16, 42)


def look_sysv_sem(mark):
    ident = C.semget(0x5e51d, 1, 0o666)
    return ident >= 0 and C.semctl(ident, 0, 12) == 42


def plant_sysv_msg(secret):
    ident = call("msgget", 0x5e51d, 0o1666)
    call("msgsnd", ident, struct.pack("l", 1) + secret.encode(), len(secret), 0o4000)


def look_sysv_msg(mark):
    ident = C.msgget(0x5e51d, 0o666)
    if ident < 0:
        return False
    buffer = ctypes.create_string_buffer(200)
    return C.msgrcv(ident, buffer, 100, 0, 0o4000) > 0 and is_secret(buffer.raw, mark)


def plant_mqueue(secret):
    queue = call("mq_open", b"/residue", os.O_CREAT | os.O_RDWR, 0o666, None)
    call("mq_send", queue, secret.encode(), len(secret), 0)
    os.close(queue)


def look_mqueue(mark):
    queue = C.mq_open(b"/residue", os.O_RDONLY | os.O_NONBLOCK)
    if queue < 0:
        return False
    buffer = ctypes.create_string_buffer(8192)
    return C.mq_receive(queue, buffer, 8192, None) > 0 and is_secret(buffer.raw, mark)


# ---- 9-11: files ------------------------------------------------------------------------------------------


def plant_new_file(secret):
    write("/tmp/residue", secret)


def look_new_file(mark):
    return is_secret(read("/tmp/residue"), mark)


def plant_newline_name(secret):
    write(b"/tmp/new\nline \xff", secret)


def look_newline_name(mark):
    return is_secret(read(b"/tmp/new\nline \xff"), mark)


def plant_changed_file(secret):
    with open("/tmp/pristine", "r+b") as file:
        file.write(secret.encode()[:17])
    os.utime("/tmp/pristine", (1600000000, 1600000000))


def look_changed_file(mark):
    return read("/tmp/pristine") != b"pristine contents\n"


def plant_appended(secret):
    write("/tmp/pristine", secret, "ab")


def look_appended(mark):
    return is_secret(read("/tmp/pristine"), mark)


def plant_truncated(secret):
    os.truncate("/tmp/pristine", 3)


look_truncated = look_changed_file


def plant_renamed(secret):
    os.rename("/tmp/pristine", "/tmp/renamed")


def look_renamed(mark):
    return os.path.exists("/tmp/renamed") or not os.path.exists("/tmp/pristine")


def plant_linked(secret):
    os.link("/tmp/pristine", "/tmp/linked")


def look_linked(mark):
    return os.path.exists("/tmp/linked") or os.stat("/tmp/pristine").st_nlink != 1


def plant_deleted(secret):
    os.unlink("/tmp/pristine")


def look_deleted(mark):
    return not os.path.exists("/tmp/pristine")


def plant_lower_changed(secret):
    times = os.stat("/etc/issue")
    write("/etc/issue", secret, "ab")
    os.utime("/etc/issue", ns=(times.st_atime_ns, times.st_mtime_ns))


def look_lower_changed(mark):
    return is_secret(read("/etc/issue"), mark)


def plant_lower_deleted(secret):
    os.unlink("/etc/issue.net")


def look_lower_deleted(mark):
    return not os.path.exists("/etc/issue.net")


def plant_directory_replaced(secret):
    for name in os.listdir("/etc/skel"):
        os.unlink("/etc/skel/" + name)
    os.rmdir("/etc/skel")
    write("/etc/skel", secret)


def look_directory_replaced(mark):
    return is_secret(read("/etc/skel"), mark) if not os.path.isdir("/etc/skel") else False


def plant_symlink(secret):
    os.symlink(secret, "/tmp/link")


def look_symlink(mark):
    return os.path.islink("/tmp/link") and is_secret(os.readlink("/tmp/link"), mark)


def plant_mode(secret):
    os.chmod("/tmp/pristine", 0o4711)
    os.chmod("/etc/passwd", 0o600)


def look_mode(mark):
    return os.stat("/tmp/pristine").st_mode & 0o7777 == 0o4711 or os.stat("/etc/passwd").st_mode & 0o777 == 0o600


def plant_owner(secret):
    os.chown("/tmp/pristine", 1234, 4321)


def look_owner(mark):
    return os.stat("/tmp/pristine").st_uid == 1234


def plant_xattr(secret):
    try:
        os.setxattr("/tmp/pristine", "user.residue", secret.encode())
    except OSError as error:
        raise Forbidden(str(error)) from None


def look_xattr(mark):
    try:
        return is_secret(os.getxattr("/tmp/pristine", "user.residue"), mark)
    except OSError:
        return False


def plant_acl(secret):
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in [
        (1, 6, 0xffffffff), (2, 7, 4242), (4, 4, 0xffffffff), (16, 7, 0xffffffff), (32, 4, 0xffffffff)])
    os.setxattr("/tmp/pristine", "system.posix_acl_access", acl)


def look_acl(mark):
    return "system.posix_acl_access" in os.listxattr("/tmp/pristine")


def plant_times(secret):
    os.utime("/tmp/pristine", (1234567890, 1234567890))


def look_times(mark):
    return os.stat("/tmp/pristine").st_mtime == 1234567890


def plant_access_time(secret):
    os.utime("/tmp/pristine", (987654321, 1600000000))


def look_access_time(mark):
    return os.stat("/tmp/pristine").st_atime == 987654321


def plant_hosts(secret):
    write("/etc/hosts", "6.6.6.6 " + secret + "\n", "ab")


def look_hosts(mark):
    return is_secret(read("/etc/hosts"), mark)


def plant_resolv(secret):
    write("/etc/resolv.conf", "# " + secret + "\n", "ab")


def look_resolv(mark):
    return is_secret(read("/etc/resolv.conf"), mark)


def plant_dev(secret):
    write("/dev/residue", secret)


def look_dev(mark):
    return is_secret(read("/dev/residue"), mark)


def plant_fifo(secret):
    os.mkfifo("/tmp/" + secret)


def look_fifo(mark):
    return mark[::-1] in os.listdir("/tmp")


def plant_unix_socket(secret):
    KEPT.append(listen("/tmp/socket"))


def look_unix_socket(mark):
    return os.path.exists("/tmp/socket")


def plant_many_files(secret):
    os.mkdir("/tmp/many")
    for number in range(100000):
        os.close(os.open("/tmp/many/%d" % number, os.O_CREAT | os.O_WRONLY))


def look_many_files(mark):
    return os.path.exists("/tmp/many/99999")


def plant_deep(secret):
    os.chdir("/tmp")
    for _ in range(1000):
        os.mkdir("d")
        os.chdir("d")
    os.chdir("/")


def look_deep(mark):
    return os.path.exists("/tmp/d")


def plant_own_code(secret):
    for path in (sys.argv[0], "/server.py", "/action/1/bin/main__.py", "/action/1/bin/exec__.py", sys.executable + ".py"):
        if os.path.isfile(path) and not path.endswith("python"):
            write(path, "# " + secret, "ab")


def look_own_code(mark):
    return any(is_secret(read(path), mark) for path in (sys.argv[0], "/server.py", "/action/1/bin/main__.py", "/action/1/bin/exec__.py"))


def plant_binary_unlinked(secret):
    os.unlink(os.path.realpath("/proc/self/exe"))


def look_binary_unlinked(mark):
    return "deleted" in os.readlink("/proc/self/exe")


# ---- 12-14: descriptors -----------------------------------------------------------------------------------


def plant_fd_open(secret):
    descriptor = os.open("/tmp/" + secret, os.O_CREAT | os.O_RDWR)
    os.write(descriptor, secret.encode())


def look_fd_open(mark):
    links = []
    for number in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink("/proc/self/fd/" + number))
        except OSError:
            pass
    return any(is_secret(link, mark) for link in links)


def plant_fd_unlinked(secret):
    descriptor = os.open("/tmp/gone", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, secret.encode())
    os.unlink("/tmp/gone")


def look_fd_unlinked(mark):
    return any(is_secret(data, mark) for data in open_files())


def plant_fd_closed(secret):
    os.close(FILE)


def look_fd_closed(mark):
    try:
        os.fstat(FILE)
        return False
    except OSError:
        return True


def plant_fd_replaced(secret):
    write("/tmp/other", secret)
    descriptor = os.open("/tmp/other", os.O_RDONLY)
    os.dup2(descriptor, FILE)
    os.close(descriptor)


def look_fd_replaced(mark):
    return not os.readlink("/proc/self/fd/%d" % FILE).endswith("/etc/passwd")


def plant_fd_cloexec(secret):
    os.set_inheritable(FILE, True)


def look_fd_cloexec(mark):
    return os.get_inheritable(FILE)


def plant_fd_nonblock(secret):
    os.set_blocking(FILE, False)


def look_fd_nonblock(mark):
    return not os.get_blocking(FILE)


def plant_stdout_nonblock(secret):
    os.set_blocking(1, False)


def look_stdout_nonblock(mark):
    return not os.get_blocking(1)


def plant_offset(secret):
    os.lseek(FILE, 4242, os.SEEK_SET)


def look_offset(mark):
    return os.lseek(FILE, 0, os.SEEK_CUR) == 4242


def plant_flock(secret):
    fcntl.flock(FILE, fcntl.LOCK_EX)


def look_flock(mark):
    other = os.open("/etc/passwd", os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(other)


def plant_record_lock(secret):
    # Not read-only: a write lock needs it. Held by the process; any close of the file would drop it.
    global LOCKED
    LOCKED = os.open("/tmp/locked", os.O_CREAT | os.O_RDWR)
    fcntl.lockf(FILE, fcntl.LOCK_SH, 42, 17)


def look_record_lock(mark):
    pid = os.fork()
    if pid == 0:
        try:
            answer = fcntl.fcntl(os.open("/etc/passwd", os.O_RDWR), fcntl.F_GETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 17, 42, 0))
            os._exit(struct.unpack("hhqqi", answer[:28])[0] != fcntl.F_UNLCK)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def plant_owner_signal(secret):
    fcntl.fcntl(FILE, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(FILE, 10, signal.SIGUSR1)


def look_owner_signal(mark):
    return fcntl.fcntl(FILE, fcntl.F_GETOWN) == os.getpid() or fcntl.fcntl(FILE, 11) == signal.SIGUSR1


def plant_lease(secret):
    try:
        fcntl.fcntl(FILE, 1024, fcntl.F_RDLCK)
    except OSError as error:
        raise Forbidden("lease: %s" % error) from None


def look_lease(mark):
    return fcntl.fcntl(FILE, 1025) == fcntl.F_RDLCK


def plant_pipe_data(secret):
    os.write(PIPE[1], secret.encode())


def look_pipe_data(mark):
    os.set_blocking(PIPE[0], False)
    try:
        return is_secret(os.read(PIPE[0], 100), mark)
    except BlockingIOError:
        return False


def plant_pipe_spliced(secret):
    """Pages of ours given to a pipe: later writes to them change what is in the pipe."""
    ctypes.memmove(POOL + 12 * PAGE, secret.encode(), len(secret))
    vector = (ctypes.c_size_t * 2)(POOL + 12 * PAGE, len(secret))
    call("vmsplice", PIPE[1], vector, ctypes.c_size_t(1), 0)


look_pipe_spliced = look_pipe_data


def plant_pipe_size(secret):
    fcntl.fcntl(PIPE[1], 1031, 16 * PAGE * 2)


def look_pipe_size(mark):
    return fcntl.fcntl(PIPE[1], 1032) == 16 * PAGE * 2


def plant_pair_data(secret):
    PAIR[0].send(secret.encode())


def look_pair_data(mark):
    PAIR[1].setblocking(False)
    try:
        return is_secret(PAIR[1].recv(100), mark)
    except BlockingIOError:
        return False


def plant_pair_option(secret):
    PAIR[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4242 * 2)


def look_pair_option(mark):
    return PAIR[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 4242 * 4


def plant_pair_descriptor(secret):
    """A descriptor in flight: held by the socket's queue, by no process."""
    descriptor = os.memfd_create("flight")
    os.write(descriptor, secret.encode())
    socket.send_fds(PAIR[0], [b"x"], [descriptor])
    os.close(descriptor)


def look_pair_descriptor(mark):
    PAIR[1].setblocking(False)
    try:
        _, descriptors, _, _ = socket.recv_fds(PAIR[1], 10, 4)
    except BlockingIOError:
        return False
    return any(is_secret(os.pread(d, 100, 0), mark) for d in descriptors)


def listen(address):
    server = socket.socket(socket.AF_UNIX if not isinstance(address, tuple) else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(address)
    server.listen(5)
    return server


def can_connect(address):
    client = socket.socket(socket.AF_UNIX if not isinstance(address, tuple) else socket.AF_INET)
    client.settimeout(1)
    try:
        client.connect(address)
        return True
    except OSError:
        return False
    finally:
        client.close()


def plant_listener(secret):
    listen(("127.0.0.1", 9999)).detach()


def look_listener(mark):
    return can_connect(("127.0.0.1", 9999))


def plant_abstract(secret):
    listen("\0" + secret).detach()


def look_abstract(mark):
    return can_connect("\0" + mark[::-1])


def plant_connected(secret):
    """Both ends of a connection inside the container, with data under way."""
    server = listen(("127.0.0.1", 9998))
    client = socket.create_connection(("127.0.0.1", 9998))
    other, _ = server.accept()
    client.send(secret.encode())
    KEPT.extend([server, client, other])


def look_connected(mark):
    return any(b":270E " in line for line in (read("/proc/net/tcp") or b"").split(b"\n") if b" 01 " in line)


def plant_datagram(secret):
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 9997))
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(secret.encode(), ("127.0.0.1", 9997))
    receiver.detach()


def look_datagram(mark):
    return b":270D " in (read("/proc/net/udp") or b"")


def own_listener():
    """The socket the action server listens on, if it is in this process."""
    for number in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            if not os.readlink("/proc/self/fd/" + number).startswith("socket:"):
                continue
            server = socket.socket(fileno=os.dup(int(number)))
            if server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                server.close()
                return int(number)
            server.close()
        except OSError:
            pass
    raise Forbidden("the listener is in another process")


def plant_listener_replaced(secret):
    """Close the listening socket and open another on the same port, with a mark on it."""
    number = own_listener()
    os.set_inheritable(number, True)
    old = os.fstat(number).st_ino
    os.close(number)
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", 8080))
    server.listen(4)
    os.dup2(server.detach(), number)
    assert os.fstat(number).st_ino != old


LISTENER = None
try:
    LISTENER = os.fstat(own_listener()).st_ino
except Forbidden:
    pass


def look_listener_replaced(mark):
    return os.fstat(own_listener()).st_ino != LISTENER


def plant_listener_option(secret):
    server = socket.socket(fileno=os.dup(own_listener()))
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 424242)
    server.close()


def look_listener_option(mark):
    server = socket.socket(fileno=os.dup(own_listener()))
    try:
        return server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 212992 or server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 848484
    finally:
        server.close()


# ---- 15-16: threads and processes -------------------------------------------------------------------------


def haunt(path, secret):
    """Goes on writing a file: whatever survives a rewind shows itself."""
    while True:
        try:
            write(path, secret)
        except OSError:
            pass
        time.sleep(0.02)


def haunted(path, mark):
    deadline = time.time() + 0.4
    while time.time() < deadline:
        if is_secret(read(path), mark):
            return True
        time.sleep(0.02)
    return False


def plant_thread(secret):
    threading.Thread(target=haunt, args=("/tmp/thread", secret), daemon=True).start()


def look_thread(mark):
    return haunted("/tmp/thread", mark) or len(os.listdir("/proc/self/task")) > THREADS


def plant_many_threads(secret):
    gate = threading.Event()
    threading.stack_size(65536)
    for _ in range(1000):
        threading.Thread(target=gate.wait, daemon=True).start()


def look_many_threads(mark):
    return len(os.listdir("/proc/self/task")) > THREADS + 500


def plant_thread_swapped(secret):
    WORKER.end = True
    WORKER.gate.set()
    WORKER.thread.join()
    threading.Thread(target=haunt, args=("/tmp/swapped", secret), daemon=True).start()


def look_thread_swapped(mark):
    return haunted("/tmp/swapped", mark)


def spawn(action, leave=False):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    if leave:
        os.waitpid(pid, 0)
    return pid


def plant_child(secret):
    spawn(lambda: haunt("/tmp/child", secret))


def look_child(mark):
    return haunted("/tmp/child", mark)


def plant_daemon(secret):
    def inner():
        os.setsid()
        spawn(lambda: haunt("/tmp/daemon", secret))
    spawn(inner, leave=True)


def look_daemon(mark):
    return haunted("/tmp/daemon", mark)


def plant_group(secret):
    def inner():
        os.setpgid(0, 0)
        haunt("/tmp/group", secret)
    spawn(inner)


def look_group(mark):
    return haunted("/tmp/group", mark)


def plant_stubborn(secret):
    """Ignores what can be ignored, forks for ever, so that there is always one more."""
    def inner():
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        os.setsid()
        while True:
            if os.fork():
                os._exit(0)
            write("/tmp/stubborn", secret)
            time.sleep(0.001)
    spawn(inner, leave=True)


def look_stubborn(mark):
    return haunted("/tmp/stubborn", mark)


def plant_fork_storm(secret):
    def storm():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        write("/tmp/storm", secret)
        while True:
            try:
                if os.fork() == 0:
                    time.sleep(0.05)
                    os._exit(0)
            except OSError:
                pass
            time.sleep(0.002)
    spawn(storm)
    spawn(storm)
    time.sleep(0.1)


def look_fork_storm(mark):
    count = sum(1 for name in os.listdir("/proc") if name.isdigit())
    return is_secret(read("/tmp/storm"), mark) or count > 12


def plant_zombie(secret):
    pid = os.fork()
    if pid == 0:
        os._exit(42)
    time.sleep(0.05)


def look_zombie(mark):
    try:
        pid, code = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return pid > 0 and os.waitstatus_to_exitcode(code) == 42


def plant_stopped_child(secret):
    pid = spawn(lambda: haunt("/tmp/stopped", secret))
    time.sleep(0.05)
    os.kill(pid, signal.SIGSTOP)


def look_stopped_child(mark):
    return haunted("/tmp/stopped", mark) or sum(1 for name in os.listdir("/proc") if name.isdigit() and b"haunt" in (read("/proc/%s/comm" % name) or b"")) > 0


def plant_child_keeps_pipe(secret):
    """A child that holds the write end of the answer's pipe open."""
    spawn(lambda: haunt("/tmp/keeper", secret))


def look_child_keeps_pipe(mark):
    return haunted("/tmp/keeper", mark)


def plant_background(secret):
    """Answers early, works on: the work comes after the rewind has begun."""
    def later():
        time.sleep(0.01)
        for _ in range(200):
            KEPT.append(secret)
            write("/tmp/background", secret)
            time.sleep(0.005)
    threading.Thread(target=later, daemon=True).start()
    KEPT.append(secret)


def look_background(mark):
    return look_global(mark) or haunted("/tmp/background", mark)


def plant_tracer(secret):
    """A child that attaches to us: nobody else can trace us then."""
    parent = os.getpid()

    def trace():
        if C.ptrace(ctypes.c_long(0x4206), parent, None, None) < 0:
            os._exit(7)
        haunt("/tmp/tracer", secret)
    pid = spawn(trace)
    time.sleep(0.1)
    done, code = os.waitpid(pid, os.WNOHANG)
    if done and os.waitstatus_to_exitcode(code) == 7:
        raise Forbidden("ptrace: not permitted")


def look_tracer(mark):
    return haunted("/tmp/tracer", mark) or status("TracerPid") != b"0"


# ---- 17-19: signals and timers ----------------------------------------------------------------------------


def plant_handler(secret):
    C.signal(int(signal.SIGUSR2), ctypes.c_void_p(1))


def look_handler(mark):
    return int(status("SigIgn"), 16) >> (signal.SIGUSR2 - 1) & 1


def plant_mask(secret):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})


def look_mask(mark):
    return signal.SIGUSR1 in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def plant_pending(secret):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGRTMIN})
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.pthread_kill(threading.get_ident(), signal.SIGRTMIN)


def look_pending(mark):
    return int(status("ShdPnd"), 16) or int(status("SigPnd"), 16)


class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


def plant_altstack(secret):
    call("sigaltstack", ctypes.byref(Stack(POOL, 0, 16384)), None)


def look_altstack(mark):
    old = Stack()
    call("sigaltstack", None, ctypes.byref(old))
    return old.sp == POOL and old.flags != 2


def plant_interval(secret):
    signal.setitimer(signal.ITIMER_REAL, 424242)
    signal.setitimer(signal.ITIMER_VIRTUAL, 424242)


def look_interval(mark):
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0 or signal.getitimer(signal.ITIMER_VIRTUAL)[0] > 0


def plant_posix_timer(secret):
    ident = ctypes.c_int()
    event = (ctypes.c_int * 16)(0, 0, 0, 1)
    call("syscall", ctypes.c_long(222), 1, event, ctypes.byref(ident))


def look_posix_timer(mark):
    return len(read("/proc/self/timers") or b"") > 0


def plant_timerfd(secret):
    call("timerfd_settime", TIMERFD, 0, (ctypes.c_long * 4)(0, 0, 424242, 0), None)


def look_timerfd(mark):
    left = (ctypes.c_long * 4)()
    call("timerfd_gettime", TIMERFD, left)
    return left[2] > 0


# ---- 20-21: attributes of the process ---------------------------------------------------------------------


def plant_cwd(secret):
    os.mkdir("/tmp/" + secret)
    os.chdir("/tmp/" + secret)


def look_cwd(mark):
    return is_secret(os.readlink("/proc/self/cwd"), mark)


def plant_umask(secret):
    os.umask(0o124)


def look_umask(mark):
    return status("Umask") == b"0124"


def plant_chroot(secret):
    try:
        os.mkdir("/tmp/root")
        os.chroot("/tmp/root")
    except PermissionError as error:
        raise Forbidden(str(error)) from None


def look_chroot(mark):
    return not os.path.exists("/etc/passwd")


def plant_rlimit(secret):
    resource.setrlimit(resource.RLIMIT_CORE, (4096, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (424, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def look_rlimit(mark):
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 424


def plant_nice(secret):
    os.nice(7)


def look_nice(mark):
    return os.getpriority(os.PRIO_PROCESS, 0) == 7


def plant_affinity(secret):
    if len(os.sched_getaffinity(0)) < 2:
        raise Forbidden("one CPU only")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def look_affinity(mark):
    return len(os.sched_getaffinity(0)) == 1


def plant_scheduler(secret):
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def look_scheduler(mark):
    return os.sched_getscheduler(0) == os.SCHED_BATCH


def plant_io_priority(secret):
    syscall(251, 1, 0, (3 << 13) | 4)


def look_io_priority(mark):
    return C.syscall(ctypes.c_long(252), ctypes.c_long(1), ctypes.c_long(0)) == (3 << 13) | 4


def plant_name(secret):
    call("prctl", 15, secret[8:23].encode(), 0, 0, 0)


def look_name(mark):
    return read("/proc/thread-self/comm").strip() == mark[::-1][8:23].encode()


def plant_dumpable(secret):
    call("prctl", 4, 0, 0, 0, 0)


def look_dumpable(mark):
    return C.prctl(3, 0, 0, 0, 0) == 0


def plant_no_new_privs(secret):
    call("prctl", 38, 1, 0, 0, 0)


def look_no_new_privs(mark):
    return C.prctl(39, 0, 0, 0, 0) == 1


def plant_subreaper(secret):
    call("prctl", 36, 1, 0, 0, 0)


def look_subreaper(mark):
    value = ctypes.c_int()
    call("prctl", 37, ctypes.byref(value), 0, 0, 0)
    return value.value == 1


def plant_death_signal(secret):
    call("prctl", 1, 10, 0, 0, 0)


def look_death_signal(mark):
    value = ctypes.c_int()
    call("prctl", 2, ctypes.byref(value), 0, 0, 0)
    return value.value == 10


def plant_timer_slack(secret):
    call("prctl", 29, 424242, 0, 0, 0)


def look_timer_slack(mark):
    return C.prctl(30, 0, 0, 0, 0) == 424242


def plant_keep_caps(secret):
    call("prctl", 8, 1, 0, 0, 0)


def look_keep_caps(mark):
    return C.prctl(7, 0, 0, 0, 0) == 1


def plant_secure_bits(secret):
    call("prctl", 28, 1 << 6, 0, 0, 0)


def look_secure_bits(mark):
    return C.prctl(27, 0, 0, 0, 0) == 1 << 6


def plant_seccomp(secret):
    program = (ctypes.c_uint64 * 1)(0x7fff000000000006)
    header = (ctypes.c_size_t * 2)(1, ctypes.addressof(program))
    call("prctl", 38, 1, 0, 0, 0)
    call("prctl", 22, 2, header, 0, 0)


def look_seccomp(mark):
    return int(status("Seccomp_filters")) > FILTERS


FILTERS = int(status("Seccomp_filters"))


def plant_bounding(secret):
    call("prctl", 24, 27, 0, 0, 0)


def look_bounding(mark):
    return not int(status("CapBnd"), 16) >> 27 & 1


def plant_capabilities(secret):
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    call("capget", header, data)
    data[0] &= ~(1 << 27)
    call("capset", header, data)


def look_capabilities(mark):
    return not int(status("CapEff"), 16) >> 27 & 1


def plant_user(secret):
    os.setresuid(1234, 1234, 0)


def look_user(mark):
    return os.getuid() == 1234


def plant_groups(secret):
    os.setgroups([4242])


def look_groups(mark):
    return 4242 in os.getgroups()


def plant_personality(secret):
    call("personality", ctypes.c_ulong(0x20000))


def look_personality(mark):
    return os.uname().release.startswith("2.6")


def plant_environment(secret):
    os.environ["RESIDUE"] = secret


def look_environment(mark):
    return is_secret(os.environ.get("RESIDUE"), mark)


def plant_oom_score(secret):
    write("/proc/self/oom_score_adj", "424")


def look_oom_score(mark):
    return read("/proc/self/oom_score_adj").strip() == b"424"


def plant_coredump_filter(secret):
    write("/proc/self/coredump_filter", "0x11")


def look_coredump_filter(mark):
    return int(read("/proc/self/coredump_filter"), 16) == 0x11


def plant_session(secret):
    try:
        os.setsid()
    except PermissionError:
        os.setpgid(0, 0)


SESSION = (os.getsid(0), os.getpgid(0))


def look_session(mark):
    return (os.getsid(0), os.getpgid(0)) != SESSION


# ---- 22-23: kernel objects --------------------------------------------------------------------------------


def plant_epoll_changed(secret):
    call("epoll_ctl", EPOLL, 3, EPOLL_PIPE[1], struct.pack("<IQ", 4, 4242))


def look_epoll_changed(mark):
    buffer = ctypes.create_string_buffer(12)
    return C.epoll_wait(EPOLL, buffer, 1, 0) == 1 and struct.unpack("<IQ", buffer.raw)[1] == 4242


def plant_epoll_added(secret):
    call("epoll_ctl", EPOLL, 1, PIPE[0], struct.pack("<IQ", 1, 4242))


def look_epoll_added(mark):
    return b"data:             1092" in read("/proc/self/fdinfo/%d" % EPOLL) or read("/proc/self/fdinfo/%d" % EPOLL).count(b"tfd:") > 1


def plant_eventfd(secret):
    os.write(EVENT, struct.pack("Q", 42))


def look_eventfd(mark):
    try:
        return struct.unpack("Q", os.read(EVENT, 8))[0] == 42
    except BlockingIOError:
        return False


def plant_inotify(secret):
    call("inotify_add_watch", INOTIFY, b"/tmp", 0x100)


def look_inotify(mark):
    return b"inotify wd" in read("/proc/self/fdinfo/%d" % INOTIFY)


def plant_signalfd(secret):
    mask = (ctypes.c_uint64 * 16)(1 << 9)
    call("signalfd", -1, mask, 0)


def look_signalfd(mark):
    for number in os.listdir("/proc/self/fd"):
        try:
            if "signalfd" in os.readlink("/proc/self/fd/" + number):
                return True
        except OSError:
            pass
    return False


def plant_aio(secret):
    context = ctypes.c_ulong()
    syscall(206, 16, ctypes.byref(context))


def look_aio(mark):
    return b"[aio]" in read("/proc/self/maps")


def plant_io_uring(secret):
    syscall(425, 4, ctypes.create_string_buffer(120))


def look_io_uring(mark):
    return b"io_uring" in b"".join(os.readlink("/proc/self/fd/" + n).encode() for n in os.listdir("/proc/self/fd") if os.path.lexists("/proc/self/fd/" + n))


def plant_userfaultfd(secret):
    syscall(323, 1)


look_userfaultfd = look_io_uring


def plant_perf(secret):
    syscall(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)


look_perf = look_io_uring


def plant_bpf(secret):
    syscall(321, 0, ctypes.create_string_buffer(72), 72)


look_bpf = look_io_uring


def plant_fanotify(secret):
    syscall(300, 0, 0)


look_fanotify = look_io_uring


def plant_keyring(secret):
    syscall(248, b"user\0", b"residue\0", secret.encode(), len(secret), -3)


def look_keyring(mark):
    ident = C.syscall(ctypes.c_long(250), 10, ctypes.c_long(-3), b"user", b"residue", 0)
    return ident > 0


def plant_namespace(secret):
    call("unshare", 0x04000000)


def look_namespace(mark):
    return False


def plant_mount(secret):
    call("mount", b"none", b"/tmp", b"tmpfs", 0, None)


def look_mount(mark):
    return b" /tmp tmpfs" in read("/proc/mounts")


def plant_landlock(secret):
    """A restriction a process puts on itself, for ever."""
    rules = (ctypes.c_uint64 * 1)(1 << 1)
    ruleset = syscall(444, rules, 8, 0)
    call("prctl", 38, 1, 0, 0, 0)
    syscall(446, ruleset, 0)
    os.close(ruleset)


def look_landlock(mark):
    try:
        write("/tmp/landlock", "x")
        os.unlink("/tmp/landlock")
        return False
    except PermissionError:
        return True


# ---- evasions ---------------------------------------------------------------------------------------------


def plant_exhaust_fds(secret):
    KEPT.append(secret)
    try:
        while True:
            os.dup(FILE)
    except OSError:
        pass


look_exhaust_fds = look_global


def plant_exhaust_address_space(secret):
    KEPT.append(secret)
    used = int(status("VmSize").split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used, resource.getrlimit(resource.RLIMIT_AS)[1]))


look_exhaust_address_space = look_global


def plant_random(secret):
    random.seed(secret)


def look_random(mark):
    return random.random() == random.Random(mark[::-1]).random()


def main(args):
    try:
        function = globals()[args["step"] + "_" + args["case"]]
        found = function(args["secret"])
    except Forbidden as reason:
        return {"forbidden": str(reason)}
    if args["step"] == "plant":
        return {"planted": True}
    return {"found": bool(found), "where": str(found)[:100]}
