/* generate.c - a small Mixtral that writes text: everything around moe.h that a language model needs

       cc -std=c11 -O2 -I. examples/generate.c -o build/generate -lm -lpthread
       build/generate --prompt "And it came to pass " --steps 300 --temperature 0.8

   The model reads bytes: a token is a byte, there is no tokenizer. Any Mixtral checkpoint with 256 tokens does, as
   a Hugging Face directory or as GGUF. A token passes through the layers as a row of d_model numbers, the residual
   stream x:

       x = embedding[byte]
       in every layer:   x += attention(norm(x))         which earlier bytes matter            (this file)
                         x += experts(norm(x))           2 of 8 feed-forward networks a byte   (moe.h)
       logits = head(norm(x))                            how likely each byte is to come next

   The attention's matrices are widened to f32 when the model is loaded; the experts, which are nearly all of the
   model, stay in the mapped file as they are. All sums run in one order, so the text does not depend on the number
   of threads, nor on whether bytes are processed one by one or as a batch. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "checkpoint.h"
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "pool.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VOCAB = 256, MAX_CONTEXT = 4096, WINDOW = 256, ERR = 600 };

/* ---- The model ----------------------------------------------------------------------------------------------- */

typedef struct config {
    uint32_t n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff, n_experts, top_k, context;
    float rope_theta, norm_eps;
} config;

typedef struct block {       /* one layer; matrices are [out][in] */
    float *attn_norm;        /* [d_model] */
    float *q;                /* [n_heads * head_dim][d_model] */
    float *k, *v;            /* [n_kv_heads * head_dim][d_model] */
    float *o;                /* [d_model][n_heads * head_dim] */
    float *moe_norm;         /* [d_model] */
    const void **experts[3]; /* [n_experts] where each expert's gate, up and down lie in the file */
    moe_layer moe;
} block;

typedef struct model {
    ckpt file;
    config c;
    float *embedding, *out_norm, *head; /* [VOCAB][d_model], [d_model], [VOCAB][d_model] */
    block *blocks;                      /* [n_layers] */
    moe_counts moe;                     /* sum over the layers */
    uint64_t dense_params;              /* of everything else */
    char err[ERR];
} model;

typedef struct choice { /* what the command line may ask of moe.h */
    uint32_t compute, tiers;
} choice;

typedef enum tensor { EMBEDDING, OUT_NORM, HEAD, ATTN_NORM, WQ, WK, WV, WO, MOE_NORM, ROUTER, GATE, UP, DOWN } tensor;
// clang-format off
static const char *const tensor_names[][2] = {
    /* Hugging Face, one tensor an expert                           GGUF, one tensor for all experts */
    {"model.embed_tokens.weight",                                   "token_embd.weight"},
    {"model.norm.weight",                                           "output_norm.weight"},
    {"lm_head.weight",                                              "output.weight"},
    {"model.layers.%u.input_layernorm.weight",                      "blk.%u.attn_norm.weight"},
    {"model.layers.%u.self_attn.q_proj.weight",                     "blk.%u.attn_q.weight"},
    {"model.layers.%u.self_attn.k_proj.weight",                     "blk.%u.attn_k.weight"},
    {"model.layers.%u.self_attn.v_proj.weight",                     "blk.%u.attn_v.weight"},
    {"model.layers.%u.self_attn.o_proj.weight",                     "blk.%u.attn_output.weight"},
    {"model.layers.%u.post_attention_layernorm.weight",             "blk.%u.ffn_norm.weight"},
    {"model.layers.%u.block_sparse_moe.gate.weight",                "blk.%u.ffn_gate_inp.weight"},
    {"model.layers.%u.block_sparse_moe.experts.%u.w1.weight",       "blk.%u.ffn_gate_exps.weight"},
    {"model.layers.%u.block_sparse_moe.experts.%u.w3.weight",       "blk.%u.ffn_up_exps.weight"},
    {"model.layers.%u.block_sparse_moe.experts.%u.w2.weight",       "blk.%u.ffn_down_exps.weight"},
};
// clang-format on

/* Stores the message and returns -1. The first one stays: it is the cause. */
CKPT_PRINTF(2, 3) static int fail(model *m, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!m->err[0]) vsnprintf(m->err, sizeof m->err, format, args);
    va_end(args);
    return -1;
}

/* moe.h says which part of the layer is wrong ("gate", or "" for the layer itself), which field, and how. */
static int describe(char *to, size_t size, uint32_t layer, const moe_error *e) {
    const char *space = *e->part ? " " : "";
    return snprintf(to, size, "layer %u: %s%s%s: %s", layer, e->part, space, e->field, moe_status_text(e->status));
}

/* The tensor, if it is there and has the shape [rows][cols], or [cols] for one row, or [n_experts][rows][cols]
   if stacked. */
static const ckpt_tensor *find(model *m, tensor which, uint32_t layer, uint32_t expert, uint32_t rows,
                               uint32_t cols) {
    char name[128];
    uint64_t shape[3] = {m->c.n_experts, rows, cols};
    int gguf = m->file.is_gguf;
    uint32_t skip = gguf && which >= GATE ? 0 : rows > 1 ? 1 : 2;
    snprintf(name, sizeof name, tensor_names[which][gguf], layer, expert);
    const ckpt_tensor *t = ckpt_find(&m->file, name);
    if (!t) return fail(m, "tensor %s is missing", name), NULL;
    if (t->n_dims != 3 - skip || memcmp(t->dims, shape + skip, t->n_dims * sizeof *shape))
        return fail(m, "tensor %s is not of the size that the configuration says, %u x %u", name, rows, cols), NULL;
    return t;
}

static uint32_t format_of(model *m, const ckpt_tensor *t) {
    uint32_t format = moe_format_by_name(ckpt_type_name(t->type));
    if (!format)
        fail(m, "tensor %s has elements of type %s, which moe.h does not know", t->name, ckpt_type_name(t->type));
    return format;
}

