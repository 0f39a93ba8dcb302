/* loop PROGRAM N: vfork, exec, wait, N times, one after the other; prints the nanoseconds that it took. Who starts
   processes can't be faster than this; who also keeps them apart, watches and cleans up can only come near. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int argc, char **argv) {
    if (argc != 3) return 64;
    char *arguments[] = {argv[1], NULL}, *environment[] = {NULL};
    long long began = now();
    for (long left = atol(argv[2]); left > 0; left--) {
        int status;
        pid_t child = vfork();
        if (child == 0) {
            execve(argv[1], arguments, environment);
            _exit(127);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 1;
    }
    printf("%lld\n", now() - began);
    return 0;
}
