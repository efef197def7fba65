/* Tests of examples/checkpoint.h: what it accepts and refuses, what it reads, and that no file, allocation or read can hurt it.
   Runs in the repository's root. -v prints the message of every file that is refused. */

#define _DEFAULT_SOURCE
#include "../examples/checkpoint.h"

#include <dirent.h>
#include <locale.h>
#include <sys/mman.h>
#include <time.h>

#define DATA "tests/data/"

static int failed, passed, skipped, verbose;

CKPT_PRINTF(3, 4) static int check(int ok, const char *name, const char *why, ...) {
    va_list args;
    if (ok) return ++passed;
    failed++;
    printf("FAIL %s: ", name);
    va_start(args, why);
    vprintf(why, args);
    va_end(args);
    printf("\n");
    return 0;
}

static void skip(const char *name, const char *why) {
    skipped++;
    printf("skip %s: %s\n", name, why);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOW 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer) || __has_feature(thread_sanitizer)
#define SLOW 1
#endif
#endif
#ifndef SLOW
#define SLOW 0
#endif

/* -- Helpers ------------------------------------------------------------------------------------------- */

static char temporary[] = "/tmp/test_checkpoint-XXXXXX";

static const char *temp_path(const char *name) { /* good until the fourth next call */
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", temporary, name);
    return path;
}

static void remove_all(void) {
    DIR *directory = opendir(temporary);
    for (struct dirent *e; directory && (e = readdir(directory));) {
        if (rmdir(temp_path(e->d_name)) == 0) continue;
        unlink(temp_path(e->d_name));
    }
    if (directory) closedir(directory);
}

static int count_files(void) {
    DIR *directory = opendir(temporary);
    int n = 0;
    for (struct dirent *e; directory && (e = readdir(directory));) n += e->d_name[0] != '.';
    if (directory) closedir(directory);
    return n;
}

typedef struct buffer {
    uint8_t *p;
    size_t n, capacity;
} buffer;

static void put(buffer *b, const void *data, size_t n) {
    if (b->n + n > b->capacity) {
        b->capacity = 2 * b->capacity + n + 64;
        b->p = (uint8_t *)realloc(b->p, b->capacity);
        if (!b->p) exit(2);
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
}

CKPT_PRINTF(2, 3) static void putf(buffer *b, const char *format, ...) {
    char text[2048];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    put(b, text, (size_t)n);
}

static void put_number(buffer *b, uint64_t x, uint32_t bytes) {
    uint8_t raw[8];
    ckpti_store(raw, x, bytes);
    put(b, raw, bytes);
}

static void put_string(buffer *b, const char *s) {
    put_number(b, strlen(s), 8);
    put(b, s, strlen(s));
}

/* A safetensors file: header text, then bytes of data counting up. */
static buffer safetensors(const char *header, size_t data) {
    buffer b = {0};
    put_number(&b, strlen(header), 8);
    put(&b, header, strlen(header));
    for (size_t i = 0; i < data; i++) put_number(&b, i & 255, 1);
    return b;
}

static void drop(buffer *b) {
    free(b->p);
    memset(b, 0, sizeof *b);
}

static buffer load(const char *path) {
    buffer b = {0};
    uint8_t part[65536];
    FILE *f = fopen(path, "rb");
    if (!f) return b;
    for (size_t n; (n = fread(part, 1, sizeof part, f)) > 0;) put(&b, part, n);
    fclose(f);
    return b;
}

static void save(const char *path, const void *data, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, n, f) != n || fclose(f)) exit(2);
}

static void save_text(const char *path, const char *text) { save(path, text, strlen(text)); }

/* Opens bytes in memory under a name. */
static int open_bytes(ckpt *c, const char *name, const void *data, size_t n, const ckpt_options *o, char *err) {
    ckpt_file file = {name, data, n};
    return ckpt_open_memory(c, &file, 1, o, err);
}

/* Opens header text with data as a safetensors file in memory: the status, and the message in err. */
static int open_header(const char *header, size_t data, char *err) {
    ckpt c;
    buffer b = safetensors(header, data);
    int status = open_bytes(&c, "x.safetensors", b.p, b.n, NULL, err);
    ckpt_close(&c);
    drop(&b);
    return status;
}

static uint64_t sum_bytes(const ckpt_tensor *t) {
    uint64_t sum = 0;
    for (uint64_t i = 0; t && i < t->bytes; i++) sum += t->data[i];
    return sum;
}

static int is_shape(const ckpt_tensor *t, ckpt_dtype type, uint32_t n, uint64_t a, uint64_t b, uint64_t c) {
    uint64_t dims[3] = {a, b, c};
    if (!t || t->type != type || t->n_dims != n) return 0;
    return memcmp(dims, t->dims, n * sizeof *dims) == 0;
}

/* A message is one line, names the file, and has no control characters. */
static int good_message(const char *err, const char *file) {
    for (const char *p = err; *p; p++)
        if ((uint8_t)*p < 0x20 || *p == 0x7F) return 0;
    return strlen(err) > strlen(file) + 4 && strstr(err, file) != NULL && strlen(err) < CKPT_ERR;
}

/* -- Every file of the malformed set ------------------------------------------------------------------- */

static void test_file(const char *file, int accept, int either, const ckpt_options *o, const char *mode) {
    char path[512], name[512], err[CKPT_ERR];
    ckpt c;
    snprintf(path, sizeof path, DATA "malformed/%s", file);
    snprintf(name, sizeof name, "malformed/%s %s", file, mode);
    int status = ckpt_open_with(&c, path, o, err);
    if (verbose && status) printf("%s\n", err);
    if (!either) check(accept == (status == 0), name, "%s", status ? err : "accepted");
    else check(status == 0 || status == -1, name, "status %d", status);
    if (status) {
        const char *at = strstr(file, "missing_shard") ? "no_such_file" : strstr(file, "idx_") ? "malformed/" : file;
        check(good_message(err, at), name, "message \"%s\"", err);
        check(c.n_tensors == 0 && c.tensors == NULL, name, "not closed after a failure");
    } else check(err[0] == 0, name, "a message without a failure: %s", err);
    ckpt_close(&c);
}

static void test_malformed(void) {
    static const ckpt_options modes[2] = {{0, NULL, NULL, NULL, NULL, NULL}, {1, NULL, NULL, NULL, NULL, NULL}};
    char err[CKPT_ERR];
    ckpt manifest;
    int files = 0;
    buffer b = load(DATA "malformed/manifest.json");
    check(ckpt_open_json(&manifest, "manifest.json", b.p, b.n, err) == 0, "manifest", "%s", err);
    for (size_t i = 0; i < manifest.config.n; i++) {
        const ckpt_value *v = &manifest.config.items[i];
        const char *dot = v->type == CKPT_VALUE_STRING ? strstr(v->key, ".expected") : NULL;
        char file[256];
        if (!dot || dot[strlen(".expected")]) continue;
        snprintf(file, sizeof file, "%.*s", (int)(dot - v->key), v->key);
        const ckpt_value *level = ckpt_getf(&manifest, "%s.level", file);
        int layer = level && strcmp(level->s, "layer") == 0; /* a good container: building the layer fails */
        for (int mode = 0; mode < 2; mode++)
            test_file(file, layer || !strcmp(v->s, "accept"), !layer && !strcmp(v->s, "either"), &modes[mode],
                      mode ? "read" : "mmap");
        files++;
    }
    check(files == 359, "manifest", "%d files", files);
    ckpt_close(&manifest);
    drop(&b);
}

/* Which of the checks refused a file, where another one would refuse it too. */
static void test_reasons(void) {
    static const char *const reasons[][2] = {
        {"gguf_header_n_kv_2_59.gguf", "do not fit"},
        {"gguf_header_n_tensors_max.gguf", "do not fit"},
        {"gguf_header_version_byteswapped_2.gguf", "big-endian"},
        {"gguf_kv_array_count_u64_2_61.gguf", "does not fit"},
        {"st_len_over_100mb.safetensors", "at most 100000000"},
        {"st_offsets_reversed.safetensors", "are not in"},
        {"st_offsets_past_end_1.safetensors", "are not in"},
        {"st_hole_middle.safetensors", "begins at 8"},
        {"st_dtype_unknown.safetensors", "byte 22: unknown dtype \"F31\""},
        {"gguf_tensor_offset_gap.gguf", "byte 102: tensor \"b\": offset 64"},
        {"idx_missing_tensor.json", "is not in its shard"},
        {"gguf_tensor_nbytes_wrap_q4_0.gguf", "2882303761517117442 bytes"},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof *reasons; i++) {
        char path[256], err[CKPT_ERR];
        ckpt c;
        snprintf(path, sizeof path, DATA "malformed/%s", reasons[i][0]);
        check(ckpt_open(&c, path, err) && strstr(err, reasons[i][1]), "reason", "%s", err);
    }
}

/* -- Contents ------------------------------------------------------------------------------------------ */

static void test_gguf_contents(void) {
    static const struct {
        const char *file, *tensor;
        ckpt_dtype type;
        uint32_t n_dims;
        uint64_t dims[3], sum; /* of the bytes, by another program */
    } known[] = {
        {"llama", "blk.0.ffn_gate_inp.weight", CKPT_F32, 2, {6, 256}, 766053},
        {"llama", "blk.0.ffn_gate_exps.weight", CKPT_Q4_K, 3, {6, 512, 256}, 57245122},
        {"llama", "blk.0.ffn_down_exps.weight", CKPT_Q6_K, 3, {6, 256, 512}, 78122090},
        {"llama", "blk.0.ffn_up_exps.weight", CKPT_Q4_K, 3, {6, 512, 256}, 57263138},
        {"deepseek2", "blk.1.ffn_down_exps.weight", CKPT_Q5_K, 3, {12, 256, 256}, 70450917},
        {"deepseek2", "blk.1.ffn_up_shexp.weight", CKPT_Q4_K, 2, {256, 256}, 4755622},
        {"gpt-oss", "blk.0.ffn_down_exps.weight", CKPT_MXFP4, 3, {8, 256, 288}, 37458385},
        {"gpt-oss", "blk.0.ffn_gate_exps.bias", CKPT_F32, 2, {8, 288}, 1136703},
        {"qwen3moe", "blk.0.ffn_gate_exps.weight", CKPT_Q8_0, 3, {8, 192, 256}, 51661647},
        {"qwen3moe", "blk.0.ffn_up_exps.weight", CKPT_Q8_0, 3, {8, 192, 256}, 51726270},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        char path[256], err[CKPT_ERR];
        ckpt c;
        snprintf(path, sizeof path, DATA "gguf/%s.gguf", known[i].file);
        check(ckpt_open(&c, path, err) == 0, path, "%s", err);
        const ckpt_tensor *t = ckpt_find(&c, known[i].tensor);
        check(is_shape(t, known[i].type, known[i].n_dims, known[i].dims[0], known[i].dims[1], known[i].dims[2]), path,
              "type or shape of %s", known[i].tensor);
        check(sum_bytes(t) == known[i].sum, path, "data of %s", known[i].tensor);
        ckpt_close(&c);
    }
}