/* A tensor of any format as f32, or NULL. */
static float *load_f32(model *m, tensor which, uint32_t layer, uint32_t rows, uint32_t cols) {
    const ckpt_tensor *t = find(m, which, layer, 0, rows, cols);
    if (!t) return NULL;
    moe_matrix w = {0};
    w.format = format_of(m, t);
    w.data = t->data;
    float *out = malloc((size_t)rows * cols * sizeof *out);
    if (!out) return fail(m, "no memory for %s", t->name), NULL;
    moe_status s = moe_dequantize(&w, 0, 1, rows, cols, 0, rows, out);
    if (s) fail(m, "tensor %s: %s", t->name, moe_status_text(s));
    m->dense_params += (uint64_t)rows * cols;
    return out;
}

/* The experts of a layer: pointers into the file, and what kind of router it is. */
static int load_experts(model *m, uint32_t layer, const choice *want) {
    const config *c = &m->c;
    block *b = &m->blocks[layer];
    moe_desc d = {0};
    moe_preset(&d, "mixtral");
    d.d_model = c->d_model, d.d_ff = c->d_ff, d.n_experts = c->n_experts, d.top_k = c->top_k;
    d.compute = want->compute, d.tiers = want->tiers;
    const ckpt_tensor *router = find(m, ROUTER, layer, 0, c->n_experts, c->d_model);
    if (!router) return -1;
    d.router.weight.data = router->data, d.router.weight.format = format_of(m, router);

    moe_matrix *matrices[3] = {&d.gate, &d.up, &d.down};
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t rows = i == MOE_DOWN ? c->d_model : c->d_ff, cols = i == MOE_DOWN ? c->d_ff : c->d_model;
        const void **pointers = b->experts[i] = calloc(c->n_experts, sizeof *pointers);
        if (!pointers) return fail(m, "no memory for the experts");
        for (uint32_t e = 0; e < c->n_experts; e++) {
            const ckpt_tensor *t = find(m, (tensor)(GATE + i), layer, e, rows, cols);
            if (!t) return -1;
            uint32_t format = format_of(m, t);
            if (e && format != matrices[i]->format)
                return fail(m, "tensor %s differs in type from expert 0", t->name);
            matrices[i]->format = format;
            pointers[e] = t->data + (m->file.is_gguf ? e * t->bytes / c->n_experts : 0);
        }
        matrices[i]->expert = pointers;
    }
    moe_error error;
    if (m->err[0]) return -1;
    if (moe_layer_init(&b->moe, &d, &error)) return describe(m->err, sizeof m->err, layer, &error), -1;
    moe_counts n;
    moe_layer_counts(&b->moe, &n);
    m->moe.params_total += n.params_total, m->moe.params_active += n.params_active;
    m->moe.flops_token += n.flops_token, m->moe.flops_dense += n.flops_dense;
    return 0;
}

static uint32_t setting(model *m, const char *hf, const char *gguf, uint64_t max, uint64_t fallback) {
    const char *key = m->file.is_gguf ? gguf : hf;
    uint64_t x = ckpt_get_u64(&m->file, key, fallback);
    if (!x || x > max) fail(m, "%s is %" PRIu64 ": it should be from 1 to %" PRIu64, key, x, max);
    return (uint32_t)x;
}

static int load_config(model *m) {
    const ckpt *f = &m->file;
    config *c = &m->c;
    const char *kind = ckpt_get_str(f, f->is_gguf ? "general.architecture" : "model_type", "?");
    if (strcmp(kind, f->is_gguf ? "llama" : "mixtral")) {
        char printable[64];
        return fail(m, "this program runs Mixtral models, not %s", ckpt_printable(printable, sizeof printable, kind));
    }
    if (setting(m, "vocab_size", "llama.vocab_size", UINT32_MAX, 0) != VOCAB)
        return fail(m, "the model needs a tokenizer: this program has none, its 256 tokens are the bytes");
    c->n_layers = setting(m, "num_hidden_layers", "llama.block_count", 1000, 0);
    c->d_model = setting(m, "hidden_size", "llama.embedding_length", 1 << 20, 0);
    c->n_heads = setting(m, "num_attention_heads", "llama.attention.head_count", 1 << 12, 0);
    c->n_kv_heads = setting(m, "num_key_value_heads", "llama.attention.head_count_kv", 1 << 12, c->n_heads);
    c->d_ff = setting(m, "intermediate_size", "llama.feed_forward_length", 1 << 20, 0);
    c->n_experts = setting(m, "num_local_experts", "llama.expert_count", 1 << 12, 0);
    c->top_k = setting(m, "num_experts_per_tok", "llama.expert_used_count", c->n_experts, 2);
    c->context = setting(m, "max_position_embeddings", "llama.context_length", UINT32_MAX, 512);
    if (m->err[0]) return -1;
    c->head_dim = setting(m, "head_dim", "llama.attention.key_length", 1 << 12, c->d_model / c->n_heads);
    if (c->head_dim % 2 || c->n_heads % c->n_kv_heads) return fail(m, "head sizes do not fit together");
    if (c->context > MAX_CONTEXT) c->context = MAX_CONTEXT; /* this is a small program */
    c->rope_theta = (float)ckpt_get_f64(f, f->is_gguf ? "llama.rope.freq_base" : "rope_theta", 10000.0);
    const char *eps = f->is_gguf ? "llama.attention.layer_norm_rms_epsilon" : "rms_norm_eps";
    c->norm_eps = (float)ckpt_get_f64(f, eps, 1e-5);
    return m->err[0] ? -1 : 0;
}

