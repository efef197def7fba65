/* test_tiers.c: every operation of every SIMD tier that this machine can run, bit for bit against plain-C definitions written
   down here. Weights and prepared rows end or begin at guard pages, so that a read beyond them is a crash.
   cc -std=c11 -O2 -o test_tiers test_tiers.c -lm && ./test_tiers */
#define _DEFAULT_SOURCE
#define MOE_IMPLEMENTATION
#include "../moe.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include "guarded.h"

static int n_passed, n_failed, n_skipped;
static void check(int ok, const char *name, const char *why, ...) {
    if (ok) {
        n_passed++;
        return;
    }
    va_list args;
    va_start(args, why);
    if (n_failed++ < 50) printf("FAIL %s: ", name), vprintf(why, args), printf("\n");
    va_end(args);
}

/* ---- random numbers ---------------------------------------------------------------------------------- */

static uint64_t seed = 88172645463325252u;
static uint32_t random32(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return (uint32_t)(seed >> 16);
}
static float random_float(void) { return (float)(int32_t)random32() / 2147483648.0f; }

/* ---- definitions ------------------------------------------------------------------------------------------------------- */

static float tree16(const float *lanes) {
    float a[16];
    memcpy(a, lanes, sizeof a);
    for (int step = 8; step; step >>= 1)
        for (int l = 0; l < step; l++) a[l] = a[l] + a[l + step];
    return a[0] + 0.0f;
}
static float define_dot_f32(const float *w, const float *x, size_t k) {
    float a[16] = {0};
    for (size_t i = 0; i < k; i++) a[i % 16] = fmaf(w[i], x[i], a[i % 16]);
    return tree16(a);
}
static float flush(float f) { return (moei_bits(f) & 0x7f800000u) == 0 ? moei_float(moei_bits(f) & 0x80000000u) : f; }
static float define_to_bf16(uint32_t tier, float f) { /* VCVTNE2PS2BF16 reads subnormals as zero, BFCVTN does not */
    return moei_bf16(moei_to_bf16(tier == MOE_TIER_NEONBF16 ? f : flush(f)));
}
/* a + b rounded to odd: toward zero, and then the last bit is set if that was not exact. Subnormal numbers are zeros. */
static float add_odd(float x, float y) {
    double a = (double)x, b = (double)y, s = a + b, t = s - a, rest = (a - (s - t)) + (b - t);
    float f = (float)s;
    if (!(fabs(s) < 3.4028236692093846e38)) return (float)(s * 1.0e300); /* 2^128 */
    if ((double)f == s && rest == 0) return flush(f);
    double away = (double)f == s ? -rest : (double)f - s;
    return flush(moei_float((moei_bits(f) - (isinf(f) || (f > 0) == (away > 0))) | 1));
}
/* BFDOT: the products are exact or out of range; their sum and the sum with it are rounded to odd. */
static float define_bfdot(float acc, float w0, float x0, float w1, float x1) {
    return add_odd(acc, add_odd(flush(flush(w0) * flush(x0)), flush(flush(w1) * flush(x1))));
}
/* VDPBF16PS: the odd product first, each step fused, subnormals in and out are zeros. */
static float define_vdpbf16ps(float acc, float w0, float x0, float w1, float x1) {
    return flush(fmaf(flush(w0), flush(x0), flush(fmaf(flush(w1), flush(x1), acc))));
}
static float define_dot_bf16(uint32_t tier, const float *w, const float *x, size_t k) {
    float a[16] = {0};
    for (size_t i = 0; i < k; i += 2) {
        float *l = &a[i / 2 % 16], w0 = define_to_bf16(tier, w[i]), x0 = define_to_bf16(tier, x[i]), w1 = 0, x1 = 0;
        if (i + 1 < k) w1 = define_to_bf16(tier, w[i + 1]), x1 = define_to_bf16(tier, x[i + 1]);
        *l = tier == MOE_TIER_NEONBF16 ? define_bfdot(*l, w0, x0, w1, x1) : define_vdpbf16ps(*l, w0, x0, w1, x1);
    }
    return tree16(a);
}
static int same_float(float a, float b) { return moei_bits(a) == moei_bits(b) || (a != a && b != b); }

/* ---- one arithmetic ---------------------------------------------------------------------------------------------------- */

enum { ROWS = 32, TOKENS = 33, K_MAX = 4200 };
typedef struct subject {
    const char *name;
    const moei_arith *arith;
    int parity; /* of prepared rows: even values, then odd ones */
} subject;
static float weight[ROWS][K_MAX], token[TOKENS][K_MAX], expect[TOKENS][ROWS], got[TOKENS][ROWS + 3];
static const char *const format_names[] = {"none",
#define MOE_X(id, name, n, bytes, rows, cols) name,
                                           MOE_FORMATS(MOE_X)
#undef MOE_X
};
static const float untouched = -123.5f;

/* Tokens: mostly plain numbers; some have a NaN, an Inf, a huge value, subnormals or signed zeros. */
static void fill_tokens(size_t k) {
    for (int t = 0; t < TOKENS; t++)
        for (size_t i = 0; i < k; i++) token[t][i] = random_float();
    token[3][random32() % k] = moei_float(0x7fc00001u);
    token[5][random32() % k] = moei_float(0xff800000u);
    token[6][random32() % k] = 3.0e38f;
    for (size_t i = 0; i < k; i++) {
        token[7][i] = moei_float(random32() & 0x807fffffu);
        token[8][i] = random32() & 1 ? -0.0f : 0.0f;
    }
}
/* Weights that the format holds exactly, and their bytes. */
static void put_weight(uint32_t format, uint8_t *p, float f, float *exact) {
    uint32_t u = moei_bits(f);
    if (format == MOE_FORMAT_F16) u = moei_to_f16(f);
    if (format == MOE_FORMAT_BF16) u = moei_to_bf16(f);
    memcpy(p, &u, format == MOE_FORMAT_F32 ? 4 : 2);
    *exact = format == MOE_FORMAT_F32 ? f : format == MOE_FORMAT_F16 ? moei_f16((uint16_t)u) : moei_bf16((uint16_t)u);
}
static float random_weight(void) {
    uint32_t r = random32();
    if (r % 64 == 0) return 0.0f * (r & 64 ? -1.0f : 1.0f);
    if (r % 64 == 1) return random_float() * 1.0e-7f; /* a subnormal f16 */
    if (r % 64 == 2) return moei_float(random32() & 0x807fffffu);
    return random_float();
}

