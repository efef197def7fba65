/* test_corners.c - what other implementations of the block got wrong outside of routing, on layers small enough to work out
 * by hand. (Routing's corner cases are in test_route.c, layouts and names of checkpoints in test_models.c.)
 *
 * Every check knows the right value and, where there is a usual mistake, that mistake's value: the two must differ by more
 * than the tolerance, so that a test cannot pass by being blunt.
 *     cc -std=c11 -O2 -I. -o build/test_corners tests/test_corners.c -lm && build/test_corners
 */
#ifndef MOEI_ONCE
#define MOE_IMPLEMENTATION
#endif
#include "../moe.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int passed, failed, skipped, before;
static const char *current = "";

static void begin(const char *name) { current = name, before = failed; }
static void end(void) {
    if (failed == before) printf("ok   %s\n", current);
}
static int check(int ok, const char *what) {
    if (ok) passed++;
    else failed++, printf("FAIL %s: %s\n", current, what);
    return ok;
}
static int near(double a, double b) { return fabs(a - b) <= 2e-6 * (fabs(b) > 1e-3 ? fabs(b) : 1e-3); }
/* got is right, and a wrong value would have been seen */
static void is(double got, double right, double wrong, const char *what) {
    if (!check(near(got, right), what)) printf("     %.9g, not %.9g\n", got, right);
    check(!near(right, wrong), "the mistake would not show");
}
static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double silu(double x) { return x * sigmoid(x); }

/* A layer of width D (1 unless said) with up to 4 experts of width 1, all f32. */
enum { MOST = 4, WIDTH = 4 };
typedef struct tiny {
    moe_desc d;
    float router[MOST * WIDTH], gate[MOST * WIDTH], up[MOST * WIDTH], down[MOST * WIDTH], shared[3][WIDTH * WIDTH],
        own_gate[2 * WIDTH];
} tiny;

static void use(moe_matrix *m, const float *data) { m->format = MOE_FORMAT_F32, m->data = data; }
static void use_vector(moe_array *a, const float *data) { a->type = MOE_TYPE_F32, a->data = data; }

static void tiny_begin(tiny *t, const char *family, uint32_t n_experts, uint32_t k) {
    memset(t, 0, sizeof *t);
    if (family) check(moe_preset(&t->d, family) == MOE_OK, family);
    t->d.router.group = t->d.router.n_group = t->d.router.topk_group = 0;
    t->d.d_model = t->d.d_ff = 1, t->d.n_experts = n_experts, t->d.top_k = k;
    t->d.compute = MOE_COMPUTE_F32;
    use(&t->d.router.weight, t->router), use(&t->d.up, t->up), use(&t->d.down, t->down);
    if (!t->d.ffn.ungated) use(&t->d.gate, t->gate);
    for (int i = 0; i < MOST; i++) t->gate[i] = t->up[i] = t->down[i] = 1;
}
static void tiny_shared(tiny *t, uint32_t width, float gate, float up, float down) {
    t->d.shared.d_ff = width;
    if (!t->d.ffn.ungated) use(&t->d.shared.gate, t->shared[0]);
    use(&t->d.shared.up, t->shared[1]), use(&t->d.shared.down, t->shared[2]);
    for (uint32_t i = 0; i < width; i++) t->shared[0][i] = gate, t->shared[1][i] = up, t->shared[2][i] = down;
}

/* y of one token, first element; logits (if not NULL) get the router's. */
static double run_token(const moe_desc *d, const float *x, const float *router_x, float *logits) {
    float y[WIDTH * 16] = {0};
    moe_layer layer;
    moe_error e;
    moe_io io;
    moe_status s = moe_layer_init(&layer, d, &e);
    if (!check(!s, "init")) return printf("     %s %s: %s\n", e.part, e.field, moe_status_text(s)), NAN;
    memset(&io, 0, sizeof io);
    io.x = x, io.y = y, io.router_x = router_x, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = 1,
    io.logits_out = logits;
    io.workspace_size = moe_workspace_size(&layer, 1, 1), io.workspace = malloc(io.workspace_size);
    check(!moe_forward(&layer, &io), "forward");
    free(io.workspace);
    return (double)y[0];
}
static double run_one(const tiny *t) {
    float x = 1;
    return run_token(&t->d, &x, NULL, NULL);
}

