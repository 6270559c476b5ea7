"""The service dialogues: the same under a seed, well formed, varied, and true to what the customer told."""

import itertools
import random
import re
import time

import pytest

from glmlab.tiny import service
from glmlab.tiny.corpus import plain_text

COUNT = 3000


@pytest.fixture(scope="module")
def texts_and_documents():
    documents = list(itertools.islice(service.documents(random.Random(7)), COUNT))
    return [plain_text(document) for document in documents], documents


def test_same_seed_same_documents():
    first, again = (list(itertools.islice(service.documents(random.Random(3)), 200)) for _ in range(2))
    assert first == again
    assert first != list(itertools.islice(service.documents(random.Random(4)), 200))


def test_conversations_alternate_and_end_with_the_assistant(texts_and_documents):
    chats = [document for document in texts_and_documents[1] if not isinstance(document, str)]
    assert 0.74 < len(chats) / COUNT < 0.86
    for chat in chats:
        roles = [message["role"] for message in chat]
        turns = roles[roles[0] == "system":]
        assert turns == ["user", "assistant"] * (len(turns) // 2) and turns
        assert all(message["content"].strip() for message in chat)


def test_no_unfilled_marks_and_few_repeats(texts_and_documents):
    texts = texts_and_documents[0]
    assert [text for text in texts if re.search(r"[{}\[\]|~]|=>", text)] == []
    assert len(set(texts)) >= 2500


def test_bank_is_complete():
    for scene in service.SCENES:
        matters = service.bank()["matters"][scene]
        assert len(matters) >= 25
        for matter in matters:
            assert len(matter["ask"]) >= 6 and len(matter["more"]) >= 2, matter["name"]
            assert sum(line[0] != "~" for line in matter["do"]) >= 3, matter["name"]
            assert all(service.allowed(matter[part], set()) for part in ("open", "end")), matter["name"]


def test_every_matter_occurs(texts_and_documents):
    joined = "\n".join(texts_and_documents[0])
    for scene in service.SCENES:
        assert [matter["name"] for matter in service.bank()["matters"][scene] if matter["name"] not in joined] == []


def test_answers_write_only_numbers_the_customer_told(texts_and_documents):
    """Long numbers (orders, parcels) in an answer stand in a user turn before it."""
    found = 0
    for document in texts_and_documents[1]:
        heard = ""
        for message in document if not isinstance(document, str) else []:
            if message["role"] == "assistant":
                numbers = re.findall(r"\d{8,}", message["content"])
                assert all(number in heard for number in numbers), document
                found += len(numbers)
            heard += message["content"]
    assert found > 100


def test_speed():
    service.bank()
    start = time.process_time()
    list(itertools.islice(service.documents(random.Random(1)), COUNT))
    assert COUNT / (time.process_time() - start) >= 1500
