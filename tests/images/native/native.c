/*
 * A native action server: one process, one thread, no runtime between the action and the kernel.
 *
 * The action's code is one of
 *   - text: one plant per line, carried out in this process. A plant first looks whether an earlier
 *     request left one like it, then leaves `secret` of the run's value there:
 *         global | file PATH | env NAME | thread | child
 *     The answer is {"found":["global",...],"container":HOSTNAME}. {"do":"exit"|"abort"|"hang"|"alloc"} in the value ends
 *     the run in that way instead; {"print":TEXT} also writes TEXT and a newline to stdout.
 *   - binary: base 64 of a shared object that exports
 *         char *rewind_action(const char *body);
 *     which is called with each /run's body and returns its answer as malloc'ed JSON text. An
 *     exported `void rewind_init(const char *body)` is called once, at /init.
 *
 * Statuses and texts are those of the actionloop proxy (contract 5.10).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SENTINEL "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n"
#define BODY_LIMIT (48u << 20)

/* ---- JSON: only as much as reading members takes. `NULL` means absent or malformed. ---- */

static const char *skip_blank(const char *p)
{
	while (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r')
		p++;
	return p;
}

static const char *skip_string(const char *p)
{
	if (*p++ != '"')
		return NULL;
	for (; *p && *p != '"'; p++)
		if (*p == '\\' && !*++p)
			return NULL;
	return *p ? p + 1 : NULL;
}

static const char *skip_value(const char *p)
{
	int depth = 0;

	p = skip_blank(p);
	do {
		if (*p == '"') {
			p = skip_string(p);
			if (!p)
				return NULL;
		} else if (*p == '{' || *p == '[') {
			depth++;
			p++;
		} else if (*p == '}' || *p == ']') {
			depth--;
			p++;
		} else if (!*p) {
			return NULL;
		} else if (depth == 0) {
			while (*p && !strchr(",}] \t\n\r", *p))
				p++;
		} else {
			p++;
		}
	} while (depth > 0);
	return p;
}

/* The start of the value of a member of the object at `p`. */
static const char *member(const char *p, const char *name)
{
	size_t length = strlen(name);

	if (!p || *(p = skip_blank(p)) != '{')
		return NULL;
	for (p = skip_blank(p + 1); *p == '"'; p = skip_blank(p + 1)) {
		const char *key = p + 1;
		bool ours;

		p = skip_string(p);
		if (!p)
			return NULL;
		ours = (size_t)(p - key) == length + 1 && !memcmp(key, name, length);
		p = skip_blank(p);
		if (*p++ != ':')
			return NULL;
		if (ours)
			return skip_blank(p);
		p = skip_value(p);
		if (!p)
			return NULL;
		p = skip_blank(p);
		if (*p != ',')
			return NULL;
	}
	return NULL;
}

/* A JSON string as malloc'ed text; code points beyond the first plane are left as they come. */
static char *text(const char *p)
{
	char *out, *o;

	if (!p || *p != '"' || !skip_string(p))
		return NULL;
	out = o = malloc(strlen(p) + 1);
	for (p++; *p != '"'; p++) {
		unsigned code;

		if (*p != '\\') {
			*o++ = *p;
			continue;
		}
		switch (*++p) {
		case 'n': *o++ = '\n'; break;
		case 't': *o++ = '\t'; break;
		case 'r': *o++ = '\r'; break;
		case 'b': *o++ = '\b'; break;
		case 'f': *o++ = '\f'; break;
		case 'u':
			if (sscanf(p + 1, "%4x", &code) != 1)
				break;
			p += 4;
			if (code < 0x80) {
				*o++ = (char)code;
			} else if (code < 0x800) {
				*o++ = (char)(0xc0 | code >> 6);
				*o++ = (char)(0x80 | (code & 0x3f));
			} else {
				*o++ = (char)(0xe0 | code >> 12);
				*o++ = (char)(0x80 | (code >> 6 & 0x3f));
				*o++ = (char)(0x80 | (code & 0x3f));
			}
			break;
		default: *o++ = *p;
		}
	}
	*o = 0;
	return out;
}

static bool is(const char *value, const char *word)
{
	return value && !strncmp(value, word, strlen(word));
}

/* ---- plants ---- */

#define MARK "rewind-plant="

static char planted[256];
static char *program; /* the lines of the action */
static int threads_at_init;
static char *(*plugin)(const char *body);

static int count_threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	int n = 0;

	while (dir && readdir(dir))
		n++;
	if (dir)
		closedir(dir);
	return n;
}

