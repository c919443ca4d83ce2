/* Breaks the disk and the network under a process: LD_PRELOADed, it counts the calls that touch files below a folder, or
 * sockets, and at the n-th of them fails, writes short, or kills or stops the process. Armed by `shim_arm` (tests/faults/shim.py).
 *
 * What is counted: opening for writing, write, fsync, rename, ftruncate, unlink, mkdir of what is not there yet; connect, send
 * and recv on IP sockets. Writes to memory maps (SQLite's -shm) are no calls and are not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, FSYNC = 4, RENAME = 8, TRUNCATE = 16, UNLINK = 32, MKDIR = 64, CONNECT = 128, SEND = 256, RECV = 512 };
enum { FAIL_ONCE = 1, FAIL_ON = 2, SHORT = 3, KILL_BEFORE = 4, KILL_AFTER = 5, STOP_AT_EACH = 6 };
enum { PASS, FAIL, CUT, DIE_AFTER };

static char folder[PATH_MAX];
static size_t folder_length;
static atomic_uint armed;
static atomic_long counted, hits;
static long nth;
static int mode, fault;
static char first_hit[PATH_MAX + 32];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void shim_arm(const char *below, unsigned kinds, long at, int how, int number)
{
    atomic_store(&armed, 0);
    snprintf(folder, sizeof folder, "%s/", below);
    folder_length = strlen(folder);
    nth = at;
    mode = how;
    fault = number;
    first_hit[0] = 0;
    atomic_store(&counted, 0);
    atomic_store(&hits, 0);
    atomic_store(&armed, kinds);
}

void shim_disarm(void) { atomic_store(&armed, 0); }
long shim_count(void) { return atomic_load(&counted); }
long shim_hits(void) { return atomic_load(&hits); }
const char *shim_first_hit(void) { return first_hit; }

static void die(void)
{
    REAL(kill)(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a call; answers what is to become of it. */
static int judge(unsigned kind, const char *name, const char *what)
{
    if (!(atomic_load(&armed) & kind)) return PASS;
    long number = atomic_fetch_add(&counted, 1) + 1;
    if (mode == FAIL_ON ? number < nth : mode == STOP_AT_EACH ? number % nth : number != nth) return PASS;
    if (atomic_fetch_add(&hits, 1) == 0) {
        const char *below = strncmp(what, folder, folder_length) ? what : what + folder_length;
        snprintf(first_hit, sizeof first_hit, "%s %s", name, below);
    }
    if (mode == STOP_AT_EACH) {
        raise(SIGSTOP);
        return PASS;
    }
    if (mode == KILL_BEFORE) die();
    if (mode == KILL_AFTER) return DIE_AFTER;
    if (mode == SHORT) return kind == WRITE || kind == SEND ? CUT : PASS;
    errno = fault;
    return FAIL;
}

/* Answers the absolute path of what a call names, NULL where it lies elsewhere. */
static const char *place(int directory, const char *path, char *buffer)
{
    if (path && path[0] == '/') return strncmp(path, folder, folder_length) ? NULL : path;
    char link[64], base[PATH_MAX];
    snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, base, sizeof base - 1);
    if (length <= 0) return NULL;
    base[length] = 0;
    if (snprintf(buffer, PATH_MAX, path ? "%s/%s" : "%s", base, path) >= PATH_MAX) return NULL;
    return strncmp(buffer, folder, folder_length) ? NULL : buffer;
}

static int judge_path(unsigned kind, const char *name, int directory, const char *path)
{
    char buffer[PATH_MAX];
    if (!(atomic_load(&armed) & kind)) return PASS;
    int before = errno;
    const char *found = place(directory, path, buffer);
    errno = before;
    return found ? judge(kind, name, found) : PASS;
}

static int judge_file(unsigned kind, const char *name, int descriptor) { return judge_path(kind, name, descriptor, NULL); }

static int judge_socket(unsigned kind, const char *name, int descriptor)
{
    if (!(atomic_load(&armed) & kind)) return PASS;
    int domain = 0, before = errno;
    socklen_t length = sizeof domain;
    int is_socket = !getsockopt(descriptor, SOL_SOCKET, SO_DOMAIN, &domain, &length);
    errno = before;
    return is_socket && (domain == AF_INET || domain == AF_INET6) ? judge(kind, name, "socket") : PASS;
}

#define RETURN(verdict, call)               \
    do {                                    \
        if ((verdict) == FAIL) return -1;   \
        __typeof__(call) answer = (call);   \
        if ((verdict) == DIE_AFTER) die();  \
        return answer;                      \
    } while (0)

static size_t half(size_t size) { return size > 1 ? size / 2 : size; }

static int writes(int flags) { return (flags & O_CREAT) || (flags & O_ACCMODE) != O_RDONLY; }

#define OPENER(name)                                                                        \
    int name(const char *path, int flags, ...)                                              \
    {                                                                                       \
        va_list rest;                                                                       \
        va_start(rest, flags);                                                              \
        mode_t access = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;         \
        va_end(rest);                                                                       \
        int verdict = writes(flags) ? judge_path(OPEN, "open", AT_FDCWD, path) : PASS;      \
        RETURN(verdict, REAL(name)(path, flags, access));                                   \
    }
OPENER(open)
OPENER(open64)

#define OPENER_AT(name)                                                                     \
    int name(int directory, const char *path, int flags, ...)                               \
    {                                                                                       \
        va_list rest;                                                                       \
        va_start(rest, flags);                                                              \
        mode_t access = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;         \
        va_end(rest);                                                                       \
        int verdict = writes(flags) ? judge_path(OPEN, "open", directory, path) : PASS;     \
        RETURN(verdict, REAL(name)(directory, path, flags, access));                        \
    }
