/* quantize.h - float weights to every format of moe.h

   Do this:

       size_t bytes = moe_row_bytes(MOE_FORMAT_Q4_K, k) * rows;
       if (quant_rows(MOE_FORMAT_Q4_K, src, rows, k, dst)) ...        // GGUF block formats: whole in dst

       quant_sizes z = quant_size(MOE_FORMAT_FP8_BLOCK, rows, k);     // any format: weights, scales that live apart
       moe_matrix m;
       quant_matrix(MOE_FORMAT_FP8_BLOCK, src, rows, k, memory, NULL, &m);  // memory: z.total bytes, for m to point into

   How well: every scale (and minimum) of a block is searched for among some twenty candidates, each improved by least
   squares weighted towards large weights, then rounded to what the format can hold, and the weights are rounded again
   to the scales as stored. That is close to what ggml's quantisers do without an importance matrix, not bit for bit
   the same.
   The simple formats (f16, bf16, q8_0, q4_0, mxfp4) are moe_quantize's.
   All state is in arguments; only quant_desc allocates. */

#ifndef QUANTIZE_H
#define QUANTIZE_H

#ifndef MOE_H
#include "../moe.h"
#endif
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- Numbers ---------------------------------------------------------------------------------------------------- */

static inline void quant_store16(uint8_t *p, uint32_t v) { p[0] = (uint8_t)(v & 255), p[1] = (uint8_t)(v >> 8); }
static inline void quant_store32(uint8_t *p, uint32_t v) {
    quant_store16(p, v & 0xffff), quant_store16(p + 2, v >> 16);
}
static inline void quant_store_f32(uint8_t *p, float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    quant_store32(p, u);
}
/* Stores x as a half (or e4m3) and returns what was stored. */
static float quant_put(uint32_t format, uint8_t *p, float x) {
    moe_matrix m;
    float stored = 0;
    memset(&m, 0, sizeof m);
    m.format = format, m.data = p;
    moe_quantize(format, &x, 1, 1, p);
    moe_dequantize(&m, 0, 1, 1, 1, 0, 1, &stored);
    return stored;
}
static inline float quant_half(uint8_t *p, float x) { return quant_put(MOE_FORMAT_F16, p, x); }

static inline int quant_round(float x, int lo, int hi) {
    float r = x < 0 ? x - 0.5f : x + 0.5f;
    return !(r > (float)lo) ? lo : r >= (float)hi ? hi : (int)r;
}
static inline float quant_amax(const float *x, size_t n, float *signed_max) {
    float a = 0, s = 0;
    for (size_t i = 0; i < n; i++)
        if (fabsf(x[i]) > a) a = fabsf(x[i]), s = x[i];
    if (signed_max) *signed_max = s;
    return a;
}

/* -- Searches for scales ----------------------------------------------------------------------------------------- */

/* d for x ~ d * value(q), lo <= q <= hi, with value(q) = q, or table[q]: the best of some candidates around "the
   largest weight becomes the largest value". Weights count by their square. */
static float quant_scale(const float *x, int n, int lo, int hi, const int8_t *table) {
    float top, best = 0;
    double gain = -1;
    if (!(quant_amax(x, (size_t)n, &top) > 0)) return 0;
    float end = table ? (float)table[0] : (float)lo; /* the side with one value more */
    for (int step = -9; step <= 9; step++) {
        float inverse = (end + (table ? 1.0f : 0.1f) * (float)step * (end < 0 ? -1.0f : 1.0f)) / top;
        double xv = 0, vv = 0;
        for (int i = 0; i < n; i++) {
            float want = inverse * x[i], v;
            if (table) {
                int q = 0;
                while (q < hi && want > 0.5f * ((float)table[q] + (float)table[q + 1])) q++;
                v = (float)table[q];
            } else v = (float)quant_round(want, lo, hi);
            double w = (double)x[i] * (double)x[i];
            xv += w * (double)v * (double)x[i], vv += w * (double)v * (double)v;
        }
        if (vv > 0 && xv * xv / vv > gain) gain = xv * xv / vv, best = (float)(xv / vv);
    }
    return best;
}

