/* Every status, with the field and the part that moe_error names; nothing is written when a call is refused; what is
   allowed (no tokens, y == x, repeated ids, skipped slots, absent experts that nobody needs) gives the right bits. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include <stdio.h>
#include <stdlib.h>
#include "oracle.h"
#include "random_layer.h"

static int passed, failed, skipped;
static uint32_t seen[MOE_STATUS_COUNT]; /* how often each status was asked for and came */

#define FAIL(...) (failed++, printf("FAIL "), printf(__VA_ARGS__), printf("\n"))

static void check(int ok, const char *name, const char *why) {
    if (ok) passed++;
    else FAIL("%s: %s", name, why);
}

/* ---- a small valid layer and call to break ---- */

enum { D = 32, FF = 48, E = 8, K = 2, T = 5, VOCAB = 7, SLOTS = 4, ZERO = 2, DL = 16, IDS = E + ZERO };

static struct {
    float gate[E * FF * D], up[E * FF * D], down[E * D * FF], router[(IDS + 2) * D], bias[E * FF];
    float shared_gate[2 * FF * D], shared_up[2 * FF * D], shared_down[2 * D * FF], shared_w[2 * D], latent_in[DL * D],
        latent_out[D * DL];
    int32_t table[VOCAB * K];
    int64_t table64[VOCAB * K];
    float x[T * D], rx[T * D], logits_in[T * (IDS + 2)], weights_in[T * SLOTS], sums[T * D];
    int32_t ids_in[T * SLOTS], token_ids[T];
} in;

/* Everything that a call may write. */
typedef struct outputs {
    float y[T * D], logits[T * (IDS + 2)], weights[T * SLOTS], slots[T * SLOTS * D];
    int32_t ids[T * SLOTS];
    uint64_t tokens[IDS];
    double weight[IDS], score[IDS];
    moe_stats stats;
} outputs;
static outputs out, before;
static uint8_t *workspace;
static size_t workspace_size;

static void fill_inputs(void) {
    rl_rng r = {42};
    float *lists[] = {in.gate,      in.up,          in.down,       in.router,    in.bias,       in.shared_gate,
                      in.shared_up, in.shared_down, in.shared_w,   in.latent_in, in.latent_out, in.x,
                      in.rx,        in.logits_in,   in.weights_in, in.sums};
    size_t n[] = {E * FF * D, E * FF * D, E * D * FF, (IDS + 2) * D, E * FF, 2 * FF * D,    2 * FF * D, 2 * D * FF,
                  2 * D,      DL * D,     D * DL,     T * D,         T * D,  T * (IDS + 2), T * SLOTS,  T * D};
    for (size_t a = 0; a < sizeof n / sizeof *n; a++) /* weights little-endian, tokens in the machine's order */
        for (size_t i = 0; i < n[a]; i++) {
            if (a < 11) rl_put32((uint8_t *)(lists[a] + i), 0.3f * rl_gauss(&r));
            else lists[a][i] = rl_gauss(&r);
        }
    for (int i = 0; i < VOCAB * K; i++) {
        uint8_t *p = (uint8_t *)(in.table + i), *q = (uint8_t *)(in.table64 + i);
        p[0] = q[0] = (uint8_t)((i * 3) % E);
    }
    for (int i = 0; i < T; i++) in.token_ids[i] = (i * 5) % VOCAB;
    for (int i = 0; i < T * SLOTS; i++) in.ids_in[i] = (i * 7) % E;
}

static void set_matrix(moe_matrix *m, const float *data) { m->format = MOE_FORMAT_F32, m->data = data; }

static moe_desc good_desc(void) {
    moe_desc d;
    memset(&d, 0, sizeof d);
    d.d_model = D, d.d_ff = FF, d.n_experts = E, d.top_k = K;
    set_matrix(&d.gate, in.gate), set_matrix(&d.up, in.up), set_matrix(&d.down, in.down),
        set_matrix(&d.router.weight, in.router);
    d.tiers = MOE_TIER_BIT(MOE_TIER_C);
    return d;
}
static void add_shared(moe_desc *d, uint32_t count, uint32_t kind) {
    d->shared.d_ff = FF, d->shared.count = count, d->shared.gate_kind = kind;
    set_matrix(&d->shared.gate, in.shared_gate), set_matrix(&d->shared.up, in.shared_up),
        set_matrix(&d->shared.down, in.shared_down);
    if (kind == MOE_SHARED_SIGMOID || kind == MOE_SHARED_SOFTMAX2) set_matrix(&d->shared.gate_weight, in.shared_w);
}
static void add_latent(moe_desc *d) {
    d->latent.d = DL;
    set_matrix(&d->latent.in, in.latent_in), set_matrix(&d->latent.out, in.latent_out);
}
static void add_table(moe_desc *d) {
    d->router.pick = MOE_PICK_TABLE, d->router.table = in.table, d->router.table_rows = VOCAB;
}

static moe_layer good_layer(const moe_desc *d) {
    moe_layer l;
    if (moe_layer_init(&l, d, NULL)) abort();
    return l;
}
static moe_io good_io(void) {
    moe_io io;
    memset(&io, 0, sizeof io);
    io.x = in.x, io.y = out.y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = T;
    io.ids_out = out.ids, io.weights_out = out.weights, io.logits_out = out.logits, io.stats = &out.stats;
    io.workspace = workspace, io.workspace_size = workspace_size, io.n_tasks = 2;
    return io;
}

static void poison_outputs(void) {
    memset(&out, 0xee, sizeof out);
    memset(&out.stats, 0, sizeof out.stats);
    memset(out.tokens, 0, sizeof out.tokens), memset(out.weight, 0, sizeof out.weight),
        memset(out.score, 0, sizeof out.score);
    out.stats.tokens = out.tokens, out.stats.weight = out.weight, out.stats.score = out.score;
    memcpy(&before, &out, sizeof out);
}

/* ---- init ---- */

/* part or field NULL: any. */
static int error_is(const char *name, const moe_error *e, moe_status got, moe_status want, const char *part,
                    const char *field) {
    if (got != want) return FAIL("%s: status %d (%s), wanted %d", name, (int)got, moe_status_text(got), (int)want), 0;
    if (e->status != want) return FAIL("%s: error.status %d", name, (int)e->status), 0;
    if (!e->part || !e->field) return FAIL("%s: error without part or field", name), 0;
    if (part && strcmp(e->part, part)) return FAIL("%s: part \"%s\", wanted \"%s\"", name, e->part, part), 0;
    if (field && strcmp(e->field, field)) return FAIL("%s: field \"%s\", wanted \"%s\"", name, e->field, field), 0;
    seen[want]++;
    return 1;
}

static void expect_init(const char *name, const moe_desc *d, moe_status want, const char *part, const char *field) {
    moe_layer l, poison;
    moe_error e;
    memset(&l, 0xa5, sizeof l), memset(&poison, 0xa5, sizeof poison), memset(&e, 0xa5, sizeof e);
    moe_status got = moe_layer_init(&l, d, &e);
    if (!error_is(name, &e, got, want, part, field)) return;
    if (want && memcmp(&l, &poison, sizeof l)) FAIL("%s: the layer was written", name);
    else if (moe_layer_init(&l, d, NULL) != want) FAIL("%s: another status without an error struct", name);
    else passed++;
}
/* One change of the good desc, and what init says of it. */
#define INIT(name, status, part, field, ...)                                                                         \
    do {                                                                                                             \
        moe_desc d = good_desc();                                                                                    \
        __VA_ARGS__;                                                                                                 \
        expect_init(name, &d, MOE_##status, part, field);                                                            \
    } while (0)

static void test_init_knobs(void) {
    static const struct {
        const char *field;
        size_t at;
        uint32_t count;
    } knobs[] = {
#define KNOB(field, count) {#field, offsetof(moe_desc, field), (uint32_t)(count)}
        KNOB(router.score, MOE_SCORE_COUNT),
        KNOB(router.select_on, MOE_SELECT_COUNT),
        KNOB(router.pick, MOE_PICK_COUNT),
        KNOB(router.weight_from, MOE_WEIGHT_COUNT),
        KNOB(router.norm, MOE_NORM_COUNT),
        KNOB(router.group, MOE_GROUP_COUNT),
        KNOB(router.group_mask_zero, 2),
        KNOB(router.norm_skip_k1, 2),
        KNOB(router.logit_bf16, 2),
        KNOB(router.capacity_drop, MOE_DROP_COUNT),
        KNOB(router.capacity_by_score, 2),
        KNOB(router.capacity_norm_after, 2),
        KNOB(shared.gate_kind, MOE_SHARED_COUNT),
        KNOB(zero_kind, MOE_ZERO_COUNT),
        KNOB(ffn.activation, MOE_ACT_COUNT),
        KNOB(ffn.ungated, 2),
        KNOB(ffn.clamp, MOE_CLAMP_COUNT),
        KNOB(shared.clamp, MOE_CLAMP_COUNT),
        KNOB(ffn.weight_at, MOE_WEIGHT_AT_COUNT),
        KNOB(compute, MOE_COMPUTE_COUNT)};
#undef KNOB
    for (size_t i = 0; i < sizeof knobs / sizeof *knobs; i++) {
        const uint32_t values[] = {knobs[i].count, knobs[i].count + 1, 0x7fffffffu, 0x80000000u, 0xffffffffu};
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            moe_desc d = good_desc();
            memcpy((char *)&d + knobs[i].at, &values[v], 4);
            expect_init(knobs[i].field, &d, MOE_ERR_KNOB, "", knobs[i].field);
        }
    }
}

static void test_init_floats(void) {
    static const struct {
        const char *field;
        size_t at;
        float low, high; /* accepted range */
    } floats[] = {
#define FLOAT(field, low, high) {#field, offsetof(moe_desc, field), low, high}
        FLOAT(router.softcap, 0, 3e38f),
        FLOAT(router.jitter, 0, 3e38f),
        FLOAT(router.norm_eps, 0, 3e38f),
        FLOAT(router.norm_min, 0, 3e38f),
        FLOAT(router.routed_scale, -3e38f, 3e38f),
        FLOAT(router.capacity_factor, 0, 3e38f),
        FLOAT(router.drop_below, 0, 1),
        FLOAT(router.top_p, 0, 1),
        FLOAT(router.input_norm_eps, 0, 3e38f),
        FLOAT(latent.norm_eps, 0, 3e38f),
        FLOAT(ffn.alpha, -3e38f, 3e38f),
        FLOAT(ffn.beta, -3e38f, 3e38f),
        FLOAT(ffn.linear_beta, -3e38f, 3e38f),
        FLOAT(ffn.expert_out_scale, -3e38f, 3e38f),
        FLOAT(ffn.combine_scale, -3e38f, 3e38f),
        FLOAT(ffn.limit, 0, 3e38f),
        FLOAT(shared.limit, 0, 3e38f)};
#undef FLOAT
    const float odd[] = {(float)NAN, (float)INFINITY, -(float)INFINITY};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        float ends[] = {floats[i].low, floats[i].high}, outside[] = {-1e-30f, 1.0000001f};
        for (size_t v = 0; v < 3 + 2 + 2; v++) {
            moe_desc d = good_desc();
            float value = v < 3 ? odd[v] : v < 5 ? ends[v - 3] : outside[v - 5];
            memcpy((char *)&d + floats[i].at, &value, 4);
            d.ffn.clamp = d.shared.clamp = MOE_CLAMP_PRE; /* a limit needs one */
            int refused = value < floats[i].low || value > floats[i].high;
            expect_init(floats[i].field, &d,
                        v < 3     ? MOE_ERR_VALUE
                        : refused ? MOE_ERR_KNOB
                                  : MOE_OK,
                        "", v < 3 || refused ? floats[i].field : "");
        }
    }
}

