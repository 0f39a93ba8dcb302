/* Stages of Latebind from C11: memory that the pilot pays for, handed from payload to payload without a copy.
 *
 *   latebind_client c;
 *   latebind_input in; latebind_output out;
 *   if (latebind_connect(&c, NULL) || latebind_open(&c, "masses", &in) || latebind_create(&c, "sum", 8, &out)) goto bad;
 *   memcpy(out.data, &sum, 8);
 *   if (latebind_commit(&c, &out, 8)) goto bad;
 *   latebind_close_input(&in); latebind_close(&c);
 *   ...
 *   bad: fprintf(stderr, "%s\n", c.error);
 *
 * Every call gives 0, or a code below with one line in `error`: what failed, on what, what to do next. The pilot sets
 * LATEBIND_STAGE; nothing else is configured. A client belongs to one thread at a time. Header only; Linux, glibc or musl;
 * define _GNU_SOURCE before the first include. The protocol: docs/reference/stage-clients.md.
 */
#ifndef LATEBIND_STAGE_H
#define LATEBIND_STAGE_H

#ifndef _GNU_SOURCE
#error "define _GNU_SOURCE before the first include"
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The broker's codes, plus one; the client's own are negative. */
enum {
    LATEBIND_OK = 0,
    LATEBIND_MALFORMED = 1,
    LATEBIND_VERSION,
    LATEBIND_UNDECLARED,
    LATEBIND_WRONG_CLASS,
    LATEBIND_EXISTS,
    LATEBIND_NOT_CREATED,
    LATEBIND_BUSY,
    LATEBIND_TOO_LARGE,
    LATEBIND_TOO_SMALL,
    LATEBIND_OVER_BUDGET,
    LATEBIND_NOT_THERE,
    LATEBIND_GONE,
    LATEBIND_TOO_MANY,
    LATEBIND_ENDED,
    LATEBIND_IO,
    LATEBIND_BROKEN = -1, /* the broker broke the protocol, or the connection has ended */
    LATEBIND_INVALID = -2, /* a name or size that can't be */
    LATEBIND_SYSTEM = -3,  /* a system call of this process failed */
    LATEBIND_UNSEALED = -4 /* what came is not sealed: its producer could change it */
};

typedef struct {
    int socket;
    uint32_t last;
    char error[1200];
} latebind_client;

typedef struct {
    void *data; /* writable, in place; NULL when it is empty */
    uint64_t bytes;
    int fd;
    char name[65];
    char note[160];   /* what was asked for and could not be had, in one line; empty when there is nothing to say */
    uint64_t seal_us; /* after the commit: how long sealing took, in microseconds */
} latebind_output;

typedef struct {
    const void *data; /* read-only, in place if `in_place`, else a copy; NULL when it is empty */
    uint64_t bytes;
    bool in_place;
    bool mapped;
} latebind_input;

/* ---- what follows up to the calls is the protocol ---- */

#define LATEBIND_FRAME_MAX (68u * 1024u)
#define LATEBIND_VALUE_MAX (64u * 1024u)

typedef struct {
    const unsigned char *at, *end;
    bool bad;
} latebind_reader_;

typedef struct {
    uint64_t kind, bytes, stage_class, seal_us;
    const unsigned char *value; /* in the frame; of Lent the note */
    uint64_t value_bytes;
    int fd;
} latebind_answer_;

static inline int latebind_fail_(latebind_client *c, int code, const char *doing, const char *what, const char *why) {
    snprintf(c->error, sizeof c->error, "%s%s%.65s%s: %.1000s", doing, what ? " \"" : "", what ? what : "", what ? "\"" : "",
             why);
    return code;
}

static inline bool latebind_name_ok_(const char *name) {
    size_t n = 0;
    if (!name) return false;
    for (; name[n]; n++) {
        char b = name[n];
        bool letter = (b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z') || (b >= '0' && b <= '9');
        if (n >= 64 || !(letter || (n > 0 && (b == '.' || b == '_' || b == '-')))) return false;
    }
    return n > 0;
}

static inline unsigned char *latebind_put_(unsigned char *to, uint64_t value) {
    while (value > 0x7f) {
        *to++ = (unsigned char)(value | 0x80);
        value >>= 7;
    }
    *to++ = (unsigned char)value;
    return to;
}

static inline unsigned char *latebind_put_text_(unsigned char *to, const char *text) {
    size_t n = strlen(text);
    to = latebind_put_(to, n);
    memcpy(to, text, n);
    return to + n;
}

static inline uint64_t latebind_get_(latebind_reader_ *r) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (r->at >= r->end) break;
        unsigned char byte = *r->at++;
        if (shift == 63 && byte > 1) break;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
    r->bad = true;
    return 0;
}

