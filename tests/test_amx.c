/* test_amx.c: the tier `amx`, its tile instructions emulated in C (and run for real where the processor has them): every result
   equals the definition bit for bit, whatever the rows, tokens and depth; layers against the float64 oracle; the same bits for
   any tasks and split; nothing read beyond rows and tokens; no tile state left behind.
   cc -std=c11 -O2 -I. -Itests -o test_amx tests/test_amx.c -lm && ./test_amx */
#define _DEFAULT_SOURCE
#define MOE_IMPLEMENTATION
#include "amx_emulation.h"
#include "guarded.h"
#define main test_layer_main /* its random layers, oracle and comparisons, with the tier in moe_tiers() */
#include "test_layer.c"
#undef main

#if MOEI_HAVE_AMX
static void check(int ok, const char *what) {
    passed += ok != 0;
    if (!ok) FAIL("%s", what);
}

/* ---- the instructions ---- */

static void test_arithmetic(void) {
    const float min = amx_float(0x00800000u), sub = amx_float(0x007fffffu), e = 1.0f / 8388608.0f; /* 2^-23 */
    check(amx_fma(sub, 4.0f, 1.0f) == 1.0f && amx_fma(sub, 4.0f, 0.0f) == 0.0f, "subnormal factors are zeros");
    check(amx_bits(amx_fma(min, 0.5f, 0.0f)) == 0 && amx_bits(amx_fma(-min, 0.5f, 0.0f)) == 0x80000000u,
          "subnormal results are zeros");
    check(amx_add(sub, 0.0f) == 0.0f, "subnormal sums are zeros");
    check(amx_fma(1.0f + e, 1.0f + e, -1.0f) == fmaf(1.0f + e, 1.0f + e, -1.0f), "products are not rounded");
    check(amx_fma(min, 1.0f - e * 0.5f, 0.0f) == 0.0f, "tiny is what 24 bits can tell from 2^-126");
    check(amx_fma(1.0f + e, 1.0f - e * 0.5f, 0.0f) > 0.0f && amx_fma(min, 1.0f, 0.0f) == min,
          "2^-126 itself is no subnormal");
}
/* The processor's FMA with DAZ and FTZ set is what the manual says each step is. Exponents meet where results are tiny. */
__attribute__((target("fma"))) static long differ_from_processor(long rounds) {
    rl_rng rng = {2};
    long bad = 0;
    unsigned mode = _mm_getcsr();
    for (long i = 0; i < rounds; i++) {
        uint32_t u = (uint32_t)rl_u64(&rng), v = (uint32_t)rl_u64(&rng), w = (uint32_t)rl_u64(&rng),
                 e = 1 + rl_below(&rng, 128);
        if (i & 1) u &= 0xffff0000u, v &= 0xffff0000u;
        float a = amx_float((u & 0x807fffffu) | e << 23),
              b = amx_float((v & 0x807fffffu) | (128 - e + (v >> 23) % 4) << 23);
        float c = amx_float((w & 0x807fffffu) | rl_below(&rng, 4) << 23), mine = amx_fma(a, b, c);
        if (i % 4 == 0)
            a = amx_float(0x00800000u), b = amx_float(0x3f7ffff8u + rl_below(&rng, 16)),
            c = amx_float(w & 0x80000000u), mine = amx_fma(a, b, c);
        __m128 x = _mm_set_ss(a), y = _mm_set_ss(b), z = _mm_set_ss(c);
        _mm_setcsr(mode | 0x8040);
        z = _mm_fmadd_ss(x, y, z);
        __asm__ volatile("" : "+x"(z));
        _mm_setcsr(mode);
        bad += !(amx_bits(_mm_cvtss_f32(z)) == amx_bits(mine) || mine != mine);
    }
    return bad;
}
static void test_processor_fma(void) {
    if (!__builtin_cpu_supports("fma")) {
        printf("  not exercised: the processor's fma, to check the emulation's\n");
        skipped++;
        return;
    }
    long bad = differ_from_processor(4000000);
    passed += bad == 0;
    if (bad) FAIL("emulated fma: %ld differ from the processor's with DAZ and FTZ", bad);
}
static void test_tiles(void) {
    uint8_t config[64] = {1};
    uint16_t a[16][32], b[16][32];
    float c[16][16];
    rl_rng rng = {3};
    long faults = amx_faults;
    for (int t = 0; t < 8; t++) config[16 + 2 * t] = 64, config[48 + t] = 16;
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 32; k++) a[i][k] = moei_to_bf16(rl_gauss(&rng)), b[i][k] = moei_to_bf16(rl_gauss(&rng));
    amx_CONFIG(config);
    amx_LOAD(0, a, 64), amx_LOAD(1, b, 64), amx_ZERO(2), amx_DOT(2, 0, 1), amx_DOT(2, 0, 1), amx_STORE(2, c, 64);
    float even = 0, odd = 0;
    for (int k = 0; k < 16; k++)
        even = fmaf(moei_bf16(a[5][2 * k]), moei_bf16(b[k][2 * 7]), even),
        odd = fmaf(moei_bf16(a[5][2 * k + 1]), moei_bf16(b[k][2 * 7 + 1]), odd);
    check(c[5][7] == (even + odd) + (even + odd), "tdpbf16ps, twice");
    check(amx_faults == faults, "no faults so far");
    amx_DOT(2, 0, 0);
    check(amx_faults == ++faults, "equal operands are a fault");
    amx_RELEASE(0), amx_ZERO(0);
    check(amx_faults == ++faults, "a released tile is a fault");
    config[48 + 1] = 8, amx_CONFIG(config), amx_DOT(2, 0, 1), amx_RELEASE(0);
    check(amx_faults == ++faults, "shapes that don't fit are a fault");
    config[0] = 2, amx_CONFIG(config), amx_RELEASE(0);
    check(amx_faults == ++faults, "an unknown palette is a fault");
    amx_faults = 0;
}
static void test_transpose(void) { /* with AVX-512 and in C */
    static uint32_t in[16][16], out[2][16][20];
    const uint8_t *from[16];
    for (uint32_t i = 0; i < 16; i++)
        for (uint32_t j = 0; j < 16; j++) in[i][j] = i * 16 + j;
    int ok = 1;
    for (uint32_t n = 1; n <= 16; n++)
        for (uint32_t m = 1; m <= 16; m += 5) {
            memset(out, 0xee, sizeof out);
            for (uint32_t i = 0; i < 16; i++) from[i] = i < n ? (const uint8_t *)in[i] : NULL;
            for (amx_plain = 0; amx_plain < 2; amx_plain++)
                amx_moei_transpose_amx(from, n, (uint8_t *)out[amx_plain], 80, m);
            for (uint32_t j = 0; j < m; j++)
                for (uint32_t i = 0; i < n; i++) ok &= out[0][j][i] == i * 16 + j;
            ok &= !memcmp(out[0], out[1], sizeof out[0]);
        }
    amx_plain = 0;
    check(ok, "transpose");
}
static void test_permission(void) { /* init never asks for it: the tier exists only where the process has it */
    moei_cpuid id;
    memset(&id, 0xff, sizeof id);
    check(moei_cpu_decide(&id) >> MOE_TIER_AMX & 1, "amx where everything is there");
    id.permitted = ~(1ull << 18);
    check(!(moei_cpu_decide(&id) >> MOE_TIER_AMX & 1) && (moei_cpu_decide(&id) >> MOE_TIER_AVX512BF16 & 1),
          "amx without permission");
    id.permitted = ~0ull, id.xcr0 = ~(1ull << 17);
    check(!(moei_cpu_decide(&id) >> MOE_TIER_AMX & 1), "amx without the system's support");
    id.xcr0 = ~0ull, id.leaf7_edx = ~(1u << 22);
    check(!(moei_cpu_decide(&id) >> MOE_TIER_AMX & 1), "amx-tile without amx-bf16");
}

