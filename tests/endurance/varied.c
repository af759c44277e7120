/*
 * Does what ordinary functions do, one thing after another, and says what it finds of other requests.
 * A shared object for the native action server of tests/images/native.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static unsigned long seen;
static void *kept[8];

static void *sleeper(void *nothing)
{
	for (;;)
		sleep(1000);
	return nothing;
}

static void threads(void)
{
	pthread_t thread;

	for (int i = 0; i < 3; i++)
		pthread_create(&thread, NULL, sleeper, NULL);
}

static void garbage(void)
{
	for (int i = 0; i < 20000; i++)
		free(malloc((size_t)(i % 512) + 1));
}

static void forks(void)
{
	if (fork() == 0)
		sleeper(NULL);
}

static void place(void)
{
	struct rlimit limit;

	if (chdir("/tmp"))
		_exit(1);
	umask(077);
	setenv("WHERE", "elsewhere", 1);
	signal(SIGUSR1, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = 512;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static void large(void)
{
	kept[0] = malloc(20 << 20);
	memset(kept[0], 'x', 20 << 20);
	kept[1] = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(kept[1], 'y', 4 << 20);
}

static void listens(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };

	for (int i = 0; i < 5; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 5))
			_exit(1);
	}
	eventfd(1, 0);
}

static void files(void)
{
	char path[64], text[1000] = { 0 };

	for (int i = 0; i < 10; i++) {
		snprintf(path, sizeof(path), "/tmp/made-%d", i);
		mkdir(path, 0700);
		snprintf(path, sizeof(path), "/tmp/made-%d/file", i);
		int fd = open(path, O_CREAT | O_WRONLY, 0600);

		if (fd < 0 || write(fd, text, sizeof(text)) < 0)
			_exit(1);
	}
	close(open("/etc/hostname-of-mine", O_CREAT | O_WRONLY, 0600));
}

static void child(void)
{
	if (system("/bin/sleep 1000 & /bin/true"))
		_exit(1);
}

static void timers(void)
{
	struct itimerval alarm = { { 0, 0 }, { 100, 0 } };

	setitimer(ITIMER_REAL, &alarm, NULL);
}

static void nothing(void)
{
}

static void (*const DO[])(void) = { nothing, garbage, threads, forks, place, large, listens, files, child, timers };

char *rewind_action(const char *body)
{
	const char *member = strstr(body, "\"n\":");
	unsigned long n = member ? strtoul(member + 4, NULL, 10) : 0;
	char host[64] = "", *answer;

	gethostname(host, sizeof(host) - 1);
	if (asprintf(&answer, "{\"found\":[%.0lu],\"host\":\"%s\"}", seen, host) < 0)
		return NULL;
	seen = n + 1;
	DO[n % (sizeof(DO) / sizeof(*DO))]();
	return answer;
}