static guarded prepare_tokens(const subject *s, size_t k, int at_end, const void **x) {
    size_t bytes = s->arith->row_bytes(k), stride = bytes + 64;
    guarded g = guarded_new(stride * (TOKENS - 1) + bytes, at_end);
    for (int t = 0; t < TOKENS; t++) {
        uint8_t *row = g.data + stride * (size_t)(TOKENS - 1 - t);
        memset(row, 0xff, bytes); /* NaN: padding must be written */
        for (size_t k0 = 0; k0 < k; k0 += 32 * 13) {
            size_t n = k - k0 < 32 * 13 ? k - k0 : 32 * 13;
            s->arith->prepare(row, token[t] + k0, k0, n, k);
        }
        x[t] = row;
    }
    return g;
}
static void check_prepared(const subject *s, size_t k, const void *const *x) {
    size_t bytes = s->arith->row_bytes(k), bad = 0;
    check(bytes % 64 == 0, s->name, "row_bytes(%zu) = %zu", k, bytes);
    for (int t = 0; t < TOKENS; t++)
        for (size_t i = 0; i < bytes / (s->arith->compute == MOE_COMPUTE_BF16 ? 2 : 4); i++) {
            size_t at = s->parity ? i / 2 + i % 2 * ((k + 15) / 16 * 8) : i;
            float f = i < k ? token[t][i] : 0.0f, g;
            uint16_t h;
            memcpy(&h, (const uint8_t *)x[t] + 2 * at, 2);
            if (s->arith->compute == MOE_COMPUTE_BF16)
                g = flush(moei_bf16(h)), f = flush(define_to_bf16(s->arith->tier, f));
            else memcpy(&g, (const uint8_t *)x[t] + 4 * at, 4);
            bad += !same_float(f, g);
        }
    check(bad == 0, s->name, "prepare: %zu wrong values, k = %zu", bad, k);
}
static void define_all(const subject *s, size_t k) {
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS; r++)
            expect[t][r] = s->arith->compute == MOE_COMPUTE_BF16
                               ? define_dot_bf16(s->arith->tier, weight[r], token[t], k)
                               : define_dot_f32(weight[r], token[t], k);
}
static void clear_out(void) {
    for (int t = 0; t < TOKENS; t++)
        for (int r = 0; r < ROWS + 3; r++) got[t][r] = untouched;
}
/* got holds n_tokens x n_rows results of rows row0 .. and nothing else. */
static size_t count_wrong(uint32_t row0, uint32_t n_rows, uint32_t n_tokens) {
    size_t wrong = 0;
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t r = 0; r < ROWS + 3; r++) {
            float want = t < n_tokens && r < n_rows ? expect[t][row0 + r] : untouched;
            wrong += !same_float(want, got[t][r]);
        }
    return wrong;
}

static const uint32_t row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 32};
static const uint32_t token_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 33};
static const size_t depths[] = {1, 7, 15, 16, 17, 31, 33, 100, 768, 1000, 2048, 2053, 4200};

