"""What every part of a recipe is built on."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo


class Section(BaseModel):
    """A part of a recipe: immutable; an unknown field, an infinite number, or true for a number is an error.

    A field that is given its default counts as not given. Forms send every field, so an error such as "matters only
    with" can be meant for those that somebody changed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _defaults_are_not_given(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            name: value for name, value in values.items() if not (name in fields and _is_default(fields[name], value))
        }

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"{str(value).lower()} is no value for it; give a number or a name")
        return value


def _is_default(field: FieldInfo, value: Any) -> bool:
    if field.is_required():
        return False
    default = field.get_default(call_default_factory=True, validated_data={})
    plain = default.model_dump(mode="json") if isinstance(default, BaseModel) else default
    plain = list(plain) if isinstance(plain, tuple) else plain
    value = list(value) if isinstance(value, tuple) else value
    # True equals 1, and is no value for a number.
    return (type(plain) is type(value) and bool(plain == value)) or (default is value)
