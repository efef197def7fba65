/* bench_layer.c - how fast a whole Mixture-of-Experts layer is, as a share of what this machine can do at most

       cc -std=c11 -O2 -I. bench/bench_layer.c -o build/bench_layer -lm -lpthread
       build/bench_layer --shape qwen3-30b --format bf16,q4_k --tokens 1,8,64,512 --threads 1,2
       build/bench_layer --help

   roofline % = 100 * max(operations / peak, bytes / bandwidth) / time. The peak is that of the instructions which the
   layer's tier and compute resolve to, the bandwidth that of plain reading, both on as many threads, measured in turn
   with the layer (peak, bandwidth, layer, peak, ...): on a machine whose speed wanders, only neighbours compare.
   bytes: of the distinct experts that the call's tokens chose, with their scales, of the shared experts and of the
   router. The router runs in every timed call. Calls go round layers with more than 1.6 GB of expert weights
   together, so that few tokens read memory and not a cache. Weights: 64 random rows repeated over all experts
   (distinct memory, not distinct values); tokens and router are those of the other benchmarks of such layers, by the
   same formula. */
#define _GNU_SOURCE
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "limits.h"
#include "../examples/pool.h"

#include <math.h>
#include <sys/resource.h>
#include <unistd.h>

#define COLD_BYTES      1.6e9  /* expert weights in rotation */
#define MEMORY_BYTES    5.65e9 /* the most that the weights may take: beyond, a layer gets fewer experts */
#define READ_BYTES      ((size_t)768 << 20)
#define PASS_BYTES      ((size_t)32 << 20)
#define MAX_OTHERS      0.2 /* cores taken by other processes: beyond, a row is no measurement */
#define MAX_ROW_SECONDS 30.0
#define SPIN_US         2000u /* the workers stay awake from one call to the next */
enum {
    MAX_LIST = 32,
    MAX_CALLS = 4096,
    MIN_ROUNDS = 5,
    MAX_ROUNDS = 40,
    TILE_ROWS = 64,
    MAX_THREADS = 64,
    MAX_LAYERS = 2048
};
enum { SEED_ROUTER = 1, SEED_GATE, SEED_UP, SEED_DOWN, SEED_OTHER, SEED_TOKENS = 1000 };

#define DIE(...) (fprintf(stderr, "bench_layer: " __VA_ARGS__), fputc('\n', stderr), exit(1))

/* ---- shapes and formats ---------------------------------------------------------------------------------- */

typedef struct shape {
    const char *name, *family; /* of moe_preset */
    uint32_t d, ff, n_experts, k, shared_ff, biases;
    char label[64]; /* name, and the number of experts if memory holds fewer */
} shape;
static const shape shapes[] = {
    {"mixtral", "mixtral", 4096, 14336, 8, 2, 0, 0, ""},
    {"qwen3-30b", "qwen3_moe", 2048, 768, 128, 8, 0, 0, ""},
    {"gpt-oss-20b", "gpt_oss", 2880, 2880, 32, 4, 0, 1, ""},
    {"deepseek-v3", "deepseek_v3", 7168, 2048, 256, 8, 2048, 0, ""},
    {"llama4-scout", "llama4", 5120, 8192, 16, 1, 8192, 0, ""},
    {"olmoe", "olmoe", 2048, 1024, 64, 8, 0, 0, ""},
    {"qwen3-next", "qwen3_next", 2048, 512, 512, 10, 512, 0, ""},
    {"granite-1b", "granitemoe", 1024, 512, 32, 8, 0, 0, ""},
};
static const shape check_shape = {"check", "mixtral", 512, 768, 8, 2, 0, 0, "check"};

/* How random bytes become plausible weights: where a block's scale and minimum are, and how large a weight is on
   average where the scale is 1 (minimum: in units of the scale, so that the mean is near 0). */
typedef struct format_info {
    uint32_t format, elements, bytes, grid_rows, grid_cols;
    const char *name;
} format_info;
static const format_info formats[MOE_FORMAT_COUNT] = {{0, 1, 0, 0, 0, "none"},
#define MOE_X(id, name, n, bytes, rows, cols) {MOE_FORMAT_##id, n, bytes, rows, cols, name},
                                                      MOE_FORMATS(MOE_X)
#undef MOE_X
};
typedef struct scale_info {
    int scale_at, min_at; /* bytes into the block, of an f16; -1 = none */
    double min, size;
    uint32_t apart; /* moe_type of the scales' own tensor */
} scale_info;
static const scale_info scales[MOE_FORMAT_COUNT] = {
    [MOE_FORMAT_Q8_0] = {0, -1, 0, 74, 0},
    [MOE_FORMAT_Q4_0] = {0, -1, 0, 4.6, 0},
    [MOE_FORMAT_Q4_1] = {0, 2, -7.5, 4.6, 0},
    [MOE_FORMAT_Q5_0] = {0, -1, 0, 9.2, 0},
    [MOE_FORMAT_Q5_1] = {0, 2, -15.5, 9.2, 0},
    [MOE_FORMAT_Q2_K] = {80, 82, 1.5, 14, 0},
    [MOE_FORMAT_Q3_K] = {108, -1, 0, 42, 0},
    [MOE_FORMAT_Q4_K] = {0, 2, 7.5, 260, 0},
    [MOE_FORMAT_Q5_K] = {0, 2, 15.5, 530, 0},
    [MOE_FORMAT_Q6_K] = {208, -1, 0, 1370, 0},
    [MOE_FORMAT_IQ4_NL] = {0, -1, 0, 70, 0},
    [MOE_FORMAT_IQ4_XS] = {0, -1, 0, 1300, 0},
    [MOE_FORMAT_MXFP4] = {-1, -1, 0, 2.9, 0},
    [MOE_FORMAT_NVFP4] = {-1, -1, 0, 2.9, 0},
    [MOE_FORMAT_MXFP4_HF] = {-1, -1, 0, 2.9, MOE_TYPE_E8M0},
    [MOE_FORMAT_NVFP4_HF] = {-1, -1, 0, 2.9, MOE_TYPE_E4M3},
    [MOE_FORMAT_MXFP8] = {-1, -1, 0, 107, MOE_TYPE_E8M0},
    [MOE_FORMAT_FP8_BLOCK] = {-1, -1, 0, 107, MOE_TYPE_F32},
    [MOE_FORMAT_FP8_CHANNEL] = {-1, -1, 0, 107, MOE_TYPE_F32},
    [MOE_FORMAT_INT8_CHANNEL] = {-1, -1, 0, 74, MOE_TYPE_F32},
    [MOE_FORMAT_INT4_GROUP] = {-1, -1, 0, 4.6, MOE_TYPE_BF16},
};

/* ---- options --------------------------------------------------------------------------------------------- */

typedef enum output { OUTPUT_TABLE, OUTPUT_CSV, OUTPUT_JSON, OUTPUT_PEER } output;
typedef struct options {
    shape shapes[MAX_LIST];
    uint32_t formats[MAX_LIST], computes[MAX_LIST], tiers[MAX_LIST], tokens[MAX_LIST], threads[MAX_LIST],
        skewed[MAX_LIST];
    uint32_t n_shapes, n_formats, n_computes, n_tiers, n_tokens, n_threads, n_routings;
    double secs;
    output output;
    int plain, check; /* plain: softmax, SwiGLU, no biases, no shared experts, one router for all layers */
} options;

static const char *const usage =
    "bench_layer [options]; lists are separated by commas\n"
    "  --shape NAMES|all|d,ff,E,k  mixtral qwen3-30b gpt-oss-20b deepseek-v3 llama4-scout olmoe qwen3-next "
    "granite-1b\n"
    "  --format NAMES|all          bf16, q4_K, mxfp4_hf, ... (default: bf16,q8_0,q4_K)\n"
    "  --compute NAMES             default f32 bf16 q8\n"
    "  --tier NAMES                c avx2 avxvnni avx512 vnni avx512bf16 ... (default: the best)\n"
    "  --tokens LIST               tokens per call (default 1,8,64,512)\n"
    "  --threads LIST              (default: all processors)\n"
    "  --routing NAMES             uniform (a random router), skewed (Zipf with exponent 1)\n"
    "  --secs S                    seconds of calls per row (default 0.5)\n"
    "  --plain                     softmax, SwiGLU, no biases or shared experts, the same router in all layers\n"
    "  --csv, --json               instead of the table with bars, dense equivalents and parts of the time\n"
    "  --check                     errors against float64 on a small layer, one line per format and number of "
    "tokens\n"
    "  --N LIST                    as --plain --csv --tokens LIST, without the header: one peer among others\n";

