/* test_q8.c: the Q8 dot products of every format and tier have exactly the bits of their definition.
   The definition is written here once more, in scalar C, from the byte layouts and the contract alone. Rows, scale grids, prepared
   rows and panels lie against inaccessible pages, so that a read or write outside of them is a crash.
   cc -std=c11 -O2 -I. tests/test_q8.c -o test_q8 -lm && ./test_q8 */
#define _GNU_SOURCE
#define MOE_IMPLEMENTATION
#include "moe.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "guarded.h"

/* Static, or of the object that make links (MOEI_TABLE). */
extern const moei_arith moei_q8_avx2, moei_q8_avxvnni, moei_q8_vnni, moei_q8_vnni_intel, moei_q8_neon,
    moei_q8_dotprod, moei_q8_i8mm;

static unsigned n_passed, n_failed, n_skipped;
static char now_testing[256];
static void name_test(const char *format, ...) {
    va_list list;
    va_start(list, format);
    vsnprintf(now_testing, sizeof now_testing, format, list);
    va_end(list);
}
static void check(int ok, const char *why) {
    if (ok) n_passed++;
    else if (n_failed++ < 40) printf("FAIL %s: %s\n", now_testing, why);
}

static uint64_t seed = 88172645463325252u;
static uint32_t rnd(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (uint32_t)(seed >> 24);
}
static float rndf(void) { return (float)(int32_t)rnd() / 2147483648.0f; }

static const struct {
    const char *name;
    size_t elements, bytes;
} formats[] = {{"none", 1, 0},
#define MOE_X(id, name, n, bytes, rows, cols) {name, n, bytes},
               MOE_FORMATS(MOE_X)
#undef MOE_X
};

/* ---- the definition ------------------------------------------------------------------------------------------------- */

static float half(const uint8_t *p) {
    unsigned h = p[0] | (unsigned)p[1] << 8, e = h >> 10 & 31, m = h & 1023;
    float s = h & 0x8000 ? -1.0f : 1.0f;
    if (e == 31) return m ? NAN : s * INFINITY;
    return s * (e ? ldexpf((float)(m + 1024), (int)e - 25) : ldexpf((float)m, -24));
}
static float e8m0(unsigned b) { return b == 255 ? NAN : ldexpf(1.0f, (int)b - 127); }
static float e4m3(unsigned b) {
    unsigned e = b >> 3 & 15, m = b & 7;
    float a = e ? ldexpf((float)(m + 8), (int)e - 10) : ldexpf((float)m, -9);
    return (b & 127) == 127 ? NAN : b & 128 ? -a : a;
}
static const int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const int e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}; /* doubled */

/* A value of a grid for row r and column c. */
static double grid(const moei_side *s, size_t r, size_t c) {
    const uint8_t *p = s->data + r / s->rows * s->row_stride;
    size_t i = c / s->cols;
    uint32_t u;
    float f;
    switch (s->type) {
    case MOE_TYPE_F32: memcpy(&f, p + 4 * i, 4); return (double)f;
    case MOE_TYPE_F16: return (double)half(p + 2 * i);
    case MOE_TYPE_BF16:
        u = (uint32_t)(p[2 * i] | p[2 * i + 1] << 8) << 16;
        memcpy(&f, &u, 4);
        return (double)f;
    case MOE_TYPE_E8M0: return (double)e8m0(p[i]);
    case MOE_TYPE_E4M3: return (double)e4m3(p[i]);
    case MOE_TYPE_U8: return p[i] > 127 ? 127 : p[i]; /* zero points: more makes no sense with 4 bits */
    default:
        p = s->data + r / s->rows / 8 * s->row_stride + 4 * i + r / s->rows % 8 / 2;
        return r / s->rows % 2 ? *p >> 4 : *p & 15;
    }
}

