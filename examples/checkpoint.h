/* checkpoint.h - reads the tensors and the configuration of safetensors and GGUF files, writes safetensors

   Do this in one C (C11) or C++ (C++11) file, before other includes (32-bit systems: 64-bit file offsets):

       #include "checkpoint.h"

       ckpt c;
       char err[CKPT_ERR];
       if (ckpt_open(&c, "models/mixtral", err)) { fprintf(stderr, "%s\n", err); exit(1); }
       uint64_t n_experts = ckpt_get_u64(&c, "num_local_experts", 0);
       const ckpt_tensor *gate = ckpt_findf(&c, "model.layers.%d.block_sparse_moe.gate.weight", 0);
       ...
       ckpt_close(&c);

   ckpt_open takes
   * a Hugging Face directory: model.safetensors.index.json and its shards, or else model.safetensors;
     config.json if there is one,
   * an index (*.json) or a safetensors file: config.json beside it if there is one,
   * a GGUF file (version 2 or 3, little-endian); NAME-00001-of-0000N.gguf opens all N shards.

   Files are mapped, or read with CKPT_NO_MMAP or options.no_mmap. Tensors point into them and are never
   copied: their data is little-endian, and aligned to nothing (safetensors promises no alignment).

   No file is trusted. Every count and size is checked against the bytes that are there before it is used,
   sums and products are checked for overflow, nothing recurses, and work and memory are linear in the size of
   the headers. Where readers disagree, this one is strict:
   * safetensors: no holes, overlaps or bytes after the last tensor; no name or field twice; no unknown fields.
     Only whitespace around the JSON is free.
   * GGUF: offsets are the padded running sum, as ggml requires; no nested arrays; no key or name twice. Bytes
     after the last tensor are allowed, the padding after it may be missing.
   * Both: at most 8 dimensions. The product of all non-zero dimensions fits in 63 bits, so that no product of
     some of them overflows for a caller. No NUL in names, which are C strings here.
   * Index: shards are plain file names, and each tensor is in the shard that weight_map says. A tensor that
     weight_map does not name at all is harmless (an index may be cut down to some layers): it is checked, left
     out, and counted in n_unlisted.
   A mapped file that another process truncates raises SIGBUS when it is touched: use no_mmap against that.

   A ckpt is read-only after ckpt_open: any number of threads may use it. */

#ifndef CKPT_H
#define CKPT_H

#if !defined(_FILE_OFFSET_BITS) && !defined(__LP64__)
#define _FILE_OFFSET_BITS 64
#endif

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#ifndef CKPT_NO_MMAP
#include <sys/mman.h>
#endif

#if defined(__GNUC__) || defined(__clang__)
#define CKPT_PRINTF(at, first) __attribute__((format(printf, at, first)))
#else
#define CKPT_PRINTF(at, first)
#endif

#define CKPT_ERR        512       /* bytes of an error message                                  */
#define CKPT_MAX_DIMS   8         /* dimensions of a tensor                                     */
#define CKPT_MAX_HEADER 100000000 /* bytes of a safetensors header or an index, as the reference */
#define CKPT_MAX_CONFIG 16777216  /* bytes of config.json                                       */
#define CKPT_MAX_VALUES 250000    /* values in config.json, arrays counted by element           */
#define CKPT_MAX_KEY    512       /* bytes of a dotted key from config.json                     */
#define CKPT_MAX_DEPTH  64        /* nesting of JSON                                            */
#define CKPT_MAX_STRING 1048576   /* bytes of one GGUF string that is kept                      */

/* -- Types ------------------------------------------------------------------------------------- */

/* name, elements of a block, bytes of a block, known to safetensors, id in GGUF or -1. GGUF ids 4, 5, 31-33 and
   36-38 were removed. */
// clang-format off
#define CKPT_DTYPES(X)                                                                                              \
    X(F32,    1,  4, 1,  0) X(F16,     1,  2, 1,  1) X(BF16,    1,  2, 1, 30) X(F64,     1,  8, 1, 28)              \
    X(I8,     1,  1, 1, 24) X(I16,     1,  2, 1, 25) X(I32,     1,  4, 1, 26) X(I64,     1,  8, 1, 27)              \
    X(BOOL,   1,  1, 1, -1) X(U8,      1,  1, 1, -1) X(U16,     1,  2, 1, -1) X(U32,     1,  4, 1, -1)              \
    X(U64,    1,  8, 1, -1) X(C64,     1,  8, 1, -1) X(F4,      2,  1, 1, -1)                                       \
    X(F6_E2M3,      4, 3, 1, -1) X(F6_E3M2,      4, 3, 1, -1) X(F8_E5M2,     1, 1, 1, -1) X(F8_E4M3, 1, 1, 1, -1)   \
    X(F8_E4M3FNUZ,  1, 1, 1, -1) X(F8_E5M2FNUZ,  1, 1, 1, -1) X(F8_E8M0,     1, 1, 1, -1)                           \
    X(Q4_0,  32, 18, 0,  2) X(Q4_1,   32, 20, 0,  3) X(Q5_0,   32, 22, 0,  6) X(Q5_1,   32, 24, 0,  7)              \
    X(Q8_0,  32, 34, 0,  8) X(Q8_1,   32, 36, 0,  9) X(Q2_K,  256, 84, 0, 10) X(Q3_K,  256, 110, 0, 11)             \
    X(Q4_K, 256, 144, 0, 12) X(Q5_K, 256, 176, 0, 13) X(Q6_K, 256, 210, 0, 14) X(Q8_K, 256, 292, 0, 15)             \
    X(IQ2_XXS, 256, 66, 0, 16) X(IQ2_XS, 256, 74, 0, 17) X(IQ3_XXS, 256, 98, 0, 18) X(IQ1_S, 256, 50, 0, 19)        \
    X(IQ4_NL,   32, 18, 0, 20) X(IQ3_S, 256, 110, 0, 21) X(IQ2_S,   256, 82, 0, 22) X(IQ4_XS, 256, 136, 0, 23)      \
    X(IQ1_M,   256, 56, 0, 29) X(TQ1_0,  256, 54, 0, 34) X(TQ2_0,   256, 66, 0, 35) X(MXFP4,  32, 17, 0, 39)        \
    X(NVFP4,    64, 36, 0, 40) X(Q1_0,   128, 18, 0, 41) X(Q2_0,     64, 18, 0, 42)
// clang-format on

typedef enum ckpt_dtype {
#define CKPT_X(name, elements, bytes, safetensors, gguf) CKPT_##name,
    CKPT_DTYPES(CKPT_X)
#undef CKPT_X
        CKPT_DTYPE_COUNT
} ckpt_dtype;

typedef struct ckpt_dtype_info {
    const char *name; /* as safetensors and ggml print it */
    uint32_t elements, bytes;
    int safetensors, gguf;
} ckpt_dtype_info;

typedef struct ckpt_tensor {
    const char *name;
    ckpt_dtype type;
    uint32_t n_dims;
    uint64_t dims[CKPT_MAX_DIMS]; /* slowest first, as torch prints a shape; GGUF's lists are reversed on reading */
    const uint8_t *data;          /* unaligned, little-endian */
    uint64_t bytes;
    uint32_t shard; /* index into shards */
} ckpt_tensor;

/* Configuration values. JSON is flattened: "text_config.hidden_size"; array elements are "key[3]", an array's
   length is also "key.#"; objects and arrays have an entry of their own. GGUF metadata is under its own key. Of
   a single safetensors file (or of the first shard) the __metadata__ strings are under "__metadata__.key". */
typedef enum ckpt_value_type {
    CKPT_VALUE_NULL,
    CKPT_VALUE_BOOL,   /* u */
    CKPT_VALUE_UINT,   /* u, and f rounded */
    CKPT_VALUE_INT,    /* a negative integer: (int64_t)u, and f rounded */
    CKPT_VALUE_FLOAT,  /* f */
    CKPT_VALUE_STRING, /* s, of count bytes and a NUL */
    CKPT_VALUE_ARRAY,  /* of count elements; of GGUF with data and element */
    CKPT_VALUE_OBJECT  /* of count keys */
} ckpt_value_type;

typedef struct ckpt_value {
    const char *key;
    ckpt_value_type type;
    uint32_t element; /* GGUF's id of the array's element type */
    uint64_t u, count;
    double f;
    const char *s;
    const uint8_t
        *data; /* packed elements of a GGUF array in the file; NULL for an array of strings, which are not kept */
} ckpt_value;

typedef struct ckpt_shard {
    const char *name; /* file name */
    const char *path;
    const uint8_t *data;
    uint64_t size;
    int storage; /* private */
} ckpt_shard;

typedef struct ckpt_file { /* a file in memory, for ckpt_open_memory */
    const char *name;
    const void *data;
    size_t size;
} ckpt_file;

typedef struct ckpt_options { /* all zero is the usual */
    int no_mmap;              /* read files into memory instead of mapping them */
    void *user;
    void *(*resize)(void *user, void *p, size_t bytes); /* as realloc; bytes is never 0. Set both or none */
    void (*release)(void *user, void *p);
    ptrdiff_t (*read)(void *user, int fd, void *to, size_t bytes); /* as read(2) and write(2), with errno */
    ptrdiff_t (*write)(void *user, int fd, const void *from, size_t bytes);
} ckpt_options;

/* private parts */
typedef unsigned long long ckpti_ull; /* for printf */
typedef struct ckpti_slot {
    uint32_t hash, item; /* index + 1; 0 is free */
} ckpti_slot;
typedef struct ckpti_table {
    ckpti_slot *slots;
    size_t capacity, used;
} ckpti_table;
typedef struct ckpti_listed { /* one entry of weight_map */
    const char *name;
    uint32_t shard;
} ckpti_listed;
typedef struct ckpti_block {
    struct ckpti_block *next;
    size_t size, used;
} ckpti_block;

typedef struct ckpt_config {
    ckpt_value *items;
    size_t n, capacity;
    ckpti_table table;
} ckpt_config;

typedef struct ckpt {
    ckpt_tensor *tensors; /* by shard, then by place in the file */
    size_t n_tensors;
    ckpt_shard *shards;
    size_t n_shards;
    ckpt_config config;
    int is_gguf;
    size_t n_unlisted; /* tensors that the index does not name */

    /* private */
    ckpt_options options;
    ckpti_table tensor_table, shard_table, listed_table;
    size_t tensor_capacity, shard_capacity, listed_capacity, n_listed;
    ckpti_listed *listed;
    ckpt_config other; /* metadata of the second and later GGUF shards: checked, not kept */
    ckpti_block *strings;
    const ckpt_file *files;
    size_t n_files;
    const char *file; /* that messages are about, */
    uint64_t where;   /* and the byte in it, or CKPTI_NOWHERE */
    char *err;
} ckpt;

typedef struct ckpt_out { /* a tensor to write */
    const char *name;
    ckpt_dtype type;
    uint32_t n_dims;
    uint64_t dims[CKPT_MAX_DIMS];
    const void *data; /* little-endian, tight; the size follows from type and dims */
} ckpt_out;

/* -- API --------------------------------------------------------------------------------------- */

#ifndef CKPT_DEF
#define CKPT_DEF static inline
#endif

/* 0, or -1 and a message of one line in err (which may be NULL): the file, what is wrong, and where. After a
   failure c is closed. */
CKPT_DEF int ckpt_open(ckpt *c, const char *path, char *err);
CKPT_DEF int ckpt_open_with(ckpt *c, const char *path, const ckpt_options *options, char *err);
/* Opens files[0] as ckpt_open would; other files that it needs are found by name in the list. The memory must
   outlive c. */
CKPT_DEF int ckpt_open_memory(ckpt *c, const ckpt_file *files, size_t n, const ckpt_options *options, char *err);
/* The values of any JSON object as the configuration; name is for messages. */
CKPT_DEF int ckpt_open_json(ckpt *c, const char *name, const void *text, size_t size, char *err);
/* Any number of times, also on a zeroed ckpt. Tensors, values and names end here. */
CKPT_DEF void ckpt_close(ckpt *c);

/* A tensor by name or NULL; all of them are c->tensors[0 .. c->n_tensors). */
CKPT_DEF const ckpt_tensor *ckpt_find(const ckpt *c, const char *name);
CKPT_DEF const ckpt_tensor *ckpt_findf(const ckpt *c, const char *format, ...) CKPT_PRINTF(2, 3);
CKPT_DEF uint64_t ckpt_elements(const ckpt_tensor *t);

/* NULL for an invalid type, and -1 for an unknown name. */
CKPT_DEF const ckpt_dtype_info *ckpt_type(ckpt_dtype type);
CKPT_DEF const char *ckpt_type_name(ckpt_dtype type);
CKPT_DEF int ckpt_type_find(const char *name);

