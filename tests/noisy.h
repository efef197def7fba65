/* noisy.h - the block of oracle.h once more, as a float32 implementation with chosen rounding errors.
 *
 * Tests of the bound need implementations that are right but as inaccurate as the contract allows. This one computes
 * in double and pushes every result off by up to the roundoff u of float32: to the nearest float, by noise, to either
 * end of the interval, or always up. It is written apart from the oracle and organised differently (ranks by
 * counting, plain double arrays), so that a slip in one of them shows as a difference.
 */
#ifndef NOISY_H
#define NOISY_H

#include "oracle.h"

#define NZ_FN static inline

typedef enum { NZ_NEAREST, NZ_NOISE, NZ_ENDS, NZ_UP, NZ_MODES } nz_mode;

/* What a deliberately wrong implementation does; tests that the bound catches it. */
typedef enum {
    NZ_RIGHT,
    NZ_SKIP_LAST_K,
    NZ_SWAP_GATE_UP,
    NZ_SKIP_LAST_SLOT,
    NZ_TANH_FOR_ERF,
    NZ_BIAS_IN_WEIGHT,
    NZ_HALF,
    NZ_BUGS
} nz_bug;

typedef struct nz {
    const orc_knobs *k;
    const orc_weights *w;
    nz_mode mode;
    nz_bug bug;
    uint64_t seed;
    size_t T, d, dl, E, S, top; /* E: experts and zero experts, S: the sink's rows */
} nz;

typedef struct nz_result {
    double *logits, *weights, *sink, *output; /* as in orc_result */
    int32_t *ids;
} nz_result;

/* ---- rounding -------------------------------------------------------------------------------------------------- */

NZ_FN uint64_t nz_next(uint64_t *s) {
    *s ^= *s << 13;
    *s ^= *s >> 7;
    *s ^= *s << 17;
    return *s;
}

/* Uniform in [-1, 1). */
NZ_FN double nz_unit(uint64_t *s) { return (double)(nz_next(s) >> 11) * (1.0 / 4503599627370496.0) - 1.0; }

/* Noise in [-1, 1) that depends on the value alone: like real code, equal inputs give equal results. */
NZ_FN double nz_hash(const nz *z, double v) {
    uint64_t h;
    memcpy(&h, &v, sizeof h);
    h = (h ^ z->seed) * 0x9e3779b97f4a7c15u;
    h = (h ^ (h >> 29)) * 0xbf58476d1ce4e5b9u;
    return (double)((h ^ (h >> 32)) >> 11) * (1.0 / 4503599627370496.0) - 1.0;
}

/* Relative error of a rounding of v in units of its largest. What float32 holds exactly stays exact. */
NZ_FN double nz_push(const nz *z, double v) {
    if (v == (double)(float)v) return 0;
    if (z->mode == NZ_NOISE) return nz_hash(z, v);
    if (z->mode == NZ_ENDS) return nz_hash(z, v) < 0 ? -1 : 1;
    return z->mode == NZ_UP ? 1 : 0;
}

/* One float32 rounding. */
NZ_FN double nz_r(const nz *z, double v) {
    if (z->bug == NZ_HALF) return v * (1 + 8192 * ORC_U * nz_hash(z, v));
    return z->mode == NZ_NEAREST ? (double)(float)v : v * (1 + ORC_U * nz_push(z, v));
}

/* A function that is right to n roundings. */
NZ_FN double nz_f(const nz *z, double v, double n) {
    double off = z->mode == NZ_NEAREST && v != (double)(float)v ? (n - 1) * nz_hash(z, v) : n * nz_push(z, v);
    v *= 1 + ORC_U * off;
    return z->mode == NZ_NEAREST ? (double)(float)v : v;
}

/* Flips between two ways to compute the same. */
NZ_FN int nz_coin(nz *z) { return (int)(nz_next(&z->seed) >> 63); }

NZ_FN double nz_exp(nz *z, double x) { return nz_f(z, exp(x), 4); }
NZ_FN double nz_sigmoid(nz *z, double x) { return nz_r(z, 1 / nz_r(z, 1 + nz_exp(z, -x))); }
NZ_FN double nz_tanh(nz *z, double x) { return nz_f(z, tanh(x), 4); }

/* c * tanh(x / c) */
NZ_FN double nz_cap(nz *z, double x, double c) { return nz_r(z, c * nz_tanh(z, nz_r(z, x / c))); }

