/* test_run_layer.c - checkpoints through build/run_layer and examples/checkpoint_layer.h
 *
 * Golden layers of every family, tiny GGUF models, every Hugging Face weight layout as a layer, malformed layers, bad
 * command lines. Run from the repository's root after building build/run_layer; needs nothing but the C compiler:
 *     cc -O2 -I. -o build/test_run_layer tests/test_run_layer.c -lm && build/test_run_layer
 */
#include "../examples/checkpoint.h"
#define MOE_IMPLEMENTATION
#include "../moe.h"
#include "../examples/checkpoint_layer.h"
#include <dirent.h>
#include <sys/wait.h>

#define TMP "build/tmp_run_layer"
static int passed, failed, skipped;
static const char *program = "build/run_layer";

static int check(int ok, const char *name, const char *format, ...) CKPT_PRINTF(3, 4);
static int check(int ok, const char *name, const char *format, ...) {
    if (ok) {
        passed++;
        return 1;
    }
    va_list args;
    failed++;
    printf("FAIL %s: ", name);
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    printf("\n");
    return 0;
}

/* Runs the program; its stderr is in `line` (the first line) and lines is how many. */
static int run(char *line, int *lines, const char *format, ...) CKPT_PRINTF(3, 4);
static int run(char *line, int *lines, const char *format, ...) {
    char command[2048], args_text[1536], text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(args_text, sizeof args_text, format, args);
    va_end(args);
    snprintf(command, sizeof command, "%s %s >" TMP "/stdout 2>" TMP "/stderr", program, args_text);
    int status = system(command);
    FILE *f = fopen(TMP "/stderr", "r");
    *lines = 0, line[0] = 0;
    while (f && fgets(text, sizeof text, f)) {
        if (!(*lines)++) snprintf(line, 512, "%.500s", text);
    }
    if (f) fclose(f);
    line[strcspn(line, "\n")] = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static int same_files(const char *a, const char *b) {
    FILE *p = fopen(a, "rb"), *q = fopen(b, "rb");
    int x = 0, y = 0;
    while (p && q && x != EOF && x == y) x = getc(p), y = getc(q);
    int same = p && q && x == y;
    if (p) fclose(p);
    if (q) fclose(q);
    return same;
}
static int exists(const char *path) {
    struct stat s;
    return !stat(path, &s);
}

static int by_name(const void *a, const void *b) { return strcmp((const char *)a, (const char *)b); }
/* Sorted names in a directory that end in `end`. */
static size_t names_in(const char *directory, const char *end, char (*names)[96], size_t max) {
    DIR *d = opendir(directory);
    size_t n = 0, m = strlen(end);
    struct dirent *e;
    while (d && (e = readdir(d)) && n < max) {
        size_t length = strlen(e->d_name);
        if (e->d_name[0] == '.' || length < m || length > 95 || strcmp(e->d_name + length - m, end)) continue;
        memcpy(names[n++], e->d_name, length + 1);
    }
    if (d) closedir(d);
    qsort(names, n, sizeof *names, by_name);
    return n;
}

static double value(const ckpt_tensor *t, uint64_t i) {
    switch (t->type) {
    case CKPT_F64: return ckpt_load_f64(t->data + 8 * i);
    case CKPT_I32: return (double)(int32_t)ckpt_load_u32(t->data + 4 * i);
    default: return (double)ckpt_load_f32(t->data + 4 * i);
    }
}

/* Largest difference of a row relative to the row's largest value. */
static double difference(const ckpt_tensor *want, const ckpt_tensor *got) {
    uint64_t rows = want->dims[0], n = want->dims[1];
    double worst = 0;
    for (uint64_t r = 0; r < rows; r++) {
        double top = 0, off = 0;
        for (uint64_t i = r * n; i < (r + 1) * n; i++) {
            double d = fabs(value(want, i) - value(got, i));
            if (fabs(value(want, i)) > top) top = fabs(value(want, i));
            if (!(d <= off)) off = d; /* NaN too */
        }
        off /= top > 0 ? top : 1;
        if (!(off <= worst)) worst = off;
    }
    return worst;
}

/* OUT against IO: ids in rank order, weights and output relative to the token's largest. */
static int compare(const char *name, const char *io, const char *out, double weight_tolerance, double tolerance) {
    ckpt want, got;
    char err[CKPT_ERR];
    if (!check(!ckpt_open(&want, io, err), name, "%s", err)) return 0;
    int ok = check(!ckpt_open(&got, out, err), name, "%s", err), before = failed;
    const char *const parts[] = {"topk_ids", "topk_weights", "output"};
    double limits[] = {0, weight_tolerance, tolerance};
    for (size_t i = 0; ok && i < 3; i++) {
        const ckpt_tensor *w = ckpt_find(&want, parts[i]), *g = ckpt_find(&got, parts[i]);
        int shapes =
            w && g && w->n_dims == 2 && g->n_dims == 2 && w->dims[0] == g->dims[0] && w->dims[1] == g->dims[1];
        if (!check(shapes, name, "%s is missing or of another shape", parts[i])) continue;
        double d = difference(w, g);
        check(d <= limits[i], name, "%s differs by %g, more than %g", parts[i], d, limits[i]);
    }
    const ckpt_tensor *wl = ckpt_find(&want, "router_logits"), *gl = ok ? ckpt_find(&got, "router_logits") : NULL;
    if (ok)
        check(wl && gl && ckpt_elements(wl) == ckpt_elements(gl) && difference(wl, gl) <= 1e-5, name,
              "router_logits differ");
    ckpt_close(&want);
    if (ok) ckpt_close(&got);
    return ok && failed == before;
}

/* ---- golden layers and GGUF models ---- */

static void test_model(const char *name, const char *checkpoint, const char *layer, const char *io, int whole) {
    static const char *const ways[] = {"--tier c", "--threads 3", "--batch 1", "--batch 5 --threads 2"};
    char line[512];
    int lines, before = failed;
    if (!check(!run(line, &lines, "%s %s --input %s --output " TMP "/best", checkpoint, layer, io), name, "%s", line))
        return;
    compare(name, io, TMP "/best", 1e-6, 1e-5);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        if (whole && strstr(ways[i], "--batch")) continue; /* capacity looks at the whole call */
        if (!check(!run(line, &lines, "%s %s --input %s --output " TMP "/other %s", checkpoint, layer, io, ways[i]),
                   name, "%s: %s", ways[i], line))
            continue;
        check(same_files(TMP "/best", TMP "/other"), name, "%s gives another file", ways[i]);
    }
    if (!check(!run(line, &lines, "%s %s --list", checkpoint, layer), name, "--list: %s", line)) return;
    printf("%s %s\n", failed == before ? "ok  " : "    ", name);
}

