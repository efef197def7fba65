/* test_generate.c - a whole trained model against float64 reference values

   Includes examples/generate.c, whose decoder is what is tested here together with moe.h and examples/checkpoint.h.
   Runs in the root of the repository. With only the c tier less text is evaluated. */

#define GENERATE_NO_MAIN
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include "../examples/generate.c"

#define MODEL "examples/models/kjv-moe-3m"
#define DATA  "tests/data/tinylm/"

static int n_passed, n_failed, n_skipped;

/* One line for a failure, none for a success. */
CKPT_PRINTF(3, 4) static int check(int ok, const char *name, const char *why, ...) {
    va_list args;
    if (ok) return n_passed++, 1;
    n_failed++;
    printf("FAIL %s: ", name);
    va_start(args, why);
    vprintf(why, args);
    va_end(args);
    putchar('\n');
    return 0;
}

/* ---- Models and sessions, or the end ------------------------------------------------------------------------- */

static int finish(void) {
    printf("test_generate: %d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed != 0;
}

static void must_load(model *m, const char *path, uint32_t compute, uint32_t tier) {
    choice want = {compute, tier < MOE_TIER_COUNT ? moe_tier_mask(tier) : 0};
    if (!model_load(m, path, &want)) return;
    check(0, "load", "%s", m->err);
    exit(finish());
}

static void must_start(session *s, const model *m, uint32_t n_threads) {
    if (!session_start(s, m, n_threads)) return;
    check(0, "session", "%s", s->err);
    exit(finish());
}

/* ---- Differences to the reference ---------------------------------------------------------------------------- */

static ckpt oracle;

static const ckpt_tensor *reference(const char *name, uint32_t layer) {
    const ckpt_tensor *t =
        layer == UINT32_MAX ? ckpt_find(&oracle, name) : ckpt_findf(&oracle, "layers.%u.%s", layer, name);
    if (!t) {
        check(0, name, "is missing in the reference");
        exit(finish());
    }
    return t;
}

static double reference_f64(const ckpt_tensor *t, size_t i) { return ckpt_load_f64(t->data + 8 * i); }
static int64_t reference_i64(const ckpt_tensor *t, size_t i) { return (int64_t)ckpt_load_u64(t->data + 8 * i); }

/* Largest difference of n numbers; NaN is infinitely far away. */
static void check_near(const char *name, uint32_t layer, const float *x, double bound) {
    const ckpt_tensor *t = reference(name, layer);
    double worst = 0.0;
    for (size_t i = 0; i < ckpt_elements(t); i++) {
        double d = fabs((double)x[i] - reference_f64(t, i));
        if (!(d <= worst)) worst = d < 1e300 ? d : HUGE_VAL;
    }
    char title[64];
    snprintf(title, sizeof title, "%s of layer %d", name, (int)layer);
    check(worst <= bound, title, "differs by %.3g from the reference, allowed is %.3g", worst, bound);
}

/* One MoE block alone, on the reference's input. */
static void check_block(const model *m, uint32_t layer) {
    const ckpt_tensor *in = reference("moe_input", layer), *ids = reference("topk_ids", layer);
    enum { MAX_TOKENS = 64, MAX_WIDTH = 256, MAX_EXPERTS = 16, MAX_K = 4 };
    static float x[MAX_TOKENS * MAX_WIDTH], y[MAX_TOKENS * MAX_WIDTH], logits[MAX_TOKENS * MAX_EXPERTS],
        weights[MAX_TOKENS * MAX_K];
    int32_t chosen[MAX_TOKENS * MAX_K];
    moe_io io = {0};
    if (!check(ckpt_elements(in) <= MAX_TOKENS * MAX_WIDTH, "block", "the reference is too large")) return;
    for (size_t i = 0; i < ckpt_elements(in); i++) x[i] = (float)reference_f64(in, i);
    io.x = x, io.y = y, io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = in->dims[0];
    io.logits_out = logits, io.ids_out = chosen, io.weights_out = weights;
    io.workspace_size = moe_workspace_size(&m->blocks[layer].moe, io.n_tokens, 1);
    io.workspace = malloc(io.workspace_size);
    moe_status status = moe_forward(&m->blocks[layer].moe, &io);
    free(io.workspace);
    if (!check(!status, "block", "layer %u: %s", layer, moe_status_text(status))) return;
    check_near("moe_output", layer, y, 5e-6);
    check_near("router_logits", layer, logits, 5e-6);
    check_near("topk_weights", layer, weights, 2e-6);
    int equal = 1;
    for (size_t i = 0; i < ckpt_elements(ids); i++) equal &= chosen[i] == reference_i64(ids, i);
    check(equal, "topk_ids", "other experts than the reference's in layer %u", layer);
}

static void test_layers(const model *m) {
    const ckpt_tensor *t = reference("tokens", UINT32_MAX);
    uint32_t n = (uint32_t)ckpt_elements(t);
    uint8_t prompt[64];
    session s;
    must_start(&s, m, 2);
    for (uint32_t i = 0; i < n && i < sizeof prompt; i++) prompt[i] = (uint8_t)reference_i64(t, i);
    embed(&s, prompt, n);
    for (uint32_t l = 0; l < m->c.n_layers; l++) {
        check(!layer(&s, l, prompt, n, 0), "layer", "%s", s.err);
        check_near("moe_input", l, s.h, 1e-4);
        check_near("residual_out", l, s.x, 1e-4);
        check_block(m, l);
    }
    check(!forward(&s, prompt, n, 0), "forward", "%s", s.err);
    check_near("logits", UINT32_MAX, s.logits, 1e-4);
    session_stop(&s);
}

static void test_counts(const model *m) {
    uint64_t total = m->dense_params + m->moe.params_total, active = m->dense_params + m->moe.params_active;
    check(total == 3413120, "parameters", "%" PRIu64 " in all", total);
    check(active == 1053824, "parameters", "%" PRIu64 " active", active);
    check(m->moe.flops_token < m->moe.flops_dense / 3, "flops", "%" PRIu64 " a token", m->moe.flops_token);
}

/* ---- Text ---------------------------------------------------------------------------------------------------- */

typedef struct text {
    uint8_t bytes[1024];
    uint32_t n;
} text;

static void keep_byte(void *user, uint8_t byte) {
    text *t = (text *)user;
    if (t->n < sizeof t->bytes) t->bytes[t->n++] = byte;
}

static void write_text(const model *m, uint32_t n_threads, const char *prompt, uint32_t steps, sampler sm, text *to) {
    session s;
    timing tm;
    to->n = 0;
    must_start(&s, m, n_threads);
    check(!generate(&s, (const uint8_t *)prompt, strlen(prompt), steps, &sm, keep_byte, to, &tm), "generate", "%s",
          s.err);
    check(to->n == steps && tm.n_generated == steps, "generate", "%u bytes, not %u", to->n, steps);
    session_stop(&s);
}

static void test_greedy(const model *m, const char *name) {
    const ckpt_tensor *t = reference("greedy_tokens", UINT32_MAX);
    sampler greedy = {0.0f, 1.0f, 0};
    text out;
    for (uint32_t threads = 1; threads <= 3; threads++) {
        uint32_t n = (uint32_t)ckpt_elements(t), same = 0;
        write_text(m, threads, "In the beginning ", n, greedy, &out);
        while (same < n && out.bytes[same] == reference_i64(t, same)) same++;
        check(same == n, name, "with %u threads the greedy text leaves the reference's at byte %u of %u", threads,
              same, n);
    }
}

/* Longer than the context, so that its later half is read again. */
static void test_sampling(const model *m) {
    sampler warm = {0.8f, 0.95f, 7}, other = {0.8f, 0.95f, 8}, narrow = {1.5f, 0.0f, 7}, greedy = {0.0f, 1.0f, 0};
    static text first, again;
    write_text(m, 1, "And ", 600, warm, &first);
    write_text(m, 3, "And ", 600, warm, &again);
    check(!memcmp(&first, &again, sizeof first), "sampling", "the text depends on the number of threads");
    write_text(m, 2, "And ", 60, other, &again);
    check(memcmp(first.bytes, again.bytes, again.n) != 0, "sampling", "another seed gives the same text");
    write_text(m, 2, "And ", 60, narrow, &first);
    write_text(m, 2, "And ", 60, greedy, &again);
    check(!memcmp(first.bytes, again.bytes, again.n), "sampling", "top-p 0 is not greedy");
}

/* ---- The same bits, however the work is cut ------------------------------------------------------------------ */

static void logits_in_pieces(const model *m, uint32_t n_threads, const uint8_t *bytes, uint32_t n, uint32_t piece,
                             float *to) {
    session s;
    must_start(&s, m, n_threads);
    for (uint32_t at = 0; at < n; at += piece) {
        uint32_t now = n - at < piece ? n - at : piece;
        if (!check(!forward(&s, bytes + at, now, at), "forward", "%s", s.err)) break;
        memcpy(to + (size_t)at * VOCAB, s.logits, (size_t)now * VOCAB * sizeof *to);
    }
    session_stop(&s);
}

static void test_same_bits(const model *m, const uint8_t *valid) {
    enum { N = 64 };
    static float batch[N * VOCAB], other[N * VOCAB];
    uint32_t pieces[] = {1, 7, 33, N};
    logits_in_pieces(m, 1, valid, N, N, batch);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t threads = 1; threads <= 3; threads++) {
            logits_in_pieces(m, threads, valid, N, pieces[i], other);
            check(!memcmp(batch, other, sizeof batch), "same bits", "%u bytes a call, %u threads: other logits",
                  pieces[i], threads);
        }
    for (uint32_t tier = 0; tier < MOE_TIER_COUNT; tier++) {
        model on_tier;
        if (!(moe_tiers() & MOE_TIER_BIT(tier))) continue;
        must_load(&on_tier, MODEL, MOE_COMPUTE_F32, tier);
        logits_in_pieces(&on_tier, 2, valid, N, N, other);
        check(!memcmp(batch, other, sizeof batch), "same bits", "other logits on the %s tier", moe_tier_name(tier));
        model_free(&on_tier);
    }
}

