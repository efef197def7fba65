#!/usr/bin/env python3
"""mutate.py [--sample N] [--seed S] [--section NAME,...] [--semantic | --generic] [--by-size] [--minutes M]: does the test suite
notice when moe.h or examples/checkpoint.h is wrong?

Each mutant is the file with one change, compiled at -O1 and run in the quick test programs of its section, those first that cost
least, until one fails: killed. A mutant with the same machine code as the original, or that equivalent_mutants.txt explains, is
equivalent; one that doesn't compile is void; what passes everything survived. SEMANTIC are the mistakes that people make (trust in the
suite rests on these); the others come from generic operators on random lines, as many in each section, or by its size. A seed's sample
is the same until the section changes.

moe.h is compiled once for all programs that call it; their own objects are kept (as make test does: Makefile, FORMATS). Only those that
look inside compile it again."""
import argparse, os, random, re, resource, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCES = {name: open(os.path.join(ROOT, name), encoding="utf-8").read() for name in ("moe.h", "examples/checkpoint.h")}
SRC = SOURCES["moe.h"]
CC = os.environ.get("CC", "cc")
HAS_FMA = os.path.exists("/proc/cpuinfo") and " fma " in open("/proc/cpuinfo").read()
NATIVE = ["-mfma"] * HAS_FMA  # an emulated fma takes ten times as long
PORTABLE, NO_AVX512, NO_VNNI = (NATIVE + ["-DMOE_NO_" + no] for no in ("SIMD", "AVX512", "VNNI"))  # what needn't be compiled
ARM = ["--aarch64"]  # not a flag: see run_cc and command
WEAK = ["test_layer", "test_errors", "test_invariance", "test_memory", "test_q8"]  # have the sections up to >>formats themselves
CALLERS = WEAK + ["test_api", "test_models", "test_corners"]  # see moe.h from outside: linked with one object of it

# section: flags and test programs with arguments, the cheapest first
TESTS = {
    "numerics": [(PORTABLE, ["test_formats", "test_corners", "test_layer 1", "test_route"])],
    "formats": [(PORTABLE, ["test_formats", "test_errors", "test_layer 1"])],
    "reference": [(PORTABLE, ["test_layer 1", "test_formats", "test_q8"])],
    "dense": [(NO_VNNI, ["test_layer 1", "test_tiers"])],
    "avx2": [(NO_AVX512, ["test_layer 1", "test_tiers", "test_route"])],
    "avx512": [(NO_VNNI, ["test_layer 1", "test_tiers"])],
    "bf16": [(NO_VNNI, ["test_layer 1", "test_tiers"])],
    "amx": [(NO_VNNI, ["test_amx"])],
    "q8": [(NATIVE, ["test_layer 1", "test_q8"])],
    "neon": [(ARM, ["test_invariance hashes", "test_q8", "test_tiers"])],
    "cpu": [(NATIVE, ["test_api", "test_layer 1", "test_tiers"])],
    "route": [(PORTABLE, ["test_errors", "test_corners", "test_api"]), (NO_AVX512, ["test_route"])],
    "presets": [(PORTABLE, ["test_errors", "test_api", "test_models", "test_route"])],
    "choose": [(PORTABLE, ["test_errors", "test_api"]), (NATIVE, ["test_layer 1", "test_invariance hashes", "test_tiers"])],
    "validate": [(PORTABLE, ["test_errors", "test_api", "test_corners", "test_layer 1"])],
    "layout": [(PORTABLE, ["test_errors", "test_api", "test_layer 1"]), (NATIVE, ["test_layer 1", "test_memory 300", "test_invariance"])],
    "phases": [(PORTABLE, ["test_errors", "test_corners", "test_layer 1"]), (NATIVE, ["test_layer 1", "test_memory 300", "test_invariance"])],
    "api": [(PORTABLE, ["test_errors", "test_api", "test_layer 1"])],
    "checkpoint": [(PORTABLE, ["test_checkpoint"])],
}

