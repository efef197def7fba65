/* guarded.h - memory that ends or begins at a page without access: reading or writing beyond is a crash. POSIX; define
   _DEFAULT_SOURCE or _GNU_SOURCE before the first include. */
#ifndef GUARDED_H
#define GUARDED_H

#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

typedef struct guarded {
    uint8_t *map, *data;
    size_t bytes; /* of the map */
} guarded;

static inline guarded guarded_new(size_t bytes, int at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = bytes ? (bytes + page - 1) / page * page : page;
    guarded g;
    g.bytes = inner + 2 * page;
    g.map = (uint8_t *)mmap(NULL, g.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == (uint8_t *)MAP_FAILED || mprotect(g.map + page, inner, PROT_READ | PROT_WRITE)) abort();
    g.data = g.map + page + (at_end ? inner - bytes : 0);
    return g;
}
static inline void guarded_free(guarded *g) { munmap(g->map, g->bytes); }

/* Only reading from now on. */
static inline void guarded_protect(const guarded *g) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (mprotect(g->map + page, g->bytes - 2 * page, PROT_READ)) abort();
}

#endif
