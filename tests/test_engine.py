"""Whatever arrives when, each answer is the one computed alone; slots, sessions, adapters, memory."""

import random
import threading

import pytest
import torch
from transformers import GlmConfig, GlmForCausalLM

import glmlab
from glmlab import chat, engine as engines, slots
from glmlab.chatglm.v1 import ChatGLMConfig, ChatGLMForCausalLM
from glmlab.engine import Engine, draw

NAMES = ["glm4", "chatglm3", "chatglm2", "chatglm"]
SYSTEM = {"role": "system", "content": "你是电信客服质检员。输入是一通电话，输出它的意图。"}
CALLS = ["您好请讲 我想查一下话费", "帮我把套餐取消吧 我不用了", "好", "怎么多扣了二十块钱 " * 6, "好的先生 我帮您看一下", "流量包 取消",
         "您好 请问有什么可以帮您 " * 3, "Hello 1998!"]


def spread(model):
    """Weights so large that attention matters, and no special token that answers itself for ever."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(6)
    return model.eval()


@pytest.fixture
def bases(family, make_model):
    """`bases(generation)`: a small random model of its kind and its tokenizer."""
    def make(name: str):
        tokenizer = family[name]
        if name == "glm4":
            return make_model(), tokenizer
        torch.manual_seed(3)
        if name != "chatglm":
            return spread(GlmForCausalLM(GlmConfig(
                vocab_size=1536, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                head_dim=16, max_position_embeddings=512, pad_token_id=0, eos_token_id=chat.end_id(tokenizer)))), tokenizer
        marker, start = chat.two_way(tokenizer)
        model = ChatGLMForCausalLM(ChatGLMConfig(
            vocab_size=1536, hidden_size=64, inner_hidden_size=128, num_layers=2, num_attention_heads=2, max_sequence_length=512,
            pad_token_id=3, bos_token_id=start, gmask_token_id=marker, mask_token_id=tokenizer.convert_tokens_to_ids("[MASK]"),
            eos_token_id=chat.end_id(tokenizer), initializer_range=0.3, residual_alpha_layers=1)).eval()
        with torch.no_grad():  # or it would write <sop> after <sop> for ever: head and embedding are one
            model.get_input_embeddings().weight[tokenizer.all_special_ids] *= 0.05
        return model, tokenizer

    return make


def prompts_of(tokenizer, system: bool = True) -> list[list[int]]:
    head = [SYSTEM] if system else []
    return [chat.prompt_ids(tokenizer, [*head, {"role": "user", "content": call}]) for call in CALLS]


def alone(model, tokenizer, ids: list[int], new_tokens: int) -> list[int]:
    """The definition: the most probable next token, again and again, without cache, padding or neighbours."""
    row = list(ids)
    with torch.no_grad():
        while len(row) < len(ids) + new_tokens and (len(row) == len(ids) or row[-1] not in chat.stop_ids(tokenizer)):
            row.append(int(model(input_ids=torch.tensor([row])).logits[0, -1].argmax()))
    return row[len(ids):]


def finished(engine, *requests):
    while engine.step():
        pass
    assert all(request.finish for request in requests) and not engine.rows and not engine.waiting
    return [request.tokens for request in requests]


def stop_often(monkeypatch, tokenizer, answers):
    """Make some of the tokens of answers stop ids too, and return what is left of the answers."""
    stops = chat.stop_ids(tokenizer) | {answers[place][place] for place in range(1, 8) if len(answers[place]) > place}
    monkeypatch.setattr(chat, "stop_ids", lambda tokenizer: stops)
    ends = [next((place for place, token in enumerate(tokens) if token in stops), len(tokens)) for tokens in answers]
    return [tokens[: end + 1] for tokens, end in zip(answers, ends)]


@pytest.mark.parametrize("name", NAMES)
def test_any_traffic_gives_each_request_what_it_gets_alone(bases, monkeypatch, name):
    model, tokenizer = bases(name)
    prompts = prompts_of(tokenizer) + prompts_of(tokenizer, system=False)
    expected = stop_often(monkeypatch, tokenizer, [alone(model, tokenizer, ids, 14) for ids in prompts])
    assert len({tuple(tokens) for tokens in expected}) > 8 and len({len(tokens) for tokens in expected}) > 3
    monkeypatch.setattr(slots, "BLOCK", 8)
    shared = prompts[0][: chat.shared_prefix(prompts[: len(CALLS)], tokenizer)]
    finishes = []
    for seed in range(24):
        choice = random.Random(seed)
        engine = Engine(model, tokenizer, slots=1 + seed % 8, shared=choice.choice([shared, []]))
        todo, requests, cancelled = choice.sample(range(len(prompts)), choice.randint(3, len(prompts))), [], []
        busy = True
        while todo or busy:
            for place in [todo.pop() for _ in range(min(len(todo), choice.randint(0, 4)))]:
                requests.append((engine.submit(prompts[place], choice.randint(1, 14)), place))
            if requests and choice.random() < 0.1:
                cancelled.append(choice.choice(requests)[0])
                engine.cancel(cancelled[-1])
            busy = engine.step()
            assert len(engine.rows) <= engine.slots and all(not request.finish for request in engine.rows)
        for request, place in requests:
            wanted = expected[place][: request.max_new_tokens]
            if request.finish == "cancelled":
                assert request in cancelled and request.tokens == wanted[: len(request.tokens)]
            else:
                assert request.tokens == wanted
                assert request.finish == ("stop" if wanted[-1] in chat.stop_ids(tokenizer) else "length")
        finishes += [request.finish for request, _ in requests]
    assert min(finishes.count(finish) for finish in ("cancelled", "length", "stop")) > 10


def test_a_free_slot_is_taken_at_once(bases):
    model, tokenizer = bases("glm4")
    widths = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, out: widths.append(tuple(args[0].shape)))
    engine = Engine(model, tokenizer, slots=2)
    prompts = prompts_of(tokenizer)[:4]
    requests = [engine.submit(ids, count) for ids, count in zip(prompts, [2, 6, 2, 3])]
    tokens = finished(engine, *requests)
    assert [len(one) for one in tokens] == [2, 6, 2, 3]
    lengths = [len(ids) for ids in prompts]
    assert widths == [(1, lengths[0] + lengths[1]), (2, 1), (1, lengths[2]), (2, 1), (1, lengths[3]), (2, 1), (2, 1), (1, 1)]
    assert engine.prefilled == sum(lengths)


def test_times_and_counts_of_a_request(bases):
    model, tokenizer = bases("glm4")
    prompts = prompts_of(tokenizer)
    shared = prompts[0][: chat.shared_prefix(prompts, tokenizer)]
    engine = Engine(model, tokenizer, slots=1, shared=shared)
    first, second = engine.submit(prompts[0], 3), engine.submit(prompts[1], 3)
    finished(engine, first, second)
    assert first.prompt_tokens == len(prompts[0]) and first.reused == second.reused == len(shared) > 20
    assert first.submitted < first.started < first.first < first.finished < second.started < second.first < second.finished
    assert engine.prefilled == len(prompts[0]) + len(prompts[1]) - len(shared)


def test_what_cannot_be_asked_for(bases):
    model, tokenizer = bases("chatglm3")
    ids = prompts_of(tokenizer)[0]
    with pytest.raises(ValueError, match=f"{len(ids)} prompt tokens and max_new_tokens=500 make {len(ids) + 500}, .* limit of 512"):
        Engine(model, tokenizer).submit(ids, 500)
    engine = Engine(model, tokenizer, max_tokens=len(ids) + 4)
    with pytest.raises(ValueError, match=f"limit of {len(ids) + 4}: shorten the prompt or ask for at most 4"):
        engine.submit(ids, 5)
    for bad in ({"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}):
        with pytest.raises(ValueError, match="temperature is at least 0"):
            engine.submit(ids, 4, **bad)
    with pytest.raises(ValueError, match="needs a prompt"):
        engine.submit([], 4)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        engine.submit(ids, 0)
    with pytest.raises(ValueError, match="adapter 'mine' is not on the model; there are none"):
        engine.submit(ids, 4, adapter="mine")
    assert not engine.step()
    with pytest.raises(ValueError, match="at least one answer"):
        Engine(model, tokenizer, slots=0)
    model, tokenizer = bases("chatglm")
    with pytest.raises(ValueError, match="share nothing"):
        Engine(model, tokenizer, shared=[5])
    with pytest.raises(ValueError, match="needs .gMASK. and <sop>"):
        Engine(model, tokenizer).submit([5, 6], 4)


# --- sessions ----------------------------------------------------------------------------------------------------

def talk(engine, tokenizer, turns: list[str], **options):
    """A conversation of several turns; (requests, prompt tokens computed for each)."""
    messages, requests, computed = [SYSTEM], [], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        before = engine.prefilled
        requests.append(engine.submit(chat.prompt_ids(tokenizer, messages), 9, **options))
        finished(engine, requests[-1])
        computed.append(engine.prefilled - before)
        messages.append({"role": "assistant", "content": requests[-1].text})
    return requests, computed


@pytest.mark.parametrize("name", NAMES)
def test_a_second_turn_computes_only_what_is_new(bases, name):
    model, tokenizer = bases(name)
    engine = Engine(model, tokenizer)
    requests, computed = talk(engine, tokenizer, CALLS[:3], session="a")
    for request in requests:
        assert request.tokens == alone(model, tokenizer, request.ids, 9)
    lengths = [len(request.ids) for request in requests]
    if name == "chatglm":  # its prompts are read both ways: whole every turn
        assert computed == lengths
        return
    same = [0]
    for before, after in zip(requests, requests[1:]):
        known = before.ids + before.tokens[:-1]
        same.append(next((i for i, (a, b) in enumerate(zip(known, after.ids)) if a != b), len(known)))
        assert same[-1] >= len(before.ids) - 1
    assert computed == [length - known for length, known in zip(lengths, same)] and max(same) > 0.5 * lengths[-1]
    assert [request.reused for request in requests] == same


def test_a_cached_turn_that_the_next_one_begins_with_is_used_whole(bases):
    model, tokenizer = bases("glm4")
    engine = Engine(model, tokenizer)
    ids = prompts_of(tokenizer)[0]
    first = engine.submit(ids, 5, session=1)
    finished(engine, first)
    again = engine.submit([*ids, *first.tokens, *chat.text_ids(tokenizer, "再说")], 5, session=1)
    before = engine.prefilled
    finished(engine, again)
    assert engine.prefilled - before == len(again.ids) - len(ids) - len(first.tokens) + 1
    assert again.tokens == alone(model, tokenizer, again.ids, 5)
    same = engine.submit(ids, 5, session=1)  # "retry": all but the last token is known
    before = engine.prefilled
    assert finished(engine, same) == [first.tokens] and engine.prefilled - before == 1


def test_the_session_used_longest_ago_goes_first(bases):
    model, tokenizer = bases("glm4")
    engine = Engine(model, tokenizer, sessions=2)
    ids = prompts_of(tokenizer)[0]
    counts = []
    for session in ["a", "b", "a", "c", "a", "b", None, None]:
        before = engine.prefilled
        finished(engine, engine.submit(ids, 2, session=session))
        counts.append(engine.prefilled - before)
    whole = len(ids)
    assert counts == [whole, whole, 1, whole, 1, whole, whole, whole]


# --- adapters ----------------------------------------------------------------------------------------------------

@pytest.fixture
def two_adapters(make_lora):
    """The tiny model with the adapters default and other."""
    from peft import LoraConfig
    model = make_lora(lora_dropout=0.5)
    model.add_adapter("other", LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    torch.manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.other" in name:
                parameter.normal_(std=0.2)
    return model.eval()


def test_rows_of_one_step_have_their_own_adapters(two_adapters, tokenizer):
    model, prompts = two_adapters, prompts_of(tokenizer)[:5]
    expected = {}
    for adapter in ("default", "other", None):
        if adapter is None:
            with model.disable_adapter():
                expected[adapter] = [alone(model, tokenizer, ids, 8) for ids in prompts]
        else:
            model.set_adapter(adapter)
            expected[adapter] = [alone(model, tokenizer, ids, 8) for ids in prompts]
    assert sum(len({tuple(expected[adapter][place]) for adapter in expected}) for place in range(5)) > 10
    model.set_adapter("default")
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for shared in ([], prompts[0][: chat.shared_prefix(prompts, tokenizer)]):
        engine = Engine(model, tokenizer, slots=6, shared=shared)
        requests = [(engine.submit(ids, 8, adapter=adapter), adapter, place)
                    for place, ids in enumerate(prompts) for adapter in expected]
        finished(engine, *(request for request, _, _ in requests))
        for request, adapter, place in requests:
            assert request.tokens == expected[adapter][place], (adapter, place)
    finished(engine, *(engine.submit(prompts[4], 8, adapter=adapter, session="s") for adapter in expected))
    again = [engine.submit([*prompts[4], *expected[adapter][4], *prompts[1][-3:]], 4, adapter=adapter, session="s") for adapter in expected]
    finished(engine, *again)
    assert all(request.reused == len(prompts[4]) + len(expected[request.adapter][4]) - 1 for request in again)  # of its own adapter's turn
    model.set_adapter("other")
    assert again[1].tokens == alone(model, tokenizer, again[1].ids, 4)
    model.set_adapter("default")
    assert trainable == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with pytest.raises(ValueError, match="adapter 'third' is not on the model; there are default, other"):
        engine.submit(prompts[0], 4, adapter="third")


def test_nf4_with_an_adapter():
    from peft import LoraConfig, get_peft_model
    model, tokenizer = glmlab.load_base("glm4-tiny", "nf4", "fp32", "cpu")
    torch.manual_seed(1)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")).eval()
    prompts = prompts_of(tokenizer)[:4]
    with model.disable_adapter():
        base = [alone(model, tokenizer, ids, 6) for ids in prompts]
    tuned = [alone(model, tokenizer, ids, 6) for ids in prompts]
    engine = Engine(model, tokenizer, slots=3)
    requests = [engine.submit(ids, 6, adapter=adapter) for ids in prompts for adapter in ("default", None)]
    assert finished(engine, *requests) == [tokens for pair in zip(tuned, base) for tokens in pair] and tuned != base


# --- drawing -----------------------------------------------------------------------------------------------------

def test_a_drawn_answer_does_not_depend_on_its_neighbours(bases):
    model, tokenizer = bases("glm4")
    prompts = prompts_of(tokenizer)
    wanted = []
    for seed in range(4):
        engine = Engine(model, tokenizer, slots=1)
        wanted += finished(engine, engine.submit(prompts[0], 8, temperature=0.8, top_p=0.9, seed=seed))
    assert len({tuple(tokens) for tokens in wanted}) > 2
    engine = Engine(model, tokenizer, slots=3)
    others = [engine.submit(ids, 6, temperature=2.0) for ids in prompts[1:5]]
    greedy = engine.submit(prompts[5], 8)
    drawn = [engine.submit(prompts[0], 8, temperature=0.8, top_p=0.9, seed=seed) for seed in range(4)]
    finished(engine, *others, greedy)
    assert [request.tokens for request in drawn] == wanted and greedy.tokens == alone(model, tokenizer, prompts[5], 8)
    assert len({request.seed for request in others}) == 4


def test_draw_takes_each_token_as_often_as_it_is_probable():
    logits = torch.tensor([1.0, 3.0, 0.0, 2.0]).log() * 2  # at temperature 2: 1/6, 1/2, 0, 1/3
    points = [(i + 0.5) / 600 for i in range(600)]
    counts = [[draw(logits, 2.0, top_p, point) for point in points].count(token) for token in range(4) for top_p in (1.0, 0.6)]
    assert counts == [100, 0, 300, 360, 0, 0, 200, 240]
    assert draw(logits, 2.0, 0.3, 0.999999) == 1 and draw(logits, 2.0, 1.0, 0.0) == 1


# --- text piece by piece -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", NAMES)
def test_pieces_make_up_the_text_and_cut_no_character(bases, name):
    model, tokenizer = bases(name)
    choice, plain = random.Random(4), sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids))
    texts = ["\n\n 您好 👍🏽 𠮷野家\n\n- 第一：\u3000好 \n", " 龘鑫 ", "\n"]
    for number in range(60):
        ids = chat.text_ids(tokenizer, texts[number]) if number < 3 else choice.choices(plain, k=choice.randint(1, 25))
        request = Engine(model, tokenizer).submit(prompts_of(tokenizer)[0], len(ids))
        pieces = []
        for token in ids:
            request.tokens.append(token)
            pieces.append(request.new_text())
            assert number > 2 or "\ufffd" not in pieces[-1]
        request.finish = "length"
        pieces.append(request.new_text())
        assert "".join(pieces) == request.text
        assert number or "您好 👍🏽 𠮷野家\n\n- 第一" in request.text


# --- memory ------------------------------------------------------------------------------------------------------

def small_memory(model, fits):
    """Passes of (rows, tokens) that do not fit run out of memory; returns those that were tried."""
    tried = []

    def check(module, args):
        tried.append(tuple(args[0].shape))
        if not fits(*tried[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory")
    model.get_input_embeddings().register_forward_pre_hook(check)
    return tried


@pytest.mark.parametrize("kind", ["rows", "tokens", "both"])
@pytest.mark.parametrize("name", ["glm4", "chatglm"])
def test_short_memory_makes_requests_wait_and_loses_none(bases, name, kind, capsys):
    model, tokenizer = bases(name)
    prompts = prompts_of(tokenizer)
    expected = [alone(model, tokenizer, ids, 9) for ids in prompts]
    longest = max(map(len, prompts))

    def fits(rows, tokens):
        return (rows < 4 or kind == "tokens") and (tokens <= longest + 9 or kind == "rows")

    tried = small_memory(model, fits)
    engine = Engine(model, tokenizer, slots=8)
    requests = [engine.submit(ids, 9) for ids in prompts]
    assert finished(engine, *requests) == expected
    assert {request.finish for request in requests} <= {"stop", "length"} and engine.limit == 8
    assert sum(not fits(*shape) for shape in tried) == capsys.readouterr().out.count("out of memory with ") > (kind != "rows")


def test_a_request_that_does_not_fit_alone_ends_and_the_others_go_on(bases):
    model, tokenizer = bases("glm4")
    prompts = prompts_of(tokenizer)
    expected = [alone(model, tokenizer, ids, 5) for ids in prompts]
    longest = max(range(len(prompts)), key=lambda place: len(prompts[place]))
    small_memory(model, lambda rows, tokens: tokens < len(prompts[longest]))
    engine = Engine(model, tokenizer, slots=2)
    requests = [engine.submit(ids, 5) for ids in prompts]
    finished(engine, *requests)
    assert [request.finish for request in requests].count("error") == 1 and isinstance(requests[longest].error, torch.OutOfMemoryError)
    assert all(request.tokens == expected[place] for place, request in enumerate(requests) if place != longest)


def test_kept_sessions_make_room_first(bases, capsys):
    model, tokenizer = bases("glm4")
    prompts = prompts_of(tokenizer)
    engine = Engine(model, tokenizer)
    finished(engine, engine.submit(prompts[0], 3, session="a"))
    full = [True]
    tried = small_memory(model, lambda rows, tokens: not (full and full.pop()))
    request = engine.submit(prompts[1], 3)
    assert finished(engine, request) == [alone(model, tokenizer, prompts[1], 3)]
    assert tried[:2] == [(1, len(prompts[1]))] * 2 and capsys.readouterr().out == ""
    before = engine.prefilled
    finished(engine, engine.submit(prompts[0], 3, session="a"))
    assert engine.prefilled - before == len(prompts[0])


def test_another_error_ends_the_requests_of_its_pass_only(bases):
    model, tokenizer = bases("glm4")
    prompts = prompts_of(tokenizer)
    engine = Engine(model, tokenizer, slots=1)
    first, second = engine.submit(prompts[0], 4), engine.submit(prompts[1], 4)
    broken = [True]

    def fail(module, args):
        if broken and broken.pop():
            raise RuntimeError("shape mismatch")
    model.model.embed_tokens.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        engine.step()
    assert first.finish == "error" and "shape mismatch" in str(first.error)
    assert finished(engine, second) == [alone(model, tokenizer, prompts[1], 4)]


def test_out_of_memory_is_told_from_other_errors():
    assert engines.out_of_memory(MemoryError()) and engines.out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert engines.out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not engines.out_of_memory(RuntimeError("shape mismatch")) and not engines.out_of_memory(ValueError("memory"))


def test_cancelling_frees_the_slot_before_the_next_step(bases):
    model, tokenizer = bases("glm4")
    prompts = prompts_of(tokenizer)
    engine = Engine(model, tokenizer, slots=1)
    first, second, third = (engine.submit(ids, 8) for ids in prompts[:3])
    engine.step()
    assert engine.rows == [first] and len(first.tokens) == 2
    engine.cancel(first)
    engine.cancel(second)
    assert first.finish == second.finish == "cancelled"
    engine.step()
    assert engine.rows == [third] and not engine.waiting and not second.tokens
    finished(engine, third)
    engine.cancel(third)
    assert third.finish in ("stop", "length") and third.tokens == alone(model, tokenizer, prompts[2], 8)


def test_cancelling_in_the_middle_of_a_pass(bases):
    model, tokenizer = bases("glm4")
    prompts = prompts_of(tokenizer)
    engine = Engine(model, tokenizer, slots=2)
    first, second, third = (engine.submit(ids, 8) for ids in prompts[:3])
    to_cancel = [second, None, first]  # in the first pass, which computes both prompts, and in the third
    model.lm_head.register_forward_hook(lambda *args: to_cancel and (request := to_cancel.pop(0)) and engine.cancel(request) or None)
    finished(engine, first, third)
    assert [request.finish for request in (first, second)] == ["cancelled"] * 2 and second.tokens == []
    assert first.tokens == alone(model, tokenizer, prompts[0], len(first.tokens)) and 0 < len(first.tokens) < 8
    assert third.tokens == alone(model, tokenizer, prompts[2], 8)


def test_requests_may_come_from_other_threads(bases):
    model, tokenizer = bases("glm4")
    prompts = prompts_of(tokenizer)
    expected = [alone(model, tokenizer, ids, 6) for ids in prompts]
    engine, requests = Engine(model, tokenizer, slots=3), []

    def ask(place):
        for _ in range(5):
            requests.append((engine.submit(prompts[place], 6), place))
            engine.cancel(engine.submit(prompts[place], 6))

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(prompts))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or engine.step():
        engine.step()
    assert len(requests) == 40 and all(request.tokens == expected[place] for request, place in requests)
