/* The same bits whatever the schedule: stored hashes of a fixed computation in every format; any order of tasks, on threads and
   in teams; every split and order of the tokens; any workspace; whatever the other tokens hold; the pieces of the API put
   together again; many threads with one layer; other rounding modes, which must come back unchanged.
       test_invariance [ROUNDS]    hashes: only those    threads: only what runs threads    --print: prints data/hashes.h */
#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define MOE_IMPLEMENTATION
#include "moe.h"
#include <fenv.h>
#include <float.h>
#include <stdio.h>
#include <stdlib.h>
#include "oracle.h"
#include "random_layer.h"
#include "pool.h"
#include "data/hashes.h"

static int passed, failed, skipped;
#define FAIL(...) (failed++, printf("FAIL "), printf(__VA_ARGS__), printf("\n"))
#define COUNT(a)  (sizeof(a) / sizeof((a)[0]))

static void *grab(size_t n) {
    void *p = calloc(n ? n : 1, 1);
    if (!p) abort();
    return p;
}
static uint32_t unit_of(uint32_t format) { /* the least row length that the format takes */
    uint32_t n = 1;
    while (!moe_row_bytes(format, n)) n *= 2;
    return n;
}
static int has_q8(uint32_t f) {
    return f >= MOE_FORMAT_Q8_0 && f != MOE_FORMAT_MXFP8 && f != MOE_FORMAT_FP8_BLOCK && f != MOE_FORMAT_FP8_CHANNEL;
}
static uint32_t least_unit(uint32_t format, uint32_t compute) {
    uint32_t unit = unit_of(format);
    return compute == MOE_COMPUTE_Q8 && unit < 32 ? 32 : unit;
}

/* ---- a fixed computation: every bit of it comes from integers, weights lie as in files ---- */

enum { FIXED_E = 5, FIXED_K = 2, FIXED_T = 9 };

/* A float of 2^exponent .. 2^(exponent + 4), either sign, all mantissas. */
static uint32_t some_f32(rl_rng *r, int exponent) {
    uint32_t u = (uint32_t)(rl_u64(r) >> 32);
    return (u & 0x807fffffu) | ((uint32_t)(127 + exponent) + (u >> 23 & 3)) << 23;
}
static uint32_t some_f16(rl_rng *r, int exponent) {
    uint32_t u = (uint32_t)(rl_u64(r) >> 32);
    return (u & 0x83ffu) | ((uint32_t)(15 + exponent) + (u >> 16 & 1)) << 10;
}
static void put(uint8_t *p, uint32_t v, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)(v >> 8 * i);
}
static void put_float(rl_rng *r, uint32_t type, int exponent, uint8_t *p) {
    if (type == MOE_TYPE_F32) put(p, some_f32(r, exponent), 4);
    else if (type == MOE_TYPE_BF16) put(p, some_f32(r, exponent) >> 16, 2);
    else put(p, some_f16(r, exponent), 2);
}

static void fixed_array(rl_layer *l, moe_array *a, uint32_t type, size_t n, int exponent) {
    size_t size = moei_type_bytes[type];
    uint8_t *p = (uint8_t *)rl_alloc(l, n * size);
    for (size_t i = 0; i < n; i++) put_float(&l->rng, type, exponent, p + i * size);
    a->type = type, a->data = p;
}

/* Blocks whose integers are random bytes and whose half-precision scales make weights of about 1/8. */
static void fixed_blocks(rl_rng *r, const rl_block *b, uint8_t *p, size_t bytes) {
    int log2 = 0;
    while ((float)(1 << log2) < b->range) log2++;
    for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)(rl_u64(r) >> 56);
    if (b->d >= 0) put(p + b->d, some_f16(r, -3 - log2), 2);
    if (b->m >= 0)
        put(p + b->m, some_f16(r, b->format == MOE_FORMAT_Q4_1 || b->format == MOE_FORMAT_Q5_1 ? -4 : -3 - log2), 2);
    if (b->format == MOE_FORMAT_MXFP4) p[0] = (uint8_t)(122 + rl_below(r, 3));
    if (b->format == MOE_FORMAT_NVFP4)
        for (int i = 0; i < 4; i++) p[i] = (uint8_t)(8 + rl_below(r, 30));
}

static void fixed_grid(rl_layer *l, moe_matrix *m, size_t rows, size_t k) {
    uint32_t f = m->format, own = f == MOE_FORMAT_NVFP4_HF                            ? MOE_TYPE_E4M3
                                  : f == MOE_FORMAT_MXFP4_HF || f == MOE_FORMAT_MXFP8 ? MOE_TYPE_E8M0
                                                                                      : 0;
    int exponent = f == MOE_FORMAT_INT4_GROUP ? -7 : f == MOE_FORMAT_MXFP4_HF ? -5 : -11;
    m->scale.type = own ? own : f == MOE_FORMAT_INT4_GROUP ? MOE_TYPE_BF16 : MOE_TYPE_F32;
    if (f == MOE_FORMAT_INT4_GROUP) m->scale.cols = 32;
    m->scale.data = ""; /* so that the shape can be asked for */
    moei_side side = moei_scale_of(m, NULL, MOE_UP, 0, rows, k);
    size_t size = moei_type_bytes[m->scale.type],
           n = FIXED_E * ((rows + side.rows - 1) / side.rows) * (side.row_stride / size);
    uint8_t *p = (uint8_t *)rl_alloc(l, n * size);
    m->scale.data = p;
    for (size_t i = 0; i < n; i++, p += size) {
        if (own == MOE_TYPE_E8M0) *p = (uint8_t)(127 + exponent + (int)rl_below(&l->rng, 3));
        else if (own) *p = (uint8_t)(8 + rl_below(&l->rng, 30));
        else put_float(&l->rng, m->scale.type, exponent, p);
    }
    if (f != MOE_FORMAT_INT4_GROUP) return;
    p = (uint8_t *)rl_alloc(l, n);
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)rl_below(&l->rng, 16);
    m->zero.type = MOE_TYPE_U8, m->zero.data = p;
}

static void fixed_matrix(rl_layer *l, moe_matrix *m, uint32_t format, size_t rows, size_t k) {
    static const uint32_t types[] = {0, MOE_TYPE_F32, MOE_TYPE_F16, MOE_TYPE_BF16}; /* of the dense formats */
    const rl_block *b = rl_find_block(format);
    size_t bytes = FIXED_E * rows * moe_row_bytes(format, k), step = b ? moe_row_bytes(format, unit_of(format)) : 1;
    uint8_t *p = (uint8_t *)rl_alloc(l, bytes);
    m->format = format, m->data = p;
    if (format <= MOE_FORMAT_BF16) {
        step = moe_row_bytes(format, 1);
        for (size_t i = 0; i < bytes; i += step) put_float(&l->rng, types[format], -6, p + i);
        return;
    }
    for (size_t i = 0; i < bytes; i += step) {
        if (b) fixed_blocks(&l->rng, b, p + i, step);
        else p[i] = (uint8_t)(rl_u64(&l->rng) >> 56);
        if ((format >= MOE_FORMAT_MXFP8 && format <= MOE_FORMAT_FP8_CHANNEL) && (p[i] & 0x7f) == 0x7f)
            p[i] = 0x30; /* no NaN */
    }
    if (!b) fixed_grid(l, m, rows, k);
    if (format == MOE_FORMAT_NVFP4 || format == MOE_FORMAT_NVFP4_HF)
        fixed_array(l, &m->scale2, MOE_TYPE_F32, FIXED_E, -4);
}

/* Scores, activation and shared experts change with the format, so that the hashes cover them all. */
static void fixed_make(rl_layer *l, float *x, uint32_t format, uint32_t compute) {
    static const uint32_t kinds[] = {MOE_SHARED_PLAIN, MOE_SHARED_SIGMOID, MOE_SHARED_SOFTMAX2};
    uint32_t unit = least_unit(format, compute);
    moe_desc *d = &l->desc;
    memset(l, 0, sizeof *l);
    l->rng.s = 1000 * format + compute;
    d->d_model = unit == 256 ? 256 : 250 / unit * unit, d->d_ff = unit == 256 ? 256 : 203 / unit * unit;
    d->n_experts = FIXED_E, d->top_k = FIXED_K, d->compute = compute;
    d->router.score = format % 3, d->router.norm = format % 2, d->ffn.activation = format % 7;
    fixed_matrix(l, &d->gate, format, d->d_ff, d->d_model);
    fixed_matrix(l, &d->up, format, d->d_ff, d->d_model);
    fixed_matrix(l, &d->down, format, d->d_model, d->d_ff);
    fixed_array(l, &d->down.bias, MOE_TYPE_BF16, FIXED_E * d->d_model, -6);
    fixed_matrix(l, &d->router.weight, MOE_FORMAT_F32, FIXED_E, d->d_model);
    fixed_array(l, &d->router.select_bias, MOE_TYPE_F16, FIXED_E, -4);
    d->shared.d_ff = d->d_ff, d->shared.gate_kind = kinds[format / 3 % 3];
    fixed_matrix(l, &d->shared.gate, format, d->d_ff, d->d_model);
    fixed_matrix(l, &d->shared.up, format, d->d_ff, d->d_model);
    fixed_matrix(l, &d->shared.down, format, d->d_model, d->d_ff);
    fixed_matrix(l, &d->shared.gate_weight, MOE_FORMAT_F16, 2, d->d_model);
    if (d->shared.gate_kind == MOE_SHARED_PLAIN) memset(&d->shared.gate_weight, 0, sizeof d->shared.gate_weight);
    for (size_t i = 0; i < FIXED_T * d->d_model; i++) x[i] = moei_float(some_f32(&l->rng, -3));
}

