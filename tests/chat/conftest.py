"""A tiny model that was trained to answer, and its evaluation, shared by the tests of evaluation and export."""

import pytest
from tiny_chat import LOG, PARAMS, always, held_out, plain_documents, tiny_model, train_to_answer

from foundry.chat.evaluate import Subject, evaluate_answers
from foundry.chat.prompts import Training, held_out_prompts
from foundry.models.files import weights_sha256
from foundry.tokenizers.chat import TEMPLATE_SHA256


@pytest.fixture(scope="session")
def chat_data():
    """(training examples, test examples)."""
    return held_out()


@pytest.fixture(scope="session")
def answering(tokenizer, chat_data):
    """(the base model, the same model trained to answer)."""
    return tiny_model(), train_to_answer(tiny_model(), tokenizer, chat_data[0])


@pytest.fixture(scope="session")
def training(chat_data):
    return Training.of(chat_data[0])


@pytest.fixture(scope="session")
def prompts(tokenizer, chat_data, training):
    return held_out_prompts(chat_data[1], training, tokenizer, 96, PARAMS)


@pytest.fixture(scope="session")
def evaluation(tokenizer, answering, prompts, training):
    base, tuned = answering
    subjects = [
        Subject("base", lambda: base, weights_sha256(base)),
        Subject("sft", lambda: tuned, weights_sha256(tuned), parent="base", template_sha256=TEMPLATE_SHA256),
    ]
    baselines = [always("a food", task, prompts) for task in ("kind", "tell")]
    documents = plain_documents(tokenizer)
    return evaluate_answers(
        subjects, prompts, training, tokenizer, documents, PARAMS, 1, LOG, data_sha256="3" * 64, baselines=baselines
    )
