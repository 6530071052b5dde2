"""A freeze window as the service file holds it: as text, or as a mapping."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from policy.freeze import Between, Cron
from policy.freeze import between as read_between
from policy.freeze import cron as read_cron
from policy.part import Part
from policy.quantities import Seconds, in_words


class FreezeWindow(Part):
    """When no release may begin. Also as text: 'Fri 16:00 - Mon 08:00', 'Dec 20 - Jan 2' (both days
    included), '22:00 - 06:00'."""

    between: str | None = Field(None, description="that text")
    cron: str | None = Field(
        None, description="instead: when it begins, by five fields of cron: '0 16 * * FRI'"
    )
    lasts: Seconds | None = Field(None, gt=0, description="with cron: for how long, at most 30d")

    @field_validator("between")
    @classmethod
    def _window(cls, text: str | None) -> str | None:
        if text is not None:
            read_between(text)
        return text

    @model_validator(mode="after")
    def _one_way(self) -> "FreezeWindow":
        if (self.between is None) == (self.cron is None):
            raise ValueError("needs exactly one of between, cron")
        if (self.cron is None) != (self.lasts is None):
            raise ValueError("cron and lasts belong together")
        if self.cron is not None:
            read_cron(self.cron)
        return self

    def read(self) -> tuple[str, Between | Cron]:
        """-> (its name for people, what it means)."""
        if self.between is not None:
            return self.between, read_between(self.between)
        assert self.cron is not None
        assert self.lasts is not None
        name = f"cron {self.cron} for {in_words(self.lasts)}"
        return name, Cron(self.cron, self.lasts)


def _freeze_window(value: Any) -> Any:
    if isinstance(value, str):
        read_between(value)  # here, so that the place of a mistake is the text's own
        return {"between": value}
    return value


FreezeText = Annotated[
    FreezeWindow,
    BeforeValidator(_freeze_window),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": "-"}, FreezeWindow.model_json_schema()],
            "description": "Fri 16:00 - Mon 08:00, Dec 20 - Jan 2, 22:00 - 06:00, or a mapping",
        }
    ),
]
