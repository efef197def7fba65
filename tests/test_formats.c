/* The weight formats and the plain-C dot products: every number that moe.h reads from a checkpoint's bytes, against
   golden files made by other software, and every property that the definition of F32 and Q8 promises.
   Run from the repository's root: build/test_formats */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#define MOE_IMPLEMENTATION
#include "../moe.h"
#include "data/formats/tables.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#if defined(__unix__) || defined(__APPLE__)
#include "guarded.h"
#define HAVE_PAGES 1
#else
#define HAVE_PAGES 0
#endif

/* ---- Counting and reporting ---- */

static int n_passed, n_failed, n_skipped;

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static int
check(int ok, const char *name, const char *why, ...) {
    va_list args;
    if (ok) return n_passed++, 1;
    n_failed++;
    printf("FAIL %s: ", name);
    va_start(args, why);
    vprintf(why, args);
    va_end(args);
    printf("\n");
    return 0;
}

static void *need(void *p) {
    if (!p) exit((printf("FAIL memory: allocation failed\n"), 1));
    return p;
}

/* Values of `size` bytes as a checkpoint stores them, little-endian, in place; a second call turns them back. */
static void as_stored(void *values, size_t n, size_t size) {
    const uint16_t probe = 1;
    uint8_t *p = (uint8_t *)values;
    if (*(const uint8_t *)&probe) return;
    for (; n--; p += size)
        for (size_t i = 0; i < size / 2; i++) {
            uint8_t b = p[i];
            p[i] = p[size - 1 - i], p[size - 1 - i] = b;
        }
}

static uint64_t seed = 1;
static uint32_t rnd(void) { /* splitmix64 */
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}
static float rnd_float(void) { return (float)(int32_t)rnd() / 2147483648.0f; }

static int same(float a, float b) { /* bits, but for the sign of zero and the payload of NaN */
    return moei_bits(a) == moei_bits(b) || (a == 0.0f && b == 0.0f) || (moei_is_nan(a) && moei_is_nan(b));
}
static int64_t ulps(float a, float b) {
    int64_t x = (int32_t)moei_bits(a), y = (int32_t)moei_bits(b);
    if (same(a, b)) return 0;
    if (x < 0) x = INT32_MIN - x;
    if (y < 0) y = INT32_MIN - y;
    return x > y ? x - y : y - x;
}

/* ---- safetensors, trusted: finds a tensor whose name ends in `suffix` in the header's JSON ---- */

typedef struct file {
    uint8_t *bytes;
    size_t size;
} file;
typedef struct tensor {
    const uint8_t *data;
    char dtype[16];
    size_t shape[4], rank, bytes;
} tensor;

static file load(const char *path) {
    file f = {NULL, 0};
    FILE *in = fopen(path, "rb");
    if (!in) return f;
    fseek(in, 0, SEEK_END);
    f.size = (size_t)ftell(in);
    f.bytes = (uint8_t *)need(malloc(f.size + 1));
    rewind(in);
    if (fread(f.bytes, 1, f.size, in) != f.size) f.size = 0;
    f.bytes[f.size] = 0;
    fclose(in);
    return f;
}
static tensor find(const file *f, const char *suffix) {
    tensor t;
    char key[64];
    memset(&t, 0, sizeof t);
    snprintf(key, sizeof key, "%s\":{\"", suffix);
    size_t header = moei_load32(f->bytes);
    char *json = (char *)need(malloc(header + 1));
    memcpy(json, f->bytes + 8, header);
    json[header] = 0;
    const char *p = strstr(json, key);
    const char *end = p ? strchr(p, '}') : NULL, *dtype = p ? strstr(p, "\"dtype\":\"") : NULL;
    const char *shape = p ? strstr(p, "\"shape\":[") : NULL, *at = p ? strstr(p, "\"data_offsets\":[") : NULL;
    if (end && dtype && shape && at && dtype < end && shape < end && at < end) {
        size_t n = strcspn(dtype + 9, "\"");
        memcpy(t.dtype, dtype + 9, n < 15 ? n : 15);
        for (const char *s = shape + 9; *s != ']' && t.rank < 4; s += *s == ',')
            t.shape[t.rank++] = strtoul(s, (char **)&s, 10);
        char *comma;
        size_t from = strtoul(at + 16, &comma, 10);
        t.bytes = strtoul(comma + 1, NULL, 10) - from;
        t.data = f->bytes + 8 + header + from;
    }
    free(json);
    return t;
}

/* ---- Golden files: blocks/ ---- */

static void compare_values(const char *name, const float *got, const uint8_t *want, size_t n, int64_t allowed) {
    size_t bad = 0, first = 0;
    int64_t worst = 0;
    for (size_t i = 0; i < n; i++) {
        int64_t u = ulps(got[i], moei_loadf32(want + 4 * i));
        if (u > worst) worst = u;
        if (u > allowed && !bad++) first = i;
    }
    if (worst) printf("note %s: largest difference %lld ulp\n", name, (long long)worst);
    check(!bad, name, "%zu of %zu values differ, the first at %zu: %.9g, want %.9g", bad, n, first,
          (double)got[first], (double)moei_loadf32(want + 4 * first));
}

static int bad_scales(const char *name) { /* which of the _nonfinite files hold scales that moe_validate calls bad */
    return strstr(name, "nvfp4") == NULL; /* ggml defines all 256 codes */
}

static void test_blocks_file(uint32_t format, const char *name, const char *suffix) {
    char path[128], label[64];
    snprintf(label, sizeof label, "blocks/%s%s", name, suffix);
    snprintf(path, sizeof path, "tests/data/formats/%s.safetensors", label);
    for (char *c = path; *c; c++) *c = *c == 'K' ? 'k' : *c;
    file f = load(path);
    if (!check(f.size > 8, label, "cannot read %s", path)) return;
    tensor blocks = find(&f, "\"blocks"), values = find(&f, "\"values"), source = find(&f, "\"source");
    size_t rows = values.shape[0], k = values.shape[1];
    moe_matrix m;
    memset(&m, 0, sizeof m);
    m.format = format, m.data = blocks.data;
    check(moe_row_bytes(format, k) == blocks.shape[1], label, "row bytes %zu", moe_row_bytes(format, k));
    float *out = (float *)need(malloc(rows * k * sizeof *out));
    check(moe_dequantize(&m, 0, 1, rows, k, 0, rows, out) == MOE_OK, label, "moe_dequantize failed");
    compare_values(label, out, values.data, rows * k, 0);
    int bad = *suffix && bad_scales(name);
    moe_error e = {MOE_OK, NULL, NULL, 0, 0};
    moe_status status = moe_validate(&m, 1, rows, k, &e);
    check(status == (bad ? MOE_ERR_VALUE : MOE_OK), label, "moe_validate says %d at %llu", status,
          (unsigned long long)e.got);
    uint8_t *again = (uint8_t *)need(malloc(blocks.bytes));
    if (source.data) {
        memcpy(out, source.data, source.bytes);
        as_stored(out, source.bytes / 4, 4);
        if (moe_quantize(format, out, source.shape[0], k, again) == MOE_OK)
            check(!memcmp(again, blocks.data, source.shape[0] * blocks.shape[1]), label,
                  "quantising gives other bytes");
    }
    free(again);
    free(out);
    free(f.bytes);
}

static void test_blocks(void) {
    for (uint32_t format = MOE_FORMAT_F16; format <= MOE_FORMAT_NVFP4; format++) {
        test_blocks_file(format, moe_format_name(format), "");
        test_blocks_file(format, moe_format_name(format), "_nonfinite");
    }
}

/* ---- Golden files: hf/ ---- */

