# moe.h: make (examples, benches, tests), make run, make test need a C11 compiler and make; make check needs more and says what.
CC       ?= cc
CXX      ?= c++
CFLAGS   ?= -O2
WARNINGS = -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wstrict-prototypes -Wundef -Wdouble-promotion
PREFIX   ?= /usr/local
BUILD    ?= build

FLAGS    = -std=c11 $(CFLAGS) $(WARNINGS) -I. -Iexamples -Itests -Ibench
COMPILE  = $(CC) $(FLAGS)
LIBS     = -lm -lpthread

EXAMPLES := $(patsubst examples/%.c,$(BUILD)/%,$(filter-out examples/openmp.c,$(wildcard examples/*.c)))
BENCHES  := $(patsubst bench/%.c,$(BUILD)/%,$(wildcard bench/*.c))
TESTS    := $(patsubst tests/%.c,$(BUILD)/%,$(wildcard tests/test_*.c))
HEADERS  := moe.h $(wildcard examples/*.h tests/*.h bench/*.h tests/data/*.h tests/data/*/*.h)

# Where the compiler has OpenMP.
OPENMP   := $(shell t=`mktemp` && echo 'int main(void) { return 0; }' | $(CC) -fopenmp -x c - -o $$t 2>/dev/null && echo $(BUILD)/openmp; rm -f $$t)

MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
.PHONY: all examples run test check bench bench-kernels bench-pool accuracy exp fuzz soak mutate foreign static coverage prove lib install clean

all: examples $(BENCHES) $(TESTS) $(OPENMP) $(BUILD)/cpp
examples: $(EXAMPLES)

$(BUILD):
	@mkdir -p $@

# The implementation takes a while to compile, so it is compiled once: MOEI_ONCE makes the programs that emit it (as a user's one file
# would) leave it to moe.o, which they are linked with when both are ready. Tests that look inside compile it themselves, or only its
# sections up to >>formats, and link the rest.
INSIDE   := $(patsubst tests/%.c,$(BUILD)/%,$(shell grep -l 'moei_\|random_layer.h' tests/test_*.c))
FORMATS  := $(patsubst %,$(BUILD)/test_%,layer invariance memory errors q8)
$(BUILD)/moe.o: moe.h # not | $(BUILD): make would begin with others, and wait for this one in the end
	@mkdir -p $(BUILD)
	$(CC) -std=c11 $(CFLAGS) $(WARNINGS) -DMOE_IMPLEMENTATION -DMOEI_TABLE= -x c -c moe.h -o $@
$(BUILD)/%.o: examples/%.c $(HEADERS) | $(BUILD)
	$(COMPILE) -DMOEI_ONCE -c $< -o $@
$(BUILD)/%.o: tests/%.c $(HEADERS) $(wildcard examples/*.c) | $(BUILD)
	$(COMPILE) -DMOEI_ONCE -c $< -o $@
$(FORMATS:%=%.o): $(BUILD)/%.o: tests/%.c $(HEADERS) $(BUILD)/formats/moe.h
	$(CC) -I$(BUILD)/formats $(FLAGS) -DMOE_API='extern __attribute__((weak))' -Wno-unused-function -c $< -o $@
LINKED   := $(EXAMPLES) $(FORMATS) $(filter-out $(INSIDE),$(TESTS))
$(LINKED): %: %.o $(BUILD)/moe.o
	$(CC) $(CFLAGS) $@.o $(BUILD)/moe.o -o $@ $(LIBS)
$(BENCHES): $(BUILD)/%: bench/%.c $(HEADERS) | $(BUILD)
	$(COMPILE) $(WITHOUT) $< -o $@ $(LIBS)
$(BUILD)/openmp: examples/openmp.c $(HEADERS) | $(BUILD)
	$(COMPILE) -fopenmp $< -o $@ $(LIBS)
$(BUILD)/pool_openmp: examples/pool.c $(HEADERS) $(BUILD)/moe.o
	$(COMPILE) -fopenmp -DMOEI_ONCE $< $(BUILD)/moe.o -o $@ $(LIBS)
$(BUILD)/cpp: examples/cpp.cc $(HEADERS) $(BUILD)/moe.o
	$(CXX) -std=c++11 $(CFLAGS) -Wall -I. -Iexamples -DMOEI_ONCE $< $(BUILD)/moe.o -o $@ $(LIBS)
$(BUILD)/formats/moe.h: moe.h
	@mkdir -p $(BUILD)/formats
	sed '/==== >>reference/,/^#endif .. MOEI_ONCE/d; /^#include "moe.h"/d' moe.h | sed '$$a #endif' >$@
$(filter-out $(FORMATS),$(INSIDE)): $(BUILD)/%: tests/%.c $(HEADERS) $(wildcard examples/*.c) | $(BUILD)
	$(COMPILE) -g0 $(WITHOUT) $< -o $@ $(LIBS)
$(BUILD)/bench_kernels: WITHOUT = -DMOE_NO_Q8 # kernels that a program does not look at
$(BUILD)/test_formats: WITHOUT = -DMOE_NO_SIMD
$(BUILD)/test_route: WITHOUT = -DMOE_NO_AVX512 -DMOE_NO_Q8
$(BUILD)/test_amx $(BUILD)/test_tiers: WITHOUT = -DMOE_NO_Q8
$(BUILD)/test_amx: tests/test_layer.c # which it includes

run: $(BUILD)/generate
	$(BUILD)/generate

# Runs every test program, as many at once as there are cores, and adds up their closing lines; fails if any failed.
test: $(BUILD)/moe.o $(TESTS:%=%.log)
	@sh tests/run.sh $(TESTS:%=%.log)
$(BUILD)/test_%.log: $(BUILD)/test_% FORCE
	@$< >$@ 2>&1; echo "status $$?" >>$@
$(filter-out $(INSIDE:%=%.log),$(TESTS:%=%.log)): $(EXAMPLES) # some run them
FORCE:

# ONLY=PATTERN for some of the checks.
check: all
	@sh tests/check.sh

bench: $(BUILD)/bench_layer
	$(BUILD)/bench_layer --shape all
bench-kernels: $(BUILD)/bench_kernels
	$(BUILD)/bench_kernels
bench-pool: $(BUILD)/pool_openmp
	$(BUILD)/pool_openmp --pin

# Proofs that take longer than a test; README.md says what each one shows.
PROOFS   := $(BUILD)/accuracy $(BUILD)/soak
$(PROOFS): $(BUILD)/%: tests/%.c $(HEADERS) | $(BUILD)
	$(COMPILE) -g0 $< -o $@ $(LIBS)
accuracy: $(BUILD)/accuracy
	$(BUILD)/accuracy
exp: $(BUILD)/accuracy
	$(BUILD)/accuracy --exp
MINUTES  ?= 1
$(BUILD)/soak: tests/test_layer.c
soak: $(BUILD)/soak
	$(BUILD)/soak $(MINUTES) $(SEED)

mutate:
	python3 tests/mutate.py --sample $(or $(SAMPLE),40) --seed $(or $(SEED),1)
foreign: $(BUILD)/libmoe.so
	@sh tests/foreign/run.sh
static:
	@sh tests/static.sh
coverage:
	@sh tests/coverage.sh
prove:
	@sh tests/proofs/run.sh

# make fuzz TIME=seconds per target; make fuzz FUZZ="route index". layer is the portable code; tiers is the same target with all instruction
# sets, without the undefined-behaviour sanitizer, with which they take many minutes to compile (one minute as it is). An input of route,
# layer or tiers is a list of decisions: telling the fuzzer what is compared says nothing and takes half of the time.
TIME       ?= 60
FUZZ       ?= gguf safetensors index route layer tiers
FUZZER     = clang -std=c11 -g -O1 -I. -fno-sanitize-recover=all
$(BUILD)/fuzz_tiers: tests/fuzz/fuzz_layer.c $(HEADERS) $(wildcard tests/fuzz/*.h) | $(BUILD)
	$(FUZZER) -fsanitize=fuzzer,address -fno-sanitize-coverage=trace-cmp $< -o $@
$(BUILD)/fuzz_layer $(BUILD)/fuzz_route: FUZZER += -fno-sanitize-coverage=trace-cmp
$(BUILD)/fuzz_%: tests/fuzz/fuzz_%.c $(HEADERS) $(wildcard tests/fuzz/*.h) | $(BUILD)
	$(FUZZER) -fsanitize=fuzzer,address,undefined -DMOE_NO_SIMD $< -o $@
fuzz: $(FUZZ:%=$(BUILD)/fuzz_%)
	@sh tests/fuzz/run.sh $(TIME) $(FUZZ)

# For bindings from other languages; moe_sizeof tells the sizes of the structs.
lib: $(BUILD)/libmoe.so
$(BUILD)/libmoe.so: moe.h | $(BUILD)
	$(CC) -std=c11 $(CFLAGS) -DMOE_IMPLEMENTATION -fPIC -shared -x c moe.h -o $@ -lm

install: moe.h
	install -d $(DESTDIR)$(PREFIX)/include
	install -m 644 moe.h $(DESTDIR)$(PREFIX)/include/moe.h

clean:
	rm -rf $(BUILD)
