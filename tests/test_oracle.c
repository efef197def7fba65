/* test_oracle.c - is the reference itself right, and is its bound neither too narrow nor empty?
 *
 *   cc -std=c11 -O2 tests/test_oracle.c -o test_oracle -lm && ./test_oracle [-v] [cases]
 *
 * 1. The routing and activation vectors, and the printed numbers of the same rows, are met.
 * 2. Parts are checked by hand: knobs without vectors, slopes by differences, decisions near a tie.
 * 3. Thousands of random blocks are computed by noisy.h, with every kind of rounding: no element may leave the bound,
 *    no token called safe may choose other experts, and wrong implementations must leave the bound.
 */
#include "data/vectors.h"
#include "noisy.h"

static int passed, failed, verbose;

/* Counts a check; why is printed when it fails. */
#define CHECK(ok, name, ...)                                                                                         \
    do {                                                                                                             \
        if (ok) passed++;                                                                                            \
        else {                                                                                                       \
            failed++;                                                                                                \
            printf("FAIL %s: ", name);                                                                               \
            printf(__VA_ARGS__);                                                                                     \
            printf("\n");                                                                                            \
        }                                                                                                            \
    } while (0)

static int near_rel(double a, double b, double tol) { return a == b || fabs(a - b) <= tol * fabs(b); }

/* ---- vectors --------------------------------------------------------------------------------------------------- */

/* Routes a row of logits. */
static orc_result route_row(const vec_router *v) {
    orc_result r;
    orc_weights w = {0};
    w.logits_in = v->logits;
    w.sel_bias = v->sel_bias;
    w.per_expert_scale = v->per_expert_scale;
    w.ids_in = v->table_ids;
    orc_route_only(&v->k, &w, NULL, NULL, 1, &r);
    return r;
}

static void check_router_row(const vec_router *v) {
    orc_result r = route_row(v);
    for (int j = 0; j < v->k.top_k; j++) {
        CHECK(r.ids[j] == v->ids[j], v->id, "rank %d is %d, not %d (%s)", j, r.ids[j], v->ids[j], v->note);
        if (!v->weights) continue;
        CHECK(near_rel(r.weights[j], v->weights[j], 1e-12), v->id, "weight %d is %.17g, not %.17g (%s)", j,
              r.weights[j], v->weights[j], v->note);
        CHECK(r.weights_err[j] >= 0, v->id, "weight %d has the error %g", j, r.weights_err[j]);
    }
    for (int j = 0; v->shared && j < v->k.n_shared; j++)
        CHECK(near_rel(r.sink[j], v->shared[j], 1e-12), v->id, "shared weight %d is %.17g, not %.17g", j, r.sink[j],
              v->shared[j]);
    orc_free(&r);
}

static double activate(const orc_knobs *k, double g, double u) {
    return orc_glu(k, orc_exact(g), orc_exact(u), k->clamp, k->limit).v;
}

static void check_act_row(const vec_act *v) {
    for (size_t i = 0; i < v->n; i++) {
        double got = activate(&v->k, (double)v->gate[i], v->up ? (double)v->up[i] : 0.0);
        CHECK(near_rel(got, v->expect[i], 1e-12) || fabs(got - v->expect[i]) < 1e-300, v->id,
              "of %g is %.17g, not %.17g (%s)", (double)v->gate[i], got, v->expect[i], v->note);
    }
}

static void test_vectors(void) {
    for (size_t i = 0; i < sizeof vec_routers / sizeof vec_routers[0]; i++) check_router_row(&vec_routers[i]);
    for (size_t i = 0; i < sizeof vec_acts / sizeof vec_acts[0]; i++) check_act_row(&vec_acts[i]);
}

/* The same rows as they are printed in the notes on models: six digits, but written by hand and not by a program. */
static const char *const printed_rows[][2] = {
    {"V01", "0:0.379 4:0.229875"},
    {"V02", "0:0.622459 4:0.377541"},
    {"V03", "0:0.622459 4:0.377541"},
    {"V04", "0:0.378431 4:0.229923"},
    {"V05", "0:1 4:1"},
    {"V06", "0:0.338909 1:0.5025"},
    {"V07", "0:0.880797"},
    {"V08", "1:1.32675 3:0.685172 6:0.488083"},
    {"V09", "1:0.873864 3:0.817589 6:0.808547"},
    {"V10", "1:0.89213 4:0.997707 5:0.610163"},
    {"V11", "0:6.064 4:3.678 1:2.23082"},
    {"V12", "0:0.362553 4:0.336529 1:0.300918"},
    {"V13", "2:0.490534 3:0.297524 6:0.211942"},
    {"V14", "0:0.622459 4:0.377541"},
    {"V15", "1:0.439773 4:0.500561 0:0.559666"},
    {"V16", "6:0.350658 3:0.431374 1:0.717968"},
    {"V17", "6:0.186324 3:0.307196 5:0.50648"},
    {"V18", "6:0.113216 3:0.186661 5:0.307753"},
    {"V19", "1:0.530698 3:0.274068 6:0.195233"},
    {"V20", "1:3.01511 3:1.5571 1.1092 2.31859"},
    {"V21", "0:0.31123 4:0.755081"},
    {"V22", "7:0.243595 3:0.243595 6:0.243595 1:0.269214"},
    {"V23", "7:0.00111831 3:0.00111831 6:0.00111831 1:0.00123592"},
    {"V24", "0:0.333333 1:0.333333 2:0.333333"},
};

