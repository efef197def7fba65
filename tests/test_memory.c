/* No byte outside of the given buffers is touched, and no input is written: random layers and calls whose every buffer (weights,
   scales, zero points, biases, rows, ids, logits, tables, statistics, workspace, even the structs) lies between pages without
   access, against its end or its start or one byte before its end; inputs are read-only. Results must be those of ordinary
   memory.
       test_memory [CASES [SEED]] */
#define _DEFAULT_SOURCE
#define MOE_IMPLEMENTATION
#include "moe.h"
#include <stdio.h>
#include <stdlib.h>
#include "oracle.h"
#include "random_layer.h"

static int passed, failed, skipped;
#define FAIL(...) (failed++, printf("FAIL "), printf(__VA_ARGS__), printf("\n"))
#define COUNT(a)  (sizeof(a) / sizeof((a)[0]))

#if defined(__unix__) || defined(__APPLE__)
#include <signal.h>
#include "guarded.h"

/* ---- buffers between guards ---- */

enum { AT_END, AT_START, ODD, PLACES }; /* ODD: one byte before the end, for what may have any alignment */
static guarded guards[4096];
static size_t n_guards, page;
static uint8_t *forbidden; /* a page without access */
static long n_buffers;
static rl_rng dice = {1};

static uint8_t *guard_at(size_t bytes, uint32_t place) {
    if (n_guards == COUNT(guards)) abort();
    n_buffers++;
    return (guards[n_guards++] = guarded_new(bytes + (place == ODD), place != AT_START)).data;
}
static uint8_t *guard_aligned(size_t bytes) { return guard_at(bytes, rl_below(&dice, 2)); }      /* as its size is */
static uint8_t *guarded_bytes(size_t bytes) { return guard_at(bytes, rl_below(&dice, PLACES)); } /* any alignment */
static void guards_protect(size_t from) { /* inputs are complete */
    for (size_t i = from; i < n_guards; i++) guarded_protect(&guards[i]);
}
static void guards_free(void) {
    while (n_guards) guarded_free(&guards[--n_guards]);
}
static void *guarded_copy(const void *from, size_t bytes) { return memcpy(guard_aligned(bytes), from, bytes); }

static char label[256]; /* of the case, for the handler */
static void on_fault(int sig, siginfo_t *info, void *context) {
    (void)context;
    printf("FAIL %s: signal %d, an access outside of the buffers (or a write to an input) at %p\n", label, sig,
           info->si_addr);
    printf("test_memory: %d passed, %d failed, %d skipped\n", passed, failed + 1, skipped);
    fflush(stdout);
    _exit(1);
}

/* ---- a desc whose every array is between guards ---- */

