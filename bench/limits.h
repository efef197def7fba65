/* limits.h: what this machine can do at most: peak loops per instruction set, read bandwidth, and the clock and threads to
   measure with. Every benchmark prints its results as shares of these, measured in the same process, interleaved.
   POSIX; link with -lpthread. Include after moe.h. */
#ifndef LIMITS_H
#define LIMITS_H
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define LIMITS_UNUSED __attribute__((unused))
#else
#define LIMITS_UNUSED
#endif

static double limits_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static void limits_pin(int cpu) {
#if defined(__linux__) && defined(CPU_SET)
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    sched_setaffinity(0, sizeof set, &set);
#else
    (void)cpu;
#endif
}
static int limits_compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static LIMITS_UNUSED double limits_median(const double *v, int n) {
    double sorted[64];
    if (n > 64) n = 64;
    memcpy(sorted, v, (size_t)n * sizeof *v);
    qsort(sorted, (size_t)n, sizeof *sorted, limits_compare);
    return n & 1 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
}

/* ---- threads: fn(arg, i) for i < n, started together on CPUs 0 .. n - 1; returns the seconds until all are done -------- */

typedef struct limits_team {
    void (*fn)(void *arg, int i);
    void *arg;
    volatile int ready, go;
} limits_team;
typedef struct limits_member {
    limits_team *team;
    int i;
} limits_member;
static void *limits_thread(void *p) {
    limits_member *m = (limits_member *)p;
    limits_pin(m->i);
    __atomic_add_fetch(&m->team->ready, 1, __ATOMIC_SEQ_CST);
    while (!__atomic_load_n(&m->team->go, __ATOMIC_SEQ_CST)) {}
    m->team->fn(m->team->arg, m->i);
    return NULL;
}
static double limits_run(int n, void (*fn)(void *arg, int i), void *arg) {
    limits_team team = {fn, arg, 0, 0};
    pthread_t thread[64];
    limits_member member[64];
    for (int i = 0; i < n; i++) {
        member[i].team = &team, member[i].i = i;
        if (pthread_create(&thread[i], NULL, limits_thread, &member[i])) perror("pthread_create"), exit(1);
    }
    while (__atomic_load_n(&team.ready, __ATOMIC_SEQ_CST) < n) sched_yield();
    double start = limits_now();
    __atomic_store_n(&team.go, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
    return limits_now() - start;
}

/* ---- peaks --------------------------------------------------------------------------------------------------------------- */

/* One multiply-add counts as 2 operations. */
typedef enum limits_peak_id {
    LIMITS_F32_256,
    LIMITS_F32_512,
    LIMITS_BF16_512,
    LIMITS_VNNI_512,
    LIMITS_MADDUBS_256,
    LIMITS_BF16_AMX,
    LIMITS_PEAKS
} limits_peak_id;
static const char *const limits_peak_names[LIMITS_PEAKS] LIMITS_UNUSED = {
    "fma f32 256", "fma f32 512", "vdpbf16ps 512", "vpdpbusd 512", "vpmaddubsw 256", "tdpbf16ps"};

#if defined(__x86_64__) && defined(__GNUC__)
#define LIMITS_LOOP 20000
/* 12 independent chains: enough for two pipes of 5 cycles' latency. The vectors hold plain numbers: some processors are faster
   on zeros. */
#define LIMITS_PEAK(name, isa, vec, op)                                                                              \
    __attribute__((target(isa), noinline)) static void name(void) {                                                  \
        vec a, b, c, d, e, f, g, h, i, j, k, l, m;                                                                   \
        limits_fill(&m, sizeof m), a = b = c = d = e = f = g = h = i = j = k = l = m;                                \
        for (int n = 0; n < LIMITS_LOOP; n++)                                                                        \
            __asm__ volatile(op("0") op("1") op("2") op("3") op("4") op("5") op("6") op("7") op("8") op("9")         \
                                 op("10") op("11")                                                                   \
                             : "+x"(a), "+x"(b), "+x"(c), "+x"(d), "+x"(e), "+x"(f), "+x"(g), "+x"(h), "+x"(i),      \
                               "+x"(j), "+x"(k), "+x"(l)                                                             \
                             : "x"(m));                                                                              \
    }
#define LIMITS_FMA(n)     "vfmadd231ps %12, %12, %" n "\n\t"
#define LIMITS_MADDUBS(n) "vpmaddubsw %12, %" n ", %" n "\n\t"
static void limits_fill(void *to, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 4) {
        uint32_t u = 0x3d803d80u + (uint32_t)i * 0x00110011u; /* about 0.06, as f32 and as bf16 */
        memcpy((char *)to + i, &u, 4);
    }
}
LIMITS_PEAK(limits_fma_256, "avx2,fma", __m256, LIMITS_FMA)
/* 24 chains: VDPBF16PS has a latency of 6 cycles on Zen 5, where 12 reach 93 % of what 24 do. */
#define LIMITS_24(op, x)                                                                                             \
    op("8", x) op("9", x) op("10", x) op("11", x) op("12", x) op("13", x) op("14", x) op("15", x) op("16", x)        \
        op("17", x) op("18", x) op("19", x) op("20", x) op("21", x) op("22", x) op("23", x) op("24", x) op("25", x)  \
            op("26", x) op("27", x) op("28", x) op("29", x) op("30", x) op("31", x)