static const vec_router *find_row(const char *id) {
    for (size_t i = 0; i < sizeof vec_routers / sizeof vec_routers[0]; i++)
        if (strcmp(vec_routers[i].id, id) == 0) return &vec_routers[i];
    return NULL;
}

/* text: "id:weight" in rank order, then the sink's weights alone. */
static void check_printed(const vec_router *v, const char *text) {
    orc_result r = route_row(v);
    char *end;
    for (int j = 0; j < v->k.top_k + r.n_sink; j++) {
        double w = j < v->k.top_k ? r.weights[j] : r.sink[j - v->k.top_k];
        if (j < v->k.top_k) {
            long id = strtol(text, &end, 10);
            CHECK(r.ids[j] == id, v->id, "printed id %ld, got %d", id, r.ids[j]);
            text = end + 1;
        }
        double want = strtod(text, &end);
        text = end;
        CHECK(near_rel(w, want, 5.1e-6), v->id, "printed weight %g, got %.8g", want, w);
    }
    orc_free(&r);
}

typedef struct printed_act {
    const char *name;
    orc_act act;
    int gated;
    orc_clamp clamp;
    double limit, expect[4];
} printed_act;

static const printed_act printed_acts[] = {
    {"swiglu", ORC_SILU, 1, ORC_CLAMP_NONE, 0, {71.97585, 0.02414521, 0.3655293, -5.715445}},
    {"oai", ORC_OAI, 1, ORC_CLAMP_PRE, 7, {55.99963, 5.859857e-05, 1.268694, -2.981929}},
    {"clamp before silu", ORC_SILU, 1, ORC_CLAMP_PRE, 7, {48.95536, 0.01877961, 0.3655293, -5.715445}},
    {"clamp after silu", ORC_SILU, 1, ORC_CLAMP_POST, 7, {49, 0.01877961, 0.3655293, -5.715445}},
    {"situ", ORC_SITU, 1, ORC_CLAMP_NONE, 0, {33.26842, 0.01116031, 0.358052, -4.829912}},
    {"geglu tanh", ORC_GELU_TANH, 1, ORC_CLAMP_NONE, 0, {72, 0, 0.420596, -5.992725}},
    {"geglu erf", ORC_GELU_ERF, 1, ORC_CLAMP_NONE, 0, {72, 4.396483e-14, 0.4206724, -5.991901}},
    {"reglu", ORC_RELU, 1, ORC_CLAMP_NONE, 0, {72, -0.0, 0.5, -6}},
    {"relu^2", ORC_RELU2, 0, ORC_CLAMP_NONE, 0, {81, 0, 0.25, 0}},
};

static void check_printed_act(const printed_act *p) {
    static const double gate[4] = {8, -8, 1, 3}, up[4] = {9, -9, 0.5, -2};
    orc_knobs k = orc_defaults();
    k.act = p->act, k.gated = p->gated, k.clamp = p->clamp, k.limit = p->limit;
    for (int i = 0; i < 4; i++) {
        double got = activate(&k, p->gated ? gate[i] : up[i], up[i]);
        /* The printed erf tail comes from 1 + erf, which cancels in float64: only its size is right. */
        double tol = p->expect[i] != 0 && fabs(p->expect[i]) < 1e-12 ? 0.1 : 1e-6;
        CHECK(near_rel(got, p->expect[i], tol) || fabs(got - p->expect[i]) < 1e-12, p->name, "printed %g, got %.9g",
              p->expect[i], got);
    }
}

static void test_printed(void) {
    for (size_t i = 0; i < sizeof printed_rows / sizeof printed_rows[0]; i++) {
        const vec_router *v = find_row(printed_rows[i][0]);
        CHECK(v != NULL, printed_rows[i][0], "no such vector");
        if (v) check_printed(v, printed_rows[i][1]);
    }
    for (size_t i = 0; i < sizeof printed_acts / sizeof printed_acts[0]; i++) check_printed_act(&printed_acts[i]);
}

/* ---- parts ----------------------------------------------------------------------------------------------------- */