/* ---- products ---- */

enum { ROWS = 80, TOKENS = 300, DEPTH = 6208 };
static float weight[ROWS][DEPTH], token[TOKENS][DEPTH], expect[TOKENS][ROWS], got[TOKENS][ROWS + 3];
static const float untouched = -123.5f;

/* moe.h's words, from the values: bf16 by rounding to nearest even, subnormals are zeros. */
static float define_dot(const float *w, const float *x, size_t k) {
    float sum = 0.0f;
    for (size_t block = 0; block < k; block += 32) {
        float chain[2] = {0.0f, 0.0f};
        for (size_t i = block; i < block + 32; i++) {
            float a = i < k ? moei_bf16(moei_to_bf16(amx_flush(w[i]))) : 0.0f,
                  b = i < k ? moei_bf16(moei_to_bf16(amx_flush(x[i]))) : 0.0f;
            chain[i % 2] = amx_fma(a, b, chain[i % 2]);
        }
        sum = amx_add(sum, amx_add(chain[0], chain[1]));
    }
    return sum;
}
static int same_float(float a, float b) { return moei_bits(a) == moei_bits(b) || (a != a && b != b); }

/* A matrix and its tokens. Scales, of formats that have them apart, are a grid of grid_rows x grid_cols. */
typedef struct subject {
    guarded rows, tokens, packed, scales;
    moei_rows w;
    const moei_arith *arith;
    int by_panel;
    const void *x[TOKENS];
} subject;
static int is_fp8(uint32_t format) {
    return format == MOE_FORMAT_FP8_BLOCK || format == MOE_FORMAT_FP8_CHANNEL || format == MOE_FORMAT_MXFP8;
}
static void subject_grid(subject *s, size_t k, uint32_t grid_rows, uint32_t grid_cols, int at_end, rl_rng *rng) {
    const size_t size = s->w.format == MOE_FORMAT_MXFP8 ? 1 : 4, lines = (ROWS + grid_rows - 1) / grid_rows,
                 n = (k + grid_cols - 1) / grid_cols;
    s->scales = guarded_new(lines * n * size, at_end);
    s->w.scale.data = s->scales.data, s->w.scale.row_stride = n * size, s->w.scale.rows = grid_rows,
    s->w.scale.cols = grid_cols;
    s->w.scale.type = size == 1 ? MOE_TYPE_E8M0 : MOE_TYPE_F32;
    for (size_t i = 0; i < lines * n; i++)
        if (size == 1) s->scales.data[i] = (uint8_t)(120 + rl_below(rng, 14));
        else rl_put_dense(MOE_FORMAT_F32, s->scales.data + 4 * i, 0.5f + fabsf(rl_gauss(rng)));
}
static void subject_new(subject *s, uint32_t format, size_t k, uint32_t grid_rows, uint32_t grid_cols,
                        uint32_t n_tokens, int at_end, uint64_t seed) {
    const size_t size = moei_layouts[format].bytes, row = moei_bf16_row_bytes(k);
    rl_rng rng = {seed};
    memset(s, 0, sizeof *s);
    s->arith = &moei_bf16_amx;
    s->w.row_stride = k * size + 6, s->w.k = k, s->w.format = format;
    s->rows = guarded_new(s->w.row_stride * (ROWS - 1) + k * size, at_end), s->w.data = s->rows.data;
    s->tokens = guarded_new(row * n_tokens, at_end), s->packed = guarded_new(row * n_tokens, at_end);
    if (grid_cols) subject_grid(s, k, grid_rows, grid_cols, at_end, &rng);
    for (uint32_t r = 0; r < ROWS; r++) {
        uint8_t *p = s->rows.data + r * s->w.row_stride;
        for (size_t i = 0; i < k; i++, p += size) {
            float f = rl_one_in(&rng, 50) ? moei_float((uint32_t)rl_u64(&rng) & 0x80ffffffu)
                                          : rl_gauss(&rng); /* around 2^-126 */
            if (!is_fp8(format)) rl_put_dense(format, p, f);
            else *p = (uint8_t)rl_u64(&rng), *p ^= (*p & 127) == 127 && rl_below(&rng, 20); /* a NaN in 2500 */
        }
        moei_decode_row(&s->w, r, 0, k, weight[r]);
    }
    for (uint32_t t = 0; t < n_tokens; t++) {
        for (size_t i = 0; i < k; i++)
            token[t][i] = rl_one_in(&rng, 50) ? moei_float((uint32_t)rl_u64(&rng) & 0x80ffffffu) : rl_gauss(&rng);
        if (t % 7 == 3) token[t][rl_below(&rng, (uint32_t)k)] = moei_float(0x7fc00001u);
        if (t % 7 == 5) token[t][rl_below(&rng, (uint32_t)k)] = moei_float(0xff800000u);
        if (t % 7 == 6) token[t][rl_below(&rng, (uint32_t)k)] = 3.0e38f;
        memset(s->tokens.data + t * row, 0xff, row);
        for (size_t i = 0; i < k; i += 96)
            moei_bf16_amx.prepare(s->tokens.data + t * row, token[t] + i, i, k - i < 96 ? k - i : 96, k);
        s->x[t] = s->tokens.data + t * row;
        for (size_t r = 0; r < ROWS; r++) expect[t][r] = define_dot(weight[r], token[t], k);
    }
}
static void subject_free(subject *s) {
    guarded_free(&s->rows), guarded_free(&s->tokens), guarded_free(&s->packed);
    if (s->scales.data) guarded_free(&s->scales);
}