static int model_load(model *m, const char *path, const choice *want) {
    char err[CKPT_ERR];
    config *c = &m->c;
    memset(m, 0, sizeof *m);
    if (ckpt_open(&m->file, path, err)) return fail(m, "%s", err);
    if (load_config(m)) return -1;
    m->embedding = load_f32(m, EMBEDDING, 0, VOCAB, c->d_model);
    m->out_norm = load_f32(m, OUT_NORM, 0, 1, c->d_model);
    m->head = load_f32(m, HEAD, 0, VOCAB, c->d_model);
    m->blocks = calloc(c->n_layers, sizeof *m->blocks);
    if (!m->blocks) return fail(m, "no memory for %u layers", c->n_layers);
    for (uint32_t l = 0; l < c->n_layers && !m->err[0]; l++) {
        block *b = &m->blocks[l];
        uint32_t width = c->n_heads * c->head_dim, kv_width = c->n_kv_heads * c->head_dim;
        b->attn_norm = load_f32(m, ATTN_NORM, l, 1, c->d_model);
        b->q = load_f32(m, WQ, l, width, c->d_model);
        b->k = load_f32(m, WK, l, kv_width, c->d_model);
        b->v = load_f32(m, WV, l, kv_width, c->d_model);
        b->o = load_f32(m, WO, l, c->d_model, width);
        b->moe_norm = load_f32(m, MOE_NORM, l, 1, c->d_model);
        if (!m->err[0]) load_experts(m, l, want);
    }
    return m->err[0] ? -1 : 0;
}

static void model_free(model *m) {
    for (uint32_t l = 0; m->blocks && l < m->c.n_layers; l++) {
        block *b = &m->blocks[l];
        free(b->attn_norm), free(b->q), free(b->k), free(b->v), free(b->o), free(b->moe_norm);
        for (int i = 0; i < 3; i++) free((void *)b->experts[i]);
    }
    free(m->embedding), free(m->out_norm), free(m->head), free(m->blocks);
    ckpt_close(&m->file);
}

/* ---- A session: one text, its KV cache, and buffers for as many tokens as the context holds ------------------ */

/* Kinds of bytes, to see what experts care about. */
enum { VOWEL, CONSONANT, CAPITAL, SPACE, OTHER, N_KINDS };
static const char *const kind_names[N_KINDS] = {"vowels", "consonants", "capitals", "spaces", "other"};

typedef struct session {
    const model *m;
    pool workers;
    moe_parallel parallel;
    float *x, *h;         /* [context][d_model] the residual stream; what attention or experts read of it */
    float *q, *mixed;     /* [context][n_heads * head_dim] queries; the heads' results */
    float *weights;       /* [context][context] of a token: how much each earlier one matters to the current head */
    float *keys, *values; /* [n_layers][context][n_kv_heads * head_dim] */
    float *cosine, *sine; /* [context][head_dim / 2] */
    float *logits;        /* [context][VOCAB] */
    int32_t *ids;         /* [context][top_k] the experts of the current layer */
    void *workspace;      /* of moe.h */
    size_t workspace_size;
    moe_stats *stats;  /* [n_layers] */
    uint64_t *by_kind; /* [n_layers][N_KINDS][n_experts] slots */
    char err[ERR];
} session;

static void *session_array(session *s, size_t n, size_t size) {
    void *p = calloc(n, size);
    if (!p && !s->err[0]) snprintf(s->err, sizeof s->err, "no memory for %zu elements of %zu bytes", n, size);
    return p;
}

static void session_rope_table(session *s) {
    const config *c = &s->m->c;
    uint32_t half = c->head_dim / 2;
    for (uint32_t pos = 0; pos < c->context; pos++)
        for (uint32_t i = 0; i < half; i++) {
            double angle = pos * pow((double)c->rope_theta, -2.0 * i / c->head_dim);
            s->cosine[pos * half + i] = (float)cos(angle);
            s->sine[pos * half + i] = (float)sin(angle);
        }
}

static int session_start(session *s, const model *m, uint32_t n_threads) {
    const config *c = &m->c;
    size_t n = c->context, kv = (size_t)c->n_layers * n * c->n_kv_heads * c->head_dim;
    memset(s, 0, sizeof *s);
    s->m = m;
    pool_start(&s->workers, n_threads, NULL);
    s->parallel = pool_parallel(&s->workers);
    s->x = session_array(s, n * c->d_model, sizeof(float));
    s->h = session_array(s, n * c->d_model, sizeof(float));
    s->q = session_array(s, n * c->n_heads * c->head_dim, sizeof(float));
    s->mixed = session_array(s, n * c->n_heads * c->head_dim, sizeof(float));
    s->weights = session_array(s, n * n, sizeof(float));
    s->keys = session_array(s, kv, sizeof(float));
    s->values = session_array(s, kv, sizeof(float));
    s->cosine = session_array(s, n * c->head_dim / 2, sizeof(float));
    s->sine = session_array(s, n * c->head_dim / 2, sizeof(float));
    s->logits = session_array(s, n * VOCAB, sizeof(float));
    s->ids = session_array(s, n * c->top_k, sizeof(int32_t));
    s->stats = session_array(s, c->n_layers, sizeof *s->stats);
    s->by_kind = session_array(s, (size_t)c->n_layers * N_KINDS * c->n_experts, sizeof *s->by_kind);
    for (uint32_t l = 0; l < c->n_layers && s->stats; l++) {
        s->stats[l].tokens = session_array(s, c->n_experts, sizeof(uint64_t));
        size_t size = moe_workspace_size(&m->blocks[l].moe, n, s->workers.n_workers);
        if (size > s->workspace_size) s->workspace_size = size;
    }
    s->workspace = session_array(s, s->workspace_size, 1);
    if (s->err[0]) return -1;
    session_rope_table(s);
    return 0;
}

static void session_stop(session *s) {
    pool_stop(&s->workers);
    for (uint32_t l = 0; s->stats && l < s->m->c.n_layers; l++) free(s->stats[l].tokens);
    free(s->x), free(s->h), free(s->q), free(s->mixed), free(s->weights), free(s->keys), free(s->values);
    free(s->cosine), free(s->sine), free(s->logits), free(s->ids), free(s->workspace);
    free(s->stats), free(s->by_kind);
}