/* A configuration value or NULL; all of them are c->config.items[0 .. c->config.n). */
CKPT_DEF const ckpt_value *ckpt_get(const ckpt *c, const char *key);
CKPT_DEF const ckpt_value *ckpt_getf(const ckpt *c, const char *format, ...) CKPT_PRINTF(2, 3);
/* The default where there is no such key, where it is null, and where the value is of another type. */
CKPT_DEF uint64_t ckpt_get_u64(const ckpt *c, const char *key, uint64_t value);
CKPT_DEF double ckpt_get_f64(const ckpt *c, const char *key, double value);
CKPT_DEF int ckpt_get_bool(const ckpt *c, const char *key, int value);
CKPT_DEF const char *ckpt_get_str(const ckpt *c, const char *key, const char *value);
/* Elements of an array (JSON or GGUF), 0 where there is none. ckpt_get_at gives 1, or 0 where there is no such
   element; strings in GGUF arrays are not kept. */
CKPT_DEF uint64_t ckpt_get_count(const ckpt *c, const char *key);
CKPT_DEF int ckpt_get_at(const ckpt *c, const char *key, uint64_t i, ckpt_value *value);
/* 1 and the value, or 0 and *out untouched: for callers that want to tell an absent value from a wrong one. v
   may be NULL. A float with an integral value up to 2^53 is a u64; any number is an f64. */
CKPT_DEF int ckpt_as_u64(const ckpt_value *v, uint64_t *out);
CKPT_DEF int ckpt_as_f64(const ckpt_value *v, double *out);
CKPT_DEF int ckpt_as_bool(const ckpt_value *v, int *out);
CKPT_DEF int ckpt_as_str(const ckpt_value *v, const char **out);

/* Writes a safetensors file: first under another name beside path, then renamed, so that path is either
   complete or untouched. metadata is the text of a JSON object of strings, or NULL. Tensors are stored by
   falling element size, otherwise as listed. */
CKPT_DEF int ckpt_write(const char *path, const ckpt_out *tensors, size_t n, const char *metadata, char *err);
CKPT_DEF int ckpt_write_with(const char *path, const ckpt_out *tensors, size_t n, const char *metadata,
                             const ckpt_options *options, char *err);

/* Little-endian numbers at any address, on any host. */
CKPT_DEF uint16_t ckpt_load_u16(const void *p);
CKPT_DEF uint32_t ckpt_load_u32(const void *p);
CKPT_DEF uint64_t ckpt_load_u64(const void *p);
CKPT_DEF float ckpt_load_f32(const void *p);
CKPT_DEF double ckpt_load_f64(const void *p);
CKPT_DEF void ckpt_store_u32(void *p, uint32_t x);
CKPT_DEF void ckpt_store_u64(void *p, uint64_t x);
CKPT_DEF void ckpt_store_f32(void *p, float x);

/* Copies text for a terminal: control characters and invalid UTF-8 become '?'. Names come from files: print
   them through this. */
CKPT_DEF char *ckpt_printable(char *to, size_t size, const char *text);

/* == Implementation ============================================================================ */

/* -- Little-endian numbers --------------------------------------------------------------------- */

static inline uint64_t ckpti_load(const void *p, uint32_t bytes) {
    const uint8_t *b = (const uint8_t *)p;
    uint64_t x = 0;
    while (bytes--) x = x << 8 | b[bytes];
    return x;
}

static inline void ckpti_store(void *p, uint64_t x, uint32_t bytes) {
    uint8_t *b = (uint8_t *)p;
    for (uint32_t i = 0; i < bytes; i++, x >>= 8) b[i] = (uint8_t)x;
}

CKPT_DEF uint16_t ckpt_load_u16(const void *p) { return (uint16_t)ckpti_load(p, 2); }
CKPT_DEF uint32_t ckpt_load_u32(const void *p) { return (uint32_t)ckpti_load(p, 4); }
CKPT_DEF uint64_t ckpt_load_u64(const void *p) { return ckpti_load(p, 8); }
CKPT_DEF void ckpt_store_u32(void *p, uint32_t x) { ckpti_store(p, x, 4); }
CKPT_DEF void ckpt_store_u64(void *p, uint64_t x) { ckpti_store(p, x, 8); }

CKPT_DEF float ckpt_load_f32(const void *p) {
    uint32_t u = ckpt_load_u32(p);
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

CKPT_DEF double ckpt_load_f64(const void *p) {
    uint64_t u = ckpt_load_u64(p);
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

CKPT_DEF void ckpt_store_f32(void *p, float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    ckpt_store_u32(p, u);
}

/* -- Checked sizes ----------------------------------------------------------------------------- */

/* Both: 0, or -1 on overflow. */
static inline int ckpti_mul(uint64_t a, uint64_t b, uint64_t *product) {
    if (b && a > UINT64_MAX / b) return -1;
    *product = a * b;
    return 0;
}

static inline int ckpti_round_up(uint64_t a, uint64_t power_of_two, uint64_t *out) {
    if (a > UINT64_MAX - (power_of_two - 1)) return -1;
    *out = (a + power_of_two - 1) & ~(power_of_two - 1);
    return 0;
}

/* Zero dimensions are left out of the product that is checked: what is left must fit too, so that callers may
   multiply any of them. */
static inline int ckpti_elements(const uint64_t *dims, uint32_t n, uint64_t *elements) {
    uint64_t product = 1;
    int empty = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (dims[i] == 0) empty = 1;
        else if (ckpti_mul(product, dims[i], &product) || product > INT64_MAX) return -1;
    }
    *elements = empty ? 0 : product;
    return 0;
}

/* -- Messages ---------------------------------------------------------------------------------- */

/* Length of the valid sequence at p, or 0: overlong forms, surrogates and values above U+10FFFF are invalid. */
static inline size_t ckpti_utf8(const uint8_t *p, size_t n) {
    if (n == 0 || p[0] < 0x80) return n != 0;
    size_t length = p[0] >= 0xF0 ? 4 : p[0] >= 0xE0 ? 3 : 2;
    if (p[0] < 0xC2 || p[0] > 0xF4 || n < length) return 0;
    for (size_t i = 1; i < length; i++)
        if ((p[i] & 0xC0) != 0x80) return 0;
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F)) return 0;
    if ((p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F)) return 0;
    return length;
}

CKPT_DEF char *ckpt_printable(char *to, size_t size, const char *text) {
    const uint8_t *p = (const uint8_t *)text;
    size_t left = strlen(text), used = 0;
    while (left && used + 1 < size) {
        size_t length = ckpti_utf8(p, left), step = length ? length : 1;
        int control = p[0] < 0x20 || p[0] == 0x7F || (p[0] == 0xC2 && length && p[1] < 0xA0);
        if (length && used + length >= size) break;
        if (length && !control) memcpy(to + used, p, length), used += length;
        else to[used++] = '?';
        p += step, left -= step;
    }
    if (size) to[used] = 0;
    return to;
}

#define CKPTI_NOWHERE UINT64_MAX

CKPT_PRINTF(2, 3) static inline void ckpti_message(ckpt *c, const char *format, ...) {
    char text[CKPT_ERR], byte[32] = "";
    if (!c->err) return;
    if (c->where != CKPTI_NOWHERE) snprintf(byte, sizeof byte, "byte %llu: ", (ckpti_ull)c->where);
    int n = snprintf(text, sizeof text, "%.300s: %s", c->file, byte);
    va_list args;
    va_start(args, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
    ckpt_printable(c->err, CKPT_ERR, text);
}

/* A macro so that compilers see that it is never 0. */
#define ckpti_fail(...) (ckpti_message(__VA_ARGS__), -1)

/* -- Memory ------------------------------------------------------------------------------------ */

static inline void *ckpti_resize(ckpt *c, void *p, size_t bytes) {
    void *q = c->options.resize ? c->options.resize(c->options.user, p, bytes) : realloc(p, bytes);
    if (!q) ckpti_message(c, "out of memory (%llu bytes)", (ckpti_ull)bytes);
    return q;
}

static inline void ckpti_release(const ckpt *c, void *p) {
    if (c->options.resize) {
        if (p) c->options.release(c->options.user, p);
    } else free(p);
}

/* The array with room for need items, possibly moved; NULL after a message, and then the old one is still
   valid. */
static inline void *ckpti_grow(ckpt *c, void *items, size_t *capacity, size_t need, size_t item_bytes) {
    if (need <= *capacity) return items;
    size_t most = (size_t)PTRDIFF_MAX / item_bytes, room = *capacity < most / 2 ? 2 * *capacity : most;
    if (need > most || need > UINT32_MAX / 4) {
        ckpti_message(c, "too many entries");
        return NULL;
    }
    if (room < need) room = need;
    if (room < 16 && most >= 16) room = 16;
    void *grown = ckpti_resize(c, items, room * item_bytes);
    if (grown) *capacity = room;
    return grown;
}

/* Strings live in a list of blocks until the checkpoint is closed. ckpti_room is space on top that the next
   call reuses, unless ckpti_keep takes it. */
static inline char *ckpti_room(ckpt *c, size_t bytes) {
    ckpti_block *b = c->strings;
    if (b && b->size - b->used >= bytes) return (char *)(b + 1) + b->used;
    size_t size = bytes > 65536 ? bytes : 65536;
    if (size > (size_t)PTRDIFF_MAX - sizeof *b) {
        ckpti_message(c, "a string is too long");
        return NULL;
    }
    b = (ckpti_block *)ckpti_resize(c, NULL, sizeof *b + size);
    if (!b) return NULL;
    b->next = c->strings, b->size = size, b->used = 0;
    c->strings = b;
    return (char *)(b + 1);
}

static inline char *ckpti_keep(ckpt *c, size_t bytes) {
    char *p = (char *)(c->strings + 1) + c->strings->used;
    c->strings->used += bytes;
    return p;
}

static inline char *ckpti_copy(ckpt *c, const void *text, size_t length) {
    char *p = ckpti_room(c, length + 1);
    if (!p) return NULL;
    if (length) memcpy(p, text, length);
    p[length] = 0;
    return ckpti_keep(c, length + 1);
}

/* -- Names ------------------------------------------------------------------------------------- */

/* FNV-1a, then mixed because the low bits pick the slot. */
static inline uint32_t ckpti_hash(const char *s) {
    uint64_t h = 14695981039346656037u;
    while (*s) h = (h ^ (uint8_t)*s++) * 1099511628211u;
    h = (h ^ (h >> 33)) * 0xFF51AFD7ED558CCDu;
    return (uint32_t)(h >> 32);
}

/* Every table's items begin with their name. */
static inline const char *ckpti_name(const void *items, size_t item_bytes, size_t i) {
    return *(const char *const *)(const void *)((const char *)items + i * item_bytes);
}

/* Slots at most half full: an honest file needs far fewer probes (the chance to pass 256 is below 1e-15). Names
   made to collide are refused instead of taking quadratic time. */
enum { CKPTI_PROBES = 256 };

/* The slot that holds name or is free for it; NULL in an empty table or after CKPTI_PROBES. */
static inline ckpti_slot *ckpti_probe(const ckpti_table *t, const void *items, size_t item_bytes, const char *name) {
    uint32_t hash = ckpti_hash(name);
    for (size_t i = 0; i < CKPTI_PROBES && t->capacity; i++) {
        ckpti_slot *s = &t->slots[(hash + i) & (t->capacity - 1)];
        if (!s->item || (s->hash == hash && !strcmp(ckpti_name(items, item_bytes, s->item - 1), name))) return s;
    }
    return NULL;
}

/* Index + 1, or 0. */
static inline uint32_t ckpti_find(const ckpti_table *t, const void *items, size_t item_bytes, const char *name) {
    const ckpti_slot *s = ckpti_probe(t, items, item_bytes, name);
    return s ? s->item : 0;
}

static inline int ckpti_rehash(ckpt *c, ckpti_table *t) {
    size_t capacity = t->capacity ? 2 * t->capacity : 64;
    if (capacity > (size_t)PTRDIFF_MAX / sizeof *t->slots) return ckpti_fail(c, "too many entries");
    ckpti_slot *slots = (ckpti_slot *)ckpti_resize(c, NULL, capacity * sizeof *slots);
    if (!slots) return -1;
    memset(slots, 0, capacity * sizeof *slots);
    for (size_t i = 0; i < t->capacity; i++) {
        size_t at = t->slots[i].hash;
        if (!t->slots[i].item) continue;
        while (slots[at & (capacity - 1)].item) at++;
        slots[at & (capacity - 1)] = t->slots[i];
    }
    ckpti_release(c, t->slots);
    t->slots = slots, t->capacity = capacity;
    return 0;
}

/* 0, or -1 after a message; a second item of the same name is an error. */
static inline int ckpti_add(ckpt *c, const char *what, ckpti_table *t, const void *items, size_t item_bytes,
                            size_t item) {
    const char *name = ckpti_name(items, item_bytes, item);
    if (2 * (t->used + 1) > t->capacity && ckpti_rehash(c, t)) return -1;
    ckpti_slot *s = ckpti_probe(t, items, item_bytes, name);
    if (!s) return ckpti_fail(c, "%s \"%.100s\": too many names have the same hash", what, name);
    if (s->item) return ckpti_fail(c, "%s \"%.100s\" is there twice", what, name);
    s->hash = ckpti_hash(name), s->item = (uint32_t)item + 1;
    t->used++;
    return 0;
}

/* -- Types ------------------------------------------------------------------------------------- */

static const ckpt_dtype_info ckpti_types[CKPT_DTYPE_COUNT] = {
#define CKPT_X(name, elements, bytes, safetensors, gguf) {#name, elements, bytes, safetensors, gguf},
    CKPT_DTYPES(CKPT_X)
#undef CKPT_X
};

CKPT_DEF const ckpt_dtype_info *ckpt_type(ckpt_dtype type) {
    return (unsigned)type < CKPT_DTYPE_COUNT ? &ckpti_types[type] : NULL;
}

CKPT_DEF const char *ckpt_type_name(ckpt_dtype type) {
    return (unsigned)type < CKPT_DTYPE_COUNT ? ckpti_types[type].name : NULL;
}

CKPT_DEF int ckpt_type_find(const char *name) {
    for (int i = 0; i < CKPT_DTYPE_COUNT; i++)
        if (strcmp(ckpti_types[i].name, name) == 0) return i;
    return -1;
}

static inline int ckpti_type_of_gguf(uint32_t id) {
    for (int i = 0; i < CKPT_DTYPE_COUNT; i++)
        if (ckpti_types[i].gguf >= 0 && (uint32_t)ckpti_types[i].gguf == id) return i;
    return -1;
}

/* -- Tensors ----------------------------------------------------------------------------------- */

CKPT_DEF const ckpt_tensor *ckpt_find(const ckpt *c, const char *name) {
    uint32_t item = ckpti_find(&c->tensor_table, c->tensors, sizeof *c->tensors, name);
    return item ? &c->tensors[item - 1] : NULL;
}

CKPT_DEF const ckpt_tensor *ckpt_findf(const ckpt *c, const char *format, ...) {
    char name[CKPT_MAX_KEY];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return n >= 0 && (size_t)n < sizeof name ? ckpt_find(c, name) : NULL;
}

CKPT_DEF uint64_t ckpt_elements(const ckpt_tensor *t) {
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++) n *= t->dims[i];
    return n;
}

