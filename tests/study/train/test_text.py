"""Texts: tokens, vocabulary, windows, and what is refused."""

from pathlib import Path

import pytest
import torch

from tied.study.train import DataError
from tied.study.train.text import read_corpus, windows

TEXT = "the cat (a cat) sat.\nthe dog sat, too.\n" * 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def corpus(text=TEXT, kind="words", context=4):
    Path("text.txt").write_text(text, encoding="utf-8")
    return read_corpus("text.txt", kind=kind, context=context)


def test_words_are_numbered_by_their_frequency():
    read = corpus()
    tokens = [read.vocabulary[number] for number in torch.cat([read.training, read.held_out]).tolist()]
    assert tokens[:9] == ["the", "cat", "(", "a", "cat", ")", "sat", ".", "\n"]
    assert len(tokens) == 16 * 40
    counts = torch.bincount(read.training)
    assert (counts[1:] <= counts[:-1]).all()
    assert set(read.vocabulary) == {"the", "cat", "(", "a", ")", "sat", ".", "dog", ",", "too", "\n"}
    assert read.unknown_part == 0
    assert read.source == "text.txt"


def test_the_end_is_held_out():
    read = corpus(" ".join(map(str, range(1000))), kind="characters")
    assert read.text(read.training.tolist()) + read.text(read.held_out.tolist()) == " ".join(map(str, range(1000)))
    assert len(read.training) == int(0.85 * len(" ".join(map(str, range(1000)))))


def test_rare_words_of_the_training_part_are_unknown():
    read = corpus(TEXT + "zebra zebra zebra yak")
    assert read.vocabulary[-1] == "<unk>"
    assert "zebra" not in read.vocabulary
    assert read.held_out[-4:].tolist() == [len(read.vocabulary) - 1] * 4
    assert read.unknown_part == pytest.approx(4 / len(read.held_out))
    assert "yak" not in corpus("yak yak " + TEXT).vocabulary
    assert "yak" in corpus("yak yak yak " + TEXT).vocabulary


def test_a_character_that_comes_first_at_the_end_is_unknown():
    read = corpus(TEXT + "é", kind="characters")
    assert read.vocabulary[-1] == "<unk>"
    assert read.held_out[-1] == len(read.vocabulary) - 1


def test_text_is_written_with_spaces_where_they_were():
    read = corpus()
    assert read.text(read.training[:15].tolist()) == "the cat (a cat) sat.\nthe dog sat, too."


def test_windows_overlap_by_one_and_lose_only_the_rest():
    cut = windows(torch.arange(11), 3)
    assert cut.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert windows(torch.arange(4), 3).tolist() == [[0, 1, 2, 3]]


def test_pydoc_is_the_text_of_the_standard_library():
    read = read_corpus("pydoc", kind="words", context=64)
    assert len(read.training) > 90_000
    assert 1500 < len(read.vocabulary) < 4000
    assert read.unknown_part < 0.1


def test_shakespeare_comes_with_the_package():
    read = read_corpus("shakespeare", kind="words", context=64)
    assert read.source == "Hamlet, Macbeth, and Romeo and Juliet"
    assert 90_000 < len(read.training) + len(read.held_out) < 130_000
    assert {"Hamlet", "Macbeth", "Romeo"} & set(read.vocabulary)
    characters = read_corpus("shakespeare", kind="characters", context=64)
    assert characters.text(characters.training[:25].tolist()) == "HAMLET, PRINCE OF DENMARK"


def test_a_file_called_pydoc_comes_first():
    Path("pydoc").write_text(TEXT)
    assert read_corpus("pydoc", kind="words", context=4).source == "pydoc"


WRONG = {
    "text missing": None,
    "empty text": b"",
    "short text": b"the cat sat",
    "text not in utf-8": "naïve ".encode("latin-1") * 500,
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_text_is_refused_by_name(case, golden):
    if WRONG[case] is not None:
        Path("text.txt").write_bytes(WRONG[case])
    with pytest.raises(DataError) as caught:
        read_corpus("text.txt", kind="words", context=64)
    golden(f"train/{case.replace(' ', '-')}.txt", str(caught.value) + "\n")


def test_a_name_that_is_no_file_says_so():
    with pytest.raises(DataError, match="marlowe"):
        read_corpus("marlowe", kind="words", context=64)


def test_just_long_enough():
    needed = int(10 * 5 / 0.15) + 1
    assert len(corpus("ab " * needed).held_out) == needed - int(0.85 * needed)
    with pytest.raises(DataError, match=f"at least {needed}, for windows of 4"):
        corpus("ab " * (needed - 1))
