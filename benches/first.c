/* The payload of the bind benchmark: its first instruction of its own reads the clock. Static, needs nothing. */
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    char line[32];
    int length = snprintf(line, sizeof line, "%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    return write(1, line, (size_t)length) == length ? 0 : 1;
}