/* Block b of 32 weights of a row: integers, and what multiplies them. */
typedef struct block {
    int q[32], sub[2], min[2]; /* weights; integer scales and minima of the halves */
    float d[2], m;             /* scale (of the halves, if two); what is added times s_x; Q2_K: -dmin */
    int two, has_min, has_min16;
} block;
static void scales_k(const uint8_t *s, unsigned g, int *scale, int *min) {
    *scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
    *min = g < 4 ? s[g + 4] & 63 : s[g + 4] >> 4 | (s[g] >> 6) << 4;
}
static void nibbles(const uint8_t *p, int *q) {
    for (int i = 0; i < 16; i++) q[i] = p[i] & 15, q[i + 16] = p[i] >> 4;
}
static void nibbles_in_order(const uint8_t *p, int *q) {
    for (int i = 0; i < 32; i++) q[i] = i % 2 ? p[i / 2] >> 4 : p[i / 2] & 15;
}
static void decode_small(uint32_t f, const uint8_t *p, block *o) { /* the blocks of 32 */
    int *q = o->q, i, five = f == MOE_FORMAT_Q5_0 || f == MOE_FORMAT_Q5_1;
    o->has_min = f == MOE_FORMAT_Q4_1 || f == MOE_FORMAT_Q5_1;
    o->d[0] = half(p), o->m = o->has_min ? half(p + 2) : 0;
    p += o->has_min ? 4 : 2;
    if (f == MOE_FORMAT_Q8_0) {
        for (i = 0; i < 32; i++) q[i] = (int8_t)p[i];
        return;
    }
    nibbles(p + (five ? 4 : 0), q);
    for (i = 0; i < 32; i++) {
        if (five) q[i] += 16 * (p[i / 8] >> i % 8 & 1);
        if (f == MOE_FORMAT_IQ4_NL) q[i] = iq4[q[i]];
        q[i] -= f == MOE_FORMAT_Q4_0 ? 8 : f == MOE_FORMAT_Q5_0 ? 16 : 0;
    }
}
static void decode_k(uint32_t f, const uint8_t *p, unsigned g, block *o) { /* block g of a block of 256 */
    unsigned h = g / 4, j = g % 4, i;
    int s, m;
    for (i = 0; i < 32; i++) {
        unsigned sub = 2 * g + i / 16;
        if (f == MOE_FORMAT_Q2_K) {
            o->q[i] = p[16 + 32 * h + i] >> 2 * j & 3;
            o->sub[i / 16] = p[sub] & 15, o->min[i / 16] = p[sub] >> 4;
            o->d[0] = half(p + 80), o->m = -half(p + 82), o->has_min16 = 1;
        } else if (f == MOE_FORMAT_Q3_K) {
            o->q[i] = (p[32 + 32 * h + i] >> 2 * j & 3) - (p[i] >> g & 1 ? 0 : 4);
            s = sub < 8 ? p[96 + sub] & 15 : p[96 + sub - 8] >> 4;
            o->sub[i / 16] = s + 16 * (p[104 + sub % 4] >> 2 * (sub / 4) & 3) - 32, o->d[0] = half(p + 108);
        } else if (f == MOE_FORMAT_Q6_K) {
            unsigned x = p[64 * h + 32 * (j & 1) + i];
            o->q[i] = (int)((j & 2 ? x >> 4 : x & 15) + 16u * (p[128 + 32 * h + i] >> 2 * j & 3)) - 32;
            o->sub[i / 16] = (int8_t)p[192 + sub], o->d[0] = half(p + 208);
        } else if (f == MOE_FORMAT_IQ4_XS) {
            unsigned x = p[8 + 16 * g + i % 16];
            s = (p[4 + g / 2] >> 4 * (g & 1) & 15) + 16 * ((p[2] | p[3] << 8) >> 2 * g & 3) - 32;
            o->q[i] = iq4[i < 16 ? x & 15 : x >> 4], o->d[0] = half(p) * (float)s;
        } else {
            unsigned five = f == MOE_FORMAT_Q5_K, x = p[(five ? 48 : 16) + 32 * (g / 2) + i];
            o->q[i] = (int)((g & 1 ? x >> 4 : x & 15) + (five ? 16u * (p[16 + i] >> g & 1) : 0));
            scales_k(p + 4, g, &s, &m);
            o->d[0] = half(p) * (float)s, o->m = -(half(p + 2) * (float)m), o->has_min = 1;
        }
    }
}
static void decode_fp4(uint32_t f, const uint8_t *p, const moei_rows *w, size_t r, size_t b, block *o) {
    static const uint8_t one = 1;
    o->two = f == MOE_FORMAT_NVFP4 || f == MOE_FORMAT_NVFP4_HF;
    if (f == MOE_FORMAT_MXFP4) p += 17 * b, nibbles(p + 1, o->q), o->d[0] = ldexpf(1.0f, p[0] - 128);
    else if (f == MOE_FORMAT_NVFP4) {
        p += 36 * (b / 2);
        for (size_t h = 0; h < 2; h++) {
            unsigned s = p[2 * (b % 2) + h];
            o->d[h] = 0.5f * (s == 127 ? 0 : s == 255 ? 480 : fabsf(e4m3(s)));
            for (size_t i = 0; i < 16; i++) {
                unsigned x = p[4 + 16 * (b % 2) + 8 * h + i % 8];
                o->q[16 * h + i] = (int)(i < 8 ? x & 15 : x >> 4);
            }
        }
    } else {
        nibbles_in_order(p + 16 * b, o->q);
        for (size_t h = 0; h < 2; h++)
            o->d[h] = 0.5f * (w->scale.data ? (float)grid(&w->scale, r, 32 * b + 16 * h) : (float)one);
    }
    for (int i = 0; i < 32; i++) o->q[i] = e2m1[o->q[i]];
}
static void decode(const moei_rows *w, size_t r, size_t b, block *o) {
    const uint8_t *p = moei_row(w, r);
    uint32_t f = w->format;
    size_t bytes = 256 / formats[f].elements * formats[f].bytes;
    memset(o, 0, sizeof *o);
    o->sub[0] = o->sub[1] = 1;
    r += w->row0;
    if (f == MOE_FORMAT_INT8_CHANNEL || f == MOE_FORMAT_INT4_GROUP) {
        if (f == MOE_FORMAT_INT4_GROUP) nibbles_in_order(p + 16 * b, o->q);
        for (int i = 0; i < 32; i++)
            if (f == MOE_FORMAT_INT8_CHANNEL) o->q[i] = (int8_t)p[32 * b + (size_t)i];
            else o->q[i] -= w->zero.data ? (int)grid(&w->zero, r, 32 * b) : 8;
        o->d[0] = w->scale.data ? (float)grid(&w->scale, r, 32 * b) : 1.0f;
    } else if (f == MOE_FORMAT_MXFP4 || f == MOE_FORMAT_NVFP4 || f == MOE_FORMAT_MXFP4_HF || f == MOE_FORMAT_NVFP4_HF)
        decode_fp4(f, p, w, r, b, o);
    else if (f >= MOE_FORMAT_Q2_K && f != MOE_FORMAT_IQ4_NL) decode_k(f, p + b / 8 * bytes, (unsigned)(b % 8), o);
    else decode_small(f, p + b * bytes / 8, o);
}
static float chain_block(const block *w, const moei_q8 *x, size_t lane, float acc) {
    int h[2] = {0, 0}, s[2] = {0, 0};
    for (int i = 0; i < 32; i++) h[i / 16] += w->q[i] * x->q[lane][i], s[i / 16] += x->q[lane][i];
    if (w->two) {
        acc = fmaf((float)h[0], w->d[0] * x->d[lane], acc);
        return fmaf((float)h[1], w->d[1] * x->d[lane], acc);
    }
    acc = fmaf((float)(w->sub[0] * h[0] + w->sub[1] * h[1]), w->d[0] * x->d[lane], acc);
    if (w->has_min) acc = fmaf(w->m, x->s[lane], acc);
    if (w->has_min16) acc = fmaf((float)(w->min[0] * s[0] + w->min[1] * s[1]), w->m * x->d[lane], acc);
    return acc;
}
/* out[t][r]: the whole definition. */
static void define(const moei_rows *w, size_t n_rows, const void *const *x, size_t n_tokens, float *out) {
    size_t n = w->k / 32;
    block *row = (block *)malloc(n * sizeof(block));
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t b = 0; b < n; b++) decode(w, r, b, &row[b]);
        for (size_t t = 0; t < n_tokens; t++) {
            float a[8] = {0};
            for (size_t b = 0; b < n; b++)
                a[b % 8] = chain_block(&row[b], (const moei_q8 *)x[t] + b / 8, b % 8, a[b % 8]);
            for (int s = 4; s; s >>= 1)
                for (int l = 0; l < s; l++) a[l] += a[l + s];
            out[t * n_rows + r] = a[0] + 0.0f;
        }
    }
    free(row);
}

