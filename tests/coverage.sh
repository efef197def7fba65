#!/bin/sh
# make coverage: lines and branches of moe.h that the tests run, over all tiers of this machine, per section; lists the lines never run.
# Tests of what is the same on every tier are compiled for few of them: instruction sets take their time.
cd "$(dirname "$0")/.." || exit 1
out=$PWD/build/coverage root=$PWD
mkdir -p "$out"
run() { # run FLAGS TEST...
    flags=$1
    shift
    for t in "$@"; do
        [ -x "$out/$t" ] && [ "$out/$t" -nt moe.h ] ||
            (cd "$out" && gcc -std=c11 -O1 --coverage -w -mfma $flags -I"$root" -I"$root/examples" -I"$root/tests" -c "$root/tests/$t.c" -o $t.o && gcc --coverage $t.o -o $t -lm -lpthread) || exit 1
        args= && [ $t = test_layer ] && args=1
        "$out/$t" $args | tail -n 1
        (cd "$out" && gcov --json-format --stdout --branch-probabilities $t.o >$t.json 2>/dev/null)
    done
}
run -DMOE_NO_SIMD test_errors test_models test_corners test_memory
run -DMOE_NO_AVX512 test_route test_invariance test_api
run -DMOE_NO_VNNI test_amx
run "" test_tiers test_q8 test_formats test_layer
python3 - "$out" <<'END'
import collections, glob, json, re, sys
lines, branches = collections.Counter(), collections.defaultdict(dict)
for name in glob.glob(sys.argv[1] + "/*.json"):
    for text in open(name):
        for f in json.loads(text)["files"]:
            if not f["file"].endswith("moe.h"):
                continue
            for l in f["lines"]:
                n = l["line_number"]
                lines[n] += l["count"]
                for i, b in enumerate(l["branches"]):
                    key = i, len(l["branches"])
                    branches[n][key] = branches[n].get(key, 0) + b["count"]
source = open("moe.h", encoding="utf-8").read().split("\n")
marks = [(i + 1, m.group(1)) for i, s in enumerate(source) if (m := re.match(r"/\* ==== >>(\w+):", s))]
print("section      lines     run     branches     run")
whole = [0, 0, 0, 0]
missed = []
for (a, name), (b, _) in zip(marks, marks[1:] + [(len(source) + 1, "")]):
    own = [n for n in lines if a <= n < b]
    # a branch of a line that was inlined into several functions counts once: taken in any copy
    ways = [v for n in own for v in branches[n].values()]
    c = [len(own), sum(lines[n] > 0 for n in own), len(ways), sum(v > 0 for v in ways)]
    whole = [x + y for x, y in zip(whole, c)]
    missed += [n for n in own if not lines[n]]
    if c[0]:
        print(f"{name:10} {c[0]:7} {100 * c[1] / c[0]:6.1f} % {c[2]:9} {100 * c[3] / max(c[2], 1):6.1f} %")
print(f"{'all':10} {whole[0]:7} {100 * whole[1] / whole[0]:6.1f} % {whole[2]:9} {100 * whole[3] / whole[2]:6.1f} %")
print("lines never run:")
for n in sorted(missed):
    print(f"  {n:5} {source[n - 1].strip()[:110]}")
END
