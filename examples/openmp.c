/* openmp.c - moe.h on OpenMP threads

       cc -std=c11 -O2 -fopenmp -I. examples/openmp.c -o build/openmp -lm

   Two ways. With MOE_USE_OPENMP defined, moe.h runs its phases in parallel loops of its own. Or an engine that has
   settings of its own (schedule, number of threads, nesting) passes a callback, and needs no define. Both give the
   same bits as one thread. Without -fopenmp this program still compiles, and runs on one thread. */

#define MOE_USE_OPENMP
#define MOE_IMPLEMENTATION
#include "moe.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { D_MODEL = 256, D_FF = 512, N_EXPERTS = 16, TOP_K = 4, N_TOKENS = 64 };
static float gate[N_EXPERTS][D_FF][D_MODEL], up[N_EXPERTS][D_FF][D_MODEL], down[N_EXPERTS][D_MODEL][D_FF];
static float router[N_EXPERTS][D_MODEL], x[N_TOKENS][D_MODEL], y[3][N_TOKENS][D_MODEL];

static void fill(float *to, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = ((float)rand() / (float)RAND_MAX - 0.5f) * 0.1f;
}

static void run(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg) {
    int count = (int)n; /* older compilers want a signed loop variable */
    (void)user;
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic, 1)
#endif
    for (int i = 0; i < count; i++) task(arg, (uint32_t)i);
}

int main(void) {
    moe_desc d = {0};
    moe_layer layer;
    moe_error error;
    uint32_t n_threads = 1;
#ifdef _OPENMP
    n_threads = (uint32_t)omp_get_max_threads();
#endif
    fill(&gate[0][0][0], sizeof gate / sizeof(float)), fill(&up[0][0][0], sizeof up / sizeof(float));
    fill(&down[0][0][0], sizeof down / sizeof(float)), fill(&router[0][0], sizeof router / sizeof(float));
    fill(&x[0][0], sizeof x / sizeof(float));
    moe_preset(&d, "mixtral");
    d.d_model = D_MODEL, d.d_ff = D_FF, d.n_experts = N_EXPERTS, d.top_k = TOP_K;
    d.gate.data = gate, d.up.data = up, d.down.data = down, d.router.weight.data = router;
    d.gate.format = d.up.format = d.down.format = d.router.weight.format = MOE_FORMAT_F32;
    if (moe_layer_init(&layer, &d, &error))
        return fprintf(stderr, "openmp: %s %s: %s\n", error.part, error.field, moe_status_text(error.status)), 1;

    moe_io io = {0};
    io.x = x, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = N_TOKENS;
    io.workspace_size = moe_workspace_size(&layer, N_TOKENS, 4 * n_threads);
    io.workspace = malloc(io.workspace_size);
    moe_parallel callback = {run, NULL};

    io.y = y[0], io.n_tasks = 1; /* one thread */
    moe_status status = moe_forward(&layer, &io);
    io.y = y[1], io.n_tasks = n_threads; /* moe.h's own loops */
    if (!status) status = moe_forward(&layer, &io);
    io.y = y[2], io.n_tasks = 4 * n_threads,
    io.parallel = &callback; /* ours: more pieces than threads, taken as they come */
    if (!status) status = moe_forward(&layer, &io);
    free(io.workspace);
    if (status) return fprintf(stderr, "openmp: %s\n", moe_status_text(status)), 1;

    int same = !memcmp(y[0], y[1], sizeof y[0]) && !memcmp(y[0], y[2], sizeof y[0]);
    printf("%d tokens, %u OpenMP threads: y[0][0] = %.6f, %s\n", N_TOKENS, n_threads, (double)y[0][0][0],
           same ? "the same bits as with one" : "NOT the same as with one");
    return !same;
}
