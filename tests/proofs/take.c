/* What GGUF's cursor and the checked product promise, proved for files of any size: it never passes the end, what it gives is inside
   of the file, and it stays where it is once something was cut off. */
#include <stddef.h>
#include <stdint.h>

/*@ requires \valid(product);
    assigns *product, \result \from a, b;
    ensures fits: \result == 0 ==> *product == a * b; */
static inline int ckpti_mul(uint64_t a, uint64_t b, uint64_t *product);

#include "moe.h"
#include "checkpoint.h"

/*@ requires \valid_read(g) && g->at <= g->size;
    assigns \nothing;
    ensures \result == g->size - g->at; */
static inline uint64_t ckpti_left(const ckpti_cursor *g);
/*@ requires \valid(g) && g->at <= g->size;
    assigns g->at, g->cut, \result \from *g, bytes;
    ensures inside: g->at <= g->size && g->size == \old(g->size) && g->data == \old(g->data);
    ensures given: !g->cut ==> \result == g->data + \old(g->at) && g->at == \old(g->at) + bytes;
    ensures cut: \old(g->cut) ==> g->cut;
    ensures stays: g->cut ==> g->at == \old(g->at); */
static inline const uint8_t *ckpti_take(ckpti_cursor *g, uint64_t bytes);