// clang-format off
typedef struct hf_case {
    const char *name;
    uint32_t format;
    const char *weight, *scale, *zero, *scale2;
    uint32_t divides, bad; /* bad: moe_validate must refuse it */
} hf_case;
#define INT4 MOE_FORMAT_INT4_GROUP
static const hf_case hf_cases[] = {
    {"fp8_block128", MOE_FORMAT_FP8_BLOCK, ".weight", ".weight_scale_inv", NULL, NULL, 0, 0},
    {"fp8_block128_ragged", MOE_FORMAT_FP8_BLOCK, ".weight", ".weight_scale_inv", NULL, NULL, 0, 0},
    {"fp8_block128_pow2", MOE_FORMAT_FP8_BLOCK, ".weight", ".weight_scale_inv", NULL, NULL, 0, 0},
    {"fp8_block128_pow2_ragged", MOE_FORMAT_FP8_BLOCK, ".weight", ".weight_scale_inv", NULL, NULL, 0, 0},
    {"fp8_block128_edge", MOE_FORMAT_FP8_BLOCK, ".weight", ".weight_scale_inv", NULL, NULL, 0, 0},
    {"fp8_block128_nonfinite", MOE_FORMAT_FP8_BLOCK, ".weight", ".weight_scale_inv", NULL, NULL, 0, 1},
    {"fp8_block128_e8m0", MOE_FORMAT_FP8_BLOCK, ".weight", ".scale", NULL, NULL, 0, 0},
    {"fp8_channel_f32", MOE_FORMAT_FP8_CHANNEL, ".weight", ".weight_scale", NULL, NULL, 0, 0},
    {"fp8_channel_bf16", MOE_FORMAT_FP8_CHANNEL, ".weight", ".weight_scale", NULL, NULL, 0, 0},
    {"fp8_tensor", MOE_FORMAT_FP8_CHANNEL, ".weight", NULL, NULL, ".weight_scale", 0, 0},
    {"mxfp8_e8m0_scale_inv", MOE_FORMAT_MXFP8, ".weight", ".weight_scale_inv", NULL, NULL, 0, 0},
    {"mxfp8_compressed_tensors", MOE_FORMAT_MXFP8, ".weight", ".weight_scale", NULL, NULL, 0, 0},
    {"mxfp4_gptoss_gate_up", MOE_FORMAT_MXFP4_HF, "_blocks", "_scales", NULL, NULL, 0, 0},
    {"mxfp4_gptoss_down", MOE_FORMAT_MXFP4_HF, "_blocks", "_scales", NULL, NULL, 0, 0},
    {"mxfp4_compressed_tensors", MOE_FORMAT_MXFP4_HF, ".weight_packed", ".weight_scale", NULL, NULL, 0, 0},
    {"mxfp4_deepseek_v4", MOE_FORMAT_MXFP4_HF, ".weight", ".scale", NULL, NULL, 0, 0},
    {"nvfp4_modelopt", MOE_FORMAT_NVFP4_HF, ".weight", ".weight_scale", NULL, ".weight_scale_2", 0, 0},
    {"nvfp4_compressed_tensors", MOE_FORMAT_NVFP4_HF, ".weight_packed", ".weight_scale", NULL,
     ".weight_global_scale", 1, 0},
    {"int4_ct_g32", INT4, ".weight_packed", ".weight_scale", NULL, NULL, 0, 0},
    {"int4_ct_g32_zp", INT4, ".weight_packed", ".weight_scale", ".weight_zero_point", NULL, 0, 0},
    {"int4_ct_g128", INT4, ".weight_packed", ".weight_scale", NULL, NULL, 0, 0},
    {"int4_ct_g128_zp", INT4, ".weight_packed", ".weight_scale", ".weight_zero_point", NULL, 0, 0},
    {"int4_ct_gchannel", INT4, ".weight_packed", ".weight_scale", NULL, NULL, 0, 0},
    {"int4_ct_gchannel_zp_odd", INT4, ".weight_packed", ".weight_scale", ".weight_zero_point", NULL, 0, 0},
    {"int8_channel", MOE_FORMAT_INT8_CHANNEL, ".weight", ".weight_scale", NULL, NULL, 0, 0},
};
// clang-format on

static uint32_t scale_type(const char *dtype) {
    if (!strcmp(dtype, "F32")) return MOE_TYPE_F32;
    if (!strcmp(dtype, "F16")) return MOE_TYPE_F16;
    if (!strcmp(dtype, "BF16")) return MOE_TYPE_BF16;
    if (!strcmp(dtype, "F8_E4M3")) return MOE_TYPE_E4M3;
    return MOE_TYPE_E8M0; /* U8 or F8_E8M0 */
}

/* The description of a case's weight, as a reader would make it from the file's shapes. */
static moe_matrix hf_matrix(const hf_case *c, const file *f, size_t k) {
    moe_matrix m;
    memset(&m, 0, sizeof m);
    m.format = c->format;
    m.data = find(f, c->weight).data;
    if (c->scale) {
        tensor s = find(f, c->scale);
        size_t groups = s.shape[s.rank - 1];
        m.scale.type = scale_type(s.dtype);
        m.scale.data = s.data;
        if (c->format == MOE_FORMAT_INT4_GROUP) m.scale.cols = (uint32_t)(groups == 1 ? UINT32_MAX : k / groups);
    }
    if (c->zero) m.zero.type = MOE_TYPE_U4X8, m.zero.data = find(f, c->zero).data;
    if (c->scale2)
        m.scale2.type = MOE_TYPE_F32, m.scale2.data = find(f, c->scale2).data, m.scale2_divides = c->divides;
    return m;
}

static void test_hf_case(const hf_case *c) {
    char path[128], label[64];
    snprintf(label, sizeof label, "hf/%s", c->name);
    snprintf(path, sizeof path, "tests/data/formats/%s.safetensors", label);
    file f = load(path);
    if (!check(f.size > 8, label, "cannot read %s", path)) return;
    tensor values = find(&f, "\"values");
    size_t experts = values.rank == 3 ? values.shape[0] : 1, rows = values.shape[values.rank - 2],
           k = values.shape[values.rank - 1];
    moe_matrix m = hf_matrix(c, &f, k);
    float *out = (float *)need(malloc(experts * rows * k * sizeof *out));
    for (uint32_t e = 0; e < experts; e++)
        check(moe_dequantize(&m, e, experts, rows, k, 0, rows, out + e * rows * k) == MOE_OK, label,
              "moe_dequantize failed");
    compare_values(label, out, values.data, experts * rows * k, 0);
    for (size_t r = 0; r < rows; r++) { /* the same rows one by one */
        moe_dequantize(&m, (uint32_t)experts - 1, experts, rows, k, r, 1, out);
        compare_values(label, out, values.data + ((experts - 1) * rows + r) * k * 4, k, 0);
    }
    moe_error e = {MOE_OK, NULL, NULL, 0, 0};
    moe_status status = moe_validate(&m, experts, rows, k, &e);
    check(status == (c->bad ? MOE_ERR_VALUE : MOE_OK), label, "moe_validate says %d, %s at %llu", status,
          e.field ? e.field : "", (unsigned long long)e.got);
    free(out);
    free(f.bytes);
}
static void test_hf(void) {
    for (size_t i = 0; i < MOEI_COUNT(hf_cases); i++) test_hf_case(&hf_cases[i]);
}

/* ---- Number tables ---- */

