"""What the ingress says about itself: a valid OpenAPI document that leaves out no refusal, vendor or route."""

import json
from typing import Any

import pytest
import schemathesis
from schemathesis.core.result import Ok

from ingress import openapi
from ingress.http import LARGEST_BODY_BYTES
from ingress.problems import Refusal, RefusedError
from shared.vendors import SAMPLE_ROUTES, Vendor

DOCUMENT = openapi.document("1.2.3", largest_body_bytes=LARGEST_BODY_BYTES)


def operations() -> list[dict[str, Any]]:
    """Return every operation."""
    return [path[method] for path in DOCUMENT["paths"].values() for method in path if method in {"get", "post"}]


def test_it_is_valid_openapi() -> None:
    """A tool that knows OpenAPI 3.1 finds the document valid, and every operation usable."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)

    schema.validate()

    assert {found.ok().label for found in schema.get_all_operations() if isinstance(found, Ok)} == {
        "POST /callbacks/{vendor}",
        *(f"POST {path}" for path in SAMPLE_ROUTES.values()),
        "GET /openapi.json",
    }


def test_names_are_unique() -> None:
    """No two operations share a name, so that a client can be made of it."""
    names = [operation["operationId"] for operation in operations()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("refusal", [each for each in Refusal if each is not Refusal.NOT_FOUND])
def test_every_refusal_is_described(refusal: Refusal) -> None:
    """Each refusal is told under its status, with its own type; what is not described at all is not found."""
    error = RefusedError(refusal, "x")
    response = DOCUMENT["components"]["responses"][f"Refused{error.status}"]
    types = response["content"]["application/problem+json"]["schema"]["properties"]["type"]["enum"]
    assert f"urn:wavekeep:problem:{refusal}" in types
    assert any(str(error.status) in operation["responses"] for operation in operations())


def test_every_vendor_is_described() -> None:
    """The vendors are a closed list."""
    (vendor,) = DOCUMENT["paths"]["/callbacks/{vendor}"]["parameters"]
    assert vendor["schema"]["enum"] == list(Vendor)


def test_size_is_told() -> None:
    """Whoever sends can read how much is taken."""
    assert str(LARGEST_BODY_BYTES) in DOCUMENT["components"]["requestBodies"]["Callback"]["description"]


def test_it_is_json() -> None:
    """The document is plain JSON, the same when written and read again."""
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
