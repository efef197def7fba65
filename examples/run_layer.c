/* run_layer.c - runs one Mixture-of-Experts layer of a checkpoint on given inputs, or lists what a checkpoint holds

     run_layer CHECKPOINT [--layer N] --input IN.safetensors --output OUT.safetensors [--compute f32|bf16|q8]
               [--format NAME] [--tier NAME] [--threads N] [--batch N] [--stats]
     run_layer CHECKPOINT --list [--layer N]
     run_layer --models

   CHECKPOINT is a Hugging Face directory, an index.json, a .safetensors or a .gguf file. IN holds hidden_states F32
   [T,d]; where the router reads something else router_input F32 [T,d]; for hash routing token_ids I32 [T]. OUT gets
   output F32 [T,d], router_logits F32 [T,rows], topk_ids I32 [T,k], topk_weights F32 [T,k]: nothing about tier,
   threads or batch, so equal results are equal files. Bad input: one line on stderr, exit status 1, and no output file.

     cc -std=c11 -O2 -I. -o run_layer examples/run_layer.c -lm -lpthread */

#define _POSIX_C_SOURCE 200809L /* for pool.h */

#include "checkpoint.h"
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "checkpoint_layer.h"
#include "quantize.h"
#include "pool.h"

typedef struct options {
    const char *checkpoint, *layer, *input, *output;
    uint32_t compute, format, tier, threads, batch;
    int list, stats, models, help;
} options;
static const char usage[] =
    "usage: run_layer CHECKPOINT --input IN.safetensors --output OUT.safetensors [options]\n"
    "       run_layer CHECKPOINT --list [--layer N]     layers, formats and knobs, each with its origin\n"
    "       run_layer --models                          the families it knows\n"
    "CHECKPOINT: a Hugging Face directory, an index.json, a .safetensors or a .gguf file\n"
    "  --layer N          which layer                          (the first with experts)\n"
    "  --compute C        f32, bf16 or q8                      (f32)\n"
    "  --format F         convert the experts' weights first   (as they are)\n"
    "  --tier T           c, avx2, avx512, ...                 (the best)\n"
    "  --threads N        workers                              (1)\n"
    "  --batch N          tokens a call                        (all)\n"
    "  --stats            load of the experts, and time\n";

static int fail(const char *format, ...) CKPT_PRINTF(1, 2);
static int fail(const char *format, ...) {
    char text[CKPT_ERR], line[CKPT_ERR];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "run_layer: %s\n", ckpt_printable(line, sizeof line, text));
    return 1;
}
static int fail_status(const char *what, moe_status status, const moe_error *e) {
    char where[96];
    const char *part = e->part ? e->part : "", *field = e->field ? e->field : "";
    snprintf(where, sizeof where, "%s%s%s", part, *part && *field ? "." : "", field);
    if (e->got || e->want)
        return fail("%s: %s: %s (%" PRIu64 ", wanted %" PRIu64 ")", what, where, moe_status_text(status), e->got,
                    e->want);
    return fail("%s: %s%s%s", what, where, *where ? ": " : "", moe_status_text(status));
}

/* ---- What a call reads and writes ---- */

typedef struct run {
    ckpt model, in;
    ckpt_layers layers;
    ckpt_layer_info info;
    moe_desc desc;
    moe_layer layer;
    quant_memory converted;
    const float *x, *router_x;
    int32_t *token_ids, *ids;
    float *copies[2], *y, *logits, *weights;
    uint64_t n_tokens;
    void *workspace;
    moe_stats stats;
} run;