/* The first n tokens as the arithmetic wants them; exactly as many bytes as they need. */
static guarded pack_tokens(const subject *s, const void *const *x, const void **packed, uint32_t n, size_t k,
                           int at_end) {
    guarded g = guarded_new(n * s->arith->row_bytes(k), at_end);
    memcpy(packed, x, n * sizeof *x);
    moei_pack(s->arith, packed, n, k, g.data);
    return g;
}
/* Values packed as they come, a block at a time, are what prepared rows are packed to. */
static void check_group(const subject *s, size_t k, const void *const *x, int at_end) {
    const moei_packing *p = s->arith->packing;
    for (uint32_t n = 1; p && p->prepare && n <= p->group; n++) {
        size_t bytes = n * s->arith->row_bytes(k);
        guarded a = guarded_new(bytes, at_end), b = guarded_new(bytes, at_end);
        memset(a.data, 0xff, bytes), memset(b.data, 0x55, bytes);
        p->pack(a.data, x, n, 0, k, k);
        for (size_t k0 = 0; k0 < k; k0 += 32)
            p->prepare(b.data, token[0] + k0, MOEI_COUNT(token[0]), n, k0, k - k0 < 32 ? k - k0 : 32, k);
        check(!memcmp(a.data, b.data, bytes), s->name, "values packed at once, %u tokens, k = %zu", n, k);
        guarded_free(&a), guarded_free(&b);
    }
}
static void check_dot(const subject *s, uint32_t format, const moei_rows *w, uint32_t n_rows, const void *const *x) {
    for (size_t i = 0; i < MOEI_COUNT(token_counts) && token_counts[i] <= s->arith->ops[format].dot_max; i++) {
        const void *tokens[TOKENS];
        guarded packed = pack_tokens(s, x, tokens, token_counts[i], w->k, (int)i & 1);
        clear_out();
        s->arith->ops[format].dot(w, n_rows, tokens, token_counts[i], got[0], ROWS + 3);
        guarded_free(&packed);
        size_t wrong = count_wrong(w->row0, n_rows, token_counts[i]);
        check(wrong == 0, s->name, "dot %s: %zu wrong, rows %u, tokens %u, k %zu", format_names[format], wrong,
              n_rows, token_counts[i], w->k);
    }
}
/* Through a panel that is decoded already, or as tokens pass. */
static void check_products(const subject *s, uint32_t format, const moei_rows *w, uint32_t n_rows,
                           const void *const *x, int at_end, uint8_t *panel, int on_the_way) {
    for (size_t i = 0; i < MOEI_COUNT(token_counts); i++) {
        const void *tokens[TOKENS];
        guarded packed = pack_tokens(s, x, tokens, token_counts[i], w->k, at_end);
        clear_out();
        if (on_the_way) moei_through_panel(s->arith, w, n_rows, tokens, token_counts[i], got[0], ROWS + 3, panel);
        else s->arith->panel(panel, w, n_rows, tokens, token_counts[i], got[0], ROWS + 3);
        guarded_free(&packed);
        size_t wrong = count_wrong(w->row0, n_rows, token_counts[i]);
        check(wrong == 0, s->name, "panel %s: %zu wrong, rows %u, tokens %u, k %zu%s", format_names[format], wrong,
              n_rows, token_counts[i], w->k, on_the_way ? ", decoded on the way" : "");
    }
}
/* Where the value of a prepared row at byte `at` lies in a panel. Tiles of AVX2 have 4 rows in turns, 32 bytes each. */
static size_t panel_at(const subject *s, uint32_t r, size_t row, size_t at) {
    if (!s->arith->tiles || !s->arith->tiles->put) return r * row + at;
    return r / 4 * 4 * row + at / 32 * 128 + r % 4 * 32 + at % 32;
}
static void check_panel(const subject *s, uint32_t format, const moei_rows *w, uint32_t n_rows, const void *const *x,
                        int at_end) {
    size_t bytes = s->arith->panel_bytes(n_rows, w->k), row = s->arith->row_bytes(w->k), wrong = 0;
    const uint32_t tile = s->arith->tiles && s->arith->tiles->put ? s->arith->tiles->rows : 1;
    guarded panel = guarded_new(bytes, at_end);
    uint8_t *one = (uint8_t *)malloc(row);
    check(bytes == row * ((n_rows + tile - 1) / tile * tile), s->name, "panel_bytes(%u, %zu) = %zu", n_rows, w->k,
          bytes);
    memset(panel.data, 0xff, bytes);
    moei_decode_fn *decode = s->arith->ops[format].decode;
    if (decode && tile == 1) decode(w, n_rows, panel.data);
    if (decode && tile > 1)
        for (uint32_t r = 0; r < n_rows; r += tile) {
            moei_rows some = *w;
            some.row0 += r;
            decode(&some, n_rows - r < tile ? n_rows - r : tile, panel.data + r * row);
        }
    if (!decode) moei_decode_default(s->arith, w, n_rows, panel.data);
    for (uint32_t r = 0; r < n_rows; r++) {
        s->arith->prepare(one, weight[w->row0 + r], 0, w->k, w->k);
        for (size_t i = 0; i < row; i += 4) {
            uint32_t a, b;
            memcpy(&a, one + i, 4), memcpy(&b, panel.data + panel_at(s, r, row, i), 4);
            if (s->arith->compute == MOE_COMPUTE_F32) wrong += !same_float(moei_float(a), moei_float(b));
            else
                wrong += !same_float(moei_bf16((uint16_t)a), moei_bf16((uint16_t)b)) ||
                         !same_float(moei_bf16((uint16_t)(a >> 16)), moei_bf16((uint16_t)(b >> 16)));
        }
    }
    check(wrong == 0, s->name, "decode %s: %zu wrong, rows %u, k %zu", format_names[format], wrong, n_rows, w->k);
    check_products(s, format, w, n_rows, x, at_end, panel.data, 0);
    memset(panel.data, 0xff, bytes);
    if (s->arith->tiles) check_products(s, format, w, n_rows, x, at_end, panel.data, 1);
    free(one);
    guarded_free(&panel);
}
static void check_views(const subject *s, uint32_t format, moei_rows *w, const void *const *x, int at_end) {
    define_all(s, w->k);
    for (size_t i = 0; i < MOEI_COUNT(row_counts); i++) {
        uint32_t n = row_counts[i];
        w->row0 = at_end ? ROWS - n : 0;
        w->prefetch = i & 1 ? w->data : NULL, w->prefetch_bytes = w->k * n;
        w->next_x = i & 2 ? (const uint8_t *)x[0] : NULL, w->next_x_bytes = w->k * n;
        if (s->arith->ops[format].dot) check_dot(s, format, w, n, x);
        if (s->arith->panel && (i % 3 == 0 || s->arith->ops[format].decode)) check_panel(s, format, w, n, x, at_end);
    }
}
static void check_dense(const subject *s, uint32_t format, size_t k, int at_end) {
    const void *x[TOKENS];
    size_t size = format == MOE_FORMAT_F32 ? 4 : 2;
    moei_rows w;
    memset(&w, 0, sizeof w);
    w.ask = s->arith->ask, w.whole = s->arith->whole;
    w.row_stride = k * size + 1 + 2 * (k & 1); /* odd: every alignment occurs */
    guarded g = guarded_new(w.row_stride * (ROWS - 1) + k * size, at_end);
    w.data = g.data, w.k = k, w.format = format;
    fill_tokens(k);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < k; i++)
            put_weight(format, g.data + r * w.row_stride + i * size, random_weight(), &weight[r][i]);
    guarded tokens = prepare_tokens(s, k, at_end, x);
    check_prepared(s, k, x);
    check_group(s, k, x, at_end);
    check_views(s, format, &w, x, at_end);
    guarded_free(&tokens), guarded_free(&g);
}

