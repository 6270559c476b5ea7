"""The API: answers as computed alone, limits that refuse with a reason, slots that come free, keys."""

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from PIL import Image
from talking import FakeEngine, fake_talk, serving, until

from glmlab import api, chat, generation, models, page, paths, serve_tasks, server
from glmlab.persona import PERSONAS, Persona, persona
from glmlab.tasks.relations import RELATIONS, Relation
from glmlab.worker import Busy, TooLong

ASK = [{"role": "user", "content": "帮我把套餐取消吧"}]
JSON = {"Content-Type": "application/json"}


def client(url, key="none"):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def post(url, **body):
    return httpx.post(f"{url}/v1/chat/completions", json={"model": "tuned", "messages": ASK} | body, timeout=30)


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def talk(tokenizer, engine, monkeypatch, tmp_path):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    monkeypatch.delenv(server.KEY_VARIABLE, raising=False)
    found = fake_talk(tokenizer, engine)
    yield found
    engine.gate.set()
    found.worker.close()


@pytest.fixture
def url(talk):
    with serving(talk) as address:
        yield address


# --- the real model ----------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def real():
    """glm4-tiny with two checkpoints of the reference run as adapters."""
    early = paths.runs("intent-reference", "checkpoint-500")
    talk = server.load(server.Config("intent", "glm4-tiny", adapters=(("early", str(early)),), slots=8, queue=32, max_new_tokens=16))
    with serving(talk) as talk.url:
        yield talk


QUESTIONS = ["您好，怎么退货？", "流量包帮我取消", "我的订单什么时候发货", "转账多久到账？", "你好", "意图", "请问今天几号", "软件打不开怎么办？"]


def alone(talk, name, messages, most):
    """The definition: the answer of a model that was loaded for this question only."""
    if talk.voices[name]:
        model, tokenizer = models.load_finetuned("glm4-tiny", talk.voices[name], "none")
    else:
        model, tokenizer = models.load_base("glm4-tiny", "none")
    return generation.generate(model, tokenizer, [chat.prompt_ids(tokenizer, found) for found in messages], most, batch_size=1)


def test_32_concurrent_requests_give_what_each_gives_alone(real):
    asked = []
    for number in range(32):  # base and two adapters in one batch, with and without system prompt, one and two turns
        name = list(real.voices)[number % 3]
        messages = [{"role": "system", "content": "你是客服。"}, {"role": "user", "content": f"{QUESTIONS[number % 8]} {number}"}]
        if number % 4 == 3:
            messages += [{"role": "assistant", "content": "好的。"}, {"role": "user", "content": "还有别的吗？"}]
        asked.append((name, messages))
    url = real.url
    with ThreadPoolExecutor(32) as pool:
        barrier = threading.Barrier(32)

        def ask(place):
            name, messages = asked[place]
            barrier.wait()
            if place % 2:
                chunks = client(url).chat.completions.create(model=name, messages=messages, max_tokens=12, stream=True)
                return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            return client(url).chat.completions.create(model=name, messages=messages, max_tokens=12).choices[0].message.content

        found = list(pool.map(ask, range(32)))
        assert {model.id for model in client(url).models.list()} == {"intent-reference", "early", "glm4-tiny"}
    for name in real.voices:
        places = [place for place in range(32) if asked[place][0] == name]
        assert [found[place] for place in places] == alone(real, name, [asked[place][1] for place in places], 12)
    assert len(set(found)) > 10 and real.worker.open == 0


def test_the_second_turn_computes_only_what_is_new(real):
    from glmlab.engine import Engine
    engine = Engine(real.model, real.tokenizer, slots=2)  # the one of project 1 has the call's long prompt ready, which this is not
    talk = server.Talk(engine, real.model, real.tokenizer, real.voices, Persona("service", "glm4-tiny"), real.config, real.limit)
    messages = [{"role": "system", "content": "你是客服。" * 20}, {"role": "user", "content": "我想问一下退货的事情"}]
    first = talk.answer(messages, max_new_tokens=8, session="a")
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "要几天？"}]
    prefilled = [engine.prefilled]
    answers = []
    for session in ("a", "b", None):
        answers.append(talk.answer(messages, max_new_tokens=8, session=session))
        prefilled.append(engine.prefilled)
    talk.worker.close()
    computed = [after - before for before, after in zip(prefilled, prefilled[1:])]
    assert computed[0] < 20 and computed[1:] == [len(talk.prompt(messages))] * 2 and computed[1] > 100
    assert answers[0] == answers[1] == answers[2]


