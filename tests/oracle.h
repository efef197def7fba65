/* oracle.h - what one Mixture-of-Experts block computes, in float64, and how far a float32 implementation may be off.
 *
 * An independent reference: it shares no code, type or name with moe.h, so that a mistake in one of them shows.
 * Everything is static; include it in one test program and call
 *
 *     orc_knobs k = orc_defaults();  k.d_model = 64; ...
 *     orc_weights w = {0};           w.router = ...; w.w1 = ...
 *     orc_result r;
 *     orc_forward(&k, &w, x, NULL, NULL, T, &r);
 *     ... |y[i] - r.output[i]| <= r.bound[i] for every i ...
 *     orc_free(&r);
 *
 * PIPELINE, for one token (x block input, xr router input):
 *   R1  l = W xr + router_bias; NaN -> -inf; logit_round BF16: rounded to nearest even
 *   R2  l = c*tanh(l/c)                                        if logit_softcap c > 0
 *   R3  s = softmax(l) | sigmoid(l) | sqrt(softplus(l))
 *   R4  q = (s or l) + sel_bias                                the bias never enters the weight (BIASED excepted)
 *   R5  groups: the best topk_group of n_group stay, the rest is masked; or k/n_group from every group
 *   R6  ids = top-k of q, descending, ties to the lowest index | table | given | sparsemixer
 *   R7  w = s[ids] | q[ids] | softmax(l[ids])
 *   R8  w /= max(sum(w) + norm_eps, norm_min)
 *   R9  capacity (before or after R8), then drop_below and top_p: dropped choices keep their id with weight 0
 *   R10 w *= routed_scale * per_expert_scale[id]
 *   E   y_e = W2(act(W1 h + b1) * (W3 h + b3)) + b2; h = x, or lat_in x, or w_e * h (weight_pos INPUT)
 *       ids >= n_expert are zero experts: y_e = h or 0
 *   C   r = expert_out_scale * sum w_e y_e; optional RMS norm, lat_out; y = combine_scale * (r + shared) + out_bias
 *
 * THE BOUND is a running error bound (each number carries |computed - exact| <= e through the whole pipeline), valid
 * for an implementation that, with u = 2^-24:
 *   - sums dot products of length K in 16 interleaved FMA chains and a tree: ceil(K/16)+6 roundings;
 *   - has exp within 2 ULP; sigmoid, silu, gelu, tanh and log1p within a few roundings of the exact function;
 *   - combines experts by FMA in any order; does the router, the scores, the norms and the gates in F32;
 *   - for BF16 rounds x and h to bf16 (2^-8 relative), for Q8 to blocks of 32 with one scale amax/127.
 * Numbers may be flushed to zero below 2^-126. A bound of infinity says that nothing is promised (0/0, NaN inputs).
 * The bound supposes that all roundings conspire. In long sums they do not: with K in the hundreds right code uses
 * less than 1 % of it, and the bound of BF16 or Q8 may exceed the output. sigma is the likely error, for which
 * independent errors are added as squares; orc_plausible() tests for ORC_SIGMAS times that (right code: below 5).
 * It holds for weights without structure.
 *
 * Give the knobs as the floats that the implementation sees: (double)2.827f, not 2.827.
 *
 * CHOICES where the pipeline leaves some: R8 and R9 apply to sparsemixer too (leave them off for Phi-3.5-MoE), its
 * selection ignores sel_bias; a router sink's experts are not clamped; PASS_THROUGH passes nothing with capacity_norm
 * AFTER; drop_below and top_p look at the final |w|, both at the undropped ones, and come after capacity.
 *
 * AMBIGUOUS TOKENS: rounding may select other experts than the exact ids. Token t is safe when
 * margin[t] > key_err[t]; its order of ranks is safe when also rank_margin[t] > rank_err[t].
 */
#ifndef ORACLE_H
#define ORACLE_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum { ORC_ZERO_IDENTITY, ORC_ZERO_ZERO } orc_zero;
typedef enum { ORC_RNORM_NONE, ORC_RNORM_RMS_SCALE } orc_rnorm;
typedef enum { ORC_ROUND_F32, ORC_ROUND_BF16 } orc_logit_round;
typedef enum { ORC_SOFTMAX, ORC_SIGMOID, ORC_SQRT_SOFTPLUS } orc_score;
typedef enum { ORC_ON_SCORE, ORC_ON_LOGIT } orc_select;
typedef enum { ORC_GROUP_NONE, ORC_GROUP_LIMIT_MAX, ORC_GROUP_LIMIT_TOP2SUM, ORC_GROUP_PER_GROUP } orc_group;
typedef enum { ORC_MASK_NEG_INF, ORC_MASK_ZERO } orc_mask;
typedef enum { ORC_PICK_TOPK, ORC_PICK_TABLE, ORC_PICK_SPARSEMIXER } orc_pick;
typedef enum { ORC_W_SCORE, ORC_W_BIASED, ORC_W_SOFTMAX_SELECTED } orc_weight_src;
typedef enum { ORC_NORM_NONE, ORC_NORM_SUM } orc_norm;
typedef enum { ORC_SCOPE_ROUTED, ORC_SCOPE_ROUTED_AND_SHARED } orc_scope;
typedef enum { ORC_POS_OUTPUT, ORC_POS_INPUT, ORC_POS_HIDDEN } orc_pos;
typedef enum { ORC_SILU, ORC_GELU_TANH, ORC_GELU_ERF, ORC_RELU, ORC_RELU2, ORC_OAI, ORC_SITU } orc_act;
typedef enum { ORC_CLAMP_NONE, ORC_CLAMP_PRE, ORC_CLAMP_POST } orc_clamp;
typedef enum { ORC_GATE_NONE, ORC_GATE_SIGMOID_DOT, ORC_GATE_SOFTMAX2, ORC_GATE_ROUTER_SINK } orc_gate;
typedef enum { ORC_DROP_ZERO, ORC_DROP_PASS_THROUGH } orc_drop;
typedef enum { ORC_PRIO_ORDER, ORC_PRIO_PROB } orc_prio;
typedef enum { ORC_CAPNORM_BEFORE, ORC_CAPNORM_AFTER } orc_capnorm;
typedef enum { ORC_F32, ORC_BF16, ORC_Q8 } orc_compute;

/* Names and meanings of moe_ref.Knobs; start from orc_defaults(). */
typedef struct orc_knobs {
    int d_model, d_ff, n_expert, top_k;
    int n_zero_expert;
    orc_zero zero_kind;
    orc_rnorm router_norm; /* RMS_SCALE: xr = rms_norm(xr) * router_scale / sqrt(d) */
    double router_norm_eps;
    orc_logit_round logit_round;
    double logit_softcap;
    orc_score score;
    orc_select select_on;
    orc_group group;
    int n_group, topk_group;
    orc_mask group_mask;
    orc_pick pick;
    double jitter;
    orc_weight_src weight_src;
    orc_norm norm;
    double norm_eps, norm_min;
    int norm_skip_k1;
    orc_scope norm_scope;
    double routed_scale;
    double drop_below; /* drop choices with |w| < drop_below * max |w| of the token; 0: off */
    double top_p;      /* keep the fewest of the largest with sum |w| >= top_p * total; 0: off */
    int min_keep;      /* this many of the largest are never dropped by the two above */
    orc_pos weight_pos;
    orc_act act;
    double act_alpha, act_beta, act_lin_beta;
    int gated;
    orc_clamp clamp;
    double limit;
    int d_latent;
    double latent_norm_eps; /* > 0: RMS norm with lat_norm on the routed sum */
    int n_shared, d_ff_shared;
    orc_gate shared_gate;
    orc_clamp shared_clamp;
    double shared_limit;
    double combine_scale, expert_out_scale;
    int capacity; /* places per expert; 0: no limit */
    orc_drop capacity_drop;
    orc_prio capacity_priority;
    orc_capnorm capacity_norm;

    /* What the implementation under test does; none of these changes an exact result but key_f32. */
    orc_compute compute_up, compute_down;               /* routed experts: W1 and W3, W2 */
    orc_compute compute_shared_up, compute_shared_down; /* shared experts */
    orc_compute compute_latent_in, compute_latent_out;  /* lat_in, lat_out */
    double w_rel;     /* relative error of the weights it multiplies (2^-8: rounds them to bf16); 0: exact */
    int router_exact; /* router sums are exact in float32 (small integers): ties are then certain, not ambiguous */
    int key_f32;      /* form q in float32 as the contract says (decides only ties that float32 makes) */
} orc_knobs;

/* Dense float arrays as the implementation decodes them; NULL where absent.
 * E experts, Z zero experts, S router-weighted shared rows, dl = d_latent or d_model. */
typedef struct orc_weights {
    const float *router;           /* [E+Z+S][d] */
    const float *router_bias;      /* [E+Z+S] */
    const float *sel_bias;         /* [E+Z] */
    const float *per_expert_scale; /* [E]; zero experts have 1 */
    const float *router_scale;     /* [d] */
    const float *w1, *w3, *w2;     /* gate [E][ff][dl], up [E][ff][dl], down [E][dl][ff]; ungated: w1 and w2 */
    const float *b1, *b3, *b2;     /* [E][ff], [E][ff], [E][dl] */
    const float *lat_in, *lat_out; /* [dl][d], [d][dl] */
    const float *lat_norm;         /* [dl] */
    const float *out_bias;         /* [d] */
    const int32_t *table;          /* [vocab][k] for ORC_PICK_TABLE */
    const float *sw1, *sw3, *sw2;  /* [ffs][d], [ffs][d], [d][ffs]; ROUTER_SINK: [S] of each */
    const float *sgate;            /* [d] SIGMOID_DOT, [2][d] SOFTMAX2 */
    const float *sgate_bias;       /* [2] SOFTMAX2 */

    /* Per call, all optional: */
    const float *y_in;       /* [T][d] y before the call, when results are added to it */
    const float *logits_in;  /* [T][E+Z+S] instead of the router matrix and bias */
    const int32_t *ids_in;   /* [T][k] chosen by the caller; -1 skips the slot */
    const float *weights_in; /* [T][k] final weights chosen by the caller, with ids_in; R7 to R10 do not apply */
} orc_weights;