static void test_bf16(void) {
    static const double pairs[][2] = {
        {1, 1}, {1.00390625, 1},         {1.01171875, 1.015625}, {1.004, 1.0078125}, {-3.14159, -3.140625},
        {0, 0}, {1e-40, 9.18354962e-41},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        CHECK(near_rel(orc_bf16(pairs[i][0]), pairs[i][1], 1e-3) &&
                  near_rel(orc_bf16(pairs[i][0]), pairs[i][1], 1e-5),
              "bf16", "%g rounds to %.9g, not %.9g", pairs[i][0], orc_bf16(pairs[i][0]), pairs[i][1]);
    orc_num edge = {1.00390625, 1e-7, 0}; /* midway: either side may come out */
    CHECK(orc_bf16_num(edge).e == 0.0078125, "bf16", "error at a midpoint is %g", orc_bf16_num(edge).e);
    edge.v = 1.002;
    CHECK(orc_bf16_num(edge).e == 0, "bf16", "error away from a midpoint is %g", orc_bf16_num(edge).e);
}

/* Slopes against differences, and the two constants that bound them. */
static void check_slope(const orc_knobs *k, double g) {
    double h = 1e-5, diff = (orc_act_value(k, g + h) - orc_act_value(k, g - h)) / (2 * h), f = orc_act_slope(k, g);
    double curve = (orc_act_slope(k, g + h) - orc_act_slope(k, g - h)) / (2 * h);
    CHECK(fabs(diff - f) < 1e-7 + 1e-7 * fabs(g), "slope", "act %d at %g: %g, by differences %g", (int)k->act, g, f,
          diff);
    CHECK(fabs(f) <= 1.13, "slope", "act %d at %g is steeper than 1.13: %g", (int)k->act, g, f);
    CHECK(fabs(curve) <= orc_act_curve(k), "curve", "act %d at %g: %g", (int)k->act, g, curve);
}

static void test_slopes(void) {
    static const orc_act acts[] = {ORC_SILU, ORC_GELU_TANH, ORC_GELU_ERF, ORC_OAI, ORC_SITU};
    static const double betas[] = {0.5, 1, 4};
    orc_knobs k = orc_defaults();
    for (size_t a = 0; a < sizeof acts / sizeof acts[0]; a++)
        for (int b = 0; b < 3; b++) {
            k.act = acts[a], k.act_beta = betas[b];
            if (k.act != ORC_SITU && b < 2) continue;
            for (double g = -12; g < 12; g += 0.00731) check_slope(&k, g);
        }
}

/* Four experts with logits 3, 2, 1, 0: softmax weights 0.644, 0.237, 0.087, 0.032. */
static orc_result route_four(const orc_knobs *k, orc_weights *w) {
    static const float logits[4] = {3, 2, 1, 0};
    orc_result r;
    w->logits_in = logits;
    orc_route_only(k, w, NULL, NULL, 1, &r);
    return r;
}

static orc_knobs four(int top_k) {
    orc_knobs k = orc_defaults();
    k.n_expert = 4, k.top_k = top_k;
    return k;
}

static void check_kept(const char *name, const orc_knobs *k, int kept) {
    orc_weights w = {0};
    orc_result r = route_four(k, &w);
    int n = 0, in_order = 1;
    for (int j = 0; j < k->top_k; j++) n += r.weights[j] != 0, in_order &= r.ids[j] == j;
    CHECK(n == kept, name, "%d experts kept, not %d", n, kept);
    CHECK(in_order, name, "ids of dropped experts are lost");
    CHECK(near_rel(r.weights[0], 0.64391425988797, 1e-12), name, "weights are renormalised: %g", r.weights[0]);
    CHECK(orc_safe(&r, 0), name, "clear decision called ambiguous");
    orc_free(&r);
}

static void test_adaptive(void) {
    orc_knobs k = four(4);
    k.drop_below = 0.2, check_kept("drop_below", &k, 2);
    k.min_keep = 3, check_kept("drop_below, min_keep", &k, 3);
    k = four(4);
    k.top_p = 0.85, check_kept("top_p", &k, 2);
    k.top_p = 0.6, check_kept("top_p small", &k, 1);
    k.min_keep = 3, check_kept("top_p, min_keep", &k, 3);
    k.top_p = 0.95, k.min_keep = 0, check_kept("top_p large", &k, 3);
    k.drop_below = 0.2, check_kept("top_p and drop_below", &k, 2);
}

/* A share that is exactly the threshold may fall on either side. */
static void test_adaptive_edge(void) {
    orc_knobs k = four(4);
    orc_weights w = {0};
    k.drop_below = exp(-1);
    orc_result r = route_four(&k, &w);
    CHECK(!orc_safe(&r, 0), "drop_below", "a weight at the threshold is called safe");
    orc_free(&r);
    k = four(4);
    k.top_p = (exp(3) + exp(2)) / (exp(3) + exp(2) + exp(1) + 1);
    r = route_four(&k, &w);
    CHECK(!orc_safe(&r, 0), "top_p", "a sum at the threshold is called safe");
    orc_free(&r);
}

static void test_given(void) {
    static const int32_t ids[3] = {2, -1, 2};
    static const float weights[3] = {0.5f, 0.25f, -2};
    orc_knobs k = four(3);
    orc_weights w = {0};
    k.norm = ORC_NORM_SUM, w.ids_in = ids;
    orc_result r = route_four(&k, &w);
    CHECK(r.ids[1] == -1 && r.weights[1] == 0, "ids_in", "a skipped slot has id %d, weight %g", r.ids[1],
          r.weights[1]);
    CHECK(near_rel(r.weights[0], 0.5, 1e-15) && near_rel(r.weights[2], 0.5, 1e-15), "ids_in", "repeated id: %g %g",
          r.weights[0], r.weights[2]);
    CHECK(orc_safe(&r, 0), "ids_in", "given ids are called ambiguous");
    orc_free(&r);
    w.weights_in = weights;
    r = route_four(&k, &w);
    CHECK(r.weights[0] == 0.5 && r.weights[1] == 0 && r.weights[2] == -2, "weights_in", "%g %g %g", r.weights[0],
          r.weights[1], r.weights[2]);
    orc_free(&r);
}

/* Two experts of equal logits: certain only where float32 has no error either. */
static void test_ties(void) {
    static const float router[4] = {1, 2, 2, 1}, x[2] = {1, 1};
    orc_knobs k = orc_defaults();
    orc_weights w = {0};
    orc_result r;
    k.d_model = k.n_expert = 2, k.top_k = 1;
    w.router = router;
    orc_route_only(&k, &w, x, NULL, 1, &r);
    CHECK(r.ids[0] == 0 && !orc_safe(&r, 0), "tie", "id %d, margin %g, error %g", r.ids[0], r.margin[0],
          r.key_err[0]);
    orc_free(&r);
    k.router_exact = 1;
    orc_route_only(&k, &w, x, NULL, 1, &r);
    CHECK(r.ids[0] == 0 && orc_safe(&r, 0), "exact tie", "margin %g, error %g", r.margin[0], r.key_err[0]);
    orc_free(&r);
}

/* Logits 1.001 and 1.002 round to the same bf16: the lower index wins, and the weights are equal. */
static void test_logit_round(void) {
    static const float logits[2] = {1.001f, 1.002f};
    orc_knobs k = orc_defaults();
    orc_weights w = {0};
    orc_result r;
    k.n_expert = k.top_k = 2, w.logits_in = logits;
    orc_route_only(&k, &w, NULL, NULL, 1, &r);
    CHECK(r.ids[0] == 1, "logit_round F32", "id %d first", r.ids[0]);
    orc_free(&r);
    k.logit_round = ORC_ROUND_BF16;
    orc_route_only(&k, &w, NULL, NULL, 1, &r);
    CHECK(r.ids[0] == 0 && r.weights[0] == 0.5 && r.logits[1] == 1, "logit_round BF16", "id %d, weight %g, logit %g",
          r.ids[0], r.weights[0], r.logits[1]);
    orc_free(&r);
}

/* Not-a-number in one token stays there, and nothing is promised about it. */
static void test_nan(void) {
    static const float ones[4] = {1, 1, 1, 1};
    const float x[4] = {1, 1, NAN, 1};
    orc_knobs k = orc_defaults();
    orc_weights w = {0};
    orc_result r;
    k.d_model = k.d_ff = 2, k.n_expert = k.top_k = 1;
    w.router = w.w1 = w.w3 = w.w2 = ones;
    orc_forward(&k, &w, x, NULL, NULL, 2, &r);
    CHECK(isfinite(r.output[0]) && isfinite(r.bound[0]), "nan", "token 0 is %g +- %g", r.output[0], r.bound[0]);
    CHECK(isnan(r.output[2]) && isinf(r.bound[2]), "nan", "token 1 is %g +- %g", r.output[2], r.bound[2]);
    orc_free(&r);
}

/* ---- random blocks --------------------------------------------------------------------------------------------- */

typedef struct block {
    orc_knobs k;
    orc_weights w;
    float *x, *xr;
    int32_t tokens[16];
    size_t T;
    char *pool;
    size_t used, size;
} block;

static uint64_t seed = 88172645463325252u;

static int below(int n) { return (int)((nz_next(&seed) >> 33) % (unsigned)n); }
static int between(int a, int b) { return a + below(b - a + 1); }
static int chance(int percent) { return below(100) < percent; }

static float normal(void) {
    double s = 0;
    for (int i = 0; i < 6; i++) s += nz_unit(&seed);
    return (float)(s * 0.7071);
}

static void *take(block *b, size_t n, size_t size) {
    void *p = b->pool + b->used;
    b->used += (n * size + 15) / 16 * 16;
    if (b->used > b->size) {
        fprintf(stderr, "test_oracle: pool too small\n");
        exit(2);
    }
    return p;
}

/* n normal numbers around mean. */
static float *draw(block *b, int n, double scale, double mean) {
    float *p = take(b, (size_t)n, sizeof *p);
    for (int i = 0; i < n; i++) p[i] = (float)((double)normal() * scale + mean);
    return p;
}

static float *maybe(block *b, int percent, int n, double scale, double mean) {
    return chance(percent) ? draw(b, n, scale, mean) : NULL;
}

static void random_experts(orc_knobs *k) {
    int group = chance(50) ? 0 : between(1, 3), n = between(1, 12);
    k->group = (orc_group)group;
    k->top_k = between(1, n < 4 ? n : 4);
    if (group) {
        int each = between(1, 4);
        k->n_group = between(2, 4), n = k->n_group * each;
        k->topk_group = between(1, k->n_group);
        k->top_k = between(1, k->topk_group * each);
        if (k->group == ORC_GROUP_PER_GROUP) k->top_k = k->n_group * between(1, each);
    }
    k->n_zero_expert = chance(20) ? below(n) : 0;
    k->n_expert = n - k->n_zero_expert;
    k->zero_kind = chance(30) ? ORC_ZERO_ZERO : ORC_ZERO_IDENTITY;
    k->group_mask = chance(30) ? ORC_MASK_ZERO : ORC_MASK_NEG_INF;
    k->pick = chance(10) ? ORC_PICK_TABLE : ORC_PICK_TOPK;
    if (!group && n >= 2 && chance(20)) k->pick = ORC_PICK_SPARSEMIXER, k->top_k = 2;
}

static void random_router(orc_knobs *k) {
    static const double caps[] = {0, 0, 2, 30}, eps[] = {0, (double)1e-20f, (double)1e-9f, (double)1e-3f},
                        mins[] = {0, (double)1e-12f, 0.5}, scales[] = {1, 2.5, 16}, jitters[] = {(double)0.01f, 0.25};
    int sparse = k->pick == ORC_PICK_SPARSEMIXER;
    k->router_norm = chance(20) ? ORC_RNORM_RMS_SCALE : ORC_RNORM_NONE;
    k->router_norm_eps = (double)1e-6f;
    k->logit_round = chance(10) ? ORC_ROUND_BF16 : ORC_ROUND_F32;
    k->logit_softcap = caps[below(4)];
    k->score = (orc_score)below(3);
    k->select_on = (orc_select)below(2);
    k->jitter = jitters[below(2)];
    k->weight_src = sparse || chance(60) ? ORC_W_SCORE : (orc_weight_src)between(1, 2);
    k->norm = (orc_norm)below(2);
    if (k->weight_src == ORC_W_BIASED && chance(80)) k->norm = ORC_NORM_NONE; /* the sum may be negative */
    k->norm_eps = eps[below(4)], k->norm_min = mins[below(3)];
    k->norm_skip_k1 = below(2);
    k->norm_scope = (orc_scope)below(2);
    k->routed_scale = scales[below(3)];
    k->capacity = chance(15) ? between(1, 3) : 0;
    k->capacity_drop = (orc_drop)below(2), k->capacity_priority = (orc_prio)below(2);
    k->capacity_norm = (orc_capnorm)below(2);
    if (chance(15)) k->drop_below = 0.25, k->min_keep = below(3);
    if (chance(15)) k->top_p = 0.75, k->min_keep = below(3);
}

static void random_ffn(orc_knobs *k) {
    static const double limits[] = {0, 0.5, 2}, betas[] = {1, 4}, lins[] = {2, 25};
    k->weight_pos = (orc_pos)below(3);
    k->act = (orc_act)below(7);
    k->act_alpha = (double)1.702f, k->act_beta = betas[below(2)], k->act_lin_beta = lins[below(2)];
    k->gated = chance(75);
    k->clamp = (orc_clamp)below(3), k->limit = limits[below(3)];
    k->d_latent = chance(20) ? between(2, 40) : 0;
    k->latent_norm_eps = chance(20) ? (double)1e-5f : 0;
    k->combine_scale = chance(20) ? 0.5 : 1;
    k->expert_out_scale = chance(20) ? (double)0.8f : 1;
    if (chance(60)) return;
    k->n_shared = between(1, 3), k->d_ff_shared = between(2, 40);
    k->shared_gate = (orc_gate)below(k->pick == ORC_PICK_SPARSEMIXER ? 3 : 4);
    k->shared_clamp = (orc_clamp)below(3), k->shared_limit = limits[below(3)];
}

static void random_knobs(orc_knobs *k, orc_compute c) {
    int most = chance(10) ? 150 : 45;
    *k = orc_defaults();
    k->d_model = between(2, most), k->d_ff = between(2, most);
    random_experts(k);
    random_router(k);
    random_ffn(k);
    orc_set_compute(k, c);
    if (c == ORC_BF16) k->w_rel = chance(50) ? ORC_UBF : 0;
    if (c == ORC_Q8 && chance(30)) k->compute_down = ORC_F32;
}

static void draw_experts(block *b) {
    const orc_knobs *k = &b->k;
    int E = k->n_expert, ff = k->d_ff, d = (int)orc_width(k), n = E * ff * d;
    int bias = chance(40);
    double in = 1.5 / sqrt(d), out = 1 / sqrt(ff);
    b->w.w1 = draw(b, n, in, 0);
    if (k->gated) b->w.w3 = draw(b, n, in, 0);
    b->w.w2 = draw(b, n, out, 0);
    if (bias) b->w.b1 = draw(b, E * ff, 0.5, 0), b->w.b2 = draw(b, E * d, 0.5, 0);
    if (bias && k->gated) b->w.b3 = draw(b, E * ff, 0.5, 0);
    if (k->d_latent) b->w.lat_in = draw(b, d * k->d_model, in, 0), b->w.lat_out = draw(b, d * k->d_model, in, 0);
    if (k->latent_norm_eps > 0) b->w.lat_norm = draw(b, d, 0.3, 1);
}

static void draw_shared(block *b) {
    const orc_knobs *k = &b->k;
    int S = (int)orc_n_sink(k), d = k->d_model, n = (S ? S : 1) * k->d_ff_shared * d;
    if (!n) return;
    b->w.sw1 = draw(b, n, 1 / sqrt(d), 0), b->w.sw2 = draw(b, n, 1 / sqrt(k->d_ff_shared), 0);
    if (k->gated) b->w.sw3 = draw(b, n, 1 / sqrt(d), 0);
    b->w.sgate = draw(b, 2 * d, 1 / sqrt(d), 0), b->w.sgate_bias = draw(b, 2, 0.5, 0);
}

static void draw_router(block *b) {
    static const double spread[] = {0.3, 1.6, 1.6, 6};
    const orc_knobs *k = &b->k;
    int E = (int)orc_n_routed(k), n = E + (int)orc_n_sink(k), d = k->d_model;
    int sparse = k->pick == ORC_PICK_SPARSEMIXER;
    b->w.router = draw(b, n * d, spread[below(4)] / sqrt(d), 0);
    b->w.router_bias = maybe(b, 40, n, 0.5, 0);
    b->w.sel_bias = maybe(b, sparse ? 0 : 50, E, 0.3, chance(30) ? -1.5 : 0);
    b->w.per_expert_scale = maybe(b, 30, k->n_expert, 0.3, 1);
    b->w.router_scale = draw(b, d, 0.3, 1);
    if (k->pick != ORC_PICK_TABLE) return;
    int32_t *table = take(b, (size_t)(16 * k->top_k), sizeof *table);
    for (int i = 0; i < 16 * k->top_k; i++) table[i] = below(E);
    b->w.table = table;
}

static void draw_block(block *b, orc_compute c) {
    memset(&b->w, 0, sizeof b->w);
    b->used = 0;
    random_knobs(&b->k, c);
    draw_router(b);
    draw_experts(b);
    draw_shared(b);
    int T = between(1, 4), n = T * b->k.d_model;
    b->T = (size_t)T;
    b->x = draw(b, n, chance(10) ? 30 : 1, 0);
    b->xr = maybe(b, 20, n, 1, 0);
    b->w.out_bias = maybe(b, 20, b->k.d_model, 1, 0);
    b->w.y_in = maybe(b, 20, n, 1, 0);
    for (int t = 0; t < T; t++) b->tokens[t] = below(16);
}

/* ---- the bound ------------------------------------------------------------------------------------------------- */

typedef struct tally {
    double *worst; /* [cases] largest fraction of the bound that a case used */
    double sigmas; /* largest error in units of the likely one */
    size_t cases, tokens, unsafe, unbounded;
} tally;

static const char *const mode_names[] = {"nearest", "noise", "ends", "up"};
static const char *const compute_names[] = {"f32", "bf16", "q8"};

static int any_unsafe(const orc_result *r) {
    int bad = 0;
    for (size_t t = 0; t < r->T; t++) bad |= !orc_safe(r, t);
    return bad;
}

/* Largest |got - want| / err over n numbers; infinite errors promise nothing. */
static double fraction(const double *got, const double *want, const double *err, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs(got[i] - want[i]);
        if (isinf(err[i]) || e == 0) continue;
        most = fmax(most, isnan(e) ? HUGE_VAL : e / err[i]);
    }
    return most;
}

