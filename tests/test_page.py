"""The web page in a browser: conversations, history, ratings, votes, what may not run; and the files it leaves."""

import json
import os
import re
import shutil

import pytest
from talking import FakeEngine, fake_talk, serving, until

from glmlab import chats, page_tabs, paths, serve_tasks, server
from glmlab.page_text import as_markdown, as_text
from glmlab.page_words import LANGUAGES, WORDS, facts, refusal
from glmlab.persona import Persona
from glmlab.worker import Busy, TooLong

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
        english = tab.page.get_by_text("English")
        for name in ("zh", "en"):
            small = tab.page.evaluate("""[...document.querySelectorAll('button.lg')].filter(
                button => button.offsetParent && button.scrollWidth > button.clientWidth + 1)
                .map(button => button.innerText)""")
            assert small == [], name  # its words stay in it
            english.click() if name == "zh" else tab.page.get_by_text("中文").click()
            tab.page.wait_for_timeout(600)
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
    monkeypatch.setattr(page_tabs.random, "sample", lambda models, count: next(drawn) if sorted(models) == sorted(orders[0]) else None)
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
            assert {vote[letter]["finish"] for letter in "ab"} <= {"stop", "length"}
            assert not tab.page.locator(button).is_visible()
            below = [tab.page.locator(f"#facts_{letter}").inner_text().strip() for letter in "AB"]
            form = r"用时 [\d.]+ 秒 · 首字 [\d.]+ 秒 · [\d.]+ 词元/秒 · \d+ 词元( · 到长度上限为止)?"  # no name: the vote is blind
            assert all(re.fullmatch(form, text) for text in below), below


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


ELSEWHERE = "http://127.0.0.1:9"  # nobody listens there, and nobody may be asked
PAYLOADS = ["<script>window.hacked=1</script>", "<img src=x onerror='window.hacked=1'>", "<svg onload='window.hacked=1'></svg>",
            "<svg><script>window.hacked=1</script></svg>", "[klick](javascript:window.hacked=1)",
            "<a href='javascript:window.hacked=1'>klick</a>", "<a href='  jAvAsCrIpT&colon;window.hacked=1'>klick</a>",
            "<iframe src='javascript:parent.hacked=1'></iframe>", f"<iframe src='{ELSEWHERE}/f'></iframe>",
            "<iframe srcdoc='<script>parent.hacked=1</script>'></iframe>",
            "<details open ontoggle='window.hacked=1'><summary>x</summary></details>",
            "<body onload='window.hacked=1'>", "<input autofocus onfocus='window.hacked=1'>",
            "<math><mtext><style><img src=x onerror='hacked=1'>",
            "<form action='javascript:window.hacked=1'><button>klick</button></form>", "![x](x\"onerror=\"window.hacked=1)",
            "```html\n<img src=x onerror='window.hacked=1'>\n```", "`</code><img src=x onerror=window.hacked=1>`",
            "<custom-tag onclick='hacked=1'>",
            "$$\\href{javascript:window.hacked=1}{klick}$$", "```mermaid\ngraph TD\nA[klick]\nclick A \"javascript:window.hacked=1\"\n```",
            f"```mermaid\ngraph TD\nA[\"<img src='{ELSEWHERE}/mermaid.png'>\"]\n```",
            "<style>@import url('http://evil.example/x.css');</style>", "<base href='http://evil.example/'>",
            f"<form action='{ELSEWHERE}/post'><input name=pw><button>klick</button></form>", f"<img src='{ELSEWHERE}/i.png'>",
            f"![x]({ELSEWHERE}/m.png)", f"![x][y]\n\n[y]: {ELSEWHERE}/r.png", f"`` a` ![x]({ELSEWHERE}/c.png)",
            "<div style='position:fixed;top:0;left:0;width:100vw;height:100vh;background:red;z-index:9999'>X</div>",
            f"<video src='{ELSEWHERE}/v.mp4' autoplay></video><object data='{ELSEWHERE}/o'></object>",
            "- a\n```\n- b\n    ```\n<form><input name=pw></form>", "~~~ ` `\n<form><input name=pw></form>\n~~~ x\n~~~\n<form><input name=pw></form>"]


