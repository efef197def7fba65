/* What the checked sums and products of sizes promise, proved for all arguments: the result is exact and below half the address
   space, or there is none; the workspace's mark moves to such a result or stays at SIZE_MAX for good. */
#include <stddef.h>
#include <stdint.h>

/*@ requires \valid(out);
    assigns *out, \result \from a, b;
    ensures \result == 0 || \result == 1;
    ensures fits: \result == 1 ==> *out == a * b && *out <= SIZE_MAX / 2; */
static int moei_mul(size_t a, size_t b, size_t *out);
/*@ requires \valid(out);
    assigns *out, \result \from a, b;
    ensures fits: \result == 1 ==> *out == a + b && *out <= SIZE_MAX / 2;
    ensures not: \result != 1 ==> \result == 0 && a + b > SIZE_MAX / 2; */
static int moei_add(size_t a, size_t b, size_t *out);

#define MOE_IMPLEMENTATION
#include "moe.h"

/*@ requires \valid(p) && (p->used == SIZE_MAX || p->used <= SIZE_MAX / 2);
    assigns p->used, \result \from p->base, p->used, count, bytes;
    ensures below: p->used == SIZE_MAX || p->used <= SIZE_MAX / 2;
    ensures stays: \old(p->used) == SIZE_MAX ==> p->used == SIZE_MAX; */
static void *moei_take(moei_plan *p, size_t count, size_t bytes);