/* ---- How well it predicts ------------------------------------------------------------------------------------ */

static double nll(const model *m, const uint8_t *bytes, uint32_t n_windows, session *s) {
    double nats = HUGE_VAL;
    size_t n = 0;
    must_start(s, m, 2);
    check(!evaluate(s, bytes, n_windows * WINDOW + 1, NULL, &nats, &n), "evaluate", "%s", s->err);
    check(n == n_windows * WINDOW, "evaluate", "%zu predictions", n);
    return nats;
}

static void test_nll(const model *m, const uint8_t *valid, uint32_t n_windows) {
    const ckpt_tensor *terms = reference("valid_nll", UINT32_MAX),
                      *counts = reference("valid_expert_counts", UINT32_MAX);
    double want = 0.0;
    session s;
    double got = nll(m, valid, n_windows, &s);
    for (uint32_t i = 0; i < n_windows * WINDOW; i++) want += reference_f64(terms, i);
    want /= n_windows * WINDOW;
    check(fabs(got - want) < 1e-6, "nll", "%.9f, not %.9f nats per byte", got, want);
    if (n_windows == terms->dims[0]) {
        uint64_t moved = 0; /* decisions that are closer than f32 can tell apart */
        for (uint32_t l = 0; l < m->c.n_layers; l++)
            for (uint32_t e = 0; e < m->c.n_experts; e++) {
                int64_t d = (int64_t)s.stats[l].tokens[e] - reference_i64(counts, l * m->c.n_experts + e);
                moved += (uint64_t)(d < 0 ? -d : d);
            }
        check(moved <= 24, "expert counts", "%" PRIu64 " tokens went to other experts than the reference's", moved);
    } else n_skipped++;
    session_stop(&s);
}

