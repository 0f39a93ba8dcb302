// Rights that a payload has not, what the containers of a pod share, and the socket of its shim.
#include "hostile.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

// --- rights ---
static int child(void *unused) { (void)unused; return 0; }
static char stack[1 << 16];
void rights(void) {
  static char status[1 << 14];
  int fd = open("/proc/self/status", O_RDONLY), clean = 1;
  ssize_t got = read(fd, status, sizeof status - 1);
  close(fd);
  status[got > 0 ? got : 0] = 0;
  const char *sets[] = {"CapInh:\t", "CapPrm:\t", "CapEff:\t", "CapBnd:\t", "CapAmb:\t"};
  for (int n = 0; n < 5; n++) {
    char *at = strstr(status, sets[n]);
    clean &= at && !strncmp(at + 8, "0000000000000000", 16);
  }
  say("capabilities", !clean, 0);
  say("no-new-privs", !strstr(status, "NoNewPrivs:\t1") || !strstr(status, "Seccomp:\t2"), 0);
  say("groups", getgroups(0, 0) > 1, 0);
  tried("setuid", setuid(0));
  tried("pilots-uid", setresuid(10000, 10000, 10000));
  uid_t neighbours = getuid() == 10001 ? 10002 : 10001;
  tried("neighbours-uid", setresuid(neighbours, neighbours, neighbours));
  tried("setgroups", setgroups(1, (gid_t[]){0}));
  FILE *other = popen("/bin/setuid whoami", "r");
  unsigned uid = 0;
  say("setuid-program", !other || fscanf(other, "%u", &uid) != 1 || uid != getuid(), 0);
  if (other) pclose(other);
  tried("mount", mount("none", "/tmp", "tmpfs", 0, 0));
  tried("remount", mount(0, "/", 0, MS_REMOUNT | MS_BIND, 0));
  tried("bind-mount", mount("/work", "/.latebind/in", 0, MS_BIND, 0));
  tried("mount-api", syscall(SYS_fsopen, "tmpfs", 0));
  tried("umount", umount2("/.latebind/in", MNT_DETACH));
  tried("chroot", chroot("/work"));
  tried("unshare-user", unshare(CLONE_NEWUSER));
  tried("unshare-mount", unshare(CLONE_NEWNS));
  tried("unshare-net", unshare(CLONE_NEWNET));
  tried("clone-user", clone(child, stack + sizeof stack, CLONE_NEWUSER | SIGCHLD, 0));
  struct rlimit limit, more;
  getrlimit(RLIMIT_NOFILE, &limit);
  more = (struct rlimit){limit.rlim_max + 1, limit.rlim_max + 1};
  tried("raise-limit", setrlimit(RLIMIT_NOFILE, &more));
  tried("priority", setpriority(PRIO_PROCESS, 0, -5));
  tried("hostname", sethostname("x", 1));
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  tried("clock", clock_settime(CLOCK_REALTIME, &now));
  tried("reboot", syscall(SYS_reboot, 0xfee1dead, 672274793, 0 /* no Ctrl-Alt-Del */, 0));
  tried("modules", syscall(SYS_init_module, 0, 0, ""));
  tried("kexec", syscall(SYS_kexec_load, 0, 0, 0, 0));
  tried("bpf", syscall(SYS_bpf, 0, 0, 0));
  tried("perf", syscall(SYS_perf_event_open, 0, 0, -1, -1, 0));
  tried("io-uring", syscall(SYS_io_uring_setup, 1, 0) < 0 && errno == EFAULT ? 0 : -1);
}

