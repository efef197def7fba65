// cpp.cc - moe.h in C++11: a layer that owns its workspace, on std::thread
//
//     c++ -std=c++11 -O2 -I. examples/cpp.cc -o build/cpp -lpthread
//
// The header is C; these few lines give it exceptions, std::vector, and a parallel loop. In a larger program put
// MOE_IMPLEMENTATION into one file (C or C++) and the classes into a header of yours.

#define MOE_IMPLEMENTATION
#include "moe.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace moe {

class error : public std::runtime_error {
  public:
    error(moe_status s, const moe_error &e)
        : std::runtime_error(std::string(e.part) + (*e.part ? " " : "") + e.field + ": " + moe_status_text(s)),
          status(s) {}
    moe_status status;
};

// A moe_parallel on threads that live for one phase: simple, and good enough for large batches. For single tokens
// keep the threads (examples/pool.h, or the pool your engine has).
class threads {
  public:
    explicit threads(uint32_t n) : n_(n ? n : 1) {}
    uint32_t size() const { return n_; }
    moe_parallel parallel() { return moe_parallel{run, this}; }

  private:
    static void run(void *, uint32_t n, void (*task)(void *, uint32_t), void *arg) { // must not throw: C is calling
        std::vector<std::thread> others;
        uint32_t started = 1;
        try {
            others.reserve(n);
            for (; started < n; started++) others.emplace_back(task, arg, started);
        } catch (const std::exception &) {} // fewer threads than hoped for: this one does the rest
        task(arg, 0);
        for (uint32_t i = started; i < n; i++) task(arg, i);
        for (std::thread &t : others) t.join();
    }
    uint32_t n_;
};

// The description's weights must outlive the layer. One call at a time: the workspace is the layer's.
class layer {
  public:
    explicit layer(const moe_desc &desc) {
        moe_error e;
        if (moe_status s = moe_layer_init(&layer_, &desc, &e)) throw error(s, e);
    }
    const char *tier() const { return moe_tier_name(moe_layer_tier(&layer_)); }

    // y[n_tokens][d_model] from x[n_tokens][d_model]
    void forward(const std::vector<float> &x, std::vector<float> &y, threads &on) {
        moe_io io = moe_io();
        moe_error e;
        moe_parallel parallel = on.parallel();
        const size_t d = layer_.desc.d_model;
        y.resize(x.size());
        io.x = x.data(), io.y = y.data(), io.x_type = io.y_type = MOE_TYPE_F32, io.n_tokens = x.size() / d;
        io.parallel = &parallel, io.n_tasks = on.size(), io.error = &e;
        const size_t need = moe_workspace_size(&layer_, io.n_tokens, io.n_tasks);
        if (workspace_.size() < need) workspace_.resize(need);
        io.workspace = workspace_.data(), io.workspace_size = workspace_.size();
        if (moe_status s = moe_forward(&layer_, &io)) throw error(s, e);
    }

  private:
    moe_layer layer_;
    std::vector<unsigned char> workspace_;
};

} // namespace moe

static std::vector<float> random_floats(size_t n, std::mt19937 &random) {
    std::uniform_real_distribution<float> uniform(-0.05f, 0.05f);
    std::vector<float> v(n);
    for (float &f : v) f = uniform(random);
    return v;
}

int main() try {
    const uint32_t d = 256, ff = 512, experts = 16, tokens = 32;
    std::mt19937 random(1);
    const auto gate = random_floats(size_t(experts) * ff * d, random), up = random_floats(gate.size(), random),
               down = random_floats(gate.size(), random), router = random_floats(size_t(experts) * d, random);

    moe_desc desc = moe_desc(); // all zero
    moe_preset(&desc, "qwen3_moe");
    desc.d_model = d, desc.d_ff = ff, desc.n_experts = experts, desc.top_k = 4;
    desc.gate.data = gate.data(), desc.up.data = up.data(), desc.down.data = down.data();
    desc.router.weight.data = router.data();
    desc.gate.format = desc.up.format = desc.down.format = desc.router.weight.format = MOE_FORMAT_F32;

    moe::layer layer(desc);
    moe::threads one(1), many(std::thread::hardware_concurrency());
    const std::vector<float> x = random_floats(size_t(tokens) * d, random);
    std::vector<float> y1, yn;
    layer.forward(x, y1, one);
    layer.forward(x, yn, many);
    const bool same = std::memcmp(y1.data(), yn.data(), y1.size() * sizeof(float)) == 0;
    std::printf("%u tokens on the %s tier, %u threads: y[0][0] = %.6f, %s\n", tokens, layer.tier(), many.size(),
                double(yn[0]), same ? "the same bits as with one" : "NOT the same as with one");

    desc.top_k = 0; // what an error looks like
    try {
        moe::layer wrong(desc);
    } catch (const moe::error &e) {
        std::printf("top_k = 0 is refused: %s\n", e.what());
        return !same;
    }
    return 1;
} catch (const std::exception &e) {
    std::fprintf(stderr, "cpp: %s\n", e.what());
    return 1;
}