/* n pieces of `bytes`, `stride` apart in the source: as one buffer, or as a list of buffers, one each. */
static void move(const void **data, const void *const **expert, size_t offset, size_t *stride, const uint8_t *from,
                 size_t bytes, size_t step, size_t n) {
    if (n > 1 && rl_one_in(&dice, 2)) {
        const void **list = (const void **)(void *)guard_aligned(n * sizeof *list);
        for (size_t e = 0; e < n; e++)
            list[e] = (const uint8_t *)memcpy(guarded_bytes(bytes), from + e * step, bytes) - offset;
        *data = NULL, *expert = list;
        return;
    }
    *data = (const uint8_t *)memcpy(guarded_bytes((n - 1) * step + bytes), from, (n - 1) * step + bytes) - offset;
    *expert = NULL, *stride = step;
}
static void move_array(moe_array *a, size_t n_experts, size_t n) {
    size_t size, stride, step;
    if (!a->type) return;
    size = moei_type_bytes[a->type], stride = a->stride ? a->stride : size,
    step = a->expert_stride ? a->expert_stride : n * stride;
    move(&a->data, &a->expert, a->offset, &a->expert_stride, (const uint8_t *)a->data + a->offset,
         (n - 1) * stride + size, step, n_experts);
}
static void move_grid(moe_grid *g, const moei_side *s, size_t n_experts, size_t rows, size_t k) {
    size_t cols = s->cols >= k ? 1 : (k + s->cols - 1) / s->cols, lines = (rows + s->rows - 1) / s->rows;
    if (!g->type) return;
    move(&g->data, &g->expert, g->offset, &g->expert_stride, s->data,
         (lines - 1) * s->row_stride + cols * moei_type_bytes[g->type],
         g->expert_stride ? g->expert_stride : lines * s->row_stride, n_experts);
}
static void move_matrix(moe_matrix *m, size_t n_experts, size_t rows, size_t k) {
    moei_rows v;
    moei_side scale;
    if (!m->format) return;
    const uint8_t *from =
        (const uint8_t *)m->data + m->offset; /* random layers have data, and lists that point into it */
    m->expert = NULL;
    moei_view(m, NULL, MOE_UP, 0, rows, k, &v);
    scale = moei_scale_of(m, NULL, MOE_UP, 0, rows, k);
    size_t item = moei_layouts[m->format].bytes, tight = m->k_stride ? k * m->k_stride : rows * v.row_stride;
    size_t bytes =
        (rows - 1) * v.row_stride + (m->k_stride ? (k - 1) * m->k_stride + item : moe_row_bytes(m->format, k));
    move_grid(&m->zero, &v.zero, n_experts, rows, k);
    move_grid(&m->scale, &scale, n_experts, rows, k);
    move(&m->data, &m->expert, m->offset, &m->expert_stride, from, bytes, m->expert_stride ? m->expert_stride : tight,
         n_experts);
    move_array(&m->scale2, n_experts, 1);
    move_array(&m->bias, n_experts, rows);
}
static void move_desc(moe_desc *d) {
    size_t e = d->expert_count ? d->expert_count : d->n_experts, in = d->latent.d ? d->latent.d : d->d_model,
           ids = (size_t)d->n_experts + d->n_zero_experts;
    size_t rows = ids + (d->shared.gate_kind == MOE_SHARED_ROUTER_SINK ? d->shared.count : 0),
           shared = d->shared.count ? d->shared.count : 1;
    move_matrix(&d->gate, e, d->d_ff, in), move_matrix(&d->up, e, d->d_ff, in), move_matrix(&d->down, e, in, d->d_ff);
    move_matrix(&d->router.weight, 1, rows, d->d_model);
    move_array(&d->router.select_bias, 1, ids), move_array(&d->router.expert_scale, 1, ids),
        move_array(&d->router.input_scale, 1, d->d_model);
    move_matrix(&d->shared.gate, shared, d->shared.d_ff, d->d_model),
        move_matrix(&d->shared.up, shared, d->shared.d_ff, d->d_model);
    move_matrix(&d->shared.down, shared, d->d_model, d->shared.d_ff);
    move_matrix(&d->shared.gate_weight, 1, d->shared.gate_kind == MOE_SHARED_SOFTMAX2 ? 2 : 1, d->d_model);
    move_matrix(&d->latent.in, 1, in, d->d_model), move_matrix(&d->latent.out, 1, d->d_model, in),
        move_array(&d->latent.norm, 1, in);
    move_array(&d->ffn.out_bias, 1, d->d_model);
    if (d->router.table) {
        size_t stride = d->router.table_stride ? d->router.table_stride : d->top_k * (size_t)d->router.table_bytes;
        size_t bytes = (d->router.table_rows - 1) * stride + d->top_k * (size_t)d->router.table_bytes;
        d->router.table = memcpy(guarded_bytes(bytes), d->router.table, bytes);
    }
}

/* ---- one case ---- */

enum { FORWARD, GIVEN_IDS, GIVEN_LOGITS, SLOTS, ROUTE, PHASES, FINISH, N_WAYS };
static const char *const way_names[] = {"forward", "ids_in", "logits_in", "slots_out", "route", "phases", "finish"};
enum { VOCAB = 11, MAX_ROWS = 32 };