static bool child_found(void)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	bool found = false;

	while (dir && !found && (entry = readdir(dir))) {
		char path[300], line[512] = "";
		int fd;

		if (!isdigit((unsigned char)entry->d_name[0]) || atoi(entry->d_name) == getpid())
			continue;
		snprintf(path, sizeof(path), "/proc/%s/cmdline", entry->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (read(fd, line, sizeof(line) - 1) > 0)
			found = !strncmp(line, MARK, strlen(MARK));
		close(fd);
	}
	if (dir)
		closedir(dir);
	return found;
}

static void *idle(void *argument)
{
	(void)argument;
	for (;;)
		pause();
	return NULL;
}

/* Looks for what an earlier request left, then leaves `secret` in the same place (one thread and one
 * child at most: one is enough to be found). */
static bool plant(const char *what, const char *argument, const char *secret)
{
	bool found = false;

	if (!strcmp(what, "global")) {
		found = planted[0];
		snprintf(planted, sizeof(planted), "%s", secret);
	} else if (!strcmp(what, "file")) {
		FILE *file;

		found = access(argument, F_OK) == 0;
		file = fopen(argument, "we");
		if (file) {
			fputs(secret, file);
			fclose(file);
		}
	} else if (!strcmp(what, "env")) {
		found = getenv(argument) != NULL;
		setenv(argument, secret, 1);
	} else if (!strcmp(what, "thread")) {
		pthread_t thread;

		found = count_threads() > threads_at_init;
		if (!found && !pthread_create(&thread, NULL, idle, NULL))
			pthread_detach(thread);
	} else if (!strcmp(what, "child")) {
		found = child_found();
		if (!found && fork() == 0) {
			char name[300];

			snprintf(name, sizeof(name), MARK "%s", secret);
			execl("/bin/sleep", name, "1000", NULL);
			_exit(127);
		}
	}
	return found;
}

static char *run_program(const char *value)
{
	char *secret = text(member(value, "secret")), *copy = strdup(program), *rest = copy, *line;
	char *print = text(member(value, "print")), *act = text(member(value, "do"));
	char *answer = NULL, host[65] = "";
	size_t size;
	FILE *out = open_memstream(&answer, &size);
	const char *comma = "";

	if (print)
		puts(print);
	if (act && !strcmp(act, "exit"))
		_exit(7);
	if (act && !strcmp(act, "abort"))
		abort();
	if (act && !strcmp(act, "hang"))
		idle(NULL);
	while (act && !strcmp(act, "alloc"))
		memset(malloc(1 << 20), 1, 1 << 20);

	fputs("{\"found\":[", out);
	while ((line = strsep(&rest, "\n"))) {
		char *what = strsep(&line, " ");

		if (*what && plant(what, line ? line : "", secret ? secret : "")) {
			fprintf(out, "%s\"%s\"", comma, what);
			comma = ",";
		}
	}
	gethostname(host, sizeof(host) - 1);
	fprintf(out, "],\"container\":\"%s\"}\n", host);
	fclose(out);
	free(secret);
	free(copy);
	free(print);
	free(act);
	return answer;
}

/* ---- the protocol ---- */

static void end_log(void)
{
	fputs(SENTINEL, stdout);
	fflush(stdout);
	fputs(SENTINEL, stderr);
	fflush(stderr);
}

static char *load_plugin(const char *code, const char *body)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *path = "/tmp/action.so";
	FILE *file = fopen(path, "we");
	unsigned bits = 0, have = 0;
	void *library;
	void (*start)(const char *);

	for (; file && *code; code++) {
		const char *digit = strchr(digits, *code);

		if (!digit)
			continue;
		bits = bits << 6 | (unsigned)(digit - digits);
		have += 6;
		if (have >= 8) {
			have -= 8;
			fputc((int)(bits >> have & 0xff), file);
		}
	}
	if (!file || fclose(file))
		return strdup("cannot write the action to a file");
	library = dlopen(path, RTLD_NOW);
	if (!library)
		return strdup(dlerror());
	*(void **)&plugin = dlsym(library, "rewind_action");
	if (!plugin)
		return strdup("the action exports no rewind_action");
	*(void **)&start = dlsym(library, "rewind_init");
	if (start)
		start(body);
	return NULL;
}

