/* workflow TRANSPORT SHAPE NODE ITEMS BYTES IN OUT: one program of Dhmem's synthetic workflows (Hobson et al., CCGrid 2021).
 *
 * SHAPE is pair (two programs), chain (four, one after the other) or fan (one, and four that read it). Each item is written anew, each
 * reader adds all of it up. TRANSPORT is shared, mem, pipe or, compiled with -DMESSAGES, mpi. IN and OUT are where stages lie. Prints the
 * clock (CLOCK_MONOTONIC, ns) when the first item was begun and when the last one had been read. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#ifdef MESSAGES
#include <mpi.h>
#endif

#include "latebind_stage.h"

enum { READERS = 4, RING = 2, HEAD = 4096 };

/* The head of shared memory: how far everyone is. */
struct head {
    uint32_t ready, made, taken[READERS];
};

static const char *transport, *in, *out;
static size_t bytes;
static bool fan;
static int node, nodes;
static struct head *from_memory, *to_memory;
static int from_pipe = -1, to_pipes[READERS];
static latebind_client client;
static char *room;

static void die(const char *doing) {
    fprintf(stderr, "workflow: %s: %s %s\n", doing, strerror(errno), client.error);
    exit(1);
}

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static bool is(const char *name) { return !strcmp(transport, name); }
static bool reads(void) { return node > 0; }
static bool writes(void) { return fan ? node == 0 : node + 1 < nodes; }
static int readers(void) { return fan ? READERS : 1; }

static void add(uint32_t *at) {
    __atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, at, FUTEX_WAKE, READERS + 1, NULL, NULL, 0);
}

/* Sleeps until the counter has come to `least`. */
static void until(uint32_t *at, uint32_t least) {
    for (uint32_t found; (int32_t)((found = __atomic_load_n(at, __ATOMIC_SEQ_CST)) - least) < 0;)
        syscall(SYS_futex, at, FUTEX_WAIT, found, NULL, NULL, 0);
}

static struct head *map(const char *folder, int link) {
    char path[300];
    snprintf(path, sizeof path, "%s/r%d", folder, link);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) die(path);
    void *at = mmap(NULL, HEAD + RING * bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (at == MAP_FAILED) die(path);
    return at;
}

static int fifo(const char *folder, int link, int flags) {
    char path[300];
    snprintf(path, sizeof path, "%s/f%d", folder, link);
    int fd = open(path, flags | O_CLOEXEC);
    if (fd < 0) die(path);
    fcntl(fd, F_SETPIPE_SZ, 1 << 20);
    return fd;
}

static void meet(void) {
    if (is("shared")) {
        if (reads()) from_memory = map(in, fan ? 1 : node);
        if (writes()) to_memory = map(out, node + 1);
        if (reads()) add(&from_memory->ready);
        if (writes()) until(&to_memory->ready, (uint32_t)readers());
    } else if (is("pipe")) {
        if (reads()) from_pipe = fifo(in, node, O_RDONLY);
        for (int i = 0; writes() && i < readers(); i++) to_pipes[i] = fifo(out, node + 1 + i, O_WRONLY);
    } else if (is("mem")) {
        char path[300];
        snprintf(path, sizeof path, "%s/n%d", in, node);
        if (latebind_connect(&client, path)) die(path);
    }
}

#ifndef MESSAGES
static void whole(int fd, bool put) {
    for (size_t at = 0; at < bytes;) {
        ssize_t done = put ? write(fd, room + at, bytes - at) : read(fd, room + at, bytes - at);
        if (done <= 0) die("pipe");
        at += (size_t)done;
    }
}
#endif

static void check(const void *item, int number) {
    const uint64_t *at = item;
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes / 8; i++) sum += at[i];
    if (sum != (uint64_t)(number % 100 + 1) * 0x0101010101010101u * (bytes / 8)) die("something else came");
}

static void step(int number) {
    char name[16];
    const char *item = NULL;
    latebind_input input;
    snprintf(name, sizeof name, "i%d", number);
    /* Take. */
    if (reads() && is("shared")) {
        until(&from_memory->made, (uint32_t)number + 1);
        item = (char *)from_memory + HEAD + (size_t)(number % RING) * bytes;
    } else if (reads() && is("mem")) {
        if (latebind_wait(&client, name, 60000, &input)) die("wait");
        item = input.data;
        if (bytes > 1 << 20) madvise((void *)item, bytes, 22 /* MADV_POPULATE_READ */);
    } else if (reads()) {
#ifdef MESSAGES
        MPI_Recv(room, (int)bytes, MPI_BYTE, fan ? 0 : node - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
#else
        whole(from_pipe, false);
#endif
        item = room;
    }
    if (item) check(item, number);
    /* Make. */
    if (writes()) {
        latebind_output output;
        char *to = room;
        if (is("shared")) {
            for (int i = 0; i < readers(); i++) until(&to_memory->taken[i], (uint32_t)(number + 1 > RING ? number + 1 - RING : 0));
            to = (char *)to_memory + HEAD + (size_t)(number % RING) * bytes;
        } else if (is("mem")) {
            char made[16];
            snprintf(made, sizeof made, "o%d", number);
            if (latebind_create(&client, made, bytes, &output)) die("create");
            to = output.data;
        }
        if (!item) memset(to, number % 100 + 1, bytes);
        else if (item != to) memcpy(to, item, bytes);
        if (is("shared")) add(&to_memory->made);
        else if (is("mem")) {
            if (latebind_commit(&client, &output, bytes)) die("commit");
        } else
            for (int i = 0; i < readers(); i++) {
#ifdef MESSAGES
                MPI_Send(room, (int)bytes, MPI_BYTE, node + 1 + i, 0, MPI_COMM_WORLD);
#else
                whole(to_pipes[i], true);
#endif
            }
    }
    if (reads() && is("shared")) add(&from_memory->taken[fan ? node - 1 : 0]);
    if (reads() && is("mem")) latebind_close_input(&input);
}

int main(int count, char **words) {
    if (count != 8) return 2;
    transport = words[1], node = atoi(words[3]), in = words[6], out = words[7];
    fan = !strcmp(words[2], "fan");
    nodes = fan ? READERS + 1 : !strcmp(words[2], "chain") ? 4 : 2;
    int items = atoi(words[4]);
    bytes = strtoul(words[5], NULL, 10);
    room = malloc(bytes);
    memset(room, 1, bytes);
#ifdef MESSAGES
    MPI_Init(NULL, NULL);
    MPI_Comm_rank(MPI_COMM_WORLD, &node);
    MPI_Barrier(MPI_COMM_WORLD);
#endif
    meet();
    long long began = now();
    for (int number = 0; number < items; number++) step(number);
    printf("%lld %lld\n", reads() ? 0 : began, now());
#ifdef MESSAGES
    MPI_Finalize();
#endif
    return 0;
}