static int ids_equal(const int32_t *a, const int32_t *b, size_t k) { return memcmp(a, b, k * sizeof *a) == 0; }

/* Both hold the same experts, in any order. */
static int same_set(const int32_t *a, const int32_t *b, size_t k) {
    for (size_t i = 0; i < k; i++) {
        size_t na = 0, nb = 0;
        for (size_t j = 0; j < k; j++) na += a[j] == a[i], nb += b[j] == a[i];
        if (na != nb) return 0;
    }
    return 1;
}

#define LIMIT (1 + 1e-8) /* the oracle's own float64 roundings */

/* Everything about one token. Returns the fraction of the output's bound. */
static double check_token(const char *name, const orc_result *r, const nz_result *z, size_t t) {
    size_t k = (size_t)r->k, d = (size_t)r->d, n = (size_t)r->n_logits, s = (size_t)r->n_sink;
    int ordered = r->rank_margin[t] > r->rank_err[t];
    CHECK(same_set(r->ids + t * k, z->ids + t * k, k), name, "token %zu is safe but chose other experts", t);
    CHECK(!ordered || ids_equal(r->ids + t * k, z->ids + t * k, k), name, "token %zu is safe but ranks differ", t);
    double l = fraction(z->logits + t * n, r->logits + t * n, r->logits_err + t * n, n);
    double w = ordered ? fraction(z->weights + t * k, r->weights + t * k, r->weights_err + t * k, k) : 0;
    double g = fraction(z->sink + t * s, r->sink + t * s, r->sink_err + t * s, s);
    double y = fraction(z->output + t * d, r->output + t * d, r->bound + t * d, d);
    CHECK(l <= LIMIT, name, "token %zu: logits use %.3g of their bound", t, l);
    CHECK(w <= LIMIT, name, "token %zu: weights use %.3g of their bound", t, w);
    CHECK(g <= LIMIT, name, "token %zu: sink weights use %.3g of their bound", t, g);
    CHECK(y <= LIMIT, name, "token %zu: outputs use %.3g of the bound", t, y);
    return y;
}