static inline const unsigned char *latebind_get_blob_(latebind_reader_ *r, uint64_t *bytes) {
    *bytes = latebind_get_(r);
    if (r->bad || *bytes > (uint64_t)(r->end - r->at)) {
        r->bad = true;
        *bytes = 0;
        return r->at;
    }
    const unsigned char *blob = r->at;
    r->at += *bytes;
    return blob;
}

/* Bytes of one frame, 0 at the end, -1 on failure; at most one descriptor is kept, in *fd. */
static inline ssize_t latebind_receive_(latebind_client *c, unsigned char *frame, int *fd) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(16 * sizeof(int))];
    } control;
    struct iovec part = {frame, LATEBIND_FRAME_MAX};
    struct msghdr m;
    ssize_t got;
    *fd = -1;
    do {
        memset(&m, 0, sizeof m);
        m.msg_iov = &part;
        m.msg_iovlen = 1;
        m.msg_control = &control;
        m.msg_controllen = sizeof control;
        got = recvmsg(c->socket, &m, MSG_CMSG_CLOEXEC);
        /* ECONNRESET is said once, ahead of what is still in the queue. */
    } while (got < 0 && (errno == EINTR || errno == ECONNRESET));
    if (got < 0) return -1;
    int count = 0;
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); h; h = CMSG_NXTHDR(&m, h)) {
        if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
        size_t n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int one;
            memcpy(&one, CMSG_DATA(h) + i * sizeof one, sizeof one);
            if (count++ == 0) *fd = one;
            else close(one);
        }
    }
    if (count > 1 || (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
        if (*fd >= 0) close(*fd);
        *fd = -1;
        errno = EPROTO;
        return -1;
    }
    return got;
}

static inline int latebind_broken_(latebind_client *c, const char *why) {
    return latebind_fail_(c, LATEBIND_BROKEN, "ask the stage broker", NULL, why);
}

/* Sends a question and receives its answer into `frame`, whose bytes the answer points to. */
static inline int latebind_ask_(latebind_client *c, const unsigned char *question, size_t n, uint64_t id,
                                unsigned char *frame, latebind_answer_ *a) {
    /* A broker that has ended the connection has said why: that is received next. */
    (void)!send(c->socket, question, n, MSG_NOSIGNAL);
    for (;;) {
        memset(a, 0, sizeof *a);
        ssize_t got = latebind_receive_(c, frame, &a->fd);
        if (got < 0) return latebind_broken_(c, strerror(errno));
        if (got == 0) return latebind_broken_(c, "the connection has ended");
        latebind_reader_ r = {frame, frame + got, false};
        uint64_t message = latebind_get_(&r);
        uint64_t of = message == 1 ? latebind_get_(&r) : 0;
        if (message == 0 && id == 0) {
            a->kind = 100; /* Welcome: only its major version matters */
            a->value_bytes = latebind_get_(&r);
            if (a->fd < 0 && !r.bad && a->value_bytes == 1) return LATEBIND_OK;
            if (a->fd >= 0) close(a->fd);
            return latebind_broken_(c, "it speaks another protocol");
        }
        if (message != 1 || (of != id && of != 0)) {
            if (a->fd >= 0) close(a->fd);
            if (message != 1) return latebind_broken_(c, "it broke the protocol");
            continue;
        }
        a->kind = latebind_get_(&r);
        uint64_t n_text = 0;
        const unsigned char *text = NULL;
        uint64_t code = 0;
        switch (a->kind) {
        case 0: /* Lent: bytes, note */
            a->bytes = latebind_get_(&r);
            if (latebind_get_(&r) == 1) a->value = latebind_get_blob_(&r, &a->value_bytes);
            break;
        case 1: /* Committed: bytes, seal_us */
            a->bytes = latebind_get_(&r);
            a->seal_us = latebind_get_(&r);
            break;
        case 2: break; /* Abandoned */
        case 3: /* Opened: class, bytes */
            a->stage_class = latebind_get_(&r);
            a->bytes = latebind_get_(&r);
            break;
        case 4: a->value = latebind_get_blob_(&r, &a->value_bytes); break;
        case 6: /* Refused: code, text */
            code = latebind_get_(&r);
            text = latebind_get_blob_(&r, &n_text);
            break;
        case 7: a->bytes = latebind_get_(&r); break; /* ByPath: bytes */
        default: r.bad = true;
        }
        bool wants_fd = a->kind == 0 || a->kind == 3;
        if (r.bad || r.at != r.end || wants_fd != (a->fd >= 0)) {
            if (a->fd >= 0) close(a->fd);
            return latebind_broken_(c, "it broke the protocol");
        }
        if (a->kind == 6) {
            if (n_text > 1024) n_text = 1024;
            memcpy(c->error, text, n_text);
            c->error[n_text] = 0;
            return code <= 14 ? (int)code + 1 : LATEBIND_BROKEN;
        }
        return LATEBIND_OK;
    }
}