# (what, text of moe.h, its replacement, the program that should notice)
SEMANTIC = [
    ("ties to the highest id", "if (count == k && key[i] <= least) continue;", "if (count == k && key[i] < least) continue;", "test_route"),
    ("ties within the list reversed", "best[j - 1] < v; j--)", "best[j - 1] >> 32 <= v >> 32; j--)", "test_route"),
    ("ties of the heap", "if (key[i] <= (uint32_t)(best[0] >> 32)) continue;", "if (key[i] < (uint32_t)(best[0] >> 32)) continue;", "test_route"),
    ("ties of those that reach the bound", "best[count] = (uint64_t)key[i] << 32 | (uint32_t)~i;\n        count += key[i] >= bound;",
     "best[count] = (uint64_t)key[i] << 32 | i;\n        count += key[i] >= bound;", "test_route"),
    ("the bias enters the weights", "from == MOE_WEIGHT_BIASED ? q :", "from != MOE_WEIGHT_SOFTMAX_SELECTED ? q :", "test_route"),
    ("masked groups get 0", "float mask = k->group_mask_zero ? 0.0f : -moei_inf();", "float mask = 0.0f;", "test_route"),
    ("group score: best instead of two best", "return two && n > 1 ? a + b : a;", "return a;", "test_route"),
    ("NaN logits as they come", "moei_is_nan(logits[i]) ? -moei_inf() : logits[i]", "logits[i]", "test_route"),
    ("NaN keys win", "return key > 0xff800000u || key < 0x00800000u ? 0x00800000u : key;", "return key;", "test_route"),
    ("-0 below +0", "key = u >> 31 ? 0u - u : u | 0x80000000u;", "key = u >> 31 ? ~u : u | 0x80000000u;", "test_route"),
    ("renormalisation omitted", "for (j = 0; j < k; j++) w[j] = sum > 0.0f ? w[j] / sum : 0.0f;", "", "test_route"),
    ("norm_eps omitted", "sum += p->norm_eps;", "", "test_route"),
    ("routed_scale omitted", "for (j = 0; j < k; j++) w[j] *= r->routed_scale;", "", "test_route"),
    ("softmax without its maximum", "moei_route_less(y, x, top, n);", "moei_route_less(y, x, 0.0f, n);", "test_route"),
    ("capacity one place more", "used[h->ids[at]]++ < places", "used[h->ids[at]]++ <= places", "test_route"),
    ("nibbles swapped", "b->q[i] = (int8_t)((qs[i] & 15) - bias);\n        b->q[i + 16] = (int8_t)((qs[i] >> 4) - bias);",
     "b->q[i + 16] = (int8_t)((qs[i] & 15) - bias);\n        b->q[i] = (int8_t)((qs[i] >> 4) - bias);", "test_formats"),
    ("nibbles of pairs swapped", "b->q[2 * i] = moei_e2m1x2[p[i] & 15], b->q[2 * i + 1] = moei_e2m1x2[p[i] >> 4];",
     "b->q[2 * i + 1] = moei_e2m1x2[p[i] & 15], b->q[2 * i] = moei_e2m1x2[p[i] >> 4];", "test_formats"),
    ("MXFP4 without the half", "p[0] > 1 ? (uint32_t)(p[0] - 1) << 23", "p[0] > 1 ? (uint32_t)(p[0]) << 23", "test_formats"),
    ("E2M1 pairs without the half", "moei_one_scale(b, 0.5f);", "moei_one_scale(b, 1.0f);", "test_formats"),
    ("Q4_1 minimum's sign", "b->min[0] = b->min[1] = -1;", "b->min[0] = b->min[1] = 1;", "test_formats"),
    ("K scales: minimum from the scale's bits", "(uint32_t)(sc[j] >> 6) << 4;", "(uint32_t)(sc[j - 4] >> 6) << 4;", "test_formats"),
    ("Q6_K scale index", "b->scale[h] = (int8_t)p[192 + 2 * j + h];", "b->scale[h] = (int8_t)p[192 + 2 * j];", "test_formats"),
    ("Q5 high bits of the wrong lane", "(int)(bits >> i & 1) * 16", "(int)(bits >> (i ^ 1) & 1) * 16", "test_formats"),
    ("Q5_K high bits of the wrong lane", "(qh[i] >> j & 1) << 4", "(qh[i] >> (j ^ 1) & 1) << 4", "test_formats"),
    ("Q3_K without its 4", "(p[i] >> j & 1 ? 0 : 4)", "(p[i] >> j & 1 ? 4 : 0)", "test_formats"),
    ("IQ4_XS without its 32", "b->scale[0] = b->scale[1] = (int16_t)((int)(low | high << 4) - 32);",
     "b->scale[0] = b->scale[1] = (int16_t)(low | high << 4);", "test_formats"),
    ("fp8 without subnormals", "return moei_float(sign | moei_bits((float)m * 0.001953125f));", "return moei_float(sign);", "test_formats"),
    ("bf16 rounds half up", "return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);", "return (uint16_t)((u + 0x8000) >> 16);", "test_formats"),
    ("gate and up swapped", "    v->times(g, u, n);", "    memcpy(g, u, n * sizeof *g);\n    v->times(g, u, n);", "test_layer"),
    ("gate reads up's rows", "w[0] = moei_up_rows(b, v, MOE_GATE, row, wide)", "w[0] = moei_up_rows(b, v, MOE_UP, row, wide)", "test_layer"),
    ("alpha 1", "d->ffn.alpha = moei_or(d->ffn.alpha, 1.702f);", "d->ffn.alpha = moei_or(d->ffn.alpha, 1.0f);", "test_layer"),
    ("gpt-oss's + 1", "? 1.0f : -0.0f; /* v + -0", "? -0.0f : -0.0f; /* v + -0", "test_layer"),
    ("clamp of gate on both sides", "clamp == MOE_CLAMP_PRE) v->clamp(g, -inf, limit", "clamp == MOE_CLAMP_PRE) v->clamp(g, -limit, limit", "test_layer"),
    ("combine skips an expert's last slot", "for (uint32_t slot = g->start[e], tokens; slot < g->start[e + 1]; slot += tokens) {",
     "for (uint32_t slot = g->start[e], tokens; slot + 1 < g->start[e + 1]; slot += tokens) {", "test_layer"),
    ("combine skips the last expert", "while (e < g->bank->n_experts && g->start[e] == g->start[e + 1]) e++;",
     "while (e < g->bank->n_experts && (e + 1 == g->bank->n_experts || g->start[e] == g->start[e + 1])) e++;", "test_layer"),
    ("combine without weights", "weighted ? g->weight[slot + i] : 1.0f", "1.0f", "test_layer"),
    ("combine_scale ignored", "s->scale[0][i] = d->ffn.combine_scale;", "s->scale[0][i] = 1.0f;", "test_layer"),
    ("y_add stores", "v[i] = s->row[i] + v[i];", "v[i] = v[i];", "test_errors"),
    # (a block done twice is no mutant: it writes the same bits)
    ("blocks at a task's border left out", "from = w->begin >= lo ? 0 : (lo - w->begin + w->cost - 1) / w->cost", "from = w->begin >= lo ? 0 : (lo - w->begin) / w->cost + 2", "test_layer"),
    ("unmasked tail (AVX-512, f32)", "if (format == MOE_FORMAT_F32) return _mm512_maskz_loadu_ps(m, p);", "if (format == MOE_FORMAT_F32) return _mm512_loadu_ps(p);", "test_tiers"),
    ("expert pointers not checked", "MOE_ERR_EXPERT_ABSENT, \"", "MOE_OK, \"", "test_errors"),
    ("canary not checked", "desc->begin_ != MOE_CANARY || desc->end_ != MOE_CANARY", "0", "test_errors"),
    # (moei_check_sizes has this check too, for the order of errors in moe_layer_init)
    ("top_k not checked", "if (!d->top_k || d->top_k > n) return", "if (!d->top_k) return", "test_errors"),
    ("overflow of sizes not noticed", "if (b && a > SIZE_MAX / 2 / b) return 0;", "", "test_errors"),
]

