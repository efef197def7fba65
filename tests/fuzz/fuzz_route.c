/* The input is a router's knobs, biases, table and logits: distinct ids in range whatever the bits, the same alone and in company, no
   NaN weights where knobs are finite, and in plain cases the order that the contract gives. */
#define MOE_IMPLEMENTATION
#include "../../moe.h"
#include "fuzz_bytes.h"

static void array(fuzz_in *in, moe_array *a, size_t n, int finite) {
    size_t size;
    if (!fuzz_one_in(in, 3)) return;
    a->type = MOE_TYPE_F32 + fuzz_below(in, 3), size = a->type == MOE_TYPE_F32 ? 4 : 2;
    a->offset = fuzz_below(in, 5), a->stride = fuzz_one_in(in, 4) ? size + fuzz_below(in, 7) : 0;
    uint8_t *p = (uint8_t *)fuzz_filled(in, a->offset + (n - 1) * (a->stride ? a->stride : size) + size);
    a->data = p;
    for (size_t i = 0; finite && i < n; i++)
        p[a->offset + i * (a->stride ? a->stride : size) + size - 1] &= 0xbf; /* below 2 */
}

static void make(fuzz_in *in, moe_desc *d, int finite) {
    moe_router *r = &d->router;
    memset(d, 0, sizeof *d);
    d->n_experts = 1 + fuzz_below(in, fuzz_one_in(in, 8) ? 2100 : 70);
    if (fuzz_one_in(in, 4)) d->n_zero_experts = fuzz_below(in, 5);
    d->top_k = 1 + fuzz_below(in, d->n_experts + d->n_zero_experts);
    if (!fuzz_one_in(in, 4)) d->top_k = 1 + d->top_k % 8;
    r->score = fuzz_below(in, 3), r->select_on = fuzz_below(in, 2), r->weight_from = fuzz_below(in, 3),
    r->norm = fuzz_below(in, 3);
    if (fuzz_one_in(in, 3)) r->pick = fuzz_below(in, 3);
    if (fuzz_one_in(in, 3))
        r->group = fuzz_below(in, 4), r->n_group = fuzz_below(in, 9), r->topk_group = fuzz_below(in, 9),
        r->group_mask_zero = fuzz_below(in, 2);
    r->norm_skip_k1 = fuzz_below(in, 2), r->logit_bf16 = fuzz_one_in(in, 4), r->min_keep = fuzz_below(in, 4);
    float *knobs[] = {&r->softcap,      &r->jitter,     &r->norm_eps, &r->norm_min,
                      &r->routed_scale, &r->drop_below, &r->top_p};
    for (size_t i = 0; i < sizeof knobs / sizeof *knobs; i++)
        if (fuzz_one_in(in, 3)) *knobs[i] = fuzz_float(in, finite);
    if (fuzz_one_in(in, 5))
        d->shared.gate_kind = MOE_SHARED_ROUTER_SINK, d->shared.count = fuzz_below(in, 4),
        d->shared.d_ff = fuzz_below(in, 3);
    array(in, &r->select_bias, (size_t)d->n_experts + d->n_zero_experts, 0),
        array(in, &r->expert_scale, (size_t)d->n_experts + d->n_zero_experts, finite);
    if (r->pick == MOE_PICK_TABLE) {
        r->table_rows = fuzz_below(in, 6), r->table_bytes = fuzz_one_in(in, 2) ? 8 : 4;
        uint8_t *p = (uint8_t *)fuzz_filled(in, (size_t)r->table_rows * r->table_bytes * d->top_k);
        for (size_t i = 0; fuzz_one_in(in, 2) && i < (size_t)r->table_rows * d->top_k; i++)
            memset(p + i * r->table_bytes, 0, r->table_bytes), p[i * r->table_bytes] = (uint8_t)(i % d->top_k);
        r->table = p;
    }
    if (fuzz_one_in(in, 16)) { /* one field broken: a status or a defined result */
        size_t at = fuzz_below(in, sizeof d->router / 4) * 4;
        uint32_t v = fuzz_u32(in);
        size_t first = offsetof(moe_router, score), last = offsetof(moe_router, min_keep);
        if (at >= first && at <= last) memcpy((uint8_t *)r + at, &v, 4);
    }
}

