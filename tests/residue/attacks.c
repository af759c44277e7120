/*
 * Residue attacks from native code: request 1 plants, request 2 looks. As in attacks.py, the looker is given
 * the secret backwards, so that its own request is not what it finds.
 *
 * A shared object for the native action server of tests/images/native.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define SECRET_MAX 64

/* A plant the sandbox forbids says so here. */
static const char *forbidden;

static char kept[SECRET_MAX];
static char *volatile heap_block;
static __thread char thread_local_text[SECRET_MAX];
static char *pool;
static int pristine_fd = -1;
static int pristine_memfd = -1;
static char *shared;

/* Whether `p` holds the secret whose reverse is `mark`. */
static bool is_secret(const char *p, const char *mark)
{
	size_t length = strlen(mark);

	for (size_t i = 0; i < length; i++)
		if (p[i] != mark[length - 1 - i])
			return false;
	return true;
}

static bool holds(const char *p, size_t size, const char *mark)
{
	size_t length = strlen(mark);

	for (size_t i = 0; length && i + length <= size; i++)
		if (p[i] == 'R' && is_secret(p + i, mark))
			return true;
	return false;
}

static bool file_holds(const char *path, const char *mark)
{
	char data[4096];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t size = fd < 0 ? 0 : read(fd, data, sizeof(data));

	if (fd >= 0)
		close(fd);
	return size > 0 && holds(data, size, mark);
}

static void put(const char *path, const char *text, int flags)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0666);

	if (fd >= 0) {
		if (write(fd, text, strlen(text)) < 0)
			forbidden = "write";
		close(fd);
	}
}

static bool haunted(const char *path, const char *mark)
{
	for (int i = 0; i < 20; i++) {
		if (file_holds(path, mark))
			return true;
		usleep(20000);
	}
	return false;
}

struct haunting {
	const char *path;
	char secret[SECRET_MAX];
};

static void *haunt(void *argument)
{
	const struct haunting *h = argument;

	for (;;) {
		put(h->path, h->secret, O_TRUNC);
		usleep(20000);
	}
	return NULL;
}

static struct haunting *haunting(const char *path, const char *secret)
{
	struct haunting *h = calloc(1, sizeof(*h));

	h->path = path;
	snprintf(h->secret, sizeof(h->secret), "%s", secret);
	return h;
}

/* All readable memory of this process, as the kernel lists it. */
static bool scan(const char *mark)
{
	static char block[1 << 16];
	FILE *maps = fopen("/proc/self/maps", "re");
	int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
	char line[4096 + 200];
	bool found = false;

	while (!found && fgets(line, sizeof(line), maps)) {
		unsigned long start, end;
		char perms[5];

		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) != 3 || perms[0] != 'r' || strstr(line, "[v"))
			continue;
		for (; start < end && !found; start += sizeof(block)) {
			size_t size = end - start < sizeof(block) ? end - start : sizeof(block);
			ssize_t got = pread(memory, block, size, start);

			found = got > 0 && holds(block, got, mark);
			memset(block, 0, sizeof(block));
		}
	}
	close(memory);
	fclose(maps);
	return found;
}

static long status_number(const char *key, int base)
{
	FILE *file = fopen("/proc/self/status", "re");
	char line[256];
	long value = -1;

	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, key, strlen(key)) && line[strlen(key)] == ':')
			value = strtoul(line + strlen(key) + 1, NULL, base);
	fclose(file);
	return value;
}

static long check(long result, const char *what)
{
	if (result == -1)
		forbidden = what;
	return result;
}

/* ---- 1-5 ---- */

static void plant_global(const char *s) { strcpy(kept, s); }
static bool look_global(const char *m) { return is_secret(kept, m); }

static void plant_heap(const char *s) { heap_block = strdup(s); }
static bool look_heap(const char *m) { return scan(m); }

static void plant_freed(const char *s)
{
	char *block = malloc(5000);

	snprintf(block + 2000, 3000, "%s", s);
	__asm__ volatile("" : : "r"(block) : "memory");
	free(block);
}
static bool look_freed(const char *m) { return scan(m); }

