"""What boto3 raises: repeated where that may help, else one plain sentence that shows no value of a credential."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential
from urllib3.exceptions import HTTPError

from fusion_core.errors import StoreError, first_line

UNKNOWN_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed", "InvalidToken"}
# Answers and accidents after which the same request may succeed; botocore has repeated the request itself already,
# except where the connection broke in the middle of a body, or two conditional writes met.
TRANSIENT_CODES = {"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "Throttling", "BadDigest"}
TRANSIENT_CODES |= {"ConditionalRequestConflict", "OperationAborted", "NoSuchUpload", "500", "502", "503", "504"}
TRANSIENT_ERRORS = (
    ConnectionClosedError,
    HTTPError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    RetriesExceededError,
)

Result = TypeVar("Result")


def error_code(error: BaseException) -> str:
    """Return the code of S3's answer, such as 'NoSuchKey'; empty when the server gave none."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def is_missing(error: BaseException) -> bool:
    """Say whether S3 answered that there is no such object."""
    return error_code(error) in ("NoSuchKey", "404", "NotFound")


def is_taken(error: BaseException) -> bool:
    """Say whether a conditional write found the key taken."""
    return error_code(error) in ("PreconditionFailed", "412")


def is_transient(error: BaseException) -> bool:
    """Say whether repeating the whole operation may help."""
    return isinstance(error, TRANSIENT_ERRORS) or error_code(error) in TRANSIENT_CODES


def is_unreachable(error: BaseException) -> bool:
    """Say whether no server answered; it may only be starting again."""
    return isinstance(error, (EndpointConnectionError, ConnectTimeoutError))


def repeated(operation: Callable[[], Result]) -> Result:
    """Do an operation, and do it again a few times where that may help."""
    attempts = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_after_attempt(4),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        reraise=True,
    )
    return attempts(operation)


@contextmanager
def s3_errors(action: str, bucket: str, endpoint: str) -> Iterator[None]:
    """Turn what boto3 raises while `action` is going on into a `StoreError` that says what to change."""
    try:
        yield
    except (BotoCoreError, ClientError, HTTPError, ResponseParserError, RetriesExceededError) as error:
        raise StoreError(f"{action} failed: {_explain(error, bucket, endpoint)}.") from error
    except (ValueError, RuntimeError) as error:
        # What botocore makes of sizes and dates that are none.
        raise StoreError(
            f"{action} failed: what answers at {endpoint} does not speak as an S3 server does ({first_line(error)}); "
            "correct FUSELINE_S3_ENDPOINT_URL."
        ) from error


def _explain(error: Exception, bucket: str, endpoint: str) -> str:
    if isinstance(error, RetriesExceededError):
        error = error.last_exception
    code = error_code(error)
    if isinstance(error, NoCredentialsError):
        return "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, PartialCredentialsError):
        return "half of the credentials is missing; set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, ProfileNotFound):
        return "the profile that AWS_PROFILE names does not exist; correct it"
    if isinstance(error, SSLError):
        return f"{endpoint} does not speak TLS as expected; check http or https in FUSELINE_S3_ENDPOINT_URL"
    if isinstance(error, (EndpointConnectionError, ConnectTimeoutError)):
        return f"no server answers at {endpoint}; start it, or correct FUSELINE_S3_ENDPOINT_URL"
    if isinstance(error, (*TRANSIENT_ERRORS, HTTPClientError)):
        return f"{endpoint} kept breaking the connection or stalling; check the server and the way to it"
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket!r} at {endpoint}; create it, or correct FUSELINE_STORE"
    if code in UNKNOWN_CREDENTIALS:
        return (
            f"{endpoint} does not accept these credentials ({code}); correct AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if code in ("ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed"):
        return f"the credentials have expired or this machine's clock is wrong ({code}); renew or correct them"
    if code in ("AccessDenied", "403", "AllAccessDisabled", "Forbidden"):
        # Credentials that may do no more than Fuseline needs are not told whether another bucket is there.
        return (
            f"these credentials have no permission for it in bucket {bucket!r}; grant it, use others, or correct the "
            "bucket in FUSELINE_STORE"
        )
    if code in ("PermanentRedirect", "301", "IllegalLocationConstraintException"):
        return f"bucket {bucket!r} lives in another region; set AWS_REGION to it"
    if code in TRANSIENT_CODES and code.isdigit():
        return f"{endpoint} kept answering {code}; it is overloaded, broken, or is no S3 server at all"
    if code in TRANSIENT_CODES:
        return f"{endpoint} kept answering {code}; try again later, or with fewer workers"
    if isinstance(error, ResponseParserError) or code.isdigit():
        return f"what answers at {endpoint} is no S3 server; correct FUSELINE_S3_ENDPOINT_URL"
    return f"{endpoint} answered {code}" if code else f"{type(error).__name__} at {endpoint}"