/* Allocated by orc_forward, released by orc_free. *_err and bound are bounds on |float32 result - exact|. */
typedef struct orc_result {
    size_t T;
    int d, k, n_logits, n_sink;
    double *logits, *logits_err;    /* [T][n_logits] after bias and logit_round, before softcap */
    double *key;                    /* [T][E+Z] selection keys after masking; sparsemixer: logits */
    int32_t *ids;                   /* [T][k] in rank order */
    double *weights, *weights_err;  /* [T][k] final */
    double *sink, *sink_err;        /* [T][n_sink] weights of router-weighted shared experts */
    double *output, *bound;         /* [T][d] */
    double *sigma;                  /* [T][d] likely size of the error; see orc_plausible */
    double *margin, *key_err;       /* [T] the decision nearest to flipping: its gap, and the error of that gap */
    double *rank_margin, *rank_err; /* [T] the same for the order among the selected */
} orc_result;

/* Names of functions end up unused in some tests; inline keeps compilers quiet about that. */
#define ORC_FN static inline

#define ORC_INF  ((double)INFINITY)
#define ORC_NAN  ((double)NAN)
#define ORC_U    5.9604644775390625e-8  /* 2^-24, unit roundoff of float32 */
#define ORC_UBF  0.00390625             /* 2^-8, unit roundoff of bf16 */
#define ORC_TINY 1.1754943508222875e-38 /* 2^-126; smaller results may be flushed to zero */
/* exp(-x) may overflow to infinity from x = 88 on, which makes sigmoid(x) 0: x * exp(-88) is lost. */
#define ORC_EXP_TINY 6e-37

/* ---- numbers with an error ------------------------------------------------------------------------------------- */

/* An exact value, a bound on |computed - v|, and the likely size (standard deviation) of computed - v. */
typedef struct orc_num {
    double v, e, s;
} orc_num;

ORC_FN orc_num orc_exact(double v) {
    orc_num r = {v, 0.0, 0.0};
    return r;
}

/* Errors that have nothing to do with each other add up as the sides of a right angle. */
ORC_FN double orc_rss(double a, double b) { return sqrt(a * a + b * b); }

/* The deviation of an error spread evenly over -e to e. */
ORC_FN double orc_even(double e) { return e * 0.57735026918962576; }

/* n float32 roundings of a result whose operands cause the error e, likely s. An exact zero stays exact. */
ORC_FN orc_num orc_rounded(double v, double e, double s, double n) {
    orc_num r = {v, e, s};
    if (v == 0.0 && e == 0.0) return r;
    r.e = e + n * ORC_U * (fabs(v) + e) + ORC_TINY;
    r.s = orc_rss(s, orc_even(n * ORC_U * fabs(v) + ORC_TINY));
    return r;
}

/* A product before its rounding. */
ORC_FN orc_num orc_product(orc_num a, orc_num b) {
    orc_num r;
    r.v = a.v * b.v;
    r.e = fabs(a.v) * b.e + fabs(b.v) * a.e + a.e * b.e;
    r.s = orc_rss(a.v * b.s, b.v * a.s);
    return r;
}

ORC_FN orc_num orc_mul(orc_num a, orc_num b) {
    orc_num p = orc_product(a, b);
    return orc_rounded(p.v, p.e, p.s, 1);
}

ORC_FN orc_num orc_add(orc_num a, orc_num b) { return orc_rounded(a.v + b.v, a.e + b.e, orc_rss(a.s, b.s), 1); }

/* Multiplication by a constant; by 1 it is exact. */
ORC_FN orc_num orc_scale(orc_num a, double c) {
    return c == 1.0 ? a : orc_rounded(a.v * c, a.e * fabs(c), a.s * fabs(c), 1);
}

/* Likely error of f(a), whose bound is e: as likely as a's. */
ORC_FN double orc_likely_of(orc_num a, double e) { return a.e > 0 ? a.s * (e / a.e) : 0.0; }

/* Error of a monotone function: the worse end of the interval. */
ORC_FN double orc_ends(double lo, double mid, double hi) { return fmax(fabs(hi - mid), fabs(mid - lo)); }

/* min(max(a, lo), hi): where the whole interval is clamped the result is exact. */
ORC_FN orc_num orc_clamped(orc_num a, double lo, double hi) {
    orc_num r;
    r.v = fmin(fmax(a.v, lo), hi);
    r.e = orc_ends(fmin(fmax(a.v - a.e, lo), hi), r.v, fmin(fmax(a.v + a.e, lo), hi));
    r.s = fmin(a.s, r.e);
    if (isnan(a.v)) r = a; /* fmin and fmax would hide it */
    return r;
}

ORC_FN double orc_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

/* sigmoid in float32: exp (2 ULP, damped by 1 - sigmoid), an addition, a division. */
ORC_FN orc_num orc_sigmoid_num(orc_num a) {
    double v = orc_sigmoid(a.v), e = orc_ends(orc_sigmoid(a.v - a.e), v, orc_sigmoid(a.v + a.e));
    return orc_rounded(v, e, orc_likely_of(a, e), 4 * (1 - v) + 4);
}

/* c * tanh(a / c), tanh relatively accurate to a few roundings. */
ORC_FN orc_num orc_tanh_num(orc_num a, double c) {
    double v = c * tanh(a.v / c), e = orc_ends(c * tanh((a.v - a.e) / c), v, c * tanh((a.v + a.e) / c));
    return orc_rounded(v, e, orc_likely_of(a, e), 10);
}

/* Round to the nearest bf16, ties to even. */
ORC_FN double orc_bf16(double x) {
    int ex;
    if (!isfinite(x) || x == 0.0) return x;
    (void)frexp(x, &ex);
    if (ex < -125) ex = -125; /* subnormals share one exponent */
    return ldexp(nearbyint(ldexp(x, 8 - ex)), ex - 8);
}

ORC_FN orc_num orc_bf16_num(orc_num a) {
    orc_num r;
    r.v = orc_bf16(a.v);
    r.e = isfinite(a.v) ? orc_ends(orc_bf16(a.v - a.e), r.v, orc_bf16(a.v + a.e)) : a.e;
    r.s = r.e;
    return r;
}

ORC_FN void *orc_alloc(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p) {
        fprintf(stderr, "oracle: out of memory\n");
        abort();
    }
    return p;
}

/* ---- dot products ---------------------------------------------------------------------------------------------- */

/* Relative error of a sum of products: every term passes through at most n roundings. */
ORC_FN double orc_gamma(size_t K, orc_compute c) {
    double chain = ceil((double)K / 16) + 6, n = chain;
    if (c == ORC_BF16) n = 2 * chain;                          /* AMX and BFMMLA need not round to nearest */
    if (c == ORC_Q8) n = 16 * (2 * ceil((double)K / 256) + 8); /* weights with an offset cancel in part */
    return n * ORC_U / (1 - n * ORC_U);
}

/* Another error of at most e. */
ORC_FN void orc_worsen(orc_num *x, double e) {
    x->e += e;
    x->s = orc_rss(x->s, orc_even(e));
}

/* Largest |x| of a block of 32 sets the step of Q8; x is off by half a step. */
ORC_FN void orc_quantise(orc_num *x, size_t n) {
    double amax = 0;
    for (size_t i = 0; i < n; i++) amax = fmax(amax, fabs(x[i].v) + x[i].e);
    for (size_t i = 0; i < n; i++) orc_worsen(x + i, amax / 254 * 1.0001);
}

/* Adds to the errors of x what rounding to the compute's type does. */
ORC_FN void orc_prepare(orc_compute c, orc_num *x, size_t n) {
    if (c == ORC_Q8)
        for (size_t i = 0; i < n; i += 32) orc_quantise(x + i, n - i < 32 ? n - i : 32);
    if (c == ORC_BF16)
        for (size_t i = 0; i < n; i++)
            if (x[i].e != 0.0 || orc_bf16(x[i].v) != x[i].v)
                orc_worsen(x + i, ORC_UBF * (fabs(x[i].v) + x[i].e) + ORC_TINY);
}

/* Squares of the partial sums of the 16 chains, which is what their roundings go by, and those of the tree. */
ORC_FN double orc_tree_squares(double *acc, double squares) {
    for (size_t n = 8; n; n /= 2)
        for (size_t i = 0; i < n; i++) {
            acc[i] += acc[i + n];
            squares += acc[i] * acc[i];
        }
    return squares;
}

/* sum w[i] x[i] for x prepared for c. */
ORC_FN orc_num orc_dot(const orc_knobs *k, const float *w, const orc_num *x, size_t K, orc_compute c) {
    double size = 0, e = 0, acc[16] = {0}, partial = 0, own = 0, terms = 0;
    for (size_t i = 0; i < K; i++) {
        double a = (double)w[i], m = fabs(a), *chain = acc + i % 16;
        *chain += a * x[i].v;
        size += m * (fabs(x[i].v) + x[i].e);
        e += m * x[i].e;
        partial += *chain * *chain;
        own += a * a * x[i].s * x[i].s;
        terms += a * a * x[i].v * x[i].v;
    }
    partial = orc_tree_squares(acc, partial);
    double w_rel = c == ORC_F32 ? 0.0 : k->w_rel, u = c == ORC_F32 ? ORC_U : 4 * ORC_U;
    orc_num r = {acc[0], e + (orc_gamma(K, c) + w_rel) * size, 0};
    r.s = sqrt(own + (u * u * partial + w_rel * w_rel * terms) / 3);
    if (size > 0) r.e += ORC_TINY, r.s += ORC_TINY;
    return r;
}

/* y[r] = W[r] . x for n rows. */
ORC_FN void orc_matvec(const orc_knobs *k, const float *W, const orc_num *x, size_t n, size_t K, orc_compute c,
                       orc_num *y) {
    for (size_t r = 0; r < n; r++) y[r] = orc_dot(k, W + r * K, x, K, c);
}

ORC_FN void orc_load(const float *x, size_t n, orc_num *y) {
    for (size_t i = 0; i < n; i++) y[i] = orc_exact((double)x[i]);
}

