r"""A benchmark is one YAML file: where its rows are, how a row becomes a question, how an answer is graded.

    name: openbookqa
    title: OpenBookQA
    group: general
    source: {hub: allenai/openbookqa, config: main, split: test}
    fields: {question: question_stem, choices: choices.text, key: answerKey}
    options: choices
    prompt: "{question}\n\n{options}"
    instruction: Put the letter of the correct option in \boxed{}.
    gold: {field: key, read: letter}
    format: choice
    checker: choice

`fields` gives names to fields of a row; everything below uses these names. A template holds names in braces and
nothing else: `{options}` are the lettered options, `{history}` the turns before this one, `{{` and `}}` are braces.
docs/benchmarks-howto.md describes every field.
"""

import json
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from distill.errors import InputError, unknown_name
from distill.hub import looks_like_hub_id
from distill.settings import Settings, read_yaml, validate
from distill.tasks.aqua import LETTERS
from distill.tasks.checkers import CHECKERS
from distill.tasks.metrics import METRICS, OF_RULES
from distill.tasks.problem import AnswerFormat

FOLDER = Path(__file__).parent / "benchmarks"
BENCHMARKS = tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))

CHECKER_NAMES = (*CHECKERS, "judge")  # models judge for whoever grades: a checker sees two texts

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # all but tabs and line ends
_TASK_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_MADE_HERE = ("options", "history", "gold")  # names that no field may take