static void test_init_sizes(void) {
    static const uint32_t huge[] = {0x7fffffffu, 0x80000000u, 0xffffffffu};
    INIT("good", OK, "", "", (void)d);
    INIT("d_model 0", ERR_SIZE, "", "d_model", d.d_model = 0);
    INIT("d_ff 0", ERR_SIZE, "", "d_ff", d.d_ff = 0);
    INIT("n_experts 0", ERR_SIZE, "", "n_experts", d.n_experts = 0);
    INIT("top_k 0", ERR_SIZE, "", "top_k", d.top_k = 0);
    INIT("top_k > n", ERR_SIZE, "", "top_k", d.top_k = E + 1);
    INIT("top_k = n", OK, "", "", d.top_k = E);
    INIT("top_k > n + zero", ERR_SIZE, "", "top_k", d.top_k = E + 3, d.n_zero_experts = 2);
    INIT("top_k = n + zero", OK, "", "", d.top_k = E + 2, d.n_zero_experts = 2);
    INIT("expert_count", ERR_SIZE, "", "expert_count", d.expert_count = E + 1);
    INIT("expert_first", ERR_SIZE, "", "expert_count", d.expert_count = 4, d.expert_first = 5);
    INIT("expert_first without a count", ERR_SIZE, "", "expert_count", d.expert_first = 4);
    INIT("expert_first at the end", OK, "", "", d.expert_count = 4, d.expert_first = 4);
    INIT("expert_first wraps", ERR_SIZE, "", "expert_count", d.expert_count = 1, d.expert_first = 0xffffffffu);
    INIT("sink without d_ff", ERR_SIZE, "", "shared.d_ff", d.shared.gate_kind = MOE_SHARED_ROUTER_SINK);
    for (int i = 0; i < 3; i++) {
        INIT("d_model huge", ERR_SIZE, "", "d_model", d.d_model = huge[i]);
        INIT("d_ff huge", ERR_SIZE, "", "d_ff", d.d_ff = huge[i]);
        INIT("n_experts huge", ERR_SIZE, "", "n_experts", d.n_experts = huge[i]);
        INIT("n_zero_experts huge", ERR_SIZE, "", "n_zero_experts", d.n_zero_experts = huge[i]);
        INIT("top_k huge", ERR_SIZE, "", "top_k", d.top_k = huge[i]);
        INIT("expert_count huge", ERR_SIZE, "", "expert_count", d.expert_count = huge[i]);
        INIT("shared.count huge", ERR_SIZE, "", "shared.count", d.shared.count = huge[i]);
        INIT("shared.d_ff huge", ERR_SIZE, "", "shared.d_ff", d.shared.d_ff = huge[i]);
        INIT("latent.d huge", ERR_SIZE, "", "latent.d", d.latent.d = huge[i]);
    }
    INIT("weights overflow", ERR_OVERFLOW, "gate", "row_stride", d.d_model = d.d_ff = 1u << 24,
         d.n_experts = 1u << 24);
    INIT("ungated weights overflow", ERR_OVERFLOW, "up", "row_stride", d.d_model = d.d_ff = 1u << 24,
         d.n_experts = 1u << 24, d.ffn.ungated = 1);
    INIT("expert_stride overflows", ERR_OVERFLOW, "up", NULL, d.up.expert_stride = SIZE_MAX / 4);
    INIT("row_stride overflows", ERR_OVERFLOW, "down", NULL, d.down.row_stride = SIZE_MAX / 8);
    INIT("k_stride overflows", ERR_OVERFLOW, "up", NULL, d.up.k_stride = SIZE_MAX / 16);
    INIT("offset overflows", ERR_OVERFLOW, "up", NULL, d.up.offset = SIZE_MAX);
    INIT("bias stride overflows", ERR_OVERFLOW, "up", "bias", d.up.bias.type = MOE_TYPE_F32, d.up.bias.data = in.bias,
         d.up.bias.stride = SIZE_MAX / 4);
    INIT("bias offset overflows", ERR_OVERFLOW, "up", "bias", d.up.bias.type = MOE_TYPE_F32, d.up.bias.data = in.bias,
         d.up.bias.offset = SIZE_MAX);
}

static void test_init_canaries(void) {
    moe_desc odd;
    INIT("begin", ERR_DESC, "", NULL, d.begin_ = 1);
    INIT("end", ERR_DESC, "", NULL, d.end_ = 1);
    memset(&odd, 0xff, sizeof odd);
    expect_init("all ones", &odd, MOE_ERR_DESC, "", NULL);
    memset(&odd, 0, sizeof odd);
    expect_init("all zero", &odd, MOE_ERR_SIZE, "", NULL);
    memset(&odd, 0xff, sizeof odd);
    odd.begin_ = odd.end_ = 0; /* between the canaries everything is absurd */
    expect_init("all ones within", &odd, MOE_ERR_SIZE, "", NULL);
    moe_layer l, *none = NULL;
    moe_error e;
    check(error_is("no layer", &e, moe_layer_init(none, &odd, &e), MOE_ERR_NULL, "", "layer"), "no layer", "wrong");
    check(error_is("no desc", &e, moe_layer_init(&l, NULL, &e), MOE_ERR_NULL, "", "desc"), "no desc", "wrong");
    check(moe_layer_init(NULL, NULL, NULL) == MOE_ERR_NULL, "nothing", "not refused");
}

/* One matrix of the desc under all that can be wrong with it. */
static void one_matrix(const char *part, size_t at, const moe_desc *base, uint32_t k) {
#define MATRIX(status, field, ...)                                                                                   \
    do {                                                                                                             \
        moe_desc d = *base;                                                                                          \
        moe_matrix *m = (moe_matrix *)(void *)((char *)&d + at);                                                     \
        __VA_ARGS__;                                                                                                 \
        expect_init(#__VA_ARGS__, &d, MOE_##status, MOE_##status ? part : "", field);                                \
    } while (0)
    static const void *const list[] = {in.bias};
    static const uint32_t formats[] = {MOE_FORMAT_COUNT, 0x7fffffffu, 0x80000000u, 0xffffffffu};
    static const uint32_t types[] = {MOE_TYPE_E8M0,  MOE_TYPE_E4M3, MOE_TYPE_U8, MOE_TYPE_U4X8,
                                     MOE_TYPE_COUNT, 0x80000000u,   0xffffffffu};
    MATRIX(ERR_FORMAT, "format", m->format = 0);
    for (size_t i = 0; i < 4; i++) MATRIX(ERR_FORMAT, "format", m->format = formats[i]);
    MATRIX(ERR_NULL, "data", m->data = NULL);
    MATRIX(ERR_STRIDE, "row_stride", m->row_stride = 4 * (size_t)k - 1);
    MATRIX(OK, "", m->row_stride = 4 * (size_t)k);
    MATRIX(ERR_STRIDE, "row_stride", m->row_stride = 3, m->k_stride = 400);
    MATRIX(ERR_STRIDE, "k_stride", m->row_stride = 4, m->k_stride = 3);
    MATRIX(ERR_FORMAT, "k_stride", m->format = MOE_FORMAT_FP8_CHANNEL, m->k_stride = 400);
    MATRIX(ERR_OVERFLOW, NULL, m->row_stride = SIZE_MAX);
    MATRIX(ERR_OVERFLOW, NULL, m->k_stride = SIZE_MAX / 8);
    MATRIX(ERR_OVERFLOW, NULL, m->offset = SIZE_MAX);
    MATRIX(ERR_BLOCK, "k", m->format = MOE_FORMAT_Q4_K);
    if (k % 32) MATRIX(ERR_BLOCK, "k", m->format = MOE_FORMAT_Q8_0);
    for (size_t i = 2; i < 7; i++)
        MATRIX(ERR_TYPE, "scale.type", m->format = MOE_FORMAT_FP8_BLOCK, m->scale.type = types[i],
               m->scale.data = in.bias);
    MATRIX(ERR_NULL, "scale.data", m->format = MOE_FORMAT_FP8_BLOCK, m->scale.type = MOE_TYPE_F32);
    MATRIX(ERR_SIZE, "scale.cols", m->format = MOE_FORMAT_INT8_CHANNEL, m->scale.type = MOE_TYPE_F32,
           m->scale.data = in.bias, m->scale.cols = 12);
    if (k % 32 == 0)
        MATRIX(ERR_SIZE, "scale.cols", m->format = MOE_FORMAT_MXFP4_HF, m->scale.type = MOE_TYPE_E8M0,
               m->scale.data = in.bias, m->scale.cols = 16);
    MATRIX(ERR_TYPE, "zero.type", m->zero.type = MOE_TYPE_U8, m->zero.data = in.bias);
    MATRIX(ERR_TYPE, "zero.type", m->format = MOE_FORMAT_INT4_GROUP, m->zero.type = MOE_TYPE_F32,
           m->zero.data = in.bias);
    MATRIX(ERR_NULL, "zero.data", m->format = MOE_FORMAT_INT4_GROUP, m->zero.type = MOE_TYPE_U8);
    MATRIX(ERR_SIZE, "zero.cols", m->format = MOE_FORMAT_INT4_GROUP, m->zero.type = MOE_TYPE_U8,
           m->zero.data = in.bias, m->zero.cols = 12);
    for (size_t i = 0; i < 7; i++) {
        MATRIX(ERR_TYPE, "scale2.type", m->scale2.type = types[i], m->scale2.data = in.bias);
        MATRIX(ERR_TYPE, "bias", m->bias.type = types[i], m->bias.data = in.bias);
    }
    MATRIX(ERR_TYPE, "scale.type", m->format = MOE_FORMAT_FP8_BLOCK, m->scale.data = in.bias);
    MATRIX(ERR_TYPE, "zero.type", m->format = MOE_FORMAT_INT4_GROUP, m->zero.data = in.bias);
    MATRIX(ERR_TYPE, "scale2", m->scale2.data = in.bias);
    MATRIX(ERR_TYPE, "bias", m->bias.expert = list);
    MATRIX(ERR_NULL, "scale2", m->scale2.type = MOE_TYPE_F32);
    MATRIX(ERR_NULL, "bias", m->bias.type = MOE_TYPE_BF16);
#undef MATRIX
}

static void test_init_matrices(void) {
    moe_desc d = good_desc();
    add_shared(&d, 1, MOE_SHARED_SIGMOID), add_latent(&d);
#define ONE(part, k) one_matrix(#part, offsetof(moe_desc, part), &d, k)
    ONE(gate, DL), ONE(up, DL), ONE(down, FF), ONE(router.weight, D), ONE(shared.gate, D), ONE(shared.up, D),
        ONE(shared.down, FF);
    ONE(shared.gate_weight, D), ONE(latent.in, D), ONE(latent.out, DL);
#undef ONE
    static const struct {
        const char *field;
        size_t at;
    } arrays[] = {
#define ARRAY(field) {#field, offsetof(moe_desc, field)}
        ARRAY(router.select_bias), ARRAY(router.expert_scale), ARRAY(router.input_scale), ARRAY(latent.norm),
        ARRAY(ffn.out_bias)};
#undef ARRAY
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        static const uint32_t types[] = {MOE_TYPE_E8M0,  MOE_TYPE_E4M3, MOE_TYPE_U8, MOE_TYPE_U4X8,
                                         MOE_TYPE_COUNT, 0x80000000u,   0xffffffffu};
        for (size_t t = 0; t < sizeof types / sizeof *types; t++) {
            moe_desc bad = d;
            moe_array *a = (moe_array *)(void *)((char *)&bad + arrays[i].at);
            a->type = types[t], a->data = in.bias;
            expect_init(arrays[i].field, &bad, MOE_ERR_TYPE, "", arrays[i].field);
        }
        moe_desc untyped = d, bad = d;
        ((moe_array *)(void *)((char *)&untyped + arrays[i].at))->data = in.bias;
        expect_init(arrays[i].field, &untyped, MOE_ERR_TYPE, "", arrays[i].field);
        ((moe_array *)(void *)((char *)&bad + arrays[i].at))->type = MOE_TYPE_F32;
        expect_init(arrays[i].field, &bad, MOE_ERR_NULL, "", arrays[i].field);
        moe_array *a = (moe_array *)(void *)((char *)&bad + arrays[i].at);
        bad.latent.norm_eps = 1e-6f, a->data = in.bias, a->stride = SIZE_MAX / 2;
        expect_init(arrays[i].field, &bad, MOE_ERR_OVERFLOW, "", arrays[i].field);
        a->stride = 0, a->offset = SIZE_MAX / 2;
        expect_init(arrays[i].field, &bad, MOE_ERR_OVERFLOW, "", arrays[i].field);
        a->offset = 0, a->expert_stride = SIZE_MAX / 2 + 1;
        expect_init(arrays[i].field, &bad, MOE_ERR_OVERFLOW, "", arrays[i].field);
    }
}