/* Error of a token in units of the likely one. Only roundings without a system behave as likely. */
static double check_sigma(const char *name, const orc_result *r, const nz_result *z, size_t t, nz_mode mode) {
    size_t d = (size_t)r->d, bad = 0;
    double most = fraction(z->output + t * d, r->output + t * d, r->sigma + t * d, d);
    for (size_t i = t * d; i < (t + 1) * d; i++) bad += !orc_plausible(r, i, z->output[i]);
    CHECK(bad == 0 || mode > NZ_NOISE, name, "token %zu: %.3g times the likely error", t, most);
    return most;
}

static int unbounded(const orc_result *r) {
    for (size_t i = 0; i < r->T * (size_t)r->d; i++)
        if (isinf(r->bound[i])) return 1;
    return 0;
}

static void describe(const orc_knobs *k) {
    printf(
        "    d %d ff %d E %d+%d k %d group %d pick %d score %d on %d src %d norm %d pos %d act %d gated %d clamp %d "
        "%g latent %d %g shared %d gate %d cap %d adapt %g %g softcap %g rnorm %d\n",
        k->d_model, k->d_ff, k->n_expert, k->n_zero_expert, k->top_k, (int)k->group, (int)k->pick, (int)k->score,
        (int)k->select_on, (int)k->weight_src, (int)k->norm, (int)k->weight_pos, (int)k->act, k->gated, (int)k->clamp,
        k->limit, k->d_latent, k->latent_norm_eps, k->d_ff_shared, (int)k->shared_gate, k->capacity, k->drop_below,
        k->top_p, k->logit_softcap, (int)k->router_norm);
}

