/* checkpoint_layer.h - from the names and the configuration of a checkpoint to a moe_desc

   Do this in a C11 file that also has moe.h (its implementation may be elsewhere):

       #include "checkpoint_layer.h"

       ckpt_layers layers;
       ckpt_layer_info info;
       moe_desc desc;
       if (ckpt_layer_list(&c, &layers, err)) ...                        // which layers hold experts
       if (ckpt_layer_desc(&c, &layers.items[0], &desc, &info, err)) ... // weights stay where they lie
       moe_layer_init(&layer, &desc, &error);
       ...
       ckpt_layer_free(&info);                                           // after the last use of desc and layer

   How a layer is read:
   * family: model_type of config.json (nested ones too), its architecture, or general.architecture of GGUF, handed to
     moe_preset; then every key of the field table below that the configuration has overrides the preset.
   * tensors: found by name through the tables of schemes, never by family: a checkpoint of any family may hold one tensor per
     expert, or stacks, or the fused stacks that newer tools write; what is there decides.
   * formats: from the types and shapes of a weight and of the scale tensors beside it (in any shard).
   * every shape is checked against the configuration and the other tensors before a pointer is used.

   Weights that moe.h cannot read where they lie are repacked (ckpt_repack below): AWQ (packed along outputs), GPTQ (transposed)
   and 8-bit packed words. A repacked matrix is relocatable: it may be written to a file and mapped again.
   4-bit weights with ordered groups become int4_group, bit for bit the same numbers; act-order GPTQ (g_idx not ascending)
   cannot be expressed by one scale per run of inputs and becomes exact f32: eight times the bytes. */

#ifndef CKPT_LAYER_H
#define CKPT_LAYER_H

#include "checkpoint.h"
#ifndef MOE_H
#include "../moe.h"
#endif

#define CKPT_LAYER_TEXT 224 /* bytes of a name or an origin */

typedef struct ckpt_layer { /* a layer that has experts */
    char name[48];               /* "3", "encoder.1", "mtp.0"                          */
    char prefix[CKPT_LAYER_TEXT]; /* "model.layers.3."                                  */
    char base[32];               /* "mlp.": where in the layer the block's tensors are */
    uint32_t index;
} ckpt_layer;

typedef struct ckpt_layers { /* in the order of name and number */
    ckpt_layer *items;
    size_t n;
} ckpt_layers;

typedef struct ckpt_knob { /* for people: what a field of the desc is, and why */
    char field[32], value[32], origin[CKPT_LAYER_TEXT];
} ckpt_knob;

typedef struct ckpt_part { /* a matrix or vector of the layer */
    char role[24], name[CKPT_LAYER_TEXT], shape[64], format[64];
} ckpt_part;

typedef struct ckpt_layer_info {
    char family[64], family_origin[CKPT_LAYER_TEXT];
    int needs_router_input, needs_token_ids; /* what a call must bring besides x */
    ckpt_knob knobs[64];
    ckpt_part parts[40];
    uint32_t n_knobs, n_parts;
    void *memory; /* private: pointer arrays and repacked weights */
} ckpt_layer_info;

/* All: 0, or -1 and one line in err. */
CKPT_DEF int ckpt_layer_list(const ckpt *c, ckpt_layers *out, char *err);
CKPT_DEF void ckpt_layers_free(ckpt_layers *layers);
CKPT_DEF const ckpt_layer *ckpt_layer_find(const ckpt_layers *layers, const char *name); /* NULL if there is none */
CKPT_DEF int ckpt_layer_desc(const ckpt *c, const ckpt_layer *layer, moe_desc *desc, ckpt_layer_info *info, char *err);
CKPT_DEF void ckpt_layer_free(ckpt_layer_info *info);

/* Repacking one matrix whose tensors are STEM.qweight, STEM.scales, ...: size (0: an error), pack, use. The bytes are the same on
   every machine and need an alignment of nothing; `use` checks them and points the matrix into them. */
CKPT_DEF size_t ckpt_repack_size(const ckpt *c, const char *stem, char *err);
CKPT_DEF int ckpt_repack(const ckpt *c, const char *stem, void *to, size_t size, char *err);
CKPT_DEF int ckpt_repack_use(const void *packed, size_t size, uint64_t rows, uint64_t k, moe_matrix *matrix, char *err);

/* == Implementation ========================================================================================================= */

