"""Writes operations.txt and operations.in, and their PTX to a file named on the command line.

One kernel for every form of every instruction; each applies it to 128 inputs. Run on an NVIDIA GPU
(measure_operations.py), the results become operations.out, with which
tests/cpp/test_ptx_operations.cpp compares the software GPU's engine.
"""

from __future__ import annotations

import itertools
import random
import struct
import sys
from pathlib import Path

HERE = Path(__file__).parent
VALUES = 128
BITS = {
    "u8": 8, "s8": 8, "b16": 16, "u16": 16, "s16": 16, "f16": 16, "bf16": 16,
    "b32": 32, "u32": 32, "s32": 32, "f32": 32, "f16x2": 32, "bf16x2": 32, "sh": 32,
    "b64": 64, "u64": 64, "s64": 64, "f64": 64,
}  # fmt: skip


def f32(value: float) -> int:
    """Bits of a float."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


def f64(value: float) -> int:
    """Bits of a double."""
    bits: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    return bits


F32_BITS = """0 80000000 7F800000 FF800000 7FC00000 1 80000001 7FFFFF 800000 7F7FFFFF"""
F32_VALUES = "1 -1 0.5 1.5 2.5 -2.5 3.5 2147483648 -2147483648 4294967296 1e20 0.49999997"
F64_BITS = """0 8000000000000000 7FF0000000000000 FFF0000000000000 7FF8000000000000 1
    8000000000000001 7FEFFFFFFFFFFFFF"""
F64_VALUES = "1 -1 0.5 1.5 2.5 -2.5 2147483648.5 -2147483649.5 9.3e18 -9.3e18 1.9e19 65520 1e-8"
F16_BITS = "0 8000 7C00 FC00 7E00 1 8001 3FF 400 7BFF 3C00 BC00 3E00 4100"
BF16_BITS = "0 8000 7F80 FF80 7FC0 1 8001 7F 80 7F7F 3F80 BF80 3FC0 4020"


def hexadecimal(text: str) -> list[int]:
    """Numbers in a list of words."""
    return [int(word, 16) for word in text.split()]


SPECIAL: dict[str, list[int]] = {
    "f32": hexadecimal(F32_BITS) + [f32(float(v)) for v in F32_VALUES.split()],
    "f64": hexadecimal(F64_BITS) + [f64(float(v)) for v in F64_VALUES.split()],
    "f16": hexadecimal(F16_BITS),
    "bf16": hexadecimal(BF16_BITS),
}


def real(kind: str, rng: random.Random) -> int:
    """Bits of a random number, most of a size at which operations interact."""
    value = rng.uniform(-8, 8) * 2.0 ** rng.choice([0, 0, 0, 1, 2, 3, 8, -4, -10])
    if kind == "f64":
        return f64(value) if rng.random() < 0.8 else rng.getrandbits(64)
    if kind == "f32":
        return f32(value) if rng.random() < 0.8 else rng.getrandbits(32)
    if kind == "bf16":
        return f32(value) >> 16 if rng.random() < 0.7 else rng.getrandbits(16)
    half: int = struct.unpack("<H", struct.pack("<e", value))[0]
    return half if rng.random() < 0.7 else rng.getrandbits(16)


def inputs(kind: str, seed: int) -> list[int]:
    """The values of one type for one operand."""
    rng = random.Random(f"{kind}{seed}")  # noqa: S311 - repeatable, not secret
    if kind == "sh":  # shift amounts and bit positions
        return [
            rng.choice([rng.randrange(0, 34), rng.randrange(0, 70), rng.getrandbits(32)])
            for _ in range(VALUES)
        ]
    if kind in ("f16x2", "bf16x2"):
        low, high = inputs(kind[:-2], seed + 10), inputs(kind[:-2], seed + 20)
        return [a | b << 16 for a, b in zip(low, high, strict=True)]
    if kind in SPECIAL:
        values = SPECIAL[kind] + [real(kind, rng) for _ in range(VALUES)]
    else:
        bits = BITS[kind]
        edges = [
            0,
            1,
            2,
            3,
            5,
            7,
            (1 << bits) - 1,
            1 << (bits - 1),
            (1 << (bits - 1)) - 1,
            (1 << bits) - 2,
            100,
        ]
        values = edges + [
            rng.getrandbits(bits) >> rng.choice([0, 0, 0, bits // 2, bits * 3 // 4])
            for _ in range(VALUES)
        ]
    values = values[:VALUES]
    rng.shuffle(values)
    return values


APPROXIMATIONS = [
    (f"{name}.approx{flush}", ulp)
    for name, ulp in (("rcp", 2), ("sqrt", 4), ("rsqrt", 4), ("ex2", 4))
    for flush in ("", ".ftz")
]
SINGLE_CONVERSIONS = """
    cvt.f32.f16 cvt.f64.f16 cvt.f64.f32 cvt.ftz.f64.f32 cvt.sat.f32.f16 cvt.rn.ftz.f32.f64
    cvt.rn.sat.f32.f64 cvt.rn.ftz.f16.f32 cvt.rn.relu.f16.f32 cvt.rn.bf16.f32 cvt.rz.bf16.f32
    cvt.rn.relu.bf16.f32 cvt.rzi.ftz.s32.f32 cvt.rna.tf32.f32 cvt.f32.bf16 cvt.rn.bf16.f16
    cvt.rz.f16.bf16 cvt.f64.bf16 cvt.rzi.s32.bf16 cvt.rn.bf16.s32 cvt.rm.bf16.u64