/* x / sqrt(mean(x^2) + eps). By the triangle inequality the norm is off by at most the norm of the errors. */
ORC_FN void orc_rms(orc_num *x, size_t n, double eps) {
    double ss = 0, ee = 0, dd = 0, nd = (double)n;
    for (size_t i = 0; i < n; i++) {
        ss += x[i].v * x[i].v;
        ee += x[i].e * x[i].e;
        dd += x[i].v * x[i].v * x[i].s * x[i].s;
    }
    orc_num norm;
    norm.v = sqrt(ss / nd + eps);
    norm.e = sqrt(ee / nd) + norm.v * (orc_gamma(n, ORC_F32) / 2 + 4 * ORC_U);
    norm.s = norm.v > 0 ? sqrt(dd) / (nd * norm.v) + 6 * ORC_U * norm.v : 0;
    for (size_t i = 0; i < n; i++) {
        double y = x[i].v / norm.v, e = (x[i].e + fabs(y) * norm.e) / (norm.v - norm.e);
        double any = fabs(y) + sqrt(nd); /* no element of a normalised vector is larger than sqrt(n) */
        x[i] = orc_rounded(y, norm.e < norm.v ? fmin(e, any) : any, orc_rss(x[i].s, y * norm.s) / norm.v, 2);
    }
}

/* ---- activation ------------------------------------------------------------------------------------------------ */

ORC_FN double orc_gelu_arg(double g) { return 1.5957691216057308 * (g + 0.044715 * g * g * g); }

/* The function alone; clamps and the other factor are orc_glu's. */
ORC_FN double orc_act_value(const orc_knobs *k, double g) {
    switch (k->act) {
    case ORC_SILU: return g * orc_sigmoid(g);
    case ORC_GELU_TANH: return g * orc_sigmoid(orc_gelu_arg(g));
    case ORC_GELU_ERF: return 0.5 * g * erfc(-g * 0.70710678118654752440);
    case ORC_RELU: return g < 0 ? 0.0 : g;
    case ORC_RELU2: return g < 0 ? 0.0 : g * g;
    case ORC_OAI: return g * orc_sigmoid(k->act_alpha * g);
    case ORC_SITU: return k->act_beta * tanh(g / k->act_beta) * orc_sigmoid(g);
    }
    return ORC_NAN;
}

/* Derivative of z * sigmoid(f(z)) shapes: s + g * s * (1 - s) * f'. */
ORC_FN double orc_gated_slope(double g, double arg, double arg_slope) {
    double s = orc_sigmoid(arg), p = s * orc_sigmoid(-arg);
    return p == 0.0 ? s : s + g * p * arg_slope;
}

ORC_FN double orc_act_slope(const orc_knobs *k, double g) {
    double th;
    switch (k->act) {
    case ORC_SILU: return orc_gated_slope(g, g, 1);
    case ORC_GELU_TANH: return orc_gated_slope(g, orc_gelu_arg(g), 1.5957691216057308 * (1 + 0.134145 * g * g));
    case ORC_GELU_ERF:
        return 0.5 * erfc(-g * 0.70710678118654752440) + g * 0.39894228040143267794 * exp(-0.5 * g * g);
    case ORC_OAI: return orc_gated_slope(g, k->act_alpha * g, k->act_alpha);
    case ORC_SITU:
        th = tanh(g / k->act_beta);
        return (1 - th * th) * orc_sigmoid(g) + k->act_beta * th * orc_sigmoid(g) * orc_sigmoid(-g);
    case ORC_RELU:
    case ORC_RELU2: break; /* monotone: orc_act_spread evaluates the ends */
    }
    return ORC_NAN;
}

/* Largest |f''|: how much the slope may grow over the interval. */
ORC_FN double orc_act_curve(const orc_knobs *k) {
    switch (k->act) {
    case ORC_GELU_TANH:
    case ORC_GELU_ERF: return 0.85;
    case ORC_OAI: return 0.5 * fabs(k->act_alpha);
    case ORC_SITU: return 0.8 + 0.8 / k->act_beta;
    default: return 0.5;
    }
}

/* |f(g') - f(g)| for |g' - g| <= e: by the slope here, never more than the steepest slope anywhere (1.13, gelu). */
ORC_FN double orc_act_spread(const orc_knobs *k, orc_num g, double v) {
    if (k->act == ORC_RELU || k->act == ORC_RELU2)
        return orc_ends(orc_act_value(k, g.v - g.e), v, orc_act_value(k, g.v + g.e));
    double near = fabs(orc_act_slope(k, g.v)) * g.e + 0.5 * orc_act_curve(k) * g.e * g.e;
    return fmin(near, 1.13 * g.e);
}

/* Roundings inside the function, as a multiple of u * |f|. An error in the argument of exp counts as often as the
 * argument is large, but only as far as exp matters: 1 - sigmoid. */
ORC_FN double orc_act_roundings(const orc_knobs *k, double g) {
    double z;
    switch (k->act) {
    case ORC_SILU: return 4 * orc_sigmoid(-g) + 4;
    case ORC_GELU_TANH: z = orc_gelu_arg(g); return (4 + 5 * fabs(z)) * orc_sigmoid(-z) + 4;
    case ORC_GELU_ERF: return 12 + (g < 0 ? 2 * g * g : 0);
    case ORC_OAI: z = k->act_alpha * g; return (4 + fabs(z)) * orc_sigmoid(-z) + 4;
    case ORC_SITU: return 4 * orc_sigmoid(-g) + 16;
    case ORC_RELU: return 0;
    case ORC_RELU2: return 1;
    }
    return 0;
}

ORC_FN orc_num orc_act_num(const orc_knobs *k, orc_num g) {
    orc_num r;
    r.v = orc_act_value(k, g.v);
    r.e = orc_act_spread(k, g, r.v);
    r.s = orc_likely_of(g, r.e);
    if (k->act == ORC_RELU) return r;
    orc_worsen(&r, orc_act_roundings(k, g.v) * ORC_U * (fabs(r.v) + r.e));
    /* 0.5 * g * (1 + tanh(..)) or (1 + erf(..)) cancels for negative g; both are fair implementations. */
    if (k->act == ORC_GELU_TANH || k->act == ORC_GELU_ERF) orc_worsen(&r, 2 * ORC_U * fabs(g.v));
    if (g.v < 0) orc_worsen(&r, ORC_EXP_TINY);
    return r;
}

/* Gate and up sums of one hidden unit to its activation. */
ORC_FN orc_num orc_glu(const orc_knobs *k, orc_num g, orc_num u, orc_clamp clamp, double limit) {
    if (!k->gated) return orc_act_num(k, g);
    if (!(limit > 0)) clamp = ORC_CLAMP_NONE;
    if (clamp == ORC_CLAMP_PRE) g = orc_clamped(g, -ORC_INF, limit);
    if (clamp != ORC_CLAMP_NONE) u = orc_clamped(u, -limit, limit);
    orc_num a = orc_act_num(k, g);
    if (clamp == ORC_CLAMP_POST) a = orc_clamped(a, -ORC_INF, limit);
    if (k->act == ORC_OAI) u = orc_add(u, orc_exact(1));
    if (k->act == ORC_SITU) u = orc_tanh_num(u, k->act_lin_beta);
    return orc_mul(a, u);
}

/* ---- one feed-forward network ---------------------------------------------------------------------------------- */

typedef struct orc_ffn {
    const float *w1, *w3, *w2, *b1, *b3, *b2;
    size_t d, ff;
    orc_clamp clamp;
    double limit;
    orc_compute up, down;
} orc_ffn;

/* y = ffn(x) for x prepared for f->up. w multiplies the INPUT (the sums before the bias, which is the same) or the
 * HIDDEN units; on the OUTPUT it is the caller's. mid has room for ff numbers. */
ORC_FN void orc_ffn_run(const orc_knobs *k, const orc_ffn *f, const orc_num *x, orc_num w, orc_pos pos, orc_num *mid,
                        orc_num *y) {
    for (size_t r = 0; r < f->ff; r++) {
        orc_num g = orc_dot(k, f->w1 + r * f->d, x, f->d, f->up), u = orc_exact(0);
        if (k->gated) u = orc_dot(k, f->w3 + r * f->d, x, f->d, f->up);
        if (pos == ORC_POS_INPUT) g = orc_mul(g, w), u = orc_mul(u, w);
        if (f->b1) g = orc_add(g, orc_exact((double)f->b1[r]));
        if (f->b3 && k->gated) u = orc_add(u, orc_exact((double)f->b3[r]));
        mid[r] = orc_glu(k, g, u, f->clamp, f->limit);
        if (pos == ORC_POS_HIDDEN) mid[r] = orc_mul(mid[r], w);
    }
    orc_prepare(f->down, mid, f->ff);
    for (size_t i = 0; i < f->d; i++) {
        y[i] = orc_dot(k, f->w2 + i * f->ff, mid, f->ff, f->down);
        if (f->b2) y[i] = orc_add(y[i], orc_exact((double)f->b2[i]));
    }
}

ORC_FN const float *orc_at(const float *p, size_t offset) { return p ? p + offset : NULL; }

ORC_FN size_t orc_width(const orc_knobs *k) { return (size_t)(k->d_latent ? k->d_latent : k->d_model); }

ORC_FN orc_ffn orc_expert(const orc_knobs *k, const orc_weights *w, size_t e) {
    size_t d = orc_width(k), ff = (size_t)k->d_ff;
    orc_ffn f = {orc_at(w->w1, e * ff * d),
                 orc_at(w->w3, e * ff * d),
                 orc_at(w->w2, e * ff * d),
                 orc_at(w->b1, e * ff),
                 orc_at(w->b3, e * ff),
                 orc_at(w->b2, e * d),
                 d,
                 ff,
                 k->clamp,
                 k->limit,
                 k->compute_up,
                 k->compute_down};
    return f;
}

