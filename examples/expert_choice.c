/* expert_choice.c - a router of one's own: Expert Choice (Zhou et al., 2022) on top of moe.h

       cc -std=c11 -O2 -I. examples/expert_choice.c -o build/expert_choice -lm -lpthread

   Usually every token chooses its k best experts, and some experts become crowded. In Expert Choice every expert
   chooses its c best tokens, c = n_tokens * k / n_experts: the load is perfectly even, and a token gets as many
   experts as want it, perhaps none. (It looks at the whole batch, future tokens too: good for training and
   encoders, not for decoding.)

   moe.h has no knob for that, and needs none: moe_route gives the router's logits, the caller decides which experts
   a token gets, and moe_forward takes the answer as ids_in and weights_in, any number of slots a token, padded with
   -1. */

#define MOE_IMPLEMENTATION
#include "moe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { D_MODEL = 64, D_FF = 128, N_EXPERTS = 8, TOP_K = 2, N_TOKENS = 64, PLACES = N_TOKENS * TOP_K / N_EXPERTS };

static float gate[N_EXPERTS][D_FF][D_MODEL], up[N_EXPERTS][D_FF][D_MODEL], down[N_EXPERTS][D_MODEL][D_FF];
static float router[N_EXPERTS][D_MODEL], x[N_TOKENS][D_MODEL], y[N_TOKENS][D_MODEL];

/* What the experts chose, as moe.h takes it. A token can be chosen by every expert, so there are N_EXPERTS slots. */
static int32_t ids[N_TOKENS][N_EXPERTS];
static float weights[N_TOKENS][N_EXPERTS];

/* ---- Expert Choice ------------------------------------------------------------------------------------------- */

static void softmax_rows(float (*p)[N_EXPERTS]) {
    for (int t = 0; t < N_TOKENS; t++) {
        float max = p[t][0], sum = 0.0f;
        for (int e = 1; e < N_EXPERTS; e++) max = p[t][e] > max ? p[t][e] : max;
        for (int e = 0; e < N_EXPERTS; e++) sum += p[t][e] = expf(p[t][e] - max);
        for (int e = 0; e < N_EXPERTS; e++) p[t][e] /= sum;
    }
}

/* The token that expert e likes best of those it has not taken; the first of equals. */
static int best_token(float (*p)[N_EXPERTS], int e, const uint8_t *taken) {
    int best = -1;
    for (int t = 0; t < N_TOKENS; t++)
        if (!taken[t] && (best < 0 || p[t][e] > p[best][e])) best = t;
    return best;
}

/* p [tokens][experts] are probabilities: they choose, and are the weights. Returns how many slots the busiest
   token has. */
static uint32_t experts_choose(float (*p)[N_EXPERTS]) {
    uint32_t n_slots[N_TOKENS] = {0}, most = 0;
    for (int t = 0; t < N_TOKENS; t++)
        for (int i = 0; i < N_EXPERTS; i++) ids[t][i] = -1;
    for (int e = 0; e < N_EXPERTS; e++) {
        uint8_t taken[N_TOKENS] = {0};
        for (int place = 0; place < PLACES; place++) {
            int t = best_token(p, e, taken);
            uint32_t slot = n_slots[t]++;
            taken[t] = 1;
            ids[t][slot] = e;
            weights[t][slot] = p[t][e];
            most = n_slots[t] > most ? n_slots[t] : most;
        }
    }
    return most;
}

/* ---- A layer of random weights ------------------------------------------------------------------------------- */

static void fill(float *to, size_t n, float scale) {
    for (size_t i = 0; i < n; i++) to[i] = ((float)rand() / (float)RAND_MAX - 0.5f) * scale;
}