/* d and m >= 0 for n <= 32 values x ~ d * q - m, 0 <= q <= levels. */
static float quant_scale_min(const float *x, int n, int levels, float *m) {
    float lo = 0, hi = x[0], d = 0;
    double mean = 0, best = -1, sw = 0, sx = 0, w[32], q[32];
    for (int i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo, hi = x[i] > hi ? x[i] : hi;
        mean += (double)x[i] * (double)x[i];
    }
    *m = -lo;
    if (!(hi > lo)) return 0;
    mean = sqrt(mean / n);
    for (int i = 0; i < n; i++) w[i] = mean + fabs((double)x[i]), sw += w[i], sx += w[i] * (double)x[i];
    for (int step = -10; step <= 10; step++) {
        float inverse = ((float)levels + 0.1f * (float)step) / (hi - lo);
        double sq = 0, sqq = 0, sqx = 0, error = 0;
        for (int i = 0; i < n; i++) {
            q[i] = quant_round(inverse * (x[i] - lo), 0, levels);
            sq += w[i] * q[i], sqq += w[i] * q[i] * q[i], sqx += w[i] * q[i] * (double)x[i];
        }
        double det = sw * sqq - sq * sq, scale = det > 0 ? (sw * sqx - sx * sq) / det : 0,
               low = det > 0 ? (sqq * sx - sq * sqx) / det : 0;
        if (low > 0 || !(scale > 0)) low = 0, scale = sqq > 0 ? sqx / sqq : 0;
        for (int i = 0; i < n; i++) {
            double e = scale * q[i] + low - (double)x[i];
            error += w[i] * e * e;
        }
        if (scale > 0 && (best < 0 || error < best)) best = error, d = (float)scale, *m = (float)-low;
    }
    return d;
}

/* -- Blocks of 32 ------------------------------------------------------------------------------------------------ */

static const int8_t quant_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static int quant_nearest(const int8_t *table, int n, float want) {
    int q = 0;
    while (q + 1 < n && want > 0.5f * ((float)table[q] + (float)table[q + 1])) q++;
    return q;
}
static void quant_nibbles(uint8_t *to, const int *q) {
    for (int i = 0; i < 16; i++) to[i] = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
}
static void quant_fifth(uint8_t *to, const int *q) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; i++) bits |= (uint32_t)(q[i] >> 4 & 1) << i;
    quant_store32(to, bits);
}

static void quant_q5_0(const float *x, uint8_t *b) {
    float d = quant_half(b, quant_scale(x, 32, -16, 15, NULL)), inverse = d > 0 || d < 0 ? 1 / d : 0;
    int q[32];
    for (int i = 0; i < 32; i++) q[i] = quant_round(x[i] * inverse, -16, 15) + 16;
    quant_fifth(b + 2, q), quant_nibbles(b + 6, q);
}
/* q4_1 and q5_1: a minimum of either sign */
static void quant_x_1(const float *x, uint8_t *b, int levels) {
    float lo = x[0], shifted[32], m;
    int q[32];
    for (int i = 1; i < 32; i++) lo = x[i] < lo ? x[i] : lo;
    for (int i = 0; i < 32; i++) shifted[i] = x[i] - lo;
    float d = quant_scale_min(shifted, 32, levels, &m);
    d = quant_half(b, d), m = quant_half(b + 2, lo - m);
    for (int i = 0; i < 32; i++) q[i] = quant_round(d > 0 ? (x[i] - m) / d : 0, 0, levels);
    if (levels > 15) quant_fifth(b + 4, q);
    quant_nibbles(b + (levels > 15 ? 8 : 4), q);
}
static void quant_q4_1(const float *x, uint8_t *b) { quant_x_1(x, b, 15); }
static void quant_q5_1(const float *x, uint8_t *b) { quant_x_1(x, b, 31); }
static void quant_iq4_nl(const float *x, uint8_t *b) {
    float d = quant_half(b, quant_scale(x, 32, 0, 15, quant_iq4)), inverse = d > 0 || d < 0 ? 1 / d : 0;
    int q[32];
    for (int i = 0; i < 32; i++) q[i] = quant_nearest(quant_iq4, 16, x[i] * inverse);
    quant_nibbles(b + 2, q);
}

/* -- Super-blocks of 256 ----------------------------------------------------------------------------------------- */

