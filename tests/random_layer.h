/* random_layer.h - a random layer, twice: as a moe_desc in some weight format and layout, and as the oracle's knobs and floats.
   Include after moe.h (with its implementation) and oracle.h. Everything is a function of the seed. */
#ifndef RANDOM_LAYER_H
#define RANDOM_LAYER_H

typedef struct rl_rng {
    uint64_t s;
} rl_rng;

static inline uint64_t rl_u64(rl_rng *r) { /* splitmix64 */
    uint64_t z = (r->s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static inline uint32_t rl_below(rl_rng *r, uint32_t n) { return (uint32_t)(rl_u64(r) >> 32) % n; }
static inline int rl_one_in(rl_rng *r, uint32_t n) { return rl_below(r, n) == 0; }
static inline float rl_uniform(rl_rng *r) {
    return (float)((double)(rl_u64(r) >> 40) / 8388608.0 - 1.0);
} /* [-1, 1) */
static inline float rl_gauss(rl_rng *r) {
    float s = 0;
    for (int i = 0; i < 4; i++) s += rl_uniform(r);
    return s * 0.8660254f;
}

/* Those of the tiers that multiply in BF16. */
static inline uint32_t rl_bf16(uint32_t tiers) {
    return tiers & (MOE_TIER_BIT(MOE_TIER_AVX512BF16) | MOE_TIER_BIT(MOE_TIER_AMX) | MOE_TIER_BIT(MOE_TIER_NEONBF16));
}

enum { RL_MAX_BUFFERS = 96 };
typedef struct rl_layer {
    rl_rng rng;
    orc_knobs knobs;
    orc_weights weights;
    moe_desc desc;
    void *buffers[RL_MAX_BUFFERS];
    int n_buffers;
    uint32_t format, shared_format;
} rl_layer;

static inline void *rl_alloc(rl_layer *l, size_t bytes) {
    void *p = calloc(bytes ? bytes : 1, 1);
    if (!p || l->n_buffers == RL_MAX_BUFFERS) abort();
    return l->buffers[l->n_buffers++] = p;
}
static inline void rl_free(rl_layer *l) {
    for (int i = 0; i < l->n_buffers; i++) free(l->buffers[i]);
    l->n_buffers = 0;
}

/* ---- weights ---- */

/* Where a GGUF block keeps its half-precision scales (-1 = none), and the size of its integers. */
typedef struct rl_block {
    uint32_t format;
    int d, m;
    float range;
} rl_block;
static const rl_block rl_blocks[] = {
    {MOE_FORMAT_Q8_0, 0, -1, 74},     {MOE_FORMAT_Q4_0, 0, -1, 4.6f}, {MOE_FORMAT_Q4_1, 0, 2, 8},
    {MOE_FORMAT_Q5_0, 0, -1, 9},      {MOE_FORMAT_Q5_1, 0, 2, 16},    {MOE_FORMAT_Q2_K, 80, 82, 16},
    {MOE_FORMAT_Q3_K, 108, -1, 40},   {MOE_FORMAT_Q4_K, 0, 2, 300},   {MOE_FORMAT_Q5_K, 0, 2, 600},
    {MOE_FORMAT_Q6_K, 208, -1, 1400}, {MOE_FORMAT_IQ4_NL, 0, -1, 60}, {MOE_FORMAT_IQ4_XS, 0, -1, 1100},
    {MOE_FORMAT_MXFP4, -1, -1, 3},    {MOE_FORMAT_NVFP4, -1, -1, 3},
};

static inline const rl_block *rl_find_block(uint32_t format) {
    for (size_t i = 0; i < sizeof rl_blocks / sizeof *rl_blocks; i++)
        if (rl_blocks[i].format == format) return &rl_blocks[i];
    return NULL;
}

static inline void rl_put16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)v, p[1] = (uint8_t)(v >> 8); }
static inline void rl_put32(uint8_t *p, float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)(u >> (8 * i));
}
static inline uint16_t rl_half(float f) { return moei_to_f16(f); }

