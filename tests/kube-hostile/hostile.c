// A payload that tries to reach what is none of its business, and says for each attempt whether it did: `name: reached|refused detail`.
// The test knows what each must say. Nothing here does harm should it go well. `hostile neighbour` is a payload in another slot, with things worth having; `hostile whoami`
// tells which user a program with the setuid bit becomes.
#include "hostile.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

extern char **environ;

void say(const char *name, int reached, const char *detail) {
  printf("%s: %s %s\n", name, reached ? "reached" : "refused", detail ? detail : "");
}
void tried(const char *name, long answer) { say(name, answer >= 0, answer < 0 ? strerror(errno) : "went well"); }

static int can_read(const char *path) {
  char byte;
  int fd = open(path, O_RDONLY | O_NONBLOCK);
  if (fd < 0) return 0;
  int got = read(fd, &byte, 1) > 0;
  close(fd);
  return got;
}
static int can_write(const char *path, const char *text) {
  int fd = open(path, O_WRONLY);
  if (fd < 0) return -1;
  int done = write(fd, text, strlen(text)) > 0 ? 0 : -1, why = errno;
  close(fd);
  errno = why;
  return done;
}
static int can_make(const char *path) {
  int fd = open(path, O_WRONLY | O_CREAT, 0666);
  if (fd >= 0) close(fd);
  return fd;
}
static int in_file(const char *path, const char *word) {
  static char text[1 << 16];
  int fd = open(path, O_RDONLY | O_NONBLOCK);
  if (fd < 0) return 0;
  ssize_t got = read(fd, text, sizeof text);
  close(fd);
  return got > 0 && memmem(text, got, word, strlen(word)) != 0;
}

// --- files ---
static char found[4096];
static int is_loot(const char *path, const struct stat *stat, int kind, struct FTW *ftw) {
  (void)ftw;
  if (kind == FTW_D && (!strcmp(path, "/proc") || !strcmp(path, "/sys"))) return FTW_SKIP_SUBTREE;
  // A JSON web token begins so; and what the neighbour keeps.
  if (kind == FTW_F && S_ISREG(stat->st_mode) && stat->st_size < 1 << 16 &&
      (in_file(path, "eyJhbGciOi") || in_file(path, MARK) || in_file(path, "mark of an earlier payload")))
    snprintf(found, sizeof found, "%s", path);
  return FTW_CONTINUE;
}
static void files(void) {
  say("token", can_read("/var/run/secrets/kubernetes.io/serviceaccount/token") || can_read("/run/secrets/kubernetes.io/serviceaccount/token"), 0);
  nftw("/", is_loot, 16, FTW_PHYS | FTW_ACTIONRETVAL);
  say("loot-anywhere", found[0] != 0, found);
  const char *secret = 0;
  for (char **each = environ; *each; each++)
    if (strstr(*each, "NONCE") || strstr(*each, "CONTROL") || strstr(*each, "CONFINE") || strstr(*each, "TOKEN") || strstr(*each, "KUBERNETES") || strstr(*each, MARK))
      secret = *each;
  say("environment", secret != 0, secret);

  static char mounts[1 << 16];
  int fd = open("/proc/self/mountinfo", O_RDONLY), slots = 0;
  ssize_t got = read(fd, mounts, sizeof mounts - 1);
  close(fd);
  mounts[got > 0 ? got : 0] = 0;
  char own = 0;
  for (char *at = mounts; (at = strstr(at, "/slots/")); at += 7)
    if (own && at[7] != own) slots++;
    else own = at[7];
  say("other-slots-mounts", slots > 0 || strstr(mounts, "share/pilot") || strstr(mounts, "share/stages") || strstr(mounts, "share "), 0);
  struct stat up, root;
  say("above-a-mount", stat("/work/..", &up) || stat("/", &root) || up.st_ino != root.st_ino || up.st_dev != root.st_dev, 0);
  union { struct file_handle head; char room[256]; } handle = {.head.handle_bytes = MAX_HANDLE_SZ};
  int mount_id, work = open("/work", O_RDONLY);
  long by_handle = name_to_handle_at(AT_FDCWD, "/work", &handle.head, &mount_id, 0);
  tried("file-handle", by_handle < 0 ? by_handle : open_by_handle_at(work, &handle.head, O_RDONLY));
  close(work);
  say("other-slots-memory", can_read("/dev/shm/neighbour") || can_read("/tmp/neighbour") || can_read("/work/neighbour"), 0);

  tried("write-root", can_make("/new"));
  tried("write-image", can_write("/bin/busybox", "x"));
  tried("write-inputs", can_make("/.latebind/in/new"));
  tried("write-shims-folder", can_make("/.latebind/bin/new"));
  tried("write-shim", can_write("/.latebind/bin/payload-shim", "x"));
  tried("write-control", can_make(CONTROL "/new"));
  tried("unlink-socket", unlink(CONTROL "/sock"));
  tried("rename-socket", rename(CONTROL "/sock", CONTROL "/ran/sock"));
  tried("replace-markers", rename(CONTROL "/ran", CONTROL "/former"));
  tried("chmod-control", chmod(CONTROL, 0777));
  say("earlier-payload", can_read(CONTROL "/ran/left") || !access(CONTROL "/ran/folder", F_OK), 0);
  // The folder of markers is the shim's, and so the payload's own: what it leaves there must not stay.
  fd = can_make(CONTROL "/ran/left");
  say("markers-folder", fd >= 0 && can_write(CONTROL "/ran/left", "mark of an earlier payload") == 0, 0);
  mkdir(CONTROL "/ran/folder", 0700);
  can_make(CONTROL "/ran/folder/deep");
  tried("proc-sys", open("/proc/sys/kernel/core_pattern", O_WRONLY));
  tried("sysrq", can_write("/proc/sysrq-trigger", "h"));
  tried("sys", open("/sys/kernel/uevent_helper", O_WRONLY));
  tried("cgroup", can_write("/sys/fs/cgroup/cgroup.procs", "1") && can_write("/sys/fs/cgroup/memory/tasks", "1") && can_write("/sys/fs/cgroup/memory.max", "max") && can_make("/sys/fs/cgroup/x") < 0 ? -1 : 0);
  say("devices", can_read("/dev/mem") || can_read("/dev/kmsg") || can_read("/dev/vda") || can_read("/dev/sda"), 0);
  tried("mknod", mknod("/work/disk", S_IFBLK | 0600, makedev(254, 0)));
  tried("kernel-log", syscall(SYS_syslog, 3, mounts, 1024));
}