/* 6-bit scales and minima of q4_K and q5_K: those of sub-blocks 4..7 have their upper bits above the first four. */
static void quant_pack_6bit(uint8_t *to, const int *s, const int *m) {
    memset(to, 0, 12);
    for (int g = 0; g < 4; g++) to[g] = (uint8_t)s[g], to[g + 4] = (uint8_t)m[g];
    for (int g = 4; g < 8; g++) {
        to[g + 4] = (uint8_t)((s[g] & 15) | (m[g] & 15) << 4);
        to[g - 4] = (uint8_t)(to[g - 4] | (s[g] >> 4) << 6), to[g] = (uint8_t)(to[g] | (m[g] >> 4) << 6);
    }
}

/* Scales and minima of n_sub sub-blocks, rounded to `most`, with their super-scales at b and b + 2; then q of all
   256. */
static void quant_with_min(const float *x, int n_sub, int levels, int most, uint8_t *halves, int *s, int *m, int *q) {
    float scale[16], low[16], top = 0, top_low = 0;
    int n = 256 / n_sub;
    for (int g = 0; g < n_sub; g++) {
        scale[g] = quant_scale_min(x + g * n, n, levels, &low[g]);
        top = scale[g] > top ? scale[g] : top, top_low = low[g] > top_low ? low[g] : top_low;
    }
    float d = quant_half(halves, top / (float)most), dm = quant_half(halves + 2, top_low / (float)most);
    for (int g = 0; g < n_sub; g++) {
        s[g] = quant_round(d > 0 ? scale[g] / d : 0, 0, most), m[g] = quant_round(dm > 0 ? low[g] / dm : 0, 0, most);
        float ds = d * (float)s[g], l = dm * (float)m[g];
        for (int i = g * n; i < (g + 1) * n; i++) q[i] = quant_round(ds > 0 ? (x[i] + l) / ds : 0, 0, levels);
    }
}

static void quant_q2_k(const float *x, uint8_t *b) {
    int s[16], m[16], q[256];
    quant_with_min(x, 16, 3, 15, b + 80, s, m, q);
    memset(b + 16, 0, 64);
    for (int g = 0; g < 16; g++) b[g] = (uint8_t)(s[g] | m[g] << 4);
    for (int i = 0; i < 256; i++) b[16 + 32 * (i / 128) + i % 32] |= (uint8_t)(q[i] << 2 * (i / 32 % 4));
}
static void quant_q4_k(const float *x, uint8_t *b) {
    int s[8], m[8], q[256];
    quant_with_min(x, 8, 15, 63, b, s, m, q);
    quant_pack_6bit(b + 4, s, m);
    memset(b + 16, 0, 128);
    for (int i = 0; i < 256; i++) b[16 + 32 * (i / 64) + i % 32] |= (uint8_t)(q[i] << 4 * (i / 32 % 2));
}
static void quant_q5_k(const float *x, uint8_t *b) {
    int s[8], m[8], q[256];
    quant_with_min(x, 8, 31, 63, b, s, m, q);
    quant_pack_6bit(b + 4, s, m);
    memset(b + 16, 0, 160);
    for (int i = 0; i < 256; i++) {
        b[48 + 32 * (i / 64) + i % 32] |= (uint8_t)((q[i] & 15) << 4 * (i / 32 % 2));
        b[16 + i % 32] |= (uint8_t)((q[i] >> 4) << i / 32);
    }
}

/* Signed scales of n_sub sub-blocks, lo <= s <= hi, with their super-scale at `half`; then q of all 256. */
static void quant_signed(const float *x, int n_sub, int qlo, int qhi, int slo, int shi, const int8_t *table,
                         uint8_t *half, int *s, int *q) {
    float scale[16], top;
    int n = 256 / n_sub;
    for (int g = 0; g < n_sub; g++) scale[g] = quant_scale(x + g * n, n, qlo, qhi, table);
    quant_amax(scale, (size_t)n_sub, &top);
    float d = quant_half(half, top / (float)slo), inverse = d > 0 || d < 0 ? 1 / d : 0;
    for (int g = 0; g < n_sub; g++) {
        s[g] = quant_round(scale[g] * inverse, slo, shi);
        float ds = d * (float)s[g], step = ds > 0 || ds < 0 ? 1 / ds : 0;
        for (int i = g * n; i < (g + 1) * n; i++)
            q[i] = table ? quant_nearest(table, qhi + 1, x[i] * step) : quant_round(x[i] * step, qlo, qhi);
    }
}

