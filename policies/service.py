"""How a balancer serves clients, as one look at it shows."""

from __future__ import annotations

from policies.value import value


@value
class ShownCertificate:
    """The certificate that clients are shown: when it expires, in seconds since the epoch, and why a newer
    one that is there is not shown, empty where none is.
    """

    expires: float
    fault: str = ""


@value
class Service:
    """How a balancer serves clients, as of its last look.

    `in_path`: what answers our looks also carries the requests, as the gateway does: while it is silent
    nobody is served. An API that describes a balancer may be silent while that serves on. `unread_after`:
    seconds without an answer after which what it holds is not known. `bare_since`: when the unbroken run of
    looks began that show no usable target. `refuses`: why clients do not get in although it answers us, empty
    where they do or where it cannot tell. Of its last seconds: requests `answered`, and those that `failed`,
    were refused or cut. `held`: requests that its targets work on now. `certificate`: None for plain HTTP,
    and where it cannot tell.
    """

    in_path: bool = False
    unread_after: float = 6.0
    bare_since: float | None = None
    refuses: str = ""
    answered: int = 0
    failed: int = 0
    held: int = 0
    certificate: ShownCertificate | None = None
