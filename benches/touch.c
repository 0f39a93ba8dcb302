/* touch HOW NAME [BYTES]: fills or adds up one stage, so that it can be seen who pays for its pages.
 *
 * `map-write` and `map-read` map the file at the path NAME, as the CLOUDSTARS report does; `client-write` and `client-read` use the stage NAME. */
#define _GNU_SOURCE
#include "latebind_stage.h"

static uint64_t sum(const uint64_t *at, size_t n) {
    uint64_t sum = 0;
    for (size_t i = 0; i < n / 8; i++) sum += at[i];
    return sum;
}

int main(int count, char **words) {
    if (count < 3) return 2;
    const char *how = words[1], *name = words[2];
    size_t bytes = count > 3 ? strtoull(words[3], NULL, 10) : 0;
    if (!strncmp(how, "client", 6)) {
        latebind_client c;
        latebind_output out;
        latebind_input in;
        int code = latebind_connect(&c, NULL);
        if (!code && bytes) {
            code = latebind_create(&c, name, bytes, &out);
            if (!code) memset(out.data, 7, bytes), code = latebind_commit(&c, &out, bytes);
        } else if (!code) {
            code = latebind_open(&c, name, &in);
            if (!code) printf("%llx\n", (unsigned long long)sum(in.data, in.bytes));
        }
        if (code) fprintf(stderr, "touch: %s\n", c.error);
        return code != 0;
    }
    bool writes = !strcmp(how, "map-write");
    struct stat stat;
    int fd = open(name, writes ? O_RDWR | O_CREAT : O_RDONLY, 0644);
    if (fd < 0 || fstat(fd, &stat)) return perror(name), 1;
    if (writes && stat.st_size != (off_t)bytes && ftruncate(fd, (off_t)bytes)) return perror("ftruncate"), 1;
    if (!writes) bytes = (size_t)stat.st_size;
    void *at = mmap(NULL, bytes, writes ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return perror("mmap"), 1;
    if (writes) memset(at, 7, bytes);
    else printf("%llx\n", (unsigned long long)sum(at, bytes));
    return 0;
}
