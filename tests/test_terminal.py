"""The terminal chat: what it prints, keeps and saves; commands; Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from talking import FakeEngine, fake_talk, until

from glmlab import serve_tasks, server, terminal
from glmlab.persona import Persona, medical, triplets
from glmlab.predict import as_intent

PLAIN = Persona("service", "glm4-tiny")


@pytest.fixture
def engine():
    return FakeEngine(answer="好的，马上处理。")


@pytest.fixture
def talk_to(tokenizer, engine):
    """`talk_to(lines, persona)`: what the terminal prints; `talk_to.conversation` is the last conversation."""
    opened = []

    def run(lines, persona=PLAIN, limit=200):
        talk = fake_talk(tokenizer, engine, persona, limit)
        opened.append(talk)
        printed = []
        run.conversation = terminal.Conversation(talk, printed.append)
        run.conversation.run(line + "\n" for line in lines)
        run.printed = printed
        return "".join(printed)

    yield run
    engine.gate.set()
    for talk in opened:
        talk.worker.close()


def test_it_streams_keeps_history_and_tells_the_times(talk_to, engine):
    out = talk_to(["你好", "", "  再见  "])
    assert re.fullmatch(r"(好的，马上处理。\n\[first token \d+\.\d\d s, total \d+\.\d\d s, 8 tokens\]\n){2}", out)
    assert len(talk_to.printed) > 10  # piece by piece
    history = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好的，马上处理。"}, {"role": "user", "content": "再见"}]
    prompt = talk_to.conversation.talk.prompt
    assert [request.ids for request in engine.requests] == [prompt(history[:1]), prompt(history)]
    assert [request.options["session"] for request in engine.requests] == ["terminal/tuned"] * 2


def test_commands(talk_to, engine, tmp_path):
    file = tmp_path / "new" / "a talk.json"
    out = talk_to(["你好", "/system 你是诗人", "写", f"/save {file}", "/clear", "再来", "/system", "最后", "/save", "/dance", "/help", "/quit now", "不会问"])
    assert "written: " in out and "error: /save needs a file name" in out and "unknown command /dance; /help lists them" in out
    assert terminal.HELP in out and len(engine.requests) == 4 and "unknown command /quit" not in out
    assert "forgotten: 2 rounds\n" in out and "with this system prompt\n" in out and "with the task's own prompt\n" in out
    poet = {"role": "system", "content": "你是诗人"}
    answer = {"role": "assistant", "content": "好的，马上处理。"}
    asked = [[{"role": "user", "content": "你好"}], [poet, {"role": "user", "content": "你好"}, answer, {"role": "user", "content": "写"}],
             [poet, {"role": "user", "content": "再来"}], [{"role": "user", "content": "再来"}, answer, {"role": "user", "content": "最后"}]]
    assert [request.ids for request in engine.requests] == [talk_to.conversation.talk.prompt(messages) for messages in asked]
    assert json.loads(file.read_text(encoding="utf-8")) == {"messages": [*asked[1], answer]}


def test_what_stood_in_a_saved_file_is_kept(talk_to, tmp_path):
    file = tmp_path / "talk.json"
    file.write_text("my notes", encoding="utf-8")
    out = talk_to(["你好", f"/save {file}"])
    assert "(what stood there: " in out and "talk.json.bak)" in out
    assert (tmp_path / "talk.json.bak").read_text(encoding="utf-8") == "my notes"
    assert len(json.loads(file.read_text(encoding="utf-8"))["messages"]) == 2


def test_what_goes_wrong_is_said_and_the_chat_goes_on(talk_to, engine, tmp_path, capfd):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    out = talk_to(["很长" * 300, f"/save {tmp_path}/file/x.json", "半个\udce4", "你好"])
    assert "error: the prompt takes" in out and "cannot write" in out and "error: message 0: half of a character" in out
    assert out.count("好的，马上处理。") == 1
    engine.broken = RuntimeError("kernel of doom")
    assert "error: RuntimeError: kernel of doom" in talk_to(["你好", "你好"])
    assert "kernel of doom" in capfd.readouterr().err


def test_a_long_conversation_leaves_its_beginning_out(talk_to):
    out = talk_to(["问题" * 10] * 6, limit=220)
    assert "[too long: the first 1 rounds are left out]" in out and "error" not in out and len(talk_to.conversation.turns) == 12


@pytest.fixture
def ctrl_c():
    """SIGINT interrupts, as in a terminal; a worker of pytest-xdist ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_the_answer_and_keeps_what_came(talk_to, engine, ctrl_c):
    engine.answer, engine.pace = "字" * 40, 0.05
    main = threading.main_thread().ident
    threading.Thread(target=lambda: (until(lambda: engine.requests and len(engine.requests[0].tokens) > 3),
                                     signal.pthread_kill(main, signal.SIGINT))).start()
    out = talk_to(["数到一百"])
    assert re.search(r"字{4,} \[stopped\]\n\[first token", out) and len(engine.cancelled) == 1
    kept = talk_to.conversation.turns[1]["content"]
    assert kept == "字" * len(kept) and 4 <= len(kept) < 40
    engine.pace, engine.answer = 0, "好"
    talk_to.conversation.run(["还在吗"])
    assert talk_to.conversation.turns[-1] == {"role": "assistant", "content": "好"}