static void test_init_combinations(void) {
    static const void *const lists[] = {in.shared_up};
    uint32_t foreign = 0;
    for (uint32_t t = 0; t < MOE_TIER_COUNT; t++)
        if (!(moe_tiers() & MOE_TIER_BIT(t))) foreign |= MOE_TIER_BIT(t);
    INIT("no such tier", ERR_TIER, "", "tiers", d.tiers = 0x80000000u);
    if (foreign) INIT("tiers of other machines", ERR_TIER, "", "tiers", d.tiers = foreign);
    INIT("unknown bits beside c", OK, "", "", d.tiers = 0x80000001u);
    INIT("q8 of floats", ERR_COMPUTE, "", "compute", d.compute = MOE_COMPUTE_Q8);
    INIT("bf16 on c", ERR_COMPUTE, "", "compute", d.compute = MOE_COMPUTE_BF16);
    INIT("q8, half a block", ERR_COMPUTE, "", "compute", d.compute = MOE_COMPUTE_Q8,
         d.gate.format = d.up.format = d.down.format = MOE_FORMAT_INT8_CHANNEL);
    INIT("no groups", ERR_KNOB, "", "router.n_group", d.router.group = MOE_GROUP_MAX);
    INIT("uneven groups", ERR_KNOB, "", "router.n_group", d.router.group = MOE_GROUP_MAX, d.router.n_group = 3,
         d.router.topk_group = 1);
    INIT("no kept groups", ERR_KNOB, "", "router.topk_group", d.router.group = MOE_GROUP_TOP2_SUM,
         d.router.n_group = 4);
    INIT("kept groups too many", ERR_KNOB, "", "router.topk_group", d.router.group = MOE_GROUP_TOP2_SUM,
         d.router.n_group = 4, d.router.topk_group = 5);
    INIT("kept groups too small", ERR_KNOB, "", "router.topk_group", d.router.group = MOE_GROUP_MAX,
         d.router.n_group = 8, d.router.topk_group = 1);
    INIT("groups that hold k", OK, "", "", d.router.group = MOE_GROUP_MAX, d.router.n_group = 4,
         d.router.topk_group = 1);
    INIT("uneven per group", ERR_KNOB, "", "router.n_group", d.router.group = MOE_GROUP_PER_GROUP,
         d.router.n_group = 4);
    INIT("per group", OK, "", "", d.router.group = MOE_GROUP_PER_GROUP, d.router.n_group = 2);
    INIT("no table", ERR_NULL, "", "router.table", d.router.pick = MOE_PICK_TABLE);
    INIT("table of 2-byte ids", ERR_KNOB, "", "router.table_bytes", add_table(&d), d.router.table_bytes = 2);
    INIT("table's rows short", ERR_STRIDE, "", "router.table_stride", add_table(&d),
         d.router.table_stride = 4 * K - 1);
    INIT("table's long rows short", ERR_STRIDE, "", "router.table_stride", add_table(&d), d.router.table_bytes = 8,
         d.router.table_stride = 8 * K - 1);
    INIT("table's rows apart", OK, "", "", add_table(&d), d.router.table_stride = 4 * K + 4);
    INIT("experts too far apart", ERR_OVERFLOW, "up", "expert_stride", d.up.expert_stride = SIZE_MAX / E);
    INIT("q8 of gate alone", ERR_COMPUTE, "", "compute", d.compute = MOE_COMPUTE_Q8, d.gate.format = MOE_FORMAT_Q8_0);
    INIT("q8 of up alone", ERR_COMPUTE, "", "compute", d.compute = MOE_COMPUTE_Q8, d.up.format = MOE_FORMAT_Q8_0);
    INIT("shared up as a list alone", ERR_KNOB, "", "shared.d_ff", d.shared.up.expert = lists);
    INIT("sparsemixer k 3", ERR_KNOB, "", "top_k", d.router.pick = MOE_PICK_SPARSEMIXER, d.top_k = 3);
    INIT("sparsemixer groups", ERR_KNOB, "", "router.group", d.router.pick = MOE_PICK_SPARSEMIXER,
         d.router.group = MOE_GROUP_MAX, d.router.n_group = 4, d.router.topk_group = 2);
    INIT("sparsemixer bias", ERR_KNOB, "", "router.select_bias", d.router.pick = MOE_PICK_SPARSEMIXER,
         d.router.select_bias.type = MOE_TYPE_F32, d.router.select_bias.data = in.bias);
    INIT("sparsemixer sink", ERR_KNOB, "", "shared.gate_kind", d.router.pick = MOE_PICK_SPARSEMIXER,
         add_shared(&d, 1, MOE_SHARED_ROUTER_SINK));
    INIT("norm with no sink", ERR_KNOB, "", "router.norm", d.router.norm = MOE_NORM_SUM_WITH_SHARED);
    INIT("no router", OK, "", "", memset(&d.router.weight, 0, sizeof d.router.weight));
    INIT("ungated without gate", OK, "", "", d.ffn.ungated = 1, memset(&d.gate, 0, sizeof d.gate));
    INIT("gated without gate", ERR_FORMAT, "gate", "format", memset(&d.gate, 0, sizeof d.gate));
    INIT("gate of an ungated layer", ERR_KNOB, "", "ffn.ungated", d.ffn.ungated = 1);
    INIT("shared.gate of an ungated layer", ERR_KNOB, "", "ffn.ungated", d.ffn.ungated = 1,
         memset(&d.gate, 0, sizeof d.gate), add_shared(&d, 1, MOE_SHARED_PLAIN));
    INIT("shared experts without a width", ERR_KNOB, "", "shared.d_ff", add_shared(&d, 1, MOE_SHARED_PLAIN),
         d.shared.d_ff = 0);
    INIT("shared down alone", ERR_KNOB, "", "shared.d_ff", d.shared.down.data = in.shared_down);
    INIT("gate of shared experts unused", ERR_KNOB, "", "shared.gate_kind", add_shared(&d, 1, MOE_SHARED_SIGMOID),
         d.shared.gate_kind = MOE_SHARED_PLAIN);
    INIT("latent projections without a width", ERR_KNOB, "", "latent.d", add_latent(&d), d.latent.d = 0);
}

/* What another knob leaves unused, and what looks like it but isn't. */
static void test_init_unused(void) {
#define NORM(a) ((a).type = MOE_TYPE_F32, (a).data = in.bias)
    INIT("groups without a rule", ERR_KNOB, "", "router.group", d.router.n_group = 2);
    INIT("kept groups without a rule", ERR_KNOB, "", "router.group", d.router.topk_group = 2);
    INIT("one group is none", OK, "", "", d.router.n_group = d.router.topk_group = 1);
    INIT("limit without a clamp", ERR_KNOB, "", "ffn.clamp", d.ffn.limit = 7);
    INIT("limit with a clamp", OK, "", "", d.ffn.limit = 7, d.ffn.clamp = MOE_CLAMP_POST);
    INIT("clamp without a limit", OK, "", "", d.ffn.clamp = MOE_CLAMP_POST);
    INIT("shared limit without a clamp", ERR_KNOB, "", "shared.clamp", add_shared(&d, 1, MOE_SHARED_PLAIN),
         d.shared.limit = 7, d.ffn.clamp = MOE_CLAMP_PRE);
    INIT("shared limit with a clamp", OK, "", "", add_shared(&d, 1, MOE_SHARED_PLAIN), d.shared.limit = 7,
         d.shared.clamp = MOE_CLAMP_PRE);
    INIT("a preset's shared limit, no shared experts", OK, "", "", d.shared.limit = 7,
         d.shared.clamp = MOE_CLAMP_PRE);
    INIT("two capacities", ERR_KNOB, "", "router.capacity", d.router.capacity = 3, d.router.capacity_factor = 1.5f);
    INIT("a capacity", OK, "", "", d.router.capacity = 3);
    INIT("a capacity factor", OK, "", "", d.router.capacity_factor = 1.5f);
    INIT("min_keep of nothing", ERR_KNOB, "", "router.min_keep", d.router.min_keep = 2);
    INIT("min_keep beyond k", ERR_KNOB, "", "router.min_keep", d.router.min_keep = K + 1, d.router.top_p = 0.5f);
    INIT("min_keep 1", OK, "", "", d.router.min_keep = 1);
    INIT("min_keep k of top_p", OK, "", "", d.router.min_keep = K, d.router.top_p = 0.5f);
    INIT("min_keep k of drop_below", OK, "", "", d.router.min_keep = K, d.router.drop_below = 0.5f);
    INIT("a table that is not asked for", ERR_KNOB, "", "router.pick", add_table(&d), d.router.pick = MOE_PICK_TOP_K);
    INIT("latent norm without a width", ERR_KNOB, "", "latent.d", NORM(d.latent.norm), d.latent.norm_eps = 1e-6f);
    INIT("latent norm without an eps", ERR_KNOB, "", "latent.norm_eps", add_latent(&d), NORM(d.latent.norm));
    INIT("latent norm", OK, "", "", add_latent(&d), NORM(d.latent.norm), d.latent.norm_eps = 1e-6f);
    INIT("latent norm of ones", OK, "", "", add_latent(&d), d.latent.norm_eps = 1e-6f);
#undef NORM
}

/* Gate and up share what they read: the compute that both have. */
static void test_init_computes(void) {
    static const struct {
        uint32_t gate, up, compute;
    } pairs[] = {{MOE_FORMAT_Q8_0, MOE_FORMAT_Q8_0, MOE_COMPUTE_Q8},
                 {MOE_FORMAT_F32, MOE_FORMAT_Q8_0, MOE_COMPUTE_F32},
                 {MOE_FORMAT_Q8_0, MOE_FORMAT_F32, MOE_COMPUTE_F32},
                 {MOE_FORMAT_F32, MOE_FORMAT_F16, MOE_COMPUTE_F32}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        moe_desc d = good_desc();
        d.gate.format = pairs[i].gate, d.up.format = pairs[i].up;
        moe_layer l = good_layer(&d);
        check(moe_layer_compute(&l, MOE_GATE) == pairs[i].compute &&
                  moe_layer_compute(&l, MOE_UP) == pairs[i].compute,
              "gate and up", "another compute");
        check(moe_layer_compute(&l, MOE_DOWN) == MOE_COMPUTE_F32, "down", "another compute");
    }
}

