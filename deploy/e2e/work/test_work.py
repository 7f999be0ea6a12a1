"""Ray's JobSubmissionClient and OpenAI's files and batches, unchanged, against MANTA_URL."""
import asyncio
import json
import os
import time
import urllib.error
import urllib.request

from openai import BadRequestError, ConflictError, NotFoundError, OpenAI
from ray.job_submission import JobStatus, JobSubmissionClient

url = os.environ["MANTA_URL"]
key = os.environ.get("MANTA_API_KEY", "none")
model = os.environ["MANTA_MODEL"]
ray = JobSubmissionClient(url, headers={"Authorization": "Bearer " + key})
openai = OpenAI(base_url=url + "/v1", api_key=key)


def until(what, holds, limit=600):
    end = time.time() + limit
    while time.time() < end:
        value = holds()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(what + " did not come")


def fails(kind, status, says, ask):
    try:
        ask()
    except kind as e:
        assert str(status) in str(e) and says in str(e) and "state:" not in str(e), (says, e)
    else:
        raise AssertionError("nothing says " + says)


def over(job):
    return lambda: ray.get_job_status(job).is_terminal() and ray.get_job_status(job)


def lines(n, tokens=8):
    return "".join(
        json.dumps({
            "custom_id": f"line-{i}", "method": "POST", "url": "/v1/completions",
            "body": {"model": model, "prompt": f"{i} and", "max_tokens": tokens, "ignore_eos": True, "temperature": 1.0},
        }) + "\n"
        for i in range(n)
    ).encode()


def upload(data, name="in.jsonl"):
    return openai.files.create(file=(name, data), purpose="batch")


def refused():
    """What is no manta command, or has a shell's characters, is refused and runs nothing."""
    before = len(ray.list_jobs())
    for entrypoint, says in {
        "python train.py": "'python'" , "manta serve x; rm -rf /": "';'", "manta serve $(id)": "'$'", "manta pull x": "manta pull",
        "manta serve x | tee y": "'|'", "manta serve a b": "one MODEL", "manta batch": "--input", "manta serve x --frob 1": "frob",
        "manta serve `id`": "'`'", "manta serve x > y": "'>'", "manta serve x\nid": "\\n", "": "must be given",
    }.items():
        try:
            ray.submit_job(entrypoint=entrypoint)
        except RuntimeError as e:
            assert "400" in str(e) and says.strip("'") in str(e), (entrypoint, e)
        else:
            raise AssertionError(entrypoint + " was taken")
    for arguments, says in (
        ({"runtime_env": {"pip": ["requests"]}}, "runtime_env.pip"), ({"runtime_env": {"env_vars": {"A": "1"}}}, "runtime_env.env_vars"),
        ({"runtime_env": {"working_dir": os.path.dirname(os.path.abspath(__file__))}}, "working_dir"),
        ({"entrypoint_num_cpus": 1}, "entrypoint_num_cpus"), ({"submission_id": "a b"}, "submission_id"),
    ):
        fails(RuntimeError, 400, says, lambda: ray.submit_job(entrypoint="manta serve x", **arguments))
    assert len(ray.list_jobs()) == before


def odd():
    """What is asked of a job that is not there, or by a path or method that no job has."""
    for ask in (ray.get_job_info, ray.get_job_status, ray.get_job_logs, ray.stop_job, ray.delete_job):
        fails(RuntimeError, 404, "no-such-job", lambda: ask("no-such-job"))
    for method, path, status in (
        ("GET", "/api/jobs/no-such-job/", 404), ("POST", "/api/jobs/no-such-job", 405), ("PUT", "/api/jobs/", 405), ("GET", "/api/jobs", 200),
    ):
        request = urllib.request.Request(url + path, method=method, data=b"{}" if method != "GET" else None, headers={"Authorization": "Bearer " + key})
        try:
            got = urllib.request.urlopen(request).status
        except urllib.error.HTTPError as e:
            got = e.code
            assert "error" in json.load(e), path
        assert got == status, (method, path, got)


def batch_job():
    """Ray's client submits a batch, follows its log, and finds it done."""
    file = upload(lines(12))
    job = ray.submit_job(entrypoint=f"manta batch --input {file.id} --output mine.jsonl", metadata={"by": "a test"})

    async def tail():
        return "".join([text async for text in ray.tail_job_logs(job)])

    followed = asyncio.run(tail())
    assert ray.get_job_status(job) == JobStatus.SUCCEEDED, ray.get_job_info(job)
    assert "SUCCEEDED" in followed and followed == ray.get_job_logs(job), (followed, ray.get_job_logs(job))
    info = ray.get_job_info(job)
    assert info.metadata == {"by": "a test"} and info.end_time >= info.start_time, info
    assert job in [j.submission_id for j in ray.list_jobs()]
    assert ray.delete_job(job)
    try:
        ray.get_job_status(job)
    except RuntimeError as e:
        assert "404" in str(e), e
    else:
        raise AssertionError("a deleted job is there")