# Generic operators: (name, pattern, replacement)
OPERATORS = [
    ("relational", r" < ", " <= "), ("relational", r" <= ", " < "), ("relational", r" > ", " >= "), ("relational", r" >= ", " > "),
    ("relational", r" == ", " != "), ("relational", r" != ", " == "), ("arithmetic", r" \+ ", " - "), ("arithmetic", r" - ", " + "),
    ("arithmetic", r" \* ", " + "), ("arithmetic", r" / ", " * "), ("logical", r" && ", " || "), ("logical", r" \|\| ", " && "),
    ("constant", r"(?<![\w.-])1(?![\w.])", "2"), ("constant", r"(?<![\w.])0(?![\w.])", "1"), ("constant", r"(?<![\w.])(16|31|32|15|8)(?![\w.])", r"(\1 + 1)"),
    ("negation", r"if \((.+)\) (return|continue|break)", r"if (!(\1)) \2"), ("drop", r"^( {4,}[\w>\[\].*+ -]+ [+|*-]?= [^;]+;)$", r"    ;"),
    ("drop", r"^( {4,}\w+\([^;]*\);)$", r"    ;"),
]


def sections():
    """(file, name, first, last) by offset; of moe.h the implementation only."""
    marks = [(m.group(1), m.start()) for m in re.finditer(r"^/\* ==== >>(\w+):", SRC, re.M)]
    checkpoint = SOURCES["examples/checkpoint.h"]
    return [("moe.h", n, a, b) for (n, a), (_, b) in zip(marks, marks[1:] + [("", len(SRC))])] + [
        ("examples/checkpoint.h", "checkpoint", checkpoint.index("-- Little-endian"), len(checkpoint))]