/* Numbers that explain an error. */
static void test_init_numbers(void) {
    static const struct {
        uint32_t scale, zero, cols;
        uint64_t got, want;
    } grids[] = {{MOE_TYPE_F32, 0, 12, 12, 32},
                 {MOE_TYPE_U8, 0, 0, MOE_TYPE_U8, 0},
                 {0, MOE_TYPE_U8, 12, 12, 32},
                 {0, MOE_TYPE_E8M0, 0, MOE_TYPE_E8M0, 0}};
    moe_layer l;
    moe_error e;
    for (size_t i = 0; i < sizeof grids / sizeof *grids; i++) {
        moe_desc d = good_desc();
        moe_grid *g = grids[i].zero ? &d.up.zero : &d.up.scale;
        d.up.format = MOE_FORMAT_INT4_GROUP;
        g->type = grids[i].zero ? grids[i].zero : grids[i].scale, g->data = in.bias, g->cols = grids[i].cols;
        check(moe_layer_init(&l, &d, &e) && e.got == grids[i].got && e.want == grids[i].want, "got and want of grids",
              "wrong");
    }
    moe_desc d = good_desc();
    d.up.format = MOE_FORMAT_MXFP4_HF, d.up.scale.type = MOE_TYPE_E8M0, d.up.scale.data = in.bias,
    d.up.scale.cols = 16;
    check(moe_layer_init(&l, &d, &e) && e.got == 16 && e.want == 32, "got and want of MXFP4", "wrong");
    d.up.format = MOE_FORMAT_NVFP4_HF, d.up.scale.type = MOE_TYPE_E4M3, d.up.scale.cols = 32;
    check(moe_layer_init(&l, &d, &e) && e.got == 32 && e.want == 16, "got and want of NVFP4", "wrong");
    d = good_desc(), d.router.min_keep = K + 1, d.router.top_p = 0.5f;
    check(moe_layer_init(&l, &d, &e) && e.got == K + 1 && e.want == K, "got and want of min_keep", "wrong");
    d = good_desc(), d.compute = MOE_COMPUTE_Q8;
    check(moe_layer_init(&l, &d, &e) && e.got == MOE_COMPUTE_Q8 && e.want == 0, "got and want of compute", "wrong");
}

/* ---- calls ---- */

enum { EARLY, LATE }; /* LATE: found by routing, when logits and statistics were given already */

static int untouched(int when) {
    if (when == LATE) {
        memcpy(out.logits, before.logits, sizeof out.logits), memcpy(out.score, before.score, sizeof out.score);
        out.stats.saved = before.stats.saved, out.stats.z = before.stats.z;
    }
    return !memcmp(&out, &before, sizeof out);
}

/* All phases in turn, by two workers. */
static moe_status by_phases(const moe_layer *l, const moe_io *io, moe_status *first) {
    moe_status worst = MOE_OK;
    uint32_t n = moe_phase_count(l, io);
    *first = MOE_OK;
    for (uint32_t p = 0; p < n; p++)
        for (uint32_t i = 0, nth = io->n_tasks < 2 ? 1 : 2; i < nth; i++) {
            moe_status s = moe_phase_run(l, io, p, i, nth);
            if (s && !worst) worst = s, *first = (moe_status)p;
            if (worst && p > (uint32_t)*first && s != worst) return MOE_STATUS_COUNT; /* forgotten again */
        }
    return worst;
}

static void expect_call(const char *name, const moe_layer *l, moe_io io, moe_status want, const char *field,
                        int when) {
    moe_error e;
    moe_status first;
    io.error = &e;
    poison_outputs();
    memset(&e, 0xa5, sizeof e);
    moe_status got = moe_forward(l, &io);
    if (!error_is(name, &e, got, want, "", field)) return;
    if (want && !untouched(when)) {
        FAIL("%s: an output was touched", name);
        return;
    }
    io.error = NULL;
    poison_outputs();
    if (moe_forward(l, &io) != want) FAIL("%s: another status without an error struct", name);
    else if (want && !untouched(when)) FAIL("%s: an output was touched without an error struct", name);
    else passed++;
    if (!io.n_tokens) return;
    poison_outputs();
    io.error = &e;
    if (by_phases(l, &io, &first) != want) FAIL("%s: another status by phases", name);
    else if (want && !untouched(when)) FAIL("%s: an output was touched by phases", name);
    else if (want && (e.status != want || strcmp(e.field, field))) FAIL("%s: phases name %s", name, e.field);
    else passed++;
}
#define CALL(name, status, field, when, ...)                                                                         \
    do {                                                                                                             \
        moe_io io = good_io();                                                                                       \
        __VA_ARGS__;                                                                                                 \
        expect_call(name, &l, io, MOE_##status, field, when);                                                        \
    } while (0)

static void test_call_pointers(void) {
    moe_desc d = good_desc();
    moe_layer l = good_layer(&d);
    moe_io none;
    static const uint32_t types[] = {MOE_TYPE_NONE, MOE_TYPE_E8M0, MOE_TYPE_U8, MOE_TYPE_COUNT,
                                     0x7fffffffu,   0x80000000u,   0xffffffffu};
    memset(&none, 0, sizeof none);
    CALL("good", OK, "", EARLY, (void)io);
    CALL("no x", ERR_NULL, "x", EARLY, io.x = NULL);
    CALL("no y", ERR_NULL, "y", EARLY, io.y = NULL);
    CALL("no workspace", ERR_NULL, "workspace", EARLY, io.workspace = NULL);
    CALL("only what is needed", OK, "", EARLY, io.ids_out = NULL, io.weights_out = NULL, io.logits_out = NULL,
         io.stats = NULL);
    CALL("weights without ids", ERR_NULL, "ids_in", EARLY, io.weights_in = in.weights_in);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        CALL("x_type", ERR_TYPE, "x_type", EARLY, io.x_type = types[i]);
        CALL("y_type", ERR_TYPE, "y_type", EARLY, io.y_type = types[i]);
    }
    CALL("x_stride", ERR_STRIDE, "x_stride", EARLY, io.x_stride = 4 * D - 1);
    CALL("x_stride 1", ERR_STRIDE, "x_stride", EARLY, io.x_stride = 1);
    CALL("y_stride", ERR_STRIDE, "y_stride", EARLY, io.y_stride = 4 * D - 1);
    CALL("y_stride of bf16", ERR_STRIDE, "y_stride", EARLY, io.y_type = MOE_TYPE_BF16, io.y_stride = 2 * D - 1);
    CALL("router_x_stride", ERR_STRIDE, "router_x_stride", EARLY, io.router_x = in.rx,
         io.router_x_stride = 4 * D - 1);
    CALL("ids_stride", ERR_STRIDE, "ids_stride", EARLY, io.ids_stride = 4 * K - 1);
    CALL("weights_stride", ERR_STRIDE, "weights_stride", EARLY, io.weights_stride = 4 * K - 1);
    CALL("ids_stride of k", ERR_STRIDE, "ids_stride", EARLY, io.ids_in = in.ids_in, io.k = 4, io.ids_stride = 12);
    CALL("x_stride overflows", ERR_OVERFLOW, "x_stride", EARLY, io.x_stride = SIZE_MAX / 4);
    CALL("y_stride overflows", ERR_OVERFLOW, "y_stride", EARLY, io.y_stride = SIZE_MAX / 4);
    CALL("router_x_stride overflows", ERR_OVERFLOW, "router_x_stride", EARLY, io.router_x = in.rx,
         io.router_x_stride = SIZE_MAX / 4);
    CALL("tokens overflow", ERR_OVERFLOW, "x_stride", EARLY, io.n_tokens = SIZE_MAX);
    CALL("tokens beyond any workspace", ERR_WORKSPACE, "workspace_size", EARLY, io.y = (void *)(uintptr_t)io.x,
         io.n_tokens = (size_t)1 << (sizeof(size_t) * 8 - 10));
    CALL("many tokens, small workspace", ERR_WORKSPACE, "workspace_size", EARLY, io.y = (void *)(uintptr_t)io.x,
         io.n_tokens = 1 << 22, io.workspace_size = 1 << 20);
    CALL("workspace of 0", ERR_WORKSPACE, "workspace_size", EARLY, io.workspace_size = 0);
    CALL("workspace of 63", ERR_WORKSPACE, "workspace_size", EARLY, io.workspace_size = 63);
    CALL("tasks beyond any workspace", ERR_WORKSPACE, "workspace_size", EARLY, io.n_tasks = 0xfffffff0u);
    CALL("no tokens", OK, "", EARLY, io = none);
    check(moe_forward(NULL, &none) == MOE_ERR_NULL && moe_forward(&l, NULL) == MOE_ERR_NULL, "forward of nothing",
          "not refused");
    check(moe_route(NULL, &none) == MOE_ERR_NULL && moe_route(&l, NULL) == MOE_ERR_NULL, "route of nothing",
          "not refused");
    check(moe_route(&l, &none) == MOE_OK, "route of no tokens", "refused");
    check(moe_finish(NULL, &none, in.sums) == MOE_ERR_NULL && moe_finish(&l, NULL, in.sums) == MOE_ERR_NULL,
          "finish of nothing", "not refused");
    check(moe_finish(&l, &none, NULL) == MOE_OK, "finish of no tokens", "refused");
    check(moe_phase_count(NULL, &none) == 0 && moe_phase_count(&l, NULL) == 0 && moe_phase_count(&l, &none) == 0,
          "phases of nothing", "counted");
    check(moe_phase_run(NULL, &none, 0, 0, 1) == MOE_ERR_NULL && moe_phase_run(&l, NULL, 0, 0, 1) == MOE_ERR_NULL,
          "phase of nothing", "not refused");
    check(moe_phase_run(&l, &none, 0, 0, 1) == MOE_OK, "phase of no tokens", "refused");
    moe_io direct = good_io();
    moe_error e;
    direct.error = &e;
    poison_outputs();
    check(error_is("finish without sums", &e, moe_finish(&l, &direct, NULL), MOE_ERR_NULL, "", "sums") &&
              untouched(EARLY),
          "finish without sums", "wrong");
    memset(&d.router.weight, 0, sizeof d.router.weight); /* a layer whose calls bring ids or logits */
    l = good_layer(&d);
    CALL("no router", ERR_NULL, "router.weight.data", EARLY, (void)io);
    CALL("no router, ids", ERR_NULL, "router.weight.data", EARLY, io.ids_in = in.ids_in);
    CALL("no router, ids and weights", OK, "", EARLY, io.ids_in = in.ids_in, io.weights_in = in.weights_in);
    CALL("no router, logits", OK, "", EARLY, io.logits_in = in.logits_in);
}

/* Exactly the stated workspaces work, one byte less does not, at any alignment. */
static void test_call_workspace(void) {
    moe_desc d = good_desc();
    moe_layer l = good_layer(&d);
    for (uint32_t tasks = 1; tasks <= 7; tasks += 3) {
        size_t full = moe_workspace_size(&l, T, tasks), least = moe_workspace_min(&l, T, tasks);
        check(least > 63 && least <= full && full <= workspace_size - 64, "workspace sizes", "absurd");
        for (size_t a = 0; a < 64;
             a += a < 3 ? 1 : 20) { /* the workspace is 64-byte aligned: 63 bytes are to spare */
            CALL("full workspace", OK, "", EARLY, io.n_tasks = tasks, io.workspace = workspace + a,
                 io.workspace_size = full);
            CALL("least workspace", OK, "", EARLY, io.n_tasks = tasks, io.workspace = workspace + a,
                 io.workspace_size = least);
            CALL("less than that", ERR_WORKSPACE, "workspace_size", EARLY, io.n_tasks = tasks,
                 io.workspace = workspace + a, io.workspace_size = least - 63 + ((64 - a) & 63) - 1);
        }
    }
    check(moe_workspace_size(&l, 0, 1) == 0 && moe_workspace_min(&l, 0, 1) == 0, "workspace of no tokens", "not 0");
    check(moe_workspace_size(NULL, 1, 1) == 0 && moe_workspace_min(NULL, 1, 1) == 0, "workspace of no layer",
          "not 0");
    check(moe_workspace_size(&l, 1, 0) == moe_workspace_size(&l, 1, 1), "workspace of 0 tasks", "not that of 1");
    check(moe_workspace_size(&l, SIZE_MAX, 1) == SIZE_MAX && moe_workspace_min(&l, SIZE_MAX, 1) == SIZE_MAX,
          "workspace", "no overflow");
    check(moe_workspace_size(&l, SIZE_MAX / 16, 1) == SIZE_MAX && moe_workspace_min(&l, SIZE_MAX / 16, 1) == SIZE_MAX,
          "workspace", "no overflow");
    check(moe_workspace_size(&l, 0x80000000u, 1) == SIZE_MAX, "workspace of 2^31 tokens", "no overflow");
    add_shared(&d, 1u << 12,
               MOE_SHARED_PLAIN); /* its slots are counted in 32 bits too, and the product may wrap a size_t */
    d.shared.gate.expert_stride = d.shared.up.expert_stride = d.shared.down.expert_stride = 1;
    l = good_layer(&d);
    check(moe_workspace_size(&l, (1 << 19) - 1, 1) != SIZE_MAX || sizeof(size_t) < 8,
          "workspace of nearly 2^31 shared slots", "overflow");
    check(moe_workspace_size(&l, 1 << 19, 1) == SIZE_MAX && moe_workspace_size(&l, 1 << 20, 1) == SIZE_MAX,
          "workspace of 2^31 shared slots", "no overflow");
    d = good_desc(), l = good_layer(&d);
    for (size_t n = 1, last = 0; n < 2000; n += n < 100 ? 1 : 37) { /* more tokens never need less */
        size_t min = moe_workspace_min(&l, n, 3);
        if (min < last || min > moe_workspace_size(&l, n, 3))
            FAIL("workspace_min of %zu tokens is less than of fewer, or more than the full one", n);
        last = min;
    }
}