static void run_close(run *r) {
    ckpt_close(&r->model);
    ckpt_close(&r->in);
    ckpt_layers_free(&r->layers);
    ckpt_layer_free(&r->info);
    quant_free(&r->converted);
    void *all[] = {r->token_ids, r->ids,       r->copies[0],    r->copies[1],    r->y,          r->logits,
                   r->weights,   r->workspace, r->stats.tokens, r->stats.weight, r->stats.score};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* A tensor of the input file as f32 in this machine's order (files promise no alignment). */
static int read_floats(run *r, const char *name, int required, uint64_t width, const float **out, float **copy) {
    const ckpt_tensor *t = ckpt_find(&r->in, name);
    char have[96];
    *out = NULL;
    if (!t && required) return fail("%s: tensor %s is missing: this layer needs it", r->in.shards[0].name, name);
    if (!t) return 0;
    if (t->type != CKPT_F32 || t->n_dims != 2 || t->dims[1] != width ||
        (*copy == r->copies[1] && r->copies[0] && t->dims[0] != r->n_tokens))
        return fail("%s: tensor %s is %s %s, not F32 [tokens,%" PRIu64 "]", r->in.shards[0].name, name,
                    ckpt_type_name(t->type), ckptl_dims_text(t->dims, t->n_dims, have, sizeof have), width);
    *copy = (float *)malloc((size_t)t->bytes + 4);
    if (!*copy) return fail("out of memory");
    for (uint64_t i = 0; i < t->bytes / 4; i++) (*copy)[i] = ckpt_load_f32(t->data + 4 * i);
    *out = *copy;
    return 0;
}

static int read_token_ids(run *r) {
    const ckpt_tensor *t = ckpt_find(&r->in, "token_ids");
    if (!t) return fail("%s: tensor token_ids is missing: this layer routes by token", r->in.shards[0].name);
    if (t->type != CKPT_I32 || t->n_dims != 1 || t->dims[0] != r->n_tokens)
        return fail("%s: tensor token_ids is not I32 [%" PRIu64 "]", r->in.shards[0].name, r->n_tokens);
    r->token_ids = (int32_t *)malloc((size_t)t->bytes + 4);
    if (!r->token_ids) return fail("out of memory");
    for (uint64_t i = 0; i < r->n_tokens; i++) r->token_ids[i] = (int32_t)ckpt_load_u32(t->data + 4 * i);
    return 0;
}

static int read_input(run *r, const options *o) {
    char err[CKPT_ERR];
    if (ckpt_open(&r->in, o->input, err)) return fail("%s", err);
    if (r->in.is_gguf || !r->in.n_shards) return fail("%s is no safetensors file", o->input);
    if (read_floats(r, "hidden_states", 1, r->desc.d_model, &r->x, &r->copies[0])) return 1;
    r->n_tokens = ckpt_find(&r->in, "hidden_states")->dims[0];
    if (r->n_tokens > INT32_MAX) return fail("%s: too many tokens", o->input);
    if (r->info.needs_router_input && read_floats(r, "router_input", 1, r->desc.d_model, &r->router_x, &r->copies[1]))
        return 1;
    if (r->router_x && ckpt_find(&r->in, "router_input")->dims[0] != r->n_tokens)
        return fail("%s: router_input and hidden_states differ in tokens", o->input);
    return r->info.needs_token_ids ? read_token_ids(r) : 0;
}

static void *room(uint64_t n, uint64_t width, size_t item) {
    uint64_t count;
    if (ckpti_mul(n, width, &count) || count > SIZE_MAX / 2 / item) return NULL;
    return calloc((size_t)count + 1, item);
}

static int make_output(run *r) {
    uint64_t ids = (uint64_t)r->layer.n_ids + 1;
    r->y = (float *)room(r->n_tokens, r->desc.d_model, sizeof *r->y);
    r->logits = (float *)room(r->n_tokens, r->layer.router_rows, sizeof *r->logits);
    r->ids = (int32_t *)room(r->n_tokens, r->desc.top_k, sizeof *r->ids);
    r->weights = (float *)room(r->n_tokens, r->desc.top_k, sizeof *r->weights);
    r->stats.tokens = (uint64_t *)room(ids, 1, sizeof *r->stats.tokens);
    r->stats.weight = (double *)room(ids, 1, sizeof *r->stats.weight);
    r->stats.score = (double *)room(ids, 1, sizeof *r->stats.score);
    if (!r->y || !r->logits || !r->ids || !r->weights || !r->stats.tokens || !r->stats.weight || !r->stats.score)
        return fail("out of memory");
    return 0;
}

static int run_batches(run *r, const options *o, const moe_parallel *parallel) {
    size_t d = r->desc.d_model, k = r->desc.top_k, rows = r->layer.router_rows, n = (size_t)r->n_tokens;
    size_t step = o->batch && o->batch < n ? o->batch : n;
    moe_error e;
    moe_io io;
    memset(&e, 0, sizeof e);
    memset(&io, 0, sizeof io);
    io.n_tasks = o->threads, io.parallel = parallel, io.error = &e, io.stats = o->stats ? &r->stats : NULL;
    io.workspace_size = moe_workspace_size(&r->layer, step, o->threads);
    if (io.workspace_size > (size_t)1 << 31) /* large batches: in blocks */
        io.workspace_size = moe_workspace_min(&r->layer, step, o->threads) > (size_t)1 << 31
                                ? moe_workspace_min(&r->layer, step, o->threads)
                                : (size_t)1 << 31;
    if (io.workspace_size == SIZE_MAX || !(r->workspace = malloc(io.workspace_size + 1)))
        return fail("out of memory: %zu tokens at once", step);
    io.workspace = r->workspace, io.x_type = io.y_type = MOE_TYPE_F32;
    for (size_t t = 0; t < n; t += step) {
        io.n_tokens = n - t < step ? n - t : step;
        io.x = r->x + t * d, io.y = r->y + t * d;
        io.router_x = r->router_x ? r->router_x + t * d : NULL;
        io.token_ids = r->token_ids ? r->token_ids + t : NULL;
        io.logits_out = r->logits + t * rows, io.ids_out = r->ids + t * k, io.weights_out = r->weights + t * k;
        moe_status s = moe_forward(&r->layer, &io);
        if (s) return fail_status(o->input, s, &e);
    }
    return 0;
}

static int write_output(run *r, const options *o) {
    char err[CKPT_ERR];
    uint64_t n = r->n_tokens, values = n * r->desc.d_model;
    /* the writer wants little-endian bytes */
    float *floats[] = {r->y, r->logits, r->weights};
    uint64_t counts[] = {values, n * r->layer.router_rows, n * r->desc.top_k};
    for (size_t i = 0; i < 3; i++)
        for (uint64_t j = 0; j < counts[i]; j++) ckpt_store_f32(&floats[i][j], floats[i][j]);
    for (uint64_t j = 0; j < counts[2]; j++) ckpt_store_u32(&r->ids[j], (uint32_t)r->ids[j]);
    ckpt_out out[] = {
        {"output", CKPT_F32, 2, {n, r->desc.d_model}, r->y},
        {"router_logits", CKPT_F32, 2, {n, r->layer.router_rows}, r->logits},
        {"topk_ids", CKPT_I32, 2, {n, r->desc.top_k}, r->ids},
        {"topk_weights", CKPT_F32, 2, {n, r->desc.top_k}, r->weights},
    };
    return ckpt_write(o->output, out, sizeof out / sizeof *out, NULL, err) ? fail("%s", err) : 0;
}

/* ---- Listing ---- */

static void print_layers(const ckpt_layers *l) {
    printf("layers with experts: %zu:", l->n);
    for (size_t i = 0; i < l->n;) { /* runs of numbers: 3-60 */
        size_t j = i;
        while (j + 1 < l->n && !strchr(l->items[j + 1].name, '.') && !strchr(l->items[i].name, '.') &&
               l->items[j + 1].index == l->items[j].index + 1)
            j++;
        if (j > i + 1) printf(" %s-%s", l->items[i].name, l->items[j].name);
        else j = i, printf(" %s", l->items[i].name);
        i = j + 1;
    }
    printf("\n");
}

/* Keys that say which layers have experts; the tensors that exist decide. */
static void print_pattern(const ckpt *c) {
    static const char *const keys[] = {"num_hidden_layers",
                                       "first_k_dense_replace",
                                       "moe_layer_freq",
                                       "decoder_sparse_step",
                                       "encoder_sparse_step",
                                       "mlp_only_layers",
                                       "interleave_moe_layer_step",
                                       "moe_layers",
                                       "expert_layer_period",
                                       "expert_layer_offset",
                                       "moe_layer_start_index",
                                       "moe_layer_end_index",
                                       "moe_layer_interval",
                                       "moe_layers_enum",
                                       "layers_block_type",
                                       "hybrid_override_pattern",
                                       "mlp_layer_types",
                                       "num_dense_layers",
                                       "n_dense_first_layers",
                                       "dense_mlp_idx",
                                       "num_hash_layers",
                                       "block_count",
                                       "leading_dense_block_count",
                                       "moe_every_n_layers"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        for (size_t j = 0; j < c->config.n; j++) {
            const ckpt_value *v = &c->config.items[j];
            size_t n = strlen(v->key), m = strlen(keys[i]);
            char text[96], shown[96];
            if (n < m || strcmp(v->key + n - m, keys[i]) || (n > m && v->key[n - m - 1] != '.') ||
                strstr(v->key, "vision"))
                continue;
            if (v->type == CKPT_VALUE_ARRAY) snprintf(text, sizeof text, "a list of %" PRIu64, v->count);
            else if (v->type == CKPT_VALUE_NULL || v->type == CKPT_VALUE_OBJECT) continue;
            else ckptl_value_text(v, text, sizeof text);
            char key[128];
            printf("  %-40s %s\n", ckpt_printable(key, sizeof key, v->key),
                   ckpt_printable(shown, sizeof shown, text));
        }
}

static void print_tensors(const ckpt *c) {
    for (size_t i = 0; i < c->n_tensors; i++) {
        char name[256], dims[128];
        const ckpt_tensor *t = &c->tensors[i];
        printf("  %-72s %-8s %s\n", ckpt_printable(name, sizeof name, t->name), ckpt_type_name(t->type),
               ckptl_dims_text(t->dims, t->n_dims, dims, sizeof dims));
    }
}

static void print_info(const run *r, const ckpt_layer *l) {
    moe_counts c;
    printf("layer %s: family %s (%s)\n  tensors\n", l->name, r->info.family, r->info.family_origin);
    for (uint32_t i = 0; i < r->info.n_parts; i++) {
        const ckpt_part *p = &r->info.parts[i];
        printf("    %-16s %-20s %-44s %s\n", p->role, p->shape, p->format, p->name);
    }
    printf("  knobs\n");
    for (uint32_t i = 0; i < r->info.n_knobs; i++)
        printf("    %-28s %-24s %s\n", r->info.knobs[i].field, r->info.knobs[i].value, r->info.knobs[i].origin);
    moe_layer_counts(&r->layer, &c);
    printf("  a call brings: hidden_states%s%s\n", r->info.needs_router_input ? ", router_input" : "",
           r->info.needs_token_ids ? ", token_ids" : "");
    printf("  parameters %" PRIu64 ", active %" PRIu64 "; bytes %" PRIu64 ", active %" PRIu64
           "; FLOPs per token %" PRIu64 " of a dense %" PRIu64 "\n",
           c.params_total, c.params_active, c.bytes_total, c.bytes_active, c.flops_token, c.flops_dense);
}

/* ---- --models: released models, for people ---- */

/* Numbers that nobody could check in a released file carry a mark. */
enum { M_SIZES = 1, M_TOTALS = 2, M_LAYERS = 4 };
typedef struct model {
    const char *name, *preset, *total, *active;               /* parameters of the whole model, as published */
    uint32_t layers, d_model, d_ff, n_experts, top_k, shared; /* layers with experts; shared: their width in all */
    uint32_t latent, ungated, marks;
} model;
// clang-format off
static const model models[] = {
    {"Mixtral 8x7B", "mixtral", "46.7B", "12.9B", 32, 4096, 14336, 8, 2, 0, 0, 0, M_TOTALS},
    {"Mixtral 8x22B", "mixtral", "141B", "39B", 56, 6144, 16384, 8, 2, 0, 0, 0, M_TOTALS},
    {"Qwen1.5-MoE-A2.7B", "qwen2_moe", "14.3B", "2.7B", 24, 2048, 1408, 60, 4, 5632, 0, 0, M_TOTALS},
    {"Qwen2-57B-A14B", "qwen2_moe", "57B", "14B", 28, 3584, 2560, 64, 8, 20480, 0, 0, 0},
    {"Qwen3-30B-A3B", "qwen3_moe", "30.5B", "3.3B", 48, 2048, 768, 128, 8, 0, 0, 0, 0},
    {"Qwen3-235B-A22B", "qwen3_moe", "235B", "22B", 94, 4096, 1536, 128, 8, 0, 0, 0, 0},
    {"Qwen3-Coder-480B-A35B", "qwen3_moe", "480B", "35B", 62, 6144, 2560, 160, 8, 0, 0, 0, 0},
    {"Qwen3-Next-80B-A3B", "qwen3_next", "80B", "3B", 48, 2048, 512, 512, 10, 512, 0, 0, 0},
    {"Qwen3.5/3.6-35B-A3B", "qwen3_5_moe", "35B", "3B", 40, 2048, 512, 256, 8, 512, 0, 0, 0},
    {"Qwen3.5-397B-A17B", "qwen3_5_moe", "397B", "17B", 60, 4096, 1024, 512, 10, 1024, 0, 0, 0},
    {"OLMoE-1B-7B", "olmoe", "6.9B", "1.3B", 16, 2048, 1024, 64, 8, 0, 0, 0, M_SIZES | M_TOTALS},
    {"FlexOlmo 7x7B", "flex_olmo", "33B", "-", 32, 4096, 11008, 7, 5, 0, 0, 0, 0},
    {"DeepSeekMoE-16B", "deepseek", "16.4B", "2.8B", 27, 2048, 1408, 64, 6, 2816, 0, 0, M_SIZES | M_TOTALS},
    {"DeepSeek-V2-Lite", "deepseek_v2_lite", "15.7B", "2.4B", 26, 2048, 1408, 64, 6, 2816, 0, 0, 0},
    {"DeepSeek-V2 236B", "deepseek_v2", "236B", "21B", 59, 5120, 1536, 160, 6, 3072, 0, 0, 0},
    {"DeepSeek-V3/R1/V3.2", "deepseek_v3", "671B", "37B", 58, 7168, 2048, 256, 8, 2048, 0, 0, 0},
    {"DeepSeek-V4-Flash", "deepseek_v4", "284B", "13B", 43, 4096, 2048, 256, 6, 2048, 0, 0, 0},
    {"DeepSeek-V4-Pro", "deepseek_v4", "1.6T", "49B", 61, 7168, 3072, 384, 6, 3072, 0, 0, 0},
    {"Moonlight-16B-A3B", "moonlight", "16B", "3B", 26, 2048, 1408, 64, 6, 2816, 0, 0, 0},
    {"Kimi-K2", "kimi_k2", "1.04T", "32B", 60, 7168, 2048, 384, 8, 2048, 0, 0, 0},
    {"Kimi-K3", "kimi_k3", "2.xT", "-", 92, 7168, 3072, 896, 16, 6144, 3584, 0, M_TOTALS},
    {"GLM-4.5/4.6/4.7 355B", "glm4_moe", "355B", "32B", 89, 5120, 1536, 160, 8, 1536, 0, 0, 0},
    {"GLM-4.5-Air", "glm4_moe", "106B", "12B", 45, 4096, 1408, 128, 8, 1408, 0, 0, 0},
    {"GLM-4.7-Flash", "glm4_moe_lite", "30B", "3B", 46, 2048, 1536, 64, 4, 1536, 0, 0, 0},
    {"GLM-5/5.1/5.2", "glm_moe_dsa", "744B", "40B", 75, 6144, 2048, 256, 8, 2048, 0, 0, 0},
    {"Llama-4 Scout", "llama4", "109B", "17B", 48, 5120, 8192, 16, 1, 8192, 0, 0, 0},
    {"Llama-4 Maverick", "llama4", "400B", "17B", 24, 5120, 8192, 128, 1, 8192, 0, 0, 0},
    {"gpt-oss-20b", "gpt_oss", "20.9B", "3.6B", 24, 2880, 2880, 32, 4, 0, 0, 0, 0},
    {"gpt-oss-120b", "gpt_oss", "116.8B", "5.1B", 36, 2880, 2880, 128, 4, 0, 0, 0, 0},
    {"Phi-3.5-MoE", "phimoe", "41.9B", "6.6B", 32, 4096, 6400, 16, 2, 0, 0, 0, M_SIZES | M_TOTALS},
    {"DBRX", "dbrx", "132B", "36B", 40, 6144, 10752, 16, 4, 0, 0, 0, 0},
    {"Grok-1", "grok_1", "314B", "86B", 64, 6144, 32768, 8, 2, 0, 0, 0, 0},
    {"Grok-2", "grok_2", "270B", "115B", 64, 8192, 16384, 8, 2, 32768, 0, 0, M_SIZES | M_TOTALS},
    {"Jamba v0.1", "jamba", "52B", "12B", 16, 4096, 14336, 16, 2, 0, 0, 0, M_SIZES | M_TOTALS},
    {"Jamba-1.5-Large", "jamba", "398B", "94B", 36, 8192, 24576, 16, 2, 0, 0, 0, M_SIZES | M_TOTALS},
    {"Granite-3.x 1b-a400m", "granitemoe", "1.3B", "0.4B", 24, 1024, 512, 32, 8, 0, 0, 0, M_SIZES | M_TOTALS},
    {"Granite-3.x 3b-a800m", "granitemoe", "3.3B", "0.8B", 32, 1536, 512, 40, 8, 0, 0, 0, M_SIZES | M_TOTALS},
    {"Granite-4.0-H-Tiny", "granitemoehybrid", "7B", "1B", 40, 1536, 512, 64, 6, 1024, 0, 0, M_SIZES | M_TOTALS},
    {"Granite-4.0-H-Small", "granitemoehybrid", "32B", "9B", 40, 4096, 768, 72, 10, 1536, 0, 0, M_SIZES | M_TOTALS},
    {"Arctic", "arctic", "480B", "17B", 35, 7168, 4864, 128, 2, 0, 0, 0, M_SIZES | M_TOTALS},
    {"Switch-base-256", "switch_transformers", "14.7B", "-", 12, 768, 3072, 256, 1, 0, 0, 1, M_SIZES | M_TOTALS},
    {"Switch-C-2048", "switch_transformers", "1.6T", "-", 15, 2080, 6144, 2048, 1, 0, 0, 1, M_SIZES | M_TOTALS},
    {"NLLB-MoE-54B", "nllb_moe", "54.5B", "-", 12, 2048, 8192, 128, 2, 0, 0, 1, M_SIZES | M_TOTALS},
    {"MiniMax-Text-01/M1", "minimax", "456B", "46B", 80, 6144, 9216, 32, 2, 0, 0, 0, M_SIZES | M_TOTALS},
    {"MiniMax-M2", "minimax_m2", "230B", "10B", 62, 3072, 1536, 256, 8, 0, 0, 0, 0},
    {"MiniMax-M3", "minimax_m3", "-", "-", 57, 6144, 3072, 128, 4, 3072, 0, 0, M_LAYERS},
    {"ERNIE-4.5-21B-A3B", "ernie4_5_moe", "21B", "3B", 27, 2560, 1536, 64, 6, 3072, 0, 0, M_TOTALS},
    {"ERNIE-4.5-300B-A47B", "ernie4_5_moe", "300B", "47B", 51, 8192, 3584, 64, 8, 0, 0, 0, M_SIZES | M_TOTALS},
    {"Hunyuan-A13B", "hunyuan_v1_moe", "80B", "13B", 32, 4096, 3072, 64, 8, 3072, 0, 0, M_SIZES | M_TOTALS},
    {"HY-V3", "hy_v3", "-", "-", 79, 4096, 1536, 192, 8, 1536, 0, 0, 0},
    {"dots.llm1", "dots1", "142B", "14B", 61, 4096, 1408, 128, 6, 2816, 0, 0, M_SIZES | M_TOTALS},
    {"LongCat-Flash", "longcat_flash", "560B", "18-31B", 28, 6144, 2048, 512, 12, 0, 0, 0, M_TOTALS},
    {"Ling-lite 1.5", "bailing_moe", "16.8B", "2.75B", 28, 2048, 1408, 64, 6, 2816, 0, 0, M_SIZES | M_TOTALS},
    {"Ling-mini-2.0", "bailing_moe_v2", "16B", "1.4B", 19, 2048, 512, 256, 8, 512, 0, 0, 0},
    {"Ling-flash-2.0", "bailing_moe_v2", "103B", "6.1B", 31, 4096, 1024, 256, 8, 1024, 0, 0, M_SIZES | M_TOTALS},
    {"Ling-1T", "bailing_moe_v2", "1T", "50B", 76, 8192, 2048, 256, 8, 2048, 0, 0, M_SIZES | M_TOTALS},
    {"Trinity-Mini", "afmoe", "26B", "3B", 30, 2048, 1024, 128, 8, 1024, 0, 0, 0},
    {"Nemotron-3 Nano 30B-A3B", "nemotron_h", "31.6B", "3.2B", 23, 2688, 1856, 128, 6, 3712, 0, 1, M_LAYERS},
    {"Nemotron-3 Super 120B", "nemotron_h", "120B", "12B", 40, 4096, 2688, 512, 22, 5376, 1024, 1, M_LAYERS},
    {"Nemotron-3 Ultra 550B", "nemotron_h", "550B", "55B", 48, 8192, 5120, 512, 22, 10240, 2048, 1, M_LAYERS},
    {"JetMoE-8B", "jetmoe", "8.5B", "2.2B", 24, 2048, 5632, 8, 2, 0, 0, 0, M_SIZES | M_TOTALS},
    {"Gemma-4-26B-A4B", "gemma4", "26B", "4B", 30, 2816, 704, 128, 8, 0, 0, 0, 0},
    {"Step-3", "step3", "321B", "38B", 56, 7168, 5120, 48, 3, 5120, 0, 0, M_LAYERS},
    {"Step-3.5-Flash", "step3p5", "196B", "11B", 42, 4096, 1280, 288, 8, 1280, 0, 0, 0},
    {"MiMo-V2-Flash", "mimo_v2_flash", "309B", "15B", 47, 4096, 2048, 256, 8, 0, 0, 0, 0},
    {"LFM2-8B-A1B", "lfm2_moe", "8.3B", "1.5B", 22, 2048, 1792, 32, 4, 0, 0, 0, M_TOTALS},
    {"Mistral Large 3", "mistral_large_3", "675B", "41B", 58, 7168, 4096, 128, 4, 4096, 0, 0, M_SIZES | M_TOTALS},
    {"Mistral Small 4", "mistral4", "119B", "6.5B", 36, 4096, 2048, 128, 4, 2048, 0, 0, M_TOTALS},
    {"A.X-K1", "axk1", "519B", "33B", 60, 7168, 2048, 192, 8, 2048, 0, 0, M_TOTALS},
    {"JoyAI-LLM-Flash", "joyai_llm_flash", "-", "-", 39, 2048, 768, 256, 8, 768, 0, 0, M_LAYERS},
    {"Pangu-Pro-MoE-72B-A16B", "PanguProMoE", "72B", "16B", 48, 5120, 1344, 64, 8, 5376, 0, 0, 0},
    {"Laguna XS.2", "laguna", "30B", "3B", 39, 2048, 512, 256, 8, 512, 0, 0, 0},
    {"Inkling", "inkling", "-", "-", 64, 6144, 3072, 256, 6, 6144, 0, 0, M_LAYERS},
};
// clang-format on

/* Weights of one layer's experts, router and latent projections: all of them, and those that one token reads. */
static void model_params(const model *m, uint64_t *all, uint64_t *active) {
    uint64_t matrices = m->ungated ? 2 : 3, in = m->latent ? m->latent : m->d_model;
    uint64_t one = matrices * in * m->d_ff,
             once = matrices * m->d_model * m->shared + (uint64_t)m->n_experts * m->d_model;
    if (m->latent) once += 2 * (uint64_t)m->latent * m->d_model;
    *all = m->n_experts * one + once, *active = m->top_k * one + once;
}

/* Bits of a weight, scales included. */
static double format_bits(uint32_t format) {
    static const uint32_t scale_bits[][3] = {{MOE_FORMAT_MXFP4_HF, 8, 32},
                                             {MOE_FORMAT_NVFP4_HF, 8, 16},
                                             {MOE_FORMAT_MXFP8, 8, 32},
                                             {MOE_FORMAT_FP8_BLOCK, 32, 128 * 128},
                                             {MOE_FORMAT_INT4_GROUP, 16, 128}};
    double bits = (double)moe_row_bytes(format, 256) * 8 / 256;
    for (size_t i = 0; i < sizeof scale_bits / sizeof *scale_bits; i++)
        if (scale_bits[i][0] == format) bits += (double)scale_bits[i][1] / scale_bits[i][2];
    return bits;
}

static int print_models(void) {
    static const uint32_t formats[] = {MOE_FORMAT_BF16, MOE_FORMAT_FP8_BLOCK, MOE_FORMAT_Q8_0,
                                       MOE_FORMAT_Q6_K, MOE_FORMAT_Q4_K,      MOE_FORMAT_MXFP4};
    printf("Parameters of the experts (routed and shared), routers and latent projections; MB that one token reads "
           "in all layers with\n"
           "experts, by format; FLOPs: of the dense layer as wide as all experts. * from memory, not from a released "
           "file.\n\n"
           "%-24s %-20s %7s %8s %6s %5s %3s %7s %9s %9s %9s %9s %8s %8s",
           "model", "preset", "layers", "d_model", "d_ff", "E", "k", "shared", "a layer", "active", "all", "active",
           "model", "active");
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) printf(" %9s", moe_format_name(formats[i]));
    printf(" %7s\n", "FLOPs");
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        const model *m = &models[i];
        uint64_t all, active;
        moe_desc d;
        memset(&d, 0, sizeof d);
        if (moe_preset(&d, m->preset)) return fail("%s: no preset %s", m->name, m->preset);
        model_params(m, &all, &active);
        const char *sizes = m->marks & M_SIZES ? "*" : " ", *totals = m->marks & M_TOTALS ? "*" : " ";
        const char *layers = m->marks & (M_LAYERS | M_SIZES) ? "*" : " ";
        printf("%-24s %-20s %6" PRIu32 "%s %7" PRIu32 "%s %6" PRIu32 " %5" PRIu32 " %3" PRIu32 " %7" PRIu32, m->name,
               m->preset, m->layers, layers, m->d_model, sizes, m->d_ff, m->n_experts, m->top_k, m->shared);
        printf(" %8.3fB %8.3fB %8.1fB %8.2fB %7s%s %7s%s", (double)all * 1e-9, (double)active * 1e-9,
               (double)all * m->layers * 1e-9, (double)active * m->layers * 1e-9, m->total, totals, m->active,
               totals);
        for (size_t f = 0; f < sizeof formats / sizeof *formats; f++)
            printf(" %9.0f", (double)active * m->layers * format_bits(formats[f]) / 8e6);
        printf(" %6.1f%%\n", 100.0 * (double)active / (double)all);
    }
    return 0;
}

