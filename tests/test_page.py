"""The web page in a browser: conversations, history, ratings, votes, what may not run; and the files it leaves."""

import json
import os
import re
import shutil

import pytest
from talking import FakeEngine, fake_talk, serving, until

from glmlab import chats, page, paths, server
from glmlab.page_words import LANGUAGES, WORDS, facts
from glmlab.persona import Persona

CHROMIUM = shutil.which("chromium")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
CARE = Persona("service", "glm4-tiny", examples={"网上购物": ["如何退货？", "订单什么时候发货？"], "技术支持": ["忘记密码怎么办？"]})


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """Conversations go to a folder of the test."""
    monkeypatch.setenv("GLMLAB_HOME", str(tmp_path))
    monkeypatch.delenv(server.KEY_VARIABLE, raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@pytest.fixture
def engine():
    return FakeEngine()


class Visit:
    """A visitor's tab: what they do on the page, and what went wrong behind it."""

    def __init__(self, browser, url, width=1280, height=900):
        self.context = browser.new_context(viewport={"width": width, "height": height}, locale="zh-CN")
        self.page, self.url, self.foreign, self.dialogs = self.context.new_page(), url, [], []
        self.page.set_default_timeout(20_000)
        self.page.on("request", lambda request: request.url.startswith((url, "data:", "blob:")) or self.foreign.append(request.url))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        self.open()

    def open(self):
        self.page.goto(self.url)
        self.page.wait_for_selector("#question textarea")
        self.page.wait_for_timeout(700)  # the load event fills in the history

    def ask(self, question, answers):
        """Send a question and wait until so many answers are complete."""
        self.page.fill("#question textarea", question)
        self.page.click("#send")
        self.wait(answers)

    def wait(self, answers):
        from playwright.sync_api import expect
        expect(self.page.locator("#chat small")).to_have_count(answers)
        expect(self.page.locator("#send")).to_be_visible()

    def said(self, who):
        """The texts of one side, facts left out."""
        found = self.page.locator(f'#chat [data-testid="{who}"]').all_inner_texts()
        return [text.strip() for text in found if "词元" not in text and "tokens" not in text]


@pytest.fixture
def visit(browser):
    tabs = []

    def open_tab(url, *size):
        tabs.append(Visit(browser, url, *size))
        return tabs[-1]

    yield open_tab
    for tab in tabs:
        tab.context.close()
        assert tab.dialogs == [] and tab.foreign == []  # nothing ran, nothing was fetched from elsewhere


def lines(task, name):
    return [json.loads(line) for line in (chats.folder(task) / name).read_text(encoding="utf-8").splitlines()]


# --- with the tiny model -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def load():
    """glm4-tiny, the reference run's adapter on it, loaded once: `load()` starts an engine of it with the service persona."""
    loaded = []

    def start():
        from glmlab.engine import Engine
        adapter = ("intent-reference", str(paths.runs("intent-reference", "checkpoint-5000")))
        config = server.Config("service", "glm4-tiny", run="none", adapters=(adapter,), max_new_tokens=24, slots=4)
        if not loaded:
            loaded.append(server.load(config))
            loaded[0].worker.close()
        first = loaded[0]
        engine = Engine(first.model, first.tokenizer, slots=4)
        return server.Talk(engine, first.model, first.tokenizer, first.voices, CARE, config, first.limit)

    return start


@needs_browser
def test_three_turns_a_reload_and_a_restart(load, visit):
    questions = ["你好，我想退货", "要等几天？", "谢谢"]
    with serving(load()) as url:
        tab = visit(url)
        for number, question in enumerate(questions, 1):
            tab.ask(question, number)
        said = tab.said("bot")
        assert tab.said("user") == questions and len(said) == 3 and all(said)
        below = tab.page.locator("#chat small").all_inner_texts()
        form = r"用时 [\d.]+ 秒 · 首字 [\d.]+ 秒 · [\d.]+ 词元/秒 · \d+ 词元 · intent-reference( · 到长度上限为止)?"
        assert all(re.fullmatch(form, text) for text in below)
        tab.open()
        assert tab.said("user") == questions and tab.said("bot") == said
    conversation, = chats.saved("service")
    assert [turn["question"] for turn in conversation["turns"]] == questions
    talk = load()
    with serving(talk) as url:  # the program was started anew
        tab = visit(url)
        assert tab.said("user") == questions and tab.said("bot") == said
        tab.ask("再见", 4)
        assert tab.said("user") == [*questions, "再见"]
        expected = talk.answer(chats.messages([*conversation["turns"], {"question": "再见", "answer": ""}]))
        assert chats.saved("service")[0]["turns"][3]["answer"] == expected  # it had read the first three


@needs_browser
@pytest.mark.parametrize("width, height", [(390, 844), (1920, 1080)])
def test_it_fits_phone_and_projector(load, visit, width, height):
    with serving(load(), classify=lambda text: None, extract=lambda text: None) as url:
        tab = visit(url, width, height)
        tab.ask("您好，我上周买的吹风机坏了，怎么退货？", 1)
        tab.page.wait_for_timeout(500)
        screens = paths.ROOT / "build" / "screens"
        tab.page.screenshot(path=screens / f"chat-{width}.png", full_page=True)
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = {name: tab.page.locator(name).bounding_box() for name in ("#chat", "#question", "#send", "#retry", "#new", "#language")}
        assert all(0 <= box["x"] and box["x"] + box["width"] <= width for box in boxes.values())
        assert boxes["#chat"]["width"] > (0.9 if width == 390 else 0.8) * width and boxes["#send"]["height"] >= 36
        assert boxes["#send"]["y"] + boxes["#send"]["height"] <= height
        size = tab.page.evaluate("getComputedStyle(document.querySelector('#chat [data-testid=bot] p')).fontSize")
        assert size == ("16px" if width == 390 else "22px")


@needs_browser
def test_a_vote_is_kept_with_the_texts(load, visit, monkeypatch):
    talk = load()
    orders = [["glm4-tiny", "intent-reference"], ["intent-reference", "glm4-tiny"], ["glm4-tiny", "intent-reference"]]
    drawn = iter(orders)
    monkeypatch.setattr(page.random, "sample", lambda models, count: next(drawn) if sorted(models) == sorted(orders[0]) else None)
    question = [{"role": "user", "content": "怎么退货"}]
    expected = {name: talk.answer(question, voice=name) for name in talk.voices}
    with serving(talk) as url:
        tab = visit(url)
        tab.page.get_by_role("tab", name="A/B").click()
        tab.page.fill("#both_question textarea", "怎么退货")
        for number, (button, preferred) in enumerate([("#better_a", "a"), ("#better_b", "b"), ("#tie", "tie")]):
            tab.page.click("#both")
            tab.page.wait_for_selector(button, state="visible")
            shown = {letter: tab.page.locator(f"#answer_{letter.upper()}").inner_text().strip() for letter in "ab"}
            if number == 0:
                tab.page.screenshot(path=paths.ROOT / "build" / "screens" / "compare-1280.png", full_page=True)
            tab.page.click(button)
            tab.page.wait_for_selector("#reveal p")
            vote = lines("service", "votes.jsonl")[number]
            assert tab.page.locator("#reveal").inner_text().startswith(f"A 是 {vote['a']['model']}，B 是 {vote['b']['model']}")
            assert {vote[letter]["model"]: vote[letter]["answer"] for letter in "ab"} == expected and len(set(expected.values())) == 2
            assert all(_plain(vote[letter]["answer"]) == _plain(shown[letter]) for letter in "ab")
            assert [vote["a"]["model"], vote["b"]["model"]] == orders[number]
            assert vote["preferred"] == preferred and vote["preferred_model"] == dict(zip("ab", orders[number])).get(preferred)
            assert vote["messages"] == question and vote["task"] == "service" and vote["time"]
            assert not tab.page.locator(button).is_visible()


def _plain(text):
    return "".join(text.split())


# --- with a model that says what it is told ----------------------------------------------------------------------

@needs_browser
def test_ratings_and_corrections_are_kept(tokenizer, engine, visit):
    engine.answer = lambda options: f"回答{len(engine.requests)}"
    talk = fake_talk(tokenizer, engine, CARE)
    with serving(talk) as url:
        tab = visit(url)
        tab.ask("一", 1)
        tab.ask("二", 2)
        tab.page.locator("[aria-label=赞]").first.click()
        until(lambda: (chats.folder("service") / "feedback.jsonl").exists())
        assert not tab.page.locator("#correction").is_visible()
        tab.page.locator("[aria-label=踩]").last.click()
        tab.page.wait_for_selector("#correction textarea")
        tab.page.fill("#correction textarea", "应该这样回答。\n第二行")
        tab.page.click("#save")
        tab.page.wait_for_selector("#correction textarea", state="hidden")
    first = [{"role": "user", "content": "一"}]
    second = [*first, {"role": "assistant", "content": "回答0"}, {"role": "user", "content": "二"}]
    kept = lines("service", "feedback.jsonl")
    assert [(line["messages"], line["answer"], line["rating"], line["correction"]) for line in kept] == [
        (first, "回答0", "up", ""), (second, "回答1", "down", ""), (second, "回答1", "down", "应该这样回答。\n第二行")]
    assert all(set(line) == {"time", "task", "model", "messages", "answer", "rating", "correction"} for line in kept)
    assert {line["model"] for line in kept} == {"tuned"}
    assert [turn["rating"] for turn in chats.saved("service")[0]["turns"]] == ["up", "down"]


PAYLOADS = ["<script>window.hacked=1</script>", "<img src=x onerror='window.hacked=1'>", "<svg onload='window.hacked=1'></svg>",
            "<svg><script>window.hacked=1</script></svg>", "[klick](javascript:window.hacked=1)",
            "<a href='javascript:window.hacked=1'>klick</a>", "<a href='  jAvAsCrIpT&colon;window.hacked=1'>klick</a>",
            "<iframe src='javascript:parent.hacked=1'></iframe>",
            "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
            "<details open ontoggle='window.hacked=1'><summary>x</summary></details>",
            "<body onload='window.hacked=1'>", "<input autofocus onfocus='window.hacked=1'>",
            "<math><mtext><style><img src=x onerror='hacked=1'>",
            "<form action='javascript:window.hacked=1'><button>klick</button></form>", "![x](x\"onerror=\"window.hacked=1)",
            "```html\n<img src=x onerror='window.hacked=1'>\n```", "`</code><img src=x onerror=window.hacked=1>`",
            "<custom-tag onclick='hacked=1'>",
            "$$\\href{javascript:window.hacked=1}{klick}$$", "```mermaid\ngraph TD\nA[klick]\nclick A \"javascript:window.hacked=1\"\n```",
            "<style>@import url('http://evil.example/x.css');</style>", "<base href='http://evil.example/'>"]


@needs_browser
def test_what_model_and_user_write_runs_no_script(tokenizer, engine, visit):
    payload = "\n\n".join(PAYLOADS)
    engine.answer = payload
    talk = fake_talk(tokenizer, engine, CARE, limit=10_000, max_new_tokens=5000)
    with serving(talk) as url:
        tab = visit(url)
        tab.ask(payload, 1)
        _harmless(tab, "#chat")
        assert "klick" in tab.said("bot")[0] and "klick" in tab.said("user")[0]  # the text itself is shown
        tab.open()  # title and history from the file
        _harmless(tab, "#chat")
        tab.page.click("#list input")
        _harmless(tab, "body")
        tab.page.keyboard.press("Escape")
        tab.page.get_by_role("tab", name="A/B").click()
        tab.page.fill("#both_question textarea", "x")
        tab.page.click("#both")
        tab.page.wait_for_selector("#tie", state="visible")
        for letter in "AB":
            _harmless(tab, f"#answer_{letter}")
            assert "klick" in tab.page.locator(f"#answer_{letter}").inner_text()


def _harmless(tab, place):
    """Nothing that could run stands in a part of the page, and clicking everything there runs nothing."""
    tab.page.wait_for_timeout(400)
    found = tab.page.evaluate("""place => {
        const bad = [];
        for (const node of document.querySelectorAll(place + ' *')) {
            if (!node.closest('.prose')) continue;
            if (['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'BASE', 'LINK', 'FORM'].includes(node.tagName)) bad.push(node.outerHTML);
            for (const attribute of node.attributes)
                if (/^on/i.test(attribute.name) || /^\\s*javascript:/i.test(attribute.value)) bad.push(node.outerHTML);
            if (node.textContent === 'klick' && node.tagName !== 'P') node.click();
        }
        return bad;
    }""", place)
    tab.page.wait_for_timeout(200)
    assert found == [] and tab.page.evaluate("window.hacked") is None and tab.page.url.startswith(tab.url)


@needs_browser
def test_stop_keeps_what_was_written_and_frees_the_slot(tokenizer, engine, visit):
    engine.answer, engine.pace = "字" * 50, 0.1
    talk = fake_talk(tokenizer, engine, CARE)
    with serving(talk) as url:
        tab = visit(url)
        tab.page.fill("#question textarea", "很长的问题")
        tab.page.click("#send")
        tab.page.wait_for_selector("#chat [data-testid=bot]:has-text('字字')")
        tab.page.click("#stop")
        tab.wait(1)
        assert 2 <= len(tab.said("bot")[0]) < 50 and "已停止" in tab.page.locator("#chat small").inner_text()
        assert talk.worker.open == 0 and len(engine.cancelled) == 1
        turn, = chats.saved("service")[0]["turns"]
        assert turn["answer"] == tab.said("bot")[0] and turn["finish"] == "cancelled"


@needs_browser
def test_a_closed_tab_frees_the_slot(tokenizer, engine, visit):
    engine.answer, engine.pace = "字" * 50, 0.2
    talk = fake_talk(tokenizer, engine, CARE)
    with serving(talk) as url:
        tab = visit(url)
        tab.page.fill("#question textarea", "很长的问题")
        tab.page.click("#send")
        tab.page.wait_for_selector("#chat [data-testid=bot]:has-text('字字')")
        tab.page.close()
        until(lambda: talk.worker.open == 0, 6)
        assert len(engine.cancelled) == 1
        until(lambda: chats.saved("service")[0]["turns"][0]["finish"] == "cancelled")


@needs_browser
def test_retry_draws_another_answer(tokenizer, engine, visit):
    engine.answer = lambda options: f"回答{len(engine.requests)}"
    talk = fake_talk(tokenizer, engine, CARE)
    with serving(talk) as url:
        tab = visit(url)
        tab.page.click("#retry")  # nothing to retry yet
        tab.page.get_by_role("button", name="如何退货？").click()
        tab.wait(1)
        tab.page.click("#retry")
        tab.page.wait_for_selector("#chat [data-testid=bot]:has-text('回答1')")
        tab.wait(1)
        assert tab.said("user") == ["如何退货？"] and tab.said("bot") == ["回答1"]
        one, two = engine.requests
        assert one.ids == two.ids and one.options["temperature"] == 0 and two.options["temperature"] == 0.8 and two.options["seed"] >= 0
        assert one.options["session"] == two.options["session"] == f"{chats.saved('service')[0]['id']}/tuned"


@needs_browser
def test_several_conversations(tokenizer, engine, visit):
    with serving(fake_talk(tokenizer, engine, CARE)) as url:
        tab = visit(url)
        tab.ask("第一个", 1)
        tab.page.click("#new")
        tab.wait(0)
        tab.ask("第二个", 1)
        assert tab.said("user") == ["第二个"] and len(chats.saved("service")) == 2
        tab.page.click("#list input")
        tab.page.get_by_role("option", name="第一个").click()
        tab.page.wait_for_selector("#chat [data-testid=user]:has-text('第一个')")
        tab.ask("还有", 2)
        assert tab.said("user") == ["第一个", "还有"]
        tab.page.click("#delete")
        tab.page.wait_for_selector("#chat [data-testid=user]:has-text('第二个')")
        assert [chats.title(conversation) for conversation in chats.saved("service")] == ["第二个"]


@needs_browser
def test_the_language_can_be_switched(tokenizer, engine, visit):
    with serving(fake_talk(tokenizer, engine, CARE)) as url:
        tab = visit(url)
        tab.ask("你好", 1)
        assert tab.page.locator("#send").inner_text() == "发送"
        tab.page.get_by_text("English").click()
        tab.page.wait_for_selector("#send:has-text('Send')")
        assert tab.page.locator("h1").inner_text() == "GLM Lab · Customer service" and tab.page.get_by_role("tab", name="Chat").is_visible()
        assert "first token" in tab.page.locator("#chat small").inner_text() and tab.said("user") == ["你好"]
        assert tab.page.locator("#question textarea").get_attribute("placeholder") == "Your question"


@needs_browser
def test_a_full_queue_gives_the_question_back(tokenizer, engine, visit):
    talk = fake_talk(tokenizer, engine, CARE, queue=0)
    engine.gate.clear()
    taken = [talk.stream([{"role": "user", "content": "x"}]) for _ in range(2)]
    with serving(talk) as url:
        tab = visit(url)
        tab.page.fill("#question textarea", "还在吗")
        tab.page.click("#send")
        tab.page.wait_for_selector("text=2 requests are being answered or wait")
        assert tab.page.input_value("#question textarea") == "还在吗" and tab.said("user") == []
        engine.gate.set()
        for events, _ in taken:
            list(events)
        tab.page.click("#send")
        tab.wait(1)


@needs_browser
def test_medical_pages_say_what_they_are(tokenizer, engine, visit):
    from glmlab.persona import medical
    from glmlab.tasks.medical import DISCLAIMER
    with serving(fake_talk(tokenizer, engine, medical())) as url:
        tab = visit(url)
        assert tab.page.locator("#disclaimer").inner_text().strip() == DISCLAIMER["zh"]
        tab.ask("我突然胸痛得厉害，喘不上气", 1)
        line = medical().emergency("我突然胸痛得厉害，喘不上气")
        assert "120" in line and tab.said("bot") == [f"{line}\n好的，马上处理。"]
        tab.page.get_by_text("English").click()
        tab.page.wait_for_selector("#disclaimer:has-text('teaching material')")


@needs_browser
def test_intent_and_triplet_tabs(tokenizer, engine, visit):
    from matplotlib.figure import Figure

    from glmlab.predict import as_intent
    probabilities = [0.01] * 34
    probabilities[1], probabilities[15] = 0.5, 0.18

    def classify(text):
        if "[SEP]" not in text:
            raise ValueError("that is no call")
        return as_intent(probabilities)

    figure = Figure()
    figure.subplots().plot([1, 2])
    found = {"张三毕业于清华": [("张三", "毕业于", "清华<b>大学</b>")], "你好": None}
    with serving(fake_talk(tokenizer, engine, CARE), classify=classify, extract=found.get, graph=lambda triples: figure) as url:
        tab = visit(url)
        tab.page.get_by_role("tab", name="意图识别").click()
        tab.page.fill("#call textarea", "您好[SEP]取消彩铃")
        tab.page.click("#classify")
        tab.page.wait_for_selector("#intent:has-text('办理取消')")
        assert "1：办理取消" in tab.page.locator("#intent").inner_text() and "50%" in tab.page.locator("#intent").inner_text()
        assert tab.page.locator("#intent .bar").count() == 3
        tab.page.fill("#call textarea", "坏的")
        tab.page.click("#classify")
        tab.page.wait_for_selector("text=that is no call")
        tab.page.get_by_role("tab", name="三元组抽取").click()
        tab.page.fill("#sentence textarea", "张三毕业于清华")
        tab.page.click("#extract")
        tab.page.wait_for_selector("#graph img")
        assert "清华<b>大学</b>" in tab.page.locator("#triples").inner_text()
        tab.page.fill("#sentence textarea", "你好")
        tab.page.click("#extract")
        tab.page.wait_for_selector("text=没有读出三元组")
    with serving(fake_talk(tokenizer, FakeEngine(), CARE), classify=None, extract=None) as url:
        tab = visit(url)
        assert tab.page.get_by_role("tab").all_inner_texts() == ["对话", "A/B 对比"]


# --- files and words ---------------------------------------------------------------------------------------------

def test_every_word_is_there_in_both_languages():
    assert all(set(words) == set(LANGUAGES.values()) and all(words.values()) for words in WORDS.values())
    for words in WORDS.values():
        assert len({tuple(sorted(re.findall(r"\{(\w+)", text))) for text in words.values()}) == 1


def test_the_line_below_an_answer():
    turn = {"first": 0.5, "seconds": 2.5, "tokens": 21, "model": "m", "finish": "length", "left_out": 2}
    assert facts(turn, "en") == "2.5 s · first token 0.50 s · 10.0 tokens/s · 21 tokens · m · cut at the length limit · " \
                                "too long: the first 2 rounds were left out"
    assert facts(turn | {"first": None, "finish": "time", "left_out": 0}, "zh") == "到时间上限为止"
    for finish in ("length", "time", "cancelled", "error", "refused"):
        assert facts(turn | {"finish": finish}, "zh")


def test_conversations_on_disk(capsys):
    one, two = chats.new("service"), chats.new("service")
    one["turns"] = [{"question": "第一行\n第二行 " + "长" * 40, "answer": "好"}]
    chats.save(one)
    chats.save(two | {"turns": [{"question": "b", "answer": ""}]})
    assert chats.load("service", one["id"]) == one and chats.title(one) == "第一行 第二行 " + "长" * 15 + "…" and chats.title(two) == "…"
    assert {conversation["id"] for conversation in chats.saved("service")} == {one["id"], two["id"]} and chats.saved("medical") == []
    broken = chats.folder("service") / "20260101-000000-abcdef.json"
    for content in ("{", "[]", '{"turns": [{"question": 1}]}'):
        broken.write_text(content, encoding="utf-8")
        assert len(chats.saved("service")) == 2 and "20260101-000000-abcdef.json is damaged" in capsys.readouterr().err
    chats.delete("service", one["id"])
    with pytest.raises(ValueError, match="not there any more"):
        chats.load("service", one["id"])
    for name in ("../../x", "", "20260101-000000-abcdef.json", "..", "20260101-000000-ABCDEF"):
        with pytest.raises(ValueError, match="is no conversation"):
            chats.load("service", name)


def test_rounds_without_an_answer_are_no_part_of_the_prompt():
    turns = [{"question": "a", "answer": "1"}, {"question": "b", "answer": ""}, {"question": "c", "answer": "3"}]
    kept = [(message["role"], message["content"]) for message in chats.messages(turns)]
    assert kept == [("user", "a"), ("assistant", "1"), ("user", "c")]
    assert chats.messages(turns[:2])[-1] == {"role": "user", "content": "b"}