/* Shared expert j; without ROUTER_SINK there is one, of the summed width. */
ORC_FN orc_ffn orc_shared(const orc_knobs *k, const orc_weights *w, size_t j) {
    size_t d = (size_t)k->d_model, ff = (size_t)k->d_ff_shared;
    orc_ffn f = {orc_at(w->sw1, j * ff * d),
                 orc_at(w->sw3, j * ff * d),
                 orc_at(w->sw2, j * ff * d),
                 NULL,
                 NULL,
                 NULL,
                 d,
                 ff,
                 k->shared_clamp,
                 k->shared_limit,
                 k->compute_shared_up,
                 k->compute_shared_down};
    return f;
}

/* ---- scores ---------------------------------------------------------------------------------------------------- */

ORC_FN size_t orc_n_sink(const orc_knobs *k) {
    return k->shared_gate == ORC_GATE_ROUTER_SINK ? (size_t)k->n_shared : 0;
}

ORC_FN size_t orc_n_routed(const orc_knobs *k) { return (size_t)k->n_expert + (size_t)k->n_zero_expert; }

/* One token's routing. The error of a softmax score has a part of its own (own) and a relative part that all scores
 * share (common), the denominator's, which cancels when weights are normalised; all is the whole error. */
typedef struct orc_route {
    orc_num *l; /* [n] after softcap */
    double *s;  /* [n] */
    double *own, *all;
    double common;   /* relative, of the routed scores */
    double *q, *qe;  /* [E] keys, masked; their own errors */
    int *taken;      /* [E] */
    double gap, err; /* the decision nearest to flipping */
    double rgap, rerr;
} orc_route;

ORC_FN double orc_max(const orc_num *l, size_t n) {
    double m = -ORC_INF;
    for (size_t i = 0; i < n; i++) m = fmax(m, l[i].v);
    return m;
}

/* exp(l - m); +inf entries share all the mass, a row of -inf has none. */
ORC_FN double orc_mass(double l, double m) {
    if (isinf(m)) return m > 0 && l == m ? 1.0 : 0.0;
    return exp(l - m);
}

/* Softmax. Each mass has the relative error r: its logit's, the subtraction's, exp's. Returns the common error. */
ORC_FN double orc_softmax(const orc_num *l, size_t n, double *s, double *own, double *all) {
    double m = orc_max(l, n), sum = 0, mean = 0, add = (double)n * ORC_U;
    for (size_t i = 0; i < n; i++) sum += s[i] = orc_mass(l[i].v, m);
    for (size_t i = 0; i < n; i++) {
        s[i] = sum > 0 ? s[i] / sum : 0;
        own[i] = s[i] > 0 && isfinite(m) ? expm1(l[i].e + ORC_U * (m - l[i].v)) + 4 * ORC_U : 0; /* r for now */
        mean += s[i] * own[i];
    }
    double low = 1 - mean - add, shared = low > 0 ? (mean + add) / low : ORC_INF;
    for (size_t i = 0; i < n; i++) {
        double r = own[i], drift = (1 - s[i]) * r + (mean - s[i] * r) + add;
        if (s[i] == 0) own[i] = all[i] = ORC_TINY;
        else if (!(low > 0)) own[i] = all[i] = ORC_INF;
        else
            all[i] = s[i] * (drift / low + 2 * ORC_U) + ORC_TINY,
            own[i] = s[i] * (r + 2 * ORC_U) * (1 + shared) + ORC_TINY;
    }
    return shared;
}

ORC_FN double orc_sqrt_softplus(double l) { return sqrt(fmax(l, 0) + log1p(exp(-fabs(l)))); }

ORC_FN orc_num orc_score_one(const orc_knobs *k, orc_num l) {
    if (k->score == ORC_SIGMOID) return orc_sigmoid_num(l);
    double s = orc_sqrt_softplus(l.v);
    if (isinf(l.v)) return orc_exact(s);
    double lost = l.v < -87 ? s : 0; /* exp underflows, although the root would not */
    double e = orc_ends(orc_sqrt_softplus(l.v - l.e), s, orc_sqrt_softplus(l.v + l.e));
    return orc_rounded(s, fmax(e, lost), orc_likely_of(l, e) + lost, 8);
}

/* R3. The softmax of routed experts leaves the sink's rows out, the sink's is over all rows. */
ORC_FN void orc_scores(const orc_knobs *k, orc_route *r) {
    size_t E = orc_n_routed(k), n = E + orc_n_sink(k);
    r->common = 0;
    if (k->score == ORC_SOFTMAX) {
        if (n > E) orc_softmax(r->l, n, r->s, r->own, r->all);
        for (size_t i = E; i < n; i++) r->own[i] = r->all[i];
        r->common = orc_softmax(r->l, E, r->s, r->own, r->all);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        orc_num s = orc_score_one(k, r->l[i]);
        r->s[i] = s.v;
        r->own[i] = r->all[i] = s.e;
    }
}

/* Sparsemixer always selects by the plain logits. */
ORC_FN int orc_on_logit(const orc_knobs *k) {
    return k->select_on == ORC_ON_LOGIT || k->pick == ORC_PICK_SPARSEMIXER;
}

ORC_FN int orc_biased(const orc_knobs *k, const orc_weights *w) {
    return w->sel_bias && k->pick != ORC_PICK_SPARSEMIXER;
}

/* R4. */
ORC_FN void orc_keys(const orc_knobs *k, const orc_weights *w, orc_route *r) {
    size_t E = orc_n_routed(k);
    for (size_t i = 0; i < E; i++) {
        double q = orc_on_logit(k) ? r->l[i].v : r->s[i];
        r->qe[i] = orc_on_logit(k) ? r->l[i].e : r->own[i];
        if (k->key_f32) q = (double)(float)q;
        if (orc_biased(k, w)) q += (double)w->sel_bias[i], r->qe[i] += ORC_U * (fabs(q) + r->qe[i]);
        r->q[i] = k->key_f32 ? (double)(float)q : q;
        r->taken[i] = 0;
    }
}

/* ---- selection ------------------------------------------------------------------------------------------------- */

/* Records a decision: it holds as long as the computed numbers are off by less than gap. */
ORC_FN void orc_note(orc_route *r, double gap, double err) {
    if (isnan(gap)) return; /* equal infinities: a certain tie */
    if (isnan(err)) err = ORC_INF;
    if (gap - err < r->gap - r->err) r->gap = gap, r->err = err;
}

/* Decision "i before j". Equal inputs make a certain tie, which the index decides. */
ORC_FN void orc_note_pair(const orc_knobs *k, const orc_weights *w, orc_route *r, size_t i, size_t j) {
    int same_bias = !orc_biased(k, w) || w->sel_bias[i] == w->sel_bias[j];
    int same_logit = r->l[i].v == r->l[j].v && r->l[i].e == 0.0 && r->l[j].e == 0.0;
    if (r->qe[i] == 0.0 && r->qe[j] == 0.0 && r->q[i] == r->q[j]) return;
    if (same_bias && same_logit && r->q[i] == r->q[j]) return;
    double shared = orc_on_logit(k) ? 0.0 : r->common * fabs(r->s[i] - r->s[j]);
    orc_note(r, r->q[i] - r->q[j], r->qe[i] + r->qe[j] + shared);
}

/* Largest value not taken yet, lowest index first; NaN comes after everything. */
ORC_FN size_t orc_best(const double *v, const int *taken, size_t n) {
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
        if (taken[i]) continue;
        if (best == n || v[i] > v[best] || (isnan(v[best]) && !isnan(v[i]))) best = i;
    }
    return best;
}

/* Top k of the keys in [from, to) into ids; notes every pair of a chosen and an unchosen one. */
ORC_FN void orc_topk(const orc_knobs *k, const orc_weights *w, orc_route *r, size_t from, size_t to, size_t n,
                     int32_t *ids) {
    for (size_t j = 0; j < n; j++) {
        size_t i = from + orc_best(r->q + from, r->taken + from, to - from);
        r->taken[i] = 1;
        ids[j] = (int32_t)i;
    }
    for (size_t j = 0; j < n; j++)
        for (size_t i = from; i < to; i++)
            if (!r->taken[i]) orc_note_pair(k, w, r, (size_t)ids[j], i);
}

/* The two largest of n numbers, added; of one number, itself. */
ORC_FN double orc_top2(const double *v, size_t n) {
    double a = -ORC_INF, b = -ORC_INF;
    for (size_t i = 0; i < n; i++) {
        double x = v[i];
        if (x > a) b = a, a = x;
        else if (x > b) b = x;
    }
    return n > 1 ? a + b : a;
}

/* Score of one group and its error. */
ORC_FN orc_num orc_group_score(const orc_knobs *k, const orc_route *r, size_t from, size_t n) {
    orc_num g = {-ORC_INF, 0, 0};
    double shift = 0;
    for (size_t i = from; i < from + n; i++) {
        g.v = fmax(g.v, r->q[i]);
        g.e = fmax(g.e, r->qe[i]);
        if (!orc_on_logit(k)) shift = fmax(shift, r->common * r->s[i]);
    }
    g.e += shift;
    if (k->group == ORC_GROUP_LIMIT_MAX) return g;
    g.v = orc_top2(r->q + from, n);
    g.e = orc_top2(r->qe + from, n) + 2 * shift + ORC_U * fabs(g.v);
    return g;
}

/* R5: keeps the best topk_group groups, masks the keys of the others. */
ORC_FN void orc_limit_groups(const orc_knobs *k, orc_route *r) {
    size_t G = (size_t)k->n_group, n = orc_n_routed(k) / G;
    orc_num *g = orc_alloc(G, sizeof *g);
    double *v = orc_alloc(G, sizeof *v);
    int *kept = orc_alloc(G, sizeof *kept);
    for (size_t i = 0; i < G; i++) g[i] = orc_group_score(k, r, i * n, n), v[i] = g[i].v;
    for (int j = 0; j < k->topk_group; j++) kept[orc_best(v, kept, G)] = 1;
    for (size_t i = 0; i < G * G; i++) {
        orc_num a = g[i / G], b = g[i % G];
        int tie = k->router_exact && a.v == b.v;
        if (kept[i / G] && !kept[i % G] && !tie) orc_note(r, a.v - b.v, a.e + b.e);
    }
    for (size_t i = 0; i < G * n; i++)
        if (!kept[i / n]) r->q[i] = k->group_mask == ORC_MASK_ZERO ? 0.0 : -ORC_INF, r->qe[i] = 0;
    free(g);
    free(v);
    free(kept);
}

