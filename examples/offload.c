/* offload.c - experts that do not fit into memory: read when a token needs them, kept while there is room

       cc -std=c11 -O2 -I. examples/offload.c -o build/offload -lm -lpthread
       build/offload CHECKPOINT [--memory 1500K|200M|8G] [--steps N] [--tokens N] [--threads N] [--no-check]

   Runs all MoE layers of a checkpoint (safetensors or GGUF, any family that examples/checkpoint_layer.h knows) one
   after the other, x += experts(norm(x)), with no more memory for experts than --memory (usually a quarter of
   all):

      1. moe_route says which experts the tokens of a layer need.
      2. The tokens are split into calls whose experts fit into half of the cache. (Splitting does not change a bit.)
      3. A thread reads the missing experts with pread, least recently used ones give way. While moe.h computes one
         call, the next call's experts are read; during the last, those that the next layer will probably need: its
         router is asked about this layer's input already, mostly rightly, as x changes little from layer to layer.
      4. moe_forward gets the ids and weights of step 1, and through io->experts where the experts are now.

   At the end the result is compared with that of the same layers in the mapped file: it must be the same, bit for
   bit. Scales and biases that lie apart from the weights stay in the mapped file, as do routers and shared experts.
   */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include "checkpoint.h"
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "checkpoint_layer.h"
#include "pool.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NONE UINT32_MAX

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int fail(const char *what, const char *why) {
    fprintf(stderr, "offload: %s%s%s\n", what, *what ? ": " : "", why);
    return -1;
}

/* ---- The layers, and where in which file each expert is ------------------------------------------------------ */

typedef struct span {
    int fd;
    uint64_t offset;
    size_t bytes;
} span;

typedef struct layer {
    ckpt_layer_info info;
    moe_layer moe; /* its matrices point to `mapped` */
    uint32_t n_experts;
    const void **mapped[3]; /* [n_experts] gate, up, down in the mapped file */
    span *spans[3];         /* [n_experts] the same, for pread */
    size_t at[3], bytes;    /* where in a cache entry each matrix begins; bytes of an entry */
} layer;

typedef struct network {
    ckpt file;
    int *fds; /* [n_shards] */
    layer *layers;
    uint32_t n_layers, d_model, most_experts, most_slots;
    size_t expert_bytes; /* of the largest expert of any layer */
    uint64_t all_bytes;  /* of all experts */
} network;

/* Bytes from the first to behind the last weight of one expert. */
static size_t matrix_bytes(const moe_matrix *m, size_t rows, size_t k) {
    size_t row = moe_row_bytes(m->format, k), element = moe_row_bytes(m->format, 1);
    size_t stride = m->row_stride ? m->row_stride : row;
    return (rows - 1) * stride + (m->k_stride ? (k - 1) * m->k_stride + element : row);
}

static int find_span(const network *net, const uint8_t *data, size_t bytes, span *to) {
    for (size_t i = 0; i < net->file.n_shards; i++) {
        const ckpt_shard *s = &net->file.shards[i];
        if ((uintptr_t)data < (uintptr_t)s->data || (uintptr_t)data >= (uintptr_t)s->data + s->size) continue;
        to->fd = net->fds[i], to->offset = (uint64_t)(data - s->data), to->bytes = bytes;
        return 0;
    }
    return fail("", "this checkpoint's weights must be repacked, so they cannot be read where they lie");
}

/* Notes where a matrix lies and makes the description point to it expert by expert. */
static int locate(network *net, layer *l, moe_matrix *m, uint32_t which, size_t rows, size_t k) {
    size_t bytes = matrix_bytes(m, rows, k), tight = rows * moe_row_bytes(m->format, k);
    size_t stride = m->expert_stride ? m->expert_stride : tight;
    l->mapped[which] = calloc(l->n_experts, sizeof *l->mapped[which]);
    l->spans[which] = calloc(l->n_experts, sizeof *l->spans[which]);
    if (!l->mapped[which] || !l->spans[which]) return fail("", "no memory");
    for (uint32_t e = 0; e < l->n_experts; e++) {
        const uint8_t *base = (const uint8_t *)(m->expert ? m->expert[e] : (const uint8_t *)m->data + e * stride);
        l->mapped[which][e] = base + m->offset;
        if (find_span(net, base + m->offset, bytes, &l->spans[which][e])) return -1;
    }
    m->data = NULL, m->expert = l->mapped[which], m->offset = 0;
    l->at[which] = l->bytes;
    l->bytes += (bytes + 63) & ~(size_t)63;
    return 0;
}

