"""The further APIs of the endings matrix: Gemini, Bedrock, Cohere, Ollama."""

from __future__ import annotations

from typing import Any

from support.endings_apis import ANTHROPIC, ARGUMENTS, HI, NULL, OPENAI, WORDS, Api, Doc, Figures, Framing

# -- Gemini --------------------------------------------------------------------------------------------

GEMINI_USAGE = Figures({"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12})
GEMINI_ERROR = {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}
GEMINI_REQUEST = {"contents": [{"role": "user", "parts": [{"text": "Name a sea, if you please."}]}]}
SEA = {"functionCall": {"name": "find_sea", "args": {"name": "Sargasso"}}}


def gemini(part: dict[str, Any] | None, reason: str = "", usage: Figures = NULL) -> Doc:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [part]}} if part else {}
    if reason:
        candidate["finishReason"] = reason
    return {
        "candidates": [candidate] if candidate else [],
        "modelVersion": "gemini-2.0-flash",
        "usageMetadata": usage,
    }


def gemini_stream(title: str, framing: Framing, query: str) -> Api:
    return Api(
        title,
        f"/gemini/v1beta/models/gemini-2.0-flash:streamGenerateContent{query}",
        GEMINI_REQUEST,
        framing,
        begin=[gemini({"text": ""})],
        texts=[gemini({"text": word}) for word in WORDS],
        tool=[gemini(SEA)],
        refusal=[gemini({"text": "I cannot"})],
        nothing=[gemini(None)],
        close=[gemini(None, "STOP", GEMINI_USAGE)],
        error=GEMINI_ERROR,
        failure={**GEMINI_ERROR, "usageMetadata": GEMINI_USAGE},
    )


GEMINI = [
    gemini_stream("Gemini, event stream", Framing.EVENTS, "?alt=sse"),
    gemini_stream("Gemini, JSON array", Framing.ARRAY, ""),
    Api(
        "Gemini, JSON",
        "/gemini/v1beta/models/gemini-2.0-flash:generateContent",
        GEMINI_REQUEST,
        Framing.JSON,
        texts=[gemini({"text": "".join(WORDS)}, "STOP", GEMINI_USAGE)],
        tool=[gemini(SEA, "STOP", GEMINI_USAGE)],
        refusal=[
            {
                "promptFeedback": {"blockReason": "SAFETY"},
                "modelVersion": "gemini-2.0-flash",
                "usageMetadata": GEMINI_USAGE,
            }
        ],
        nothing=[gemini(None, "", GEMINI_USAGE)],
        error=GEMINI_ERROR,
        failure={**GEMINI_ERROR, "usageMetadata": GEMINI_USAGE},
    ),
]

# -- Bedrock -------------------------------------------------------------------------------------------

CONVERSE_USAGE = Figures({"inputTokens": 7, "outputTokens": 5, "totalTokens": 12})
METRICS = Figures({"inputTokenCount": 7, "outputTokenCount": 5, "invocationLatency": 9})
LLAMA = Figures(7), Figures(5)
BEDROCK_ERROR = {"message": "The model is not ready."}
CONVERSE_REQUEST = {"messages": [{"role": "user", "content": [{"text": "Name a sea, if you please."}]}]}


def converse_delta(delta: dict[str, Any]) -> Doc:
    return {"contentBlockDelta": {"contentBlockIndex": 0, "delta": delta}}


def converse(content: list[dict[str, Any]], reason: str = "end_turn") -> Doc:
    said = {"message": {"role": "assistant", "content": content}}
    return {"output": said, "stopReason": reason, "usage": CONVERSE_USAGE}


def cohere_chunk(text: str) -> Doc:
    return {"chunk": {"is_finished": False, "text": text}}


def llama(text: str) -> Doc:
    given, generated = LLAMA
    return {
        "generation": text,
        "prompt_token_count": given,
        "generation_token_count": generated,
        "stop_reason": "stop",
    }


