/* Lets operations on files fail in the programs that it is preloaded into (io_faults.py writes what it is to do).

   IO_CONTROL names a file that all these processes share; what it says may change while they live, so that
   one fork server serves many runs. What does not pass through libc's own names is not seen: stdio's buffers as they
   are flushed (numpy's tofile, with which the converter writes), mapped memory, io_uring, raw system calls. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define LONGEST 4096
enum { NOTHING, SHORT, KILL_AFTER };

/* As io_faults.py packs it. */
struct control {
  uint64_t met, hurt;      /* operations that matched, and those that were hurt */
  uint64_t at, ever;       /* which of those that match is hurt; and all after it */
  char folders[2048];      /* operations on what lies under one of them are looked at; a line break stands behind each */
  char log[1024];          /* each of them is written there, a line: name, blank, path; empty: nowhere */
  char name[32];           /* the operation that is hurt */
  char path[1024];         /* the path, a pattern as the shell has them; a star alone: any */
  char how[32];            /* an errno; "short": half of a write; "vanish": the file is removed first;
                              "kill-before", "kill-after": SIGKILL */
};

static struct control *control(void) {
  static struct control *shared;
  const char *name = shared ? NULL : getenv("IO_CONTROL");
  if (name) {
    int file = syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return NULL;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (found != MAP_FAILED) shared = found;
  }
  return shared;
}

static void note(const char *log, const char *name, const char *path) {
  char line[LONGEST + 64];
  int size = snprintf(line, sizeof line, "%s %s\n", name, path);
  int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CLOEXEC, 0);
  if (file < 0) return;
  if (size < (int)sizeof line) syscall(SYS_write, file, line, (size_t)size);
  syscall(SYS_close, file);
}

static int under(const char *folders, const char *path) {
  for (const char *end; (end = strchr(folders, '\n')); folders = end + 1)
    if (!strncmp(path, folders, (size_t)(end - folders))) return 1;
  return 0;
}

/* Look at one operation. -1: it fails, and errno says how; else what is to be done about it. */
static int met(const char *name, const char *path) {
  int before = errno;
  struct control *c = control();
  errno = before;
  if (!c || !path || !under(c->folders, path)) return NOTHING;
  if (c->log[0]) note(c->log, name, path);
  errno = before;
  if (!c->how[0] || strcmp(c->name, name) || fnmatch(c->path, path, strcmp(c->path, "*") ? FNM_PATHNAME : 0)) return NOTHING;
  uint64_t number = __atomic_add_fetch(&c->met, 1, __ATOMIC_SEQ_CST);
  if (c->ever ? number < c->at : number != c->at) return NOTHING;
  __atomic_add_fetch(&c->hurt, 1, __ATOMIC_SEQ_CST);
  if (!strcmp(c->how, "short")) return SHORT;
  if (!strcmp(c->how, "kill-after")) return KILL_AFTER;
  if (!strcmp(c->how, "kill-before")) kill(getpid(), SIGKILL);
  if (!strcmp(c->how, "vanish")) {
    syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    errno = before;
    return NOTHING;
  }
  errno = atoi(c->how);
  return -1;
}

static const char *of_file(int file, char *path) {
  char link[64];
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, LONGEST - 1);
  errno = before;
  if (size <= 0) return NULL;
  path[size] = 0;
  return path;
}

static const char *at_folder(int folder, const char *name, char *path) {
  if (!name || name[0] == '/') return name;
  char base[LONGEST];
  const char *found = folder == AT_FDCWD ? getcwd(base, sizeof base) : of_file(folder, base);
  if (!found) return NULL;
  snprintf(path, LONGEST, "%.2000s/%.2000s", found, name);
  return path;
}

#define REAL(name) ({ static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })
#define DO(todo, call) ({ __typeof__(call) result = (call); if ((todo) == KILL_AFTER) kill(getpid(), SIGKILL); result; })
#define MEET(name, path) int todo = met(name, path); if (todo < 0) return -1
#define MEET_AT(name, folder, path) char whole[LONGEST]; MEET(name, at_folder(folder, path, whole))
#define MEET_FILE(name, file) char whole[LONGEST]; MEET(name, of_file(file, whole))

static const char *opened(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT) ? "open" : "look"; }

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); \
  mode = va_arg(more, mode_t); va_end(more); }
#define OPEN(name) int name(const char *path, int flags, ...) { MODE(flags) \
  MEET_AT(opened(flags), AT_FDCWD, path); return DO(todo, REAL(name)(path, flags, mode)); }
#define OPEN_AT(name) int name(int folder, const char *path, int flags, ...) { MODE(flags) \
  MEET_AT(opened(flags), folder, path); return DO(todo, REAL(name)(folder, path, flags, mode)); }
OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)

#define OPEN_STREAM(name) FILE *name(const char *path, const char *mode) { char whole[LONGEST]; \
  int todo = met(mode[0] == 'r' && !strchr(mode, '+') ? "look" : "open", at_folder(AT_FDCWD, path, whole)); \
  return todo < 0 ? NULL : DO(todo, REAL(name)(path, mode)); }
OPEN_STREAM(fopen)
OPEN_STREAM(fopen64)

DIR *opendir(const char *path) {
  char whole[LONGEST];
  int todo = met("list", at_folder(AT_FDCWD, path, whole));
  return todo < 0 ? NULL : DO(todo, REAL(opendir)(path));
}

#define STAT(name) int name(const char *path, struct stat64 *to) { \
  MEET_AT("stat", AT_FDCWD, path); return DO(todo, REAL(name)(path, to)); }
STAT(stat64)
STAT(lstat64)
int fstatat64(int folder, const char *path, struct stat64 *to, int flags) {
  MEET_AT("stat", folder, path);
  return DO(todo, REAL(fstatat64)(folder, path, to, flags));
}

ssize_t read(int file, void *to, size_t size) { MEET_FILE("read", file); return DO(todo, REAL(read)(file, to, size)); }
ssize_t pread64(int file, void *to, size_t size, off64_t at) {
  MEET_FILE("read", file);
  return DO(todo, REAL(pread64)(file, to, size, at));
}
static size_t part(int todo, size_t size) { return todo == SHORT && size > 1 ? size / 2 : size; }
ssize_t write(int file, const void *from, size_t size) {
  MEET_FILE("write", file);
  return DO(todo, REAL(write)(file, from, part(todo, size)));
}
ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) {
  MEET_FILE("write", file);
  return DO(todo, REAL(pwrite64)(file, from, part(todo, size), at));
}
ssize_t writev(int file, const struct iovec *from, int count) {
  MEET_FILE("write", file);
  return DO(todo, REAL(writev)(file, from, todo == SHORT && count > 1 ? count / 2 : count));
}
ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
  MEET_FILE("write", to);
  return DO(todo, REAL(sendfile64)(to, from, at, part(todo, size)));
}
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
  MEET_FILE("write", to);
  return DO(todo, REAL(copy_file_range)(from, a, to, b, part(todo, size), flags));
}
int fsync(int file) { MEET_FILE("fsync", file); return DO(todo, REAL(fsync)(file)); }
int fdatasync(int file) { MEET_FILE("fsync", file); return DO(todo, REAL(fdatasync)(file)); }
int ftruncate64(int file, off64_t size) { MEET_FILE("ftruncate", file); return DO(todo, REAL(ftruncate64)(file, size)); }
int ftruncate(int file, off_t size) { MEET_FILE("ftruncate", file); return DO(todo, REAL(ftruncate)(file, size)); }
int close(int file) {
  char whole[LONGEST];
  int todo = met("close", of_file(file, whole)), error = errno, result = REAL(close)(file);
  if (todo == KILL_AFTER) kill(getpid(), SIGKILL);
  if (todo < 0) errno = error;
  return todo < 0 ? -1 : result;
}
int rename(const char *from, const char *to) { MEET_AT("rename", AT_FDCWD, to); return DO(todo, REAL(rename)(from, to)); }
int renameat(int a, const char *from, int b, const char *to) {
  MEET_AT("rename", b, to);
  return DO(todo, REAL(renameat)(a, from, b, to));
}
int link(const char *from, const char *to) { MEET_AT("link", AT_FDCWD, to); return DO(todo, REAL(link)(from, to)); }
int symlink(const char *from, const char *to) {
  MEET_AT("symlink", AT_FDCWD, to);
  return DO(todo, REAL(symlink)(from, to));
}
int unlink(const char *path) { MEET_AT("unlink", AT_FDCWD, path); return DO(todo, REAL(unlink)(path)); }
int unlinkat(int folder, const char *path, int flags) {
  MEET_AT(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path);
  return DO(todo, REAL(unlinkat)(folder, path, flags));
}
int rmdir(const char *path) { MEET_AT("rmdir", AT_FDCWD, path); return DO(todo, REAL(rmdir)(path)); }
int mkdir(const char *path, mode_t mode) { MEET_AT("mkdir", AT_FDCWD, path); return DO(todo, REAL(mkdir)(path, mode)); }
int mkdirat(int folder, const char *path, mode_t mode) {
  MEET_AT("mkdir", folder, path);
  return DO(todo, REAL(mkdirat)(folder, path, mode));
}
