#!/usr/bin/env python3
"""Makes tests/golden/formats: checkpoints as their producers write them, and what they mean.

    tools/make_formats_goldens.py [PART...]     parts: the keys of PARTS below

Needs safetensors; for the checkpoints also torch, transformers, nvidia-modelopt and
compressed-tensors. Weights are random and tiny; every folder holds, beside the checkpoint, an
expected.safetensors with the weights dequantised to FP32 by the producer's own code ("<module>";
of large ones only the rows in "<module>.rows").
"""

import json
import os
import struct
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""
ROOT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "formats"


# --- safetensors files, sound and broken, with the verdict of the reference reader ---


def file_bytes(header, data=b"", pad=False):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype, shape, begin, end, **extra):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **extra}


def cases():
    one = entry("U8", [2], 0, 2)
    yield "sound", file_bytes({"a": one}, b"ab")
    yield "sound, padded", file_bytes({"a": one}, b"ab", pad=True)
    yield "no tensors", file_bytes({}, pad=True)
    yield "metadata", file_bytes({"__metadata__": {"format": "pt", "x": ""}, "a": one}, b"ab")
    yield "metadata null", file_bytes({"__metadata__": None, "a": one}, b"ab")
    yield "metadata number", file_bytes({"__metadata__": {"x": 1}, "a": one}, b"ab")
    yield "metadata nested", file_bytes({"__metadata__": {"x": {"y": "z"}}, "a": one}, b"ab")
    yield "metadata list", file_bytes({"__metadata__": ["x"], "a": one}, b"ab")
    yield "metadata string", file_bytes({"__metadata__": "x", "a": one}, b"ab")
    for dtype, bits in [("BOOL", 8), ("U8", 8), ("I8", 8), ("F8_E5M2", 8), ("F8_E4M3", 8),
                        ("F8_E8M0", 8), ("U16", 16), ("I16", 16), ("F16", 16), ("BF16", 16),
                        ("U32", 32), ("I32", 32), ("F32", 32), ("F64", 64), ("I64", 64),
                        ("U64", 64), ("C64", 64), ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8)]:
        size = 3 * bits // 8
        yield f"dtype {dtype}", file_bytes({"a": entry(dtype, [3], 0, size)}, bytes(size))
    yield "dtype F4", file_bytes({"a": entry("F4", [2, 2], 0, 2)}, b"ab")
    yield "dtype F4, half a byte", file_bytes({"a": entry("F4", [3], 0, 2)}, b"ab")
    yield "dtype F6_E2M3", file_bytes({"a": entry("F6_E2M3", [4], 0, 3)}, b"abc")
    yield "dtype unknown", file_bytes({"a": entry("F7", [2], 0, 2)}, b"ab")
    yield "dtype lower case", file_bytes({"a": entry("u8", [2], 0, 2)}, b"ab")
    yield "dtype number", file_bytes({"a": entry(8, [2], 0, 2)}, b"ab")
    yield "scalar", file_bytes({"a": entry("F32", [], 0, 4)}, bytes(4))
    yield "empty tensor", file_bytes({"a": entry("F32", [0, 7], 0, 0)})
    yield "empty tensor between", file_bytes(
        {"a": one, "b": entry("F32", [0], 2, 2), "c": entry("U8", [1], 2, 3)}, b"abc")
    yield "order of names differs", file_bytes(
        {"b": entry("U8", [2], 1, 3), "a": entry("U8", [1], 0, 1)}, b"abc")
    yield "unknown key", file_bytes({"a": entry("U8", [2], 0, 2, x=[{"y": [1]}, 2.5])}, b"ab")
    yield "repeated field", file_bytes(
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"ab")
    yield "repeated name, same bytes", file_bytes(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
        b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"ab")
    yield "repeated name, own bytes", file_bytes(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}', b"ab")
    for missing in ["dtype", "shape", "data_offsets"]:
        yield f"no {missing}", file_bytes({"a": {k: v for k, v in one.items() if k != missing}}, b"ab")
    yield "entry is a list", file_bytes({"a": [1]}, b"ab")
    yield "entry is null", file_bytes({"a": None}, b"ab")
    yield "header is a list", file_bytes(b"[]")
    yield "header is null", file_bytes(b"null")
    yield "header is empty", file_bytes(b"")
    yield "header starts with a space", file_bytes(b' {"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"ab")
    yield "header ends in a newline", file_bytes(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}\n', b"ab")
    yield "header ends in NUL", file_bytes(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}\0', b"ab")
    yield "header ends in a letter", file_bytes(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}x', b"ab")
    yield "header is cut", file_bytes(b'{"a":{"dtype":"U8","shape":[2]', b"ab")
    yield "trailing comma", file_bytes(b'{"a":{"dtype":"U8","shape":[2,],"data_offsets":[0,2]}}', b"ab")
    yield "comment", file_bytes(b'{/**/"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"ab")
    yield "name not UTF-8", file_bytes(b'{"\xff":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"ab")
    yield "name with escapes", file_bytes(b'{"a\\u00e9\\n\\u0000":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"ab")
    yield "name with half a surrogate", file_bytes(b'{"\\ud800":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"ab")
    yield "name empty", file_bytes({"": one}, b"ab")
    yield "shape negative", file_bytes({"a": entry("U8", [-2], 0, 2)}, b"ab")
    yield "shape fraction", file_bytes({"a": entry("U8", [2.5], 0, 2)}, b"ab")
    yield "shape 2.0", file_bytes({"a": entry("U8", [2.0], 0, 2)}, b"ab")
    yield "shape string", file_bytes({"a": entry("U8", ["2"], 0, 2)}, b"ab")
    yield "shape is a number", file_bytes({"a": entry("U8", 2, 0, 2)}, b"ab")
    yield "shape nested", file_bytes({"a": entry("U8", [[2]], 0, 2)}, b"ab")
    yield "shape too large for 64 bits", file_bytes({"a": entry("U8", [1 << 64], 0, 2)}, b"ab")
    yield "shape overflows", file_bytes({"a": entry("U8", [1 << 33, 1 << 33], 0, 2)}, b"ab")
    yield "shape times size overflows", file_bytes({"a": entry("F64", [1 << 61], 0, 0)})
    yield "shape overflows before a zero", file_bytes({"a": entry("U8", [1 << 33, 1 << 33, 0], 0, 0)})
    yield "offsets one", file_bytes({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0]}}, b"ab")
    yield "offsets three", file_bytes({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2, 2]}}, b"ab")
    yield "offsets negative", file_bytes({"a": entry("U8", [2], -1, 1)}, b"ab")
    yield "offsets fraction", file_bytes({"a": entry("U8", [2], 0, 2.5)}, b"ab")
    yield "offsets reversed", file_bytes({"a": entry("U8", [2], 2, 0)}, b"ab")
    yield "offsets begin late", file_bytes({"a": entry("U8", [1], 1, 2)}, b"ab")
    yield "offsets too large for 64 bits", file_bytes({"a": entry("U8", [2], 0, 1 << 64)}, b"ab")
    yield "offsets near 2^64", file_bytes({"a": entry("U8", [2], (1 << 64) - 2, (1 << 64) - 1)}, b"ab")
    yield "hole", file_bytes({"a": entry("U8", [1], 0, 1), "b": entry("U8", [1], 2, 3)}, b"abc")
    yield "overlap", file_bytes({"a": one, "b": entry("U8", [2], 1, 3)}, b"abc")
    yield "same bytes", file_bytes({"a": one, "b": one}, b"ab")
    yield "size too small", file_bytes({"a": entry("U8", [3], 0, 2)}, b"ab")
    yield "size too large", file_bytes({"a": entry("U8", [1], 0, 2)}, b"ab")
    yield "data cut", file_bytes({"a": one}, b"a")
    yield "data missing", file_bytes({"a": one})
    yield "data trailing", file_bytes({"a": one}, b"abc")
    yield "only trailing data", file_bytes({}, b"a")
    yield "file empty", b""
    yield "file of 7 bytes", b"\x02\0\0\0\0\0\0"
    yield "length beyond the file", struct.pack("<Q", 100) + b"{}"
    yield "length beyond the limit", struct.pack("<Q", 100_000_001) + b"{}"
    yield "length of 64 ones", b"\xff" * 8 + b"{}"
    yield "nested 30 deep", file_bytes(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":' + b"[" * 28 + b"]" * 28 + b"}}", b"ab")