@needs_browser
def test_what_model_and_user_write_runs_no_script(tokenizer, engine, visit):
    """Each payload in a turn of its own, for one that is not closed would hide the next."""
    turns = [chats.new_turn(payload, "tuned") | {"answer": payload, "finish": "stop", "first": 0.1, "seconds": 1.0, "tokens": 3}
             for payload in PAYLOADS]
    chats.save(chats.new("service") | {"turns": turns})
    talk = fake_talk(tokenizer, engine, CARE, limit=10_000, max_new_tokens=5000)
    with serving(talk) as url:
        tab = visit(url)
        tab.wait(len(PAYLOADS))
        _harmless(tab, "#chat")
        typed = tab.page.locator('#chat [data-testid="user"]').all_inner_texts()
        assert [_plain(text) for text in typed] == [_plain(payload) for payload in PAYLOADS]  # all of it is shown
        answers = "".join(tab.page.locator('#chat [data-testid="bot"]').all_inner_texts())
        assert "<div style='position:fixed;" in answers and f"![x]({ELSEWHERE}/m.png)" in answers
        tab.page.click("#list input")
        _harmless(tab, "body")
        tab.page.keyboard.press("Escape")
        tab.page.get_by_role("tab", name="A/B").click()
        for payload in ("\n\n".join(PAYLOADS), *PAYLOADS[-7:]):
            engine.answer = payload
            tab.page.fill("#both_question textarea", "x")
            tab.page.click("#both")
            tab.page.wait_for_selector("#tie", state="visible")
            for letter in "AB":
                _harmless(tab, f"#answer_{letter}")
            tab.page.click("#tie")
            tab.page.wait_for_selector("#tie", state="hidden")


@needs_browser
def test_the_browser_itself_fetches_nothing_from_elsewhere(tokenizer, engine, visit):
    with serving(fake_talk(tokenizer, engine, CARE)) as url:
        tab = visit(url)
        tab.page.evaluate("""elsewhere => {
            window.refused = [];
            document.addEventListener('securitypolicyviolation', event => window.refused.push(event.effectiveDirective));
            document.body.insertAdjacentHTML('beforeend', `<img src='${elsewhere}/i.png'><form action='${elsewhere}/p'></form>`);
            document.body.lastChild.submit();
        }""", ELSEWHERE)
        tab.page.wait_for_function("window.refused.length == 2")
        assert sorted(tab.page.evaluate("window.refused")) == ["form-action", "img-src"]
        tab.foreign.clear()  # asked for, and refused before anything left the browser


def _harmless(tab, place):
    """Nothing that could run or be taken for a part of the page stands in it, and clicking everything there runs nothing."""
    tab.page.wait_for_timeout(400)
    found = tab.page.evaluate("""place => {
        const bad = [];
        for (const node of document.querySelectorAll(place + ' *')) {
            if (!node.closest('.prose')) continue;
            if (['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'BASE', 'LINK', 'FORM', 'INPUT', 'VIDEO', 'DETAILS', 'MATH'].includes(node.tagName)
                || ['IMG', 'STYLE'].includes(node.tagName)) bad.push(node.outerHTML);
            if (getComputedStyle(node).position == 'fixed') bad.push(node.outerHTML);
            for (const attribute of node.attributes)
                if (/^on/i.test(attribute.name) || /^\\s*javascript:/i.test(attribute.value)) bad.push(node.outerHTML);
            if (node.textContent === 'klick' && node.tagName !== 'P') node.click?.();
        }
        return bad;
    }""", place)
    tab.page.wait_for_timeout(200)
    assert found == [] and tab.page.evaluate("window.hacked") is None and tab.page.url.startswith(tab.url)


