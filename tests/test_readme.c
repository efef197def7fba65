/* test_readme.c - what the manual shows is what examples/minimal.c is, and the examples do what they say

   The example in moe.h's manual must be that file byte for byte. Then every example that has been built beside this program
   is run: they check themselves. Runs in the root of the repository. (make check compiles the C block of README.md.) */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int n_passed, n_failed, n_skipped;

static void check(int ok, const char *name, const char *why) {
    if (ok) n_passed++;
    else n_failed++, printf("FAIL %s: %s\n", name, why);
}

/* ---- Text ----------------------------------------------------------------------------------------------------- */

static char *read_text(const char *path) {
    FILE *f = fopen(path, "rb");
    char *text = NULL;
    size_t n = 0, got = 1;
    while (f && got) {
        char *more = realloc(text, n + 65537);
        if (!more) break;
        text = more;
        n += got = fread(text + n, 1, 65536, f);
        text[n] = 0;
    }
    if (f) fclose(f);
    return text;
}

static const char *next_line(const char *line) {
    const char *end = strchr(line, '\n');
    return end ? end + 1 : line + strlen(line);
}

/* The lines below the manual's heading, without their indent. */
static char *manual_example(const char *header) {
    const char *line = strstr(header, "A COMPLETE EXAMPLE (examples/minimal.c)"), *indent = "      ";
    size_t skip = strlen(indent);
    char *out = line ? calloc(strlen(line) + 1, 1) : NULL, *at = out;
    if (!out) return NULL;
    for (line = next_line(line); !strncmp(line, indent, skip); line = next_line(line)) {
        size_t n = (size_t)(next_line(line) - line) - skip;
        memcpy(at, line + skip, n);
        at += n;
    }
    return out;
}

static void test_texts(void) {
    char *header = read_text("moe.h"), *minimal = read_text("examples/minimal.c");
    char *in_manual = header ? manual_example(header) : NULL;
    check(minimal != NULL, "examples/minimal.c", "cannot be read");
    check(in_manual && minimal && !strcmp(in_manual, minimal), "manual", "its example is not examples/minimal.c");
    free(header), free(minimal), free(in_manual);
}

/* ---- Programs ------------------------------------------------------------------------------------------------- */

/* Runs DIR/command and expects that exit status, and that text in what it prints. */
static void run(const char *dir, const char *command, int status, const char *expected) {
    char line[512], out[65536];
    size_t n = 0, got = 1, name = strcspn(command, " ");
    snprintf(line, sizeof line, "%s/%.*s", dir, (int)name, command);
    if (access(line, X_OK)) {
        n_skipped++;
        return;
    }
    snprintf(line, sizeof line, "%s/%s 2>&1", dir, command);
    FILE *pipe = popen(line, "r");
    while (pipe && got && n + 1 < sizeof out) n += got = fread(out + n, 1, sizeof out - 1 - n, pipe);
    out[n] = 0;
    int ended = pipe ? pclose(pipe) : -1;
    check(ended != -1 && WIFEXITED(ended) && WEXITSTATUS(ended) == status, command, "ends with another status");
    if (strstr(out, expected)) n_passed++;
    else n_failed++, printf("FAIL %s: \"%s\" is not in its output:\n%s", command, expected, out);
}

static void test_programs(const char *dir) {
    run(dir, "minimal", 0, " tier\n");
    run(dir, "pool --workers 2", 0, "layer");
    run(dir, "team 1", 0, "the same bits as moe_forward's");
    run(dir, "team 3", 0, "the same bits as moe_forward's");
    run(dir, "openmp", 0, "the same bits as with one");
    run(dir, "cpp", 0, "the same bits as with one");
    run(dir, "expert_choice", 0, "imbalance 1.00");
    run(dir, "offload examples/models/kjv-moe-3m --steps 8", 0, "the same bits");
    run(dir, "offload examples/models/kjv-moe-3m --steps 4 --tokens 20 --memory 400K", 0, "the same bits");
    run(dir, "offload tests/data/tinylm/kjv-moe-3m-q8_0.gguf --steps 8 --memory 1M", 0, "the same bits");
    run(dir, "offload examples/models/kjv-moe-3m --memory 1K", 1, "--memory is too small");
    run(dir, "offload nowhere", 1, "nowhere");
    run(dir, "offload nowhere --steps many", 1, "--steps many: no such number");
    run(dir, "offload nowhere --step 4", 1, "--step: unknown");
    run(dir, "offload --help", 0, "usage: offload");
    run(dir, "run_layer --help", 0, "usage: run_layer");
    run(dir, "run_layer -x", 1, "-x: unknown option");
    run(dir, "run_layer", 1, "--help");
    run(dir, "generate --greedy --steps 28 --quiet", 0, "In the beginning of the children of Israel to\n");
    run(dir, "generate --steps 40 --experts --threads 2", 0, "specialised");
    run(dir, "generate --eval LICENSE", 0, "nats/byte");
    run(dir, "generate --eval nowhere", 1, "nowhere: No such file or directory");
    run(dir, "generate --model tests/data/tinylm", 1, "tests/data/tinylm");
    run(dir, "generate --steps many", 1, "--steps many");
    run(dir, "generate --tier abacus", 1, "this program and machine have c");
    run(dir, "generate --help", 0, "usage: generate");
}

int main(int argc, char **argv) {
    char dir[256] = ".";
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    if (slash && (size_t)(slash - argv[0]) < sizeof dir) {
        memcpy(dir, argv[0], (size_t)(slash - argv[0]));
        dir[slash - argv[0]] = 0;
    }
    test_texts();
    test_programs(dir);
    printf("test_readme: %d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
    return n_failed != 0;
}