static void test_golden(void) {
    static char names[128][96];
    size_t n = names_in("tests/data/golden", "", names, 128), cases = 0;
    char path[160], io[192], label[384];
    for (size_t i = 0; i < n; i++) {
        ckpt c;
        ckpt_layers layers;
        ckpt_layer_info info;
        moe_desc d;
        char err[CKPT_ERR];
        snprintf(path, sizeof path, "tests/data/golden/%.95s", names[i]);
        snprintf(io, sizeof io, "%s/io.safetensors", path);
        if (!exists(io)) continue;
        cases++;
        if (!check(!ckpt_open(&c, path, err) && !ckpt_layer_list(&c, &layers, err), names[i], "%s", err)) continue;
        check(layers.n == 1, names[i], "%zu layers", layers.n);
        if (check(layers.n && !ckpt_layer_desc(&c, layers.items, &d, &info, err), names[i], "%s", err)) {
            snprintf(label, sizeof label, "%.95s: family %s, layer %s", names[i], info.family, layers.items[0].name);
            test_model(label, path, "", io, d.router.capacity && d.router.capacity < 24);
            ckpt_layer_free(&info);
        }
        ckpt_layers_free(&layers);
        ckpt_close(&c);
    }
    check(cases >= 30, "golden", "only %zu cases found", cases);
}

static void test_gguf(void) {
    static char names[64][96];
    size_t n = names_in("tests/data/gguf", ".io.safetensors", names, 64);
    check(n >= 7, "gguf", "only %zu io files found", n);
    for (size_t i = 0; i < n; i++) {
        char model[256], io[256], layer[32] = "", stem[96];
        snprintf(stem, sizeof stem, "%.*s", (int)(strlen(names[i]) - strlen(".io.safetensors")), names[i]);
        char *block = strstr(stem, ".blk");
        if (block) snprintf(layer, sizeof layer, "--layer %.8s", block + 4), *block = 0;
        snprintf(model, sizeof model, "tests/data/gguf/%s.gguf", stem);
        snprintf(io, sizeof io, "tests/data/gguf/%s", names[i]);
        test_model(names[i], model, layer, io, 0);
    }
}