static inline ckpt_tensor *ckpti_new_tensor(ckpt *c, size_t shard) {
    ckpt_tensor *all = (ckpt_tensor *)ckpti_grow(c, c->tensors, &c->tensor_capacity, c->n_tensors + 1, sizeof *all);
    if (!all) return NULL;
    c->tensors = all;
    ckpt_tensor *t = &all[c->n_tensors++];
    memset(t, 0, sizeof *t);
    t->shard = (uint32_t)shard;
    return t;
}

/* Bytes of a tensor: (elements / block) * bytes, since elements * bytes / block wraps for sizes that look
   harmless. */
static inline int ckpti_tensor_bytes(ckpt *c, const ckpt_tensor *t, uint64_t *bytes) {
    const ckpt_dtype_info *type = &ckpti_types[t->type];
    uint64_t n;
    if (ckpti_elements(t->dims, t->n_dims, &n))
        return ckpti_fail(c, "tensor \"%.100s\": the shape is too large", t->name);
    if (n % type->elements)
        return ckpti_fail(c, "tensor \"%.100s\": %llu elements are no whole number of blocks of %s (%u elements)",
                          t->name, (ckpti_ull)n, type->name, (unsigned)type->elements);
    if (ckpti_mul(n / type->elements, type->bytes, bytes))
        return ckpti_fail(c, "tensor \"%.100s\": the shape is too large", t->name);
    return 0;
}

/* -- Configuration values ---------------------------------------------------------------------- */

/* The key must be kept already (NULL: that failed). The value's address is good until the next call. */
static inline ckpt_value *ckpti_new_value(ckpt *c, ckpt_config *list, const char *key) {
    if (!key) return NULL;
    ckpt_value *all = (ckpt_value *)ckpti_grow(c, list->items, &list->capacity, list->n + 1, sizeof *all);
    if (!all) return NULL;
    list->items = all;
    ckpt_value *v = &all[list->n];
    memset(v, 0, sizeof *v);
    v->key = key;
    if (ckpti_add(c, "key", &list->table, all, sizeof *all, list->n)) return NULL;
    list->n++;
    return v;
}

static inline const ckpt_value *ckpti_get(const ckpt_config *list, const char *key) {
    uint32_t item = ckpti_find(&list->table, list->items, sizeof *list->items, key);
    return item ? &list->items[item - 1] : NULL;
}

CKPT_DEF const ckpt_value *ckpt_get(const ckpt *c, const char *key) { return ckpti_get(&c->config, key); }

CKPT_DEF const ckpt_value *ckpt_getf(const ckpt *c, const char *format, ...) {
    char key[CKPT_MAX_KEY];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(key, sizeof key, format, args);
    va_end(args);
    return n >= 0 && (size_t)n < sizeof key ? ckpt_get(c, key) : NULL;
}

CKPT_DEF int ckpt_as_u64(const ckpt_value *v, uint64_t *out) {
    if (!v || (v->type != CKPT_VALUE_UINT && v->type != CKPT_VALUE_FLOAT)) return 0;
    if (v->type == CKPT_VALUE_UINT) return *out = v->u, 1;
    if (!(v->f >= 0 && v->f <= 9007199254740992.0) || (double)(uint64_t)v->f != v->f) return 0;
    return *out = (uint64_t)v->f, 1;
}

CKPT_DEF int ckpt_as_f64(const ckpt_value *v, double *out) {
    if (!v || v->type < CKPT_VALUE_UINT || v->type > CKPT_VALUE_FLOAT) return 0;
    return *out = v->f, 1;
}

CKPT_DEF int ckpt_as_bool(const ckpt_value *v, int *out) {
    if (!v || v->type != CKPT_VALUE_BOOL) return 0;
    return *out = v->u != 0, 1;
}

CKPT_DEF int ckpt_as_str(const ckpt_value *v, const char **out) {
    if (!v || v->type != CKPT_VALUE_STRING) return 0;
    return *out = v->s, 1;
}

CKPT_DEF uint64_t ckpt_get_u64(const ckpt *c, const char *key, uint64_t value) {
    ckpt_as_u64(ckpt_get(c, key), &value);
    return value;
}

CKPT_DEF double ckpt_get_f64(const ckpt *c, const char *key, double value) {
    ckpt_as_f64(ckpt_get(c, key), &value);
    return value;
}

CKPT_DEF int ckpt_get_bool(const ckpt *c, const char *key, int value) {
    ckpt_as_bool(ckpt_get(c, key), &value);
    return value;
}

CKPT_DEF const char *ckpt_get_str(const ckpt *c, const char *key, const char *value) {
    ckpt_as_str(ckpt_get(c, key), &value);
    return value;
}

/* By GGUF's value type id: u8 i8 u16 i16 u32 i32 f32 bool string array u64 i64 f64. */
static const uint8_t ckpti_scalar_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
static const char ckpti_scalar_kind[] = "uiuiuifbsauif";
enum { CKPTI_GGUF_U32 = 4, CKPTI_GGUF_STRING = 8, CKPTI_GGUF_ARRAY = 9, CKPTI_GGUF_TYPES = 13 };

/* A number or bool of that type; bools other than 0 are true, as ggml reads them. */
static inline void ckpti_scalar(ckpt_value *v, uint32_t type, const uint8_t *p) {
    uint32_t bytes = ckpti_scalar_bytes[type];
    char kind = ckpti_scalar_kind[type];
    v->u = ckpti_load(p, bytes);
    v->type = kind == 'b' ? CKPT_VALUE_BOOL : kind == 'f' ? CKPT_VALUE_FLOAT : CKPT_VALUE_UINT;
    if (kind == 'i' && v->u >> (8 * bytes - 1)) {
        v->type = CKPT_VALUE_INT;
        v->u |= ~(UINT64_MAX >> (64 - 8 * bytes));
        v->f = -(double)(0 - v->u);
    } else if (kind == 'f') {
        v->f = bytes == 4 ? (double)ckpt_load_f32(p) : ckpt_load_f64(p);
    } else v->f = (double)v->u;
}

CKPT_DEF uint64_t ckpt_get_count(const ckpt *c, const char *key) {
    const ckpt_value *v = ckpt_get(c, key);
    return v && v->type == CKPT_VALUE_ARRAY ? v->count : 0;
}

CKPT_DEF int ckpt_get_at(const ckpt *c, const char *key, uint64_t i, ckpt_value *value) {
    const ckpt_value *v = ckpt_get(c, key);
    if (!v || v->type != CKPT_VALUE_ARRAY || i >= v->count) return 0;
    if (c->is_gguf) {
        if (!v->data) return 0;
        memset(value, 0, sizeof *value);
        value->key = v->key;
        return ckpti_scalar(value, v->element, v->data + i * ckpti_scalar_bytes[v->element]), 1;
    }
    v = ckpt_getf(c, "%s[%llu]", key, (ckpti_ull)i);
    if (v) *value = *v;
    return v != NULL;
}

/* -- JSON -------------------------------------------------------------------------------------- */

/* A pull parser: each call of ckpti_next gives one token. It keeps one byte for each open bracket and never
   recurses. */
typedef enum ckpti_token {
    CKPTI_BAD,    /* after a message */
    CKPTI_DONE,   /* the value is complete and nothing follows it */
    CKPTI_KEY,    /* v is a string; the value comes next */
    CKPTI_SCALAR, /* v */
    CKPTI_OBJECT,
    CKPTI_ARRAY,
    CKPTI_CLOSE /* of either */
} ckpti_token;

enum { CKPTI_AT_VALUE, CKPTI_AT_FIRST, CKPTI_AT_ITEM, CKPTI_AT_COMMA, CKPTI_AT_END };

typedef struct ckpti_json {
    ckpt *c;
    const uint8_t *text;
    size_t size, at; /* bytes; the cursor */
    size_t start;    /* of the text in its file, for messages */
    int python;      /* NaN and Infinity are numbers, as Python writes them */
    int state;
    uint32_t depth;
    char open[CKPT_MAX_DEPTH];
    ckpt_value v; /* v.s is in ckpti_room: the next string overwrites it unless it is kept */
} ckpti_json;

static inline void ckpti_json_begin(ckpti_json *j, ckpt *c, const void *text, size_t size, size_t start) {
    memset(j, 0, sizeof *j);
    j->c = c, j->text = (const uint8_t *)text, j->size = size, j->start = start;
}

/* What is at the cursor is no JSON. */
static inline ckpti_token ckpti_bad(const ckpti_json *j, const char *why) {
    j->c->where = j->start + j->at;
    ckpti_message(j->c, "%s", why);
    return CKPTI_BAD;
}

/* The next character that is not whitespace, or -1. */
static inline int ckpti_peek(ckpti_json *j) {
    while (j->at < j->size && j->text[j->at] <= ' ' && strchr(" \t\r\n", j->text[j->at]) && j->text[j->at]) j->at++;
    return j->at < j->size ? j->text[j->at] : -1;
}

static inline char *ckpti_keep_string(ckpti_json *j) { return ckpti_keep(j->c, (size_t)j->v.count + 1); }

static inline int ckpti_is(const ckpti_json *j, const char *text) {
    return j->v.type == CKPT_VALUE_STRING && strcmp(j->v.s, text) == 0;
}

/* Four hexadecimal digits at p, or -1. */
static inline int32_t ckpti_hex4(const uint8_t *p, const uint8_t *end) {
    int32_t x = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        uint8_t lower = p[i] | 32;
        if (p[i] >= '0' && p[i] <= '9') x = x * 16 + (p[i] - '0');
        else if (lower >= 'a' && lower <= 'f') x = x * 16 + (lower - 'a' + 10);
        else return -1;
    }
    return x;
}

static inline size_t ckpti_put_utf8(char *to, uint32_t x) {
    static const uint8_t lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
    size_t n = x < 0x80 ? 1 : x < 0x800 ? 2 : x < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; x >>= 6) to[i] = (char)(0x80 | (x & 0x3F));
    to[0] = (char)(lead[n] | x);
    return n;
}

