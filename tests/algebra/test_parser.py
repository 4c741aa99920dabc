"""The parser: canonical texts, Python's own precedence, whole messages, and safety on any input."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from corpus_of_transforms import SUBJECTS
from generated_expressions import Names, arithmetic, hostile, names, tensors, trees
from hypothesis import example, given, settings, strategies as st

from tied import KindError, ParseError, TieError
from tied.algebra import Expression, parse
from tied.algebra.address_parser import MOST_CHARACTERS
from tied.algebra.parser import parse_address
from tied.algebra.transform import MOST_DEPTH

CANONICAL = {
    "encoder.weight": "encoder.weight",
    " encoder . weight ": "encoder.weight",
    "a.w\n.T": "a.w.T",
    "(a.w)": "a.w",
    "((a.w)).T": "a.w.T",
    "a.w.t()": "a.w.T",
    "a.w.permute(1, 0)": "a.w.T",
    "a.w.permute((-1, -2))": "a.w.T",
    "a.w.permute(dims=(2, 0, 1))": "a.w.permute(2, 0, 1)",
    "a.w.permute([2, 0, 1])": "a.w.permute(2, 0, 1)",
    "a.w.transpose(-1, -2)": "a.w.mT",
    "a.w.transpose(dim0=0, dim1=1)": "a.w.transpose(0, 1)",
    "a.w.view(2, -1)": "a.w.reshape(2, -1)",
    "a.w.reshape((2, 3))": "a.w.reshape(2, 3)",
    "a.w.reshape(())": "a.w.reshape()",
    "a.w.reshape((2,))": "a.w.reshape(2)",
    "a.w.reshape((2))": "a.w.reshape(2)",
    "a.w.reshape(2 * 3, -(4 - 3))": "a.w.reshape(6, -1)",
    "a.w.flatten(0)": "a.w.flatten()",
    "a.w.flatten(start_dim=1)": "a.w.flatten(1, -1)",
    "a.w.unflatten(0, [2, 3])": "a.w.unflatten(0, (2, 3))",
    "a.w.unflatten(dim=0, sizes=(2, 3))": "a.w.unflatten(0, (2, 3))",
    "a.w.squeeze(dim=0)": "a.w.squeeze(0)",
    "a.w.squeeze((0,))": "a.w.squeeze((0,))",
    "a.w.squeeze((0))": "a.w.squeeze(0)",
    "a.w.flip([0, 1])": "a.w.flip(0, 1)",
    "a.w.flip(dims=[0])": "a.w.flip(0)",
    "a.w.roll(shifts=1, dims=0)": "a.w.roll(1, 0)",
    "a.w.repeat_interleave(repeats=2, dim=0)": "a.w.repeat_interleave(2, 0)",
    "a.w.narrow(0, start=1, length=2)": "a.w.narrow(0, 1, 2)",
    "a.w[0:5:1]": "a.w[:5]",
    "a.w[None:2]": "a.w[:2]",
    "a.w[1,]": "a.w[1]",
    "a.w[:,]": "a.w[:]",
    "a.w[2 + 1]": "a.w[3]",
    "a.w[(1, 2)]": "a.w[1, 2]",
    "a.w[..., None]": "a.w[..., None]",
    "a.w*2": "2 * a.w",
    "2.0 * a.w": "2 * a.w",
    "1e2 * a.w": "100 * a.w",
    ".5*a.w": "0.5 * a.w",
    "5.*a.w": "5 * a.w",
    "00012*a.w": "12 * a.w",
    "1 * a.w": "a.w",
    "a.w / 1.0": "a.w",
    "2*3*a.w": "6 * a.w",
    "2 * a.w * 3": "3 * (2 * a.w)",
    "(2 + 3 * 4 - 6 / 3) * a.w": "12 * a.w",
    "-2 * a.w": "-2 * a.w",
    "-(2 * a.w)": "-2 * a.w",
    "2 * -a.w": "-2 * a.w",
    "--a.w": "a.w",
    "- - -a.w": "-a.w",
    "-a.w.T": "-a.w.T",
    "(-a.w).exp()": "(-a.w).exp()",
    "a.w+b.w": "a.w + b.w",
    "a.w + (-b.w)": "a.w - b.w",
    "a.w - -b.w": "a.w + b.w",
    "a.w - 2 * b.w": "a.w - 2 * b.w",
    "a.w + (b.w + c.w)": "a.w + (b.w + c.w)",
    "(a.w + b.w) + c.w": "a.w + b.w + c.w",
    "a.w - (b.w - c.w)": "a.w - (b.w - c.w)",
    "(a.w + b.w) * c.w": "(a.w + b.w) * c.w",
    "a.w * (b.w @ c.w)": "a.w * (b.w @ c.w)",
    "(a.w * b.w) @ c.w": "a.w * b.w @ c.w",
    "(a.w @ b.w).T": "(a.w @ b.w).T",
    "a.w / 2 / 3": "a.w / 2 / 3",
    "a.w / (2 * 3)": "a.w / 6",
    "[1, -1] * a.w": "a.w * [1, -1]",
    "a.w * (1, -1)": "a.w * [1, -1]",
    "a.w * [[1, 2 / 4], [-1, 1e-3],]": "a.w * [[1, 0.5], [-1, 0.001]]",
    "cat((a.w, b.w))": "cat([a.w, b.w], 0)",
    "cat([a.w,b.w,],1,)": "cat([a.w, b.w], 1)",
    "cat([a.w, b.w], dim=-1)": "cat([a.w, b.w], -1)",
    "stack([a.w + b.w])": "stack([a.w + b.w], 0)",
    "kron( a.w , 2*b.w )": "kron(a.w, 2 * b.w)",
    "kron(first=a.w, second=b.w)": "kron(a.w, b.w)",
    "kron((a.w), ((b.w)))": "kron(a.w, b.w)",
    "a.w.to(torch.float16)": "a.w.to(float16)",
    "a.w.to('cuda')": 'a.w.to("cuda")',
    "a.w.to(half)": "a.w.to(float16)",
    "a.w[b.index[0] ]": "a.w[b.index[0]]",
    'a["w"].T': "a.w.T",
    "theta[None]": "theta[None]",
    'theta[["None"]]': 'theta[["None"]]',
}


@pytest.mark.parametrize(("text", "canonical"), CANONICAL.items(), ids=CANONICAL)
def test_every_text_has_one_canonical_form(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical
    assert parse(canonical) == parse(text)
    assert str(parse(canonical)) == canonical


# Python is the oracle of precedence


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal, bit for bit but for the sign of a zero; what is not a number in one is not in the other."""
    return ours.shape == theirs.shape and bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())


