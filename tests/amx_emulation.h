/* amx_emulation.h: AMX's tile instructions in plain C, so that moe.h's section >>amx runs on any x86 processor and under
   sanitizers. Include before moe.h. Semantics: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, LDTILECFG,
   TILELOADD, TILESTORED, TILEZERO, TILERELEASE and TDPBF16PS ("Operation"); Bochs (cpu/avx/amx.cc) reads it the same way: for each
   row of A and column of B two FMA chains from 0, over the first and over the second values of the pairs, then their sum is added
   to C; every step rounds to nearest even, takes subnormals as zeros and gives zeros for them, and ignores MXCSR.
   What would be a fault (no configuration, shapes that don't fit) is counted in amx_faults. Tile state is per thread. */
#ifndef AMX_EMULATION_H
#define AMX_EMULATION_H
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AMX_UNUSED __attribute__((unused)) /* where moe.h leaves the tier out */

typedef struct amx_tile {
    uint32_t row[16][16];
} amx_tile;
static AMX_UNUSED __thread struct amx_state {
    int configured;
    uint32_t bytes[8], rows[8];
    amx_tile tile[8];
} amx_state;
static AMX_UNUSED __thread long amx_faults, amx_configs, amx_releases, amx_dots;
static AMX_UNUSED int amx_real;  /* the processor's own instructions instead */
static AMX_UNUSED int amx_plain; /* and nothing newer than SSE2 */

/* ---- arithmetic ---- */

