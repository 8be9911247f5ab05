/* A disk that fails on request, for a preloaded library (see faults.py).
 *
 * $FAULTS names a file of 4096 bytes, mapped by every process of a test:
 *   int kinds    what fails: 1 open, 2 write, 4 sync (a mask); 0: nothing
 *   int error    the errno of it
 *   int percent  how many of the calls fail
 *   int whom     1 consumers, 2 all others (a mask)
 *   char part[]  fails for paths that have this in them
 * A write that fails for lack of room takes a part of the bytes first, as a disk does.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4 };

struct faults {
    int kinds, error, percent, whom;
    char part[4080];
};

static volatile struct faults *faults;
static int me = 2;
static __thread unsigned state;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name)) dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    static char line[65536];
    const char *path = getenv("FAULTS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        void *page = mmap(NULL, sizeof *faults, PROT_READ, MAP_SHARED, file, 0);
        if (page != MAP_FAILED) faults = page;
        close(file);
    }
    file = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        ssize_t size = read(file, line, sizeof line);
        close(file);
        if (size > 0 && memmem(line, size, "logagg.consumer.consumer", 24)) me = 1;
    }
}

static int strikes(int kind, const char *path, int fd) {
    char link[64], name[4096];
    if (!faults || !(faults->kinds & kind) || !(faults->whom & me)) return 0;
    if (!path) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t size = readlink(link, name, sizeof name - 1);
        if (size < 0) return 0;
        name[size] = 0;
        path = name;
    }
    if (!strstr(path, (const char *) faults->part)) return 0;
    if (!state) state = (unsigned) getpid() * 2654435761u | 1;
    state = state * 1103515245u + 12345u;
    if ((int) (state >> 16) % 100 >= faults->percent) return 0;
    errno = faults->error;
    return 1;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (!strikes(WRITE, NULL, fd)) return real(fd, data, size);
    int error = errno;
    if (error == ENOSPC && size > 1 && state & 0x10000) return real(fd, data, size / 2);
    errno = error;
    return -1;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    return strikes(WRITE, NULL, fd) ? -1 : real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    return strikes(WRITE, NULL, fd) ? -1 : real(fd, data, size, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return strikes(WRITE, NULL, fd) ? -1 : real(fd, parts, count);
}

/* A disk without room opens what is there. */
static int refuses(int dir, const char *path, int flags) {
    char link[64], name[8192];
    if (!faults || !(faults->kinds & OPEN)) return 0;
    if (faults->error == ENOSPC && !(flags & O_CREAT)) return 0;
    if (faults->error == ENOSPC && !faccessat(dir, path, F_OK, AT_SYMLINK_NOFOLLOW)) {
        return 0;
    }
    if (dir != AT_FDCWD && path[0] != '/') {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t size = readlink(link, name, 4096);
        if (size < 0) return 0;
        snprintf(name + size, sizeof name - size, "/%s", path);
        path = name;
    }
    return strikes(OPEN, path, -1);
}

#define MODE \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest)
#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        MODE; \
        return refuses(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode); \
    }
#define OPENS_AT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(name); \
        MODE; \
        return refuses(dir, path, flags) ? -1 : real(dir, path, flags, mode); \
    }
OPENS(open)
OPENS(open64)
OPENS_AT(openat)
OPENS_AT(openat64)

int fsync(int fd) {
    REAL(fsync);
    return strikes(SYNC, NULL, fd) ? -1 : real(fd);
}

int fdatasync(int fd) {
    REAL(fdatasync);
    return strikes(SYNC, NULL, fd) ? -1 : real(fd);
}