/* \uXXXX at p, with its second half where it is the first of a surrogate pair. Bytes read, or 0. */
static inline size_t ckpti_unicode(const uint8_t *p, const uint8_t *end, uint32_t *out) {
    int32_t high = ckpti_hex4(p + 2, end);
    if (high <= 0 || (high >= 0xDC00 && high < 0xE000)) return 0;
    *out = (uint32_t)high;
    if (high < 0xD800 || high >= 0xE000) return 6;
    int32_t low = end - p >= 8 && p[6] == '\\' && p[7] == 'u' ? ckpti_hex4(p + 8, end) : -1;
    if (low < 0xDC00 || low >= 0xE000) return 0;
    *out = 0x10000 + ((uint32_t)(high - 0xD800) << 10) + (uint32_t)(low - 0xDC00);
    return 12;
}

/* One character of a string, to *to. Bytes read (never fewer than written), or 0 where it is invalid. */
static inline size_t ckpti_char(const uint8_t *p, const uint8_t *end, char **to) {
    static const char from[] = "\"\\/bfnrt", into[] = "\"\\/\b\f\n\r\t";
    size_t n = ckpti_utf8(p, (size_t)(end - p));
    if (*p < 0x20 || n == 0) return 0;
    if (*p != '\\') return memcpy(*to, p, n), *to += n, n;
    const char *escape = end - p >= 2 && p[1] ? strchr(from, p[1]) : NULL;
    if (escape) return *(*to)++ = into[escape - from], 2;
    uint32_t x = 0;
    n = end - p >= 6 && p[1] == 'u' ? ckpti_unicode(p, end, &x) : 0;
    if (n) *to += ckpti_put_utf8(*to, x);
    return n;
}

/* Decodes the string at the cursor. Its encoding is never shorter, which gives the room; the decoder never
   reads past the end that was found first, so a file that changes meanwhile cannot make it write past the room.
   */
static inline int ckpti_json_string(ckpti_json *j) {
    size_t end = j->at + 1;
    while (end < j->size && j->text[end] != '"') end += j->text[end] == '\\' ? 2 : 1;
    if (end >= j->size) return ckpti_bad(j, "the string does not end"), -1;
    char *room = ckpti_room(j->c, end - j->at), *to = room;
    if (!room) return -1;
    for (j->at++; j->at < end;) {
        size_t n = ckpti_char(j->text + j->at, j->text + end, &to);
        if (!n) return ckpti_bad(j, "invalid character or escape in a string"), -1;
        j->at += n;
    }
    *to = 0;
    memset(&j->v, 0, sizeof j->v);
    j->v.type = CKPT_VALUE_STRING, j->v.s = room, j->v.count = (uint64_t)(to - room);
    j->at = end + 1;
    return 0;
}

/* Appends the digits at the cursor to the number's text. How many, or 0 where there are none or too many. */
static inline size_t ckpti_digits(ckpti_json *j, char *text, size_t *used, size_t size) {
    size_t begin = j->at;
    for (; j->at < j->size && j->text[j->at] >= '0' && j->text[j->at] <= '9'; j->at++) {
        if (*used + 1 >= size) return 0;
        text[(*used)++] = (char)j->text[j->at];
    }
    return j->at - begin;
}

static inline int ckpti_accept(ckpti_json *j, const char *set) {
    if (j->at >= j->size || !j->text[j->at] || !strchr(set, j->text[j->at])) return 0;
    return j->text[j->at++];
}

/* Integers of 64 bits are kept exactly; -0 is a float. */
static inline void ckpti_integer(ckpt_value *v, const char *digits, int negative) {
    uint64_t x = 0, limit = negative ? (uint64_t)INT64_MAX + 1 : UINT64_MAX;
    for (; *digits; digits++) {
        uint64_t digit = (uint64_t)(*digits - '0');
        if (x > (limit - digit) / 10) return;
        x = x * 10 + digit;
    }
    if (negative && x == 0) return;
    v->type = negative ? CKPT_VALUE_INT : CKPT_VALUE_UINT;
    v->u = negative ? 0 - x : x;
}

/* The text is put together without a decimal point, because strtod wants the locale's. */
static inline int ckpti_json_number(ckpti_json *j) {
    char text[400];
    size_t used = 0, whole, fraction = 0;
    long exponent = 0;
    int negative = ckpti_accept(j, "-");
    if (negative) text[used++] = '-';
    size_t first = used;
    whole = ckpti_digits(j, text, &used, sizeof text - 32);
    if (!whole || (whole > 1 && text[first] == '0')) return ckpti_bad(j, "invalid number"), -1;
    int integer = 1;
    if (ckpti_accept(j, ".")) {
        integer = 0;
        fraction = ckpti_digits(j, text, &used, sizeof text - 32);
        if (!fraction) return ckpti_bad(j, "invalid number"), -1;
    }
    text[used] = 0;
    if (ckpti_accept(j, "eE")) {
        char digits[32] = "0";
        size_t n = 1;
        integer = 0;
        int sign = ckpti_accept(j, "+-");
        if (!ckpti_digits(j, digits, &n, 10)) return ckpti_bad(j, "invalid exponent"), -1;
        exponent = strtol(digits, NULL, 10) * (sign == '-' ? -1 : 1);
    }
    memset(&j->v, 0, sizeof j->v);
    j->v.type = CKPT_VALUE_FLOAT;
    if (integer) ckpti_integer(&j->v, text + first, negative);
    snprintf(text + used, sizeof text - used, "e%ld", exponent - (long)fraction);
    j->v.f = strtod(text, NULL);
    if (j->v.f > DBL_MAX || j->v.f < -DBL_MAX) return ckpti_bad(j, "the number is out of range"), -1;
    return 0;
}

static inline int ckpti_json_word(ckpti_json *j) {
    static const struct {
        const char *text;
        int python;
        ckpt_value_type type;
        uint64_t u;
        double f;
    } words[] = {{"true", 0, CKPT_VALUE_BOOL, 1, 1},
                 {"false", 0, CKPT_VALUE_BOOL, 0, 0},
                 {"null", 0, CKPT_VALUE_NULL, 0, 0},
                 {"NaN", 1, CKPT_VALUE_FLOAT, 0, (double)NAN},
                 {"Infinity", 1, CKPT_VALUE_FLOAT, 0, HUGE_VAL},
                 {"-Infinity", 1, CKPT_VALUE_FLOAT, 0, -HUGE_VAL}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t n = strlen(words[i].text);
        if (words[i].python > j->python || j->size - j->at < n || memcmp(j->text + j->at, words[i].text, n)) continue;
        memset(&j->v, 0, sizeof j->v);
        j->v.type = words[i].type, j->v.u = words[i].u, j->v.f = words[i].f;
        j->at += n;
        return 1;
    }
    return 0;
}

static inline ckpti_token ckpti_json_open(ckpti_json *j, int bracket) {
    if (j->depth == CKPT_MAX_DEPTH) return ckpti_bad(j, "nested too deeply");
    j->open[j->depth++] = (char)bracket;
    j->at++;
    j->state = CKPTI_AT_FIRST;
    return bracket == '{' ? CKPTI_OBJECT : CKPTI_ARRAY;
}

static inline ckpti_token ckpti_json_close(ckpti_json *j, int bracket) {
    int object = j->open[j->depth - 1] == '{';
    if (bracket != (object ? '}' : ']'))
        return ckpti_bad(j, object ? "',' or '}' is missing" : "',' or ']' is missing");
    j->at++;
    j->state = --j->depth ? CKPTI_AT_COMMA : CKPTI_AT_END;
    return CKPTI_CLOSE;
}

static inline ckpti_token ckpti_json_key(ckpti_json *j, int ch) {
    if (ch != '"') return ckpti_bad(j, "a key in double quotes is missing");
    if (ckpti_json_string(j)) return CKPTI_BAD;
    if (ckpti_peek(j) != ':') return ckpti_bad(j, "':' is missing");
    j->at++;
    j->state = CKPTI_AT_VALUE;
    return CKPTI_KEY;
}

static inline ckpti_token ckpti_json_scalar(ckpti_json *j, int ch) {
    if (ch == '"') {
        if (ckpti_json_string(j)) return CKPTI_BAD;
    } else if (!ckpti_json_word(j)) {
        if (ch != '-' && (ch < '0' || ch > '9')) return ckpti_bad(j, "a value is missing");
        if (ckpti_json_number(j)) return CKPTI_BAD;
    }
    j->state = j->depth ? CKPTI_AT_COMMA : CKPTI_AT_END;
    return CKPTI_SCALAR;
}

static inline ckpti_token ckpti_next(ckpti_json *j) {
    int ch = ckpti_peek(j);
    if (j->state == CKPTI_AT_COMMA && ch == ',') {
        j->at++;
        j->state = CKPTI_AT_ITEM;
        ch = ckpti_peek(j);
    }
    j->c->where = j->start + j->at;
    if (ch >= 0 && (j->state == CKPTI_AT_COMMA || (j->state == CKPTI_AT_FIRST && (ch == '}' || ch == ']'))))
        return ckpti_json_close(j, ch);
    if (j->state == CKPTI_AT_END) return ch < 0 ? CKPTI_DONE : ckpti_bad(j, "something follows the JSON value");
    if (ch < 0) return ckpti_bad(j, "the JSON text ends too early");
    if (j->state != CKPTI_AT_VALUE && j->depth && j->open[j->depth - 1] == '{') return ckpti_json_key(j, ch);
    return ch == '{' || ch == '[' ? ckpti_json_open(j, ch) : ckpti_json_scalar(j, ch);
}

/* Reads a value that must be an array of at most max non-negative integers below 2^64. */
static inline int ckpti_json_integers(ckpti_json *j, uint64_t *out, uint32_t max, uint32_t *n) {
    ckpti_token token = ckpti_next(j);
    if (token == CKPTI_BAD) return -1;
    if (token != CKPTI_ARRAY) return ckpti_fail(j->c, "an array of integers is missing");
    for (*n = 0; (token = ckpti_next(j)) == CKPTI_SCALAR; (*n)++) {
        if (j->v.type != CKPT_VALUE_UINT) return ckpti_fail(j->c, "not an integer from 0 to 2^64 - 1");
        if (*n == max) return ckpti_fail(j->c, "too many numbers in an array");
        out[*n] = j->v.u;
    }
    if (token == CKPTI_BAD) return -1;
    return token == CKPTI_CLOSE ? 0 : ckpti_fail(j->c, "an array of integers is missing");
}

/* Reads and checks the rest of a value of which the first token was given. */
static inline int ckpti_json_skip(ckpti_json *j, ckpti_token token) {
    uint32_t depth = j->depth;
    if (token == CKPTI_OBJECT || token == CKPTI_ARRAY)
        while (token != CKPTI_BAD && j->depth >= depth) token = ckpti_next(j);
    return token == CKPTI_BAD ? -1 : 0;
}

/* -- config.json ------------------------------------------------------------------------------- */

typedef struct ckpti_path {
    char text[CKPT_MAX_KEY];
    size_t length;                        /* of the value at hand */
    size_t prefix[CKPT_MAX_DEPTH + 1];    /* lengths of the open containers' keys */
    size_t container[CKPT_MAX_DEPTH + 1]; /* their values */
    uint64_t count[CKPT_MAX_DEPTH + 1];
} ckpti_path;

static inline int ckpti_path_set(const ckpti_json *j, ckpti_path *p, size_t prefix, const char *before,
                                 const char *text) {
    size_t room = sizeof p->text - prefix;
    int n = snprintf(p->text + prefix, room, "%s%s", before, text);
    if (n < 0 || (size_t)n >= room) return ckpti_fail(j->c, "the nested keys are too long");
    p->length = prefix + (size_t)n;
    return 0;
}

/* Before each value: the key is given by the object's key, or here by the place in the array. */
static inline int ckpti_path_element(const ckpti_json *j, ckpti_path *p, uint32_t depth) {
    char index[24];
    if (depth == 0 || j->open[depth - 1] != '[') return 0;
    snprintf(index, sizeof index, "[%llu]", (ckpti_ull)p->count[depth]);
    return ckpti_path_set(j, p, p->prefix[depth], "", index);
}

static inline ckpt_value *ckpti_flat_value(const ckpti_json *j, ckpt_config *list, const ckpti_path *p) {
    if (list->n >= CKPT_MAX_VALUES) {
        ckpti_message(j->c, "too many values");
        return NULL;
    }
    return ckpti_new_value(j->c, list, ckpti_copy(j->c, p->text, p->length));
}

