/* bench_q8.c: how fast the Q8 dot products are. One process measures the denominators too: the read bandwidth of the same memory
   and the peak of vpdpbusd. Medians of interleaved repetitions.
   cc -std=c11 -O2 -I. bench/bench_q8.c -o bench_q8 -lm -lpthread && ./bench_q8 [cold|cache|many|order] [format] [repetitions]
   Rows have 2048 weights, or as many as -DBENCH_K says. */
#define _GNU_SOURCE
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "limits.h"

#ifndef BENCH_K
#define BENCH_K 2048 /* a multiple of 256 */
#endif
enum { K = BENCH_K, SLICE = 128, TOKENS = 128, MAX_REPS = 31 };
static const size_t POOL = (size_t)1600 << 20;
static const struct {
    const char *name;
    size_t elements, bytes;
} formats[] = {{"none", 1, 0},
#define MOE_X(id, name, n, bytes, rows, cols) {name, n, bytes},
               MOE_FORMATS(MOE_X)
#undef MOE_X
};
static uint8_t *pool;
static void *prepared[TOKENS];
static const void *packed[TOKENS];

static double now(void) { /* of this thread: other processes' slices do not count */
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static double best(const double *v, int n) { /* of short runs: other processes only make them slower */
    double b = v[0];
    for (int i = 1; i < n; i++) b = v[i] > b ? v[i] : b;
    return b;
}

/* ---- subjects ---- */

typedef struct subject {
    const moei_arith *arith;
    uint32_t format, n_tokens;
    size_t row_bytes, side_bytes, side_at, n_rows; /* the pool holds n_rows rows, then the scales */
    int panel, n_threads;
} subject;
/* Tokens as the arithmetic wants them. */
static void prepare(const moei_arith *arith) {
    static const moei_arith *last;
    uint32_t x = 1;
    if (arith == last) return;
    last = arith;
    for (int t = 0; t < TOKENS; t++) {
        float v[K];
        for (int i = 0; i < K; i++) x = x * 1664525u + 1013904223u, v[i] = (float)(x >> 8) / 16777216.0f - 0.5f;
        if (!prepared[t]) prepared[t] = aligned_alloc(64, arith->row_bytes(K));
        arith->prepare(prepared[t], v, 0, K, K);
    }
}
static void subject_init(subject *s, const moei_arith *arith, uint32_t format, uint32_t n_tokens, size_t bytes) {
    prepare(arith);
    s->arith = arith, s->format = format, s->n_tokens = n_tokens, s->panel = 0;
    s->row_bytes = K / formats[format].elements * formats[format].bytes;
    s->side_bytes = format == MOE_FORMAT_MXFP4_HF     ? K / 32
                    : format == MOE_FORMAT_NVFP4_HF   ? K / 16
                    : format == MOE_FORMAT_INT4_GROUP ? K / 128 * 2
                                                      : 0;
    s->n_rows = bytes / (s->row_bytes + s->side_bytes) / SLICE * SLICE, s->side_at = s->n_rows * s->row_bytes;
}
static void subject_rows(const subject *s, size_t row, moei_rows *w) {
    memset(w, 0, sizeof *w);
    w->data = pool, w->row_stride = s->row_bytes, w->k = K, w->format = s->format, w->row0 = (uint32_t)row;
    w->ask = s->arith->ask, w->whole = s->arith->whole;
    w->scale.type = s->format == MOE_FORMAT_MXFP4_HF   ? MOE_TYPE_E8M0
                    : s->format == MOE_FORMAT_NVFP4_HF ? MOE_TYPE_E4M3
                                                       : MOE_TYPE_BF16;
    w->scale.rows = 1, w->scale.cols = s->format == MOE_FORMAT_MXFP4_HF   ? 32
                                       : s->format == MOE_FORMAT_NVFP4_HF ? 16
                                                                          : 128;
    w->scale.row_stride = s->side_bytes, w->scale.data = s->side_bytes ? pool + s->side_at : NULL;
}
static void run_dot(void *arg, int i) { /* this thread's share of all rows, a slice at a time */
    const subject *s = (const subject *)arg;
    static float y[8][SLICE * TOKENS];
    size_t share = s->n_rows / (size_t)s->n_threads / SLICE * SLICE;
    for (size_t r = share * (size_t)i; r < share * (size_t)(i + 1); r += SLICE) {
        moei_rows w;
        subject_rows(s, r, &w);
        s->arith->ops[s->format].dot(&w, SLICE, (const void *const *)prepared, s->n_tokens, y[i], SLICE);
    }
}
/* The prefill of one thread: panels of `height` rows, each decoded once and used by all tokens, the next one prefetched. */
static void run_panel(const subject *s, size_t n_rows, uint32_t height, uint8_t *panel, float *y) {
    for (size_t r = 0; r < n_rows; r += height) {
        moei_rows w;
        subject_rows(s, r, &w);
        w.prefetch = pool + (r + height) * s->row_bytes, w.prefetch_bytes = height * s->row_bytes;
        if (s->panel) {
            s->arith->ops[s->format].decode(&w, height, panel);
            s->arith->panel(panel, &w, height, packed, s->n_tokens, y, height);
        } else s->arith->ops[s->format].dot(&w, height, (const void *const *)prepared, s->n_tokens, y, height);
    }
}

static struct {
    const char *name;
    uint32_t tier;
    const moei_arith *arith; /* what a layer would take on this processor; NULL: not here */
} tiers[] = {{"avx2", MOE_TIER_AVX2, NULL}, {"avxvnni", MOE_TIER_AVXVNNI, NULL}, {"vnni", MOE_TIER_VNNI, NULL}};
static void choose(void) {
    for (size_t t = 0; t < MOEI_COUNT(tiers); t++)
        if (moe_tiers() >> tiers[t].tier & 1) tiers[t].arith = LIMITS_ARITH(tiers[t].tier, MOE_COMPUTE_Q8);
}
static int reps = 9, only;

static void bench_cold(void) {
    static double rate[MAX_REPS], read[MAX_REPS], share[MAX_REPS];
    static const uint32_t counts[] = {1, 2, 4, 8};
    printf("cold rows, k = %d: %% of read bandwidth measured before each run (GB/s)\n%-14s %-7s", K, "", "");
    for (int n = 1; n <= 2; n++)
        for (size_t c = 0; c < MOEI_COUNT(counts); c++) printf("  %d thr %u tok   ", n, counts[c]);
    for (uint32_t f = MOE_FORMAT_Q8_0; f < MOE_FORMAT_COUNT; f++)
        for (size_t t = 0; t < MOEI_COUNT(tiers); t++) {
            if (!tiers[t].arith || !tiers[t].arith->ops[f].dot || (only && only != (int)f)) continue;
            printf("\n%-14s %-7s", formats[f].name, tiers[t].name);
            for (int n = 1; n <= 2; n++)
                for (size_t c = 0; c < MOEI_COUNT(counts); c++) {
                    subject s;
                    if (counts[c] > tiers[t].arith->ops[f].dot_max) {
                        printf("%16s", "");
                        continue;
                    }
                    subject_init(&s, tiers[t].arith, f, counts[c], POOL);
                    s.n_threads = n;
                    for (int i = 0; i < reps; i++) {
                        read[i] = limits_read(pool, POOL, n) / 1e9;
                        rate[i] = (double)s.n_rows * (double)(s.row_bytes + s.side_bytes) /
                                  limits_run(n, run_dot, &s) / 1e9;
                        share[i] = 100 * rate[i] / read[i];
                    }
                    printf("  %5.1f%% (%5.1f)", limits_median(share, reps), limits_median(rate, reps)),
                        fflush(stdout);
                }
        }
    printf("\n");
}
static void bench_cache(void) {
    static double rate[MAX_REPS];
    static const uint32_t counts[] = {1, 2, 4, 8};
    double peak = limits_peak(LIMITS_VNNI_512) / 1e9, fma = limits_peak(LIMITS_F32_256) / 1e9;
    printf("rows in cache, k = %d, one core: GB/s (%% of the VNNI peak %.0f GOP/s; AVX2 FMA peak %.0f)\n%-14s %-7s",
           K, peak, fma, "", "");
    for (size_t c = 0; c < MOEI_COUNT(counts); c++) printf("  %u tok         ", counts[c]);
    for (uint32_t f = MOE_FORMAT_Q8_0; f < MOE_FORMAT_COUNT; f++)
        for (size_t t = 0; t < MOEI_COUNT(tiers); t++) {
            if (!tiers[t].arith || !tiers[t].arith->ops[f].dot || (only && only != (int)f)) continue;
            printf("\n%-14s %-7s", formats[f].name, tiers[t].name);
            for (size_t c = 0; c < MOEI_COUNT(counts) && counts[c] <= tiers[t].arith->ops[f].dot_max; c++) {
                subject s;
                subject_init(&s, tiers[t].arith, f, counts[c], (size_t)1 << 20);
                s.n_rows = SLICE / 4;
                moei_rows w;
                subject_rows(&s, 0, &w);
                static float y[SLICE * TOKENS];
                for (int i = 0; i < reps; i++) {
                    double time = now();
                    for (int j = 0; j < 100; j++)
                        s.arith->ops[f].dot(&w, (uint32_t)s.n_rows, (const void *const *)prepared, s.n_tokens, y,
                                            SLICE);
                    rate[i] = 100.0 * (double)s.n_rows * (double)(s.row_bytes + s.side_bytes) / (now() - time) / 1e9;
                }
                double g = best(rate, reps), ops = 2.0 * K / (double)(s.row_bytes + s.side_bytes) * g * s.n_tokens;
                printf("  %5.1f (%5.1f%%)", g, peak > 0 ? 100 * ops / peak : 0), fflush(stdout);
            }
        }
    printf("\n");
}
static void bench_many(void) {
    static double rate[MAX_REPS], share[MAX_REPS];
    static const uint32_t counts[] = {4, 8, 12, 16, 24, 32, 48, 64, 96, 128};
    static float y[SLICE * TOKENS];
    const size_t n_rows = 2048;
    const uint32_t height = 32;
    printf("many tokens, k = %d, one core, %zu cold rows in panels of %u: %% of the VNNI peak (for avx2 and avxvnni: "
           "times "
           "the AVX2 FMA peak)\n%-14s %-7s %-6s",
           K, n_rows, height, "", "", "");
    for (size_t c = 0; c < MOEI_COUNT(counts); c++) printf("%7u", counts[c]);
    for (uint32_t f = MOE_FORMAT_Q8_0; f < MOE_FORMAT_COUNT; f++)
        for (size_t t = 0; t < MOEI_COUNT(tiers); t++)
            for (int panel = 0; panel < 2; panel++) {
                const moei_arith *a = tiers[t].arith;
                if (!a || !a->ops[f].dot || (panel && !a->ops[f].decode) || (only && only != (int)f)) continue;
                uint8_t *memory = (uint8_t *)aligned_alloc(64, a->panel_bytes ? a->panel_bytes(height, K) : 64);
                printf("\n%-14s %-7s %-6s", formats[f].name, tiers[t].name, panel ? "panel" : "dot");
                for (size_t c = 0; c < MOEI_COUNT(counts); c++) {
                    subject s;
                    if (panel ? a->packing && counts[c] < a->packing->min : counts[c] > a->ops[f].dot_max) {
                        printf("%7s", "");
                        continue;
                    }
                    subject_init(&s, a, f, counts[c], POOL);
                    s.panel = panel;
                    uint8_t *groups = (uint8_t *)aligned_alloc(64, counts[c] * a->row_bytes(K));
                    memcpy(packed, prepared, counts[c] * sizeof *packed);
                    moei_pack(a, packed, counts[c], K, groups);
                    for (int i = 0; i < reps; i++) {
                        double peak = strncmp(tiers[t].name, "avx", 3) ? limits_peak(LIMITS_VNNI_512) / 1e11
                                                                       : limits_peak(LIMITS_F32_256) / 1e9;
                        double time = now();
                        run_panel(&s, n_rows, height, memory, y);
                        rate[i] = 2.0 * (double)n_rows * K * s.n_tokens / (now() - time) / 1e9,
                        share[i] = rate[i] / peak;
                    }
                    printf("%7.2f", limits_median(share, reps)), fflush(stdout);
                    free(groups);
                }
                free(memory);
            }
    printf("\n");
}

#if MOEI_HAVE_VNNI
/* What the order of sums costs where many tokens pass: the tile of P panels as it is, 8 sums by block mod 8 and their tree, and one that adds
   all blocks to one sum, whose bits could not be those of one token, where 8 blocks lie side by side. */
MOEI_FORCE MOEI_VNNI void one_sum(uint32_t kind, int as, int P, const moei_q8tile *p) {
    const size_t size = moei_q8_entry(kind, as);
    const moei_q8unpack u = {_mm512_set1_epi8(15), moei_q8_z128(moei_q8_table(p->format))};
    moei_q8at e = {p->panel, p->apart};
    const uint8_t *x[2] = {p->x[0], p->x[1]};
    __m512 a[MOEI_Q8_SUMS];
    MOEI_UNROLL for (int i = 0; i < MOEI_Q8_TOKENS; i++) a[i] = _mm512_setzero_ps();
    for (size_t i = p->n_blocks; i; i--, e.w += size, x[0] += p->x_block[0], x[1] += p->x_block[1])
        moei_q8_entry_vnni(kind, as, P, MOEI_Q8_TOKENS / P, e, x, &u, a);
    MOEI_UNROLL for (int i = 0; i < MOEI_Q8_TOKENS; i++)
        _mm512_storeu_ps(p->out + (size_t)(i / P) * p->out_stride + 16 * (i % P), a[i]);
}
#define ONE_SUM(f, as)                                                                                               \
    static MOEI_VNNI void one_sum_##f##_##as##_1(const moei_q8tile *t) {                                             \
        one_sum(MOE_FORMAT_##f, MOEI_Q8_##as, 1, t);                                                                 \
    }                                                                                                                \
    static MOEI_VNNI void one_sum_##f##_##as##_2(const moei_q8tile *t) {                                             \
        one_sum(MOE_FORMAT_##f, MOEI_Q8_##as, 2, t);                                                                 \
    }
MOEI_Q8_VNNI_KINDS(ONE_SUM, ONE_SUM)
static moei_q8_times_fn *one_sum_of(uint32_t f, int as, uint32_t panels) {
#define ONE_SUM_CASE(kind, as)                                                                                       \
    case MOE_FORMAT_##kind * 16 + MOEI_Q8_##as:                                                                      \
        return panels == 1 ? one_sum_##kind##_##as##_1 : one_sum_##kind##_##as##_2;
    switch ((int)moei_q8_kind(f, as) * 16 + as) {
        MOEI_Q8_VNNI_KINDS(ONE_SUM_CASE, ONE_SUM_CASE) default : return NULL;
    }
}
/* Nanoseconds a tile; its tokens as they come in a layer, 32 of them, from L2. */
static double time_tiles(moei_q8_times_fn *fn, moei_q8tile *t, const uint8_t *x, uint32_t tokens) {
    double time = now();
    for (int i = 0; i < 200; i++)
        for (uint32_t c = 0; c < 32; c += tokens) {
            t->x[0] = x + c / MOEI_Q8_TOKENS * t->n_blocks * t->x_block[0] + moei_q8_group_bytes(c % MOEI_Q8_TOKENS);
            t->x[1] = t->x[0] + moei_q8_group_bytes(MOEI_Q8_WIDTH);
            fn(t);
        }
    return (now() - time) / (200 * 32 / tokens) * 1e9;
}
static void bench_order(void) {
    static const size_t ks[] = {768, 2048, 4096};
    static float y[32 * MOEI_Q8_TOKENS];
    const moei_arith *arith = tiers[2].arith;
    const int intel = arith == &moei_q8_vnni_intel;
    const uint32_t panels = intel ? 1 : 2, tokens = MOEI_Q8_TOKENS / panels;
    if (!arith) return;
    printf("the order of sums, vnni, %u rows x %u tokens in L2: ns a tile as it is (with one sum), what that is "
           "more\n%-14s",
           16 * panels, tokens, "");
    for (size_t i = 0; i < MOEI_COUNT(ks); i++) printf("  k = %-20zu", ks[i]);
    for (uint32_t f = MOE_FORMAT_Q8_0; f < MOE_FORMAT_COUNT; f++) {
        if (!arith->ops[f].dot || (only && only != (int)f)) continue;
        printf("\n%-14s", formats[f].name);
        for (size_t i = 0; i < MOEI_COUNT(ks); i++) {
            const int as = moei_q8_as(intel, f);
            double order[MAX_REPS], free_order[MAX_REPS], more[MAX_REPS];
            moei_q8tile t;
            memset(&t, 0, sizeof t);
            t.panel = pool, t.n_blocks = ks[i] / 32, t.apart = t.n_blocks * moei_q8_entry(f, as), t.format = f;
            t.x_block[0] = t.x_block[1] = moei_q8_group_bytes(MOEI_Q8_TOKENS);
            t.out = y, t.out_stride = 32, t.n_rows = 16 * panels;
            for (int r = 0; r < reps; r++) {
                const uint8_t *x = pool + ((size_t)1 << 20);
                order[r] = time_tiles(moei_q8_tiles(f, as, panels)[tokens - 1], &t, x, tokens);
                free_order[r] = time_tiles(one_sum_of(f, as, panels), &t, x, tokens);
                more[r] = 100 * (order[r] / free_order[r] - 1);
            }
            printf("  %5.0f (%5.0f) %5.1f %%   ", limits_median(order, reps), limits_median(free_order, reps),
                   limits_median(more, reps));
            fflush(stdout);
        }
    }
    printf("\n");
}
#else
static void bench_order(void) {}
#endif

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "all";
    for (uint32_t f = 0; argc > 2 && f < MOE_FORMAT_COUNT; f++)
        if (!strcmp(argv[2], formats[f].name)) only = (int)f;
    if (argc > 3) reps = atoi(argv[3]);
    if (reps < 1 || reps > MAX_REPS) reps = 5;
    choose();
    limits_pin(0);
    pool = (uint8_t *)limits_memory(POOL + 4096);
    if (!pool) return perror("mmap"), 1;
    uint32_t x = 1; /* bytes 0x20 .. 0x2f: every scale is a normal number */
    for (size_t i = 0; i < POOL / 4; i++) {
        x = x * 1664525u + 1013904223u;
        uint32_t u = 0x20202020u | (x >> 3 & 0x0f0f0f0fu);
        memcpy(pool + 4 * i, &u, 4);
    }
    if (!strcmp(what, "all") || !strcmp(what, "cache")) bench_cache();
    if (!strcmp(what, "all") || !strcmp(what, "many")) bench_many();
    if (!strcmp(what, "all") || !strcmp(what, "order")) bench_order();
    if (!strcmp(what, "all") || !strcmp(what, "cold")) bench_cold();
    return 0;
}