static uint64_t hash_words(uint64_t h, const void *words,
                           size_t n) { /* FNV-1a of n 32-bit words as little-endian bytes */
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, (const uint8_t *)words + 4 * i, 4);
        for (int b = 0; b < 32; b += 8) h = (h ^ (u >> b & 255)) * 0x100000001b3u;
    }
    return h;
}

/* Hash of outputs, ids and weights; 0 if a status was returned or an output is no number. */
static uint64_t fixed_hash(uint32_t format, uint32_t compute, uint32_t tiers) {
    static float x[FIXED_T * 256], y[FIXED_T * 256], weights[FIXED_T * FIXED_K];
    static int32_t ids[FIXED_T * FIXED_K];
    uint64_t h = 0;
    rl_layer l;
    moe_layer layer;
    moe_io io;
    fixed_make(&l, x, format, compute);
    l.desc.tiers = tiers;
    memset(&io, 0, sizeof io);
    if (moe_layer_init(&layer, &l.desc, NULL) == MOE_OK) {
        io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = FIXED_T;
        io.ids_out = ids, io.weights_out = weights, io.n_tasks = 2;
        io.workspace_size = moe_workspace_size(&layer, FIXED_T, 2), io.workspace = grab(io.workspace_size);
        if (moe_forward(&layer, &io) == MOE_OK) {
            h = hash_words(0xcbf29ce484222325u, y, FIXED_T * l.desc.d_model);
            h = hash_words(hash_words(h, ids, COUNT(ids)), weights, COUNT(weights));
        }
        for (size_t i = 0; i < FIXED_T * l.desc.d_model; i++)
            if (!moei_is_finite(y[i])) h = 0;
        free(io.workspace);
    }
    rl_free(&l);
    return h;
}

/* Everything else that a desc or a call may ask for, one thing or two at a time, with weights in q8_0. */
// clang-format off
#define VARIANTS(X)                                                                                                  \
    X(latent) X(sink) X(ungated) X(clamp_pre) X(clamp_post) X(weight_at_input) X(weight_at_hidden) X(group_max)      \
    X(group_sum) X(per_group) X(sparsemixer) X(capacity) X(capacity_by_score) X(drop_below) X(top_p) X(zero_experts) \
    X(router_norm) X(softmax_selected) X(rows_of_16_bits) X(given_ids) X(transposed)
// clang-format on
enum {
#define X(name) V_##name,
    VARIANTS(X)
#undef X
        N_VARIANTS
};
static const char *const variant_names[] = {
#define X(name) #name,
    VARIANTS(X)
#undef X
};

static void variant_make(rl_layer *l, float *x, int v, uint32_t compute) {
    moe_desc *d = &l->desc;
    moe_router *r = &d->router;
    fixed_make(l, x, v == V_transposed ? MOE_FORMAT_F32 : MOE_FORMAT_Q8_0, compute);
    d->ffn.activation = (uint32_t)v % MOE_ACT_COUNT;
    if (v == V_zero_experts || v == V_group_max || v == V_group_sum || v == V_per_group)
        d->n_zero_experts = 1, fixed_array(l, &r->select_bias, MOE_TYPE_BF16, FIXED_E + 4, -4);
    switch (v) {
    case V_latent:
        d->latent.d = 64, d->latent.norm_eps = 1e-6f;
        fixed_matrix(l, &d->latent.in, MOE_FORMAT_Q8_0, 64, d->d_model);
        fixed_matrix(l, &d->latent.out, MOE_FORMAT_Q8_0, d->d_model, 64);
        fixed_array(l, &d->latent.norm, MOE_TYPE_F16, 64, -2);
        break;
    case V_sink:
        d->shared.gate_kind = MOE_SHARED_ROUTER_SINK, d->shared.count = 2, r->norm = MOE_NORM_SUM_WITH_SHARED;
        memset(&d->shared.gate_weight, 0, sizeof d->shared.gate_weight);
        break;
    case V_ungated:
        d->ffn.ungated = 1;
        memset(&d->gate, 0, sizeof d->gate), memset(&d->shared.gate, 0, sizeof d->shared.gate);
        break;
    case V_clamp_pre:
        d->ffn.activation = MOE_ACT_OAI, d->ffn.clamp = d->shared.clamp = MOE_CLAMP_PRE;
        d->ffn.limit = 1, d->shared.limit = 0.75f, d->ffn.alpha = 1.5f;
        break;
    case V_clamp_post:
        d->ffn.activation = MOE_ACT_SITU, d->ffn.clamp = d->shared.clamp = MOE_CLAMP_POST;
        d->ffn.limit = 1, d->shared.limit = 0.75f, d->ffn.beta = 2, d->ffn.linear_beta = 3;
        break;
    case V_weight_at_input: d->ffn.weight_at = MOE_WEIGHT_AT_INPUT; break;
    case V_weight_at_hidden: d->ffn.weight_at = MOE_WEIGHT_AT_HIDDEN, d->ffn.combine_scale = 0.3f; break;
    case V_group_max: r->group = MOE_GROUP_MAX, r->n_group = 3, r->topk_group = 1; break;
    case V_group_sum: r->group = MOE_GROUP_TOP2_SUM, r->n_group = 2, r->topk_group = 1; break;
    case V_per_group: r->group = MOE_GROUP_PER_GROUP, r->n_group = 2; break;
    case V_sparsemixer:
        r->pick = MOE_PICK_SPARSEMIXER, r->score = MOE_SCORE_SOFTMAX;
        memset(&r->select_bias, 0, sizeof r->select_bias);
        break;
    case V_capacity: r->capacity = 2, r->capacity_drop = MOE_DROP_PASS_THROUGH; break;
    case V_capacity_by_score:
        r->capacity_factor = 0.25f, r->capacity_by_score = r->capacity_norm_after = 1, r->norm = MOE_NORM_SUM;
        break;
    case V_drop_below: r->drop_below = 0.9f, r->norm = MOE_NORM_SUM; break;
    case V_top_p: r->top_p = 0.55f, r->norm = MOE_NORM_SUM; break;
    case V_zero_experts: d->n_zero_experts = 4, r->routed_scale = 2.7f; break;
    case V_router_norm:
        r->input_norm_eps = 1e-6f, r->logit_bf16 = 1, r->softcap = 3;
        fixed_array(l, &r->input_scale, MOE_TYPE_F32, d->d_model, 1);
        fixed_array(l, &r->expert_scale, MOE_TYPE_F16, FIXED_E, -1);
        break;
    case V_softmax_selected:
        r->weight_from = MOE_WEIGHT_SOFTMAX_SELECTED, r->select_on = MOE_SELECT_LOGIT;
        d->shared.gate_kind = MOE_SHARED_SOFTMAX2, d->ffn.expert_out_scale = 0.7f;
        fixed_array(l, &d->shared.gate_weight.bias, MOE_TYPE_F32, 2, -3);
        fixed_array(l, &d->ffn.out_bias, MOE_TYPE_F16, d->d_model, -6);
        break;
    case V_transposed: /* [k][gate, up], interleaved outputs */
        d->gate.k_stride = d->up.k_stride = 8 * (size_t)d->d_ff, d->gate.row_stride = d->up.row_stride = 8;
        d->gate.expert_stride = d->up.expert_stride = 4 * (size_t)d->d_ff;
        d->up.data = d->gate.data, d->up.offset = 4, d->down.k_stride = 4 * (size_t)d->d_model;
        break;
    default: break;
    }
}