def make_cases():
    from safetensors import deserialize

    out = []
    for name, data in cases():
        try:
            deserialize(data)
            verdict = ""
        except Exception as error:  # the reference raises one type for all
            verdict = str(error)
        out.append({"name": name, "hex": data.hex(), "reference": verdict})
    ROOT.mkdir(parents=True, exist_ok=True)
    (ROOT / "safetensors_cases.json").write_text(json.dumps(out, indent=0, ensure_ascii=True) + "\n")
    print(f"{len(out)} cases, {sum(not case['reference'] for case in out)} accepted")


# --- checkpoints ---


def tiny_llama():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=1, head_dim=16, vocab_size=40, max_position_embeddings=128,
                         architectures=["LlamaForCausalLM"], dtype="bfloat16")
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def fresh(name):
    folder = ROOT / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    return folder


def load(folder):
    from safetensors.torch import load_file

    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def save_expected(folder, expected):
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")
    total = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder.name}: {len(expected)} expected tensors, {total} bytes")


def make_modelopt():
    """NVFP4 (W4A4) as ModelOpt exports it, with its FP8 KV cache scales."""
    import copy

    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    model = tiny_llama()
    config = mtq.update_quant_cfg_with_kv_cache_quant(copy.deepcopy(mtq.NVFP4_DEFAULT_CFG),
                                                      copy.deepcopy(mtq.FP8_KV_CFG["quant_cfg"]))
    ids = torch.arange(24).reshape(1, 24)
    model = mtq.quantize(model, config, lambda calibrated: calibrated(ids))
    folder = fresh("modelopt_nvfp4")
    with torch.no_grad():
        export_hf_checkpoint(model, export_dir=str(folder))
    tensors = load(folder)
    expected = {}
    for name, codes in tensors.items():
        if codes.dtype != torch.uint8:
            continue
        shape = torch.Size((codes.shape[0], codes.shape[1] * 2))
        quantized = NVFP4QTensor(shape, torch.float32, codes)
        expected[name.removesuffix(".weight")] = quantized.dequantize(
            dtype=torch.float32, scale=tensors[name + "_scale"], double_scale=tensors[name + "_scale_2"],
            block_sizes={-1: 16})
    save_expected(folder, expected)


