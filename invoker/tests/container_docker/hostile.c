// A runtime that misbehaves on demand: the word after "do": in the request's body says how.
//
// Static and without a library, so that its image holds one file.
#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define SENTINEL "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"

static char *request_body(int fd, int *read_whole, int read_all) {
    size_t have = 0, room = 1 << 16;
    char *buffer = malloc(room + 1);
    for (;;) {
        ssize_t n = read(fd, buffer + have, room - have);
        if (n <= 0) break;
        have += (size_t)n;
        buffer[have] = 0;
        char *end = strstr(buffer, "\r\n\r\n");
        if (end) {
            char *length = strstr(buffer, "Content-Length: ");
            size_t body = length ? strtoul(length + 16, NULL, 10) : 0;
            size_t whole = (size_t)(end + 4 - buffer) + body;
            if (have >= whole || !read_all) {
                *read_whole = have >= whole;
                return end + 4;
            }
            if (whole > room) {
                room = whole;
                size_t offset = (size_t)(end - buffer);
                buffer = realloc(buffer, room + 1);
                end = buffer + offset;
            }
        }
    }
    buffer[have] = 0;
    return buffer;
}

static void put(int fd, const char *text, size_t length) {
    while (length) {
        ssize_t n = write(fd, text, length);
        if (n <= 0) return;
        text += n;
        length -= (size_t)n;
    }
}

static void say(int fd, const char *format, ...) {
    char text[8192];
    va_list list;
    va_start(list, format);
    int length = vsnprintf(text, sizeof text, format, list);
    va_end(list);
    put(fd, text, (size_t)length);
}

static void answer(int fd, int status, const char *body) {
    say(fd, "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", status, strlen(body), body);
}

static void sentinels(void) {
    say(1, SENTINEL "\n");
    say(2, SENTINEL "\n");
}

static int eat_memory(void) {
    for (;;) {
        char *p = malloc(1 << 20);
        if (!p) return 1;
        memset(p, 1, 1 << 20);
    }
}

static void *serve(void *arg) {
    int fd = (int)(long)arg, whole = 0;
    char path[16] = {0};
    recv(fd, path, sizeof path - 1, MSG_PEEK | MSG_WAITALL);
    int early = getenv("EARLY") != NULL;
    char *body = request_body(fd, &whole, !early);
    char *word = strstr(body, "\"do\":\"");
    char mode[32] = "ok";
    if (word) sscanf(word + 6, "%31[a-z0-9-]", mode);
#define IS(name) (!strcmp(mode, name))
    if (early) answer(fd, 403, "{\"error\":\"early\"}");
    else if (IS("chunked")) say(fd, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n");
    else if (IS("nolength")) say(fd, "HTTP/1.1 200 OK\r\n\r\n{}");
    else if (IS("short")) say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}");
    else if (IS("garbage")) say(fd, "220 mail.example ESMTP\r\n\r\n");
    else if (IS("twolengths")) say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}");
    else if (IS("longhead")) {
        say(fd, "HTTP/1.1 200 OK\r\n");
        for (int i = 0; i < 100; i++) say(fd, "X-%d: %01000d\r\n", i, 0);
        say(fd, "Content-Length: 2\r\n\r\n{}");
    }
    else if (IS("interim")) {
        say(fd, "HTTP/1.1 100 Continue\r\n\r\n");
        answer(fd, 200, "{\"interim\":true}");
    }
    else if (IS("reset")) {
        struct linger linger = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    else if (IS("hang")) pause();
    else if (IS("drip")) {
        say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n");
        for (;;) {
            say(fd, "x");
            usleep(20000);
        }
    }
    else if (IS("exit")) exit(1);
    else if (IS("keepopen")) {
        answer(fd, 200, "{\"keepopen\":true}");
        sleep(3);
    }
    else if (IS("unavailable")) answer(fd, 503, "{\"error\":\"shutting down\"}");
    else if (IS("teapot")) answer(fd, 418, "{\"error\":\"teapot\"}");
    else if (IS("huge")) {
        char block[4096];
        memset(block, 'h', sizeof block);
        say(fd, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", 4 << 20);
        for (int i = 0; i < 1024; i++) put(fd, block, sizeof block);
    }
    else if (IS("oom")) eat_memory();
    else if (IS("oomchild")) {
        pid_t child = fork();
        if (!child) {
            // The kernel is to choose this one, whatever its size by then.
            FILE *score = fopen("/proc/self/oom_score_adj", "w");
            if (score) {
                fputs("1000", score);
                fclose(score);
            }
            _exit(eat_memory());
        }
        waitpid(child, NULL, 0);
        struct linger linger = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    else if (IS("slow")) {
        usleep(300000);
        answer(fd, 200, "{\"slow\":true}");
    }
    else if (IS("lines")) {
        say(1, "out 1\nout 2\n");
        say(2, "err 1\n");
        answer(fd, 200, "{}");
        sentinels();
    }
    else if (IS("nonewline")) {
        say(1, "the end is missing");
        answer(fd, 200, "{}");
        sentinels();
    }
    else if (IS("partialafter")) {
        say(1, "mine\n");
        answer(fd, 200, "{}");
        sentinels();
        say(1, "secret-out");
        say(2, "secret-err");
    }
    else if (IS("lateline")) {
        answer(fd, 200, "{}");
        sentinels();
        say(1, "secret-line\n");
        say(2, "secret-line\n");
    }
    else if (IS("longpartial")) {
        answer(fd, 200, "{}");
        sentinels();
        // The engine's copier cuts at 16 KB: whatever is written next begins right before the cut.
        for (int i = 0; i < 16 * 1024 - 10; i++) put(1, "s", 1);
    }
    else if (IS("flood")) {
        for (int i = 0; i < 40000; i++) say(1, "%060d\n", i);
        answer(fd, 200, "{}");
        sentinels();
    }
    else if (IS("nosentinel")) {
        say(1, "first\nlast without end");
        answer(fd, 200, "{}");
    }
    else if (IS("onesentinel")) {
        say(1, "only\n" SENTINEL "\n");
        answer(fd, 200, "{}");
    }
    else {
        answer(fd, 200, "{\"ok\":true}");
        if (!strncmp(path, "POST /run", 9)) sentinels();
    }
    close(fd);
    return NULL;
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && !strcmp(argv[1], "exit")) return 3;
    if (argc > 1 && !strcmp(argv[1], "deaf")) for (;;) pause();
    if (getenv("DELAY_MS")) usleep((useconds_t)atoi(getenv("DELAY_MS")) * 1000);
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(8080)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) return 2;
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(long)fd)) close(fd);
        else pthread_detach(thread);
    }
}