/* A call's buffers, and how many bytes each has; twice: in ordinary memory and between guards. */
typedef struct buffers {
    uint8_t *x, *y, *rx;
    float *logits_in, *logits_out, *weights_in, *weights_out, *slots, *sums;
    int32_t *ids_in, *ids_out, *tokens;
    moe_stats *stats;
} buffers;
typedef struct test_case {
    rl_layer l;
    moe_layer layer, moved;
    int way, in_place;
    size_t n, d, k, rows, ids, width, y_width;
    size_t x_bytes, y_bytes, id_bytes;
    moe_io io; /* types, strides, counts; no pointers */
    buffers plain, safe;
    uint8_t *start;
} test_case;

static void fill_rows(rl_rng *r, uint32_t type, uint8_t *p, size_t n, size_t d, size_t stride) {
    for (size_t i = 0; i < n * d; i++) {
        uint8_t *at = p + i / d * stride + i % d * (type == MOE_TYPE_F32 ? 4 : 2);
        float v = rl_gauss(r);
        uint16_t h = type == MOE_TYPE_BF16 ? moei_to_bf16(v) : moei_to_f16(v);
        if (type == MOE_TYPE_F32) memcpy(at, &v, 4);
        else memcpy(at, &h, 2);
    }
}

/* Inputs of a call in ordinary memory. */
static void fill_inputs(test_case *c, rl_rng *r) {
    buffers *b = &c->plain;
    b->x = (uint8_t *)rl_alloc(&c->l, c->x_bytes), b->y = (uint8_t *)rl_alloc(&c->l, c->y_bytes);
    fill_rows(r, c->io.x_type, b->x, c->n, c->d, c->io.x_stride);
    fill_rows(r, c->io.y_type, b->y, c->n, c->y_width, c->io.y_stride); /* y_add reads it */
    if (rl_one_in(r, 4)) {
        b->rx = (uint8_t *)rl_alloc(&c->l, c->x_bytes);
        fill_rows(r, c->io.x_type, b->rx, c->n, c->d, c->io.x_stride);
    }
    b->ids_out = (int32_t *)rl_alloc(&c->l, c->id_bytes), b->weights_out = (float *)rl_alloc(&c->l, c->id_bytes);
    b->logits_out = (float *)rl_alloc(&c->l, c->n * c->rows * 4);
    b->slots = (float *)rl_alloc(&c->l, c->n * c->k * c->width * 4);
    if (c->way == GIVEN_LOGITS || c->way == GIVEN_IDS) {
        b->logits_in = (float *)rl_alloc(&c->l, c->n * c->rows * 4);
        for (size_t i = 0; i < c->n * c->rows; i++) b->logits_in[i] = rl_gauss(r);
    }
    if (c->way == GIVEN_IDS) {
        b->ids_in = (int32_t *)rl_alloc(&c->l, c->id_bytes), b->weights_in = (float *)rl_alloc(&c->l, c->id_bytes);
        for (size_t i = 0; i < c->n * c->k; i++) {
            size_t at = i / c->k * c->io.ids_stride + i % c->k * 4;
            int32_t id = (int32_t)rl_below(r, (uint32_t)c->ids + 1) - 1;
            float w = rl_gauss(r);
            memcpy((uint8_t *)b->ids_in + at, &id, 4), memcpy((uint8_t *)b->weights_in + at, &w, 4);
        }
        if (rl_one_in(r, 2)) b->weights_in = NULL; /* then the router's */
    }
    if (c->way == FINISH) {
        b->sums = (float *)rl_alloc(&c->l, c->n * c->width * 4);
        for (size_t i = 0; i < c->n * c->width; i++) b->sums[i] = rl_gauss(r);
    }
    b->tokens = (int32_t *)rl_alloc(&c->l, c->n * 4);
    for (size_t i = 0; i < c->n; i++) b->tokens[i] = (int32_t)rl_below(r, VOCAB);
}

