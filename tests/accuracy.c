/* How exact every format is in every compute on every tier of this machine: against the float64 oracle and its running bound, on
   seven kinds of data. `make accuracy` prints it all; --markdown prints the table of the README, --exp tries exp on all 2^32 floats.
   Fails if an element leaves its bound, or if data made of small integers has any error. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include <stdio.h>
#include <stdlib.h>
#include "oracle.h"
#include "quantize.h"
#include "random_layer.h"

enum { D = 512, FF = 256, E = 2, K = 2, T = 8 };

/* ---- data ---- */

typedef enum kind { GAUSSIAN, LOG_NORMAL, CAUCHY, OUTLIER, CANCELLING, SUBNORMAL, INTEGER, KINDS } kind;
static const char *const kind_name[KINDS] = {"gaussian",   "log-normal", "cauchy", "outlier",
                                             "cancelling", "subnormal",  "integer"};

static double uniform(rl_rng *r) { return ((double)(rl_u64(r) >> 11) + 0.5) / 9007199254740992.0; } /* (0, 1) */
static double gauss(rl_rng *r) {
    double radius = sqrt(-2 * log(uniform(r)));
    return radius * cos(6.283185307179586 * uniform(r));
}

/* Element i of a row; `weight` says which side of a product it is, *last is the element before. */
static float draw(rl_rng *r, kind what, size_t i, int weight, float *last) {
    double g = gauss(r), v = g;
    if (what == LOG_NORMAL) v = (g < 0 ? -1 : 1) * exp(1.5 * gauss(r));
    if (what == CAUCHY) v = fmax(-1000, fmin(1000, tan(3.141592653589793 * (uniform(r) - 0.5))));
    if (what == OUTLIER && i % 64 == (weight ? 37 : 7)) v *= weight ? 100 : 1000; /* in different blocks of 32 */
    if (what == CANCELLING && i % 2) v = (double)(weight ? -*last : *last) * (1 + g / 1000);
    if (what == SUBNORMAL && !weight) v *= 1e-39;
    return *last = (float)v;
}

static void fill(rl_rng *r, kind what, int weight, float *to, size_t rows, size_t k) {
    for (size_t row = 0; row < rows; row++)
        for (size_t i = 0; i < k; i++) to[row * k + i] = draw(r, what, i, weight, &to[row * k + (i ? i - 1 : 0)]);
}

/* ---- integers: any codes under scales of 1 or 0 ---- */

/* What random bytes of a block become, (byte & and) + add for bytes [from, to): scales of 0 or 1, codes of a few bits. */
typedef struct mask {
    uint32_t format;
    uint8_t from, to, keep, add;
} mask;
static const mask masks[] = {
    {MOE_FORMAT_Q8_0, 2, 34, 7, 0},           {MOE_FORMAT_Q2_K, 0, 16, 0x11, 0},
    {MOE_FORMAT_Q3_K, 96, 104, 0x11, 0},      {MOE_FORMAT_Q3_K, 104, 108, 0, 0xaa},
    {MOE_FORMAT_Q4_K, 4, 12, 1, 0},           {MOE_FORMAT_Q4_K, 12, 16, 0x11, 0},
    {MOE_FORMAT_Q5_K, 4, 12, 1, 0},           {MOE_FORMAT_Q5_K, 12, 16, 0x11, 0},
    {MOE_FORMAT_Q6_K, 192, 208, 1, 0},        {MOE_FORMAT_IQ4_NL, 2, 18, 0x11, 0x77},
    {MOE_FORMAT_IQ4_XS, 2, 4, 0, 0xaa},       {MOE_FORMAT_IQ4_XS, 4, 8, 0x11, 0},
    {MOE_FORMAT_IQ4_XS, 8, 136, 0x11, 0x77},  {MOE_FORMAT_MXFP4, 0, 1, 0, 127},
    {MOE_FORMAT_NVFP4, 0, 4, 0, 0x38},        {MOE_FORMAT_MXFP8, 0, 32, 0x87, 0x38},
    {MOE_FORMAT_FP8_BLOCK, 0, 1, 0x87, 0x38}, {MOE_FORMAT_FP8_CHANNEL, 0, 1, 0x87, 0x38},
    {MOE_FORMAT_INT8_CHANNEL, 0, 1, 7, 253},
};

