#!/usr/bin/env python3
"""Makes tests/golden/quantize: what ModelOpt and compressed-tensors make of the weights of
tests/golden/formats/sharded_bf16.

    tools/make_quantize_goldens.py [PART...]     parts: sweep, mxfp4, compressed

Needs torch, nvidia-modelopt and compressed-tensors; `compressed` also build/release/nibble.

sweep.safetensors       ModelOpt's sweep over all block scales. Its own calibrator chooses from its own
                        candidates; its fake quantisation needs a GPU, so the calibrator is given one
                        made of the encoder and decoder that ModelOpt exports with. Per linear:
                        "<module>" U8 (N, K/16), the E4M3 code of the chosen scale.
mxfp4.safetensors       ModelOpt's MXFP4: "<module>" U8 (N, K/2), "<module>.scale" U8 (N, K/32).
compressed.safetensors  our exports in the compressed-tensors layout as its own decompressor reads
                        them, with the config that we wrote: "<format>.<method>.<module>" BF16 (N, K).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"
BLOCK = 16


def fake_quantise(blocks, amax):
    import torch
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    scale = (amax / 6).reshape(-1, 1)
    codes = NVFP4QTensor._cast_fp4((blocks / scale).reshape(blocks.shape))
    packed = codes[..., 0::2] | codes[..., 1::2] << 4
    one = torch.ones(blocks.shape[0], 1)
    quantised = NVFP4QTensor(blocks.shape, torch.float32, packed)
    values = quantised.dequantize(dtype=torch.float32, scale=one, double_scale=torch.tensor(1.0),
                                  block_sizes={-1: BLOCK})
    return values * scale


def source_weights():
    from safetensors.torch import load_file

    for file in sorted((GOLDEN / "formats" / "sharded_bf16").glob("model*.safetensors")):
        for name, weight in load_file(file).items():
            if name.endswith("_proj.weight"):
                yield name.removesuffix(".weight"), weight


def save(tensors, name):
    from safetensors.torch import save_file

    folder = GOLDEN / "quantize"
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    print(f"{name}: {len(tensors)} tensors")


def make_sweep():
    import torch
    from modelopt.torch.quantization.calib.mse import NVFP4MSECalibrator

    chosen = {}
    for module, weight in source_weights():
        rows, columns = weight.shape
        blocks = weight.float().reshape(-1, BLOCK)
        calibrator = NVFP4MSECalibrator(amax=blocks.abs().amax(-1), axis=0, quant_func=fake_quantise,
                                        global_amax=weight.abs().max())
        calibrator.collect(blocks)
        # The chosen amax is a candidate (an E4M3 value / 448) times the tensor's.
        values = calibrator.compute_amax() / weight.abs().max().float() * 448
        codes = values.to(torch.float8_e4m3fn).view(torch.uint8)
        chosen[module] = codes.reshape(rows, columns // BLOCK).contiguous()
    save(chosen, "sweep.safetensors")


def make_mxfp4():
    from modelopt.torch.quantization.qtensor.mxfp4_tensor import MXFP4QTensor

    made = {}
    for module, weight in source_weights():
        if weight.shape[1] % 32:
            continue
        tensor, scale = MXFP4QTensor.quantize(weight, 32)
        made[module] = tensor._quantized_data.contiguous()
        made[module + ".scale"] = scale.reshape(weight.shape[0], -1).contiguous()
    save(made, "mxfp4.safetensors")


def decompress(folder):
    """Every compressed linear of the folder, by the compressor that its config names."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    written = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(written)
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(written["format"])
    linears = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        module, _, suffix = name.rpartition(".")
        linears.setdefault(module, {})[suffix] = tensor
    for module, state in linears.items():
        if "weight_scale" in state:
            yield module, compressor.decompress(state, scheme)["weight"]


def make_compressed():
    import torch

    made = {}
    for kind, method in [("nvfp4", "max"), ("nvfp4", "mse"), ("nvfp4", "four-over-six"), ("mxfp4", "mse"),
                         ("int4", "mse"), ("fp8", "max")]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "out"
            subprocess.run([GOLDEN.parent.parent / "build/release/nibble", "quantize", GOLDEN / "formats/sharded_bf16",
                            folder, "--format", kind, "--method", method, "--layout", "compressed-tensors"],
                           check=True, capture_output=True)
            for module, weight in decompress(folder):
                made[f"{kind}.{method}.{module}"] = weight.to(torch.bfloat16).contiguous()
    save(made, "compressed.safetensors")


def main():
    parts = {"sweep": make_sweep, "mxfp4": make_mxfp4, "compressed": make_compressed}
    for part in sys.argv[1:] or parts:
        parts[part]()


if __name__ == "__main__":
    main()