/* The same between guards: inputs read-only, outputs not. */
static void move_inputs(test_case *c) {
    const buffers *p = &c->plain;
    buffers *b = &c->safe;
    size_t from = n_guards;
    b->x = (uint8_t *)memcpy(guarded_bytes(c->x_bytes), p->x, c->x_bytes);
    if (p->rx) b->rx = (uint8_t *)memcpy(guarded_bytes(c->x_bytes), p->rx, c->x_bytes);
    if (p->logits_in) b->logits_in = (float *)guarded_copy(p->logits_in, c->n * c->rows * 4);
    if (p->ids_in) b->ids_in = (int32_t *)guarded_copy(p->ids_in, c->id_bytes);
    if (p->weights_in) b->weights_in = (float *)guarded_copy(p->weights_in, c->id_bytes);
    if (p->sums) b->sums = (float *)guarded_copy(p->sums, c->n * c->width * 4);
    b->tokens = (int32_t *)guarded_copy(p->tokens, c->n * 4);
    guards_protect(from);
    b->y = (uint8_t *)memcpy(guarded_bytes(c->y_bytes), p->y, c->y_bytes);
    if (c->in_place) memcpy(b->x = b->y, p->x, c->y_bytes);
    b->ids_out = (int32_t *)(void *)guard_aligned(c->id_bytes),
    b->weights_out = (float *)(void *)guard_aligned(c->id_bytes);
    b->logits_out = (float *)(void *)guard_aligned(c->n * c->rows * 4);
    b->slots = (float *)(void *)guard_aligned(c->n * c->k * c->width * 4);
    b->stats = (moe_stats *)(void *)guard_aligned(sizeof *b->stats);
    memset(b->stats, 0, sizeof *b->stats);
    b->stats->tokens = (uint64_t *)(void *)guard_aligned(c->ids * 8),
    b->stats->weight = (double *)(void *)guard_aligned(c->ids * 8);
    b->stats->score = (double *)(void *)guard_aligned(c->ids * 8);
}

static moe_io make_io(const test_case *c, const buffers *b) {
    moe_io io = c->io;
    io.x = b->x, io.y = b->y, io.router_x = b->rx, io.logits_in = b->logits_in, io.logits_out = b->logits_out;
    io.ids_in = b->ids_in, io.weights_in = b->weights_in, io.ids_out = b->ids_out, io.weights_out = b->weights_out;
    io.token_ids = b->tokens, io.stats = b->stats;
    if (c->way == SLOTS) io.slots_out = b->slots, io.y = NULL;
    if (c->way == ROUTE) io.y = NULL;
    return io;
}

static moe_status run(const test_case *c, const moe_layer *layer, const moe_io *io, const buffers *b) {
    moe_status status = MOE_OK;
    if (c->way == ROUTE) return moe_route(layer, io);
    if (c->way == FINISH) return moe_finish(layer, io, b->sums);
    if (c->way != PHASES) return moe_forward(layer, io);
    for (uint32_t p = 0, n = moe_phase_count(layer, io); p < n; p++)
        for (uint32_t i = io->n_tasks; i-- > 0 && !status;) status = moe_phase_run(layer, io, p, i, io->n_tasks);
    return status;
}

/* What the two runs gave. Between the rows of ids and weights nothing is written, so only rows are compared. */
static int same_outputs(const test_case *c) {
    const buffers *a = &c->plain, *b = &c->safe;
    int routed = c->way != FINISH, ok = 1;
    if (c->way != SLOTS && c->way != ROUTE) ok = ok && !memcmp(a->y, b->y, c->y_bytes);
    if (c->way == SLOTS) ok = ok && !memcmp(a->slots, b->slots, c->n * c->k * c->width * 4);
    for (size_t t = 0; t < c->n && routed; t++) {
        size_t at = t * c->io.ids_stride;
        ok = ok && !memcmp((uint8_t *)a->ids_out + at, (uint8_t *)b->ids_out + at, c->k * 4);
        ok = ok && !memcmp((uint8_t *)a->weights_out + at, (uint8_t *)b->weights_out + at, c->k * 4);
    }
    return ok;
}

static void poison(const test_case *c, const buffers *b) {
    memset(b->ids_out, 0xee, c->id_bytes), memset(b->weights_out, 0xee, c->id_bytes);
    memset(b->logits_out, 0xee, c->n * c->rows * 4), memset(b->slots, 0xee, c->n * c->k * c->width * 4);
    if (b->stats)
        memset(b->stats->tokens, 0, c->ids * 8), memset(b->stats->weight, 0, c->ids * 8),
            memset(b->stats->score, 0, c->ids * 8);
}

/* ---- workspaces ---- */

