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
   * tensors: found by name through the tables of schemes, never by family: a checkpoint of any family may hold one
     tensor per expert, or stacks, or the fused stacks that newer tools write; what is there decides.
   * formats: from the types and shapes of a weight and of the scale tensors beside it (in any shard).
   * every shape is checked against the configuration and the other tensors before a pointer is used.

   Weights that moe.h cannot read where they lie are repacked (ckpt_repack below): AWQ (packed along outputs), GPTQ
   (transposed) and 8-bit packed words. A repacked matrix is relocatable: it may be saved and mapped again.
   4-bit weights with ordered groups become int4_group, bit for bit the same numbers; act-order GPTQ (g_idx not
   ascending) cannot be expressed by one scale per run of inputs and becomes exact f32: eight times the bytes.
   Stacks of fp8, int8, MXFP4 and NVFP4 stored [in, out] (Llama-4 in fp8 and NVFP4, Grok-1) are turned into rows while
   the layer is read, with their scales: the same numbers, but their bytes again, and a second or two per GB.
   Grok-1's release is pickled; its arrays, under Haiku's names in a safetensors file, are read as they are:
   decoder_layer_0/router/w, .../moe/linear/w/weight (int8) and .../w/scales, or .../w alone; dots do for slashes. */

#ifndef CKPT_LAYER_H
#define CKPT_LAYER_H

#include "checkpoint.h"
#ifndef MOE_H
#include "../moe.h"
#endif

#define CKPT_LAYER_TEXT 224 /* bytes of a name or an origin */

typedef struct ckpt_layer { /* a layer that has experts */
    char name[48];          /* "3", "encoder.1", "mtp.0", "vision.3": the experts for images, if they are others */
    char prefix[CKPT_LAYER_TEXT]; /* "model.layers.3."                                  */
    char base[32];                /* "mlp.": where in the layer the block's tensors are */
    uint32_t index, bank;         /* bank 1: the second set of experts under the same names (ERNIE-VL)           */
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
CKPT_DEF int ckpt_layer_desc(const ckpt *c, const ckpt_layer *layer, moe_desc *desc, ckpt_layer_info *info,
                             char *err);
CKPT_DEF void ckpt_layer_free(ckpt_layer_info *info);

/* Weights stored [in, out] (Llama-4, Qwen3-VL, gpt-oss in bf16, Aria, DBRX's down) run where they lie, but are gathered
   into rows at every use: of bf16 experts of 2560 x 2048 a token takes 10 times as long as of rows, 512 tokens 3 times
   (AVX-512). Turning them round once takes their bytes again and a second per GB; the results have the same bits.
   turn_size: bytes needed (0: nothing to turn); turn: copies into `to` (any alignment) and points the desc there. */
CKPT_DEF size_t ckpt_turn_size(const moe_desc *desc);
CKPT_DEF void ckpt_turn(moe_desc *desc, void *to);

/* Repacking one matrix whose tensors are STEM.qweight, STEM.scales, ...: size (0: an error), pack, use. The bytes are
   the same on every machine and need no alignment; `use` checks them and points the matrix into them. */
CKPT_DEF size_t ckpt_repack_size(const ckpt *c, const char *stem, char *err);
CKPT_DEF int ckpt_repack(const ckpt *c, const char *stem, void *to, size_t size, char *err);
CKPT_DEF int ckpt_repack_use(const void *packed, size_t size, uint64_t rows, uint64_t k, moe_matrix *matrix,
                             char *err);

/* == Implementation ============================================================================================== */

typedef struct ckptl { /* one layer being read */
    const ckpt *c;
    const ckpt_layer *layer;
    moe_desc *d;
    ckpt_layer_info *info;
    char *err;
    char arch[48]; /* GGUF: "llama." */
    char base[CKPT_LAYER_TEXT + 32];
    uint32_t block_rows, block_cols; /* of block-wise scales */
    int interleaved;                 /* fused gate and up rows alternate */
    int two_banks;                   /* ERNIE-VL: experts for text and for images; lists and vectors are pairs */
    uint32_t first_expert;           /* number of the first in the names */
    struct ckptl_copy *copies;       /* tensors that were turned round */
    char *origin[64];                /* by field */
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
/* Names are the same whatever their case and their - _ and . */
static inline int ckptl_same(const char *a, const char *b) {
    for (;; a++, b++) {
        while (*a == '-' || *a == '_' || *a == '.') a++;
        while (*b == '-' || *b == '_' || *b == '.') b++;
        int p = *a >= 'A' && *a <= 'Z' ? *a + 32 : *a, q = *b >= 'A' && *b <= 'Z' ? *b + 32 : *b;
        if (p != q || !p) return p == q;
    }
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
    return ckptl_fail(x->err, "tensor %s: shape %s, not %s", t->name,
                      ckptl_dims_text(t->dims, t->n_dims, have, sizeof have), want);
}

/* -- Which layers there are -------------------------------------------------------------------------------------- */

/* A layer's number follows one of these words; of the last, without a dot (Grok-1). */
static const char *const ckptl_containers[] = {"layers", "blk", "block",      "blocks",        "h",
                                               "layer",  "mtp", "mtp_layers", "decoder_layer_"};
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
    {"moe.", "experts. gate_proj. up_proj. down_proj. gate_up_proj linear. linear_v. linear_1."},
    {"moe/", "linear/ linear_v/ linear_1/"},
    {"mlp.moe.", "experts."},
    {"mlp.text_moe.", "experts."},
    {"mlp.vision_moe.", "experts."},
    {"moe_mlp.", "experts."},
    {"layer.1.mlp.", "experts."},
    {"layer.2.mlp.", "experts."},
    {"transformer_block.mlp.", "experts."},
    {"", "experts."},
};
static const char *const ckptl_gguf_words =
    "ffn_gate_exps. ffn_up_exps. ffn_down_exps. ffn_gate_up_exps. ffn_gate_inp.";

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
    for (const char *word = name;; word++) {
        for (size_t i = 0; i < sizeof ckptl_containers / sizeof *ckptl_containers; i++) {
            size_t n = strlen(ckptl_containers[i]);
            if (strncmp(word, ckptl_containers[i], n)) continue;
            const char *p = word + n;
            if (p[-1] != '_' && *p++ != '.') continue;
            uint32_t value = 0, digits = 0;
            for (; *p >= '0' && *p <= '9' && digits < 9; p++, digits++) value = value * 10 + (uint32_t)(*p - '0');
            if (!digits || (*p != '.' && *p != '/')) continue;
            *index = value;
            return (size_t)(p + 1 - name);
        }
        if (!(word = strpbrk(word, "./"))) return 0;
    }
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

/* Experts for images beside those for text: one more layer, "vision.3". */
static int ckptl_list_vision(const ckpt *c, ckpt_layers *out, char *err) {
    size_t n = out->n, more = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < n; i++) {
            ckpt_layer l = out->items[i];
            int apart = ckpt_findf(c, "%smlp.vision_moe.gate.weight", l.prefix) != NULL;
            if (!apart && !ckpt_findf(c, "%s%sgate.weight_1", l.prefix, l.base)) continue;
            if (!pass) {
                more++;
                continue;
            }
            if (apart) snprintf(out->items[i].base, sizeof l.base, "mlp.text_moe.");
            if (apart) snprintf(l.base, sizeof l.base, "mlp.vision_moe.");
            snprintf(l.name, sizeof l.name, "vision.%" PRIu32, l.index);
            l.bank = 1;
            out->items[out->n++] = l;
        }
        if (pass || !more) return 0;
        ckpt_layer *grown = (ckpt_layer *)realloc(out->items, (n + more) * sizeof *grown);
        if (!grown) {
            ckpt_layers_free(out);
            return ckptl_fail(err, "out of memory");
        }
        out->items = grown;
    }
    return 0;
}

/* Linear in the number of tensors: a table of the prefixes met so far, and most tensors follow one of their own
   layer. */
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
    if (ckptl_list_vision(c, out, err)) return -1;
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

/* -- Configuration ----------------------------------------------------------------------------------------------- */

/* Configurations nest the language model's keys; the innermost are asked first. */
static const char *const ckptl_roots[] = {"text_config.", "language_config.", "llm_config.",
                                          "thinker_config.text_config.", ""};

/* Element i of an array value, else the value itself. */
static inline int ckptl_element(const ckpt *c, const char *key, uint64_t i, ckpt_value *v) {
    const ckpt_value *found = ckpt_get(c, key);
    if (!found || found->type == CKPT_VALUE_NULL || found->type == CKPT_VALUE_OBJECT) return 0;
    *v = *found;
    if (found->type != CKPT_VALUE_ARRAY) return 1;
    uint64_t n = ckpt_get_count(c, key);
    return n && ckpt_get_at(c, key, i < n ? i : n - 1, v) && v->type != CKPT_VALUE_NULL;
}

/* The first of `keys` (a list of words) that the configuration has, under its full name. An array means one value per
   layer. */
