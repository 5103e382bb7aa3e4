#!/usr/bin/env python3
"""Writes src/text/unicode_tables.cpp: the character classes exactly as Hugging Face `tokenizers` sees them.

Its regex engine, Rust's standard library and its normalisation crates come with different versions of Unicode, so
the tables are probed from the library itself. Needs the Python package `tokenizers`.
"""
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CPS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = ["Cn", "Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi",
              "Pf", "Po", "Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co"]


def removed_by(normalize):
    out = set()
    for i in range(0, len(CPS), 4096):
        chunk = "".join(map(chr, CPS[i:i + 4096]))
        kept = set(normalize(chunk))
        out |= {ord(x) for x in chunk if x not in kept}
    return out


def regex_class(regex):
    return removed_by(normalizers.Replace(Regex(regex), "").normalize_str)


def ranges(codepoints):
    out = []
    for c in sorted(codepoints):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def emit_ranges(name, codepoints):
    rs = ranges(codepoints)
    body = ", ".join(f"{{0x{a:x}, 0x{b:x}}}" for a, b in rs)
    return f"const CodePointRange {name}Ranges[] = {{{body}}};\n" \
           f"const std::span<const CodePointRange> {name} = {name}Ranges;\n"


def main():
    category = {}
    for name in CATEGORIES[1:]:
        if name == "Cs":
            continue
        for c in regex_class(rf"\p{{{name}}}"):
            category[c] = name
    for c in range(0xD800, 0xE000):
        category[c] = "Cs"
    cat = [category.get(c, "Cn") for c in range(0x110000)]

    def general(first):
        return {c for c in CPS if cat[c][0] == first}

    space = regex_class(r"\s")
    base_word = {c for c in CPS if cat[c][0] in "LM" or cat[c] in ("Nd", "Nl", "Pc")}
    onig_word = regex_class(r"\w")
    whitespace = pre_tokenizers.Whitespace()
    rust_word = {c for c in CPS if c not in space and len(whitespace.pre_tokenize_str("a" + chr(c))) == 1}
    digits = pre_tokenizers.Digits(True)
    numeric = {c for c in CPS if len(digits.pre_tokenize_str("a" + chr(c))) == 2}
    punctuation = pre_tokenizers.Punctuation("removed")
    punct = removed_by(lambda s: "".join(t for t, _ in punctuation.pre_tokenize_str(s)))
    bert = dict(handle_chinese_chars=False, lowercase=False)
    nonspacing = removed_by(normalizers.BertNormalizer(clean_text=False, strip_accents=True, **bert).normalize_str)
    clean = normalizers.BertNormalizer(clean_text=True, strip_accents=False, **bert).normalize_str
    control = {c for c in removed_by(clean) if clean(chr(c)) == ""}  # the others became spaces
    combining = removed_by(normalizers.StripAccents().normalize_str)
    lower = normalizers.Lowercase()
    # Python's own tables stand in for an older Unicode; where the library differs the pair is listed.
    nfd, nfkd, nfc = normalizers.NFD(), normalizers.NFKD(), normalizers.NFC()
    lowers = {c: lower.normalize_str(chr(c)) for c in CPS}
    lowers = {c: s for c, s in lowers.items() if s != chr(c)}
    marks = [c for c in CPS if cat[c][0] == "M"]

    def reorders(c):
        s1, s2 = "a" + chr(c) + "\u0334", "a\u0345" + chr(c)
        return nfd.normalize_str(s1) != nfd.normalize_str(chr(c)).join(["a", "\u0334"]) or \
            nfd.normalize_str(s2) != "a\u0345" + nfd.normalize_str(chr(c))

    has_class = {c for c in marks if reorders(c)}
    python_class = {c for c in CPS if unicodedata.combining(chr(c))}
    # Code points that the normalisation crate does not know: no class, no mapping, no composition.
    opaque = {c for c in marks if c not in has_class and (c in python_class or unicodedata.category(chr(c)) == "Cn")}
    opaque |= {c for c in CPS if nfkd.normalize_str(chr(c)) == chr(c) != unicodedata.normalize("NFKD", chr(c))}
    opaque |= {c for c in CPS if unicodedata.category(chr(c)) == "Cn" != cat[c]}
    opaque |= {0x11930}
    seconds = set()
    for c in CPS:
        d = unicodedata.decomposition(chr(c))
        if d and not d.startswith("<"):
            parts = d.split()
            if len(parts) == 2:
                seconds.add(int(parts[1], 16))
    seconds |= set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    unsafe = ({c for c in CPS if nfc.normalize_str(chr(c)) != chr(c)} | has_class | seconds) - opaque

    out = ["// Made by tools/make_unicode_tables.py; do not edit.\n", '#include "text/unicode_tables.h"\n\n',
           "namespace reft::unicode {\n\n"]
    starts, previous = [], None
    for c in range(0x110000):
        if cat[c] != previous:
            starts.append((c << 8) | CATEGORIES.index(cat[c]))
            previous = cat[c]
    out.append(f"const uint32_t kCategoryRunsData[] = {{{', '.join(hex(s) for s in starts)}}};\n"
               "const std::span<const uint32_t> kCategoryRuns = kCategoryRunsData;\n")
    ascii_symbols = {c for c in range(128) if cat[c][0] == "S"}
    posix = {name: regex_class(f"[[:{name}:]]") for name in ("alpha", "upper", "lower")}
    letters = general("L") | {c for c in CPS if cat[c] == "Nl"}
    for name, got, base in [("kAlphabeticDiff", posix["alpha"], letters),
                            ("kUpperDiff", posix["upper"], {c for c in CPS if cat[c] == "Lu"}),
                            ("kLowerDiff", posix["lower"], {c for c in CPS if cat[c] == "Ll"}),
                            ("kOnigWordDiff", onig_word, base_word), ("kRustWordDiff", rust_word, base_word),
                            ("kNumericDiff", numeric, general("N")),
                            ("kPunctuationDiff", punct, general("P") | ascii_symbols),
                            ("kNonspacingDiff", nonspacing, {c for c in CPS if cat[c] == "Mn"}),
                            ("kControlDiff", control | {9, 10, 13}, {c for c in CPS if cat[c] in ("Cc", "Cf", "Co")}),
                            ("kCombiningDiff", combining, general("M"))]:
        out.append(emit_ranges(name, got ^ base))
    out.append(emit_ranges("kSpace", space))
    out.append(emit_ranges("kHan", regex_class(r"\p{Han}")))
    out.append(emit_ranges("kNormalizerOpaque", opaque))
    out.append(emit_ranges("kNfcUnsafe", unsafe))
    out.append(emit_ranges("kNewSinceUnicode14", {c for c in CPS if unicodedata.category(chr(c)) == "Cn" != cat[c]}))
    pairs = sorted((c, ord(s)) for c, s in lowers.items() if len(s) == 1)
    # Runs of equal distance: first, last, step (1 or 2), distance.
    runs = []
    for c, l in pairs:
        if runs and l - c == runs[-1][3] and c - runs[-1][1] in (1, 2) and (
                runs[-1][2] == 0 or runs[-1][2] == c - runs[-1][1]):
            runs[-1][2] = c - runs[-1][1]
            runs[-1][1] = c
        else:
            runs.append([c, c, 0, l - c])
    body = ", ".join(f"{{0x{a:x}, 0x{b:x}, {max(s, 1)}, {d}}}" for a, b, s, d in runs)
    out.append(f"const LowercaseRun kLowercaseData[] = {{{body}}};\n"
               "const std::span<const LowercaseRun> kLowercase = kLowercaseData;\n")
    long_lower = {c: s for c, s in lowers.items() if len(s) != 1}
    assert long_lower == {0x130: "i\u0307"}, long_lower
    out.append("\n}  // namespace reft::unicode\n")
    open(sys.argv[1], "w").write("".join(out))


if __name__ == "__main__":
    main()