/* Tokens of top_k slots whose workspace a call of k slots needs, as the manual has it. */
static size_t workspace_tokens(const test_case *c) {
    size_t top_k = c->layer.desc.top_k;
    return c->k > top_k ? (c->n * c->k + top_k - 1) / top_k : c->n;
}

static void with_workspace(test_case *c, size_t bytes, uint32_t place, int may_lack, const char *what) {
    moe_io io = make_io(c, &c->safe);
    io.workspace = guard_at(bytes, place), io.workspace_size = bytes;
    memset(io.workspace, 0xff, bytes);
    io.error = (moe_error *)(void *)guard_aligned(sizeof *io.error);
    memcpy(c->safe.y, c->start, c->y_bytes);
    poison(c, &c->safe);
    size_t from = n_guards; /* the structs themselves are only read */
    const moe_layer *layer = (const moe_layer *)guarded_copy(&c->moved, sizeof c->moved);
    const moe_io *call = (const moe_io *)guarded_copy(&io, sizeof io);
    guards_protect(from);
    moe_status status = run(c, layer, call, &c->safe);
    if (status == MOE_ERR_WORKSPACE && may_lack) return;
    if (status) FAIL("%s, %s: %s", label, what, moe_status_text(status));
    else if (!same_outputs(c)) FAIL("%s, %s: other results than in ordinary memory", label, what);
    else passed++;
}

/* A byte too few where alignment costs most: refused before anything is touched. (Fewer slots than top_k need less.) */
static void too_small(const test_case *c, size_t least) {
    if (c->k < c->layer.desc.top_k) return;
    moe_io io = make_io(c, &c->safe);
    io.workspace = forbidden + 1, io.workspace_size = least - 1;
    if (io.y) io.y = c->in_place ? c->safe.y : forbidden;
    io.ids_out = (int32_t *)(void *)forbidden, io.weights_out = (float *)(void *)forbidden,
    io.logits_out = (float *)(void *)forbidden;
    io.stats = (moe_stats *)(void *)forbidden;
    if (io.slots_out) io.slots_out = (float *)(void *)forbidden;
    moe_status status = run(c, &c->moved, &io, &c->safe);
    if (status != MOE_ERR_WORKSPACE) FAIL("%s: a workspace of one byte less: %s", label, moe_status_text(status));
    else passed++;
}

/* ---- the functions beside the layer ---- */

static void test_weights(const test_case *c) {
    const moe_matrix *m = &c->moved.desc.up;
    size_t e = c->moved.desc.n_experts, rows = c->moved.desc.d_ff, k = c->width, bytes = rows * k * 4;
    float *plain = (float *)malloc(bytes), *safe = (float *)(void *)guard_aligned(bytes);
    int ok = plain != NULL;
    for (uint32_t i = 0; i < e && ok; i += 3)
        ok = !moe_dequantize(&c->l.desc.up, i, e, rows, k, 0, rows, plain) &&
             !moe_dequantize(m, i, e, rows, k, 0, rows, safe) && !memcmp(plain, safe, bytes);
    if (ok) ok = moe_validate(m, e, rows, k, NULL) == moe_validate(&c->l.desc.up, e, rows, k, NULL);
    static const uint32_t quantised[] = {MOE_FORMAT_F32,  MOE_FORMAT_F16,   MOE_FORMAT_BF16,       MOE_FORMAT_Q8_0,
                                         MOE_FORMAT_Q4_0, MOE_FORMAT_MXFP4, MOE_FORMAT_FP8_CHANNEL};
    for (size_t i = 0; i < COUNT(quantised) && ok; i++) {
        size_t size = rows * moe_row_bytes(quantised[i], k);
        if (size) ok = moe_quantize(quantised[i], safe, rows, k, guarded_bytes(size)) == MOE_OK;
    }
    if (ok) passed++;
    else FAIL("%s: dequantize, validate or quantize", label);
    free(plain);
}

