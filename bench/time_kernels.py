#!/usr/bin/env python3
"""Times the kernels of libnibble_kernels.so: linears and mixtures of experts at cold weights, in a CUDA graph.

    bench/time_kernels.py LIBRARY [--linear NxK]... [--moe DxFxExTOPK]... [--tokens 1,8,64] [--json FILE]

Each launch of a chain reads what its predecessor wrote. Needs the driver alone, no torch; Kernels takes any device pointers,
those of torch too (tensor.data_ptr()).
"""
import argparse
import ctypes
import json
import random
import statistics
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p

COLD_BYTES = 256 << 20
LAUNCHES = 64  # of a chain, at least


class Nvfp4(Structure):
    _fields_ = [("rows", c_int64), ("columns", c_int64), ("codes", c_void_p), ("scales", c_void_p), ("scale", c_float)]


class MoeConfig(Structure):
    _fields_ = [("struct_bytes", c_size_t), ("width", c_int64), ("hidden", c_int64), ("experts", c_int32),
                ("top_k", c_int32), ("score", c_int32), ("renormalize", c_int32), ("routed_scale", c_float),
                ("choice_bias", c_void_p), ("router", c_void_p), ("gate_up", POINTER(c_void_p)),
                ("down", POINTER(c_void_p)), ("shared_hidden", c_int64), ("shared_gate_up", c_void_p),
                ("shared_down", c_void_p), ("shared_gate", c_void_p)]


class Kernels:
    """The library, with errors as exceptions. Pointers are integers."""

    def __init__(self, path, gpu=0):
        self.library = ctypes.CDLL(path)
        lib = self.library
        lib.nibble_last_error.restype = lib.nibble_gpu_name.restype = c_char_p
        lib.nibble_gpu_name.argtypes = [c_void_p]
        lib.nibble_open.argtypes = [c_int32, POINTER(c_void_p)]
        lib.nibble_weight_nvfp4.argtypes = [c_void_p, POINTER(Nvfp4), c_size_t, POINTER(c_void_p)]
        lib.nibble_weight_bf16.argtypes = [c_void_p, c_int64, c_int64, c_void_p, POINTER(c_void_p)]
        lib.nibble_weight_bytes.argtypes = [c_void_p]
        lib.nibble_weight_bytes.restype = c_int64
        lib.nibble_weight_destroy.argtypes = lib.nibble_moe_destroy.argtypes = [c_void_p]
        lib.nibble_linear_workspace.argtypes = [c_void_p, c_int64, c_int64]
        lib.nibble_linear_workspace.restype = lib.nibble_moe_workspace.restype = c_size_t
        lib.nibble_linear.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_void_p,
                                      c_size_t, c_void_p]
        lib.nibble_moe_create.argtypes = [c_void_p, POINTER(MoeConfig), POINTER(c_void_p)]
        lib.nibble_moe_workspace.argtypes = [c_void_p, c_int64]
        lib.nibble_moe_run.argtypes = [c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p]
        self.gpu = c_void_p()
        self.check(lib.nibble_open(gpu, byref(self.gpu)))
        self.name = lib.nibble_gpu_name(self.gpu).decode()

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.library.nibble_last_error().decode())

    def nvfp4(self, parts):
        """A weight of (rows, columns, codes, scales, scale) parts, with pointers of host or device."""
        weight = c_void_p()
        self.check(self.library.nibble_weight_nvfp4(self.gpu, (Nvfp4 * len(parts))(*parts), len(parts), byref(weight)))
        return weight

    def bf16(self, rows, columns, values):
        weight = c_void_p()
        self.check(self.library.nibble_weight_bf16(self.gpu, rows, columns, values, byref(weight)))
        return weight

    def weight_bytes(self, weight):
        return self.library.nibble_weight_bytes(weight)

    def linear_workspace(self, tokens, columns):
        return self.library.nibble_linear_workspace(self.gpu, tokens, columns)

    def linear(self, weight, tokens, x, x_stride, y, y_stride, workspace, workspace_bytes, stream):
        self.check(self.library.nibble_linear(self.gpu, weight, tokens, x, x_stride, y, y_stride, workspace,
                                              workspace_bytes, stream))

    def moe(self, width, hidden, top_k, router, gate_up, down, renormalize=True):
        pointers = lambda weights: (c_void_p * len(weights))(*weights)
        config = MoeConfig(struct_bytes=ctypes.sizeof(MoeConfig), width=width, hidden=hidden, experts=len(gate_up),
                           top_k=top_k, renormalize=renormalize, routed_scale=1.0, router=router,
                           gate_up=pointers(gate_up), down=pointers(down))
        moe = c_void_p()
        self.check(self.library.nibble_moe_create(self.gpu, byref(config), byref(moe)))
        return moe

    def moe_workspace(self, moe, tokens):
        return self.library.nibble_moe_workspace(moe, tokens)

    def run_moe(self, moe, tokens, x, y, workspace, workspace_bytes, stream):
        self.check(self.library.nibble_moe_run(moe, tokens, x, y, workspace, workspace_bytes, stream))


