"""A byte-level BPE of the GLM-4 kind for the tiny bases: GLM-4's split pattern and special tokens, our own vocabulary."""

from itertools import islice

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

#: GLM-4's order (ids 151329 to 151342 there, the last ids here). Source: facts on the GLM-4 tokenizer, public tokenizer_config.json.
SPECIAL_TOKENS = (
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
)
#: The split pattern GLM-4 shares with the cl100k family of tokenizers.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
#: Two Chinese characters. Calls have no punctuation: without a limit whole stock phrases would become one token
#: and a phrase never seen would be cut quite differently from its neighbours.
LONGEST_TOKEN_BYTES = 6


def train_tokenizer(texts, vocab_size: int):
    """A `PreTrainedTokenizerFast` of `vocab_size` ids, the special tokens last, trained on an iterable of str."""
    from transformers import PreTrainedTokenizerFast

    from glmlab.chat import CHAT_TEMPLATE

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), max_token_length=LONGEST_TOKEN_BYTES,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="left",
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token != "<|endoftext|>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def corpus_sample(seed: int, documents: int, mix: dict[str, float]):
    """The words of the first `documents` documents of the corpus, for `train_tokenizer`, and the prompts of the course's tasks.

    The prompts teach the tokenizer to write them short; the model never reads them in pre-training.
    """
    from glmlab.tasks import intent
    from glmlab.tiny import corpus
    yield from [intent.SYSTEM_PROMPT, *intent.ANSWERS] * 100
    yield from (corpus.plain_text(document) for _, document in islice(corpus.documents(seed, mix), documents))
