#!/usr/bin/env python3
"""Refuses an #include that breaks the dependency law: a layer (folder of src/) may include only layers on lower levels.

Also holds third-party headers to the layers that may use them, and files to 1,000 lines.
  tools/check_layers.py [ROOT]     exit 1 and one line per offence
"""
import pathlib
import re
import sys

LEVELS = {"base": 0, "numerics": 1, "device": 2, "tensor": 3, "formats": 4, "text": 4, "grammar": 4, "comm": 4,
          "kernels": 4, "models": 5, "capi": 5, "engine": 6, "quantize": 6, "server": 7, "eval": 7, "apps": 8}

# What a layer may not include although the levels would allow it.
FORBIDDEN = {"server": {"models", "kernels", "formats", "tensor", "device", "numerics"},
             "text": {"numerics", "device", "tensor"}, "grammar": {"numerics", "device", "tensor"}}

# Third-party headers by prefix, and the layers (or files) that may include them.
THIRD_PARTY = {"spdlog/": {"base/log.cc"}, "CLI/": {"apps/cli.cc"}, "boost/asio": {"server"}, "boost/beast": {"server"},
               "pcre2": {"text", "formats"}, "utf8proc": {"text"}, "openssl/": {"server", "formats"}}

MAX_LINES = 1000
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')


def layer_of(path):
    return path.split("/", 1)[0]


def offences(root):
    source = root / "src"
    for path in sorted(source.rglob("*")):
        if path.suffix not in {".h", ".cc", ".cu", ".cuh", ".inc"}:
            continue
        name = path.relative_to(source).as_posix()
        layer = layer_of(name)
        is_test = re.search(r"_(test|bench|fuzz)\.cc$", name) or layer == "testing" or "/testing/" in name
        lines = path.read_text(encoding="utf-8").splitlines()
        if len(lines) > MAX_LINES:
            yield f"src/{name}: {len(lines)} lines, at most {MAX_LINES} are allowed"
        for number, line in enumerate(lines, 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            header, where = match[1], f"src/{name}:{number}"
            for prefix, allowed in THIRD_PARTY.items():
                if header.startswith(prefix) and not ({layer, name} & allowed) and layer != "testing":
                    yield f"{where}: includes <{header}>, which only {', '.join(sorted(allowed))} may"
            target = layer_of(header)
            if "/" not in header or target == layer or is_test:
                continue
            if target == "testing":
                yield f"{where}: includes {header}, which only tests may"
            elif target in LEVELS:
                if layer not in LEVELS:
                    yield f"{where}: folder {layer} is not a layer"
                elif LEVELS[target] >= LEVELS[layer]:
                    yield (f"{where}: {layer} (level {LEVELS[layer]}) may not include {header} "
                           f"(level {LEVELS[target]}): only lower levels are allowed")
                elif target in FORBIDDEN.get(layer, set()):
                    yield f"{where}: {layer} may not include {header}"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent.parent)
    found = list(offences(root))
    print("\n".join(found) if found else "layers: every include keeps the law")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