#define LIMITS_COPY(n, x) "vmovaps %%zmm0, %%zmm" n "\n\t"
#define LIMITS_OP(n, x)   x " %%zmm0, %%zmm0, %%zmm" n "\n\t"
#define LIMITS_PEAK_512(name, isa, op)                                                                               \
    __attribute__((target(isa), noinline)) static void name(void) {                                                  \
        uint8_t m[64];                                                                                               \
        long n = LIMITS_LOOP / 2;                                                                                    \
        limits_fill(m, sizeof m);                                                                                    \
        __asm__ volatile(                                                                                            \
            "vmovups %1, %%zmm0\n\t" LIMITS_24(LIMITS_COPY, ) "0:\n\t" LIMITS_24(LIMITS_OP, op) "dec %0\n\tjnz 0b"   \
            : "+r"(n)                                                                                                \
            : "m"(m)                                                                                                 \
            : "cc", "xmm0", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17",  \
              "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28",     \
              "xmm29", "xmm30", "xmm31");                                                                            \
    }
LIMITS_PEAK_512(limits_fma_512, "avx512f", "vfmadd231ps")
LIMITS_PEAK_512(limits_bf16_512, "avx512f,avx512bf16", "vdpbf16ps")
LIMITS_PEAK_512(limits_vnni_512, "avx512f,avx512vnni", "vpdpbusd")
LIMITS_PEAK(limits_maddubs_256, "avx2", __m256i, LIMITS_MADDUBS)

/* Three rounds of four independent sums per step; tiles as moe.h configures them. */
#if !defined(MOE_NO_AMX) && ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define LIMITS_TDP(c, a, b) "tdpbf16ps %%tmm" b ", %%tmm" a ", %%tmm" c "\n\t"
#define LIMITS_TDP4                                                                                                  \
    LIMITS_TDP("0", "4", "6") LIMITS_TDP("1", "4", "7") LIMITS_TDP("2", "5", "6") LIMITS_TDP("3", "5", "7")
static __attribute__((noinline)) void limits_bf16_amx(void) {
    uint8_t config[64] = {1}, data[1024];
    for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
    limits_fill(data, sizeof data);
    __asm__ volatile("ldtilecfg %0\n\ttilezero %%tmm0\n\ttilezero %%tmm1\n\ttilezero %%tmm2\n\ttilezero %%tmm3\n\t"
                     "tileloadd (%1,%2,1), %%tmm4\n\ttileloadd (%1,%2,1), %%tmm5\n\t"
                     "tileloadd (%1,%2,1), %%tmm6\n\ttileloadd (%1,%2,1), %%tmm7"
                     :
                     : "m"(config), "r"(data), "r"((size_t)64)
                     : "memory");
    for (int n = 0; n < LIMITS_LOOP; n++) __asm__ volatile(LIMITS_TDP4 LIMITS_TDP4 LIMITS_TDP4 : : : "memory");
    __asm__ volatile("tilerelease" : : : "memory");
}
#else
static void limits_bf16_amx(void) {}
#endif

/* Operations per second of one core, the best of a few milliseconds; 0 = this machine has no such instruction. */
static LIMITS_UNUSED double limits_peak(limits_peak_id id) {
    static void (*const loops[])(void) = {limits_fma_256,  limits_fma_512,     limits_bf16_512,
                                          limits_vnni_512, limits_maddubs_256, limits_bf16_amx};
    static const double ops[] = {16, 32, 64, 128, 64, 16384};
    static const uint32_t tiers[] = {MOE_TIER_AVX2, MOE_TIER_AVX512, MOE_TIER_AVX512BF16,
                                     MOE_TIER_VNNI, MOE_TIER_AVX2,   MOE_TIER_AMX};
    double best = 0;
    if (!(moe_tiers() >> tiers[id] & 1)) return 0;
    for (int i = 0; i < 16; i++) {
        double t = limits_now();
        loops[id]();
        double rate = ops[id] * 12 * LIMITS_LOOP / (limits_now() - t);
        if (rate > best) best = rate;
    }
    return best;
}
#else
static LIMITS_UNUSED double limits_peak(limits_peak_id id) { return (void)id, 0.0; }
#endif

/* The kernels that a layer would take on this processor with no better tier. (Where the implementation is compiled in.) */
#define LIMITS_ARITH(tier, compute) moei_choose_arith(moei_cpu() & (moe_tier_mask(tier) | MOEI_TRAITS), compute)

/* ---- read bandwidth ------------------------------------------------------------------------------------------------------ */

typedef struct limits_read_job {
    const uint8_t *data;
    size_t part;
    uint64_t sum[64];
} limits_read_job;
static volatile uint64_t limits_sink; /* keeps the loads alive */
static void limits_read_part(void *arg, int i) {
    limits_read_job *job = (limits_read_job *)arg;
    const uint64_t *p = (const uint64_t *)(const void *)(job->data + job->part * (size_t)i);
    uint64_t a = 0, b = 0, c = 0, d = 0;
    /* A load of either half of a line: no compiler can make it slow, and Zen 3 reads a fifth less with one per line. */
    for (size_t k = 0; k + 16 <= job->part / 8; k += 16) a ^= p[k], b ^= p[k + 4], c ^= p[k + 8], d ^= p[k + 12];
    job->sum[i] = a ^ b ^ c ^ d;
}
/* Bytes per second that n threads read together, one linear stream each. */
static LIMITS_UNUSED double limits_read(const void *data, size_t bytes, int n_threads) {
    limits_read_job job;
    job.data = (const uint8_t *)data, job.part = bytes / (size_t)n_threads / 4096 * 4096;
    double t = limits_run(n_threads, limits_read_part, &job);
    for (int i = 0; i < n_threads; i++) limits_sink = limits_sink ^ job.sum[i];
    return (double)(job.part * (size_t)n_threads) / t;
}
/* Memory far larger than any cache, in huge pages where they exist. */
static LIMITS_UNUSED void *limits_memory(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    madvise(p, bytes, MADV_HUGEPAGE);
#endif
    return p;
}
#endif