/* R5 and R6, unless the ids are given. */
ORC_FN void orc_pick_ids(const orc_knobs *k, const orc_weights *w, orc_route *r, int32_t *ids) {
    size_t E = orc_n_routed(k), top = (size_t)k->top_k;
    if (k->group == ORC_GROUP_PER_GROUP) {
        size_t G = (size_t)k->n_group, n = E / G;
        for (size_t g = 0; g < G; g++) orc_topk(k, w, r, g * n, (g + 1) * n, top / G, ids + g * (top / G));
        return;
    }
    if (k->group != ORC_GROUP_NONE) orc_limit_groups(k, r);
    orc_topk(k, w, r, 0, E, top, ids);
}

/* The order among the chosen, in a margin of its own; per group the order of the groups is fixed. */
ORC_FN void orc_note_ranks(const orc_knobs *k, const orc_weights *w, orc_route *r, const int32_t *ids) {
    orc_route t = *r;
    size_t top = (size_t)k->top_k, run = k->group == ORC_GROUP_PER_GROUP ? top / (size_t)k->n_group : top;
    t.gap = ORC_INF, t.err = 0;
    for (size_t j = 1; j < top; j++)
        if (j % run) orc_note_pair(k, w, &t, (size_t)ids[j - 1], (size_t)ids[j]);
    r->rgap = t.gap, r->rerr = t.err;
}

/* Is l too far below t to share its mass? NaN (0/0) is not. */
ORC_FN int orc_too_far(double t, double l, double jitter) { return (t - l) / fmax(fabs(l), t) > 2 * jitter; }

ORC_FN void orc_note_far(orc_route *r, orc_num t, orc_num l, double jitter) {
    double den = fmax(fabs(l.v), t.v), f = fabs((t.v - l.v) / den);
    double err = (t.e + l.e + f * fmax(t.e, l.e)) / den + 3 * ORC_U * (f + 2 * jitter);
    if (isfinite(l.v) && isfinite(t.v) && den > 0) orc_note(r, fabs(f - 2 * jitter), err);
}

/* One of sparsemixer's two choices: the largest logit left, weighted by the softmax over those near it. */
ORC_FN void orc_sparse_step(const orc_knobs *k, const orc_weights *w, orc_route *r, int32_t *id, double *weight,
                            double *own) {
    size_t E = orc_n_routed(k), best = orc_best(r->q, r->taken, E);
    orc_num *left = orc_alloc(E, sizeof *left);
    double *s = orc_alloc(3 * E, sizeof *s);
    for (size_t i = 0; i < E; i++) {
        int far = orc_too_far(r->l[best].v, r->l[i].v, k->jitter);
        left[i] = far || r->taken[i] ? orc_exact(-ORC_INF) : r->l[i];
        if (i == best || r->taken[i]) continue;
        orc_note_pair(k, w, r, best, i);
        orc_note_far(r, r->l[best], r->l[i], k->jitter);
    }
    orc_softmax(left, E, s, s + E, s + 2 * E);
    *id = (int32_t)best;
    *weight = s[best];
    *own = s[2 * E + best];
    r->taken[best] = 1;
    free(left);
    free(s);
}

/* ---- weights --------------------------------------------------------------------------------------------------- */

/* Weights before and after normalisation: k routed ones, which share the relative error common, then the sink's. */
typedef struct orc_mix {
    size_t k, n;
    double *w, *own, *all;
    double common;
} orc_mix;

/* R7. Id -1 is a slot without an expert. */
ORC_FN void orc_gather(const orc_knobs *k, const orc_route *r, const int32_t *ids, orc_mix *m) {
    orc_num *sel = orc_alloc(m->k, sizeof *sel);
    int biased = k->weight_src == ORC_W_BIASED;
    m->common = k->weight_src == ORC_W_SCORE ? r->common : 0;
    for (size_t j = 0; j < m->k; j++) {
        size_t i = ids[j] < 0 ? 0 : (size_t)ids[j];
        int skip = ids[j] < 0;
        double q_shift = orc_on_logit(k) ? 0.0 : r->common * r->s[i];
        sel[j] = skip ? orc_exact(-ORC_INF) : r->l[i];
        m->w[j] = skip ? 0 : biased ? r->q[i] : r->s[i];
        m->own[j] = skip ? 0 : biased ? r->qe[i] + q_shift : r->own[i];
        m->all[j] = skip ? 0 : biased ? m->own[j] : r->all[i];
    }
    if (k->weight_src == ORC_W_SOFTMAX_SELECTED) m->common = orc_softmax(sel, m->k, m->w, m->own, m->all);
    free(sel);
}

ORC_FN void orc_gather_sink(const orc_knobs *k, const orc_route *r, orc_mix *m) {
    size_t E = orc_n_routed(k);
    for (size_t j = m->k; j < m->n; j++) m->w[j] = r->s[E + j - m->k], m->own[j] = m->all[j] = r->all[E + j - m->k];
}

/* The denominator of R8 over the first n weights: value, error, and whether rounding can move it past norm_min. */
typedef struct orc_den {
    double v, e, own; /* own: the part of e that is not the common factor's */
    double routed;    /* sum of the weights that have the common factor */
    int fixed, loose; /* certainly norm_min; possibly */
} orc_den;

ORC_FN orc_den orc_denominator(const orc_knobs *k, const orc_mix *m, size_t n) {
    orc_den d = {0, 0, 0, 0, 0, 0};
    double size = 0;
    for (size_t j = 0; j < n; j++) {
        d.v += m->w[j];
        d.own += m->own[j];
        size += fabs(m->w[j]);
        if (j < m->k) d.routed += m->w[j];
    }
    double roundings = ((double)n + 1) * ORC_U * (size + d.own + k->norm_eps);
    d.v += k->norm_eps;
    d.own += roundings;
    d.e = d.own + m->common * fabs(d.routed);
    d.fixed = d.v + d.e < k->norm_min;
    d.loose = d.v - d.e <= k->norm_min;
    d.v = fmax(d.v, k->norm_min);
    if (d.fixed) d.e = d.own = 0;
    return d;
}

/* w / den: with an exact fraction (w + dw)/(den + dd) - w/den = (dw*den - w*dd) / (den*(den + dd)), where the error
 * common to w and den, and that of w itself within den, cancel. */
ORC_FN double orc_share_error(const orc_mix *m, const orc_den *d, size_t j) {
    double w = fabs(m->w[j]), low = fabs(d->v) - d->e, num, inside = fmin(m->own[j], d->own);
    if (!(low > 0)) return ORC_INF;
    if (d->loose) num = m->all[j] * fabs(d->v) + w * d->e; /* one of two formulas: no cancelling */
    else num = m->own[j] * fabs(d->v - m->w[j]) + w * (d->own - inside);
    if (!d->loose) num += m->common * w * fabs(j < m->k ? d->v - d->routed : d->routed);
    return num / (fabs(d->v) * low) + 2 * ORC_U * w / fabs(d->v) + ORC_TINY;
}

/* R8, over the routed weights or over all. */
ORC_FN void orc_normalise(const orc_knobs *k, orc_mix *m) {
    int both = k->norm_scope == ORC_SCOPE_ROUTED_AND_SHARED;
    if (k->norm == ORC_NORM_NONE || (k->norm_skip_k1 && k->top_k == 1)) return;
    orc_den d = orc_denominator(k, m, both ? m->n : m->k);
    size_t n = both ? m->n : m->k;
    for (size_t j = 0; j < n; j++) m->all[j] = orc_share_error(m, &d, j);
    for (size_t j = 0; j < n; j++) m->w[j] /= d.v;
}

/* ---- capacity -------------------------------------------------------------------------------------------------- */

/* What later stages need of all tokens' routing. */
typedef struct orc_batch {
    double *top, *top_err; /* [T] largest score */
    double *mix;           /* [T][3][k+S] weights, their own error, their whole error, before R8 */
    double *common;        /* [T] */
    double *likely;        /* [T] likely error of a logit, as a part of its bound */
    double *rough;         /* [T][k] relative roundings on the way from logits to weights, in u */
    orc_num *passed;       /* [T][k] weights of dropped choices, for PASS_THROUGH */
    int *kept;             /* [T][k] its expert runs: not dropped by capacity, drop_below or top_p, nor id -1 */
} orc_batch;

ORC_FN orc_mix orc_mix_at(const orc_result *o, orc_batch *b, size_t t) {
    size_t k = (size_t)o->k, n = k + (size_t)o->n_sink;
    orc_mix m = {k, n, b->mix + 3 * n * t, b->mix + 3 * n * t + n, b->mix + 3 * n * t + 2 * n, b->common[t]};
    return m;
}

/* Token order: as given, or by the largest score, stable. */
ORC_FN void orc_queue_order(const orc_knobs *k, const orc_batch *b, size_t T, size_t *order) {
    for (size_t t = 0; t < T; t++) order[t] = t;
    if (k->capacity_priority == ORC_PRIO_ORDER) return;
    for (size_t i = 1; i < T; i++)
        for (size_t j = i; j > 0 && b->top[order[j]] > b->top[order[j - 1]]; j--) {
            size_t t = order[j];
            order[j] = order[j - 1], order[j - 1] = t;
        }
}

ORC_FN void orc_note_token(orc_result *o, size_t t, double gap, double err) {
    if (gap - err < o->margin[t] - o->key_err[t]) o->margin[t] = gap, o->key_err[t] = err;
}

/* The queue depends on the order of ranks, and with PROB on that of the tokens. */
ORC_FN void orc_note_queue(const orc_knobs *k, const orc_batch *b, const size_t *order, orc_result *o) {
    for (size_t t = 0; t < o->T; t++) orc_note_token(o, t, o->rank_margin[t], o->rank_err[t]);
    if (k->capacity_priority == ORC_PRIO_ORDER) return;
    for (size_t i = 1; i < o->T; i++) {
        size_t p = order[i - 1], t = order[i];
        double gap = b->top[p] - b->top[t], err = b->top_err[p] + b->top_err[t];
        orc_note_token(o, p, gap, err);
        orc_note_token(o, t, gap, err);
    }
}