static void test_gguf_values(void) {
    char err[CKPT_ERR];
    ckpt c;
    check(ckpt_open(&c, DATA "gguf/deepseek2.gguf", err) == 0, "deepseek2", "%s", err);
    check(c.is_gguf && c.n_tensors == 34 && c.config.n == 40 && c.n_shards == 1, "deepseek2", "counts");
    check(ckpt_get_u64(&c, "deepseek2.expert_count", 0) == 12, "deepseek2", "u32");
    check(ckpt_get_f64(&c, "deepseek2.expert_weights_scale", 0) == 2.5, "deepseek2", "f32");
    check(ckpt_get_f64(&c, "deepseek2.expert_count", 0) == 12, "deepseek2", "u32 as a float");
    check(ckpt_get_bool(&c, "deepseek2.expert_weights_norm", 0) == 1, "deepseek2", "bool");
    check(strcmp(ckpt_get_str(&c, "general.architecture", ""), "deepseek2") == 0, "deepseek2", "string");
    check(ckpt_get_u64(&c, "general.architecture", 77) == 77, "deepseek2", "default for another type");
    check(ckpt_get_u64(&c, "no.such.key", 78) == 78, "deepseek2", "default for no value");
    check(ckpt_get_count(&c, "tokenizer.ggml.tokens") == 264, "deepseek2", "array of strings");
    ckpt_value v;
    check(!ckpt_get_at(&c, "tokenizer.ggml.tokens", 0, &v), "deepseek2", "strings in arrays are not kept");
    check(ckpt_findf(&c, "blk.%d.%s", 1, "exp_probs_b.bias") != NULL, "deepseek2", "findf");
    check(ckpt_find(&c, "blk.1.exp_probs_b") == NULL && ckpt_find(&c, "") == NULL, "deepseek2", "no such tensor");
    ckpt_close(&c);
    ckpt_close(&c); /* twice is allowed */
}

static void test_gguf_all_types(void) {
    static const struct {
        const char *key;
        ckpt_value_type type;
        uint64_t u;
        double f;
    } known[] = {{"k0", CKPT_VALUE_UINT, 255, 255},      {"k1", CKPT_VALUE_INT, (uint64_t)-128, -128},
                 {"k2", CKPT_VALUE_UINT, 65535, 65535},  {"k3", CKPT_VALUE_INT, (uint64_t)-5, -5},
                 {"k4", CKPT_VALUE_UINT, 7, 7},          {"k5", CKPT_VALUE_INT, (uint64_t)-7, -7},
                 {"k7", CKPT_VALUE_BOOL, 1, 1},          {"k10", CKPT_VALUE_UINT, UINT64_MAX, 18446744073709551616.0},
                 {"k11", CKPT_VALUE_INT, UINT64_MAX, -1}};
    char err[CKPT_ERR];
    ckpt c;
    ckpt_value v;
    check(ckpt_open(&c, DATA "malformed/gguf_ok_all_kv_types.gguf", err) == 0, "all types", "%s", err);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const ckpt_value *k = ckpt_get(&c, known[i].key);
        check(k && k->type == known[i].type && k->u == known[i].u && k->f == known[i].f, "all types", "%s",
              known[i].key);
    }
    check(ckpt_get_f64(&c, "k6", 0) == 1.5 && ckpt_get_f64(&c, "k12", 0) == 2.5, "all types", "floats");
    check(!strcmp(ckpt_get_str(&c, "s", "?"), "text") && !strcmp(ckpt_get_str(&c, "es", "?"), ""), "all types",
          "strings");
    check(ckpt_get_count(&c, "as") == 3 && ckpt_get_count(&c, "ae") == 0, "all types", "counts");
    check(ckpt_get_at(&c, "ai", 1, &v) && v.type == CKPT_VALUE_INT && v.f == -2, "all types", "array of i32");
    check(!ckpt_get_at(&c, "ai", 3, &v) && !ckpt_get_at(&c, "k4", 0, &v), "all types", "beyond an array");
    check(ckpt_get_at(&c, "ad", 0, &v) && v.f == 1.5, "all types", "array of f64");
    check(ckpt_get_at(&c, "ab", 0, &v) && v.type == CKPT_VALUE_BOOL && v.u == 1, "all types", "array of bool");
    ckpt_close(&c);
}

static void test_safetensors_contents(void) {
    char err[CKPT_ERR];
    ckpt c, inner;
    const char *text;
    check(ckpt_open(&c, DATA "gguf/llama.io.safetensors", err) == 0, "io", "%s", err);
    check(is_shape(ckpt_find(&c, "hidden_states"), CKPT_F32, 2, 12, 256, 0), "io", "hidden_states");
    check(is_shape(ckpt_find(&c, "topk_ids"), CKPT_I32, 2, 12, 2, 0), "io", "topk_ids");
    check(is_shape(ckpt_find(&c, "output"), CKPT_F64, 2, 12, 256, 0), "io", "output");
    check(!strcmp(ckpt_get_str(&c, "__metadata__.file", ""), "llama.gguf"), "io", "metadata");
    text = ckpt_get_str(&c, "__metadata__.config", "");
    check(ckpt_open_json(&inner, "config", text, strlen(text), err) == 0, "io", "%s", err);
    check(ckpt_get_u64(&inner, "k", 0) == 2 && ckpt_get_bool(&inner, "norm", 0), "io", "JSON inside the metadata");
    ckpt_close(&inner);
    ckpt_close(&c);
    check(ckpt_open(&c, DATA "malformed/st_ok_escaped_name.safetensors", err) == 0, "escapes", "%s", err);
    check(ckpt_find(&c, "a\"\\/\b\f\n\r\t\xC3\xA9") != NULL, "escapes", "name");
    ckpt_close(&c);
    check(ckpt_open(&c, DATA "malformed/st_ok_surrogate_pair.safetensors", err) == 0, "surrogates", "%s", err);
    check(ckpt_find(&c, "\xF0\x9F\x98\x80") != NULL, "surrogates", "name");
    ckpt_close(&c);
    check(ckpt_open(&c, DATA "malformed/st_ok_tensor_order.safetensors", err) == 0, "order", "%s", err);
    for (size_t i = 1; i < c.n_tensors; i++)
        check(c.tensors[i].data == c.tensors[i - 1].data + c.tensors[i - 1].bytes, "order",
              "not by place in the file");
    ckpt_close(&c);
    check(ckpt_open(&c, DATA "malformed/st_ok_all_dtypes.safetensors", err) == 0, "dtypes", "%s", err);
    for (size_t i = 0; i < c.n_tensors; i++)
        check(!strcmp(c.tensors[i].name + 2, ckpt_type_name(c.tensors[i].type)), "dtypes", "%s", c.tensors[i].name);
    ckpt_close(&c);
}

/* The sizes as ggml-common.h and the safetensors documentation have them. */
static void test_types(void) {
    static const struct {
        const char *name;
        uint32_t elements, bytes;
        int safetensors, gguf;
    } known[] = {
        {"F32", 1, 4, 1, 0},         {"F16", 1, 2, 1, 1},          {"Q4_0", 32, 18, 0, 2},
        {"Q4_1", 32, 20, 0, 3},      {"Q5_0", 32, 22, 0, 6},       {"Q5_1", 32, 24, 0, 7},
        {"Q8_0", 32, 34, 0, 8},      {"Q8_1", 32, 36, 0, 9},       {"Q2_K", 256, 84, 0, 10},
        {"Q3_K", 256, 110, 0, 11},   {"Q4_K", 256, 144, 0, 12},    {"Q5_K", 256, 176, 0, 13},
        {"Q6_K", 256, 210, 0, 14},   {"Q8_K", 256, 292, 0, 15},    {"IQ2_XXS", 256, 66, 0, 16},
        {"IQ2_XS", 256, 74, 0, 17},  {"IQ3_XXS", 256, 98, 0, 18},  {"IQ1_S", 256, 50, 0, 19},
        {"IQ4_NL", 32, 18, 0, 20},   {"IQ3_S", 256, 110, 0, 21},   {"IQ2_S", 256, 82, 0, 22},
        {"IQ4_XS", 256, 136, 0, 23}, {"I8", 1, 1, 1, 24},          {"I16", 1, 2, 1, 25},
        {"I32", 1, 4, 1, 26},        {"I64", 1, 8, 1, 27},         {"F64", 1, 8, 1, 28},
        {"IQ1_M", 256, 56, 0, 29},   {"BF16", 1, 2, 1, 30},        {"TQ1_0", 256, 54, 0, 34},
        {"TQ2_0", 256, 66, 0, 35},   {"MXFP4", 32, 17, 0, 39},     {"NVFP4", 64, 36, 0, 40},
        {"Q1_0", 128, 18, 0, 41},    {"Q2_0", 64, 18, 0, 42},      {"BOOL", 1, 1, 1, -1},
        {"F4", 2, 1, 1, -1},         {"F6_E2M3", 4, 3, 1, -1},     {"F6_E3M2", 4, 3, 1, -1},
        {"U8", 1, 1, 1, -1},         {"F8_E5M2", 1, 1, 1, -1},     {"F8_E4M3", 1, 1, 1, -1},
        {"F8_E8M0", 1, 1, 1, -1},    {"F8_E4M3FNUZ", 1, 1, 1, -1}, {"F8_E5M2FNUZ", 1, 1, 1, -1},
        {"U16", 1, 2, 1, -1},        {"U32", 1, 4, 1, -1},         {"C64", 1, 8, 1, -1},
        {"U64", 1, 8, 1, -1},
    };
    check(sizeof known / sizeof *known == CKPT_DTYPE_COUNT, "types", "%d types", CKPT_DTYPE_COUNT);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int type = ckpt_type_find(known[i].name);
        const ckpt_dtype_info *info = type < 0 ? NULL : ckpt_type((ckpt_dtype)type);
        check(info && info->elements == known[i].elements && info->bytes == known[i].bytes &&
                  info->safetensors == known[i].safetensors && info->gguf == known[i].gguf,
              "types", "%s", known[i].name);
    }
    check(ckpt_type(CKPT_DTYPE_COUNT) == NULL && ckpt_type_name(CKPT_DTYPE_COUNT) == NULL, "types", "invalid type");
    check(ckpt_type_find("Q4_2") == -1 && ckpt_type_find("") == -1, "types", "unknown name");
}