static void test_call_phases(void) {
    moe_desc d = good_desc();
    moe_layer l = good_layer(&d);
    moe_io io = good_io();
    moe_error e;
    io.error = &e;
    uint32_t n = moe_phase_count(&l, &io);
    static const struct {
        uint32_t phase, ith, nth; /* phase counted from the number of phases */
        const char *field;
    } bad[] = {{0, 0, 1, "phase"}, {1, 0, 1, "phase"}, {0x7fffffffu, 0, 1, "phase"},
               {~0u, 0, 0, "nth"}, {~0u, 0, 3, "nth"}, {~0u, 0, ~0u, "nth"}};
    check(n > 1, "phases", "too few");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        poison_outputs();
        moe_status s = moe_phase_run(&l, &io, bad[i].phase == ~0u ? 0 : n + bad[i].phase, bad[i].ith, bad[i].nth);
        check(error_is("phase", &e, s, MOE_ERR_PHASE, "", bad[i].field) && untouched(EARLY), "phase", "wrong");
    }
    check(moe_phase_run(&l, &io, 0, 1, 1) == MOE_ERR_PHASE, "ith = nth", "not refused");
    check(moe_phase_run(&l, &io, 0, 2, 1) == MOE_ERR_PHASE, "ith > nth", "not refused");
    check(moe_phase_run(&l, &io, 0, ~0u, 2) == MOE_ERR_PHASE, "ith huge", "not refused");
    io.x = NULL;
    check(moe_phase_count(&l, &io) == 1, "phases of a bad call", "not 1");
    check(error_is("phase of a bad call", &e, moe_phase_run(&l, &io, 0, 0, 1), MOE_ERR_NULL, "", "x"),
          "phase of a bad call", "wrong");
}

/* ---- ids, tokens, absent experts ---- */

static void test_call_ids(void) {
    static const int32_t bad[] = {E, E + 1, 0x7fffffff, -2, -0x7fffffff - 1};
    moe_desc d = good_desc();
    moe_layer l = good_layer(&d);
    int32_t ids[T * SLOTS];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int at = 0; at < T * K; at += 3) {
            memcpy(ids, in.ids_in, sizeof ids);
            ids[at] = bad[i];
            CALL("id out of range, routing weights", ERR_EXPERT_ID, "ids_in", LATE, io.ids_in = ids);
            CALL("id out of range, own weights", ERR_EXPERT_ID, "ids_in", LATE, io.ids_in = ids,
                 io.weights_in = in.weights_in);
            CALL("id out of range, slots", ERR_EXPERT_ID, "ids_in", LATE, io.ids_in = ids, io.slots_out = out.slots);
            CALL("id out of range, least workspace", ERR_EXPERT_ID, "ids_in", LATE, io.ids_in = ids,
                 io.workspace_size = moe_workspace_min(&l, T, 2));
        }
    d.n_zero_experts = ZERO;
    l = good_layer(&d);
    memcpy(ids, in.ids_in, sizeof ids);
    ids[1] = E + ZERO - 1;
    CALL("a zero expert's id", OK, "", EARLY, io.ids_in = ids);
    ids[1] = E + ZERO;
    CALL("beyond the zero experts", ERR_EXPERT_ID, "ids_in", LATE, io.ids_in = ids);
    d.n_zero_experts = 0, d.expert_count = 4,
    d.expert_first = 2; /* ids of other processes are skipped, not refused */
    l = good_layer(&d);
    CALL("ids of others", OK, "", EARLY, io.ids_in = in.ids_in);
    ids[1] = E;
    CALL("nobody's id", ERR_EXPERT_ID, "ids_in", LATE, io.ids_in = ids);
}

static void test_call_tokens(void) {
    static const int32_t bad[] = {VOCAB, -1, -0x7fffffff - 1, 0x7fffffff};
    moe_desc d = good_desc();
    add_table(&d);
    moe_layer l = good_layer(&d);
    int32_t tokens[T], table[VOCAB * K];
    int64_t table64[VOCAB * K];
    CALL("table", OK, "", EARLY, io.token_ids = in.token_ids);
    CALL("no token ids", ERR_TOKEN_ID, "token_ids", EARLY, (void)io);
    CALL("no token ids but ids", OK, "", EARLY, io.ids_in = in.ids_in);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int at = 0; at < T; at++) {
            memcpy(tokens, in.token_ids, sizeof tokens);
            tokens[at] = bad[i];
            CALL("token id", ERR_TOKEN_ID, "token_ids", EARLY, io.token_ids = tokens);
        }
    static const uint8_t wrong[][4] = {
        {E, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 0, 0x80}, {0xfe, 0xff, 0xff, 0xff}, {0xff, 0xff, 0xff, 0x7f}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memcpy(table, in.table, sizeof table);
        memcpy(&table[in.token_ids[2] * K + 1], wrong[i], 4);
        d.router.table = table, d.router.table_bytes = 4;
        l = good_layer(&d);
        CALL("id in the table", ERR_EXPERT_ID, "router.table", EARLY, io.token_ids = in.token_ids);
        memcpy(table64, in.table64, sizeof table64);
        memcpy(&table64[in.token_ids[2] * K + 1], wrong[i], 4);
        d.router.table = table64, d.router.table_bytes = 8;
        l = good_layer(&d);
        CALL("id in the wide table", ERR_EXPERT_ID, "router.table", EARLY, io.token_ids = in.token_ids);
        memcpy(table64, in.table64, sizeof table64);
        memcpy((uint8_t *)&table64[in.token_ids[2] * K + 1] + 4, wrong[i], 4);
        CALL("high half in the wide table", ERR_EXPERT_ID, "router.table", EARLY, io.token_ids = in.token_ids);
    }
    d.router.table = in.table64, d.router.table_bytes = 8;
    l = good_layer(&d);
    CALL("wide table", OK, "", EARLY, io.token_ids = in.token_ids);
    table64[in.token_ids[2] * K + 1] = -1;
    d.router.table = table64;
    l = good_layer(&d);
    CALL("a slot of the table skipped", OK, "", EARLY, io.token_ids = in.token_ids);
}

/* Absent experts, in the desc and per call: refused only when a token needs one. */
static void test_call_absent(void) {
    enum { GONE = 3 };
    const void *lists[3][E], *whole[3][E];
    float *all[3] = {in.gate, in.up, in.down}, logits[T * E];
    int32_t with[T * K], without[T * K];
    for (int m = 0; m < 3; m++)
        for (int e = 0; e < E; e++) lists[m][e] = whole[m][e] = all[m] + (size_t)e * FF * D;
    for (int i = 0; i < T * K; i++) with[i] = (i * 3 + 1) % E, without[i] = with[i] == GONE ? 4 : with[i];
    for (int t = 0; t < T; t++)
        for (int e = 0; e < E; e++) logits[t * E + e] = e == GONE ? -50.0f : (float)((t + e * 5) % E);
    for (int m = 0; m < 3; m++) {
        moe_desc d = good_desc();
        moe_layer l;
        moe_matrix *ms[3] = {&d.gate, &d.up, &d.down};
        lists[m][GONE] = NULL;
        moe_experts o;
        memset(&o, 0, sizeof o);
        o.data[m] = lists[m];
        for (int per_call = 0; per_call < 2; per_call++) {
            const moe_experts *over = per_call ? &o : NULL;
            if (!per_call) ms[m]->expert = lists[m], ms[m]->data = NULL;
            else ms[m]->expert = NULL, ms[m]->data = all[m];
            l = good_layer(&d);
            CALL("absent and needed", ERR_EXPERT_ABSENT, "experts", LATE, io.experts = over, io.ids_in = with);
            CALL("absent and needed, own weights", ERR_EXPERT_ABSENT, "experts", LATE, io.experts = over,
                 io.ids_in = with, io.weights_in = in.weights_in);
            CALL("absent, not needed", OK, "", EARLY, io.experts = over, io.ids_in = without);
            CALL("absent, not chosen", OK, "", EARLY, io.experts = over, io.logits_in = logits);
            logits[2 * E + GONE] = 50.0f;
            CALL("absent and chosen", ERR_EXPERT_ABSENT, "experts", LATE, io.experts = over, io.logits_in = logits);
            CALL("absent and chosen, least workspace", ERR_EXPERT_ABSENT, "experts", LATE, io.experts = over,
                 io.logits_in = logits, io.workspace_size = moe_workspace_min(&l, T, 2));
            logits[2 * E + GONE] = -50.0f;
        }
        moe_experts good; /* the call's pointers stand in for those absent in the desc */
        memset(&good, 0, sizeof good);
        good.data[m] = whole[m];
        ms[m]->expert = lists[m], ms[m]->data = NULL;
        l = good_layer(&d);
        CALL("brought by the call", OK, "", EARLY, io.experts = &good, io.ids_in = with);
        lists[m][GONE] = whole[m][GONE];
    }
}

/* What every token uses may not be absent: lists of one with a NULL. */
static void test_call_gaps(void) {
    static const void *const gap[1] = {NULL};
    for (int which = 0; which < 10; which++) {
        moe_desc d = good_desc();
        add_shared(&d, 1, MOE_SHARED_SIGMOID), add_latent(&d);
        moe_matrix *const all[] = {&d.router.weight,      &d.shared.gate, &d.shared.up, &d.shared.down,
                                   &d.shared.gate_weight, &d.latent.in,   &d.latent.out};
        moe_array *const arrays[] = {&d.router.input_scale, &d.latent.norm, &d.ffn.out_bias};
        if (which < 7) all[which]->expert = gap, all[which]->data = NULL;
        else
            d.router.input_norm_eps = d.latent.norm_eps = 1e-6f, arrays[which - 7]->type = MOE_TYPE_F32,
            arrays[which - 7]->expert = gap;
        moe_layer l = good_layer(&d);
        CALL("a list with a gap", ERR_NULL, "expert", EARLY, (void)0);
    }
}

