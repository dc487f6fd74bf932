"""The literal bytes of every prompt. That they equal lm-evaluation-harness's own: tests/bench/test_judge.py."""

from bench.ask.prompts import (
    abstract_question_answer,
    cloze,
    mmlu,
    question_choices_answer,
    question_letters_answer,
    truthfulqa,
)
from bench.ask.question import Sample

SAMPLE = Sample("x", "Which drug? ", ("one", "two", "three", "four"), 2, subject="college_biology")


def test_medqa_form() -> None:
    prompt = question_letters_answer(SAMPLE)
    assert prompt.context == "Question: Which drug? \nA. one\nB. two\nC. three\nD. four\nAnswer:"
    assert prompt.continuations == (" A", " B", " C", " D")


def test_a_fifth_option_gets_the_letter_e() -> None:
    five = Sample("x", "Q", ("a", "b", "c", "d", "e"), 4)
    assert question_letters_answer(five).context.endswith("\nE. e\nAnswer:")
    assert question_letters_answer(five).continuations[-1] == " E"


def test_a_context_stands_before_the_question() -> None:
    with_context = Sample("x", "Q", ("a", "b"), 0, context="Of mice.")
    assert question_letters_answer(with_context).context == "Abstract: Of mice.\nQuestion: Q\nA. a\nB. b\nAnswer:"


def test_medmcqa_form() -> None:
    assert question_choices_answer(SAMPLE).context == (
        "Question: Which drug? \nChoices:\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )


def test_pubmedqa_form() -> None:
    prompt = abstract_question_answer(Sample("x", "Is it?", ("yes", "no", "maybe"), 2, context="First.\nSecond."))
    assert prompt.context == "Abstract: First.\nSecond.\nQuestion: Is it?\nAnswer:"
    assert prompt.continuations == (" yes", " no", " maybe")


def test_mmlu_form_strips_the_question_and_names_the_subject() -> None:
    assert mmlu(SAMPLE).context == (
        "The following are multiple choice questions (with answers) about college biology.\n\n"
        "Which drug?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )


def test_mmlu_shots_carry_their_answers() -> None:
    shot = Sample("s", "Shot?", ("p", "q", "r", "s"), 1, subject="college_biology")
    assert mmlu(SAMPLE, [shot]).context == (
        "The following are multiple choice questions (with answers) about college biology.\n\n"
        "Shot?\nA. p\nB. q\nC. r\nD. s\nAnswer: B\n\n"
        "Which drug?\nA. one\nB. two\nC. three\nD. four\nAnswer:"
    )


def test_truthfulqa_form() -> None:
    prompt = truthfulqa(Sample("x", "Why?", ("Because.", "No."), 0))
    assert prompt.context.startswith("Q: What is human life expectancy in the United States?\nA: Human life ")
    assert prompt.context.endswith("held in Barcelona, Spain.\n\nQ: Why?\nA:")
    assert prompt.continuations == (" Because.", " No.")


def test_cloze_hides_the_options_and_keeps_their_lengths() -> None:
    prompt = cloze(SAMPLE)
    assert prompt.context == "Question: Which drug? \nAnswer:"
    assert prompt.continuations == (" one", " two", " three", " four")
    assert prompt.lengths == (3, 3, 5, 4)


def test_prompts_that_differ_in_anything_have_another_digest() -> None:
    prompts = [question_letters_answer(SAMPLE), question_choices_answer(SAMPLE), cloze(SAMPLE), mmlu(SAMPLE)]
    assert len({prompt.sha256 for prompt in prompts}) == len(prompts)
