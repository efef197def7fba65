/* The input is a desc, an io and all that they point to. Half of the inputs are desc bytes as they come: a status. The others are valid in shape
   with any bytes in weights, scales, biases, tables, inputs and ids, all in buffers of exactly the length that the desc implies: a status with
   the output untouched, or the same bits (but NaN's) on another tier, with other tasks and another workspace. */
#define MOE_IMPLEMENTATION
#include "../../moe.h"
#include "fuzz_bytes.h"

static size_t row_unit(uint32_t format) {
    size_t n = 1;
    while (!moe_row_bytes(format, n)) n *= 2;
    return n;
}

static void array(fuzz_in *in, moe_array *a, size_t n_experts, size_t n) {
    size_t size;
    a->type = MOE_TYPE_F32 + fuzz_below(in, 3), size = a->type == MOE_TYPE_F32 ? 4 : 2;
    a->offset = fuzz_below(in, 5), a->stride = fuzz_one_in(in, 4) ? size + fuzz_below(in, 7) : 0;
    size_t stride = a->stride ? a->stride : size;
    a->data = fuzz_filled(in, a->offset + (n_experts * n - 1) * stride + size);
}

static void grid(fuzz_in *in, moe_matrix *m, size_t n_experts, size_t rows, size_t k) {
    static const uint8_t types[] = {MOE_TYPE_F32, MOE_TYPE_BF16, MOE_TYPE_F16};
    uint32_t f = m->format;
    uint32_t own = f == MOE_FORMAT_MXFP4_HF || f == MOE_FORMAT_MXFP8 ? MOE_TYPE_E8M0
                   : f == MOE_FORMAT_NVFP4_HF                        ? MOE_TYPE_E4M3
                                                                     : 0;
    if (f < MOE_FORMAT_MXFP4_HF) return;
    m->scale.type = own ? own : types[fuzz_below(in, 3)];
    if (f == MOE_FORMAT_FP8_BLOCK && fuzz_one_in(in, 3)) m->scale.type = MOE_TYPE_E8M0;
    if (f == MOE_FORMAT_INT4_GROUP) m->scale.cols = 32u << fuzz_below(in, 3);
    moei_side s = moei_scale_of(m, NULL, MOE_UP, 0, rows, k);
    size_t cols = s.cols >= k ? 1 : (k + s.cols - 1) / s.cols, lines = (rows + s.rows - 1) / s.rows;
    size_t size = m->scale.type == MOE_TYPE_F32                                     ? 4
                  : m->scale.type == MOE_TYPE_BF16 || m->scale.type == MOE_TYPE_F16 ? 2
                                                                                    : 1;
    m->scale.data = fuzz_filled(in, n_experts * lines * cols * size);
    if (f != MOE_FORMAT_INT4_GROUP || !fuzz_one_in(in, 2)) return;
    m->zero.type = fuzz_one_in(in, 2) ? MOE_TYPE_U4X8 : MOE_TYPE_U8;
    m->zero.data = fuzz_filled(in, m->zero.type == MOE_TYPE_U8 ? n_experts * rows * cols
                                                               : n_experts * ((rows + 7) / 8) * cols * 4);
}

