"""The simulator itself: it decides as IAM does, and refuses what it does not know."""

from __future__ import annotations

from typing import Any

import pytest

from tests.infra.simulator import Account, NotUnderstood, Request, Stacks, matches

ROLE = "arn:aws:iam::123456789012:role/S-Role"
OBJECT = "arn:aws:s3:::s-bucket/runs/r/commits/000001.json"


def account(
    *identity: dict[str, Any], bucket: tuple[dict[str, Any], ...] = (), tags: dict[str, str] | None = None
) -> Account:
    """One role with these statements, and a bucket with those."""
    resources: dict[str, Any] = {
        "Bucket": {"Type": "AWS::S3::Bucket"},
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"Tags": [{"Key": k, "Value": v} for k, v in (tags or {}).items()]},
        },
        "Policy": {
            "Type": "AWS::IAM::Policy",
            "Properties": {"Roles": [{"Ref": "Role"}], "PolicyDocument": {"Statement": list(identity)}},
        },
    }
    if bucket:
        resources["BucketPolicy"] = {
            "Type": "AWS::S3::BucketPolicy",
            "Properties": {"Bucket": {"Ref": "Bucket"}, "PolicyDocument": {"Statement": list(bucket)}},
        }
    return Account({"S": {"Resources": resources}})


def allow(**parts: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": "s3:*", "Resource": "*", **parts}


def deny(**parts: Any) -> dict[str, Any]:
    return {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "*", **parts}


def put(**context: str) -> Request:
    return Request("s3:PutObject", OBJECT, context)


def test_nothing_is_allowed_by_itself() -> None:
    assert not account().allows(ROLE, put())


def test_an_allow_allows_and_an_explicit_deny_wins() -> None:
    assert account(allow()).allows(ROLE, put())
    assert not account(allow(), {"Effect": "Deny", "Action": "s3:Put*", "Resource": "*"}).allows(ROLE, put())
    assert not account(allow(), bucket=(deny(),)).allows(ROLE, put())
    assert account(allow(), bucket=(deny(Principal={"AWS": "arn:aws:iam::123456789012:role/other"}),)).allows(
        ROLE, put()
    )


def test_a_bucket_policy_alone_can_allow() -> None:
    granted = {**deny(), "Effect": "Allow", "Principal": {"AWS": ROLE}}
    assert account(bucket=(granted,)).allows(ROLE, put())
    assert not account(bucket=({**granted, "Principal": {"AWS": f"{ROLE}x"}},)).allows(ROLE, put())


def test_a_bucket_policy_is_for_its_own_bucket() -> None:
    made = account(allow(), bucket=(deny(),))
    assert made.allows(ROLE, Request("s3:GetObject", "arn:aws:s3:::another/key"))


@pytest.mark.parametrize(
    ("parts", "allowed"),
    [
        ({"Action": "s3:putobject"}, True),
        ({"Action": ["s3:Get*", "s3:Put*"]}, True),
        ({"Action": "s3:PutObjectAcl"}, False),
        ({"Action": "s3:PutObj?ct"}, True),
        ({"Resource": OBJECT}, True),
        ({"Resource": OBJECT.upper()}, False),
        ({"Resource": "arn:aws:s3:::s-bucket"}, False),
        ({"Resource": "arn:aws:s3:::s-bucket/runs/*/commits/*"}, True),
        ({"Resource": "arn:aws:s3:::s-bucket/*"}, True),
        ({"Resource": "arn:aws:s3:::s-bucket/runs/?/commits/*"}, True),
        ({"Resource": "arn:aws:s3:::s-bucket/runs/${aws:PrincipalTag/run}/*"}, True),
        ({"Resource": "arn:aws:s3:::s-bucket/runs/${aws:PrincipalTag/none}/*"}, False),
    ],
)
def test_actions_and_resources(parts: dict[str, Any], allowed: bool) -> None:
    assert account(allow(**parts), tags={"run": "r"}).allows(ROLE, put()) is allowed


def test_not_action_and_not_resource() -> None:
    rest = {"Effect": "Allow", "NotAction": "s3:Delete*", "Resource": "*"}
    assert account(rest).allows(ROLE, put())
    assert not account({**rest, "NotAction": ["s3:Put*", "s3:Get*"]}).allows(ROLE, put())
    elsewhere = {"Effect": "Allow", "Action": "s3:*", "NotResource": "arn:aws:s3:::s-bucket/runs/*"}
    assert not account(elsewhere).allows(ROLE, put())
    assert account(elsewhere).allows(ROLE, Request("s3:PutObject", "arn:aws:s3:::s-bucket/other"))


@pytest.mark.parametrize(
    ("condition", "context", "allowed"),
    [
        ({"StringEquals": {"k": "a"}}, {"k": "a"}, True),
        ({"StringEquals": {"K": ["b", "a"]}}, {"k": "a"}, True),
        ({"StringEquals": {"k": "a"}}, {"k": "b"}, False),
        ({"StringEquals": {"k": "a"}}, {}, False),
        ({"StringEqualsIfExists": {"k": "a"}}, {}, True),
        ({"StringEqualsIfExists": {"k": "a"}}, {"k": "b"}, False),
        ({"StringNotEquals": {"k": ["a", "b"]}}, {"k": "c"}, True),
        ({"StringNotEquals": {"k": ["a", "b"]}}, {"k": "b"}, False),
        ({"StringNotEquals": {"k": "a"}}, {}, True),
        ({"StringLike": {"k": "a*"}}, {"k": "abc"}, True),
        ({"StringNotLike": {"k": "a*"}}, {"k": "abc"}, False),
        ({"ArnLike": {"k": "arn:aws:s3:::x*"}}, {"k": "arn:aws:s3:::xyz"}, True),
        ({"ArnNotLike": {"k": "arn:aws:s3:::x*"}}, {"k": "arn:aws:s3:::xyz"}, False),
        ({"Bool": {"k": "true"}}, {"k": "true"}, True),
        ({"Bool": {"k": True}}, {"k": "true"}, True),
        ({"Bool": {"k": "true"}}, {}, False),
        ({"Null": {"k": "true"}}, {}, True),
        ({"Null": {"k": "true"}}, {"k": "a"}, False),
        ({"Null": {"k": "false"}}, {"k": "a"}, True),
        ({"Null": {"k": "true", "l": "true"}}, {"l": "a"}, False),
        ({"NumericLessThan": {"k": "1.2"}}, {"k": "1.1"}, True),
        ({"NumericLessThan": {"k": 1.2}}, {"k": "1.3"}, False),
        ({"StringEquals": {"k": "a"}, "Bool": {"b": "true"}}, {"k": "a", "b": "false"}, False),
        ({"StringEquals": {"aws:PrincipalTag/peer": "0000"}}, {}, True),
        ({"StringEquals": {"aws:SourceAccount": "1"}}, {}, False),
    ],
)
def test_conditions(condition: dict[str, Any], context: dict[str, str], allowed: bool) -> None:
    made = account(allow(Condition=condition), tags={"peer": "0000"})
    assert made.allows(ROLE, put(**context)) is allowed


def test_a_condition_of_a_deny_narrows_it() -> None:
    unconditional = deny(
        Action="s3:PutObject",
        Condition={"Null": {"s3:if-none-match": "true"}, "Bool": {"s3:ObjectCreationOperation": "true"}},
    )
    made = account(allow(), bucket=(unconditional,))
    whole = {"s3:ObjectCreationOperation": "true"}
    assert not made.allows(ROLE, Request("s3:PutObject", OBJECT, whole))
    assert made.allows(ROLE, Request("s3:PutObject", OBJECT, {**whole, "s3:if-none-match": "*"}))
    assert made.allows(ROLE, Request("s3:PutObject", OBJECT, {"s3:ObjectCreationOperation": "false"}))


@pytest.mark.parametrize(
    "statement",
    [
        allow(Condition={"DateGreaterThan": {"aws:CurrentTime": "2026-01-01"}}),
        allow(Condition={"ForAllValues:StringEquals": {"aws:TagKeys": "a"}}),
        allow(Surprise="x"),
        {"Effect": "Allow", "Action": "s3:*"},
    ],
)
def test_what_is_not_known_raises(statement: dict[str, Any]) -> None:
    with pytest.raises(NotUnderstood):
        account(statement).allows(ROLE, put())


def test_not_principal_and_unknown_managed_policies_raise() -> None:
    without = {key: value for key, value in deny(NotPrincipal={"AWS": ROLE}).items() if key != "Principal"}
    with pytest.raises(NotUnderstood):
        account(allow(), bucket=(without,)).allows(ROLE, put())
    role = {"Type": "AWS::IAM::Role", "Properties": {"ManagedPolicyArns": ["arn:aws:iam::aws:policy/Everything"]}}
    with pytest.raises(NotUnderstood, match="Everything"):
        Account({"S": {"Resources": {"Role": role}}})


def test_wildcards() -> None:
    assert matches("a*c", "a/b/c")
    assert matches("*", "")
    assert matches("a.c", "a.c")
    assert not matches("a.c", "abc")
    assert not matches("a?", "a")


def test_functions_are_resolved_across_stacks() -> None:
    first = {
        "Resources": {"Bucket": {"Type": "AWS::S3::Bucket"}},
        "Outputs": {
            "Weak": {"Value": {"Ref": "Bucket"}},
            "Strong": {"Value": {"Fn::GetAtt": ["Bucket", "Arn"]}, "Export": {"Name": "A:strong"}},
        },
    }
    second: dict[str, Any] = {"Resources": {"Machine": {"Type": "AWS::StepFunctions::StateMachine"}}}
    stacks = Stacks({"A": first, "B": second})
    weak = {"Fn::GetStackOutput": {"StackName": "A", "OutputName": "Weak"}}
    joined = {"Fn::Join": ["", ["arn:", {"Ref": "AWS::Partition"}, ":s3:::", weak, "/*"]]}
    assert stacks.resolve(joined, "B") == "arn:aws:s3:::a-bucket/*"
    assert stacks.resolve([{"Fn::ImportValue": "A:strong"}], "B") == ["arn:aws:s3:::a-bucket"]
    assert stacks.resolve({"Fn::Sub": "${AWS::Region}/${Bucket}/${Bucket.Arn}"}, "A") == (
        "us-east-1/a-bucket/arn:aws:s3:::a-bucket"
    )
    assert stacks.resolve({"Fn::Sub": ["${x}", {"x": weak}]}, "B") == "a-bucket"
    machine = {"Ref": "Machine"}
    assert stacks.resolve(machine, "B") == "arn:aws:states:us-east-1:123456789012:stateMachine:B-Machine"
    assert stacks.resolve({"Fn::Select": [6, {"Fn::Split": [":", machine]}]}, "B") == "B-Machine"
    for unknown in ({"Fn::FindInMap": ["a", "b", "c"]}, {"Fn::ImportValue": "nothing"}):
        with pytest.raises(NotUnderstood):
            stacks.resolve(unknown, "B")