static void weight_on_the_input(void) {
    tiny t;
    begin("7.11 Llama-4's weight multiplies the expert's input, not its output");
    tiny_begin(&t, "llama4", 2, 1);
    t.router[0] = -1.0986123f, t.router[1] = -9; /* sigmoid 1/4 */
    t.gate[0] = 3, t.up[0] = 2;
    is(run_one(&t), silu(0.25 * 3) * 0.25 * 2, 0.25 * silu(3) * 2, "silu(w g) w u");
    end();
    begin("7.11 a weight of 0 on the input leaves what the biases make");
    static const float b1 = 1.5f, b3 = 0.5f, b2 = 0.25f;
    tiny_begin(&t, "llama4", 1, 1);
    t.router[0] = -200; /* sigmoid 0 */
    use_vector(&t.d.gate.bias, &b1), use_vector(&t.d.up.bias, &b3), use_vector(&t.d.down.bias, &b2);
    is(run_one(&t), silu(1.5) * 0.5 + 0.25, 0, "expert(0)");
    t.d.ffn.weight_at = MOE_WEIGHT_AT_HIDDEN;
    is(run_one(&t), 0.25, 0, "on the hidden values: the last bias");
    end();
}

static void activations(void) {
    static const float g[4] = {8, -8, 1, 3}, u[4] = {9, -9, 0.5f, -2};
    static const double oai[4] = {55.99963, 5.859857e-05, 1.268694, -2.981929},
                        pre[4] = {48.95536, 0.01877961, 0.3655293, -5.715445},
                        post[4] = {49, 0.01877961, 0.3655293, -5.715445},
                        situ[4] = {33.26842, 0.01116031, 0.358052, -4.829912};
    tiny t;
    begin("7.12 gpt-oss: gate clamped above only, up on both sides, up + 1, sigmoid(1.702 g)");
    for (int i = 0; i < 4; i++) {
        tiny_begin(&t, "gpt_oss", 1, 1);
        t.gate[0] = g[i], t.up[0] = u[i];
        is(run_one(&t), oai[i], pre[i], "OAI");
    }
    end();
    begin("7.12 gpt-oss: the last bias is inside the routing weight");
    static const float b2[2] = {4, 8};
    tiny_begin(&t, "gpt_oss", 2, 2);
    t.router[0] = 1.0986123f; /* softmax 3/4, 1/4 */
    t.gate[0] = t.gate[1] = 0;
    use_vector(&t.d.down.bias, b2);
    is(run_one(&t), 0.75 * 4 + 0.25 * 8, 12, "w b2");
    end();
    begin("7.13 three clamps: before the activation, after it, gpt-oss");
    for (int i = 0; i < 4; i++) {
        tiny_begin(&t, NULL, 1, 1);
        t.gate[0] = g[i], t.up[0] = u[i], t.d.ffn.limit = 7;
        t.d.ffn.clamp = MOE_CLAMP_PRE;
        is(run_one(&t), pre[i], i ? silu((double)g[i]) * (double)u[i] + 1 : post[i], "before");
        t.d.ffn.clamp = MOE_CLAMP_POST;
        is(run_one(&t), post[i], i ? silu((double)g[i]) * (double)u[i] + 1 : pre[i], "after");
        t.d.ffn.clamp = MOE_CLAMP_NONE, t.d.ffn.limit = 0, t.d.ffn.activation = MOE_ACT_SITU;
        is(run_one(&t), situ[i], silu((double)g[i]) * (double)u[i], "SiTU");
    }
    end();
    begin("7.13 a limit of 0 is none; shared experts are clamped too, by a limit of their own");
    tiny_begin(&t, "deepseek_v4", 1, 1);
    t.d.router.routed_scale = 1, t.down[0] = 0;
    tiny_shared(&t, 1, 8, 9, 1);
    t.d.shared.limit = 7;
    is(run_one(&t), pre[0], silu(8) * 9, "the shared expert's limit");
    t.d.shared.limit = 0;
    is(run_one(&t), silu(8) * 9, 0, "no limit");
    end();
}