static void plant_break(const char *s)
{
	char *end = sbrk(64 * PAGE);

	strcpy(end + 32 * PAGE, s);
}
static bool look_break(const char *m) { return scan(m); }

static void plant_anonymous(const char *s)
{
	char *block = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	strcpy(block + 9 * PAGE, s);
}
static bool look_anonymous(const char *m) { return scan(m); }

static void plant_first(const char *s) { (void)s; }
static bool look_first(const char *m) { return scan(m); }

static __attribute__((noinline)) void dive(const char *s, int depth)
{
	volatile char frame[4096];

	for (size_t i = 0; i <= strlen(s); i++)
		frame[i] = s[i];
	if (depth)
		dive(s, depth - 1);
	frame[4095] = frame[0];
}
static void plant_stack(const char *s) { dive(s, 100); }
static bool look_stack(const char *m) { return scan(m); }

static void plant_thread_local(const char *s) { strcpy(thread_local_text, s); }
static bool look_thread_local(const char *m) { return is_secret(thread_local_text, m); }

static void plant_rounding(const char *s) { (void)s; fesetround(FE_UPWARD); }
static bool look_rounding(const char *m) { (void)m; return fegetround() == FE_UPWARD; }

static void plant_denormals(const char *s)
{
	unsigned control = 0;

	(void)s;
	__asm__ volatile("stmxcsr %0" : "=m"(control));
	control |= 0x8040;
	__asm__ volatile("ldmxcsr %0" : : "m"(control));
}
static bool look_denormals(const char *m)
{
	unsigned control = 0;

	(void)m;
	__asm__ volatile("stmxcsr %0" : "=m"(control));
	return (control & 0x8040) == 0x8040;
}

static void plant_segment_base(const char *s)
{
	(void)s;
	check(syscall(SYS_arch_prctl, ARCH_SET_GS, pool), "arch_prctl");
}
static bool look_segment_base(const char *m)
{
	unsigned long base = 0;

	(void)m;
	syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
	return base == (unsigned long)pool;
}

static void plant_unmap(const char *s)
{
	munmap(pool, PAGE);
	mmap(pool, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	strcpy(pool, s);
}
static bool look_unmap(const char *m) { (void)m; return pool[0] != 'p'; }

static void plant_protect(const char *s)
{
	strcpy(pool + PAGE, s);
	mprotect(pool + PAGE, PAGE, PROT_READ);
}
static bool look_protect(const char *m)
{
	return is_secret(pool + PAGE, m) || (errno = 0, syscall(SYS_getcwd, pool + PAGE, PAGE) < 0 && errno == EFAULT);
}

static void plant_discard(const char *s) { (void)s; madvise(pool + 2 * PAGE, PAGE, MADV_DONTNEED); }
static bool look_discard(const char *m) { (void)m; return pool[2 * PAGE] != 'p'; }

static void plant_vm_writev(const char *s)
{
	struct iovec local = {(void *)s, strlen(s)}, remote = {pool + 3 * PAGE, strlen(s)};

	check(process_vm_writev(getpid(), &local, 1, &remote, 1, 0), "process_vm_writev");
}
static bool look_vm_writev(const char *m) { return is_secret(pool + 3 * PAGE, m); }

static void plant_locked(const char *s) { strcpy(pool + 4 * PAGE, s); check(mlock(pool + 4 * PAGE, PAGE), "mlock"); }
static bool look_locked(const char *m) { return is_secret(pool + 4 * PAGE, m) || status_number("VmLck", 10) > 0; }

/* The kernel writes: a system call's result, into a page that no instruction touched. */
static void plant_kernel_written(const char *s)
{
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) || write(ends[1], s, strlen(s)) < 0 || read(ends[0], pool + 5 * PAGE, 64) < 0)
		forbidden = "pipe";
	close(ends[0]);
	close(ends[1]);
}
static bool look_kernel_written(const char *m) { return is_secret(pool + 5 * PAGE, m); }

/* Many mappings: each second page read-only, so that none merges with the next. */
static void plant_mappings(const char *s)
{
	for (int i = 0; i < 10000; i++) {
		char *block = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (block == MAP_FAILED)
			break;
		strcpy(block + PAGE, s);
		mprotect(block, PAGE, PROT_READ);
	}
}
static bool look_mappings(const char *m) { return scan(m); }

