/* Routing: golden vectors, every corner case that routing code got wrong somewhere, a float64 re-implementation on
   random configurations, ids for any bits, capacity, presets, counts, statistics, and the scalar functions under
   them. Needs nothing but a C compiler:  cc -I. tests/test_route.c -lm. Under -ffast-math only the promises about ids
   are tested. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "data/route_vectors.h"
#include <stdio.h>
#include <stdlib.h>

static int passed, failed, skipped;
static const char *current = ""; /* name of the running test */
static void check(int ok, const char *why) {
    if (ok) passed++;
    else if (failed++ < 50) printf("FAIL %s: %s\n", current, why);
}
#define CHECK(ok) check((ok) != 0, #ok)

enum { MAX_ROWS = 1024, MAX_K = 64 };
static uint64_t arena[MAX_ROWS * 4 + 64]; /* scratch of moei_router */

/* ---- small helpers ---- */

static uint64_t seed = 1;
static uint32_t rnd(void) { /* splitmix64 */
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)((z ^ z >> 31) >> 32);
}
static uint32_t below(uint32_t n) { return (uint32_t)((uint64_t)rnd() * n >> 32); }
static float uniform(void) { return (float)(rnd() >> 8) * 5.96046448e-08f; }
static float normal(void) { return (uniform() + uniform() + uniform() + uniform() - 2.0f) * 1.732f; }

static int close_to(double got, double want, double tolerance) {
    double e = got - want;
    return (e < 0 ? -e : e) <= tolerance * (want < 0 ? -want : want);
}
static float f32(uint32_t bits) { return moei_float(bits); }
#define INF   f32(0x7f800000u)
#define NAN32 f32(0x7fc00000u)

static moe_desc make(uint32_t n_experts, uint32_t top_k) {
    moe_desc d;
    memset(&d, 0, sizeof d);
    d.n_experts = n_experts, d.top_k = top_k;
    return d;
}
/* n values of `size` bytes as a checkpoint stores them, little-endian: themselves, or one of a few copies. */
static const void *stored(const void *values, size_t n, size_t size) {
    static uint8_t copies[8][4 * MAX_ROWS];
    static uint32_t next;
    const uint16_t probe = 1;
    const uint8_t *from = (const uint8_t *)values;
    uint8_t *copy = copies[next++ % 8];
    if (*(const uint8_t *)&probe) return values;
    for (size_t i = 0; i < n * size; i++) copy[i] = from[i / size * size + size - 1 - i % size];
    return copy;
}
static void set_floats(moe_array *a, const void *data, size_t n) {
    memset(a, 0, sizeof *a);
    a->type = MOE_TYPE_F32, a->data = stored(data, n, 4);
}
#define set_f32(a, data) set_floats(a, data, sizeof(data) / sizeof(float))

static int32_t ids[MAX_K]; /* results of the last select() */
static float w[MAX_K];
static moe_status select1(const moe_desc *d, const float *l) {
    for (int j = 0; j < MAX_K; j++) ids[j] = -7, w[j] = -7.0f;
    moe_status status = moe_select(d, l, 1, NULL, ids, w, NULL);
    for (uint32_t j = status ? 0 : d->top_k; j < MAX_K; j++) CHECK(ids[j] == -7 && w[j] == -7.0f);
    return status;
}
static int ids_are(const int32_t *want, uint32_t k) { return !memcmp(ids, want, k * sizeof *want); }
static int weights_are(const double *want, uint32_t k, double tolerance) {
    for (uint32_t j = 0; j < k; j++)
        if (!close_to((double)w[j], want[j], tolerance)) return 0;
    return 1;
}
static double weight_sum(uint32_t k) {
    double sum = 0;
    for (uint32_t j = 0; j < k; j++) sum += (double)w[j];
    return sum;
}

static const float L[8] = {2.0f, 1.0f, 0.5f, -0.5f, 1.5f, 0.0f, -1.0f, 0.25f};
static const float B[8] = {-0.3f, 0.1f, 0.0f, 0.4f, -0.1f, 0.2f, 0.5f, 0.0f};

/* ---- golden vectors ---- */

static void vector_desc(const route_vector *v, moe_desc *d) {
    float real[5];
    memset(d, 0, sizeof *d);
    memcpy(real, v->real, sizeof real);
    d->n_experts = v->knob[0], d->n_zero_experts = v->knob[1], d->top_k = v->knob[2], d->shared.count = v->knob[3];
    d->shared.gate_kind = v->knob[3] ? MOE_SHARED_ROUTER_SINK : MOE_SHARED_PLAIN;
    d->router.score = v->knob[4], d->router.select_on = v->knob[5], d->router.pick = v->knob[6];
    d->router.weight_from = v->knob[7], d->router.norm = v->knob[8], d->router.group = v->knob[9];
    d->router.n_group = v->knob[10], d->router.topk_group = v->knob[11], d->router.group_mask_zero = v->knob[12];
    d->router.norm_skip_k1 = v->knob[13];
    d->router.softcap = real[0], d->router.jitter = real[1], d->router.norm_eps = real[2];
    d->router.norm_min = real[3], d->router.routed_scale = real[4];
    if (v->bias) set_floats(&d->router.select_bias, v->bias, d->n_experts + d->n_zero_experts);
    if (v->scale) set_floats(&d->router.expert_scale, v->scale, d->n_experts + d->n_zero_experts);
    if (v->table) d->router.table = stored(v->table, d->top_k, 4), d->router.table_rows = 1;
}

static void test_vectors(void) {
    static float l[MAX_ROWS], sink[8];
    const int32_t zero = 0;
    for (size_t i = 0; i < MOEI_COUNT(route_vectors); i++) {
        const route_vector *v = &route_vectors[i];
        moe_desc d;
        moei_router r;
        vector_desc(v, &d);
        current = v->id;
        memcpy(l, v->logits, moei_route_rows(&d) * 4);
        CHECK(moe_select(&d, l, 1, v->table ? &zero : NULL, ids, w, NULL) == MOE_OK);
        CHECK(ids_are(v->ids, d.top_k));
        if (v->weights) CHECK(weights_are(v->weights, d.top_k, 2e-6));
        moei_router_begin(&r, &d, &moei_vec_c, d.top_k, arena);
        moei_select_token(&r, l, v->table, d.top_k, ids, w, v->shared ? sink : NULL);
        for (uint32_t j = 0; v->shared && j < v->knob[3]; j++) CHECK(close_to((double)sink[j], v->shared[j], 2e-6));
    }
}

/* ---- corner cases: the number is that of the list of mistakes found in published implementations ---- */

static void case_not_renormalised(void) {
    moe_desc d = make(8, 2);
    double part, all = 0;
    current = "7.1 softmax over all is not softmax over the selected";
    CHECK(!select1(&d, L));
    for (int i = 0; i < 8; i++) all += exp((double)L[i]);
    part = (exp(2.0) + exp(1.5)) / all;
    CHECK(close_to(weight_sum(2), part, 1e-6)); /* 0.609, not 1 */
    d.router.weight_from = MOE_WEIGHT_SOFTMAX_SELECTED;
    CHECK(!select1(&d, L) && close_to(weight_sum(2), 1.0, 1e-6));
}

static void case_group_mask(void) {
    static const float nb[8] = {-2, -2, -2, -2, -2, -2, -2, -2};
    static const int32_t right[3] = {0, 4, 1}, legacy[3] = {2, 3, 6};
    moe_desc d = make(8, 3);
    current = "7.3 keys of other groups are -Inf, not 0";
    d.router.score = MOE_SCORE_SIGMOID, d.router.norm = MOE_NORM_SUM;
    d.router.group = MOE_GROUP_TOP2_SUM, d.router.n_group = 4, d.router.topk_group = 2;
    set_f32(&d.router.select_bias, nb);
    CHECK(!select1(&d, L) && ids_are(right, 3));
    d.router.group_mask_zero = 1;
    CHECK(!select1(&d, L) && ids_are(legacy, 3));
}

static void case_tiny_scores(void) {
    static const float l[4] = {-17.0f, -18.0f, -19.0f, -16.0f}, b[4] = {12.0f, 12.1f, 11.0f, 12.05f};
    static const int32_t want[2] = {1, 3};
    double s1 = 1 / (1 + exp(18.0)), s3 = 1 / (1 + exp(16.0));
    double even[2];
    moe_desc d = make(4, 2);
    current = "7.4 scores of 1e-8 under biases of 12 survive";
    d.router.score = MOE_SCORE_SIGMOID, d.router.norm = MOE_NORM_SUM, d.router.norm_eps = 1e-20f;
    set_f32(&d.router.select_bias, b);
    CHECK(!select1(&d, l) && ids_are(want, 2));
    even[0] = s1 / (s1 + s3), even[1] = s3 / (s1 + s3);
    CHECK(weights_are(even, 2, 2e-6));
    current = "7.4 keys are formed in float: 12 + 1e-8 ties with 12";
    {
        static const float same[4] = {12, 12, 12, 12}, up[4] = {-19, -18, -17, -16};
        static const int32_t first[2] = {0, 1};
        set_f32(&d.router.select_bias, same);
        CHECK(!select1(&d, up) && ids_are(first, 2));
    }
}

static void case_bias_selects_only(void) {
    moe_desc d = make(8, 3);
    static const int32_t want[3] = {1, 3, 6};
    double s[3] = {1 / (1 + exp(-1.0)), 1 / (1 + exp(0.5)), 1 / (1 + exp(1.0))};
    current = "7.5 the bias selects and never weighs";
    d.router.score = MOE_SCORE_SIGMOID;
    set_f32(&d.router.select_bias, B);
    CHECK(!select1(&d, L) && ids_are(want, 3) && weights_are(s, 3, 1e-6));
    d.router.weight_from = MOE_WEIGHT_BIASED;
    for (int j = 0; j < 3; j++) s[j] += (double)B[want[j]];
    CHECK(!select1(&d, L) && ids_are(want, 3) && weights_are(s, 3, 1e-6));
    current = "7.16 a bias with softmax scores";
    d.router.weight_from = MOE_WEIGHT_SCORE, d.router.score = MOE_SCORE_SOFTMAX;
    CHECK(!select1(&d, L) && ids[0] == 6 && (double)w[0] < 0.05);
}