static void test_little_endian(void) {
    static const uint8_t raw[9] = {0xFF, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0xF0, 0x3F};
    uint8_t out[9] = {0};
    check(ckpt_load_u16(raw + 1) == 0x0201, "little-endian", "u16");
    check(ckpt_load_u32(raw + 1) == 0x04030201, "little-endian", "u32");
    check(ckpt_load_u64(raw + 1) == 0x3FF0060504030201, "little-endian", "u64");
    ckpt_store_u64(out + 1, 0x3FF0000000000000);
    check(ckpt_load_f64(out + 1) == 1.0 && out[8] == 0x3F, "little-endian", "f64");
    ckpt_store_f32(out + 1, 1.5f);
    check((double)ckpt_load_f32(out + 1) == 1.5 && out[4] == 0x3F && out[3] == 0xC0, "little-endian", "f32");
}

static void test_printable(void) {
    char to[16];
    check(!strcmp(ckpt_printable(to, sizeof to, "a\x1B[2J\n"), "a?[2J?"), "printable", "control characters");
    check(!strcmp(ckpt_printable(to, sizeof to, "\xC3\xA9\xC2\x9B\xFF"), "\xC3\xA9??"), "printable", "UTF-8");
    check(!strcmp(ckpt_printable(to, 3, "a\xC3\xA9"), "a"), "printable", "cut at a character");
    check(!strcmp(ckpt_printable(to, 4, "a\xC3\xA9"), "a\xC3\xA9"), "printable", "fits");
}

/* Every code point has one valid form, and nothing else is valid: counted over all sequences of 2 and 3 bytes, and over
   those of 4 whose last two bytes are at the edges of what is allowed. */
static void test_utf8(void) {
    uint8_t p[4];
    long two = 0, three = 0, four = 0;
    for (unsigned a = 0x80; a < 256; a++)
        for (unsigned b = 0; b < 256; b++) {
            p[0] = (uint8_t)a, p[1] = (uint8_t)b;
            two += ckpti_utf8(p, 2) == 2;
            for (unsigned c = 0; c < 256; c++) p[2] = (uint8_t)c, three += ckpti_utf8(p, 3) == 3;
            for (unsigned c = 0; c < 16; c++) {
                static const uint8_t edge[] = {0x7F, 0x80, 0xBF, 0xC0};
                p[2] = edge[c / 4], p[3] = edge[c % 4];
                four += ckpti_utf8(p, 4) == 4;
            }
        }
    check(two == 0x800 - 0x80, "UTF-8", "%ld of 2 bytes", two);
    check(three == 0x10000 - 0x800 - 0x800, "UTF-8", "%ld of 3 bytes", three);
    check(four == 0x100000 / 4096 * 4, "UTF-8", "%ld of 4 bytes", four);
    for (uint32_t x = 1; x <= 0x10FFFF; x += x < 0x1000 ? 1 : 0x3F) {
        char text[8];
        size_t n = ckpti_put_utf8(text, x);
        int valid = ckpti_utf8((const uint8_t *)text, n) == n;
        if (valid != (x < 0xD800 || x >= 0xE000)) check(0, "UTF-8", "U+%04X", (unsigned)x);
        if (n > 1 && ckpti_utf8((const uint8_t *)text, n - 1)) check(0, "UTF-8", "U+%04X cut", (unsigned)x);
    }
}

/* -- JSON ---------------------------------------------------------------------------------------------- */

static int parses(const char *text, char *err) {
    ckpt c;
    int status = ckpt_open_json(&c, "test.json", text, strlen(text), err);
    ckpt_close(&c);
    return status == 0;
}

static void test_numbers(void) {
    static const char *const good[] = {"0",
                                       "-0",
                                       "1",
                                       "-1",
                                       "0.1",
                                       "1e3",
                                       "1E-5",
                                       "1e-20",
                                       "2.2250738585072014e-308",
                                       "5e-324",
                                       "1e-400",
                                       "0.5e+1",
                                       "1e0005",
                                       "123.456e2",
                                       "1.7976931348623157e308",
                                       "18446744073709551615",
                                       "18446744073709551616",
                                       "-9223372036854775808",
                                       "-9223372036854775809",
                                       "123456789012345678901234567890",
                                       "0.30000000000000004",
                                       "1e-05",
                                       "9007199254740993",
                                       "0e99999999"};
    static const char *const bad[] = {"",    "-",        "+1",        "01",    "-01", "1.",          ".5",
                                      "1e",  "1e+",      "0x10",      "1_0",   "1,5", "--1",         "1e999",
                                      "Nan", "infinity", "-infinity", "1e1.5", "Inf", "1e999999999", "\xEF\xBC\x91"};
    char text[700], err[CKPT_ERR];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        ckpt c;
        snprintf(text, sizeof text, "{\"x\":%s}", good[i]);
        check(ckpt_open_json(&c, "n", text, strlen(text), err) == 0, "number", "%s: %s", good[i], err);
        double want = strtod(good[i], NULL), got = ckpt_get_f64(&c, "x", 77);
        check(memcmp(&want, &got, sizeof want) == 0, "number", "%s is %.17g", good[i], got);
        ckpt_close(&c);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, "{\"x\":%s}", bad[i]);
        check(!parses(text, err), "number", "%s accepted", bad[i]);
    }
    char digits[600];
    memset(digits, '1', sizeof digits), digits[sizeof digits - 1] = 0;
    snprintf(text, sizeof text, "{\"x\":%s}", digits);
    check(!parses(text, err), "number", "599 digits accepted");
    snprintf(text, sizeof text, "{\"x\":0.%.300s}", digits);
    check(parses(text, err), "number", "300 decimals: %s", err);
}

static void test_integers(void) {
    static const char text[] =
        "{\"a\":18446744073709551615,\"b\":18446744073709551616,\"c\":-1,\"d\":8.0,\"e\":8.5,\"f\":1e3,"
        "\"g\":-0,\"h\":null,\"i\":true,\"j\":\"7\",\"k\":[1,-2.5],\"l\":1e30}";
    char err[CKPT_ERR];
    ckpt c;
    check(ckpt_open_json(&c, "i", text, sizeof text - 1, err) == 0, "integer", "%s", err);
    check(ckpt_get_u64(&c, "a", 5) == UINT64_MAX, "integer", "2^64 - 1");
    check(ckpt_get_u64(&c, "b", 5) == 5 && ckpt_get_f64(&c, "b", 0) == 18446744073709551616.0, "integer", "2^64");
    check(ckpt_get_u64(&c, "c", 5) == 5 && ckpt_get_f64(&c, "c", 5) == -1, "integer", "-1");
    check(ckpt_get(&c, "c")->type == CKPT_VALUE_INT && (int64_t)ckpt_get(&c, "c")->u == -1, "integer", "-1");
    check(ckpt_get_u64(&c, "d", 5) == 8 && ckpt_get_u64(&c, "e", 5) == 5, "integer", "8.0 and 8.5");
    check(ckpt_get_u64(&c, "f", 5) == 1000 && ckpt_get_u64(&c, "g", 5) == 0, "integer", "1e3 and -0");
    check(ckpt_get_u64(&c, "l", 5) == 5, "integer", "1e30");
    check(ckpt_get(&c, "h")->type == CKPT_VALUE_NULL && ckpt_get_u64(&c, "h", 5) == 5, "integer", "null");
    check(ckpt_get_u64(&c, "i", 5) == 5 && ckpt_get_bool(&c, "i", 0) == 1, "integer", "true");
    check(ckpt_get_bool(&c, "a", 7) == 7 && ckpt_get_u64(&c, "j", 5) == 5, "integer", "string");
    check(ckpt_get_count(&c, "k") == 2 && ckpt_get_u64(&c, "k.#", 0) == 2, "integer", "array length");
    check(ckpt_get_u64(&c, "k[0]", 0) == 1 && ckpt_get_f64(&c, "k[1]", 0) == -2.5, "integer", "elements");
    ckpt_value v;
    check(ckpt_get_at(&c, "k", 1, &v) && v.f == -2.5 && !ckpt_get_at(&c, "k", 2, &v), "integer", "ckpt_get_at");
    ckpt_close(&c);
}