/* One block with one kind of rounding. */
static void check_block(block *b, nz_mode mode, tally *y) {
    char name[64];
    orc_result r;
    nz_result n;
    int before = failed;
    double worst = 0;
    orc_forward(&b->k, &b->w, b->x, b->xr, b->tokens, b->T, &r);
    nz z = nz_new(&b->k, &b->w, b->T, mode, nz_next(&seed));
    nz_forward(&z, b->x, b->xr, b->tokens, &n);
    snprintf(name, sizeof name, "%s %s %zu", compute_names[b->k.compute_up], mode_names[mode], y->cases);
    int skip_all = b->k.capacity && any_unsafe(&r); /* one token's choice moves the others in the queues */
    for (size_t t = 0; t < b->T; t++) {
        y->tokens++;
        if (skip_all || !orc_safe(&r, t)) y->unsafe++;
        else worst = fmax(worst, check_token(name, &r, &n, t));
    }
    y->unbounded += (size_t)unbounded(&r);
    y->worst[y->cases++] = worst;
    for (size_t t = 0; t < b->T && !skip_all; t++)
        if (orc_safe(&r, t)) y->sigmas = fmax(y->sigmas, check_sigma(name, &r, &n, t, mode));
    if (failed > before) describe(&b->k);
    orc_free(&r);
    nz_free(&n);
}

