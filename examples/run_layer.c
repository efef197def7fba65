/* run_layer.c - runs one Mixture-of-Experts layer of a checkpoint on given inputs, or lists what a checkpoint holds

     run_layer CHECKPOINT [--layer N] --input IN.safetensors --output OUT.safetensors [--compute f32|bf16|q8] [--format NAME]
               [--tier NAME] [--threads N] [--batch N] [--stats]
     run_layer CHECKPOINT --list [--layer N]
     run_layer --models

   CHECKPOINT is a Hugging Face directory, an index.json, a .safetensors or a .gguf file. IN holds hidden_states F32 [T,d]; where
   the router reads something else router_input F32 [T,d]; for hash routing token_ids I32 [T]. OUT gets output F32 [T,d],
   router_logits F32 [T,rows], topk_ids I32 [T,k], topk_weights F32 [T,k]: nothing about tier, threads or batch, so equal results
   are equal files. Bad input: one line on stderr, exit status 1, and no output file.

     cc -O2 -I. -o run_layer examples/run_layer.c -lm -lpthread */

#include "checkpoint.h"
#define MOE_IMPLEMENTATION
#include "../moe.h"
#include "checkpoint_layer.h"
#include "quantize.h"
#include "models_table.h"
#include <pthread.h>
#include <time.h>

typedef struct options {
    const char *checkpoint, *layer, *input, *output;
    uint32_t compute, format, tier, threads, batch;
    int list, stats, models;
} options;

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
    snprintf(where, sizeof where, "%s%s%s", e->part ? e->part : "", e->part && e->field ? "." : "", e->field ? e->field : "");
    if (e->got || e->want)
        return fail("%s: %s: %s (%" PRIu64 ", wanted %" PRIu64 ")", what, where, moe_status_text(status), e->got, e->want);
    return fail("%s: %s%s%s", what, where, *where ? ": " : "", moe_status_text(status));
}

/* ---- A pool of threads that sleep between phases; the caller is worker 0 ---- */

typedef struct pool {
    pthread_mutex_t lock;
    pthread_cond_t start, done;
    pthread_t *threads;
    uint32_t n_threads, n, next, running;
    uint64_t round;
    int stop;
    void (*task)(void *arg, uint32_t i);
    void *arg;
} pool;

/* Takes tasks until none is left; called and returns with the lock held. */
static void pool_drain(pool *p) {
    while (p->next < p->n) {
        uint32_t i = p->next++;
        p->running++;
        pthread_mutex_unlock(&p->lock);
        p->task(p->arg, i);
        pthread_mutex_lock(&p->lock);
        p->running--;
    }
    if (!p->running) pthread_cond_signal(&p->done);
}