/* ---- Steps ---- */

static const ckpt_layer *pick_layer(run *r, const options *o) {
    const ckpt_layer *l = o->layer ? ckpt_layer_find(&r->layers, o->layer) : r->layers.n ? &r->layers.items[0] : NULL;
    if (l) return l;
    if (o->layer) fail("%s: layer %s has no experts", o->checkpoint, o->layer);
    else fail("%s: there is no layer with experts", o->checkpoint);
    return NULL;
}

/* From the checkpoint to a layer that can run. */
static int load_layer(run *r, const options *o, const ckpt_layer *l) {
    char err[CKPT_ERR];
    moe_error e;
    memset(&e, 0, sizeof e);
    if (ckpt_layer_desc(&r->model, l, &r->desc, &r->info, err)) return fail("%s: %s", o->checkpoint, err);
    if (o->format && quant_desc(&r->desc, o->format, &r->converted, err)) return fail("%s: %s", o->checkpoint, err);
    r->desc.compute = o->compute;
    if (o->tier < MOE_TIER_COUNT) {
        r->desc.tiers = moe_tier_mask(o->tier);
        if (o->tier == MOE_TIER_AMX) moe_enable_amx(); /* the kernel gives AMX to those that ask */
        if (!(moe_tiers() & MOE_TIER_BIT(o->tier)))
            return fail("tier %s: this machine or build does not have it", moe_tier_name(o->tier));
    }
    moe_status s = moe_layer_init(&r->layer, &r->desc, &e);
    return s ? fail_status(o->checkpoint, s, &e) : 0;
}