@settings(max_examples=800, deadline=None)
@given(arithmetic())
def test_operators_bind_as_in_python(text: str) -> None:
    theirs = eval(text, names())
    expression = parse(text)
    assert same(expression.value(tensors()), theirs)
    assert parse(str(expression)) == expression
    assert same(
        eval(str(expression).replace("layers.0", "layers[0]").replace("layers.1", "layers[1]"), names()), theirs
    )


def test_the_oracle_can_contradict() -> None:
    assert not same(parse("a.w - b.w - a.w").value(tensors()), eval("a.w - (b.w - a.w)", names()))


# Messages


MESSAGES = {
    "encoder.weight.transposed()": """
'transposed' is not a transform.
  found:    .transposed, at position 16 of 'encoder.weight.transposed()'
  expected: 'transpose'
  fix:      write it as in torch: 'encoder.weight.T', '2 * a.w', 'cat([a.w, b.w], 0)', 'embed.weight[:100]'
The model was not changed.""",
    "cat([a.w, b.w], 0": """
Something is missing.
  found:    the end, at position 18 of 'cat([a.w, b.w], 0'
  expected: ','
  fix:      write it as in torch: 'encoder.weight.T', '2 * a.w', 'cat([a.w, b.w], 0)', 'embed.weight[:100]'
The model was not changed.""",
    "a.w + 2": """
'+' cannot stand here.
  found:    an expression + a number, at position 8 of 'a.w + 2'
  expected: an expression + an expression
  fix:      write it as in torch: 'encoder.weight.T', '2 * a.w', 'cat([a.w, b.w], 0)', 'embed.weight[:100]'
The model was not changed.""",
    "a.w / b.w": """
Only numbers divide.
  found:    a division by b.w, at position 10 of 'a.w / b.w'
  expected: e / 3
  fix:      multiply by the reciprocal: e * other.reciprocal()
The model was not changed.""",
    "a.w[::-1]": """
This cannot stand between [ and ].
  found:    step -1, at position 4 of 'a.w[::-1]'
  expected: a positive step; `.flip(dim)` turns an axis round
  fix:      select with slices, or with the address of an integer buffer: theta[index]
The model was not changed.""",
    "a.w.transpose(0)": """
.transpose was called with arguments that it does not take.
  found:    .transpose(0), at position 14 of 'a.w.transpose(0)'
  expected: the arguments of torch.Tensor.transpose, whole numbers only
  fix:      see the documentation of torch.Tensor.transpose
The model was not changed.""",
    "cat(a.w, b.w)": """
Expressions are joined as in torch.
  found:    Ref, dim parse('b.w'), at position 4 of 'cat(a.w, b.w)'
  expected: a list of expressions, and a whole number
  fix:      write cat([a.w, b.w], 0), or tied.cat([a, b], 0)
The model was not changed.""",
    "42": """
This names no tensor.
  found:    the constant 42, at position 1 of '42'
  expected: an address
  fix:      write it as in torch: 'encoder.weight.T', '2 * a.w', 'cat([a.w, b.w], 0)', 'embed.weight[:100]'
The model was not changed.""",
}


