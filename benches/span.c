/* The payload of the bind-ahead benchmark: reads the clock, sleeps for as many milliseconds as it is told, and reads it again. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int count, char **words) {
    long long began = now(), ms = count > 1 ? atoll(words[1]) : 0;
    struct timespec span = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&span, NULL);
    char line[64];
    int length = snprintf(line, sizeof line, "%lld %lld\n", began, now());
    return write(1, line, (size_t)length) == length ? 0 : 1;
}