static void test_select(const test_case *c) {
    size_t k = c->layer.desc.top_k;
    if (c->way != GIVEN_LOGITS) return;
    int32_t *ids = (int32_t *)(void *)guard_aligned(c->n * k * 4);
    float *weights = (float *)(void *)guard_aligned(c->n * k * 4);
    moe_desc *d = (moe_desc *)guarded_copy(&c->moved.desc, sizeof *d);
    moe_status status = moe_select(d, c->safe.logits_in, c->n, c->safe.tokens, ids, weights, NULL);
    if (status) FAIL("%s: select: %s", label, moe_status_text(status));
    else passed++;
}

/* ---- cases ---- */

static uint32_t unit_of(uint32_t format) {
    uint32_t n = 1;
    while (!moe_row_bytes(format, n)) n *= 2;
    return n;
}

/* Tables and capacity, which random layers leave out. */
static void more_knobs(test_case *c, rl_rng *r) {
    moe_router *m = &c->l.desc.router;
    if (rl_one_in(r, 5) && m->pick == MOE_PICK_TOP_K && !m->group) {
        m->pick = MOE_PICK_TABLE, m->table_rows = VOCAB, m->table_bytes = rl_one_in(r, 2) ? 8 : 4;
        uint32_t n = VOCAB * c->l.desc.top_k, ids = c->l.desc.n_experts + c->l.desc.n_zero_experts;
        uint8_t *p = (uint8_t *)rl_alloc(&c->l, n * (size_t)m->table_bytes);
        for (uint32_t i = 0; i < n; i++) p[i * m->table_bytes] = (uint8_t)rl_below(r, ids);
        m->table = p;
    }
    if (rl_one_in(r, 5))
        m->capacity_factor = 1.25f, m->capacity_by_score = rl_below(r, 2), m->capacity_drop = rl_below(r, 2);
}

static void choose_call(test_case *c, rl_rng *r) {
    static const size_t tokens[] = {1, 2, 5, 9, 33};
    const moe_desc *d = &c->layer.desc;
    c->n = tokens[rl_below(r, 5)], c->d = d->d_model, c->k = d->top_k, c->rows = c->layer.router_rows,
    c->ids = c->layer.n_ids;
    c->width = c->layer.routed.d_in, c->y_width = c->d;
    c->way = (int)rl_below(r, N_WAYS);
    c->io.n_tokens = c->n, c->io.n_tasks = 1 + rl_below(r, 4);
    c->io.x_type = MOE_TYPE_F32 + rl_below(r, 3), c->io.y_type = MOE_TYPE_F32 + rl_below(r, 3),
    c->io.y_add = rl_below(r, 2);
    c->in_place = rl_one_in(r, 5) && c->way != SLOTS && c->way != ROUTE;
    if (c->in_place) c->io.y_type = c->io.x_type;
    if (c->way == GIVEN_IDS) c->io.k = (uint32_t)(c->k = rl_one_in(r, 2) ? c->k : 1 + rl_below(r, 8));
    size_t x_row = c->d * moei_type_bytes[c->io.x_type], y_row = c->y_width * moei_type_bytes[c->io.y_type];
    c->io.x_stride = x_row + rl_below(r, 6), c->io.y_stride = c->in_place ? c->io.x_stride : y_row + rl_below(r, 6);
    c->io.router_x_stride = c->io.x_stride, c->io.ids_stride = c->io.weights_stride = c->k * 4 + rl_below(r, 6);
    c->x_bytes = (c->n - 1) * c->io.x_stride + x_row, c->y_bytes = (c->n - 1) * c->io.y_stride + y_row;
    c->id_bytes =
        ((c->n - 1) * c->io.ids_stride + c->k * 4 + 3) / 4 * 4; /* the pointers are aligned, rows need not be */
}