/* The same model in 8-bit blocks, from a GGUF file: llama.cpp's loss on the whole text is 0.0002 away. */
static void test_gguf(const uint8_t *valid, uint32_t n_windows) {
    uint32_t computes[] = {MOE_COMPUTE_F32, MOE_COMPUTE_Q8};
    double want = 0.0;
    const ckpt_tensor *terms = reference("valid_nll", UINT32_MAX);
    for (uint32_t i = 0; i < n_windows * WINDOW; i++) want += reference_f64(terms, i) / (n_windows * WINDOW);
    for (int i = 0; i < 2; i++) {
        model m;
        session s;
        must_load(&m, DATA "kjv-moe-3m-q8_0.gguf", computes[i], MOE_TIER_COUNT);
        if (!i) test_greedy(&m, "gguf");
        double got = nll(&m, valid, n_windows, &s);
        check(fabs(got - want) < 2e-3, "gguf", "%.5f nats per byte; in bf16 %.5f", got, want);
        session_stop(&s);
        model_free(&m);
    }
}

/* Messages rather than crashes. */
static void test_errors(void) {
    static const char *const paths[] = {"nowhere", "tests", DATA "oracle.json", DATA "valid.txt",
                                        DATA "oracle.safetensors"};
    choice want = {MOE_COMPUTE_F32, 0};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        model m;
        check(model_load(&m, paths[i], &want) && m.err[0], "errors", "%s was loaded", paths[i]);
        model_free(&m);
    }
}

int main(void) {
    char err[CKPT_ERR];
    size_t size = 0;
    model m;
    if (!check(!ckpt_open(&oracle, DATA "oracle.safetensors", err), "oracle", "%s", err)) return finish();
    uint8_t *valid = read_file(DATA "valid.txt", &size, err, sizeof err);
    if (!check(valid && size == 64 * WINDOW + 1, "valid.txt", "is missing or of another size")) return finish();
    int fast = moe_tiers() != MOE_TIER_BIT(MOE_TIER_C);
    must_load(&m, MODEL, MOE_COMPUTE_F32, MOE_TIER_COUNT);
    test_counts(&m);
    test_layers(&m);
    test_greedy(&m, "greedy");
    test_sampling(&m);
    test_same_bits(&m, valid);
    test_nll(&m, valid, fast ? 64 : 2);
    test_gguf(valid, fast ? 8 : 1);
    test_errors();
    model_free(&m);
    free(valid);
    ckpt_close(&oracle);
    return finish();
}
