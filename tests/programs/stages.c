/* A payload that makes and reads stages through the client library: `stages make NAME BYTES`, `stages leave NAME BYTES` (it
 * does not commit), `stages put NAME TEXT`, `stages cat NAME`, `stages place NAME` (whether it is read in place), `stages spoil NAME` (tries to change it). */
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

int main(int argc, char **argv) {
    latebind_client c;
    if (argc < 3) return 2;
    int failed = latebind_connect(&c, NULL);
    if (!failed) {
        if (!strcmp(argv[1], "cat")) failed = cat(&c, argv[2]);
        else if (!strcmp(argv[1], "spoil")) failed = spoil(&c, argv[2]);
        else if (!strcmp(argv[1], "place")) failed = place(&c, argv[2]);
        else if (argc > 3 && !strcmp(argv[1], "put")) failed = latebind_put(&c, argv[2], argv[3], strlen(argv[3]));
        else if (argc > 3) failed = make(&c, argv[2], strtoull(argv[3], NULL, 10), !strcmp(argv[1], "make"));
    }
    if (failed) fprintf(stderr, "%s\n", c.error);
    return failed != 0;
}