/* ---- Hugging Face weight layouts as layers ---- */

typedef struct layout { /* how the tensors of one file stand in a layer */
    const char *stem, *up, *down, *router, *config;
} layout;
static const layout layouts[] = {
    {"model.layers.3.mlp.experts.0.gate_proj", "model.layers.3.mlp.experts.0.up_proj",
     "model.layers.3.mlp.experts.0.down_proj.weight", "model.layers.3.mlp.gate.weight",
     "{\"model_type\":\"qwen3_moe\",\"hidden_size\":%u,\"moe_intermediate_size\":%u,\"num_experts\":1,\"num_experts_"
     "per_tok\":1%s%s}"},
    {"model.layers.3.block_sparse_moe.experts.0.w1", "model.layers.3.block_sparse_moe.experts.0.w3",
     "model.layers.3.block_sparse_moe.experts.0.w2.weight", "model.layers.3.block_sparse_moe.gate.weight",
     "{\"model_type\":\"mixtral\",\"hidden_size\":%u,\"intermediate_size\":%u,\"num_local_experts\":1,\"num_experts_"
     "per_tok\":1%s%s}"},
    {"model.layers.1.block_sparse_moe.experts.0.w1", "model.layers.1.block_sparse_moe.experts.0.w3",
     "model.layers.1.block_sparse_moe.experts.0.w2.weight", "model.layers.1.block_sparse_moe.gate.weight",
     "{\"model_type\":\"minimax_m2\",\"hidden_size\":%u,\"intermediate_size\":%u,\"num_local_experts\":1,\"num_"
     "experts_per_tok\":1%s%s}"},
    {"layers.3.ffn.experts.0.w1", "layers.3.ffn.experts.0.w3", "layers.3.ffn.experts.0.w2.weight",
     "layers.3.ffn.gate.weight",
     "{\"model_type\":\"deepseek_v4\",\"hidden_size\":%u,\"moe_intermediate_size\":%u,\"n_routed_experts\":1,\"num_"
     "experts_per_tok\":1%s%s}"},
};

static int write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    int ok = f && fputs(text, f) >= 0;
    if (f) ok &= !fclose(f);
    return ok;
}

static uint32_t noise_state = 1;
static float noise(void) {
    noise_state = noise_state * 1664525u + 1013904223u;
    return (float)(noise_state >> 8) / 16777216.0f - 0.5f;
}
static float *noises(size_t n) {
    float *p = (float *)malloc(n * sizeof *p + 4);
    for (size_t i = 0; p && i < n; i++) ckpt_store_f32(&p[i], noise());
    return p;
}

/* Every value of matrix m against `values` from row0 with `step`: bits, zeros by value, NaN with NaN; ulp: how far it
   may be off. */
static void check_values(const char *name, const moe_matrix *m, uint32_t expert, uint32_t n_experts, size_t rows,
                         size_t k, const ckpt_tensor *values, size_t row0, size_t step, uint32_t ulp) {
    float *line = (float *)malloc(k * sizeof *line);
    size_t wrong = 0;
    for (size_t r = 0; line && r < rows; r++) {
        if (!check(!moe_dequantize(m, expert, n_experts, rows, k, r, 1, line), name, "row %zu: dequantize", r)) break;
        for (size_t i = 0; i < k; i++) {
            float want = ckpt_load_f32(values->data + ((row0 + r * step) * k + i) * 4), got = line[i];
            uint32_t a, b;
            memcpy(&a, &want, 4), memcpy(&b, &got, 4);
            int nan = want != want && got != got, zero = want == 0.0f && got == 0.0f;
            uint32_t off = a > b ? a - b : b - a;
            if (!nan && !zero && off > ulp && !wrong++)
                check(0, name, "row %zu, %zu: %.9g, not %.9g", r, i, (double)got, (double)want);
        }
    }
    check(!wrong, name, "%zu values differ", wrong);
    free(line);
}

