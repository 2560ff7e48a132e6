/* Fails the N-th call that changes a file below a directory, in all processes that inherit LD_PRELOAD.

   FAULT_POINTS names a file with a `struct state`, which they share and tests/fault_points.py sets. Calls inside of libc, such as the
   writes of fwrite, cannot be seen. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct state {
    long count;            /* of calls so far */
    long fail_at;          /* 0: count none; -1: count, fail none */
    long error;            /* errno */
    char below[PATH_MAX];  /* the directory, resolved */
    char call[16];         /* that failed */
    char path[PATH_MAX];   /* of it */
};

static struct state *state;

__attribute__((constructor)) static void attach(void) {
    const char *name = getenv("FAULT_POINTS");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *place = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (place != MAP_FAILED) state = place;
}

static int fails(const char *call, const char *path) {
    size_t length = strlen(state->below);
    if (strncmp(path, state->below, length) != 0 || (path[length] && path[length] != '/')) return 0;
    long number = __atomic_add_fetch(&state->count, 1, __ATOMIC_SEQ_CST);
    if (getenv("FAULT_POINTS_LOG")) dprintf(2, "%ld %s %s\n", number, call, path);
    if (number != state->fail_at) return 0;
    snprintf(state->call, sizeof state->call, "%s", call);
    snprintf(state->path, sizeof state->path, "%s", path);
    errno = (int)state->error;
    return 1;
}

static int armed(void) { return state && state->fail_at; }

/* Where a descriptor, or the current directory (AT_FDCWD), is. */
static int place_of(int fd, char *path) {
    char link[64];
    if (fd == AT_FDCWD) return getcwd(path, PATH_MAX) != NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

static int named_fails(const char *call, int directory, const char *name) {
    char path[2 * PATH_MAX];
    if (!armed() || !name) return 0;
    int before = errno, length = 0;
    if (name[0] != '/') {
        if (!place_of(directory, path)) return 0;
        length = (int)strlen(path);
        path[length++] = '/';
    }
    snprintf(path + length, sizeof path - length, "%s", name);
    if (fails(call, path)) return 1;
    errno = before;
    return 0;
}

static int open_fails(const char *call, int fd) {
    char path[PATH_MAX];
    if (!armed()) return 0;
    int before = errno;
    if (place_of(fd, path) && fails(call, path)) return 1;
    errno = before;
    return 0;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name)                                                                         \
    int name(const char *path, int flags, ...) {                                           \
        REAL(name);                                                                        \
        va_list rest;                                                                      \
        va_start(rest, flags);                                                             \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(rest, mode_t) : 0;        \
        va_end(rest);                                                                      \
        if (CHANGES(flags) && named_fails("open", AT_FDCWD, path)) return -1;              \
        return real(path, flags, mode);                                                    \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                       \
    int name(int directory, const char *path, int flags, ...) {                            \
        REAL(name);                                                                        \
        va_list rest;                                                                      \
        va_start(rest, flags);                                                             \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(rest, mode_t) : 0;        \
        va_end(rest);                                                                      \
        if (CHANGES(flags) && named_fails("open", directory, path)) return -1;             \
        return real(directory, path, flags, mode);                                         \
    }
OPENAT(openat)
OPENAT(openat64)

/* What gcc calls with -D_FORTIFY_SOURCE where a mode is missing. */
#define FORTIFIED(name, plain)                                                             \
    int name(const char *path, int flags) {                                                \
        REAL(plain);                                                                       \
        if (CHANGES(flags) && named_fails("open", AT_FDCWD, path)) return -1;              \
        return real(path, flags);                                                          \
    }
FORTIFIED(__open_2, open)
FORTIFIED(__open64_2, open64)

#define FOPEN(name)                                                                                  \
    FILE *name(const char *path, const char *mode) {                                                 \
        REAL(name);                                                                                  \
        if ((mode[0] != 'r' || strchr(mode, '+')) && named_fails("open", AT_FDCWD, path)) return NULL; \
        return real(path, mode);                                                                     \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define ON_OPEN(type, name, call, fd, parameters, arguments) \
    type name parameters {                                   \
        REAL(name);                                          \
        if (open_fails(call, fd)) return -1;                 \
        return real arguments;                               \
    }
ON_OPEN(ssize_t, write, "write", fd, (int fd, const void *data, size_t size), (fd, data, size))
ON_OPEN(ssize_t, writev, "write", fd, (int fd, const struct iovec *parts, int count), (fd, parts, count))
ON_OPEN(ssize_t, pwrite, "write", fd, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_OPEN(ssize_t, pwrite64, "write", fd, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ssize_t sendfile(int, int, off_t *, size_t);
ssize_t sendfile64(int, int, off64_t *, size_t);
ON_OPEN(ssize_t, sendfile, "write", out, (int out, int in, off_t *at, size_t size), (out, in, at, size))
ON_OPEN(ssize_t, sendfile64, "write", out, (int out, int in, off64_t *at, size_t size), (out, in, at, size))
ON_OPEN(ssize_t, copy_file_range, "write", out, (int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags),
        (in, from, out, to, size, flags))

/* Nothing is synced, for no power is cut: what a disk and its other users take for it is most of an attempt's time. */
#define SYNC(name)                                                   \
    int name(int fd) {                                               \
        REAL(name);                                                  \
        if (!armed()) return real(fd);                               \
        return open_fails("fsync", fd) ? -1 : 0;                     \
    }
SYNC(fsync)
SYNC(fdatasync)
SYNC(syncfs)

#define BY_NAME(name, call, directory, path, parameters, arguments) \
    int name parameters {                                           \
        REAL(name);                                                 \
        if (named_fails(call, directory, path)) return -1;          \
        return real arguments;                                      \
    }
BY_NAME(rename, "rename", AT_FDCWD, to, (const char *from, const char *to), (from, to))
BY_NAME(renameat, "rename", at, to, (int before, const char *from, int at, const char *to), (before, from, at, to))
BY_NAME(renameat2, "rename", at, to, (int before, const char *from, int at, const char *to, unsigned flags), (before, from, at, to, flags))
BY_NAME(link, "link", AT_FDCWD, to, (const char *from, const char *to), (from, to))
BY_NAME(linkat, "link", at, to, (int before, const char *from, int at, const char *to, int flags), (before, from, at, to, flags))
BY_NAME(symlink, "link", AT_FDCWD, to, (const char *from, const char *to), (from, to))
BY_NAME(symlinkat, "link", at, to, (const char *from, int at, const char *to), (from, at, to))
BY_NAME(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
BY_NAME(mkdirat, "mkdir", at, path, (int at, const char *path, mode_t mode), (at, path, mode))