static int make_layer(moe_layer *layer) {
    moe_desc d = {0};
    moe_error error;
    fill(&gate[0][0][0], sizeof gate / sizeof(float), 0.2f), fill(&up[0][0][0], sizeof up / sizeof(float), 0.2f);
    fill(&down[0][0][0], sizeof down / sizeof(float), 0.2f), fill(&router[0][0], sizeof router / sizeof(float), 1.0f);
    fill(&x[0][0], sizeof x / sizeof(float), 2.0f);
    for (int t = 0; t < N_TOKENS; t++)
        x[t][0] += 1.5f; /* tokens have something in common: some experts are liked by all */
    moe_preset(&d, "mixtral");
    d.d_model = D_MODEL, d.d_ff = D_FF, d.n_experts = N_EXPERTS, d.top_k = TOP_K;
    d.gate.data = gate, d.up.data = up, d.down.data = down, d.router.weight.data = router;
    d.gate.format = d.up.format = d.down.format = d.router.weight.format = MOE_FORMAT_F32;
    if (!moe_layer_init(layer, &d, &error)) return 0;
    fprintf(stderr, "expert_choice: %s %s: %s\n", error.part, error.field, moe_status_text(error.status));
    return -1;
}

/* The same sum by hand, from the outputs that moe_forward gives slot by slot. */
static double worst_difference(const moe_layer *layer, const moe_io *used) {
    static float slots[N_TOKENS][N_EXPERTS][D_MODEL];
    double worst = 0.0;
    moe_io io = *used;
    io.y = NULL, io.slots_out = &slots[0][0][0], io.k = N_EXPERTS, io.stats = NULL;
    if (moe_forward(layer, &io)) return HUGE_VAL;
    for (int t = 0; t < N_TOKENS; t++)
        for (int r = 0; r < D_MODEL; r++) {
            double sum = 0.0;
            for (int i = 0; i < N_EXPERTS && ids[t][i] >= 0; i++)
                sum += (double)weights[t][i] * (double)slots[t][i][r];
            worst = fmax(worst, fabs(sum - (double)y[t][r]));
        }
    return worst;
}

static void report(const char *name, const moe_stats *stats) {
    moe_balance b;
    moe_stats_balance(stats, N_EXPERTS, &b);
    printf("%-15s tokens per expert:", name);
    for (int e = 0; e < N_EXPERTS; e++) printf(" %2u", (uint32_t)stats->tokens[e]);
    printf("   imbalance %.2f, entropy %.3f\n", b.imbalance, b.entropy);
}

static void report_tokens(void) {
    int with[N_EXPERTS + 1] = {0};
    for (int t = 0; t < N_TOKENS; t++) {
        int n = 0;
        while (n < N_EXPERTS && ids[t][n] >= 0) n++;
        with[n]++;
    }
    printf("Tokens with 0, 1, 2, ... experts:");
    for (int n = 0; n <= N_EXPERTS; n++) printf(" %d", with[n]);
    putchar('\n');
}

int main(void) {
    static float logits[N_TOKENS][N_EXPERTS];
    uint64_t tokens[2][N_EXPERTS] = {{0}};
    moe_stats stats[2] = {{0}};
    moe_layer layer;
    moe_io io = {0};
    if (make_layer(&layer)) return 1;
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = N_TOKENS;
    /* Measured for top_k slots a token: room for N_EXPERTS each is that of N_EXPERTS / TOP_K times as many tokens. */
    io.workspace_size = moe_workspace_size(&layer, N_TOKENS * N_EXPERTS / TOP_K, 1);
    io.workspace = malloc(io.workspace_size);
    stats[0].tokens = tokens[0], stats[1].tokens = tokens[1];

    io.stats = &stats[0]; /* tokens choose */
    moe_status status = moe_forward(&layer, &io);

    io.stats = NULL, io.logits_out = &logits[0][0]; /* experts choose */
    if (!status) status = moe_route(&layer, &io);
    softmax_rows(logits);
    io.k = experts_choose(logits);
    io.logits_out = NULL, io.stats = &stats[1];
    io.ids_in = &ids[0][0], io.weights_in = &weights[0][0];
    io.ids_stride = io.weights_stride = sizeof ids[0]; /* rows are longer than the k that is used */
    if (!status) status = moe_forward(&layer, &io);
    double worst = status ? 0.0 : worst_difference(&layer, &io);
    free(io.workspace);
    if (status) return fprintf(stderr, "expert_choice: %s\n", moe_status_text(status)), 1;

    report("Tokens choose:", &stats[0]);
    report("Experts choose:", &stats[1]);
    report_tokens();
    printf("Difference to the sum by hand: at most %.1e\n", worst);
    return !(worst < 1e-5 && stats[1].slots - stats[1].skipped == N_EXPERTS * PLACES);
}