/* FP8 with the scale grids that occur, and one whose columns are no multiple of 16. */
static void put_scale(uint32_t type, uint8_t *p, float *exact) {
    uint32_t u = 0;
    *exact = random_float() + 1.5f;
    if (type == MOE_TYPE_F32) u = moei_bits(*exact);
    if (type == MOE_TYPE_BF16) u = moei_to_bf16(*exact), *exact = moei_bf16((uint16_t)u);
    if (type == MOE_TYPE_F16) u = moei_to_f16(*exact), *exact = moei_f16((uint16_t)u);
    if (type == MOE_TYPE_E8M0) u = 120 + random32() % 12, *exact = ldexpf(1.0f, (int)u - 127);
    if (type == MOE_TYPE_E4M3) u = 40 + random32() % 40, *exact = moei_e4m3((uint8_t)u);
    memcpy(p, &u, type == MOE_TYPE_F32 ? 4 : type == MOE_TYPE_BF16 || type == MOE_TYPE_F16 ? 2 : 1);
}
static float define_e4m3(uint8_t b) {
    int e = b >> 3 & 15, m = b & 7;
    float f = (b & 127) == 127 ? nanf("") : e ? ldexpf(1.0f + (float)m / 8, e - 7) : ldexpf((float)m, -9);
    return b & 128 ? -f : f;
}
static void check_fp8(const subject *s, uint32_t format, size_t k, uint32_t type, uint32_t rows, uint32_t cols,
                      int at_end) {
    static float scale[ROWS][K_MAX];
    static const size_t sizes[] = {0, 4, 2, 2, 1, 1};
    const void *x[TOKENS];
    size_t n_cols = type ? (k + cols - 1) / cols : 0;
    moei_rows w;
    memset(&w, 0, sizeof w);
    w.ask = s->arith->ask, w.whole = s->arith->whole;
    w.row_stride = k + 3, w.k = k, w.format = format;
    guarded g = guarded_new(w.row_stride * (ROWS - 1) + k, at_end), grid = guarded_new(ROWS * n_cols * 4 + 4, 1);
    w.data = g.data;
    w.scale.type = type, w.scale.rows = rows, w.scale.cols = cols, w.scale.row_stride = n_cols * sizes[type];
    w.scale.data = type ? grid.data + 1 : NULL; /* unaligned */
    for (size_t r = 0; type && r < (ROWS + rows - 1) / rows; r++)
        for (size_t i = 0; i < n_cols; i++)
            put_scale(type, grid.data + 1 + r * w.scale.row_stride + i * sizes[type], &scale[r][i]);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t i = 0; i < k; i++) {
            uint8_t b = (uint8_t)(random32() % 256);
            if ((b & 127) == 127 && random32() % 64) b = 0x38;
            g.data[r * w.row_stride + i] = b;
            weight[r][i] = type ? define_e4m3(b) * scale[r / rows][i / cols] : define_e4m3(b);
        }
    if (type == MOE_TYPE_F32 && k > 200) { /* the ends of the range of f32 scales */
        static const float edges[] = {1.0e-38f, 2.0e-42f, 3.0e38f, INFINITY};
        for (size_t e = 0; e < 4 && e < n_cols; e++) {
            memcpy(grid.data + 1 + 4 * e, &edges[e], 4);
            for (size_t r = 0; r < rows && r < ROWS; r++)
                for (size_t i = e * cols; i < (e + 1) * cols && i < k; i++)
                    weight[r][i] = define_e4m3(g.data[r * w.row_stride + i]) * edges[e];
        }
    }
    if (type == MOE_TYPE_E8M0 && rows == 1 &&
        n_cols > 1) { /* those between which exponents may be added, and the last ones */
        static const uint8_t edges[] = {0, 9, 10, 246, 247, 254, 255};
        for (size_t e = 0; e < MOEI_COUNT(edges) && 5 * e < ROWS; e++) {
            grid.data[1 + 5 * e * w.scale.row_stride + e % n_cols] = edges[e];
            for (size_t i = e % n_cols * cols; i < (e % n_cols + 1) * cols && i < k; i++)
                weight[5 * e][i] = define_e4m3(g.data[5 * e * w.row_stride + i]) * moei_e8m0(edges[e]);
        }
    }
    fill_tokens(k);
    guarded tokens = prepare_tokens(s, k, at_end, x);
    check_views(s, format, &w, x, at_end);
    guarded_free(&tokens), guarded_free(&g), guarded_free(&grid);
}