/* Hash of outputs, ids and weights; 0 if a status was returned. */
static uint64_t variant_hash(int v, uint32_t compute, uint32_t tiers) {
    static float x[FIXED_T * 256], y[FIXED_T * FIXED_K * 256], weights[FIXED_T * FIXED_K];
    static uint16_t x16[FIXED_T * 256], y16[FIXED_T * 256];
    static int32_t ids[FIXED_T * FIXED_K], given[FIXED_T * FIXED_K];
    uint64_t h = 0;
    rl_layer l;
    moe_layer layer;
    moe_io io;
    if (v == V_transposed && compute != MOE_COMPUTE_F32) return 0;
    variant_make(&l, x, v, compute);
    l.desc.tiers = tiers;
    memset(&io, 0, sizeof io), memset(y, 0, sizeof y);
    size_t n = FIXED_T * (size_t)l.desc.d_model;
    for (size_t i = 0; i < n; i++) x16[i] = (uint16_t)(moei_bits(x[i]) >> 16), y16[i] = 0x3c00;
    for (size_t i = 0; i < COUNT(given); i++) given[i] = (int32_t)(i * i % (FIXED_E + 1)) - 1;
    if (moe_layer_init(&layer, &l.desc, NULL) == MOE_OK) {
        io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = FIXED_T;
        if (v == V_rows_of_16_bits)
            io.x = x16, io.y = y16, io.x_type = MOE_TYPE_BF16, io.y_type = MOE_TYPE_F16, io.y_add = 1;
        if (v == V_given_ids) io.ids_in = given, io.slots_out = y;
        io.ids_out = ids, io.weights_out = weights, io.n_tasks = 2;
        io.workspace_size = moe_workspace_size(&layer, FIXED_T, 2), io.workspace = grab(io.workspace_size);
        if (moe_forward(&layer, &io) == MOE_OK) {
            for (size_t i = 0; v == V_rows_of_16_bits && i < n; i++) y[i] = moei_float((uint32_t)y16[i] << 8);
            h = hash_words(0xcbf29ce484222325u, y, v == V_given_ids ? n * FIXED_K : n);
            h = hash_words(hash_words(h, ids, COUNT(ids)), weights, COUNT(weights));
        }
        free(io.workspace);
    }
    rl_free(&l);
    return h;
}

/* The hardware's dot products of pairs differ between makers: BF16 has a hash for each of these tiers. */
enum { BF16_TIERS = 2 };
static const uint32_t bf16_tier[BF16_TIERS] = {MOE_TIER_AVX512BF16, MOE_TIER_NEONBF16};
static int has_tier(uint32_t tier) { return moe_tiers() >> tier & 1; }

static const stored_hash *find_hash(const char *format) {
    for (size_t i = 0; i < COUNT(stored_hashes); i++)
        if (!strcmp(stored_hashes[i].format, format)) return &stored_hashes[i];
    return NULL;
}

/* What is stored stays for a tier that this machine lacks. */
static uint64_t bf16_hash(uint32_t format, int i) {
    const stored_hash *h = find_hash(moe_format_name(format));
    if (has_tier(bf16_tier[i])) return fixed_hash(format, MOE_COMPUTE_BF16, moe_tier_mask(bf16_tier[i]));
    return h ? h->bf16[i] : 0;
}

static int print_hashes(void) {
    printf("/* Made by test_invariance --print: do not edit. Hashes of a fixed computation; 0 = no such compute. */\n"
           "#ifndef HASHES_H\n#define HASHES_H\n\n#include <stdint.h>\n\n"
           "typedef struct stored_hash {\n    const char *format;\n    uint64_t f32, q8, bf16[2]; /* bf16: on "
           "avx512bf16, on neonbf16 */\n} stored_hash;\n\n"
           "/* clang-format off */\nstatic const stored_hash stored_hashes[] = {\n");
    for (uint32_t f = 1; f < MOE_FORMAT_COUNT; f++)
        printf("    {\"%s\", 0x%016llxu, 0x%016llxu, {0x%016llxu, 0x%016llxu}},\n", moe_format_name(f),
               (unsigned long long)fixed_hash(f, MOE_COMPUTE_F32, MOE_TIER_BIT(MOE_TIER_C)),
               has_q8(f) ? (unsigned long long)fixed_hash(f, MOE_COMPUTE_Q8, MOE_TIER_BIT(MOE_TIER_C)) : 0,
               (unsigned long long)bf16_hash(f, 0), (unsigned long long)bf16_hash(f, 1));
    printf(
        "};\n\n/* The same of what a desc or a call may ask for besides, with weights in q8_0 (transposed: f32). */\n"
        "static const stored_hash variant_hashes[] = {\n");
    for (int v = 0; v < N_VARIANTS; v++)
        printf("    {\"%s\", 0x%016llxu, 0x%016llxu, {0, 0}},\n", variant_names[v],
               (unsigned long long)variant_hash(v, MOE_COMPUTE_F32, MOE_TIER_BIT(MOE_TIER_C)),
               (unsigned long long)variant_hash(v, MOE_COMPUTE_Q8, MOE_TIER_BIT(MOE_TIER_C)));
    printf("};\n/* clang-format on */\n\n#endif\n");
    return 0;
}

static void test_variants(void) {
    static const uint32_t computes[] = {MOE_COMPUTE_F32, MOE_COMPUTE_Q8};
    for (int v = 0; v < N_VARIANTS; v++)
        for (uint32_t t = 0; t < MOE_TIER_COUNT; t++)
            for (int c = 0; c < 2 && has_tier(t); c++) {
                const stored_hash *h = &variant_hashes[v];
                uint64_t want = c ? h->q8 : h->f32, got = variant_hash(v, computes[c], moe_tier_mask(t));
                if (got == want && !strcmp(h->format, variant_names[v]) && (got || (c && v == V_transposed)))
                    passed++;
                else
                    FAIL("hash of %s %s on %s: %016llx, stored %016llx", variant_names[v],
                         moe_compute_name(computes[c]), moe_tier_name(t), (unsigned long long)got,
                         (unsigned long long)want);
            }
    for (int v = 0; v < N_VARIANTS; v++) /* each changes something */
        for (int w = 0; w < v; w++)
            if (variant_hashes[v].f32 == variant_hashes[w].f32)
                FAIL("%s has the hash of %s", variant_names[v], variant_names[w]);
}

static void check_hash(uint32_t format, uint32_t compute, uint32_t tier, uint64_t want) {
    uint64_t got = fixed_hash(format, compute, moe_tier_mask(tier));
    if (got && got == want) passed++;
    else
        FAIL("hash of %s %s on %s: %016llx, stored %016llx", moe_format_name(format), moe_compute_name(compute),
             moe_tier_name(tier), (unsigned long long)got, (unsigned long long)want);
}

static void test_hashes(void) {
    for (uint32_t f = 1; f < MOE_FORMAT_COUNT; f++) {
        const stored_hash *h = find_hash(moe_format_name(f));
        if (!h) {
            FAIL("no hash of %s is stored: test_invariance --print", moe_format_name(f));
            continue;
        }
        for (uint32_t t = 0; t < MOE_TIER_COUNT; t++) {
            if (!(moe_tiers() & MOE_TIER_BIT(t))) continue;
            check_hash(f, MOE_COMPUTE_F32, t, h->f32);
            if (h->q8) check_hash(f, MOE_COMPUTE_Q8, t, h->q8);
        }
        if (has_q8(f) != (h->q8 != 0)) FAIL("hash of %s q8", moe_format_name(f));
        for (int i = 0; i < BF16_TIERS; i++)
            if (has_tier(bf16_tier[i])) check_hash(f, MOE_COMPUTE_BF16, bf16_tier[i], h->bf16[i]);
            else skipped++;
    }
    for (int i = 0; i < BF16_TIERS; i++)
        if (!has_tier(bf16_tier[i]))
            printf("  skipped: BF16's hashes of %s, which is not here\n", moe_tier_name(bf16_tier[i]));
}

/* ---- a subject: a random layer, its tokens, and what one serial call makes of them ---- */

enum { N = 33, MAX_E = 16 };
typedef struct outs { /* [N] rows each */
    float *y, *weights, *logits;
    int32_t *ids;
} outs;
typedef struct subject {
    rl_layer l;
    moe_layer layer;
    char name[96];
    size_t d, k, rows, width; /* rows: of the router; width: of an expert's output */
    uint64_t seed;
    uint32_t stride; /* through long lists of schedules: more than 1 where a call is slow */
    float *x, *rx;
    outs want;
} subject;

