/* The input as a stream of decisions: bytes while they last, then a generator that they seeded. */
#ifndef FUZZ_BYTES_H
#define FUZZ_BYTES_H

#include "fuzz.h"

typedef struct fuzz_in {
    const uint8_t *p;
    size_t n;
    uint64_t s;
    void *blocks[128];
    int n_blocks;
} fuzz_in;

static inline uint64_t fuzz_mix(uint64_t *s) { /* splitmix64 */
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline uint8_t fuzz_u8(fuzz_in *in) {
    if (!in->n) return (uint8_t)fuzz_mix(&in->s);
    in->n--, in->s = in->s * 31 + *in->p;
    return *in->p++;
}
static inline uint32_t fuzz_u32(fuzz_in *in) {
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) v = v << 8 | fuzz_u8(in);
    return v;
}
static inline uint32_t fuzz_below(fuzz_in *in, uint32_t n) { return (n > 256 ? fuzz_u32(in) : fuzz_u8(in)) % n; }
static inline int fuzz_one_in(fuzz_in *in, uint32_t n) { return fuzz_below(in, n) == n - 1; }

/* Exactly as long as asked for, so that ASan sees one byte beyond. */
static inline void *fuzz_new(fuzz_in *in, size_t bytes) {
    uint8_t *p = (uint8_t *)malloc(bytes ? bytes : 1);
    if (!p || in->n_blocks == 128) abort();
    return in->blocks[in->n_blocks++] = p;
}
/* Filled with what is left of the input over and over, or with the generator (or 1009 bytes of it, again and again), or zeros. Copied in pieces
   that double: byte by byte, in a loop that counts its turns for the fuzzer, took nine tenths of the time. */
static inline void *fuzz_filled(fuzz_in *in, size_t bytes) {
    uint8_t seed[1009], *p = (uint8_t *)fuzz_new(in, bytes);
    uint32_t how = fuzz_below(in, 4);
    size_t have = 0, n = in->n < sizeof seed ? in->n : sizeof seed;
    if (how == 0) return memset(p, 0, bytes);
    if (how == 1 && n) memcpy(seed, in->p, n);
    else
        for (n = 0; n < sizeof seed && n < bytes; n++) seed[n] = (uint8_t)fuzz_mix(&in->s);
    for (; have < bytes; have += n, n = have) {
        if (n > bytes - have) n = bytes - have;
        memcpy(p + have, have ? p : seed, n);
    }
    return p;
}
static inline void fuzz_done(fuzz_in *in) {
    while (in->n_blocks) free(in->blocks[--in->n_blocks]);
}

/* Floats that have made trouble, or any bits. */
static inline float fuzz_float(fuzz_in *in, int finite) {
    static const float nasty[] = {0,    -0.0f, 1,     -1,     2.5f,   0.01f, 1e-6f, 88.5f,
                                  -104, 30,    1e30f, 1e-40f, 1e-20f, -3.5f, 0.75f, 3e38f};
    uint32_t u = fuzz_u8(in);
    float f = nasty[u % 16];
    if (u < 192) return f;
    u = fuzz_u32(in);
    if (finite && (u & 0x7f800000u) == 0x7f800000u) u &= 0xbfffffffu;
    memcpy(&f, &u, 4);
    return f;
}

#endif