static void quant_q3_k(const float *x, uint8_t *b) {
    int s[16], q[256];
    quant_signed(x, 16, -4, 3, -32, 31, NULL, b + 108, s, q);
    memset(b, 0, 108);
    for (int g = 0; g < 16; g++) {
        int v = s[g] + 32;
        b[96 + g % 8] |= (uint8_t)((v & 15) << 4 * (g / 8)), b[104 + g % 4] |= (uint8_t)((v >> 4) << 2 * (g / 4));
    }
    for (int i = 0; i < 256; i++) {
        int v = q[i] + 4;
        b[32 + 32 * (i / 128) + i % 32] |= (uint8_t)((v & 3) << 2 * (i / 32 % 4)),
            b[i % 32] |= (uint8_t)((v >> 2) << i / 32);
    }
}
static void quant_q6_k(const float *x, uint8_t *b) {
    int s[16], q[256];
    quant_signed(x, 16, -32, 31, -128, 127, NULL, b + 208, s, q);
    memset(b, 0, 208);
    for (int g = 0; g < 16; g++) b[192 + g] = (uint8_t)(s[g] & 255);
    for (int i = 0; i < 256; i++) {
        int v = q[i] + 32, half = i / 128, plane = i / 32 % 4, l = i % 32;
        b[64 * half + 32 * (plane & 1) + l] |= (uint8_t)((v & 15) << 4 * (plane / 2));
        b[128 + 32 * half + l] |= (uint8_t)((v >> 4) << 2 * plane);
    }
}
static void quant_iq4_xs(const float *x, uint8_t *b) {
    int s[8], q[256];
    uint32_t high = 0;
    quant_signed(x, 8, 0, 15, -32, 31, quant_iq4, b, s, q);
    memset(b + 4, 0, 132);
    for (int g = 0; g < 8; g++) {
        int v = s[g] + 32;
        b[4 + g / 2] |= (uint8_t)((v & 15) << 4 * (g & 1)), high |= (uint32_t)(v >> 4) << 2 * g;
    }
    quant_store16(b + 2, high);
    for (int i = 0; i < 256; i++) b[8 + 16 * (i / 32) + i % 16] |= (uint8_t)(q[i] << (i % 32 >= 16 ? 4 : 0));
}

/* -- Four-bit floats --------------------------------------------------------------------------------------------- */

