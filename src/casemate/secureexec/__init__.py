"""Secure Execution images: the format that genprotimg and pvimg write and IBM Z firmware opens. Streaming, no I/O of its own."""