OPENER_AT(openat)
OPENER_AT(openat64)

#define STREAM_OPENER(name)                                                                 \
    FILE *name(const char *path, const char *how)                                           \
    {                                                                                       \
        int verdict = strpbrk(how, "wa+") ? judge_path(OPEN, "open", AT_FDCWD, path) : PASS; \
        if (verdict == FAIL) return NULL;                                                   \
        FILE *answer = REAL(name)(path, how);                                               \
        if (verdict == DIE_AFTER) die();                                                    \
        return answer;                                                                      \
    }
STREAM_OPENER(fopen)
STREAM_OPENER(fopen64)

ssize_t write(int descriptor, const void *data, size_t size)
{
    int verdict = judge_file(WRITE, "write", descriptor);
    RETURN(verdict, REAL(write)(descriptor, data, verdict == CUT ? half(size) : size));
}

#define PWRITER(name, offset_type)                                                          \
    ssize_t name(int descriptor, const void *data, size_t size, offset_type offset)         \
    {                                                                                       \
        int verdict = judge_file(WRITE, "write", descriptor);                               \
        RETURN(verdict, REAL(name)(descriptor, data, verdict == CUT ? half(size) : size, offset)); \
    }
PWRITER(pwrite, off_t)
PWRITER(pwrite64, off64_t)

ssize_t writev(int descriptor, const struct iovec *pieces, int count)
{
    int verdict = judge_file(WRITE, "write", descriptor);
    RETURN(verdict, REAL(writev)(descriptor, pieces, verdict == CUT && count > 1 ? count / 2 : count));
}

#define PWRITEVER(name, offset_type)                                                        \
    ssize_t name(int descriptor, const struct iovec *pieces, int count, offset_type offset) \
    {                                                                                       \
        int verdict = judge_file(WRITE, "write", descriptor);                               \
        RETURN(verdict, REAL(name)(descriptor, pieces, verdict == CUT && count > 1 ? count / 2 : count, offset)); \
    }
PWRITEVER(pwritev, off_t)
PWRITEVER(pwritev64, off64_t)

int fsync(int descriptor) { int verdict = judge_file(FSYNC, "fsync", descriptor); RETURN(verdict, REAL(fsync)(descriptor)); }
int fdatasync(int descriptor) { int verdict = judge_file(FSYNC, "fsync", descriptor); RETURN(verdict, REAL(fdatasync)(descriptor)); }

int rename(const char *from, const char *to)
{
    int verdict = judge_path(RENAME, "rename", AT_FDCWD, to);
    RETURN(verdict, REAL(rename)(from, to));
}

int renameat(int from_directory, const char *from, int directory, const char *to)
{
    int verdict = judge_path(RENAME, "rename", directory, to);
    RETURN(verdict, REAL(renameat)(from_directory, from, directory, to));
}

int renameat2(int from_directory, const char *from, int directory, const char *to, unsigned flags)
{
    int verdict = judge_path(RENAME, "rename", directory, to);
    RETURN(verdict, REAL(renameat2)(from_directory, from, directory, to, flags));
}

int ftruncate(int descriptor, off_t size)
{
    int verdict = judge_file(TRUNCATE, "ftruncate", descriptor);
    RETURN(verdict, REAL(ftruncate)(descriptor, size));
}

int ftruncate64(int descriptor, off64_t size)
{
    int verdict = judge_file(TRUNCATE, "ftruncate", descriptor);
    RETURN(verdict, REAL(ftruncate64)(descriptor, size));
}

int unlink(const char *path)
{
    int verdict = judge_path(UNLINK, "unlink", AT_FDCWD, path);
    RETURN(verdict, REAL(unlink)(path));
}

int unlinkat(int directory, const char *path, int flags)
{
    int verdict = judge_path(UNLINK, "unlink", directory, path);
    RETURN(verdict, REAL(unlinkat)(directory, path, flags));
}

int mkdir(const char *path, mode_t access)
{
    struct stat known;
    int is_new = (atomic_load(&armed) & MKDIR) && stat(path, &known); /* of what is there, no disk has anything to write */
    int verdict = is_new ? judge_path(MKDIR, "mkdir", AT_FDCWD, path) : PASS;
    RETURN(verdict, REAL(mkdir)(path, access));
}

int connect(int descriptor, const struct sockaddr *address, socklen_t length)
{
    int verdict = judge_socket(CONNECT, "connect", descriptor);
    RETURN(verdict, REAL(connect)(descriptor, address, length));
}

ssize_t send(int descriptor, const void *data, size_t size, int flags)
{
    int verdict = judge_socket(SEND, "send", descriptor);
    RETURN(verdict, REAL(send)(descriptor, data, verdict == CUT ? half(size) : size, flags));
}

ssize_t sendto(int descriptor, const void *data, size_t size, int flags, const struct sockaddr *address, socklen_t length)
{
    int verdict = judge_socket(SEND, "send", descriptor);
    RETURN(verdict, REAL(sendto)(descriptor, data, verdict == CUT ? half(size) : size, flags, address, length));
}

ssize_t sendmsg(int descriptor, const struct msghdr *message, int flags)
{
    int verdict = judge_socket(SEND, "send", descriptor);
    RETURN(verdict, REAL(sendmsg)(descriptor, message, flags));
}

ssize_t recv(int descriptor, void *data, size_t size, int flags)
{
    int verdict = judge_socket(RECV, "recv", descriptor);
    RETURN(verdict, REAL(recv)(descriptor, data, size, flags));
}

ssize_t recvfrom(int descriptor, void *data, size_t size, int flags, struct sockaddr *address, socklen_t *length)
{
    int verdict = judge_socket(RECV, "recv", descriptor);
    RETURN(verdict, REAL(recvfrom)(descriptor, data, size, flags, address, length));
}