def stop_job():
    """A stopped batch keeps what it has answered."""
    file = upload(lines(3000, 64))
    job = ray.submit_job(submission_id="to-be-stopped", entrypoint=f"manta batch --input {file.id}")
    fails(RuntimeError, 409, job + " already", lambda: ray.submit_job(submission_id=job, entrypoint=f"manta batch --input {file.id}"))
    fails(RuntimeError, 409, "stop it first", lambda: ray.delete_job(job))
    fails(ConflictError, 409, job, lambda: openai.files.delete(file.id))
    until("an answered line", lambda: openai.batches.retrieve(job).request_counts.completed > 0)
    assert ray.stop_job(job)
    assert until("the end", over(job)) == JobStatus.STOPPED
    assert ray.stop_job(job) is False
    done = openai.batches.retrieve(job)
    assert done.status == "cancelled" and 0 < done.request_counts.completed < 3000, done
    assert len(openai.files.content(done.output_file_id).text.splitlines()) == done.request_counts.completed


def serve_job():
    """A serve job has a deployment while it runs."""
    job = ray.submit_job(entrypoint=f"manta serve {model} --served-model-name second --max-model-len 256 --max-num-seqs 4")
    until("the deployment", lambda: ray.get_job_status(job) == JobStatus.RUNNING)
    assert openai.completions.create(model="second", prompt="The sea", max_tokens=3, temperature=0).choices[0].text
    assert ray.stop_job(job)
    assert until("the end", over(job)) == JobStatus.STOPPED
    until("the deployment's end", lambda: "second" not in [m.id for m in openai.models.list()])
    bad = ray.submit_job(entrypoint="manta serve no-such-model-anywhere --served-model-name third")
    assert until("the failure", over(bad)) == JobStatus.FAILED
    assert ray.get_job_info(bad).message, ray.get_job_info(bad)


def openai_batch():
    """Files and batches as OpenAI's SDK has them; each line once, the same tokens again."""
    bad = json.dumps({"custom_id": "bad", "method": "POST", "url": "/v1/completions", "body": {"model": model, "prompt": "x", "temperature": -1}}) + "\n"
    data = lines(20) + bad.encode()
    file = upload(data)
    assert file.bytes == len(data) and openai.files.content(file.id).content == data
    assert file.id in [f.id for f in openai.files.list(purpose="batch")]
    texts = []
    for _ in range(2):
        batch = openai.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h", metadata={"k": "v"})
        done = until("the batch", lambda: (b := openai.batches.retrieve(batch.id)).status in ("completed", "failed") and b)
        assert done.status == "completed" and done.metadata == {"k": "v"}, done
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed) == (21, 20, 1), done
        answers = [json.loads(line) for line in openai.files.content(done.output_file_id).text.splitlines()]
        assert sorted(a["custom_id"] for a in answers) == sorted(f"line-{i}" for i in range(20))
        texts.append({a["custom_id"]: a["response"]["body"]["choices"][0]["text"] for a in answers})
        (error,) = [json.loads(line) for line in openai.files.content(done.error_file_id).text.splitlines()]
        assert error["custom_id"] == "bad" and error["response"]["status_code"] == 400, error
        took = [a["response"]["body"]["usage"] for a in answers]
        used = done.usage
        assert used.input_tokens == sum(u["prompt_tokens"] for u in took) > 0 and used.output_tokens == 20 * 8, done
        assert used.total_tokens == used.input_tokens + used.output_tokens and used.output_tokens_details.reasoning_tokens == 0, done
        assert used.input_tokens_details.cached_tokens == sum(u["prompt_tokens_details"]["cached_tokens"] for u in took), done
        assert batch.id in [b.id for b in openai.batches.list(limit=5)]
    assert texts[0] == texts[1], "a batch that is repeated gives other tokens"
    broken = openai.batches.create(
        input_file_id=upload(b'{"custom_id": "a"}\nnot json\n').id, endpoint="/v1/completions", completion_window="24h")
    failed = until("the failure", lambda: (b := openai.batches.retrieve(broken.id)).status == "failed" and b)
    assert "line 1" in failed.errors.data[0].message and "line 2" in failed.errors.data[0].message, failed
    openai.files.delete(file.id)
    try:
        openai.files.retrieve(file.id)
    except NotFoundError:
        pass
    else:
        raise AssertionError("a deleted file is there")


def openai_odd():
    """Files that last for a time, and what there is no batch of."""
    file = openai.files.create(file=("in.jsonl", lines(1)), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
    assert file.expires_at == file.created_at + 3600 == openai.files.retrieve(file.id).expires_at, file
    assert upload(lines(1)).expires_at is None
    for after, says in (
        ({"anchor": "created_at", "seconds": 60}, "between 3600 and 2592000"), ({"anchor": "last_active_at", "seconds": 3600}, "created_at"),
    ):
        fails(BadRequestError, 400, says, lambda: openai.files.create(file=("in.jsonl", lines(1)), purpose="batch", expires_after=after))
    batch = openai.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h",
        extra_body={"output_expires_after": {"anchor": "created_at", "seconds": 7200}})
    done = until("the batch", lambda: (b := openai.batches.retrieve(batch.id)).status == "completed" and b)
    output = openai.files.retrieve(done.output_file_id)
    assert output.expires_at == output.created_at + 7200, output
    job = ray.submit_job(entrypoint=f"manta serve {model} --served-model-name fourth --max-model-len 256 --max-num-seqs 4")
    for name in ("batch_none", job):
        fails(NotFoundError, 404, "there is no batch " + name, lambda: openai.batches.retrieve(name))
        fails(NotFoundError, 404, "there is no batch " + name, lambda: openai.batches.cancel(name))
    assert ray.stop_job(job)


for test in (refused, odd, batch_job, stop_job, serve_job, openai_batch, openai_odd):
    start = time.time()
    test()
    print(f"ok {test.__name__} {time.time() - start:.1f} s", flush=True)