/* Random bytes with tame scales: every bit pattern of the integers occurs. */
static inline void rl_random_block(rl_rng *r, const rl_block *b, uint8_t *p, size_t bytes, float gain) {
    float s = gain / b->range * (0.5f + 0.5f * fabsf(rl_uniform(r)));
    for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)rl_u64(r);
    if (b->d >= 0) rl_put16(p + b->d, rl_half(rl_one_in(r, 2) ? s : -s));
    if (b->m >= 0)
        rl_put16(p + b->m,
                 rl_half(s * (b->format == MOE_FORMAT_Q4_1 || b->format == MOE_FORMAT_Q5_1 ? -b->range : 1.0f)));
    if (b->format == MOE_FORMAT_MXFP4) p[0] = (uint8_t)(127 + (int)floorf(log2f(s)));
    if (b->format == MOE_FORMAT_NVFP4)
        for (int i = 0; i < 4; i++) p[i] = (uint8_t)(8 + rl_below(r, 30));
}

static inline void rl_put_dense(uint32_t format, uint8_t *p, float v) {
    if (format == MOE_FORMAT_F32) rl_put32(p, v);
    else rl_put16(p, format == MOE_FORMAT_BF16 ? moei_to_bf16(v) : moei_to_f16(v));
}

/* A grid of scales for formats that keep them apart. */
static inline void rl_fill_grid(rl_layer *l, moe_matrix *m, size_t n_experts, size_t rows, size_t k, float gain) {
    static const uint8_t types[] = {MOE_TYPE_F32, MOE_TYPE_BF16, MOE_TYPE_F16};
    moei_side side;
    size_t lines, cols, size;
    int own = m->format == MOE_FORMAT_MXFP4_HF || m->format == MOE_FORMAT_MXFP8 ? MOE_TYPE_E8M0
              : m->format == MOE_FORMAT_NVFP4_HF                                ? MOE_TYPE_E4M3
                                                                                : 0;
    m->scale.type = own ? (uint32_t)own : types[rl_below(&l->rng, 3)];
    if (m->format == MOE_FORMAT_INT4_GROUP)
        m->scale.cols = rl_one_in(&l->rng, 3) ? UINT32_MAX : 32u << rl_below(&l->rng, 3);
    m->scale.data = ""; /* so that the shape can be asked for */
    side = moei_scale_of(m, NULL, MOE_UP, 0, rows, k);
    cols = side.cols >= k ? 1 : (k + side.cols - 1) / side.cols;
    lines = (rows + side.rows - 1) / side.rows;
    size = own ? 1 : m->scale.type == MOE_TYPE_F32 ? 4 : 2;
    uint8_t *p = (uint8_t *)rl_alloc(l, n_experts * lines * cols * size);
    m->scale.data = p;
    for (size_t i = 0; i < n_experts * lines * cols; i++, p += size) {
        float s = gain * (0.6f + 0.4f * fabsf(rl_uniform(&l->rng)));
        if (m->scale.type == MOE_TYPE_E8M0) *p = (uint8_t)(127 + (int)floorf(log2f(s)));
        else if (m->scale.type == MOE_TYPE_E4M3) *p = (uint8_t)(8 + rl_below(&l->rng, 30));
        else rl_put_dense(m->scale.type, p, s);
    }
    if (m->format == MOE_FORMAT_INT4_GROUP && rl_one_in(&l->rng, 2)) {
        size_t zeros = n_experts * rows * cols;
        uint8_t *z = (uint8_t *)rl_alloc(l, zeros);
        for (size_t i = 0; i < zeros; i++) z[i] = (uint8_t)rl_below(&l->rng, 16);
        m->zero.type = MOE_TYPE_U8;
        m->zero.data = z;
    }
}

static inline void rl_fill_bytes(rl_layer *l, uint32_t format, uint8_t *p, size_t bytes, float gain) {
    const rl_block *b = rl_find_block(format);
    size_t block = b ? moe_row_bytes(format, format == MOE_FORMAT_NVFP4 ? 64 : 256) : 0, per = block;
    if (b) { /* bytes of one block: rows are whole blocks */
        uint32_t n = 32;
        while (!moe_row_bytes(format, n)) n *= 2;
        per = moe_row_bytes(format, n);
    }
    for (size_t i = 0; b && i + per <= bytes; i += per) rl_random_block(&l->rng, b, p + i, per, gain);
    for (size_t i = 0; !b && i < bytes; i++) {
        p[i] = (uint8_t)rl_u64(&l->rng);
        if (format != MOE_FORMAT_INT8_CHANNEL && format != MOE_FORMAT_INT4_GROUP && format != MOE_FORMAT_MXFP4_HF &&
            format != MOE_FORMAT_NVFP4_HF && (p[i] & 0x7f) == 0x7f)
            p[i] = 0x30; /* no NaN codes of fp8 */
    }
}

