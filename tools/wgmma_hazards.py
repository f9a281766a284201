"""Finds instructions that overwrite a register which a wgmma under way may still read, its fragments of A, or that touch its sums.
PTX forbids it; where a branch stands between a wgmma and the wait for its group, ptxas does not see it and gives registers of A to
something else.

hazards(text) reads what `nvdisasm -c` prints of a cubin.
"""
import re

INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
LABEL = re.compile(r"^(\.L_x_\d+):")
KERNEL = re.compile(r"^\.text\.(\S+):")
TARGET = re.compile(r"(\.L_x_\d+)")
FIRST_REGISTER = re.compile(r"(?:U?!?P\w+, )*R(\d+)\b")
# Their first operand is no register that they write.
READ_ONLY = ("ST", "RED", "BAR", "BRA", "EXIT", "LDGSTS", "DEPBAR", "SYNCS", "WARP", "HGMMA", "QGMMA", "UTMA", "UBLKCP", "CCTL")


def kernels(text):
    """Mangled name -> instructions (address, predicate, opcode, operands) and names of labels."""
    found, code = {}, None
    for line in text.splitlines():
        if match := KERNEL.match(line):
            code = found.setdefault(match.group(1), [])
        elif line.startswith("\t.section"):
            code = None
        elif code is None:
            continue
        elif match := LABEL.match(line):
            code.append(match.group(1))
        elif match := INSTRUCTION.match(line):
            code.append(match.groups())
    return found


def written(opcode, operands):
    """Registers that an instruction writes at once; an MMA's own are its business."""
    match = FIRST_REGISTER.match(operands)
    if match is None or opcode.startswith(READ_ONLY):
        return range(0)
    width = 4 if ".128" in opcode else 2 if ".64" in opcode or ".WIDE" in opcode else 1
    if opcode.startswith("LDSM"):
        width = 4 if opcode.endswith(".4") else 2 if opcode.endswith(".2") else 1
    first = int(match.group(1))
    return range(first, first + width)


def fragment(operands):
    """Registers of A, if it lies in registers: four."""
    match = re.match(r"R\d+, R(\d+),", operands)
    return range(int(match.group(1)), int(match.group(1)) + 4) if match else range(0)


def sums(opcode, operands):
    """Registers of D: of 64 x N in FP32, over 128 threads."""
    match = re.match(r"R(\d+)", operands)
    rows = re.search(r"\.64x(\d+)x", opcode)
    return range(int(match.group(1)), int(match.group(1)) + int(rows.group(1)) // 2) if match and ".F32" in opcode else range(0)


def touched(operands):
    return (int(number) for number in re.findall(r"\bR(\d+)", operands))


def hazards_of(code):
    """(address, instruction), on any path, of what writes a fragment or touches sums of a group that has not been waited for."""
    labels = {entry: i for i, entry in enumerate(code) if isinstance(entry, str)}
    found = {}
    seen = set()  # (label, groups under way, the group that is being built)
    paths = [(0, (), frozenset())]
    while paths:
        at, groups, building = paths.pop()
        for i in range(at, len(code)):
            if isinstance(code[i], str):
                state = i, groups, building
                if state in seen:
                    break
                seen.add(state)
                continue
            address, predicate, opcode, operands = code[i]
            if opcode.startswith(("HGMMA", "QGMMA")):
                building |= frozenset(fragment(operands)) | frozenset(("sum", r) for r in sums(opcode, operands))
                if "gsb0" in operands:  # commits
                    groups, building = (*groups, building), frozenset()
            elif opcode.startswith("WARPGROUP.DEPBAR"):
                left = int(re.search(r"0x([0-9a-f]+)", operands).group(1), 16)
                groups = groups[max(len(groups) - left, 0) :]
            elif groups or building:
                busy = building.union(*groups)
                if any(r in busy for r in written(opcode, operands)) or any(("sum", r) in busy for r in touched(operands)):
                    found[address] = f"{opcode} {operands}"
            if opcode.startswith("BRA") and (target := TARGET.search(operands)) and target.group(1) in labels:
                paths.append((labels[target.group(1)], groups, building))
            ends = opcode.startswith("EXIT") or (opcode.startswith("BRA") and not re.match(r"!?U?P", operands))
            if ends and predicate is None:
                break
    return sorted(found.items())


def hazards(text):
    """Mangled kernel -> its hazards, of kernels that have any."""
    return {name: found for name, code in kernels(text).items() if (found := hazards_of(code))}
