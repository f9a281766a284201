#!/usr/bin/env python3
"""Checks the GPU code of a binary: no kernel uses more stack (spilled registers, local arrays) than
tools/cubin_stacks.txt allows, kernels hold the instructions that they were written for, none holds one that the
compiler gets wrong, and none touches registers of a wgmma under way (wgmma_hazards.py).

    tools/check_cubins.py BINARY [--cuobjdump PATH] [--nvdisasm PATH] [--update]

--update rewrites the list from what the binary has, for its architectures. Stacks are of a kernel's largest instance, by architecture; kernels
that are not listed have none. Instructions are found by the low 12 bits of their 16 bytes, so that no disassembler needs
to know them. cuobjdump, nvdisasm: packaging/cuda-binary-tools.sh prints where they are.
"""
import argparse
import collections
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import wgmma_hazards  # noqa: E402

LIST = pathlib.Path(__file__).with_name("cubin_stacks.txt")

OPCODES = {
    "HMMA": 0x23C,  # tensor cores, mma.sync of 16-bit types
    "HGMMA": 0xDF0,  # wgmma
    "QGMMA": 0xDF3,  # wgmma of 8-bit types
    "OMMA": 0x47F,  # block-scaled FP4 MMA
    "F2FP": 0x23E,  # conversions of pairs
    "LDGSTS": 0xFAE,  # cp.async
    "UBLKCP": 0x3BA,  # bulk copies
}

# VIMNMX.RELU clamps from both sides. nvcc 13.0 takes a predicate that it sets for `is the upper bound`, but it says that the
# value was at most that: seen on sm_90 and sm_100.
VIMNMX = 0x048  # low 9 bits; the next 3 say where its operands are
RELU_BIT = 76
PREDICATES = (81, 84)  # 3 bits each; 7: not written

# Names of extracted files leave the family out.
FAMILIES = {"120": "120f"}

# Kernel, architectures (None: all), what at least one instance must hold.
NEEDED = [
    ("decode::DecodeKernel", None, ["HMMA", "LDGSTS"]),
    ("StreamTokenKernel", ["90a", "100a", "120f"], ["HMMA", "UBLKCP"]),
    ("OneTokenKernel", ["90a", "100a", "120f"], ["HMMA", "UBLKCP"]),
    ("moe::OneDownKernel", ["90a", "100a", "120f"], ["HMMA", "UBLKCP"]),
    ("TilesKernel", ["90a"], ["HGMMA", "LDGSTS"]),
    ("TurnsKernel", ["90a"], ["HGMMA", "LDGSTS"]),
    ("PairsKernel", ["90a"], ["HGMMA", "LDGSTS", "UBLKCP"]),
    ("PrefillAttentionKernel", ["90a"], ["HGMMA"]),
    ("fp8::ScaledTilesKernel", ["90a"], ["QGMMA", "LDGSTS"]),
    ("w4a4::LinearKernel", ["120f"], ["OMMA", "LDGSTS"]),
    ("w4a4::ProductKernel", ["120f"], ["OMMA", "LDGSTS"]),
    ("w4a4::QuantizeKernel", ["120f"], ["F2FP"]),
]


def plain_names(mangled):
    """Demangled, without parameters, template arguments and anonymous namespaces: kernels::cuda::DecodeKernel."""
    names = list(mangled)
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return {name: plain_name(demangled) for name, demangled in zip(names, done.stdout.splitlines())}


def plain_name(demangled):
    text = demangled.replace("(anonymous namespace)::", "").replace("operator()", "call")
    out, depth = "", 0
    for character in text:
        if character in "<(":
            if character == "(" and depth == 0:
                break
            depth += 1
        elif character in ">)":
            depth -= 1
        elif depth == 0:
            out += character
    return out.split()[-1].removeprefix("nibble::kernels::cuda::")


def stacks_of(resource_usage):
    """(architecture, mangled kernel) -> bytes, from what cuobjdump --dump-resource-usage prints."""
    stacks, arch = {}, None
    kernel = None
    for line in resource_usage.splitlines():
        if match := re.search(r"arch = sm_(\w+)", line):
            arch = match.group(1)
        elif match := re.search(r"Function (\S+):", line):
            kernel = match.group(1)
        elif match := re.search(r"STACK:(\d+)", line):
            stacks[arch, kernel] = int(match.group(1))
    return stacks


