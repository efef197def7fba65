/* The questions one asks of a layer, against numbers worked out by hand: parameters, bytes and flops of published models (with
   what is left of each model they add up to its published size), load statistics, tiers and computes, workspaces of a large
   layer. What is refused, and how, is test_errors.c's. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int passed, failed, skipped;
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void check(int ok, const char *what, const char *why) {
    if (ok) passed++;
    else failed++, printf("FAIL %s: %s\n", what, why);
}
static void equal(const char *what, const char *field, uint64_t got, uint64_t want) {
    if (got == want) passed++;
    else
        failed++,
            printf("FAIL %s: %s is %llu, not %llu\n", what, field, (unsigned long long)got, (unsigned long long)want);
}
static void near(const char *what, const char *field, double got, double want) {
    if (fabs(got - want) <= 1e-6 * fabs(want)) passed++;
    else failed++, printf("FAIL %s: %s is %.9g, not %.9g\n", what, field, got, want);
}

/* ---- models of the real size: weights are only read during calls, so one byte stands for all ---- */

static const uint8_t weights[64];
static void set(moe_matrix *m, uint32_t format) { m->format = format, m->data = weights; }
static moe_desc shape(const char *preset, uint32_t d, uint32_t ff, uint32_t n, uint32_t k, uint32_t format,
                      uint32_t router) {
    moe_desc desc;
    memset(&desc, 0, sizeof desc);
    check(moe_preset(&desc, preset) == MOE_OK, preset, "preset");
    desc.d_model = d, desc.d_ff = ff, desc.n_experts = n, desc.top_k = k;
    set(&desc.gate, format), set(&desc.up, format), set(&desc.down, format), set(&desc.router.weight, router);
    return desc;
}
static moe_desc mixtral(void) { return shape("mixtral", 4096, 14336, 8, 2, MOE_FORMAT_BF16, MOE_FORMAT_BF16); }
static moe_desc qwen3_30b(void) { return shape("qwen3_moe", 2048, 768, 128, 8, MOE_FORMAT_Q4_K, MOE_FORMAT_F32); }
static moe_desc deepseek_v3(void) {
    moe_desc d = shape("deepseek_v3", 7168, 2048, 256, 8, MOE_FORMAT_FP8_BLOCK, MOE_FORMAT_BF16);
    d.shared.d_ff = 2048, d.shared.gate = d.gate, d.shared.up = d.up, d.shared.down = d.down;
    moe_matrix *const all[] = {&d.gate, &d.up, &d.down, &d.shared.gate, &d.shared.up, &d.shared.down};
    for (size_t i = 0; i < COUNT(all); i++)
        set(all[i], MOE_FORMAT_FP8_BLOCK), all[i]->scale.type = MOE_TYPE_F32, all[i]->scale.data = weights;
    d.router.select_bias.type = MOE_TYPE_F32, d.router.select_bias.data = weights;
    return d;
}
static moe_layer layer_of(const moe_desc *d, const char *what) {
    moe_layer l;
    moe_error e;
    memset(&l, 0, sizeof l);
    if (moe_layer_init(&l, d, &e))
        failed++, printf("FAIL %s: init: %s %s: %s\n", what, e.part, e.field, moe_status_text(e.status));
    return l;
}

static void one_count(const char *what, const moe_desc *d, const moe_counts *want, uint64_t layers, uint64_t rest,
                      uint64_t model) {
    moe_layer l = layer_of(d, what);
    moe_counts c;
    moe_layer_counts(&l, &c);
#define SAME(field) equal(what, #field, c.field, want->field)
    SAME(params_total), SAME(params_active), SAME(bytes_total), SAME(bytes_active), SAME(flops_token),
        SAME(flops_dense);
#undef SAME
    equal(what, "the whole model's parameters", layers * c.params_total + rest, model);
}

