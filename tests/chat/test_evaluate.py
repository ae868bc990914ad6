"""The evaluation of answers: what a trained model gained, and the data and models that it refuses."""

from dataclasses import replace

import pytest
import torch
from tiny_chat import LOG, PARAMS, example, examples, plain_documents

from foundry.chat.answers import Asked, answer_all
from foundry.chat.evaluate import Subject, answers_table, evaluate_answers
from foundry.chat.likelihood import divergence, reference_nats
from foundry.chat.measures import Draws, macro_exact
from foundry.chat.prompts import SPARE, Training, held_out_prompts
from foundry.config import ConfigError, DataError
from foundry.config.chat import ChatEvaluate
from foundry.tokenizers.chat import TEMPLATE_SHA256, Message, encode_chat
from foundry.utils.chat_report import read_chat_report


def test_a_model_that_learnt_to_answer_is_better_and_its_gain_on_unseen_wordings_is_apart(evaluation, prompts):
    report = evaluation.report
    base, tuned = report.models["base"], report.models["sft"]
    assert report.prompts == len(prompts) == 120
    assert base.macro.all.value < 0.2 and base.ended.value < 0.2 and tuned.ended.low > 0.6
    echo = tuned.tasks["echo"].exact
    assert echo.seen.low > 0.2 > echo.unseen.high  # nobody trained the second wording
    pair = report.pair("base", "sft")
    assert pair.verdict == "better" and pair.p_value < 0.02 and pair.win_rate.low > 0.5 and pair.prompts == 80
    assert (
        tuned.tasks["tell"].exact is None
        and tuned.tasks["tell"].bits_per_byte.value < base.tasks["tell"].bits_per_byte.value
    )
    assert tuned.bits_per_byte.high < base.bits_per_byte.low


def test_what_stands_beside_the_primary_metric(evaluation):
    base, tuned = (evaluation.report.models[n] for n in ("base", "sft"))
    assert base.forgetting is None and base.kl is None and base.parent is None
    assert tuned.forgetting.documents == 12 and tuned.forgetting.difference.low <= tuned.forgetting.difference.high
    assert tuned.kl.low > 0 and tuned.tokens.value < base.tokens.value
    assert tuned.passed.samples == 4 and tuned.passed.prompts == 6
    assert base.passed is None and tuned.passed.pass_at_k.value >= tuned.passed.pass_at_1.value > 0
    lookups = evaluation.report.lookups
    assert set(lookups) == {"kind"}  # a lookup has no share of right answers where no answer is right
    assert lookups["kind"]["constant"].value < tuned.tasks["kind"].exact.seen.value
    assert evaluation.report.template_sha256 == TEMPLATE_SHA256


def test_the_report_is_read_as_it_was_written_and_an_evaluation_is_repeatable(
    evaluation, tmp_path, answering, tokenizer, prompts
):
    evaluation.report.write(tmp_path / "chat.json")
    assert read_chat_report(tmp_path / "chat.json") == evaluation.report
    answers = answer_all(answering[1], tokenizer, [Asked(p.ids, p.max_tokens) for p in prompts])
    again = answers_table(answering[1], tokenizer, prompts, answers)
    assert again.equals(evaluation.tables["sft"])
    assert macro_exact(again, Draws(200, 1)) == evaluation.report.models["sft"].macro


def test_forgetting_and_divergence_of_an_unchanged_model_are_zero(tokenizer, answering, prompts, training):
    base = answering[0]
    subjects = [
        Subject("base", lambda: base, "1" * 64),
        Subject("sft", lambda: base, "1" * 64, "base", TEMPLATE_SHA256),
    ]
    few = prompts[:10]
    found = evaluate_answers(
        subjects, few, training, tokenizer, plain_documents(tokenizer), PARAMS, 1, LOG, data_sha256="3" * 64
    ).report
    same = found.models["sft"]
    for interval in (same.forgetting.difference, same.kl):
        assert interval.low == interval.value == interval.high == 0.0
    assert found.pair("base", "sft").verdict == "not distinguishable"


@torch.inference_mode()
def test_nats_of_references_and_divergence_are_those_of_the_definition(tokenizer, answering, prompts):
    base, tuned = answering
    some = [p for p in prompts if p.example.task == "tell"][:5]
    found = reference_nats(tuned, tokenizer, some)
    answers = answer_all(tuned, tokenizer, [Asked(p.ids, p.max_tokens) for p in some])
    apart = divergence(tuned, base, some, answers)
    for i, p in enumerate(some):
        ids = encode_chat(tokenizer, [Message("user", p.example.prompt[0].content)])
        text = tokenizer.encode(p.reference)
        log_p = tuned(torch.tensor([ids + text]))[0][0].double().log_softmax(-1)
        nats = -sum(log_p[len(ids) - 1 + k, t].item() for k, t in enumerate(text))
        assert found.nats[i] == pytest.approx(nats, rel=1e-5) and found.bytes[i] == len(p.reference.encode())
        row = torch.tensor([ids + list(answers[i].ids)])
        p_mine, p_base = (
            m(row)[0][0, len(ids) - 1 :][: apart.tokens[i]].double().log_softmax(-1) for m in (tuned, base)
        )
        right = (p_mine.exp() * (p_mine - p_base)).sum().item()
        assert apart.tokens[i] == len(answers[i].ids) + answers[i].ended
        assert apart.nats[i] == pytest.approx(right, rel=1e-4)