def placeholders(template: str) -> list[str]:
    """The names in a template. Raises ValueError for anything else in braces.

    >>> placeholders("{story}\\n\\n{question} {{x}}")
    ['story', 'question']
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; a brace that is text is written twice") from None
    found = []
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if form or conversion or not _NAME.fullmatch(name):
            raise ValueError(f"{{{name}}}: expected a name alone in braces; a brace that is text is written twice")
        found.append(name)
    return found


def fill(template: str, values: dict[str, str]) -> str:
    """A template with its names replaced; braces in the values are text."""
    parts = string.Formatter().parse(template)
    return "".join(text + (values[name] if name is not None else "") for text, name, _, _ in parts)


def _checked_template(template: str) -> str:
    placeholders(template)
    return template


def _checked_fields(fields: dict[str, str]) -> dict[str, str]:
    for name, field in fields.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"name {name!r}: expected letters, digits and '_'")
        if name in _MADE_HERE:
            raise ValueError(f"name {name!r}: is made from other fields; call it something else")
        if not field:
            raise ValueError(f"name {name!r}: expected the field of a row")
    return fields


Template = Annotated[str, Field(min_length=1), AfterValidator(_checked_template)]
Fields = Annotated[dict[str, str], AfterValidator(_checked_fields)]


class HubSource(Settings):
    """Where the rows are published."""

    hub: str  # owner/name
    config: str = ""
    split: str = Field("test", min_length=1)  # of the questions

    @model_validator(mode="after")
    def _is_hub_id(self) -> "HubSource":
        if not looks_like_hub_id(self.hub):
            raise ValueError(f"hub {self.hub!r}: expected owner/name")
        return self


class Gold(Settings):
    """How the right answer stands in a row."""

    field: str | tuple[str, ...]  # several only for json
    read: Literal[
        "text",  # text or a number
        "letter",  # of an option
        "index",  # of an option, counted from `first`
        "any_of",  # a text or a list of texts, each of which is right: a JSON list
        "labels",  # a list of labels, or text with commas between them: a JSON list
        "json",  # the fields as a JSON object, without what is null
    ] = "text"
    after: str | None = Field(None, min_length=1)  # only what follows the last of these marks
    first: Literal[0, 1] = 0

    @model_validator(mode="after")
    def _fits(self) -> "Gold":
        if isinstance(self.field, tuple) != (self.read == "json"):
            raise ValueError("field: expected a list of names for `read: json`, and one name otherwise")
        if self.after is not None and self.read != "text":
            raise ValueError("after: only for `read: text`")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return self.field if isinstance(self.field, tuple) else (self.field,)


class FewShot(Settings):
    """Examples for a model that was never taught to follow instructions. They are never questions too."""

    count: int = Field(ge=1, le=32)
    split: str | None = Field(None, min_length=1)  # another split of the source
    rows: tuple[dict[str, Any], ...] | None = None  # written here, in the source's layout
    held_out: int | None = Field(None, ge=1, le=50)  # percent of the rows, by a hash of the question
    answer: Template = "\\boxed{{{gold}}}"  # of an example; {gold} as one would write it

    @model_validator(mode="after")
    def _one_origin(self) -> "FewShot":
        if sum(origin is not None for origin in (self.split, self.rows, self.held_out)) != 1:
            raise ValueError("expected one of split, rows and held_out: where the examples come from")
        if self.rows is not None and len(self.rows) < self.count:
            raise ValueError(f"rows: {len(self.rows)} are fewer than count, {self.count}")
        return self


class Benchmark(Settings):
    """One benchmark file."""

    name: str
    title: str = Field(min_length=1)
    group: Literal["general", "math", "law", "code", "physics", "own"]
    licence: str = ""
    citation: str = ""
    source: HubSource | None = None  # None: only rows that the user names
    fields: Fields = Field(min_length=1)  # name -> field of a row; `extra.text` is a field of a field
    filter: dict[str, str | tuple[str, ...]] = Field({})  # only rows in which a name has this value, or one of these
    when_blank: dict[str, str] = Field({})  # what stands for a name that is blank, null or missing
    turns: Fields = Field({})  # name -> field with a list; one question for each place in these lists
    history: Template | None = None  # one earlier turn, as {history} has them
    options: str | tuple[str, ...] | None = None  # the name of a list, or the names of the options
    lettered: bool = False  # the rows' options begin with their letter: `A)21`
    prompt: Template
    instruction: str = ""  # below the prompt, as it stands
    gold: Gold
    format: AnswerFormat
    checker: str
    metrics: tuple[str, ...] = ("accuracy",)
    max_tokens: int = Field(16384, ge=1)  # generation limit
    few_shot: FewShot | None = None

    @property
    def kind(self) -> Literal["multiple choice", "open-ended"]:
        return "multiple choice" if self.format == "choice" else "open-ended"

    @property
    def question_split(self) -> str:
        return self.source.split if self.source else "test"

    @property
    def option_names(self) -> tuple[str, ...]:
        return (self.options,) if isinstance(self.options, str) else self.options or ()

    @property
    def row_fields(self) -> list[str]:
        """The fields of a row that are read."""
        return [*self.fields.values(), *self.turns.values()]

    @model_validator(mode="after")
    def _consistent(self) -> "Benchmark":
        try:
            self._words_are_known()
            self._options_fit()
            self._names_are_known()
            self._gold_is_hidden()
        except ValueError as error:  # said without a copy of the whole file
            raise InputError(str(error)) from None
        return self

    def _words_are_known(self) -> None:
        if not _TASK_NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r}: expected letters, digits, '_', '.' and '-'")
        if self.checker not in CHECKER_NAMES:
            raise unknown_name("checker", self.checker, CHECKER_NAMES)
        for metric in self.metrics:
            if metric not in METRICS:
                raise unknown_name("metric", metric, METRICS)
            if metric in OF_RULES and self.checker != "ifeval":
                raise ValueError(f"metrics: {metric} needs the checker ifeval, found {self.checker}")
            if metric == "macro_f1" and self.gold.read != "labels":
                raise ValueError("metrics: macro_f1 needs a gold answer with `read: labels`")
        if self.metrics[:1] != ("accuracy",) or len({*self.metrics}) < len(self.metrics):
            raise ValueError(f"metrics: expected accuracy first, and each one once, found {', '.join(self.metrics)}")

    def _options_fit(self) -> None:
        if (self.format == "choice") != (self.options is not None):
            raise ValueError("options: needed for `format: choice`, and for no other")
        if isinstance(self.options, tuple) and not 2 <= len(self.options) <= len(LETTERS):
            raise ValueError(f"options: expected 2 to {len(LETTERS)}, found {len(self.options)}")
        if (self.gold.read in ("letter", "index")) != (self.format == "choice"):
            raise ValueError("gold: `read: letter` or `read: index` for `format: choice`, and for no other")
        if self.options is not None and "options" not in placeholders(self.prompt):
            raise ValueError("prompt: {options} is missing")

    def _names_are_known(self) -> None:
        both = self.fields.keys() & self.turns.keys()
        if both:
            raise ValueError(f"turns: the name {min(both)!r} stands in fields too")
        if self.turns and self.few_shot and self.few_shot.rows is not None:
            raise ValueError("few_shot: rows cannot have turns; take examples from a split")
        row, turn = {*self.fields}, {*self.fields, *self.turns}
        made = ({"options"} if self.options else set()) | ({"history"} if self.history else set())
        if self.history is not None and not self.turns:
            raise ValueError("history: there are no turns")
        used = [
            ("filter", self.filter, row),
            ("when_blank", self.when_blank, row),
            ("options", self.option_names, row),
            ("gold", self.gold.names, turn),
            ("history", placeholders(self.history or ""), {*self.turns}),
            ("prompt", placeholders(self.prompt), turn | made),
            ("few_shot.answer", placeholders(self.few_shot.answer) if self.few_shot else (), turn | {"gold"}),
        ]
        for where, names, known in used:
            for name in names:
                if name not in known:
                    raise ValueError(f"{where}: unknown name {name!r}; known are {', '.join(sorted(known))}")
        spare = turn - {name for _, names, _ in used for name in names}
        if spare:
            raise ValueError(f"fields: the name {min(spare)!r} is used nowhere")

    def _gold_is_hidden(self) -> None:
        of = {**self.fields, **self.turns}
        hidden = {of[name] for name in self.gold.names}
        for name in placeholders(self.prompt):
            if of.get(name) in hidden:
                raise ValueError(f"prompt: {{{name}}} is the right answer")
        for name in self.option_names:
            if of[name] in hidden:
                raise ValueError(f"options: {name!r} is the right answer")


def _refuse_control_characters(value: Any, field: str, path: Path) -> None:
    """In double quotes YAML reads the `\\b` of `\\boxed` and the `\\f` of `\\frac` as one character each."""
    if isinstance(value, str) and (found := _CONTROL.search(value)):
        raise InputError(
            f"{path}: field {field}: a control character, {found[0]!r}; in double quotes YAML reads \\b of \\boxed as one: "
            "use single quotes, or none"
        )
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        _refuse_control_characters(entry, f"{field}.{key}" if field else str(key), path)


def load_benchmark(name: str | Path) -> Benchmark:
    """The benchmark in a file, or one that comes with the package: `winogrande`, `winogrande.yaml`.

    A file `winogrande.yaml` in the working folder goes before that of the package. Raises InputError for a name that is neither,
    and for a file that is wrong somewhere.
    """
    path, shipped = Path(name), str(name).removesuffix(".yaml")
    if shipped in BENCHMARKS and (shipped == str(name) or not path.is_file()):
        path = FOLDER / f"{shipped}.yaml"
    elif path.suffix not in (".yaml", ".yml"):
        raise unknown_name("benchmark", str(name), BENCHMARKS)
    values = read_yaml(path)  # says what is wrong with the file or its syntax
    try:
        json.dumps(values, ensure_ascii=False, default=str).encode()
        _refuse_control_characters(values, "", path)
    except (RecursionError, ValueError):  # aliases of themselves; half a surrogate pair
        raise InputError(f"{path}: not valid YAML (nested too deep, or no such character)") from None
    return validate(Benchmark, values, source=str(path))