def semantic():
    for what, old, new, killer in SEMANTIC:
        at = SRC.find(old, SRC.find(">>config:"))
        section = next((n for f, n, a, b in sections() if f == "moe.h" and a <= at < b), "")
        yield what, "moe.h", at, SRC[:at] + new + SRC[at + len(old):] if at >= 0 else None, section, killer


def listed():
    """The mutants of equivalent_mutants.txt: (section, line, mutated line). A reason begins with the section's name."""
    found, section, line = set(), "", ""
    for text in open(os.path.join(ROOT, "tests", "equivalent_mutants.txt"), encoding="utf-8"):
        if text.startswith("    - "):
            line = text[6:].strip()
        elif text.startswith("    + "):
            found.add((section, line, text[6:].strip()))
        elif re.match(r"\w+: ", text):
            section = text.split(":")[0]
    return found


def sites_of(text, begin, end):
    """(operator, offset, line, mutated line) of everything that may change: no comments, strings, preprocessor lines, tables, sizes of
    arrays (only larger ones would compile), and no prefetching or choice of it (ask), which changes no result."""
    comment, at = False, begin
    for line in text[begin:end].splitlines(keepends=True):
        body = "" if comment else re.split(r"/\*|//", line)[0].rstrip()
        comment = line.rfind("/*") > line.rfind("*/") or (comment and "*/" not in line)
        if not re.match(r"\s*(#|X\(|static const|MOEI_ASSERT|enum)|.*(\\$|prefetch|\bask = |_ask\()", line):
            for op, pattern, to in OPERATORS:
                for m in re.finditer(pattern, body):
                    larger = op == "constant" and body[m.start() - 1] == "[" and re.match(r"\s*(static |const )*[a-z_]\w* \w+\[", body)
                    if body[:m.start()].count('"') % 2 == 0 and not larger:
                        yield op, at, line.rstrip("\n"), body[:m.start()] + m.expand(to) + body[m.end():]
        at += len(line)


def generic(rng, wanted, by_size):
    """Sites of every section in turn, so that each gets its share; or each section as often as it is long."""
    pools, order = {}, []
    for name, section, a, b in sections():
        if section in TESTS and (section in wanted if wanted else section != "neon"):  # minutes each
            pools[section] = name, list(sites_of(SOURCES[name], a, b))
            random.Random(f"{rng} {section}").shuffle(pools[section][1])
            order += [(i if not by_size else (i + 0.5) / len(pools[section][1]), section) for i in range(len(pools[section][1]))]
    for _, section in sorted(order, key=lambda o: o[0]):
        name, sites = pools[section]
        op, at, line, new = sites.pop()
        yield op, name, at, SOURCES[name][:at] + new + SOURCES[name][at + len(line):], section, (line.strip(), new.strip())


