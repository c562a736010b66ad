"""Reading answers out of free text."""

import random
import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.tasks.answers import exact_match, final_answer, last_boxed
from distill.tasks.final_number import final_number
from distill.tasks.letters import option_letter

NUMBERS = {
    "1,080": 1080,
    "$1,080.00": 1080,
    "18 dollars": 18,
    "It is 18kg.": 18,
    "-5": -5,
    "$-5": -5,
    "-$5.50": Decimal("-5.5"),
    "**17**": 17,
    "5%": 5,
    "#### 72": 72,
    "48+24 = 72": 72,
    "Answer: **17**": 17,
    "The answer is 5. Check: 2 + 3 is 5 for 10 people": 5,
    "first 3, then 4": 4,
    "12.": 12,
    r"so \boxed{1{,}080}": 1080,
    r"\boxed{\$18\text{ dollars}}, and not 19": 18,
    r"\boxed{x=5}": 5,
    "": None,
    "seventeen": None,
    "9**9**9": None,
    "3-5": None,
    "x^2": None,
    "3/4": Decimal("0.75"),
    "-3/4": Decimal("-0.75"),
    "5 3/4": Decimal("5.75"),
    "-5 3/4": Decimal("-5.75"),
    ".5": Decimal("0.5"),
    "3/4/5": None,
    "3/0": None,
    "1/2/2024": None,
    "48/2 = 24": 24,
    "1e5": 100_000,
    "1.5 x 10^3 m": 1500,
    r"$1.5\times10^{-3}$ m": Decimal("0.0015"),
    r"\boxed{3 \cdot 10^8}": 300_000_000,
    "1e99999": None,
    r"\boxed{-\frac{3}{4}}": Decimal("-0.75"),
    r"\boxed{\dfrac34}": Decimal("0.75"),
    r"\boxed{2\frac{1}{2}}": Decimal("2.5"),
    r"The answer is $\frac{3}{4}$.": Decimal("0.75"),
    r"\boxed{25\%}": 25,
    r"\boxed{5\text{ m}^2}": 5,
    r"\boxed{9.8\ \text{m/s}^{2}}": Decimal("9.8"),
    r"\boxed{5\,\mathrm{m/s^2}}": 5,
    r"\boxed{5^\circ}": 5,
    r"\boxed{\sqrt{2}}": None,
    r"\boxed{18\pi}": None,
    r"\boxed{\frac{\sqrt{3}}{2}}": None,
    "1.2.3": None,
    "3,4,5": None,
    "1,0805": None,
    "7:7,5:12,2:14,3:17": None,
    r"\boxed{5 or 7}": None,
    r"17, no \boxed{nothing}": None,
}