static void *pool_main(void *user) {
    pool *p = (pool *)user;
    uint64_t seen = 0;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->stop && p->round == seen) pthread_cond_wait(&p->start, &p->lock);
        if (p->stop) break;
        seen = p->round;
        pool_drain(p);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void pool_run(void *user, uint32_t n, void (*task)(void *arg, uint32_t i), void *arg) {
    pool *p = (pool *)user;
    pthread_mutex_lock(&p->lock);
    p->n = n, p->next = 0, p->task = task, p->arg = arg, p->round++;
    pthread_cond_broadcast(&p->start);
    pool_drain(p);
    while (p->running) pthread_cond_wait(&p->done, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void pool_close(pool *p) {
    pthread_mutex_lock(&p->lock);
    p->stop = 1;
    pthread_cond_broadcast(&p->start);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->n_threads; i++) pthread_join(p->threads[i], NULL);
    free(p->threads);
}

static int pool_open(pool *p, uint32_t workers) {
    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->start, NULL);
    pthread_cond_init(&p->done, NULL);
    p->threads = (pthread_t *)calloc(workers, sizeof *p->threads);
    if (!p->threads) return fail("out of memory");
    for (; p->n_threads + 1 < workers; p->n_threads++)
        if (pthread_create(&p->threads[p->n_threads], NULL, pool_main, p)) {
            pool_close(p);
            return fail("cannot start %" PRIu32 " threads", workers);
        }
    return 0;
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
    void *all[] = {r->token_ids, r->ids, r->copies[0], r->copies[1], r->y, r->logits, r->weights, r->workspace, r->stats.tokens,
                   r->stats.weight, r->stats.score};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

/* A tensor of the input file as f32 in this machine's order (files promise no alignment). */
static int read_floats(run *r, const char *name, int required, uint64_t width, const float **out, float **copy) {
    const ckpt_tensor *t = ckpt_find(&r->in, name);
    char have[96];
    *out = NULL;
    if (!t && required) return fail("%s: tensor %s is missing: this layer needs it", r->in.shards[0].name, name);
    if (!t) return 0;
    if (t->type != CKPT_F32 || t->n_dims != 2 || t->dims[1] != width || (*copy == r->copies[1] && r->copies[0] && t->dims[0] != r->n_tokens))
        return fail("%s: tensor %s is %s %s, not F32 [tokens,%" PRIu64 "]", r->in.shards[0].name, name, ckpt_type_name(t->type),
                    ckptl_dims_text(t->dims, t->n_dims, have, sizeof have), width);
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
    if (r->info.needs_router_input && read_floats(r, "router_input", 1, r->desc.d_model, &r->router_x, &r->copies[1])) return 1;
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
    if (!r->y || !r->logits || !r->ids || !r->weights || !r->stats.tokens || !r->stats.weight || !r->stats.score) return fail("out of memory");
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
        io.workspace_size = moe_workspace_min(&r->layer, step, o->threads) > (size_t)1 << 31 ? moe_workspace_min(&r->layer, step, o->threads)
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
    static const char *const keys[] = {
        "num_hidden_layers", "first_k_dense_replace", "moe_layer_freq", "decoder_sparse_step", "encoder_sparse_step", "mlp_only_layers",
        "interleave_moe_layer_step", "moe_layers", "expert_layer_period", "expert_layer_offset", "moe_layer_start_index",
        "moe_layer_end_index", "moe_layer_interval", "moe_layers_enum", "layers_block_type", "hybrid_override_pattern", "mlp_layer_types",
        "num_dense_layers", "n_dense_first_layers", "dense_mlp_idx", "num_hash_layers", "block_count", "leading_dense_block_count",
        "moe_every_n_layers"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        for (size_t j = 0; j < c->config.n; j++) {
            const ckpt_value *v = &c->config.items[j];
            size_t n = strlen(v->key), m = strlen(keys[i]);
            char text[96], shown[96];
            if (n < m || strcmp(v->key + n - m, keys[i]) || (n > m && v->key[n - m - 1] != '.') || strstr(v->key, "vision")) continue;
            if (v->type == CKPT_VALUE_ARRAY) snprintf(text, sizeof text, "a list of %" PRIu64, v->count);
            else if (v->type == CKPT_VALUE_NULL || v->type == CKPT_VALUE_OBJECT) continue;
            else ckptl_value_text(v, text, sizeof text);
            char key[128];
            printf("  %-40s %s\n", ckpt_printable(key, sizeof key, v->key), ckpt_printable(shown, sizeof shown, text));
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
    printf("  a call brings: hidden_states%s%s\n", r->info.needs_router_input ? ", router_input" : "", r->info.needs_token_ids ? ", token_ids" : "");
    printf("  parameters %" PRIu64 ", active %" PRIu64 "; bytes %" PRIu64 ", active %" PRIu64 "; FLOPs per token %" PRIu64 " of a dense %" PRIu64 "\n",
           c.params_total, c.params_active, c.bytes_total, c.bytes_active, c.flops_token, c.flops_dense);
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
        if (!(moe_tiers() & MOE_TIER_BIT(o->tier))) return fail("tier %s: this machine or build does not have it", moe_tier_name(o->tier));
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
    printf("tokens %" PRIu64 ", slots %" PRIu64 ", dropped %" PRIu64 ", saved %" PRIu64 "; tier %s, %.3f ms\n", r->stats.n_tokens, r->stats.slots,
           r->stats.dropped, r->stats.saved, moe_tier_name(moe_layer_tier(&r->layer)), seconds * 1e3);
    printf("imbalance %.3f, variation %.3f, entropy %.3f, auxiliary loss %.4f, z loss %.4f\n", b.imbalance, b.variation, b.entropy, b.aux_loss, b.z_loss);
    for (uint32_t i = 0; i < n && r->stats.tokens[most]; i++) {
        int bar = (int)(r->stats.tokens[i] * 40 / r->stats.tokens[most]);
        printf("expert %4" PRIu32 " %8" PRIu64 " slots, weight %10.4f %.*s\n", i, r->stats.tokens[i], r->stats.weight[i], bar,
               "########################################");
    }
}

static double now(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int execute(run *r, const options *o) {
    pool p;
    moe_parallel parallel = {pool_run, &p};
    const ckpt_layer *l = pick_layer(r, o);
    if (!l || load_layer(r, o, l) || read_input(r, o) || make_output(r)) return 1;
    if (o->threads > 1 && pool_open(&p, o->threads)) return 1;
    double start = now();
    int failed = run_batches(r, o, o->threads > 1 ? &parallel : NULL);
    double seconds = now() - start;
    if (o->threads > 1) pool_close(&p);
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
        if (o->compute == MOE_COMPUTE_COUNT || o->compute == MOE_COMPUTE_DEFAULT) return fail("--compute %s: not one of f32 bf16 q8", value);
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
        else if (!strncmp(argv[i], "--", 2)) {
            if (i + 1 == argc) return fail("%s: unknown option, or its value is missing", argv[i]);
            if (parse_option(o, argv[i], argv[i + 1])) return 1;
            i++;
        } else if (o->checkpoint) return fail("%s: only one checkpoint", argv[i]);
        else o->checkpoint = argv[i];
    }
    if (o->models) return 0;
    if (!o->checkpoint) return fail("usage: run_layer CHECKPOINT [--layer N] --input IN --output OUT [--compute C] [--format F] [--tier T] "
                                    "[--threads N] [--batch N] [--stats] | CHECKPOINT --list | --models");
    if (!o->list && (!o->input || !o->output)) return fail("%s is needed (or --list)", o->input ? "--output" : "--input");
    return 0;
}

int main(int argc, char **argv) {
    options o;
    char err[CKPT_ERR];
    static run r; /* zero */
    if (parse(&o, argc, argv)) return 1;
    if (o.models) return print_models();
    int status = ckpt_open(&r.model, o.checkpoint, err) ? fail("%s", err) : ckpt_layer_list(&r.model, &r.layers, err) ? fail("%s", err) : 0;
    if (!status) status = o.list ? list(&r, &o) : execute(&r, &o);
    run_close(&r);
    if (fflush(stdout) || ferror(stdout)) status = 1;
    return status;
}