static void test_config(void) {
    static const char text[] =
        " {\"model_type\":\"x\",\"text_config\":{\"hidden_size\":64,\"layers\":[{\"n\":1},{\"n\":[2,[3]]}],\"e\":{},"
        "\"z\":[]},"
        "\"time_step_limit\":[0.0,Infinity],\"a\\u00e9\\ud83d\\ude00\\n\":-Infinity,\"n\":NaN}\n";
    char err[CKPT_ERR];
    ckpt c;
    check(ckpt_open_json(&c, "config", text, sizeof text - 1, err) == 0, "config", "%s", err);
    check(!strcmp(ckpt_get_str(&c, "model_type", ""), "x"), "config", "string");
    check(ckpt_get_u64(&c, "text_config.hidden_size", 0) == 64, "config", "nested");
    check(ckpt_get(&c, "text_config") && ckpt_get(&c, "text_config")->type == CKPT_VALUE_OBJECT, "config", "object");
    check(ckpt_get(&c, "text_config")->count == 4, "config", "object's count");
    check(ckpt_get_u64(&c, "text_config.layers[0].n", 0) == 1, "config", "object in an array");
    check(ckpt_get_u64(&c, "text_config.layers[1].n[1][0]", 0) == 3, "config", "array in an array");
    check(ckpt_get_u64(&c, "text_config.layers[1].n[1].#", 0) == 1, "config", "length of an array in an array");
    check(ckpt_get_u64(&c, "text_config.z.#", 9) == 0 && ckpt_get(&c, "text_config.e")->count == 0, "config",
          "empty");
    check(ckpt_get_f64(&c, "time_step_limit[1]", 0) > DBL_MAX, "config", "Infinity");
    check(ckpt_get_f64(&c, "a\xC3\xA9\xF0\x9F\x98\x80\n", 0) < -DBL_MAX, "config", "-Infinity under an escaped key");
    check(ckpt_get(&c, "n")->f != ckpt_get(&c, "n")->f, "config", "NaN");
    ckpt_close(&c);
}

static void test_json_syntax(void) {
    static const char *const bad[] = {
        "",
        " ",
        "[]",
        "1",
        "\"a\"",
        "null",
        "{",
        "{]",
        "{}{}",
        "{},",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{,\"a\":1}",
        "{\"a\":1 \"b\":2}",
        "{\"a\":[1,]}",
        "{\"a\":[,1]}",
        "{\"a\":[1 2]}",
        "{\"a\":[1}}",
        "{\"a\":{\"b\":1]}",
        "{\"a\":tru}",
        "{\"a\":True}",
        "{\"a\":nullx}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12\"}",
        "{\"a\":\"\\u12g4\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\udc00\"}",
        "{\"a\":\"\\ud800\\u0041\"}",
        "{\"a\":\"\\u0000\"}",
        "{\"a\":\"\t\"}",
        "{\"a\":\"\x7F\xC0\x80\"}",
        "{\"a\":\"\xED\xA0\x80\"}",
        "{\"a\":\"\xF4\x90\x80\x80\"}",
        "{\"a\":\"\xE2\x82\"}",
        "{\"a\":\"\xFF\"}",
        "{\"a\":1}\x0B",
        "\xEF\xBB\xBF{}",
        "{a:1}",
        "{'a':1}",
        "{\"a\":1}//",
        "{\"a\":\"",
        "{\"a\":\"\\",
        "{\"a\":\"\\\"}",
        "{\"a\":1,\"a\":2}",
        "{\"a.b\":1,\"a\":{\"b\":2}}",
        "{\"a\":-}",
        "{\"a\":[}",
        "{\"a\":1:2}",
    };
    char err[CKPT_ERR];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        check(!parses(bad[i], err), "JSON", "%s accepted", bad[i]);
        check(good_message(err, "test.json"), "JSON", "message \"%s\"", err);
    }
    check(parses("\t\r\n {\t\"a\"\r:\n1 , \"b\" : [ ] } ", err), "JSON", "whitespace: %s", err);
    check(parses("{\"\":{\"\":1}}", err), "JSON", "empty keys: %s", err);
}

/* Every \\uXXXX alone, and the pairs around the edges of both surrogate ranges: the character, or refused. */
static void test_escapes(void) {
    static const uint32_t edges[] = {1,      0x41,   0xD7FF, 0xD800, 0xD801, 0xDBFF,
                                     0xDC00, 0xDC01, 0xDE00, 0xDFFF, 0xE000, 0xFFFF};
    enum { N = sizeof edges / sizeof *edges };
    int wrong = 0;
    for (uint32_t i = 0; i < 0x10000 + N * N; i++) {
        uint32_t high = i < 0x10000 ? i : edges[(i - 0x10000) / N], low = i < 0x10000 ? 0 : edges[(i - 0x10000) % N];
        int first = high >= 0xD800 && high < 0xDC00, second = low >= 0xDC00 && low < 0xE000;
        int valid = high != 0 && (first ? second : high < 0xDC00 || high >= 0xE000) &&
                    (first || low < 0xD800 || low >= 0xE000);
        char text[40], want[9] = "", err[CKPT_ERR];
        int n = snprintf(text, sizeof text, low ? "{\"a\":\"\\u%04x\\u%04X\"}" : "{\"a\":\"\\u%04x\"}",
                         (unsigned)high, (unsigned)low);
        size_t at = ckpti_put_utf8(want, first && second ? 0x10000 + ((high & 0x3FF) << 10) + (low & 0x3FF) : high);
        if (low && !first) at += ckpti_put_utf8(want + at, low);
        ckpt c;
        int ok = ckpt_open_json(&c, "test.json", text, (size_t)n, err) == 0;
        wrong += ok != valid || (ok && strcmp(ckpt_get_str(&c, "a", ""), want) != 0);
        ckpt_close(&c);
    }
    check(wrong == 0, "JSON", "%d escapes", wrong);
}

/* Nesting up to the limit, and beyond it without recursion. */
static void test_json_depth(void) {
    char err[CKPT_ERR];
    for (size_t depth = 1; depth < 1000000; depth = depth < 70 ? depth + 1 : depth * 7) {
        buffer b = {0};
        putf(&b, "{\"a\":");
        for (size_t i = 1; i < depth; i++) put(&b, "[", 1);
        putf(&b, "1");
        for (size_t i = 1; i < depth; i++) put(&b, "]", 1);
        put(&b, "}", 2);
        int fits = depth <= CKPT_MAX_DEPTH;
        check(parses((char *)b.p, err) == fits, "depth", "%d: %s", (int)depth, err);
        drop(&b);
    }
}

/* Long keys times many values must not multiply. */
static void test_json_limits(void) {
    char err[CKPT_ERR];
    buffer b = {0};
    putf(&b, "{\"");
    for (int i = 0; i < CKPT_MAX_KEY; i++) put(&b, "k", 1);
    put(&b, "\":1}", 5);
    check(!parses((char *)b.p, err) && strstr(err, "too long"), "limits", "key: %s", err);
    b.n = 0;
    putf(&b, "{\"a\":[0");
    for (int i = 0; i < CKPT_MAX_VALUES; i++) put(&b, ",0", 2);
    put(&b, "]}", 3);
    check(!parses((char *)b.p, err) && strstr(err, "too many values"), "limits", "values: %s", err);
    drop(&b);
}

/* A decimal comma in the locale must not matter. */
static void test_locale(void) {
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE", "es_ES.UTF-8"};
    char err[CKPT_ERR];
    size_t i = 0;
    ckpt c;
    while (i < sizeof names / sizeof *names && !setlocale(LC_NUMERIC, names[i])) i++;
    if (i == sizeof names / sizeof *names) {
        skip("locale", "no locale with a decimal comma");
        return;
    }
    check(ckpt_open_json(&c, "l", "{\"a\":1.25e-3}", 13, err) == 0, "locale", "%s", err);
    check(ckpt_get_f64(&c, "a", 0) == 0.00125, "locale", "%g", ckpt_get_f64(&c, "a", 0));
    ckpt_close(&c);
    setlocale(LC_NUMERIC, "C");
}

/* -- safetensors by hand ------------------------------------------------------------------------------- */

static void test_safetensors_rules(void) {
    static const struct {
        const char *header;
        size_t data;
        int accept;
    } cases[] = {
        {"{}", 0, 1},
        {"{} ", 0, 1},
        {" \t\r\n{}", 0, 1},
        {"{}", 1, 0},
        {"{}x", 0, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, 0},
        {"{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]}}", 3, 1},
        {"{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3, 0},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3,2],\"data_offsets\":[0,3]}}", 3, 1},
        {"{\"a\":{\"dtype\":\"C64\",\"shape\":[2],\"data_offsets\":[0,16]}}", 16, 1},
        {"{\"a\":{\"dtype\":\"Q8_0\",\"shape\":[32],\"data_offsets\":[0,34]}}", 34, 0},
        {"{\"a\":{\"dtype\":\"u8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]}}", 1, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1e0],\"data_offsets\":[0,1]}}", 1, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[-0],\"data_offsets\":[0,0]}}", 0, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551616],\"data_offsets\":[0,0]}}", 0, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[18446744073709551615],\"data_offsets\":[0,18446744073709551615]}}", 1,
         0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,9223372036854775807],\"data_offsets\":[0,0]}}", 0, 1},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0,9223372036854775807,2],\"data_offsets\":[0,0]}}", 0, 0},
        {"{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]},\"a\":{\"dtype\":\"U8\",\"shape\":[],\"data_"
         "offsets\":[0,1]}}",
         2, 1},
        {"{\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]},\"b\":{\"dtype\":\"U8\",\"shape\":[],\"data_"
         "offsets\":[0,1]}}",
         2, 0},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, 0},
        {"{\"__metadata__\":{\"a\":\"b\"}}", 0, 1},
        {"{\"__metadata__\":{\"a\":{}}}", 0, 0},
        {"{\"__metadata__\":1}", 0, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"extra\":0}}", 1, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1, 0},
        {"{\"a\":{}}", 0, 0},
        {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}", 1, 0},
        {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, 0},
    };
    char err[CKPT_ERR];
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check((open_header(cases[i].header, cases[i].data, err) == 0) == cases[i].accept, "safetensors rules",
              "%s: %s", cases[i].header, err);
}