static void test_counts(void) {
    /* An expert: 3 * 4096 * 14336 = 176160768; the router: 32768. */
    const moe_counts m = {1409318912u, 352354304u, 2818637824u, 704708608u, 704708608u, 2818637824u};
    const uint64_t m_rest = 2u * 32000 * 4096 + 32u * (2 * 4096 * 4096 + 2 * 4096 * 1024) + 65u * 4096;
    moe_desc d = mixtral();
    one_count("Mixtral 8x7B", &d, &m, 32, m_rest, 46702792704u);
    /* An expert: 3 * 2048 * 768 = 4718592 in 18432 blocks of 144 bytes. */
    const moe_counts q = {604241920u, 38010880u, 340787200u, 22282240u, 76021760u, 1208483840u};
    const uint64_t q_rest =
        2u * 151936 * 2048 + 48u * (2 * 2048 * 4096 + 2 * 2048 * 512 + 2 * 128 + 2 * 2048) + 2048u;
    d = qwen3_30b();
    one_count("Qwen3-30B-A3B", &d, &q, 48, q_rest, 30532122624u);
    /* An expert: 3 * 7168 * 2048 = 44040192 bytes, and a 4-byte scale for each of 3 * 56 * 16 blocks; one is shared. */
    const moe_counts v = {11320164608u, 398196992u, 11324763648u, 400129536u, 796393472u, 22640328704u};
    const uint64_t mla =
        7168u * 1536 + 1536 + 1536u * 128 * 192 + 7168u * 576 + 512 + 512u * 128 * 256 + 128u * 128 * 7168 + 2 * 7168;
    const uint64_t v_rest = 2u * 129280 * 7168 + 3u * (3u * 7168 * 18432) + 61 * mla + 7168;
    d = deepseek_v3();
    one_count("DeepSeek-V3", &d, &v, 58, v_rest, 671026419200u);
    d.expert_first = 64, d.expert_count = 32; /* counts are of the whole layer, whoever holds it */
    one_count("DeepSeek-V3, a part", &d, &v, 58, v_rest, 671026419200u);
}

/* ---- workspaces of a large layer ---- */

static void test_sizes(const char *what, const moe_desc *d) {
    moe_layer l = layer_of(d, what);
    static const uint32_t tasks[] = {1, 2, 7, 16, 64};
    size_t n = 4096, across = 0;
    for (size_t i = 0; i < COUNT(tasks); i++) {
        size_t last = 0, last_min = 0, full = moe_workspace_size(&l, n, tasks[i]);
        int grows = 1, ordered = 1;
        for (size_t t = 1; t <= 5000; t++) {
            size_t size = moe_workspace_size(&l, t, tasks[i]), min = moe_workspace_min(&l, t, tasks[i]);
            if (size < last && grows)
                printf("  %s, %u tasks: %zu tokens need %zu bytes, one more %zu\n", what, tasks[i], t - 1, last,
                       size);
            grows &= size >= last && min >= last_min;
            ordered &= min <= size && size != SIZE_MAX;
            last = size, last_min = min;
        }
        check(grows, what, "more tokens need less workspace");
        check(ordered, what, "workspace_min is larger than workspace_size");
        check(full >= across, what, "more tasks need less workspace");
        across = full;
    }
    /* The least there can be: a token's row for the experts (1 byte a value at best) and its slots' hidden rows. */
    size_t floor = n * (d->d_model + (size_t)d->top_k * d->d_ff),
           ceiling = 4 * (n * (3 * (size_t)d->d_model + (size_t)d->top_k * d->d_ff + d->n_experts)) * 5 / 4;
    check(moe_workspace_size(&l, n, 1) > floor, what, "less workspace than the rows take");
    check(moe_workspace_size(&l, n, 1) < ceiling + (8u << 20), what,
          "more workspace than f32 rows and a task's scratch take");
    check(moe_workspace_min(&l, n, 1) < (16u << 20), what, "no modest workspace_min");
}