"""


class Table:
    """Collects operations: types, instruction text, tolerance in units of the last place."""

    def __init__(self) -> None:
        self.rows: list[tuple[list[str], str, int]] = []

    def add(self, types: str, text: str, ulp: int = 0) -> None:
        """One operation; ``types`` is "d a b c" as far as they are used."""
        self.rows.append((types.split(), text, ulp))

    def integers(self) -> None:
        """Integer arithmetic and bits."""
        for t in ("u16", "s16", "u32", "s32", "u64", "s64"):
            for op in ("add", "sub", "mul.lo", "mul.hi", "min", "max"):
                self.add(f"{t} {t} {t}", f"{op}.{t} %d, %a, %b;")
            # Division by zero is undefined: the divisor is made odd.
            one = f"or.b{BITS[t]} %b, %b, 1;"
            self.add(f"{t} {t} {t}", f"{one} div.{t} %d, %a, %b;")
            self.add(f"{t} {t} {t}", f"{one} rem.{t} %d, %a, %b;")
            self.add(f"{t} {t} {t} {t}", f"mad.lo.{t} %d, %a, %b, %c;")
            self.add(f"{t} {t} {t} {t}", f"mad.hi.{t} %d, %a, %b, %c;")
            self.add(f"{t} {t} {t} {t}", f"sad.{t} %d, %a, %b, %c;")
            self.add(f"{t} {t} sh", f"shr.{t} %d, %a, %b;")
        for t in ("s16", "s32", "s64"):
            self.add(f"{t} {t}", f"abs.{t} %d, %a;")
            self.add(f"{t} {t}", f"neg.{t} %d, %a;")
        for t, w in (("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")):
            self.add(f"{w} {t} {t}", f"mul.wide.{t} %d, %a, %b;")
            self.add(f"{w} {t} {t} {w}", f"mad.wide.{t} %d, %a, %b, %c;")
        for op in ("add", "sub"):
            self.add("s32 s32 s32", f"{op}.sat.s32 %d, %a, %b;")
        self.add("s32 s32 s32 s32", "mad.hi.sat.s32 %d, %a, %b, %c;")
        for t in ("u32", "s32"):
            for h in ("lo", "hi"):
                self.add(f"{t} {t} {t}", f"mul24.{h}.{t} %d, %a, %b;")
                self.add(f"{t} {t} {t} {t}", f"mad24.{h}.{t} %d, %a, %b, %c;")
        for t in ("u16x2", "s16x2"):
            self.add("b32 b32 b32", f"add.{t} %d, %a, %b;")
            self.add("b32 b32 b32", f"min.{t} %d, %a, %b;")
            self.add("b32 b32 b32", f"max.{t} %d, %a, %b;")
        self.add("s32 s32 s32", "max.relu.s32 %d, %a, %b;")
        self.add("b32 b32 b32", "min.relu.s16x2 %d, %a, %b;")
        for t, w in (("u32", "b32"), ("u64", "b64")):
            self.add(f"{w} {w} {w} {w}", f"add.cc.{t} %d, %a, %b; addc.{t} %d, %c, 0;")
            self.add(f"{w} {w} {w} {w}", f"sub.cc.{t} %d, %a, %b; subc.{t} %d, %c, 1;")
            self.add(
                f"{w} {w} {w} {w}", f"mad.lo.cc.{t} %d, %a, %b, %c; madc.hi.{t} %d, %a, %b, %c;"
            )
            self.add(
                f"{w} {w} {w} {w}",
                f"sub.cc.{t} %d, %a, %b; subc.cc.{t} %d, %c, %a; addc.{t} %d, %d, 0;",
            )

    def bits(self) -> None:
        """Bit operations."""
        for t in ("b16", "b32", "b64"):
            for op in ("and", "or", "xor"):
                self.add(f"{t} {t} {t}", f"{op}.{t} %d, %a, %b;")
            for op in ("not", "cnot"):
                self.add(f"{t} {t}", f"{op}.{t} %d, %a;")
            self.add(f"{t} {t} sh", f"shl.{t} %d, %a, %b;")
            self.add(f"{t} {t} sh", f"shr.{t} %d, %a, %b;")
        for table in (0x00, 0x96, 0xE8, 0x1B, 0xCA, 0x80, 0xFE, 0x47):
            self.add("b32 b32 b32 b32", f"lop3.b32 %d, %a, %b, %c, {table};")
        for side, mode in itertools.product("lr", ("wrap", "clamp")):
            self.add("b32 b32 b32 sh", f"shf.{side}.{mode}.b32 %d, %a, %b, %c;")
        for t in ("u32", "s32", "u64", "s64"):
            self.add(f"{t} {t} sh sh", f"bfe.{t} %d, %a, %b, %c;")
            self.add(f"b32 {t}", f"bfind.{t} %d, %a;")
            self.add(f"b32 {t}", f"bfind.shiftamt.{t} %d, %a;")
        for t in ("b32", "b64"):
            self.add(f"{t} {t} {t} sh", f"bfi.{t} %d, %a, %b, %c, 9;")
            self.add(f"{t} {t} {t} sh", f"bfi.{t} %d, %a, %b, 5, %c;")
            self.add(f"{t} {t}", f"brev.{t} %d, %a;")
            self.add(f"b32 {t}", f"popc.{t} %d, %a;")
            self.add(f"b32 {t}", f"clz.{t} %d, %a;")

    def bytes_and_masks(self) -> None:
        """prmt, bmsk, fns, dp4a, dp2a."""
        self.add("b32 b32 b32 b32", "prmt.b32 %d, %a, %b, %c;")
        for mode in ("f4e", "b4e", "rc8", "ecl", "ecr", "rc16"):
            self.add("b32 b32 b32 b32", f"prmt.b32.{mode} %d, %a, %b, %c;")
        for mode in ("wrap", "clamp"):
            self.add("b32 sh sh", f"bmsk.{mode}.b32 %d, %a, %b;")
        self.add("b32 b32 sh sh", "and.b32 %b, %b, 31; fns.b32 %d, %a, %b, %c;")
        for a, b in itertools.product(("u32", "s32"), repeat=2):
            self.add("b32 b32 b32 b32", f"dp4a.{a}.{b} %d, %a, %b, %c;")
            self.add("b32 b32 b32 b32", f"dp2a.lo.{a}.{b} %d, %a, %b, %c;")
            self.add("b32 b32 b32 b32", f"dp2a.hi.{a}.{b} %d, %a, %b, %c;")

    def reals(self) -> None:
        """f32 and f64 arithmetic."""
        modes = ("rn", "rz", "rm", "rp")
        for t in ("f32", "f64"):
            for mode in modes:
                for op in ("add", "sub", "mul", "div"):
                    self.add(f"{t} {t} {t}", f"{op}.{mode}.{t} %d, %a, %b;")
                self.add(f"{t} {t} {t} {t}", f"fma.{mode}.{t} %d, %a, %b, %c;")
                self.add(f"{t} {t}", f"rcp.{mode}.{t} %d, %a;")
                self.add(f"{t} {t}", f"sqrt.{mode}.{t} %d, %a;")
            self.add(f"{t} {t} {t}", f"add.{t} %d, %a, %b;")
            self.add(f"{t} {t} {t} {t}", f"mad.rn.{t} %d, %a, %b, %c;")
            self.add(f"{t} {t} {t}", f"min.{t} %d, %a, %b;")
            self.add(f"{t} {t} {t}", f"max.{t} %d, %a, %b;")
            self.add(f"{t} {t}", f"abs.{t} %d, %a;")
            self.add(f"{t} {t}", f"neg.{t} %d, %a;")
            self.add(f"{t} {t} {t}", f"copysign.{t} %d, %a, %b;")
            for test in ("finite", "infinite", "number", "notanumber", "normal", "subnormal"):
                self.add(f"b32 {t}", f"testp.{test}.{t} %p, %a; selp.b32 %d, 1, 0, %p;")
        for op in ("add", "sub", "mul"):
            self.add("f32 f32 f32", f"{op}.ftz.f32 %d, %a, %b;")
            self.add("f32 f32 f32", f"{op}.sat.f32 %d, %a, %b;")
            self.add("f32 f32 f32", f"{op}.rz.ftz.sat.f32 %d, %a, %b;")
        self.add("f32 f32 f32 f32", "fma.rn.ftz.f32 %d, %a, %b, %c;")
        self.add("f32 f32 f32 f32", "fma.rp.sat.f32 %d, %a, %b, %c;")
        for op in ("min", "max"):
            for mods in ("ftz", "NaN", "ftz.NaN", "xorsign.abs", "NaN.xorsign.abs"):
                self.add("f32 f32 f32", f"{op}.{mods}.f32 %d, %a, %b;")
        self.add("f32 f32", "abs.ftz.f32 %d, %a;")
        self.add("f32 f32", "neg.ftz.f32 %d, %a;")
        for text, ulp in APPROXIMATIONS:
            self.add("f32 f32", f"{text}.f32 %d, %a;", ulp)
        self.add("f32 f32 f32", "div.full.f32 %d, %a, %b;", 3)
        for mode in ("rn", "rz"):
            self.add("f32 f32 f32", f"div.{mode}.ftz.f32 %d, %a, %b;")
        self.add("f32 f32", "rcp.rn.ftz.f32 %d, %a;")
        self.add("f32 f32", "sqrt.rn.ftz.f32 %d, %a;")

    def compares(self) -> None:
        """setp, set, selp, slct."""
        whole = ("eq", "ne", "lt", "le", "gt", "ge")
        for t in ("s16", "s32", "s64", "u16", "u32", "u64"):
            for op in whole if t[0] == "s" else (*whole, "lo", "ls", "hi", "hs"):
                self.add(f"b32 {t} {t}", f"setp.{op}.{t} %p, %a, %b; selp.b32 %d, 1, 0, %p;")
        for t in ("f32", "f64", "f16", "bf16"):
            for op in (*whole, "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"):
                self.add(f"b32 {t} {t}", f"setp.{op}.{t} %p, %a, %b; selp.b32 %d, 1, 0, %p;")
        self.add("b32 f32 f32", "setp.lt.ftz.f32 %p, %a, %b; selp.b32 %d, 1, 0, %p;")
        self.add("b32 f32 f32", "setp.gt.ftz.f32 %p, %a, 0f00000000; selp.b32 %d, 1, 0, %p;")
        both = "selp.b32 %d, 1, 0, %p; @%q add.s32 %d, %d, 2;"
        for op in ("and", "or", "xor"):
            self.add(
                "b32 s32 s32 s32",
                f"setp.gt.s32 %q, %c, 5; setp.lt.{op}.s32 %p|%q, %a, %b, !%q; {both}",
            )
        self.add("b32 f16x2 f16x2", f"setp.lt.f16x2 %p|%q, %a, %b; {both}")
        self.add("b32 bf16x2 bf16x2", f"setp.geu.bf16x2 %p|%q, %a, %b; {both}")
        for d, t in itertools.product(("u32", "s32", "f32"), ("f32", "s32", "f64", "u64")):
            self.add(f"{d} {t} {t}", f"set.le.{d}.{t} %d, %a, %b;")
        self.add("f16x2 f16x2 f16x2", "set.gtu.f16x2.f16x2 %d, %a, %b;")
        for t in ("b32", "b64", "f32", "f64"):
            self.add(f"{t} {t} {t} s32", f"slct.{t}.s32 %d, %a, %b, %c;")
        self.add("b32 b32 b32 f32", "slct.b32.f32 %d, %a, %b, %c;")
        self.add("b32 b32 b32 f32", "slct.ftz.b32.f32 %d, %a, %b, %c;")
        self.add("b64 b64 b64 s32", "setp.ne.s32 %p, %c, 0; selp.b64 %d, %a, %b, %p;")
        self.add(
            "b32 b32 b32",
            "setp.ne.b32 %p, %a, %b; not.pred %q, %p; "
            "xor.pred %p, %p, %q; selp.b32 %d, %a, %b, %p;",
        )

    def halves(self) -> None:
        """f16, bf16 and their pairs."""
        for t in ("f16", "f16x2", "bf16", "bf16x2"):
            for op in ("add", "sub", "mul"):
                self.add(f"{t} {t} {t}", f"{op}.rn.{t} %d, %a, %b;")
            self.add(f"{t} {t} {t} {t}", f"fma.rn.{t} %d, %a, %b, %c;")
            self.add(f"{t} {t} {t} {t}", f"fma.rn.relu.{t} %d, %a, %b, %c;")
            for op in ("min", "max"):
                for mods in ("", ".NaN", ".xorsign.abs"):
                    self.add(f"{t} {t} {t}", f"{op}{mods}.{t} %d, %a, %b;")
            self.add(f"{t} {t}", f"abs.{t} %d, %a;")
            self.add(f"{t} {t}", f"neg.{t} %d, %a;")
            self.add(f"{t} {t}", f"tanh.approx.{t} %d, %a;", 8)
        for t in ("f16", "f16x2"):
            self.add(f"{t} {t} {t}", f"add.ftz.{t} %d, %a, %b;")
            self.add(f"{t} {t} {t}", f"mul.sat.{t} %d, %a, %b;")
            self.add(f"{t} {t} {t} {t}", f"fma.rn.ftz.sat.{t} %d, %a, %b, %c;")
            self.add(f"{t} {t}", f"ex2.approx.{t} %d, %a;", 3)
        self.add("bf16 bf16", "ex2.approx.ftz.bf16 %d, %a;", 3)

    def conversions(self) -> None:
        """cvt."""
        whole = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
        for d, s in itertools.permutations(whole, 2):
            self.add(f"{d} {s}", f"cvt.{d}.{s} %d, %a;")
            if (
                (s[0] == "s" and (d[0] == "u" or BITS[d] < BITS[s]))
                or (d[0] == "s" and BITS[d] <= BITS[s])
                or BITS[d] < BITS[s]
            ):
                self.add(f"{d} {s}", f"cvt.sat.{d}.{s} %d, %a;")
        for s, d in itertools.product(("f16", "f32", "f64"), whole):
            for mode in ("rni", "rzi", "rmi", "rpi"):
                self.add(f"{d} {s}", f"cvt.{mode}.{d}.{s} %d, %a;")
        for s, d in itertools.product(whole, ("f16", "f32", "f64")):
            for mode in ("rn", "rz", "rm", "rp"):
                self.add(f"{d} {s}", f"cvt.{mode}.{d}.{s} %d, %a;")

    def real_conversions(self) -> None:
        """cvt between floating point types."""
        for mode in ("rn", "rz", "rm", "rp"):
            self.add("f32 f64", f"cvt.{mode}.f32.f64 %d, %a;")
            self.add("f16 f64", f"cvt.{mode}.f16.f64 %d, %a;")
            self.add("f16 f32", f"cvt.{mode}.f16.f32 %d, %a;")
        for t in ("f16", "f32", "f64"):
            for mode in ("rni", "rzi", "rmi", "rpi"):
                self.add(f"{t} {t}", f"cvt.{mode}.{t}.{t} %d, %a;")
            self.add(f"{t} {t}", f"cvt.sat.{t}.{t} %d, %a;")
        for text in SINGLE_CONVERSIONS.split():
            d, s = text.split(".")[-2:]
            self.add(f"{d.replace('tf32', 'b32')} {s}", f"{text} %d, %a;")
        for text in (
            "cvt.rn.f16x2.f32",
            "cvt.rz.f16x2.f32",
            "cvt.rn.relu.f16x2.f32",
            "cvt.rn.bf16x2.f32",
            "cvt.rz.bf16x2.f32",
        ):
            self.add(f"{text.split('.')[-2]} f32 f32", f"{text} %d, %a, %b;")
        for small in ("e4m3x2", "e5m2x2"):
            self.add("b16 f32 f32", f"cvt.rn.satfinite.{small}.f32 %d, %a, %b;")
            self.add("b16 f32 f32", f"cvt.rn.satfinite.relu.{small}.f32 %d, %a, %b;")
            self.add("b16 f16x2", f"cvt.rn.satfinite.{small}.f16x2 %d, %a;")
            self.add("f16x2 b16", f"cvt.rn.f16x2.{small} %d, %a;")
        # Registers wider than the type.
        self.add("b32 b32", "cvt.u32.u8 %d, %a;")
        self.add("b32 b32", "cvt.s32.s8 %d, %a;")
        self.add("b64 b64", "cvt.s64.s16 %d, %a;")
        self.add("b64 b32", "cvt.u16.u32 %d, %a;")
        self.add("b64 b32", "cvt.s8.s32 %d, %a;")

    def moves(self) -> None:
        """Packing, and loads and stores of narrow values."""
        self.add("b32 b16 b16", "mov.b32 %d, {%a, %b};")
        self.add("b64 b32 b32", "mov.b64 %d, {%a, %b};")
        self.add("b64 b16 b16", "mov.b64 %d, {%a, %b, %b, %a};")
        self.add("b16 b32", "mov.b32 {_, %d}, %a;")
        self.add("b32 b64", "mov.b64 {%d, _}, %a;")
        self.add("b32 f32", "mov.b32 %d, %a;")


def declared(kind: str) -> str:
    """The register type for a value."""
    if kind in ("f32", "f64"):
        return kind
    return f"b{max(BITS[kind], 16)}"


def kernel(number: int, types: list[str], text: str) -> str:
    """One entry."""
    lines = [
        f".visible .entry op_{number}(.param .u64 d, .param .u64 a, .param .u64 b, .param .u64 c)",
        "{",
    ]
    lines += ["  .reg .pred %p, %q;", "  .reg .b32 %t, %o;", "  .reg .b64 %w, %x;"]
    lines += [
        f"  .reg .{declared(kind)} %{name};" for name, kind in zip("dabc", types, strict=False)
    ]
    lines += ["  mov.u32 %t, %tid.x;", "  mul.wide.u32 %w, %t, 8;"]
    for name, kind in list(zip("dabc", types, strict=False))[1:]:
        load = kind if BITS[kind] == 8 else f"b{BITS[kind]}"
        lines += [
            f"  ld.param.u64 %x, [{name}];",
            "  add.s64 %x, %x, %w;",
            f"  ld.global.{load} %{name}, [%x];",
        ]
    lines += [f"  {part}" for part in text.replace("; ", ";\n").splitlines()]
    lines += ["  ld.param.u64 %x, [d];", "  add.s64 %x, %x, %w;"]
    lines += [f"  st.global.b{max(BITS[types[0]], 16)} [%x], %d;", "  ret;", "}", ""]
    return "\n".join(lines)


def main() -> None:
    """Writes the files."""
    table = Table()
    for part in (
        table.integers,
        table.bits,
        table.bytes_and_masks,
        table.reals,
        table.compares,
        table.halves,
        table.conversions,
        table.real_conversions,
        table.moves,
    ):
        part()
    header = ".version 8.3\n.target sm_90\n.address_size 64\n\n"
    if len(sys.argv) == 2:
        kernels = "\n".join(kernel(i, types, text) for i, (types, text, _) in enumerate(table.rows))
        Path(sys.argv[1]).write_text(header + kernels)
    (HERE / "operations.txt").write_text(
        "".join(f"{ulp} {','.join(types)} {text}\n" for types, text, ulp in table.rows)
    )
    with (HERE / "operations.in").open("wb") as out:
        for kind in BITS:
            for operand in range(3):
                out.write(struct.pack(f"<{VALUES}Q", *inputs(kind, operand)))


if __name__ == "__main__":
    main()
