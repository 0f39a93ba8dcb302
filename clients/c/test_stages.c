/* Against a real broker, which stage/tests/clients.rs starts: LATEBIND_STAGE is a payload with the outputs o0.. and v0..,
 * LATEBIND_TEST_CONSUMER one that reads them, and a file f. */
#define _GNU_SOURCE
#include "latebind_stage.h"

#define CHECK(what)                                                                                                      \
    do {                                                                                                                 \
        if (!(what)) {                                                                                                   \
            fprintf(stderr, "%s:%d: %s; producer: %s; consumer: %s\n", __FILE__, __LINE__, #what, p.error, c.error);     \
            return 1;                                                                                                    \
        }                                                                                                                \
    } while (0)

int main(void) {
    latebind_client p = {0}, c = {0};
    latebind_output out;
    latebind_input in;
    CHECK(!latebind_connect(&p, NULL));
    CHECK(!latebind_connect(&c, getenv("LATEBIND_TEST_CONSUMER")));

    CHECK(latebind_open(&c, "o90", &in) == LATEBIND_NOT_THERE);
    CHECK(latebind_wait(&c, "o90", 5, &in) == LATEBIND_NOT_THERE);
    CHECK(!latebind_create(&p, "o90", 8192, &out));
    memset(out.data, 7, 8192);
    CHECK(!latebind_commit(&p, &out, 5000));
    CHECK(latebind_commit(&p, &out, 5000) == LATEBIND_EXISTS);
    CHECK(!latebind_wait(&c, "o90", 60000, &in));
    CHECK(in.bytes == 5000 && in.in_place && ((const char *)in.data)[4999] == 7);
    latebind_close_input(&in);

    CHECK(!latebind_create(&p, "o91", 4096, &out));
    void *other = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, out.fd, 0);
    CHECK(other != MAP_FAILED);
    CHECK(latebind_commit(&p, &out, 4096) == LATEBIND_BUSY);
    munmap(other, 4096);
    CHECK(!latebind_commit(&p, &out, 4096));

    CHECK(!latebind_create(&p, "o92", 0, &out) && !out.data);
    CHECK(!latebind_commit(&p, &out, 0));
    CHECK(!latebind_open(&c, "o92", &in) && in.bytes == 0);
    latebind_close_input(&in);

    /* Huge or with a note that says why not; the same afterwards. */
    CHECK(!latebind_create_huge(&p, "o95", 1 << 20, &out) && out.bytes == 1 << 20 && !strchr(out.note, '\n'));
    memset(out.data, 5, 1 << 20);
    CHECK(!latebind_commit(&p, &out, 1 << 20) && out.seal_us < 60000000);
    CHECK(!latebind_open(&c, "o95", &in) && in.in_place && ((const char *)in.data)[(1 << 20) - 1] == 5);
    latebind_close_input(&in);

    CHECK(!latebind_create(&p, "o93", 10, &out) && !latebind_abandon(&p, &out));
    CHECK(!latebind_create(&p, "o93", 10, &out) && !latebind_commit(&p, &out, 1));

    CHECK(!latebind_open(&c, "f", &in) && in.bytes == 9 && !in.in_place && !memcmp(in.data, "in a file", 9));
    latebind_close_input(&in);
    CHECK(!latebind_open(&c, "ready", &in) && in.bytes == 6 && !memcmp(in.data, "inline", 6));
    latebind_close_input(&in);

    static unsigned char value[LATEBIND_VALUE_MAX + 1];
    memset(value, 9, sizeof value);
    CHECK(latebind_put(&p, "v18", value, sizeof value) == LATEBIND_TOO_LARGE);
    CHECK(!latebind_put(&p, "v18", value, LATEBIND_VALUE_MAX));
    CHECK(latebind_put(&p, "v18", value, 1) == LATEBIND_EXISTS);
    CHECK(!latebind_open(&c, "v18", &in) && in.bytes == LATEBIND_VALUE_MAX && !memcmp(in.data, value, in.bytes));
    latebind_close_input(&in);
    CHECK(!latebind_put(&p, "v19", NULL, 0) && !latebind_open(&c, "v19", &in) && in.bytes == 0);
    latebind_close_input(&in);
    CHECK(latebind_put(&p, "o94", value, 1) == LATEBIND_WRONG_CLASS);
    CHECK(latebind_put(&p, "a/b", value, 1) == LATEBIND_INVALID);

    CHECK(latebind_create(&p, "a/b", 1, &out) == LATEBIND_INVALID);
    CHECK(latebind_create(&p, "nope", 1, &out) == LATEBIND_UNDECLARED && !strchr(p.error, '\n') && *p.error);
    CHECK(latebind_create(&p, "o94", UINT64_MAX, &out) == LATEBIND_TOO_LARGE);

    /* Neither is there: this is no slot. */
    CHECK(latebind_stream(&p, "o90", false) == -1 && *p.error);
    CHECK(latebind_share(&p, "o90", false, &out) == LATEBIND_SYSTEM && out.fd == -1);
    CHECK(latebind_share(&p, "a/b", true, &out) == LATEBIND_INVALID);

    latebind_close(&p);
    latebind_close(&c);
    CHECK(latebind_connect(&c, "/nowhere") == LATEBIND_SYSTEM);
    unsetenv("LATEBIND_STAGE");
    CHECK(latebind_connect(&c, NULL) == LATEBIND_INVALID);
    return 0;
}
