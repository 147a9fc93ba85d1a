"""The service keeps to its own OpenAPI document, whatever it is sent."""

from __future__ import annotations

import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from playserve_services.control.app import create_app
from playserve_services.control.settings import ControlSettings

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 8


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    from playserve_services.control.migrate import upgrade

    folder = tmp_path_factory.mktemp("control")
    made: FastAPI = create_app(ControlSettings(data=folder, max_jobs=0), watch_jobs=False)
    context = made.state.context
    upgrade(context.database)
    yield made
    context.database.close()


def test_the_document_names_every_error(app) -> None:
    document = app.openapi()
    assert set(document["components"]["schemas"]["Problem"]["properties"]) == {
        "type", "title", "status", "detail", "reason",
    }  # fmt: skip
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert "application/problem+json" in operation["responses"]["default"]["content"], (method, path)
            assert operation.get("summary"), (method, path)


def test_the_service_keeps_to_its_document(app) -> None:
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                             suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip
        @hypothesis.given(case=operation.as_strategy())
        def holds(case) -> None:
            if isinstance(case.body, dict):
                case.body.pop("admin_address", None)  # nothing here shall dial what hypothesis thinks of
            response = case.call(base_url="http://127.0.0.1")
            assert response.status_code < 500, response.text
            case.validate_response(response, checks=CHECKS)

        holds()