/* Tensors in any order of the header: a permutation of 997 small ones and empty ones between them. */
static void test_safetensors_order(void) {
    char err[CKPT_ERR];
    buffer header = {0};
    ckpt c;
    putf(&header, "{");
    for (unsigned i = 0; i < 997; i++) {
        unsigned k = i * 500 % 997; /* place k: k bytes, beginning at the sum of 0 .. k-1 */
        unsigned begin = k * (k - 1) / 2;
        putf(&header, "%s\"t%u\":{\"dtype\":\"U8\",\"shape\":[%u],\"data_offsets\":[%u,%u]}", i ? "," : "", k, k,
             begin, begin + k);
        putf(&header, ",\"e%u\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[%u,%u]}", k, begin, begin);
    }
    put(&header, "}", 2);
    buffer b = safetensors((char *)header.p, 997 * 996 / 2);
    check(open_bytes(&c, "x", b.p, b.n, NULL, err) == 0, "order of 997", "%s", err);
    for (unsigned k = 1; k < 997; k++) {
        const ckpt_tensor *t = ckpt_findf(&c, "t%u", k);
        check(t && t->bytes == k && t->data[0] == (uint8_t)(k * (k - 1) / 2), "order of 997", "t%u", k);
    }
    for (size_t i = 1; i < c.n_tensors; i++)
        if (c.tensors[i].data < c.tensors[i - 1].data) check(0, "order of 997", "not sorted at %d", (int)i);
    ckpt_close(&c);
    drop(&b);
    drop(&header);
}

/* -- GGUF by hand -------------------------------------------------------------------------------------- */

static void put_u32_value(buffer *b, const char *key, uint32_t type, uint64_t value, uint32_t bytes) {
    put_string(b, key);
    put_number(b, type, 4);
    put_number(b, value, bytes);
}

/* What the malformed set lacks. */
static void test_gguf_rules(void) {
    static const uint64_t lengths[] = {UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 39, 1ull << 63, 1ull << 32, 9};
    char err[CKPT_ERR];
    ckpt c;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) { /* a length that takes the cursor back */
        buffer b = {0};
        put(&b, "GGUF", 4), put_number(&b, 3, 4), put_number(&b, 0, 8), put_number(&b, 1, 8);
        put_string(&b, "k"), put_number(&b, 9, 4), put_number(&b, 8, 4), put_number(&b, 2, 8);
        put_number(&b, lengths[i], 8), put_number(&b, 0, 8);
        check(open_bytes(&c, "x.gguf", b.p, b.n, NULL, err) && strstr(err, "ends inside an array"), "GGUF strings",
              "%s", err);
        drop(&b);
    }
    for (uint32_t alignment = 1; alignment <= 1u << 20; alignment *= 2) {
        buffer b = {0};
        put(&b, "GGUF", 4), put_number(&b, 3, 4), put_number(&b, 0, 8), put_number(&b, 1, 8);
        put_u32_value(&b, "general.alignment", 4, alignment, 4);
        int status = open_bytes(&c, "x.gguf", b.p, b.n, NULL, err);
        check((status == 0) == (alignment <= 65536), "GGUF alignment", "%u: %s", alignment, err);
        ckpt_close(&c);
        drop(&b);
    }
}

/* One shard of a split model with two U8-sized tensors t<first> and t<first+1> of 32 bytes each. */
static buffer gguf_shard(unsigned first, unsigned no, unsigned count, unsigned total) {
    buffer b = {0};
    put(&b, "GGUF", 4), put_number(&b, 3, 4), put_number(&b, 2, 8), put_number(&b, 4, 8);
    put_u32_value(&b, "split.no", 2, no, 2);
    put_u32_value(&b, "split.count", 2, count, 2);
    put_u32_value(&b, "split.tensors.count", 5, total, 4);
    put_u32_value(&b, "only.here", 4, 100 + no, 4);
    for (unsigned i = 0; i < 2; i++) {
        char name[16];
        snprintf(name, sizeof name, "t%u", first + i);
        put_string(&b, name);
        put_number(&b, 1, 4), put_number(&b, 32, 8), put_number(&b, 24, 4), put_number(&b, 32 * i, 8);
    }
    while (b.n % 32) put_number(&b, 0, 1);
    for (unsigned i = 0; i < 64; i++) put_number(&b, first * 64 + i, 1);
    return b;
}

static void test_split(void) {
    static const struct {
        const char *name, *open;
        unsigned no[3], count, total, first_of_third;
        int files, accept;
    } cases[] = {
        {"split", "m-00001-of-00003.gguf", {0, 1, 2}, 3, 6, 4, 3, 1},
        {"split, second first", "m-00002-of-00003.gguf", {0, 1, 2}, 3, 6, 4, 3, 0},
        {"split, one missing", "m-00001-of-00003.gguf", {0, 1, 2}, 3, 6, 4, 2, 0},
        {"split, wrong number", "m-00001-of-00003.gguf", {0, 2, 1}, 3, 6, 4, 3, 0},
        {"split, wrong first number", "m-00001-of-00003.gguf", {1, 1, 2}, 3, 6, 4, 3, 0},
        {"split, wrong count", "m-00001-of-00003.gguf", {0, 1, 2}, 4, 6, 4, 3, 0},
        {"split, count of one", "m-00001-of-00003.gguf", {0, 1, 2}, 1, 6, 4, 3, 0},
        {"split, wrong total", "m-00001-of-00003.gguf", {0, 1, 2}, 3, 7, 4, 3, 0},
        {"split, tensor twice", "m-00001-of-00003.gguf", {0, 1, 2}, 3, 6, 3, 3, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char err[CKPT_ERR], name[64];
        buffer shards[3];
        ckpt_file files[4];
        ckpt c;
        for (int s = 0; s < 3; s++) {
            shards[s] = gguf_shard(s == 2 ? cases[i].first_of_third : 2 * (unsigned)s, cases[i].no[s], cases[i].count,
                                   cases[i].total);
            snprintf(name, sizeof name, "m-0000%d-of-00003.gguf", s + 1);
            save(temp_path(name), shards[s].p, shards[s].n);
        }
        if (cases[i].files == 2) unlink(temp_path("m-00003-of-00003.gguf"));
        int status = ckpt_open(&c, temp_path(cases[i].open), err);
        check((status == 0) == cases[i].accept, cases[i].name, "%s", err);
        if (verbose && status) printf("%s\n", err);
        if (!status) {
            const ckpt_tensor *t = ckpt_find(&c, "t5");
            check(c.n_shards == 3 && c.n_tensors == 6, cases[i].name, "counts");
            check(t && t->shard == 2 && t->data[0] == (uint8_t)(4 * 64 + 32), cases[i].name,
                  "tensor of the third shard");
            check(ckpt_get_u64(&c, "only.here", 0) == 100, cases[i].name, "metadata of the first shard");
        }
        ckpt_close(&c);
        memset(files, 0, sizeof files);
        for (int s = 0; s < 3; s++) drop(&shards[s]);
        remove_all();
    }
    char err[CKPT_ERR];
    ckpt c;
    buffer b = gguf_shard(0, 0, 2, 4);
    check(open_bytes(&c, "renamed.gguf", b.p, b.n, NULL, err) && strstr(err, "-00001-of-00002.gguf"),
          "split, renamed", "%s", err);
    drop(&b);
    b = gguf_shard(0, 0, 1, 2);
    check(open_bytes(&c, "m-00001-of-00001.gguf", b.p, b.n, NULL, err) == 0, "split of one", "%s", err);
    ckpt_close(&c);
    drop(&b);
}

/* -- Index --------------------------------------------------------------------------------------------- */

#define U8_TENSOR(name) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}"

static void test_index(void) {
    static const struct {
        const char *name, *map;
        int accept, unlisted;
    } cases[] = {
        {"index", "{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}", 1, 0},
        {"index, unlisted tensor", "{\"a\":\"1.safetensors\",\"c\":\"3.safetensors\"}", 1, 1},
        {"index, other shard", "{\"a\":\"2.safetensors\",\"b\":\"2.safetensors\"}", 0, 0},
        {"index, in two shards", "{\"a\":\"1.safetensors\",\"c\":\"3.safetensors\",\"b\":\"2.safetensors\"}", 0, 0},
        {"index, swapped", "{\"a\":\"2.safetensors\",\"b\":\"1.safetensors\"}", 0, 0},
        {"index, missing tensor", "{\"a\":\"1.safetensors\",\"z\":\"2.safetensors\"}", 0, 0},
        {"index, missing shard", "{\"a\":\"9.safetensors\"}", 0, 0},
        {"index, empty map", "{}", 0, 0},
        {"index, list", "[]", 0, 0},
        {"index, null shard", "{\"a\":null}", 0, 0},
        {"index, twice", "{\"a\":\"1.safetensors\",\"a\":\"1.safetensors\"}", 0, 0},
        {"index, itself", "{\"a\":\"model.safetensors.index.json\"}", 0, 0},
    };
    buffer one = safetensors("{" U8_TENSOR("a") "}", 1), two = safetensors("{" U8_TENSOR("b") "}", 1);
    buffer three =
        safetensors("{\"c\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}," U8_TENSOR("b") "}", 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char err[CKPT_ERR], text[512];
        ckpt c;
        snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":[{}]},\"weight_map\":%s}", cases[i].map);
        ckpt_file files[] = {{"model.safetensors.index.json", text, strlen(text)},
                             {"1.safetensors", one.p, one.n},
                             {"2.safetensors", two.p, two.n},
                             {"3.safetensors", three.p, three.n},
                             {"config.json", "{\"x\":1}", 7}};
        int status = ckpt_open_memory(&c, files, 5, NULL, err);
        check((status == 0) == cases[i].accept, cases[i].name, "%s", err);
        if (verbose && status) printf("%s\n", err);
        if (!status) check(c.n_unlisted == (size_t)cases[i].unlisted && c.n_tensors == 2, cases[i].name, "counts");
        if (!status) check(ckpt_get_u64(&c, "x", 0) == 1, cases[i].name, "config.json");
        if (!status && cases[i].unlisted)
            check(!ckpt_find(&c, "b"), cases[i].name, "found a tensor that is not listed");
        ckpt_close(&c);
    }
    drop(&one), drop(&two), drop(&three);
}

