/* Whole JSON texts of any bytes up to MOST, by the pull parser until it is done or refuses; each in a buffer of just its length. */
#include "__fc_builtin.h"
#include <stdlib.h>
#define strtol(text, end, base) Frama_C_long_interval(0, 999999999) /* the text has at most nine digits */
#include "moe.h"
#include "checkpoint.h"

#ifndef MOST
#define MOST 4
#endif
static uint64_t arena[9000];
static void *take(void *user, void *p, size_t bytes) {
    (void)user, (void)p;
    return bytes > sizeof arena ? NULL : (void *)arena;
}
static void release(void *user, void *p) { (void)user, (void)p; }

int main(void) {
    static ckpt c;
    uint8_t text[MOST];
    for (size_t n = 1; n <= MOST; n++) {
        ckpti_json j;
        memset(&c, 0, sizeof c);
        c.options.resize = take, c.options.release = release, c.file = "x";
        Frama_C_make_unknown((char *)text, sizeof text);
        ckpti_json_begin(&j, &c, text + MOST - n, n, 0);
        for (size_t i = 0; i <= n; i++)
            if (ckpti_next(&j) <= CKPTI_DONE) break;
        //@ assert j.at <= n;
    }
    return 0;
}