/* Question with a name and a number: Create (0), Commit (1), Abandon (2), Open (3); LATEBIND_HUGE_ is Create in huge pages. */
#define LATEBIND_HUGE_ 256u
static inline int latebind_named_(latebind_client *c, unsigned request, const char *name, uint64_t number,
                                  unsigned char *frame, latebind_answer_ *a) {
    unsigned char question[128], *to = question;
    c->last = c->last == UINT32_MAX ? 1 : c->last + 1;
    *to++ = 1;
    to = latebind_put_(to, c->last);
    *to++ = (unsigned char)(request & 255u);
    to = latebind_put_text_(to, name);
    if (request != 2) to = latebind_put_(to, number);
    if ((request & 255u) == 0) *to++ = request == LATEBIND_HUGE_;
    return latebind_ask_(c, question, (size_t)(to - question), c->last, frame, a);
}

static inline int latebind_dial_(int fd, const char *path) {
    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    size_t n = strlen(path);
    if (n < sizeof address.sun_path) {
        memcpy(address.sun_path, path, n);
        return connect(fd, (struct sockaddr *)&address, sizeof address);
    }
    /* Longer than an address holds: by way of its folder. */
    const char *slash = strrchr(path, '/');
    char *folder = slash ? strndup(path, (size_t)(slash - path)) : NULL;
    if (!folder) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int dir = open(*folder ? folder : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    if (dir < 0) return -1;
    int len = snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", dir, slash + 1);
    int result = -1;
    if (len > 0 && (size_t)len < sizeof address.sun_path) result = connect(fd, (struct sockaddr *)&address, sizeof address);
    else errno = ENAMETOOLONG;
    int kept = errno;
    close(dir);
    errno = kept;
    return result;
}

static inline int latebind_open_within_(latebind_client *c, const char *name, uint64_t wait_ms, latebind_input *in) {
    enum { SEALS = 0x0002 | 0x0004 | 0x0008 }; /* SHRINK, GROW, WRITE */
    memset(in, 0, sizeof *in);
    if (!latebind_name_ok_(name)) return latebind_fail_(c, LATEBIND_INVALID, "open input", name, "that is no name");
    unsigned char *frame = malloc(LATEBIND_FRAME_MAX);
    if (!frame) return latebind_fail_(c, LATEBIND_SYSTEM, "open input", name, strerror(errno));
    latebind_answer_ a;
    int code = latebind_named_(c, 3, name, wait_ms, frame, &a);
    if (code) goto out;
    void *data = NULL;
    if (a.kind == 4) {
        in->bytes = a.value_bytes;
        if (a.value_bytes && !(data = malloc(a.value_bytes))) {
            code = latebind_fail_(c, LATEBIND_SYSTEM, "open input", name, strerror(errno));
            goto out;
        }
        if (data) memcpy(data, a.value, a.value_bytes);
        in->data = data;
        goto out;
    }
    if (a.kind == 7) {
        /* A file of this payload's own user, which its mount keeps as it is. */
        char path[96];
        snprintf(path, sizeof path, "/stage/in/%s", name);
        a.fd = open(path, O_RDONLY | O_CLOEXEC);
        a.kind = 3;
        a.stage_class = 1;
        if (a.fd < 0) {
            code = latebind_fail_(c, LATEBIND_SYSTEM, "open input", name, strerror(errno));
            goto out;
        }
    }
    if (a.kind != 3) {
        code = latebind_broken_(c, "it answered another question");
        goto out;
    }
    struct stat s;
    if (fstat(a.fd, &s) || (uint64_t)s.st_size != a.bytes) {
        code = latebind_fail_(c, LATEBIND_BROKEN, "open input", name, "it is not as large as the broker said");
    } else if (a.stage_class == 0) {
        int seals = fcntl(a.fd, 1034 /* F_GET_SEALS */);
        if (seals < 0 || (seals & SEALS) != SEALS || (uint64_t)s.st_blocks * 512 < a.bytes) {
            code = latebind_fail_(c, LATEBIND_UNSEALED, "open input", name, "it is not sealed, so it could change");
        } else if (a.bytes && (data = mmap(NULL, a.bytes, PROT_READ, MAP_SHARED, a.fd, 0)) == MAP_FAILED) {
            code = latebind_fail_(c, LATEBIND_SYSTEM, "open input", name, strerror(errno));
        } else {
            *in = (latebind_input){data, a.bytes, true, a.bytes > 0};
        }
    } else {
        /* A file can't be sealed, and its owner could change it under a mapping: it is read once. */
        uint64_t at = 0;
        if (a.bytes && !(data = malloc(a.bytes))) {
            code = latebind_fail_(c, LATEBIND_SYSTEM, "open input", name, strerror(errno));
        }
        while (!code && at < a.bytes) {
            ssize_t got = pread(a.fd, (char *)data + at, a.bytes - at, (off_t)at);
            if (got > 0) at += (uint64_t)got;
            else if (got == 0 || errno != EINTR)
                code = latebind_fail_(c, LATEBIND_SYSTEM, "open input", name, got ? strerror(errno) : "it is cut");
        }
        if (code) free(data);
        else *in = (latebind_input){data, a.bytes, false, false};
    }
    close(a.fd);
out:
    free(frame);
    return code;
}

/* ---- the calls ---- */

/* Connects to the broker at `path`, or to the one that LATEBIND_STAGE names when it is NULL. */
static inline int latebind_connect(latebind_client *c, const char *path) {
    memset(c, 0, sizeof *c);
    c->socket = -1;
    if (!path) path = getenv("LATEBIND_STAGE");
    if (!path || !*path) {
        return latebind_fail_(c, LATEBIND_INVALID, "find the stage broker", NULL,
                              "LATEBIND_STAGE is not set; run under a pilot that offers stages");
    }
    c->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (c->socket < 0 || latebind_dial_(c->socket, path)) {
        int code = latebind_fail_(c, LATEBIND_SYSTEM, "connect to the stage broker", NULL, strerror(errno));
        if (c->socket >= 0) close(c->socket);
        c->socket = -1;
        return code;
    }
    static const unsigned char hello[] = {0, 1, 0}; /* Hello, protocol 1.0 */
    unsigned char *frame = malloc(LATEBIND_FRAME_MAX);
    latebind_answer_ a;
    int code = frame ? latebind_ask_(c, hello, sizeof hello, 0, frame, &a)
                     : latebind_fail_(c, LATEBIND_SYSTEM, "connect to the stage broker", NULL, strerror(errno));
    free(frame);
    if (code) {
        close(c->socket);
        c->socket = -1;
    }
    return code;
}

static inline int latebind_create_in_(latebind_client *c, unsigned request, const char *name, uint64_t bytes,
                                      latebind_output *out) {
    memset(out, 0, sizeof *out);
    out->fd = -1;
    if (!latebind_name_ok_(name)) return latebind_fail_(c, LATEBIND_INVALID, "create output", name, "that is no name");
    unsigned char *frame = malloc(LATEBIND_FRAME_MAX);
    if (!frame) return latebind_fail_(c, LATEBIND_SYSTEM, "create output", name, strerror(errno));
    latebind_answer_ a;
    int code = latebind_named_(c, request, name, bytes, frame, &a);
    if (!code && a.kind != 0) {
        if (a.fd >= 0) close(a.fd);
        code = latebind_broken_(c, "it answered another question");
    }
    if (!code) {
        void *data = NULL;
        snprintf(out->note, sizeof out->note, "%.*s", (int)(a.value_bytes < 1024 ? a.value_bytes : 1024),
                 a.value ? (const char *)a.value : "");
        if (a.bytes) data = mmap(NULL, a.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, a.fd, 0);
        if (data == MAP_FAILED) {
            code = latebind_fail_(c, LATEBIND_SYSTEM, "create output", name, strerror(errno));
            close(a.fd);
            latebind_answer_ gone;
            (void)latebind_named_(c, 2, name, 0, frame, &gone);
        } else {
            /* Wishes: all pages at once are cheaper than one by one, and without a note of each one's last use, so is unmapping. */
            if (a.bytes) {
                (void)madvise(data, a.bytes, MADV_SEQUENTIAL);
                (void)madvise(data, a.bytes, 23 /* MADV_POPULATE_WRITE */);
            }
            out->data = data;
            out->bytes = a.bytes;
            out->fd = a.fd;
            memcpy(out->name, name, strlen(name) + 1);
        }
    }
    free(frame);
    return code;
}

/* Makes an output of `bytes` bytes, mapped for writing at out->data. */
static inline int latebind_create(latebind_client *c, const char *name, uint64_t bytes, latebind_output *out) {
    return latebind_create_in_(c, 0, name, bytes, out);
}

/* As latebind_create, in huge pages where the node has them; else out->note says why not. */
static inline int latebind_create_huge(latebind_client *c, const char *name, uint64_t bytes, latebind_output *out) {
    return latebind_create_in_(c, LATEBIND_HUGE_, name, bytes, out);
}

static inline void latebind_unmap_(latebind_output *out) {
    if (out->data) munmap(out->data, out->bytes);
    if (out->fd >= 0) close(out->fd);
    out->data = NULL;
    out->fd = -1;
}

/* Unmaps the output and makes its first `bytes` bytes a stage. out->data is gone whatever happens; after LATEBIND_BUSY
 * (another process has it mapped) the call may be repeated. */
static inline int latebind_commit(latebind_client *c, latebind_output *out, uint64_t bytes) {
    if (out->data) munmap(out->data, out->bytes);
    out->data = NULL;
    struct timespec began, sealed;
    clock_gettime(CLOCK_MONOTONIC, &began);
    /* F_ADD_SEALS, F_SEAL_WRITE: the kernel looks at each page for this. When it is refused the broker says why. */
    if (out->fd >= 0) (void)fcntl(out->fd, 1033, 8);
    clock_gettime(CLOCK_MONOTONIC, &sealed);
    latebind_unmap_(out);
    unsigned char *frame = malloc(LATEBIND_FRAME_MAX);
    if (!frame) return latebind_fail_(c, LATEBIND_SYSTEM, "commit output", out->name, strerror(errno));
    latebind_answer_ a;
    int code = latebind_named_(c, 1, out->name, bytes, frame, &a);
    if (!code && a.kind != 1) {
        if (a.fd >= 0) close(a.fd);
        code = latebind_broken_(c, "it answered another question");
    }
    int64_t own_ns = (sealed.tv_sec - began.tv_sec) * INT64_C(1000000000) + sealed.tv_nsec - began.tv_nsec;
    if (!code) out->seal_us = a.seal_us + (uint64_t)own_ns / 1000;
    free(frame);
    return code;
}

/* Makes an output of class value, at once. */
static inline int latebind_put(latebind_client *c, const char *name, const void *data, size_t bytes) {
    if (!latebind_name_ok_(name)) return latebind_fail_(c, LATEBIND_INVALID, "put output", name, "that is no name");
    if (bytes > LATEBIND_VALUE_MAX) {
        return latebind_fail_(c, LATEBIND_TOO_LARGE, "put output", name, "a value has 64 KiB at most; create memory");
    }
    unsigned char *frame = malloc(LATEBIND_FRAME_MAX), *question = malloc(LATEBIND_FRAME_MAX), *to = question;
    int code;
    if (frame && question) {
        c->last = c->last == UINT32_MAX ? 1 : c->last + 1;
        *to++ = 1;
        to = latebind_put_(to, c->last);
        *to++ = 4;
        to = latebind_put_text_(to, name);
        to = latebind_put_(to, bytes);
        if (bytes) memcpy(to, data, bytes);
        latebind_answer_ a;
        code = latebind_ask_(c, question, (size_t)(to - question) + bytes, c->last, frame, &a);
        if (!code && a.kind != 1) {
            if (a.fd >= 0) close(a.fd);
            code = latebind_broken_(c, "it answered another question");
        }
    } else {
        code = latebind_fail_(c, LATEBIND_SYSTEM, "put output", name, strerror(errno));
    }
    free(question);
    free(frame);
    return code;
}

/* Gives an output back; it may be created again. */
static inline int latebind_abandon(latebind_client *c, latebind_output *out) {
    latebind_unmap_(out);
    unsigned char *frame = malloc(LATEBIND_FRAME_MAX);
    if (!frame) return latebind_fail_(c, LATEBIND_SYSTEM, "abandon output", out->name, strerror(errno));
    latebind_answer_ a;
    int code = latebind_named_(c, 2, out->name, 0, frame, &a);
    free(frame);
    return code;
}

/* Opens an input that is there. */
static inline int latebind_open(latebind_client *c, const char *name, latebind_input *in) {
    return latebind_open_within_(c, name, 0, in);
}

/* Waits at most `ms` milliseconds until an input is there, and opens it. */
static inline int latebind_wait(latebind_client *c, const char *name, uint64_t ms, latebind_input *in) {
    if (ms == 0) ms = 1;
    if (ms > 86400000u) ms = 86400000u;
    return latebind_open_within_(c, name, ms, in);
}

/* Opens a pipe of a payload that runs together with others, for reading (an input) or writing (an output), and gives its
 * descriptor, or -1. It waits until the other end was opened, too, or its payload has ended. No broker has it: `c` need not be
 * connected, and has the error. */
static inline int latebind_stream(latebind_client *c, const char *name, bool writes) {
    const char *doing = writes ? "write stream" : "read stream";
    char path[96];
    struct stat s;
    int fd = -1;
    if (!latebind_name_ok_(name)) {
        latebind_fail_(c, LATEBIND_INVALID, doing, name, "that is no name");
        return -1;
    }
    snprintf(path, sizeof path, "/stage/%s/%s", writes ? "out" : "in", name);
    /* Looked at first: to open another file for writing is to have written it. */
    if (!stat(path, &s) && !S_ISFIFO(s.st_mode)) {
        latebind_fail_(c, LATEBIND_INVALID, doing, name, "it is no pipe; declare it with class pipe");
        return -1;
    }
    do fd = open(path, (writes ? O_WRONLY : O_RDONLY) | O_CLOEXEC);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) latebind_fail_(c, LATEBIND_SYSTEM, doing, name, strerror(errno));
    return fd;
}

