"""Small vocabularies of ChatGLM-6B's and ChatGLM3's kind for the tiny bases: their build and special tokens, our own pieces.

The pieces come from the BPE trainer of `tokenizers`, also for the unigram vocabulary: its unigram trainer gives another vocabulary at
every call. Scores of the unigram pieces are then counted, as SentencePiece counts them.
"""

import math
from collections import Counter

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from glmlab.chatglm.vocab import (BPE, BYTE, CONTROL, GLM_ROLES, GLM_SPECIALS, NORMAL, SPACE, UNKNOWN, USER_DEFINED, V1_SPECIALS,
                                  V1_SYMBOLS, SentencePiece, build_glm, build_v1, v1_normalizer)
from glmlab.tiny.tokenizer import LONGEST_TOKEN_BYTES

BYTES = tuple((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))
#: Where pieces end: at symbols and control characters, in front of a space, at every digit and where the script changes.
WORDS = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex("<n>|<\\|(?:tab|blank_\\d+)\\|>|[\\x00-\\x1f]"), "removed"),
    pre_tokenizers.Split(SPACE, "merged_with_next"), pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.UnicodeScripts()])
COVERAGE = 0.9995  # of the characters of the texts; rarer ones are written in bytes


def tiny_v1_tokenizer(texts, vocab_size: int):
    """A tokenizer of ChatGLM-6B's kind with `vocab_size` ids in all, trained on an iterable of str; the same texts give the same ids.

    Ids: <unk> <s> </s> <pad> <n>, pieces, then the special tokens, symbols for white space and bytes in ChatGLM-6B's order.
    Errors: ValueError if vocab_size leaves no room for pieces, or the texts are too few to fill it.
    """
    head = (("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<pad>", 0.0, CONTROL), ("<n>", 0.0, USER_DEFINED))
    blanks = reversed([symbol for symbol in V1_SYMBOLS.values() if symbol.startswith("<|blank")])
    tail = (*((name, 0.0, CONTROL) for name in V1_SPECIALS), *((name, 0.0, USER_DEFINED) for name in ("<|tab|>", *blanks)), *BYTES)

    normalizer = v1_normalizer(b"", dummy_prefix=True)
    texts = [normalizer.normalize_str(text) for text in texts]
    pieces = _pieces(texts, vocab_size - len(head) - len(tail))
    scores = dict.fromkeys(pieces, -1.0)  # the first cut takes as few pieces as it can
    for _ in range(3):
        unigram = Tokenizer(models.Unigram([("<unk>", 0.0), *scores.items()], unk_id=0))
        unigram.pre_tokenizer = WORDS
        counts = Counter(token for encoding in unigram.encode_batch(texts) for token in encoding.tokens)
        total = sum(counts[text] + 0.5 for text in pieces)
        scores = {text: math.log((counts[text] + 0.5) / total) for text in pieces}
    learned = sorted(((text, score, NORMAL) for text, score in scores.items()), key=lambda piece: (-piece[1], piece[0]))
    return build_v1(SentencePiece((*head, *learned, *tail), byte_fallback=True))


def tiny_glm_tokenizer(texts, vocab_size: int, roles: bool = True):
    """A tokenizer of ChatGLM3's kind (roles=False: ChatGLM2's) with `vocab_size` ids in all, trained on an iterable of str.

    Ids: <unk> <s> </s>, bytes, pieces, then the special tokens in ChatGLM3's order. Errors as in `tiny_v1_tokenizer`.
    """
    head = (("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), *BYTES)
    specials = len(GLM_SPECIALS) + (len(GLM_ROLES) if roles else 0)
    pieces = _pieces([SPACE + text.replace(" ", SPACE) for text in texts], vocab_size - len(head) - specials)
    learned = tuple((text, -float(rank), NORMAL) for rank, text in enumerate(pieces))
    return build_glm(SentencePiece((*head, *learned), BPE, byte_fallback=True, normalizer="identity", collapse_spaces=False), roles)


def _pieces(texts: list[str], count: int) -> list[str]:
    """`count` pieces of normalised texts: what BPE joins first, then the single characters, at most half of them."""
    if count < 2:
        raise ValueError(f"vocab_size is {2 - count} too small: it must hold the special tokens, 256 bytes and some pieces")
    alphabet = _alphabet(texts)[:count // 2]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = WORDS
    # Long pieces are learnt too and left out: the whole stock phrases of calls would fill the vocabulary.
    learner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=len(alphabet) + 8 * count, initial_alphabet=alphabet, limit_alphabet=len(alphabet), show_progress=False,
        max_token_length=LONGEST_TOKEN_BYTES + 1))
    ranks = learner.get_vocab()
    joined = [text for text in sorted(ranks, key=ranks.get) if len(text) > 1 and text not in GLM_SPECIALS
              and len(text.replace(SPACE, "").encode()) <= LONGEST_TOKEN_BYTES]
    wanted = count - len(alphabet)
    if len(joined) < wanted:
        raise ValueError(f"the texts give only {len(joined) + len(alphabet)} pieces, {wanted - len(joined)} too few: take more texts or "
                         "a smaller vocab_size")
    return joined[:wanted] + alphabet


def _alphabet(texts: list[str]) -> list[str]:
    """Single characters worth a piece: the space, the frequent ones, and all of ASCII, which users type."""
    seen = Counter(character for text in texts for character in text if character.isprintable() and character != SPACE)
    frequent, covered = [SPACE], 0
    for character, times in sorted(seen.items(), key=lambda item: (-item[1], item[0])):
        if covered >= COVERAGE * seen.total():
            break
        frequent.append(character)
        covered += times
    return list(dict.fromkeys(frequent + [chr(code) for code in range(0x21, 0x7F)]))