static double half_value(uint32_t h, int exponent_bits,
                         int mantissa_bits) { /* of an IEEE format, from first principles */
    uint32_t m = h & ((1u << mantissa_bits) - 1), e = h >> mantissa_bits & ((1u << exponent_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double v = e == (1u << exponent_bits) - 1 ? (m ? (double)NAN : (double)INFINITY)
               : e ? ldexp((double)(m | 1u << mantissa_bits), (int)e - bias - mantissa_bits)
                   : ldexp((double)m, 1 - bias - mantissa_bits);
    return h >> (exponent_bits + mantissa_bits) & 1 ? -v : v;
}
static void test_tables(void) {
    int f16 = 0, bf16 = 0, back = 0, e4m3 = 0, e8m0 = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        float a = moei_f16((uint16_t)h), b = moei_bf16((uint16_t)h);
        f16 += !same(a, (float)half_value(h, 5, 10)) || (a == 0.0f && moei_bits(a) >> 31 != h >> 15);
        bf16 += !same(b, (float)half_value(h, 8, 7)) || moei_bits(b) != h << 16;
        if (!moei_is_nan(a)) back += moei_to_f16(a) != h;
        if (!moei_is_nan(b)) back += moei_to_bf16(b) != h;
    }
    check(!f16, "f16", "%d of 65536 codes wrong", f16);
    check(!bf16, "bf16", "%d of 65536 codes wrong", bf16);
    for (uint32_t c = 0; c < 256; c++) {
        float v = moei_float(table_e4m3fn[c]);
        e4m3 += !same(moei_e4m3((uint8_t)c), v) || (v == 0.0f && moei_bits(moei_e4m3((uint8_t)c)) != table_e4m3fn[c]);
        e8m0 += !same(moei_e8m0((uint8_t)c), moei_float(table_e8m0[c]));
        if (!moei_is_nan(v)) back += moei_to_e4m3(v) != c;
    }
    check(!e4m3, "e4m3", "%d of 256 codes wrong", e4m3);
    check(!e8m0, "e8m0", "%d of 256 codes wrong", e8m0);
    check(!back, "encode", "%d values do not come back", back);
    for (uint32_t c = 0; c < 16; c++) {
        check(same(0.5f * (float)moei_e2m1x2[c], moei_float(table_e2m1[c])), "e2m1", "code %u", c);
        check((float)moei_iq4[c] == moei_float(table_iq4_nl[c]), "iq4", "code %u", c);
    }
}
static void test_special(void) {
    for (size_t i = 0; i < MOEI_COUNT(special_f16); i++)
        check(same(moei_f16((uint16_t)special_f16[i][0]), moei_float(special_f16[i][1])), "f16 special", "%04x",
              special_f16[i][0]);
    for (size_t i = 0; i < MOEI_COUNT(special_bf16); i++)
        check(same(moei_bf16((uint16_t)special_bf16[i][0]), moei_float(special_bf16[i][1])), "bf16 special", "%04x",
              special_bf16[i][0]);
    for (size_t i = 0; i < MOEI_COUNT(mxfp4_product); i++)
        for (uint32_t c = 0; c < 16; c++) {
            uint8_t bytes[17] = {(uint8_t)mxfp4_product[i][0], (uint8_t)c}, e = bytes[0];
            moe_matrix gguf, hf;
            float a[32], b[32], want = moei_float(mxfp4_product[i][c + 1]);
            memset(&gguf, 0, sizeof gguf);
            hf = gguf;
            gguf.format = MOE_FORMAT_MXFP4, gguf.data = bytes;
            hf.format = MOE_FORMAT_MXFP4_HF, hf.data = bytes + 1, hf.scale.type = MOE_TYPE_E8M0, hf.scale.data = &e;
            moe_dequantize(&gguf, 0, 1, 1, 32, 0, 1, a);
            moe_dequantize(&hf, 0, 1, 1, 32, 0, 1, b);
            check(same(a[0], want) && same(b[0], want), "mxfp4 product", "scale %u code %u: %g %g", e, c,
                  (double)a[0], (double)b[0]);
        }
}
static void test_rounding(void) {
    for (size_t i = 0; i < MOEI_COUNT(round_f16); i++)
        check(moei_to_f16(moei_float(round_f16[i][0])) == round_f16[i][1], "round to f16", "%08x", round_f16[i][0]);
    for (size_t i = 0; i < MOEI_COUNT(round_bf16); i++)
        check(moei_to_bf16(moei_float(round_bf16[i][0])) == round_bf16[i][1], "round to bf16", "%08x",
              round_bf16[i][0]);
    for (size_t i = 0; i < MOEI_COUNT(round_e4m3fn); i++)
        check(moei_to_e4m3(moei_float(round_e4m3fn[i][0])) == round_e4m3fn[i][1], "round to e4m3", "%08x",
              round_e4m3fn[i][0]);
    for (size_t i = 0; i < MOEI_COUNT(round_e4m3fn_beyond); i++)
        check(moei_to_e4m3(moei_float(round_e4m3fn_beyond[i][0])) == round_e4m3fn_beyond[i][1], "round to e4m3",
              "%08x", round_e4m3fn_beyond[i][0]);
    check(moei_is_nan(moei_f16(moei_to_f16(NAN))) && moei_is_nan(moei_bf16(moei_to_bf16(moei_float(0x7f800001u)))) &&
              moei_is_nan(moei_e4m3(moei_to_e4m3(-NAN))),
          "round NaN", "a NaN became a number");
}

/* ---- fma and exp ---- */

static float rnd_operand(void) { /* all patterns; small integers; powers of two and their neighbours; specials */
    static const uint32_t special[] = {0,           0x80000000u, 1,           0x80000001u, 0x007fffffu,
                                       0x00800000u, 0x7f7fffffu, 0xff7fffffu, 0x7f800000u, 0xff800000u,
                                       0x7fc00000u, 0x3f800000u, 0x33800000u, 0x34000000u};
    uint32_t u = rnd(), kind = rnd() % 16;
    if (kind == 0) return moei_float(special[u % MOEI_COUNT(special)]);
    if (kind < 4) return moei_float((u & 0xff800000u) + (rnd() % 5 - 2));
    if (kind < 7) return (float)((int)(u % 8193) - 4096);
    if (kind < 10) return moei_float(0x3f000000u + (u & 0x80ffffffu));
    return moei_float(u);
}
static void test_fma(void) {
#ifdef __wasi__ /* its fmaf needs rounding modes that WebAssembly lacks: wrong for 3, 0x1.322dbep+50, -0x1.fffffcp-119 */
    n_skipped++;
    return;
#endif
    int bad = 0;
    float x = 0.0f, y = 0.0f, z = 0.0f;
    for (int i = 0; i < 10000000; i++) {
        float a = rnd_operand(), b = rnd_operand(), c = rnd_operand();
        if (i % 4 == 0) c = -(a * b);                              /* cancellation */
        if (i % 4 == 1) c = ldexpf(a * b, (int)(rnd() % 80) - 40); /* all overlaps of the two */
        float want = fmaf(a, b, c), got = moei_fma_emulated(a, b, c);
        int ok =
            same(got, want) && (want != 0.0f || moei_bits(got) == moei_bits(want)) && same(moei_fma(a, b, c), want);
        if (!ok && !bad++) x = a, y = b, z = c;
    }
    check(!bad, "fma", "%d of 10^7 differ from fmaf, the first: %a %a %a", bad, (double)x, (double)y, (double)z);
}
/* Never more than one float away from the rounded result; the error itself is at most 1.009 ulp (over all inputs). */
static void test_exp(void) {
    double worst = 0.0;
    float at = 0.0f;
    size_t n = 0, bad = 0, inexact = 0;
    for (uint64_t u = 0; u < UINT64_C(1) << 32; u += 509, n++) {
        float x = moei_float(u ? (uint32_t)u : 0xc1db0878u), got = moei_exp(x); /* the first is the worst of all */
        double want = exp((double)x), e = 0.0;
        int64_t away = ulps(got, (float)want);
        if (want < 3.4028235677973366e38) /* not NaN, Inf */
            e = fabs((double)got - want) / ldexp(1.0, want < 1.1754943508222875e-38 ? -149 : ilogb(want) - 23);
        if (e > worst) worst = e, at = x;
        bad += away > 1;
        inexact += away == 1;
    }
    printf("note exp: largest error %.4f ulp, at %.9g; %.2f %% of %zu inputs not rounded as double's exp\n", worst,
           (double)at, 100.0 * (double)inexact / (double)n, n);
    check(!bad && worst <= 1.009, "exp", "%zu results 2 or more away; %.4f ulp at %.9g", bad, worst, (double)at);
    check(moei_exp(0.0f) == 1.0f && moei_exp(-INFINITY) == 0.0f && moei_exp(INFINITY) == INFINITY, "exp",
          "special values");
}

/* ---- Random matrices of every format ---- */

enum { ROWS = 5 };
typedef struct sample { /* ROWS rows of k weights */
    moe_matrix m;
    size_t k, row_bytes, scale_bytes, zero_bytes;
    uint8_t *data, *scale, *zero;
} sample;

// clang-format off
static const struct { uint32_t format, at[2]; } half_fields[] = { /* offsets of f16 scales in a block; 999: none */
    {MOE_FORMAT_Q8_0, {0, 999}},   {MOE_FORMAT_Q4_0, {0, 999}},   {MOE_FORMAT_Q4_1, {0, 2}},
    {MOE_FORMAT_Q5_0, {0, 999}},   {MOE_FORMAT_Q5_1, {0, 2}},     {MOE_FORMAT_Q2_K, {80, 82}},
    {MOE_FORMAT_Q3_K, {108, 999}}, {MOE_FORMAT_Q4_K, {0, 2}},     {MOE_FORMAT_Q5_K, {0, 2}},
    {MOE_FORMAT_Q6_K, {208, 999}}, {MOE_FORMAT_IQ4_NL, {0, 999}}, {MOE_FORMAT_IQ4_XS, {0, 999}}};
// clang-format on

/* Finite scales in a block of random bytes; `whole`: scales that make every weight an integer. */
static void fix_block(uint32_t format, uint8_t *p, int whole) {
    for (size_t i = 0; i < MOEI_COUNT(half_fields); i++)
        for (int j = 0; j < 2 && half_fields[i].format == format; j++)
            if (half_fields[i].at[j] != 999)
                moei_store16(p + half_fields[i].at[j], whole ? 0x3c00 : moei_to_f16(0.02f * rnd_float()));
    if (format == MOE_FORMAT_MXFP4) p[0] = (uint8_t)(whole ? 128 : 115 + rnd() % 12);
    for (int i = 0; i < 4 && format == MOE_FORMAT_NVFP4; i++) p[i] = (uint8_t)(whole ? 0x40 : rnd() % 127);
    if (whole && format == MOE_FORMAT_Q6_K)
        for (int i = 0; i < 16; i++) p[192 + i] = (uint8_t)(rnd() % 9 - 4);
}
static void fix_dense(uint32_t format, uint8_t *p, int whole) {
    float v = whole ? (float)((int)(rnd() % 17) - 8) : rnd_float();
    if (format == MOE_FORMAT_F32) moei_store32(p, moei_bits(v));
    else if (format == MOE_FORMAT_F16) moei_store16(p, moei_to_f16(v));
    else if (format == MOE_FORMAT_BF16) moei_store16(p, moei_to_bf16(v));
    else *p = moei_to_e4m3(v);
}
static void sample_grid(sample *s, int whole) {
    const moei_layout *l = &moei_layouts[s->m.format];
    if (!l->cols) return;
    moe_grid *g = &s->m.scale;
    uint32_t cols = l->cols, format = s->m.format;
    if (format == MOE_FORMAT_INT4_GROUP) g->cols = cols = 32;
    g->type = format == MOE_FORMAT_NVFP4_HF                   ? MOE_TYPE_E4M3
              : cols == 32 && format != MOE_FORMAT_INT4_GROUP ? MOE_TYPE_E8M0
                                                              : MOE_TYPE_BF16;
    size_t n = (size_t)ROWS * ((s->k - 1) / cols + 1);
    s->scale_bytes = n * moei_type_bytes[g->type];
    s->scale = (uint8_t *)need(malloc(s->scale_bytes));
    for (size_t i = 0; i < n; i++) {
        if (g->type == MOE_TYPE_E8M0) s->scale[i] = (uint8_t)(whole ? 128 : 115 + rnd() % 12);
        else if (g->type == MOE_TYPE_E4M3) s->scale[i] = (uint8_t)(whole ? 0x40 : rnd() % 127);
        else moei_store16(s->scale + 2 * i, moei_to_bf16(whole ? 1.0f : 0.02f * rnd_float()));
    }
    g->data = s->scale;
    if (format != MOE_FORMAT_INT4_GROUP) return;
    s->zero_bytes = 4 * ((ROWS - 1) / 8 + 1) * ((s->k - 1) / cols + 1);
    s->zero = (uint8_t *)need(malloc(s->zero_bytes));
    for (size_t i = 0; i < s->zero_bytes; i++) s->zero[i] = (uint8_t)rnd();
    s->m.zero.type = MOE_TYPE_U4X8, s->m.zero.data = s->zero;
}
static sample make_sample(uint32_t format, size_t k, int whole) {
    sample s;
    memset(&s, 0, sizeof s);
    s.m.format = format, s.k = k, s.row_bytes = moe_row_bytes(format, k);
    s.data = (uint8_t *)need(malloc(ROWS * s.row_bytes));
    size_t bytes = moei_layouts[format].bytes;
    for (size_t i = 0; i < ROWS * s.row_bytes; i++) s.data[i] = (uint8_t)rnd();
    for (size_t i = 0; i < ROWS * s.row_bytes;
         i += moei_codecs[format].dense ? bytes / moei_layouts[format].n : bytes)
        if (moei_codecs[format].dense) fix_dense(format, s.data + i, whole);
        else fix_block(format, s.data + i, whole);
    s.m.data = s.data;
    sample_grid(&s, whole);
    return s;
}
static void free_sample(sample *s) { free(s->data), free(s->scale), free(s->zero); }

static size_t sample_k(uint32_t format, size_t k) { /* k, or the next whole number of blocks */
    return moei_round_up(k, format == MOE_FORMAT_INT4_GROUP ? 1 : moei_layouts[format].n);
}

/* ---- The definition of the dot products, once more and naively ---- */

static float naive_f32(const float *w, const float *x, size_t k) {
    float acc[16] = {0};
    for (size_t i = 0; i < moei_round_up(k, 16); i++)
        acc[i % 16] = fmaf(i < k ? w[i] : 0.0f, i < k ? x[i] : 0.0f, acc[i % 16]);
    for (int h = 8; h; h /= 2)
        for (int l = 0; l < h; l++) acc[l] = acc[l] + acc[l + h];
    return acc[0] + 0.0f;
}

static void test_f32_dot(uint32_t format, size_t k) {
    enum { T = 11 };
    sample s = make_sample(format, k, 0);
    moei_rows w;
    size_t bytes = moei_f32_c.row_bytes(k);
    float *v = (float *)need(malloc(ROWS * k * sizeof *v)), *x = (float *)need(malloc(T * k * sizeof *x));
    float out[T][ROWS], panel_out[T][ROWS];
    uint8_t *prepared = (uint8_t *)need(malloc(T * bytes)), *panel = (uint8_t *)need(malloc(ROWS * bytes));
    const void *rows[T];
    moei_view(&s.m, NULL, 0, 0, ROWS, k, &w);
    for (size_t i = 0; i < T * k; i++) x[i] = rnd_float();
    for (size_t t = 0; t < T; t++) {
        rows[t] = prepared + t * bytes;
        moei_f32_c.prepare(prepared + t * bytes, x + t * k, 0, k, k);
    }
    moei_f32_c.ops[format].dot(&w, ROWS, rows, T, &out[0][0], ROWS);
    moei_decode_default(&moei_f32_c, &w, ROWS, panel);
    moei_f32_c.panel(panel, &w, ROWS, rows, T, &panel_out[0][0], ROWS);
    int bad = 0;
    for (uint32_t r = 0; r < ROWS; r++) moei_decode_row(&w, r, 0, k, v + r * k);
    for (size_t t = 0; t < T; t++)
        for (size_t r = 0; r < ROWS; r++) {
            float want = naive_f32(v + r * k, x + t * k, k);
            bad += moei_bits(out[t][r]) != moei_bits(want) || moei_bits(panel_out[t][r]) != moei_bits(want);
        }
    check(!bad, moe_format_name(format), "k %zu: %d of %d F32 dot products are not the definition's", k, bad,
          T * ROWS);
    free(v), free(x), free(prepared), free(panel);
    free_sample(&s);
}

/* Q8 by the formulas of the manual, format by format, from the unpacked block. */
static float naive_q8(const moei_rows *w, uint32_t r, const moei_q8 *x) {
    float acc[8] = {0};
    for (size_t i = 0; i < w->k / 32; i++) {
        moei_block b;
        const moei_q8 *a = x + i / 8;
        int lane = (int)(i % 8), sum[2] = {0, 0}, sub, all;
        float d = a->d[lane], *to = &acc[lane];
        moei_unpack(w, r, 32 * i, 32, &b);
        for (int j = 0; j < 32; j++) sum[j / 16] += b.q[j] * a->q[lane][j];
        sub = b.scale[0] * sum[0] + b.scale[1] * sum[1], all = sum[0] + sum[1];
        volatile float scaled = b.d[0] * (float)b.scale[0], exact_min = b.dmin * (float)b.min[0], step = b.d[0] * d;
        volatile float scaled_step = scaled * d, second_step = b.d[1] * d, min_step = b.dmin * d;
        switch (w->format) {
        case MOE_FORMAT_Q4_1:
        case MOE_FORMAT_Q5_1:
        case MOE_FORMAT_Q4_K:
        case MOE_FORMAT_Q5_K: *to = fmaf(-exact_min, a->s[lane], fmaf((float)all, scaled_step, *to)); break;
        case MOE_FORMAT_Q2_K:
            *to = fmaf((float)sub, step, *to);
            *to = fmaf((float)(b.min[0] * a->sum16[lane][0] + b.min[1] * a->sum16[lane][1]), -min_step, *to);
            break;
        case MOE_FORMAT_Q3_K:
        case MOE_FORMAT_Q6_K: *to = fmaf((float)sub, step, *to); break;
        case MOE_FORMAT_IQ4_XS: *to = fmaf((float)all, scaled_step, *to); break;
        case MOE_FORMAT_NVFP4:
        case MOE_FORMAT_NVFP4_HF: *to = fmaf((float)sum[1], second_step, fmaf((float)sum[0], step, *to)); break;
        default: *to = fmaf((float)all, step, *to); break;
        }
    }
    for (int h = 4; h; h /= 2)
        for (int l = 0; l < h; l++) acc[l] = acc[l] + acc[l + h];
    return acc[0] + 0.0f;
}
static void test_q8_dot(uint32_t format) {
    enum { T = 11, K = 1024 };
    if (!moei_q8_c.ops[format].dot) return;
    sample s =
        make_sample(format, sample_k(format, K - 96), 0); /* 29 blocks of 32, or 32: also a last struct in part */
    moei_rows w;
    moei_q8 *x = (moei_q8 *)need(malloc(T * K / 256 * sizeof *x));
    float v[K], out[T][ROWS];
    const void *rows[T];
    int bad = 0;
    moei_view(&s.m, NULL, 0, 0, ROWS, s.k, &w);
    for (int t = 0; t < T; t++) {
        for (int i = 0; i < K; i++) v[i] = rnd_float();
        rows[t] = x + t * K / 256;
        moei_q8_c.prepare(x + t * K / 256, v, 0, s.k, s.k);
    }
    moei_q8_c.ops[format].dot(&w, ROWS, rows, T, &out[0][0], ROWS);
    for (int t = 0; t < T; t++)
        for (uint32_t r = 0; r < ROWS; r++)
            bad += moei_bits(out[t][r]) != moei_bits(naive_q8(&w, r, (const moei_q8 *)rows[t]));
    check(!bad, moe_format_name(format), "%d of %d Q8 dot products are not the definition's", bad, T * ROWS);
    free(x);
    free_sample(&s);
}

/* Products that underflow leave -0 in every lane; the result is +0 all the same. */
static void test_zero_sign(void) {
    float w[32], x[32], out;
    const void *row = x;
    moe_matrix m;
    moei_rows view;
    for (int i = 0; i < 32; i++) w[i] = -1e-30f, x[i] = 1e-30f;
    as_stored(w, 32, 4);
    memset(&m, 0, sizeof m);
    m.format = MOE_FORMAT_F32, m.data = w;
    moei_view(&m, NULL, 0, 0, 1, 32, &view);
    moei_f32_c.ops[MOE_FORMAT_F32].dot(&view, 1, &row, 1, &out, 1);
    check(moei_bits(out) == 0, "zero sign", "%08x", moei_bits(out));
}

/* Integer weights and activations: no rounding anywhere, so both arithmetics must be exactly right. */
static void test_exact(uint32_t format) {
    size_t k = sample_k(format, 512), wrong = 0;
    sample s = make_sample(format, k, 1);
    moei_rows w;
    float x[512], v[512], px[512];
    moei_q8 q[2];
    const void *px_row = px, *q_row = q;
    moei_view(&s.m, NULL, 0, 0, ROWS, k, &w);
    for (size_t i = 0; i < k; i++) x[i] = (float)((int)(rnd() % 3) - 1);
    for (size_t i = 0; i < k; i += 32) x[i + rnd() % 32] = rnd() & 1 ? 127.0f : -127.0f; /* so that d = 1 */
    moei_f32_c.prepare(px, x, 0, k, k);
    moei_q8_c.prepare(q, x, 0, k, k);
    for (uint32_t r = 0; r < ROWS; r++) {
        int64_t sum = 0;
        float f = 0.0f, g;
        moei_rows one = w;
        one.row0 = r;
        moei_decode_row(&w, r, 0, k, v);
        for (size_t i = 0; i < k; i++) sum += (int64_t)v[i] * (int64_t)x[i], wrong += v[i] != (float)(int)v[i];
        moei_f32_c.ops[format].dot(&one, 1, &px_row, 1, &f, 1);
        g = f;
        if (moei_q8_c.ops[format].dot) moei_q8_c.ops[format].dot(&one, 1, &q_row, 1, &g, 1);
        check(f == (float)sum && g == f, moe_format_name(format), "exact row %u: F32 %.9g, Q8 %.9g, want %lld", r,
              (double)f, (double)g, (long long)sum);
    }
    check(!wrong, moe_format_name(format), "the sample is not whole numbers");
    free_sample(&s);
}

/* Q8 against double: |error| <= sum over blocks of amax/254 * sum|w|, plus the float roundings. */
static void test_q8_bound(uint32_t format) {
    size_t k = sample_k(format, 768);
    double worst = 0.0;
    for (int round = 0; round < 40 && moei_q8_c.ops[format].dot; round++) {
        sample s = make_sample(format, k, 0);
        moei_rows w;
        float x[768], v[768], got[ROWS];
        moei_q8 q[3];
        const void *row = q;
        moei_view(&s.m, NULL, 0, 0, ROWS, k, &w);
        for (size_t i = 0; i < k; i++) x[i] = rnd_float() * (rnd() % 50 ? 1.0f : 20.0f);
        moei_q8_c.prepare(q, x, 0, k, k);
        moei_q8_c.ops[format].dot(&w, ROWS, &row, 1, got, ROWS);
        for (uint32_t r = 0; r < ROWS; r++) {
            double sum = 0.0, bound = 0.0, size = 0.0;
            moei_decode_row(&w, r, 0, k, v);
            for (size_t i = 0; i < k; i += 32) {
                float amax, value, weights = 0.0f;
                moei_block b;
                amax = moei_absmax(x + i, 32, &value);
                moei_unpack(&w, r, i, 32, &b);
                for (size_t j = i; j < i + 32; j++) {
                    sum += (double)v[j] * (double)x[j];
                    weights += fabsf(v[j]);
                    size += (double)amax * (fabs((double)v[j]) + 2 * fabs((double)b.dmin * b.min[(j - i) / 16]));
                }
                bound += (double)amax / 254 * (double)weights;
            }
            double used = fabs((double)got[r] - sum) / (bound + size * 6e-7);
            if (used > worst) worst = used;
        }
        free_sample(&s);
    }
    check(worst <= 1.0, moe_format_name(format), "Q8 uses %.3f of its bound", worst);
    if (worst > 0.0) printf("note %s: Q8 uses at most %.3f of its bound\n", moe_format_name(format), worst);
}

static void test_q8_prepare(void) {
    float x[96];
    moei_q8 b;
    int bad = 0;
    for (int round = 0; round < 2000; round++) {
        float size = ldexpf(1.0f, (int)(rnd() % 200) - 100);
        for (int i = 0; i < 96; i++) x[i] = round % 3 ? rnd_float() * size : (float)((int)(rnd() % 509) - 254) * 0.5f;
        memset(&b, 0xff, sizeof b);
        moei_prepare_q8(&b, x, 0, 32, 96); /* in pieces */
        moei_prepare_q8(&b, x + 32, 32, 64, 96);
        for (int j = 0; j < 8; j++) {
            int sum = 0, top = 0;
            float value, amax = j < 3 ? moei_absmax(x + 32 * j, 32, &value) : 0.0f;
            int zero = (double)amax < ldexp(1.0, -96);
            float inverse = zero ? 0.0f : 127.0f / amax;
            for (int i = 0; i < 32; i++) {
                int want = zero ? 0 : (int)nearbyint((double)x[32 * j + i] * (double)inverse);
                bad += b.q[j][i] != want;
                sum += want;
                if (abs(want) > top) top = abs(want);
                if (i == 15) bad += b.sum16[j][0] != sum;
            }
            float d = zero ? 0.0f : amax / 127.0f, d_sum = d * (float)sum;
            bad += b.d[j] != d || b.sum[j] != sum || b.s[j] != d_sum;
            bad += b.sum16[j][0] + b.sum16[j][1] != sum || top != (zero ? 0 : 127);
        }
    }
    check(!bad, "q8 prepare", "%d values wrong", bad);
    memset(x, 0, sizeof x);
    x[40] = INFINITY, x[70] = NAN;
    moei_prepare_q8(&b, x, 0, 96, 96);
    bad = b.d[0] != 0.0f || !moei_is_nan(b.d[1]) || !moei_is_nan(b.s[1]) || !moei_is_nan(b.d[2]) || b.q[1][8] ||
          b.q[2][6];
    check(!bad, "q8 prepare", "NaN or Inf");
}

/* Any part of a row is what the whole row says. */
static void test_parts(uint32_t format) {
    static const size_t ks[] = {1, 7, 16, 31, 33, 100, 256, 300, 520};
    for (size_t i = 0; i < MOEI_COUNT(ks); i++) {
        size_t k = sample_k(format, ks[i]);
        sample s = make_sample(format, k, 0);
        moei_rows w;
        float *whole = (float *)need(malloc(2 * k * sizeof *whole)), *part = whole + k;
        int bad = 0;
        moei_view(&s.m, NULL, 0, 0, ROWS, k, &w);
        for (uint32_t r = 0; r < ROWS; r++) {
            moei_decode_row(&w, r, 0, k, whole);
            for (size_t k0 = 0; k0 < k; k0 += 32)
                for (size_t n = 1; n <= k - k0 && n<70; n += sample_k(format, 1)> 1 ? 16 : 1) {
                    if (sample_k(format, 1) > 1 && n > 1) n = n / 16 * 16;
                    memset(part, 0xff, n * sizeof *part);
                    moei_decode_row(&w, r, k0, n, part);
                    bad += memcmp(part, whole + k0, n * sizeof *part) != 0;
                }
        }
        check(!bad, moe_format_name(format), "k %zu: %d parts differ from the row", k, bad);
        free(whole);
        free_sample(&s);
        if (i == 0 || ks[i] % 16) test_f32_dot(format, k);
    }
}

static void test_every_format(void) {
    for (uint32_t format = 1; format < MOE_FORMAT_COUNT; format++) {
        test_exact(format);
        test_q8_bound(format);
        test_q8_dot(format);
        test_parts(format);
    }
}

/* ---- Nothing is read outside of the rows, the scales and the zero points ---- */

#if HAVE_PAGES
static guarded guarded_copy(const uint8_t *data, size_t n, int at_end) {
    guarded g = guarded_new(n, at_end);
    if (n) memcpy(g.data, data, n);
    return g;
}
static void guarded_use(uint32_t format, size_t k, int at_end) { /* reading too far is a crash */
    sample s = make_sample(format, k, 0);
    guarded data = guarded_copy(s.data, ROWS * s.row_bytes, at_end),
            scale = guarded_copy(s.scale, s.scale_bytes, at_end);
    guarded zero = guarded_copy(s.zero, s.zero_bytes, at_end);
    moei_rows w;
    float out[ROWS], *x = (float *)need(calloc(k, sizeof *x)), *v = (float *)need(malloc(ROWS * k * sizeof *v));
    uint8_t *row = (uint8_t *)need(malloc(moei_q8_row_bytes(k) + moei_f32_row_bytes(k))),
            *panel = (uint8_t *)need(malloc(ROWS * moei_f32_row_bytes(k)));
    const void *rows = row;
    s.m.data = data.data;
    if (s.scale) s.m.scale.data = scale.data;
    if (s.zero) s.m.zero.data = zero.data;
    moei_view(&s.m, NULL, 0, 0, ROWS, k, &w);
    moei_prepare_f32(row, x, 0, k, k);
    moei_f32_c.ops[format].dot(&w, ROWS, &rows, 1, out, ROWS);
    moei_decode_default(&moei_f32_c, &w, ROWS, panel);
    if (k % 32 == 0 && moei_q8_c.ops[format].dot) {
        moei_prepare_q8(row, x, 0, k, k);
        moei_q8_c.ops[format].dot(&w, ROWS, &rows, 1, out, ROWS);
    }
    check(moe_dequantize(&s.m, 0, 1, ROWS, k, 0, ROWS, v) == MOE_OK && moe_validate(&s.m, 1, ROWS, k, NULL) == MOE_OK,
          moe_format_name(format), "guarded use at k %zu", k);
    guarded_free(&data), guarded_free(&scale), guarded_free(&zero);
    free(x), free(v), free(row), free(panel);
    free_sample(&s);
}
static void test_guards(void) {
    static const size_t ks[] = {1, 8, 24, 100, 256, 264, 544};
    for (uint32_t format = 1; format < MOE_FORMAT_COUNT; format++)
        for (size_t i = 0; i < MOEI_COUNT(ks); i++)
            for (int at_end = 0; at_end < 2; at_end++) guarded_use(format, sample_k(format, ks[i]), at_end);
}
#else
static void test_guards(void) { n_skipped++; }
#endif

/* ---- Views ---- */

/* [k][rows] storage is the same matrix. */
static void test_transposed(uint32_t format) {
    enum { R = 37, K = 131, T = 3 };
    size_t item = moei_layouts[format].bytes;
    uint8_t *plain = (uint8_t *)need(malloc(R * K * item)), *turned = (uint8_t *)need(malloc(R * K * item));
    for (size_t r = 0; r < R; r++)
        for (size_t k = 0; k < K; k++) {
            fix_dense(format, plain + (r * K + k) * item, 0);
            memcpy(turned + (k * R + r) * item, plain + (r * K + k) * item, item);
        }
    moe_matrix a, b;
    memset(&a, 0, sizeof a);
    a.format = format;
    b = a;
    a.data = plain;
    b.data = turned, b.k_stride = R * item;
    static float x[T][144], da[R * K], db[R * K], oa[T][R], ob[T][R], pa[R * 144], pb[R * 144];
    const void *rows[T];
    for (size_t t = 0; t < T; t++) {
        for (size_t k = 0; k < K; k++) x[t][k] = rnd_float();
        rows[t] = x[t];
    }
    moe_dequantize(&a, 0, 1, R, K, 0, R, da);
    check(moe_dequantize(&b, 0, 1, R, K, 0, R, db) == MOE_OK && !memcmp(da, db, sizeof da), "transposed",
          "other weights");
    moei_rows wa, wb;
    moei_view(&a, NULL, 0, 0, R, K, &wa);
    moei_view(&b, NULL, 0, 0, R, K, &wb);
    moei_f32_c.ops[format].dot(&wa, R, rows, T, &oa[0][0], R);
    moei_f32_c.ops[format].dot(&wb, R, rows, T, &ob[0][0], R);
    check(!memcmp(oa, ob, sizeof oa), "transposed", "other sums");
    moei_decode_default(&moei_f32_c, &wa, R, pa);
    moei_decode_default(&moei_f32_c, &wb, R, pb);
    check(!memcmp(pa, pb, sizeof pa), "transposed", "other panels");
    moei_view(&b, NULL, 0, 1, R, K, &wb);
    check(wb.data == turned + R * K * item, "transposed", "expert 1 is elsewhere");
    moei_view(&b, NULL, 0, 0, R, K, &wb);
    moei_decode_row(&wb, 5, 32, 70, db);
    check(!memcmp(db, da + 5 * K + 32, 70 * sizeof *db), "transposed", "another row");
    free(plain), free(turned);
}

/* Interleaved, concatenated, one pointer per expert, offsets, per-call pointers: all read the same numbers. */
static void test_views(void) {
    enum { E = 3, R = 4, K = 6 };
#define NUMBER(e, r, k) (float)(((e)*2 * R + (r)) * K + (k))
    static float store[E][2 * R][K], out[R * K];
    static const void *pointers[E], *calls[E];
    for (size_t i = 0; i < E * 2 * R * K; i++) (&store[0][0][0])[i] = (float)i;
    as_stored(store, E * 2 * R * K, 4);
    for (size_t e = 0; e < E; e++) pointers[e] = store[e], calls[e] = store[E - 1 - e];
    moe_matrix m;
    memset(&m, 0, sizeof m);
    m.format = MOE_FORMAT_F32, m.data = store;
    m.row_stride = 2 * K * 4, m.offset = K * 4; /* the odd rows */
    moe_dequantize(&m, 2, E, R, K, 1, 2, out);
    check(out[0] == NUMBER(2, 3, 0) && out[2 * K - 1] == NUMBER(2, 5, K - 1), "view", "interleaved: %g",
          (double)out[0]);
    m.row_stride = 0, m.offset = R * K * 4, m.expert_stride = 2 * R * K * 4; /* the second half */
    moe_dequantize(&m, 1, E, R, K, 0, R, out);
    check(out[0] == NUMBER(1, R, 0) && out[R * K - 1] == NUMBER(1, 2 * R - 1, K - 1), "view", "concatenated: %g",
          (double)out[0]);
    m.data = NULL, m.expert = pointers, m.expert_stride = 0;
    moe_dequantize(&m, 1, E, R, K, 0, R, out);
    check(out[0] == NUMBER(1, R, 0), "view", "a pointer per expert: %g", (double)out[0]);
    moe_experts over;
    memset(&over, 0, sizeof over);
    over.data[MOE_UP] = calls;
    moei_rows w;
    moei_view(&m, &over, MOE_UP, 0, R, K, &w);
    moei_decode_row(&w, 0, 0, K, out);
    check(out[0] == NUMBER(2, R, 0), "view", "per-call pointers: %g", (double)out[0]);
    moei_view(&m, &over, MOE_GATE, 0, R, K, &w);
    moei_decode_row(&w, 0, 0, K, out);
    check(out[0] == NUMBER(0, R, 0), "view", "no per-call pointers: %g", (double)out[0]);
    pointers[1] = NULL;
    moei_view(&m, NULL, 0, 1, R, K, &w);
    check(!w.data && moe_dequantize(&m, 1, E, R, K, 0, R, out) == MOE_ERR_EXPERT_ABSENT, "view", "absent expert");
    check(moe_validate(&m, E, R, K, NULL) == MOE_OK, "view", "validate with an absent expert");
}

static void test_arrays(void) {
    uint8_t bytes[64];
    static const void *pointers[2];
    for (uint32_t i = 0; i < 16; i++) moei_store32(bytes + 4 * i, moei_bits((float)i));
    moe_array a;
    memset(&a, 0, sizeof a);
    check(moei_array_at(&a, 1, 3, 2) == 0.0f, "array", "absent");
    a.type = MOE_TYPE_F32, a.data = bytes;
    check(moei_array_at(&a, 2, 3, 1) == 7.0f, "array", "tight");
    a.stride = 8, a.offset = 4;
    check(moei_array_at(&a, 1, 3, 2) == 11.0f, "array", "strided");
    a.expert_stride = 4;
    check(moei_array_at(&a, 3, 3, 2) == 8.0f, "array", "expert stride");
    pointers[0] = bytes, pointers[1] = bytes + 32;
    a.expert = pointers, a.data = NULL;
    check(moei_array_at(&a, 1, 3, 2) == 13.0f, "array", "pointers");
    a.type = MOE_TYPE_BF16, a.stride = 4, a.offset = 2;
    check(moei_array_at(&a, 1, 3, 2) == 10.0f, "array", "bf16");
}

/* Scales that are constant along a row stay out of the view and come from moei_row_scale. */
static void test_row_scale(void) {
    float scales[] = {2.0f, 3.0f, 5.0f, 7.0f, 11.0f, 13.0f}, scale2[] = {0.5f, 4.0f};
    int8_t data[2 * 3 * 40];
    for (int i = 0; i < 240; i++) data[i] = (int8_t)(i - 100);
    as_stored(scales, 6, 4), as_stored(scale2, 2, 4);
    moe_matrix m;
    memset(&m, 0, sizeof m);
    m.format = MOE_FORMAT_INT8_CHANNEL, m.data = data;
    m.scale.type = m.scale2.type = MOE_TYPE_F32, m.scale.data = scales, m.scale2.data = scale2;
    moei_rows w;
    moei_view(&m, NULL, 0, 1, 3, 40, &w);
    moei_factor f = moei_row_scale(&m, NULL, 0, 1, 3, 40, 2);
    check(!w.scale.data && f.multiply == 52.0f && f.divide == 1.0f, "row scale", "multiply %g", (double)f.multiply);
    m.scale2_divides = 1;
    f = moei_row_scale(&m, NULL, 0, 1, 3, 40, 2);
    check(f.multiply == 13.0f && f.divide == 4.0f, "row scale", "divide %g", (double)f.divide);
    m.scale.cols = 40;
    moei_view(&m, NULL, 0, 1, 3, 40, &w);
    check(!w.scale.data, "row scale", "cols = k");
    m.scale.cols = 32, m.scale2.type = MOE_TYPE_NONE;
    moei_view(&m, NULL, 0, 0, 3, 40, &w);
    f = moei_row_scale(&m, NULL, 0, 0, 3, 40, 2);
    check(w.scale.data && f.multiply == 1.0f && moei_scale_at(&w.scale, 2, 33) == 13.0f, "row scale",
          "a scale per 32");
    m.format = MOE_FORMAT_MXFP4_HF, m.scale.cols = 0, m.scale.type = MOE_TYPE_E8M0;
    moei_view(&m, NULL, 0, 0, 3, 32, &w);
    check(w.scale.data && moei_row_scale(&m, NULL, 0, 0, 3, 32, 1).multiply == 1.0f, "row scale",
          "MX scales stay with the blocks");
}

/* U8 zero points mean the same as nibbles; 16 (GPTQ's stored 15, plus 1) exists only there. */
static void test_zero_points(void) {
    sample s = make_sample(MOE_FORMAT_INT4_GROUP, 96, 0);
    uint8_t bytes[ROWS * 3];
    float a[ROWS * 96], b[ROWS * 96];
    moei_rows w;
    moei_view(&s.m, NULL, 0, 0, ROWS, 96, &w);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t g = 0; g < 3; g++) bytes[r * 3 + g] = (uint8_t)moei_zero_at(&w.zero, r, g * 32);
    moe_dequantize(&s.m, 0, 1, ROWS, 96, 0, ROWS, a);
    s.m.zero.type = MOE_TYPE_U8, s.m.zero.data = bytes;
    check(moe_dequantize(&s.m, 0, 1, ROWS, 96, 0, ROWS, b) == MOE_OK && !memcmp(a, b, sizeof a), "zero points",
          "U8 is not U4X8");
    memset(bytes, 16, sizeof bytes);
    memset(s.data, 0, ROWS * s.row_bytes);
    moe_dequantize(&s.m, 0, 1, ROWS, 96, 0, ROWS, b);
    check(b[0] == -16.0f * moei_load_bf16(s.scale), "zero points", "16");
    memset(bytes, 200, sizeof bytes);
    moe_dequantize(&s.m, 0, 1, ROWS, 96, 0, ROWS, b);
    check(b[0] == -127.0f * moei_load_bf16(s.scale), "zero points", "200 is taken as 127");
    memset(bytes, 1, sizeof bytes);
    bytes[ROWS * 3 - 1] = 128;
    moe_error e = {MOE_OK, NULL, NULL, 0, 0};
    check(moe_validate(&s.m, 1, ROWS, 96, &e) == MOE_ERR_VALUE && !strcmp(e.field, "zero") && e.got == 4 * 96 + 64,
          "zero points", "128 accepted");
    free_sample(&s);
}