/* The nearest of 0 .5 1 1.5 2 3 4 6, ties to the even code. */
static int quant_e2m1(float x) {
    static const float middle[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
    float a = fabsf(x);
    int q = 0;
    while (q < 7 && (a > middle[q] || (a >= middle[q] && (q & 1)))) q++;
    return q | (x < 0 ? 8 : 0);
}
/* Sixteen weights: the e4m3 scale whose error is least, of the one that lets the largest become 6 and its neighbours.
   */
static uint8_t quant_nvfp4_scale(const float *x, int *q) {
    static const float value[8] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    uint8_t code, best = 0;
    double least = -1;
    quant_put(MOE_FORMAT_FP8_CHANNEL, &code, quant_amax(x, 16, NULL) / 6);
    for (int c = (int)code - 1; c <= (int)code + 1; c++) {
        uint8_t one = (uint8_t)(c < 0 ? 0 : c > 126 ? 126 : c);
        moe_matrix m;
        float d = 0;
        double error = 0;
        int t[16];
        memset(&m, 0, sizeof m);
        m.format = MOE_FORMAT_FP8_CHANNEL, m.data = &one;
        moe_dequantize(&m, 0, 1, 1, 1, 0, 1, &d);
        for (int i = 0; i < 16; i++) {
            t[i] = d > 0 ? quant_e2m1(x[i] / d) : 0;
            double e = (double)d * (double)value[t[i] & 7] - fabs((double)x[i]);
            error += e * e;
        }
        if (least < 0 || error < least) least = error, best = one, memcpy(q, t, sizeof t);
    }
    return best;
}
static void quant_nvfp4(const float *x, uint8_t *b) { /* 64 weights */
    for (int s = 0; s < 4; s++) {
        int q[16];
        b[s] = quant_nvfp4_scale(x + 16 * s, q);
        for (int j = 0; j < 8; j++) b[4 + 8 * s + j] = (uint8_t)(q[j] | q[j + 8] << 4);
    }
}

/* -- Rows of block formats --------------------------------------------------------------------------------------- */

typedef struct quant_codec {
    uint32_t format;
    void (*block)(const float *x, uint8_t *b);
} quant_codec;
static const quant_codec quant_codecs[] = {
    {MOE_FORMAT_Q4_1, quant_q4_1},     {MOE_FORMAT_Q5_0, quant_q5_0},   {MOE_FORMAT_Q5_1, quant_q5_1},
    {MOE_FORMAT_Q2_K, quant_q2_k},     {MOE_FORMAT_Q3_K, quant_q3_k},   {MOE_FORMAT_Q4_K, quant_q4_k},
    {MOE_FORMAT_Q5_K, quant_q5_k},     {MOE_FORMAT_Q6_K, quant_q6_k},   {MOE_FORMAT_IQ4_NL, quant_iq4_nl},
    {MOE_FORMAT_IQ4_XS, quant_iq4_xs}, {MOE_FORMAT_NVFP4, quant_nvfp4},
};
static const uint32_t quant_block_sizes[MOE_FORMAT_COUNT][2] = {{0, 0},
#define MOE_X(id, name, n, bytes, rows, cols) {n, bytes},
                                                                MOE_FORMATS(MOE_X)
#undef MOE_X
};

/* Rows of a format that keeps its scales in its blocks (and f32, f16, bf16), as moe_quantize. */
static moe_status quant_rows(uint32_t format, const float *src, size_t n_rows, size_t k, void *dst) {
    size_t i = 0, codecs = sizeof quant_codecs / sizeof *quant_codecs;
    while (i < codecs && quant_codecs[i].format != format) i++;
    if (i == codecs) return moe_quantize(format, src, n_rows, k, dst);
    if (!moe_row_bytes(format, k)) return MOE_ERR_BLOCK;
    for (size_t j = 0; j < n_rows * k; j++)
        if (!(fabsf(src[j]) <= 3.0e38f)) return MOE_ERR_VALUE;
    const uint32_t *size = quant_block_sizes[format];
    uint8_t *to = (uint8_t *)dst;
    for (size_t j = 0; j < n_rows * k; j += size[0], to += size[1]) quant_codecs[i].block(src + j, to);
    return MOE_OK;
}

/* -- Formats with scales that live apart ------------------------------------------------------------------------- */

typedef struct quant_sizes {       /* of one matrix */
    size_t weights, scales, total; /* bytes; total 0: the format has no rows of this length */
    uint32_t scale_type, rows, cols;
} quant_sizes;

static quant_sizes quant_size(uint32_t format, size_t rows, size_t k) {
    static const struct {
        uint32_t format, type, bytes, rows, cols;
    } apart[] = {{MOE_FORMAT_MXFP4_HF, MOE_TYPE_E8M0, 1, 1, 32},
                 {MOE_FORMAT_NVFP4_HF, MOE_TYPE_E4M3, 1, 1, 16},
                 {MOE_FORMAT_MXFP8, MOE_TYPE_E8M0, 1, 1, 32},
                 {MOE_FORMAT_FP8_BLOCK, MOE_TYPE_F32, 4, 128, 128},
                 {MOE_FORMAT_FP8_CHANNEL, MOE_TYPE_F32, 4, 1, UINT32_MAX},
                 {MOE_FORMAT_INT8_CHANNEL, MOE_TYPE_F32, 4, 1, UINT32_MAX},
                 {MOE_FORMAT_INT4_GROUP, MOE_TYPE_F32, 4, 1, 128}};
    quant_sizes z;
    memset(&z, 0, sizeof z);
    size_t line = moe_row_bytes(format, k);
    if (!line || rows > SIZE_MAX / 64 / line) return z;
    z.weights = z.total = rows * line;
    for (size_t i = 0; i < sizeof apart / sizeof *apart; i++) {
        if (apart[i].format != format) continue;
        z.scale_type = apart[i].type, z.rows = apart[i].rows, z.cols = apart[i].cols;
        if (format == MOE_FORMAT_INT4_GROUP && k % 128) z.cols = k % 32 ? UINT32_MAX : 32;
        size_t columns = z.cols >= k ? 1 : (k + z.cols - 1) / z.cols;
        z.scales = (rows + z.rows - 1) / z.rows * columns * apart[i].bytes;
        z.total += z.scales;
    }
    return z;
}

/* 2^e with 2^e * most >= amax, as an e8m0 code. */
static uint8_t quant_e8m0(float amax, float most) {
    int e = 0;
    if (!(amax > 0)) return 0;
    float f = frexpf(amax / most, &e); /* f in [0.5, 1) */
    e += f > 0.5f ? 127 : 126;
    return (uint8_t)(e < 0 ? 0 : e > 254 ? 254 : e);
}

/* One row of one group of inputs: [i, i + n) of row r to its place, divided by the scale. */
static void quant_group_row(uint32_t format, const float *x, size_t i, size_t n, float inverse, uint8_t *row) {
    for (size_t j = 0; j < n; j++, i++) {
        float v = x[j] * inverse;
        if (format == MOE_FORMAT_INT8_CHANNEL) row[i] = (uint8_t)(quant_round(v, -127, 127) & 255);
        else if (format == MOE_FORMAT_INT4_GROUP) row[i / 2] |= (uint8_t)((quant_round(v, -8, 7) + 8) << 4 * (i % 2));
        else if (format == MOE_FORMAT_MXFP4_HF) row[i / 2] |= (uint8_t)(quant_e2m1(v) << 4 * (i % 2));
        else { /* e4m3: 448 is the largest */ v = v > 448 ? 448 : v < -448 ? -448 : v;
            moe_quantize(MOE_FORMAT_FP8_CHANNEL, &v, 1, 1, row + i);
        }
    }
}

/* The scale of rows x n weights at x, stored at `to`; returned as it is stored. */
static float quant_group_scale(uint32_t format, const float *x, size_t rows, size_t n, size_t stride, uint8_t *to) {
    float amax = 0, d;
    for (size_t r = 0; r < rows; r++) {
        float a = quant_amax(x + r * stride, n, NULL);
        amax = a > amax ? a : amax;
    }
    if (format == MOE_FORMAT_MXFP8 || format == MOE_FORMAT_MXFP4_HF) {
        *to = quant_e8m0(amax, format == MOE_FORMAT_MXFP8 ? 448.0f : 6.0f);
        return ldexpf(1, (int)*to - 127);
    }
    if (format == MOE_FORMAT_INT4_GROUP) d = quant_scale(x, (int)n, -8, 7, NULL);
    else d = amax / (format == MOE_FORMAT_INT8_CHANNEL ? 127.0f : 448.0f);
    quant_store_f32(to, d);
    return d;
}

/* A whole matrix of any format into quant_size().total bytes of memory; m describes it. scale2, needed by the nvfp4
   formats only,
   is four more bytes that the caller keeps (NULL: without, which wastes small weights). */
static moe_status quant_matrix(uint32_t format, const float *src, size_t rows, size_t k, void *memory, float *scale2,
                               moe_matrix *m) {
    quant_sizes z = quant_size(format, rows, k);
    uint8_t *to = (uint8_t *)memory, *scales = to + z.weights;
    memset(m, 0, sizeof *m);
    if (!z.total) return MOE_ERR_BLOCK;
    for (size_t j = 0; j < rows * k; j++)
        if (!(fabsf(src[j]) <= 3.0e38f)) return MOE_ERR_VALUE;
    m->format = format, m->data = to;
    memset(to, 0, z.total);
    int nvfp4 = format == MOE_FORMAT_NVFP4 || format == MOE_FORMAT_NVFP4_HF;
    float all = nvfp4 && scale2 ? quant_amax(src, rows * k, NULL) / (448.0f * 6.0f) : 1;
    if (!(all > 0)) all = 1;
    if (nvfp4 && scale2) {
        quant_store_f32((uint8_t *)scale2, all);
        m->scale2.type = MOE_TYPE_F32, m->scale2.data = scale2;
    }
    if (z.scales)
        m->scale.type = z.scale_type, m->scale.data = scales, m->scale.rows = z.rows, m->scale.cols = z.cols;
    if (nvfp4) {
        size_t n = format == MOE_FORMAT_NVFP4 ? 64 : 16;
        for (size_t j = 0; j < rows * k; j += n) {
            float x[64];
            int q[16];
            for (size_t i = 0; i < n; i++) x[i] = src[j + i] / all;
            if (n == 64) quant_nvfp4(x, to + j / 64 * 36);
            else {
                scales[j / 16] = quant_nvfp4_scale(x, q);
                for (size_t i = 0; i < 8; i++) to[j / 2 + i] = (uint8_t)(q[2 * i] | q[2 * i + 1] << 4);
            }
        }
        return MOE_OK;
    }
    if (!z.scales) return quant_rows(format, src, rows, k, to);
    size_t line = moe_row_bytes(format, k), item = z.scale_type == MOE_TYPE_F32 ? 4 : 1,
           width = z.cols >= k ? k : z.cols;
    for (size_t r = 0; r < rows; r += z.rows)
        for (size_t i = 0; i < k; i += width, scales += item) {
            size_t n = k - i < width ? k - i : width, height = rows - r < z.rows ? rows - r : z.rows;
            float d = quant_group_scale(format, src + r * k + i, height, n, k, scales),
                  inverse = d > 0 || d < 0 ? 1 / d : 0;
            for (size_t t = 0; t < height; t++)
                quant_group_row(format, src + (r + t) * k + i, i, n, inverse, to + (r + t) * line);
        }
    return MOE_OK;
}

/* -- A whole layer ----------------------------------------------------------------------------------------------- */

typedef struct quant_memory { /* what quant_desc allocated */
    void *first;
} quant_memory;

static void quant_free(quant_memory *memory) {
    while (memory->first) {
        void *next;
        memcpy(&next, memory->first, sizeof next);
        free(memory->first);
        memory->first = next;
    }
}
static void *quant_alloc(quant_memory *memory, size_t bytes) {
    uint8_t *p = (uint8_t *)malloc(bytes + 64);
    if (!p) return NULL;
    memcpy(p, &memory->first, sizeof memory->first);
    memory->first = p;
    return p + 64;
}

/* The matrices of n experts in another format; biases stay. */
static int quant_bank(moe_matrix *m, const char *name, uint32_t n, size_t rows, size_t k, uint32_t format,
                      quant_memory *memory, char err[512]) {
    if (!m->format) return 0;
    quant_sizes z = quant_size(format, rows, k);
    if (!z.total) {
        snprintf(err, 512, "%s: rows of %zu are no whole blocks of %s", name, k, moe_format_name(format));
        return -1;
    }
    const void **all = (const void **)quant_alloc(memory, n * (sizeof *all + sizeof(void *)));
    float *values = rows <= SIZE_MAX / 8 / k ? (float *)malloc(rows * k * sizeof *values) : NULL;
    moe_array bias = m->bias;
    moe_matrix one, out;
    const char *why = all && values ? NULL : "out of memory";
    memset(&out, 0, sizeof out);
    for (uint32_t e = 0; !why && e < n; e++) {
        uint8_t *to = (uint8_t *)quant_alloc(memory, z.total + 64);
        moe_status s = to ? moe_dequantize(m, e, n, rows, k, 0, rows, values) : MOE_OK;
        if (to && !s) s = quant_matrix(format, values, rows, k, to, (float *)(void *)(to - 16), &one);
        if (!to) why = "out of memory";
        else if (s) why = moe_status_text(s);
        else all[e] = to, all[n + e] = to - 16, out = one;
    }
    free(values);
    if (why) {
        snprintf(err, 512, "%s to %s: %s", name, moe_format_name(format), why);
        return -1;
    }
    out.data = NULL, out.expert = (const void *const *)all, out.bias = bias;
    if (out.scale.type) out.scale.data = NULL, out.scale.expert = out.expert, out.scale.offset = z.weights;
    if (out.scale2.type) out.scale2.data = NULL, out.scale2.expert = (const void *const *)all + n;
    *m = out;
    return 0;
}

/* Converts the experts of a layer, routed and shared. 0, or -1 and one line in err. Free the memory after the last
   use of desc. */
static int quant_desc(moe_desc *d, uint32_t format, quant_memory *memory, char err[512]) {
    size_t in = d->latent.d ? d->latent.d : d->d_model, ff = d->d_ff, sff = d->shared.d_ff, model = d->d_model;
    uint32_t n = d->expert_count ? d->expert_count : d->n_experts, shared = d->shared.count ? d->shared.count : 1;
    if (quant_bank(&d->gate, "gate", n, ff, in, format, memory, err) ||
        quant_bank(&d->up, "up", n, ff, in, format, memory, err) ||
        quant_bank(&d->down, "down", n, in, ff, format, memory, err))
        return -1;
    if (!sff) return 0;
    return quant_bank(&d->shared.gate, "shared gate", shared, sff, model, format, memory, err) ||
                   quant_bank(&d->shared.up, "shared up", shared, sff, model, format, memory, err) ||
                   quant_bank(&d->shared.down, "shared down", shared, model, sff, format, memory, err)
               ? -1
               : 0;
}

#endif /* QUANTIZE_H */