/* ---- sums ------------------------------------------------------------------------------------------------------ */

/* Sixteen chains by k mod 16 and a tree. */
NZ_FN double nz_dot_f32(nz *z, const double *w, const double *x, size_t K) {
    double acc[16] = {0};
    for (size_t i = 0; i < K; i++) acc[i % 16] = nz_r(z, acc[i % 16] + w[i] * x[i]);
    for (size_t n = 8; n; n /= 2)
        for (size_t i = 0; i < n; i++) acc[i] = nz_r(z, acc[i] + acc[i + n]);
    return acc[0];
}

/* Eight chains by block mod 8; a block's sum of products is exact. */
NZ_FN double nz_dot_q8(nz *z, const double *w, const double *x, size_t K) {
    double acc[8] = {0};
    for (size_t b = 0; b * 32 < K; b++) {
        double sum = 0;
        for (size_t i = b * 32; i < K && i < b * 32 + 32; i++) sum += w[i] * x[i];
        acc[b % 8] = nz_r(z, acc[b % 8] + nz_r(z, sum));
    }
    for (size_t n = 4; n; n /= 2)
        for (size_t i = 0; i < n; i++) acc[i] = nz_r(z, acc[i] + acc[i + n]);
    return acc[0];
}

/* Row r of a matrix with K columns times x. */
NZ_FN double nz_row(nz *z, const float *W, size_t r, const double *x, size_t K, orc_compute c) {
    double w[512], v;
    int rounds = c != ORC_F32 && z->k->w_rel > 0;
    for (size_t i = 0; i < K; i++) {
        w[i] = (double)W[r * K + i];
        if (rounds) w[i] = orc_bf16(w[i]);
    }
    if (z->bug == NZ_SKIP_LAST_K) K--;
    v = c == ORC_Q8 ? nz_dot_q8(z, w, x, K) : nz_dot_f32(z, w, x, K);
    return v;
}

/* x as the compute reads it: to is x itself, bf16, or q * d with one d for 32 values. */
NZ_FN void nz_prepare(nz *z, orc_compute c, const double *x, double *to, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = c == ORC_BF16 ? orc_bf16(x[i]) : x[i];
    if (c != ORC_Q8) return;
    for (size_t b = 0; b < n; b += 32) {
        size_t end = n < b + 32 ? n : b + 32;
        double amax = 0;
        for (size_t i = b; i < end; i++) amax = fmax(amax, fabs(x[i]));
        if (amax == 0) continue;
        double step = nz_r(z, amax / 127), inv = nz_r(z, 127 / amax);
        for (size_t i = b; i < end; i++) to[i] = step * nearbyint(nz_r(z, x[i] * inv));
    }
}

NZ_FN void nz_rms(nz *z, double *x, size_t n, double eps) {
    double one[512];
    for (size_t i = 0; i < n; i++) one[i] = x[i];
    double ss = nz_dot_f32(z, one, x, n), norm = nz_r(z, sqrt(nz_r(z, nz_r(z, ss / (double)n) + eps)));
    if (nz_coin(z))
        for (size_t i = 0; i < n; i++) x[i] = nz_r(z, x[i] / norm);
    else {
        double inv = nz_r(z, 1 / norm);
        for (size_t i = 0; i < n; i++) x[i] = nz_r(z, x[i] * inv);
    }
}

/* ---- activation ------------------------------------------------------------------------------------------------ */

NZ_FN double nz_gelu_tanh(nz *z, double g) {
    double cube = nz_r(z, 0.044715 * nz_r(z, nz_r(z, g * g) * g));
    double arg = nz_r(z, 1.5957691216057308 * nz_r(z, g + cube));
    if (nz_coin(z)) return nz_r(z, g * nz_sigmoid(z, arg));
    return nz_r(z, nz_r(z, 0.5 * g) * nz_r(z, 1 + nz_tanh(z, arg / 2)));
}

NZ_FN double nz_gelu_erf(nz *z, double g) {
    double arg = nz_r(z, g * 0.70710678118654752440);
    if (nz_coin(z)) return nz_r(z, 0.5 * g * nz_f(z, erfc(-arg), 4));
    return nz_r(z, 0.5 * g * nz_r(z, 1 + nz_f(z, erf(arg), 2)));
}