static void plant_big(const char *s)
{
	size_t size = 300ul << 20;
	char *block = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	memset(block, 'x', size);
	strcpy(block + size - PAGE, s);
}
static bool look_big(const char *m) { return scan(m); }

/* ---- 6, 7 ---- */

static unsigned char pristine_text[16];

/* A function of the C library that nobody calls. */
static unsigned char *victim(void) { return (unsigned char *)l64a; }

static void plant_text(const char *s)
{
	unsigned char *start = (unsigned char *)((uintptr_t)victim() & ~(uintptr_t)(PAGE - 1));

	(void)s;
	mprotect(start, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC);
	memset(victim(), 0xcc, sizeof(pristine_text));
	mprotect(start, 2 * PAGE, PROT_READ | PROT_EXEC);
}
static bool look_text(const char *m) { (void)m; return memcmp(victim(), pristine_text, sizeof(pristine_text)); }

static void plant_text_by_mem(const char *s)
{
	int memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);

	(void)s;
	check(pwrite(memory, "\xcc\xcc\xcc\xcc\xcc\xcc\xcc\xcc", 8, (off_t)(uintptr_t)victim()), "/proc/self/mem");
	close(memory);
}
static bool look_text_by_mem(const char *m) { return look_text(m); }

static void plant_library_data(const char *s) { (void)s; optind = 4242; }
static bool look_library_data(const char *m) { (void)m; return optind == 4242; }

static void plant_memfd(const char *s)
{
	int fd = memfd_create("residue", 0);

	if (write(fd, s, strlen(s)) < 0)
		forbidden = "memfd";
}
static bool look_memfd(const char *m)
{
	for (int fd = 0; fd < 64; fd++) {
		char data[100] = {0};

		if (pread(fd, data, sizeof(data) - 1, 0) > 0 && holds(data, sizeof(data), m))
			return true;
	}
	return false;
}

static void plant_pristine_memfd(const char *s) { check(pwrite(pristine_memfd, s, strlen(s), 0), "memfd"); }
static bool look_pristine_memfd(const char *m)
{
	char data[100] = {0};

	return pread(pristine_memfd, data, sizeof(data), 0) > 0 && holds(data, sizeof(data), m);
}

static void plant_shared_map(const char *s) { strcpy(shared, s); }
static bool look_shared_map(const char *m) { return is_secret(shared, m); }

static void plant_sysv_shm(const char *s)
{
	int id = check(shmget(0x5e51d, PAGE, IPC_CREAT | 0666), "shmget");
	char *block = shmat(id, NULL, 0);

	if (block != (void *)-1) {
		strcpy(block, s);
		shmdt(block);
	}
}
static bool look_sysv_shm(const char *m)
{
	int id = shmget(0x5e51d, PAGE, 0666);
	char *block = id < 0 ? (void *)-1 : shmat(id, NULL, 0);

	return block != (void *)-1 && is_secret(block, m);
}

/* ---- 9-13: files and descriptors ---- */

static void plant_new_file(const char *s) { put("/tmp/residue", s, 0); }
static bool look_new_file(const char *m) { return file_holds("/tmp/residue", m); }

static void plant_lower_changed(const char *s) { put("/etc/issue", s, O_APPEND); }
static bool look_lower_changed(const char *m) { return file_holds("/etc/issue", m); }

static void plant_binary_unlinked(const char *s) { (void)s; check(unlink("/native"), "unlink"); }
static bool look_binary_unlinked(const char *m) { (void)m; return access("/native", F_OK) != 0; }

static void plant_tmpfile(const char *s)
{
	int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);

	if (fd < 0 || write(fd, s, strlen(s)) < 0)
		forbidden = "O_TMPFILE";
}
static bool look_tmpfile(const char *m) { return look_memfd(m); }

static void plant_fd_closed(const char *s) { (void)s; close(pristine_fd); }
static bool look_fd_closed(const char *m) { (void)m; return fcntl(pristine_fd, F_GETFD) < 0; }