static void case_sparsemixer(void) {
    static const float tie[4] = {2.0f, 1.98f, 1.0f, 0.0f};
    moe_desc d = make(8, 2);
    current = "7.6 the sparse mixer's weights sum to 2, not to 1";
    CHECK(!moe_preset(&d, "phimoe"));
    CHECK(!select1(&d, L) && ids[0] == 0 && ids[1] == 4 && close_to(weight_sum(2), 2.0, 1e-6));
    current = "7.6 a near tie shares the first weight and not the second";
    d.n_experts = 4;
    CHECK(!select1(&d, tie) && close_to((double)w[0], 1 / (1 + exp(-0.02)), 1e-6));
    CHECK(close_to((double)w[1], 1.0, 1e-6));
}

static void case_softcap(void) {
    static const float l[3] = {60.0f, 30.0f, 0.0f};
    double a = 30 * tanh(2.0), b = 30 * tanh(1.0), all = exp(a) + exp(b) + 1;
    moe_desc d = make(3, 2);
    current = "7.7 the softcap is applied, the sum is not";
    d.router.softcap = 30.0f;
    CHECK(!select1(&d, l) && close_to((double)w[0], exp(a) / all, 2e-5));
    CHECK(close_to((double)w[1], exp(b) / all, 2e-5));
}

static void case_scale(void) {
    moe_desc d = make(8, 2);
    double one;
    current = "7.8 the scale is applied once, with and without normalisation";
    CHECK(!select1(&d, L));
    one = weight_sum(2);
    d.router.routed_scale = 2.5f;
    CHECK(!select1(&d, L) && close_to(weight_sum(2), 2.5 * one, 1e-6));
    d.router.norm = MOE_NORM_SUM;
    CHECK(!select1(&d, L) && close_to(weight_sum(2), 2.5, 1e-6));
    current = "7.9 a scale of 0 means 1";
    d.router.routed_scale = 0.0f;
    CHECK(!select1(&d, L) && close_to(weight_sum(2), 1.0, 1e-6));
}

static void case_group_score(void) {
    /* group 0 has the best key, group 1 the best pair */
    static const float l[4] = {3.0f, -3.0f, 2.0f, 1.9f};
    moe_desc d = make(4, 1);
    current = "7.10 best key and sum of the two best keys differ";
    d.router.score = MOE_SCORE_SIGMOID, d.router.n_group = 2, d.router.topk_group = 1;
    d.router.group = MOE_GROUP_MAX;
    CHECK(!select1(&d, l) && ids[0] == 0);
    d.router.group = MOE_GROUP_TOP2_SUM;
    CHECK(!select1(&d, l) && ids[0] == 2);
    current = "groups of one expert";
    d.router.n_group = 4, d.router.topk_group = 2, d.top_k = 2;
    CHECK(!select1(&d, l) && ids[0] == 0 && ids[1] == 2);
    current = "7.10 softmax scores with either statistic";
    d.router.score = MOE_SCORE_SOFTMAX, d.router.n_group = 2, d.router.topk_group = 1, d.top_k = 1;
    CHECK(!select1(&d, l) && ids[0] == 0);
}

static void case_ties(void) {
    static const float equal[6] = {-1, -1, -1, -1, -1, -1}, zeros[4] = {-0.0f, 0.0f, -0.0f, 0.0f};
    static const float tiny[3] = {1e-45f, 3e-45f, 0.0f};
    static const int32_t first[4] = {0, 1, 2, 3}, order[3] = {1, 0, 2};
    moe_desc d = make(6, 4);
    current = "7.19 ties go to the lowest id";
    for (uint32_t score = 0; score < MOE_SCORE_COUNT; score++) {
        for (uint32_t on = 0; on < MOE_SELECT_COUNT; on++) {
            d.router.score = score, d.router.select_on = on;
            CHECK(!select1(&d, equal) && ids_are(first, 4));
        }
    }
    current = "7.19 -0 ties with 0";
    d = make(4, 4);
    d.router.select_on = MOE_SELECT_LOGIT;
    CHECK(!select1(&d, zeros) && ids_are(first, 4));
    current = "subnormal keys keep their order";
    d = make(3, 3);
    d.router.select_on = MOE_SELECT_LOGIT;
    CHECK(!select1(&d, tiny) && ids_are(order, 3));
}

static void case_negative_keys(void) {
    static const float l[5] = {-5.0f, -4.0f, -3.0f, -2.0f, -1.0f};
    static const int32_t want[3] = {4, 3, 2};
    moe_desc d = make(5, 3);
    current = "7.19 negative keys: taken entries are not marked by 0 or -1";
    d.router.select_on = MOE_SELECT_LOGIT;
    CHECK(!select1(&d, l) && ids_are(want, 3));
}

static void case_bf16_ties(void) {
    static const float l[3] = {1.0f, 1.001f, 0.0f}; /* both round to 1 in bf16 */
    moe_desc d = make(3, 1);
    current = "7.19 logits rounded to bf16 tie";
    CHECK(!select1(&d, l) && ids[0] == 1);
    d.router.logit_bf16 = 1;
    CHECK(!select1(&d, l) && ids[0] == 0 && close_to((double)w[0], 1 / (2 + exp(-1.0)), 1e-6));
}

static void case_nan(void) {
    float l[4] = {NAN32, 1.0f, NAN32, 2.0f}, all[4] = {NAN32, NAN32, NAN32, NAN32}, b[4] = {0, NAN32, 0, 0};
    static const int32_t want[3] = {3, 1, 0}, first[3] = {0, 1, 2}, no1[3] = {3, 0, 2};
    moe_desc d = make(4, 3);
    current = "a NaN logit counts as -Inf: last, and of weight 0";
    for (uint32_t score = 0; score < MOE_SCORE_COUNT; score++) {
        for (uint32_t from = 0; from < MOE_WEIGHT_BIASED; from++) {
            d.router.score = score, d.router.weight_from = from, d.router.norm = MOE_NORM_SUM;
            CHECK(!select1(&d, l) && ids_are(want, 3));
            CHECK(moei_bits(w[2]) == 0 && close_to(weight_sum(3), 1.0, 1e-6));
            CHECK(!select1(&d, all) && ids_are(first, 3) && moei_bits(w[0]) == 0 && moei_bits(w[2]) == 0);
        }
    }
    current = "a NaN bias counts as -Inf";
    d = make(4, 3);
    d.router.score = MOE_SCORE_SIGMOID;
    l[0] = 0.5f, l[2] = 0.0f;
    set_f32(&d.router.select_bias, b);
    CHECK(!select1(&d, l) && ids_are(no1, 3));
}

static void case_inf(void) {
    float l[5] = {0.0f, INF, 1.0f, INF, -INF}, none[3] = {-INF, -INF, -INF};
    static const int32_t soft[3] = {1, 3, 0}, want[3] = {1, 3, 2}; /* a softmax leaves nothing to the others: a tie */
    moe_desc d = make(5, 3);
    current = "+Inf logits share the mass";
    for (uint32_t score = 0; score < MOE_SCORE_COUNT; score++) {
        d.router.score = score, d.router.norm = MOE_NORM_SUM;
        CHECK(!select1(&d, l) && ids_are(score == MOE_SCORE_SOFTMAX ? soft : want, 3) && moei_is_finite(w[2]));
        CHECK(moei_bits(w[0]) == moei_bits(w[1]));
        if (score != MOE_SCORE_SIGMOID) CHECK(moei_bits(w[0]) == moei_bits(0.5f) && moei_bits(w[2]) == 0);
    }
    current = "all -Inf: weights 0";
    d = make(3, 2);
    for (uint32_t norm = 0; norm <= MOE_NORM_SUM; norm++) {
        d.router.norm = norm;
        CHECK(!select1(&d, none) && ids[0] == 0 && ids[1] == 1 && moei_bits(w[0]) == 0 && moei_bits(w[1]) == 0);
    }
}

static void case_underflow(void) {
    static const float l[4] = {-200.0f, -201.0f, -300.0f, -400.0f};
    moe_desc d = make(4, 2);
    current = "7.20 sigmoids that underflow give weights of 0, not NaN";
    d.router.score = MOE_SCORE_SIGMOID, d.router.norm = MOE_NORM_SUM;
    CHECK(!select1(&d, l) && moei_bits(w[0]) == 0 && moei_bits(w[1]) == 0);
}

static void case_norm(void) {
    moe_desc d = make(8, 1);
    current = "7.24 k = 1 becomes 1 unless normalisation is skipped";
    d.router.norm = MOE_NORM_SUM;
    CHECK(!select1(&d, L) && moei_bits(w[0]) == moei_bits(1.0f));
    d.router.norm_skip_k1 = 1;
    CHECK(!select1(&d, L) && close_to((double)w[0], 0.37900012535975186, 1e-6));
    d.top_k = 2;
    CHECK(!select1(&d, L) && close_to(weight_sum(2), 1.0, 1e-6));
    current = "the eps is added, the minimum is a floor";
    d.router.norm_eps = 0.5f;
    CHECK(!select1(&d, L) && close_to(weight_sum(2), 0.60887532 / 1.10887532, 1e-6));
    d.router.norm_eps = 0.0f, d.router.norm_min = 1.0f;
    CHECK(!select1(&d, L) && close_to(weight_sum(2), 0.60887532, 1e-6));
}

static void case_sink(void) {
    float sink[2], l[8];
    double s0 = 1 / (1 + exp(-2.0)), g0 = 1 / (1 + exp(1.0)), g1 = 1 / (1 + exp(-0.25)), all = s0 + g0 + g1;
    moe_desc d = make(6, 1);
    moei_router r;
    current = "6.8 shared experts' rows share one normalisation and are never selected";
    memcpy(l, L, sizeof l);
    CHECK(!moe_preset(&d, "inkling"));
    d.shared.count = 2, d.router.routed_scale = 8.0f;
    moei_router_begin(&r, &d, &moei_vec_c, 1, arena);
    moei_select_token(&r, l, NULL, 1, ids, w, sink);
    CHECK(ids[0] == 0 && close_to((double)w[0], 8 * s0 / all, 1e-6));
    CHECK(close_to((double)sink[0], 8 * g0 / all, 1e-6) && close_to((double)sink[1], 8 * g1 / all, 1e-6));
    CHECK(!select1(&d, l) && close_to((double)w[0], 8 * s0 / all, 1e-6));
    l[6] = l[7] = 50.0f;
    CHECK(!select1(&d, l) && ids[0] == 0);
}

