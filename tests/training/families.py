"""Chat templates in the manner of well-known families, and small tokenizers that carry them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.bases.tokenizer import ChatTokenizer

_ASK = "{% if add_generation_prompt %}ASKED{% endif %}"


@dataclass(frozen=True)
class Family:
    """A template, and how its tokenizer ends texts.

    `ends` is what closes a learnt answer. `base_eos` are the tokens that the base's files name.
    `begins` is what the template writes between the prompt and an answer.
    """

    template: str
    ends: str
    special: Sequence[str] = ()
    eos: str = "</s>"
    base_eos: Sequence[str] = ("</s>",)
    begins: str = ""
    added: Sequence[str] = ()
    warned: bool = False


def turns(user: str, answer: str, ask: str = "", begin: str = "", system: str = "") -> str:
    """A template of what is written for each role. CONTENT stands for the message's text."""

    def said(text: str) -> str:
        return text.replace("CONTENT", "{{ m['content'] }}")

    system = system or user
    return (
        begin + "{% for m in messages %}"
        "{% if m['role'] == 'assistant' %}" + said(answer) + "{% elif m['role'] == 'system' %}"
        f"{said(system)}"
        "{% else %}" + said(user) + "{% endif %}{% endfor %}" + _ASK.replace("ASKED", ask)
    )


def _chatml(end: str = "<|im_end|>", ask: str = "", answer: str = "") -> str:
    return turns(
        "<|im_start|>user\n{{ m['content'] }}" + end + "\n",
        answer or "<|im_start|>assistant\n{{ m['content'] }}" + end + "\n",
        "<|im_start|>assistant\n" + ask,
        system="<|im_start|>system\n{{ m['content'] }}" + end + "\n",
    )


_IM = ("<|im_start|>", "<|im_end|>")
_HEADS = ("<|head|>", "<|/head|>", "<|eot|>", "<|end_of_text|>")
_THOUGHT = "{{ m['content'].split('</think>')[-1] }}"
_PLAIN_ASK = "### Response:\n"