static inline float rl_apart_gain(uint32_t format) { /* size of the stored integers or codes */
    return format == MOE_FORMAT_INT8_CHANNEL ? 74.0f
           : format == MOE_FORMAT_INT4_GROUP ? 4.6f
           : format == MOE_FORMAT_MXFP4_HF   ? 3.0f
           : format == MOE_FORMAT_NVFP4_HF   ? 3.0f
                                             : 100.0f;
}

/* Dense weights, [rows][k] or transposed; gate and up of one tensor are told apart by `lane` of `lanes` (interleaved rows). */
static inline void rl_fill_dense(rl_layer *l, moe_matrix *m, size_t n_experts, size_t rows, size_t k, float gain,
                                 int transposed) {
    size_t size = m->format == MOE_FORMAT_F32 ? 4 : 2, pad = rl_one_in(&l->rng, 3) ? size * rl_below(&l->rng, 5) : 0;
    size_t step = transposed ? rows * size + pad : k * size + pad, expert = (transposed ? k : rows) * step;
    uint8_t *p = (uint8_t *)rl_alloc(l, n_experts * expert + 1);
    m->offset = rl_below(&l->rng, 2); /* odd addresses */
    m->data = p;
    m->expert_stride = expert;
    m->row_stride = transposed ? size : step;
    m->k_stride = transposed ? step : 0;
    for (size_t e = 0; e < n_experts; e++)
        for (size_t r = 0; r < rows; r++)
            for (size_t i = 0; i < k; i++)
                rl_put_dense(m->format,
                             p + m->offset + e * expert + (transposed ? i * step + r * size : r * step + i * size),
                             gain * rl_gauss(&l->rng));
}

/* A matrix in the format, its exact values for the oracle. */
static inline const float *rl_matrix(rl_layer *l, moe_matrix *m, uint32_t format, size_t n_experts, size_t rows,
                                     size_t k, float gain) {
    float *values = (float *)rl_alloc(l, n_experts * rows * k * sizeof(float));
    gain /= sqrtf((float)k);
    m->format = format;
    if (format <= MOE_FORMAT_BF16) {
        rl_fill_dense(l, m, n_experts, rows, k, gain, rl_one_in(&l->rng, 4));
    } else {
        size_t row = moe_row_bytes(format, k);
        uint8_t *p = (uint8_t *)rl_alloc(l, n_experts * rows * row);
        m->data = p;
        rl_fill_bytes(l, format, p, n_experts * rows * row, gain);
        if (!rl_find_block(format)) rl_fill_grid(l, m, n_experts, rows, k, gain / rl_apart_gain(format));
        if (format == MOE_FORMAT_NVFP4 || format == MOE_FORMAT_NVFP4_HF) { /* the tensor's own scale */
            float *s = (float *)rl_alloc(l, n_experts * sizeof(float));
            m->scale2_divides = (uint32_t)rl_below(&l->rng, 2);
            for (size_t e = 0; e < n_experts; e++)
                rl_put32((uint8_t *)(s + e), m->scale2_divides ? 3.0f / gain : gain / 3.0f);
            m->scale2.type = MOE_TYPE_F32;
            m->scale2.data = s;
        }
    }
    if (n_experts > 1 && rl_one_in(&l->rng, 3) && m->data) { /* one pointer per expert */
        const void **list = (const void **)rl_alloc(l, n_experts * sizeof *list);
        size_t stride = m->expert_stride ? m->expert_stride : rows * moe_row_bytes(format, k);
        for (size_t e = 0; e < n_experts; e++) list[e] = (const uint8_t *)m->data + e * stride;
        m->expert = list;
    }
    for (size_t e = 0; e < n_experts; e++)
        if (moe_dequantize(m, (uint32_t)e, n_experts, rows, k, 0, rows, values + e * rows * k)) abort();
    return values;
}