typedef struct ckptl { /* one layer being read */
    const ckpt *c;
    const ckpt_layer *layer;
    moe_desc *d;
    ckpt_layer_info *info;
    char *err;
    char arch[48];      /* GGUF: "llama." */
    char base[CKPT_LAYER_TEXT + 32];
    uint32_t block_rows, block_cols; /* of block-wise scales */
    int interleaved;    /* fused gate and up rows alternate */
    char *origin[64];   /* by field */
} ckptl;

static inline int ckptl_fail(char *err, const char *format, ...) CKPT_PRINTF(2, 3);
static inline int ckptl_fail(char *err, const char *format, ...) {
    char text[CKPT_ERR];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (err) ckpt_printable(err, CKPT_ERR, text);
    return -1;
}

typedef struct ckptl_block {
    void *next;
    uint64_t size;
} ckptl_block;

/* Zeroed memory that ends with the info. */
static inline void *ckptl_alloc(ckptl *x, uint64_t bytes) {
    ckptl_block *b = bytes <= SIZE_MAX / 2 ? (ckptl_block *)calloc(1, sizeof(ckptl_block) + (size_t)bytes) : NULL;
    if (!b) {
        ckptl_fail(x->err, "out of memory: %" PRIu64 " bytes", bytes);
        return NULL;
    }
    b->next = x->info->memory;
    x->info->memory = b;
    return b + 1;
}

CKPT_DEF void ckpt_layer_free(ckpt_layer_info *info) {
    while (info->memory) {
        ckptl_block *b = (ckptl_block *)info->memory;
        info->memory = b->next;
        free(b);
    }
}

static inline int ckptl_begins(const char *text, const char *with) { return !strncmp(text, with, strlen(with)); }
static inline int ckptl_same(const char *a, const char *b) { /* without case */
    for (; *a && *b; a++, b++) {
        int p = *a >= 'A' && *a <= 'Z' ? *a + 32 : *a, q = *b >= 'A' && *b <= 'Z' ? *b + 32 : *b;
        if (p != q) return 0;
    }
    return *a == *b;
}
/* Is `word` one of the words in a list "a b c"? */
static inline int ckptl_listed(const char *list, const char *word) {
    size_t n = strlen(word);
    for (const char *p = list; p && *p; p += strcspn(p, " "), p += *p == ' ')
        if (strcspn(p, " ") == n && !memcmp(p, word, n)) return 1;
    return 0;
}

static inline const char *ckptl_dims_text(const uint64_t *dims, uint32_t n, char *to, size_t size) {
    size_t used = (size_t)snprintf(to, size, "[");
    for (uint32_t i = 0; i < n && used < size; i++)
        used += (size_t)snprintf(to + used, size - used, i ? ",%" PRIu64 : "%" PRIu64, dims[i]);
    if (used < size) snprintf(to + used, size - used, "]");
    return to;
}
static inline int ckptl_shape_error(const ckptl *x, const ckpt_tensor *t, const char *want) {
    char have[96];
    return ckptl_fail(x->err, "tensor %s: shape %s, not %s", t->name, ckptl_dims_text(t->dims, t->n_dims, have, sizeof have), want);
}

/* -- Which layers there are ------------------------------------------------------------------------------------------------- */

/* A layer's number follows one of these words. */
static const char *const ckptl_containers[] = {"layers", "blk", "block", "blocks", "h", "layer", "mtp", "mtp_layers"};
/* Where the block is inside its layer, and how a tensor of experts begins there. The first that fits. */
typedef struct ckptl_place {
    const char *base, *begins; /* words, one of which begins the rest of the name */
} ckptl_place;
static const ckptl_place ckptl_places[] = {
    {"mlp.", "experts. input_linear. mlp1_weight switch_mlp."},
    {"block_sparse_moe.", "experts. input_linear. switch_mlp."},
    {"feed_forward.", "experts. switch_mlp."},
    {"ffn.", "experts."},
    {"mixer.", "experts. switch_mlp."},
    {"moe_block.", "experts."},
    {"moe.", "experts. gate_proj. up_proj. down_proj. gate_up_proj"},
    {"mlp.moe.", "experts."},
    {"moe_mlp.", "experts."},
    {"layer.1.mlp.", "experts."},
    {"layer.2.mlp.", "experts."},
    {"transformer_block.mlp.", "experts."},
    {"", "experts."},
};
static const char *const ckptl_gguf_words = "ffn_gate_exps. ffn_up_exps. ffn_down_exps. ffn_gate_up_exps. ffn_gate_inp.";