static void outs_new(outs *o, const subject *s) {
    o->y = (float *)grab(N * s->d * 4), o->logits = (float *)grab(N * s->rows * 4);
    o->weights = (float *)grab(N * s->k * 4), o->ids = (int32_t *)grab(N * s->k * 4);
}
static void outs_free(outs *o) { free(o->y), free(o->weights), free(o->logits), free(o->ids); }
static void outs_poison(outs *o, const subject *s) {
    memset(o->y, 0xee, N * s->d * 4), memset(o->logits, 0xee, N * s->rows * 4);
    memset(o->weights, 0xee, N * s->k * 4), memset(o->ids, 0xee, N * s->k * 4);
}
/* Row `a` of one and row `b` of another. */
static int same_row(const subject *s, const outs *o, size_t a, const outs *p, size_t b) {
    return !memcmp(o->y + a * s->d, p->y + b * s->d, s->d * 4) &&
           !memcmp(o->logits + a * s->rows, p->logits + b * s->rows, s->rows * 4) &&
           !memcmp(o->weights + a * s->k, p->weights + b * s->k, s->k * 4) &&
           !memcmp(o->ids + a * s->k, p->ids + b * s->k, s->k * 4);
}
static int same_rows(const subject *s, const outs *o) {
    for (size_t t = 0; t < N; t++)
        if (!same_row(s, o, t, &s->want, t)) return 0;
    return 1;
}

/* Tokens first .. first + n of the subject, to the same rows of the outputs. */
static moe_io call(const subject *s, const outs *o, size_t first, size_t n) {
    moe_io io;
    memset(&io, 0, sizeof io);
    io.x = s->x + first * s->d, io.y = o->y + first * s->d, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = n;
    if (s->rx) io.router_x = s->rx + first * s->d;
    io.ids_out = o->ids + first * s->k, io.weights_out = o->weights + first * s->k,
    io.logits_out = o->logits + first * s->rows;
    io.n_tasks = 1;
    return io;
}

/* A workspace full of NaN: nothing may be read before it is written. One per thread; 0 bytes: as large as useful. */
typedef struct space {
    void *data;
    size_t size;
} space;
static void give_space(space *w, const subject *s, moe_io *io, size_t bytes) {
    io->workspace_size = bytes ? bytes : moe_workspace_size(&s->layer, io->n_tokens, io->n_tasks);
    if (w->size < io->workspace_size) free(w->data), w->data = grab(w->size = io->workspace_size);
    io->workspace = w->data;
    memset(io->workspace, 0xff, io->workspace_size);
}
/* The least workspace: one token at a time, or a few where that is slow. */
static size_t small_space(const subject *s, size_t n, uint32_t tasks) {
    size_t least = moe_workspace_min(&s->layer, n, tasks);
    return s->stride == 1 ? least : least + (moe_workspace_size(&s->layer, n, tasks) - least) / 4;
}
static space space0;
static moe_status forward(const subject *s, moe_io *io, size_t bytes) {
    give_space(&space0, s, io, bytes);
    return moe_forward(&s->layer, io);
}

static int subject_new(subject *s, uint64_t seed, uint32_t format, uint32_t compute, uint32_t tiers) {
    uint32_t unit = least_unit(format, compute);
    moe_error e;
    memset(s, 0, sizeof *s);
    s->seed = seed;
    rl_make(&s->l, seed, format, seed % 3 ? format : (uint32_t)MOE_FORMAT_BF16, unit,
            unit == 1   ? 90
            : unit > 64 ? 1
                        : 3);
    s->l.desc.compute = compute, s->l.desc.tiers = tiers;
    snprintf(s->name, sizeof s->name, "%s %s seed %llu tiers %x", moe_format_name(format), moe_compute_name(compute),
             (unsigned long long)seed, tiers);
    if (moe_layer_init(&s->layer, &s->l.desc, &e)) {
        FAIL("%s: init says %s: %s", s->name, e.field, moe_status_text(e.status));
        rl_free(&s->l);
        return 0;
    }
    rl_rng r = {seed};
    s->stride = (unit >= 64 && compute != MOE_COMPUTE_Q8) || tiers == MOE_TIER_BIT(MOE_TIER_C) ? 8 : 1;
    s->d = s->l.desc.d_model, s->k = s->l.desc.top_k, s->rows = s->layer.router_rows, s->width = s->layer.routed.d_in;
    s->x = (float *)grab(N * s->d * 4);
    for (size_t i = 0; i < N * s->d; i++) s->x[i] = rl_gauss(&r);
    if (rl_one_in(&r, 5)) {
        s->rx = (float *)grab(N * s->d * 4);
        for (size_t i = 0; i < N * s->d; i++) s->rx[i] = rl_gauss(&r);
    }
    outs_new(&s->want, s);
    moe_io io = call(s, &s->want, 0, N);
    if (forward(s, &io, 0)) FAIL("%s: a status", s->name);
    return 1;
}
static void subject_free(subject *s) {
    outs_free(&s->want);
    free(s->x), free(s->rx);
    rl_free(&s->l);
}

/* Counts once per subject and test: ok, or where it went wrong first. */
static void verdict(const subject *s, int ok, const char *what, uint32_t a, size_t b) {
    if (ok) passed++;
    else FAIL("%s: %s (%u, %zu): other bits", s->name, what, a, b);
}

/* ---- orders, threads, teams ---- */

typedef struct order {
    int shuffled;
    rl_rng rng;
} order;
static void run_ordered(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg) {
    order *o = (order *)user;
    uint32_t at[64];
    for (uint32_t i = 0; i < n; i++) at[i] = n - 1 - i;
    for (uint32_t i = 0; o->shuffled && i < n; i++) {
        uint32_t j = rl_below(&o->rng, n), swap = at[i];
        at[i] = at[j], at[j] = swap;
    }
    for (uint32_t i = 0; i < n; i++) task(arg, at[i]);
}

/* Every second number of tasks from the first on: what runs them takes turns. */
static void test_tasks(const subject *s, outs *o, uint32_t first, const moe_parallel *parallel, const char *what) {
    for (uint32_t tasks = first; tasks <= 9; tasks += s->stride > 1 ? s->stride : 2) {
        moe_io io = call(s, o, 0, N);
        io.n_tasks = tasks, io.parallel = parallel;
        outs_poison(o, s);
        if (forward(s, &io, tasks % 3 ? 0 : small_space(s, N, tasks)) || !same_rows(s, o)) {
            verdict(s, 0, what, tasks, 0);
            return;
        }
    }
    verdict(s, 1, what, 0, 0);
}

typedef struct barrier {
    pthread_mutex_t lock;
    pthread_cond_t all;
    uint32_t n, here, round;
} barrier;
static void barrier_wait(barrier *b) {
    pthread_mutex_lock(&b->lock);
    uint32_t round = b->round;
    if (++b->here == b->n) b->here = 0, b->round++, pthread_cond_broadcast(&b->all);
    while (round == b->round) pthread_cond_wait(&b->all, &b->lock);
    pthread_mutex_unlock(&b->lock);
}
typedef struct member {
    const subject *s;
    const moe_io *io;
    barrier *b;
    uint32_t ith, nth, status;
    pthread_t thread;
} member;
static void *member_main(void *arg) {
    member *m = (member *)arg;
    for (uint32_t p = 0, n = moe_phase_count(&m->s->layer, m->io); p < n; p++) {
        m->status |= (uint32_t)moe_phase_run(&m->s->layer, m->io, p, m->ith, m->nth);
        barrier_wait(m->b);
    }
    return NULL;
}

static int team_runs(const subject *s, const moe_io *io, uint32_t n) {
    member team[8];
    uint32_t status = 0;
    barrier b;
    memset(&b, 0, sizeof b), memset(team, 0, sizeof team);
    pthread_mutex_init(&b.lock, NULL), pthread_cond_init(&b.all, NULL);
    b.n = n;
    for (uint32_t i = 0; i < n; i++) {
        team[i].s = s, team[i].io = io, team[i].b = &b, team[i].ith = i, team[i].nth = n;
        if (i && pthread_create(&team[i].thread, NULL, member_main, &team[i])) abort();
    }
    member_main(&team[0]);
    for (uint32_t i = 1; i < n; i++) pthread_join(team[i].thread, NULL);
    for (uint32_t i = 0; i < n; i++) status |= team[i].status;
    pthread_mutex_destroy(&b.lock), pthread_cond_destroy(&b.all);
    return !status;
}

static void test_team(const subject *s, outs *o) {
    int ok = 1;
    uint32_t n = 1;
    for (; n <= 5 && ok; n += n < 3 ? 1 : 2) {
        moe_io io = call(s, o, 0, N);
        io.n_tasks = n == 2 ? 4 : n; /* a team may be smaller than what the workspace was made for */
        give_space(&space0, s, &io, n % 2 ? 0 : small_space(s, N, io.n_tasks));
        outs_poison(o, s);
        ok = team_runs(s, &io, n) && same_rows(s, o);
    }
    verdict(s, ok, "team of", n, 0);
    rl_rng r = {77};
    for (int round = 0; round < 2 && ok;
         round++) { /* one thread plays a team whose size changes from phase to phase */
        moe_io io = call(s, o, 0, N);
        io.n_tasks = 7;
        give_space(&space0, s, &io, round % 2 ? 0 : small_space(s, N, 7));
        outs_poison(o, s);
        for (uint32_t p = 0, phases = moe_phase_count(&s->layer, &io); p < phases; p++)
            for (uint32_t nth = 1 + rl_below(&r, 7), i = nth; i-- > 0;)
                ok = ok && !moe_phase_run(&s->layer, &io, p, i, nth);
        ok = ok && same_rows(s, o);
    }
    verdict(s, ok, "a changing team", 0, 0);
}