class Driver:
    """What timing needs of libcuda.so.1, in the context that the library has made current."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.stream = c_void_p()
        self.call("cuStreamCreate", byref(self.stream), 1)

    def call(self, name, *arguments):
        error = getattr(self.cuda, name)(*arguments)
        if error != 0:
            raise RuntimeError(f"{name}: CUDA error {error}")

    def allocate(self, size):
        pointer = c_void_p()
        self.call("cuMemAlloc_v2", byref(pointer), c_size_t(max(size, 1)))
        return pointer.value

    def put(self, data):
        pointer = self.allocate(len(data))
        self.call("cuMemcpyHtoD_v2", c_void_p(pointer), data, c_size_t(len(data)))
        return pointer

    def record(self, launch):
        """A graph of what `launch` launches on self.stream."""
        graph, executable = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", self.stream, 1)  # thread-local
        launch()
        self.call("cuStreamEndCapture", self.stream, byref(graph))
        self.call("cuGraphInstantiateWithFlags", byref(executable), graph, ctypes.c_ulonglong(0))
        return executable

    def microseconds(self, graph, repeat=7):
        """The median of some runs of a graph."""
        begin, end, times = c_void_p(), c_void_p(), []
        for event in (begin, end):
            self.call("cuEventCreate", byref(event), 0)
        for run in range(repeat + 2):
            self.call("cuEventRecord", begin, self.stream)
            self.call("cuGraphLaunch", graph, self.stream)
            self.call("cuEventRecord", end, self.stream)
            self.call("cuStreamSynchronize", self.stream)
            elapsed = c_float()
            self.call("cuEventElapsedTime", byref(elapsed), begin, end)
            if run >= 2:
                times.append(1000 * elapsed.value)
        return statistics.median(times)


def scale_bytes(count):
    return bytes(0x30 + (i * 7 & 7) for i in range(16)) * (count // 16 + 1)


def make_nvfp4(kernels, rows, columns):
    codes = random.randbytes(rows * columns // 2)
    scales = scale_bytes(rows * columns // 16)
    addresses = [ctypes.cast(c_char_p(data), c_void_p).value for data in (codes, scales)]
    return kernels.nvfp4([(rows, columns, *addresses, 0.3 / columns**0.5)])


def make_bf16(kernels, rows, columns):
    # From 2^-9 to 2^-8, either sign.
    data = b"".join(bytes((random.randrange(256), 0x3B | random.randrange(2) << 7)) for _ in range(rows * columns))
    return kernels.bf16(rows, columns, ctypes.cast(c_char_p(data), c_void_p).value)


def activations(driver, tokens, width):
    return driver.put(b"".join(bytes((random.randrange(256), 0x3F | random.randrange(2) << 7))
                               for _ in range(tokens * width)))


def time_linear(kernels, driver, rows, columns, tokens_list):
    copies = max(2, min(LAUNCHES, COLD_BYTES // (rows * columns * 9 // 16) + 1))
    weights = [make_nvfp4(kernels, rows, columns) for _ in range(copies)]
    launches = copies * (LAUNCHES // copies + 1)
    width = max(rows, columns)
    for tokens in tokens_list:
        # x of a launch is y of the one before, and the other way round.
        buffers = [activations(driver, tokens, width) for _ in range(2)]
        size = kernels.linear_workspace(tokens, columns)
        workspace = driver.allocate(size)

        def launch():
            for i in range(launches):
                kernels.linear(weights[i % copies], tokens, buffers[i % 2], width, buffers[1 - i % 2], width, workspace,
                               size, driver.stream)

        launch()
        driver.call("cuStreamSynchronize", driver.stream)
        each = driver.microseconds(driver.record(launch)) / launches
        read = kernels.weight_bytes(weights[0])
        yield {"op": "linear", "rows": rows, "columns": columns, "tokens": tokens, "us": each, "bytes": read,
               "GB/s": read / each / 1e3, "TFLOP/s": 2e-6 * rows * columns * tokens / each}


def time_moe(kernels, driver, width, hidden, experts, top_k, tokens_list):
    expert_bytes = 3 * width * hidden * 9 // 16
    blocks = max(1, min(8, COLD_BYTES // (experts * expert_bytes) + 1))
    made = []
    for _ in range(blocks):
        made.append(kernels.moe(width, hidden, top_k, make_bf16(kernels, experts, width),
                                [make_nvfp4(kernels, 2 * hidden, width) for _ in range(experts)],
                                [make_nvfp4(kernels, width, hidden) for _ in range(experts)]))
    launches = blocks * (LAUNCHES // blocks + 1)
    for tokens in tokens_list:
        # Every launch has tokens of its own, which choose experts of their own.
        inputs = [activations(driver, tokens, width) for _ in range(launches)]
        y = driver.allocate(tokens * width * 2)
        size = kernels.moe_workspace(made[0], tokens)
        workspace = driver.allocate(size)

        def launch():
            for i in range(launches):
                kernels.run_moe(made[i % blocks], tokens, inputs[i], y, workspace, size, driver.stream)

        launch()
        driver.call("cuStreamSynchronize", driver.stream)
        each = driver.microseconds(driver.record(launch)) / launches
        hit = experts * (1 - (1 - top_k / experts)**tokens)  # if tokens choose evenly
        yield {"op": "moe", "width": width, "hidden": hidden, "experts": experts, "top_k": top_k, "tokens": tokens,
               "us": each, "bytes": hit * expert_bytes, "GB/s": hit * expert_bytes / each / 1e3}


def main():
    sizes = lambda text: tuple(int(part) for part in text.split("x"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--linear", action="append", default=[], type=sizes, metavar="NxK")
    parser.add_argument("--moe", action="append", default=[], type=sizes, metavar="DxFxExTOPK")
    parser.add_argument("--tokens", default="1,8,64")
    parser.add_argument("--json")
    options = parser.parse_args()
    tokens = [int(text) for text in options.tokens.split(",")]
    if not options.linear and not options.moe:
        options.linear = [(4096, 2048), (8192, 8192)]
    random.seed(1)
    kernels = Kernels(options.library)
    driver = Driver()
    print(kernels.name)
    results = []
    for shape in options.linear:
        results += time_linear(kernels, driver, *shape, tokens)
    for shape in options.moe:
        results += time_moe(kernels, driver, *shape, tokens)
    for result in results:
        shape = "x".join(str(value) for name, value in result.items()
                         if name in ("rows", "columns", "width", "hidden", "experts", "top_k"))
        print(f"{result['op']:7} {shape:20} tokens {result['tokens']:5}  {result['us']:8.2f} us  {result['GB/s']:7.0f} GB/s")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"gpu": kernels.name, "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