static int known(const moe_desc *d, uint32_t rows, const int32_t *ids) { /* distinct and in range */
    uint8_t seen[4200];
    memset(seen, 0, sizeof seen);
    for (uint32_t j = 0; j < d->top_k; j++) {
        if (ids[j] < 0 || (uint32_t)ids[j] >= rows || seen[ids[j]]) return 0;
        seen[ids[j]] = 1;
    }
    return 1;
}

static float ordered(float l) { return l == l ? l : -HUGE_VALF; } /* NaN counts as -Inf */

/* Keys are the logits themselves: ranks fall, equals rise by id, nobody left out is better. */
static int in_order(const moe_desc *d, uint32_t rows, const float *l, const int32_t *ids) {
    const moe_router *r = &d->router;
    if (r->pick || r->group || r->select_on != MOE_SELECT_LOGIT || r->select_bias.type || r->logit_bf16 ||
        r->softcap > 0)
        return 1;
    for (uint32_t j = 1; j < d->top_k; j++) {
        float a = ordered(l[ids[j - 1]]), b = ordered(l[ids[j]]);
        if (!(a > b || (a == b && ids[j - 1] < ids[j]))) return 0;
    }
    float last = ordered(l[ids[d->top_k - 1]]);
    uint32_t better = 0;
    for (uint32_t i = 0; i < rows; i++)
        better += ordered(l[i]) > last || (ordered(l[i]) == last && (int32_t)i < ids[d->top_k - 1]);
    return better == d->top_k - 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_in in = {data, size, 1, {0}, 0};
    moe_desc d;
    moe_error e;
    int finite = fuzz_one_in(&in, 2);
    make(&in, &d, finite);
    size_t n = fuzz_below(&in, 5), ids_n = d.n_experts + d.n_zero_experts, k = d.top_k;
    size_t rows =
        ids_n +
        (d.shared.gate_kind == MOE_SHARED_ROUTER_SINK ? d.shared.count ? d.shared.count : d.shared.d_ff != 0 : 0);
    float *logits = (float *)fuzz_filled(&in, n * rows * 4);
    for (size_t i = 0; fuzz_one_in(&in, 2) && i < n * rows; i++) logits[i] = fuzz_float(&in, 0);
    int32_t *tokens = (int32_t *)fuzz_new(&in, n * 4);
    for (size_t t = 0; t < n; t++) tokens[t] = (int32_t)fuzz_below(&in, 6) - (int)fuzz_one_in(&in, 16);
    int32_t *ids = (int32_t *)fuzz_new(&in, n * k * 4), *again = (int32_t *)fuzz_new(&in, n * k * 4);
    float *w = (float *)fuzz_new(&in, n * k * 4), *w2 = (float *)fuzz_new(&in, n * k * 4);
    memset(ids, 0x5a, n * k * 4), memset(w, 0x5a, n * k * 4);
    moe_status s = moe_select(&d, logits, n, tokens, ids, w, &e);
    fuzz_require(s < MOE_STATUS_COUNT && (s == MOE_OK || *e.field), "a status without a field");
    for (size_t i = 0; s && i < n * k * 4; i++)
        fuzz_require(((uint8_t *)ids)[i] == 0x5a && ((uint8_t *)w)[i] == 0x5a, "output touched on error");
    for (size_t t = 0; !s && t < n; t++) {
        const moe_router *r = &d.router;
        fuzz_require(r->pick == MOE_PICK_TABLE || known(&d, (uint32_t)ids_n, ids + t * k),
                     "ids not distinct or out of range");
        for (size_t j = 0; j < k; j++)
            fuzz_require(ids[t * k + j] >= (r->pick == MOE_PICK_TABLE ? -1 : 0) && ids[t * k + j] < (int32_t)ids_n,
                         "an id out of range"); /* a table may skip */
        fuzz_require(in_order(&d, (uint32_t)ids_n, logits + t * rows, ids + t * k), "order");
        int tame = finite && r->weight_from != MOE_WEIGHT_BIASED && !(fabsf(r->routed_scale) > 1e18f) &&
                   !(fabsf(r->softcap) > 1e18f);
        for (size_t j = 0; tame && j < k; j++) fuzz_require(w[t * k + j] == w[t * k + j], "a weight is NaN");
        fuzz_require(!moe_select(&d, logits + t * rows, 1, tokens + t, again, w2, NULL), "alone: status");
        fuzz_require(!memcmp(ids + t * k, again, k * 4) && !memcmp(w + t * k, w2, k * 4),
                     "alone: other bits than in company");
    }
    fuzz_done(&in);
    return 0;
}