/* Experts follow each other tightly, zero points in whole words of 8 rows. */
static void test_tight_experts(void) {
    enum { E = 3 };
    sample s[E];
    uint8_t data[E * ROWS * 48], scale[E * ROWS * 3 * 2], zero[E * 3 * 4];
    float a[ROWS * 96], b[ROWS * 96];
    for (uint32_t e = 0; e < E; e++) {
        s[e] = make_sample(MOE_FORMAT_INT4_GROUP, 96, 0);
        memcpy(data + e * ROWS * 48, s[e].data, ROWS * 48);
        memcpy(scale + e * s[e].scale_bytes, s[e].scale, s[e].scale_bytes);
        memcpy(zero + e * s[e].zero_bytes, s[e].zero, s[e].zero_bytes);
    }
    moe_matrix m = s[0].m;
    m.data = data, m.scale.data = scale, m.zero.data = zero;
    for (uint32_t e = 0; e < E; e++) {
        moe_dequantize(&s[e].m, 0, 1, ROWS, 96, 0, ROWS, a);
        check(moe_dequantize(&m, e, E, ROWS, 96, 0, ROWS, b) == MOE_OK && !memcmp(a, b, sizeof a), "tight experts",
              "expert %u", e);
        free_sample(&s[e]);
    }
}