/* Whether the panel's memory was used for sums, the last tile's as well, and beyond them for no more than a tile's part. */
static int sums_waited(const guarded *panel, size_t bytes, size_t part) {
    const size_t last = (MOEI_LONG_TILES - 16) * (size_t)MOEI_TILE_SUMS * 4, room = 4 * (MOEI_LONG_SUMS + part);
    size_t waited = 0, more = 0;
    for (size_t i = last; i < MOEI_LONG_SUMS * 4 && i < bytes; i++) waited += panel->data[i] != 0xff;
    for (size_t i = room; i < bytes; i++) more += panel->data[i] != 0xff;
    return waited && !more;
}
/* Rows so long that sums wait in memory: as 31 rows at a time, which no tile has enough of, and some rows as defined. */
static void check_long(const subject *s, uint32_t format, size_t k) {
    enum { N_ROWS = 149, N_TOKENS = 97, STRIDE = N_ROWS + 3 };
    static const uint32_t counts[] = {25, 26, 48, 49, 97}, rows[] = {128, 131, N_ROWS}, some[] = {0, 7, 8};
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 2, bytes = s->arith->row_bytes(k),
                 panel_bytes = s->arith->panel_bytes(MOEI_UP_ROWS, k);
    const moei_ops *ops = &s->arith->ops[format];
    const void *x[N_TOKENS], *packed[N_TOKENS];
    moei_rows w;
    if (ops->dot_max < N_TOKENS && !(ops->decode && s->arith->tiles)) return;
    memset(&w, 0, sizeof w);
    w.k = k, w.format = format, w.row_stride = k * size + 2;
    guarded g = guarded_new(w.row_stride * (N_ROWS - 1) + k * size, 1), panel = guarded_new(panel_bytes, 1);
    guarded prepared = guarded_new(N_TOKENS * bytes, 1), group = guarded_new(N_TOKENS * bytes, 1);
    float *wf = (float *)calloc(N_ROWS * k, 4), *xf = (float *)calloc(N_TOKENS * k, 4);
    float *have = (float *)calloc(N_TOKENS * STRIDE, 4), *want = (float *)calloc(N_TOKENS * STRIDE, 4);
    w.data = g.data;
    for (size_t i = 0; i < N_ROWS * k; i++)
        put_weight(format, g.data + i / k * w.row_stride + i % k * size, random_weight(), &wf[i]);
    for (size_t i = 0; i < N_TOKENS * k; i++) xf[i] = random_float();
    for (size_t i = 0; i < N_TOKENS; i++)
        x[i] = prepared.data + i * bytes, s->arith->prepare(prepared.data + i * bytes, xf + i * k, 0, k, k);
    for (size_t c = 0; c < MOEI_COUNT(counts) * MOEI_COUNT(rows); c++) {
        uint32_t n = counts[c / MOEI_COUNT(rows)], n_rows = rows[c % MOEI_COUNT(rows)];
        memcpy(packed, x, sizeof x), moei_pack(s->arith, packed, n, k, group.data);
        for (size_t i = 0; i < N_TOKENS * STRIDE; i++) have[i] = want[i] = untouched;
        w.prefetch = NULL;
        for (uint32_t r = 0, step; r < n_rows; r += step) {
            w.row0 = r, step = moei_min32(n_rows - r, MOEI_UP_ROWS - 1);
            moei_multiply(s->arith, &w, step, packed, n, want + r, STRIDE, panel.data);
        }
        w.row0 = 0, w.prefetch = c & 1 ? w.data : NULL;
        memset(panel.data, 0xff, panel_bytes);
        moei_multiply(s->arith, &w, n_rows, packed, n, have, STRIDE, panel.data);
        const int waited =
                      sums_waited(&panel, panel_bytes,
                                  s->arith->tiles ? s->arith->tiles->rows * moei_long_part(s->arith->tiles, &w) : 0),
                  wait = panel_bytes >= MOEI_LONG_SUMS * 4;
        size_t wrong = 0, undefined = 0;
        for (size_t i = 0; i < N_TOKENS * STRIDE; i++) wrong += !same_float(want[i], have[i]);
        for (size_t i = 0; i < n * MOEI_COUNT(some); i++) {
            size_t t = i % n, r = n_rows - 1 - some[i / n] % n_rows;
            float f = s->arith->compute == MOE_COMPUTE_BF16
                          ? define_dot_bf16(s->arith->tier, wf + r * k, xf + t * k, k)
                          : define_dot_f32(wf + r * k, xf + t * k, k);
            undefined += !same_float(f, have[t * STRIDE + r]);
        }
        check(!wrong && !undefined && waited == wait, s->name,
              "long rows %s: %zu unlike, %zu wrong, sums waited: %d, rows %u, tokens %u, k %zu", format_names[format],
              wrong, undefined, waited, n_rows, n, k);
    }
    free(wf), free(xf), free(have), free(want);
    guarded_free(&g), guarded_free(&panel), guarded_free(&prepared), guarded_free(&group);
}
/* Long rows that have to go through panels whatever their length: transposed ones and those with scales. As 31 rows at a time. */
static void check_long_panels(const subject *s, uint32_t format, int transposed) {
    enum { N_ROWS = 131, N_TOKENS = 31, K = MOEI_LONG + 101 };
    const size_t size = format == MOE_FORMAT_F32 ? 4 : 1, bytes = s->arith->row_bytes(K);
    const void *x[N_TOKENS];
    static float xf[K], have[N_TOKENS * N_ROWS], want[N_TOKENS * N_ROWS];
    moei_rows w;
    if (!s->arith->panel) return;
    memset(&w, 0, sizeof w);
    w.k = K, w.format = format, w.row_stride = transposed ? size : K * size,
    w.k_stride = transposed ? N_ROWS * size : 0;
    guarded g = guarded_new(N_ROWS * K * size, 1), panel = guarded_new(s->arith->panel_bytes(MOEI_UP_ROWS, K), 1);
    guarded prepared = guarded_new(N_TOKENS * bytes, 1), group = guarded_new(N_TOKENS * bytes, 1);
    w.data = g.data;
    for (size_t i = 0; i < N_ROWS * K; i++) {
        float v = random_float();
        if (format == MOE_FORMAT_F32) memcpy(g.data + 4 * i, &v, 4);
        else g.data[i] = (uint8_t)(random32() & 0xb7); /* E4M3 below 2^0 */
    }
    for (size_t t = 0; t < N_TOKENS; t++) {
        for (size_t i = 0; i < K; i++) xf[i] = random_float();
        x[t] = prepared.data + t * bytes, s->arith->prepare(prepared.data + t * bytes, xf, 0, K, K);
    }
    moei_pack(s->arith, x, N_TOKENS, K, group.data);
    for (uint32_t r = 0, step; r < N_ROWS; r += step) {
        w.row0 = r, step = moei_min32(N_ROWS - r, MOEI_UP_ROWS - 1);
        moei_multiply(s->arith, &w, step, x, N_TOKENS, want + r, N_ROWS, panel.data);
    }
    w.row0 = 0, moei_multiply(s->arith, &w, N_ROWS, x, N_TOKENS, have, N_ROWS, panel.data);
    size_t wrong = 0;
    for (size_t i = 0; i < N_TOKENS * N_ROWS; i++) wrong += !same_float(want[i], have[i]) || want[i] == 0;
    check(!wrong, s->name, "long rows by panels: %zu wrong, format %u, transposed %d", wrong, format, transposed);
    guarded_free(&g), guarded_free(&panel), guarded_free(&prepared), guarded_free(&group);
}
static MOEI_UNUSED void check_arith(const moei_arith *arith, const char *name, int parity) {
    subject s = {name, arith, parity};
    if (!(moe_tiers() >> arith->tier & 1)) {
        printf("not exercised: %s\n", name), n_skipped++;
        return;
    }
    for (size_t i = 0; i < MOEI_COUNT(depths); i++)
        for (uint32_t format = MOE_FORMAT_F32; format <= MOE_FORMAT_BF16; format++)
            check_dense(&s, format, depths[i], (int)(i + format) & 1),
                check_dense(&s, format, depths[i], (int)(i + format + 1) & 1);
    for (uint32_t format = MOE_FORMAT_F32; format <= MOE_FORMAT_BF16; format++) {
        check_long(&s, format, MOEI_LONG + 217);
        check_long(&s, format, 5 * 960 + 1); /* five parts, and one value more */
        if (arith->compute == MOE_COMPUTE_BF16)
            check_long(&s, format, 7720); /* a panel of bf16 has room for the sums */
    }
    check_long_panels(&s, MOE_FORMAT_F32, 1), check_long_panels(&s, MOE_FORMAT_FP8_CHANNEL, 0);
    check_fp8(&s, MOE_FORMAT_FP8_CHANNEL, 1000, MOE_TYPE_NONE, 1, UINT32_MAX, 1);
    check_fp8(&s, MOE_FORMAT_FP8_CHANNEL, 7, MOE_TYPE_NONE, 1, UINT32_MAX, 0);
    check_fp8(&s, MOE_FORMAT_FP8_BLOCK, 1000, MOE_TYPE_F32, 128, 128, 1);
    check_fp8(&s, MOE_FORMAT_FP8_BLOCK, 2048, MOE_TYPE_F32, 4, 64, 0);
    check_fp8(&s, MOE_FORMAT_FP8_BLOCK, 2053, MOE_TYPE_BF16, 8, 128, 1);
    check_fp8(&s, MOE_FORMAT_FP8_BLOCK, 333, MOE_TYPE_F16, 3, 24, 1);
    check_fp8(&s, MOE_FORMAT_FP8_BLOCK, 100, MOE_TYPE_E4M3, 1, 1, 0);
    check_fp8(&s, MOE_FORMAT_FP8_BLOCK, 100, MOE_TYPE_F32, 1, 48, 1);
    check_fp8(&s, MOE_FORMAT_MXFP8, 768, MOE_TYPE_E8M0, 1, 32, 1);
    check_fp8(&s, MOE_FORMAT_MXFP8, 32, MOE_TYPE_E8M0, 1, 32, 0);
    check_fp8(&s, MOE_FORMAT_MXFP8, 2336, MOE_TYPE_E8M0, 1, 32, 1); /* more than one part of scales */
    check_fp8(&s, MOE_FORMAT_FP8_BLOCK, 2100, MOE_TYPE_E8M0, 128, 128, 1);
    check_fp8(&s, MOE_FORMAT_FP8_BLOCK, 4200, MOE_TYPE_F32, 3, 96, 0);
    printf("exercised: %s\n", name);
}

