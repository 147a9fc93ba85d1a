"""What pydantic finds wrong is one line, by field, without what came."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError, model_validator

from playserve_services.validation import check_together, in_words


class Inner(BaseModel):
    secret: int


class Settings(BaseModel):
    low: int = 0
    high: int = 1
    inner: Inner | None = None
    many: list[int] = []

    @model_validator(mode="after")
    def _order(self) -> Settings:
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high")
        return self


def told(value: object, **options: object) -> str:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate(value)
    return in_words(refused.value.errors(), **options)  # type: ignore[arg-type]


def test_fields_that_go_together_are_all_there_or_none() -> None:
    check_together(Settings(), "low", "inner", "many")
    check_together(Settings(low=1), "low", "high")
    with pytest.raises(ValueError, match=r"^low, high, inner, many go together; there is no inner, no many$"):
        check_together(Settings(low=1), "low", "high", "inner", "many")


def test_fields_are_named_by_their_path_and_values_are_not_told() -> None:
    text = told({"inner": {"secret": "hunter2"}, "low": "x"})
    assert text.startswith("low: ")
    assert "; inner.secret: " in text
    assert "hunter2" not in text


def test_what_is_wrong_as_a_whole_has_no_field() -> None:
    assert told({"low": 5}) == "low is 5, above high"
    assert told({"low": 5}, whole="settings") == "settings: low is 5, above high"


def test_of_many_errors_the_first_are_told_and_the_rest_counted() -> None:
    text = told({"many": ["x"] * 30})
    assert text.count("many.") == 10
    assert text.endswith("; and 20 more")