/* ---- moe_validate finds every bad scale, where it is ---- */

static void expect_bad(const sample *s, const char *field, uint64_t at, const char *what) {
    moe_error e = {MOE_OK, "", "", 0, 0};
    moe_status status = moe_validate(&s->m, 1, ROWS, s->k, &e);
    check(status == MOE_ERR_VALUE && e.status == status && !strcmp(e.field, field) && e.got == at,
          moe_format_name(s->m.format), "validate, %s: status %d, %s at %llu, want %s at %llu", what, status, e.field,
          (unsigned long long)e.got, field, (unsigned long long)at);
}
static void test_validate_blocks(sample *s) {
    const moei_layout *l = &moei_layouts[s->m.format];
    size_t block = rnd() % (s->row_bytes * ROWS / l->bytes);
    uint8_t *p = s->data + block * l->bytes, keep[256];
    memcpy(keep, p, l->bytes);
    for (size_t i = 0; i < MOEI_COUNT(half_fields); i++)
        for (int j = 0; j < 2 && half_fields[i].format == s->m.format; j++)
            if (half_fields[i].at[j] != 999) {
                moei_store16(p + half_fields[i].at[j], rnd() & 1 ? 0x7c00 : 0xfe01);
                expect_bad(s, "data", block * l->n, "block");
                memcpy(p, keep, l->bytes);
            }
    if (s->m.format == MOE_FORMAT_MXFP4) p[0] = 255, expect_bad(s, "data", block * l->n, "block"), p[0] = keep[0];
    if (!moei_codecs[s->m.format].dense) return;
    p[0] = 0x7f; /* NaN in e4m3 */
    if (s->m.format == MOE_FORMAT_F32) moei_store32(p, 0x7fc00000u);
    if (s->m.format == MOE_FORMAT_F16 || s->m.format == MOE_FORMAT_BF16) moei_store16(p, 0x7f80);
    expect_bad(s, "data", block * l->n, "value");
    memcpy(p, keep, l->bytes);
}
static void test_validate_scales(sample *s) {
    if (!s->scale) return;
    moei_side g = moei_scale_of(&s->m, NULL, 0, 0, ROWS, s->k);
    size_t row = rnd() % ROWS / g.rows * g.rows, k = rnd() % s->k / g.cols * g.cols,
           keep_bytes = moei_type_bytes[g.type];
    uint8_t keep[4], *p = s->scale + (moei_side_at(&g, row, k) - g.data);
    memcpy(keep, p, keep_bytes);
    if (g.type == MOE_TYPE_BF16) moei_store16(p, 0xff80);
    else *p = g.type == MOE_TYPE_E8M0 ? 0xff : 0x7f;
    expect_bad(s, "scale", row * s->k + k, "grid");
    memcpy(p, keep, keep_bytes);
}
static void test_validate(void) {
    for (uint32_t format = 1; format < MOE_FORMAT_COUNT; format++)
        for (int round = 0; round < 4; round++) {
            sample s = make_sample(format, sample_k(format, 512), 0);
            float scale2 = NAN;
            as_stored(&scale2, 1, 4);
            check(moe_validate(&s.m, 1, ROWS, s.k, NULL) == MOE_OK, moe_format_name(format), "good weights refused");
            test_validate_blocks(&s);
            test_validate_scales(&s);
            s.m.scale2.type = MOE_TYPE_F32, s.m.scale2.data = &scale2;
            expect_bad(&s, "scale2", 0, "scale2");
            scale2 = 0.0f, s.m.scale2_divides = 1;
            expect_bad(&s, "scale2", 0, "division by zero");
            free_sample(&s);
        }
}

