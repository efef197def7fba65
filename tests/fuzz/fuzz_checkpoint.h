/* Shared by the fuzz targets of examples/checkpoint.h: what must hold for anything that was opened. */

#include "../../examples/checkpoint.h"
#include "fuzz.h"

static volatile uint64_t fuzz_sink;

static void fuzz_tensor(const ckpt *c, size_t i) {
    const ckpt_tensor *t = &c->tensors[i];
    const ckpt_dtype_info *type = ckpt_type(t->type);
    const ckpt_shard *s = &c->shards[t->shard];
    fuzz_require(type && t->n_dims <= CKPT_MAX_DIMS && t->shard < c->n_shards, "tensor");
    fuzz_require(ckpt_find(c, t->name) == t, "a tensor that is not found by its name");
    fuzz_require(t->data >= s->data && t->bytes <= s->size && (uint64_t)(t->data - s->data) <= s->size - t->bytes,
                 "extent");
    fuzz_require(ckpt_elements(t) / type->elements * type->bytes == t->bytes, "size");
    if (t->bytes) fuzz_sink += (uint64_t)t->data[0] + t->data[t->bytes - 1];
}

static void fuzz_value(const ckpt *c, size_t i) {
    const ckpt_value *v = &c->config.items[i];
    ckpt_value element;
    fuzz_require(ckpt_get(c, v->key) == v, "a value that is not found by its key");
    if (v->type == CKPT_VALUE_STRING) fuzz_require(strlen(v->s) <= v->count && v->s[v->count] == 0, "string");
    if (v->type == CKPT_VALUE_ARRAY && v->count && ckpt_get_at(c, v->key, v->count - 1, &element))
        fuzz_sink += element.u;
    fuzz_sink += ckpt_get_u64(c, v->key, 1) + (ckpt_get_f64(c, v->key, 1) > 0);
}

/* Closes c. A failure must leave a printable message and nothing else. */
static void fuzz_check(ckpt *c, int status, const char *err) {
    fuzz_require((status != 0) == (err[0] != 0), "message");
    for (const char *p = err; *p; p++) fuzz_require((uint8_t)*p >= 0x20, "control character in a message");
    for (size_t i = 0; i < c->n_tensors; i++) fuzz_tensor(c, i);
    for (size_t i = 0; i < c->config.n; i++) fuzz_value(c, i);
    if (status) fuzz_require(c->n_tensors == 0 && c->config.n == 0 && c->strings == NULL, "open after a failure");
    ckpt_close(c);
}

static long fuzz_left, fuzz_live; /* allocations until one fails, and those not released */

static void *fuzz_resize(void *user, void *p, size_t bytes) {
    (void)user;
    if (fuzz_left-- == 0) return NULL;
    fuzz_live += p == NULL;
    return realloc(p, bytes);
}

static void fuzz_release(void *user, void *p) {
    (void)user;
    fuzz_live--;
    free(p);
}

/* Opens the first file; then again with an allocation that fails, which the input picks. */
static inline void fuzz_files(const ckpt_file *files, size_t n) {
    static const ckpt_options options = {0, NULL, fuzz_resize, fuzz_release, NULL, NULL};
    const uint8_t *data = (const uint8_t *)files[0].data;
    char err[CKPT_ERR];
    ckpt c;
    int status = ckpt_open_memory(&c, files, n, NULL, err);
    fuzz_check(&c, status, err);
    fuzz_left = files[0].size ? data[files[0].size - 1] % 16 : 0;
    fuzz_live = 0;
    status = ckpt_open_memory(&c, files, n, &options, err);
    fuzz_check(&c, status, err);
    fuzz_require(fuzz_live == 0, "memory that is not released");
}