static inline const float *rl_array(rl_layer *l, moe_array *a, size_t n_experts, size_t n, float mean, float gain) {
    float *values = (float *)rl_alloc(l, n_experts * n * sizeof(float));
    uint32_t type = MOE_TYPE_F32 + rl_below(&l->rng, 3);
    size_t size = type == MOE_TYPE_F32 ? 4 : 2, stride = size * (1 + rl_below(&l->rng, 2));
    uint8_t *p = (uint8_t *)rl_alloc(l, n_experts * n * stride);
    for (size_t i = 0; i < n_experts * n; i++) {
        float v = mean + gain * rl_gauss(&l->rng);
        rl_put_dense(type == MOE_TYPE_F32   ? MOE_FORMAT_F32
                     : type == MOE_TYPE_F16 ? MOE_FORMAT_F16
                                            : MOE_FORMAT_BF16,
                     p + i * stride, v);
        values[i] = type == MOE_TYPE_F32   ? v
                    : type == MOE_TYPE_F16 ? moei_f16(moei_to_f16(v))
                                           : moei_bf16(moei_to_bf16(v));
    }
    a->type = type;
    a->data = p;
    a->stride = stride;
    return values;
}

/* ---- knobs ---- */

static inline void rl_router_knobs(rl_layer *l) {
    rl_rng *r = &l->rng;
    orc_knobs *k = &l->knobs;
    moe_router *m = &l->desc.router;
    m->score = rl_below(r, 3), k->score = (orc_score)m->score;
    m->select_on = (uint32_t)rl_one_in(r, 4), k->select_on = (orc_select)m->select_on;
    m->weight_from = rl_one_in(r, 5) ? 1 + rl_below(r, 2) : 0;
    k->weight_src = m->weight_from == MOE_WEIGHT_BIASED ? ORC_W_BIASED
                    : m->weight_from                    ? ORC_W_SOFTMAX_SELECTED
                                                        : ORC_W_SCORE;
    m->norm = m->weight_from == MOE_WEIGHT_BIASED ? 0 : rl_below(r, 2),
    k->norm = m->norm ? ORC_NORM_SUM : ORC_NORM_NONE;
    m->norm_skip_k1 = rl_below(r, 2), k->norm_skip_k1 = (int)m->norm_skip_k1;
    m->norm_eps = rl_one_in(r, 3) ? 1e-6f : 0, k->norm_eps = (double)m->norm_eps;
    m->norm_min = rl_one_in(r, 4) ? 1e-12f : 0, k->norm_min = (double)m->norm_min;
    m->routed_scale = rl_one_in(r, 2) ? 2.5f : 0,
    k->routed_scale = m->routed_scale != 0.0f ? (double)m->routed_scale : 1.0;
    m->softcap = rl_one_in(r, 5) ? 30.0f : 0, k->logit_softcap = (double)m->softcap;
    if (rl_one_in(r, 12) && k->top_k == 2 && !k->n_zero_expert)
        m->pick = MOE_PICK_SPARSEMIXER, k->pick = ORC_PICK_SPARSEMIXER, k->jitter = (double)0.01f;
    uint32_t n = (uint32_t)(k->n_expert + k->n_zero_expert);
    if (k->pick == ORC_PICK_TOPK && n % 4 == 0 && n >= 8 && rl_one_in(r, 3)) {
        uint32_t kinds = k->top_k % 4 == 0 ? 3 : 2;
        m->group = 1 + rl_below(r, kinds), k->group = (orc_group)m->group;
        m->n_group = 4, k->n_group = 4;
        m->topk_group = 2, k->topk_group = 2;
        if (m->group != MOE_GROUP_PER_GROUP && n / 2 < (uint32_t)k->top_k) m->topk_group = 4, k->topk_group = 4;
        if (m->group == MOE_GROUP_PER_GROUP && k->top_k / 4 > (int)n / 4)
            m->group = m->n_group = m->topk_group = 0, k->group = ORC_GROUP_NONE;
    }
    if (rl_one_in(r, 8)) m->drop_below = 0.5f, k->drop_below = 0.5;
    if (rl_one_in(r, 8)) m->top_p = 0.75f, k->top_p = 0.75;
    m->min_keep = 1 + rl_below(r, 2);
    if (m->min_keep > (uint32_t)k->top_k || (m->drop_below <= 0 && m->top_p <= 0)) m->min_keep = 1;
    k->min_keep = (int)m->min_keep;
}