static void test_errors(void) {
    uint8_t data[256] = {0};
    float out[64];
    moe_matrix m;
    memset(&m, 0, sizeof m);
    check(moe_dequantize(NULL, 0, 1, 1, 1, 0, 1, out) == MOE_ERR_NULL, "errors", "no matrix");
    check(moe_dequantize(&m, 0, 1, 1, 1, 0, 1, out) == MOE_ERR_FORMAT, "errors", "no format");
    m.format = MOE_FORMAT_Q8_0;
    check(moe_dequantize(&m, 0, 1, 1, 32, 0, 1, out) == MOE_ERR_NULL, "errors", "no data");
    m.data = data;
    check(moe_dequantize(&m, 0, 1, 1, 33, 0, 1, out) == MOE_ERR_BLOCK, "errors", "33 of q8_0");
    check(moe_dequantize(&m, 0, 1, 1, 0, 0, 1, out) == MOE_ERR_SIZE, "errors", "k 0");
    check(moe_dequantize(&m, 1, 1, 1, 32, 0, 1, out) == MOE_ERR_EXPERT_ID, "errors", "expert 1 of 1");
    check(moe_dequantize(&m, 0, 1, 1, 32, 1, 1, out) == MOE_ERR_SIZE, "errors", "row 1 of 1");
    check(moe_dequantize(&m, 0, 1, 1, 32, 0, 1, NULL) == MOE_ERR_NULL, "errors", "no output");
    m.row_stride = 33;
    check(moe_dequantize(&m, 0, 1, 1, 32, 0, 1, out) == MOE_ERR_STRIDE, "errors", "row stride");
    m.row_stride = SIZE_MAX / 2;
    check(moe_dequantize(&m, 0, 3, 1, 32, 0, 1, out) == MOE_ERR_OVERFLOW, "errors", "overflow");
    m.row_stride = 0, m.k_stride = 34;
    check(moe_dequantize(&m, 0, 1, 1, 32, 0, 1, out) == MOE_ERR_FORMAT, "errors", "transposed blocks");
    m.k_stride = 0, m.scale.type = MOE_TYPE_U8, m.scale.data = data;
    check(moe_dequantize(&m, 0, 1, 1, 32, 0, 1, out) == MOE_ERR_TYPE, "errors", "U8 scales");
    m.scale.type = MOE_TYPE_F32, m.scale.cols = 16;
    check(moe_dequantize(&m, 0, 1, 1, 32, 0, 1, out) == MOE_ERR_SIZE, "errors", "more scales in q8_0");
    m.scale.type = MOE_TYPE_NONE, m.zero.type = MOE_TYPE_U8, m.zero.data = data;
    check(moe_dequantize(&m, 0, 1, 1, 32, 0, 1, out) == MOE_ERR_TYPE, "errors", "zero points in q8_0");
    m.format = MOE_FORMAT_NVFP4_HF, m.zero.type = MOE_TYPE_NONE, m.scale.type = MOE_TYPE_E4M3, m.scale.cols = 32;
    check(moe_dequantize(&m, 0, 1, 1, 32, 0, 1, out) == MOE_ERR_SIZE, "errors", "nvfp4 with a scale per 32");
    check(moe_quantize(MOE_FORMAT_Q4_K, out, 1, 256, data) == MOE_ERR_UNSUPPORTED, "errors", "quantise q4_K");
    check(moe_quantize(MOE_FORMAT_Q8_0, out, 1, 33, data) == MOE_ERR_BLOCK, "errors", "quantise 33");
    memset(out, 0, sizeof out);
    out[40] = NAN;
    check(moe_quantize(MOE_FORMAT_MXFP4, out, 2, 32, data) == MOE_ERR_VALUE, "errors", "quantise NaN");
    check(moe_quantize(99, out, 1, 32, data) == MOE_ERR_FORMAT, "errors", "quantise to nothing");
}