static pool pools[3];
static const uint32_t pool_workers[] = {2, 3, 7};

static void test_schedules(const subject *s, outs *o) {
    order reversed = {0, {1}}, shuffled = {1, {s->l.rng.s}};
    moe_parallel backwards = {run_ordered, &reversed}, random = {run_ordered, &shuffled};
    test_tasks(s, o, 1, NULL, "serial tasks");
    test_tasks(s, o, 2, &backwards, "reversed tasks");
    test_tasks(s, o, 3, &random, "shuffled tasks");
    for (size_t i = 0; i < COUNT(pools); i++) {
        moe_parallel threads = pool_parallel(&pools[i]);
        test_tasks(s, o, i == 1 ? 2 : 1, &threads, "tasks on threads");
    }
    test_team(s, o);
}

/* ---- splits, company, workspaces ---- */

static void test_splits(const subject *s, outs *o) {
    int ok = 1;
    size_t at = 1;
    for (; at < N && ok; at += s->stride) {
        moe_io head = call(s, o, 0, at), tail = call(s, o, at, N - at);
        tail.n_tasks = 2;
        outs_poison(o, s);
        ok = !forward(s, &head, 0) && !forward(s, &tail, 0) && same_rows(s, o);
    }
    verdict(s, ok, "split at", 0, at - s->stride);
    outs_poison(o, s);
    for (at = 0, ok = 1; at < N && ok; at++) {
        moe_io one = call(s, o, at, 1);
        ok = !forward(s, &one, 0);
    }
    verdict(s, ok && same_rows(s, o), "token by token", 0, 0);
}

/* The same tokens in another order, and one of them many times. */
static void test_company(const subject *s, outs *o) {
    float *x = (float *)grab(N * s->d * 4), *rx = (float *)grab(N * s->d * 4);
    size_t from[N], row = s->d * 4;
    int ok = 1;
    for (int repeat = 0; repeat < 2; repeat++) {
        for (size_t t = 0; t < N; t++) {
            from[t] = repeat && t % 4 ? 5 : (t * 10 + 7) % N;
            memcpy(x + t * s->d, s->x + from[t] * s->d, row);
            if (s->rx) memcpy(rx + t * s->d, s->rx + from[t] * s->d, row);
        }
        moe_io io = call(s, o, 0, N);
        io.x = x;
        if (s->rx) io.router_x = rx;
        outs_poison(o, s);
        ok = ok && !forward(s, &io, 0);
        for (size_t t = 0; t < N; t++) ok = ok && same_row(s, o, t, &s->want, from[t]);
    }
    verdict(s, ok, "other company", 0, 0);
    free(x), free(rx);
}

static void test_workspaces(const subject *s, outs *o) {
    size_t least = s->stride > 1 ? small_space(s, N, 3) : moe_workspace_min(&s->layer, N, 3),
           full = moe_workspace_size(&s->layer, N, 3), bytes = least;
    int ok = 1;
    for (int i = 0; i <= 10 && ok; i += s->stride > 1 ? 5 : 1) {
        moe_io io = call(s, o, 0, N);
        io.n_tasks = 3;
        bytes = i < 10 ? least + (full - least) / 10 * (size_t)i + (size_t)(i % 3) : full + 1000;
        outs_poison(o, s);
        ok = !forward(s, &io, bytes) && same_rows(s, o);
    }
    verdict(s, ok, "workspace of", 0, bytes);
}

/* So many tokens that an expert's slots take several tiles: at once, in blocks, and in calls. */
static void test_many(uint32_t format, uint32_t compute, int latent) {
    enum { MANY = 2000, PART = 150 };
    uint64_t seed = 7700 + format;
    subject s;
    moe_io io;
    if (!subject_new(&s, seed, format, compute, 0)) return;
    while (latent && !s.layer.desc.latent.d) {
        subject_free(&s);
        if (!subject_new(&s, ++seed, format, compute, 0)) return;
    }
    size_t row = s.d * 4, full = moe_workspace_size(&s.layer, MANY, 2), least = moe_workspace_min(&s.layer, MANY, 2);
    float *x = (float *)grab(MANY * row), *at_once = (float *)grab(MANY * row), *other = (float *)grab(MANY * row);
    for (size_t i = 0; i < MANY * s.d; i++) x[i] = rl_gauss(&s.l.rng);
    memset(&io, 0, sizeof io);
    io.x = x, io.y = at_once, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = MANY, io.n_tasks = 2;
    int ok = !forward(&s, &io, 0);
    io.y = other;
    for (size_t blocks = 2; blocks < 30 && ok; blocks *= 3) {
        memset(other, 0xee, MANY * row);
        ok = !forward(&s, &io, least + (full - least) / blocks) && !memcmp(at_once, other, MANY * row);
    }
    verdict(&s, ok, "many tokens in blocks", 0, 0);
    for (size_t t = 0; t < MANY && ok; t += io.n_tokens) {
        io.n_tokens = MANY - t < PART ? MANY - t : PART, io.x = x + t * s.d, io.y = other + t * s.d;
        ok = !forward(&s, &io, 0) && !memcmp(at_once + t * s.d, other + t * s.d, io.n_tokens * row);
    }
    verdict(&s, ok, "many tokens in calls", 0, 0);
    free(x), free(at_once), free(other);
    subject_free(&s);
}

/* One expert, whose hidden rows are so wide that down takes fewer tokens at a time than gate and up; and a few tokens more than these
   take at a time: such a rest must not be prepared otherwise than down reads it. (Down's rows are long and many, too: MOEI_LONG.) */
static void test_rests(uint32_t format, uint32_t compute, uint32_t tiers) {
    enum { D = 192, FF = 8192, FROM = 255, TO = 262 };
    rl_rng rng = {7};
    uint8_t *w[3];
    float *x = (float *)grab(TO * D * 4), *each = (float *)grab(TO * D * 4), *at_once = (float *)grab(TO * D * 4);
    float *wide = (float *)grab((size_t)D * FF * 4);
    subject s;
    memset(&s, 0, sizeof s);
    moe_desc *d = &s.l.desc;
    int ok = 1;
    d->d_model = D, d->d_ff = FF, d->n_experts = d->top_k = 1, d->compute = compute, d->tiers = tiers;
    for (int m = 0; m < 3; m++) {
        moe_matrix *to = m == 0 ? &d->gate : m == 1 ? &d->up : &d->down;
        size_t rows = m < 2 ? FF : D, k = m < 2 ? D : FF;
        w[m] = (uint8_t *)grab(rows * moe_row_bytes(format, k));
        for (size_t i = 0; i < (size_t)D * FF; i++) wide[i] = rl_gauss(&rng) / 8;
        ok = ok && !moe_quantize(format, wide, rows, k, w[m]);
        to->format = format, to->data = w[m];
    }
    d->router.weight.format = MOE_FORMAT_F32, d->router.weight.data = x;
    for (size_t i = 0; i < TO * D; i++) x[i] = rl_gauss(&rng);
    snprintf(s.name, sizeof s.name, "%s %s", moe_format_name(format), moe_compute_name(compute));
    ok = ok && !moe_layer_init(&s.layer, d, NULL);
    moe_io io;
    memset(&io, 0, sizeof io);
    io.x_type = io.y_type = MOE_TYPE_F32, io.n_tasks = 1, io.n_tokens = 1;
    for (size_t t = 0; t < TO && ok; t++) {
        io.x = x + t * D, io.y = each + t * D;
        ok = !forward(&s, &io, 0);
    }
    io.x = x, io.y = at_once;
    for (io.n_tokens = FROM; io.n_tokens <= TO && ok; io.n_tokens++) {
        io.n_tasks = (uint32_t)(1 + io.n_tokens % 3);
        memset(at_once, 0xee, TO * D * 4);
        ok = !forward(&s, &io, 0) && !memcmp(at_once, each, io.n_tokens * D * 4);
    }
    verdict(&s, ok, "tokens of one expert", 0, io.n_tokens);
    free(x), free(each), free(at_once), free(wide), free(w[0]), free(w[1]), free(w[2]);
}

/* ---- one bad token ---- */