/* All first choices queue before all second choices; a place beyond capacity is dropped. */
ORC_FN void orc_capacity(const orc_knobs *k, orc_batch *b, orc_result *o) {
    size_t top = (size_t)o->k, *order = orc_alloc(o->T, sizeof *order);
    int *used = orc_alloc(orc_n_routed(k), sizeof *used);
    orc_queue_order(k, b, o->T, order);
    for (size_t j = 0; j < top; j++)
        for (size_t i = 0; i < o->T; i++) {
            size_t at = order[i] * top + j;
            if (o->ids[at] >= 0) b->kept[at] = ++used[o->ids[at]] <= k->capacity;
        }
    orc_note_queue(k, b, order, o);
    free(order);
    free(used);
}

/* Zeroes the dropped weights; their mass is kept aside for PASS_THROUGH (only when normalised BEFORE, as there
 * is no normalised weight otherwise). */
ORC_FN void orc_drop_over_capacity(const orc_knobs *k, orc_batch *b, const orc_result *o, size_t t, orc_mix *m) {
    for (size_t j = 0; j < m->k; j++) {
        size_t at = t * (size_t)o->k + j;
        orc_num w = {m->w[j], m->all[j], 0};
        if (b->kept[at]) continue;
        if (k->capacity_norm == ORC_CAPNORM_BEFORE) b->passed[at] = orc_scale(w, k->routed_scale);
        m->w[j] = m->own[j] = m->all[j] = 0;
    }
}

/* ---- adaptive computation -------------------------------------------------------------------------------------- */

/* One token's normalised weights w, largest first, of which some are dropped. */
ORC_FN void orc_drop_below(const orc_knobs *k, orc_result *o, size_t t, const orc_num *w, int *drop) {
    size_t n = (size_t)o->k;
    double limit = k->drop_below * fabs(w[0].v), limit_err = k->drop_below * w[0].e + ORC_U * limit;
    for (size_t j = (size_t)k->min_keep; j < n; j++) {
        if (fabs(w[j].v) < limit) drop[j] = 1;
        if (w[j].v != 0.0) orc_note_token(o, t, fabs(fabs(w[j].v) - limit), w[j].e + limit_err);
    }
}

/* Error of sum(first m) - p * total, in which each weight counts 1 - p or p. */
ORC_FN double orc_prefix_error(const orc_num *w, size_t m, size_t n, double p) {
    double e = 0;
    for (size_t j = 0; j < n; j++) e += (j < m ? fabs(1 - p) : p) * w[j].e + (double)(n + 2) * ORC_U * fabs(w[j].v);
    return e;
}

/* The shortest prefix that reaches p of the total; every shorter or equal one is a decision. */
ORC_FN void orc_top_p(const orc_knobs *k, orc_result *o, size_t t, const orc_num *w, int *drop) {
    size_t n = (size_t)o->k, len = n;
    double total = 0, sum = 0;
    for (size_t j = 0; j < n; j++) total += fabs(w[j].v);
    for (size_t m = 1; m < n && len == n; m++) {
        sum += fabs(w[m - 1].v);
        double over = sum - k->top_p * total;
        if (over >= 0) len = m;
        if ((int)m >= k->min_keep) orc_note_token(o, t, fabs(over), orc_prefix_error(w, m, n, k->top_p));
    }
    if (len < (size_t)k->min_keep) len = (size_t)k->min_keep;
    for (size_t j = len; j < n; j++) drop[j] = 1;
}

/* Largest weight first; ranks that are equal keep their order. */
ORC_FN void orc_sort_weights(const orc_num *w, size_t n, size_t *order) {
    for (size_t j = 0; j < n; j++) {
        size_t i = j;
        for (; i > 0 && fabs(w[order[i - 1]].v) < fabs(w[j].v); i--) order[i] = order[i - 1];
        order[i] = j;
    }
}

ORC_FN void orc_adapt(const orc_knobs *k, orc_result *o, size_t t, orc_num *w, int *kept) {
    size_t n = (size_t)o->k;
    if (!(k->drop_below > 0) && !(k->top_p > 0)) return;
    int *drop = orc_alloc(n, sizeof *drop);
    size_t *order = orc_alloc(n, sizeof *order);
    orc_num *sorted = orc_alloc(n, sizeof *sorted);
    orc_sort_weights(w, n, order);
    for (size_t j = 0; j < n; j++) sorted[j] = w[order[j]];
    if (k->drop_below > 0) orc_drop_below(k, o, t, sorted, drop);
    if (k->top_p > 0) orc_top_p(k, o, t, sorted, drop);
    for (size_t j = 0; j < n; j++) {
        if (j && drop[j] != drop[j - 1]) /* the cut is between these two */
            orc_note_token(o, t, fabs(sorted[j - 1].v) - fabs(sorted[j].v), sorted[j - 1].e + sorted[j].e);
        if (drop[j]) w[order[j]] = orc_exact(0), kept[order[j]] = 0;
    }
    free(drop), free(order), free(sorted);
}

/* ---- routing --------------------------------------------------------------------------------------------------- */

/* R1: what the router reads. With RMS_SCALE the norm's error is a factor common to all of x: returned. */
ORC_FN double orc_router_input(const orc_knobs *k, const orc_weights *w, const float *xr, orc_num *x) {
    size_t d = (size_t)k->d_model;
    double ss = 0, root = sqrt((double)d);
    orc_load(xr, d, x);
    if (k->router_norm == ORC_RNORM_NONE) return 0;
    for (size_t i = 0; i < d; i++) ss += x[i].v * x[i].v;
    double norm = sqrt(ss / (double)d + k->router_norm_eps);
    for (size_t i = 0; i < d; i++) x[i] = orc_rounded(x[i].v / norm * (double)w->router_scale[i] / root, 0, 0, 4);
    return orc_gamma(d, ORC_F32) / 2 + 4 * ORC_U;
}

ORC_FN void orc_logits(const orc_knobs *k, const orc_weights *w, const float *xr, size_t t, orc_num *x, orc_num *to,
                       orc_result *o) {
    size_t n = (size_t)o->n_logits, d = (size_t)k->d_model;
    double factor = w->logits_in ? 0 : orc_router_input(k, w, xr + t * d, x);
    for (size_t i = 0; i < n; i++) {
        orc_num l =
            w->logits_in ? orc_exact((double)w->logits_in[t * n + i]) : orc_dot(k, w->router + i * d, x, d, ORC_F32);
        orc_worsen(&l, fabs(l.v) * factor);
        if (w->router_bias && !w->logits_in) l = orc_add(l, orc_exact((double)w->router_bias[i]));
        if (k->router_exact) l.e = l.s = 0;
        if (k->logit_round == ORC_ROUND_BF16) l = orc_bf16_num(l);
        o->logits[t * n + i] = l.v;
        o->logits_err[t * n + i] = l.e;
        to[i] = l;
    }
}

/* R2 and the rule for NaN. */
ORC_FN void orc_cap_logits(const orc_knobs *k, orc_num *l, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (isnan(l[i].v)) l[i] = orc_exact(-ORC_INF);
        else if (isinf(l[i].v)) l[i] = orc_exact(l[i].v);
        if (k->logit_softcap > 0 && !isinf(l[i].v)) l[i] = orc_tanh_num(l[i], k->logit_softcap);
        else if (k->logit_softcap > 0) l[i].v = copysign(k->logit_softcap, l[i].v);
    }
}

/* Ids that nobody selects by score: the caller's, or the table's. NULL when they are selected. */
ORC_FN const int32_t *orc_given_ids(const orc_knobs *k, const orc_weights *w, const int32_t *token_ids, size_t t) {
    size_t top = (size_t)k->top_k;
    if (w->ids_in) return w->ids_in + t * top;
    return k->pick == ORC_PICK_TABLE ? w->table + (size_t)token_ids[t] * top : NULL;
}

/* How likely the errors of the weights are: as those of the logits, and a few roundings; under a softmax also one of
 * the distance to the largest logit. */
ORC_FN void orc_roughness(const orc_knobs *k, const orc_route *r, const int32_t *ids, size_t n, double *likely,
                          double *rough) {
    double m = orc_max(r->l, n);
    int soft = k->score == ORC_SOFTMAX || k->weight_src == ORC_W_SOFTMAX_SELECTED || k->pick == ORC_PICK_SPARSEMIXER;
    for (size_t i = 0; i < n; i++) *likely = fmax(*likely, orc_likely_of(r->l[i], 1));
    for (int j = 0; j < k->top_k; j++) {
        double far = ids[j] < 0 || !soft ? 0 : m - r->l[ids[j]].v;
        rough[j] = 4 + sqrt((double)n) + (isfinite(far) ? far : 0);
    }
}

/* R3 to R7 of one token, up to the weights before normalisation. */
ORC_FN void orc_route_token(const orc_knobs *k, const orc_weights *w, const int32_t *given, orc_route *r, size_t t,
                            orc_batch *b, orc_result *o) {
    size_t E = orc_n_routed(k), top = (size_t)k->top_k;
    int32_t *ids = o->ids + t * top;
    orc_mix m = orc_mix_at(o, b, t);
    r->gap = r->rgap = ORC_INF, r->err = r->rerr = 0;
    orc_cap_logits(k, r->l, (size_t)o->n_logits);
    orc_scores(k, r);
    orc_keys(k, w, r);
    if (given) memcpy(ids, given, top * sizeof *ids);
    else if (k->pick == ORC_PICK_SPARSEMIXER)
        for (size_t j = 0; j < top; j++) orc_sparse_step(k, w, r, ids + j, m.w + j, m.all + j), m.own[j] = m.all[j];
    else orc_pick_ids(k, w, r, ids);
    if (!given) orc_note_ranks(k, w, r, ids);
    if (given || k->pick != ORC_PICK_SPARSEMIXER) orc_gather(k, r, ids, &m);
    orc_gather_sink(k, r, &m);
    b->common[t] = m.common;
    orc_roughness(k, r, ids, (size_t)o->n_logits, b->likely + t, b->rough + t * top);
    size_t best = 0;
    for (size_t i = 1; i < (size_t)o->n_logits; i++) best = r->s[i] > r->s[best] ? i : best;
    b->top[t] = r->s[best], b->top_err[t] = r->all[best];
    memcpy(o->key + t * E, r->q, E * sizeof *r->q);
    o->margin[t] = r->gap, o->key_err[t] = r->err;
    o->rank_margin[t] = r->rgap, o->rank_err[t] = r->rerr;
}

