"""Mesh's sampling tape for vLLM. See README.md."""


def __getattr__(name):
    # vLLM and torch are needed for the processor alone.
    if name == "TapeProcessor":
        from .processor import TapeProcessor

        return TapeProcessor
    raise AttributeError(name)
