/* The readers of text, on any bytes in a buffer of just the length that they are told: UTF-8, escapes, JSON strings, numbers and words. */
#include "moe.h"
#include "checkpoint.h"
#include "__fc_builtin.h"

enum { MOST = 13 };
static uint64_t arena[9000];
static void *take(void *user, void *p, size_t bytes) {
    (void)user, (void)p;
    return bytes > sizeof arena ? NULL : (void *)arena;
}
static void release(void *user, void *p) { (void)user, (void)p; }

static void characters(const uint8_t *p, size_t n) {
    char to[4], *at = to;
    ckpti_utf8(p, n);
    ckpti_char(p, p + n, &at);
    //@ assert at <= to + 4;
}
static void json(const uint8_t *p, size_t n, int what) {
    static ckpt c;
    ckpti_json j;
    memset(&c, 0, sizeof c);
    c.options.resize = take, c.options.release = release, c.file = "x";
    ckpti_json_begin(&j, &c, p, n, 0);
    j.python = Frama_C_interval(0, 1);
    if (what == 0) ckpti_json_string(&j);
    if (what == 1) ckpti_json_word(&j);
    if (what == 2) ckpti_peek(&j);
    if (what == 3) {
        char text[400];
        size_t used = 0;
        ckpti_accept(&j, "-");
        ckpti_digits(&j, text, &used, sizeof text - 32);
    }
    //@ assert j.at <= n;
}
int main(void) {
    uint8_t text[MOST];
    for (size_t n = 1; n <= MOST; n++) {
        uint8_t *p = text + MOST - n; /* ends where the array does */
        Frama_C_make_unknown((char *)text, sizeof text);
        characters(p, n);
        for (int what = 0; n < 9 && what < 4; what++) json(p, n, what);
    }
    return 0;
}