/* Maps memory that payloads which run together share, for reading and writing: of an output (`made`), or of an input. What
 * keeps order among them is theirs. No broker has it: `c` need not be connected, and has the error. */
static inline int latebind_share(latebind_client *c, const char *name, bool made, latebind_output *memory) {
    const char *doing = "share memory";
    char path[96];
    struct stat s;
    memset(memory, 0, sizeof *memory);
    memory->fd = -1;
    if (!latebind_name_ok_(name)) return latebind_fail_(c, LATEBIND_INVALID, doing, name, "that is no name");
    snprintf(path, sizeof path, "/stage/%s/%s", made ? "out" : "in", name);
    /* Looked at first: who opens a pipe lets the other end go on. */
    if (!stat(path, &s) && !S_ISREG(s.st_mode)) {
        return latebind_fail_(c, LATEBIND_INVALID, doing, name, "it is no shared memory; declare it with class shared");
    }
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return latebind_fail_(c, LATEBIND_SYSTEM, doing, name, strerror(errno));
    int seals = fcntl(fd, 1034 /* F_GET_SEALS */), code = LATEBIND_OK;
    void *data = NULL;
    if (seals < 0 || (seals & 0xe) != 0x6 /* SHRINK and GROW, and not WRITE */ || fstat(fd, &s)) {
        code = latebind_fail_(c, LATEBIND_INVALID, doing, name, "it is no shared memory; declare it with class shared");
    } else if ((data = mmap(NULL, (size_t)s.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
        code = latebind_fail_(c, LATEBIND_SYSTEM, doing, name, strerror(errno));
    }
    if (code) {
        close(fd);
        return code;
    }
    memory->data = data;
    memory->bytes = (uint64_t)s.st_size;
    memory->fd = fd;
    memcpy(memory->name, name, strlen(name) + 1);
    return LATEBIND_OK;
}

/* Unmaps shared memory. */
static inline void latebind_close_shared(latebind_output *memory) {
    latebind_unmap_(memory);
}

static inline void latebind_close_input(latebind_input *in) {
    if (in->mapped) munmap((void *)(uintptr_t)in->data, in->bytes);
    else free((void *)(uintptr_t)in->data);
    memset(in, 0, sizeof *in);
}

/* Ends the connection; what is not committed is dropped, open inputs stay readable. */
static inline void latebind_close(latebind_client *c) {
    if (c->socket >= 0) close(c->socket);
    c->socket = -1;
}

#endif