/* ---- prepare --------------------------------------------------------------------------------------------------------- */

static void define_q8(moei_q8 *to, size_t lane, const float *x) {
    float amax = 0, id;
    int bad = 0;
    for (int i = 0; i < 32; i++) {
        if (!(fabsf(x[i]) <= 3.40282347e38f)) bad = 1;
        else if (fabsf(x[i]) > amax) amax = fabsf(x[i]);
    }
    memset(to->q[lane], 0, 32);
    to->sum[lane] = to->sum16[lane][0] = to->sum16[lane][1] = 0, to->d[lane] = to->s[lane] = 0;
    if (bad) to->d[lane] = to->s[lane] = NAN;
    if (bad || amax < ldexpf(1, -96)) return;
    id = 127 / amax, to->d[lane] = amax / 127;
    for (int i = 0; i < 32; i++) {
        volatile float y = fmaf(x[i], id, 12582912.0f);
        int q = (int)(y - 12582912.0f);
        to->q[lane][i] = (int8_t)q, to->sum[lane] += q,
        to->sum16[lane][i / 16] = (int16_t)(to->sum16[lane][i / 16] + q);
    }
    to->s[lane] = to->d[lane] * (float)to->sum[lane];
}
/* vnni: bytes 8 j .. 8 j + 7 of block b are at 64 j + 8 times the slot of b: 0 1 4 5 2 3 6 7. avx2 and avxvnni: bytes 4 j .. 4 j + 3
   at 32 j + 4 b. */
