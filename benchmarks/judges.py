r"""How often `boxed_math` and eval's math answers judge wrongly, as JSON.

    python benchmarks/judges.py --answers 20000 --seed 0

Gold answers are values (fractions, numerals with a base, sympy's expressions), which are written down in LaTeX. An
answer is the same value, or one nearby, in another spelling: a mutation. The values are compared by Python's fractions
and by sympy, which never see the text; the project's parser sees only the text.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from datetime import date
from fractions import Fraction
from typing import Any

import sympy
from hardware import processor

from grpo_jax.evaluation.answers import KINDS
from grpo_jax.rewards.functions.boxed import boxed_math

Case = tuple[str, Any, str, Any]
"""The gold answer's text and value; the answer's text and value."""
X = sympy.Symbol("x")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    begun, found = time.perf_counter(), {name: measure(name, args) for name in MUTATIONS}
    about = {"processor": processor(), "cores": os.cpu_count(), "date": str(date.today())}
    about |= {"answers": sum(each["answers"] for each in found.values()), "seed": args.seed}
    about["seconds"] = round(time.perf_counter() - begun)
    print(json.dumps(about | {"all": total(found), "found": found}, indent=2))


def measure(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The errors of both judges on one kind of mutation."""
    random_numbers = random.Random(f"{name} {args.seed}")
    cases = [MUTATIONS[name](random_numbers) for _ in range(args.answers // len(MUTATIONS))]
    right = [same_value(gold, answer) for _, gold, _, answer in cases]
    found: dict[str, Any] = {"answers": len(cases), "right": sum(right)}
    verdicts = [(by_boxed_math(gold, answer), by_eval(gold, answer)) for gold, _, answer, _ in cases]
    for judge, judged in zip((by_boxed_math, by_eval), zip(*verdicts, strict=True), strict=True):
        found[judge.__name__] = {
            "false_accepts": sum(said and not true for said, true in zip(judged, right)),
            "false_rejects": sum(true and not said for said, true in zip(judged, right)),
        }
    return found


def total(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Shares of the wrong answers that are accepted and of the right ones that are rejected, in percent."""
    right = sum(each["right"] for each in found.values())
    wrong = sum(each["answers"] for each in found.values()) - right
    return {
        judge: {
            error: round(100 * sum(each[judge][error] for each in found.values()) / count, 2)
            for error, count in (("false_accepts", wrong), ("false_rejects", right))
        }
        for judge in ("by_boxed_math", "by_eval")
    }


def by_boxed_math(gold: str, answer: str) -> bool:
    return boxed_math([rf"\boxed{{{answer}}}"], [gold], think=False) == [1.0]


def by_eval(gold: str, answer: str) -> bool:
    math = KINDS["math"]
    found = math.strict(rf"\boxed{{{answer}}}", "box")
    return found is not None and math.same(math.gold(gold), found)


def same_value(gold: Any, answer: Any) -> bool:
    """Whether two values are equal; numerals (value, base) only in the same base."""
    if isinstance(gold, sympy.Expr) or isinstance(answer, sympy.Expr):
        return sympy.expand(sympy.sympify(gold) - sympy.sympify(answer)) == 0
    return bool(gold == answer)


# ---- mutations ----


def spaces(rng: random.Random) -> Case:
    """Groups of three digits with something between them."""
    number, answer = near(rng, rng.randint(1000, 10**10))
    apart = rng.choice([r"\,", r"\;", r"\:", r"\ ", "~", "{,}", ",", "'", " ", "\u00a0", "\u2009", "\u202f"])
    return str(number), number, f"{answer:,}".replace(",", apart), answer


def digits_apart(rng: random.Random) -> Case:
    """Two numbers with a space between them are not the number that their digits make."""
    one, other = rng.randint(1, 99), rng.randint(1, 99)
    gold = rng.choice([int(f"{one}{other}"), one, other, one * other, one + other])
    between = rng.choice([" ", "  ", r"\ ", r"\quad "])
    return str(gold), gold, f"{one}{between}{other}", (one, other)


def marks(rng: random.Random) -> Case:
    """Emphasis, a final full stop, a degree sign, dollars, another minus sign."""
    number, answer = near(rng, rng.randint(-999, 999))
    forms = [
        "**{}**",
        "*{}*",
        "`{}`",
        "{}.",
        "{}°",
        r"{}^\circ",
        r"{}^{{\circ}}",
        "${}$",
        " {} ",
        "={}",
        r"\mathbf{{{}}}",
    ]
    forms += [r"\text{{{}}}", r"{}\\", "{};", '"{}"']
    return str(number), number, rng.choice(forms).format(answer).replace("-", rng.choice("-−")), answer


def units(rng: random.Random) -> Case:
    """Units behind a number; a letter directly behind it is a factor."""
    number, answer = near(rng, rng.randint(2, 999))
    text, value = rng.choice(
        [
            (rf"{answer}\text{{ cm}}", answer), (rf"{answer}\,\mathrm{{kg}}", answer), (f"{answer} hours", answer),
            (rf"{answer}\text{{ m}}^2", answer), (rf"\${answer}", answer), (f"{answer}x", answer * X),
            (rf"{answer}\text{{ million}}", answer * 10**6), (f"{answer}!", sympy.factorial(answer)),
            (f"{answer}{rng.choice('tcdhlsm')}", answer * X),
        ]
    )  # fmt: skip
    return str(number), number, text, value


def fractions(rng: random.Random) -> Case:
    """Fractions in every form, and the decimals that equal them."""
    bottom = rng.choice([2, 3, 4, 5, 7, 8, 9, 20, 25, 40])
    gold = Fraction(rng.randint(-200, 200), bottom)
    value = rng.choice([gold, gold, gold + 1, -gold, gold + Fraction(1, 100), 1 / gold if gold else gold])
    return frac(gold), gold, fraction_text(rng, value), value


def mixed_numbers(rng: random.Random) -> Case:
    """`2 1/2` is 5/2, and neither 21/2 nor 2 * 1/2."""
    whole, bottom = rng.randint(1, 20), rng.randint(2, 12)
    top, sign = rng.randint(1, bottom - 1), rng.choice([1, 1, -1])
    value = sign * (whole + Fraction(top, bottom))
    misread = [
        value,
        value,
        Fraction(sign * int(f"{whole}{top}"), bottom),
        Fraction(sign * whole * top, bottom),
        value + 1,
    ]
    gold = rng.choice(misread)
    part = rng.choice(
        [r"\frac{{{}}}{{{}}}", r" \frac{{{}}}{{{}}}", r"\,\dfrac{{{}}}{{{}}}", " {}/{}", r"\ {}/{}", "~{}/{}"]
    )
    return frac(gold), gold, f"{'-' * (sign < 0)}{whole}{part.format(top, bottom)}", value


def bases(rng: random.Random) -> Case:
    """A numeral in a base: the same digits in another base, or without one, are another number."""
    base, number = rng.randint(2, 9), rng.randint(10, 5000)
    gold = (number, base)
    digits = numeral(number, base)
    other = rng.choice(
        [each for each in range(2, 17) if each != base and str(max(digits)) < numeral(each - 1, 36)] + [base]
    )
    answer = rng.choice(
        [
            (gold, digits),
            (gold, digits),
            ((int(digits, other) if other else 0, other), digits),
            (number, digits),
        ]
    )
    (value, text) = answer
    if value == number:
        return f"{digits}_{{{base}}}", gold, text, int(text)
    forms = ["{}_{{{}}}", "{}_{}", "({})_{{{}}}", r"{}_{{\text{{{}}}}}", r"{}\text{{ base }}{}"]
    return f"{digits}_{{{base}}}", gold, rng.choice(forms).format(text, value[1]), value


def small(rng: random.Random) -> Case:
    """Numbers far below one."""
    exponent, one = rng.randint(7, 80), rng.randint(1, 99)
    other = rng.choice([one, rng.randint(1, 99)])
    gold, value = (Fraction(each, 10**exponent) for each in (one, other))
    forms = [
        rf"{other}\cdot 10^{{-{exponent}}}",
        rf"{other} \times 10^{{-{exponent}}}",
        rf"\frac{{{other}}}{{10^{{{exponent}}}}}",
    ]
    forms.append(decimal(value))
    return rf"{one}\cdot 10^{{-{exponent}}}", gold, rng.choice(forms), value


def fonts(rng: random.Random) -> Case:
    """Letters in a font, of which no parser may drop what follows."""
    a, b = (rng.choice([-1, 1]) * rng.randint(2, 30) for _ in range(2))
    font = rng.choice(["mathbf", "mathrm", "boldsymbol", "mathsf", "text", "bm"])
    letter, name = rng.choice("abkpqvwz"), rng.choice("abkpqvwz")
    one, other = sympy.Symbol(letter), sympy.Symbol(name)
    write = lambda c, d: rf"{c}\{font}{{{letter}}}{d:+}\{font}{{{name}}}"
    c, d = rng.choice([(a, b), (a, b), (a, -b), (a + 1, b), (a, b + 1)])
    text, value = rng.choice(
        [(write(c, d), c * one + d * other)] * 4 + [(rf"{a}\{font}{{{letter}}}", a * one), (str(a), a)]
    )
    return write(a, b), a * one + b * other, text, value


def surds(rng: random.Random) -> Case:
    """Sums with a root, in another order or with the root not simplified."""
    a, b, c, k = rng.randint(1, 20), rng.randint(1, 9), rng.choice([2, 3, 5, 6, 7]), rng.randint(1, 3)
    gold = a + b * k * sympy.sqrt(c)
    wrong = rng.choice([0, 0, 1])
    value = a + wrong + b * k * sympy.sqrt(c)
    forms = [
        rf"{a + wrong}+{b * k}\sqrt{{{c}}}",
        rf"{b}\sqrt{{{c * k * k}}}+{a + wrong}",
        rf"{b * k}\sqrt{c} + {a + wrong}",
    ]
    forms.append(f"{a + wrong}+{b * k}√{c}")
    return rf"{a}+{b * k}\sqrt{{{c}}}", gold, rng.choice(forms), value


def polynomials(rng: random.Random) -> Case:
    """Products of two factors, written out, in a font, or with one term changed."""
    a, b, wrong = rng.randint(-9, 9), rng.randint(-9, 9), rng.choice([0, 0, 1, -1])
    gold, value = sympy.expand((X + a) * (X + b)), sympy.expand((X + a) * (X + b)) + wrong * X
    forms = [
        rf"x^2{a + b + wrong:+}x{a * b:+}",
        rf"x^{{2}} {a * b:+} {a + b + wrong:+}x",
        rf"{a * b}{a + b + wrong:+}x+x²",
    ]
    forms.append(rf"\mathit{{x}}^2{a + b + wrong:+}x{a * b:+}.")
    return f"(x{a:+})(x{b:+})", gold, rng.choice(forms), value


MUTATIONS: dict[str, Callable[[random.Random], Case]] = {
    each.__name__: each
    for each in (
        spaces,
        digits_apart,
        marks,
        units,
        fractions,
        mixed_numbers,
        bases,
        small,
        fonts,
        surds,
        polynomials,
    )
}


# ---- writing values ----


def near(rng: random.Random, number: int) -> tuple[int, int]:
    """A number, and with even chances itself or one that is easily taken for it."""
    return number, rng.choice([number, number, number, number + 1, -number, number * 10, number + 1000])


def frac(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value)
    return rf"{'-' * (value < 0)}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def fraction_text(rng: random.Random, value: Fraction) -> str:
    top, bottom, sign = abs(value.numerator), value.denominator, "-" * (value < 0)
    forms = [
        frac(value),
        f"{value}",
        frac(value).replace("frac", "dfrac"),
        rf"{sign}\frac{{{top * 3}}}{{{bottom * 3}}}",
    ]
    forms.append(rf"{sign}\frac{{\text{{{top}}}}}{{{bottom}}}")
    if top < 10 and bottom < 10:
        forms.append(rf"{sign}\frac{top}{bottom}")
    if 10**9 % bottom == 0:
        forms.append(decimal(value))
    return rng.choice(forms)


def decimal(value: Fraction) -> str:
    """A fraction that ends, as a decimal."""
    places = next(n for n in range(100) if 10**n % value.denominator == 0)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    text = digits[: len(digits) - places] + ("." + digits[len(digits) - places :] if places else "")
    return "-" * (value < 0) + text


def numeral(number: int, base: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, base)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


if __name__ == "__main__":
    main()