/* y of one expert with weight 1 in double, from the file's own values (gate = up). */
static void check_forward(const char *name, const moe_desc *d, const ckpt_tensor *values, const float *down) {
    size_t n = d->d_model, ff = d->d_ff, t = 3;
    moe_layer layer;
    moe_error e;
    float *x = noises(t * n), *y = (float *)malloc(t * n * sizeof *y), *logits = (float *)malloc(t * sizeof *logits);
    double *h = (double *)malloc(ff * sizeof *h);
    memset(&e, 0, sizeof e);
    if (!check(!moe_layer_init(&layer, d, &e), name, "%s: %s", e.field ? e.field : "", moe_status_text(e.status)))
        goto out;
    moe_io io;
    memset(&io, 0, sizeof io);
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = t, io.logits_out = logits;
    io.workspace_size = moe_workspace_size(&layer, t, 1), io.workspace = malloc(io.workspace_size);
    check(!moe_forward(&layer, &io), name, "forward failed");
    free(io.workspace);
    for (size_t j = 0; j < t; j++) {
        double top = 0, off = 0;
        for (size_t r = 0; r < ff; r++) {
            double s = 0, l = d->ffn.clamp ? (double)d->ffn.limit : 1e300;
            for (size_t i = 0; i < n; i++)
                s += (double)ckpt_load_f32(values->data + (r * n + i) * 4) * (double)x[j * n + i];
            double g = s < l ? s : l, u = s < l ? (s > -l ? s : -l) : l;
            h[r] = g / (1 + exp(-g)) * u;
        }
        double weight = d->router.routed_scale > 0 ? (double)d->router.routed_scale : 1;
        if (d->router.norm == MOE_NORM_NONE && d->router.score) weight *= sqrt(log1p(exp((double)logits[j])));
        for (size_t r = 0; r < n; r++) {
            double s = 0;
            for (size_t i = 0; i < ff; i++) s += h[i] * (double)down[r * ff + i];
            if (fabs(s * weight) > top) top = fabs(s * weight);
            if (!(fabs(s * weight - (double)y[j * n + r]) <= off)) off = fabs(s * weight - (double)y[j * n + r]);
        }
        check(off <= 1e-5 * top || top > 1e30, name, "token %zu is off by %g of %g", j, off, top);
    }
out:
    free(x), free(y), free(logits), free(h);
}

/* Writes the layer in two shards, scales and the like in the second. */
static int write_layer(const char *name, const ckpt *c, const layout *l, uint32_t n, uint32_t ff, const float *down,
                       const float *router) {
    static char names[64][160], index[16384], config[2048];
    ckpt_out shard[2][32];
    size_t used[2] = {0, 0}, at = 0, n_names = 0;
    char err[CKPT_ERR] = "";
    const char *quant = ckpt_get_str(c, "__metadata__.quantization_config", "");
    at += (size_t)snprintf(index, sizeof index, "{\"weight_map\":{");
    for (size_t i = 0; i < c->n_tensors; i++) {
        const ckpt_tensor *t = &c->tensors[i];
        if (!strcmp(t->name, "values")) continue;
        size_t word = strlen(t->name);
        while (word && t->name[word - 1] != '.') word--;
        for (int up = 0; up < 2; up++) {
            int second = strstr(t->name + word, "scale") || strstr(t->name + word, "zero");
            snprintf(names[n_names], sizeof *names, "%s.%s", up ? l->up : l->stem, t->name + word);
            ckpt_out *o = &shard[second][used[second]++];
            memset(o, 0, sizeof *o);
            o->name = names[n_names], o->type = t->type, o->n_dims = t->n_dims, o->data = t->data;
            memcpy(o->dims, t->dims, sizeof o->dims);
            at += (size_t)snprintf(index + at, sizeof index - at, "\"%s\":\"%s.safetensors\",", names[n_names],
                                   second ? "b" : "a");
            n_names++;
        }
    }
    ckpt_out d = {l->down, CKPT_F32, 2, {n, ff}, down}, r = {l->router, CKPT_F32, 2, {1, n}, router};
    shard[0][used[0]++] = d, shard[0][used[0]++] = r;
    snprintf(index + at, sizeof index - at, "\"%s\":\"a.safetensors\",\"%s\":\"a.safetensors\"}}", l->down,
             l->router);
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#endif
    snprintf(config, sizeof config, l->config, n, ff, *quant ? ",\"quantization_config\":" : "", quant);
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif
    remove(TMP "/layer/b.safetensors");
    int ok = !ckpt_write(TMP "/layer/a.safetensors", shard[0], used[0], NULL, err) &&
             (!used[1] || !ckpt_write(TMP "/layer/b.safetensors", shard[1], used[1], NULL, err)) &&
             write_text(TMP "/layer/config.json", config) &&
             write_text(TMP "/layer/model.safetensors.index.json", index);
    return check(ok, name, "writing the layer: %s", err);
}