static int ascending(const void *a, const void *b) {
    double x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return (x > y) - (x < y);
}

/* The bound must hold (checked above), and be in reach: some case uses a part of it that can be seen. */
static void report(orc_compute c, nz_mode mode, tally *y) {
    size_t zero = 0;
    qsort(y->worst, y->cases, sizeof *y->worst, ascending);
    while (zero < y->cases && y->worst[zero] == 0) zero++; /* dropped, unsafe or empty cases */
    double most = y->worst[y->cases - 1], median = y->worst[zero + (y->cases - zero) / 2];
    printf("bound %-4s %-7s: %zu cases, worst fraction: median %.2f %%, max %.1f %%, %.1f sigma; %.2f %% of tokens "
           "ambiguous, %zu cases without a bound\n",
           compute_names[c], mode_names[mode], y->cases, 100 * median, 100 * most, y->sigmas,
           100 * (double)y->unsafe / (double)y->tokens, y->unbounded);
    CHECK(most > 0.005, "bound", "%s %s is vacuous: at most %g of it is used", compute_names[c], mode_names[mode],
          most);
    CHECK(median > 0.005, "bound", "%s %s is wide: half of the cases use less than %g", compute_names[c],
          mode_names[mode], median);
    CHECK(y->unsafe * 20 < y->tokens, "margin", "%zu of %zu tokens are called ambiguous", y->unsafe, y->tokens);
    CHECK(y->unbounded * 50 < y->cases, "bound", "%zu of %zu cases have no bound", y->unbounded, y->cases);
}