/* ---- elementwise ------------------------------------------------------------------------------------------------------- */

enum { VEC = 1 << 12 };
static float vx[VEC], ve[VEC], vs[VEC], vy[VEC + 2];
static float define_exp(float x) { /* moei_exp with libm's fma */
    float z = x > 89.0f ? 89.0f : x;
    z = z < -104.0f ? -104.0f : z;
    if (x != x) return x;
    float t = fmaf(z, MOEI_LOG2E, MOEI_MAGIC), n = (float)((int32_t)moei_bits(t) - MOEI_MAGIC_BITS);
    float r = fmaf(n, -MOEI_LN2_LO, fmaf(n, -MOEI_LN2_HI, z)), p = MOEI_EXP_C6;
    p = fmaf(p, r, MOEI_EXP_C5), p = fmaf(p, r, MOEI_EXP_C4), p = fmaf(p, r, MOEI_EXP_C3),
    p = fmaf(p, r, MOEI_EXP_C2);
    float square = r * r;
    p = fmaf(p, square, r) + 1.0f;
    return ldexpf(p, (int)n);
}
static size_t count_different(const float *want, const float *have, size_t n) {
    size_t bad = 0;
    for (size_t i = 0; i < n; i++) bad += !same_float(want[i], have[i]);
    return bad;
}
static MOEI_UNUSED void check_exp(const moei_vec *v, const char *name) {
    size_t bad_exp = 0, bad_sigmoid = 0;
    for (uint64_t u = 0; u < 0x100000000u;) {
        for (int i = 0; i < VEC; i++, u += 2131) {
            vx[i] = moei_float((uint32_t)u);
            ve[i] = define_exp(vx[i]);
            vs[i] = 1.0f / (1.0f + define_exp(-vx[i]));
        }
        v->exp(vy, vx, VEC), bad_exp += count_different(ve, vy, VEC);
        v->sigmoid(vy, vx, 1.0f, VEC), bad_sigmoid += count_different(vs, vy, VEC);
    }
    check(bad_exp == 0, name, "exp: %zu wrong", bad_exp);
    check(bad_sigmoid == 0, name, "sigmoid: %zu wrong", bad_sigmoid);
}
/* Every length, in place, at guard pages; nothing beyond is written. */
static void check_lengths(const moei_vec *v, const char *name, size_t n, int at_end) {
    guarded x = guarded_new(n * 4, at_end), y = guarded_new(n * 4, at_end), z = guarded_new(n * 4, at_end);
    float *px = (float *)(void *)x.data, *py = (float *)(void *)y.data, *pz = (float *)(void *)z.data;
    for (size_t i = 0; i < n; i++) px[i] = 9.0f * random_float(), py[i] = random_float(), pz[i] = random_weight();
    for (size_t i = 0; i < n; i++) ve[i] = fmaf(-1.7f, px[i], py[i]);
    v->axpy(py, px, -1.7f, n);
    check(count_different(ve, py, n) == 0, name, "axpy of %zu", n);
    for (size_t i = 0; i < n; i++) ve[i] = fmaf(py[i], px[i], pz[i]);
    v->affine(py, px, pz, n);
    check(count_different(ve, py, n) == 0, name, "affine of %zu", n);
    py[0] = n & 1 ? -HUGE_VALF : py[0], px[n / 2] = n & 2 ? moei_float(0x7fc00000u) : px[n / 2];
    for (size_t i = 0; i < n; i++) ve[i] = (py[i] < -3e38f ? -3e38f : py[i]) * px[i];
    v->times(py, px, n);
    check(count_different(ve, py, n) == 0, name, "times of %zu", n);
    for (int i = 0; i < 4; i++) {
        const float low = i & 1 ? -0.5f : -HUGE_VALF, high = i & 2 ? 0.7f : HUGE_VALF, plus = i == 3 ? 1.0f : -0.0f;
        for (size_t j = 0; j < n; j++)
            py[j] = j % 5 == 1 ? -0.0f : px[j] * 0.2f, ve[j] = (py[j] > high  ? high
                                                                : py[j] < low ? low
                                                                              : py[j]) +
                                                               plus;
        v->clamp(py, low, high, plus, n);
        check(count_different(ve, py, n) == 0, name, "clamp %d of %zu", i, n);
    }
    for (size_t i = 0; i < n; i++) ve[i] = define_exp(px[i]), vs[i] = 1.0f / (1.0f + define_exp(-(-1.702f * px[i])));
    v->sigmoid(py, px, -1.702f, n);
    check(count_different(vs, py, n) == 0, name, "sigmoid of %zu", n);
    v->exp(px, px, n);
    check(count_different(ve, px, n) == 0, name, "exp in place of %zu", n);
    guarded_free(&x), guarded_free(&y), guarded_free(&z);
}
/* All 16-bit values to f32; to 16 bits what lies about halfway between them, small numbers, any numbers. Every length. */
static MOEI_UNUSED void check_16(const moei_vec *v, const char *name) {
    enum { ALL = 65536 };
    static uint16_t h[ALL];
    static float x[ALL];
    size_t bad_read = 0, bad_write = 0, beyond = 0;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        for (uint32_t i = 0; i < ALL; i++) h[i] = (uint16_t)i;
        v->read16(x, h, bf16, ALL);
        for (uint32_t i = 0; i < ALL; i++) bad_read += !same_float(x[i], bf16 ? moei_bf16(h[i]) : moei_f16(h[i]));
        for (uint32_t round = 0; round < 5; round++) {
            const uint32_t half = (bf16 ? 0x8000u : 0x1000u) - 1 + round;
            for (uint32_t i = 0; i < ALL; i++) {
                float f = bf16 ? moei_bf16((uint16_t)i) : moei_f16((uint16_t)i);
                x[i] = round < 3   ? moei_float(moei_bits(f) + half)
                       : round < 4 ? 1e-5f * random_float()
                                   : moei_float(random32());
            }
            v->write16(h, bf16, x, ALL);
            for (uint32_t i = 0; i < ALL; i++) {
                uint16_t want = bf16 ? moei_to_bf16(x[i]) : moei_to_f16(x[i]);
                bad_write += bf16 ? !same_float(moei_bf16(h[i]), moei_bf16(want))
                                  : !same_float(moei_f16(h[i]), moei_f16(want));
            }
        }
        for (size_t n = 0; n < 40; n++) {
            for (size_t i = 0; i < 40; i++) x[i] = (float)i + 1, h[i] = 0x5555;
            v->write16(h, bf16, x, n), v->read16(x + 40, h, bf16, n), x[40 + n] = -1;
            for (size_t i = 0; i < n; i++) bad_write += x[40 + i] != x[i];
            for (size_t i = n; i < 40; i++) beyond += h[i] != 0x5555;
            v->read16(x + 40, h, bf16, n), beyond += x[40 + n] != -1;
        }
    }
    check(!bad_read && !bad_write && !beyond, name, "16 bits: wrong %zu read, %zu written, %zu beyond", bad_read,
          bad_write, beyond);
}
static MOEI_UNUSED void check_vec(const moei_vec *v, const char *name, uint32_t tier) {
    if (!(moe_tiers() >> tier & 1)) {
        printf("not exercised: %s\n", name), n_skipped++;
        return;
    }
    check_exp(v, name);
    check_16(v, name);
    for (size_t n = 1; n < 70; n++) check_lengths(v, name, n, n & 1), check_lengths(v, name, n, !(n & 1));
    printf("exercised: %s\n", name);
}