static int load_layer(network *net, const ckpt_layer *which, layer *l) {
    moe_desc d;
    moe_error error;
    char err[CKPT_ERR];
    if (ckpt_layer_desc(&net->file, which, &d, &l->info, err)) return fail("", err);
    if (l->info.needs_router_input || l->info.needs_token_ids || d.router.capacity || d.router.capacity_factor > 0.0f)
        return fail(which->name, "routes by more than the tokens' own numbers, which this program does not have");
    size_t width = d.latent.d ? d.latent.d : d.d_model;
    l->n_experts = d.n_experts;
    if (!d.ffn.ungated && locate(net, l, &d.gate, MOE_GATE, d.d_ff, width)) return -1;
    if (locate(net, l, &d.up, MOE_UP, d.d_ff, width) || locate(net, l, &d.down, MOE_DOWN, width, d.d_ff)) return -1;
    if (moe_layer_init(&l->moe, &d, &error)) return fail(error.field, moe_status_text(error.status));
    if (net->d_model && net->d_model != d.d_model)
        return fail(which->name, "has another width than the layers before");
    net->d_model = d.d_model;
    net->most_experts = d.n_experts > net->most_experts ? d.n_experts : net->most_experts;
    net->most_slots = d.top_k > net->most_slots ? d.top_k : net->most_slots;
    net->expert_bytes = l->bytes > net->expert_bytes ? l->bytes : net->expert_bytes;
    net->all_bytes += (uint64_t)l->bytes * d.n_experts;
    return 0;
}

static int network_load(network *net, const char *path) {
    char err[CKPT_ERR];
    ckpt_layers list = {0};
    memset(net, 0, sizeof *net);
    if (ckpt_open(&net->file, path, err)) return fail("", err);
    net->fds = malloc(net->file.n_shards * sizeof *net->fds);
    if (!net->fds) return fail("", "no memory");
    for (size_t i = 0; i < net->file.n_shards; i++) net->fds[i] = open(net->file.shards[i].path, O_RDONLY);
    for (size_t i = 0; i < net->file.n_shards; i++)
        if (net->fds[i] < 0) return fail(net->file.shards[i].path, strerror(errno));
    if (ckpt_layer_list(&net->file, &list, err)) return fail("", err);
    net->layers = calloc(list.n ? list.n : 1, sizeof *net->layers);
    int bad = net->layers ? 0 : fail("", "no memory");
    if (!bad && !list.n) bad = fail(path, "has no layers with experts");
    while (!bad && net->n_layers < list.n) {
        bad = load_layer(net, &list.items[net->n_layers], &net->layers[net->n_layers]);
        net->n_layers++; /* also one that failed: to be freed */
    }
    ckpt_layers_free(&list);
    return bad;
}

static void network_free(network *net) {
    for (uint32_t l = 0; l < net->n_layers; l++) {
        for (int i = 0; i < 3; i++) free((void *)net->layers[l].mapped[i]), free(net->layers[l].spans[i]);
        ckpt_layer_free(&net->layers[l].info);
    }
    for (size_t i = 0; net->fds && i < net->file.n_shards; i++)
        if (net->fds[i] >= 0) close(net->fds[i]);
    free(net->layers), free(net->fds);
    ckpt_close(&net->file);
}

/* ---- The cache: entries of one size, a thread that fills them ------------------------------------------------ */

enum { EMPTY, WANTED, READING, READY };

typedef struct entry {
    uint32_t layer, expert, state;
    uint32_t pins;  /* calls that need it now or next: it stays */
    uint32_t guess; /* 1: nobody has asked for it yet */
    uint64_t used;  /* when it was last asked for */
    uint8_t *data;
} entry;

