#!/usr/bin/env python3
"""Writes tests/goldens/tokenizers/unicode_classes.txt: which characters the `tokenizers` package takes for
letters, numbers, white space and punctuation. Lines are `class first last`, in hexadecimal.

The package may know a later Unicode than the ICU under test; the test leaves out what its ICU does not know.
"""

from pathlib import Path

from tokenizers import Regex, pre_tokenizers

OUT = Path(__file__).resolve().parent.parent / "tests" / "goldens" / "tokenizers" / "unicode_classes.txt"
STEP = 0x400


def removed_by(pre_tokenizer):
    """The code points that a pre-tokenizer with the behaviour `removed` takes out."""
    removed = set()
    for first in range(0, 0x110000, STEP):
        codes = [c for c in range(first, first + STEP) if not 0xD800 <= c < 0xE000]
        left = "".join(piece for piece, _ in pre_tokenizer.pre_tokenize_str("".join(map(chr, codes))))
        removed.update(set(codes) - set(map(ord, left)))
    return removed


def runs(codes):
    first = last = None
    for code in sorted(codes):
        if last is None or code != last + 1:
            if last is not None:
                yield first, last
            first = code
        last = code
    yield first, last


def main():
    classes = {
        "letter": pre_tokenizers.Split(Regex(r"\p{L}"), "removed"),
        "number": pre_tokenizers.Split(Regex(r"\p{N}"), "removed"),
        "space": pre_tokenizers.Split(Regex(r"\s"), "removed"),
        "punctuation": pre_tokenizers.Punctuation("removed"),
    }
    lines = [f"{name} {a:x} {b:x}" for name, pre in classes.items() for a, b in runs(removed_by(pre))]
    OUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
