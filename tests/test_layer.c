/* The whole layer: random configurations over all knobs, formats and layouts against the float64 oracle, every element within
   its bound; the same bits on every tier (F32, Q8), for any number of tasks, any split of the tokens, any workspace. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include <stdio.h>
#include <stdlib.h>
#include "oracle.h"
#include "random_layer.h"

static int passed, failed, skipped;
static double worst[MOE_COMPUTE_COUNT][MOE_FORMAT_COUNT]; /* fraction of the bound used */
static long elements, ambiguous;

#define FAIL(...) (failed++, printf("FAIL "), printf(__VA_ARGS__), printf("\n"))

enum { MAX_T = 24 };
typedef struct call {
    moe_layer layer;
    moe_io io;
    size_t n, d, k;
    float *x, *rx, *y;
    int32_t *ids;
    float *weights, *logits;
} call;

static void *grab(size_t n) {
    void *p = malloc(n ? n : 1);
    if (!p) abort();
    return p;
}

static void call_new(call *c, const rl_layer *l, size_t n, rl_rng *r) {
    memset(c, 0, sizeof *c);
    c->n = n, c->d = l->desc.d_model, c->k = l->desc.top_k;
    c->x = (float *)grab(n * c->d * 4), c->rx = (float *)grab(n * c->d * 4), c->y = (float *)grab(n * c->d * 4);
    c->ids = (int32_t *)grab(n * c->k * 4), c->weights = (float *)grab(n * c->k * 4);
    c->logits = (float *)grab(n * 64 * 4);
    for (size_t i = 0; i < n * c->d; i++) c->x[i] = rl_gauss(r), c->rx[i] = rl_gauss(r);
    c->io.x = c->x, c->io.y = c->y, c->io.x_type = c->io.y_type = MOE_TYPE_F32;
    c->io.n_tokens = n, c->io.ids_out = c->ids, c->io.weights_out = c->weights, c->io.logits_out = c->logits;
}
static void call_free(call *c) {
    free(c->x), free(c->rx), free(c->y), free(c->ids), free(c->weights), free(c->logits);
}

static moe_status run(call *c, uint32_t tasks, size_t bytes) {
    moe_error e;
    c->io.n_tasks = tasks;
    c->io.workspace_size = bytes ? bytes : moe_workspace_size(&c->layer, c->io.n_tokens, tasks);
    c->io.workspace = grab(c->io.workspace_size);
    memset(c->io.workspace, 0xff,
           c->io.workspace_size); /* NaN everywhere: nothing may be read before it is written */
    c->io.error = &e;
    moe_status s = moe_forward(&c->layer, &c->io);
    if (s) printf("(%s: %s)\n", e.field, moe_status_text(s));
    free(c->io.workspace);
    c->io.error = NULL;
    return s;
}

/* ---- against the oracle ---- */

static orc_compute orc_of(const struct moei_arith *a) {
    return !a || a->compute == MOE_COMPUTE_F32 ? ORC_F32 : a->compute == MOE_COMPUTE_BF16 ? ORC_BF16 : ORC_Q8;
}

static void tell_computes(rl_layer *l, const moe_layer *m) {
    l->knobs.compute_up = orc_of(m->routed.in), l->knobs.compute_down = orc_of(m->routed.mid);
    l->knobs.compute_shared_up = orc_of(m->shared.in), l->knobs.compute_shared_down = orc_of(m->shared.mid);
    l->knobs.compute_latent_in = orc_of(m->latent_in), l->knobs.compute_latent_out = orc_of(m->latent_out);
    int bf16 = l->knobs.compute_up == ORC_BF16 || l->knobs.compute_down == ORC_BF16;
    l->knobs.w_rel = bf16 && l->format != MOE_FORMAT_BF16 ? ORC_UBF : 0;
}

/* Tokens whose routing rounding could change are left out, and counted. */
static int check_token(const call *c, const orc_result *r, size_t t, double *used, const char *what, uint64_t seed) {
    if (!(r->margin[t] > r->key_err[t]) || !(r->rank_margin[t] > r->rank_err[t])) {
        ambiguous++;
        return 1;
    }
    for (size_t j = 0; j < c->k; j++) {
        if (c->ids[t * c->k + j] != r->ids[t * c->k + j]) {
            FAIL("%s seed %llu: token %zu rank %zu expert %d, not %d", what, (unsigned long long)seed, t, j,
                 c->ids[t * c->k + j], r->ids[t * c->k + j]);
            return 0;
        }
        double err = fabs((double)c->weights[t * c->k + j] - r->weights[t * c->k + j]);
        if (!(err <= r->weights_err[t * c->k + j])) {
            FAIL("%s seed %llu: token %zu rank %zu weight off by %g, bound %g", what, (unsigned long long)seed, t, j,
                 err, r->weights_err[t * c->k + j]);
            return 0;
        }
    }
    for (size_t i = t * c->d; i < (t + 1) * c->d; i++) {
        double err = fabs((double)c->y[i] - r->output[i]), part = err / r->bound[i];
        elements++;
        if (err > 0 && part > *used) *used = part;
        if (!(err <= r->bound[i])) {
            FAIL("%s seed %llu: token %zu output %zu is %.9g, not %.9g: %.2f of the bound", what,
                 (unsigned long long)seed, t, i % c->d, (double)c->y[i], r->output[i], part);
            return 0;
        }
    }
    return 1;
}