/* After a closing bracket: the counts are known now. */
static inline int ckpti_flat_close(const ckpti_json *j, ckpt_config *list, ckpti_path *p) {
    uint32_t depth = j->depth + 1;
    if (j->depth == 0) return 0;
    list->items[p->container[depth]].count = p->count[depth];
    if (list->items[p->container[depth]].type == CKPT_VALUE_OBJECT) return 0;
    if (ckpti_path_set(j, p, p->prefix[depth], "", ".#")) return -1;
    ckpt_value *v = ckpti_flat_value(j, list, p);
    if (v) v->type = CKPT_VALUE_UINT, v->u = p->count[depth], v->f = (double)v->u;
    return v ? 0 : -1;
}

/* A scalar or an opening bracket. The string of a scalar is kept before its key is copied, since both are in
   the same room. */
static inline int ckpti_flat_item(ckpti_json *j, ckpt_config *list, ckpti_path *p, ckpti_token token) {
    uint32_t parent = token == CKPTI_SCALAR ? j->depth : j->depth - 1;
    if (ckpti_path_element(j, p, parent)) return -1;
    p->count[parent]++;
    if (token != CKPTI_SCALAR) p->count[j->depth] = 0, p->prefix[j->depth] = p->length;
    if (token != CKPTI_SCALAR && parent == 0) return 0;
    if (token == CKPTI_SCALAR && j->v.type == CKPT_VALUE_STRING) j->v.s = ckpti_keep_string(j);
    ckpt_value *v = ckpti_flat_value(j, list, p);
    if (!v) return -1;
    const char *key = v->key;
    if (token == CKPTI_SCALAR) *v = j->v, v->key = key;
    else v->type = token == CKPTI_OBJECT ? CKPT_VALUE_OBJECT : CKPT_VALUE_ARRAY, p->container[j->depth] = list->n - 1;
    return 0;
}

/* The whole text, which must be an object, as a flat list. */
static inline int ckpti_flatten(ckpt *c, ckpt_config *list, const void *text, size_t size) {
    ckpti_json j;
    ckpti_path p;
    ckpti_json_begin(&j, c, text, size, 0);
    memset(&p, 0, sizeof p);
    j.python = 1;
    ckpti_token token = ckpti_next(&j);
    if (token != CKPTI_BAD && token != CKPTI_OBJECT) return ckpti_fail(c, "not a JSON object");
    while (token != CKPTI_BAD && token != CKPTI_DONE) {
        int status = 0;
        if (token == CKPTI_CLOSE) status = ckpti_flat_close(&j, list, &p);
        else if (token != CKPTI_KEY) status = ckpti_flat_item(&j, list, &p, token);
        else status = ckpti_path_set(&j, &p, p.prefix[j.depth], j.depth > 1 ? "." : "", j.v.s);
        if (status) return -1;
        token = ckpti_next(&j);
    }
    return token == CKPTI_DONE ? 0 : -1;
}

/* -- safetensors ------------------------------------------------------------------------------- */

/* u64 length of the header, the header (JSON: {"name": {"dtype", "shape", "data_offsets": [begin, end]}}), the
   data. */
typedef struct ckpti_entry {
    int type;
    uint32_t n_dims, n_offsets;
    uint64_t dims[CKPT_MAX_DIMS], offsets[2];
} ckpti_entry;

static inline int ckpti_st_dtype(ckpti_json *j, ckpti_entry *e) {
    ckpti_token token = ckpti_next(j);
    if (token == CKPTI_BAD) return -1;
    if (token != CKPTI_SCALAR || j->v.type != CKPT_VALUE_STRING) return ckpti_fail(j->c, "dtype is not a string");
    e->type = ckpt_type_find(j->v.s);
    if (e->type >= 0 && ckpti_types[e->type].safetensors) return 0;
    return ckpti_fail(j->c, "unknown dtype \"%.40s\"", j->v.s);
}

/* The fields between the braces, each exactly once, in any order. */
static inline int ckpti_st_fields(ckpti_json *j, ckpti_entry *e) {
    static const char *const names[] = {"dtype", "shape", "data_offsets"};
    unsigned seen = 0, field;
    ckpti_token token;
    while ((token = ckpti_next(j)) == CKPTI_KEY) {
        for (field = 0; field < 3 && !ckpti_is(j, names[field]); field++) {}
        if (field == 3) return ckpti_fail(j->c, "unknown field \"%.40s\"", j->v.s);
        if (seen >> field & 1) return ckpti_fail(j->c, "a field is there twice");
        seen |= 1u << field;
        if (field == 0 && ckpti_st_dtype(j, e)) return -1;
        if (field == 1 && ckpti_json_integers(j, e->dims, CKPT_MAX_DIMS, &e->n_dims)) return -1;
        if (field == 2 && ckpti_json_integers(j, e->offsets, 2, &e->n_offsets)) return -1;
    }
    if (token == CKPTI_BAD) return -1;
    if (seen != 7) return ckpti_fail(j->c, "dtype, shape or data_offsets is missing");
    return e->n_offsets == 2 ? 0 : ckpti_fail(j->c, "data_offsets is not a pair");
}

static inline int ckpti_st_tensor(ckpti_json *j, size_t shard, const uint8_t *data, uint64_t size) {
    ckpti_entry e;
    uint64_t bytes;
    memset(&e, 0, sizeof e);
    const char *name = ckpti_keep_string(j);
    ckpti_token token = ckpti_next(j);
    if (token == CKPTI_BAD) return -1;
    if (token != CKPTI_OBJECT) return ckpti_fail(j->c, "tensor \"%.100s\": the entry is not an object", name);
    if (ckpti_st_fields(j, &e)) return -1;
    ckpt_tensor *t = ckpti_new_tensor(j->c, shard);
    if (!t) return -1;
    t->name = name, t->type = (ckpt_dtype)e.type, t->n_dims = e.n_dims;
    memcpy(t->dims, e.dims, sizeof t->dims);
    if (ckpti_tensor_bytes(j->c, t, &bytes)) return -1;
    if (e.offsets[0] > e.offsets[1] || e.offsets[1] > size)
        return ckpti_fail(j->c, "tensor \"%.100s\": bytes %llu to %llu are not in the %llu bytes of data", name,
                          (ckpti_ull)e.offsets[0], (ckpti_ull)e.offsets[1], (ckpti_ull)size);
    t->data = data + e.offsets[0];
    t->bytes = e.offsets[1] - e.offsets[0];
    if (t->bytes == bytes) return 0;
    return ckpti_fail(j->c, "tensor \"%.100s\": the shape needs %llu bytes, the offsets span %llu", name,
                      (ckpti_ull)bytes, (ckpti_ull)t->bytes);
}

/* Strings only. Kept of the first shard: others repeat it. */
static inline int ckpti_st_metadata(ckpti_json *j, size_t shard) {
    static const char prefix[] = "__metadata__.";
    ckpti_token token = ckpti_next(j);
    if (token != CKPTI_BAD && token != CKPTI_OBJECT) return ckpti_fail(j->c, "__metadata__ is not an object");
    while (token != CKPTI_BAD && (token = ckpti_next(j)) == CKPTI_KEY) {
        size_t length = sizeof prefix - 1 + (size_t)j->v.count;
        char *key = ckpti_keep_string(j), *full = ckpti_room(j->c, length + 1);
        if (!full) return -1;
        memcpy(full, prefix, sizeof prefix - 1), memcpy(full + sizeof prefix - 1, key, (size_t)j->v.count + 1);
        ckpti_keep(j->c, length + 1);
        token = ckpti_next(j);
        if (token != CKPTI_BAD && (token != CKPTI_SCALAR || j->v.type != CKPT_VALUE_STRING))
            return ckpti_fail(j->c, "a value of __metadata__ is not a string");
        if (token == CKPTI_BAD || shard) continue;
        j->v.s = ckpti_keep_string(j);
        ckpt_value *v = ckpti_new_value(j->c, &j->c->config, full);
        if (!v) return -1;
        *v = j->v, v->key = full;
    }
    return token == CKPTI_BAD ? -1 : 0;
}

static inline int ckpti_before(const ckpt_tensor *a, const ckpt_tensor *b) {
    return a->data != b->data ? a->data < b->data : a->bytes < b->bytes;
}

static inline void ckpti_sift(ckpt_tensor *t, size_t root, size_t n) {
    ckpt_tensor moved = t[root];
    for (size_t child; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n && ckpti_before(&t[child], &t[child + 1])) child++;
        if (!ckpti_before(&moved, &t[child])) break;
        t[root] = t[child];
    }
    t[root] = moved;
}

/* By place in the file, the empty ones first. Most files are in order; heapsort needs no memory and has no bad
   case. */
static inline void ckpti_sort(ckpt_tensor *t, size_t n) {
    size_t i = 1;
    while (i < n && !ckpti_before(&t[i], &t[i - 1])) i++;
    if (i >= n) return;
    for (i = n / 2; i-- > 0;) ckpti_sift(t, i, n);
    for (i = n; i-- > 1;) {
        ckpt_tensor last = t[i];
        t[i] = t[0], t[0] = last;
        ckpti_sift(t, 0, i);
    }
}

/* Each tensor begins where the one before ends, the first at 0, and the last ends at the end of the file. */
static inline int ckpti_st_layout(ckpt *c, size_t first, const uint8_t *data, uint64_t size) {
    uint64_t at = 0;
    if (c->n_tensors > first) ckpti_sort(c->tensors + first, c->n_tensors - first);
    for (size_t i = first; i < c->n_tensors; i++) {
        const ckpt_tensor *t = &c->tensors[i];
        uint64_t begin = (uint64_t)(t->data - data);
        if (begin != at)
            return ckpti_fail(
                c, "tensor \"%.100s\": begins at %llu of the data, but what is before it (%.100s) ends at %llu",
                t->name, (ckpti_ull)begin, i > first ? t[-1].name : "the header", (ckpti_ull)at);
        at += t->bytes;
    }
    if (at == size) return 0;
    return ckpti_fail(c, "the tensors end at %llu, but there are %llu bytes of data", (ckpti_ull)at, (ckpti_ull)size);
}

/* 1 where weight_map (if there is one) has the tensor in this shard, 0 where it does not have it, or -1. */
static inline int ckpti_listed_here(ckpt *c, const char *name, size_t shard) {
    if (!c->listed) return 1;
    uint32_t item = ckpti_find(&c->listed_table, c->listed, sizeof *c->listed, name);
    if (!item) return 0;
    size_t listed = c->listed[item - 1].shard;
    if (listed == shard) return 1;
    return ckpti_fail(c, "tensor \"%.100s\" is in this file, but weight_map puts it in \"%.100s\"", name,
                      c->shards[listed].name);
}

/* Puts the shard's tensors into the table by name, and drops those that are not listed. */
static inline int ckpti_st_names(ckpt *c, size_t first, size_t shard) {
    size_t n = c->n_tensors;
    c->n_tensors = first;
    for (size_t i = first; i < n; i++) {
        int listed = ckpti_listed_here(c, c->tensors[i].name, shard);
        if (listed < 0) return -1;
        c->n_unlisted += !listed;
        if (!listed) continue;
        c->tensors[c->n_tensors] = c->tensors[i];
        if (ckpti_add(c, "tensor", &c->tensor_table, c->tensors, sizeof *c->tensors, c->n_tensors++)) return -1;
    }
    return 0;
}

static inline int ckpti_st_header(ckpti_json *j, size_t shard, const uint8_t *data, uint64_t size) {
    int metadata = 0;
    ckpti_token token = ckpti_next(j);
    if (token != CKPTI_BAD && token != CKPTI_OBJECT) return ckpti_fail(j->c, "the header is not a JSON object");
    while (token != CKPTI_BAD && (token = ckpti_next(j)) == CKPTI_KEY) {
        if (!ckpti_is(j, "__metadata__")) {
            if (ckpti_st_tensor(j, shard, data, size)) return -1;
        } else if (metadata++) return ckpti_fail(j->c, "__metadata__ is there twice");
        else if (ckpti_st_metadata(j, shard)) return -1;
    }
    if (token != CKPTI_BAD) token = ckpti_next(j);
    return token == CKPTI_DONE ? 0 : -1;
}

static inline int ckpti_safetensors(ckpt *c, size_t shard) {
    const uint8_t *file = c->shards[shard].data;
    uint64_t size = c->shards[shard].size;
    size_t first = c->n_tensors;
    if (size < 8)
        return ckpti_fail(c, "not a safetensors file: %llu bytes, fewer than the 8 of a header length",
                          (ckpti_ull)size);
    uint64_t header = ckpt_load_u64(file);
    if (header > CKPT_MAX_HEADER)
        return ckpti_fail(c, "not a safetensors file: a header of %llu bytes; at most %d", (ckpti_ull)header,
                          CKPT_MAX_HEADER);
    if (header > size - 8)
        return ckpti_fail(c, "a header of %llu bytes in a file of %llu", (ckpti_ull)header, (ckpti_ull)size);
    const uint8_t *data = file + 8 + header;
    ckpti_json j;
    ckpti_json_begin(&j, c, file + 8, (size_t)header, 8);
    if (ckpti_st_header(&j, shard, data, size - 8 - header)) return -1;
    c->where = CKPTI_NOWHERE;
    if (ckpti_st_layout(c, first, data, size - 8 - header)) return -1;
    return ckpti_st_names(c, first, shard);
}

