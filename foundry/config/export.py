"""The sections of the exports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from foundry.config.section import Name, Section

GgufType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]


class ExportFormats(Section):
    """What the exports of a base model and of a chat model have in common."""

    model_name: Name = Field("foundry-lm", description="name of the registered model and of the exported files")
    gguf_types: list[GgufType] = Field(
        ["f32", "bf16", "q8_0", "q4_0"],
        min_length=1,
        description="number formats of the matrices, one GGUF file per format; q8_0 and q4_0 need widths that are "
        "multiples of 32",
    )
    parity_tolerance: float = Field(
        1e-4, gt=0, le=1, description="largest difference between the logits of the model and of its export"
    )

    @field_validator("gguf_types")
    @classmethod
    def _once_each(cls, kinds: list[str]) -> list[str]:
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"must contain each format once, got {', '.join(kinds)}")
        return kinds


class Export(ExportFormats):
    """The export of the trained model."""