static void one_random(uint64_t seed, uint32_t format, uint32_t shared_format, uint32_t compute, uint32_t tiers,
                       uint32_t unit) {
    rl_layer l;
    call c;
    moe_error e;
    orc_result r;
    char what[96];
    rl_make(&l, seed, format, shared_format, unit, unit == 1 ? 70 : 2);
    l.desc.compute = compute, l.desc.tiers = tiers;
    snprintf(what, sizeof what, "%s %s tiers %x", moe_format_name(format),
             compute == MOE_COMPUTE_F32  ? "f32"
             : compute == MOE_COMPUTE_Q8 ? "q8"
             : compute                   ? "bf16"
                                         : "default",
             tiers);
    rl_rng rng = {seed ^ 0x1234567};
    call_new(&c, &l, 1 + rl_below(&rng, MAX_T), &rng);
    if (moe_layer_init(&c.layer, &l.desc, &e)) {
        FAIL("%s seed %llu: init says %s: %s", what, (unsigned long long)seed, e.field, moe_status_text(e.status));
    } else {
        int separate = rl_one_in(&rng, 6);
        if (separate) c.io.router_x = c.rx;
        tell_computes(&l, &c.layer);
        orc_forward(&l.knobs, &l.weights, c.x, separate ? c.rx : NULL, NULL, c.n, &r);
        moe_status s = run(&c, 1 + rl_below(&rng, 5), 0);
        int ok = s == MOE_OK;
        if (!ok) FAIL("%s seed %llu: status %d", what, (unsigned long long)seed, (int)s);
        for (size_t t = 0; t < c.n && ok; t++)
            ok = check_token(&c, &r, t, &worst[c.layer.routed.in->compute][format], what, seed);
        passed += ok;
        orc_free(&r);
    }
    call_free(&c);
    rl_free(&l);
}

static uint32_t unit_of(uint32_t format) { /* the least row length that the format takes */
    uint32_t n = 1;
    while (!moe_row_bytes(format, n)) n *= 2;
    return n;
}
static int is_integer(uint32_t format) {
    return format >= MOE_FORMAT_Q8_0 && format != MOE_FORMAT_MXFP8 && format != MOE_FORMAT_FP8_BLOCK &&
           format != MOE_FORMAT_FP8_CHANNEL;
}
static uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

static void test_oracle(uint32_t tiers, int rounds) {
    for (uint32_t f = MOE_FORMAT_F32; f < MOE_FORMAT_COUNT; f++) {
        uint32_t unit = unit_of(f), n = f <= MOE_FORMAT_BF16 ? (uint32_t)rounds * 8 : (uint32_t)rounds;
        for (uint64_t s = 0; s < n; s++) {
            uint32_t shared = s % 3 ? f : MOE_FORMAT_BF16;
            one_random(1000 * f + s, f, shared, MOE_COMPUTE_F32, tiers, unit);
            if (is_integer(f)) one_random(500000 + 1000 * f + s, f, shared, MOE_COMPUTE_Q8, tiers, larger(unit, 32));
            one_random(700000 + 1000 * f + s, f, shared, MOE_COMPUTE_DEFAULT, tiers, unit);
        }
    }
}

/* ---- the same bits ---- */

