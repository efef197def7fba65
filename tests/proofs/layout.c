/* The workspace's layout for any sizes that validation lets through, tokens, slots per token and tasks, with arithmetics that pack
   tokens in any groups or don't, and panels: no product or sum of sizes wraps (-warn-unsigned-overflow), and the most tokens that a
   matrix takes at a time are whole groups. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "__fc_builtin.h"

static uint32_t up_to(uint32_t least, uint32_t most) { return (uint32_t)Frama_C_unsigned_int_interval(least, most); }

/* What any compute of any tier takes for a prepared row and a panel. (Q8's panels: at least what moei_q8_panel_bytes and
   moei_q8_panel_bytes_avx2 return, whose sections need an instruction set.) */
static size_t row_bytes(size_t k) {
    int compute = Frama_C_interval(0, 2);
    return compute == 0 ? moei_f32_row_bytes(k) : compute == 1 ? moei_bf16_row_bytes(k) : moei_q8_row_bytes(k);
}
static size_t panel_bytes(uint32_t n_rows, size_t k) {
    return Frama_C_interval(0, 1) ? moei_panel_bytes_f32(n_rows, k) : (k + 255) / 256 * 8 * 4 * 17 * 32;
}
static moei_packing packing;
static moei_arith any;

static void pack(uint32_t group) { /* 0: tokens are not packed */
    any.row_bytes = row_bytes, any.panel_bytes = panel_bytes, any.panel = moei_panel_f32_c;
    any.packing = group ? &packing : NULL;
    packing.group = group, packing.min = up_to(1, group + 1);
    if (!group) return;
    size_t most = moei_most(&any, up_to(1, MOEI_MAX_WIDTH));
    //@ assert 64 - 15 <= most <= 256 && most % group == 0;
}

static void layer(moe_layer *l, int all) { /* all: shared experts and a latent space too */
    moe_desc *d = &l->desc;
    d->d_model = up_to(1, MOEI_MAX_WIDTH), d->d_ff = up_to(1, MOEI_MAX_WIDTH),
    d->n_experts = up_to(1, MOEI_MAX_EXPERTS);
    d->n_zero_experts = up_to(0, MOEI_MAX_EXPERTS), d->top_k = up_to(1, 2 * MOEI_MAX_EXPERTS);
    d->shared.d_ff = all ? up_to(1, MOEI_MAX_WIDTH) : 0, d->shared.count = all ? up_to(1, MOEI_MAX_EXPERTS) : 0;
    d->latent.d = all ? up_to(1, MOEI_MAX_WIDTH) : 0;
    d->shared.gate_kind = up_to(0, MOE_SHARED_COUNT - 1);
    d->router.capacity = up_to(0, UINT32_MAX), d->router.capacity_by_score = up_to(0, 1);
    l->routed.n_experts = d->n_experts, l->routed.d_in = up_to(1, MOEI_MAX_WIDTH), l->routed.d_ff = d->d_ff;
    l->shared.n_experts = d->shared.count, l->shared.d_in = d->d_model, l->shared.d_ff = d->shared.d_ff;
    l->router_rows = up_to(1, 3 * MOEI_MAX_EXPERTS), l->n_ids = up_to(1, 2 * MOEI_MAX_EXPERTS);
    l->router = l->routed.in = l->routed.mid = &any;
    l->latent_in = l->latent_out = all ? &any : NULL;
    l->shared.in = l->shared.mid = all ? &any : NULL;
}

int main(void) {
    static const uint32_t groups[] = {0, 1, 2, 3, 6, 8, MOEI_GROUP}; /* what the tiers have, and the least */
    static moe_layer l;
    static moei_plan p;
    p.layer = &l;
    for (size_t i = 0; i < 2 * MOEI_COUNT(groups); i++) {
        layer(&l, i & 1);
        pack(groups[i / 2]);
        p.n_tokens = Frama_C_size_t_interval(1, SIZE_MAX), p.block = Frama_C_size_t_interval(1, SIZE_MAX);
        p.k = up_to(1, UINT32_MAX), p.n_tasks = up_to(1, UINT32_MAX);
        moei_lay_out(&p);
    }
    moe_workspace_size(&l, Frama_C_size_t_interval(0, SIZE_MAX), up_to(0, UINT32_MAX));
    moe_workspace_min(&l, Frama_C_size_t_interval(0, SIZE_MAX), up_to(0, UINT32_MAX));
    return 0;
}
