"""A node of Google Cloud proves which machine it is, end to end, and nothing else is a proof."""

from __future__ import annotations

import asyncio
import ssl
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from google.auth import crypt, jwt

from cloud.cloud_init.user_data import NodeSetup, written
from cloud.errors import CloudError, Denied
from cloud.gcp.identity import MachineIdentity
from cloud.node_agent import node_key
from cloud.node_gcp import CHALLENGE, PROOF, Gce, Signer
from cloud.node_metadata import Refused
from cloud.ports import EngineCommand
from tests.support.node_bench import SECRET, Served, make_certificate

ACCOUNT = "node@ml-serving.iam.gserviceaccount.com"
ON_GOOGLE = {"ORCHESTRATOR_CLOUD": "gcp", "PATH": "/usr/bin:/bin"}
NODE = "so-llama-0123456789abcdef0123"


class Google:
    """The metadata server of one machine, and Google's certificates, on one port."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "google")])
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        pem = made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
        self.certificates = {"k": pem}
        self.machine = {"project_id": "ml-serving", "zone": "us-central1-a", "instance_name": NODE}
        self.claims: dict = {"iss": "https://accounts.google.com", "email": ACCOUNT}
        self.has_account = True
        google = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, text = google.answer(self.path, self.headers.get("Metadata-Flavor") == "Google")
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_args) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, flavoured: bool) -> tuple[int, str]:
        parts = urlsplit(path)
        if parts.path == "/certs":
            return 200, orjson.dumps(self.certificates).decode()
        if not flavoured:
            return 403, "Missing Metadata-Flavor:Google header."
        documents = {
            "name": NODE,
            "machine-type": "projects/123456789012/machineTypes/g2-standard-4",
            "network-interfaces/0/ip": "10.128.0.7",
        }
        asked = parts.path.removeprefix("/computeMetadata/v1/instance/")
        if asked == "service-accounts/default/identity" and self.has_account:
            return 200, self.token(parse_qs(parts.query)["audience"][0])
        return (200, documents[asked]) if asked in documents else (404, "not found")

    def token(self, audience: str, key=None, **claims) -> str:
        now = int(time.time())
        body = {"aud": audience, "iat": now, "exp": now + 3600, "google": {"compute_engine": self.machine}}
        pem = (key or self.key).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        return jwt.encode(crypt.RSASigner.from_string(pem, "k"), body | self.claims | claims).decode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def signed():
    google = Google()
    yield google
    google.close()


@pytest.fixture
def google(signed):
    machine, claims = dict(signed.machine), dict(signed.claims)
    yield signed
    signed.machine, signed.claims, signed.has_account = machine, claims, True


def judge(google, account: str = ACCOUNT) -> MachineIdentity:
    return MachineIdentity(project="ml-serving", account=account, certificates=f"{google.url}/certs")


async def test_a_token_for_this_challenge_names_its_machine(google) -> None:
    assert await judge(google)({PROOF: google.token("orchestrator/c-1")}, "c-1") == NODE
    assert await judge(google)({PROOF.lower(): google.token("orchestrator/c-1")}, "c-1") == NODE


@pytest.mark.parametrize(
    ("claims", "machine", "why"),
    [
        ({"iss": "https://evil.example"}, {}, "not by Google"),
        ({"email": "other@ml-serving.iam.gserviceaccount.com"}, {}, "not the nodes'"),
        ({"exp": 1, "iat": 0}, {}, "expired"),
        ({"google": None}, {}, "a token of no machine"),
        ({}, {"project_id": "another"}, "not the pool's"),
        ({}, {"instance_name": ""}, "a token of no machine"),
    ],
)
async def test_what_is_no_proof(google, claims, machine, why) -> None:
    google.machine = google.machine | machine
    with pytest.raises(Denied, match=why):
        await judge(google)({PROOF: google.token("orchestrator/c-1", **claims)}, "c-1")


async def test_a_token_for_another_challenge_or_by_another_key_is_no_proof(google) -> None:
    with pytest.raises(Denied, match="audience"):
        await judge(google)({PROOF: google.token("orchestrator/c-2")}, "c-1")
    other = rsa.generate_private_key(65537, 2048)
    with pytest.raises(Denied, match="no proof"):
        await judge(google)({PROOF: google.token("orchestrator/c-1", key=other)}, "c-1")
    for text in ("", "x", "a.b.c", "x" * 9000):
        with pytest.raises(Denied):
            await judge(google)({PROOF: text}, "c-1")


async def test_certificates_that_cannot_be_read_judge_nobody(google) -> None:
    lost = MachineIdentity(project="ml-serving", certificates="http://127.0.0.1:1/certs")
    with pytest.raises(CloudError, match="cannot be read") as failed:
        await lost({PROOF: google.token("orchestrator/c-1")}, "c-1")
    assert not isinstance(failed.value, Denied)


def test_the_metadata_that_a_start_asks_for(google) -> None:
    metadata = Gce(google.url)
    assert metadata.get("meta-data/instance-id") == NODE
    assert metadata.get("meta-data/instance-type") == "g2-standard-4"
    assert metadata.get("meta-data/local-ipv4") == "10.128.0.7"
    assert metadata.get("meta-data/iam/security-credentials/") is None
    google.has_account = False
    with pytest.raises(Refused, match=r"set cloud\.gcp\.service_account"):
        Signer(metadata).signed("sts", "", {CHALLENGE: "c-1"})


def programs(folder: Path) -> tuple[str, ...]:
    """How Python runs what the startup script brings, with the names that it has there."""
    command = EngineCommand(argv=("vllm",))
    made = written(NodeSetup(pool="pool", cloud="gcp", command=command, port=8000, report_url="https://c:1"))
    for path, text in made.items():
        file = folder / path.removeprefix("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return ("env", f"PYTHONPATH={folder}/opt/orchestrator", sys.executable, "-S")


@pytest.mark.slow
async def test_a_node_fetches_its_key_end_to_end(google, tmp_path) -> None:
    certificate, key = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    control = Served(identify=judge(google))
    await control.open(tls=tls)
    command = [
        *programs(tmp_path),
        *("-m", "cloud.node_start", "--imds", google.url, "key", "--url", control.url),
        *("--ca-file", str(certificate), "--key-file", str(tmp_path / "key")),
        *("--agent", str(tmp_path / "agent.py")),
    ]
    try:
        done = await asyncio.create_subprocess_exec(*command, env=ON_GOOGLE, stderr=asyncio.subprocess.PIPE)
        _, said = await done.communicate()
        assert done.returncode == 0, said
        assert (tmp_path / "key").read_text().strip() == node_key(SECRET, NODE).hex()
        compile((tmp_path / "agent.py").read_text(), "agent.py", "exec")
        google.machine = google.machine | {"instance_name": "so-llama-another"}
        again = await asyncio.create_subprocess_exec(*command, env=ON_GOOGLE, stderr=asyncio.subprocess.PIPE)
        _, said = await again.communicate()
        assert again.returncode == 1
        assert b"not proved to be this node" in said
    finally:
        await control.close()


@pytest.mark.slow
async def test_an_engine_is_started_with_the_machines_address(google, tmp_path) -> None:
    described = {
        "argv": [sys.executable, "-c", "import sys; print(*sys.argv[1:])", "{host}", "{port}", "--large"],
        "on": {
            "g2-standard-4": {
                "argv": [sys.executable, "-c", "import sys; print(*sys.argv[1:])", "{host}", "{port}"],
                "gpus": 0,
            }
        },
        "env": {},
        "secrets": {},
        "port": 8000,
        "weights": "",
        "needs": {},
        "container": None,
    }
    (tmp_path / "engine.json").write_bytes(orjson.dumps(described))
    done = await asyncio.create_subprocess_exec(
        *programs(tmp_path),
        *("-m", "cloud.node_start", "--imds", google.url, "engine"),
        *(str(tmp_path / "engine.json"), "--report", str(tmp_path / "boot.json")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"HOME": str(tmp_path)} | ON_GOOGLE,
    )
    out, said = await done.communicate()
    assert out.decode().split() == ["10.128.0.7", "8000"], said