/* A list of scales, zero points, second scales or biases with a NULL for a needed expert. */
static void test_call_absent_sides(void) {
    enum { GONE = 3, KINDS = 4 };
    static uint8_t int4[E * D * D / 2], zero[E * D];
    const void *data[E], *lists[KINDS][E];
    int32_t ids[T * K];
    for (size_t i = 0; i < sizeof int4; i++) int4[i] = (uint8_t)(i * 37), zero[i % sizeof zero] = (uint8_t)(i % 16);
    for (int i = 0; i < T * K; i++) ids[i] = i % E;
    for (int kind = 0; kind < KINDS; kind++)
        for (int which = 0; which < 3; which++)
            for (int per_call = 0; per_call < 2; per_call++) {
                moe_desc d = good_desc();
                moe_matrix *ms[3] = {&d.gate, &d.up, &d.down};
                d.d_ff = D;
                for (int m = 0; m < 3; m++) {
                    ms[m]->format = MOE_FORMAT_INT4_GROUP, ms[m]->data = int4;
                    ms[m]->scale.type = MOE_TYPE_F32, ms[m]->scale.data = in.bias;
                    ms[m]->zero.type = MOE_TYPE_U8, ms[m]->zero.data = zero;
                    ms[m]->scale2.type = MOE_TYPE_F32, ms[m]->scale2.data = in.bias;
                    ms[m]->bias.type = MOE_TYPE_F32, ms[m]->bias.data = in.bias;
                }
                for (int e = 0; e < E; e++) {
                    data[e] = int4 + (size_t)e * D * D / 2;
                    lists[0][e] = in.bias + e * D, lists[1][e] = zero + e * D, lists[2][e] = in.bias + e,
                    lists[3][e] = in.bias + e * D;
                }
                lists[kind][GONE] = NULL;
                moe_experts o;
                memset(&o, 0, sizeof o);
                if (per_call) {
                    o.data[which] = data;
                    const void *const **slot[KINDS] = {o.scale, o.zero, o.scale2, o.bias};
                    slot[kind][which] = lists[kind];
                } else {
                    const void *const **slot[KINDS] = {&ms[which]->scale.expert, &ms[which]->zero.expert,
                                                       &ms[which]->scale2.expert, &ms[which]->bias.expert};
                    *slot[kind] = lists[kind];
                }
                moe_layer l = good_layer(&d);
                CALL("an absent expert's scale, zero, scale2 or bias", ERR_EXPERT_ABSENT, "experts", LATE,
                     io.experts = &o, io.ids_in = ids);
            }
}

/* Slots that are skipped, repeated or padded. */
static void run_ok(const char *name, const moe_layer *l, const moe_io *io) {
    poison_outputs();
    moe_status s = moe_forward(l, io);
    if (s) FAIL("%s: %s", name, moe_status_text(s));
}
static void test_ids_in(void) {
    moe_desc d = good_desc();
    moe_layer l = good_layer(&d);
    int32_t two[T * 2], three[T * 3], same[T * 2], once[T * 2];
    float w2[T * 2], w3[T * 3], ws[T * 2], y[T * D];
    moe_io io = good_io();
    for (int t = 0; t < T; t++) {
        two[t * 2] = (t * 3) % E, two[t * 2 + 1] = (t * 3 + 2) % E, w2[t * 2] = 0.75f, w2[t * 2 + 1] = 0.125f;
        three[t * 3] = two[t * 2], three[t * 3 + 1] = -1, three[t * 3 + 2] = two[t * 2 + 1];
        w3[t * 3] = w2[t * 2], w3[t * 3 + 1] = 1e30f, w3[t * 3 + 2] = w2[t * 2 + 1];
        same[t * 2] = same[t * 2 + 1] = t, ws[t * 2] = 0.5f, ws[t * 2 + 1] = 0.25f;
        once[t * 2] = t, once[t * 2 + 1] = -1;
    }
    io.ids_in = two, io.weights_in = w2;
    run_ok("two slots", &l, &io);
    memcpy(y, out.y, sizeof y);
    check(!memcmp(out.ids, two, sizeof two) && !memcmp(out.weights, w2, sizeof w2), "ids and weights",
          "not given back");
    check(out.stats.slots == 2 * T && out.stats.skipped == 0 && out.stats.n_tokens == T, "two slots", "statistics");
    io.ids_in = three, io.weights_in = w3, io.k = 3;
    run_ok("a skipped slot between", &l, &io);
    check(!memcmp(out.y, y, sizeof y), "a skipped slot", "changes y");
    check(!memcmp(out.ids, three, sizeof three), "skipped ids", "not given back");
    check(out.weights[1] == 0.0f && out.weights[2] == 0.125f, "weight of a skipped slot", "not 0");
    check(out.stats.slots == 3 * T && out.stats.skipped == T, "a skipped slot", "statistics");
    io.slots_out = out.slots;
    run_ok("slots with a skipped one", &l, &io);
    int zero = 1;
    for (int t = 0; t < T; t++)
        for (int i = 0; i < D; i++) zero &= out.slots[(t * 3 + 1) * D + i] == 0.0f;
    check(zero, "output of a skipped slot", "not zeros");
    check(!memcmp(out.y, before.y, sizeof y), "y beside slots_out", "written");
    io.slots_out = NULL, io.ids_in = once, io.weights_in = NULL, io.k = 2; /* routing weights of given ids */
    run_ok("one of two skipped", &l, &io);
    check(out.weights[1] == 0.0f && out.weights[0] > 0.0f, "weights of given ids", "wrong");
    io.ids_in = same, io.weights_in = ws;
    run_ok("repeated", &l, &io);
    memcpy(y, out.y, sizeof y);
    for (int t = 0; t < T; t++) ws[t * 2] = 0.75f, same[t * 2 + 1] = -1;
    run_ok("once", &l, &io);
    double worst = 0, size = 0;
    for (int i = 0; i < T * D; i++)
        worst = fmax(worst, fabs((double)out.y[i] - (double)y[i])), size = fmax(size, fabs((double)y[i]));
    check(worst < 1e-6 * size && size > 0, "repeated ids", "not summed");
    io.k = 1, io.ids_in = in.ids_in, io.weights_in = NULL;
    run_ok("k 1", &l, &io);
    check(!memcmp(out.ids, in.ids_in, T * sizeof(int32_t)), "k 1", "ids");
    for (int i = 0; i < T * 2; i++) two[i] = -1;
    io.k = 2, io.ids_in = two, io.weights_in = w2;
    run_ok("nothing chosen", &l, &io);
    zero = 1;
    for (int i = 0; i < T * D; i++) zero &= out.y[i] == 0.0f;
    check(zero && out.stats.skipped == 2 * T, "nothing chosen", "y is not zero");
    io.ids_in = NULL, io.weights_in = NULL, io.k = 3; /* without ids_in, k is not read */
    run_ok("k without ids", &l, &io);
    check(out.ids[K] >= 0 && !memcmp(out.ids + T * K, before.ids + T * K, sizeof(int32_t)), "k without ids",
          "is read");
}

/* ---- overlapping rows ---- */

static void store(uint32_t type, uint8_t *p, float v) {
    uint16_t h = type == MOE_TYPE_BF16 ? moei_to_bf16(v) : moei_to_f16(v);
    if (type == MOE_TYPE_F32) memcpy(p, &v, 4);
    else memcpy(p, &h, 2);
}

static void test_overlap(void) {
    static const uint32_t types[] = {MOE_TYPE_F32, MOE_TYPE_BF16, MOE_TYPE_F16};
    static uint8_t rows[3 * T * D * 4], old[3 * T * D * 4];
    moe_desc d = good_desc();
    moe_layer l = good_layer(&d);
    for (int i = 0; i < 3; i++) {
        size_t size = types[i] == MOE_TYPE_F32 ? 4 : 2, all = T * D * size;
        const size_t steps[] = {1, size, size * D - 1, size * D, size * D + 1, all - size, all - 1};
        moe_io io = good_io();
        moe_error e;
        io.error = &e, io.x = rows + all, io.x_type = io.y_type = types[i];
        memset(rows, 0, sizeof rows);
        for (size_t j = 0; j < 2 * sizeof steps / sizeof *steps; j++) {
            memcpy(old, rows, sizeof rows);
            io.y = j % 2 ? rows + all - steps[j / 2] : rows + all + steps[j / 2];
            check(error_is("overlap", &e, moe_forward(&l, &io), MOE_ERR_ALIAS, "", "y") &&
                      !memcmp(old, rows, sizeof rows),
                  "overlap", "wrong");
        }
        io.y = rows;
        check(moe_forward(&l, &io) == MOE_OK, "y just before x", "refused");
        io.y = rows + 2 * all;
        check(moe_forward(&l, &io) == MOE_OK, "y just behind x", "refused");
        io.y = rows + all, io.y_stride = size * D + 1;
        check(moe_forward(&l, &io) == MOE_ERR_ALIAS, "y == x, other stride", "accepted");
        io.y_stride = size * D; /* stated or tight is the same */
        check(moe_forward(&l, &io) == MOE_OK, "y == x, stride stated", "refused");
        io.y_stride = 0, io.y_type = types[(i + 1) % 3];
        check(moe_forward(&l, &io) == MOE_ERR_ALIAS, "y == x, other type", "accepted");
    }
}

