/* team.c - moe.h inside an engine whose workers run in step

       cc -std=c11 -O2 -I. examples/team.c -o build/team -lm -lpthread
       build/team [WORKERS]

   Many engines start their threads once and let all of them walk through the whole network, with a barrier after
   every step: a worker knows its number ith of nth and does its share. Such an engine needs no callback and no
   pool: it calls moe_phase_run, one phase a step. Here is such an engine in miniature: four layers, each x +=
   experts(norm(x)); the norm is the engine's own step, the experts are moe.h's phases. The result is compared with
   moe_forward's. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define MOE_IMPLEMENTATION
#include "moe.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { N_LAYERS = 4, D_MODEL = 256, D_FF = 512, N_EXPERTS = 16, TOP_K = 4, N_TOKENS = 8, MAX_WORKERS = 64 };
enum { MATRIX = D_FF * D_MODEL };

/* ---- A barrier ----------------------------------------------------------------------------------------------- */

typedef struct barrier {
    uint32_t n;
    _Alignas(128) _Atomic uint32_t arrived;
    _Alignas(128) _Atomic uint32_t round; /* changes when all have arrived */
} barrier;

/* Spins, because steps are short, but gives the processor away if somebody is late, who may need it to arrive. */
static void barrier_wait(barrier *b) {
    uint32_t round = atomic_load(&b->round);
    if (atomic_fetch_add(&b->arrived, 1) + 1 == b->n) {
        atomic_store(&b->arrived, 0);
        atomic_store(&b->round, round + 1);
        return;
    }
    for (int i = 0; atomic_load(&b->round) == round; i++)
        if (i > 1000) sched_yield();
}

/* ---- The engine ---------------------------------------------------------------------------------------------- */

typedef struct engine {
    float *weights[N_LAYERS], *router[N_LAYERS];
    moe_layer layers[N_LAYERS];
    float x[N_TOKENS][D_MODEL]; /* the residual stream */
    float h[N_TOKENS][D_MODEL]; /* what the experts read */
    void *workspace;
    size_t workspace_size;
    uint32_t n_workers;
    barrier step;
    moe_status status; /* written by worker 0 */
} engine;

static void norm(float *h, const float *x) {
    float sum = 0.0f;
    for (int i = 0; i < D_MODEL; i++) sum += x[i] * x[i];
    float scale = 1.0f / sqrtf(sum / D_MODEL + 1e-6f);
    for (int i = 0; i < D_MODEL; i++) h[i] = x[i] * scale;
}

static moe_io engine_io(engine *en) {
    moe_io io = {0};
    io.x = en->h, io.y = en->x, io.y_add = 1; /* x += experts(h) */
    io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = N_TOKENS;
    io.workspace = en->workspace, io.workspace_size = en->workspace_size;
    io.n_tasks = en->n_workers;
    return io;
}

/* What every worker does. After the barrier that follows a failed phase all see its status, and leave together. */
static void walk(engine *en, uint32_t ith, uint32_t nth) {
    moe_io io = engine_io(en);
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        for (uint32_t t = ith; t < N_TOKENS; t += nth) norm(en->h[t], en->x[t]);
        barrier_wait(&en->step);
        for (uint32_t p = 0, n = moe_phase_count(&en->layers[l], &io); p < n; p++) {
            moe_status status = moe_phase_run(&en->layers[l], &io, p, ith, nth);
            if (ith == 0) en->status = status;
            barrier_wait(&en->step);
        }
        int failed = en->status != MOE_OK; /* an error stays: the last phase returns it too */
        barrier_wait(&en->step);           /* all have read it */
        if (failed) return;
    }
}

typedef struct member {
    engine *en;
    uint32_t ith;
    pthread_t thread;
} member;

static void *member_main(void *arg) {
    member *m = (member *)arg;
    walk(m->en, m->ith, m->en->n_workers);
    return NULL;
}

