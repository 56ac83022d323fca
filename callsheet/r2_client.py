"""Who we are to Cloudflare R2 (or any S3), the process's client for it, and what its refusals mean.

    settings = R2Settings.from_environment("r2://media/callsheet")
    client = client_of(settings)

The client's settings are those that R2 needs (facts, section 7): boto3's newer checksum headers are
off, because some of R2's paths reject them, and addresses have the bucket in the path.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
from pydantic import SecretStr

from callsheet.errors import BadInput
from callsheet.timing import scaled

#: How often a request is sent, with pauses that grow to 20 s; who has more patience asks again (`StoreFault.may_pass`).
ATTEMPTS = 8
#: Places that a bucket may be bound to; none for most.
JURISDICTIONS = ("", "eu", "fedramp")
#: Answers to whoever the store does not know, or not any more.
_REFUSED = (
    "AccessDenied", "ExpiredRequest", "ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Unauthorized",
)  # fmt: skip
_SKEWED = ("RequestTimeTooSkewed", "RequestExpired")
#: Answers that another try may well not get.
_BUSY = ("ClientDisconnect", "IncompleteBody", "RequestTimeout", "SlowDown", "TooManyRequests")


@dataclass(frozen=True)
class R2Settings:
    """Where the bucket is and who we are.

    Attributes:
        endpoint: address of the S3 API, such as https://ACCOUNT.r2.cloudflarestorage.com.
        prefix: folder within the bucket, without a slash at either end; may be empty.
        public_url: address under which the bucket is published; empty for presigned addresses.
    """

    endpoint: str
    bucket: str
    access_key_id: str
    secret_access_key: SecretStr
    prefix: str = ""
    public_url: str = ""
    threads: int = 16

    @classmethod
    def from_environment(cls, setting: str) -> R2Settings:
        """From ``r2://BUCKET/PREFIX`` and R2_ACCOUNT_ID or R2_ENDPOINT_URL, R2_ACCESS_KEY_ID, R2_SECRET_ACCESS_KEY.

        R2_JURISDICTION (eu, fedramp) and R2_PUBLIC_URL are optional.

        Raises:
            BadInput: naming what is missing.
        """
        bucket, _, prefix = setting.removeprefix("r2://").partition("/")
        account, endpoint = os.environ.get("R2_ACCOUNT_ID", ""), os.environ.get("R2_ENDPOINT_URL", "")
        key, secret = os.environ.get("R2_ACCESS_KEY_ID", ""), os.environ.get("R2_SECRET_ACCESS_KEY", "")
        wanted = {"a bucket's name": bucket, "R2_ACCOUNT_ID or R2_ENDPOINT_URL": account or endpoint}
        wanted |= {"R2_ACCESS_KEY_ID": key, "R2_SECRET_ACCESS_KEY": secret}
        if missing := [name for name, value in wanted.items() if not value]:
            raise BadInput(
                f'store "{setting}": found no {", no ".join(missing)}; expected r2://BUCKET/PREFIX and these in the environment'
            )
        return cls(
            endpoint=endpoint or endpoint_of(account, os.environ.get("R2_JURISDICTION", "")),
            bucket=bucket,
            access_key_id=key,
            secret_access_key=SecretStr(secret),
            prefix=prefix.strip("/"),
            public_url=os.environ.get("R2_PUBLIC_URL", ""),
        )


def endpoint_of(account: str, jurisdiction: str = "") -> str:
    """The address of an account's buckets; those of a jurisdiction have one of their own, which sees no others.

    Raises:
        BadInput: there is no such jurisdiction.
    """
    if jurisdiction not in JURISDICTIONS:
        raise BadInput(
            f'R2 jurisdiction: found "{jurisdiction}"; expected one of {", ".join(filter(None, JURISDICTIONS))}, or none'
        )
    place = f".{jurisdiction}" if jurisdiction else ""
    return f"https://{account}{place}.r2.cloudflarestorage.com"


_clients: dict[tuple[object, ...], Any] = {}
_making_clients = threading.Lock()


def client_of(settings: R2Settings) -> Any:
    """The process's one client for these keys at this address: its connections and its pace are shared by all threads."""
    secret = settings.secret_access_key.get_secret_value()
    known = (settings.endpoint, settings.access_key_id, secret, settings.threads, scaled(1.0))
    with _making_clients:  # boto3's clients may be shared between threads, but not made in several at once
        if known not in _clients:
            _clients[known] = boto3.client(
                "s3",
                endpoint_url=settings.endpoint,
                region_name="auto",
                aws_access_key_id=settings.access_key_id,
                aws_secret_access_key=secret,
                config=botocore.config.Config(
                    signature_version="s3v4",
                    # Over https no body is signed that has a Content-MD5; without this each would be hashed once more over http.
                    s3={"addressing_style": "path"}
                    | ({"payload_signing_enabled": False} if settings.endpoint.startswith("http://") else {}),
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    retries={"max_attempts": ATTEMPTS, "mode": "adaptive"},
                    connect_timeout=scaled(10),
                    read_timeout=scaled(60),
                    # What is asked for is ours, not a person's: looking it over took a tenth of the time of a small file.
                    parameter_validation=False,
                    max_pool_connections=2 * settings.threads,
                ),
            )
        return _clients[known]


def may_pass(error: botocore.exceptions.ClientError) -> bool:
    """Whether the same request may well get through later."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 or status == 429 or error.response.get("Error", {}).get("Code", "") in _BUSY


def refusal(error: botocore.exceptions.ClientError, settings: R2Settings) -> str:
    """What to do where the store refuses us, whatever is asked; empty where it is another fault."""
    code = error.response.get("Error", {}).get("Code", "")
    meta = error.response.get("ResponseMetadata", {})
    if code in _SKEWED:
        theirs = meta.get("HTTPHeaders", {}).get("date", "")
        return f"this machine's clock says {formatdate(usegmt=True)} and the store's {theirs or 'another time'}; set it and run again"
    if code in _REFUSED or meta.get("HTTPStatusCode") in (401, 403):
        return (
            f"the store does not accept the keys it was given (access key id {settings.access_key_id[:4]}…): they "
            "have expired, were revoked, or have no right to this; give it others and run again, what is done is kept"
        )
    if code == "NoSuchBucket":
        return "there is no such bucket; expected one of this account's, and R2_JURISDICTION where it has one"
    return ""