static inline int ckptl_begins_any(const char *text, const char *words) {
    for (const char *p = words; *p; p += strcspn(p, " "), p += *p == ' ')
        if (!strncmp(text, p, strcspn(p, " "))) return 1;
    return 0;
}

static inline const char *ckptl_base_of(const ckpt *c, const char *rest) {
    if (c->is_gguf) { /* ffn_gate.0.weight: an expert of an old file */
        static const char *const old[] = {"ffn_gate.", "ffn_up.", "ffn_down."};
        if (ckptl_begins_any(rest, ckptl_gguf_words)) return "";
        for (size_t i = 0; i < 3; i++) {
            size_t n = strlen(old[i]);
            if (!strncmp(rest, old[i], n) && rest[n] >= '0' && rest[n] <= '9') return "";
        }
        return NULL;
    }
    for (size_t i = 0; i < sizeof ckptl_places / sizeof *ckptl_places; i++)
        if (ckptl_begins(rest, ckptl_places[i].base) &&
            ckptl_begins_any(rest + strlen(ckptl_places[i].base), ckptl_places[i].begins))
            return ckptl_places[i].base;
    return NULL;
}

/* "model.layers.12.mlp...": the length of "model.layers.12." and 12; 0 if there is no such number. */
static inline size_t ckptl_split(const char *name, uint32_t *index) {
    const char *word = name, *dot;
    for (; (dot = strchr(word, '.')) != NULL; word = dot + 1) {
        size_t n = (size_t)(dot - word);
        int known = 0;
        for (size_t i = 0; i < sizeof ckptl_containers / sizeof *ckptl_containers; i++)
            known |= strlen(ckptl_containers[i]) == n && !memcmp(word, ckptl_containers[i], n);
        if (!known || dot[1] < '0' || dot[1] > '9') continue;
        uint32_t value = 0, digits = 0;
        const char *p = dot + 1;
        for (; *p >= '0' && *p <= '9' && digits < 9; p++, digits++) value = value * 10 + (uint32_t)(*p - '0');
        if (*p != '.') continue;
        *index = value;
        return (size_t)(p + 1 - name);
    }
    return 0;
}

static inline int ckptl_has_word(const char *prefix, const char *word) {
    size_t n = strlen(word);
    for (const char *p = strstr(prefix, word); p; p = strstr(p + 1, word))
        if ((p == prefix || p[-1] == '.') && p[n] == '.') return 1;
    return 0;
}

static inline void ckptl_name_layer(ckpt_layer *l) {
    static const char *const stacks[] = {"encoder", "decoder", "mtp", "talker"};
    const char *stack = NULL;
    for (size_t i = 0; i < sizeof stacks / sizeof *stacks && !stack; i++)
        if (ckptl_has_word(l->prefix, stacks[i])) stack = stacks[i];
    if (stack) snprintf(l->name, sizeof l->name, "%s.%" PRIu32, stack, l->index);
    else snprintf(l->name, sizeof l->name, "%" PRIu32, l->index);
}

static inline uint32_t ckptl_hash(const char *s, size_t n) {
    uint32_t h = 2166136261u;
    while (n--) h = (h ^ (uint8_t)*s++) * 16777619u;
    return h;
}

static int ckptl_compare(const void *a, const void *b) {
    const ckpt_layer *p = (const ckpt_layer *)a, *q = (const ckpt_layer *)b;
    int named = (strchr(p->name, '.') != NULL) - (strchr(q->name, '.') != NULL);
    if (named) return named;
    if (strchr(p->name, '.')) { /* "encoder.1" before "mtp.0" */
        int stack = strncmp(p->name, q->name, strcspn(p->name, "."));
        if (stack) return strstr(p->name, "mtp") ? 1 : strstr(q->name, "mtp") ? -1 : -stack;
    }
    return p->index < q->index ? -1 : p->index > q->index ? 1 : strcmp(p->prefix, q->prefix);
}