typedef struct cache {
    const network *net;
    entry *entries;
    uint8_t *memory;
    uint32_t n;
    uint32_t *where; /* [n_layers][most_experts] entry, or NONE */
    uint64_t clock;
    pthread_mutex_t lock;
    pthread_cond_t wanted, ready;
    pthread_t reader;
    int started, stop, failed;
    /* figures */
    uint64_t asked, hits, foreseen, guesses, bytes;
    double read_s, wait_s;
} cache;

static uint32_t *cache_where(cache *c, uint32_t l, uint32_t expert) {
    return &c->where[(size_t)l * c->net->most_experts + expert];
}

static int read_span(const span *s, uint8_t *to) {
    for (size_t done = 0; done < s->bytes;) {
        ssize_t got = pread(s->fd, to + done, s->bytes - done, (off_t)(s->offset + done));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return fail("reading an expert", got ? strerror(errno) : "the file has become shorter");
        done += (size_t)got;
    }
    return 0;
}

/* What to read next: experts that a call waits for before guesses, in the order in which they were asked for. */
static entry *next_wanted(cache *c) {
    entry *best = NULL;
    for (uint32_t i = 0; i < c->n; i++) {
        entry *e = &c->entries[i];
        if (e->state != WANTED) continue;
        if (!best || e->guess < best->guess || (e->guess == best->guess && e->used < best->used)) best = e;
    }
    return best;
}

