"""Word dropout: a question asked again with some of its words left out.

A bot that knows an answer should not hang on one word of the question. Leaving words out at random,
anew each time a row is seen, is the cheapest way to many phrasings (random deletion in Wei and Zou
2019, https://arxiv.org/abs/1901.11196). When it is used is the plan's business.
"""

from __future__ import annotations

import random
import re

from timechat.conversation import Conversation, Message

_WORDS = re.compile(r"\s*\S+")
_PLAIN = re.compile(r"\W+")


def drop_words(conversation: Conversation, share: float, rng: random.Random) -> Conversation:
    """`conversation` with about `share` of the words of its user turns left out.

    Kept always: numbers, words that stand in one of its answers (an answer must never say what the
    question no longer holds), and one word at least of each turn. All else is untouched.
    """
    if share <= 0:
        return conversation
    said = {
        _plain(word)
        for message in conversation.messages
        if message.role == "assistant"
        for word in message.content.split()
    }
    return conversation.with_messages(
        tuple(
            _thin(message, share, said, rng) if message.role == "user" else message
            for message in conversation.messages
        )
    )


def _thin(message: Message, share: float, said: set[str], rng: random.Random) -> Message:
    words = _WORDS.findall(message.content)
    kept = [word for word in words if _must_stay(word, said) or rng.random() >= share]
    if not words or len(kept) == len(words):
        return message
    text = "".join(kept or [rng.choice(words)]).strip()
    return Message(message.role, text, message.weight)


def _must_stay(word: str, said: set[str]) -> bool:
    return any(character.isdigit() for character in word) or _plain(word) in said


def _plain(word: str) -> str:
    return _PLAIN.sub("", word).casefold()