/* Linear in the number of tensors: a table of the prefixes met so far, and most tensors follow one of their own layer. */
CKPT_DEF int ckpt_layer_list(const ckpt *c, ckpt_layers *out, char *err) {
    size_t capacity = 0, slots = 64;
    uint32_t *table;
    memset(out, 0, sizeof *out);
    while (slots / 2 < c->n_tensors) slots *= 2;
    table = (uint32_t *)calloc(slots, sizeof *table);
    if (!table) return ckptl_fail(err, "out of memory");
    for (size_t i = 0; i < c->n_tensors; i++) {
        const char *name = c->tensors[i].name, *base;
        uint32_t index = 0;
        size_t n = ckptl_split(name, &index);
        if (!n || n >= sizeof out->items->prefix || !(base = ckptl_base_of(c, name + n))) continue;
        size_t s = ckptl_hash(name, n) & (slots - 1);
        while (table[s] && (strncmp(out->items[table[s] - 1].prefix, name, n) || out->items[table[s] - 1].prefix[n]))
            s = (s + 1) & (slots - 1);
        if (table[s]) continue;
        if (out->n == capacity) {
            size_t more = capacity ? capacity * 2 : 64;
            ckpt_layer *grown = (ckpt_layer *)realloc(out->items, more * sizeof *grown);
            if (!grown) {
                free(table);
                ckpt_layers_free(out);
                return ckptl_fail(err, "out of memory");
            }
            out->items = grown, capacity = more;
        }
        ckpt_layer *l = &out->items[out->n++];
        memset(l, 0, sizeof *l);
        memcpy(l->prefix, name, n);
        snprintf(l->base, sizeof l->base, "%s", base);
        l->index = index;
        ckptl_name_layer(l);
        table[s] = (uint32_t)out->n;
    }
    free(table);
    if (out->n) qsort(out->items, out->n, sizeof *out->items, ckptl_compare);
    return 0;
}

CKPT_DEF void ckpt_layers_free(ckpt_layers *layers) {
    free(layers->items);
    memset(layers, 0, sizeof *layers);
}

/* The name, or just the number where only one stack has it. */
CKPT_DEF const ckpt_layer *ckpt_layer_find(const ckpt_layers *layers, const char *name) {
    const ckpt_layer *only = NULL;
    size_t found = 0;
    for (size_t i = 0; i < layers->n; i++) {
        const ckpt_layer *l = &layers->items[i];
        const char *dot = strchr(l->name, '.');
        if (!strcmp(l->name, name)) return l;
        if (dot && !strcmp(dot + 1, name)) only = l, found++;
    }
    return found == 1 ? only : NULL;
}

/* -- Configuration ---------------------------------------------------------------------------------------------------------- */

/* Configurations nest the language model's keys; the innermost are asked first. */
static const char *const ckptl_roots[] = {"text_config.", "language_config.", "llm_config.", "thinker_config.text_config.", ""};

/* Element i of an array value, else the value itself. */
static inline int ckptl_element(const ckpt *c, const char *key, uint64_t i, ckpt_value *v) {
    const ckpt_value *found = ckpt_get(c, key);
    if (!found || found->type == CKPT_VALUE_NULL || found->type == CKPT_VALUE_OBJECT) return 0;
    *v = *found;
    if (found->type != CKPT_VALUE_ARRAY) return 1;
    uint64_t n = ckpt_get_count(c, key);
    return n && ckpt_get_at(c, key, i < n ? i : n - 1, v) && v->type != CKPT_VALUE_NULL;
}

/* The first of `keys` (a list of words) that the configuration has, under its full name. An array means one value per layer. */
static inline int ckptl_value(const ckptl *x, const char *keys, ckpt_value *v, char *key, size_t size) {
    for (const char *p = keys; p && *p; p += strcspn(p, " "), p += *p == ' ') {
        int n = (int)strcspn(p, " ");
        if (x->c->is_gguf) {
            snprintf(key, size, "%s%.*s", x->arch, n, p);
            if (ckptl_element(x->c, key, x->layer->index, v)) return 1;
            continue;
        }
        if (ckptl_begins(x->layer->name, "talker.")) {
            snprintf(key, size, "talker_config.text_config.%.*s", n, p);
            if (ckptl_element(x->c, key, x->layer->index, v)) return 1;
        }
        for (size_t i = 0; i < sizeof ckptl_roots / sizeof *ckptl_roots; i++) {
            snprintf(key, size, "%s%.*s", ckptl_roots[i], n, p);
            if (ckptl_element(x->c, key, x->layer->index, v)) return 1;
        }
    }
    return 0;
}

