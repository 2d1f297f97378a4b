r"""Formulas are judged whole: no part, base, digit or space of them is left out. `boxed_math` and `eval` agree."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_jax.evaluation.answers import KINDS
from grpo_jax.rewards.functions.boxed import boxed_math
from grpo_jax.rewards.functions.formulas import read_formula
from grpo_jax.rewards.functions.spelling import key

MATH = KINDS["math"]


def verdicts(gold, answer):
    """Of `boxed_math` and of `eval`."""
    text = rf"\boxed{{{answer}}}"
    found = MATH.strict(text, "box")
    same = found is not None and MATH.same(MATH.gold(gold), found)
    return boxed_math([text], [gold], think=False)[0], float(same)


def both(value):
    return (float(value), float(value))


FONTS = [
    "mathbf",
    "mathrm",
    "boldsymbol",
    "mathsf",
    "bm",
    "text",
    "textbf",
    "mathcal",
    "vec",
    "hat",
    "overline",
]


@pytest.mark.parametrize("font", FONTS)
def test_a_formula_is_judged_beyond_every_font(font):
    a, b, five = (rf"\{font}{{{sign}}}" for sign in ("a", "b", "5"))
    assert verdicts(f"3{a}+2{b}", f"3{a}-2{b}") == verdicts(f"3{a}+2{b}", "3") == both(False)
    assert verdicts(f"3{a}+2{b}", f"2{b} + 3{a}") == both(True)
    assert verdicts(rf"\frac{{{five}}}{{8}}", rf"\frac{{{five}}}{{9}}") == both(False)


WHOLE = [
    (r"7\mathbf{i}-\mathbf{k}", "7", False),
    (r"2-\frac{3}{\mathrm{e}}", r"2-\frac{3}{e}", True),
    (r"2-\frac{3}{\mathrm{e}}", "2", False),
    (r"\frac{\text{5}}{8}", r"\frac58", True),
    (r"4\mathrm{i}", "4i", True),
    (r"4\mathrm{i}", "4", False),
    (r"\pi\mathrm{e}", r"e\pi", True),
    (r"{\bf a}+1", r"\mathbf{a}+1", True),
    (r"2, 4, \ldots, 2n", r"2, 5, \ldots, 3n-1", False),
    (r"2, 4, \ldots, 2n", "2, 4, 2n", False),
    (r"2, 4, \ldots, 2n", r"2,4,\dots,2n", True),
    (r"1+2+\cdots+n", "1+2+n", False),
    ("1,2,...,n", "1,2,…,n", True),
    ("f'(x)", "f(x)", False),
    ("f'(x)", r"f^{\prime}(x)", True),
    ("y''", "y'", False),
    ("5t", "5", False),  # units of one letter, which math-verify drops
    ("x+2m", "x+2", False),
    ("5", "5t", False),
    (r"n\equiv 3\pmod{7}", r"n\equiv 3\pmod{5}", False),
    (r"n\equiv 3\pmod{7}", r"n \equiv 3 \pmod{7}", True),
    (r"5\oplus 3", "5", False),
    (r"\sin 30^\circ", r"\frac12", True),
    (r"\sin 30", r"\frac12", False),
]
BASES = [
    ("43_6", "43_7", False),
    ("212_{3}", "212_{5}", False),
    ("43_6", "43_{6}", True),
    ("43_6", r"43_{\text{six}}", True),
    ("43_6", r"43_{\text{base }6}", True),
    ("43_6", "(43)_6", True),
    ("43_6", r"43\text{ base }6", True),
    ("43_6", "43 (base 6)", True),
    ("43_6", "43", False),  # a number without a base is in base ten
    ("43_6", "27", False),  # the same value, but not what was asked for
    ("43_6", "-43_6", False),
    ("27_{10}", "27", True),
    ("27", r"27_{\text{ten}}", True),
    ("2A_{16}", "2a_{16}", True),
    ("2A_{16}", "2A_{12}", False),
    ("0.1_2", "0.1_3", False),
    ("5", "(99999999)_{2}", False),  # no numeral; math-verify takes it for a quotient of factorials
    ("12_3, 21_3", "12_4, 21_4", False),
    ("x_1", "x_2", False),
    ("a_{12}", "a_{13}", False),
    (r"\log_2 8", "3", True),
]
TINY = [
    (r"\frac{3}{2^{60}}", r"\frac{5}{2^{60}}", False),
    (r"\frac{3}{2^{60}}", r"\frac{6}{2^{61}}", True),
    ("10^{-18}", r"7\cdot 10^{-18}", False),
    ("10^{-20}", "0", False),
    ("1+10^{-20}", "1", False),
    ("0.0000001", "0.0000004", False),
    ("1e-7", "0.0000001", True),
    (r"6.63\times 10^{-34}", r"1.05\times10^{-34}", False),
    (r"6.63\times 10^{-34}", r"6.63\cdot10^{-34}", True),
    ("(10^{-18},1)", r"(7\cdot10^{-18},1)", False),
    (r"\{0.0000001,1\}", r"\{0.0000004,1\}", False),
    ("[0.0000001,1]", "[0.0000004,1]", False),
    ("10^{-18}x", r"7\cdot 10^{-18}x", False),
    ("0.0000001x", "0.0000004x", False),
    ("x<10^{-18}", r"x<7\cdot10^{-18}", False),
    (r"\frac{\pi}{10^{20}}", r"\frac{e}{10^{20}}", False),
    (r"\sqrt2", "1.41421356", True),
    ("2e-3", "0.002", False),  # 2e - 3 in LaTeX
    ("2e-3", "-3+2e", True),
]
DIGITS = [
    ("35", "3 5", False),
    ("3 5", "35", False),
    ("15", "3 5", False),
    ("8", "3 5", False),
    ("21/2", r"2\ 1/2", False),
    ("5/2", r"2\ 1/2", True),
    ("5/2", r"2\,\frac{1}{2}", True),
    ("5/2", "2½", True),
    ("-5/2", "-2 1/2", True),
    ("5/2", "2~1/2", True),
    (r"1\frac{3}{4}\pi", r"\frac{7\pi}{4}", True),
    (r"1\frac{3}{4}\pi", r"1+\frac{3\pi}{4}", False),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{bmatrix} 1&2\\3&4\end{bmatrix}", True),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 \\ 3 & 5 \end{pmatrix}", False),
    ("2600", r"26\,00", False),
    ("26000x", r"26\,000x", True),
    ("3.141592", r"3.141\,592", True),
    ("100000", "1{,}00{,}000", True),
]
MARKS = [
    ("64", "**64**", True),
    ("64", "`64`", True),
    ("64", "__64__", True),
    ("64", '"64"', True),
    ("64", "64.", True),
    ("64", "64;", True),
    ("64", r"64\\", True),
    ("64", "64°", True),
    ("64", "64º", True),
    ("64", r"64\degree", True),
    ("64", r"64^\circ\text{C}", True),
    ("64", "６４", True),
    ("64", r"\textbf{64}", True),
    ("64", r"\text{64.}", True),
    ("64", "=64", True),
    ("-64", "−64", True),
    ("64!", "64", False),
    ("64", "64!", False),
    ("64", "6.4", False),
    (r"\emptyset", r"\varnothing", True),
    (r"\emptyset", "∅", True),
    (r"\emptyset", "0", False),
    (r"\text{Yes}", "**Yes**", True),
    ("x^{12}", "x¹²", True),
    ("x^2", "x**2", True),
    ("2^10", "1024", True),
    (r"\frac{1}{2}", "½", True),
    (r"\sqrt{12}", "√12", True),
    (r"x\le 3", "x≤3", True),
]
UNITS = [
    ("5", r"5\text{ m}^2", True),
    (r"5\text{ m}", "5", True),
    ("5", r"5\,\mathrm{cm}", True),
    ("5", "5 hours", True),
    ("5000000", r"5\text{ million}", True),
    ("5", r"5\text{ million}", False),
    ("5 million", "5", False),
    (r"\text{2:30 PM}", r"\text{2:30 AM}", False),
    (r"\text{2:30 PM}", "2:30 PM", True),
]
HELD = [
    ("1,2", "2,1", True),
    ("1,2", "1", False),
    (r"x=1\text{ or }x=2", "x=2, x=1", True),
    ("7", "007", True),
    ("29", r"\text{29}", True),
    ("5310", "$5,310.00", True),
    ("26000", "26{,}000", True),
    ("64", "x=64", True),
    (r"10\%", "0.1", True),
]


@pytest.mark.parametrize(("gold", "answer", "same"), WHOLE + BASES + TINY + DIGITS + MARKS + UNITS + HELD)
def test_an_answer_is_right_if_the_whole_of_it_means_the_gold(gold, answer, same):
    assert verdicts(gold, answer) == both(same)


def test_no_answer_is_run_as_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for answer in (
        "__import__('os').system('touch harm')",
        "open('harm','w')",
        r"\text{exec(\"open('harm','w')\")}",
    ):
        assert verdicts("5", answer) == both(False)
    assert not any(tmp_path.iterdir())


APART = [
    r"\,",
    r"\;",
    r"\:",
    r"\ ",
    "~",
    r"\thinspace ",
    " ",
    "\u00a0",
    "\u2009",
    "\u202f",
    "'",
    "’",
    r"\_",
    "{,}",
    ",",
]


@given(st.integers(10_000, 10**12), st.sampled_from(APART), st.sampled_from(["", "-"]))
@settings(max_examples=60, deadline=None)
def test_groups_of_three_digits_are_one_number_whatever_is_between_them(number, apart, sign):
    grouped = sign + f"{number:,}".replace(",", apart)
    assert verdicts(f"{sign}{number}", grouped) == both(True)
    assert verdicts(f"{sign}{number + 1}", grouped) == both(False)


@given(st.integers(1, 10**6), st.integers(2, 16), st.integers(2, 16))
@settings(max_examples=40, deadline=None)
def test_numerals_are_equal_only_in_the_same_base(number, base, other):
    digits = ""
    while number:
        number, digit = divmod(number, base)
        digits = "0123456789ABCDEF"[digit] + digits
    if digits.isalpha():
        digits = "1" + digits
    assert verdicts(f"{digits}_{{{base}}}", f"{digits}_{{{other}}}") == both(base == other)


@given(st.integers(1, 99), st.integers(1, 99), st.integers(15, 300))
@settings(max_examples=40, deadline=None)
def test_small_numbers_differ_as_large_ones_do(one, other, zeros):
    small = [rf"{number}\cdot 10^{{-{zeros}}}" for number in (one, other)]
    assert verdicts(*small) == both(one == other)


@pytest.mark.parametrize(
    "piece", ["9 ", "9,", r"\,", r"\mathbf{", "'", "`", "**", "_", r"\ldots", "½", ". ", r"\text{", "5 m"]
)
def test_spelling_a_hostile_formula_takes_a_second_at_most(piece):
    begun = time.perf_counter()
    assert key((piece * 2000)[:2000]) is not None
    assert time.perf_counter() - begun < 1


@given(st.text(alphabet=r"0129 .,-+^_{}()\/'*$%°½eximbfr", max_size=30))
@settings(max_examples=100, deadline=None)
def test_reading_never_raises_and_a_formula_equals_itself(text):
    formula = read_formula(text)
    assert formula == read_formula(text)
    assert isinstance(str(formula), str)