static const size_t slot_vnni[8] = {0, 1, 4, 5, 2, 3, 6, 7};
static size_t place(uint32_t tier, size_t b, size_t i) {
    if (tier == MOE_TIER_VNNI) return i / 8 * 64 + 8 * slot_vnni[b] + i % 8;
    return tier == MOE_TIER_AVX2 || tier == MOE_TIER_AVXVNNI ? i / 4 * 32 + 4 * b + i % 4 : 32 * b + i;
}
static void lay_out(uint32_t tier, int back, moei_q8 *q) {
    int8_t to[8][32], *flat = &to[0][0];
    for (size_t b = 0; b < 8; b++)
        for (size_t i = 0; i < 32; i++)
            if (back) to[b][i] = ((int8_t *)q->q)[place(tier, b, i)];
            else flat[place(tier, b, i)] = q->q[b][i];
    memcpy(q->q, to, sizeof to);
}
static int same(float a, float b) { return moei_bits(a) == moei_bits(b) || (a != a && b != b); }
static int same_q8(const moei_q8 *a, const moei_q8 *b) {
    int ok = !memcmp(a->q, b->q, sizeof a->q) && !memcmp(a->sum, b->sum, sizeof a->sum) &&
             !memcmp(a->sum16, b->sum16, sizeof a->sum16);
    for (int i = 0; i < 8; i++) ok = ok && same(a->d[i], b->d[i]) && same(a->s[i], b->s[i]);
    return ok;
}
/* Activations with every kind of block: kind 0 plain, 1 wild scales, 2 zeros and tiny ones, 3 halves that tie, 4 all equal, 5 NaN or Inf
   somewhere, 6 huge. */
static void fill_x(float *x, size_t k, int kind) {
    for (size_t i = 0; i < k; i++) {
        float v = rndf();
        size_t b = i / 32;
        if (kind == 1) v = ldexpf(v, (int)(b * 37 % 120) - 60);
        if (kind == 2) v = b % 3 == 0 ? 0.0f : b % 3 == 1 ? ldexpf(v, -97) : ldexpf(v, -95);
        if (kind == 3) v = i % 32 ? (float)(int)(rnd() % 255) - 127.0f + 0.5f * (float)(rnd() % 2) : 127.0f;
        if (kind == 4) v = b % 2 ? -3.0f : 3.0f;
        if (kind == 5 && b % 4 == 1 && i % 32 == 5) v = b % 8 == 1 ? NAN : -INFINITY;
        if (kind == 6) v = v < 0 ? -3.40282347e38f : 3e38f * v;
        x[i] = v;
    }
}
enum { KINDS = 7 };
static void test_prepare(const moei_arith *arith, const char *tier) {
    static const size_t ks[] = {32, 64, 256, 288, 2880};
    for (size_t ki = 0; ki < MOEI_COUNT(ks); ki++)
        for (int kind = 0; kind < KINDS; kind++) {
            size_t k = ks[ki], n = (k + 255) / 256;
            name_test("prepare %s k=%zu kind=%d", tier, k, kind);
            guarded in = guarded_new(k * 4, 1), out = guarded_new(arith->row_bytes(k), kind % 2);
            moei_q8 *want = (moei_q8 *)calloc(n, sizeof *want), *got = (moei_q8 *)(void *)out.data;
            float *x = (float *)(void *)in.data;
            fill_x(x, k, kind);
            for (size_t b = 0; b < k / 32; b++) define_q8(&want[b / 8], b % 8, x + 32 * b);
            for (size_t i = 0; i < n; i++) lay_out(arith->tier, 0, &want[i]);
            memset(out.data, 0xa5, arith->row_bytes(k));
            if (kind % 2) arith->prepare(out.data, x, 0, k, k);
            else
                for (size_t at = 0; at < k;) { /* in pieces */
                    size_t m = 32 * (1 + rnd() % 5);
                    if (m > k - at) m = k - at;
                    arith->prepare(out.data, x + at, at, m, k), at += m;
                }
            for (size_t i = 0; i < n; i++) check(same_q8(&got[i], &want[i]), "differs from its definition");
            free(want), guarded_free(&in), guarded_free(&out);
        }
}

/* ---- dot products ------------------------------------------------------------------------------------------------------ */

enum { MAX_TOKENS = 40, MAX_ROWS = 70 };
typedef struct side_case {
    uint32_t type, rows, cols, zero, zero_rows, zero_cols;
} side_case;

