"""Every word of the web page in Chinese and English, and how it looks."""

from glmlab.worker import Busy, TooLong

LANGUAGES = {"中文": "zh", "English": "en"}
WORDS = {name: dict(zip(("zh", "en"), words)) for name, words in {
    "title": ("GLM Lab · {task}", "GLM Lab · {task}"),
    "intent": ("意图识别", "Intent"), "triplets": ("三元组抽取", "Triplets"), "service": ("智能客服", "Customer service"),
    "medical": ("医疗问答", "Medical questions"),
    "chat": ("对话", "Chat"), "compare": ("A/B 对比", "A/B"), "conversation": ("会话", "Conversation"), "new": ("＋ 新会话", "＋ New"),
    "delete": ("删除", "Delete"), "question": ("请输入问题", "Your question"), "send": ("发送", "Send"), "stop": ("停止", "Stop"),
    "retry": ("重答", "Retry"), "settings": ("设置", "Settings"), "model": ("模型", "Model"),
    "temperature": ("随机程度（0 = 每次相同）", "Temperature (0 = the same every time)"),
    "empty": ("请在下面输入问题，或点一个例子。", "Type a question below, or choose an example."),
    "correction": ("应该怎样回答？（用于下次训练）", "What should the answer have been? (for the next training)"),
    "save": ("保存更正", "Save correction"), "thanks": ("已保存，谢谢！", "Saved, thank you!"),
    "ask_both": ("两个模型一起回答", "Ask both models"), "better_a": ("A 更好", "A is better"), "better_b": ("B 更好", "B is better"),
    "tie": ("一样", "No difference"), "reveal": ("A 是 {a}，B 是 {b}。已保存，谢谢！", "A was {a}, B was {b}. Saved, thank you!"),
    "call": ("一通电话，[SEP] 隔开轮次", "A call, turns parted by [SEP]"), "classify": ("识别意图", "Classify"), "label": ("意图", "Intent"),
    "sentence": ("一段文本", "A text"), "extract": ("抽取", "Extract"), "heads": ("主体 · 关系 · 客体", "Head · Relation · Tail"),
    "constrained": ("名称只从原文抄写，关系只从列表选取", "Copy names from the text, take relations from the list"),
    "none": ("无：文本里没有三元组", "None: no triple is in the text"), "nothing": ("没有读出三元组", "No triple could be read"),
    "no_call": ("请先输入通话内容", "Type what was said first"), "no_text": ("请先输入一段文本", "Type a text first"),
    "cut_call": ("太长：中间的 {dropped} 轮没有读", "too long: {dropped} turns in the middle were left out"),
    "facts": ("用时 {seconds:.1f} 秒 · 首字 {first:.2f} 秒 · {speed:.1f} 词元/秒 · {tokens} 词元",
              "{seconds:.1f} s · first token {first:.2f} s · {speed:.1f} tokens/s · {tokens} tokens"),
    "end_length": ("到长度上限为止", "cut at the length limit"), "end_time": ("到时间上限为止", "cut at the time limit"),
    "end_cancelled": ("已停止", "stopped"), "end_error": ("出错", "failed"), "end_refused": ("没有回答", "refused"),
    "busy": ("现在请求太多，请稍后再试。", "Too many requests are being answered; try again in a moment."),
    "too_long": ("太长：输入有 {tokens} 个词元，连同回答最多 {limit} 个。请缩短，或开始新会话。",
                 "Too long: {tokens} tokens, and with the answer at most {limit}. Shorten it, or begin a new conversation."),
    "late": ("超过了时间限制 {limit:g} 秒。", "Not finished within the time limit of {limit:g} seconds."),
    "failed": ("没有成功：{why}", "That did not work: {why}"),
    "gone": ("这个会话已被删除。", "This conversation has been deleted."),
    "left_out": ("太长：最早的 {left_out} 轮没有读", "too long: the first {left_out} rounds were left out"),
}.items()}

POLICY = ("img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; frame-src 'none'; object-src 'none'; "
          "form-action 'self'; base-uri 'self'")