static void test_bound(block *b, size_t cases) {
    static const size_t share[] = {4, 1, 1};
    for (int c = 0; c < 3; c++)
        for (int m = 0; m < NZ_MODES; m++) {
            tally y = {orc_alloc(cases, sizeof(double)), 0, 0, 0, 0, 0};
            for (size_t i = 0; i < cases * share[c] / 24 + 1; i++) {
                draw_block(b, (orc_compute)c);
                check_block(b, (nz_mode)m, &y);
            }
            report((orc_compute)c, (nz_mode)m, &y);
            free(y.worst);
        }
}

/* ---- wrong implementations ------------------------------------------------------------------------------------- */

static const char *const bug_names[] = {
    "none",         "last k skipped",     "gate and up swapped", "last slot skipped",
    "tanh for erf", "bias in the weight", "half precision"};

/* A block on which the bug has an effect that is not lost behind another knob. */
static void draw_for_bug(block *b, nz_bug bug, orc_compute c) {
    for (;;) {
        draw_block(b, c);
        orc_knobs *k = &b->k;
        if (k->capacity || k->latent_norm_eps > 0 || k->pick == ORC_PICK_SPARSEMIXER || k->n_zero_expert) continue;
        if (k->d_model < 8 || k->d_ff < 8 || k->drop_below > 0 || k->top_p > 0 || k->group_mask) continue;
        if (bug == NZ_SWAP_GATE_UP && !k->gated) continue;
        if (bug == NZ_TANH_FOR_ERF && (k->act != ORC_GELU_ERF || k->clamp)) continue;
        if (bug == NZ_BIAS_IN_WEIGHT && (!b->w.sel_bias || k->weight_src || k->group || k->top_k < 2)) continue;
        return;
    }
}

/* Is it seen in the outputs alone? */
static int caught(block *b, nz_bug bug) {
    orc_result r;
    nz_result n;
    int seen = 0;
    orc_forward(&b->k, &b->w, b->x, b->xr, b->tokens, b->T, &r);
    nz z = nz_new(&b->k, &b->w, b->T, NZ_NEAREST, nz_next(&seed));
    z.bug = bug;
    nz_forward(&z, b->x, b->xr, b->tokens, &n);
    for (size_t i = 0; i < r.T * (size_t)r.d; i++) seen |= !orc_plausible(&r, i, n.output[i]);
    orc_free(&r);
    nz_free(&n);
    return seen;
}

static void test_bugs(block *b) {
    for (int c = 0; c < 3; c++)
        for (int bug = 1; bug < NZ_BUGS; bug++) {
            int n = 60, seen = 0;
            if (c != ORC_F32 && (bug == NZ_TANH_FOR_ERF || bug == NZ_HALF)) continue; /* below their noise */
            for (int i = 0; i < n; i++) {
                draw_for_bug(b, (nz_bug)bug, (orc_compute)c);
                seen += caught(b, (nz_bug)bug);
            }
            if (verbose) printf("caught %-4s %-20s: %d of %d\n", compute_names[c], bug_names[bug], seen, n);
            CHECK(seen * 10 >= n * 8, "bug", "%s %s: seen in only %d of %d blocks", compute_names[c], bug_names[bug],
                  seen, n);
        }
}

int main(int argc, char **argv) {
    size_t cases = 2400;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-v") == 0) verbose = 1;
        else cases = (size_t)strtoul(argv[i], NULL, 10);
    }
    block b = {0};
    b.size = 32u << 20;
    b.pool = orc_alloc(b.size, 1);
    test_vectors();
    test_printed();
    test_bf16();
    test_slopes();
    test_adaptive();
    test_adaptive_edge();
    test_given();
    test_ties();
    test_logit_round();
    test_nan();
    test_bound(&b, cases);
    test_bugs(&b);
    free(b.pool);
    printf("test_oracle: %d passed, %d failed, 0 skipped\n", passed, failed);
    return failed != 0;
}