NZ_FN double nz_act(nz *z, double g) {
    const orc_knobs *k = z->k;
    switch (k->act) {
    case ORC_SILU: return nz_coin(z) ? nz_r(z, g * nz_sigmoid(z, g)) : nz_r(z, g / nz_r(z, 1 + nz_exp(z, -g)));
    case ORC_GELU_TANH: return nz_gelu_tanh(z, g);
    case ORC_GELU_ERF: return z->bug == NZ_TANH_FOR_ERF ? nz_gelu_tanh(z, g) : nz_gelu_erf(z, g);
    case ORC_RELU: return fmax(g, 0);
    case ORC_RELU2: return nz_r(z, fmax(g, 0) * fmax(g, 0));
    case ORC_OAI: return nz_r(z, g * nz_sigmoid(z, nz_r(z, k->act_alpha * g)));
    case ORC_SITU: return nz_r(z, nz_cap(z, g, k->act_beta) * nz_sigmoid(z, g));
    }
    return 0;
}

NZ_FN double nz_glu(nz *z, double g, double u, orc_clamp clamp, double limit) {
    if (!z->k->gated) return nz_act(z, g);
    if (limit > 0 && clamp == ORC_CLAMP_PRE) g = fmin(g, limit);
    double a = nz_act(z, g);
    if (limit > 0 && clamp == ORC_CLAMP_POST) a = fmin(a, limit);
    if (limit > 0 && clamp != ORC_CLAMP_NONE) u = fmax(-limit, fmin(u, limit));
    if (z->k->act == ORC_OAI) u = nz_r(z, u + 1);
    if (z->k->act == ORC_SITU) u = nz_cap(z, u, z->k->act_lin_beta);
    return nz_r(z, a * u);
}

/* ---- feed-forward ---------------------------------------------------------------------------------------------- */

/* in: scales the sums; mid: scales the hidden units. */
NZ_FN void nz_ffn(nz *z, const orc_ffn *f, const double *x, double in, double mid, double *y) {
    double xp[512], h[512], hp[512];
    const float *w1 = f->w1, *w3 = f->w3;
    if (z->bug == NZ_SWAP_GATE_UP && z->k->gated) w1 = f->w3, w3 = f->w1;
    nz_prepare(z, f->up, x, xp, f->d);
    for (size_t r = 0; r < f->ff; r++) {
        double g = nz_row(z, w1, r, xp, f->d, f->up), u = z->k->gated ? nz_row(z, w3, r, xp, f->d, f->up) : 0;
        if (in != 1) g = nz_r(z, g * in), u = nz_r(z, u * in);
        if (f->b1) g = nz_r(z, g + (double)f->b1[r]);
        if (f->b3) u = nz_r(z, u + (double)f->b3[r]);
        h[r] = nz_glu(z, g, u, f->clamp, f->limit);
        if (mid != 1) h[r] = nz_r(z, h[r] * mid);
    }
    nz_prepare(z, f->down, h, hp, f->ff);
    for (size_t i = 0; i < f->d; i++) {
        y[i] = nz_row(z, f->w2, i, hp, f->ff, f->down);
        if (f->b2) y[i] = nz_r(z, y[i] + (double)f->b2[i]);
    }
}

/* ---- routing --------------------------------------------------------------------------------------------------- */

NZ_FN void nz_logits(nz *z, const float *xr, double *l) {
    double x[512];
    const orc_knobs *k = z->k;
    for (size_t i = 0; i < z->d; i++) x[i] = (double)xr[i];
    if (k->router_norm == ORC_RNORM_RMS_SCALE) {
        nz_rms(z, x, z->d, k->router_norm_eps);
        double root = nz_r(z, 1 / sqrt((double)z->d));
        for (size_t i = 0; i < z->d; i++) x[i] = nz_r(z, nz_r(z, x[i] * (double)z->w->router_scale[i]) * root);
    }
    for (size_t i = 0; i < z->E + z->S; i++) {
        l[i] = nz_row(z, z->w->router, i, x, z->d, ORC_F32);
        if (z->w->router_bias) l[i] = nz_r(z, l[i] + (double)z->w->router_bias[i]);
        if (k->logit_round == ORC_ROUND_BF16) l[i] = orc_bf16(l[i]);
    }
}

