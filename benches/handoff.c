/* handoff PART PLACE [peers]: one end of a hand-off, on this machine or in a container.
 *
 * PART is produce or consume, PLACE the folder with the sockets. Orders come from PLACE/control, one a line: METHOD BYTES ROUND PORT.
 * A consumer says `ready` when it is about to wait, and then when it had all bytes at an address of its own and when it had read each;
 * a producer says when its bytes were ready, how long sealing took (in us), and when it asked for that. All in ns of CLOCK_MONOTONIC.
 * Static, as a payload has to be. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <time.h>

#include "latebind_stage.h"

static const char *place;
static int listening = -1, tcp_listening = -1, unix_socket = -1, tcp_socket = -1, fifo = -1, redis = -1;

static void die(const char *doing) {
    fprintf(stderr, "handoff: %s: %s\n", doing, strerror(errno));
    exit(1);
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(int fd, const void *from, size_t n) {
    for (const char *at = from; n;) {
        ssize_t done = write(fd, at, n);
        if (done <= 0) die("write");
        at += done, n -= (size_t)done;
    }
}

static void get(int fd, void *to, size_t n) {
    for (char *at = to; n;) {
        ssize_t done = read(fd, at, n);
        if (done <= 0) die("read");
        at += done, n -= (size_t)done;
    }
}

/* A line of an answer, without its end. */
static void get_line(int fd, char *line, size_t room) {
    for (size_t n = 0; n + 1 < room; n++) {
        get(fd, line + n, 1);
        if (line[n] == '\n') {
            line[n] = 0;
            return;
        }
    }
    errno = EMSGSIZE;
    die("read a line");
}

static int dial_unix(const char *name) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    snprintf(to.sun_path, sizeof to.sun_path, "%s/%s", place, name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die(name);
    return fd;
}

static int dial_tcp(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to)) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

static int listen_here(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    struct sockaddr_in tcp = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof tcp;
    snprintf(at.sun_path, sizeof at.sun_path, "%s/unix", place);
    listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    tcp_listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listening, (struct sockaddr *)&at, sizeof at) || listen(listening, 1)) die("listen");
    if (bind(tcp_listening, (struct sockaddr *)&tcp, sizeof tcp) || listen(tcp_listening, 1)) die("listen");
    if (getsockname(tcp_listening, (struct sockaddr *)&tcp, &length)) die("getsockname");
    return ntohs(tcp.sin_port);
}