/* -- GGUF -------------------------------------------------------------------------------------- */

/* Header, metadata, tensor infos, padding, data. Reading past the end gives zeros and sets cut, which is
   checked before anything that was read is used for more than another read. (The line with an @ is for make prove.) */
typedef struct ckpti_cursor {
    ckpt *c;
    const uint8_t *data;
    uint64_t size, at;
    int cut;
} ckpti_cursor;

static inline uint64_t ckpti_left(const ckpti_cursor *g) { return g->size - g->at; }

static inline const uint8_t *ckpti_take(ckpti_cursor *g, uint64_t bytes) {
    static const uint8_t zeros[8] = {0};
    if (g->cut || bytes > ckpti_left(g)) return g->cut = 1, zeros;
    const uint8_t *p = g->data + g->at;
    g->at += bytes;
    return p;
}

static inline uint32_t ckpti_u32(ckpti_cursor *g) { return ckpt_load_u32(ckpti_take(g, 4)); }
static inline uint64_t ckpti_u64(ckpti_cursor *g) { return ckpt_load_u64(ckpti_take(g, 8)); }

/* A copy of a string of at most max bytes; NULL after a message. A name may hold no NUL byte. */
static inline char *ckpti_gguf_string(ckpti_cursor *g, const char *what, uint64_t max, int name, uint64_t *length) {
    *length = ckpti_u64(g);
    uint64_t n = *length <= max ? *length : 0;
    const uint8_t *p = ckpti_take(g, n);
    if (g->cut) ckpti_message(g->c, "the file ends inside a %s", what);
    else if (n != *length) ckpti_message(g->c, "a %s of %llu bytes", what, (ckpti_ull)*length);
    else if (name && n && memchr(p, 0, (size_t)n)) ckpti_message(g->c, "there is a NUL byte in a %s", what);
    else return ckpti_copy(g->c, p, (size_t)n);
    return NULL;
}

static inline int ckpti_gguf_array(ckpti_cursor *g, ckpt_value *v) {
    v->type = CKPT_VALUE_ARRAY, v->element = ckpti_u32(g), v->count = ckpti_u64(g);
    if (g->cut) return ckpti_fail(g->c, "the file ends inside an array");
    if (v->element >= CKPTI_GGUF_TYPES)
        return ckpti_fail(g->c, "unknown array element type %u", (unsigned)v->element);
    if (v->element == CKPTI_GGUF_ARRAY) return ckpti_fail(g->c, "an array of arrays");
    uint64_t bytes = v->element == CKPTI_GGUF_STRING ? 8 : ckpti_scalar_bytes[v->element];
    if (v->count > ckpti_left(g) / bytes)
        return ckpti_fail(g->c, "an array of %llu elements does not fit in the file", (ckpti_ull)v->count);
    if (v->element != CKPTI_GGUF_STRING) return v->data = ckpti_take(g, v->count * bytes), 0;
    /*@ loop invariant g->at <= g->size; loop assigns i, g->at, g->cut; */
    for (uint64_t i = 0; i < v->count && !g->cut; i++) ckpti_take(g, ckpti_u64(g));
    return g->cut ? ckpti_fail(g->c, "the file ends inside an array of strings") : 0;
}

static inline int ckpti_gguf_value(ckpti_cursor *g, ckpt_value *v) {
    uint32_t type = ckpti_u32(g);
    if (type >= CKPTI_GGUF_TYPES) return ckpti_fail(g->c, "unknown value type %u", (unsigned)type);
    if (type == CKPTI_GGUF_ARRAY) return ckpti_gguf_array(g, v);
    if (type != CKPTI_GGUF_STRING) {
        ckpti_scalar(v, type, ckpti_take(g, ckpti_scalar_bytes[type]));
        v->element = type; /* told apart: general.alignment must be a u32 */
        return g->cut ? ckpti_fail(g->c, "the file ends inside a value") : 0;
    }
    v->type = CKPT_VALUE_STRING;
    v->s = ckpti_gguf_string(g, "string", CKPT_MAX_STRING, 0, &v->count);
    return v->s ? 0 : -1;
}

static inline int ckpti_gguf_metadata(ckpti_cursor *g, ckpt_config *list, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        uint64_t length;
        g->c->where = g->at;
        const char *key = ckpti_gguf_string(g, "key", 65535, 1, &length);
        if (key && length == 0) return ckpti_fail(g->c, "an empty key");
        ckpt_value value, *v = ckpti_new_value(g->c, list, key);
        if (!v) return -1;
        memset(&value, 0, sizeof value);
        value.key = v->key;
        if (ckpti_gguf_value(g, &value)) return -1;
        *v = value;
    }
    return 0;
}

static inline int ckpti_gguf_alignment(const ckpti_cursor *g, const ckpt_config *list, uint64_t *alignment) {
    const ckpt_value *v = ckpti_get(list, "general.alignment");
    *alignment = 32;
    if (!v) return 0;
    if (v->type != CKPT_VALUE_UINT || v->element != CKPTI_GGUF_U32)
        return ckpti_fail(g->c, "general.alignment is not a u32");
    if (v->u == 0 || v->u > 65536 || (v->u & (v->u - 1)))
        return ckpti_fail(g->c, "general.alignment is %llu, not a power of two from 1 to 65536", (ckpti_ull)v->u);
    *alignment = v->u;
    return 0;
}

/* One tensor info. *end is the padded end of the tensors so far: the offset must be just that. */
static inline int ckpti_gguf_tensor(ckpti_cursor *g, size_t shard, uint64_t alignment, uint64_t *end) {
    uint64_t length;
    g->c->where = g->at;
    const char *name = ckpti_gguf_string(g, "tensor name", 63, 1, &length);
    ckpt_tensor *t = name ? ckpti_new_tensor(g->c, shard) : NULL;
    if (!t) return -1;
    t->name = name;
    t->n_dims = ckpti_u32(g);
    if (t->n_dims > 4)
        return ckpti_fail(g->c, "tensor \"%s\" has %u dimensions; at most 4", t->name, (unsigned)t->n_dims);
    for (uint32_t i = t->n_dims; i-- > 0;) t->dims[i] = ckpti_u64(g);
    uint32_t id = ckpti_u32(g);
    uint64_t offset = ckpti_u64(g), row = t->n_dims ? t->dims[t->n_dims - 1] : 1;
    int type = ckpti_type_of_gguf(id);
    if (g->cut) return ckpti_fail(g->c, "the file ends inside the info of tensor \"%s\"", t->name);
    if (type < 0) return ckpti_fail(g->c, "tensor \"%s\": unknown or removed type %u", t->name, (unsigned)id);
    t->type = (ckpt_dtype)type;
    if (row % ckpti_types[type].elements)
        return ckpti_fail(g->c,
                          "tensor \"%s\": rows of %llu elements are no whole number of blocks of %s (%u elements)",
                          t->name, (ckpti_ull)row, ckpti_types[type].name, (unsigned)ckpti_types[type].elements);
    if (ckpti_tensor_bytes(g->c, t, &t->bytes)) return -1;
    if (offset != *end)
        return ckpti_fail(g->c, "tensor \"%s\": offset %llu, but the tensors before it end at %llu", t->name,
                          (ckpti_ull)offset, (ckpti_ull)*end);
    if (t->bytes > g->size || ckpti_round_up(offset + t->bytes, alignment, end) || *end > INT64_MAX)
        return ckpti_fail(g->c, "tensor \"%s\": %llu bytes in a file of %llu", t->name, (ckpti_ull)t->bytes,
                          (ckpti_ull)g->size);
    return ckpti_add(g->c, "tensor", &g->c->tensor_table, g->c->tensors, sizeof *t, g->c->n_tensors - 1);
}

/* After all infos the place of the data is known: gives each tensor its address. The padding after the last one
   may be missing. */
static inline int ckpti_gguf_place(const ckpti_cursor *g, size_t first, uint64_t alignment) {
    uint64_t at;
    if (ckpti_round_up(g->at, alignment, &at)) return ckpti_fail(g->c, "the file is too large");
    for (size_t i = first; i < g->c->n_tensors; i++) {
        ckpt_tensor *t = &g->c->tensors[i];
        if (at > g->size || t->bytes > g->size - at)
            return ckpti_fail(g->c, "tensor \"%s\": its %llu bytes from byte %llu do not fit in the file's %llu",
                              t->name, (ckpti_ull)t->bytes, (ckpti_ull)at, (ckpti_ull)g->size);
        t->data = g->data + at;
        if (ckpti_round_up(at + t->bytes, alignment, &at)) return ckpti_fail(g->c, "the file is too large");
    }
    return 0;
}

static inline int ckpti_gguf_header(ckpti_cursor *g, uint64_t *n_tensors, uint64_t *n_values) {
    const uint8_t *magic = ckpti_take(g, 4);
    if (g->cut || memcmp(magic, "GGUF", 4))
        return ckpti_fail(g->c, "not a GGUF file: it does not begin with \"GGUF\"");
    uint32_t version = ckpti_u32(g);
    *n_tensors = ckpti_u64(g), *n_values = ckpti_u64(g);
    if (g->cut) return ckpti_fail(g->c, "the file ends inside the GGUF header");
    if (version && (version & 0xFFFF) == 0) return ckpti_fail(g->c, "a big-endian GGUF file, which is not supported");
    if (version != 2 && version != 3)
        return ckpti_fail(g->c, "GGUF version %u; known are 2 and 3", (unsigned)version);
    /* the shortest entries: a key of one byte with a value of one, an empty tensor name without dimensions */
    if (*n_values > ckpti_left(g) / 14)
        return ckpti_fail(g->c, "%llu metadata values do not fit in the file", (ckpti_ull)*n_values);
    if (*n_tensors > ckpti_left(g) / 24)
        return ckpti_fail(g->c, "%llu tensors do not fit in the file", (ckpti_ull)*n_tensors);
    return 0;
}

static inline int ckpti_gguf(ckpt *c, size_t shard, ckpt_config *list) {
    ckpti_cursor g = {c, c->shards[shard].data, c->shards[shard].size, 0, 0};
    uint64_t n_tensors, n_values, alignment, end = 0;
    size_t first = c->n_tensors;
    if (ckpti_gguf_header(&g, &n_tensors, &n_values)) return -1;
    if (ckpti_gguf_metadata(&g, list, n_values)) return -1;
    c->where = CKPTI_NOWHERE;
    if (ckpti_gguf_alignment(&g, list, &alignment)) return -1;
    for (uint64_t i = 0; i < n_tensors; i++)
        if (ckpti_gguf_tensor(&g, shard, alignment, &end)) return -1;
    c->where = CKPTI_NOWHERE;
    return ckpti_gguf_place(&g, first, alignment);
}

/* -- Files ------------------------------------------------------------------------------------- */

enum { CKPTI_BORROWED, CKPTI_HEAP, CKPTI_MAPPED };

#ifdef O_CLOEXEC
enum { CKPTI_OPEN = O_RDONLY | O_NONBLOCK | O_CLOEXEC }; /* O_NONBLOCK: a FIFO put there meanwhile must not block */
#else
enum { CKPTI_OPEN = O_RDONLY | O_NONBLOCK };
#endif

static inline int ckpti_read(ckpt *c, int fd, uint8_t *to, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
        size_t want = bytes - at < 1u << 30 ? bytes - at : 1u << 30; /* some systems refuse more than INT_MAX */
        ptrdiff_t n = c->options.read ? c->options.read(c->options.user, fd, to + at, want) : read(fd, to + at, want);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return ckpti_fail(c, "cannot read byte %llu: %s", (ckpti_ull)at, strerror(errno));
        if (n == 0 || (size_t)n > want)
            return ckpti_fail(c, "ends at byte %llu of %llu: it was changed while it was read", (ckpti_ull)at,
                              (ckpti_ull)bytes);
        at += (size_t)n;
    }
    return 0;
}

/* Where a file cannot be mapped (some file systems cannot) it is read. */
static inline int ckpti_map(ckpt *c, int fd, ckpt_shard *s) {
    size_t bytes = (size_t)s->size;
#ifndef CKPT_NO_MMAP
    void *map = c->options.no_mmap ? MAP_FAILED : mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map != MAP_FAILED) return s->data = (const uint8_t *)map, s->storage = CKPTI_MAPPED, 0;