NZ_FN void nz_softmax(nz *z, const double *l, size_t n, double *s) {
    double m = -HUGE_VAL, sum = 0;
    for (size_t i = 0; i < n; i++) m = fmax(m, l[i]);
    for (size_t i = 0; i < n; i++) {
        s[i] = l[i] == -HUGE_VAL ? 0 : nz_exp(z, nz_r(z, l[i] - m));
        sum = nz_r(z, sum + s[i]);
    }
    double inv = nz_r(z, 1 / sum);
    int divides = nz_coin(z);
    for (size_t i = 0; i < n; i++) s[i] = nz_r(z, divides ? s[i] / sum : s[i] * inv);
}

NZ_FN void nz_scores(nz *z, const double *l, double *s) {
    size_t n = z->E + z->S;
    double both[512];
    if (z->k->score == ORC_SOFTMAX) {
        nz_softmax(z, l, n, both);
        nz_softmax(z, l, z->E, s);
        for (size_t i = z->E; i < n; i++) s[i] = both[i];
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (z->k->score == ORC_SIGMOID) s[i] = nz_sigmoid(z, l[i]);
        else s[i] = nz_r(z, sqrt(nz_r(z, fmax(l[i], 0) + nz_f(z, log1p(nz_exp(z, -fabs(l[i]))), 4))));
    }
}

/* Place of value i in descending order, equal ones by index. */
NZ_FN size_t nz_rank(const double *v, size_t n, size_t i) {
    size_t r = 0;
    for (size_t j = 0; j < n; j++) r += v[j] > v[i] || (v[j] == v[i] && j < i);
    return r;
}

/* Masks the keys of all but the best groups. */
NZ_FN void nz_groups(nz *z, double *q) {
    double score[64];
    size_t G = (size_t)z->k->n_group, n = z->E / G;
    for (size_t g = 0; g < G; g++) {
        double first = -HUGE_VAL, second = -HUGE_VAL;
        for (size_t i = 0; i < n; i++) {
            if (nz_rank(q + g * n, n, i) == 0) first = q[g * n + i];
            if (nz_rank(q + g * n, n, i) == 1) second = q[g * n + i];
        }
        score[g] = z->k->group == ORC_GROUP_LIMIT_MAX || n == 1 ? first : nz_r(z, first + second);
    }
    for (size_t i = 0; i < z->E; i++)
        if (nz_rank(score, G, i / n) >= (size_t)z->k->topk_group) q[i] = z->k->group_mask ? 0 : -HUGE_VAL;
}

NZ_FN void nz_select(nz *z, double *q, int32_t *ids) {
    size_t G = z->k->group == ORC_GROUP_PER_GROUP ? (size_t)z->k->n_group : 1, n = z->E / G, each = z->top / G;
    if (z->k->group == ORC_GROUP_LIMIT_MAX || z->k->group == ORC_GROUP_LIMIT_TOP2SUM) nz_groups(z, q);
    for (size_t i = 0; i < z->E; i++) {
        size_t g = i / n, r = nz_rank(q + g * n, n, i % n);
        if (r < each) ids[g * each + r] = (int32_t)i;
    }
}

/* Two choices, each weighted by the softmax over the logits within 2 * jitter of it. */
NZ_FN void nz_sparsemixer(nz *z, const double *l, int32_t *ids, double *w) {
    double left[512], s[512];
    int32_t first = -1;
    for (size_t j = 0; j < 2; j++) {
        for (size_t i = 0; i < z->E; i++)
            if (nz_rank(l, z->E, i) == j) ids[j] = (int32_t)i;
        double t = l[ids[j]];
        for (size_t i = 0; i < z->E; i++) {
            double far = nz_r(z, nz_r(z, t - l[i]) / fmax(fabs(l[i]), t));
            left[i] = (int32_t)i == first || far > 2 * z->k->jitter ? -HUGE_VAL : l[i];
        }
        nz_softmax(z, left, z->E, s);
        w[j] = s[ids[j]];
        first = ids[0];
    }
}

NZ_FN void nz_gather(nz *z, const double *l, const double *s, const double *q, const int32_t *ids, double *w) {
    double sel[512];
    int biased = z->k->weight_src == ORC_W_BIASED || z->bug == NZ_BIAS_IN_WEIGHT;
    for (size_t j = 0; j < z->top; j++) {
        w[j] = biased ? q[ids[j]] : s[ids[j]];
        sel[j] = l[ids[j]];
    }
    if (z->k->weight_src == ORC_W_SOFTMAX_SELECTED) nz_softmax(z, sel, z->top, w);
}

