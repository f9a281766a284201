"""The check of GPU code reads what cuobjdump prints and what cubins hold, and complains where it should."""
import importlib.util
import pathlib
import struct

PATH = pathlib.Path(__file__).resolve().parent.parent / "tools" / "check_cubins.py"
spec = importlib.util.spec_from_file_location("check_cubins", PATH)
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

USAGE = """
Fatbin elf code:
================
arch = sm_90a
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z1av:
  REG:40 STACK:24 SHARED:0 LOCAL:0 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z1bv:
  REG:40 STACK:0 SHARED:0 LOCAL:0 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_120f
 Function _Z1av:
  REG:40 STACK:8 SHARED:0 LOCAL:0 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def make_elf(sections):
    """A 64-bit ELF that holds just sections: name -> bytes."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in sections) + b".shstrtab\0"
    body, headers, at, name_at = b"", [bytes(64)], 64, 1
    for name, data in [*sections.items(), (".shstrtab", names)]:
        headers.append(struct.pack("<IIQQQQ", name_at, 1, 0, 0, at, len(data)).ljust(64, b"\0"))
        body += data
        at += len(data)
        name_at += len(name) + 1
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 0x28, at)
    struct.pack_into("<HHH", header, 0x3A, 64, len(headers), len(headers) - 1)
    return bytes(header) + body + b"".join(headers)


def instruction(opcode):
    return struct.pack("<H", 0x7000 | opcode) + bytes(14)


def test_stacks_are_read_per_architecture():
    assert check.stacks_of(USAGE) == {("90a", "_Z1av"): 24, ("90a", "_Z1bv"): 0, ("120f", "_Z1av"): 8}


def test_a_stack_above_the_list_is_an_error_and_one_below_is_not():
    largest = {("90a", "decode::Kernel"): 24, ("120f", "decode::Kernel"): 8, ("80", "Other"): 0}
    errors = check.stack_errors(largest, {("90a", "decode::Kernel"): 16, ("120f", "decode::Kernel"): 8})
    assert errors == ["decode::Kernel on sm_90a: 24 bytes of stack, allowed 16"]


def test_the_list_survives_a_round_trip(tmp_path):
    path = tmp_path / "list.txt"
    check.write_list(path, {("90a", "b"): 24, ("120f", "a"): 8, ("80", "c"): 0})
    assert check.read_list(path) == {("90a", "b"): 24, ("120f", "a"): 8}


def test_an_update_keeps_architectures_that_the_binary_lacks():
    allowed = {("90a", "a"): 24, ("90a", "gone"): 8, ("80", "a"): 16}
    assert check.updated(allowed, {("90a", "a"): 32}) == {("90a", "a"): 32, ("80", "a"): 16}


def test_names_lose_parameters_and_template_arguments():
    name = "void nibble::kernels::cuda::decode::(anonymous namespace)::Kernel<(nibble::X)1, 2>(nibble::Args<int>)"
    assert check.plain_name(name) == "decode::Kernel"


def test_opcodes_are_found_in_a_cubin():
    elf = make_elf({".text._Z1av": instruction(check.OPCODES["OMMA"]) + instruction(check.OPCODES["HMMA"]),
                    ".nv.info": b"\x01\x02"})
    code = check.text_sections(elf)
    assert list(code) == ["_Z1av"]
    assert check.opcodes_in(code["_Z1av"]) == {0x47F, 0x23C}


def test_a_missing_instruction_and_a_missing_kernel_are_errors():
    needed = [("Kernel", ["90a"], ["HGMMA"]), ("Gone", None, ["HMMA"])]
    opcodes = {("90a", "moe::Kernel"): {check.OPCODES["HMMA"]}, ("80", "moe::Kernel"): set()}
    assert check.instruction_errors(opcodes, needed) == [
        "Kernel on sm_90a: no HGMMA",
        "Gone on sm_80: no such kernel",
        "Gone on sm_90a: no such kernel",
    ]
    opcodes["90a", "moe::Kernel"].add(check.OPCODES["HGMMA"])
    assert check.instruction_errors(opcodes, needed[:1]) == []


def test_a_clamp_whose_predicate_is_used_is_an_error():
    # As nvcc 13.0 assembles max(0, min(4, n)) for sm_90a, with and without `== 4` behind it, and min(k, n).
    used = struct.pack("<QQ", 0x0000000402077848, 0x004FDA0003801100)
    register = struct.pack("<QQ", 0x0000000007007248, 0x004FC80003801100)
    unused = struct.pack("<QQ", 0x0000000402077848, 0x000FCA0003FE1100)
    plain = struct.pack("<QQ", 0x0000000700077248, 0x004FCA0007FE0100)
    code = {("90a", "Kernel"): [plain + used, register], ("100a", "Kernel"): [unused + plain]}
    errors = check.clamp_errors(code)
    assert len(errors) == 1 and errors[0].startswith("Kernel on sm_90a:") and "2 times" in errors[0]
