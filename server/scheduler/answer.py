"""One answer under way: its sequence, its text, what its listener was told. Knows no tensors."""

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
    """One of the `n` answers of a request, from submission to its last delta."""

    request: Generation
    index: int
    arrival: int
    sequence: Sequence
    text: AnswerText
    listener: Listener
    taker: TokenSink
    times: AnswerTimes
    holds_slot: bool = False
    crowded_out_at: float | None = None  # since when its adapter is loaded but finds no slot
    preempted: bool = False
    scored: list[TokenLogprob] = field(default_factory=list)
    scores_told: bool = False

    @property
    def owner(self) -> str:
        return self.request.owner

    @property
    def adapter(self) -> AdapterRef | None:
        return self.request.adapter

    def take(self, output: StepOutput, eos: frozenset[int]) -> TextDelta | PlainToken | None:
        """Take in what a step gave; the news for the listener, or None if there is none yet.

        Sets `sequence.finish` when the answer is complete.
        """
        if output.prompt_logprobs:
            self.scored.extend(output.prompt_logprobs)
        token_id = output.token_id
        if token_id is None:
            return None
        if self.request.params.max_tokens == 0:
            self.sequence.finish = FinishReason.LENGTH
            return self._delta()
        return self._append(token_id, output.logprob, eos)

    def _append(
        self, token_id: int, logprob: TokenLogprob | None, eos: frozenset[int]
    ) -> TextDelta | PlainToken:
        """Most tokens are neither the last nor asked about: those take as few calls as may be."""
        params, sequence = self.request.params, self.sequence
        sequence.output.append(token_id)
        ends = token_id in params.stop_token_ids
        if ends or (token_id in eos and not params.ignore_eos):
            sequence.finish = FinishReason.STOP
            token = TokenPiece(token_id, "", logprob)
            return self._delta(
                self.text.finish().text, (token,), stop_reason=token_id if ends else None
            )
        piece = text = self.text.decode(token_id)
        stop: str | None = None
        if self.text.stops:
            text, stop = self.text.show(piece)
        if stop is not None:
            sequence.finish = FinishReason.STOP
        elif len(sequence.output) >= params.max_tokens:
            sequence.finish = FinishReason.LENGTH
            last = self.text.finish()
            text, stop = text + last.text, last.stop
        elif logprob is None and text == piece and not params.prompt_logprobs:
            return token_id, text
        return self._delta(text, (TokenPiece(token_id, piece, logprob),), stop_reason=stop)

    def _delta(
        self,
        text: str = "",
        tokens: tuple[TokenPiece, ...] = (),
        *,
        stop_reason: str | int | None = None,
    ) -> TextDelta:
        scores = None
        if self.request.params.prompt_logprobs and not self.scores_told:
            scores = (None, *self.scored)
            self.scores_told = True
        finish = self.sequence.finish
        cached = 0 if finish is None else self.sequence.num_reused
        return TextDelta(self.index, text, tokens, scores, finish, stop_reason, cached)
