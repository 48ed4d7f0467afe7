"""An OpenAI-compatible server that behaves like vLLM 0.32 where an orchestrator touches it, without a model.

Start it with ``python -m cloud.engines.simulated_server``. What it copies was measured on real servers; what
it leaves out is listed in docs/reference/engines.md.

`tokens` is the language model, `core` the scheduler, `metrics` the counters, `api` the HTTP surface,
`options` the command line and `process` the life of the process: loading, signals, drain, exit.
"""