static void case_zero_experts(void) {
    static const float b[8] = {0, 0, 0, 0, 0, 0, 5, 4};
    moe_desc d = make(5, 2);
    current = "6.9 zero experts are selected like others";
    d.n_zero_experts = 3;
    set_f32(&d.router.select_bias, b);
    CHECK(!select1(&d, L) && ids[0] == 6 && ids[1] == 7);
}

static void case_table(void) {
    static const int32_t t32[8] = {3, 3, 1, 99, 5, -1, 0, 99};
    static const int64_t t64[6] = {3, 3, 1, 5, -1, 0};
    static const int64_t wide[3] = {0, 1, (int64_t)1 << 32};
    static const int32_t want[6] = {5, -1, 0, 3, 3, 1}, tokens[2] = {1, 0}, out[1] = {2}, neg[1] = {-1};
    float l[16];
    moe_error e;
    moe_desc d = make(8, 3);
    memcpy(l, L, sizeof L), memcpy(l + 8, L, sizeof L);
    current = "7.26 a table may repeat an id; -1 skips; stride and 8-byte ids";
    d.router.pick = MOE_PICK_TABLE, d.router.norm = MOE_NORM_SUM, d.router.score = MOE_SCORE_SIGMOID;
    d.router.table = stored(t32, 8, 4), d.router.table_rows = 2, d.router.table_stride = 16;
    CHECK(!moe_select(&d, l, 2, tokens, ids, w, NULL) && ids_are(want, 6));
    CHECK(moei_bits(w[1]) == 0 && close_to((double)w[0] + (double)w[2], 1.0, 1e-6));
    CHECK(moei_bits(w[3]) == moei_bits(w[4]) && close_to((double)w[3] + (double)w[4] + (double)w[5], 1.0, 1e-6));
    d.router.table = stored(t64, 6, 8), d.router.table_bytes = 8, d.router.table_stride = 0;
    CHECK(!moe_select(&d, l, 2, tokens, ids, w, NULL) && ids_are(want, 6));
    current = "ids outside the table, entries outside the experts";
    ids[0] = 77;
    CHECK(moe_select(&d, l, 1, out, ids, w, &e) == MOE_ERR_TOKEN_ID && e.got == 2 && e.want == 2 && ids[0] == 77);
    CHECK(moe_select(&d, l, 1, neg, ids, w, &e) == MOE_ERR_TOKEN_ID && ids[0] == 77);
    CHECK(moe_select(&d, l, 1, NULL, ids, w, &e) == MOE_ERR_TOKEN_ID && ids[0] == 77);
    d.router.table = stored(wide, 3, 8), d.router.table_rows = 1;
    CHECK(moe_select(&d, l, 1, tokens + 1, ids, w, &e) == MOE_ERR_EXPERT_ID && ids[0] == 77);
}

/* ---- arrays, adaptive limits, given ids, errors ---- */

static void test_arrays(void) {
    uint8_t raw[8 * 7 + 3];
    float exact[8], w0[3];
    int32_t id0[3];
    const void *pointer = raw + 1;
    moe_desc d = make(8, 3);
    current = "biases as bf16 and f16, strided, unaligned, by pointer";
    d.router.score = MOE_SCORE_SIGMOID;
    for (uint32_t type = MOE_TYPE_F32; type <= MOE_TYPE_BF16; type++) {
        for (int i = 0; i < 8; i++) {
            uint16_t h = type == MOE_TYPE_F16 ? moei_to_f16(B[i]) : moei_to_bf16(B[i]);
            exact[i] = type == MOE_TYPE_F32 ? B[i] : type == MOE_TYPE_F16 ? moei_f16(h) : moei_bf16(h);
            if (type == MOE_TYPE_F32) moei_store32(raw + 3 + 7 * i, moei_bits(B[i]));
            else moei_store16(raw + 3 + 7 * i, h);
        }
        set_f32(&d.router.select_bias, exact), set_f32(&d.router.expert_scale, exact);
        CHECK(!select1(&d, L));
        memcpy(id0, ids, sizeof id0), memcpy(w0, w, sizeof w0);
        d.router.select_bias.type = type, d.router.select_bias.data = raw, d.router.select_bias.offset = 3;
        d.router.select_bias.stride = 7;
        d.router.expert_scale = d.router.select_bias;
        d.router.expert_scale.expert = &pointer, d.router.expert_scale.offset = 2, d.router.expert_scale.data = NULL;
        CHECK(!select1(&d, L) && ids_are(id0, 3) && !memcmp(w0, w, sizeof w0));
    }
}

static uint32_t adaptive(moe_desc *d, float drop_below, float top_p, uint32_t min_keep) {
    moei_router r;
    d->router.drop_below = drop_below, d->router.top_p = top_p, d->router.min_keep = min_keep;
    moei_router_begin(&r, d, &moei_vec_c, d->top_k, arena);
    return moei_select_token(&r, L, NULL, d->top_k, ids, w, NULL);
}
static uint32_t zeros(uint32_t k) {
    uint32_t n = 0;
    for (uint32_t j = 0; j < k; j++) n += moei_bits(w[j]) == 0;
    return n;
}

static void test_adaptive(void) {
    static const float scale[8] = {0.01f, 1, 1, 1, 1, 1, 1, 1};
    moe_desc d = make(8, 4); /* softmax weights .379 .230 .139 .085 for ids 0 4 1 2, sum .833 */
    current = "drop_below: a share of the largest weight";
    CHECK(adaptive(&d, 0.0f, 0.0f, 0) == 0 && zeros(4) == 0);
    CHECK(adaptive(&d, 0.3f, 0.0f, 0) == 1 && zeros(4) == 1 && moei_bits(w[3]) == 0 && ids[3] == 2);
    CHECK(adaptive(&d, 1.0f, 0.0f, 0) == 3 && zeros(4) == 3);
    CHECK(adaptive(&d, 1.0f, 0.0f, 3) == 1 && zeros(4) == 1);
    CHECK(adaptive(&d, 1.0f, 0.0f, 9) == 0);
    current = "top_p: the best slots up to a share of the weight";
    CHECK(adaptive(&d, 0.0f, 0.4f, 0) == 3 && adaptive(&d, 0.0f, 0.5f, 0) == 2 && adaptive(&d, 0.0f, 0.8f, 0) == 1);
    CHECK(adaptive(&d, 0.0f, 1.0f, 0) == 0 && adaptive(&d, 0.0f, 0.4f, 2) == 2);
    current = "equal weights stay together; a top_p of 1 keeps even what rounding hides";
    {
        static const float equal[4] = {1, 1, 1, 1}, far[3] = {0.0f, -30.0f, -31.0f};
        moe_desc e = make(4, 4), f = make(3, 3);
        e.router.drop_below = 1.0f, f.router.top_p = 1.0f;
        CHECK(!select1(&e, equal) && zeros(4) == 0);
        CHECK(!select1(&f, far) && zeros(3) == 0);
    }
    current = "what remains is not renormalised, and expert_scale does not decide";
    d.router.norm = MOE_NORM_SUM;
    set_f32(&d.router.expert_scale, scale);
    CHECK(adaptive(&d, 0.5f, 0.0f, 0) == 2 && close_to((double)w[0], 0.01 * 0.379 / 0.8328, 1e-3));
    current = "biased selection: the smallest weight goes, not the last rank";
    memset(&d.router.expert_scale, 0, sizeof d.router.expert_scale);
    d.router.score = MOE_SCORE_SIGMOID, d.top_k = 3;
    set_f32(&d.router.select_bias, B);
    CHECK(adaptive(&d, 0.4f, 0.0f, 0) == 1 && ids[2] == 6 && moei_bits(w[2]) == 0 && (double)w[1] > 0.1);
}

static void test_given(void) {
    static const int32_t given[5] = {4, -1, 0, -1, 4};
    static const float l[8] = {2.0f, 1.0f, 0.5f, -0.5f, 1.5f, 0.0f, -1.0f, 0.25f};
    moe_desc d = make(8, 2);
    moei_router r;
    current = "the caller's ids: skipped, repeated, more than top_k";
    for (uint32_t from = 0; from < MOE_WEIGHT_COUNT; from++) {
        d.router.norm = MOE_NORM_SUM, d.router.weight_from = from;
        moei_router_begin(&r, &d, &moei_vec_c, 5, arena);
        moei_select_token(&r, l, given, 5, ids, w, NULL);
        CHECK(ids_are(given, 5) && moei_bits(w[1]) == 0 && moei_bits(w[3]) == 0);
        CHECK(moei_bits(w[0]) == moei_bits(w[4]));
        CHECK(close_to(weight_sum(5), 1.0, 1e-6) && close_to((double)w[0] / (double)w[2], exp(-0.5), 1e-6));
    }
    current = "more slots than experts";
    {
        int32_t many[24];
        d = make(2, 1);
        d.router.drop_below = 0.5f;
        for (int j = 0; j < 24; j++) many[j] = j % 2;
        moei_router_begin(&r, &d, &moei_vec_c, 24, arena);
        CHECK(moei_select_token(&r, l, many, 24, ids, w, NULL) == 12); /* expert 1 has 0.37 of expert 0's weight */
    }
    current = "the sparse mixer's own ids, given";
    d = make(8, 2);
    d.router.pick = MOE_PICK_SPARSEMIXER;
    moei_router_begin(&r, &d, &moei_vec_c, 2, arena);
    {
        float own[2];
        int32_t picked[2];
        moei_select_token(&r, l, NULL, 2, picked, own, NULL);
        moei_select_token(&r, l, picked, 2, ids, w, NULL);
        CHECK(ids_are(picked, 2) && !memcmp(own, w, sizeof own));
        current = "the sparse mixer with a skipped slot before, after and between";
        for (int at = 0; at < 3; at++) {
            int32_t some[3] = {picked[0], picked[1], picked[1]};
            for (int j = 2; j > at; j--) some[j] = some[j - 1];
            some[at] = -1;
            moei_router_begin(&r, &d, &moei_vec_c, 3, arena);
            moei_select_token(&r, l, some, 3, ids, w, NULL);
            CHECK(ids_are(some, 3) && moei_bits(w[at]) == 0);
            CHECK(at == 0 ||
                  (moei_bits(w[0]) == moei_bits(own[0]) && (at == 1 || moei_bits(w[1]) == moei_bits(own[1]))));
            for (int j = 0; j < 3; j++) CHECK(w[j] >= 0 && w[j] <= 1);
        }
    }
}