static void test_names(void) {
    for (uint32_t f = 1; f < MOE_FORMAT_COUNT; f++)
        check(moe_format_by_name(moe_format_name(f)) == f, "names", "format %u", f);
    check(moe_format_by_name("Q4_k") == MOE_FORMAT_Q4_K && moe_format_by_name("MXFP4_hf") == MOE_FORMAT_MXFP4_HF,
          "names", "case");
    check(!moe_format_by_name("q4") && !moe_format_by_name("") && !moe_format_by_name(NULL) &&
              !moe_format_by_name("q4_kk"),
          "names", "unknown");
    check(!strcmp(moe_format_name(0), "?") && !strcmp(moe_format_name(MOE_FORMAT_COUNT), "?"), "names",
          "out of range");
    check(moe_row_bytes(MOE_FORMAT_INT4_GROUP, 100) == 52 && moe_row_bytes(MOE_FORMAT_Q4_K, 512) == 288 &&
              !moe_row_bytes(MOE_FORMAT_Q4_K, 384) && !moe_row_bytes(0, 32) &&
              !moe_row_bytes(MOE_FORMAT_F32, SIZE_MAX / 2),
          "row bytes", "wrong");
}

/* FP8_CHANNEL with scale 1, MXFP4's ties and extremes: what the golden rows do not hold. */
static void test_quantize(void) {
    float x[64], y[64];
    uint8_t bytes[64];
    for (int i = 0; i < 64; i++) x[i] = ldexpf(rnd_float(), (int)(rnd() % 20) - 10);
    check(moe_quantize(MOE_FORMAT_FP8_CHANNEL, x, 2, 32, bytes) == MOE_OK, "quantise", "fp8");
    for (int i = 0; i < 64; i++) check(bytes[i] == moei_to_e4m3(x[i]), "quantise", "fp8 value %d", i);
    check(moe_quantize(MOE_FORMAT_F32, x, 1, 16, bytes) == MOE_OK, "quantise", "f32");
    for (int i = 0; i < 16; i++) check(moei_load32(bytes + 4 * i) == moei_bits(x[i]), "quantise", "f32 value %d", i);
    memset(x, 0, sizeof x);
    x[0] = 127.0f, x[1] = 0.5f, x[2] = -2.5f, x[3] = 3.5f; /* d = 1: halves are rounded away from zero */
    moe_quantize(MOE_FORMAT_Q8_0, x, 1, 32, bytes);
    check(bytes[2] == 127 && bytes[3] == 1 && bytes[4] == 0xfd && bytes[5] == 4, "quantise", "q8_0 halves");
    for (int e = -149; e < 128; e++) { /* every size of block, to the edges of f32 */
        for (int i = 0; i < 32; i++) x[i] = ldexpf((float)(i % 7) - 3.0f, e > 125 ? 125 : e);
        moe_matrix m;
        memset(&m, 0, sizeof m);
        m.format = MOE_FORMAT_MXFP4, m.data = bytes;
        moe_quantize(MOE_FORMAT_MXFP4, x, 1, 32, bytes);
        moe_dequantize(&m, 0, 1, 1, 32, 0, 1, y);
        int bad = 0;
        for (int i = 0; i < 32; i++) bad += e >= -127 && y[i] != x[i]; /* 0 to 3 are codes of E2M1 */
        check(!bad, "quantise", "mxfp4 at 2^%d: %d values", e, bad);
    }
}