@needs_browser
def test_what_is_typed_is_shown_as_it_was_typed(tokenizer, engine, visit):
    typed = "1 < 2 && a<b> c & d\n  缩进；*星号*_下划线_ ~~划~~\n# 不是标题\n- 不是列表\n3. 也不是\n`代码` | 表 | www.example.com https://example.com a@b.cn &lt;"
    engine.answer = "可以：\n1. **先**登录 <b>x</b>\n2. 写 `<br>`\n   再写\n请放心。\n```html\n<br>\n```\n- 一\n\n完"
    with serving(fake_talk(tokenizer, engine, CARE, limit=900, max_new_tokens=200)) as url:
        tab = visit(url)
        tab.ask(typed, 1)
        shown = tab.page.locator('#chat [data-testid="user"] .prose').first.inner_text()
        assert shown.replace("\xa0", " ").strip() == typed
        assert tab.page.locator('#chat [data-testid="user"] .prose').locator("a, em, h1, li, code, table, del").count() == 0
        bot = tab.page.locator('#chat [data-testid="bot"] .prose').first
        assert bot.locator("ol > li").all_inner_texts() == ["先登录 <b>x</b>", "写 <br>\n再写"] and bot.locator("strong").inner_text() == "先"
        assert "请放心。" in bot.locator("> p, > span > p").all_inner_texts()  # behind the list, not in its last item
        assert "<br>" in bot.locator("pre").inner_text() and "&lt;" not in bot.inner_text()
        tab.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=url)
        for place, expected in ((0, typed), (-1, engine.answer.replace("请放心", "\n请放心"))):
            tab.page.locator("#chat [aria-label='Copy message']").nth(place).click()
            tab.page.wait_for_timeout(200)
            assert tab.page.evaluate("navigator.clipboard.readText()") == expected
        tab.page.get_by_role("tab", name="A/B").click()
        engine.answer = "(a) 一\n(b) 二"
        tab.page.fill("#both_question textarea", "x")
        tab.page.click("#both")
        tab.page.wait_for_selector("#tie", state="visible")
        assert tab.page.locator("#answer_A").inner_text().strip() == "(a) 一\n(b) 二"


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
def test_a_question_that_is_not_taken_changes_nothing(tokenizer, engine, visit):
    with serving(fake_talk(tokenizer, engine, CARE)) as url:
        tab = visit(url)
        tab.ask("第一个", 1)

        def same():
            tab.page.wait_for_timeout(600)
            assert tab.said("user") == ["第一个"] and tab.page.input_value("#list input") == "第一个"

        tab.page.fill("#question textarea", "")
        tab.page.press("#question textarea", "Enter")
        same()
        tab.page.fill("#question textarea", "  ")
        tab.page.click("#send")
        same()
        engine.pace = 0.1
        tab.page.fill("#question textarea", "第二个")
        tab.page.press("#question textarea", "Enter")
        tab.page.wait_for_selector("#stop", state="visible")
        tab.page.get_by_role("button", name="如何退货？").click()  # while it is being answered
        tab.wait(2)
        assert tab.said("user") == ["第一个", "第二个"] and tab.page.input_value("#list input") == "第一个"
        conversation, = chats.saved("service")
        assert [turn["finish"] for turn in conversation["turns"]] == ["stop", "stop"]
        tab.page.get_by_role("tab", name="A/B").click()
        engine.pace = 0
        tab.page.fill("#both_question textarea", "x")
        tab.page.click("#both")
        tab.page.wait_for_selector("#tie", state="visible")
        tab.page.fill("#both_question textarea", " ")
        tab.page.click("#both")
        tab.page.wait_for_timeout(600)
        assert tab.page.locator("#answer_A").inner_text().strip() == engine.answer
        tab.page.click("#tie")
        until(lambda: (chats.folder("service") / "votes.jsonl").exists())
        assert lines("service", "votes.jsonl")[0]["a"]["finish"] == "stop"


@needs_browser
@pytest.mark.parametrize("leave", ["#new", "#list", "#delete"])
def test_whoever_leaves_while_an_answer_is_written_sees_no_more_of_it(tokenizer, engine, visit, leave):
    talk = fake_talk(tokenizer, engine, CARE)
    with serving(talk) as url:
        tab = visit(url)
        tab.ask("旧的", 1)
        tab.page.click("#new")
        tab.wait(0)
        engine.answer, engine.pace = "字" * 50, 0.1
        tab.page.fill("#question textarea", "很长的问题")
        tab.page.click("#send")
        tab.page.wait_for_selector("#chat [data-testid=bot]:has-text('字字')")
        tab.page.click(f"{leave} input" if leave == "#list" else leave)
        if leave == "#list":
            tab.page.get_by_role("option", name="旧的").click()
        expected = [] if leave == "#new" else ["旧的"]
        tab.wait(len(expected))
        until(lambda: talk.worker.open == 0, 3)
        tab.page.wait_for_timeout(800)
        assert tab.said("user") == expected and tab.page.locator("#send").is_visible() and not tab.page.locator("#stop").is_visible()
        kept = {chats.title(conversation): conversation["turns"] for conversation in chats.saved("service")}
        assert set(kept) == ({"旧的"} if leave == "#delete" else {"旧的", "很长的问题"})  # it does not come back
        if leave != "#delete":
            turn, = kept["很长的问题"]
            assert turn["finish"] == "cancelled" and 2 <= len(turn["answer"]) < 50
        engine.answer, engine.pace = "好", 0
        tab.ask("下一个", len(expected) + 1)
        assert tab.said("user") == [*expected, "下一个"]