static moe_status fails(const moe_desc *d, const char *field) {
    moe_error e;
    int32_t id[MAX_K] = {-5};
    float weight[MAX_K];
    moe_status status = moe_select(d, L, 1, NULL, id, weight, &e);
    if (status && (e.status != status || strcmp(e.field, field) || id[0] != -5)) return MOE_STATUS_COUNT;
    return moe_select(d, L, 1, NULL, id, weight, NULL) == status ? status : MOE_STATUS_COUNT;
}

static void test_errors(void) {
    moe_error e;
    moe_desc d = make(8, 2), good = d;
    current = "errors of moe_select";
    CHECK(moe_select(NULL, L, 1, NULL, ids, w, &e) == MOE_ERR_NULL && !strcmp(e.field, "desc"));
    CHECK(moe_select(&d, NULL, 1, NULL, ids, w, &e) == MOE_ERR_NULL && !strcmp(e.field, "logits"));
    CHECK(moe_select(&d, L, 1, NULL, NULL, w, &e) == MOE_ERR_NULL && !strcmp(e.field, "ids"));
    CHECK(moe_select(&d, L, 1, NULL, ids, NULL, &e) == MOE_ERR_NULL && !strcmp(e.field, "weights"));
    CHECK(moe_select(&d, NULL, 0, NULL, NULL, NULL, &e) == MOE_OK && e.status == MOE_OK);
#define BAD(set, status, field) d = good, set, check(fails(&d, field) == (status), #set " gives " #status)
    BAD(d.begin_ = 1, MOE_ERR_DESC, "begin_");
    BAD(d.end_ = 1, MOE_ERR_DESC, "end_");
    BAD(d.n_experts = 0, MOE_ERR_SIZE, "n_experts");
    BAD(d.n_experts = 0x80000000u, MOE_ERR_SIZE, "n_experts");
    BAD(d.n_experts = 2049, MOE_ERR_SIZE, "n_experts");
    BAD(d.n_zero_experts = UINT32_MAX, MOE_ERR_SIZE, "n_experts");
    BAD(d.shared.count = UINT32_MAX, MOE_ERR_SIZE, "n_experts");
    BAD(d.top_k = 0, MOE_ERR_SIZE, "top_k");
    BAD(d.top_k = 9, MOE_ERR_SIZE, "top_k");
    BAD(d.router.score = MOE_SCORE_COUNT, MOE_ERR_KNOB, "router.score");
    BAD(d.router.select_on = 2, MOE_ERR_KNOB, "router.select_on");
    BAD(d.router.pick = 3, MOE_ERR_KNOB, "router.pick");
    BAD(d.router.weight_from = UINT32_MAX, MOE_ERR_KNOB, "router.weight_from");
    BAD(d.router.norm = 3, MOE_ERR_KNOB, "router.norm");
    BAD(d.router.norm = MOE_NORM_SUM_WITH_SHARED, MOE_ERR_KNOB, "router.norm");
    BAD(d.router.group = 4, MOE_ERR_KNOB, "router.group");
    BAD(d.router.group_mask_zero = 2, MOE_ERR_KNOB, "router.group_mask_zero");
    BAD(d.router.norm_skip_k1 = 2, MOE_ERR_KNOB, "router.norm_skip_k1");
    BAD(d.router.logit_bf16 = 2, MOE_ERR_KNOB, "router.logit_bf16");
    BAD(d.router.capacity_drop = 2, MOE_ERR_KNOB, "router.capacity_drop");
    BAD(d.router.softcap = -1.0f, MOE_ERR_KNOB, "router.softcap");
    BAD(d.router.softcap = NAN32, MOE_ERR_VALUE, "router.softcap");
    BAD(d.router.routed_scale = INF, MOE_ERR_VALUE, "router.routed_scale");
    BAD(d.router.top_p = 1.5f, MOE_ERR_KNOB, "router.top_p");
    BAD(d.router.norm_eps = -1e-20f, MOE_ERR_KNOB, "router.norm_eps");
    BAD(d.router.group = MOE_GROUP_MAX, MOE_ERR_KNOB, "router.n_group");
    BAD((d.router.group = MOE_GROUP_MAX, d.router.n_group = 3), MOE_ERR_KNOB, "router.n_group");
    BAD((d.router.group = MOE_GROUP_MAX, d.router.n_group = 4), MOE_ERR_KNOB, "router.topk_group");
    BAD((d.router.group = 2, d.router.n_group = 4, d.router.topk_group = 5), MOE_ERR_KNOB, "router.topk_group");
    BAD((d.router.group = 2, d.router.n_group = 8, d.router.topk_group = 1), MOE_ERR_KNOB, "router.topk_group");
    BAD((d.router.group = 3, d.router.n_group = 4), MOE_ERR_KNOB, "router.n_group");
    BAD((d.router.pick = MOE_PICK_SPARSEMIXER, d.top_k = 3), MOE_ERR_KNOB, "top_k");
    BAD((d.router.pick = 2, set_f32(&d.router.select_bias, B)), MOE_ERR_KNOB, "router.select_bias");
    BAD((d.router.pick = 2, d.router.capacity_by_score = 1), MOE_ERR_KNOB, "router.capacity_by_score");
    BAD(d.router.pick = MOE_PICK_TABLE, MOE_ERR_NULL, "router.table");
    BAD((d.router.pick = 1, d.router.table = L, d.router.table_bytes = 2), MOE_ERR_KNOB, "router.table_bytes");
    BAD((d.router.pick = 1, d.router.table = L, d.router.table_stride = 7), MOE_ERR_STRIDE, "router.table_stride");
    BAD(d.router.select_bias.type = MOE_TYPE_E8M0, MOE_ERR_TYPE, "router.select_bias");
    BAD(d.router.select_bias.type = MOE_TYPE_F32, MOE_ERR_NULL, "router.select_bias");
    BAD(d.router.select_bias.data = L, MOE_ERR_TYPE, "router.select_bias");
    BAD(d.router.expert_scale.type = 99, MOE_ERR_TYPE, "router.expert_scale");
    BAD(d.shared.gate_kind = MOE_SHARED_COUNT, MOE_ERR_KNOB, "shared.gate_kind");
#undef BAD
    CHECK(fails(&good, "") == MOE_OK);
}

/* ---- the float64 re-implementation ---- */

typedef struct model { /* a configuration in float64, and its result */
    moe_desc d;
    uint32_t n, sinks;
    float bias[MAX_ROWS], scale[MAX_ROWS];
    int32_t table[MAX_K];
    double l[MAX_ROWS], s[MAX_ROWS], q[MAX_ROWS], weight[MAX_K], sink[8];
    double gap, sum; /* the closest decision, relative; of the raw weights */
    int32_t id[MAX_K];
} model;

static void decide(model *m, double a, double b, double size) { /* remembers how close a decision was */
    double g = a == b ? 1.0 : (a > b ? a - b : b - a) / (size + 1e-300);
    if (g < m->gap) m->gap = g;
}
static double absolute(double x) { return x < 0 ? -x : x; }
static double ref_softmax_at(const double *v, uint32_t n, double x) {
    double top = v[0], sum = 0;
    for (uint32_t i = 0; i < n; i++) top = v[i] > top ? v[i] : top;
    for (uint32_t i = 0; i < n; i++) sum += exp(v[i] - top);
    return exp(x - top) / sum;
}
static double key_size(const model *m, uint32_t i) { /* magnitudes that went into key i, for its rounding error */
    double b = m->d.router.select_bias.type ? absolute((double)m->bias[i]) : 0;
    return b + absolute(m->d.router.select_on == MOE_SELECT_LOGIT ? m->l[i] : m->s[i]);
}

static void ref_scores(model *m, const float *logits) {
    double c = (double)m->d.router.softcap;
    uint32_t all = m->n + m->sinks;
    for (uint32_t i = 0; i < all; i++) m->l[i] = c > 0 ? c * tanh((double)logits[i] / c) : (double)logits[i];
    for (uint32_t i = 0; i < all; i++) {
        double x = m->l[i];
        if (m->d.router.score == MOE_SCORE_SIGMOID) m->s[i] = 1 / (1 + exp(-x));
        else if (m->d.router.score == MOE_SCORE_SQRT_SOFTPLUS) m->s[i] = sqrt(log1p(exp(x)));
        else m->s[i] = ref_softmax_at(m->l, i < m->n ? m->n : all, x);
    }
    for (uint32_t i = 0; i < m->n; i++) {
        m->q[i] = m->d.router.select_on == MOE_SELECT_LOGIT ? m->l[i] : m->s[i];
        if (m->d.router.select_bias.type) m->q[i] += (double)m->bias[i];
    }
}

/* The k best of q[from .. from + n), by repeated search. */
static void ref_pick(model *m, const double *q, uint32_t from, uint32_t n, uint32_t k, int32_t *out) {
    uint8_t taken[MAX_ROWS] = {0};
    for (uint32_t j = 0; j <= k && j < n; j++) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = from; i < from + n; i++)
            if (!taken[i] && (best == UINT32_MAX || q[i] > q[best])) best = i;
        if (j) decide(m, q[out[j - 1]], q[best], key_size(m, best) + key_size(m, (uint32_t)out[j - 1]));
        if (j == k) break;
        taken[best] = 1;
        out[j] = (int32_t)best;
    }
}

static void ref_groups(model *m) {
    const moe_router *p = &m->d.router;
    double score[MAX_ROWS], mask = p->group_mask_zero ? 0.0 : (double)-INF;
    uint32_t size = m->n / p->n_group;
    for (uint32_t g = 0; g < p->n_group; g++) {
        double a = (double)-INF, b = (double)-INF;
        for (uint32_t i = g * size; i < (g + 1) * size; i++) {
            if (m->q[i] > a) b = a, a = m->q[i];
            else if (m->q[i] > b) b = m->q[i];
        }
        score[g] = p->group == MOE_GROUP_TOP2_SUM && size > 1 ? a + b : a;
    }
    for (uint32_t g = 0; g < p->n_group; g++) {
        uint32_t better = 0;
        for (uint32_t h = 0; h < p->n_group; h++) {
            better += score[h] > score[g] || (score[h] == score[g] && h < g);
            if (h != g) decide(m, score[h], score[g], absolute(score[h]) + absolute(score[g]) + 1.0);
        }
        for (uint32_t i = g * size; better >= p->topk_group && i < (g + 1) * size; i++) m->q[i] = mask;
    }
}

