"""STS as it is and moto is not: a signature is looked at before it is answered who signed."""

from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from moto.sts.models import sts_backends
from state import ACCOUNT, Fault


def assumed_role(key):
    """The role whose credentials AssumeRole gave out under this access key, None for any other key."""
    roles = (role for backend in sts_backends[ACCOUNT].values() for role in backend.assumed_roles)
    return next((role for role in roles if role.access_key_id == key), None)


def forged(environ, body):
    """The refusal of a GetCallerIdentity that the holder of its key did not sign, None for a good one.

    Only of keys that AssumeRole gave out; the fixed key of the tests signs what it likes.
    """
    scheme, _, rest = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    given = dict(part.strip().split("=", 1) for part in rest.split(",") if "=" in part)
    key, _, region, service, _ = given.get("Credential", "////").split("/")
    role = assumed_role(key)
    if scheme != "AWS4-HMAC-SHA256" or service != "sts" or role is None:
        return None
    names = given["SignedHeaders"].split(";")
    headers = {
        name: environ.get(
            "CONTENT_TYPE" if name == "content-type" else f"HTTP_{name.upper().replace('-', '_')}", ""
        )
        for name in names
    }
    request = AWSRequest("POST", f"http://{urlsplit('//' + headers.pop('host')).netloc}/", headers, body)
    request.context["timestamp"] = headers["x-amz-date"]
    auth = SigV4Auth(Credentials(key, role.secret_access_key, role.session_token), service, region)
    text = auth.string_to_sign(request, auth.canonical_request(request))
    if (
        auth.signature(text, request) == given["Signature"]
        and headers["x-amz-security-token"] == role.session_token
    ):
        return None
    return Fault(
        action="GetCallerIdentity",
        kind="error",
        code="SignatureDoesNotMatch",
        status=403,
        message="The request signature we calculated does not match the signature you provided.",
    )
