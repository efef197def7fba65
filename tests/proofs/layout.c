/* The workspace's layout for any sizes that validation lets through, tokens, slots per token and tasks: no product or sum of
   sizes wraps (-warn-unsigned-overflow). */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "__fc_builtin.h"

static uint32_t up_to(uint32_t least, uint32_t most) { return (uint32_t)Frama_C_unsigned_int_interval(least, most); }

int main(void) {
    static moe_layer l;
    static moei_plan p;
    moe_desc *d = &l.desc;
    d->d_model = up_to(1, MOEI_MAX_WIDTH), d->d_ff = up_to(1, MOEI_MAX_WIDTH),
    d->n_experts = up_to(1, MOEI_MAX_EXPERTS);
    d->n_zero_experts = up_to(0, MOEI_MAX_EXPERTS), d->top_k = up_to(1, 2 * MOEI_MAX_EXPERTS);
    d->shared.d_ff = up_to(0, MOEI_MAX_WIDTH), d->shared.count = up_to(0, MOEI_MAX_EXPERTS),
    d->latent.d = up_to(0, MOEI_MAX_WIDTH);
    d->shared.gate_kind = up_to(0, MOE_SHARED_COUNT - 1);
    d->router.capacity = up_to(0, UINT32_MAX), d->router.capacity_by_score = up_to(0, 1);
    l.routed.n_experts = d->n_experts, l.routed.d_in = up_to(1, MOEI_MAX_WIDTH), l.routed.d_ff = d->d_ff;
    l.shared.n_experts = d->shared.count, l.shared.d_in = d->d_model, l.shared.d_ff = d->shared.d_ff;
    l.router_rows = up_to(1, 3 * MOEI_MAX_EXPERTS), l.n_ids = up_to(1, 2 * MOEI_MAX_EXPERTS);
    l.router = l.routed.in = l.latent_in = l.latent_out = &moei_f32_c;
    l.routed.mid = l.shared.in = l.shared.mid = up_to(0, 1) ? &moei_q8_c : &moei_f32_c;
    p.layer = &l, p.n_tokens = Frama_C_size_t_interval(1, SIZE_MAX), p.block = Frama_C_size_t_interval(1, SIZE_MAX);
    p.k = up_to(1, UINT32_MAX), p.n_tasks = up_to(1, UINT32_MAX);
    moei_lay_out(&p);
    return 0;
}