static void ref_sparsemixer(model *m) {
    double masked[MAX_ROWS], limit = m->d.router.jitter > 0.0f ? 2.0 * (double)m->d.router.jitter : 0.02;
    memcpy(masked, m->l, sizeof masked);
    for (uint32_t j = 0; j < m->d.top_k; j++) {
        double sum = 0, t;
        ref_pick(m, masked, 0, m->n, 1, &m->id[j]);
        t = masked[m->id[j]];
        for (uint32_t i = 0; i < m->n; i++) {
            double a = absolute(m->l[i]), ratio = (t - m->l[i]) / (a > t ? a : t);
            decide(m, ratio, limit, 1.0);
            if (ratio <= limit) sum += exp(masked[i] - t);
        }
        m->weight[j] = 1 / sum;
        masked[m->id[j]] = (double)-INF;
    }
}

static void ref_weights(model *m) {
    const moe_router *p = &m->d.router;
    uint32_t k = m->d.top_k, j;
    double chosen[MAX_K], sum = 0;
    for (j = 0; j < k; j++) chosen[j] = m->l[m->id[j]];
    for (j = 0; j < k && p->pick != MOE_PICK_SPARSEMIXER; j++) {
        double soft = p->weight_from == MOE_WEIGHT_SOFTMAX_SELECTED ? ref_softmax_at(chosen, k, chosen[j]) : 0;
        m->weight[j] = p->weight_from == MOE_WEIGHT_BIASED  ? m->q[m->id[j]]
                       : p->weight_from == MOE_WEIGHT_SCORE ? m->s[m->id[j]]
                                                            : soft;
    }
    for (m->sum = 0, j = 0; j < k; j++) m->sum += m->weight[j];
    for (j = 0; j < m->sinks; j++) m->sink[j] = m->s[m->n + j];
    if (p->norm != MOE_NORM_NONE && !(p->norm_skip_k1 && k == 1)) {
        for (j = 0; j < k; j++) sum += m->weight[j];
        for (j = 0; p->norm == MOE_NORM_SUM_WITH_SHARED && j < m->sinks; j++) sum += m->sink[j];
        sum += (double)p->norm_eps;
        if (sum < (double)p->norm_min) sum = (double)p->norm_min;
        for (j = 0; j < k; j++) m->weight[j] /= sum;
        for (j = 0; p->norm == MOE_NORM_SUM_WITH_SHARED && j < m->sinks; j++) m->sink[j] /= sum;
    }
    for (j = 0; j < k; j++) {
        if (p->routed_scale != 0.0f) m->weight[j] *= (double)p->routed_scale;
        if (p->expert_scale.type) m->weight[j] *= (double)m->scale[m->id[j]];
    }
    for (j = 0; j < m->sinks && p->routed_scale != 0.0f; j++) m->sink[j] *= (double)p->routed_scale;
}

static void ref_route(model *m, const float *logits) {
    const moe_router *p = &m->d.router;
    uint32_t k = m->d.top_k;
    m->gap = 1.0;
    ref_scores(m, logits);
    if (p->pick == MOE_PICK_SPARSEMIXER) ref_sparsemixer(m);
    else if (p->pick == MOE_PICK_TABLE) memcpy(m->id, m->table, sizeof m->id);
    else if (p->group == MOE_GROUP_PER_GROUP)
        for (uint32_t g = 0, n = m->n / p->n_group, e = k / p->n_group; g < p->n_group; g++)
            ref_pick(m, m->q, g * n, n, e, m->id + g * e);
    else {
        if (p->group != MOE_GROUP_NONE) ref_groups(m);
        ref_pick(m, m->q, 0, m->n, k, m->id);
    }
    ref_weights(m);
}

static void random_groups(model *m) {
    moe_router *p = &m->d.router;
    uint32_t g = 1 + below(8), size = 1 + below(8);
    p->group = 1 + below(3), p->n_group = g;
    m->d.n_experts = g * size, m->d.n_zero_experts = 0;
    p->topk_group = 1 + below(g), p->group_mask_zero = below(4) == 0;
    m->d.top_k = p->group == MOE_GROUP_PER_GROUP ? g * (1 + below(size)) : 1 + below(p->topk_group * size);
}

static void random_model(model *m) {
    static const float eps[4] = {0.0f, 1e-20f, 1e-6f, 0.1f}, floors[3] = {0.0f, 1e-12f, 0.5f};
    moe_router *p = &m->d.router;
    m->d = make(1 + below(64), 1);
    if (below(4) == 0) m->d.n_zero_experts = below(20);
    m->d.top_k = 1 + below(m->d.n_experts + m->d.n_zero_experts);
    if (below(8)) m->d.top_k = 1 + below(m->d.top_k < 12 ? m->d.top_k : 12);
    if (below(3) == 0) random_groups(m);
    p->score = below(3), p->select_on = below(2), p->weight_from = below(8) ? below(2) : 2;
    if (below(4) == 0) m->sinks = m->d.shared.count = 1 + below(4), m->d.shared.gate_kind = MOE_SHARED_ROUTER_SINK;
    else m->sinks = 0;
    p->norm = below(m->sinks ? 3 : 2), p->norm_eps = eps[below(4)], p->norm_min = floors[below(3)];
    p->norm_skip_k1 = below(2), p->routed_scale = below(2) ? 0.0f : 0.5f + uniform() * 4.0f;
    p->softcap = below(4) ? 0.0f : 1.0f + 32.0f * uniform();
    m->n = m->d.n_experts + m->d.n_zero_experts;
    for (uint32_t i = 0; i < m->n; i++) m->bias[i] = normal() * 0.3f, m->scale[i] = 0.5f + uniform();
    if (below(2)) set_f32(&p->select_bias, m->bias);
    if (below(4) == 0) set_f32(&p->expert_scale, m->scale);
    if (below(8) == 0) {
        for (uint32_t j = 0; j < MAX_K; j++) m->table[j] = (int32_t)below(m->n);
        p->pick = MOE_PICK_TABLE, p->table = stored(m->table, MAX_K, 4), p->table_rows = 1;
    } else if (below(8) == 0 && m->n >= 2 && !m->sinks) {
        p->pick = MOE_PICK_SPARSEMIXER, p->group = MOE_GROUP_NONE, m->d.top_k = 1 + below(2);
        p->jitter = below(2) ? 0.0f : 0.2f * uniform();
        memset(&p->select_bias, 0, sizeof p->select_bias);
    }
    if (m->d.top_k > MAX_K) m->d.top_k = MAX_K;
}

static int weight_ok(const model *m, double got, double want) {
    double e = absolute(got - want), size = absolute(want);
    if (m->d.router.weight_from == MOE_WEIGHT_BIASED) size += 0.1 * absolute((double)m->d.router.routed_scale) + 0.1;
    return e <= (m->d.router.softcap > 0.0f ? 2e-5 : 4e-6) * size || size < 1e-30;
}

static void test_float64(void) {
    static model m;
    static float l[MAX_ROWS];
    const int32_t zero = 0;
    uint32_t done = 0, close = 0;
    for (seed = 12345; done < 40000;) {
        float sink[8];
        moei_router r;
        int same = 1;
        random_model(&m);
        for (uint32_t i = 0; i < m.n + m.sinks; i++) l[i] = normal() * 2.0f;
        ref_route(&m, l);
        if (m.gap < 3e-6 || (m.d.router.weight_from == MOE_WEIGHT_BIASED && absolute(m.sum) < 0.05 * m.d.top_k)) {
            close++;
            continue;
        }
        done++;
        current = "float64 re-implementation";
        CHECK(!moe_select(&m.d, l, 1, &zero, ids, w, NULL) && ids_are(m.id, m.d.top_k));
        for (uint32_t j = 0; j < m.d.top_k; j++) same &= weight_ok(&m, (double)w[j], m.weight[j]);
        CHECK(same);
        moei_router_begin(&r, &m.d, &moei_vec_c, m.d.top_k, arena);
        moei_select_token(&r, l, m.d.router.pick == MOE_PICK_TABLE ? m.table : NULL, m.d.top_k, ids, w, sink);
        for (uint32_t j = 0; j < m.sinks; j++) same &= weight_ok(&m, (double)sink[j], m.sink[j]);
        CHECK(same && ids_are(m.id, m.d.top_k));
    }
    printf("float64 re-implementation: %u configurations, %u too close to a tie\n", done, close);
}

/* ---- ids for any bits ---- */

static int valid_ids(const moe_desc *d, const int32_t *id) {
    uint8_t seen[MAX_ROWS] = {0};
    for (uint32_t j = 0; j < d->top_k; j++) {
        if (id[j] < 0 || (uint32_t)id[j] >= d->n_experts + d->n_zero_experts || seen[id[j]]) return 0;
        seen[id[j]] = 1;
    }
    return 1;
}

static void test_any_bits(void) {
    static float l[MAX_ROWS], b[MAX_ROWS];
    static model m;
    uint32_t bad = 0, tokens = 0;
    for (seed = 99; tokens < 1000000;) {
        uint32_t special = below(3);
        random_model(&m);
        if (m.d.router.pick == MOE_PICK_TABLE) m.d.router.pick = MOE_PICK_TOP_K;
        for (uint32_t i = 0; i < m.n; i++) b[i] = f32(special == 1 ? rnd() | 0x7f800000u : rnd());
        if (m.d.router.select_bias.type) set_f32(&m.d.router.select_bias, b);
        for (uint32_t t = 0; t < 64; t++, tokens++) {
            for (uint32_t i = 0; i < m.n + m.sinks; i++) l[i] = f32(below(4) < special ? rnd() | 0x7f800000u : rnd());
            bad += moe_select(&m.d, l, 1, NULL, ids, w, NULL) != MOE_OK || !valid_ids(&m.d, ids);
        }
    }
    current = "ids are distinct and in range for any bits";
    CHECK(bad == 0);
}

/* Order of keys, by value: NaN as -Inf, -0 as 0. */
static double key_value(float f) { return moei_is_nan(f) ? (double)-INF : (double)f; }

