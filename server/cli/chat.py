"""`verandah chat`: a conversation in the terminal. Knows no model, only a server."""

import argparse
import sys
from string import whitespace  # ASCII's alone: other spaces are part of a text

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from clients.python import ApiError, Client
from server.cli.options import add_fields, add_server, connect, read_fields
from server.control_characters import visible_lines

EXAMPLES = """examples:
  verandah chat                                    talks to the base model
  verandah chat --model pirate                     talks to an adapter's latest version
  verandah chat --model pirate@2 "Who are you?"    asks once
  echo "Who are you?" | verandah chat --model pirate

In a conversation, /model NAME changes the model, /new starts again and Ctrl-D ends it.
"""


class ChatFields(BaseSettings):
    """The options of `verandah chat`."""

    model_config = SettingsConfigDict(env_prefix="VERANDAH_CHAT_", frozen=True, extra="forbid")

    model: str | None = Field(
        None, description="the base model or an adapter; default: the base model"
    )
    system: str | None = Field(None, description="a system message at the start")
    temperature: float | None = Field(None, description="0: always the most likely token")
    max_tokens: int | None = Field(None, description="largest number of tokens of an answer")
    seed: int | None = Field(None, description="makes answers repeatable")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", nargs="?", help="ask this and end")
    add_fields(parser, ChatFields, "conversation", example="max_tokens")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    fields = read_fields(options, ChatFields)
    with connect(options) as client:
        talk = Conversation(client, fields)
        if options.message is not None:
            talk.ask(options.message)
        elif sys.stdin.isatty():
            talk.loop()
        else:
            talk.ask(sys.stdin.read().strip(whitespace))
    return 0


class Conversation:
    """The messages so far, and the model that answers."""

    def __init__(self, client: Client, fields: ChatFields) -> None:
        self._client = client
        self._model = fields.model or client.models()[0]
        self._system = fields.system
        self._sampling = fields.model_dump(exclude={"model", "system"}, exclude_none=True)
        self._start()

    def loop(self) -> None:
        """Read lines and answer them until the input ends."""
        print(f"Talking to {self._model}. /model NAME, /new, Ctrl-D to end.")
        while (line := _read_line()) is not None:
            command, _, rest = line.partition(" ")
            if command == "/model":
                self._model = rest.strip() or self._model
                print(f"Talking to {self._model}.")
            elif command == "/new":
                self._start()
            elif line:
                self._ask_on(line)

    def ask(self, text: str) -> None:
        """Print the answer as it comes. Keeps both messages once it is complete."""
        self._messages.append({"role": "user", "content": text})
        pieces = []
        try:
            for piece in self._client.chat(self._model, self._messages, **self._sampling):
                pieces.append(piece)
                print(visible_lines(piece), end="", flush=True)
        except BaseException:
            self._messages.pop()
            raise
        finally:
            print()
        self._messages.append({"role": "assistant", "content": "".join(pieces)})

    def _ask_on(self, text: str) -> None:
        """`ask`, where an error of the server or Ctrl-C ends only this answer."""
        try:
            self.ask(text)
        except ApiError as error:
            print(f"({error})")
        except KeyboardInterrupt:
            print("(stopped)")

    def _start(self) -> None:
        self._messages: list[dict[str, str]] = []
        if self._system:
            self._messages.append({"role": "system", "content": self._system})


def _read_line() -> str | None:
    try:
        return input("> ").strip(whitespace)
    except (EOFError, KeyboardInterrupt):
        print()
        return None
