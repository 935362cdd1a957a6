#!/usr/bin/env python3
"""Writes unicode_tables.c: the letters, numbers and white space of Unicode 14.0, the version of the Oniguruma that Hugging Face
tokenizers 0.13 to 0.20 is built with. Run with Python 3.11 (whose unicodedata is 14.0): python3 make_unicode_tables.py > unicode_tables.c"""
import unicodedata

assert unicodedata.unidata_version == "14.0.0", "needs the tables of Unicode 14.0"
SPACE = {*range(0x09, 0x0E), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


def ranges(member):
    out, start = [], None
    for c in range(0x110001):
        inside = c < 0x110000 and member(c)
        if inside and start is None:
            start = c
        elif not inside and start is not None:
            out.append((start, c - 1))
            start = None
    return out


def emit(name, rows):
    print(f"const hd_unicode_range {name}[] = {{")
    line = "   "
    for a, b in rows:
        cell = f" {{0x{a:x},0x{b:x}}},"
        if len(line) + len(cell) > 138:
            print(line)
            line = "   "
        line += cell
    print(line)
    print("};")
    print(f"const int {name}_count = {len(rows)};\n")


print("/* unicode_tables.c: made by make_unicode_tables.py (Unicode 14.0). Do not edit. */")
print('#include "data/unicode.h"\n')
emit("hd_unicode_letters", ranges(lambda c: unicodedata.category(chr(c))[0] == "L"))
emit("hd_unicode_numbers", ranges(lambda c: unicodedata.category(chr(c))[0] == "N"))
emit("hd_unicode_spaces", ranges(lambda c: c in SPACE))