enum { NANS, A_NAN, INFS, AN_INF, SUBNORMALS, HUGE_VALUES, BAD_KINDS };
static void spoil(float *x, size_t d, int kind, size_t seed) {
    size_t one = seed * 7919 % d;
    if (kind == A_NAN) x[one] = moei_float(0x7fc00000u);
    if (kind == AN_INF) x[one] = moei_float(0xff800000u);
    for (size_t i = 0; i < d; i++) {
        if (kind == NANS) x[i] = moei_float(0xffc12345u);
        if (kind == INFS) x[i] = moei_float(0x7f800000u | (uint32_t)(i & 1) << 31);
        if (kind == SUBNORMALS) x[i] = moei_float((uint32_t)(i * 12345 + 1) & 0x807fffffu);
        if (kind == HUGE_VALUES) x[i] = moei_float(0x7f7fffffu - (uint32_t)i);
    }
}

static int routing_sane(const subject *s, const outs *o, size_t t) {
    uint32_t n = s->layer.n_ids;
    for (size_t j = 0; j < s->k; j++) {
        int32_t id = o->ids[t * s->k + j];
        if (id < 0 || (uint32_t)id >= n) return 0;
        for (size_t i = 0; i < j; i++)
            if (o->ids[t * s->k + i] == id) return 0;
    }
    return 1;
}

static void test_bad_tokens(const subject *s, outs *o) {
    enum { M = 9 };
    float *x = (float *)grab(M * s->d * 4);
    moe_stats stats;
    for (int kind = 0; kind < BAD_KINDS; kind++) {
        int ok = 1;
        size_t at = s->stride > 1 ? (s->seed + (size_t)kind) % s->stride : 0; /* in all, every position */
        for (; at < M && ok; at += s->stride) {
            memcpy(x, s->x, M * s->d * 4);
            spoil(x + at * s->d, s->d, kind, at);
            moe_io io = call(s, o, 0, M);
            io.x = x, io.n_tasks = 1 + (uint32_t)(at % 3), io.stats = &stats;
            memset(&stats, 0, sizeof stats);
            outs_poison(o, s);
            ok = !forward(s, &io, at % 2 ? 0 : small_space(s, M, io.n_tasks)) && routing_sane(s, o, at);
            for (size_t t = 0; t < M; t++) ok = ok && (t == at || same_row(s, o, t, &s->want, t));
        }
        verdict(s, ok, "beside a bad token of kind", (uint32_t)kind, at - s->stride);
    }
    free(x);
}

/* ---- the pieces put together ---- */

/* Where every expert's data lies, as lists of pointers (which is what io->experts takes). */
typedef struct lists {
    const void *data[3][MAX_E], *scale[3][MAX_E], *zero[3][MAX_E], *scale2[3][MAX_E], *bias[3][MAX_E];
} lists;

static const void *array_base(const moe_array *a, size_t n, uint32_t e) {
    size_t stride = a->stride ? a->stride : moei_type_bytes[a->type],
           all = a->expert_stride ? a->expert_stride : n * stride;
    return a->expert ? a->expert[e] : (const uint8_t *)a->data + e * all;
}
static void list_experts(const subject *s, lists *p) {
    const moei_bank *b = &s->layer.routed;
    const moe_matrix *const all[3] = {&b->gate, &b->up, &b->down};
    memset(p, 0, sizeof *p);
    for (int i = 0; i < 3; i++)
        for (uint32_t e = 0; e < b->n_experts && all[i]->format; e++) {
            const moe_matrix *m = all[i];
            size_t rows = i == MOE_DOWN ? b->d_in : b->d_ff, k = i == MOE_DOWN ? b->d_ff : b->d_in;
            moei_rows view;
            moei_view(m, NULL, i, e, rows, k, &view);
            p->data[i][e] = view.data - m->offset;
            if (m->scale.type) p->scale[i][e] = moei_scale_of(m, NULL, i, e, rows, k).data - m->scale.offset;
            if (m->zero.type) p->zero[i][e] = view.zero.data - m->zero.offset;
            if (m->scale2.type) p->scale2[i][e] = array_base(&m->scale2, 1, e);
            if (m->bias.type) p->bias[i][e] = array_base(&m->bias, rows, e);
        }
}
/* The lists from expert `first` on become a desc's own. */
static void own_lists(moe_desc *d, const lists *p, uint32_t first) {
    moe_matrix *const all[3] = {&d->gate, &d->up, &d->down};
    for (int i = 0; i < 3; i++) {
        moe_matrix *m = all[i];
        if (!p->data[i][0]) continue;
        m->expert = &p->data[i][first], m->data = NULL;
        if (m->scale.type) m->scale.expert = &p->scale[i][first], m->scale.data = NULL;
        if (m->zero.type) m->zero.expert = &p->zero[i][first], m->zero.data = NULL;
        if (m->scale2.type) m->scale2.expert = &p->scale2[i][first], m->scale2.data = NULL;
        if (m->bias.type) m->bias.expert = &p->bias[i][first], m->bias.data = NULL;
    }
}
static void give_lists(moe_experts *o, const lists *p) {
    memset(o, 0, sizeof *o);
    for (int i = 0; i < 3; i++) {
        if (p->data[i][0]) o->data[i] = p->data[i];
        if (p->scale[i][0]) o->scale[i] = p->scale[i];
        if (p->zero[i][0]) o->zero[i] = p->zero[i];
        if (p->scale2[i][0]) o->scale2[i] = p->scale2[i];
        if (p->bias[i][0]) o->bias[i] = p->bias[i];
    }
}

/* A layer whose own pointers are wrong (every expert is another's), and the right ones with each call. */
static void test_call_pointers(const subject *s, outs *o) {
    lists right, wrong;
    moe_experts over;
    moe_desc d = s->l.desc;
    subject other = *s;
    uint32_t n = s->layer.routed.n_experts;
    list_experts(s, &right);
    memset(&wrong, 0, sizeof wrong);
    for (int i = 0; i < 3; i++)
        for (uint32_t e = 0; e < n; e++) {
            uint32_t from = (e + 1) % n;
            wrong.data[i][e] = right.data[i][from], wrong.scale[i][e] = right.scale[i][from],
            wrong.zero[i][e] = right.zero[i][from];
            wrong.scale2[i][e] = right.scale2[i][from], wrong.bias[i][e] = right.bias[i][from];
        }
    own_lists(&d, &wrong, 0);
    give_lists(&over, &right);
    if (moe_layer_init(&other.layer, &d, NULL)) {
        FAIL("%s: a layer of lists", s->name);
        return;
    }
    moe_io io = call(s, o, 0, N);
    outs_poison(o, s);
    int ok = !forward(&other, &io, 0);
    if (n > 1) verdict(s, ok && !same_rows(s, o), "wrong experts give other bits", n, 0);
    io.experts = &over;
    outs_poison(o, s);
    verdict(s, !forward(&other, &io, 0) && same_rows(s, o), "pointers of the call", n, 0);
    io.experts = NULL;
    own_lists(&d, &right, 0);
    ok = !moe_layer_init(&other.layer, &d, NULL);
    outs_poison(o, s);
    verdict(s, ok && !forward(&other, &io, 0) && same_rows(s, o), "pointers of the layer", n, 0);
}

/* What route, ids_in, weights_in and logits_in say of each other. */
static void test_routing_pieces(const subject *s, outs *o) {
    outs r;
    outs_new(&r, s);
    moe_io io = call(s, &r, 0, N);
    memcpy(r.y, s->want.y, N * s->d * 4);
    io.y = NULL, io.n_tasks = 2;
    give_space(&space0, s, &io, 0);
    verdict(s, !moe_route(&s->layer, &io) && same_rows(s, &r), "route", 0, 0);
    int32_t *ids = (int32_t *)grab(N * s->k * 4);
    for (size_t i = 0; i < N * s->k; i++) /* a dropped slot does not work: with the weight on the input, 0 would */
        ids[i] = moei_bits(r.weights[i]) << 1 || !(s->l.desc.router.drop_below > 0 || s->l.desc.router.top_p > 0)
                     ? r.ids[i]
                     : -1;
    io = call(s, o, 0, N);
    outs_poison(o, s);
    io.ids_in = ids, io.weights_in = r.weights;
    if (s->l.desc.shared.gate_kind == MOE_SHARED_ROUTER_SINK)
        io.logits_in = r.logits; /* the sink's weights come of them */
    int ok =
        !forward(s, &io, 0) && !memcmp(o->y, s->want.y, N * s->d * 4) && !memcmp(o->weights, r.weights, N * s->k * 4);
    verdict(s, ok, "ids and weights of route", 0, 0);
    io = call(s, o, 0, N);
    outs_poison(o, s);
    io.ids_in = r.ids;
    verdict(s, !forward(s, &io, 0) && same_rows(s, o), "ids of route", 0, 0);
    io = call(s, o, 0, N);
    outs_poison(o, s);
    io.logits_in = r.logits;
    verdict(s, !forward(s, &io, 0) && same_rows(s, o), "logits given back", 0, 0);
    free(ids);
    outs_free(&r);
}