// --- what a pod shares ---
static int dial(const char *address, int port, int wait_ms) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), error = 0;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, address, &to.sin_addr);
  if (connect(fd, (void *)&to, sizeof to) && errno != EINPROGRESS) return -1;
  struct pollfd ready = {fd, POLLOUT, 0};
  if (poll(&ready, 1, wait_ms) != 1) { errno = ETIMEDOUT; return -1; }
  getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
  errno = error;
  return error ? -1 : fd;
}
static int dial_abstract(void) {
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  memcpy(to.sun_path + 1, ABSTRACT, strlen(ABSTRACT));
  return connect(fd, (void *)&to, sizeof(sa_family_t) + 1 + strlen(ABSTRACT));
}
// Listeners in the pod's network, but for the neighbour's: nobody may offer anything there.
static int listeners(char *detail, size_t room) {
  int count = 0;
  const char *tables[] = {"/proc/net/tcp", "/proc/net/tcp6"};
  for (int n = 0; n < 2; n++) {
    FILE *table = fopen(tables[n], "r");
    char line[512], local[128];
    unsigned state;
    while (table && fgets(line, sizeof line, table))
      if (sscanf(line, " %*d: %127s %*s %x", local, &state) == 2 && state == 10) {
        char *port = strrchr(local, ':');
        if (port && strtoul(port + 1, 0, 16) != PORT) { count++; snprintf(detail, room, "%s", local); }
      }
    if (table) fclose(table);
  }
  return count;
}
void shared(void) {
  say("landlock", 0, syscall(SYS_landlock_create_ruleset, 0, 0, 1) >= 6 ? "scoped" : "none");
  tried("abstract-socket", dial_abstract());
  tried("loopback-port", dial("127.0.0.1", PORT, 1000));
  char detail[256] = "";
  say("other-ports", listeners(detail, sizeof detail) > 0, detail);
  FILE *sockets = fopen("/proc/net/unix", "r");
  char line[512], *name = 0;
  while (sockets && fgets(line, sizeof line, sockets))
    if (strchr(line, '@') && !strstr(line, ABSTRACT)) name = strdup(strchr(line, '@'));
  if (name) name[strcspn(name, "\n")] = 0;
  say("other-abstract-sockets", name != 0, name);
  tried("api-server", dial("10.96.0.1", 443, 10000));
  tried("raw-socket", socket(AF_INET, SOCK_RAW, 1));
  tried("packet-socket", socket(AF_PACKET, SOCK_RAW, 0));
  struct ifreq down = {.ifr_name = "lo"};
  tried("network-settings", ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSIFFLAGS, &down));
  tried("sysv-memory", syscall(SYS_shmget, 4242, 4096, IPC_CREAT | 0666));
  tried("sysv-semaphore", syscall(SYS_semget, 4242, 1, IPC_CREAT | 0666));
  tried("sysv-queue", syscall(SYS_msgget, 4242, IPC_CREAT | 0666));
  tried("posix-queue", syscall(SYS_mq_open, "left", O_CREAT | O_RDWR, 0666, 0));
  tried("add-key", syscall(SYS_add_key, "user", "latebind-left", "x", 1, -4 /* of the uid */));
  tried("find-key", syscall(SYS_request_key, "user", "latebind-left", 0, 0));
}

// --- the control socket ---
static int dial_control(int flags) {
  int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0);
  struct sockaddr_un to = {.sun_family = AF_UNIX, .sun_path = CONTROL "/sock"};
  return connect(fd, (void *)&to, sizeof to) ? -1 : fd;
}
static int answered(int fd, const void *frame, size_t bytes) {
  char answer[4096];
  if (fd < 0 || send(fd, frame, bytes, MSG_NOSIGNAL) < 0) return 0;
  struct pollfd ready = {fd, POLLIN, 0};
  return poll(&ready, 1, 300) == 1 && recv(fd, answer, sizeof answer, MSG_DONTWAIT) > 0;
}
void control(void) {
  // Hello, protocol 1.0, a nonce, "idle": wire/src/slot.rs.
  unsigned char hello[20] = {0, 1, 0};
  int first = dial_control(SOCK_NONBLOCK);
  tried("control-socket", first);
  say("control-zero-nonce", answered(first, hello, sizeof hello), 0);
  memset(hello + 3, 0x5a, 16);
  say("control-wrong-nonce", answered(dial_control(SOCK_NONBLOCK), hello, sizeof hello), 0);
  say("control-garbage", answered(dial_control(SOCK_NONBLOCK), "\xff\xff\xff garbage", 11), 0);
  int held = 0;
  char detail[64];
  for (int n = 0; n < 100; n++) held += dial_control(SOCK_NONBLOCK) >= 0;
  snprintf(detail, sizeof detail, "%d held open", held);
  say("control-flood", held == 100, detail);
}