static void matrix(fuzz_in *in, moe_matrix *m, uint32_t format, size_t n_experts, size_t rows, size_t k) {
    size_t row = moe_row_bytes(format, k), expert, element = format == MOE_FORMAT_F32 ? 4 : 2;
    m->format = format, m->offset = fuzz_below(in, 4);
    if (format <= MOE_FORMAT_BF16 && fuzz_one_in(in, 4)) { /* [k][rows] */
        m->k_stride = rows * element + fuzz_below(in, 3), m->row_stride = element;
        expert = k * m->k_stride;
    } else {
        if (fuzz_one_in(in, 3)) m->row_stride = row + fuzz_below(in, 9);
        expert = rows * (m->row_stride ? m->row_stride : row);
    }
    if (fuzz_one_in(in, 3)) { /* a list; the last row of each ends with its weights */
        const void **list = (const void **)fuzz_new(in, n_experts * sizeof *list);
        size_t last = m->k_stride ? (k - 1) * m->k_stride + rows * element
                                  : expert - (m->row_stride ? m->row_stride : row) + row;
        for (size_t e = 0; e < n_experts; e++)
            list[e] = fuzz_one_in(in, 20) ? NULL : fuzz_filled(in, m->offset + last);
        m->expert = list;
    } else {
        m->data = fuzz_filled(in, m->offset + n_experts * expert);
    }
    grid(in, m, n_experts, rows, k);
    if (fuzz_one_in(in, 4)) array(in, &m->scale2, n_experts, 1);
    if (fuzz_one_in(in, 4)) array(in, &m->bias, n_experts, rows);
    m->scale2_divides = fuzz_one_in(in, 8);
}

static void knobs(fuzz_in *in, moe_desc *d) {
    uint32_t *all[] = {&d->router.score,
                       &d->router.select_on,
                       &d->router.weight_from,
                       &d->router.norm,
                       &d->router.group,
                       &d->router.n_group,
                       &d->router.topk_group,
                       &d->router.group_mask_zero,
                       &d->router.norm_skip_k1,
                       &d->router.logit_bf16,
                       &d->router.min_keep,
                       &d->ffn.activation,
                       &d->ffn.clamp,
                       &d->ffn.weight_at,
                       &d->shared.clamp,
                       &d->router.capacity,
                       &d->router.capacity_drop,
                       &d->router.capacity_by_score,
                       &d->router.capacity_norm_after};
    float *floats[] = {&d->router.softcap,
                       &d->router.norm_eps,
                       &d->router.norm_min,
                       &d->router.routed_scale,
                       &d->router.drop_below,
                       &d->router.top_p,
                       &d->ffn.limit,
                       &d->ffn.alpha,
                       &d->ffn.beta,
                       &d->ffn.linear_beta,
                       &d->ffn.expert_out_scale,
                       &d->ffn.combine_scale,
                       &d->shared.limit,
                       &d->router.capacity_factor};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (fuzz_one_in(in, 4)) *all[i] = fuzz_below(in, fuzz_one_in(in, 20) ? 9 : 4);
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        if (fuzz_one_in(in, 6)) *floats[i] = fuzz_float(in, 0);
}

/* Without what no knob uses, mostly: that is refused. */
static void settle(fuzz_in *in, moe_desc *d) {
    moe_router *r = &d->router;
    if (fuzz_one_in(in, 16)) return;
    if (!d->ffn.clamp) d->ffn.limit = 0;
    if (!d->shared.clamp) d->shared.limit = 0;
    if (!r->group) r->n_group = r->topk_group = 0;
    if (r->capacity) r->capacity_factor = 0;
    if (r->min_keep > d->top_k || !(r->drop_below > 0 || r->top_p > 0)) r->min_keep = 0;
}

