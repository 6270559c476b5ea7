"""THE prompt: messages -> ids, label mask, shared prefix, stop ids. Training, evaluation and serving all call this module.

Prompts are built from ids: markers by id, contents as text in which special strings are ordinary characters. A user who
types `<|user|>` therefore writes text and opens no turn, which tokenising a rendered template cannot promise.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

IGNORED = -100  # label of a position without loss, as everywhere in PyTorch


@dataclass(frozen=True)
class ChatFormat:
    """How one GLM generation writes a conversation."""
    name: str                 # also what `init_kwargs["chat_format"]` of the tokenizers this course makes says
    markers: tuple[str, ...]  # the special tokens a tokenizer of this generation has
    start: tuple[str, ...]    # the special tokens every sequence begins with
    stops: tuple[str, ...]    # any of them ends an answer
    prompt: Callable          # (tokenizer, messages, tools) -> ids, ready for the answer
    answer: Callable          # (tokenizer, text) -> ids of the answer as the model emits it, closing id included
    template: str             # the same prompt as a chat template, for tools that only know templates (vLLM, transformers)
    turns: bool = True        # markers part the turns, so that every answer of a conversation can be learnt at once


@dataclass(frozen=True)
class Sample:
    """One encoded conversation: loss on `ids[labels_from:]` only (empty for a prompt without its answer), and not in the gaps."""
    ids: list[int]
    labels_from: int
    gaps: tuple[tuple[int, int], ...] = ()  # [start, stop) of what stands between two answers that are both learnt

    @property
    def labels(self) -> list[int]:
        """One label a position: the id itself in an answer, -100 elsewhere."""
        labels = [IGNORED] * self.labels_from + self.ids[self.labels_from:]
        for start, stop in self.gaps:
            labels[start:stop] = [IGNORED] * (stop - start)
        return labels


# --- GLM-4-0414 --------------------------------------------------------------------------------------------------

CHAT_TEMPLATE = (
    "[gMASK]<sop>"
    "{%- if tools %}{{ '<|system|>\n# 可用工具\n' }}"
    "{%- for tool in tools %}{% set function = tool.get('function') or tool %}"
    "{{ '\n## ' + function.name + '\n\n' + (function | tojson(indent=4, ensure_ascii=False)) }}"
    "{{ '\n在调用上述函数时，请使用 Json 格式表示调用的参数。' }}"
    "{%- endfor %}{% endif %}"
    "{%- for message in messages if message.role == 'system' %}{{ '<|system|>\n' + message.content }}{% endfor %}"
    "{%- for message in messages if message.role != 'system' %}"
    "{{ '<|' + message.role + '|>' + message.get('metadata', '') + '\n' + message.content }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROLES = ("system", "user", "assistant", "observation")


def _glm4_prompt(tokenizer, messages: list[dict], tools: list[dict] | None) -> list[int]:
    ids = start_ids(tokenizer)
    if tools:
        ids += _markers(tokenizer, "<|system|>") + text_ids(tokenizer, "\n" + _tools_block(tools))
    ordered = [m for m in messages if m["role"] == "system"] + [m for m in messages if m["role"] != "system"]
    for message in ordered:
        content = f"{message.get('metadata', '')}\n{message['content']}"
        ids += _markers(tokenizer, f"<|{message['role']}|>") + text_ids(tokenizer, content)
    return ids + _markers(tokenizer, "<|assistant|>")


def _glm4_answer(tokenizer, text: str) -> list[int]:
    # The official training closes an answer with the marker of the turn that follows it, never with <|endoftext|>.
    return text_ids(tokenizer, "\n" + text) + _markers(tokenizer, "<|user|>")


def _tools_block(tools: list[dict]) -> str:
    text = "# 可用工具\n"
    for tool in tools:
        function = tool.get("function") or tool
        schema = json.dumps(function, indent=4, ensure_ascii=False)
        text += f"\n## {function['name']}\n\n{schema}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
    return text


# --- ChatGLM3: role ids, every part encoded by itself --------------------------------------------------------------

#: The blank before a content stands for the mark of a word's beginning that a text encoded by itself gets.
CHATGLM3_TEMPLATE = (
    "[gMASK]sop"
    "{%- if tools and messages[0].role != 'system' %}<|system|>\n {{ '\n' + (tools | tojson(indent=4, ensure_ascii=False)) }}{% endif %}"
    "{%- for message in messages %}{{ '<|' + message.role + '|>' + message.get('metadata', '') + '\n' }}"
    "{%- set content = message.content + ('\n' + (tools | tojson(indent=4, ensure_ascii=False)) "
    "if tools and loop.first and message.role == 'system' else '') %}"
    "{{- ' ' + content if content else '' }}{% endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _chatglm3_prompt(tokenizer, messages: list[dict], tools: list[dict] | None) -> list[int]:
    if tools:
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
        rest = messages[1:] if messages and messages[0]["role"] == "system" else messages
        schema = json.dumps(tools, indent=4, ensure_ascii=False)
        messages = [{"role": "system", "content": f"{system}\n{schema}"}, *rest]
    ids = start_ids(tokenizer)
    for message in messages:
        ids += _markers(tokenizer, f"<|{message['role']}|>") + text_ids(tokenizer, message.get("metadata", "") + "\n")
        ids += text_ids(tokenizer, message["content"])
    return ids + _markers(tokenizer, "<|assistant|>")


def _chatglm3_answer(tokenizer, text: str) -> list[int]:
    return text_ids(tokenizer, "\n") + text_ids(tokenizer, text) + _markers(tokenizer, "</s>")


# --- ChatGLM2 and ChatGLM-6B: rounds of plain text -----------------------------------------------------------------

def _rounds_template(start: str, line: str, first: int, bare: bool, end: str) -> str:
    """The chat template of rounds. line: what ends a line; first: number of the first round; bare: a first question stands alone."""
    question = "{%- if turn.n == 0 %}{{ turn.system }}{% endif %}{{ message.content }}"
    asked = f"[Round {{{{ turn.n + {first} }}}}]{line}问：{question}{line}答："
    if bare:
        asked = f"{{%- if turn.total == 1 %}}{question}{{% else %}}{asked}{{% endif %}}"
    return (
        start + "{%- set turn = namespace(n=0, system='', total=messages | selectattr('role', 'equalto', 'user') | list | length) %}"
        "{%- for message in messages %}"
        "{%- if message.role == 'system' %}{%- set turn.system = turn.system + message.content + '\n' %}"
        f"{{%- elif message.role == 'user' %}}{asked}"
        f"{{%- else %}}{{{{ message.content }}}}{line}{{%- set turn.n = turn.n + 1 %}}{{%- endif %}}{{%- endfor %}}" + end)


#: `{{ '\n' }}` because templates drop a newline that stands before a statement.
_NEWLINE = "{{ '\n' }}"
CHATGLM2_TEMPLATE = _rounds_template("[gMASK]sop", _NEWLINE * 2, 1, False, "")
CHATGLM_TEMPLATE = _rounds_template("", _NEWLINE, 0, True, "[gMASK]<sop>")


def _rounds(name: str, messages: list[dict], tools: list[dict] | None) -> tuple[list[tuple[str, str]], str]:
    """([(question, answer)] so far, the question to answer). These generations were trained without system prompts: ours stands before
    the first question, where all samples share it. Errors: ValueError for what the generation lacks."""
    if tools or any(message["role"] == "observation" for message in messages):
        raise ValueError(f"{name} knows no tools: leave out tools and messages with role observation")
    turns = [message for message in messages if message["role"] != "system"]
    for number, message in enumerate(turns):
        if message["role"] != ("user", "assistant")[number % 2]:
            raise ValueError(f"{name} writes rounds of one question and one answer: turn {number} is from {message['role']}, not from "
                             f"{('user', 'assistant')[number % 2]}")
    if len(turns) % 2 == 0:
        raise ValueError(f"{name} answers a question: the last message must come from the user")
    texts = [message["content"] for message in turns]
    texts[0] = "".join(f"{message['content']}\n" for message in messages if message["role"] == "system") + texts[0]
    return list(zip(texts[::2], texts[1::2])), texts[-1]


def _chatglm2_prompt(tokenizer, messages: list[dict], tools: list[dict] | None) -> list[int]:
    history, query = _rounds("ChatGLM2", messages, tools)
    text = "".join(f"[Round {number}]\n\n问：{question}\n\n答：{answer}\n\n" for number, (question, answer) in enumerate(history, 1))
    text += f"[Round {len(history) + 1}]\n\n问：{query}\n\n答："
    return start_ids(tokenizer) + text_ids(tokenizer, text)


def _chatglm2_answer(tokenizer, text: str) -> list[int]:
    return text_ids(tokenizer, text) + _markers(tokenizer, "</s>")


def _chatglm_prompt(tokenizer, messages: list[dict], tools: list[dict] | None) -> list[int]:
    # the prompt ends with the two markers: all of it is read both ways
    history, query = _rounds("ChatGLM-6B", messages, tools)
    text = "".join(f"[Round {number}]\n问：{question}\n答：{answer}\n" for number, (question, answer) in enumerate(history))
    text += f"[Round {len(history)}]\n问：{query}\n答：" if history else query
    return text_ids(tokenizer, text) + start_ids(tokenizer)


def _chatglm_answer(tokenizer, text: str) -> list[int]:
    return text_ids(tokenizer, text) + _markers(tokenizer, "<eop>")


# --- which one -----------------------------------------------------------------------------------------------------

FORMATS = (
    ChatFormat("glm4", ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
               ("[gMASK]", "<sop>"), ("<|endoftext|>", "<|user|>", "<|observation|>"), _glm4_prompt, _glm4_answer, CHAT_TEMPLATE),
    ChatFormat("chatglm3", ("[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
               ("[gMASK]", "sop"), ("</s>", "<|user|>", "<|observation|>"), _chatglm3_prompt, _chatglm3_answer,
               CHATGLM3_TEMPLATE),
    ChatFormat("chatglm2", ("[gMASK]", "sop", "eop"), ("[gMASK]", "sop"), ("</s>",), _chatglm2_prompt, _chatglm2_answer, CHATGLM2_TEMPLATE,
               turns=False),
    ChatFormat("chatglm", ("[gMASK]", "<sop>", "<eop>"), ("[gMASK]", "<sop>"), ("<eop>",), _chatglm_prompt, _chatglm_answer, CHATGLM_TEMPLATE,
               turns=False),
)


def format_of(tokenizer) -> ChatFormat:
    """The chat format of a tokenizer: the one it names, or chosen by its special tokens. Errors: ValueError if none is known."""
    named = getattr(tokenizer, "init_kwargs", {}).get("chat_format")
    if named in (chat_format.name for chat_format in FORMATS):
        return next(chat_format for chat_format in FORMATS if chat_format.name == named)
    special = tokenizer.get_added_vocab()
    for chat_format in FORMATS:
        if all(marker in special for marker in chat_format.markers):
            return chat_format
    raise ValueError(f"no chat format fits the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}: known are "
                     f"{', '.join(f.name for f in FORMATS)}; its special tokens are {', '.join(special) or 'none'}")


def _markers(tokenizer, *names: str) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(names))


def text_ids(tokenizer, text: str) -> list[int]:
    """The ids of text in which special strings are ordinary characters."""
    return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)


# --- messages -> ids ---------------------------------------------------------------------------------------------

def start_ids(tokenizer) -> list[int]:
    """The ids every sequence begins with."""
    return _markers(tokenizer, *format_of(tokenizer).start)


def end_id(tokenizer) -> int:
    """The id that ends a text which is no conversation."""
    return _markers(tokenizer, format_of(tokenizer).stops[0])[0]


def stop_ids(tokenizer) -> set[int]:
    """The ids that end an answer."""
    return set(_markers(tokenizer, *format_of(tokenizer).stops))


def prompt_ids(tokenizer, messages: list[dict], tools: list[dict] | None = None) -> list[int]:
    """The ids of a conversation up to and including the marker that asks for the answer.

    messages: [{"role": system|user|assistant|observation, "content": str, "metadata": optional str}].
    Errors: ValueError that names the message with an unknown role or without text.
    """
    for number, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise ValueError(f"message {number}: role {message.get('role')!r}; choose one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise ValueError(f"message {number} ({message['role']}): content must be text, not {type(message.get('content')).__name__}")
    return format_of(tokenizer).prompt(tokenizer, messages, tools)


def answer_ids(tokenizer, text: str) -> list[int]:
    """The ids the model must emit for an answer: what stands between marker and text, the text, the closing stop id."""
    return format_of(tokenizer).answer(tokenizer, text)


def encode_sample(tokenizer, messages: list[dict], every_answer: bool = False) -> Sample:
    """A training sample: prompt and answer, where messages[-1] is the assistant's answer.

    every_answer: the assistant's earlier answers are learnt too, each with the marker of the turn that follows it (which is how the
    model stops in the middle of a conversation). ChatGLM2 and ChatGLM-6B write history as plain text: there, make one sample an answer.
    Errors: ValueError if the last message is no answer, or for every_answer with a generation that has no markers between turns.
    """
    if not messages or messages[-1].get("role") != "assistant":
        raise ValueError("a training sample must end with an assistant message: the answer to learn")
    prompt = prompt_ids(tokenizer, messages[:-1])
    ids = prompt + answer_ids(tokenizer, messages[-1]["content"])
    if not every_answer:
        return Sample(ids, len(prompt))
    if not format_of(tokenizer).turns:
        raise ValueError(f"{format_of(tokenizer).name} writes earlier answers as plain text; make one sample an answer instead")
    # what stands before an answer ends with the assistant's marker, what stands after it begins with the next turn's, which is learnt too
    starts = [len(prompt_ids(tokenizer, messages[:place])) for place, message in enumerate(messages) if message["role"] == "assistant"]
    stops = [len(prompt_ids(tokenizer, messages[:place + 1])) for place, message in enumerate(messages[:-1]) if message["role"] == "assistant"]
    return Sample(ids, starts[0], tuple(zip(stops, starts[1:])))


def encode(tokenizer, messages: list[dict]) -> Sample:
    """A training sample if the messages end with an answer, else a prompt (a Sample without labels)."""
    if messages and messages[-1].get("role") == "assistant":
        return encode_sample(tokenizer, messages)
    ids = prompt_ids(tokenizer, messages)
    return Sample(ids, len(ids))


def fit(tokenizer, make_messages: Callable[[str], list[dict]], text: str, max_length: int, shorten: Callable,
        reserve: int = 0) -> tuple[Sample, int]:
    """Encode `make_messages(text)` within max_length tokens, shortening the text only: `(sample, amount cut)`.

    shorten(text, fits) -> (text, amount cut) is the task's own; the head of the prompt, the answer and the stop id stay whole.
    reserve: tokens kept free for an answer that is not in the messages. Errors: ValueError if nothing shorter fits.
    """
    def encoded(candidate: str) -> Sample:
        return encode(tokenizer, make_messages(candidate))

    def fits(candidate: str) -> bool:
        return len(encoded(candidate).ids) + reserve <= max_length

    sample = encoded(text)
    if len(sample.ids) + reserve <= max_length:
        return sample, 0
    bare = len(encoded("").ids) + reserve
    if bare >= max_length:
        raise ValueError(f"max_length={max_length} leaves no room for the text: prompt head and answer alone take {bare} tokens; "
                         "raise max_length")
    text, cut = shorten(text, fits)
    sample = encoded(text)
    if len(sample.ids) + reserve > max_length:
        raise ValueError(f"a text could not be shortened to max_length={max_length}: still {len(sample.ids) + reserve} tokens; raise max_length")
    return sample, cut


# --- what samples share, and how one looks -----------------------------------------------------------------------

def two_way(tokenizer) -> tuple[int, int] | None:
    """The ids of [gMASK] and <sop> for ChatGLM-6B, which reads all before <sop> both ways; None for the causal generations."""
    return tuple(start_ids(tokenizer)) if format_of(tokenizer).name == "chatglm" else None


def shared_prefix(samples: list, tokenizer=None) -> int:
    """How many first tokens all samples (or lists of prompt ids) have in common, before the last token of any prompt.

    That last token stays out because its output predicts the first label, which belongs to one sample. Given a tokenizer of
    ChatGLM-6B: 0, for there the first tokens have seen the rest of their prompt, and no two samples share a state.
    """
    if tokenizer is not None and two_way(tokenizer):
        return 0
    first, same, shortest = [], 0, 0
    for number, sample in enumerate(samples):  # one at a time: they may be on disk
        row = sample.ids[: sample.labels_from] if isinstance(sample, Sample) else sample
        if not number:
            first, same, shortest = row, len(row), len(row)
        if row[:same] != first[:same]:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, row)))
        shortest = min(shortest, len(row))
    return max(0, min(same, shortest - 1))


def decoded(tokenizer, sample: Sample) -> str:
    """One sample as text, with the part without loss marked."""
    prompt, answer = sample.ids[: sample.labels_from], sample.ids[sample.labels_from:]
    return (f"--- no loss: {len(prompt)} tokens ---\n{tokenizer.decode(prompt)}\n"
            f"--- loss: {len(answer)} tokens ---\n{tokenizer.decode(answer)}")