def calibrate(module, scheme, input_amax):
    """Sets a module's scales as compressed-tensors' own helpers compute them from the extremes."""
    import torch
    from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

    args = scheme.weights
    weight = module.weight.detach().float()
    rows, columns = weight.shape
    if args.strategy in ("tensor_group", "group"):
        parts = weight.reshape(rows, columns // args.group_size, args.group_size)
        low, high = parts.amin(-1), parts.amax(-1)
    elif args.strategy == "channel":
        low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    elif args.strategy == "block":
        height, width = args.block_structure
        grid = (-(-rows // height), -(-columns // width))
        low, high = torch.zeros(grid), torch.zeros(grid)
        for i in range(grid[0]):
            for j in range(grid[1]):
                block = weight[i * height:(i + 1) * height, j * width:(j + 1) * width]
                low[i, j], high[i, j] = block.min(), block.max()
    else:
        low, high = weight.min(), weight.max()
    global_scale = None
    if args.strategy == "tensor_group":
        global_scale = generate_gparam(weight.min(), weight.max())
        module.weight_global_scale.data = global_scale
        if scheme.input_activations is not None:
            module.input_global_scale.data = generate_gparam(torch.tensor(-input_amax), torch.tensor(input_amax))
    scale, _ = calculate_qparams(low, high, args, global_scale)
    module.weight_scale.data = scale.to(module.weight_scale.dtype).reshape(module.weight_scale.shape)
    if hasattr(module, "input_scale"):
        module.input_scale.data.fill_(input_amax / 448)


def dequantized(state, scheme):
    """The FP32 weight of a compressed module, by compressed-tensors' own functions."""
    import torch
    from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    scale = state["weight_scale"]
    if "weight_packed" in state:
        rows, half = state["weight_packed"].shape
        codes = unpack_fp4_from_uint8(state["weight_packed"], rows, half * 2, dtype=torch.float32)
    else:
        codes = state["weight"].float()
    if scale.dtype == torch.uint8:
        scale = MXFP4PackedCompressor._decompress_scale(scale, torch.float32)
    return dequantize(x_q=codes, scale=scale.float(), args=scheme.weights,
                      global_scale=state.get("weight_global_scale"), dtype=torch.float32)


def make_compressed():
    """NVFP4 (W4A4) as compressed-tensors writes it."""
    import torch
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme

    model = tiny_llama()
    scheme = preset_name_to_scheme("NVFP4", ["Linear"])
    apply_quantization_config(model, QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"]))
    for _, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None and hasattr(module, "weight"):
            calibrate(module, module.quantization_scheme, 3.5)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    folder = fresh("compressed_tensors_nvfp4")
    model.save_pretrained(folder)
    compressor.update_config(str(folder))
    tensors = load(folder)
    expected = {}
    for name in tensors:
        if name.endswith(".weight_packed"):
            module = name.removesuffix(".weight_packed")
            state = {key.removeprefix(module + "."): value for key, value in tensors.items()
                     if key.startswith(module + ".")}
            expected[module] = dequantized(state, scheme)
    save_expected(folder, expected)


def make_formats():
    """One linear in every other format of compressed-tensors that is read, in one file."""
    import torch
    from compressed_tensors.compressors.base import compress_module
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config, preset_name_to_scheme
    from safetensors.torch import save_file

    torch.manual_seed(1)
    shapes = {"NVFP4A16": (24, 48), "MXFP4A16": (24, 64), "FP8": (24, 40), "FP8_DYNAMIC": (24, 40),
              "FP8_BLOCK": (136, 144), "MXFP8A16": (24, 64)}
    layers = torch.nn.Module()
    for name, (rows, columns) in shapes.items():
        linear = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
        layers.add_module(name.lower(), linear)
    groups = {f"group_{i}": preset_name_to_scheme(name, [name.lower()]) for i, name in enumerate(shapes)}
    config = QuantizationConfig(config_groups=groups, ignore=[])
    apply_quantization_config(layers, config)
    tensors, expected = {}, {}
    for name, module in layers.named_children():
        scheme = module.quantization_scheme
        calibrate(module, scheme, 3.5)
        compress_module(module)
        state = {key: value.detach().contiguous() for key, value in module.state_dict().items()}
        tensors.update({f"{name}.{key}": value for key, value in state.items()})
        expected[name] = dequantized(state, scheme)
    rows = torch.tensor([0, 127, 128, 135])
    expected["fp8_block.rows"] = rows
    expected["fp8_block"] = expected["fp8_block"][rows]
    tensors["bf16.weight"] = torch.randn(5, 7, dtype=torch.bfloat16)
    tensors["f16.weight"] = torch.randn(5, 7, dtype=torch.float16)
    tensors["f32.weight"] = torch.randn(5, 7)
    for name in ["bf16", "f16", "f32"]:
        expected[name] = tensors[f"{name}.weight"].float()
    folder = fresh("compressed_tensors_formats")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = json.loads(config.model_dump_json())
    quantization["format"] = "mixed-precision"
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}, indent=1) + "\n")
    save_expected(folder, expected)


def modelopt_export(model, config):
    """Quantises and exports with ModelOpt: tensors, config.json and hf_quant_config.json."""
    import copy
    import tempfile

    import modelopt.torch.quantization as mtq
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    model.config.architectures = [type(model).__name__]
    ids = torch.arange(24).reshape(1, 24)
    model = mtq.quantize(model, copy.deepcopy(config), lambda calibrated: calibrated(input_ids=ids))
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        export_hf_checkpoint(model, export_dir=name)
        folder = Path(name)
        configs = [json.loads((folder / file).read_text()) for file in ["config.json", "hf_quant_config.json"]]
        return load(folder), configs[0]["quantization_config"], configs[1]


def modelopt_dequantized(state):
    """The FP32 weight of an exported linear, by ModelOpt's own tensor classes where it has one for what it exports."""
    import torch
    from modelopt.torch.quantization import qtensor

    weight, scale = state["weight"], state["weight_scale"]
    shape = torch.Size((weight.shape[0], weight.shape[1] * (2 if weight.dtype == torch.uint8 else 1)))
    arguments = {"dtype": torch.float32, "scale": scale}
    if weight.dtype == torch.uint8 and scale.dtype == torch.float8_e4m3fn:
        return qtensor.NVFP4QTensor(shape, torch.float32, weight).dequantize(
            **arguments, double_scale=state["weight_scale_2"], block_sizes={-1: 16})
    if weight.dtype == torch.uint8 and scale.dtype == torch.uint8:
        return qtensor.MXFP4QTensor(shape, torch.float32, weight).dequantize(**arguments, block_sizes={-1: 32})
    if weight.dtype == torch.float8_e4m3fn and scale.dtype == torch.uint8:
        return qtensor.MXFP8QTensor(shape, torch.float32, weight).dequantize(**arguments)
    if weight.dtype == torch.float8_e4m3fn and scale.dim() == 4:
        arguments["scale"] = scale.reshape(scale.shape[0], scale.shape[2])
        return qtensor.FP8QTensor(shape, torch.float32, weight).dequantize(**arguments, block_sizes={-1: 128, -2: 128})
    if weight.dtype == torch.uint8:  # two rows of signed nibbles in a byte
        low, high = (weight & 15).to(torch.int8), (weight >> 4).to(torch.int8)
        codes = torch.stack([low, high], 1).reshape(-1, weight.shape[1])
        codes = torch.where(codes > 7, codes - 16, codes)
        return codes.float() * scale.float().repeat_interleave(codes.shape[1] // scale.shape[1], 1)
    return weight.float() * (scale.float()[:, None] if scale.dim() == 1 else scale.float())


def make_modelopt_formats():
    """One linear in every format of ModelOpt that is read, each out of an export of its own, in one file; and the
    configs of all those exports."""
    import modelopt.torch.quantization as mtq
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ["NVFP4_DEFAULT_CFG", "W4A16_NVFP4_CFG", "FP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG",
             "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "INT4_AWQ_CFG", "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "W4A8_AWQ_BETA_CFG",
             "INT8_WEIGHT_ONLY_CFG", "INT8_SMOOTHQUANT_CFG", "MXFP4_DEFAULT_CFG", "MXFP8_DEFAULT_CFG"]
    mixed = dict(mtq.NVFP4_DEFAULT_CFG)
    fp8 = [entry for entry in mtq.FP8_DEFAULT_CFG["quant_cfg"] if "weight_quantizer" in str(entry.get("quantizer_name"))
           or "input_quantizer" in str(entry.get("quantizer_name"))]
    mixed["quant_cfg"] = list(mixed["quant_cfg"]) + [
        {**entry, "quantizer_name": "*self_attn" + entry["quantizer_name"]} for entry in fp8
        if entry["quantizer_name"] in ("*weight_quantizer", "*input_quantizer")]
    tensors, expected, configs = {}, {}, {}
    for name in [*names, "MIXED"]:
        torch.manual_seed(2)
        model = LlamaForCausalLM(LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=1,
            head_dim=16, vocab_size=40, max_position_embeddings=128, dtype="bfloat16")).to(torch.bfloat16).eval()
        attention = model.model.layers[0].self_attn
        wide = {"k_proj": attention.k_proj.weight.detach().float(),
                "down_proj": model.model.layers[0].mlp.down_proj.weight.detach().float()}
        exported, config, hf_quant = modelopt_export(model, mixed if name == "MIXED" else getattr(mtq, name))
        stem = name.removesuffix("_CFG").removesuffix("_DEFAULT").lower()
        configs[stem] = {"config.json": {"quantization_config": config}, "hf_quant_config.json": hf_quant}
        is_large = name in ("FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG", "MIXED")  # more than one block
        for module in ["k_proj", "down_proj"] if is_large else ["k_proj"]:
            if name == "MIXED" and module == "down_proj":
                continue
            path = f"model.layers.0.{'self_attn' if module == 'k_proj' else 'mlp'}.{module}"
            state = {key.removeprefix(path + "."): value for key, value in exported.items() if key.startswith(path + ".")
                     and not key.endswith(("k_scale", "v_scale"))}
            tensors.update({f"{stem}.{module}.{key}": value for key, value in state.items()})
            value = modelopt_dequantized(state)
            original = wide[module]
            smoothed = value * state["pre_quant_scale"].float() if "pre_quant_scale" in state else value
            error = (smoothed - original).abs().max() / original.abs().max()
            print(f"{stem}.{module}: {config['quant_algo']}, {sorted(state)}, largest error {error:.3f}")
            if "awq" not in stem and "smooth" not in stem:
                assert error < 0.2
            expected[f"{stem}.{module}"] = value
            if module == "down_proj":
                rows = torch.tensor([0, 3, 127])
                expected[f"{stem}.{module}.rows"], expected[f"{stem}.{module}"] = rows, value[rows]
    folder = fresh("modelopt_formats")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(configs["mixed"]["config.json"], indent=1) + "\n")
    (folder / "exports.json").write_text(json.dumps(configs, indent=1) + "\n")
    save_expected(folder, expected)