/* R8 to R10 of one token. */
ORC_FN void orc_finish_weights(const orc_knobs *k, const orc_weights *w, size_t t, orc_batch *b, orc_result *o) {
    size_t top = (size_t)k->top_k;
    orc_mix m = orc_mix_at(o, b, t);
    orc_num *f = orc_alloc(top, sizeof *f);
    if (k->capacity_norm == ORC_CAPNORM_AFTER) orc_drop_over_capacity(k, b, o, t, &m);
    orc_normalise(k, &m);
    if (k->capacity_norm == ORC_CAPNORM_BEFORE) orc_drop_over_capacity(k, b, o, t, &m);
    for (size_t j = 0; j < top; j++) f[j].v = m.w[j], f[j].e = m.all[j], f[j].s = 0;
    if (!w->weights_in) orc_adapt(k, o, t, f, b->kept + t * top);
    for (size_t j = 0; j < top; j++) {
        int32_t id = o->ids[t * top + j];
        f[j] = orc_scale(f[j], k->routed_scale);
        if (w->per_expert_scale && id >= 0 && id < k->n_expert)
            f[j] = orc_scale(f[j], (double)w->per_expert_scale[id]);
        if (w->weights_in) f[j] = orc_exact((double)w->weights_in[t * top + j]);
        if (id < 0 || (k->capacity && !w->weights_in && f[j].v == 0)) b->kept[t * top + j] = 0;
        if (!b->kept[t * top + j]) f[j] = orc_exact(0);
    }
    for (size_t j = 0; j < top; j++) {
        o->weights[t * top + j] = f[j].v;
        o->weights_err[t * top + j] = isnan(f[j].e) ? ORC_INF : f[j].e;
    }
    for (size_t j = 0; j < m.n - m.k; j++) {
        orc_num s = {m.w[m.k + j], m.all[m.k + j], 0};
        s = orc_scale(s, k->routed_scale);
        o->sink[t * (m.n - m.k) + j] = s.v, o->sink_err[t * (m.n - m.k) + j] = s.e;
    }
    free(f);
}

ORC_FN void orc_route_all(const orc_knobs *k, const orc_weights *w, const float *xr, const int32_t *token_ids,
                          orc_batch *b, orc_result *o) {
    size_t n = (size_t)o->n_logits, E = orc_n_routed(k);
    orc_num *x = orc_alloc((size_t)k->d_model, sizeof *x);
    orc_route r = {0};
    r.l = orc_alloc(n, sizeof *r.l);
    r.s = orc_alloc(3 * n + 2 * E, sizeof *r.s);
    r.own = r.s + n, r.all = r.s + 2 * n, r.q = r.s + 3 * n, r.qe = r.q + E;
    r.taken = orc_alloc(E, sizeof *r.taken);
    for (size_t t = 0; t < o->T; t++) {
        orc_logits(k, w, xr, t, x, r.l, o);
        orc_route_token(k, w, orc_given_ids(k, w, token_ids, t), &r, t, b, o);
    }
    if (k->capacity && !w->weights_in) orc_capacity(k, b, o);
    for (size_t t = 0; t < o->T; t++) orc_finish_weights(k, w, t, b, o);
    free(x);
    free(r.l);
    free(r.s);
    free(r.taken);
}

/* ---- experts and the sum --------------------------------------------------------------------------------------- */

/* A sum of terms, in any order: its value and error, and the size of the terms, which the roundings go by. */
typedef struct orc_sum {
    orc_num *s;
    double *size;
    size_t n;
} orc_sum;

ORC_FN orc_sum orc_sum_new(size_t n) {
    orc_sum a = {orc_alloc(n, sizeof *a.s), orc_alloc(n, sizeof *a.size), n};
    return a;
}

ORC_FN void orc_sum_free(orc_sum *a) {
    free(a->s);
    free(a->size);
}

/* The product is part of an FMA: not rounded. */
ORC_FN void orc_sum_add(orc_sum *a, size_t i, orc_num y, orc_num w) {
    orc_num p = orc_product(y, w), *s = a->s + i;
    s->v += p.v;
    s->e += p.e;
    s->s = orc_rss(s->s, p.s);
    a->size[i] += fabs(p.v) + p.e;
}

ORC_FN void orc_sum_scale(orc_sum *a, double c) {
    for (size_t i = 0; i < a->n; i++) a->s[i] = orc_scale(a->s[i], c), a->size[i] *= fabs(c);
}

/* n roundings of partial sums. */
ORC_FN void orc_sum_round(orc_sum *a, double n) {
    for (size_t i = 0; i < a->n; i++) {
        if (!(a->size[i] > 0)) continue;
        a->s[i].e += n * ORC_U * a->size[i] + ORC_TINY;
        a->s[i].s = orc_rss(a->s[i].s, sqrt(n) * orc_even(ORC_U * a->size[i]) + ORC_TINY);
    }
}

/* Room for one token's work. */
typedef struct orc_work {
    orc_num *x, *xs, *h, *hp, *mid, *y; /* input; for shared experts; expert input; prepared; hidden units; output */
    orc_sum routed, total;              /* [dl], [d] */
} orc_work;

ORC_FN orc_work orc_work_new(const orc_knobs *k) {
    size_t d = (size_t)k->d_model, dl = orc_width(k), big = d > dl ? d : dl;
    size_t ff = (size_t)(k->d_ff > k->d_ff_shared ? k->d_ff : k->d_ff_shared);
    orc_work a = {orc_alloc(d, sizeof *a.x),
                  orc_alloc(d, sizeof *a.x),
                  orc_alloc(dl, sizeof *a.x),
                  orc_alloc(dl, sizeof *a.x),
                  orc_alloc(ff, sizeof *a.x),
                  orc_alloc(big, sizeof *a.x),
                  orc_sum_new(dl),
                  orc_sum_new(d)};
    return a;
}

ORC_FN void orc_work_free(orc_work *a) {
    free(a->x);
    free(a->xs);
    free(a->h);
    free(a->hp);
    free(a->mid);
    free(a->y);
    orc_sum_free(&a->routed);
    orc_sum_free(&a->total);
}

ORC_FN void orc_copy(orc_num *to, const orc_num *from, size_t n) { memcpy(to, from, n * sizeof *to); }

/* x as each matrix reads it: through lat_in, and rounded to each compute's type. */
ORC_FN void orc_inputs(const orc_knobs *k, const orc_weights *w, const float *x, orc_work *a) {
    size_t d = (size_t)k->d_model, dl = orc_width(k);
    orc_load(x, d, a->x);
    orc_copy(a->xs, a->x, d);
    if (k->d_latent) {
        orc_prepare(k->compute_latent_in, a->xs, d);
        orc_matvec(k, w->lat_in, a->xs, dl, d, k->compute_latent_in, a->h);
        orc_copy(a->xs, a->x, d);
    } else {
        orc_copy(a->h, a->x, d);
    }
    orc_copy(a->hp, a->h, dl);
    orc_prepare(k->compute_up, a->hp, dl);
    orc_prepare(k->compute_shared_up, a->xs, d);
}

ORC_FN void orc_add_slot(const orc_knobs *k, const orc_weights *w, int32_t id, orc_num weight, orc_work *a) {
    size_t dl = orc_width(k);
    int zero = id >= k->n_expert;
    if (zero && k->zero_kind == ORC_ZERO_ZERO) return;
    if (!zero) {
        orc_ffn f = orc_expert(k, w, (size_t)id);
        orc_ffn_run(k, &f, a->hp, weight, k->weight_pos, a->mid, a->y);
    }
    for (size_t i = 0; i < dl; i++) {
        if (zero) orc_sum_add(&a->routed, i, a->h[i], weight);
        else orc_sum_add(&a->routed, i, a->y[i], k->weight_pos == ORC_POS_OUTPUT ? weight : orc_exact(1));
    }
}

/* A weight with its likely error. */
ORC_FN orc_num orc_weight(double v, double e, double likely, double rough) {
    orc_num w = {v, e, 0};
    if (e > 0) w.s = fmin(e, orc_rss(likely * e, rough * ORC_U * fabs(v)));
    return w;
}

/* sum of w_e y_e. The expert of a dropped choice does not run: no bias of it may show. */
ORC_FN void orc_routed(const orc_knobs *k, const orc_weights *w, const orc_result *o, const orc_batch *b, size_t t,
                       orc_work *a) {
    for (size_t j = 0; j < (size_t)o->k; j++) {
        size_t at = t * (size_t)o->k + j;
        orc_num weight = orc_weight(o->weights[at], o->weights_err[at], b->likely[t], b->rough[at]);
        orc_num passed = orc_weight(b->passed[at].v, b->passed[at].e, b->likely[t], b->rough[at]);
        if (k->capacity_drop == ORC_DROP_PASS_THROUGH && passed.v != 0)
            for (size_t i = 0; i < orc_width(k); i++) orc_sum_add(&a->routed, i, a->h[i], passed);
        if (b->kept[at]) orc_add_slot(k, w, o->ids[at], weight, a);
    }
    orc_sum_scale(&a->routed, k->expert_out_scale);
}

