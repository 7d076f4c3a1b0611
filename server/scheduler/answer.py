"""One answer under way: its sequence, its text and its listener. Knows no tensors."""

from dataclasses import dataclass, field

from adapters_store.manifest import AdapterRef
from server.engine.sequence import FinishReason, Sequence, StepOutput, TokenLogprob
from server.scheduler.request import (
    Generation,
    Listener,
    PlainToken,
    TextDelta,
    TokenPiece,
    TokenSink,
)
from server.scheduler.stop_strings import AnswerText
from server.scheduler.timing import AnswerTimes


@dataclass(eq=False)
class Answer:
    """One of the `n` answers of a request, from submission to its last update."""

    request: Generation
    index: int
    arrival: int
    sequence: Sequence
    text: AnswerText
    listener: Listener
    token_sink: TokenSink
    times: AnswerTimes
    holds_slot: bool = False
    no_slot_since: float | None = None  # its adapter is loaded, but every slot is in use
    counted: float = 0.0  # of what it was served, by `Turns`
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs_sent: bool = False

    @property
    def owner(self) -> str:
        return self.request.owner

    @property
    def weight(self) -> float:
        return self.request.weight

    @property
    def adapter(self) -> AdapterRef | None:
        return self.request.adapter

    def take(self, output: StepOutput) -> TextDelta | PlainToken | None:
        """Add a step's output to the answer; returns the update for the listener, if there is one.

        Sets `sequence.finish` when the answer is complete.
        """
        if output.prompt_logprobs:
            self.prompt_logprobs.extend(output.prompt_logprobs)
        token_id = output.token_id
        if token_id is None:
            return None
        if self.request.params.max_tokens == 0:
            self.sequence.finish = FinishReason.LENGTH
            return self._delta()
        return self._append(token_id, output.logprob)

    def _append(self, token_id: int, logprob: TokenLogprob | None) -> TextDelta | PlainToken:
        """Most tokens are plain: those take as few calls as possible."""
        params, sequence = self.request.params, self.sequence
        output = sequence.output
        output.append(token_id)
        may_end = len(output) > params.min_tokens
        if may_end and token_id in sequence.ends:
            sequence.finish = FinishReason.STOP
            piece = self.text.decode(token_id) if params.include_stop else ""
            last = self.text.finish(piece, token_id)
            reason = token_id if token_id in params.stop_token_ids else last.stop
            token = TokenPiece(token_id, piece, logprob)
            return self._delta(last.text, (token,), stop_reason=reason)
        piece = text = self.text.decode(token_id)
        stop: str | None = None
        if self.text.stops:
            text, stop = self.text.show(piece, token_id, may_end=may_end)
        if stop is not None:
            sequence.finish = FinishReason.STOP
        elif len(output) >= params.max_tokens:
            last = self.text.finish(may_end=may_end)
            text, stop = text + last.text, last.stop
            # What was held back may be the end of a stop string, which counts as ever.
            sequence.finish = FinishReason.LENGTH if stop is None else FinishReason.STOP
        elif (
            logprob is None and text == piece and not params.prompt_logprobs and len(output) > 1
        ):  # the first token is not plain: see `Listener.hear`
            return token_id, text
        return self._delta(text, (TokenPiece(token_id, piece, logprob),), stop_reason=stop)

    def _delta(
        self,
        text: str = "",
        tokens: tuple[TokenPiece, ...] = (),
        *,
        stop_reason: str | int | None = None,
    ) -> TextDelta:
        prompt_logprobs = None
        if self.request.params.prompt_logprobs and not self.prompt_logprobs_sent:
            prompt_logprobs = (None, *self.prompt_logprobs)
            self.prompt_logprobs_sent = True
        finish = self.sequence.finish
        cached = 0 if finish is None else self.sequence.num_reused
        return TextDelta(self.index, text, tokens, prompt_logprobs, finish, stop_reason, cached)