def test_the_classifier_of_the_loaded_model_is_the_one_of_project_1(real):
    from glmlab import IntentClassifier
    call = "您好请讲[SEP]我想把彩铃退了[SEP]好的已经为您取消"
    expected = IntentClassifier("glm4-tiny", real.voices["intent-reference"], "none").classify(call)
    found = serve_tasks.classifier(real)(call)
    assert (found.id, found.name) == (expected.id, expected.name) and found.probability == pytest.approx(expected.probability, abs=1e-4)
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "你好"}]
    assert real.answer(messages, voice="early", max_new_tokens=8) == alone(real, "early", [messages], 8)[0]  # its adapter is back


def test_without_a_system_message_the_prompt_is_that_of_the_training(real):
    from glmlab.tasks import intent
    expected = chat.prompt_ids(real.tokenizer, intent.messages("您好请讲"))
    assert real.prompt([{"role": "user", "content": "您好请讲"}]) == expected
    by_hand = [{"role": "system", "content": "别的"}, {"role": "user", "content": "您好请讲"}]
    assert real.prompt(by_hand) == chat.prompt_ids(real.tokenizer, by_hand)


# --- the form of the answers -------------------------------------------------------------------------------------

def test_an_answer_and_its_counts(url, engine, talk):
    found = client(url).chat.completions.create(model="tuned", messages=ASK)
    prompt = len(talk.prompt(ASK))
    assert found.choices[0].message.content == "好的，马上处理。" and found.choices[0].finish_reason == "stop" and found.model == "tuned"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens, found.usage.total_tokens) == (prompt, 8, prompt + 8)
    found = client(url).chat.completions.create(model="tiny", messages=ASK, max_completion_tokens=3)
    assert found.choices[0].message.content == "好的，" and found.choices[0].finish_reason == "length"
    assert engine.requests[0].ids == talk.prompt(ASK)
    assert [request.options for request in engine.requests] == [{"adapter": "tuned", "session": None}, {"adapter": None, "session": None}]


def test_a_stream(url, engine):
    chunks = list(client(url).chat.completions.create(model="tuned", messages=ASK, stream=True, stream_options={"include_usage": True},
                                                      temperature=0.5, top_p=0.9, seed=3, extra_body={"prompt_cache_key": "k"}))
    assert chunks[0].choices[0].delta.role == "assistant" and len(chunks) == 10 and len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "好的，马上处理。"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * 8 + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    assert engine.requests[0].options == {"adapter": "tuned", "session": "k/tuned", "temperature": 0.5, "top_p": 0.9, "seed": 3}


def test_models_and_health(url):
    cards = client(url).models.list().data
    assert [(card.id, card.parent) for card in cards] == [("tuned", "tiny"), ("tiny", None)]
    assert client(url).models.retrieve("tuned").id == "tuned"
    with pytest.raises(openai.NotFoundError, match="there are: tuned, tiny"):
        client(url).models.retrieve("other")
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "open_requests": 0}


def test_medical_answers_begin_with_the_call_for_help(tokenizer, engine, monkeypatch, tmp_path):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    care = Persona("medical", "glm4-tiny", disclaimer={"zh": "教学材料。", "en": "Teaching material."},
                   emergency=lambda text: "请立即拨打120。" if "胸痛" in text else None)
    talk = fake_talk(tokenizer, engine, care)
    with serving(talk) as url:
        found = client(url).chat.completions.create(model="tuned", messages=[{"role": "user", "content": "突然胸痛"}])
        assert found.choices[0].message.content == "请立即拨打120。\n好的，马上处理。" and found.disclaimer == "教学材料。 Teaching material."
        chunks = list(client(url).chat.completions.create(model="tuned", messages=[{"role": "user", "content": "胸痛"}], stream=True))
        assert chunks[0].choices[0].delta.content == "请立即拨打120。\n" and chunks[-1].disclaimer == found.disclaimer
        assert client(url).chat.completions.create(model="tuned", messages=ASK).choices[0].message.content == "好的，马上处理。"
        assert client(url).models.list().data[0].disclaimer == found.disclaimer