// --- PID 1 and other processes ---
static void processes(void) {
  DIR *proc = opendir("/proc");
  const char *foreign = 0;
  for (struct dirent *each; proc && (each = readdir(proc));) {
    char path[300];
    if (each->d_name[0] < '0' || each->d_name[0] > '9') continue;
    snprintf(path, sizeof path, "/proc/%s/cmdline", each->d_name);
    if (in_file(path, "neighbour") || in_file(path, "pilot") || in_file(path, "pause")) foreign = strdup(path);
    snprintf(path, sizeof path, "/proc/%s/environ", each->d_name);
    if (in_file(path, "NONCE") || in_file(path, "neighbour")) foreign = strdup(path);
  }
  say("foreign-processes", foreign != 0, foreign);
  say("pid1-environ", can_read("/proc/1/environ"), 0);
  tried("pid1-memory", open("/proc/1/mem", O_RDWR));
  tried("pid1-root", open("/proc/1/root/", O_RDONLY));
  tried("pid1-fds", open("/proc/1/fd", O_RDONLY));
  tried("pid1-namespaces", open("/proc/1/ns/mnt", O_RDONLY));
  tried("pid1-program", open("/proc/1/exe", O_WRONLY));
  tried("pid1-attach", ptrace(PTRACE_ATTACH, 1, 0, 0));
  tried("pid1-seize", ptrace(PTRACE_SEIZE, 1, 0, 0));
  int pid1 = syscall(SYS_pidfd_open, 1, 0);
  long stolen = -1;
  for (int fd = 0; fd < 32 && stolen < 0; fd++) stolen = syscall(SYS_pidfd_getfd, pid1, fd, 0);
  tried("pid1-descriptors", stolen);
  char byte;
  struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
  tried("pid1-peek", process_vm_readv(1, &here, 1, &there, 1, 0));
  // The kernel takes these and drops them: PID 1 has no handler. Whether it is alive is seen by what comes after.
  int signals[] = {SIGKILL, SIGSTOP, SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGSEGV, SIGCHLD, SIGUSR1};
  for (unsigned n = 0; n < sizeof signals / sizeof *signals; n++) kill(1, signals[n]);
  usleep(200000);
  say("pid1-killed", kill(1, 0) < 0 || getppid() != 1, 0);
}

static int neighbour(void) {
  const char *places[] = {"/work/neighbour", "/tmp/neighbour", "/dev/shm/neighbour"};
  for (int n = 0; n < 3; n++) {
    int fd = can_make(places[n]);
    if (fd < 0 || can_write(places[n], MARK)) return 3;
  }
  int pair[2] = {socket(AF_UNIX, SOCK_STREAM, 0), socket(AF_INET, SOCK_STREAM, 0)};
  struct sockaddr_un abstract = {.sun_family = AF_UNIX};
  memcpy(abstract.sun_path + 1, ABSTRACT, strlen(ABSTRACT));
  struct sockaddr_in port = {.sin_family = AF_INET, .sin_port = htons(PORT), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  if (bind(pair[0], (void *)&abstract, sizeof(sa_family_t) + 1 + strlen(ABSTRACT)) || listen(pair[0], 8)) return 4;
  if (bind(pair[1], (void *)&port, sizeof port) || listen(pair[1], 8)) return 5;
  printf("listening\n");
  fflush(stdout);
  while (access("/work/go", F_OK)) usleep(20000);
  for (int n = 0; n < 3; n++)
    if (!in_file(places[n], MARK)) return 6;
  printf("undisturbed\n");
  return 0;
}

int main(int count, char **words) {
  if (count > 1 && !strcmp(words[1], "whoami")) return printf("%u\n", geteuid()) < 0;
  if (count > 1 && !strcmp(words[1], "neighbour")) return neighbour();
  setvbuf(stdout, 0, _IOLBF, 0);
  files();
  processes();
  rights();
  shared();
  control();
  // What it leaves where it may.
  const char *places[] = {"/work/left", "/tmp/left", "/var/tmp/left", "/dev/shm/left", "/stage/in/left", "/stage/out/left"};
  for (int n = 0; n < 6; n++)
    if (can_make(places[n]) >= 0) can_write(places[n], "mark of an earlier payload");
  if (!fork()) {
    setsid();
    for (int fd = 0; fd < 3; fd++) close(fd);
    for (;;) pause();
  }
  printf("done\n");
  return 0;
}