static void order_of_gate_and_up(void) {
    static const float fused[2] = {
        1, 3}; /* gate, up: concatenated, interleaved and transposed are the same for width 1 */
    static const float wide[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    tiny t;
    begin("7.14 gate comes first, in every layout");
    tiny_begin(&t, NULL, 1, 1);
    t.d.gate.data = t.d.up.data = fused, t.d.up.offset = 4, t.d.gate.expert_stride = t.d.up.expert_stride = 8;
    is(run_one(&t), silu(1) * 3, silu(3) * 1, "gate first");
    t.d.d_ff = 2, t.down[0] = 1, t.down[1] = 0; /* the first row of two */
    t.d.gate.data = t.d.up.data = wide, t.d.gate.expert_stride = t.d.up.expert_stride = 16;
    t.d.up.offset = 8;
    is(run_one(&t), silu(1) * 3, silu(1) * 2, "concatenated");
    t.d.gate.row_stride = t.d.up.row_stride = 8, t.d.up.offset = 4;
    is(run_one(&t), silu(1) * 2, silu(1) * 3, "interleaved");
    t.down[0] = 0, t.down[1] = 1;
    is(run_one(&t), silu(3) * 4, silu(2) * 4, "interleaved, the second row");
    t.d.gate.row_stride = t.d.up.row_stride = 4, t.d.up.offset = 8, t.d.gate.k_stride = t.d.up.k_stride = 16;
    is(run_one(&t), silu(2) * 4, silu(3) * 4, "[in, out]");
    end();
}

static void scales_and_shared(void) {
    tiny t;
    begin("7.18 NLLB's experts are scaled by 1 - dropout at evaluation");
    tiny_begin(&t, "nllb_moe", 2, 2);
    t.up[0] = 5, t.up[1] = 5;
    is(run_one(&t), 0.8 * 5, 5, "0.8");
    end();
    begin("7.21 the shared expert has its own width, and its gate is on its output alone");
    tiny_begin(&t, "qwen2_moe", 2, 1);
    t.gate[0] = t.gate[1] = 2;
    tiny_shared(&t, 3, 1, 1, 1); /* 3 silu(1) */
    use(&t.d.shared.gate_weight, t.own_gate), t.own_gate[0] = -1;
    is(run_one(&t), 0.5 * silu(2) + sigmoid(-1) * 3 * silu(1), sigmoid(-1) * (0.5 * silu(2) + 3 * silu(1)),
       "sigmoid(g x) on the shared");
    end();
    begin(
        "7.21 Cohere2 averages routed and shared, Grok-2 divides by the root of 2, Klear mixes by a softmax of two");
    tiny_begin(&t, "cohere2_moe", 1, 1);
    t.gate[0] = 2, t.d.ffn.combine_scale = 0.5f;
    tiny_shared(&t, 2, 1, 1, 1);
    is(run_one(&t), 0.5 * (silu(2) + 2 * silu(1)), silu(2) + 2 * silu(1), "average");
    tiny_begin(&t, "grok_2", 1, 1);
    t.d.ffn.activation = MOE_ACT_SILU, t.gate[0] = 2;
    tiny_shared(&t, 2, 1, 1, 1);
    is(run_one(&t), (silu(2) + 2 * silu(1)) / sqrt(2), silu(2) + 2 * silu(1), "root of 2");
    static const float bias[2] = {0.5f, -0.25f};
    double a = exp(1 + 0.5), b = exp(3 - 0.25);
    tiny_begin(&t, "klear", 1, 1);
    t.gate[0] = 2;
    tiny_shared(&t, 2, 1, 1, 1);
    use(&t.d.shared.gate_weight, t.own_gate), t.own_gate[0] = 1, t.own_gate[1] = 3;
    use_vector(&t.d.shared.gate_weight.bias, bias);
    is(run_one(&t), (a * silu(2) + b * 2 * silu(1)) / (a + b), silu(2) + b / (a + b) * 2 * silu(1), "both branches");
    end();
}

static void router_input(void) {
    static const float scale[2] = {2, 3}, x[2] = {1, 1}, residual[2] = {3, -4};
    tiny t;
    float logits[2];
    begin("7.23 Gemma-4's router norms the residual itself, times its scale, divided by the root of the width");
    tiny_begin(&t, "gemma4", 2, 1);
    t.d.d_model = 2;
    t.router[0] = 1, t.router[3] = 1; /* the two inputs */
    use_vector(&t.d.router.input_scale, scale);
    run_token(&t.d, x, residual, logits);
    double norm = sqrt(25.0 / 2 + 1e-6);
    is((double)logits[0], 3 / norm * 2 / sqrt(2), 3 / norm * 2, "first");
    is((double)logits[1], -4 / norm * 3 / sqrt(2), -4.0 * 3 / sqrt(2), "second");
    end();
    begin("7.22 the router may read something else than the experts");
    tiny_begin(&t, "smallthinker", 2, 1);
    t.router[0] = 1, t.router[1] = -1, t.up[0] = 5, t.up[1] = 7, t.d.router.score = MOE_SCORE_SIGMOID;
    float one = 1, minus = -2;
    is(run_token(&t.d, &one, &minus, NULL), 7, 5, "the second expert");
    end();
}

static void router_precision(void) {
    enum { D = 64, E = 8 };
    static float router[E * D], w[E * D * 32], x[D], logits[3][E];
    static uint8_t q8[E * 32 * D / 32 * 34], down[E * D * 34];
    uint32_t seed = 1, have = 0;
    moe_desc d;
    begin("7.28 the router is not quantised with the experts: the same logits with every compute");
    for (size_t i = 0; i < sizeof w / sizeof *w; i++)
        w[i] = (float)((seed = seed * 1664525u + 1013904223u) >> 8) * 1e-7f - 0.8f;
    for (int i = 0; i < E * D; i++) router[i] = w[i] * 0.37f;
    for (int i = 0; i < D; i++) x[i] = w[i + 77] * 1.9f;
    memset(&d, 0, sizeof d);
    check(!moe_quantize(MOE_FORMAT_Q8_0, w, E * 32, D, q8) && !moe_quantize(MOE_FORMAT_Q8_0, w, E * D, 32, down),
          "quantise");
    d.d_model = D, d.d_ff = 32, d.n_experts = E, d.top_k = 2;
    use(&d.router.weight, router);
    d.gate.format = d.up.format = d.down.format = MOE_FORMAT_Q8_0;
    d.gate.data = d.up.data = q8, d.down.data = down;
    for (uint32_t c = MOE_COMPUTE_F32; c <= MOE_COMPUTE_Q8; c++) {
        moe_layer layer;
        d.compute = c;
        if (moe_layer_init(&layer, &d, NULL)) {
            check(c == MOE_COMPUTE_BF16, "only bf16 may be missing");
            continue;
        }
        run_token(&d, x, NULL, logits[have++]);
        check(!memcmp(logits[0], logits[have - 1], sizeof *logits), "logits differ");
    }
    check(have >= 2, "two computes at least");
    end();
}

int main(void) {
    weight_on_the_input();
    activations();
    order_of_gate_and_up();
    scales_and_shared();
    router_input();
    router_precision();
    printf("test_corners: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
