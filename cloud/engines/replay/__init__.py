"""Plays engines that cannot be had here, by what their sources say: SGLang, TGI, TEI, Ollama, TensorRT-LLM.

Run it as ``python -m cloud.engines.replay KIND [our flags] -- [the engine's own flags]``. It starts, loads,
serves, queues, drains and dies as the engine does; its texts are made up. What each shape was read from, and
what would break if it were wrong, is in docs/reference/engines-replayed.md.
"""