static uint32_t add_item(uint32_t *list, uint32_t n, uint32_t value) {
    if (n == MAX_LIST) DIE("more than %d values in a list", (int)MAX_LIST);
    list[n] = value;
    return n + 1;
}

static uint32_t parse_number(const char *text, const char *what, uint32_t max) {
    char *end;
    unsigned long v = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || !v || v > max)
        DIE("%s: '%s' is no number from 1 to %u", what, text, max);
    return (uint32_t)v;
}

/* Takes the next item off a comma-separated list; NULL after the last. */
static char *next_item(char **rest) {
    char *item = *rest, *comma;
    if (!item) return NULL;
    comma = strchr(item, ',');
    if (comma) *comma = 0;
    *rest = comma ? comma + 1 : NULL;
    return item;
}

static void add_shape(options *o, const shape *s) {
    if (o->n_shapes == MAX_LIST) DIE("more than %d shapes", (int)MAX_LIST);
    o->shapes[o->n_shapes++] = *s;
}

static void parse_shapes(options *o, char *list) {
    const size_t n = sizeof shapes / sizeof *shapes;
    if (*list >= '0' && *list <= '9') {
        uint32_t v[4];
        shape s = {"custom", "mixtral", 0, 0, 0, 0, 0, 0, ""};
        for (int i = 0; i < 4; i++) {
            char *item = next_item(&list);
            if (!item) DIE("--shape: want d,ff,E,k");
            v[i] = parse_number(item, "--shape", 1u << 20);
        }
        if (list) DIE("--shape: want d,ff,E,k");
        s.d = v[0], s.ff = v[1], s.n_experts = v[2], s.k = v[3];
        if (s.k > s.n_experts) DIE("--shape: %u of %u experts", s.k, s.n_experts);
        add_shape(o, &s);
        return;
    }
    for (char *item; (item = next_item(&list)) != NULL;) {
        int found = 0, all = !strcmp(item, "all");
        for (size_t i = 0; i < n; i++)
            if (all || moei_same_name(shapes[i].name, item)) add_shape(o, &shapes[i]), found = 1;
        if (!found) DIE("--shape: unknown shape '%s' (see --help)", item);
    }
}

static void parse_formats(options *o, char *list) {
    for (char *item; (item = next_item(&list)) != NULL;) {
        uint32_t f = moe_format_by_name(item);
        if (!strcmp(item, "all"))
            for (f = 1; f < MOE_FORMAT_COUNT; f++) o->n_formats = add_item(o->formats, o->n_formats, f);
        else if (f == MOE_FORMAT_NONE) DIE("--format: unknown format '%s'", item);
        else o->n_formats = add_item(o->formats, o->n_formats, f);
    }
}

static void parse_computes(options *o, char *list) {
    for (char *item; (item = next_item(&list)) != NULL;) {
        uint32_t c = moe_compute_by_name(item);
        if (c == MOE_COMPUTE_COUNT) DIE("--compute: unknown compute '%s'", item);
        o->n_computes = add_item(o->computes, o->n_computes, c);
    }
}

static void parse_tiers(options *o, char *list) {
    for (char *item; (item = next_item(&list)) != NULL;) {
        uint32_t t = moe_tier_by_name(item);
        if (t == MOE_TIER_COUNT) DIE("--tier: unknown tier '%s'", item);
        if (t == MOE_TIER_AMX) moe_enable_amx();
        if (!(moe_tiers() & MOE_TIER_BIT(t))) DIE("--tier: this machine or build has no %s", moe_tier_name(t));
        o->n_tiers = add_item(o->tiers, o->n_tiers, t);
    }
}

static void parse_routings(options *o, char *list) {
    for (char *item; (item = next_item(&list)) != NULL;) {
        if (strcmp(item, "uniform") && strcmp(item, "skewed")) DIE("--routing: unknown routing '%s'", item);
        o->n_routings = add_item(o->skewed, o->n_routings, *item == 's');
    }
}

static uint32_t parse_numbers(uint32_t *to, char *list, const char *what, uint32_t max) {
    uint32_t n = 0;
    for (char *item; (item = next_item(&list)) != NULL;) n = add_item(to, n, parse_number(item, what, max));
    return n;
}

/* One option with its value. */
static void parse_option(options *o, const char *name, char *value) {
    if (!strcmp(name, "--shape")) parse_shapes(o, value);
    else if (!strcmp(name, "--format")) parse_formats(o, value);
    else if (!strcmp(name, "--compute")) parse_computes(o, value);
    else if (!strcmp(name, "--tier")) parse_tiers(o, value);
    else if (!strcmp(name, "--routing")) parse_routings(o, value);
    else if (!strcmp(name, "--tokens")) o->n_tokens = parse_numbers(o->tokens, value, name, 1u << 20);
    else if (!strcmp(name, "--threads")) o->n_threads = parse_numbers(o->threads, value, name, MAX_THREADS);
    else if (!strcmp(name, "--N")) {
        o->n_tokens = parse_numbers(o->tokens, value, name, 1u << 20);
        o->output = OUTPUT_PEER, o->plain = 1;
    } else if (!strcmp(name, "--secs")) {
        char *end;
        o->secs = strtod(value, &end);
        if (end == value || *end || !(o->secs > 0 && o->secs < 1e4)) DIE("--secs: '%s' is no time", value);
    } else DIE("unknown option '%s' (see --help)", name);
}

static void parse_defaults(options *o) {
    static const uint32_t tokens[] = {1, 8, 64, 512};
    static const uint32_t usual[] = {MOE_FORMAT_BF16, MOE_FORMAT_Q8_0, MOE_FORMAT_Q4_K};
    static const uint32_t peer[] = {MOE_FORMAT_BF16, MOE_FORMAT_Q8_0,   MOE_FORMAT_Q4_0, MOE_FORMAT_Q4_K,
                                    MOE_FORMAT_Q6_K, MOE_FORMAT_IQ4_NL, MOE_FORMAT_MXFP4};
    int many = o->output == OUTPUT_PEER || o->check;
    if (o->check) o->n_shapes = 0, add_shape(o, &check_shape), o->plain = 1;
    if (!o->n_shapes) add_shape(o, &shapes[1]);
    for (size_t i = 0; !o->n_tokens && i < 4; i++) o->tokens[i] = tokens[i];
    if (!o->n_tokens) o->n_tokens = 4;
    if (!o->n_formats) {
        o->n_formats = many ? 7 : 3;
        memcpy(o->formats, many ? peer : usual, o->n_formats * sizeof *peer);
    }
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    if (!o->n_threads) o->threads[o->n_threads++] = processors < 1 ? 1 : processors > 64 ? 64 : (uint32_t)processors;
    if (!o->n_computes) o->computes[o->n_computes++] = MOE_COMPUTE_DEFAULT;
    if (!o->n_tiers) o->tiers[o->n_tiers++] = MOE_TIER_COUNT;
    if (!o->n_routings) o->skewed[o->n_routings++] = 0;
}

static void parse(options *o, int argc, char **argv) {
    memset(o, 0, sizeof *o);
    o->secs = 0.5;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (!strcmp(a, "--help")) printf("%s", usage), exit(0);
        else if (!strcmp(a, "--csv")) o->output = OUTPUT_CSV;
        else if (!strcmp(a, "--json")) o->output = OUTPUT_JSON;
        else if (!strcmp(a, "--plain")) o->plain = 1;
        else if (!strcmp(a, "--check")) o->check = 1;
        else if (i + 1 < argc) parse_option(o, a, argv[++i]);
        else if (a[0] == '-') DIE("'%s' is unknown or lacks its value (see --help)", a);
        else DIE("unexpected '%s' (see --help)", a);
    }
    parse_defaults(o);
}

/* ---- random numbers and memory --------------------------------------------------------------------------- */

/* The i-th number of a stream, as the other benchmarks of such layers define it. */
static uint64_t random_bits(uint64_t seed, uint64_t i) {
    uint64_t z = seed * 0x100000001B3u + i + 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}
static float random_value(uint64_t seed, uint64_t i) { /* mean 0, variance 1 */
    return (float)((double)(random_bits(seed, i) >> 40) / 8388608.0 - 1.0) * 1.7320508f;
}
static void random_fill(float *to, size_t n, uint64_t seed, float scale) {
    for (size_t i = 0; i < n; i++) to[i] = scale * random_value(seed, i);
}

static void *allocate(size_t bytes) {
    void *p = malloc(bytes ? bytes : 1);
    if (!p) DIE("out of memory (%zu bytes)", bytes);
    return p;
}