static void test_exhaustive(void) {
    static const uint32_t special[10] = {0x7fc00000u, 0xffffffffu, 0x7f800000u, 0xff800000u, 0,
                                         0x80000000u, 1,           0x80000001u, 0x3f800000u, 0xbf800000u};
    uint32_t bad = 0, wrong = 0;
    moe_desc d = make(4, 1);
    for (uint32_t code = 0; code < 10000; code++) {
        float l[4], zero[4] = {0, 0, 0, 0};
        for (uint32_t i = 0, c = code; i < 4; i++, c /= 10) l[i] = f32(special[c % 10]);
        for (uint32_t way = 0; way < 12; way++) {
            d = make(4, 1 + way % 4);
            d.router.score = way / 4, d.router.norm = code & 1;
            if (code & 2) set_f32(&d.router.select_bias, l); /* the special values as biases */
            if (code & 4 && d.top_k <= 2) d.router.group = 1 + way % 2, d.router.n_group = 2, d.router.topk_group = 1;
            bad += moe_select(&d, code & 2 ? zero : l, 1, NULL, ids, w, NULL) != MOE_OK || !valid_ids(&d, ids);
        }
        d = make(4, 4); /* the whole order, on logits */
        d.router.select_on = MOE_SELECT_LOGIT;
        bad += moe_select(&d, l, 1, NULL, ids, w, NULL) != MOE_OK || !valid_ids(&d, ids);
#if !defined(__FAST_MATH__)
        for (uint32_t j = 1; j < 4; j++) {
            double a = key_value(l[ids[j - 1]]), c = key_value(l[ids[j]]);
            wrong += a < c || (a <= c && ids[j - 1] > ids[j]);
        }
#endif
    }
    current = "exhaustive special values: ids are distinct and in range";
    CHECK(bad == 0);
    current = "exhaustive special values: keys descend, ties ascend";
    CHECK(wrong == 0);
    (void)key_value;
}

/* Leaves the stack full of bytes, so that what was not set shows. */
static void fill_stack(int byte) {
    volatile uint8_t room[2048];
    for (size_t i = 0; i < sizeof room; i++) room[i] = (uint8_t)byte;
}
static void (*volatile const leave)(int) = fill_stack;

/* The keys that reach a bound: at least k, all from the least one on, in order; of whole eights just those of the definition. */
static int reaches(const moei_vec *v, const uint32_t *key, uint32_t n, uint32_t k) {
    static uint64_t got[1300], want[1300];
    leave(n % 2 ? 0x7f : 0x80);
    uint32_t count = v->reach(got, key, n, k), all = moei_reach_c(want, key, n, k), least = UINT32_MAX, at = 0;
    if (count < k || count > n || (n % 8 == 0 && (count != all || memcmp(got, want, all * sizeof *got)))) return 0;
    for (uint32_t j = 0; j < count; j++) least = got[j] >> 32 < least ? (uint32_t)(got[j] >> 32) : least;
    for (uint32_t i = 0; i < n; i++)
        if (key[i] >= least && (at == count || got[at++] != ((uint64_t)key[i] << 32 | (uint32_t)~i))) return 0;
    return at == count;
}

static void test_top_k(void) {
    static uint32_t key[600], other[600];
    static float q[600];
    static uint64_t few[600], many[600], lanes[600];
    const moei_vec *vecs[2] = {&moei_vec_c, &moei_vec_c};
    uint32_t wide = 0;
#if MOEI_HAVE_AVX2
    wide = moei_cpu() >> MOE_TIER_AVX2 & 1, vecs[1] = &moei_vec_avx2;
#endif
    current = "all ways to find the k largest agree";
    for (seed = 5; seed != 0;) {
        uint32_t n = 1 + below(below(2) ? 600 : 100), k = 1 + below(below(2) && n > 12 ? 12 : n),
                 range = 1u << below(32), ok = 1;
        uint32_t many_equal = below(4) == 0, high = below(2);
        for (uint32_t i = 0; i < n; i++) {
            uint32_t bits = many_equal ? below(3) * 0x7f800000u : rnd();
            memcpy(&q[i], &bits, 4);
            key[i] = below(range) + (high ? ~range + 1 : 0);
        }
        moei_top_few(key, n, k, few), moei_top_many(key, n, k, many);
        CHECK(!memcmp(few, many, k * sizeof *few));
        for (uint32_t v = 0; v <= wide && n >= 64 && k <= 12; v++) {
            moei_top_lanes(vecs[v], key, n, k, lanes);
            CHECK(!memcmp(few, lanes, k * sizeof *few));
            CHECK(reaches(vecs[v], key, n, k));
        }
        vecs[wide]->order(other, q, n);
        for (uint32_t i = 0; i < n; i++) ok &= other[i] == moei_key(q[i]);
        for (uint32_t j = 0; j < k; j++) ok &= key[moei_top_index(few[j])] == few[j] >> 32;
        for (uint32_t j = 1; j < k; j++) ok &= few[j] < few[j - 1];
        CHECK(ok);
        if (passed % 4000 < 2) break;
    }
}

/* ---- a token's result depends on nothing but the token ---- */

/* Inputs are made without rounding that a compiler may do in two ways. */
static void test_same_bits(void) {
    static model m;
    static float l[MAX_ROWS];
    const int32_t zero = 0;
    uint64_t hash = 14695981039346656037u;
    current = "the same bits from every compiler, whatever its flags";
    seed = 2026;
    for (int round = 0; round < 5000; round++) {
        random_model(&m);
        for (uint32_t i = 0; i < m.n + m.sinks; i++) l[i] = (float)((int)below(8192) - 4096) / 512.0f;
        if (moe_select(&m.d, l, 1, &zero, ids, w, NULL)) hash = 0;
        for (uint32_t j = 0; j < m.d.top_k; j++)
            hash = ((hash ^ (uint32_t)ids[j]) * 1099511628211u ^ moei_bits(w[j])) * 1099511628211u;
    }
    for (int i = 0; i < 20000; i++) {
        float x = f32(rnd() & 0xfff00fffu), f[4];
        f[0] = moei_tanh(x), f[1] = moei_log1p_exp(x), f[2] = moei_phi(x), f[3] = moei_gelu_erf(x);
        for (int j = 0; j < 4 && !moei_is_nan(x); j++) hash = (hash ^ moei_bits(f[j])) * 1099511628211u;
    }
    if (hash != 0x8352e4d74362a08bu) printf("hash of all results: %016llx\n", (unsigned long long)hash);
    CHECK(hash == 0x8352e4d74362a08bu);
}

static void test_company(void) {
    enum { T = 256 }; /* enough for moe_select to use the tier's exp, which it does not for one token */
    static float l[T * 32], w1[T * 4];
    static int32_t id1[T * 4];
    moe_desc d = make(32, 4);
    moei_router r;
    current = "the same bits alone and in company, on dirty scratch, with zeros resolved";
    CHECK(!moe_preset(&d, "deepseek-v3"));
    d.router.n_group = 4, d.router.topk_group = 2;
    for (uint32_t i = 0; i < T * 32; i++) l[i] = normal();
    CHECK(!moe_select(&d, l, T, NULL, id1, w1, NULL));
    for (uint32_t t = 0; t < T; t++) {
        CHECK(!select1(&d, l + 32 * t) && ids_are(id1 + 4 * t, 4) && !memcmp(w, w1 + 4 * t, 16));
        memset(arena, (int)t * 5, sizeof arena);
        d.router.jitter = 0.01f, d.router.min_keep = 1;
        moei_router_begin(&r, &d, &moei_vec_c, 4, (char *)arena + t % 64);
        moei_select_token(&r, l + 32 * t, NULL, 4, ids, w, NULL);
        CHECK(ids_are(id1 + 4 * t, 4) && !memcmp(w, w1 + 4 * t, 16));
    }
}

/* ---- capacity ---- */

enum { CT = 24, CE = 6, CK = 3 };
typedef struct batch {
    float l[CT * CE], weight[CT * CK], best[CT], pass[CT * CK];
    int32_t id[CT * CK];
    double want[CT * CK], want_pass[CT * CK];
    uint64_t dropped;
} batch;

/* In float64 from the raw weights: who is dropped, then normalisation. */
static void ref_capacity(batch *b, const moe_desc *d, uint32_t k, double places, const double *raw,
                         const double *best) {
    double used[CE] = {0};
    uint32_t order[CT], i, j, t;
    uint8_t drop[CT * CK] = {0};
    for (t = 0; t < CT; t++) order[t] = t;
    for (i = 1; d->router.capacity_by_score && i < CT; i++)
        for (j = i; j > 0 && best[order[j]] > best[order[j - 1]]; j--)
            t = order[j], order[j] = order[j - 1], order[j - 1] = t;
    b->dropped = 0;
    for (j = 0; j < k; j++)
        for (i = 0; i < CT; i++) {
            drop[order[i] * k + j] = (used[b->id[order[i] * k + j]] += 1) > places;
            b->dropped += drop[order[i] * k + j];
        }
    for (t = 0; t < CT; t++) {
        double sum = 0, scale = d->router.routed_scale != 0.0f ? (double)d->router.routed_scale : 1;
        for (j = t * k; j < (t + 1) * k; j++) sum += drop[j] && d->router.capacity_norm_after ? 0 : raw[j];
        if (d->router.norm == MOE_NORM_NONE) sum = 1;
        for (j = t * k; j < (t + 1) * k; j++) {
            b->want[j] = drop[j] || sum <= 0 ? 0 : raw[j] / sum * scale;
            b->want_pass[j] = drop[j] ? scale * (d->router.capacity_norm_after ? raw[j] : raw[j] / sum) : 0;
        }
    }
}

static void one_capacity(uint32_t round) {
    static batch b;
    static double raw[CT * CK], best[CT], scratch[64];
    moe_desc d = make(CE, 1 + round % CK);
    moei_router r;
    moei_held h;
    uint32_t k = d.top_k;
    float sum_bits = 0;
    memset(&h, 0, sizeof h);
    d.router.norm = round & 1, d.router.capacity_norm_after = round >> 1 & 1;
    d.router.capacity_by_score = round >> 2 & 1;
    d.router.routed_scale = round & 8 ? 2.5f : 0.0f;
    if (round & 16) d.router.capacity = 1 + round % 9;
    else d.router.capacity_factor = (float)(1 + round % 9) / 24.0f;
    moei_router_begin(&r, &d, &moei_vec_c, k, arena);
    for (uint32_t t = 0; t < CT; t++) {
        for (uint32_t i = 0; i < CE; i++) b.l[t * CE + i] = normal();
        CHECK(moei_select_token(&r, b.l + t * CE, NULL, k, b.id + t * k, b.weight + t * k, NULL) == 0);
        best[t] = (double)(b.best[t] = moei_best_score(&r));
        for (uint32_t j = 0; j < k; j++) raw[t * k + j] = (double)r.s[b.id[t * k + j]];
    }
    h.n_tokens = CT, h.k = k, h.ids = b.id, h.weights = b.weight, h.best = b.best, h.pass = b.pass;
    CHECK(moei_capacity_scratch(&d, CT) <= sizeof scratch);
    moei_capacity(&r, &h, scratch);
    ref_capacity(&b, &d, k, (double)(1 + round % 9), raw, best);
    CHECK(h.dropped == b.dropped && h.saved == 0);
    for (uint32_t j = 0; j < CT * k; j++) {
        CHECK(close_to((double)b.weight[j], b.want[j], 2e-6));
        CHECK(close_to((double)b.pass[j], b.want_pass[j], 2e-6));
        sum_bits += b.weight[j];
    }
    CHECK(moei_is_finite(sum_bits));
}