static void *reader_main(void *arg) {
    cache *c = (cache *)arg;
    pthread_mutex_lock(&c->lock);
    while (!c->stop) {
        entry *e = next_wanted(c);
        if (!e) {
            pthread_cond_wait(&c->wanted, &c->lock);
            continue;
        }
        const layer *l = &c->net->layers[e->layer];
        double start = now();
        int bad = 0;
        e->state = READING;
        pthread_mutex_unlock(&c->lock); /* nobody else touches an entry that is being read */
        for (int i = 0; i < 3 && !bad; i++)
            if (l->spans[i]) bad = read_span(&l->spans[i][e->expert], e->data + l->at[i]);
        pthread_mutex_lock(&c->lock);
        e->state = READY;
        c->failed |= bad;
        c->bytes += l->bytes;
        c->read_s += now() - start;
        pthread_cond_broadcast(&c->ready);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

/* Asks for an expert; 0 if every entry is in use just now. Under lock. */
static int cache_ask(cache *c, uint32_t l, uint32_t expert, uint32_t pin, uint32_t guess) {
    uint32_t at = *cache_where(c, l, expert);
    entry *e = at == NONE ? NULL : &c->entries[at];
    if (!guess && e) {
        c->hits++;
        c->foreseen += e->guess;
        e->guess = 0;
    }
    if (!e) {
        for (uint32_t i = 0; i < c->n; i++) { /* the least recently used one gives way */
            entry *v = &c->entries[i];
            if (v->pins || v->state == WANTED || v->state == READING) continue;
            if (!e || v->used < e->used) e = v;
        }
        if (!e) return 0;
        if (e->state == READY) *cache_where(c, e->layer, e->expert) = NONE;
        *cache_where(c, l, expert) = (uint32_t)(e - c->entries);
        e->layer = l, e->expert = expert, e->state = WANTED, e->guess = guess;
        c->guesses += guess;
        pthread_cond_signal(&c->wanted);
    }
    c->asked += !guess;
    e->pins += pin;
    e->used = ++c->clock;
    return 1;
}

static int cache_start(cache *c, const network *net, uint64_t memory) {
    size_t n_places = (size_t)net->n_layers * net->most_experts, n = (size_t)(memory / net->expert_bytes);
    memset(c, 0, sizeof *c);
    c->net = net;
    c->n = (uint32_t)(n < n_places ? n : n_places);
    if (c->n < net->most_slots) {
        fprintf(stderr, "offload: one token needs %u experts of %zu bytes at once: --memory is too small\n",
                net->most_slots, net->expert_bytes);
        return -1;
    }
    c->entries = calloc(c->n, sizeof *c->entries);
    c->memory = malloc(c->n * net->expert_bytes);
    c->where = malloc(n_places * sizeof *c->where);
    if (!c->entries || !c->memory || !c->where) return fail("", "no memory for the cache");
    for (uint32_t i = 0; i < c->n; i++) c->entries[i].data = c->memory + i * net->expert_bytes;
    for (size_t i = 0; i < n_places; i++) c->where[i] = NONE;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->wanted, NULL);
    pthread_cond_init(&c->ready, NULL);
    if (pthread_create(&c->reader, NULL, reader_main, c)) return fail("", "the reading thread could not be started");
    c->started = 1;
    return 0;
}

static void cache_stop(cache *c) {
    if (c->started) {
        pthread_mutex_lock(&c->lock);
        c->stop = 1;
        pthread_cond_signal(&c->wanted);
        pthread_mutex_unlock(&c->lock);
        pthread_join(c->reader, NULL);
    }
    free(c->entries), free(c->memory), free(c->where);
}

/* ---- Running ------------------------------------------------------------------------------------------------- */

typedef struct runner {
    const network *net;
    cache *c;
    pool workers;
    moe_parallel parallel;
    uint32_t n_tokens;
    float *x, *h;           /* [n_tokens][d_model] residual stream, and its norm */
    int32_t *ids, *guessed; /* [n_tokens][top_k] */
    float *weights;         /* [n_tokens][top_k] */
    uint8_t *needed[2];     /* [most_experts] by the current call, by the next one */
    const void **now[3];    /* [most_experts] where the experts are */
    void *workspace;
    size_t workspace_size;
} runner;

static void norm(float *h, const float *x, uint32_t d) {
    float sum = 0.0f;
    for (uint32_t i = 0; i < d; i++) sum += x[i] * x[i];
    float scale = 1.0f / sqrtf(sum / (float)d + 1e-6f);
    for (uint32_t i = 0; i < d; i++) h[i] = x[i] * scale;
}

static moe_io runner_io(const runner *r) {
    moe_io io = {0};
    io.x = r->h, io.y = r->x, io.y_add = 1;
    io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = r->n_tokens;
    io.workspace = r->workspace, io.workspace_size = r->workspace_size;
    io.n_tasks = r->workers.n_workers, io.parallel = &r->parallel;
    return io;
}

/* As many tokens from `from` on as need no more than `most` experts; marks those. Returns the end. */
static uint32_t collect(const runner *r, const layer *l, uint32_t from, uint32_t most, uint8_t *needed) {
    uint32_t k = l->moe.desc.top_k, n = 0, t = from;
    memset(needed, 0, r->net->most_experts);
    for (; t < r->n_tokens; t++) {
        const int32_t *ids = r->ids + (size_t)t * k;
        uint32_t more = 0;
        for (uint32_t i = 0; i < k; i++) more += ids[i] >= 0 && (uint32_t)ids[i] < l->n_experts && !needed[ids[i]];
        if (n + more > most && t > from) break;
        for (uint32_t i = 0; i < k; i++)
            if (ids[i] >= 0 && (uint32_t)ids[i] < l->n_experts) needed[ids[i]] = 1;
        n += more;
    }
    return t;
}

/* Asks for the marked experts and holds them. If all entries are busy, waits until the reader has finished
   something. */
static void ask_all(runner *r, uint32_t l, const uint8_t *needed) {
    pthread_mutex_lock(&r->c->lock);
    for (uint32_t e = 0; e < r->net->layers[l].n_experts; e++)
        while (needed[e] && !cache_ask(r->c, l, e, 1, 0)) pthread_cond_wait(&r->c->ready, &r->c->lock);
    pthread_mutex_unlock(&r->c->lock);
}

/* Waits for the marked experts and notes where they are; or lets go of them. */
static int wait_all(runner *r, uint32_t l, const uint8_t *needed) {
    cache *c = r->c;
    const layer *ly = &r->net->layers[l];
    double start = now();
    pthread_mutex_lock(&c->lock);
    for (uint32_t e = 0; e < ly->n_experts; e++) {
        for (int i = 0; i < 3; i++) r->now[i][e] = NULL; /* absent: moe.h would say so */
        if (!needed[e]) continue;
        entry *en = &c->entries[*cache_where(c, l, e)];
        while (en->state != READY) pthread_cond_wait(&c->ready, &c->lock);
        for (int i = 0; i < 3; i++) r->now[i][e] = en->data + ly->at[i];
    }
    int failed = c->failed;
    c->wait_s += now() - start;
    pthread_mutex_unlock(&c->lock);
    return failed ? -1 : 0;
}

static void release_all(runner *r, uint32_t l, const uint8_t *needed) {
    pthread_mutex_lock(&r->c->lock);
    for (uint32_t e = 0; e < r->net->layers[l].n_experts; e++)
        if (needed[e]) r->c->entries[*cache_where(r->c, l, e)].pins--;
    pthread_mutex_unlock(&r->c->lock);
}

/* The router of layer l on the input of the layer before. */
static int guess(runner *r, uint32_t l) {
    moe_io io = runner_io(r);
    const moe_desc *d = &r->net->layers[l].moe.desc;
    io.y = NULL, io.y_add = 0, io.ids_out = r->guessed;
    moe_status status = moe_route(&r->net->layers[l].moe, &io);
    if (status) return fail("moe_route", moe_status_text(status));
    pthread_mutex_lock(&r->c->lock);
    for (size_t i = 0; i < (size_t)r->n_tokens * d->top_k; i++)
        if (r->guessed[i] >= 0 && (uint32_t)r->guessed[i] < d->n_experts)
            cache_ask(r->c, l, (uint32_t)r->guessed[i], 0, 1);
    pthread_mutex_unlock(&r->c->lock);
    return 0;
}

/* Tokens from .. to of a layer, with ids and weights as routed and experts where they are now. */
static int call(runner *r, uint32_t l, uint32_t from, uint32_t to) {
    const moe_desc *d = &r->net->layers[l].moe.desc;
    moe_experts experts = {0};
    moe_io io = runner_io(r);
    for (int i = 0; i < 3; i++) experts.data[i] = r->now[i];
    io.x = r->h + (size_t)from * d->d_model, io.y = r->x + (size_t)from * d->d_model;
    io.n_tokens = to - from;
    io.ids_in = r->ids + (size_t)from * d->top_k, io.weights_in = r->weights + (size_t)from * d->top_k;
    io.experts = &experts;
    moe_status status = moe_forward(&r->net->layers[l].moe, &io);
    return status ? fail("moe_forward", moe_status_text(status)) : 0;
}

static int run_layer(runner *r, uint32_t l) {
    const layer *ly = &r->net->layers[l];
    uint32_t k = ly->moe.desc.top_k, most = r->c->n / 2 > k ? r->c->n / 2 : k, ahead = 2 * most <= r->c->n;
    moe_io io = runner_io(r);
    for (uint32_t t = 0; t < r->n_tokens; t++)
        norm(r->h + (size_t)t * r->net->d_model, r->x + (size_t)t * r->net->d_model, r->net->d_model);
    io.y = NULL, io.y_add = 0, io.ids_out = r->ids, io.weights_out = r->weights;
    moe_status status = moe_route(&ly->moe, &io);
    if (status) return fail("moe_route", moe_status_text(status));

    for (size_t i = 0; i < (size_t)r->n_tokens * k; i++)
        if (r->weights[i] == 0.0f) r->ids[i] = -1; /* dropped by the router: not worth reading */

    uint8_t *needed = r->needed[0], *next = r->needed[1];
    uint32_t from = 0, to = collect(r, ly, 0, most, needed), end;
    ask_all(r, l, needed);
    for (; from < r->n_tokens; from = to, to = end) {
        end = collect(r, ly, to, most, next);
        if (ahead) ask_all(r, l, next);
        if (to == r->n_tokens && l + 1 < r->net->n_layers && guess(r, l + 1)) return -1;
        if (wait_all(r, l, needed) || call(r, l, from, to)) return -1;
        release_all(r, l, needed);
        if (!ahead) ask_all(r, l, next);
        uint8_t *swap = needed;
        needed = next, next = swap;
    }
    return 0;
}

static int run_mapped_layer(runner *r, uint32_t l) {
    moe_io io = runner_io(r);
    for (uint32_t t = 0; t < r->n_tokens; t++)
        norm(r->h + (size_t)t * r->net->d_model, r->x + (size_t)t * r->net->d_model, r->net->d_model);
    moe_status status = moe_forward(&r->net->layers[l].moe, &io);
    return status ? fail("moe_forward", moe_status_text(status)) : 0;
}

static int runner_start(runner *r, const network *net, cache *c, uint32_t n_tokens, uint32_t n_threads) {
    size_t n = n_tokens;
    memset(r, 0, sizeof *r);
    r->net = net, r->c = c, r->n_tokens = n_tokens;
    pool_start(&r->workers, n_threads, NULL);
    r->parallel = pool_parallel(&r->workers);
    for (uint32_t l = 0; l < net->n_layers; l++) {
        size_t size = moe_workspace_size(&net->layers[l].moe, n, r->workers.n_workers);
        r->workspace_size = size > r->workspace_size ? size : r->workspace_size;
    }
    r->x = calloc(n * net->d_model, sizeof *r->x), r->h = calloc(n * net->d_model, sizeof *r->h);
    r->ids = calloc(n * net->most_slots, sizeof *r->ids),
    r->guessed = calloc(n * net->most_slots, sizeof *r->guessed);
    r->weights = calloc(n * net->most_slots, sizeof *r->weights);
    r->workspace = malloc(r->workspace_size);
    int ok = r->x && r->h && r->ids && r->guessed && r->weights && r->workspace;
    for (int i = 0; i < 2; i++) ok &= (r->needed[i] = calloc(net->most_experts, 1)) != NULL;
    for (int i = 0; i < 3; i++) ok &= (r->now[i] = calloc(net->most_experts, sizeof *r->now[i])) != NULL;
    return ok ? 0 : fail("", "no memory");
}

static void runner_stop(runner *r) {
    pool_stop(&r->workers);
    for (int i = 0; i < 2; i++) free(r->needed[i]);
    for (int i = 0; i < 3; i++) free((void *)r->now[i]);
    free(r->x), free(r->h), free(r->ids), free(r->guessed), free(r->weights), free(r->workspace);
}

/* Something like a text's next tokens: half new, half the same as at the step before. */
static void next_input(float *x, size_t n, uint32_t step) {
    uint32_t seed = step * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = 0.5f * x[i] + (float)(seed >> 8) / 16777216.0f - 0.5f;
    }
}