CSS = """
.gradio-container {width: 100% !important; max-width: 1100px !important; margin: 0 auto !important}
#head {align-items: center; flex-wrap: nowrap} #head h1 {margin: 0}
#language {flex: 0 0 auto !important; width: auto !important} #language .wrap {flex-wrap: nowrap}
#list, #question {flex: 1 1 200px !important}
.banner {border-left: 4px solid #d97706; background: #fef3c7; padding: 8px 14px !important; border-radius: 6px}
.banner, .banner * {color: #78350f !important}
.scene {flex-wrap: wrap; align-items: center; gap: 6px}
.scene > * {flex: 0 1 auto !important; width: auto !important; min-width: 0 !important}
.scene > button {max-width: 100%; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; display: block; font-weight: 400}
.gradio-container button.lg {white-space: nowrap}
#chat {height: 54vh !important; min-height: 320px}
#chat .top-panel {display: none} /* it would clear the picture and leave the conversation */
#chat small {opacity: 0.7}
#graph img {width: 100%; max-width: 1000px; margin: 0 auto}
.facts, .facts p {opacity: 0.8; font-size: var(--text-sm) !important}
.answer {min-height: 120px; padding: 12px !important; border: 1px solid var(--border-color-primary); border-radius: 8px}
footer {display: none !important}
@media (min-width: 1600px) {
  :root, .gradio-container {--text-xs: 14px !important; --text-sm: 16px !important; --text-md: 20px !important; --text-lg: 22px !important;
    --text-xl: 28px !important; --text-xxl: 34px !important; --chatbot-text-size: 22px !important}
  .gradio-container {max-width: 1640px !important}
  #chat .message {font-size: 22px !important} #chat small {font-size: 16px}
  .scene > button {font-size: 18px !important}
}
@media (max-width: 600px) {
  .gradio-container .fillable {padding: 8px 10px !important}
  .gradio-container textarea, .gradio-container input {font-size: 16px !important} /* less, and iPhones zoom in */
  #head h1 {font-size: 20px !important}
  #list, #question {flex-basis: 100% !important}
  .gradio-container button.lg {padding: 8px 10px !important; flex-grow: 1 !important}
}
"""

#: The chatbot's copy button takes what it was given to draw: this makes the text of it again, and leaves the line below out.
COPY = r"""
if (navigator.clipboard) {
  const write = navigator.clipboard.writeText.bind(navigator.clipboard);
  const plain = drawn => {
    const box = document.createElement('textarea');
    box.innerHTML = drawn.replace(/\n<small>[^\n]*<\/small>$/, '').replace(/<\/?code>/g, '`').replace(/<\/textarea/gi, '&lt;/textarea');
    return box.value.replace(/\u00a0/g, ' ');
  };
  navigator.clipboard.writeText = text =>
    write(window.event?.target?.closest?.('#chat [aria-label="Copy message"]') ? plain(text) : text);
}
"""


def look() -> dict:
    """Theme and style for `mount_gradio_app`; fonts of the system, because nothing may be fetched from other machines.

    The style stands in the head: Gradio rewrites the selectors of its option `css`, those in media queries so that they match nothing.
    The policy forbids the browser to fetch pictures and the like from elsewhere, or to send a form there, whatever an answer holds.
    """
    import gradio
    fonts = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", "sans-serif"]
    theme = gradio.themes.Soft(primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"])
    head = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><style>{CSS}</style><script>{COPY}</script>'
    return {"theme": theme, "head": head}


def word(name: str, language: str, **values) -> str:
    """A word of the page in a language, its places filled in."""
    return WORDS[name][language].format(**values) if values else WORDS[name][language]


def facts(turn: dict, language: str) -> str:
    """The line below an answer: times, speed, tokens, model (where the turn names it), how it ended."""
    first, seconds, tokens = turn["first"], turn["seconds"], turn["tokens"]
    parts = []
    if first is not None:
        speed = (tokens - 1) / max(1e-9, seconds - first) if tokens > 1 else tokens / max(1e-9, seconds)
        parts.append(word("facts", language, seconds=seconds, first=first, speed=speed, tokens=tokens))
        parts += [turn["model"]] if "model" in turn else []
    if turn["finish"] != "stop":
        parts.append(word(f"end_{turn['finish']}", language))
    if turn.get("left_out"):
        parts.append(word("left_out", language, left_out=turn["left_out"]))
    return " · ".join(parts)


def refusal(error: Exception, language: str) -> str:
    """Why something was not done, for the visitor."""
    if isinstance(error, Busy):
        return word("busy", language)
    if isinstance(error, TooLong):
        return word("too_long", language, tokens=error.tokens, limit=error.limit)
    return word("failed", language, why=error)


def failure(ticket, time_limit: float, language: str) -> str:
    """Why an answer is not whole, for the visitor; "" where it is, or was stopped. time_limit: seconds an answer may take."""
    if ticket.finish == "time":
        return word("late", language, limit=time_limit)
    return word("failed", language, why=ticket.error) if ticket.error else ""