BEDROCK = [
    Api(
        "Bedrock converse-stream",
        "/bedrock/model/amazon.nova-micro-v1:0/converse-stream",
        CONVERSE_REQUEST,
        Framing.FRAMES,
        begin=[{"messageStart": {"role": "assistant", "usage": NULL}}],
        texts=[converse_delta({"text": word}) for word in WORDS],
        tool=[converse_delta({"toolUse": {"input": ARGUMENTS}})],
        refusal=[converse_delta({"text": "I cannot do that."})],
        close=[
            {"messageStop": {"stopReason": "end_turn"}},
            {"metadata": {"metrics": {"latencyMs": 9}, "usage": CONVERSE_USAGE}},
        ],
        error={"modelStreamErrorException": {"message": "The stream broke."}},
        failure={**BEDROCK_ERROR, "usage": CONVERSE_USAGE},
    ),
    Api(
        "Bedrock converse, JSON",
        "/bedrock/model/amazon.nova-micro-v1:0/converse",
        CONVERSE_REQUEST,
        Framing.JSON,
        texts=[converse([{"text": "".join(WORDS)}])],
        tool=[
            converse(
                [{"toolUse": {"toolUseId": "t1", "name": "find_sea", "input": {"name": "Sargasso"}}}],
                "tool_use",
            )
        ],
        refusal=[converse([{"text": "I cannot do that."}], "guardrail_intervened")],
        nothing=[converse([])],
        error=None,
        failure={**BEDROCK_ERROR, "usage": CONVERSE_USAGE},
    ),
    Api(
        "Bedrock invoke, stream",
        "/bedrock/model/cohere.command-r-v1:0/invoke-with-response-stream",
        {"message": "Name a sea, if you please."},
        Framing.FRAMES,
        texts=[cohere_chunk(word) for word in WORDS],
        refusal=[cohere_chunk("I cannot do that.")],
        close=[
            {
                "chunk": {
                    "is_finished": True,
                    "finish_reason": "COMPLETE",
                    "amazon-bedrock-invocationMetrics": METRICS,
                }
            }
        ],
        error={"throttlingException": {"message": "Too many tokens."}},
        failure={**BEDROCK_ERROR, "amazon-bedrock-invocationMetrics": METRICS},
    ),
    Api(
        "Bedrock invoke, JSON",
        "/bedrock/model/meta.llama3-8b-instruct-v1:0/invoke",
        {"prompt": "Name a sea, if you please."},
        Framing.JSON,
        texts=[llama("".join(WORDS))],
        refusal=[llama("I cannot do that.")],
        nothing=[llama("")],
        error=None,
        failure={**BEDROCK_ERROR, "prompt_token_count": LLAMA[0], "generation_token_count": LLAMA[1]},
    ),
]

# -- Cohere --------------------------------------------------------------------------------------------

BILLED = Figures({"api_version": {"version": "1"}, "billed_units": {"input_tokens": 7, "output_tokens": 5}})
BILLED_2 = Figures({"billed_units": {"input_tokens": 7, "output_tokens": 5}})
COHERE_ERROR = {"message": "The model is overloaded."}
COHERE_REQUEST = {"model": "command-r-08-2024", "messages": HI}


def cohere_delta(said: dict[str, Any]) -> Doc:
    return {"type": "content-delta", "index": 0, "delta": {"message": said}}


def cohere_line(text: str) -> Doc:
    return {"is_finished": False, "event_type": "text-generation", "text": text}


def cohere(said: dict[str, Any], reason: str = "COMPLETE") -> Doc:
    return {"id": "c1", "finish_reason": reason, "message": {"role": "assistant", **said}, "usage": BILLED_2}