/* All weights live in one mapping that is used again for every format; pages exist once they are written. */
static struct {
    uint8_t *base;
    size_t size, used;
} arena;

static void arena_open(void) {
    arena.size = (size_t)MEMORY_BYTES + ((size_t)1 << 30); /* expert weights, and all that comes with them */
    arena.base = (uint8_t *)limits_memory(arena.size);
    if (!arena.base) DIE("can't map %zu bytes", arena.size);
}
static void *arena_take(size_t bytes) {
    uint8_t *at = arena.base + arena.used;
    arena.used += (bytes + 4095) / 4096 * 4096;
    if (arena.used > arena.size) DIE("the weights take more than %.1f GB", (double)arena.size * 1e-9);
    return at;
}

/* ---- weights --------------------------------------------------------------------------------------------- */

static size_t grid_values(uint32_t format, size_t rows, size_t k) { /* per expert */
    const format_info *f = &formats[format];
    if (!scales[format].apart) return 0;
    return (rows + f->grid_rows - 1) / f->grid_rows * ((k + f->grid_cols - 1) / f->grid_cols);
}
static size_t type_bytes(uint32_t type) { return type == MOE_TYPE_F32 ? 4 : type == MOE_TYPE_BF16 ? 2 : 1; }
static size_t matrix_bytes(uint32_t format, size_t rows, size_t k) { /* per expert, scales included */
    return rows * moe_row_bytes(format, k) + grid_values(format, rows, k) * type_bytes(scales[format].apart);
}

static void put_f16(uint8_t *to, double v) {
    float f = (float)v;
    if (moe_quantize(MOE_FORMAT_F16, &f, 1, 1, to)) DIE("moe_quantize failed");
}
static uint8_t power_of_two(double v) { return (uint8_t)(127 + (int)lrint(log2(v))); } /* e8m0 */

/* Gives a block of random bytes scales that make weights of about `size`. */
static void tame_block(uint32_t format, uint8_t *block, double size) {
    const scale_info *s = &scales[format];
    double d = size / s->size;
    if (s->scale_at >= 0 && s->size > 0) put_f16(block + s->scale_at, d);
    if (s->min_at > 0) put_f16(block + s->min_at, d * s->min);
    if (format == MOE_FORMAT_MXFP4) block[0] = power_of_two(d);
    if (format == MOE_FORMAT_NVFP4) memset(block, d > 0.006 ? 4 : d > 0.003 ? 2 : 1, 4); /* e4m3: 2^-9 each */
    if (format == MOE_FORMAT_MXFP8 || format == MOE_FORMAT_FP8_BLOCK || format == MOE_FORMAT_FP8_CHANNEL)
        for (uint32_t i = 0; i < formats[format].bytes; i++)
            if ((block[i] & 0x7f) == 0x7f) block[i] ^= 1; /* NaN */
}

/* n rows whose products with a token have a variance of about 1. */
static void random_rows(uint32_t format, size_t k, size_t n, uint64_t seed, uint8_t *to) {
    size_t bytes = n * moe_row_bytes(format, k), block = formats[format].bytes;
    double size = 1.0 / sqrt((double)k);
    if (format == MOE_FORMAT_F32 || format == MOE_FORMAT_F16 || format == MOE_FORMAT_BF16) {
        float *v = (float *)allocate(n * k * sizeof *v);
        random_fill(v, n * k, seed, (float)size);
        if (moe_quantize(format, v, n, k, to)) DIE("moe_quantize failed");
        free(v);
        return;
    }
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t u = random_bits(seed, i);
        memcpy(to + i, &u, bytes - i < 8 ? bytes - i : 8);
    }
    for (size_t i = 0; i + block <= bytes; i += block) tame_block(format, to + i, size);
}

typedef struct fill_job {
    uint8_t *to;
    const uint8_t *tile;
    size_t bytes, tile_bytes;
    uint32_t n_tasks;
} fill_job;
static void fill_task(void *arg, uint32_t i) {
    const fill_job *j = (const fill_job *)arg;
    size_t tiles = (j->bytes + j->tile_bytes - 1) / j->tile_bytes, last = tiles * (i + 1) / j->n_tasks;
    for (size_t t = tiles * i / j->n_tasks; t < last; t++) {
        size_t at = t * j->tile_bytes, n = j->bytes - at < j->tile_bytes ? j->bytes - at : j->tile_bytes;
        memcpy(j->to + at, j->tile, n);
    }
}
static void fill(pool *p, void *to, size_t bytes, const void *tile, size_t tile_bytes) {
    fill_job job = {(uint8_t *)to, (const uint8_t *)tile, bytes, tile_bytes, p->n_workers};
    pool_run(p, job.n_tasks, fill_task, &job);
}

static void make_scales(pool *p, moe_matrix *m, size_t n_experts, size_t rows, size_t k) {
    const scale_info *s = &scales[m->format];
    size_t bytes = n_experts * grid_values(m->format, rows, k) * type_bytes(s->apart);
    float d = (float)(1.0 / (sqrt((double)k) * s->size));
    uint8_t tile[64];
    if (!s->apart) return;
    for (size_t i = 0; i < sizeof tile; i += type_bytes(s->apart)) {
        if (s->apart == MOE_TYPE_F32) memcpy(tile + i, &d, 4);
        else if (s->apart == MOE_TYPE_BF16) (void)moe_quantize(MOE_FORMAT_BF16, &d, 1, 1, tile + i);
        else tile[i] = s->apart == MOE_TYPE_E8M0 ? power_of_two((double)d) : 0x38; /* e4m3: 1 */
    }
    m->scale.type = s->apart;
    m->scale.data = arena_take(bytes);
    fill(p, arena.base + arena.used - (bytes + 4095) / 4096 * 4096, bytes, tile, sizeof tile);
    if (m->format != MOE_FORMAT_NVFP4_HF) return;
    float *second = (float *)arena_take(n_experts * sizeof *second);
    for (size_t e = 0; e < n_experts; e++) second[e] = d;
    m->scale2.type = MOE_TYPE_F32, m->scale2.data = second;
}

static moe_matrix make_matrix(pool *p, uint32_t format, size_t n_experts, size_t rows, size_t k, uint64_t seed) {
    moe_matrix m;
    size_t row = moe_row_bytes(format, k), bytes = n_experts * rows * row;
    uint8_t *tile = (uint8_t *)allocate(TILE_ROWS * row), *to = (uint8_t *)arena_take(bytes);
    memset(&m, 0, sizeof m);
    m.format = format, m.data = to;
    random_rows(format, k, TILE_ROWS, seed, tile);
    fill(p, to, bytes, tile, TILE_ROWS * row);
    free(tile);
    make_scales(p, &m, n_experts, rows, k);
    return m;
}

static moe_array make_bias(size_t n_experts, size_t n) { /* bf16 */
    moe_array a;
    uint8_t *to = (uint8_t *)arena_take(n_experts * n * 2);
    memset(&a, 0, sizeof a);
    for (size_t i = 0; i < n_experts * n; i++) {
        float v = 0.1f * random_value(SEED_OTHER, i);
        (void)moe_quantize(MOE_FORMAT_BF16, &v, 1, 1, to + 2 * i);
    }
    a.type = MOE_TYPE_BF16, a.data = to;
    return a;
}

/* ---- layers ---------------------------------------------------------------------------------------------- */

typedef struct model {
    shape shape;
    uint32_t format, n_layers;
    int plain, skewed;
    moe_desc *desc;                    /* [n_layers] */
    moe_layer *layer;                  /* [n_layers] */
    float *router_bias;                /* [n_experts] */
    double expert_bytes, always_bytes; /* of one expert; of what every call reads */
} model;

static double expert_bytes(const shape *s, uint32_t format, size_t ff) {
    return 2.0 * (double)matrix_bytes(format, ff, s->d) + (double)matrix_bytes(format, s->d, ff);
}

/* Halves the experts until the layer fits into memory, and says so in the name. */
static void limit_experts(shape *s, uint32_t format) {
    uint32_t all = s->n_experts;
    while (expert_bytes(s, format, s->ff) * s->n_experts > MEMORY_BYTES && s->n_experts / 2 >= s->k)
        s->n_experts /= 2;
    if (s->n_experts == all) {
        if (!strcmp(s->name, "custom"))
            snprintf(s->label, sizeof s->label, "d%u-ff%u-E%u-k%u", s->d, s->ff, all, s->k);
        else snprintf(s->label, sizeof s->label, "%s", s->name);
        return;
    }
    snprintf(s->label, sizeof s->label, "%s:E%u", s->name, s->n_experts);
    fprintf(stderr, "%s %s: %u of the %u experts, for lack of memory\n", s->name, formats[format].name, s->n_experts,
            all);
}

