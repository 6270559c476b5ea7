"""The OpenAI-compatible API: /v1/chat/completions, /v1/models, /health. Whatever is refused is refused with a reason."""

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from glmlab.worker import Busy, Ticket, TooLong

LARGEST_BODY = 2**20  # bytes; more text than any model here can read
RETRY_AFTER = 2       # seconds a client should wait when all places are taken
#: Accepted and without effect.
HARMLESS = {"user", "metadata", "safety_identifier", "service_tier", "parallel_tool_calls", "store", "verbosity"}
#: Known options that this server lacks, with the values that ask for nothing.
UNSUPPORTED = {
    "n": (None, 1), "tools": (None, []), "tool_choice": (None, "none", "auto"), "functions": (None, []),
    "function_call": (None, "none", "auto"), "stop": (None, [], ""), "logprobs": (None, False), "top_logprobs": (None, 0),
    "logit_bias": (None, {}), "presence_penalty": (None, 0), "frequency_penalty": (None, 0), "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]), "audio": (None,), "prediction": (None,), "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
}


class Refused(Exception):
    """What the client gets instead of an answer."""

    def __init__(self, status: int, message: str, code: str):
        super().__init__(message)
        self.status, self.code = status, code


def same(given: bytes, key: str) -> bool:
    """Whether what was given is the key, in a time that does not tell where they differ."""
    return hmac.compare_digest(given, key.encode())


def _error(message: str, code: str, status: int) -> dict:
    kind = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error"}.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


# --- what is asked -----------------------------------------------------------------------------------------------

@dataclass
class Asked:
    """A request that has been understood."""
    model: str
    messages: list[dict]
    stream: bool = False
    include_usage: bool = False
    max_new_tokens: int = 0
    session: str | None = None
    options: dict = field(default_factory=dict)  # temperature, top_p, seed


async def _body(http: Request) -> dict:
    """The JSON object of a request. Errors: Refused for anything else, also for what a form of a foreign page can send."""
    given = http.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, f"the content type must be application/json, not {given[:60] or 'missing'}", "unsupported_media_type")
    content = bytearray()
    async for part in http.stream():
        content += part
        if len(content) > LARGEST_BODY:
            raise Refused(400, f"the request is larger than {LARGEST_BODY:,} bytes", "request_too_large")
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}", "invalid_json") from error
    if not isinstance(body, dict):
        raise Refused(400, "the body must be a JSON object", "invalid_json")
    return body


def _number(body: dict, name: str, kinds: tuple, low: float, high: float):
    """An optional number of the request. Errors: Refused names it and what it may be."""
    value = body.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high):
        kind = "a whole number" if kinds == (int,) else "a number"
        raise Refused(400, f"{name} must be {kind} from {low:g} to {high:g}, not {json.dumps(value)[:50]}", "invalid_value")
    return value


def _flag(body: dict, name: str) -> bool:
    if body.get(name) not in (None, True, False):
        raise Refused(400, f"{name} must be true or false", "invalid_value")
    return bool(body.get(name))


def _messages(body: dict) -> list[dict]:
    given = body.get("messages")
    if not isinstance(given, list) or not given:
        raise Refused(400, "messages must be a list with at least one message", "invalid_value")
    return [_message(number, message) for number, message in enumerate(given)]


def _message(number: int, message) -> dict:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise Refused(400, f"message {number}: must be an object with role and content", "invalid_value")
    if message["role"] not in ("system", "developer", "user", "assistant"):
        raise Refused(400, f"message {number}: role {message['role']!r}; there are system, developer, user and assistant", "invalid_value")
    if extra := sorted(name for name in set(message) - {"role", "content", "name"} if message[name]):
        raise Refused(400, f"message {number}: unsupported: {', '.join(map(repr, extra))}", "unsupported_parameter")
    content = message["content"]
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content):
            raise Refused(400, f"message {number}: this server reads text only, no images, sound or files", "unsupported_parameter")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise Refused(400, f"message {number}: content must be text", "invalid_value")
    return {"role": "system" if message["role"] == "developer" else message["role"], "content": content}