# Locales, dashes, words and sums: what else models write.
NUMBERS |= {
    "The answer is 48 + 24 = 72.": 72,
    "The answer is $48 + 24 = 3 * 24 = 72$ clips.": 72,
    "#### 48 + 24 = 72": 72,
    "Answer: In April she sold 48 clips, in May 24. She sold 72 in all.": 72,
    "Answer: 72 clips. Check: 48 + 24 is 3 times 24.": 72,
    "The answer is not 71. It is 72": 72,
    "The answer is 72 because 3 times 24 is that; x = 5": 72,
    "The answer is:\n\n$$\n72\n$$\nas 24 is a third": 72,
    r"\boxed{48 + 24 = 72}": 72,
    r"\boxed{x = 72}": 72,
    r"\boxed{\boxed{72}}": 72,
    r"\\boxed{72}, and 5 more": 72,
    r"\boxed {72}, and 5 more": 72,
    r"\fbox{72}, and 5 more": 72,
    r"\boxed{72 cm^{2}}": 72,
    "_72_": 72,
    "７２": 72,
    "−5": -5,
    "–5": -5,
    "－５": -5,
    "3 − 8 = − 5": -5,
    r"\boxed{- 5}": -5,
    "minus 5": -5,
    "It is negative $5.50": Decimal("-5.5"),
    r"\boxed{\frac{10}{-2}}": -5,
    "1\u202f080": 1080,
    "1\u00a0080,": 1080,
    "1'080": 1080,
    "1.080,50": Decimal("1080.5"),
    "1.000.000": 10**6,
    "1 000 000": 10**6,
    r"\boxed{1 080}": 1080,
    r"\boxed{1\,080}": 1080,
    "10^6": 10**6,
    r"\boxed{10^{6}}": 10**6,
    "Rs.72": 72,
    "0,5": Decimal("0.5"),
    "½": Decimal("0.5"),
    "2½": Decimal("2.5"),
    "2 and 1/2": Decimal("2.5"),
    "1 / 2": Decimal("0.5"),
    "1⁄2": Decimal("0.5"),
    r"\boxed{2\frac12}": Decimal("2.5"),
    r"\boxed{\frac{1}2}": Decimal("0.5"),
    r"\boxed{\frac1{2}}": Decimal("0.5"),
    r"\boxed{\frac 1 2}": Decimal("0.5"),
    r"\boxed{{1 \over 2}}": Decimal("0.5"),
    r"\boxed{\displaystyle\frac{1}{2}}": Decimal("0.5"),
    r"\boxed{\frac{1,000}{2,000}}": Decimal("0.5"),
    r"\boxed{\frac{1.5}{3}}": Decimal("0.5"),
    "The answer is 1/2 or 0.5.": Decimal("0.5"),
    # of several none, and of a formula no part
    "The answer is 5 or 7.": None,
    "The answer is either 5 apples or 7 apples.": None,
    "The answer is 5 to 7": None,
    "The answer is 5 and 7.": None,
    "The answer is 5, 7.": None,
    "72–80": None,
    "±5": None,
    "√72": None,
    "72²": None,
    r"\boxed{\pm 5}": None,
    r"\boxed{5, 7}": None,
    r"\boxed{72_8}": None,
    r"\boxed{72!}": None,
    r"\boxed{> 72}": None,
    r"\boxed{\geq 72}": None,
    r"\boxed{\neq 72}": None,
    r"\boxed{72 + x}": None,
    r"\boxed{72x}": None,
    r"\boxed{72/x}": None,
    r"\boxed{x^{72}}": None,
    r"\boxed{72^{72}}": None,
    r"\boxed{x=5, y=7}": None,
}

LETTERS = {
    "B": "B",
    " b\n": "B",
    "(B)": "B",
    "B.": "B",
    "**B**": "B",
    "B) 6000": "B",
    "(B) the second": "B",
    "the answer is B": "B",
    "ANSWER:E": "E",
    "correct answer - A": "A",
    "Answer: **D**": "D",
    "Answer is option D.": "D",
    "(B) is wrong. The answer is C.": "C",
    r"A first, but \boxed{\text{C}}": "C",
    "So it is (B).": "B",
    "So it is B.": "B",
    "the answer is b": "B",
    "the answer is (b)": "B",
    "The answer is b, as 2 + 2 is 4.": "B",
    "Answer: (C)": "C",
    "**Answer:** **B**": "B",
    'The answer is "B"': "B",
    "The correct answer is:\n\nB) 5": "B",
    "b) 600": "B",
    "It follows from 2 + 2.\n\nC": "C",
    r"The answer is $\text{D}$.": "D",
    "The answer is a good one": None,
    "the answer is b + c": None,
    "a) 5 b) 7": None,
    "It is not (A).": None,
    "(A) is wrong": None,
    "A\nB\nC": None,
    "A) 5\nB) 6\nC": None,
    "vitamin C. is good": None,
    "It is (A) or (B).": None,
    "": None,
    "Bee": None,
    "A or B": None,
    "The answer is A or B": None,
    "The answer is not B": None,
    "A. B. C. D.": None,
    "A) 5 B) 7 C) 9": None,
    "(A) (B)": None,
    "A:5 B:7": None,
    "A.B.C.D.": None,
    "Option A: 5. Option B: 7.": None,
    "option A or B": None,
    "B) 5, but A) would do": None,
    r"\boxed{A) 5 B) 7}": None,
    "A) 5 B) 7 C) 9. The answer is B.": "B",
    r"A) 5 B) 7, so \boxed{B}": "B",
    "Option A is too small, so the correct option is C": "C",
    "I choose option D.": "D",
    "B) 6 A.M.": "B",
    "C) A:B = 2:3": "C",
    "B) P(A) = 1/2": "B",
    "B) 5. Yes, (B).": "B",
    "A3:A3,B9:B9,C5:B9,D1:B9": None,
    "Apples are the answer": None,
    "6000": None,
}