def make_deepseek():
    """Block FP8 as DeepSeek and Qwen publish it, written and read by transformers' conversions; scales as FP32 and as
    powers of two."""
    from types import SimpleNamespace

    import torch
    from safetensors.torch import save_file
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    torch.manual_seed(5)
    tensors, expected = {}, {}
    config = FineGrainedFP8Config(weight_block_size=(128, 128))
    for name, scale_fmt in [("float_scales", "float"), ("ue8m0_scales", "ue8m0")]:
        config.scale_fmt = scale_fmt
        quantizer = SimpleNamespace(quantization_config=config)
        stored = Fp8Quantize(quantizer)._quantize_one(f"{name}.weight", torch.randn(128, 256))
        tensors.update(stored)
        weight, scale = stored[f"{name}.weight"], stored[f"{name}.weight_scale_inv"]
        print(name, weight.dtype, scale.dtype, tuple(scale.shape))
        value = Fp8Dequantize(quantizer)._dequantize_one(weight, scale, torch.float32)
        rows = torch.tensor([0, 77])
        expected[f"{name}.rows"], expected[name] = rows, value[rows]
    folder = fresh("deepseek_fp8")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                    "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}, indent=1) + "\n")
    save_expected(folder, expected)


def make_integers():
    """Integers as compressed-tensors packs them, dequantised by its own decompressor."""
    import torch
    from compressed_tensors.compressors.base import compress_module, decompress_module
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
    from compressed_tensors.quantization import (QuantizationArgs, QuantizationConfig, QuantizationScheme,
                                                 apply_quantization_config)
    from compressed_tensors.quantization.utils.helpers import calculate_qparams
    from safetensors.torch import save_file

    torch.manual_seed(3)
    group = {"strategy": "group", "group_size": 32}
    schemes = {"w4_symmetric": {"num_bits": 4, "symmetric": True, **group},
               "w4_asymmetric": {"num_bits": 4, "symmetric": False, **group},
               "w4_channel": {"num_bits": 4, "symmetric": True, "strategy": "channel"},
               "w8_symmetric": {"num_bits": 8, "symmetric": True, **group},
               "w8_asymmetric": {"num_bits": 8, "symmetric": False, **group}}
    layers, groups = torch.nn.Module(), {}
    for name, args in schemes.items():
        columns = 36 if name == "w4_channel" else 96  # 36: the last word of a row is not full
        layers.add_module(name, torch.nn.Linear(columns, 20, bias=False, dtype=torch.bfloat16))
        groups[name] = QuantizationScheme(targets=[name], weights=QuantizationArgs(type="int", **args))
    config = QuantizationConfig(config_groups=groups, ignore=[])
    apply_quantization_config(layers, config)
    tensors, expected = {}, {}
    for name, module in layers.named_children():
        args = module.quantization_scheme.weights
        weight = module.weight.detach().float()
        size = args.group_size or weight.shape[1]
        parts = weight.reshape(weight.shape[0], -1, size)
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), args)
        module.weight_scale.data = scale.to(module.weight_scale.dtype).reshape(module.weight_scale.shape)
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero.to(module.weight_zero_point.dtype).reshape(scale.shape)
        compress_module(module)
        state = {key: value.detach().clone().contiguous() for key, value in module.state_dict().items()}
        tensors.update({f"{name}.{key}": value for key, value in state.items()})
        module.weight_scale.data = module.weight_scale.data.float()  # the product is not rounded to BF16 then
        decompress_module(module)
        expected[name] = module.weight.detach().float()
        error = (expected[name] - weight).abs().max() / weight.abs().max()
        print(name, module.weight.dtype, {key: (value.dtype, tuple(value.shape)) for key, value in state.items()}, float(error))
        assert error < 0.2
    # Act-order: this version writes none, so the columns of one of its weights are put in another order by hand.
    order = torch.randperm(96)
    packed = {key.removeprefix("w4_asymmetric."): value for key, value in tensors.items()
              if key.startswith("w4_asymmetric.")}
    codes = unpack_from_int32(packed["weight_packed"], 4, torch.Size([20, 96]))
    tensors.update({f"w4_act_order.{key}": value.clone() for key, value in packed.items()})
    tensors["w4_act_order.weight_packed"] = pack_to_int32(codes[:, order].contiguous(), 4)
    tensors["w4_act_order.weight_g_idx"] = (order // 32).to(torch.int32)
    expected["w4_act_order"] = expected["w4_asymmetric"][:, order]
    folder = fresh("compressed_tensors_integers")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    quantization = json.loads(config.model_dump_json())
    quantization["format"] = "pack-quantized"
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}, indent=1) + "\n")
    save_expected(folder, expected)