def understood(body: dict, talk) -> Asked:
    """The request in the server's own terms. Errors: Refused, which names what is unknown, unsupported or out of range."""
    known = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed",
             "prompt_cache_key"}
    if unknown := sorted(set(body) - known - HARMLESS - set(UNSUPPORTED)):
        raise Refused(400, f"unknown: {', '.join(map(repr, unknown))}", "unknown_parameter")
    if unsupported := sorted(name for name in set(body) & set(UNSUPPORTED) if body[name] not in UNSUPPORTED[name]):
        raise Refused(400, f"this server does not support: {', '.join(f'{name}={json.dumps(body[name])[:50]}' for name in unsupported)}",
                      "unsupported_parameter")
    model = body.get("model")
    if not isinstance(model, str) or model not in talk.voices:
        raise Refused(404, f"there is no model {model!r}; there are: {', '.join(talk.voices)}", "model_not_found")
    most = talk.config.max_new_tokens
    wanted = [_number(body, name, (int,), 1, most) for name in ("max_completion_tokens", "max_tokens")]
    options = {"temperature": _number(body, "temperature", (int, float), 0, 2), "top_p": _number(body, "top_p", (int, float), 0.01, 1),
               "seed": _number(body, "seed", (int,), -2**63, 2**63 - 1)}
    session, more = body.get("prompt_cache_key"), body.get("stream_options") or {}
    if not isinstance(session, str | None):
        raise Refused(400, "prompt_cache_key must be text", "invalid_value")
    if not isinstance(more, dict) or set(more) - {"include_usage", "include_obfuscation"}:
        raise Refused(400, "stream_options may hold include_usage only", "unsupported_parameter")
    return Asked(model, _messages(body), _flag(body, "stream"), _flag(more, "include_usage"), wanted[0] or wanted[1] or 0, session,
                 {name: value for name, value in options.items() if value is not None})


# --- what is answered --------------------------------------------------------------------------------------------

class Exchange:
    """One request and its answer, in OpenAI's form."""

    def __init__(self, asked: Asked, talk):
        self.asked, self.talk = asked, talk
        self.head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": asked.model}
        self.events, self.ticket, self.watch = asyncio.Queue(), None, None

    async def start(self, http: Request) -> None:
        """Queue the request; from now on a client that hangs up frees its slot. Errors: Refused."""
        loop, asked = asyncio.get_running_loop(), self.asked

        def put(event) -> None:
            with contextlib.suppress(RuntimeError):  # the server is shutting down and its loop closed: nobody waits any more
                loop.call_soon_threadsafe(self.events.put_nowait, event)

        try:
            self.ticket = await asyncio.to_thread(self.talk.ask, asked.messages, put, asked.model, asked.max_new_tokens, asked.session,
                                                  **asked.options)
        except Busy as error:
            raise Refused(429, str(error), "queue_full") from error
        except ValueError as error:
            raise Refused(400, str(error), "context_length_exceeded" if isinstance(error, TooLong) else "invalid_value") from error
        self.watch = asyncio.create_task(self._cancel_when_gone(http))

    async def _cancel_when_gone(self, http: Request) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        self.talk.worker.cancel(self.ticket)

    async def respond(self) -> Response:
        """The whole answer, or a stream of it once there is something to send. Errors: Refused."""
        event = await self.events.get()
        if self.asked.stream and event is not self.ticket:
            return StreamingResponse(self._stream(event), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        while event is not self.ticket:
            event = await self.events.get()
        self.watch.cancel()
        _raise_if_failed(self.ticket)
        if self.ticket.finish == "cancelled":
            return Response(status_code=499)  # nobody reads it
        if self.asked.stream:
            return Response("".join(self._end({"role": "assistant", "content": ""})), media_type="text/event-stream")
        message = {"role": "assistant", "content": self.ticket.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason()}
        return JSONResponse({**self.head, "object": "chat.completion", "choices": [choice], "usage": self._usage(), **self._notes()})

    async def _stream(self, event: str):
        """Server-sent events. An error after the first of them is an event too, for the status has been sent."""
        try:
            yield self._chunk({"role": "assistant", "content": event})
            while (event := await self.events.get()) is not self.ticket:
                yield self._chunk({"content": event})
            _raise_if_failed(self.ticket)
            for line in self._end({}):
                yield line
        except Refused as error:
            yield _event(_error(str(error), error.code, error.status))
        finally:
            self.watch.cancel()
            self.talk.worker.cancel(self.ticket)

    def _end(self, delta: dict) -> list[str]:
        """The last events of a stream."""
        usage = [_event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()})]
        return [self._chunk(delta, self._reason(), **self._notes()), *(usage if self.asked.include_usage else []), "data: [DONE]\n\n"]

    def _chunk(self, delta: dict, reason: str | None = None, **notes) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event({**self.head, "object": "chat.completion.chunk", "choices": [choice], **notes})

    def _reason(self) -> str:
        return "stop" if self.ticket.finish == "stop" else "length"

    def _usage(self) -> dict:
        prompt, written = self.ticket.prompt_tokens, self.ticket.tokens
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def _notes(self) -> dict:
        """What OpenAI has no field for: why an answer was cut, and the task's disclaimer."""
        notes = {"note": self.ticket.error, "disclaimer": disclaimer(self.talk)}
        return {name: text for name, text in notes.items() if text}


