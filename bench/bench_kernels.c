/* bench_kernels.c: every dot product of every tier, as shares of what this machine can do at most: of the peak of its
   multiply-adds with many tokens, of the read bandwidth with one. Peaks and bandwidth are measured in the same process, in
   turn with the kernels; medians.
   bench_kernels [-k K] [-r rows of a call] [-t tokens,tokens,...] [-a name] [-f format] [-j threads] [-n rounds] [-m MiB] */
#define _GNU_SOURCE
#define MOE_IMPLEMENTATION
#include "../moe.h"
#include "limits.h"
#include <unistd.h>

enum { MAX_TOKENS = 1024, MAX_ROUNDS = 32 };
typedef struct kernel {
    const char *name;
    uint32_t tier, compute;
    limits_peak_id peak;
    const moei_arith *arith;
} kernel;
static kernel kernels[] = {
    {"f32-avx2", MOE_TIER_AVX2, MOE_COMPUTE_F32, LIMITS_F32_256, NULL},
    {"f32-avx512", MOE_TIER_AVX512, MOE_COMPUTE_F32, LIMITS_F32_512, NULL},
    {"bf16-avx512bf16", MOE_TIER_AVX512BF16, MOE_COMPUTE_BF16, LIMITS_BF16_512, NULL},
    {"bf16-amx", MOE_TIER_AMX, MOE_COMPUTE_BF16, LIMITS_BF16_AMX, NULL},
};
static const struct {
    uint32_t format;
    const char *name;
    size_t bytes;
} formats[] = {{MOE_FORMAT_BF16, "bf16", 2},
               {MOE_FORMAT_F32, "f32", 4},
               {MOE_FORMAT_F16, "f16", 2},
               {MOE_FORMAT_FP8_CHANNEL, "fp8", 1}};

static size_t memory_bytes = (size_t)1536 << 20, k = 2048;
static uint32_t panel_rows = 64;
static int rounds = 5, threads = 1;
static uint8_t *memory;

/* One run: threads walk through their part of the memory (cold) or stay in one panel (warm). */
typedef struct run {
    const moei_arith *arith;
    uint32_t format, n_tokens;
    size_t row_bytes, n_panels; /* per thread */
    int cold;
    const void *x[MAX_TOKENS];
} run;
static void run_part(void *arg, int thread) {
    const run *job = (const run *)arg;
    float *out = (float *)malloc((size_t)job->n_tokens * panel_rows * sizeof *out);
    uint8_t *panel = (uint8_t *)aligned_alloc(64, moei_panel_scratch(job->arith, k));
    moei_rows w;
    memset(&w, 0, sizeof w);
    w.data = memory + (size_t)thread * (memory_bytes / (size_t)threads), w.row_stride = job->row_bytes, w.k = k,
    w.format = job->format;
    if (job->arith->packing->begin) job->arith->packing->begin();
    for (size_t i = 0; i < job->n_panels; i++) {
        w.row0 = (uint32_t)(job->cold ? i * panel_rows : 0);
        w.prefetch_bytes = panel_rows * job->row_bytes;
        w.prefetch = job->cold && i + 1 < job->n_panels ? moei_row(&w, panel_rows) : NULL;
        moei_multiply(job->arith, &w, panel_rows, job->x, job->n_tokens, out, panel_rows, panel);
    }
    if (job->arith->packing->end) job->arith->packing->end();
    free(panel), free(out);
}
/* Seconds, and the work done. */
static double run_timed(run *job, double max_ops, double *ops, double *bytes) {
    size_t panel_bytes = panel_rows * job->row_bytes;
    double panel_ops = 2.0 * panel_rows * (double)k * job->n_tokens;
    job->n_panels = memory_bytes / (size_t)threads / panel_bytes;
    if ((double)job->n_panels * panel_ops > max_ops) job->n_panels = (size_t)(max_ops / panel_ops) + 1;
    *ops = panel_ops * (double)job->n_panels * threads, *bytes = (double)(panel_bytes * job->n_panels) * threads;
    return limits_run(threads, run_part, job);
}

