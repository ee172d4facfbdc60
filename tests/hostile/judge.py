"""A judge for `jpo feedback --judge tests.hostile.judge:verdict`: a pure function of the question, which it counts."""

import os
import zlib


def verdict(prompt):
    asked = os.environ.get("JPO_TEST_ASKED")
    if asked:
        with open(asked, "a", encoding="ascii") as file:
            file.write(f"{zlib.crc32(prompt.encode())}\n")
    return "AB"[zlib.crc32(prompt.encode()) % 2]