/* Phases are counted without reading a byte: the more workspace, the fewer; in one block as many as for one token. */
static void test_plan(const char *what, const moe_desc *d) {
    moe_layer l = layer_of(d, what);
    moe_io io;
    memset(&io, 0, sizeof io);
    size_t n = 4096, full = moe_workspace_size(&l, n, 4), least = moe_workspace_min(&l, n, 4);
    uint8_t *nowhere = (uint8_t *)(uintptr_t)((uintptr_t)1 << 20); /* 64-byte aligned, and never touched */
    io.x = nowhere, io.y = nowhere, io.x_type = io.y_type = MOE_TYPE_BF16, io.n_tokens = n, io.n_tasks = 4,
    io.workspace = nowhere + ((size_t)1 << 30); /* behind the rows */
    io.workspace_size = full;
    uint32_t one_block = moe_phase_count(&l, &io), last;
    io.workspace_size = least;
    last = moe_phase_count(&l, &io);
    check(one_block >= 6 && one_block <= 12, what, "phases of one block");
    check(last > n, what, "phases of one token a block");
    int falls = 1;
    for (size_t i = 1; i <= 64; i++) {
        io.workspace_size = least + (full - least) / 64 * i;
        uint32_t phases = moe_phase_count(&l, &io);
        falls &= phases <= last && phases >= one_block;
        last = phases;
    }
    check(falls, what, "a larger workspace gives more phases");
    io.workspace_size = least - 63; /* what an aligned one needs */
    check(moe_phase_count(&l, &io) > n, what, "the least aligned workspace");
    io.workspace_size = least - 64;
    check(moe_phase_count(&l, &io) == 1 && moe_phase_run(&l, &io, 0, 0, 1) == MOE_ERR_WORKSPACE, what,
          "a byte less than the least");
}

/* ---- statistics of calls, by hand ---- */

enum { D = 4, FF = 8, E = 4, K = 2, T = 4 };
static float gate[E * FF * D], up[E * FF * D], down[E * D * FF], router[E * D], x[T * D], y[T * D];
typedef struct loads {
    moe_stats s;
    uint64_t tokens[E];
    double weight[E], score[E];
} loads;

static moe_desc small(void) {
    moe_desc d;
    memset(&d, 0, sizeof d);
    d.d_model = D, d.d_ff = FF, d.n_experts = E, d.top_k = K, d.router.norm = MOE_NORM_SUM;
    set(&d.gate, MOE_FORMAT_F32), set(&d.up, MOE_FORMAT_F32), set(&d.down, MOE_FORMAT_F32),
        set(&d.router.weight, MOE_FORMAT_F32);
    d.gate.data = gate, d.up.data = up, d.down.data = down, d.router.weight.data = router;
    return d;
}
static void clear(loads *l) {
    memset(l, 0, sizeof *l);
    l->s.tokens = l->tokens, l->s.weight = l->weight, l->s.score = l->score;
}

/* Scores 1/2 1/4 1/8 1/8 for two tokens, 1/6 1/6 1/2 1/6 for two: experts 0 1 (weights 2/3 1/3) and 2 0 (3/4 1/4). */
static float logits[T * E];
static const int32_t *given;
static moe_status call(const moe_desc *d, loads *stats, uint32_t n_tasks) {
    moe_layer l = layer_of(d, "a small layer");
    moe_io io;
    memset(&io, 0, sizeof io);
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = T, io.logits_in = logits,
    io.stats = &stats->s;
    io.ids_in = given, io.n_tasks = n_tasks;
    io.workspace_size = moe_workspace_size(&l, T, n_tasks), io.workspace = malloc(io.workspace_size);
    moe_status status = io.workspace ? moe_forward(&l, &io) : MOE_ERR_NULL;
    free(io.workspace);
    return status;
}