static int is_side_format(uint32_t f) {
    return f == MOE_FORMAT_MXFP4_HF || f == MOE_FORMAT_NVFP4_HF || f == MOE_FORMAT_INT8_CHANNEL ||
           f == MOE_FORMAT_INT4_GROUP;
}
/* Scales get moderate values (random halves are mostly huge), or the smallest: subnormal halves, 2^-127. */
static uint8_t tame_half(uint8_t high, int tiny) { return (uint8_t)((tiny ? 0 : 0x1c) | (high & 0x83)); }
static void tame(uint32_t f, uint8_t *p, size_t bytes, int tiny) {
    static const struct {
        uint32_t f;
        size_t size, at[2];
    } fields[] = {
        {MOE_FORMAT_Q8_0, 34, {0, 0}},      {MOE_FORMAT_Q4_0, 18, {0, 0}},   {MOE_FORMAT_Q4_1, 20, {0, 2}},
        {MOE_FORMAT_Q5_0, 22, {0, 0}},      {MOE_FORMAT_Q5_1, 24, {0, 2}},   {MOE_FORMAT_Q2_K, 84, {80, 82}},
        {MOE_FORMAT_Q3_K, 110, {108, 108}}, {MOE_FORMAT_Q4_K, 144, {0, 2}},  {MOE_FORMAT_Q5_K, 176, {0, 2}},
        {MOE_FORMAT_Q6_K, 210, {208, 208}}, {MOE_FORMAT_IQ4_NL, 18, {0, 0}}, {MOE_FORMAT_IQ4_XS, 136, {0, 0}}};
    for (size_t i = 0; i < MOEI_COUNT(fields); i++)
        for (size_t b = 0; fields[i].f == f && b < bytes; b += fields[i].size)
            for (int j = 0; j < 2; j++) p[b + fields[i].at[j] + 1] = tame_half(p[b + fields[i].at[j] + 1], tiny);
    for (size_t b = 0; f == MOE_FORMAT_MXFP4 && b < bytes; b += 17)
        p[b] = (uint8_t)(tiny ? p[b] % 4 : 120 + p[b] % 16);
    for (size_t b = 0; f == MOE_FORMAT_NVFP4 && b < bytes; b += 36)
        for (size_t j = 0; j < 4; j++) p[b + j] &= tiny ? 0x07 : 0x3f;
}
static void tame_side(uint32_t type, uint8_t *p, size_t bytes, int tiny) {
    for (size_t i = 0; i < bytes; i++)
        if (type == MOE_TYPE_E8M0) p[i] = (uint8_t)(tiny ? p[i] % 4 : 120 + p[i] % 16);
        else if (type == MOE_TYPE_E4M3) p[i] &= tiny ? 0x87 : 0xbf;
        else if (type == MOE_TYPE_F16 && i % 2) p[i] = tame_half(p[i], tiny);
        else if (type == MOE_TYPE_BF16 && i % 2) p[i] = (uint8_t)((tiny ? 0 : 0x3c) | (p[i] & 0x83));
        else if (type == MOE_TYPE_F32 && i % 4 == 3) p[i] = (uint8_t)((tiny ? 0 : 0x3c) | (p[i] & 0x83));
}
/* content: 0 random with moderate scales, 1 random, 2 random with tiny scales, 3.. one byte everywhere */
static void fill_bytes(uint8_t *p, size_t n, int content) {
    static const uint8_t extremes[] = {0x80, 0xff, 0x00, 0x7f, 0x7e};
    for (size_t i = 0; i < n; i++) p[i] = content < 3 ? (uint8_t)rnd() : extremes[(content - 3) % 5];
}
enum { CONTENTS = 8 };

typedef struct matrix { /* the test's own owner of a moei_rows */
    moei_rows w;
    guarded data, scale, zero;
} matrix;
static void make_side(moei_side *s, guarded *g, uint32_t type, uint32_t rows, uint32_t cols, size_t n_rows, size_t k,
                      int content) {
    size_t lines = (n_rows + rows - 1) / rows, bytes = type == MOE_TYPE_F32 || type == MOE_TYPE_U4X8   ? 4
                                                       : type == MOE_TYPE_F16 || type == MOE_TYPE_BF16 ? 2
                                                                                                       : 1;
    if (type == MOE_TYPE_U4X8) lines = (lines + 7) / 8;
    s->type = type, s->rows = rows, s->cols = cols, s->row_stride = (k + cols - 1) / cols * bytes;
    *g = guarded_new(lines * s->row_stride, content % 2 == 0);
    fill_bytes(g->data, lines * s->row_stride, content);
    if (content == 0 || content == 2) tame_side(type, g->data, lines * s->row_stride, content);
    s->data = g->data;
}
static void make_matrix(matrix *m, uint32_t f, size_t n_rows, size_t k, const side_case *side, int content) {
    size_t bytes = k / formats[f].elements * formats[f].bytes, pad = content % 3 == 1 ? 5 : 0;
    memset(m, 0, sizeof *m);
    m->w.format = f, m->w.k = k, m->w.row_stride = bytes + pad, m->w.row0 = content % 2 ? 3 : 0;
    size_t rows = n_rows + m->w.row0, all = (rows - 1) * m->w.row_stride + bytes;
    m->data = guarded_new(all, content % 2 == 0);
    m->w.data = m->data.data;
    for (size_t r = 0; r < rows; r++) {
        fill_bytes(m->data.data + r * m->w.row_stride, bytes, content);
        if (content == 0 || content == 2) tame(f, m->data.data + r * m->w.row_stride, bytes, content);
    }
    if (side && side->type) make_side(&m->w.scale, &m->scale, side->type, side->rows, side->cols, rows, k, content);
    if (side && side->zero)
        make_side(&m->w.zero, &m->zero, side->zero, side->zero_rows, side->zero_cols, rows, k, content);
}
static void free_matrix(matrix *m) {
    guarded_free(&m->data);
    if (m->w.scale.data) guarded_free(&m->scale);
    if (m->w.zero.data) guarded_free(&m->zero);
}
typedef struct tokens {
    guarded rows[MAX_TOKENS];
    const void *x[MAX_TOKENS];
} tokens;
static void make_tokens(tokens *t, const moei_arith *arith, size_t k) {
    float *x = (float *)malloc(k * 4);
    for (int i = 0; i < MAX_TOKENS; i++) {
        t->rows[i] = guarded_new(arith->row_bytes(k), i % 2), t->x[i] = t->rows[i].data;
        fill_x(x, k, i % 11 < KINDS ? i % 11 : 0);
        arith->prepare(t->rows[i].data, x, 0, k, k);
    }
    free(x);
}