/* ---- Arithmetic ---------------------------------------------------------------------------------------------- */

/* Eight running sums, always added up in this order: the compiler may keep them in a vector, and nothing can
   change the result. */
static float dot(const float *a, const float *b, uint32_t n) {
    float sum[8] = {0}, tail = 0.0f;
    for (uint32_t i = 0; i < n / 8 * 8; i += 8)
        for (uint32_t j = 0; j < 8; j++) sum[j] += a[i + j] * b[i + j];
    for (uint32_t i = n / 8 * 8; i < n; i++) tail += a[i] * b[i];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7])) + tail;
}

/* y += w x */
static void add_scaled(float *restrict y, const float *restrict x, float w, uint32_t n) {
    for (uint32_t i = 0; i < n / 8 * 8; i += 8)
        for (uint32_t j = 0; j < 8; j++) y[i + j] += w * x[i + j];
    for (uint32_t i = n / 8 * 8; i < n; i++) y[i] += w * x[i];
}

/* y = w x, w [rows][cols] */
static void matvec(float *y, const float *w, const float *x, uint32_t rows, uint32_t cols) {
    for (uint32_t r = 0; r < rows; r++) y[r] = dot(w + (size_t)r * cols, x, cols);
}

static void rms_norm(float *y, const float *x, const float *weight, uint32_t n, float eps) {
    float scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static void softmax(float *x, uint32_t n) {
    float max = x[0], sum = 0.0f;
    for (uint32_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
    for (uint32_t i = 0; i < n; i++) sum += x[i] = expf(x[i] - max);
    for (uint32_t i = 0; i < n; i++) x[i] /= sum;
}

/* Turns pairs of numbers by an angle that grows with the position. Hugging Face pairs i with i + half; GGUF
   files of this architecture have the rows of q and k reordered, so that pairs are neighbours. */
static void rope(const session *s, float *head, uint32_t pos) {
    uint32_t half = s->m->c.head_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float *a = s->m->file.is_gguf ? &head[2 * i] : &head[i], *b = s->m->file.is_gguf ? a + 1 : a + half;
        float c = s->cosine[pos * half + i], sn = s->sine[pos * half + i], x = *a, y = *b;
        *a = x * c - y * sn;
        *b = x * sn + y * c;
    }
}

/* ---- The transformer: steps that handle one token each, so that tokens can be shared out to threads ---------- */

typedef struct step {
    session *s;
    uint32_t layer, pos, n; /* tokens at positions pos .. pos + n - 1 are rows 0 .. n - 1 of the buffers */
    void (*body)(const struct step *step, uint32_t t);
    uint32_t n_tasks;
} step;

static void step_task(void *arg, uint32_t i) {
    const step *st = (const step *)arg;
    uint32_t from = st->n * i / st->n_tasks, to = st->n * (i + 1) / st->n_tasks;
    for (uint32_t t = from; t < to; t++) st->body(st, t);
}

static void for_each_token(step st, void (*body)(const step *st, uint32_t t)) {
    st.body = body;
    st.n_tasks = st.n < 4 ? 1 : 4 * st.s->workers.n_workers; /* later tokens see more: small pieces even that out */
    pool_run(&st.s->workers, st.n_tasks, step_task, &st);
}

static float *cache_row(float *cache, const config *c, uint32_t layer, uint32_t pos) {
    return cache + ((size_t)layer * c->context + pos) * c->n_kv_heads * c->head_dim;
}

/* Queries, and the keys and values that this token leaves in the cache for all later ones. */
static void attention_project(const step *st, uint32_t t) {
    const session *s = st->s;
    const config *c = &s->m->c;
    const block *b = &s->m->blocks[st->layer];
    uint32_t d = c->d_model, width = c->n_heads * c->head_dim, kv_width = c->n_kv_heads * c->head_dim;
    uint32_t pos = st->pos + t;
    float *h = s->h + (size_t)t * d, *q = s->q + (size_t)t * width;
    float *key = cache_row(s->keys, c, st->layer, pos), *value = cache_row(s->values, c, st->layer, pos);
    rms_norm(h, s->x + (size_t)t * d, b->attn_norm, d, c->norm_eps);
    matvec(q, b->q, h, width, d);
    matvec(key, b->k, h, kv_width, d);
    matvec(value, b->v, h, kv_width, d);
    for (uint32_t i = 0; i < c->n_heads; i++) rope(s, q + i * c->head_dim, pos);
    for (uint32_t i = 0; i < c->n_kv_heads; i++) rope(s, key + i * c->head_dim, pos);
}

/* Every head looks at all tokens so far and mixes their values; several heads share one head of the cache. */
static void attention_mix(const step *st, uint32_t t) {
    const session *s = st->s;
    const config *c = &s->m->c;
    const block *b = &s->m->blocks[st->layer];
    uint32_t d = c->d_model, n = c->head_dim, width = c->n_heads * n, kv_width = c->n_kv_heads * n;
    uint32_t seen = st->pos + t + 1;
    const float *keys = cache_row(s->keys, c, st->layer, 0), *values = cache_row(s->values, c, st->layer, 0);
    float *w = s->weights + (size_t)t * c->context, *x = s->x + (size_t)t * d, *h = s->h + (size_t)t * d;
    for (uint32_t i = 0; i < c->n_heads; i++) {
        const float *q = s->q + (size_t)t * width + i * n;
        float *out = s->mixed + (size_t)t * width + i * n;
        uint32_t at = i / (c->n_heads / c->n_kv_heads) * n;
        for (uint32_t j = 0; j < seen; j++) w[j] = dot(q, keys + (size_t)j * kv_width + at, n) / sqrtf((float)n);
        softmax(w, seen);
        memset(out, 0, n * sizeof *out);
        for (uint32_t j = 0; j < seen; j++) add_scaled(out, values + (size_t)j * kv_width + at, w[j], n);
    }
    matvec(h, b->o, s->mixed + (size_t)t * width, d, width);
    for (uint32_t r = 0; r < d; r++) x[r] += h[r];
    rms_norm(h, x, b->moe_norm, d, c->norm_eps); /* what the experts read */
}

/* The feed-forward half: x += experts(h). All tokens in one call, so each expert is read once. */
static int experts(session *s, uint32_t layer, uint32_t n) {
    moe_io io = {0};
    moe_error error;
    io.x = s->h, io.y = s->x, io.y_add = 1;
    io.x_type = io.y_type = MOE_TYPE_F32;
    io.n_tokens = n;
    io.ids_out = s->ids;
    io.stats = &s->stats[layer];
    io.workspace = s->workspace, io.workspace_size = s->workspace_size;
    io.parallel = &s->parallel, io.n_tasks = s->workers.n_workers;
    io.error = &error;
    if (!moe_forward(&s->m->blocks[layer].moe, &io)) return 0;
    describe(s->err, sizeof s->err, layer, &error);
    return -1;
}

static void predict(const step *st, uint32_t t) {
    const session *s = st->s;
    const config *c = &s->m->c;
    float *h = s->h + (size_t)t * c->d_model;
    rms_norm(h, s->x + (size_t)t * c->d_model, s->m->out_norm, c->d_model, c->norm_eps);
    matvec(s->logits + (size_t)t * VOCAB, s->m->head, h, VOCAB, c->d_model);
}

static int kind_of(uint8_t byte) {
    if (byte == ' ' || byte == '\n') return SPACE;
    if (byte >= 'A' && byte <= 'Z') return CAPITAL;
    if (byte < 'a' || byte > 'z') return OTHER;
    return strchr("aeiou", byte) ? VOWEL : CONSONANT;
}

static void count_kinds(session *s, uint32_t layer, const uint8_t *tokens, uint32_t n) {
    const config *c = &s->m->c;
    uint64_t *counts = s->by_kind + (size_t)layer * N_KINDS * c->n_experts;
    for (uint32_t t = 0; t < n; t++)
        for (uint32_t i = 0; i < c->top_k; i++)
            counts[(uint32_t)kind_of(tokens[t]) * c->n_experts + (uint32_t)s->ids[t * c->top_k + i]]++;
}

static void embed(session *s, const uint8_t *tokens, uint32_t n) {
    size_t d = s->m->c.d_model;
    for (uint32_t t = 0; t < n; t++) memcpy(s->x + t * d, s->m->embedding + tokens[t] * d, d * sizeof(float));
}

static int layer(session *s, uint32_t l, const uint8_t *tokens, uint32_t n, uint32_t pos) {
    step st = {s, l, pos, n, NULL, 1};
    for_each_token(st, attention_project);
    for_each_token(st, attention_mix);
    if (experts(s, l, n)) return -1;
    count_kinds(s, l, tokens, n);
    return 0;
}

/* Runs n tokens that stand at pos, pos + 1, ...; logits row t says what follows token t. pos + n <= context. */
static int forward(session *s, const uint8_t *tokens, uint32_t n, uint32_t pos) {
    step st = {s, 0, pos, n, NULL, 1};
    embed(s, tokens, n);
    for (uint32_t l = 0; l < s->m->c.n_layers; l++)
        if (layer(s, l, tokens, n, pos)) return -1;
    for_each_token(st, predict);
    return 0;
}

/* ---- Choosing the next byte ---------------------------------------------------------------------------------- */

typedef struct sampler {
    float temperature, top_p; /* temperature 0: always the most likely byte */
    uint64_t seed;
} sampler;

static double uniform(uint64_t *state) { /* splitmix64: [0, 1) */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

/* Draws from the most likely bytes that together have the probability top_p. */
static uint8_t sample(sampler *sm, const float *logits) {
    float p[VOCAB];
    uint8_t order[VOCAB];
    for (uint32_t i = 0; i < VOCAB; i++) { /* insertion sort, largest first, ties by value */
        uint32_t at = i;
        for (; at && logits[order[at - 1]] < logits[i]; at--) order[at] = order[at - 1];
        order[at] = (uint8_t)i;
    }
    if (sm->temperature <= 0.0f) return order[0];
    for (uint32_t i = 0; i < VOCAB; i++) p[i] = logits[order[i]] / sm->temperature;
    softmax(p, VOCAB);
    uint32_t kept = 0;
    double sum = 0.0;
    while (kept < VOCAB && (!kept || sum < (double)sm->top_p)) sum += (double)p[kept++];
    double r = uniform(&sm->seed) * sum;
    for (uint32_t i = 0; i < kept; i++)
        if ((r -= (double)p[i]) < 0.0) return order[i];
    return order[kept - 1];
}

/* ---- Writing and reading ------------------------------------------------------------------------------------- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

typedef struct timing {
    double prompt_s, generate_s;
    uint32_t n_prompt, n_generated;
} timing;

static void put_byte(void *user, uint8_t byte) {
    fputc(byte, (FILE *)user);
    fflush((FILE *)user); /* show text as it comes */
}

/* Continues a text by `steps` bytes, handing each to `emit`. When the context is full, its later half is read
   again from position 0, as one batch: the text can go on for ever. */
static int generate(session *s, const uint8_t *prompt, size_t n_prompt, uint32_t steps, sampler *sm,
                    void (*emit)(void *user, uint8_t byte), void *user, timing *tm) {
    uint32_t context = s->m->c.context, n = n_prompt < context ? (uint32_t)n_prompt : context - 1, pos = 0;
    uint8_t *text = calloc(context, 1);
    double start = now();
    int result = -1;
    if (!text) return snprintf(s->err, sizeof s->err, "no memory for the text"), -1;
    memcpy(text, prompt + (n_prompt - n), n); /* of a prompt longer than the context, its end */
    memset(tm, 0, sizeof *tm);
    if (forward(s, text, n, 0)) goto done;
    tm->n_prompt = n, tm->prompt_s = now() - start;
    start = now();
    for (pos = n - 1; tm->n_generated < steps; tm->n_generated++) {
        /* the last row of what was just run: the whole text, or one byte */
        uint8_t byte = sample(sm, s->logits + (size_t)(n - 1) * VOCAB);
        emit(user, byte);
        text[++pos] = byte, n = 1;
        if (pos == context - 1) {
            n = context / 2, pos = n - 1;
            memmove(text, text + context - n, n);
        }
        if (tm->n_generated + 1 < steps && forward(s, text + pos + 1 - n, n, pos + 1 - n)) goto done;
    }
    tm->generate_s = now() - start;
    result = 0;
done:
    free(text);
    return result;
}

/* -log of the probability that the logits give to a byte */
static double surprise(const float *logits, uint8_t byte) {
    double max = (double)logits[0], sum = 0.0;
    for (uint32_t i = 1; i < VOCAB; i++) max = (double)logits[i] > max ? (double)logits[i] : max;
    for (uint32_t i = 0; i < VOCAB; i++) sum += exp((double)logits[i] - max);
    return log(sum) + max - (double)logits[byte];
}

static void progress(FILE *to, size_t done, size_t of, double nats, double seconds) {
    char bar[41];
    size_t filled = of ? done * (sizeof bar - 1) / of : 0;
    memset(bar, '.', sizeof bar - 1);
    memset(bar, '#', filled);
    bar[sizeof bar - 1] = 0;
    fprintf(to, "\r[%s] %zu/%zu windows, %.4f nats/byte, %.1f s", bar, done, of, nats, seconds);
    if (done == of) fputc('\n', to);
    fflush(to);
}

/* How surprised the model is by a text, in nats per byte: windows of 256 bytes that do not overlap, each from an
   empty cache; the target is always the next byte, that of a window's last position is the next window's first. */
static int evaluate(session *s, const uint8_t *text, size_t size, FILE *bar, double *nats, size_t *n_predictions) {
    size_t window = s->m->c.context < WINDOW ? s->m->c.context : WINDOW, n_windows = size ? (size - 1) / window : 0;
    double sum = 0.0, start = now();
    if (!n_windows) return snprintf(s->err, sizeof s->err, "a text of at least %zu bytes is needed", window + 1), -1;
    for (size_t w = 0; w < n_windows; w++) {
        const uint8_t *from = text + w * window;
        if (forward(s, from, (uint32_t)window, 0)) return -1;
        for (size_t i = 0; i < window; i++) sum += surprise(s->logits + i * VOCAB, from[i + 1]);
        if (bar) progress(bar, w + 1, n_windows, sum / (double)((w + 1) * window), now() - start);
    }
    *n_predictions = n_windows * window;
    *nats = sum / (double)*n_predictions;
    return 0;
}

/* ---- Reports ------------------------------------------------------------------------------------------------- */

static int utf8_terminal(void) {
    const char *names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (int i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        if (value && *value) return strstr(value, "UTF-8") || strstr(value, "utf8") || strstr(value, "utf-8");
    }
    return 0;
}

static void draw_bar(double share, double full, int cells) {
    static const char *const eighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    int n = full > 0.0 ? (int)(share / full * cells * 8 + 0.5) : 0, used = n / 8, utf8 = utf8_terminal();
    for (int i = 0; i < n / 8; i++) fputs(utf8 ? "█" : "#", stdout);
    if (n % 8 && utf8) fputs(eighths[n % 8], stdout), used++;
    else if (n % 8 >= 4) fputc('-', stdout), used++;
    printf("%*s", cells - used, "");
}

static double load_share(const moe_stats *st, uint32_t expert) {
    return st->slots ? (double)st->tokens[expert] / (double)st->slots : 0.0;
}

/* Four layers side by side, an expert a line. */
static void report_load(const session *s) {
    enum { COLUMNS = 4, CELLS = 8 };
    const config *c = &s->m->c;
    double full = 0.0;
    moe_balance balance[COLUMNS];
    for (uint32_t l = 0; l < c->n_layers; l++)
        for (uint32_t e = 0; e < c->n_experts; e++)
            full = load_share(&s->stats[l], e) > full ? load_share(&s->stats[l], e) : full;
    printf("\nExpert load: share of the (byte, expert) pairs; an even share is %.1f %%\n", 100.0 / c->n_experts);
    for (uint32_t first = 0; first < c->n_layers; first += COLUMNS) {
        uint32_t n = c->n_layers - first < COLUMNS ? c->n_layers - first : COLUMNS;
        printf("%-11s", "");
        for (uint32_t i = 0; i < n; i++) {
            moe_stats_balance(&s->stats[first + i], c->n_experts, &balance[i]);
            printf("layer %-11u", first + i);
        }
        for (uint32_t e = 0; e < c->n_experts; e++) {
            printf("\nexpert %-3u ", e);
            for (uint32_t i = 0; i < n; i++) {
                draw_bar(load_share(&s->stats[first + i], e), full, CELLS);
                printf(" %4.1f%%   ", 100.0 * load_share(&s->stats[first + i], e));
            }
        }
        printf("\nimbalance  ");
        for (uint32_t i = 0; i < n; i++) printf("%-17.3f", balance[i].imbalance);
        printf("  largest / mean: 1 is even\nentropy    ");
        for (uint32_t i = 0; i < n; i++) printf("%-17.3f", balance[i].entropy);
        printf("  1 is even, 0 a single expert\n");
    }
}

/* What knowing the expert tells about the kind of byte: mutual information / entropy of the kinds, 0 .. 1, less
   what few bytes make up by chance (Miller and Madow). */
static double specialisation(const uint64_t *counts, uint32_t n_experts) {
    double total = 0.0, shared = 0.0, entropy = 0.0;
    for (uint32_t i = 0; i < N_KINDS * n_experts; i++) total += (double)counts[i];
    for (uint32_t k = 0; k < N_KINDS; k++) {
        double of_kind = 0.0;
        for (uint32_t e = 0; e < n_experts; e++) of_kind += (double)counts[k * n_experts + e];
        if (of_kind > 0.0) entropy -= of_kind / total * log(of_kind / total);
        for (uint32_t e = 0; e < n_experts; e++) {
            double both = (double)counts[k * n_experts + e], of_expert = 0.0;
            for (uint32_t j = 0; j < N_KINDS; j++) of_expert += (double)counts[j * n_experts + e];
            if (both > 0.0) shared += both / total * log(both * total / (of_kind * of_expert));
        }
    }
    if (total > 0.0) shared -= (N_KINDS - 1) * (n_experts - 1) / (2.0 * total);
    return entropy > 0.0 && shared > 0.0 ? shared / entropy : 0.0;
}

static const char *shade(double lift) { /* how much more often than usual an expert is chosen */
    static const char *const utf8[] = {"  ", "░░", "▒▒", "▓▓", "██"}, *const ascii[] = {"  ", "..", "--", "++", "##"};
    int i = lift < 0.4 ? 0 : lift < 0.8 ? 1 : lift < 1.25 ? 2 : lift < 2.0 ? 3 : 4;
    return utf8_terminal() ? utf8[i] : ascii[i];
}

static void report_kinds(const session *s) {
    const config *c = &s->m->c;
    printf(
        "\nWhich experts take which kinds of bytes, in %% of the kind. Shade: compared with the expert's share of\n"
        "all bytes (blank: under 0.4 times, %s under 0.8, %s about as usual, %s over 1.25, %s over 2).\n"
        "Specialised: how much of the kind an expert reveals. 0 %% = fuzzy, 100 %% = each kind has its own "
        "experts.\n",
        shade(0.5), shade(1.0), shade(1.5), shade(3.0));
    for (uint32_t l = 0; l < c->n_layers; l++) {
        const uint64_t *counts = s->by_kind + (size_t)l * N_KINDS * c->n_experts;
        printf("\nlayer %-6u", l);
        for (uint32_t e = 0; e < c->n_experts; e++) printf(" %4u  ", e);
        printf(" specialised: %.0f %%\n", 100.0 * specialisation(counts, c->n_experts));
        for (uint32_t k = 0; k < N_KINDS; k++) {
            double of_kind = 0.0;
            for (uint32_t e = 0; e < c->n_experts; e++) of_kind += (double)counts[k * c->n_experts + e];
            printf("%-12s", kind_names[k]);
            for (uint32_t e = 0; e < c->n_experts; e++) {
                double part = of_kind > 0.0 ? (double)counts[k * c->n_experts + e] / of_kind : 0.0;
                double usual = load_share(&s->stats[l], e);
                printf("%s %3.0f  ", shade(usual > 0.0 ? part / usual : 0.0), 100.0 * part);
            }
            printf("%s\n", of_kind > 0.0 ? "" : "(none)");
        }
    }
}

static void report_model(const session *s) {
    const model *m = s->m;
    const moe_layer *first = &m->blocks[0].moe;
    double flops = (double)m->moe.flops_token, dense = (double)m->moe.flops_dense;
    uint32_t n_threads = s->workers.n_workers;
    uint64_t total = m->dense_params + m->moe.params_total, active = m->dense_params + m->moe.params_active;
    printf("Parameters: %" PRIu64 " in all, %" PRIu64 " (%.1f %%) active for a byte. Experts per byte: %u of %u\n",
           total, active, 100.0 * (double)active / (double)total, m->c.top_k, m->c.n_experts);
    printf("MoE layers: %.2f MFLOP a byte, %.2f with all experts: %.1f %% saved\n", flops * 1e-6, dense * 1e-6,
           100.0 * (1.0 - flops / dense));
    printf("Tier %s, compute %s, %u thread%s\n", moe_tier_name(moe_layer_tier(first)),
           moe_compute_name(moe_layer_compute(first, MOE_UP)), n_threads, n_threads == 1 ? "" : "s");
}

/* ---- The command line ---------------------------------------------------------------------------------------- */

typedef struct options {
    const char *model, *prompt, *eval;
    uint32_t steps, threads, experts, quiet;
    sampler sampler;
    choice choice;
} options;

static const char usage[] =
    "usage: generate [options]\n"
    "  --model PATH       Hugging Face directory or GGUF file   (examples/models/kjv-moe-3m)\n"
    "  --prompt TEXT      what the text begins with             (\"In the beginning \")\n"
    "  --steps N          bytes to write                        (400)\n"
    "  --temperature X    0 = always the likeliest byte         (0.8)\n"
    "  --top-p X          draw from the likeliest bytes only    (0.95)\n"
    "  --greedy           the same as --temperature 0\n"
    "  --seed N           another text for every number         (1)\n"
    "  --threads N        the text does not depend on it        (number of processors, at most 4)\n"
    "  --eval FILE        instead of writing: how well the model predicts a text\n"
    "  --experts          also show which experts take which kinds of bytes\n"
    "  --tier NAME        instruction set: c, avx2, avx512, ... (the best of this machine)\n"
    "  --compute NAME     arithmetic: f32, bf16, q8, default    (f32: the same text on every machine)\n"
    "  --quiet            the text only\n";

static int parse_number(const char *name, const char *text, double min, double max, double *value) {
    char *end;
    *value = strtod(text, &end);
    if (end != text && !*end && *value >= min && *value <= max) return 0;
    fprintf(stderr, "generate: %s %s: a number from %g to %g is needed\n", name, text, min, max);
    return -1;
}

static int parse_tier(const char *text, uint32_t *tiers) {
    uint32_t tier = moe_tier_by_name(text);
    if (tier < MOE_TIER_COUNT && moe_tiers() & MOE_TIER_BIT(tier)) {
        *tiers = moe_tier_mask(tier);
        return 0;
    }
    fprintf(stderr, "generate: --tier %s: this program and machine have", text);
    for (uint32_t i = 0; i < MOE_TIER_COUNT; i++)
        if (moe_tiers() & MOE_TIER_BIT(i)) fprintf(stderr, " %s", moe_tier_name(i));
    fputc('\n', stderr);
    return -1;
}

static int parse_compute(const char *text, uint32_t *compute) {
    *compute = moe_compute_by_name(text);
    if (*compute < MOE_COMPUTE_COUNT) return 0;
    fprintf(stderr, "generate: --compute %s: there are f32, bf16, q8 and default\n", text);
    return -1;
}

static int parse_value(options *o, const char *name, const char *text) {
    double x = 0.0;
    int bad = 0;
    if (!strcmp(name, "--model")) o->model = text;
    else if (!strcmp(name, "--prompt")) o->prompt = text;
    else if (!strcmp(name, "--eval")) o->eval = text;
    else if (!strcmp(name, "--tier")) bad = parse_tier(text, &o->choice.tiers);
    else if (!strcmp(name, "--compute")) bad = parse_compute(text, &o->choice.compute);
    else if (!strcmp(name, "--steps")) bad = parse_number(name, text, 0, 1e9, &x), o->steps = (uint32_t)x;
    else if (!strcmp(name, "--threads")) bad = parse_number(name, text, 1, 256, &x), o->threads = (uint32_t)x;
    else if (!strcmp(name, "--temperature"))
        bad = parse_number(name, text, 0, 100, &x), o->sampler.temperature = (float)x;
    else if (!strcmp(name, "--top-p")) bad = parse_number(name, text, 0, 1, &x), o->sampler.top_p = (float)x;
    else if (!strcmp(name, "--seed")) bad = parse_number(name, text, 0, 9e15, &x), o->sampler.seed = (uint64_t)x;
    else return fprintf(stderr, "generate: unknown option %s\n%s", name, usage), -1;
    return bad;
}

/* 0, 1 = nothing to do, -1 = wrong */
static int parse_options(options *o, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "--help") || !strcmp(name, "-h")) return fputs(usage, stdout), 1;
        if (!strcmp(name, "--greedy")) o->sampler.temperature = 0.0f;
        else if (!strcmp(name, "--experts")) o->experts = 1;
        else if (!strcmp(name, "--quiet")) o->quiet = 1;
        else if (i + 1 == argc)
            return fprintf(stderr, "generate: %s: unknown, or without its value\n%s", name, usage), -1;
        else if (parse_value(o, name, argv[++i])) return -1;
    }
    return 0;
}

