/* guarded.h - memory that ends or begins at a page without access: reading or writing beyond is a crash. POSIX; define
   _DEFAULT_SOURCE or _GNU_SOURCE before the first include. */
#ifndef GUARDED_H
#define GUARDED_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

typedef struct guarded {
    uint8_t *map, *data;
    size_t bytes; /* of the map */
} guarded;

/* Maps are used again: to make one and to touch its pages first takes longer than most of what is tested in it. */
enum { GUARDED_KEPT = 32 };
static guarded guarded_kept[GUARDED_KEPT];

static inline guarded guarded_new(size_t bytes, int at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = bytes ? (bytes + page - 1) / page * page : page;
    guarded g = {NULL, NULL, inner + 2 * page};
    for (int i = 0; i < GUARDED_KEPT && !g.map; i++)
        if (guarded_kept[i].map && guarded_kept[i].bytes >= g.bytes && guarded_kept[i].bytes / 4 <= g.bytes)
            g = guarded_kept[i], guarded_kept[i].map = NULL;
    if (!g.map) g.map = (uint8_t *)mmap(NULL, g.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == (uint8_t *)MAP_FAILED || mprotect(g.map + page, g.bytes - 2 * page, PROT_READ | PROT_WRITE)) abort();
    g.data = g.map + page + (at_end ? g.bytes - 2 * page - bytes : 0);
    memset(at_end ? g.map + g.bytes - page - inner : g.data, 0, inner);
    return g;
}
static inline void guarded_free(guarded *g) {
    for (int i = 0; i < GUARDED_KEPT; i++)
        if (!guarded_kept[i].map) {
            guarded_kept[i] = *g;
            return;
        }
    munmap(g->map, g->bytes);
}

/* Only reading from now on. */
static inline void guarded_protect(const guarded *g) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (mprotect(g->map + page, g->bytes - 2 * page, PROT_READ)) abort();
}

#endif