static void integer_row(rl_rng *r, uint32_t format, uint8_t *p, size_t k) {
    const rl_block *b = rl_find_block(format);
    size_t block = 1, bytes = moe_row_bytes(format, k);
    if (format <= MOE_FORMAT_BF16) {
        size_t size = format == MOE_FORMAT_F32 ? 4 : 2;
        for (size_t i = 0; i < k; i++) rl_put_dense(format, p + i * size, (float)rl_below(r, 9) - 4.0f);
        return;
    }
    while (!moe_row_bytes(format, block)) block *= 2;
    block = moe_row_bytes(format, block);
    for (size_t i = 0; i < bytes; i++) p[i] = (uint8_t)rl_u64(r);
    for (size_t at = 0; at < bytes; at += block) {
        if (b && b->d >= 0) rl_put16(p + at + b->d, rl_half(1));
        if (b && b->m >= 0)
            rl_put16(p + at + b->m, rl_half(format == MOE_FORMAT_Q4_1 ? -8 : format == MOE_FORMAT_Q5_1 ? -16 : 1));
        for (size_t m = 0; m < sizeof masks / sizeof *masks; m++)
            for (size_t i = masks[m].from; masks[m].format == format && i < masks[m].to; i++)
                p[at + i] = (uint8_t)((p[at + i] & masks[m].keep) + masks[m].add);
    }
}

/* With rows equal in blocks of `same`, so that Q8 quantises the hidden values without error. */
static void integer_matrix(rl_layer *l, moe_matrix *m, uint32_t format, size_t rows, size_t k, size_t same) {
    size_t row = moe_row_bytes(format, k), n = E * rows * k;
    int own = format == MOE_FORMAT_MXFP4_HF || format == MOE_FORMAT_MXFP8 ? MOE_TYPE_E8M0
              : format == MOE_FORMAT_NVFP4_HF                             ? MOE_TYPE_E4M3
                                                                          : MOE_TYPE_F32;
    uint8_t *p = (uint8_t *)rl_alloc(l, E * rows * row);
    for (size_t r = 0; r < E * rows; r++)
        if (r % same) memcpy(p + r * row, p + (r - r % same) * row, row);
        else integer_row(&l->rng, format, p + r * row, k);
    m->format = format, m->data = p;
    if (format < MOE_FORMAT_MXFP4_HF) return;
    uint8_t *ones = (uint8_t *)rl_alloc(l, n * 4);
    for (size_t i = 0; i < n; i++)
        if (own == MOE_TYPE_F32) rl_put32(ones + 4 * i, 1);
        else ones[i] = own == MOE_TYPE_E8M0 ? 127 : 0x38;
    m->scale.type = (uint32_t)own, m->scale.data = ones;
}

/* Four ones a token; for Q8 127, which its scale divides. */
static void integer_x(rl_rng *r, float *x, float one) {
    memset(x, 0, T * D * sizeof *x);
    for (size_t t = 0; t < T; t++)
        for (int i = 0; i < 4; i++) x[t * D + rl_below(r, D)] = rl_one_in(r, 2) ? one : -one;
}

/* ---- one layer ---- */

typedef struct result {
    double part, rms, ulp;
    int bad;
} result; /* largest part of the bound, relative RMS, largest ULP */
static float x[T * D], y[T * D], mix[T * K];
static int32_t ids[T * K];
static result results[MOE_TIER_COUNT][KINDS];
static uint64_t hash[MOE_TIER_COUNT]; /* of all bits: tiers with equal bits share their lines */
static int failures;

static double ulp_of(double v) {
    int e;
    frexp(v, &e);
    return ldexp(1.0, (e < -125 ? -125 : e) - 24);
}

