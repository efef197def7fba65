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
 *   R9  w *= routed_scale * per_expert_scale[id]
 *   R10 capacity (before or after R8), then drop_below and top_p: dropped choices keep their id with weight 0
 *   E   y_e = W2(act(W1 h + b1) * (W3 h + b3)) + b2; h = x, or lat_in x, or w_e * h (weight_pos INPUT)
 *       ids >= n_expert are zero experts: y_e = h or 0
 *   C   r = expert_out_scale * sum w_e y_e; optional RMS norm, lat_out; y = combine_scale * (r + shared) + out_bias
 *
 * THE BOUND is a running error bound (each number carries |computed - exact| <= e through the whole pipeline), valid for
 * an implementation that, with u = 2^-24:
 *   - sums dot products of length K in 16 interleaved FMA chains and a tree: ceil(K/16)+6 roundings;
 *   - has exp within 2 ULP; sigmoid, silu, gelu, tanh and log1p within a few roundings of the exact function;
 *   - combines experts by FMA in any order; does the router, the scores, the norms and the gates in F32;
 *   - for BF16 rounds x and h to bf16 (2^-8 relative), for Q8 to blocks of 32 with one scale amax/127.
 * Numbers may be flushed to zero below 2^-126. A bound of infinity says that nothing is promised (0/0, NaN inputs).
 * Give the knobs as the floats that the implementation sees: (double)2.827f, not 2.827.
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
typedef enum {
    ORC_SILU, ORC_GELU_TANH, ORC_GELU_ERF, ORC_RELU, ORC_RELU2, ORC_OAI, ORC_SITU
} orc_act;
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
    double top_p;      /* keep the shortest prefix of ranks with sum |w| >= top_p * total; 0: off */
    int min_keep;      /* ranks below this are never dropped by the two above */
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
    orc_clamp shared_clamp; /* not used with ROUTER_SINK, as in moe_ref */
    double shared_limit;
    double combine_scale, expert_out_scale;
    int capacity; /* places per expert; 0: no limit */
    orc_drop capacity_drop;
    orc_prio capacity_priority;
    orc_capnorm capacity_norm;

    /* What the implementation under test does; none of these changes an exact result but key_f32. */
    orc_compute compute_up, compute_down;               /* routed experts: W1 and W3, W2 */
    orc_compute compute_shared_up, compute_shared_down; /* shared experts */
    orc_compute compute_latent;                         /* lat_in and lat_out */
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
    const float *per_expert_scale; /* [E+Z] */
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
    const float *y_in;             /* [T][d] y before the call, when results are added to it */
    const float *logits_in;        /* [T][E+Z+S] instead of the router matrix and bias */
    const int32_t *ids_in;         /* [T][k] chosen by the caller; -1 skips the slot */
    const float *weights_in;       /* [T][k] final weights chosen by the caller (with ids_in) */
} orc_weights;

/* Allocated by orc_forward, released by orc_free. *_err and bound are bounds on |float32 result - exact|. */
typedef struct orc_result {
    size_t T;
    int d, k, n_logits, n_sink;
    double *logits, *logits_err;   /* [T][n_logits] after bias and logit_round, before softcap */
    double *key;                   /* [T][E+Z] selection keys after masking; sparsemixer: logits */
    int32_t *ids;                  /* [T][k] in rank order */
    double *weights, *weights_err; /* [T][k] final */
    double *sink, *sink_err;       /* [T][n_sink] weights of router-weighted shared experts */
    double *output, *bound;        /* [T][d] */
    double *margin, *key_err;      /* [T] the decision nearest to flipping: its gap, and the error of that gap */
    double *rank_margin, *rank_err; /* [T] the same for the order among the selected */
} orc_result;

static orc_knobs orc_defaults(void);
static void orc_forward(const orc_knobs *k, const orc_weights *w, const float *x, const float *xr,
                        const int32_t *token_ids, size_t T, orc_result *out);
static void orc_free(orc_result *r);

/* Every compute of the expert matrices at once. */
static void orc_set_compute(orc_knobs *k, orc_compute c);

#endif
