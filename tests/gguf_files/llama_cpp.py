"""llama.cpp itself, to compare with: its tokens and its logits.

It runs in a process of its own, which is killed at the end: its server's end may wait for ever for
a thread of its own.
"""

import json
import subprocess
import sys
import urllib.request
import weakref
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

ANSWER_S = 60


class LlamaCpp:
    """A GGUF file as llama.cpp runs it, on one core and in float32."""

    def __init__(self, path: Path, context: int = 256) -> None:
        command = [sys.executable, "-P", __file__, str(path), str(context)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        weakref.finalize(self, _end, child)
        assert child.stdout is not None
        self._address = child.stdout.readline().strip()
        assert self._address.startswith("http://"), f"llama.cpp did not start on {path}"

    def tokens(self, text: str, *, add_special: bool = False) -> list[int]:
        sent = {"content": text, "add_special": add_special, "parse_special": True}
        found: list[int] = self._post("/tokenize", sent)["tokens"]
        return found

    def text(self, tokens: Sequence[int]) -> str:
        found: str = self._post("/detokenize", {"tokens": list(tokens)})["content"]
        return found

    def logprobs(self, prompt: Sequence[int], vocab_size: int) -> np.ndarray[Any, Any]:
        """Log-probabilities of the token behind a prompt, in order of the ids."""
        sent: dict[str, Any] = {"prompt": list(prompt), "n_predict": 1, "n_probs": vocab_size}
        # It tells nothing of a token that is a part of a character: a letter is forced. The
        # log-probabilities are those before that.
        sent |= {"logit_bias": [[self.tokens("a")[-1], 1000]], "temperature": 0}
        answer = self._post("/v1/completions", {**sent, "cache_prompt": False})
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = np.full(vocab_size, -np.inf)
        for entry in listed:
            found[entry["id"]] = entry["logprob"]
        return found

    def _post(self, path: str, sent: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self._address + path, json.dumps(sent).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            return json.load(answer)


def _end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    child.communicate()


def _serve(path: str, context: int) -> None:
    """Run a server until the input ends, and print its address."""
    xllamacpp: Any = import_module("xllamacpp")  # its modules state no types
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = context
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.warmup = False
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = -1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