LETTERS |= {
    **dict.fromkeys(
        (
            *(
                "[B]",
                '"B"',
                "“B”",
                "B - 600",
                "**B** 600",
                "**B)** 600",
                "[B] 600",
                "B, because 2 + 2 is 4",
                "#### B",
                "→ B",
            ),
            *(
                "B is correct.",
                "Thus, B is the correct answer.",
                "(B) is the answer",
                "Therefore, B.",
                "Hence B",
                "It's B.",
            ),
            *(
                "Ans: B",
                "ANS. (B)",
                "*Answer*: B",
                "The answer’s B.",
                "Answer — B",
                "The answer must be B.",
                "I'd go with B.",
            ),
            *(
                "The answer is therefore B.",
                "The answer is most likely (B).",
                "The answer is `B`.",
                r"The answer is \(B\).",
            ),
            *(
                "The answer is [B] 600.",
                "The answer is letter B.",
                "The answer is not A but B.",
                "The answer is B, not A.",
            ),
            *("A) is wrong. B) is correct.", "B\n\nExplanation: A) is too small, C) too large.", "<answer>B</answer>"),
            *(
                '{"answer": "B"}',
                '```json\n{"answer": "B"}\n```',
                "1. B",
                "- **B**",
                "Ｂ",
                "（Ｂ）",
                "6 - 2\n\n**B) 600**",
            ),
            *(
                r"\boxed{\textrm{B}}",
                r"\boxed{\rm B}",
                r"\boxed{\boxed{B}}",
                r"\boxed{\textbf{(B)}\ 600}",
                "So B) 600 is right",
            ),
            *(
                "option b",
                "The answer to this question is B",
                "600, which corresponds to B.",
                "The answer is B and not A.",
            ),
        ),
        "B",
    ),
    **dict.fromkeys(
        (
            *(
                "Option B is incorrect.",
                "option B is not correct",
                "Option B cannot be right",
                "(B) isn't right",
                "not (B)",
            ),
            *("The answer is A, or B", "The answer is A; B", "The answer is A. Or B.", "The answer is A, or maybe B"),
            *(
                "The answer is A + B",
                "The answer is A-B",
                r"\boxed{A, B}",
                r"\boxed{B \text{ or } C}",
                "A is correct. B is correct",
            ),
            *(
                "The incorrect answer is B",
                "The wrong answer is B.",
                "The train goes from A to B.",
                "Blood type B",
                "A is too small",
            ),
        )
    ),
}


@pytest.mark.parametrize("text", NUMBERS)
def test_final_number(text):
    assert final_number(text) == NUMBERS[text]


@pytest.mark.parametrize("text", LETTERS)
def test_option_letter(text):
    assert option_letter(text) == LETTERS[text]


def test_last_boxed():
    assert last_boxed(r"\boxed{1} and \boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{1} and \boxed{2") == "1"
    assert last_boxed(r"\boxed{a \} b}") == r"a \} b"
    assert last_boxed(r"{\boxed{2}} }") == "2"
    assert last_boxed(r"boxed{2} \boxed 2") is None


