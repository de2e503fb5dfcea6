"""Text that went through the wrong hands: a template's marks in an answer, and broken encodings.

A control token inside a user's text is data, which the tokenizer spells out (`model.render`); in
an answer it would be learned as words to say, so there it is a reason.
"""

from __future__ import annotations

import re
from dataclasses import replace

from timechat.conversation import Conversation, Message

# Control tokens of the common families, and the plain headings of the common templates.
_RESIDUE = re.compile(
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|start_header_id|end_header_id|begin_of_text"
    r"|end_of_text|eom_id|user|assistant|system|end|endofprompt|start_of_role|end_of_role)\|>"
    r"|</?start_of_turn>|<end_of_turn>|\[/?INST\]|<</?SYS>>|</s>\s*\Z|\A\s*<s>"
    r"|<｜[^｜<>]{1,30}｜>"
    r"|^(?:###|##) ?(?:Human|Assistant|User|Instruction|Response|Input)\b ?:"
    r"|\n\n(?:Human|Assistant): ",
    re.MULTILINE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffe\uffff]")
# UTF-8 that was read as cp1252: a lead byte's letter followed by letters of continuation bytes.
_TAIL = "[\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_MOJIBAKE = re.compile(
    f"â[€‚„†‡]{_TAIL}|[ÂÃ]{_TAIL}(?![a-z]{{3}})|ðŸ{_TAIL}{{2}}|ï»¿|â€|Ã[^\\W\\d_]?(?=[a-z]*Ã)"
)


def find_residue(text: str) -> str:
    """The first mark of a template in `text`, or nothing."""
    found = _RESIDUE.search(text)
    return found[0].strip() if found else ""


def strip_residue(row: Conversation) -> Conversation:
    """The row without the marks in its answers; whatever follows an ending mark is cut."""

    def mend(message: Message) -> Message:
        if message.role != "assistant":
            return message
        return replace(message, content=_RESIDUE.sub("", message.content).strip())

    return row.with_messages(tuple(mend(message) for message in row.messages))


def find_damage(text: str) -> str:
    """What is broken in `text`: a lost character, a control character, or mojibake; or nothing."""
    if text.isascii() and not _CONTROL.search(text):
        return ""
    if "\ufffd" in text:
        return "holds the mark of a lost character (U+FFFD)"
    if control := _CONTROL.search(text):
        return f"holds the control character U+{ord(control[0]):04X}"
    found = _MOJIBAKE.search(text)
    if found and repaired(text) != text:
        return f"{found[0]!r} looks like UTF-8 read in another encoding"
    return ""


def repaired(text: str) -> str:
    """`text` with mojibake turned back where that gives valid UTF-8, and control characters out."""
    mended = _CONTROL.sub("", text)
    for _ in range(2):
        pieces = re.split(r"([^\x00-\x7f]+)", mended)
        pieces[1::2] = [_turned_back(piece) for piece in pieces[1::2]]
        again = "".join(pieces)
        if again == mended:
            break
        mended = again
    return mended


def repair(row: Conversation) -> Conversation:
    return row.with_messages(
        tuple(replace(message, content=repaired(message.content)) for message in row.messages)
    )


def _turned_back(piece: str) -> str:
    raw = bytearray()
    for letter in piece:
        try:
            raw += letter.encode("cp1252")
        except UnicodeEncodeError:
            # The five bytes that cp1252 leaves undefined are kept as they are.
            if ord(letter) > 0xFF:
                return piece
            raw.append(ord(letter))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return piece