static void run_case(test_case *c) {
    moe_io io = make_io(c, &c->plain);
    size_t tokens = workspace_tokens(c), full = moe_workspace_size(&c->layer, tokens, c->io.n_tasks),
           least = moe_workspace_min(&c->layer, tokens, c->io.n_tasks);
    const uint8_t *start = c->in_place ? c->plain.x : c->plain.y; /* what y holds before the call */
    c->start = (uint8_t *)memcpy(rl_alloc(&c->l, c->y_bytes), start, c->y_bytes);
    io.workspace_size = full,
    io.workspace = malloc(full + (1 << 20)); /* room for a mistake: the guards are to tell */
    if (!io.workspace) abort();
    if (c->in_place) io.y = (void *)(uintptr_t)io.x;
    poison(c, &c->plain);
    moe_status status = run(c, &c->layer, &io, &c->plain);
    if (c->in_place) c->plain.y = c->plain.x;
    free(io.workspace);
    if (status) {
        FAIL("%s: in ordinary memory: %s", label, moe_status_text(status));
        return;
    }
    with_workspace(c, full, AT_END, 0, "full workspace");
    with_workspace(c, least, rl_below(&dice, 2) ? AT_START : ODD, c->k > c->layer.desc.top_k, "least workspace");
    with_workspace(c, least - 63, AT_END, 1, "what an aligned workspace needs"); /* both of its ends at a page */
    with_workspace(c, full - 63, AT_END, 1, "what an aligned workspace needs");
    too_small(c, moe_workspace_min(&c->layer, c->n, c->io.n_tasks));
    test_weights(c);
    test_select(c);
}

static long skipped_cases;
static void one_case(uint64_t seed) {
    static test_case c;
    moe_desc moved;
    rl_rng r = {seed};
    uint32_t format = 1 + rl_below(&r, MOE_FORMAT_COUNT - 1), compute = rl_below(&r, MOE_COMPUTE_COUNT),
             unit = unit_of(format), tier;
    do tier = rl_below(&r, MOE_TIER_COUNT);
    while (!(moe_tiers() & MOE_TIER_BIT(tier)));
    if (compute == MOE_COMPUTE_Q8 && unit < 32) unit = 32;
    memset(&c, 0, sizeof c);
    dice.s = seed + 1;
    rl_make(&c.l, seed, format, rl_one_in(&r, 2) ? format : (uint32_t)MOE_FORMAT_BF16, unit,
            unit == 1   ? 45
            : unit > 64 ? 1
                        : 2);
    c.l.desc.compute = compute, c.l.desc.tiers = moe_tier_mask(tier);
    more_knobs(&c, &r);
    if (moe_layer_init(&c.layer, &c.l.desc,
                       NULL)) { /* no such compute for the format on the tier, or a contradiction of knobs */
        skipped_cases++;
        rl_free(&c.l);
        return;
    }
    choose_call(&c, &r);
    snprintf(label, sizeof label, "case %llu: %s %s on %s, %zu tokens, d %zu ff %u e %u k %zu, %s",
             (unsigned long long)seed, moe_format_name(format), moe_compute_name(compute), moe_tier_name(tier), c.n,
             c.d, c.l.desc.d_ff, c.l.desc.n_experts, c.k, way_names[c.way]);
    fill_inputs(&c, &r);
    moved = c.l.desc;
    move_desc(&moved);
    guards_protect(0);
    move_inputs(&c);
    if (moe_layer_init(&c.moved, &moved, NULL)) FAIL("%s: init of the moved layer", label);
    else run_case(&c);
    guards_free();
    rl_free(&c.l);
}

static void test_all(long cases, uint64_t seed) {
    struct sigaction act;
    memset(&act, 0, sizeof act);
    act.sa_sigaction = on_fault, act.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &act, NULL), sigaction(SIGBUS, &act, NULL);
    page = (size_t)sysconf(_SC_PAGESIZE);
    forbidden = (uint8_t *)mmap(NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (forbidden == (uint8_t *)MAP_FAILED) abort();
    for (long i = 0; i < cases; i++) one_case(seed + (uint64_t)i);
    printf("  %ld layers and calls, %ld buffers between guards (%ld combinations that do not exist)\n",
           cases - skipped_cases, n_buffers, skipped_cases);
    if (skipped_cases * 2 > cases) FAIL("most combinations do not exist");
}
#else
static void test_all(long cases, uint64_t seed) {
    (void)cases, (void)seed;
    printf("  skipped: no pages to protect on this system\n");
    skipped++;
}
#endif

int main(int argc, char **argv) {
    test_all(argc > 1 ? atol(argv[1]) : 500, argc > 2 ? strtoull(argv[2], NULL, 10) : 500000);
    printf("test_memory: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
