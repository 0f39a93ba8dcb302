/* A payload that makes and reads stages through the client library: `stages make NAME BYTES`, `stages leave NAME BYTES` (it
 * does not commit), `stages put NAME TEXT`, `stages cat NAME`, `stages place NAME` (whether it is read in place), `stages spoil NAME` (tries to change it);
 * without a broker `stages stream-in NAME`, `stream-out NAME`, `share-in NAME`, `share-out NAME`. */
#define _GNU_SOURCE
#include "latebind_stage.h"

static int make(latebind_client *c, const char *name, uint64_t bytes, bool commits) {
    latebind_output out;
    if (latebind_create(c, name, bytes, &out)) return 1;
    for (uint64_t at = 0; at < bytes; at++) ((unsigned char *)out.data)[at] = (unsigned char)(at * 2654435761u >> 13);
    return commits && latebind_commit(c, &out, bytes);
}

static int cat(latebind_client *c, const char *name) {
    latebind_input in;
    if (latebind_open(c, name, &in)) return 1;
    for (uint64_t at = 0; at < in.bytes;) {
        ssize_t n = write(1, (const char *)in.data + at, in.bytes - at);
        if (n <= 0) return 1;
        at += (uint64_t)n;
    }
    latebind_close_input(&in);
    return 0;
}

static int place(latebind_client *c, const char *name) {
    latebind_input in;
    if (latebind_open(c, name, &in)) return 1;
    puts(in.in_place ? "in place" : "copied");
    latebind_close_input(&in);
    return 0;
}

/* By whatever way: a descriptor from the broker, its number in /proc, the path. */
static void spoil_by(const char *way, int fd) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    (void)!fchmod(fd, 0666);
    bool changed = false;
    int again = open(path, O_RDWR);
    changed |= again >= 0 && pwrite(again, "X", 1, 0) == 1;
    changed |= pwrite(fd, "X", 1, 0) == 1 || !ftruncate(fd, 0);
    printf("%s %s\n", way, changed ? "changed" : "kept");
}

static int spoil(latebind_client *c, const char *name) {
    unsigned char *frame = malloc(LATEBIND_FRAME_MAX);
    latebind_answer_ a;
    if (!frame || latebind_named_(c, 3, name, 0, frame, &a)) return 1;
    if (a.fd >= 0) spoil_by("descriptor", a.fd);
    char path[96];
    snprintf(path, sizeof path, "/stage/in/%s", name);
    int fd = open(path, O_RDONLY);
    if (fd < 0) return 1;
    spoil_by("path", fd);
    return 0;
}

/* Both ends of a stream, and of memory that is shared: the writer of one is the reader of the other. */
static int stream(latebind_client *c, const char *name, bool writes) {
    char buffer[4096];
    int fd = latebind_stream(c, name, writes);
    if (fd < 0) return 1;
    for (ssize_t n; (n = read(writes ? 0 : fd, buffer, sizeof buffer)) > 0;)
        if (write(writes ? fd : 1, buffer, (size_t)n) != n) return 1;
    return close(fd);
}

static int share(latebind_client *c, const char *name, bool made) {
    latebind_output memory;
    if (latebind_share(c, name, made, &memory)) return 1;
    _Atomic uint32_t *turn = memory.data;
    char *text = (char *)memory.data + 64;
    if (made) strcpy(text, "in shared memory");
    else {
        while (*turn != 1) usleep(1000);
        printf("%s of %llu bytes\n", text, (unsigned long long)memory.bytes);
    }
    *turn = made ? 1 : 2;
    while (made && *turn != 2) usleep(1000);
    latebind_close_shared(&memory);
    return 0;
}

int main(int argc, char **argv) {
    latebind_client c;
    if (argc < 3) return 2;
    bool passes = !strncmp(argv[1], "stream-", 7) || !strncmp(argv[1], "share-", 6);
    int failed = passes ? 0 : latebind_connect(&c, NULL);
    if (!failed) {
        if (!strncmp(argv[1], "stream-", 7)) failed = stream(&c, argv[2], !strcmp(argv[1], "stream-out"));
        else if (passes) failed = share(&c, argv[2], !strcmp(argv[1], "share-out"));
        else if (!strcmp(argv[1], "cat")) failed = cat(&c, argv[2]);
        else if (!strcmp(argv[1], "spoil")) failed = spoil(&c, argv[2]);
        else if (!strcmp(argv[1], "place")) failed = place(&c, argv[2]);
        else if (argc > 3 && !strcmp(argv[1], "put")) failed = latebind_put(&c, argv[2], argv[3], strlen(argv[3]));
        else if (argc > 3) failed = make(&c, argv[2], strtoull(argv[3], NULL, 10), !strcmp(argv[1], "make"));
    }
    if (failed) fprintf(stderr, "%s\n", c.error);
    return failed != 0;
}
