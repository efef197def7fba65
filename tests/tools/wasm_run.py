"""Runs a WebAssembly program with WASI (wasmtime from PyPI), the current directory as its own: wasm_run.py PROGRAM [ARGUMENT...]"""
import sys
from wasmtime import Config, Engine, ExitTrap, Linker, Module, Store, WasiConfig

engine = Engine(Config())
store, linker, wasi = Store(engine), Linker(engine), WasiConfig()
wasi.argv = sys.argv[1:]
wasi.inherit_stdout()
wasi.inherit_stderr()
wasi.preopen_dir(".", ".")
store.set_wasi(wasi)
linker.define_wasi()
start = linker.instantiate(store, Module.from_file(engine, sys.argv[1])).exports(store)["_start"]
try:
    start(store)
except ExitTrap as e:
    sys.exit(e.code)