def test_intent_triplets_and_medical(talk_to, engine, monkeypatch, tmp_path):
    probabilities = [0.01] * 34
    probabilities[1], probabilities[15], probabilities[32] = 0.5, 0.15, 0.04
    monkeypatch.setattr(serve_tasks, "classifier", lambda talk: lambda text: as_intent(probabilities, 3 if "长" in text else 0))
    told = "意图：1：办理取消\n   50.0%  1：办理取消\n   15.0%  15：办理变更\n    4.0%  32：办理销户/重开\n"
    out = talk_to(["您好[SEP]取消彩铃", "很长", f"/save {tmp_path / 'calls.json'}"], Persona("intent", "glm4-tiny"))
    first, second = r"\[total \d+\.\d\d s\]\n", r"\[total \d+\.\d\d s, too long: 3 turns in the middle left out\]\n"
    assert re.match(re.escape(told) + first + re.escape(told) + second, out) and engine.requests == []
    kept = [{"role": "user", "content": "您好[SEP]取消彩铃"}, {"role": "assistant", "content": told.strip()}]
    assert json.loads((tmp_path / "calls.json").read_text(encoding="utf-8"))["messages"][:2] == kept
    times = r"\[first token \d+\.\d\d s, total \d+\.\d\d s, \d+ tokens\]\n"
    for answer, shown in [("(张三, 毕业于, 清华大学)\n(张三, 担任, 教授)", "(张三, 毕业于, 清华大学)\n(张三, 担任, 教授)\n"), ("无", "无\n"),
                          ("不知道", "no triple could be read\n"), ("(李四, 工作于, 云帆(苏州)科技)", "(李四, 工作于, 云帆（苏州）科技)\n")]:
        engine.answer = answer
        assert re.fullmatch(re.escape(shown) + times, talk_to(["张三毕业于清华大学，李四在云帆（苏州）科技"], triplets()))
        assert talk_to.conversation.turns[1] == {"role": "assistant", "content": shown.strip()}
    out = talk_to(["我突然胸痛得厉害，喘不上气"], medical())
    assert out.startswith(medical().emergency("我突然胸痛得厉害，喘不上气"))


def test_the_program_from_a_pipe(tmp_path):
    """The whole of it with glm4-tiny, its lines from stdin."""
    code = ("from glmlab import server, terminal; terminal.chat(server.Config('service', 'glm4-tiny', run='none', max_new_tokens=3000))")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    reader = threading.Thread(target=lambda: printed.extend(iter(lambda: process.stdout.read(1), "")), daemon=True)
    printed = []
    reader.start()

    def shown(words, seconds=90):
        until(lambda: words in "".join(printed), seconds)

    def say(line):
        process.stdin.write(line + "\n")
        process.stdin.flush()

    shown("glm4-tiny: service.")
    say("你好")
    shown("tokens]\n")
    say("/help")
    shown("/quit")
    say("/save talk.json")
    shown("written: talk.json")
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in saved] == ["user", "assistant"]
    say("/quit")
    assert process.wait(30) == 0
    time.sleep(0.2)
    assert re.search(r"\[first token \d+\.\d\d s, total \d+\.\d\d s, \d+ tokens", "".join(printed))