/* Rows row0 .. and the first n tokens, packed: the definition's bits, and nothing else written. */
static size_t wrong_products(subject *s, uint32_t row0, uint32_t n_rows, uint32_t n) {
    size_t wrong = 0, bytes = moei_bf16_row_bytes(s->w.k);
    const void *x[TOKENS];
    s->w.row0 = row0, s->w.prefetch = n_rows & 1 ? s->w.data : NULL, s->w.prefetch_bytes = n_rows & 1 ? 4096 : 0;
    memcpy(x, s->x, sizeof x);
    moei_pack(s->arith, x, n, s->w.k, s->packed.data);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t r = 0; r < ROWS + 3; r++) got[t][r] = untouched;
    moei_begin_amx();
    if (!s->by_panel) {
        s->arith->ops[s->w.format].dot(&s->w, n_rows, x, n, got[0], ROWS + 3);
    } else {
        guarded panel = guarded_new(s->arith->panel_bytes(n_rows, s->w.k), 1);
        check(s->arith->panel_bytes(n_rows, s->w.k) == n_rows * bytes, "size of a panel");
        moei_decode_default(s->arith, &s->w, n_rows, panel.data);
        s->arith->panel(panel.data, &s->w, n_rows, x, n, got[0], ROWS + 3);
        guarded_free(&panel);
    }
    moei_end_amx();
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t r = 0; r < ROWS + 3; r++)
            wrong += !same_float(got[t][r], t < n && r < n_rows ? expect[t][row0 + r] : untouched);
    return wrong;
}
static const uint32_t row_counts[] = {1, 2, 15, 16, 17, 31, 32, 33, 48, 64, 79, 80};
static const uint32_t token_counts[] = {1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 47, 65};
static const size_t depths[] = {1, 2, 31, 32, 33, 63, 64, 100, 319, 320, 321, 352, 511, 512, 513, 640, 1001, 1025};