static inline const char *ckptl_value_text(const ckpt_value *v, char *to, size_t size) {
    if (v->type == CKPT_VALUE_STRING) snprintf(to, size, "%s", v->s);
    else if (v->type == CKPT_VALUE_BOOL) snprintf(to, size, "%s", v->u ? "true" : "false");
    else snprintf(to, size, "%.7g", v->f);
    return to;
}

/* A word of the configuration that is not per layer. */
static inline const char *ckptl_word(const ckptl *x, const char *keys) {
    static const char *const none = "";
    ckpt_value v;
    char key[CKPT_MAX_KEY];
    return ckptl_value(x, keys, &v, key, sizeof key) && v.type == CKPT_VALUE_STRING ? v.s : none;
}

/* -- The family ------------------------------------------------------------------------------------------------------------- */

/* model_type (or architecture) as released -> the preset whose block it computes. Names that moe_preset knows come first anyway. */
static const char *const ckptl_aliases[][2] = {
    {"grok-1", "grok1"}, {"grok_1", "grok1"}, {"Grok1ModelForCausalLM", "grok1"}, {"Grok1ForCausalLM", "grok1"},
    {"grok-2", "grok2"}, {"git", "grok2"}, {"grok", "grok1"}, {"nllb-moe", "nllb_moe"}, {"nllb_moe", "nllb-moe"},
    {"switch_transformers", "switch"}, {"switch", "switch_transformers"}, {"gshard", "gshard_capacity"},
    {"shazeer2017", "shazeer"}, {"jacobs1991", "jacobs"}, {"gpt-oss", "gpt_oss"}, {"gpt_oss", "gpt-oss"}, {"qwen2moe", "qwen2_moe"},
    {"qwen3moe", "qwen3_moe"}, {"deepseek2", "deepseek_v3"}, {"qwen3_vl_moe", "qwen3_moe"}, {"qwen3_omni_moe", "qwen3_moe"},
    {"qwen3_omni_moe_thinker", "qwen3_moe"}, {"qwen3_omni_moe_talker", "qwen3_moe"}, {"qwen3_6_moe", "qwen3_5_moe"},
    {"qwen3_coder", "qwen3_moe"}, {"flex_olmo", "olmoe"}, {"FlexOlmoForCausalLM", "olmoe"}, {"deepseek", "deepseek_moe"},
    {"deepseek_moe", "deepseek"}, {"deepseek_v32", "deepseek_v3"}, {"deepseek_vl_v2", "deepseek_v2"}, {"kimi_k2", "deepseek_v3"},
    {"kimi_k25", "kimi_k2"}, {"kimi_vl", "deepseek_v3"}, {"kimi_linear", "kimi_k2"}, {"kimi_k3", "kimi-k3"}, {"kimi-k3", "kimi_k3"},
    {"moonlight", "deepseek_v3"}, {"glm4_moe_lite", "glm4_moe"}, {"glm4v_moe", "glm4_moe"}, {"glm_moe_dsa", "glm4_moe"},
    {"axk1", "deepseek_v3"}, {"AXK1", "deepseek_v3"}, {"solar_open", "deepseek_v3"}, {"param2moe", "deepseek_v3"},
    {"sarvam_moe", "deepseek_v3"}, {"sarvam_mla", "deepseek_v3"}, {"pangu_ultra_moe", "deepseek_v3"}, {"openpangu", "deepseek_v3"},
    {"joyai", "deepseek_v3"}, {"joyai_llm_flash", "deepseek_v3"}, {"minimax_text_01", "minimax"}, {"minimax_m1", "minimax"},
    {"MiniMaxText01ForCausalLM", "minimax"}, {"MiniMaxM1ForCausalLM", "minimax"}, {"minimax_m3_vl", "minimax_m3"},
    {"minimax_m3", "minimax-m3"}, {"minimax_m2", "minimax-m2"}, {"mixtral_moe", "mixtral"}, {"phi3_5_moe", "phimoe"},
    {"phi-3.5-moe", "phimoe"}, {"ernie4_5_moe_vl", "ernie4_5_moe"}, {"ernie4_5_vl_moe", "ernie4_5_moe"}, {"hunyuan", "hunyuan_v1_moe"},
    {"hunyuan_moe", "hunyuan_v1_moe"}, {"hunyuan_v1_moe", "hunyuan-moe"}, {"hy_v3", "hunyuan_v3"}, {"hyv3", "hy_v3"},
    {"hy_mt2", "hy_v3"}, {"longcat_flash_ngram", "longcat_flash"}, {"longcat_flash", "longcat-flash"}, {"bailing_moe_linear", "bailing_moe_v2"},
    {"bailing_moe_v3", "bailing_hybrid"}, {"bailing_moe_v2", "bailingmoe2"}, {"bailing_moe", "bailingmoe"}, {"trinity", "afmoe"},
    {"nemotron_h_moe", "nemotron_h"}, {"granitemoehybrid", "granitemoeshared"}, {"granitehybrid", "granitemoeshared"},
    {"mistral_large_3", "mistral4"}, {"mistral3", "mistral4"}, {"step3_text", "step3"}, {"step3_vl", "step3"}, {"step3p7", "step3p5"},
    {"mimo_v2", "mimo_v2_flash"}, {"exaone_moe", "exaone-moe"}, {"cohere2_moe", "cohere2moe"}, {"command_a_plus", "cohere2_moe"},
    {"inkling_mm_model", "inkling"}, {"interns1_pro", "interns1pro"}, {"llada2_moe", "bailing_moe_v2"}, {"llada_moe", "llada-moe"},
    {"lladamoe", "llada_moe"}, {"lfm2_moe", "lfm2moe"}, {"klear", "Klear"}, {"gemma4", "gemma4_text"}, {"nomic_bert", "nomic-bert-moe"},
    {"nomic_bert_moe", "nomic-bert-moe"},
};