static const layout *layout_of(const ckpt *c) {
    for (size_t i = 0; i < c->n_tensors; i++)
        for (size_t j = 0; j < sizeof layouts / sizeof *layouts; j++) {
            const char *p = strstr(layouts[j].stem, "experts.0"), *q = strstr(c->tensors[i].name, "experts");
            size_t n = (size_t)(p - layouts[j].stem);
            if (q && !strncmp(layouts[j].stem, c->tensors[i].name, n)) return &layouts[j];
        }
    return NULL;
}

static void test_layout(const char *file) {
    char path[256], err[CKPT_ERR];
    ckpt c, model;
    ckpt_layers layers;
    ckpt_layer_info info;
    moe_desc d;
    snprintf(path, sizeof path, "tests/data/formats/hf/%s", file);
    if (!check(!ckpt_open(&c, path, err), file, "%s", err)) return;
    const layout *l = layout_of(&c);
    const ckpt_tensor *v = ckpt_find(&c, "values");
    if (!check(l && v && v->n_dims == 2, file, "no layout for it")) return;
    uint32_t n = (uint32_t)v->dims[1], ff = (uint32_t)v->dims[0];
    float *down = noises((size_t)n * ff), *router = noises(n);
    if (write_layer(file, &c, l, n, ff, down, router) &&
        check(!ckpt_open(&model, TMP "/layer", err), file, "%s", err)) {
        if (check(!ckpt_layer_list(&model, &layers, err) && layers.n == 1, file, "%s", err)) {
            if (check(!ckpt_layer_desc(&model, layers.items, &d, &info, err), file, "%s", err)) {
                uint32_t ulp = strstr(file, "nvfp4") ? 2 : 0;
                check_values(file, &d.gate, 0, 1, ff, n, v, 0, 1, ulp);
                check_values(file, &d.up, 0, 1, ff, n, v, 0, 1, ulp);
                d.compute = MOE_COMPUTE_F32;
                if (!strstr(file, "nonfinite") && !strstr(file, "edge")) check_forward(file, &d, v, down);
                printf("ok   %s: %s\n", file, info.parts[1].format);
                ckpt_layer_free(&info);
            }
            ckpt_layers_free(&layers);
        }
        ckpt_close(&model);
    }
    free(down), free(router);
    ckpt_close(&c);
}

/* gpt-oss: two experts, interleaved rows; the missing half is made up. */
static void test_gpt_oss(int is_down) {
    const char *name = is_down ? "mxfp4_gptoss_down" : "mxfp4_gptoss_gate_up";
    char path[256], err[CKPT_ERR], config[512];
    ckpt c, model;
    ckpt_layers layers;
    ckpt_layer_info info;
    moe_desc d;
    snprintf(path, sizeof path, "tests/data/formats/hf/%s.safetensors", name);
    if (!check(!ckpt_open(&c, path, err), name, "%s", err)) return;
    const ckpt_tensor *v = ckpt_find(&c, "values");
    uint32_t rows = (uint32_t)v->dims[1], k = (uint32_t)v->dims[2], n = is_down ? rows : k,
             ff = is_down ? k : rows / 2;
    float *zeros = (float *)calloc(4 * (size_t)n * ff, sizeof *zeros);
    ckpt_out out[8];
    size_t used = 0;
    for (size_t i = 0; i < c.n_tensors; i++) {
        if (c.tensors[i].n_dims == 3 && !strcmp(c.tensors[i].name, "values")) continue;
        memset(&out[used], 0, sizeof out[used]);
        out[used].name = c.tensors[i].name, out[used].type = c.tensors[i].type,
        out[used].n_dims = c.tensors[i].n_dims;
        memcpy(out[used].dims, c.tensors[i].dims, sizeof out[used].dims);
        out[used++].data = c.tensors[i].data;
    }
    ckpt_out router = {"model.layers.0.mlp.router.weight", CKPT_BF16, 2, {2, n}, zeros};
    ckpt_out up = {"model.layers.0.mlp.experts.gate_up_proj", CKPT_BF16, 3, {2, 2 * ff, n}, zeros};
    ckpt_out down = {"model.layers.0.mlp.experts.down_proj", CKPT_BF16, 3, {2, n, ff}, zeros};
    out[used++] = router, out[used++] = is_down ? up : down;
    snprintf(config, sizeof config,
             "{\"model_type\":\"gpt_oss\",\"hidden_size\":%" PRIu32 ",\"intermediate_size\":%" PRIu32
             ",\"num_local_experts\":2,\"num_experts_per_tok\":1}",
             n, ff);
    remove(TMP "/layer/model.safetensors.index.json");
    int ok = !ckpt_write(TMP "/layer/model.safetensors", out, used, NULL, err) &&
             write_text(TMP "/layer/config.json", config);
    if (check(ok && !ckpt_open(&model, TMP "/layer", err), name, "%s", err)) {
        moe_layer layer;
        if (check(!ckpt_layer_list(&model, &layers, err) && layers.n == 1 &&
                      !ckpt_layer_desc(&model, layers.items, &d, &info, err),
                  name, "%s", err)) {
            for (uint32_t e = 0; e < 2; e++) {
                if (is_down) check_values(name, &d.down, e, 2, n, ff, v, e * rows, 1, 0);
                else
                    check_values(name, &d.gate, e, 2, ff, n, v, e * rows, 2, 0),
                        check_values(name, &d.up, e, 2, ff, n, v, e * rows + 1, 2, 0);
            }
            check(!moe_layer_init(&layer, &d, NULL), name, "init refuses it");
            ckpt_layer_free(&info);
        }
        ckpt_layers_free(&layers);
        ckpt_close(&model);
    }
    remove(TMP "/layer/model.safetensors");
    free(zeros);
    ckpt_close(&c);
}

