"""A provider that is not there: OpenAI, Anthropic and Gemini on one port, for demos, tests and benchmarks.

    python -m bursar_sidecar.fake_provider --listen 127.0.0.1:0 [--latency-ms N] [--seed N] [--log FILE]

It speaks the real wire formats, JSON and streamed, so that the providers' own SDKs read it without a difference, and
reports token counts that follow from the request and the seed alone (`plan.expected_usage` tells them). It takes any
credential but none: without one it answers 401 in the shape of the API called. When it is ready it prints one line of
JSON on stdout, `{"event":"ready","listen":"127.0.0.1:41234"}`; with `--log` it writes one line for each call served.

Served: `POST /v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`, `/v1/messages`,
`/v1/messages/count_tokens`; `GET /v1/models`, `/v1beta/models`; `POST /v1beta/models/M:generateContent`,
`:streamGenerateContent`, `:embedContent`, `:batchEmbedContents`, `:countTokens` (`/v1/models/M:…` too).
`GET /__served` returns the last calls as JSON, `POST /__reset` forgets them, `GET /healthz` answers `ok`.

A request can ask for trouble with headers, which are numbers unless said otherwise:

| Header | Does |
|---|---|
| `x-fake-latency-ms` | waits before it answers (instead of `--latency-ms`) |
| `x-fake-pace-ms` | waits before each further piece of a stream |
| `x-fake-chunk-bytes` | sends the body in pieces of this size, whatever they cut through |
| `x-fake-abort-after-bytes` | breaks the connection after so many bytes of the body |
| `x-fake-status` | answers with this status and an error in the API's shape |
| `x-fake-retry-after` | adds `Retry-After` to such an error, as it is given |
| `x-fake-output-tokens` | answers with so many visible tokens (the request's own limit still holds) |
| `x-fake-model` | answers as this model (text), as providers do with dated names |
| `x-fake-no-usage` | `1`: reports no usage (chat completions and completions) |
| `x-fake-no-marker` | `1`: ends a stream without its last event |
| `x-fake-error-after-events` | puts an error event after so many events, and ends the stream |
| `x-fake-pad-bytes` | puts so many spaces into a JSON answer, to make it large |
| `x-fake-gzip` | `1`: compresses the body if the request accepts gzip |
"""