/* Logits to unnormalised weights of one token. best: its largest score. */
NZ_FN void nz_route(nz *z, const double *logits, const int32_t *given, int32_t *ids, double *w, double *sink,
                    double *best) {
    double l[512] = {0}, s[512], q[512];
    const orc_knobs *k = z->k;
    *best = -HUGE_VAL;
    for (size_t i = 0; i < z->E + z->S; i++)
        l[i] = k->logit_softcap > 0 ? nz_cap(z, logits[i], k->logit_softcap) : logits[i];
    nz_scores(z, l, s);
    for (size_t i = 0; i < z->E + z->S; i++) *best = fmax(*best, s[i]);
    for (size_t i = 0; i < z->S; i++) sink[i] = s[z->E + i];
    for (size_t i = 0; i < z->E; i++) {
        q[i] = k->select_on == ORC_ON_LOGIT ? l[i] : s[i];
        if (z->w->sel_bias) q[i] = nz_r(z, q[i] + (double)z->w->sel_bias[i]);
    }
    if (k->pick == ORC_PICK_SPARSEMIXER) {
        nz_sparsemixer(z, l, ids, w);
        return;
    }
    if (given) memcpy(ids, given, z->top * sizeof *ids);
    else nz_select(z, q, ids);
    nz_gather(z, l, s, q, ids, w);
}

NZ_FN void nz_normalise(nz *z, double *w, double *sink) {
    const orc_knobs *k = z->k;
    size_t with = k->norm_scope == ORC_SCOPE_ROUTED_AND_SHARED ? z->S : 0;
    double sum = 0;
    if (k->norm == ORC_NORM_NONE || (k->norm_skip_k1 && z->top == 1)) return;
    for (size_t j = 0; j < z->top; j++) sum = nz_r(z, sum + w[j]);
    for (size_t j = 0; j < with; j++) sum = nz_r(z, sum + sink[j]);
    sum = fmax(nz_r(z, sum + k->norm_eps), k->norm_min);
    for (size_t j = 0; j < z->top; j++) w[j] = nz_r(z, w[j] / sum);
    for (size_t j = 0; j < with; j++) sink[j] = nz_r(z, sink[j] / sum);
}

/* Which choices have a place, token t's turn being its rank by best (or its index). */
NZ_FN void nz_capacity(nz *z, const int32_t *ids, const double *best, char *kept) {
    size_t n = z->T * z->top;
    for (size_t a = 0; a < n; a++) {
        size_t ahead = 0;
        for (size_t b = 0; b < n; b++) {
            size_t ta = a / z->top, tb = b / z->top;
            int prob = z->k->capacity_priority == ORC_PRIO_PROB;
            int sooner = prob ? nz_rank(best, z->T, tb) < nz_rank(best, z->T, ta) : tb < ta;
            ahead += ids[b] == ids[a] && (b % z->top < a % z->top || (b % z->top == a % z->top && sooner));
        }
        kept[a] = ahead < (size_t)z->k->capacity;
    }
}

/* drop_below and top_p on the normalised weights of one token, largest first. */
NZ_FN void nz_adapt(nz *z, const double *w, char *kept) {
    const orc_knobs *k = z->k;
    double most = 0, total = 0, before = 0;
    char done[512] = {0};
    for (size_t j = 0; j < z->top; j++) most = fmax(most, fabs(w[j])), total = nz_r(z, total + fabs(w[j]));
    for (size_t j = 0; j < z->top; j++) {
        size_t at = 0;
        while (done[at]) at++;
        for (size_t i = at; i < z->top; i++)
            if (!done[i] && fabs(w[i]) > fabs(w[at])) at = i;
        int small = k->drop_below > 0 && fabs(w[at]) < nz_r(z, k->drop_below * most);
        int late = k->top_p > 0 && j > 0 && before >= nz_r(z, k->top_p * total);
        if ((int)j >= k->min_keep && (small || late)) kept[at] = 0;
        before = nz_r(z, before + fabs(w[at]));
        done[at] = 1;
    }
}

/* ---- block ----------------------------------------------------------------------------------------------------- */