static void test_layouts(void) {
    static char names[64][96];
    size_t n = names_in("tests/data/formats/hf", ".safetensors", names, 64);
    check(n >= 30, "hf", "only %zu files found", n);
    for (size_t i = 0; i < n; i++)
        if (!strstr(names[i], "gptoss")) test_layout(names[i]);
    test_gpt_oss(0);
    test_gpt_oss(1);
}

/* A repacked matrix may move, and is not believed. */
static void test_repack(void) {
    static const char *const files[] = {"awq_int4", "gptq_int4_v1", "gptq_int4_v1_actorder"};
    static const char *const stems[] = {"model.layers.3.mlp.experts.0.gate_proj",
                                        "model.layers.3.block_sparse_moe.experts.0.w1",
                                        "model.layers.3.block_sparse_moe.experts.0.w1"};
    for (size_t i = 0; i < 3; i++) {
        char path[256], err[CKPT_ERR];
        ckpt c;
        moe_matrix m;
        snprintf(path, sizeof path, "tests/data/formats/hf/%s.safetensors", files[i]);
        if (!check(!ckpt_open(&c, path, err), files[i], "%s", err)) continue;
        const ckpt_tensor *v = ckpt_find(&c, "values");
        size_t size = ckpt_repack_size(&c, stems[i], err);
        uint8_t *a = (uint8_t *)malloc(size + 1), *b = (uint8_t *)malloc(size + 1);
        check(size && !ckpt_repack(&c, stems[i], a, size, err), files[i], "%s", err);
        check(ckpt_repack(&c, stems[i], b, size - 1, err) != 0, files[i], "a room too small was accepted");
        memcpy(b + 1, a, size); /* anywhere, unaligned */
        ckpt_close(&c);
        if (!check(!ckpt_open(&c, path, err), files[i], "%s", err)) continue;
        v = ckpt_find(&c, "values");
        if (check(!ckpt_repack_use(b + 1, size, v->dims[0], v->dims[1], &m, err), files[i], "%s", err))
            check_values(files[i], &m, 0, 1, (size_t)v->dims[0], (size_t)v->dims[1], v, 0, 1, 0);
        for (size_t at = 0; at < 72; at++) { /* a damaged header is refused or still describes bytes that are there */
            uint8_t saved = b[1 + at];
            b[1 + at] ^= 0x55;
            if (!ckpt_repack_use(b + 1, size, v->dims[0], v->dims[1], &m, err))
                check(m.offset + (size_t)v->dims[0] * m.row_stride <= size, files[i], "byte %zu", at);
            b[1 + at] = saved;
        }
        check(ckpt_repack_use(b + 1, size - 1, v->dims[0], v->dims[1], &m, err) != 0, files[i],
              "cut bytes were accepted");
        free(a), free(b);
        ckpt_close(&c);
    }
}