static void describe_layer(pool *p, model *m, moe_desc *d, const float *common_router) {
    const shape *s = &m->shape;
    const size_t router_bytes = (size_t)s->n_experts * s->d * sizeof(float);
    memset(d, 0, sizeof *d);
    if (moe_preset(d, m->plain ? "mixtral" : s->family)) DIE("no preset '%s'", s->family);
    d->d_model = s->d, d->d_ff = s->ff, d->n_experts = s->n_experts, d->top_k = s->k;
    d->gate = make_matrix(p, m->format, s->n_experts, s->ff, s->d, SEED_GATE);
    d->up = make_matrix(p, m->format, s->n_experts, s->ff, s->d, SEED_UP);
    d->down = make_matrix(p, m->format, s->n_experts, s->d, s->ff, SEED_DOWN);
    d->router.weight.format = MOE_FORMAT_F32;
    d->router.weight.data = m->plain ? common_router : memcpy(arena_take(router_bytes), common_router, router_bytes);
    d->router.weight.bias.type = MOE_TYPE_F32, d->router.weight.bias.data = m->router_bias;
    if (m->plain) return;
    if (s->biases) {
        d->gate.bias = make_bias(s->n_experts, s->ff), d->up.bias = make_bias(s->n_experts, s->ff);
        d->down.bias = make_bias(s->n_experts, s->d);
    }
    if (d->router.group) { /* DeepSeek-V3 selects with a bias */
        float *bias = (float *)arena_take(s->n_experts * sizeof *bias);
        random_fill(bias, s->n_experts, SEED_OTHER, 0.01f);
        d->router.select_bias.type = MOE_TYPE_F32, d->router.select_bias.data = bias;
    }
    if (!s->shared_ff) return;
    d->shared.d_ff = s->shared_ff;
    d->shared.gate = make_matrix(p, m->format, 1, s->shared_ff, s->d, SEED_GATE);
    d->shared.up = make_matrix(p, m->format, 1, s->shared_ff, s->d, SEED_UP);
    d->shared.down = make_matrix(p, m->format, 1, s->d, s->shared_ff, SEED_DOWN);
    if (d->shared.gate_kind == MOE_SHARED_SIGMOID)
        d->shared.gate_weight = make_matrix(p, MOE_FORMAT_F32, 1, 1, s->d, SEED_OTHER);
}

static void model_make(model *m, pool *p, const shape *s, uint32_t format, int plain) {
    memset(m, 0, sizeof *m);
    arena.used = 0;
    m->shape = *s, m->format = format, m->plain = plain;
    limit_experts(&m->shape, format);
    s = &m->shape;
    m->expert_bytes = expert_bytes(s, format, s->ff);
    m->n_layers = (uint32_t)ceil(COLD_BYTES / (m->expert_bytes * s->n_experts));
    if (m->n_layers > MAX_LAYERS) m->n_layers = MAX_LAYERS;
    if (!strcmp(s->name, "check")) m->n_layers = 1;
    if (!plain)
        m->always_bytes = 4.0 * s->n_experts * s->d + (s->shared_ff ? expert_bytes(s, format, s->shared_ff) : 0.0);
    m->desc = (moe_desc *)allocate(m->n_layers * sizeof *m->desc);
    m->layer = (moe_layer *)allocate(m->n_layers * sizeof *m->layer);
    m->router_bias = (float *)arena_take(s->n_experts * sizeof(float));
    float *router = (float *)arena_take((size_t)s->n_experts * s->d * sizeof *router);
    random_fill(router, (size_t)s->n_experts * s->d, SEED_ROUTER, 1.0f / sqrtf((float)s->d));
    fprintf(stderr, "%s %s: %u layer%s, %.1f GB of experts\n", s->label, formats[format].name, m->n_layers,
            m->n_layers > 1 ? "s" : "", m->expert_bytes * s->n_experts * m->n_layers * 1e-9);
    for (uint32_t i = 0; i < m->n_layers; i++) describe_layer(p, m, &m->desc[i], router);
}
static void model_free(model *m) { free(m->desc), free(m->layer); }

static uint32_t common_divisor(uint32_t a, uint32_t b) { return b ? common_divisor(b, a % b) : a; }

/* Biases of the router that make the r-th busiest expert take a share of 1 / r of the tokens that the busiest takes,
   as far as no expert can take more than all tokens: found by routing random logits and correcting. */
static void skew(model *m) {
    enum { TOKENS = 1024, STEPS = 40 };
    const uint32_t n = m->shape.n_experts, k = m->shape.k;
    float *random = (float *)allocate((size_t)TOKENS * n * sizeof *random),
          *w = (float *)allocate((size_t)TOKENS * k * sizeof *w);
    float *logits = (float *)allocate((size_t)TOKENS * n * sizeof *logits);
    int32_t *ids = (int32_t *)allocate((size_t)TOKENS * k * sizeof *ids);
    double *load = (double *)allocate(n * sizeof *load), *want = (double *)allocate(n * sizeof *want), first = 0,
           sum = 0;
    uint32_t step = n / 2 + 1; /* the busy ones far apart: a step without a common divisor visits every expert */
    while (common_divisor(step, n) > 1) step++;
    for (double lo = 0, hi = n, i = 0; i < 60; i++) { /* the first's load, so that all sum up to k */
        first = 0.5 * (lo + hi), sum = 0;
        for (uint32_t r = 0; r < n; r++) sum += fmin(1.0, first / (r + 1));
        if (sum < k) lo = first;
        else hi = first;
    }
    for (uint32_t r = 0; r < n; r++) want[(uint64_t)r * step % n] = fmin(1.0, first / (r + 1));
    for (size_t i = 0; i < (size_t)TOKENS * n; i++) { /* about normal, as a random router's */
        double sum4 = 0;
        for (uint64_t j = 0; j < 4; j++) sum4 += (double)random_value(SEED_OTHER, 4 * i + j);
        random[i] = (float)(0.5 * sum4);
    }
    for (int s = 0; s < STEPS; s++) {
        for (size_t i = 0; i < (size_t)TOKENS * n; i++) logits[i] = random[i] + m->router_bias[i % n];
        if (moe_select(&m->desc[0], logits, TOKENS, NULL, ids, w, NULL)) DIE("moe_select failed");
        for (uint32_t e = 0; e < n; e++) load[e] = 0.25 / TOKENS;
        for (size_t i = 0; i < (size_t)TOKENS * k; i++) load[ids[i]] += 1.0 / TOKENS;
        for (uint32_t e = 0; e < n; e++) m->router_bias[e] += (float)(0.5 * log(want[e] / load[e]));
    }
    free(random), free(logits), free(w), free(ids), free(load), free(want);
}

/* 0 if the combination does not exist, with a line that says why. */
static int model_choose(model *m, uint32_t compute, uint32_t tier, int skewed) {
    memset(m->router_bias, 0, m->shape.n_experts * sizeof(float));
    m->skewed = skewed;
    if (skewed) skew(m);
    for (uint32_t i = 0; i < m->n_layers; i++) {
        moe_error e;
        m->desc[i].compute = compute;
        m->desc[i].tiers = tier == MOE_TIER_COUNT ? 0 : moe_tier_mask(tier);
        if (!moe_layer_init(&m->layer[i], &m->desc[i], &e)) continue;
        fprintf(stderr, "%s %s, %s compute: left out: %s%s%s: %s\n", m->shape.label, formats[m->format].name,
                moe_compute_name(compute), e.part, *e.part ? "." : "", e.field, moe_status_text(e.status));
        return 0;
    }
    return 1;
}

/* ---- what the machine can do ----------------------------------------------------------------------------- */

/* The peak loop of what a compute runs on. The c tier has none of its own: it is held against AVX2. */
static limits_peak_id peak_of(const moe_layer *l, uint32_t compute) {
    uint32_t tiers = moe_tiers() & (l->desc.tiers ? l->desc.tiers : ~0u);
    if (compute == MOE_COMPUTE_BF16) return tiers & MOE_TIER_BIT(MOE_TIER_AMX) ? LIMITS_BF16_AMX : LIMITS_BF16_512;
    if (compute == MOE_COMPUTE_Q8) return tiers & MOE_TIER_BIT(MOE_TIER_VNNI) ? LIMITS_VNNI_512 : LIMITS_MADDUBS_256;
    return tiers & MOE_TIER_BIT(MOE_TIER_AVX512) ? LIMITS_F32_512 : LIMITS_F32_256;
}

