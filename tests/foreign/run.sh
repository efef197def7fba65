#!/bin/sh
# Independent sources against build/libmoe.so. What is not installed is named: pip install numpy gguf ml_dtypes onnx onnxruntime torch transformers
# compressed-tensors. PYTHON chooses the interpreter.
cd "$(dirname "$0")" || exit 1
python=${PYTHON:-python3} agree=0 differ=0 lacking=0
for source in numpy gguf ml_dtypes onnxruntime compressed_tensors transformers; do
    if ! $python -c "import importlib.util as u, sys; sys.exit(not u.find_spec('$source') or not u.find_spec('numpy'))" 2>/dev/null; then
        echo "$source: not installed"
        lacking=$((lacking + 1))
        continue
    fi
    out=$($python foreign_$source.py 2>&1) && status=0 || status=$?
    printf '%s\n' "$out"
    agree=$((agree + $(printf '%s\n' "$out" | grep -c ' agrees$')))
    differ=$((differ + $(printf '%s\n' "$out" | grep -c ' DIFFERS$')))
    [ $status -le 1 ] && ! printf '%s\n' "$out" | grep -q Traceback || differ=$((differ + 1))
done
echo "foreign: $agree agree, $differ differ, $lacking sources not installed"
[ $differ -eq 0 ]