@needs_browser
def test_two_tabs_in_one_conversation_lose_nothing(tokenizer, engine, visit):
    engine.answer = lambda options: f"回答{len(engine.requests)}" + "。" * 10
    with serving(fake_talk(tokenizer, engine, CARE)) as url:
        one = visit(url)
        one.ask("零", 1)
        two = visit(url)
        engine.pace = 0.1
        for tab, question in ((one, "一"), (two, "二")):
            tab.page.fill("#question textarea", question)
            tab.page.click("#send")
            tab.page.wait_for_selector("#stop", state="visible")
        one.page.wait_for_selector("#send", state="visible")
        two.wait(3)
        conversation, = chats.saved("service")
        assert [(turn["question"], turn["answer"], turn["finish"]) for turn in conversation["turns"]] == [
            (question, f"回答{number}" + "。" * 10, "stop") for number, question in enumerate("零一二")]
        two.page.click("#delete")
        two.wait(0)
        one.page.fill("#question textarea", "还在吗")
        one.page.click("#send")
        one.page.wait_for_selector("text=这个会话已被删除")
        assert one.page.input_value("#question textarea") == "还在吗" and chats.saved("service") == []


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
        tab.page.wait_for_selector("text=现在请求太多")
        assert tab.page.input_value("#question textarea") == "还在吗" and tab.said("user") == []
        engine.gate.set()
        for events, _ in taken:
            list(events)
        tab.page.click("#send")
        tab.wait(1)
        tab.page.get_by_text("English").click()
        tab.page.wait_for_selector("#send:has-text('Send')")
        tab.page.fill("#question textarea", "很长" * 300)
        tab.page.click("#send")
        tab.page.wait_for_selector("text=and with the answer at most 200")


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
        return as_intent(probabilities, 4 if "长" in text else 0)

    figure = Figure()
    figure.subplots().plot([1, 2])
    found = {"张三毕业于清华": [("张三", "毕业于", "清华<b>大学</b>")], "你好": None, "晴天": []}
    talk, asked = fake_talk(tokenizer, engine, CARE), []

    def extract(text, constrained):
        asked.append(constrained)
        return serve_tasks.Extracted(found[text], talk.finished([{"role": "user", "content": text}]))

    with serving(talk, classify=classify, extract=extract, graph=lambda triples: figure) as url:
        tab = visit(url)
        tab.page.get_by_role("tab", name="意图识别").click()
        tab.page.fill("#call textarea", "您好[SEP]取消彩铃")
        tab.page.click("#classify")
        tab.page.wait_for_selector("#intent:has-text('办理取消')")
        assert "1：办理取消" in tab.page.locator("#intent").inner_text() and "50%" in tab.page.locator("#intent").inner_text()
        assert tab.page.locator("#intent .bar").count() == 3 and not tab.page.locator("#facts_intent p").count()
        tab.page.fill("#call textarea", "很长[SEP]取消彩铃")
        tab.page.click("#classify")
        tab.page.wait_for_selector("#facts_intent:has-text('中间的 4 轮没有读')")
        for text, words in (("坏的", "没有成功：that is no call"), ("[SEP]", "请先输入通话内容")):
            tab.page.fill("#call textarea", text)
            tab.page.click("#classify")
            tab.page.wait_for_selector(f"text={words}")
        tab.page.get_by_role("tab", name="三元组抽取").click()
        tab.page.fill("#sentence textarea", "张三毕业于清华")
        tab.page.click("#extract")
        tab.page.wait_for_selector("#graph img")
        assert "清华<b>大学</b>" in tab.page.locator("#triples").inner_text() and "主体" in tab.page.locator("#triples").inner_text()
        form = r"用时 [\d.]+ 秒 · 首字 [\d.]+ 秒 · [\d.]+ 词元/秒 · 8 词元"
        assert re.fullmatch(form, tab.page.locator("#facts_triples").inner_text().strip())
        assert not tab.page.locator("#graph label").is_visible()  # it would lie on the picture
        tab.page.get_by_text("English").click()
        tab.page.wait_for_selector("#triples :text('Relation')")
        assert "清华<b>大学</b>" in tab.page.locator("#triples").inner_text() and "主体" not in tab.page.locator("#triples").inner_text()
        tab.page.get_by_text("中文").click()
        tab.page.wait_for_selector("#triples :text('主体')")
        tab.page.check("#constrained input")
        for text, words in (("你好", "没有读出三元组"), ("晴天", "无：文本里没有三元组")):
            tab.page.fill("#sentence textarea", text)
            tab.page.click("#extract")
            tab.page.wait_for_selector(f"#facts_triples:has-text('{words}')")
            assert "清华" not in tab.page.locator("#triples").inner_text() and not tab.page.locator("#graph img").is_visible()
        assert asked == [False, True, True]
    with serving(fake_talk(tokenizer, FakeEngine(), CARE), classify=None, extract=None) as url:
        tab = visit(url)
        assert tab.page.get_by_role("tab").all_inner_texts() == ["对话", "A/B 对比"]