# --- what is refused ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("body, status, words", [
    ({"model": "gpt-4"}, 404, "no model 'gpt-4'; there are: tuned, tiny"), ({"model": None}, 404, "there are: tuned, tiny"),
    ({"n": 2}, 400, "does not support: n=2"), ({"tools": [{"type": "function"}], "stop": ["\n"]}, 400, "stop=[\"\\n\"], tools="),
    ({"logprobs": True}, 400, "logprobs"), ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty"), ({"temprature": 1}, 400, "unknown: 'temprature'"),
    ({"temperature": 3}, 400, "temperature must be a number from 0 to 2, not 3"), ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": True}, 400, "top_p"), ({"top_p": 0}, 400, "top_p"), ({"seed": 1.5}, 400, "seed must be a whole number"),
    ({"stream": "yes"}, 400, "stream must be true or false"), ({"stream_options": {"x": 1}}, 400, "stream_options"),
    ({"max_tokens": 51}, 400, "max_tokens must be a whole number from 1 to 50, not 51"), ({"max_tokens": 0}, 400, "max_tokens"),
    ({"prompt_cache_key": 5}, 400, "prompt_cache_key must be text"),
    ({"messages": []}, 400, "at least one message"), ({"messages": "hi"}, 400, "messages must be a list"),
    ({"messages": ["hi"]}, 400, "message 0"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "message 0: role 'tool'"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "message 0: content must be text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "reads text only"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, 400, "unsupported: 'tool_calls'"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "last message must come from the user"),
    ({"messages": [{"role": "user", "content": "很长" * 300}]}, 400, "more than the 200 this server allows"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "message 0: half of a character"),
])
def test_what_is_refused_says_why(url, talk, body, status, words):
    found = httpx.post(f"{url}/v1/chat/completions", headers=JSON, content=json.dumps({"model": "tuned", "messages": ASK} | body).encode())
    assert found.status_code == status and set(found.json()) == {"error"}
    error = found.json()["error"]
    assert words in error["message"] and error["type"] == "invalid_request_error" and error["code"]
    assert talk.worker.open == 0 and post(url).status_code == 200


@pytest.mark.parametrize("content, words", [(b"{", "not JSON"), (b"[1]", "must be a JSON object"), (b"\xff\xfe", "not JSON"),
                                            (b'"' + b"x" * api.LARGEST_BODY + b'"', "larger than 1,048,576 bytes"),
                                            (b"[" * 100_000, "not JSON")])
def test_a_body_that_is_no_request(url, content, words):
    found = httpx.post(f"{url}/v1/chat/completions", headers=JSON, content=content)
    assert found.status_code == 400 and words in found.json()["error"]["message"]


def test_harmless_options_and_parts_of_text_are_taken(url, engine, talk):
    found = post(url, n=1, user="me", metadata={"a": "b"}, stop=None, tools=[], presence_penalty=0, logit_bias={}, store=False,
                 response_format={"type": "text"}, messages=[{"role": "developer", "content": "简短"},
                                                             {"role": "user", "name": "x", "content": [{"type": "text", "text": "你"},
                                                                                                       {"type": "text", "text": "好"}]}])
    assert found.status_code == 200
    assert engine.requests[0].ids == talk.prompt([{"role": "system", "content": "简短"}, {"role": "user", "content": "你好"}])


def test_other_addresses_under_v1(url):
    for found in (httpx.post(f"{url}/v1/completions", json={}), httpx.get(f"{url}/v1/chat/completions"), httpx.get(f"{url}/v1"),
                  httpx.options(f"{url}/v1/chat/completions"), httpx.options(f"{url}/v1/models"), httpx.options(f"{url}/v1")):
        assert found.status_code == 404 and "POST /v1/chat/completions" in found.json()["error"]["message"]
        assert not any(name.startswith("access-control") for name in found.headers)  # no foreign page may ask


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", None])
def test_what_a_foreign_page_could_send_unasked_is_not_answered(url, engine, kind):
    content = json.dumps({"model": "tuned", "messages": ASK}).encode()
    found = httpx.post(f"{url}/v1/chat/completions", content=content, headers={"Content-Type": kind} if kind else {})
    assert found.status_code == 415 and "must be application/json" in found.json()["error"]["message"] and engine.requests == []
    found = httpx.post(f"{url}/v1/chat/completions", content=content, headers={"Content-Type": "application/json; charset=utf-8"})
    assert found.status_code == 200


