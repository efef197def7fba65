/* A shared library around oracle.h for oracle_vs_golden.py: knobs and weights are set by name, so that no other
 * language has to know the layout of a struct. One state; not for threads. */
#include "../oracle.h"

static orc_knobs knobs;
static orc_weights weights;
static orc_result result;

void orc_lib_reset(void);
int orc_lib_knob(const char *name, const char *value);
int orc_lib_array(const char *name, const void *data);
void orc_lib_forward(const float *x, const float *xr, const int32_t *token_ids, size_t T);
const void *orc_lib_result(const char *name);

typedef struct field {
    const char *name;
    size_t offset;
    const char *kind; /* "int", "double", or the values of an enum in order, with a space after each */
} field;

#define INT(f)                                                                                                       \
    { #f, offsetof(orc_knobs, f), "int" }
#define NUM(f)                                                                                                       \
    { #f, offsetof(orc_knobs, f), "double" }
#define ENUM(f, v)                                                                                                   \
    { #f, offsetof(orc_knobs, f), v }

static const field knob_fields[] = {
    INT(d_model),
    INT(d_ff),
    INT(n_expert),
    INT(top_k),
    INT(n_zero_expert),
    ENUM(zero_kind, "IDENTITY ZERO "),
    ENUM(router_norm, "NONE RMS_SCALE "),
    NUM(router_norm_eps),
    ENUM(logit_round, "F32 BF16 "),
    NUM(logit_softcap),
    ENUM(score, "SOFTMAX SIGMOID SQRT_SOFTPLUS "),
    ENUM(select_on, "SCORE LOGIT "),
    ENUM(group, "NONE LIMIT_MAX LIMIT_TOP2SUM PER_GROUP "),
    INT(n_group),
    INT(topk_group),
    ENUM(group_mask, "NEG_INF ZERO "),
    ENUM(pick, "TOPK TABLE SPARSEMIXER "),
    NUM(jitter),
    ENUM(weight_src, "SCORE BIASED SOFTMAX_SELECTED "),
    ENUM(norm, "NONE SUM "),
    NUM(norm_eps),
    NUM(norm_min),
    INT(norm_skip_k1),
    ENUM(norm_scope, "ROUTED ROUTED_AND_SHARED "),
    NUM(routed_scale),
    NUM(drop_below),
    NUM(top_p),
    INT(min_keep),
    ENUM(weight_pos, "OUTPUT INPUT HIDDEN "),
    ENUM(act, "SILU GELU_TANH GELU_ERF RELU RELU2 OAI SITU "),
    NUM(act_alpha),
    NUM(act_beta),
    NUM(act_lin_beta),
    INT(gated),
    ENUM(clamp, "NONE PRE POST "),
    NUM(limit),
    INT(d_latent),
    NUM(latent_norm_eps),
    INT(n_shared),
    INT(d_ff_shared),
    ENUM(shared_gate, "NONE SIGMOID_DOT SOFTMAX2 ROUTER_SINK "),
    ENUM(shared_clamp, "NONE PRE POST "),
    NUM(shared_limit),
    NUM(combine_scale),
    NUM(expert_out_scale),
    INT(capacity),
    ENUM(capacity_drop, "ZERO PASS_THROUGH "),
    ENUM(capacity_priority, "ORDER PROB "),
    ENUM(capacity_norm, "BEFORE AFTER "),
    INT(router_exact),
    INT(key_f32),
};

#define ARRAY(f)                                                                                                     \
    { #f, offsetof(orc_weights, f), "" }

static const field array_fields[] = {
    ARRAY(router),       ARRAY(router_bias), ARRAY(sel_bias),  ARRAY(per_expert_scale),
    ARRAY(router_scale), ARRAY(w1),          ARRAY(w3),        ARRAY(w2),
    ARRAY(b1),           ARRAY(b3),          ARRAY(b2),        ARRAY(lat_in),
    ARRAY(lat_out),      ARRAY(lat_norm),    ARRAY(out_bias),  ARRAY(table),
    ARRAY(sw1),          ARRAY(sw3),         ARRAY(sw2),       ARRAY(sgate),
    ARRAY(sgate_bias),   ARRAY(y_in),        ARRAY(logits_in), ARRAY(ids_in),
    ARRAY(weights_in),
};

#define RESULT(f)                                                                                                    \
    { #f, offsetof(orc_result, f), "" }

static const field result_fields[] = {
    RESULT(logits), RESULT(ids),    RESULT(weights), RESULT(sink),        RESULT(output),
    RESULT(bound),  RESULT(margin), RESULT(key_err), RESULT(rank_margin), RESULT(rank_err),
};

static const field *find(const field *f, size_t n, const char *name) {
    for (size_t i = 0; i < n; i++)
        if (strcmp(f[i].name, name) == 0) return f + i;
    return NULL;
}

#define FIND(list, name) find(list, sizeof list / sizeof list[0], name)

/* Place of value in the list, or -1. */
static int enum_value(const char *list, const char *value) {
    size_t n = strlen(value);
    for (int i = 0; *list; i++) {
        const char *end = strchr(list, ' ');
        if ((size_t)(end - list) == n && memcmp(list, value, n) == 0) return i;
        list = end + 1;
    }
    return -1;
}

void orc_lib_reset(void) {
    orc_free(&result);
    memset(&weights, 0, sizeof weights);
    knobs = orc_defaults();
}

/* Returns 0 for a knob or value that the oracle does not know. */
int orc_lib_knob(const char *name, const char *value) {
    const field *f = FIND(knob_fields, name);
    if (!f) return 0;
    char *at = (char *)&knobs + f->offset;
    double d = strtod(value, NULL);
    int i = strchr(f->kind, ' ') ? enum_value(f->kind, value) : (int)d;
    if (i < 0) return 0;
    if (strcmp(f->kind, "double") == 0) memcpy(at, &d, sizeof d);
    else memcpy(at, &i, sizeof i);
    return 1;
}

int orc_lib_array(const char *name, const void *data) {
    const field *f = FIND(array_fields, name);
    if (f) memcpy((char *)&weights + f->offset, &data, sizeof data);
    return f != NULL;
}

void orc_lib_forward(const float *x, const float *xr, const int32_t *token_ids, size_t T) {
    orc_forward(&knobs, &weights, x, xr, token_ids, T, &result);
}

const void *orc_lib_result(const char *name) {
    const field *f = FIND(result_fields, name);
    const void *p = NULL;
    if (f) memcpy(&p, (char *)&result + f->offset, sizeof p);
    return p;
}