/* ---- malformed layers ---- */

static const char *const malformed_configs[][2] = {
    {"fp8", "{\"model_type\":\"deepseek_v3\",\"hidden_size\":16,\"moe_intermediate_size\":24,\"n_routed_experts\":2,"
            "\"num_experts_per_tok\":1,"
            "\"n_group\":1,\"topk_group\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":1.0,\"scoring_func\":"
            "\"sigmoid\","
            "\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}}"},
    {"mxfp4", "{\"model_type\":\"gpt_oss\",\"hidden_size\":32,\"intermediate_size\":32,\"num_local_experts\":2,\"num_"
              "experts_per_tok\":1}"},
    {"", "{\"model_type\":\"qwen3_moe\",\"hidden_size\":32,\"moe_intermediate_size\":8,\"num_experts\":1,\"num_"
         "experts_per_tok\":1}"},
};

/* The word after "expected" of a file in the manifest. */
static int expected_of(const char *manifest, const char *file, char *to, size_t size) {
    char quoted[128];
    snprintf(quoted, sizeof quoted, "\"%.100s\"", file);
    const char *p = strstr(manifest, quoted), *q = p ? strstr(p, "\"expected\"") : NULL;
    q = q ? strchr(q + 10, '"') : NULL;
    if (!q) return 0;
    snprintf(to, size, "%.*s", (int)strcspn(q + 1, "\""), q + 1);
    return 1;
}

static void test_malformed(void) {
    static char names[400][96], manifest[400000];
    FILE *f = fopen("tests/data/malformed/manifest.json", "rb");
    size_t n = names_in("tests/data/malformed", "", names, 400), cases = 0;
    size_t size = f ? fread(manifest, 1, sizeof manifest - 1, f) : 0;
    manifest[size] = 0;
    if (f) fclose(f);
    remove(TMP "/layer/model.safetensors.index.json");
    for (size_t i = 0; i < n; i++) {
        char expected[16], path[256], line[512], command[640];
        int lines, gguf = strstr(names[i], ".gguf") != NULL;
        if (strncmp(names[i], "layer_", 6) || !expected_of(manifest, names[i], expected, sizeof expected)) continue;
        snprintf(path, sizeof path, "tests/data/malformed/%.95s", names[i]);
        for (size_t j = 0; !gguf && j < 3; j++) {
            if (!strstr(names[i], malformed_configs[j][0])) continue;
            snprintf(command, sizeof command, "cp %s " TMP "/layer/model.safetensors", path);
            check(!system(command) && write_text(TMP "/layer/config.json", malformed_configs[j][1]), names[i],
                  "cannot copy it");
            break;
        }
        int status = run(line, &lines, "%s --list", gguf ? path : TMP "/layer");
        cases++;
        int accepted = status == 0 && lines == 0, rejected = status == 1 && lines == 1 && line[0];
        if (!strcmp(expected, "either"))
            check(accepted || rejected, names[i], "status %d, %d lines: %s", status, lines, line);
        else
            check(!strcmp(expected, "accept") ? accepted : rejected, names[i], "%s expected: status %d, %d lines: %s",
                  expected, status, lines, line);
    }
    check(cases >= 30, "malformed", "only %zu layers found", cases);
}

/* ---- --format ---- */

/* Root mean square difference relative to the truth's. */
static double rms(const ckpt_tensor *want, const ckpt_tensor *got) {
    double off = 0, all = 0;
    for (uint64_t i = 0; i < ckpt_elements(want); i++) {
        double w = value(want, i), d = w - value(got, i);
        off += d * d, all += w * w;
    }
    return sqrt(off / all);
}