static void test_capacity(void) {
    moe_desc d = make(CE, 1);
    current = "capacity against float64";
    for (uint32_t round = 0; round < 500; round++) one_capacity(round);
    current = "places: a count, or ceil(factor * tokens) of the decimal factor";
    CHECK(moei_capacity_places(&d, 100) == SIZE_MAX);
    d.router.capacity_factor = 0.1f;
    CHECK(moei_capacity_places(&d, 10) == 1 && moei_capacity_places(&d, 11) == 2 && moei_capacity_places(&d, 1) == 1);
    d.router.capacity_factor = 1.25f;
    CHECK(moei_capacity_places(&d, 4) == 5 && moei_capacity_places(&d, 5) == 7);
    d.router.capacity_factor = 1e30f;
    CHECK(moei_capacity_places(&d, 1000) == SIZE_MAX);
    d.router.capacity = 3;
    CHECK(moei_capacity_places(&d, 1000) == 3);
    current = "moe_select does not apply capacity";
    d = make(8, 1);
    d.router.capacity = 1, d.router.norm = MOE_NORM_SUM, d.router.capacity_norm_after = 1;
    d.router.routed_scale = 3.0f;
    {
        float two[16];
        memcpy(two, L, sizeof L), memcpy(two + 8, L, sizeof L);
        CHECK(!moe_select(&d, two, 2, NULL, ids, w, NULL) && (double)w[0] == 3.0 && (double)w[1] == 3.0);
    }
}

static void case_switch_overflow(void) {
    static const int32_t id[4] = {0, 0, -1, 0};
    float weight[4] = {0.5f, 0.25f, 0.0f, 0.75f}, pass[4];
    double scratch[32];
    moe_desc d = make(2, 1);
    moei_router r;
    moei_held h;
    current = "7.17 tokens over capacity: weight 0, p * x kept for those who pass it through; a skip takes no place";
    CHECK(!moe_preset(&d, "switch_transformers"));
    d.router.capacity = 2;
    memset(&h, 0, sizeof h);
    h.n_tokens = 4, h.k = 1, h.ids = id, h.weights = weight, h.pass = pass;
    moei_router_begin(&r, &d, &moei_vec_c, 1, arena);
    moei_capacity(&r, &h, scratch);
    CHECK(h.dropped == 1 && moei_bits(weight[3]) == 0 && (double)weight[0] == 0.5 && (double)weight[1] == 0.25);
    CHECK((double)pass[3] == 0.75 && moei_bits(pass[0]) == 0 && moei_bits(pass[2]) == 0);
}

/* ---- presets, names, counts, statistics ---- */

static moe_desc preset(const char *name) {
    moe_desc d;
    memset(&d, 0, sizeof d);
    check(moe_preset(&d, name) == MOE_OK, name);
    return d;
}

static void test_preset_facts(void) {
    current = "7.2 normalisation is a fact of the family";
    CHECK(preset("qwen2_moe").router.norm == MOE_NORM_NONE && preset("qwen3_moe").router.norm == MOE_NORM_SUM);
    CHECK(preset("qwen3_5_moe").router.norm == MOE_NORM_SUM && preset("olmoe").router.norm == MOE_NORM_NONE);
    CHECK(preset("jamba").router.norm == MOE_NORM_NONE && preset("hunyuan-moe").router.norm == MOE_NORM_SUM);
    current = "7.6 7.7 7.11 presets";
    CHECK(preset("phimoe").router.pick == MOE_PICK_SPARSEMIXER && preset("phimoe").router.norm == MOE_NORM_NONE);
    CHECK(preset("grok-1").router.norm == MOE_NORM_NONE && preset("grok-1").ffn.activation == MOE_ACT_GELU_TANH);
    CHECK(preset("llama4").ffn.weight_at == MOE_WEIGHT_AT_INPUT);
    CHECK(preset("llama4").router.score == MOE_SCORE_SIGMOID);
    current = "7.9 7.10 presets";
    CHECK(preset("glm4_moe_lite").router.score == MOE_SCORE_SIGMOID);
    CHECK(preset("deepseek_v2").router.group == MOE_GROUP_MAX);
    CHECK(preset("DeepSeek-V3").router.group == MOE_GROUP_TOP2_SUM);
    CHECK(preset("mistral4").router.group == MOE_GROUP_TOP2_SUM);
    CHECK(preset("mistral4").router.score == MOE_SCORE_SOFTMAX);
    current = "7.12 7.13 clamps differ";
    CHECK(preset("gpt-oss").ffn.activation == MOE_ACT_OAI && preset("gpt_oss").ffn.clamp == MOE_CLAMP_PRE);
    CHECK((double)preset("gpt-oss").ffn.limit == 7.0 && (double)preset("deepseek_v4").ffn.limit == 10.0);
    CHECK(preset("deepseek_v4").shared.clamp == MOE_CLAMP_PRE && (double)preset("deepseek_v4").shared.limit == 10.0);
    current = "7.16 7.18 7.21 presets";
    CHECK(preset("ernie4_5-moe").router.score == MOE_SCORE_SOFTMAX && preset("ernie4_5_moe").router.norm_min > 0.0f);
    CHECK((double)preset("nllb-moe").ffn.expert_out_scale == (double)0.8f && preset("nllb-moe").ffn.ungated == 1);
    CHECK(preset("qwen3next").shared.gate_kind == MOE_SHARED_SIGMOID);
    CHECK(preset("klear").shared.gate_kind == MOE_SHARED_SOFTMAX2);
    CHECK(preset("LFM2-MoE").router.norm_eps > 9e-7f && preset("nemotron_h").ffn.activation == MOE_ACT_RELU2);
}

/* Names as files write them: model_type of Hugging Face, architecture of GGUF; then papers and other spellings. */
static const char *const known_names =
    "mixtral qwen2_moe qwen3_moe qwen3_vl_moe qwen3_vl_moe_text qwen3_omni_moe qwen3_omni_moe_text qwen3_next "
    "qwen3_5_moe qwen3_5_moe_text olmoe flex_olmo deepseek deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 "
    "kimi_k2 kimi_k25 kimi_linear kimi_k3 glm4_moe glm4v_moe glm4v_moe_text glm4_moe_lite glm_moe_dsa llama4 "
    "llama4_text gpt_oss phimoe dbrx grok-1 git jamba granitemoe granitemoeshared granitemoehybrid arctic "
    "switch_transformers nllb-moe minimax minimax_text_01 minimax_m1 minimax_m2 minimax_m3 minimax_m3_vl "
    "ernie4_5_moe ernie4_5_vl_moe ernie4_5_moe_vl hunyuan_v1_moe hunyuan hy_v3 hy_mt2 dots1 longcat_flash "
    "bailing_moe bailing_moe_v2 bailing_moe_linear bailing_hybrid afmoe nemotron_h jetmoe gemma4 gemma4_text "
    "step3_vl step3_text step3p5 step3p7 mimo_v2_flash exaone_moe solar_open AXK1 param2moe sarvam_moe sarvam_mla "
    "pangu_ultra_moe PanguProMoE PanGuMoE PanguProMoEV2 joyai_llm_flash lfm2_moe mistral_large_3 mistral4 "
    "cohere2_moe laguna Klear inkling_mm_model inkling_text interns1_pro interns1_pro_text smallthinker aria "
    "aria_text mellum rnd1 llada_moe llada nomic_bert "
    "llama qwen2moe qwen3moe qwen3vlmoe qwen3next qwen35moe deepseek2 deepseek2-ocr deepseek32 deepseek4 "
    "kimi-linear kimi-k3 glm4moe glm-dsa gpt-oss grok granitehybrid minimax-m2 minimax-m3 ernie4_5-moe "
    "hunyuan-moe bailingmoe bailingmoe2 bailingmoe3 nemotron_h_moe step35 mimo2 exaone-moe lfm2moe mistral3 "
    "cohere2moe llada-moe nomic-bert-moe "
    "glam grok1 gshard jacobs1991 shazeer2017 nllb_moe inkling ";

static void test_presets(void) {
    moe_desc d, zero;
    uint32_t i, n = 0, unsupported = 0;
    memset(&zero, 0, sizeof zero);
    current = "every listed name resolves to knobs that are valid";
    for (const char *name; (name = moe_preset_name(n)) != NULL; n++) {
        d = zero;
        moe_status status = moe_preset(&d, name);
        unsupported += status == MOE_ERR_UNSUPPORTED;
        if (status == MOE_ERR_UNSUPPORTED) check(!memcmp(&d, &zero, sizeof d), name);
        else check(status == MOE_OK, name);
        check(!d.router.n_group == !d.router.topk_group, name); /* groups: both numbers or none */
        d.n_experts = 64, d.shared.count = 1;
        d.top_k = d.router.group == MOE_GROUP_PER_GROUP ? d.router.n_group : 2;
        check(status == MOE_ERR_UNSUPPORTED || moei_check_router(&d, NULL) == MOE_OK, name);
        for (i = 0; i < n; i++) check(!moei_same_name(name, moe_preset_name(i)), name);
    }
    CHECK(n > 100 && unsupported == 4 && !moe_preset_name(n) && !moe_preset_name(UINT32_MAX));
    current = "known names";
    for (const char *word = known_names; *word; word += strcspn(word, " ") + 1) {
        char name[32];
        snprintf(name, sizeof name, "%.*s", (int)strcspn(word, " "), word);
        d = preset(name);
    }
    current = "every word of the presets is known";
    for (i = 0; i < MOEI_COUNT(moei_families); i++) {
        for (const char *p = moei_families[i].words ? moei_families[i].words : ""; *p;) {
            size_t length = strcspn(p, " "), found = 0;
            for (n = 0; n < MOEI_COUNT(moei_words); n++)
                found += !strncmp(moei_words[n].word, p, length) && !moei_words[n].word[length];
            check(found > 0, p);
            p += length + (p[length] == ' ');
        }
    }
    current = "unknown families";
    d = zero;
    CHECK(moe_preset(&d, "gpt2") == MOE_ERR_MODEL && moe_preset(&d, "") == MOE_ERR_MODEL);
    CHECK(moe_preset(&d, "mixtra") == MOE_ERR_MODEL && moe_preset(&d, "mixtral2") == MOE_ERR_MODEL);
    CHECK(moe_preset(NULL, "mixtral") == MOE_ERR_NULL && moe_preset(&d, NULL) == MOE_ERR_NULL);
    CHECK(moe_preset(&d, "grovemoe") == MOE_ERR_UNSUPPORTED && !memcmp(&d, &zero, sizeof d));
}