static int list(run *r, const options *o) {
    if (!r->layers.n) {
        printf("%s: no layer with experts among %zu tensors\n", o->checkpoint, r->model.n_tensors);
        if (!r->model.config.n) print_tensors(&r->model);
        return 0;
    }
    if (!r->model.is_gguf && !ckpt_get(&r->model, "model_type") && !ckpt_get(&r->model, "architectures")) {
        printf("%s: no config.json: %zu tensors\n", o->checkpoint, r->model.n_tensors);
        print_tensors(&r->model);
        return 0;
    }
    const ckpt_layer *l = pick_layer(r, o);
    if (!l || load_layer(r, o, l)) return 1;
    print_layers(&r->layers);
    print_pattern(&r->model);
    print_info(r, l);
    return 0;
}

static void print_stats(const run *r, double seconds) {
    moe_balance b;
    uint32_t n = r->layer.n_ids, most = 0;
    moe_stats_balance(&r->stats, n, &b);
    for (uint32_t i = 0; i < n; i++)
        if (r->stats.tokens[i] > r->stats.tokens[most]) most = i;
    printf("tokens %" PRIu64 ", slots %" PRIu64 ", dropped %" PRIu64 ", saved %" PRIu64 "; tier %s, %.3f ms\n",
           r->stats.n_tokens, r->stats.slots, r->stats.dropped, r->stats.saved,
           moe_tier_name(moe_layer_tier(&r->layer)), seconds * 1e3);
    printf("imbalance %.3f, variation %.3f, entropy %.3f, auxiliary loss %.4f, z loss %.4f\n", b.imbalance,
           b.variation, b.entropy, b.aux_loss, b.z_loss);
    for (uint32_t i = 0; i < n && r->stats.tokens[most]; i++) {
        int bar = (int)(r->stats.tokens[i] * 40 / r->stats.tokens[most]);
        printf("expert %4" PRIu32 " %8" PRIu64 " slots, weight %10.4f %.*s\n", i, r->stats.tokens[i],
               r->stats.weight[i], bar, "########################################");
    }
}

