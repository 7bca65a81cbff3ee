"""REST asked anything that its own OpenAPI document allows, and more: schemathesis."""

from __future__ import annotations

import warnings

import pytest

from tests.controller.api.conftest import Rest

schemathesis = pytest.importorskip("schemathesis")

_EXAMPLES = 12  # for each route and way of making them


@pytest.mark.parametrize(
    ("role", "database_url"),
    [("admin", "sqlite"), ("tenant", "postgresql")],
    indirect=["database_url"],
)
@pytest.mark.timeout(240)
def test_nothing_that_is_asked_breaks_it(rest: Rest, role: str) -> None:
    """No answer is a 5xx, each has the status and form that the document says, and what the
    document forbids is refused.
    """
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [
        not_a_server_error,
        status_code_conformance,
        content_type_conformance,
        response_schema_conformance,
        negative_data_rejection,
    ]
    document = rest.ask("nobody", "GET", "openapi.json").json()
    found = schemathesis.openapi.from_dict(document)
    found.app = rest.door
    headers = {"Authorization": f"Bearer {rest.secrets[role]}"}
    for result in found.get_all_operations():
        operation = result.ok()
        if operation.path == "/api/v1/events":
            continue  # follow=true never ends; tests/controller/test_main.py follows it

        @given(case=operation.as_strategy())
        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        # schemathesis reads the signature, and its own type has no public name.
        def ask(case) -> None:  # type: ignore[no-untyped-def]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                answer = case.call(headers=headers)
            case.validate_response(answer, checks=checks)

        ask()
    rest.pool.check()