typedef struct peak_job {
    limits_peak_id id;
    double rate[MAX_THREADS];
} peak_job;
static void peak_task(void *arg, uint32_t i) { ((peak_job *)arg)->rate[i] = limits_peak(((peak_job *)arg)->id); }
static double measure_peak(pool *p, limits_peak_id id) {
    peak_job job;
    double sum = 0;
    job.id = id;
    pool_run(p, p->n_workers, peak_task, &job);
    for (uint32_t i = 0; i < p->n_workers; i++) sum += job.rate[i];
    return sum;
}

static uint8_t *read_memory;
static void read_task(void *arg, uint32_t i) { limits_read_part(arg, (int)i); }
/* The median of passes about as long as a call of few tokens: where others interrupt, both suffer alike. The passes
   go round a memory larger than caches are. */
static double measure_read(pool *p) {
    enum { PASSES = 8 };
    static size_t at;
    double rate[PASSES];
    limits_read_job job;
    job.part = PASS_BYTES / p->n_workers / 4096 * 4096;
    for (int pass = 0; pass < PASSES; pass++, at = (at + PASS_BYTES) % READ_BYTES) {
        job.data = read_memory + at;
        double t = limits_now();
        pool_run(p, p->n_workers, read_task, &job);
        rate[pass] = (double)(job.part * p->n_workers) / (limits_now() - t);
        for (uint32_t i = 0; i < p->n_workers; i++) limits_sink = limits_sink ^ job.sum[i];
    }
    return limits_median(rate, PASSES);
}

/* Processor seconds that all other processes have used; the difference over some time says how busy they were. */
static double others_seconds(void) {
    double user = 0, nice = 0, system = 0;
    struct rusage own;
    FILE *f = fopen("/proc/stat", "r");
    if (!f) return 0;
    if (fscanf(f, "cpu %lf %lf %lf", &user, &nice, &system) != 3) user = nice = system = 0;
    fclose(f);
    getrusage(RUSAGE_SELF, &own);
    return (user + nice + system) / (double)sysconf(_SC_CLK_TCK) -
           (double)(own.ru_utime.tv_sec + own.ru_stime.tv_sec) -
           1e-6 * (double)(own.ru_utime.tv_usec + own.ru_stime.tv_usec);
}

/* ---- one call -------------------------------------------------------------------------------------------- */

typedef struct runner { /* buffers for calls of up to n tokens */
    moe_io io;
    moe_parallel parallel;
    pool *pool;
    uint32_t d, k;
    float *x, *y;
    int32_t *ids;
    uint32_t *load; /* [n_experts] slots */
} runner;

static void runner_make(runner *r, pool *p, const moe_layer *l, uint32_t n_tokens) {
    const moe_desc *d = &l->desc;
    memset(r, 0, sizeof *r);
    r->pool = p, r->parallel = pool_parallel(p), r->d = d->d_model, r->k = d->top_k;
    r->x = (float *)allocate((size_t)n_tokens * d->d_model * sizeof *r->x);
    r->y = (float *)allocate((size_t)n_tokens * d->d_model * sizeof *r->y);
    r->ids = (int32_t *)allocate((size_t)n_tokens * d->top_k * sizeof *r->ids);
    r->load = (uint32_t *)allocate(d->n_experts * sizeof *r->load);
    r->io.x = r->x, r->io.y = r->y, r->io.x_type = r->io.y_type = MOE_TYPE_F32, r->io.n_tokens = n_tokens;
    r->io.ids_out = r->ids;
    r->io.n_tasks = p->n_workers, r->io.parallel = &r->parallel;
    r->io.workspace_size = moe_workspace_size(l, n_tokens, r->io.n_tasks);
    r->io.workspace = allocate(r->io.workspace_size);
    memset(r->io.workspace, 0, r->io.workspace_size);
}
static void runner_free(runner *r) { free(r->x), free(r->y), free(r->ids), free(r->load), free(r->io.workspace); }

static void nothing(void *arg, uint32_t i) { (void)arg, (void)i; }

/* Seconds of one call on the tokens of stream `it`. */
static double run_once(runner *r, const moe_layer *l, uint64_t it) {
    random_fill(r->x, r->io.n_tokens * r->d, SEED_TOKENS + it, 1.0f);
    pool_run(r->pool, r->pool->n_workers, nothing, NULL); /* an engine's workers would be awake */
    double t = limits_now();
    moe_status status = moe_forward(l, &r->io);
    t = limits_now() - t;
    if (status) DIE("moe_forward: %s", moe_status_text(status));
    return t;
}
/* How many experts the call's tokens chose; *busiest: the most tokens that one got. */
static uint32_t count_distinct(runner *r, uint32_t n_experts, uint32_t *busiest) {
    uint32_t n = 0;
    memset(r->load, 0, n_experts * sizeof *r->load);
    *busiest = 0;
    for (size_t i = 0; i < r->io.n_tokens * r->k; i++) {
        if (r->ids[i] < 0 || (uint32_t)r->ids[i] >= n_experts) continue;
        uint32_t load = ++r->load[r->ids[i]];
        n += load == 1;
        if (load > *busiest) *busiest = load;
    }
    return n;
}

/* ---- one row --------------------------------------------------------------------------------------------- */