def test_a_full_queue_refuses_and_recovers(url, engine, talk):
    engine.gate.clear()
    with ThreadPoolExecutor(8) as pool:
        taken = [pool.submit(post, url) for _ in range(4)]  # 2 slots, 2 waiting
        until(lambda: talk.worker.open == 4)
        with pytest.raises(openai.RateLimitError, match="4 requests are being answered or wait") as refused:
            client(url).chat.completions.create(model="tuned", messages=ASK)
        assert refused.value.code == "queue_full" and refused.value.type == "rate_limit_error"
        assert refused.value.response.headers["retry-after"] == "2" and "retry-after" not in post(url, n=2).headers
        engine.gate.set()
        assert [future.result().status_code for future in taken] == [200] * 4
    assert post(url).status_code == 200 and talk.worker.open == 0


def test_the_time_limit(tokenizer, engine, monkeypatch, tmp_path):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    engine.slots, engine.pace, engine.answer = 1, 0.05, "字" * 40
    talk = fake_talk(tokenizer, engine, time_limit=0.5)
    with serving(talk) as url:
        written = post(url)
        choice = written.json()["choices"][0]
        assert choice["finish_reason"] == "length" and 1 < len(choice["message"]["content"]) < 40
        assert written.json()["note"] == "not finished within the time limit of 0.5 s"
        engine.slots = 0  # the next one waits all the time
        waited = post(url)
        assert waited.status_code == 429 and waited.json()["error"]["code"] == "timeout"
        until(lambda: talk.worker.open == 0)
        assert len(engine.cancelled) == 2


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("place", ["running", "waiting"])
def test_a_client_that_goes_away_frees_its_slot(url, engine, talk, stream, place):
    engine.answer, engine.pace = "字" * 50, 0.02
    others = []
    with ThreadPoolExecutor(2) as pool:
        if place == "waiting":
            engine.gate.clear()
            others = [pool.submit(post, url) for _ in range(2)]
            until(lambda: talk.worker.open == 2)
        seconds = httpx.Timeout(5, read=0.4) if not stream or others else 5
        with pytest.raises(httpx.ReadTimeout) if not stream or others else _nothing():
            with httpx.stream("POST", f"{url}/v1/chat/completions", timeout=seconds,
                              json={"model": "tuned", "messages": ASK, "stream": stream}) as answer:
                for line in answer.iter_lines():
                    if "字" in line:
                        break
        until(lambda: talk.worker.open == len(others))
        assert len(engine.cancelled) == 1 and engine.cancelled[0] is engine.requests[-1]
        engine.gate.set()
        assert [future.result().json()["choices"][0]["message"]["content"] for future in others] == ["字" * 50] * len(others)


def _nothing():
    import contextlib
    return contextlib.nullcontext()


def test_an_error_of_the_model_is_told_and_the_next_request_served(url, engine, talk, capfd):
    engine.broken = RuntimeError("kernel of doom")
    with pytest.raises(openai.InternalServerError, match="kernel of doom"):
        client(url).chat.completions.create(model="tuned", messages=ASK)
    engine.pace, engine.answer = 0.02, "字" * 50
    with pytest.raises(openai.APIError, match="kernel of doom"):
        for chunk in client(url).chat.completions.create(model="tuned", messages=ASK, stream=True):
            if chunk.choices[0].delta.content == "字":
                engine.broken = engine.broken or RuntimeError("kernel of doom")
    engine.broken = None
    assert post(url).status_code == 200 and talk.worker.open == 0
    assert "kernel of doom" in capfd.readouterr().err


# --- keys and addresses ------------------------------------------------------------------------------------------

def test_with_a_key_nothing_is_open_but_health(tokenizer, engine, monkeypatch, tmp_path):
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    monkeypatch.setenv(server.KEY_VARIABLE, "geheim-密")
    talk = fake_talk(tokenizer, engine, host="0.0.0.0")  # allowed with a key
    with serving(talk) as url:
        for key in ("wrong", "geheim"):
            with pytest.raises(openai.AuthenticationError, match="missing or wrong") as refused:
                client(url, key).chat.completions.create(model="tuned", messages=ASK)
            assert refused.value.code == "invalid_api_key"
        assert httpx.get(f"{url}/v1/models").status_code == 401 and httpx.get(f"{url}/health").status_code == 200
        header = {"Authorization": "Bearer geheim-密".encode()}
        assert httpx.get(f"{url}/v1/models", headers=header).status_code == 200
        assert httpx.get(f"{url}/config").status_code == 401
        assert [httpx.get(url + path).status_code for path in ("/openapi.json", "/gradio_api/openapi.json", "/docs")] == [404, 401, 404]
        assert httpx.post(f"{url}/gradio_api/queue/join", json={"data": [], "fn_index": 0, "session_hash": "x"}).status_code == 401
        assert httpx.post(f"{url}/login", data={"username": "x", "password": "wrong"}).status_code == 400
        login = httpx.post(f"{url}/login", data={"username": "x", "password": "geheim-密"})
        assert login.status_code == 200 and httpx.get(f"{url}/config", cookies=login.cookies).status_code == 200
    assert engine.requests == []