static int init(const char *body, char **answer)
{
	const char *value = member(body, "value"), *env = member(value, "env"), *p;
	char *code, *wrong = NULL;

	if (program || plugin) {
		*answer = strdup("Cannot initialize the action more than once.");
		return 403;
	}
	if (*skip_blank(body) != '{') {
		*answer = strdup("Error unmarshaling request: no JSON object");
		return 400;
	}
	code = text(member(value, "code"));
	if (!code || !*code) {
		free(code);
		*answer = strdup("Missing main/no code to execute.");
		return 403;
	}
	for (p = env ? skip_blank(env + 1) : ""; *p == '"';) {
		char *name = text(p), *setting;

		p = skip_blank(skip_string(p)) + 1;
		setting = text(skip_blank(p));
		if (setting)
			setenv(name, setting, 1);
		free(name);
		free(setting);
		p = skip_value(p);
		p = p ? skip_blank(p) : "";
		p = *p == ',' ? skip_blank(p + 1) : "";
	}
	if (is(member(value, "binary"), "true")) {
		wrong = load_plugin(code, body);
		free(code);
	} else {
		program = code;
	}
	if (wrong) {
		fprintf(stderr, "%s\n", wrong);
		free(wrong);
		end_log();
		*answer = strdup("Cannot start action. Check logs for details.");
		return 502;
	}
	threads_at_init = count_threads();
	*answer = strdup("{\"ok\":true}\n");
	return 200;
}

static int run(const char *body, char **answer)
{
	if (!program && !plugin) {
		*answer = strdup("no action defined yet");
		return 500;
	}
	*answer = plugin ? plugin(body) : run_program(member(body, "value"));
	end_log();
	return 200;
}

static const char *reason(int status)
{
	switch (status) {
	case 200: return "OK";
	case 400: return "Bad Request";
	case 403: return "Forbidden";
	case 502: return "Bad Gateway";
	default: return "Internal Server Error";
	}
}

/* Reads one request; the body is malloc'ed and ends in a NUL. */
static char *receive(FILE *in, char *path)
{
	char line[8192], method[16];
	size_t length = 0;
	char *body;

	if (!fgets(line, sizeof(line), in) || sscanf(line, "%15s %255s", method, path) != 2)
		return NULL;
	while (fgets(line, sizeof(line), in) && line[0] != '\r' && line[0] != '\n')
		if (!strncasecmp(line, "content-length:", 15))
			length = strtoul(line + 15, NULL, 10);
	if (length > BODY_LIMIT)
		return NULL;
	body = malloc(length + 1);
	if (fread(body, 1, length, in) != length) {
		free(body);
		return NULL;
	}
	body[length] = 0;
	return body;
}

static void serve(int fd)
{
	FILE *in = fdopen(fd, "r");
	char path[256] = "", *body = receive(in, path), *answer = NULL;
	int status = 200;

	if (body) {
		if (!strcmp(path, "/init"))
			status = init(body, &answer);
		else if (!strcmp(path, "/run"))
			status = run(body, &answer);
		if (status != 200) {
			char *wrapped;

			if (asprintf(&wrapped, "{\"error\":\"%s\"}\n", answer) < 0)
				abort();
			free(answer);
			answer = wrapped;
		}
		dprintf(fd, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
			status, reason(status), answer ? strlen(answer) : 0, answer ? answer : "");
	}
	free(body);
	free(answer);
	fclose(in);
}

int main(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	signal(SIGPIPE, SIG_IGN);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || listen(fd, 128)) {
		perror("native: cannot listen on port 8080");
		return 1;
	}
	for (;;) {
		int connection = accept4(fd, NULL, NULL, SOCK_CLOEXEC);

		if (connection >= 0)
			serve(connection);
	}
}