static void test_elementwise(void) {
    enum { N = 37 };
    float x[N], y[N], e[N], s[N], a[N], v[N];
    int bad = 0;
    for (int i = 0; i < N; i++) x[i] = 20.0f * rnd_float(), y[i] = a[i] = rnd_float(), v[i] = rnd_float();
    moei_vec_c.exp(e, x, N);
    moei_vec_c.sigmoid(s, x, 1.702f, N);
    moei_vec_c.axpy(a, x, 0.3f, N);
    moei_vec_c.affine(v, x, y, N);
    for (int i = 0; i < N; i++) {
        bad += fabs((double)e[i] - exp((double)x[i])) > 1.2e-7 * exp((double)x[i]);
        bad += fabs((double)s[i] - 1.0 / (1.0 + exp(-1.702 * (double)x[i]))) > 4e-6;
        bad += a[i] != fmaf(0.3f, x[i], y[i]);
    }
    check(!bad, "elementwise", "%d values wrong", bad);
}

int main(void) {
    test_blocks();
    test_hf();
    test_tables();
    test_special();
    test_rounding();
    test_fma();
    test_exp();
    test_every_format();
    test_zero_sign();
    test_q8_prepare();
    test_guards();
    test_transposed(MOE_FORMAT_F32);
    test_transposed(MOE_FORMAT_F16);
    test_transposed(MOE_FORMAT_BF16);
    test_views();
    test_arrays();
    test_row_scale();
    test_zero_points();
    test_tight_experts();
    test_validate();
    test_errors();
    test_names();
    test_quantize();
    test_elementwise();
    printf("test_formats: %d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed != 0;
}