/* ---- detection --------------------------------------------------------------------------------------------------------- */

static void check_decide(const char *what, const moei_cpuid *id, uint32_t want) {
    uint32_t tiers = moei_cpu_decide(id);
    check(tiers == want, "cpu", "%s: tiers %x, expected %x", what, tiers, want);
}
static void check_cpu(void) {
    const uint32_t c = moe_tier_mask(MOE_TIER_C), avx2 = moe_tier_mask(MOE_TIER_AVX2),
                   avx512 = moe_tier_mask(MOE_TIER_AVX512);
    const uint32_t avxvnni = MOE_TIER_BIT(MOE_TIER_AVXVNNI) | MOEI_ROOM, vnni = MOE_TIER_BIT(MOE_TIER_VNNI);
    const uint32_t bf16 = MOE_TIER_BIT(MOE_TIER_AVX512BF16), amx = MOE_TIER_BIT(MOE_TIER_AMX), intel = MOEI_INTEL,
                   vbmi = MOEI_VBMI, zen = MOEI_ZEN5;
    const uint32_t fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29,
                   leaf1 = fma | osxsave | avx | f16c;
    const uint32_t bmi = 1u << 3 | 1u << 8, b_avx2 = 1u << 5 | bmi,
                   b_avx512 = b_avx2 | 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const uint32_t tiles = 1u << 22 | 1u << 24 | 1u << 25;
    const moei_cpuid nothing = {0, 0, 0, 0, 0, 0, 0, 0};
    moei_cpuid zen5 = {leaf1, b_avx512, 1u << 11, 0, 1u << 4 | 1u << 5, 0xe7, 0, 0x68747541}, id;
    moei_cpuid sapphire = {leaf1, b_avx512, 1u << 11, tiles, 1u << 4 | 1u << 5, 0x600e7, 0x60000, 0x756e6547};
    const moei_cpuid haswell = {leaf1, b_avx2, 0, 0, 0, 7, 0, 0x756e6547},
                     alder_lake = {leaf1, b_avx2, 0, 0, 1u << 4, 7, 0, 0x756e6547};
    const moei_cpuid skylake_x = {leaf1, b_avx512, 0, 0, 0, 0xe7, 0, 0x756e6547},
                     ivy_bridge = {osxsave | avx | f16c, 0, 0, 0, 0, 7, 0, 0x756e6547};
    check_decide("nothing", &nothing, c);
    check_decide("Ivy Bridge", &ivy_bridge, c);
    check_decide("Haswell", &haswell, avx2 | intel);
    check_decide("Alder Lake", &alder_lake, avx2 | intel | avxvnni);
    check_decide("Skylake-X", &skylake_x, avx512 | intel);
    check_decide("Zen 5", &zen5, avx512 | avxvnni | vnni | bf16 | zen);
    id = zen5, id.leaf7_1_eax = 1u << 5;
    check_decide("Zen 4", &id, avx512 | vnni | bf16);
    id = zen5, id.leaf7_ecx |= 1u << 1;
    check_decide("VBMI", &id, avx512 | avxvnni | vnni | bf16 | zen | vbmi);
    id = sapphire, id.leaf7_ecx |= 1u << 1;
    check_decide("VBMI, Intel", &id, avx512 | intel | avxvnni | vnni | bf16 | amx | vbmi);
    id = zen5, id.leaf7_ecx |= 1u << 1, id.leaf7_1_eax = 0;
    check_decide("VBMI, no BF16", &id, avx512 | vnni | vbmi);
    check_decide("Sapphire Rapids, AMX permitted", &sapphire, avx512 | intel | avxvnni | vnni | bf16 | amx);
    id = sapphire, id.permitted = 0x20000;
    check_decide("AMX not permitted", &id, avx512 | intel | avxvnni | vnni | bf16);
    id = sapphire, id.xcr0 = 0xe7;
    check_decide("AMX not saved by the OS", &id, avx512 | intel | avxvnni | vnni | bf16);
    id = zen5, id.xcr0 = 7;
    check_decide("no ZMM state", &id, avx2 | avxvnni);
    id = zen5, id.xcr0 = 3;
    check_decide("no YMM state", &id, c);
    id = zen5, id.leaf1_ecx &= ~osxsave;
    check_decide("no OSXSAVE", &id, c);
    id = zen5, id.leaf1_ecx &= ~fma;
    check_decide("no FMA", &id, c);
    id = zen5, id.leaf1_ecx &= ~f16c;
    check_decide("no F16C", &id, c);
    id = zen5, id.leaf7_ebx &= ~bmi;
    check_decide("no BMI", &id, c);
    id = zen5, id.leaf7_ebx &= ~(1u << 30);
    check_decide("no AVX512BW", &id, avx2 | avxvnni);
    check(moei_cpu_decide_arm(0, 0) == moe_tier_mask(MOE_TIER_NEON), "cpu", "aarch64 baseline");
    check(moei_cpu_decide_arm(1u << 20, 0) == moe_tier_mask(MOE_TIER_DOTPROD), "cpu", "aarch64 dotprod");
    check(moei_cpu_decide_arm(1u << 20, 3u << 13) == moe_tier_mask(MOE_TIER_NEONBF16), "cpu", "aarch64 bf16");
    check((moe_tiers() & ~MOEI_TIERS_BUILT) == 0 && (moe_tiers() & c), "cpu", "tiers %x", moe_tiers());
}
static void check_names(void) {
    for (uint32_t t = 0; t < MOE_TIER_COUNT; t++) {
        char upper[16] = {0};
        for (int i = 0; moe_tier_name(t)[i]; i++) {
            char ch = moe_tier_name(t)[i];
            upper[i] = (char)(ch >= 'a' && ch <= 'z' ? ch - 32 : ch);
        }
        check(moe_tier_by_name(moe_tier_name(t)) == t && moe_tier_by_name(upper) == t, "cpu", "name of tier %u", t);
        check((moe_tier_mask(t) >> t & 1) && (moe_tier_mask(t) & 1), "cpu", "mask of tier %u", t);
    }
    check(moe_tier_by_name("avx") == MOE_TIER_COUNT && moe_tier_by_name("") == MOE_TIER_COUNT, "cpu",
          "unknown names");
    check(moe_tier_by_name(NULL) == MOE_TIER_COUNT && moe_tier_mask(MOE_TIER_COUNT) == 0, "cpu",
          "NULL, out of range");
    check(moe_tier_mask(MOE_TIER_AMX) == (moe_tier_mask(MOE_TIER_AVX512BF16) | MOE_TIER_BIT(MOE_TIER_AMX)), "cpu",
          "amx");
}