/* Formats in turn; fp8 with scales a part of k may begin and end among, and others. */
static void test_products(void) {
    static const struct {
        uint32_t format, grid_rows, grid_cols;
    } kinds[] = {{MOE_FORMAT_BF16, 0, 0},        {MOE_FORMAT_F32, 0, 0},         {MOE_FORMAT_F16, 0, 0},
                 {MOE_FORMAT_FP8_CHANNEL, 0, 0}, {MOE_FORMAT_FP8_BLOCK, 7, 128}, {MOE_FORMAT_FP8_BLOCK, 128, 96},
                 {MOE_FORMAT_FP8_BLOCK, 3, 50},  {MOE_FORMAT_FP8_BLOCK, 1, 600}, {MOE_FORMAT_FP8_BLOCK, 16, 1024},
                 {MOE_FORMAT_MXFP8, 1, 32}};
    for (size_t d = 0; d < MOEI_COUNT(depths); d++)
        for (size_t i = 0; i < MOEI_COUNT(kinds); i++) {
            subject s;
            size_t wrong = 0, k = depths[d], seldom = kinds[i].format != MOE_FORMAT_BF16;
            if (kinds[i].grid_cols >= k && kinds[i].grid_cols > 32)
                continue; /* such a scale would be constant along the row */
            subject_new(&s, kinds[i].format, k, kinds[i].grid_rows, kinds[i].grid_cols, 65, (int)(d + i) & 1, d);
            for (size_t r = i % 2 * seldom; r < MOEI_COUNT(row_counts); r += 1 + seldom)
                for (size_t t = (d + r) % 3; t < MOEI_COUNT(token_counts); t += seldom ? 6 : k > 400 ? 4 : 2) {
                    uint32_t n = row_counts[r];
                    s.arith = r & 2 ? &moei_bf16_amx : &moei_bf16_amx_vbmi, s.by_panel = seldom && t + r > 18;
                    wrong += wrong_products(&s, d & 1 ? ROWS - n : 0, n, token_counts[t]);
                }
            subject_free(&s);
            passed += wrong == 0;
            if (wrong)
                FAIL("products: %s, grid of %u, depth %zu: %zu wrong", moe_format_name(kinds[i].format),
                     kinds[i].grid_cols, k, wrong);
        }
}
/* More tokens than are taken at a time; more of k than lets them stay in L2, with room for the sums of all rows, of some, and none. */
static void test_large_products(void) {
    subject s;
    subject_new(&s, MOE_FORMAT_BF16, 70, 0, 0, TOKENS, 1, 77);
    for (uint32_t n = 255; n < TOKENS; n += 6) check(wrong_products(&s, 0, 33, n) == 0, "products: many tokens");
    subject_free(&s);
    subject_new(&s, MOE_FORMAT_BF16, DEPTH - 5, 0, 0, 79, 1, 78);
    for (uint32_t n = 17; n <= ROWS; n += 21)
        for (size_t blocks = 0; blocks <= 3; blocks++) {
            guarded sums = guarded_new(blocks * 3 * 4096 + 64, 1);
            s.w.sums = (float *)(void *)sums.data, s.w.n_sums = blocks * 3 * 1024;
            check(wrong_products(&s, ROWS - n, n, 79) == 0, "products: long rows");
            guarded_free(&sums);
        }
    subject_free(&s);
    amx_plain = 1; /* the same without AVX-512 */
    subject_new(&s, MOE_FORMAT_F32, 100, 0, 0, 40, 1, 79);
    check(wrong_products(&s, 3, 32, 40) == 0, "products: without AVX-512");
    subject_free(&s);
    amx_plain = 0;
    check(amx_faults == 0, "products: no faults");
}