/* A real engine keeps its team; here it lives for one pass. */
static int engine_run(engine *en) {
    member team[MAX_WORKERS];
    uint32_t started = 1;
    en->step.n = en->n_workers;
    atomic_init(&en->step.arrived, 0);
    atomic_init(&en->step.round, 0);
    for (uint32_t i = 0; i < en->n_workers; i++) team[i].en = en, team[i].ith = i;
    while (started < en->n_workers && !pthread_create(&team[started].thread, NULL, member_main, &team[started]))
        started++;
    if (started < en->n_workers) { /* who has started waits at the barrier for the others */
        fprintf(stderr, "team: only %u of %u threads could be started\n", started, en->n_workers);
        exit(1);
    }
    walk(en, 0, en->n_workers);
    for (uint32_t i = 1; i < started; i++) pthread_join(team[i].thread, NULL);
    return en->status ? -1 : 0;
}

static int engine_run_serial(engine *en) {
    moe_io io = engine_io(en);
    for (uint32_t l = 0; l < N_LAYERS && !en->status; l++) {
        for (uint32_t t = 0; t < N_TOKENS; t++) norm(en->h[t], en->x[t]);
        en->status = moe_forward(&en->layers[l], &io);
    }
    return en->status ? -1 : 0;
}

/* ---- Random layers ------------------------------------------------------------------------------------------- */

static float *random_floats(size_t n) {
    float *p = malloc(n * sizeof *p);
    for (size_t i = 0; p && i < n; i++) p[i] = ((float)rand() / (float)RAND_MAX - 0.5f) * 0.1f;
    return p;
}

static int engine_init(engine *en, uint32_t n_workers) {
    memset(en, 0, sizeof *en);
    en->n_workers = n_workers;
    for (uint32_t l = 0; l < N_LAYERS; l++) {
        moe_desc d = {0};
        moe_error error;
        const float *w = en->weights[l] = random_floats((size_t)3 * N_EXPERTS * MATRIX);
        en->router[l] = random_floats((size_t)N_EXPERTS * D_MODEL);
        moe_preset(&d, "mixtral");
        d.d_model = D_MODEL, d.d_ff = D_FF, d.n_experts = N_EXPERTS, d.top_k = TOP_K;
        d.gate.data = w, d.up.data = w + (size_t)N_EXPERTS * MATRIX, d.down.data = w + (size_t)2 * N_EXPERTS * MATRIX;
        d.router.weight.data = en->router[l];
        d.gate.format = d.up.format = d.down.format = d.router.weight.format = MOE_FORMAT_F32;
        if (!w || !en->router[l]) return fprintf(stderr, "team: no memory\n"), -1;
        if (moe_layer_init(&en->layers[l], &d, &error))
            return fprintf(stderr, "team: %s %s: %s\n", error.part, error.field, moe_status_text(error.status)), -1;
    }
    en->workspace_size = moe_workspace_size(&en->layers[0], N_TOKENS, n_workers); /* all layers are of one size */
    en->workspace = malloc(en->workspace_size);
    return en->workspace ? 0 : -1;
}

static void engine_set_input(engine *en) {
    for (int i = 0; i < N_TOKENS * D_MODEL; i++) (&en->x[0][0])[i] = (float)(i * 37 % 101) / 50.0f - 1.0f;
}

static void engine_free(engine *en) {
    for (uint32_t l = 0; l < N_LAYERS; l++) free(en->weights[l]), free(en->router[l]);
    free(en->workspace);
}

int main(int argc, char **argv) {
    static engine en;
    static float serial[N_TOKENS][D_MODEL];
    unsigned long n = argc > 1 ? strtoul(argv[1], NULL, 10) : 2;
    if (!n || n > MAX_WORKERS) return fprintf(stderr, "usage: team [WORKERS], 1 to %d\n", MAX_WORKERS), 1;
    int bad = engine_init(&en, (uint32_t)n);
    if (!bad) {
        engine_set_input(&en);
        bad = engine_run_serial(&en);
        memcpy(serial, en.x, sizeof serial);
    }
    if (!bad) {
        engine_set_input(&en);
        bad = engine_run(&en);
    }
    if (bad) fprintf(stderr, "team: %s\n", moe_status_text(en.status));
    else {
        bad = memcmp(serial, en.x, sizeof serial) != 0;
        printf("%d layers, %d tokens, %lu workers in step: x[0][0] = %.6f, %s\n", N_LAYERS, N_TOKENS, n,
               (double)en.x[0][0], bad ? "NOT the same as moe_forward's" : "the same bits as moe_forward's");
    }
    engine_free(&en);
    return bad != 0;
}