def test_final_answer_and_exact_match():
    assert final_answer("  nova   corp\n tech ok ") == "nova corp tech ok"
    assert exact_match("nova corp tech ok", r"The row: \boxed{nova corp  tech ok}")
    assert not exact_match("17", "The sum is 17")
    assert not exact_match("a", "A")


def test_any_integer_in_any_dress():
    rng = random.Random()
    for _ in range(300):
        number = rng.randrange(10 ** rng.randrange(1, 15)) * rng.choice((1, -1))
        sign, size = "-" if number < 0 else "", abs(number)
        for text in (f"{sign}{size}", f"{sign}${size:,}.00", f"{sign}{size:,} apples", rf"\boxed{{{sign}{size:,}}}"):
            assert final_number(text) == number
            assert final_number(text) != number + 1


def test_any_number_in_any_locale_sign_and_sum():
    rng = random.Random()
    for _ in range(100):
        number, other = rng.randrange(1000, 10**9), rng.randrange(1, 100)
        for blank in "\u00a0\u202f'’":
            assert final_number(f"{number:,}".replace(",", blank)) == number
        assert final_number(f"{number:,},50".replace(",", ".", f"{number:,}".count(","))) == number + Decimal("0.5")
        for minus in "-−–－":
            assert final_number(f"{minus}{number}") == -number
        said = rng.choice(("The answer is", "Answer:", "####"))
        assert final_number(f"{said} {number - other} + {other} = {number} of {other * 3}.") == number
        assert final_number(f"The answer is {number} or {number + other}.") is None
        assert final_number(f"\\boxed{{{number}, {number + other}}}") is None


def test_listing_the_options_chooses_none():
    rng = random.Random()
    for _ in range(200):
        letters = rng.sample("ABCDEFGHIJ", rng.randrange(2, 6))
        form = rng.choice(("{})", "({})", "{}.", "{}:", "option {}", "Choice ({})"))
        options = [f"{form.format(letter)} {rng.randrange(100)}" for letter in letters]
        text = rng.choice((" ", "\n", ", ")).join(options)
        assert option_letter(text) is None
        chosen = rng.choice(letters)
        assert option_letter(f"{text}\nThe answer is {chosen}.") == chosen
        assert option_letter(rf"{text} \boxed{{{chosen}}}") == chosen


@given(st.text(alphabet=st.sampled_from("0189.,-+$*/(){}\\boxedanswer is:ABC \n"), max_size=200))
def test_any_text_is_read_without_error(text):
    final_number(text), option_letter(text), final_answer(text)


@settings(max_examples=50)
@given(st.text())
def test_any_unicode_is_read_without_error(text):
    final_number(text), option_letter(text), final_answer(text)


PIECES = ("1", "1,", "1,111", "1,111,", "1.1", "-", "$-", "(", "*", " ", "9**", "{", "\\", "\\boxed{", "\\text{", "A)")
CUES = (
    *("answer ", "answer is ", "answer:", "option ", "####", "{,}", "1/", "1 1/", "1e1", "1x10^", ".1", "(A)"),
    "\\frac{1}{",
    *(
        "\\\\",
        "1 111 ",
        "1'111",
        "1 / ",
        "answer is 1 + 1 = ",
        "answer is 1 or ",
        "= 1 + 1 ",
        "A is the ",
        "not A but ",
        "½",
        "B, ",
    ),
    *("\\frac1", "1\\frac{1}{1", "a)", "\nA", "\\text{1}^", "is A", "1%", "~", "answer is a", "×"),
)


@pytest.mark.parametrize("piece", [*PIECES, *CUES])
def test_a_megabyte_of_anything_is_read_quickly(piece):
    """What is quadratic takes ten seconds or more for the part that is read, and hours for all of it."""
    for size in (4_900, 2**20):
        many = piece * (size // len(piece))
        started = time.process_time()
        for text in (many, f"\\boxed{{{many}}}", f"{many} The answer is {many}", f"B {many}"):
            final_number(text), option_letter(text), final_answer(text)
        assert time.process_time() - started < 10
