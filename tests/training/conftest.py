"""Fixtures of the tests of training."""

import pytest

from server.bases.tokenizer import ChatTokenizer
from tests.training.chats import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> ChatTokenizer:
    return byte_tokenizer()