static uint8_t *read_file(const char *path, size_t *size, char *err, size_t err_size) {
    FILE *f = fopen(path, "rb");
    uint8_t *data = NULL, *more;
    size_t room = 0, n = 0;
    if (!f) return snprintf(err, err_size, "%s: %s", path, strerror(errno)), NULL;
    for (;;) {
        if (n == room) {
            room = room ? room * 2 : 1 << 16;
            if (!(more = realloc(data, room))) break;
            data = more;
        }
        size_t got = fread(data + n, 1, room - n, f);
        if (!got) break;
        n += got;
    }
    if (ferror(f) || n == room) {
        snprintf(err, err_size, "%s: %s", path, ferror(f) ? strerror(errno) : "no memory");
        free(data);
        data = NULL;
    }
    fclose(f);
    *size = n;
    return data;
}

static int run_eval(session *s, const options *o) {
    size_t size, n;
    double nats, start = now();
    uint8_t *text = read_file(o->eval, &size, s->err, sizeof s->err);
    if (!text) return -1;
    int bad = evaluate(s, text, size, o->quiet ? NULL : stderr, &nats, &n);
    free(text);
    if (bad) return -1;
    printf("%.7f nats/byte = %.4f bits/byte over %zu predictions, %.0f bytes/s\n", nats, nats / log(2.0), n,
           (double)n / (now() - start));
    return 0;
}

