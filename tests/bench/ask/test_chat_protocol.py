"""The chat protocol: strict parsing, and what happens to replies that name no option."""

from pathlib import Path

import pytest

from bench.ask.chat_protocol import builder_for, parse_reply, template_of_header, user_text
from bench.ask.question import Prompt
from bench.compare.compare import compare
from bench.run.measure import prepare
from bench.score.chat import score_chat
from bench.settings import Prompting
from medlite.errors import RecordError, TaskError
from medlite.formats.gguf import read_header
from tests.helpers.bench_toys import make_sample, record_of
from tests.helpers.tiny_gguf import write_tiny_gguf
from tests.helpers.toy_engine import CHAT_TEMPLATE, ToyEngine

# fmt: off
PARSED = {
    "B": 1, " b. ": None, "(C)": 2, "**D**": 3, "B. sulfonylurea": 1, "B) because": 1, "(A) is right": 0,
    "**C**: statin": 2,
    "The correct answer is B.": 1, "Answer: **D**": 3, "The answer is (A), biguanide.": 0, "The answer is option C": 2,
    "A patient with diabetes takes biguanides.": None, "I do not know.": None, "": None, "E": None, "E. none": None,
    "The answer is B. No, the answer is C.": None, "The answer is B; yes, answer: B": 1, "It may be A or B": None,
    "Aspirin": None, "Because of C. difficile": None, "I": None, "answer is unknown": None, "Answer: All of them": None,
}
# fmt: on


@pytest.mark.parametrize("text", PARSED)
def test_a_reply_names_one_option_or_none(text: str) -> None:
    assert parse_reply(text, 4) == PARSED[text]


def rendered(number: int) -> Prompt:
    text = user_text(make_sample(number))
    return Prompt(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n"
        + text
        + "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        (),
    )


def test_the_prompt_is_the_models_own_template_with_a_pinned_date(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%Y') }} {{ messages[0].content }}"
    header = read_header(write_tiny_gguf(tmp_path / "dated.gguf", template=dated))
    assert builder_for(template_of_header(header))(make_sample(0), []).context.startswith("2024 Which class is drug 0?")
    plain = read_header(write_tiny_gguf(tmp_path / "chat.gguf", template=CHAT_TEMPLATE))
    assert builder_for(template_of_header(plain))(make_sample(0), []).context == rendered(0).context


def test_answers_under_another_template_are_not_compared(tmp_path: Path) -> None:
    records = []
    for number, template in enumerate((CHAT_TEMPLATE, "{{ messages[0].content }}")):
        source = template_of_header(read_header(write_tiny_gguf(tmp_path / f"{number}.gguf", template=template)))
        items = [(make_sample(0), builder_for(source)(make_sample(0), []))]
        records.append(record_of(list(score_chat(ToyEngine(), items, reply_tokens=4)), protocol="chat"))
    with pytest.raises(RecordError, match="prompt_sha256 of sample q0"):
        compare(*records)


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    header = read_header(write_tiny_gguf(tmp_path / "base.gguf", template=None))
    for none in (template_of_header(header), None):
        with pytest.raises(TaskError, match="carries no chat template"):
            builder_for(none)


def test_an_unknown_protocol_is_refused() -> None:
    from bench.tasks import find_task

    with pytest.raises(TaskError, match="telepathy: no such protocol"):
        prepare(find_task("demo"), [make_sample(0)], [], Prompting("telepathy"))
