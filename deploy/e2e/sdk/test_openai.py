"""OpenAI's Python package against a Manta server at MANTA_URL. Run by run.sh."""

import asyncio
import os
import sys

import openai

BASE = os.environ["MANTA_URL"].rstrip("/") + "/v1"
KEY = os.environ.get("MANTA_API_KEY", "none")
client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0)
MODEL = client.models.list().data[0].id
MESSAGES = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Describe the sea."}]
GREEDY = dict(model=MODEL, messages=MESSAGES, max_tokens=24, temperature=0, seed=1)


def test_models():
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat():
    answer = client.chat.completions.create(**GREEDY)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content, choice
    assert choice.finish_reason in ("stop", "length"), choice
    usage = answer.usage
    assert 0 < usage.completion_tokens <= 24 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_content_parts():
    parts = [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Describe the sea."}]}]
    plain = client.chat.completions.create(**GREEDY).choices[0].message.content
    assert client.chat.completions.create(**{**GREEDY, "messages": parts}).choices[0].message.content == plain


def test_chat_stream_equals_whole():
    whole = client.chat.completions.create(**GREEDY)
    text, roles, finish, usage = "", [], None, None
    for chunk in client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True}):
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            roles.append(choice.delta.role)
            finish = choice.finish_reason or finish
    assert text == whole.choices[0].message.content, (text, whole)
    assert roles[0] == "assistant" and finish == whole.choices[0].finish_reason
    assert usage.completion_tokens == whole.usage.completion_tokens, (usage, whole.usage)


def test_choices():
    answer = client.chat.completions.create(**{**GREEDY, "temperature": 1.0, "n": 3})
    assert [c.index for c in answer.choices] == [0, 1, 2] and all(c.message.content for c in answer.choices)
    again = client.chat.completions.create(**{**GREEDY, "temperature": 1.0, "n": 3})
    assert [c.message.content for c in answer.choices] == [c.message.content for c in again.choices], "the same seed"


def test_logprobs():
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for entry in content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3, entry
    joined = b"".join(bytes(e.bytes) for e in content).decode(errors="replace")
    assert joined.startswith(answer.choices[0].message.content), joined


def test_stop():
    text = client.chat.completions.create(**GREEDY).choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    answer = client.chat.completions.create(**GREEDY, stop=[stop])
    assert answer.choices[0].message.content == text.split(stop)[0] and answer.choices[0].finish_reason == "stop", answer
    streamed = "".join(
        c.choices[0].delta.content or "" for c in client.chat.completions.create(**GREEDY, stop=stop, stream=True) if c.choices
    )
    assert streamed == text.split(stop)[0], streamed


def test_completions():
    answer = client.completions.create(model=MODEL, prompt=["The sea", "The sky"], max_tokens=8, temperature=0, logprobs=1, echo=True)
    assert [c.index for c in answer.choices] == [0, 1]
    for choice, prompt in zip(answer.choices, ["The sea", "The sky"]):
        assert choice.text.startswith(prompt) and len(choice.text) > len(prompt), choice
        lists = choice.logprobs
        assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.text_offset) == len(lists.top_logprobs)
    texts = ["", ""]
    for chunk in client.completions.create(
        model=MODEL, prompt=["The sea", "The sky"], max_tokens=8, temperature=0, echo=True, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [c.text for c in answer.choices], texts


def test_extra_parameters():
    answer = client.completions.create(
        model=MODEL, prompt="The sea", max_tokens=6, temperature=0,
        extra_body={"ignore_eos": True, "min_tokens": 6, "top_k": 5, "repetition_penalty": 1.1, "return_token_ids": True},
    )
    assert answer.usage.completion_tokens == 6 and len(answer.choices[0].token_ids) == 6, answer


def refused(status, param, **change):
    try:
        client.chat.completions.create(**{**GREEDY, **change})
    except openai.APIStatusError as error:
        assert error.status_code == status and error.param == param, (error.status_code, error.body)
        return error
    raise AssertionError(f"{change} was taken")


def test_errors():
    assert isinstance(refused(400, "temperature", temperature=-1), openai.BadRequestError)
    assert isinstance(refused(404, "model", model="no-such-model"), openai.NotFoundError)
    refused(400, "max_tokens", max_tokens=1 << 24)
    refused(400, "messages", messages=[])
    refused(400, "response_format", response_format={"type": "json_object"})
    refused(400, "top_logprobs", top_logprobs=5)


def test_many_at_once():
    async def run():
        async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0) as many:
            alone = await many.chat.completions.create(**GREEDY)
            answers = await asyncio.gather(*(many.chat.completions.create(**GREEDY) for _ in range(16)))
            return alone, answers

    alone, answers = asyncio.run(run())
    assert all(a.choices[0].message.content == alone.choices[0].message.content for a in answers)


def test_giving_up_in_the_middle():
    stream = client.chat.completions.create(**{**GREEDY, "max_tokens": 200}, stream=True)
    next(stream)
    stream.close()
    assert client.chat.completions.create(**GREEDY).choices


failed = 0
for name, test in list(globals().items()):
    if name.startswith("test_"):
        try:
            test()
            print("ok    ", name)
        except Exception as error:  # every test is run; the exit status says if one failed
            failed += 1
            print("FAILED", name, type(error).__name__, error)
print(f"openai {openai.__version__}: {failed} failed")
sys.exit(1 if failed else 0)
