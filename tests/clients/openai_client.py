"""PyPI `openai` asks for a chat completion: openai_client.py BASE_URL QUESTION [chunks | raw | whole]

Says what it is given: each chunk as the library has read it, or the answer's bytes as they come, or the answer in one piece.
"""

from __future__ import annotations

import base64
import json
import sys

import openai


def report(**line: object) -> None:
    print(json.dumps(line), flush=True)


def main(url: str, question: str, way: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="sk-test", max_retries=0, timeout=15)
    chat = client.chat.completions
    request = {"model": "gpt-test", "messages": [{"role": "user", "content": question}]}
    if way == "whole":
        try:
            report(content=chat.create(**request).choices[0].message.content)
        except openai.APIStatusError as error:
            report(error=type(error).__name__, status=error.status_code, message=error.message)
    elif way == "raw":
        with chat.with_streaming_response.create(**request, stream=True) as response:
            report(status=response.status_code, headers=dict(response.headers))
            for piece in response.iter_bytes():
                report(bytes=base64.b64encode(piece).decode())
    else:
        for chunk in chat.create(**request, stream=True):
            (choice,) = chunk.choices
            report(id=chunk.id, content=choice.delta.content, finish=choice.finish_reason)
    report(over=True)


main(*sys.argv[1:])