def disclaimer(talk) -> str:
    """What the task says of its answers, in all its languages; "" for nothing."""
    return " ".join(talk.persona.disclaimer.values())


def _event(obj) -> str:
    return f"data: {json.dumps(obj, ensure_ascii=False)}\n\n"


def _raise_if_failed(ticket: Ticket) -> None:
    """Errors: Refused for an answer that was not to be had."""
    if ticket.finish == "refused":
        raise Refused(400, ticket.error, "context_length_exceeded")
    if ticket.finish == "time" and not ticket.tokens:
        raise Refused(429, f"{ticket.error}: too many requests wait; try again later", "timeout")
    if ticket.finish == "error":
        raise Refused(500, ticket.error, "generation_failed")


# --- the routes --------------------------------------------------------------------------------------------------

def add_routes(app: FastAPI, talk, key: str) -> None:
    """Put the API on an application. key: what `Authorization: Bearer …` must hold; "" lets everybody in."""
    started = int(time.time())

    def card(name: str) -> dict:
        return {"id": name, "object": "model", "created": started, "owned_by": "glmlab", "parent": None if name == talk.base else talk.base,
                **({"disclaimer": disclaimer(talk)} if talk.persona.disclaimer else {})}

    def check(http: Request) -> None:
        given = http.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")  # as Starlette decoded it
        if key and not same(given, key):
            raise Refused(401, "the API key is missing or wrong: send it as Authorization: Bearer KEY", "invalid_api_key")

    @app.exception_handler(Refused)
    async def refused(http: Request, error: Refused):
        again = {"Retry-After": str(RETRY_AFTER)} if error.status == 429 else {}
        return JSONResponse(_error(str(error), error.code, error.status), status_code=error.status, headers=again)

    @app.exception_handler(Exception)
    async def failed(http: Request, error: Exception):
        return JSONResponse(_error("the server failed; its log says why", "internal_error", 500), status_code=500)

    @app.get("/health")
    async def health():
        alive = talk.worker.alive()
        return JSONResponse({"status": "ok" if alive else "down", "open_requests": talk.worker.open}, status_code=200 if alive else 503)

    @app.get("/v1/models")
    async def list_models(http: Request):
        check(http)
        return {"object": "list", "data": [card(name) for name in talk.voices]}

    @app.get("/v1/models/{name}")
    async def one_model(http: Request, name: str):
        check(http)
        if name not in talk.voices:
            raise Refused(404, f"there is no model {name!r}; there are: {', '.join(talk.voices)}", "model_not_found")
        return card(name)

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request):
        check(http)
        exchange = Exchange(understood(await _body(http), talk), talk)
        await exchange.start(http)
        return await exchange.respond()

    async def nothing(http: Request):
        raise Refused(404, f"no {http.method} {http.url.path[:100]} here, but POST /v1/chat/completions, GET /v1/models, GET /health", "not_found")

    for path in ("/v1", "/v1/{rest:path}"):
        app.add_api_route(path, nothing, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