static inline void rl_ffn_knobs(rl_layer *l) {
    rl_rng *r = &l->rng;
    orc_knobs *k = &l->knobs;
    moe_ffn *f = &l->desc.ffn;
    f->activation = rl_below(r, 7), k->act = (orc_act)f->activation;
    k->act_alpha = (double)1.702f, k->act_beta = 4, k->act_lin_beta = 25;
    f->ungated = (uint32_t)(f->activation != MOE_ACT_OAI && f->activation != MOE_ACT_SITU && rl_one_in(r, 5)),
    k->gated = !f->ungated;
    f->clamp = rl_below(r, 3), k->clamp = (orc_clamp)f->clamp;
    f->limit = rl_one_in(r, 2) && f->clamp ? 1.5f : 0, k->limit = (double)f->limit;
    f->weight_at = rl_one_in(r, 3) ? 1 + rl_below(r, 2) : 0, k->weight_pos = (orc_pos)f->weight_at;
    f->combine_scale = rl_one_in(r, 4) ? 0.5f : 0, k->combine_scale = f->combine_scale != 0.0f ? 0.5 : 1.0;
    f->expert_out_scale = rl_one_in(r, 4) ? 0.75f : 0, k->expert_out_scale = f->expert_out_scale != 0.0f ? 0.75 : 1.0;
}

static inline void rl_shared_knobs(rl_layer *l, uint32_t unit) {
    rl_rng *r = &l->rng;
    orc_knobs *k = &l->knobs;
    moe_shared *s = &l->desc.shared;
    if (rl_one_in(r, 2)) return;
    s->gate_kind = rl_below(r, 4), k->shared_gate = (orc_gate)s->gate_kind;
    if (k->pick != ORC_PICK_TOPK && s->gate_kind == MOE_SHARED_ROUTER_SINK)
        s->gate_kind = 0, k->shared_gate = ORC_GATE_NONE;
    s->count = s->gate_kind == MOE_SHARED_ROUTER_SINK ? 1 + rl_below(r, 3) : 1;
    s->d_ff = unit * (1 + rl_below(r, 3));
    k->n_shared = (int)s->count, k->d_ff_shared = (int)s->d_ff;
    s->clamp = rl_below(r, 3), k->shared_clamp = (orc_clamp)s->clamp;
    s->limit = rl_one_in(r, 2) && s->clamp ? 1.0f : 0, k->shared_limit = (double)s->limit;
    if (s->gate_kind == MOE_SHARED_ROUTER_SINK && l->desc.router.norm && rl_one_in(r, 2))
        l->desc.router.norm = MOE_NORM_SUM_WITH_SHARED, k->norm_scope = ORC_SCOPE_ROUTED_AND_SHARED;
}

/* ---- all of it ---- */

static inline void rl_router_weights(rl_layer *l) {
    orc_knobs *k = &l->knobs;
    rl_rng *r = &l->rng;
    size_t ids = (size_t)(k->n_expert + k->n_zero_expert),
           rows = ids + (k->shared_gate == ORC_GATE_ROUTER_SINK ? (size_t)k->n_shared : 0);
    l->weights.router =
        rl_matrix(l, &l->desc.router.weight, MOE_FORMAT_F32 + rl_below(r, 3), 1, rows, (size_t)k->d_model, 2.0f);
    if (rl_one_in(r, 4)) l->weights.router_bias = rl_array(l, &l->desc.router.weight.bias, 1, rows, 0, 0.3f);
    if (k->pick == ORC_PICK_TOPK && rl_one_in(r, 2))
        l->weights.sel_bias = rl_array(l, &l->desc.router.select_bias, 1, ids, rl_one_in(r, 2) ? -1.5f : 0.5f, 0.3f);
    if (!k->n_zero_expert && rl_one_in(r, 5))
        l->weights.per_expert_scale = rl_array(l, &l->desc.router.expert_scale, 1, ids, 1, 0.2f);
    if (rl_one_in(r, 8)) {
        l->desc.router.input_norm_eps = 1e-6f;
        k->router_norm = ORC_RNORM_RMS_SCALE, k->router_norm_eps = (double)1e-6f;
        l->weights.router_scale = rl_array(l, &l->desc.router.input_scale, 1, (size_t)k->d_model, 3, 0.5f);
    }
}

