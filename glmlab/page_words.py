"""Every word of the web page in Chinese and English, and how it looks."""

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
    "sentence": ("一段文本", "A text"), "extract": ("抽取", "Extract"), "triples": ("主体 · 关系 · 客体", "Head · relation · tail"),
    "graph": ("图", "Graph"), "nothing": ("没有读出三元组", "No triple could be read"),
    "facts": ("用时 {seconds:.1f} 秒 · 首字 {first:.2f} 秒 · {speed:.1f} 词元/秒 · {tokens} 词元 · {model}",
              "{seconds:.1f} s · first token {first:.2f} s · {speed:.1f} tokens/s · {tokens} tokens · {model}"),
    "end_length": ("到长度上限为止", "cut at the length limit"), "end_time": ("到时间上限为止", "cut at the time limit"),
    "end_cancelled": ("已停止", "stopped"), "end_error": ("出错", "failed"), "end_refused": ("没有回答", "refused"),
    "left_out": ("太长：最早的 {left_out} 轮没有读", "too long: the first {left_out} rounds were left out"),
}.items()}

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


def look() -> dict:
    """Theme and style for `mount_gradio_app`; fonts of the system, because nothing may be fetched from other machines.

    The style stands in the head: Gradio rewrites the selectors of its option `css`, those in media queries so that they match nothing.
    """
    import gradio
    fonts = ["system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", "sans-serif"]
    theme = gradio.themes.Soft(primary_hue="indigo", font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"])
    return {"theme": theme, "head": f"<style>{CSS}</style>"}


def word(name: str, language: str, **values) -> str:
    """A word of the page in a language, its places filled in."""
    return WORDS[name][language].format(**values) if values else WORDS[name][language]


def facts(turn: dict, language: str) -> str:
    """The line below an answer: times, speed, tokens, how it ended."""
    first, seconds, tokens = turn["first"], turn["seconds"], turn["tokens"]
    parts = []
    if first is not None:
        speed = (tokens - 1) / max(1e-9, seconds - first) if tokens > 1 else tokens / max(1e-9, seconds)
        parts.append(word("facts", language, seconds=seconds, first=first, speed=speed, tokens=tokens, model=turn["model"]))
    if turn["finish"] != "stop":
        parts.append(word(f"end_{turn['finish']}", language))
    if turn["left_out"]:
        parts.append(word("left_out", language, left_out=turn["left_out"]))
    return " · ".join(parts)
