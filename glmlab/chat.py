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
    name: str
    markers: tuple[str, ...]  # the special tokens a tokenizer of this generation has
    start: tuple[str, ...]    # the special tokens every sequence begins with
    stops: tuple[str, ...]    # any of them ends an answer
    prompt: Callable          # (tokenizer, messages, tools) -> ids, ready for the answer
    answer: Callable          # (tokenizer, text) -> ids of the answer as the model emits it, closing id included


@dataclass(frozen=True)
class Sample:
    """One encoded conversation: loss on `ids[labels_from:]` only (empty for a prompt without its answer)."""
    ids: list[int]
    labels_from: int

    @property
    def labels(self) -> list[int]:
        """One label a position: the id itself in the answer, -100 before it."""
        return [IGNORED] * self.labels_from + self.ids[self.labels_from:]


# --- GLM-4-0414 --------------------------------------------------------------------------------------------------

#: The same structure as a chat template, kept in the tokenizer's files for tools that only know templates (vLLM, transformers).
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


FORMATS = (
    ChatFormat("glm4", ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"),
               ("[gMASK]", "<sop>"), ("<|endoftext|>", "<|user|>", "<|observation|>"), _glm4_prompt, _glm4_answer),
)


def format_of(tokenizer) -> ChatFormat:
    """The chat format of a tokenizer, chosen by the special tokens it has. Errors: ValueError if it has none we know."""
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


def encode_sample(tokenizer, messages: list[dict]) -> Sample:
    """A training sample: prompt and answer, where messages[-1] is the assistant's answer. Errors: ValueError if it is not."""
    if not messages or messages[-1].get("role") != "assistant":
        raise ValueError("a training sample must end with an assistant message: the answer to learn")
    prompt = prompt_ids(tokenizer, messages[:-1])
    return Sample(prompt + answer_ids(tokenizer, messages[-1]["content"]), len(prompt))


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

def shared_prefix(samples: list) -> int:
    """How many first tokens all samples (or lists of prompt ids) have in common, before the last token of any prompt.

    That last token stays out because its output predicts the first label, which belongs to one sample.
    """
    rows = [s.ids[: s.labels_from] if isinstance(s, Sample) else s for s in samples]
    if not rows:
        return 0
    low, high = min(rows), max(rows)  # lexicographic extremes: what they share, all share
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(low, high)))
    return max(0, min(same, min(map(len, rows)) - 1))


def decoded(tokenizer, sample: Sample) -> str:
    """One sample as text, with the part without loss marked."""
    prompt, answer = sample.ids[: sample.labels_from], sample.ids[sample.labels_from:]
    return (f"--- no loss: {len(prompt)} tokens ---\n{tokenizer.decode(prompt)}\n"
            f"--- loss: {len(answer)} tokens ---\n{tokenizer.decode(answer)}")