def expert_models():
    from transformers import (GptOssConfig, GptOssForCausalLM, Llama4ForCausalLM, Llama4TextConfig, MixtralConfig,
                              MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)
    from transformers.models.qwen3_vl_moe import Qwen3VLMoeTextConfig, Qwen3VLMoeTextModel

    base = {"hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 40, "max_position_embeddings": 64,
            "num_experts_per_tok": 1, "dtype": "bfloat16"}
    return {
        "gpt_oss": lambda: GptOssForCausalLM(GptOssConfig(**base, num_local_experts=2, layer_types=["full_attention"])),
        "llama4": lambda: Llama4ForCausalLM(Llama4TextConfig(
            **base, intermediate_size_mlp=16, num_local_experts=2, interleave_moe_layer_step=1, pad_token_id=0)),
        "qwen3_vl": lambda: Qwen3VLMoeTextModel(Qwen3VLMoeTextConfig(**base, moe_intermediate_size=16, num_experts=2)),
        "qwen3": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**base, moe_intermediate_size=16, num_experts=2)),
        "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**base, num_local_experts=2)),
    }


def make_experts():
    """Experts as transformers and ModelOpt store them; expected: every projection of expert 1, (N, K)."""
    import tempfile

    import modelopt.torch.quantization as mtq
    import torch
    from safetensors.torch import save_file
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    tensors, expected, chosen = {}, {}, 1
    names = ("gate_proj", "up_proj", "down_proj")
    for family, make in expert_models().items():
        for export, config in [("bf16", None), ("nvfp4", mtq.NVFP4_DEFAULT_CFG), ("fp8", mtq.FP8_DEFAULT_CFG)]:
            if family == "qwen3_vl" and export != "bf16":
                continue  # split into names of their own, as Qwen3's are
            torch.manual_seed(4)
            model = make().to(torch.bfloat16).eval()
            for parameter in model.parameters():
                if parameter.dim() == 3:
                    torch.nn.init.normal_(parameter.data, std=0.05)
            layer = (model.model if hasattr(model, "model") else model).layers[0]
            experts = (layer.feed_forward if family == "llama4" else layer.mlp).experts
            # (N, K) of the model in memory: what its forward pass multiplies.
            pair = experts.gate_up_proj.detach()[chosen].float()
            down = experts.down_proj.detach()[chosen].float()
            if family in ("gpt_oss", "llama4"):  # x @ W
                pair, down = pair.T, down.T
            gate, up = (pair[0::2], pair[1::2]) if family == "gpt_oss" else pair.chunk(2)
            original = dict(zip(names, (gate, up, down)))
            if config is None:
                with tempfile.TemporaryDirectory() as folder:
                    model.save_pretrained(folder)
                    stored = load(Path(folder))
            else:
                stored, _, _ = modelopt_export(model, config)
            prefix = f"{family}_{export}.experts."
            mine = {name.split("experts.", 1)[1]: value for name, value in stored.items() if "experts." in name
                    and "shared" not in name and not (name.split("experts.", 1)[1][0] == "0")}
            tensors.update({prefix + name: value for name, value in mine.items()})
            print(prefix, {name: (str(value.dtype), tuple(value.shape)) for name, value in mine.items()})
            for name, alias in zip(names, ("w1", "w3", "w2")):
                if "gate_up_proj" in mine:
                    value = stacked_value(mine, "down_proj" if name == "down_proj" else "gate_up_proj", chosen)
                    transposed = value.shape[0] == original[name].shape[1]
                    value = value.T if transposed else value
                    if name != "down_proj":
                        half = slice(name == "up_proj", None, 2) if family == "gpt_oss" else (
                            slice(16 * (name == "up_proj"), 16 * (name == "up_proj") + 16))
                        value = value[half]
                else:
                    own = f"{chosen}.{alias if family == 'mixtral' else name}."
                    state = {key.removeprefix(own): value for key, value in mine.items() if key.startswith(own)}
                    value = modelopt_dequantized(state) if "weight_scale" in state else state["weight"].float()
                assert value.shape == original[name].shape
                error = (value - original[name]).abs().max() / original[name].abs().max()
                assert error < {"bf16": 1e-9, "nvfp4": 0.2, "fp8": 0.05}[export], (prefix, name, error)
                expected[f"{prefix}{chosen}.{name}"] = value
    # gpt-oss as OpenAI publishes it: no package writes it, transformers reads it.
    for name, rows, columns in [("gate_up_proj", 64, 64), ("down_proj", 64, 32)]:
        blocks = torch.randint(0, 256, (2, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(100, 140, (2, rows, columns // 32), dtype=torch.uint8)
        tensors[f"gpt_oss_mxfp4.experts.{name}_blocks"] = blocks
        tensors[f"gpt_oss_mxfp4.experts.{name}_scales"] = scales
        value = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)[chosen].float().T  # exact in BF16
        parts = {"gate_proj": value[0::2], "up_proj": value[1::2]} if name == "gate_up_proj" else {"down_proj": value}
        for part, rows_of in parts.items():
            expected[f"gpt_oss_mxfp4.experts.{chosen}.{part}"] = rows_of
    folder = fresh("experts")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}\n")
    save_expected(folder, expected)


def stacked_value(stored, name, expert):
    """One expert of a stacked tensor as it lies, in FP32."""
    import torch
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    weight = stored[name]
    if weight.dtype == torch.uint8:  # pairs along the first axis of the matrix
        codes, scale = weight[expert].T.contiguous(), stored[name + "_weight_scale"][expert].T.contiguous()
        shape = torch.Size((codes.shape[0], codes.shape[1] * 2))
        return NVFP4QTensor(shape, torch.float32, codes).dequantize(
            dtype=torch.float32, scale=scale, double_scale=stored[name + "_weight_scale_2"], block_sizes={-1: 16}).T
    if weight.dtype == torch.float8_e4m3fn:
        return weight[expert].float() * stored[name + "_weight_scale"].float()
    return weight[expert].float()


def make_sharded():
    """BF16 in shards with an index, as transformers writes it."""
    model = tiny_llama()
    folder = fresh("sharded_bf16")
    model.save_pretrained(folder, max_shard_size="10KB")
    save_expected(folder, {"model.layers.0.mlp.up_proj": model.model.layers[0].mlp.up_proj.weight.detach().float()})


def make_corpus():
    """Seeds of the fuzz targets: the cases, one linear of each golden format, the golden configs."""
    from safetensors.torch import save

    fuzz = ROOT.parent.parent / "fuzz"
    seeds = fuzz / "safetensors_fuzz"
    seeds.mkdir(parents=True, exist_ok=True)
    for case in json.loads((ROOT / "safetensors_cases.json").read_text()):
        if not case["name"].startswith("dtype"):
            name = "".join(c if c.isalnum() else "_" for c in case["name"])
            (seeds / f"case_{name}").write_bytes(bytes.fromhex(case["hex"]))
    families = {}
    for name, tensor in load(ROOT / "experts").items():
        family, name = name.split(".", 1)
        if family in ("gpt_oss_nvfp4", "gpt_oss_mxfp4", "llama4_nvfp4", "llama4_fp8", "qwen3_vl_bf16"):
            families.setdefault(family, {})[name] = tensor
    for family, parts in families.items():
        (seeds / f"experts_{family}").write_bytes(save(parts))
    for folder in ["modelopt_nvfp4", "compressed_tensors_nvfp4", "compressed_tensors_formats", "modelopt_formats",
                   "compressed_tensors_integers"]:
        tensors = load(ROOT / folder)
        for module in {name.rsplit(".", 1)[0] for name in tensors}:
            if module.count(".") and not module.endswith(("k_proj", "o_proj")) or module == "fp8_block":
                continue
            parts = {"p." + name.rsplit(".", 1)[1]: tensor for name, tensor in tensors.items()
                     if name.rsplit(".", 1)[0] == module}
            stem = module.replace(".", "_") if folder == "modelopt_formats" else module.rsplit(".", 1)[-1]
            (seeds / f"{folder}_{stem}").write_bytes(save(parts))
    seeds = fuzz / "config_fuzz"
    seeds.mkdir(parents=True, exist_ok=True)
    for file in sorted(ROOT.glob("*/*.json")):
        (seeds / f"{file.parent.name}_{file.name}").write_bytes(file.read_bytes())
    extra = {"special_floats": '{"a": [NaN, -Infinity, {"__float__": "Infinity"}], "eos_token_id": [1, 2]}',
             "patterns": '{"quantization_config": {"quant_algo": "NVFP4", "ignore": '
                         '["re:.*(gate|up)_proj$", "model.layers.[!0-3]*", "lm_head.\\u0000x", "re:((("]}}',
             "mixed": '{"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": '
                      '{"lm_head": {"quant_algo": "FP8"}}}, "weight_map": {"a": "../x.safetensors"}}',
             "fp8_block": '{"text_config": {"quantization_config": {"quant_method": "fp8", '
                          '"weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}}}'}
    for name, text in extra.items():
        (seeds / name).write_text(text)


PARTS = {"cases": make_cases, "modelopt": make_modelopt, "compressed": make_compressed,
         "formats": make_formats, "sharded": make_sharded,
         "modelopt_formats": make_modelopt_formats, "integers": make_integers, "deepseek": make_deepseek, "experts": make_experts, "corpus": make_corpus}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
