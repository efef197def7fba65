/* GGUF's strings, values, arrays and header, proved for files of any size: whatever the bytes, every read is inside of the file and the
   cursor never passes its end. Functions with a contract that run.sh does not list are taken at their word. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
static const void *look(const void *p, int byte, size_t n);
static int same(const void *a, const void *b, size_t n);
#define memchr look
#define memcmp same
#include "moe.h"
#include "checkpoint.h"

/*@ predicate inside(ckpti_cursor *g) = \valid(g) && g->at <= g->size && \valid_read(g->data + (0 .. g->size - 1)); */

/*@ requires \valid_read((const uint8_t *)p + (0 .. n - 1)); assigns \result \from p, n; */
static const void *look(const void *p, int byte, size_t n);
/*@ requires \valid_read((const uint8_t *)a + (0 .. n - 1)); assigns \result \from a, b, n; */
static int same(const void *a, const void *b, size_t n);
/*@ requires \valid_read((const uint8_t *)p + (0 .. bytes - 1)) && bytes <= 8; assigns \result \from p, bytes; */
static inline uint64_t ckpti_load(const void *p, uint32_t bytes);
/*@ requires \valid_read((const uint8_t *)p + (0 .. 3)); assigns \result \from p; */
CKPT_DEF uint32_t ckpt_load_u32(const void *p);
/*@ requires \valid_read((const uint8_t *)p + (0 .. 7)); assigns \result \from p; */
CKPT_DEF uint64_t ckpt_load_u64(const void *p);
/*@ assigns \nothing; */
static inline void ckpti_message(ckpt *c, const char *format, ...);
/*@ requires length > 0 ==> \valid_read((const uint8_t *)text + (0 .. length - 1));
    assigns \result \from c, text, length; */
static inline char *ckpti_copy(ckpt *c, const void *text, size_t length);

/*@ requires \valid_read(g) && g->at <= g->size;
    assigns \result \from *g;
    ensures \result == g->size - g->at; */
static inline uint64_t ckpti_left(const ckpti_cursor *g);
/*@ requires inside(g);
    assigns g->at, g->cut, \result \from *g, bytes;
    ensures inside: g->at <= g->size;
    ensures given: !g->cut ==> \valid_read(\result + (0 .. bytes - 1));
    ensures cut: g->cut ==> \valid_read(\result + (0 .. 7)); */
static inline const uint8_t *ckpti_take(ckpti_cursor *g, uint64_t bytes);
/*@ requires inside(g); assigns g->at, g->cut, \result \from *g; ensures g->at <= g->size; */
static inline uint32_t ckpti_u32(ckpti_cursor *g);
/*@ requires inside(g); assigns g->at, g->cut, \result \from *g; ensures g->at <= g->size; */
static inline uint64_t ckpti_u64(ckpti_cursor *g);
/*@ requires inside(g) && \valid(length) && \separated(g, length);
    assigns g->at, g->cut, *length, \result \from *g, max; ensures g->at <= g->size; */
static inline char *ckpti_gguf_string(ckpti_cursor *g, const char *what, uint64_t max, int name, uint64_t *length);
/*@ requires \valid(v) && type < CKPTI_GGUF_TYPES && \valid_read(p + (0 .. ckpti_scalar_bytes[type] - 1));
    assigns *v \from type, p; */
static inline void ckpti_scalar(ckpt_value *v, uint32_t type, const uint8_t *p);
/*@ requires inside(g) && \valid(v) && \separated(g, v);
    assigns g->at, g->cut, *v, \result \from *g; ensures g->at <= g->size; */
static inline int ckpti_gguf_array(ckpti_cursor *g, ckpt_value *v);
/*@ requires inside(g) && \valid(v) && \separated(g, v);
    assigns g->at, g->cut, *v, \result \from *g; ensures g->at <= g->size; */
static inline int ckpti_gguf_value(ckpti_cursor *g, ckpt_value *v);
/*@ requires inside(g) && \valid(n_tensors) && \valid(n_values) && \separated(g, n_tensors, n_values);
    assigns g->at, g->cut, *n_tensors, *n_values, \result \from *g; ensures g->at <= g->size;
    ensures fit: \result == 0 ==> *n_values <= g->size && *n_tensors <= g->size; */
static inline int ckpti_gguf_header(ckpti_cursor *g, uint64_t *n_tensors, uint64_t *n_values);
