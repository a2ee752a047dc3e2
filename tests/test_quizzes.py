"""The quizzes at the ends of the chapters: each answer says why it is right or wrong."""

import re

import pytest

from notebook_cells import NOTEBOOKS, read
from quizzes import Answer, Question, questions

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
QUIZZES = {path.stem: questions(read(path).cells[-1].source) for path in PATHS}
ALL = [(stem, question) for stem, quiz in QUIZZES.items() for question in quiz]
each_question = pytest.mark.parametrize(
    "question", [q for _, q in ALL], ids=[q.title.split()[1] for _, q in ALL]
)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_chapter_ends_with_a_quiz(path):
    sources = [cell.source for cell in read(path).cells]
    assert re.match(r"## Quiz\n", sources[-1])
    assert not any(re.search(r"^## Quiz", source, re.MULTILINE) for source in sources[:-1])
    quiz = QUIZZES[path.stem]
    assert 4 <= len(quiz) <= 6
    chapter = int(path.stem[:2])
    assert [q.title for q in quiz] == [f"Question {chapter}.{i + 1}" for i in range(len(quiz))]


@each_question
def test_one_answer_is_right_and_each_wrong_one_explains_itself(question):
    assert question.text.rstrip("`\n").endswith(("?", ":", ".", "$", "```")), question.text
    letters = "".join(answer.letter for answer in question.answers)
    assert letters in ("ABC", "ABCD")
    assert sum(answer.right for answer in question.answers) == 1
    for answer in question.answers:
        assert len(answer.told.split()) >= 6, f"{answer.letter} says too little: {answer.told}"
    assert len({answer.told for answer in question.answers}) == len(question.answers)
    assert len({answer.text for answer in question.answers}) == len(question.answers)


def test_the_right_answer_does_not_give_itself_away():
    """Neither its place nor its length tells it."""
    places = [[a.right for a in q.answers].index(True) for _, q in ALL]
    for place in range(3):
        assert 0.1 * len(ALL) <= places.count(place) <= 0.5 * len(ALL)
    longest = sum(max(q.answers, key=lambda a: len(a.text)).right for _, q in ALL)
    assert longest <= 0.6 * len(ALL)


QUIZ = """## Quiz

### Question 4.1

What is 1 + 1?

<details><summary>A. 1</summary>

✗ No. That is one of the two.

</details>

<details><summary>B. 2</summary>

✓ Yes. Both
of them.

</details>
"""


def test_quizzes_are_read_by_their_conventions():
    answers = (
        Answer("A", "1", False, "That is one of the two."),
        Answer("B", "2", True, "Both of them."),
    )
    assert questions(QUIZ) == [Question("Question 4.1", "What is 1 + 1?", answers)]
    for old, new, words in (
        ("✗ No", "✗ Yes", "contradicts itself"),
        ("✗ No. That", "That", "2 folds, of which 1 are answers"),
        ("<summary>A. 1", "<summary>1", "2 folds, of which 1 are answers"),
        ("</summary>\n\n✗", "</summary>\n✗", "2 folds, of which 1 are answers"),
    ):
        assert old in QUIZ
        with pytest.raises(ValueError, match=words):
            questions(QUIZ.replace(old, new))