static void test_names(void) {
    current = "names, sizes, version";
    CHECK(!strcmp(moe_status_text(MOE_OK), "ok") && strlen(moe_status_text(MOE_ERR_UNSUPPORTED)) > 5);
    CHECK(!strcmp(moe_status_text((moe_status)MOE_STATUS_COUNT), "unknown status"));
    for (uint32_t i = 0; i < MOE_COMPUTE_COUNT; i++) CHECK(moe_compute_by_name(moe_compute_name(i)) == i);
    CHECK(moe_compute_by_name("BF16") == MOE_COMPUTE_BF16 && moe_compute_by_name("f64") == MOE_COMPUTE_COUNT);
    CHECK(moe_compute_by_name(NULL) == MOE_COMPUTE_COUNT && !strcmp(moe_compute_name(99), "?"));
    CHECK(moe_version() == MOE_VERSION && moe_sizeof("moe_desc") == sizeof(moe_desc));
    CHECK(moe_sizeof("moe_io") == sizeof(moe_io) && moe_sizeof("int") == 0 && moe_sizeof(NULL) == 0);
}

static void test_counts(void) {
    static moe_layer layer;
    moe_counts c;
    moe_desc *d = &layer.desc;
    current = "parameters, bytes and flops of a layer";
    *d = make(8, 2);
    d->d_model = 64, d->d_ff = 32, d->n_zero_experts = 2;
    d->gate.format = d->up.format = MOE_FORMAT_BF16, d->down.format = MOE_FORMAT_Q8_0;
    d->router.weight.format = MOE_FORMAT_F32, d->router.select_bias.type = MOE_TYPE_F32;
    moe_layer_counts(&layer, &c);
    CHECK(c.params_total == 8 * 3 * 64 * 32 + 10 * 64 + 10 && c.params_active == 2 * 3 * 64 * 32 + 10 * 64 + 10);
    CHECK(c.bytes_total == 8 * (2 * 64 * 32 * 2 + 64 * 34) + 10 * 64 * 4 + 10 * 4);
    CHECK(c.bytes_active == 2 * (2 * 64 * 32 * 2 + 64 * 34) + 10 * 64 * 4 + 10 * 4);
    CHECK(c.flops_token == 2 * (2 * 3 * 64 * 32 + 10 * 64) && c.flops_dense == 2 * (8 * 3 * 64 * 32 + 10 * 64));
    current = "scales and zero points that live apart";
    d->gate.format = d->up.format = MOE_FORMAT_INT4_GROUP, d->down.format = MOE_FORMAT_MXFP4_HF;
    d->gate.scale.type = d->up.scale.type = MOE_TYPE_BF16, d->gate.scale.cols = d->up.scale.cols = 32;
    d->gate.zero.type = MOE_TYPE_U4X8, d->down.scale.type = MOE_TYPE_E8M0, d->up.scale2.type = MOE_TYPE_F32;
    moe_layer_counts(&layer, &c);
    CHECK(c.bytes_total == 8 * (2 * 32 * 32 + 2 * 32 * 2 * 2 + 4 * 2 * 4 + 64 * 16 + 64 + 4) + 10 * 64 * 4 + 10 * 4);
    current = "shared experts, latent width, biases";
    d->shared.d_ff = 16, d->shared.up.format = d->shared.down.format = MOE_FORMAT_F32;
    d->shared.gate_weight.format = MOE_FORMAT_F32;
    d->latent.d = 48, d->latent.in.format = d->latent.out.format = MOE_FORMAT_F32;
    d->up.bias.type = MOE_TYPE_BF16;
    moe_layer_counts(&layer, &c);
    CHECK(c.params_total == 8 * (3 * 48 * 32 + 32) + 10 * 64 + 10 + 2 * 16 * 64 + 64 + 2 * 48 * 64);
    memset(&c, 1, sizeof c);
    moe_layer_counts(NULL, &c);
    CHECK(c.params_total == 0 && c.flops_dense == 0);
    moe_layer_counts(&layer, NULL);
}

static void test_stats(void) {
    static uint64_t tokens[8] = {6, 2, 0, 0, 0, 0, 0, 0}, even[4] = {5, 5, 5, 5};
    static double score[8];
    moe_desc d = make(8, 2);
    moe_stats s;
    moe_balance b;
    moei_router r;
    double z = 0, all = 0;
    current = "statistics";
    memset(&s, 0, sizeof s);
    s.score = score;
    moei_router_begin(&r, &d, &moei_vec_c, 2, arena);
    for (int t = 0; t < 4; t++) moei_route_stats(&r, L, &s);
    for (int i = 0; i < 8; i++) z += exp((double)L[i]);
    CHECK(close_to(s.z, 4 * log(z) * log(z), 1e-6) && close_to(score[0], 4 * exp(2.0) / z, 1e-6));
    for (int i = 0; i < 8; i++) all += score[i];
    CHECK(close_to(all, 4.0, 1e-6));
    s.tokens = tokens, s.n_tokens = 4;
    moe_stats_balance(&s, 8, &b);
    CHECK(close_to(b.imbalance, 6.0, 1e-9) && close_to(b.z_loss, log(z) * log(z), 1e-6));
    CHECK(close_to(b.entropy, (0.75 * log(4.0 / 3) + 0.25 * log(4.0)) / log(8.0), 1e-9));
    CHECK(close_to(b.variation, sqrt(((6 - 1) * (6 - 1) + (2 - 1) * (2 - 1) + 6 * 1.0) / 8 * 1.0), 1e-9));
    CHECK(close_to(b.aux_loss, 8 * (0.75 * score[0] + 0.25 * score[1]) / 4, 1e-9));
    s.tokens = even, s.score = NULL;
    moe_stats_balance(&s, 4, &b);
    CHECK(close_to(b.imbalance, 1.0, 1e-9) && b.variation < 1e-9 && close_to(b.entropy, 1.0, 1e-9));
    memset(&s, 0, sizeof s);
    moe_stats_balance(&s, 4, &b);
    CHECK(!(b.imbalance > 0) && !(b.entropy > 0));
    moe_stats_balance(NULL, 4, &b);
    moe_stats_balance(&s, 4, NULL);
}

/* ---- scalar functions ---- */

static double ulps(float got, double want) {
    int e;
    frexp((double)(float)want, &e);
    return absolute((double)got - want) / ldexp(1.0, (e < -125 ? -125 : e) - 24);
}

static void test_numerics(void) {
    double plus = 0, tan_h = 0, phi = 0, gelu = 0;
    for (uint64_t i = 0; i < (uint64_t)1 << 32; i += 4099) {
        float x = f32((uint32_t)i);
        double X = (double)x, p;
        if (moei_is_nan(x) || !moei_is_finite(x)) continue;
        if (X > -86) plus = fmax(plus, ulps(moei_log1p_exp(x), X > 0 ? X + log1p(exp(-X)) : log1p(exp(X))));
        tan_h = fmax(tan_h, ulps(moei_tanh(x), tanh(X)));
        p = 0.5 * erfc(-X * 0.70710678118654752);
        if (X > -12.9) phi = fmax(phi, absolute((double)moei_phi(x) - p) / p);
        if (X > -12.9 && absolute(X) > 1e-30)
            gelu = fmax(gelu, absolute((double)moei_gelu_erf(x) - X * p) / absolute(X * p));
    }
    printf("softplus %.2f ulp, tanh %.2f ulp, phi %.2g, gelu %.2g relative\n", plus, tan_h, phi, gelu);
    current = "softplus, tanh, phi, gelu";
    CHECK(plus < 2.2 && tan_h < 2.0 && phi < 4e-7 && gelu < 4.5e-7);
    CHECK(moei_is_nan(moei_tanh(NAN32)) && moei_is_nan(moei_log1p_exp(NAN32)) && moei_is_nan(moei_gelu_erf(NAN32)));
    CHECK(moei_bits(moei_tanh(INF)) == moei_bits(1.0f) && moei_bits(moei_tanh(-INF)) == moei_bits(-1.0f));
    CHECK(moei_bits(moei_tanh(-0.0f)) == 0x80000000u && moei_bits(moei_log1p_exp(-INF)) == 0);
    CHECK(moei_bits(moei_log1p_exp(INF)) == moei_bits(INF) && moei_bits(moei_gelu_erf(INF)) == moei_bits(INF));
    CHECK((moei_bits(moei_gelu_erf(-INF)) & 0x7fffffffu) == 0);
}

int main(void) {
    test_any_bits();
    test_exhaustive();
    test_top_k();
    test_errors();
    test_presets();
    test_preset_facts();
    test_names();
#if defined(__FAST_MATH__)
    skipped++;
#else
    test_vectors();
    case_not_renormalised(), case_group_mask(), case_tiny_scores(), case_bias_selects_only(), case_sparsemixer();
    case_softcap(), case_scale(), case_group_score(), case_ties(), case_negative_keys(), case_bf16_ties(), case_nan();
    case_inf(), case_underflow(), case_norm(), case_sink(), case_zero_experts(), case_table(), case_switch_overflow();
    test_arrays();
    test_adaptive();
    test_given();
    test_company();
    test_same_bits();
    test_float64();
    test_capacity();
    test_counts();
    test_stats();
    test_numerics();
#endif
    printf("test_route: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
