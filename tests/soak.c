/* make soak MINUTES=n: random layers until the time is up, on every tier of the machine in every compute: each element within the oracle's
   bound, and the same bits for any tasks, workspace and split of the tokens. The checks are test_layer's, the seeds are new each time:
   soak MINUTES SEED starts where a failure was. */
#define main test_layer_main
#include "test_layer.c"
#undef main
#include <time.h>

static void one_of_each(uint64_t seed) {
    rl_rng r = {seed};
    uint32_t tier, have = moe_tiers(), format = 1 + rl_below(&r, MOE_FORMAT_COUNT - 1),
                   other = rl_one_in(&r, 3) ? MOE_FORMAT_BF16 : format;
    do tier = rl_below(&r, MOE_TIER_COUNT);
    while (!(have & MOE_TIER_BIT(tier)));
    uint32_t mask = moe_tier_mask(tier), unit = unit_of(format);
    one_random(seed, format, other, MOE_COMPUTE_F32, mask, unit);
    one_random(seed, format, other, MOE_COMPUTE_DEFAULT, mask, unit);
    if (is_integer(format)) one_random(seed, format, other, MOE_COMPUTE_Q8, mask, larger(unit, 32));
    same_bits(seed, format, is_integer(format) && rl_one_in(&r, 2) ? MOE_COMPUTE_Q8 : MOE_COMPUTE_F32,
              larger(unit, 32));
    if (rl_bf16(have)) same_bits(seed, format, MOE_COMPUTE_BF16, unit);
}

int main(int argc, char **argv) {
    double minutes = argc > 1 ? atof(argv[1]) : 1;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL) << 20;
    time_t start = time(NULL), now = start, shown = 0;
    for (; difftime(now, start) < 60 * minutes && !failed; seed++, now = time(NULL)) {
        if (now != shown)
            fprintf(stderr, "\r%.1f of %g min: %d cases, %ld elements, seed %llu ", difftime(now, start) / 60,
                    minutes, passed, elements, (unsigned long long)seed);
        shown = now;
        one_of_each(seed);
    }
    fprintf(stderr, "\n");
    report();
    if (failed) printf("again with: build/soak %g %llu\n", minutes, (unsigned long long)(seed - 1));
    printf("soak: %d passed, %d failed in %.0f s\n", passed, failed, difftime(now, start));
    return failed != 0;
}