/* The weighted sum of slots as the contract has it: experts in ascending id, fused multiply-adds, then those that pass x on. */
static void combine(const subject *s, const float *slots, uint32_t first, uint32_t count, float *sums) {
    const moe_desc *d = &s->layer.desc;
    memset(sums, 0, N * s->width * 4);
    for (size_t t = 0; t < N; t++)
        for (uint32_t e = first; e < first + count + 1; e++)
            for (size_t j = 0; j < s->k; j++) {
                uint32_t id = (uint32_t)s->want.ids[t * s->k + j];
                int passes =
                    id >= d->n_experts && d->zero_kind == MOE_ZERO_IDENTITY && e == first + count && first == 0;
                float w = passes || d->ffn.weight_at == MOE_WEIGHT_AT_OUTPUT ? s->want.weights[t * s->k + j] : 1.0f;
                if (!passes && (id != e || e == first + count)) continue;
                for (size_t i = 0; i < s->width; i++)
                    sums[t * s->width + i] =
                        moei_fma(w, slots[(t * s->k + j) * s->width + i], sums[t * s->width + i]);
            }
}

static void test_finish(const subject *s, outs *o, const moe_layer *layer, const float *sums, const char *what) {
    subject other = *s;
    other.layer = *layer;
    moe_io io = call(s, o, 0, N);
    outs_poison(o, s);
    io.n_tasks = 3;
    if (s->l.desc.shared.gate_kind != MOE_SHARED_ROUTER_SINK)
        io.ids_out = NULL, io.weights_out = NULL, io.logits_out = NULL;
    give_space(&space0, &other, &io, s->l.rng.s % 2 ? 0 : small_space(&other, N, 3));
    verdict(s, !moe_finish(layer, &io, sums) && !memcmp(o->y, s->want.y, N * s->d * 4), what, 0, 0);
}

/* Two processes with half of the experts each. */
static void test_halves(const subject *s, outs *o, const float *slots) {
    const moe_desc *whole = &s->layer.desc;
    uint32_t half = whole->n_experts / 2;
    lists all;
    float *sums[2], *mine = (float *)grab(N * s->width * 4);
    moe_layer part[2];
    int ok = 1;
    list_experts(s, &all);
    for (int i = 0; i < 2; i++) {
        moe_desc d = s->l.desc;
        subject other = *s;
        own_lists(&d, &all, i ? half : 0);
        d.expert_first = i ? half : 0, d.expert_count = i ? whole->n_experts - half : half;
        ok = ok && !moe_layer_init(&part[i], &d, NULL);
        sums[i] = (float *)grab(N * s->width * 4);
        other.layer = part[i];
        moe_io io = call(s, o, 0, N);
        io.y = sums[i], io.n_tasks = 2;
        ok = ok && !forward(&other, &io, i ? 0 : small_space(&other, N, 2));
        combine(s, slots, d.expert_first, d.expert_count, mine);
        verdict(s, ok && !memcmp(mine, sums[i], N * s->width * 4), "half of the experts", (uint32_t)i, 0);
    }
    combine(s, slots, 0, whole->n_experts, mine);
    if (ok) test_finish(s, o, &part[1], mine, "finish by a process that holds a part");
    for (size_t i = 0; i < N * s->width; i++) sums[0][i] += sums[1][i];
    for (size_t t = 0; t < N && ok; t++) { /* equal to one process within the bound: the order of the sum differs */
        double size = 0, err = 0;
        for (size_t i = 0; i < s->width; i++) {
            for (size_t j = 0; j < s->k; j++)
                size = fmax(size, fabs((double)slots[(t * s->k + j) * s->width + i]) *
                                      fmax(1.0, fabs((double)s->want.weights[t * s->k + j])));
            err = fmax(err, fabs((double)sums[0][t * s->width + i] - (double)mine[t * s->width + i]));
        }
        if (!(err <= size * (double)(s->k + 2) * (double)s->k * 6e-8))
            ok = 0, printf("  off by %g of %g\n", err, size);
    }
    verdict(s, ok, "both halves", 0, 0);
    free(sums[0]), free(sums[1]), free(mine);
}

static void test_slots(const subject *s, outs *o) {
    const moe_ffn *f = &s->layer.desc.ffn;
    float *slots = (float *)grab(N * s->k * s->width * 4), *sums = (float *)grab(N * s->width * 4);
    moe_io io = call(s, o, 0, N);
    outs_poison(o, s);
    memset(slots, 0xee, N * s->k * s->width * 4);
    io.slots_out = slots, io.y = NULL, io.n_tasks = 2;
    int ok = !forward(s, &io, 0);
    memcpy(o->y, s->want.y, N * s->d * 4);
    verdict(s, ok && same_rows(s, o), "routing beside slots", 0, 0);
    combine(s, slots, 0, s->layer.desc.n_experts, sums);
    test_finish(s, o, &s->layer, sums, "slots, summed and finished");
    if (!s->layer.shared.n_experts && !s->layer.desc.latent.d) {
        for (size_t i = 0; i < N * s->d; i++) {
            float bias = f->out_bias.type ? moei_array_at(&f->out_bias, 0, s->d, i % s->d) : -0.0f;
            sums[i] = sums[i] * f->expert_out_scale;
            sums[i] =
                f->combine_scale == 1.0f && !f->out_bias.type ? sums[i] : moei_fma(sums[i], f->combine_scale, bias);
        }
        verdict(s, !memcmp(sums, s->want.y, N * s->d * 4), "slots, summed by hand", 0, 0);
    }
    if (s->layer.desc.n_experts > 1) test_halves(s, o, slots);
    free(slots), free(sums);
}

/* ---- rows of other types and strides ---- */

static void store(uint32_t type, uint8_t *p, float v) {
    uint16_t h = type == MOE_TYPE_BF16 ? moei_to_bf16(v) : moei_to_f16(v);
    if (type == MOE_TYPE_F32) memcpy(p, &v, 4);
    else memcpy(p, &h, 2);
}

/* x in 16 bits is the same as its values in 32, y in 16 bits is the 32-bit y rounded once, at any row stride. */
static void test_rows(const subject *s, outs *o) {
    for (uint32_t type = MOE_TYPE_F32; type <= MOE_TYPE_BF16; type++) {
        size_t size = type == MOE_TYPE_F32 ? 4 : 2, stride = s->d * size + 1 + type, ids = s->k * 4 + 8, ok;
        uint8_t *x = (uint8_t *)grab(2 * N * stride), *rx = x + N * stride, *y = (uint8_t *)grab(N * stride), want[4];
        float *plain = (float *)grab(2 * N * s->d * 4), *plain_rx = plain + N * s->d;
        int32_t *ids_out = (int32_t *)grab(N * ids);
        float *weights_out = (float *)grab(N * ids);
        for (size_t i = 0; i < 2 * N * s->d; i++) {
            float v = i < N * s->d ? s->x[i] : s->rx ? s->rx[i - N * s->d] : 0.0f;
            uint8_t *at = x + i / s->d * stride + i % s->d * size;
            store(type, at, v);
            plain[i] = type == MOE_TYPE_F32    ? v
                       : type == MOE_TYPE_BF16 ? moei_bf16(moei_to_bf16(v))
                                               : moei_f16(moei_to_f16(v));
        }
        moe_io io = call(s, o, 0, N);
        io.x = plain;
        if (s->rx) io.router_x = plain_rx;
        outs_poison(o, s);
        ok = !forward(s, &io, 0);
        io.x = x, io.x_type = io.y_type = type, io.x_stride = stride, io.y = y, io.y_stride = stride;
        if (s->rx) io.router_x = rx, io.router_x_stride = stride;
        io.ids_out = ids_out, io.weights_out = weights_out, io.ids_stride = io.weights_stride = ids, io.n_tasks = 2;
        ok = ok && !forward(s, &io, 0);
        for (size_t i = 0; i < N * s->d && ok; i++) {
            store(type, want, o->y[i]);
            ok = !memcmp(want, y + i / s->d * stride + i % s->d * size, size);
        }
        for (size_t i = 0; i < N * s->k && ok; i++) {
            size_t at = i / s->k * (ids / 4) + i % s->k;
            ok = ids_out[at] == o->ids[i] && moei_bits(weights_out[at]) == moei_bits(o->weights[i]);
        }
        for (size_t t = 0; t < N && ok; t++) /* what lies between the rows is not touched */
            for (size_t i = s->d * size; i < stride && ok; i++) ok = y[t * stride + i] == 0;
        verdict(s, (int)ok, "rows of type", type, stride);
        io.y = x; /* in place */
        ok = !forward(s, &io, 0);
        for (size_t t = 0; t < N && ok; t++) ok = !memcmp(x + t * stride, y + t * stride, s->d * size);
        verdict(s, (int)ok, "in place, rows of type", type, stride);
        free(x), free(y), free(plain), free(ids_out), free(weights_out);
    }
}

