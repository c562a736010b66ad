"""Conversations in rows: lists of messages such as {"role": "user", "content": "2+2?"}."""

from dataclasses import dataclass
from typing import Any, Literal

from distill.errors import InputError
from distill.tasks.jsonl import checked_text

SystemMessages = Literal["refuse", "join", "drop"]  # what becomes of a system message: a problem has one prompt text

_ROLES = {
    **{name: "user" for name in ("user", "human")},
    **{name: "assistant" for name in ("assistant", "gpt", "model")},
    **{name: "system" for name in ("system", "developer")},
}


@dataclass(frozen=True)
class Message:
    """One message; `fields` are those of the row, for what stands beside the text."""

    role: Literal["user", "assistant", "system"]
    fields: dict[str, Any]
    place: str  # "messages[0]"
    content_key: str

    def text(self, where: str) -> str:
        """Its content, not blank. Raises InputError."""
        name = f"{self.place}.{self.content_key}"
        content = self.fields.get(self.content_key)
        if isinstance(content, list):  # of parts, as in requests
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                raise InputError(f"{where}: field {name!r}: expected text, found parts that are not text")
            content = "".join(checked_text(part.get("text"), name, where) for part in content)
        return checked_text(content, name, where)


def read_messages(value: Any, field: str, where: str) -> list[Message]:
    """The messages of a conversation: keys `role` and `content`, or `from` and `value` as in ShareGPT.

    Raises InputError for anything else.
    """
    if not isinstance(value, list) or not value:
        found = "an empty list" if isinstance(value, list) else type(value).__name__
        raise InputError(f"{where}: field {field!r}: expected a list of messages, found {found}")
    messages = []
    for i, message in enumerate(value):
        place = f"{field}[{i}]"
        if not isinstance(message, dict):
            raise InputError(f"{where}: field {place!r}: expected a message, found {type(message).__name__}")
        role_key, content_key = ("from", "value") if message.get("role") is None else ("role", "content")
        role = message.get(role_key)
        if not isinstance(role, str) or role not in _ROLES:
            raise InputError(
                f"{where}: field {f'{place}.{role_key}'!r}: expected user, assistant or system, found {role!r:.60}"
            )
        messages.append(Message(_ROLES[role], message, place, content_key))
    return messages


def one_question(messages: list[Message], field: str, where: str, system: SystemMessages) -> str:
    """The prompt of a conversation that asks once and is not answered yet. Raises InputError for any other.

    A leading system message is refused, joined in front of the question, or dropped.
    """
    first = messages[0] if messages and messages[0].role == "system" else None
    asked = messages[1:] if first else messages
    if [message.role for message in asked] != ["user"]:
        roles = ", ".join(message.role for message in asked[:6]) + (", ..." if len(asked) > 6 else "")
        raise InputError(f"{where}: field {field!r}: expected one question by the user, found {roles or 'none'}")
    question = asked[0].text(where)
    if first is None or system == "drop":
        return question
    if system == "refuse":
        raise InputError(
            f"{where}: field {field!r}: a system message before the question; --system join keeps it, --system drop "
            "leaves it out (in YAML `system: join`)"
        )
    return f"{first.text(where).strip()}\n\n{question.strip()}"