/* The file that each name would reach exists and is valid: it is the name that is refused. */
static void test_traversal(void) {
    static const char *const names[] = {"../x.safetensors",
                                        "..",
                                        ".",
                                        "",
                                        "/etc/passwd",
                                        "sub/x.safetensors",
                                        "./x.safetensors",
                                        "..\\\\x.safetensors",
                                        "sub\\\\x.safetensors",
                                        "\\u002e\\u002e/x.safetensors",
                                        "\\u002e\\u002e\\u002fx.safetensors",
                                        "x.safetensors\\u0000",
                                        "\\u0000",
                                        "C:x.safetensors",
                                        "C:\\\\x",
                                        "file:x.safetensors",
                                        "//host/x",
                                        "x.safetensors/",
                                        "sub/../x.safetensors",
                                        "\\nx.safetensors",
                                        "x\\t"};
    char err[CKPT_ERR], text[512];
    buffer b = safetensors("{" U8_TENSOR("a") "}", 1);
    mkdir(temp_path("sub"), 0700);
    save(temp_path("x.safetensors"), b.p, b.n);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        ckpt c;
        snprintf(text, sizeof text, "{\"weight_map\":{\"a\":\"%s\"}}", names[i]);
        save_text(temp_path("sub/i.json"), text);
        check(ckpt_open(&c, temp_path("sub/i.json"), err) != 0, "traversal", "\"%s\" accepted", names[i]);
        check(strstr(err, "plain file name") || strstr(err, "invalid character"), "traversal", "\"%s\": %s", names[i],
              err);
        check(good_message(err, "i.json"), "traversal", "message \"%s\"", err);
        ckpt_close(&c);
    }
    unlink(temp_path("sub/i.json"));
    remove_all();
    drop(&b);
}

/* -- Paths --------------------------------------------------------------------------------------------- */

static void test_directory(void) {
    char err[CKPT_ERR];
    ckpt c;
    buffer one = safetensors("{" U8_TENSOR("a") "}", 1), two = safetensors("{" U8_TENSOR("b") "}", 1);
    check(ckpt_open(&c, temporary, err) && strstr(err, "neither"), "directory", "empty: %s", err);
    save(temp_path("other.safetensors"), two.p, two.n);
    check(ckpt_open(&c, temporary, err) && strstr(err, "neither"), "directory", "other name: %s", err);
    save(temp_path("model.safetensors"), one.p, one.n);
    check(ckpt_open(&c, temporary, err) == 0 && ckpt_find(&c, "a") && !ckpt_find(&c, "b"), "directory",
          "single file: %s", err);
    ckpt_close(&c);
    save_text(temp_path("config.json"), "{\"model_type\":\"m\"}");
    check(ckpt_open(&c, temp_path(""), err) == 0 && !strcmp(ckpt_get_str(&c, "model_type", ""), "m"), "directory",
          "config: %s", err);
    ckpt_close(&c);
    check(ckpt_open(&c, temp_path("other.safetensors"), err) == 0 && ckpt_get(&c, "model_type"), "directory",
          "beside: %s", err);
    ckpt_close(&c);
    save_text(temp_path("model.safetensors.index.json"), "{\"weight_map\":{\"b\":\"other.safetensors\"}}");
    check(ckpt_open(&c, temporary, err) == 0 && !ckpt_find(&c, "a") && ckpt_find(&c, "b"), "directory", "index: %s",
          err);
    check(c.n_shards == 1 && !strcmp(c.shards[0].name, "other.safetensors"), "directory", "shard");
    ckpt_close(&c);
    save_text(temp_path("config.json"), "{\"model_type\":}");
    check(ckpt_open(&c, temporary, err) && good_message(err, "config.json"), "directory", "bad config: %s", err);
    save_text(temp_path("config.json"), "{}");
    check(truncate(temp_path("config.json"), CKPT_MAX_CONFIG + 1) == 0, "directory", "truncate");
    check(ckpt_open(&c, temporary, err) && strstr(err, "more than"), "directory", "large config: %s", err);
    remove_all();
    drop(&one), drop(&two);
}

static void test_special_files(void) {
    static const char *const bad[] = {"",      "/dev/zero", "/dev/null",      "no/such/file",
                                      "tests", "tests/",    "/proc/self/mem", "tests/test_checkpoint.c/x"};
    char err[CKPT_ERR], long_path[3000];
    ckpt c;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        for (int mode = 0; mode < 2; mode++) {
            ckpt_options o = {0, NULL, NULL, NULL, NULL, NULL};
            o.no_mmap = mode;
            check(ckpt_open_with(&c, bad[i], &o, err) == -1 && strlen(err) > 10, "special file", "%s: %s", bad[i],
                  err);
            if (verbose) printf("%s\n", err);
        }
    check(ckpt_open(&c, "no/such/file", NULL) == -1, "special file", "without a place for the message");
    check(mkfifo(temp_path("fifo"), 0600) == 0, "special file", "mkfifo");
    check(ckpt_open(&c, temp_path("fifo"), err) == -1 && strstr(err, "not a regular"), "special file", "FIFO: %s",
          err);
    save(temp_path("empty"), "", 0);
    check(ckpt_open(&c, temp_path("empty"), err) == -1 && good_message(err, "empty"), "special file", "empty: %s",
          err);
    save(temp_path("empty.json"), "", 0);
    check(ckpt_open(&c, temp_path("empty.json"), err) == -1 && good_message(err, "empty"), "special file",
          "empty: %s", err);
    memset(long_path, 'p', sizeof long_path), long_path[sizeof long_path - 1] = 0;
    check(ckpt_open(&c, long_path, err) == -1 && strlen(err) < CKPT_ERR, "special file", "long path");
    check(ckpt_open_memory(&c, NULL, 0, NULL, err) == -1, "special file", "no files in memory");
    remove_all();
}

/* -- Truncation ---------------------------------------------------------------------------------------- */

/* Opens the first n bytes; they end where a page that cannot be read begins. */
static int open_cut(const char *name, const buffer *b, size_t n, char *err) {
    static uint8_t *pages;
    static size_t size;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (!pages) {
        size = (4u << 20) / page * page;
        pages = (uint8_t *)mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED || mprotect(pages + size, page, PROT_NONE)) exit(2);
    }
    ckpt c;
    uint8_t *at = pages + size - n;
    if (n) memcpy(at, b->p, n);
    int status = open_bytes(&c, name, at, n, NULL, err);
    if (!status)
        for (size_t i = 0; i < c.n_tensors; i++) sum_bytes(&c.tensors[i]);
    ckpt_close(&c);
    return status;
}

static void test_truncation(void) {
    static const char *const files[] = {"gguf/llama.gguf",
                                        "gguf/deepseek2.gguf",
                                        "gguf/qwen3moe.gguf",
                                        "gguf/gpt-oss.gguf",
                                        "gguf/llama.io.safetensors",
                                        "malformed/gguf_ok_two.gguf",
                                        "malformed/gguf_ok_all_kv_types.gguf",
                                        "malformed/st_ok_two.safetensors",
                                        "malformed/st_ok_all_dtypes.safetensors",
                                        "malformed/st_ok_many_tensors.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[256], err[CKPT_ERR];
        ckpt c;
        snprintf(path, sizeof path, DATA "%s", files[i]);
        buffer b = load(path);
        check(ckpt_open(&c, path, err) == 0, "truncation", "%s", err);
        const ckpt_tensor *last = &c.tensors[c.n_tensors - 1];
        size_t header = (size_t)(c.tensors[0].data - c.shards[0].data);
        size_t whole =
            (size_t)(last->data - c.shards[0].data + (ptrdiff_t)last->bytes); /* padding after it may be missing */
        int wrong = 0;
        for (size_t n = 0; n <= header; n++) wrong += open_cut(path, &b, n, err) == 0 && n < whole;
        check(wrong == 0, "truncation", "%s: %d cuts of the header accepted", path, wrong);
        for (size_t k = 0; k < c.n_tensors; k++) {
            size_t begin = (size_t)(c.tensors[k].data - c.shards[0].data), end = begin + (size_t)c.tensors[k].bytes;
            wrong += open_cut(path, &b, begin, err) == 0 && begin < whole;
            wrong += open_cut(path, &b, end - 1, err) == 0;
            wrong += open_cut(path, &b, end, err) == 0 && end < whole;
        }
        check(wrong == 0, "truncation", "%s: %d cuts accepted", path, wrong);
        check(open_cut(path, &b, whole, err) == 0, "truncation", "%s whole: %s", path, err);
        ckpt_close(&c);
        drop(&b);
    }
}

/* -- Failing allocations, reads and writes ------------------------------------------------------------- */

typedef struct faults {
    long allocations, live, fail_allocation; /* counted from 1; 0 = never */
    long calls, fail_call;                   /* of read or write */
    int error;                               /* errno of the failing call; 0 = it gives 0 bytes */
    size_t most;                             /* bytes that one call gives */
    int interrupt;                           /* every second call gives EINTR */
} faults;

static void *fault_resize(void *user, void *p, size_t bytes) {
    faults *f = (faults *)user;
    if (++f->allocations == f->fail_allocation) return NULL;
    void *q = realloc(p, bytes);
    if (!p && q) f->live++;
    return q;
}

static void fault_release(void *user, void *p) {
    ((faults *)user)->live--;
    free(p);
}

/* Bytes that the next call may move; -1 with errno, or 0, where it fails. */
static ptrdiff_t fault_call(faults *f, size_t bytes) {
    f->calls++;
    if (f->interrupt && f->calls % 2) return errno = EINTR, -1;
    if (f->calls == f->fail_call) return f->error ? (errno = f->error, -1) : 0;
    return (ptrdiff_t)(f->most && bytes > f->most ? f->most : bytes);
}

static ptrdiff_t fault_read(void *user, int fd, void *to, size_t bytes) {
    ptrdiff_t n = fault_call((faults *)user, bytes);
    return n > 0 ? read(fd, to, (size_t)n) : n;
}

static ptrdiff_t fault_write(void *user, int fd, const void *from, size_t bytes) {
    ptrdiff_t n = fault_call((faults *)user, bytes);
    return n > 0 ? write(fd, from, (size_t)n) : n;
}