def test_without_a_key_only_this_machine_is_served(url, monkeypatch):
    monkeypatch.delenv(server.KEY_VARIABLE, raising=False)
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org"):
        with pytest.raises(ValueError, match=f"{server.KEY_VARIABLE}"):
            server.Config(host=host)
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        server.Config(host=host)
    assert httpx.get(f"{url}/v1/models", headers={"Host": "evil.example"}).status_code == 400  # DNS rebinding
    assert httpx.get(f"{url}/v1/models", headers={"Host": "localhost:5000"}).status_code == 200


def test_a_configuration_names_everything_that_is_wrong():
    with pytest.raises(ValueError, match="slots=0: at least 1; .*language='fr'.*time_limit=0.*adapter name 'a b'"):
        server.Config(slots=0, language="fr", time_limit=0, adapters=(("a b", "x"),))
    for port in (-1, 65536, 99999):
        with pytest.raises(ValueError, match=f"port={port}: 0 to 65535"):
            server.Config(port=port)
    with pytest.raises(ValueError, match=r"max_tokens=5: the shortest prompt of service takes (\d+) tokens, .*more than \1$"):
        server.load(server.Config("service", "glm4-tiny", run="none", max_tokens=5))
    with pytest.raises(ValueError, match="unknown task 'weather'; there are: intent, triplets, service, medical"):
        server.load(server.Config("weather"))
    with pytest.raises(ValueError, match="run intent-reference is none of task medical: form 'system': choose chat or rounds"):
        server.load(server.Config("medical", run="intent-reference"))
    early = str(paths.runs("intent-reference", "checkpoint-500"))
    with pytest.raises(ValueError, match="two adapters are called intent-reference"):
        server.load(server.Config("intent", adapters=(("intent-reference", early),)))


def test_a_port_that_is_taken_is_named(monkeypatch):
    import socket
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1, port {port} .*--port"):
            server.serve(server.Config(port=port))


# --- worker and talk ---------------------------------------------------------------------------------------------

def test_closing_ends_what_waits(talk, engine):
    engine.gate.clear()
    waiting = [talk.stream(ASK) for _ in range(3)]
    talk.worker.close()
    for events, ticket in waiting:
        assert list(events)[-1] is ticket and (ticket.finish, ticket.error) == ("error", "the server is shutting down")
    with pytest.raises(Busy, match="shutting down"):
        talk.ask(ASK, print)
    with pytest.raises(Busy, match="shutting down"):
        talk.worker.call(lambda: 1)
    assert not talk.worker.alive() and talk.worker.open == 0


def test_a_call_runs_between_tokens_and_gives_its_error(talk):
    assert talk.worker.call(lambda: threading.current_thread().name) == "engine"
    with pytest.raises(KeyError):
        talk.worker.call(lambda: {}["x"])
    assert talk.answer(ASK) == "好的，马上处理。"


def test_what_the_engine_refuses_is_told(talk, engine, monkeypatch):
    monkeypatch.setattr(engine, "submit", lambda *args, **options: (_ for _ in ()).throw(ValueError("too long for me")))
    with pytest.raises(RuntimeError, match="too long for me"):
        talk.answer(ASK)
    assert talk.worker.open == 0


def test_old_rounds_go_when_the_conversation_is_too_long(talk):
    system = [{"role": "system", "content": "简短"}]
    rounds = [message for number in range(20)
              for message in ({"role": "user", "content": f"问题{number}"}, {"role": "assistant", "content": "回答"})]
    messages, left_out = talk.fitting(system + rounds + ASK)
    assert messages[0] == system[0] and messages[-1] == ASK[0] and messages[1]["role"] == "user" and 0 < left_out < 20
    assert messages == system + rounds[2 * left_out:] + ASK and len(talk.prompt(messages)) + 50 <= 200
    assert len(talk.prompt(system + rounds[2 * left_out - 2:] + ASK)) + 50 > 200
    assert talk.fitting(ASK) == (ASK, 0)


