#!/usr/bin/env python3
"""Makes tests/golden/quantize/sweep.safetensors: ModelOpt's sweep over all block scales.

    tools/make_quantize_goldens.py

Needs torch and nvidia-modelopt. The weights are those of tests/golden/formats/sharded_bf16. ModelOpt's
own calibrator chooses the scales from its own candidates; its fake quantisation needs a GPU, so the
calibrator is given one made of the encoder and decoder that ModelOpt exports with. Per linear:
"<module>" U8 (N, K/16), the E4M3 code of the chosen scale.
"""

import os
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


def main():
    import torch
    from modelopt.torch.quantization.calib.mse import NVFP4MSECalibrator
    from safetensors.torch import load_file, save_file

    chosen = {}
    for file in sorted((GOLDEN / "formats" / "sharded_bf16").glob("model*.safetensors")):
        for name, weight in load_file(file).items():
            if not name.endswith("_proj.weight"):
                continue
            rows, columns = weight.shape
            blocks = weight.float().reshape(-1, BLOCK)
            calibrator = NVFP4MSECalibrator(amax=blocks.abs().amax(-1), axis=0, quant_func=fake_quantise,
                                            global_amax=weight.abs().max())
            calibrator.collect(blocks)
            # The chosen amax is a candidate (an E4M3 value / 448) times the tensor's.
            values = calibrator.compute_amax() / weight.abs().max().float() * 448
            codes = values.to(torch.float8_e4m3fn).view(torch.uint8)
            chosen[name.removesuffix(".weight")] = codes.reshape(rows, columns // BLOCK).contiguous()
    folder = GOLDEN / "quantize"
    folder.mkdir(exist_ok=True)
    save_file(chosen, folder / "sweep.safetensors")
    print(f"{len(chosen)} linears, {sum(codes.numel() for codes in chosen.values())} blocks")


if __name__ == "__main__":
    main()
