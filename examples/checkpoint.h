/* checkpoint.h - reads the tensors and the configuration of safetensors and GGUF checkpoints, and writes safetensors

   Do this in one C (C11) or C++ (C++11) file, first of all includes where 32-bit systems matter (64-bit file offsets):

       #include "checkpoint.h"

       ckpt c;
       char err[CKPT_ERR];
       if (ckpt_open(&c, "models/mixtral", err)) { fprintf(stderr, "%s\n", err); exit(1); }
       uint64_t n_experts = ckpt_get_u64(&c, "num_local_experts", 0);
       const ckpt_tensor *gate = ckpt_findf(&c, "model.layers.%d.block_sparse_moe.gate.weight", 0);
       ...
       ckpt_close(&c);

   ckpt_open takes
   * a Hugging Face directory: model.safetensors.index.json and its shards, or else model.safetensors; config.json if there,
   * an index (*.json): its shards beside it, config.json beside it if there,
   * a safetensors file: config.json beside it if there,
   * a GGUF file (version 2 or 3, little-endian); NAME-00001-of-0000N.gguf opens all N shards.

   Files are mapped (or read, with CKPT_NO_MMAP or options.no_mmap): tensors point into them and are never copied.

   A file is not trusted: every count and size is checked against the bytes that are there before it is used, sums and products
   are checked for overflow, nothing recurses, and work and memory are linear in the size of the headers. What is accepted is
   strict where readers disagree:
   * safetensors: no holes, no overlaps, no bytes after the last tensor, no name or field twice, no unknown fields; liberal only
     in the whitespace around the JSON.
   * GGUF: offsets are the padded running sum, as ggml requires; no nested arrays, no key or name twice. Bytes after the last
     tensor are allowed, the padding after it may be missing.
   * Both: at most 8 dimensions; the product of all non-zero dimensions fits in 63 bits, so no product of some of them overflows;
     no NUL inside names (the API has C strings).
   * Index: shards are plain file names; each tensor is in the shard that weight_map says. A tensor of a shard that weight_map does
     not name at all is harmless (an index may be cut down to some layers): it is checked, left out, and counted in n_unlisted.
   A file that another process truncates while it is mapped raises SIGBUS when touched: use no_mmap where that can happen.

   Data stays as in the file: little-endian, and aligned to nothing (safetensors does not promise any alignment).
   A ckpt is read-only after ckpt_open: any number of threads may use it. */

#ifndef CKPT_H
#define CKPT_H

#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) || defined(__clang__)
#define CKPT_PRINTF(format, first) __attribute__((format(printf, format, first)))
#else
#define CKPT_PRINTF(format, first)
#endif

#define CKPT_ERR         512       /* bytes of an error message                                  */
#define CKPT_MAX_DIMS    8         /* dimensions of a tensor                                     */
#define CKPT_MAX_HEADER  100000000 /* bytes of a safetensors header or an index, as the reference */
#define CKPT_MAX_CONFIG  16777216  /* bytes of config.json                                       */
#define CKPT_MAX_VALUES  1000000   /* values in config.json, arrays counted by element           */
#define CKPT_MAX_KEY     512       /* bytes of a dotted key from config.json                     */
#define CKPT_MAX_DEPTH   64        /* nesting of JSON                                            */
#define CKPT_MAX_STRING  1048576   /* bytes of one GGUF string that is kept                      */

/* -- Types ------------------------------------------------------------------------------------------------------------------ */

/* name, elements of a block, bytes of a block, known to safetensors, id in GGUF or -1. GGUF ids 4, 5, 31-33 and 36-38 were removed. */
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

/* Configuration values. JSON is flattened: "text_config.hidden_size"; array elements are "key[3]", an array's length is also "key.#";
   objects and arrays have an entry of their own. GGUF metadata is under its own key. Of a single safetensors file (or of the first
   shard) the __metadata__ strings are under "__metadata__.key". */
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
    const uint8_t *data; /* packed elements of a GGUF array in the file; NULL for an array of strings, which are not kept */
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
    const char *file; /* that messages are about */
    char *err;
} ckpt;

typedef struct ckpt_out { /* a tensor to write */
    const char *name;
    ckpt_dtype type;
    uint32_t n_dims;
    uint64_t dims[CKPT_MAX_DIMS];
    const void *data; /* little-endian, tight; the size follows from type and dims */
} ckpt_out;

/* -- API -------------------------------------------------------------------------------------------------------------------- */

#ifndef CKPT_DEF
#define CKPT_DEF static inline
#endif

/* 0, or -1 and a message of one line in err (which may be NULL): the file, what is wrong, and where. After a failure c is closed. */
CKPT_DEF int ckpt_open(ckpt *c, const char *path, char *err);
CKPT_DEF int ckpt_open_with(ckpt *c, const char *path, const ckpt_options *options, char *err);
/* Opens files[0] as ckpt_open would; other files that it needs are found by name in the list. The memory must outlive c. */
CKPT_DEF int ckpt_open_memory(ckpt *c, const ckpt_file *files, size_t n, const ckpt_options *options, char *err);
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
/* Elements of an array (JSON or GGUF), 0 where there is none. ckpt_get_at gives 1, or 0 where there is no such element;
   strings in GGUF arrays are not kept. */
CKPT_DEF uint64_t ckpt_get_count(const ckpt *c, const char *key);
CKPT_DEF int ckpt_get_at(const ckpt *c, const char *key, uint64_t i, ckpt_value *value);
/* 1 and the value, or 0 and *out untouched: for callers that want to tell an absent value from a wrong one. v may be NULL.
   A float with an integral value up to 2^53 is a u64; any number is an f64. */
CKPT_DEF int ckpt_as_u64(const ckpt_value *v, uint64_t *out);
CKPT_DEF int ckpt_as_f64(const ckpt_value *v, double *out);
CKPT_DEF int ckpt_as_bool(const ckpt_value *v, int *out);
CKPT_DEF int ckpt_as_str(const ckpt_value *v, const char **out);

/* Writes a safetensors file: first under another name beside path, then renamed, so that path is either complete or untouched.
   metadata is the text of a JSON object of strings, or NULL. Tensors are stored by falling element size, otherwise as listed. */
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

/* Copies text for a terminal: control characters and invalid UTF-8 become '?'. Names come from files: print them through this. */
CKPT_DEF char *ckpt_printable(char *to, size_t size, const char *text);

#endif