def test_every_task_has_a_persona(tokenizer):
    for task in PERSONAS:
        found = persona(task)
        assert found.task == task and found.examples and all(found.examples.values())
        assert chat.prompt_ids(tokenizer, found.messages(ASK))[-1] == tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert persona("medical").emergency("我突然胸痛得厉害，喘不上气") and persona("medical").emergency("感冒了多喝水行吗") is None
    assert persona("service", "document").messages(ASK) == [{"role": "user", "content": "用户问：" + ASK[0]["content"]}]
    assert persona("medical", "rounds").messages(ASK)[0]["content"].startswith("[Round 1]")
    with pytest.raises(ValueError, match="form 'rounds': choose system or template"):
        persona("intent", "rounds").messages(ASK)
    assert set(persona("triplets").relations) == set(RELATIONS)
    own = {"师从": Relation("谁是谁的学生", "人", "人")}
    assert "师从" in persona("triplets", "relations", relations=own).messages(ASK)[0]["content"] and persona("triplets", relations=own).relations == own


def test_triples_come_as_the_text_writes_them_and_on_request_only_copied(tokenizer, engine, talk):
    from glmlab.constrained import Copying
    assert serve_tasks.extractor(talk) is None
    engine.answer = "(李四, 工作于, 云帆(苏州)科技)"
    extracting = fake_talk(tokenizer, engine, persona("triplets"), limit=400)
    extract, text = serve_tasks.extractor(extracting), "李四在云帆（苏州）科技上班。"
    found = extract(text)
    assert found.triples == [("李四", "工作于", "云帆（苏州）科技")] and (found.ticket.finish, found.ticket.tokens) == ("stop", len(engine.answer))
    extract(text, True)
    assert engine.requests[0].options.get("allowed") is None and isinstance(engine.requests[1].options["allowed"], Copying)
    assert engine.requests[0].ids == engine.requests[1].ids
    for answer, triples in (("无", []), ("不知道", None)):
        engine.answer = answer
        assert extract(text).triples == triples
    with pytest.raises(TooLong, match="more than the 400"):
        extract("长" * 400, True)
    extracting.worker.close()


def test_triples_have_the_relations_of_the_run(tokenizer, engine, talk):
    own = {"师从": Relation("谁是谁的学生", "人", "人")}
    engine.answer = "(张三, 师从, 李四)"
    extracting = fake_talk(tokenizer, engine, persona("triplets", relations=own), limit=400)
    extract = serve_tasks.extractor(extracting)
    assert extract("张三师从李四。", True).triples == [("张三", "师从", "李四")]
    assert list(engine.requests[0].options["allowed"]._relations.values()) == ["师从"]
    extracting.worker.close()


def test_a_call_without_words_is_refused_and_a_cut_one_told(real, monkeypatch):
    for text in ("", "[SEP]", " [SEP] [SEP] "):
        with pytest.raises(ValueError, match="the call is empty"):
            serve_tasks.classifier(real)(text)
    monkeypatch.setattr(real, "limit", 700)
    found = serve_tasks.classifier(real)("[SEP]".join(["您好请讲，我想把彩铃退了"] * 60))
    assert found.turns_dropped > 10


def test_the_triplet_page_draws_the_graph(tokenizer, engine, talk, monkeypatch):
    triples = [("张三", "毕业于", "清华大学"), ("李四", "毕业于", "清华大学")]
    assert serve_tasks.drawer(talk) is None
    extracting = fake_talk(tokenizer, engine, persona("triplets"))
    passed = {}
    real_build = page.build
    monkeypatch.setattr(page, "build", lambda talk, **options: passed.update(options) or real_build(talk, **options))
    server.build(extracting.config, extracting)
    figure = passed["graph"](triples)
    texts = {text.get_text() for text in figure.axes[0].texts}
    picture = io.BytesIO()
    figure.savefig(picture, format="png")  # as Gradio does
    assert Image.open(picture).width == 200 * serve_tasks.GRAPH_WIDTH == 200 * figure.get_figwidth()
    assert texts == {"张三", "李四", "清华大学", "毕业于"} and passed["extract"] is not None
    extracting.worker.close()


def test_device_and_dtype_reach_the_model():
    import torch
    talk = server.load(server.Config("intent", "glm4-tiny", run="none", device="cpu", dtype="bf16"))
    assert talk.model.dtype == torch.bfloat16 and talk.model.device.type == "cpu"
    talk.worker.close()