def text_sections(elf):
    """Mangled kernel -> code, of a 64-bit little-endian ELF."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF")
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = headers[names_at]
    code = {}
    for name, _, _, _, offset, length in headers:
        start = names[4] + name
        text = elf[start : elf.index(b"\0", start)].decode()
        if text.startswith(".text."):
            code[text.removeprefix(".text.")] = elf[offset : offset + length]
    return code


def opcodes_in(code):
    return {low | (high & 15) << 8 for low, high in set(zip(code[0::16], code[1::16]))}


def sets_clamp_predicate(instruction):
    """Of 16 bytes."""
    bits = int.from_bytes(instruction, "little")
    if bits & 0x1FF != VIMNMX or not bits >> RELU_BIT & 1:
        return False
    return any(bits >> at & 7 != 7 for at in PREDICATES)


def clamp_errors(code):
    """code: (architecture, plain kernel) -> code of all its instances."""
    errors = []
    for (arch, kernel), sections in sorted(code.items()):
        count = sum(sets_clamp_predicate(text[at : at + 16]) for text in sections for at in range(0, len(text), 16))
        if count > 0:
            errors.append(f"{kernel} on sm_{arch}: a clamp's result is tested by VIMNMX.RELU, {count} times; clamp from one side")
    return errors


def read_list(path):
    allowed = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line and not line.startswith("#"):
            arch, kernel, size = line.split()
            allowed[arch, kernel] = int(size)
    return allowed


def write_list(path, stacks):
    lines = ["# Largest stack of a kernel's instances in bytes, by architecture: tools/check_cubins.py --update."]
    lines += [f"{arch} {kernel} {size}" for (arch, kernel), size in sorted(stacks.items()) if size > 0]
    path.write_text("\n".join(lines) + "\n")


def updated(allowed, largest):
    """What the binary has, and what the list says of architectures that it lacks."""
    there = {arch for arch, _ in largest}
    return {key: size for key, size in allowed.items() if key[0] not in there} | largest


def largest_stacks(stacks):
    names = plain_names({kernel for _, kernel in stacks})
    largest = collections.defaultdict(int)
    for (arch, kernel), size in stacks.items():
        key = arch, names[kernel]
        largest[key] = max(largest[key], size)
    return largest


def stack_errors(largest, allowed):
    return [
        f"{kernel} on sm_{arch}: {size} bytes of stack, allowed {allowed.get((arch, kernel), 0)}"
        for (arch, kernel), size in sorted(largest.items())
        if size > allowed.get((arch, kernel), 0)
    ]


def instruction_errors(opcodes, needed=None):
    """opcodes: (architecture, plain kernel) -> those of all its instances."""
    errors = []
    for kernel, archs, wanted in NEEDED if needed is None else needed:
        for arch in sorted({a for a, _ in opcodes}):
            if archs is not None and arch not in archs:
                continue
            found = [codes for (a, name), codes in opcodes.items() if a == arch and name.endswith(kernel)]
            if not found:
                errors.append(f"{kernel} on sm_{arch}: no such kernel")
            for instruction in wanted:
                if found and not any(OPCODES[instruction] in codes for codes in found):
                    errors.append(f"{kernel} on sm_{arch}: no {instruction}")
    return errors


def hazard_errors(hazards):
    """hazards: (architecture, mangled kernel) -> wgmma_hazards.hazards_of."""
    names = plain_names({kernel for _, kernel in hazards})
    return [
        f"{names[kernel]} on sm_{arch}: {len(found)} instructions touch registers of a wgmma under way, the first at 0x{found[0][0]}: "
        f"{found[0][1]}; pin what it reads behind its wait ({kernel})"
        for (arch, kernel), found in sorted(hazards.items())
    ]


def extract(cuobjdump, nvdisasm, binary):
    """(architecture, mangled kernel) -> code, and those whose wgmma are in danger -> wgmma_hazards.hazards_of."""
    extracted, hazards = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([cuobjdump, "-xelf", "all", binary.resolve()], cwd=folder, check=True, capture_output=True)
        for path in pathlib.Path(folder).glob("*.cubin"):
            arch = re.search(r"sm_(\w+)\.cubin$", path.name).group(1)
            arch = FAMILIES.get(arch, arch)
            sections = text_sections(path.read_bytes())
            extracted |= {(arch, kernel): code for kernel, code in sections.items()}
            if any(OPCODES[mma] in opcodes_in(code) for code in sections.values() for mma in ("HGMMA", "QGMMA")):
                text = subprocess.run([nvdisasm, "-c", path], check=True, capture_output=True, text=True).stdout
                hazards |= {(arch, kernel): found for kernel, found in wgmma_hazards.hazards(text).items()}
    return extracted, hazards


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument("--nvdisasm", default="nvdisasm")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()

    usage = subprocess.run([options.cuobjdump, "--dump-resource-usage", options.binary], capture_output=True, text=True,
                           check=True).stdout
    largest = largest_stacks(stacks_of(usage))
    if not largest:
        print(f"{options.binary} holds no GPU code")
        return 1
    if options.update:
        write_list(LIST, updated(read_list(LIST), largest))
    extracted, hazards = extract(options.cuobjdump, options.nvdisasm, options.binary)
    names = plain_names({kernel for _, kernel in extracted})
    opcodes, code = collections.defaultdict(set), collections.defaultdict(list)
    for (arch, kernel), text in extracted.items():
        opcodes[arch, names[kernel]] |= opcodes_in(text)
        code[arch, names[kernel]].append(text)
    errors = stack_errors(largest, read_list(LIST)) + instruction_errors(opcodes) + clamp_errors(code) + hazard_errors(hazards)
    for error in errors:
        print(error)
    archs = ", ".join(sorted({arch for arch, _ in largest}))
    print(f"{len(extracted)} kernels for {archs}: {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