/* y of one layer under everything that must not matter. */
static void same_bits(uint64_t seed, uint32_t format, uint32_t compute, uint32_t unit) {
    rl_layer l;
    call c;
    static const uint32_t tasks[] = {1, 2, 3, 7, 16};
    uint32_t have = moe_tiers();
    int dense = format <= MOE_FORMAT_BF16;
    rl_make(&l, seed, format, format, unit, unit == 1 ? 90 : unit == 256 ? 2 : 3);
    l.desc.compute = compute;
    rl_rng rng = {seed};
    call_new(&c, &l, 33, &rng);
    float *want = (float *)grab(c.n * c.d * 4);
    int first = 1, ok = 1;
    for (uint32_t tier = 0; tier < MOE_TIER_COUNT && ok; tier++) {
        if (!(have & MOE_TIER_BIT(tier))) continue;
        if (compute == MOE_COMPUTE_BF16) { /* promised within a tier only */
            if (!rl_bf16(moe_tier_mask(tier))) continue;
            first = 1;
        }
        l.desc.tiers = moe_tier_mask(tier);
        if (moe_layer_init(&c.layer, &l.desc, NULL)) {
            FAIL("same bits: init %s on %s", moe_format_name(format), moe_tier_name(tier));
            break;
        }
        int all = tier != MOE_TIER_C || dense; /* the c tier decodes blocks slowly: two of the five ways there */
        for (size_t i = 0; i < sizeof tasks / sizeof *tasks && ok; i += all ? 1 : 3) {
            memset(c.y, 0xee, c.n * c.d * 4);
            size_t bytes = i % 2 ? moe_workspace_min(&c.layer, c.n, tasks[i]) + (i > 2 ? 200000 : 0) : 0;
            if (bytes > moe_workspace_size(&c.layer, c.n, tasks[i])) bytes = 0;
            if (run(&c, tasks[i], bytes))
                ok = 0, FAIL("same bits: %s on %s: status", moe_format_name(format), moe_tier_name(tier));
            else if (first) memcpy(want, c.y, c.n * c.d * 4), first = 0;
            else if (memcmp(want, c.y, c.n * c.d * 4))
                ok = 0, FAIL("same bits: %s compute %u seed %llu differs on %s with %u tasks, workspace %zu",
                             moe_format_name(format), compute, (unsigned long long)seed, moe_tier_name(tier),
                             tasks[i], bytes);
        }
        for (size_t at = 0, n; at < (all ? c.n : 7) && ok; at += n) { /* split: 1, 2, 4, 8, ... tokens a call */
            moe_io whole = c.io;
            n = at + 1 < c.n - at ? at + 1 : c.n - at;
            c.io.x = c.x + at * c.d, c.io.y = c.y, c.io.n_tokens = n, c.io.ids_out = NULL, c.io.weights_out = NULL,
            c.io.logits_out = NULL;
            memset(c.y, 0xee, n * c.d * 4);
            if (run(&c, 2, 0) || memcmp(want + at * c.d, c.y, n * c.d * 4))
                ok = 0, FAIL("same bits: %s compute %u seed %llu on %s: tokens %zu.. alone differ",
                             moe_format_name(format), compute, (unsigned long long)seed, moe_tier_name(tier), at);
            c.io = whole;
        }
    }
    passed += ok;
    free(want);
    call_free(&c);
    rl_free(&l);
}

static void test_same_bits(int rounds) {
    for (uint32_t f = MOE_FORMAT_F32; f < MOE_FORMAT_COUNT; f++)
        for (int s = 0; s < rounds; s++) {
            same_bits(9000 + 100 * f + (uint64_t)s, f, MOE_COMPUTE_F32, unit_of(f));
            if (is_integer(f)) same_bits(19000 + 100 * f + (uint64_t)s, f, MOE_COMPUTE_Q8, larger(unit_of(f), 32));
            if (rl_bf16(moe_tiers())) same_bits(29000 + 100 * f + (uint64_t)s, f, MOE_COMPUTE_BF16, unit_of(f));
        }
}

static void report(void) {
    printf("  worst part of the bound used: ");
    for (uint32_t c = 1; c < MOE_COMPUTE_COUNT; c++) {
        double w = 0;
        for (uint32_t f = 0; f < MOE_FORMAT_COUNT; f++) w = fmax(w, worst[c][f]);
        printf("%s %.1f %%  ", moe_compute_name(c), 100 * w);
    }
    printf("(%ld elements; %ld tokens with ambiguous routing left out)\n  tiers exercised:", elements, ambiguous);
    for (uint32_t t = 0; t < MOE_TIER_COUNT; t++)
        if (moe_tiers() & MOE_TIER_BIT(t)) printf(" %s", moe_tier_name(t));
    printf("; not:");
    for (uint32_t t = 0; t < MOE_TIER_COUNT; t++)
        if (!(moe_tiers() & MOE_TIER_BIT(t))) printf(" %s", moe_tier_name(t));
    printf("\n");
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 2;
    test_oracle(MOE_TIER_BIT(MOE_TIER_C), rounds);
    if (moe_tiers() != MOE_TIER_BIT(MOE_TIER_C)) test_oracle(0, rounds);
    test_same_bits(1);
    report();
    if (ambiguous * 4 > elements) FAIL("too many ambiguous tokens");
    printf("test_layer: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