/* ---- layers ---- */

/* No tile state between tasks, in whole calls and phase by phase. */
static void test_state(void) {
    rl_layer l;
    call c;
    moe_error e;
    rl_make(&l, 5, MOE_FORMAT_BF16, MOE_FORMAT_BF16, 1, 70);
    l.desc.tiers = moe_tier_mask(MOE_TIER_AMX);
    rl_rng rng = {9};
    call_new(&c, &l, 20, &rng);
    check(moe_layer_init(&c.layer, &l.desc, &e) == MOE_OK && moe_layer_tier(&c.layer) == MOE_TIER_AMX,
          "a layer on amx");
    check(moe_layer_compute(&c.layer, MOE_GATE) == MOE_COMPUTE_BF16 &&
              moe_layer_compute(&c.layer, MOE_DOWN) == MOE_COMPUTE_BF16,
          "bf16 by default");
    amx_configs = amx_releases = amx_dots = 0;
    check(run(&c, 3, 0) == MOE_OK && amx_dots > 0, "a call");
    check(!amx_state.configured && amx_configs == amx_releases && amx_configs > 0, "released after a call");
    c.io.n_tasks = 3, c.io.workspace_size = moe_workspace_size(&c.layer, c.n, 3),
    c.io.workspace = grab(c.io.workspace_size);
    int clean = 1;
    for (uint32_t phase = 0; phase < moe_phase_count(&c.layer, &c.io); phase++)
        for (uint32_t i = 0; i < 3; i++) {
            clean &= moe_phase_run(&c.layer, &c.io, phase, i, 3) == MOE_OK && !amx_state.configured;
        }
    check(clean && amx_configs == amx_releases, "released after every task");
    free(c.io.workspace);
    call_free(&c);
    rl_free(&l);
}
/* Tokens whose expert has more slots than are packed at a time, and many more tokens than a group. */
static void test_many_tokens(void) {
    rl_layer l;
    call c;
    enum { N = 700 };
    rl_make(&l, 12, MOE_FORMAT_BF16, MOE_FORMAT_BF16, 1, 40);
    l.desc.tiers = moe_tier_mask(MOE_TIER_AMX), l.desc.compute = MOE_COMPUTE_BF16;
    l.desc.router.capacity = 0, l.desc.router.capacity_factor = 0;
    rl_rng rng = {10};
    call_new(&c, &l, N, &rng);
    float *want = (float *)grab(N * c.d * 4);
    if (moe_layer_init(&c.layer, &l.desc, NULL) || run(&c, 2, 0)) FAIL("many tokens: init or run");
    memcpy(want, c.y, N * c.d * 4);
    int ok = 1;
    c.io.n_tokens = 1, c.io.ids_out = NULL, c.io.weights_out = NULL, c.io.logits_out = NULL;
    for (size_t t = 0; t < N; t += 23) {
        c.io.x = c.x + t * c.d;
        ok &= run(&c, 1, 0) == MOE_OK && !memcmp(c.y, want + t * c.d, c.d * 4);
    }
    check(ok, "one token and 700 have the same bits");
    free(want);
    call_free(&c);
    rl_free(&l);
}
/* Ids that repeat give an expert more slots than the call has tokens: down takes them in several chunks, of whole groups. */
static void test_repeated_ids(void) {
    enum { D = 928, FF = 40, N = 70, K = 3 };
    static uint16_t gate[FF * D], up[FF * D], down[D * FF];
    static float x[N * D], y[N * D], one[D], weights[N * K];
    static int32_t ids[N * K];
    rl_rng rng = {15};
    moe_desc d;
    moe_layer l;
    moe_io io;
    memset(&d, 0, sizeof d), memset(&io, 0, sizeof io);
    for (size_t i = 0; i < FF * D; i++)
        gate[i] = moei_to_bf16(rl_gauss(&rng)), up[i] = moei_to_bf16(rl_gauss(&rng)),
        down[i] = moei_to_bf16(rl_gauss(&rng));
    for (size_t i = 0; i < N * D; i++) x[i] = rl_gauss(&rng);
    for (size_t i = 0; i < N * K; i++) weights[i] = rl_gauss(&rng);
    moe_preset(&d, "mixtral");
    d.d_model = D, d.d_ff = FF, d.n_experts = 1, d.top_k = 1, d.tiers = moe_tier_mask(MOE_TIER_AMX);
    d.gate.format = d.up.format = d.down.format = MOE_FORMAT_BF16, d.gate.data = gate, d.up.data = up,
    d.down.data = down;
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = N, io.ids_in = ids,
    io.weights_in = weights, io.k = K;
    if (moe_layer_init(&l, &d, NULL)) FAIL("repeated ids: init");
    io.workspace_size = moe_workspace_size(&l, N * K, 1), io.workspace = grab(io.workspace_size);
    int ok = moe_forward(&l, &io) == MOE_OK;
    io.y = one, io.n_tokens = 1;
    for (size_t t = 0; t < N; t++) {
        io.x = x + t * D, io.weights_in = weights + t * K;
        ok &= moe_forward(&l, &io) == MOE_OK && !memcmp(one, y + t * D, sizeof one);
    }
    check(ok, "repeated ids: one token and 70 have the same bits");
    free(io.workspace);
}
static void test_layers(int rounds) {
    static const uint32_t splits[] = {MOE_FORMAT_F32, MOE_FORMAT_BF16, MOE_FORMAT_FP8_CHANNEL, MOE_FORMAT_Q4_0};
    const uint32_t tiers = moe_tier_mask(MOE_TIER_AMX);
    for (uint32_t f = MOE_FORMAT_F32; f < MOE_FORMAT_COUNT; f++)
        for (int i = 0; i < (f == MOE_FORMAT_BF16 ? 16 * rounds : rounds); i++)
            one_random(900000 + 1000 * f + (uint64_t)i, f, f, MOE_COMPUTE_BF16, tiers, unit_of(f));
    for (size_t i = 0; i < MOEI_COUNT(splits); i++)
        same_bits(990000 + i, splits[i], MOE_COMPUTE_BF16, unit_of(splits[i]));
    check(amx_faults == 0, "layers: no faults");
}

/* ---- the processor's own instructions, if it has them: the emulation's bits ---- */

static void test_real(void) {
    if (!moe_enable_amx()) {
        printf("  not exercised: the processor's own tile instructions\n");
        skipped++;
        return;
    }
    amx_real = 1;
    test_products();
    test_large_products();
    test_many_tokens();
    test_layers(1);
    amx_real = 0;
}

int main(int argc, char **argv) {
    test_arithmetic();
    test_processor_fma();
    test_tiles();
    test_transpose();
    test_permission();
    test_products();
    test_large_products();
    test_state();
    test_many_tokens();
    test_repeated_ids();
    test_layers(argc > 1 ? atoi(argv[1]) : 1);
    test_real();
    printf("  worst part of the bound used: bf16 on amx %.1f %%\n", 100 * worst[MOE_COMPUTE_BF16][MOE_FORMAT_BF16]);
    printf("test_amx: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
#else
int main(void) {
    printf("  not exercised: amx, which this compiler or target does not build\n");
    (void)&test_layer_main;
    printf("test_amx: 0 passed, 0 failed, 1 skipped\n");
    return 0;
}
#endif
