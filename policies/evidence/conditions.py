"""What may be known of a node, and which witness may say so.

A `Condition` answers one `Question` about a node: true, false or unknown, since when, why, and by whom. Every
answer is made of words that witnesses were last heard to say, by one table, `TESTIMONY`. A word that has no
entry for a question says nothing of it: a target that drains does not show whether its node answers, a look
at an engine from before this daemon woke up shows nothing, a target that a balancer finds healthy is reached
and has not been seen to make a token.

What is not known is never "no". Who asks decides what unknown counts as: see `policies.disruption`.

Example:
    >>> [str(says(Witness.BALANCER, TargetState.HEALTHY, q)) for q in (Question.REACHABLE, Question.HEARD)]
    ['true', 'unknown']
    >>> [str(says(Witness.BALANCER, TargetState.DRAINING, q)) for q in (Question.REACHABLE, Question.ROUTED)]
    ['unknown', 'false']
"""

from __future__ import annotations

from collections.abc import Mapping

from policies.model import Confidence, InstanceState, TargetPhase, TargetState, Word
from policies.value import value


class Status(Word):
    """What is known of a question."""

    TRUE = "true"
    FALSE = "false"
    UNKNOWN = "unknown"


class Question(Word):
    """What may be asked about a node."""

    EXISTS = "exists"  # is there such a machine
    HEARD = "heard"  # does its engine answer this daemon's probes
    REACHABLE = "reachable"  # does it answer anybody: this daemon, or a balancer
    ROUTED = "routed"  # does a balancer send it new requests
    HOLDS_REQUESTS = "holds-requests"  # has it requests that are not answered yet
    NOTICED = "noticed"  # does the cloud take it away, as far as that is believed
    OURS = "ours"  # did a daemon of this pool launch it


class Witness(Word):
    """Who can be heard about a node."""

    LIST = "list"  # of machines, as the cloud tells it
    PROBE = "probe"  # this daemon's looks at an engine
    BALANCER = "balancer"  # what it shows, what it acknowledged, what is being written to it
    JOURNAL = "journal"  # what this daemon, or one before it, did and heard
    CLOUD = "cloud"  # its own notices
    AGENT = "agent"  # reports of nodes, which can be forged
    NOBODY = "nobody"


class Look(Word):
    """How the last look at an engine went."""

    ANSWERED = "answered"
    FAILED = "failed"
    OLD = "old"  # before this daemon woke up


_T, _F = Status.TRUE, Status.FALSE

TESTIMONY: Mapping[Witness, Mapping[Word, Mapping[Question, Status]]] = {
    Witness.LIST: {
        InstanceState.PENDING: {Question.EXISTS: _T},
        InstanceState.RUNNING: {Question.EXISTS: _T},
        InstanceState.STOPPING: {Question.EXISTS: _T},
        InstanceState.STOPPED: {Question.EXISTS: _T, Question.HOLDS_REQUESTS: _F},
        InstanceState.SHUTTING_DOWN: {Question.EXISTS: _T},
        InstanceState.TERMINATED: {Question.EXISTS: _F, Question.HOLDS_REQUESTS: _F},
    },
    Witness.PROBE: {
        Look.ANSWERED: {Question.EXISTS: _T, Question.HEARD: _T, Question.REACHABLE: _T},
        Look.FAILED: {Question.HEARD: _F, Question.REACHABLE: _F},
        Look.OLD: {},
    },
    Witness.BALANCER: {
        TargetState.HEALTHY: {Question.EXISTS: _T, Question.REACHABLE: _T, Question.ROUTED: _T},
        TargetState.INITIAL: {Question.ROUTED: _T},
        TargetState.UNHEALTHY: {Question.REACHABLE: _F, Question.ROUTED: _T},
        TargetState.DRAINING: {Question.ROUTED: _F},
        TargetState.UNUSED: {Question.ROUTED: _F},
    },
    Witness.JOURNAL: {
        TargetPhase.ACTIVE: {Question.ROUTED: _T},
        TargetPhase.DRAINING: {Question.ROUTED: _F},
    },
    Witness.CLOUD: {Confidence.CONFIRMED: {Question.NOTICED: _T}},
    Witness.AGENT: {Confidence.REPORTED: {Question.NOTICED: _T}},
}
"""By witness and by its word, what that says of each question. What it does not name it leaves unknown."""


def says(witness: Witness, word: Word, question: Question) -> Status:
    """What a word of a witness says of a question."""
    return TESTIMONY[witness][word].get(question, Status.UNKNOWN)


def words(witness: Witness, question: Question, status: Status) -> frozenset[Word]:
    """The words by which a witness says that."""
    return frozenset(word for word, said in TESTIMONY[witness].items() if said.get(question) is status)


CONFIRMED = words(Witness.CLOUD, Question.NOTICED, Status.TRUE)
"""How far a notice must be believed to be the cloud's own."""


@value
class Condition:
    """What is known of one question about one node.

    `since`: when that began, None where it is not known. `lasted`: seconds for which its witnesses have seen
    it hold without a gap: to their last look, not to now. `witness`: whose word it is.
    """

    status: Status
    since: float | None = None
    lasted: float = 0.0
    reason: str = ""
    witness: Witness = Witness.NOBODY

    @property
    def holds(self) -> bool:
        """It is known to be so."""
        return self.status is Status.TRUE

    @property
    def known(self) -> bool:
        """A witness says so or says otherwise."""
        return self.status is not Status.UNKNOWN

    @property
    def open(self) -> bool:
        """It may be so: it is not known to be otherwise."""
        return self.status is not Status.FALSE

    def fails(self, seconds: float = 0.0) -> bool:
        """It is known not to be so, and was seen not to be for so long."""
        return self.status is Status.FALSE and self.lasted >= seconds