static void compare(const float *want, size_t want_rows, const guarded *out, size_t n_rows, size_t n_tokens,
                    size_t stride, const char *what) {
    const float *y = (const float *)(const void *)out->data;
    size_t bad = 0, touched = 0;
    char why[160] = "";
    for (size_t t = 0; t < n_tokens; t++)
        for (size_t r = 0; r < stride; r++) {
            float got, expect = r < n_rows ? want[t * want_rows + r] : 0;
            if (t == n_tokens - 1 && r >= n_rows) break;
            memcpy(&got, y + t * stride + r, 4);
            if (r >= n_rows) touched += moei_bits(got) != 0xa5a5a5a5u;
            else if (!same(got, expect) && !bad++)
                snprintf(why, sizeof why, "%s: %zu rows, %zu tokens: [%zu][%zu] is %.9g, not %.9g", what, n_rows,
                         n_tokens, t, r, (double)got, (double)expect);
        }
    check(!bad, why);
    check(!touched, "wrote beyond the rows");
}
/* As moei_pack, of any number of tokens; a block of 32 values at a time, as a layer packs h. */
static void pack(const moei_arith *arith, const tokens *x, const void **groups, uint32_t n, size_t k, uint8_t *to) {
    const moei_packing *p = arith->packing;
    size_t row = arith->row_bytes(k);
    memcpy(groups, x->x, n * sizeof *groups);
    for (uint32_t t = 0; p && t < n; t += p->group) {
        uint32_t group = n - t < p->group ? n - t : p->group;
        for (size_t k0 = 0; k0 < k; k0 += 32) {
            moei_q8 one[MOEI_GROUP];
            const void *rows[MOEI_GROUP];
            for (uint32_t i = 0; i < group; i++) {
                const moei_q8 *from = (const moei_q8 *)x->x[t + i] + k0 / 256;
                size_t b = k0 / 32 % 8;
                memset(&one[i], 0, sizeof one[i]);
                for (size_t j = 0; j < 4; j++) /* in the tier's order */
                    memcpy(one[i].q[2 * j], from->q[2 * j] + 8 * slot_vnni[b], 8);
                memcpy(one[i].sum16[0], from->sum16[b], 4);
                one[i].d[0] = from->d[b], one[i].s[0] = from->s[b], one[i].sum[0] = from->sum[b];
                rows[i] = &one[i];
            }
            p->pack(to + t * row, rows, group, k0, 32, k);
        }
        groups[t] = to + t * row;
    }
}
static const uint32_t asks[] = {MOEI_ASK_L2, MOEI_ASK_BOTH, MOEI_ASK_L1, MOEI_ASK_PAST_L3, MOEI_ASK_NONE};
static void run_one(const moei_arith *arith, const matrix *m, const tokens *x, const float *want, size_t want_rows,
                    uint32_t n_rows, uint32_t n_tokens) {
    const moei_ops *ops = &arith->ops[m->w.format];
    size_t stride = n_rows + n_tokens % 3;
    guarded out = guarded_new(((n_tokens - 1) * stride + n_rows) * 4, 1);
    if (ops->dot && n_tokens <= ops->dot_max) {
        moei_rows w = m->w;
        w.ask = asks[(n_rows + n_tokens) % MOEI_COUNT(asks)];               /* hints, whoever gives them */
        for (w.whole = 0; w.whole < (m->w.k > 2048 ? 2u : 1u); w.whole++) { /* long rows at once and in parts */
            memset(out.data, 0xa5, ((n_tokens - 1) * stride + n_rows) * 4);
            ops->dot(&w, n_rows, x->x, n_tokens, (float *)(void *)out.data, stride);
            compare(want, want_rows, &out, n_rows, n_tokens, stride, w.whole ? "dot of whole rows" : "dot");
        }
    }
    if (ops->decode) {
        size_t bytes = arith->panel_bytes(n_rows, m->w.k);
        guarded panel = guarded_new(bytes, 1);
        memset(panel.data, 0xff, bytes);
        ops->decode(&m->w, n_rows, panel.data);
        memset(out.data, 0xa5, ((n_tokens - 1) * stride + n_rows) * 4);
        const void *groups[MAX_TOKENS];
        guarded packed = guarded_new(n_tokens * arith->row_bytes(m->w.k), (int)n_rows % 2);
        pack(arith, x, groups, n_tokens, m->w.k, packed.data);
        arith->panel(panel.data, &m->w, n_rows, groups, n_tokens, (float *)(void *)out.data, stride);
        guarded_free(&packed);
        compare(want, want_rows, &out, n_rows, n_tokens, stride, "panel");
        guarded_free(&panel);
    }
    guarded_free(&out);
}
typedef struct tier {
    const char *name;
    const moei_arith *arith;
    int runs;
} tier;