static void bench_one(const kernel *kern, size_t f, uint32_t n_tokens, uint8_t *prepared) {
    run job;
    double warm[MAX_ROUNDS], cold[MAX_ROUNDS], stream[MAX_ROUNDS], rate[MAX_ROUNDS], ops, bytes;
    size_t stride = kern->arith->row_bytes(k) | 64; /* an odd number of cache lines: powers of two would alias */
    job.arith = kern->arith, job.format = formats[f].format, job.n_tokens = n_tokens,
    job.row_bytes = k * formats[f].bytes;
    uint8_t *packed = (uint8_t *)aligned_alloc(64, n_tokens * stride);
    for (uint32_t t = 0; t < n_tokens; t++) job.x[t] = prepared + t * stride;
    moei_pack(kern->arith, job.x, n_tokens, k, packed);
    for (int i = 0; i < rounds; i++) {
        double peak = limits_peak(kern->peak) * threads,
               read = limits_read(memory, memory_bytes / (n_tokens > 16 ? 8 : 1), threads);
        job.cold = 0;
        double t = run_timed(&job, 0.03 * peak, &ops, &bytes);
        warm[i] = ops / t / peak;
        job.cold = 1;
        t = run_timed(&job, (n_tokens > 16 ? 0.1 : 0.3) * peak, &ops, &bytes);
        cold[i] = ops / t / peak, stream[i] = bytes / t / read, rate[i] = bytes / t * 1e-9;
    }
    printf("%-16s %-5s %5zu %5u %8.1f %8.1f %8.1f %8.1f\n", kern->name, formats[f].name, k, n_tokens,
           100 * limits_median(warm, rounds), 100 * limits_median(cold, rounds), 100 * limits_median(stream, rounds),
           limits_median(rate, rounds));
    fflush(stdout);
    free(packed);
}

static void bench_kernel(const kernel *kern, const char *format, const char *tokens) {
    size_t stride = kern->arith->row_bytes(k) | 64;
    uint8_t *prepared = (uint8_t *)aligned_alloc(64, MAX_TOKENS * stride);
    float *x = (float *)malloc(k * sizeof *x);
    for (uint32_t t = 0; t < MAX_TOKENS; t++) {
        for (size_t i = 0; i < k; i++) x[i] = (float)(rand() % 2001 - 1000) / 1000.0f;
        kern->arith->prepare(prepared + t * stride, x, 0, k, k);
    }
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        const moei_ops *ops = &kern->arith->ops[formats[f].format];
        if ((format && strcmp(format, formats[f].name)) || (!ops->dot && !ops->decode)) continue;
        for (const char *t = tokens; *t; t += strcspn(t, ","), t += *t == ',')
            bench_one(kern, f, (uint32_t)atoi(t), prepared);
    }
    free(prepared), free(x);
}

static void print_limits(void) {
    for (int i = 0; i < LIMITS_PEAKS; i++)
        printf("peak %-14s %8.1f GOP/s a core\n", limits_peak_names[i], limits_peak((limits_peak_id)i) * 1e-9);
    for (int n = 1; n <= 2 && n <= sysconf(_SC_NPROCESSORS_ONLN); n++) {
        double read[5];
        for (int i = 0; i < 5; i++) read[i] = limits_read(memory, memory_bytes, n) * 1e-9;
        printf("read %d thread%s      %8.1f GB/s\n", n, n > 1 ? "s" : " ", limits_median(read, 5));
    }
}
int main(int argc, char **argv) {
    const char *name = NULL, *format = NULL, *tokens = "1,2,4,6,8,16,32,48,128,512";
    for (int c; (c = getopt(argc, argv, "k:r:t:a:f:j:n:m:")) != -1;) {
        if (c == 'k') k = (size_t)atol(optarg);
        else if (c == 'r') panel_rows = (uint32_t)atoi(optarg);
        else if (c == 't') tokens = optarg;
        else if (c == 'a') name = optarg;
        else if (c == 'f') format = optarg;
        else if (c == 'j') threads = atoi(optarg);
        else if (c == 'n') rounds = atoi(optarg) < MAX_ROUNDS ? atoi(optarg) : MAX_ROUNDS;
        else if (c == 'm') memory_bytes = (size_t)atol(optarg) << 20;
        else
            return fprintf(stderr, "bench_kernels [-k K] [-r rows] [-t tokens,...] [-a name] [-f format] [-j "
                                   "threads] [-n rounds] [-m MiB]\n"),
                   1;
    }
    moe_enable_amx();
    memory = (uint8_t *)limits_memory(memory_bytes);
    if (!memory) return perror("mmap"), 1;
    /* as f32, f16, bf16 and e4m3 (a NaN has bit 6) all are plain numbers */
    for (size_t i = 0; i < memory_bytes / 4; i++) {
        uint32_t u = (uint32_t)i * 2654435761u;
        ((uint32_t *)(void *)memory)[i] = (u & 0x81bf81bfu) | 0x3c003c00u;
    }
    print_limits();
    printf("%d thread%s, %u rows a call; %% of peak warm, cold; %% of read bandwidth, GB/s of weights cold\n",
           threads, threads > 1 ? "s" : "", panel_rows);
    printf("%-16s %-5s %5s %5s %8s %8s %8s %8s\n", "kernel", "rows", "k", "N", "warm %", "cold %", "read %", "GB/s");
    for (size_t i = 0; i < sizeof kernels / sizeof *kernels; i++) {
        kernel *kern = &kernels[i];
        if ((name && strcmp(name, kern->name)) || !(moe_tiers() >> kern->tier & 1)) continue;
        kern->arith = LIMITS_ARITH(kern->tier, kern->compute);
        bench_kernel(kern, format, tokens);
    }
    return 0;
}