static void make(fuzz_in *in, moe_desc *d) {
    uint32_t format = 1 + fuzz_below(in, MOE_FORMAT_COUNT - 1),
             other = fuzz_one_in(in, 3) ? 1 + fuzz_below(in, MOE_FORMAT_COUNT - 1) : format;
    size_t unit = row_unit(format) > row_unit(other) ? row_unit(format) : row_unit(other), most = unit < 32
                                                                                                      ? 70 / unit
                                                                                                  : unit < 256 ? 3
                                                                                                               : 1;
    memset(d, 0, sizeof *d);
    d->d_model = (uint32_t)(unit * (1 + fuzz_below(in, (uint32_t)most))),
    d->d_ff = (uint32_t)(unit * (1 + fuzz_below(in, (uint32_t)most)));
    d->n_experts = 1 + fuzz_below(in, 5), d->n_zero_experts = fuzz_one_in(in, 8) ? fuzz_below(in, 3) : 0;
    d->top_k = 1 + fuzz_below(in, d->n_experts + d->n_zero_experts), d->compute = fuzz_below(in, MOE_COMPUTE_COUNT);
    uint32_t tier = fuzz_below(in, MOE_TIER_COUNT); /* each that is here, else the best */
    if (moe_tiers() & MOE_TIER_BIT(tier)) d->tiers = moe_tier_mask(tier);
    knobs(in, d), settle(in, d);
    if (fuzz_one_in(in, 8))
        d->latent.d = (uint32_t)(unit * (1 + fuzz_below(in, (uint32_t)most))),
        d->latent.norm_eps = fuzz_one_in(in, 2) ? 1e-6f : 0;
    size_t h = d->latent.d ? d->latent.d : d->d_model, e = d->n_experts;
    d->ffn.ungated = fuzz_one_in(in, 6);
    if (!d->ffn.ungated) matrix(in, &d->gate, format, e, d->d_ff, h);
    matrix(in, &d->up, format, e, d->d_ff, h), matrix(in, &d->down, other, e, h, d->d_ff);
    if (d->latent.d)
        matrix(in, &d->latent.in, other, 1, h, d->d_model), matrix(in, &d->latent.out, other, 1, d->d_model, h);
    size_t rows = e + d->n_zero_experts;
    if (fuzz_one_in(in, 4)) {
        d->shared.d_ff = (uint32_t)unit, d->shared.count = 1 + fuzz_below(in, 2),
        d->shared.gate_kind = fuzz_below(in, 4);
        if (!d->ffn.ungated) matrix(in, &d->shared.gate, other, d->shared.count, unit, d->d_model);
        matrix(in, &d->shared.up, other, d->shared.count, unit, d->d_model),
            matrix(in, &d->shared.down, other, d->shared.count, d->d_model, unit);
        if (d->shared.gate_kind == MOE_SHARED_ROUTER_SINK) rows += d->shared.count;
        else if (d->shared.gate_kind)
            matrix(in, &d->shared.gate_weight, MOE_FORMAT_F32 + fuzz_below(in, 3), 1, d->shared.gate_kind,
                   d->d_model);
    }
    matrix(in, &d->router.weight, MOE_FORMAT_F32 + fuzz_below(in, 3), 1, rows, d->d_model);
    if (fuzz_one_in(in, 4)) array(in, &d->router.select_bias, 1, e + d->n_zero_experts);
    if (fuzz_one_in(in, 6)) array(in, &d->router.expert_scale, 1, e + d->n_zero_experts);
    if (fuzz_one_in(in, 6)) array(in, &d->ffn.out_bias, 1, d->d_model);
    if (fuzz_one_in(in, 8)) d->router.input_norm_eps = 1e-6f, array(in, &d->router.input_scale, 1, d->d_model);
}

static int same(const float *a, const float *b, size_t n) { /* NaN's bits are no promise */
    for (size_t i = 0; i < n; i++)
        if (memcmp(a + i, b + i, 4) && (a[i] == a[i] || b[i] == b[i])) return 0;
    return 1;
}

static moe_status run(fuzz_in *in, const moe_layer *l, moe_io *io, uint32_t tasks, int least) {
    moe_error e;
    size_t bytes = least ? moe_workspace_min(l, io->n_tokens, tasks) : moe_workspace_size(l, io->n_tokens, tasks);
    if (io->k > l->desc.top_k)
        bytes = moe_workspace_size(l, (io->n_tokens * io->k + l->desc.top_k - 1) / l->desc.top_k, tasks);
    if (bytes > (1u << 26)) return MOE_ERR_WORKSPACE;
    io->error = &e, io->n_tasks = tasks, io->workspace = fuzz_filled(in, bytes), io->workspace_size = bytes;
    moe_status s = moe_forward(l, io);
    fuzz_require(s == e.status && s < MOE_STATUS_COUNT && (s == MOE_OK || *e.field), "a status without a field");
    return s;
}