static inline void rl_expert_weights(rl_layer *l) {
    orc_knobs *k = &l->knobs;
    orc_weights *w = &l->weights;
    moe_desc *d = &l->desc;
    size_t e = (size_t)k->n_expert, in = k->d_latent ? (size_t)k->d_latent : (size_t)k->d_model, ff = (size_t)k->d_ff;
    if (k->gated) w->w1 = rl_matrix(l, &d->gate, l->format, e, ff, in, 2.0f);
    *(k->gated ? &w->w3 : &w->w1) =
        rl_matrix(l, &d->up, l->format, e, ff, in, 2.0f); /* the oracle calls the only one w1 */
    w->w2 = rl_matrix(l, &d->down, l->format, e, in, ff, 2.0f);
    if (rl_one_in(&l->rng, 3)) {
        if (k->gated) w->b1 = rl_array(l, &d->gate.bias, e, ff, 0, 0.2f);
        *(k->gated ? &w->b3 : &w->b1) = rl_array(l, &d->up.bias, e, ff, 0, 0.2f);
        w->b2 = rl_array(l, &d->down.bias, e, in, 0, 0.2f);
    }
    if (k->d_latent) {
        w->lat_in = rl_matrix(l, &d->latent.in, l->shared_format, 1, in, (size_t)k->d_model, 1.0f);
        w->lat_out = rl_matrix(l, &d->latent.out, l->shared_format, 1, (size_t)k->d_model, in, 1.0f);
        if (k->latent_norm_eps > 0) w->lat_norm = rl_array(l, &d->latent.norm, 1, in, 1, 0.2f);
    }
    if (rl_one_in(&l->rng, 6)) w->out_bias = rl_array(l, &d->ffn.out_bias, 1, (size_t)k->d_model, 0, 0.2f);
}

static inline void rl_shared_weights(rl_layer *l) {
    orc_knobs *k = &l->knobs;
    orc_weights *w = &l->weights;
    moe_shared *s = &l->desc.shared;
    size_t d = (size_t)k->d_model, ff = (size_t)k->d_ff_shared, n = (size_t)k->n_shared;
    if (!n) return;
    if (k->gated) w->sw1 = rl_matrix(l, &s->gate, l->shared_format, n, ff, d, 2.0f);
    *(k->gated ? &w->sw3 : &w->sw1) = rl_matrix(l, &s->up, l->shared_format, n, ff, d, 2.0f);
    w->sw2 = rl_matrix(l, &s->down, l->shared_format, n, d, ff, 2.0f);
    if (k->shared_gate == ORC_GATE_SIGMOID_DOT)
        w->sgate = rl_matrix(l, &s->gate_weight, MOE_FORMAT_BF16, 1, 1, d, 1.0f);
    if (k->shared_gate == ORC_GATE_SOFTMAX2) {
        w->sgate = rl_matrix(l, &s->gate_weight, MOE_FORMAT_F32, 1, 2, d, 1.0f);
        w->sgate_bias = rl_array(l, &s->gate_weight.bias, 1, 2, 0, 0.5f);
    }
}

/* unit: rows are multiples of it (256 for K-quants, 1 for dense formats). */
static inline void rl_make(rl_layer *l, uint64_t seed, uint32_t format, uint32_t shared_format, uint32_t unit,
                           uint32_t max_units) {
    memset(l, 0, sizeof *l);
    l->rng.s = seed;
    l->knobs = orc_defaults();
    l->format = format, l->shared_format = shared_format;
    rl_rng *r = &l->rng;
    orc_knobs *k = &l->knobs;
    moe_desc *d = &l->desc;
    d->d_model = unit * (1 + rl_below(r, max_units)), d->d_ff = unit * (1 + rl_below(r, max_units));
    d->n_experts = 1 + rl_below(r, 16);
    if (rl_one_in(r, 2)) d->n_experts = 4 * (1 + rl_below(r, 4));
    if (rl_one_in(r, 8)) d->n_zero_experts = 1 + rl_below(r, 4), d->zero_kind = rl_below(r, 2);
    d->top_k = 1 + rl_below(r, d->n_experts + d->n_zero_experts < 6 ? d->n_experts + d->n_zero_experts : 6);
    if (rl_one_in(r, 6)) d->latent.d = unit * (1 + rl_below(r, max_units));
    if (d->latent.d && rl_one_in(r, 2)) d->latent.norm_eps = 1e-5f;
    k->d_model = (int)d->d_model, k->d_ff = (int)d->d_ff, k->n_expert = (int)d->n_experts, k->top_k = (int)d->top_k;
    k->n_zero_expert = (int)d->n_zero_experts, k->zero_kind = (orc_zero)d->zero_kind;
    k->d_latent = (int)d->latent.d, k->latent_norm_eps = (double)d->latent.norm_eps;
    rl_router_knobs(l);
    rl_ffn_knobs(l);
    rl_shared_knobs(l, unit);
    rl_router_weights(l);
    rl_expert_weights(l);
    rl_shared_weights(l);
}

#endif
