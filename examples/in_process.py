"""Asks the base model and the adapters in HOME, without a server.

.venv/bin/verandah demo --home ./demo              # trains three adapters into ./demo
.venv/bin/python examples/in_process.py ./demo
"""

import sys

from server.wiring.llm import LLM

question = [{"role": "user", "content": "How do I plant a tree?"}]
with LLM(home=sys.argv[1] if len(sys.argv) > 1 else None) as llm:
    for adapter in (None, *llm.adapters):
        print(f"{adapter or 'base'}: ", end="")
        for text in llm.stream(question, adapter, temperature=0, max_tokens=60):
            print(text, end="", flush=True)
        print()