static inline int ckptl_value(const ckptl *x, const char *keys, ckpt_value *v, char *key, size_t size) {
    uint32_t index = x->two_banks ? x->layer->bank : x->layer->index;
    for (const char *p = keys; p && *p; p += strcspn(p, " "), p += *p == ' ') {
        int n = (int)strcspn(p, " ");
        if (x->c->is_gguf) {
            snprintf(key, size, "%s%.*s", x->arch, n, p);
            if (ckptl_element(x->c, key, index, v)) return 1;
            continue;
        }
        if (ckptl_begins(x->layer->name, "talker.")) {
            snprintf(key, size, "talker_config.text_config.%.*s", n, p);
            if (ckptl_element(x->c, key, index, v)) return 1;
        }
        for (size_t i = 0; i < sizeof ckptl_roots / sizeof *ckptl_roots; i++) {
            snprintf(key, size, "%s%.*s", ckptl_roots[i], n, p);
            if (ckptl_element(x->c, key, index, v)) return 1;
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

/* -- The family -------------------------------------------------------------------------------------------------- */

/* Names in released files that are not a preset's own -> the preset. */
static const char *const ckptl_aliases[][2] = {
    {"Grok1ModelForCausalLM", "grok_1"},
    {"Grok1ForCausalLM", "grok_1"},
    {"FlexOlmoForCausalLM", "flex_olmo"},
    {"FlexOlmo", "flex_olmo"},
    {"MiniMaxText01ForCausalLM", "minimax_text_01"},
    {"MiniMaxM1ForCausalLM", "minimax_m1"},
    {"LLaDAMoEModelLM", "llada_moe"},
    {"phi3_5_moe", "phimoe"},
    {"Phi3.5-MoE", "phimoe"},
    {"dotsmoe", "dots1"},
};

static inline int ckptl_try_family(ckptl *x, const char *name, const char *key) {
    char plain[64];
    size_t n = strlen(name), count = sizeof ckptl_aliases / sizeof *ckptl_aliases, i = 0;
    moe_desc d;
    if (!n || n >= sizeof plain) return 0;
    while (i < count && !ckptl_same(ckptl_aliases[i][0], name)) i++;
    snprintf(plain, sizeof plain, "%s", i < count ? ckptl_aliases[i][1] : name);
    if (n > 5 && !strcmp(name + n - 5, "_text")) plain[n - 5] = 0;
    memset(&d, 0, sizeof d);
    uint32_t spelt = 0; /* as the presets spell it */
    while (moe_preset_name(spelt) && !ckptl_same(moe_preset_name(spelt), plain)) spelt++;
    if (!moe_preset_name(spelt) || moe_preset(&d, moe_preset_name(spelt)) != MOE_OK) return 0;
    *x->d = d;
    snprintf(x->info->family, sizeof x->info->family, "%s", moe_preset_name(spelt));
    snprintf(x->info->family_origin, CKPT_LAYER_TEXT, "%s %.64s", key, name);
    return 1;
}

static inline int ckptl_unknown_family(const ckptl *x, const char *what) {
    char known[CKPT_ERR - 128];
    size_t used = 0;
    moe_desc d;
    known[0] = 0;
    memset(&d, 0, sizeof d);
    if (moe_preset(&d, what) == MOE_ERR_UNSUPPORTED)
        return ckptl_fail(x->err, "model family \"%.64s\" is no weighted sum of independent experts: not supported",
                          what);
    for (uint32_t i = 0; moe_preset_name(i) && used + 40 < sizeof known; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, " %s", moe_preset_name(i));
    return ckptl_fail(x->err, "unknown model family \"%.64s\"; known are:%s%s", what, known,
                      used + 40 < sizeof known ? "" : " ...");
}

static inline int ckptl_has(const ckptl *x, const char *prefix, const char *relative);

static int ckptl_family(ckptl *x) {
    static const char *const keys[] = {"model_type",
                                       "text_config.model_type",
                                       "language_config.model_type",
                                       "llm_config.model_type",
                                       "thinker_config.text_config.model_type",
                                       "architectures[0]"};
    if (x->c->is_gguf) {
        const char *arch = ckpt_get_str(x->c, "general.architecture", "");
        if (!*arch) return ckptl_fail(x->err, "general.architecture is missing");
        if (strlen(arch) >= sizeof x->arch - 1) return ckptl_fail(x->err, "general.architecture is too long");
        snprintf(x->arch, sizeof x->arch, "%s.", arch);
        return ckptl_try_family(x, arch, "general.architecture") ? 0 : ckptl_unknown_family(x, arch);
    }
    /* Kimi-K3 calls its text model kimi_linear: the activation tells it. */
    if (ckptl_same(ckptl_word(x, "hidden_act"), "situ") && ckptl_try_family(x, "kimi_k3", "hidden_act situ:"))
        return 0;
    const char *seen = "";
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const char *name = ckpt_get_str(x->c, keys[i], "");
        if (*name && !*seen) seen = name;
        if (ckptl_try_family(x, name, keys[i])) return 0;
    }
    /* files that were released before they had a model_type */
    if (!*seen && ckptl_has(x, "", "mlp1_weight") && ckptl_try_family(x, "gpt_oss", "tensor mlp1_weight:")) return 0;
    if (!*seen && ckpt_get(x->c, "moe.num_experts_per_tok"))
        return !ckptl_try_family(x, *x->layer->base ? "mixtral" : "mistral_large_3", "config key moe:");
    if (!*seen) return ckptl_fail(x->err, "config.json (with model_type) is missing: the family is not known");
    return ckptl_unknown_family(x, seen);
}

/* -- Fields of the desc, and the keys that set them -------------------------------------------------------------- */

typedef struct ckptl_choice { /* a word (a bool is "true" or "false", a number its digits) and what it means */
    const char *word;
    uint32_t value;
} ckptl_choice;
static const ckptl_choice ckptl_scores[] = {{"softmax", MOE_SCORE_SOFTMAX},
                                            {"sigmoid", MOE_SCORE_SIGMOID},
                                            {"sqrtsoftplus", MOE_SCORE_SQRT_SOFTPLUS},
                                            {"sqrt_softplus", MOE_SCORE_SQRT_SOFTPLUS},
                                            {"true", MOE_SCORE_SIGMOID},
                                            {"false", MOE_SCORE_SOFTMAX},
                                            {"1", MOE_SCORE_SOFTMAX},
                                            {"2", MOE_SCORE_SIGMOID},
                                            {"3", MOE_SCORE_SOFTMAX},
                                            {"4", MOE_SCORE_SQRT_SOFTPLUS},
                                            {NULL, 0}};
static const ckptl_choice ckptl_norms[] = {
    {"true", MOE_NORM_SUM}, {"false", MOE_NORM_NONE}, {"1", MOE_NORM_SUM}, {"0", MOE_NORM_NONE}, {NULL, 0}};
static const ckptl_choice ckptl_activations[] = {{"silu", MOE_ACT_SILU},
                                                 {"swish", MOE_ACT_SILU},
                                                 {"swiglu", MOE_ACT_SILU},
                                                 {"gelu_pytorch_tanh", MOE_ACT_GELU_TANH},
                                                 {"gelu_tanh", MOE_ACT_GELU_TANH},
                                                 {"gelu_new", MOE_ACT_GELU_TANH},
                                                 {"gelu_fast", MOE_ACT_GELU_TANH},
                                                 {"gelu", MOE_ACT_GELU_ERF},
                                                 {"gelu_erf", MOE_ACT_GELU_ERF},
                                                 {"relu", MOE_ACT_RELU},
                                                 {"relu2", MOE_ACT_RELU2},
                                                 {"relu_squared", MOE_ACT_RELU2},
                                                 {"squared_relu", MOE_ACT_RELU2},
                                                 {"situ", MOE_ACT_SITU},
                                                 {"swigluoai", MOE_ACT_OAI},
                                                 {"swiglu_oai", MOE_ACT_OAI},
                                                 {NULL, 0}};
static const ckptl_choice ckptl_not[] = {{"true", 0}, {"false", 1}, {NULL, 0}};
static const ckptl_choice ckptl_flag[] = {{"true", 1}, {"false", 0}, {NULL, 0}};
static const ckptl_choice ckptl_input[] = {{"true", MOE_WEIGHT_AT_INPUT}, {NULL, 0}};
static const ckptl_choice ckptl_zero[] = {{"identity", MOE_ZERO_IDENTITY}, {"zero", MOE_ZERO_NOTHING}, {NULL, 0}};

/* Names of the values, for people. */
static const char *const ckptl_n_score[] = {"softmax", "sigmoid", "sqrt(softplus)", NULL};
static const char *const ckptl_n_on[] = {"score", "logit", NULL};
static const char *const ckptl_n_pick[] = {"top-k", "table", "sparsemixer", NULL};
static const char *const ckptl_n_from[] = {"score", "softmax of the selected", "biased score", NULL};
static const char *const ckptl_n_norm[] = {"none", "sum", "sum with shared", NULL};
static const char *const ckptl_n_group[] = {"none", "max", "sum of 2 best", "per group", NULL};
static const char *const ckptl_n_act[] = {"silu", "gelu tanh", "gelu erf", "relu", "relu^2", "oai", "situ", NULL};
static const char *const ckptl_n_clamp[] = {"none", "before", "after", NULL};
static const char *const ckptl_n_at[] = {"output", "input", "hidden", NULL};
static const char *const ckptl_n_gate[] = {"none", "sigmoid", "softmax of 2", "router rows", NULL};
static const char *const ckptl_n_zero[] = {"identity", "nothing", NULL};

typedef enum ckptl_kind { CKPTL_U32, CKPTL_F32, CKPTL_CHOICE } ckptl_kind;
typedef struct ckptl_field {
    const char *name;
    size_t at;
    ckptl_kind kind;
    const char *const *names; /* of a choice's values */
    const ckptl_choice *choices;
    const char *keys, *gguf; /* in the order of priority; NULL: decided elsewhere */
} ckptl_field;
#define CKPTL_AT(member) #member, offsetof(moe_desc, member)

static const ckptl_field ckptl_fields[] = {
    {CKPTL_AT(d_model), CKPTL_U32, NULL, NULL, "hidden_size d_model n_embd dim embed_dim emb_size",
     "embedding_length"},
    {CKPTL_AT(d_ff), CKPTL_U32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(n_experts), CKPTL_U32, NULL, NULL,
     "n_routed_experts num_local_experts num_experts moe_num_experts ffn_config.moe_num_experts num_routed_experts "
     "n_experts "
     "num_moe_experts moe_num_primary_experts moe.num_experts expert_num",
     "expert_count"},
    {CKPTL_AT(top_k), CKPTL_U32, NULL, NULL,
     "num_experts_per_tok num_experts_per_token experts_per_token moe_topk moe_top_k moe_k num_experts_per_topk "
     "top_k_experts "
     "experts_top_k ffn_config.moe_top_k num_selected_experts n_activated_experts num_activated_experts "
     "moe_num_active_primary_experts moe_router_topk router_top_k moe.num_experts_per_tok top_k",
     "expert_used_count"},
    {CKPTL_AT(n_zero_experts), CKPTL_U32, NULL, NULL, "zero_expert_num num_zero_experts n_zero_experts",
     "expert_zero_count"},
    {CKPTL_AT(zero_kind), CKPTL_CHOICE, ckptl_n_zero, ckptl_zero, "zero_expert_type", NULL},
    {CKPTL_AT(router.score), CKPTL_CHOICE, ckptl_n_score, ckptl_scores,
     "scoring_func score_func score_function moe_router_activation_func moe_router_activation "
     "moe_router_score_function "
     "gate_activation expert_selection_fn moe_router_use_sigmoid",
     "expert_gating_func"},
    {CKPTL_AT(router.select_on), CKPTL_CHOICE, ckptl_n_on, NULL, NULL, NULL},
    {CKPTL_AT(router.pick), CKPTL_CHOICE, ckptl_n_pick, NULL, NULL, NULL},
    {CKPTL_AT(router.group), CKPTL_CHOICE, ckptl_n_group, NULL, NULL, NULL},
    {CKPTL_AT(router.n_group), CKPTL_U32, NULL, NULL,
     "n_group router_n_groups num_expert_group num_expert_groups n_expert_groups moe.num_expert_groups",
     "expert_group_count"},
    {CKPTL_AT(router.topk_group), CKPTL_U32, NULL, NULL,
     "topk_group num_limited_groups n_limited_groups moe.num_expert_groups_per_tok", "expert_group_used_count"},
    {CKPTL_AT(router.weight_from), CKPTL_CHOICE, ckptl_n_from, NULL, NULL, NULL},
    {CKPTL_AT(router.norm), CKPTL_CHOICE, ckptl_n_norm, ckptl_norms,
     "norm_topk_prob moe_renormalize norm_expert_weight route_norm moe_router_norm_topk_prob moe_norm_topk_prob "
     "ffn_config.moe_normalize_expert_weights",
     "expert_weights_norm"},
    {CKPTL_AT(router.norm_eps), CKPTL_F32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(router.norm_min), CKPTL_F32, NULL, NULL, "moe_norm_min", NULL},
    {CKPTL_AT(router.norm_skip_k1), CKPTL_U32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(router.routed_scale), CKPTL_F32, NULL, NULL,
     "routed_scaling_factor moe_routed_scaling_factor router_scaling_factor moe_router_scaling_factor route_scale "
     "moe_router_topk_scaling_factor moe.routed_scale",
     "expert_weights_scale"},
    {CKPTL_AT(router.softcap), CKPTL_F32, NULL, NULL, "moe_router_logit_softcapping router_logit_softcapping",
     "router_logit_softcapping"},
    {CKPTL_AT(router.jitter), CKPTL_F32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(router.input_norm_eps), CKPTL_F32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(router.capacity), CKPTL_U32, NULL, NULL, "expert_capacity", NULL},
    {CKPTL_AT(router.capacity_factor), CKPTL_F32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(router.capacity_by_score), CKPTL_CHOICE, NULL, ckptl_flag, "batch_prioritized_routing", NULL},
    {CKPTL_AT(router.capacity_norm_after), CKPTL_CHOICE, NULL, ckptl_not, "normalize_router_prob_before_dropping",
     NULL},
    {CKPTL_AT(ffn.activation), CKPTL_CHOICE, ckptl_n_act, ckptl_activations,
     "mlp_hidden_act moe_hidden_act ffn_config.ffn_act_fn.name dense_act_fn activation_function hidden_activation "
     "hidden_act",
     NULL},
    {CKPTL_AT(ffn.ungated), CKPTL_CHOICE, NULL, ckptl_not, "gated", NULL},
    {CKPTL_AT(ffn.clamp), CKPTL_CHOICE, ckptl_n_clamp, NULL, NULL, NULL},
    {CKPTL_AT(ffn.limit), CKPTL_F32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(ffn.alpha), CKPTL_F32, NULL, NULL, "swiglu_alpha", NULL},
    {CKPTL_AT(ffn.beta), CKPTL_F32, NULL, NULL, "activation_situ_beta situ_beta", "activation.situ_beta"},
    {CKPTL_AT(ffn.linear_beta), CKPTL_F32, NULL, NULL, "activation_situ_linear_beta situ_linear_beta",
     "activation.situ_linear_beta"},
    {CKPTL_AT(ffn.weight_at), CKPTL_CHOICE, ckptl_n_at, ckptl_input, "moe_apply_router_weight_on_input", NULL},
    {CKPTL_AT(ffn.expert_out_scale), CKPTL_F32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(ffn.combine_scale), CKPTL_F32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(shared.count), CKPTL_U32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(shared.d_ff), CKPTL_U32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(shared.gate_kind), CKPTL_CHOICE, ckptl_n_gate, NULL, NULL, NULL},
    {CKPTL_AT(shared.clamp), CKPTL_CHOICE, ckptl_n_clamp, NULL, NULL, NULL},
    {CKPTL_AT(shared.limit), CKPTL_F32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(latent.d), CKPTL_U32, NULL, NULL, NULL, NULL},
    {CKPTL_AT(latent.norm_eps), CKPTL_F32, NULL, NULL, NULL, NULL},
};
#define CKPTL_N_FIELDS (sizeof ckptl_fields / sizeof *ckptl_fields)

static inline uint32_t *ckptl_u32(ckptl *x, size_t at) { return (uint32_t *)(void *)((char *)x->d + at); }
static inline float *ckptl_f32(ckptl *x, size_t at) { return (float *)(void *)((char *)x->d + at); }

/* Remembers why the field at this place is what it is. */
static void ckptl_origin(ckptl *x, size_t at, const char *format, ...) CKPT_PRINTF(3, 4);
static void ckptl_origin(ckptl *x, size_t at, const char *format, ...) {
    size_t i = 0;
    while (i < CKPTL_N_FIELDS && ckptl_fields[i].at != at) i++;
    if (i == CKPTL_N_FIELDS) return;
    if (!x->origin[i]) x->origin[i] = (char *)ckptl_alloc(x, CKPT_LAYER_TEXT);
    if (!x->origin[i]) return;
    char text[CKPT_LAYER_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    ckpt_printable(x->origin[i], CKPT_LAYER_TEXT, text);
}
#define CKPTL_ORIGIN(x, member, ...) ckptl_origin(x, offsetof(moe_desc, member), __VA_ARGS__)

/* A number of the configuration into *value. 1: found, 0: not there, -1: an error. */
static int ckptl_number(ckptl *x, const char *keys, double most, double *value, char *key, size_t size) {
    ckpt_value v;
    double f;
    if (!keys || !ckptl_value(x, keys, &v, key, size)) return 0;
    if (!ckpt_as_f64(&v, &f)) return ckptl_fail(x->err, "config key %s is not a number", key);
    if (!(f >= -most && f <= most)) return ckptl_fail(x->err, "config key %s: %g is out of range", key, f);
    *value = f;
    return 1;
}
static int ckptl_size(ckptl *x, const char *keys, uint32_t *value, char *key, size_t size) {
    double f = 0;
    int found = ckptl_number(x, keys, 4294967295.0, &f, key, size);
    if (found <= 0) return found;
    if (f < 0 || f != (double)(uint32_t)f) return ckptl_fail(x->err, "config key %s: %g is no count", key, f);
    *value = (uint32_t)f;
    return 1;
}

/* Values that a class ignores, or that say less than the preset. */
static int ckptl_overruled(const ckptl *x, const ckptl_field *f, uint32_t value) {
    uint32_t act = x->d->ffn.activation;
    if (f->at == offsetof(moe_desc, router.norm)) /* already a softmax over the selected, or a sum with more in it */
        return x->d->router.weight_from == MOE_WEIGHT_SOFTMAX_SELECTED ||
               x->d->router.norm == MOE_NORM_SUM_WITH_SHARED;
    if (f->at != offsetof(moe_desc, ffn.activation)) return 0;
    return (act == MOE_ACT_OAI && value == MOE_ACT_SILU) || (act == MOE_ACT_GELU_TANH && value == MOE_ACT_GELU_ERF);
}

static int ckptl_read_choice(ckptl *x, const ckptl_field *f) {
    ckpt_value v;
    char key[CKPT_MAX_KEY], text[64];
    if (!ckptl_value(x, x->c->is_gguf ? f->gguf : f->keys, &v, key, sizeof key)) return 0;
    ckptl_value_text(&v, text, sizeof text);
    for (const ckptl_choice *c = f->choices; c->word; c++)
        if (ckptl_same(c->word, text) && !ckptl_overruled(x, f, c->value)) {
            *ckptl_u32(x, f->at) = c->value;
            ckptl_origin(x, f->at, "config key %s", key);
        }
    return 0;
}

static int ckptl_read_fields(ckptl *x) {
    char key[CKPT_MAX_KEY];
    for (size_t i = 0; i < CKPTL_N_FIELDS; i++) {
        const ckptl_field *f = &ckptl_fields[i];
        const char *keys = x->c->is_gguf ? f->gguf : f->keys;
        uint32_t u = 0;
        double r = 0;
        int found = 0;
        if (!keys) continue;
        if (f->kind == CKPTL_CHOICE) {
            if (ckptl_read_choice(x, f)) return -1;
            continue;
        }
        if (f->kind == CKPTL_U32) found = ckptl_size(x, keys, &u, key, sizeof key);
        else found = ckptl_number(x, keys, (double)FLT_MAX, &r, key, sizeof key);
        if (found < 0) return -1;
        if (!found) continue;
        if (f->kind == CKPTL_U32) *ckptl_u32(x, f->at) = u;
        else *ckptl_f32(x, f->at) = (float)r;
        ckptl_origin(x, f->at, "config key %s", key);
        int required = f->at == offsetof(moe_desc, d_model) || f->at == offsetof(moe_desc, n_experts) ||
                       f->at == offsetof(moe_desc, top_k);
        if (required && !u) return ckptl_fail(x->err, "config key %s is 0", key);
    }
    return 0;
}

static void ckptl_list_knobs(ckptl *x) {
    for (size_t i = 0; i < CKPTL_N_FIELDS && x->info->n_knobs < 64; i++) {
        const ckptl_field *f = &ckptl_fields[i];
        ckpt_knob *k = &x->info->knobs[x->info->n_knobs];
        uint32_t u = *ckptl_u32(x, f->at);
        float r = *ckptl_f32(x, f->at);
        int zero = f->kind == CKPTL_F32 ? !(r < 0 || r > 0) : !u;
        if (zero && !x->origin[i] && !f->names) continue; /* off, and nobody asked */
        if (f->kind == CKPTL_F32) snprintf(k->value, sizeof k->value, "%.7g", (double)r);
        else if (f->names) {
            uint32_t n = 0;
            while (f->names[n] && n < u) n++;
            snprintf(k->value, sizeof k->value, "%s", f->names[n] ? f->names[n] : "?");
        } else snprintf(k->value, sizeof k->value, "%" PRIu32, u);
        snprintf(k->field, sizeof k->field, "%s", f->name);
        if (x->origin[i]) snprintf(k->origin, sizeof k->origin, "%s", x->origin[i]);
        else snprintf(k->origin, sizeof k->origin, "preset %s", x->info->family);
        x->info->n_knobs++;
    }
}

/* -- The tensors of one matrix ----------------------------------------------------------------------------------- */

/* What stores a matrix (or a stack of them): found by suffix behind the matrix's stem. */
typedef struct ckptl_set {
    const ckpt_tensor *weight, *scale, *scale2, *divisor, *zero, *g_idx, *shape, *bias;
    const char *suffix;        /* of the weight */
    uint64_t experts, rows, k; /* experts: of a stack, else 1 */
    uint32_t format, per_word; /* weights per stored element */
    uint32_t scale_type, grid_rows, grid_cols;
    uint64_t lines, columns; /* of the scales of one expert */
    int whole;               /* one scale for the whole matrix */
    int packed;              /* must be repacked */
    int turned;              /* was stored [in, out]: weight and scale are copies */
} ckptl_set;

/* .w and /w are Haiku's: [in, out] */
static const char *const ckptl_weight_suffix[] = {".weight", "",          ".weight_packed", ".qweight",
                                                  "_blocks", ".blocks",   "_packed",        ".w",
                                                  "/w",      ".w.weight", "/w/weight",      NULL};
static const char *const ckptl_scale_suffix[] = {".weight_scale_inv", ".weight_scale", ".scales",       ".scale",
                                                 "_scale_inv",        "_scales",       "_weight_scale", "_scale",
                                                 ".qscale_weight",    ".w.scales",     "/w/scales",     NULL};
static const char *const ckptl_scale2_suffix[] = {".weight_scale_2", "_weight_scale_2", ".scale2", "_scale_2", NULL};
static const char *const ckptl_divisor_suffix[] = {".weight_global_scale", "_weight_global_scale", "_global_scale",
                                                   NULL};
static const char *const ckptl_zero_suffix[] = {".weight_zero_point", ".qzeros", NULL};
static const char *const ckptl_g_idx_suffix[] = {".g_idx", ".weight_g_idx", NULL};
static const char *const ckptl_shape_suffix[] = {".weight_shape", NULL};
static const char *const ckptl_bias_suffix[] = {".bias", "_bias", NULL};
static const char *const ckptl_gguf_weight[] = {".weight", NULL}, *const ckptl_gguf_scale2[] = {".scale", NULL},
                         *const ckptl_gguf_bias[] = {".bias", NULL};

static inline const ckpt_tensor *ckptl_beside(const ckpt *c, const char *stem, const char *const *suffixes,
                                              const char **which) {
    for (; *suffixes; suffixes++) {
        const ckpt_tensor *t = ckpt_findf(c, "%s%s", stem, *suffixes);
        if (t && which) *which = *suffixes;
        if (t) return t;
    }
    return NULL;
}

static void ckptl_collect(const ckpt *c, const char *stem, ckptl_set *s) {
    memset(s, 0, sizeof *s);
    if (c->is_gguf) {
        s->weight = ckptl_beside(c, stem, ckptl_gguf_weight, &s->suffix);
        s->scale2 = ckptl_beside(c, stem, ckptl_gguf_scale2, NULL);
        s->bias = ckptl_beside(c, stem, ckptl_gguf_bias, NULL);
        return;
    }
    s->weight = ckptl_beside(c, stem, ckptl_weight_suffix, &s->suffix);
    s->scale = ckptl_beside(c, stem, ckptl_scale_suffix, NULL);
    s->scale2 = ckptl_beside(c, stem, ckptl_scale2_suffix, NULL);
    s->divisor = ckptl_beside(c, stem, ckptl_divisor_suffix, NULL);
    s->zero = ckptl_beside(c, stem, ckptl_zero_suffix, NULL);
    s->g_idx = ckptl_beside(c, stem, ckptl_g_idx_suffix, NULL);
    s->shape = ckptl_beside(c, stem, ckptl_shape_suffix, NULL);
    s->bias = ckptl_beside(c, stem, ckptl_bias_suffix, NULL);
    size_t n = strlen(stem);
    if (!s->bias && n > 7 &&
        !strcmp(stem + n - 7, "_weight")) /* gpt-oss as first released: mlp1_weight.blocks, mlp1_bias */
        s->bias = ckpt_findf(c, "%.*s_bias", (int)(n - 7), stem);
}

static inline int ckptl_is_haiku(const ckptl_set *s) {
    return s->weight && s->suffix[0] && s->suffix[1] == 'w' && (!s->suffix[2] || strchr("./", s->suffix[2]));
}

/* What a weight's type and its scale's type make, and how many inputs share a scale (0: the shape tells). */
typedef struct ckptl_rule {
    ckpt_dtype weight, scale;
    uint32_t per_word, group, format, type;
} ckptl_rule;
static const ckptl_rule ckptl_rules[] = {
    {CKPT_U8, CKPT_U8, 2, 32, MOE_FORMAT_MXFP4_HF, MOE_TYPE_E8M0},
    {CKPT_U8, CKPT_F8_E8M0, 2, 32, MOE_FORMAT_MXFP4_HF, MOE_TYPE_E8M0},
    {CKPT_I8, CKPT_U8, 2, 32, MOE_FORMAT_MXFP4_HF, MOE_TYPE_E8M0},
    {CKPT_I8, CKPT_F8_E8M0, 2, 32, MOE_FORMAT_MXFP4_HF, MOE_TYPE_E8M0},
    {CKPT_F4, CKPT_U8, 1, 32, MOE_FORMAT_MXFP4_HF, MOE_TYPE_E8M0},
    {CKPT_F4, CKPT_F8_E8M0, 1, 32, MOE_FORMAT_MXFP4_HF, MOE_TYPE_E8M0},
    {CKPT_U8, CKPT_F8_E4M3, 2, 16, MOE_FORMAT_NVFP4_HF, MOE_TYPE_E4M3},
    {CKPT_I8, CKPT_F8_E4M3, 2, 16, MOE_FORMAT_NVFP4_HF, MOE_TYPE_E4M3},
    {CKPT_F4, CKPT_F8_E4M3, 1, 16, MOE_FORMAT_NVFP4_HF, MOE_TYPE_E4M3},
    {CKPT_F8_E4M3, CKPT_U8, 1, 32, MOE_FORMAT_MXFP8, MOE_TYPE_E8M0},
    {CKPT_F8_E4M3, CKPT_F8_E8M0, 1, 32, MOE_FORMAT_MXFP8, MOE_TYPE_E8M0},
    {CKPT_F8_E4M3, CKPT_F32, 1, 0, MOE_FORMAT_FP8_CHANNEL, MOE_TYPE_F32},
    {CKPT_F8_E4M3, CKPT_BF16, 1, 0, MOE_FORMAT_FP8_CHANNEL, MOE_TYPE_BF16},
    {CKPT_F8_E4M3, CKPT_F16, 1, 0, MOE_FORMAT_FP8_CHANNEL, MOE_TYPE_F16},
    {CKPT_I8, CKPT_F32, 1, 0, MOE_FORMAT_INT8_CHANNEL, MOE_TYPE_F32},
    {CKPT_I8, CKPT_BF16, 1, 0, MOE_FORMAT_INT8_CHANNEL, MOE_TYPE_BF16},
    {CKPT_I8, CKPT_F16, 1, 0, MOE_FORMAT_INT8_CHANNEL, MOE_TYPE_F16},
    {CKPT_I32, CKPT_F32, 8, 0, MOE_FORMAT_INT4_GROUP, MOE_TYPE_F32},
    {CKPT_I32, CKPT_BF16, 8, 0, MOE_FORMAT_INT4_GROUP, MOE_TYPE_BF16},
    {CKPT_I32, CKPT_F16, 8, 0, MOE_FORMAT_INT4_GROUP, MOE_TYPE_F16},
};

static const ckptl_rule *ckptl_rule_of(const ckptl_set *s) {
    static const ckptl_rule none = {CKPT_F32, CKPT_F32, 1, 0, MOE_FORMAT_NONE, MOE_TYPE_NONE};
    for (size_t i = 0; s->scale && i < sizeof ckptl_rules / sizeof *ckptl_rules; i++)
        if (ckptl_rules[i].weight == s->weight->type && ckptl_rules[i].scale == s->scale->type)
            return &ckptl_rules[i];
    return &none;
}

/* The method and width of packed words, from quantization_config (with 4 bits as the usual). */
static inline uint64_t ckptl_quant_u64(const ckpt *c, const char *key, uint64_t otherwise) {
    static const char *const roots[] = {"quantization_config.",
                                        "text_config.quantization_config.",
                                        "compression_config.",
                                        "quantization_config.config_groups.group_0.weights.",
                                        "text_config.quantization_config.config_groups.group_0.weights.",
                                        "compression_config.config_groups.group_0.weights.",
                                        "quantization_config.weights."};
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++) {
        uint64_t u;
        if (ckpt_as_u64(ckpt_getf(c, "%s%s", roots[i], key), &u)) return u;
    }
    return otherwise;
}
static inline const char *ckptl_quant_str(const ckpt *c, const char *key) {
    const char *s = NULL;
    if (ckpt_as_str(ckpt_getf(c, "quantization_config.%s", key), &s)) return s;
    return ckpt_as_str(ckpt_getf(c, "text_config.quantization_config.%s", key), &s) ? s : "";
}
static inline uint64_t ckptl_bits(const ckpt *c) {
    uint64_t bits = ckptl_quant_u64(c, "bits", 0);
    return bits ? bits : ckptl_quant_u64(c, "num_bits", 4);
}

/* Experts, rows and inputs as the weight tensor's own shape says. `stacked`: the first dimension counts experts. */
static int ckptl_dims(const ckpt *c, ckptl_set *s, int stacked, char *err) {
    const ckpt_tensor *w = s->weight;
    char have[96];
    uint32_t first = stacked ? 1 : 0, n = w->n_dims - (w->n_dims < first ? w->n_dims : first);
    int blocks = s->suffix && strstr(s->suffix, "blocks") != NULL;
    s->experts = stacked && w->n_dims ? w->dims[0] : 1;
    if (s->suffix && !strcmp(s->suffix, ".qweight")) {
        if (stacked || n != 2 || !s->scale || s->scale->n_dims != 2)
            return ckptl_fail(err, "tensor %s: packed weights need two dimensions, and .scales with two", w->name);
        uint64_t per = 32 / (ckptl_bits(c) == 8 ? 8u : 4u);
        s->packed = 1, s->rows = s->scale->dims[1], s->per_word = (uint32_t)per;
        if (w->dims[1] == s->rows) s->k = w->dims[0] * per;                /* GPTQ: along inputs */
        else if (per == 8 && w->dims[1] * 8 == s->rows) s->k = w->dims[0]; /* AWQ: along outputs */
        else
            return ckptl_fail(err, "tensor %s: shape %s does not fit the %" PRIu64 " outputs of %s", w->name,
                              ckptl_dims_text(w->dims, n, have, sizeof have), s->rows, s->scale->name);
        return 0;
    }
    if (blocks) { /* [rows, k / 32, 16] */
        if (n != 3 || w->dims[first + 2] != 16 || w->type != CKPT_U8)
            return ckptl_fail(err, "tensor %s: %s %s is not U8 blocks of 16 bytes", w->name, ckpt_type_name(w->type),
                              ckptl_dims_text(w->dims, w->n_dims, have, sizeof have));
        s->rows = w->dims[first], s->k = w->dims[first + 1] * 32, s->per_word = 2;
        return 0;
    }
    if (n == 1 && !stacked) { /* a vector is a row */
        s->rows = 1, s->k = w->dims[0], s->per_word = 1;
        return 0;
    }
    if (n != 2)
        return ckptl_fail(err, "tensor %s: shape %s, not %s", w->name,
                          ckptl_dims_text(w->dims, w->n_dims, have, sizeof have),
                          stacked ? "[experts,rows,inputs]" : "[rows,inputs]");
    s->per_word = ckptl_rule_of(s)->per_word;
    if (w->type == CKPT_I32 && ckptl_bits(c) == 8) s->per_word = 4, s->packed = 1;
    s->rows = w->dims[first], s->k = w->dims[first + 1] * s->per_word;
    if (w->type == CKPT_I32 && s->shape) { /* the last word of a row may be partly used */
        uint64_t shape[2] = {0, 0}, bytes = s->shape->type == CKPT_I64 ? 8 : 4;
        if ((s->shape->type != CKPT_I64 && s->shape->type != CKPT_I32) || ckpt_elements(s->shape) != 2)
            return ckptl_fail(err, "tensor %s is not two integers", s->shape->name);
        for (size_t i = 0; i < 2; i++)
            shape[i] = bytes == 8 ? ckpt_load_u64(s->shape->data + 8 * i) : ckpt_load_u32(s->shape->data + 4 * i);
        if (shape[0] != s->rows || shape[1] > s->k || s->k - shape[1] >= s->per_word)
            return ckptl_fail(err, "tensor %s says %" PRIu64 " x %" PRIu64 ", %s holds %" PRIu64 " x %" PRIu64,
                              s->shape->name, shape[0], shape[1], w->name, s->rows, s->k);
        s->k = shape[1];
    }
    return 0;
}

/* The scales of one expert must be lines x columns. */
static int ckptl_scale_error(const ckptl *x, const ckptl_set *s, uint64_t lines, uint64_t columns) {
    char want[96];
    snprintf(want, sizeof want, "[%" PRIu64 ",%" PRIu64 "] per expert for %" PRIu64 " x %" PRIu64 " weights", lines,
             columns, s->rows, s->k);
    return ckptl_shape_error(x, s->scale, want);
}
static inline uint64_t ckptl_up(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

/* Scales whose shape tells what they are: one per matrix, row, block of rows and columns, or group of inputs. */
static int ckptl_grid(const ckptl *x, ckptl_set *s) {
    int int4 = s->format == MOE_FORMAT_INT4_GROUP,
        fp8 = s->scale->type == CKPT_F8_E8M0 || s->format == MOE_FORMAT_FP8_CHANNEL;
    int inverse =
        strstr(s->scale->name + strlen(s->scale->name) - (strlen(s->scale->name) < 4 ? 0 : 4), "_inv") != NULL;
    uint64_t br = x->block_rows, bc = x->block_cols;
    if (s->whole && !int4 && (!inverse || (br >= s->rows && bc >= s->k))) return 0;
    s->whole = 0;
    if (fp8 && (inverse || !(s->lines == s->rows && s->columns == 1))) {
        if (s->lines != ckptl_up(s->rows, br) || s->columns != ckptl_up(s->k, bc))
            return ckptl_scale_error(x, s, ckptl_up(s->rows, br), ckptl_up(s->k, bc));
        s->format = MOE_FORMAT_FP8_BLOCK, s->grid_rows = (uint32_t)br, s->grid_cols = (uint32_t)bc;
        return 0;
    }
    s->grid_rows = 1;
    if (s->lines != s->rows || !s->columns) return ckptl_scale_error(x, s, s->rows, s->columns ? s->columns : 1);
    uint64_t group = ckptl_quant_u64(x->c, "group_size", 0);
    if (s->columns == 1) group = UINT32_MAX;
    else if (!group || group > UINT32_MAX || ckptl_up(s->k, group) != s->columns)
        group = s->k % s->columns ? 0 : s->k / s->columns;
    if (!group) return ckptl_scale_error(x, s, s->rows, 1);
    s->grid_cols = (uint32_t)group;
    return 0;
}

/* Decides the format of a set whose dimensions are known, and checks the scales against them. */
static int ckptl_identify(const ckptl *x, ckptl_set *s, int stacked) {
    const ckpt_tensor *w = s->weight;
    char have[96];
    if (!s->scale && !s->packed) {
        s->format = moe_format_by_name(ckpt_type_name(w->type));
        if (!s->format)
            return ckptl_fail(x->err, "tensor %s: %s without scales is no weight format", w->name,
                              ckpt_type_name(w->type));
        return 0;
    }
    const ckptl_rule *rule = ckptl_rule_of(s);
    if (s->packed && !strcmp(s->suffix, ".qweight")) {
        if (w->type != CKPT_I32 ||
            (s->scale->type != CKPT_F16 && s->scale->type != CKPT_BF16 && s->scale->type != CKPT_F32))
            return ckptl_fail(x->err, "tensor %s: %s with %s scales is no packed format", w->name,
                              ckpt_type_name(w->type), ckpt_type_name(s->scale->type));
        return 0; /* the rest is ckpt_repack's */
    }
    if (!rule->format &&
        moe_format_by_name(ckpt_type_name(w->type))) { /* a plain weight; what is beside it is something else */
        s->format = moe_format_by_name(ckpt_type_name(w->type)), s->scale = NULL;
        return 0;
    }
    if (!rule->format)
        return ckptl_fail(x->err, "tensor %s: %s with %s of %s is no known format", w->name, ckpt_type_name(w->type),
                          s->scale->name, ckpt_type_name(s->scale->type));
    s->format = rule->format, s->scale_type = rule->type;
    const uint64_t *dims = s->scale->dims;
    uint32_t n = s->scale->n_dims;
    if (stacked && n && dims[0] == s->experts) dims++, n--;
    else if (stacked && ckpt_elements(s->scale) != 1)
        return ckptl_fail(x->err, "tensor %s: shape %s is not of %" PRIu64 " experts", s->scale->name,
                          ckptl_dims_text(s->scale->dims, n, have, sizeof have), s->experts);
    s->lines = n ? dims[0] : 1, s->columns = n > 1 ? dims[1] : 1;
    if (n > 2) return ckptl_scale_error(x, s, s->rows, 1);
    s->whole = s->lines == 1 && s->columns == 1;
    if (rule->group && s->lines == s->rows && s->columns == ckptl_up(s->k, rule->group) && s->k % rule->group == 0) {
        s->whole = 0, s->grid_rows = 1, s->grid_cols = rule->group;
        return 0;
    }
    if (rule->group && (rule->format != MOE_FORMAT_MXFP8 || s->scale->type == CKPT_U8))
        return ckptl_scale_error(x, s, s->rows, ckptl_up(s->k, rule->group));
    return ckptl_grid(x, s);
}

/* -- Repacking --------------------------------------------------------------------------------------------------- */

/* "CKPTPAK1", then u32 format, group, scale type, has zeros, u64 rows, k, groups, offsets of scales and zeros, size;
   at 96 the
   weights: int4_group [rows][k / 8] with scales [rows][groups] and u8 zeros [rows][groups]; int8_channel with scales;
   or f32. */
#define CKPTL_PACK_HEADER 96
typedef struct ckptl_pack {
    uint32_t format, group, scale_type, zeros;
    uint64_t rows, k, groups, scales_at, zeros_at, size;
} ckptl_pack;

static inline uint32_t ckptl_type_bytes(ckpt_dtype t) { return t == CKPT_F32 ? 4 : 2; }
static inline uint32_t ckptl_scale_kind(ckpt_dtype t) {
    return t == CKPT_F32 ? MOE_TYPE_F32 : t == CKPT_BF16 ? MOE_TYPE_BF16 : MOE_TYPE_F16;
}
static inline int ckptl_is_awq(const ckptl_set *s) { return s->per_word == 8 && s->weight->dims[1] * 8 == s->rows; }

/* Group of input i; groups * k fits. */
static inline uint64_t ckptl_group_of(const ckptl_set *s, uint64_t groups, uint64_t i) {
    if (s->g_idx) return ckpt_load_u32(s->g_idx->data + 4 * i);
    return i / (s->k / groups);
}

/* Checks every tensor of the set and plans the layout. */
static int ckptl_plan(const ckptl_set *s, ckptl_pack *p, char *err) {
    char want[96], have[96];
    int words8 = strcmp(s->suffix, ".qweight") != 0, ordered = 1;
    memset(p, 0, sizeof *p);
    if (s->scale->n_dims != 2 || !s->rows || !s->k)
        return ckptl_fail(err, "tensor %s: two dimensions are needed", s->scale->name);
    p->rows = s->rows, p->k = s->k, p->groups = words8 ? s->scale->dims[1] : s->scale->dims[0];
    p->scale_type = ckptl_scale_kind(s->scale->type);
    if (!p->groups || p->groups > s->k)
        return ckptl_fail(err, "tensor %s: %" PRIu64 " groups", s->scale->name, p->groups);
    if (words8) { /* q + 128 in bytes, [rows, k / 4] */
        if (s->scale->dims[0] != s->rows || s->k % p->groups || s->zero || s->g_idx)
            return ckptl_fail(err, "tensor %s: 8-bit words with zero points or g_idx are not supported",
                              s->weight->name);
        p->format = MOE_FORMAT_INT8_CHANNEL;
        p->group = p->groups == 1 ? UINT32_MAX : (uint32_t)(s->k / p->groups);
    } else {
        uint64_t per = s->per_word;
        if (s->zero && (s->zero->type != CKPT_I32 || s->zero->n_dims != 2 || s->zero->dims[0] != p->groups ||
                        s->zero->dims[1] != ckptl_up(s->rows, per))) {
            snprintf(want, sizeof want, "I32 [%" PRIu64 ",%" PRIu64 "]", p->groups, ckptl_up(s->rows, per));
            return ckptl_fail(err, "tensor %s: %s %s, not %s", s->zero->name, ckpt_type_name(s->zero->type),
                              ckptl_dims_text(s->zero->dims, s->zero->n_dims, have, sizeof have), want);
        }
        if (!s->g_idx && s->k % p->groups)
            return ckptl_fail(err, "tensor %s: %" PRIu64 " groups for %" PRIu64 " inputs", s->scale->name, p->groups,
                              s->k);
        if (s->g_idx && (s->g_idx->type != CKPT_I32 || ckpt_elements(s->g_idx) != s->k))
            return ckptl_fail(err, "tensor %s is not %" PRIu64 " integers", s->g_idx->name, s->k);
        uint64_t group = ckptl_up(s->k, p->groups);
        for (uint64_t i = 0; i < s->k; i++) {
            uint64_t g = ckptl_group_of(s, p->groups, i);
            if (g >= p->groups)
                return ckptl_fail(err, "tensor %s: input %" PRIu64 " is in group %" PRIu64 " of %" PRIu64,
                                  s->g_idx->name, i, g, p->groups);
            ordered &= g == i / group;
        }
        int fits = per == 8 && ordered && (group % 32 == 0 || p->groups == 1) && group <= UINT32_MAX;
        p->format = fits ? MOE_FORMAT_INT4_GROUP : MOE_FORMAT_F32;
        p->group = p->groups == 1 ? UINT32_MAX : (uint32_t)group;
        p->zeros = fits ? 1 : 0;
    }
    uint64_t weights = 0, scales = 0;
    size_t row = p->k <= SIZE_MAX / 8 ? moe_row_bytes(p->format, (size_t)p->k) : 0;
    if (!row || ckpti_mul(p->rows, row, &weights) ||
        ckpti_mul(p->rows * p->groups, ckptl_type_bytes(s->scale->type), &scales) ||
        weights > (uint64_t)SIZE_MAX / 8 || scales > (uint64_t)SIZE_MAX / 8)
        return ckptl_fail(err, "tensor %s is too large", s->weight->name);
    p->scales_at = CKPTL_PACK_HEADER + weights;
    if (p->format == MOE_FORMAT_F32) scales = 0;
    p->zeros_at = p->scales_at + scales;
    p->size = p->zeros_at + (p->zeros ? p->rows * p->groups : 0);
    return 0;
}

/* q and z of GPTQ and AWQ */
static inline uint32_t ckptl_q(const ckptl_set *s, int awq, uint64_t row, uint64_t i) {
    static const uint8_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    if (awq)
        return ckpt_load_u32(s->weight->data + (i * s->weight->dims[1] + row / 8) * 4) >> 4 * place[row % 8] & 15;
    uint32_t bits = 32 / s->per_word;
    return ckpt_load_u32(s->weight->data + (i / s->per_word * s->rows + row) * 4) >>
               bits * (uint32_t)(i % s->per_word) &
           ((1u << bits) - 1);
}
static inline uint32_t ckptl_z(const ckptl_set *s, int awq, uint32_t plus, uint64_t group, uint64_t row) {
    static const uint8_t place[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    uint32_t bits = 32 / s->per_word;
    if (!s->zero) return 1u << (bits - 1);
    uint32_t word = ckpt_load_u32(s->zero->data + (group * s->zero->dims[1] + row / s->per_word) * 4);
    if (awq) return word >> 4 * place[row % 8] & 15;
    return (word >> bits * (uint32_t)(row % s->per_word) & ((1u << bits) - 1)) + plus;
}

static int ckptl_pack_f32(const ckptl_set *s, const ckptl_pack *p, int awq, uint32_t plus, uint8_t *to) {
    moe_matrix m;
    float *line = (float *)malloc((size_t)p->groups * sizeof *line); /* one output's scales */
    if (!line) return -1;
    memset(&m, 0, sizeof m);
    m.format = p->scale_type == MOE_TYPE_F32   ? MOE_FORMAT_F32
               : p->scale_type == MOE_TYPE_F16 ? MOE_FORMAT_F16
                                               : MOE_FORMAT_BF16;
    uint32_t bytes = ckptl_type_bytes(s->scale->type);
    for (uint64_t r = 0; r < p->rows; r++) {
        for (uint64_t g = 0; g < p->groups; g++) {
            m.data = s->scale->data + (g * p->rows + r) * bytes;
            moe_dequantize(&m, 0, 1, 1, 1, 0, 1, &line[g]);
        }
        for (uint64_t i = 0; i < p->k; i++) {
            uint64_t g = ckptl_group_of(s, p->groups, i);
            int32_t q = (int32_t)ckptl_q(s, awq, r, i) - (int32_t)ckptl_z(s, awq, plus, g, r);
            ckpt_store_f32(to + (r * p->k + i) * 4, (float)q * line[g]);
        }
    }
    free(line);
    return 0;
}

static int ckptl_pack_set(const ckpt *c, const ckptl_set *s, const ckptl_pack *p, uint8_t *to, char *err) {
    int words8 = strcmp(s->suffix, ".qweight") != 0, awq = !words8 && ckptl_is_awq(s);
    uint32_t plus = ckptl_same(ckptl_quant_str(c, "checkpoint_format"), "gptq_v2") ? 0 : 1,
             bytes = ckptl_type_bytes(s->scale->type);
    uint8_t *weights = to + CKPTL_PACK_HEADER, *scales = to + p->scales_at, *zeros = to + p->zeros_at;
    memset(to, 0, (size_t)p->size);
    memcpy(to, "CKPTPAK1", 8);
    ckpt_store_u32(to + 8, p->format), ckpt_store_u32(to + 12, p->group);
    ckpt_store_u32(to + 16, p->scale_type), ckpt_store_u32(to + 20, p->zeros);
    ckpt_store_u64(to + 24, p->rows), ckpt_store_u64(to + 32, p->k), ckpt_store_u64(to + 40, p->groups);
    ckpt_store_u64(to + 48, p->scales_at), ckpt_store_u64(to + 56, p->zeros_at), ckpt_store_u64(to + 64, p->size);
    if (p->format == MOE_FORMAT_F32)
        return ckptl_pack_f32(s, p, awq, plus, weights) ? ckptl_fail(err, "out of memory") : 0;
    if (words8) {
        for (uint64_t r = 0; r < p->rows; r++)
            for (uint64_t i = 0; i < p->k; i++)
                weights[r * p->k + i] = s->weight->data[r * s->weight->dims[1] * 4 + i] ^ 0x80;
        memcpy(scales, s->scale->data, (size_t)(p->rows * p->groups * bytes));
        return 0;
    }
    uint64_t line = ckptl_up(p->k, 8) * 4;
    for (uint64_t r = 0; r < p->rows; r++) {
        for (uint64_t i = 0; i < p->k; i++)
            weights[r * line + i / 2] |= (uint8_t)(ckptl_q(s, awq, r, i) << 4 * (i % 2));
        for (uint64_t g = 0; g < p->groups; g++) {
            memcpy(scales + (r * p->groups + g) * bytes, s->scale->data + (g * p->rows + r) * bytes, bytes);
            zeros[r * p->groups + g] = (uint8_t)ckptl_z(s, awq, plus, g, r);
        }
    }
    return 0;
}

static int ckptl_packable(const ckpt *c, const char *stem, ckptl_set *s, ckptl_pack *p, char *err) {
    ckptl x;
    memset(&x, 0, sizeof x);
    x.c = c, x.err = err;
    ckptl_collect(c, stem, s);
    if (!s->weight) return ckptl_fail(err, "tensor %s.qweight is missing", stem);
    if (ckptl_dims(c, s, 0, err)) return -1;
    if (!s->packed) return ckptl_fail(err, "tensor %s needs no repacking", s->weight->name);
    if (!s->scale) return ckptl_fail(err, "tensor %s has no scales", s->weight->name);
    return ckptl_identify(&x, s, 0) ? -1 : ckptl_plan(s, p, err);
}
CKPT_DEF size_t ckpt_repack_size(const ckpt *c, const char *stem, char *err) {
    ckptl_set s;
    ckptl_pack p;
    return ckptl_packable(c, stem, &s, &p, err) ? 0 : (size_t)p.size;
}
CKPT_DEF int ckpt_repack(const ckpt *c, const char *stem, void *to, size_t size, char *err) {
    ckptl_set s;
    ckptl_pack p;
    if (ckptl_packable(c, stem, &s, &p, err)) return -1;
    if (size < p.size) return ckptl_fail(err, "repacking %s needs %" PRIu64 " bytes, not %zu", stem, p.size, size);
    return ckptl_pack_set(c, &s, &p, (uint8_t *)to, err);
}

CKPT_DEF int ckpt_repack_use(const void *packed, size_t size, uint64_t rows, uint64_t k, moe_matrix *m, char *err) {
    const uint8_t *b = (const uint8_t *)packed;
    ckptl_pack p;
    if (size < CKPTL_PACK_HEADER || memcmp(b, "CKPTPAK1", 8))
        return ckptl_fail(err, "these are no repacked weights of this version");
    p.format = ckpt_load_u32(b + 8), p.group = ckpt_load_u32(b + 12), p.scale_type = ckpt_load_u32(b + 16),
    p.zeros = ckpt_load_u32(b + 20);
    p.rows = ckpt_load_u64(b + 24), p.k = ckpt_load_u64(b + 32), p.groups = ckpt_load_u64(b + 40);
    p.scales_at = ckpt_load_u64(b + 48), p.zeros_at = ckpt_load_u64(b + 56), p.size = ckpt_load_u64(b + 64);
    size_t line = p.k <= SIZE_MAX / 8 ? moe_row_bytes(p.format, (size_t)p.k) : 0,
           item = p.scale_type == MOE_TYPE_F32 ? 4 : 2;
    uint64_t weights, values = 0, scales;
    int dense = p.format == MOE_FORMAT_F32;
    if (p.rows != rows || p.k != k || !line || p.size > size || !p.groups || p.groups > p.k ||
        ckpti_mul(p.rows, line, &weights) || ckpti_mul(p.rows, p.groups, &values) ||
        ckpti_mul(values, dense ? 0 : item, &scales) || weights > size || scales > size ||
        p.scales_at != CKPTL_PACK_HEADER + weights || p.zeros_at != p.scales_at + scales ||
        p.size != p.zeros_at + (p.zeros ? values : 0) || p.scale_type < MOE_TYPE_F32 ||
        p.scale_type > MOE_TYPE_BF16 || p.zeros > 1 ||
        (p.format != MOE_FORMAT_F32 && p.format != MOE_FORMAT_INT4_GROUP && p.format != MOE_FORMAT_INT8_CHANNEL) ||
        (!dense && (!p.group || ckptl_up(p.k, p.group) > p.groups)))
        return ckptl_fail(err, "repacked weights are damaged or of another shape");
    memset(m, 0, sizeof *m);
    m->format = p.format, m->data = b, m->offset = CKPTL_PACK_HEADER, m->row_stride = line;
    if (dense) return 0;
    m->scale.type = p.scale_type, m->scale.data = b, m->scale.offset = (size_t)p.scales_at;
    m->scale.rows = 1, m->scale.cols = p.group, m->scale.row_stride = (size_t)p.groups * item;
    if (!p.zeros) return 0;
    m->zero.type = MOE_TYPE_U8, m->zero.data = b, m->zero.offset = (size_t)p.zeros_at;
    m->zero.rows = 1, m->zero.cols = p.group, m->zero.row_stride = (size_t)p.groups;
    return 0;
}

/* -- Turning [in, out] into rows ---------------------------------------------------------------------------------- */

typedef struct ckptl_turned {
    moe_matrix *m;
    uint64_t n, rows, k;
} ckptl_turned;

static inline size_t ckptl_turnable(moe_desc *d, ckptl_turned *all) {
    uint64_t in = d->latent.d ? d->latent.d : d->d_model, n = d->expert_count ? d->expert_count : d->n_experts,
             shared = d->shared.count ? d->shared.count : 1,
             sink = d->shared.gate_kind == MOE_SHARED_ROUTER_SINK ? shared : 0;
    ckptl_turned list[] = {{&d->gate, n, d->d_ff, in},
                           {&d->up, n, d->d_ff, in},
                           {&d->down, n, in, d->d_ff},
                           {&d->shared.gate, shared, d->shared.d_ff, d->d_model},
                           {&d->shared.up, shared, d->shared.d_ff, d->d_model},
                           {&d->shared.down, shared, d->d_model, d->shared.d_ff},
                           {&d->router.weight, 1, (uint64_t)d->n_experts + d->n_zero_experts + sink, d->d_model},
                           {&d->latent.in, 1, in, d->d_model},
                           {&d->latent.out, 1, d->d_model, in}};
    size_t found = 0;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i].m->format && list[i].m->k_stride) all[found++] = list[i];
    return found;
}

CKPT_DEF size_t ckpt_turn_size(const moe_desc *desc) {
    ckptl_turned all[9];
    moe_desc d = *desc;
    size_t n = ckptl_turnable(&d, all), size = 0;
    for (size_t i = 0; i < n; i++) /* the sizes are those of tensors in memory */
        size += (size_t)(all[i].n * all[i].rows) * moe_row_bytes(all[i].m->format, (size_t)all[i].k);
    return size;
}

/* A square of inputs is gathered first: lines of the file and of the rows are then touched once, whatever the strides. */
enum { CKPTL_TILE = 64 };
static inline void ckptl_turn_tile(const uint8_t *tile, size_t rows, size_t k, size_t item, uint8_t *to,
                                   size_t line) {
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < k; i++) memcpy(to + r * line + i * item, tile + (i * CKPTL_TILE + r) * item, item);
}

/* One expert; item is 1, 2 or 4. */
static inline void ckptl_turn_expert(const uint8_t *from, const moe_matrix *m, size_t rows, size_t k, size_t item,
                                     uint8_t *to) {
    uint8_t tile[CKPTL_TILE * CKPTL_TILE * 4];
    size_t row = m->row_stride ? m->row_stride : item;
    for (size_t r0 = 0; r0 < rows; r0 += CKPTL_TILE)
        for (size_t k0 = 0; k0 < k; k0 += CKPTL_TILE) {
            size_t n = rows - r0 < CKPTL_TILE ? rows - r0 : CKPTL_TILE,
                   inputs = k - k0 < CKPTL_TILE ? k - k0 : CKPTL_TILE;
            for (size_t i = 0; i < inputs; i++) {
                const uint8_t *p = from + r0 * row + (k0 + i) * m->k_stride;
                uint8_t *q = tile + i * CKPTL_TILE * item;
                if (row == item) memcpy(q, p, n * item);
                else
                    for (size_t r = 0; r < n; r++) memcpy(q + r * item, p + r * row, item);
            }
            uint8_t *q = to + (r0 * k + k0) * item;
            if (item == 1) ckptl_turn_tile(tile, n, inputs, 1, q, k);
            else if (item == 2) ckptl_turn_tile(tile, n, inputs, 2, q, k * 2);
            else ckptl_turn_tile(tile, n, inputs, 4, q, k * 4);
        }
}

CKPT_DEF void ckpt_turn(moe_desc *desc, void *to) {
    ckptl_turned all[9];
    uint8_t *at = (uint8_t *)to;
    size_t n = ckptl_turnable(desc, all);
    for (size_t i = 0; i < n; i++) {
        moe_matrix *m = all[i].m, old = *m;
        size_t rows = (size_t)all[i].rows, k = (size_t)all[i].k, item = m->format == MOE_FORMAT_F32 ? 4 : 2;
        size_t step = old.expert_stride ? old.expert_stride : k * old.k_stride;
        m->data = at, m->expert = NULL, m->offset = m->row_stride = m->expert_stride = m->k_stride = 0;
        for (uint64_t e = 0; e < all[i].n; e++, at += rows * k * item) {
            const uint8_t *from =
                old.expert ? (const uint8_t *)old.expert[e] : (const uint8_t *)old.data + (size_t)e * step;
            if (from) ckptl_turn_expert(from + old.offset, &old, rows, k, item, at);
        }
    }
}

/* A stack that is stored [in, out] in a format that moe.h reads as rows only: a turned copy takes its place. */
typedef struct ckptl_copy {
    const ckpt_tensor *of;
    struct ckptl_copy *next;
    ckpt_tensor turned;
} ckptl_copy;

/* [experts,k,n] as [experts,n,k]; made once, because gate and up may be halves of one. NULL: out of memory. */
static const ckpt_tensor *ckptl_turned_copy(ckptl *x, const ckpt_tensor *t) {
    size_t item = ckpt_type(t->type)->bytes;
    uint64_t k = t->dims[1], n = t->dims[2];
    ckptl_copy *c = x->copies;
    moe_matrix m;
    while (c && c->of != t) c = c->next;
    if (c) return &c->turned;
    if (!(c = (ckptl_copy *)ckptl_alloc(x, sizeof *c + t->bytes))) return NULL;
    c->of = t, c->next = x->copies, x->copies = c;
    c->turned = *t, c->turned.dims[1] = n, c->turned.dims[2] = k, c->turned.data = (const uint8_t *)(c + 1);
    memset(&m, 0, sizeof m);
    m.row_stride = item, m.k_stride = (size_t)n * item;
    for (size_t e = 0, one = (size_t)(k * n) * item; e < t->dims[0]; e++)
        ckptl_turn_expert(t->data + e * one, &m, (size_t)n, (size_t)k, item, (uint8_t *)(c + 1) + e * one);
    return &c->turned;
}

/* Scales [groups,out] are turned too; [out,1], [out] and one for all are as they must be. */
static int ckptl_turn_set(ckptl *x, ckptl_set *s) {
    const ckpt_tensor *w = s->weight, *scale = s->scale;
    int bytes = w->type == CKPT_U8 || w->type == CKPT_I8 || w->type == CKPT_F8_E4M3;
    if (!bytes || w->n_dims != 3 || !ckptl_rule_of(s)->format) return 0;
    int turns = scale->n_dims > 2 && scale->dims[2] != 1;
    if (turns && (scale->n_dims != 3 || scale->dims[2] != w->dims[2]))
        return ckptl_shape_error(x, scale, "[experts,groups,outputs] or [experts,outputs,1]");
    s->turned = 1;
    s->weight = ckptl_turned_copy(x, w);
    if (s->weight && turns) s->scale = ckptl_turned_copy(x, scale);
    return s->weight && s->scale ? 0 : -1;
}

/* -- From tensors to a moe_matrix -------------------------------------------------------------------------------- */

typedef enum ckptl_part {
    CKPTL_WHOLE,
    CKPTL_GATE,
    CKPTL_UP
} ckptl_part; /* of the stored rows; the last two halve them */

typedef struct ckptl_want {  /* one matrix of the layer, for n experts */
    const char *role, *stem; /* stem: the full name; %u stands for the expert if it is there */
    uint32_t n;
    uint64_t rows, k; /* of the view, not of what is stored */
    ckptl_part part;
    int stacked, folded; /* one tensor for all experts: [E,rows,k], or folded [E*rows,k] */
    int transposed;      /* stored [k,rows] */
    int plain;           /* ignore biases and scales beside it */
} ckptl_want;

static inline void ckptl_stem_of(const char *stem, uint32_t expert, char *to, size_t size) {
    const char *at = strstr(stem, "%u");
    if (!at) snprintf(to, size, "%s", stem);
    else snprintf(to, size, "%.*s%" PRIu32 "%s", (int)(at - stem), stem, expert, at + 2);
}

static void ckptl_note(ckptl *x, const char *role, const char *name, const char *shape, const char *format) {
    if (x->info->n_parts == sizeof x->info->parts / sizeof *x->info->parts) return;
    ckpt_part *p = &x->info->parts[x->info->n_parts++];
    snprintf(p->role, sizeof p->role, "%s", role);
    ckpt_printable(p->name, sizeof p->name, name);
    snprintf(p->shape, sizeof p->shape, "%s", shape);
    snprintf(p->format, sizeof p->format, "%s", format);
}

/* Collects and checks the tensors of one expert, or of all in a stack: stored rows and inputs must be `rows` x k. */
static int ckptl_load_set(ckptl *x, const ckptl_want *w, uint32_t expert, uint64_t rows, ckptl_set *s) {
    char stem[CKPT_LAYER_TEXT * 2], want[160];
    ckptl_stem_of(w->stem, x->first_expert + expert, stem, sizeof stem);
    ckptl_collect(x->c, stem, s);
    if (!s->weight)
        return ckptl_fail(x->err, "tensor %s%s is missing (%s)", stem,
                          x->c->is_gguf ? ".weight" : ".weight or the like", w->role);
    if (w->transposed && ckptl_turn_set(x, s)) return -1;
    int in_out = w->transposed && !s->turned;
    uint64_t a = in_out ? w->k : rows, b = in_out ? rows : w->k;
    if (w->plain) s->scale2 = s->divisor = s->bias = NULL;
    if (w->plain && ckptl_rule_of(s)->format == MOE_FORMAT_NONE) s->scale = NULL;
    if (ckptl_dims(x->c, s, w->stacked, x->err)) return -1;
    uint64_t experts = w->stacked ? w->n : 1, total = w->folded ? a * w->n : a;
    if (w->stacked && s->experts == experts + x->d->n_zero_experts)
        experts = s->experts; /* room for experts without weights */
    if (s->experts != experts || s->rows != total || s->k != b) {
        if (w->stacked)
            snprintf(want, sizeof want, "%" PRIu64 " x %" PRIu64 " for %" PRIu64 " experts", a, b, experts);
        else snprintf(want, sizeof want, "%" PRIu64 " x %" PRIu64 " weights", total, b);
        return ckptl_shape_error(x, s->weight, want);
    }
    if (ckptl_identify(x, s, w->stacked)) return -1;
    if (s->g_idx && !s->packed)
        return ckptl_fail(x->err, "tensor %s: act-order of such weights is not supported", s->g_idx->name);
    if (s->zero && !s->packed) { /* packed along rows, one word for 8 */
        uint64_t lines = ckptl_up(s->rows, 8);
        if (s->format != MOE_FORMAT_INT4_GROUP || s->zero->type != CKPT_I32 || w->stacked || s->zero->n_dims != 2 ||
            s->zero->dims[0] != lines || s->zero->dims[1] != s->columns) {
            snprintf(want, sizeof want, "I32 [%" PRIu64 ",%" PRIu64 "]", lines, s->columns);
            return ckptl_shape_error(x, s->zero, want);
        }
    }
    if ((in_out || w->folded) && (s->format > MOE_FORMAT_BF16 || s->packed))
        return ckptl_fail(x->err, "tensor %s: %s weights cannot be read [in,out]", s->weight->name,
                          moe_format_name(s->format));
    if (!s->packed && !moe_row_bytes(s->format, (size_t)w->k))
        return ckptl_fail(x->err, "tensor %s: rows of %" PRIu64 " are no whole blocks of %s", s->weight->name, w->k,
                          moe_format_name(s->format));
    return 0;
}

static inline uint32_t ckptl_array_type(ckpt_dtype t) {
    return t == CKPT_F32    ? MOE_TYPE_F32
           : t == CKPT_BF16 ? MOE_TYPE_BF16
           : t == CKPT_F16  ? MOE_TYPE_F16
                            : MOE_TYPE_NONE;
}

/* Pointers that differ by expert: kept as an array where each expert has tensors of its own. */
static inline int ckptl_place_at(ckptl *x, const ckptl_want *w, uint32_t e, const void *p, const void **data,
                                 const void *const **list) {
    const void **all;
    if (w->stacked || w->folded || w->n == 1) {
        *data = p;
        return 0;
    }
    if (!e && !(*list = (const void *const *)ckptl_alloc(x, w->n * (uint64_t)sizeof **list))) return -1;
    memcpy(&all, list, sizeof all);
    all[e] = p;
    return 0;
}

/* A scalar per expert (or a pair: gate and up) that multiplies the whole matrix. */
static int ckptl_scalar(ckptl *x, const ckptl_want *w, uint32_t e, const ckpt_tensor *t, moe_array *a) {
    uint64_t n = ckpt_elements(t), experts = w->stacked ? w->n : 1;
    size_t item = t->type == CKPT_F32 ? 4 : 2;
    uint32_t type = ckptl_array_type(t->type);
    if (!type || (n != experts && n != 1 && !(w->part && n == 2 * experts)))
        return ckptl_fail(x->err, "tensor %s: %s with %" PRIu64 " values for %" PRIu64 " experts", t->name,
                          ckpt_type_name(t->type), n, experts);
    a->type = type;
    if (w->stacked && n == 1 && w->n > 1) { /* the same for all */
        const void **all = (const void **)ckptl_alloc(x, w->n * (uint64_t)sizeof *all);
        if (!all) return -1;
        for (uint32_t i = 0; i < w->n; i++) all[i] = t->data;
        a->expert = (const void *const *)all;
        return 0;
    }
    if (n == 2 * experts) a->expert_stride = 2 * item, a->offset = w->part == CKPTL_UP ? item : 0;
    return ckptl_place_at(x, w, e, t->data, &a->data, &a->expert);
}

static int ckptl_bias_of(ckptl *x, const ckptl_want *w, uint32_t e, const ckpt_tensor *t, uint64_t rows,
                         moe_array *a) {
    uint64_t want = rows * (w->stacked || w->folded ? w->n : 1);
    char text[64];
    a->type = ckptl_array_type(t->type);
    if (!a->type) return ckptl_fail(x->err, "tensor %s: a bias of %s", t->name, ckpt_type_name(t->type));
    snprintf(text, sizeof text, "%" PRIu64 " values", want);
    if (ckpt_elements(t) != want) return ckptl_shape_error(x, t, text);
    return ckptl_place_at(x, w, e, t->data, &a->data, &a->expert);
}

/* Strides and offsets of the view: `part` of `rows` stored rows. */
static int ckptl_view(const ckptl *x, const ckptl_want *w, const ckptl_set *s, uint64_t rows, moe_matrix *m) {
    size_t half = (size_t)w->rows, up = w->part == CKPTL_UP, split = w->part && x->interleaved;
    if (m->format == MOE_FORMAT_NONE) m->format = s->format;
    if (w->transposed && !s->turned) {
        size_t item = m->format == MOE_FORMAT_F32 ? 4 : 2;
        m->row_stride = split ? 2 * item : item, m->k_stride = (size_t)rows * item;
        m->offset += up ? (split ? item : half * item) : 0;
        m->expert_stride = (size_t)(rows * w->k) * item;
    } else {
        size_t line = m->row_stride ? m->row_stride : moe_row_bytes(m->format, (size_t)w->k);
        m->expert_stride = line * (size_t)rows;
        m->row_stride = split ? 2 * line : line;
        m->offset += up ? (split ? line : half * line) : 0;
    }
    if (m->bias.type) {
        size_t item = m->bias.type == MOE_TYPE_F32 ? 4 : 2;
        m->bias.stride = split ? 2 * item : item, m->bias.expert_stride = (size_t)rows * item;
        m->bias.offset = up ? (split ? item : half * item) : 0;
    }
    if (m->scale.type) {
        size_t item = m->scale.type == MOE_TYPE_F32                                      ? 4
                      : m->scale.type == MOE_TYPE_E8M0 || m->scale.type == MOE_TYPE_E4M3 ? 1
                                                                                         : 2;
        size_t line = m->scale.row_stride ? m->scale.row_stride : (size_t)s->columns * item;
        int single = rows <= m->scale.rows; /* one block of rows holds gate and up */
        if (w->part && !single && (half % m->scale.rows || (split && m->scale.rows != 1)))
            return ckptl_fail(x->err, "tensor %s: a block of %" PRIu32 " rows spans gate and up", s->scale->name,
                              m->scale.rows);
        m->scale.expert_stride = line * (size_t)ckptl_up(rows, m->scale.rows);
        if (up && !single) m->scale.offset += split ? line : half / m->scale.rows * line;
        m->scale.row_stride = split && !single ? 2 * line : line;
    }
    if (m->zero.type) {
        size_t per = m->zero.type == MOE_TYPE_U4X8 ? 8 : 1;
        size_t line = m->zero.row_stride ? m->zero.row_stride : (size_t)s->columns * 4;
        if (w->part && (half % per || (split && per != 1)))
            return ckptl_fail(x->err, "tensor %s: a word of zero points spans gate and up", s->zero->name);
        m->zero.offset += up ? (split ? line : half / per * line) : 0;
        m->zero.row_stride = split ? 2 * line : line;
    }
    return 0;
}

/* What all experts must have in common. */
static inline int ckptl_alike(const ckptl_set *a, const ckptl_set *b) {
    return a->format == b->format && a->packed == b->packed && a->scale_type == b->scale_type &&
           a->grid_rows == b->grid_rows && a->grid_cols == b->grid_cols && a->whole == b->whole &&
           a->lines == b->lines && a->columns == b->columns && !a->zero == !b->zero && !a->scale2 == !b->scale2 &&
           !a->divisor == !b->divisor && !a->bias == !b->bias && a->weight->type == b->weight->type &&
           (!a->bias || a->bias->type == b->bias->type) &&
           (!a->scale || !b->scale || a->scale->type == b->scale->type) &&
           (!a->scale2 || a->scale2->type == b->scale2->type) &&
           (!a->divisor || a->divisor->type == b->divisor->type);
}

static int ckptl_repack_expert(ckptl *x, const ckptl_want *w, uint32_t e, const ckptl_set *s, uint64_t rows,
                               moe_matrix *m) {
    ckptl_pack p;
    moe_matrix one;
    if (ckptl_plan(s, &p, x->err)) return -1;
    uint8_t *to = (uint8_t *)ckptl_alloc(x, p.size);
    if (!to || ckptl_pack_set(x->c, s, &p, to, x->err) ||
        ckpt_repack_use(to, (size_t)p.size, rows, w->k, &one, x->err))
        return -1;
    moe_array bias = m->bias;
    moe_matrix before = *m;
    if (e && (one.format != m->format || one.scale.cols != m->scale.cols || one.scale.type != m->scale.type))
        return ckptl_fail(x->err, "tensor %s differs in kind from expert 0's", s->weight->name);
    *m = one;
    m->bias = bias;
    m->data = NULL, m->expert = before.expert, m->scale.data = NULL, m->scale.expert = before.scale.expert;
    m->zero.data = NULL, m->zero.expert = before.zero.expert;
    if (ckptl_place_at(x, w, e, to, &m->data, &m->expert)) return -1;
    m->scale.expert = one.scale.type ? m->expert : NULL, m->scale.data = one.scale.type ? m->data : NULL;
    m->zero.expert = one.zero.type ? m->expert : NULL, m->zero.data = one.zero.type ? m->data : NULL;
    return 0;
}

/* One expert's pointers into m. */
static int ckptl_place_set(ckptl *x, const ckptl_want *w, uint32_t e, const ckptl_set *s, uint64_t rows,
                           moe_matrix *m) {
    if (s->bias && ckptl_bias_of(x, w, e, s->bias, rows, &m->bias)) return -1;
    if (s->packed) return ckptl_repack_expert(x, w, e, s, rows, m);
    m->format = s->format;
    if (ckptl_place_at(x, w, e, s->weight->data, &m->data, &m->expert)) return -1;
    if (s->scale && s->whole && ckptl_scalar(x, w, e, s->scale, &m->scale2)) return -1;
    if (s->scale && !s->whole) {
        m->scale.type = s->scale_type, m->scale.rows = s->grid_rows, m->scale.cols = s->grid_cols;
        if (ckptl_place_at(x, w, e, s->scale->data, &m->scale.data, &m->scale.expert)) return -1;
    }
    if (s->zero) {
        m->zero.type = MOE_TYPE_U4X8, m->zero.rows = 1, m->zero.cols = s->grid_cols;
        if (ckptl_place_at(x, w, e, s->zero->data, &m->zero.data, &m->zero.expert)) return -1;
    }
    const ckpt_tensor *factor = s->divisor ? s->divisor : s->scale2;
    if (!factor) return 0;
    m->scale2_divides = s->divisor != NULL;
    return ckptl_scalar(x, w, e, factor, &m->scale2);
}

static void ckptl_note_matrix(ckptl *x, const ckptl_want *w, const ckptl_set *s, const moe_matrix *m) {
    char name[CKPT_LAYER_TEXT * 2], shape[64], format[64];
    const char *at = strstr(w->stem, "%u");
    const char *part = !w->part                ? ""
                       : x->interleaved        ? " (every other row)"
                       : w->part == CKPTL_GATE ? " (first rows)"
                                               : " (last rows)";
    if (at) snprintf(name, sizeof name, "%.*s*%s%s%s", (int)(at - w->stem), w->stem, at + 2, s->suffix, part);
    else snprintf(name, sizeof name, "%s%s%s", w->stem, s->suffix, part);
    if (w->n > 1 || w->stacked)
        snprintf(shape, sizeof shape, "[%" PRIu32 ",%" PRIu64 ",%" PRIu64 "]", w->n, w->rows, w->k);
    else snprintf(shape, sizeof shape, "[%" PRIu64 ",%" PRIu64 "]", w->rows, w->k);
    int n = snprintf(format, sizeof format, "%s", moe_format_name(m->format));
    if (m->scale.type && n > 0) {
        uint32_t cols = m->scale.cols;
        if (cols == UINT32_MAX) n += snprintf(format + n, sizeof format - (size_t)n, ", a scale per row");
        else
            n += snprintf(format + n, sizeof format - (size_t)n, ", a scale per %" PRIu32 "x%" PRIu32, m->scale.rows,
                          cols);
    }
    if (m->zero.type) n += snprintf(format + n, sizeof format - (size_t)n, ", zero points");
    if (s->packed) n += snprintf(format + n, sizeof format - (size_t)n, ", repacked");
    if (w->transposed)
        snprintf(format + n, sizeof format - (size_t)n, s->turned ? ", [in,out] turned" : ", [in,out]");
    ckptl_note(x, w->role, name, shape, format);
}

/* The matrix that `w` describes. */
static int ckptl_matrix(ckptl *x, const ckptl_want *w, moe_matrix *m) {
    ckptl_set first, s;
    uint64_t rows = w->part ? 2 * w->rows : w->rows;
    uint32_t count = strstr(w->stem, "%u") ? w->n : 1;
    memset(m, 0, sizeof *m);
    memset(&first, 0, sizeof first);
    for (uint32_t e = 0; e < count; e++) {
        if (ckptl_load_set(x, w, e, rows, &s)) return -1;
        if (!e) first = s;
        if (!ckptl_alike(&first, &s))
            return ckptl_fail(x->err, "tensor %s differs in kind from expert 0's", s.weight->name);
        if (ckptl_place_set(x, w, e, &s, rows, m)) return -1;
    }
    if (ckptl_view(x, w, &first, rows, m)) return -1;
    ckptl_note_matrix(x, w, &first, m);
    return 0;
}

/* A vector of n values named prefix + name, if it exists (or `required`); its shape may have ones: [1,E]. 1: found.
   */
static int ckptl_vector(ckptl *x, const char *name, uint64_t n, const char *role, moe_array *a) {
    const ckpt_tensor *t = ckpt_find(x->c, name);
    char want[96], have[96];
    if (!t) return 0;
    a->type = ckptl_array_type(t->type);
    if (!a->type) return ckptl_fail(x->err, "tensor %s: %s is no type of a vector", t->name, ckpt_type_name(t->type));
    snprintf(want, sizeof want, "%" PRIu64 " values", n);
    int pair = x->two_banks && ckpt_elements(t) == 2 * n;
    if (ckpt_elements(t) != n && !pair) return ckptl_shape_error(x, t, want);
    a->data = t->data;
    if (pair && x->layer->bank) a->offset = (size_t)n * (a->type == MOE_TYPE_F32 ? 4 : 2);
    ckptl_note(x, role, t->name, ckptl_dims_text(t->dims, t->n_dims, have, sizeof have), ckpt_type_name(t->type));
    return 1;
}

/* -- Schemes: how experts are named and laid out ----------------------------------------------------------------- */

#define CKPTL_FUSED     1u /* `up` holds gate and up rows                               */
#define CKPTL_STACKED   2u /* one tensor for all experts                                */
#define CKPTL_FOLDED    4u /* one tensor [E * rows, k]; down is [E * inputs, rows]      */
#define CKPTL_ALTERNATE 8u /* fused rows alternate whatever the family                  */

typedef struct ckptl_scheme { /* stems relative to the block; %u is the expert; gate NULL: ungated or fused */
    const char *gate, *up, *down;
    uint32_t flags;
} ckptl_scheme;

static const ckptl_scheme ckptl_experts[] = {
    {"experts.%u.gate_proj", "experts.%u.up_proj", "experts.%u.down_proj", 0},
    {"experts.%u.w1", "experts.%u.w3", "experts.%u.w2", 0},
    {"experts.%u.linear", "experts.%u.linear_v", "experts.%u.linear_1", 0},
    {"experts.%u.gate", "experts.%u.up", "experts.%u.down", 0},
    {"experts.%u.wi_0", "experts.%u.wi_1", "experts.%u.wo", 0},
    {"experts.expert_%u.wi_0", "experts.expert_%u.wi_1", "experts.expert_%u.wo", 0},
    {NULL, "experts.%u.gate_up_proj", "experts.%u.down_proj", CKPTL_FUSED},
    {NULL, "experts.%u.up_gate_proj", "experts.%u.down_proj", CKPTL_FUSED}, /* gate first all the same */
    {NULL, "experts.%u.gate_and_up_proj", "experts.%u.down_proj", CKPTL_FUSED},
    {NULL, "experts.%u.w13", "experts.%u.w2", CKPTL_FUSED},
    {NULL, "experts.%u.up_proj", "experts.%u.down_proj", 0},
    {NULL, "experts.expert_%u.wi", "experts.expert_%u.wo", 0},
    {NULL, "experts.%u.wi", "experts.%u.wo", 0},
    {NULL, "experts.expert_%u.fc1", "experts.expert_%u.fc2", 0},
    {NULL, "experts.%u.fc1", "experts.%u.fc2", 0},
    {NULL, "experts.%u.w1", "experts.%u.w2", 0},
    {NULL, "experts.gate_up_proj", "experts.down_proj", CKPTL_FUSED | CKPTL_STACKED},
    {NULL, "experts.w13_weight", "experts.w2_weight", CKPTL_FUSED | CKPTL_STACKED | CKPTL_ALTERNATE}, /* Inkling */
    {NULL, "experts.fc1", "experts.fc2", CKPTL_FUSED | CKPTL_STACKED},
    {NULL, "gate_up_proj", "down_proj", CKPTL_FUSED | CKPTL_STACKED},
    {"experts.gate_proj", "experts.up_proj", "experts.down_proj", CKPTL_STACKED},
    {"experts.w1", "experts.w3", "experts.w2", CKPTL_STACKED},
    {"switch_mlp.gate_proj", "switch_mlp.up_proj", "switch_mlp.down_proj", CKPTL_STACKED},
    {"gate_proj", "up_proj", "down_proj", CKPTL_STACKED},
    {"linear", "linear_v", "linear_1", CKPTL_STACKED}, /* Grok-1 as first released */
    {NULL, "experts.up_proj", "experts.down_proj", CKPTL_STACKED},
    {NULL, "experts.wi", "experts.wo", CKPTL_STACKED},
    {NULL, "experts.fc1", "experts.fc2", CKPTL_STACKED},
    {NULL, "input_linear", "output_linear", CKPTL_FUSED | CKPTL_STACKED},
    {"experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2", CKPTL_FOLDED},
    {NULL, "experts.mlp.w1", "experts.mlp.w2", CKPTL_FOLDED},
    {NULL, "mlp1_weight", "mlp2_weight", CKPTL_FUSED | CKPTL_STACKED | CKPTL_ALTERNATE},
};
static const ckptl_scheme ckptl_gguf_experts[] = {
    {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", CKPTL_STACKED},
    {NULL, "ffn_gate_up_exps", "ffn_down_exps", CKPTL_FUSED | CKPTL_STACKED},
    {"ffn_gate.%u", "ffn_up.%u", "ffn_down.%u", 0},
    {NULL, "ffn_up_exps", "ffn_down_exps", CKPTL_STACKED},
};
/* Shared experts: a prefix (after ^: of the layer, not of the block), then one of the shapes. */
static const char *const ckptl_shared_prefixes[] = {
    "shared_experts.", "shared_expert.",   "shared_mlp.",     "^shared_mlp.",         "^share_expert.",
    "share_expert.",   "^shared_experts.", "^shared_expert.", "^mlp.shared_experts.", "shared_experts.0."};
static const ckptl_scheme ckptl_shared_schemes[] = {
    {"gate_proj", "up_proj", "down_proj", 0},
    {"w1", "w3", "w2", 0},
    {NULL, "gate_up_proj", "down_proj", CKPTL_FUSED},
    {NULL, "gate_and_up_proj", "down_proj", CKPTL_FUSED},
    {NULL, "input_linear", "output_linear", CKPTL_FUSED},
    {NULL, "shared_w13_weight", "shared_w2_weight", CKPTL_FUSED | CKPTL_ALTERNATE},
    {NULL, "w13_weight", "w2_weight", CKPTL_FUSED},
    {"linear", "linear_v", "linear_1", 0},
    {NULL, "up_proj", "down_proj", 0},
    {NULL, "w1", "w2", 0},
};
static const ckptl_scheme ckptl_gguf_shared = {"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", 0};
static const ckptl_scheme ckptl_gguf_dense = {"ffn_gate", "ffn_up", "ffn_down", 0};
static const ckptl_scheme ckptl_gguf_shared_ungated = {NULL, "ffn_up_shexp", "ffn_down_shexp", 0};

static const char *const ckptl_router_stems[] = {
    "gate",        "router",         "router.layer",  "router.gate",     "router.classifier", "gate.wg",
    "router.proj", "primary_router", "router.linear", "gate.classifier", "^router",           NULL};
/* Relative to the block; a bias of the linear map itself. ffn.gate.bias is DeepSeek's selection bias, not this. */
static const char *const ckptl_router_bias[] = {
    "router.bias",  "gate.bias",        "router.classifier.bias", "router.layer.bias",
    "gate.wg.bias", "router.gate.bias", "router.proj.bias",       NULL};
static const char *const ckptl_select_bias[] = {"gate.e_score_correction_bias",
                                                "e_score_correction_bias",
                                                "moe_statics.e_score_correction_bias",
                                                "router.e_score_correction_bias",
                                                "experts.e_score_correction_bias",
                                                "gate.expert_bias",
                                                "expert_bias",
                                                "router.expert_bias",
                                                "router_bias",
                                                "gate.correction_bias",
                                                "gate.moe_statics.e_score_correction_bias",
                                                NULL};

static inline char *ckptl_name(const ckptl *x, const char *relative, char *to, size_t size) {
    if (*relative == '^') snprintf(to, size, "%s%.180s", x->layer->prefix, relative + 1);
    else snprintf(to, size, "%s%.180s", x->base, relative);
    return to;
}
static inline int ckptl_has(const ckptl *x, const char *prefix, const char *relative) {
    char stem[CKPT_LAYER_TEXT * 2], first[CKPT_LAYER_TEXT * 2], full[CKPT_LAYER_TEXT * 2];
    ckptl_set s;
    if (!relative) return 0;
    snprintf(stem, sizeof stem, "%s%s", prefix, relative);
    ckptl_stem_of(stem, x->first_expert, first, sizeof first);
    ckptl_collect(x->c, ckptl_name(x, first, full, sizeof full), &s);
    return s.weight != NULL;
}

/* The scheme of which most is there: a complete one, else the one that lacks the least, to say what is missing. */
static const ckptl_scheme *ckptl_choose(const ckptl *x, const char *prefix, const ckptl_scheme *list, size_t n,
                                        int *complete) {
    const ckptl_scheme *best = NULL;
    int most = 0;
    for (size_t i = 0; i < n; i++) {
        const ckptl_scheme *s = &list[i];
        int needs = s->gate ? 3 : 2,
            has = ckptl_has(x, prefix, s->gate) + ckptl_has(x, prefix, s->up) + ckptl_has(x, prefix, s->down);
        int odd =
            !s->gate && !(s->flags & CKPTL_FUSED) && !x->d->ffn.ungated; /* an ungated scheme for a gated family */
        int points =
            has * 4 + (has == needs ? 2 : 0) + (odd ? -6 : 0) + (s->flags & CKPTL_FUSED && has == needs ? 1 : 0);
        if (has && points > most) most = points, best = s, *complete = has == needs && !odd;
    }
    return best;
}

/* Which way round a stack is: rows of k inputs, or [in, out] as Llama-4, gpt-oss and Haiku have it. d: the experts'
   input width. */
static int ckptl_transposed(const ckptl *x, const ckptl_scheme *s, uint64_t d, const char *up_stem,
                            const char *down_stem) {
    ckptl_set up, down;
    if (s->flags & CKPTL_FOLDED || !(s->flags & CKPTL_STACKED) || x->c->is_gguf) return 0;
    ckptl_collect(x->c, up_stem, &up);
    ckptl_collect(x->c, down_stem, &down);
    if (!up.weight || up.weight->n_dims != 3) return 0;
    if (ckptl_is_haiku(&up)) return 1;
    uint64_t per = ckptl_rule_of(&up)->per_word, a = up.weight->dims[1] * per, b = up.weight->dims[2] * per;
    if (a != d || (b == d && !(down.weight && down.weight->n_dims == 3))) return 0;
    if (b != d) return 1;
    /* d x d: a fused stack is half as wide as it looks, so down tells */
    return s->flags & CKPTL_FUSED ? down.weight->dims[2] == d && down.weight->dims[1] != d : 0;
}

/* -- The layer --------------------------------------------------------------------------------------------------- */

typedef struct ckptl_bank { /* routed or shared experts */
    const char *what, *prefix;
    const ckptl_scheme *scheme;
    uint32_t n;
    uint64_t d, ff;
    int stacked;
} ckptl_bank;

/* The width of the experts, from down's (or up's) own shape. */
static int ckptl_width(ckptl *x, ckptl_bank *b, const char *up, int transposed) {
    char stem[CKPT_LAYER_TEXT * 2];
    ckptl_set s;
    ckptl_stem_of(up, x->first_expert, stem, sizeof stem);
    ckptl_collect(x->c, stem, &s);
    if (!s.weight) return ckptl_fail(x->err, "tensor %s.weight is missing (%s up)", stem, b->what);
    if (ckptl_dims(x->c, &s, b->stacked, x->err)) return -1;
    uint64_t rows = transposed ? s.weight->dims[2] : s.rows, divide = b->scheme->flags & CKPTL_FUSED ? 2 : 1;
    if (b->scheme->flags & CKPTL_FOLDED) divide = b->n;
    if (!rows || rows % divide || rows / divide > UINT32_MAX)
        return ckptl_fail(x->err, "tensor %s: %" PRIu64 " rows are not %" PRIu64 " times a width", s.weight->name,
                          rows, divide);
    b->ff = rows / divide;
    return 0;
}

static int ckptl_load_bank(ckptl *x, ckptl_bank *b, moe_matrix *gate, moe_matrix *up, moe_matrix *down) {
    char stems[3][CKPT_LAYER_TEXT * 2], roles[3][24];
    const char *const names[3] = {b->scheme->gate ? b->scheme->gate : b->scheme->up, b->scheme->up, b->scheme->down};
    static const char *const kinds[3] = {"gate", "up", "down"};
    uint32_t flags = b->scheme->flags;
    int saved = x->interleaved;
    for (int i = 0; i < 3; i++) {
        char relative[CKPT_LAYER_TEXT];
        snprintf(relative, sizeof relative, "%s%s", b->prefix, names[i]);
        ckptl_name(x, relative, stems[i], sizeof stems[i]);
        snprintf(roles[i], sizeof roles[i], "%s%s", b->what, kinds[i]);
    }
    b->stacked = flags & CKPTL_STACKED ? 1 : b->stacked;
    int transposed = ckptl_transposed(x, b->scheme, b->d, stems[1], stems[2]);
    if (!b->ff && ckptl_width(x, b, stems[1], transposed)) return -1;
    ckptl_want w = {roles[0],   stems[0], b->n, b->ff, b->d, CKPTL_WHOLE, b->stacked, flags & CKPTL_FOLDED ? 1 : 0,
                    transposed, 0};
    if (flags & CKPTL_ALTERNATE) x->interleaved = 1;
    if (b->scheme->gate || flags & CKPTL_FUSED) {
        w.part = flags & CKPTL_FUSED ? CKPTL_GATE : CKPTL_WHOLE;
        if (ckptl_matrix(x, &w, gate)) return -1;
    }
    w.role = roles[1], w.stem = stems[1], w.part = flags & CKPTL_FUSED ? CKPTL_UP : CKPTL_WHOLE;
    if (ckptl_matrix(x, &w, up)) return -1;
    w.role = roles[2], w.stem = stems[2], w.part = CKPTL_WHOLE, w.rows = b->d, w.k = b->ff;
    if (flags & CKPTL_FOLDED) w.transposed = 1; /* DBRX: [E * ff, d], used untransposed */
    if (ckptl_matrix(x, &w, down)) return -1;
    x->interleaved = saved;
    return 0;
}

static int ckptl_router(ckptl *x) {
    moe_desc *d = x->d;
    char stem[CKPT_LAYER_TEXT * 2] = "";
    ckptl_set s;
    memset(&s, 0, sizeof s);
    if (x->c->is_gguf) ckptl_collect(x->c, ckptl_name(x, "ffn_gate_inp", stem, sizeof stem), &s);
    if (x->layer->bank) ckptl_collect(x->c, ckptl_name(x, "gate.weight_1", stem, sizeof stem), &s);
    for (size_t i = 0; !x->c->is_gguf && !s.weight && ckptl_router_stems[i]; i++)
        ckptl_collect(x->c, ckptl_name(x, ckptl_router_stems[i], stem, sizeof stem), &s);
    if (!s.weight || s.weight->n_dims != 2)
        return ckptl_fail(x->err, "layer %s: no router (such as %s%s)", x->layer->name, x->base,
                          x->c->is_gguf ? "ffn_gate_inp.weight" : "gate.weight");
    if (ckptl_dims(x->c, &s, 0, x->err)) return -1;
    int in_out = ckptl_is_haiku(&s) || /* ERNIE-VL: */
                 (x->two_banks && s.k == d->n_experts && s.rows == d->d_model && s.k != s.rows);
    if (in_out) s.k = s.weight->dims[0], s.rows = s.weight->dims[1];
    if (!d->d_model && s.k <= UINT32_MAX) d->d_model = (uint32_t)s.k, CKPTL_ORIGIN(x, d_model, "tensor shape");
    uint64_t sinks = d->shared.gate_kind == MOE_SHARED_ROUTER_SINK ? d->shared.count : 0;
    uint64_t more = sinks + d->n_zero_experts;
    if (!d->n_experts && s.rows > more && s.rows - more <= UINT32_MAX)
        d->n_experts = (uint32_t)(s.rows - more), CKPTL_ORIGIN(x, n_experts, "tensor shape");
    if (!d->n_experts || s.rows != d->n_experts + more) {
        char want[96];
        snprintf(want, sizeof want, "%" PRIu64 " rows (experts%s)", d->n_experts + more,
                 more ? ", zero and shared experts" : "");
        return ckptl_shape_error(x, s.weight, want);
    }
    ckptl_want w = {"router", stem, 1, s.rows, d->d_model, CKPTL_WHOLE, 0, 0, in_out, 1};
    return ckptl_matrix(x, &w, &d->router.weight);
}

/* The first of the names that exists, as a vector of n values. */
static int ckptl_first_vector(ckptl *x, const char *const *names, uint64_t n, const char *role, moe_array *a) {
    char name[CKPT_LAYER_TEXT * 2];
    for (; *names; names++) {
        int found = ckptl_vector(x, ckptl_name(x, *names, name, sizeof name), n, role, a);
        if (found) return found < 0 ? -1 : 0;
    }
    return 0;
}

/* Biases and scales of the router, and the hash table. */
static int ckptl_router_vectors(ckptl *x) {
    static const char *const gguf_bias[] = {"ffn_gate_inp.bias", NULL}, *const gguf_select[] = {
                                                                            "exp_probs_b.bias", "exp_probs_b",
                                                                            "exp_probs_b.weight", NULL};
    static const char *const scale[] = {"router.per_expert_scale", "per_expert_scale", "router_scale", NULL},
                             *const none[] = {NULL};
    static const char *const input[] = {"router.scale", NULL}, *const gguf_input[] = {"ffn_gate_inp.scale",
                                                                                      "ffn_gate_inp_s.weight", NULL};
    static const char *const own[] = {"gate.bias", NULL}, *const out_bias[] = {"bias", NULL},
                             *const nomic_bias[] = {"experts.bias", NULL};
    moe_desc *d = x->d;
    int gguf = x->c->is_gguf, sink = d->shared.gate_kind == MOE_SHARED_ROUTER_SINK;
    uint64_t ids = (uint64_t)d->n_experts + d->n_zero_experts, rows = ids + (sink ? d->shared.count : 0);
    size_t n = strlen(x->base);
    int selects = sink || (n >= 4 && !strcmp(x->base + n - 4, "ffn.")); /* there gate.bias is the selection's */
    const char *const *bias = gguf ? gguf_bias : selects ? none : ckptl_router_bias;
    if (!strcmp(x->layer->base, "layer.1.mlp.") || strstr(x->base, "coder.")) bias = ckptl_router_bias;
    if (ckptl_first_vector(x, bias, rows, "router bias", &d->router.weight.bias)) return -1;
    if (ckptl_first_vector(x, gguf ? gguf_select : ckptl_select_bias, ids, "selection bias", &d->router.select_bias))
        return -1;
    if (!gguf && selects && !d->router.select_bias.type && !d->router.weight.bias.type &&
        ckptl_first_vector(x, own, ids, "selection bias", &d->router.select_bias))
        return -1;
    if (!gguf && ckptl_first_vector(x, scale, ids, "expert scale", &d->router.expert_scale)) return -1;
    if (ckptl_first_vector(x, gguf ? gguf_input : input, d->d_model, "router scale", &d->router.input_scale))
        return -1;
    if (!gguf && ckptl_first_vector(x,
                                    strstr(x->info->family, "nomic")        ? nomic_bias
                                    : ckptl_same(x->info->family, "jetmoe") ? out_bias
                                                                            : none,
                                    d->d_model, "output bias", &d->ffn.out_bias))
        return -1;
    char name[CKPT_LAYER_TEXT * 2];
    const ckpt_tensor *t =
        ckpt_find(x->c, ckptl_name(x, gguf ? "ffn_gate_tid2eid" : "gate.tid2eid", name, sizeof name));
    if (!t) t = ckpt_findf(x->c, "%s.weight", name);
    if (!t) {
        if (d->router.pick == MOE_PICK_TABLE) d->router.pick = MOE_PICK_TOP_K;
        return 0;
    }
    char want[96], have[96];
    snprintf(want, sizeof want, "I32 or I64 [tokens,%" PRIu32 "]", d->top_k);
    if ((t->type != CKPT_I32 && t->type != CKPT_I64) || t->n_dims != 2 || t->dims[1] != d->top_k || !t->dims[0] ||
        t->dims[0] > INT32_MAX)
        return ckptl_shape_error(x, t, want);
    d->router.pick = MOE_PICK_TABLE, d->router.table = t->data;
    d->router.table_rows = (uint32_t)t->dims[0], d->router.table_bytes = t->type == CKPT_I64 ? 8 : 4;
    CKPTL_ORIGIN(x, router.pick, "tensor %s", t->name);
    ckptl_note(x, "table", t->name, ckptl_dims_text(t->dims, t->n_dims, have, sizeof have), ckpt_type_name(t->type));
    return 0;
}

/* Groups: how many is the configuration's, by which statistic is the preset's unless topk_method says. */
static void ckptl_groups(ckptl *x) {
    moe_router *r = &x->d->router;
    const char *method = x->c->is_gguf ? "" : ckptl_word(x, "topk_method");
    uint32_t before = r->group;
    if (r->group == MOE_GROUP_PER_GROUP) {
        if (!r->n_group && ckptl_listed("PanguProMoE PanGuMoE", x->info->family))
            r->n_group = x->d->top_k, CKPTL_ORIGIN(x, router.n_group, "one expert of each group");
        if (r->n_group > 1 && r->n_group < UINT32_MAX) return;
        r->group = MOE_GROUP_NONE;
    } else if (ckptl_same(method, "greedy") || r->n_group <= 1 || !r->topk_group) {
        r->group = MOE_GROUP_NONE;
    } else if (ckptl_same(method, "group_limited_greedy")) {
        r->group = MOE_GROUP_MAX;
    } else if (ckptl_same(method, "noaux_tc")) {
        r->group = MOE_GROUP_TOP2_SUM;
    } else if (r->group == MOE_GROUP_NONE && x->origin[0]) { /* a configuration with groups for a family without */
        r->group = r->select_bias.type ? MOE_GROUP_TOP2_SUM : MOE_GROUP_MAX;
    }
    if (r->group == MOE_GROUP_NONE) r->n_group = r->topk_group = 0;
    if (r->group != before && r->group && *method) CKPTL_ORIGIN(x, router.group, "config key topk_method");
    else if (r->group != before)
        CKPTL_ORIGIN(x, router.group,
                     r->group  ? "number of groups"
                     : *method ? "config key topk_method"
                               : "one group");
}

/* Clamps: a limit per model or per layer; 0 or absence from a list of layers means none. */
static int ckptl_clamps(ckptl *x) {
    static const char *const keys[2] = {
        "swiglu_limit swiglu_limits expert_swiglu_limit_list moe_swiglu_limit",
        "swiglu_limits_shared share_expert_swiglu_limit_list shared_swiglu_limit swiglu_limit_shared"};
    static const char *const gguf[2] = {"swiglu_clamp_exp", "swiglu_clamp_shexp"};
    moe_desc *d = x->d;
    int late =
        strstr(x->info->family, "step3") || strstr(x->info->family, "step35") || strstr(x->info->family, "bailing");
    int both = d->shared.clamp != MOE_CLAMP_NONE; /* the family's shared experts have the same */
    for (int i = 0; i < 2; i++) {
        uint32_t *clamp = i ? &d->shared.clamp : &d->ffn.clamp;
        float *limit = i ? &d->shared.limit : &d->ffn.limit;
        char key[CKPT_MAX_KEY];
        double value = 0;
        int found = ckptl_number(x, x->c->is_gguf ? gguf[i] : keys[i], (double)FLT_MAX, &value, key, sizeof key);
        if (found < 0) return -1;
        if (found && ckpt_get_count(x->c, key) && x->layer->index >= ckpt_get_count(x->c, key)) value = 0;
        if (!found && i && both && x->origin[0]) { /* no key of its own */
            d->shared.limit = d->ffn.limit, d->shared.clamp = d->ffn.clamp;
            break;
        }
        if (!found) continue;
        if (value < 0) return ckptl_fail(x->err, "config key %s: %g is no limit", key, value);
        *limit = (float)value;
        if (!(value > 0)) *clamp = MOE_CLAMP_NONE;
        else if (*clamp == MOE_CLAMP_NONE) *clamp = late ? MOE_CLAMP_POST : MOE_CLAMP_PRE;
        ckptl_origin(x, i ? offsetof(moe_desc, shared.clamp) : offsetof(moe_desc, ffn.clamp), "config key %s", key);
        ckptl_origin(x, i ? offsetof(moe_desc, shared.limit) : offsetof(moe_desc, ffn.limit), "config key %s", key);
        if (!i && !x->c->is_gguf && both)
            d->shared.limit = d->ffn.limit, CKPTL_ORIGIN(x, shared.limit, "config key %s", key);
    }
    if (!d->shared.d_ff) d->shared.clamp = MOE_CLAMP_NONE, d->shared.limit = 0;
    return 0;
}

/* What single families say in keys of their own. */
static int ckptl_special_keys(ckptl *x) {
    moe_desc *d = x->d;
    char key[CKPT_MAX_KEY];
    ckpt_value v;
    double value = 0;
    int found;
    const char *strategy = ckptl_word(x, "shared_expert_combination_strategy");
    if (!strcmp(strategy, "average") || (!*strategy && ckptl_listed("cohere2_moe cohere2moe", x->info->family))) {
        d->ffn.combine_scale = 0.5f;
        CKPTL_ORIGIN(x, ffn.combine_scale,
                     *strategy ? "config key shared_expert_combination_strategy" : "the class's default, average");
    }
    if (x->c->is_gguf) {
        if (ckptl_value(x, "expert_gating_func", &v, key, sizeof key) && v.u == 3) /* softmax over the selected */
            d->router.weight_from = MOE_WEIGHT_SOFTMAX_SELECTED, d->router.norm = MOE_NORM_NONE;
        return 0;
    }
    if (!strcmp(ckptl_word(x, "expert_selection_fn"), "softmax")) { /* Cohere2: over the selected */
        d->router.weight_from = MOE_WEIGHT_SOFTMAX_SELECTED, d->router.norm = MOE_NORM_NONE,
        d->router.select_on = MOE_SELECT_LOGIT;
        CKPTL_ORIGIN(x, router.weight_from, "config key expert_selection_fn");
        CKPTL_ORIGIN(x, router.select_on, "config key expert_selection_fn");
        CKPTL_ORIGIN(x, router.norm, "config key expert_selection_fn");
    }
    if (ckptl_value(x, "moe_primary_router_apply_softmax", &v, key, sizeof key) && v.type == CKPT_VALUE_BOOL) {
        d->router.score = v.u ? MOE_SCORE_SOFTMAX : MOE_SCORE_SIGMOID;
        CKPTL_ORIGIN(x, router.score, "config key %s", key);
    }
    if (d->router.pick == MOE_PICK_SPARSEMIXER &&
        (found = ckptl_number(x, "router_jitter_noise", 1e6, &value, key, sizeof key)) != 0) {
        if (found < 0) return -1;
        d->router.jitter = (float)value;
        CKPTL_ORIGIN(x, router.jitter, "config key %s", key);
    }
    if (d->ffn.expert_out_scale > 0 &&
        (found = ckptl_number(x, "moe_token_dropout", 1, &value, key, sizeof key)) != 0) {
        if (found < 0) return -1;
        d->ffn.expert_out_scale = (float)(1.0 - value);
        CKPTL_ORIGIN(x, ffn.expert_out_scale, "1 - config key %s", key);
    }
    if ((found = ckptl_number(x, "moe_eval_capacity_token_fraction", 1e9, &value, key, sizeof key)) < 0) return -1;
    if (found && value > 0) { /* of all tokens: 1 drops nothing */
        d->router.capacity = 0, d->router.capacity_factor = value < 1 ? (float)value : 0.0f;
        CKPTL_ORIGIN(x, router.capacity_factor, "config key %s", key);
        CKPTL_ORIGIN(x, router.capacity, "config key %s", key);
    }
    return 0;
}

/* top_k where the configuration has none because the family fixes it. */
static int ckptl_top_k(ckptl *x) {
    static const struct {
        const char *family;
        uint32_t k;
    } fixed[] = {{"switch_transformers", 1}, {"switch", 1}, {"nllb_moe", 2}, {"gshard", 2}, {"glam", 2}};
    for (size_t i = 0; !x->d->top_k && i < sizeof fixed / sizeof *fixed; i++)
        if (ckptl_same(x->info->family, fixed[i].family)) x->d->top_k = fixed[i].k;
    if (!x->d->top_k)
        return ckptl_fail(
            x->err, "the number of experts per token is not in the configuration (such as num_experts_per_tok)");
    uint64_t ids = (uint64_t)x->d->n_experts + x->d->n_zero_experts;
    if (x->d->top_k > ids)
        return ckptl_fail(x->err, "%" PRIu32 " experts per token, but there are %" PRIu64, x->d->top_k, ids);
    return 0;
}

/* d_ff: the tensors say it; a key that means just this must agree. */
static int ckptl_check_width(ckptl *x, uint64_t ff) {
    static const char *const own =
        "moe_intermediate_size expert_ffn_hidden_size moe_ffn_hidden_size moe_inter_dim expert_intermediate_size "
        "expert_hidden_dim ffn_config.ffn_hidden_size moe.expert_hidden_dim";
    static const char *const plain = "intermediate_size d_ff encoder_ffn_dim ffn_hidden_size n_inner";
    /* families whose intermediate_size is the experts' */
    static const char *const strict =
        "mixtral olmoe flex_olmo phimoe jamba granitemoe granitemoeshared granitemoehybrid minimax "
        "minimax_text_01 minimax_m2 gpt_oss llama4 llama4_text jetmoe arctic shazeer2017 jacobs1991 glam gshard";
    char key[CKPT_MAX_KEY];
    uint32_t value = 0;
    x->d->d_ff = (uint32_t)ff;
    CKPTL_ORIGIN(x, d_ff, "tensor shape");
    int found = ckptl_size(x, x->c->is_gguf ? "expert_feed_forward_length" : own, &value, key, sizeof key),
        must = found > 0;
    if (!found && !x->c->is_gguf) {
        found = ckptl_size(x, plain, &value, key, sizeof key);
        must = found > 0 && ckptl_listed(strict, x->info->family);
    } else if (!found) {
        found = ckptl_size(x, "feed_forward_length", &value, key, sizeof key);
    }
    if (found < 0) return -1;
    if (found && value == ff) CKPTL_ORIGIN(x, d_ff, "config key %s", key);
    else if (must && value)
        return ckptl_fail(x->err, "layer %s: experts of width %" PRIu64 ", config key %s says %" PRIu32,
                          x->layer->name, ff, key, value);
    return 0;
}

static int ckptl_routed(ckptl *x) {
    moe_desc *d = x->d;
    int complete = 0;
    ckptl_bank b = {"", "", NULL, d->n_experts, d->latent.d ? d->latent.d : d->d_model, 0, 0};
    if (x->c->is_gguf)
        b.scheme = ckptl_choose(x, "", ckptl_gguf_experts, sizeof ckptl_gguf_experts / sizeof *ckptl_gguf_experts,
                                &complete);
    else b.scheme = ckptl_choose(x, "", ckptl_experts, sizeof ckptl_experts / sizeof *ckptl_experts, &complete);
    if (!b.scheme) return ckptl_fail(x->err, "layer %s: no experts under %s", x->layer->name, x->base);
    int gated = b.scheme->gate || b.scheme->flags & CKPTL_FUSED;
    if (gated && d->ffn.ungated) d->ffn.ungated = 0, CKPTL_ORIGIN(x, ffn.ungated, "tensor names");
    if (!gated && !d->ffn.ungated)
        return ckptl_fail(x->err, "layer %s: no gate matrix beside %s%s, but %s has gated experts", x->layer->name,
                          x->base, b.scheme->up, x->info->family);
    if (ckptl_load_bank(x, &b, &d->gate, &d->up, &d->down)) return -1;
    char name[CKPT_LAYER_TEXT * 2], one[CKPT_LAYER_TEXT * 2];
    if (strstr(b.scheme->up, "%u") && !x->two_banks) { /* an expert too many is a wrong configuration */
        ckptl_set s;
        ckptl_stem_of(ckptl_name(x, b.scheme->up, name, sizeof name), d->n_experts, one, sizeof one);
        ckptl_collect(x->c, one, &s);
        if (s.weight)
            return ckptl_fail(x->err, "tensor %s: there are more experts than %" PRIu32, s.weight->name,
                              d->n_experts);
    }
    return ckptl_check_width(x, b.ff);
}

static int ckptl_shared_gate(ckptl *x) {
    static const struct {
        const char *stem;
        uint32_t rows, kind;
    } gates[] = {{"shared_expert_gate", 1, MOE_SHARED_SIGMOID},
                 {"shared_experts_gate", 1, MOE_SHARED_SIGMOID},
                 {"ffn_gate_inp_shexp", 1, MOE_SHARED_SIGMOID},
                 {"coefficient", 2, MOE_SHARED_SOFTMAX2}};
    moe_desc *d = x->d;
    if (d->shared.gate_kind == MOE_SHARED_ROUTER_SINK) return 0;
    for (size_t i = 0; i < sizeof gates / sizeof *gates; i++) {
        char stem[CKPT_LAYER_TEXT * 2];
        if (!ckptl_has(x, "", gates[i].stem)) continue;
        ckptl_want w = {"shared weight",
                        ckptl_name(x, gates[i].stem, stem, sizeof stem),
                        1,
                        gates[i].rows,
                        d->d_model,
                        CKPTL_WHOLE,
                        0,
                        0,
                        0,
                        0};
        if (ckptl_matrix(x, &w, &d->shared.gate_weight)) return -1;
        if (d->shared.gate_kind != gates[i].kind) CKPTL_ORIGIN(x, shared.gate_kind, "tensor %s", stem);
        d->shared.gate_kind = gates[i].kind;
        return 0;
    }
    if (d->shared.gate_kind != MOE_SHARED_PLAIN)
        return ckptl_fail(x->err, "layer %s: no gate of the shared expert (such as %sshared_expert_gate.weight)",
                          x->layer->name, x->base);
    return 0;
}

static int ckptl_shared(ckptl *x) {
    moe_desc *d = x->d;
    ckptl_bank b = {"shared ", "", NULL, 1, d->d_model, 0, 0};
    int complete = 0, grok2 = ckptl_listed("grok_2 grok2 git", x->info->family);
    if (x->c->is_gguf) {
        if (ckptl_has(x, "", "ffn_up_shexp") || ckptl_has(x, "", "ffn_gate_shexp"))
            b.scheme = d->ffn.ungated ? &ckptl_gguf_shared_ungated : &ckptl_gguf_shared;
        else if (ckptl_has(x, "", "ffn_down_shexp"))
            return ckptl_fail(x->err, "layer %s: a shared expert of down alone", x->layer->name);
        else if (grok2 && ckptl_has(x, "", "ffn_up")) b.scheme = &ckptl_gguf_dense;
    }
    for (size_t i = 0;
         !x->c->is_gguf && !b.scheme && i < sizeof ckptl_shared_prefixes / sizeof *ckptl_shared_prefixes; i++) {
        b.prefix = ckptl_shared_prefixes[i];
        b.scheme = ckptl_choose(x, b.prefix, ckptl_shared_schemes,
                                sizeof ckptl_shared_schemes / sizeof *ckptl_shared_schemes, &complete);
    }
    if (!b.scheme && grok2) { /* its dense MLP is added like a shared expert */
        b.prefix = "^mlp.";
        b.scheme = ckptl_choose(x, b.prefix, ckptl_shared_schemes,
                                sizeof ckptl_shared_schemes / sizeof *ckptl_shared_schemes, &complete);
    }
    if (!b.scheme) {
        if (d->shared.gate_kind == MOE_SHARED_ROUTER_SINK)
            return ckptl_fail(x->err, "layer %s: no shared experts under %s", x->layer->name, x->base);
        d->shared.count = 0, d->shared.gate_kind = MOE_SHARED_PLAIN;
        if (d->ffn.combine_scale > 0.49f && d->ffn.combine_scale < 0.51f) /* an average with nothing */
            d->ffn.combine_scale = 0, CKPTL_ORIGIN(x, ffn.combine_scale, "no shared experts");
        return 0;
    }
    char relative[CKPT_LAYER_TEXT], stem[CKPT_LAYER_TEXT * 2];
    ckptl_set s;
    snprintf(relative, sizeof relative, "%s%s", b.prefix, b.scheme->up);
    ckptl_collect(x->c, ckptl_name(x, relative, stem, sizeof stem), &s);
    int sink = d->shared.gate_kind == MOE_SHARED_ROUTER_SINK;
    ckptl_scheme separate = *b.scheme; /* one FFN each: stacked */
    if (sink) b.n = d->shared.count, b.stacked = s.weight && s.weight->n_dims == 3;
    if (sink && b.stacked) separate.flags |= CKPTL_STACKED, b.scheme = &separate;
    if (sink && !b.stacked && b.n != 1)
        return ckptl_fail(x->err, "layer %s: shared experts are not one stack", x->layer->name);
    if (!b.scheme->gate && !(b.scheme->flags & CKPTL_FUSED) && !d->ffn.ungated)
        return ckptl_fail(x->err, "tensor %s%s%s.weight is missing (shared gate)", x->base, b.prefix, "gate_proj");
    if (ckptl_load_bank(x, &b, &d->shared.gate, &d->shared.up, &d->shared.down)) return -1;
    d->shared.count = b.n, d->shared.d_ff = (uint32_t)b.ff;
    CKPTL_ORIGIN(x, shared.d_ff, "tensor shape");
    if (!sink) CKPTL_ORIGIN(x, shared.count, "one FFN");
    return ckptl_shared_gate(x);
}

/* Experts in a narrower space. */
static int ckptl_latent(ckptl *x) {
    static const char *const names[][3] = {
        {"fc1_latent_proj", "fc2_latent_proj", "latent_norm.weight"},
        {"routed_expert_down_proj", "routed_expert_up_proj", "routed_expert_norm.weight"},
        {"ffn_latent_down", "ffn_latent_up", "ffn_latent_norm.weight"},
        {"ffn_routed_down", "ffn_routed_up", "ffn_routed_norm.weight"}};
    moe_desc *d = x->d;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char stem[CKPT_LAYER_TEXT * 2], key[CKPT_MAX_KEY];
        ckptl_set s;
        uint32_t value = 0;
        if (!ckptl_has(x, "", names[i][0])) continue;
        ckptl_collect(x->c, ckptl_name(x, names[i][0], stem, sizeof stem), &s);
        if (ckptl_dims(x->c, &s, 0, x->err)) return -1;
        d->latent.d = s.rows <= UINT32_MAX ? (uint32_t)s.rows : 0;
        CKPTL_ORIGIN(x, latent.d, "tensor shape");
        int found = ckptl_size(
            x, x->c->is_gguf ? "moe_latent_size expert_latent_length" : "moe_latent_size routed_expert_hidden_size",
            &value, key, sizeof key);
        if (found < 0) return -1;
        if (found && value && value != d->latent.d)
            return ckptl_fail(x->err, "tensor %s: %" PRIu32 " rows, config key %s says %" PRIu32, s.weight->name,
                              d->latent.d, key, value);
        ckptl_want w = {"latent in", stem, 1, d->latent.d, d->d_model, CKPTL_WHOLE, 0, 0, 0, 0};
        if (ckptl_matrix(x, &w, &d->latent.in)) return -1;
        w.role = "latent out", w.stem = ckptl_name(x, names[i][1], stem, sizeof stem), w.rows = d->d_model,
        w.k = d->latent.d;
        if (ckptl_matrix(x, &w, &d->latent.out)) return -1;
        found = ckptl_vector(x, ckptl_name(x, names[i][2], stem, sizeof stem), d->latent.d, "latent norm",
                             &d->latent.norm);
        if (found <= 0) return found;
        double eps = 1e-5;
        found = ckptl_number(
            x, x->c->is_gguf ? "attention.layer_norm_rms_epsilon" : "rms_norm_eps layer_norm_epsilon norm_eps", 1,
            &eps, key, sizeof key);
        d->latent.norm_eps = (float)eps;
        CKPTL_ORIGIN(x, latent.norm_eps, found > 0 ? "config key %s" : "usual", key);
        return found < 0 ? -1 : 0;
    }
    return 0;
}

/* Before the tensors: facts that decide how they are read. */
static int ckptl_prepare(ckptl *x) {
    moe_desc *d = x->d;
    char key[CKPT_MAX_KEY], name[CKPT_LAYER_TEXT * 2];
    ckpt_value v;
    /* DeepSeek's GGUF name covers V2 and V3: sigmoid scores or a selection bias are V3's. */
    if (x->c->is_gguf && ckptl_same(x->info->family, "deepseek2")) {
        int sigmoid = ckptl_value(x, "expert_gating_func", &v, key, sizeof key)
                          ? v.u == 2
                          : ckpt_findf(x->c, "%sexp_probs_b.bias", x->base) != NULL;
        if (sigmoid) ckptl_try_family(x, "deepseek_v3", "general.architecture deepseek2 with sigmoid:");
    }
    if (x->c->is_gguf && ckptl_same(x->info->family, "grok") &&
        ckptl_has(x, "", "ffn_up")) /* only Grok-2 has a dense MLP */
        ckptl_try_family(x, "grok_2", "general.architecture grok with ffn_up:");
    /* Both versions of Pangu-Pro may have one name; only the second's configuration says n_routed_experts. */
    if (ckptl_listed("PanguProMoE PanGuMoE", x->info->family)) {
        if (ckptl_value(x, "n_routed_experts", &v, key, sizeof key))
            ckptl_try_family(x, "PanguProMoEV2", "config key n_routed_experts:");
        else d->router.n_group = 0; /* as many as experts per token */
    }
    x->interleaved = !x->c->is_gguf && ckptl_same(x->info->family, "gpt_oss");
    x->two_banks = ckptl_same(x->info->family, "ernie4_5_vl_moe") || ckptl_same(x->info->family, "ernie4_5_moe_vl");
    const ckpt_value *rows = ckpt_get(x->c, "quantization_config.weight_block_size[0]"),
                     *cols = ckpt_get(x->c, "quantization_config.weight_block_size[1]");
    if (!rows || !cols) {
        rows = ckpt_get(x->c, "quantization_config.config_groups.group_0.weights.block_structure[0]");
        cols = ckpt_get(x->c, "quantization_config.config_groups.group_0.weights.block_structure[1]");
    }
    uint64_t r = 128, c = 128;
    if (rows && cols &&
        (!ckpt_as_u64(rows, &r) || !ckpt_as_u64(cols, &c) || !r || !c || r > UINT32_MAX || c > UINT32_MAX))
        return ckptl_fail(x->err, "config key quantization_config.weight_block_size is not two sizes");
    x->block_rows = (uint32_t)r, x->block_cols = (uint32_t)c;
    if (x->c->is_gguf) d->router.n_group = d->router.topk_group = 0; /* a file without their keys has no groups */
    if (ckptl_read_fields(x)) return -1;
    if (x->layer->bank && !strcmp(x->layer->base, "mlp.")) x->first_expert = d->n_experts; /* after those for text */
    if (d->shared.gate_kind == MOE_SHARED_ROUTER_SINK) {
        int found = ckptl_size(x, x->c->is_gguf ? "expert_shared_count" : "n_shared_experts num_shared_experts",
                               &d->shared.count, key, sizeof key);
        if (found <= 0)
            return found < 0 ? -1 : ckptl_fail(x->err, "the number of shared experts is not in the configuration");
        CKPTL_ORIGIN(x, shared.count, "config key %s", key);
        const ckpt_tensor *t = ckpt_find(x->c, ckptl_name(x, "gate.global_scale", name, sizeof name));
        if (!t) t = ckpt_find(x->c, ckptl_name(x, "ffn_gscale.weight", name, sizeof name));
        if (t && (ckpt_elements(t) != 1 || !ckptl_array_type(t->type)))
            return ckptl_fail(x->err, "tensor %s is not one number", t->name);
        if (t) {
            moe_matrix m;
            float scale = 1;
            memset(&m, 0, sizeof m);
            m.format = t->type == CKPT_F32 ? MOE_FORMAT_F32 : t->type == CKPT_F16 ? MOE_FORMAT_F16 : MOE_FORMAT_BF16;
            m.data = t->data;
            moe_dequantize(&m, 0, 1, 1, 1, 0, 1, &scale);
            d->router.routed_scale = (d->router.routed_scale > 0 ? d->router.routed_scale : 1) * scale;
            CKPTL_ORIGIN(x, router.routed_scale, "times tensor %s", t->name);
        }
    }
    return ckptl_special_keys(x);
}

/* After the tensors. */
static int ckptl_settle(ckptl *x) {
    moe_desc *d = x->d;
    char key[CKPT_MAX_KEY];
    double eps = 0;
    ckptl_groups(x);
    if (ckptl_clamps(x)) return -1;
    if (x->c->is_gguf && ckptl_same(x->info->family, "gemma4") &&
        d->down.scale2.type) { /* the router's, by its name */
        d->router.expert_scale = d->down.scale2;
        memset(&d->down.scale2, 0, sizeof d->down.scale2);
    }
    if (d->router.input_scale.type) {
        int found = ckptl_number(x, x->c->is_gguf ? "attention.layer_norm_rms_epsilon" : "rms_norm_eps", 1, &eps, key,
                                 sizeof key);
        if (found < 0) return -1;
        if (found)
            d->router.input_norm_eps = (float)eps, CKPTL_ORIGIN(x, router.input_norm_eps, "config key %s", key);
    } else {
        d->router.input_norm_eps = 0;
    }
    x->info->needs_token_ids = d->router.pick == MOE_PICK_TABLE;
    ckpt_value early;
    int late = ckptl_value(x, "moe_enable_early_router", &early, key, sizeof key) && early.type == CKPT_VALUE_BOOL &&
               !early.u;
    x->info->needs_router_input = d->router.input_scale.type || (!strcmp(x->info->family, "smallthinker") && !late);
    return 0;
}

CKPT_DEF int ckpt_layer_desc(const ckpt *c, const ckpt_layer *layer, moe_desc *desc, ckpt_layer_info *info,
                             char *err) {
    ckptl x;
    memset(&x, 0, sizeof x);
    memset(desc, 0, sizeof *desc);
    memset(info, 0, sizeof *info);
    x.c = c, x.layer = layer, x.d = desc, x.info = info, x.err = err;
    snprintf(x.base, sizeof x.base, "%s%s", layer->prefix, layer->base);
    if (!ckptl_family(&x) && !ckptl_prepare(&x) && !ckptl_router(&x) && !ckptl_top_k(&x) &&
        !ckptl_router_vectors(&x) && !ckptl_latent(&x) && !ckptl_routed(&x) && !ckptl_shared(&x) &&
        !ckptl_settle(&x)) {
        ckptl_list_knobs(&x);
        return 0;
    }
    ckpt_layer_free(info);
    return -1;
}

#endif /* CKPT_LAYER_H */