static inline int ckptl_try_family(ckptl *x, const char *name, const char *key) {
    char plain[64];
    size_t n = strlen(name);
    if (!n || n >= sizeof plain) return 0;
    for (int pass = 0; pass < 2; pass++) { /* as it is, then without "_text" */
        snprintf(plain, sizeof plain, "%s", name);
        if (pass) {
            if (n <= 5 || strcmp(name + n - 5, "_text")) return 0;
            plain[n - 5] = 0;
        }
        for (int hop = 0; hop < 4; hop++) { /* along the aliases */
            moe_desc d;
            memset(&d, 0, sizeof d);
            if (moe_preset(&d, plain) == MOE_OK) {
                *x->d = d;
                ckpt_printable(x->info->family, sizeof x->info->family, plain);
                snprintf(x->info->family_origin, CKPT_LAYER_TEXT, "%s %.64s", key, name);
                return 1;
            }
            size_t i = 0, count = sizeof ckptl_aliases / sizeof *ckptl_aliases;
            while (i < count && !ckptl_same(ckptl_aliases[i][0], plain)) i++;
            if (i == count) break;
            snprintf(plain, sizeof plain, "%s", ckptl_aliases[i][1]);
        }
    }
    return 0;
}

static inline int ckptl_unknown_family(const ckptl *x, const char *what) {
    char known[CKPT_ERR - 128];
    size_t used = 0;
    known[0] = 0;
    for (uint32_t i = 0; moe_preset_name(i) && used + 40 < sizeof known; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, " %s", moe_preset_name(i));
    return ckptl_fail(x->err, "unknown model family \"%.64s\"; known are:%s%s", what, known, used + 40 < sizeof known ? "" : " ...");
}

static int ckptl_family(ckptl *x) {
    static const char *const keys[] = {"model_type", "text_config.model_type", "language_config.model_type", "llm_config.model_type",
                                       "thinker_config.text_config.model_type", "architectures[0]"};
    if (x->c->is_gguf) {
        const char *arch = ckpt_get_str(x->c, "general.architecture", "");
        if (!*arch) return ckptl_fail(x->err, "general.architecture is missing");
        if (strlen(arch) >= sizeof x->arch - 1) return ckptl_fail(x->err, "general.architecture is too long");
        snprintf(x->arch, sizeof x->arch, "%s.", arch);
        return ckptl_try_family(x, arch, "general.architecture") ? 0 : ckptl_unknown_family(x, arch);
    }
    /* Kimi-K3 calls its text model kimi_linear: the activation tells it. */
    if (ckptl_same(ckptl_word(x, "hidden_act"), "situ") && ckptl_try_family(x, "kimi_k3", "hidden_act situ:")) return 0;
    const char *seen = "";
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *name = ckpt_get_str(x->c, keys[i], "");
        if (*name && !*seen) seen = name;
        if (ckptl_try_family(x, name, keys[i])) return 0;
    }
    if (!*seen) return ckptl_fail(x->err, "config.json (with model_type) is missing: the family is not known");
    return ckptl_unknown_family(x, seen);
}