FAMILIES = {
    # The base's files name the end of a text, and the template closes turns with another token.
    "headers": Family(
        turns(
            "<|head|>user<|/head|>\n\n{{ m['content'] | trim }}<|eot|>",
            "<|head|>assistant<|/head|>\n\n{{ m['content'] | trim }}<|eot|>",
            "<|head|>assistant<|/head|>\n\n",
            "{{ bos_token }}",
        ),
        "<|eot|>",
        _HEADS,
        "<|end_of_text|>",
        ("<|end_of_text|>",),
    ),
    "chatml, the base ends with another": Family(_chatml(), "<|im_end|>", _IM),
    "chatml, a system turn is added": Family(
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
        + _chatml(),
        "<|im_end|>",
        _IM,
        "<|im_end|>",
        (),
    ),
    "chatml, the end is no special token": Family(
        _chatml(), "<|im_end|>", ("<|im_start|>",), added=("<|im_end|>",)
    ),
    "chatml as plain text": Family(_chatml(), "</s>", warned=True),
    "chatml, the mark takes in a line break": Family(
        _chatml(
            answer="<|im_start|>assistant\n{% generation %}{{ m['content'] }}<|im_end|>\n"
            "{% endgeneration %}"
        ),
        "<|im_end|>",
        _IM,
    ),
    "chatml, the mark ends before the end": Family(
        _chatml(
            answer="<|im_start|>assistant\n{% generation %}{{ m['content'] }}{% endgeneration %}"
            "<|im_end|>\n"
        ),
        "<|im_end|>",
        _IM,
    ),
    "chatml, the prompt begins a thought": Family(_chatml(ask="<think>\n"), "<|im_end|>", _IM),
    "chatml, the prompt has an empty thought": Family(
        _chatml(ask="<think>\n\n</think>\n\n"), "<|im_end|>", _IM
    ),
    "chatml, only the last turn shows a thought": Family(
        _chatml(
            answer="<|im_start|>assistant\n{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
            "{{ m['content'] }}<|im_end|>\n"
        ),
        "<|im_end|>",
        _IM,
        begins="<think>\n\n</think>\n\n",
    ),
    "roles as tokens": Family(
        turns("<|user|>\nCONTENT<|end|>\n", "<|bot|>\nCONTENT<|end|>\n", "<|bot|>\n"),
        "<|end|>",
        ("<|user|>", "<|bot|>", "<|end|>", "<|endoftext|>"),
        "<|endoftext|>",
        ("<|endoftext|>", "<|end|>"),
    ),
    "turns, no system": Family(
        turns(
            "<turn>user\n{{ m['content'] | trim }}</turn>\n",
            "<turn>model\n{{ m['content'] | trim }}</turn>\n",
            "<turn>model\n",
            "{{ bos_token }}",
            system="{{ raise_exception('no system role') }}",
        ),
        "</turn>",
        ("<turn>", "</turn>"),
        base_eos=("</s>", "</turn>"),
    ),
    "instructions in brackets": Family(
        turns("[INST] CONTENT [/INST]", " CONTENT</s>", begin="{{ bos_token }}"),
        "</s>",
        begins=" ",
    ),
    "instructions in brackets, trimmed": Family(
        turns("[INST] CONTENT [/INST]", " {{ m['content'] | trim }} </s>{{ bos_token }}"),
        " </s>",
        begins=" ",
    ),
    "names, eos, line break": Family(
        turns("<|user|>\nCONTENT</s>\n", "<|assistant|>\nCONTENT</s>\n", "<|assistant|>\n"),
        "</s>",
    ),
    "capitals": Family(
        turns("USER: CONTENT ", "ASSISTANT: CONTENT</s>", "ASSISTANT:"), "</s>", begins=" "
    ),
    "headings without an end": Family(
        turns("### Instruction:\nCONTENT\n\n", f"{_PLAIN_ASK}CONTENT\n\n", _PLAIN_ASK),
        "</s>",
        warned=True,
    ),
    "headings, and line breaks are an added token": Family(
        turns("### Instruction:\nCONTENT\n\n", f"{_PLAIN_ASK}CONTENT\n\n\n", _PLAIN_ASK),
        "</s>",
        added=("\n\n\n",),
        warned=True,
    ),
    "nothing behind an answer": Family(
        turns("\nUser: CONTENT\n", "Bot: CONTENT", "Bot: "), "</s>", warned=True
    ),
    "the next role's words": Family(
        turns("CONTENT\nBot: ", "CONTENT\nUser: ", begin="User: "), "</s>", warned=True
    ),
    "the next role's token, behind all but the last": Family(
        turns("<|user|>\nCONTENT", "<|bot|>\nCONTENT", "<|bot|>\n"),
        "</s>",
        ("<|user|>", "<|bot|>"),
        warned=True,
    ),
    "an end behind all but the last": Family(
        turns(
            "<|im_start|>user\nCONTENT<|im_end|>",
            "<|im_start|>assistant\nCONTENT{% if not loop.last %}<|im_end|>{% endif %}",
            "<|im_start|>assistant\n",
        ),
        "</s>",
        _IM,
        warned=True,
    ),
    "a thought is begun, and hidden later": Family(
        turns("<|user|>CONTENT", f"<|bot|>{_THOUGHT}</s>", "<|bot|><think>\n", "{{ bos_token }}"),
        "</s>",
        ("<|user|>", "<|bot|>"),
    ),
    "no template": Family("", "</s>"),
}


def byte_level(family: Family) -> ChatTokenizer:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: index for index, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _finished(backend, family)


def byte_fallback(family: Family) -> ChatTokenizer:
    """Spaces as ▁, one put in front, as SentencePiece does; some pairs of characters are tokens."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    merges = [("▁", "H"), ("▁", "B"), ("e", "l"), ("l", "o"), (":", "▁"), ("\n", "H")]
    letters = sorted({char for pair in merges for char in pair if char != "▁"})
    vocab = {piece: index for index, piece in enumerate([*pieces, *letters])}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return _finished(backend, family)


def _finished(backend: Tokenizer, family: Family) -> ChatTokenizer:
    backend.add_special_tokens(["<s>", *dict.fromkeys([family.eos, *family.special])])
    backend.add_tokens([AddedToken(text, normalized=False) for text in family.added])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=family.eos
    )
    tokenizer.chat_template = family.template or None
    return ChatTokenizer(tokenizer, name="small")
