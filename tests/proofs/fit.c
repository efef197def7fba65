/* The search for the most tokens that a workspace holds, proved for all tokens and any layout: nothing wraps, it ends, and the block is no
   larger than the call and 0 only where not even one token fits. moei_bytes_for is taken at its word (layout.c): a size that is no
   overflow has counted the slots of all tokens, 4 bytes or more each. */
#define MOE_IMPLEMENTATION
#include "moe.h"

/*@ requires \valid_read(p);
    assigns \result \from *p, block;
    ensures \result == SIZE_MAX || p->n_tokens <= SIZE_MAX / 8; */
static size_t moei_bytes_for(const moei_plan *p, size_t block);

/*@ requires \valid_read(p) && p->n_tokens > 0 && bytes < SIZE_MAX;
    assigns \result \from *p, bytes;
    ensures \result <= p->n_tokens; */
static size_t moei_fit_block(const moei_plan *p, size_t bytes);