/* R8 to R10 of one token; passed gets what dropped choices pass through. */
NZ_FN void nz_finish(nz *z, const int32_t *ids, char *kept, double *w, double *sink, double *passed) {
    const orc_knobs *k = z->k;
    int after = k->capacity_norm == ORC_CAPNORM_AFTER;
    for (size_t j = 0; j < z->top && after; j++) w[j] = kept[j] ? w[j] : 0;
    nz_normalise(z, w, sink);
    for (size_t j = 0; j < z->top && !after; j++) {
        passed[j] = kept[j] ? 0 : k->routed_scale == 1 ? w[j] : nz_r(z, w[j] * k->routed_scale);
        w[j] = kept[j] ? w[j] : 0;
    }
    for (size_t j = 0; j < z->top && k->capacity; j++) kept[j] = w[j] == 0 ? 0 : kept[j];
    nz_adapt(z, w, kept);
    for (size_t j = 0; j < z->top; j++) {
        w[j] = k->routed_scale == 1 ? w[j] : nz_r(z, w[j] * k->routed_scale);
        if (after) passed[j] = 0;
        w[j] = kept[j] ? w[j] : 0;
        if (z->w->per_expert_scale && ids[j] < k->n_expert)
            w[j] = nz_r(z, w[j] * (double)z->w->per_expert_scale[ids[j]]);
    }
    for (size_t j = 0; j < z->S; j++) sink[j] = k->routed_scale == 1 ? sink[j] : nz_r(z, sink[j] * k->routed_scale);
}

/* acc += w * y in one rounding. */
NZ_FN void nz_fma(nz *z, double *acc, const double *y, double w, size_t n) {
    for (size_t i = 0; i < n; i++) acc[i] = nz_r(z, acc[i] + w * y[i]);
}

NZ_FN void nz_slot(nz *z, int32_t id, double w, const double *h, double *acc) {
    const orc_knobs *k = z->k;
    double y[512];
    if (id >= k->n_expert) {
        if (k->zero_kind == ORC_ZERO_IDENTITY) nz_fma(z, acc, h, w, z->dl);
        return;
    }
    orc_ffn f = orc_expert(k, z->w, (size_t)id);
    nz_ffn(z, &f, h, k->weight_pos == ORC_POS_INPUT ? w : 1, k->weight_pos == ORC_POS_HIDDEN ? w : 1, y);
    nz_fma(z, acc, y, k->weight_pos == ORC_POS_OUTPUT ? w : 1, z->dl);
}

/* Sum over the slots, by rank or by expert id. */
NZ_FN void nz_slots(nz *z, const int32_t *ids, const double *w, const double *passed, const char *kept,
                    const double *h, double *acc) {
    size_t n = z->bug == NZ_SKIP_LAST_SLOT ? z->top - 1 : z->top;
    int by_id = nz_coin(z);
    for (size_t i = 0; i < z->dl; i++) acc[i] = 0;
    for (size_t e = 0; e < (by_id ? z->E : 1); e++)
        for (size_t j = 0; j < n; j++)
            if (kept[j] && (!by_id || ids[j] == (int32_t)e)) nz_slot(z, ids[j], w[j], h, acc);
    for (size_t j = 0; j < z->top && z->k->capacity_drop == ORC_DROP_PASS_THROUGH; j++)
        if (passed[j] != 0) nz_fma(z, acc, h, passed[j], z->dl);
    for (size_t i = 0; i < z->dl && z->k->expert_out_scale != 1; i++)
        acc[i] = nz_r(z, acc[i] * z->k->expert_out_scale);
}

/* Routed sum to the width of the model. */
NZ_FN void nz_project(nz *z, double *r, double *y) {
    const orc_knobs *k = z->k;
    double rp[512];
    if (k->latent_norm_eps > 0) {
        nz_rms(z, r, z->dl, k->latent_norm_eps);
        for (size_t i = 0; i < z->dl; i++) r[i] = nz_r(z, r[i] * (double)z->w->lat_norm[i]);
    }
    if (k->d_latent) nz_prepare(z, k->compute_latent_out, r, rp, z->dl);
    for (size_t i = 0; i < z->d; i++)
        y[i] = k->d_latent ? nz_row(z, z->w->lat_out, i, rp, z->dl, k->compute_latent_out) : r[i];
}

