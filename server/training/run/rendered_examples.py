"""Shows the examples of a line, token by token, exactly as they are trained on."""

import codecs
from collections.abc import Mapping, Sequence

from server.bases.tokenizer import ChatTokenizer
from server.jobs.files.rendered_example import RenderedExample, RenderedToken
from server.training.run.examples import LineEncoder


def rendered(encoder: LineEncoder, record: Mapping[str, object]) -> list[RenderedExample]:
    """The examples of a line that was checked. Raises InvalidRequest, as `LineEncoder.examples`."""
    found = []
    for example in encoder.examples(record):
        texts = _texts(encoder.tokenizer, example.tokens)
        special = encoder.tokenizer.special_ids
        tokens = [
            RenderedToken(token_id, text, token_id in special, counts)
            for token_id, text, counts in zip(example.tokens, texts, example.counts, strict=True)
        ]
        found.append(RenderedExample(tuple(tokens)))
    return found


def _texts(tokenizer: ChatTokenizer, tokens: Sequence[int]) -> list[str]:
    """The text of each token. A character of several tokens belongs to the last of them."""
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = [utf8.decode(tokenizer.token_bytes(token_id)) for token_id in tokens]
    texts[-1] += utf8.decode(b"", final=True)
    return texts