static void test_formats(void) {
    static const struct {
        const char *name;
        double most;
    } formats[] = {{"f32", 1e-5},       {"f16", 0.001},        {"bf16", 0.006},        {"q8_0", 0.02},
                   {"q4_0", 0.25},      {"q4_1", 0.12},        {"q5_0", 0.12},         {"q5_1", 0.06},
                   {"q2_k", 0.7},       {"q3_k", 0.4},         {"q4_k", 0.12},         {"q5_k", 0.07},
                   {"q6_k", 0.05},      {"iq4_nl", 0.2},       {"iq4_xs", 0.2},        {"mxfp4", 0.3},
                   {"nvfp4", 0.22},     {"mxfp4_hf", 0.3},     {"nvfp4_hf", 0.22},     {"mxfp8", 0.07},
                   {"fp8_block", 0.07}, {"fp8_channel", 0.07}, {"int8_channel", 0.02}, {"int4_group", 0.25}};
    static const char *const io = "tests/data/gguf/deepseek2.io.safetensors"; /* 256 wide, with a shared expert */
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        char line[512], err[CKPT_ERR];
        int lines;
        ckpt want, got;
        const char *n = formats[i].name;
        if (!check(
                !run(line, &lines, "tests/data/gguf/deepseek2.gguf --input %s --output " TMP "/f --format %s", io, n),
                n, "%s", line))
            continue;
        check(!run(line, &lines,
                   "tests/data/gguf/deepseek2.gguf --input %s --output " TMP "/g --format %s --tier c --threads 2",
                   io, n),
              n, "%s", line);
        check(same_files(TMP "/f", TMP "/g"), n, "tier c gives another file");
        if (!check(!ckpt_open(&want, io, err), n, "%s", err)) continue;
        if (check(!ckpt_open(&got, TMP "/f", err), n, "%s", err)) {
            double d = rms(ckpt_find(&want, "output"), ckpt_find(&got, "output"));
            check(d <= formats[i].most, n, "relative RMS error %g, more than %g", d, formats[i].most);
            ckpt_close(&got);
        }
        ckpt_close(&want);
    }
}

/* ---- command lines ---- */

static void test_command_lines(void) {
    static const char *const bad[] = {
        "",
        "--list",
        "tests/data/golden/mixtral",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors",
        "tests/data/golden/mixtral --output " TMP "/none",
        "tests/data/golden/mixtral --input",
        "tests/data/golden/mixtral tests/data/golden/olmoe --list",
        "tests/data/golden/mixtral --frobnicate 1 --list",
        "tests/data/golden/nothing --list",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP "/none --layer 0",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP "/none --layer x",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP
        "/none --threads 0",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP
        "/none --threads -1",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP "/none --batch 1x",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP
        "/none --compute fp64",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP
        "/none --compute q8",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP "/none --tier sse",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP
        "/none --format q9",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP
        "/none --format q4_K",
        "tests/data/golden/mixtral --input tests/data/golden/olmoe/io.safetensors --output " TMP "/none",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/model.safetensors --output " TMP "/none",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/config.json --output " TMP "/none",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP
        "/no/such/directory/out",
        "tests/data/golden/deepseek_v4_hash --input tests/data/golden/deepseek_v4/io.safetensors --output " TMP
        "/none",
        "tests/data/golden/switch_transformers --layer decoder.1 --list",
    };
    static const char *const good[] = {
        "tests/data/golden/mixtral/model.safetensors --list",
        "tests/data/golden/mixtral --list --layer 1",
        "tests/data/golden/switch_transformers --list --layer encoder.1",
        "tests/data/golden/switch_transformers --list --layer 1",
        "tests/data/golden/mixtral/io.safetensors --list",          /* config.json beside it, no experts: says so */
        "tests/data/formats/hf/fp8_channel_f32.safetensors --list", /* no config.json: lists tensors */
        "--models",
        "tests/data/golden/mixtral --input tests/data/golden/mixtral/io.safetensors --output " TMP
        "/stats --stats --tier C --compute F32",
    };
    char line[512];
    int lines;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int status = run(line, &lines, "%s", bad[i]);
        check(status == 1 && lines == 1 && line[0], bad[i], "status %d, %d lines: %s", status, lines, line);
        check(!exists(TMP "/none"), bad[i], "there is an output file");
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int status = run(line, &lines, "%s", good[i]);
        check(status == 0 && lines == 0, good[i], "status %d: %s", status, line);
    }
}

int main(int argc, char **argv) {
    if (argc > 1) program = argv[1];
    if (!exists(program)) {
        printf("FAIL run_layer: %s is not built\ntest_run_layer: 0 passed, 1 failed, 0 skipped\n", program);
        return 1;
    }
    if (system("mkdir -p " TMP "/layer")) return 1;
    test_golden();
    test_gguf();
    test_layouts();
    test_repack();
    test_malformed();
    test_formats();
    test_command_lines();
    if (system("rm -rf " TMP)) failed++;
    printf("test_run_layer: %d passed, %d failed, %d skipped\n", passed, failed, skipped);
    return failed != 0;
}
