// A puppet for memory: executes random operations inside an arena of 64 pages at fixed addresses, plus brk.
// Lines: OP ARGS...; answers one line. It keeps no state of its own but what the operations leave.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <setjmp.h>
#include <signal.h>

#define PAGE 4096ul
#define ARENA 0x200000000000ul
#define PAGES 64ul

static char line[1 << 16], out[1 << 16];
static unsigned char file_data[PAGE * 4] __attribute__((aligned(4096))) = "data of the program's file";
static sigjmp_buf fault;
static void on_fault(int s) { siglongjmp(fault, s); }

static void say(const char *s) { ssize_t n = write(1, s, strlen(s)); (void)n; }

static int readable(uintptr_t a, volatile unsigned char *v) {
    if (sigsetjmp(fault, 1)) return 0;
    *v = *(volatile unsigned char *)a;
    return 1;
}

// What the request of an attacker would see: a hash over everything readable in the arena, or of one page.
static uint64_t look(void) {
    uint64_t h = 14695981039346656037ul;
    for (uintptr_t a = ARENA; a < ARENA + PAGES * PAGE; a += 64) {
        volatile unsigned char v = 0;
        int ok = readable(a, &v);
        h = (h ^ (ok ? v : 256)) * 1099511628211ul;
    }
    return h;
}

int main(void) {
    struct sigaction sa = {.sa_handler = on_fault};
    sigaction(SIGSEGV, &sa, 0);
    sigaction(SIGBUS, &sa, 0);
    // The initial arena: written, read-only, PROT_NONE, untouched, a file mapping, and holes.
    mmap((void *)ARENA, 24 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    for (int i = 0; i < 16; i++) memset((void *)(ARENA + i * PAGE), 'a' + i, PAGE);
    mprotect((void *)(ARENA + 4 * PAGE), 2 * PAGE, PROT_READ);
    mprotect((void *)(ARENA + 8 * PAGE), 2 * PAGE, PROT_NONE);
    int fd = open("/proc/self/exe", O_RDONLY);
    mmap((void *)(ARENA + 32 * PAGE), 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0);
    mmap((void *)(ARENA + 40 * PAGE), 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
    *(char *)(ARENA + 33 * PAGE) = 'z';
    close(fd);
    mmap((void *)(ARENA + 48 * PAGE), 8 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    *(volatile char *)(ARENA + 50 * PAGE);
    void *b = sbrk(8 * PAGE);
    memset(b, 'b', 8 * PAGE);
    file_data[PAGE] = 'w';
    say("ready\n");
    for (;;) {
        size_t n = 0;
        while (n == 0 || line[n - 1] != '\n') {
            ssize_t r = read(0, line + n, sizeof line - 1 - n);
            if (r <= 0) return 0;
            n += r;
        }
        line[n] = 0;
        uint64_t seed = 0;
        // Operations separated by ';', each: letter page count argument.
        for (char *save, *op = strtok_r(line, ";\n", &save); op; op = strtok_r(0, ";\n", &save)) {
            char kind;
            unsigned long page, count, arg;
            if (sscanf(op, " %c %lu %lu %lu", &kind, &page, &count, &arg) != 4) continue;
            page %= PAGES;
            if (count > PAGES - page) count = PAGES - page;
            char *a = (char *)ARENA + page * PAGE;
            size_t len = count * PAGE;
            switch (kind) {
            case 'w': // write, as far as allowed
                for (size_t i = 0; i < count; i++)
                    if (!sigsetjmp(fault, 1)) memset(a + i * PAGE + arg % 4000, (int)(arg + i), 90);
                break;
            case 'r': { volatile unsigned char v; for (size_t i = 0; i < count; i++) readable((uintptr_t)a + i * PAGE, &v); break; }
            case 'm': mmap(a, len, arg & 7, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); break;
            case 'u': munmap(a, len); break;
            case 'p': mprotect(a, len, arg & 7); break;
            case 'd': madvise(a, len, MADV_DONTNEED); break;
            case 'f': madvise(a, len, MADV_FREE); break;
            case 'h': madvise(a, len, MADV_HUGEPAGE); break;
            case 'k': madvise(a, len, MADV_DONTFORK); break;
            case 'l': mlock(a, len); break;
            case 's': mmap(a, len, 3, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0); break;
            case 'v': mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, (char *)ARENA + (arg % PAGES) * PAGE); break;
            case 'g': mremap(a, len, len + PAGE * (arg % 4), MREMAP_MAYMOVE); break;
            case 'n': mremap(a, len, len, MREMAP_MAYMOVE | MREMAP_DONTUNMAP | MREMAP_FIXED, (char *)ARENA + (arg % PAGES) * PAGE); break;
            case 'x': { // through /proc/self/mem: also where nothing may be written
                int m = open("/proc/self/mem", O_RDWR);
                for (size_t i = 0; i < count; i++) if (pwrite(m, "through mem", 11, (off_t)(a + i * PAGE)) < 0) {}
                close(m);
                break;
            }
            case 't': { // the program's own text, data and vdso
                int m = open("/proc/self/mem", O_RDWR);
                uintptr_t at[] = {(uintptr_t)main + 65536 * 0, (uintptr_t)file_data, (uintptr_t)file_data + 2 * PAGE};
                uintptr_t where = (at[arg % 3] & ~(PAGE - 1)) + 4000;
                char byte = (char)arg;
                if (arg % 3) { if (pwrite(m, &byte, 1, (off_t)where) < 0) {} }
                else { char now; if (pread(m, &now, 1, (off_t)where) == 1 && pwrite(m, &now, 1, (off_t)where) < 0) {} }
                close(m);
                break;
            }
            case 'b': { // the heap
                void *now = sbrk(0);
                if (arg & 1) { if (sbrk((intptr_t)len) != (void *)-1) memset(now, 'B', len); }
                else if (len < 6 * PAGE) sbrk(-(intptr_t)len);
                break;
            }
            case 'z': { // the stack grows
                volatile char *deep = __builtin_alloca(len * 4);
                for (size_t i = 0; i < len * 4; i += PAGE) deep[i] = 's';
                break;
            }
            case 'c': { // many small mappings
                for (unsigned long i = 0; i < arg; i++) mmap(0, PAGE, i & 1 ? PROT_READ : 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                break;
            }
            case '?': seed = look(); break;
            }
        }
        snprintf(out, sizeof out, "%016lx\n", seed);
        say(out);
    }
}
