"""How pairs stand in files that others read and write: the names of fields and roles, said once for import and export.

    pairs               prompt, reasoning, ift, gold             one row a pair; reasoning is <think>...</think>answer
    prompt-completion   prompt, completion                       lists of messages, as TRL trains on; one row a trace
    messages            messages                                 one row a trace
    sharegpt            conversations                            one row a trace

Rows of one trace also have `mode`, reasoning or ift, and the `id`, `sample`, `task` and `gold` of their pair: the two rows of a
pair have the same id and sample. Their reasoning stands between think tags in the answer's text or, in a message, in a
field of its own.
"""

PROMPT, COMPLETION, MESSAGES, CONVERSATIONS = "prompt", "completion", "messages", "conversations"
REASONING, ANSWER, IFT, GOLD = "reasoning", "answer", "ift", "gold"
ID, MODE, SAMPLE, TASK, ANSWER_FORMAT = "id", "mode", "sample", "task", "answer_format"
ROLE, CONTENT, REASONING_CONTENT = "role", "content", "reasoning_content"
FROM, VALUE = "from", "value"
SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
IMPORTED = "imported"  # the teacher's name where nobody says who wrote the answers
REASONING_REMOVED = ", reasoning removed"  # after a teacher's name, where its answer lost what led to it
SHAREGPT_ROLES = {USER: "human", ASSISTANT: "gpt", SYSTEM: "system"}  # how that layout calls them