def tree(to):
    """The repository with a moe.h of its own: real directories, because sources say "../moe.h", of links to files."""
    for part in ("tests", "examples", "bench"):
        os.mkdir(os.path.join(to, part))
        for name in os.listdir(os.path.join(ROOT, part)):
            os.symlink(os.path.join(ROOT, part, name), os.path.join(to, part, name))
    os.symlink(os.path.join(ROOT, "moe.h"), os.path.join(to, "moe.h"))


def run_cc(root, arguments):
    cc = ["aarch64-linux-gnu-gcc", "-static"] if ARM[0] in arguments else [CC]
    cmd = [*cc, "-std=c11", "-O1", "-g0", "-w", "-fno-pie", *(a for a in arguments if a != ARM[0])]
    return subprocess.run(cmd, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900).returncode == 0


INCLUDE = ["-I.", "-Iexamples", "-Itests", "-Ibench"]


def command(flags, out, test):
    return [*(["qemu-aarch64", "-cpu", "max"] if flags == ARM else []), out, *test.split()[1:]]


def code_of(path):
    """Code and constants: all of them, because without -fno-pie tables with pointers lie elsewhere."""
    text = path + ".text"
    subprocess.run(["objcopy", "-I", "elf64-little", "-O", "binary", "--only-section=.text", "--only-section=.rodata", path, text], check=False)
    return open(text, "rb").read() if os.path.exists(text) else b""


def passes(command, seconds):
    """A mutant that loops or swallows memory is killed."""
    def limit():
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        if "qemu" not in command[0]:  # which reserves more
            resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=limit,
                              timeout=4 * seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return False