/* The ends of what stays open between rounds: made at the first use. */
static int end_of(const char *method, bool producing, int port) {
    char path[200];
    if (!strcmp(method, "pipe")) {
        snprintf(path, sizeof path, "%s/fifo", place);
        if (fifo < 0) fifo = open(path, (producing ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
        if (fifo < 0) die(path);
        fcntl(fifo, F_SETPIPE_SZ, 1 << 20);
        return fifo;
    }
    if (!strcmp(method, "tcp")) {
        if (tcp_socket < 0) tcp_socket = producing ? dial_tcp(port) : accept(tcp_listening, NULL, NULL);
        return tcp_socket;
    }
    if (unix_socket < 0) unix_socket = producing ? dial_unix("unix") : accept(listening, NULL, NULL);
    return unix_socket;
}

static uint64_t sum(const void *bytes, size_t n) {
    const uint64_t *at = bytes;
    uint64_t sum = 0;
    for (size_t i = 0; i < n / 8; i++) sum += at[i];
    return sum;
}

static bool is_stage(const char *method) { return !strcmp(method, "stage") || !strcmp(method, "stage-huge"); }

static void give_up(const latebind_client *c) {
    fprintf(stderr, "handoff: %s\n", c->error);
    exit(1);
}

static void stage_path(char *path, size_t room, char end, int round) { snprintf(path, room, "%s/%c%d", place, end, round); }

static void produce(int control, const char *method, size_t n, int round, int port) {
    char text[200];
    long long began, asked = 0;
    unsigned long long seal_us = 0;
    if (is_stage(method)) {
        latebind_client c;
        latebind_output out;
        stage_path(text, sizeof text, 'p', round);
        int code = latebind_connect(&c, text);
        if (!code) code = strcmp(method, "stage") ? latebind_create_huge(&c, "x", n, &out) : latebind_create(&c, "x", n, &out);
        if (code) give_up(&c);
        if (*out.note) fprintf(stderr, "handoff: %s\n", out.note);
        memset(out.data, 7, n);
        began = now();
        /* A commit does it too; here it is timed apart. */
        munmap(out.data, n);
        out.data = NULL;
        asked = now();
        if (latebind_commit(&c, &out, n)) give_up(&c);
        seal_us = out.seal_us;
        latebind_close(&c);
    } else {
        char *bytes = malloc(n), c = 1;
        memset(bytes, 7, n);
        int to = end_of(method, true, port);
        if (!strcmp(method, "redis") && redis < 0) redis = dial_tcp(port);
        began = now();
        if (!strcmp(method, "tmpfs")) {
            snprintf(text, sizeof text, "%s/tmpfs", place);
            int file = open(text, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
            if (file < 0) die(text);
            put(file, bytes, n);
            close(file);
            put(to, &c, 1);
        } else if (!strcmp(method, "redis")) {
            int length = snprintf(text, sizeof text, "*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$%zu\r\n", n);
            put(redis, text, (size_t)length);
            put(redis, bytes, n);
            put(redis, "\r\n", 2);
            get_line(redis, text, sizeof text);
            if (strncmp(text, "+OK", 3)) die(text);
            put(to, &c, 1);
        } else {
            put(to, bytes, n);
        }
        free(bytes);
    }
    dprintf(control, "%lld %llu %lld\n", began, seal_us, asked ? asked : began);
}

static void consume(int control, const char *method, size_t n, int round, int port) {
    long long mapped, all;
    uint64_t found;
    if (is_stage(method)) {
        char path[200];
        latebind_client c;
        latebind_input in;
        stage_path(path, sizeof path, 'c', round);
        int code = latebind_connect(&c, path);
        put(control, "ready\n", 6);
        if (!code) code = latebind_wait(&c, "x", 60000, &in);
        if (code) give_up(&c);
        *(volatile const char *)in.data;
        mapped = now();
        found = sum(in.data, n);
        all = now();
        latebind_close_input(&in);
        latebind_close(&c);
    } else {
        char *room = malloc(n), c, text[200];
        memset(room, 1, n);
        put(control, "ready\n", 6);
        int from = end_of(method, false, port);
        if (!strcmp(method, "redis") && redis < 0) redis = dial_tcp(port);
        if (!strcmp(method, "tmpfs")) {
            get(from, &c, 1);
            snprintf(text, sizeof text, "%s/tmpfs", place);
            int file = open(text, O_RDONLY | O_CLOEXEC);
            if (file < 0) die(text);
            get(file, room, n);
            close(file);
            unlink(text);
        } else if (!strcmp(method, "redis")) {
            get(from, &c, 1);
            put(redis, "*2\r\n$3\r\nGET\r\n$1\r\nx\r\n", 20);
            get_line(redis, text, sizeof text);
            get(redis, room, n);
            get_line(redis, text, sizeof text);
        } else {
            get(from, room, n);
        }
        mapped = now();
        found = sum(room, n);
        all = now();
        free(room);
    }
    if (found != n / 8 * 0x0707070707070707u) {
        fprintf(stderr, "handoff: %s of %zu bytes brought something else\n", method, n);
        exit(1);
    }
    dprintf(control, "%lld %lld\n", mapped, all);
}

int main(int count, char **words) {
    if (count < 3) return 2;
    bool producing = !strcmp(words[1], "produce");
    place = words[2];
    int port = 0;
    if (count > 3 && !producing) port = listen_here();
    int control = dial_unix("control");
    dprintf(control, "%s%s %d\n", words[1], count > 3 ? "-peers" : "", port);
    FILE *orders = fdopen(dup(control), "r");
    char method[32];
    size_t bytes;
    int round;
    while (fscanf(orders, "%31s %zu %d %d", method, &bytes, &round, &port) == 4) {
        if (producing) produce(control, method, bytes, round, port);
        else consume(control, method, bytes, round, port);
    }
    return 0;
}