/* From the routed sum to the width of the model. */
ORC_FN void orc_project(const orc_knobs *k, const orc_weights *w, orc_work *a) {
    size_t d = (size_t)k->d_model, dl = orc_width(k);
    orc_num *r = a->routed.s;
    if (k->latent_norm_eps > 0 || k->d_latent) orc_sum_round(&a->routed, k->top_k + 2);
    if (k->latent_norm_eps > 0) {
        orc_rms(r, dl, k->latent_norm_eps);
        for (size_t i = 0; i < dl; i++) r[i] = orc_mul(r[i], orc_exact((double)w->lat_norm[i]));
    }
    if (k->d_latent) orc_prepare(k->compute_latent_out, r, dl);
    for (size_t i = 0; i < d; i++) {
        a->total.s[i] = k->d_latent ? orc_dot(k, w->lat_out + i * dl, r, dl, k->compute_latent_out) : r[i];
        a->total.size[i] = fabs(a->total.s[i].v);
        if (!k->d_latent && !(k->latent_norm_eps > 0)) a->total.size[i] = a->routed.size[i];
    }
}

/* Weights of the routed (c[0]) and the shared (c[1]) branch. */
ORC_FN void orc_branch_weights(const orc_knobs *k, const orc_weights *w, const orc_num *x, orc_num *c) {
    size_t d = (size_t)k->d_model;
    orc_num g[2];
    double s[2], own[2], all[2];
    c[0] = c[1] = orc_exact(1);
    if (k->shared_gate == ORC_GATE_SIGMOID_DOT) c[1] = orc_sigmoid_num(orc_dot(k, w->sgate, x, d, ORC_F32));
    if (k->shared_gate != ORC_GATE_SOFTMAX2) return;
    orc_matvec(k, w->sgate, x, 2, d, ORC_F32, g);
    for (int i = 0; i < 2; i++) g[i] = orc_add(g[i], orc_exact(w->sgate_bias ? (double)w->sgate_bias[i] : 0.0));
    orc_softmax(g, 2, s, own, all);
    for (int i = 0; i < 2; i++) c[i].v = s[i], c[i].e = all[i];
    for (int i = 0; i < 2; i++) c[i].s = all[i] * fmax(orc_likely_of(g[0], 1), orc_likely_of(g[1], 1)) + 4 * ORC_U;
}

/* Adds the shared experts to the total; SOFTMAX2 weighs what is already there as well. */
ORC_FN void orc_add_shared(const orc_knobs *k, const orc_weights *w, const orc_result *o, const orc_batch *b,
                           size_t t, orc_work *a) {
    size_t d = (size_t)k->d_model, sink = (size_t)o->n_sink;
    orc_num c[2];
    orc_branch_weights(k, w, a->x, c);
    for (size_t i = 0; i < d && k->shared_gate == ORC_GATE_SOFTMAX2; i++)
        a->total.s[i] = orc_mul(a->total.s[i], c[0]), a->total.size[i] *= c[0].v;
    for (size_t j = 0; j < (sink ? sink : 1); j++) {
        orc_ffn f = orc_shared(k, w, j);
        if (sink)
            c[1] = orc_weight(o->sink[t * sink + j], o->sink_err[t * sink + j], b->likely[t],
                              b->rough[t * (size_t)k->top_k]);
        orc_ffn_run(k, &f, a->xs, orc_exact(1), ORC_POS_OUTPUT, a->mid, a->y);
        for (size_t i = 0; i < d; i++) orc_sum_add(&a->total, i, a->y[i], c[1]);
    }
}

ORC_FN void orc_output_token(const orc_knobs *k, const orc_weights *w, const float *x, const orc_batch *b, size_t t,
                             orc_work *a, orc_result *o) {
    size_t d = (size_t)k->d_model, dl = orc_width(k);
    memset(a->routed.s, 0, dl * sizeof *a->routed.s);
    memset(a->routed.size, 0, dl * sizeof *a->routed.size);
    orc_inputs(k, w, x + t * d, a);
    orc_routed(k, w, o, b, t, a);
    orc_project(k, w, a);
    if (w->sw1) orc_add_shared(k, w, o, b, t, a);
    orc_sum_scale(&a->total, k->combine_scale);
    for (size_t i = 0; i < d; i++) {
        if (w->out_bias) orc_sum_add(&a->total, i, orc_exact((double)w->out_bias[i]), orc_exact(1));
        if (w->y_in) orc_sum_add(&a->total, i, orc_exact((double)w->y_in[t * d + i]), orc_exact(1));
    }
    orc_sum_round(&a->total, k->top_k + o->n_sink + 5);
    for (size_t i = 0; i < d; i++) {
        double e = a->total.s[i].e;
        o->output[t * d + i] = a->total.s[i].v;
        o->bound[t * d + i] = isnan(e) ? ORC_INF : e;
        o->sigma[t * d + i] = isnan(e) || isnan(a->total.s[i].s) ? ORC_INF : fmin(a->total.s[i].s, e);
    }
}

/* ---- interface ------------------------------------------------------------------------------------------------- */

ORC_FN orc_knobs orc_defaults(void) {
    orc_knobs k;
    memset(&k, 0, sizeof k);
    k.router_norm_eps = 1e-6;
    k.n_group = k.topk_group = 1;
    k.jitter = 0.01;
    k.routed_scale = k.combine_scale = k.expert_out_scale = 1;
    k.act_alpha = 1.702, k.act_beta = 4, k.act_lin_beta = 25;
    k.gated = 1;
    return k;
}

/* Every compute of the expert matrices at once. */
ORC_FN void orc_set_compute(orc_knobs *k, orc_compute c) {
    k->compute_up = k->compute_down = k->compute_shared_up = k->compute_shared_down = c;
    k->compute_latent_in = k->compute_latent_out = c;
}

ORC_FN void orc_result_new(const orc_knobs *k, size_t T, orc_result *o) {
    size_t d = (size_t)k->d_model, top = (size_t)k->top_k, E = orc_n_routed(k), S = orc_n_sink(k), n = E + S;
    memset(o, 0, sizeof *o);
    o->T = T, o->d = k->d_model, o->k = k->top_k, o->n_logits = (int)n, o->n_sink = (int)S;
    o->logits = orc_alloc(T * n, sizeof(double)), o->logits_err = orc_alloc(T * n, sizeof(double));
    o->key = orc_alloc(T * E, sizeof(double));
    o->ids = orc_alloc(T * top, sizeof(int32_t));
    o->weights = orc_alloc(T * top, sizeof(double)), o->weights_err = orc_alloc(T * top, sizeof(double));
    o->sink = orc_alloc(T * S, sizeof(double)), o->sink_err = orc_alloc(T * S, sizeof(double));
    o->output = orc_alloc(T * d, sizeof(double)), o->bound = orc_alloc(T * d, sizeof(double));
    o->sigma = orc_alloc(T * d, sizeof(double));
    o->margin = orc_alloc(T, sizeof(double)), o->key_err = orc_alloc(T, sizeof(double));
    o->rank_margin = orc_alloc(T, sizeof(double)), o->rank_err = orc_alloc(T, sizeof(double));
}

ORC_FN void orc_free(orc_result *r) {
    free(r->logits), free(r->logits_err), free(r->key), free(r->ids), free(r->weights), free(r->weights_err);
    free(r->sink), free(r->sink_err), free(r->output), free(r->bound), free(r->sigma);
    free(r->margin), free(r->key_err), free(r->rank_margin), free(r->rank_err);
    memset(r, 0, sizeof *r);
}

ORC_FN orc_batch orc_batch_new(const orc_result *o) {
    size_t T = o->T, top = (size_t)o->k, n = top + (size_t)o->n_sink;
    orc_batch b;
    b.top = orc_alloc(T, sizeof *b.top), b.top_err = orc_alloc(T, sizeof *b.top_err);
    b.mix = orc_alloc(T * 3 * n, sizeof *b.mix), b.common = orc_alloc(T, sizeof *b.common);
    b.likely = orc_alloc(T, sizeof *b.likely), b.rough = orc_alloc(T * top, sizeof *b.rough);
    b.passed = orc_alloc(T * top, sizeof *b.passed), b.kept = orc_alloc(T * top, sizeof *b.kept);
    for (size_t i = 0; i < T * top; i++) b.kept[i] = 1;
    return b;
}

ORC_FN void orc_batch_free(orc_batch *b) {
    free(b->top), free(b->top_err), free(b->mix), free(b->common), free(b->likely), free(b->rough), free(b->passed),
        free(b->kept);
}

/* Routing alone: all of *out but output and bound. x is the router's input; with w->logits_in it may be NULL. */
ORC_FN void orc_route_only(const orc_knobs *k, const orc_weights *w, const float *xr, const int32_t *token_ids,
                           size_t T, orc_result *out) {
    orc_result_new(k, T, out);
    orc_batch b = orc_batch_new(out);
    orc_route_all(k, w, xr, token_ids, &b, out);
    orc_batch_free(&b);
}

/* The whole block. xr: NULL when the router reads x. token_ids: only for ORC_PICK_TABLE. */
ORC_FN void orc_forward(const orc_knobs *k, const orc_weights *w, const float *x, const float *xr,
                        const int32_t *token_ids, size_t T, orc_result *out) {
    orc_result_new(k, T, out);
    orc_batch b = orc_batch_new(out);
    orc_work a = orc_work_new(k);
    orc_route_all(k, w, xr ? xr : x, token_ids, &b, out);
    for (size_t t = 0; t < T; t++) orc_output_token(k, w, x, &b, t, &a, out);
    orc_work_free(&a);
    orc_batch_free(&b);
}

/* Certain: no right implementation is further off than this. An infinite bound promises nothing. */
ORC_FN int orc_within(const orc_result *r, size_t i, double got) {
    if (isinf(r->bound[i])) return 1;
    return fabs(got - r->output[i]) <= r->bound[i] * (1 + 1e-8);
}

/* Sharper, for weights and inputs without structure: the bound of a long sum supposes that all roundings conspire,
 * which they do not; ORC_SIGMAS times their likely size is not reached by chance. */
#define ORC_SIGMAS 8
ORC_FN int orc_plausible(const orc_result *r, size_t i, double got) {
    return orc_within(r, i, got) && (isinf(r->sigma[i]) || fabs(got - r->output[i]) <= ORC_SIGMAS * r->sigma[i]);
}

/* Token t selects the same experts whatever the roundings. */
ORC_FN int orc_safe(const orc_result *r, size_t t) { return r->margin[t] > r->key_err[t]; }

#endif