static void plant_fd_replaced(const char *s)
{
	int fd;

	put("/tmp/other", s, 0);
	fd = open("/tmp/other", O_RDONLY);
	dup2(fd, pristine_fd);
	close(fd);
}
static bool look_fd_replaced(const char *m)
{
	char data[100] = {0};

	return pread(pristine_fd, data, sizeof(data), 0) > 0 && holds(data, sizeof(data), m);
}

static void plant_offset(const char *s) { (void)s; lseek(pristine_fd, 42, SEEK_SET); }
static bool look_offset(const char *m) { (void)m; return lseek(pristine_fd, 0, SEEK_CUR) == 42; }

static void plant_flock(const char *s) { (void)s; flock(pristine_fd, LOCK_EX); }
static bool look_flock(const char *m)
{
	int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
	bool held = flock(fd, LOCK_EX | LOCK_NB) < 0;

	(void)m;
	close(fd);
	return held;
}

static void plant_abstract(const char *s)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "%s", s);
	if (bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t) + 1 + strlen(s)) || listen(fd, 5))
		forbidden = "bind";
}
static bool look_abstract(const char *m) { return file_holds("/proc/net/unix", m); }

/* ---- 15, 16 ---- */

static void plant_thread(const char *s)
{
	pthread_t thread;

	pthread_create(&thread, NULL, haunt, haunting("/tmp/thread", s));
	usleep(50000);
}
static bool look_thread(const char *m) { return haunted("/tmp/thread", m); }

static void *idle(void *argument)
{
	pause();
	return argument;
}

/* 5,000 threads, or as many as the sandbox gives. */
static void plant_many_threads(const char *s)
{
	pthread_attr_t attributes;

	(void)s;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 65536);
	for (int i = 0; i < 5000; i++) {
		pthread_t thread;

		if (pthread_create(&thread, &attributes, idle, NULL))
			break;
	}
}
static bool look_many_threads(const char *m) { (void)m; return status_number("Threads", 10) > 50; }

static void plant_daemon(const char *s)
{
	if (fork() == 0) {
		setsid();
		for (int i = 1; i < 65; i++)
			signal(i, SIG_IGN);
		if (fork() == 0)
			haunt(haunting("/tmp/daemon", s));
		_exit(0);
	}
	wait(NULL);
}
static bool look_daemon(const char *m) { return haunted("/tmp/daemon", m); }

static char child_stack[65536];

static int vfork_child(void *argument)
{
	haunt(argument);
	return 0;
}

/* A process that shares our memory: what it writes is ours. */
static void plant_shared_memory_child(const char *s)
{
	check(clone(vfork_child, child_stack + sizeof(child_stack), CLONE_VM | SIGCHLD, haunting("/tmp/vm", s)), "clone");
	usleep(50000);
}
static bool look_shared_memory_child(const char *m) { return haunted("/tmp/vm", m); }

static void plant_vfork(const char *s)
{
	struct haunting *h = haunting("/tmp/vfork", s);

	/* The parent is stuck until the child is gone: from a thread, so that we can answer. */
	if (fork() == 0) {
		if (vfork() == 0)
			haunt(h);
		_exit(0);
	}
	usleep(50000);
}
static bool look_vfork(const char *m) { return haunted("/tmp/vfork", m); }

/* ---- 17-20 ---- */

static void on_signal(int number) { (void)number; }

static void plant_handler(const char *s) { (void)s; signal(SIGUSR2, on_signal); }
static bool look_handler(const char *m)
{
	struct sigaction action;

	(void)m;
	sigaction(SIGUSR2, NULL, &action);
	return action.sa_handler == on_signal;
}

static void plant_mask(const char *s)
{
	sigset_t set;

	(void)s;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
}
static bool look_mask(const char *m)
{
	sigset_t set;

	(void)m;
	sigprocmask(SIG_BLOCK, NULL, &set);
	return sigismember(&set, SIGUSR1);
}

static void plant_pending(const char *s)
{
	union sigval value = {.sival_int = 4242};

	plant_mask(s);
	sigqueue(getpid(), SIGUSR1, value);
}
static bool look_pending(const char *m)
{
	sigset_t set;

	(void)m;
	sigpending(&set);
	return sigismember(&set, SIGUSR1);
}

