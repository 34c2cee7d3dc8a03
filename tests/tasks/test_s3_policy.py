"""The S3 policy allows what the code does and nothing else; the store's tests run under it on a real server."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tasks.stack.services import BUCKET, S3_POLICY
from tests.tasks.object_server import ADMINISTRATOR, ObjectServer

REPOSITORY = Path(__file__).resolve().parents[2]
# What Amazon asks for each call of boto3's client: https://docs.aws.amazon.com/AmazonS3/latest/userguide/
ACTIONS = {
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_objects_v2": "s3:ListBucket",
    "list_parts": "s3:ListMultipartUploadParts",
    "put_object": "s3:PutObject",
    # boto3's transfer manager: creates, sends and completes an upload, and aborts it when it fails.
    "upload": "s3:PutObject",
}
S3_METHOD = re.compile(
    r"(abort|copy|create|complete|delete|get|head|list|put|restore|select|upload)_(object|bucket|part|multi)"
)


@pytest.fixture(scope="module")
def statements() -> list[dict]:
    return json.loads(S3_POLICY.read_text(encoding="utf-8"))["Statement"]


def calls_of_the_code() -> set[str]:
    """Return the methods of boto3's client that the packages call, paginators and transfers among them."""
    found = set()
    for path in (
        path for package in ("tasks", "fusion_core", "flows") for path in (REPOSITORY / package).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            name = node.func.attr
            if name == "get_paginator":
                found.add(str(ast.literal_eval(node.args[0])))
            elif S3_METHOD.match(name) or (name == "upload" and getattr(node.func.value, "id", "") == "manager"):
                found.add(name)
    return found


def test_the_policy_allows_exactly_what_the_code_calls(statements: list[dict]) -> None:
    allowed = {action for statement in statements for action in statement["Action"]}
    called = calls_of_the_code()
    assert called == set(ACTIONS)
    assert allowed == {ACTIONS[name] for name in called}


def test_the_policy_is_for_one_bucket_and_says_no_more_than_it_must(statements: list[dict]) -> None:
    assert {statement["Effect"] for statement in statements} == {"Allow"}
    arn = f"arn:aws:s3:::{BUCKET}"
    assert [statement["Resource"] for statement in statements] == [arn, f"{arn}/*"]
    assert not any("*" in action for statement in statements for action in statement["Action"])
    assert not any({"NotAction", "NotResource", "Principal"} & set(statement) for statement in statements)


def test_a_server_refuses_what_the_policy_does_not_name(object_server: ObjectServer) -> None:
    writer, administrator = object_server.client(), object_server.client(ADMINISTRATOR)
    administrator.create_bucket(Bucket="another")
    administrator.put_object(Bucket="another", Key="theirs", Body=b"x")
    writer.put_object(Bucket=BUCKET, Key="own", Body=b"x")
    refused: list[Callable[[], object]] = [
        lambda: writer.get_object(Bucket="another", Key="theirs"),
        lambda: writer.put_object(Bucket="another", Key="mine", Body=b"x"),
        lambda: writer.list_objects_v2(Bucket="another"),
        lambda: writer.copy_object(Bucket=BUCKET, Key="taken", CopySource="another/theirs"),
        lambda: writer.create_bucket(Bucket="more"),
        lambda: writer.delete_bucket(Bucket=BUCKET),
        lambda: writer.put_object_acl(Bucket=BUCKET, Key="own", ACL="public-read"),
        lambda: writer.put_bucket_policy(Bucket=BUCKET, Policy=S3_POLICY.read_text(encoding="utf-8")),
        lambda: writer.put_object_tagging(Bucket=BUCKET, Key="own", Tagging={"TagSet": []}),
    ]
    for call in refused:
        with pytest.raises(ClientError, match="AccessDenied"):
            call()
    assert writer.delete_objects(Bucket="another", Delete={"Objects": [{"Key": "theirs"}]})["Errors"]
    assert administrator.get_object(Bucket="another", Key="theirs")["Body"].read() == b"x"