static void forward(fuzz_in *in, const moe_desc *d) {
    moe_layer l, c;
    moe_io io;
    moe_desc plain = *d;
    if (moe_layer_init(&l, d, NULL)) return;
    memset(&io, 0, sizeof io);
    size_t n = fuzz_below(in, 7), width = d->d_model, k = d->top_k;
    io.n_tokens = n, io.x_type = MOE_TYPE_F32 + fuzz_below(in, 3), io.y_type = MOE_TYPE_F32;
    io.x = fuzz_filled(in, n * width * (io.x_type == MOE_TYPE_F32 ? 4 : 2));
    float *y = (float *)fuzz_new(in, n * width * 4), *want = (float *)fuzz_new(in, n * width * 4);
    if (fuzz_one_in(in, 4)) {
        io.k = 1 + fuzz_below(in, 6), k = io.k;
        int32_t *ids = (int32_t *)fuzz_new(in, n * k * 4);
        for (size_t i = 0; i < n * k; i++)
            ids[i] = fuzz_one_in(in, 30) ? (int32_t)fuzz_u32(in) : (int32_t)fuzz_below(in, d->n_experts + 1) - 1;
        io.ids_in = ids;
        if (fuzz_one_in(in, 2)) io.weights_in = (const float *)fuzz_filled(in, n * k * 4);
    }
    io.ids_out = (int32_t *)fuzz_new(in, n * k * 4), io.weights_out = (float *)fuzz_new(in, n * k * 4);
    memset(want, 0x5a, n * width * 4);
    io.y = want;
    moe_status s = run(in, &l, &io, 1 + fuzz_below(in, 4), 0);
    for (size_t i = 0; s && i < n * width * 4; i++)
        fuzz_require(((uint8_t *)want)[i] == 0x5a, "output touched on error");
    for (size_t i = 0; !s && !io.ids_in && i < n * k; i++)
        fuzz_require(io.ids_out[i] >= 0 && (size_t)io.ids_out[i] < (size_t)d->n_experts + d->n_zero_experts,
                     "an id out of range");
    io.y = y;
    memset(y, 0x5a, n * width * 4);
    fuzz_require(run(in, &l, &io, 1 + fuzz_below(in, 4), 1) == s, "another status with other tasks");
    fuzz_require(s || same(y, want, n * width), "other bits with other tasks and workspace");
    int bf16 =
        moe_layer_compute(&l, MOE_UP) == MOE_COMPUTE_BF16 || moe_layer_compute(&l, MOE_DOWN) == MOE_COMPUTE_BF16;
    plain.tiers = MOE_TIER_BIT(MOE_TIER_C);
    if (s || bf16 || d->compute == MOE_COMPUTE_BF16 || d->latent.d || d->shared.d_ff ||
        moe_layer_init(&c, &plain, NULL))
        return;
    fuzz_require(!run(in, &c, &io, 1, 0) && same(y, want, n * width), "other bits on the c tier");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_in in = {data, size, 1, {0}, 0};
    moe_desc d;
    moe_layer l;
    moe_error e;
    moe_counts counts;
    if (fuzz_one_in(&in, 2)) {
        make(&in, &d);
        forward(&in, &d);
    } else { /* any bits: pointers are not followed before a call */
        memset(&d, 0, sizeof d);
        memcpy(&d, in.p, in.n < sizeof d ? in.n : sizeof d);
        if (fuzz_one_in(&in, 2)) d.begin_ = d.end_ = 0;
        d.router.select_bias.expert = d.router.expert_scale.expert = NULL; /* their lists are looked at */
        moe_status s = moe_layer_init(&l, &d, &e);
        fuzz_require(s == e.status && s < MOE_STATUS_COUNT && (s == MOE_OK || *e.field), "a status without a field");
        if (!s) moe_layer_counts(&l, &counts);
        for (size_t n = 1; !s && n < SIZE_MAX / 64; n *= 63)
            fuzz_require(moe_workspace_min(&l, n, 3) <= moe_workspace_size(&l, n, 3),
                         "the least workspace is larger");
    }
    fuzz_done(&in);
    return 0;
}
