"""`verandah chat`: a conversation in the terminal. Knows no model, only a server."""

import argparse
import re
import sys
from string import whitespace  # ASCII's alone: other spaces are part of a text

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from clients.python import ApiError, Client
from server.cli.arguments.options import add_fields, read_fields
from server.cli.arguments.server_address import add_server, connect
from server.config import BadOption
from server.control_characters import visible_lines

EXAMPLES = """examples:
  verandah chat                                    talks to the base model
  verandah chat --model pirate                     talks to an adapter's latest version
  verandah chat --model pirate@2 "Who are you?"    asks once
  echo "Who are you?" | verandah chat --model pirate

In a conversation, /help lists the commands, and Ctrl-D ends it.
"""

_HELP = """/model NAME  talk to another model
/models      list the models
/new         start again
/help        list these commands
/quit        end; so does Ctrl-D
Ctrl-C stops an answer."""
_COMMAND = re.compile(r"/[a-z]+")


class ChatFields(BaseSettings):
    """The options of `verandah chat`."""

    model_config = SettingsConfigDict(
        env_prefix="VERANDAH_CHAT_", frozen=True, extra="forbid", allow_inf_nan=False
    )

    model: str | None = Field(
        None, description="the base model or an adapter; default: the base model"
    )
    system: str | None = Field(None, description="a system message at the start")
    temperature: float | None = Field(None, description="0: always the most likely token")
    max_tokens: int | None = Field(None, description="largest number of tokens of an answer")
    seed: int | None = Field(None, description="makes answers repeatable")


FIELDS = ChatFields


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] [MESSAGE]"
    parser.add_argument("message", nargs="?", help="ask this and end")
    add_fields(parser, ChatFields, "conversation", example="max_tokens")
    add_server(parser)


def run(options: argparse.Namespace) -> int:
    fields = read_fields(options, ChatFields)
    with connect(options) as client:
        talk = Conversation(client, fields)
        if options.message is None and sys.stdin.isatty():
            talk.loop()
            return 0
        message = sys.stdin.read().strip(whitespace) if options.message is None else options.message
        if not message:
            raise BadOption("there is no question: write it behind the options, or into a pipe")
        talk.ask(message)
    return 0


class Conversation:
    """The messages so far, and the model that answers.

    Raises:
        ApiError: the server has no such model.
    """

    def __init__(self, client: Client, fields: ChatFields) -> None:
        self._client = client
        self._model = fields.model or client.models()[0]
        client.model(self._model)
        self._system = fields.system
        self._sampling = fields.model_dump(exclude={"model", "system"}, exclude_none=True)
        self._start()

    def loop(self) -> None:
        """Read lines and answer them until the input ends."""
        print(f"Talking to {self._model}. /help lists the commands, Ctrl-D ends.")
        while (line := _read_line()) not in (None, "/quit", "/exit"):
            word, _, rest = line.partition(" ")
            try:
                if _COMMAND.fullmatch(word):
                    self._command(word, rest.strip())
                elif line:
                    self.ask(line)
            except ApiError as error:  # the conversation goes on
                print(f"({error})")
            except KeyboardInterrupt:
                print("(stopped)")

    def _command(self, word: str, name: str) -> None:
        if word == "/models":
            print("\n".join(self._client.models()))
        elif word == "/model" and name:
            self._client.model(name)
            self._model = name
            print(f"Talking to {name}.")
        elif word == "/model":
            print(f"Talking to {self._model}. /model NAME changes that, /models lists the names.")
        elif word == "/new":
            self._start()
            print("A new conversation.")
        else:
            print(_HELP if word == "/help" else f"There is no {word}.\n{_HELP}")

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