class Judge:
    def __init__(self, tmp):
        self.tmp, self.originals, self.objects = tmp, {}, {}
        formats = SRC[:SRC.index("/* ==== >>reference")] + SRC[SRC.index("#endif /* MOEI_ONCE"):].split("\n", 1)[1] + "\n#endif\n"
        os.mkdir(os.path.join(tmp, "formats"))
        open(os.path.join(tmp, "formats", "moe.h"), "w", encoding="utf-8").write(formats.replace('#include "moe.h"\n', ""))

    def object(self, test, flags):
        """The test's own object, made once."""
        key = test, tuple(flags)
        if key not in self.objects:
            self.objects[key] = os.path.join(self.tmp, f"object{len(self.objects)}.o")
            own = ["-Iformats", "-DMOE_API=extern __attribute__((weak))"] if test in WEAK else ["-DMOEI_ONCE"]
            if not run_cc(self.tmp, [*flags, *own, *INCLUDE, "-c", os.path.join(ROOT, "tests", test + ".c"), "-o", self.objects[key]]):
                sys.exit(f"{test} does not compile")
        return self.objects[key]

    def build(self, test, flags, root, out):
        """The program, with the moe.h of root; and what tells its code from another's."""
        libs = ["-no-pie", "-o", out, "-lm", "-lpthread"]
        if test not in CALLERS:
            return code_of(out) if run_cc(root, [*flags, *INCLUDE, f"tests/{test}.c", *libs]) else None
        once = tuple(flags)
        if once not in self.made:
            o = self.made[once] = os.path.join(self.tmp, f"moe{len(self.made)}.o")
            if not run_cc(root, [*flags, "-DMOE_IMPLEMENTATION", "-DMOEI_TABLE=", "-x", "c", "-c", "moe.h", "-o", o]):
                self.made[once] = None
        o = self.made[once]
        return open(o, "rb").read() if o and run_cc(root, [*flags, self.object(test, flags), o, *libs]) else None

    def original(self, test, flags):
        """The machine code of the program as it is, which has to pass, and the seconds of processor time that a mutant gets."""
        key = test, tuple(flags)
        if key not in self.originals:
            kept, self.made = self.made, {}
            out, before = os.path.join(self.tmp, "original"), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            code = self.build(test.split()[0], flags, ROOT, out)
            if not code or not passes(command(flags, out, test), 300):
                sys.exit(f"{test} fails without a mutant")
            self.originals[key] = code, 10 + 4 * int(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
            self.made = kept
        return self.originals[key]

    def verdict(self, name, text, section, killer=None):
        steps = [(flags, test) for flags, tests in TESTS[section] for test in tests]
        if killer:
            steps = sorted(steps, key=lambda s: s[1].split()[0] != killer)
            if steps[0][1].split()[0] != killer:
                steps.insert(0, (TESTS[section][0][0], killer))
        for flags, test in steps:  # before moe.h changes
            self.made = {}
            self.original(test, flags)
        path = os.path.join(self.tmp, name)
        os.remove(path)
        open(path, "w", encoding="utf-8").write(text)
        try:
            return self.judge(steps)
        finally:
            os.remove(path)
            os.symlink(os.path.join(ROOT, name), path)

    def judge(self, steps):
        out, same, self.made = os.path.join(self.tmp, "mutant"), True, {}
        for flags, test in steps:
            original, seconds = self.original(test, flags)
            code = self.build(test.split()[0], flags, self.tmp, out)
            if code is None:
                return "void", test
            if code == original:
                continue
            same = False
            if not passes(command(flags, out, test), seconds):
                return "killed", test
        return ("equivalent" if same else "survived"), ""


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--sample", type=int, help="of the generic ones (40); with --semantic, of those (all)")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--section", default="", help="one or more, with commas")
    ap.add_argument("--semantic", action="store_true")
    ap.add_argument("--generic", action="store_true")
    ap.add_argument("--by-size", action="store_true")
    ap.add_argument("--minutes", type=float, default=1e9)
    args = ap.parse_args()
    wanted = [s for s in args.section.split(",") if s]
    todo = [] if args.generic else [("semantic",) + m for m in semantic() if not wanted or m[4] in wanted]
    if not args.semantic:
        todo += [("generic",) + m for m, _ in zip(generic(args.seed, wanted, args.by_size), range(args.sample or 40))]
    elif args.sample:  # those that are gone all the same
        chosen = random.Random(args.seed).sample(range(len(todo)), min(args.sample, len(todo)))
        todo = [m for i, m in enumerate(todo) if i in chosen or m[4] is None]
    counts, bad, known, start = {}, 0, listed(), time.time()
    for section, line, _ in known:
        if not any(line in source for source in SOURCES.values()):
            print(f"equivalent_mutants.txt: this line is gone: {section}: {line}")
    with tempfile.TemporaryDirectory() as tmp:
        tree(tmp)
        judge = Judge(tmp)
        for i, (kind, what, name, at, text, section, more) in enumerate(todo):
            if time.time() - start > 60 * args.minutes:
                print(f"out of time: {len(todo) - i} mutants not tried")
                break
            if text is None:
                result, by = "gone", ""
            elif kind == "generic" and (section,) + more in known:
                result, by = "equivalent", "listed"
            else:
                result, by = judge.verdict(name, text, section, more if kind == "semantic" else None)
            line = SOURCES[name].count("\n", 0, at) + 1
            print(f"{i + 1:4}/{len(todo)} {result:10} {section:10} line {line:4}  {what}" + (f"  [{by}]" if by else ""))
            if kind == "generic":
                print(f"    - {more[0]}\n    + {more[1]}")
            sys.stdout.flush()
            of = counts.setdefault((kind, section), {})
            of[result] = of.get(result, 0) + 1
            bad += kind == "semantic" and result in ("survived", "gone")
    print("\nkind      section     killed  survived  equivalent  void  rate")
    total = {"killed": 0, "survived": 0}
    for (kind, section), c in counts.items():
        killed, survived = c.get("killed", 0), c.get("survived", 0) + c.get("gone", 0)
        total["killed"] += killed
        total["survived"] += survived
        rate = f"{100 * killed / (killed + survived):.0f} %" if killed + survived else "-"
        print(f"{kind:9} {section:10} {killed:7} {survived:9} {c.get('equivalent', 0):11} {c.get('void', 0):5}  {rate}")
    print(f"mutate: {total['killed']} killed, {total['survived']} survived, {time.time() - start:.0f} s, seed {args.seed}")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