def test_the_choice_and_limits_of_prompts_depend_on_the_texts_only(tokenizer, chat_data, training):
    few = ChatEvaluate(prompts_per_task=5, max_new_tokens=12)
    found = held_out_prompts(chat_data[1], training, tokenizer, 96, few)
    assert found == held_out_prompts(chat_data[1][::-1], training, tokenizer, 96, few) and len(found) == 15
    assert all(p.max_tokens <= 12 for p in found)
    longest = max(len(tokenizer.encode(e.answer)) for e in chat_data[1] if e.task == "echo")
    free = held_out_prompts(chat_data[1], training, tokenizer, 96, PARAMS)
    assert {p.max_tokens for p in free if p.example.task == "echo"} == {longest * 3 // 2 + SPARE}
    assert all(len(p.ids) + p.max_tokens <= 40 for p in held_out_prompts(chat_data[1], training, tokenizer, 40, PARAMS))
    with pytest.raises(DataError, match="leaves room"):
        held_out_prompts(chat_data[1], training, tokenizer, 8, PARAMS)
    with pytest.raises(DataError, match="contains no example"):
        held_out_prompts([], training, tokenizer, 96, PARAMS)


def test_mistake_26_a_test_prompt_whose_document_or_text_was_in_the_training_is_refused(tokenizer, chat_data, training):
    train, test = chat_data
    leaked = replace(test[0], doc_id=train[0].doc_id)
    with pytest.raises(DataError, match="1 of 120 test prompts were made from documents"):
        held_out_prompts([leaked, *test[1:]], training, tokenizer, 96, PARAMS)
    same = replace(train[0], split="test", doc_id=None)
    with pytest.raises(DataError, match="1 of 121 test prompts are training prompts as well"):
        held_out_prompts([same, *test], training, tokenizer, 96, PARAMS)


def test_mistake_30_answers_to_training_prompts_are_not_reported_as_success(tokenizer, chat_data, training):
    for split in ("train", "val"):
        with pytest.raises(DataError, match=f"1 of 121 examples are of the split '{split}'"):
            held_out_prompts([*chat_data[1], example("echo", "new", 0, split)], training, tokenizer, 96, PARAMS)


def test_mistake_31_what_was_repeated_until_it_leaks_into_other_answers_is_measured(tokenizer, answering, prompts):
    """A model that always says who it is: every answer is a training answer, but of another task."""
    identity = replace(example("tell", "x", 0, "train"), task="who", messages=examples("train")[-1].messages)
    training = Training.of([*examples("train", doc_ids=False), identity])
    sentence = identity.answer
    assert training.foreign("echo", sentence) and not training.foreign("who", sentence)
    assert not training.foreign("tell", sentence)  # it is an answer of that task, too
    assert not training.foreign("echo", "salt")  # too short to tell
    assert not training.foreign("echo", f"{sentence} Or not.")


def test_mistake_32_a_model_is_not_asked_in_another_template_than_it_was_trained_in(tokenizer, prompts, training):
    asked = []
    subject = Subject("sft", lambda: asked.append(1), "2" * 64, None, "0" * 64)
    with pytest.raises(ConfigError, match="trained with another chat template"):
        evaluate_answers(
            [subject], prompts, training, tokenizer, plain_documents(tokenizer), PARAMS, 1, LOG, data_sha256="3" * 64
        )
    assert not asked


def test_another_template_costs_the_model_its_answers(tokenizer, answering, chat_data):
    """Why the refusal matters: the same model, asked without the line end after the role."""
    tuned = answering[1]
    some = [e for e in chat_data[1] if e.task == "echo" and e.wording == 0]
    right = [tuple(encode_chat(tokenizer, [Message("user", e.prompt[0].content)])) for e in some]
    line = len(tokenizer.encode("\n"))
    wrong = [(*ids[:-line], *tokenizer.encode(":")) for ids in right]
    scores = [
        sum(
            a.text == e.answer
            for a, e in zip(answer_all(tuned, tokenizer, [Asked(i, 20) for i in ids]), some, strict=True)
        )
        for ids in (right, wrong)
    ]
    assert scores[0] >= 6 and scores[1] < scores[0]