/* All steps through the cache; each compared with the mapped weights if asked for. */
static int run(runner *r, uint32_t n_steps, int check, double *seconds) {
    size_t n = (size_t)r->n_tokens * r->net->d_model;
    float *input = calloc(n, sizeof *input), *streamed = calloc(n, sizeof *streamed);
    int bad = input && streamed ? 0 : fail("", "no memory");
    for (uint32_t s = 0; s < n_steps && !bad; s++) {
        next_input(input, n, s);
        memcpy(r->x, input, n * sizeof *input);
        double start = now();
        for (uint32_t l = 0; l < r->net->n_layers && !bad; l++) bad = run_layer(r, l);
        *seconds += now() - start;
        if (!check || bad) continue;
        memcpy(streamed, r->x, n * sizeof *streamed);
        memcpy(r->x, input, n * sizeof *input);
        for (uint32_t l = 0; l < r->net->n_layers && !bad; l++) bad = run_mapped_layer(r, l);
        if (!bad && memcmp(streamed, r->x, n * sizeof *streamed))
            bad = fail("", "other bits than from the mapped file");
    }
    free(input), free(streamed);
    return bad;
}

/* ---- Report and command line --------------------------------------------------------------------------------- */

static void report(const runner *r, uint32_t n_steps, int check, double seconds) {
    const cache *c = r->c;
    double mib = 1.0 / 1048576.0, asked = c->asked ? (double)c->asked : 1.0;
    printf("Experts: %.2f MiB in %u layers; cache: %u experts of %zu bytes, %.2f MiB (%.0f %%)\n",
           (double)r->net->all_bytes * mib, r->net->n_layers, c->n, r->net->expert_bytes,
           (double)c->n * (double)r->net->expert_bytes * mib,
           100.0 * c->n * (double)r->net->expert_bytes / (double)r->net->all_bytes);
    printf("%u steps of %u tokens: %.1f tokens/s\n", n_steps, r->n_tokens, n_steps * r->n_tokens / seconds);
    printf("Asked for %" PRIu64
           " experts: %.1f %% were there or on their way (%.1f %% because they had been guessed)\n",
           c->asked, 100.0 * (double)c->hits / asked, 100.0 * (double)c->foreseen / asked);
    printf("Guessed %" PRIu64 " that were not there: %.0f %% of them right\n", c->guesses,
           c->guesses ? 100.0 * (double)c->foreseen / (double)c->guesses : 0.0);
    printf("Read %.2f MiB in %.3f s; computing waited for %.3f s\n", (double)c->bytes * mib, c->read_s, c->wait_s);
    if (check) printf("Every result has the same bits as from the mapped file.\n");
}