static result compare(const orc_result *o) {
    result r = {0, 0, 0, 0};
    double off = 0, energy = 0;
    for (size_t i = 0; i < T * D; i++) {
        double err = fabs((double)y[i] - o->output[i]);
        off += err * err, energy += o->output[i] * o->output[i];
        if (!(err <= o->bound[i])) r.bad = 1;
        if (err > 0) r.part = fmax(r.part, err / o->bound[i]), r.ulp = fmax(r.ulp, err / ulp_of(o->output[i]));
    }
    if (!(energy > 0)) r.bad = 1; /* nothing was compared */
    r.rms = sqrt(off / energy);
    return r;
}

static int run(const moe_desc *desc, moe_layer *layer, uint32_t tier) {
    moe_desc d = *desc;
    moe_io io;
    d.tiers = moe_tier_mask(tier);
    if (moe_layer_init(layer, &d, NULL)) return 0;
    memset(&io, 0, sizeof io);
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = T, io.ids_in = ids, io.weights_in = mix;
    io.workspace_size = moe_workspace_size(layer, T, 1), io.workspace = malloc(io.workspace_size);
    int ok = io.workspace && !moe_forward(layer, &io);
    free(io.workspace);
    for (size_t i = 0; i < T * D; i++) hash[tier] = (hash[tier] ^ moei_bits(y[i])) * 0x9e3779b97f4a7c15u;
    return ok;
}

static const float *decoded(rl_layer *l, const moe_matrix *m, size_t rows, size_t k) {
    float *v = (float *)rl_alloc(l, E * rows * k * sizeof *v);
    for (uint32_t e = 0; e < E; e++)
        if (moe_dequantize(m, e, E, rows, k, 0, rows, v + e * rows * k)) abort();
    return v;
}

static void float_matrix(rl_layer *l, moe_matrix *m, kind what, size_t rows, size_t k) {
    float *v = (float *)rl_alloc(l, E * rows * k * sizeof *v);
    fill(&l->rng, what, 1, v, E * rows, k);
    for (size_t i = 0; i < E * rows * k; i++) v[i] *= 2 / sqrtf((float)k);
    m->format = MOE_FORMAT_F32, m->data = v;
}

/* Weights and inputs. Where a product of two would vanish or grow too long the layer is W2 relu(W1 x). */
static void make(rl_layer *l, uint32_t format, uint32_t compute, kind what, quant_memory *memory) {
    moe_desc *d = &l->desc;
    char err[512];
    memset(l, 0, sizeof *l);
    l->rng.s = 77 + (uint64_t)what;
    d->d_model = D, d->d_ff = FF, d->n_experts = E, d->top_k = K, d->compute = compute;
    if (what >= SUBNORMAL) d->ffn.ungated = 1, d->ffn.activation = MOE_ACT_RELU;
    if (what == INTEGER) {
        integer_matrix(l, &d->up, format, FF, D, 32), integer_matrix(l, &d->down, format, D, FF, 1);
        integer_x(&l->rng, x, compute == MOE_COMPUTE_Q8 ? 127 : 1);
    } else {
        if (!d->ffn.ungated) float_matrix(l, &d->gate, what, FF, D);
        float_matrix(l, &d->up, what, FF, D), float_matrix(l, &d->down, what, D, FF);
        if (quant_desc(d, format, memory, err)) printf("%s\n", err), abort();
        fill(&l->rng, what, 0, x, T, D);
    }
    for (size_t i = 0; i < T * K; i++)
        ids[i] = (int32_t)(i % K), mix[i] = what == INTEGER ? 1 : (float)uniform(&l->rng);
    l->knobs = orc_defaults();
    l->knobs.d_model = D, l->knobs.d_ff = FF, l->knobs.n_expert = E, l->knobs.top_k = K;
    l->knobs.gated = !d->ffn.ungated, l->knobs.act = d->ffn.ungated ? ORC_RELU : ORC_SILU;
    if (l->knobs.gated) l->weights.w1 = decoded(l, &d->gate, FF, D);
    *(l->knobs.gated ? &l->weights.w3 : &l->weights.w1) = decoded(l, &d->up, FF, D);
    l->weights.w2 = decoded(l, &d->down, D, FF);
    l->weights.ids_in = ids, l->weights.weights_in = mix,
    l->weights.logits_in = (float *)rl_alloc(l, T * E * sizeof(float));
    orc_set_compute(&l->knobs, compute == MOE_COMPUTE_Q8 ? ORC_Q8 : compute == MOE_COMPUTE_BF16 ? ORC_BF16 : ORC_F32);
    if (compute == MOE_COMPUTE_BF16 && format != MOE_FORMAT_BF16) l->knobs.w_rel = ORC_UBF;
}