NZ_FN void nz_shared(nz *z, const double *x, const double *sink, double *y) {
    const orc_knobs *k = z->k;
    double out[512], g[2], c[2] = {1, 1};
    if (k->shared_gate == ORC_GATE_SIGMOID_DOT) c[1] = nz_sigmoid(z, nz_row(z, z->w->sgate, 0, x, z->d, ORC_F32));
    if (k->shared_gate == ORC_GATE_SOFTMAX2) {
        for (size_t i = 0; i < 2; i++)
            g[i] = nz_r(z, nz_row(z, z->w->sgate, i, x, z->d, ORC_F32) + (double)z->w->sgate_bias[i]);
        nz_softmax(z, g, 2, c);
        for (size_t i = 0; i < z->d; i++) y[i] = nz_r(z, y[i] * c[0]);
    }
    for (size_t j = 0; j < (z->S ? z->S : 1); j++) {
        orc_ffn f = orc_shared(k, z->w, j);
        nz_ffn(z, &f, x, 1, 1, out);
        nz_fma(z, y, out, z->S ? sink[j] : c[1], z->d);
    }
}

NZ_FN void nz_token(nz *z, const float *x, const int32_t *ids, const double *w, const double *sink,
                    const double *passed, const char *kept, const float *y_in, double *y) {
    const orc_knobs *k = z->k;
    double xd[512], xp[512], h[512], r[512];
    for (size_t i = 0; i < z->d; i++) xd[i] = h[i] = (double)x[i];
    if (k->d_latent) {
        nz_prepare(z, k->compute_latent_in, xd, xp, z->d);
        for (size_t i = 0; i < z->dl; i++) h[i] = nz_row(z, z->w->lat_in, i, xp, z->d, k->compute_latent_in);
    }
    nz_slots(z, ids, w, passed, kept, h, r);
    nz_project(z, r, y);
    if (z->w->sw1) nz_shared(z, xd, sink, y);
    for (size_t i = 0; i < z->d; i++) {
        if (k->combine_scale != 1) y[i] = nz_r(z, y[i] * k->combine_scale);
        if (z->w->out_bias) y[i] = nz_r(z, y[i] + (double)z->w->out_bias[i]);
        if (y_in) y[i] = nz_r(z, y[i] + (double)y_in[i]);
    }
}

NZ_FN void nz_result_new(const nz *z, nz_result *r) {
    r->logits = orc_alloc(z->T * (z->E + z->S), sizeof(double));
    r->weights = orc_alloc(z->T * z->top, sizeof(double));
    r->sink = orc_alloc(z->T * z->S, sizeof(double));
    r->output = orc_alloc(z->T * z->d, sizeof(double));
    r->ids = orc_alloc(z->T * z->top, sizeof(int32_t));
}

NZ_FN void nz_free(nz_result *r) { free(r->logits), free(r->weights), free(r->sink), free(r->output), free(r->ids); }

/* Widths up to 512, E + S up to 512, 64 groups. */
NZ_FN void nz_forward(nz *z, const float *x, const float *xr, const int32_t *tokens, nz_result *o) {
    size_t top = z->top, n = z->T * top, E = z->E + z->S;
    double *best = orc_alloc(z->T, sizeof *best), *passed = orc_alloc(n, sizeof *passed);
    char *kept = orc_alloc(n, 1);
    nz_result_new(z, o);
    for (size_t t = 0; t < z->T; t++) {
        const int32_t *given = z->k->pick == ORC_PICK_TABLE ? z->w->table + (size_t)tokens[t] * top : NULL;
        nz_logits(z, (xr ? xr : x) + t * z->d, o->logits + t * E);
        nz_route(z, o->logits + t * E, given, o->ids + t * top, o->weights + t * top, o->sink + t * z->S, best + t);
    }
    memset(kept, 1, n);
    if (z->k->capacity) nz_capacity(z, o->ids, best, kept);
    for (size_t t = 0; t < z->T; t++) {
        size_t at = t * top;
        nz_finish(z, o->ids + at, kept + at, o->weights + at, o->sink + t * z->S, passed + at);
        nz_token(z, x + t * z->d, o->ids + at, o->weights + at, o->sink + t * z->S, passed + at, kept + at,
                 z->w->y_in ? z->w->y_in + t * z->d : NULL, o->output + t * z->d);
    }
    free(best);
    free(passed);
    free(kept);
}

NZ_FN nz nz_new(const orc_knobs *k, const orc_weights *w, size_t T, nz_mode mode, uint64_t seed) {
    nz z = {k,
            w,
            mode,
            NZ_RIGHT,
            seed | 1,
            T,
            (size_t)k->d_model,
            orc_width(k),
            orc_n_routed(k),
            orc_n_sink(k),
            (size_t)k->top_k};
    return z;
}

#endif
