"""What is known of a node, as conditions, from what witnesses say of it.

What it decides: for each question about a node whether it is true, false or unknown, since when, why and by
whose word.
Why: lists, probes, balancers, the journal and notices disagree, and each of them may be old. Were every
policy to weigh them by itself, they would come to different ends. So what is seen is read here and nowhere
else, by one table of who may testify to what (`policies.evidence.conditions.TESTIMONY`).
Never: what is not known is "no". A balancer's acknowledgement may be forgotten; a set whose answer was lost
may have landed; what an earlier daemon wrote may land after its death, until this one's first set was taken;
a look at an engine that failed is no silence; and the journal may be lost or old, so that a node that was
never seen to be ready may have served for hours. A node is unreachable only if every witness that may tell
finds it silent.

Example:
    >>> from policies.memory import Memory
    >>> from policies.model import EngineReading, Observed, Pool, World
    >>> world = World(now=100.0, regions={}, engines={
    ...     "a": EngineReading(node="a", at=99.0, ready=False, ok=False, failing_since=90.0)})
    >>> evidence = Evidence(Pool(name="p", replicas=1), world, Memory())
    >>> evidence.reachable("a").fails(9.0), evidence.reachable("b").open
    (True, True)
"""

from policies.evidence import sources as sources
from policies.evidence.balancers import Balancer as Balancer
from policies.evidence.balancers import Routing as Routing
from policies.evidence.conditions import CONFIRMED as CONFIRMED
from policies.evidence.conditions import TESTIMONY as TESTIMONY
from policies.evidence.conditions import Condition as Condition
from policies.evidence.conditions import Question as Question
from policies.evidence.conditions import Status as Status
from policies.evidence.conditions import Witness as Witness
from policies.evidence.conditions import says as says
from policies.evidence.evidence import STOPPED as STOPPED
from policies.evidence.evidence import Evidence as Evidence
from policies.evidence.evidence import ours as ours
from policies.evidence.sources import Part as Part
