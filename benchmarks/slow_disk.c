/* fsync() and fdatasync() that take longer, by as many microseconds as SLOW_DISK_US says.
   Preloaded into a database, it stands for a disk that is further away. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

static int slowly(const char *name, int file)
{
    int (*synchronise)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    const char *given = getenv("SLOW_DISK_US");
    long microseconds = given ? atol(given) : 0;
    struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
    int result = synchronise(file);
    int problem = errno;

    while (nanosleep(&left, &left) == -1 && errno == EINTR)
        ; /* a signal: go on with what is left */
    errno = problem;
    return result;
}

int fsync(int file)
{
    return slowly("fsync", file);
}

int fdatasync(int file)
{
    return slowly("fdatasync", file);
}