#endif
    uint8_t *heap = (uint8_t *)ckpti_resize(c, NULL, bytes);
    if (!heap) return -1;
    s->data = heap, s->storage = CKPTI_HEAP;
    return ckpti_read(c, fd, heap, bytes);
}

static inline int ckpti_load_file(ckpt *c, int fd, ckpt_shard *s) {
    static const uint8_t nothing = 0;
    struct stat st;
    if (fstat(fd, &st)) return ckpti_fail(c, "cannot read: %s", strerror(errno));
    if (!S_ISREG(st.st_mode)) return ckpti_fail(c, "not a regular file");
    if (st.st_size < 0 || (uint64_t)st.st_size > (uint64_t)PTRDIFF_MAX)
        return ckpti_fail(c, "too large for this machine");
    s->size = (uint64_t)st.st_size;
    s->data = &nothing;
    return s->size ? ckpti_map(c, fd, s) : 0;
}

static inline int ckpti_load_memory(ckpt *c, const char *path, ckpt_shard *s, int optional) {
    for (size_t i = 0; i < c->n_files; i++) {
        if (strcmp(c->files[i].name, path)) continue;
        s->data = (const uint8_t *)c->files[i].data, s->size = c->files[i].size;
        return 0;
    }
    return optional ? 1 : ckpti_fail(c, "no such file in memory");
}

/* 0, or -1 after a message; 1 where the file is optional and not there. What was loaded is in s even after a
   failure. */
static inline int ckpti_load_path(ckpt *c, const char *path, ckpt_shard *s, int optional) {
    struct stat st;
    c->file = path, c->where = CKPTI_NOWHERE;
    if (c->files) return ckpti_load_memory(c, path, s, optional);
    if (stat(path, &st)) return optional && errno == ENOENT ? 1 : ckpti_fail(c, "cannot open: %s", strerror(errno));
    if (S_ISDIR(st.st_mode)) return ckpti_fail(c, "a directory, not a file");
    if (!S_ISREG(st.st_mode)) return ckpti_fail(c, "not a regular file"); /* even opening a device can have effects */
    int fd = open(path, CKPTI_OPEN);
    if (fd < 0) return ckpti_fail(c, "cannot open: %s", strerror(errno));
    int status = ckpti_load_file(c, fd, s);
    close(fd);
    return status;
}

static inline void ckpti_unload(const ckpt *c, ckpt_shard *s) {
    void *data = (void *)(uintptr_t)s->data;
#ifndef CKPT_NO_MMAP
    if (s->storage == CKPTI_MAPPED) munmap(data, (size_t)s->size);
#endif
    if (s->storage == CKPTI_HEAP) ckpti_release(c, data);
    s->data = NULL, s->size = 0, s->storage = CKPTI_BORROWED;
}

/* -- Opening ----------------------------------------------------------------------------------- */

