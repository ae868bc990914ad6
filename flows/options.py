"""What a person may choose for a run: typed models, which Prefect's UI draws as forms.

Descriptions and ranges are those of the parameters.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, create_model

from flows.graph import plan, stage_names
from flows.names import shortened
from flows.settings import project_root
from foundry.config import Config, ConfigError
from foundry.config.profiles import profile_names, profile_values, with_values

ALL, CHAT, ALIGN, UNCHANGED = "all", "chat", "align", "as in params.yaml"
# Sections of params.yaml that the forms draw as boxes.
SECTIONS = ("tokenizer", "shard", "model", "train", "evaluate")
CHAT_SECTIONS = ("chat", "sft", "chat_evaluate", "chat_export", "reward", "preferences", "dpo", "rl")
PLAIN = (int, float, bool, str)


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _optional(section: type[BaseModel]) -> type[BaseModel]:
    """The plain keys of a section and of those in it, with their ranges and descriptions.

    A key that is left empty is not changed.
    """
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if kind in PLAIN or getattr(kind, "__origin__", None) is Literal:
            ranged = Annotated[kind, *field.metadata] if field.metadata else kind
            fields[name] = (ranged | None, Field(None, description=field.description or name.replace("_", " ")))
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            inner = _optional(kind)
            fields[name] = (inner, Field(default_factory=inner, description=(kind.__doc__ or name).splitlines()[0]))
    return create_model(f"{section.__name__}Overrides", __base__=Form, **fields)


def _overrides(sections: Iterable[str]) -> type[BaseModel]:
    fields: dict[str, Any] = {"seed": (int | None, Field(None, ge=0, description="seed of everything random"))}
    for name in sections:
        model = _optional(Config.model_fields[name].annotation)
        fields[name] = (model, Field(default_factory=model, description=f"section `{name}` of params.yaml"))
    return create_model("Overrides", __base__=Form, **fields)


def _target(*names: str) -> Any:
    return Annotated[str, WithJsonSchema({"type": "string", "enum": list(names)})]


Overrides = _overrides(SECTIONS)
ChatOverrides = _overrides(CHAT_SECTIONS)
_CHAT_STAGES = stage_names(project_root(), CHAT, ALIGN)
Target = _target(ALL, *stage_names(project_root(), ALL))
ChatTarget = _target(CHAT, ALIGN, *_CHAT_STAGES)
AnyTarget = _target(ALL, *stage_names(project_root(), ALL), CHAT, ALIGN, *_CHAT_STAGES)
Profile = Annotated[str, WithJsonSchema({"type": "string", "enum": [UNCHANGED, *profile_names()]})]


def _long_boxes_last(schema: dict[str, Any]) -> None:
    """The form shows properties in this order: a flow's own options come before the long boxes."""
    for name in ("overrides", "others"):
        schema["properties"][name] = schema["properties"].pop(name)


def _dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"sft": {"lora": {"rank": 8}}} as {"sft.lora.rank": 8}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


class Recipe(Form):
    """What is built, from which revision, with which parameters."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_long_boxes_last)

    target: Target = Field(ALL, title="Target stage", description="this stage and those it needs; all: the whole graph")
    profile: Profile = Field(UNCHANGED, description="size of the recipe: a column of foundry/config/profiles.yaml")
    revision: str = Field("HEAD", description="commit, branch or tag that is built")
    time_limits_s: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, title="Time limits", description='seconds by stage, {"train": 7200}; else dvc.yaml\'s'
    )
    overrides: Overrides = Field(
        default_factory=Overrides,
        title="Parameter overrides",
        description="an empty field leaves params.yaml as it is",
    )
    others: dict[str, Any] = Field(
        default_factory=dict, title="Other parameters", description='by dotted key, {"clean.max_documents": 5000}'
    )

    def targets(self) -> list[str]:
        """What is built: stages and pipelines."""
        return [self.target]

    def values(self) -> dict[str, Any]:
        """{dotted key: value} of every parameter that the form sets."""
        values = dict(profile_values(self.profile)) if self.profile != UNCHANGED else {}
        return values | _dotted(self.overrides.model_dump(exclude_none=True)) | self.others

    def check(self, root: Path) -> None:
        """Refuses what cannot work, before anything starts.

        Raises:
            ConfigError: if the options do not fit the project; the message lists every problem.
        """
        plan(root, *self.targets())
        if unknown := set(self.time_limits_s) - set(stage_names(root)):
            raise ConfigError(f"time limits: unknown stage {', '.join(sorted(unknown))}")
        if values := self.values():
            with_values(root / "params.yaml", values, "params.yaml with the overrides")

    def named(self) -> str:
        """A few words about the options, for the run's name."""
        profile = "" if self.profile == UNCHANGED else self.profile
        target = "" if self.target == ALL else f"to {self.target}"
        overrides = (shortened(f"{k}={v}", 40) for k, v in list(self.overrides_only().items())[:3])
        return " ".join(filter(None, (profile, target, *overrides)))

    def overrides_only(self) -> dict[str, Any]:
        """`values` without those that the profile sets."""
        base = dict(profile_values(self.profile)) if self.profile != UNCHANGED else {}
        return {k: v for k, v in self.values().items() if base.get(k) != v}


class Build(Recipe):
    """What is built, from which revision, with which parameters."""

    force: bool = Field(False, description="run the stages even if nothing changed")
    isolated: bool = Field(
        True,
        description="in a git worktree of its own; off: in the project's folder, with changes that are not committed",
    )

    def check(self, root: Path) -> None:
        if not self.isolated and self.values():
            raise ConfigError("overrides need a worktree of their own: leave `isolated` on, or edit params.yaml")
        super().check(root)

    def named(self) -> str:
        return " ".join(filter(None, (super().named(), "forced" if self.force else "")))


class PostBuild(Build):
    """What is built of the chat model, from which revision, with which parameters."""

    target: ChatTarget = Field(
        CHAT,
        title="Target stage",
        description="chat: data, fine-tuning, evaluation and export; align: the same, then preferences, DPO and RL; or "
        "one stage with those that it needs. Stages of the model below them run if something changed there",
    )
    overrides: ChatOverrides = Field(
        default_factory=ChatOverrides,
        title="Parameter overrides",
        description="an empty field leaves params.yaml as it is",
    )