typedef struct row {
    uint32_t n_tokens, threads, reps;
    const char *tier;
    char compute[24];
    double ms, ms_min, gbps, gflops, distinct, others, roofline; /* roofline: % */
    double busiest;                                              /* tokens of the busiest expert, % */
    double peak, read;                                           /* medians, GFLOP/s and GB/s */
    double parts[4]; /* % of one thread's time: routing and sorting; gate and up; down; of which combining */
    double dense_active, dense_total; /* ms; 0 = not measured */
    int total_computed;
} row;

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median_of(double *v, size_t n) {
    if (!n) return 0;
    qsort(v, n, sizeof *v, ascending);
    return n & 1 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

typedef struct samples {
    uint32_t n, n_rounds;
    double seconds[MAX_CALLS], bytes[MAX_CALLS], distinct[MAX_CALLS];
    uint32_t round[MAX_CALLS], busiest[MAX_CALLS];
    double peak_up[MAX_ROUNDS + 1], peak_down[MAX_ROUNDS + 1], peak_router[MAX_ROUNDS + 1], read[MAX_ROUNDS + 1];
} samples;

static void measure_limits(samples *s, uint32_t i, runner *r, const moe_layer *l) {
    limits_peak_id up = peak_of(l, moe_layer_compute(l, MOE_UP)), down = peak_of(l, moe_layer_compute(l, MOE_DOWN));
    limits_peak_id router = peak_of(l, MOE_COMPUTE_F32);
    s->peak_up[i] = measure_peak(r->pool, up);
    s->peak_down[i] = down == up ? s->peak_up[i] : measure_peak(r->pool, down);
    s->peak_router[i] = router == up ? s->peak_up[i] : measure_peak(r->pool, router);
    s->read[i] = measure_read(r->pool);
}

/* Peak, bandwidth, calls, peak, bandwidth, calls, ..., peak, bandwidth. */
static void take_samples(samples *s, runner *r, const model *m, double secs) {
    double begin = limits_now(), total = 0, chunk, last = run_once(r, &m->layer[0], 0); /* warm-up */
    uint64_t it = 1;
    s->n = s->n_rounds = 0;
    chunk = fmax(0.025, secs / MIN_ROUNDS / 4);
    measure_limits(s, 0, r, &m->layer[0]);
    while (s->n_rounds < MAX_ROUNDS && (total < secs || s->n_rounds < MIN_ROUNDS) && s->n < MAX_CALLS) {
        for (double spent = 0; (spent == 0 || spent + last / 2 < chunk) && s->n < MAX_CALLS; it++) {
            last = s->seconds[s->n] = run_once(r, &m->layer[it % m->n_layers], it);
            s->distinct[s->n] = count_distinct(r, m->shape.n_experts, &s->busiest[s->n]);
            s->bytes[s->n] = s->distinct[s->n] * m->expert_bytes + m->always_bytes;
            s->round[s->n++] = s->n_rounds;
            spent += last, total += last;
        }
        measure_limits(s, ++s->n_rounds, r, &m->layer[0]);
        if (limits_now() - begin > MAX_ROW_SECONDS && s->n_rounds > 1) break;
    }
}

/* The least time that a call can take, between two measurements of the limits. */
static double roofline_seconds(const samples *s, uint32_t i, const shape *sh, double n_tokens, int plain) {
    uint32_t a = s->round[i], b = a + 1;
    double up = 0.5 * (s->peak_up[a] + s->peak_up[b]), down = 0.5 * (s->peak_down[a] + s->peak_down[b]);
    double router = 0.5 * (s->peak_router[a] + s->peak_router[b]),
           width = (double)sh->k * sh->ff + (plain ? 0 : sh->shared_ff);
    double memory = s->bytes[i] / (0.5 * (s->read[a] + s->read[b])), compute = 0;
    if (up > 0 && down > 0 && router > 0)
        compute = n_tokens * sh->d * (4.0 * width / up + 2.0 * width / down + 2.0 * sh->n_experts / router);
    return fmax(memory, compute);
}

static void measure_row(row *out, pool *p, const model *m, uint32_t n_tokens, double secs) {
    static samples s;
    static double v[MAX_CALLS];
    const shape *sh = &m->shape;
    const moe_layer *l = &m->layer[0];
    runner r;
    uint32_t up = moe_layer_compute(l, MOE_UP), down = moe_layer_compute(l, MOE_DOWN);
    memset(out, 0, sizeof *out);
    runner_make(&r, p, l, n_tokens);
    double others = others_seconds(), begin = limits_now();
    take_samples(&s, &r, m, secs);
    out->others = fmax(0, (others_seconds() - others) / (limits_now() - begin));
    runner_free(&r);
    out->n_tokens = n_tokens, out->threads = p->n_workers, out->reps = s.n,
    out->tier = moe_tier_name(moe_layer_tier(l));
    snprintf(out->compute, sizeof out->compute, "%s%s%s", moe_compute_name(up), up == down ? "" : "+",
             up == down ? "" : moe_compute_name(down));
    for (uint32_t i = 0; i < s.n; i++)
        out->distinct += s.distinct[i] / s.n, out->busiest += 100.0 * s.busiest[i] / s.n / n_tokens;
    for (uint32_t i = 0; i < s.n; i++) v[i] = s.distinct[i] * m->expert_bytes / s.seconds[i] * 1e-9;
    out->gbps = median_of(v, s.n);
    for (uint32_t i = 0; i < s.n; i++) v[i] = 100 * roofline_seconds(&s, i, sh, n_tokens, m->plain) / s.seconds[i];
    out->roofline = median_of(v, s.n);
    memcpy(v, s.seconds, s.n * sizeof *v);
    out->ms = 1e3 * median_of(v, s.n), out->ms_min = 1e3 * v[0];
    out->gflops = 6.0 * n_tokens * sh->k * sh->d * sh->ff / out->ms * 1e-6;
    out->peak = 1e-9 * median_of(s.peak_up, s.n_rounds + 1), out->read = 1e-9 * median_of(s.read, s.n_rounds + 1);
}

/* ---- where the time goes --------------------------------------------------------------------------------- */

/* Seconds of adding n_tokens * k rows of the experts' results to n_tokens sums, a slice at a time as the layer
   does. */
static double combine_seconds(const moe_layer *l, uint32_t n_tokens) {
    const moe_desc *d = &l->desc;
    size_t width = moei_min(moei_slice(d->d_model, 1), d->d_model), slots = (size_t)n_tokens * d->top_k;
    float *sum = (float *)allocate(n_tokens * width * sizeof *sum),
          *out = (float *)allocate(64 * width * sizeof *out), best = 0;
    random_fill(out, 64 * width, SEED_OTHER, 1.0f), random_fill(sum, n_tokens * width, SEED_OTHER, 1.0f);
    for (int repeat = 0; repeat < 3; repeat++) {
        double t = limits_now();
        for (size_t at = 0; at < d->d_model; at += width)
            for (size_t i = 0; i < slots; i++)
                l->vec->axpy(sum + i % n_tokens * width, out + i % 64 * width, 0.1f,
                             moei_min(width, d->d_model - at));
        t = limits_now() - t;
        if (!repeat || t < (double)best) best = (float)t;
    }
    free(sum), free(out);
    return (double)best;
}

/* Runs the phases one by one on one thread. The last two are gate and up, and down with the weighted sum (one block
   of tokens, no latent space); what is before routes, sorts and prepares the tokens. */
static void measure_parts(row *out, const model *m) {
    double part[3][5], sum[3] = {0, 0, 0}, all = 0;
    uint32_t repeats = out->ms * out->threads > 1500 ? 1 : out->ms * out->threads > 300 ? 3 : 5;
    pool one;
    runner r;
    pool_start(&one, 1, NULL);
    runner_make(&r, &one, &m->layer[0], out->n_tokens);
    for (uint32_t i = 0; i < repeats; i++) {
        const moe_layer *l = &m->layer[i % m->n_layers];
        random_fill(r.x, r.io.n_tokens * r.d, SEED_TOKENS + i, 1.0f);
        for (int j = 0; j < 3; j++) part[j][i] = 0;
        for (uint32_t phase = 0, n = moe_phase_count(l, &r.io); phase < n; phase++) {
            double t = limits_now();
            if (moe_phase_run(l, &r.io, phase, 0, 1)) DIE("moe_phase_run failed");
            part[phase + 2 < n ? 0 : phase + 2 - n + 1][i] += limits_now() - t;
        }
    }
    for (int j = 0; j < 3; j++) sum[j] = median_of(part[j], repeats), all += sum[j];
    for (int j = 0; j < 3; j++) out->parts[j] = 100 * sum[j] / all;
    out->parts[3] = 100 * combine_seconds(&m->layer[0], out->n_tokens) / all;
    runner_free(&r), pool_stop(&one);
}

/* ---- dense equivalents ----------------------------------------------------------------------------------- */

/* `n` neighbouring experts' memory read as one FFN n times as wide: rows of gate and up follow each other, rows of
   down get longer. Which number is where does not matter, only how much there is. */
static void dense_matrix(moe_matrix *m, uint32_t first, size_t rows, size_t k) {
    m->data = (const uint8_t *)m->data + first * rows * moe_row_bytes(m->format, k);
    if (m->scale.data)
        m->scale.data =
            (const uint8_t *)m->scale.data + first * grid_values(m->format, rows, k) * type_bytes(m->scale.type);
    memset(&m->bias, 0, sizeof m->bias);
}
static int dense_layer(moe_layer *to, const model *m, uint32_t layer, uint32_t first, uint32_t n) {
    const moe_desc *from = &m->desc[layer];
    moe_desc d;
    memset(&d, 0, sizeof d);
    d.d_model = from->d_model, d.d_ff = n * from->d_ff, d.n_experts = d.top_k = 1;
    d.gate = from->gate, d.up = from->up, d.down = from->down, d.ffn = from->ffn;
    d.compute = from->compute, d.tiers = from->tiers;
    dense_matrix(&d.gate, first, from->d_ff, d.d_model), dense_matrix(&d.up, first, from->d_ff, d.d_model);
    dense_matrix(&d.down, first, d.d_model, from->d_ff);
    return !moe_layer_init(to, &d, NULL);
}

/* The median ms of a dense FFN as wide as n experts; 0 if there is none. */
static double dense_ms(pool *p, const model *m, uint32_t n_tokens, uint32_t n, double secs) {
    enum { REPEATS = 25 };
    double ms[REPEATS], total = 0;
    uint32_t places = m->shape.n_experts / n, done = 0;
    moe_layer l;
    runner r;
    if (!dense_layer(&l, m, 0, 0, n)) return 0;
    runner_make(&r, p, &l, n_tokens);
    float *ones = (float *)allocate(n_tokens * sizeof *ones);
    int32_t *zeros = (int32_t *)allocate(n_tokens * sizeof *zeros);
    for (uint32_t t = 0; t < n_tokens; t++) ones[t] = 1.0f, zeros[t] = 0;
    r.io.ids_in = zeros, r.io.weights_in = ones, r.io.ids_out = NULL; /* no router */
    for (uint32_t i = 0; i < REPEATS && (i < 4 || total < secs) && total < 10 * secs; i++) {
        dense_layer(&l, m, i % m->n_layers, i / m->n_layers % places * n, n);
        double t = run_once(&r, &l, i);
        if (i || t > secs) ms[done++] = 1e3 * t, total += t; /* the first warms up */
    }
    runner_free(&r), free(ones), free(zeros);
    return median_of(ms, done);
}

/* Beside a row: a dense FFN of the width that a token uses, and one of all experts' width. */
static void measure_dense(row *out, pool *p, const model *m, double secs) {
    const shape *s = &m->shape;
    double shared = m->plain ? 0.0 : (double)s->shared_ff / s->ff, active = s->k + shared,
           total = s->n_experts + shared;
    uint32_t n = (uint32_t)fmin(active, s->n_experts);
    out->dense_active = dense_ms(p, m, out->n_tokens, n, secs / 2) * active / n;
    out->dense_total = out->dense_active * total / active;
    out->total_computed = out->dense_total > 1500 || total <= active;
    if (!out->total_computed)
        out->dense_total = dense_ms(p, m, out->n_tokens, s->n_experts, secs / 2) * total / s->n_experts;
}

/* ---- what a layer costs where there is nothing to read --------------------------------------------------- */

/* Median microseconds of one token through a layer with as many experts, each of a few rows, all in the cache. (A second core
   is awake for good after some thousands of calls: 20 ms.) */
static double overhead_us(pool *p, const shape *s) {
    enum { D = 64, FF = 32, REPEATS = 20000 };
    static double v[REPEATS];
    const size_t matrix = (size_t)s->n_experts * D * FF, router = (size_t)s->n_experts * D;
    float *w = (float *)allocate((3 * matrix + router) * sizeof *w);
    moe_desc d;
    moe_layer l;
    runner r;
    memset(&d, 0, sizeof d);
    random_fill(w, 3 * matrix + router, SEED_OTHER, 0.1f);
    moe_preset(&d, "mixtral");
    d.d_model = D, d.d_ff = FF, d.n_experts = s->n_experts, d.top_k = s->k;
    d.gate.format = d.up.format = d.down.format = d.router.weight.format = MOE_FORMAT_F32;
    d.gate.data = w, d.up.data = w + matrix, d.down.data = w + 2 * matrix, d.router.weight.data = w + 3 * matrix;
    if (moe_layer_init(&l, &d, NULL)) DIE("the small layer is invalid");
    runner_make(&r, p, &l, 1);
    for (uint64_t i = 0; i < REPEATS; i++) v[i] = 1e6 * run_once(&r, &l, i);
    runner_free(&r), free(w);
    return median_of(v, REPEATS);
}

/* ---- output ---------------------------------------------------------------------------------------------- */

static int rows_printed;

static void print_csv(const row *r, const model *m, output o) {
    if (!rows_printed++ && o == OUTPUT_CSV)
        printf("peer,version,isa,shape,weight_format,N,threads,ms,GBps,GFLOPs,distinct,layers,reps,ms_min,others,"
               "compute,"
               "roofline_pct\n");
    printf("moe.h,%d.%d.%d,%s,%s,%s,%u,%u,%.4f,%.2f,%.1f,%.1f,%u,%u,%.4f,%.2f,%s,%.1f\n", MOE_VERSION_MAJOR,
           MOE_VERSION_MINOR, MOE_VERSION_PATCH, r->tier, m->shape.label, formats[m->format].name, r->n_tokens,
           r->threads, r->ms, r->gbps, r->gflops, r->distinct, m->n_layers, r->reps, r->ms_min, r->others, r->compute,
           r->roofline);
}

static void print_json(const row *r, const model *m) {
    printf("%s\n {\"peer\": \"moe.h\", \"version\": \"%d.%d.%d\", \"isa\": \"%s\", \"shape\": \"%s\", "
           "\"weight_format\": \"%s\", "
           "\"N\": %u, \"threads\": %u, \"ms\": %.4f, \"GBps\": %.2f, \"GFLOPs\": %.1f, \"distinct\": %.1f, "
           "\"layers\": %u, "
           "\"reps\": %u, \"ms_min\": %.4f, \"others\": %.2f, \"compute\": \"%s\", \"roofline_pct\": %.1f,\n",
           rows_printed++ ? "," : "[", MOE_VERSION_MAJOR, MOE_VERSION_MINOR, MOE_VERSION_PATCH, r->tier,
           m->shape.label, formats[m->format].name, r->n_tokens, r->threads, r->ms, r->gbps, r->gflops, r->distinct,
           m->n_layers, r->reps, r->ms_min, r->others, r->compute, r->roofline);
    printf("  \"routing\": \"%s\", \"n_experts\": %u, \"busiest_pct\": %.1f, \"peak_GFLOPs\": %.1f, \"read_GBps\": "
           "%.2f, \"route_pct\": %.2f, "
           "\"up_pct\": %.2f, \"down_pct\": %.2f, \"combine_pct\": %.2f, \"dense_active_ms\": %.4f, "
           "\"dense_total_ms\": %.4f, "
           "\"dense_total_computed\": %s}",
           m->skewed ? "skewed" : "uniform", m->shape.n_experts, r->busiest, r->peak, r->read, r->parts[0],
           r->parts[1], r->parts[2] - r->parts[3], r->parts[3], r->dense_active, r->dense_total,
           r->total_computed ? "true" : "false");
}

static void print_heading(const model *m) {
    const shape *s = &m->shape;
    printf("\n%s: d %u, ff %u, %u experts, %u a token%s; %s weights, %s routing, %u layer%s in turn (%.1f GB)\n",
           s->label, s->d, s->ff, s->n_experts, s->k, s->shared_ff && !m->plain ? " and a shared one" : "",
           formats[m->format].name, m->skewed ? "skewed" : "uniform", m->n_layers, m->n_layers > 1 ? "s" : "",
           m->expert_bytes * s->n_experts * m->n_layers * 1e-9);
    printf("%-16s %5s %3s %9s %9s %6s %7s %6s  %-21s|%6s %5s %5s %5s |%10s %10s\n", "tier compute", "N", "thr", "ms",
           "least", "GB/s", "GFLOP/s", "expert", "roofline %", "route", "up", "down", "comb", "dense actv",
           "dense all");
}

static void print_row(const row *r) {
    char bar[13], name[40];
    int n = (int)(r->roofline * 0.12 + 0.5);
    for (int i = 0; i < 12; i++) bar[i] = i < n ? '#' : '-';
    bar[12] = 0;
    snprintf(name, sizeof name, "%s %s", r->tier, r->compute);
    printf("%-16s %5u %3u %9.3f %9.3f %6.1f %7.1f %6.1f  %5.1f %s%s|%6.2f %5.1f %5.1f %5.2f |%10.3f%s%10.3f%s\n",
           name, r->n_tokens, r->threads, r->ms, r->ms_min, r->gbps, r->gflops, r->distinct, r->roofline, bar,
           r->others > MAX_OTHERS ? " ! " : "   ", r->parts[0], r->parts[1], r->parts[2] - r->parts[3], r->parts[3],
           r->dense_active, r->total_computed ? "~" : " ", r->dense_total, r->others > MAX_OTHERS ? " !" : "");
}

static void print_legend(void) {
    printf("\nroofline: 100 * max(operations / peak, bytes / read bandwidth) / time. route, up, down, comb: %% of "
           "the time of one\n"
           "thread in routing, sorting and preparing tokens; gate, up and activation; down; adding up the weighted "
           "rows (timed\n"
           "apart, in the cache). dense: ms of an FFN as wide as a token's experts, and as all experts (~: computed "
           "from the\n"
           "first, too long to run). !: other processes took more than %.1f cores: no measurement.\n",
           MAX_OTHERS);
}

/* ---- errors against float64 ------------------------------------------------------------------------------ */

typedef struct reference {
    const model *m;
    const float *w[3], *router, *x; /* dequantised */
    double *y;
    uint32_t n_tokens, n_tasks;
} reference;

static double dot64(const float *a, const double *b, size_t n) {
    double s[4] = {0, 0, 0, 0};
    for (size_t i = 0; i + 4 <= n; i += 4)
        for (size_t j = 0; j < 4; j++) s[j] += (double)a[i + j] * b[i + j];
    return s[0] + s[1] + (s[2] + s[3]);
}

static void reference_token(const reference *r, uint32_t t) {
    const shape *s = &r->m->shape;
    double x[512], h[768], p[8], *y = r->y + (size_t)t * s->d, sum = 0;
    int used[8] = {0};
    for (uint32_t i = 0; i < s->d; i++) x[i] = (double)r->x[(size_t)t * s->d + i], y[i] = 0;
    for (uint32_t e = 0; e < s->n_experts; e++) p[e] = exp(dot64(r->router + (size_t)e * s->d, x, s->d));
    for (uint32_t rank = 0; rank < s->k; rank++) {
        uint32_t best = s->n_experts;
        for (uint32_t e = 0; e < s->n_experts; e++)
            if (!used[e] && (best == s->n_experts || p[e] > p[best])) best = e;
        used[best] = 1, sum += p[best];
    }
    for (uint32_t e = 0; e < s->n_experts; e++) {
        if (!used[e]) continue;
        for (size_t i = 0; i < s->ff; i++) {
            size_t at = ((size_t)e * s->ff + i) * s->d;
            double g = dot64(r->w[0] + at, x, s->d);
            h[i] = g / (1 + exp(-g)) * dot64(r->w[1] + at, x, s->d);
        }
        for (size_t i = 0; i < s->d; i++)
            y[i] += p[e] / sum * dot64(r->w[2] + ((size_t)e * s->d + i) * s->ff, h, s->ff);
    }
}
static void reference_task(void *arg, uint32_t i) {
    const reference *r = (const reference *)arg;
    for (uint32_t t = i; t < r->n_tokens; t += r->n_tasks) reference_token(r, t);
}

/* Greatest error over greatest value, and error over value as lengths; tokens that were routed otherwise (30 % off)
   are counted, not compared. */
static void compare(const reference *r, const float *y, double *max_rel, double *l2_rel, uint32_t *rerouted) {
    double worst = 0, most = 0, e2 = 0, y2 = 0;
    const size_t d = r->m->shape.d;
    *rerouted = 0;
    for (size_t t = 0; t < r->n_tokens; t++) {
        double te = 0, ty = 0, tworst = 0;
        for (size_t i = t * d; i < (t + 1) * d; i++) {
            double e = fabs((double)y[i] - r->y[i]);
            te += e * e, ty += r->y[i] * r->y[i], tworst = fmax(tworst, e), most = fmax(most, fabs(r->y[i]));
        }
        if (!(te < 0.09 * ty)) ++*rerouted;
        else worst = fmax(worst, tworst), e2 += te, y2 += ty;
    }
    *max_rel = worst / most, *l2_rel = sqrt(e2 / y2);
}

static void check_model(const model *m, pool *p) {
    static const uint32_t tokens[] = {3, 64, 600};
    const shape *s = &m->shape;
    const moe_matrix *w[3] = {&m->desc[0].gate, &m->desc[0].up, &m->desc[0].down};
    const size_t n = (size_t)s->n_experts * s->ff * s->d;
    float *weights = (float *)allocate(3 * n * sizeof *weights), first[3 * 512];
    reference ref = {m,
                     {weights, weights + n, weights + 2 * n},
                     (const float *)m->desc[0].router.weight.data,
                     NULL,
                     NULL,
                     0,
                     p->n_workers};
    for (uint32_t e = 0; e < s->n_experts; e++)
        for (int i = 0; i < 3; i++) {
            size_t rows = i == 2 ? s->d : s->ff, k = i == 2 ? s->ff : s->d;
            if (moe_dequantize(w[i], e, s->n_experts, rows, k, 0, rows, weights + (size_t)i * n + e * rows * k))
                DIE("moe_dequantize failed");
        }
    for (int i = 0; i < 3; i++) {
        runner r;
        double max_rel, l2_rel;
        uint32_t rerouted;
        runner_make(&r, p, &m->layer[0], tokens[i]);
        run_once(&r, &m->layer[0], 0);
        ref.x = r.x, ref.n_tokens = tokens[i], ref.y = (double *)allocate((size_t)tokens[i] * s->d * sizeof *ref.y);
        pool_run(p, ref.n_tasks, reference_task, &ref);
        compare(&ref, r.y, &max_rel, &l2_rel, &rerouted);
        printf("check,moe.h,%s,N=%u,max_rel=%.2e,l2_rel=%.2e,rerouted=%u", formats[m->format].name, tokens[i],
               max_rel, l2_rel, rerouted);
        if (i) printf(",same_bits_as_small_batch=%s", memcmp(first, r.y, sizeof first) ? "no" : "yes");
        else memcpy(first, r.y, sizeof first);
        printf(",compute=%s,isa=%s\n", moe_compute_name(moe_layer_compute(&m->layer[0], MOE_UP)),
               moe_tier_name(moe_layer_tier(&m->layer[0])));
        runner_free(&r), free(ref.y);
    }
    free(weights);
}

/* ---- all rows -------------------------------------------------------------------------------------------- */

#ifdef CPU_SET
static cpu_set_t all_processors; /* that this process may use */
#endif

/* A pool of pinned workers, the caller being the first. Threads inherit the processors of the one that starts them,
   and the pool chooses among the caller's: so the caller may use all of them until the workers are there. */
static void open_pool(pool *p, uint32_t n, uint32_t spin_us) {
    pool_options o = {spin_us, 1};
#ifdef CPU_SET
    if (!CPU_COUNT(&all_processors)) sched_getaffinity(0, sizeof all_processors, &all_processors);
    sched_setaffinity(0, sizeof all_processors, &all_processors);
#endif
    if (pool_start(p, n, &o) != n) DIE("can't start %u threads", n);
    pool_pin(pthread_self(), 0);
}

static void bench_model(const options *o, const model *m) {
    if (o->output == OUTPUT_TABLE) print_heading(m);
    for (uint32_t i = 0; i < o->n_threads; i++)
        for (uint32_t j = 0; j < o->n_tokens; j++) {
            row r;
            pool p;
            fprintf(stderr, "  %s %s: %u token%s, %u thread%s ...\n", m->shape.label, formats[m->format].name,
                    o->tokens[j], o->tokens[j] > 1 ? "s" : "", o->threads[i], o->threads[i] > 1 ? "s" : "");
            open_pool(&p, o->threads[i], SPIN_US);
            measure_row(&r, &p, m, o->tokens[j], o->secs);
            if (o->output == OUTPUT_TABLE || o->output == OUTPUT_JSON) {
                measure_parts(&r, m);
                measure_dense(&r, &p, m, o->secs);
            }
            pool_stop(&p);
            if (o->output == OUTPUT_JSON) print_json(&r, m);
            else if (o->output == OUTPUT_TABLE) print_row(&r), rows_printed++;
            else print_csv(&r, m, o->output);
            fflush(stdout);
        }
}

static void bench_shape(const options *o, pool *all, const shape *s) {
    int before = rows_printed;
    for (uint32_t f = 0; f < o->n_formats; f++) {
        model m;
        if (!moe_row_bytes(o->formats[f], s->d) || !moe_row_bytes(o->formats[f], s->ff)) {
            fprintf(stderr, "%s %s: left out: %u or %u is no multiple of %u\n", s->name, formats[o->formats[f]].name,
                    s->d, s->ff, formats[o->formats[f]].elements);
            continue;
        }
        model_make(&m, all, s, o->formats[f], o->plain);
        for (uint32_t t = 0; t < o->n_tiers; t++)
            for (uint32_t c = 0; c < o->n_computes; c++)
                for (uint32_t i = 0; i < o->n_routings; i++) {
                    if (!model_choose(&m, o->computes[c], o->tiers[t], (int)o->skewed[i])) continue;
                    if (o->check) check_model(&m, all), rows_printed++;
                    else bench_model(o, &m);
                }
        model_free(&m);
    }
    if (o->output != OUTPUT_TABLE || o->check || rows_printed == before) return;
    for (uint32_t i = 0; i < o->n_threads; i++) {
        pool p;
        open_pool(&p, o->threads[i], SPIN_US);
        printf(
            "%s: %.1f us for one token where there is next to nothing to read (%u experts of 64 x 32, %u thread%s)\n",
            s->name, overhead_us(&p, s), s->n_experts, o->threads[i], o->threads[i] > 1 ? "s" : "");
        pool_stop(&p);
    }
}

int main(int argc, char **argv) {
    static options o;
    pool all;
    uint32_t most = 1;
    parse(&o, argc, argv);
    for (uint32_t i = 0; i < o.n_threads; i++)
        if (o.threads[i] > most) most = o.threads[i];
    open_pool(&all, most, UINT32_MAX); /* it only fills memory: no spinning beside the measurements */
    arena_open();
    read_memory = (uint8_t *)limits_memory(READ_BYTES);
    if (!read_memory) DIE("can't map memory to read");
    memset(read_memory, 1, READ_BYTES);
    for (uint32_t i = 0; i < o.n_shapes; i++) bench_shape(&o, &all, &o.shapes[i]);
    pool_stop(&all);
    if (o.output == OUTPUT_JSON && !o.check) printf("%s]\n", rows_printed ? "\n" : "[");
    if (o.output == OUTPUT_TABLE && !o.check && rows_printed) print_legend();
    if (!rows_printed) DIE("nothing to measure");
    return 0;
}