@pytest.mark.parametrize(("text", "message"), MESSAGES.items(), ids=MESSAGES)
def test_an_error_says_what_where_and_how_else(text: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert str(caught.value) == message.strip()


REFUSED = {
    "": (1, "An address is missing"),
    "   ": (4, "An address is missing"),
    ".": (1, "An address is missing"),
    "+a.w": (1, "An address is missing"),
    "~a.w": (1, "An address is missing"),
    "a.w **2": (6, "An address is missing"),
    "(a.w": (5, "Something is missing"),
    "()": (1, "This names no tensor"),
    "(a.w, b.w)": (1, "This names no tensor"),
    "(a.w,)": (1, "This names no tensor"),
    '[""]': (1, "An address is missing"),
    'a.w[""]': (5, "An address is missing"),
    "[a.w]": (1, "This names no tensor"),
    "a.w)": (4, "The text goes on"),
    "a.w b.w": (5, "The text goes on"),
    "a.w # T": (5, "The text goes on"),
    "a.w.T()": (6, "The text goes on"),
    "__import__('os')": (11, "The text goes on"),
    "lambda: a.w": (7, "The text goes on"),
    "a..w": (3, "A name is missing behind a dot"),
    "a.w.": (5, "A name is missing behind a dot"),
    "a.w.relu()": (5, "'relu' is not a transform"),
    "a.w.reshap(2)": (5, "'reshap' is not a transform"),
    "(a.w).exp": (10, ".exp is a method"),
    "a.w.exp(1)": (8, ".exp does not take these arguments"),
    "a.w.exp(x=1)": (8, ".exp does not take these arguments"),
    "a.w.t(1)": (6, ".T was called with arguments"),
    "a.w.flip(dims=[0], dims=[1])": (25, "An argument is given twice"),
    "a.w.flip(b.w)": (9, ".flip was called with arguments"),
    "a.w.reshape(1.5)": (12, ".reshape was called with arguments"),
    "a.w.reshape(2, (3, 4))": (12, ".reshape was called with arguments"),
    "a.w.transpose((0, 1), 2)": (14, ".transpose was called with arguments"),
    "a.w.unflatten(0, ((1, 2), 3))": (14, ".unflatten was called with arguments"),
    "a.w.roll(4611686018427387904)": (9, ".roll was called with arguments"),
    "a.w.to()": (8, ".to takes a dtype or a device"),
    "a.w.to(float17)": (8, ".to takes a dtype or a device"),
    "a.w.to(nn.float16)": (8, ".to takes a dtype or a device"),
    "a.w.to(has_mps)": (8, ".to takes a dtype or a device"),
    "a.w.to(_dynamo)": (8, ".to takes a dtype or a device"),
    'a.w.to("nowhere")': (18, ".to was called with neither"),
    "a.w[]": (5, "An index is missing"),
    "a.w[,1]": (5, "An index is missing"),
    "a.w[1,,2]": (7, "An index is missing"),
    "a.w[": (5, "An index is missing"),
    "a.w[1": (6, "Something is missing"),
    "a.w[1:2:3:4]": (10, "Something is missing"),
    "a.w[1.5]": (4, "This cannot stand between"),
    "a.w[::0]": (4, "This cannot stand between"),
    "a.w[[0, 1]]": (4, "This cannot stand between"),
    "a.w[..., ...]": (4, "This cannot stand between"),
    "a.w[b.w, 0]": (4, "This cannot stand between"),
    "a.w[b.w:]": (4, "This cannot stand between"),
    "a.w[4611686018427387904]": (4, "This cannot stand between"),
    "2 + a.w": (8, "'+' cannot stand here"),
    "2 / a.w": (8, "'/' cannot stand here"),
    "a.w @ 2": (8, "'@' cannot stand here"),
    "2 @ 3": (6, "'@' cannot stand here"),
    "2 * [1] * a.w": (8, "'*' cannot stand here"),
    "-[1] * a.w": (5, "'*' cannot stand here"),
    "a.w / [1]": (10, "'/' cannot stand here"),
    "a.w / 0": (8, "Division by zero"),
    "1 / 0 * a.w": (6, "This number is not finite"),
    "1e308 * 10 * a.w": (11, "This number is not finite"),
    "9e18 * a.w + 9223372036854775807 * 2 * b.w": (37, "This number is not finite"),
    "2 * 1e999 * a.w": (5, "A number is too large"),
    "9223372036854775808 * a.w": (1, "A number is too large"),
    "a.w[" + "9" * 5000 + "]": (5, "A number is too large"),
    "[1, a.w] * b.w": (15, "This is not a constant"),
    "[1, [2, 3]] * b.w": (18, "These lists form no tensor"),
    "cat([], 0)": (4, "Nothing to join"),
    "cat([a.w], 1.5)": (4, "Expressions are joined"),
    "cat([a.w], dims=1)": (4, "cat does not take these arguments"),
    "kron(a.w)": (5, "kron does not take these arguments"),
    "(" * 65 + "a" + ")" * 65: (65, "Too many parentheses"),
    "cat([a.w, 5])": (4, "This cannot stand here"),
    "kron(2, a.w)": (5, "This cannot stand here"),
}


@pytest.mark.parametrize(("text", "where", "problem"), [(t, *r) for t, r in REFUSED.items()], ids=lambda x: str(x)[:40])
def test_what_is_no_expression_is_refused_at_its_place(text: str, where: int, problem: str) -> None:
    with pytest.raises((ParseError, KindError)) as caught:
        parse(text)
    assert caught.value.problem.startswith(problem)
    assert f", at position {where} of '" in caught.value.found
    assert caught.value.expected
    assert caught.value.fix
    assert len(str(caught.value).splitlines()) <= 8
    assert max(map(len, str(caught.value).splitlines())) < 200


# Safety


def outcome(read: Callable[..., Any], *arguments: Any) -> Any:
    """What reading gives, or the TieError that it raises; any other error passes, and fails the test."""
    try:
        return read(*arguments)
    except TieError as error:
        return error


@settings(max_examples=1500, deadline=1000)
@given(hostile)
@example("x\ud800")
@example("\x00")
@example("x[²]")
@example("٣ * x")
@example("x.permute(0, 1).permute(0, 5)")
@example("x.permute().permute(0)")
def test_any_text_is_read_or_refused(text: str) -> None:
    """Only a TieError may come out; what is read is printed, and read back as the same."""
    found = outcome(parse, text)
    assert str(found)
    if isinstance(found, Expression):
        assert parse(str(found)) == found
        assert str(parse(str(found))) == str(found)


@settings(max_examples=1000, deadline=1000)
@given(hostile, trees)
def test_any_text_is_safe_against_any_model(text: str, tree: Names) -> None:
    for read in (parse, parse_address):
        assert str(outcome(read, text, tree))


@settings(max_examples=500, deadline=1000)
@given(hostile)
def test_any_text_is_an_address_or_refused(text: str) -> None:
    found = outcome(parse_address, text)
    assert str(found) if isinstance(found, TieError) else all(found)


def repeated(piece: str, size: int, start: str = "x", end: str = "") -> str:
    return start + piece * ((size - len(start) - len(end)) // len(piece)) + end


LONG = {
    "digits": lambda n: "1" * n + "a",
    "digits with a point": lambda n: "1" * (n // 2) + "." + "1" * (n // 2) + "a",
    "exponent": lambda n: "1e" + "1" * n + "a",
    "a large integer": lambda n: "9" * n + " * x",
    "a small float": lambda n: "0." + "0" * n + "1 * x",
    "zeros": lambda n: "0" * n + "2 * x",
    "an index": lambda n: f"x[{'9' * n}]",
    "a negative index": lambda n: f"x[-{'9' * n}].w",
    "a name": lambda n: "a" * n,
    "a transform": lambda n: f"x.{'a' * n}()",
    "an argument's name": lambda n: f"x.flip({'a' * n}=1)",
    "a string": lambda n: f'x["{"a" * n}"]',
    "an open string": lambda n: 'x["' + "a" * n,
    "escapes": lambda n: 'x["' + "\\" * n,
    "a device": lambda n: f'x.to("{"a" * n}")',
    "a dtype": lambda n: f"x.to({'a.' * (n // 2)}a)",
    "spaces": lambda n: " " * n + "x",
    "spaces behind": lambda n: "x" + " " * n,
    "dots": lambda n: "." * n,
    "NULs": lambda n: "\x00" * n,
    "surrogates": lambda n: "\ud800" * n,
    "segments": lambda n: repeated(".a", n),
    "indices": lambda n: repeated("[0]", n),
    "slices": lambda n: repeated("[1:]", n),
    "columns": lambda n: repeated("[:, 0]", n),
    "transposes": lambda n: repeated(".T", n),
    "rolls": lambda n: repeated(".roll(1, 0)", n),
    "large rolls": lambda n: repeated(f".roll({2**61}, 0)", n),
    "large strides": lambda n: repeated(f"[::{2**40}]", n),
    "permutations": lambda n: "x" + f".permute({', '.join(map(str, range(n // 10)))})" * 2,
    "bends": lambda n: repeated(".exp()", n),
    "flips": lambda n: repeated(".flip(0).flip(1)", n),
    "minuses": lambda n: repeated("-", n, start="", end="x"),
    "sums": lambda n: repeated(" + x", n),
    "products": lambda n: repeated(" @ x", n),
    "scales": lambda n: repeated("2 * -", n, start="", end="x"),
    "constants": lambda n: repeated("+1", n, start="1"),
    "a list": lambda n: repeated("1, ", n, start="x * [", end="1]"),
    "a join": lambda n: repeated("x, ", n, start="cat([", end="x], 0)"),
    "sizes": lambda n: repeated("1, ", n, start="x.expand(", end="1)"),
    "tuples": lambda n: repeated("(1,), ", n, start="x.expand(", end="1)"),
    "items": lambda n: repeated(":, ", n, start="x[", end="0]"),
    "parentheses": lambda n: "(" * (n // 2) + "x" + ")" * (n // 2),
    "lists": lambda n: "[" * n,
    "quoted lists": lambda n: "['" * (n // 2),
    "joins": lambda n: repeated("cat([", n, start=""),
    "krons": lambda n: "kron((" * (n // 11) + "x" + "), y)" * (n // 11),
    "indexed by itself": lambda n: repeated("[x", n),
    "arguments": lambda n: repeated(".flip((", n),
    "semicolons": lambda n: repeated("x;", n),
}
SIZES = (60, 400, 5_000, 10_000)


@pytest.mark.parametrize("kind", LONG)
@settings(max_examples=20, deadline=1000)
@given(size=st.sampled_from(SIZES), read=st.sampled_from([parse, parse_address]))
def test_long_and_deep_texts_end_soon(kind: str, size: int, read: Callable[[str], object]) -> None:
    """There are eight examples of each kind, so that hypothesis tries them all."""
    found = outcome(read, LONG[kind](size))
    assert not isinstance(found, TieError) or len(str(found)) < 1000


@pytest.mark.parametrize("kind", LONG)
def test_every_kind_of_long_text_ends_in_an_answer(kind: str) -> None:
    for size in SIZES:
        found = outcome(parse, LONG[kind](size))
        assert isinstance(found, TieError) or str(parse(str(found))) == str(found)


def test_parentheses_are_read_once_each() -> None:
    """Arguments in parentheses must not be read twice at each level: that would double the time thirty times."""
    deep = MOST_DEPTH // 2 - 1
    text = "kron((" * deep + "x" + "), y)" * deep
    assert str(parse(text)) == "kron(" * deep + "x" + ", y)" * deep


def test_the_longest_text() -> None:
    assert str(parse(" " * (MOST_CHARACTERS - 1) + "x")) == "x"
    with pytest.raises(ParseError, match="The text is too long"):
        parse(" " * MOST_CHARACTERS + "x")


def test_reading_a_dtype_loads_nothing() -> None:
    """Names are looked up among what torch holds already: `torch.onnx` would be imported, `has_mps` would warn."""
    before = set(vars(torch))
    for name in ["onnx", "_inductor", "compiler", "has_mps", "has_cuda", "nonsense"]:
        with pytest.raises(ParseError):
            parse(f"x.to({name})")
    assert set(vars(torch)) == before


def test_a_damaged_corpus_is_read_or_refused() -> None:
    """Every text of the corpus with every one of its characters dropped."""
    draw = random.Random(0)
    texts = [subject.text for subject in SUBJECTS]
    for text in draw.sample(texts, 40):
        for at in range(len(text)):
            found = outcome(parse, text[:at] + text[at + 1 :])
            assert isinstance(found, TieError) or parse(str(found)) == found
