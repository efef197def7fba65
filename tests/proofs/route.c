/* One token's routing from any bits of logits, biases and scales, over the knobs: every array has just the length that it is
   promised, so that an access past one is an alarm. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "__fc_builtin.h"

enum { E = 8, K = 4, SINKS = 1 };
static float logits[E + SINKS], weights[K], l[E + SINKS], s[E + SINKS], q[E], bias[E], scale[E], sink[SINKS];
static int32_t ids[K];
static uint32_t key[E];
static uint64_t best[E];

static void token(const moe_desc *d, uint32_t k) {
    moei_router r;
    memset(&r, 0, sizeof r);
    r.d = d, r.vec = &moei_vec_c, r.n_ids = E, r.n_sink = moei_sink_rows(d), r.routed_scale = r.jitter = 1.0f;
    r.logits_only = Frama_C_interval(0, 1), r.hold = Frama_C_interval(0, 1);
    r.l = l, r.s = s, r.q = q, r.key = key, r.best = best;
    if (Frama_C_interval(0, 1)) r.bias = bias;
    if (Frama_C_interval(0, 1)) r.scale = scale;
    Frama_C_make_unknown((char *)logits, sizeof logits);
    Frama_C_make_unknown((char *)bias, sizeof bias);
    Frama_C_make_unknown((char *)scale, sizeof scale);
    moei_select_token(&r, logits, 0, k, ids, weights, r.n_sink ? sink : 0);
}
int main(void) {
    static moe_desc d;
    moe_router *r = &d.router;
    d.n_experts = E, d.top_k = K;
    r->score = Frama_C_interval(0, MOE_SCORE_COUNT - 1), r->norm = Frama_C_interval(0, MOE_NORM_COUNT - 1);
    r->weight_from = Frama_C_interval(0, MOE_WEIGHT_COUNT - 1),
    r->select_on = Frama_C_interval(0, MOE_SELECT_COUNT - 1);
    r->logit_bf16 = Frama_C_interval(0, 1), r->softcap = Frama_C_float_interval(0.0f, 100.0f);
    r->norm_skip_k1 = Frama_C_interval(0, 1);
    token(&d, K);
    d.shared.gate_kind = MOE_SHARED_ROUTER_SINK, d.shared.count = SINKS;
    token(&d, K);
    r->n_group = 2, r->topk_group = 1;
    for (r->group = 0; r->group < MOE_GROUP_COUNT; r->group++) token(&d, K);
    r->group = 0;
    d.top_k = 2, r->pick = MOE_PICK_SPARSEMIXER;
    token(&d, 2);
    return 0;
}