/* ---- one layer, many threads ---- */

typedef struct caller {
    const subject *s;
    uint32_t i, status;
    outs o;
    pthread_t thread;
} caller;
static void *caller_main(void *arg) {
    caller *c = (caller *)arg;
    space w = {NULL, 0};
    for (size_t round = 0; round < (c->s->stride > 1 ? 1 : 2); round++) {
        size_t at = (c->i * 4 + round) % N;
        moe_io whole = call(c->s, &c->o, 0, N), one = call(c->s, &c->o, at, 1);
        whole.n_tasks = 1 + c->i % 3;
        give_space(&w, c->s, &whole, 0);
        c->status |= (uint32_t)moe_forward(&c->s->layer, &whole);
        give_space(&w, c->s, &one, 0);
        c->status |= (uint32_t)moe_forward(&c->s->layer, &one);
    }
    free(w.data);
    return NULL;
}
static void test_callers(const subject *s) {
    caller callers[8];
    int ok = 1;
    for (uint32_t i = 0; i < COUNT(callers); i++) {
        callers[i].s = s, callers[i].i = i, callers[i].status = 0;
        outs_new(&callers[i].o, s);
        if (pthread_create(&callers[i].thread, NULL, caller_main, &callers[i])) abort();
    }
    for (uint32_t i = 0; i < COUNT(callers); i++) {
        pthread_join(callers[i].thread, NULL);
        ok = ok && !callers[i].status && same_rows(s, &callers[i].o);
        outs_free(&callers[i].o);
    }
    verdict(s, ok, "many threads with one layer", 0, 0);
}

/* ---- the floating-point environment ---- */

/* Control bits: rounding, masks, flushing; not the sticky flags, which every computation sets. */
#if defined(__x86_64__) || defined(__i386__)
#if defined(__SSE__)
#include <xmmintrin.h>
#define HAVE_FLUSH 1
static uint32_t control(void) { return _mm_getcsr() & 0xffc0u; }
static void set_flush(int on) { _mm_setcsr((_mm_getcsr() & ~0x8040u) | (on ? 0x8040u : 0)); }
#endif
#elif defined(__aarch64__)
#define HAVE_FLUSH 1
static uint32_t control(void) {
    uint64_t v;
    __asm__ volatile("mrs %0, fpcr" : "=r"(v));
    return (uint32_t)v;
}
static void set_flush(int on) {
    uint64_t v = (control() & ~(1u << 24)) | (uint64_t)(on != 0) << 24;
    __asm__ volatile("msr fpcr, %0" : : "r"(v));
}
#endif
#ifndef HAVE_FLUSH
#define HAVE_FLUSH 0
static uint32_t control(void) { return 0; }
static void set_flush(int on) { (void)on; }
#endif

/* Other environments are outside of the contract, but nothing may crash, hang, or change them. */
static void test_environment(const subject *s, outs *o) {
    static const int modes[] = {
#ifdef FE_TOWARDZERO
        FE_TOWARDZERO,
#endif
#ifdef FE_UPWARD
        FE_UPWARD,
#endif
#ifdef FE_DOWNWARD
        FE_DOWNWARD,
#endif
        FE_TONEAREST};
    float *x = (float *)grab(N * s->d * 4);
    int ok = 1;
    memcpy(x, s->x, N * s->d * 4);
    for (int kind = 0; kind < BAD_KINDS; kind++) spoil(x + (size_t)(5 * kind) * s->d, s->d, kind, 3);
    for (size_t m = 0; m < COUNT(modes) && ok; m++)
        for (int flush = 0; flush <= HAVE_FLUSH && ok; flush++) {
            moe_io io = call(s, o, 0, N);
            io.x = x, io.n_tasks = 2;
            outs_poison(o, s);
            give_space(&space0, s, &io, 0);
            fesetround(modes[m]);
            set_flush(flush);
            uint32_t before = control();
            moe_status status = moe_forward(&s->layer, &io);
            uint32_t after = control();
            ok = before == after && fegetround() == modes[m] && !status;
            set_flush(0);
            fesetround(FE_TONEAREST);
            for (size_t t = 0; t < N && ok; t++) ok = routing_sane(s, o, t);
        }
    verdict(s, ok, "another floating-point environment", 0, 0);
    outs_poison(o, s);
    moe_io io = call(s, o, 0, N);
    verdict(s, !forward(s, &io, 0) && same_rows(s, o), "back in the default environment", 0, 0);
    free(x);
}

/* ---- all of it ---- */

static uint32_t a_tier(uint32_t format, uint32_t compute,
                       uint64_t seed) { /* one that has the compute; c only for small layers */
    uint32_t list[MOE_TIER_COUNT], n = 0;
    for (uint32_t t = 0; t < MOE_TIER_COUNT; t++) {
        if (!(moe_tiers() & MOE_TIER_BIT(t)) || (compute == MOE_COMPUTE_BF16 && !rl_bf16(moe_tier_mask(t)))) continue;
        if (t != MOE_TIER_C || least_unit(format, compute) <= 32 || moe_tiers() == MOE_TIER_BIT(MOE_TIER_C))
            list[n++] = t;
    }
    return n ? list[seed % n] : (uint32_t)MOE_TIER_COUNT;
}

static void one_subject(uint64_t seed, uint32_t format, uint32_t compute, int threads_only) {
    subject s;
    outs o;
    uint32_t tier = a_tier(format, compute, seed);
    if (tier == MOE_TIER_COUNT) skipped++;
    if (tier == MOE_TIER_COUNT || !subject_new(&s, seed, format, compute, moe_tier_mask(tier))) return;
    outs_new(&o, &s);
    if (threads_only || seed % 3 == 0) test_schedules(&s, &o), test_callers(&s);
    if (!threads_only) {
        if (seed % 3 == 1) test_splits(&s, &o);
        if (seed % 3 == 2) test_bad_tokens(&s, &o), test_environment(&s, &o);
        test_company(&s, &o), test_workspaces(&s, &o), test_call_pointers(&s, &o), test_routing_pieces(&s, &o),
            test_slots(&s, &o), test_rows(&s, &o);
    }
    outs_free(&o);
    subject_free(&s);
}

/* Which of the tests: 0 = all. */
enum { ALL, HASHES, THREADS };

static void test_subjects(int rounds, int part) {
    for (size_t i = 0; i < COUNT(pools); i++) pool_start(&pools[i], pool_workers[i], NULL);
    for (uint32_t f = 1; f < MOE_FORMAT_COUNT; f += part == THREADS ? 9 : 1)
        for (int r = 0; r < rounds; r++) {
            uint64_t seed = 40000 + 97 * f + 10000 * (uint64_t)r;
            one_subject(seed, f, MOE_COMPUTE_F32, part == THREADS);
            if (has_q8(f)) one_subject(seed + 1, f, MOE_COMPUTE_Q8, part == THREADS);
            one_subject(seed + 2, f, MOE_COMPUTE_BF16, part == THREADS);
        }
    for (size_t i = 0; i < COUNT(pools); i++) pool_stop(&pools[i]);
    if (part == ALL)
        test_many(MOE_FORMAT_F32, MOE_COMPUTE_F32, 0), test_many(MOE_FORMAT_F16, MOE_COMPUTE_F32, 1),
            test_many(MOE_FORMAT_Q4_0, MOE_COMPUTE_Q8, 0), test_many(MOE_FORMAT_BF16, MOE_COMPUTE_DEFAULT, 0),
            test_rests(MOE_FORMAT_BF16, MOE_COMPUTE_DEFAULT, 0), test_rests(MOE_FORMAT_Q8_0, MOE_COMPUTE_Q8, 0),
            test_rests(MOE_FORMAT_BF16, MOE_COMPUTE_F32, 0),
            test_rests(MOE_FORMAT_BF16, MOE_COMPUTE_F32, moe_tier_mask(MOE_TIER_AVX2)),
            test_rests(MOE_FORMAT_F32, MOE_COMPUTE_F32, moe_tier_mask(MOE_TIER_AVX2));
    free(space0.data);
    if (!rl_bf16(moe_tiers())) printf("  skipped: BF16 (no tier here has it)\n");
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    int part = !strcmp(what, "hashes") ? HASHES : !strcmp(what, "threads") ? THREADS : ALL, rounds = atoi(what);
    if (!strcmp(what, "--print")) return print_hashes();
    if (FLT_EVAL_METHOD != 0) { /* the contract is suspended */
        printf("  skipped: FLT_EVAL_METHOD is %d\ntest_invariance: 0 passed, 0 failed, 1 skipped\n",
               (int)FLT_EVAL_METHOD);
        return 0;
    }
    if (part != THREADS) test_hashes(), test_variants();
    if (part != HASHES) test_subjects(rounds > 0 ? rounds : 1, part);
    printf("test_invariance: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
