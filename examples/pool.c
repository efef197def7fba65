/* pool.c - how fast pool.h starts work, and what that means for a layer

       cc -std=c11 -O2 -I. examples/pool.c -o build/pool -lm -lpthread          (with -fopenmp: compares with OpenMP)
       build/pool [--pin] [--workers N]

   For 1, 2 and 4 workers, each with one task of 5 microseconds (empty ones the caller would do alone):

      first    from the call of run() to the start of the first task that another thread runs
      lost     from the call to the return of run(), less the 5 microseconds that the tasks need side by side
      asleep   the same after a pause in which the workers fell asleep
      layer    one token through a tiny layer with hardly any weights to read: the overhead of moe.h and of the pool

   Microseconds: median, mean, and the least in brackets. Where other programs run, the mean shows what it costs if
   threads have to wait for each other. */

#define _GNU_SOURCE /* pinning */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum { D_MODEL = 64, D_FF = 64, N_EXPERTS = 8, TOP_K = 2, TASK_US = 5, REPEATS = 2001, MAX_WORKERS = 256 };

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

/* ---- Times: the median and the least of many ----------------------------------------------------------------- */

typedef struct times {
    double us[REPEATS];
    uint32_t n;
} times;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_times(times *t) {
    double sum = 0.0;
    if (!t->n) {
        printf("%25s", "-");
        return;
    }
    qsort(t->us, t->n, sizeof t->us[0], ascending);
    for (uint32_t i = 0; i < t->n; i++) sum += t->us[i];
    printf("%8.2f %8.2f (%5.2f)", t->us[t->n / 2], sum / t->n, t->us[0]);
    t->n = 0;
}

/* ---- Short tasks --------------------------------------------------------------------------------------------- */

typedef struct stamp { /* of one task, on cache lines of its own */
    _Alignas(POOL_LINE) double start;
    pthread_t thread;
} stamp;

static void stamp_task(void *arg, uint32_t i) {
    stamp *s = (stamp *)arg + i;
    s->thread = pthread_self();
    s->start = now_us();
    while (now_us() - s->start < TASK_US) pool_pause();
}

/* Runs one task a worker and notes when the call returned, and when another thread began. */
static void time_call(const moe_parallel *parallel, uint32_t n, times *first, times *lost) {
    static stamp stamps[MAX_WORKERS];
    double call = now_us(), start = 0.0;
    parallel->run(parallel->user, n, stamp_task, stamps);
    double end = now_us();
    for (uint32_t i = 0; i < n; i++)
        if (!pthread_equal(stamps[i].thread, pthread_self()) && (start <= 0.0 || stamps[i].start < start))
            start = stamps[i].start;
    if (first && start > 0.0) first->us[first->n++] = start - call;
    lost->us[lost->n++] = end - call - TASK_US;
}

/* ---- A tiny layer -------------------------------------------------------------------------------------------- */

static float weights[N_EXPERTS * D_FF * D_MODEL], router[N_EXPERTS * D_MODEL], x[D_MODEL], y[D_MODEL];

static void fill(float *to, size_t n) {
    for (size_t i = 0; i < n; i++) to[i] = (float)rand() / (float)RAND_MAX - 0.5f;
}

static int make_layer(moe_layer *layer) {
    moe_desc d = {0};
    moe_error error;
    fill(weights, sizeof weights / sizeof *weights);
    fill(router, sizeof router / sizeof *router);
    fill(x, sizeof x / sizeof *x);
    moe_preset(&d, "mixtral");
    d.d_model = D_MODEL, d.d_ff = D_FF, d.n_experts = N_EXPERTS, d.top_k = TOP_K;
    d.gate.data = d.up.data = d.down.data = weights, d.router.weight.data = router; /* one set of numbers will do */
    d.gate.format = d.up.format = d.down.format = d.router.weight.format = MOE_FORMAT_F32;
    if (!moe_layer_init(layer, &d, &error)) return 0;
    fprintf(stderr, "pool: %s %s: %s\n", error.part, error.field, moe_status_text(error.status));
    return -1;
}