static void plant_altstack(const char *s)
{
	stack_t stack = {.ss_sp = pool, .ss_size = 8 * PAGE};

	(void)s;
	sigaltstack(&stack, NULL);
}
static bool look_altstack(const char *m)
{
	stack_t stack;

	(void)m;
	sigaltstack(NULL, &stack);
	return stack.ss_sp == pool && !(stack.ss_flags & SS_DISABLE);
}

static void plant_interval(const char *s)
{
	struct itimerval value = {.it_value.tv_sec = 424242};

	(void)s;
	setitimer(ITIMER_REAL, &value, NULL);
	setitimer(ITIMER_PROF, &value, NULL);
}
static bool look_interval(const char *m)
{
	struct itimerval real, prof;

	(void)m;
	getitimer(ITIMER_REAL, &real);
	getitimer(ITIMER_PROF, &prof);
	return real.it_value.tv_sec || prof.it_value.tv_sec;
}

static void plant_posix_timer(const char *s)
{
	struct sigevent event = {.sigev_notify = SIGEV_NONE};
	timer_t timer;

	(void)s;
	check(timer_create(CLOCK_MONOTONIC, &event, &timer), "timer_create");
}
static bool look_posix_timer(const char *m)
{
	char data[10];
	int fd = open("/proc/self/timers", O_RDONLY | O_CLOEXEC);
	bool any = read(fd, data, sizeof(data)) > 0;

	(void)m;
	close(fd);
	return any;
}

static void plant_umask(const char *s) { (void)s; umask(0124); }
static bool look_umask(const char *m) { (void)m; return status_number("Umask", 8) == 0124; }

static void plant_cwd(const char *s) { (void)s; check(chdir("/tmp"), "chdir"); }
static bool look_cwd(const char *m)
{
	char path[PATH_MAX];

	(void)m;
	return getcwd(path, sizeof(path)) && !strcmp(path, "/tmp");
}

static void plant_rlimit(const char *s)
{
	struct rlimit limit;

	(void)s;
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = 424;
	setrlimit(RLIMIT_NOFILE, &limit);
}
static bool look_rlimit(const char *m)
{
	struct rlimit limit;

	(void)m;
	getrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_cur == 424;
}

static void plant_name(const char *s) { prctl(PR_SET_NAME, s + 8); }
static bool look_name(const char *m)
{
	char name[16] = {0};
	size_t length = strlen(m);

	prctl(PR_GET_NAME, name);
	return length > 24 && name[0] == m[length - 9] && name[1] == m[length - 10];
}

static void plant_no_new_privs(const char *s) { (void)s; prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); }
static bool look_no_new_privs(const char *m) { (void)m; return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1; }

static long filters_before;

static void plant_seccomp(const char *s)
{
	struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {1, &allow};

	(void)s;
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "seccomp");
}
static bool look_seccomp(const char *m) { (void)m; return status_number("Seccomp_filters", 10) > filters_before; }

static void plant_personality(const char *s)
{
	(void)s;
	check(personality(UNAME26), "personality");
}
static bool look_personality(const char *m) { (void)m; return personality(0xffffffff) == UNAME26; }

static void plant_user(const char *s) { (void)s; check(setresuid(1234, 1234, 0), "setresuid"); }
static bool look_user(const char *m) { (void)m; return getuid() == 1234; }

static void plant_mce_policy(const char *s) { (void)s; check(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0), "prctl"); }
static bool look_mce_policy(const char *m) { (void)m; return prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY; }

static void plant_environment(const char *s) { setenv("RESIDUE", s, 1); }
static bool look_environment(const char *m)
{
	const char *value = getenv("RESIDUE");

	return value && is_secret(value, m);
}

/* Code of ours over whatever executable mapping came after /init. */
static char maps_before[1 << 16];

static void plant_agent(const char *s)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[4096 + 200];

	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end;
		char perms[5], span[64];

		if (sscanf(line, "%lx-%lx %4s", &start, &end, perms) != 3 || !strchr(perms, 'x') || strchr(line, '['))
			continue;
		snprintf(span, sizeof(span), "%lx-%lx", start, end);
		if (!strstr(maps_before, span) && !mprotect((void *)start, end - start, PROT_READ | PROT_WRITE | PROT_EXEC))
			memset((void *)start, 0xcc, PAGE);
	}
	fclose(maps);
	strcpy(kept, s);
}
static bool look_agent(const char *m) { return look_global(m); }