static double now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int execute(run *r, const options *o) {
    pool p;
    const ckpt_layer *l = pick_layer(r, o);
    if (!l || load_layer(r, o, l) || read_input(r, o) || make_output(r)) return 1;
    pool_start(&p, o->threads, NULL);
    moe_parallel parallel = pool_parallel(&p);
    double start = now();
    int failed = run_batches(r, o, o->threads > 1 ? &parallel : NULL);
    double seconds = now() - start;
    pool_stop(&p);
    if (failed) return 1;
    if (o->stats) print_stats(r, seconds);
    return write_output(r, o);
}

/* ---- Command line ---- */

static int parse_count(const char *option, const char *text, uint32_t most, uint32_t *out) {
    char *end;
    unsigned long v = *text >= '0' && *text <= '9' ? strtoul(text, &end, 10) : 0;
    if (!v || *end || v > most) return fail("%s %s: not a number from 1 to %" PRIu32, option, text, most);
    *out = (uint32_t)v;
    return 0;
}

static int parse_option(options *o, const char *name, const char *value) {
    if (!strcmp(name, "--layer")) o->layer = value;
    else if (!strcmp(name, "--input")) o->input = value;
    else if (!strcmp(name, "--output")) o->output = value;
    else if (!strcmp(name, "--threads")) return parse_count(name, value, 1024, &o->threads);
    else if (!strcmp(name, "--batch")) return parse_count(name, value, INT32_MAX, &o->batch);
    else if (!strcmp(name, "--compute")) {
        o->compute = moe_compute_by_name(value);
        if (o->compute == MOE_COMPUTE_COUNT || o->compute == MOE_COMPUTE_DEFAULT)
            return fail("--compute %s: not one of f32 bf16 q8", value);
    } else if (!strcmp(name, "--tier")) {
        o->tier = moe_tier_by_name(value);
        if (o->tier == MOE_TIER_COUNT) return fail("--tier %s: no such tier", value);
    } else if (!strcmp(name, "--format")) {
        o->format = moe_format_by_name(value);
        if (o->format == MOE_FORMAT_NONE) return fail("--format %s: no such format", value);
    } else return fail("unknown option %s", name);
    return 0;
}

