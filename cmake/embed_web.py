#!/usr/bin/env python3
"""Writes the files of web/ into a C++ file: gzip'd bytes and the table that WebPages() returns.

    embed_web.py OUTPUT.cc FILE...

index.html becomes "/", every other file "/" and its name. The same input gives the same output.
"""
import gzip
import pathlib
import sys

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def url_path(file):
    return "/" if file.name == "index.html" else "/" + file.name


def byte_lines(data, per_line=20):
    for start in range(0, len(data), per_line):
        yield "    " + ",".join(str(byte) for byte in data[start:start + per_line]) + ",\n"


def main(output, files):
    arrays, rows = [], []
    for index, file in enumerate(sorted(map(pathlib.Path, files))):
        if file.suffix not in CONTENT_TYPES:
            sys.exit(f"{file}: no content type known for {file.suffix!r}; add it to {__file__}")
        packed = gzip.compress(file.read_bytes(), compresslevel=9, mtime=0)
        name = f"kFile{index}"
        arrays.append(f"// {file.name}\nconstexpr unsigned char {name}[] = {{\n{''.join(byte_lines(packed))}}};\n")
        rows.append(f'      {{"{url_path(file)}", "{CONTENT_TYPES[file.suffix]}", {name}}},\n')
    pathlib.Path(output).write_text(
        "// Made by cmake/embed_web.py from web/.\n"
        '#include "apps/web_pages.h"\n\n'
        "namespace nibble::apps {\nnamespace {\n\n" + "\n".join(arrays) + "\n}  // namespace\n\n"
        "std::vector<server::Page> WebPages() {\n  return {\n" + "".join(rows) + "  };\n}\n\n"
        "}  // namespace nibble::apps\n",
        encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