/* The tiers that ran. */
static uint32_t one_kind(uint32_t format, uint32_t compute, kind what) {
    rl_layer l;
    moe_layer layer;
    orc_result o;
    quant_memory memory;
    uint32_t ran = 0;
    memset(&memory, 0, sizeof memory);
    make(&l, format, compute, what, &memory);
    for (uint32_t tier = 0; tier < MOE_TIER_COUNT; tier++) {
        if (!(moe_tiers() & MOE_TIER_BIT(tier)) || !run(&l.desc, &layer, tier)) continue;
        if (!ran) orc_forward(&l.knobs, &l.weights, x, NULL, NULL, T, &o);
        ran |= MOE_TIER_BIT(tier);
        results[tier][what] = compare(&o);
        if (results[tier][what].bad || (what == INTEGER && results[tier][what].rms > 0)) {
            failures++;
            printf("FAIL %s %s on %s, %s data: %.2f of the bound, relative RMS %.2g\n", moe_format_name(format),
                   moe_compute_name(compute), moe_tier_name(tier), kind_name[what], results[tier][what].part,
                   results[tier][what].rms);
        }
    }
    if (ran) orc_free(&o);
    quant_free(&memory);
    rl_free(&l);
    return ran;
}

/* ---- tables ---- */

typedef struct line {
    result of[KINDS];
    int used;
} line; /* of the worst tier */
static line lines[MOE_FORMAT_COUNT][MOE_COMPUTE_COUNT];

static void print_tiers(uint32_t format, uint32_t compute, uint32_t ran) {
    for (uint32_t a = 0; a < MOE_TIER_COUNT; a++) {
        char names[128] = "";
        if (!(ran & MOE_TIER_BIT(a))) continue;
        for (uint32_t b = a; b < MOE_TIER_COUNT; b++) {
            if (!(ran & MOE_TIER_BIT(b)) || hash[b] != hash[a]) continue;
            ran &= ~MOE_TIER_BIT(b);
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", *names ? "," : "",
                     moe_tier_name(b));
        }
        for (int k = 0; k < KINDS; k++)
            printf("%-12s  %-4s  %-10s  %9.2e  %5.1f %%  %9.3g  %s\n", moe_format_name(format),
                   moe_compute_name(compute), kind_name[k], results[a][k].rms, 100 * results[a][k].part,
                   results[a][k].ulp, names);
    }
}

static void measure(int quiet) {
    if (!quiet) printf("format        comp  data         rel. RMS    bound    max ULP  tiers (equal bits)\n");
    for (uint32_t f = 1; f < MOE_FORMAT_COUNT; f++)
        for (uint32_t c = 1; c < MOE_COMPUTE_COUNT; c++) {
            uint32_t ran = 0;
            memset(hash, 0, sizeof hash);
            for (int k = 0; k < KINDS; k++) {
                fprintf(stderr, "\r%3u %%  %-12s %-4s %-10s ", (unsigned)(100 * (f - 1) / (MOE_FORMAT_COUNT - 1)),
                        moe_format_name(f), moe_compute_name(c), kind_name[k]);
                if (!(ran = one_kind(f, c, (kind)k))) break;
                for (uint32_t t = 0; t < MOE_TIER_COUNT; t++) {
                    result *worst = &lines[f][c].of[k], *r = &results[t][k];
                    if (!(ran & MOE_TIER_BIT(t))) continue;
                    worst->part = fmax(worst->part, r->part), worst->rms = fmax(worst->rms, r->rms),
                    worst->ulp = fmax(worst->ulp, r->ulp);
                    lines[f][c].used = 1;
                }
            }
            fprintf(stderr, "\r%48s\r", "");
            if (!quiet && ran) print_tiers(f, c, ran);
        }
}