static int parse(options *o, int argc, char **argv) {
    memset(o, 0, sizeof *o);
    o->threads = 1, o->compute = MOE_COMPUTE_F32, o->tier = MOE_TIER_COUNT;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--list")) o->list = 1;
        else if (!strcmp(argv[i], "--stats")) o->stats = 1;
        else if (!strcmp(argv[i], "--models")) o->models = 1;
        else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) o->help = 1;
        else if (argv[i][0] == '-') {
            if (i + 1 == argc) return fail("%s: unknown option, or its value is missing", argv[i]);
            if (parse_option(o, argv[i], argv[i + 1])) return 1;
            i++;
        } else if (o->checkpoint) return fail("%s: only one checkpoint", argv[i]);
        else o->checkpoint = argv[i];
    }
    if (o->models || o->help) return 0;
    if (!o->checkpoint) return fail("no checkpoint is given: --help says how to use it");
    if (!o->list && (!o->input || !o->output))
        return fail("%s is needed (or --list)", o->input ? "--output" : "--input");
    return 0;
}

int main(int argc, char **argv) {
    options o;
    char err[CKPT_ERR];
    static run r; /* zero */
    if (parse(&o, argc, argv)) return 1;
    if (o.help) return fputs(usage, stdout) < 0;
    if (o.models) return print_models();
    int status = ckpt_open(&r.model, o.checkpoint, err)      ? fail("%s", err)
                 : ckpt_layer_list(&r.model, &r.layers, err) ? fail("%s", err)
                                                             : 0;
    if (!status) status = o.list ? list(&r, &o) : execute(&r, &o);
    run_close(&r);
    if (fflush(stdout) || ferror(stdout)) status = 1;
    return status;
}