#if MOEI_HAVE_AVX2
/* bf16 rows come in parts where k is longer than the tests' rows; here, where it is longer than a few steps. */
static void dot_in_parts(const moei_rows *w, uint32_t n_rows, const void *const *x, uint32_t n_tokens, float *out,
                         size_t out_stride) {
    moei_tiles tiles = moei_tiles_avx2_BF16;
    tiles.k = 192;
    moei_sweep(&tiles, w, n_rows, x, n_tokens, out, out_stride);
}
static void check_parts_avx2(void) {
    moei_arith arith = moei_f32_avx2_intel; /* all tokens meet the rows */
    arith.ops[MOE_FORMAT_BF16].dot = dot_in_parts;
    check_arith(&arith, "f32 avx2, bf16 rows in parts of k", 1);
}
#endif

int main(void) {
    printf("this machine and build:");
    for (uint32_t t = 0; t < MOE_TIER_COUNT; t++)
        if (moe_tiers() >> t & 1) printf(" %s", moe_tier_name(t));
    printf("\n");
    check_cpu();
    check_names();
#if MOEI_HAVE_AVX2
    check_vec(&moei_vec_avx2, "elementwise avx2", MOE_TIER_AVX2);
    check_arith(&moei_f32_avx2, "f32 avx2", 1);
    check_arith(&moei_f32_avx2_intel, "f32 avx2, to L2 and L1", 1);
    check_arith(&moei_f32_avx2_room, "f32 avx2, bf16 by panel", 1);
    check_parts_avx2();
#endif
#if MOEI_HAVE_AVX512
    check_vec(&moei_vec_avx512, "elementwise avx512", MOE_TIER_AVX512);
    check_arith(&moei_f32_avx512, "f32 avx512, rows as a whole", 0);
    check_arith(&moei_f32_avx512_zen5, "f32 avx512, in parts of k", 0);
    check_arith(&moei_f32_avx512_intel, "f32 avx512, as on Intel", 0);
#endif
#if MOEI_HAVE_AVX512BF16
    check_arith(&moei_bf16_avx512bf16, "bf16 avx512bf16, rows as a whole", 0);
    check_arith(&moei_bf16_avx512bf16_intel, "bf16 avx512bf16, to L2 and L1", 0);
    if (moei_cpu() & MOEI_VBMI) {
        check_arith(&moei_bf16_vbmi, "bf16 avx512bf16, fp8 by table", 0);
        check_arith(&moei_bf16_vbmi_zen5, "bf16 avx512bf16, fp8 by table, to L1", 0);
        check_arith(&moei_bf16_vbmi_intel, "bf16 avx512bf16, fp8 by table, to L2 and L1", 0);
    }
#endif
#if MOEI_HAVE_NEON
    check_vec(&moei_vec_neon, "elementwise neon", MOE_TIER_NEON);
    check_arith(&moei_f32_neon, "f32 neon", 0);
#endif
#if MOEI_HAVE_NEONBF16
    check_arith(&moei_bf16_neonbf16, "bf16 neonbf16", 0);
#endif
    printf("test_tiers: %d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed != 0;
}