static void lay_out_all(uint32_t of, int back, const tokens *x, size_t k) {
    for (size_t t = 0; t < MAX_TOKENS; t++)
        for (size_t s = 0; s < (k + 255) / 256; s++) lay_out(of, back, (moei_q8 *)(void *)x->rows[t].data + s);
}
static void test_matrix(const tier *tiers, size_t n_tiers, uint32_t f, size_t k, const side_case *side, int content,
                        int every) {
    static const uint32_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 21, 22, 33, 34, 40};
    enum { N = 20 };
    static float want[MAX_TOKENS * MAX_ROWS];
    uint32_t most = every ? MAX_ROWS : N;
    matrix m;
    tokens x;
    make_matrix(&m, f, most, k, side, content);
    make_tokens(&x, tiers[0].arith, k);
    lay_out_all(tiers[0].arith->tier, 1, &x, k);
    define(&m.w, most, x.x, MAX_TOKENS, want);
    for (size_t i = 0; i < n_tiers; i++) {
        if (!tiers[i].runs || !tiers[i].arith->ops[f].dot) continue;
        lay_out_all(tiers[i].arith->tier, 0, &x, k);
        name_test("%s %s k=%zu content=%d scale=%u/%u zero=%u", tiers[i].name, formats[f].name, k, content,
                  side ? side->type : 0, side ? side->cols : 0, side ? side->zero : 0);
        for (size_t c = 0; c < MOEI_COUNT(counts); c++)
            for (uint32_t n = 1; n <= (every ? 33 : N); n += every || c < 2 ? 1 : 1 + rnd() % 6)
                run_one(tiers[i].arith, &m, &x, want, most, n, counts[c]);
        for (uint32_t n = 44; every && n <= MAX_ROWS; n += 13) run_one(tiers[i].arith, &m, &x, want, most, n, 33);
        lay_out_all(tiers[i].arith->tier, 1, &x, k);
    }
    for (int i = 0; i < MAX_TOKENS; i++) guarded_free(&x.rows[i]);
    free_matrix(&m);
}
/* Rows of more steps than stay in L1: tokens go through them in parts of k, 32 rows at a time, or all at once. */
static void test_turns(const tier *tiers, size_t n_tiers, uint32_t f, size_t k, const side_case *side) {
    enum { N = 40, FEW = 4 };
    static const uint32_t rows[] = {1, 33, N};
    static float want[FEW * N];
    matrix m;
    tokens x;
    make_matrix(&m, f, N, k, side, 0);
    make_tokens(&x, tiers[0].arith, k);
    lay_out_all(tiers[0].arith->tier, 1, &x, k);
    define(&m.w, N, x.x, FEW, want);
    for (size_t i = 0; i < n_tiers; i++) {
        if (!tiers[i].runs || !tiers[i].arith->ops[f].dot) continue;
        lay_out_all(tiers[i].arith->tier, 0, &x, k);
        name_test("%s %s k=%zu in turns", tiers[i].name, formats[f].name, k);
        for (uint32_t n = 1; n <= FEW; n++)
            for (size_t j = 0; j < MOEI_COUNT(rows); j++) run_one(tiers[i].arith, &m, &x, want, N, rows[j], n);
        lay_out_all(tiers[i].arith->tier, 1, &x, k);
    }
    for (int i = 0; i < MAX_TOKENS; i++) guarded_free(&x.rows[i]);
    free_matrix(&m);
}