static inline uint32_t amx_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float amx_float(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline float amx_flush(float f) {
    return amx_bits(f) & 0x7f800000u ? f : amx_float(amx_bits(f) & 0x80000000u);
}
/* A result is tiny if it is below 2^-126 when rounded to 24 bits without a limit to the exponent. Where fmaf gives just 2^-126 the
   subnormals' coarser rounding may have lifted it: rounding 2^24 times the value tells. */
static inline float amx_fma(float a, float b, float c) {
    a = amx_flush(a), b = amx_flush(b), c = amx_flush(c);
    float r = fmaf(a, b, c);
    if ((amx_bits(r) & 0x7fffffffu) == 0x00800000u) {
        float big = fabsf(a) > fabsf(b) ? b : a, other = fabsf(a) > fabsf(b) ? a : b;
        float scaled = fmaf(big * 16777216.0f, other, c * 16777216.0f);
        if (fabsf(scaled) < 16777216.0f * amx_float(0x00800000u)) return amx_float(amx_bits(r) & 0x80000000u);
    }
    return amx_flush(r);
}
static inline float amx_add(float a, float b) { return amx_fma(a, 1.0f, b); }

/* ---- instructions ---- */

static inline int amx_usable(int t) {
    int ok = amx_state.configured && amx_state.rows[t] && amx_state.bytes[t] % 4 == 0;
    amx_faults += !ok;
    return ok;
}
static AMX_UNUSED void amx_CONFIG(const void *memory) {
    uint8_t c[64];
    memcpy(c, memory, 64);
    int ok = c[0] == 1 && c[1] == 0; /* palette 1, no restart */
    for (int i = 2; i < 16; i++) ok &= c[i] == 0;
    for (int i = 32; i < 48; i++) ok &= c[i] == 0;
    for (int i = 56; i < 64; i++) ok &= c[i] == 0;
    memset(&amx_state, 0, sizeof amx_state);
    for (int t = 0; t < 8; t++) {
        amx_state.bytes[t] = c[16 + 2 * t] | (uint32_t)c[17 + 2 * t] << 8, amx_state.rows[t] = c[48 + t];
        ok &= amx_state.bytes[t] <= 64 && amx_state.rows[t] <= 16 && !amx_state.bytes[t] == !amx_state.rows[t];
    }
    amx_state.configured = ok, amx_faults += !ok, amx_configs++;
}
static AMX_UNUSED void amx_RELEASE(int none) {
    (void)none;
    memset(&amx_state, 0, sizeof amx_state), amx_releases++;
}
static AMX_UNUSED void amx_ZERO(int t) {
    if (amx_usable(t)) memset(&amx_state.tile[t], 0, sizeof(amx_tile));
}
static AMX_UNUSED void amx_LOAD(int t, const void *from, size_t stride) {
    if (!amx_usable(t)) return;
    memset(&amx_state.tile[t], 0, sizeof(amx_tile));
    for (size_t r = 0; r < amx_state.rows[t]; r++)
        memcpy(amx_state.tile[t].row[r], (const uint8_t *)from + r * stride, amx_state.bytes[t]);
}
static AMX_UNUSED void amx_STORE(int t, void *to, size_t stride) {
    if (!amx_usable(t)) return;
    for (size_t r = 0; r < amx_state.rows[t]; r++)
        memcpy((uint8_t *)to + r * stride, amx_state.tile[t].row[r], amx_state.bytes[t]);
}
/* The two chains of row m for all 16 columns. */
static AMX_UNUSED void amx_chains(const amx_tile *a, const amx_tile *b, uint32_t m, uint32_t k, float *even,
                                  float *odd) {
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t n = 0; n < 16; n++) {
            uint32_t u = a->row[m][i], v = b->row[i][n];
            even[n] = amx_fma(amx_float(u << 16), amx_float(v << 16), even[n]);
            odd[n] = amx_fma(amx_float(u & 0xffff0000u), amx_float(v & 0xffff0000u), odd[n]);
        }
}
#if defined(__x86_64__)
/* The same with the processor's fma, 16 columns at once; 0 if a 2^-126 came up, which amx_fma must look at. */
#if defined(__clang__)
#define AMX_FMA __attribute__((target("avx2,fma")))
#else
#define AMX_FMA __attribute__((target("avx2,fma"), optimize("O3")))
#endif
#define AMX_FLUSH(bits) ((bits) & ((bits)&0x7f800000u ? 0xffffffffu : 0x80000000u))
AMX_FMA static AMX_UNUSED int amx_chains_fma(const amx_tile *a, const amx_tile *b, uint32_t m, uint32_t k,
                                             float *even, float *odd) {
    uint32_t edge[16] = {0}, sum[2][16] = {{0}};
    for (uint32_t i = 0; i < k; i++)
        for (uint32_t h = 0; h < 2; h++) {
            const uint32_t shift = 16 - 16 * h, u = a->row[m][i] << shift & 0xffff0000u, x = AMX_FLUSH(u);
            for (uint32_t n = 0; n < 16; n++) {
                uint32_t v = b->row[i][n] << shift & 0xffff0000u, y = AMX_FLUSH(v), r;
                float f, g, c;
                memcpy(&f, &x, 4), memcpy(&g, &y, 4), memcpy(&c, &sum[h][n], 4);
                f = __builtin_fmaf(f, g, c);
                memcpy(&r, &f, 4);
                edge[n] |= (r & 0x7fffffffu) == 0x00800000u;
                sum[h][n] = AMX_FLUSH(r);
            }
        }
    memcpy(even, sum[0], 64), memcpy(odd, sum[1], 64);
    for (int n = 1; n < 16; n++) edge[0] |= edge[n];
    return !edge[0];
}
static AMX_UNUSED int amx_has_fma(void) {
    return !amx_plain && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#else
#define amx_chains_fma(a, b, m, k, even, odd) 0
#define amx_has_fma()                         0
#endif
static AMX_UNUSED void amx_DOT(int c, int a, int b) {
    const struct amx_state *s = &amx_state;
    if (!amx_usable(a) || !amx_usable(b) || !amx_usable(c)) return;
    if (a == b || a == c || b == c || s->bytes[c] != s->bytes[b] || s->rows[c] != s->rows[a] ||
        s->bytes[a] / 4 != s->rows[b]) {
        amx_faults++;
        return;
    }
    int fast = amx_has_fma();
    for (uint32_t m = 0; m < s->rows[c]; m++) {
        float even[16] = {0}, odd[16] = {0};
        if (!fast || !amx_chains_fma(&s->tile[a], &s->tile[b], m, s->rows[b], even, odd)) {
            memset(even, 0, sizeof even), memset(odd, 0, sizeof odd);
            amx_chains(&s->tile[a], &s->tile[b], m, s->rows[b], even, odd);
        }
        for (uint32_t n = 0; n < s->bytes[c] / 4; n++)
            amx_state.tile[c].row[m][n] =
                amx_bits(amx_add(amx_float(s->tile[c].row[m][n]), amx_add(even[n], odd[n])));
    }
    amx_dots++;
}

/* ---- into moe.h ---- */

#define MOEI_TILE(op, ...)                                                                                           \
    do {                                                                                                             \
        if (amx_real) MOEI_TILE_##op(__VA_ARGS__);                                                                   \
        else amx_##op(__VA_ARGS__);                                                                                  \
    } while (0)
#define MOEI_TIERS_EMULATED ((uint32_t)MOEI_HAVE_AMX << MOE_TIER_AMX)
#define MOEI_AMX
/* What the tier does with AVX-512 around the tiles: the same functions where the processor has it, plain C elsewhere. Not static:
   where moe.h leaves the tier out they are declared only. */
#define MOEI_AMX_ROLE(f) amx_##f
struct moei_rows;
void amx_moei_prepare_bf16_avx512(void *row, const float *x, size_t k0, size_t n, size_t k);
void amx_moei_transpose_amx(const uint8_t *const *from, uint32_t n, uint8_t *to, size_t to_stride, uint32_t m);
void amx_moei_decode_f32_bf16(const struct moei_rows *w, uint32_t n_rows, void *panel);
void amx_moei_decode_f16_bf16(const struct moei_rows *w, uint32_t n_rows, void *panel);
void amx_moei_decode_fp8_bf16(const struct moei_rows *w, uint32_t n_rows, void *panel);
void amx_moei_decode_fp8_vbmi(const struct moei_rows *w, uint32_t n_rows, void *panel);
#include "moe.h"
#if MOEI_HAVE_AMX
static int amx_has_avx512(void) {
    static int has = -1;
    if (has < 0) has = (moei_cpu() >> MOE_TIER_AVX512BF16 & 1) != 0;
    return has && !amx_plain;
}
void amx_moei_prepare_bf16_avx512(void *row, const float *x, size_t k0, size_t n, size_t k) {
    if (amx_has_avx512()) {
        moei_prepare_bf16_avx512(row, x, k0, n, k);
        return;
    }
    uint16_t *y = (uint16_t *)row;
    for (size_t i = 0; i < n; i++) y[k0 + i] = moei_to_bf16(amx_flush(x[i]));
    if (k0 + n == k) memset(y + k, 0, moei_bf16_row_bytes(k) - 2 * k);
}
void amx_moei_transpose_amx(const uint8_t *const *from, uint32_t n, uint8_t *to, size_t to_stride, uint32_t m) {
    if (amx_has_avx512()) {
        moei_transpose_amx(from, n, to, to_stride, m);
        return;
    }
    for (uint32_t j = 0; j < m; j++)
        for (uint32_t i = 0; i < n; i++) memcpy(to + j * to_stride + 4 * i, from[i] + 4 * j, 4);
}
#define AMX_DECODE(name, has)                                                                                        \
    void amx_moei_decode_##name(const moei_rows *w, uint32_t n_rows, void *panel) {                                  \
        if (has) moei_decode_##name(w, n_rows, panel);                                                               \
        else moei_decode_default(&moei_bf16_amx, w, n_rows, panel);                                                  \
    }
AMX_DECODE(f32_bf16, amx_has_avx512())
AMX_DECODE(f16_bf16, amx_has_avx512())
AMX_DECODE(fp8_bf16, amx_has_avx512())
AMX_DECODE(fp8_vbmi, amx_has_avx512() && moei_cpu() & MOEI_VBMI)
#endif
#endif