static const struct attack {
	const char *name;
	void (*plant)(const char *secret);
	bool (*look)(const char *mark);
} attacks[] = {
#define ATTACK(name) {#name, plant_##name, look_##name}
	ATTACK(global), ATTACK(heap), ATTACK(freed), ATTACK(break), ATTACK(anonymous), ATTACK(first), ATTACK(stack),
	ATTACK(thread_local), ATTACK(rounding), ATTACK(denormals), ATTACK(segment_base), ATTACK(unmap), ATTACK(protect),
	ATTACK(discard), ATTACK(vm_writev), ATTACK(locked), ATTACK(kernel_written), ATTACK(mappings), ATTACK(big),
	ATTACK(text), ATTACK(text_by_mem), ATTACK(library_data), ATTACK(memfd), ATTACK(pristine_memfd),
	ATTACK(shared_map), ATTACK(sysv_shm), ATTACK(new_file), ATTACK(lower_changed), ATTACK(binary_unlinked),
	ATTACK(tmpfile), ATTACK(fd_closed), ATTACK(fd_replaced), ATTACK(offset), ATTACK(flock), ATTACK(abstract),
	ATTACK(thread), ATTACK(many_threads), ATTACK(daemon), ATTACK(shared_memory_child), ATTACK(vfork),
	ATTACK(handler), ATTACK(mask), ATTACK(pending), ATTACK(altstack), ATTACK(interval), ATTACK(posix_timer),
	ATTACK(umask), ATTACK(cwd), ATTACK(rlimit), ATTACK(name), ATTACK(no_new_privs), ATTACK(seccomp),
	ATTACK(personality), ATTACK(user), ATTACK(mce_policy), ATTACK(environment), ATTACK(agent),
};

/* The text of a member whose value is a plain string. */
static bool member(const char *body, const char *name, char *out, size_t size)
{
	char key[40];
	const char *start;
	size_t length;

	snprintf(key, sizeof(key), "\"%s\":\"", name);
	start = strstr(body, key);
	if (!start)
		return false;
	start += strlen(key);
	length = strcspn(start, "\"");
	if (length >= size)
		return false;
	memcpy(out, start, length);
	out[length] = 0;
	return true;
}

void rewind_init(const char *body)
{
	FILE *maps;
	size_t length;

	pool = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(pool, 'p', 16 * PAGE);
	pristine_fd = open("/etc/passwd", O_RDONLY);
	memcpy(pristine_text, victim(), sizeof(pristine_text));
	filters_before = status_number("Seccomp_filters", 10);
	if (strstr(body, "@memfd@")) {
		pristine_memfd = memfd_create("pristine", 0);
		if (write(pristine_memfd, "pristine", 8) < 0)
			abort();
	}
	if (strstr(body, "@shared@"))
		shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	maps = fopen("/proc/self/maps", "re");
	length = fread(maps_before, 1, sizeof(maps_before) - 1, maps);
	maps_before[length] = 0;
	fclose(maps);
}

char *rewind_action(const char *body)
{
	char name[64], step[16], secret[SECRET_MAX], *answer = NULL;

	if (!member(body, "case", name, sizeof(name)) || !member(body, "step", step, sizeof(step)) ||
	    !member(body, "secret", secret, sizeof(secret)))
		return strdup("{\"error\":\"malformed request\"}");
	for (size_t i = 0; i < sizeof(attacks) / sizeof(attacks[0]); i++) {
		if (strcmp(attacks[i].name, name))
			continue;
		if (!strcmp(step, "look")) {
			bool found = attacks[i].look(secret);

			return strdup(found ? "{\"found\":true}" : "{\"found\":false}");
		}
		forbidden = NULL;
		attacks[i].plant(secret);
		if (!forbidden)
			return strdup("{\"planted\":true}");
		if (asprintf(&answer, "{\"forbidden\":\"%s: %s\"}", forbidden, strerror(errno)) < 0)
			return NULL;
		return answer;
	}
	return strdup("{\"error\":\"no such case\"}");
}