COHERE = [
    Api(
        "Cohere v1 chat",
        "/cohere/v1/chat",
        {"model": "command-r-08-2024", "stream": True, "message": "Name a sea, if you please."},
        Framing.LINES,
        begin=[{"is_finished": False, "event_type": "stream-start", "generation_id": "g", "meta": NULL}],
        texts=[cohere_line(word) for word in WORDS],
        tool=[
            {
                "is_finished": False,
                "event_type": "tool-calls-generation",
                "tool_calls": [{"name": "find_sea", "parameters": {"name": "Sargasso"}}],
            }
        ],
        refusal=[cohere_line("I cannot do that.")],
        close=[
            {
                "is_finished": True,
                "event_type": "stream-end",
                "finish_reason": "COMPLETE",
                "response": {"response_id": "r", "text": "", "meta": BILLED},
            }
        ],
        error={
            "is_finished": True,
            "event_type": "stream-end",
            "finish_reason": "ERROR",
            "response": {"response_id": "r"},
        },
        failure={**COHERE_ERROR, "meta": BILLED},
    ),
    Api(
        "Cohere v2 chat",
        "/cohere/v2/chat",
        {**COHERE_REQUEST, "stream": True},
        Framing.EVENTS,
        begin=[
            {
                "type": "message-start",
                "id": "c1",
                "delta": {"message": {"role": "assistant", "content": []}, "usage": NULL},
            }
        ],
        texts=[cohere_delta({"content": {"text": word}}) for word in WORDS],
        tool=[
            {
                "type": "tool-call-delta",
                "index": 0,
                "delta": {"message": {"tool_calls": {"function": {"arguments": ARGUMENTS}}}},
            }
        ],
        refusal=[cohere_delta({"content": {"text": "I cannot do that."}})],
        close=[{"type": "message-end", "delta": {"finish_reason": "COMPLETE", "usage": BILLED_2}}],
        marker=["[DONE]"],
        error={
            "type": "message-end",
            "delta": {"finish_reason": "ERROR", "error": "The model is overloaded."},
        },
        failure={**COHERE_ERROR, "usage": BILLED_2},
    ),
    Api(
        "Cohere v2 chat, JSON",
        "/cohere/v2/chat",
        COHERE_REQUEST,
        Framing.JSON,
        texts=[cohere({"content": [{"type": "text", "text": "".join(WORDS)}]})],
        tool=[
            cohere(
                {"tool_calls": [{"id": "t1", "function": {"name": "find_sea", "arguments": ARGUMENTS}}]},
                "TOOL_CALL",
            )
        ],
        refusal=[cohere({"content": [{"type": "text", "text": "I cannot do that."}]})],
        nothing=[cohere({"content": []})],
        error=None,
        failure={**COHERE_ERROR, "usage": BILLED_2},
    ),
]

# -- Ollama --------------------------------------------------------------------------------------------


def ollama(said: dict[str, Any], done: bool = False) -> Doc:
    answer: dict[str, Any] = {
        "model": "llama3.2:3b",
        "message": {"role": "assistant", "content": "", **said},
        "done": done,
    }
    if done:
        answer |= {"done_reason": "stop", "prompt_eval_count": Figures(7), "eval_count": Figures(5)}
    return answer


OLLAMA_ERROR = {"error": "The model ran out of memory."}
FIND = [{"function": {"name": "find_sea", "arguments": {"name": "Sargasso"}}}]

OLLAMA = [
    Api(
        "Ollama chat",
        "/ollama/api/chat",
        {"model": "llama3.2:3b", "messages": HI},
        Framing.LINES,
        texts=[ollama({"content": word}) for word in WORDS],
        tool=[ollama({"tool_calls": FIND})],
        refusal=[ollama({"content": "I cannot do that."})],
        close=[ollama({}, done=True)],
        error=OLLAMA_ERROR,
        failure={**OLLAMA_ERROR, "prompt_eval_count": Figures(7), "eval_count": Figures(5)},
    ),
    Api(
        "Ollama chat, JSON",
        "/ollama/api/chat",
        {"model": "llama3.2:3b", "stream": False, "messages": HI},
        Framing.JSON,
        texts=[ollama({"content": "".join(WORDS)}, done=True)],
        tool=[ollama({"tool_calls": FIND}, done=True)],
        refusal=[ollama({"content": "I cannot do that."}, done=True)],
        nothing=[ollama({}, done=True)],
        error=OLLAMA_ERROR,
        failure={**OLLAMA_ERROR, "prompt_eval_count": Figures(7), "eval_count": Figures(5)},
    ),
]

APIS = [*OPENAI, *ANTHROPIC, *GEMINI, *BEDROCK, *COHERE, *OLLAMA]