int main(void) {
    static const size_t ks[] = {32, 64, 256, 288, 768, 2048, 2880};
    /* MOEI_Q8_KEEP steps, one more, more than of one token in L1 */
    static const size_t turns[] = {4096, 4352, 16640};
    static const side_case mx[] = {{MOE_TYPE_E8M0, 1, 32, 0, 1, 32},
                                   {MOE_TYPE_F32, 1, 64, 0, 1, 32},
                                   {MOE_TYPE_BF16, 2, 32, 0, 1, 32},
                                   {0, 1, 32, 0, 1, 32}};
    static const side_case nv[] = {{MOE_TYPE_E4M3, 1, 16, 0, 1, 16},
                                   {MOE_TYPE_F32, 1, 16, 0, 1, 16},
                                   {MOE_TYPE_F16, 3, 32, 0, 1, 16},
                                   {MOE_TYPE_E8M0, 1, 16, 0, 1, 16}};
    static const side_case i8[] = {
        {0, 1, 32, 0, 1, 32}, {MOE_TYPE_F32, 1, 128, 0, 1, 32}, {MOE_TYPE_BF16, 128, 128, 0, 1, 32}};
    static const side_case i4[] = {{MOE_TYPE_BF16, 1, 128, 0, 1, 32},
                                   {MOE_TYPE_F16, 1, 32, MOE_TYPE_U4X8, 1, 32},
                                   {MOE_TYPE_F32, 1, 64, MOE_TYPE_U8, 1, 64},
                                   {MOE_TYPE_BF16, 1, 96, MOE_TYPE_U4X8, 1, 128},
                                   {MOE_TYPE_F16, 2, 4096, MOE_TYPE_U4X8, 2, 256},
                                   {0, 1, 32, MOE_TYPE_U8, 3, UINT32_MAX},
                                   {MOE_TYPE_E4M3, 1, 32, 0, 1, 32},
                                   {MOE_TYPE_E8M0, 1, 160, MOE_TYPE_U8, 1, 32}};
    tier tiers[4];
    size_t n_tiers = 0;
#if MOEI_HAVE_AVX2
    tier avx2 = {"avx2", &moei_q8_avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")};
    tiers[n_tiers++] = avx2;
#endif
#if MOEI_HAVE_AVXVNNI
    tier avxvnni = {"avxvnni", &moei_q8_avxvnni, (int)(moe_tiers() >> MOE_TIER_AVXVNNI & 1)};
    tiers[n_tiers++] = avxvnni;
#endif
#if MOEI_HAVE_VNNI
    tier vnni = {"vnni", &moei_q8_vnni, __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl")};
    tiers[n_tiers++] = vnni;
    tier vnni_intel = {"vnni, panels of bytes", &moei_q8_vnni_intel, vnni.runs};
    tiers[n_tiers++] = vnni_intel;
#endif
#if MOEI_HAVE_NEON
    tier neon = {"neon", &moei_q8_neon, 1};
    tiers[n_tiers++] = neon;
#endif
#if MOEI_HAVE_DOTPROD
    tier dotprod = {"dotprod", &moei_q8_dotprod, (int)(moe_tiers() >> MOE_TIER_DOTPROD & 1)};
    tiers[n_tiers++] = dotprod;
#endif
#if MOEI_HAVE_I8MM
    tier i8mm = {"i8mm", &moei_q8_i8mm, (int)(moe_tiers() >> MOE_TIER_I8MM & 1)};
    tiers[n_tiers++] = i8mm;
#endif
    for (size_t i = 0; i < n_tiers; i++)
        if (tiers[i].runs) test_prepare(tiers[i].arith, tiers[i].name);
        else n_skipped++;
    for (uint32_t f = MOE_FORMAT_Q8_0; n_tiers && tiers[0].runs && f < MOE_FORMAT_COUNT; f++) {
        const side_case *sides = f == MOE_FORMAT_MXFP4_HF       ? mx
                                 : f == MOE_FORMAT_NVFP4_HF     ? nv
                                 : f == MOE_FORMAT_INT8_CHANNEL ? i8
                                                                : i4;
        size_t n = f == MOE_FORMAT_MXFP4_HF       ? MOEI_COUNT(mx)
                   : f == MOE_FORMAT_NVFP4_HF     ? MOEI_COUNT(nv)
                   : f == MOE_FORMAT_INT8_CHANNEL ? MOEI_COUNT(i8)
                                                  : MOEI_COUNT(i4);
        if (!tiers[0].arith->ops[f].dot) continue;
        if (!is_side_format(f)) n = 1;
        for (size_t ki = 0; ki < MOEI_COUNT(ks); ki++)
            for (size_t s = 0; s < n; s++)
                for (int content = 0; content < CONTENTS; content++)
                    if (ks[ki] % formats[f].elements == 0 && (content == 0 || ki % 3 == (size_t)content % 3))
                        test_matrix(tiers, n_tiers, f, ks[ki], is_side_format(f) ? &sides[s] : NULL, content,
                                    content == 0 && s == 0 && ks[ki] == (288 % formats[f].elements ? 256 : 288));
        for (size_t s = 0; s < n && s < 3; s++)
            for (size_t ki = 0; ki < MOEI_COUNT(turns); ki++)
                test_turns(tiers, n_tiers, f, turns[ki] - (formats[f].elements > 32 ? 0 : 224),
                           is_side_format(f) ? &sides[s] : NULL);
    }
    /* longer than one fill of the side values */
    for (size_t s = 0; n_tiers && tiers[0].runs && s < MOEI_COUNT(i4); s++)
        test_matrix(tiers, n_tiers, MOE_FORMAT_INT4_GROUP, 8192 + 8192 + 288, &i4[s], 0, 0);
    printf("test_q8: %u passed, %u failed, %u skipped\n", n_passed, n_failed, n_skipped);
    return n_failed != 0;
}