static ckpt_options fault_options(faults *f, int no_mmap) {
    ckpt_options o = {no_mmap, f, fault_resize, fault_release, fault_read, fault_write};
    return o;
}

static void save_model(void) {
    buffer one = safetensors("{\"__metadata__\":{\"format\":\"pt\"}," U8_TENSOR("a") "}", 1),
           two = safetensors("{" U8_TENSOR("b") "}", 1);
    save(temp_path("1.safetensors"), one.p, one.n);
    save(temp_path("2.safetensors"), two.p, two.n);
    save_text(temp_path("model.safetensors.index.json"),
              "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    save_text(temp_path("config.json"), "{\"a\":{\"b\":[1,\"c\",{\"d\":null}]}}");
    drop(&one), drop(&two);
}

static void test_allocations(void) {
    save_model();
    for (unsigned s = 0; s < 2; s++) {
        char name[64];
        buffer b = gguf_shard(2 * s, s, 2, 4);
        snprintf(name, sizeof name, "m-0000%u-of-00002.gguf", s + 1);
        save(temp_path(name), b.p, b.n);
        drop(&b);
    }
    char paths[8][512] = {DATA "gguf/deepseek2.gguf", DATA "malformed/gguf_ok_all_kv_types.gguf",
                          DATA "gguf/llama.io.safetensors", DATA "malformed/st_ok_many_tensors.safetensors",
                          DATA "malformed/idx_ok.json"};
    snprintf(paths[5], sizeof paths[5], "%s", temporary);
    snprintf(paths[6], sizeof paths[6], "%s/m-00001-of-00002.gguf", temporary);
    snprintf(paths[7], sizeof paths[7], "%s/1.safetensors", temporary);
    for (size_t i = 0; i < 8; i++)
        for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
            int status = -1, bad = 0;
            long n = 0;
            while (status && n < 10000) {
                char err[CKPT_ERR];
                faults f = {0};
                ckpt c;
                f.fail_allocation = ++n;
                ckpt_options o = fault_options(&f, no_mmap);
                status = ckpt_open_with(&c, paths[i], &o, err);
                bad += status && !strstr(err, "out of memory");
                ckpt_close(&c);
                bad += f.live != 0;
            }
            check(status == 0 && n > 3 && bad == 0, "allocation", "%s: %ld tries, %d wrong messages or leaks",
                  paths[i], n, bad);
        }
    remove_all();
}

static void test_reads(void) {
    static const struct {
        const char *name;
        size_t most;
        int interrupt, error;
    } cases[] = {{"one byte at a time", 1, 0, EIO},   {"7 bytes, EINTR", 7, 1, EIO},
                 {"1000 bytes, EINTR", 1000, 1, EIO}, {"all at once", 0, 0, EIO},
                 {"EAGAIN", 100, 0, EAGAIN},          {"end of file", 100, 0, 0}};
    const char *path = DATA "malformed/gguf_ok_all_kv_types.gguf";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char err[CKPT_ERR];
        faults f = {0};
        ckpt c;
        f.most = cases[i].most, f.interrupt = cases[i].interrupt;
        ckpt_options o = fault_options(&f, 1);
        check(ckpt_open_with(&c, path, &o, err) == 0 && c.config.n == 19, cases[i].name, "%s", err);
        ckpt_close(&c);
        long calls = f.calls;
        int bad = 0;
        for (long n = 1; n <= calls; n++) {
            if (f.interrupt && n % 2) continue; /* that call is interrupted, not failed */
            memset(&f, 0, sizeof f);
            f.most = cases[i].most, f.interrupt = cases[i].interrupt, f.error = cases[i].error, f.fail_call = n;
            bad += ckpt_open_with(&c, path, &o, err) == 0 || !good_message(err, "all_kv_types");
            bad += f.live != 0;
        }
        check(bad == 0 && calls > 0, cases[i].name, "%d wrong of %ld", bad, calls);
    }
}

/* The file is changed to another length while it is read. */
static int shrink_fd;
static ptrdiff_t shrinking_read(void *user, int fd, void *to, size_t bytes) {
    (void)user;
    shrink_fd = truncate(temp_path("s.gguf"), 100);
    return read(fd, to, bytes < 64 ? bytes : 64);
}

static void test_shrinking(void) {
    char err[CKPT_ERR];
    ckpt_options o = {1, NULL, NULL, NULL, shrinking_read, NULL};
    ckpt c;
    buffer b = load(DATA "malformed/gguf_ok_two.gguf");
    save(temp_path("s.gguf"), b.p, b.n);
    check(ckpt_open_with(&c, temp_path("s.gguf"), &o, err) == -1 && strstr(err, "changed"), "shrinking file", "%s",
          err);
    drop(&b);
    remove_all();
}

/* -- Size ---------------------------------------------------------------------------------------------- */

static double seconds(void) { return (double)clock() / CLOCKS_PER_SEC; }

/* n tensors of one byte. step: the order in the header (1 = as in the data; prime to n). */
static buffer many_tensors(unsigned n, unsigned step) {
    buffer header = {0}, b;
    putf(&header, "{");
    for (unsigned i = 0; i < n; i++) {
        unsigned k = (unsigned)((uint64_t)i * step % n);
        putf(&header,
             "%s\"model.layers.%u.mlp.experts.%u.w\":{\"dtype\":\"U8\",\"shape\":[1,1],\"data_offsets\":[%u,%u]}",
             i ? "," : "", k / 256, k % 256, k, k + 1);
    }
    put(&header, "}", 2);
    b = safetensors((char *)header.p, n);
    drop(&header);
    return b;
}

static buffer many_listed(unsigned n) {
    buffer b = {0};
    putf(&b, "{\"weight_map\":{");
    for (unsigned i = 0; i < n; i++)
        putf(&b, "%s\"model.layers.%u.mlp.experts.%u.w\":\"m.safetensors\"", i ? "," : "", i / 256, i % 256);
    putf(&b, "}}");
    return b;
}

static double time_many(unsigned n, unsigned step, int index) {
    char err[CKPT_ERR];
    buffer b = many_tensors(n, step), map = many_listed(n);
    ckpt_file files[] = {{"i.json", map.p, map.n}, {"m.safetensors", b.p, b.n}};
    ckpt c;
    double begin = seconds();
    int status = ckpt_open_memory(&c, index ? files : files + 1, index ? 2 : 1, NULL, err);
    check(status == 0 && c.n_tensors == n, "many tensors", "%u: %s", n, err);
    for (unsigned i = 0; !status && i < n; i++) {
        const ckpt_tensor *t = ckpt_findf(&c, "model.layers.%u.mlp.experts.%u.w", i / 256, i % 256);
        if (!t || t->data[0] != (uint8_t)i) return check(0, "many tensors", "tensor %u", i), 0;
    }
    ckpt_close(&c);
    double time = seconds() - begin;
    drop(&b), drop(&map);
    return time;
}

/* What this machine (or emulator, or sanitizer) takes to go through the file's bytes once, one by one. */
static double time_bytes(unsigned n) {
    buffer b = many_tensors(n, 1);
    double begin = seconds();
    uint32_t hash = 0;
    for (size_t i = 0; i < b.n; i++) hash = (hash ^ b.p[i]) * 16777619u;
    double time = seconds() - begin;
    check(hash != 0, "many tensors", "hash 0"); /* uses it */
    drop(&b);
    return time;
}

static void test_many(void) {
    double few = time_many(62500, 1, 1), file = time_many(250000, 1, 0), index = time_many(250000, 1, 1);
    double mixed = time_many(250000, 99991, 0), once = time_bytes(250000);
    printf("250,000 tensors, open, find all and close: file %.3f s, with an index %.3f s (62,500: %.3f s), in mixed "
           "order %.3f s; "
           "one pass over the bytes %.3f s\n",
           file, index, few, mixed, once);
    check(file + index < (once < 0.05 && !SLOW ? 2 : 150 * once), "many tensors", "%.2f s", file + index);
    check(index < 8 * few + 0.05, "many tensors", "4 times the tensors take %.1f times as long", index / few);
    check(mixed < 12 * file + 0.2, "many tensors", "mixed order: %.2f s", mixed);
}

/* Names that all want the same slots of the table: refused, not quadratic. */
static void test_collisions(void) {
    char err[CKPT_ERR] = "";
    buffer header = {0};
    unsigned n = 0;
    putf(&header, "{");
    for (unsigned i = 0; n < 2000; i++) {
        char name[32];
        snprintf(name, sizeof name, "%x", i);
        if (ckpti_hash(name) & 0xFF8) continue;
        putf(&header, "%s\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%u,%u]}", n ? "," : "", name, n,
             n + 1);
        n++;
    }
    put(&header, "}", 2);
    check(open_header((char *)header.p, n, err) == -1 && strstr(err, "same hash"), "collisions", "%s", err);
    drop(&header);
}

static int sparse_file(const char *path, const void *head, size_t n, off_t size, uint8_t last) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    int ok = fd >= 0 && write(fd, head, n) == (ssize_t)n && ftruncate(fd, size) == 0 &&
             lseek(fd, size - 1, SEEK_SET) == size - 1 && write(fd, &last, 1) == 1;
    if (fd >= 0) close(fd);
    return ok;
}

