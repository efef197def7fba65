/* How many tokens a matrix takes at a time, of any number that is left: at least one, no more than the caller's limit and than packed
   tokens have room for; of more than that, where tokens are packed, whole groups, and what remains is enough to be packed too. */
#define MOE_IMPLEMENTATION
#include "moe.h"
#include "__fc_builtin.h"

static size_t row_bytes(size_t k) { return k; }

static moei_packing packing;
static moei_arith a;

static void take(size_t most, size_t left) {
    uint32_t n = moei_chunk(&a, most, left);
    //@ assert some: 0 < n <= most;
    if (!a.packing) return;
    //@ assert groups: n % packing.group == 0;
    //@ assert rest: left - n >= packing.min;
}

static void chunk(uint32_t group, uint32_t min, size_t k, size_t limit) {
    packing.group = group, packing.min = min;
    a.row_bytes = row_bytes, a.packing = group ? &packing : NULL;
    size_t fits = moei_most(&a, k), most = limit < fits ? limit : fits;
    uint32_t n = moei_chunk(&a, most, Frama_C_size_t_interval(1, most)); /* all that are left */
    //@ assert all: 0 < n <= most;
    for (size_t more = 1; more <= 2 * MOEI_GROUP; more++) take(most, most + more);
    take(most, Frama_C_size_t_interval(most + 2 * MOEI_GROUP + 1, SIZE_MAX));
}

int main(void) {
    static const uint32_t groups[] = {0, 1, 2, 3, 6, 8, MOEI_GROUP};
    static const size_t limits[] = {64, 71, MOEI_PARTS};
    for (size_t i = 0; i < MOEI_COUNT(groups); i++)
        for (uint32_t min = 1; min <= groups[i] + 1; min += min > 2 && min < groups[i] ? groups[i] - min : 1)
            for (size_t j = 0; j < 2 * MOEI_COUNT(limits); j++) chunk(groups[i], min, j & 1 ? 32768 : 1, limits[j / 2]);
    return 0;
}
