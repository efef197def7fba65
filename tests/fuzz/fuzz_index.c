/* The input is JSON: as a configuration, and as the index of two small shards. What it names outside of them must not open. */
#include "fuzz_checkpoint.h"

#define ENTRY(name) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[0,1]}"
static const char shard_a[] = "\x38\0\0\0\0\0\0\0{" ENTRY("a") "}    x";
static const char shard_b[] = "\x38\0\0\0\0\0\0\0{" ENTRY("b") "}    y";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char err[CKPT_ERR];
    ckpt c;
    int status = ckpt_open_json(&c, "config.json", data, size, err);
    fuzz_check(&c, status, err);
    ckpt_file files[] = {{"dir/model.safetensors.index.json", data, size},
                         {"dir/a.safetensors", shard_a, sizeof shard_a - 1},
                         {"dir/b.safetensors", shard_b, sizeof shard_b - 1},
                         {"a.safetensors", shard_a, sizeof shard_a - 1},          /* that ../ would reach */
                         {"dir/sub/a.safetensors", shard_a, sizeof shard_a - 1}}; /* and sub/ */
    fuzz_files(files, 5);
    status = ckpt_open_memory(&c, files, 5, NULL, err);
    for (size_t i = 0; i < c.n_shards; i++)
        fuzz_require(c.shards[i].data == files[1].data || c.shards[i].data == files[2].data, "a file from elsewhere");
    ckpt_close(&c);
    return 0;
}