static void test_statistics(void) {
    static const double odds[2][E] = {{4, 2, 1, 1}, {1, 1, 3, 1}};
    static const int32_t ids[T * K] = {0, -1, 3, 3, -1, -1, 1, 2};
    loads l;
    moe_balance b;
    moe_desc d = small();
    double ln8 = log(8.0), ln6 = log(6.0);
    for (int i = 0; i < T * E; i++) logits[i] = (float)log(odds[i / E % 2][i % E]);
    clear(&l);
    for (uint32_t calls = 1; calls <= 3; calls++) { /* they add up */
        double c = (double)calls;
        check(call(&d, &l, calls) == MOE_OK, "statistics", "status");
        equal("statistics", "n_tokens", l.s.n_tokens, 4 * calls), equal("statistics", "slots", l.s.slots, 8 * calls);
        equal("statistics", "others", l.s.dropped + l.s.saved + l.s.skipped, 0);
        equal("load", "0", l.tokens[0], 4 * calls), equal("load", "1", l.tokens[1], 2 * calls);
        equal("load", "2", l.tokens[2], 2 * calls), equal("load", "3", l.tokens[3], 0);
        near("weight", "0", l.weight[0], c * (4.0 / 3 + 0.5)), near("weight", "1", l.weight[1], c * 2 / 3);
        near("weight", "2", l.weight[2], c * 1.5), near("weight", "3", l.weight[3], 0);
        near("score", "0", l.score[0], c * (1 + 1.0 / 3)), near("score", "1", l.score[1], c * (0.5 + 1.0 / 3));
        near("score", "2", l.score[2], c * 1.25), near("score", "3", l.score[3], c * (0.25 + 1.0 / 3));
        near("statistics", "z", l.s.z, c * 2 * (ln8 * ln8 + ln6 * ln6));
        moe_stats_balance(&l.s, E, &b);
        near("balance", "imbalance", b.imbalance, 2), near("balance", "variation", b.variation, sqrt(0.5)),
            near("balance", "entropy", b.entropy, 0.75);
        near("balance", "aux_loss", b.aux_loss, 1.1875),
            near("balance", "z_loss", b.z_loss, (ln8 * ln8 + ln6 * ln6) / 2);
    }
    d.router.drop_below = 0.4f; /* 1/4 is below 0.4 * 3/4, 1/3 is not below 0.4 * 2/3 */
    clear(&l);
    check(call(&d, &l, 1) == MOE_OK, "drop_below", "status");
    equal("drop_below", "saved", l.s.saved, 2), equal("drop_below", "load of 0", l.tokens[0], 2),
        equal("drop_below", "slots", l.s.slots, 8);
    d = small();
    d.router.capacity = 1; /* of 4, 2 and 2 slots one each has a place */
    clear(&l);
    check(call(&d, &l, 1) == MOE_OK, "capacity", "status");
    equal("capacity", "dropped", l.s.dropped, 5), equal("capacity", "load of 0", l.tokens[0], 1),
        equal("capacity", "load of 2", l.tokens[2], 1);
    near("capacity", "weight of 0", l.weight[0], 2.0 / 3), near("capacity", "weight of 2", l.weight[2], 0.75);
    d = small();
    given = ids; /* the caller's: -1 is skipped, repeats are two slots */
    clear(&l);
    check(call(&d, &l, 2) == MOE_OK, "ids_in", "status");
    equal("ids_in", "skipped", l.s.skipped, 3), equal("ids_in", "slots", l.s.slots, 8),
        equal("ids_in", "load of 3", l.tokens[3], 2);
    near("ids_in", "weight of a lone expert", l.weight[0], 1);
    given = NULL;
    static uint64_t lone[1] = {5};
    clear(&l);
    l.s.tokens = lone, l.s.n_tokens = 5, l.s.score = NULL;
    moe_stats_balance(&l.s, 1, &b);
    near("one expert", "imbalance", b.imbalance, 1), near("one expert", "entropy", b.entropy, 1),
        near("one expert", "variation", b.variation, 0);
}

/* ---- tiers and computes ---- */

static void test_tiers(void) {
    uint32_t have = moe_tiers(), bf16_tiers = MOE_TIER_BIT(MOE_TIER_AVX512BF16) | MOE_TIER_BIT(MOE_TIER_AMX) |
                                              MOE_TIER_BIT(MOE_TIER_NEONBF16);
    check(have & MOE_TIER_BIT(MOE_TIER_C), "tiers", "c is missing");
    check(have < MOE_TIER_BIT(MOE_TIER_COUNT), "tiers", "unknown bits");
    check(moe_tier_mask(MOE_TIER_COUNT) == 0 && moe_tier_mask(~0u) == 0, "tier mask", "of no tier");
    for (uint32_t t = 0; t < MOE_TIER_COUNT; t++) {
        uint32_t mask = moe_tier_mask(t);
        check((mask & 1) && (mask & MOE_TIER_BIT(t)) && mask < 2 * MOE_TIER_BIT(t), moe_tier_name(t), "mask");
        for (uint32_t below = 0; below < t; below++)
            if (mask & MOE_TIER_BIT(below))
                check((moe_tier_mask(below) & ~mask) == 0, moe_tier_name(t), "what a tier builds on builds on more");
        if (!(have & MOE_TIER_BIT(t))) {
            moe_desc d = small();
            moe_layer l;
            d.tiers = MOE_TIER_BIT(t);
            check(moe_layer_init(&l, &d, NULL) == MOE_ERR_TIER, moe_tier_name(t), "accepted, but not here");
            continue;
        }
        check((mask & ~have) == 0 || t == MOE_TIER_AVX512BF16 || t == MOE_TIER_AMX, moe_tier_name(t),
              "here without what it builds on");
        moe_desc d = qwen3_30b();
        d.tiers = mask, d.down.format = MOE_FORMAT_BF16;
        moe_layer l = layer_of(&d, moe_tier_name(t));
        check(mask >> moe_layer_tier(&l) & 1, moe_tier_name(t), "the layer runs on another tier");
        equal(moe_tier_name(t), "compute of q4_K", moe_layer_compute(&l, MOE_UP), MOE_COMPUTE_Q8);
        equal(moe_tier_name(t), "compute of q4_K", moe_layer_compute(&l, MOE_GATE), MOE_COMPUTE_Q8);
        equal(moe_tier_name(t), "compute of bf16", moe_layer_compute(&l, MOE_DOWN),
              mask & have & bf16_tiers ? MOE_COMPUTE_BF16 : MOE_COMPUTE_F32);
        d.gate.format = MOE_FORMAT_F16; /* gate and up read the same rows */
        l = layer_of(&d, moe_tier_name(t));
        equal(moe_tier_name(t), "compute of f16 beside q4_K", moe_layer_compute(&l, MOE_UP), MOE_COMPUTE_F32);
        d.compute = MOE_COMPUTE_F32;
        l = layer_of(&d, moe_tier_name(t));
        equal(moe_tier_name(t), "compute F32", moe_layer_compute(&l, MOE_DOWN), MOE_COMPUTE_F32);
    }
}