static inline size_t ckpti_directory(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

static inline char *ckpti_beside(ckpt *c, const char *path, const char *name) {
    size_t directory = ckpti_directory(path), length = strlen(name);
    char *full = ckpti_room(c, directory + length + 1);
    if (!full) return NULL;
    memcpy(full, path, directory), memcpy(full + directory, name, length + 1);
    return ckpti_keep(c, directory + length + 1);
}

static inline int ckpti_ends(const char *text, const char *end) {
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The path must be kept already (NULL: that failed). */
static inline ckpt_shard *ckpti_new_shard(ckpt *c, const char *path) {
    if (!path) return NULL;
    ckpt_shard *all = (ckpt_shard *)ckpti_grow(c, c->shards, &c->shard_capacity, c->n_shards + 1, sizeof *all);
    if (!all) return NULL;
    c->shards = all;
    ckpt_shard *s = &all[c->n_shards++];
    memset(s, 0, sizeof *s);
    s->path = path, s->name = path + ckpti_directory(path);
    return s;
}

static inline int ckpti_open_config(ckpt *c, const char *path) {
    ckpt_shard s;
    memset(&s, 0, sizeof s);
    const char *config = ckpti_beside(c, path, "config.json");
    if (!config) return -1;
    int status = ckpti_load_path(c, config, &s, 1);
    if (status > 0) { /* Mistral's own name for it */
        if (!(config = ckpti_beside(c, path, "params.json"))) return -1;
        status = ckpti_load_path(c, config, &s, 1);
    }
    if (!status && s.size > CKPT_MAX_CONFIG) status = ckpti_fail(c, "more than %d bytes", CKPT_MAX_CONFIG);
    if (!status) status = ckpti_flatten(c, &c->config, s.data, (size_t)s.size);
    ckpti_unload(c, &s);
    return status < 0 ? -1 : 0;
}

/* A shard is a plain file name: what it names is in the index's directory on every system. */
static inline int ckpti_plain_file(const char *name) {
    for (const char *p = name; *p; p++)
        if (strchr("/\\:", *p) || (uint8_t)*p < 0x20) return 0;
    return *name && strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static inline int ckpti_list_shard(ckpt *c, const char *path, const char *name, uint32_t *shard) {
    uint32_t item = ckpti_find(&c->shard_table, c->shards, sizeof *c->shards, name);
    *shard = item - 1;
    if (item) return 0;
    if (!ckpti_plain_file(name)) return ckpti_fail(c, "shard \"%.100s\" is not a plain file name", name);
    if (!ckpti_new_shard(c, ckpti_beside(c, path, name))) return -1;
    *shard = (uint32_t)c->n_shards - 1;
    return ckpti_add(c, "shard", &c->shard_table, c->shards, sizeof *c->shards, *shard);
}

/* One "tensor": "shard" of weight_map. */
static inline int ckpti_list_tensor(ckpti_json *j, const char *path) {
    ckpt *c = j->c;
    const char *name = ckpti_keep_string(j);
    ckpti_token token = ckpti_next(j);
    if (token == CKPTI_BAD) return -1;
    if (token != CKPTI_SCALAR || j->v.type != CKPT_VALUE_STRING)
        return ckpti_fail(c, "tensor \"%.100s\": the shard is not a string", name);
    ckpti_listed *all = (ckpti_listed *)ckpti_grow(c, c->listed, &c->listed_capacity, c->n_listed + 1, sizeof *all);
    if (!all) return -1;
    c->listed = all;
    all[c->n_listed].name = name;
    const char *shard = ckpti_keep_string(j);
    if (ckpti_list_shard(c, path, shard, &all[c->n_listed].shard)) return -1;
    return ckpti_add(c, "tensor", &c->listed_table, all, sizeof *all, c->n_listed++);
}

static inline int ckpti_weight_map(ckpti_json *j, const char *path) {
    ckpti_token token = ckpti_next(j);
    if (token != CKPTI_BAD && token != CKPTI_OBJECT) return ckpti_fail(j->c, "weight_map is not an object");
    while (token != CKPTI_BAD && (token = ckpti_next(j)) == CKPTI_KEY)
        if (ckpti_list_tensor(j, path)) return -1;
    return token == CKPTI_BAD ? -1 : 0;
}

/* {"metadata": ..., "weight_map": {...}}: everything but weight_map is checked as JSON and ignored, total_size
   in particular. */
static inline int ckpti_index(ckpt *c, const char *path, const void *text, size_t size) {
    ckpti_json j;
    int maps = 0;
    ckpti_json_begin(&j, c, text, size, 0);
    ckpti_token token = ckpti_next(&j);
    if (token != CKPTI_BAD && token != CKPTI_OBJECT) return ckpti_fail(c, "the index is not a JSON object");
    while (token != CKPTI_BAD && (token = ckpti_next(&j)) == CKPTI_KEY) {
        int map = ckpti_is(&j, "weight_map");
        if (map && maps++) return ckpti_fail(c, "weight_map is there twice");
        if (map ? ckpti_weight_map(&j, path) : ckpti_json_skip(&j, ckpti_next(&j))) return -1;
    }
    if (token == CKPTI_BAD || ckpti_next(&j) == CKPTI_BAD) return -1;
    return c->n_listed ? 0
                       : ckpti_fail(c, "the index names no tensors: weight_map is %s", maps ? "empty" : "missing");
}

/* After all shards were read. Each tensor that was taken is a listed one, so equal numbers mean that none is
   missing. */
static inline int ckpti_all_listed(ckpt *c, const char *path) {
    c->file = path, c->where = CKPTI_NOWHERE;
    if (c->n_tensors == c->n_listed) return 0;
    for (size_t i = 0; i < c->n_listed; i++)
        if (!ckpt_find(c, c->listed[i].name))
            return ckpti_fail(c, "tensor \"%.100s\" is not in its shard \"%.100s\"", c->listed[i].name,
                              c->shards[c->listed[i].shard].name);
    return 0;
}

/* As ckpti_load_path: 1 where it is optional and not there. */
static inline int ckpti_open_index(ckpt *c, const char *path, int optional) {
    ckpt_shard s;
    memset(&s, 0, sizeof s);
    int status = ckpti_load_path(c, path, &s, optional);
    if (!status && s.size > CKPT_MAX_HEADER) status = ckpti_fail(c, "more than %d bytes", CKPT_MAX_HEADER);
    if (!status) status = ckpti_index(c, path, s.data, (size_t)s.size);
    ckpti_unload(c, &s);
    for (size_t i = 0; i < c->n_shards && !status; i++) {
        status = ckpti_load_path(c, c->shards[i].path, &c->shards[i], 0);
        if (!status) status = ckpti_safetensors(c, i);
    }
    return status ? status : ckpti_all_listed(c, path);
}

static inline int ckpti_open_directory(ckpt *c, const char *directory) {
    size_t length = strlen(directory);
    char *path = ckpti_room(c, length + 2);
    if (!path) return -1;
    memcpy(path, directory, length), memcpy(path + length, "/", 2);
    ckpti_keep(c, length + 2);
    const char *index = ckpti_beside(c, path, "model.safetensors.index.json");
    if (!index) return -1;
    int status = ckpti_open_index(c, index, 1);
    if (status == 1) {
        ckpt_shard *s = ckpti_new_shard(c, ckpti_beside(c, path, "model.safetensors"));
        if (!s) return -1;
        status = ckpti_load_path(c, s->path, s, 1);
        if (!status) status = ckpti_safetensors(c, 0);
    }
    c->file = directory;
    if (status == 1)
        return ckpti_fail(c, "neither model.safetensors.index.json nor model.safetensors is in this directory");
    return status ? status : ckpti_open_config(c, path);
}

/* The places of both numbers in NAME-00001-of-0000N.gguf, or 0. */
static inline int ckpti_split_name(const char *path, uint32_t *number, uint32_t *count) {
    size_t n = strlen(path);
    const char *p = path + (n < 20 ? 0 : n - 20);
    if (n < 20 || p[0] != '-' || memcmp(p + 6, "-of-", 4) || strcmp(p + 15, ".gguf")) return 0;
    *number = *count = 0;
    for (int i = 0; i < 5; i++) {
        if (p[1 + i] < '0' || p[1 + i] > '9' || p[10 + i] < '0' || p[10 + i] > '9') return 0;
        *number = *number * 10 + (uint32_t)(p[1 + i] - '0');
        *count = *count * 10 + (uint32_t)(p[10 + i] - '0');
    }
    return 1;
}

static inline void ckpti_clear(const ckpt *c, ckpt_config *list) {
    ckpti_release(c, list->items);
    ckpti_release(c, list->table.slots);
    memset(list, 0, sizeof *list);
}

static inline int ckpti_check_split(ckpt *c, const ckpt_config *list, uint64_t number, uint64_t count) {
    uint64_t no = UINT64_MAX, of = UINT64_MAX;
    if (!ckpt_as_u64(ckpti_get(list, "split.no"), &no) || !ckpt_as_u64(ckpti_get(list, "split.count"), &of))
        return ckpti_fail(c, "split.no or split.count is missing in a shard");
    if (no == number && of == count) return 0;
    return ckpti_fail(c, "says that it is shard %llu of %llu, but its name says %llu of %llu", (ckpti_ull)no + 1,
                      (ckpti_ull)of, (ckpti_ull)number + 1, (ckpti_ull)count);
}

/* A further shard: its metadata is checked but only the first one's is kept. */
static inline int ckpti_open_split(ckpt *c, const char *first, uint32_t number, uint32_t count) {
    char digits[16];
    size_t length = strlen(first);
    char *path = ckpti_copy(c, first, length);
    snprintf(digits, sizeof digits, "%05u", (unsigned)number + 1);
    if (path) memcpy(path + length - 19, digits, 5);
    ckpt_shard *s = ckpti_new_shard(c, path);
    if (!s || ckpti_load_path(c, path, s, 0)) return -1;
    if (ckpti_gguf(c, number, &c->other) || ckpti_check_split(c, &c->other, number, count)) return -1;
    ckpti_clear(c, &c->other);
    return 0;
}

static inline int ckpti_open_gguf(ckpt *c, const char *path) {
    uint32_t number = 1, count = 1;
    uint64_t total = 0;
    c->is_gguf = 1;
    if (ckpti_gguf(c, 0, &c->config)) return -1;
    int named = ckpti_split_name(path, &number, &count);
    uint64_t parts = ckpt_get_u64(c, "split.count", 1);
    if (parts <= 1 && count <= 1) return 0;
    if (!named)
        return ckpti_fail(c, "one of %llu shards, so its name must end in -00001-of-%05llu.gguf", (ckpti_ull)parts,
                          (ckpti_ull)parts);
    if (number != 1) return ckpti_fail(c, "shard %u of %u: open the first one", (unsigned)number, (unsigned)count);
    if (ckpti_check_split(c, &c->config, 0, count)) return -1;
    for (uint32_t i = 1; i < count; i++)
        if (ckpti_open_split(c, c->shards[0].path, i, count)) return -1;
    c->file = path;
    if (ckpt_as_u64(ckpt_get(c, "split.tensors.count"), &total) && total == c->n_tensors) return 0;
    return ckpti_fail(c, "split.tensors.count is %llu, but the shards have %llu tensors", (ckpti_ull)total,
                      (ckpti_ull)c->n_tensors);
}

static inline int ckpti_open(ckpt *c, const char *path) {
    struct stat st;
    if (!c->files && stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return ckpti_open_directory(c, path);
    if (ckpti_ends(path, ".json")) return ckpti_open_index(c, path, 0) ? -1 : ckpti_open_config(c, path);
    ckpt_shard *s = ckpti_new_shard(c, ckpti_copy(c, path, strlen(path)));
    if (!s || ckpti_load_path(c, path, s, 0)) return -1;
    if (ckpti_ends(path, ".gguf") || (s->size >= 4 && memcmp(s->data, "GGUF", 4) == 0))
        return ckpti_open_gguf(c, path);
    return ckpti_safetensors(c, 0) ? -1 : ckpti_open_config(c, path);
}

static inline void ckpti_begin(ckpt *c, const char *path, const ckpt_options *options, char *err) {
    memset(c, 0, sizeof *c);
    if (options) c->options = *options;
    c->file = path, c->where = CKPTI_NOWHERE, c->err = err;
    if (err) err[0] = 0;
}

static inline int ckpti_end(ckpt *c, int status) {
    if (status) ckpt_close(c);
    c->err = NULL, c->file = NULL, c->files = NULL, c->n_files = 0;
    return status ? -1 : 0;
}

CKPT_DEF int ckpt_open_with(ckpt *c, const char *path, const ckpt_options *options, char *err) {
    ckpti_begin(c, path, options, err);
    return ckpti_end(c, ckpti_open(c, path));
}

CKPT_DEF int ckpt_open(ckpt *c, const char *path, char *err) { return ckpt_open_with(c, path, NULL, err); }

CKPT_DEF int ckpt_open_memory(ckpt *c, const ckpt_file *files, size_t n, const ckpt_options *options, char *err) {
    ckpti_begin(c, n ? files[0].name : "", options, err);
    c->files = files, c->n_files = n;
    return ckpti_end(c, n ? ckpti_open(c, files[0].name) : ckpti_fail(c, "no files"));
}

CKPT_DEF int ckpt_open_json(ckpt *c, const char *name, const void *text, size_t size, char *err) {
    ckpti_begin(c, name, NULL, err);
    return ckpti_end(c, ckpti_flatten(c, &c->config, text, size));
}

CKPT_DEF void ckpt_close(ckpt *c) {
    for (size_t i = 0; i < c->n_shards; i++) ckpti_unload(c, &c->shards[i]);
    ckpti_clear(c, &c->config);
    ckpti_clear(c, &c->other);
    void *memory[] = {
        c->shards, c->tensors, c->listed, c->tensor_table.slots, c->shard_table.slots, c->listed_table.slots};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) ckpti_release(c, memory[i]);
    for (ckpti_block *b = c->strings, *next; b; b = next) {
        next = b->next;
        ckpti_release(c, b);
    }
    memset(c, 0, sizeof *c);
}

/* -- Writing ----------------------------------------------------------------------------------- */

typedef struct ckpti_writer {
    ckpt c; /* memory, messages, and at the end the reader that checks the file */
    int fd;
    const char *path;
    char *temporary; /* set while the file is there */
    char *text;      /* the header */
    size_t used, capacity;
    size_t *order; /* of the tensors in the file */
} ckpti_writer;

static inline int ckpti_append(ckpti_writer *w, const char *text, size_t n) {
    if (w->used + n > w->capacity) {
        size_t room = 2 * w->capacity + n + 256;
        char *grown = (char *)ckpti_resize(&w->c, w->text, room);
        if (!grown) return -1;
        w->text = grown, w->capacity = room;
    }
    memcpy(w->text + w->used, text, n);
    w->used += n;
    return 0;
}

CKPT_PRINTF(2, 3) static inline int ckpti_appendf(ckpti_writer *w, const char *format, ...) {
    char text[128];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return ckpti_append(w, text, (size_t)n);
}

static inline int ckpti_append_string(ckpti_writer *w, const char *s) {
    int status = ckpti_append(w, "\"", 1);
    for (; *s && !status; s++) {
        if (*s == '"' || *s == '\\') status = ckpti_appendf(w, "\\%c", *s);
        else if ((uint8_t)*s < 0x20) status = ckpti_appendf(w, "\\u%04x", (unsigned)*s);
        else status = ckpti_append(w, s, 1);
    }
    return status ? -1 : ckpti_append(w, "\"", 1);
}

/* Larger elements first, so that all are aligned to their size. */
static inline int ckpti_write_order(ckpti_writer *w, const ckpt_out *tensors, size_t n) {
    size_t used = 0;
    if (n > (size_t)PTRDIFF_MAX / sizeof *w->order) return ckpti_fail(&w->c, "too many tensors");
    w->order = (size_t *)ckpti_resize(&w->c, NULL, (n ? n : 1) * sizeof *w->order);
    if (!w->order) return -1;
    for (uint32_t width = 8; width; width /= 2)
        for (size_t i = 0; i < n; i++) {
            const ckpt_dtype_info *type = ckpt_type(tensors[i].type);
            if (!type || !type->safetensors || tensors[i].n_dims > CKPT_MAX_DIMS)
                return ckpti_fail(&w->c, "tensor \"%.100s\": the type or the number of dimensions is invalid",
                                  tensors[i].name);
            if ((type->elements == 1 ? type->bytes : 1) == width) w->order[used++] = i;
        }
    return 0;
}

static inline int ckpti_out_bytes(ckpti_writer *w, const ckpt_out *o, uint64_t *bytes) {
    ckpt_tensor t;
    memset(&t, 0, sizeof t);
    t.name = o->name, t.type = o->type, t.n_dims = o->n_dims;
    memcpy(t.dims, o->dims, sizeof t.dims);
    return ckpti_tensor_bytes(&w->c, &t, bytes);
}

static inline int ckpti_write_entry(ckpti_writer *w, const ckpt_out *o, uint64_t *at) {
    uint64_t bytes;
    if (ckpti_out_bytes(w, o, &bytes)) return -1;
    if (bytes > (uint64_t)INT64_MAX - *at) return ckpti_fail(&w->c, "too large");
    if (ckpti_append_string(w, o->name)) return -1;
    if (ckpti_appendf(w, ":{\"dtype\":\"%s\",\"shape\":[", ckpt_type_name(o->type))) return -1;
    for (uint32_t i = 0; i < o->n_dims; i++)
        if (ckpti_appendf(w, "%s%llu", i ? "," : "", (ckpti_ull)o->dims[i])) return -1;
    unsigned long long begin = *at, end = *at += bytes;
    return ckpti_appendf(w, "],\"data_offsets\":[%llu,%llu]}", begin, end);
}

/* The length, then JSON padded with spaces so that the data is 8-aligned in the file. */
static inline int ckpti_write_header(ckpti_writer *w, const ckpt_out *tensors, size_t n, const char *metadata) {
    uint64_t at = 0;
    if (ckpti_append(w, "        {", 9)) return -1;
    if (metadata && ckpti_appendf(w, "\"__metadata__\":")) return -1;
    if (metadata && ckpti_append(w, metadata, strlen(metadata))) return -1;
    for (size_t i = 0; i < n; i++) {
        if ((i || metadata) && ckpti_append(w, ",", 1)) return -1;
        if (ckpti_write_entry(w, &tensors[w->order[i]], &at)) return -1;
    }
    if (ckpti_append(w, "}", 1)) return -1;
    while (w->used % 8)
        if (ckpti_append(w, " ", 1)) return -1;
    ckpt_store_u64(w->text, w->used - 8);
    return 0;
}

static inline int ckpti_write_bytes(ckpti_writer *w, const void *data, uint64_t bytes) {
    const ckpt_options *o = &w->c.options;
    const uint8_t *p = (const uint8_t *)data;
    while (bytes) {
        size_t want = bytes < 1u << 30 ? (size_t)bytes : 1u << 30;
        ptrdiff_t n = o->write ? o->write(o->user, w->fd, p, want) : write(w->fd, p, want);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0 || (size_t)n > want)
            return ckpti_fail(&w->c, "cannot write: %s", n < 0 ? strerror(errno) : "no progress");
        p += n, bytes -= (uint64_t)n;
    }
    return 0;
}

/* A name beside path that nobody has: the rename stays in one file system. A device or directory at path is
   never replaced. */
static inline int ckpti_write_create(ckpti_writer *w) {
    struct stat st;
    if (stat(w->path, &st) == 0 && !S_ISREG(st.st_mode)) return ckpti_fail(&w->c, "exists and is not a regular file");
    size_t size = strlen(w->path) + 64;
    char *name = ckpti_room(&w->c, size);
    if (!name) return -1;
    ckpti_keep(&w->c, size);
    for (int i = 0; i < 100; i++) {
        snprintf(name, size, "%s.tmp-%ld-%d", w->path, (long)getpid(), i);
        w->fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0666);
        if (w->fd >= 0) return w->temporary = name, 0;
        if (errno != EEXIST) break;
    }
    return ckpti_fail(&w->c, "cannot create: %s", strerror(errno));
}

/* Reads the file back as any reader would: names that are not UTF-8 or there twice, and metadata that is not an
   object of strings, are found here. */
static inline int ckpti_write_check(ckpti_writer *w, size_t n) {
    ckpt_shard *s = ckpti_new_shard(&w->c, w->temporary);
    if (!s || ckpti_load_path(&w->c, w->temporary, s, 0)) return -1;
    w->c.file = w->path;
    if (ckpti_safetensors(&w->c, 0)) return -1;
    return w->c.n_tensors == n ? 0 : ckpti_fail(&w->c, "the metadata is not a JSON object");
}

static inline int ckpti_write_all(ckpti_writer *w, const ckpt_out *tensors, size_t n, const char *metadata) {
    uint64_t bytes;
    if (ckpti_write_order(w, tensors, n) || ckpti_write_header(w, tensors, n, metadata)) return -1;
    if (ckpti_write_create(w) || ckpti_write_bytes(w, w->text, w->used)) return -1;
    for (size_t i = 0; i < n; i++) {
        const ckpt_out *o = &tensors[w->order[i]];
        if (ckpti_out_bytes(w, o, &bytes) || ckpti_write_bytes(w, o->data, bytes)) return -1;
    }
    int closed = close(w->fd);
    w->fd = -1;
    if (closed) return ckpti_fail(&w->c, "cannot write: %s", strerror(errno));
    if (ckpti_write_check(w, n)) return -1;
    if (rename(w->temporary, w->path)) return ckpti_fail(&w->c, "cannot rename: %s", strerror(errno));
    return w->temporary = NULL, 0;
}

CKPT_DEF int ckpt_write_with(const char *path, const ckpt_out *tensors, size_t n, const char *metadata,
                             const ckpt_options *options, char *err) {
    ckpti_writer w;
    memset(&w, 0, sizeof w);
    ckpti_begin(&w.c, path, options, err);
    w.fd = -1, w.path = path;
    int status = ckpti_write_all(&w, tensors, n, metadata);
    if (w.fd >= 0) close(w.fd);
    if (w.temporary) unlink(w.temporary);
    ckpti_release(&w.c, w.text);
    ckpti_release(&w.c, w.order);
    ckpt_close(&w.c);
    return status ? -1 : 0;
}

CKPT_DEF int ckpt_write(const char *path, const ckpt_out *tensors, size_t n, const char *metadata, char *err) {
    return ckpt_write_with(path, tensors, n, metadata, NULL, err);
}

#endif