static int run_generate(session *s, options *o) {
    timing tm;
    const char *prompt = *o->prompt ? o->prompt : "\n"; /* verses follow a newline */
    fputs(o->prompt, stdout);
    fflush(stdout);
    if (generate(s, (const uint8_t *)prompt, strlen(prompt), o->steps, &o->sampler, put_byte, stdout, &tm)) return -1;
    putchar('\n');
    if (!o->quiet)
        printf("\nSpeed: writing %.0f tokens/s (%u), reading %.0f tokens/s (%u)\n", tm.n_generated / tm.generate_s,
               tm.n_generated, tm.n_prompt / tm.prompt_s, tm.n_prompt);
    return 0;
}

#ifndef GENERATE_NO_MAIN
int main(int argc, char **argv) {
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    options o = {"examples/models/kjv-moe-3m", "In the beginning ", NULL, 400, 1, 0, 0, {0.8f, 0.95f, 1},
                 {MOE_COMPUTE_F32, 0}};
    model m;
    session s;
    o.threads = processors < 1 ? 1 : processors > 4 ? 4 : (uint32_t)processors;
    int parsed = parse_options(&o, argc, argv);
    if (parsed) return parsed < 0;
    if (model_load(&m, o.model, &o.choice)) {
        fprintf(stderr, "generate: %s\n", m.err);
        model_free(&m);
        return 1;
    }
    int bad = session_start(&s, &m, o.threads);
    if (!bad) bad = o.eval ? run_eval(&s, &o) : run_generate(&s, &o);
    if (bad) fprintf(stderr, "%sgenerate: %s\n", o.eval ? "" : "\n", s.err);
    if (!bad && !o.quiet) {
        report_model(&s);
        report_load(&s);
    }
    if (!bad && o.experts) report_kinds(&s);
    session_stop(&s);
    model_free(&m);
    return bad != 0;
}
#endif