/* After permission AMX is among the tiers if this build has it; asking again changes nothing. */
static void test_amx(void) {
    uint32_t before = moe_tiers();
    int first = moe_enable_amx(), again = moe_enable_amx();
    check((first == 0 || first == 1) && first == again, "enable_amx",
          "not 0 or 1, or another answer the second time");
    check((moe_tiers() & before) == before, "enable_amx", "tiers were lost");
    check(first || moe_tiers() == before, "enable_amx", "refused, but other tiers");
}

/* ---- route alone ---- */

/* moe_route with logits reads neither x nor weights, and writes only what it is given. */
static void test_route(void) {
    moe_desc d = small();
    d.gate.data = d.up.data = d.down.data = d.router.weight.data = (void *)(uintptr_t)64;
    moe_layer l = layer_of(&d, "route");
    moe_io io;
    int32_t ids[T * K];
    float w[T * K];
    memset(&io, 0, sizeof io);
    io.n_tokens = T, io.logits_in = logits, io.workspace_size = moe_workspace_size(&l, T, 1),
    io.workspace = malloc(io.workspace_size);
    if (!io.workspace) abort();
    check(moe_route(&l, &io) == MOE_OK, "route", "without outputs");
    io.ids_out = ids;
    check(moe_route(&l, &io) == MOE_OK, "route", "of ids");
    io.weights_out = w;
    check(moe_route(&l, &io) == MOE_OK, "route", "of ids and weights");
    for (int t = 0; t < T; t++) {
        equal("route", "first id", (uint64_t)ids[2 * t], t % 2 ? 2 : 0),
            equal("route", "second id", (uint64_t)ids[2 * t + 1], t % 2 ? 0 : 1);
        near("route", "first weight", (double)w[2 * t], t % 2 ? 0.75 : 2.0 / 3),
            near("route", "second weight", (double)w[2 * t + 1], t % 2 ? 0.25 : 1.0 / 3);
    }
    free(io.workspace);
}

int main(void) {
    moe_desc d;
    if (sizeof(size_t) < 8) { /* these layers do not fit into 32 bits of address */
        printf("  skipped: counts and sizes of large layers (32-bit addresses)\n");
        skipped++;
    } else {
        test_counts();
        d = mixtral(), test_sizes("Mixtral 8x7B", &d), test_plan("Mixtral 8x7B", &d);
        d = qwen3_30b(), test_sizes("Qwen3-30B-A3B", &d), test_plan("Qwen3-30B-A3B", &d);
        d = deepseek_v3(), test_sizes("DeepSeek-V3", &d), test_plan("DeepSeek-V3", &d);
    }
    d = small(), test_sizes("a small layer", &d);
    test_statistics();
    test_tiers();
    test_route();
    test_amx();
    printf("test_api: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