static void test_sparse(void) {
    static const char header[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[5000000000],\"data_offsets\":[0,5000000000]},"
                                 "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[5000000000,5000000001]}}";
    char err[CKPT_ERR];
    ckpt c;
    buffer b = safetensors(header, 0);
    if (sizeof(off_t) < 8 || !sparse_file(temp_path("big.safetensors"), b.p, b.n, (off_t)(b.n + 5000000001), 77)) {
        skip("sparse file", "cannot make a file of 5 GB");
        drop(&b);
        return;
    }
#ifdef CKPT_NO_MMAP
    skip("sparse file", "it would be read into memory");
    drop(&b);
    remove_all();
    return;
#endif
    int status = ckpt_open(&c, temp_path("big.safetensors"), err);
    if (sizeof(size_t) < 8) check(status && strstr(err, "too large"), "sparse file", "%s", err);
    else if (check(status == 0, "sparse file", "%s", err)) {
        const ckpt_tensor *t = ckpt_find(&c, "b");
        check(t && t->bytes == 1 && t->data[0] == 77, "sparse file", "last byte");
        check(ckpt_find(&c, "a")->bytes == 5000000000, "sparse file", "size");
        ckpt_close(&c);
    }
    check(truncate(temp_path("big.safetensors"), (off_t)b.n + 5000000000) == 0 &&
              ckpt_open(&c, temp_path("big.safetensors"), err),
          "sparse file", "one byte less accepted");
    check(truncate(temp_path("big.safetensors"), (off_t)b.n + 705032705) == 0 &&
              ckpt_open(&c, temp_path("big.safetensors"), err),
          "sparse file", "the size modulo 2^32 accepted");
    drop(&b);
    put(&b, "GGUF", 4), put_number(&b, 3, 4), put_number(&b, 2, 8), put_number(&b, 0, 8);
    put_string(&b, "a"), put_number(&b, 2, 4), put_number(&b, 1u << 20, 8), put_number(&b, 5000, 8),
        put_number(&b, 24, 4), put_number(&b, 0, 8);
    put_string(&b, "b"), put_number(&b, 1, 4), put_number(&b, 1, 8), put_number(&b, 24, 4),
        put_number(&b, 5000ull << 20, 8);
    while (b.n % 32) put_number(&b, 0, 1);
    check(sparse_file(temp_path("big.gguf"), b.p, b.n, (off_t)b.n + (5000ll << 20) + 1, 78), "sparse file", "GGUF");
    status = ckpt_open(&c, temp_path("big.gguf"), err);
    if (sizeof(size_t) >= 8 && check(status == 0, "sparse file", "%s", err)) {
        check(ckpt_find(&c, "b") && ckpt_find(&c, "b")->data[0] == 78, "sparse file", "last byte of GGUF");
        ckpt_close(&c);
    }
    drop(&b);
    remove_all();
}

/* -- Writing ------------------------------------------------------------------------------------------- */

static const uint8_t write_data[64] = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,
                                       13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24};
static const ckpt_out write_tensors[] = {
    {"bytes", CKPT_U8, 1, {3}, write_data},
    {"output", CKPT_F32, 2, {2, 3}, write_data + 1},
    {"ids \"\\\n\x01\xC3\xA9", CKPT_I32, 2, {1, 2}, write_data},
    {"wide", CKPT_F64, 1, {1}, write_data},
    {"scalar", CKPT_BF16, 0, {0}, write_data + 5},
    {"none", CKPT_F32, 2, {0, 7}, NULL},
    {"half bytes", CKPT_F4, 1, {4}, write_data},
};
enum { WRITE_TENSORS = sizeof write_tensors / sizeof *write_tensors };

static void test_write(void) {
    char err[CKPT_ERR];
    ckpt c;
    for (int again = 0; again < 2; again++) /* the second time over the first file */
        check(ckpt_write(temp_path("w.safetensors"), write_tensors, WRITE_TENSORS, "{\"k\":\"v\"}", err) == 0,
              "write", "%s", err);
    check(count_files() == 1, "write", "%d files", count_files());
    check(ckpt_open(&c, temp_path("w.safetensors"), err) == 0 && c.n_tensors == WRITE_TENSORS, "write", "%s", err);
    check(!strcmp(ckpt_get_str(&c, "__metadata__.k", ""), "v"), "write", "metadata");
    for (int i = 0; i < WRITE_TENSORS; i++) {
        const ckpt_out *o = &write_tensors[i];
        const ckpt_tensor *t = ckpt_find(&c, o->name);
        const ckpt_dtype_info *info = ckpt_type(o->type);
        check(t && t->type == o->type && t->n_dims == o->n_dims && !memcmp(t->dims, o->dims, o->n_dims * 8), "write",
              "tensor %d", i);
        check(t && (t->bytes == 0 || !memcmp(t->data, o->data, (size_t)t->bytes)), "write", "data of tensor %d", i);
        check(t && info->elements > 1 ? 1 : t && (uint64_t)(t->data - c.shards[0].data) % info->bytes == 0, "write",
              "alignment of %d", i);
    }
    ckpt_close(&c);
    check(ckpt_write(temp_path("empty.safetensors"), NULL, 0, NULL, err) == 0, "write", "%s", err);
    check(ckpt_open(&c, temp_path("empty.safetensors"), err) == 0 && c.n_tensors == 0, "write", "%s", err);
    ckpt_close(&c);
    int input = dup(0); /* a program without standard input: the next file is number 0 */
    close(0);
    check(ckpt_write(temp_path("zero.safetensors"), write_tensors, WRITE_TENSORS, NULL, err) == 0, "file 0", "%s",
          err);
    check(ckpt_open(&c, temp_path("zero.safetensors"), err) == 0 && c.n_tensors == WRITE_TENSORS, "file 0", "%s",
          err);
    ckpt_close(&c);
    if (input >= 0) dup2(input, 0), close(input);
    remove_all();
}

static void test_write_refuses(void) {
    static const char *const metadata[] = {"",
                                           "{",
                                           "[]",
                                           "1",
                                           "{\"a\":1}",
                                           "{}x",
                                           "null",
                                           "{},\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
                                           "{\"a\":\"\xFF\"}"};
    static const ckpt_out bad[] = {
        {"\xFF", CKPT_U8, 1, {1}, write_data},     {"a", CKPT_DTYPE_COUNT, 1, {1}, write_data},
        {"a", CKPT_Q8_0, 1, {32}, write_data},     {"a", CKPT_F4, 1, {3}, write_data},
        {"a", CKPT_U8, 9, {1}, write_data},        {"a", CKPT_F64, 2, {1ull << 60, 2}, write_data},
        {"a", CKPT_F64, 2, {1ull << 62, 4}, NULL}, {"__metadata__", CKPT_U8, 1, {1}, write_data}};
    static const ckpt_out twice[] = {{"a", CKPT_U8, 1, {1}, write_data}, {"a", CKPT_U8, 1, {1}, write_data}};
    char err[CKPT_ERR];
    save_text(temp_path("old.safetensors"), "old");
    for (size_t i = 0; i < sizeof metadata / sizeof *metadata; i++) {
        check(ckpt_write(temp_path("old.safetensors"), write_tensors, 2, metadata[i], err) == -1, "write refuses",
              "metadata %s", metadata[i]);
        check(good_message(err, "old.safetensors") && !strstr(err, "tmp-1"), "write refuses", "message \"%s\"", err);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check(ckpt_write(temp_path("old.safetensors"), &bad[i], 1, NULL, err) == -1, "write refuses", "tensor %d",
              (int)i);
    check(ckpt_write(temp_path("old.safetensors"), twice, 2, NULL, err) == -1, "write refuses", "a name twice");
    check(mkfifo(temp_path("fifo"), 0600) == 0, "write refuses",
          "mkfifo"); /* never a real device: a failure would replace it */
    check(ckpt_write(temp_path("fifo"), twice, 1, NULL, err) == -1, "write refuses", "a FIFO");
    check(strstr(err, "not a regular file") != NULL, "write refuses", "%s", err);
    unlink(temp_path("fifo"));
    check(ckpt_write(temporary, twice, 1, NULL, err) == -1, "write refuses", "a directory");
    check(ckpt_write(temp_path("no/such/dir"), twice, 1, NULL, err) == -1, "write refuses", "no directory");
    buffer b = load(temp_path("old.safetensors"));
    check(b.n == 3 && !memcmp(b.p, "old", 3) && count_files() == 1, "write refuses",
          "the old file was touched or a new one left");
    drop(&b);
    remove_all();
}

static void test_write_faults(void) {
    static const int errors[] = {ENOSPC, EIO, 0};
    char err[CKPT_ERR];
    int status = -1, bad = 0;
    long n = 0;
    save_text(temp_path("w"), "old");
    for (; status && n < 1000; n++) { /* allocations */
        faults f = {0};
        f.fail_allocation = n + 1, f.most = 5, f.interrupt = 1;
        ckpt_options o = fault_options(&f, 1);
        status = ckpt_write_with(temp_path("w"), write_tensors, WRITE_TENSORS, "{\"k\":\"v\"}", &o, err);
        bad += f.live != 0 || count_files() != 1 || (status && !strstr(err, "out of memory"));
    }
    check(bad == 0 && n > 5 && status == 0, "write faults", "%d wrong of %ld allocations", bad, n);
    for (int e = 0; e < 3; e++) {
        bad = 0, status = -1;
        for (n = 1; status && n < 1000; n++) {
            faults f = {0};
            f.fail_call = n, f.error = errors[e], f.most = 50;
            ckpt_options o = fault_options(&f, 0);
            status = ckpt_write_with(temp_path("w"), write_tensors, WRITE_TENSORS, NULL, &o, err);
            bad += f.live != 0 || count_files() != 1 || (status && !good_message(err, "/w"));
        }
        check(bad == 0 && n > 8 && status == 0, "write faults", "%d wrong of %ld writes", bad, n);
    }
    remove_all();
}

int main(int argc, char **argv) {
    verbose = argc > 1 && strcmp(argv[1], "-v") == 0;
    if (!mkdtemp(temporary)) return 2;
    test_malformed();
    test_reasons();
    test_gguf_contents();
    test_gguf_values();
    test_gguf_all_types();
    test_safetensors_contents();
    test_types();
    test_little_endian();
    test_printable();
    test_utf8();
    test_numbers();
    test_integers();
    test_config();
    test_json_syntax();
    test_escapes();
    test_json_depth();
    test_json_limits();
    test_locale();
    test_safetensors_rules();
    test_safetensors_order();
    test_gguf_rules();
    test_split();
    test_index();
    test_traversal();
    test_directory();
    test_special_files();
    test_truncation();
    test_allocations();
    test_reads();
    test_shrinking();
    test_many();
    test_collisions();
    test_sparse();
    test_write();
    test_write_refuses();
    test_write_faults();
    rmdir(temporary);
    printf("test_checkpoint: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
