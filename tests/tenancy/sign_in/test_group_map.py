"""Groups give memberships as the operator says."""

import pytest

from server.tenancy.sign_in.group_map import Grants, GroupMap


@pytest.mark.parametrize(
    ("items", "default", "groups", "grants"),
    [
        (["a=own:member"], "", ["a", "b"], Grants({"own": "member"}, False)),
        (["a=own:member"], "", ["b"], Grants({}, False)),
        (["a=own:member"], "", [], Grants({}, False)),
        (["a=own:member"], "", ["A"], Grants({}, False)),
        (["a=own:member"], "all", ["b"], Grants({"all": "member"}, False)),
        (["a=own:member"], "all", ["a"], Grants({"own": "member"}, False)),
        (["a=own:admin", "b=own:member"], "", ["b", "a"], Grants({"own": "admin"}, False)),
        (["b=own:member", "a=own:admin"], "", ["b", "a"], Grants({"own": "admin"}, False)),
        (["a=x:member", "a=y:admin"], "", ["a"], Grants({"x": "member", "y": "admin"}, False)),
        (["a=*:admin"], "", ["a"], Grants({"default": "admin"}, True)),
        (["cn=a%2Cou=b=own:member"], "", ["cn=a,ou=b"], Grants({"own": "member"}, False)),
        ([], "", ["a"], Grants({}, False)),
    ],
)
def test_groups_give_memberships(
    items: list[str], default: str, groups: list[str], grants: Grants
) -> None:
    assert GroupMap(items, default).grants(groups) == grants


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("a", "write GROUP=OWNER:member"),
        ("a=own", "write GROUP=OWNER:member"),
        ("=own:member", "write GROUP=OWNER:member"),
        ("a=:member", "write GROUP=OWNER:member"),
        ("a=own:boss", "write GROUP=OWNER:member"),
        ("a=*:member", "has admins alone"),
        ("a=../x:member", "no owner's id"),
    ],
)
def test_what_is_no_mapping_is_told(item: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        GroupMap([item])


def test_the_default_owner_is_an_id() -> None:
    with pytest.raises(ValueError, match="no owner's id"):
        GroupMap([], "a/b")