# --- files and words ---------------------------------------------------------------------------------------------

def test_every_word_is_there_in_both_languages():
    assert all(set(words) == set(LANGUAGES.values()) and all(words.values()) for words in WORDS.values())
    for words in WORDS.values():
        assert len({tuple(sorted(re.findall(r"\{(\w+)", text))) for text in words.values()}) == 1


def test_the_line_below_an_answer():
    assert refusal(Busy("x"), "zh") == WORDS["busy"]["zh"] and "300" in refusal(TooLong(300, 1, 200), "zh")
    assert refusal(ValueError("warum"), "zh") == "没有成功：warum"
    turn = {"first": 0.5, "seconds": 2.5, "tokens": 21, "model": "m", "finish": "length", "left_out": 2}
    assert facts(turn, "en") == "2.5 s · first token 0.50 s · 10.0 tokens/s · 21 tokens · m · cut at the length limit · " \
                                "too long: the first 2 rounds were left out"
    assert facts(turn | {"first": None, "finish": "time", "left_out": 0}, "zh") == "到时间上限为止"
    for finish in ("length", "time", "cancelled", "error", "refused"):
        assert facts(turn | {"finish": finish}, "zh")


def test_text_and_markdown():
    assert as_text("a<b> *c* 3.5 x-y!") == "a&#60;b&#62; &#42;c&#42; 3.5 x-y!" and as_text("\r\n  - x") == "\n&#160;&#160;&#45; x"
    assert as_markdown("1. a\n2. b\nend\nmore\n* x\n  y\n\nz") == "1. a\n2. b\n\nend\nmore\n* x\n  y\n\nz"
    assert as_markdown("a & <b> ![x](y) [z](w)") == "a &amp; &lt;b> !&#91;x](y) [z](w)"
    assert as_markdown("```\n<b>\n1. a\nb\n```\n<b>") == "```\n<b>\n1. a\nb\n```\n&lt;b>" and as_markdown("````\n```\n<b>") == "````\n```\n<b>"
    assert as_markdown("x `<b>` ``a`b`` `") == "x <code>&#60;b&#62;</code> <code>a&#96;b</code> `"


def test_changes_from_many_threads_are_all_kept():
    from concurrent.futures import ThreadPoolExecutor
    conversation = chats.new("service")
    chats.save(conversation)

    def add(number):
        chats.change("service", conversation["id"], lambda found: found["turns"].append(chats.new_turn(str(number), "m")))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    assert sorted(int(turn["question"]) for turn in chats.load("service", conversation["id"])["turns"]) == list(range(40))
    chats.delete("service", conversation["id"])
    with pytest.raises(chats.Gone):
        add(1)
    assert chats.saved("service") == []


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
