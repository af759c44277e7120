/*
 * Runs a command on what looks like Linux 6.1 to it: the version says so, and page-map scans are unknown to the
 * kernel (ENOTTY, as there).
 *
 *     old_kernel COMMAND...
 *
 * A mount namespace of its own hides /proc/sys/kernel/osrelease, a seccomp filter answers the ioctl. Needs root.
 * The filter itself shows in /proc/self/status, as one more thing that `rewind check` complains of.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RELEASE "6.1.0-37-amd64\n"
/* _IOWR('f', 16, struct pm_scan_arg) of <linux/fs.h>, which older headers do not have. */
#define PAGEMAP_SCAN_ _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, 96)
static int fail(const char *what)
{
	fprintf(stderr, "old_kernel: %s: %s\n", what, strerror(errno));
	return 126;
}

int main(int argc, char **argv)
{
	char path[] = "/tmp/osrelease.XXXXXX";
	int fd;

	if (argc < 2) {
		fprintf(stderr, "usage: old_kernel COMMAND...\n");
		return 2;
	}
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return fail("a mount namespace");
	fd = mkstemp(path);
	if (fd < 0 || write(fd, RELEASE, strlen(RELEASE)) < 0 || fchmod(fd, 0444) || close(fd))
		return fail(path);
	if (mount(path, "/proc/sys/kernel/osrelease", NULL, MS_BIND, NULL) || unlink(path))
		return fail("/proc/sys/kernel/osrelease");

	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)PAGEMAP_SCAN_, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOTTY),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(code) / sizeof(*code), code };
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return fail("a seccomp filter");
	execvp(argv[1], argv + 1);
	return fail(argv[1]);
}