static double worst_part(uint32_t f, uint32_t c) {
    double part = 0;
    for (int k = 0; k < KINDS; k++) part = fmax(part, lines[f][c].of[k].part);
    return part;
}

static void markdown_cells(uint32_t f, uint32_t c, double unit) {
    const result *r = lines[f][c].of;
    if (!lines[f][c].used) {
        printf(" - | - |");
        return;
    }
    printf(" %.2g  %.2g  %.2g | %.0f %% |", r[GAUSSIAN].rms / unit, r[CAUCHY].rms / unit, r[OUTLIER].rms / unit,
           100 * worst_part(f, c));
}

static void markdown(void) {
    printf(
        "| weights | F32, 1e-8 | bound | BF16, 1e-3 | bound | Q8, 1e-3 | bound |\n|---|---|---|---|---|---|---|\n");
    for (uint32_t f = 1; f < MOE_FORMAT_COUNT; f++) {
        printf("| %s |", moe_format_name(f));
        markdown_cells(f, MOE_COMPUTE_F32, 1e-8), markdown_cells(f, MOE_COMPUTE_BF16, 1e-3),
            markdown_cells(f, MOE_COMPUTE_Q8, 1e-3);
        printf("\n");
    }
}

static void summary(void) {
    for (uint32_t c = 1; c < MOE_COMPUTE_COUNT; c++) {
        double part = 0, rms = 0;
        int n = 0;
        for (uint32_t f = 1; f < MOE_FORMAT_COUNT; f++) {
            if (!lines[f][c].used) continue;
            n++, part = fmax(part, worst_part(f, c)), rms = fmax(rms, lines[f][c].of[GAUSSIAN].rms);
        }
        printf("%-4s  %2d formats, at most %.1f %% of the bound, relative RMS on gaussian data at most %.2g\n",
               moe_compute_name(c), n, 100 * part, rms);
    }
    printf("accuracy: %d failed\n", failures);
}

/* ---- exp ---- */

/* Every float once, against the C library's double exp (which is exact to 1e-16 or so). */
static void all_of_exp(void) {
    double worst = 0, worst_normal = 0;
    uint64_t wrong = 0;
    uint32_t at = 0, u = 0;
    do {
        float v = moei_float(u), got = moei_exp(v);
        double want = exp((double)v);
        if ((u & 0xffffff) == 0) fprintf(stderr, "\rexp: %3u %%", (unsigned)((u >> 24) * 100 / 256));
        if (moei_is_nan(v) || (float)want == HUGE_VALF || moei_bits(got) == moei_bits((float)want)) {
            wrong += moei_is_nan(v) ? !moei_is_nan(got) : moei_bits(got) != moei_bits((float)want);
            if ((float)want == HUGE_VALF || moei_is_nan(v)) continue;
        }
        double ulp = fabs((double)got - want) / ulp_of(want);
        if (ulp > worst) worst = ulp, at = u;
        if (want >= 1.1754943508222875e-38 && ulp > worst_normal) worst_normal = ulp;
    } while (++u);
    fprintf(stderr, "\r            \r");
    printf("exp over all 2^32 floats: at most %.4f ULP of the exact value (at %.9g), %.4f where the result is "
           "normal; %llu wrong NaN or Inf\n",
           worst, (double)moei_float(at), worst_normal, (unsigned long long)wrong);
    if (worst > 2 || wrong) failures++;
}

int main(int argc, char **argv) {
    int md = argc > 1 && !strcmp(argv[1], "--markdown");
    if (argc > 1 && !strcmp(argv[1], "--exp")) return all_of_exp(), failures != 0;
    if (argc > 1 && !md) return printf("usage: accuracy [--markdown | --exp]\n"), 2;
    measure(md);
    if (md) markdown();
    else summary();
    return failures != 0;
}
