"""What the tests read out of the book's quizzes."""

import re
from dataclasses import dataclass
from itertools import pairwise

QUESTION = re.compile(r"^### (Question \d+\.\d+)\s*$", re.MULTILINE)
ANSWER = re.compile(
    r"^<details><summary>([A-D])\. ([^\n]+)</summary>\n\n"
    r"([✓✗]) (Yes|No)[.,:;] ((?:(?!<details>).)+?)\n\n</details>$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Answer:
    """One answer of a question.

    Attributes
    ----------
    letter, text : str
        What the reader chooses.
    right : bool
        Whether it is the right one.
    told : str
        Why it is right or wrong, unfolded.
    """

    letter: str
    text: str
    right: bool
    told: str


@dataclass(frozen=True)
class Question:
    """One question of a quiz, with its answers."""

    title: str
    text: str
    answers: tuple[Answer, ...]


def questions(text: str) -> list[Question]:
    """Return the questions in a piece of Markdown.

    Raises
    ------
    ValueError
        If something folded is no answer, or a mark and its word disagree.
    """
    starts = list(QUESTION.finditer(text))
    ends = [start.start() for start in starts] + [len(text)]
    found = []
    for start, (_, end) in zip(starts, pairwise(ends), strict=True):
        part = text[start.end() : end]
        answers = []
        for letter, answer, mark, word, told in ANSWER.findall(part):
            if (mark, word) not in (("✓", "Yes"), ("✗", "No")):
                raise ValueError(f"{start[1]}, {letter}: {mark} {word}. contradicts itself")
            answers.append(Answer(letter, answer, mark == "✓", " ".join(told.split())))
        if len(answers) != part.count("<details"):
            raise ValueError(
                f"{start[1]}: {part.count('<details')} folds, of which {len(answers)} are answers "
                "as '<details><summary>A. ...</summary>', an empty line, '✗ No. ...' or "
                "'✓ Yes. ...', an empty line, '</details>'"
            )
        found.append(Question(start[1], part.split("<details")[0].strip(), tuple(answers)))
    return found