/* Every array that a call writes against all that it reads or writes: `at` bytes from the other's start. */
static void test_aliases(void) {
    static float room[8 * T * D]; /* y, x, router_x, logits and slots are cut from it */
    moe_desc d = good_desc();
    moe_layer l = good_layer(&d);
    const size_t half = sizeof room / 2;
    uint8_t *a = (uint8_t *)room;
    enum { ROWS = 4 * T * D, IDS_ROWS = 4 * T * K, LOGITS = 4 * T * E };
#define ALIAS(what, status, named, ...)                                                                              \
    do {                                                                                                             \
        moe_io io = good_io();                                                                                       \
        moe_stats stats = {0};                                                                                       \
        moe_error e;                                                                                                 \
        io.error = &e, (void)stats;                                                                                  \
        fill_inputs();                                                                                               \
        memcpy(room, in.x, sizeof in.x), memcpy(a + half, in.x, sizeof in.x);                                        \
        __VA_ARGS__;                                                                                                 \
        check(error_is(what, &e, moe_forward(&l, &io), MOE_##status, "", named), what, "wrong");                     \
    } while (0)
#define IDS(p)    ((int32_t *)(void *)(p))
#define FLOATS(p) ((float *)(void *)(p))
    ALIAS("ids in x", ERR_ALIAS, "ids_out", io.x = a, io.ids_out = IDS(a + ROWS - 4));
    ALIAS("ids behind x", OK, "", io.x = a, io.ids_out = IDS(a + ROWS));
    ALIAS("ids before x", OK, "", io.x = a + half, io.ids_out = IDS(a + half - IDS_ROWS));
    ALIAS("ids before and in x", ERR_ALIAS, "ids_out", io.x = a + half, io.ids_out = IDS(a + half - IDS_ROWS + 4));
    ALIAS("weights in x", ERR_ALIAS, "weights_out", io.x = a, io.weights_out = FLOATS(a));
    ALIAS("logits in x", ERR_ALIAS, "logits_out", io.x = a, io.logits_out = FLOATS(a + 64));
    ALIAS("logits before x", OK, "", io.x = a + half, io.logits_out = FLOATS(a + half - LOGITS));
    ALIAS("slots in x", ERR_ALIAS, "slots_out", io.x = a, io.slots_out = FLOATS(a + ROWS - 4));
    ALIAS("slots behind x", OK, "", io.x = a, io.slots_out = FLOATS(a + ROWS));
    ALIAS("slots before and in x", ERR_ALIAS, "slots_out", io.x = a + half,
          io.slots_out = FLOATS(a + half - K * ROWS + 4));
    ALIAS("slots before x", OK, "", io.x = a + half, io.slots_out = FLOATS(a + half - K * ROWS));
    ALIAS("slots and an unused y in x", OK, "", io.y = (void *)(uintptr_t)io.x, io.y_stride = 1,
          io.slots_out = FLOATS(a));
    ALIAS("ids in router_x", ERR_ALIAS, "ids_out", io.router_x = a, io.ids_out = IDS(a));
    ALIAS("y == router_x", OK, "", io.router_x = a, io.y = a);
    ALIAS("y in router_x", OK, "", io.router_x = a, io.y = a + 4);
    ALIAS("y in ids_out", ERR_ALIAS, "y", io.y = a, io.ids_out = IDS(a + 8));
    ALIAS("y in weights_in", ERR_ALIAS, "y", io.ids_in = in.ids_in, io.weights_in = FLOATS(a), io.y = a);
    ALIAS("y in logits_in", ERR_ALIAS, "y", io.logits_in = FLOATS(a), io.y = a);
    ALIAS("y in token ids", ERR_ALIAS, "y", io.token_ids = IDS(a), io.y = a);
    ALIAS("y in the workspace", ERR_ALIAS, "y", io.y = workspace + workspace_size - 4);
    ALIAS("ids in the workspace", ERR_ALIAS, "ids_out", io.ids_out = IDS(workspace));
    ALIAS("x in the workspace", ERR_ALIAS, "workspace", io.x = workspace);
    ALIAS("x at the workspace's end", ERR_ALIAS, "workspace", io.x = workspace + workspace_size - 1);
    ALIAS("router_x in the workspace", ERR_ALIAS, "workspace", io.router_x = workspace);
    ALIAS("loads in x", ERR_ALIAS, "stats.tokens", io.x = a, stats.tokens = (uint64_t *)(void *)a, io.stats = &stats);
    ALIAS("loads behind x", OK, "", io.x = a, stats.tokens = (uint64_t *)(void *)(a + ROWS), io.stats = &stats);
    ALIAS("weights' sums in y", ERR_ALIAS, "y", io.y = a, stats.weight = (double *)(void *)(a + ROWS - 8),
          io.stats = &stats);
    ALIAS("scores in loads", ERR_ALIAS, "stats.tokens", stats.tokens = (uint64_t *)(void *)(a + 8 * E - 8),
          stats.score = (double *)(void *)a, io.stats = &stats);
    ALIAS("scores before loads", OK, "", stats.tokens = (uint64_t *)(void *)(a + 8 * E),
          stats.score = (double *)(void *)a, io.stats = &stats);
    ALIAS("stats in the workspace", ERR_ALIAS, "workspace", io.stats = (moe_stats *)(void *)workspace);
    ALIAS("ids == ids", OK, "", io.ids_in = in.ids_in, io.ids_out = in.ids_in);
    ALIAS("ids == ids, weights == weights", OK, "", io.ids_in = io.ids_out = in.ids_in,
          io.weights_in = io.weights_out = in.weights_in);
    ALIAS("ids in ids", ERR_ALIAS, "ids_out", io.ids_in = in.ids_in, io.ids_out = in.ids_in + 1);
    ALIAS("ids in ids, a row apart", ERR_ALIAS, "ids_out", io.ids_in = in.ids_in, io.ids_out = in.ids_in + K);
    ALIAS("weights in weights", ERR_ALIAS, "weights_out", io.ids_in = in.ids_in, io.weights_in = in.weights_in + 1,
          io.weights_out = in.weights_in);
    ALIAS("weights == ids", ERR_ALIAS, "ids_out", io.weights_out = FLOATS(a), io.ids_out = IDS(a));
    ALIAS("logits == logits", ERR_ALIAS, "logits_out", io.logits_in = io.logits_out = in.logits_in);
    ALIAS("ids beside weights", OK, "", io.ids_out = IDS(a), io.weights_out = FLOATS(a + 4 * K),
          io.ids_stride = io.weights_stride = 8 * K);
    ALIAS("ids beside weights, too close", ERR_ALIAS, "ids_out", io.ids_out = IDS(a),
          io.weights_out = FLOATS(a + 4 * K - 4), io.ids_stride = io.weights_stride = 8 * K);
    ALIAS("ids beside weights, next row too close", ERR_ALIAS, "ids_out", io.ids_out = IDS(a),
          io.weights_out = FLOATS(a + 4 * K + 4), io.ids_stride = io.weights_stride = 8 * K);
    ALIAS("ids beside weights, other strides", ERR_ALIAS, "ids_out", io.ids_out = IDS(a),
          io.weights_out = FLOATS(a + 4 * K), io.ids_stride = 8 * K, io.weights_stride = 8 * K + 4);
    ALIAS("y beside x", OK, "", io.x = a, io.y = a + 4 * D, io.x_stride = io.y_stride = 8 * D);
    moe_io io = good_io();
    moe_error e;
    io.error = &e;
    memcpy(room, in.sums, sizeof in.sums), io.y = room;
    moe_status s = moe_finish(&l, &io, room);
    poison_outputs();
    io.y = out.y;
    check(!s && !moe_finish(&l, &io, in.sums) && !memcmp(room, out.y, sizeof out.y), "y == sums", "other bits");
    io.y = room + 1;
    check(error_is("y in sums", &e, moe_finish(&l, &io, room), MOE_ERR_ALIAS, "", "y"), "y in sums", "accepted");
    io.y = room, io.y_type = MOE_TYPE_BF16;
    check(error_is("y bf16 in sums", &e, moe_finish(&l, &io, room), MOE_ERR_ALIAS, "", "y"), "y in sums", "accepted");
    fill_inputs();
}

/* y == x and y_add on random layers (all that reads x late: identity experts, shared gates, blocks). */
static void one_in_place(uint64_t seed, uint32_t format, uint32_t type) {
    rl_layer l;
    moe_layer layer;
    rl_rng r = {seed};
    rl_make(&l, seed, format, MOE_FORMAT_BF16, 32, 2);
    l.desc.tiers = moe_tier_mask(seed % 3 ? MOE_TIER_C : MOE_TIER_COUNT - 1);
    if (seed % 3) l.desc.tiers = 0;
    if (seed % 4 == 0) l.desc.router.capacity = 3, l.desc.router.capacity_drop = MOE_DROP_PASS_THROUGH;
    if (moe_layer_init(&layer, &l.desc, NULL)) {
        FAIL("in place: init of seed %llu", (unsigned long long)seed);
        rl_free(&l);
        return;
    }
    size_t n = 1 + rl_below(&r, 20), size = type == MOE_TYPE_F32 ? 4 : 2, d = l.desc.d_model,
           stride = d * size + rl_below(&r, 3), bytes = n * stride;
    uint8_t *x = (uint8_t *)malloc(bytes), *y = (uint8_t *)malloc(bytes), *sum = (uint8_t *)malloc(bytes);
    float *plain = (float *)malloc(n * d * 4);
    if (!x || !y || !sum || !plain) abort();
    memset(x, 0x11, bytes), memset(y, 0x11, bytes);
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < d; i++) store(type, x + t * stride + i * size, rl_gauss(&r));
    moe_io io;
    memset(&io, 0, sizeof io);
    io.x = x, io.y = y, io.x_type = io.y_type = type, io.x_stride = io.y_stride = stride, io.n_tokens = n,
    io.n_tasks = 1 + (uint32_t)(seed % 4);
    io.workspace_size =
        seed % 2 ? moe_workspace_size(&layer, n, io.n_tasks) : moe_workspace_min(&layer, n, io.n_tasks);
    io.workspace = malloc(io.workspace_size);
    if (!io.workspace) abort();
    int ok = moe_forward(&layer, &io) == MOE_OK;
    io.y = plain, io.y_type = MOE_TYPE_F32, io.y_stride = 0;
    ok = ok && moe_forward(&layer, &io) == MOE_OK;
    for (size_t t = 0; t < n && ok; t++) /* 16-bit rows are the f32 rows, rounded once */
        for (size_t i = 0; i < d && ok; i++) {
            uint8_t want[4];
            store(type, want, plain[t * d + i]);
            if (memcmp(want, y + t * stride + i * size, size))
                ok = 0, FAIL("in place: seed %llu, y is not the rounded f32 y", (unsigned long long)seed);
        }
    memcpy(sum, x, bytes);
    io.y = sum, io.y_type = type, io.y_stride = stride, io.y_add = 1;
    ok = ok && moe_forward(&layer, &io) == MOE_OK; /* sum = x + y */
    for (size_t t = 0; t < n && ok; t++)
        for (size_t i = 0; i < d && ok; i++) {
            uint8_t want[4];
            const uint8_t *a = x + t * stride + i * size;
            float v;
            uint16_t h;
            if (type == MOE_TYPE_F32) memcpy(&v, a, 4);
            else memcpy(&h, a, 2), v = type == MOE_TYPE_BF16 ? moei_bf16(h) : moei_f16(h);
            store(type, want, v + plain[t * d + i]);
            if (memcmp(want, sum + t * stride + i * size, size))
                ok = 0, FAIL("in place: seed %llu, y_add is not y + f32 result", (unsigned long long)seed);
        }
    io.y_add = 0, io.x = io.y = x;
    uint8_t *copy = (uint8_t *)malloc(bytes);
    if (!copy) abort();
    memcpy(copy, x, bytes);
    ok = ok && moe_forward(&layer, &io) == MOE_OK;
    if (ok && memcmp(x, y, bytes))
        ok = 0, FAIL("in place: seed %llu, y == x gives other bits", (unsigned long long)seed);
    memcpy(x, copy, bytes), io.y_add = 1;
    ok = ok && moe_forward(&layer, &io) == MOE_OK;
    if (ok && memcmp(x, sum, bytes))
        ok = 0, FAIL("in place: seed %llu, y_add with y == x gives other bits", (unsigned long long)seed);
    if (!ok) failed++;
    else passed++;
    free(copy), free(x), free(y), free(sum), free(plain), free(io.workspace);
    rl_free(&l);
}

static void test_in_place(int rounds) {
    static const uint32_t formats[] = {MOE_FORMAT_F32, MOE_FORMAT_BF16, MOE_FORMAT_Q8_0, MOE_FORMAT_FP8_BLOCK};
    for (int i = 0; i < rounds; i++)
        one_in_place(7000 + (uint64_t)i, formats[i % 4], MOE_TYPE_F32 + (uint32_t)(i / 4 % 3));
}

/* ---- the other functions ---- */

static void test_select_errors(void) {
    moe_desc d;
    moe_error e;
    float logits[E * T] = {0}, weights[T * K];
    int32_t ids[T * K], token = VOCAB;
    memset(&d, 0, sizeof d);
    d.n_experts = E, d.top_k = K;
#define SELECT(name, status, field, ...)                                                                             \
    check(error_is(name, &e, moe_select(__VA_ARGS__, &e), MOE_##status, "", field), name, "wrong")
    SELECT("good", OK, "", &d, logits, T, NULL, ids, weights);
    SELECT("no tokens", OK, "", &d, NULL, 0, NULL, NULL, NULL);
    SELECT("no desc", ERR_NULL, "desc", NULL, logits, T, NULL, ids, weights);
    SELECT("no desc, no tokens", ERR_NULL, "desc", NULL, logits, 0, NULL, ids, weights);
    SELECT("no logits", ERR_NULL, "logits", &d, NULL, T, NULL, ids, weights);
    SELECT("no ids", ERR_NULL, "ids", &d, logits, T, NULL, NULL, weights);
    SELECT("no weights", ERR_NULL, "weights", &d, logits, T, NULL, ids, NULL);
    d.begin_ = 7;
    SELECT("canary", ERR_DESC, "begin_", &d, logits, T, NULL, ids, weights);
    d.begin_ = 0, d.end_ = 7;
    SELECT("canary", ERR_DESC, "end_", &d, logits, T, NULL, ids, weights);
    d.end_ = 0, d.n_experts = 0;
    SELECT("no experts", ERR_SIZE, "n_experts", &d, logits, T, NULL, ids, weights);
    d.n_experts = 0xffffffffu;
    SELECT("many experts", ERR_SIZE, "n_experts", &d, logits, T, NULL, ids, weights);
    d.n_experts = 2049;
    SELECT("experts beyond the stack", ERR_SIZE, "n_experts", &d, logits, T, NULL, ids, weights);
    d.n_experts = E, d.top_k = E + 1;
    SELECT("top_k", ERR_SIZE, "top_k", &d, logits, T, NULL, ids, weights);
    d.top_k = K, d.router.score = 0xffffffffu;
    SELECT("score", ERR_KNOB, "router.score", &d, logits, T, NULL, ids, weights);
    d.router.score = 0, add_table(&d);
    SELECT("no token ids", ERR_TOKEN_ID, "token_ids", &d, logits, T, NULL, ids, weights);
    SELECT("token id", ERR_TOKEN_ID, "token_ids", &d, logits, 1, &token, ids, weights);
    check(moe_select(&d, logits, 1, &token, ids, weights, NULL) == MOE_ERR_TOKEN_ID, "token id",
          "another status without an error struct");
#undef SELECT
}

static void test_weight_errors(void) {
    moe_matrix m;
    moe_error e;
    float row[64] = {0}, dense[64] = {0};
    uint8_t bytes[256] = {0};
    const void *lists[2] = {dense, NULL};
    memset(&m, 0, sizeof m);
    m.format = MOE_FORMAT_F32, m.data = dense;
    check(moe_dequantize(&m, 0, 1, 2, 32, 0, 2, row) == MOE_OK, "dequantize", "refused");
    check(moe_dequantize(&m, 0, 1, 2, 32, 2, 0, NULL) == MOE_OK, "dequantize no rows", "refused");
    check(moe_dequantize(NULL, 0, 1, 2, 32, 0, 2, row) == MOE_ERR_NULL, "dequantize nothing", "accepted");
    check(moe_dequantize(&m, 0, 1, 2, 32, 0, 2, NULL) == MOE_ERR_NULL, "dequantize to nowhere", "accepted");
    check(moe_dequantize(&m, 1, 1, 2, 32, 0, 2, row) == MOE_ERR_EXPERT_ID, "dequantize expert 1 of 1", "accepted");
    check(moe_dequantize(&m, 0, 1, 2, 32, 1, 2, row) == MOE_ERR_SIZE, "dequantize beyond the rows", "accepted");
    check(moe_dequantize(&m, 0, 1, 2, 32, 3, 0, row) == MOE_ERR_SIZE, "dequantize behind the rows", "accepted");
    check(moe_dequantize(&m, 0, 1, 2, 32, 1, SIZE_MAX, row) == MOE_ERR_SIZE, "dequantize SIZE_MAX rows", "accepted");
    check(moe_dequantize(&m, 0, 0, 2, 32, 0, 2, row) == MOE_ERR_SIZE, "dequantize of no experts", "accepted");
    check(moe_dequantize(&m, 0, 1, 0, 32, 0, 0, row) == MOE_ERR_SIZE, "dequantize of no rows", "accepted");
    check(moe_dequantize(&m, 0, 1, SIZE_MAX / 8, SIZE_MAX / 8, 0, 1, row) != MOE_OK, "dequantize of huge shapes",
          "accepted");
    m.expert = lists;
    check(moe_dequantize(&m, 1, 2, 2, 32, 0, 2, row) == MOE_ERR_EXPERT_ABSENT, "dequantize an absent expert",
          "accepted");
    m.expert = NULL, m.format = MOE_FORMAT_COUNT;
    check(moe_dequantize(&m, 0, 1, 2, 32, 0, 2, row) == MOE_ERR_FORMAT, "dequantize an unknown format", "accepted");
    check(moe_quantize(MOE_FORMAT_Q8_0, row, 1, 32, bytes) == MOE_OK, "quantize", "refused");
    check(moe_quantize(MOE_FORMAT_Q8_0, row, 1, 31, bytes) == MOE_ERR_BLOCK, "quantize 31", "accepted");
    check(moe_quantize(MOE_FORMAT_Q8_0, NULL, 1, 32, bytes) == MOE_ERR_NULL, "quantize nothing", "accepted");
    check(moe_quantize(MOE_FORMAT_Q8_0, row, 1, 32, NULL) == MOE_ERR_NULL, "quantize to nowhere", "accepted");
    check(moe_quantize(MOE_FORMAT_Q4_K, row, 1, 256, bytes) == MOE_ERR_UNSUPPORTED, "quantize q4_K", "accepted");
    check(moe_quantize(0, row, 1, 32, bytes) == MOE_ERR_FORMAT &&
              moe_quantize(~0u, row, 1, 32, bytes) == MOE_ERR_FORMAT,
          "quantize to no format", "accepted");
    row[5] = (float)INFINITY;
    check(moe_quantize(MOE_FORMAT_Q8_0, row, 1, 32, bytes) == MOE_ERR_VALUE, "quantize Inf", "accepted");
    m.format = MOE_FORMAT_F32;
    check(error_is("validate", &e, moe_validate(&m, 1, 2, 32, &e), MOE_OK, "", ""), "validate", "wrong");
    rl_put32((uint8_t *)(dense + 37), (float)INFINITY);
    check(error_is("validate Inf", &e, moe_validate(&m, 1, 2, 32, &e), MOE_ERR_VALUE, "", "data") && e.got == 37,
          "validate Inf", "wrong place");
    check(error_is("validate nothing", &e, moe_validate(NULL, 1, 2, 32, &e), MOE_ERR_NULL, "", "matrix"),
          "validate nothing", "wrong");
    check(moe_row_bytes(~0u, 32) == 0 && moe_row_bytes(MOE_FORMAT_Q4_K, 255) == 0 &&
              moe_row_bytes(MOE_FORMAT_Q4_K, 512) == 288,
          "row bytes", "wrong");
    check(moe_row_bytes(MOE_FORMAT_F32, SIZE_MAX) == 0 && moe_row_bytes(MOE_FORMAT_F32, SIZE_MAX / 4 + 1) == 0,
          "row bytes", "overflow");
}

static void test_names(void) {
    moe_desc d;
    for (uint32_t s = 0; s < MOE_STATUS_COUNT; s++) {
        const char *text = moe_status_text((moe_status)s);
        check(text && *text && strcmp(text, "unknown status"), "status text", "missing");
        for (uint32_t o = 0; o < s; o++)
            check(strcmp(text, moe_status_text((moe_status)o)) != 0, text, "the same text twice");
    }
    check(!strcmp(moe_status_text(MOE_STATUS_COUNT), "unknown status"), "status text", "beyond the last");
    for (uint32_t f = 1; f < MOE_FORMAT_COUNT; f++) {
        char upper[32];
        size_t n = strlen(moe_format_name(f));
        for (size_t i = 0; i <= n; i++)
            upper[i] =
                (char)(moe_format_name(f)[i] >= 'a' && moe_format_name(f)[i] <= 'z' ? moe_format_name(f)[i] - 32
                                                                                    : moe_format_name(f)[i]);
        check(moe_format_by_name(moe_format_name(f)) == f && moe_format_by_name(upper) == f, moe_format_name(f),
              "no round trip");
    }
    for (uint32_t t = 0; t < MOE_TIER_COUNT; t++)
        check(moe_tier_by_name(moe_tier_name(t)) == t, moe_tier_name(t), "no round trip");
    for (uint32_t c = 0; c < MOE_COMPUTE_COUNT; c++)
        check(moe_compute_by_name(moe_compute_name(c)) == c, moe_compute_name(c), "no round trip");
    check(!strcmp(moe_format_name(MOE_FORMAT_COUNT), "?") && !strcmp(moe_format_name(~0u), "?"), "format name",
          "beyond the last");
    check(!strcmp(moe_tier_name(MOE_TIER_COUNT), "?") && !strcmp(moe_tier_name(~0u), "?"), "tier name",
          "beyond the last");
    check(!strcmp(moe_compute_name(MOE_COMPUTE_COUNT), "?") && !strcmp(moe_compute_name(~0u), "?"), "compute name",
          "beyond the last");
    check(moe_format_by_name("q9") == MOE_FORMAT_NONE && moe_format_by_name("") == MOE_FORMAT_NONE &&
              moe_format_by_name(NULL) == MOE_FORMAT_NONE,
          "format", "unknown");
    check(moe_tier_by_name("sse") == MOE_TIER_COUNT && moe_tier_by_name("") == MOE_TIER_COUNT &&
              moe_tier_by_name(NULL) == MOE_TIER_COUNT,
          "tier", "unknown");
    check(moe_compute_by_name("f") == MOE_COMPUTE_COUNT && moe_compute_by_name("") == MOE_COMPUTE_COUNT &&
              moe_compute_by_name(NULL) == MOE_COMPUTE_COUNT,
          "compute", "unknown");
    check(moe_version() == MOE_VERSION, "version", "differs");
#define SIZE(type) check(moe_sizeof(#type) == sizeof(type), #type, "size")
    SIZE(moe_array), SIZE(moe_grid), SIZE(moe_matrix), SIZE(moe_router), SIZE(moe_ffn), SIZE(moe_shared),
        SIZE(moe_latent), SIZE(moe_desc);
    SIZE(moe_error), SIZE(moe_experts), SIZE(moe_io), SIZE(moe_layer), SIZE(moe_parallel), SIZE(moe_stats),
        SIZE(moe_counts), SIZE(moe_balance);
#undef SIZE
    check(moe_sizeof("moe_nothing") == 0 && moe_sizeof("") == 0 && moe_sizeof(NULL) == 0, "sizeof", "unknown");
    memset(&d, 0, sizeof d);
    check(moe_preset(&d, "no such model") == MOE_ERR_MODEL && moe_preset(&d, "") == MOE_ERR_MODEL, "preset",
          "unknown model accepted");
    check(moe_preset(NULL, "mixtral") == MOE_ERR_NULL && moe_preset(&d, NULL) == MOE_ERR_NULL, "preset",
          "NULL accepted");
    check(moe_preset(&d, "grovemoe") == MOE_ERR_UNSUPPORTED, "preset", "grovemoe accepted");
    check(moe_preset(&d, "grove_moe") == MOE_ERR_UNSUPPORTED, "preset", "grove_moe accepted");
    moe_desc zero;
    memset(&zero, 0, sizeof zero);
    check(!memcmp(&d, &zero, sizeof d), "preset", "a failed one changes the desc");
    seen[MOE_ERR_MODEL]++, seen[MOE_ERR_UNSUPPORTED]++;
    moe_layer none;
    moe_counts c;
    moe_balance b;
    memset(&none, 0, sizeof none);
    moe_layer_counts(NULL, &c), moe_layer_counts(&none, NULL), moe_stats_balance(NULL, 4, &b),
        moe_stats_balance(NULL, 4, NULL);
    check(c.params_total == 0 && b.imbalance == 0.0, "counts of nothing", "not 0");
    check(moe_layer_tier(NULL) == MOE_TIER_C && moe_layer_compute(NULL, MOE_UP) == MOE_COMPUTE_DEFAULT,
          "layer queries", "NULL");
}

int main(void) {
    fill_inputs();
    workspace_size = 8u << 20;
    void *raw = malloc(workspace_size + 64);
    if (!raw) return 1;
    workspace = (uint8_t *)(((uintptr_t)raw + 63) & ~(uintptr_t)63);
    test_init_knobs();
    test_init_floats();
    test_init_sizes();
    test_init_canaries();
    test_init_matrices();
    test_init_combinations();
    test_init_unused();
    test_init_computes();
    test_init_numbers();
    test_call_pointers();
    test_call_workspace();
    test_call_phases();
    test_call_ids();
    test_call_tokens();
    test_call_absent();
    test_call_absent_sides();
    test_call_gaps();
    test_ids_in();
    test_overlap();
    test_aliases();
    test_in_place(120);
    test_select_errors();
    test_weight_errors();
    test_names();
    for (uint32_t s = 0; s < MOE_STATUS_COUNT; s++)
        if (!seen[s]) FAIL("status %u (%s) was never seen", s, moe_status_text((moe_status)s));
    free(raw);
    printf("test_errors: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
