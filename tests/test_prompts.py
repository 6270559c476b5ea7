"""Prompts of the intent task: what they say, what depends on the call, candidates, and what a step costs."""

import os
import re

import numpy as np
import pytest

from glmlab import comparison, models, parameters, paths, prompts
from glmlab.tasks import intent
from glmlab.tasks.labels import LABELS

CALL = intent.Call(3, "您好[SEP]取消流量包", 1)


@pytest.fixture(scope="module")
def calls():
    return intent.read(paths.data("intent/train_new.csv"))[0]


def said(task, call=CALL, answered=False, form="system") -> list[str]:
    return [message["content"] for message in task.messages(call, call.text, answered, form)]


def test_a_task_with_another_prompt_differs_in_nothing_else():
    assert prompts.task().messages(CALL, "甲", True, "template") == intent.messages("甲", 1, "template")
    assert said(prompts.task("短"), answered=True) == ["短", "对话：您好[SEP]取消流量包", "意图：1：办理取消"]
    assert said(prompts.task("")) == ["对话：您好[SEP]取消流量包"]
    assert said(prompts.task(lambda call: f"第{call.row}通"))[0] == "第3通"


def test_every_wording_has_the_whole_list_and_the_shorter_ones_get_shorter():
    for prompt in prompts.WORDINGS.values():
        assert re.findall(r"^(\d+):(.+)$", prompt, re.M) == [(str(label.id), label.name) for label in LABELS]
        assert prompt.endswith("输出格式：意图：编号：名称")
    lengths = [len(prompt) for prompt in prompts.SHORTER.values()]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] == 0 and len(set(lengths)) == 4


@pytest.mark.parametrize("form", ["system", "template"])
def test_the_second_task_asks_behind_the_same_prompt(form):
    for label, answer in ((0, "类别：咨询"), (5, "类别：投诉"), (1, "类别：办理")):
        *asked, answered = said(prompts.GROUP_TASK, intent.Call(0, "甲", label), True, form)
        assert answered == answer and "\n".join(asked) == f"{intent.SYSTEM_PROMPT}\n只答类别。对话：甲"
    assert len(said(prompts.GROUP_TASK, form=form)) == len(asked)


def test_the_prompt_with_candidates_names_these_sorted():
    prompt = prompts.among([7, 33, 2])
    assert re.findall(r"^(\d+):", prompt, re.M) == ["2", "7", "33"] and prompt.startswith("你是客服意图识别专家") and "意图列表" not in prompt


def test_choosing_among_candidates():
    scores = np.array([[0.5, 0.1, 0.4], [0.2, 0.2, 0.6]])
    assert prompts.best(scores, 2) == [[0, 2], [2, 0]]  # of equal ones the smaller id
    assert prompts.choose_among(scores, [[1, 2], [0, 1]]) == [2, 0]
    assert prompts.with_truth([4, 2, 9], 2) == [4, 2, 9] and prompts.with_truth([4, 2, 9], 7) == [4, 2, 7]


def test_no_call_is_judged_by_a_model_that_saw_it(calls, monkeypatch):
    from glmlab import baselines
    seen = []

    def fake(train, wanted):
        assert not {call.row for call in train} & {call.row for call in wanted}
        seen.extend(call.row for call in wanted)
        return np.array([[call.row] * 34 for call in wanted], dtype=float)

    monkeypatch.setattr(baselines, "label_probabilities", fake)
    found = prompts.crossed(calls[:20], calls[10:30])
    assert sorted(seen) == [call.row for call in calls[10:30]] and found[:, 0].tolist() == [call.row for call in calls[10:30]]


def test_tfidf_with_given_settings_spreads_over_all_labels(calls):
    from glmlab import baselines
    few = [call for call in calls if call.label in (0, 1)][:60]
    found = baselines.label_probabilities(few, calls[:5])
    assert found.shape == (5, 34) and np.allclose(found.sum(1), 1) and not found[:, 2:].any()
    with pytest.raises(ValueError, match="these 3 calls have one"):
        baselines.label_probabilities([few[0]] * 3, calls[:1])


def test_samples_are_repeated_as_the_task_balances(calls):
    tokenizer, some = models.load_tokenizer("glm4-tiny"), comparison.draw(calls, 12, 7)
    places = intent.balanced(some, 1.0)
    found = prompts.balanced_samples(tokenizer, prompts.task(""), some, 1.0, 1536)
    assert len(found) == len(places) > len(some) and found[0] is found[places.count(places[0]) - 1]


def test_a_step_with_the_shared_prompt_computes_fewer_tokens(calls):
    plan = parameters.SystemPromptSettings(batch_size=2)
    found = {share: prompts.step_cost(plan.training("x", 2, share_prefix=share), calls[:4], 2) for share in (False, True)}
    assert found[True]["tokens"] < 0.8 * found[False]["tokens"] and all(one["seconds"] > 0 for one in found.values())
    if os.path.exists("/proc/self/status"):
        assert 0 < found[True]["bytes"] < found[False]["bytes"]
    with pytest.raises(ValueError, match="3 steps of 2 rows need 6 calls, there are 4"):
        prompts.step_cost(plan.training("x", 2), calls[:4], 3)