static uint64_t parse_bytes(const char *text) { /* 0 if it is no size */
    char *end;
    double x = strtod(text, &end);
    double unit = *end == 'K' ? 1024.0 : *end == 'M' ? 1048576.0 : *end == 'G' ? 1073741824.0 : 1.0;
    if (end == text || (*end && strchr("KMG", *end) && end[1]) || (*end && !strchr("KMG", *end))) return 0;
    return x >= 1.0 && x * unit < 1e18 ? (uint64_t)(x * unit) : 0;
}

typedef struct options {
    const char *path;
    uint64_t memory, steps, tokens, threads;
    int check;
} options;

static const char usage[] =
    "usage: offload CHECKPOINT [--memory BYTES|200M|8G] [--steps N] [--tokens N] [--threads N] [--no-check]\n";

static int parse_options(options *o, int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        uint64_t *number = !strcmp(argv[i], "--memory")    ? &o->memory
                           : !strcmp(argv[i], "--steps")   ? &o->steps
                           : !strcmp(argv[i], "--tokens")  ? &o->tokens
                           : !strcmp(argv[i], "--threads") ? &o->threads
                                                           : NULL;
        if (number && i + 1 < argc) *number = parse_bytes(argv[++i]);
        else if (!strcmp(argv[i], "--no-check")) o->check = 0;
        else if (argv[i][0] != '-' && !o->path) o->path = argv[i];
        else return fprintf(stderr, "offload: %s: unknown, or without its value\n%s", argv[i], usage), -1;
        if (number && (!*number || (number != &o->memory && *number > 100000)))
            return fprintf(stderr, "offload: %s %s: no such number\n", argv[i - 1], argv[i]), -1;
    }
    return o->path ? 0 : (fputs(usage, stderr), -1);
}

int main(int argc, char **argv) {
    options o = {NULL, 0, 64, 1, 2, 1};
    network net;
    cache c = {0};
    runner r = {0};
    double seconds = 0.0;
    if (argc == 2 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) return fputs(usage, stdout) < 0;
    if (parse_options(&o, argc, argv)) return 1;
    int bad = network_load(&net, o.path);
    uint64_t least = 2 * (uint64_t)net.most_slots * net.expert_bytes; /* with room to read ahead */
    if (!o.memory) o.memory = net.all_bytes / 4 > least ? net.all_bytes / 4 : least;
    if (!bad) bad = cache_start(&c, &net, o.memory);
    if (!bad) {
        bad = runner_start(&r, &net, &c, (uint32_t)o.tokens, (uint32_t)o.threads);
        if (!bad) bad = run(&r, (uint32_t)o.steps, o.check, &seconds);
        cache_stop(&c); /* the figures stand still from here on */
        if (!bad) report(&r, (uint32_t)o.steps, o.check, seconds);
        runner_stop(&r);
    } else cache_stop(&c);
    network_free(&net);
    return bad != 0;
}