static int time_layer(const moe_layer *layer, const moe_parallel *parallel, uint32_t n_workers, times *t) {
    static float serial[D_MODEL];
    moe_io io = {0};
    int bad = 0;
    io.x = x, io.y = serial, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = 1;
    io.workspace_size = moe_workspace_size(layer, 1, n_workers);
    io.workspace = malloc(io.workspace_size);
    if (!io.workspace || moe_forward(layer, &io)) bad = 1;
    io.y = y, io.parallel = parallel, io.n_tasks = n_workers;
    for (int i = 0; i < REPEATS && !bad; i++) {
        double start = now_us();
        bad = moe_forward(layer, &io) != MOE_OK;
        t->us[t->n++] = now_us() - start;
    }
    free(io.workspace);
    if (!bad && memcmp(y, serial, sizeof y)) bad = 1;
    if (bad) fprintf(stderr, "pool: the layer failed, or the result depends on the workers\n");
    return bad ? -1 : 0;
}

/* ---- A row of the table -------------------------------------------------------------------------------------- */

static void sleep_us(long us) {
    struct timespec t = {0, us * 1000};
    nanosleep(&t, NULL);
}

static int measure(const char *name, const moe_layer *layer, const moe_parallel *parallel, uint32_t n_workers,
                   int naps) {
    static times first, lost, asleep, one;
    for (int i = 0; i < REPEATS; i++) time_call(parallel, n_workers, &first, &lost);
    for (int i = 0; i < naps; i++) {
        sleep_us(2000);
        time_call(parallel, n_workers, NULL, &asleep);
    }
    if (time_layer(layer, parallel, n_workers, &one)) return -1;
    printf("%-7s %7u ", name, n_workers);
    print_times(&first), print_times(&lost), print_times(&asleep), print_times(&one);
    putchar('\n');
    return 0;
}

#ifdef _OPENMP
static void openmp_run(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg) {
    int count = (int)n;
    (void)user;
#pragma omp parallel for schedule(static, 1) num_threads(count)
    for (int i = 0; i < count; i++) task(arg, (uint32_t)i);
}
#endif

static int measure_all(const moe_layer *layer, uint32_t n, uint32_t pin) {
    pool p;
    pool_options options = {0, pin};
    if (pool_start(&p, n, &options) < n) fprintf(stderr, "pool: only %u workers could be started\n", p.n_workers);
    moe_parallel parallel = pool_parallel(&p);
    int bad = measure("pool", layer, &parallel, p.n_workers, 100);
    pool_stop(&p);
#ifdef _OPENMP
    moe_parallel openmp = {openmp_run, NULL};
    if (!bad) bad = measure("openmp", layer, &openmp, n, 100);
#endif
    return bad;
}

int main(int argc, char **argv) {
    uint32_t pin = 0, only = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--pin")) pin = 1;
        else if (!strcmp(argv[i], "--workers") && i + 1 < argc) only = (uint32_t)strtoul(argv[++i], NULL, 10);
        else return fprintf(stderr, "usage: pool [--pin] [--workers N]\n"), 1;
    }
    if (only > MAX_WORKERS) return fprintf(stderr, "pool: at most %d workers\n", MAX_WORKERS), 1;
    moe_layer layer;
    if (make_layer(&layer)) return 1;
    printf("%ld processors; microseconds: median, mean, (least) of %d\n", sysconf(_SC_NPROCESSORS_ONLN), REPEATS);
    printf("        workers %17s%25s%25s%25s\n", "first", "lost", "asleep", "layer");
    for (uint32_t n = only ? only : 1; n <= (only ? only : 4); n *= 2)
        if (measure_all(&layer, n, pin)) return 1;
    return 0;
}
